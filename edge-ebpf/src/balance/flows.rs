//! Which backend a flow belongs to: the table of flows, then the ring.
//!
//! A packet of QUIC whose connection id names a backend goes there ([`super::quic`]). The table
//! follows it: packets with the same addresses and ports that name nobody go there as well,
//! and the flow counts as one of that backend's. But where another flow is in the table that
//! goes on, it stays: two connections may share addresses and ports, and while one of them
//! begins, nothing but the table tells where it does. So a made-up id, with whatever source
//! address, moves nobody's flow.

use super::{Packet, by_ring, seed};
use crate::{
    atomic::compare_exchange,
    emit::Facts,
    maps::{self, BACKENDS, FLOWS, config},
};
use edge_common::{
    abi::TableStat,
    balance::{
        AGE_SHIFT, Backend, BackendWord, FLOW_WAYS, Flow, FlowSlot, FlowState, FlowWord, Forward,
        Idle, bucket_of, worth,
    },
    parse::tcp as flag,
};

/// The tag of a slot that another CPU is filling.
const CLAIMED: u64 = 1;

/// A backend that takes packets, for a flow.
#[derive(Clone, Copy)]
pub struct Chosen {
    pub number: u32,
    pub backend: *const Backend,
    /// As [`BackendWord`].
    pub word: u64,
    /// Of the flow, to spread what goes to the backend.
    pub hash: u64,
}

/// The backend with a number, if it takes packets.
#[inline(always)]
pub fn usable(number: u32, hash: u64) -> Option<Chosen> {
    // Nobody's number: a ring that is not there, or a slot of none.
    if number == 0 {
        return None;
    }
    let backend = BACKENDS.get_ptr(number)?;
    // SAFETY: a map value, read whole.
    let word = unsafe { (&raw const (*backend).word).read_volatile() };
    BackendWord::is_alive(word).then_some(Chosen {
        number,
        backend,
        word,
        hash,
    })
}

/// The hash of a flow as it stands in the table: 0 and [`CLAIMED`] mean something else.
#[inline(always)]
fn tag(hash: u64) -> u64 {
    if hash <= CLAIMED { hash | 2 } else { hash }
}

/// The slot with a tag.
#[inline(always)]
fn find(bucket: *mut FlowSlot, tag: u64) -> Option<*mut FlowSlot> {
    let mut i = 0;
    while i < FLOW_WAYS {
        // SAFETY: a bucket has so many slots; the word is read whole.
        unsafe {
            let slot = bucket.add(i);
            if (&raw const (*slot).tag).read_volatile() == tag {
                return Some(slot);
            }
        }
        i += 1;
    }
    None
}

/// The bucket of a flow with this hash.
#[inline(always)]
fn bucket(hash: u64) -> Option<*mut FlowSlot> {
    let bucket = FLOWS.get_ptr_mut(bucket_of(hash, config!(flow_buckets)))?;
    Some(bucket.cast::<FlowSlot>())
}

/// Whether a packet begins a connection where one has ended: it may go elsewhere.
#[inline(always)]
fn begins_anew(word: u64, packet: Packet) -> bool {
    packet.is_tcp
        && packet.flags & (flag::SYN | flag::ACK) == flag::SYN
        && FlowWord::is(word, FlowState::Closing)
}

/// Notes one packet more of a flow in its slot, whose word was this.
#[inline(always)]
fn go_on(slot: *mut FlowSlot, word: u64, packet: Packet, now: u32) {
    maps::count(TableStat::FlowHits);
    let new = FlowWord::with(word, next_state(word, packet), now);
    if new != word {
        // SAFETY: a map value, 8 bytes aligned. Whoever loses the race has the same to say, or
        // the slot is another flow's by now.
        unsafe { compare_exchange(&raw mut (*slot).word, word, new) };
    }
}

/// The backend of a flow that is in the table and goes on, by its hash alone: its service has
/// nothing to add. Not so where connection ids say more, or flows have another table.
#[inline(always)]
pub fn known(facts: Facts<'_>, packet: Packet, hash: u64) -> Option<Chosen> {
    let slot = find(bucket(hash)?, tag(hash))?;
    // SAFETY: a map value, read whole.
    let word = unsafe { (&raw const (*slot).word).read_volatile() };
    let now = steps(facts.now);
    let chosen = kept(word, now, idle(), hash)?;
    if BackendWord::is_by_id(chosen.word)
        || BackendWord::is(chosen.word, Forward::Nat)
        || begins_anew(word, packet)
    {
        return None;
    }
    go_on(slot, word, packet, now);
    Some(chosen)
}

/// The backend for a packet of a flow with this hash, which `named` one if that is not 0.
#[inline(always)]
pub fn choose(
    facts: Facts<'_>,
    packet: Packet,
    client: [u64; 2],
    hash: u64,
    balance: u64,
    named: u32,
) -> Option<Chosen> {
    let (now, idle) = (steps(facts.now), idle());
    let bucket = bucket(hash)?;
    if let Some(slot) = find(bucket, tag(hash)) {
        // SAFETY: a map value, read whole.
        let word = unsafe { (&raw const (*slot).word).read_volatile() };
        if !begins_anew(word, packet)
            && let Some(chosen) = kept(word, now, idle, hash)
        {
            if named != 0 && named != chosen.number {
                return usable(named, hash);
            }
            go_on(slot, word, packet, now);
            return Some(chosen);
        }
        let chosen = first(named, balance, hash, client)?;
        let new = first_word(chosen, packet, now);
        // SAFETY: as above.
        unsafe { compare_exchange(&raw mut (*slot).word, word, new) };
        return Some(chosen);
    }
    maps::count(TableStat::FlowMisses);
    let chosen = first(named, balance, hash, client)?;
    // What has ended begins nothing.
    if packet.flags & (flag::FIN | flag::RST) == 0 || !packet.is_tcp {
        insert(
            bucket,
            tag(hash),
            first_word(chosen, packet, now),
            now,
            idle,
        );
    }
    Some(chosen)
}

/// The backend of a flow that is not in the table.
#[inline(always)]
fn first(named: u32, balance: u64, hash: u64, client: [u64; 2]) -> Option<Chosen> {
    if named != 0 {
        return usable(named, hash);
    }
    usable(by_ring(balance, hash, client)?, hash)
}

/// The same for a packet that is about a flow, and changes nothing.
#[inline(always)]
pub fn look(facts: Facts<'_>, flow: Flow, balance: u64) -> Option<Chosen> {
    let hash = flow.hash(seed());
    let (now, idle) = (steps(facts.now), idle());
    if let Some(slot) = find(bucket(hash)?, tag(hash)) {
        // SAFETY: a map value, read whole.
        let word = unsafe { (&raw const (*slot).word).read_volatile() };
        if let Some(chosen) = kept(word, now, idle, hash) {
            return Some(chosen);
        }
    }
    usable(by_ring(balance, hash, flow.client)?, hash)
}

/// A moment (nanoseconds) in steps of [`AGE_SHIFT`].
#[inline(always)]
pub const fn steps(now: u64) -> u32 {
    (now >> AGE_SHIFT) as u32
}

/// How long flows are kept.
#[inline(always)]
pub fn idle() -> Idle {
    Idle {
        tcp: config!(tcp_idle),
        udp: config!(udp_idle),
    }
}

/// The backend of a flow in the table, if it goes on there.
#[inline(always)]
fn kept(word: u64, now: u32, idle: Idle, hash: u64) -> Option<Chosen> {
    if FlowWord::is_over(word, now, idle) {
        return None;
    }
    let chosen = usable(FlowWord::backend(word), hash)?;
    (BackendWord::generation_of(chosen.word) == FlowWord::generation(word)).then_some(chosen)
}

#[inline(always)]
fn first_word(chosen: Chosen, packet: Packet, now: u32) -> u64 {
    let generation = BackendWord::generation_of(chosen.word);
    let state = if packet.is_tcp && packet.flags & (flag::FIN | flag::RST) != 0 {
        FlowState::Closing
    } else {
        FlowState::New
    };
    FlowWord::of(chosen.number, generation, packet.is_tcp, state, now)
}

/// How far a flow has come with one packet more.
#[inline(always)]
pub fn next_state(word: u64, packet: Packet) -> FlowState {
    if !packet.is_tcp {
        return FlowState::Established;
    }
    if packet.flags & (flag::FIN | flag::RST) != 0 {
        return FlowState::Closing;
    }
    let is_new = FlowWord::is(word, FlowState::New);
    if packet.flags & flag::SYN != 0 && is_new {
        // Its first SYN again.
        return FlowState::New;
    }
    if FlowWord::is(word, FlowState::Closing) {
        FlowState::Closing
    } else {
        FlowState::Established
    }
}

/// Takes a flow into its bucket, if there is a place for it.
#[inline(always)]
fn insert(bucket: *mut FlowSlot, tag: u64, word: u64, now: u32, idle: Idle) {
    let (mut best, mut most, mut was) = (bucket, 0, 0);
    let mut i = 0;
    while i < FLOW_WAYS {
        // SAFETY: a bucket has so many slots; both words are read whole.
        unsafe {
            let at = bucket.add(i);
            let slot = FlowSlot {
                tag: (&raw const (*at).tag).read_volatile(),
                word: (&raw const (*at).word).read_volatile(),
            };
            let worth = worth(slot, now, idle);
            if slot.tag != CLAIMED && worth > most {
                (best, most, was) = (at, worth, slot.tag);
            }
        }
        i += 1;
    }
    if most == 0 {
        maps::count(TableStat::FlowsRefused);
        return;
    }
    // SAFETY: a slot of the bucket, 8 bytes aligned. Between the claim and the tag nobody
    // else writes it, and nobody finds it.
    unsafe {
        let at = &raw mut (*best).tag;
        if compare_exchange(at, was, CLAIMED) != was {
            return;
        }
        (&raw mut (*best).word).write_volatile(word);
        at.write_volatile(tag);
    }
    maps::count(if most >= 1 << 20 {
        TableStat::FlowsInserted
    } else {
        TableStat::FlowsReplaced
    });
}
