//! Which tries may be repeated, and when.

use super::budget::RetryBudget;

/// How a try failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Failure {
    /// Before anything of the request was sent: there was no connection.
    Connect,
    /// The server said that it has not begun with it (RFC 9113, section 8.7: REFUSED_STREAM,
    /// or a GOAWAY with a lower stream).
    Unprocessed,
    /// The connection ended, or said what is no HTTP, before the head of an answer.
    Broken,
    /// The head of an answer did not come in time.
    Silent,
    /// An answer with this status.
    Status(u16),
}

/// What a request allows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Replay {
    /// Whether it may be done twice: that does the same as once (RFC 9110, section 9.2.2), or the
    /// configuration gives leave.
    pub may_repeat: bool,
    /// Whether all of its body can be sent again: it has none, or it is kept, or nothing of
    /// it was sent.
    pub body: bool,
}

/// What the configuration says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RetryPolicy {
    /// How often a request is tried at the most, the first time included.
    pub tries: u32,
    /// The longest wait before the second try, nanoseconds; it doubles with each further one.
    pub base: u64,
}

impl Default for RetryPolicy {
    fn default() -> Self {
        Self {
            tries: 3,
            base: 25_000_000,
        }
    }
}

/// Why there is no other try.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NoRetry {
    /// The answer stands.
    #[error("such an answer is not asked for again")]
    Answer,
    /// The server may have begun with it, twice is not the same as once, and there is no leave.
    #[error("the request may have been carried out, and must not be twice")]
    Method,
    /// What was sent of the body is gone.
    #[error("the body of the request cannot be sent again")]
    Body,
    /// It was tried as often as configured.
    #[error("the request was tried as often as configured")]
    Tries,
    /// The next try would come after the end of the request's time.
    #[error("no time is left for another try")]
    Time,
    /// Too many requests are retried.
    #[error("the retry budget is spent")]
    Budget,
}

impl NoRetry {
    /// Its name in metrics and logs.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Answer => "answer",
            Self::Method => "method",
            Self::Body => "body",
            Self::Tries => "tries",
            Self::Time => "time",
            Self::Budget => "budget",
        }
    }
}

impl RetryPolicy {
    /// How long to wait before the next try of a request that was tried `tries` times and
    /// failed so the last time, nanoseconds. `left` is how much of its time the request has
    /// left, if that is bounded. A retry is taken from the budget only when nothing else
    /// forbids it.
    ///
    /// # Errors
    /// Why there is no other try.
    pub fn next(
        &self,
        request: Replay,
        failure: Failure,
        tries: u32,
        random: u64,
        left: Option<u64>,
        (budget, now): (&RetryBudget, u64),
    ) -> Result<u64, NoRetry> {
        let may_be_done = match failure {
            Failure::Connect | Failure::Unprocessed => false,
            Failure::Broken | Failure::Silent | Failure::Status(502..=504) => true,
            Failure::Status(_) => return Err(NoRetry::Answer),
        };
        if may_be_done && !request.may_repeat {
            return Err(NoRetry::Method);
        }
        if !request.body {
            return Err(NoRetry::Body);
        }
        if tries >= self.tries {
            return Err(NoRetry::Tries);
        }
        let wait = self.backoff(tries, random);
        if left.is_some_and(|left| wait >= left) {
            return Err(NoRetry::Time);
        }
        if !budget.withdraw(now) {
            return Err(NoRetry::Budget);
        }
        Ok(wait)
    }

    /// The wait after so many tries: exponential backoff with full jitter (Brooker,
    /// "Exponential backoff and jitter", 2015), from 0 to the base times 1, 2, 4, ...
    pub const fn backoff(&self, tries: u32, random: u64) -> u64 {
        let doublings = tries.saturating_sub(1);
        let longest = if doublings < 32 {
            self.base.saturating_mul(1 << doublings)
        } else {
            self.base.saturating_mul(1 << 32)
        };
        ((random as u128 * (longest as u128 + 1)) >> 64) as u64
    }
}
