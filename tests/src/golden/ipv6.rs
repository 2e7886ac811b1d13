//! The IPv6 header and its extension headers.

use super::{Row, Table, table::row, v6};
use crate::packet::{
    ACK, ETH, Edit as _,
    Extension::{self, Auth, DestOpts, Fragment, HopByHop, Mobility, Routing},
    IPV6, Ip, SYN, proto,
};
use edge_common::reason::Reason::{
    self, FragmentBeyondEnd, Ipv6BadLength, Ipv6BadVersion, Ipv6ExtOrder, Ipv6ExtTooMany,
    Ipv6ExtTruncated, Ipv6RoutingType0, Ipv6Truncated, Pass, TcpTruncated,
};

/// Offset of the payload length.
const LENGTH: usize = ETH + 4;
/// Offset of the first extension header.
const FIRST: usize = ETH + IPV6;

pub(super) fn tables() -> Vec<Table> {
    vec![
        Table::enforced("IPv6 header", headers()),
        Table::enforced(
            "IPv6 extension headers",
            [single(), chains(), broken()].concat(),
        ),
    ]
}

fn with(extensions: &[Extension], packet: Ip) -> Ip {
    extensions
        .iter()
        .fold(packet, |packet, e| packet.extension(*e))
}

fn headers() -> Vec<Row> {
    let udp = || v6().udp(8).build();
    let length = |n: u16| udp().with(LENGTH, &n.to_be_bytes());
    let large = |len: usize| v6().udp(len).build();
    vec![
        row("UDP", udp(), Pass),
        row("TCP", v6().tcp(SYN), Pass),
        row("ICMPv6", v6().icmp(128, 56), Pass),
        row("a header and no more", v6(), Pass),
        row(
            "one byte short of the header",
            v6().build().cut(ETH + IPV6 - 1),
            Ipv6Truncated,
        ),
        row(
            "one byte of the header",
            v6().build().cut(ETH + 1),
            Ipv6Truncated,
        ),
        row("version 4", udp().with(ETH, &[0x40]), Ipv6BadVersion),
        row("version 0", udp().with(ETH, &[0]), Ipv6BadVersion),
        row("version 7", udp().with(ETH, &[0x70]), Ipv6BadVersion),
        row(
            "traffic class and flow label",
            udp().with(ETH, &[0x6f, 0xff, 0xff, 0xff]),
            Pass,
        ),
        row("hop limit 0", udp().with(ETH + 7, &[0]), Pass),
        row("one byte more than the frame", length(17), Ipv6BadLength),
        row("payload length 65,535", length(65_535), Ipv6BadLength),
        row(
            "the frame ends behind the header",
            udp().cut(ETH + IPV6),
            Ipv6BadLength,
        ),
        row("padded", v6().udp(0).pad(18), Pass),
        row(
            "the transport header lies in the padding",
            v6().pad(40).build().with(ETH + 6, &[proto::TCP]),
            TcpTruncated,
        ),
        row("protocol 253", v6().payload(253, [0; 3]), Pass),
        row("encrypted (ESP)", v6().payload(50, [0; 40]), Pass),
        row("ICMP in IPv6", v6().payload(proto::ICMP, [0; 8]), Pass),
        row("IPv6 in IPv6", v6().payload(41, [0; 40]), Pass),
        row("in several buffers: 5,000 bytes", large(5000), Pass),
        row(
            "in several buffers: 9,000 bytes",
            v6().tcp_with(ACK, 12, 8928),
            Pass,
        ),
    ]
}

fn single() -> Vec<Row> {
    let cases = [
        ("hop-by-hop, 8 bytes", HopByHop(8)),
        ("hop-by-hop, 2,048 bytes", HopByHop(2048)),
        ("routing type 2", Routing(2, 24)),
        ("routing type 3", Routing(3, 8)),
        ("routing type 4 (segments)", Routing(4, 40)),
        ("routing type 255", Routing(255, 8)),
        ("authentication, 12 bytes", Auth(12)),
        ("authentication, 24 bytes", Auth(24)),
        ("authentication, 8 bytes, the shortest", Auth(8)),
        ("authentication, 1,028 bytes, the longest", Auth(1028)),
        ("destination options, 8 bytes", DestOpts(8)),
        ("destination options, 64 bytes", DestOpts(64)),
        ("mobility", Mobility(16)),
        ("atomic fragment (RFC 6946)", Fragment(0, false)),
    ];
    let mut rows = Vec::new();
    for (what, extension) in cases {
        let mut add = |what: String, packet: Ip, ends: Reason| rows.push(row(&what, packet, ends));
        let bare = || v6().extension(extension);
        add(format!("{what}, UDP"), bare().udp(8), Pass);
        add(format!("{what}, TCP"), bare().tcp(ACK), Pass);
        add(format!("{what}, ICMPv6"), bare().icmp(128, 0), Pass);
        add(format!("{what}, nothing"), bare(), Pass);
        add(
            format!("{what}, half a TCP header"),
            bare().payload(proto::TCP, [0; 10]),
            TcpTruncated,
        );
    }
    rows
}

fn chains() -> Vec<Row> {
    // The order that RFC 8200 4.1 recommends.
    let recommended = [
        HopByHop(8),
        DestOpts(8),
        Routing(2, 24),
        Fragment(0, false),
        Auth(12),
        DestOpts(16),
    ];
    let options = |n: usize| vec![DestOpts(8); n];
    vec![
        row(
            "six in the recommended order",
            with(&recommended, v6()).tcp(SYN),
            Pass,
        ),
        row(
            "two",
            with(&[HopByHop(8), Routing(2, 8)], v6()).udp(8),
            Pass,
        ),
        row(
            "three",
            with(&[Routing(2, 8), Auth(12), DestOpts(8)], v6()).udp(8),
            Pass,
        ),
        row("six of one kind", with(&options(6), v6()).udp(8), Pass),
        row(
            "routing behind authentication",
            with(&[Auth(12), Routing(2, 8)], v6()).udp(8),
            Pass,
        ),
        row("seven", with(&options(7), v6()).udp(8), Ipv6ExtTooMany),
        row(
            "seven with fragment",
            with(&recommended, v6()).extension(Mobility(8)),
            Ipv6ExtTooMany,
        ),
        row("eight", with(&options(8), v6()).udp(8), Ipv6ExtTooMany),
        row(
            "hop-by-hop second",
            with(&[DestOpts(8), HopByHop(8)], v6()).udp(8),
            Ipv6ExtOrder,
        ),
        row(
            "hop-by-hop twice",
            with(&[HopByHop(8), HopByHop(8)], v6()).udp(8),
            Ipv6ExtOrder,
        ),
        row(
            "hop-by-hop last of six",
            with(&options(5), v6()).extension(HopByHop(8)).udp(8),
            Ipv6ExtOrder,
        ),
        row(
            "hop-by-hop behind an atomic fragment",
            with(&[Fragment(0, false), HopByHop(8)], v6()).udp(8),
            Ipv6ExtOrder,
        ),
        row(
            "two fragment headers",
            with(&[Fragment(0, true), Fragment(8, true)], v6()).udp(8),
            Ipv6ExtOrder,
        ),
        row(
            "a fragment header behind an atomic one counts by itself",
            with(&[Fragment(0, false), Fragment(64, false)], v6()).udp(8),
            Pass,
        ),
        row(
            "two atomic fragment headers",
            with(&[Fragment(0, false), Fragment(0, false)], v6()).udp(8),
            Pass,
        ),
        row(
            "behind a later fragment nothing is a header",
            with(&[Fragment(64, false), HopByHop(8), Fragment(0, true)], v6()).udp(8),
            Pass,
        ),
        row(
            "a later fragment of seven headers",
            {
                with(&options(5), v6())
                    .extension(Fragment(64, true))
                    .payload(60, [0; 8])
            },
            Pass,
        ),
        row(
            "a middle fragment that is no multiple of 8",
            with(&[DestOpts(8), Fragment(64, true)], v6()).payload(17, [0; 9]),
            FragmentBeyondEnd,
        ),
    ]
}

fn broken() -> Vec<Row> {
    let options = || v6().extension(DestOpts(16)).udp(8).build();
    let routing = |kind| v6().extension(Routing(kind, 24)).udp(8);
    vec![
        row("routing type 0", routing(0), Ipv6RoutingType0),
        row(
            "routing type 0, second",
            {
                v6().extension(DestOpts(8))
                    .extension(Routing(0, 24))
                    .tcp(SYN)
            },
            Ipv6RoutingType0,
        ),
        row(
            "routing type 0, beyond the packet",
            routing(0).build().with(FIRST + 1, &[200]),
            Ipv6ExtTruncated,
        ),
        row(
            "reaches one unit beyond the packet",
            options().with(FIRST + 1, &[4]),
            Ipv6ExtTruncated,
        ),
        row(
            "reaches exactly to the end",
            options().with(FIRST, &[59]).with(FIRST + 1, &[3]),
            Pass,
        ),
        row(
            "reaches exactly to the end, and says TCP",
            options().with(FIRST, &[proto::TCP]).with(FIRST + 1, &[3]),
            TcpTruncated,
        ),
        row(
            "longest length",
            options().with(FIRST + 1, &[255]),
            Ipv6ExtTruncated,
        ),
        row(
            "authentication beyond the packet",
            {
                v6().extension(Auth(12))
                    .udp(8)
                    .build()
                    .with(FIRST + 1, &[6])
            },
            Ipv6ExtTruncated,
        ),
        row(
            "announced, but the packet is over",
            v6().build().with(ETH + 6, &[60]),
            Ipv6ExtTruncated,
        ),
        row(
            "announced, and found in the padding",
            v6().pad(16).build().with(ETH + 6, &[60]),
            Ipv6ExtTruncated,
        ),
        row(
            "a fragment header of 7 bytes",
            {
                let frame = v6().fragment(0, true).payload(17, []).build();
                frame.cut(FIRST + 7).with(LENGTH, &[0, 7])
            },
            Ipv6ExtTruncated,
        ),
        row(
            "4 bytes of 8",
            {
                let frame = v6().extension(DestOpts(8)).payload(59, []).build();
                frame.cut(FIRST + 4).with(LENGTH, &[0, 4])
            },
            Ipv6ExtTruncated,
        ),
        row(
            "2 bytes of 8",
            {
                let frame = v6().extension(DestOpts(8)).payload(59, []).build();
                frame.cut(FIRST + 2).with(LENGTH, &[0, 2])
            },
            Ipv6ExtTruncated,
        ),
        row(
            "the second is announced, but the packet is over",
            v6().extension(DestOpts(8)).build().with(FIRST, &[135]),
            Ipv6ExtTruncated,
        ),
        row(
            "jumbogram (RFC 2675)",
            {
                v6().extension(HopByHop(8))
                    .udp(8)
                    .build()
                    .with(LENGTH, &[0, 0])
            },
            Ipv6ExtTruncated,
        ),
    ]
}
