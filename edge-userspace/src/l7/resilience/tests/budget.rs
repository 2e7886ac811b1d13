//! The bound of the retry budget, over any schedule.

use std::sync::atomic::{AtomicU32, Ordering::SeqCst};

use super::*;

/// In no time there are more retries than the share of its requests, of those of 20 seconds
/// before, and the floor.
#[test]
fn no_schedule_exceeds_it() {
    for seed in 0..200 {
        let mut chance = Chance(seed);
        let share = [0.0, 0.05, 0.2, 1.0][chance.below(4) as usize];
        let budget = RetryBudget::new(share);
        let mut now = chance.below(1 << 50);
        // Requests before each retry that was granted, with their times.
        let (mut requests, mut retries) = (Vec::new(), Vec::new());
        let pace = [SECOND / 1000, SECOND / 20, SECOND, 30 * SECOND][chance.below(4) as usize];
        for step in 0..2000 {
            // Now and then there is silence.
            now += chance.below(pace)
                + if chance.below(300) == 0 {
                    40 * SECOND
                } else {
                    0
                };
            // Times without failures, and such in which all is retried.
            if step % 400 < 200 || chance.below(2) == 0 {
                let count = 1 + chance.below(3) as u32;
                budget.deposit(count, now);
                requests.extend(std::iter::repeat_n(now, count as usize));
            } else if budget.withdraw(now) {
                retries.push(now);
            }
        }
        for (at, &start) in retries.iter().enumerate().step_by(7) {
            for (count, &end) in retries[at..].iter().enumerate().step_by(5) {
                let within = requests.partition_point(|&time| time <= end)
                    - requests.partition_point(|&time| time + 20 * SECOND < start);
                let floor = 3.0 + (end - start) as f64 / SECOND as f64;
                assert!(
                    (count + 1) as f64 <= share * within as f64 + floor + 1e-6,
                    "seed {seed}: {} retries of {within} requests",
                    count + 1
                );
            }
        }
    }
}

#[test]
fn what_requests_bring_is_there_and_expires() {
    let budget = RetryBudget::new(0.2);
    let granted = |now| (0..1000).filter(|_| budget.withdraw(now)).count();
    assert_eq!(granted(SECOND), 3);
    assert_eq!(granted(3 * SECOND), 2);
    for _ in 0..500 {
        budget.deposit(1, 9 * SECOND);
    }
    assert_eq!(granted(9 * SECOND), 103);
    budget.deposit(500, 9 * SECOND);
    budget.deposit(500, 19 * SECOND);
    assert_eq!(granted(19 * SECOND), 203);
    budget.deposit(500, 19 * SECOND);
    assert_eq!(granted(30 * SECOND), 3);
    // Nothing is kept for longer because other requests come.
    budget.deposit(500, 51 * SECOND);
    budget.deposit(5, 61 * SECOND);
    assert_eq!(granted(71 * SECOND), 4);
    // A worker whose time was read a little earlier takes nothing away.
    budget.deposit(500, 90 * SECOND);
    budget.deposit(5, 89 * SECOND);
    assert_eq!(granted(90 * SECOND), 104);
}

#[test]
fn many_threads_take_nothing_twice() {
    let budget = RetryBudget::new(0.2);
    let (requests, retries) = (AtomicU32::new(0), AtomicU32::new(0));
    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| {
                for _ in 0..5000 {
                    budget.deposit(1, SECOND);
                    requests.fetch_add(1, SeqCst);
                    if budget.withdraw(SECOND) {
                        retries.fetch_add(1, SeqCst);
                    }
                }
            });
        }
    });
    while budget.withdraw(SECOND) {
        retries.fetch_add(1, SeqCst);
    }
    assert_eq!(retries.into_inner(), requests.into_inner() / 5 + 3);
}
