//! The section of what all balanced services share.

use std::{
    collections::{BTreeMap, BTreeSet, btree_map::Entry},
    net::{IpAddr, Ipv6Addr},
    path::PathBuf,
    time::Duration,
};

use edge_common::addr::Prefix;

use super::{MAX_PATH, check_interface, check_mac, check_unicast, number, path, span};
use crate::config::{
    balance::{
        Balancing, FLOWS, MAX_SERVICE_BACKENDS, MAX_SNAT, MIN_TUNNEL_SOURCE, NextHop, SLOTS,
    },
    raw,
    report::{At, Place, Report},
};

const TCP_IDLE: (Duration, Duration) = (Duration::from_secs(10), Duration::from_secs(24 * 3600));
const UDP_IDLE: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(3600));
/// What the message about a wrong path of the seed shows.
const SEED_FILE: &str = "/etc/edge/fleet.seed";

/// Checks the section by itself.
pub(super) fn balancing(raw: Option<&raw::Balance>, report: &mut Report<'_>) -> Balancing {
    let default = Balancing::default();
    let Some(raw) = raw else {
        return default;
    };
    let (v4, v6) = tunnel_sources(raw, report);
    Balancing {
        flows: number(raw.flows.as_ref(), default.flows, FLOWS.0, FLOWS.1, report),
        tcp_idle: span(raw.tcp_idle.as_ref(), default.tcp_idle, TCP_IDLE, report),
        udp_idle: span(raw.udp_idle.as_ref(), default.udp_idle, UDP_IDLE, report),
        slots: slots(raw, default.slots, report),
        seed_file: seed_file(raw, report),
        snat: addresses(raw.snat.as_ref(), MAX_SNAT, report)
            .into_keys()
            .collect(),
        tunnel_source_v4: v4,
        tunnel_source_v6: v6,
        fragments: raw.fragments.unwrap_or_default(),
        mss_clamp: raw.mss_clamp.unwrap_or(default.mss_clamp),
        next_hops: next_hops(raw, report),
    }
}

/// Outer sources of both families.
fn tunnel_sources(
    raw: &raw::Balance,
    report: &mut Report<'_>,
) -> (Option<Prefix>, Option<Ipv6Addr>) {
    let prefixes = raw.tunnel_source.as_ref();
    let first = |at: &At<Prefix>| At {
        value: at.value.addr(),
        place: at.place.clone(),
    };
    let list = prefixes.map(|list| At {
        value: list.value.iter().map(first).collect(),
        place: list.place.clone(),
    });
    let (mut v4, mut v6) = (None, None);
    for (address, place) in addresses(list.as_ref(), 2, report) {
        let mut all = prefixes.into_iter().flat_map(|list| &list.value);
        let Some(prefix) = all.find(|at| at.place.key == place.key).map(|at| at.value) else {
            continue;
        };
        let twice = match address {
            IpAddr::V4(_) => v4.replace(prefix).is_some(),
            IpAddr::V6(a) => v6.replace(a).is_some(),
        };
        if twice {
            report.problem(
                place,
                "the second of its family; name one at most of each, for backends know tunnels by their source",
            );
        } else if address.is_ipv6() && !prefix.is_host() {
            report.problem(
                place,
                "a prefix; in IPv6 the flow label spreads flows, so name one address",
            );
        } else if address.is_ipv4() && prefix.len() < MIN_TUNNEL_SOURCE {
            report.problem(
                place,
                format_args!("more sources than flows can be spread over; name a prefix of /{MIN_TUNNEL_SOURCE} to /32"),
            );
        }
    }
    (v4, v6)
}

fn seed_file(raw: &raw::Balance, report: &mut Report<'_>) -> Option<PathBuf> {
    let at = raw.seed_file.as_ref()?;
    Some(path(Some(at), SEED_FILE, MAX_PATH, report))
}

/// Slots of a ring. A prime, so that every step through it comes by all of them (Eisenbud
/// et al., "Maglev", 2016, 3.4).
fn slots(raw: &raw::Balance, default: u32, report: &mut Report<'_>) -> u32 {
    let Some(At { value, place }) = &raw.slots else {
        return default;
    };
    // Both are primes.
    let (min, max) = SLOTS;
    let slots = u32::try_from(value.0).unwrap_or(u32::MAX);
    if (min..=max).contains(&slots) && is_prime(slots) {
        return slots;
    }
    let nearest = slots.clamp(min, max);
    let below = (min..=nearest).rev().find(|&n| is_prime(n)).unwrap_or(min);
    let above = (nearest..=max).find(|&n| is_prime(n)).unwrap_or(max);
    let choice = match below == above {
        true => below.to_string(),
        false => format!("{below} or {above}"),
    };
    report.problem(
        place,
        format_args!(
            "not a prime from {min} to {max}, which backends need for even shares; choose {choice} (default {default}: up to {MAX_SERVICE_BACKENDS} backends a service)"
        ),
    );
    default
}

fn is_prime(n: u32) -> bool {
    n >= 2
        && (2..)
            .take_while(|d| d * d <= n)
            .all(|d| !n.is_multiple_of(d))
}

/// Addresses of this host, each once, with where they stand; what cannot be is reported.
fn addresses<'a>(
    list: Option<&'a At<Vec<At<IpAddr>>>>,
    most: usize,
    report: &mut Report<'_>,
) -> BTreeMap<IpAddr, &'a Place> {
    let mut found = BTreeMap::new();
    if let Some(At { value: list, place }) = list {
        if list.is_empty() && !report.has_problem_at(&place.key) {
            report.problem_without_value(
                place,
                "no address; name one of this host, or remove the key",
            );
        }
        if list.len() > most {
            report.problem_without_value(
                place,
                format_args!("{} addresses; at most {most} are possible", list.len()),
            );
        }
        for at in list.iter().take(most) {
            check_unicast(
                at.value,
                &at.place,
                "name an address of this host that backends can answer to",
                report,
            );
            if found.insert(at.value, &at.place).is_some() {
                report.warn(&at.place, "named twice");
            }
        }
    }
    found
}

fn next_hops(raw: &raw::Balance, report: &mut Report<'_>) -> BTreeMap<IpAddr, NextHop> {
    let mut hops = BTreeMap::new();
    for raw in raw.next_hops.iter().flatten() {
        let (Some(backend), Some(interface), Some(mac)) = (&raw.backend, &raw.interface, &raw.mac)
        else {
            for (key, is_there) in [
                ("backend", raw.backend.is_some()),
                ("interface", raw.interface.is_some()),
                ("mac", raw.mac.is_some()),
            ] {
                let place = raw.place.child(key);
                if !is_there && !report.has_problem_at(&place.key) {
                    report.problem_without_value(
                        &place,
                        "missing; a next hop needs backend, interface and mac",
                    );
                }
            }
            continue;
        };
        check_interface(interface, report);
        check_mac(mac, report);
        match hops.entry(backend.value) {
            Entry::Vacant(entry) => {
                entry.insert(NextHop {
                    interface: interface.value.clone(),
                    mac: mac.value.0,
                });
            }
            Entry::Occupied(_) => report.problem(
                &backend.place,
                "has a next hop already; a backend has one, remove one of them",
            ),
        }
    }
    hops
}

/// Warns of what has no effect, with the ways of forwarding and the addresses of backends
/// that there are.
pub(super) fn check_effect(
    raw: &raw::Balance,
    has: Used,
    backends: &BTreeSet<IpAddr>,
    report: &mut Report<'_>,
) {
    if backends.is_empty() {
        report.warn_without_value(
            &raw.place,
            "without effect, for there is no [[service]] with forward",
        );
        return;
    }
    if let Some(snat) = raw.snat.as_ref().filter(|_| !has.nat) {
        report.warn_without_value(
            &snat.place,
            "without effect, for there is no service with forward = \"nat\"",
        );
    }
    if let Some(source) = raw.tunnel_source.as_ref().filter(|_| !has.tunnel) {
        report.warn_without_value(
            &source.place,
            "without effect, for there is no service with forward = \"ipip\" or \"gue\"",
        );
    }
    for hop in raw.next_hops.iter().flatten() {
        if let Some(at) = hop
            .backend
            .as_ref()
            .filter(|b| !backends.contains(&b.value))
        {
            report.warn(
                &at.place,
                "without effect, for no service has such a backend",
            );
        }
    }
}

/// Which ways of forwarding there are.
#[derive(Clone, Copy, Default)]
pub(super) struct Used {
    /// [`crate::config::balance::Forward::Nat`].
    pub(super) nat: bool,
    /// Those with an outer header.
    pub(super) tunnel: bool,
}
