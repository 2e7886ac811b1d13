//! What changes in the kernel that next hops depend on, as it happens.

use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    os::fd::{AsRawFd, RawFd},
};

use edge_common::addr::Prefix;

use crate::{
    host::neighbours::{self, Neighbour},
    netlink::{Attributes, Subscription, address, u32_at},
};

/// What the kernel is asked to tell of. Beside routes, neighbours and interfaces: the
/// addresses of this host, one of which is the source, rules, and what routes may name
/// instead of a gateway.
const GROUPS: [u32; 9] = [
    libc::RTNLGRP_LINK,
    libc::RTNLGRP_NEIGH,
    libc::RTNLGRP_IPV4_IFADDR,
    libc::RTNLGRP_IPV4_ROUTE,
    libc::RTNLGRP_IPV4_RULE,
    libc::RTNLGRP_IPV6_IFADDR,
    libc::RTNLGRP_IPV6_ROUTE,
    libc::RTNLGRP_IPV6_RULE,
    libc::RTNLGRP_NEXTHOP,
];

/// Changes that are told one by one; more are [`Change::All`].
const MAX_CHANGES: usize = 4096;

/// `struct rtmsg`, bytes.
const RTMSG: usize = 12;

/// What may be another than before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    /// Anything.
    All,
    /// The interface with this index, or its addresses.
    Link(u32),
    /// The routes to these addresses.
    Routes(Prefix),
    /// What is known of a neighbour.
    Neighbour {
        /// Index of the interface.
        ifindex: u32,
        /// Its address.
        address: IpAddr,
    },
}

/// A socket on which the kernel tells of changes. It is readable when there are some.
#[derive(Debug)]
pub struct Watch(Subscription);

impl Watch {
    /// Watches the calling thread's network namespace from now on.
    ///
    /// # Errors
    /// Whatever the kernel returns.
    pub fn new() -> io::Result<Self> {
        let groups = GROUPS.iter().fold(0, |all, group| all | 1 << (group - 1));
        Subscription::open(libc::NETLINK_ROUTE, groups).map(Self)
    }

    /// All changes since the last call, without waiting. When the kernel had to leave some
    /// out, or there are many, that is [`Change::All`].
    ///
    /// # Errors
    /// Whatever the socket returns.
    pub fn changes(&mut self) -> io::Result<Vec<Change>> {
        let mut changes = Vec::new();
        loop {
            let messages = match self.0.next_messages() {
                Ok(Some(messages)) => messages,
                Ok(None) => break,
                Err(e) if e.raw_os_error() == Some(libc::ENOBUFS) => {
                    changes = vec![Change::All];
                    continue;
                }
                Err(e) => return Err(e),
            };
            if changes.first() == Some(&Change::All) {
                // To the end all the same: the next call is about what comes after it.
                continue;
            }
            changes.extend(messages.filter_map(|message| match message {
                Some(message) => change(message.kind, message.payload),
                None => Some(Change::All),
            }));
            if changes.len() > MAX_CHANGES || changes.contains(&Change::All) {
                changes = vec![Change::All];
            }
        }
        Ok(changes)
    }
}

/// The same descriptor as long as it lives.
impl AsRawFd for Watch {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_raw_fd()
    }
}

/// What a message tells; `None` for nothing that matters. What is not understood may be
/// anything.
fn change(kind: u16, message: &[u8]) -> Option<Change> {
    match kind {
        libc::RTM_NEWLINK | libc::RTM_DELLINK | libc::RTM_NEWADDR | libc::RTM_DELADDR => {
            Some(u32_at(message, 4).map_or(Change::All, Change::Link))
        }
        libc::RTM_NEWROUTE | libc::RTM_DELROUTE => {
            Some(routes(message).map_or(Change::All, Change::Routes))
        }
        libc::RTM_NEWNEIGH | libc::RTM_DELNEIGH | libc::RTM_GETNEIGH => {
            let (of, _) = neighbours::parse(message)?;
            let Neighbour { interface, address } = of;
            Some(Change::Neighbour {
                ifindex: interface,
                address,
            })
        }
        _ => Some(Change::All),
    }
}

/// The addresses that a route is for.
fn routes(message: &[u8]) -> Option<Prefix> {
    let (family, length) = (libc::c_int::from(*message.first()?), *message.get(1)?);
    let mut attributes = Attributes(message.get(RTMSG..)?);
    let to = match attributes.find(|(kind, _)| *kind == libc::RTA_DST) {
        Some((_, value)) => address(value)?,
        // The default route has none.
        None if family == libc::AF_INET => Ipv4Addr::UNSPECIFIED.into(),
        None if family == libc::AF_INET6 => Ipv6Addr::UNSPECIFIED.into(),
        None => return None,
    };
    Prefix::new(to, length).ok()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::{host::neighbours::tests as neighbour, netlink::push_attribute};

    fn route(family: libc::c_int, length: u8, to: Option<&[u8]>) -> Vec<u8> {
        let mut message = vec![0; RTMSG];
        (message[0], message[1]) = (family as u8, length);
        if let Some(to) = to {
            push_attribute(&mut message, libc::RTA_DST, to).unwrap();
        }
        message
    }

    #[test]
    fn messages_tell_what_they_are_about() {
        let mut link = vec![0; 16];
        link[4..8].copy_from_slice(&7u32.to_ne_bytes());
        for kind in [libc::RTM_NEWLINK, libc::RTM_DELLINK, libc::RTM_DELADDR] {
            assert_eq!(change(kind, &link), Some(Change::Link(7)));
        }
        let about = |message: &[u8]| match change(libc::RTM_DELROUTE, message) {
            Some(Change::Routes(prefix)) => prefix.to_string(),
            other => format!("{other:?}"),
        };
        let v4 = route(libc::AF_INET, 24, Some(&[192, 0, 2, 0]));
        assert_eq!(about(&v4), "192.0.2.0/24");
        assert_eq!(about(&route(libc::AF_INET, 0, None)), "0.0.0.0/0");
        assert_eq!(about(&route(libc::AF_INET6, 0, None)), "::/0");
        // Not a prefix, not a family.
        assert_eq!(about(&route(libc::AF_INET, 24, Some(&[1; 4]))), "Some(All)");
        assert_eq!(about(&route(libc::AF_MPLS, 20, None)), "Some(All)");
        let known = Change::Neighbour {
            ifindex: 3,
            address: IpAddr::from([192, 0, 2, 7]),
        };
        let message = neighbour::message(libc::NUD_FAILED, None);
        assert_eq!(change(libc::RTM_NEWNEIGH, &message), Some(known));
        assert_eq!(change(libc::RTM_NEWRULE, &[]), Some(Change::All));
    }

    #[test]
    fn what_bridges_learn_is_no_change() {
        let mut message = neighbour::message(libc::NUD_REACHABLE, Some(&[2; 6]));
        message[0] = libc::AF_BRIDGE as u8;
        assert_eq!(change(libc::RTM_NEWNEIGH, &message), None);
    }

    proptest! {
        #[test]
        fn no_message_panics(
            kind in 0u16..128,
            noise in proptest::collection::vec(any::<u8>(), 0..60),
        ) {
            let _ = change(kind, &noise);
            let mut message = route(libc::AF_INET6, 64, Some(&[0; 16]));
            for (to, byte) in message[1..].iter_mut().zip(noise) {
                *to = byte;
            }
            let _ = change(kind, &message);
        }
    }
}
