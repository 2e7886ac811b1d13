//! What a large import takes of the daemon's memory while it goes on.

use super::{Policy, SystemEntries, Terms, tests::SEED};
use crate::{
    clock::Now,
    entry::{List, Origin, Source},
    store::Store,
    tables::{Capacity, Geometry, Regions},
};
use edge_common::addr::Prefix;
use std::{
    env, fs,
    net::{IpAddr, Ipv4Addr},
    process::Command,
};

/// Set for the process that is measured; absent in an ordinary run of the tests.
const MEASURED: &str = "EDGE_TEST_MEMORY";
/// Entries of the import: so many that the pages which the database keeps in
/// memory, and whatever else does not grow with it, count for little.
const ENTRIES: u32 = 400_000;
/// Bytes an entry at the most: 32 for its prefix as the import brings it, 48 for
/// the change, 24 for order and undo, and the rest for tables and database.
const MOST: u64 = 160;

/// A line of `/proc/self/status`, bytes.
fn status(name: &str) -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|l| l.strip_prefix(name)).unwrap();
    let kib: u64 = line.trim().trim_end_matches(" kB").parse().unwrap();
    kib * 1024
}

/// The process that is measured: says how many bytes more it had at one time.
#[test]
fn child() {
    let Some(dir) = env::var_os(MEASURED) else {
        return;
    };
    let geometry = Geometry::for_capacity(&Capacity {
        hosts_v4: ENTRIES,
        ..Capacity::default()
    });
    let store = Store::open(dir.as_ref()).unwrap();
    let system = SystemEntries::default();
    let regions = Regions::heap(&geometry);
    let opened = Policy::open(store, None, regions, geometry, SEED, system, Now::read());
    let mut policy = opened.unwrap().0;
    let host = |i| Prefix::host(IpAddr::V4(Ipv4Addr::from_bits(0x0a00_0000 + i)));
    let terms = Terms {
        source: Source::new(Origin::Feed, None),
        expires_unix_ms: None,
        note: "a note of the whole import".into(),
    };
    let before = status("VmRSS:");
    let prefixes = (0..ENTRIES).map(host).collect();
    let added = policy.add(List::Black, terms, prefixes, Now::read(), &mut |_, _, _| {});
    assert_eq!(added.unwrap().added, u64::from(ENTRIES));
    eprintln!("took {} bytes", status("VmHWM:").saturating_sub(before));
}

#[test]
fn an_import_takes_little_memory_beside_its_prefixes() {
    let dir = tempfile::tempdir().unwrap();
    let done = Command::new(env::current_exe().unwrap())
        .args(["--exact", "--nocapture", "policy::memory_tests::child"])
        .env(MEASURED, dir.path())
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&done.stderr);
    assert!(done.status.success(), "{said}");
    let took = said.lines().find_map(|l| l.strip_prefix("took "));
    let took: u64 = took
        .and_then(|l| l.strip_suffix(" bytes")?.parse().ok())
        .unwrap_or_else(|| panic!("{said}"));
    let each = took / u64::from(ENTRIES);
    assert!(each <= MOST, "{each} bytes an entry");
}
