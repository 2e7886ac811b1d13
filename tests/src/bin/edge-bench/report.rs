//! The table on the terminal and the JSON file.

use std::{fs, path::Path};

use anyhow::{Context, Result};
use serde_json::{Value, json};

/// Which way a target points.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Target {
    /// Better when smaller.
    AtMost(f64),
    /// Better when larger.
    AtLeast(f64),
}

impl Target {
    fn is_met(self, value: f64) -> bool {
        match self {
            // To the precision that is printed.
            Self::AtMost(limit) => rounded(value, limit) <= limit,
            Self::AtLeast(limit) => rounded(value, limit) >= limit,
        }
    }

    fn text(self) -> String {
        match self {
            Self::AtMost(limit) => format!("<= {}", number(limit)),
            Self::AtLeast(limit) => format!(">= {}", number(limit)),
        }
    }

    fn json(self) -> Value {
        match self {
            Self::AtMost(limit) => json!({ "at_most": limit }),
            Self::AtLeast(limit) => json!({ "at_least": limit }),
        }
    }
}

/// A measured row.
#[derive(Clone, Debug)]
pub(crate) struct Row {
    /// What was measured.
    pub(crate) name: String,
    /// Unit of the value.
    pub(crate) unit: &'static str,
    /// The same measurement of something that does nothing, if there is such.
    pub(crate) floor: Option<f64>,
    /// The measurement itself, the floor's share included.
    pub(crate) gross: Option<f64>,
    /// What counts.
    pub(crate) value: f64,
    /// What it should be.
    pub(crate) target: Option<Target>,
    /// What a reader should know.
    pub(crate) note: String,
    /// More figures for the file.
    pub(crate) more: Value,
}

/// Everything measured so far.
#[derive(Debug, Default)]
pub(crate) struct Report {
    rows: Vec<Row>,
}

impl Report {
    /// Prints the head of the table.
    pub(crate) fn head(title: &str, value: &str) {
        println!(
            "\n{title:<58} {:>8} {:>8} {:>6} {value:>9} {:>8}",
            "floor", "gross", "ratio", "target"
        );
    }

    /// Prints a row and keeps it.
    pub(crate) fn add(&mut self, row: Row) {
        let cell = |x: Option<f64>| x.map_or_else(String::new, number);
        let ratio = row.floor.zip(row.gross).map(|(floor, gross)| gross / floor);
        let (target, verdict) = match row.target {
            None => (String::new(), ""),
            Some(target) if target.is_met(row.value) => (target.text(), "ok"),
            Some(target) => (target.text(), "MISS"),
        };
        println!(
            "{:<58} {:>8} {:>8} {:>6} {:>9} {target:>8} {verdict:<4} {}",
            row.name,
            cell(row.floor),
            cell(row.gross),
            ratio.map_or_else(String::new, |r| format!("{r:.2}")),
            number(row.value),
            row.note,
        );
        self.rows.push(row);
    }

    /// How many rows miss their target, of how many that have one.
    pub(crate) fn missed(&self) -> (usize, usize) {
        let targets = self.rows.iter().filter_map(|r| Some((r.target?, r.value)));
        let met = targets
            .clone()
            .filter(|(t, value)| t.is_met(*value))
            .count();
        let all = targets.count();
        (all - met, all)
    }

    /// Writes everything to a file.
    pub(crate) fn write(&self, path: &Path, machine: &Value) -> Result<()> {
        let rows: Vec<Value> = self.rows.iter().map(row_json).collect();
        let text = serde_json::to_string_pretty(&json!({ "machine": machine, "rows": rows }))?;
        if let Some(directory) = path.parent() {
            fs::create_dir_all(directory)
                .with_context(|| format!("cannot make {}", directory.display()))?;
        }
        fs::write(path, text + "\n").with_context(|| format!("cannot write {}", path.display()))
    }
}

fn row_json(row: &Row) -> Value {
    json!({
        "name": row.name,
        "unit": row.unit,
        "floor": row.floor,
        "gross": row.gross,
        "ratio": row.floor.zip(row.gross).map(|(floor, gross)| gross / floor),
        "value": row.value,
        "target": row.target.map(Target::json),
        "met": row.target.map(|t| t.is_met(row.value)),
        "note": row.note,
        "more": row.more,
    })
}

/// The value in the middle of some that are sorted, whichever way.
pub(crate) fn median(sorted: &[f64]) -> f64 {
    sorted.get(sorted.len() / 2).copied().unwrap_or(f64::NAN)
}

/// A value to the precision that its limit is printed with.
fn rounded(value: f64, limit: f64) -> f64 {
    let unit = if limit < 10.0 { 100.0 } else { 10.0 };
    (value * unit).round() / unit
}

/// Three or four digits of a number.
fn number(x: f64) -> String {
    if x.abs() < 10.0 {
        format!("{x:.2}")
    } else if x.abs() < 1000.0 {
        format!("{x:.1}")
    } else {
        format!("{x:.0}")
    }
}
