//! Addresses and MTUs, by rtnetlink(7).

use std::{collections::BTreeMap, io, net::IpAddr};

use super::{
    links::{Link, links},
    routes::{Route, route},
};
use crate::{
    netlink::{Attributes, Reply, Socket, address, request, u32_at},
    services::facts::{Host, LocalAddress},
};

/// `struct ifaddrmsg`, bytes.
const IFADDR: usize = 8;

/// `linux/if_addr.h`: all flags of an address, of which the header has eight bits.
const IFA_FLAGS: u16 = 8;

/// Addresses for documentation (RFC 5737, RFC 3849): the way to them is the way
/// to the Internet.
const SOMEWHERE: [&str; 2] = ["192.0.2.1", "2001:db8::1"];

/// The host's addresses and MTUs; `protected` are names of interfaces.
///
/// # Errors
/// Whatever the kernel returns.
pub fn host(protected: &[String]) -> io::Result<Host> {
    let links = links()?;
    let [route_mtu_v4, route_mtu_v6] = SOMEWHERE.map(route_mtu);
    Ok(Host {
        protected_mtu: smallest(&links, protected),
        addresses: addresses(&links)?,
        route_mtu_v4,
        route_mtu_v6,
    })
}

/// The smallest MTU of interfaces with these names, bytes; `None` while there is none.
///
/// # Errors
/// Whatever the kernel returns.
pub fn smallest_mtu(protected: &[String]) -> io::Result<Option<u32>> {
    Ok(smallest(&links()?, protected))
}

fn smallest(links: &BTreeMap<u32, Link>, protected: &[String]) -> Option<u32> {
    let protected = links.values().filter(|link| protected.contains(&link.name));
    protected.map(|link| link.mtu).min()
}

/// What the kernel says of all addresses, a message each.
fn dump() -> io::Result<Vec<Vec<u8>>> {
    let (kind, flags) = (libc::RTM_GETADDR, libc::NLM_F_DUMP);
    match request(libc::NETLINK_ROUTE, kind, flags, &[0; IFADDR])? {
        Reply::Messages(messages) => Ok(messages),
        Reply::Error { code, .. } => Err(io::Error::from_raw_os_error(code)),
    }
}

/// The addresses of interfaces, with the indices of those.
pub(super) fn by_interface() -> io::Result<impl Iterator<Item = (u32, IpAddr)>> {
    Ok(dump()?.into_iter().filter_map(|m| parse_address(&m)))
}

/// All addresses, sorted, each once: the same may be on several interfaces, and
/// then the smallest MTU counts.
fn addresses(links: &BTreeMap<u32, Link>) -> io::Result<Vec<LocalAddress>> {
    let mut all: BTreeMap<IpAddr, Option<u32>> = BTreeMap::new();
    let (kind, flags) = (libc::RTM_GETADDR, libc::NLM_F_DUMP);
    let messages = match request(libc::NETLINK_ROUTE, kind, flags, &[0; IFADDR])? {
        Reply::Messages(messages) => messages,
        Reply::Error { code, .. } => return Err(io::Error::from_raw_os_error(code)),
    };
    for message in messages {
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

/// What the route to an address says of its MTU; `None` when it says nothing, or
/// there is none.
fn route_mtu(to: &str) -> Option<u32> {
    let to: IpAddr = to.parse().ok()?;
    let mut socket = Socket::open(libc::NETLINK_ROUTE).ok()?;
    let headers = if to.is_ipv4() { 40 } else { 60 };
    tighter_mtu(&route(&mut socket, to).ok()?.ok()?, headers)
}

fn tighter_mtu(route: &Route, headers: u32) -> Option<u32> {
    let advmss = route.advmss.map(|mss| mss.saturating_add(headers));
    route.mtu.into_iter().chain(advmss).min()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::netlink::push_attribute;

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
        let tighter = |mtu, advmss| {
            let route = Route {
                mtu,
                advmss,
                ..Route::default()
            };
            tighter_mtu(&route, 40)
        };
        assert_eq!(tighter(None, None), None);
        assert_eq!(tighter(Some(1400), None), Some(1400));
        assert_eq!(tighter(Some(1400), Some(1300)), Some(1340));
    }
}
