//! What was acknowledged survives kill -9 in the middle of additions.

use super::{Policy, SystemEntries, Terms};
use crate::{
    clock::Now,
    entry::{List, Origin, Source},
    store::Store,
    tables::{Capacity, Geometry, Regions},
};
use edge_common::{addr::Prefix, hash::Seed};
use std::{
    collections::BTreeSet,
    env,
    io::{BufRead as _, BufReader, Write as _},
    net::{IpAddr, Ipv4Addr},
    path::Path,
    process::{Command, Stdio},
};

/// The state directory of the child; absent in an ordinary run of the tests.
const STATE_DIR: &str = "EDGE_TEST_CRASH_STATE_DIR";
/// The first batch that the child adds.
const FIRST: &str = "EDGE_TEST_CRASH_FIRST";
/// Entries in a batch, which is there as a whole or not at all.
const BATCH: u32 = 3;

fn open(dir: &Path) -> Policy {
    let geometry = Geometry::for_capacity(&Capacity::default());
    let regions = Regions::heap(&geometry);
    let store = Store::open(dir).unwrap();
    let system = SystemEntries::default();
    let seed = Seed::new([1 << 60 | 1, 2 << 50 | 3, 5 << 55 | 7, 11 << 40 | 13]);
    let opened = Policy::open(store, None, regions, geometry, seed, system, Now::read());
    opened.unwrap().0
}

fn batch(n: u32) -> Vec<Prefix> {
    (0..BATCH)
        .map(|i| Prefix::host(IpAddr::V4(Ipv4Addr::from_bits(0x0a00_0000 + n * BATCH + i))))
        .collect()
}

/// The process that is killed: adds batches and says which are acknowledged,
/// until its end.
#[test]
fn child() {
    let Some(dir) = env::var_os(STATE_DIR) else {
        return;
    };
    let first: u32 = env::var(FIRST).unwrap().parse().unwrap();
    let mut policy = open(Path::new(&dir));
    for n in first.. {
        let terms = Terms {
            expires_unix_ms: None,
            source: Source::new(Origin::Cli, None),
            note: "".into(),
        };
        let added = policy.add(List::Black, terms, batch(n), Now::read(), &mut |_, _, _| {});
        assert_eq!(added.unwrap().added, u64::from(BATCH));
        // To stderr, which the test harness does not hold back.
        writeln!(std::io::stderr(), "acknowledged {n}").unwrap();
    }
}

#[test]
fn nothing_acknowledged_is_lost() {
    let dir = tempfile::tempdir().unwrap();
    let mut first = 0;
    for acknowledged_before_kill in [1, 7, 20] {
        let mut child = Command::new(env::current_exe().unwrap())
            .args(["--exact", "--nocapture", "policy::crash_tests::child"])
            .env(STATE_DIR, dir.path())
            .env(FIRST, first.to_string())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut said = Vec::new();
        let lines = BufReader::new(child.stderr.take().unwrap()).lines();
        for line in lines {
            let line = line.unwrap();
            let Some(n) = line.strip_prefix("acknowledged ") else {
                continue;
            };
            said.push(n.parse::<u32>().unwrap());
            if said.len() == acknowledged_before_kill {
                child.kill().unwrap();
            }
        }
        assert!(
            !child.wait().unwrap().success(),
            "the child was to be killed"
        );
        assert!(said.len() >= acknowledged_before_kill, "{said:?}");

        let policy = open(dir.path());
        let page = policy
            .list(List::Black, None, None, 1_000_000, Now::read())
            .unwrap();
        let kept: BTreeSet<Prefix> = page.entries.iter().map(|e| e.prefix).collect();
        let last = *said.last().unwrap();
        assert!(
            (0..=last).flat_map(batch).all(|p| kept.contains(&p)),
            "{said:?}: {kept:?}"
        );
        // One more may have been stored before its acknowledgement got out.
        let whole = (last + 1) * BATCH;
        assert!(
            [whole, whole + BATCH].contains(&(kept.len() as u32)),
            "{kept:?}"
        );
        assert_eq!(policy.counts().used.hosts_v4 as usize, kept.len());
        first = kept.len() as u32 / BATCH;
    }
}
