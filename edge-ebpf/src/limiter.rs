//! Limits per source: one cache line of TATs each.
//!
//! A source may sit in either slot of its bucket. A newcomer takes a slot
//! that is empty or whose limits have all run back to rest (then forgetting
//! it changes nothing); only when both are in use it takes the one closer to
//! rest, so that a flood of new sources cannot wash out those over their limit.

use crate::{
    atomic::compare_exchange,
    emit::{Facts, would_drop},
    maps::{self, LIMITER, config},
};
use edge_common::{
    abi::{LIMIT_KINDS, LIMITER_WAYS, LimitKind, LimiterSlot, Mode, Profile, TableStat},
    gcra::{Limit, ticks},
    hash::reduce,
    reason::Reason,
};

/// Tries before a packet that keeps losing to other CPUs is denied.
const TRIES: usize = 4;

/// Whether any limit is on. Known to the verifier.
#[inline(always)]
pub fn is_on() -> bool {
    let mut modes = 0;
    for kind in LimitKind::ALL {
        modes |= config!(limit_mode[kind as usize]);
    }
    modes != Mode::Off as u32
}

/// Charges a packet to the source with this hash. `class` is the limit for
/// its kind of packet, beside those of packets and bytes.
#[inline(always)]
pub fn charge(
    facts: Facts<'_>,
    hash: u64,
    profile: *const Profile,
    class: Option<LimitKind>,
) -> Result<(), Reason> {
    let now = ticks(facts.now);
    let Some(slot) = find(hash, now) else {
        return Ok(());
    };
    // First look at all, then write: a packet that any limit denies must leave
    // the line alone, or a flood over its limit would bounce it between CPUs.
    let packets = look(facts, slot, profile, LimitKind::Packets, 1, now)?;
    let bytes = look(facts, slot, profile, LimitKind::Bytes, facts.frame_len, now)?;
    match class {
        Some(LimitKind::Syn) => one(facts, slot, profile, LimitKind::Syn, now)?,
        Some(LimitKind::Udp) => one(facts, slot, profile, LimitKind::Udp, now)?,
        Some(LimitKind::Icmp) => one(facts, slot, profile, LimitKind::Icmp, now)?,
        _ => {}
    }
    commit(packets, LimitKind::Packets, now)?;
    commit(bytes, LimitKind::Bytes, now)
}

/// A limit that admits the packet, not yet charged.
struct Admitted {
    word: *mut u64,
    limit: Limit,
    units: u32,
    tat: u64,
    new: u64,
}

/// Looks and charges at once.
#[inline(always)]
fn one(
    facts: Facts<'_>,
    slot: *mut LimiterSlot,
    profile: *const Profile,
    kind: LimitKind,
    now: u64,
) -> Result<(), Reason> {
    let admitted = look(facts, slot, profile, kind, 1, now)?;
    commit(admitted, kind, now)
}

#[inline(always)]
fn look(
    facts: Facts<'_>,
    slot: *mut LimiterSlot,
    profile: *const Profile,
    kind: LimitKind,
    units: u32,
    now: u64,
) -> Result<Option<Admitted>, Reason> {
    let mode = config!(limit_mode[kind as usize]);
    if mode == Mode::Off as u32 {
        return Ok(None);
    }
    // SAFETY: `kind` indexes both arrays, and the pointers are to a map value
    // and to the read-only profiles.
    let (limit, word) = unsafe {
        (
            (&raw const (*profile).limits[kind as usize]).read_volatile(),
            &raw mut (*slot).tat[kind as usize],
        )
    };
    if !limit.is_some() {
        return Ok(None);
    }
    // SAFETY: a map value, 8 bytes aligned.
    let tat = unsafe { word.read_volatile() };
    match limit.admit(tat, now, units) {
        Some(new) => Ok(Some(Admitted { word, limit, units, tat, new })),
        None if mode == Mode::Enforce as u32 => Err(kind.reason()),
        None => {
            would_drop(facts, kind.reason());
            Ok(None)
        }
    }
}

#[inline(always)]
fn commit(admitted: Option<Admitted>, kind: LimitKind, now: u64) -> Result<(), Reason> {
    let Some(Admitted { word, limit, units, mut tat, mut new }) = admitted else {
        return Ok(());
    };
    for _ in 0..TRIES {
        // SAFETY: a map value, 8 bytes aligned, written by this operation only.
        let found = unsafe { compare_exchange(word, tat, new) };
        if found == tat {
            return Ok(());
        }
        tat = found;
        match limit.admit(tat, now, units) {
            Some(next) => new = next,
            None => break,
        }
    }
    if config!(limit_mode[kind as usize]) == Mode::Enforce as u32 {
        maps::count(TableStat::LimiterContended);
        return Err(kind.reason());
    }
    Ok(())
}

/// The slot of the source, taken over from another one if need be.
#[inline(always)]
fn find(hash: u64, now: u64) -> Option<*mut LimiterSlot> {
    let tag = hash | 1;
    let bucket = LIMITER.get_ptr_mut(reduce((hash >> 32) as u32, config!(limiter_buckets)))?;
    let first = bucket.cast::<LimiterSlot>();
    // SAFETY: a bucket has two slots.
    let second = unsafe { first.add(LIMITER_WAYS - 1) };
    // SAFETY: both point into a map value, and its words are read whole.
    unsafe {
        let first_tag = (&raw const (*first).tag).read_volatile();
        if first_tag == tag {
            return Some(first);
        }
        let second_tag = (&raw const (*second).tag).read_volatile();
        if second_tag == tag {
            return Some(second);
        }
        let first_rest = rest(first);
        if first_rest <= now {
            return Some(take(first, first_tag, tag, false));
        }
        let second_rest = rest(second);
        if second_rest <= now {
            return Some(take(second, second_tag, tag, false));
        }
        Some(if first_rest < second_rest {
            take(first, first_tag, tag, true)
        } else {
            take(second, second_tag, tag, true)
        })
    }
}

/// When the slot's limits are all at rest: its latest TAT.
///
/// # Safety
/// `slot` must point to a slot of a bucket.
#[inline(always)]
unsafe fn rest(slot: *const LimiterSlot) -> u64 {
    let mut latest = 0;
    for kind in 0..LIMIT_KINDS {
        // SAFETY: `kind` is below the length; the caller vouches for the pointer.
        let tat = unsafe { (&raw const (*slot).tat[kind]).read_volatile() };
        if tat > latest {
            latest = tat;
        }
    }
    latest
}

/// Puts `tag` where `old` is. When another CPU was faster the packet is
/// charged to whatever source it put there: strict, and over with this packet.
///
/// # Safety
/// `slot` must point to a slot of a bucket.
#[inline(always)]
unsafe fn take(slot: *mut LimiterSlot, old: u64, tag: u64, in_use: bool) -> *mut LimiterSlot {
    // SAFETY: the caller vouches for the pointer.
    unsafe {
        if compare_exchange(&raw mut (*slot).tag, old, tag) != old {
            return slot;
        }
        if in_use {
            for kind in 0..LIMIT_KINDS {
                (&raw mut (*slot).tat[kind]).write_volatile(0);
            }
        }
    }
    maps::count(if old == 0 {
        TableStat::LimiterClaimed
    } else if in_use {
        TableStat::LimiterEvicted
    } else {
        TableStat::LimiterRecycled
    });
    slot
}
