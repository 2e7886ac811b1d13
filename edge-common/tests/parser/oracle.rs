//! What must hold of the parser over any bytes at all: it says what a second,
//! naive reading of the headers says, and it stays inside the frame.
//!
//! The property tests use this, and so do the fuzz targets in `edge-common/fuzz`.

use core::cell::Cell;
use std::fmt::Write as _;

use edge_common::{
    parse::{self, Arp, Fragment, Ip, Kind, Packet, PacketSource, Transport, V4, V6},
    reason::Reason,
};

/// Checks everything about a frame.
///
/// # Panics
/// When the parser is wrong; the message has the frame in the form of `tests/regressions`.
pub(crate) fn check(frame: &[u8]) {
    let source = Watched::whole(frame);
    let found = parse::parse(&source);
    assert_eq!(found, read(frame), "parser, reading{}", hex(frame));
    let end = match found {
        Ok(Packet::Ipv4(ip)) => bounds(frame, &ip, 20),
        Ok(Packet::Ipv6(ip)) => bounds(frame, &ip, 40),
        _ => frame.len(),
    };
    let reach = source.reach.get();
    assert!(reach <= end, "reads up to {reach} of {end}{}", hex(frame));
}

/// Checks the frame when only its first `len` bytes have come, and when only those lie in the first
/// buffer.
///
/// # Panics
/// As [`check`], and when `len` is more than the frame has.
pub(crate) fn check_cut(frame: &[u8], len: usize) {
    let whole = parse::parse(frame);
    let cut = &frame[..len];
    check(cut);
    if let Ok(Packet::Ipv4(Ip { end, .. }) | Packet::Ipv6(Ip { end, .. })) = whole {
        let found = parse::parse(cut);
        if len < end {
            assert!(found.is_err(), "{len} bytes of {end}{}", hex(frame));
        } else {
            assert_eq!(found, whole, "without padding{}", hex(frame));
        }
    }
    let source = Watched {
        linear: cut,
        ..Watched::whole(frame)
    };
    let found = parse::parse(&source);
    assert!(
        found == whole || found.is_err_and(is_truncated),
        "{len} bytes in the first buffer: {found:?}, not {whole:?}{}",
        hex(frame)
    );
}

const fn is_truncated(reason: Reason) -> bool {
    matches!(
        reason,
        Reason::EthTruncated
            | Reason::ArpMalformed
            | Reason::Ipv4Truncated
            | Reason::Ipv6Truncated
            | Reason::Ipv6ExtTruncated
            | Reason::TcpTruncated
            | Reason::UdpTruncated
            | Reason::IcmpTruncated
    )
}

/// Checks that the parts of a packet lie inside each other; gives its end.
fn bounds<A>(frame: &[u8], ip: &Ip<A>, header: usize) -> usize {
    let at = ip.transport.offset;
    let show = || hex(frame);
    assert!((14 + header..=ip.end).contains(&at), "starts{}", show());
    assert!(ip.end <= frame.len(), "ends beyond the frame{}", show());
    if let Fragment::Later { offset } = ip.fragment {
        assert!(offset != 0 && offset % 8 == 0, "at {offset}{}", show());
        let nothing = Transport {
            kind: ip.transport.kind,
            offset: at,
            ..Transport::default()
        };
        assert_eq!(ip.transport, nothing, "a later fragment{}", show());
    }
    assert!(
        !ip.transport.truncated || ip.fragment == Fragment::First,
        "cut off, and no first fragment{}",
        show()
    );
    ip.end
}

/// The bytes as a regression file has them.
fn hex(frame: &[u8]) -> String {
    let mut text = String::new();
    for line in frame.chunks(32) {
        text.push('\n');
        for byte in line {
            let _ = write!(text, "{byte:02x}");
        }
    }
    text
}

/// A frame of which the first bytes can be read, and how far it was.
struct Watched<'a> {
    linear: &'a [u8],
    len: usize,
    reach: Cell<usize>,
}

impl<'a> Watched<'a> {
    const fn whole(frame: &'a [u8]) -> Self {
        Self {
            linear: frame,
            len: frame.len(),
            reach: Cell::new(0),
        }
    }

    fn reached<T>(&self, end: usize, read: Option<T>) -> Option<T> {
        if read.is_some() {
            self.reach.set(self.reach.get().max(end));
        }
        read
    }
}

impl PacketSource for Watched<'_> {
    fn words<const N: usize>(&self, offset: usize) -> Option<[u32; N]> {
        self.reached(offset + 4 * N, self.linear.words(offset))
    }

    fn doubles<const N: usize>(&self, offset: usize) -> Option<[u64; N]> {
        self.reached(offset + 8 * N, self.linear.doubles(offset))
    }

    fn half(&self, offset: usize) -> Option<u16> {
        self.reached(offset + 2, self.linear.half(offset))
    }

    fn byte(&self, offset: usize) -> Option<u8> {
        self.reached(offset + 1, self.linear.byte(offset))
    }

    fn holds(&self, len: usize) -> bool {
        self.len >= len
    }
}

/// The second reading: one header after the other is split off from what remains.
fn read(frame: &[u8]) -> Result<Packet, Reason> {
    let mut rest = frame.get(12..).ok_or(Reason::EthTruncated)?;
    let mut tags = 0;
    loop {
        let (kind, behind) = rest.split_at_checked(2).ok_or(Reason::EthTruncated)?;
        match be16(kind, 0) {
            0x8100 | 0x88a8 | 0x9100 if tags == 2 => return Err(Reason::VlanTooDeep),
            0x8100 | 0x88a8 | 0x9100 => {
                tags += 1;
                rest = behind.get(2..).ok_or(Reason::EthTruncated)?;
            }
            0x0800 => return read_ipv4(frame, behind).map(Packet::Ipv4),
            0x86dd => return read_ipv6(frame, behind).map(Packet::Ipv6),
            0x0806 => return read_arp(frame, behind).map(Packet::Arp),
            _ => return Ok(Packet::Other),
        }
    }
}

fn read_arp(frame: &[u8], packet: &[u8]) -> Result<Arp, Reason> {
    let known = packet.len() >= 28
        && packet.starts_with(&[0, 1, 8, 0, 6, 4])
        && (1..=255).contains(&be16(packet, 6));
    if !known {
        return Err(Reason::ArpMalformed);
    }
    Ok(Arp {
        sender_mac: array(packet, 8),
        sender_ip: u32::from_ne_bytes(array(packet, 14)),
        frame_source: array(frame, 6),
    })
}

fn read_ipv4(frame: &[u8], rest: &[u8]) -> Result<Ip<V4>, Reason> {
    if rest.len() < 20 {
        return Err(Reason::Ipv4Truncated);
    }
    if rest[0] / 16 != 4 {
        return Err(Reason::Ipv4BadVersion);
    }
    let header_len = usize::from(rest[0] % 16) * 4;
    let total = usize::from(be16(rest, 2));
    if header_len < 20 || total < header_len {
        return Err(Reason::Ipv4BadIhl);
    }
    let packet = rest.get(..total).ok_or(Reason::Ipv4BadLength)?;
    let (header, payload) = packet.split_at(header_len);
    let more = header[6] & 0x20 != 0;
    let start = usize::from(be16(header, 6) % 0x2000) * 8;
    let fragment = read_fragment(start, more, payload, header_len)?;
    let proto = header[9];
    Ok(Ip {
        source: u32::from_ne_bytes(array(header, 12)),
        dest: u32::from_ne_bytes(array(header, 16)),
        end: offset_in(frame, payload) + payload.len(),
        proto,
        fragment,
        transport: read_transport(frame, payload, proto, fragment)?,
    })
}

fn read_ipv6(frame: &[u8], rest: &[u8]) -> Result<Ip<V6>, Reason> {
    let Some((header, rest)) = rest.split_at_checked(40) else {
        return Err(Reason::Ipv6Truncated);
    };
    if header[0] / 16 != 6 {
        return Err(Reason::Ipv6BadVersion);
    }
    let len = usize::from(be16(header, 4));
    let whole = rest.get(..len).ok_or(Reason::Ipv6BadLength)?;
    let (mut proto, mut rest) = (header[6], whole);
    let mut before = Vec::new();
    let mut fragment = Fragment::Whole;
    // Hop-by-hop, routing, fragment, authentication, destination options, mobility.
    while [0, 43, 44, 51, 60, 135].contains(&proto) && !matches!(fragment, Fragment::Later { .. }) {
        if before.len() == 6 {
            return Err(Reason::Ipv6ExtTooMany);
        }
        if proto == 0 && !before.is_empty() {
            return Err(Reason::Ipv6ExtOrder);
        }
        let units = rest.get(1).map_or(0, |&units| usize::from(units));
        let len = match proto {
            44 => 8,
            51 => 4 * (units + 2),
            _ => 8 * (units + 1),
        };
        let (extension, behind) = rest.split_at_checked(len).ok_or(Reason::Ipv6ExtTruncated)?;
        if proto == 43 && extension[2] == 0 {
            return Err(Reason::Ipv6RoutingType0);
        }
        if proto == 44 {
            // Behind an atomic fragment's header (RFC 6946) another one counts by itself.
            if fragment != Fragment::Whole {
                return Err(Reason::Ipv6ExtOrder);
            }
            let start = usize::from(be16(extension, 2) & !7);
            let more = extension[3] & 1 != 0;
            fragment = read_fragment(start, more, behind, whole.len() - rest.len())?;
        }
        before.push(proto);
        (proto, rest) = (extension[0], behind);
    }
    let address = |at: usize| [0, 8].map(|n| u64::from_ne_bytes(array(header, at + n)));
    Ok(Ip {
        source: address(8),
        dest: address(24),
        end: offset_in(frame, rest) + rest.len(),
        proto,
        fragment,
        transport: read_transport(frame, rest, proto, fragment)?,
    })
}

/// `before` are the bytes that stand before the fragment's payload in the reassembled packet and
/// count in its length.
fn read_fragment(
    start: usize,
    more: bool,
    payload: &[u8],
    before: usize,
) -> Result<Fragment, Reason> {
    match (start, more) {
        (0, false) => Ok(Fragment::Whole),
        _ if before + start + payload.len() > 65_535 => Err(Reason::FragmentBeyondEnd),
        (_, true) if !payload.len().is_multiple_of(8) => Err(Reason::FragmentBeyondEnd),
        (0, true) => Ok(Fragment::First),
        (start, _) => Ok(Fragment::Later {
            offset: u16::try_from(start).expect("13 bits times 8"),
        }),
    }
}

fn read_transport(
    frame: &[u8],
    segment: &[u8],
    proto: u8,
    fragment: Fragment,
) -> Result<Transport, Reason> {
    let mut transport = Transport {
        kind: match (proto, fragment) {
            (6, Fragment::Later { .. }) => Kind::Other,
            (6, _) => Kind::Tcp,
            (17, _) => Kind::Udp,
            (1 | 58, _) => Kind::Icmp,
            _ => Kind::Other,
        },
        offset: offset_in(frame, segment),
        ..Transport::default()
    };
    let (needed, too_short) = match proto {
        6 => (20, Reason::TcpTruncated),
        17 => (8, Reason::UdpTruncated),
        1 => (8, Reason::IcmpTruncated),
        58 => (4, Reason::IcmpTruncated),
        _ => return Ok(transport),
    };
    match fragment {
        Fragment::Later { .. } => return Ok(transport),
        Fragment::Whole if segment.len() < needed => return Err(too_short),
        Fragment::First if segment.len() < needed => {
            transport.truncated = true;
            if proto == 6 {
                transport.kind = Kind::TcpHead;
            }
            return Ok(transport);
        }
        Fragment::First | Fragment::Whole => {}
    }
    let is_first = fragment == Fragment::First;
    match proto {
        6 => {
            let header = usize::from(segment[12] / 16) * 4;
            let is_cut = header > segment.len();
            if header < 20 || is_cut && !is_first {
                return Err(Reason::TcpBadOffset);
            }
            transport.truncated = is_cut;
            if is_cut {
                transport.kind = Kind::TcpHead;
            }
            transport.tcp_flags = segment[13];
        }
        17 => {
            let len = usize::from(be16(segment, 4));
            if len < 8 || len > segment.len() && !is_first {
                return Err(Reason::UdpBadLength);
            }
        }
        _ => {
            transport.icmp_type = segment[0];
            return Ok(transport);
        }
    }
    transport.source_port = u16::from_ne_bytes(array(segment, 0));
    transport.dest_port = u16::from_ne_bytes(array(segment, 2));
    Ok(transport)
}

/// Where a part of the frame starts.
fn offset_in(frame: &[u8], part: &[u8]) -> usize {
    part.as_ptr().addr() - frame.as_ptr().addr()
}

fn be16(bytes: &[u8], at: usize) -> u16 {
    u16::from_be_bytes(array(bytes, at))
}

fn array<const N: usize>(bytes: &[u8], at: usize) -> [u8; N] {
    bytes[at..at + N].try_into().expect("N bytes")
}
