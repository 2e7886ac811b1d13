//! What is heard of changes that take long, and what is told while they do.

use super::*;

/// Entries, some more than a few times what is done between two calls.
const MANY: u32 = 4 * REPORT_EVERY as u32 + 5;

fn host(i: u32) -> Prefix {
    Prefix::host(IpAddr::from(0x0a00_0000_u32.wrapping_add(i).to_be_bytes()))
}

fn open_large(dir: &Path) -> Policy {
    let geometry = Geometry::for_capacity(&crate::tables::Capacity {
        hosts_v4: MANY,
        ..capacity()
    });
    let (store, regions) = (Store::open(dir).unwrap(), Regions::heap(&geometry));
    let system = SystemEntries::default();
    let opened = Policy::open(store, None, regions, geometry, SEED, system, START);
    opened.unwrap().0
}

fn terms() -> Terms {
    of("drop", &["10.0.0.1"])[0].terms()
}

/// What was heard: how often before anything was done, up to the half, which the
/// tables are, and after it.
#[derive(Debug, Default, PartialEq)]
struct Heard {
    planning: u64,
    tables: u64,
    store: u64,
}

impl Heard {
    fn hear(&mut self, done: u64, total: u64) {
        assert!(done <= total);
        *match done {
            0 => &mut self.planning,
            _ if done < total / 2 => &mut self.tables,
            _ => &mut self.store,
        } += 1;
    }
}

#[test]
fn every_part_of_a_long_change_is_heard_of() {
    let dir = tempfile::tempdir().unwrap();
    let mut policy = open_large(dir.path());
    let hosts: Vec<Prefix> = (0..MANY).map(host).collect();
    let mut heard = Heard::default();
    let mut hear = |_: &Policy, done, total| heard.hear(done, total);
    let added = policy.add(List::Black, terms(), hosts, START, &mut hear);
    assert_eq!(added.unwrap().added, u64::from(MANY));
    // Twice four times: what each entry is, and where it goes.
    assert_eq!((heard.planning, heard.tables), (8, 4), "{heard:?}");
    assert!(heard.store >= 1, "{heard:?}");

    let geometry = *policy.tables.geometry();
    let (regions, system) = (Regions::heap(&geometry), SystemEntries::default());
    let mut filling = 0;
    policy
        .replace_tables(regions, geometry, system, START, &mut || filling += 1)
        .unwrap();
    assert_eq!(filling, 4);

    let (mut jumps, set) = (0, later(7200).unix_ms);
    let later = Now {
        unix_ms: set,
        ..START
    };
    policy
        .mind_clock(later, &mut |_, _, _| jumps += 1)
        .unwrap()
        .unwrap();
    assert_eq!(jumps, 4);

    let mut heard = Heard::default();
    let mut hear = |_: &Policy, done, total| heard.hear(done, total);
    let gone = policy.flush(List::Black, None, None, START, &mut hear);
    assert_eq!(gone.unwrap(), u64::from(MANY));
    assert_eq!((heard.planning, heard.tables), (8, 4), "{heard:?}");
    assert!(heard.store >= 1, "{heard:?}");
}

#[test]
fn an_undo_is_heard_of() {
    let dir = tempfile::tempdir().unwrap();
    let mut policy = open_large(dir.path());
    let hosts = (0..=MANY).map(host).collect();
    let (mut last, mut undoing) = (0, 0);
    let mut hear = |_: &Policy, done: u64, _| {
        undoing = if done == 0 && last > 0 {
            undoing + 1
        } else {
            0
        };
        last = done.max(last);
    };
    let error = policy.add(List::Black, terms(), hosts, START, &mut hear);
    assert!(matches!(error, Err(PolicyError::Table(_))), "{error:?}");
    assert_eq!(undoing, 4);
    assert_eq!(policy.tables.used(), Default::default());
}

#[test]
fn who_asks_while_a_change_is_under_way_is_told_what_was_before_it_or_what_is_after_it() {
    let dir = tempfile::tempdir().unwrap();
    let mut policy = open_large(dir.path());
    let (first, last) = (host(0), host(MANY - 1));
    add(&mut policy, List::Black, vec![entry("10.0.0.0", None)]).unwrap();
    let names = |policy: &Policy, within: Prefix| -> Vec<String> {
        let page = policy.list(List::Black, Some(within), None, 9, START);
        let tell = |e: &EntryView| e.source.to_string();
        page.unwrap().entries.iter().map(tell).collect()
    };
    // The last is first told of, and then no longer.
    let mut told = Vec::new();
    let mut ask = |policy: &Policy, _, _| {
        let both = (names(policy, first).len(), names(policy, last).len());
        let found = policy.lookup(last.addr(), START).unwrap().len();
        assert_eq!(both.1, found);
        told.push(both);
    };
    let hosts = (0..MANY).map(host).collect();
    policy
        .add(List::Black, terms(), hosts, START, &mut ask)
        .unwrap();
    policy
        .replace(List::Black, terms(), vec![first], START, &mut ask)
        .unwrap();
    told.push((names(&policy, first).len(), names(&policy, last).len()));
    assert!(told.len() > 24, "{}", told.len());
    told.dedup();
    assert_eq!(told, [(1, 0), (2, 1), (2, 0)]);
}
