//! The configuration in the form in which the XDP program reads it.

use edge_common::{
    abi::{ABI_VERSION, Config, LimitKind},
    gcra::Limit,
    hash::Seed,
};

use super::{
    limits::{Profiles, TooManyProfiles},
    model::Model,
};
use crate::tables::Geometry;

impl Model {
    /// The read-only `CONFIG` of the load of the program that serves the
    /// interface with this block of counters.
    ///
    /// `tick_ns` is the resolution of `CLOCK_MONOTONIC_COARSE` in nanoseconds.
    /// Checks and limits that have nothing to look for are off in it.
    pub fn abi_config(
        &self,
        geometry: &Geometry,
        seed: Seed,
        tick_ns: u64,
        interface: u32,
    ) -> Config {
        let checks = self.effective_checks();
        let per_second = u64::from(self.events_per_second);
        let mask6 = leading_ones_128(self.limits.v6_prefix);
        let config = Config {
            seed,
            // `None` is for 0 a second.
            sample: Limit::per_second(per_second, per_second).unwrap_or(Limit::NONE),
            tick_ns,
            limit_mask6_hi: (mask6 >> 64) as u64,
            limit_mask6_lo: mask6 as u64,
            limit_mask4: leading_ones_32(self.limits.v4_prefix).to_be(),
            malformed: checks.malformed as u32,
            tcp_flags: checks.tcp_flags as u32,
            land: checks.land as u32,
            bogons: checks.bogons as u32,
            fragments: checks.fragments as u32,
            fragment_policy: checks.fragment_policy as u32,
            arp_guard: checks.arp_guard as u32,
            blacklist: checks.blacklist as u32,
            interface,
            hosts4_buckets: geometry.hosts4_buckets,
            hosts4_filter_words: geometry.hosts4_filter_words,
            wide_buckets: geometry.wide_buckets,
            hosts6_filter_words: geometry.hosts6_filter_words,
            prefix_filter_words: geometry.prefix_filter_words,
            long_lengths: geometry.long_lengths,
            limiter_buckets: geometry.limiter_buckets,
            abi_version: ABI_VERSION,
            ..Config::OFF
        };
        LimitKind::ALL.into_iter().fold(config, |config, kind| {
            config.with_limit(kind, self.limits.mode(kind))
        })
    }

    /// The limit profiles, and which prefix has which.
    ///
    /// # Errors
    /// [`TooManyProfiles`] only when limits were changed other than by
    /// [`super::limits::Limits::set`] after the file was checked.
    pub fn profiles(&self) -> Result<Profiles, TooManyProfiles> {
        self.limits.profiles()
    }
}

fn leading_ones_32(n: u8) -> u32 {
    u32::MAX.checked_shl(32 - u32::from(n.min(32))).unwrap_or(0)
}

fn leading_ones_128(n: u8) -> u128 {
    u128::MAX
        .checked_shl(128 - u32::from(n.min(128)))
        .unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use edge_common::abi::Mode;

    use super::*;
    use crate::config::test::{model, model_of};

    const SEED: Seed = Seed::new([1, 2, 3, 4]);

    fn lower(model: &Model) -> Config {
        model.abi_config(&Geometry::for_capacity(&model.capacity), SEED, 4_000_000, 7)
    }

    #[test]
    fn what_has_nothing_to_look_for_is_off() {
        let config = lower(&model());
        assert_eq!(config.arp_guard, Mode::Off as u32);
        assert_eq!((config.limits_on, config.limits_enforced), (0, 0));
        assert_eq!(config.bogons, Mode::Enforce as u32);
        let config = lower(&model_of(
            "bogons.defaults = false\n[[arp_binding]]\naddress = '192.0.2.1'\nmac = '02:00:00:00:00:01'\n[limits.udp]\nmode = 'dry-run'\nrate = 5",
        ));
        assert_eq!(config.arp_guard, Mode::Enforce as u32);
        assert_eq!(config.bogons, Mode::Off as u32);
        assert_eq!(config.limits_on, LimitKind::Udp.bit());
        assert_eq!(config.limits_enforced, 0);
    }

    #[test]
    fn masks_are_in_the_order_of_the_program() {
        let config = lower(&model());
        assert_eq!(config.limit_mask4, u32::MAX);
        assert_eq!(
            (config.limit_mask6_hi, config.limit_mask6_lo),
            (u64::MAX, 0)
        );
        let config = lower(&model_of("limits.v4_prefix = 20\nlimits.v6_prefix = 72"));
        assert_eq!(config.limit_mask4.to_ne_bytes(), [255, 255, 0xf0, 0]);
        assert_eq!(config.limit_mask6_hi, u64::MAX);
        assert_eq!(config.limit_mask6_lo, 0xff << 56);
        let config = lower(&model_of("limits.v6_prefix = 48"));
        assert_eq!(config.limit_mask6_hi, !0xffff);
        let config = lower(&model_of("limits.v6_prefix = 128"));
        assert_eq!(config.limit_mask6_lo, u64::MAX);
    }

    #[test]
    fn sizes_seed_and_interface_are_handed_on() {
        let model = model_of("tables.hosts_v4 = '1M'\ntables.prefixes = 2000");
        let (geometry, config) = (Geometry::for_capacity(&model.capacity), lower(&model));
        assert_eq!(config.hosts4_buckets, geometry.hosts4_buckets);
        assert_eq!(config.wide_buckets, geometry.wide_buckets);
        assert_eq!(config.hosts6_filter_words, geometry.hosts6_filter_words);
        assert_eq!(config.prefix_filter_words, geometry.prefix_filter_words);
        assert_eq!(config.hosts4_filter_words, geometry.hosts4_filter_words);
        assert_eq!(config.long_lengths, geometry.long_lengths);
        assert_eq!(config.limiter_buckets, geometry.limiter_buckets);
        assert_eq!((config.seed, config.interface), (SEED, 7));
        assert_eq!(config.abi_version, ABI_VERSION);
    }

    #[test]
    fn samples_can_be_turned_off() {
        assert!(lower(&model()).sample.is_some());
        assert!(!lower(&model_of("events.per_second = 0")).sample.is_some());
    }
}
