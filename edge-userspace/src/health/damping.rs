//! Flap damping: a backend that goes down again and again is not believed when it
//! comes up.
//!
//! As for routes in RFC 2439: each time that it goes down adds to a penalty, which
//! decays by half in each half-life. Above one bound it is held down, until the penalty
//! is below a lower one: so the time grows with how often it went down, and has an end.

/// How long it takes the penalty to decay by half, nanoseconds.
pub(super) const HALF_LIFE_NS: u64 = 60_000_000_000;
/// What going down adds. The unit is that of RFC 2439, 4.2.
pub(super) const PENALTY: f64 = 1000.0;
/// From here on it is held down: the fourth time within half a minute, or the seventh
/// of one each half minute. One that goes down once a minute never gets here.
pub(super) const SUPPRESS: f64 = 3000.0;
/// Below it is believed again: two to three minutes behind [`SUPPRESS`].
pub(super) const REUSE: f64 = 750.0;
/// The longest that it is held after it last went down, nanoseconds.
pub(super) const MAX_HOLD_NS: u64 = 5 * HALF_LIFE_NS;
/// The largest penalty, from which [`REUSE`] is reached in [`MAX_HOLD_NS`]
/// (RFC 2439, 4.2: the ceiling).
const CEILING: f64 = REUSE * (1_u64 << (MAX_HOLD_NS / HALF_LIFE_NS)) as f64;

/// What is remembered of one backend.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Damping {
    /// As it was at `fell_ns`.
    penalty: f64,
    fell_ns: u64,
    /// 0 when it is not held.
    held_until_ns: u64,
}

impl Damping {
    /// The backend has gone down.
    pub(super) fn fell(&mut self, now_ns: u64) {
        let was_held = self.held_until(now_ns).is_some();
        let age = now_ns.saturating_sub(self.fell_ns) as f64 / HALF_LIFE_NS as f64;
        self.penalty = (self.penalty * (-age).exp2() + PENALTY).min(CEILING);
        self.fell_ns = now_ns;
        if was_held || self.penalty >= SUPPRESS {
            let half_lives = (self.penalty / REUSE).log2();
            let hold_ns = (half_lives * HALF_LIFE_NS as f64) as u64;
            self.held_until_ns = now_ns.saturating_add(hold_ns.min(MAX_HOLD_NS));
        }
    }

    /// Until when it is held down, unless that is over.
    pub(super) fn held_until(&self, now_ns: u64) -> Option<u64> {
        (now_ns < self.held_until_ns).then_some(self.held_until_ns)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const SECOND: u64 = 1_000_000_000;

    /// Goes down `times` times, `every_s` seconds apart; how long it is held then, seconds.
    fn held_after(times: u64, every_s: u64) -> u64 {
        let mut damping = Damping::default();
        let mut now = SECOND;
        for _ in 0..times {
            now += every_s * SECOND;
            damping.fell(now);
        }
        damping
            .held_until(now)
            .map_or(0, |until| (until - now) / SECOND)
    }

    #[test]
    fn it_is_held_as_the_constants_say() {
        assert_eq!(held_after(3, 10), 0);
        assert_eq!(held_after(4, 10), 130);
        assert_eq!(held_after(6, 30), 0);
        assert!(held_after(7, 30) >= 120);
        assert_eq!(held_after(1000, 60), 0);
    }

    #[test]
    fn it_is_held_longer_the_more_often_and_never_longer_than_the_bound() {
        let held: Vec<u64> = (4..=60).map(|times| held_after(times, 1)).collect();
        assert!(held.is_sorted(), "{held:?}");
        assert!(held[0] < 150);
        assert_eq!(held.last(), Some(&300));
    }

    proptest! {
        #[test]
        fn holding_ends(gaps in prop::collection::vec(0..100 * SECOND, 1..50)) {
            let mut damping = Damping::default();
            let mut now = 0;
            for gap in gaps {
                now += gap;
                damping.fell(now);
                if let Some(until) = damping.held_until(now) {
                    prop_assert!(until - now <= MAX_HOLD_NS);
                }
            }
            prop_assert_eq!(damping.held_until(now + MAX_HOLD_NS), None);
        }
    }
}
