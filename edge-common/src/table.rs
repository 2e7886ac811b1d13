//! The policy tables: how sources and prefixes are laid out in map memory.
//!
//! Two hash tables of cache-line buckets, each entry in one of two buckets
//! (cuckoo hashing with buckets; Dietzfelbinger and Weidling 2007), with
//! bitmaps before them so that a source that is listed nowhere reads no
//! bucket at all:
//!
//! * `HOSTS4`: IPv4 hosts, 16 bytes an entry, four to a 64-byte line.
//! * `WIDE`: IPv6 hosts and the prefixes of both families, 32 bytes an entry,
//!   four to a 128-byte bucket, keyed by masked address and length.
//!
//! Each kind of entry has a filter of its own (`HOSTS4_FILTER`, `HOSTS6_FILTER`,
//! `PREFIX_FILTER`), so that what is asked most stays small: two bits of one
//! word an entry ([`Place::filter`]).
//!
//! A look-up of a prefix asks the filter for all lengths that are in use where
//! the source lies, and then the buckets for those that it knows, longest first.
//! An entry carries the latest expiry of itself and of everything that covers
//! it, so the first match decides.
//!
//! The daemon writes through a mapping of the same memory while the kernel
//! reads. The protocol that keeps a reader at old or new:
//!
//! * insert: the values first, then the address (`hi`, `lo`), the key word
//!   (`addr`, `meta`) last, each with release order; then the filter bits;
//! * delete: the key word to zero first, then the rest;
//! * move: only from an entry's first bucket to its second, copied there as by
//!   an insert before it is deleted here (a reader looks at the first first);
//! * a reader that matched reads the stamps, then the whole key again, the key
//!   word first, and takes flags and profile from that word; when the key has
//!   changed the slot did not match, and the search goes on with the second
//!   bucket, then the next shorter length.
//!
//! So a slot that can be matched always holds values that are in force: a
//! longer prefix that comes or goes never hides the one that covers it.

use crate::hash::{Seed, hash, hash64, reduce};

/// Entries in a bucket.
pub const WAYS: usize = 4;

/// A point in time as the tables hold it: `CLOCK_MONOTONIC` nanoseconds
/// shifted right by [`STAMP_SHIFT`], 0 for "not listed", `FOREVER` for "no
/// expiry". One step is 134 ms; 32 bits last for 18 years of uptime.
pub type Stamp = u32;

/// Nanoseconds to [`Stamp`], as a shift: a division would cost more than the look-up.
pub const STAMP_SHIFT: u32 = 27;

/// The stamp of an entry without expiry.
pub const FOREVER: Stamp = u32::MAX;

/// The stamp of a time in nanoseconds, rounded down.
#[inline(always)]
pub const fn stamp(ns: u64) -> Stamp {
    (ns >> STAMP_SHIFT) as u32
}

/// Hit counters stop here instead of wrapping to 0.
pub const HITS_MAX: u32 = u32::MAX - (1 << 16);

/// An IPv4 host. `addr` 0 marks a free entry (0.0.0.0 is kept as a prefix).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Slot4 {
    /// The address as read from the wire.
    pub addr: u32,
    /// Blacklisted until then.
    pub black: Stamp,
    /// On the allowlist until then.
    pub allow: Stamp,
    /// Packets that matched, roughly: counted without a lock; stops at [`HITS_MAX`].
    pub hits: u32,
}

/// An IPv6 host or a prefix of either family. `meta` 0 marks a free entry.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct SlotW {
    /// Upper half of the masked address, host byte order (0 for IPv4).
    pub hi: u64,
    /// Lower half of the masked address, host byte order (IPv4: the address).
    pub lo: u64,
    /// [`OCCUPIED`], the [`len_key`], flags and profile: see [`Meta`].
    pub meta: u32,
    /// Blacklisted until then: the latest of this prefix and all that cover it.
    pub black: Stamp,
    /// On the allowlist until then, likewise.
    pub allow: Stamp,
    /// Packets of which this was the longest match, roughly; stops at [`HITS_MAX`].
    pub hits: u32,
}

/// A bucket of `HOSTS4`: one cache line.
pub type Bucket4 = [Slot4; WAYS];
/// A bucket of `WIDE`: two neighbouring cache lines.
pub type BucketW = [SlotW; WAYS];

const _: () = assert!(size_of::<Bucket4>() == 64 && size_of::<BucketW>() == 128);

/// The meta word of a [`SlotW`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Meta {
    /// [`FLAG_MANAGEMENT`], [`FLAG_BOGON`].
    pub flags: u8,
    /// Index of the limit profile; 0 is the default one.
    pub profile: u8,
}

/// Set in the meta word of every used entry.
pub const OCCUPIED: u32 = 0x100;
/// The part of the meta word that belongs to the key.
pub const KEY_MASK: u32 = 0x1ff;
/// The source is a management address.
pub const FLAG_MANAGEMENT: u8 = 1;
/// The source is a bogon.
pub const FLAG_BOGON: u8 = 2;

impl Meta {
    /// The word as stored, for an entry with this length key.
    pub const fn word(self, len_key: u32) -> u32 {
        OCCUPIED | len_key | (self.flags as u32) << 16 | (self.profile as u32) << 24
    }

    /// Flags and profile of a stored word.
    #[inline(always)]
    pub const fn of(word: u32) -> Self {
        Self {
            flags: (word >> 16) as u8,
            profile: (word >> 24) as u8,
        }
    }
}

/// Which 64-bit half of an address a prefix ends in, with the family.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Half {
    /// IPv6, lengths 1 to 64.
    High,
    /// IPv6, lengths 65 to 128.
    Low,
    /// IPv4, lengths 0 to 32.
    V4,
}

/// The length of a prefix as a single bit, so that "the longest length in use"
/// is the lowest set bit and its mask is a negation. In [`Half::High`] bit p
/// means length 64 − p, in `Low` 128 − p, in `V4` 32 − p.
pub type LenBit = u64;

/// A number below 256 that is unique to each half and length bit: a de Bruijn
/// sequence gives each power of two its own six bits (Leiserson, Prokop and
/// Randall 1998) where the target has no count of trailing zeros.
#[inline(always)]
pub const fn len_key(half: Half, bit: LenBit) -> u32 {
    let id = (bit.wrapping_mul(0x03f7_9d71_b4cb_0a89) >> 58) as u32;
    match half {
        Half::High => id,
        Half::Low => id | 0x40,
        Half::V4 => id | 0x80,
    }
}

/// The address under the mask of a length bit.
#[inline(always)]
pub const fn mask(half: Half, bit: LenBit, hi: u64, lo: u64) -> (u64, u64) {
    let m = bit.wrapping_neg();
    match half {
        Half::High => (hi & m, 0),
        Half::Low => (hi, lo & m),
        Half::V4 => (0, lo & m & 0xffff_ffff),
    }
}

/// Half and length bit of a prefix length; `None` for an IPv6 /0, which the
/// tables hold as its two /1.
pub const fn len_bit(v4: bool, len: u8) -> Option<(Half, LenBit)> {
    match (v4, len) {
        (true, 0..=32) => Some((Half::V4, 1 << (32 - len))),
        (false, 1..=64) => Some((Half::High, 1 << (64 - len))),
        (false, 65..=128) => Some((Half::Low, 1 << (128 - len))),
        _ => None,
    }
}

/// Where an entry may be: its two buckets (first choice first) and its filter
/// position, as 32 random bits each; [`reduce`] maps them onto the real sizes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    first: u32,
    second: u32,
    filter: u32,
}

impl Place {
    /// From a 64-bit hash.
    #[inline(always)]
    pub const fn new(hash: u64) -> Self {
        Self {
            first: hash as u32,
            second: (hash >> 16) as u32,
            filter: (hash >> 32) as u32,
        }
    }

    /// The place of an IPv4 host (address as read from the wire).
    #[inline(always)]
    pub const fn host_v4(seed: &Seed, addr: u32) -> Self {
        Self::new(hash64(seed, addr as u64))
    }

    /// The place of an entry of `WIDE`.
    #[inline(always)]
    pub const fn wide(seed: &Seed, hi: u64, lo: u64, len_key: u32) -> Self {
        Self::new(hash(seed, hi, lo, len_key))
    }

    /// The first bucket of `n`.
    #[inline(always)]
    pub const fn first(self, n: u32) -> u32 {
        reduce(self.first, n)
    }

    /// The second bucket of `n`; it may be the first again, which does no harm.
    #[inline(always)]
    pub const fn second(self, n: u32) -> u32 {
        reduce(self.second, n)
    }

    /// Word and bits in a filter of `words` 64-bit words. Two bits of one word,
    /// which a look-up finds in one cache line: of the entries that are not
    /// there 2 in 100 pass a full filter, where with one bit it would be 6.
    #[inline(always)]
    pub const fn filter(self, words: u32) -> (u32, u64) {
        let (word, [a, b]) = self.filter_bits(words);
        (word, 1 << (a & 63) | 1 << (b & 63))
    }

    /// The same with the bits as two numbers, of which the lowest six bits count.
    #[inline(always)]
    pub const fn filter_bits(self, words: u32) -> (u32, [u32; 2]) {
        // The word comes from the high bits, the two bits from the low ones.
        let bits = [self.filter, self.filter >> 6];
        (reduce(self.filter, words), bits)
    }
}

/// Words of `BITMAP24`: a bit for every IPv4 /24 that a listed prefix touches.
pub const BITMAP24_WORDS: u32 = 1 << 18;

/// Word and bit of an IPv4 address (host byte order) in `BITMAP24`.
#[inline(always)]
pub const fn bitmap24(addr: u32) -> (u32, u64) {
    (addr >> 14, 1 << ((addr >> 8) & 63))
}

/// Entries of `LENGTHS4` and `LENGTHS6`: one for each value of the first 16
/// bits of an address. `LENGTHS4` holds the [`LenBit`]s of IPv4 lengths in use
/// there; `LENGTHS6` those of IPv6 lengths 1 to 32, and [`LONGER`] when there
/// are longer ones.
pub const LENGTHS_ENTRIES: u32 = 1 << 16;

/// In `LENGTHS6`: lengths above 32 are in use, ask `LENGTHS6_LONG`.
pub const LONGER: u64 = 1;

/// An entry of `LENGTHS6_LONG`: the [`LenBit`]s of lengths 33 to 127 in use
/// among all /32 that share the entry.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct LongLengths {
    /// Lengths 33 to 64, as bits of [`Half::High`].
    pub high: u64,
    /// Lengths 65 to 127, as bits of [`Half::Low`].
    pub low: u64,
}

/// Tag of the hash that finds an entry of `LENGTHS6_LONG`; no length key has it.
const LONG_TAG: u32 = 0x1000;

/// Where the lengths above 32 of an address with this upper half are told: the
/// entry of `LENGTHS6_LONG` is its first place, and `PREFIX_FILTER` has its bits
/// when there is any, so that few look for it in vain.
#[inline(always)]
pub const fn long_place(seed: &Seed, hi: u64) -> Place {
    Place::new(hash(seed, hi >> 32, 0, LONG_TAG))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    #[test]
    fn every_length_has_its_own_key() {
        let mut seen = HashSet::new();
        for len in 0..=32 {
            let (h, b) = len_bit(true, len).unwrap();
            assert!(seen.insert(len_key(h, b)), "v4 /{len}");
        }
        for len in 1..=128 {
            let (h, b) = len_bit(false, len).unwrap();
            assert!(seen.insert(len_key(h, b)), "v6 /{len}");
        }
        assert!(seen.iter().all(|&k| k < OCCUPIED));
        assert_eq!(len_bit(false, 0), None);
        assert_eq!(len_bit(true, 33), None);
    }

    #[test]
    fn masks_are_those_of_the_lengths() {
        let addr = 0x2001_0db8_1234_5678_9abc_def0_1357_9bdfu128;
        for len in 1..=128u8 {
            let (h, b) = len_bit(false, len).unwrap();
            let want = addr & (u128::MAX << (128 - len));
            assert_eq!(
                mask(h, b, (addr >> 64) as u64, addr as u64),
                ((want >> 64) as u64, want as u64)
            );
        }
        for len in 0..=32u8 {
            let (h, b) = len_bit(true, len).unwrap();
            let want = 0xc0a8_01ffu64 & ((u64::MAX << (32 - len)) & 0xffff_ffff);
            assert_eq!(mask(h, b, 0, 0xc0a8_01ff), (0, want));
        }
    }

    #[test]
    fn meta_words_carry_everything() {
        let m = Meta {
            flags: FLAG_BOGON,
            profile: 31,
        };
        let w = m.word(0x85);
        assert_eq!(Meta::of(w), m);
        assert_eq!(w & KEY_MASK, OCCUPIED | 0x85);
    }

    #[test]
    fn bitmap24_covers_the_space() {
        assert_eq!(bitmap24(u32::MAX), (BITMAP24_WORDS - 1, 1 << 63));
        assert_eq!(bitmap24(0x0000_01ff), (0, 2));
    }
}
