mod clock;
mod meanwhile;
mod room;
mod sources;

use super::*;
use crate::entry::Origin;
use edge_common::addr::Family;
use proptest::prelude::*;
use std::{collections::BTreeMap, net::IpAddr, path::Path};

pub(super) const SEED: Seed = Seed::new([
    0x9e37_79b9_7f4a_7c15,
    0xd1b5_4a32_d192_ed03,
    0x8cb9_2ba7_2f3d_8dd7,
    0xa24b_aed4_963e_e407,
]);
const START: Now = Now {
    mono_ns: 1_000_000_000_000,
    boot_ns: 1_000_000_000_000,
    unix_ms: 1_700_000_000_000,
};

fn p(s: &str) -> Prefix {
    s.parse().unwrap()
}

fn capacity() -> crate::tables::Capacity {
    crate::tables::Capacity {
        hosts_v4: 64,
        hosts_v6: 64,
        prefixes: 64,
        limiter_sources: 16,
    }
}

fn open_at(dir: &Path, system: SystemEntries, now: Now) -> Policy {
    open_in("first boot", dir, system, now)
}

fn open_in(boot: &str, dir: &Path, system: SystemEntries, now: Now) -> Policy {
    let geometry = Geometry::for_capacity(&capacity());
    let (store, regions) = (Store::open(dir).unwrap(), Regions::heap(&geometry));
    Policy::open(store, Some(boot), regions, geometry, SEED, system, now)
        .unwrap()
        .0
}

fn later(seconds: u64) -> Now {
    Now {
        mono_ns: START.mono_ns + seconds * 1_000_000_000,
        boot_ns: START.boot_ns + seconds * 1_000_000_000,
        unix_ms: START.unix_ms + seconds * 1000,
    }
}

fn cli() -> Source {
    Source::new(Origin::Cli, None)
}

fn feed(name: &str) -> Source {
    Source::new(Origin::Feed, Some(name.parse().unwrap()))
}

fn entry(prefix: &str, ttl: Option<u64>) -> NewEntry {
    NewEntry {
        prefix: p(prefix),
        expires_unix_ms: ttl.map(|s| START.unix_ms + s * 1000),
        source: cli(),
        note: "why".into(),
    }
}

/// An entry to add, with terms of its own.
#[derive(Clone)]
struct NewEntry {
    prefix: Prefix,
    expires_unix_ms: Option<u64>,
    source: Source,
    note: Arc<str>,
}

impl NewEntry {
    fn terms(&self) -> Terms {
        Terms {
            source: self.source.clone(),
            expires_unix_ms: self.expires_unix_ms,
            note: self.note.clone(),
        }
    }
}

fn add(policy: &mut Policy, list: List, entries: Vec<NewEntry>) -> Result<Added, PolicyError> {
    add_at(policy, list, entries, START)
}

/// One addition for all entries in a row that have the same terms.
fn add_at(
    policy: &mut Policy,
    list: List,
    entries: Vec<NewEntry>,
    now: Now,
) -> Result<Added, PolicyError> {
    let mut additions: Vec<(Terms, Vec<Prefix>)> = Vec::new();
    for entry in entries {
        match additions.last_mut() {
            Some((terms, prefixes)) if *terms == entry.terms() => prefixes.push(entry.prefix),
            _ => additions.push((entry.terms(), vec![entry.prefix])),
        }
    }
    let mut sum = Added::default();
    for (terms, prefixes) in additions {
        let done = policy.add(list, terms, prefixes, now, &mut |_, _, _| {})?;
        sum.added += done.added;
        sum.updated += done.updated;
    }
    Ok(sum)
}

/// Replaces all that a feed has on the blacklist.
fn replace_at(
    policy: &mut Policy,
    name: &str,
    entries: &[NewEntry],
    now: Now,
) -> Result<Added, PolicyError> {
    let terms = of(name, &["10.0.0.1"])[0].terms();
    assert!(entries.iter().all(|e| e.terms() == terms));
    let prefixes = entries.iter().map(|e| e.prefix).collect();
    policy.replace(List::Black, terms, prefixes, now, &mut |_, _, _| {})
}

/// Whether the kernel would find the address on a list.
fn listed(policy: &Policy, addr: &str, list: List, now: Now) -> bool {
    let says = policy.tables.reader().lookup(addr.parse().unwrap());
    let stamp = match list {
        List::Black => says.black,
        List::Allow => says.allow,
    };
    stamp > now.stamp()
}

fn names(policy: &Policy, list: List, now: Now) -> Vec<String> {
    let page = policy.list(list, None, None, 1000, now).unwrap();
    page.entries.iter().map(|e| e.prefix.to_string()).collect()
}

/// What the store has of the blacklist, expired or not.
fn stored(policy: &Policy) -> Vec<String> {
    let entries = policy.store.read().unwrap();
    let range = entries.range(List::Black, None, None).unwrap();
    range.map(|item| item.unwrap().0.to_string()).collect()
}

/// Calls [`Policy::expire`] as often as it takes to see everything.
fn collect(policy: &mut Policy, now: Now) -> u64 {
    (0..8).map(|_| policy.expire(now).unwrap()).sum()
}

/// Entries of a feed.
fn of(name: &str, prefixes: &[&str]) -> Vec<NewEntry> {
    let entry = |p: &&str| NewEntry {
        source: feed(name),
        ..entry(p, None)
    };
    prefixes.iter().map(entry).collect()
}

#[test]
fn entries_come_and_go_in_tables_and_store() {
    let dir = tempfile::tempdir().unwrap();
    let mut policy = open_at(dir.path(), SystemEntries::default(), START);
    let entries = ["10.0.0.1", "10.1.0.0/16", "fd00::1", "fd00:1::/32"].map(|s| entry(s, None));
    let done = add(&mut policy, List::Black, entries.to_vec()).unwrap();
    assert_eq!((done.added, done.updated), (4, 0));
    for addr in ["10.0.0.1", "10.1.2.3", "fd00::1", "fd00:1::9"] {
        assert!(listed(&policy, addr, List::Black, START), "{addr}");
    }
    assert!(!listed(&policy, "10.0.0.2", List::Black, START));
    let done = add(&mut policy, List::Black, vec![entry("10.0.0.1", Some(60))]).unwrap();
    assert_eq!((done.added, done.updated), (0, 1));
    let gone = policy
        .remove(List::Black, &[p("10.0.0.1"), p("fd00:1::/32")], START)
        .unwrap();
    assert_eq!(gone.removed, 2);
    assert!(!listed(&policy, "10.0.0.1", List::Black, START));
    drop(policy);
    let policy = open_at(dir.path(), SystemEntries::default(), START);
    assert_eq!(
        names(&policy, List::Black, START),
        ["10.1.0.0/16", "fd00::1"]
    );
    assert!(listed(&policy, "10.1.2.3", List::Black, START));
    assert_eq!(
        policy
            .counts()
            .entries(List::Black, Family::V4, Kind::Prefix),
        1
    );
    assert_eq!(
        policy.counts().entries(List::Black, Family::V6, Kind::Host),
        1
    );
}

#[test]
fn removing_what_is_not_there_removes_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let system = SystemEntries {
        black: vec![p("10.9.0.0/16")],
        ..Default::default()
    };
    let mut policy = open_at(dir.path(), system, START);
    add(&mut policy, List::Black, vec![entry("10.0.0.1", None)]).unwrap();
    let gone = policy
        .remove(List::Black, &[p("10.0.0.1"), p("10.0.0.2")], START)
        .unwrap();
    assert_eq!((gone.removed, gone.missing), (0, vec![p("10.0.0.2")]));
    assert!(listed(&policy, "10.0.0.1", List::Black, START));
    let error = policy
        .remove(List::Black, &[p("10.9.0.0/16")], START)
        .unwrap_err();
    assert!(error.to_string().contains("lists.blacklist"), "{error}");
}

#[test]
fn a_full_table_changes_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let mut policy = open_at(dir.path(), SystemEntries::default(), START);
    add(&mut policy, List::Black, vec![entry("10.0.0.1", Some(60))]).unwrap();
    let many = (0..100)
        .map(|i| entry(&format!("10.0.0.{i}"), None))
        .collect();
    let error = add(&mut policy, List::Black, many).unwrap_err();
    assert!(error.to_string().contains("tables.hosts_v4"), "{error}");
    assert_eq!(names(&policy, List::Black, START), ["10.0.0.1"]);
    assert!(listed(&policy, "10.0.0.1", List::Black, START));
    assert!(
        !listed(&policy, "10.0.0.1", List::Black, later(61)),
        "the expiry was put back too"
    );
    assert!(!listed(&policy, "10.0.0.5", List::Black, START));
    assert_eq!(
        policy.counts().entries(List::Black, Family::V4, Kind::Host),
        1
    );
}

#[test]
fn what_has_expired_is_gone_at_once_and_collected_later() {
    let dir = tempfile::tempdir().unwrap();
    let mut policy = open_at(dir.path(), SystemEntries::default(), START);
    let entries = vec![
        entry("10.0.0.1", Some(10)),
        entry("10.1.0.0/16", Some(10)),
        entry("10.0.0.2", None),
    ];
    add(&mut policy, List::Black, entries).unwrap();
    assert!(listed(&policy, "10.0.0.1", List::Black, later(9)));
    assert!(!listed(&policy, "10.0.0.1", List::Black, later(11)));
    assert_eq!(names(&policy, List::Black, later(11)), ["10.0.0.2"]);
    assert_eq!(policy.expire(later(9)).unwrap(), 0);
    assert_eq!(policy.expire(later(11)).unwrap(), 2);
    assert_eq!(
        policy.counts().entries(List::Black, Family::V4, Kind::Host),
        1
    );
    assert_eq!(policy.tables.used().hosts_v4, 1);
    drop(policy);
    assert_eq!(
        names(
            &open_at(dir.path(), SystemEntries::default(), START),
            List::Black,
            START
        ),
        ["10.0.0.2"]
    );
}

#[test]
fn expired_while_nobody_was_here() {
    let dir = tempfile::tempdir().unwrap();
    let mut policy = open_at(dir.path(), SystemEntries::default(), START);
    add(&mut policy, List::Black, vec![entry("10.0.0.1", Some(10))]).unwrap();
    drop(policy);
    let policy = open_at(dir.path(), SystemEntries::default(), later(20));
    assert!(names(&policy, List::Black, later(20)).is_empty());
    assert_eq!(
        policy.counts().entries(List::Black, Family::V4, Kind::Host),
        0
    );
}

#[test]
fn the_lists_stand_side_by_side() {
    let dir = tempfile::tempdir().unwrap();
    let mut policy = open_at(dir.path(), SystemEntries::default(), START);
    add(&mut policy, List::Black, vec![entry("10.0.0.1", None)]).unwrap();
    add(&mut policy, List::Allow, vec![entry("10.0.0.1", Some(10))]).unwrap();
    assert!(listed(&policy, "10.0.0.1", List::Allow, later(9)));
    assert!(listed(&policy, "10.0.0.1", List::Black, later(11)));
    policy.remove(List::Black, &[p("10.0.0.1")], START).unwrap();
    assert!(listed(&policy, "10.0.0.1", List::Allow, START));
    assert!(!listed(&policy, "10.0.0.1", List::Black, START));
}

#[test]
fn the_file_and_the_store_do_not_get_into_each_others_way() {
    let dir = tempfile::tempdir().unwrap();
    let system = SystemEntries {
        black: vec![p("10.0.0.1"), p("10.1.0.0/16")],
        ..Default::default()
    };
    let mut policy = open_at(dir.path(), system, START);
    add(&mut policy, List::Black, vec![entry("10.0.0.1", Some(10))]).unwrap();
    assert_eq!(
        names(&policy, List::Black, START),
        ["10.0.0.1", "10.0.0.1", "10.1.0.0/16"]
    );
    assert_eq!(
        policy
            .lookup("10.0.0.1".parse().unwrap(), START)
            .unwrap()
            .len(),
        2
    );
    assert_eq!(
        policy
            .flush(List::Black, None, None, START, &mut |_, _, _| {})
            .unwrap(),
        1
    );
    assert!(listed(&policy, "10.0.0.1", List::Black, START));
    add(&mut policy, List::Black, vec![entry("10.0.0.1", Some(10))]).unwrap();
    policy.set_system(SystemEntries::default(), START).unwrap();
    assert!(
        listed(&policy, "10.0.0.1", List::Black, later(9)),
        "the store's entry remains"
    );
    assert!(!listed(&policy, "10.0.0.1", List::Black, later(11)));
    assert!(!listed(&policy, "10.1.0.1", List::Black, START));
}

#[test]
fn what_expired_behind_the_file_s_entry_goes_with_it() {
    let dir = tempfile::tempdir().unwrap();
    let system = SystemEntries {
        black: vec![p("10.0.0.1"), p("10.1.0.0/16")],
        ..Default::default()
    };
    let mut policy = open_at(dir.path(), system, START);
    let entries = vec![entry("10.0.0.1", Some(10)), entry("10.1.0.0/16", Some(10))];
    add(&mut policy, List::Black, entries).unwrap();
    assert_eq!(policy.expire(later(20)).unwrap(), 0);
    policy
        .set_system(SystemEntries::default(), later(20))
        .unwrap();
    assert_eq!(
        policy.counts().entries(List::Black, Family::V4, Kind::Host),
        0
    );
    assert_eq!(policy.tables.used(), Default::default());
    assert_eq!(policy.expire(later(599)).unwrap(), 0);
    assert_eq!(stored(&policy), ["10.0.0.1", "10.1.0.0/16"]);
    collect(&mut policy, later(600));
    assert!(stored(&policy).is_empty());
}

#[test]
fn what_cannot_be_taken_out_of_the_file_yet_is_taken_out_later() {
    let dir = tempfile::tempdir().unwrap();
    let system = |black: &[&str]| SystemEntries {
        black: black.iter().map(|s| p(s)).collect(),
        ..Default::default()
    };
    let both = system(&["10.0.0.1", "10.1.0.0/16", "10.2.0.0/16"]);
    let mut policy = open_at(dir.path(), both, START);
    // A record without a claim cannot be read.
    let damage = |record| [(List::Black, p("10.1.0.0/16"), record)];
    let none = crate::store::Record { claims: Vec::new() };
    policy.store.write(&damage(Some(none.into()))).unwrap();
    let new = system(&["10.2.0.0/16"]);
    for _ in 0..2 {
        policy.set_system(new.clone(), START).unwrap_err();
        assert_eq!(policy.tables.used().prefixes, 2);
        for addr in ["10.0.0.1", "10.1.0.1", "10.2.0.1"] {
            assert!(listed(&policy, addr, List::Black, START), "{addr}");
        }
        assert!(!policy.is_torn());
    }
    policy.store.write(&damage(None)).unwrap();
    policy.set_system(new, START).unwrap();
    assert_eq!(names(&policy, List::Black, START), ["10.2.0.0/16"]);
    assert_eq!(policy.tables.used().prefixes, 1);
}

#[test]
fn pages_join_without_gap_or_repetition() {
    let dir = tempfile::tempdir().unwrap();
    let system = SystemEntries {
        black: vec![p("10.0.0.3"), p("10.0.0.7")],
        ..Default::default()
    };
    let mut policy = open_at(dir.path(), system, START);
    let stored = (1..=9)
        .map(|i| entry(&format!("10.0.0.{i}"), None))
        .collect();
    add(&mut policy, List::Black, stored).unwrap();
    let whole = names(&policy, List::Black, START);
    assert_eq!(whole.len(), 11);
    for limit in 1..12 {
        let (mut joined, mut after) = (Vec::new(), None);
        loop {
            let page = policy.list(List::Black, None, after, limit, START).unwrap();
            joined.extend(page.entries.iter().map(|e| e.prefix.to_string()));
            after = page.next;
            if after.is_none() {
                break;
            }
        }
        assert_eq!(joined, whole, "pages of {limit}");
    }
}

#[test]
fn what_is_said_last_counts_and_notes_are_bounded() {
    let dir = tempfile::tempdir().unwrap();
    let mut policy = open_at(dir.path(), SystemEntries::default(), START);
    let last = NewEntry {
        note: "last".into(),
        ..entry("10.0.0.1", None)
    };
    let done = add(
        &mut policy,
        List::Black,
        vec![entry("10.0.0.1", Some(5)), last],
    )
    .unwrap();
    assert_eq!(done.added, 1);
    let page = policy.list(List::Black, None, None, 10, START).unwrap();
    assert_eq!(
        (&*page.entries[0].note, page.entries[0].expires_unix_ms),
        ("last", None)
    );
    let long = NewEntry {
        note: "x".repeat(MAX_NOTE + 1).into(),
        ..entry("10.0.0.2", None)
    };
    assert!(matches!(
        add(&mut policy, List::Black, vec![long]),
        Err(PolicyError::NoteTooLong { .. })
    ));
}

#[derive(Clone, Debug)]
enum Action {
    Add(List, Vec<(Prefix, Option<u64>)>),
    Remove(List, Prefix),
    Flush(List),
    Pass(u64),
    Expire,
    Reopen,
    System(Vec<Prefix>, Vec<Prefix>),
}

fn prefixes() -> impl Strategy<Value = Prefix> {
    let names = [
        "10.0.0.1",
        "10.0.0.2",
        "10.0.0.0/24",
        "10.0.0.0/16",
        "10.0.0.0/8",
        "0.0.0.0/0",
        "10.0.0.0/31",
        "fd00::1",
        "fd00::2",
        "fd00::/127",
        "fd00::/64",
        "fd00::/40",
        "fd00::/8",
        "::/0",
        "11.0.0.1",
    ];
    proptest::sample::select(names.map(p).to_vec())
}

fn actions() -> impl Strategy<Value = Action> {
    let list = || proptest::sample::select(vec![List::Black, List::Allow]);
    let ttl = proptest::option::of(1u64..50);
    prop_oneof![
        6 => (list(), proptest::collection::vec((prefixes(), ttl), 1..4)).prop_map(|(l, e)| Action::Add(l, e)),
        3 => (list(), prefixes()).prop_map(|(l, p)| Action::Remove(l, p)),
        1 => list().prop_map(Action::Flush),
        3 => (1u64..20).prop_map(Action::Pass),
        2 => Just(Action::Expire),
        1 => Just(Action::Reopen),
        1 => (proptest::collection::vec(prefixes(), 0..3), proptest::collection::vec(prefixes(), 0..3))
            .prop_map(|(b, a)| Action::System(b, a)),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]
    #[test]
    fn tables_store_and_a_naive_model_agree(actions in proptest::collection::vec(actions(), 1..40)) {
        let dir = tempfile::tempdir().unwrap();
        let mut policy = Some(open_at(dir.path(), SystemEntries::default(), START));
        let mut model: BTreeMap<(List, Prefix), Option<u64>> = BTreeMap::new();
        let (mut system, mut seconds) = (SystemEntries::default(), 0);
        for action in actions {
            let now = later(seconds);
            let at = policy.as_mut().unwrap();
            model.retain(|_, until| until.is_none_or(|until| until > seconds));
            match action {
                Action::Add(list, entries) => {
                    let new = entries.iter().map(|(prefix, ttl)| NewEntry {
                        prefix: *prefix,
                        expires_unix_ms: ttl.map(|t| now.unix_ms + t * 1000),
                        source: cli(),
                        note: "".into(),
                    });
                    add_at(at, list, new.collect(), now).unwrap();
                    for (prefix, ttl) in entries {
                        model.insert((list, prefix), ttl.map(|t| seconds + t));
                    }
                }
                Action::Remove(list, prefix) => {
                    let expected = u64::from(model.remove(&(list, prefix)).is_some());
                    match at.remove(list, &[prefix], now) {
                        Ok(done) => prop_assert_eq!(done.removed, expected),
                        Err(e) => {
                            let in_file = matches!(e, PolicyError::InFile { .. });
                            prop_assert!(in_file && expected == 0);
                        }
                    }
                }
                Action::Flush(list) => {
                    at.flush(list, None, None, now, &mut |_, _, _| {}).unwrap();
                    model.retain(|(l, _), _| *l != list);
                }
                Action::Pass(more) => seconds += more,
                Action::Expire => { at.expire(now).unwrap(); }
                Action::Reopen => {
                    // Closed first: the store is open once.
                    drop(policy.take());
                    policy = Some(open_at(dir.path(), system.clone(), now));
                }
                Action::System(black, allow) => {
                    system = SystemEntries { black, allow, ..Default::default() };
                    at.set_system(system.clone(), now).unwrap();
                }
            }
            // Stamps are rounded up by less than 268 ms: look half a second on.
            let at = policy.as_ref().unwrap();
            let mut now = later(seconds);
            now.mono_ns += 500_000_000;
            for list in [List::Black, List::Allow] {
                let of_file = match list { List::Black => &system.black, List::Allow => &system.allow };
                let in_force: Vec<Prefix> = model
                    .iter()
                    .filter(|((l, _), until)| *l == list && until.is_none_or(|u| u > seconds))
                    .map(|((_, p), _)| *p)
                    .collect();
                for addr in ["10.0.0.0", "10.0.0.1", "10.0.0.2", "10.0.1.1", "10.9.9.9", "11.0.0.1", "12.0.0.1",
                    "fd00::", "fd00::1", "fd00::2", "fd00::1:0:0:0:1", "fd01::1", "::5"] {
                    let host = Prefix::host(addr.parse::<IpAddr>().unwrap());
                    let expected = in_force.iter().chain(of_file).any(|p| p.contains(host));
                    prop_assert_eq!(listed(at, addr, list, now), expected, "{} {:?}", addr, list);
                }
                let mut expected: Vec<Prefix> = in_force;
                let mut file = of_file.clone();
                file.sort_unstable();
                file.dedup();
                expected.extend(file);
                expected.sort_unstable();
                let page = at.list(list, None, None, 1000, later(seconds)).unwrap();
                prop_assert_eq!(page.entries.iter().map(|e| e.prefix).collect::<Vec<_>>(), expected);
            }
        }
    }
}
