//! Asks a listener of this host for its window scale.
//!
//! A SYN goes out through a raw socket, from an address of the host to the same
//! one. It comes back in over the loopback interface, the listener answers, and
//! the kernel resets the half-open connection, for nobody has opened one: the
//! application never sees it. Its source is a port that a bound socket keeps free
//! meanwhile.

use std::{
    io,
    net::SocketAddr,
    os::fd::{AsRawFd, FromRawFd, OwnedFd},
    time::{Duration, Instant},
};

use crate::services::probe::{scale_of, syn};

/// `None` when there was no answer in time; else the scale, or that there is none.
///
/// # Errors
/// Whatever the kernel returns, such as `EPERM` without `CAP_NET_RAW`.
pub fn window_scale(at: SocketAddr, patience: Duration) -> io::Result<Option<Option<u8>>> {
    let deadline = Instant::now() + patience;
    let any_port = SocketAddr::new(at.ip(), 0);
    let port_holder = socket(at, libc::SOCK_STREAM)?;
    bind(&port_holder, any_port)?;
    let from = SocketAddr::new(at.ip(), local_port(&port_holder)?);
    let raw = socket(at, libc::SOCK_RAW)?;
    keep_only(&raw, at, from.port())?;
    bind(&raw, any_port)?;
    connect(&raw, any_port)?;
    let seq = crate::clock::Now::read().mono_ns as u32;
    let segment = syn(from, at, seq);
    // SAFETY: the pointer and length are those of a live buffer.
    let sent = unsafe { libc::send(raw.as_raw_fd(), segment.as_ptr().cast(), segment.len(), 0) };
    if sent < 0 {
        return Err(io::Error::last_os_error());
    }
    let mut buffer = [0; 256];
    while wait_readable(&raw, deadline)? {
        // SAFETY: the pointer and length are those of a live, writable buffer.
        let got = unsafe {
            libc::recv(
                raw.as_raw_fd(),
                buffer.as_mut_ptr().cast(),
                buffer.len(),
                libc::MSG_DONTWAIT,
            )
        };
        let Ok(got) = usize::try_from(got) else {
            let error = io::Error::last_os_error();
            match error.kind() {
                io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted => continue,
                _ => return Err(error),
            }
        };
        let packet = buffer.get(..got).unwrap_or(&buffer);
        let header = match (at, packet.first()) {
            (SocketAddr::V4(_), Some(first)) => usize::from(first & 0xf) * 4,
            _ => 0,
        };
        let segment = packet.get(header..).unwrap_or_default();
        if let Some(answer) = scale_of(segment, from, at, seq) {
            return Ok(Some(answer));
        }
    }
    Ok(None)
}

fn socket(at: SocketAddr, kind: libc::c_int) -> io::Result<OwnedFd> {
    let family = if at.is_ipv4() {
        libc::AF_INET
    } else {
        libc::AF_INET6
    };
    // SAFETY: no pointers are passed.
    let fd = unsafe { libc::socket(family, kind | libc::SOCK_CLOEXEC, libc::IPPROTO_TCP) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the descriptor is new and nobody else has it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Leaves out what is not for the port, before it takes room in the buffer.
fn keep_only(raw: &OwnedFd, at: SocketAddr, port: u16) -> io::Result<()> {
    const LOAD_HEADER_LENGTH: u16 = (libc::BPF_LDX | libc::BPF_B | libc::BPF_MSH) as u16;
    const LOAD_BEHIND_HEADER: u16 = (libc::BPF_LD | libc::BPF_H | libc::BPF_IND) as u16;
    const LOAD: u16 = (libc::BPF_LD | libc::BPF_H | libc::BPF_ABS) as u16;
    const EQUAL: u16 = (libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K) as u16;
    const RETURN: u16 = (libc::BPF_RET | libc::BPF_K) as u16;
    let step = |code, jf, k| libc::sock_filter { code, jt: 0, jf, k };
    let end = [
        step(EQUAL, 1, u32::from(port)),
        step(RETURN, 0, u32::MAX),
        step(RETURN, 0, 0),
    ];
    // An IPv4 socket gets the header with the segment, an IPv6 one does not.
    let start: &[libc::sock_filter] = match at {
        SocketAddr::V4(_) => &[
            step(LOAD_HEADER_LENGTH, 0, 0),
            step(LOAD_BEHIND_HEADER, 0, 2),
        ],
        SocketAddr::V6(_) => &[step(LOAD, 0, 2)],
    };
    let mut program: Vec<libc::sock_filter> = start.iter().chain(&end).copied().collect();
    let program = libc::sock_fprog {
        len: program.len() as u16,
        filter: program.as_mut_ptr(),
    };
    // SAFETY: the pointer and length are those of `program`, which points to so
    // many live instructions; the kernel only reads both.
    let status = unsafe {
        libc::setsockopt(
            raw.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_ATTACH_FILTER,
            (&raw const program).cast(),
            size_of::<libc::sock_fprog>() as libc::socklen_t,
        )
    };
    done(status)
}

/// An address as the kernel takes it, and how much of it counts.
fn raw_address(at: SocketAddr) -> (libc::sockaddr_storage, libc::socklen_t) {
    // SAFETY: all zero is a valid value of this plain structure.
    let mut storage: libc::sockaddr_storage = unsafe { std::mem::zeroed() };
    let size = match at {
        SocketAddr::V4(at) => {
            let address = libc::sockaddr_in {
                sin_family: libc::AF_INET as libc::sa_family_t,
                sin_port: at.port().to_be(),
                sin_addr: libc::in_addr {
                    s_addr: u32::from_ne_bytes(at.ip().octets()),
                },
                sin_zero: [0; 8],
            };
            // SAFETY: the storage is larger than every address, and aligned for all.
            unsafe {
                (&raw mut storage)
                    .cast::<libc::sockaddr_in>()
                    .write(address);
            };
            size_of::<libc::sockaddr_in>()
        }
        SocketAddr::V6(at) => {
            let address = libc::sockaddr_in6 {
                sin6_family: libc::AF_INET6 as libc::sa_family_t,
                sin6_port: at.port().to_be(),
                sin6_flowinfo: 0,
                sin6_addr: libc::in6_addr {
                    s6_addr: at.ip().octets(),
                },
                sin6_scope_id: at.scope_id(),
            };
            // SAFETY: as above.
            unsafe {
                (&raw mut storage)
                    .cast::<libc::sockaddr_in6>()
                    .write(address);
            };
            size_of::<libc::sockaddr_in6>()
        }
    };
    (storage, size as libc::socklen_t)
}

fn bind(socket: &OwnedFd, at: SocketAddr) -> io::Result<()> {
    let (address, size) = raw_address(at);
    // SAFETY: the pointer and length are those of a live address.
    done(unsafe { libc::bind(socket.as_raw_fd(), (&raw const address).cast(), size) })
}

fn connect(socket: &OwnedFd, at: SocketAddr) -> io::Result<()> {
    let (address, size) = raw_address(at);
    // SAFETY: the pointer and length are those of a live address.
    done(unsafe { libc::connect(socket.as_raw_fd(), (&raw const address).cast(), size) })
}

fn local_port(socket: &OwnedFd) -> io::Result<u16> {
    let (mut address, mut size) = raw_address(SocketAddr::from(([0, 0, 0, 0], 0)));
    size = size.max(size_of_val(&address) as libc::socklen_t);
    // SAFETY: pointer and length are those of a live, writable address.
    done(unsafe {
        libc::getsockname(socket.as_raw_fd(), (&raw mut address).cast(), &raw mut size)
    })?;
    // SAFETY: both families have the port at the same place, inside the storage.
    let address = unsafe { (&raw const address).cast::<libc::sockaddr_in>().read() };
    Ok(u16::from_be(address.sin_port))
}

/// Whether there is something to read before the deadline.
fn wait_readable(socket: &OwnedFd, deadline: Instant) -> io::Result<bool> {
    let left = deadline.saturating_duration_since(Instant::now());
    let mut poll = libc::pollfd {
        fd: socket.as_raw_fd(),
        events: libc::POLLIN,
        revents: 0,
    };
    let ms = libc::c_int::try_from(left.as_micros().div_ceil(1000)).unwrap_or(libc::c_int::MAX);
    // SAFETY: the pointer is to one live entry.
    let ready = unsafe { libc::poll(&raw mut poll, 1, ms) };
    if ready < 0 {
        let error = io::Error::last_os_error();
        return match error.kind() {
            io::ErrorKind::Interrupted => Ok(!left.is_zero()),
            _ => Err(error),
        };
    }
    Ok(ready > 0)
}

fn done(status: libc::c_int) -> io::Result<()> {
    if status == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}
