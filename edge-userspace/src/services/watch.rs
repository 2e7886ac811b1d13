//! What the program says of each service, over time: rates, and when an attack
//! begins and ends.

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

type Counters = [u64; SERVICE_COUNTERS];

/// An attack began or ended.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Change {
    /// It began.
    Began {
        /// SYNs a second, as far as it can be told so early.
        syn_per_second: f64,
    },
    /// It is over.
    Ended(Summary),
}

/// What an attack came to.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Summary {
    /// How long it lasted, nanoseconds.
    pub lasted_ns: u64,
    /// Most SYNs a second.
    pub peak: f64,
    /// What was counted meanwhile, by [`ServiceCounter`].
    pub counters: Counters,
}

#[derive(Clone, Debug)]
struct Seen {
    reading: Reading,
    read_ns: u64,
    syn_per_second: f64,
    attack: Option<Attack>,
}

#[derive(Clone, Debug)]
struct Attack {
    since_ns: u64,
    peak: f64,
    /// The counters when it was noticed.
    before: Counters,
}

/// Follows all services, by name.
#[derive(Clone, Debug, Default)]
pub struct Watch(BTreeMap<String, Seen>);

/// The least time that a rate is taken over, nanoseconds.
const RATE_NS: u64 = 200_000_000;

impl Watch {
    /// Forgets the services that are no longer there.
    pub fn keep(&mut self, services: &[Service]) {
        let names: std::collections::BTreeSet<&str> =
            services.iter().map(|s| s.name.as_str()).collect();
        self.0.retain(|name, _| names.contains(name.as_str()));
    }

    /// Whether a service is under attack, as far as was seen.
    pub fn is_attacked(&self, name: &str) -> bool {
        self.0.get(name).is_some_and(|seen| seen.attack.is_some())
    }

    /// Takes in a reading.
    pub fn take(&mut self, name: &str, reading: Reading, now_ns: u64) -> Option<Change> {
        let first = Seen {
            reading,
            read_ns: now_ns,
            syn_per_second: 0.0,
            attack: None,
        };
        let seen = self.0.entry(name.to_owned()).or_insert(first);
        let before = seen.reading;
        let passed = now_ns.saturating_sub(seen.read_ns);
        if passed >= RATE_NS {
            let syns = |r: &Reading| of(&r.counters, ServiceCounter::Syns);
            // Fewer than before: the table was made anew.
            let new = syns(&reading).saturating_sub(syns(&before));
            seen.syn_per_second = new as f64 * 1e9 / passed as f64;
            seen.read_ns = now_ns;
            seen.reading = reading;
        } else {
            let counters = before.counters;
            seen.reading = Reading {
                counters,
                ..reading
            };
        }
        let attacked = reading.attack_until > now_ns;
        match &mut seen.attack {
            None if attacked => {
                seen.attack = Some(Attack {
                    since_ns: reading.attack_since,
                    peak: seen.syn_per_second,
                    before: before.counters,
                });
                let syn_per_second = seen.syn_per_second;
                Some(Change::Began { syn_per_second })
            }
            Some(attack) if attacked => {
                attack.peak = attack.peak.max(seen.syn_per_second);
                None
            }
            Some(attack) => {
                let mut counters = reading.counters;
                for (now, then) in counters.iter_mut().zip(attack.before) {
                    *now = now.checked_sub(then).unwrap_or(*now);
                }
                let end = reading.attack_until;
                let summary = Summary {
                    lasted_ns: end.saturating_sub(attack.since_ns),
                    peak: attack.peak,
                    counters,
                };
                seen.attack = None;
                Some(Change::Ended(summary))
            }
            None => None,
        }
    }

    /// How a service is.
    pub fn status(&self, service: &Service, targets: ServiceTargets, now: Now) -> ServiceStatus {
        let seen = self.0.get(&service.name);
        let reading = seen.map(|s| s.reading).unwrap_or_default();
        let attack = seen.and_then(|s| s.attack.as_ref());
        let limit = service.incomplete.limit();
        let ahead = reading.pressure.saturating_sub(ticks(now.mono_ns));
        let since = attack.map(|a| {
            let age_ms = now.mono_ns.saturating_sub(a.since_ns) / 1_000_000;
            now.unix_ms.saturating_sub(age_ms)
        });
        let wants = match service.syn {
            When::Off => false,
            When::Auto => attack.is_some(),
            When::Always => true,
        };
        ServiceStatus {
            name: service.name.clone(),
            syn: service.syn.name().to_owned(),
            dry_run: service.dry_run,
            forwarded: service.forwarded,
            targets,
            under_attack: attack.is_some(),
            attack_since_unix_ms: since,
            defended: wants && !service.dry_run,
            pressure: ahead as f64 / limit.tolerance().max(1) as f64,
            syn_per_second: seen.map_or(0.0, |s| s.syn_per_second.round()),
            counters: ServiceCounter::ALL
                .iter()
                .map(|&c| (c.name().to_owned(), of(&reading.counters, c)))
                .collect(),
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
    fn an_attack_is_told_at_its_begin_and_its_end() {
        let mut watch = Watch::default();
        let mut at =
            |seconds: u64, syns, attack| watch.take("a", reading(syns, attack), seconds * SECOND);
        assert_eq!(at(1, 1000, None), None);
        assert_eq!(at(2, 2000, None), None);
        let on = Some((2 * SECOND + 5, 12 * SECOND));
        let began = Change::Began {
            syn_per_second: 98_000.0,
        };
        assert_eq!(at(3, 100_000, on), Some(began));
        assert_eq!(at(4, 400_000, on), None);
        assert_eq!(at(5, 401_000, on), None);
        let Some(Change::Ended(end)) = at(12, 402_000, on) else {
            panic!()
        };
        assert_eq!((end.peak, end.lasted_ns), (300_000.0, 10 * SECOND - 5));
        // From the last reading before it was noticed.
        assert_eq!(of(&end.counters, ServiceCounter::Syns), 400_000);
        assert_eq!(at(13, 402_000, on), None);
    }

    #[test]
    fn an_attack_that_is_on_when_the_daemon_starts_is_told() {
        let mut watch = Watch::default();
        let on = reading(7, Some((SECOND, 99 * SECOND)));
        let began = Change::Began {
            syn_per_second: 0.0,
        };
        assert_eq!(watch.take("a", on, 50 * SECOND), Some(began));
        assert!(watch.is_attacked("a"));
        watch.keep(&[]);
        assert!(!watch.is_attacked("a"));
    }

    #[test]
    fn the_status_says_what_is_being_done() {
        let of = |text: &str, attack: Option<(u64, u64)>| {
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
            watch.status(service, ServiceTargets::default(), now)
        };
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
