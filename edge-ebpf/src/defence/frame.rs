//! A TCP packet as the defence sees it: read once, kept in registers.

use super::Marks;
use crate::source::XdpSource;
use edge_common::{
    defence::{
        TargetKey,
        reply::{Ends, Sum, is_checksum_right},
        v4_halves,
    },
    hash::hash,
    parse::{PacketSource as _, proto, tcp as flag},
};

/// Words of a TCP header without options.
const FIXED: usize = 5;
/// Tag of the hash of a connection's two ends.
const TUPLE_TAG: u32 = 0x2001;
/// Tag of the hash of a source that is to be verified.
const SOURCE_TAG: u32 = 0x2002;

/// A TCP packet.
#[derive(Clone, Copy)]
pub struct Frame {
    pub v6: bool,
    pub source: [u64; 2],
    pub dest: [u64; 2],
    /// The fixed part of the header, byte order of the wire.
    pub tcp: [u32; FIXED],
    pub flags: u8,
    /// Offset of the IP header.
    pub network: usize,
    /// Offset of the TCP header.
    pub transport: usize,
    /// Bytes of TCP options.
    pub options: u32,
}

impl Frame {
    /// Reads a packet of which the parser said `marks`.
    #[inline(always)]
    pub fn read(source: &XdpSource<'_>, marks: u64) -> Option<Self> {
        let v6 = marks >> Marks::V6 & 1 != 0;
        let network = (marks >> Marks::NETWORK & 0xff) as usize;
        let transport = (marks >> Marks::TRANSPORT & Marks::FAR) as usize;
        let (from, to) = if v6 {
            let [_, s0, s1, d0, d1] = source.doubles::<5>(network)?;
            ([s0, s1], [d0, d1])
        } else {
            let [_, _, _, s, d] = source.words::<5>(network)?;
            (v4_halves(s), v4_halves(d))
        };
        let tcp = source.words::<FIXED>(transport)?;
        let control = u32::from_be(tcp[3]);
        Some(Self {
            v6,
            source: from,
            dest: to,
            tcp,
            flags: (control >> 16) as u8,
            network,
            transport,
            // The parser has seen that the header is whole.
            options: (control >> 26 & 0x3c).wrapping_sub(20) & 0x3f,
        })
    }

    #[inline(always)]
    pub fn has(&self, flags: u8) -> bool {
        self.flags & flags == flags
    }

    /// A SYN that opens a connection.
    #[inline(always)]
    pub fn is_syn(&self) -> bool {
        self.flags & (flag::SYN | flag::ACK | flag::RST) == flag::SYN
    }

    #[inline(always)]
    pub fn seq(&self) -> u32 {
        u32::from_be(self.tcp[1])
    }

    #[inline(always)]
    pub fn ack(&self) -> u32 {
        u32::from_be(self.tcp[2])
    }

    #[inline(always)]
    pub fn target(&self) -> TargetKey {
        let [_, _, a, b] = self.tcp[0].to_ne_bytes();
        TargetKey {
            address: self.dest,
            port: u16::from_ne_bytes([a, b]),
            proto: proto::TCP,
            pad: [0; 5],
        }
    }

    /// The two ends as a reply has them.
    #[inline(always)]
    pub fn reversed(&self) -> Ends {
        Ends {
            source: self.dest,
            dest: self.source,
            ports: self.tcp[0].rotate_left(16),
        }
    }

    /// The second word of an IPv4 address is the address.
    #[inline(always)]
    pub const fn v4(halves: [u64; 2]) -> u32 {
        let [_, _, _, _, a, b, c, d] = halves[1].to_ne_bytes();
        u32::from_ne_bytes([a, b, c, d])
    }

    /// A hash of both ends and a sequence number.
    #[inline(always)]
    pub fn tuple_hash(&self, seed: &edge_common::hash::Seed, seq: u32) -> u64 {
        let ends = hash(
            seed,
            self.source[0] ^ self.dest[1],
            self.source[1],
            TUPLE_TAG,
        );
        hash(
            seed,
            ends ^ self.dest[0],
            (self.tcp[0] as u64) << 32 | seq as u64,
            TUPLE_TAG,
        )
    }

    /// A hash of the source as it is verified: an IPv4 address, an IPv6 /64.
    #[inline(always)]
    pub fn source_hash(&self, seed: &edge_common::hash::Seed) -> u64 {
        let [hi, lo] = self.source;
        if self.v6 {
            hash(seed, hi, 0, SOURCE_TAG)
        } else {
            hash(seed, 0, lo, SOURCE_TAG)
        }
    }

    /// Whether the checksum of a segment that has nothing but this header and
    /// these options is right. `options` are zero behind their end.
    #[inline(always)]
    pub fn is_checksum_right(&self, options: Sum) -> bool {
        let pseudo = Sum::pseudo(self.source, self.dest, 20 + self.options);
        let [a, b, c, d, e] = self.tcp;
        let sum = pseudo.word(a).word(b).word(c).word(d).word(e).plus(options);
        let [x, y, _, _] = e.to_ne_bytes();
        is_checksum_right(sum, pseudo, u16::from_ne_bytes([x, y]))
    }
}
