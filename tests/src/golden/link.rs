//! Ethernet, VLAN tags and ARP.

use super::{Table, table::row, v4, v6};
use crate::packet::{ADTAG, Edit as _, Ip, OLD_QINQ, QTAG, SOURCE_MAC, SYN, arp, ethernet};
use edge_common::reason::Reason::{
    self, ArpMalformed, ArpSpoof, EthTruncated, Ipv4Truncated, Ipv6Truncated, Pass, PassArp,
    PassNotIp, VlanTooDeep,
};

const PROTECTED: [u8; 4] = [203, 0, 113, 254];
const OTHER: [u8; 4] = [203, 0, 113, 253];
const FOREIGN_MAC: [u8; 6] = [2, 0, 0, 0, 0, 0xee];

pub(super) fn tables() -> Vec<Table> {
    vec![
        Table::enforced("Ethernet", ether_types()),
        Table::enforced("VLAN tags", tags()),
        Table::enforced("ARP", arp_headers()),
        Table::enforced("ARP guard", arp_guard()).bind(PROTECTED, SOURCE_MAC),
    ]
}

fn ether_types() -> Vec<super::Row> {
    let empty = |kind| ethernet(kind, &[]);
    let filled = |kind| ethernet(kind, &[0; 46]);
    vec![
        row(
            "an Ethernet header and no more, IPv4",
            empty(0x0800),
            Ipv4Truncated,
        ),
        row(
            "an Ethernet header and no more, IPv6",
            empty(0x86dd),
            Ipv6Truncated,
        ),
        row(
            "an Ethernet header and no more, ARP",
            empty(0x0806),
            ArpMalformed,
        ),
        row(
            "an Ethernet header and no more, LLDP",
            empty(0x88cc),
            PassNotIp,
        ),
        row("LLDP", filled(0x88cc), PassNotIp),
        row("MPLS", filled(0x8847), PassNotIp),
        row("PPPoE session", filled(0x8864), PassNotIp),
        row("MACsec", filled(0x88e5), PassNotIp),
        row(
            "IEEE 802.3 with a length: spanning tree",
            filled(39),
            PassNotIp,
        ),
        row("type 0", filled(0), PassNotIp),
        row("type 0xffff", filled(0xffff), PassNotIp),
    ]
}

fn tags() -> Vec<super::Row> {
    let in_tags = |tags: &[(u16, u16)], packet: Ip| {
        tags.iter()
            .fold(packet, |packet, (kind, id)| packet.tag(*kind, *id))
    };
    let mut rows = Vec::new();
    for (family, packet) in [("IPv4", v4().tcp(SYN)), ("IPv6", v6().tcp(SYN))] {
        let mut add = |what: &str, tags: &[(u16, u16)], ends: Reason| {
            rows.push(row(
                &format!("{family}, {what}"),
                in_tags(tags, packet.clone()),
                ends,
            ));
        };
        add("802.1Q", &[(QTAG, 5)], Pass);
        add("802.1Q, priority only", &[(QTAG, 0xe000)], Pass);
        add("802.1Q, all bits set", &[(QTAG, 0xffff)], Pass);
        add("802.1ad alone", &[(ADTAG, 5)], Pass);
        add("QinQ before 802.1ad alone", &[(OLD_QINQ, 5)], Pass);
        add("802.1ad and 802.1Q", &[(ADTAG, 7), (QTAG, 5)], Pass);
        add("802.1Q twice", &[(QTAG, 7), (QTAG, 5)], Pass);
        add("old QinQ and 802.1Q", &[(OLD_QINQ, 7), (QTAG, 5)], Pass);
        add("802.1ad twice", &[(ADTAG, 7), (ADTAG, 5)], Pass);
        add(
            "three tags",
            &[(ADTAG, 7), (QTAG, 6), (QTAG, 5)],
            VlanTooDeep,
        );
        add(
            "three service tags",
            &[(ADTAG, 7), (ADTAG, 6), (OLD_QINQ, 5)],
            VlanTooDeep,
        );
        add(
            "four tags",
            &[(QTAG, 8), (QTAG, 7), (QTAG, 6), (QTAG, 5)],
            VlanTooDeep,
        );
    }
    let one = || v4().udp(4).vlan(5).build();
    let two = || v4().udp(4).tag(ADTAG, 7).vlan(5).build();
    let three = || v4().udp(4).vlan(7).vlan(6).vlan(5).build();
    rows.extend([
        row(
            "nothing behind the type of a tag",
            one().cut(14),
            EthTruncated,
        ),
        row("one byte short of the tag", one().cut(17), EthTruncated),
        row("a tag and no more", one().cut(18), Ipv4Truncated),
        row(
            "nothing behind the type of the second tag",
            two().cut(18),
            EthTruncated,
        ),
        row(
            "one byte short of the second tag",
            two().cut(21),
            EthTruncated,
        ),
        row("two tags and no more", two().cut(22), Ipv4Truncated),
        row(
            "the third tag is known by its type alone",
            three().cut(22),
            VlanTooDeep,
        ),
        row("tags around LLDP", one().with(16, &[0x88, 0xcc]), PassNotIp),
        row(
            "a tag that says IPv6 around IPv4",
            one().with(16, &[0x86, 0xdd]),
            Ipv6Truncated,
        ),
    ]);
    rows
}

fn arp_headers() -> Vec<super::Row> {
    let reply = || arp(OTHER).build();
    vec![
        row("request", arp(OTHER).request(), PassArp),
        row("reply", arp(OTHER), PassArp),
        row("reply in a VLAN", arp(OTHER).vlan(5), PassArp),
        row(
            "reply padded to 60 bytes",
            [reply(), vec![0; 18]].concat(),
            PassArp,
        ),
        row("probe (RFC 5227)", arp([0; 4]).request(), PassArp),
        row("reply for 255.255.255.255", arp([255; 4]), PassArp),
        row(
            "operation 25, the last one assigned",
            reply().with(20, &[0, 25]),
            PassArp,
        ),
        row("operation 255", reply().with(20, &[0, 255]), PassArp),
        row("operation 0", reply().with(20, &[0, 0]), ArpMalformed),
        row("operation 256", reply().with(20, &[1, 0]), ArpMalformed),
        row("one byte short", reply().cut(41), ArpMalformed),
        row(
            "one byte short in a VLAN",
            arp(OTHER).vlan(5).build().cut(45),
            ArpMalformed,
        ),
        row(
            "hardware type 6 (IEEE 802)",
            reply().with(14, &[0, 6]),
            ArpMalformed,
        ),
        row(
            "protocol type IPv6",
            reply().with(16, &[0x86, 0xdd]),
            ArpMalformed,
        ),
        row(
            "hardware address of 8 bytes",
            reply().with(18, &[8]),
            ArpMalformed,
        ),
        row(
            "protocol address of 16 bytes",
            reply().with(19, &[16]),
            ArpMalformed,
        ),
    ]
}

fn arp_guard() -> Vec<super::Row> {
    vec![
        row("the owner answers", arp(PROTECTED), PassArp),
        row("the owner asks", arp(PROTECTED).request(), PassArp),
        row(
            "the owner answers in a VLAN",
            arp(PROTECTED).vlan(5),
            PassArp,
        ),
        row(
            "another one claims the address",
            arp(PROTECTED).claiming(FOREIGN_MAC),
            ArpSpoof,
        ),
        row(
            "... by a request",
            arp(PROTECTED).claiming(FOREIGN_MAC).request(),
            ArpSpoof,
        ),
        row(
            "... in a VLAN",
            arp(PROTECTED).claiming(FOREIGN_MAC).vlan(5),
            ArpSpoof,
        ),
        row(
            "... and sends it from there, too",
            arp(PROTECTED).claiming(FOREIGN_MAC).sent_by(FOREIGN_MAC),
            ArpSpoof,
        ),
        row(
            "the right claim in another one's frame",
            arp(PROTECTED).sent_by(FOREIGN_MAC),
            ArpSpoof,
        ),
        row(
            "a MAC address that differs in its first bit",
            {
                let [first, rest @ ..] = SOURCE_MAC;
                let [a, b, c, d, e] = rest;
                arp(PROTECTED).claiming([first ^ 0x80, a, b, c, d, e])
            },
            ArpSpoof,
        ),
        row(
            "a MAC address that differs in its last bit",
            {
                let [a, b, c, d, e, last] = SOURCE_MAC;
                arp(PROTECTED).claiming([a, b, c, d, e, last ^ 1])
            },
            ArpSpoof,
        ),
        row(
            "an address that nobody protects",
            arp(OTHER).claiming(FOREIGN_MAC),
            PassArp,
        ),
        row(
            "malformed, though protected",
            arp(PROTECTED).build().cut(41),
            ArpMalformed,
        ),
    ]
}
