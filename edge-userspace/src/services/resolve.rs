//! From services to exact targets.

use std::{
    collections::{BTreeMap, BTreeSet, btree_map::Entry},
    net::{IpAddr, SocketAddr},
};

use edge_common::{
    defence::{
        TARGET_BOUND, TARGET_FORWARDED, TARGET_LOCAL, TARGET_REST, Target, TargetKey,
        WSCALE_UNKNOWN,
    },
    parse::proto,
};

use super::{
    facts::{Host, Listeners, Place},
    slots::Slot,
    sources::halves,
};
use crate::config::services::{Addresses, Ports, Protocol, Service};

/// A target, but for the window scale.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Planned {
    /// Position of the service in the configuration.
    pub service: usize,
    /// Index of the service in the tables.
    pub index: u32,
    /// Where it is; port 0 for all that are of no other service ([`Ports::Any`],
    /// [`Ports::Rest`]).
    pub at: SocketAddr,
    /// Segment size to announce.
    pub mss: u16,
    /// [`TARGET_LOCAL`], [`TARGET_BOUND`], [`TARGET_FORWARDED`] or [`TARGET_REST`].
    pub kind: u8,
    /// Who listens there; `None` when nobody does, or it does not matter.
    pub listener: Option<Place>,
}

/// All targets.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Targets {
    /// By key.
    pub planned: BTreeMap<TargetKey, Planned>,
    /// How many found no room.
    pub left_out: usize,
}

impl Targets {
    /// Position of the service that has an address and port.
    pub fn service_at(&self, protocol: Protocol, at: SocketAddr) -> Option<usize> {
        self.planned.get(&key(protocol, at)).map(|p| p.service)
    }
}

/// Resolves services, in `slots` of the tables, to at most `room` targets. A prefix becomes
/// its addresses. `snat` are those that NAT sends from.
pub fn resolve(
    services: &[Service],
    slots: &[Slot],
    host: &Host,
    listeners: &Listeners,
    snat: &BTreeSet<IpAddr>,
    room: u32,
) -> Targets {
    let mut targets = Targets::default();
    let room = room as usize;
    let add = |targets: &mut Targets,
               i: usize,
               service: &Service,
               at: SocketAddr,
               mss,
               listener: Option<Place>| {
        let planned = Planned {
            service: i,
            index: slots.get(i).map_or(0, |s| s.index),
            at,
            mss,
            kind: kind(service, listeners, listener.as_ref()),
            listener,
        };
        let full = targets.planned.len() >= room;
        match targets.planned.entry(key(service.protocol, at)) {
            Entry::Vacant(_) if full => targets.left_out += 1,
            Entry::Vacant(entry) => {
                entry.insert(planned);
            }
            // Two services are told apart by the file, but for what listens, which
            // is for who lists it.
            Entry::Occupied(_) => {}
        }
    };
    let all = services.iter().enumerate();
    // Who has an address by itself comes before who has it within a prefix.
    let single = all
        .clone()
        .map(|(i, service)| (i, service, addresses(service, host)));
    let within = all
        .clone()
        .map(|(i, service)| (i, service, addresses_within(service, host)));
    for (i, service, addresses) in single.chain(within) {
        let ports = service.ports.targets();
        if ports.is_empty() {
            continue;
        }
        for (address, mss) in addresses {
            // What finds no room is counted without a walk: of all ports of many
            // addresses there are millions.
            let free = room - targets.planned.len().min(room);
            targets.left_out += (service.ports.listed() as usize).saturating_sub(free);
            for port in ports.iter().cloned().flatten().take(free) {
                let listener = match service.protocol {
                    Protocol::Tcp if !service.forwarded => listeners.find(address, port),
                    _ => None,
                };
                let at = SocketAddr::new(address, port);
                add(&mut targets, i, service, at, mss, listener);
            }
        }
    }
    let ports = listeners.ports();
    for (i, service) in all.clone().filter(|(_, s)| s.ports == Ports::Listening) {
        for (address, mss) in addresses(service, host) {
            for &port in &ports {
                if let Some(listener) = listeners.find(address, port) {
                    let at = SocketAddr::new(address, port);
                    add(&mut targets, i, service, at, mss, Some(listener));
                }
            }
        }
    }
    for (i, service) in all.filter(|(_, s)| s.ports == Ports::Rest) {
        // What comes to the source addresses of NAT belongs to no socket here.
        for (address, mss) in addresses(service, host).filter(|(a, _)| !snat.contains(a)) {
            let at = SocketAddr::new(address, 0);
            add(&mut targets, i, service, at, mss, None);
        }
    }
    targets
}

fn kind(service: &Service, listeners: &Listeners, listener: Option<&Place>) -> u8 {
    match service.ports {
        Ports::Rest => TARGET_REST,
        _ if service.forwarded => TARGET_FORWARDED,
        _ if listener.is_some_and(|place| listeners.is_shared(place)) => TARGET_BOUND,
        _ => TARGET_LOCAL,
    }
}

/// Addresses of a service with the segment sizes to announce there.
type AddressesOf<'a> = Box<dyn Iterator<Item = (IpAddr, u16)> + 'a>;

/// Those of its prefixes.
fn addresses_within<'a>(service: &'a Service, host: &'a Host) -> AddressesOf<'a> {
    let all = service.prefixes.iter().flat_map(|p| p.addresses());
    Box::new(all.map(|a| (a, host.mss(a, None))))
}

/// The others.
fn addresses<'a>(service: &'a Service, host: &'a Host) -> AddressesOf<'a> {
    let local = host
        .addresses
        .iter()
        .map(|a| (a.address, host.mss(a.address, a.mtu)));
    match &service.addresses {
        Addresses::Local => Box::new(local.filter(|(address, _)| comes_from_afar(*address))),
        Addresses::Listed(list) if service.forwarded => {
            Box::new(list.iter().map(|&a| (a, host.mss(a, None))))
        }
        Addresses::Listed(list) => Box::new(local.filter(|(address, _)| list.contains(address))),
    }
}

/// Whether packets from beyond the link can be for an address.
fn comes_from_afar(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(a) => !a.is_loopback() && !a.is_link_local(),
        IpAddr::V6(a) => !a.is_loopback() && !a.is_unicast_link_local(),
    }
}

fn key(protocol: Protocol, at: SocketAddr) -> TargetKey {
    TargetKey {
        address: halves(at.ip()),
        port: at.port().to_be(),
        proto: match protocol {
            Protocol::Tcp => proto::TCP,
            Protocol::Udp => proto::UDP,
        },
        pad: [0; 5],
    }
}

impl Targets {
    /// The entries of `TARGETS`, with window scales by listener.
    pub fn entries(&self, scale: impl Fn(&Place) -> Option<u8>) -> BTreeMap<TargetKey, Target> {
        let entry = |p: &Planned| Target {
            service: p.index,
            mss: p.mss,
            wscale: p
                .listener
                .as_ref()
                .and_then(&scale)
                .unwrap_or(WSCALE_UNKNOWN),
            kind: p.kind,
            marked_at: 0,
        };
        let planned = self.planned.iter();
        planned.map(|(key, p)| (*key, entry(p))).collect()
    }

    /// The entries of `TARGETS` by which pings and fragments for addresses of balanced
    /// services are found. Fragments have no ports: where several services have an address
    /// and a protocol, nobody knows whose they are.
    pub fn of_addresses(&self, services: &[Service]) -> BTreeMap<TargetKey, Target> {
        let mut entries: BTreeMap<TargetKey, Target> = BTreeMap::new();
        let mut of_several = BTreeSet::new();
        for (key, planned) in &self.planned {
            let service = services
                .get(planned.service)
                .filter(|s| s.balance.is_some());
            let Some(service) = service else { continue };
            let target = Target {
                service: planned.index,
                mss: 0,
                wscale: WSCALE_UNKNOWN,
                kind: TARGET_FORWARDED,
                marked_at: 0,
            };
            let ping = TargetKey {
                port: 0,
                proto: proto::ICMP,
                ..*key
            };
            if service.echo {
                entries.insert(ping, target);
            } else {
                entries.entry(ping).or_insert(target);
            }
            let piece = TargetKey {
                port: u16::from(key.proto).to_be(),
                proto: proto::FRAGMENT,
                ..*key
            };
            if entries
                .get(&piece)
                .is_some_and(|t| t.service != planned.index)
            {
                of_several.insert(piece);
            }
            entries.insert(piece, target);
        }
        entries.retain(|key, _| !of_several.contains(key));
        entries
    }

    /// Wherever each listener can be reached that `wants` to be known, by service.
    pub fn listeners(&self, wants: impl Fn(usize) -> bool) -> BTreeMap<Place, Vec<SocketAddr>> {
        let mut all: BTreeMap<Place, Vec<SocketAddr>> = BTreeMap::new();
        for planned in self.planned.values().filter(|p| wants(p.service)) {
            if let Some(place) = planned.listener {
                all.entry(place).or_default().push(planned.at);
            }
        }
        all
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        config::test::model_of,
        services::{
            facts::{Listener, LocalAddress, tests::listener},
            slots::assign,
        },
    };

    fn host(addresses: &[&str]) -> Host {
        let address = |a: &&str| LocalAddress {
            address: a.parse().unwrap(),
            mtu: Some(1500),
        };
        Host {
            addresses: addresses.iter().map(address).collect(),
            ..Host::default()
        }
    }

    fn resolved(text: &str, host: &Host, listeners: Vec<Listener>) -> Targets {
        let model = model_of(text);
        let slots = assign(&model.services, &[0; 16]);
        let room = model.flood.targets;
        resolve(
            &model.services,
            &slots,
            host,
            &Listeners::new(listeners),
            &model.balancing.snat,
            room,
        )
    }

    /// Each target as `address:port service listener`.
    fn told(targets: &Targets) -> Vec<String> {
        let tell = |p: &Planned| {
            let listener = p.listener.map_or("-".into(), |l| l.address.to_string());
            format!("{} {} {listener}", p.at, p.service)
        };
        let mut all: Vec<String> = targets.planned.values().map(tell).collect();
        all.sort();
        all
    }

    #[test]
    fn listed_ports_are_on_every_address_from_afar() {
        let host = host(&[
            "127.0.0.1",
            "::1",
            "fe80::1",
            "169.254.1.1",
            "192.0.2.1",
            "2001:db8::1",
        ]);
        let text = "[[service]]\nname = 'a'\nports = [80, 443]\n";
        let got = resolved(text, &host, vec![listener("0.0.0.0", 80, 1)]);
        let want = [
            "192.0.2.1:443 0 -",
            "192.0.2.1:80 0 0.0.0.0",
            "[2001:db8::1]:443 0 -",
            "[2001:db8::1]:80 0 -",
        ];
        assert_eq!(told(&got), want);
        let dual = resolved(text, &host, vec![listener("::", 80, 1)]);
        assert_eq!(told(&dual)[1], "192.0.2.1:80 0 ::");
        assert_eq!(told(&dual)[3], "[2001:db8::1]:80 0 ::");
    }

    #[test]
    fn listed_addresses_count_while_the_host_has_them() {
        let text = "[[service]]\nname = 'a'\nports = [80]\naddresses = ['192.0.2.1', '192.0.2.9']";
        let got = resolved(text, &host(&["192.0.2.1", "192.0.2.2"]), vec![]);
        assert_eq!(told(&got), ["192.0.2.1:80 0 -"]);
        let forwarded = resolved(
            &format!("{text}\nforwarded = true"),
            &host(&["192.0.2.2"]),
            vec![],
        );
        assert_eq!(told(&forwarded), ["192.0.2.1:80 0 -", "192.0.2.9:80 0 -"]);
        let entries = forwarded.entries(|_| None);
        assert!(entries.values().all(|t| t.kind == TARGET_FORWARDED));
    }

    #[test]
    fn what_listens_is_for_who_lists_it_first() {
        let text = "[[service]]\nname = 'rest'\nports = 'listening'\n[[service]]\nname = 'web'\nports = [80]\n";
        let listeners = || {
            vec![
                listener("0.0.0.0", 80, 1),
                listener("0.0.0.0", 22, 2),
                listener("127.0.0.1", 9273, 3),
                listener("192.0.2.2", 25, 4),
            ]
        };
        let got = resolved(text, &host(&["192.0.2.1", "192.0.2.2"]), listeners());
        let want = [
            "192.0.2.1:22 0 0.0.0.0",
            "192.0.2.1:80 1 0.0.0.0",
            "192.0.2.2:22 0 0.0.0.0",
            "192.0.2.2:25 0 192.0.2.2",
            "192.0.2.2:80 1 0.0.0.0",
        ];
        assert_eq!(told(&got), want);
        // Each listener with all places where it answers.
        let asked = got.listeners(|service| service == 0);
        let asked: Vec<String> = asked.values().map(|at| format!("{at:?}")).collect();
        let want = ["[192.0.2.1:22, 192.0.2.2:22]", "[192.0.2.2:25]"];
        assert_eq!(asked, want);
    }

    #[test]
    fn balanced_services_have_prefixes_and_all_ports() {
        let service = |name: &str, rest: &str| {
            format!(
                "[[service]]\nname = '{name}'\nforward = 'ipip'\n{rest}\n[[service.backend]]\nname = 'a'\naddress = '10.0.0.1'\n"
            )
        };
        let text = service("all", "ports = 'any'\naddresses = ['203.0.113.0/30']")
            + &service("one", "ports = 'any'\naddresses = ['203.0.113.1']")
            + &service(
                "web",
                "ports = [80]\naddresses = ['203.0.113.2/31', '2001:db8::/127']",
            );
        // That this host has some of them changes nothing.
        let got = resolved(&text, &host(&["203.0.113.1"]), vec![listener("::", 80, 1)]);
        let want = [
            "203.0.113.0:0 0 -",
            "203.0.113.1:0 1 -",
            "203.0.113.2:0 0 -",
            "203.0.113.2:80 2 -",
            "203.0.113.3:0 0 -",
            "203.0.113.3:80 2 -",
            "[2001:db8::1]:80 2 -",
            "[2001:db8::]:80 2 -",
        ];
        assert_eq!(told(&got), want);
        let entries = got.entries(|_| Some(7));
        assert!(entries.values().all(|t| t.kind == TARGET_FORWARDED));
        assert_eq!(got.left_out, 0);
    }

    #[test]
    fn ports_of_no_service_stand_under_port_0_of_each_address() {
        let text = "flood.rest = 'auto'\n[[service]]\nname = 'a'\nports = [80]\n";
        let host = host(&["127.0.0.1", "fe80::1", "192.0.2.1", "2001:db8::1"]);
        let got = resolved(
            text,
            &host,
            vec![listener("::", 80, 1), listener("::", 22, 2)],
        );
        let want = [
            "192.0.2.1:0 1 -",
            "192.0.2.1:80 0 ::",
            "[2001:db8::1]:0 1 -",
            "[2001:db8::1]:80 0 ::",
        ];
        assert_eq!(told(&got), want);
        for (key, target) in got.entries(|_| Some(7)) {
            let rest = key.port == 0;
            assert_eq!(target.kind == TARGET_REST, rest, "{key:?}");
            assert_eq!((target.service, key.proto), (u32::from(rest), proto::TCP));
        }
        // Nobody is asked for a window scale on their behalf.
        assert_eq!(got.listeners(|service| service == 1).len(), 0);
    }

    #[test]
    fn what_finds_no_room_is_counted() {
        let text = "tables.service_targets = 3\n[[service]]\nname = 'a'\nports = [1, 2]\n";
        let got = resolved(text, &host(&["192.0.2.1", "192.0.2.2"]), vec![]);
        assert_eq!((got.planned.len(), got.left_out), (3, 1));
        let addresses: Vec<String> = (1..=100).map(|i| format!("192.0.2.{i}")).collect();
        let addresses: Vec<&str> = addresses.iter().map(String::as_str).collect();
        let all = "tables.service_targets = 70000\n[[service]]\nname = 'a'\nports = ['1-65535']\n";
        let got = resolved(all, &host(&addresses), vec![]);
        assert_eq!(
            (got.planned.len(), got.left_out),
            (70_000, 100 * 65_535 - 70_000)
        );
    }

    #[test]
    fn keys_are_as_on_the_wire() {
        let of = |at: &str| key(Protocol::Tcp, at.parse().unwrap());
        let v4 = of("192.0.2.1:80");
        let bytes: Vec<u8> = v4.address.iter().flat_map(|w| w.to_ne_bytes()).collect();
        assert_eq!(bytes[10..], [0xff, 0xff, 192, 0, 2, 1]);
        assert_eq!(v4.port.to_ne_bytes(), [0, 80]);
        let v6 = of("[2001:db8::7]:443");
        let bytes: Vec<u8> = v6.address.iter().flat_map(|w| w.to_ne_bytes()).collect();
        let address: std::net::Ipv6Addr = "2001:db8::7".parse().unwrap();
        assert_eq!(bytes, address.octets());
    }

    #[test]
    fn scales_and_sizes_end_in_the_entries() {
        let text = "[[service]]\nname = 'a'\nports = [80, 81]\n[[service]]\nname = 'u'\nports = [80]\nprotocol = 'udp'";
        let got = resolved(text, &host(&["192.0.2.1"]), vec![listener("::", 80, 1)]);
        let entries = got.entries(|place| (place.port == 80).then_some(7));
        let entry = |protocol, at: &str| entries[&key(protocol, at.parse().unwrap())];
        let known = Target {
            service: 0,
            mss: 1460,
            wscale: 7,
            kind: TARGET_LOCAL,
            marked_at: 0,
        };
        assert_eq!(entry(Protocol::Tcp, "192.0.2.1:80"), known);
        let closed = entry(Protocol::Tcp, "192.0.2.1:81");
        assert_eq!(closed.wscale, WSCALE_UNKNOWN);
        let udp = entry(Protocol::Udp, "192.0.2.1:80");
        assert_eq!((udp.service, udp.wscale), (1, WSCALE_UNKNOWN));
    }
}
