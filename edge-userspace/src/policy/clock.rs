//! The wall clock, which may be wrong at boot and be set at any time.
//!
//! The tables count by the monotonic clock; the store keeps Unix time, which a
//! machine without a battery, or one that has not reached its time server yet,
//! gets wrong. So nothing is removed from the store because of what the clock
//! says at a start, and when the clock is set, expiries are worked out anew:
//! what was said since the boot lasts as long as was meant
//! ([`crate::store::Eras`]), and all else as the new time says.
//!
//! What an entry is given is real time: it passes while the machine is
//! suspended as well. The monotonic clock stands still then, and so do the
//! expiries in the tables; with the first look after it they are worked out
//! anew. Until then, a second at the most, what has run out meanwhile is still
//! in force. Nothing was set: no expiry of the store is touched by it.

use crate::clock::{Now, STEP_MS};

/// How long the clock has to go on without being set until what it says is
/// reason enough to remove entries from the store, nanoseconds: ten minutes,
/// in which a time server is reached if there is one.
const STEADY_NS: u64 = 600 * 1_000_000_000;

/// The least time that counts as a suspend, milliseconds.
const SUSPEND_MS: u64 = 2000;

/// What the clocks have done since a moment.
#[derive(Clone, Copy, Debug)]
pub(super) struct WallClock {
    /// [`Now::offset_ms`].
    offset_ms: i64,
    /// How long the machine was suspended since it booted.
    suspended_ms: u64,
    /// `CLOCK_BOOTTIME` when the clock was last set, or first looked at.
    steady_since_ns: u64,
}

/// What happened to the clocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Jump {
    /// The wall clock was set by so many milliseconds; 0 when it was not.
    pub(super) set_by_ms: i64,
    /// The machine was suspended for so many milliseconds; 0 when it was not.
    pub(super) suspended_ms: u64,
}

impl WallClock {
    pub(super) const fn new(now: Now) -> Self {
        Self {
            offset_ms: now.offset_ms(),
            suspended_ms: suspended_ms(now),
            steady_since_ns: now.boot_ns,
        }
    }

    /// Looks at it; tells what happened since the last look.
    pub(super) fn look(&mut self, now: Now) -> Option<Jump> {
        let set_by_ms = now.offset_ms().wrapping_sub(self.offset_ms);
        let slept_ms = suspended_ms(now).saturating_sub(self.suspended_ms);
        let mut jump = Jump {
            set_by_ms: 0,
            suspended_ms: 0,
        };
        if set_by_ms.unsigned_abs() >= STEP_MS {
            jump.set_by_ms = set_by_ms;
            self.offset_ms = now.offset_ms();
            self.steady_since_ns = now.boot_ns;
        }
        if slept_ms >= SUSPEND_MS {
            jump.suspended_ms = slept_ms;
            self.suspended_ms = suspended_ms(now);
        }
        (jump.set_by_ms != 0 || jump.suspended_ms != 0).then_some(jump)
    }

    /// This clock, from before a look whose jump could not be dealt with: the
    /// next look tells of it again.
    pub(super) const fn not_seen(self, now: Now) -> Self {
        Self {
            steady_since_ns: now.boot_ns,
            ..self
        }
    }

    /// Whether it has not been set for a while.
    pub(super) const fn is_steady(&self, now: Now) -> bool {
        now.boot_ns.saturating_sub(self.steady_since_ns) >= STEADY_NS
    }
}

const fn suspended_ms(now: Now) -> u64 {
    now.boot_ns.saturating_sub(now.mono_ns) / 1_000_000
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(boot_s: u64, unix_s: u64) -> Now {
        Now {
            mono_ns: boot_s * 1_000_000_000,
            boot_ns: boot_s * 1_000_000_000,
            unix_ms: unix_s * 1000,
        }
    }

    fn steps(clock: &mut WallClock, now: Now) -> Option<i64> {
        clock.look(now).map(|jump| jump.set_by_ms / 1000)
    }

    #[test]
    fn a_step_that_was_not_dealt_with_is_told_again() {
        let mut clock = WallClock::new(at(10, 1000));
        let before = clock;
        assert_eq!(steps(&mut clock, at(700, 9000)), Some(7310));
        clock = before.not_seen(at(700, 9000));
        assert!(!clock.is_steady(at(701, 9001)));
        assert_eq!(steps(&mut clock, at(701, 9001)), Some(7310));
        assert_eq!(clock.look(at(702, 9002)), None);
    }

    #[test]
    fn steps_are_told_from_time_that_passes() {
        let mut clock = WallClock::new(at(10, 1000));
        assert_eq!(clock.look(at(500, 1490)), None);
        assert_eq!(clock.look(at(501, 1492)), None, "a second is no step");
        assert!(!clock.is_steady(at(609, 1600)) && clock.is_steady(at(610, 1601)));
        assert_eq!(steps(&mut clock, at(511, 9501)), Some(8000));
        assert!(!clock.is_steady(at(1110, 10_101)) && clock.is_steady(at(1111, 10_102)));
        // And back, by more than there is.
        assert_eq!(steps(&mut clock, at(512, 0)), Some(-9502));
    }

    #[test]
    fn a_suspend_is_told_from_a_step() {
        let slept = |now: Now, seconds: u64| Now {
            mono_ns: now.mono_ns - seconds * 1_000_000_000,
            ..now
        };
        let mut clock = WallClock::new(slept(at(1000, 5000), 100));
        assert_eq!(clock.look(slept(at(1001, 5001), 101)), None, "a second");
        let jump = clock.look(slept(at(2001, 6001), 1001)).unwrap();
        assert_eq!((jump.set_by_ms, jump.suspended_ms), (0, 901_000));
        assert!(clock.is_steady(slept(at(2002, 6002), 1001)));
        // Both at once: the clock of the board was wrong.
        let jump = clock.look(slept(at(3001, 9001), 1991)).unwrap();
        assert_eq!((jump.set_by_ms, jump.suspended_ms), (2_000_000, 990_000));
    }
}
