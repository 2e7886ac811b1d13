//! Flows and their ports.

use std::collections::{BTreeMap, BTreeSet};

use edge_common::{
    abi::TableStat,
    balance::{BackendWord, Flow},
    nat,
    reason::Reason,
};

use super::{super::SECOND, *};
use crate::packet::{ACK, FIN, RST, SYN};

const FOUR: [&str; 4] = ["10.0.0.11", "10.0.0.12", "2001:db8:b::13", "10.0.0.14"];

fn of_port(port: u16) -> Tuple {
    Tuple::new(V4, V4_DEST, (port, TCP))
}

fn segment(tuple: Tuple, flags: u8) -> Vec<u8> {
    tuple.packet(|p| p.tcp(flags)).build()
}

/// Where a packet goes to: source and backend as they are on the wire.
fn went(world: &mut World, frame: &[u8]) -> Option<Tuple> {
    let out = world.send(frame);
    (out.run.action == TX).then(|| Tuple::of(&out.run.output))
}

pub(in super::super) fn stay(world: &mut World) {
    enter(world, &FOUR);
    world.balance(0, NAT, &[3, 4, 5]);
    let flows: Vec<(Tuple, Option<Tuple>)> = (1000..1100)
        .map(|port| {
            let tuple = of_port(port);
            let first = went(world, &segment(tuple, SYN));
            (tuple, first)
        })
        .collect();
    let mut sources: Vec<_> = flows
        .iter()
        .map(|(_, t)| t.map(|t| (t.source, t.ports)))
        .collect();
    sources.sort();
    sources.dedup();
    world.check("each has a port of its own", sources.len() == flows.len());
    for (tuple, first) in &flows {
        let next = went(world, &segment(*tuple, ACK));
        world.check("stays", next.is_some() && next == *first);
    }
    // Another ring.
    world.balance(0, NAT, &[6]);
    for (tuple, first) in &flows {
        let next = went(world, &segment(*tuple, ACK));
        world.check("stays on another ring", next == *first);
        if let Some(first) = first {
            let answer = first.reversed().packet(|p| p.tcp_with(ACK, 0, 5)).build();
            comes(world, "answered", &answer, *tuple, &Link::client(0));
        }
    }
    let other = of_port(2000);
    let new = went(world, &segment(other, SYN));
    world.check(
        "a new one goes on",
        new.map(|t| t.dest.to_string()) == Some(FOUR[3].into()),
    );
    // A backend that is dead loses its flows, and so does one that is another by now; what they
    // still answer is not translated once the flow has gone elsewhere.
    world.backend(3, FOUR[0], HERE, BackendWord { alive: false, ..UP });
    world.backend(
        4,
        FOUR[1],
        HERE,
        BackendWord {
            generation: 2,
            ..UP
        },
    );
    for (tuple, first) in &flows {
        let Some(first) = *first else { continue };
        let now = went(world, &segment(*tuple, ACK)).map(|t| t.dest.to_string());
        let lives = first.dest.to_string() == FOUR[2];
        let wanted = if lives { FOUR[2] } else { FOUR[3] };
        world.check("elsewhere", now == Some(wanted.into()));
        if !lives {
            let late = first.reversed().packet(|p| p.tcp_with(ACK, 0, 5)).build();
            passes(world, "too late", &late);
        }
    }
    let count = world.tables.count_ports((world.now >> 30) as u32, IDLE);
    let live: u32 = count.live.iter().sum();
    world.check(
        &format!("{live} ports are counted"),
        live == 101 && count.live.len() == 2,
    );
}

pub(in super::super) fn strangers(world: &mut World) {
    enter(world, &FOUR[..1]);
    for (client, vip) in CLIENTS {
        for (port, tcp) in [(TCP, true), (UDP, false)] {
            let tuple = Tuple::new(client, vip, (CLIENT_PORT, port));
            let shape = |p: Ip| if tcp { p.tcp_with(ACK, 0, 9) } else { p.udp(9) };
            let other = |p: Ip| if tcp { p.udp(9) } else { p.tcp_with(ACK, 0, 9) };
            let frame = tuple.packet(shape).build();
            let left = goes(world, "a flow", &frame, FOUR[0], &Link::hop(0));
            let back = left.reversed();
            let from = |source: &str, ports| Tuple {
                source: source.parse().unwrap(),
                ports,
                ..back
            };
            let (b, s) = back.ports;
            for (what, tuple) in [
                ("another address", from(FOUR[1], (b, s))),
                ("the client itself", from(V4, (b, s))),
                ("another port", from(FOUR[0], (b + 1, s))),
                ("to another port", from(FOUR[0], (b, s ^ 1))),
                ("to a port of none", from(FOUR[0], (b, 80))),
            ] {
                passes(world, what, &tuple.packet(shape).build());
            }
            passes(world, "another protocol", &back.packet(other).build());
            let other_number = Tuple {
                dest: if left.source.to_string() == SOURCES[0].0 {
                    SOURCES[1].0.parse().unwrap()
                } else {
                    SOURCES[0].0.parse().unwrap()
                },
                ..back
            };
            passes(
                world,
                "to another source",
                &other_number.packet(shape).build(),
            );
            comes(
                world,
                "its backend",
                &back.packet(shape).build(),
                tuple,
                &Link::client(0),
            );
        }
    }
}

pub(in super::super) fn over(world: &mut World) {
    enter(world, &FOUR[..1]);
    // Who sends what, after how many seconds the flow is over, and how it began.
    let cases: [(&str, &[u8], Option<u8>, u64); 6] = [
        ("a SYN", &[SYN], None, 11),
        ("established", &[SYN, ACK], None, 970),
        ("closed by the client", &[SYN, ACK, FIN | ACK], None, 17),
        ("reset by the client", &[SYN, ACK, RST], None, 17),
        ("closed by the backend", &[SYN, ACK], Some(FIN | ACK), 17),
        ("refused", &[SYN], Some(RST | ACK), 17),
    ];
    for (port, (what, sent, answer, seconds)) in (3000..).zip(cases) {
        let tuple = of_port(port);
        let mut left = None;
        for flags in sent {
            left = went(world, &segment(tuple, *flags));
        }
        let Some(left) = left else {
            world.fail(format!("{what}: did not go"));
            continue;
        };
        let back = |flags| left.reversed().packet(|p| p.tcp_with(flags, 0, 5)).build();
        if let Some(flags) = answer {
            let frame = left.reversed().packet(|p| p.tcp(flags)).build();
            comes(world, what, &frame, tuple, &Link::client(0));
        }
        // Both ways keep it.
        for _ in 0..3 {
            world.pass_time((seconds - 5) * SECOND);
            comes(world, what, &back(ACK), tuple, &Link::client(0));
        }
        world.pass_time((seconds + 2) * SECOND);
        passes(world, &format!("{what}, over"), &back(ACK));
        // The same ends begin anew, with the same port.
        let again = went(world, &segment(tuple, SYN));
        world.check(&format!("{what}: again"), again == Some(left));
        let end = segment(of_port(port + 500), FIN | ACK);
        drops(world, "an end begins nothing", &end, Reason::NatNoFlow);
    }
    let tuple = Tuple::new(V4, V4_DEST, (3100, UDP));
    let datagram = tuple.packet(|p| p.udp(5)).build();
    let left = went(world, &datagram);
    let again = went(world, &datagram);
    world.check("the same again", again == left);
    let Some(left) = left else { return };
    let answer = left.reversed().packet(|p| p.udp(50)).build();
    world.pass_time(90 * SECOND);
    comes(world, "UDP", &answer, tuple, &Link::client(0));
    world.pass_time(112 * SECOND);
    passes(world, "UDP, over", &answer);
}

/// The port that is a way of a flow of TCP.
fn way(tuple: Tuple, i: u32) -> u32 {
    way_of(tuple, proto::TCP, i)
}

fn way_of(tuple: Tuple, proto: u8, i: u32) -> u32 {
    let ([a, b], [c, d]) = (tuple.ports.0.to_be_bytes(), tuple.ports.1.to_be_bytes());
    let flow = Flow {
        client: halves(tuple.source),
        vip: halves(tuple.dest),
        ports: u32::from_ne_bytes([a, b, c, d]),
        proto,
    };
    nat::way(flow.hash(&BALANCE_SEED), 2, i)
}

/// A flow, and for each of its ways another one whose first way that is.
fn crowd(proto: u8) -> (Tuple, Vec<Tuple>) {
    let flows = (0..50u8).flat_map(|client| {
        let client = format!("198.51.100.{client}");
        (20_000..22_000).map(move |port| Tuple::new(&client, V4_DEST, (port, TCP)))
    });
    let by_way: BTreeMap<u32, Tuple> = flows
        .clone()
        .map(|tuple| (way_of(tuple, proto, 0), tuple))
        .collect();
    for late in flows {
        let ways: BTreeSet<u32> = (0..nat::WAYS).map(|i| way_of(late, proto, i)).collect();
        let others: Vec<Tuple> = ways
            .iter()
            .filter_map(|at| by_way.get(at).copied())
            .collect();
        if others.len() == nat::WAYS as usize && !others.contains(&late) {
            return (late, others);
        }
    }
    panic!("no flow whose ways are all the first of others");
}

pub(in super::super) fn exhausted(world: &mut World) {
    enter(world, &FOUR[..1]);
    let (late, flows) = crowd(proto::TCP);
    for tuple in &flows {
        let left = went(world, &segment(*tuple, SYN));
        let again = went(world, &segment(*tuple, ACK));
        let is = left.is_some_and(|t| t.ports.0 == nat::port_of(way(*tuple, 0)));
        world.check("its first way", is && left == again);
    }
    drops(
        world,
        "all are taken",
        &segment(late, SYN),
        Reason::NatNoPort,
    );
    drops(world, "by others", &segment(late, ACK), Reason::NatNoPort);
    let refused = world
        .rig
        .stat(TableStat::FlowsRefused)
        .expect("a statistic");
    world.check("they are counted", refused == 2);
    // One that is over makes room.
    let (gone, others) = flows.split_first().expect("eight flows");
    let free = nat::port_of(way(*gone, 0));
    for _ in 0..2 {
        world.pass_time(500 * SECOND);
        for tuple in others {
            let kept = went(world, &segment(*tuple, ACK));
            let is = kept.is_some_and(|t| t.ports.0 == nat::port_of(way(*tuple, 0)));
            world.check("kept", is);
        }
    }
    let left = went(world, &segment(late, SYN));
    world.check("the free one", left.is_some_and(|t| t.ports.0 == free));
    // A SYN gives way to a new flow, an established one does not.
    world.pass_time(12 * SECOND);
    let left = went(world, &segment(*gone, SYN));
    world.check("the first again", left.is_some_and(|t| t.ports.0 == free));
    let Some(left) = went(world, &segment(late, SYN)) else {
        world.fail("did not go");
        return;
    };
    world.check("replaced", left.ports.0 == free);
    let back = left.reversed().packet(|p| p.tcp(SYN | ACK)).build();
    comes(world, "its answer", &back, late, &Link::client(0));
    went(world, &segment(late, ACK));
    let elsewhere = went(world, &segment(*gone, SYN));
    world.check("another way", elsewhere.is_some_and(|t| t.ports.0 != free));
    let kept = went(world, &segment(late, ACK));
    world.check("stays", kept == Some(left));
}

/// What anybody can make up takes no port for long from who comes later.
pub(in super::super) fn first_packets(world: &mut World) {
    type Shape = fn(Ip) -> Ip;
    let first: [(&str, u8, Shape); 3] = [
        ("a SYN", proto::TCP, |p| p.tcp(SYN)),
        ("a segment of no connection", proto::TCP, |p| p.tcp(ACK)),
        ("a datagram", proto::UDP, |p| p.udp(9)),
    ];
    enter(world, &FOUR[..1]);
    world.enter(V4_DEST, proto::UDP, TCP, 0);
    for (what, proto, shape) in first {
        world.pass_time(1000 * SECOND);
        let (late, flows) = crowd(proto);
        let taken: BTreeSet<u16> = flows
            .iter()
            .filter_map(|tuple| went(world, &tuple.packet(shape).build()))
            .map(|left| left.ports.0)
            .collect();
        let ways: BTreeSet<u16> = (0..nat::WAYS)
            .map(|i| nat::port_of(way_of(late, proto, i)))
            .collect();
        world.check(&format!("{what}: {taken:?}"), taken == ways);
        let left = went(world, &late.packet(shape).build());
        let is = left.is_some_and(|t| ways.contains(&t.ports.0));
        world.check(&format!("{what}: gives way"), is);
    }
}

/// A client uses its port again before what had it is forgotten.
pub(in super::super) fn begun_anew(world: &mut World) {
    enter(world, &FOUR);
    for (port, end) in [(6000, FIN | ACK), (6001, RST)] {
        let tuple = of_port(port);
        world.balance(0, NAT, &[3]);
        let left = went(world, &segment(tuple, SYN));
        for flags in [ACK, end] {
            went(world, &segment(tuple, flags));
        }
        // The backend has gone from the ring meanwhile.
        world.balance(0, NAT, &[4]);
        let late = went(world, &segment(tuple, ACK));
        world.check("what is late goes where it went", late == left);
        let again = went(world, &segment(tuple, SYN));
        let wanted = left.map(|t| Tuple {
            dest: FOUR[1].parse().unwrap(),
            ..t
        });
        world.check("anew, at another backend", again == wanted);
        went(world, &segment(tuple, ACK));
        // And it lives as long as any.
        world.pass_time(300 * SECOND);
        let kept = went(world, &segment(tuple, ACK));
        world.check("it goes on", kept == wanted);
        // Amid a connection a SYN changes nothing.
        world.balance(0, NAT, &[3]);
        let challenged = went(world, &segment(tuple, SYN));
        world.check("a SYN amid it", challenged == wanted);
    }
}

pub(in super::super) fn signals(world: &mut World) {
    enter(world, &FOUR[..1]);
    for port in 4000..4010 {
        let tuple = of_port(port);
        let Some(left) = went(world, &segment(tuple, SYN)) else {
            world.fail("did not go");
            return;
        };
        let back = left.reversed();
        // Again, which is no other connection.
        went(world, &segment(tuple, SYN));
        match port {
            4000..4003 => {
                went(world, &segment(back, SYN | ACK));
                went(world, &segment(tuple, ACK));
                // Of an established flow it is no refusal.
                went(world, &segment(back, RST));
            }
            4003..4005 => {
                went(world, &segment(back, RST | ACK));
            }
            _ => {}
        }
    }
    let signals = world.tables.signals(3).expect("the signals");
    let is = (signals.syns, signals.syn_acks, signals.resets) == (10, 3, 2);
    world.check(&format!("{signals:?}"), is);
    let packets = world.tables.counter(3).expect("a counter").packets;
    world.check(&format!("{packets} packets went there"), packets == 23);
    // What is reset because it is of no connection is no refusal.
    for port in 5000..5010 {
        let Some(left) = went(world, &segment(of_port(port), ACK)) else {
            world.fail("did not go");
            return;
        };
        went(world, &segment(left.reversed(), RST));
    }
    let signals = world.tables.signals(3).expect("the signals");
    world.check(&format!("{signals:?} of strays"), signals.resets == 2);
}
