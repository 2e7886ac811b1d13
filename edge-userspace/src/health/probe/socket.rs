//! Sockets that leave this host by the way that the check has to take.

use std::{
    io,
    net::{SocketAddr, TcpStream as StdTcpStream},
    os::fd::AsRawFd as _,
};

use socket2::{Domain, Socket, Type};
use tokio::net::{TcpSocket, TcpStream};

use super::{Deadline, ProbeError, Waiting, Way, error::not_asked};
use crate::health::target::Route;

/// A socket of the family of `target` that goes its way, not yet connected.
pub(super) fn open(target: SocketAddr, way: &Way<'_>, kind: Type) -> Result<Socket, ProbeError> {
    let socket = Socket::new(Domain::for_address(target), kind.nonblocking(), None)
        .map_err(not_asked("socket"))?;
    way.take(&socket, target, kind)?;
    Ok(socket)
}

/// Has a socket go as a route says that leads through no tunnel.
pub(super) fn take(socket: &Socket, route: &Route) -> Result<(), ProbeError> {
    if let Some(mark) = route.fwmark {
        socket.set_mark(mark).map_err(not_asked("mark"))?;
    }
    if let Some(device) = &route.device {
        socket
            .bind_device(Some(device.as_bytes()))
            .map_err(not_asked("interface"))?;
    }
    if let Some(source) = route.source {
        choose_port_late(socket).map_err(not_asked("socket"))?;
        socket
            .bind(&SocketAddr::new(source, 0).into())
            .map_err(not_asked("source address"))?;
    }
    Ok(())
}

/// Lets connect(2) choose the port, which then need not differ from those of
/// connections to other backends (`IP_BIND_ADDRESS_NO_PORT`, for both families): else
/// there would be only some 28,000 for all.
fn choose_port_late(socket: &Socket) -> io::Result<()> {
    let on: libc::c_int = 1;
    // SAFETY: the pointer and length are those of `on`, which the kernel only reads.
    let status = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::IPPROTO_IP,
            libc::IP_BIND_ADDRESS_NO_PORT,
            (&raw const on).cast(),
            size_of_val(&on) as libc::socklen_t,
        )
    };
    if status == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

/// A TCP connection to `target`.
pub(super) async fn connect(
    target: SocketAddr,
    way: &Way<'_>,
    deadline: Deadline,
) -> Result<TcpStream, ProbeError> {
    let socket = open(target, way, Type::STREAM)?;
    let socket = TcpSocket::from_std_stream(StdTcpStream::from(socket));
    let connecting = async { socket.connect(target).await.map_err(refused) };
    deadline.within(Waiting::Connect, connecting).await
}

/// What connect(2) says: about the backend, or about what this host has run out of.
pub(super) fn refused(error: io::Error) -> ProbeError {
    match error.raw_os_error() {
        // No port is left; no memory; no descriptor for the runtime.
        Some(
            libc::EADDRNOTAVAIL
            | libc::EAGAIN
            | libc::ENOBUFS
            | libc::ENOMEM
            | libc::EMFILE
            | libc::ENFILE,
        ) => ProbeError::NotAsked {
            doing: "connect",
            source: error,
        },
        _ => ProbeError::Connect(error),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    const HERE: &str = "127.0.0.1:9";

    fn not_asked(route: &Route) -> String {
        let error = open(HERE.parse().unwrap(), &Way::direct(route), Type::STREAM).unwrap_err();
        assert!(matches!(error, ProbeError::NotAsked { .. }), "{error:?}");
        error.to_string()
    }

    #[test]
    fn the_route_is_that_of_the_socket() {
        let route = Route {
            // Needs CAP_NET_ADMIN, which the tests have.
            fwmark: Some(0x2a),
            source: Some("127.0.0.7".parse().unwrap()),
            device: Some(Arc::from("lo")),
            ..Route::default()
        };
        let way = Way::direct(&route);
        let socket = open(HERE.parse().unwrap(), &way, Type::DGRAM).unwrap();
        assert_eq!(socket.mark().unwrap(), 0x2a);
        assert_eq!(socket.device().unwrap().unwrap(), b"lo");
        let local = socket.local_addr().unwrap().as_socket().unwrap();
        assert_eq!(local, "127.0.0.7:0".parse().unwrap());
    }

    #[test]
    fn both_families_choose_their_port_late() {
        for (target, source) in [(HERE, "127.0.0.1"), ("[::1]:9", "::1")] {
            let route = Route {
                source: Some(source.parse().unwrap()),
                ..Route::default()
            };
            let way = Way::direct(&route);
            let socket = open(target.parse().unwrap(), &way, Type::STREAM).unwrap();
            let local = socket.local_addr().unwrap().as_socket().unwrap();
            assert_eq!((local.ip().to_string().as_str(), local.port()), (source, 0));
        }
    }

    #[test]
    fn what_this_host_cannot_do_is_not_the_backends_fault() {
        let device = Route {
            device: Some(Arc::from("no-such-device")),
            ..Route::default()
        };
        assert_eq!(not_asked(&device), "not asked: interface: no such device");
        let source = Route {
            // TEST-NET-1: nobody has it.
            source: Some("192.0.2.1".parse().unwrap()),
            ..Route::default()
        };
        assert_eq!(
            not_asked(&source),
            "not asked: source address: cannot assign requested address"
        );
        let full = refused(io::Error::from_raw_os_error(libc::EADDRNOTAVAIL));
        assert!(matches!(full, ProbeError::NotAsked { .. }));
        let none = refused(io::Error::from_raw_os_error(libc::ECONNREFUSED));
        assert!(matches!(none, ProbeError::Connect(_)));
    }
}
