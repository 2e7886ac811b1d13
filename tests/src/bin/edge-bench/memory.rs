//! What a blacklisted host takes of the kernel's memory.

use anyhow::Result;
use edge_common::{abi::maps, addr::Family};
use serde_json::json;

use crate::{
    edge::{ALL_ON, Edge, capacity},
    lists,
    packets::{Bench, HOSTS},
    report::{Report, Row, Target},
};

/// Prefixes there is room for: the bogons.
const PREFIXES: u32 = 1_000;

impl Bench {
    /// Measures all rows: full tables, by the kernel's own account of each map.
    pub(crate) fn memory(&mut self) -> Result<()> {
        let rows = [
            ("memory, blacklisted IPv4 host", Family::V4),
            ("memory, blacklisted IPv6 host", Family::V6),
        ];
        let rows = rows.map(|(name, family)| (name, family, self.wants(name)));
        if !rows.iter().any(|row| row.2) {
            return Ok(());
        }
        Report::head("Kernel memory, tables full of 1 M hosts", "bytes");
        // Some bogons are IPv6 hosts.
        let room = capacity(HOSTS, HOSTS + PREFIXES, PREFIXES);
        let mut edge = Edge::load(ALL_ON, room, None)?;
        for (name, family, wanted) in rows {
            edge.blacklist(lists::hosts(family, HOSTS.into()))?;
            if !wanted {
                continue;
            }
            let (table, filter) = match family {
                Family::V4 => (maps::HOSTS4, maps::HOSTS4_FILTER),
                Family::V6 => (maps::WIDE, maps::HOSTS6_FILTER),
            };
            let (table, filter) = (edge.kernel_memory(table)?, edge.kernel_memory(filter)?);
            self.report.add(Row {
                name: name.to_owned(),
                unit: "bytes",
                floor: None,
                gross: None,
                value: (table + filter) as f64 / f64::from(HOSTS),
                target: Some(Target::AtMost(100.0)),
                note: "hash and filter".to_owned(),
                more: json!({ "hosts": HOSTS, "hash_bytes": table, "filter_bytes": filter }),
            });
        }
        Ok(())
    }
}
