//! The generic cell rate algorithm (ITU-T I.371), in its virtual scheduling form.
//!
//! The whole state of a limit is one 64-bit word, the theoretical arrival time
//! (TAT), which a compare-and-swap updates: exact on any number of CPUs, no
//! lock. A word that lies in the past equals a fresh one, so that forgetting
//! an idle source loses nothing.

/// Ticks in a nanosecond: 1/16 ns keeps the rounding of a byte at 100 Gbit/s
/// under 1 %, and 64 bits of them last for 36 years of uptime.
pub const TICKS_PER_NS: u64 = 16;

/// Scale of [`Limit::cost`]: 16 fractional bits of a tick a unit.
const COST_SHIFT: u32 = 16;

/// A rate and its burst, ready for the fast path. The default is no limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct Limit {
    /// Ticks that one unit (packet or byte) takes, times 2^16. 0: no limit.
    cost: u64,
    /// How far the TAT may lie ahead of the clock, in ticks.
    tolerance: u64,
}

/// The longest tolerance: 2^62 ticks are 9 years, no sensible limit, and leave
/// headroom for the sum with the clock.
const MAX_TOLERANCE: u64 = 1 << 62;

/// The slowest rate that can be expressed: the cost of a 64 KiB packet must
/// fit 64 bits after scaling.
pub const MIN_BYTES_PER_SECOND: u64 = 4096;

impl Limit {
    /// No limit: admits whatever comes, at no cost.
    pub const NONE: Self = Self {
        cost: 0,
        tolerance: MAX_TOLERANCE,
    };

    /// `rate` units a second, of which `burst` may come at once. `None` when
    /// either is 0, or so large that a unit would cost nothing.
    pub const fn per_second(rate: u64, burst: u64) -> Option<Self> {
        if rate == 0 || burst == 0 {
            return None;
        }
        let ticks_per_second = 1_000_000_000 * TICKS_PER_NS;
        let cost = ((ticks_per_second as u128) << COST_SHIFT) / rate as u128;
        let tolerance = (cost * burst as u128) >> COST_SHIFT;
        if cost == 0 || cost > u64::MAX as u128 || tolerance > MAX_TOLERANCE as u128 {
            return None;
        }
        Some(Self {
            cost: cost as u64,
            tolerance: tolerance as u64,
        })
    }

    /// The two words that it is stored as.
    pub const fn words(&self) -> [u64; 2] {
        [self.cost, self.tolerance]
    }

    /// Whether there is a limit at all.
    #[inline(always)]
    pub const fn is_some(&self) -> bool {
        self.cost != 0
    }

    /// Decides over `units` that arrive at `now` (ticks), given the stored TAT.
    /// `Some(new)` admits them and is the TAT to store; `None` denies, and
    /// nothing must be written.
    #[inline(always)]
    pub const fn admit(&self, tat: u64, now: u64, units: u32) -> Option<u64> {
        let new = self.arrival(tat, now, units);
        if self.exceeds(new, now) {
            None
        } else {
            Some(new)
        }
    }

    /// The TAT after `units` that arrive at `now` (ticks), admitted or not.
    #[inline(always)]
    pub const fn arrival(&self, tat: u64, now: u64, units: u32) -> u64 {
        let base = if tat > now { tat } else { now };
        base.wrapping_add(self.cost.wrapping_mul(units as u64) >> COST_SHIFT)
    }

    /// The TAT after `units` that turned out not to count. What lies in the past
    /// is worth nothing, so that nobody saves up.
    #[inline(always)]
    pub const fn refund(&self, tat: u64, units: u32) -> u64 {
        tat.saturating_sub(self.cost.wrapping_mul(units as u64) >> COST_SHIFT)
    }

    /// The TAT after `back` units that turned out not to count and `ahead` more that arrive at
    /// `now` (ticks).
    #[inline(always)]
    pub const fn renewed(&self, tat: u64, now: u64, back: u32, ahead: u32) -> u64 {
        self.arrival(self.refund(tat, back), now, ahead)
    }

    /// Whether half of what the limit tolerates is free at `now` behind a TAT that is not before
    /// it, and that half is worth two steps of the clock at least; all in ticks.
    #[inline(always)]
    pub const fn is_half_free(&self, tat: u64, now: u64, step: u64) -> bool {
        let half = self.tolerance / 2;
        tat.wrapping_sub(now) <= half && step.wrapping_mul(2) <= half
    }

    /// How far the TAT may lie ahead of the clock, in ticks.
    #[inline(always)]
    pub const fn tolerance(&self) -> u64 {
        self.tolerance
    }

    /// The earliest time (ticks) at which one unit is admitted, given the stored TAT.
    #[inline(always)]
    pub const fn opens_at(&self, tat: u64) -> u64 {
        (tat + (self.cost >> COST_SHIFT)).saturating_sub(self.tolerance)
    }

    /// How far a TAT may still move ahead of `now`, in ticks; the highest bit is set
    /// when it lies further ahead than the limit tolerates: the kernel side asks
    /// several limits in one comparison.
    #[inline(always)]
    pub const fn left(&self, tat: u64, now: u64) -> u64 {
        // Neither reaches 2^63: the tolerance is bounded, and so is what one
        // packet can add to a TAT that was within it.
        self.tolerance.wrapping_sub(tat.wrapping_sub(now))
    }

    /// Whether a TAT lies further ahead of `now` than the limit tolerates.
    #[inline(always)]
    pub const fn exceeds(&self, tat: u64, now: u64) -> bool {
        self.left(tat, now) >> 63 != 0
    }
}

impl Default for Limit {
    fn default() -> Self {
        Self::NONE
    }
}

/// The clock of the limits from nanoseconds.
#[inline(always)]
pub const fn ticks(ns: u64) -> u64 {
    ns.wrapping_mul(TICKS_PER_NS)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: u64 = 1_000_000_000;

    fn admitted(limit: Limit, start: u64, step_ns: u64, n: u32, units: u32) -> u32 {
        let (mut tat, mut ok) = (0, 0);
        for i in 0..u64::from(n) {
            if let Some(t) = limit.admit(tat, ticks(start + i * step_ns), units) {
                tat = t;
                ok += 1;
            }
        }
        ok
    }

    #[test]
    fn burst_then_rate() {
        let l = Limit::per_second(100, 20).unwrap();
        assert_eq!(admitted(l, SECOND, 0, 1000, 1), 20);
        // One second of 1,000 packets: the burst, and then 100.
        let n = admitted(l, SECOND, SECOND / 1000, 1000, 1);
        assert!((119..=120).contains(&n), "{n}");
    }

    #[test]
    fn exceeding_starts_one_tick_behind_the_tolerance() {
        let now = ticks(SECOND);
        for limit in [Limit::per_second(100, 3).unwrap(), Limit::NONE] {
            let most = now + limit.tolerance;
            assert!(!limit.exceeds(now, now));
            assert!(!limit.exceeds(most, now));
            assert!(limit.exceeds(most + 1, now));
        }
        for (tat, units) in [(0, 1), (now, 65_535), (now + (1 << 61), 65_535)] {
            assert_eq!(Limit::NONE.admit(tat, now, units), Some(tat.max(now)));
        }
    }

    #[test]
    fn it_opens_when_it_says() {
        let l = Limit::per_second(100, 3).unwrap();
        let (mut tat, now) = (0, ticks(SECOND));
        while let Some(t) = l.admit(tat, now, 1) {
            tat = t;
        }
        let opens = l.opens_at(tat);
        assert!(opens > now && l.admit(tat, opens, 1).is_some());
        assert_eq!(l.admit(tat, opens - 1, 1), None);
    }

    #[test]
    fn idle_state_is_worth_a_fresh_one() {
        let l = Limit::per_second(1000, 1).unwrap();
        let now = ticks(SECOND);
        assert_eq!(l.admit(now - 1, now, 1), l.admit(0, now, 1));
    }

    #[test]
    fn bytes_at_line_rate_keep_their_precision() {
        let l = Limit::per_second(12_500_000_000, 1 << 20).unwrap();
        // 100 Gbit/s of 64-byte packets, 5.12 ns each, for 1 ms.
        let n = admitted(l, SECOND, 5, 200_000, 64);
        let fair = (1 << 20) / 64 + 195_312;
        assert!(n <= fair + fair / 100, "{n} of {fair}");
    }

    #[test]
    fn refuses_what_cannot_be_a_limit() {
        assert_eq!(Limit::per_second(0, 1), None);
        assert_eq!(Limit::per_second(1, 0), None);
        assert_eq!(Limit::per_second(u64::MAX, 1), None);
        assert_eq!(Limit::per_second(1, u64::MAX), None);
        assert!(!Limit::NONE.is_some());
    }

    #[test]
    fn the_largest_packet_at_the_slowest_rate_does_not_wrap() {
        let l = Limit::per_second(MIN_BYTES_PER_SECOND, 1 << 20).unwrap();
        let now = ticks(u64::from(u32::MAX) * SECOND / 4);
        let new = l.admit(0, now, 65_535).unwrap();
        let want = 65_535 * SECOND * TICKS_PER_NS / MIN_BYTES_PER_SECOND;
        assert!((new - now).abs_diff(want) < want / 1000);
    }
}
