//! The wall clock, which may be wrong at boot and be set at any time.
//!
//! The tables count by the monotonic clock; the store keeps Unix time, which a
//! machine without a battery, or one that has not reached its time server yet,
//! gets wrong. So nothing is removed from the store because of what the clock
//! says at a start, and when the clock is set, expiries are worked out anew.

use std::ops::RangeInclusive;

use crate::clock::Now;

/// How long the clock has to go on without being set until what it says is
/// reason enough to remove entries from the store, nanoseconds: ten minutes,
/// in which a time server is reached if there is one.
const STEADY_NS: u64 = 600 * 1_000_000_000;

/// The least step that counts as setting the clock, milliseconds. Corrections
/// by slewing stay far below it, and so does the time between two readings.
const STEP_MS: u64 = 2000;

/// What the wall clock has done since a moment.
#[derive(Clone, Copy, Debug)]
pub(super) struct WallClock {
    /// The last reading.
    last: Now,
    /// `CLOCK_MONOTONIC` when it was last set, or first looked at.
    steady_since_ns: u64,
    /// When it was first looked at, as it should have shown by what is known now.
    first_unix_ms: u64,
}

/// The clock was set.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Step {
    /// By so many milliseconds.
    pub(super) by_ms: i64,
    /// What it had shown while this process looked at it, up to then.
    pub(super) shown: RangeInclusive<u64>,
}

impl Step {
    /// A time that was read before the step, as it should have been; at the
    /// least 1, since 0 has a meaning of its own in the store.
    pub(super) fn corrected(&self, unix_ms: u64) -> u64 {
        unix_ms.saturating_add_signed(self.by_ms).max(1)
    }
}

impl WallClock {
    pub(super) const fn new(now: Now) -> Self {
        Self {
            last: now,
            steady_since_ns: now.mono_ns,
            first_unix_ms: now.unix_ms,
        }
    }

    /// Looks at it; tells when it was set since the last look.
    pub(super) fn look(&mut self, now: Now) -> Option<Step> {
        let passed_ms = now.mono_ns.saturating_sub(self.last.mono_ns) / 1_000_000;
        let expected = self.last.unix_ms.saturating_add(passed_ms);
        self.last = now;
        if now.unix_ms.abs_diff(expected) < STEP_MS {
            return None;
        }
        let step = Step {
            by_ms: now
                .unix_ms
                .cast_signed()
                .wrapping_sub(expected.cast_signed()),
            shown: self.first_unix_ms..=expected,
        };
        self.first_unix_ms = step.corrected(self.first_unix_ms);
        self.steady_since_ns = now.mono_ns;
        Some(step)
    }

    /// This clock, from before a look whose step could not be dealt with: the
    /// next look tells of it again.
    pub(super) const fn not_seen(self, now: Now) -> Self {
        Self {
            steady_since_ns: now.mono_ns,
            ..self
        }
    }

    /// Whether it has not been set for a while.
    pub(super) const fn is_steady(&self, now: Now) -> bool {
        now.mono_ns.saturating_sub(self.steady_since_ns) >= STEADY_NS
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(mono_s: u64, unix_s: u64) -> Now {
        Now {
            mono_ns: mono_s * 1_000_000_000,
            unix_ms: unix_s * 1000,
        }
    }

    #[test]
    fn a_step_that_was_not_dealt_with_is_told_again() {
        let mut clock = WallClock::new(at(10, 1000));
        let before = clock;
        let step = clock.look(at(700, 9000)).unwrap();
        clock = before.not_seen(at(700, 9000));
        assert!(!clock.is_steady(at(701, 9001)));
        let again = clock.look(at(701, 9001)).unwrap();
        assert_eq!(again.by_ms, step.by_ms);
        assert_eq!(again.shown, 1_000_000..=1_691_000);
        assert_eq!(clock.look(at(702, 9002)), None);
    }

    #[test]
    fn steps_are_told_from_time_that_passes() {
        let mut clock = WallClock::new(at(10, 1000));
        assert_eq!(clock.look(at(500, 1490)), None);
        assert_eq!(clock.look(at(501, 1492)), None, "a second is no step");
        assert!(!clock.is_steady(at(609, 1600)) && clock.is_steady(at(610, 1601)));
        let step = clock.look(at(511, 9502)).unwrap();
        assert_eq!(step.by_ms, 8_000_000);
        assert_eq!(step.shown, 1_000_000..=1_502_000);
        assert_eq!(step.corrected(1_100_000), 9_100_000);
        assert!(!clock.is_steady(at(1110, 10_101)) && clock.is_steady(at(1111, 10_102)));
        // And back, by more than there is.
        let step = clock.look(at(512, 0)).unwrap();
        assert_eq!(step.by_ms, -9_503_000);
        assert_eq!(step.shown, 9_000_000..=9_503_000);
        assert_eq!(step.corrected(9_000_000), 1);
    }
}
