//! A TCP packet as the defence sees it.
//!
//! What is read of it lies in the scratch and not on the stack, which the callers
//! have filled; and what is read back from there the verifier knows nothing of,
//! which keeps small what it has to follow.

use crate::{hand_over::Marks, maps::Scratch, source::XdpSource};
use edge_common::{
    defence::{TargetKey, reply::Ends, v4_halves},
    hash::{Seed, hash},
    header::{Sum, is_checksum_right},
    parse::{PacketSource as _, proto, tcp as flag},
};

/// Words of a TCP header without options.
const FIXED: usize = 5;
/// Tag of the hash of a connection's two ends.
const TUPLE_TAG: u32 = 0x2001;
/// Tag of the hash of a source that is to be verified.
const SOURCE_TAG: u32 = 0x2002;

/// What was read of a packet.
#[repr(C)]
pub struct Fields {
    source: [u64; 2],
    dest: [u64; 2],
    /// The fixed part of the header, byte order of the wire.
    tcp: [u32; FIXED],
    /// As [`Marks`].
    is_v6: u32,
    /// Offset of the IP header.
    network: u32,
    /// Offset of the TCP header.
    transport: u32,
    /// Where the packet ends in the frame; padding may follow.
    end: u32,
}

/// The addresses of a packet.
#[derive(Clone, Copy)]
pub struct Addresses {
    pub source: [u64; 2],
    pub dest: [u64; 2],
}

impl Addresses {
    /// Of a packet of which the parser said `marks`.
    #[inline(always)]
    pub fn read(source: &XdpSource<'_>, marks: u64) -> Option<Self> {
        let v6 = marks >> Marks::V6 & 1 != 0;
        Self::read_at(source, v6, (marks >> Marks::NETWORK & 0xff) as usize)
    }

    /// Of the IP header at an offset.
    #[inline(always)]
    pub fn read_at(source: &XdpSource<'_>, v6: bool, offset: usize) -> Option<Self> {
        Some(if v6 {
            let [_, s0, s1, d0, d1] = source.doubles::<5>(offset)?;
            Self {
                source: [s0, s1],
                dest: [d0, d1],
            }
        } else {
            let [_, _, _, s, d] = source.words::<5>(offset)?;
            Self {
                source: v4_halves(s),
                dest: v4_halves(d),
            }
        })
    }
}

/// A TCP packet, in the scratch of this CPU.
#[derive(Clone, Copy)]
pub struct Frame {
    pub scratch: *mut Scratch,
}

macro_rules! field {
    ($frame:expr, $($field:tt)+) => {
        // SAFETY: the scratch is a map value that belongs to this CPU.
        unsafe { (&raw const (*$frame.scratch).frame.$($field)+).read_volatile() }
    };
}

impl Frame {
    /// Reads a packet of which the parser said `marks`.
    #[inline(always)]
    pub fn read(source: &XdpSource<'_>, marks: u64, scratch: *mut Scratch) -> Option<Self> {
        let is_v6 = (marks >> Marks::V6 & 1) as u32;
        let network = (marks >> Marks::NETWORK & 0xff) as u32;
        let transport = (marks >> Marks::TRANSPORT & Marks::FAR) as u32;
        let Addresses {
            source: from,
            dest: to,
        } = Addresses::read(source, marks)?;
        // Both lengths stand in the second half of a word.
        let end = if is_v6 != 0 {
            let [_, length] = source.words::<2>(network as usize)?;
            network + 40 + (u32::from_be(length) >> 16)
        } else {
            let [length] = source.words::<1>(network as usize)?;
            network + (u32::from_be(length) & 0xffff)
        };
        let tcp = source.words::<FIXED>(transport as usize)?;
        // SAFETY: a map value that belongs to this CPU.
        unsafe {
            (&raw mut (*scratch).frame).write(Fields {
                source: from,
                dest: to,
                tcp,
                is_v6,
                network,
                transport,
                end,
            });
        }
        Some(Self { scratch })
    }

    #[inline(always)]
    pub fn is_v6(&self) -> bool {
        field!(self, is_v6) != 0
    }

    #[inline(always)]
    pub fn source(&self) -> [u64; 2] {
        [field!(self, source[0]), field!(self, source[1])]
    }

    #[inline(always)]
    pub fn dest(&self) -> [u64; 2] {
        [field!(self, dest[0]), field!(self, dest[1])]
    }

    /// Source and destination port, as read from the wire.
    #[inline(always)]
    pub fn ports(&self) -> u32 {
        field!(self, tcp[0])
    }

    #[inline(always)]
    pub fn seq(&self) -> u32 {
        u32::from_be(field!(self, tcp[1]))
    }

    #[inline(always)]
    pub fn ack(&self) -> u32 {
        u32::from_be(field!(self, tcp[2]))
    }

    #[inline(always)]
    fn control(&self) -> u32 {
        u32::from_be(field!(self, tcp[3]))
    }

    #[inline(always)]
    pub fn flags(&self) -> u8 {
        (self.control() >> 16) as u8
    }

    /// Bytes of options, 0 to 40: the parser has seen that the header is whole.
    #[inline(always)]
    pub fn options(&self) -> u32 {
        (self.control() >> 26 & 0x3c).wrapping_sub(20) & 0x3f
    }

    /// Offset of the IP header.
    #[inline(always)]
    pub fn network(&self) -> u32 {
        field!(self, network) & 0xff
    }

    /// Offset of the TCP header.
    #[inline(always)]
    pub fn transport(&self) -> u32 {
        field!(self, transport) & Marks::FAR as u32
    }

    /// Whether nothing follows the TCP header.
    #[inline(always)]
    pub fn is_bare(&self) -> bool {
        self.transport() + 20 + self.options() >= field!(self, end)
    }

    #[inline(always)]
    pub fn has(&self, flags: u8) -> bool {
        self.flags() & flags == flags
    }

    /// A SYN that opens a connection.
    #[inline(always)]
    pub fn is_syn(&self) -> bool {
        self.flags() & (flag::SYN | flag::ACK | flag::RST) == flag::SYN
    }

    /// An acknowledgement that may end a handshake.
    #[inline(always)]
    pub fn is_ack(&self) -> bool {
        self.flags() & (flag::SYN | flag::ACK | flag::RST) == flag::ACK
    }

    #[inline(always)]
    pub fn target(&self) -> TargetKey {
        let [_, _, a, b] = self.ports().to_ne_bytes();
        let [hi, lo] = self.dest();
        let end = u64::from_ne_bytes([a, b, proto::TCP, 0, 0, 0, 0, 0]);
        // Field by field LLVM calls `memset` for five bytes, and the map's copy of what
        // was written in pieces waits for the cache: together 25 ns.
        // SAFETY: a key is repr(C) without padding, and any bytes are one.
        unsafe { core::mem::transmute::<[u64; 3], TargetKey>([hi, lo, end]) }
    }

    /// The two ends as a reply has them.
    #[inline(always)]
    pub fn reversed(&self) -> Ends {
        Ends {
            source: self.dest(),
            dest: self.source(),
            ports: self.ports().rotate_left(16),
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
    pub fn tuple_hash(&self, seed: &Seed, seq: u32) -> u64 {
        let ([s0, s1], [d0, d1]) = (self.source(), self.dest());
        let ends = hash(seed, s0 ^ d1, s1, TUPLE_TAG);
        let ports_seq = (self.ports() as u64) << 32 | seq as u64;
        hash(seed, ends ^ d0, ports_seq, TUPLE_TAG)
    }

    /// A hash of the source as it is verified: an IPv4 address, an IPv6 /64.
    #[inline(always)]
    pub fn source_hash(&self, seed: &Seed) -> u64 {
        let [hi, lo] = self.source();
        if self.is_v6() {
            hash(seed, hi, 0, SOURCE_TAG)
        } else {
            hash(seed, 0, lo, SOURCE_TAG)
        }
    }

    /// Whether the checksum of a segment that has nothing but its header and
    /// options with this sum is right.
    #[inline(always)]
    pub fn is_checksum_right(&self, options: Sum) -> bool {
        let pseudo = Sum::pseudo(self.source(), self.dest(), 20 + self.options(), proto::TCP);
        let last = field!(self, tcp[4]);
        let sum = pseudo
            .word(self.ports())
            .word(field!(self, tcp[1]))
            .word(field!(self, tcp[2]))
            .word(field!(self, tcp[3]))
            .word(last)
            .plus(options);
        let [x, y, _, _] = last.to_ne_bytes();
        is_checksum_right(sum, pseudo, u16::from_ne_bytes([x, y]))
    }
}
