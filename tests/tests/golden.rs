//! The golden packets on this machine's kernel.

use std::collections::BTreeSet;

use edge_common::reason::Reason;
use edge_tests::golden;

#[test]
fn every_packet_ends_as_it_must() {
    let report = golden::run_all(|table| println!("{table}"));
    println!("{report}");
    assert!(report.passed());
}

#[test]
fn every_reason_has_a_packet() {
    let tables = golden::tables();
    let rows = tables.iter().flat_map(|table| &table.rows);
    let ends: BTreeSet<Reason> = rows
        .map(|row| row.ends)
        .chain(golden::DEFENCE_REASONS)
        .chain(golden::FLOOD_REASONS)
        .chain(golden::BALANCE_REASONS)
        .collect();
    let missing: Vec<_> = Reason::ALL.iter().filter(|r| !ends.contains(r)).collect();
    assert!(missing.is_empty(), "no golden packet ends with {missing:?}");
}

/// Asleep most of its two minutes or less.
#[test]
fn cookies_that_are_too_old_are_refused() {
    let report = golden::cookies_age();
    println!("{report}");
    assert!(report.failures.is_empty());
}
