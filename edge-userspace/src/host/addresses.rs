//! Addresses and MTUs, by rtnetlink(7).

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    net::IpAddr,
};

use crate::{
    netlink::{Attributes, Reply, push_attribute, request, text, u32_at},
    services::facts::{Host, LocalAddress},
};

/// `struct ifinfomsg`, `struct ifaddrmsg` and `struct rtmsg`, bytes.
const IFINFO: usize = 16;
const IFADDR: usize = 8;
const ROUTE: usize = 12;

/// `linux/if_addr.h`: all flags of an address, of which the header has eight bits.
const IFA_FLAGS: u16 = 8;

/// `linux/rtnetlink.h`: attributes and metrics of a route.
const RTA_DST: u16 = 1;
const RTA_METRICS: u16 = 8;
const RTAX_MTU: u16 = 2;
const RTAX_ADVMSS: u16 = 8;

/// Addresses for documentation (RFC 5737, RFC 3849): the way to them is the way
/// to the Internet.
const SOMEWHERE: [&str; 2] = ["192.0.2.1", "2001:db8::1"];

/// The host's addresses and MTUs; `protected` are names of interfaces.
///
/// # Errors
/// Whatever the kernel returns.
pub fn host(protected: &[String]) -> io::Result<Host> {
    let links = links()?;
    let mtus = links
        .values()
        .filter(|link| protected.contains(&link.name))
        .map(|link| link.mtu);
    let [route_mtu_v4, route_mtu_v6] = SOMEWHERE.map(route_mtu);
    Ok(Host {
        protected_mtu: mtus.min(),
        addresses: addresses(&links)?,
        route_mtu_v4,
        route_mtu_v6,
    })
}

#[derive(Default)]
struct Link {
    name: String,
    mtu: u32,
    loopback: bool,
    /// The bridge or bond it is a part of.
    master: Option<u32>,
    /// What it stands on, when it takes frames from there: a VLAN, a macvlan.
    lower: Option<u32>,
}

/// Interfaces, and what belongs to them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Stack {
    /// Names: those asked for as far as they exist, the VLANs and macvlans on them, and
    /// the bridges and bonds that they are parts of.
    pub interfaces: BTreeSet<String>,
    /// Addresses of all of these.
    pub addresses: BTreeSet<IpAddr>,
}

/// Where what comes in on these interfaces arrives.
///
/// # Errors
/// Whatever the kernel returns.
pub fn stack(interfaces: &[String]) -> io::Result<Stack> {
    let links = links()?;
    let members = members(&links, interfaces);
    let mut stack = Stack::default();
    for index in &members {
        stack
            .interfaces
            .extend(links.get(index).map(|l| l.name.clone()));
    }
    for message in dump(libc::RTM_GETADDR, &[0; IFADDR])? {
        let found = parse_address(&message).filter(|(index, _)| members.contains(index));
        stack.addresses.extend(found.map(|(_, address)| address));
    }
    Ok(stack)
}

/// Indices of the links with these names, and of all that stands on them.
fn members(links: &BTreeMap<u32, Link>, names: &[String]) -> BTreeSet<u32> {
    let named = links.iter().filter(|(_, l)| names.contains(&l.name));
    let mut members: BTreeSet<u32> = named.map(|(index, _)| *index).collect();
    loop {
        let masters = members.iter().filter_map(|i| links.get(i)?.master);
        let uppers = links
            .iter()
            .filter(|(_, l)| l.lower.is_some_and(|i| members.contains(&i)));
        let more: BTreeSet<u32> = masters.chain(uppers.map(|(index, _)| *index)).collect();
        if more.is_subset(&members) {
            return members;
        }
        members.extend(more);
    }
}

fn dump(kind: u16, body: &[u8]) -> io::Result<Vec<Vec<u8>>> {
    match request(libc::NETLINK_ROUTE, kind, libc::NLM_F_DUMP, body)? {
        Reply::Messages(messages) => Ok(messages),
        Reply::Error { code, .. } => Err(io::Error::from_raw_os_error(code)),
    }
}

/// The interfaces by index.
fn links() -> io::Result<BTreeMap<u32, Link>> {
    let mut body = vec![0; IFINFO];
    // RTEXT_FILTER_SKIP_STATS
    push_attribute(&mut body, libc::IFLA_EXT_MASK, &8u32.to_ne_bytes())?;
    let messages = dump(libc::RTM_GETLINK, &body)?;
    Ok(messages.iter().filter_map(|m| parse_link(m)).collect())
}

/// Index and what is known of a link.
fn parse_link(message: &[u8]) -> Option<(u32, Link)> {
    let (index, flags) = (u32_at(message, 4)?, u32_at(message, 8)?);
    let mut link = Link {
        loopback: flags & libc::IFF_LOOPBACK as u32 != 0,
        ..Link::default()
    };
    let (mut below, mut elsewhere, mut kind) = (None, false, String::new());
    for (attribute, value) in Attributes(message.get(IFINFO..)?) {
        match attribute {
            libc::IFLA_IFNAME => link.name = text(value),
            libc::IFLA_MTU => link.mtu = u32_at(value, 0)?,
            libc::IFLA_MASTER => link.master = u32_at(value, 0),
            libc::IFLA_LINK => below = u32_at(value, 0),
            // The link below is in another network namespace, with an index of its own.
            libc::IFLA_LINK_NETNSID => elsewhere = true,
            libc::IFLA_LINKINFO => {
                let found = Attributes(value).find(|(a, _)| *a == libc::IFLA_INFO_KIND);
                kind = found.map(|(_, value)| text(value)).unwrap_or_default();
            }
            _ => {}
        }
    }
    // Of a veth pair, for one, it is the other end.
    if !elsewhere && ["vlan", "macvlan"].contains(&kind.as_str()) {
        link.lower = below;
    }
    Some((index, link))
}

/// All addresses, sorted, each once: the same may be on several interfaces, and
/// then the smallest MTU counts.
fn addresses(links: &BTreeMap<u32, Link>) -> io::Result<Vec<LocalAddress>> {
    let mut all: BTreeMap<IpAddr, Option<u32>> = BTreeMap::new();
    for message in dump(libc::RTM_GETADDR, &[0; IFADDR])? {
        let Some((index, address)) = parse_address(&message) else {
            continue;
        };
        let link = links.get(&index);
        let mtu = link.filter(|l| !l.loopback).map(|l| l.mtu);
        let known = all.entry(address).or_insert(mtu);
        *known = match (*known, mtu) {
            (Some(a), Some(b)) => Some(a.min(b)),
            (a, b) => a.or(b),
        };
    }
    let all = all.into_iter();
    Ok(all
        .map(|(address, mtu)| LocalAddress { address, mtu })
        .collect())
}

/// Index of the interface, and the address; none that is not in use, or not yet: while
/// duplicates of it are looked for, or one was found (RFC 4862, 5.4).
fn parse_address(message: &[u8]) -> Option<(u32, IpAddr)> {
    let index = u32_at(message, 4)?;
    let mut flags = u32::from(*message.get(2)?);
    let (mut own, mut other) = (None, None);
    for (kind, value) in Attributes(message.get(IFADDR..)?) {
        match kind {
            // Of a point-to-point link IFA_ADDRESS is the other end's.
            libc::IFA_LOCAL => own = address(value),
            libc::IFA_ADDRESS => other = address(value),
            IFA_FLAGS => flags = u32_at(value, 0)?,
            _ => {}
        }
    }
    // An optimistic one is in use meanwhile (RFC 4429).
    let unused = match flags & libc::IFA_F_OPTIMISTIC {
        0 => libc::IFA_F_TENTATIVE | libc::IFA_F_DADFAILED,
        _ => libc::IFA_F_DADFAILED,
    };
    if flags & unused != 0 {
        return None;
    }
    own.or(other).map(|address| (index, address))
}

fn address(value: &[u8]) -> Option<IpAddr> {
    if let Ok(octets) = <[u8; 4]>::try_from(value) {
        return Some(IpAddr::from(octets));
    }
    <[u8; 16]>::try_from(value).ok().map(IpAddr::from)
}

/// What the route to an address says of its MTU; `None` when it says nothing, or
/// there is none.
fn route_mtu(to: &str) -> Option<u32> {
    let to: IpAddr = to.parse().ok()?;
    let mut body = vec![0; ROUTE];
    let (family, octets, headers) = match to {
        IpAddr::V4(a) => (libc::AF_INET, a.octets().to_vec(), 40),
        IpAddr::V6(a) => (libc::AF_INET6, a.octets().to_vec(), 60),
    };
    if let [first, length, ..] = &mut body[..] {
        *first = family as u8;
        *length = (octets.len() * 8) as u8;
    }
    push_attribute(&mut body, RTA_DST, &octets).ok()?;
    let Ok(Reply::Messages(found)) = request(libc::NETLINK_ROUTE, libc::RTM_GETROUTE, 0, &body)
    else {
        return None;
    };
    parse_route_mtu(found.first()?, headers)
}

fn parse_route_mtu(message: &[u8], headers: u32) -> Option<u32> {
    let mut attributes = Attributes(message.get(ROUTE..)?);
    let (_, metrics) = attributes.find(|(kind, _)| *kind == RTA_METRICS)?;
    let of = |metric| {
        let (_, value) = Attributes(metrics).find(|(kind, _)| *kind == metric)?;
        u32_at(value, 0).filter(|&n| n > 0)
    };
    let advmss = of(RTAX_ADVMSS).map(|mss| mss.saturating_add(headers));
    of(RTAX_MTU).into_iter().chain(advmss).min()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_loopback_addresses_are_found() {
        let got = host(&["lo".to_owned()]).unwrap();
        let lo = got
            .addresses
            .iter()
            .find(|a| a.address.is_loopback())
            .unwrap();
        assert_eq!(lo.mtu, None);
        assert!(got.protected_mtu.is_some_and(|mtu| mtu >= 1280));
        assert_eq!(host(&[]).unwrap().protected_mtu, None);
    }

    /// A message about a link: its attributes, and its kind.
    fn link(index: u32, attributes: &[(u16, &[u8])], kind: &str) -> Vec<u8> {
        let mut message = vec![0; IFINFO];
        message[4..8].copy_from_slice(&index.to_ne_bytes());
        for (attribute, value) in attributes {
            push_attribute(&mut message, *attribute, value).unwrap();
        }
        let mut info = Vec::new();
        push_attribute(&mut info, libc::IFLA_INFO_KIND, kind.as_bytes()).unwrap();
        push_attribute(&mut message, libc::IFLA_LINKINFO | 0x8000, &info).unwrap();
        message
    }

    #[test]
    fn what_stands_on_an_interface_belongs_to_it() {
        let name = |name: &'static str| (libc::IFLA_IFNAME, name.as_bytes());
        let on = |index: &'static [u8; 4]| (libc::IFLA_LINK, &index[..]);
        let part_of = |index: &'static [u8; 4]| (libc::IFLA_MASTER, &index[..]);
        let messages = [
            link(
                2,
                &[name("eth0"), part_of(&[4, 0, 0, 0]), on(&[3, 0, 0, 0])],
                "veth",
            ),
            link(3, &[name("peer"), on(&[2, 0, 0, 0])], "veth"),
            link(4, &[name("bond0")], "bond"),
            link(5, &[name("bond0.5"), on(&[4, 0, 0, 0])], "vlan"),
            link(6, &[name("mv0"), on(&[5, 0, 0, 0])], "macvlan"),
            link(7, &[name("vx0"), on(&[2, 0, 0, 0])], "vxlan"),
            link(8, &[name("eth1")], "veth"),
            // On a link in another namespace that has the same number.
            link(
                9,
                &[
                    name("moved"),
                    on(&[4, 0, 0, 0]),
                    (libc::IFLA_LINK_NETNSID, &[0; 4]),
                ],
                "vlan",
            ),
        ];
        let links: BTreeMap<_, _> = messages.iter().filter_map(|m| parse_link(m)).collect();
        let of = |names: &[&str]| {
            let names: Vec<_> = names.iter().map(|n| (*n).to_owned()).collect();
            members(&links, &names)
        };
        assert_eq!(of(&["eth0"]), [2, 4, 5, 6].into());
        assert_eq!(of(&["eth1", "bond0.5"]), [5, 6, 8].into());
        assert_eq!(of(&["peer", "none"]), [3].into());
        for message in messages {
            for end in 0..message.len() {
                let _ = parse_link(&message[..end]);
            }
        }
    }

    #[test]
    fn the_loopback_interface_has_its_addresses() {
        let got = stack(&["lo".to_owned(), "no-such-if".to_owned()]).unwrap();
        assert_eq!(got.interfaces, ["lo".to_owned()].into());
        assert!(got.addresses.iter().all(|a| !a.is_unspecified()));
        assert!(got.addresses.contains(&IpAddr::from([127, 0, 0, 1])));
    }

    #[test]
    fn of_two_ends_the_own_one_counts() {
        let mut message = vec![0; IFADDR];
        message[4..8].copy_from_slice(&9u32.to_ne_bytes());
        push_attribute(&mut message, libc::IFA_ADDRESS, &[10, 0, 0, 2]).unwrap();
        assert_eq!(
            parse_address(&message),
            Some((9, "10.0.0.2".parse().unwrap()))
        );
        push_attribute(&mut message, libc::IFA_LOCAL, &[10, 0, 0, 1]).unwrap();
        assert_eq!(
            parse_address(&message),
            Some((9, "10.0.0.1".parse().unwrap()))
        );
        for end in 0..message.len() {
            let _ = parse_address(&message[..end]);
        }
    }

    #[test]
    fn an_address_that_is_not_in_use_is_left_out() {
        let with = |head: u32, all: Option<u32>| {
            let mut message = vec![0; IFADDR];
            message[2] = head as u8;
            push_attribute(&mut message, libc::IFA_ADDRESS, &[1; 16]).unwrap();
            if let Some(all) = all {
                push_attribute(&mut message, IFA_FLAGS, &all.to_ne_bytes()).unwrap();
            }
            parse_address(&message).is_some()
        };
        let (tentative, failed) = (libc::IFA_F_TENTATIVE, libc::IFA_F_DADFAILED);
        assert!(with(0, None) && with(libc::IFA_F_PERMANENT, Some(0x100)));
        assert!(!with(tentative, None) && !with(0, Some(tentative)));
        assert!(!with(failed, None) && !with(0, Some(failed | tentative)));
        let optimistic = tentative | libc::IFA_F_OPTIMISTIC;
        assert!(with(optimistic, None) && !with(0, Some(optimistic | failed)));
    }

    #[test]
    fn the_tighter_metric_of_a_route_counts() {
        let route = |metrics: &[(u16, u32)]| {
            let mut inner = Vec::new();
            for (kind, value) in metrics {
                push_attribute(&mut inner, *kind, &value.to_ne_bytes()).unwrap();
            }
            let mut message = vec![0; ROUTE];
            push_attribute(&mut message, RTA_METRICS, &inner).unwrap();
            parse_route_mtu(&message, 40)
        };
        assert_eq!(route(&[]), None);
        assert_eq!(route(&[(RTAX_MTU, 1400)]), Some(1400));
        assert_eq!(route(&[(RTAX_MTU, 1400), (RTAX_ADVMSS, 1300)]), Some(1340));
    }
}
