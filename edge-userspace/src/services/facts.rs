//! What the host has, as far as services depend on it.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

/// Addresses, and how large segments may be.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Host {
    /// Its addresses.
    pub addresses: Vec<LocalAddress>,
    /// Smallest MTU of the protected interfaces, bytes; `None` while there is none.
    pub protected_mtu: Option<u32>,
    /// What the default route of IPv4 says of its MTU.
    pub route_mtu_v4: Option<u32>,
    /// What the default route of IPv6 says of its MTU.
    pub route_mtu_v6: Option<u32>,
}

/// An address of this host.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct LocalAddress {
    /// The address.
    pub address: IpAddr,
    /// MTU of its interface, bytes; `None` for the loopback interface, through
    /// which nobody reaches it.
    pub mtu: Option<u32>,
}

/// Bytes of an Ethernet payload, where nothing else is known.
const ETHERNET_MTU: u32 = 1500;
/// The smallest MTU of IPv4 (RFC 791) that is taken seriously.
const MIN_MTU_V4: u32 = 576;
/// The smallest MTU of IPv6 (RFC 8200, 5).
const MIN_MTU_V6: u32 = 1280;

impl Host {
    /// The largest segment for an address, if it is reached through an interface with `mtu`.
    pub fn mss(&self, address: IpAddr, mtu: Option<u32>) -> u16 {
        let link = mtu.or(self.protected_mtu).unwrap_or(ETHERNET_MTU);
        let (route, headers, least) = match address {
            IpAddr::V4(_) => (self.route_mtu_v4, 40, MIN_MTU_V4),
            IpAddr::V6(_) => (self.route_mtu_v6, 60, MIN_MTU_V6),
        };
        let mtu = link.min(route.unwrap_or(link)).max(least);
        u16::try_from(mtu - headers).unwrap_or(u16::MAX)
    }
}

/// A listening TCP socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Listener {
    /// The address it is bound to; unspecified for all of its family.
    pub address: IpAddr,
    /// Its port.
    pub port: u16,
    /// Whether one for all IPv6 addresses leaves IPv4 alone.
    pub v6only: bool,
    /// Index of the interface it is bound to; 0 for none.
    pub device: u32,
    /// Number of the socket.
    pub inode: u32,
    /// Its receive buffer, bytes.
    pub rcvbuf: u32,
}

/// Where sockets listen as one: several share it with `SO_REUSEPORT`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Place {
    /// [`Listener::address`].
    pub address: IpAddr,
    /// [`Listener::port`].
    pub port: u16,
    /// [`Listener::device`].
    pub device: u32,
}

/// All listeners, by where they listen.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Listeners {
    places: BTreeMap<Place, Vec<Listener>>,
    /// Ports with a listener that is bound to an interface.
    bound: BTreeSet<u16>,
}

impl Listeners {
    /// From a list in any order.
    pub fn new(mut list: Vec<Listener>) -> Self {
        list.sort_unstable();
        let mut places: BTreeMap<Place, Vec<Listener>> = BTreeMap::new();
        let bound = list.iter().filter(|l| l.device != 0).map(|l| l.port);
        let bound = bound.collect();
        for listener in list {
            let place = Place {
                address: listener.address,
                port: listener.port,
                device: listener.device,
            };
            places.entry(place).or_default().push(listener);
        }
        Self { places, bound }
    }

    /// The sockets at a place.
    pub fn at(&self, place: &Place) -> &[Listener] {
        self.places.get(place).map_or(&[], Vec::as_slice)
    }

    /// All sockets with the address and port of a place, whatever interface each is
    /// bound to.
    pub fn sharing(&self, place: &Place) -> Vec<Listener> {
        let of = |device| Place { device, ..*place };
        let range = self.places.range(of(0)..=of(u32::MAX));
        range.flat_map(|(_, list)| list).copied().collect()
    }

    /// Whether there may be listeners for the same packets that are bound to another
    /// interface, or to none.
    pub fn is_shared(&self, place: &Place) -> bool {
        let is_other = |p: &Place| p.port == place.port && p.device != place.device;
        self.bound.contains(&place.port) && self.places.keys().any(is_other)
    }

    /// Every port on which something listens, each once.
    pub fn ports(&self) -> Vec<u16> {
        let mut ports: Vec<u16> = self.places.keys().map(|p| p.port).collect();
        ports.sort_unstable();
        ports.dedup();
        ports
    }

    /// Who gets a SYN for an address and port: as the kernel decides
    /// (`inet_lookup_listener`), who is bound to the address before who is not.
    pub fn find(&self, address: IpAddr, port: u16) -> Option<Place> {
        let any = |v6only: bool| move |l: &Listener| !(v6only && l.v6only);
        let at = |address, takes: &dyn Fn(&Listener) -> bool| {
            let of = |device| Place {
                address,
                port,
                device,
            };
            // Who is bound to no interface comes first in the order.
            let mut range = self.places.range(of(0)..=of(u32::MAX));
            range
                .find(|(_, list)| list.iter().any(takes))
                .map(|(place, _)| *place)
        };
        let v6_any = IpAddr::V6(Ipv6Addr::UNSPECIFIED);
        at(address, &any(false)).or_else(|| match address {
            IpAddr::V4(_) => at(IpAddr::V4(Ipv4Addr::UNSPECIFIED), &any(false))
                .or_else(|| at(v6_any, &any(true))),
            IpAddr::V6(_) => at(v6_any, &any(false)),
        })
    }
}

/// What the kernel computes window scales from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TcpMemory {
    /// `net.ipv4.tcp_rmem`, second value: the buffer of a socket that asks for none.
    pub rmem_default: u32,
    /// `net.ipv4.tcp_rmem`, third value.
    pub rmem_limit: u32,
    /// `net.core.rmem_max`.
    pub rmem_max: u32,
}

impl TcpMemory {
    /// The window scale of a listener whose buffer was never set
    /// (`tcp_select_initial_window`).
    pub fn default_scale(&self) -> u8 {
        let space = self.rmem_limit.max(self.rmem_max);
        let bits = space.min(0xffff << 14).checked_ilog2().unwrap_or(0);
        u8::try_from(bits.saturating_sub(15)).map_or(14, |scale| scale.min(14))
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    pub(in crate::services) fn listener(address: &str, port: u16, inode: u32) -> Listener {
        Listener {
            address: address.parse().unwrap(),
            port,
            v6only: false,
            device: 0,
            inode,
            rcvbuf: 131_072,
        }
    }

    fn found(listeners: &Listeners, address: &str) -> Option<String> {
        let place = listeners.find(address.parse().unwrap(), 80)?;
        Some(place.address.to_string())
    }

    #[test]
    fn the_closest_listener_is_found() {
        let v6only = Listener {
            v6only: true,
            ..listener("::", 80, 1)
        };
        let listeners = Listeners::new(vec![listener("192.0.2.1", 80, 2), v6only]);
        assert_eq!(found(&listeners, "192.0.2.1").unwrap(), "192.0.2.1");
        assert_eq!(found(&listeners, "192.0.2.2"), None);
        assert_eq!(found(&listeners, "2001:db8::1").unwrap(), "::");
        let listeners = Listeners::new(vec![listener("::", 80, 1)]);
        assert_eq!(found(&listeners, "192.0.2.2").unwrap(), "::");
        let listeners = Listeners::new(vec![listener("::", 80, 1), listener("0.0.0.0", 80, 2)]);
        assert_eq!(found(&listeners, "192.0.2.2").unwrap(), "0.0.0.0");
        assert_eq!(found(&listeners, "2001:db8::1").unwrap(), "::");
        assert_eq!(listeners.find("192.0.2.2".parse().unwrap(), 81), None);
    }

    #[test]
    fn sockets_that_share_a_port_are_one_place() {
        let bound = Listener {
            device: 3,
            ..listener("0.0.0.0", 80, 7)
        };
        let list = vec![
            listener("0.0.0.0", 80, 9),
            bound,
            listener("0.0.0.0", 80, 8),
        ];
        let listeners = Listeners::new(list);
        let place = listeners.find("192.0.2.1".parse().unwrap(), 80).unwrap();
        assert_eq!(place.device, 0);
        let inodes: Vec<u32> = listeners.at(&place).iter().map(|l| l.inode).collect();
        assert_eq!(inodes, [8, 9]);
        let all = listeners.sharing(&place);
        let all: Vec<u32> = all.iter().map(|l| l.inode).collect();
        assert_eq!(all, [8, 9, 7]);
        assert_eq!(listeners.ports(), [80]);
        assert!(listeners.is_shared(&place));
        let alone = Listeners::new(vec![bound]);
        assert_eq!(
            alone.find("192.0.2.1".parse().unwrap(), 80).unwrap().device,
            3
        );
        let several = [listener("0.0.0.0", 80, 1), listener("::", 80, 2)];
        for list in [vec![bound], several.to_vec()] {
            let place = Listeners::new(list.clone());
            let found = place.find("192.0.2.1".parse().unwrap(), 80).unwrap();
            assert!(!place.is_shared(&found));
        }
    }

    #[test]
    fn segments_fit_the_narrowest_part_that_is_known() {
        let (v4, v6) = ("192.0.2.1".parse().unwrap(), "2001:db8::1".parse().unwrap());
        let host = Host::default();
        assert_eq!((host.mss(v4, None), host.mss(v6, None)), (1460, 1440));
        let host = Host {
            protected_mtu: Some(9000),
            route_mtu_v6: Some(1400),
            ..Host::default()
        };
        assert_eq!((host.mss(v4, None), host.mss(v6, None)), (8960, 1340));
        assert_eq!(host.mss(v4, Some(1492)), 1452);
        assert_eq!((host.mss(v4, Some(0)), host.mss(v6, Some(0))), (536, 1220));
        assert_eq!(host.mss(v4, Some(u32::MAX)), u16::MAX);
    }

    #[test]
    fn the_default_scale_is_the_kernels() {
        let memory = |rmem_limit, rmem_max| TcpMemory {
            rmem_default: 131_072,
            rmem_limit,
            rmem_max,
        };
        assert_eq!(memory(6_291_456, 212_992).default_scale(), 7);
        assert_eq!(memory(33_554_432, 212_992).default_scale(), 10);
        assert_eq!(memory(1000, 212_992).default_scale(), 2);
        assert_eq!(memory(0, 0).default_scale(), 0);
        assert_eq!(memory(u32::MAX, 0).default_scale(), 14);
    }
}
