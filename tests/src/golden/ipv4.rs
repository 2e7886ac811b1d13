//! The IPv4 header.

use super::{Row, Table, table::row, v4};
use crate::packet::{ACK, ETH, Edit as _, IPV4, SYN, proto};
use edge_common::reason::Reason::{
    Ipv4BadIhl, Ipv4BadLength, Ipv4BadVersion, Ipv4Truncated, Pass, TcpTruncated,
};

/// Offset of the total length.
const TOTAL: usize = ETH + 2;

pub(super) fn tables() -> Vec<Table> {
    vec![Table::enforced(
        "IPv4 header",
        [headers(), lengths(), large()].concat(),
    )]
}

fn headers() -> Vec<Row> {
    let udp = || v4().udp(8).build();
    let first = |byte: u8| udp().with(ETH, &[byte]);
    let nothing = || v4().build();
    vec![
        row("UDP", udp(), Pass),
        row("TCP", v4().tcp(SYN), Pass),
        row("ICMP", v4().icmp(8, 56), Pass),
        row("a header and no more", nothing(), Pass),
        row(
            "one byte short of the header",
            nothing().cut(ETH + IPV4 - 1),
            Ipv4Truncated,
        ),
        row(
            "one byte of the header",
            nothing().cut(ETH + 1),
            Ipv4Truncated,
        ),
        row("version 0", first(0x05), Ipv4BadVersion),
        row("version 5", first(0x55), Ipv4BadVersion),
        row("version 6", first(0x65), Ipv4BadVersion),
        row("version 15", first(0xf5), Ipv4BadVersion),
        row("header of 0 bytes", first(0x40), Ipv4BadIhl),
        row("header of 16 bytes", first(0x44), Ipv4BadIhl),
        row("header longer than the packet", first(0x4f), Ipv4BadIhl),
        row("options, 4 bytes", v4().options(4).udp(8), Pass),
        row("options, 40 bytes", v4().options(40).tcp(ACK), Pass),
        row("options and nothing else", v4().options(40), Pass),
        row(
            "options of garbage",
            v4().options(8).udp(8).build().with(ETH + IPV4, &[0xff; 8]),
            Pass,
        ),
        row(
            "the frame ends in the options",
            v4().options(40).udp(8).build().cut(ETH + 24),
            Ipv4BadLength,
        ),
        row("time to live 0", udp().with(ETH + 8, &[0]), Pass),
        row(
            "a wrong checksum is left to the kernel",
            udp().with(ETH + 10, &[1, 2]),
            Pass,
        ),
        row("reserved flag", udp().with(ETH + 6, &[0x80]), Pass),
        row("protocol 0", v4().payload(0, [0; 4]), Pass),
        row("protocol 255", v4().payload(255, [0; 4]), Pass),
        row("GRE", v4().payload(47, [0; 24]), Pass),
        row("SCTP, empty", v4().payload(132, []), Pass),
        row("IPv6 in IPv4", v4().payload(41, [0; 60]), Pass),
        row(
            "an IPv6 extension header in IPv4 is payload",
            v4().payload(43, [0; 2]),
            Pass,
        ),
    ]
}

fn lengths() -> Vec<Row> {
    let udp = || v4().udp(8).build();
    let total = |n: u16| udp().with(TOTAL, &n.to_be_bytes());
    vec![
        row("total length 0", total(0), Ipv4BadIhl),
        row("total length 19", total(19), Ipv4BadIhl),
        row(
            "total length 20: a header only, of UDP",
            total(20).with(ETH + 9, &[59]),
            Pass,
        ),
        row(
            "total length one below the options",
            v4().options(4).udp(8).build().with(TOTAL, &[0, 23]),
            Ipv4BadIhl,
        ),
        row("one byte more than the frame", total(37), Ipv4BadLength),
        row("65,535", total(65_535), Ipv4BadLength),
        row(
            "one byte less than the frame",
            v4().payload(99, [0; 16]).build().with(TOTAL, &[0, 35]),
            Pass,
        ),
        row("padded to 60 bytes", v4().udp(0).pad(18), Pass),
        row(
            "the transport header lies in the padding",
            v4().pad(40).build().with(ETH + 9, &[proto::TCP]),
            TcpTruncated,
        ),
    ]
}

fn large() -> Vec<Row> {
    vec![
        row("1,500 bytes", v4().udp(1472), Pass),
        row("in several buffers: 5,000 bytes", v4().udp(5000), Pass),
        row(
            "in several buffers: 9,000 bytes",
            v4().tcp_with(ACK, 12, 8948),
            Pass,
        ),
        row("in several buffers: 65,000 bytes", v4().udp(64_972), Pass),
    ]
}
