//! Checks in different modes at once, and in what order they are made.

use super::{Row, Table, V4, V4_DEST, V6_DEST, table::row, v4, v6};
use crate::{
    packet::{ETH, Edit as _, FIN, SYN, arp, ip},
    program::Settings,
};
use edge_common::{
    abi::Mode,
    reason::Reason::{
        ArpSpoof, Blacklisted, Bogon, FragmentTiny, Ipv4BadVersion, Land, Pass, PassArp, PassNotIp,
        PassUnparsed, TcpSynFin, TcpTruncated,
    },
};

const PROTECTED: [u8; 4] = [203, 0, 113, 254];

pub(super) fn tables() -> Vec<Table> {
    let one_of = |name: &str, mode: Mode| {
        // This check is not enforced, all others are.
        Settings::enforced().with(|c| {
            *match name {
                "malformed" => &mut c.malformed,
                "tcp_flags" => &mut c.tcp_flags,
                "land" => &mut c.land,
                "bogons" => &mut c.bogons,
                "fragments" => &mut c.fragments,
                "arp_guard" => &mut c.arp_guard,
                _ => &mut c.blacklist,
            } = mode as u32;
        })
    };
    let mut all = vec![];
    for mode in [Mode::DryRun, Mode::Off] {
        for (check, rows) in single(mode) {
            let name = format!("{check} {}, the others enforced", mode.name());
            all.push(
                Table::new(&name, one_of(check, mode), rows)
                    .black(V4)
                    .bogon("127.0.0.0/8")
                    .bind(PROTECTED, [9; 6]),
            );
        }
    }
    all.push(
        Table::new(
            "everything in dry run at once",
            Settings::checks(Mode::DryRun),
            dry_runs(),
        )
        .black("127.0.0.0/8")
        .bogon("127.0.0.0/8")
        .black(V6_DEST)
        .bogon(V6_DEST)
        .bind(PROTECTED, [9; 6]),
    );
    all.push(
        Table::enforced("the order of the checks", order())
            .black("127.0.0.1")
            .bogon("127.0.0.0/8"),
    );
    all
}

/// For each check, what it lets go, and that the others still drop.
fn single(mode: Mode) -> Vec<(&'static str, Vec<Row>)> {
    let find = |row: Row, reason| match mode {
        Mode::DryRun => row.would(&[reason]),
        Mode::Off | Mode::Enforce => row,
    };
    let malformed = || v4().udp(8).build().with(ETH, &[0x65]);
    let unusual = || ip("192.0.2.1", V4_DEST).tcp(SYN | FIN);
    let land = || ip(V4_DEST, V4_DEST).udp(8);
    let bogon = || ip("127.0.0.2", V4_DEST).udp(8);
    let tiny = || v6().tcp_with(SYN, 0, 100).piece(0..8);
    let spoof = || arp(PROTECTED);
    let listed = || v4().udp(8);
    let cut_listed = || v4().payload(6, [0; 19]);
    let checks = [
        (
            "malformed",
            row("bad version", malformed(), PassUnparsed),
            Ipv4BadVersion,
        ),
        ("tcp_flags", row("SYN FIN", unusual(), Pass), TcpSynFin),
        ("land", row("land", land(), Pass), Land),
        ("bogons", row("bogon", bogon(), Pass), Bogon),
        (
            "fragments",
            row("tiny fragment", tiny(), Pass),
            FragmentTiny,
        ),
        ("arp_guard", row("spoofed ARP", spoof(), PassArp), ArpSpoof),
        ("blacklist", row("blacklisted", listed(), Pass), Blacklisted),
    ];
    checks
        .iter()
        .map(|(check, passes, reason)| {
            let others = checks.iter().filter(|(other, ..)| other != check);
            let mut rows: Vec<Row> = others
                .map(|(_, passes, reason)| Row {
                    ends: *reason,
                    ..passes.clone()
                })
                .collect();
            rows.insert(3, find(passes.clone(), *reason));
            // The blacklist stands between the IP header and the rest.
            let cut = |ends| row("listed, a cut TCP header", cut_listed(), ends);
            rows.push(match *check {
                "blacklist" => find(cut(TcpTruncated), Blacklisted),
                _ => cut(Blacklisted),
            });
            (*check, rows)
        })
        .collect()
}

fn dry_runs() -> Vec<Row> {
    let own = || ip("127.0.0.1", "127.0.0.1");
    vec![
        row(
            "blacklisted, bogon, LAND and SYN FIN",
            own().tcp(SYN | FIN),
            Pass,
        )
        .would(&[Blacklisted, Bogon, Land, TcpSynFin]),
        row(
            "blacklisted, bogon, LAND and tiny",
            own().tcp_with(SYN | FIN, 0, 80).piece(0..8),
            Pass,
        )
        .would(&[Blacklisted, Bogon, Land, FragmentTiny]),
        row(
            "the same in IPv6",
            ip(V6_DEST, V6_DEST).tcp(SYN | FIN),
            Pass,
        )
        .would(&[Blacklisted, Bogon, Land, TcpSynFin]),
        row(
            "malformed, and nothing else is looked at",
            own().tcp(SYN | FIN).build().with(ETH, &[0x55]),
            PassUnparsed,
        )
        .would(&[Ipv4BadVersion]),
        row("spoofed ARP", arp(PROTECTED), PassArp).would(&[ArpSpoof]),
        row(
            "not IP",
            crate::packet::ethernet(0x88cc, &[0; 50]),
            PassNotIp,
        ),
        row("nothing to find", v4().udp(8), Pass),
    ]
}

fn order() -> Vec<Row> {
    let own = |source: &str| ip(source, source);
    vec![
        row(
            "malformed first",
            own("127.0.0.1").tcp(SYN | FIN).build().with(ETH, &[0x55]),
            Ipv4BadVersion,
        ),
        row(
            "then the blacklist",
            own("127.0.0.1").tcp(SYN | FIN),
            Blacklisted,
        ),
        row("then bogons", own("127.0.0.2").tcp(SYN | FIN), Bogon),
        row(
            "then LAND",
            own("192.0.2.1").tcp_with(SYN | FIN, 0, 40).piece(0..8),
            Land,
        ),
        row(
            "then fragments",
            v4().tcp_with(SYN | FIN, 0, 40).piece(0..8),
            FragmentTiny,
        ),
        row("then TCP flags", v4().tcp(SYN | FIN), TcpSynFin),
    ]
}
