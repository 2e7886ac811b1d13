//! What the two sides of `cargo xtask bench` agree on: which source the harness
//! program writes into which packet.
//!
//! The harness computes its sources instead of reading them from a list: a
//! list of a million would push the very tables out of the cache that are to be
//! measured. Only sources that no formula gives come from an array, in
//! order, 8 bytes a packet.

use crate::hash::{Seed, hash64};

/// Names of the maps in the harness object.
pub mod maps {
    /// Array of one [`super::Drive`], mappable.
    pub const DRIVE: &str = "DRIVE";
    /// Array of [`super::LISTED`] words, mappable: see [`super::Drive::listed`].
    pub const SOURCES: &str = "SOURCES";
    /// Program array of one entry: the program under test.
    pub const UNDER_TEST: &str = "UNDER_TEST";
    /// The same for programs that know no frames of several buffers.
    pub const UNDER_TEST_LINEAR: &str = "UNDER_TEST_LINEAR";
    /// Kernel hash of IPv4 addresses (as on the wire).
    pub const HASH4: &str = "HASH4";
    /// Kernel hash of IPv6 addresses.
    pub const HASH6: &str = "HASH6";
    /// Kernel LPM trie of IPv4 prefixes.
    pub const LPM4: &str = "LPM4";
    /// Kernel LPM trie of IPv6 prefixes.
    pub const LPM6: &str = "LPM6";
    /// Array of cache lines of zeros.
    pub const LINES4: &str = "LINES4";
    /// The same of pairs of them.
    pub const LINES6: &str = "LINES6";
    /// Array of one [`super::Syn`], mappable.
    pub const SYN: &str = "SYN";
    /// Array of one [`super::Pace`], mappable.
    pub const PACE: &str = "PACE";
    /// Array of one word, mappable: the index of the interface that is forwarded to without
    /// looking.
    pub const TO: &str = "TO";
}

/// Entries of [`maps::SOURCES`]; a power of two.
pub const LISTED: u32 = 1 << 18;

/// Offset of the source address in an untagged IPv4 frame.
pub const SOURCE4_AT: usize = 14 + 12;
/// Offset of the source address in an untagged IPv6 frame.
pub const SOURCE6_AT: usize = 14 + 8;

/// Offset of the destination address in an untagged IPv4 frame.
pub const DEST4_AT: usize = SOURCE4_AT + 4;
/// Offset of the destination address in an untagged IPv6 frame.
pub const DEST6_AT: usize = SOURCE6_AT + 16;
/// Offset of the header's checksum in an untagged IPv4 frame.
pub const SUM4_AT: usize = 14 + 10;
/// Offset of the TCP header in an untagged IPv4 frame without options.
pub const TCP4_AT: usize = 14 + 20;
/// Offset of the TCP header in an untagged IPv6 frame without extension headers.
pub const TCP6_AT: usize = 14 + 40;
/// Offset of the flags in a TCP header.
pub const TCP_FLAGS_AT: usize = 13;
/// Offset of the checksum in a TCP header.
pub const TCP_SUM_AT: usize = 16;
/// Bytes of an untagged IPv4 SYN with the options that Linux sends.
pub const SYN4_LEN: usize = TCP4_AT + 40;
/// Bytes of an untagged IPv6 SYN with the options that Linux sends.
pub const SYN6_LEN: usize = TCP6_AT + 40;

/// A SYN that is made anew for each packet, since those who answer it write over
/// it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Syn {
    /// The Ethernet header, 14 bytes of it.
    pub ethernet: [u32; 4],
    /// The IP header: words of 64 bits, or of IPv4 of 32 bits each. Without the source, and
    /// 0 for checksums, as in the TCP header.
    pub ip: [u64; 5],
    /// The TCP header with its options.
    pub tcp: [u32; 10],
    /// Sum of the IPv4 header, without source and checksum, as
    /// [`crate::defence::reply::Sum`] adds up.
    pub ip_sum: u64,
    /// Sum of pseudo header and segment, likewise.
    pub tcp_sum: u64,
    /// Fills the cache line.
    pub pad: [u64; 2],
}

const _: () = assert!(size_of::<Syn>() == 128 && SYN6_LEN <= 96);

/// When a flood sends its next SYN. 0 is no bound.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Pace {
    /// Nanoseconds between two SYNs.
    pub interval_ns: u64,
    /// SYNs that may be on their way unanswered.
    pub window: u64,
    /// When the next one is due, nanoseconds of `CLOCK_MONOTONIC`.
    pub next: u64,
    /// Those that were sent.
    pub sent: u64,
    /// Those that were answered by a SYN-ACK.
    pub answered: u64,
    /// Other answers.
    pub other: u64,
    /// Those of [`Pace::sent`] that are given up: neither answered nor on their way.
    pub lost: u64,
    /// Fills the cache line.
    pub pad: u64,
}

const _: () = assert!(size_of::<Pace>() == 64);

/// A flood that waits for answers gives up those that do not come for so long, nanoseconds.
pub const PATIENCE_NS: u64 = 100_000_000;

/// A flood that fell behind its pace does not make up for more than this, nanoseconds.
pub const SLACK_NS: u64 = 30_000;

/// What the harness does to the next packet: one cache line.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Drive {
    /// Packets since the harness last started over.
    pub next: u64,
    /// Packets after which it starts over; 1 is the same source all the time.
    pub count: u64,
    /// Number of the first source.
    pub first: u64,
    /// Where the sources lie.
    pub space: Space,
    /// 1: the sources are those of [`maps::SOURCES`], from the first one on.
    pub listed: u64,
    /// Entries of [`maps::LINES4`] and [`maps::LINES6`].
    pub lines: u64,
    /// Fills the cache line.
    pub pad: u64,
}

const _: () = assert!(size_of::<Drive>() == 64);

/// A range of addresses from which sources are drawn: IPv4 addresses, or upper
/// halves of IPv6 addresses (host byte order).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Space {
    /// The first one.
    pub base: u64,
    /// The range has 2^(64 - shift) of them.
    pub shift: u64,
}

impl Space {
    /// 64 unicast /8s of IPv4 without a bogon: 11.0.0.0 to 74.255.255.255.
    pub const V4: Self = Self {
        base: 11 << 24,
        shift: 34,
    };
    /// As many more, far from those: 128.0.0.0 to 191.255.255.255. One source in
    /// 16,384 is link-local.
    pub const V4_AWAY: Self = Self {
        base: 128 << 24,
        shift: 34,
    };
    /// Regional registries' space, 2a00::/11.
    pub const V6: Self = Self {
        base: 0x2a00 << 48,
        shift: 11,
    };
    /// Another such range, for sources that have no listed neighbour: 2600::/11.
    pub const V6_AWAY: Self = Self {
        base: 0x2600 << 48,
        shift: 11,
    };

    /// Whether a word lies in the range.
    #[inline(always)]
    pub const fn has(&self, word: u64) -> bool {
        word.wrapping_sub(self.base) >> (64 - self.shift) == 0
    }

    /// The source with this number, as the word that lies in the range and
    /// 64 more bits for the lower half of an IPv6 address. Numbers that differ
    /// give lower halves that differ.
    #[inline(always)]
    pub const fn source(&self, number: u64) -> (u64, u64) {
        const SEED: Seed = Seed::new([
            0x2545_f491_4f6c_dd1d,
            0x9e6c_63d0_676a_9a99,
            0xd6e8_feb8_6659_fd93,
            0xa3b1_9535_4a39_b70d,
        ]);
        let hash = hash64(&SEED, number);
        (self.base.wrapping_add(hash >> self.shift), hash)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    #[test]
    fn sources_lie_in_their_range_and_differ() {
        let (mut v4, mut v6) = (HashSet::new(), HashSet::new());
        for i in 0..100_000 {
            let (addr, _) = Space::V4.source(i);
            assert!((11..75).contains(&(addr >> 24)), "{addr:#x}");
            assert!(Space::V4.has(addr) && !Space::V4_AWAY.has(addr));
            v4.insert(addr);
            let (hi, lo) = Space::V6.source(i);
            assert!((0x2a00..0x2a20).contains(&(hi >> 48)), "{hi:#x}");
            assert!(Space::V6.has(hi) && !Space::V6_AWAY.has(hi));
            v6.insert((hi, lo));
        }
        assert_eq!(v6.len(), 100_000);
        // The birthday paradox allows about five among 2^30 addresses.
        assert!(v4.len() > 99_950, "{}", v4.len());
    }
}
