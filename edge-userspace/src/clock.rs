//! The clocks of the daemon, read at the rim and handed down.
//!
//! The kernel's tables hold times of `CLOCK_MONOTONIC`, which starts anew with
//! each boot and stands still while the machine is suspended, as do the ticks
//! that the packet path counts; the store holds Unix time, which survives a
//! boot. A [`Now`] is one reading of both, and translates an expiry from the
//! latter to the former. `CLOCK_BOOTTIME`, which goes on while the machine is
//! suspended and which nobody sets, tells time that passed from time that was
//! set, and a suspend from neither.

use std::time::{SystemTime, UNIX_EPOCH};

use edge_common::table::{FOREVER, STAMP_SHIFT, Stamp, stamp};

/// One moment on all clocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Now {
    /// `CLOCK_MONOTONIC`, nanoseconds.
    pub mono_ns: u64,
    /// `CLOCK_BOOTTIME`, nanoseconds: the former and the time that the machine
    /// was suspended.
    pub boot_ns: u64,
    /// Unix time, milliseconds.
    pub unix_ms: u64,
}

/// The least change of [`Now::offset_ms`] that counts as setting the clock,
/// milliseconds. Corrections by slewing move both of its clocks.
pub const STEP_MS: u64 = 2000;

/// The most that may pass between the first and the last clock of a reading,
/// nanoseconds; otherwise they are read again.
const TOGETHER_NS: u64 = 50_000_000;

impl Now {
    /// Reads all clocks.
    pub fn read() -> Self {
        let mut now = Self::read_once();
        for _ in 0..3 {
            let next = Self::read_once();
            let took = next.boot_ns.saturating_sub(now.boot_ns);
            now = next;
            if took < TOGETHER_NS {
                break;
            }
        }
        now
    }

    fn read_once() -> Self {
        let mono_ns = nanoseconds(libc::CLOCK_MONOTONIC);
        let unix = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .unwrap_or_default();
        Self {
            mono_ns,
            boot_ns: nanoseconds(libc::CLOCK_BOOTTIME),
            unix_ms: u64::try_from(unix.as_millis()).unwrap_or(u64::MAX),
        }
    }

    /// Unix time less `CLOCK_BOOTTIME`, milliseconds: stays the same until
    /// somebody sets the clock.
    pub const fn offset_ms(self) -> i64 {
        let boot_ms = self.boot_ns / 1_000_000;
        self.unix_ms
            .cast_signed()
            .wrapping_sub(boot_ms.cast_signed())
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

/// `CLOCK_MONOTONIC`, nanoseconds: for those who need no other clock, often.
pub fn monotonic_ns() -> u64 {
    nanoseconds(libc::CLOCK_MONOTONIC)
}

/// What a clock that every Linux has shows, nanoseconds.
fn nanoseconds(clock: libc::clockid_t) -> u64 {
    let mut ts = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    // SAFETY: `ts` is a valid, writable timespec; the call writes nothing else.
    // It fails only for a clock that there is not.
    unsafe { libc::clock_gettime(clock, &raw mut ts) };
    let seconds = u64::try_from(ts.tv_sec).unwrap_or(0);
    let nanos = u64::try_from(ts.tv_nsec).unwrap_or(0);
    seconds.saturating_mul(1_000_000_000).saturating_add(nanos)
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
        boot_ns: 9_000_000_000,
        unix_ms: 1_700_000_000_000,
    };

    #[test]
    fn all_clocks_run() {
        let (a, b) = (Now::read(), Now::read());
        assert!(b.mono_ns >= a.mono_ns && a.mono_ns > 0);
        assert!(b.boot_ns >= a.boot_ns && a.boot_ns >= a.mono_ns);
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
