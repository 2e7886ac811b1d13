//! The L4 balancer: the last program a packet can come to.

mod flows;
mod forward;
mod icmp;
pub mod nat;
mod quic;
mod too_big;

use crate::{
    atomic::compare_exchange,
    defence::frame::Addresses,
    emit::{self, Facts},
    hand_over::{Asks, HandOver, Marks},
    maps::{self, BALANCES, DEFENCE, RINGS, TARGETS, VIPS, config},
    source::{XdpSource, hide},
};
use aya_ebpf::programs::XdpContext;
use edge_common::{
    abi::Config,
    balance::{Balance, Flow, Forward, ring_words, slot_at, slot_of, vip_bit},
    defence::{DefenceWord, TARGET_FORWARDED, TargetKey},
    gcra::{Limit, ticks},
    hash::Seed,
    parse::{Kind, PacketSource as _, proto},
    reason::Reason,
};

/// Whether there is anything to do. Known to the verifier.
#[inline(always)]
pub fn is_on() -> bool {
    config!(rings) != 0
}

/// What is to be asked of a packet to an address, of [`Asks`]; most that are of no service
/// are told here.
#[inline(always)]
pub fn asks(address: [u64; 2]) -> u32 {
    let (word, bit) = vip_bit(maps::seed(), address);
    let Some(bits) = VIPS.get_ptr(word) else {
        return 0;
    };
    // SAFETY: a map value; each word is read whole.
    let [vips, sources] = unsafe { bits.read_volatile() };
    if nat::is_on() && sources & bit != 0 {
        Asks::NAT
    } else if vips & bit != 0 {
        Asks::BALANCE
    } else {
        0
    }
}

/// The secret of the choice of backends.
#[inline(always)]
fn seed() -> &'static Seed {
    // Hidden, so that LLVM does not take the value that the object was built with.
    let at = hide(maps::config_ptr() as u64) as *const Config;
    // SAFETY: it points to a static that nobody writes once the program is loaded.
    unsafe { &(*at).balance_seed }
}

/// How a packet ended.
pub struct End {
    pub reason: Reason,
    /// The interface to send it from, 0 for that which it came from.
    pub to: u32,
}

impl End {
    #[inline(always)]
    const fn new(reason: Reason) -> Self {
        Self { reason, to: 0 }
    }
}

/// A packet of a service.
#[derive(Clone, Copy)]
struct Packet {
    /// Offset of the IP header.
    network: usize,
    /// Offset of the transport header.
    transport: usize,
    v6: bool,
    flags: u8,
    /// Whether it is a TCP segment, with a header.
    is_tcp: bool,
    /// Whether it is an ICMP error, which is never answered (RFC 1122, 3.2.2), and changes
    /// nothing of the flow that it is about.
    is_error: bool,
}

impl Packet {
    /// Of which the parser said `marks`.
    #[inline(always)]
    const fn new(marks: u64) -> Self {
        Self {
            network: (marks >> Marks::NETWORK & 0xff) as usize,
            transport: (marks >> Marks::TRANSPORT & Marks::FAR) as usize,
            v6: marks >> Marks::V6 & 1 != 0,
            flags: marks as u8,
            is_tcp: marks >> Marks::KIND & 0xf == Kind::Tcp as u64,
            is_error: false,
        }
    }
}

/// The program.
#[inline(always)]
pub fn run(ctx: &XdpContext) -> End {
    let Some((facts, marks, _)) = HandOver::take(ctx) else {
        return End::new(Reason::Pass);
    };
    let end = judge(facts, marks);
    emit::ended(facts, end.reason);
    end
}

#[inline(always)]
fn judge(facts: Facts<'_>, marks: u64) -> End {
    let source = XdpSource::new(facts.ctx);
    let Some(Addresses {
        source: client,
        dest: vip,
    }) = Addresses::read(&source, marks)
    else {
        return End::new(Reason::Pass);
    };
    let kind = marks >> Marks::KIND & 0xf;
    let packet = Packet::new(marks);
    let proto = (marks >> Marks::PROTO) as u8;
    if marks >> Marks::FRAGMENT & 1 != 0 {
        return fragment(facts, packet, client, vip, proto);
    }
    if kind == Kind::Icmp as u64 {
        return icmp::judge(facts, packet, client, vip);
    }
    if !packet.is_tcp && kind != Kind::Udp as u64 {
        return End::new(Reason::Pass);
    }
    let Some([ports]) = source.words::<1>(packet.transport) else {
        return End::new(Reason::Pass);
    };
    let flow = Flow {
        client,
        vip,
        ports,
        proto,
    };
    let hash = flow.hash(seed());
    // Most packets are of flows that are known, and need no look at their service.
    if let Some(chosen) = flows::known(facts, packet, hash) {
        return forward::to(facts, packet, chosen);
    }
    let Some(service) = find(vip, dest_port(ports), proto) else {
        return End::new(Reason::Pass);
    };
    let balance = word(service);
    if !Balance::is_balanced(balance) {
        return End::new(Reason::Pass);
    }
    if Balance::is(balance, Forward::Nat) {
        return nat::go_on(facts, balance);
    }
    let named = quic::named(&source, packet, service, balance);
    match flows::choose(facts, packet, client, hash, balance, named) {
        Some(chosen) => forward::to(facts, packet, chosen),
        None => End::new(Reason::BackendNone),
    }
}

/// All fragments of a packet have both addresses, and nothing else that tells which flow
/// they are of.
#[inline(always)]
fn fragment(facts: Facts<'_>, packet: Packet, client: [u64; 2], vip: [u64; 2], proto: u8) -> End {
    // Which service has them when only one has the protocol at this address.
    let Some(service) = target(vip, (proto as u16).to_be(), proto::FRAGMENT) else {
        return End::new(match target(vip, 0, proto::ICMP) {
            Some(_) => Reason::ForwardFragment,
            None => Reason::Pass,
        });
    };
    let balance = word(service);
    if !Balance::is_balanced(balance) {
        return End::new(Reason::Pass);
    }
    // NAT knows a flow by its ports, which only the first one has.
    if config!(drop_fragments) != 0 || Balance::is(balance, Forward::Nat) {
        return End::new(Reason::ForwardFragment);
    }
    let flow = Flow {
        client,
        vip,
        ports: 0,
        proto,
    };
    let hash = flow.hash(seed());
    match by_ring(balance, hash, client).and_then(|number| flows::usable(number, hash)) {
        Some(chosen) => forward::to(facts, packet, chosen),
        None => End::new(Reason::BackendNone),
    }
}

/// The destination port, as read from the wire.
#[inline(always)]
const fn dest_port(ports: u32) -> u16 {
    let [_, _, a, b] = ports.to_ne_bytes();
    u16::from_ne_bytes([a, b])
}

/// The service of an address and port (as on the wire), or of all its ports.
#[inline(always)]
fn find(vip: [u64; 2], port: u16, proto: u8) -> Option<u32> {
    let found = target(vip, port, proto);
    if found.is_some() || port == 0 {
        return found;
    }
    target(vip, 0, proto)
}

#[inline(always)]
fn target(address: [u64; 2], port: u16, proto: u8) -> Option<u32> {
    target_of(address, port, proto, TARGET_FORWARDED)
}

/// What an entry of a kind says, if there is one.
#[inline(always)]
fn target_of([hi, lo]: [u64; 2], port: u16, proto: u8, of: u8) -> Option<u32> {
    let [a, b] = port.to_ne_bytes();
    let end = u64::from_ne_bytes([a, b, proto, 0, 0, 0, 0, 0]);
    // SAFETY: a key is repr(C) without padding, and any bytes are one.
    let key = unsafe { core::mem::transmute::<[u64; 3], TargetKey>([hi, lo, end]) };
    let target = TARGETS.get_ptr_mut(key)?;
    // SAFETY: a map value; the daemon replaces entries as a whole.
    let (service, kind) = unsafe { ((*target).service, (*target).kind) };
    (kind == of).then_some(service)
}

/// How a service is balanced, a [`Balance`] word.
#[inline(always)]
fn word(service: u32) -> u64 {
    BALANCES
        .get_ptr(service)
        // SAFETY: a map value, read whole.
        .map_or(0, |word| unsafe { word.read_volatile() })
}

/// The number of the backend that the ring of a service has for a flow.
#[inline(always)]
fn by_ring(balance: u64, hash: u64, client: [u64; 2]) -> Option<u32> {
    let ring = Balance::ring_of(balance);
    if ring == 0 {
        return None;
    }
    let hash = if Balance::is_by_source(balance) {
        let flow = Flow {
            client,
            vip: [0; 2],
            ports: 0,
            proto: 0,
        };
        flow.client_hash(seed())
    } else {
        hash
    };
    let slots = config!(slots);
    let (at, shift) = slot_at(ring, ring_words(slots), slot_of(hash, slots));
    let slots = RINGS.get_ptr(at)?;
    // SAFETY: a map value, read whole.
    let number = unsafe { slots.read_volatile() } >> shift;
    Some(number as u32)
}

/// Whether one more message of a kind may be sent, of all that are.
#[inline(always)]
fn may_send(word: DefenceWord, now: u64) -> bool {
    const SENT: Limit = match Limit::per_second(1000, 200) {
        Some(limit) => limit,
        None => Limit::NONE,
    };
    let Some(word) = DEFENCE.get_ptr_mut(word as u32) else {
        return false;
    };
    // SAFETY: a map value, 8 bytes aligned, only written by this operation.
    unsafe {
        let tat = word.read_volatile();
        SENT.admit(tat, ticks(now), 1)
            .is_some_and(|new| compare_exchange(word, tat, new) == tat)
    }
}
