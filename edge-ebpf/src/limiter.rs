//! Limits per source: one cache line of TATs each.
//!
//! A source may sit in either slot of its bucket. A newcomer takes a slot
//! that is empty or whose limits have all run back to rest (then forgetting
//! it changes nothing); only when both are in use it takes the one closer to
//! rest, so that a flood of new sources cannot wash out those over their limit.
//!
//! A source that sends several packets in a tick of the clock has some charged ahead
//! ([`edge_common::lease`]): those that follow are paid for without an atomic operation.

use crate::{
    atomic::compare_exchange,
    emit::{Facts, would_drop},
    maps::{self, LIMITER, Unknown, config},
    source::hide,
};
use aya_ebpf::helpers::bpf_get_smp_processor_id;
use core::arch::asm;
use edge_common::{
    abi::{LIMIT_KINDS, LIMIT_SLOTS, LIMITER_WAYS, LimitKind, LimiterSlot, Profile, TableStat},
    gcra::{Limit, ticks},
    hash::reduce,
    lease::{Holder, Lease, Renewal},
    reason::Reason,
};

/// Tries before a packet that keeps losing to other CPUs is denied.
const TRIES: usize = 4;

/// Whether any limit is on. Known to the verifier.
#[inline(always)]
pub fn is_on() -> bool {
    config!(limits_on) != 0
}

/// Charges a packet to the source with this hash. `class` is the limit for
/// its kind of packet, beside those of packets and bytes.
#[inline(always)]
pub fn charge(facts: Facts<'_>, hash: u64, profile: u8, class: LimitKind) -> Result<(), Reason> {
    let over = exceeded(hash, facts.now, profile, class, facts.frame_len);
    if over == 0 {
        return Ok(());
    }
    let enforced = config!(limits_enforced);
    for kind in LimitKind::ALL {
        if over & kind.bit() == 0 {
            continue;
        }
        if enforced & kind.bit() != 0 {
            return Err(kind.reason());
        }
        would_drop(facts, kind.reason());
    }
    Ok(())
}

/// Charges a packet; the result has [`LimitKind::bit`] for each limit that it exceeds.
#[inline(always)]
fn exceeded(hash: u64, now: u64, profile: u8, class: LimitKind, frame_len: u32) -> u32 {
    let unknown = Unknown::new(now);
    let Some(slot) = find(hash, ticks(now)) else {
        return 0;
    };
    // One number, so that the verifier follows what comes behind once.
    let kind = unknown.number(class as u32);
    let holder = Holder::new(kind, cpu(), now);
    // Leases are charged to the default limits. Who shares the line and has others gives back what
    // there is: more than any lease pays for. Without a branch, which the verifier would follow
    // through all that comes behind.
    let has_others = ((profile as i32).wrapping_neg() >> 31) as u32;
    let payable = unknown.number(frame_len | has_others);
    let lease = lease_of(slot);
    if let Some(rest) = lease.spend(holder, payable) {
        keep(slot, rest);
        return 0;
    }
    if lease.is_renewable(holder) && edge_renew_lease(slot, holder.word(), now, payable) != 0 {
        return 0;
    }
    let now = ticks(now);
    let limits = maps::profile(profile);
    // First look at all, then write: a packet that any limit denies must leave
    // the line alone, or a flood over its limit would bounce it between CPUs.
    let on = config!(limits_on);
    let look = |kind: LimitKind, units| {
        let kind = kind as u32;
        if on >> kind & 1 == 0 {
            return Look::nothing();
        }
        // SAFETY: the profile is read-only, and has a limit for each kind.
        let limit = unsafe { (&raw const (*limits).limits[kind as usize]).read_volatile() };
        Look::of(known_word(slot, kind), limit, units, now)
    };
    let mut packets = look(LimitKind::Packets, 1);
    let mut bytes = look(LimitKind::Bytes, frame_len);
    let class_word = word(slot, kind + 1);
    // Packets stand for no class.
    let mut class = if (on & !LimitKind::Packets.bit()) >> kind & 1 != 0 {
        // SAFETY: the index is masked to the array's length, and the profile is read-only.
        let limit = unsafe { limit(limits, kind).read_volatile() };
        Look::of(class_word, limit, 1, now)
    } else {
        Look::nothing()
    };
    let mut over = 0;
    if is_negative(packets.left | bytes.left | class.left) {
        over = packets.is_over() << LimitKind::Packets as u32
            | bytes.is_over() << LimitKind::Bytes as u32
            | class.is_over() << kind;
        if over & config!(limits_enforced) != 0 {
            return over;
        }
        // In dry run the others are charged all the same.
        for look in [&mut packets, &mut bytes, &mut class] {
            if look.is_over() != 0 {
                look.new = 0;
            }
        }
    }
    // Before it is charged: what is left of a lease of another tick goes back no more then.
    if !lease_of(slot).is_live(holder) {
        keep(slot, holder.first(payable));
    }
    let commit = |look: Look, word, kind, units| look.commit(word, kind, units, profile, now);
    let commit_known = |look, kind: LimitKind, units| {
        let kind = kind as u32;
        commit(look, known_word(slot, kind), kind, units)
    };
    over |= commit_known(packets, LimitKind::Packets, 1);
    over |= commit_known(bytes, LimitKind::Bytes, frame_len);
    over |= commit(class, class_word, kind, 1);
    over
}

/// What one limit says of a packet, before it is charged.
#[derive(Clone, Copy)]
struct Look {
    tat: u64,
    /// The TAT to store; 0 for none.
    new: u64,
    /// [`Limit::left`].
    left: u64,
}

impl Look {
    /// Of a limit that is off or that the profile does not have: nothing is stored.
    #[inline(always)]
    fn nothing() -> Self {
        apart();
        Self {
            tat: 0,
            new: 0,
            left: 0,
        }
    }

    /// Of the limit whose word this is.
    #[inline(always)]
    fn of(word: *mut u64, limit: Limit, units: u32, now: u64) -> Self {
        // SAFETY: a word of a map value, 8 bytes aligned.
        let tat = unsafe { word.read_volatile() };
        if !limit.is_some() {
            return Self::nothing();
        }
        let new = limit.arrival(tat, now, units);
        let left = limit.left(new, now);
        Self { tat, new, left }
    }

    /// 1 when the packet is over the limit, else 0.
    #[inline(always)]
    fn is_over(self) -> u32 {
        (self.left >> 63) as u32
    }

    /// Charges the packet if there is something to store; the bit of the limit
    /// when other CPUs used it up meanwhile.
    #[inline(always)]
    fn commit(self, word: *mut u64, kind: u32, units: u32, profile: u8, now: u64) -> u32 {
        if self.new == 0 {
            return 0;
        }
        // SAFETY: a word of a map value, 8 bytes aligned, written by this operation only.
        let found = unsafe { compare_exchange(word, self.tat, self.new) };
        if found == self.tat {
            return 0;
        }
        let which = (profile as u32) << 8 | kind;
        match edge_charge_again(word, which, found, now, units) {
            0 => 1 << kind,
            _ => 0,
        }
    }
}

#[inline(always)]
const fn is_negative(x: u64) -> bool {
    (x as i64) < 0
}

/// Keeps the branch that it stands in apart: what is set there stays there instead
/// of being set before on the way of every packet, and where the verifier sees that
/// nothing leads there it removes the branch.
#[inline(always)]
fn apart() {
    // SAFETY: no instruction at all.
    unsafe { asm!("", options(nomem, nostack, preserves_flags)) };
}

/// The word of a limit that the compiler knows.
#[inline(always)]
fn known_word(slot: *mut LimiterSlot, kind: u32) -> *mut u64 {
    // SAFETY: the slot is a map value, and has a word for each kind.
    unsafe { &raw mut (*slot).tat[kind as usize] }
}

/// The limit with this index. The mask is the bounds check that the verifier sees.
#[inline(always)]
fn limit(profile: *const Profile, kind: u32) -> *const Limit {
    let at = hide(kind as u64) as usize & (LIMIT_SLOTS - 1);
    profile.cast::<Limit>().wrapping_add(at)
}

/// A word of a slot: eight of them, the tag first. The mask is the bounds check
/// that the verifier sees.
#[inline(always)]
fn word(slot: *mut LimiterSlot, at: u32) -> *mut u64 {
    const WORDS: usize = size_of::<LimiterSlot>() / 8;
    const { assert!(WORDS.is_power_of_two()) };
    slot.cast::<u64>()
        .wrapping_add(hide(at as u64) as usize & (WORDS - 1))
}

/// Charges after another CPU was faster; 0 when the limit is used up. `which`
/// is the profile's index, shifted by 8, with the limit's. A global function: it
/// is rare, and the verifier checks it once.
#[inline(never)]
// SAFETY: no other symbol of the object has this name.
#[unsafe(no_mangle)]
extern "C" fn edge_charge_again(word: *mut u64, which: u32, tat: u64, now: u64, units: u32) -> u32 {
    if word.is_null() {
        return 0;
    }
    // SAFETY: the index is masked to the array's length, and the profile is read-only.
    let limit = unsafe { limit(maps::profile((which >> 8) as u8), which & 0xff).read_volatile() };
    let mut tat = tat;
    for _ in 1..TRIES {
        let Some(new) = limit.admit(tat, now, units) else {
            return 0;
        };
        // SAFETY: not null, and the verifier checks that callers pass 8 bytes of
        // a map, written by this operation only.
        let found = unsafe { compare_exchange(word, tat, new) };
        if found == tat {
            return 1;
        }
        tat = found;
    }
    maps::count(TableStat::LimiterContended);
    0
}

/// The CPU that this runs on, which leases are known by.
#[inline(always)]
fn cpu() -> u32 {
    // SAFETY: a helper without arguments.
    unsafe { bpf_get_smp_processor_id() }
}

#[inline(always)]
fn lease_of(slot: *mut LimiterSlot) -> Lease {
    // SAFETY: a word of a map value, read whole.
    unsafe { (&raw const (*slot).lease).read_volatile() }
}

#[inline(always)]
fn keep(slot: *mut LimiterSlot, lease: Lease) {
    // SAFETY: a word of a map value, written whole. Whichever CPU writes last, of a lease there
    // is no more than its own CPU left of it.
    unsafe { (&raw mut (*slot).lease).write_volatile(lease) };
}

/// Gives back what is left of the lease of this CPU and, when the same tick goes on and half of
/// every limit is free, charges the next one. 1 when the packet is paid for from it. More bytes
/// than a lease has only give back. A global function, as it is asked once for many packets.
#[inline(never)]
// SAFETY: no other symbol of the object has this name.
#[unsafe(no_mangle)]
extern "C" fn edge_renew_lease(
    slot: *mut LimiterSlot,
    holder: u64,
    now: u64,
    frame_len: u32,
) -> u32 {
    if slot.is_null() {
        return 0;
    }
    let (holder, old, now) = (Holder::from_word(holder), lease_of(slot), ticks(now));
    // Another CPU's by now.
    if !old.is_renewable(holder) {
        return 0;
    }
    // Each word is read once, between two looks at the lease. Who has charged in another tick, or
    // for another source, has overwritten the lease before; who does it now makes the exchange of
    // the word fail.
    let on = config!(limits_on);
    let charge = |kind: u32, is_on: bool| Charge::new(slot, kind, is_on);
    let packets = charge(
        LimitKind::Packets as u32,
        on & LimitKind::Packets.bit() != 0,
    );
    let bytes = charge(LimitKind::Bytes as u32, on & LimitKind::Bytes.bit() != 0);
    let class = old.class();
    let class = charge(class, (on & !LimitKind::Packets.bit()) >> class & 1 != 0);
    let mut renewal = old.renewal(holder, frame_len);
    let mut new = renewed(renewal, packets, bytes, class, now);
    let [a, b, c] = new;
    if !(packets.is_half_free(a, now) && bytes.is_half_free(b, now) && class.is_half_free(c, now)) {
        renewal = renewal.refused(holder);
        new = renewed(renewal, packets, bytes, class, now);
    }
    let spent = renewal.lease.spend(holder, frame_len);
    let lease = spent.unwrap_or(renewal.lease);
    // SAFETY: a word of the slot, which the verifier checks that callers pass, 8 bytes aligned;
    // of this CPU's lease nobody else writes what is left.
    if unsafe { compare_exchange((&raw mut (*slot).lease).cast::<u64>(), old.0, lease.0) } != old.0
    {
        return 0;
    }
    let [a, b, c] = new;
    if packets.commit(a) && bytes.commit(b) && class.commit(c) {
        return spent.is_some() as u32;
    }
    // What was charged already is lost to the source, and what was not given back.
    keep(slot, holder.no_more());
    0
}

/// The three words after a renewal.
#[inline(always)]
fn renewed(renewal: Renewal, packets: Charge, bytes: Charge, class: Charge, now: u64) -> [u64; 3] {
    let ([back, back_bytes], [ahead, ahead_bytes]) = (renewal.back, renewal.ahead);
    [
        packets.renewed(now, back, ahead),
        bytes.renewed(now, back_bytes, ahead_bytes),
        class.renewed(now, back, ahead),
    ]
}

/// A limit of the default profile that a lease is charged to, and its word as it was found.
#[derive(Clone, Copy)]
struct Charge {
    limit: Limit,
    word: *mut u64,
    tat: u64,
}

impl Charge {
    #[inline(always)]
    fn new(slot: *mut LimiterSlot, kind: u32, is_on: bool) -> Self {
        let word = word(slot, kind + 1);
        let limit = if is_on {
            // SAFETY: the index is masked to the array's length, and the profile is read-only.
            unsafe { limit(maps::profile(0), kind).read_volatile() }
        } else {
            Limit::NONE
        };
        // SAFETY: a word of the slot, 8 bytes aligned, read whole.
        let tat = unsafe { word.read_volatile() };
        Self { limit, word, tat }
    }

    #[inline(always)]
    fn renewed(self, now: u64, back: u32, ahead: u32) -> u64 {
        if self.limit.is_some() {
            self.limit.renewed(self.tat, now, back, ahead)
        } else {
            self.tat
        }
    }

    #[inline(always)]
    fn is_half_free(self, new: u64, now: u64) -> bool {
        !self.limit.is_some() || self.limit.is_half_free(new, now, ticks(config!(tick_ns)))
    }

    /// False when another CPU was faster.
    #[inline(always)]
    fn commit(self, new: u64) -> bool {
        // SAFETY: a word of the slot, 8 bytes aligned, written by this operation only.
        new == self.tat || unsafe { compare_exchange(self.word, self.tat, new) } == self.tat
    }
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
        // Who holds it may write it once more in this very moment: then the new source has what
        // was left to the former one.
        keep(slot, Lease::default());
        if in_use {
            for kind in 0..LIMIT_KINDS as u32 {
                let tat = word(slot, kind + 1);
                // Not a store: another CPU may have charged the new source already.
                compare_exchange(tat, tat.read_volatile(), 0);
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
