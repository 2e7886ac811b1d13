//! The breaker against a naive one, and with many threads.

use std::{
    collections::VecDeque,
    sync::atomic::{AtomicU32, Ordering::SeqCst},
};

use super::*;

/// A breaker as it is described, for one thread.
struct Naive {
    settings: BreakerSettings,
    state: NaiveState,
    /// Requests of another era are strangers.
    era: u32,
}

enum NaiveState {
    Closed(VecDeque<bool>),
    Open(u64),
    HalfOpen { probing: u32, succeeded: u32 },
}

impl Naive {
    /// Whether it is admitted; then its era and whether it is a probe.
    fn admit(&mut self, now: u64) -> Option<(u32, bool)> {
        if let NaiveState::Open(until) = self.state
            && now >= until
        {
            self.state = NaiveState::HalfOpen {
                probing: 0,
                succeeded: 0,
            };
        }
        match &mut self.state {
            NaiveState::Closed(_) => Some((self.era, false)),
            NaiveState::Open(_) => None,
            NaiveState::HalfOpen { probing, succeeded } => {
                if *probing + *succeeded == self.settings.probes {
                    return None;
                }
                *probing += 1;
                Some((self.era, true))
            }
        }
    }

    fn finish(&mut self, (era, is_probe): (u32, bool), result: Option<bool>, now: u64) {
        if era != self.era {
            return;
        }
        let mut opens = false;
        match (&mut self.state, result) {
            (NaiveState::Closed(results), Some(good)) if !is_probe => {
                results.push_back(good);
                if results.len() > self.settings.window as usize {
                    results.pop_front();
                }
                let failures = results.iter().filter(|good| !**good).count();
                opens = !good
                    && results.len() == self.settings.window as usize
                    && failures as f64 >= self.settings.failure_rate * results.len() as f64;
            }
            (NaiveState::HalfOpen { probing, succeeded }, result) if is_probe => {
                *probing -= 1;
                match result {
                    None => {}
                    Some(false) => opens = true,
                    Some(true) => {
                        *succeeded += 1;
                        if *succeeded == self.settings.probes {
                            self.state = NaiveState::Closed(VecDeque::new());
                        }
                    }
                }
            }
            _ => {}
        }
        if opens {
            self.era += 1;
            self.state = NaiveState::Open(now + self.settings.open);
        }
    }

    fn state(&self, now: u64) -> BreakerState {
        match &self.state {
            NaiveState::Open(until) if *until <= now => BreakerState::HalfOpen {
                probing: 0,
                succeeded: 0,
            },
            NaiveState::Closed(results) => BreakerState::Closed {
                failures: results.iter().filter(|good| !**good).count() as u32,
                results: results.len() as u32,
            },
            NaiveState::Open(until) => BreakerState::Open { until: *until },
            NaiveState::HalfOpen { probing, succeeded } => BreakerState::HalfOpen {
                probing: *probing,
                succeeded: *succeeded,
            },
        }
    }
}

#[test]
fn it_is_the_naive_one() {
    let mut opened = 0;
    let mut closed_again = 0;
    for seed in 0..300 {
        let mut chance = Chance(seed);
        let settings = BreakerSettings {
            failure_rate: [0.1, 0.25, 0.5, 0.7, 1.0][chance.below(5) as usize],
            window: [1, 3, 10, 20, MAX_WINDOW][chance.below(5) as usize],
            open: 5 * SECOND,
            probes: 1 + chance.below(4) as u32,
        };
        let breaker = CircuitBreaker::new(&settings);
        let mut naive = Naive {
            settings,
            state: NaiveState::Closed(VecDeque::new()),
            era: 0,
        };
        let mut under_way = Vec::new();
        let mut now = SECOND;
        // Times in which nearly all, some, or none fail.
        let mut bad = 0;
        for step in 0..3000 {
            if step % 200 == 0 {
                bad = [0, 3, 9][chance.below(3) as usize];
            }
            now += chance.below(200) * 1_000_000;
            if chance.below(2) == 0 || under_way.is_empty() {
                let admitted = breaker.admit(now);
                let expected = naive.admit(now);
                match &admitted {
                    Ok(admission) => {
                        assert_eq!(expected.map(|(_, probe)| probe), Some(admission.is_probe()));
                    }
                    Err(open) => {
                        assert_eq!(expected, None);
                        let until = match naive.state(now) {
                            BreakerState::Open { until } => until,
                            _ => now,
                        };
                        assert_eq!(open.left, until - now);
                    }
                }
                under_way.extend(admitted.ok().zip(expected));
            } else {
                let at = chance.below(under_way.len() as u64) as usize;
                let (admission, expected) = under_way.swap_remove(at);
                let result = match chance.below(10) {
                    0 => None,
                    n => Some(n > bad),
                };
                let before = naive.state(now);
                naive.finish(expected, result, now);
                match result {
                    None => drop(admission),
                    Some(true) => admission.succeeded(),
                    Some(false) => admission.failed(now),
                }
                match (before, naive.state(now)) {
                    (BreakerState::HalfOpen { .. }, BreakerState::Closed { .. }) => {
                        closed_again += 1;
                    }
                    (BreakerState::Open { .. }, _) => {}
                    (_, BreakerState::Open { .. }) => opened += 1,
                    _ => {}
                }
            }
            assert_eq!(
                breaker.state(now),
                naive.state(now),
                "seed {seed}, step {step}"
            );
        }
    }
    assert!(
        opened > 1000 && closed_again > 300,
        "{opened} {closed_again}"
    );
}

/// Whatever the workers do at one moment, no probe too much is under way, and none is lost.
#[test]
fn many_threads_get_no_probe_too_much() {
    let probes = 3;
    let breaker = CircuitBreaker::new(&BreakerSettings {
        window: 1,
        open: 1000,
        probes,
        ..BreakerSettings::default()
    });
    breaker.admit(0).unwrap().failed(0);
    let (probing, most, admitted) = (AtomicU32::new(0), AtomicU32::new(0), AtomicU32::new(0));
    std::thread::scope(|scope| {
        for thread in 0..8 {
            let (breaker, probing, most, admitted) = (&breaker, &probing, &most, &admitted);
            scope.spawn(move || {
                for round in 0..20_000 {
                    if let Ok(admission) = breaker.admit(1_000_000) {
                        most.fetch_max(probing.fetch_add(1, SeqCst) + 1, SeqCst);
                        admitted.fetch_add(1, SeqCst);
                        if (round + thread) % 64 == 0 {
                            std::thread::yield_now();
                        }
                        probing.fetch_sub(1, SeqCst);
                        drop(admission);
                    }
                }
            });
        }
    });
    assert!(most.into_inner() <= probes && admitted.into_inner() > 20_000);
    let state = BreakerState::HalfOpen {
        probing: 0,
        succeeded: 0,
    };
    assert_eq!(breaker.state(1_000_000), state);
}

/// Of results that come in at once, none is lost.
#[test]
fn many_threads_results_all_count() {
    let breaker = CircuitBreaker::new(&BreakerSettings {
        window: MAX_WINDOW,
        failure_rate: 1.0,
        ..BreakerSettings::default()
    });
    std::thread::scope(|scope| {
        for thread in 0..7 {
            let breaker = &breaker;
            scope.spawn(move || {
                for _ in 0..7 {
                    let admission = breaker.admit(0).unwrap();
                    if thread < 3 {
                        admission.failed(0);
                    } else {
                        admission.succeeded();
                    }
                }
            });
        }
    });
    let state = BreakerState::Closed {
        failures: 21,
        results: 49,
    };
    assert_eq!(breaker.state(1_000_000), state);
}
