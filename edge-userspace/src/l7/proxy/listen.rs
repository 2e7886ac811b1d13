//! Sockets that clients connect to: one for each worker and address, among which the kernel
//! spreads connections (`SO_REUSEPORT`, socket(7)).
//!
//! Each socket has a queue of connections that nobody has accepted yet, and these are reset when
//! it is closed for good. So sockets outlive a process, which gives them to another one, and a
//! worker, whose sockets the others have then.

use std::{
    io,
    net::{SocketAddr, TcpListener},
    sync::atomic::{AtomicU64, Ordering::Relaxed},
};

use socket2::{Domain, Protocol, SockAddr, SockRef, Socket, Type};
use tracing::error;

/// Connections that wait to be accepted, at the most; the kernel bounds it by
/// `net.core.somaxconn`.
pub(super) const BACKLOG: i32 = 4096;

/// A socket that listens, from one process for another one.
#[derive(Debug)]
pub struct Given {
    /// The socket.
    pub socket: TcpListener,
    /// The listener that it is for, besides the one that has its address.
    pub name: Option<String>,
    /// Whether whoever opened it keeps it, as a service manager does. All workers then share it:
    /// connections that wait in another one would be lost with the process.
    pub is_kept: bool,
}

/// A socket with its queue.
#[derive(Debug)]
pub(super) struct Queue {
    /// No other one has had it in this process.
    pub(super) number: u64,
    pub(super) socket: TcpListener,
}

impl From<TcpListener> for Queue {
    fn from(socket: TcpListener) -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        Self {
            number: NEXT.fetch_add(1, Relaxed),
            socket,
        }
    }
}

/// The sockets of an address.
#[derive(Debug, Default)]
pub(super) struct Door {
    queues: Vec<Queue>,
    /// As of [`Given`].
    pub(super) name: Option<String>,
    pub(super) is_kept: bool,
}

impl Door {
    /// Binds one for each worker, which do not listen yet.
    ///
    /// # Errors
    /// Those of the system; there is then none.
    pub(super) fn bind(address: SocketAddr, workers: usize) -> io::Result<Self> {
        Ok(Self {
            queues: bind(address, workers)?,
            ..Self::default()
        })
    }

    /// Binds what is missing so that each of so many workers can have one; those do not listen yet.
    ///
    /// # Errors
    /// Those of the system; there is then none.
    pub(super) fn missing(&self, address: SocketAddr, workers: usize) -> io::Result<Self> {
        let missing = workers.saturating_sub(self.queues.len());
        Self::bind(address, if self.is_kept { 0 } else { missing })
    }

    /// Takes those of another one for the same address.
    pub(super) fn join(&mut self, other: Self) {
        self.queues.extend(other.queues);
    }

    /// One more that was given.
    pub(super) fn push(&mut self, given: Given) {
        self.queues.push(given.socket.into());
        self.is_kept |= given.is_kept;
        self.name = given.name.or(self.name.take());
    }

    /// Those that were given, as ours, with one for each of so many workers. What is added does
    /// not listen yet.
    ///
    /// # Errors
    /// When they are not as ours would be, or others are missing and cannot be bound.
    pub(super) fn fitted(&self, address: SocketAddr, workers: usize) -> io::Result<Self> {
        for Queue { socket, .. } in &self.queues {
            socket.set_nonblocking(true)?;
            if address.is_ipv6() && !SockRef::from(socket).only_v6()? {
                return Err(io::Error::other(
                    "the socket that systemd has opened takes IPv4 connections as well; write \
                     BindIPv6Only=ipv6-only into its unit",
                ));
            }
        }
        let queues = self.queues.iter();
        let queues = queues.map(|queue| queue.socket.try_clone().map(Queue::from));
        let mut fitted = Self {
            queues: queues.collect::<io::Result<_>>()?,
            name: self.name.clone(),
            is_kept: self.is_kept,
        };
        fitted.join(self.missing(address, workers)?);
        Ok(fitted)
    }

    /// Lets clients connect. Sockets that the system refuses now are gone; tells whether there are
    /// others.
    ///
    /// To be called when somebody is about to accept: of a group, the kernel spreads connections
    /// among all that listen. All of them begin in one go, as those that have begun get everything.
    pub(super) fn listen(&mut self, address: SocketAddr) -> bool {
        self.queues.retain(|queue| {
            let socket = SockRef::from(&queue.socket);
            if socket.is_listener().unwrap_or(false) {
                return true;
            }
            // Somebody else may have been faster: what is bound alike excludes nobody yet.
            let listens = socket.listen(BACKLOG);
            if let Err(e) = &listens {
                error!("{address}: cannot listen: {e}; connections to it are not accepted there");
            }
            listens.is_ok()
        });
        !self.queues.is_empty()
    }

    /// The sockets of one of so many workers: as many for each, and what is left over for all of
    /// them, so that none has more to do than another.
    pub(super) fn of(&self, worker: usize, workers: usize) -> impl Iterator<Item = &Queue> {
        let workers = workers.max(1);
        let alike = self.queues.len() / workers * workers;
        let own = self.queues.iter().take(alike).skip(worker);
        let shared = self.queues.iter().skip(alike);
        own.step_by(workers).chain(shared)
    }

    /// Another descriptor of each, for another process.
    ///
    /// # Errors
    /// When there are no descriptors left.
    pub(super) fn give(&self) -> io::Result<Vec<Given>> {
        let one = |queue: &Queue| {
            Ok(Given {
                socket: queue.socket.try_clone()?,
                name: self.name.clone(),
                is_kept: self.is_kept,
            })
        };
        self.queues.iter().map(one).collect()
    }
}

/// The sockets of one address, one for each worker, which do not listen yet.
fn bind(address: SocketAddr, workers: usize) -> io::Result<Vec<Queue>> {
    let open = |_| open(address).map(TcpListener::from).map(Queue::from);
    (0..workers).map(open).collect()
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
        let address = address_of(&first[0]);
        drop(first);
        let queues = bind(address, 3).expect("bound");
        assert_eq!(queues.len(), 3);
        for queue in &queues {
            assert_eq!(address_of(queue), address);
        }
    }

    fn address_of(queue: &Queue) -> SocketAddr {
        queue.socket.local_addr().expect("an address")
    }

    /// The positions of each worker's sockets in a door of so many.
    fn shares(sockets: usize, workers: usize) -> Vec<Vec<usize>> {
        let door = Door::bind(([127, 0, 0, 1], 0).into(), sockets).expect("bound");
        let all: Vec<u64> = door.queues.iter().map(|queue| queue.number).collect();
        let at = |queue: &Queue| all.iter().position(|number| *number == queue.number);
        (0..workers)
            .map(|worker| door.of(worker, workers).filter_map(at).collect())
            .collect()
    }

    #[test]
    fn no_socket_is_left_alone_and_no_worker_has_none() {
        assert_eq!(shares(2, 2), [[0], [1]]);
        assert_eq!(shares(5, 2), [[0, 2, 4], [1, 3, 4]]);
        assert_eq!(shares(4, 3), [[0, 3], [1, 3], [2, 3]]);
        assert_eq!(shares(1, 3), [[0], [0], [0]]);
        assert_eq!(shares(2, 3), [[0, 1], [0, 1], [0, 1]]);
    }

    fn given(socket: Socket, is_kept: bool) -> Given {
        Given {
            socket: socket.into(),
            name: None,
            is_kept,
        }
    }

    #[test]
    fn sockets_are_added_only_to_our_own() {
        for (is_kept, count) in [(false, 3), (true, 1)] {
            let socket = open(([127, 0, 0, 1], 0).into()).expect("bound");
            socket.listen(1).expect("listens");
            let mut door = Door::default();
            door.push(given(socket, is_kept));
            let address = address_of(&door.queues[0]);
            let mut door = door.fitted(address, 3).expect("fits");
            assert_eq!(door.queues.len(), count);
            assert_eq!(door.give().expect("descriptors").len(), count);
            let listening = |door: &Door| {
                let is_listener = |q: &&Queue| SockRef::from(&q.socket).is_listener().unwrap();
                door.queues.iter().filter(is_listener).count()
            };
            assert_eq!(listening(&door), 1);
            assert!(door.listen(address));
            assert_eq!(listening(&door), count);
        }
    }

    #[test]
    fn an_address_of_somebody_else_is_not_bound() {
        let other = TcpListener::bind("127.0.0.1:0").expect("bound");
        let address = other.local_addr().expect("an address");
        let error = Door::bind(address, 2).expect_err("refused");
        assert_eq!(error.kind(), io::ErrorKind::AddrInUse);
    }

    #[test]
    fn sockets_that_cannot_listen_any_more_are_gone() {
        let free = open(([127, 0, 0, 1], 0).into()).expect("bound");
        let address = free.local_addr().expect("an address");
        let address = address.as_socket().expect("an address");
        drop(free);
        let mut door = Door::bind(address, 2).expect("bound");
        let other = Socket::new(Domain::IPV4, Type::STREAM, None).expect("a socket");
        other.set_reuse_address(true).expect("set");
        other.bind(&address.into()).expect("nobody listens yet");
        other.listen(1).expect("faster");
        assert!(!door.listen(address));
    }

    #[test]
    fn a_socket_of_both_families_is_refused() {
        let socket = Socket::new(Domain::IPV6, Type::STREAM, None).expect("a socket");
        socket.set_only_v6(false).expect("set");
        let address: SocketAddr = "[::]:0".parse().expect("an address");
        socket.bind(&address.into()).expect("bound");
        let mut door = Door::default();
        door.push(given(socket, true));
        let error = door.fitted(address, 1).expect_err("refused").to_string();
        assert!(error.contains("BindIPv6Only=ipv6-only"), "{error}");
    }
}
