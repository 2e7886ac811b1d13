//! Flows stay where they are, as long as they may.

use std::collections::BTreeSet;

use edge_common::{
    abi::TableStat,
    balance::{Balance, Forward},
};

use super::{
    super::{V4, V4_DEST},
    world::*,
    *,
};
use crate::packet::{ACK, Edit as _, FIN, RST, SYN, ip, proto};

const L2: Balance = Balance {
    forward: Forward::L2,
    ring: 0,
    by: edge_common::balance::HashBy::FiveTuple,
    echo: false,
    is_on: true,
};

fn enter(world: &mut World) {
    world.enter(V4_DEST, proto::TCP, 443, 0);
    world.enter(V4_DEST, proto::UDP, 53, 0);
    for number in 1..5 {
        world.backend(number, &format!("10.0.0.{number}"), HERE, UP);
    }
    world.balance(0, L2, &[1, 2, 3]);
}

/// A segment of a client's flow.
fn segment(port: u16, flags: u8) -> Vec<u8> {
    ip(V4, V4_DEST)
        .tcp(flags)
        .build()
        .with(34, &port.to_be_bytes())
}

fn datagram(port: u16) -> Vec<u8> {
    ip(V4, V4_DEST).udp(5).build().with(34, &port.to_be_bytes())
}

pub(super) fn stay(world: &mut World) {
    enter(world);
    let ports = 1000..1100;
    let mut first = Vec::new();
    for port in ports {
        let number = world.number_of(&segment(port, SYN));
        let udp = world.number_of(&datagram(port));
        world.reaches("the same flow", &datagram(port), udp);
        first.push((port, number, udp));
        world.check("a number", (1..4).contains(&number));
        world.reaches("an ACK follows its SYN", &segment(port, ACK), number);
    }
    let used: BTreeSet<u32> = first.iter().map(|(_, n, _)| *n).collect();
    world.check("all backends are used", used.len() == 3);
    // Another ring: flows of both protocols stay, new ones go elsewhere.
    world.balance(0, L2, &[4]);
    for (port, number, udp) in first.clone() {
        world.reaches("a flow stays", &segment(port, ACK), number);
        world.reaches("a UDP flow stays", &datagram(port), udp);
        world.reaches("a new one", &segment(port + 1000, SYN), 4);
    }
    // A drained backend is in no ring and keeps its flows; a dead one loses them, and another
    // one with its number does not get them.
    world.backend(1, "10.0.0.1", HERE, BackendWord { alive: false, ..UP });
    world.backend(
        2,
        "10.0.0.99",
        HERE,
        BackendWord {
            generation: 2,
            ..UP
        },
    );
    for (port, number, _) in first.clone() {
        let now = world.number_of(&segment(port, ACK));
        world.check(
            "dead or another one",
            now == if number == 3 { 3 } else { 4 },
        );
    }
    // And do not come back to it.
    world.backend(1, "10.0.0.1", HERE, UP);
    for (port, number, _) in first {
        let now = world.number_of(&segment(port, ACK));
        world.check("where it went", now == if number == 3 { 3 } else { 4 });
    }
}

pub(super) fn over(world: &mut World) {
    enter(world);
    let established = |world: &mut World, port| {
        let number = world.number_of(&segment(port, SYN));
        world.number_of(&segment(port, ACK));
        number
    };
    let ports: Vec<u16> = (1000..1030).collect();
    let numbers: Vec<u32> = ports.iter().map(|p| established(world, *p)).collect();
    for port in &ports {
        world.number_of(&datagram(*port));
        world.number_of(&datagram(*port));
    }
    world.balance(0, L2, &[4]);
    // Packets keep a flow, for any time.
    for _ in 0..4 {
        world.pass_time(800 * SECOND);
        for (port, number) in ports.iter().zip(&numbers) {
            world.reaches("kept", &segment(*port, ACK), *number);
        }
    }
    // UDP's 100 steps are long over, and TCP's 900 come.
    for port in &ports {
        world.reaches("UDP is over", &datagram(*port), 4);
    }
    world.pass_time(1000 * SECOND);
    for port in &ports {
        world.reaches("TCP is over", &segment(*port, ACK), 4);
    }
    // A flow of one packet is soon over, one that was closed a little later.
    world.balance(0, L2, &[1]);
    for (flags, seconds) in [(0, 12), (FIN | ACK, 67), (RST, 67)] {
        let port = 5000 + u16::from(flags);
        world.balance(0, L2, &[1]);
        world.reaches("a new flow", &segment(port, SYN), 1);
        if flags != 0 {
            world.number_of(&segment(port, ACK));
            world.reaches("its end", &segment(port, flags), 1);
        }
        world.balance(0, L2, &[2]);
        world.reaches(
            "not yet",
            &segment(port, ACK | if flags == 0 { SYN } else { 0 }),
            1,
        );
        world.pass_time(seconds * SECOND);
        world.reaches("over", &segment(port, ACK), 2);
    }
}

pub(super) fn flood(world: &mut World) {
    enter(world);
    // A tenth of the table's places.
    let ports: Vec<u16> = (1000..1100).collect();
    let mut numbers = Vec::new();
    for port in &ports {
        let number = world.number_of(&segment(*port, SYN));
        world.number_of(&segment(*port, ACK));
        numbers.push(number);
    }
    world.balance(0, L2, &[4]);
    for n in 0..8000u32 {
        let [_, _, a, b] = n.to_be_bytes();
        let flags = [SYN, ACK, RST][n as usize % 3];
        let frame = segment(7, flags).with(28, &[a, b]);
        world.send(&frame);
    }
    let refused = world.rig.stat(TableStat::FlowsReplaced).unwrap();
    world.check("the table was full", refused > 1000);
    for (port, number) in ports.iter().zip(&numbers) {
        world.reaches("a flow stays", &segment(*port, ACK), *number);
    }
    let count = world.tables.count_flows((world.now >> 30) as u32, IDLE);
    world.check(
        "flows are counted",
        count.live <= count.capacity && count.capacity == 4096,
    );
    let established: u32 = count.of_backends.iter().sum();
    world.check("established ones", established >= 100);
}

/// A number is known by all its bits, in rings and in flows.
pub(super) fn wide_numbers(world: &mut World) {
    enter(world);
    const FAR: u32 = 3 | 1 << 16 | 1 << 19;
    world.backend(FAR, "10.0.0.9", HERE, UP);
    world.balance(0, L2, &[FAR]);
    for (ring, what, frame, wanted) in [
        (FAR, "by the ring", segment(1000, SYN), [0, 1]),
        (FAR, "as a flow", segment(1000, ACK), [0, 2]),
        (3, "as before", segment(1000, ACK), [0, 3]),
        (3, "by the other ring", segment(1001, SYN), [1, 3]),
    ] {
        world.balance(0, L2, &[ring]);
        world.send(&frame);
        let went = [3, FAR].map(|n| world.tables.counter(n).expect("a counter").packets);
        world.check(&format!("{what}: {went:?}, not {wanted:?}"), went == wanted);
    }
}

/// All flows share a bucket: who is evicted is decided by the idle time of its own protocol,
/// not by that of the newcomer.
pub(super) fn own_time(world: &mut World) {
    enter(world);
    let tcp: Vec<u16> = (1000..1002).collect();
    let udp: Vec<u16> = (2000..2002).collect();
    let mut numbers = Vec::new();
    for port in &tcp {
        let number = world.number_of(&segment(*port, SYN));
        world.reaches("it begins", &segment(*port, ACK), number);
        numbers.push(number);
    }
    for port in &udp {
        let number = world.number_of(&datagram(*port));
        world.reaches("it begins", &datagram(*port), number);
    }
    // Longer than UDP's 100 steps, shorter than TCP's 900: the two flows of UDP are over, and
    // make room for whatever comes.
    world.pass_time(200 * SECOND);
    world.balance(0, L2, &[4]);
    for frame in [
        datagram(3000),
        datagram(3000),
        segment(3001, SYN),
        segment(3001, ACK),
    ] {
        world.reaches("a newcomer", &frame, 4);
    }
    for port in 4000..4010 {
        world.reaches("one too many", &datagram(port), 4);
        world.reaches("one too many", &segment(port, SYN), 4);
    }
    for (port, number) in tcp.iter().zip(&numbers) {
        world.reaches("a connection stays", &segment(*port, ACK), *number);
    }
    world.balance(0, L2, &[1]);
    world.reaches("the newcomers were taken in", &datagram(3000), 4);
    world.reaches("the newcomers were taken in", &segment(3001, ACK), 4);
}
