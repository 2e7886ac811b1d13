//! What the program says of each service, over time: rates, and whether it is under
//! attack.

use std::collections::BTreeMap;

use edge_common::{
    defence::{SERVICE_COUNTERS, ServiceCounter, When},
    gcra::ticks,
};

use crate::{
    clock::Now,
    config::services::Service,
    status::{ServiceStatus, ServiceTargets},
};

/// What the program wrote of a service, read at one moment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Reading {
    /// TAT of incomplete handshakes, in ticks.
    pub pressure: u64,
    /// The attack lasts until then at least, nanoseconds of `CLOCK_MONOTONIC`.
    pub attack_until: u64,
    /// When the last attack was found, likewise.
    pub attack_since: u64,
    /// By [`ServiceCounter`].
    pub counters: Counters,
}

/// By [`ServiceCounter`].
pub type Counters = [u64; SERVICE_COUNTERS];

/// A second, by [`ServiceCounter`].
pub type Rates = [f64; SERVICE_COUNTERS];

/// What a reading says, beside the one before.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Step {
    /// The reading.
    pub reading: Reading,
    /// The counters of the reading before; of this one when it is the first.
    pub before: Counters,
    /// How much is counted a second, by [`ServiceCounter`], taken over
    /// [`RATE_NS`] at least.
    pub per_second: Rates,
    /// Whether the service is under attack.
    pub attacked: bool,
}

#[derive(Clone, Debug)]
struct Seen {
    reading: Reading,
    read_ns: u64,
    per_second: Rates,
    attacked: bool,
}

/// Follows all services, by name.
#[derive(Clone, Debug, Default)]
pub struct Watch(BTreeMap<String, Seen>);

/// The least time that a rate is taken over, nanoseconds.
pub const RATE_NS: u64 = 200_000_000;

impl Watch {
    /// Forgets the services that are no longer there.
    pub fn keep(&mut self, services: &[Service]) {
        let names: std::collections::BTreeSet<&str> =
            services.iter().map(|s| s.name.as_str()).collect();
        self.0.retain(|name, _| names.contains(name.as_str()));
    }

    /// Whether a service is under attack, as far as was seen.
    pub fn is_attacked(&self, name: &str) -> bool {
        self.0.get(name).is_some_and(|seen| seen.attacked)
    }

    /// Takes in a reading.
    pub fn take(&mut self, name: &str, reading: Reading, now_ns: u64) -> Step {
        let first = Seen {
            reading,
            read_ns: now_ns,
            per_second: [0.0; SERVICE_COUNTERS],
            attacked: false,
        };
        let seen = self.0.entry(name.to_owned()).or_insert(first);
        let before = seen.reading.counters;
        let passed = now_ns.saturating_sub(seen.read_ns);
        if passed >= RATE_NS {
            let both = reading.counters.iter().zip(before);
            for (rate, (now, then)) in seen.per_second.iter_mut().zip(both) {
                // Fewer than before: the table was made anew.
                let new = now.saturating_sub(then);
                *rate = new as f64 * 1e9 / passed as f64;
            }
            seen.read_ns = now_ns;
            seen.reading = reading;
        } else {
            seen.reading = Reading {
                counters: before,
                ..reading
            };
        }
        seen.attacked = reading.attack_until > now_ns;
        Step {
            reading,
            before,
            per_second: seen.per_second,
            attacked: seen.attacked,
        }
    }

    /// How a service is.
    pub fn status(&self, service: &Service, targets: ServiceTargets, now: Now) -> ServiceStatus {
        let seen = self.0.get(&service.name);
        let reading = seen.map(|s| s.reading).unwrap_or_default();
        let attacked = seen.is_some_and(|s| s.attacked);
        let limit = service.incomplete.limit();
        let ahead = reading.pressure.saturating_sub(ticks(now.mono_ns));
        let since = attacked.then(|| now.unix_ms_of(reading.attack_since));
        let wants = match service.syn {
            When::Off => false,
            When::Auto => attacked,
            When::Always => true,
        };
        ServiceStatus {
            name: service.name.clone(),
            syn: service.syn.name().to_owned(),
            dry_run: service.dry_run,
            forwarded: service.forwarded,
            targets,
            under_attack: attacked,
            attack_since_unix_ms: since,
            defended: wants && !service.dry_run && (service.forwarded || targets.ready > 0),
            pressure: ahead as f64 / limit.tolerance().max(1) as f64,
            syn_per_second: seen.map_or(0.0, |s| {
                let syns = s.per_second.get(ServiceCounter::Syns as usize);
                syns.copied().unwrap_or_default().round()
            }),
            counters: ServiceCounter::ALL
                .iter()
                .map(|&c| (c.name().to_owned(), of(&reading.counters, c)))
                .collect(),
            // Of the history.
            attack: None,
            attacks: 0,
        }
    }
}

/// One of the counters.
pub fn of(counters: &Counters, which: ServiceCounter) -> u64 {
    counters.get(which as usize).copied().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::test::model_of;

    const SECOND: u64 = 1_000_000_000;

    fn reading(syns: u64, attack: Option<(u64, u64)>) -> Reading {
        let (attack_since, attack_until) = attack.unwrap_or_default();
        let mut counters = [0; SERVICE_COUNTERS];
        counters[ServiceCounter::Syns as usize] = syns;
        Reading {
            pressure: 0,
            attack_until,
            attack_since,
            counters,
        }
    }

    #[test]
    fn rates_are_taken_over_long_enough() {
        let mut watch = Watch::default();
        let syns = ServiceCounter::Syns as usize;
        let on = Some((2 * SECOND, 12 * SECOND));
        let mut at = |ns, syns, attack| watch.take("a", reading(syns, attack), ns);
        let first = at(SECOND, 1000, None);
        assert_eq!((first.before[syns], first.attacked), (1000, false));
        let step = at(3 * SECOND, 5000, on);
        assert!(step.attacked);
        assert_eq!((step.before[syns], step.per_second[syns]), (1000, 2000.0));
        // Too early for another rate, and nothing is lost of the next.
        let step = at(3 * SECOND + RATE_NS / 2, 9000, on);
        assert_eq!((step.before[syns], step.per_second[syns]), (5000, 2000.0));
        let step = at(4 * SECOND, 10_000, on);
        assert_eq!((step.before[syns], step.per_second[syns]), (5000, 5000.0));
        assert!(!at(12 * SECOND, 10_000, on).attacked);
    }

    #[test]
    fn an_attack_that_is_on_when_the_daemon_starts_is_seen() {
        let mut watch = Watch::default();
        let on = reading(7, Some((SECOND, 99 * SECOND)));
        assert!(watch.take("a", on, 50 * SECOND).attacked);
        assert!(watch.is_attacked("a"));
        watch.keep(&[]);
        assert!(!watch.is_attacked("a"));
    }

    #[test]
    fn the_status_says_what_is_being_done() {
        let with = |text: &str, attack: Option<(u64, u64)>, targets| {
            let model = model_of(&format!("[[service]]\nname = 'a'\nports = [1]\n{text}"));
            let service = &model.services[0];
            let mut watch = Watch::default();
            let mut r = reading(5, attack);
            // Half of the burst of 2000.
            r.pressure = ticks(10 * SECOND) + service.incomplete.limit().tolerance() / 2;
            watch.take("a", r, 10 * SECOND);
            let now = Now {
                mono_ns: 10 * SECOND,
                boot_ns: 10 * SECOND,
                unix_ms: 1_000_000,
            };
            watch.status(service, targets, now)
        };
        let ready = ServiceTargets { total: 2, ready: 1 };
        let of = |text, attack| with(text, attack, ready);
        let on = Some((7 * SECOND, 20 * SECOND));
        let attacked = of("", on);
        assert!(attacked.under_attack && attacked.defended);
        assert_eq!(attacked.attack_since_unix_ms, Some(997_000));
        assert!((attacked.pressure - 0.5).abs() < 1e-6);
        assert_eq!(attacked.counters["syns"], 5);
        assert_eq!(attacked.counters.len(), ServiceCounter::ALL.len());
        let quiet = of("", None);
        assert!(!quiet.under_attack && !quiet.defended);
        assert!(of("syn = 'always'", None).defended);
        assert!(!of("syn = 'always'\ndry_run = true", on).defended);
        let off = of("syn = 'off'", on);
        assert!(off.under_attack && !off.defended);
        // Nobody answers where nothing that listens is known.
        let none = ServiceTargets { total: 2, ready: 0 };
        let undefended = with("", on, none);
        assert!(undefended.under_attack && !undefended.defended);
        assert!(undefended.lacks_listeners() && !attacked.lacks_listeners());
        let forwarded = "forwarded = true\naddresses = ['203.0.113.7']";
        let forwarded = with(forwarded, on, ServiceTargets::default());
        assert!(forwarded.defended && !forwarded.lacks_listeners());
        assert!(!with("syn = 'off'", on, none).lacks_listeners());
        assert!(!with("dry_run = true", on, none).lacks_listeners());
    }

    #[test]
    fn a_table_that_was_made_anew_is_no_flood() {
        let mut watch = Watch::default();
        watch.take("a", reading(1_000_000, None), SECOND);
        watch.take("a", reading(5, None), 2 * SECOND);
        let model = model_of("[[service]]\nname = 'a'\nports = [1]");
        let now = Now {
            mono_ns: 2 * SECOND,
            boot_ns: 2 * SECOND,
            unix_ms: 0,
        };
        let status = watch.status(&model.services[0], ServiceTargets::default(), now);
        assert_eq!(status.syn_per_second, 0.0);
    }
}
