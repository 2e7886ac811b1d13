//! What makes up a next hop: a route, the device that it leaves by, and a neighbour.

use std::{io, net::IpAddr};

use super::{Answer, NextHop, NoNextHop};
use crate::{
    host::{
        links::{Link, link},
        neighbours::Neighbour,
        routes::{Route, route},
    },
    netlink::Socket,
};

/// What makes interfaces that XDP can send on, beside hardware. Others either cannot or
/// would have to do something to the frame.
const KINDS: [&str; 2] = ["veth", "tun"];

/// The way to an address as the routing tables have it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Path {
    /// Who takes packets on.
    pub via: Neighbour,
    /// What the route says of the largest packet, bytes.
    pub mtu: Option<u32>,
    /// The address of this host that they come from.
    pub source: IpAddr,
}

/// What frames are sent with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Device {
    /// Name of the interface that the route names.
    pub name: String,
    /// Index of the interface that sends.
    pub ifindex: u32,
    /// The tag.
    pub vlan: Option<u16>,
    /// The MAC address that frames come from.
    pub mac: [u8; 6],
    /// The largest packet, bytes.
    pub mtu: u32,
}

/// Asks for the way to an address.
///
/// # Errors
/// Whatever the kernel returns for the question.
pub(super) fn path(socket: &mut Socket, to: IpAddr) -> io::Result<Result<Path, NoNextHop>> {
    Ok(judge_route(to, route(socket, to)?))
}

/// Asks for the interface with an index, and that which it is on.
///
/// # Errors
/// Whatever the kernel returns for the question.
pub(super) fn device(socket: &mut Socket, index: u32) -> io::Result<Result<Device, NoNextHop>> {
    let Some(own) = link(socket, index)? else {
        return Ok(Err(gone()));
    };
    let below = match own.vlan.and_then(|vlan| vlan.parent) {
        Some(parent) => link(socket, parent)?,
        None => None,
    };
    Ok(judge_link(own, below))
}

/// Puts together what is known.
pub(super) fn join(path: &Path, device: &Device, mac: Option<[u8; 6]>) -> Answer {
    let dest_mac = mac.ok_or_else(|| NoNextHop::NoNeighbour {
        interface: device.name.clone(),
        via: path.via.address,
    })?;
    Ok(NextHop {
        ifindex: device.ifindex,
        vlan: device.vlan,
        dest_mac,
        source_mac: device.mac,
        mtu: path.mtu.unwrap_or(u32::MAX).min(device.mtu),
        source: path.source,
    })
}

fn gone() -> NoNextHop {
    NoNextHop::NoRoute("its interface is gone".to_owned())
}

fn judge_route(to: IpAddr, route: Result<Route, i32>) -> Result<Path, NoNextHop> {
    let unsuitable = |why: &str| Err(NoNextHop::Unsuitable(why.to_owned()));
    if matches!(to, IpAddr::V6(to) if to.is_unicast_link_local()) {
        return unsuitable(
            "it is a link-local address, which every link has: use another one of the same host",
        );
    }
    let route = match route {
        Ok(route) => route,
        Err(libc::EACCES) => return unsuitable("a route of type prohibit forbids it"),
        Err(libc::EINVAL) => return unsuitable("a route of type blackhole swallows it"),
        Err(code) => {
            let error = io::Error::from_raw_os_error(code);
            return Err(NoNextHop::NoRoute(error.to_string()));
        }
    };
    match route.kind {
        libc::RTN_UNICAST => {}
        libc::RTN_LOCAL => {
            return unsuitable("it is an address of this host, which packets for it do not leave");
        }
        libc::RTN_BROADCAST | libc::RTN_ANYCAST | libc::RTN_MULTICAST => {
            return unsuitable("it is the address of many: broadcast, anycast or multicast");
        }
        kind => return unsuitable(&format!("its route is of type {kind}, not unicast")),
    }
    if route.encapsulates {
        return unsuitable(
            "its route puts packets into others (`encap`), which only the kernel does: give it a \
             plain route",
        );
    }
    let Some(source) = route.source.filter(|s| s.is_ipv4() == to.is_ipv4()) else {
        return unsuitable(
            "this host has no address to send from: give one to the interface of its route",
        );
    };
    if route.interface == 0 {
        return Err(gone());
    }
    Ok(Path {
        via: Neighbour {
            interface: route.interface,
            address: route.gateway.unwrap_or(to),
        },
        mtu: route.mtu,
        source,
    })
}

fn judge_link(own: Link, below: Option<Link>) -> Result<Device, NoNextHop> {
    let name = own.name;
    let unsuitable = |why: String| Err(NoNextHop::Unsuitable(format!("{name} {why}")));
    let Some(mac) = own.mac.filter(|_| !own.loopback) else {
        return unsuitable("is no Ethernet interface, and XDP sends on no other".to_owned());
    };
    let Some(vlan) = own.vlan else {
        return match unsuitable_kind(&own.kind) {
            Some(why) => unsuitable(why),
            None => Ok(Device {
                ifindex: own.index,
                vlan: None,
                mac,
                mtu: own.mtu,
                name,
            }),
        };
    };
    if vlan.protocol != libc::ETH_P_8021Q as u16 {
        return unsuitable("has tags of 802.1ad, and Edge writes those of 802.1Q".to_owned());
    }
    if vlan.parent.is_none() {
        return unsuitable("is a VLAN on an interface of another network namespace".to_owned());
    }
    let Some(below) = below else {
        return Err(gone());
    };
    if below.vlan.is_some() {
        return unsuitable(format!(
            "is a VLAN inside of the VLAN {}, and Edge writes one tag: use a VLAN on the \
             interface itself",
            below.name
        ));
    }
    if let Some(why) = unsuitable_kind(&below.kind) {
        return unsuitable(format!("is a VLAN on {}, which {why}", below.name));
    }
    Ok(Device {
        ifindex: below.index,
        vlan: Some(vlan.id),
        mac,
        mtu: own.mtu.min(below.mtu),
        name,
    })
}

/// What is wrong with an Ethernet interface of a kind.
fn unsuitable_kind(kind: &Option<String>) -> Option<String> {
    let kind = kind.as_deref()?;
    (!KINDS.contains(&kind)).then(|| {
        format!(
            "is a device of kind {kind}, on which XDP cannot send: route over a network card, \
             veth or tap, or a VLAN on one"
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::links::Vlan;

    const MAC: [u8; 6] = [2, 0xed, 0, 0, 0, 1];

    fn eth(index: u32, kind: Option<&str>) -> Link {
        Link {
            index,
            name: format!("eth{index}"),
            mtu: 1500,
            loopback: false,
            mac: Some(MAC),
            kind: kind.map(str::to_owned),
            vlan: None,
            master: None,
            lower: None,
        }
    }

    fn vlan(id: u16, parent: u32) -> Link {
        Link {
            mac: Some([2, 0xed, 0, 0, 0, 9]),
            vlan: Some(Vlan {
                id,
                protocol: 0x8100,
                parent: Some(parent),
            }),
            ..eth(9, Some("vlan"))
        }
    }

    fn why<T: std::fmt::Debug>(none: Result<T, NoNextHop>) -> String {
        none.unwrap_err().to_string()
    }

    #[test]
    fn a_vlan_is_sent_on_what_it_is_on() {
        let below = Link {
            mtu: 1400,
            ..eth(3, Some("veth"))
        };
        let device = judge_link(vlan(5, 3), Some(below)).unwrap();
        assert_eq!(
            (device.ifindex, device.vlan, device.mtu),
            (3, Some(5), 1400)
        );
        // Its own MAC address, and its own name for those who read of it.
        assert_eq!((device.mac[5], device.name.as_str()), (9, "eth9"));
        let device = judge_link(eth(3, None), None).unwrap();
        assert_eq!((device.ifindex, device.vlan, device.mtu), (3, None, 1500));
    }

    #[test]
    fn devices_on_which_xdp_cannot_send_are_named() {
        for kind in ["bond", "team", "bridge", "macvlan", "dummy"] {
            let plain = why(judge_link(eth(3, Some(kind)), None));
            let on = why(judge_link(vlan(5, 3), Some(eth(3, Some(kind)))));
            for text in [plain, on] {
                assert!(text.contains(kind) && text.contains("eth3"), "{text}");
                assert!(text.contains("route over"), "{text}");
            }
        }
        let no_ethernet = Link {
            mac: None,
            ..eth(3, Some("tun"))
        };
        assert!(why(judge_link(no_ethernet, None)).contains("no Ethernet"));
        let lo = Link {
            loopback: true,
            ..eth(1, None)
        };
        assert!(why(judge_link(lo, None)).contains("no Ethernet"));
        assert!(why(judge_link(vlan(5, 9), Some(vlan(6, 3)))).contains("one tag"));
        let with = |change: fn(&mut Vlan)| {
            let mut link = vlan(5, 3);
            link.vlan.as_mut().map(change);
            why(judge_link(link, Some(eth(3, None))))
        };
        assert!(with(|v| v.protocol = 0x88a8).contains("802.1ad"));
        assert!(with(|v| v.parent = None).contains("namespace"));
        assert_eq!(judge_link(vlan(5, 3), None), Err(gone()));
    }

    fn unicast() -> Route {
        Route {
            kind: libc::RTN_UNICAST,
            interface: 3,
            source: Some(IpAddr::from([192, 0, 2, 1])),
            ..Route::default()
        }
    }

    #[test]
    fn packets_go_to_the_gateway_or_the_address_itself() {
        let to = IpAddr::from([192, 0, 2, 7]);
        let via = |gateway| {
            let route = Route {
                gateway,
                ..unicast()
            };
            judge_route(to, Ok(route)).unwrap().via.address
        };
        assert_eq!(via(None), to);
        // RFC 8950: the gateway may be of the other family.
        for gateway in ["192.0.2.254", "fe80::1"] {
            let gateway = gateway.parse().unwrap();
            assert_eq!(via(Some(gateway)), gateway);
        }
    }

    #[test]
    fn ways_that_xdp_cannot_go_are_told() {
        let to = IpAddr::from([192, 0, 2, 7]);
        let judged = |route| why(judge_route(to, route));
        assert!(judged(Err(libc::ENETUNREACH)).starts_with("there is no route"));
        assert!(judged(Err(libc::EHOSTUNREACH)).starts_with("there is no route"));
        assert!(judged(Err(libc::EACCES)).contains("prohibit"));
        assert!(judged(Err(libc::EINVAL)).contains("blackhole"));
        let with = |change: fn(&mut Route)| {
            let mut route = unicast();
            change(&mut route);
            judged(Ok(route))
        };
        assert!(with(|r| r.kind = libc::RTN_LOCAL).contains("of this host"));
        assert!(with(|r| r.kind = libc::RTN_MULTICAST).contains("of many"));
        assert!(with(|r| r.kind = libc::RTN_BLACKHOLE).contains("type 6"));
        assert!(with(|r| r.encapsulates = true).contains("encap"));
        assert!(with(|r| r.source = None).contains("no address to send from"));
        assert!(with(|r| r.source = Some([0; 16].into())).contains("no address"));
        assert!(with(|r| r.interface = 0).contains("gone"));
        let link_local = judge_route("fe80::7".parse().unwrap(), Ok(unicast()));
        assert!(why(link_local).contains("link-local"));
    }

    #[test]
    fn the_smaller_mtu_counts() {
        let device = judge_link(eth(3, None), None).unwrap();
        let with = |mtu, mac| {
            let path = judge_route(IpAddr::from([192, 0, 2, 7]), Ok(unicast())).unwrap();
            join(&Path { mtu, ..path }, &device, mac)
        };
        let mtu = |route| with(route, Some([2; 6])).unwrap().mtu;
        assert_eq!(
            (mtu(None), mtu(Some(1400)), mtu(Some(9000))),
            (1500, 1400, 1500)
        );
        let none = NoNextHop::NoNeighbour {
            interface: "eth3".to_owned(),
            via: IpAddr::from([192, 0, 2, 7]),
        };
        assert_eq!(with(None, None), Err(none));
    }
}
