//! What the kernel knows of its neighbours' MAC addresses, by rtnetlink(7).

use std::{io, net::IpAddr};

use crate::netlink::{
    Attributes, Reply, Socket, address, bad, family, push_address, u16_at, u32_at,
};

/// `struct ndmsg`, bytes.
const NDMSG: usize = 12;

/// States in which the kernel sends to a neighbour's MAC address: it is known, or was and is
/// not yet known to be wrong (`NUD_VALID`).
const USABLE: u16 = libc::NUD_REACHABLE
    | libc::NUD_STALE
    | libc::NUD_DELAY
    | libc::NUD_PROBE
    | libc::NUD_PERMANENT
    | libc::NUD_NOARP;

/// States out of which the kernel does nothing until somebody wants to send. In the
/// others it is asking, or need not.
const AT_REST: u16 = libc::NUD_STALE | libc::NUD_FAILED;

/// An address on a link.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Neighbour {
    /// Index of the interface.
    pub interface: u32,
    /// The address.
    pub address: IpAddr,
}

/// What is known of a neighbour.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Resolution {
    /// Its MAC address, if it can be used.
    pub mac: Option<[u8; 6]>,
    /// Whether the kernel leaves it at that until it is provoked.
    pub at_rest: bool,
}

impl Resolution {
    /// Of one that the kernel has no entry for.
    pub(super) const NONE: Self = Self {
        mac: None,
        at_rest: true,
    };
}

/// What the kernel knows of a neighbour.
///
/// # Errors
/// Whatever the kernel returns, and `InvalidData` for a reply that makes no sense.
pub(super) fn resolution(socket: &mut Socket, of: Neighbour) -> io::Result<Resolution> {
    match socket.request(libc::RTM_GETNEIGH, 0, &body(of, 0)?)? {
        Reply::Messages(messages) => {
            let found = messages.first().and_then(|message| parse(message));
            found
                .map(|(_, found)| found)
                .ok_or_else(|| bad("neighbour"))
        }
        Reply::Error { code, .. } => match code {
            // The interface may go at any time.
            libc::ENOENT | libc::ENODEV => Ok(Resolution::NONE),
            _ => Err(io::Error::from_raw_os_error(code)),
        },
    }
}

/// Makes the kernel ask for a neighbour, or confirm what it knows, as if it had a packet
/// for it: one that it does not know it asks for now, a stale one after a pause. What it
/// refuses is an error number.
///
/// Only for one that [is at rest](Resolution::at_rest): what an administrator entered for
/// good would be forgotten (`__neigh_update` with `NEIGH_UPDATE_F_USE`).
///
/// # Errors
/// Whatever the socket returns.
pub(super) fn provoke(socket: &mut Socket, of: Neighbour) -> io::Result<Result<(), i32>> {
    let flags = libc::NLM_F_CREATE | libc::NLM_F_REPLACE | libc::NLM_F_ACK;
    match socket.request(libc::RTM_NEWNEIGH, flags, &body(of, libc::NTF_USE)?)? {
        Reply::Messages(_) => Ok(Ok(())),
        Reply::Error { code, .. } => Ok(Err(code)),
    }
}

fn body(of: Neighbour, flags: u8) -> io::Result<Vec<u8>> {
    let mut body = vec![family(of.address), 0, 0, 0];
    body.extend_from_slice(&of.interface.to_ne_bytes());
    body.extend_from_slice(&libc::NUD_NONE.to_ne_bytes());
    body.extend_from_slice(&[flags, 0]);
    push_address(&mut body, libc::NDA_DST, of.address)?;
    Ok(body)
}

/// A neighbour and what is known of it, out of a message of the kernel.
pub(super) fn parse(message: &[u8]) -> Option<(Neighbour, Resolution)> {
    let (interface, state) = (u32_at(message, 4)?, u16_at(message, 8)?);
    let (mut of, mut mac) = (None, None);
    for (kind, value) in Attributes(message.get(NDMSG..)?) {
        match kind {
            libc::NDA_DST => of = address(value),
            libc::NDA_LLADDR => mac = <[u8; 6]>::try_from(value).ok(),
            _ => {}
        }
    }
    let address = of?;
    if *message.first()? != family(address) {
        // An entry of a bridge.
        return None;
    }
    let usable = state & USABLE != 0;
    let resolution = Resolution {
        mac: mac.filter(|mac| usable && *mac != [0; 6]),
        at_rest: state == libc::NUD_NONE || state & AT_REST != 0,
    };
    Some((Neighbour { interface, address }, resolution))
}

#[cfg(test)]
pub(super) mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::netlink::push_attribute;

    const MAC: [u8; 6] = [2, 0xed, 0, 0, 0, 2];

    /// A message about 192.0.2.7 on interface 3.
    pub(in crate::host) fn message(state: u16, mac: Option<&[u8]>) -> Vec<u8> {
        let of = Neighbour {
            interface: 3,
            address: IpAddr::from([192, 0, 2, 7]),
        };
        let mut message = body(of, 0).unwrap();
        message[8..10].copy_from_slice(&state.to_ne_bytes());
        if let Some(mac) = mac {
            push_attribute(&mut message, libc::NDA_LLADDR, mac).unwrap();
        }
        message
    }

    #[test]
    fn what_the_kernel_would_send_to_is_usable() {
        let read = |state, mac: Option<&[u8]>| {
            let (of, found) = parse(&message(state, mac)).unwrap();
            assert_eq!(
                (of.interface, of.address.to_string()),
                (3, "192.0.2.7".into())
            );
            (found.mac, found.at_rest)
        };
        let known = Some(&MAC[..]);
        for state in [
            libc::NUD_REACHABLE,
            libc::NUD_DELAY,
            libc::NUD_PROBE,
            libc::NUD_PERMANENT,
            libc::NUD_NOARP,
        ] {
            assert_eq!(read(state, known), (Some(MAC), false), "{state:#x}");
        }
        assert_eq!(read(libc::NUD_STALE, known), (Some(MAC), true));
        assert_eq!(read(libc::NUD_INCOMPLETE, None), (None, false));
        assert_eq!(read(libc::NUD_FAILED, known), (None, true));
        assert_eq!(read(libc::NUD_NONE, known), (None, true));
        // What is no Ethernet address, or none at all.
        assert_eq!(read(libc::NUD_REACHABLE, Some(&[1; 8])), (None, false));
        assert_eq!(read(libc::NUD_REACHABLE, Some(&[0; 6])), (None, false));
        assert_eq!(read(libc::NUD_NOARP, None), (None, false));
    }

    #[test]
    fn entries_of_bridges_are_no_neighbours() {
        let mut bridge = message(libc::NUD_REACHABLE, Some(&MAC));
        bridge[0] = libc::AF_BRIDGE as u8;
        assert_eq!(parse(&bridge), None);
    }

    proptest! {
        #[test]
        fn no_message_panics(
            noise in proptest::collection::vec(any::<u8>(), 0..60),
            at in any::<prop::sample::Index>(),
            end in any::<prop::sample::Index>(),
        ) {
            let _ = parse(&noise);
            let mut message = message(libc::NUD_STALE, Some(&MAC));
            let _ = parse(&message[..end.index(message.len())]);
            let at = at.index(message.len());
            for (to, byte) in message[at..].iter_mut().zip(noise) {
                *to = byte;
            }
            let _ = parse(&message);
        }
    }
}
