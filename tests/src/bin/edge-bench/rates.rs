//! What is dropped on a link: a flood out of one end of a veth pair, and at the
//! other end, in turn, a program that drops without looking, Edge, and nftables.
//!
//! All on one processor: a live test run sends 64 frames, the receiving end wakes
//! up and takes them, and so on. So a rate is that of sending and dropping
//! together, and nothing travels between caches.

use std::{
    net::IpAddr,
    os::fd::{AsFd, BorrowedFd},
    time::Instant,
};

use anyhow::{Context, Result, ensure};
use edge_common::addr::Family;
use edge_tests::{
    harness::{Harness, Sources},
    receiver::attach,
    test_run,
};
use serde_json::json;

use crate::{
    edge::{ALL_ON, Edge, capacity, family_name},
    frame::{self, Payload},
    lists,
    packets::{Bench, HOSTS},
    pair::{FAR, Pair, call, received},
    report::{Report, Row, Target, median},
};

/// Frames of one flood: a few milliseconds, so that some floods are left alone by
/// whatever else the machine does.
const FRAMES: u32 = 20_000;
/// Floods in each turn of a contender.
const FLOODS: u32 = 10;
/// Frames before that, so that a contender finds its own state in the cache.
const WARM_UP: u32 = 20_000;
/// What Edge should reach of a program that drops without looking.
const TARGET: Target = Target::AtLeast(0.85);

/// The table of nftables.
const TABLE: &str = "bench";

/// Where the packets of a row come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum From {
    /// All from one blacklisted host.
    One,
    /// Each from another one of [`HOSTS`] blacklisted hosts.
    Each,
}

/// Who drops.
enum Dropper<'a> {
    /// An XDP program.
    Program(BorrowedFd<'a>),
    /// The rules of nftables, which are there all the time and get what no program drops.
    Rules,
}

/// A row of Edge, and with it one of nftables, which drops the same floods.
struct Spec {
    family: Family,
    from: From,
    edge: String,
    target: Option<Target>,
    rules: Option<String>,
}

impl Spec {
    fn new(family: Family, from: From) -> Self {
        let name = |what: &str| format!("{} {what}", family_name(family));
        let (edge, target, rules) = match from {
            From::One => (
                "veth, drop, blacklisted host, same source",
                Some(TARGET),
                Some("veth,   a set in an nftables ingress hook, the same"),
            ),
            From::Each => ("veth, drop, 1 M hosts, every packet another", None, None),
        };
        Self {
            family,
            from,
            edge: name(edge),
            target,
            rules: rules.map(name),
        }
    }
}

impl Bench {
    /// Measures all rows.
    pub(crate) fn rates(&mut self) -> Result<()> {
        let rows: Vec<Spec> = [From::One, From::Each]
            .into_iter()
            .flat_map(|from| [Spec::new(Family::V4, from), Spec::new(Family::V6, from)])
            .filter(|row| {
                self.wants(&row.edge) || row.rules.as_ref().is_some_and(|name| self.wants(name))
            })
            .collect();
        if rows.is_empty() {
            return Ok(());
        }
        Report::head(
            "Dropped on veth, all on one CPU, million packets/s",
            "of floor",
        );
        let pair = Pair::new()?;
        for row in rows {
            self.rate(&pair, &row)?;
        }
        Ok(())
    }

    fn rate(&mut self, pair: &Pair, row: &Spec) -> Result<()> {
        let mut harness = Harness::load(&self.objects.join("edge-bench.o"), 1, 1)?;
        let (hosts, room) = match row.from {
            From::One => (1, capacity(131_072, 65_536, 65_536)),
            From::Each => (HOSTS, capacity(HOSTS, HOSTS + 1_000, 65_536)),
        };
        let mut edge = Edge::load(ALL_ON, room, None)?;
        edge.blacklist(lists::hosts(row.family, hosts.into()))?;
        let flood = match (row.from, row.family) {
            (From::One, _) => "flood",
            (From::Each, Family::V4) => "flood4",
            (From::Each, Family::V6) => "flood6",
        };
        harness.start_over(Sources::Cycle(lists::space(row.family), hosts.into()));
        let flood = harness.contender(flood)?;
        let source = lists::source(row.family, 0);
        // Of a protocol that no receive offload tries to merge: what a flood is made of.
        let frame = frame::from(source, Payload::Udp);
        let blind = harness.contender("floor_drop")?;
        let edge_fd = edge.fd()?;
        let mut droppers = vec![
            Dropper::Program(blind.as_fd()),
            Dropper::Program(edge_fd.as_fd()),
        ];
        if row.rules.is_some() {
            pair.rules(source)?;
            droppers.push(Dropper::Rules);
        }
        let before = edge.passed_and_dropped()?;
        // A live test run needs a program on the interface; and one that is in use
        // need not be patched in whenever it runs.
        let near = attach(flood.as_fd(), pair.near)?;
        let mut rates = vec![Vec::new(); droppers.len()];
        let mut lost = 0;
        let rounds = self.effort.rounds.div_ceil(10);
        for _ in 0..rounds {
            for (dropper, rates) in droppers.iter().zip(&mut rates) {
                lost += pair.turn(flood.as_fd(), &frame, dropper, rates)?;
            }
        }
        drop(near);
        let after = edge.passed_and_dropped()?;
        let (passed, dropped) = (after.0 - before.0, after.1 - before.1);
        if row.rules.is_some() {
            pair.check_rules()?;
        }
        for rates in &mut rates {
            rates.sort_by(|a, b| f64::total_cmp(b, a));
        }
        let best = |rates: &[f64]| rates.first().copied().unwrap_or(f64::NAN);
        let [floor, others @ ..] = rates.as_slice() else {
            return Ok(());
        };
        let share = dropped as f64 / (passed + dropped).max(1) as f64 * 100.0;
        let names = [
            (Some(&row.edge), row.target, format!("{share:.1} % dropped")),
            (row.rules.as_ref(), None, String::new()),
        ];
        for ((name, target, mut note), ours) in names.into_iter().zip(others) {
            let Some(name) = name.filter(|name| self.wants(name)) else {
                continue;
            };
            if lost > 0 {
                note += &format!("; {lost} frames of the flood were lost");
            }
            self.report.add(Row {
                name: name.clone(),
                unit: "of the rate of dropping without looking",
                floor: Some(best(floor)),
                gross: Some(best(ours)),
                value: best(ours) / best(floor),
                target,
                note,
                more: json!({
                    "floor_and_gross": "million packets/s, the best round",
                    "median_floor": median(floor),
                    "median_gross": median(ours),
                    "rounds": rounds * FLOODS,
                    "packets_a_round": FRAMES,
                    "frames_lost": lost,
                }),
            });
        }
        Ok(())
    }
}

impl Pair {
    /// Makes nftables drop this source at the far end's ingress, and count the others.
    fn rules(&self, source: IpAddr) -> Result<()> {
        let (kind, family) = match source {
            IpAddr::V4(_) => ("ipv4_addr", "ip"),
            IpAddr::V6(_) => ("ipv6_addr", "ip6"),
        };
        let rules = format!(
            "table netdev {TABLE} {{ }}
            delete table netdev {TABLE}
            table netdev {TABLE} {{
                set black {{ type {kind}; elements = {{ {source} }}; }}
                chain ingress {{
                    type filter hook ingress device {} priority 0;
                    {family} saddr @black drop
                    counter
                }}
            }}",
            FAR.to_str()?
        );
        call("nft", &["-f", "-"], &rules).map(drop)
    }

    /// That nothing got past the rules.
    fn check_rules(&self) -> Result<()> {
        let rules = call("nft", &["list", "table", "netdev", TABLE], "")?;
        ensure!(
            rules.contains("counter packets 0 "),
            "nftables let packets pass that it was to drop:\n{rules}"
        );
        Ok(())
    }

    /// Lets `dropper` drop floods. Adds the million frames a second that arrived of
    /// each to `rates`, and returns how many frames were lost on the way.
    fn turn(
        &self,
        flood: BorrowedFd<'_>,
        frame: &[u8],
        dropper: &Dropper<'_>,
        rates: &mut Vec<f64>,
    ) -> Result<u64> {
        let _link = match dropper {
            Dropper::Program(program) => Some(attach(*program, self.far)?),
            Dropper::Rules => None,
        };
        let run = |times| test_run::run_live(flood, frame, self.near, times).context("no flood");
        run(WARM_UP)?;
        let mut lost = 0;
        for _ in 0..FLOODS {
            let before = received(FAR)?;
            let start = Instant::now();
            run(FRAMES)?;
            let took = start.elapsed();
            let arrived = received(FAR)?.saturating_sub(before);
            rates.push(arrived as f64 / took.as_secs_f64() / 1e6);
            lost += u64::from(FRAMES).saturating_sub(arrived);
        }
        Ok(lost)
    }
}
