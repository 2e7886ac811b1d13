//! Packets that are well formed, and that nobody sends in earnest.

use super::{
    Row, Table, V4_DEST, V6_DEST,
    table::row,
    transport::{Make, both},
};
use crate::packet::{ACK, CWR, ECE, Extension::HopByHop, FIN, PSH, RST, SYN, URG, ip};
use edge_common::reason::Reason::{
    self, Land, Pass, TcpFinRst, TcpFinWithoutAck, TcpNoFlags, TcpSynFin, TcpSynRst,
};

pub(super) fn tables() -> Vec<Table> {
    vec![
        Table::enforced("TCP flags", both(&FLAGS)),
        Table::enforced("LAND", land()),
    ]
}

const FLAGS: [(&str, Make, Reason); 27] = [
    ("SYN", |p| p.tcp(SYN).build(), Pass),
    ("SYN with ECN", |p| p.tcp(SYN | ECE | CWR).build(), Pass),
    (
        "SYN with data (TFO)",
        |p| p.tcp_with(SYN, 12, 100).build(),
        Pass,
    ),
    ("SYN PSH", |p| p.tcp(SYN | PSH).build(), Pass),
    ("SYN ACK", |p| p.tcp(SYN | ACK).build(), Pass),
    ("ACK", |p| p.tcp(ACK).build(), Pass),
    ("ACK PSH", |p| p.tcp(ACK | PSH).build(), Pass),
    ("ACK URG", |p| p.tcp(ACK | URG).build(), Pass),
    ("FIN ACK", |p| p.tcp(FIN | ACK).build(), Pass),
    ("FIN PSH ACK", |p| p.tcp(FIN | PSH | ACK).build(), Pass),
    ("RST", |p| p.tcp(RST).build(), Pass),
    ("RST ACK", |p| p.tcp(RST | ACK).build(), Pass),
    ("RST PSH ACK", |p| p.tcp(RST | PSH | ACK).build(), Pass),
    ("PSH alone", |p| p.tcp(PSH).build(), Pass),
    ("none (null scan)", |p| p.tcp(0).build(), TcpNoFlags),
    ("ECE alone", |p| p.tcp(ECE).build(), TcpNoFlags),
    ("CWR alone", |p| p.tcp(CWR).build(), TcpNoFlags),
    ("SYN FIN", |p| p.tcp(SYN | FIN).build(), TcpSynFin),
    ("SYN FIN ACK", |p| p.tcp(SYN | FIN | ACK).build(), TcpSynFin),
    ("all", |p| p.tcp(0xff).build(), TcpSynFin),
    ("SYN RST", |p| p.tcp(SYN | RST).build(), TcpSynRst),
    ("SYN RST ACK", |p| p.tcp(SYN | RST | ACK).build(), TcpSynRst),
    ("FIN RST", |p| p.tcp(FIN | RST).build(), TcpFinRst),
    ("FIN RST ACK", |p| p.tcp(FIN | RST | ACK).build(), TcpFinRst),
    ("FIN (FIN scan)", |p| p.tcp(FIN).build(), TcpFinWithoutAck),
    (
        "FIN PSH URG (Xmas)",
        |p| p.tcp(FIN | PSH | URG).build(),
        TcpFinWithoutAck,
    ),
    (
        "no flags, in a jumbo frame",
        |p| p.tcp_with(0, 0, 5000).build(),
        TcpNoFlags,
    ),
];

fn land() -> Vec<Row> {
    let own4 = || ip(V4_DEST, V4_DEST);
    let own6 = || ip(V6_DEST, V6_DEST);
    vec![
        row("IPv4, TCP", own4().tcp(SYN), Land),
        row("IPv4, UDP", own4().udp(8), Land),
        row("IPv4, ICMP", own4().icmp(8, 0), Land),
        row("IPv4, another protocol", own4().payload(99, []), Land),
        row(
            "IPv4, a later fragment",
            own4().fragment(800, false).payload(17, [0; 8]),
            Land,
        ),
        row(
            "IPv4, with flags that are impossible, too",
            own4().tcp(SYN | FIN),
            Land,
        )
        .also(&[TcpSynFin]),
        row(
            "IPv4, differs in the last bit",
            ip("203.0.113.0", V4_DEST).tcp(SYN),
            Pass,
        ),
        row(
            "IPv4, differs in the first bit",
            ip("75.0.113.1", V4_DEST).tcp(SYN),
            Pass,
        ),
        row("IPv6, TCP", own6().tcp(SYN), Land),
        row(
            "IPv6, UDP behind options",
            own6().extension(HopByHop(8)).udp(8),
            Land,
        ),
        row("IPv6, ICMPv6", own6().icmp(128, 0), Land),
        row(
            "IPv6, with flags that are impossible, too",
            own6().tcp(0),
            Land,
        )
        .also(&[TcpNoFlags]),
        row(
            "IPv6, differs in the last bit",
            ip("2001:db8:ffff::", V6_DEST).tcp(SYN),
            Pass,
        ),
        row(
            "IPv6, differs in the first bit",
            ip("a001:db8:ffff::1", V6_DEST).tcp(SYN),
            Pass,
        ),
        row(
            "IPv6, differs in bit 64",
            ip("2001:db8:ffff:1::1", V6_DEST).tcp(SYN),
            Pass,
        ),
        row(
            "IPv6, differs in bit 65",
            ip("2001:db8:ffff:0:8000::1", V6_DEST).tcp(SYN),
            Pass,
        ),
    ]
}
