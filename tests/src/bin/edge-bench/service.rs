//! A real service beside a SYN flood: nginx on a host of its own, a client that connects to
//! it, and between them Edge, the kernel's own cookies, or SYNPROXY of nftables.
//!
//! One processor is the host's: there its interface receives (in a thread, as a NIC's
//! interrupts would be bound) and nginx runs. Everything outside runs on the other one: the
//! flood, the client, and what comes back to both. Flood and client share the host's one
//! receive queue. A flood that is flat out keeps 128 SYNs on their way that are not answered
//! yet, so that it is as fast as the host answers and never fills the queue; one with a pace
//! keeps to that, and what the host does not take is lost, the client's packets as well.

use std::{
    fs,
    net::{IpAddr, SocketAddr},
    os::fd::{AsFd as _, OwnedFd},
    sync::atomic::{AtomicBool, Ordering::Relaxed},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use edge_common::{addr::Family, defence::When, reason::Verdict};
use edge_tests::{
    frames,
    harness::{Flooded, Harness, Sources},
    lab::{LAST_ADDRESS, Lab, Link},
    netns::Namespace,
    receiver::attach,
    server::Nginx,
    test_run,
    wait::{self, PATIENCE},
};
use serde_json::json;

use crate::{
    client::{self, Load, Outcome},
    defence::{Defence, PORT, set_sysctls, sysctl, window_scale},
    edge::{CHECKS, Edge, capacity},
    lists, machine,
    packets::Bench,
    report::{Report, Row, Target},
    syn::INCOMPLETE,
    syn_rates::{SYNPROXY, synproxy_rules},
};

/// The processor of the host.
pub(crate) const HOST_CPU: usize = 0;
/// That of everything else.
pub(crate) const OUTSIDE_CPU: usize = 1;
/// The host's interface.
pub(crate) const HOST_DEVICE: &str = "eth0";
/// The interface at the other end.
pub(crate) const OUTSIDE_DEVICE: &str = "out0";
/// SYNs a second of a flood with a pace.
const PACE: u64 = 900_000;
/// Unanswered SYNs on their way of a flood without.
const WINDOW: u64 = 128;
/// Frames of one test run of the flood, sent or not.
const FRAMES: u32 = 1 << 20;

/// Real-time priorities, so that nothing waits for what else the machine does. The flood
/// has none: it never sleeps. nginx comes before its host's receiving, which a flood that
/// is too much for it keeps busy: it gets more than its share beside a kernel's softirq.
const CLIENT: i32 = 3;
const NGINX: i32 = 2;
const RECEIVING: i32 = 1;

/// New connections a second of the real client.
const RATE: Load = Load::Rate(300);
/// As many connections at a time of one that is flat out.
const FLAT_OUT: Load = Load::FlatOut(16);

/// Who stands before the service.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Guard {
    /// Nobody: for a service without a flood.
    Nobody,
    Cookies,
    Synproxy,
    Edge,
}

/// What comes beside the client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Flood {
    None,
    Paced,
    FlatOut,
}

/// One cell of the table.
struct Cell {
    name: String,
    guard: Guard,
    flood: Flood,
    load: Load,
}

impl Bench {
    /// Measures all cells.
    pub(crate) fn service(&mut self) -> Result<()> {
        let (guards, floods) = (
            [Guard::Cookies, Guard::Synproxy, Guard::Edge],
            [Flood::Paced, Flood::FlatOut],
        );
        let flooded = floods
            .into_iter()
            .flat_map(|flood| guards.map(|guard| (guard, flood)));
        let cells: Vec<Cell> = [RATE, FLAT_OUT]
            .into_iter()
            .flat_map(|load| {
                std::iter::once((Guard::Nobody, Flood::None))
                    .chain(flooded.clone())
                    .map(move |(guard, flood)| Cell {
                        name: cell_name(guard, flood, load),
                        guard,
                        flood,
                        load,
                    })
            })
            .collect();
        if !cells.iter().any(|cell| self.wants(&cell.name)) {
            return Ok(());
        }
        machine::need_two()?;
        Report::head("nginx and a real client beside a flood of SYNs", "");
        let mut alone: Option<(Load, Outcome)> = None;
        for cell in cells {
            let is_floor = cell.flood == Flood::None;
            if !is_floor && !self.wants(&cell.name) {
                continue;
            }
            let (outcome, flooded) = self.cell(&cell)?;
            if is_floor {
                alone = Some((cell.load, outcome.clone()));
            }
            let floor = alone.as_ref().filter(|(load, _)| *load == cell.load);
            self.add(&cell, &outcome, floor.map(|(_, outcome)| outcome), &flooded);
        }
        Ok(())
    }

    fn add(&mut self, cell: &Cell, outcome: &Outcome, alone: Option<&Outcome>, flood: &str) {
        let edge = cell.guard == Guard::Edge;
        let target = |target| edge.then_some(target);
        let (p50, p99) = (outcome.percentile(50), outcome.percentile(99));
        let more = json!({
            "connections": outcome.tried(),
            "succeeded_per_cent": outcome.succeeded(),
            "p50_ms": p50,
            "p99_ms": p99,
            "a_second": outcome.rate(),
            "flood": flood,
        });
        let mut row = |what: &str, unit, floor, gross: Option<f64>, value, target, note: &str| {
            self.report.add(Row {
                name: format!("{}, {what}", cell.name),
                unit,
                floor,
                gross,
                value,
                target,
                note: note.to_owned(),
                more: more.clone(),
            });
        };
        if cell.load == FLAT_OUT {
            let floor = alone.map(Outcome::rate);
            let note = format!("{:.2} % succeeded; {flood}", outcome.succeeded());
            let rate = outcome.rate();
            row(
                "connections/s",
                "a second",
                floor,
                Some(rate),
                rate,
                None,
                &note,
            );
            return;
        }
        let note = format!("of {}; {flood}", outcome.tried());
        let least = target(Target::AtLeast(99.9));
        row(
            "succeeded",
            "%",
            None,
            None,
            outcome.succeeded(),
            least,
            &note,
        );
        for (what, ms, limit, per_cent) in [("p50", p50, 1.5, 50), ("p99", p99, 3.0, 99)] {
            let floor = alone.map(|alone| alone.percentile(per_cent));
            let ratio = floor.map_or(f64::NAN, |floor| ms / floor);
            let most = target(Target::AtMost(limit));
            row(
                what,
                "times that of no flood",
                floor,
                Some(ms),
                ratio,
                most,
                "ms; of no flood",
            );
        }
    }

    /// Sets everything up anew, and has the client connect.
    fn cell(&self, cell: &Cell) -> Result<(Outcome, String)> {
        let time = Duration::from_secs(if self.effort.rounds < 100 { 4 } else { 15 });
        let mut lab = Lab::new(1);
        for link in &mut lab.links {
            link.free_outside();
        }
        let link = lab.link();
        // Received in NAPI, whoever sends and with any program or none.
        lab.host.run("ethtool", &["-K", HOST_DEVICE, "gro", "on"]);
        lab.host
            .ip(&format!("route add default via {}", link.v4(2)));
        link.outside
            .run("ethtool", &["-K", OUTSIDE_DEVICE, "gro", "on"]);
        receive_on(&lab.host, HOST_DEVICE, HOST_CPU)?;
        receive_on(&link.outside, OUTSIDE_DEVICE, OUTSIDE_CPU)?;
        link.outside.inside(|| {
            sysctl("net/ipv4/ip_local_port_range", "1024 65535")?;
            sysctl("net/ipv4/tcp_tw_reuse", "1")
        })?;
        machine::pin(HOST_CPU)?;
        machine::real_time_thread(0, NGINX)?;
        let _nginx = Nginx::start(&lab.host);
        machine::real_time_thread(0, 0)?;
        machine::pin(OUTSIDE_CPU)?;
        let host = SocketAddr::new(link.v4(1), PORT);
        let wscale = link.outside.inside(|| window_scale(host))?;
        if cell.guard != Guard::Nobody {
            lab.host.inside(set_sysctls)?;
        }
        let mut edge = None;
        let mut program: Option<OwnedFd> = None;
        match cell.guard {
            Guard::Nobody | Guard::Cookies => {}
            Guard::Synproxy => {
                nft(&lab.host, &synproxy_rules())?;
                lab.host
                    .inside(|| sysctl("net/netfilter/nf_conntrack_tcp_loose", "0"))?;
            }
            Guard::Edge => {
                let defence = Defence {
                    when: When::Auto,
                    incomplete: INCOMPLETE,
                    wscale,
                    addresses: vec![link.v4(1)],
                    reflection: None,
                };
                let room = capacity(131_072, 65_536, 65_536);
                let mut loaded = Edge::defending(CHECKS, room, None, &defence)?;
                let (fd, index) = (loaded.fd()?, lab.host.ifindex(HOST_DEVICE));
                program = Some(lab.host.inside(|| attach(fd.as_fd(), index))?);
                edge = Some(loaded);
            }
        }
        let measured = self.beside_flood(cell, link, host, time)?;
        drop(program);
        if let Some(edge) = edge {
            let (replied, passed) = (edge.ended(Verdict::Reply)?, edge.ended(Verdict::Pass)?);
            ensure!(
                replied > 100_000,
                "Edge answered {replied} SYNs only, and passed {passed} packets"
            );
        }
        if cell.guard == Guard::Synproxy {
            lab.host.run("nft", &["delete", "table", "inet", SYNPROXY]);
        }
        Ok(measured)
    }

    fn beside_flood(
        &self,
        cell: &Cell,
        link: &Link,
        host: SocketAddr,
        time: Duration,
    ) -> Result<(Outcome, String)> {
        let mut harness = Harness::load(&self.objects.join("edge-bench.o"), 1, 1)?;
        let source = lists::source(Family::V4, 0);
        let syn = frames::linux_syn(link.macs(), source, host.ip(), PORT);
        harness.put_syn(Family::V4, &syn)?;
        harness.start_over(Sources::Fresh(lists::space(Family::V4)));
        match cell.flood {
            Flood::None => {}
            Flood::Paced => harness.pace(1_000_000_000 / PACE, 0),
            Flood::FlatOut => harness.pace(0, WINDOW),
        }
        let index = link.outside.ifindex(OUTSIDE_DEVICE);
        let (sink, flood) = (harness.contender("sink")?, harness.contender("flood_syn4")?);
        let _sink = link.outside.inside(|| attach(sink.as_fd(), index))?;
        let sources: Vec<IpAddr> = (2..=LAST_ADDRESS).map(|last| link.v4(last)).collect();
        let connect = |load, time| {
            link.outside.inside(|| {
                machine::real_time_thread(0, CLIENT)?;
                client::load(&sources, host, load, time)
            })
        };
        let warm = connect(RATE, Duration::from_millis(300))?;
        ensure!(
            warm.succeeded() > 99.0,
            "{}: the service does not work",
            cell.name
        );
        if cell.flood == Flood::None {
            return Ok((connect(cell.load, time)?, String::new()));
        }
        let stop = AtomicBool::new(false);
        thread::scope(|scope| {
            let flood = scope.spawn(|| {
                link.outside.inside(|| {
                    while !stop.load(Relaxed) {
                        test_run::run_live(flood.as_fd(), &syn, index, FRAMES)
                            .context("no flood")?;
                    }
                    anyhow::Ok(())
                })
            });
            let outcome = until_flooded(&harness).and_then(|()| {
                let (before, start) = (harness.flooded(), Instant::now());
                let outcome = connect(cell.load, time)?;
                Ok((outcome, speed(before, harness.flooded(), start.elapsed())))
            });
            stop.store(true, Relaxed);
            let flooded = flood
                .join()
                .unwrap_or_else(|panic| std::panic::resume_unwind(panic));
            flooded.and(outcome)
        })
    }
}

/// Waits until the flood is on, and answered.
fn until_flooded(harness: &Harness) -> Result<()> {
    let deadline = Instant::now() + PATIENCE;
    while harness.flooded().sent < PACE {
        ensure!(
            Instant::now() < deadline,
            "no flood: {:?}",
            harness.flooded()
        );
        wait::pause();
    }
    Ok(())
}

/// The flood in words.
fn speed(before: Flooded, after: Flooded, took: Duration) -> String {
    let rate = |before: u64, after: u64| (after - before) as f64 / took.as_secs_f64() / 1e6;
    format!(
        "{:.2} M SYN/s sent, {:.2} answered",
        rate(before.sent, after.sent),
        rate(before.answered, after.answered)
    )
}

fn cell_name(guard: Guard, flood: Flood, load: Load) -> String {
    let load = match load {
        Load::Rate(rate) => format!("{rate}/s"),
        Load::FlatOut(_) => "flat out".to_owned(),
    };
    let flood = match flood {
        Flood::None => "no flood",
        Flood::Paced => "flood 0.9 M/s",
        Flood::FlatOut => "flood flat out",
    };
    let guard = match guard {
        Guard::Nobody => "",
        Guard::Cookies => ", kernel cookies",
        Guard::Synproxy => ", SYNPROXY",
        Guard::Edge => ", Edge",
    };
    format!("syn, nginx {load}, {flood}{guard}")
}

fn nft(host: &Namespace, rules: &str) -> Result<()> {
    let directory = tempfile::tempdir()?;
    let file = directory.path().join("rules");
    fs::write(&file, rules)?;
    host.run("nft", &["-f", file.to_str().context("a path of ASCII")?]);
    Ok(())
}

/// Has an interface receive in a thread of its own, on a processor of its own.
pub(crate) fn receive_on(namespace: &Namespace, interface: &str, cpu: usize) -> Result<()> {
    let prefix = format!("napi/{interface}-");
    let threads = || -> Result<Vec<i32>> {
        let mut found = Vec::new();
        for entry in fs::read_dir("/proc")? {
            let entry = entry?;
            let Some(pid) = entry
                .file_name()
                .to_str()
                .and_then(|name| name.parse().ok())
            else {
                continue;
            };
            let name = fs::read_to_string(entry.path().join("comm")).unwrap_or_default();
            if name.starts_with(&prefix) {
                found.push(pid);
            }
        }
        Ok(found)
    };
    let before = threads()?;
    // The attributes that are seen are those of the namespace that mounts them.
    let directory = tempfile::tempdir()?;
    let at = directory.path().to_str().context("a path of ASCII")?;
    let script = format!(
        "mount -t sysfs none {at} && echo 1 > {at}/class/net/{interface}/threaded; \
         result=$?; umount {at}; exit $result"
    );
    namespace.run("sh", &["-c", &script]);
    let new: Vec<i32> = threads()?
        .into_iter()
        .filter(|pid| !before.contains(pid))
        .collect();
    let [thread] = new.as_slice() else {
        bail!("{} threads receive for {interface}", new.len());
    };
    machine::pin_thread(*thread, cpu)?;
    machine::real_time_thread(*thread, RECEIVING)
}
