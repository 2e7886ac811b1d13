//! The bitmaps before the tables. They may hold more than there is, never less.
//!
//! A removal leaves its bits behind, since others may share them; when enough
//! are stale, the filters are made anew in private memory and then stored word
//! by word: every bit in use is set before and after, so that a reader in
//! between finds what is there.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use edge_common::{
    addr::{Family, Prefix},
    hash::Seed,
    table::{BITMAP24_WORDS, Half, LENGTHS_ENTRIES, LONGER, bitmap24, len_bit, long_place},
};

use super::{Geometry, Regions, words::store};
use crate::memory::Region;

/// Sets bits of one word of a filter that readers use.
pub(super) fn set_bits(region: &Region, (word, bits): (u32, u64)) {
    or(region.u64s(), word as usize, bits);
}

fn or(words: &[AtomicU64], index: usize, bits: u64) {
    let word = &words[index];
    // Most bits are set already, and a load leaves the readers' caches alone.
    // Nobody else writes, so that load and store need not be one operation.
    let now = word.load(Relaxed);
    if now & bits != bits {
        store(word, now | bits);
    }
}

/// A filter in private memory, as it will be.
pub(super) struct Draft(Vec<u64>);

impl Draft {
    /// An empty one of the size of `region`.
    pub(super) fn of(region: &Region) -> Self {
        Self(vec![0; region.u64s().len()])
    }

    /// Sets bits of one word.
    pub(super) fn set_bits(&mut self, (word, bits): (u32, u64)) {
        if let Some(w) = self.0.get_mut(word as usize) {
            *w |= bits;
        }
    }

    /// Stores it.
    pub(super) fn store(self, region: &Region) {
        for (word, want) in region.u64s().iter().zip(self.0) {
            if word.load(Relaxed) != want {
                store(word, want);
            }
        }
    }
}

/// Something the lengths in use can be written to: the maps, or a draft of them.
trait Sink {
    fn or(&mut self, map: Map, index: usize, bits: u64);
}

#[derive(Clone, Copy)]
enum Map {
    Bitmap24,
    Lengths4,
    Lengths6,
    Lengths6Long,
    PrefixFilter,
}

struct Live<'a>(&'a Regions);

impl Sink for Live<'_> {
    fn or(&mut self, map: Map, index: usize, bits: u64) {
        let region = match map {
            Map::Bitmap24 => &self.0.bitmap24,
            Map::Lengths4 => &self.0.lengths4,
            Map::Lengths6 => &self.0.lengths6,
            Map::Lengths6Long => &self.0.lengths6_long,
            Map::PrefixFilter => &self.0.prefix_filter,
        };
        or(region.u64s(), index, bits);
    }
}

/// `PREFIX_FILTER`, `BITMAP24` and the lengths in use, in private memory.
pub(super) struct LengthsDraft {
    prefix_filter: Draft,
    bitmap24: Draft,
    lengths4: Draft,
    lengths6: Draft,
    lengths6_long: Draft,
}

impl Sink for LengthsDraft {
    fn or(&mut self, map: Map, index: usize, bits: u64) {
        let draft = match map {
            Map::Bitmap24 => &mut self.bitmap24,
            Map::Lengths4 => &mut self.lengths4,
            Map::Lengths6 => &mut self.lengths6,
            Map::Lengths6Long => &mut self.lengths6_long,
            Map::PrefixFilter => &mut self.prefix_filter,
        };
        if let Some(w) = draft.0.get_mut(index) {
            *w |= bits;
        }
    }
}

impl LengthsDraft {
    /// Empty ones.
    pub(super) fn of(regions: &Regions) -> Self {
        Self {
            prefix_filter: Draft::of(&regions.prefix_filter),
            bitmap24: Draft::of(&regions.bitmap24),
            lengths4: Draft::of(&regions.lengths4),
            lengths6: Draft::of(&regions.lengths6),
            lengths6_long: Draft::of(&regions.lengths6_long),
        }
    }

    /// Adds the filter's bits of an entry.
    pub(super) fn set_filter_bits(&mut self, bits: (u32, u64)) {
        self.prefix_filter.set_bits(bits);
    }

    /// Adds a prefix, except the filter's bits of its entry.
    pub(super) fn add(&mut self, prefix: Prefix, seed: &Seed, geometry: &Geometry) {
        announce_to(self, prefix, seed, geometry);
    }

    /// Stores them.
    pub(super) fn store(self, regions: &Regions) {
        self.prefix_filter.store(&regions.prefix_filter);
        self.lengths6_long.store(&regions.lengths6_long);
        self.lengths6.store(&regions.lengths6);
        self.lengths4.store(&regions.lengths4);
        self.bitmap24.store(&regions.bitmap24);
    }
}

/// Tells readers that a prefix is in `WIDE` and in its filter: the step that
/// puts it in force.
pub(super) fn announce(regions: &Regions, prefix: Prefix, seed: &Seed, geometry: &Geometry) {
    announce_to(&mut Live(regions), prefix, seed, geometry);
}

/// How many words of the maps a prefix sets, roughly: what its removal leaves stale.
pub(super) const fn footprint(prefix: Prefix) -> u64 {
    let len = prefix.len();
    if len < 16 { 1 << (16 - len) } else { 1 }
}

fn announce_to(sink: &mut impl Sink, prefix: Prefix, seed: &Seed, geometry: &Geometry) {
    match prefix.family() {
        Family::V4 => announce4(sink, prefix),
        Family::V6 => announce6(sink, prefix, seed, geometry),
    }
}

fn announce4(sink: &mut impl Sink, prefix: Prefix) {
    let (first, last) = (prefix.bits() as u32, prefix.last_bits() as u32);
    let Some((_, length)) = len_bit(true, prefix.len()) else {
        return;
    };
    for index in first >> 16..=last >> 16 {
        sink.or(Map::Lengths4, index as usize, length);
    }
    // From the first bit to the last one, which is the highest in its word or
    // in the same word as the first.
    let ((from, low), (to, high)) = (bitmap24(first), bitmap24(last));
    debug_assert!(to < BITMAP24_WORDS);
    for word in from..=to {
        let above = if word == from { low.wrapping_neg() } else { !0 };
        let below = if word == to { high | (high - 1) } else { !0 };
        sink.or(Map::Bitmap24, word as usize, above & below);
    }
}

fn announce6(sink: &mut impl Sink, prefix: Prefix, seed: &Seed, geometry: &Geometry) {
    let (first, last) = (prefix.bits(), prefix.last_bits());
    let Some((half, length)) = len_bit(false, prefix.len()) else {
        return;
    };
    let hi = (first >> 64) as u64;
    let length = if prefix.len() > 32 {
        let place = long_place(seed, hi);
        let at = place.first(geometry.long_lengths) as usize * 2;
        let side = usize::from(half == Half::Low);
        sink.or(Map::Lengths6Long, at + side, length);
        let (word, bits) = place.filter(geometry.prefix_filter_words);
        sink.or(Map::PrefixFilter, word as usize, bits);
        LONGER
    } else {
        length
    };
    let (from, to) = ((first >> 112) as u32, (last >> 112) as u32);
    debug_assert!(to < LENGTHS_ENTRIES);
    for index in from..=to {
        sink.or(Map::Lengths6, index as usize, length);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tables::Capacity;

    fn p(s: &str) -> Prefix {
        s.parse().unwrap()
    }

    const SEED: Seed = Seed::new([1, 2, 3, 4]);

    fn geometry(long_lengths: u32) -> Geometry {
        Geometry {
            long_lengths,
            ..Geometry::for_capacity(&Capacity::default())
        }
    }

    #[test]
    fn every_slash_24_of_a_prefix_is_set_and_no_other() {
        for s in [
            "0.0.0.0/0",
            "10.0.0.0/8",
            "10.1.0.0/17",
            "10.1.192.0/19",
            "10.1.2.0/23",
            "10.1.2.0/24",
            "10.1.2.128/25",
            "255.255.255.255/32",
            "224.0.0.0/3",
        ] {
            let g = geometry(4);
            let r = Regions::heap(&g);
            announce(&r, p(s), &SEED, &g);
            let (first, last) = (p(s).bits() as u32 >> 8, p(s).last_bits() as u32 >> 8);
            let words = r.bitmap24.u64s();
            for n in [first.wrapping_sub(1), first, last, last.wrapping_add(1)] {
                let (word, bit) = bitmap24(n << 8);
                let set = words[word as usize].load(Relaxed) & bit != 0;
                let inside = (first..=last).contains(&(n & 0xff_ffff));
                assert_eq!(set, inside, "{s} at {n:#x}");
            }
            let all: u32 = words.iter().map(|w| w.load(Relaxed).count_ones()).sum();
            assert_eq!(all, last - first + 1, "{s}");
        }
    }

    #[test]
    fn lengths_stand_where_a_reader_looks() {
        let g = geometry(16);
        let r = Regions::heap(&g);
        for s in [
            "2000::/3",
            "2001:db8::/32",
            "2001:db8::/33",
            "2001:db8::/127",
        ] {
            announce(&r, p(s), &SEED, &g);
        }
        let at = |i: usize| r.lengths6.u64s()[i].load(Relaxed);
        assert_eq!(at(0x2001), 1 << 61 | 1 << 32 | LONGER);
        assert_eq!(at(0x3fff), 1 << 61);
        assert_eq!(at(0x4000), 0);
        let long = long_place(&SEED, 0x2001_0db8_0000_0000).first(16) as usize * 2;
        assert_eq!(r.lengths6_long.u64s()[long].load(Relaxed), 1 << 31);
        assert_eq!(r.lengths6_long.u64s()[long + 1].load(Relaxed), 1 << 1);
    }

    #[test]
    fn a_draft_replaces_what_is_stale() {
        let g = geometry(4);
        let r = Regions::heap(&g);
        announce(&r, p("10.0.0.0/8"), &SEED, &g);
        announce(&r, p("2001:db8::/48"), &SEED, &g);
        let mut d = LengthsDraft::of(&r);
        d.add(p("11.0.0.0/16"), &SEED, &g);
        d.store(&r);
        let used = |x: &Region| x.u64s().iter().filter(|w| w.load(Relaxed) != 0).count();
        assert_eq!(used(&r.lengths4), 1);
        assert_eq!(used(&r.bitmap24), 4);
        assert_eq!(used(&r.lengths6) + used(&r.lengths6_long), 0);
    }
}
