//! Segments without a connection, with one, and ports on which nothing listens.

use edge_common::{
    defence::{MARK_EVERY_NS, MARK_LASTS_NS, ServiceCounter},
    reason::Reason,
};

use super::super::{V4, V4_DEST};
use crate::packet::{ACK, FIN, PSH, RST, SYN, ip, proto};

use super::*;

pub(super) fn out_of_state(world: &mut World) {
    for (source, dest) in FAMILIES {
        for (flags, reason) in [
            (ACK, Reason::CookieInvalid),
            (ACK | PSH, Reason::CookieInvalid),
            (ACK | FIN, Reason::CookieInvalid),
            (RST, Reason::TcpOutOfState),
            (RST | ACK, Reason::TcpOutOfState),
            (SYN | ACK, Reason::TcpOutOfState),
            (PSH, Reason::TcpOutOfState),
        ] {
            let segment = to(LOCAL, flags).numbers(7, 9);
            let what = format!("flags {flags:#x} from {source}");
            world.ends(&what, &segment.packet(source, dest).build(), reason);
            let nobody = Segment {
                ports: (CLIENT_PORT, CLOSED),
                ..segment.clone()
            };
            let what = format!("{what}, nobody listens");
            let frame = nobody.packet(source, dest).build();
            world.ends(&what, &frame, Reason::TcpOutOfState);
        }
    }
    // The first fragment has the header that counts; the others are of no use without it.
    let whole = ip(V4, V4_DEST).payload(proto::TCP, [to(LOCAL, ACK).bytes(), vec![0; 60]].concat());
    let first = whole.clone().piece(0..40).build();
    world.ends("a first fragment", &first, Reason::CookieInvalid);
    let later = whole.piece(40..80).build();
    world.ends("a later one", &later, Reason::Pass);
}

pub(super) fn connections(world: &mut World) {
    for address in ["127.0.0.1", "::1"] {
        let Some(ends) = world.connect(address, LOCAL) else {
            return;
        };
        let port = ends[0].local_addr().unwrap().port();
        for flags in [ACK, ACK | PSH, ACK | FIN, RST, RST | ACK, SYN | ACK] {
            let segment = to(LOCAL, flags).on_port(port);
            let frame = segment.packet(address, address).build();
            world.ends(
                &format!("{address}, flags {flags:#x}"),
                &frame,
                Reason::Pass,
            );
        }
        // A SYN in a connection is the kernel's to judge (RFC 5961, 4).
        let frame = to(LOCAL, SYN)
            .on_port(port)
            .packet(address, address)
            .build();
        world.ends(&format!("{address}, a SYN"), &frame, Reason::Pass);
        let other = to(LOCAL, ACK).on_port(port ^ 1);
        let frame = other.packet(address, address).build();
        world.ends(
            &format!("{address}, another port"),
            &frame,
            Reason::CookieInvalid,
        );
    }
}

pub(super) fn closed(world: &mut World) {
    for _ in 0..100 {
        world.ends("a hundred are refused", &to(CLOSED, SYN).v4(), Reason::Pass);
    }
    world.ends("one more is not", &to(CLOSED, SYN).v4(), Reason::SynClosed);
    world.ends("nor IPv6", &to(CLOSED, SYN).v6(), Reason::SynClosed);
    world.pass_time(SECOND / 1000);
    world.ends("1,000 a second are", &to(CLOSED, SYN).v6(), Reason::Pass);
    let closed = world.counted(0, ServiceCounter::Closed);
    world.check("not all were counted", closed == 103);
    world.ends("no scale is known", &to(UNLEARNT, SYN).v4(), Reason::Pass);
    // A listener is marked at its first SYN, and now and then afterwards.
    let marked = |world: &World| world.counted(0, ServiceCounter::Marked);
    world.pass_time(2 * MARK_EVERY_NS);
    for (step, times) in [(0, 1), (0, 1), (MARK_EVERY_NS - 1, 1), (1, 2)] {
        world.pass_time(step);
        world.ends("a SYN", &to(LOCAL, SYN).v4(), Reason::ReplySynCookie);
        let is = marked(world);
        world.check(&format!("marked {is} times, not {times}"), is == times);
    }
    let refused = world.counted(0, ServiceCounter::Unmarked);
    world.check("the kernel refused to mark", refused == 0);
    // A listener that the kernel does not mark any more would refuse the cookies.
    sysctl("tcp_syncookies", "1").expect("set a sysctl");
    for (step, reason) in [
        (MARK_EVERY_NS, Reason::ReplySynCookie),
        (MARK_LASTS_NS - MARK_EVERY_NS, Reason::ReplySynCookie),
        (1, Reason::Pass),
    ] {
        world.pass_time(step);
        world.ends("cookies are off", &to(LOCAL, SYN).v4(), reason);
    }
    sysctl("tcp_syncookies", "2").expect("set a sysctl");
    world.ends("and on again", &to(LOCAL, SYN).v4(), Reason::ReplySynCookie);
}
