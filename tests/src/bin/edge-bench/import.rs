//! How fast lists come in: `edge blacklist import` of a file, from the start of
//! the command until everything is in force and durable.

use std::collections::HashSet;

use anyhow::Result;
use edge_common::addr::{Family, Prefix};
use edge_tests::{daemon::Installation, lab::Lab};
use serde_json::json;

use crate::{
    lists,
    packets::{Bench, HOSTS},
    report::{Report, Row, Target},
    rig::{self, Imported},
};

/// What is imported.
#[derive(Clone, Copy)]
enum What {
    Hosts(Family),
    Prefixes(Family),
}

const ROWS: [(&str, What); 4] = [
    ("import, 1 M IPv4 hosts", What::Hosts(Family::V4)),
    ("import, 1 M IPv6 hosts", What::Hosts(Family::V6)),
    ("import, 1 M IPv4 prefixes", What::Prefixes(Family::V4)),
    ("import, 1 M IPv6 prefixes", What::Prefixes(Family::V6)),
];

impl Bench {
    /// Measures all rows, each with a daemon whose lists are empty.
    pub(crate) fn imports(&mut self) -> Result<()> {
        let rows: Vec<_> = ROWS.into_iter().filter(|row| self.wants(row.0)).collect();
        if rows.is_empty() {
            return Ok(());
        }
        Report::head("Import by the command line into the daemon", "entries/s");
        for (name, what) in rows {
            let lab = Lab::new(1);
            let installation =
                Installation::new(&lab.host, &["eth0"], &rig::settings(HOSTS, HOSTS, HOSTS));
            let daemon = installation.start();
            let Imported { took, added } = match what {
                What::Hosts(family) => {
                    rig::import(&installation, lists::hosts(family, HOSTS.into()))?
                }
                What::Prefixes(family) => rig::import(&installation, prefixes(family, HOSTS))?,
            };
            self.report.add(Row {
                name: name.to_owned(),
                unit: "entries/s",
                floor: None,
                gross: None,
                value: added as f64 / took.as_secs_f64(),
                target: Some(Target::AtLeast(200_000.0)),
                note: format!("{added} entries in {:.2} s", took.as_secs_f64()),
                more: json!({ "entries": added, "seconds": took.as_secs_f64() }),
            });
            daemon.stop();
        }
        Ok(())
    }
}

/// So many different prefixes, of mixed lengths.
pub(crate) fn prefixes(family: Family, n: u32) -> impl Iterator<Item = Prefix> {
    let mut seen = HashSet::new();
    // Chance makes some of them twice: there is enough to choose from.
    lists::prefixes(family, u64::from(n) * 2)
        .into_iter()
        .filter(move |prefix| seen.insert(*prefix))
        .take(n as usize)
}
