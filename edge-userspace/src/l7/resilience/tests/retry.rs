//! What is retried, and when.

use super::*;

const SAFE: Replay = Replay {
    may_repeat: true,
    body: true,
};

fn next(request: Replay, failure: Failure, tries: u32, left: Option<u64>) -> Result<u64, NoRetry> {
    let budget = RetryBudget::new(0.2);
    RetryPolicy::default().next(request, failure, tries, u64::MAX, left, (&budget, SECOND))
}

#[test]
fn what_may_have_been_done_is_repeated_only_if_twice_is_once() {
    let done = [
        Failure::Broken,
        Failure::Silent,
        Failure::Status(502),
        Failure::Status(503),
        Failure::Status(504),
    ];
    let not_done = [Failure::Connect, Failure::Unprocessed];
    let unsafe_one = Replay {
        may_repeat: false,
        ..SAFE
    };
    let no_body = Replay {
        body: false,
        ..SAFE
    };
    for failure in done {
        assert!(next(SAFE, failure, 1, None).is_ok(), "{failure:?}");
        assert_eq!(next(unsafe_one, failure, 1, None), Err(NoRetry::Method));
        assert_eq!(next(no_body, failure, 1, None), Err(NoRetry::Body));
    }
    for failure in not_done {
        assert!(next(unsafe_one, failure, 1, None).is_ok(), "{failure:?}");
        assert_eq!(next(no_body, failure, 1, None), Err(NoRetry::Body));
    }
    for status in [200, 301, 400, 404, 429, 500, 501, 505] {
        let failure = Failure::Status(status);
        assert_eq!(next(SAFE, failure, 1, None), Err(NoRetry::Answer));
    }
}

#[test]
fn tries_time_and_budget_end() {
    let base = RetryPolicy::default().base;
    assert_eq!(next(SAFE, Failure::Connect, 1, None), Ok(base));
    assert_eq!(next(SAFE, Failure::Connect, 2, None), Ok(2 * base));
    assert_eq!(next(SAFE, Failure::Connect, 3, None), Err(NoRetry::Tries));
    assert_eq!(
        next(SAFE, Failure::Connect, 2, Some(2 * base)),
        Err(NoRetry::Time)
    );
    assert!(next(SAFE, Failure::Connect, 2, Some(2 * base + 1)).is_ok());
    // What is refused for another reason leaves the budget alone.
    let budget = RetryBudget::new(0.0);
    let next = |failure| RetryPolicy::default().next(SAFE, failure, 1, 0, None, (&budget, SECOND));
    for _ in 0..10 {
        assert_eq!(next(Failure::Status(500)), Err(NoRetry::Answer));
    }
    for _ in 0..3 {
        assert_eq!(next(Failure::Connect), Ok(0));
    }
    assert_eq!(next(Failure::Connect), Err(NoRetry::Budget));
}

#[test]
fn the_backoff_doubles_and_its_jitter_is_full() {
    let policy = RetryPolicy {
        tries: 100,
        base: 1000,
    };
    let mut chance = Chance(1);
    for (tries, longest) in [(1, 1000), (2, 2000), (3, 4000), (6, 32_000)] {
        let waits: Vec<u64> = (0..10_000)
            .map(|_| policy.backoff(tries, chance.next()))
            .collect();
        assert!(waits.iter().all(|&wait| wait <= longest));
        let mean = waits.iter().sum::<u64>() / 10_000;
        assert!(mean.abs_diff(longest / 2) < longest / 50, "{mean}");
        assert!(waits.iter().min() < Some(&(longest / 100)));
        assert!(waits.iter().max() > Some(&(longest * 99 / 100)));
    }
    let long = RetryPolicy {
        base: u64::MAX / 2,
        ..policy
    };
    assert_eq!(long.backoff(u32::MAX, u64::MAX), u64::MAX);
    assert_eq!(policy.backoff(0, u64::MAX), 1000);
}
