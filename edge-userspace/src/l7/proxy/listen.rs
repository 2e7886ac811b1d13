//! Sockets that clients connect to: one for each worker and address, among which the kernel
//! spreads connections (`SO_REUSEPORT`, socket(7)).

use std::{
    io,
    net::{SocketAddr, TcpListener},
};

use socket2::{Domain, Protocol, SockAddr, Socket, Type};

/// Connections that wait to be accepted, at the most; the kernel bounds it by
/// `net.core.somaxconn`.
const BACKLOG: i32 = 4096;

/// The sockets of one address, one for each worker.
///
/// # Errors
/// Those of the system; there is then none.
pub(super) fn bind(address: SocketAddr, workers: usize) -> io::Result<Vec<TcpListener>> {
    // All are bound before the first one listens: of a group that only some of have begun to
    // listen, these get everything.
    let sockets: Vec<Socket> = (0..workers)
        .map(|_| open(address))
        .collect::<io::Result<_>>()?;
    for socket in &sockets {
        socket.listen(BACKLOG)?;
    }
    Ok(sockets.into_iter().map(TcpListener::from).collect())
}

fn open(address: SocketAddr) -> io::Result<Socket> {
    let kind = Type::STREAM.nonblocking().cloexec();
    let socket = Socket::new(Domain::for_address(address), kind, Some(Protocol::TCP))?;
    if address.is_ipv6() {
        // The IPv4 address of the same name is another one.
        socket.set_only_v6(true)?;
    }
    // Connections of a former daemon may still end.
    socket.set_reuse_address(true)?;
    socket.set_reuse_port(true)?;
    socket.bind(&SockAddr::from(address))?;
    Ok(socket)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn workers_share_an_address_and_both_families_may_have_it() {
        let first = bind(([127, 0, 0, 1], 0).into(), 1).expect("bound");
        let address = first[0].local_addr().expect("an address");
        drop(first);
        let sockets = bind(address, 3).expect("bound");
        assert_eq!(sockets.len(), 3);
        for socket in &sockets {
            assert_eq!(socket.local_addr().expect("an address"), address);
        }
    }
}
