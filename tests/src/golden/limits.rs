//! Limits per source. The clock moves only where a row says so.

use super::{
    Row, Table, V4_DEST, V6_DEST,
    table::{limited, row},
    v4, v6,
};
use crate::{
    packet::{ACK, Extension::HopByHop, FIN, Ip, RST, SYN, ip},
    program::Settings,
};
use edge_common::{
    abi::{LimitKind, Mode},
    reason::Reason::{
        self, Blacklisted, LimitBytes, LimitIcmp, LimitPackets, LimitSyn, LimitUdp, Pass,
        PassAllowlisted, PassManagement, TcpSynFin,
    },
};

pub(super) fn tables() -> Vec<Table> {
    let mut all: Vec<Table> = kinds().into_iter().flatten().collect();
    all.extend([
        bytes(),
        classes(),
        combined(),
        several_dry_runs(),
        denied_is_not_charged(),
        overrides(),
        exempt(),
        fast(),
        leases(),
    ]);
    all.extend(masks());
    all
}

/// Gives a packet its payload.
type Make = fn(Ip) -> Ip;

/// Each kind, enforced, in dry run and off: 10 a second, 3 at once.
fn kinds() -> Vec<[Table; 3]> {
    use LimitKind::{Bytes, Icmp, Packets, Syn, Udp};
    let packets: Make = |p| p.payload(99, [0; 8]);
    let cases: [(LimitKind, Make); 5] = [
        (Packets, packets),
        // As many bytes as the frames with 100 of them make; see `bytes`.
        (Bytes, packets),
        (Syn, |p| p.tcp(SYN)),
        (Udp, |p| p.udp(8)),
        (Icmp, |p| p.icmp(8, 8)),
    ];
    cases
        .map(|(kind, make)| kind_in_all_modes(kind, make))
        .into()
}

fn kind_in_all_modes(kind: LimitKind, make: Make) -> [Table; 3] {
    let reason = kind.reason();
    // Padding makes the frames of both families and all kinds 100 bytes long.
    let frame = |packet: Ip| {
        let packet = make(packet);
        let len = packet.build().len();
        packet.pad(100 - len)
    };
    let unit = if matches!(kind, LimitKind::Bytes) {
        100
    } else {
        1
    };
    let settings = |mode| limited(kind, mode, 10 * unit, 3 * unit);
    let mut over = Vec::new();
    let mut dry = Vec::new();
    for (family, packet, neighbour) in [
        ("IPv4", v4(), ip("198.51.100.8", V4_DEST)),
        ("IPv6", v6(), ip("2001:db8:1:3::7", V6_DEST)),
    ] {
        let mut add = |what: &str, times, wait_ms, packet: &Ip, denied: bool| {
            let frame = || frame(packet.clone());
            let what = format!("{family}, {what}");
            let ends = if denied { reason } else { Pass };
            over.push(row(&what, frame(), ends).times(times).after_ms(wait_ms));
            let would = row(&what, frame(), Pass).times(times).after_ms(wait_ms);
            dry.push(if denied {
                would.would(&[reason])
            } else {
                would
            });
        };
        add("the burst", 3, 0, &packet, false);
        add("over it", 5, 0, &packet, true);
        add("another source", 3, 0, &neighbour, false);
        add("99 ms later", 1, 99, &packet, true);
        add("100 ms later", 1, 1, &packet, false);
        add("one is all that came back", 1, 0, &packet, true);
        add("200 ms later two are", 2, 200, &packet, false);
        add("and no more", 2, 0, &packet, true);
        add("a second later the burst is", 3, 1000, &packet, false);
        add("and no more than that", 2, 0, &packet, true);
    }
    let off = dry.iter().map(|r| Row {
        would_drop: Vec::new(),
        ..r.clone()
    });
    let off: Vec<Row> = off.collect();
    let name = |mode: Mode| format!("limit of {}, {}", kind.name(), mode.name());
    let without = Settings::checks(Mode::Off);
    [
        Table::new(&name(Mode::Enforce), settings(Mode::Enforce), over),
        Table::new(&name(Mode::DryRun), settings(Mode::DryRun), dry),
        Table::new(&name(Mode::Off), without, off),
    ]
}

/// Bytes are those of whole frames.
fn bytes() -> Table {
    let frame = |len: usize| v4().udp(len - 42);
    let rows = vec![
        row("more than the burst", frame(1001), LimitBytes),
        row("half of it", frame(500), Pass),
        row("one more than the other half", frame(501), LimitBytes),
        row("the other half", frame(500), Pass),
        row("the smallest", frame(42), LimitBytes),
        row("after 42 ms", frame(42), Pass).after_ms(42),
        row("padding counts", v4().udp(0).pad(18), LimitBytes).after_ms(59),
        row("padding fits", v4().udp(0).pad(18), Pass).after_ms(1),
        row("VLAN tags count", v6().udp(30).vlan(6).vlan(5), LimitBytes).after_ms(99),
        row("VLAN tags fit", v6().udp(30).vlan(6).vlan(5), Pass).after_ms(1),
    ];
    // IPv6 starts afresh: it has a burst of 1,000 of which 100 are asked.
    let fresh = row("IPv6 has its own", v6().udp(938), Pass);
    let rows = [rows[..8].to_vec(), vec![fresh], rows[8..].to_vec()].concat();
    Table::new(
        "bytes a second",
        limited(LimitKind::Bytes, Mode::Enforce, 1000, 1000),
        rows,
    )
}

/// What counts as a SYN, as UDP, as ICMP: everything else passes for ever.
fn classes() -> Table {
    let mut rows = Vec::new();
    for (family, packet) in [("IPv4", v4()), ("IPv6", v6())] {
        let mut add = |what: &str, packet: Ip, ends| {
            rows.push(row(&format!("{family}, {what}"), packet, ends).times(2));
        };
        let p = || packet.clone();
        add("the burst of SYNs", p().tcp(SYN), Pass);
        add("the burst of UDP", p().udp(8), Pass);
        add("the burst of ICMP", p().icmp(8, 0), Pass);
        add("SYN", p().tcp(SYN), LimitSyn);
        add("SYN with options", p().tcp_with(SYN, 20, 0), LimitSyn);
        add("SYN with PSH", p().tcp(SYN | 8), LimitSyn);
        add("SYN ACK", p().tcp(SYN | ACK), Pass);
        add("ACK", p().tcp(ACK), Pass);
        add("FIN ACK", p().tcp(FIN | ACK), Pass);
        add("RST", p().tcp(RST), Pass);
        add(
            "first fragment with SYN",
            p().tcp_with(SYN, 0, 100).piece(0..24),
            LimitSyn,
        );
        add(
            "first fragment without flags, which may be a SYN",
            p().tcp_with(SYN, 0, 100).piece(0..8),
            LimitSyn,
        );
        add(
            "later fragment of TCP",
            p().fragment(800, false).payload(6, [0xff; 40]),
            Pass,
        );
        add("UDP", p().udp(100), LimitUdp);
        add("first fragment of UDP", p().udp(100).piece(0..8), LimitUdp);
        add(
            "later fragment of UDP",
            p().udp(100).piece(8..108),
            LimitUdp,
        );
        add("ICMP", p().icmp(0, 8), LimitIcmp);
        add(
            "later fragment of ICMP",
            p().icmp(8, 100).piece(64..108),
            LimitIcmp,
        );
        add("SCTP", p().payload(132, [0; 12]), Pass);
        add("GRE", p().payload(47, [0; 4]), Pass);
    }
    rows.extend([
        row(
            "UDP behind options",
            v6().extension(HopByHop(8)).udp(8),
            LimitUdp,
        ),
        row("ICMPv6 in IPv4", v4().payload(58, [0; 8]), LimitIcmp),
        row("ICMP in IPv6", v6().payload(1, [0; 8]), LimitIcmp),
    ]);
    let settings = [LimitKind::Syn, LimitKind::Udp, LimitKind::Icmp]
        .into_iter()
        .fold(Settings::checks(Mode::Off), |settings, kind| {
            settings
                .limit(0, kind, 1, 2)
                .limit_mode(kind, Mode::Enforce)
        });
    Table::new("what each limit counts", settings, rows)
}

/// All limits at once: the first that is exceeded is the reason.
fn combined() -> Table {
    let rows = vec![
        row("SYNs", v4().tcp(SYN), Pass).times(2),
        row("a third SYN", v4().tcp(SYN), LimitSyn),
        row("an ACK, the third packet", v4().tcp(ACK), Pass),
        row("UDP, the fourth", v4().udp(8), Pass),
        row("packets before SYN", v4().tcp(SYN), LimitPackets),
        row("packets before bytes", v4().udp(2000), LimitPackets),
        row("bytes before UDP", v6().udp(2000), LimitBytes),
        row("UDP in IPv6", v6().udp(8), Pass).times(3),
        row("a fourth UDP", v6().udp(8), LimitUdp),
        row("bytes before UDP again", v6().udp(2000), LimitBytes),
    ];
    let settings = Settings::checks(Mode::Off)
        .limits(Mode::Enforce)
        .limit(0, LimitKind::Packets, 1, 4)
        .limit(0, LimitKind::Bytes, 1000, 1500)
        .limit(0, LimitKind::Syn, 1, 2)
        .limit(0, LimitKind::Udp, 1, 3);
    Table::new("several limits at once", settings, rows)
}

fn several_dry_runs() -> Table {
    let rows = vec![
        row("within all", v4().tcp(SYN), Pass),
        row("over packets and SYNs", v4().tcp(SYN), Pass).would(&[LimitPackets, LimitSyn]),
        row("over packets alone", v4().tcp(ACK), Pass).would(&[LimitPackets]),
        row(
            "over bytes as well, which is enforced",
            v4().tcp_with(SYN, 0, 2000),
            LimitBytes,
        )
        .would(&[LimitPackets]),
    ];
    let settings = Settings::checks(Mode::Off)
        .limit(0, LimitKind::Packets, 1, 1)
        .limit(0, LimitKind::Bytes, 1000, 1000)
        .limit(0, LimitKind::Syn, 1, 1)
        .limit_mode(LimitKind::Packets, Mode::DryRun)
        .limit_mode(LimitKind::Syn, Mode::DryRun)
        .limit_mode(LimitKind::Bytes, Mode::Enforce);
    Table::new(
        "limits in dry run beside one that is enforced",
        settings,
        rows,
    )
}

/// A packet that is dropped for one limit uses up nothing of another.
fn denied_is_not_charged() -> Table {
    let rows = vec![
        row("one SYN", v4().tcp(SYN), Pass),
        row("SYNs over their limit", v4().tcp(SYN), LimitSyn).times(50),
        row("the packets are all there", v4().tcp(ACK), Pass).times(9),
        row("but for the SYN's", v4().tcp(ACK), LimitPackets),
    ];
    let settings = Settings::checks(Mode::Off)
        .limits(Mode::Enforce)
        .limit(0, LimitKind::Packets, 1, 10)
        .limit(0, LimitKind::Syn, 1, 1);
    Table::new("what is denied is not charged", settings, rows)
}

fn overrides() -> Table {
    let udp = |source: &str| {
        let dest = if source.contains(':') {
            V6_DEST
        } else {
            V4_DEST
        };
        ip(source, dest).udp(8)
    };
    let mut rows = Vec::new();
    // The source, how many pass, and with which profile.
    for (source, burst, why) in [
        ("192.0.2.1", 2, "default"),
        ("10.0.0.1", 4, "the /8 has its own"),
        ("10.1.0.1", 6, "the /16 within has another"),
        (
            "10.1.0.9",
            2,
            "the host within has the default limits as its own",
        ),
        ("10.1.0.10", 6, "blacklisted for a while, which is over"),
        ("2001:db8:1::1", 4, "the /32 has its own"),
        ("2001:db8:2::1", 6, "the /48 within has another"),
        (
            "2001:db8:2:1::9",
            2,
            "the host within has the default limits as its own",
        ),
        ("2001:db9::1", 2, "default"),
    ] {
        rows.push(row(&format!("from {source}: {why}"), udp(source), Pass).times(burst));
        rows.push(row(&format!("from {source}, over it"), udp(source), LimitUdp).times(3));
    }
    rows.push(row("no limit", udp("172.16.0.1"), Pass).times(1000));
    rows.push(row("no limit in IPv6", udp("2001:dba::1"), Pass).times(1000));
    rows.push(row(
        "the limits of packets hold for them",
        udp("172.16.0.1"),
        LimitPackets,
    ));
    let settings = Settings::checks(Mode::Off)
        .with(|c| c.blacklist = Mode::Enforce as u32)
        .limit(0, LimitKind::Udp, 1, 2)
        .limit(1, LimitKind::Udp, 1, 4)
        .limit(2, LimitKind::Udp, 1, 6)
        .limit(3, LimitKind::Udp, 1, 2)
        .limit(4, LimitKind::Packets, 1, 1000)
        .limit_mode(LimitKind::Udp, Mode::Enforce)
        .limit_mode(LimitKind::Packets, Mode::Enforce);
    Table::new("limits of their own for some sources", settings, rows)
        .profile("10.0.0.0/8", 1)
        .profile("10.1.0.0/16", 2)
        .profile("10.1.0.9", 3)
        .black_until("10.1.0.10", 1)
        .profile("2001:db8::/32", 1)
        .profile("2001:db8:2::/48", 2)
        .profile("2001:db8:2:1::9", 3)
        .profile("172.16.0.0/12", 4)
        .profile("2001:dba::/32", 4)
}

fn exempt() -> Table {
    let from = |source: &str| ip(source, V4_DEST).tcp(SYN);
    let rows = vec![
        row("management", from("192.0.2.1"), PassManagement).times(50),
        row("allowlist", from("192.0.2.2"), PassAllowlisted).times(50),
        row("the blacklist comes first", from("192.0.2.3"), Blacklisted).times(50),
        row(
            "what checks drop is not charged",
            from("192.0.2.4").tcp(SYN | FIN),
            TcpSynFin,
        )
        .times(50),
        row("so that this one has its burst", from("192.0.2.4"), Pass).times(2),
        row("and then is over it", from("192.0.2.4"), LimitSyn).times(2),
    ];
    let settings = Settings::enforced()
        .limit(0, LimitKind::Syn, 1, 2)
        .limit_mode(LimitKind::Syn, Mode::Enforce);
    Table::new("who is not limited", settings, rows)
        .management("192.0.2.1")
        .allow("192.0.2.2")
        .black("192.0.2.3")
}

/// A limit with many packets to the millisecond.
fn fast() -> Table {
    let packet = || v4().payload(99, []);
    let rows = vec![
        row("the burst", packet(), Pass).times(8000),
        row("over it", packet(), LimitPackets).times(2000),
        row("what 4 ms bring", packet(), Pass)
            .times(4000)
            .after_ms(4),
        row("and no more", packet(), LimitPackets).times(100),
    ];
    let settings = limited(LimitKind::Packets, Mode::Enforce, 1_000_000, 8000);
    Table::new("a million packets a second", settings, rows)
}

/// What is charged ahead pays for nobody else, and is there for packets of all kinds.
fn leases() -> Table {
    let (free, limited) = ("2001:db8:1::1", "2001:db8:1::2");
    let (default, other) = ("2001:db8:2::1", "2001:db8:2::2");
    let from = |source: &str| ip(source, V6_DEST).tcp(ACK);
    let mut rows = Vec::new();
    for (source, ms) in [(free, 0), (free, 1)] {
        let name = "who has no limit, and the same limits' place";
        rows.push(row(name, from(source), Pass).times(40).after_ms(ms));
    }
    rows.extend([
        row("the burst of its neighbour", from(limited), Pass).times(130),
        row("and no more", from(limited), LimitPackets).times(100),
        row("who has no limit has none still", from(free), Pass).times(40),
        row("the neighbour after that", from(limited), LimitPackets).times(10),
        row("UDP, some of it ahead", v4().udp(8), Pass).times(33),
        row("TCP has all the rest", v4().tcp(ACK), Pass).times(97),
        row("which is used up then", v4().tcp(ACK), LimitPackets).times(10),
        row("for UDP, too", v4().udp(8), LimitPackets).times(10),
        row("something is left", from(default), Pass).times(33),
        row("of no worth later", from(other), Pass)
            .times(130)
            .after_ms(90_000),
        row("when others have used all up", from(other), LimitPackets).times(2),
        row("and nothing goes back", from(default), LimitPackets).times(2),
    ]);
    let settings = Settings::checks(Mode::Off)
        .limit(0, LimitKind::Packets, 1, 130)
        .limit(0, LimitKind::Udp, 1, 1000)
        .limit_mode(LimitKind::Packets, Mode::Enforce)
        .limit_mode(LimitKind::Udp, Mode::Enforce);
    Table::new(
        "what is charged ahead",
        settings.limit(2, LimitKind::Packets, 1, 130),
        rows,
    )
    .profile(free, 1)
    .profile(other, 2)
}

/// Which sources share a limit.
fn masks() -> Vec<Table> {
    let run = |name: &str, v4_bits: u32, v6_bits: u32, cases: &[(&str, Reason)]| {
        let mask6 = u128::MAX << (128 - v6_bits);
        let settings = limited(LimitKind::Packets, Mode::Enforce, 1, 1).with(|c| {
            c.limit_mask4 = (u32::MAX << (32 - v4_bits)).to_be();
            c.limit_mask6_hi = (mask6 >> 64) as u64;
            c.limit_mask6_lo = mask6 as u64;
        });
        let rows: Vec<Row> = cases
            .iter()
            .map(|(source, ends)| {
                let dest = if source.contains(':') {
                    V6_DEST
                } else {
                    V4_DEST
                };
                row(&format!("from {source}"), ip(source, dest).udp(8), *ends)
            })
            .collect();
        Table::new(name, settings, rows)
    };
    vec![
        run(
            "a limit for each IPv4 host and IPv6 /64",
            32,
            64,
            &[
                ("192.0.2.0", Pass),
                ("192.0.2.1", Pass),
                ("192.0.2.0", LimitPackets),
                ("2001:db8:0:1::1", Pass),
                ("2001:db8:0:1:ffff::2", LimitPackets),
                ("2001:db8:0:2::1", Pass),
            ],
        ),
        run(
            "a limit for each IPv4 /24 and IPv6 /48",
            24,
            48,
            &[
                ("192.0.2.0", Pass),
                ("192.0.2.255", LimitPackets),
                ("192.0.3.0", Pass),
                ("192.0.1.255", Pass),
                ("2001:db8:1::1", Pass),
                ("2001:db8:1:ffff::2", LimitPackets),
                ("2001:db8:2::1", Pass),
                ("2001:db8::1", Pass),
            ],
        ),
        run(
            "a limit for each IPv4 /17 and IPv6 /128",
            17,
            128,
            &[
                ("10.0.127.255", Pass),
                ("10.0.0.0", LimitPackets),
                ("10.0.128.0", Pass),
                ("2001:db8::1", Pass),
                ("2001:db8::2", Pass),
                ("2001:db8::1", LimitPackets),
            ],
        ),
        run(
            "a limit for each IPv4 /8 and IPv6 /72",
            8,
            72,
            &[
                ("10.0.0.0", Pass),
                ("10.255.255.255", LimitPackets),
                ("11.0.0.0", Pass),
                ("2001:db8:0:0:100::1", Pass),
                ("2001:db8:0:0:1ff::2", LimitPackets),
                ("2001:db8:0:0:200::1", Pass),
            ],
        ),
    ]
}
