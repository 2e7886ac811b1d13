//! 100,000 backends in the real daemon: what a start, a change of all rings and memory take;
//! and with 10,000, all checked, how soon a change of health is in force.

use std::{
    fmt::Write as _,
    net::TcpListener,
    os::fd::AsFd as _,
    path::Path,
    sync::atomic::{AtomicBool, Ordering::Relaxed},
    thread,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use anyhow::{Context, Result, ensure};
use aya::maps::MapData;
use edge_common::abi::{ABI_VERSION, maps};
use edge_tests::{
    daemon::{Daemon, Installation},
    lab::Lab,
    wait,
};
use edge_userspace::memory::Region;
use serde_json::{Value, json};

use crate::{
    packets::Bench,
    report::{Report, Row, Target},
    scale::{memory, started},
};

/// Backends of a service.
const EACH: u32 = 100;
/// How often a backend is checked when all are, and how often the health of one changes.
const INTERVAL: &str = "4s";
const CHANGES: u32 = 8;
/// Until all backends are known.
const PATIENCE: Duration = Duration::from_secs(120);

/// So many services; the first backend of each has another weight, and all are checked or none.
fn settings(services: u32, weight: u32, checked: bool) -> String {
    let mut text = "tables.service_targets = '100k'\n".to_owned();
    for service in 0..services {
        let (hi, lo) = (service / 250, service % 250);
        let _ = writeln!(
            text,
            "[[service]]\nname = 's{service}'\naddresses = ['198.51.{hi}.{lo}']\nports = [80]\n\
             syn = 'off'\nforward = 'l2'"
        );
        if checked {
            let _ = writeln!(
                text,
                "[service.health]\nkind = 'tcp'\ninterval = '{INTERVAL}'\ntimeout = '2s'\n\
                 rise = 1\nfall = 1"
            );
        }
        for n in 1..=EACH {
            let weight = if n == 1 { weight } else { 100 };
            let _ = writeln!(
                text,
                "[[service.backend]]\nname = 'b{n}'\naddress = '10.{hi}.{lo}.{n}'\nweight = {weight}"
            );
        }
    }
    text
}

/// A host whose gateway has all addresses of backends.
fn lab() -> Lab {
    let lab = Lab::new(1);
    let link = lab.link();
    link.outside.ip("link set lo up");
    link.outside.ip("route add local 10.0.0.0/8 dev lo");
    lab.host
        .ip(&format!("route add 10.0.0.0/8 via {}", link.v4(2)));
    lab
}

impl Bench {
    /// Measures all rows.
    pub(crate) fn many(&mut self) -> Result<()> {
        let size = "balance, 1,000 services of 100 backends";
        let health = "balance, 10,000 backends, health in force after its decision";
        if self.wants(size) || self.wants(health) {
            Report::head("Many backends in the real daemon", "");
        }
        if self.wants(size) {
            self.at_size(size)?;
        }
        if self.wants(health) {
            self.health_change(health)?;
        }
        Ok(())
    }

    fn stated(&mut self, name: String, unit: &'static str, value: f64, target: Option<Target>) {
        self.report.add(Row {
            name,
            unit,
            floor: None,
            gross: None,
            value,
            target,
            note: unit.to_owned(),
            more: json!({}),
        });
    }

    fn at_size(&mut self, name: &str) -> Result<()> {
        let lab = lab();
        let edge = Installation::new(&lab.host, &["eth0"], &settings(1000, 100, false));
        let (daemon, took) = started(&edge);
        self.stated(format!("{name}: start"), "s", took, None);
        wait::until_some_within(PATIENCE, "all backends have a way", || {
            let told = edge.status();
            let last = told["balance"]["services"].get(999)?.get("backends")?;
            let all = last.as_array()?.iter();
            all.clone().all(|b| b["no_way"].is_null()).then_some(())
        });
        for (what, weight) in [("all rings anew", 50), ("nothing new", 50)] {
            edge.configure(&["eth0"], &settings(1000, weight, false));
            let start = Instant::now();
            edge.ok(&["reload"]);
            let took = start.elapsed().as_secs_f64();
            self.stated(format!("{name}: reload, {what}"), "s", took, None);
        }
        let resident = memory(&daemon, "VmRSS:")?;
        self.stated(format!("{name}: daemon, resident"), "MiB", resident, None);
        let config = edge.config();
        let config = config.to_str().context("a path of ASCII")?;
        let told = edge.json(&["check", "-c", config]);
        let kernel = told.first().and_then(|t| t.get("memory_total")?.as_f64());
        let mib = kernel.context("no memory")? / f64::from(1 << 20);
        self.stated(format!("{name}: maps in the kernel"), "MiB", mib, None);
        daemon.stop();
        Ok(())
    }

    fn health_change(&mut self, name: &str) -> Result<()> {
        let lab = lab();
        let outside = &lab.link().outside;
        let listener = outside.inside(|| TcpListener::bind(("0.0.0.0", 80)))?;
        listener.set_nonblocking(true)?;
        let done = AtomicBool::new(false);
        thread::scope(|scope| {
            scope.spawn(|| {
                while !done.load(Relaxed) {
                    if listener.accept().is_err() {
                        wait::pause();
                    }
                }
            });
            let stop = Stop(&done);
            let took = health_changes(&lab);
            drop(stop);
            let worst = took?.into_iter().fold(f64::NAN, f64::max);
            self.stated(name.to_owned(), "ms", worst, Some(Target::AtMost(10.0)));
            Ok(())
        })
    }
}

/// Ends who accepts connections, also when something panics.
struct Stop<'a>(&'a AtomicBool);

impl Drop for Stop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Relaxed);
    }
}

/// How long each of some changes took to come into force after its decision, milliseconds.
fn health_changes(lab: &Lab) -> Result<Vec<f64>> {
    let outside = &lab.link().outside;
    let edge = Installation::new(&lab.host, &["eth0"], &settings(100, 100, true));
    let (daemon, _) = started(&edge);
    wait::until_some_within(PATIENCE, "all backends are up", || {
        let told = edge.status();
        let services = told["balance"]["services"].as_array()?;
        let mut all = services
            .iter()
            .flat_map(|s| s["backends"].as_array())
            .flatten();
        all.all(|b| b["health"] == "up").then_some(())
    });
    let table = balances(&edge, &daemon)?;
    let words = || -> Vec<u64> { table.u64s().iter().map(|w| w.load(Relaxed)).collect() };
    let mut took = Vec::new();
    for n in 0..CHANGES {
        let address = format!("10.0.{}.{}", 3 + n, 7 + n);
        let before = words();
        outside.ip(&format!("route add blackhole {address} table local"));
        outside.ip("route flush cache");
        let deadline = Instant::now() + Duration::from_secs(30);
        while words() == before {
            ensure!(Instant::now() < deadline, "{address} is not found dead");
            std::hint::spin_loop();
        }
        let now = SystemTime::now().duration_since(UNIX_EPOCH)?.as_millis();
        let since = wait::until_some("it is told", || since(&edge.status(), &address));
        took.push(now as f64 - since as f64);
    }
    daemon.stop();
    Ok(took)
}

/// When a backend was found down, milliseconds of the wall clock; `None` while it is not.
fn since(told: &Value, address: &str) -> Option<u64> {
    let services = told["balance"]["services"].as_array()?;
    let mut all = services
        .iter()
        .flat_map(|s| s["backends"].as_array())
        .flatten();
    let own = all.find(|b| b["address"] == address)?;
    (own["health"] == "down").then(|| own["health_since_unix_ms"].as_u64())?
}

/// The words by which rings come into force.
fn balances(edge: &Installation<'_>, daemon: &Daemon) -> Result<Region> {
    // The directory is in the file systems that the daemon sees.
    let bpffs = edge.bpffs().strip_prefix("/")?;
    let root = Path::new("/proc").join(format!("{}/root", daemon.pid()));
    let path = root
        .join(bpffs)
        .join(format!("v{ABI_VERSION}/maps/{}", maps::BALANCES));
    let map = MapData::from_pin(&path).with_context(|| format!("no {}", path.display()))?;
    let entries = map.info()?.max_entries() as usize;
    Ok(Region::map_array(map.fd().as_fd(), entries * 8)?)
}
