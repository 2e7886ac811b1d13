//! TCP, UDP and ICMP headers, in both families.

use super::{Row, Table, table::row, v4, v6};
use crate::packet::{ACK, ETH, Edit as _, IPV4, IPV6, Ip, PSH, SYN, proto};
use edge_common::reason::Reason::{
    self, IcmpTruncated, Pass, TcpBadOffset, TcpTruncated, UdpBadLength, UdpTruncated,
};

/// A way to make a packet from one without payload.
pub(super) type Make = fn(Ip) -> Vec<u8>;

pub(super) fn tables() -> Vec<Table> {
    vec![
        Table::enforced("TCP header", both(&TCP)),
        Table::enforced("UDP header", both(&UDP)),
        Table::enforced("ICMP header", [both(&ICMP), icmp()].concat()),
    ]
}

/// The rows in both families.
pub(super) fn both(cases: &[(&str, Make, Reason)]) -> Vec<Row> {
    let mut rows = Vec::new();
    for (family, packet) in [("IPv4", v4()), ("IPv6", v6())] {
        for (what, make, ends) in cases {
            rows.push(row(
                &format!("{family}, {what}"),
                make(packet.clone()),
                *ends,
            ));
        }
    }
    rows
}

/// Where the transport header of a packet without options and extension headers is.
fn transport(frame: &[u8]) -> usize {
    if frame[ETH] >> 4 == 4 {
        ETH + IPV4
    } else {
        ETH + IPV6
    }
}

/// With other bytes at an offset from the transport header.
fn put(frame: Vec<u8>, at: usize, bytes: &[u8]) -> Vec<u8> {
    let start = transport(&frame);
    frame.with(start + at, bytes)
}

/// A TCP segment with this data offset in bytes, followed by `len` bytes.
fn tcp_offset(packet: Ip, offset: u8, len: usize) -> Vec<u8> {
    put(
        packet.tcp_with(ACK, 0, len).build(),
        12,
        &[(offset / 4) << 4],
    )
}

/// A UDP datagram of 8 bytes with `len` of payload that claims this length.
fn udp_length(packet: Ip, claims: u16, len: usize) -> Vec<u8> {
    put(packet.udp(len).build(), 4, &claims.to_be_bytes())
}

/// `len` bytes of a TCP header.
fn tcp_bytes(packet: Ip, len: usize) -> Ip {
    let mut header = [0; 60];
    header[12] = 0x50;
    header[13] = ACK;
    packet.payload(proto::TCP, &header[..len])
}

const TCP: [(&str, Make, Reason); 19] = [
    ("20 bytes", |p| tcp_bytes(p, 20).build(), Pass),
    ("19 bytes", |p| tcp_bytes(p, 19).build(), TcpTruncated),
    (
        "19 bytes and padding",
        |p| tcp_bytes(p, 19).pad(40).build(),
        TcpTruncated,
    ),
    (
        "13 bytes, all but the flags",
        |p| tcp_bytes(p, 13).build(),
        TcpTruncated,
    ),
    ("1 byte", |p| tcp_bytes(p, 1).build(), TcpTruncated),
    ("no byte", |p| tcp_bytes(p, 0).build(), TcpTruncated),
    (
        "no byte and padding",
        |p| tcp_bytes(p, 0).pad(40).build(),
        TcpTruncated,
    ),
    ("data", |p| p.tcp_with(ACK | PSH, 0, 1000).build(), Pass),
    ("options, 4 bytes", |p| p.tcp_with(SYN, 4, 0).build(), Pass),
    (
        "options, 40 bytes",
        |p| p.tcp_with(SYN, 40, 0).build(),
        Pass,
    ),
    ("offset 0", |p| tcp_offset(p, 0, 40), TcpBadOffset),
    ("offset 4 bytes", |p| tcp_offset(p, 4, 40), TcpBadOffset),
    ("offset 16 bytes", |p| tcp_offset(p, 16, 40), TcpBadOffset),
    (
        "offset 24 bytes of 23",
        |p| tcp_offset(p, 24, 3),
        TcpBadOffset,
    ),
    ("offset 24 bytes of 24", |p| tcp_offset(p, 24, 4), Pass),
    (
        "offset 60 bytes of 59",
        |p| tcp_offset(p, 60, 39),
        TcpBadOffset,
    ),
    ("offset 60 bytes of 60", |p| tcp_offset(p, 60, 40), Pass),
    (
        "offset into the padding",
        |p| tcp_offset(p.pad(40), 24, 0),
        TcpBadOffset,
    ),
    ("ports 0", |p| put(p.tcp(SYN).build(), 0, &[0; 4]), Pass),
];

const UDP: [(&str, Make, Reason); 14] = [
    ("8 bytes", |p| p.udp(0).build(), Pass),
    (
        "7 bytes",
        |p| p.payload(proto::UDP, [0; 7]).build(),
        UdpTruncated,
    ),
    (
        "7 bytes and padding",
        |p| p.payload(proto::UDP, [0; 7]).pad(40).build(),
        UdpTruncated,
    ),
    (
        "no byte",
        |p| p.payload(proto::UDP, []).build(),
        UdpTruncated,
    ),
    ("data", |p| p.udp(512).build(), Pass),
    ("length 0", |p| udp_length(p, 0, 8), UdpBadLength),
    ("length 7", |p| udp_length(p, 7, 8), UdpBadLength),
    ("length 8 of 16", |p| udp_length(p, 8, 8), Pass),
    ("length 15 of 16", |p| udp_length(p, 15, 8), Pass),
    ("length 17 of 16", |p| udp_length(p, 17, 8), UdpBadLength),
    (
        "length 17 of 16 and padding",
        |p| udp_length(p.pad(8), 17, 8),
        UdpBadLength,
    ),
    ("length 65,535", |p| udp_length(p, 65_535, 8), UdpBadLength),
    ("no checksum", |p| put(p.udp(8).build(), 6, &[0, 0]), Pass),
    ("ports 0", |p| put(p.udp(8).build(), 0, &[0; 4]), Pass),
];

const ICMP: [(&str, Make, Reason); 4] = [
    ("echo", |p| p.icmp(8, 56).build(), Pass),
    ("8 bytes", |p| p.icmp(3, 0).build(), Pass),
    ("type 255", |p| p.icmp(255, 8).build(), Pass),
    ("a large one", |p| p.icmp(8, 1400).build(), Pass),
];

fn icmp() -> Vec<Row> {
    let icmp = |packet: Ip, len| packet.payload(proto::ICMP, vec![8; len]);
    let icmpv6 = |packet: Ip, len| packet.payload(proto::ICMPV6, vec![128; len]);
    vec![
        row("ICMP, 7 bytes", icmp(v4(), 7), IcmpTruncated),
        row(
            "ICMP, 7 bytes and padding",
            icmp(v4(), 7).pad(40),
            IcmpTruncated,
        ),
        row("ICMP, no byte", icmp(v4(), 0), IcmpTruncated),
        row("ICMP, 8 bytes", icmp(v4(), 8), Pass),
        row("ICMP in IPv6, 7 bytes", icmp(v6(), 7), IcmpTruncated),
        row("ICMPv6, 3 bytes", icmpv6(v6(), 3), IcmpTruncated),
        row(
            "ICMPv6, 3 bytes and padding",
            icmpv6(v6(), 3).pad(40),
            IcmpTruncated,
        ),
        row("ICMPv6, no byte", icmpv6(v6(), 0), IcmpTruncated),
        row("ICMPv6, 4 bytes", icmpv6(v6(), 4), Pass),
        row("ICMPv6 in IPv4, 3 bytes", icmpv6(v4(), 3), IcmpTruncated),
        row("ICMPv6 in IPv4, 4 bytes", icmpv6(v4(), 4), Pass),
    ]
}
