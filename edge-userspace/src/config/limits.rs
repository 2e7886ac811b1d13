//! Limits per source: rates that can be kept, their overrides, and the limit
//! profiles that the XDP program reads.

use edge_common::{
    abi::{LIMIT_KINDS, LimitKind, MAX_PROFILES, Mode, Profile},
    addr::{Family, Prefix},
    gcra::{Limit, MIN_BYTES_PER_SECOND},
};

/// The largest frame that XDP can see, bytes: the largest IP packet behind an
/// Ethernet header and two VLAN tags. Generic mode sees TCP segments that the
/// sender's stack has not cut up yet, so that this does occur.
pub const LARGEST_FRAME: u64 = 65_535 + 14 + 2 * 4;

/// The highest rate of packets: beyond any interface.
pub const MAX_PACKETS_PER_SECOND: u64 = 1_000_000_000;
/// The highest rate of bytes (8 Tbit/s): beyond any interface.
pub const MAX_BYTES_PER_SECOND: u64 = 1_000_000_000_000;
/// A burst is at most what the rate gives in so many seconds.
pub const MAX_BURST_SECONDS: u64 = 86_400;

/// Default of [`Limits::v4_prefix`].
pub const V4_PREFIX: u8 = 32;
/// Default of [`Limits::v6_prefix`].
pub const V6_PREFIX: u8 = 64;

/// A limit that can be kept: made by [`Rate::new`] only.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Rate {
    per_second: u64,
    burst: u64,
}

/// Why a rate and a burst make no limit. The text ends with the remedy.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RateError {
    /// The rate is too low to be counted.
    #[error(
        "rate {rate} is below the lowest ({min}/s); raise it, or put the sources on the blacklist"
    )]
    TooSlow {
        /// As given.
        rate: u64,
        /// The lowest rate.
        min: u64,
    },
    /// The rate is beyond any interface.
    #[error("rate {rate} is above the highest ({max}/s); lower it, or leave the limit out")]
    TooFast {
        /// As given.
        rate: u64,
        /// The highest rate.
        max: u64,
    },
    /// The clock of the limits stands still for a tick, in which a source at
    /// the full rate needs the burst.
    #[error(
        "burst {burst} is below what one clock tick admits at {rate}/s ({min}); raise burst to at least {min} or lower the rate"
    )]
    BurstBelowTick {
        /// As given.
        burst: u64,
        /// Units a second.
        rate: u64,
        /// What one tick of the clock is worth.
        min: u64,
    },
    /// The largest frame would never pass.
    #[error(
        "burst {burst} is below the largest frame ({min} bytes), which would then never pass; raise burst to at least {min}"
    )]
    BurstBelowFrame {
        /// As given.
        burst: u64,
        /// [`LARGEST_FRAME`].
        min: u64,
    },
    /// Packets are counted by samples, and one or two of them would be over it.
    #[error(
        "burst {burst} is below {min}: one packet in {sample} is counted, for {sample}, so that two would be over it; raise burst to at least {min}"
    )]
    BurstBelowSamples {
        /// As given.
        burst: u64,
        /// Of so many packets one is counted.
        sample: u32,
        /// What two of them are worth.
        min: u64,
    },
    /// The burst is worth more than a day.
    #[error(
        "burst {burst} takes more than a day to refill at {rate}/s; lower it to at most {max} or raise the rate"
    )]
    BurstTooLong {
        /// As given.
        burst: u64,
        /// Units a second.
        rate: u64,
        /// What the rate gives in a day.
        max: u64,
    },
}

impl RateError {
    /// Whether the rate is to be corrected; the burst otherwise.
    pub const fn is_about_rate(&self) -> bool {
        matches!(self, Self::TooSlow { .. } | Self::TooFast { .. })
    }
}

impl Rate {
    /// Handshakes that may stay incomplete by default: what strays to a busy host.
    pub const INCOMPLETE: Self = Self {
        per_second: 1000,
        burst: 2000,
    };

    /// ICMP messages of a kind by default: what the kernel itself answers with by
    /// default (`icmp_msgs_per_sec`), and far more than anyone needs who looks for
    /// a fault.
    pub const ICMP: Self = Self {
        per_second: 1000,
        burst: 200,
    };

    /// Packets of reflectors for one service by default: what servers of names and
    /// time answer to a busy host.
    pub const REFLECTION: Self = Self {
        per_second: 1000,
        burst: 1000,
    };

    /// A rate of packets of which one in `sample` is counted, for that many. Without
    /// a burst it is what the rate gives in `seconds`, and at least two samples.
    ///
    /// # Errors
    /// As [`Rate::new`], and [`RateError::BurstBelowSamples`].
    pub fn sampled(
        per_second: u64,
        burst: Option<u64>,
        (sample, seconds): (u32, u64),
        tick_ns: u64,
    ) -> Result<Self, RateError> {
        let min = 2 * u64::from(sample);
        let burst = burst.unwrap_or_else(|| per_second.saturating_mul(seconds).max(min));
        let rate = Self::new(LimitKind::Packets, per_second, Some(burst), tick_ns)?;
        if burst < min {
            return Err(RateError::BurstBelowSamples { burst, sample, min });
        }
        Ok(rate)
    }

    /// `per_second` packets (or bytes, by `kind`), of which `burst` may come at
    /// once; without a burst it is what the rate gives in a second, and at
    /// least what every limit of the kind needs.
    ///
    /// `tick_ns` is the resolution of `CLOCK_MONOTONIC_COARSE` in nanoseconds,
    /// the clock of the limits.
    ///
    /// # Errors
    /// [`RateError`] when such a limit could not be kept.
    pub fn new(
        kind: LimitKind,
        per_second: u64,
        burst: Option<u64>,
        tick_ns: u64,
    ) -> Result<Self, RateError> {
        let bytes = kind == LimitKind::Bytes;
        let (min, max) = match bytes {
            true => (MIN_BYTES_PER_SECOND, MAX_BYTES_PER_SECOND),
            false => (1, MAX_PACKETS_PER_SECOND),
        };
        let rate = per_second;
        if rate < min {
            return Err(RateError::TooSlow { rate, min });
        }
        if rate > max {
            return Err(RateError::TooFast { rate, max });
        }
        let tick = (u128::from(rate) * u128::from(tick_ns)).div_ceil(1_000_000_000);
        let tick = u64::try_from(tick).unwrap_or(u64::MAX);
        let frame = if bytes { LARGEST_FRAME } else { 1 };
        let burst = burst.unwrap_or_else(|| rate.max(tick).max(frame));
        if burst < frame {
            return Err(RateError::BurstBelowFrame { burst, min: frame });
        }
        if burst < tick {
            let min = tick;
            return Err(RateError::BurstBelowTick { burst, rate, min });
        }
        // The highest rate times a day is far below 2^64.
        let max = (rate * MAX_BURST_SECONDS).max(frame);
        if burst > max {
            return Err(RateError::BurstTooLong { burst, rate, max });
        }
        Ok(Self { per_second, burst })
    }

    /// Packets or bytes a second.
    pub const fn per_second(self) -> u64 {
        self.per_second
    }

    /// Packets or bytes at once.
    pub const fn burst(self) -> u64 {
        self.burst
    }

    /// As the program keeps it.
    pub fn limit(self) -> Limit {
        // Every rate that `new` lets through can be expressed; a test says so.
        Limit::per_second(self.per_second, self.burst).unwrap_or(Limit::NONE)
    }
}

/// The limits of one class of sources, by [`LimitKind`]; `None` for no limit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct LimitSet {
    /// By [`LimitKind`].
    pub kinds: [Option<Rate>; LIMIT_KINDS],
}

/// What an override says of one kind.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum OverrideLimit {
    /// Nothing: the default holds.
    #[default]
    Inherit,
    /// No limit.
    Unlimited,
    /// This limit.
    Rate(Rate),
}

/// Other limits for the sources in a prefix. Where overrides lie in each other
/// the longest alone holds, on top of the default.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Override {
    /// Which sources.
    pub prefix: Prefix,
    /// By [`LimitKind`].
    pub kinds: [OverrideLimit; LIMIT_KINDS],
}

impl Override {
    /// The limits that hold inside the prefix.
    pub fn resolve(&self, default: &LimitSet) -> LimitSet {
        let mut set = *default;
        for (own, limit) in set.kinds.iter_mut().zip(self.kinds) {
            match limit {
                OverrideLimit::Inherit => {}
                OverrideLimit::Unlimited => *own = None,
                OverrideLimit::Rate(rate) => *own = Some(rate),
            }
        }
        set
    }
}

/// Limits per source.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Limits {
    /// IPv4 sources that share their first so many bits share their limits.
    pub v4_prefix: u8,
    /// The same for IPv6.
    pub v6_prefix: u8,
    /// By [`LimitKind`]: what happens to a packet over the limit.
    pub modes: [Mode; LIMIT_KINDS],
    /// Where no override says otherwise.
    pub default: LimitSet,
    /// Sorted by prefix, each prefix once.
    pub overrides: Vec<Override>,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            v4_prefix: V4_PREFIX,
            v6_prefix: V6_PREFIX,
            modes: [Mode::Enforce; LIMIT_KINDS],
            default: LimitSet::default(),
            overrides: Vec::new(),
        }
    }
}

/// The overrides differ too much from each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "the overrides hold more than {} different sets of limits; give some prefixes equal limits",
    MAX_PROFILES - 1
)]
pub struct TooManyProfiles;

/// Limit profiles as the XDP program reads them, the default one first, and
/// the profile of each prefix that has an override.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Profiles {
    /// For the symbol `PROFILES`.
    pub table: [Profile; MAX_PROFILES],
    /// Index into `table`, 1 and above, for each override.
    pub prefixes: Vec<(Prefix, u8)>,
}

impl Limits {
    /// What the program does for a kind: [`Mode::Off`] also when no source has
    /// such a limit, so that it costs nothing.
    pub fn mode(&self, kind: LimitKind) -> Mode {
        let i = kind as usize;
        let overrides = self.overrides.iter().map(|o| o.kinds[i]);
        let any = self.default.kinds[i].is_some()
            || overrides
                .into_iter()
                .any(|l| matches!(l, OverrideLimit::Rate(_)));
        if any { self.modes[i] } else { Mode::Off }
    }

    /// Sets a limit of the default (`prefix` is `None`) or of the override for
    /// exactly this prefix, which is made when there is none. `None` as the
    /// limit is no limit.
    ///
    /// # Errors
    /// [`TooManyProfiles`]; then nothing has changed.
    pub fn set(
        &mut self,
        kind: LimitKind,
        prefix: Option<Prefix>,
        limit: Option<Rate>,
    ) -> Result<(), TooManyProfiles> {
        let Some(prefix) = prefix else {
            self.default.kinds[kind as usize] = limit;
            return Ok(());
        };
        let mut changed = self.clone();
        let at = match changed
            .overrides
            .binary_search_by_key(&prefix, |o| o.prefix)
        {
            Ok(at) => at,
            Err(at) => {
                let kinds = [OverrideLimit::Inherit; LIMIT_KINDS];
                changed.overrides.insert(at, Override { prefix, kinds });
                at
            }
        };
        changed.overrides[at].kinds[kind as usize] =
            limit.map_or(OverrideLimit::Unlimited, OverrideLimit::Rate);
        changed.profiles()?;
        *self = changed;
        Ok(())
    }

    /// The profiles for the program. A kind that is off has no limit in them.
    ///
    /// # Errors
    /// [`TooManyProfiles`].
    pub fn profiles(&self) -> Result<Profiles, TooManyProfiles> {
        let modes = LimitKind::ALL.map(|kind| self.mode(kind));
        let lower = |set: &LimitSet| {
            let mut limits = [Limit::NONE; LIMIT_KINDS];
            for ((limit, rate), mode) in limits.iter_mut().zip(set.kinds).zip(modes) {
                if let (Some(rate), Mode::DryRun | Mode::Enforce) = (rate, mode) {
                    *limit = rate.limit();
                }
            }
            Profile::new(limits)
        };
        let mut table = [Profile::default(); MAX_PROFILES];
        let mut used = 1;
        table[0] = lower(&self.default);
        let mut prefixes = Vec::with_capacity(self.overrides.len());
        for one in &self.overrides {
            let profile = lower(&one.resolve(&self.default));
            // Never index 0: an override that equals the default must still
            // stand out against a shorter one around it.
            let index = match (1..used).find(|&i| table[i] == profile) {
                Some(index) => index,
                None if used == MAX_PROFILES => return Err(TooManyProfiles),
                None => {
                    table[used] = profile;
                    used += 1;
                    used - 1
                }
            };
            let index = u8::try_from(index).map_err(|_| TooManyProfiles)?;
            prefixes.push((one.prefix, index));
        }
        Ok(Profiles { table, prefixes })
    }

    /// The bits of a source of this family that the limits look at.
    pub const fn shared_prefix(&self, family: Family) -> u8 {
        match family {
            Family::V4 => self.v4_prefix,
            Family::V6 => self.v6_prefix,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const TICK: u64 = 4_000_000;

    fn rate(kind: LimitKind, per_second: u64, burst: u64) -> Rate {
        Rate::new(kind, per_second, Some(burst), TICK).unwrap()
    }

    fn p(s: &str) -> Prefix {
        s.parse().unwrap()
    }

    #[test]
    fn a_burst_must_last_for_a_tick() {
        let new = |burst| Rate::new(LimitKind::Packets, 100_000, Some(burst), TICK);
        let error = new(399).unwrap_err();
        assert_eq!(
            error,
            RateError::BurstBelowTick {
                burst: 399,
                rate: 100_000,
                min: 400
            }
        );
        assert!(!error.is_about_rate());
        assert!(new(400).is_ok());
        // Part of a packet counts as one: 3 packets/s at 4 ms are 0.012.
        assert!(Rate::new(LimitKind::Syn, 3, Some(1), TICK).is_ok());
    }

    #[test]
    fn a_burst_of_bytes_must_hold_a_frame() {
        let error = Rate::new(LimitKind::Bytes, 10_000, Some(65_536), TICK).unwrap_err();
        assert_eq!(
            error,
            RateError::BurstBelowFrame {
                burst: 65_536,
                min: 65_557
            }
        );
        let slow = Rate::new(LimitKind::Bytes, MIN_BYTES_PER_SECOND, None, TICK).unwrap();
        assert_eq!(slow.burst(), LARGEST_FRAME);
    }

    #[test]
    fn without_a_burst_it_is_a_second() {
        assert_eq!(
            Rate::new(LimitKind::Udp, 500, None, TICK).unwrap().burst(),
            500
        );
        // A clock that ticks every two seconds.
        assert_eq!(
            Rate::new(LimitKind::Udp, 500, None, 2_000_000_000)
                .unwrap()
                .burst(),
            1000
        );
    }

    #[test]
    fn the_bounds_of_a_rate_are_told() {
        let too_slow = Rate::new(LimitKind::Packets, 0, None, TICK).unwrap_err();
        assert!(too_slow.is_about_rate());
        assert!(Rate::new(LimitKind::Bytes, 4095, None, TICK).is_err());
        assert!(Rate::new(LimitKind::Packets, MAX_PACKETS_PER_SECOND + 1, None, TICK).is_err());
        let long = Rate::new(LimitKind::Packets, 1, Some(86_401), TICK).unwrap_err();
        assert_eq!(
            long,
            RateError::BurstTooLong {
                burst: 86_401,
                rate: 1,
                max: 86_400
            }
        );
    }

    #[test]
    fn a_kind_without_any_rate_is_off() {
        let mut limits = Limits::default();
        assert_eq!(limits.mode(LimitKind::Syn), Mode::Off);
        limits
            .set(LimitKind::Syn, Some(p("10.0.0.0/8")), None)
            .unwrap();
        assert_eq!(limits.mode(LimitKind::Syn), Mode::Off);
        let syn = rate(LimitKind::Syn, 10, 10);
        limits
            .set(LimitKind::Syn, Some(p("10.0.0.0/8")), Some(syn))
            .unwrap();
        assert_eq!(limits.mode(LimitKind::Syn), Mode::Enforce);
        assert_eq!(limits.overrides.len(), 1);
    }

    #[test]
    fn equal_overrides_share_a_profile_that_is_not_the_default() {
        let mut limits = Limits::default();
        let (slow, fast) = (
            rate(LimitKind::Packets, 10, 10),
            rate(LimitKind::Packets, 1000, 10),
        );
        limits.set(LimitKind::Packets, None, Some(slow)).unwrap();
        limits
            .set(LimitKind::Packets, Some(p("10.0.0.0/8")), Some(fast))
            .unwrap();
        limits
            .set(LimitKind::Packets, Some(p("2001:db8::/32")), Some(fast))
            .unwrap();
        limits
            .set(LimitKind::Packets, Some(p("10.1.0.0/16")), Some(slow))
            .unwrap();
        let got = limits.profiles().unwrap();
        let index = |s: &str| got.prefixes.iter().find(|x| x.0 == p(s)).unwrap().1;
        assert_eq!(index("10.0.0.0/8"), index("2001:db8::/32"));
        assert_ne!(index("10.1.0.0/16"), index("10.0.0.0/8"));
        assert!(got.prefixes.iter().all(|x| x.1 > 0));
        assert_eq!(got.table[usize::from(index("10.1.0.0/16"))], got.table[0]);
    }

    #[test]
    fn a_kind_that_is_off_has_no_limit_in_any_profile() {
        let mut limits = Limits::default();
        limits
            .set(LimitKind::Udp, None, Some(rate(LimitKind::Udp, 10, 10)))
            .unwrap();
        limits
            .set(
                LimitKind::Udp,
                Some(p("::/1")),
                Some(rate(LimitKind::Udp, 5, 5)),
            )
            .unwrap();
        assert!(limits.profiles().unwrap().table[0].limits[LimitKind::Udp as usize].is_some());
        limits.modes[LimitKind::Udp as usize] = Mode::Off;
        let off = limits.profiles().unwrap();
        assert_eq!(off.table, [Profile::default(); MAX_PROFILES]);
        assert_eq!(off.prefixes, [(p("::/1"), 1)]);
    }

    #[test]
    fn the_64th_different_set_is_refused_and_changes_nothing() {
        let mut limits = Limits::default();
        for i in 1..=63u8 {
            let prefix = Prefix::host([10, 0, 0, i].into());
            let own = rate(LimitKind::Icmp, u64::from(i), 100);
            limits
                .set(LimitKind::Icmp, Some(prefix), Some(own))
                .unwrap();
        }
        let before = limits.clone();
        let one_more = rate(LimitKind::Icmp, 1000, 100);
        let refused = limits.set(LimitKind::Icmp, Some(p("10.0.0.64")), Some(one_more));
        assert_eq!((refused, &limits), (Err(TooManyProfiles), &before));
        let known = rate(LimitKind::Icmp, 7, 100);
        limits
            .set(LimitKind::Icmp, Some(p("10.0.0.64")), Some(known))
            .unwrap();
    }

    proptest! {
        #[test]
        fn every_rate_that_is_let_through_can_be_expressed(
            kind in 0..LIMIT_KINDS,
            per_second in prop_oneof![0..100_000u64, any::<u64>(), Just(MAX_BYTES_PER_SECOND)],
            burst in prop::option::of(prop_oneof![0..100_000u64, any::<u64>()]),
            tick in prop_oneof![Just(1_000_000u64), Just(10_000_000), any::<u64>()],
        ) {
            if let Ok(rate) = Rate::new(LimitKind::ALL[kind], per_second, burst, tick) {
                prop_assert!(Limit::per_second(rate.per_second, rate.burst).is_some());
            }
        }

        #[test]
        fn the_default_burst_is_always_accepted(per_second in 4096..MAX_PACKETS_PER_SECOND) {
            for kind in LimitKind::ALL {
                prop_assert!(Rate::new(kind, per_second, None, TICK).is_ok());
            }
        }
    }
}
