//! What a packet costs: nanoseconds on one processor, net of the harness.

use std::{os::fd::AsFd, path::PathBuf};

use anyhow::{Context, Result, ensure};
use aya::maps::{HashMap, LpmTrie, MapData, lpm_trie::Key};
use edge_common::{
    addr::{Family, Prefix},
    bench::{Space, maps},
};
use edge_tests::harness::{Effort, Harness, Putting, Samples, Sources};
use edge_userspace::tables::Capacity;
use serde_json::json;

use crate::{
    edge::{ALL_OFF, ALL_ON, CHECKS, Edge, capacity, family_name},
    frame::{self, Payload},
    lists::{self, Near},
    report::{Report, Row, Target},
    xdp_filter::XdpFilter,
};

/// Blacklisted hosts of each family in the large tables.
pub(crate) const HOSTS: u32 = 1_000_000;
/// Blacklisted prefixes of each family in the large tables.
pub(crate) const PREFIXES: u32 = 200_000;

/// Where the sources of a row come from.
#[derive(Clone, Copy, Debug)]
enum From {
    /// One that nothing matches.
    Same,
    /// One blacklisted host.
    SameListed,
    /// Any, never seen before.
    Fresh,
    /// Never seen before, and far from every listed prefix.
    Away,
    /// Every blacklisted host in turn.
    Hosts,
    /// Around the listed prefixes.
    Near(Near),
}

/// A row to be measured.
struct Spec {
    name: String,
    family: Family,
    payload: Payload,
    from: From,
    under: Under,
    target: Option<f64>,
}

/// The program of a row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Under {
    Edge,
    /// One of the harness, which only looks the source up in a map of the kernel.
    Plain(&'static str),
    /// xdp-filter with the hosts on its blacklist.
    XdpFilter,
}

impl Spec {
    fn edge(name: &str, family: Family, from: From, target: Option<f64>) -> Self {
        Self {
            name: format!("{} {name}", family_name(family)),
            family,
            payload: Payload::Ack,
            from,
            under: Under::Edge,
            target,
        }
    }

    fn plain(name: &str, family: Family, from: From, program: &'static str) -> Self {
        Self {
            under: Under::Plain(program),
            ..Self::edge(name, family, from, None)
        }
    }

    fn xdp_filter(name: &str, family: Family, from: From) -> Self {
        Self {
            under: Under::XdpFilter,
            ..Self::edge(&format!("  xdp-filter, {name}"), family, from, None)
        }
    }

    fn with(self, payload: Payload) -> Self {
        Self { payload, ..self }
    }
}

/// How everything is measured.
pub(crate) struct Bench {
    /// Directory of the eBPF objects.
    pub(crate) objects: PathBuf,
    /// Another build of Edge's object to be measured beside the embedded one.
    pub(crate) against: Option<PathBuf>,
    /// Only rows whose names contain this.
    pub(crate) filter: String,
    /// How long to measure each row.
    pub(crate) effort: Effort,
    /// What was measured.
    pub(crate) report: Report,
}

/// A configuration, what is on its lists, and the rows measured with both.
struct Group {
    title: &'static str,
    settings: String,
    capacity: Capacity,
    hosts: u32,
    prefixes: u32,
    rows: Vec<Spec>,
}

/// Both families.
pub(crate) const BOTH: [Family; 2] = [Family::V4, Family::V6];

impl Bench {
    /// Measures all rows.
    pub(crate) fn packets(&mut self) -> Result<()> {
        for group in groups() {
            self.group(group)?;
        }
        Ok(())
    }

    /// Whether a row of this name is wanted.
    pub(crate) fn wants(&self, name: &str) -> bool {
        name.contains(&self.filter)
    }

    fn group(&mut self, group: Group) -> Result<()> {
        let rows: Vec<Spec> = group
            .rows
            .into_iter()
            .filter(|row| self.wants(&row.name))
            .collect();
        if rows.is_empty() {
            return Ok(());
        }
        Report::head(group.title, "net ns");
        let lists = BOTH.map(|f| lists::prefixes(f, group.prefixes.into()));
        let mut edges = Vec::new();
        for object in std::iter::once(None).chain(self.against.iter().map(Some)) {
            let object = object.map(PathBuf::as_path);
            let mut edge = Edge::load(&group.settings, group.capacity, object)?;
            for family in BOTH {
                edge.blacklist(lists::hosts(family, group.hosts.into()))?;
            }
            for list in &lists {
                edge.blacklist(list.iter().copied())?;
            }
            edges.push(edge);
        }
        let plain = rows.iter().any(|row| matches!(row.under, Under::Plain(_)));
        let mut peer = None;
        if rows.iter().any(|row| row.under == Under::XdpFilter) {
            let filter = peer.insert(XdpFilter::load(group.hosts)?);
            for family in BOTH {
                filter.blacklist(family, shuffled(family, group.hosts))?;
            }
        }
        let object = self.objects.join("edge-bench.o");
        let mut harness = if plain {
            let mut harness = Harness::load(&object, group.hosts, group.prefixes)?;
            fill_plain(&mut harness, group.hosts, &lists)?;
            harness
        } else {
            Harness::load(&object, 1, 1)?
        };
        for row in rows {
            let [v4, v6] = &lists;
            let list = match row.family {
                Family::V4 => v4,
                Family::V6 => v6,
            };
            self.row(&mut harness, &mut edges, peer.as_ref(), list, row)?;
        }
        Ok(())
    }

    fn row(
        &mut self,
        harness: &mut Harness,
        edges: &mut [Edge],
        peer: Option<&XdpFilter>,
        prefixes: &[Prefix],
        row: Spec,
    ) -> Result<()> {
        let first = edges.first().context("no program to measure")?;
        let listed;
        let home = lists::space(row.family);
        let sources = match row.from {
            From::Same => Sources::Same(home, u64::MAX / 2),
            From::SameListed => Sources::Same(home, 0),
            From::Fresh => Sources::Fresh(home),
            From::Away => Sources::Fresh(match row.family {
                Family::V4 => Space::V4_AWAY,
                Family::V6 => Space::V6_AWAY,
            }),
            From::Hosts => Sources::Cycle(home, HOSTS.into()),
            From::Near(how) => {
                listed = lists::near(row.family, how, prefixes, |a| first.is_blacklisted(a));
                Sources::Listed(&listed)
            }
        };
        let before = first.passed_and_dropped()?;
        let (floor, put) = match row.under {
            Under::XdpFilter => ("floor_linear", Putting::LinearSource),
            Under::Edge | Under::Plain(_) => ("floor_pass", Putting::Source),
        };
        let floor = harness.contender(floor)?;
        let (plain, fds);
        let mut contenders = vec![floor.as_fd()];
        match row.under {
            Under::Edge => {
                fds = edges.iter_mut().map(Edge::fd).collect::<Result<Vec<_>>>()?;
                contenders.extend(fds.iter().map(AsFd::as_fd));
            }
            Under::Plain(name) => {
                plain = harness.contender(name)?;
                contenders.push(plain.as_fd());
            }
            Under::XdpFilter => contenders.extend(peer.map(XdpFilter::fd)),
        }
        let frame = frame::build(row.family, row.payload);
        let samples =
            harness.measure(row.family, put, sources, &frame, &contenders, self.effort)?;
        if let Some(peer) = peer
            && row.under == Under::XdpFilter
            && matches!(row.from, From::SameListed | From::Hosts)
        {
            ensure!(
                peer.has_dropped(row.family, lists::host(row.family, 0))?,
                "xdp-filter drops nothing"
            );
        }
        let after = edges.first().context("no program")?.passed_and_dropped()?;
        let (passed, dropped) = (after.0 - before.0, after.1 - before.1);
        let share = dropped as f64 / (passed + dropped).max(1) as f64;
        let [floor, ours, others @ ..] = samples.as_slice() else {
            return Ok(());
        };
        let net = |s: &Samples| s.best() - floor.best();
        let is_edge = row.under == Under::Edge;
        let mut note = if is_edge {
            format!("{:.1} % dropped", share * 100.0)
        } else {
            String::new()
        };
        for other in others {
            note += &format!("; other object {:.1}", net(other));
        }
        self.report.add(Row {
            name: row.name,
            unit: "ns/packet",
            floor: Some(floor.best()),
            gross: Some(ours.best()),
            value: net(ours),
            target: row.target.map(Target::AtMost),
            note,
            more: json!({
                "median_floor": floor.median(),
                "median_gross": ours.median(),
                "median_net": ours.median() - floor.median(),
                "dropped_share": is_edge.then_some(share),
                "others_net": others.iter().map(net).collect::<Vec<_>>(),
                "verified_instructions": edges.iter_mut().map(|e| e.verified_instructions().ok().flatten()).collect::<Vec<_>>(),
                "rounds": self.effort.rounds,
                "packets_a_round": self.effort.packets,
            }),
        });
        Ok(())
    }
}

/// Puts the same lists into the kernel's own maps.
fn fill_plain(harness: &mut Harness, hosts: u32, prefixes: &[Vec<Prefix>; 2]) -> Result<()> {
    let v4 = |p: &Prefix| (p.bits() as u32).to_be();
    let v6 = |p: &Prefix| {
        let bytes = p.bits().to_be_bytes();
        let mut words = [0; 4];
        for (word, chunk) in words.iter_mut().zip(bytes.as_chunks::<4>().0) {
            *word = u32::from_ne_bytes(*chunk);
        }
        words
    };
    let mut hash4: HashMap<&mut MapData, u32, u32> = harness.map(maps::HASH4)?.try_into()?;
    for host in shuffled(Family::V4, hosts) {
        hash4.insert(v4(&host), 1, 0)?;
    }
    let mut hash6: HashMap<&mut MapData, [u32; 4], u32> = harness.map(maps::HASH6)?.try_into()?;
    for host in shuffled(Family::V6, hosts) {
        hash6.insert(v6(&host), 1, 0)?;
    }
    let [list4, list6] = prefixes;
    let mut lpm4: LpmTrie<&mut MapData, u32, u32> = harness.map(maps::LPM4)?.try_into()?;
    for prefix in list4 {
        lpm4.insert(&Key::new(prefix.len().into(), v4(prefix)), 1, 0)?;
    }
    let mut lpm6: LpmTrie<&mut MapData, [u32; 4], u32> = harness.map(maps::LPM6)?.try_into()?;
    for prefix in list6 {
        lpm6.insert(&Key::new(prefix.len().into(), v6(prefix)), 1, 0)?;
    }
    Ok(())
}

/// The hosts in another order than packets have them: a hash of the kernel keeps its elements
/// in the order in which they came, and the processor would fetch one after the other ahead.
fn shuffled(family: Family, hosts: u32) -> impl Iterator<Item = Prefix> {
    /// A prime, so that each comes once.
    const STRIDE: u64 = 611_953;
    let n = u64::from(hosts);
    (0..n).map(move |i| lists::host(family, i * STRIDE % n))
}

fn groups() -> Vec<Group> {
    let small = capacity(131_072, 65_536, 65_536);
    let same = |title, settings: &str, rows: &[(&str, Payload)], target| Group {
        title,
        settings: settings.to_owned(),
        capacity: small,
        hosts: 1,
        prefixes: 0,
        rows: BOTH
            .into_iter()
            .flat_map(|f| {
                rows.iter().map(move |(name, payload)| {
                    Spec::edge(name, f, From::Same, target).with(*payload)
                })
            })
            .collect(),
    };
    let mut all_on = same(
        "All checks and limits on, same source",
        ALL_ON,
        &[
            ("pass, all on, TCP ACK", Payload::Ack),
            ("pass, all on, TCP SYN", Payload::Syn),
            ("pass, all on, UDP", Payload::Udp),
        ],
        Some(25.0),
    );
    for family in BOTH {
        let name = "drop, blacklisted host, same source";
        all_on
            .rows
            .push(Spec::edge(name, family, From::SameListed, Some(16.0)));
        all_on
            .rows
            .push(Spec::xdp_filter(name, family, From::SameListed));
    }
    let ack = |name: &'static str| [(name, Payload::Ack)];
    vec![
        all_on,
        same(
            "What each stage adds, same source",
            ALL_OFF,
            &ack("pass, all off"),
            None,
        ),
        same(
            "",
            CHECKS,
            &ack("pass, checks on, no limits, no samples"),
            None,
        ),
        same(
            "",
            &format!("{CHECKS}\n[limits]\npackets.rate = '1G'"),
            &ack("pass, and a limit of packets"),
            None,
        ),
        same(
            "",
            &format!("{CHECKS}\n[limits]\npackets.rate = '1G'\nbytes.rate = '1000GB'"),
            &ack("pass, and a limit of bytes"),
            None,
        ),
        same(
            "",
            &format!(
                "{CHECKS}\n[limits]\npackets.rate = '1G'\nbytes.rate = '1000GB'\nsyn.rate = '1G'"
            ),
            &[("pass, and a limit of SYNs, TCP SYN", Payload::Syn)],
            None,
        ),
        Group {
            title: "1 M blacklisted hosts of each family, all on",
            settings: ALL_ON.to_owned(),
            capacity: capacity(HOSTS, HOSTS + 1_000, 65_536),
            hosts: HOSTS,
            prefixes: 0,
            rows: BOTH.into_iter().flat_map(hosts_rows).collect(),
        },
        Group {
            title: "and 200,000 blacklisted prefixes of each family",
            settings: ALL_ON.to_owned(),
            capacity: capacity(HOSTS, HOSTS + 1_000, 2 * PREFIXES + 1_000),
            hosts: HOSTS,
            prefixes: PREFIXES,
            rows: BOTH.into_iter().flat_map(prefix_rows).collect(),
        },
        Group {
            title: "Limiter: 10 packets/s a source",
            settings: format!("{CHECKS}\n[limits]\npackets = {{ rate = 10, burst = 20 }}"),
            capacity: small,
            hosts: 0,
            prefixes: 0,
            rows: BOTH
                .into_iter()
                .flat_map(|f| {
                    [
                        Spec::edge("drop, over its limit, same source", f, From::Same, None),
                        Spec::edge(
                            "pass, flood of new sources, limiter full",
                            f,
                            From::Fresh,
                            None,
                        ),
                    ]
                })
                .collect(),
        },
    ]
}

fn hosts_rows(family: Family) -> Vec<Spec> {
    let (hash, line) = match family {
        Family::V4 => ("plain_hash4", "plain_line4"),
        Family::V6 => ("plain_hash6", "plain_line6"),
    };
    vec![
        Spec::edge(
            "pass, 1 M hosts, new source each packet",
            family,
            From::Fresh,
            Some(90.0),
        ),
        Spec::xdp_filter("pass, 1 M hosts", family, From::Fresh),
        Spec::plain(
            "  a kernel hash alone, none of 1 M hosts",
            family,
            From::Fresh,
            hash,
        ),
        Spec::edge(
            "drop, 1 M hosts, every packet another",
            family,
            From::Hosts,
            Some(120.0),
        ),
        Spec::xdp_filter("drop, 1 M hosts", family, From::Hosts),
        Spec::plain(
            "  one line and 60 instructions, 1 M hosts in turn",
            family,
            From::Hosts,
            line,
        ),
        Spec::plain(
            "  a kernel hash alone, 1 M hosts in turn",
            family,
            From::Hosts,
            hash,
        ),
    ]
}

fn prefix_rows(family: Family) -> Vec<Spec> {
    let (lpm, limit, close) = match family {
        Family::V4 => (
            "plain_lpm4",
            110.0,
            "pass, prefixes, close: same /24 as one",
        ),
        Family::V6 => (
            "plain_lpm6",
            200.0,
            "pass, prefixes, close: same /32 as one",
        ),
    };
    let cases = [
        ("pass, prefixes, miss", From::Away, Some(limit)),
        (
            "pass, prefixes, near: same /16 as one",
            From::Near(Near::Slash16),
            Some(limit),
        ),
        // A quarter of the IPv4 ones are inside one: the targets are for what passes.
        ("pass or drop, prefixes, any source", From::Fresh, None),
        (close, From::Near(Near::Close), None),
        ("drop, prefixes, inside one", From::Near(Near::Inside), None),
    ];
    cases
        .into_iter()
        .flat_map(|(name, from, target)| {
            [
                Spec::edge(name, family, from, target),
                Spec::plain("  a kernel LPM trie alone, the same", family, from, lpm),
            ]
        })
        .collect()
}
