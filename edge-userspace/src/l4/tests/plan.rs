use std::{collections::BTreeSet, time::Duration};

use proptest::prelude::*;

use super::{any_balance, any_states, backend, balance, endpoint, up};
use crate::{
    config::balance::{Balance, MAX_WEIGHT},
    l4::plan::{Admin, BackendState, Health, Plan, Pool, States, Why, plan},
};

fn state(health: Health) -> BackendState {
    BackendState {
        health,
        ..BackendState::default()
    }
}

/// Of so many primaries and backups of weight 100 the states, as letters in order: up,
/// down, unknown (`?`), draining (`d`), drained (`D`).
fn planned(primaries: &str, backups: &str, floor_per_cent: u32) -> Plan {
    let all = primaries.chars().chain(backups.chars());
    let mut backends = Vec::new();
    let mut states = States::new();
    for ((n, letter), place) in (0..).zip(all).zip(0..) {
        backends.push(backend(n, 100, place >= primaries.len()));
        let admin = match letter {
            'd' => Admin::Draining,
            'D' => Admin::Drained,
            _ => Admin::Active,
        };
        let health = match letter {
            '-' => Health::Down,
            '!' => Health::Failing,
            '?' => Health::Unknown,
            _ => Health::Up,
        };
        let state = BackendState {
            admin,
            ..state(health)
        };
        states.insert(endpoint(n), state);
    }
    let balance = Balance {
        floor_per_cent,
        ..balance(backends)
    };
    plan(&balance, &states, 0)
}

/// Which of them are used.
fn used(plan: &Plan) -> String {
    plan.standings
        .iter()
        .map(|s| if s.weight > 0 { 'x' } else { '.' })
        .collect()
}

#[test]
fn who_is_used() {
    for (primaries, backups, floor, want, failed_open) in [
        // Those that are up, while they are enough.
        ("uu", "", 25, "xx", false),
        ("u-u", "u", 25, "x.x.", false),
        ("u---", "u", 25, "x....", false),
        ("u?", "u", 25, "x..", false),
        // A new one waits for its check, though many are new.
        ("u???", "", 25, "x...", false),
        // Nothing is known yet: all but those that are known to be down.
        ("????", "??", 25, "xxxx..", false),
        ("?-?-", "", 25, "x.x.", false),
        ("????", "", 0, "xxxx", false),
        ("-???", "", 0, ".xxx", false),
        ("????", "u", 25, "xxxx.", false),
        // Enough only together with what is not known.
        ("u????????-", "", 25, "xxxxxxxxx.", false),
        // Too few are up.
        ("u----", "u", 25, "xxxxx.", true),
        ("u---", "", 26, "xxxx", true),
        ("u-", "", 100, "xx", true),
        // A floor of 0 never uses one that is down.
        ("u---------", "", 0, "x.........", false),
        ("---", "", 0, "...", false),
        ("---", "-", 0, "....", false),
        // Backups only when no primary is up.
        ("--", "u", 25, "..x", false),
        ("--", "u-", 25, "..x.", false),
        ("--", "?", 25, "..x", false),
        ("--", "u-----", 25, "..xxxxxx", true),
        // Nobody is up at all.
        ("--", "--", 25, "xx..", true),
        ("--", "", 25, "xx", true),
        // What the operator takes out stays out, and does not count.
        ("dD", "u", 25, "..x", false),
        ("dD", "-", 25, "..x", true),
        ("dD", "", 25, "..", false),
        ("uDDDDD", "", 25, "x.....", false),
        ("-ddd", "", 25, "x...", true),
        ("--", "d", 25, "xx.", true),
    ] {
        let plan = planned(primaries, backups, floor);
        let case = format!("{primaries} and {backups} with {floor} %");
        assert_eq!(used(&plan), want, "{case}");
        assert_eq!(plan.failed_open, failed_open, "{case}");
        let pool = match want.find('x') {
            None => None,
            Some(at) if at < primaries.len() => Some(Pool::Primaries),
            Some(_) => Some(Pool::Backups),
        };
        assert_eq!(plan.pool, pool, "{case}");
    }
}

#[test]
fn everybody_is_told_why() {
    let whys = |primaries, backups| -> Vec<Why> {
        let plan = planned(primaries, backups, 50);
        plan.standings.iter().map(|s| s.why).collect()
    };
    use Why::{Awaited, Down, Drained, Draining, FailedOpen, Healthy, Presumed, Spare};
    assert_eq!(
        whys("uu-?dD", "u-?"),
        [
            Healthy, Healthy, Down, Awaited, Draining, Drained, Spare, Down, Awaited
        ]
    );
    assert_eq!(whys("u--?", "u"), [Healthy, Down, Down, Presumed, Spare]);
    assert_eq!(whys("u--", "?"), [Healthy, FailedOpen, FailedOpen, Awaited]);
    assert_eq!(whys("--?", "u"), [Down, Down, Awaited, Healthy]);
    let whole: Vec<String> = [
        Healthy,
        Presumed,
        FailedOpen,
        Awaited,
        Why::Rising { per_cent: 40 },
    ]
    .map(|why| why.to_string())
    .into();
    assert_eq!(whole.iter().collect::<BTreeSet<_>>().len(), 5);
    assert_eq!(whole[4], "it came up only now, and has 40 % of its weight");
}

#[test]
fn without_checks_all_are_taken_for_healthy() {
    let unchecked = Balance {
        health: None,
        ..balance(vec![
            backend(0, 100, false),
            backend(1, 0, false),
            backend(2, 5, true),
        ])
    };
    let plan = plan(&unchecked, &States::new(), 0);
    let whys: Vec<_> = plan.standings.iter().map(|s| (s.weight, s.why)).collect();
    assert_eq!(
        whys,
        [(100, Why::Unchecked), (0, Why::NoWeight), (0, Why::Spare)]
    );
}

#[test]
fn the_operator_sets_weights() {
    let two = balance(vec![backend(0, 100, false), backend(1, 100, false)]);
    let weights = |set| {
        let state = BackendState {
            weight_override: Some(set),
            ..up()
        };
        let states = States::from([(endpoint(0), up()), (endpoint(1), state)]);
        let plan = plan(&two, &states, 0);
        plan.standings.iter().map(|s| s.weight).collect::<Vec<_>>()
    };
    assert_eq!(weights(7), [100, 7]);
    assert_eq!(weights(0), [100, 0]);
    assert_eq!(weights(u32::MAX), [100, MAX_WEIGHT]);
}

/// Two backends, the second one up since 1,000 with this weight; slow start takes 900.
fn rising(weight: u32, now_ns: u64) -> Plan {
    let slow = Balance {
        slow_start: Duration::from_nanos(900),
        ..balance(vec![backend(0, 100, false), backend(1, weight, false)])
    };
    let state = BackendState {
        up_since_ns: Some(1000),
        ..up()
    };
    let states = States::from([(endpoint(0), up()), (endpoint(1), state)]);
    plan(&slow, &states, now_ns)
}

#[test]
fn a_weight_rises_in_ten_parts() {
    let seen = |weight, now| {
        let plan = rising(weight, now);
        (plan.standings[1].weight, plan.again_at_ns)
    };
    assert_eq!(seen(100, 1000), (10, Some(1100)));
    assert_eq!(seen(100, 1099), (10, Some(1100)));
    assert_eq!(seen(100, 1100), (20, Some(1200)));
    assert_eq!(seen(100, 1899), (90, Some(1900)));
    assert_eq!(seen(100, 1900), (100, None));
    // A clock that is behind.
    assert_eq!(seen(100, 0), (10, Some(1100)));
    // Steps that change nothing are none.
    assert_eq!(seen(1, 1000), (1, None));
    assert_eq!(seen(2, 1000), (1, Some(1500)));
    assert_eq!(seen(2, 1500), (2, None));
    assert_eq!(seen(3, 1000), (1, Some(1300)));
    assert_eq!(
        rising(100, 1300).standings[1].why,
        Why::Rising { per_cent: 40 }
    );
    assert_eq!(rising(100, 1900).standings[1].why, Why::Healthy);
}

#[test]
fn without_a_slow_start_the_weight_is_whole_at_once() {
    let at_once = balance(vec![backend(0, 100, false)]);
    let state = BackendState {
        up_since_ns: Some(5),
        ..up()
    };
    // Also by a clock that is behind.
    for now in [0, 5, 6] {
        let plan = plan(&at_once, &States::from([(endpoint(0), state)]), now);
        assert_eq!((plan.standings[0].weight, plan.again_at_ns), (100, None));
    }
}

#[test]
fn a_slow_start_of_ages_overflows_nowhere() {
    let ages = Balance {
        slow_start: Duration::MAX,
        ..balance(vec![backend(0, 1000, false)])
    };
    let state = BackendState {
        up_since_ns: Some(u64::MAX - 5),
        ..up()
    };
    for now in [0, u64::MAX - 5, u64::MAX] {
        let plan = plan(&ages, &States::from([(endpoint(0), state)]), now);
        assert!(plan.standings[0].weight >= 100);
    }
}

/// When it has to hold for those that are left, one that has come up has no time.
#[test]
fn weights_are_whole_when_it_fails_open() {
    let few = Balance {
        slow_start: Duration::from_secs(60),
        floor_per_cent: 50,
        ..balance((0..4).map(|n| backend(n, 100, false)).collect())
    };
    let risen = BackendState {
        up_since_ns: Some(0),
        ..up()
    };
    let mut states = States::from([(endpoint(0), risen)]);
    states.extend((1..4).map(|n| (endpoint(n), state(Health::Down))));
    let plan = plan(&few, &states, 1);
    assert!(plan.failed_open);
    assert!(plan.standings.iter().all(|s| s.weight == 100), "{plan:?}");
    assert_eq!(plan.again_at_ns, None);
}

proptest! {
    #[test]
    fn whatever_is_known(balance in any_balance(), states in any_states(), now in 0u64..4_000) {
        let plan_now = plan(&balance, &states, now);
        prop_assert_eq!(plan_now.standings.len(), balance.backends.len());
        let mut usable = false;
        let mut healthy = false;
        for (standing, backend) in plan_now.standings.iter().zip(&balance.backends) {
            let state = states.get(&standing.endpoint).copied().unwrap_or_default();
            let whole = state.weight_override.unwrap_or(backend.weight).min(MAX_WEIGHT);
            let can = state.admin == Admin::Active && whole > 0;
            usable |= can;
            healthy |= can && state.health == Health::Up;
            prop_assert!(standing.weight <= whole);
            if standing.weight > 0 {
                prop_assert!(can, "{:?}", standing);
                prop_assert!(standing.weight >= whole.div_ceil(10));
                prop_assert!(!state.health.is_bad() || plan_now.failed_open);
                prop_assert!(state.health != Health::Failing || !standing.why.ends_flows());
                let pool = if backend.backup { Pool::Backups } else { Pool::Primaries };
                prop_assert_eq!(Some(pool), plan_now.pool);
            }
            let says_used = matches!(
                standing.why,
                Why::Healthy | Why::Unchecked | Why::Rising { .. } | Why::Presumed | Why::FailedOpen
            );
            prop_assert_eq!(says_used, standing.weight > 0);
        }
        let some = !plan_now.candidates().is_empty();
        prop_assert_eq!(some, plan_now.pool.is_some());
        prop_assert!(!some || usable);
        prop_assert!(some || !healthy);
        if balance.floor_per_cent > 0 {
            prop_assert_eq!(some, usable);
        } else {
            prop_assert!(!plan_now.failed_open);
        }
    }

    /// Nothing changes before the moment for which the next plan is asked for, then
    /// something does, and there are not more than nine such moments for a backend.
    #[test]
    fn plans_are_made_anew_when_and_only_when_they_change(
        balance in any_balance(),
        states in any_states(),
        now in 0u64..4_000,
    ) {
        let mut current = plan(&balance, &states, now);
        let mut from = now;
        let mut steps = 0;
        while let Some(next) = current.again_at_ns {
            prop_assert!(next > from);
            for between in [from, from.midpoint(next), next - 1] {
                prop_assert_eq!(&plan(&balance, &states, between), &current);
            }
            let then = plan(&balance, &states, next);
            prop_assert_ne!(then.candidates(), current.candidates());
            steps += 1;
            prop_assert!(steps <= 9 * balance.backends.len());
            (current, from) = (then, next);
        }
        prop_assert_eq!(&plan(&balance, &states, u64::MAX), &current);
    }
}
