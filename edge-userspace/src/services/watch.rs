//! What the program says of each service, and of the host as a whole, over time: rates,
//! and whether it is under attack.
//!
//! Floods of TCP segments are found by the program. The others it only limits and counts:
//! they are found here, by how much is over the limit.

use std::collections::BTreeMap;

use edge_common::{
    defence::{SERVICE_COUNTERS, ServiceCounter, When},
    gcra::ticks,
    reason::Reason,
};

use crate::{
    clock::Now,
    config::services::{Protocol, Service},
    status::{ServiceStatus, ServiceTargets, attack::Found},
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
    /// As they stand now.
    pub counters: Counters,
}

impl Reading {
    /// What was counted of the host, for each of [`HOST_REASONS`]: the program says nothing
    /// else of it.
    pub fn of_host(packets: [u64; HOST_REASONS.len()]) -> Self {
        let mut reading = Self::default();
        let behind = reading.counters.iter_mut().skip(SERVICE_COUNTERS);
        for (counter, n) in behind.zip(packets) {
            *counter = n;
        }
        reading
    }
}

/// The reasons that floods of the host are counted by, dropped or in dry run.
pub const HOST_REASONS: [Reason; 3] = [Reason::FloodIcmp, Reason::FloodSource, Reason::FloodDest];

/// What is counted: so many of a service, and behind them those of the host.
const COUNTED: usize = SERVICE_COUNTERS + HOST_REASONS.len();

/// By [`ServiceCounter`], then by [`HOST_REASONS`].
pub type Counters = [u64; COUNTED];

/// A second, likewise.
pub type Rates = [f64; COUNTED];

/// What a reading says, beside the one before.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Step {
    /// The reading.
    pub reading: Reading,
    /// The counters of the reading before; of this one when it is the first.
    pub before: Counters,
    /// How much is counted a second, taken over [`RATE_NS`] at least.
    pub per_second: Rates,
    /// Whether the service, or the host, is under attack.
    pub attacked: bool,
}

/// What is followed.
#[derive(Clone, Copy, Debug)]
pub struct Followed<'a> {
    /// The service; [`crate::config::services::HOST`] for the host as a whole.
    pub name: &'a str,
    /// What an attack is found by.
    pub found: Found,
    /// How long an attack goes on after there is little over the limit, where the program
    /// does not say; nanoseconds.
    pub hold_ns: u64,
    /// From when until when an attack lasts at least that another daemon followed a moment
    /// ago; only asked for what was not followed yet.
    pub inherited: Option<(u64, u64)>,
}

#[derive(Clone, Debug)]
struct Seen {
    reading: Reading,
    read_ns: u64,
    /// By what a flood is found: when it was judged last, and what was over the limit then.
    judged: (u64, u64),
    per_second: Rates,
    attacked: bool,
}

/// Follows all services and the host.
#[derive(Clone, Debug, Default)]
pub struct Watch(BTreeMap<Found, BTreeMap<String, Seen>>);

/// The least time that a rate is taken over, nanoseconds.
pub const RATE_NS: u64 = 200_000_000;

/// Packets a second over a limit that make an attack: fewer are a crowd at the limit.
const FLOOD_PER_SECOND: f64 = 100.0;

/// The least time that this is taken over, nanoseconds: fewer packets at once are no flood.
const JUDGED_NS: u64 = 1_000_000_000;

/// An attack that another daemon followed has so long to show itself, nanoseconds.
const SHOWN_NS: u64 = 3 * JUDGED_NS;

/// What an attack on a service is found by.
pub const fn found_by(service: &Service) -> Found {
    match service.protocol {
        Protocol::Tcp => Found::Segments,
        Protocol::Udp => Found::Reflection,
    }
}

impl Watch {
    /// Forgets what is no longer there.
    pub fn keep(&mut self, is_there: impl Fn(&str, Found) -> bool) {
        for (&found, seen) in &mut self.0 {
            seen.retain(|name, _| is_there(name, found));
        }
    }

    /// Whether a service, or the host, is under attack, as far as was seen.
    pub fn is_attacked(&self, name: &str, found: Found) -> bool {
        self.seen(name, found).is_some_and(|seen| seen.attacked)
    }

    /// What was counted when it was followed last; `None` for what was not followed yet.
    pub fn counters(&self, name: &str, found: Found) -> Option<Counters> {
        self.seen(name, found).map(|seen| seen.reading.counters)
    }

    fn seen(&self, name: &str, found: Found) -> Option<&Seen> {
        self.0.get(&found)?.get(name)
    }

    /// Takes in a reading.
    pub fn take(&mut self, of: Followed<'_>, reading: Reading, now_ns: u64) -> Step {
        let (attack_since, until) = of.inherited.unwrap_or_default();
        let first = Seen {
            // By these a flood goes on that is found here.
            reading: Reading {
                attack_since,
                attack_until: match of.inherited {
                    Some(_) => until.max(now_ns.saturating_add(SHOWN_NS)),
                    None => 0,
                },
                ..reading
            },
            read_ns: now_ns,
            judged: (now_ns, over(of.found, &reading.counters)),
            per_second: [0.0; COUNTED],
            attacked: false,
        };
        let seen = self.0.entry(of.found).or_default();
        let seen = seen.entry(of.name.to_owned()).or_insert(first);
        let before = seen.reading.counters;
        let passed = now_ns.saturating_sub(seen.read_ns);
        if passed >= RATE_NS {
            let both = reading.counters.iter().zip(before);
            for (rate, (now, then)) in seen.per_second.iter_mut().zip(both) {
                // Fewer than before: the table was made anew.
                let new = now.saturating_sub(then);
                *rate = new as f64 * 1e9 / passed as f64;
            }
        }
        let reading = match of.found {
            Found::Segments => reading,
            found => Reading {
                attack_since: seen.reading.attack_since,
                attack_until: seen.reading.attack_until,
                ..reading
            }
            .judged(
                &mut seen.judged,
                over(found, &reading.counters),
                now_ns,
                of.hold_ns,
            ),
        };
        if passed >= RATE_NS {
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
        let seen = self.seen(&service.name, found_by(service));
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

impl Reading {
    /// With so much over the limit in all. Once a second it is judged, by what was `last`: with
    /// more than a crowd makes, an attack is on until `hold_ns` from now, since then if none was.
    fn judged(self, last: &mut (u64, u64), over: u64, now_ns: u64, hold_ns: u64) -> Self {
        let (from_ns, before) = *last;
        let passed = now_ns.saturating_sub(from_ns);
        if passed < JUDGED_NS {
            return self;
        }
        *last = (now_ns, over);
        // Fewer than before: a table was made anew, or an interface left.
        let more = over.saturating_sub(before) as f64;
        if more * 1e9 / (passed as f64) < FLOOD_PER_SECOND {
            return self;
        }
        let goes_on = self.attack_until > from_ns;
        Self {
            attack_since: if goes_on { self.attack_since } else { from_ns },
            attack_until: now_ns.saturating_add(hold_ns),
            ..self
        }
    }
}

/// What is over the limits that attacks are found by.
fn over(found: Found, counters: &Counters) -> u64 {
    match found {
        Found::Segments => 0,
        Found::Reflection => of(counters, ServiceCounter::Reflected),
        Found::Icmp => of_host(counters, Reason::FloodIcmp),
        Found::Prefixes => of_host(counters, Reason::FloodSource)
            .saturating_add(of_host(counters, Reason::FloodDest)),
    }
}

/// Where a reason stands among the counters.
pub(super) fn host_place(reason: Reason) -> Option<usize> {
    let at = HOST_REASONS.iter().position(|&r| r == reason)?;
    Some(SERVICE_COUNTERS + at)
}

/// One of the host's counters.
pub fn of_host(counters: &Counters, reason: Reason) -> u64 {
    let place = host_place(reason);
    place
        .and_then(|at| counters.get(at))
        .copied()
        .unwrap_or_default()
}

/// One of the counters.
pub fn of(counters: &[u64], which: ServiceCounter) -> u64 {
    counters.get(which as usize).copied().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::test::model_of;

    const SECOND: u64 = 1_000_000_000;

    fn followed(name: &str) -> Followed<'_> {
        Followed {
            name,
            found: Found::Segments,
            hold_ns: 10 * SECOND,
            inherited: None,
        }
    }

    fn reading(syns: u64, attack: Option<(u64, u64)>) -> Reading {
        let (attack_since, attack_until) = attack.unwrap_or_default();
        let mut counters = [0; COUNTED];
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
        let mut at = |ns, syns, attack| watch.take(followed("a"), reading(syns, attack), ns);
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
        assert!(watch.take(followed("a"), on, 50 * SECOND).attacked);
        assert!(watch.is_attacked("a", Found::Segments));
        assert!(!watch.is_attacked("a", Found::Reflection));
        watch.keep(|name, _| name == "a");
        assert!(watch.is_attacked("a", Found::Segments));
        watch.keep(|_, found| found == Found::Reflection);
        assert!(!watch.is_attacked("a", Found::Segments));
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
            watch.take(followed("a"), r, 10 * SECOND);
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
        watch.take(followed("a"), reading(1_000_000, None), SECOND);
        watch.take(followed("a"), reading(5, None), 2 * SECOND);
        let model = model_of("[[service]]\nname = 'a'\nports = [1]");
        let now = Now {
            mono_ns: 2 * SECOND,
            boot_ns: 2 * SECOND,
            unix_ms: 0,
        };
        let status = watch.status(&model.services[0], ServiceTargets::default(), now);
        assert_eq!(status.syn_per_second, 0.0);
    }

    /// Looks at packets of the host over a limit of ICMP, prefixes and destinations.
    fn look(watch: &mut Watch, found: Found, at_s: u64, packets: [u64; 3]) -> Step {
        let of = Followed {
            found,
            ..followed("host")
        };
        watch.take(of, Reading::of_host(packets), at_s * SECOND)
    }

    #[test]
    fn a_flood_of_the_host_is_found_by_what_is_over_the_limit() {
        let mut watch = Watch::default();
        // What was counted before says nothing of now.
        let mut icmp = |at_s, n| look(&mut watch, Found::Icmp, at_s, [n, 7, 7]);
        assert!(!icmp(10, 1_000_000).attacked);
        // A crowd at the limit.
        assert!(!icmp(11, 1_000_099).attacked);
        let step = icmp(12, 1_000_199);
        assert!(step.attacked);
        let span = |step: &Step| (step.reading.attack_since, step.reading.attack_until);
        assert_eq!(span(&step), (11 * SECOND, 22 * SECOND));
        // It goes on, with a lull that is shorter than the hold.
        assert_eq!(span(&icmp(13, 1_000_199)), (11 * SECOND, 22 * SECOND));
        let step = icmp(20, 1_007_000);
        assert_eq!(span(&step), (11 * SECOND, 30 * SECOND));
        assert!(icmp(29, 1_007_001).attacked);
        assert!(!icmp(30, 1_007_001).attacked);
        // The next one is another one, since the look before it was noticed.
        let step = icmp(40, 1_010_000);
        assert_eq!(span(&step), (30 * SECOND, 50 * SECOND));
        // A table that was made anew is no flood.
        assert_eq!(span(&icmp(41, 0)), (30 * SECOND, 50 * SECOND));
        assert!(!watch.is_attacked("host", Found::Prefixes));
    }

    #[test]
    fn sources_and_destinations_are_found_together_and_apart_from_the_rest() {
        let mut watch = Watch::default();
        for found in [Found::Prefixes, Found::Icmp] {
            look(&mut watch, found, 1, [0; 3]);
            let step = look(&mut watch, found, 2, [0, 60, 40]);
            assert_eq!(step.attacked, found == Found::Prefixes);
        }
        // Too early to be judged: nothing is found, and nothing is lost of the next.
        let mut watch = Watch::default();
        let of = Followed {
            found: Found::Prefixes,
            ..followed("host")
        };
        let mut at = |ns, n| watch.take(of, Reading::of_host([0, n, 0]), ns);
        at(SECOND, 0);
        assert!(!at(SECOND + RATE_NS, 1000).attacked);
        assert!(at(2 * SECOND, 1000).attacked);
        // A few at once, now and then, are no flood, though one is on: it ends.
        let mut n = 1000;
        for quarter in 9..52 {
            n += if quarter % 8 == 0 { 60 } else { 0 };
            let step = at(quarter * SECOND / 4, n);
            assert_eq!(step.attacked, quarter < 48, "{quarter}");
        }
    }

    #[test]
    fn reflection_is_found_by_what_the_service_counts() {
        let mut watch = Watch::default();
        let of = Followed {
            found: Found::Reflection,
            ..followed("game")
        };
        let mut at = |s, n| {
            let mut reading = Reading::default();
            reading.counters[ServiceCounter::Reflected as usize] = n;
            watch.take(of, reading, s * SECOND)
        };
        at(1, 50);
        assert!(at(2, 250).attacked);
        let model = model_of("[[service]]\nname = 'game'\nports = [1]\nprotocol = 'udp'");
        let now = Now {
            mono_ns: 2 * SECOND,
            boot_ns: 2 * SECOND,
            unix_ms: 1_000_000,
        };
        let ready = ServiceTargets { total: 2, ready: 2 };
        let status = watch.status(&model.services[0], ready, now);
        assert_eq!(status.attack_since_unix_ms, Some(999_000));
        // No SYNs are answered.
        assert!(status.under_attack && !status.defended);
    }

    #[test]
    fn a_flood_that_another_daemon_followed_goes_on_if_it_shows_itself() {
        let of = |until: u64| Followed {
            found: Found::Icmp,
            inherited: Some((3 * SECOND, until * SECOND)),
            ..followed("host")
        };
        for until in [18, 40] {
            let mut watch = Watch::default();
            let mut at = |s, n| watch.take(of(until), Reading::of_host([n, 0, 0]), s * SECOND);
            let step = at(20, 9);
            assert!(step.attacked);
            assert_eq!(step.reading.attack_since, 3 * SECOND);
            assert!(at(22, 10).attacked);
            // Not a whole hold more without a packet.
            let end = until.max(23);
            assert!(at(end - 1, 10).attacked);
            assert!(!at(end, 10).attacked);
        }
        let mut watch = Watch::default();
        let mut at = |s, n| watch.take(of(18), Reading::of_host([n, 0, 0]), s * SECOND);
        at(20, 0);
        let step = at(21, 500);
        assert_eq!(step.reading.attack_since, 3 * SECOND);
        assert_eq!(step.reading.attack_until, 31 * SECOND);
    }
}
