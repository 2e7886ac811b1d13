//! Fragments of both families, under both policies.

use super::{
    Row, Table,
    table::{drop_all_fragments, row},
    transport::{Make, both},
    v4, v6,
};
use crate::packet::{
    ACK,
    Extension::{DestOpts, HopByHop},
    FIN, Ip, SYN, proto,
};
use edge_common::reason::Reason::{
    self, Fragment, FragmentBeyondEnd, FragmentOverlapRisk, FragmentTiny, Ipv6ExtTruncated, Land,
    Pass, TcpBadOffset, TcpSynFin, UdpBadLength,
};

pub(super) fn tables() -> Vec<Table> {
    let all = [both(&ALL), all_of_ipv6()].concat();
    vec![
        Table::enforced(
            "fragments, risky ones dropped",
            [both(&RISKY), risky_of_one_family()].concat(),
        ),
        Table::new("fragments, all dropped", drop_all_fragments(), all),
        Table::enforced("fragments beyond the end", beyond_end()),
    ]
}

/// A fragment of this many bytes at an offset.
fn at(packet: Ip, proto: u8, offset: u16, more: bool, len: usize) -> Ip {
    packet
        .fragment(offset, more)
        .payload(proto, vec![0xff; len])
}

/// The first fragment of a TCP segment with `options` bytes of options.
fn first_tcp(packet: Ip, options: usize, len: usize) -> Vec<u8> {
    packet.tcp_with(ACK, options, 400).piece(0..len).build()
}

const RISKY: [(&str, Make, Reason); 26] = [
    ("first, UDP", |p| p.udp(1000).piece(0..800).build(), Pass),
    (
        "first, UDP header only",
        |p| p.udp(1000).piece(0..8).build(),
        Pass,
    ),
    (
        "first, nothing of UDP",
        |p| p.udp(1000).piece(0..0).build(),
        FragmentTiny,
    ),
    ("middle, UDP", |p| p.udp(1000).piece(800..960).build(), Pass),
    (
        "last, UDP, 48 bytes",
        |p| p.udp(1000).piece(960..1008).build(),
        Pass,
    ),
    (
        "last, UDP, odd length",
        |p| p.udp(1001).piece(960..1009).build(),
        Pass,
    ),
    (
        "second, UDP, behind its header",
        |p| p.udp(1000).piece(8..800).build(),
        Pass,
    ),
    (
        "first, UDP length of the whole",
        |p| p.udp(60_000).piece(0..1400).build(),
        Pass,
    ),
    (
        "first, UDP length 7",
        |p| {
            p.fragment(0, true)
                .payload(proto::UDP, [0, 1, 0, 1, 0, 7, 0, 0])
                .build()
        },
        UdpBadLength,
    ),
    ("first, TCP", |p| first_tcp(p, 0, 400), Pass),
    (
        "first, TCP header only, 24 bytes",
        |p| first_tcp(p, 4, 24),
        Pass,
    ),
    ("first, TCP, 8 bytes", |p| first_tcp(p, 0, 8), FragmentTiny),
    (
        "first, TCP, 16 bytes",
        |p| first_tcp(p, 0, 16),
        FragmentTiny,
    ),
    ("first, TCP, nothing", |p| first_tcp(p, 0, 0), FragmentTiny),
    (
        "first, TCP, options cut off",
        |p| first_tcp(p, 20, 32),
        FragmentTiny,
    ),
    (
        "first, TCP, options just there",
        |p| first_tcp(p, 20, 40),
        Pass,
    ),
    (
        "first, TCP, offset 16",
        |p| {
            let mut segment = [0; 24];
            segment[12] = 0x40;
            p.fragment(0, true).payload(proto::TCP, segment).build()
        },
        TcpBadOffset,
    ),
    (
        "first, TCP, impossible flags",
        |p| p.tcp_with(SYN | FIN, 0, 400).piece(0..24).build(),
        TcpSynFin,
    ),
    (
        "second, TCP, offset 8",
        |p| at(p, proto::TCP, 8, true, 400).build(),
        FragmentOverlapRisk,
    ),
    (
        "last, TCP, offset 8",
        |p| at(p, proto::TCP, 8, false, 9).build(),
        FragmentOverlapRisk,
    ),
    (
        "second, TCP, offset 16",
        |p| at(p, proto::TCP, 16, true, 400).build(),
        FragmentOverlapRisk,
    ),
    (
        "second, TCP, offset 24",
        |p| at(p, proto::TCP, 24, true, 400).build(),
        Pass,
    ),
    (
        "later, TCP, offset 1,480",
        |p| at(p, proto::TCP, 1480, false, 3).build(),
        Pass,
    ),
    (
        "first, 7 bytes of ICMP and no more",
        |p| p.fragment(0, true).payload(99, []).build(),
        Pass,
    ),
    (
        "first, protocol 99",
        |p| at(p, 99, 0, true, 8).build(),
        Pass,
    ),
    (
        "later, protocol 99",
        |p| at(p, 99, 8, true, 8).build(),
        Pass,
    ),
];

fn risky_of_one_family() -> Vec<Row> {
    vec![
        row(
            "IPv4, may be fragmented, but is not",
            {
                // Offset 0 and no more: the flag "don't fragment" is not set.
                v4().udp(8).fragment(0, false)
            },
            Pass,
        ),
        row(
            "IPv4, later, behind options",
            at(v4().options(40), proto::UDP, 800, false, 30),
            Pass,
        ),
        row(
            "IPv6, first, behind options",
            v6().extension(HopByHop(8)).udp(1000).piece(0..800),
            Pass,
        ),
        row(
            "IPv6, first, with options behind",
            v6().fragment(0, true).extension(DestOpts(8)).udp(8),
            Pass,
        ),
        row(
            "IPv6, first, that ends within options",
            {
                v6().fragment(0, true)
                    .payload(60, [17, 1, 1, 4, 0, 0, 0, 0])
            },
            Ipv6ExtTruncated,
        ),
        row(
            "IPv6, first, that ends behind options (RFC 7112)",
            {
                v6().fragment(0, true)
                    .extension(DestOpts(8))
                    .payload(proto::TCP, [])
            },
            FragmentTiny,
        ),
        row("IPv6, atomic", v6().fragment(0, false).tcp(ACK), Pass),
    ]
}

const ALL: [(&str, Make, Reason); 8] = [
    ("first", |p| p.udp(1000).piece(0..800).build(), Fragment),
    ("middle", |p| p.udp(1000).piece(800..960).build(), Fragment),
    ("last", |p| p.udp(1000).piece(960..1008).build(), Fragment),
    ("tiny", |p| first_tcp(p, 0, 8), Fragment),
    (
        "overlap risk",
        |p| at(p, proto::TCP, 8, true, 8).build(),
        Fragment,
    ),
    ("protocol 99", |p| at(p, 99, 0, true, 8).build(), Fragment),
    ("not fragmented", |p| p.udp(1000).build(), Pass),
    (
        "not fragmented, though it may be",
        |p| p.udp(8).fragment(0, false).build(),
        Pass,
    ),
];

fn all_of_ipv6() -> Vec<Row> {
    vec![
        row("IPv6, atomic, TCP", v6().fragment(0, false).tcp(SYN), Pass),
        row(
            "IPv6, behind options",
            v6().extension(HopByHop(8)).udp(1000).piece(0..800),
            Fragment,
        ),
        row(
            "from itself, and a fragment",
            {
                crate::packet::ip(super::V6_DEST, super::V6_DEST)
                    .udp(1000)
                    .piece(0..800)
            },
            Land,
        )
        .also(&[Fragment]),
    ]
}

fn beyond_end() -> Vec<Row> {
    let v4_end = |offset, len| at(v4(), 99, offset, false, len);
    let v6_end = |offset, len| at(v6(), 99, offset, false, len);
    vec![
        // 65,512 + 3 + the header of 20 = 65,535.
        row("IPv4, ends at the last byte", v4_end(65_512, 3), Pass),
        row(
            "IPv4, ends one byte beyond",
            v4_end(65_512, 4),
            FragmentBeyondEnd,
        ),
        row(
            "IPv4, ping of death",
            v4_end(65_528, 1400),
            FragmentBeyondEnd,
        ),
        row(
            "IPv4, last offset, one byte",
            v4_end(65_528, 1),
            FragmentBeyondEnd,
        ),
        row(
            "IPv4, options count",
            at(v4().options(4), 99, 65_512, false, 1),
            FragmentBeyondEnd,
        ),
        row(
            "IPv4, the middle is beyond",
            at(v4(), 99, 65_520, true, 8),
            FragmentBeyondEnd,
        ),
        row(
            "IPv4, no multiple of 8",
            at(v4(), 17, 8, true, 12),
            FragmentBeyondEnd,
        ),
        row(
            "IPv4, first, no multiple of 8",
            at(v4(), 17, 0, true, 15),
            FragmentBeyondEnd,
        ),
        row(
            "IPv4, last, no multiple of 8",
            at(v4(), 17, 8, false, 15),
            Pass,
        ),
        // The payload length does not count the fixed header, and the fragment
        // header is gone from the whole (RFC 8200 4.5): 65,528 + 7 = 65,535.
        row("IPv6, ends at the last byte", v6_end(65_528, 7), Pass),
        row(
            "IPv6, ends one byte beyond",
            v6_end(65_528, 8),
            FragmentBeyondEnd,
        ),
        row(
            "IPv6, ping of death",
            v6_end(65_528, 1400),
            FragmentBeyondEnd,
        ),
        row(
            "IPv6, options before count",
            at(v6().extension(DestOpts(8)), 99, 65_520, false, 8),
            FragmentBeyondEnd,
        ),
        row(
            "IPv6, no multiple of 8",
            at(v6(), 17, 8, true, 12),
            FragmentBeyondEnd,
        ),
        row(
            "IPv6, first, no multiple of 8",
            at(v6(), 17, 0, true, 15),
            FragmentBeyondEnd,
        ),
        row(
            "IPv6, last, no multiple of 8",
            at(v6(), 17, 8, false, 15),
            Pass,
        ),
    ]
}
