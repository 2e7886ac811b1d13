//! Services and the flood section.

use std::{collections::BTreeSet, net::IpAddr, ops::RangeInclusive};

use edge_common::{
    abi::{LimitKind, Mode},
    addr::Prefix,
    defence::{MAX_SERVICES, SEGMENT_SAMPLE, When},
};

use super::{balance, floods, is_host, limits::Amounts, number, targets};
use crate::config::{
    balance::Balancing,
    limits::Rate,
    model::Model,
    quantity::Seconds,
    raw,
    report::{At, Place, Report},
    services::{
        Addresses, Flood, HOST, MAX_NAME, MAX_SERVICE_TARGETS, MAX_VERIFIED_SOURCES, Ports,
        Protocol, Service,
    },
};

/// The longest that a source stays verified: its age is counted in 16 bits of 1.07 s.
const MAX_VERIFIED_TTL_S: u64 = 18 * 3600;
/// The longest that a defence outlasts an attack.
const MAX_HOLD_S: u64 = 3600;
/// The smallest window that keeps a handshake useful: one segment of the default size (RFC 9293).
const MIN_REPLY_WINDOW: u32 = 536;

/// Checks what all services share.
pub(super) fn flood(
    raw: Option<&raw::Flood>,
    tables: Option<&raw::Tables>,
    report: &mut Report<'_>,
) -> Flood {
    let default = Flood::default();
    let (no_flood, no_tables) = (raw::Flood::default(), raw::Tables::default());
    let (raw, tables) = (raw.unwrap_or(&no_flood), tables.unwrap_or(&no_tables));
    Flood {
        completed: number(raw.completed.as_ref(), default.completed, 1, 100, report),
        hold_s: span(raw.hold.as_ref(), default.hold_s, MAX_HOLD_S, report),
        sysctls: raw.sysctls.unwrap_or(default.sysctls),
        reply_ttl: number(raw.reply_ttl.as_ref(), default.reply_ttl, 1, 255, report),
        reply_window: number(
            raw.reply_window.as_ref(),
            default.reply_window,
            MIN_REPLY_WINDOW,
            65_535,
            report,
        ),
        verified_ttl_s: span(
            raw.verified_ttl.as_ref(),
            default.verified_ttl_s,
            MAX_VERIFIED_TTL_S,
            report,
        ),
        targets: number(
            tables.service_targets.as_ref(),
            default.targets,
            1,
            MAX_SERVICE_TARGETS,
            report,
        ),
        verified_sources: number(
            tables.verified_sources.as_ref(),
            default.verified_sources,
            8,
            MAX_VERIFIED_SOURCES,
            report,
        ),
    }
}

/// Seconds from 1 on.
fn span(at: Option<&At<Seconds>>, default: u64, max: u64, report: &mut Report<'_>) -> u64 {
    let Some(At { value, place }) = at else {
        return default;
    };
    if (1..=max).contains(&value.0) {
        return value.0;
    }
    report.problem(
        place,
        format_args!("out of range; choose a span from 1s to {max}s (default {default}s)"),
    );
    default
}

/// Checks the services.
pub(super) fn services(
    raw: &raw::Root,
    flood: &Flood,
    balancing: &Balancing,
    report: &mut Report<'_>,
    tick_ns: u64,
) -> Vec<Service> {
    let none = raw::Flood::default();
    let defaults = raw.flood.as_ref().unwrap_or(&none);
    let fallback = incomplete(defaults.incomplete.as_ref(), None, report, tick_ns);
    let list = raw.services.as_deref().unwrap_or(&[]);
    let shared = raw.balance.as_ref();
    let reflection = floods::reflection(raw.flood.as_ref(), report, tick_ns);
    // One for the ports of no service.
    let most = MAX_SERVICES as usize - 1;
    if let Some(first) = list.get(most) {
        report.problem_without_value(
            &first.place,
            format_args!("more than {most} services; let some share their thresholds"),
        );
        return Vec::new();
    }
    let mut names = BTreeSet::new();
    let mut services = Vec::new();
    for raw in list {
        let protocol = raw.protocol.as_ref().map_or(Protocol::Tcp, |p| p.value);
        let forward = balance::forward(raw, report);
        let who = match (forward, &raw.forwarded) {
            (Some(_), _) => Who::Backends,
            (None, Some(At { value: true, .. })) => Who::Others,
            (None, _) => Who::Host,
        };
        let name = name(raw, &mut names, report);
        let addresses = addresses(raw, who, report);
        let ports = ports(raw, who, report);
        let balance = match forward {
            Some(way) => balance::balance(raw, way, protocol, ports.as_ref(), report),
            None => {
                balance::refuse(raw, report);
                None
            }
        };
        let (Some(name), Some((addresses, prefixes)), Some(ports)) = (name, addresses, ports)
        else {
            continue;
        };
        if forward.is_some() && balance.is_none() {
            continue;
        }
        let syn = raw.syn.or(defaults.syn).unwrap_or(When::Auto);
        services.push((
            raw,
            Service {
                name,
                addresses,
                prefixes,
                ports,
                protocol,
                forwarded: who != Who::Host,
                echo: balance.is_some() && raw.echo.as_ref().is_some_and(|e| e.value),
                balance,
                syn: match protocol {
                    Protocol::Tcp => syn,
                    Protocol::Udp => When::Off,
                },
                dry_run: raw.dry_run.or(defaults.dry_run).unwrap_or(false),
                incomplete: incomplete(raw.incomplete.as_ref(), Some(fallback), report, tick_ns),
                reflection: (raw.reflection.as_ref())
                    .and_then(|raw| {
                        Amounts::of(raw).make(report, |rate, burst| {
                            Rate::new(LimitKind::Udp, rate, burst, tick_ns)
                        })
                    })
                    .or(reflection)
                    .unwrap_or(Rate::REFLECTION),
            },
        ));
    }
    targets::check(&services, flood.targets, report);
    balance::check(&services, shared, balancing, report);
    let dry_run = defaults.dry_run.unwrap_or(false);
    let rest = matches!(defaults.rest, Some(raw::Rest(When::Auto)));
    let rest = rest.then(|| Service::rest(dry_run, fallback));
    let services = services.into_iter().map(|(_, service)| service);
    services.chain(rest).collect()
}

/// Who answers for a service.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Who {
    /// This host.
    Host,
    /// Other hosts, by ways that are not known here.
    Others,
    /// Its backends.
    Backends,
}

/// A key that a service cannot do without.
fn missing(raw: &raw::Service, key: &str, what: &str, report: &mut Report<'_>) {
    let place = raw.place.child(key);
    if !report.has_problem_at(&place.key) {
        report.problem_without_value(&place, what);
    }
}

/// What is said of a name that is none.
pub(super) const NAME_REMEDY: &str = "no name; write 1 to 63 of a-z, 0-9, '.', '_' and '-'";

/// Whether a service or a backend can have a name.
pub(super) fn is_name(name: &str) -> bool {
    let plain = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b"._-".contains(&b);
    (1..=MAX_NAME).contains(&name.len()) && name.bytes().all(plain)
}

fn name(
    raw: &raw::Service,
    names: &mut BTreeSet<String>,
    report: &mut Report<'_>,
) -> Option<String> {
    let Some(At { value, place }) = &raw.name else {
        missing(
            raw,
            "name",
            "missing; give the service a name, such as name = \"web\"",
            report,
        );
        return None;
    };
    if !is_name(value) {
        report.problem(place, NAME_REMEDY);
        return None;
    }
    if value == HOST {
        report.problem(
            place,
            "the name for all ports of no service (flood.rest); choose another one",
        );
        return None;
    }
    if !names.insert(value.clone()) {
        report.problem(
            place,
            "the name of another service; give each one of its own",
        );
        return None;
    }
    Some(value.clone())
}

/// Single addresses and prefixes.
fn addresses(
    raw: &raw::Service,
    who: Who,
    report: &mut Report<'_>,
) -> Option<(Addresses, BTreeSet<Prefix>)> {
    let Some(At { value: list, place }) = &raw.addresses else {
        if who == Who::Host {
            return Some((Addresses::Local, BTreeSet::new()));
        }
        missing(
            raw,
            "addresses",
            "missing; a forwarded service needs its addresses, such as addresses = [\"203.0.113.7\"]",
            report,
        );
        return None;
    };
    if list.is_empty() {
        missing_in(
            place,
            "no address; name some, or leave the key out for all of this host",
            report,
        );
        return None;
    }
    let (mut local, mut right) = (None, true);
    let (mut listed, mut prefixes) = (BTreeSet::new(), BTreeSet::new());
    for At { value, place } in list {
        let repeated = match value {
            raw::ServiceAddress::Local => local.replace(place).is_some(),
            raw::ServiceAddress::Within(prefix) => {
                right &= (prefix.is_host() || check_prefix(*prefix, who, place, report))
                    && check_addresses(*prefix, place, report);
                match prefix.is_host() {
                    true => !listed.insert(prefix.addr()),
                    false => !prefixes.insert(*prefix),
                }
            }
        };
        if repeated {
            report.warn(place, "named twice");
        }
    }
    // In order, each before those that lie in it.
    let mut around: Option<Prefix> = None;
    prefixes.retain(|&prefix| {
        let within = around.filter(|a| a.contains(prefix));
        match within {
            Some(a) => report.warn_without_value(place, format_args!("{prefix} lies in {a}")),
            None => around = Some(prefix),
        }
        within.is_none()
    });
    match local {
        _ if !right => None,
        Some(place) if who != Who::Host => {
            report.problem(
                place,
                "a forwarded service is on other hosts; name its addresses",
            );
            None
        }
        Some(place) if !listed.is_empty() => {
            report.problem(
                place,
                "\"local\" has all addresses of this host already; write it alone, or leave it out",
            );
            None
        }
        Some(_) => Some((Addresses::Local, prefixes)),
        None => Some((Addresses::Listed(listed), prefixes)),
    }
}

/// Whether a service can have a prefix.
fn check_prefix(prefix: Prefix, who: Who, place: &Place, report: &mut Report<'_>) -> bool {
    if who == Who::Backends {
        return balance::check_prefix(prefix, place, report);
    }
    report.problem(
        place,
        "only balanced services (forward = \"ipip\", \"gue\", \"l2\" or \"nat\") can have prefixes; name single addresses",
    );
    false
}

/// Whether the first and the last address can be those of a service: of prefixes so long
/// that may be one, what lies between them can be as well.
fn check_addresses(prefix: Prefix, place: &Place, report: &mut Report<'_>) -> bool {
    let ends = [prefix.addr(), prefix.last().addr()];
    if !ends.into_iter().all(is_host) {
        report.problem(
            place,
            "no address at which packets of others arrive; name the one that clients connect to",
        );
        return false;
    }
    let is_link_local = |a| matches!(a, IpAddr::V6(a) if a.is_unicast_link_local());
    if ends.into_iter().any(is_link_local) {
        report.problem(
            place,
            "a link-local address, which may stand for another host on each link; leave it out",
        );
        return false;
    }
    true
}

fn missing_in(place: &Place, what: &str, report: &mut Report<'_>) {
    if !report.has_problem_at(&place.key) {
        report.problem_without_value(place, what);
    }
}

fn ports(raw: &raw::Service, who: Who, report: &mut Report<'_>) -> Option<Ports> {
    let Some(At { value, place }) = &raw.ports else {
        missing(
            raw,
            "ports",
            "missing; name them, such as ports = [443, \"8000-8010\"]",
            report,
        );
        return None;
    };
    let list = match value {
        raw::Ports::Any if who == Who::Backends => return Some(Ports::Any),
        raw::Ports::Any => {
            report.problem(
                place,
                "only for balanced services (forward = \"ipip\", \"gue\", \"l2\" or \"nat\"); name the ports",
            );
            return None;
        }
        raw::Ports::Listening if who != Who::Host => {
            report.problem(
                place,
                "who listens on another host is not known here; name the ports",
            );
            return None;
        }
        raw::Ports::Listening => {
            if let Some(protocol) = &raw.protocol
                && protocol.value == Protocol::Udp
            {
                report.problem(
                    place,
                    "UDP sockets do not tell who they listen to; name the ports",
                );
                return None;
            }
            return Some(Ports::Listening);
        }
        raw::Ports::Listed(list) => list,
    };
    let list = At {
        value: list,
        place: place.clone(),
    };
    let what = "no port; name some, such as [443, \"8000-8010\"]";
    sorted(&list, what, report).map(Ports::Listed)
}

/// Ports in order, each once; `None` after it has been reported that there is none.
pub(super) fn sorted(
    At { value: list, place }: &At<impl AsRef<[At<raw::PortRange>]>>,
    none: &str,
    report: &mut Report<'_>,
) -> Option<Vec<RangeInclusive<u16>>> {
    if list.as_ref().is_empty() {
        missing_in(place, none, report);
        return None;
    }
    let mut sorted: Vec<_> = list.as_ref().iter().collect();
    sorted.sort_by_key(|at| *at.value.0.start());
    let mut ranges: Vec<RangeInclusive<u16>> = Vec::new();
    for At { value, place } in sorted {
        match ranges.last_mut() {
            Some(last) if value.0.start() <= last.end() => {
                report.warn(place, "named twice");
                *last = *last.start()..=*last.end().max(value.0.end());
            }
            _ => ranges.push(value.0.clone()),
        }
    }
    Some(ranges)
}

/// Incomplete handshakes; without a rate that of `[flood]`, or the default.
fn incomplete(
    raw: Option<&raw::PacketRate>,
    fallback: Option<Rate>,
    report: &mut Report<'_>,
    tick_ns: u64,
) -> Rate {
    // Without a burst what a crowd adds in two seconds.
    let given = raw.and_then(|raw| {
        Amounts::of(raw).make(report, |rate, burst| {
            Rate::sampled(rate, burst, (SEGMENT_SAMPLE, 2), tick_ns)
        })
    });
    given.or(fallback).unwrap_or(Rate::INCOMPLETE)
}

/// The port whose connections are commonly signed (RFC 4271, RFC 2385, RFC 5925).
const BGP: u16 = 179;

/// Warns of what has no effect, and of what stands in the way of the defence.
pub(super) fn check_effect(model: &Model, raw: &raw::Root, report: &mut Report<'_>) {
    let mut services = model.services.iter();
    let defended = services.any(|s| s.syn != When::Off && s.ports != Ports::Rest);
    if defended && model.limits.mode(LimitKind::Syn) == Mode::Enforce {
        let place = raw
            .limits
            .as_ref()
            .and_then(|l| l.syn.as_ref())
            .map_or_else(Place::default, |s| s.place.clone());
        report.warn_without_value(
            &place,
            "comes before the defence of services: clients that share an address are held to it also when there is no attack, and spoofed sources never reach it; leave it out unless single sources are to be slowed down",
        );
    }
    let all = raw.services.iter().flatten().zip(&model.services);
    for (raw, service) in all.filter(|(_, s)| s.syn != When::Off) {
        if let Ports::Listed(ranges) = &service.ports
            && ranges.iter().any(|range| range.contains(&BGP))
        {
            report.warn_without_value(
                &raw.place,
                format_args!(
                    "has port {BGP}, that of BGP: peers that sign their segments (TCP-MD5, TCP-AO) take no answer of this program and are cut off in an attack; leave the port out"
                ),
            );
        }
    }
    if model.services.is_empty()
        && let Some(flood) = &raw.flood
        && flood.icmp.is_none()
        && flood.reflection.is_none()
        && flood.prefixes.is_none()
    {
        report.warn_without_value(&flood.place, "without effect, for there is no [[service]]");
    }
}
