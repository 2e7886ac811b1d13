//! Who answered requests, in parts of a demonstration.

use std::collections::BTreeMap;

use super::grouped;

/// Answers by who gave them, and requests that failed.
#[derive(Default)]
pub(super) struct Part {
    pub(super) answers: BTreeMap<String, u64>,
    pub(super) failed: u64,
    pub(super) longest_ms: f64,
}

/// A column for each part, a row for each server.
pub(super) fn print(parts: &[(&str, Part)], servers: &[&str]) {
    let row = |name: &str, cell: &dyn Fn(&(&str, Part)) -> String| {
        let cells: String = parts.iter().map(|p| format!("{:>22}", cell(p))).collect();
        println!("{name:<34}{cells}");
    };
    println!();
    row("ANSWERS OF", &|(name, _)| (*name).to_owned());
    for server in servers {
        row(&format!("  {server}"), &|(_, part)| {
            grouped(part.answers.get(*server).copied().unwrap_or(0))
        });
    }
    row("  none: requests that failed", &|(_, part)| {
        grouped(part.failed)
    });
    row("  longest answer", &|(_, part)| {
        format!("{:.1} ms", part.longest_ms)
    });
}
