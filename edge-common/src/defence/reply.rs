//! Packets that the program answers with: headers as words in the byte order of
//! the wire, checksums included (RFC 1071).

use super::options::{HAS_ECN, HAS_SACK, HAS_TIMESTAMP, HAS_WSCALE, Offer};
use crate::{
    parse::{proto, tcp},
    tunnel,
};

/// A sum of 16-bit words in the making, one's complement.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sum(u64);

impl Sum {
    /// Of nothing.
    #[inline(always)]
    pub const fn new() -> Self {
        Self(0)
    }

    /// Adds words.
    #[inline(always)]
    #[must_use]
    pub const fn word(self, word: u32) -> Self {
        Self(self.0 + word as u64)
    }

    /// Adds the two words of each half of an address.
    #[inline(always)]
    #[must_use]
    pub const fn double(self, word: u64) -> Self {
        Self(self.0 + (word >> 32) + (word & 0xffff_ffff))
    }

    /// Adds another sum.
    #[inline(always)]
    #[must_use]
    pub const fn plus(self, other: Self) -> Self {
        Self(self.0 + other.0)
    }

    /// The pseudo header (RFC 9293, 3.1; RFC 8200, 8.1) of a TCP segment of this
    /// length. An IPv4 address takes the lower half of its second word: the
    /// mapped form's ones add up to nothing.
    #[inline(always)]
    pub const fn pseudo(source: [u64; 2], dest: [u64; 2], len: u32) -> Self {
        Self(0)
            .double(source[0])
            .double(source[1])
            .double(dest[0])
            .double(dest[1])
            .word(len.to_be())
            .word((proto::TCP as u32).to_be())
    }

    /// Folded to 16 bits, byte order of the wire.
    #[inline(always)]
    pub const fn fold(self) -> u16 {
        let sum = (self.0 & 0xffff_ffff) + (self.0 >> 32);
        let sum = (sum & 0xffff) + (sum >> 16 & 0xffff) + (sum >> 32);
        let sum = (sum & 0xffff) + (sum >> 16);
        let sum = (sum & 0xffff) + (sum >> 16);
        sum as u16
    }

    /// The checksum.
    #[inline(always)]
    pub const fn checksum(self) -> u16 {
        !self.fold()
    }
}

/// Whether the TCP checksum of a packet is right. `sum` is over the pseudo header
/// and the whole segment, `pseudo` over the pseudo header alone, `field` is the
/// checksum. A sender on this host that leaves the checksum to its network card
/// has put in the sum of the pseudo header (`CHECKSUM_PARTIAL`), which is right
/// as well: no wire can have changed it.
#[inline(always)]
pub const fn is_checksum_right(sum: Sum, pseudo: Sum, field: u16) -> bool {
    sum.fold() == 0xffff || field == pseudo.fold()
}

/// Puts a checksum where its word has a zero half: the upper 16 bits in network order
/// are the first half in memory.
#[inline(always)]
const fn with_high_half(word: u32, half: u16) -> u32 {
    let [_, _, c, d] = word.to_ne_bytes();
    let [a, b] = half.to_ne_bytes();
    u32::from_ne_bytes([a, b, c, d])
}

/// An IPv4 header without options, not to be fragmented.
#[inline(always)]
pub const fn ipv4(source: u32, dest: u32, tcp_len: u32, ttl: u8) -> [u32; 5] {
    tunnel::ipv4_outer(source, dest, proto::TCP, (20 + tcp_len) as u16, ttl, 0)
}

/// An IPv6 header.
#[inline(always)]
pub const fn ipv6(source: [u64; 2], dest: [u64; 2], tcp_len: u32, hop_limit: u8) -> [u64; 5] {
    tunnel::ipv6_outer(source, dest, proto::TCP, tcp_len as u16, hop_limit, 0, 0)
}

/// Words of the longest TCP header that is made here.
pub const TCP_WORDS: usize = 10;

/// A TCP header with options; `words` of [`TCP_WORDS`] are in use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct Segment {
    /// The header.
    pub words: [u32; TCP_WORDS],
    /// How many of its words there are: 5 to 10.
    pub len: u32,
}

/// What a reply is made from: the packet it answers to, seen from here.
#[derive(Clone, Copy, Debug)]
pub struct Ends {
    /// The address that replies.
    pub source: [u64; 2],
    /// The address that is replied to.
    pub dest: [u64; 2],
    /// Source and destination port of the reply, as read from the wire.
    pub ports: u32,
}

impl Ends {
    /// A segment without options.
    #[inline(always)]
    pub const fn bare(&self, seq: u32, ack: u32, flags: u8) -> Segment {
        let words = [
            self.ports,
            seq.to_be(),
            ack.to_be(),
            (5 << 28 | (flags as u32) << 16).to_be(),
            0,
            0,
            0,
            0,
            0,
            0,
        ];
        self.finished(words, 5)
    }

    /// A SYN-ACK that answers `offer` with a cookie. `timestamp` is that of the
    /// cookie: without one none of the other options can be remembered, and none
    /// is granted (`cookie_init_timestamp`).
    #[inline(always)]
    pub const fn syn_ack(&self, cookie: u32, ack: u32, grant: &Grant) -> Segment {
        let mut words = [0; TCP_WORDS];
        words[0] = self.ports;
        words[1] = cookie.to_be();
        words[2] = ack.to_be();
        words[5] = (0x0204_0000 | grant.mss as u32).to_be();
        let mut flags = tcp::SYN | tcp::ACK;
        let mut len = 6;
        if grant.has(HAS_TIMESTAMP) {
            let lead = if grant.has(HAS_SACK) {
                0x0402_080au32
            } else {
                0x0101_080a
            };
            words[6] = lead.to_be();
            words[7] = grant.timestamp.to_be();
            words[8] = grant.echoed.to_be();
            len = 9;
            if grant.has(HAS_WSCALE) {
                words[9] = (0x0103_0300 | grant.wscale as u32).to_be();
                len = 10;
            }
            if grant.has(HAS_ECN) {
                flags |= tcp::ECE;
            }
        }
        words[3] = (len << 28 | (flags as u32) << 16 | grant.window as u32).to_be();
        self.finished(words, len)
    }

    #[inline(always)]
    const fn finished(&self, mut words: [u32; TCP_WORDS], len: u32) -> Segment {
        let mut sum = Sum::pseudo(self.source, self.dest, len * 4);
        let mut i = 0;
        while i < TCP_WORDS {
            sum = sum.word(words[i]);
            i += 1;
        }
        words[4] = with_high_half(words[4], sum.checksum());
        Segment { words, len }
    }
}

/// What a SYN-ACK grants.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Grant {
    /// Own timestamp.
    pub timestamp: u32,
    /// The one that is echoed.
    pub echoed: u32,
    /// Maximum segment size.
    pub mss: u16,
    /// Window, not scaled.
    pub window: u16,
    /// Window scale.
    pub wscale: u8,
    /// `HAS_*`, as in the offer.
    pub has: u8,
}

impl Grant {
    /// Whether it has one of these.
    #[inline(always)]
    pub const fn has(&self, what: u8) -> bool {
        self.has & what != 0
    }
}

/// What the host's TCP is set to grant (sysctls), bits of [`crate::abi::Config`].
pub mod feature {
    /// `tcp_timestamps` is 2: without random offsets, which cookies cannot be decoded with.
    pub const TIMESTAMPS: u32 = 1;
    /// `tcp_sack`.
    pub const SACK: u32 = 2;
    /// `tcp_window_scaling`.
    pub const WINDOW_SCALE: u32 = 4;
    /// `tcp_ecn` grants ECN to those who ask.
    pub const ECN: u32 = 8;
    /// All of them.
    pub const ALL: u32 = TIMESTAMPS | SACK | WINDOW_SCALE | ECN;
}

/// Bits of a timestamp that carry options: Linux, `net/ipv4/syncookies.c`.
const OPTION_BITS: u32 = 6;
/// "No window scale".
const NO_WSCALE: u32 = 0xf;
const SACK_BIT: u32 = 1 << 4;
const ECN_BIT: u32 = 1 << 5;

/// What is granted of an offer. `features` are [`feature`]s of the host,
/// `wscale` is the listener's own, `now_ms` `CLOCK_MONOTONIC` in milliseconds.
#[inline(always)]
pub const fn grant(
    offer: &Offer,
    features: u32,
    wscale: u8,
    mss: u16,
    window: u16,
    now_ms: u32,
) -> Grant {
    let mut has = 0;
    if offer.has(HAS_TIMESTAMP) && features & feature::TIMESTAMPS != 0 {
        has = HAS_TIMESTAMP;
        if offer.has(HAS_SACK) && features & feature::SACK != 0 {
            has |= HAS_SACK;
        }
        if offer.has(HAS_ECN) && features & feature::ECN != 0 {
            has |= HAS_ECN;
        }
        if offer.has(HAS_WSCALE) && features & feature::WINDOW_SCALE != 0 {
            has |= HAS_WSCALE;
        }
    }
    // The client's scale goes into the cookie, ours to the client.
    let mut options = if has & HAS_WSCALE != 0 {
        offer.wscale as u32
    } else {
        NO_WSCALE
    };
    if has & HAS_SACK != 0 {
        options |= SACK_BIT;
    }
    if has & HAS_ECN != 0 {
        options |= ECN_BIT;
    }
    let mut timestamp = (now_ms >> OPTION_BITS) << OPTION_BITS | options;
    if timestamp > now_ms {
        timestamp = timestamp.wrapping_sub(1 << OPTION_BITS);
    }
    Grant {
        timestamp,
        echoed: offer.timestamp,
        mss,
        window,
        wscale,
        has,
    }
}
