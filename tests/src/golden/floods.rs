//! Floods that are not SYNs: ICMP by kind, reflectors, prefixes and destinations.

use std::net::UdpSocket;

use edge_common::{
    abi::{Config, Mode},
    defence::{Hitter, IcmpKind, ServiceCounter},
    gcra::Limit,
    reason::Reason,
    table::{FLAG_MANAGEMENT, FOREVER},
};

use super::{
    TableReport, V4, V4_DEST, V6, V6_DEST,
    defence::{FAMILIES, LOCAL, MS, OTHER, SECOND, Test, UDP, World, report, to},
};
use crate::{
    packet::{ACK, Ip, SYN, ip, proto},
    program::{Rigs, Settings},
};

/// The reasons that the packets here end with, and no row of a table does.
pub const REASONS: [Reason; 4] = [
    Reason::UdpReflection,
    Reason::FloodIcmp,
    Reason::FloodSource,
    Reason::FloodDest,
];

/// Runs everything.
pub(super) fn run(rigs: &mut Rigs, tell: &mut impl FnMut(TableReport)) {
    let limit = |rate, burst| Limit::per_second(rate, burst).expect("a limit");
    let icmp = |c: &mut Config, mode: Mode| {
        c.icmp_floods = mode as u32;
        c.icmp = [limit(10, 3), limit(10, 4), limit(10, 5)];
    };
    let hitters = |c: &mut Config, mode: Mode, kind: Hitter| {
        c.hitters_mode = mode as u32;
        c.hitters[kind as usize] = limit(1000, 160);
    };
    tell(report(
        rigs,
        "ICMP by kind",
        |c| icmp(c, Mode::Enforce),
        icmp_by_kind,
    ));
    tell(report(
        rigs,
        "ICMP in dry run",
        |c| icmp(c, Mode::DryRun),
        icmp_dry_run,
    ));
    tell(report(
        rigs,
        "reflectors",
        |c| c.reflection = Mode::Enforce as u32,
        reflectors,
    ));
    let tests: [(Hitter, Test); 4] = [
        (Hitter::SourceNarrow, source_narrow),
        (Hitter::SourceWide, source_wide),
        (Hitter::Dest, dest),
        (Hitter::DestPrefix, dest_prefix),
    ];
    for (kind, test) in tests {
        let name = format!("heavy hitters: {}", kind.name());
        let change = |c: &mut Config| hitters(c, Mode::Enforce, kind);
        tell(report(rigs, &name, change, test));
    }
    tell(report(
        rigs,
        "with everything else",
        everything,
        friends_and_foes,
    ));
    tell(report(
        rigs,
        "heavy hitters in dry run",
        |c| hitters(c, Mode::DryRun, Hitter::Dest),
        hitters_dry_run,
    ));
}

/// Every check and every limit on: what the verifier has to go through at most.
fn everything(c: &mut Config) {
    let limit = |rate, burst| Limit::per_second(rate, burst).expect("a limit");
    let other = Settings::enforced().config.with_limits(Mode::Enforce);
    *c = Config {
        malformed: other.malformed,
        tcp_flags: other.tcp_flags,
        land: other.land,
        bogons: other.bogons,
        fragments: other.fragments,
        arp_guard: other.arp_guard,
        blacklist: other.blacklist,
        limits_on: other.limits_on,
        limits_enforced: other.limits_enforced,
        sample: limit(10, 10),
        icmp_floods: Mode::Enforce as u32,
        icmp: [limit(10, 3); 3],
        hitters_mode: Mode::Enforce as u32,
        hitters: [limit(1_000_000, 1_000_000); 4],
        reflection: Mode::Enforce as u32,
        rest: 1,
        always_defended: 0,
        ..*c
    };
}

fn friends_and_foes(world: &mut World) {
    let syn = |source: &str, dest: &str| to(LOCAL, SYN).packet(source, dest).build();
    for (n, (source, dest)) in FAMILIES.into_iter().enumerate() {
        let others = [
            ["198.51.100.90", "198.51.100.91", "198.51.100.92"],
            ["2001:db8:1::90", "2001:db8:1::91", "2001:db8:1::92"],
        ];
        let [friend, foe, manager] = others[n];
        world.list(friend, |l| l.allow = FOREVER);
        world.list(foe, |l| l.black = FOREVER);
        world.list(manager, |l| l.meta.flags |= FLAG_MANAGEMENT);
        world.ends("a stranger", &syn(source, dest), Reason::ReplySynCookie);
        world.ends("a friend", &syn(friend, dest), Reason::PassAllowlisted);
        world.ends("a foe", &syn(foe, dest), Reason::Blacklisted);
        world.ends("a manager", &syn(manager, dest), Reason::PassManagement);
    }
    let verified = world.verified_instructions();
    println!("       everything on: {verified} instructions verified");
    // A million is the end.
    world.check("the verifier is near its end", verified < 700_000);
}

/// Types of each kind, by family.
const KINDS: [(IcmpKind, u32, [&[u8]; 2]); 3] = [
    (IcmpKind::Echo, 3, [&[8], &[128]]),
    (IcmpKind::Error, 4, [&[3, 11, 12], &[1, 2, 3, 4]]),
    (IcmpKind::Other, 5, [&[0, 13], &[129, 160]]),
];

fn icmp_by_kind(world: &mut World) {
    for (kind, burst, types) in KINDS {
        for ((source, dest), types) in FAMILIES.into_iter().zip(types) {
            world.pass_time(10 * SECOND);
            let mut types = types.iter().cycle();
            let mut next = || ip(source, dest).icmp(*types.next().unwrap(), 64).build();
            let what = format!("{} from {source}", kind.name());
            for _ in 0..burst {
                world.ends(&what, &next(), Reason::Pass);
            }
            world.ends(&format!("{what}, one more"), &next(), Reason::FloodIcmp);
            world.pass_time(100 * MS);
            world.ends(&format!("{what}, later"), &next(), Reason::Pass);
            world.ends(&format!("{what}, again"), &next(), Reason::FloodIcmp);
        }
    }
    // What a link cannot do without.
    for message in [130, 131, 132, 133, 134, 135, 136, 137, 143] {
        for _ in 0..20 {
            let frame = ip(V6, V6_DEST).icmp(message, 16).build();
            world.ends(&format!("type {message}"), &frame, Reason::Pass);
        }
    }
    for address in ["127.0.0.1", "::1"] {
        live_errors(world, address);
    }
}

/// Errors about connections that are there pass, whatever the limit says.
fn live_errors(world: &mut World, address: &str) {
    let Some(ends) = world.connect(address, LOCAL) else {
        return;
    };
    let (own, peer) = (ends[0].local_addr().unwrap().port(), LOCAL);
    let udp = UdpSocket::bind((address, 0)).expect("a socket");
    let udp_port = udp.local_addr().unwrap().port();
    let (source, dest) = if address.contains(':') {
        (V6, V6_DEST)
    } else {
        (V4, V4_DEST)
    };
    let error = |proto: u8, local: u16, remote: u16| {
        let ports = [local.to_be_bytes(), remote.to_be_bytes()].concat();
        let sent = ip(address, address).payload(proto, [ports, vec![0; 4]].concat());
        let inner = sent.build().split_off(14);
        let kind = if address.contains(':') { 1 } else { 3 };
        let head = vec![kind, 1, 0, 0, 0, 0, 0, 0];
        let icmp = if address.contains(':') {
            proto::ICMPV6
        } else {
            proto::ICMP
        };
        ip(source, address)
            .payload(icmp, [head, inner].concat())
            .build()
    };
    world.pass_time(10 * SECOND);
    let dead = error(proto::TCP, own ^ 1, peer ^ 1);
    for _ in 0..4 {
        world.ends("errors about nothing", &dead, Reason::Pass);
    }
    world.ends("one more of them", &dead, Reason::FloodIcmp);
    for _ in 0..20 {
        let live = error(proto::TCP, own, peer);
        world.ends(&format!("{address}: of a connection"), &live, Reason::Pass);
        let live = error(proto::UDP, udp_port, 9);
        world.ends(&format!("{address}: of a socket"), &live, Reason::Pass);
    }
    if source == V4 {
        let head = [3, 1, 0, 0, 0, 0, 0, 0];
        let about = [&head[..], &error(proto::TCP, own, peer)[42..]].concat();
        let elsewhere = ip(source, dest).payload(proto::ICMP, about).build();
        world.ends("not to who sent it", &elsewhere, Reason::FloodIcmp);
    }
    world.ends(
        "of the listener alone",
        &error(proto::TCP, peer, 9),
        Reason::FloodIcmp,
    );
    let short = ip(source, dest).icmp(if address.contains(':') { 1 } else { 3 }, 10);
    world.ends(
        "an error that is too short",
        &short.build(),
        Reason::FloodIcmp,
    );
}

fn icmp_dry_run(world: &mut World) {
    let frame = ip(V4, V4_DEST).icmp(8, 8).build();
    for _ in 0..3 {
        world.ends("within the limit", &frame, Reason::Pass);
    }
    let out = world.ends("over it", &frame, Reason::Pass);
    world.would(&out, Reason::FloodIcmp);
}

fn datagram(source: &str, dest: &str, ports: (u16, u16)) -> Ip {
    let mut bytes = vec![0; 20];
    bytes[..2].copy_from_slice(&ports.0.to_be_bytes());
    bytes[2..4].copy_from_slice(&ports.1.to_be_bytes());
    bytes[4..6].copy_from_slice(&20u16.to_be_bytes());
    ip(source, dest).payload(proto::UDP, bytes)
}

fn reflectors(world: &mut World) {
    for (n, (source, dest)) in FAMILIES.into_iter().enumerate() {
        world.pass_time(10 * SECOND);
        let from = |port| datagram(source, dest, (port, UDP)).build();
        for _ in 0..5 {
            world.ends("within the limit", &from(53), Reason::Pass);
        }
        for port in [53, 123] {
            world.ends("over it", &from(port), Reason::UdpReflection);
        }
        world.ends("from another port", &from(54), Reason::Pass);
        let other = datagram(source, dest, (53, OTHER)).build();
        world.ends("to no service", &other, Reason::Pass);
        world.pass_time(100 * MS);
        world.ends("later", &from(123), Reason::Pass);
        let reflected = world.counted(4, ServiceCounter::Reflected);
        world.check("not all were counted", reflected == 2 * (n as u64 + 1));
    }
}

/// Packets until one is dropped for `reason`, at most 1,000.
fn until(world: &mut World, reason: Reason, mut next: impl FnMut(u32) -> Vec<u8>) {
    for n in 0..1000 {
        // The time stands still, so that a source is sampled always or never.
        let out = world.send(&next(n));
        if out.reason() == Some(reason) {
            // One in 16 is counted, for 16, and 160 may come at once: eleven samples, which
            // the sources' hashes choose.
            return world.check(&format!("dropped after {n}"), (80..320).contains(&n));
        }
        if out.reason() != Some(Reason::Pass) {
            return world.fail(format!("{n}: {}", out.moved));
        }
    }
    world.fail(format!("no {reason:?} in 1,000 packets"));
}

fn source_narrow(world: &mut World) {
    let reason = Reason::FloodSource;
    let from4 = |n: u32| format!("198.18.7.{}", n % 250);
    let from6 = |n: u32| format!("2001:db8:77:{n:x}::1");
    until(world, reason, |n| ip(&from4(n), V4_DEST).udp(8).build());
    until(world, reason, |n| {
        to(OTHER, SYN).packet(&from6(n), V6_DEST).build()
    });
    let one = ip(&from4(251), V4_DEST);
    world.ends("whatever it sends", &one.clone().icmp(8, 8).build(), reason);
    let piece = one
        .clone()
        .payload(proto::UDP, [0; 64])
        .fragment(800, false);
    world.ends("in fragments too", &piece.build(), reason);
    let segment = to(OTHER, ACK).packet(&from4(251), V4_DEST).build();
    world.ends("but segments", &segment, Reason::Pass);
    world.ends(
        "the neighbour",
        &ip("198.18.8.1", V4_DEST).udp(8).build(),
        Reason::Pass,
    );
    world.ends(
        "IPv6's",
        &ip("2001:db8:78::1", V6_DEST).udp(8).build(),
        Reason::Pass,
    );
    world.pass_time(SECOND);
    world.ends("later", &one.udp(8).build(), Reason::Pass);
}

fn source_wide(world: &mut World) {
    let reason = Reason::FloodSource;
    until(world, reason, |n| {
        ip(&format!("198.18.{}.9", n % 250), V4_DEST).udp(8).build()
    });
    until(world, reason, |n| {
        ip(&format!("2001:db8:{n:x}::9"), V6_DEST).udp(8).build()
    });
    world.ends(
        "the neighbour",
        &ip("198.19.1.1", V4_DEST).udp(8).build(),
        Reason::Pass,
    );
    world.ends(
        "IPv6's",
        &ip("2001:db9::1", V6_DEST).udp(8).build(),
        Reason::Pass,
    );
}

/// A source of its own for each packet.
fn spoofed(n: u32) -> (String, String) {
    let [a, b, c, _] = n.wrapping_mul(2_654_435_761).to_be_bytes();
    (
        format!("198.{a}.{b}.{c}"),
        format!("2001:{a:x}{b:02x}:{c:x}::1"),
    )
}

fn dest(world: &mut World) {
    let reason = Reason::FloodDest;
    until(world, reason, |n| ip(&spoofed(n).0, V4_DEST).udp(8).build());
    until(world, reason, |n| ip(&spoofed(n).1, V6_DEST).udp(8).build());
    world.ends(
        "the neighbour",
        &ip(V4, "203.0.113.2").udp(8).build(),
        Reason::Pass,
    );
    world.ends(
        "IPv6's",
        &ip(V6, "2001:db8:ffff::2").udp(8).build(),
        Reason::Pass,
    );
}

fn dest_prefix(world: &mut World) {
    let reason = Reason::FloodDest;
    until(world, reason, |n| {
        let to = format!("203.0.113.{}", n % 250);
        ip(&spoofed(n).0, &to).udp(8).build()
    });
    until(world, reason, |n| {
        let to = format!("2001:db8:ffff:{n:x}::1");
        ip(&spoofed(n).1, &to).udp(8).build()
    });
    world.ends(
        "the neighbour",
        &ip(V4, "203.0.114.2").udp(8).build(),
        Reason::Pass,
    );
}

fn hitters_dry_run(world: &mut World) {
    let mut would = 0;
    for n in 0..400 {
        let out = world.send(&ip(&spoofed(n).0, V4_DEST).udp(8).build());
        world.check("it passes", out.reason() == Some(Reason::Pass));
        would += out.moved.would_drop.len();
    }
    world.check(&format!("{would} were found"), (100..300).contains(&would));
}
