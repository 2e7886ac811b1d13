//! The balancer: every way to a backend, byte by byte, and which backend a flow has.

mod expected;
mod flows;
mod icmp;
mod nat;
mod quic;
mod ways;
mod world;

use anyhow::Result;
use edge_common::{
    abi::Config,
    balance::{BackendWord, Forward, NUMBER_BITS},
    reason::Reason,
};

use super::TableReport;
use crate::program::Rigs;
use world::*;

/// The reasons that the packets here end with, and no row of a table does.
pub const REASONS: [Reason; 13] = [
    Reason::Forwarded,
    Reason::ReplyEcho,
    Reason::ReplyTooBig,
    Reason::BackendNone,
    Reason::BackendNoHop,
    Reason::ForwardTtl,
    Reason::ForwardTooBig,
    Reason::ForwardFragment,
    Reason::ForwardNoRoom,
    Reason::NatNoPort,
    Reason::NatNoFlow,
    Reason::NatFamily,
    Reason::NatChecksum,
];

/// A test in a world of its own.
type Test = fn(&mut World);

const TX: u32 = 3;
const REDIRECT: u32 = 4;
const DROP: u32 = 1;
const PASS: u32 = 2;

/// A second of the program's clock.
const SECOND: u64 = 1_000_000_000;

/// A backend that takes packets.
const UP: BackendWord = BackendWord {
    alive: true,
    v6: false,
    generation: 1,
    mtu: MTU,
    vlan: 0,
    port: 0,
    forward: Forward::Ipip,
    by_id: false,
};

/// Runs everything.
pub(super) fn run(rigs: &mut Rigs, tell: &mut impl FnMut(TableReport)) {
    let all: [(&str, Test); 11] = [
        ("by the client's address", ways::by_source),
        ("every way to a backend", ways::every_way),
        ("no way to a backend", ways::no_way),
        ("packets that are too big", ways::too_big),
        ("segment sizes", ways::clamp),
        ("fragments", ways::fragments),
        ("flows stay", flows::stay),
        ("flows are over", flows::over),
        ("a flood evicts no established flow", flows::flood),
        ("errors about flows", icmp::errors),
        ("pings", icmp::pings),
    ];
    for (name, test) in all {
        tell(report(rigs, name, |_| {}, test));
    }
    tell(report(
        rigs,
        "fragments are dropped",
        |c| c.drop_fragments = 1,
        ways::no_fragments,
    ));
    tell(report(
        rigs,
        "numbers of twenty bits",
        |c| c.backends = 1 << NUMBER_BITS,
        flows::wide_numbers,
    ));
    tell(report(
        rigs,
        "flows are evicted by their own time",
        |c| c.flow_buckets = 1,
        flows::own_time,
    ));
    let quic: [(&str, Test); 5] = [
        ("every form", quic::forms),
        ("server ids", quic::ids),
        ("every way to a backend", quic::every_way),
        ("flows and ids", quic::flows),
        ("errors about flows", quic::errors),
    ];
    for (name, test) in quic {
        let name = format!("QUIC, {name}");
        let change = |c: &mut Config| c.server_ids = 64;
        tell(report(rigs, &name, change, test));
    }
    let nat: [(&str, Test); 13] = [
        ("there and back", nat::both_ways::every_way),
        ("options and extension headers", nat::both_ways::headers),
        ("UDP without a checksum", nat::both_ways::no_checksum),
        ("what cannot go on", nat::both_ways::stopped),
        ("segment sizes", nat::both_ways::clamp),
        ("flows stay", nat::flows::stay),
        ("only the backend answers", nat::flows::strangers),
        ("ports are used again", nat::flows::over),
        ("ports run out", nat::flows::exhausted),
        ("first packets", nat::flows::first_packets),
        ("ports that clients use again", nat::flows::begun_anew),
        ("what backends say", nat::flows::signals),
        ("errors about flows", nat::errors::both_ways),
    ];
    for (name, test) in nat {
        let name = format!("NAT, {name}");
        let two = |c: &mut Config| (c.snat, c.client_mtu) = (2, u32::from(MTU));
        tell(report(rigs, &name, two, test));
    }
}

/// Runs one test.
fn report(
    rigs: &mut Rigs,
    name: &str,
    change: impl FnOnce(&mut Config),
    test: Test,
) -> TableReport {
    let run = || -> Result<_> {
        let mut world = World::new(rigs, change)?;
        test(&mut world);
        rigs.give_back(world.rig)?;
        Ok((world.rows, world.failures))
    };
    let (rows, failures) = run().unwrap_or_else(|e| (0, vec![format!("{e:#}")]));
    TableReport {
        name: format!("balancer: {name}"),
        rows,
        failures,
    }
}
