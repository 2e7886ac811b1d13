//! Which service has which address and port.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    net::IpAddr,
};

use crate::config::{
    raw,
    report::Report,
    services::{Addresses, Ports, Protocol, Service},
};

/// Where a target is.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Where {
    /// At all addresses of this host.
    Local,
    /// At an address.
    At(IpAddr),
    /// At an address within a prefix, unless a service has the address by itself.
    Within(IpAddr),
}

/// At which ports.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Which {
    /// Those on which something listens.
    Listening,
    /// All that no other service lists.
    Any,
    /// This.
    Port(u16),
}

impl fmt::Display for Which {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Listening => f.write_str("what listens"),
            Self::Any => f.write_str("ports = \"any\""),
            Self::Port(port) => write!(f, "port {port}"),
        }
    }
}

type Key = (Protocol, Where, Which);

/// Checks that addresses and ports fit the table, and belong to one service each.
pub(super) fn check(services: &[(&raw::Service, Service)], room: u32, report: &mut Report<'_>) {
    // Of local addresses there is one at least.
    let of = |s: &Service| match &s.addresses {
        Addresses::Local => u64::from(s.ports.listed()),
        Addresses::Listed(_) => (s.listed_addresses()).saturating_mul(u64::from(s.ports.listed())),
    };
    let mut need = 0u64;
    for (raw, service) in services {
        need = need.saturating_add(of(service));
        if need > u64::from(room) {
            report.problem_without_value(
                &raw.place,
                format_args!(
                    "up to here services have {need} addresses and ports or more, and there is room for {room}; raise tables.service_targets, which counts each port of each address",
                ),
            );
            return;
        }
    }
    let mut owners: BTreeMap<Key, usize> = BTreeMap::new();
    let mut reported = BTreeSet::new();
    for (i, (raw, service)) in services.iter().enumerate() {
        for key in keys(service) {
            let other = *owners.entry(key).or_insert(i);
            let Some((_, before)) = services.get(other).filter(|_| other != i) else {
                continue;
            };
            if reported.insert((other, i)) {
                let within = match key.1 {
                    Where::Within(_) => " of overlapping prefixes",
                    _ => "",
                };
                report.problem_without_value(
                    &raw.place,
                    format_args!(
                        "{:?} has {}{within} in common with {:?}; an address and port belong to one service, take it out of one of them",
                        service.name, key.2, before.name
                    ),
                );
            }
        }
    }
    // A listed address that this host has is among its local ones.
    for (&(protocol, place, which), &i) in &owners {
        let (Some((raw, service)), Where::At(_)) = (services.get(i), place) else {
            continue;
        };
        let other = owners.get(&(protocol, Where::Local, which)).copied();
        let Some((other, (_, before))) = other.and_then(|o| Some((o, services.get(o)?))) else {
            continue;
        };
        if !service.forwarded && reported.insert((other.min(i), other.max(i))) {
            report.problem_without_value(
                &raw.place,
                format_args!(
                    "{:?} has {which} in common with {:?}, which has it on all addresses of this host; take it out of one of them",
                    service.name, before.name
                ),
            );
        }
    }
}

/// All that a service has.
fn keys(service: &Service) -> impl Iterator<Item = Key> {
    let single: Box<dyn Iterator<Item = Where>> = match &service.addresses {
        Addresses::Local => Box::new(std::iter::once(Where::Local)),
        Addresses::Listed(list) => Box::new(list.iter().copied().map(Where::At)),
    };
    let within = service.prefixes.iter().flat_map(|p| p.addresses());
    single
        .chain(within.map(Where::Within))
        .flat_map(move |place| {
            let ports: Box<dyn Iterator<Item = Which>> = match &service.ports {
                Ports::Listening => Box::new(std::iter::once(Which::Listening)),
                Ports::Any => Box::new(std::iter::once(Which::Any)),
                Ports::Rest => Box::new(std::iter::empty()),
                Ports::Listed(ranges) => {
                    Box::new(ranges.iter().cloned().flatten().map(Which::Port))
                }
            };
            ports.map(move |which| (service.protocol, place, which))
        })
}
