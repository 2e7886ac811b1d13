//! The bulkhead, alone and with many threads.

use std::{
    sync::{
        Arc, Condvar, Mutex,
        atomic::{AtomicU32, Ordering::SeqCst},
    },
    time::Duration,
};

use super::*;

#[test]
fn places_are_given_in_turn() {
    let woken = Arc::new(AtomicU32::new(0));
    let count = woken.clone();
    let bulkhead = Bulkhead::new(2, 2, move || {
        count.fetch_add(1, SeqCst);
    });
    let Entry::Admitted(first) = bulkhead.enter() else {
        panic!("{bulkhead:?}");
    };
    let Entry::Admitted(second) = bulkhead.enter() else {
        panic!("{bulkhead:?}");
    };
    let Entry::Queued(third) = bulkhead.enter() else {
        panic!("{bulkhead:?}");
    };
    let Entry::Queued(fourth) = bulkhead.enter() else {
        panic!("{bulkhead:?}");
    };
    assert!(matches!(bulkhead.enter(), Entry::Full));
    let third = third.admit().unwrap_err();
    assert_eq!((woken.load(SeqCst), bulkhead.waiting()), (0, 2));
    drop(first);
    assert_eq!(woken.load(SeqCst), 1);
    // The place is of one who waits, not of a newcomer.
    assert!(matches!(bulkhead.enter(), Entry::Full));
    let third = third.admit().unwrap();
    assert_eq!((bulkhead.active(), bulkhead.waiting()), (2, 1));
    // Who was woken and gives up tells the next one; here there is none.
    drop((second, fourth));
    assert_eq!((bulkhead.active(), bulkhead.waiting()), (1, 0));
    assert!(matches!(bulkhead.enter(), Entry::Admitted(_)));
    drop(third);
    assert_eq!((bulkhead.active(), bulkhead.waiting()), (0, 0));
}

#[test]
fn another_size_counts_those_who_are_there() {
    let woken = Arc::new(AtomicU32::new(0));
    let count = woken.clone();
    let bulkhead = Bulkhead::new(2, 1, move || {
        count.fetch_add(1, SeqCst);
    });
    let (first, second) = (bulkhead.enter(), bulkhead.enter());
    let Entry::Queued(third) = bulkhead.enter() else {
        panic!("{bulkhead:?}");
    };
    // Less room: who has a place keeps it, and nobody else gets one until they are fewer.
    bulkhead.resize(1, 0);
    assert!(matches!(bulkhead.enter(), Entry::Full));
    drop(first);
    assert_eq!(woken.load(SeqCst), 0);
    let third = third.admit().unwrap_err();
    // More room: one who waits is told, and newcomers do not go before.
    bulkhead.resize(2, 1);
    assert_eq!(woken.load(SeqCst), 1);
    assert!(matches!(bulkhead.enter(), Entry::Full));
    let third = third.admit().unwrap();
    assert_eq!((bulkhead.active(), bulkhead.waiting()), (2, 0));
    drop((second, third));
    assert_eq!((bulkhead.active(), bulkhead.waiting()), (0, 0));
}

#[test]
fn one_who_gives_up_leaves_the_place_to_the_next() {
    let woken = Arc::new(AtomicU32::new(0));
    let count = woken.clone();
    let bulkhead = Bulkhead::new(1, 2, move || {
        count.fetch_add(1, SeqCst);
    });
    let (first, second, third) = (bulkhead.enter(), bulkhead.enter(), bulkhead.enter());
    drop(first);
    assert_eq!(woken.load(SeqCst), 1);
    drop(second);
    assert_eq!(woken.load(SeqCst), 2);
    let Entry::Queued(ticket) = third else {
        panic!("{third:?}");
    };
    assert!(ticket.admit().is_ok());
}

/// Two calls before anybody listens are remembered as one.
#[test]
fn one_who_is_admitted_tells_the_next_if_there_is_another_place() {
    let woken = Arc::new(AtomicU32::new(0));
    let count = woken.clone();
    let bulkhead = Bulkhead::new(2, 2, move || {
        count.fetch_add(1, SeqCst);
    });
    let [first, second, third, fourth] = [0; 4].map(|_| bulkhead.enter());
    drop((first, second));
    assert_eq!(woken.swap(0, SeqCst), 2);
    let (Entry::Queued(third), Entry::Queued(fourth)) = (third, fourth) else {
        panic!("{bulkhead:?}");
    };
    let third = third.admit().unwrap();
    assert_eq!(woken.swap(0, SeqCst), 1);
    let fourth = fourth.admit().unwrap();
    assert_eq!(woken.load(SeqCst), 0);
    drop((third, fourth));
}

/// As `tokio::sync::Notify` does it: one call is remembered.
#[derive(Default)]
struct Notify(Mutex<bool>, Condvar);

impl Notify {
    fn notify_one(&self) {
        *self.0.lock().unwrap() = true;
        self.1.notify_one();
    }

    /// Whether there was a call, before a deadline that only a lost one misses.
    fn wait(&self) -> bool {
        let (mut called, timeout) = self
            .1
            .wait_timeout_while(self.0.lock().unwrap(), Duration::from_secs(60), |called| {
                !*called
            })
            .unwrap();
        *called = false;
        !timeout.timed_out()
    }
}

#[test]
fn many_threads_never_exceed_the_limit_and_all_get_in() {
    let (limit, queue) = (3, 6);
    let notify = Arc::new(Notify::default());
    let wake = notify.clone();
    let bulkhead = Bulkhead::new(limit, queue, move || wake.notify_one());
    let (active, most, admitted, full) = (
        AtomicU32::new(0),
        AtomicU32::new(0),
        AtomicU32::new(0),
        AtomicU32::new(0),
    );
    let work = |permit: Permit<'_>| {
        most.fetch_max(active.fetch_add(1, SeqCst) + 1, SeqCst);
        admitted.fetch_add(1, SeqCst);
        std::thread::yield_now();
        active.fetch_sub(1, SeqCst);
        drop(permit);
    };
    std::thread::scope(|scope| {
        for thread in 0..8 {
            let (bulkhead, notify, work, full) = (&bulkhead, &notify, &work, &full);
            scope.spawn(move || {
                let mut chance = Chance(thread);
                for _ in 0..3000 {
                    match bulkhead.enter() {
                        Entry::Admitted(permit) => work(permit),
                        Entry::Full => {
                            full.fetch_add(1, SeqCst);
                        }
                        Entry::Queued(mut ticket) => loop {
                            assert!(bulkhead.waiting() <= queue);
                            assert!(notify.wait(), "a place is free and nobody was told");
                            // Its time was over at this very moment.
                            if chance.below(8) == 0 {
                                break;
                            }
                            match ticket.admit() {
                                Ok(permit) => break work(permit),
                                Err(again) => ticket = again,
                            }
                        },
                    }
                }
            });
        }
    });
    assert!(most.into_inner() <= limit && admitted.into_inner() > 1000);
    assert_eq!((bulkhead.active(), bulkhead.waiting()), (0, 0));
}
