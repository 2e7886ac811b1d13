//! Which port a flow has, and which flow a port.

use super::{About, Translation, work};
use crate::{
    atomic::compare_exchange,
    balance::{
        by_ring, dest_port,
        flows::{idle, next_state, steps, usable},
        forward, seed,
    },
    maps::{self, BACKEND_SIGNALS, BACKENDS, PORTS_IN_USE, SCRATCH, SOURCES, config},
    source::XdpSource,
};
use edge_common::{
    abi::TableStat,
    balance::{BackendWord, Flow, FlowState, FlowWord},
    header::Sum,
    nat::{Ends, FREE, PortSlot, Signals, Tags, WAYS, index, port_of, port_worth, source_of, way},
    parse::{PacketSource as _, proto, tcp as flag},
    reason::Reason,
};

/// What [`edge_nat_port`] says besides an entry, in the upper half.
const NO_PORT: u64 = 1 << 32;
const NO_FLOW: u64 = 2 << 32;
const NO_BACKEND: u64 = 3 << 32;
/// Beside an entry: the flow has begun with this packet.
const BEGUN: u64 = 1 << 31;
/// Among the TCP flags that it is given: whether it is a segment at all.
const IS_TCP: u32 = 1 << 8;

/// A word of a port, read whole.
macro_rules! slot {
    ($slot:expr, $($field:tt)+) => {
        // SAFETY: a map value.
        unsafe { (&raw const (*$slot).$($field)+).read_volatile() }
    };
}

/// Finds what becomes of a packet from a client.
#[inline(always)]
pub fn forth(about: &About<'_>, balance: u64, work: *mut Translation) -> Reason {
    let (facts, packet, flow) = (about.facts, about.packet, &about.flow);
    let ends = Ends::of(flow, packet.v6);
    let hash = flow.hash(seed());
    let now = steps(facts.now);
    let Some((hop, tags)) = came_from(about) else {
        return Reason::Pass;
    };
    let flags = packet.flags as u32 | if packet.is_tcp { IS_TCP } else { 0 };
    let mut at = way(hash, config!(snat), 0);
    let mut word = word_of(at, flow, ends, flags, now);
    let mut is_new = false;
    if word != 0 {
        maps::count(TableStat::FlowHits);
    } else {
        // SAFETY: a map value that belongs to this CPU.
        unsafe {
            (&raw mut (*work).client).write_volatile(flow.client);
            (&raw mut (*work).vip).write_volatile(flow.vip);
            (&raw mut (*work).hop).write_volatile(hop);
            (&raw mut (*work).ends).write_volatile(Ends::with_tags(ends, tags));
        }
        let balance = if packet.is_error { 0 } else { balance };
        let said = edge_nat_port(facts.now, balance, hash, flags);
        if said >> 32 != 0 {
            return match said {
                NO_PORT => Reason::NatNoPort,
                NO_FLOW => Reason::NatNoFlow,
                _ => Reason::BackendNone,
            };
        }
        is_new = said & BEGUN != 0;
        at = (said & !BEGUN) as u32;
        word = work!(work, was);
    }
    let Some(slot) = PORTS_IN_USE.get_ptr_mut(at) else {
        return Reason::NatNoPort;
    };
    let (Some(chosen), Some(source)) = (
        usable(FlowWord::backend(word), hash),
        SOURCES.get_ptr(source_of(at)),
    ) else {
        return Reason::BackendNone;
    };
    // SAFETY: a map value; each word is read whole, and a change may be met half way.
    let (dest, link) = unsafe {
        (
            (&raw const (*chosen.backend).address).read_volatile(),
            (&raw const (*chosen.backend).hop).read_volatile(),
        )
    };
    if link[1] >> 32 == 0 {
        return Reason::BackendNoHop;
    }
    if !packet.is_error {
        // The first packet of a flow, whatever it is, proves nothing: anybody can send it.
        let new = if is_new {
            word
        } else {
            FlowWord::with(word, next_state(word, packet), now)
        };
        // SAFETY: a map value, 8 bytes aligned. Whoever loses the race has the same to say, or
        // the port is another flow's by now.
        if new != word && unsafe { compare_exchange(&raw mut (*slot).word, word, new) } != word {
            let is_its = is_of(slot, flow.client, flow.vip, ends);
            if FlowWord::is_claimed(slot!(slot, word)) || !is_its {
                return Reason::NatNoPort;
            }
        }
        follow(slot, hop, Ends::with_tags(ends, tags));
        // Once a connection: who repeats a SYN is not answered each time.
        if is_new
            && packet.is_tcp
            && packet.flags & (flag::SYN | flag::ACK) == flag::SYN
            && let Some(signals) = signals(chosen.number)
        {
            signals.syns += 1;
        }
        forward::count(facts, chosen.number);
    }
    let v6 = BackendWord::is_v6(chosen.word);
    // SAFETY: a map value, written before it is used.
    let source = unsafe {
        if v6 {
            (&raw const (*source).v6).read_volatile()
        } else {
            (&raw const (*source).v4).read_volatile()
        }
    };
    let to = backend_port(chosen.word, ends);
    let ends = [port_of(at).to_be(), to];
    let way = Way {
        source,
        dest,
        v6,
        ports: joined(ends),
        link,
        tags: Tags::vlan(BackendWord::vlan_of(chosen.word)),
        mtu: BackendWord::mtu_of(chosen.word),
        mtu_back: config!(client_mtu),
    };
    way.take(about, work);
    Reason::Forwarded
}

/// Finds what becomes of a packet to the source address with a number. What does not come
/// from a backend, for a flow that it has, is the host's own.
#[inline(always)]
pub fn back(about: &About<'_>, number: u32, work: *mut Translation) -> Reason {
    let (facts, packet, flow) = (about.facts, about.packet, &about.flow);
    let now = steps(facts.now);
    let at = index(number, u16::from_be(dest_port(flow.ports)));
    let Some(slot) = PORTS_IN_USE.get_ptr_mut(at) else {
        return Reason::Pass;
    };
    let (word, ends) = (slot!(slot, word), slot!(slot, ends));
    if !is_live(word, now) || FlowWord::is_tcp(word) != (flow.proto == proto::TCP) {
        return Reason::Pass;
    }
    // One that is not to get packets any more may answer to those that it has.
    let Some(backend) = BACKENDS.get_ptr(FlowWord::backend(word)) else {
        return Reason::Pass;
    };
    // SAFETY: a map value; each word is read whole.
    let (state, address) = unsafe {
        (
            (&raw const (*backend).word).read_volatile(),
            (&raw const (*backend).address).read_volatile(),
        )
    };
    let from = dest_port(flow.ports.rotate_left(16));
    if BackendWord::generation_of(state) != FlowWord::generation(word)
        || address != flow.client
        || from != backend_port(state, ends)
    {
        return Reason::Pass;
    }
    let (client, vip, link) = (slot!(slot, client), slot!(slot, vip), slot!(slot, hop));
    // Nobody else has taken the port while it was read.
    let after = slot!(slot, word);
    if FlowWord::is_claimed(after) || !FlowWord::is_alike(word, after) {
        return Reason::Pass;
    }
    if !packet.is_error {
        let is_over = packet.is_tcp && packet.flags & (flag::FIN | flag::RST) != 0;
        let new = if is_over {
            FlowWord::with(word, FlowState::Closing, now)
        } else {
            FlowWord::seen_at(word, now)
        };
        if new != word {
            // SAFETY: as in `forth`.
            unsafe { compare_exchange(&raw mut (*slot).word, word, new) };
        }
        if packet.is_tcp
            && packet.flags & (flag::SYN | flag::RST) != 0
            && let Some(signals) = signals(FlowWord::backend(word))
        {
            // A reset that acknowledges is about a SYN, and no other (RFC 9293, 3.10.7.1): what
            // nobody asked for must not speak against the backend.
            if packet.flags & flag::SYN != 0 {
                signals.syn_acks += 1;
            } else if packet.flags & flag::ACK != 0 && FlowWord::is(word, FlowState::New) {
                signals.resets += 1;
            }
        }
    }
    let way = Way {
        source: vip,
        dest: client,
        v6: Ends::is_v6(ends),
        ports: Ends::ports(ends).rotate_left(16),
        link,
        tags: Ends::tags(ends),
        mtu: config!(client_mtu),
        mtu_back: BackendWord::mtu_of(state),
    };
    way.take(about, work);
    Reason::Forwarded
}

/// What becomes of a packet.
struct Way {
    source: [u64; 2],
    dest: [u64; 2],
    v6: bool,
    ports: u32,
    link: [u64; 2],
    tags: u32,
    mtu: u32,
    mtu_back: u32,
}

impl Way {
    #[inline(always)]
    fn take(&self, about: &About<'_>, work: *mut Translation) {
        let diff = Sum::default()
            .readdress(about.addresses.source, self.source)
            .readdress(about.addresses.dest, self.dest);
        // SAFETY: a map value that belongs to this CPU.
        unsafe {
            (&raw mut (*work).source).write_volatile(self.source);
            (&raw mut (*work).dest).write_volatile(self.dest);
            (&raw mut (*work).ports).write_volatile(self.ports);
            (&raw mut (*work).v6).write_volatile(self.v6 as u32);
            (&raw mut (*work).link).write_volatile(self.link);
            (&raw mut (*work).tags).write_volatile(self.tags);
            (&raw mut (*work).mtu).write_volatile(self.mtu);
            (&raw mut (*work).mtu_back).write_volatile(self.mtu_back);
            (&raw mut (*work).diff).write_volatile(diff.fold() as u32);
        }
    }
}

/// Two ports as they stand on the wire.
#[inline(always)]
fn joined([source, dest]: [u16; 2]) -> u32 {
    let ([a, b], [c, d]) = (source.to_ne_bytes(), dest.to_ne_bytes());
    u32::from_ne_bytes([a, b, c, d])
}

/// The port of the backend of a flow, as on the wire.
#[inline(always)]
fn backend_port(backend: u64, ends: u64) -> u16 {
    match BackendWord::port_of(backend) {
        0 => dest_port(Ends::ports(ends)),
        port => port.to_be(),
    }
}

/// Where the packet came from, as the way back: the next hop and the tags.
#[inline(always)]
fn came_from(about: &About<'_>) -> Option<([u64; 2], u32)> {
    let source = XdpSource::new(about.facts.ctx);
    let ([a], [b]) = (source.doubles::<1>(0)?, source.words::<1>(8)?);
    let (a, b) = (a.to_le(), b.to_le() as u64);
    // SAFETY: the context is the running program's.
    let ifindex = unsafe { (*about.facts.ctx.ctx).ingress_ifindex } as u64;
    // Its source, then its destination, in the order of memory.
    let hop = [
        (a >> 48 | b << 16 | a << 48).to_le(),
        (a >> 16 & 0xffff_ffff | ifindex << 32).to_le(),
    ];
    let tags = if about.packet.network <= forward::ETHERNET_LEN {
        0
    } else {
        let (kind, control) = (source.half(12)?, source.half(14)?);
        let inner = if about.packet.network == forward::ETHERNET_LEN + 4 {
            0
        } else {
            source.half(18)?
        };
        Tags::read(kind, control, inner)
    };
    Some((hop, tags))
}

/// Takes over where the client's packets come from, if that has changed, and the port is still
/// of the flow.
#[inline(always)]
fn follow(slot: *mut PortSlot, hop: [u64; 2], ends: u64) {
    let has = slot!(slot, ends);
    if (has ^ ends) & Ends::FLOW != 0 {
        return;
    }
    // SAFETY: a map value, 8 bytes aligned. What tells flows apart is never written over one that
    // has taken the port meanwhile.
    if has != ends && unsafe { compare_exchange(&raw mut (*slot).ends, has, ends) } != has {
        return;
    }
    let [a, b] = slot!(slot, hop);
    if (a ^ hop[0]) | (b ^ hop[1]) != 0 {
        // SAFETY: a map value. Between two changes a packet may meet half of each, and is lost;
        // the next one from the client puts it right.
        unsafe { (&raw mut (*slot).hop).write_volatile(hop) };
    }
}

/// What a backend says to SYNs, as this CPU counts it.
#[inline(always)]
fn signals(number: u32) -> Option<&'static mut Signals> {
    let signals = BACKEND_SIGNALS.get_ptr_mut(number)?;
    // SAFETY: the element belongs to this CPU.
    Some(unsafe { &mut *signals })
}

/// Whether a port has a flow, which goes on.
#[inline(always)]
fn is_live(word: u64, now: u32) -> bool {
    word != 0 && !FlowWord::is_claimed(word) && !FlowWord::is_over(word, now, idle())
}

/// Whether a port is that of a flow.
#[inline(always)]
fn is_of(slot: *const PortSlot, client: [u64; 2], vip: [u64; 2], ends: u64) -> bool {
    let ([a, b], [c, d]) = (slot!(slot, client), slot!(slot, vip));
    let ends = (slot!(slot, ends) ^ ends) & Ends::FLOW;
    (a ^ client[0]) | (b ^ client[1]) | (c ^ vip[0]) | (d ^ vip[1]) | ends == 0
}

/// Whether the flow of a port goes on, at its backend.
#[inline(always)]
fn goes_on(word: u64, now: u32) -> bool {
    is_live(word, now)
        && usable(FlowWord::backend(word), 0).is_some_and(|chosen| {
            BackendWord::generation_of(chosen.word) == FlowWord::generation(word)
        })
}

/// Whether a segment (`flags` as for [`edge_nat_port`]) begins anew what has ended: the client
/// uses its port again, maybe for another backend.
#[inline(always)]
fn begins_anew(word: u64, flags: u32) -> bool {
    let kind = flags & (IS_TCP | (flag::SYN | flag::ACK) as u32);
    kind == IS_TCP | flag::SYN as u32 && FlowWord::is(word, FlowState::Closing)
}

/// The word of this port, if a flow has it and goes on with a packet; else 0. It is read before
/// whose it is: who takes the port changes it first.
#[inline(always)]
fn word_of(at: u32, flow: &Flow, ends: u64, flags: u32, now: u32) -> u64 {
    let Some(slot) = PORTS_IN_USE.get_ptr(at) else {
        return 0;
    };
    let word = slot!(slot, word);
    let is_its = is_of(slot, flow.client, flow.vip, ends);
    if is_its && goes_on(word, now) && !begins_anew(word, flags) {
        word
    } else {
        0
    }
}

/// The entry of the port that the flow in the scratch has, or is given ([`BEGUN`]), whose word is
/// left there; without a service (`balance`, 0) it is given none. The rare case: a function of
/// its own.
#[inline(never)]
// SAFETY: no other symbol of the object has this name.
#[unsafe(no_mangle)]
extern "C" fn edge_nat_port(now_ns: u64, balance: u64, hash: u64, flags: u32) -> u64 {
    let Some(scratch) = SCRATCH.get_ptr_mut(0) else {
        return NO_PORT;
    };
    // SAFETY: a map value that belongs to this CPU.
    let work = unsafe { &raw mut (*scratch).nat };
    let now = steps(now_ns);
    // What is found lies in the scratch, so that the verifier does not follow it round the loop.
    // SAFETY: as above.
    let keep = |best: u32, most: u32, was: u64| unsafe {
        (&raw mut (*work).best).write_volatile(best);
        (&raw mut (*work).most).write_volatile(most);
        (&raw mut (*work).was).write_volatile(was);
    };
    keep(0, 0, 0);
    let mut i = 0;
    while i < WAYS {
        let at = way(hash, config!(snat), i);
        let Some(slot) = PORTS_IN_USE.get_ptr(at) else {
            return NO_PORT;
        };
        let word = slot!(slot, word);
        let is_its = is_of(
            slot,
            work!(work, client),
            work!(work, vip),
            work!(work, ends),
        );
        if word != 0 && !FlowWord::is_claimed(word) && is_its {
            keep(at, u32::MAX, word);
            break;
        }
        let worth = port_worth(word, now, idle());
        if worth > work!(work, most) {
            keep(at, worth, word);
        }
        i += 1;
    }
    let (best, most, was) = (work!(work, best), work!(work, most), work!(work, was));
    let goes_on = most == u32::MAX && goes_on(was, now);
    if goes_on && !begins_anew(was, flags) {
        maps::count(TableStat::FlowHits);
        return best as u64;
    }
    maps::count(TableStat::FlowMisses);
    // What has ended begins nothing.
    let is_tcp = flags & IS_TCP != 0;
    let is_end = is_tcp && flags as u8 & (flag::FIN | flag::RST) != 0;
    if balance == 0 || is_end {
        return NO_FLOW;
    }
    let Some(chosen) =
        by_ring(balance, hash, work!(work, client)).and_then(|number| usable(number, hash))
    else {
        return NO_BACKEND;
    };
    if most == 0 || !has_source(source_of(best), BackendWord::is_v6(chosen.word)) {
        maps::count(TableStat::FlowsRefused);
        return NO_PORT;
    }
    let Some(slot) = PORTS_IN_USE.get_ptr_mut(best) else {
        return NO_PORT;
    };
    let generation = BackendWord::generation_of(chosen.word);
    let new = FlowWord::of(chosen.number, generation, is_tcp, FlowState::New, now);
    // SAFETY: a map value, 8 bytes aligned.
    let at = unsafe { &raw mut (*slot).word };
    let claimed = FlowWord::claimed(now);
    // SAFETY: as above.
    if unsafe { compare_exchange(at, was, claimed) } != was {
        return NO_PORT;
    }
    // SAFETY: between the claim and the new word nobody else writes the port, and nobody
    // takes it for a flow's; the scratch belongs to this CPU. The new word is swapped in, which
    // orders it behind what was written before on every processor.
    unsafe {
        (&raw mut (*slot).ends).write_volatile((*work).ends);
        (&raw mut (*slot).client).write_volatile((*work).client);
        (&raw mut (*slot).vip).write_volatile((*work).vip);
        (&raw mut (*slot).hop).write_volatile((*work).hop);
        compare_exchange(at, claimed, new);
    }
    keep(best, most, new);
    maps::count(if most >= FREE {
        TableStat::FlowsInserted
    } else {
        TableStat::FlowsReplaced
    });
    best as u64 | BEGUN
}

/// Whether a source has an address of a family.
#[inline(always)]
fn has_source(number: u32, v6: bool) -> bool {
    SOURCES.get_ptr(number).is_some_and(|source| {
        // SAFETY: a map value, each word read whole.
        let ([a, b], [c, d]) = unsafe {
            (
                (&raw const (*source).v4).read_volatile(),
                (&raw const (*source).v6).read_volatile(),
            )
        };
        if v6 { c | d != 0 } else { a | b != 0 }
    })
}
