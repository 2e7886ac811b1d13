use std::time::Duration;

use proptest::prelude::*;

use super::super::damping::MAX_HOLD_NS;
use super::*;
use crate::config::balance::{Probe, Through};

const SECOND: u64 = 1_000_000_000;

fn check(rise: u32, fall: u32) -> HealthCheck {
    HealthCheck {
        probe: Probe::Tcp,
        through: Through::Direct,
        port: None,
        interval: Duration::from_secs(2),
        timeout: Duration::from_secs(1),
        rise,
        fall,
        jitter_per_cent: 10,
    }
}

fn failure() -> Outcome {
    Outcome::Failure("connect: connection refused".to_owned())
}

#[test]
fn the_first_check_decides_at_once() {
    for (outcome, new) in [(Outcome::Success, Health::Up), (failure(), Health::Down)] {
        let mut state = State::new(&check(3, 3), 5);
        assert_eq!((state.health(), state.since_ns()), (Health::Unknown, 5));
        let transition = state.take(&outcome, 7).unwrap();
        assert_eq!((transition.old, transition.new), (Health::Unknown, new));
        assert_eq!((state.health(), state.since_ns()), (new, 7));
        assert_eq!(state.falls(), 0);
    }
}

#[test]
fn it_falls_and_rises_as_often_as_the_check_says() {
    let mut state = State::new(&check(2, 3), 0);
    state.take(&Outcome::Success, 1).unwrap();
    // Two failures, but not three in a row.
    for outcome in [failure(), failure(), Outcome::Success, failure(), failure()] {
        assert_eq!(state.take(&outcome, 2), None);
    }
    assert_eq!(
        state.take(&failure(), 3),
        Some(Transition {
            old: Health::Up,
            new: Health::Down,
            why: "connect: connection refused".to_owned(),
            at_ns: 3,
        })
    );
    for outcome in [Outcome::Success, failure(), Outcome::Success] {
        assert_eq!(state.take(&outcome, 4), None);
    }
    let up = state.take(&Outcome::Success, 5).unwrap();
    assert_eq!((up.old, up.new), (Health::Down, Health::Up));
    assert_eq!(up.why, "2 checks in a row succeeded");
    assert_eq!(state.falls(), 1);
    let error = state.last_error().unwrap();
    assert_eq!(
        (error.text.as_str(), error.at_ns),
        ("connect: connection refused", 4)
    );
}

#[test]
fn what_is_seen_in_the_traffic_counts_as_a_check_that_fails() {
    // Also of one that was never asked.
    let mut state = State::new(&check(1, 3), 0);
    let down = state.passive_failure("it refuses connections", 1).unwrap();
    assert_eq!(
        (down.old, down.new, down.why.as_str()),
        (Health::Unknown, Health::Down, "it refuses connections")
    );
    assert!(state.take(&Outcome::Success, 2).is_some());
    assert_eq!(state.passive_failure("again", 3), None);
    // A check that succeeds contradicts it.
    assert_eq!(state.take(&Outcome::Success, 4), None);
    assert_eq!(state.passive_failure("again", 5), None);
    assert_eq!(state.passive_failure("again", 6), None);
    assert!(state.passive_failure("again", 7).is_some());
    // And starts a rise from the beginning.
    let mut state = State::new(&check(2, 1), 0);
    state.take(&failure(), 1).unwrap();
    assert_eq!(state.take(&Outcome::Success, 2), None);
    assert_eq!(state.passive_failure("reset", 3), None);
    assert_eq!(state.take(&Outcome::Success, 4), None);
    assert!(state.take(&Outcome::Success, 5).is_some());
}

#[test]
fn what_this_host_could_not_ask_changes_nothing_but_is_told() {
    let mut state = State::new(&check(1, 1), 0);
    let not_asked = Outcome::NotAsked("socket: too many open files".to_owned());
    assert_eq!(state.take(&not_asked, 1), None);
    assert_eq!(state.health(), Health::Unknown);
    state.take(&Outcome::Success, 2).unwrap();
    assert_eq!(state.take(&not_asked, 3), None);
    assert_eq!(state.health(), Health::Up);
    assert_eq!(state.last_error().unwrap().at_ns, 3);
}

#[test]
fn one_that_goes_down_too_often_is_held_and_let_go() {
    let mut state = State::new(&check(1, 1), 0);
    let mut now = SECOND;
    state.take(&Outcome::Success, now);
    let mut flaps = 0;
    loop {
        now += 5 * SECOND;
        assert_eq!(state.take(&failure(), now).unwrap().new, Health::Down);
        flaps += 1;
        now += 5 * SECOND;
        match state.take(&Outcome::Success, now).unwrap().new {
            Health::Up => assert!(flaps < 10, "it flaps for ever"),
            new => {
                assert_eq!(new, Health::Held);
                break;
            }
        }
    }
    assert_eq!(flaps, 4);
    let until = state.held_until_ns(now).unwrap();
    assert_eq!(state.take(&Outcome::Success, until - 1), None);
    // Down again while it is held: for longer.
    assert_eq!(state.take(&failure(), until - 1).unwrap().new, Health::Down);
    let later = state.held_until_ns(until).unwrap();
    assert!(later > until);
    assert_eq!(
        state.take(&Outcome::Success, later - 1).unwrap().new,
        Health::Held
    );
    let up = state.take(&Outcome::Success, later).unwrap();
    assert_eq!(
        (up.old, up.new, up.why.as_str()),
        (Health::Held, Health::Up, "stable again")
    );
    assert_eq!(state.held_until_ns(later), None);
}

#[test]
fn texts_are_one_bounded_line() {
    assert_eq!(one_line("a\nb\x1b[31mc"), "a b [31mc");
    let exact = "x".repeat(MAX_TEXT_BYTES - '…'.len_utf8());
    assert_eq!(one_line(&exact), exact);
    for text in ["y".repeat(10_000), "ü€😀".repeat(1000)] {
        let line = one_line(&text);
        assert!(line.len() <= MAX_TEXT_BYTES && line.len() > MAX_TEXT_BYTES - 8);
        assert!(line.ends_with('…'));
    }
}

#[derive(Clone, Debug)]
enum Input {
    Check(bool),
    NotAsked,
    Passive,
}

fn inputs() -> impl Strategy<Value = Vec<(Input, u64)>> {
    let input = prop_oneof![
        5 => any::<bool>().prop_map(Input::Check),
        1 => Just(Input::NotAsked),
        1 => Just(Input::Passive),
    ];
    prop::collection::vec((input, 1..20 * SECOND), 0..200)
}

proptest! {
    /// Against the plain reading of the rules, over the whole history.
    #[test]
    fn up_and_down_follow_from_the_last_results(
        rise in 1_u32..5,
        fall in 1_u32..5,
        inputs in inputs(),
    ) {
        let mut state = State::new(&check(rise, fall), 0);
        let mut now = 0;
        // In a row, whatever the state was.
        let (mut successes, mut failures) = (0, 0);
        for (input, gap) in inputs {
            now += gap;
            let before = state.clone();
            let transition = match input {
                Input::Check(true) => state.take(&Outcome::Success, now),
                Input::Check(false) => state.take(&failure(), now),
                Input::NotAsked => state.take(&Outcome::NotAsked(String::new()), now),
                Input::Passive => state.passive_failure("reset", now),
            };
            match input {
                Input::Check(true) => (successes, failures) = (successes + 1, 0),
                Input::Check(false) | Input::Passive => (successes, failures) = (0, failures + 1),
                Input::NotAsked => {}
            }
            match &transition {
                None => {
                    prop_assert_eq!(state.health(), before.health());
                    prop_assert_eq!(state.since_ns(), before.since_ns());
                }
                Some(t) => {
                    prop_assert_ne!(t.old, t.new);
                    prop_assert_eq!(t.old, before.health());
                    prop_assert_eq!((t.new, t.at_ns), (state.health(), state.since_ns()));
                    prop_assert!(!t.why.is_empty());
                }
            }
            let first = before.health() == Health::Unknown;
            match transition.map(|t| t.new) {
                Some(Health::Up) => {
                    let needed = if first { 1 } else { rise };
                    prop_assert!(successes >= needed);
                    prop_assert_eq!(before.held_until_ns(now), None);
                }
                Some(Health::Held) => {
                    prop_assert!(successes >= rise);
                    prop_assert!(before.held_until_ns(now).is_some());
                }
                Some(Health::Down) => {
                    let decides = first || matches!(input, Input::Passive);
                    let needed = if decides { 1 } else { fall };
                    prop_assert!(failures >= needed);
                }
                Some(Health::Unknown) => prop_assert!(false, "nothing is forgotten"),
                // Nothing that has to change stays as it is.
                None => {
                    prop_assert!(!(before.health() == Health::Up && failures >= fall));
                    prop_assert!(!(before.health() == Health::Held && failures >= fall));
                    prop_assert!(!(before.health() == Health::Down && successes >= rise));
                }
            }
        }
        // However it flapped: in the end it is let go.
        now += MAX_HOLD_NS;
        for _ in 0..rise {
            state.take(&Outcome::Success, now);
        }
        prop_assert_eq!(state.health(), Health::Up);
    }

    #[test]
    fn the_schedule_keeps_to_the_jitter(
        interval_ms in 1_u64..3_600_000,
        jitter_per_cent in 0_u32..=50,
        began in 0..u64::MAX / 2,
        random: u64,
    ) {
        let check = HealthCheck {
            interval: Duration::from_millis(interval_ms),
            jitter_per_cent,
            ..check(1, 1)
        };
        let state = State::new(&check, 0);
        let interval = interval_ms * 1_000_000;
        let jitter = interval * u64::from(jitter_per_cent) / 100;
        let next = state.next(began, random) - began;
        prop_assert!((interval - jitter..=interval + jitter).contains(&next), "{}", next);
        prop_assert_eq!(state.next(began, 0) - began, interval - jitter);
        prop_assert_eq!(state.next(began, u64::MAX) - began, interval + jitter);
        let first = state.first(began, random) - began;
        prop_assert!(first <= interval.min(FIRST_WITHIN_NS));
    }
}
