//! Listening TCP sockets, by sock_diag(7).

use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use crate::{
    netlink::{Attributes, Reply, request, u32_at},
    services::facts::{Listener, Listeners},
};

/// `linux/sock_diag.h`, `linux/inet_diag.h`.
const SOCK_DIAG_BY_FAMILY: u16 = 20;
const INET_DIAG_SKMEMINFO: u16 = 7;
const INET_DIAG_SKV6ONLY: u16 = 11;
/// The receive buffer among the words of the former.
const SK_MEMINFO_RCVBUF: usize = 1;
/// `TCP_LISTEN` (linux/tcp_states.h).
const LISTEN: u32 = 10;
/// `struct inet_diag_req_v2` and `struct inet_diag_msg`, bytes.
const REQUEST: usize = 56;
const MESSAGE: usize = 72;

/// All listeners of both families.
///
/// # Errors
/// Whatever the kernel returns.
pub fn listeners() -> io::Result<Listeners> {
    let mut all = Vec::new();
    for family in [libc::AF_INET, libc::AF_INET6] {
        let mut body = vec![0; REQUEST];
        if let [to, protocol, extensions, ..] = &mut body[..] {
            *to = family as u8;
            *protocol = libc::IPPROTO_TCP as u8;
            *extensions = 1 << (INET_DIAG_SKMEMINFO - 1);
        }
        if let Some(states) = body.get_mut(4..8) {
            // Nothing else, or the kernel walks through every connection.
            states.copy_from_slice(&(1u32 << LISTEN).to_ne_bytes());
        }
        let flags = libc::NLM_F_DUMP;
        match request(libc::NETLINK_SOCK_DIAG, SOCK_DIAG_BY_FAMILY, flags, &body)? {
            Reply::Messages(messages) => all.extend(messages.iter().filter_map(|m| parse(m))),
            Reply::Error { code, .. } => refused(family, code)?,
        }
    }
    Ok(Listeners::new(all))
}

/// What it means that a dump of a family is refused. IPv4 is asked for first.
fn refused(family: libc::c_int, code: libc::c_int) -> io::Result<()> {
    match (family, code) {
        // A kernel without IPv6.
        (libc::AF_INET6, libc::ENOENT) => Ok(()),
        (_, libc::ENOENT) => Err(io::Error::new(
            io::ErrorKind::NotFound,
            "no tcp_diag or inet_diag in this kernel: listeners cannot be found",
        )),
        _ => Err(io::Error::from_raw_os_error(code)),
    }
}

fn parse(message: &[u8]) -> Option<Listener> {
    let (family, port) = (*message.first()?, message.get(4..6)?);
    let address = message.get(8..24)?;
    let address = match libc::c_int::from(family) {
        libc::AF_INET => IpAddr::V4(Ipv4Addr::from(*address.first_chunk::<4>()?)),
        libc::AF_INET6 => Ipv6Addr::from(*address.first_chunk::<16>()?).to_canonical(),
        _ => return None,
    };
    let (mut v6only, mut rcvbuf) = (false, 0);
    for (kind, value) in Attributes(message.get(MESSAGE..)?) {
        match kind {
            INET_DIAG_SKV6ONLY => v6only = *value.first()? != 0,
            INET_DIAG_SKMEMINFO => rcvbuf = u32_at(value, 4 * SK_MEMINFO_RCVBUF)?,
            _ => {}
        }
    }
    Some(Listener {
        address,
        port: u16::from_be_bytes(*port.first_chunk()?),
        v6only,
        device: u32_at(message, 40)?,
        inode: u32_at(message, 68)?,
        rcvbuf,
    })
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::*;

    #[test]
    fn listeners_of_both_families_are_found() {
        for at in ["127.0.0.1:0", "[::1]:0", "[::]:0", "0.0.0.0:0"] {
            let socket = TcpListener::bind(at).unwrap();
            let at = socket.local_addr().unwrap();
            let all = listeners().unwrap();
            let place = all.find(at.ip(), at.port()).unwrap();
            let [found] = all.at(&place) else {
                panic!("{at}")
            };
            assert_eq!((found.address, found.port), (at.ip(), at.port()));
            assert!(found.inode > 0 && found.rcvbuf > 0, "{found:?}");
            assert_eq!(found.device, 0);
            // One that is bound to an IPv6 address has nothing to do with IPv4.
            assert_eq!(found.v6only, at.ip() == IpAddr::V6(Ipv6Addr::LOCALHOST));
            drop(socket);
            let all = listeners().unwrap();
            assert!(all.at(&place).is_empty(), "{at}");
        }
    }

    #[test]
    fn a_kernel_may_lack_ipv6_but_not_the_dump() {
        assert!(refused(libc::AF_INET6, libc::ENOENT).is_ok());
        let error = refused(libc::AF_INET, libc::ENOENT).unwrap_err();
        assert!(error.to_string().contains("inet_diag"), "{error}");
        for family in [libc::AF_INET, libc::AF_INET6] {
            let error = refused(family, libc::ENOMEM).unwrap_err();
            assert_eq!(error.raw_os_error(), Some(libc::ENOMEM));
        }
    }

    #[test]
    fn no_truncation_of_a_message_panics() {
        let mut whole = vec![0; MESSAGE];
        whole[0] = libc::AF_INET as u8;
        crate::netlink::push_attribute(&mut whole, INET_DIAG_SKMEMINFO, &[0; 32]).unwrap();
        assert!(parse(&whole).is_some());
        for end in 0..whole.len() {
            let _ = parse(&whole[..end]);
        }
    }
}
