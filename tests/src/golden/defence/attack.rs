//! Attacks that come and go, crowds that are none, and dry runs.

use edge_common::{defence::ServiceCounter, reason::Reason};

use super::super::{V6, V6_DEST};
use crate::packet::{ACK, FIN, PSH, RST, SYN};

use super::*;

/// Sends `n` SYNs of the automatic service, each from a port of its own.
pub(super) fn flood(world: &mut World, n: u16, reason: Reason) {
    for port in 0..n {
        let syn = to(AUTO, SYN).on_port(1024 + port);
        world.ends("a SYN of the flood", &syn.v4(), reason);
    }
}

pub(super) fn auto(world: &mut World) {
    // 20 at once and 10 a second may stay incomplete.
    flood(world, 20, Reason::Pass);
    let state = world.services.state(1);
    world.check("no attack yet", state.attack_until == 0);
    let start = world.now;
    flood(world, 50, Reason::ReplySynCookie);
    let state = world.services.state(1);
    world.check("the attack began now", state.attack_since == start);
    world.check(
        "for as long as is held",
        state.attack_until == start + 10 * SECOND,
    );
    world.ends("IPv6 as well", &to(AUTO, SYN).v6(), Reason::ReplySynCookie);
    let guess = to(AUTO, ACK).numbers(7, 9).v4();
    world.ends("a guess", &guess, Reason::CookieInvalid);
    // Ten seconds of quiet end it; 10 a second are no attack.
    for _ in 0..8 {
        world.pass_time(SECOND);
        flood(world, 30, Reason::ReplySynCookie);
    }
    let until = world.services.state(1).attack_until;
    world.check("it went on", until > start + 15 * SECOND);
    world.pass_time(until - world.now - 1);
    world.ends(
        "until it is over",
        &to(AUTO, SYN).v4(),
        Reason::ReplySynCookie,
    );
    world.pass_time(1);
    world.ends("which it is now", &to(AUTO, SYN).v4(), Reason::Pass);
    let since = world.services.state(1).attack_since;
    world.check("it was one attack", since == start);
}

pub(super) fn crowd(world: &mut World) {
    // Five times as many as may stay incomplete, but there is a connection of each.
    let mut streams = Vec::new();
    for _ in 0..100 {
        let Some(ends) = world.connect("127.0.0.1", AUTO) else {
            return;
        };
        let port = ends[0].local_addr().unwrap().port();
        streams.push(ends);
        let syn = to(AUTO, SYN).on_port(port);
        let own = |segment: &Segment| segment.packet("127.0.0.1", "127.0.0.1").build();
        world.ends("a SYN of the crowd", &own(&syn), Reason::Pass);
        let end = to(AUTO, ACK).on_port(port).numbers(syn.seq + 1, 9);
        world.ends("its end", &own(&end), Reason::Pass);
    }
    let completed = world.counted(1, ServiceCounter::Completed);
    world.check(&format!("{completed} were seen"), completed > 40);
    flood(world, 12, Reason::Pass);
    // Acknowledgements of nothing prove nothing.
    world.pass_time(100 * SECOND);
    for port in 0..60 {
        for flags in [SYN, ACK] {
            let seq = u32::from(flags == ACK) + 5;
            let half = to(AUTO, flags).on_port(3000 + port).numbers(seq, 9);
            world.send(&half.v4());
        }
    }
    world.ends(
        "pairs are an attack",
        &to(AUTO, SYN).v4(),
        Reason::ReplySynCookie,
    );
    // Nor are they let go for being no SYNs.
    world.pass_time(100 * SECOND);
    world.ends("it is over", &to(AUTO, SYN).v6(), Reason::Pass);
    let guess = to(AUTO, ACK).numbers(7, 9);
    world.sampled(&guess, V6, V6_DEST);
    world.ends("guesses are an attack", &guess.v6(), Reason::CookieInvalid);
    // Which goes on as long as they come.
    let since = world.services.state(1).attack_since;
    for _ in 0..20 {
        world.pass_time(2 * SECOND);
        world.sampled(&guess, V6, V6_DEST);
    }
    let state = world.services.state(1);
    world.check("it is one attack", state.attack_since == since);
    world.ends("still", &guess.v6(), Reason::CookieInvalid);
}

pub(super) fn dry_run(world: &mut World) {
    // As the host is without a daemon that sets it.
    sysctl("tcp_syncookies", "1").expect("set a sysctl");
    for (source, dest) in FAMILIES {
        for (flags, reason) in [
            (SYN, Reason::ReplySynCookie),
            (ACK, Reason::CookieInvalid),
            (RST, Reason::TcpOutOfState),
        ] {
            let frame = to(DRY, flags).packet(source, dest).build();
            let out = world.ends("dry run", &frame, Reason::Pass);
            world.would(&out, reason);
        }
    }
    let sent = world.counted(2, ServiceCounter::CookiesSent);
    world.check("cookies were sent", sent == 0);
}

pub(super) fn rest(world: &mut World) {
    for (n, (source, dest)) in FAMILIES.into_iter().enumerate() {
        world.pass_time(1000 * SECOND);
        let frame = |flags| to(OTHER, flags).packet(source, dest).build();
        world.sampled(&to(OTHER, ACK), source, dest);
        for flags in [ACK, RST, FIN | ACK, SYN | ACK] {
            world.ends("of no connection", &frame(flags), Reason::TcpOutOfState);
        }
        world.ends("but a SYN", &frame(SYN), Reason::Pass);
        let address = ["127.0.0.1", "::1"][n];
        let Some(ends) = world.connect(address, UNLEARNT) else {
            return;
        };
        // The client's end is a port of no service.
        let own = ends[0].local_addr().unwrap().port();
        let segment = to(own, ACK | PSH).on_port(UNLEARNT);
        let live = segment.packet(address, address).build();
        world.ends("of a connection", &live, Reason::Pass);
        let other = to(LOCAL, ACK).packet(source, dest).build();
        world.ends("of a service", &other, Reason::CookieInvalid);
    }
}
