//! Which clients offend so often that the firewall should drop what they send.
//!
//! Offences are what no honest client does again and again: malformed requests, heads that come a
//! byte at a time, floods of resets. They are counted by source, an IPv4 address or an IPv6 /64.

use std::{
    collections::HashMap,
    net::{IpAddr, Ipv6Addr},
};

use edge_common::addr::{Family, Prefix};

use super::{head::Reject, refusal::Refusal};

/// Sources that are counted at one time. Beyond them those are forgotten whose offences are
/// longest ago.
const SOURCES: usize = 16_384;

/// How many offences are too many.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rule {
    /// So many in the window are borne, and the next one is too much.
    pub offences: u32,
    /// Nanoseconds.
    pub window: u64,
}

/// Whether a refusal is an offence. What a mistaken but honest client does now and then is none:
/// wrong hosts, bodies that are too large, paths that lead nowhere.
pub const fn is_offence(refusal: Refusal) -> bool {
    match refusal {
        Refusal::Malformed(reject) => !matches!(
            reject,
            Reject::BodyTooLarge
                | Reject::TargetTooLong
                | Reject::HeadTooLarge
                | Reject::FieldsTooMany
                | Reject::Expectation
                | Reject::MethodTooLong
                | Reject::VersionUnsupported
        ),
        Refusal::HeadTimeout
        | Refusal::BodyTimeout
        | Refusal::BodyRate
        | Refusal::H2Malformed
        | Refusal::H2Resets
        | Refusal::H2MadeResets
        | Refusal::H2Heads
        | Refusal::H2Continuations
        | Refusal::H2Hpack
        | Refusal::H2Flood
        | Refusal::H2Protocol => true,
        _ => false,
    }
}

/// The prefix that a source is counted and banned by.
pub fn prefix(source: IpAddr) -> Prefix {
    let host = Prefix::host(source.to_canonical());
    match (host.family(), source) {
        (Family::V6, IpAddr::V6(address)) => {
            let [a, b, c, d, ..] = address.segments();
            let network = Ipv6Addr::from([a, b, c, d, 0, 0, 0, 0]);
            Prefix::new(network.into(), 64).unwrap_or(host)
        }
        _ => host,
    }
}

/// The offences of all sources.
#[derive(Debug, Default)]
pub struct Offences {
    /// By source, the theoretical arrival time (ITU-T I.371, GCRA), nanoseconds: each offence
    /// moves it by its share of the window.
    sources: HashMap<Prefix, u64>,
}

impl Offences {
    /// Notes an offence; whether it is one too many. So is the next one of the source then, until it
    /// is forgotten.
    pub fn note(&mut self, rule: Rule, source: Prefix, now: u64) -> bool {
        if self.sources.len() >= SOURCES && !self.sources.contains_key(&source) {
            self.make_room(now);
        }
        let arrival = self.sources.entry(source).or_default();
        let share = rule.window / u64::from(rule.offences.max(1));
        let next = (*arrival).max(now).saturating_add(share);
        let is_too_much = next - now > rule.window;
        if !is_too_much {
            *arrival = next;
        }
        is_too_much
    }

    /// A source begins anew: something was done about it.
    pub fn forget(&mut self, source: Prefix) {
        self.sources.remove(&source);
    }

    /// Forgets those that are at rest, or else the older half.
    fn make_room(&mut self, now: u64) {
        self.sources.retain(|_, arrival| *arrival > now);
        if self.sources.len() < SOURCES {
            return;
        }
        let mut arrivals: Vec<u64> = self.sources.values().copied().collect();
        let middle = arrivals.len() / 2;
        let (_, middle, _) = arrivals.select_nth_unstable(middle);
        let middle = *middle;
        self.sources.retain(|_, arrival| *arrival > middle);
        // All may be equal.
        if self.sources.len() >= SOURCES {
            self.sources.clear();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: u64 = 1_000_000_000;
    const RULE: Rule = Rule {
        offences: 10,
        window: 10 * SECOND,
    };

    fn source(n: u32) -> Prefix {
        prefix(IpAddr::from(n.to_be_bytes()))
    }

    #[test]
    fn one_more_than_are_borne_is_too_much() {
        let mut offences = Offences::default();
        for _ in 0..10 {
            assert!(!offences.note(RULE, source(1), 5 * SECOND));
            assert!(!offences.note(RULE, source(2), 5 * SECOND));
        }
        assert!(offences.note(RULE, source(1), 5 * SECOND));
        // Until something is done about it.
        assert!(offences.note(RULE, source(1), 5 * SECOND));
        offences.forget(source(1));
        // It begins anew: whoever comes back after its ban is not banned for the first mistake.
        assert!(!offences.note(RULE, source(1), 5 * SECOND));
    }

    #[test]
    fn now_and_then_is_borne_for_ever() {
        let mut offences = Offences::default();
        for n in 0..1000 {
            assert!(!offences.note(RULE, source(1), n * SECOND));
        }
        let mut offences = Offences::default();
        let banned = (0..1000).any(|n| offences.note(RULE, source(1), n * SECOND * 9 / 10));
        assert!(banned);
    }

    #[test]
    fn a_source_of_ipv6_is_its_network() {
        let address = |text: &str| text.parse::<IpAddr>().expect("an address");
        assert_eq!(
            prefix(address("2001:db8::1")),
            prefix(address("2001:db8::2"))
        );
        assert_ne!(
            prefix(address("2001:db8:0:1::1")),
            prefix(address("2001:db8::1"))
        );
        assert_eq!(
            prefix(address("::ffff:192.0.2.1")),
            prefix(address("192.0.2.1"))
        );
    }

    #[test]
    fn any_number_of_sources_takes_bounded_room() {
        let mut offences = Offences::default();
        for n in 0..100_000 {
            offences.note(RULE, source(n), u64::from(n));
            assert!(offences.sources.len() <= SOURCES);
        }
        // Those of long ago go first.
        let mut offences = Offences::default();
        for n in 0..SOURCES as u32 {
            offences.note(RULE, source(n), 0);
        }
        offences.note(RULE, source(u32::MAX), 100 * SECOND);
        assert_eq!(offences.sources.len(), 1);
    }

    #[test]
    fn mistakes_of_honest_clients_are_no_offences() {
        assert!(is_offence(Refusal::Malformed(Reject::ObsFold)));
        assert!(is_offence(Refusal::HeadTimeout));
        assert!(is_offence(Refusal::H2Resets));
        assert!(!is_offence(Refusal::Malformed(Reject::BodyTooLarge)));
        assert!(!is_offence(Refusal::NoRoute));
        // A network behind one address, a line that is slow, a client that has not read yet how many
        // streams it may open.
        assert!(!is_offence(Refusal::SourceConnections));
        assert!(!is_offence(Refusal::TlsTimeout));
        assert!(!is_offence(Refusal::H2Streams));
    }
}
