//! Who is ejected, for how long, and how many at the most.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering::SeqCst},
};

use super::*;

const SETTINGS: OutlierSettings = OutlierSettings {
    consecutive_errors: 5,
    error_rate: 0.0,
    window: 10,
    latency: 0,
    eject: 30 * SECOND,
    max_ejected: 0.5,
};

const GOOD: Sample = Sample {
    error: false,
    took: 1000,
};

const BAD: Sample = Sample {
    error: true,
    ..GOOD
};

fn outliers(settings: OutlierSettings, servers: usize) -> Outliers {
    let records = (0..servers).map(|_| Arc::new(Record::new()));
    Outliers::new(settings, records.collect())
}

/// Reports errors until one ejects: until when, if within a hundred.
fn fail(outliers: &Outliers, position: usize, now: u64) -> Option<u64> {
    (0..100).find_map(|_| outliers.report(position, BAD, now))
}

#[test]
fn errors_one_after_the_other_eject() {
    let outliers = outliers(SETTINGS, 4);
    for _ in 0..10 {
        for _ in 0..4 {
            assert_eq!(outliers.report(1, BAD, SECOND), None);
        }
        assert_eq!(outliers.report(1, GOOD, SECOND), None);
        assert_eq!(outliers.report(2, BAD, SECOND), None);
        assert_eq!(outliers.report(2, GOOD, SECOND), None);
    }
    for _ in 0..4 {
        assert_eq!(outliers.report(1, BAD, SECOND), None);
    }
    assert_eq!(outliers.report(1, BAD, SECOND), Some(31 * SECOND));
    assert_eq!(outliers.records()[1].ejected_until(), 31 * SECOND);
    // Late results of requests that it still had do not make it longer.
    assert_eq!(fail(&outliers, 1, 2 * SECOND), None);
    assert_eq!(outliers.report(9, BAD, SECOND), None);
}

#[test]
fn a_share_of_errors_or_of_slow_answers_ejects() {
    let settings = OutlierSettings {
        consecutive_errors: 0,
        error_rate: 0.3,
        latency: SECOND,
        ..SETTINGS
    };
    let slow = Sample {
        error: false,
        took: SECOND + 1,
    };
    for bad in [BAD, slow] {
        let outliers = outliers(settings, 2);
        // Two of ten for long.
        for _ in 0..10 {
            for at in 0..10 {
                let sample = if at % 5 == 0 { bad } else { GOOD };
                assert_eq!(outliers.report(0, sample, SECOND), None);
            }
        }
        assert_eq!(outliers.report(0, bad, SECOND), None);
        assert_eq!(outliers.report(0, bad, SECOND), Some(31 * SECOND));
    }
    let just_in_time = Sample {
        error: false,
        took: SECOND,
    };
    let outliers = outliers(settings, 2);
    assert!((0..50).all(|_| outliers.report(0, just_in_time, SECOND).is_none()));
}

#[test]
fn ejections_get_longer_with_each_and_shorter_with_good_conduct() {
    let outliers = outliers(SETTINGS, 2);
    let mut now = SECOND;
    for length in [30, 60, 120, 240, 480, 960, 960] {
        let until = fail(&outliers, 0, now).unwrap();
        assert_eq!(until, now + length * SECOND);
        now = until;
    }
    // Three times as long as the last one: three doublings less, and one more.
    now += 3 * 960 * SECOND;
    let until = fail(&outliers, 0, now).unwrap();
    assert_eq!(until, now + 240 * SECOND);
    now = until + 10_000 * SECOND;
    assert_eq!(fail(&outliers, 0, now), Some(now + 30 * SECOND));
}

#[test]
fn no_schedule_ejects_more_than_the_share() {
    for seed in 0..200 {
        let mut chance = Chance(seed);
        let servers = chance.below(12) as usize;
        let max_ejected = [0.0, 0.1, 0.34, 0.5, 1.0][chance.below(5) as usize];
        let settings = OutlierSettings {
            max_ejected,
            error_rate: 0.5,
            ..SETTINGS
        };
        let outliers = outliers(settings, servers);
        // One of several may be ejected where the share allows any at all.
        let least = usize::from(max_ejected > 0.0 && servers > 1);
        let most = ((max_ejected * servers as f64) as usize).max(least);
        let mut now = SECOND;
        let mut reached = 0;
        for _ in 0..3000 {
            now += chance.below(SECOND / 10);
            let at = chance.below(servers.max(1) as u64) as usize;
            let sample = Sample {
                error: chance.below(4) > 0,
                ..GOOD
            };
            let ejected = outliers.report(at, sample, now);
            assert!(ejected.is_none_or(|until| until > now));
            let records = outliers.records().iter();
            let out = records
                .filter(|record| record.ejected_until() > now)
                .count();
            assert!(out <= most, "seed {seed}");
            reached = reached.max(out);
        }
        assert_eq!(reached, most);
    }
}

/// Each round, two are to be ejected at the same moment, and only one may be.
#[test]
fn many_threads_eject_no_more_than_the_share() {
    const THREADS: usize = 2;
    const ROUNDS: usize = 3000;
    const SERVERS: usize = 4000;
    let settings = OutlierSettings {
        consecutive_errors: 1,
        max_ejected: 1.0 / SERVERS as f64,
        eject: 1,
        ..SETTINGS
    };
    let outliers = outliers(settings, SERVERS);
    let arrived = AtomicUsize::new(0);
    let ejected: usize = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..THREADS)
            .map(|thread| {
                let (outliers, arrived) = (&outliers, &arrived);
                scope.spawn(move || {
                    let round = |round: usize| {
                        arrived.fetch_add(1, SeqCst);
                        for spins in 0.. {
                            if arrived.load(SeqCst) >= THREADS * (round + 1) {
                                break;
                            }
                            match spins % 1000 {
                                999 => std::thread::yield_now(),
                                _ => std::hint::spin_loop(),
                            }
                        }
                        let now = (round as u64 + 1) * SECOND;
                        outliers.report(thread, BAD, now).is_some()
                    };
                    (0..ROUNDS).filter(|&at| round(at)).count()
                })
            })
            .collect();
        let ejected = threads.into_iter().map(|thread| thread.join().unwrap());
        ejected.sum()
    });
    assert_eq!(ejected, ROUNDS);
}
