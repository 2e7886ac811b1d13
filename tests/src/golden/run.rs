//! Runs the tables and tells what differed.

use std::fmt;

use anyhow::{Context as _, Result};
use edge_common::{
    abi::{Event, SAMPLE_BYTES},
    reason::{Reason, Verdict},
};

use super::{Row, Table, table::START};
use edge_userspace::tables::TableError;

use crate::{
    cpu,
    program::{Moved, Rig, Rigs},
};

/// `XDP_DROP`.
const XDP_DROP: u32 = 1;
/// `XDP_PASS`.
const XDP_PASS: u32 = 2;
/// `XDP_TX`.
const XDP_TX: u32 = 3;
/// Test runs pretend that packets come from the loopback interface.
const LOOPBACK: u32 = 1;

/// What became of a table.
#[derive(Debug)]
pub struct TableReport {
    /// Its name.
    pub name: String,
    /// How many rows it has.
    pub rows: usize,
    /// A line for each row that went wrong, or one for the whole table.
    pub failures: Vec<String>,
}

/// What became of all tables.
#[derive(Debug, Default)]
pub struct Report {
    /// One a table.
    pub tables: Vec<TableReport>,
    /// How often the program was loaded.
    pub loads: usize,
}

impl Report {
    /// Whether every packet ended as it must.
    pub fn passed(&self) -> bool {
        !self.tables.is_empty() && self.tables.iter().all(|t| t.failures.is_empty())
    }
}

impl fmt::Display for TableReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let verdict = if self.failures.is_empty() {
            "ok"
        } else {
            "FAILED"
        };
        write!(f, "{verdict:6} {} ({} rows)", self.name, self.rows)?;
        for failure in &self.failures {
            write!(f, "\n       {failure}")?;
        }
        Ok(())
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let rows: usize = self.tables.iter().map(|t| t.rows).sum();
        let failures: usize = self.tables.iter().map(|t| t.failures.len()).sum();
        let (tables, loads) = (self.tables.len(), self.loads);
        write!(
            f,
            "tables={tables} rows={rows} failures={failures} loads={loads}"
        )
    }
}

/// Runs every table on the kernel of this machine, and tells of each as soon as
/// it is done. Needs the right to load BPF programs; what keeps a table from
/// being run is its failure.
pub fn run_all(mut done: impl FnMut(&TableReport)) -> Report {
    let mut tables = super::tables();
    // Those that may share a load stand side by side.
    tables.sort_by_cached_key(|table| format!("{:?}", table.settings));
    let mut rigs = Rigs::default();
    let mut reports = Vec::new();
    let mut tell = |of_table: TableReport| {
        done(&of_table);
        reports.push(of_table);
    };
    for table in &tables {
        tell(report(&mut rigs, table));
    }
    super::defence::run(&mut rigs, &mut tell);
    super::floods::run(&mut rigs, &mut tell);
    super::balance::run(&mut rigs, &mut tell);
    let loads = rigs.loads() + super::decap::run(&mut tell);
    Report {
        tables: reports,
        loads,
    }
}

fn report(rigs: &mut Rigs, table: &Table) -> TableReport {
    cpu::stay();
    let mut run = || {
        let mut rig = rigs.take(&table.settings)?;
        let failures = run_rows(&mut rig, table)?;
        rigs.give_back(rig)?;
        Ok(failures)
    };
    TableReport {
        name: table.name.clone(),
        rows: table.rows.len(),
        failures: run().unwrap_or_else(|error: anyhow::Error| vec![format!("{error:#}")]),
    }
}

fn run_rows(rig: &mut Rig, table: &Table) -> Result<Vec<String>> {
    rig.bind_arp(&table.arp)?;
    let mut tables = rig.tables()?;
    for (prefix, listing) in &table.entries {
        tables
            .put(*prefix, *listing)
            .with_context(|| format!("cannot enter {prefix}"))?;
    }
    let mut now = START;
    let mut failures = Vec::new();
    for row in &table.rows {
        now += row.wait;
        rig.set_time(now)?;
        let wrong = run_row(rig, row, now)?;
        failures.extend(wrong.map(|wrong| format!("{}: {wrong}", row.what)));
    }
    rig.bind_arp(&[])?;
    tables.refill::<TableError>([])?;
    Ok(failures)
}

/// Runs a row; gives what went wrong.
fn run_row(rig: &mut Rig, row: &Row, now: u64) -> Result<Option<String>> {
    let (run, moved) = rig.run_and_count(&row.frame, row.times)?;
    let samples = rig.samples()?;
    let action = match row.ends.verdict() {
        Verdict::Drop => XDP_DROP,
        Verdict::Pass => XDP_PASS,
        Verdict::Reply | Verdict::Forward => XDP_TX,
    };
    Ok(if moved != expected(row) {
        Some(format!("{moved} instead of {}", expected(row)))
    } else if run.action != action {
        Some(format!("action {} instead of {action}", run.action))
    } else if run.output != row.frame {
        Some(format!("the frame came out as {:02x?}", run.output))
    } else if samples.len() != row.samples {
        let (n, want) = (samples.len(), row.samples);
        Some(format!("{n} samples instead of {want}"))
    } else {
        samples
            .iter()
            .find_map(|sample| wrong_sample(sample, row, now))
    })
}

/// What the counters must say of a row.
fn expected(row: &Row) -> Moved {
    let times = u64::from(row.times);
    let of = |&reason: &Reason| (reason, times, times * row.bytes() as u64);
    let mut would_drop: Vec<_> = row.would_drop.iter().map(of).collect();
    would_drop.sort_unstable();
    Moved {
        ended: vec![of(&row.ends)],
        would_drop,
    }
}

/// What is wrong with a sample of a row's packet.
fn wrong_sample(sample: &Event, row: &Row, now: u64) -> Option<String> {
    let captured = row.frame.len().min(SAMPLE_BYTES);
    let (head, rest) = sample.data.split_at(captured);
    let reason = Reason::from_index(u32::from(sample.reason));
    let told = match sample.would_drop {
        0 => reason == Some(row.ends) && row.ends.verdict() != Verdict::Pass,
        1 => reason.is_some_and(|reason| row.would_drop.contains(&reason)),
        _ => false,
    };
    let right = told
        && sample.time_ns == now
        && sample.ifindex == LOOPBACK
        && sample.frame_len as usize == row.bytes()
        && sample.captured as usize == captured
        && row.frame.starts_with(head)
        && rest.iter().all(|&b| b == 0);
    (!right).then(|| format!("at {now} a sample {sample:?}"))
}
