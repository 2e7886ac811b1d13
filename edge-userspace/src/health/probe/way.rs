//! The way of a check out of this host: as its route says, or into a tunnel.

use std::{
    hash::{BuildHasher as _, RandomState},
    io,
    net::{IpAddr, SocketAddr},
    sync::{Arc, Mutex, OnceLock, PoisonError},
    time::Duration,
};

use socket2::{Socket, Type};
use tokio_rustls::rustls::pki_types::ServerName;

use super::{ProbeError, error::not_asked};
use crate::{
    clock::Now,
    config::services::Protocol,
    health::{
        target::{Route, TlsTo},
        tunnel::{Carried, Ends, Outer, Passages, Sending, Tunnel},
    },
    host::tunnel::{DEVICE, MARK, address_on, source_towards},
    netlink,
};

/// How long an address of an interface is believed to be there, nanoseconds: all interfaces
/// are asked for it.
const BELIEVED_NS: u64 = 1_000_000_000;

/// What checks share that go through tunnels.
#[derive(Debug, Default)]
pub struct Ways {
    passages: Passages,
    /// Opened when it is first needed.
    netlink: Mutex<Option<netlink::Socket>>,
    /// Of IPv4 and IPv6: an address of the interfaces, and until when it is taken for one,
    /// nanoseconds of `CLOCK_MONOTONIC`.
    own: Mutex<[Option<(u64, IpAddr)>; 2]>,
    /// Spreads flows over what is outside.
    seed: RandomState,
}

impl Ways {
    /// Puts a packet of a check into its tunnel, which becomes `out`; see [`Passages::carry`].
    pub(in crate::health) fn carry(&self, packet: &[u8], out: &mut Vec<u8>) -> Option<Sending> {
        self.passages
            .carry(packet, |ends| self.seed.hash_one(ends), out)
    }

    /// Packets that were of no check.
    pub fn strays(&self) -> u64 {
        self.passages.strays()
    }

    /// From where this host sends to an address.
    fn source(&self, to: IpAddr) -> io::Result<Result<IpAddr, i32>> {
        let mut socket = self.netlink.lock().unwrap_or_else(PoisonError::into_inner);
        let opened = match socket.take() {
            Some(opened) => opened,
            None => netlink::Socket::open(libc::NETLINK_ROUTE)?,
        };
        source_towards(socket.insert(opened), to)
    }

    /// An address of one of these interfaces to ask another one from.
    fn address_on(&self, interfaces: &[String], to: IpAddr) -> Result<IpAddr, ProbeError> {
        let now_ns = Now::read().mono_ns;
        let mut known = self.own.lock().unwrap_or_else(PoisonError::into_inner);
        let [v4, v6] = &mut *known;
        let known = if to.is_ipv4() { v4 } else { v6 };
        if let Some((until_ns, address)) = *known
            && now_ns < until_ns
        {
            return Ok(address);
        }
        let found = address_on(interfaces, to.is_ipv4()).map_err(not_asked("addresses"))?;
        *known = found.map(|address| (now_ns.saturating_add(BELIEVED_NS), address));
        found.ok_or_else(|| {
            let text = format!(
                "this host has no address to ask {to} from: give it a route there, or {} an address",
                interfaces.join(", ")
            );
            not_asked("tunnel")(io::Error::other(text))
        })
    }
}

/// The way of one question.
pub(super) struct Way<'a> {
    route: &'a Route,
    entrance: Option<Entrance<'a>>,
}

/// That of one through a tunnel.
struct Entrance<'a> {
    ways: &'a Ways,
    source: IpAddr,
    outer: Outer,
    /// That of its socket, once there is one.
    passage: OnceLock<Passage<'a>>,
}

/// A socket whose packets go to a backend, until this is dropped.
struct Passage<'a> {
    passages: &'a Passages,
    ends: Ends,
    serial: u64,
    carried: Arc<Carried>,
}

impl Drop for Passage<'_> {
    fn drop(&mut self) {
        let now_ns = Now::read().mono_ns;
        self.passages.leave(self.ends, self.serial, now_ns);
    }
}

impl<'a> Way<'a> {
    /// As the route says.
    pub(super) const fn direct(route: &'a Route) -> Self {
        Self {
            route,
            entrance: None,
        }
    }

    /// The TLS that requests go with, if checks are to go with it as well.
    pub(super) const fn tls(&self) -> Option<&'a TlsTo> {
        self.route.tls.as_ref()
    }

    /// The name that the server has for TLS, unless that is an address.
    pub(super) fn name(&self) -> Option<&'a str> {
        match &self.tls()?.name {
            ServerName::DnsName(name) => Some(name.as_ref()),
            _ => None,
        }
    }

    /// Through a tunnel to a backend, to an address of its service.
    pub(super) fn through(
        tunnel: &Tunnel,
        service: IpAddr,
        backend: IpAddr,
        route: &'a Route,
        ways: &'a Ways,
    ) -> Result<Self, ProbeError> {
        let ask = |to| ways.source(to).map_err(not_asked("route"));
        let source = match ask(service)? {
            Ok(own) if own == service => {
                let text = format!(
                    "{service} is an address of this host, which would answer itself; take it off, or set through = \"direct\""
                );
                return Err(not_asked("tunnel")(io::Error::other(text)));
            }
            Ok(source) => source,
            // Marked packets have a way all the same.
            Err(_) => ways.address_on(&tunnel.interfaces, service)?,
        };
        let outer = match tunnel.source {
            Some(source) => source,
            None => ask(backend)?
                .map_err(|code| ProbeError::Connect(io::Error::from_raw_os_error(code)))?,
        };
        let entrance = Entrance {
            ways,
            source,
            outer: Outer {
                gue: tunnel.gue,
                source: outer,
                spread: tunnel.spread,
                dest: backend,
            },
            passage: OnceLock::new(),
        };
        Ok(Self {
            route,
            entrance: Some(entrance),
        })
    }

    /// Prepares a socket that is not connected yet.
    pub(super) fn take(
        &self,
        socket: &Socket,
        target: SocketAddr,
        kind: Type,
    ) -> Result<(), ProbeError> {
        match &self.entrance {
            Some(entrance) => entrance.take(socket, target, kind),
            None => super::socket::take(socket, self.route),
        }
    }

    /// What an answer is worth. One that no packet of ours has asked for says nothing, and
    /// neither does the lack of one: rules or routes are not as they were made.
    pub(super) fn judge(
        &self,
        target: SocketAddr,
        found: Result<(), ProbeError>,
    ) -> Result<(), ProbeError> {
        let passage = self.entrance.as_ref().and_then(|e| e.passage.get());
        let Some(passage) = passage else {
            return found;
        };
        let error = match found {
            Err(e @ ProbeError::NotAsked { .. }) => return Err(e),
            _ if passage.carried.packets() == 0 => {
                let text = format!("no packet for {} came to {DEVICE}", target.ip());
                return Err(not_asked("tunnel")(io::Error::other(text)));
            }
            Ok(()) => return Ok(()),
            Err(error) => error,
        };
        let error = match passage.carried.error() {
            // It got no answer because it was never asked.
            Some(code) => super::socket::refused(io::Error::from_raw_os_error(code)),
            None => error,
        };
        match error {
            ProbeError::NotAsked { .. } => Err(error),
            error => Err(ProbeError::Through {
                service: target,
                source: Box::new(error),
            }),
        }
    }
}

impl<'a> Entrance<'a> {
    /// Marks a socket, gives it a port that is its alone, and enters it.
    fn take(&self, socket: &Socket, target: SocketAddr, kind: Type) -> Result<(), ProbeError> {
        socket.set_mark(MARK).map_err(not_asked("mark"))?;
        socket
            .bind(&SocketAddr::new(self.source, 0).into())
            .map_err(not_asked("source address"))?;
        let protocol = match kind {
            Type::DGRAM => Protocol::Udp,
            _ => {
                // See the head of the module above.
                let at_once = Some(Duration::ZERO);
                socket.set_linger(at_once).map_err(not_asked("socket"))?;
                Protocol::Tcp
            }
        };
        let own = socket.local_addr().map_err(not_asked("socket"))?;
        let port = own.as_socket().map_or(0, |own| own.port());
        let ends = Ends {
            protocol,
            source: SocketAddr::new(self.source, port),
            dest: SocketAddr::new(target.ip(), target.port()),
        };
        let passages: &'a Passages = &self.ways.passages;
        let (serial, carried) = passages.enter(ends, self.outer, Now::read().mono_ns);
        let passage = Passage {
            passages,
            ends,
            serial,
            carried,
        };
        // A second socket of one question, of which there is none, would leave at once.
        let _ = self.passage.set(passage);
        Ok(())
    }
}
