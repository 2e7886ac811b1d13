//! Sampled events: what is in them (checked for every row), and how many.

use super::{
    Row, Table, V4, V4_DEST, V6,
    table::{limited, row, sampled},
    v4, v6,
};
use crate::{
    packet::{ETH, Edit as _, FIN, SYN, arp, ethernet, ip},
    program::Settings,
};
use edge_common::{
    abi::{LimitKind, Mode},
    gcra::Limit,
    reason::Reason::{
        Blacklisted, Bogon, EthTruncated, Ipv4BadVersion, Land, LimitPackets, Pass,
        PassAllowlisted, PassArp, PassNotIp, PassUnparsed, TcpSynFin,
    },
};

pub(super) fn tables() -> Vec<Table> {
    let dry_run = Settings {
        config: edge_common::abi::Config {
            sample: sampled(2).config.sample,
            ..Settings::checks(Mode::DryRun).config
        },
        ..Settings::enforced()
    };
    vec![
        Table::new("samples of what is dropped", sampled(2), dropped())
            .black(V4)
            .black(V6)
            .allow("192.0.2.9"),
        Table::new("samples of dry runs", dry_run, would_drop())
            .black("127.0.0.0/8")
            .bogon("127.0.0.0/8"),
        limits(),
    ]
}

fn dropped() -> Vec<Row> {
    let listed = |len: usize| v4().udp(len - 42);
    vec![
        row("five at once", listed(60), Blacklisted)
            .times(5)
            .sampled(2),
        row("half a second later", listed(60), Blacklisted)
            .times(5)
            .after_ms(500)
            .sampled(1),
        row("499 ms later", listed(60), Blacklisted).after_ms(499),
        row("1 ms later", listed(60), Blacklisted)
            .after_ms(1)
            .sampled(1),
        row(
            "another reason has its own budget",
            ip("192.0.2.1", V4_DEST).tcp(SYN | FIN),
            TcpSynFin,
        )
        .times(3)
        .sampled(2),
        row("whatever the family", v6().udp(8), Blacklisted)
            .after_ms(500)
            .sampled(1),
        row("127 bytes", listed(127), Blacklisted)
            .after_ms(1000)
            .sampled(1),
        row("128 bytes", listed(128), Blacklisted).sampled(1),
        row("129 bytes", listed(129), Blacklisted)
            .after_ms(1000)
            .sampled(1),
        row("1,500 bytes", listed(1500), Blacklisted).sampled(1),
        row("in several buffers", listed(9000), Blacklisted)
            .after_ms(1000)
            .sampled(1),
        row("the shortest frame", ethernet(0x8100, &[]), EthTruncated).sampled(1),
        row(
            "what passes is not sampled",
            ip("192.0.2.1", V4_DEST).udp(8),
            Pass,
        )
        .times(9),
        row(
            "nor what is allowed",
            ip("192.0.2.9", V4_DEST).udp(8),
            PassAllowlisted,
        ),
        row("nor ARP", arp([192, 0, 2, 1]), PassArp),
        row("nor anything else", ethernet(0x88cc, &[1; 50]), PassNotIp),
    ]
}

fn would_drop() -> Vec<Row> {
    let malformed = || v4().udp(20).build().with(ETH, &[0x75]);
    let own = || ip("127.0.0.1", "127.0.0.1").tcp(SYN | FIN);
    vec![
        row("malformed", malformed(), PassUnparsed)
            .would(&[Ipv4BadVersion])
            .times(3)
            .sampled(2),
        row("a sample for each reason", own(), Pass)
            .would(&[Blacklisted, Bogon, Land, TcpSynFin])
            .times(3)
            .sampled(8),
        row("the budgets are empty", own(), Pass).would(&[Blacklisted, Bogon, Land, TcpSynFin]),
        row("nothing found", v4().udp(8), Pass),
    ]
}

fn limits() -> Table {
    let udp = || v4().udp(8);
    let rows = vec![
        row("within", udp(), Pass).times(2),
        row("over", udp(), LimitPackets).times(5).sampled(3),
        row("later, over", udp(), LimitPackets)
            .times(2)
            .after_ms(400)
            .sampled(1),
    ];
    let settings = limited(LimitKind::Packets, Mode::Enforce, 1, 2)
        .with(|c| c.sample = Limit::per_second(3, 3).unwrap_or(Limit::NONE));
    Table::new("samples of limits", settings, rows)
}
