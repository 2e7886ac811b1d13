//! Prefixes and destinations that get more packets than any may: where sources are
//! spoofed, limits by source do not bite.

use super::{AHEAD_NS, end, frame::Addresses, put_off};
use crate::{
    atomic::compare_exchange,
    emit::Facts,
    hand_over::Marks,
    maps::{SKETCH, config},
    source::XdpSource,
};
use aya_ebpf::{bindings::xdp_md, programs::XdpContext};
use edge_common::{
    defence::{DefenceWord, Hitter, SKETCH_SAMPLE},
    gcra::{Limit, ticks},
    hash::hash,
    reason::Reason,
};

/// Tag of the hash of the first kind; the others follow.
const TAG: u32 = 0x2010;

/// Judges a packet, as [`super::icmp::edge_defend_icmp`] does messages; one that is
/// marked as a sample is counted.
#[inline(never)]
// SAFETY: no other symbol of the object has this name.
#[unsafe(no_mangle)]
pub extern "C" fn edge_hitters(ctx: *mut xdp_md, now: u64, marks: u64, frame_len: u32) -> u32 {
    let context = XdpContext::new(ctx);
    let facts = Facts {
        ctx: &context,
        now,
        frame_len,
    };
    judge(facts, marks).index()
}

#[inline(always)]
fn judge(facts: Facts<'_>, marks: u64) -> Reason {
    let source = XdpSource::new(facts.ctx);
    let Some(addresses) = Addresses::read(&source, marks) else {
        return Reason::Pass;
    };
    let v6 = marks >> Marks::V6 & 1 != 0;
    let sampled = marks >> Marks::SAMPLED & 1 != 0;
    let look = |kind: Hitter, limit: Limit, [hi, lo]: [u64; 2]| {
        let (hi, lo) = masked(kind, v6, hi, lo);
        limit.is_some() && is_over(kind, &limit, hi, lo, sampled, facts.now)
    };
    let (from, to) = (addresses.source, addresses.dest);
    let by_source = look(Hitter::SourceNarrow, config!(hitters[0]), from)
        | look(Hitter::SourceWide, config!(hitters[1]), from);
    let by_dest = look(Hitter::Dest, config!(hitters[2]), to)
        | look(Hitter::DestPrefix, config!(hitters[3]), to);
    if !by_source && !by_dest {
        return Reason::Pass;
    }
    put_off(DefenceWord::HittersUntil, facts.now, AHEAD_NS);
    let reason = if by_source {
        Reason::FloodSource
    } else {
        Reason::FloodDest
    };
    end(facts, config!(hitters_mode), reason)
}

/// The prefix of an address, halves as on the wire.
#[inline(always)]
fn masked(kind: Hitter, v6: bool, hi: u64, lo: u64) -> (u64, u64) {
    // IPv4 is the last word of its mapped form.
    let behind = 128 - kind.bits(v6) as u32 - if v6 { 0 } else { 96 };
    if behind >= 64 {
        (hi & (u64::MAX << (behind - 64)).to_be(), 0)
    } else {
        (hi, lo & (u64::MAX << behind).to_be())
    }
}

/// Whether one is over its limit; a sample that is not is counted.
#[inline(always)]
fn is_over(kind: Hitter, limit: &Limit, hi: u64, lo: u64, sampled: bool, now: u64) -> bool {
    let hash = hash(&config!(seed), hi, lo, TAG + kind as u32);
    let (a, b) = kind.cells(hash);
    let (Some(a), Some(b)) = (SKETCH.get_ptr_mut(a), SKETCH.get_ptr_mut(b)) else {
        return false;
    };
    let now = ticks(now);
    // SAFETY: map values, read whole.
    let (tat_a, tat_b) = unsafe { (a.read_volatile(), b.read_volatile()) };
    let over = |tat: u64| tat > now && limit.exceeds(tat, now);
    if over(tat_a) && over(tat_b) {
        return true;
    }
    if sampled {
        // Only as much as the lower cell says: what the other one has more is of others.
        let lower = if tat_a < tat_b { tat_a } else { tat_b };
        let new = limit.arrival(lower, now, SKETCH_SAMPLE);
        // SAFETY: map values, 8 bytes aligned, only written this way. Whoever loses
        // the race is not counted: others are, in plenty.
        unsafe {
            if tat_a < new {
                compare_exchange(a, tat_a, new);
            }
            if tat_b < new {
                compare_exchange(b, tat_b, new);
            }
        }
    }
    false
}
