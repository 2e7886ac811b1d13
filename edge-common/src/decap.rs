//! What `edge decap` does on a backend: which packets are tunnels to it, and what
//! becomes of them and of what they carry.
//!
//! Kernel and host run the same code over a [`PacketSource`], as with the parser.
//! The UDP checksum of GUE is not looked at, be it there or not: to add up a whole
//! packet would cost many times all the rest, and what is inside has checksums of
//! its own, which the kernel verifies.

use crate::{
    addr::Family,
    header::replaced,
    parse::{Fragment, IPV4_LEN, IPV6_LEN, Ip, PacketSource, UDP_LEN, proto},
    reason::Verdict,
    tunnel::{PROTO_IPV4, PROTO_IPV6, ecn},
};

/// Name of the XDP program in the object.
pub const PROGRAM: &str = "edge_decap";
/// Symbol of the read-only `u16` that is the UDP port of GUE, byte order of the wire.
pub const GUE_PORT_SYMBOL: &str = "GUE_PORT";

/// Names of the maps. Addresses in keys are as on the wire, and values mean nothing.
pub mod maps {
    /// LPM trie of the IPv4 prefixes that tunnels may come from.
    pub const SOURCES4: &str = "SOURCES4";
    /// The same for IPv6.
    pub const SOURCES6: &str = "SOURCES6";
    /// Hash of the IPv4 addresses that tunnels may go to.
    pub const LOCAL4: &str = "LOCAL4";
    /// The same for IPv6.
    pub const LOCAL6: &str = "LOCAL6";
    /// Per-CPU array of `u64`: packets by [`super::Outcome`].
    pub const OUTCOMES: &str = "OUTCOMES";
}

/// The most addresses of each family that tunnels may go to.
pub const MAX_LOCAL: u32 = 4096;

/// What became of a packet. Every packet ends with exactly one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(u8)]
pub enum Outcome {
    /// No tunnel to this host.
    Pass,
    /// A fragment of one.
    PassFragment,
    /// Taken out: IPv4 in IPv4.
    DecapIpip,
    /// Taken out: IPv6 in IPv4.
    Decap6in4,
    /// Taken out: IPv4 in IPv6.
    Decap4in6,
    /// Taken out: IPv6 in IPv6.
    DecapIp6ip6,
    /// Taken out of GUE.
    DecapGue,
    /// The outer source may not send tunnels.
    SourceNotAllowed,
    /// The inner packet is not all there.
    InnerTruncated,
    /// The inner packet is of another version than announced.
    InnerBadVersion,
    /// Congestion that the inner packet cannot tell of.
    EcnNotCapable,
}

impl Outcome {
    /// All of them, in the order of their counters.
    pub const ALL: [Self; 11] = [
        Self::Pass,
        Self::PassFragment,
        Self::DecapIpip,
        Self::Decap6in4,
        Self::Decap4in6,
        Self::DecapIp6ip6,
        Self::DecapGue,
        Self::SourceNotAllowed,
        Self::InnerTruncated,
        Self::InnerBadVersion,
        Self::EcnNotCapable,
    ];
    /// How many there are.
    pub const COUNT: usize = Self::ALL.len();

    /// Name and sentence.
    const fn words(self) -> (&'static str, &'static str) {
        match self {
            Self::Pass => (
                "pass",
                "no tunnel to this host; left to the kernel as it came",
            ),
            Self::PassFragment => (
                "pass_fragment",
                "a fragment of a tunnel packet; left to the kernel as it came",
            ),
            Self::DecapIpip => ("decap_ipip", "IPv4 taken out of IPv4"),
            Self::Decap6in4 => ("decap_6in4", "IPv6 taken out of IPv4"),
            Self::Decap4in6 => ("decap_4in6", "IPv4 taken out of IPv6"),
            Self::DecapIp6ip6 => ("decap_ip6ip6", "IPv6 taken out of IPv6"),
            Self::DecapGue => ("decap_gue", "taken out of GUE"),
            Self::SourceNotAllowed => (
                "source_not_allowed",
                "dropped: a tunnel from an address that is in no --source",
            ),
            Self::InnerTruncated => (
                "inner_truncated",
                "dropped: the tunnel ends before the packet inside does",
            ),
            Self::InnerBadVersion => (
                "inner_bad_version",
                "dropped: the packet inside is of another IP version than announced, or no IP",
            ),
            Self::EcnNotCapable => (
                "ecn_not_capable",
                "dropped: it met congestion, of which the packet inside cannot tell (RFC 6040)",
            ),
        }
    }

    /// The metric label, in snake case.
    pub const fn name(self) -> &'static str {
        self.words().0
    }

    /// One sentence for a person.
    pub const fn sentence(self) -> &'static str {
        self.words().1
    }

    /// What is done with the packet.
    #[inline(always)]
    pub const fn verdict(self) -> Verdict {
        match self {
            Self::SourceNotAllowed
            | Self::InnerTruncated
            | Self::InnerBadVersion
            | Self::EcnNotCapable => Verdict::Drop,
            _ => Verdict::Pass,
        }
    }
}

/// What the outer header announces.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Carries {
    /// An IP packet of this family.
    Ip(Family),
    /// GUE: a packet of either family.
    Gue,
}

/// A packet that looks like a tunnel from outside.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tunnel {
    /// What is inside.
    pub carries: Carries,
    /// Whether it is only a fragment.
    pub is_fragment: bool,
    /// Offset of what is inside in the frame.
    pub inner: usize,
    /// Where it ends.
    pub end: usize,
}

/// What there is to do with a tunnel to take the inner packet out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Inner {
    /// How it ends.
    pub outcome: Outcome,
    /// Family of the inner packet.
    pub family: Family,
    /// What has to be written over it, if anything.
    pub mark: Option<Mark>,
}

/// A changed ECN field.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mark {
    /// The first two bytes of the IP header, as they are in memory.
    pub head: u16,
    /// The checksum of an IPv4 header, likewise, at [`CHECKSUM_AT`].
    pub checksum: u16,
}

/// Offset of the checksum in an IPv4 header.
pub const CHECKSUM_AT: usize = 10;

/// The tunnel that a packet is; `None` when it is none. `gue_port` is in the byte
/// order of the wire.
///
/// Later fragments of GUE are not recognised: they have no ports.
#[inline(always)]
pub fn find<A, S: PacketSource + ?Sized>(source: &S, ip: &Ip<A>, gue_port: u16) -> Option<Tunnel> {
    let at = ip.transport.offset;
    let (carries, inner, end) = match ip.proto {
        PROTO_IPV4 => (Carries::Ip(Family::V4), at, ip.end),
        PROTO_IPV6 => (Carries::Ip(Family::V6), at, ip.end),
        proto::UDP if ip.transport.dest_port == gue_port => {
            // The parser has seen that it is no longer than the packet, unless this is
            // a fragment, which is not opened.
            let len = u16::from_be(source.half(at + 4)?) as usize;
            (Carries::Gue, at + UDP_LEN, at + len)
        }
        _ => return None,
    };
    Some(Tunnel {
        carries,
        is_fragment: ip.fragment != Fragment::Whole,
        inner,
        end,
    })
}

/// Looks into a tunnel that is no fragment. `outer` are the first two bytes of the
/// outer IP header, as read from memory, and `family` is its family.
///
/// # Errors
/// Why the packet is dropped.
#[inline(always)]
pub fn open<S: PacketSource + ?Sized>(
    source: &S,
    tunnel: &Tunnel,
    outer: u16,
    family: Family,
) -> Result<Inner, Outcome> {
    let truncated = Outcome::InnerTruncated;
    let at = tunnel.inner;
    // How much of the inner packet the outer one has, and not how much of it the frame
    // has: behind the outer one may be padding.
    let room = tunnel.end.saturating_sub(at);
    if room == 0 {
        return Err(truncated);
    }
    let version = source.byte(at).ok_or(truncated)? >> 4;
    let inner = match (tunnel.carries, version) {
        (Carries::Ip(Family::V4) | Carries::Gue, 4) => Family::V4,
        (Carries::Ip(Family::V6) | Carries::Gue, 6) => Family::V6,
        _ => return Err(Outcome::InnerBadVersion),
    };
    let (total, checksum) = match inner {
        Family::V4 => {
            let [head, _, hops, _, _] = source.words::<5>(at).ok_or(truncated)?;
            let total = (u32::from_be(head) & 0xffff) as usize;
            let [_, _, a, b] = hops.to_ne_bytes();
            // One that says it is shorter than its header is the kernel's to refuse.
            (total.max(IPV4_LEN), u16::from_ne_bytes([a, b]))
        }
        Family::V6 => {
            let [head, ..] = source.doubles::<5>(at).ok_or(truncated)?;
            let payload = (u64::from_be(head) >> 16 & 0xffff) as usize;
            (IPV6_LEN + payload, 0)
        }
    };
    if room < total {
        return Err(truncated);
    }
    let head = source.half(at).ok_or(truncated)?;
    let before = ecn::of(head, inner);
    let after = ecn::taken_out(before, ecn::of(outer, family)).ok_or(Outcome::EcnNotCapable)?;
    let mark = if before == after {
        None
    } else {
        let marked = ecn::set(head, inner, after);
        Some(Mark {
            head: marked,
            checksum: replaced(checksum, head, marked),
        })
    };
    Ok(Inner {
        outcome: match (tunnel.carries, family, inner) {
            (Carries::Gue, _, _) => Outcome::DecapGue,
            (_, Family::V4, Family::V4) => Outcome::DecapIpip,
            (_, Family::V4, Family::V6) => Outcome::Decap6in4,
            (_, Family::V6, Family::V4) => Outcome::Decap4in6,
            (_, Family::V6, Family::V6) => Outcome::DecapIp6ip6,
        },
        family: inner,
        mark,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::parse;
    use proptest::prelude::*;
    use std::{collections::HashSet, vec, vec::Vec};

    #[test]
    fn every_outcome_has_its_place_and_name() {
        for (index, outcome) in Outcome::ALL.into_iter().enumerate() {
            assert_eq!(outcome as usize, index);
            // What the metrics say of the names.
            let goes_on = ["pass", "decap"]
                .iter()
                .any(|p| outcome.name().starts_with(p));
            assert_eq!(outcome.verdict() == Verdict::Pass, goes_on, "{outcome:?}");
        }
        let names: HashSet<_> = Outcome::ALL.map(Outcome::name).into();
        let sentences: HashSet<_> = Outcome::ALL.map(Outcome::sentence).into();
        assert_eq!(
            (names.len(), sentences.len()),
            (Outcome::COUNT, Outcome::COUNT)
        );
    }

    /// A packet of this version that says it is so long.
    fn head(version: u8, len: u16) -> Vec<u8> {
        let mut packet = vec![0; IPV6_LEN];
        packet[0] = version << 4 | 5;
        let (at, field) = match version {
            4 => (2, len),
            _ => (4, len.wrapping_sub(IPV6_LEN as u16)),
        };
        packet[at..at + 2].copy_from_slice(&field.to_be_bytes());
        packet
    }

    proptest! {
        /// Whatever is inside, it is taken out only if the tunnel has all of it.
        #[test]
        fn nothing_is_taken_from_behind_the_tunnel(
            version in 3u8..8,
            len: u16,
            carries in 0usize..3,
            end in 0usize..2000,
            bytes in 0usize..2000,
            v6_outside: bool,
            fields: (u8, u8),
        ) {
            let mut frame = head(version, len);
            frame.resize(bytes, 0);
            if let Some(byte) = frame.get_mut(1) {
                *byte = fields.0;
            }
            let carries = [
                Carries::Ip(Family::V4), Carries::Ip(Family::V6), Carries::Gue,
            ][carries];
            let family = if v6_outside { Family::V6 } else { Family::V4 };
            let outer = u16::from_ne_bytes([0x45, fields.1]);
            let tunnel = Tunnel { carries, is_fragment: false, inner: 0, end };
            let Ok(inner) = open(&frame[..], &tunnel, outer, family) else {
                return Ok(());
            };
            let (needs, says) = match inner.family {
                Family::V4 => (4, len),
                // What a length in 16 bits comes to.
                Family::V6 => (6, len.wrapping_sub(40)),
            };
            prop_assert_eq!(version, needs);
            let total = match inner.family {
                Family::V4 => usize::from(says).max(IPV4_LEN),
                Family::V6 => usize::from(says) + IPV6_LEN,
            };
            prop_assert!(total <= end);
            if let Carries::Ip(announced) = carries {
                prop_assert_eq!(announced, inner.family);
            }
            prop_assert_eq!(carries == Carries::Gue, inner.outcome == Outcome::DecapGue);
        }

        /// Of any bytes at all, nothing lies outside of the packet.
        #[test]
        fn a_tunnel_lies_inside_of_its_packet(
            mut frame in prop::collection::vec(any::<u8>(), 34..200),
            proto in prop::sample::select(&[4u8, 41, 17][..]),
        ) {
            let port = 6080u16.to_be();
            frame[14] = 0x45;
            let total = (frame.len() as u16 - 14).to_be_bytes();
            frame[16..18].copy_from_slice(&total);
            frame[20..22].fill(0);
            frame[23] = proto;
            if let Some(ports) = frame.get_mut(36..38) {
                ports.copy_from_slice(&port.to_ne_bytes());
            }
            if let Ok(ip) = parse::ipv4(&frame[..], 14)
                && let Some(tunnel) = find(&frame[..], &ip, port)
            {
                prop_assert!(34 <= tunnel.inner && tunnel.inner <= tunnel.end);
                prop_assert!(tunnel.end <= frame.len());
            }
        }
    }
}
