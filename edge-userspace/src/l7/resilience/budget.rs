//! The retry budget: retries are a share of the requests, so that a group that fails gets
//! little more load than before.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use edge_common::gcra::{Limit, ticks};

/// How long what requests bring is kept at least, nanoseconds; twice as long at the most.
const SPAN: u64 = 10_000_000_000;
/// A request brings its share in this many parts of a retry.
const PARTS: u64 = 100;
/// Bits of the parts that a span has: at most 167,772 retries.
const PARTS_BITS: u32 = 24;
const MOST: u64 = (1 << PARTS_BITS) - 1;
/// Of the span's number, which comes back after 7½ days: only where there was no request at
/// all for just as long, what was left then would be used.
const SPAN_MASK: u64 = (1 << (64 - 2 * PARTS_BITS)) - 1;

/// Where there are few requests, so many retries are allowed all the same: one each second,
/// three of them at once.
const FLOOR: (u64, u64) = (1, 3);

/// A share of the requests of the last 10 to 20 seconds, to be used for retries, and a small
/// floor.
///
/// In any time there are at most as many retries as the share of the requests in it and in
/// the 20 seconds before, and three, and one for each second: what is brought and what is
/// taken changes one word by compare-and-swap, so that nothing is taken twice.
#[derive(Debug)]
pub struct RetryBudget {
    /// Parts that a request brings.
    share: u64,
    /// What this span and the one before brought and was not taken.
    word: AtomicU64,
    floor: Limit,
    /// The theoretical arrival time of `floor`.
    arrival: AtomicU64,
}

/// The word, in parts.
#[derive(Clone, Copy)]
struct Account {
    span: u64,
    current: u64,
    previous: u64,
}

impl RetryBudget {
    /// A budget of a share (0 to 1) of the requests, in hundredths, rounded.
    pub fn new(share: f64) -> Self {
        let (rate, burst) = FLOOR;
        Self {
            share: (share.clamp(0.0, 1.0) * PARTS as f64).round() as u64,
            word: AtomicU64::new(0),
            floor: Limit::per_second(rate, burst).unwrap_or_default(),
            arrival: AtomicU64::new(0),
        }
    }

    /// Counts new requests (not retries). A worker that counts some of them by itself first
    /// writes less memory that others read.
    pub fn deposit(&self, requests: u32, now: u64) {
        let brought = self.share.saturating_mul(u64::from(requests));
        self.change(now, |account| {
            Some(Account {
                current: account.current.saturating_add(brought).min(MOST),
                ..account
            })
        });
    }

    /// Takes a retry from it; whether there was one.
    #[must_use]
    pub fn withdraw(&self, now: u64) -> bool {
        let taken = self.change(now, |account| {
            let left = (account.current + account.previous).checked_sub(PARTS)?;
            let current = account.current.min(left);
            Some(Account {
                current,
                previous: left - current,
                ..account
            })
        });
        taken || self.withdraw_floor(now)
    }

    fn withdraw_floor(&self, now: u64) -> bool {
        self.arrival
            .fetch_update(Relaxed, Relaxed, |arrival| {
                self.floor.admit(arrival, ticks(now), 1)
            })
            .is_ok()
    }

    fn change(&self, now: u64, change: impl Fn(Account) -> Option<Account>) -> bool {
        self.word
            .fetch_update(Relaxed, Relaxed, |word| {
                change(Account::of(word).at(now)).map(Account::word)
            })
            .is_ok()
    }
}

impl Account {
    const fn of(word: u64) -> Self {
        Self {
            span: word >> (2 * PARTS_BITS),
            current: word & MOST,
            previous: word >> PARTS_BITS & MOST,
        }
    }

    const fn word(self) -> u64 {
        self.span << (2 * PARTS_BITS) | self.previous << PARTS_BITS | self.current
    }

    /// At this time, as far as time goes on: a worker may be late with its reading.
    const fn at(self, now: u64) -> Self {
        let span = (now / SPAN) & SPAN_MASK;
        match span.wrapping_sub(self.span) & SPAN_MASK {
            0 => self,
            1 => Self {
                span,
                current: 0,
                previous: self.current,
            },
            SPAN_MASK => self,
            _ => Self {
                span,
                current: 0,
                previous: 0,
            },
        }
    }
}
