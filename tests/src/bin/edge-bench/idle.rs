//! What the flood defence costs while there is no flood: nanoseconds a packet more than the
//! same program takes without a service.

use std::os::fd::AsFd as _;

use anyhow::{Context, Result, ensure};
use edge_common::{
    abi::Mode,
    addr::Family,
    defence::{ServiceCounter, When},
};
use edge_tests::harness::{Harness, Putting, Sources};
use edge_userspace::datapath::counter;
use serde_json::json;

use crate::{
    defence::Defence,
    edge::{CHECKS, Edge, capacity, family_name},
    frame::{self, Payload},
    lists,
    packets::{BOTH, Bench},
    report::{Report, Row, Target},
    syn::{CONNECTED, Host},
};

/// More a second than the harness can send.
const UNREACHED: u64 = 100_000_000;

/// A port of no service.
const OTHER_PORT: u16 = 8080;
/// Where a frame has its destination port, behind the start of the TCP header.
const PORT_AT: usize = 2;

/// Nanoseconds that two loads of the same program may differ by: what no less is told from.
const NOTHING: f64 = 2.0;
/// Nanoseconds that a defence may cost at rest.
const IDLE: f64 = 5.0;

struct Spec {
    name: &'static str,
    payload: Payload,
    /// Whether it goes to a port of no service.
    elsewhere: bool,
    /// Whether there is a service of UDP.
    reflection: bool,
    /// Whether a defence that is on asks no more of it than one that is off.
    ignored: bool,
}

const ROWS: [Spec; 5] = [
    Spec {
        name: "ACK of a connection",
        payload: Payload::Ack,
        elsewhere: false,
        reflection: false,
        ignored: true,
    },
    Spec {
        name: "ACK to another port",
        payload: Payload::Ack,
        elsewhere: true,
        reflection: false,
        ignored: true,
    },
    // Each is counted.
    Spec {
        name: "a SYN",
        payload: Payload::Syn,
        elsewhere: false,
        reflection: false,
        ignored: false,
    },
    Spec {
        name: "UDP",
        payload: Payload::Udp,
        elsewhere: false,
        reflection: false,
        ignored: true,
    },
    Spec {
        name: "UDP to a service, from no reflector",
        payload: Payload::Udp,
        elsewhere: false,
        reflection: true,
        ignored: true,
    },
];

fn names(family: Family, row: &Spec) -> [String; 2] {
    ["off", "idle"]
        .map(|state| format!("{} syn defence {state}, {}", family_name(family), row.name))
}

impl Bench {
    /// Measures the rows of no attack.
    pub(crate) fn idle(&mut self) -> Result<()> {
        let rows: Vec<(Family, &Spec)> = ROWS
            .iter()
            .flat_map(|row| BOTH.map(|family| (family, row)))
            .filter(|(family, row)| names(*family, row).iter().any(|name| self.wants(name)))
            .collect();
        if rows.is_empty() {
            return Ok(());
        }
        Report::head("SYN flood defence without a flood: what it adds", "more ns");
        let host = Host::new()?;
        let mut harness = Harness::load(&self.objects.join("edge-bench.o"), 1, 1)?;
        for (family, row) in rows {
            self.idle_row(&mut harness, &host, family, row)?;
        }
        Ok(())
    }

    fn idle_row(
        &mut self,
        harness: &mut Harness,
        host: &Host,
        family: Family,
        row: &Spec,
    ) -> Result<()> {
        let room = capacity(131_072, 65_536, 65_536);
        let defence = |when, reflection| Defence {
            incomplete: UNREACHED,
            reflection: row.reflection.then_some(reflection),
            ..host.defence(when)
        };
        let (off, idle) = (
            defence(When::Off, Mode::Off),
            defence(When::Auto, Mode::Enforce),
        );
        let mut absent = Edge::load(CHECKS, room, None)?;
        let mut off = Edge::defending(CHECKS, room, None, &off)?;
        let mut idle = Edge::defending(CHECKS, room, None, &idle)?;
        let mut frame = frame::build(family, row.payload);
        if row.elsewhere {
            set_port(family, &mut frame, OTHER_PORT)?;
        }
        let nothing = harness.contender("floor_pass")?;
        let fds = [absent.fd()?, off.fd()?, idle.fd()?];
        let [absent_fd, off_fd, idle_fd] = &fds;
        let contenders = [
            nothing.as_fd(),
            absent_fd.as_fd(),
            off_fd.as_fd(),
            idle_fd.as_fd(),
        ];
        let samples = harness.measure(
            family,
            Putting::Source,
            Sources::Same(lists::space(family), CONNECTED),
            &frame,
            &contenders,
            self.effort,
        )?;
        let tables = idle.services()?;
        let state = tables.state(0);
        ensure!(
            state.attack_since == 0,
            "{}: taken for an attack: {state:?}",
            row.name
        );
        let seen = counter(&tables.counters(0)?, ServiceCounter::Syns) > 0;
        ensure!(
            seen == (row.payload == Payload::Syn),
            "{}: SYNs were not counted, or others were",
            row.name
        );
        let [nothing, absent, rest @ ..] = samples.as_slice() else {
            return Ok(());
        };
        let targets = [NOTHING, IDLE].map(|most| row.ignored.then_some(Target::AtMost(most)));
        for ((name, target), samples) in names(family, row).into_iter().zip(targets).zip(rest) {
            if !self.wants(&name) {
                continue;
            }
            self.report.add(Row {
                name,
                unit: "ns/packet",
                floor: Some(absent.best()),
                gross: Some(samples.best()),
                value: samples.best() - absent.best(),
                target,
                note: "floor: without a service".to_owned(),
                more: json!({
                    "harness": nothing.best(),
                    "median_floor": absent.median(),
                    "median_gross": samples.median(),
                    "median_net": samples.median() - absent.median(),
                    "rounds": self.effort.rounds,
                    "packets_a_round": self.effort.packets,
                }),
            });
        }
        Ok(())
    }
}

/// Sends a frame to another port. (Its checksum is then wrong, which nobody looks at.)
fn set_port(family: Family, frame: &mut [u8], port: u16) -> Result<()> {
    let at = PORT_AT
        + match family {
            Family::V4 => edge_common::bench::TCP4_AT,
            Family::V6 => edge_common::bench::TCP6_AT,
        };
    let bytes = frame.get_mut(at..at + 2).context("a short frame")?;
    bytes.copy_from_slice(&port.to_be_bytes());
    Ok(())
}
