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
pub(super) fn reports() -> Vec<TableReport> {
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
    let mut reports: Vec<_> = all
        .into_iter()
        .map(|(name, test)| report(name, |_| {}, test))
        .collect();
    reports.push(report(
        "fragments are dropped",
        |c| c.drop_fragments = 1,
        ways::no_fragments,
    ));
    reports.push(report(
        "numbers of twenty bits",
        |c| c.backends = 1 << NUMBER_BITS,
        flows::wide_numbers,
    ));
    reports.push(report(
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
        reports.push(report(&name, |c: &mut Config| c.server_ids = 64, test));
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
        reports.push(report(&name, two, test));
    }
    reports
}

/// Runs one test.
fn report(name: &str, change: impl FnOnce(&mut Config), test: Test) -> TableReport {
    let run = || -> Result<World> {
        let mut world = World::new(change)?;
        test(&mut world);
        Ok(world)
    };
    let (rows, failures) = match run() {
        Ok(world) => (world.rows, world.failures),
        Err(e) => (0, vec![format!("{e:#}")]),
    };
    TableReport {
        name: format!("balancer: {name}"),
        rows,
        failures,
    }
}
