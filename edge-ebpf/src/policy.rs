//! What the policy tables know of a source: the reader's side of
//! [`edge_common::table`].
//!
//! The filters are read inline; what lies behind them stands in global
//! functions, which the verifier checks once and not again for every state
//! the packet parser can leave behind.

use crate::{
    maps::{
        BITMAP24, HOSTS4, HOSTS4_FILTER, HOSTS6_FILTER, LENGTHS4, LENGTHS6, LENGTHS6_LONG,
        PREFIX_FILTER, WIDE, config,
    },
    source::{hide, shift_right},
};
use aya_ebpf::{helpers::generated::bpf_loop, maps::Array};
use core::ffi::c_void;
use edge_common::{
    decide::Policy,
    hash::Seed,
    table::{
        HITS_MAX, Half, KEY_MASK, LONGER, LenBit, Meta, OCCUPIED, Place, Slot4, SlotW, Stamp, WAYS,
        bitmap24, len_key, long_place, mask,
    },
};

/// The most prefix lengths that can be in use in one half of an address.
const MAX_LENGTHS: u32 = 64;

/// Looks up an IPv4 source (word as on the wire, and its hash).
#[inline(always)]
pub fn v4(source: u32, hash: u64, now: Stamp) -> Policy {
    let mut policy = Policy::NONE;
    let place = Place::new(hash);
    if knows(&HOSTS4_FILTER, config!(hosts4_filter_words), place) != 0 {
        policy = host4(place, source, now);
    }
    let addr = u32::from_be(source);
    let lengths = LENGTHS4.get(addr >> 16).map_or(0, volatile);
    if lengths != 0 {
        let (word, bit) = bitmap24(addr);
        if BITMAP24.get(word).map_or(0, volatile) & bit != 0 {
            policy = policy.merge(Policy::from_word(edge_prefix4(addr, lengths, now)));
        }
    }
    policy
}

/// Looks up an IPv6 source given as two halves in host byte order.
#[inline(always)]
pub fn v6(seed: &Seed, hi: u64, lo: u64, now: Stamp) -> Policy {
    let mut policy = Policy::NONE;
    let host = Place::wide(seed, hi, lo, len_key(Half::Low, 1));
    if knows(&HOSTS6_FILTER, config!(hosts6_filter_words), host) != 0 {
        policy = wide(host, hi, lo, len_key(Half::Low, 1), now).unwrap_or(Policy::NONE);
    }
    let short = LENGTHS6.get((hi >> 48) as u32).map_or(0, volatile);
    if short != 0 {
        policy = policy.merge(Policy::from_word(edge_prefix6(hi, lo, short, now)));
    }
    policy
}

/// 1 when a filter of `words` words knows an entry with this place, else 0.
#[inline(always)]
fn knows(filter: &Array<u64>, words: u32, place: Place) -> u64 {
    let (word, bits) = place.filter_bits(words);
    let word = filter.get(word).map_or(0, volatile);
    let [a, b] = bits.map(|bit| shift_right(word, bit as u64));
    a & b & 1
}

#[inline(always)]
fn volatile<T: Copy>(value: &T) -> T {
    // SAFETY: a valid reference. The daemon may write the word meanwhile;
    // volatile keeps it to one load.
    unsafe { (value as *const T).read_volatile() }
}

/// The entry of an IPv4 host (word as on the wire). Inline: a flood from a
/// listed host comes through here, and a call costs as much as the look-up.
#[inline(always)]
fn host4(place: Place, source: u32, now: Stamp) -> Policy {
    if source == 0 {
        // The mark of a free slot; 0.0.0.0 is kept as a prefix.
        return Policy::NONE;
    }
    let buckets = config!(hosts4_buckets);
    match probe4(place.first(buckets), source, now) {
        Some(found) => found,
        None => probe4(place.second(buckets), source, now).unwrap_or(Policy::NONE),
    }
}

/// The longest prefix that matches an IPv4 address (host byte order), as a
/// [`Policy`] word; `lengths` is its entry of `LENGTHS4`.
#[inline(never)]
// SAFETY: no other symbol of the object has this name.
#[unsafe(no_mangle)]
extern "C" fn edge_prefix4(addr: u32, lengths: u64, now: Stamp) -> u32 {
    let mut search = Search::new(0, addr as u64, now);
    search.longest(Half::V4, likely(Half::V4, lengths, 0, addr as u64));
    search.word()
}

/// The longest prefix up to /127 that matches an IPv6 address, as a
/// [`Policy`] word; `short` is its entry of `LENGTHS6`.
#[inline(never)]
// SAFETY: no other symbol of the object has this name.
#[unsafe(no_mangle)]
extern "C" fn edge_prefix6(hi: u64, lo: u64, short: u64, now: Stamp) -> u32 {
    let mut search = Search::new(hi, lo, now);
    let mut high = short & !LONGER;
    if short & LONGER != 0 {
        let place = long_place(&config!(seed), hi);
        if knows(&PREFIX_FILTER, config!(prefix_filter_words), place) != 0
            && let Some(long) = LENGTHS6_LONG.get(place.first(config!(long_lengths)))
        {
            let low = volatile(&long.low);
            if low != 0 && search.longest(Half::Low, edge_likely_low(low, hi, lo)) {
                return search.word();
            }
            high |= volatile(&long.high);
        }
    }
    if high != 0 {
        search.longest(Half::High, edge_likely_high(high, hi));
    }
    search.word()
}

/// The state of a walk over prefix lengths.
struct Search {
    hi: u64,
    lo: u64,
    /// Lengths not yet tried, as bits of `half`.
    lengths: u64,
    now: Stamp,
    half: u32,
    /// [`FOUND`] and the policy's word, or 0.
    found: u64,
}

/// Set in [`Search::found`] beside the word of a policy, which may be 0.
const FOUND: u64 = 1 << 32;

impl Search {
    #[inline(always)]
    fn new(hi: u64, lo: u64, now: Stamp) -> Self {
        Self {
            hi,
            lo,
            lengths: 0,
            now,
            half: 0,
            found: 0,
        }
    }

    /// Tries these lengths, longest first.
    #[inline(always)]
    fn longest(&mut self, half: Half, lengths: u64) -> bool {
        if lengths == 0 {
            return false;
        }
        self.lengths = lengths;
        self.half = half as u32;
        // bpf_loop, because the verifier follows a plain loop through every
        // combination of slots and lengths and gives up after a million instructions.
        // SAFETY: the callback gets this very `self`, which outlives the call.
        unsafe {
            bpf_loop(MAX_LENGTHS, step as *mut c_void, (&raw mut *self).cast(), 0);
        }
        self.found != 0
    }

    /// The word of the policy found, 0 if none was.
    #[inline(always)]
    fn word(&self) -> u32 {
        self.found as u32
    }
}

/// [`likely`] for the lower half of an IPv6 address.
#[inline(never)]
// SAFETY: no other symbol of the object has this name.
#[unsafe(no_mangle)]
extern "C" fn edge_likely_low(lengths: u64, hi: u64, lo: u64) -> u64 {
    likely(Half::Low, lengths, hi, lo)
}

/// [`likely`] for the upper half of an IPv6 address.
#[inline(never)]
// SAFETY: no other symbol of the object has this name.
#[unsafe(no_mangle)]
extern "C" fn edge_likely_high(lengths: u64, hi: u64) -> u64 {
    likely(Half::High, lengths, hi, 0)
}

/// Those of the lengths for which the filter knows a prefix. The filter's words
/// are read for all of them before any is judged, so that the processor waits
/// for memory once and not once a length.
#[inline(always)]
fn likely(half: Half, lengths: u64, hi: u64, lo: u64) -> u64 {
    let seed = config!(seed);
    let words = config!(prefix_filter_words);
    let (mut left, mut likely) = (lengths, 0);
    for _ in 0..MAX_LENGTHS {
        let bit: LenBit = left & left.wrapping_neg();
        if bit == 0 {
            break;
        }
        left ^= bit;
        let (hi, lo) = mask(half, bit, hi, lo);
        let place = Place::wide(&seed, hi, lo, len_key(half, bit));
        // All ones when both bits are there.
        likely |= bit & knows(&PREFIX_FILTER, words, place).wrapping_neg();
    }
    likely
}

/// Tries the longest length that is left; 1 ends the loop.
extern "C" fn step(_: u32, search: *mut Search) -> i64 {
    // SAFETY: `Search::longest` passes a live Search to nobody else.
    let search = unsafe { &mut *search };
    let bit: LenBit = search.lengths & search.lengths.wrapping_neg();
    if bit == 0 {
        return 1;
    }
    search.lengths ^= bit;
    let half = match search.half {
        0 => Half::High,
        1 => Half::Low,
        _ => Half::V4,
    };
    let (hi, lo) = mask(half, bit, search.hi, search.lo);
    let key = len_key(half, bit);
    let place = Place::wide(&config!(seed), hi, lo, key);
    match wide(place, hi, lo, key, search.now) {
        Some(policy) => {
            search.found = FOUND | policy.word() as u64;
            1
        }
        None => 0,
    }
}

/// The entry with this key in either of its buckets.
#[inline(always)]
fn wide(place: Place, hi: u64, lo: u64, len_key: u32, now: Stamp) -> Option<Policy> {
    let buckets = config!(wide_buckets);
    match probe(place.first(buckets), hi, lo, len_key, now) {
        None => probe(place.second(buckets), hi, lo, len_key, now),
        found => found,
    }
}

/// Looks for an entry in a bucket of `WIDE`.
#[inline(always)]
fn probe(bucket: u32, hi: u64, lo: u64, len_key: u32, now: Stamp) -> Option<Policy> {
    let slots = WIDE.get_ptr_mut(bucket)?.cast::<SlotW>();
    let want = OCCUPIED | len_key;
    find(
        // SAFETY: a bucket has a first slot.
        unsafe { holds(slots, hi, lo, want) }.is_some(),
        // SAFETY: `way` is below the number of slots of a bucket.
        |way| unsafe {
            let slot = slots.add(way);
            let meta = (&raw const (*slot).meta).read_volatile();
            difference(slot, meta, hi, lo, want)
        },
        // SAFETY: as above.
        |way| unsafe {
            let slot = slots.add(way);
            let black = (&raw const (*slot).black).read_volatile();
            let allow = (&raw const (*slot).allow).read_volatile();
            // Were the stamps read from the entry that matched? Flags and profile
            // come from the very word that tells.
            let meta = holds(slot, hi, lo, want)?;
            Some(hit(
                &raw mut (*slot).hits,
                Policy::of(Meta::of(meta), black, allow, now),
            ))
        },
    )
}

/// Looks for a host in a bucket of `HOSTS4`.
#[inline(always)]
fn probe4(bucket: u32, source: u32, now: Stamp) -> Option<Policy> {
    let slots = HOSTS4.get_ptr_mut(bucket)?.cast::<Slot4>();
    // SAFETY: `way` is below the number of slots of a bucket. Volatile, for
    // the daemon writes the same memory.
    let key = |way: usize| unsafe { (&raw const (*slots.add(way)).addr).read_volatile() };
    find(
        key(0) == source,
        |way| (key(way) ^ source) as u64,
        // SAFETY: as above.
        |way| unsafe {
            let slot = slots.add(way);
            let black = (&raw const (*slot).black).read_volatile();
            let allow = (&raw const (*slot).allow).read_volatile();
            if key(way) != source {
                return None;
            }
            Some(hit(
                &raw mut (*slot).hits,
                Policy::of(Meta::default(), black, allow, now),
            ))
        },
    )
}

/// Reads the entry of a bucket whose difference from the key is 0, or the first if
/// it `is_first`; `read` gives `None` when it has become another one meanwhile, for
/// instance while its key was compared, half old and half new.
///
/// The first way, which fills first, is looked at alone: a flood from few
/// sources mostly finds them there. The others without a branch each.
#[inline(always)]
fn find(
    is_first: bool,
    difference: impl Fn(usize) -> u64,
    read: impl Fn(usize) -> Option<Policy>,
) -> Option<Policy> {
    if is_first && let Some(policy) = read(0) {
        return Some(policy);
    }
    let (mut any, mut way) = (0, 0);
    for i in 1..WAYS {
        let equal = is_zero(difference(i));
        any |= equal;
        way |= equal * i as u64;
    }
    if any == 0 {
        return None;
    }
    // The mask is the bounds check that the verifier sees.
    read(hide(way) as usize & (WAYS - 1))
}

/// The meta word of the slot if it has this key. With a branch for each part, which
/// costs half of [`difference`] where they are foreseen.
///
/// # Safety
/// `slot` must point to a slot of a bucket.
#[inline(always)]
unsafe fn holds(slot: *const SlotW, hi: u64, lo: u64, want: u32) -> Option<u32> {
    // SAFETY: the caller vouches for the pointer. Volatile, for the daemon
    // writes the same memory.
    unsafe {
        let meta = (&raw const (*slot).meta).read_volatile();
        let holds = meta & KEY_MASK == want
            && (&raw const (*slot).lo).read_volatile() == lo
            && (&raw const (*slot).hi).read_volatile() == hi;
        holds.then_some(meta)
    }
}

/// 0 when the slot, whose meta word was read before, has this key. One number
/// for all its parts: with a branch each the verifier would follow every
/// combination of them.
///
/// # Safety
/// `slot` must point to a slot of a bucket.
#[inline(always)]
unsafe fn difference(slot: *const SlotW, meta: u32, hi: u64, lo: u64, want: u32) -> u64 {
    // SAFETY: the caller vouches for the pointer. Volatile, for the daemon
    // writes the same memory.
    unsafe {
        (meta & KEY_MASK ^ want) as u64
            | (&raw const (*slot).lo).read_volatile() ^ lo
            | (&raw const (*slot).hi).read_volatile() ^ hi
    }
}

/// 1 for 0, else 0, without a branch (the target has no conditional move).
#[inline(always)]
fn is_zero(x: u64) -> u64 {
    let folded = (x | x >> 32) as u32;
    // Hidden, or LLVM makes the comparison of it that it is.
    hide((folded as u64).wrapping_sub(1)) >> 63
}

/// Counts a match of an entry that is in force, roughly.
///
/// # Safety
/// `hits` must be the counter of a slot.
#[inline(always)]
unsafe fn hit(hits: *mut u32, policy: Policy) -> Policy {
    // SAFETY: the caller vouches for the pointer. Not atomic, which would cost as
    // much as the rest of the look-up: of hits at the same moment on several
    // CPUs some are lost, and a slot that changes hands just now may keep the
    // count of the entry before.
    unsafe {
        let n = hits.read_volatile();
        if policy.is_listed() && n < HITS_MAX {
            hits.write_volatile(n + 1);
        }
    }
    policy
}
