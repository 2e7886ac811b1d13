//! Balanced services, each by itself and all together.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    time::Duration,
};

use edge_common::{
    addr::{Family, Prefix},
    quic::MAX_CONFIG,
};

use super::{
    backends,
    balancing::{self, Used},
    health, number, span,
};
use crate::config::{
    balance::{Backend, Balance, Balancing, FLOOR_PER_CENT, Forward, HashBy, MIN_PREFIX},
    raw::{self, Forwarding},
    report::{At, Place, Report},
    services::{Addresses, Ports, Protocol, Service},
};

/// How many slots a backend wants, to get its share to a per cent.
const SLOTS_EACH: usize = 100;

/// How long a weight may rise.
const SLOW_START: (Duration, Duration) = (Duration::ZERO, Duration::from_secs(3600));

/// How packets reach the backends; `None`: the service is not balanced.
pub(super) fn forward(raw: &raw::Service, report: &mut Report<'_>) -> Option<Forward> {
    let forwarded = raw.forwarded.as_ref();
    match raw.forward.as_ref()?.value {
        Forwarding::Local => {
            if let Some(at) = forwarded.filter(|f| f.value) {
                report.problem(
                    &at.place,
                    "forward = \"local\" says that this host answers; remove one of them",
                );
            }
            None
        }
        Forwarding::Balanced(forward) => {
            if let Some(at) = forwarded.filter(|f| !f.value) {
                report.problem(
                    &at.place,
                    "a balanced service is forwarded; remove this key, or forward",
                );
            }
            Some(forward)
        }
    }
}

/// Refuses what only a balanced service has.
pub(super) fn refuse(raw: &raw::Service, report: &mut Report<'_>) {
    // What it says cannot be read.
    if report.has_problem_at(&raw.place.child("forward").key) {
        return;
    }
    let backend = raw.backends.as_ref().map(|backends| match &backends[..] {
        [first, ..] => first.place.clone(),
        [] => raw.place.child("backend"),
    });
    let given = [
        raw.hash.as_ref().map(|at| at.place.clone()),
        raw.quic_config_id.as_ref().map(|at| at.place.clone()),
        raw.floor.as_ref().map(|at| at.place.clone()),
        raw.slow_start.as_ref().map(|at| at.place.clone()),
        raw.echo.as_ref().map(|at| at.place.clone()),
        raw.health.as_ref().map(|section| section.place.clone()),
        backend,
    ];
    for place in given.into_iter().flatten() {
        report.problem_without_value(
            &place,
            "only for a balanced service; add forward = \"ipip\", \"gue\", \"l2\" or \"nat\" to it, or remove this",
        );
    }
}

/// Checks how a service is balanced; `None` after a problem has been reported.
pub(super) fn balance(
    raw: &raw::Service,
    forward: Forward,
    protocol: Protocol,
    ports: Option<&Ports>,
    report: &mut Report<'_>,
) -> Option<Balance> {
    let hash = raw.hash.as_ref().map_or(HashBy::default(), |h| h.value);
    if let Some(At { place, .. }) = &raw.hash
        && hash == HashBy::Quic
    {
        if protocol != Protocol::Udp {
            report.problem(
                place,
                "QUIC runs over UDP, and the service is TCP; set protocol = \"udp\", or choose another hash",
            );
        }
        if forward == Forward::Nat {
            report.problem(
                place,
                "NAT knows a connection by the address and port that it left with, which change when the client's do; choose forward = \"ipip\", \"gue\" or \"l2\", or another hash",
            );
        }
    }
    if let Some(At { place, .. }) = &raw.quic_config_id
        && hash != HashBy::Quic
        && !report.has_problem_at(&raw.place.child("hash").key)
    {
        report.problem(place, "only with hash = \"quic\"; add that, or remove this");
    }
    let last = MAX_CONFIG.into();
    let quic_config_id = number(raw.quic_config_id.as_ref(), 0, 0, last, report);
    let backends = backends::backends(raw, forward, hash, ports, report);
    let listed = backends.as_deref().unwrap_or(&[]);
    let passive = health::passive(raw.health.as_ref(), forward, protocol, report);
    let health = raw
        .health
        .as_ref()
        .filter(|raw| health::is_active(raw) || !health::is_seen(forward, protocol))
        .map(|raw| health::check(raw, forward, protocol, ports, listed, report));
    let floor_per_cent = number(raw.floor.as_ref(), FLOOR_PER_CENT, 0, 100, report);
    let slow_start = span(raw.slow_start.as_ref(), SLOW_START.0, SLOW_START, report);
    Some(Balance {
        forward,
        hash,
        quic_config_id: u8::try_from(quic_config_id).unwrap_or_default(),
        backends: backends?,
        floor_per_cent,
        slow_start,
        health: match health {
            Some(checked) => Some(checked?),
            None => None,
        },
        passive,
    })
}

/// The shortest prefix that a balanced service may have.
const fn shortest(family: Family) -> u8 {
    match family {
        Family::V4 => MIN_PREFIX.0,
        Family::V6 => MIN_PREFIX.1,
    }
}

/// Whether a balanced service may have a prefix.
pub(super) fn check_prefix(prefix: Prefix, place: &Place, report: &mut Report<'_>) -> bool {
    let min = shortest(prefix.family());
    let max = match prefix.family() {
        Family::V4 => 32,
        Family::V6 => 128,
    };
    let fits = prefix.len() >= min;
    if !fits {
        report.problem(
            place,
            format_args!(
                "too large, for each address takes room in the tables; name prefixes from /{min} to /{max}"
            ),
        );
    }
    fits
}

/// A service that is balanced.
#[derive(Clone, Copy)]
struct Balanced<'a> {
    raw: &'a raw::Service,
    service: &'a Service,
    balance: &'a Balance,
}

impl<'a> Balanced<'a> {
    /// Its backends with where their addresses stand.
    fn backends(self) -> impl Iterator<Item = (&'a Backend, &'a At<IpAddr>)> {
        let raw = self.raw.backends.iter().flatten();
        let backends = self.balance.backends.iter().zip(raw);
        backends.filter_map(|(backend, raw)| Some((backend, raw.address.as_ref()?)))
    }
}

/// Checks what services have to do with each other, and with what they share.
pub(super) fn check(
    services: &[(&raw::Service, Service)],
    raw: Option<&raw::Balance>,
    balancing: &Balancing,
    report: &mut Report<'_>,
) {
    let all: Vec<Balanced<'_>> = services
        .iter()
        .filter_map(|(raw, service)| {
            let balance = service.balance.as_ref()?;
            Some(Balanced {
                raw,
                service,
                balance,
            })
        })
        .collect();
    check_slots(&all, balancing, report);
    let addresses = all.iter().flat_map(|b| &b.balance.backends);
    let addresses: BTreeSet<IpAddr> = addresses.map(|b| b.address).collect();
    let vips = Vips::of(&all);
    check_loops(&all, &vips, report);
    check_snat(&all, &vips, &addresses, raw, balancing, report);
    if let Some(raw) = raw {
        let uses = |which: fn(Forward) -> bool| all.iter().any(|b| which(b.balance.forward));
        let used = Used {
            nat: uses(|f| f == Forward::Nat),
            tunnel: uses(Forward::is_tunnel),
        };
        balancing::check_effect(raw, used, &addresses, report);
    }
}

/// Checks that there are slots for the backends of each service.
fn check_slots(all: &[Balanced<'_>], balancing: &Balancing, report: &mut Report<'_>) {
    for b in all {
        let n = b.balance.backends.len();
        if n > balancing.slots as usize {
            report.problem_without_value(
                &b.raw.place,
                format_args!(
                    "{n} backends, and a ring has {} slots, too few for each to have one; raise balance.slots to {} or more",
                    balancing.slots,
                    n * SLOTS_EACH
                ),
            );
        } else if n * SLOTS_EACH > balancing.slots as usize {
            report.warn_without_value(
                &b.raw.place,
                format_args!(
                    "{n} backends, and a ring has {} slots, so that their shares are uneven; raise balance.slots to {} or more",
                    balancing.slots,
                    n * SLOTS_EACH
                ),
            );
        }
    }
}

/// The addresses of balanced services, and of which one each is.
struct Vips<'a> {
    addresses: BTreeMap<IpAddr, &'a str>,
    prefixes: BTreeMap<Prefix, &'a str>,
}

impl<'a> Vips<'a> {
    fn of(all: &[Balanced<'a>]) -> Self {
        let (mut addresses, mut prefixes) = (BTreeMap::new(), BTreeMap::new());
        for Balanced { service, .. } in all {
            let name = service.name.as_str();
            if let Addresses::Listed(list) = &service.addresses {
                addresses.extend(list.iter().map(|a| (*a, name)));
            }
            prefixes.extend(service.prefixes.iter().map(|p| (*p, name)));
        }
        Self {
            addresses,
            prefixes,
        }
    }

    /// A service that has an address.
    fn owner(&self, address: IpAddr) -> Option<&'a str> {
        let around = std::iter::successors(Some(Prefix::host(address)), |p| p.parent());
        let mut around = around.take_while(|p| p.len() >= shortest(p.family()));
        let single = self.addresses.get(&address);
        single
            .or_else(|| around.find_map(|p| self.prefixes.get(&p)))
            .copied()
    }
}

/// Refuses backends that are addresses of balanced services: their packets would come
/// back, and go round for ever.
fn check_loops(all: &[Balanced<'_>], vips: &Vips<'_>, report: &mut Report<'_>) {
    for b in all {
        for (backend, at) in b.backends() {
            if let Some(owner) = vips.owner(backend.address) {
                report.problem(
                    &at.place,
                    format_args!(
                        "an address of {owner:?}, which is balanced here, so that its packets would go round; name the backend's own address"
                    ),
                );
            }
        }
    }
}

/// Checks the source addresses of what is translated.
fn check_snat(
    all: &[Balanced<'_>],
    vips: &Vips<'_>,
    backends: &BTreeSet<IpAddr>,
    raw: Option<&raw::Balance>,
    balancing: &Balancing,
    report: &mut Report<'_>,
) {
    let listed = raw.and_then(|r| r.snat.as_ref());
    for at in listed.iter().flat_map(|at| &at.value) {
        if let Some(owner) = vips.owner(at.value) {
            report.problem(
                &at.place,
                format_args!(
                    "an address of {owner:?}: what backends answer would be taken for packets of clients; name another address of this host"
                ),
            );
        } else if backends.contains(&at.value) {
            report.problem(
                &at.place,
                "the address of a backend, which would answer itself; name one of this host",
            );
        }
    }
    for (is_v6, family, example) in [(false, "IPv4", "192.0.2.1"), (true, "IPv6", "2001:db8::5")] {
        let mut nat = all.iter().filter(|b| b.balance.forward == Forward::Nat);
        let first = nat.find(|b| {
            b.balance
                .backends
                .iter()
                .any(|b| b.address.is_ipv6() == is_v6)
        });
        let of = |v6| balancing.snat.iter().filter(|a| a.is_ipv6() == v6).count();
        let (Some(first), has, others) = (first, of(is_v6), of(!is_v6)) else {
            continue;
        };
        if has > 0 && has < others {
            if let Some(at) = listed {
                report.problem_without_value(
                    &at.place,
                    format_args!(
                        "{has} {family} addresses and {others} of the other family, and {:?} has {family} backends: an address of each family shares its ports; name as many {family} ones as others",
                        first.service.name
                    ),
                );
            }
        } else if has == 0
            && let Some(at) = &first.raw.forward
            && !report.has_problem_at("balance.snat")
        {
            report.problem(
                &at.place,
                format_args!(
                    "{:?} has {family} backends, and there is no {family} address to translate clients to; add one of this host to balance.snat, such as \"{example}\"",
                    first.service.name
                ),
            );
        }
    }
}
