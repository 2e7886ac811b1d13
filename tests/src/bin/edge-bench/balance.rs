//! What the balancer costs a packet: nanoseconds, net of the harness, which makes each
//! frame anew where it began, for the program under test moves the head.

use std::{
    collections::BTreeMap,
    fmt::Write as _,
    net::IpAddr,
    os::fd::{AsFd as _, OwnedFd},
};

use anyhow::{Context, Result, ensure};
use edge_common::{
    abi::TableStat,
    addr::Family,
    balance::{Backend, BackendWord, Balance, Forward, HashBy, hop},
    bench::{TCP_FLAGS_AT, TCP4_AT, TCP6_AT},
    defence::{
        SOURCE_PROTO, TARGET_FORWARDED, TARGET_SOURCE, Target, TargetKey, WSCALE_UNKNOWN, v4_halves,
    },
    nat::Source,
    parse::{proto, tcp as flag},
    reason::Verdict,
};
use edge_tests::{
    frames,
    harness::{Effort, Harness, Putting, Samples, Sources},
    packet, test_run,
};
use serde_json::json;

use crate::{
    edge::{ALL_OFF, ALL_ON, Edge, SEED, capacity, family_name},
    frame, lists,
    packets::{BOTH, Bench},
    report::{Report, Row, Target as Limit},
};

/// Backends of each service.
const BACKENDS: u32 = 100;
/// Services in the rows with many.
const MANY: u32 = 1000;
/// The interface that test runs come from.
const HERE: u32 = 1;
/// Addresses of NAT's source.
const SOURCES: [&str; 2] = ["192.0.2.9", "2001:db8::9"];
/// Next hop of backends, and the interface to them.
const HOP: [[u8; 6]; 2] = [[2, 0, 0, 0, 9, 1], [2, 0, 0, 0, 9, 2]];
/// Of so many per cent of a row's packets must have become what it is about.
const NEARLY_ALL: f64 = 99.9;
/// Of rows in which each packet is of a new flow, in a table that is full of such.
const EVICTS: &str = "a new flow evicts one";

/// The ways and the ports of their services.
const WAYS: [(Forward, &str, u16); 4] = [
    (Forward::Ipip, "ipip", 80),
    (Forward::Gue, "gue", 81),
    (Forward::L2, "l2", 82),
    (Forward::Nat, "nat", 83),
];

/// Services and their tables in a loaded program.
pub(crate) struct Balanced {
    pub(crate) edge: Edge,
    /// The firewall's word in the names of rows.
    firewall: &'static str,
}

/// Balanced services as a configuration has them: one for each way, and more of the first.
fn settings(services: u32, firewall: &str, flows: u32) -> String {
    let mut text = String::new();
    for service in 0..services {
        let (hi, lo) = (service / 250, service % 250);
        let (_, way, port) = way_of(service);
        let addresses = if service < WAYS.len() as u32 {
            let [v4, v6] = BOTH.map(frame::host);
            format!("'{v4}', '{v6}'")
        } else {
            format!("'198.51.{hi}.{lo}', '2001:db8:1::{service:x}'")
        };
        let _ = writeln!(
            text,
            "[[service]]\nname = 's{service}'\naddresses = [{addresses}]\nports = [{port}]\n\
             syn = 'off'\nforward = '{way}'"
        );
        for n in 0..BACKENDS {
            let _ = writeln!(
                text,
                "[[service.backend]]\nname = 'b{n}'\naddress = '10.{hi}.{lo}.{}'",
                n + 1
            );
        }
    }
    format!(
        "{firewall}\n[balance]\nsnat = ['{}', '{}']\nflows = {flows}\n{text}",
        SOURCES[0], SOURCES[1]
    )
}

/// How a service is reached: those beyond the first few are as the first one.
fn way_of(service: u32) -> (Forward, &'static str, u16) {
    WAYS.get(service as usize).copied().unwrap_or(WAYS[0])
}

impl Balanced {
    /// Loads the program with so many services, and room for so many flows.
    fn load(services: u32, firewall: &'static str, rules: &str, flows: u32) -> Result<Self> {
        let text = settings(services, rules, flows);
        let room = capacity(131_072, 65_536, 65_536);
        let edge = Edge::load_with(&text, room, None, |program| {
            program.targets = 16 * services + 64;
            program.config.snat = 1;
            program.config.client_mtu = 1500;
        })?;
        let loaded = Self { edge, firewall };
        loaded.fill(services)?;
        Ok(loaded)
    }

    /// The same with the firewall on and one service for each way, for packets that leave by
    /// an interface, to a MAC address, to backends of a family.
    pub(crate) fn leaving(interface: u32, mac: [u8; 6], family: Family) -> Result<Self> {
        let (name, rules) = FIREWALL_ON;
        let services = WAYS.len() as u32;
        let loaded = Self::load(services, name, rules, 1_000_000)?;
        loaded.only(family, services)?;
        let tables = loaded.edge.balance()?;
        for number in 1..=services * BACKENDS {
            let own = Backend {
                hop: hop(mac, HOP[1], interface),
                ..tables.backend(number)
            };
            tables.set_backend(number, &own);
        }
        Ok(loaded)
    }

    /// Fills the tables, as the daemon does.
    fn fill(&self, services: u32) -> Result<()> {
        let tables = self.edge.balance()?;
        let mut targets = BTreeMap::new();
        for service in 0..services {
            let (forward, _, port) = way_of(service);
            let addresses = if service < WAYS.len() as u32 {
                BOTH.map(frame::host)
            } else {
                let [hi, lo] = [service / 250, service % 250].map(|n| n as u8);
                let far = [0x2001, 0xdb8, 1, 0, 0, 0, 0, service as u16];
                [[198, 51, hi, lo].into(), far.into()]
            };
            for address in addresses {
                // The filter of services' addresses is made from those for pings.
                for (port, proto) in [(port, proto::TCP), (0, proto::ICMP)] {
                    let target = target(service, TARGET_FORWARDED);
                    targets.insert(key(address, port, proto), target);
                }
            }
            let first = 1 + service * BACKENDS;
            for n in 0..BACKENDS {
                let family = if n % 2 == 0 { Family::V4 } else { Family::V6 };
                let own = backend(first + n, family, forward);
                tables.set_backend(first + n, &own);
            }
            let balance = Balance {
                ring: service + 1,
                forward,
                by: HashBy::FiveTuple,
                echo: false,
                is_on: true,
            };
            tables.set_balance(service as usize, balance);
        }
        let [v4, v6] = SOURCES.map(|text| text.parse().map(halves));
        let source = Source { v4: v4?, v6: v6? };
        for text in SOURCES {
            targets.insert(
                key(text.parse()?, 0, SOURCE_PROTO),
                target(0, TARGET_SOURCE),
            );
        }
        self.edge.services()?.set_targets(&targets, &[], &SEED)?;
        tables.set_sources(&[source]);
        Ok(())
    }

    /// Makes the rings of the backends of one family, so that all outer headers are alike.
    fn only(&self, family: Family, services: u32) -> Result<()> {
        let tables = self.edge.balance()?;
        let odd = u32::from(family == Family::V6);
        for service in 0..services {
            let first = 1 + service * BACKENDS;
            let slots = (0..tables.slots()).map(|slot| first + odd + slot % (BACKENDS / 2) * 2);
            tables.write_ring(service + 1, &slots.collect::<Vec<_>>());
        }
        Ok(())
    }
}

fn key(address: IpAddr, port: u16, proto: u8) -> TargetKey {
    TargetKey {
        address: halves(address),
        port: port.to_be(),
        proto,
        pad: [0; 5],
    }
}

const fn target(service: u32, kind: u8) -> Target {
    Target {
        service,
        mss: 0,
        wscale: WSCALE_UNKNOWN,
        kind,
        marked_at: 0,
    }
}

/// The backend with a number: an address of the harness's sources, for it answers as well.
fn backend(number: u32, family: Family, forward: Forward) -> Backend {
    Backend {
        address: halves(lists::source(family, number.into())),
        source: halves(frame::host(family)),
        hop: hop(HOP[0], HOP[1], HERE),
        word: BackendWord {
            alive: true,
            v6: family == Family::V6,
            generation: 1,
            mtu: 1500,
            vlan: 0,
            port: 0,
            forward,
            by_id: false,
        }
        .word(),
        spread: 0,
    }
}

fn halves(address: IpAddr) -> [u64; 2] {
    match address {
        IpAddr::V4(a) => v4_halves(u32::from_ne_bytes(a.octets())),
        IpAddr::V6(a) => {
            let [a, b, c, d, e, f, g, h, rest @ ..] = a.octets();
            [
                u64::from_ne_bytes([a, b, c, d, e, f, g, h]),
                u64::from_ne_bytes(rest),
            ]
        }
    }
}

/// An acknowledgement with 20 bytes of options, as the harness makes it.
pub(crate) fn segment(source: IpAddr, dest: IpAddr, port: u16) -> Result<Vec<u8>> {
    let macs = (packet::SOURCE_MAC, packet::DEST_MAC);
    let mut frame = frames::linux_syn(macs, source, dest, port);
    let at = tcp_at(&dest) + TCP_FLAGS_AT;
    *frame.get_mut(at).context("a short segment")? = flag::ACK;
    Ok(frame)
}

const fn tcp_at(address: &IpAddr) -> usize {
    match address {
        IpAddr::V4(_) => TCP4_AT,
        IpAddr::V6(_) => TCP6_AT,
    }
}

/// Whose flows a row has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Flows {
    /// One that goes on.
    One,
    /// So many, in turn, which all go on.
    Many(u32),
    /// Another one each packet, in a table that is full of such.
    New,
}

/// What it should take at the most, nanoseconds.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Most {
    Stated,
    Ns(f64),
    /// What IPIP takes in this run.
    AsIpip,
}

/// What is measured, with each firewall.
struct Spec {
    name: String,
    family: Family,
    /// The position of the way in [`WAYS`].
    way: usize,
    flows: Flows,
    /// Whether it is the answer of a backend.
    is_answer: bool,
    most: Most,
}

impl Spec {
    fn ipip(name: &str, family: Family, flows: Flows, most: Most) -> Self {
        Self {
            name: format!("ipip, {name}"),
            family,
            way: 0,
            flows,
            is_answer: false,
            most,
        }
    }

    fn way(way: usize, there: &str, family: Family, is_answer: bool, most: Most) -> Self {
        let (_, name, _) = way_of(way as u32);
        Self {
            name: format!("{name}{there}, same packet"),
            family,
            way,
            flows: Flows::One,
            is_answer,
            most,
        }
    }

    fn row_name(&self, firewall: &str) -> String {
        let family = family_name(self.family);
        format!("{family} balance, {}, {firewall}", self.name)
    }
}

/// Firewalls: the words for them and their settings.
const FIREWALLS: [(&str, &str); 2] = [("firewall off", ALL_OFF), FIREWALL_ON];
const FIREWALL_ON: (&str, &str) = ("firewall on", ALL_ON);

/// Services, room for flows, and what is measured with them.
fn groups() -> [(u32, u32, Vec<Spec>); 3] {
    let few = WAYS.len() as u32;
    let both = |specs: fn(Family) -> Vec<Spec>| BOTH.into_iter().flat_map(specs).collect();
    [
        (
            few,
            1_000_000,
            both(|f| {
                vec![
                    Spec::way(0, "", f, false, Most::Ns(60.0)),
                    Spec::way(1, "", f, false, Most::Stated),
                    Spec::way(2, "", f, false, Most::Stated),
                    Spec::way(3, ", to the backend", f, false, Most::AsIpip),
                    Spec::way(3, ", to the client", f, true, Most::AsIpip),
                    Spec::ipip("100 k flows", f, Flows::Many(100_000), Most::Ns(180.0)),
                    Spec::ipip(EVICTS, f, Flows::New, Most::Ns(400.0)),
                ]
            }),
        ),
        (
            few,
            4_000_000,
            both(|f| {
                let flows = Flows::Many(1_000_000);
                vec![Spec::ipip(
                    "1 M flows, room for 4 M",
                    f,
                    flows,
                    Most::Stated,
                )]
            }),
        ),
        (
            MANY,
            1_000_000,
            both(|f| {
                let of = |name: &str, flows| {
                    Spec::ipip(&format!("1,000 services, {name}"), f, flows, Most::Stated)
                };
                vec![
                    of("same packet", Flows::One),
                    of("100 k flows", Flows::Many(100_000)),
                    of(EVICTS, Flows::New),
                ]
            }),
        ),
    ]
}

impl Bench {
    /// Measures what the balancer costs a packet.
    pub(crate) fn balance(&mut self) -> Result<()> {
        Report::head("Balancer, 100 backends a service", "net ns");
        for (services, flows, specs) in groups() {
            let wanted = |spec: &Spec| FIREWALLS.iter().any(|(f, _)| self.wants(&spec.row_name(f)));
            let specs: Vec<Spec> = specs.into_iter().filter(wanted).collect();
            if specs.is_empty() {
                continue;
            }
            let mut harness = Harness::load(&self.objects.join("edge-bench.o"), 1, 1)?;
            let mut loaded: Vec<Balanced> = FIREWALLS
                .into_iter()
                .map(|(name, rules)| Balanced::load(services, name, rules, flows))
                .collect::<Result<_>>()?;
            let mut ipip = Vec::new();
            for (i, spec) in specs.iter().enumerate() {
                let is_first = i.checked_sub(1).and_then(|i| specs.get(i));
                if is_first.is_none_or(|before| before.family != spec.family) {
                    for balanced in &loaded {
                        balanced.only(spec.family, services)?;
                    }
                    ipip.clear();
                }
                let values = self.balance_row(&mut harness, &mut loaded, spec, &ipip)?;
                if ipip.is_empty() && spec.way == 0 && spec.flows == Flows::One {
                    ipip = values;
                }
            }
        }
        for family in BOTH {
            self.not_for_us(family)?;
        }
        Ok(())
    }

    /// Measures a row with each firewall, and says what it took with which.
    fn balance_row(
        &mut self,
        harness: &mut Harness,
        loaded: &mut [Balanced],
        spec: &Spec,
        ipip: &[f64],
    ) -> Result<Vec<f64>> {
        let family = spec.family;
        let name = |balanced: &Balanced| spec.row_name(balanced.firewall);
        let home = lists::space(family);
        let (_, _, port) = WAYS.get(spec.way).copied().context("a way")?;
        let mut fds = Vec::new();
        for balanced in loaded.iter_mut() {
            fds.push(balanced.edge.fd()?);
        }
        // A client that no backend is.
        let mut number = u64::MAX / 2;
        let client = lists::source(family, number);
        let mut frame = segment(client, frame::host(family), port)?;
        if spec.is_answer {
            // The flow must be there in both, and its port is the same in both.
            let mut answer = Vec::new();
            for fd in &fds {
                answer = test_run::run(fd.as_fd(), &frame, 1)?.output;
            }
            (number, frame) = answered(family, &answer)?;
        }
        harness.put_syn(family, &frame)?;
        let sources = match spec.flows {
            Flows::One => Sources::Same(home, number),
            Flows::Many(flows) => Sources::Cycle(home, flows.into()),
            Flows::New => Sources::Fresh(home),
        };
        // Until all flows are there, and have had a second packet.
        let packets = match spec.flows {
            Flows::One => 10,
            Flows::Many(flows) => 3 * flows,
            Flows::New => 5_000_000,
        };
        for fd in &fds {
            let effort = Effort { rounds: 1, packets };
            let only = [fd.as_fd()];
            harness.measure(family, Putting::Moved, sources, &frame, &only, effort)?;
        }
        let before = seen(loaded)?;
        let samples = self.in_turns(harness, family, sources, &frame, &fds)?;
        let after = seen(loaded)?;
        let [floor, others @ ..] = samples.as_slice() else {
            return Ok(Vec::new());
        };
        let mut values = Vec::new();
        for (i, (balanced, ours)) in loaded.iter().zip(others).enumerate() {
            let [all, forwarded, hits, evicted] = moved(&before, &after, i);
            let part = |n: u64| n as f64 / all.max(1) as f64 * 100.0;
            ensure!(
                part(forwarded) > NEARLY_ALL,
                "{}: {:.1} % were forwarded only: {:?}",
                name(balanced),
                part(forwarded),
                balanced.edge.endings()?
            );
            let note = match spec.flows {
                Flows::New => format!("{:.0} % evict another flow", part(evicted)),
                _ => format!("{:.1} % of a known flow", part(hits)),
            };
            let value = ours.best() - floor.best();
            values.push(value);
            let most = match spec.most {
                Most::Stated => None,
                Most::Ns(most) => Some(most),
                Most::AsIpip => ipip.get(i).map(|most| most.round()),
            };
            let most = most.map(Limit::AtMost);
            self.add_row(name(balanced), floor, ours, most, note);
        }
        Ok(values)
    }

    /// Packets to an address that is of no service, and what the balancer adds to them.
    fn not_for_us(&mut self, family: Family) -> Result<()> {
        let name = format!(
            "{} balance, not for us, beyond the firewall",
            family_name(family)
        );
        if !self.wants(&name) {
            return Ok(());
        }
        let room = capacity(131_072, 65_536, 65_536);
        let mut without = Edge::load(ALL_ON, room, None)?;
        let services = WAYS.len() as u32;
        let mut balanced = Balanced::load(services, FIREWALL_ON.0, FIREWALL_ON.1, 1_000_000)?;
        let mut harness = Harness::load(&self.objects.join("edge-bench.o"), 1, 1)?;
        let fds = [without.fd()?, balanced.edge.fd()?];
        let dest: IpAddr = match family {
            Family::V4 => [192, 0, 2, 77].into(),
            Family::V6 => [0x2001, 0xdb8, 0, 0, 0, 0, 0, 0x77].into(),
        };
        let client = lists::source(family, u64::MAX / 2);
        let frame = segment(client, dest, 80)?;
        harness.put_syn(family, &frame)?;
        let sources = Sources::Same(lists::space(family), u64::MAX / 2);
        let samples = self.in_turns(&mut harness, family, sources, &frame, &fds)?;
        if let [_, without, with] = samples.as_slice() {
            let note = "floor: without services".to_owned();
            self.add_row(name, without, with, Some(Limit::AtMost(18.0)), note);
        }
        Ok(())
    }

    /// What does nothing and these programs, in turns.
    fn in_turns(
        &self,
        harness: &mut Harness,
        family: Family,
        sources: Sources<'_>,
        frame: &[u8],
        fds: &[OwnedFd],
    ) -> Result<Vec<Samples>> {
        let floor = harness.contender("floor_pass")?;
        let mut contenders = vec![floor.as_fd()];
        contenders.extend(fds.iter().map(|fd| fd.as_fd()));
        let put = Putting::Moved;
        harness.measure(family, put, sources, frame, &contenders, self.effort)
    }

    fn add_row(
        &mut self,
        name: String,
        floor: &Samples,
        ours: &Samples,
        target: Option<Limit>,
        note: String,
    ) {
        if !self.wants(&name) {
            return;
        }
        self.report.add(Row {
            name,
            unit: "ns/packet",
            floor: Some(floor.best()),
            gross: Some(ours.best()),
            value: ours.best() - floor.best(),
            target,
            note,
            more: json!({
                "median_floor": floor.median(),
                "median_gross": ours.median(),
                "median_net": ours.median() - floor.median(),
                "rounds": self.effort.rounds,
                "packets_a_round": self.effort.packets,
            }),
        });
    }
}

/// The number of the backend that a translated segment went to, and its answer.
fn answered(family: Family, frame: &[u8]) -> Result<(u64, Vec<u8>)> {
    let [source, dest] = addresses(family, frame)?;
    let at = tcp_at(&dest);
    let port = |at: usize| -> Result<u16> {
        let bytes = frame.get(at..at + 2).context("a short frame")?;
        Ok(u16::from_be_bytes([bytes[0], bytes[1]]))
    };
    let (ours, theirs) = (port(at)?, port(at + 2)?);
    let number = (1..=WAYS.len() as u64 * u64::from(BACKENDS))
        .find(|n| lists::source(family, *n) == dest)
        .with_context(|| format!("{dest} is no backend"))?;
    let mut answer = segment(dest, source, ours)?;
    answer
        .get_mut(at..at + 2)
        .context("a short frame")?
        .copy_from_slice(&theirs.to_be_bytes());
    Ok((number, answer))
}

/// Source and destination of a frame.
fn addresses(family: Family, frame: &[u8]) -> Result<[IpAddr; 2]> {
    let short = "a short frame";
    match family {
        Family::V4 => [26, 30]
            .map(|at| frame.get(at..).and_then(|b| b.first_chunk::<4>()))
            .map(|b| b.copied().map(IpAddr::from)),
        Family::V6 => [22, 38]
            .map(|at| frame.get(at..).and_then(|b| b.first_chunk::<16>()))
            .map(|b| b.copied().map(IpAddr::from)),
    }
    .into_iter()
    .collect::<Option<Vec<_>>>()
    .and_then(|all| all.try_into().ok())
    .context(short)
}

/// All packets, those forwarded, those of known flows and those that evicted one, of each.
fn seen(loaded: &[Balanced]) -> Result<Vec<[u64; 4]>> {
    let one = |balanced: &Balanced| -> Result<[u64; 4]> {
        let edge = &balanced.edge;
        let forwarded = edge.ended(Verdict::Forward)?;
        let (passed, dropped) = edge.passed_and_dropped()?;
        Ok([
            forwarded + passed + dropped,
            forwarded,
            edge.stat(TableStat::FlowHits)?,
            edge.stat(TableStat::FlowsReplaced)?,
        ])
    };
    loaded.iter().map(one).collect()
}

fn moved(before: &[[u64; 4]], after: &[[u64; 4]], at: usize) -> [u64; 4] {
    let of = |all: &[[u64; 4]]| all.get(at).copied().unwrap_or_default();
    let (before, after) = (of(before), of(after));
    let mut moved = after;
    for (moved, before) in moved.iter_mut().zip(before) {
        *moved -= before;
    }
    moved
}
