//! The configuration in the form in which the XDP program reads it.

use std::time::Duration;

use edge_common::{
    abi::{ABI_VERSION, Config, LimitKind},
    balance::{AGE_SHIFT, FLOW_WAYS, NUMBER_BITS},
    defence::{
        MAX_SERVICES, When,
        tags::{VERIFIED_SHIFT, WAYS},
    },
    gcra::Limit,
    hash::{Seed, hash},
};

use super::{
    MAX_FILE_BYTES,
    balance::Fragments,
    limits::{Profiles, Rate, TooManyProfiles},
    model::Model,
    services::{Ports, Service},
};
use crate::tables::Geometry;

/// Entries of `BACKENDS`, at the least and at the most.
const BACKENDS: (u32, u32) = (1 << 12, 1 << NUMBER_BITS);

/// A backend takes more than 16 bytes of the file, so that there are numbers for all.
const _: () = assert!(MAX_FILE_BYTES / 16 <= BACKENDS.1 as u64);

impl Model {
    /// The read-only `CONFIG` of the load of the program that serves the
    /// interface with this block of counters.
    ///
    /// `tick_ns` is the resolution of `CLOCK_MONOTONIC_COARSE` in nanoseconds,
    /// `tcp_features` what the host's TCP grants ([`edge_common::defence::reply::feature`]).
    /// Checks and limits that have nothing to look for are off in it.
    pub fn abi_config(
        &self,
        geometry: &Geometry,
        seed: Seed,
        tick_ns: u64,
        tcp_features: u32,
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
            services: self.service_slots(),
            always_defended: u32::from(self.services.iter().any(|s| s.syn == When::Always)),
            defended: u32::from(self.services.iter().any(|s| s.syn != When::Off)),
            tcp_features,
            reply_ttl: self.flood.reply_ttl,
            reply_window: self.flood.reply_window,
            verified_buckets: self.verified_buckets(),
            verified_ttl: self.verified_ttl(),
            icmp_floods: self.floods.icmp.mode as u32,
            icmp: self.floods.icmp.rates.map(Rate::limit),
            hitters_mode: self.floods.prefixes.effective_mode() as u32,
            hitters: (self.floods.prefixes.rates).map(|r| r.map_or(Limit::NONE, Rate::limit)),
            reflection: self.reflection_mode() as u32,
            rest: u32::from(self.has_rest() || self.defends_any_port()),
            abi_version: ABI_VERSION,
            rings: self.rings(),
            slots: self.balancing.slots,
            backends: self.backends(),
            flow_buckets: self.balancing.flows.div_ceil(FLOW_WAYS as u32),
            tcp_idle: age(self.balancing.tcp_idle),
            udp_idle: age(self.balancing.udp_idle),
            drop_fragments: u32::from(self.balancing.fragments == Fragments::Drop),
            clamp_mss: u32::from(self.balancing.mss_clamp),
            snat: self.nat_sources(),
            server_ids: self.server_ids(),
            balance_seed: derived(&seed),
            ..Config::OFF
        };
        LimitKind::ALL.into_iter().fold(config, |config, kind| {
            config.with_limit(kind, self.limits.mode(kind))
        })
    }

    /// Entries of `SERVICES`: 0 without services, and else more than there are, if
    /// there can be more, so that a reload that adds one keeps the state of the others.
    pub fn service_slots(&self) -> u32 {
        let services = u32::try_from(self.services.len()).unwrap_or(MAX_SERVICES);
        match services {
            0 => 0,
            n => (n.saturating_add(1).checked_next_power_of_two())
                .map_or(MAX_SERVICES, |slots| slots.clamp(16, MAX_SERVICES)),
        }
    }

    /// Rings in `RINGS`: some more than there are balanced services, so that rings can change
    /// and a reload that adds a service need not make them all anew.
    pub(super) fn rings(&self) -> u32 {
        let balanced = self.services.iter().filter(|s| s.balance.is_some()).count();
        match u32::try_from(balanced).unwrap_or(u32::MAX) {
            0 => 0,
            n => n
                .saturating_add(n / 8)
                .saturating_add(4)
                .next_multiple_of(8),
        }
    }

    /// Entries of `BACKENDS`, that of nobody included: half as many again as there are
    /// backends, at least, so that a reload finds numbers for new ones, and those of such
    /// that went are left alone for long.
    pub(super) fn backends(&self) -> u32 {
        let all = self.services.iter().filter_map(|s| s.balance.as_ref());
        let backends: usize = all.map(|balance| balance.backends.len()).sum();
        let room = (backends + backends / 2 + 1).next_power_of_two();
        u32::try_from(room).map_or(BACKENDS.1, |room| room.clamp(BACKENDS.0, BACKENDS.1))
    }

    /// Entries of `SERVER_IDS`: as many as there are numbers of backends, of which each has one
    /// at most; 0 when no service is balanced by connection ids.
    pub(super) fn server_ids(&self) -> u32 {
        let mut balances = self.services.iter().filter_map(|s| s.balance.as_ref());
        match balances.any(|b| b.quic().is_some()) {
            true => self.backends(),
            false => 0,
        }
    }

    /// Whether a service of all ports is defended against SYN floods.
    fn defends_any_port(&self) -> bool {
        let any = |s: &Service| s.ports == Ports::Any && s.syn != When::Off;
        self.services.iter().any(any)
    }

    /// Entries of `VERIFIED`, which only forwarded services use.
    pub fn verified_buckets(&self) -> u32 {
        if self.services.iter().any(|s| s.forwarded) {
            self.flood.verified_sources.div_ceil(WAYS as u32)
        } else {
            1
        }
    }

    /// How long a source stays verified, steps of [`VERIFIED_SHIFT`].
    pub fn verified_ttl(&self) -> u32 {
        let ns = self.flood.verified_ttl_s.saturating_mul(1_000_000_000);
        u32::try_from(ns >> VERIFIED_SHIFT).map_or(0xffff, |steps| steps.clamp(1, 0xffff))
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

/// A span in steps of a flow's age, at least one.
fn age(span: Duration) -> u32 {
    let ns = u64::try_from(span.as_nanos()).unwrap_or(u64::MAX);
    u32::try_from(ns >> AGE_SHIFT).map_or(u32::MAX, |steps| steps.saturating_add(1))
}

/// The secret of the choice of backends of an installation that shares none: another one
/// than that of the tables, so that neither tells of the other.
fn derived(seed: &Seed) -> Seed {
    const TAG: u32 = 0x2030;
    Seed::new([0, 1, 2, 3].map(|n| hash(seed, n, !n, TAG)))
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
    use edge_common::{
        abi::{Mode, Stage},
        defence::reply::feature,
    };

    use super::*;
    use crate::config::test::{model, model_of};

    const SEED: Seed = Seed::new([1, 2, 3, 4]);

    fn lower(model: &Model) -> Config {
        let geometry = Geometry::for_capacity(&model.capacity);
        model.abi_config(&geometry, SEED, 4_000_000, feature::SACK, 7)
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
    fn without_services_the_defence_is_off() {
        let config = lower(&model_of("tables.verified_sources = '1M'"));
        assert_eq!((config.services, config.always_defended), (0, 0));
        assert_eq!(config.verified_buckets, 1);
    }

    #[test]
    fn other_floods_are_off_unless_there_is_something_to_look_for() {
        let off = |text: &str| {
            let c = lower(&model_of(text));
            (
                c.services,
                c.icmp_floods,
                c.hitters_mode,
                c.reflection,
                c.rest,
            ) == (0, 0, 0, 0, 0)
        };
        assert!(off("") && off("flood.hold = '1s'"));
        // No limit, and no service of UDP.
        assert!(off("[flood.prefixes]\n[flood.reflection]"));
        assert!(off("[flood.icmp]\nmode = 'off'"));
        let limit = |rate, burst| Limit::per_second(rate, burst).unwrap();
        let config = lower(&model_of(
            "[flood]\nrest = 'auto'\n[flood.icmp]\nerrors = { rate = 5, burst = 6 }\n[flood.prefixes]\nsource_wide = { rate = 70, burst = 80 }\n[flood.reflection]\nmode = 'enforce'\n[[service]]\nname = 'a'\nports = [1]\nprotocol = 'udp'",
        ));
        assert_eq!((config.services, config.rest), (16, 1));
        assert_eq!(config.icmp_floods, Mode::Enforce as u32);
        assert_eq!(
            config.icmp,
            [limit(1000, 200), limit(5, 6), limit(1000, 200)]
        );
        assert_eq!(config.hitters_mode, Mode::DryRun as u32);
        let none = Limit::NONE;
        assert_eq!(config.hitters, [none, limit(70, 80), none, none]);
        assert_eq!(config.reflection, Mode::Enforce as u32);
        let alone = lower(&model_of("flood.rest = 'auto'"));
        assert_eq!(
            (
                alone.services,
                alone.rest,
                alone.defended,
                alone.always_defended
            ),
            (16, 1, 1, 0)
        );
    }

    #[test]
    fn services_that_are_off_leave_the_defence_out() {
        let one = "[[service]]\nname = 'a'\nports = [80]\nsyn = 'off'\n";
        let config = lower(&model_of(one));
        assert_eq!((config.services, config.defended), (16, 0));
        assert!(!Stage::Defence.is_on(&config));
        for more in [
            "syn = 'auto'",
            "syn = 'always'\ndry_run = true",
            "syn = 'auto'\nforwarded = true\naddresses = ['203.0.113.7']",
        ] {
            let more = format!("{one}[[service]]\nname = 'b'\nports = [81]\n{more}");
            let config = lower(&model_of(&more));
            assert_eq!(config.defended, 1, "{more}");
            assert!(Stage::Defence.is_on(&config), "{more}");
        }
        let udp = "[[service]]\nname = 'b'\nports = [53]\nprotocol = 'udp'";
        let config = lower(&model_of(&format!(
            "flood.reflection.mode = 'dry-run'\n{one}{udp}"
        )));
        assert_eq!(config.defended, 0);
        assert!(Stage::Defence.is_on(&config));
    }

    #[test]
    fn services_are_handed_on() {
        let text = "[flood]\nreply_ttl = 63\nreply_window = 4096\nverified_ttl = '18h'\n[[service]]\nname = 'a'\nports = [80]";
        let config = lower(&model_of(text));
        assert_eq!((config.services, config.always_defended), (16, 0));
        assert_eq!((config.reply_ttl, config.reply_window), (63, 4096));
        assert_eq!(
            (config.verified_buckets, config.tcp_features),
            (1, feature::SACK)
        );
        // 18 hours in steps of 2^30 ns.
        assert_eq!(config.verified_ttl, 60_349);
        let more = "[[service]]\nname = 'b'\nports = [81]\nsyn = 'always'\nforwarded = true\naddresses = ['203.0.113.7']";
        let config = lower(&model_of(&format!(
            "tables.verified_sources = 81\n{text}\n{more}"
        )));
        assert_eq!((config.services, config.always_defended), (16, 1));
        assert_eq!(config.verified_buckets, 11);
        // There is room for one more.
        for (services, slots) in [(15, 16), (16, 32), (17, 32), (31, 32), (32, 64)] {
            let many: String = (1..=services)
                .map(|i| format!("[[service]]\nname = 's{i}'\nports = [{i}]\n"))
                .collect();
            assert_eq!(lower(&model_of(&many)).services, slots);
        }
    }

    #[test]
    fn there_are_numbers_for_new_backends() {
        for (services, backends, room) in [(1, 3, 4096), (5, 600, 8192), (9, 650, 16_384)] {
            let mut text = String::new();
            for s in 0..services {
                text += &format!(
                    "[[service]]\nname = 's{s}'\nports = [80]\naddresses = ['203.0.113.{s}']\nforward = 'l2'\n"
                );
                for b in 0..backends {
                    text += &format!(
                        "[[service.backend]]\nname = 'b{b}'\naddress = '10.{s}.{}.{}'\n",
                        b / 256,
                        b % 256
                    );
                }
            }
            assert_eq!(lower(&model_of(&text)).backends, room);
        }
    }

    #[test]
    fn a_number_stands_for_an_address_of_each_family() {
        let numbers = |forward: &str, snat: &str| {
            let text = format!(
                "[[service]]\nname = 'a'\nports = [80]\naddresses = ['203.0.113.7']\nforward = '{forward}'\n\
                 [[service.backend]]\nname = 'b'\naddress = '10.0.0.1'\n[balance]\nsnat = [{snat}]"
            );
            lower(&model_of(&text)).snat
        };
        assert_eq!(numbers("nat", "'192.0.2.1'"), 1);
        assert_eq!(numbers("nat", "'192.0.2.1', '2001:db8::1', '192.0.2.2'"), 2);
        assert_eq!(numbers("nat", "'192.0.2.1', '2001:db8::1'"), 1);
        assert_eq!(numbers("l2", "'192.0.2.1'"), 0);
    }

    #[test]
    fn samples_can_be_turned_off() {
        assert!(lower(&model()).sample.is_some());
        assert!(!lower(&model_of("events.per_second = 0")).sample.is_some());
    }
}
