use std::time::Duration;

use proptest::prelude::*;

use super::*;
use crate::{
    config::balance::{HealthCheck, Probe, Through},
    health::Route,
};

const SECOND: u64 = 1_000_000_000;

fn target(name: &str, port: u16, fall: u32) -> Target {
    Target {
        key: BackendKey {
            service: Arc::from("web"),
            backend: Arc::from(name),
        },
        address: ([127, 0, 0, 1], port).into(),
        check: Arc::new(HealthCheck {
            probe: Probe::Tcp,
            through: Through::Direct,
            port: None,
            interval: Duration::from_secs(10),
            timeout: Duration::from_secs(1),
            rise: 1,
            fall,
            jitter_per_cent: 0,
        }),
        route: Route::default(),
    }
}

fn failure() -> Outcome {
    Outcome::Failure("refused".to_owned())
}

/// Asks the next one, which succeeds or not.
fn ask(table: &mut Table, now: u64, outcome: &Outcome) -> Option<Transition> {
    let job = table.start(now).expect("one is due");
    table.finish(&job, outcome, now, 0)
}

#[test]
fn each_is_asked_in_its_turn_and_by_one_at_a_time() {
    let mut table = Table::default();
    let random = [u64::MAX, 0, u64::MAX / 2];
    let mut random = random.into_iter();
    let targets = ["a", "b", "c"].map(|name| target(name, 1, 1));
    table.set(targets.into(), 0, || random.next().unwrap());
    assert_eq!(table.next_due(), Some(0));
    let now = SECOND;
    let jobs: Vec<Job> = std::iter::from_fn(|| table.start(now)).collect();
    let names: Vec<&str> = jobs.iter().map(|job| &*job.target.key.backend).collect();
    assert_eq!(names, ["b", "c", "a"]);
    assert_eq!((table.next_due(), table.totals().behind_ns), (None, 0));
    // The interval counts from the beginning of the check, and not from its end.
    table.finish(&jobs[0], &Outcome::Success, now + SECOND, 0);
    assert_eq!(table.next_due(), Some(now + 10 * SECOND));
    assert!(table.start(now + 10 * SECOND - 1).is_none());
    // One that took longer than the interval is asked again at once.
    table.finish(&jobs[1], &Outcome::Success, now + 30 * SECOND, 0);
    assert!(table.start(now + 31 * SECOND).is_some());
    assert_eq!(table.totals().behind_ns, 21 * SECOND);
}

#[test]
fn those_that_stay_keep_their_state() {
    let mut table = Table::default();
    table.set(vec![target("a", 1, 1), target("b", 2, 1)], 0, || 0);
    ask(&mut table, 1, &Outcome::Success).unwrap();
    ask(&mut table, 1, &failure()).unwrap();
    assert_eq!(table.take_changes().len(), 2);
    let due = table.next_due();
    // "a" is the same (of another reload: another Arc), "b" has moved, "c" is new.
    let targets = vec![target("a", 1, 1), target("b", 3, 1), target("c", 4, 1)];
    table.set(targets, 2, || u64::MAX);
    let health = |table: &Table, name| {
        let state = table.state(&target(name, 0, 0).key);
        state.map(|state| (state.health(), state.since_ns()))
    };
    assert_eq!(health(&table, "a"), Some((Health::Up, 1)));
    assert_eq!(health(&table, "b"), Some((Health::Unknown, 2)));
    assert_eq!(health(&table, "c"), Some((Health::Unknown, 2)));
    let changes = table.take_changes();
    assert_eq!(changes.len(), 1);
    assert_eq!(
        (&*changes[0].0.backend, changes[0].1.old, changes[0].1.new),
        ("b", Health::Down, Health::Unknown)
    );
    assert_eq!(table.queue.len(), 3);
    // "a" is asked when it would have been.
    table.set(vec![target("a", 1, 1)], 3, || 0);
    assert_eq!(table.next_due(), due);
    assert_eq!((table.totals().targets, table.queue.len()), (1, 1));
    assert_eq!(health(&table, "b"), None);
    table.set(Vec::new(), 4, || 0);
    assert_eq!(table.next_due(), None);
}

#[test]
fn a_check_of_what_was_replaced_says_nothing() {
    let mut table = Table::default();
    table.set(vec![target("a", 1, 1)], 0, || 0);
    let job = table.start(1).unwrap();
    assert!(table.wants(&job));
    table.set(vec![target("a", 2, 1)], 2, || 0);
    assert!(!table.wants(&job));
    assert_eq!(table.finish(&job, &failure(), 3, 0), None);
    assert_eq!(
        table.state(&job.target.key).unwrap().health(),
        Health::Unknown
    );
    assert_eq!((table.totals().failed, table.queue.len()), (0, 1));
    // Nor does one of what is gone.
    let job = table.start(4).unwrap();
    table.set(Vec::new(), 5, || 0);
    assert_eq!(table.finish(&job, &failure(), 6, 0), None);
    assert_eq!(table.passive_failure(&job.target.key, "reset", 7), None);
    assert!(!table.has_changes() && table.queue.is_empty());
}

#[test]
fn changes_of_one_backend_become_one() {
    let mut table = Table::default();
    table.set(vec![target("a", 1, 1)], 0, || 0);
    let key = target("a", 1, 1).key;
    ask(&mut table, SECOND, &Outcome::Success).unwrap();
    table.passive_failure(&key, "reset", 2 * SECOND).unwrap();
    let changes = table.take_changes();
    assert_eq!(
        changes,
        [(
            key.clone(),
            Transition {
                old: Health::Unknown,
                new: Health::Down,
                why: "reset".to_owned(),
                at_ns: 2 * SECOND,
            }
        )]
    );
    // There and back again is nothing.
    ask(&mut table, 20 * SECOND, &Outcome::Success).unwrap();
    table.passive_failure(&key, "reset", 21 * SECOND).unwrap();
    assert!(!table.has_changes());
    assert_eq!(table.state(&key).unwrap().falls(), 2);
}

#[derive(Clone, Debug)]
enum Step {
    /// Names and ports.
    Set(Vec<(u8, u16)>),
    Start,
    /// Which of those running, and whether it succeeds.
    Finish(prop::sample::Index, bool),
    Passive(u8),
    Tell,
}

fn steps() -> impl Strategy<Value = Vec<(Step, u64)>> {
    let step = prop_oneof![
        2 => prop::collection::vec((0_u8..6, 1_u16..3), 0..8).prop_map(Step::Set),
        8 => Just(Step::Start),
        8 => any::<(prop::sample::Index, bool)>().prop_map(|(at, well)| Step::Finish(at, well)),
        2 => (0_u8..6).prop_map(Step::Passive),
        2 => Just(Step::Tell),
    ];
    prop::collection::vec((step, 0..5 * SECOND), 1..200)
}

proptest! {
    /// Whoever listens knows the truth, and every backend is either queued or asked.
    #[test]
    fn what_is_told_adds_up_to_what_is(steps in steps()) {
        let mut table = Table::default();
        let mut told: BTreeMap<BackendKey, Health> = BTreeMap::new();
        let mut jobs: Vec<Job> = Vec::new();
        let mut now = 0;
        for (step, gap) in steps {
            now += gap;
            match step {
                Step::Set(targets) => {
                    let targets: Vec<Target> = targets
                        .into_iter()
                        .map(|(name, port)| target(&name.to_string(), port, 2))
                        .collect();
                    told = targets
                        .iter()
                        .map(|t| (t.key.clone(), told.get(&t.key).copied().unwrap_or_default()))
                        .collect();
                    table.set(targets, now, || now);
                }
                Step::Start => {
                    if let Some(job) = table.start(now) {
                        let same = jobs.iter().any(|other| other.serial == job.serial);
                        prop_assert!(!same, "asked twice at once");
                        jobs.push(job);
                    }
                }
                Step::Finish(at, well) if !jobs.is_empty() => {
                    let job = jobs.swap_remove(at.index(jobs.len()));
                    let outcome = if well { Outcome::Success } else { failure() };
                    table.finish(&job, &outcome, now, now);
                }
                Step::Finish(..) => {}
                Step::Passive(name) => {
                    table.passive_failure(&target(&name.to_string(), 0, 0).key, "reset", now);
                }
                Step::Tell => {
                    for (key, change) in table.take_changes() {
                        let before = told.insert(key, change.new);
                        prop_assert_eq!(before, Some(change.old));
                    }
                    let truth: BTreeMap<BackendKey, Health> =
                        table.states().map(|(key, s)| (key.clone(), s.health())).collect();
                    prop_assert_eq!(&told, &truth);
                }
            }
            let asked = jobs.iter().filter(|job| table.wants(job)).count();
            prop_assert_eq!(table.queue.len() + asked, table.entries.len());
            for ((due_ns, serial), key) in &table.queue {
                let entry = &table.entries[key];
                prop_assert_eq!((entry.due_ns, entry.serial), (Some(*due_ns), *serial));
            }
        }
    }
}
