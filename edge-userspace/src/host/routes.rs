//! Which way the kernel would send a packet, by rtnetlink(7): what `ip route get` asks.

use std::{io, net::IpAddr};

use crate::netlink::{
    Attributes, Reply, Socket, address, bad, family, push_address, push_attribute, u16_at, u32_at,
};

/// `struct rtmsg`, bytes.
const RTMSG: usize = 12;

/// `linux/rtnetlink.h`: attributes of a route that not every libc has, and its metrics.
const RTA_VIA: u16 = 18;
const RTA_ENCAP: u16 = 22;
const RTAX_MTU: u16 = 2;
const RTAX_ADVMSS: u16 = 8;

/// The way to an address.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Route {
    /// What is done with packets (`RTN_*`).
    pub kind: u8,
    /// Index of the interface they leave by; 0 for none.
    pub interface: u32,
    /// Who takes them on; `None`: the address itself.
    pub gateway: Option<IpAddr>,
    /// The address of this host that they come from.
    pub source: Option<IpAddr>,
    /// What it says of the largest packet, bytes.
    pub mtu: Option<u32>,
    /// What it says of the largest TCP segment that is announced, bytes.
    pub advmss: Option<u32>,
    /// Whether packets are put into others on the way (MPLS, segments, tunnels).
    pub encapsulates: bool,
}

/// The way to an address, or the error number that a packet would get.
///
/// # Errors
/// Whatever the socket returns, and `InvalidData` for a reply that makes no sense.
pub(super) fn route(socket: &mut Socket, to: IpAddr) -> io::Result<Result<Route, i32>> {
    ask(socket, to, None)
}

/// The same for a packet of a socket with a mark (`SO_MARK`).
///
/// # Errors
/// As [`route`].
pub(super) fn route_of_mark(
    socket: &mut Socket,
    to: IpAddr,
    mark: u32,
) -> io::Result<Result<Route, i32>> {
    ask(socket, to, Some(mark))
}

fn ask(socket: &mut Socket, to: IpAddr, mark: Option<u32>) -> io::Result<Result<Route, i32>> {
    let mut body = vec![0; RTMSG];
    if let [of, length, ..] = &mut body[..] {
        *of = family(to);
        *length = if to.is_ipv4() { 32 } else { 128 };
    }
    push_address(&mut body, libc::RTA_DST, to)?;
    if let Some(mark) = mark {
        push_attribute(&mut body, libc::RTA_MARK, &mark.to_ne_bytes())?;
    }
    match socket.request(libc::RTM_GETROUTE, 0, &body)? {
        Reply::Messages(messages) => {
            let route = messages.first().and_then(|message| parse(message));
            route.map(Ok).ok_or_else(|| bad("route"))
        }
        Reply::Error { code, .. } => Ok(Err(code)),
    }
}

fn parse(message: &[u8]) -> Option<Route> {
    let mut route = Route {
        kind: *message.get(7)?,
        ..Route::default()
    };
    for (kind, value) in Attributes(message.get(RTMSG..)?) {
        match kind {
            libc::RTA_OIF => route.interface = u32_at(value, 0)?,
            libc::RTA_GATEWAY => route.gateway = Some(address(value)?),
            RTA_VIA => route.gateway = Some(parse_via(value)?),
            libc::RTA_PREFSRC => route.source = Some(address(value)?),
            RTA_ENCAP => route.encapsulates = true,
            libc::RTA_METRICS => {
                let metrics = Attributes(value).filter_map(|(k, v)| Some((k, u32_at(v, 0)?)));
                for (metric, value) in metrics.filter(|(_, value)| *value > 0) {
                    match metric {
                        RTAX_MTU => route.mtu = Some(value),
                        RTAX_ADVMSS => route.advmss = Some(value),
                        _ => {}
                    }
                }
            }
            _ => {}
        }
    }
    Some(route)
}

/// A gateway of another family than the route's: `struct rtvia`.
fn parse_via(value: &[u8]) -> Option<IpAddr> {
    let gateway = address(value.get(2..)?)?;
    (u16_at(value, 0)? == u16::from(family(gateway))).then_some(gateway)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn message() -> Vec<u8> {
        let mut message = vec![0; RTMSG];
        (message[0], message[7]) = (libc::AF_INET as u8, libc::RTN_UNICAST);
        let mut metrics = Vec::new();
        push_attribute(&mut metrics, RTAX_MTU, &1400u32.to_ne_bytes()).unwrap();
        push_attribute(&mut metrics, RTAX_ADVMSS, &0u32.to_ne_bytes()).unwrap();
        let mut push = |kind, value: &[u8]| push_attribute(&mut message, kind, value).unwrap();
        push(libc::RTA_DST, &[198, 51, 100, 7]);
        push(libc::RTA_OIF, &3u32.to_ne_bytes());
        push(libc::RTA_PREFSRC, &[192, 0, 2, 1]);
        push(libc::RTA_METRICS, &metrics);
        message
    }

    #[test]
    fn a_route_is_read() {
        let direct = Route {
            kind: libc::RTN_UNICAST,
            interface: 3,
            gateway: None,
            source: Some(IpAddr::from([192, 0, 2, 1])),
            mtu: Some(1400),
            advmss: None,
            encapsulates: false,
        };
        assert_eq!(parse(&message()), Some(direct));
        let with = |kind, value: &[u8]| {
            let mut message = message();
            push_attribute(&mut message, kind, value).unwrap();
            parse(&message)
        };
        let behind = Route {
            gateway: Some(IpAddr::from([192, 0, 2, 9])),
            ..direct
        };
        assert_eq!(with(libc::RTA_GATEWAY, &[192, 0, 2, 9]), Some(behind));
        let v6 = IpAddr::from([0xfe80, 0, 0, 0, 0, 0, 0, 9]);
        let mut via = (libc::AF_INET6 as u16).to_ne_bytes().to_vec();
        let IpAddr::V6(octets) = v6 else { panic!() };
        via.extend(octets.octets());
        let behind = Route {
            gateway: Some(v6),
            ..direct
        };
        assert_eq!(with(RTA_VIA, &via), Some(behind));
        via[0] = libc::AF_INET as u8;
        assert_eq!(with(RTA_VIA, &via), None);
        let encapsulates = Route {
            encapsulates: true,
            ..direct
        };
        assert_eq!(with(RTA_ENCAP, &[]), Some(encapsulates));
        assert_eq!(with(libc::RTA_GATEWAY, &[1, 2, 3]), None);
    }

    #[test]
    fn the_way_to_oneself_is_local() {
        let mut socket = Socket::open(libc::NETLINK_ROUTE).unwrap();
        let lo = route(&mut socket, IpAddr::from([127, 0, 0, 1])).unwrap();
        let lo = lo.unwrap();
        assert_eq!((lo.kind, lo.interface), (libc::RTN_LOCAL, 1));
    }

    proptest! {
        #[test]
        fn no_message_panics(
            noise in proptest::collection::vec(any::<u8>(), 0..200),
            at in any::<prop::sample::Index>(),
            end in any::<prop::sample::Index>(),
        ) {
            let _ = parse(&noise);
            let mut message = message();
            let _ = parse(&message[..end.index(message.len())]);
            let at = at.index(message.len());
            for (to, byte) in message[at..].iter_mut().zip(noise) {
                *to = byte;
            }
            let _ = parse(&message);
        }
    }
}
