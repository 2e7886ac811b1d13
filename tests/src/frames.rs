//! Frames of the traffic that tests send: whole, with correct checksums.

use std::net::IpAddr;

use crate::packet;

/// A MAC address.
pub type Mac = [u8; 6];

/// What is inside the IP packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Payload {
    /// A UDP packet to this port.
    Udp(u16),
    /// A TCP segment with exactly these flags to port 80.
    Tcp(u8),
    /// An ICMP or ICMPv6 echo request.
    Echo,
}

/// The port that UDP packets and TCP segments come from.
pub const CLIENT_PORT: u16 = 40_000;

/// TCP's SYN flag.
pub const SYN: u8 = 0x02;
/// TCP's ACK flag.
pub const ACK: u8 = 0x10;

/// Bytes behind the transport header: room for a marker, and Ethernet's minimum.
const DATA: usize = 24;

/// A frame from `source` to `destination`, which are of the same family.
///
/// # Panics
/// When they are not.
#[must_use]
pub fn frame(macs: (Mac, Mac), source: IpAddr, destination: IpAddr, payload: Payload) -> Vec<u8> {
    sized(macs, source, destination, payload, DATA)
}

/// The same with so many bytes of data.
///
/// # Panics
/// When the addresses are of different families, or there is more data than a packet holds.
#[must_use]
pub fn sized(
    (from, to): (Mac, Mac),
    source: IpAddr,
    destination: IpAddr,
    payload: Payload,
    data: usize,
) -> Vec<u8> {
    let [p, q] = CLIENT_PORT.to_be_bytes();
    let (mut transport, protocol) = match (payload, source) {
        (Payload::Udp(port), _) => {
            let length = u16::try_from(8 + data).expect("short enough");
            let [a, b] = port.to_be_bytes();
            let [c, d] = length.to_be_bytes();
            (vec![p, q, a, b, c, d, 0, 0], 17)
        }
        (Payload::Tcp(flags), _) => {
            let mut t = vec![p, q, 0, 80];
            t.extend([0, 0, 0, 1, 0, 0, 0, 0, 0x50, flags, 0xff, 0xff, 0, 0, 0, 0]);
            (t, 6)
        }
        (Payload::Echo, IpAddr::V4(_)) => (vec![8, 0, 0, 0, 0, 1, 0, 1], 1),
        (Payload::Echo, IpAddr::V6(_)) => (vec![128, 0, 0, 0, 0, 1, 0, 1], 58),
    };
    transport.resize(transport.len() + data, 0);
    let length = u16::try_from(transport.len()).expect("short enough");
    let mut out = Vec::with_capacity(usize::from(length) + 54);
    out.extend(to);
    out.extend(from);
    let mut pseudo = Vec::new();
    match (source, destination) {
        (IpAddr::V4(source), IpAddr::V4(destination)) => {
            out.extend([8, 0]);
            let mut ip = vec![0x45, 0];
            ip.extend((length + 20).to_be_bytes());
            ip.extend([0, 0, 0x40, 0, 64, protocol, 0, 0]);
            ip.extend(source.octets());
            ip.extend(destination.octets());
            let sum = checksum(&ip).to_be_bytes();
            ip[10..12].copy_from_slice(&sum);
            if protocol != 1 {
                pseudo.extend(&ip[12..20]);
                pseudo.extend([0, protocol]);
                pseudo.extend(length.to_be_bytes());
            }
            out.extend(ip);
        }
        (IpAddr::V6(source), IpAddr::V6(destination)) => {
            out.extend([0x86, 0xdd, 0x60, 0, 0, 0]);
            out.extend(length.to_be_bytes());
            out.extend([protocol, 64]);
            out.extend(source.octets());
            out.extend(destination.octets());
            pseudo.extend(source.octets());
            pseudo.extend(destination.octets());
            pseudo.extend(u32::from(length).to_be_bytes());
            pseudo.extend([0, 0, 0, protocol]);
        }
        (a, b) => panic!("{a} and {b} are not of one family"),
    }
    pseudo.extend(&transport);
    let sum = checksum(&pseudo).to_be_bytes();
    let at = match protocol {
        17 => 6,
        6 => 16,
        _ => 2,
    };
    transport[at..at + 2].copy_from_slice(&sum);
    out.extend(transport);
    out
}

/// A SYN to a port with the options of Linux, in its order: MSS, SACK permitted, timestamps,
/// window scale.
///
/// # Panics
/// When the addresses are of different families.
#[must_use]
pub fn linux_syn(macs: (Mac, Mac), source: IpAddr, destination: IpAddr, port: u16) -> Vec<u8> {
    let mss = match destination {
        IpAddr::V4(_) => 1460u16,
        IpAddr::V6(_) => 1440,
    };
    let [a, b] = mss.to_be_bytes();
    let options = [2, 4, a, b, 4, 2, 8, 10, 0, 0, 0, 7, 0, 0, 0, 0, 1, 3, 3, 7];
    segment(macs, source, destination, port, SYN, &options)
}

/// An acknowledgement to a port, without data, of a number that no cookie has but by chance.
///
/// # Panics
/// When the addresses are of different families.
#[must_use]
pub fn guess(macs: (Mac, Mac), source: IpAddr, destination: IpAddr, port: u16) -> Vec<u8> {
    let options = [1, 1, 8, 10, 0, 0, 0, 7, 0, 0, 0, 7];
    segment(macs, source, destination, port, ACK, &options)
}

/// A TCP segment without data.
fn segment(
    (from, to): (Mac, Mac),
    source: IpAddr,
    destination: IpAddr,
    port: u16,
    flags: u8,
    options: &[u8],
) -> Vec<u8> {
    let mut segment = Vec::from(CLIENT_PORT.to_be_bytes());
    segment.extend(port.to_be_bytes());
    let acknowledged = if flags & ACK == 0 { 0 } else { 0x1234_5678u32 };
    segment.extend([0, 0, 0, 1]);
    segment.extend(acknowledged.to_be_bytes());
    let words = u8::try_from(5 + options.len() / 4).unwrap_or(5);
    segment.extend([words << 4, flags, 0xff, 0xff, 0, 0, 0, 0]);
    segment.extend(options);
    let mut frame = packet::ip(&source.to_string(), &destination.to_string())
        .payload(packet::proto::TCP, segment)
        .build();
    frame.splice(..12, to.into_iter().chain(from));
    frame
}

/// The frame inside an IEEE 802.1Q tag.
#[must_use]
pub fn tagged(frame: &[u8], vlan: u16) -> Vec<u8> {
    let mut out = frame[..12].to_vec();
    out.extend([0x81, 0]);
    out.extend(vlan.to_be_bytes());
    out.extend(&frame[12..]);
    out
}

/// RFC 1071.
fn checksum(bytes: &[u8]) -> u16 {
    let mut sum = 0u32;
    for pair in bytes.chunks(2) {
        sum += u32::from(pair[0]) << 8 | pair.get(1).map_or(0, |b| u32::from(*b));
    }
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !u16::try_from(sum).unwrap_or(0)
}

/// The `n`th address from `base` on: sources of a flood.
#[must_use]
pub fn nth(base: IpAddr, n: u32) -> IpAddr {
    match base {
        IpAddr::V4(a) => IpAddr::V4(u32::from(a).wrapping_add(n).into()),
        IpAddr::V6(a) => IpAddr::V6(u128::from(a).wrapping_add(n.into()).into()),
    }
}
