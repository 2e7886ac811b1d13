//! The two clocks of the daemon, read at the rim and handed down.
//!
//! The kernel's tables hold times of `CLOCK_MONOTONIC`, which starts anew with
//! each boot; the store holds Unix time, which survives it. A [`Now`] is one
//! reading of both, and translates an expiry from the latter to the former.

use std::time::{SystemTime, UNIX_EPOCH};

use edge_common::table::{FOREVER, STAMP_SHIFT, Stamp, stamp};

/// One moment on both clocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Now {
    /// `CLOCK_MONOTONIC`, nanoseconds.
    pub mono_ns: u64,
    /// Unix time, milliseconds.
    pub unix_ms: u64,
}

impl Now {
    /// Reads both clocks.
    pub fn read() -> Self {
        let mut ts = libc::timespec {
            tv_sec: 0,
            tv_nsec: 0,
        };
        // SAFETY: `ts` is a valid, writable timespec; the call writes nothing else.
        // It cannot fail: Linux always has CLOCK_MONOTONIC.
        unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &raw mut ts) };
        let seconds = u64::try_from(ts.tv_sec).unwrap_or(0);
        let nanos = u64::try_from(ts.tv_nsec).unwrap_or(0);
        let unix = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .unwrap_or_default();
        Self {
            mono_ns: seconds.saturating_mul(1_000_000_000).saturating_add(nanos),
            unix_ms: u64::try_from(unix.as_millis()).unwrap_or(u64::MAX),
        }
    }

    /// The Unix time in milliseconds of an earlier moment of `CLOCK_MONOTONIC`,
    /// nanoseconds.
    pub const fn unix_ms_of(self, mono_ns: u64) -> u64 {
        let age_ms = self.mono_ns.saturating_sub(mono_ns) / 1_000_000;
        self.unix_ms.saturating_sub(age_ms)
    }

    /// The stamp of this moment: an entry is in force while its stamp is larger.
    pub const fn stamp(self) -> Stamp {
        stamp(self.mono_ns)
    }

    /// The stamp of an expiry in Unix milliseconds, `None` for no expiry.
    ///
    /// Rounded up by less than two steps (268 ms), so that an entry never ends
    /// early; 0 ("not listed") when it lies in the past; times beyond the range
    /// of stamps (18 years of uptime) end there.
    pub const fn expiry_stamp(self, expires_unix_ms: Option<u64>) -> Stamp {
        let Some(expires) = expires_unix_ms else {
            return FOREVER;
        };
        if expires <= self.unix_ms {
            return 0;
        }
        let left_ns = (expires - self.unix_ms).saturating_mul(1_000_000);
        let steps = (self.mono_ns.saturating_add(left_ns) >> STAMP_SHIFT).saturating_add(1);
        if steps >= FOREVER as u64 {
            FOREVER - 1
        } else {
            steps as Stamp
        }
    }
}

/// Resolution of `CLOCK_MONOTONIC_COARSE`, nanoseconds: the step in which the
/// packet path sees time pass.
pub fn coarse_tick_ns() -> u64 {
    let mut ts = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    // SAFETY: `ts` is a valid, writable timespec; the call writes nothing else.
    // It cannot fail: Linux always has this clock.
    unsafe { libc::clock_getres(libc::CLOCK_MONOTONIC_COARSE, &raw mut ts) };
    let seconds = u64::try_from(ts.tv_sec).unwrap_or(0);
    let nanos = u64::try_from(ts.tv_nsec).unwrap_or(0);
    seconds.saturating_mul(1_000_000_000).saturating_add(nanos)
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Now = Now {
        mono_ns: 5_000_000_000,
        unix_ms: 1_700_000_000_000,
    };

    #[test]
    fn both_clocks_run() {
        let (a, b) = (Now::read(), Now::read());
        assert!(b.mono_ns >= a.mono_ns && a.mono_ns > 0);
        assert!(a.unix_ms > 1_600_000_000_000);
    }

    #[test]
    fn the_tick_is_that_of_a_timer_interrupt() {
        // CONFIG_HZ is 100 to 1000.
        assert!((1_000_000..=10_000_000).contains(&coarse_tick_ns()));
    }

    #[test]
    fn an_entry_never_ends_early_and_hardly_late() {
        for ttl in [1, 100, 134, 135, 1_000, 86_400_000] {
            let s = NOW.expiry_stamp(Some(NOW.unix_ms + ttl));
            let last = NOW.mono_ns + ttl * 1_000_000 - 1;
            assert!(s > stamp(last), "ttl {ttl}");
            assert!(s <= stamp(last + (2 << STAMP_SHIFT)), "ttl {ttl}");
        }
    }

    #[test]
    fn past_and_endless_have_their_own_stamps() {
        assert_eq!(NOW.expiry_stamp(None), FOREVER);
        assert_eq!(NOW.expiry_stamp(Some(NOW.unix_ms)), 0);
        assert_eq!(NOW.expiry_stamp(Some(0)), 0);
        assert_eq!(NOW.expiry_stamp(Some(u64::MAX)), FOREVER - 1);
    }
}
