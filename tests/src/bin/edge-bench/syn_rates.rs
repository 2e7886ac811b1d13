//! How many SYNs a second one CPU answers: a flood out of one end of a veth pair, and
//! at the other end, in turn, a program that sends frames back without looking, Edge,
//! the kernel's own cookies, and SYNPROXY of nftables.
//!
//! As with [`crate::rates`], all is on one processor, and a rate is that of sending,
//! answering and dropping the answers together. Each drops its answers where it costs
//! least: those that XDP sends in XDP at the near end, those of the kernel's TCP in an
//! egress hook before the device, since the near end would have to copy them.

use std::{
    net::{Ipv6Addr, TcpListener},
    os::fd::{AsFd, BorrowedFd},
    time::Instant,
};

use anyhow::{Context, Result, ensure};
use edge_common::{addr::Family, defence::When, reason::Verdict};
use edge_tests::{
    harness::{Harness, Sources},
    packet,
    receiver::attach,
    test_run,
};
use serde_json::json;

use crate::{
    defence::{Defence, PORT, set_sysctls, sysctl},
    edge::{CHECKS, Edge, capacity, family_name},
    frame, lists,
    packets::{BOTH, Bench},
    pair::{FAR, NEAR, Pair, call, received},
    report::{Report, Row, Target, median},
    syn::INCOMPLETE,
};

/// SYNs of one flood.
const FRAMES: u32 = 20_000;
/// Floods in each turn of a contender.
const FLOODS: u32 = 5;
/// SYNs before that.
const WARM_UP: u32 = 20_000;
/// Million SYNs a second that Edge should answer.
const TARGET: Target = Target::AtLeast(2.0);

/// The table of nftables that drops and counts what the kernel answers.
const SINK: &str = "bench-sink";
/// Any window scale: nobody takes a connection here.
const WSCALE: u8 = 7;

/// Who answers.
enum Answerer<'a> {
    /// An XDP program.
    Program(BorrowedFd<'a>),
    /// The kernel's TCP, with cookies.
    Cookies,
    /// SYNPROXY before it.
    Synproxy,
}

impl Bench {
    /// Measures all rows.
    pub(crate) fn syn_rates(&mut self) -> Result<()> {
        let rows: Vec<(Family, [String; 3])> = BOTH
            .into_iter()
            .map(|family| {
                let names = [
                    "syn rate on veth, Edge",
                    "syn rate on veth,   the kernel's own cookies",
                    "syn rate on veth,   nftables SYNPROXY",
                ];
                (
                    family,
                    names.map(|n| format!("{} {n}", family_name(family))),
                )
            })
            .filter(|(_, names)| names.iter().any(|name| self.wants(name)))
            .collect();
        if rows.is_empty() {
            return Ok(());
        }
        Report::head("SYNs answered on veth, all on one CPU", "million/s");
        set_sysctls()?;
        let pair = protected_pair()?;
        let _listener = TcpListener::bind((Ipv6Addr::UNSPECIFIED, PORT))?;
        for (family, names) in rows {
            self.syn_rate(&pair, family, &names)?;
        }
        Ok(())
    }

    fn syn_rate(&mut self, pair: &Pair, family: Family, names: &[String; 3]) -> Result<()> {
        let mut harness = Harness::load(&self.objects.join("edge-bench.o"), 1, 1)?;
        let defence = Defence {
            when: When::Auto,
            incomplete: INCOMPLETE,
            wscale: WSCALE,
            addresses: BOTH.map(frame::host).to_vec(),
            reflection: None,
        };
        let room = capacity(131_072, 65_536, 65_536);
        let mut edge = Edge::defending(CHECKS, room, None, &defence)?;
        let syn = frame::linux_syn(lists::source(family, 0), frame::host(family));
        harness.put_syn(family, &syn)?;
        harness.start_over(Sources::Fresh(lists::space(family)));
        harness.pace(0, 0);
        let flood = harness.contender(match family {
            Family::V4 => "flood_syn4",
            Family::V6 => "flood_syn6",
        })?;
        let (back, blind) = (
            harness.contender("flood")?,
            harness.contender("floor_drop")?,
        );
        let edge_fd = edge.fd()?;
        let answerers = [
            Answerer::Program(back.as_fd()),
            Answerer::Program(edge_fd.as_fd()),
            Answerer::Cookies,
            Answerer::Synproxy,
        ];
        // A live test run needs a program on the interface. The flood's own is in use
        // elsewhere, so that it need not be patched in whenever it runs.
        let _near = attach(blind.as_fd(), pair.near)?;
        let _in_use = harness.in_use(match family {
            Family::V4 => "flood_syn4",
            Family::V6 => "flood_syn6",
        })?;
        let mut rates = vec![Vec::new(); answerers.len()];
        let mut missing = vec![0; answerers.len()];
        let rounds = self.effort.rounds.div_ceil(20);
        for _ in 0..rounds {
            for ((answerer, rates), missing) in answerers.iter().zip(&mut rates).zip(&mut missing) {
                *missing += turn(pair, flood.as_fd(), &syn, answerer, rates)?;
            }
        }
        let sent = u64::from(rounds * FLOODS * FRAMES);
        let (replied, passed) = (edge.ended(Verdict::Reply)?, edge.ended(Verdict::Pass)?);
        ensure!(
            replied > passed * 20,
            "Edge answered {replied} SYNs and left {passed} to the kernel"
        );
        for rates in &mut rates {
            rates.sort_by(|a, b| f64::total_cmp(b, a));
        }
        let best = |rates: &[f64]| rates.first().copied().unwrap_or(f64::NAN);
        let [floor, answered @ ..] = rates.as_slice() else {
            return Ok(());
        };
        let [_, missing @ ..] = missing.as_slice() else {
            return Ok(());
        };
        let targets = [Some(TARGET), None, None];
        let rows = names.iter().zip(targets).zip(answered).zip(missing);
        for (((name, target), rates), missing) in rows {
            if !self.wants(name) {
                continue;
            }
            let share = 100.0 - *missing as f64 / sent as f64 * 100.0;
            self.report.add(Row {
                name: name.clone(),
                unit: "million SYNs answered a second",
                floor: Some(best(floor)),
                gross: Some(best(rates)),
                value: best(rates),
                target,
                note: format!("{share:.1} % answered; floor: sent back without looking"),
                more: json!({
                    "median_floor": median(floor),
                    "median_gross": median(rates),
                    "rounds": rounds * FLOODS,
                    "packets_a_round": FRAMES,
                    "not_answered": missing,
                }),
            });
        }
        Ok(())
    }
}

/// A pair whose far end is that of a host with a route to everybody.
fn protected_pair() -> Result<Pair> {
    let pair = Pair::new()?;
    let far = FAR.to_str()?;
    let mac = packet::DEST_MAC.map(|byte| format!("{byte:02x}")).join(":");
    call("ip", &["link", "set", far, "address", &mac], "")?;
    for family in BOTH {
        let address = frame::host(family).to_string();
        let (flag, nodad): (_, &[&str]) = match family {
            Family::V4 => ("-4", &[]),
            Family::V6 => ("-6", &["nodad"]),
        };
        let add = [flag, "addr", "add", &address, "dev", far];
        call("ip", &[&add, nodad].concat(), "")?;
        call("ip", &[flag, "route", "add", "default", "dev", far], "")?;
    }
    Ok(pair)
}

/// Lets an answerer answer floods. Adds the million answers a second of each to
/// `rates`, and returns how many SYNs were not answered.
fn turn(
    pair: &Pair,
    flood: BorrowedFd<'_>,
    frame: &[u8],
    answerer: &Answerer<'_>,
    rates: &mut Vec<f64>,
) -> Result<u64> {
    let _link = match answerer {
        Answerer::Program(program) => Some(attach(*program, pair.far)?),
        Answerer::Cookies => None,
        Answerer::Synproxy => {
            synproxy()?;
            None
        }
    };
    let in_xdp = matches!(answerer, Answerer::Program(_));
    if !in_xdp {
        sink()?;
    }
    let answers = || if in_xdp { received(NEAR) } else { sunk() };
    let run = |times| test_run::run_live(flood, frame, pair.near, times).context("no flood");
    run(WARM_UP)?;
    let mut missing = 0;
    for _ in 0..FLOODS {
        let before = answers()?;
        let start = Instant::now();
        run(FRAMES)?;
        let took = start.elapsed();
        let answered = answers()?.saturating_sub(before);
        rates.push(answered as f64 / took.as_secs_f64() / 1e6);
        missing += u64::from(FRAMES).saturating_sub(answered);
    }
    if !in_xdp {
        call("nft", &["delete", "table", "netdev", SINK], "")?;
    }
    if let Answerer::Synproxy = answerer {
        call("nft", &["delete", "table", "inet", SYNPROXY], "")?;
    }
    Ok(missing)
}

/// Drops and counts SYN-ACKs that the kernel sends.
fn sink() -> Result<()> {
    let far = FAR.to_str()?;
    let rules = format!(
        "table netdev {SINK} {{
            chain out {{
                type filter hook egress device {far} priority 0;
                tcp flags & (syn | ack) == syn | ack counter drop
            }}
        }}"
    );
    call("nft", &["-f", "-"], &rules).map(drop)
}

/// How many those were.
fn sunk() -> Result<u64> {
    let rules = call("nft", &["list", "table", "netdev", SINK], "")?;
    let mut words = rules.split_whitespace();
    words
        .by_ref()
        .find(|word| *word == "packets")
        .and_then(|_| words.next()?.parse().ok())
        .with_context(|| format!("no counter in\n{rules}"))
}

/// The table of nftables with SYNPROXY.
pub(crate) const SYNPROXY: &str = "bench-synproxy";

/// Rules that put SYNPROXY before [`PORT`] of this network namespace, as nftables'
/// documentation has them.
pub(crate) fn synproxy_rules() -> String {
    format!(
        "table inet {SYNPROXY} {{
            chain before {{
                type filter hook prerouting priority raw;
                tcp dport {PORT} tcp flags & (fin | syn | rst | ack) == syn notrack
            }}
            chain input {{
                type filter hook input priority filter;
                tcp dport {PORT} ct state invalid,untracked synproxy mss 1460 wscale {WSCALE} \
                timestamp sack-perm
                ct state invalid drop
            }}
        }}"
    )
}

/// Puts them in force.
pub(crate) fn synproxy() -> Result<()> {
    call("nft", &["-f", "-"], &synproxy_rules())?;
    sysctl("net/netfilter/nf_conntrack_tcp_loose", "0")
}
