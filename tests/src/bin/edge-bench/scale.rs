//! Ten million hosts and a million prefixes in the real daemon: whether they fit,
//! what the program then says of packets, and what a restart takes.

use std::{
    fs,
    net::{IpAddr, Ipv4Addr},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use edge_common::addr::{Family, Prefix};
use edge_tests::{
    daemon::{Daemon, Installation},
    lab::{Lab, Link},
};
use serde_json::json;

use crate::{
    import::prefixes,
    lists,
    packets::Bench,
    report::{Report, Row},
    rig,
};

/// Hosts on the list.
const HOSTS: u32 = 10_000_000;
/// Prefixes of each family on the list.
const PREFIXES: u32 = 500_000;
/// Sources of each kind from which a packet is sent.
const SOURCES: usize = 500;
/// How long a daemon may take to get ready with all that: what the systemd unit allows.
const PATIENCE: Duration = Duration::from_secs(300);

impl Bench {
    /// Does it once for hosts of each family.
    pub(crate) fn scale(&mut self) -> Result<()> {
        let rows = [Family::V4, Family::V6].map(|family| {
            let name = match family {
                Family::V4 => "scale, IPv4 hosts",
                Family::V6 => "scale, IPv6 hosts",
            };
            (name, family)
        });
        if rows.iter().any(|(name, _)| self.wants(name)) {
            Report::head("10 M hosts, 500,000 prefixes of each family", "");
        }
        for (name, family) in rows {
            if self.wants(name) {
                self.at_scale(name, family)?;
            }
        }
        Ok(())
    }

    fn at_scale(&mut self, name: &str, family: Family) -> Result<()> {
        let report = &mut self.report;
        let mut add = |what: &str, unit: &'static str, value: f64, note: &str| {
            report.add(Row {
                name: format!("{name}: {what}"),
                unit,
                floor: None,
                gross: None,
                value,
                target: None,
                note: format!("{unit}{}{note}", if note.is_empty() { "" } else { "; " }),
                more: json!({}),
            });
        };
        let (v4, v6) = match family {
            Family::V4 => (HOSTS, 0),
            Family::V6 => (0, HOSTS),
        };
        let settings = rig::settings(v4, v6, 2 * PREFIXES);
        let lab = Lab::new(1);
        let installation = Installation::new(&lab.host, &["eth0"], &settings);
        let (daemon, took) = started(&installation);
        add("first start", "s", took, "");

        let hosts = (0..HOSTS).map(|number| Prefix::host(host(family, number)));
        let imported = rig::import(&installation, hosts)?;
        let added = format!("{} added", imported.added);
        add(
            "import of the hosts",
            "s",
            imported.took.as_secs_f64(),
            &added,
        );
        ensure!(imported.added == u64::from(HOSTS), "only {added}");
        let networks: Vec<Prefix> = [Family::V4, Family::V6]
            .into_iter()
            .flat_map(|family| prefixes(family, PREFIXES))
            .collect();
        let imported = rig::import(&installation, networks.iter().copied())?;
        let added = format!("{} added", imported.added);
        add(
            "import of the prefixes",
            "s",
            imported.took.as_secs_f64(),
            &added,
        );
        ensure!(imported.added == networks.len() as u64, "only {added}");

        let sources = Sources::new(family, &networks);
        let seen = sources.check(lab.link())?;
        add(
            "packets judged right",
            "sources",
            seen as f64,
            "on the list or not",
        );
        let config = installation.config();
        let config = config.to_str().context("a path of ASCII")?;
        let kernel = installation.json(&["check", "-c", config]);
        let kernel = kernel
            .first()
            .and_then(|line| line.get("memory_total")?.as_f64());
        let mib = |bytes: f64| bytes / f64::from(1 << 20);
        add(
            "maps in the kernel",
            "MiB",
            mib(kernel.context("no memory")?),
            "",
        );
        add(
            "daemon, resident at most",
            "MiB",
            memory(&daemon, "VmHWM:")?,
            "during the imports",
        );
        let file = installation.state_dir().join(edge_userspace::store::FILE);
        add("database", "MiB", mib(fs::metadata(file)?.len() as f64), "");

        let start = Instant::now();
        daemon.stop();
        add("stop", "s", start.elapsed().as_secs_f64(), "");
        sources.check(lab.link()).context("without a daemon")?;
        let (daemon, took) = started(&installation);
        let log = daemon.log();
        ensure!(
            log.contains("adopted=true"),
            "tables were not adopted:\n{log}"
        );
        add(
            "restart, tables adopted",
            "s",
            took,
            "packets judged right before and after",
        );
        sources.check(lab.link()).context("after the restart")?;
        add(
            "daemon, resident after it",
            "MiB",
            memory(&daemon, "VmRSS:")?,
            "",
        );
        daemon.stop();
        Ok(())
    }
}

/// Starts the daemon; returns it and the seconds until it was ready.
pub(crate) fn started(installation: &Installation<'_>) -> (Daemon, f64) {
    let start = Instant::now();
    let daemon = installation.start_within(PATIENCE);
    (daemon, start.elapsed().as_secs_f64())
}

/// MiB of memory that the daemon has, as `/proc/PID/status` names it.
pub(crate) fn memory(daemon: &Daemon, name: &str) -> Result<f64> {
    let status = fs::read_to_string(format!("/proc/{}/status", daemon.pid()))?;
    let line = status.lines().find_map(|line| line.strip_prefix(name));
    let kib: f64 = line
        .and_then(|line| line.trim().strip_suffix(" kB")?.parse().ok())
        .with_context(|| format!("no {name} of the daemon"))?;
    Ok(kib / 1024.0)
}

/// A host for each number, all of them different: the first [`HOSTS`] are listed.
fn host(family: Family, number: u32) -> IpAddr {
    match family {
        // Multiplication by an odd number is a permutation, here of 2^30 addresses from
        // 11.0.0.0 on, where no bogon is.
        Family::V4 => {
            let scattered = number.wrapping_mul(0x9e37_79b1) & ((1 << 30) - 1);
            Ipv4Addr::from_bits((11 << 24) + scattered).into()
        }
        Family::V6 => lists::source(family, number.into()),
    }
}

/// Sources of packets, and whether those are to be dropped.
struct Sources(Vec<(IpAddr, bool)>);

impl Sources {
    fn new(family: Family, networks: &[Prefix]) -> Self {
        let listed = |address: IpAddr| networks.iter().any(|n| n.contains(Prefix::host(address)));
        let mut sources: Vec<(IpAddr, bool)> = (0..HOSTS)
            .step_by(HOSTS as usize / SOURCES)
            .map(|number| (host(family, number), true))
            .collect();
        let inside = networks
            .iter()
            .step_by(networks.len() / SOURCES)
            .map(|network| (network.last().addr(), true));
        sources.extend(inside);
        for family in [Family::V4, Family::V6] {
            let others = (HOSTS..)
                .map(|number| host(family, number))
                .filter(|address| !listed(*address))
                .take(SOURCES)
                .map(|address| (address, false));
            sources.extend(others);
        }
        Self(sources)
    }

    /// Sends a packet from each. Returns how many that are.
    fn check(&self, link: &Link) -> Result<usize> {
        for (address, dropped) in &self.0 {
            ensure!(
                link.passes_from(*address) != *dropped,
                "a packet from {address} {}",
                if *dropped { "passes" } else { "is dropped" }
            );
        }
        Ok(self.0.len())
    }
}
