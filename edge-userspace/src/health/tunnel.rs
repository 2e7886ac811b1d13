//! Checks that go as packets of clients do.
//!
//! A backend behind a tunnel may answer on its own address and yet take nothing out of
//! tunnels, or not have the service's address. So the socket of a check asks the service's
//! address; what it sends is read from a TUN device and put into a packet to the backend, as
//! the balancer's program does with packets of clients (`edge-ebpf/src/balance/forward.rs`),
//! and the backend answers this host from the service's address, past all of this.
//!
//! Sockets of several backends ask one address at one time. Which backend a packet is for
//! says its source port, which each socket has for itself: it is entered here before it
//! sends. Nothing here touches the system; whatever is carried may have been sent by anybody.

use std::{
    collections::{HashMap, VecDeque},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicI32, AtomicU32, AtomicU64, Ordering::Relaxed},
    },
};

use edge_common::{
    parse::{self, Fragment, IPV4_LEN, Kind, UDP_LEN, V4, V6, proto},
    tunnel::{self, GUE_PORT, HOPS, PROTO_IPV4, PROTO_IPV6, ipv4_outer, ipv6_outer, udp},
};

use crate::config::services::Protocol;

/// How long a socket's last packets are waited for after it was closed, nanoseconds: its
/// reset is on its way then, and without it the backend would keep the connection.
const LINGER_NS: u64 = 1_000_000_000;

/// How the checks of a backend reach it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tunnel {
    /// What is asked: addresses of the service, one of each family at the most.
    pub services: Vec<SocketAddr>,
    /// Whether a UDP header stands between both packets.
    pub gue: bool,
    /// The outer source; `None`: the address that the route to the backend says.
    pub source: Option<IpAddr>,
    /// In which bits outer IPv4 sources differ, as on the wire.
    pub spread: u32,
    /// Interfaces from whose addresses is asked where no route leads to the service.
    pub interfaces: Arc<[String]>,
}

/// Which packets are of one socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Ends {
    /// The protocol.
    pub protocol: Protocol,
    /// The socket's own address and port.
    pub source: SocketAddr,
    /// What it asks.
    pub dest: SocketAddr,
}

/// The packet around.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Outer {
    /// Whether a UDP header stands in between.
    pub gue: bool,
    /// The source, of the family of `dest`.
    pub source: IpAddr,
    /// In which bits it differs from flow to flow, as on the wire; only in IPv4.
    pub spread: u32,
    /// The backend.
    pub dest: IpAddr,
}

/// What became of the packets of a socket.
#[derive(Debug, Default)]
pub struct Carried {
    packets: AtomicU32,
    error: AtomicI32,
}

impl Carried {
    /// How many were put into the tunnel.
    pub fn packets(&self) -> u32 {
        self.packets.load(Relaxed)
    }

    /// The error number of one that this host did not send.
    pub fn error(&self) -> Option<i32> {
        Some(self.error.load(Relaxed)).filter(|code| *code != 0)
    }

    /// This host did not send one.
    pub fn failed(&self, code: i32) {
        self.error.store(code, Relaxed);
    }
}

/// A packet that is to be sent.
#[derive(Debug)]
pub struct Sending {
    /// Where it goes.
    pub to: IpAddr,
    /// Of whose packets it is one.
    pub carried: Arc<Carried>,
}

#[derive(Debug)]
struct Entry {
    outer: Outer,
    carried: Arc<Carried>,
    serial: u64,
}

#[derive(Debug, Default)]
struct Entries {
    by_ends: HashMap<Ends, Entry>,
    /// Those that are closed, by when they are forgotten.
    leaving: VecDeque<(u64, Ends, u64)>,
    last_serial: u64,
}

/// The sockets whose packets go through tunnels.
#[derive(Debug, Default)]
pub struct Passages {
    entries: Mutex<Entries>,
    strays: AtomicU64,
}

impl Passages {
    /// Never held while anything is waited for.
    fn entries(&self) -> MutexGuard<'_, Entries> {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// From now on packets of a socket go to a backend. The number is for [`Self::leave`].
    pub fn enter(&self, ends: Ends, outer: Outer, now_ns: u64) -> (u64, Arc<Carried>) {
        let mut entries = self.entries();
        entries.forget(now_ns);
        entries.last_serial += 1;
        let (serial, carried) = (entries.last_serial, Arc::<Carried>::default());
        let entry = Entry {
            outer,
            carried: carried.clone(),
            serial,
        };
        entries.by_ends.insert(ends, entry);
        (serial, carried)
    }

    /// The socket is closed. Its last packets are still taken for a while, unless another
    /// one has its port by then.
    pub fn leave(&self, ends: Ends, serial: u64, now_ns: u64) {
        let at_ns = now_ns.saturating_add(LINGER_NS);
        let mut entries = self.entries();
        entries.forget(now_ns);
        entries.leaving.push_back((at_ns, ends, serial));
    }

    /// Puts a packet of one of the sockets into its tunnel, which becomes `out`; the hash of
    /// its ends is what tells flows apart from outside. `None`, and counted, for one of
    /// nobody.
    pub fn carry(
        &self,
        packet: &[u8],
        hash: impl FnOnce(Ends) -> u64,
        out: &mut Vec<u8>,
    ) -> Option<Sending> {
        let sending = read(packet).and_then(|(ends, inner)| {
            let entries = self.entries();
            let entry = entries.by_ends.get(&ends)?;
            let (outer, carried) = (entry.outer, entry.carried.clone());
            drop(entries);
            encapsulate(inner, &outer, hash(ends), out)?;
            carried.packets.fetch_add(1, Relaxed);
            Some(Sending {
                to: outer.dest,
                carried,
            })
        });
        if sending.is_none() {
            self.strays.fetch_add(1, Relaxed);
        }
        sending
    }

    /// Packets of nobody.
    pub fn strays(&self) -> u64 {
        self.strays.load(Relaxed)
    }
}

impl Entries {
    fn forget(&mut self, now_ns: u64) {
        while let Some(&(at_ns, ends, serial)) = self.leaving.front()
            && at_ns <= now_ns
        {
            self.leaving.pop_front();
            if self.by_ends.get(&ends).is_some_and(|e| e.serial == serial) {
                self.by_ends.remove(&ends);
            }
        }
    }
}

/// Whose packet it is, and the packet without whatever is behind it; `None` for what no
/// socket of a check sends.
fn read(packet: &[u8]) -> Option<(Ends, &[u8])> {
    let (source, dest, transport, fragment, end) = match packet.first()? >> 4 {
        4 => {
            let ip = parse::ipv4(packet, 0).ok()?;
            let address = |a: V4| IpAddr::from(Ipv4Addr::from(a.to_ne_bytes()));
            (
                address(ip.source),
                address(ip.dest),
                ip.transport,
                ip.fragment,
                ip.end,
            )
        }
        6 => {
            let ip = parse::ipv6(packet, 0).ok()?;
            let address = |a: V6| {
                let bits = a.map(u64::from_be);
                let [high, low] = bits.map(u128::from);
                IpAddr::from(Ipv6Addr::from_bits(high << 64 | low))
            };
            (
                address(ip.source),
                address(ip.dest),
                ip.transport,
                ip.fragment,
                ip.end,
            )
        }
        _ => return None,
    };
    let protocol = match transport.kind {
        Kind::Tcp => Protocol::Tcp,
        Kind::Udp => Protocol::Udp,
        _ => return None,
    };
    if fragment != Fragment::Whole {
        return None;
    }
    let ends = Ends {
        protocol,
        source: SocketAddr::new(source, u16::from_be(transport.source_port)),
        dest: SocketAddr::new(dest, u16::from_be(transport.dest_port)),
    };
    Some((ends, packet.get(..end)?))
}

/// Puts a packet into another one; `None` when it is too long, or the outer addresses are of
/// two families.
fn encapsulate(inner: &[u8], outer: &Outer, hash: u64, out: &mut Vec<u8>) -> Option<()> {
    let (inner_proto, class) = match *inner {
        [first, second, ..] if first >> 4 == 6 => (PROTO_IPV6, first << 4 | second >> 4),
        [_, second, ..] => (PROTO_IPV4, second),
        _ => return None,
    };
    let (next, payload) = match outer.gue {
        true => (proto::UDP, inner.len() + UDP_LEN),
        false => (inner_proto, inner.len()),
    };
    out.clear();
    match (outer.source, outer.dest) {
        (IpAddr::V4(source), IpAddr::V4(dest)) => {
            let word = |a: Ipv4Addr| u32::from_ne_bytes(a.octets());
            let total = u16::try_from(IPV4_LEN + payload).ok()?;
            let source = word(source) | tunnel::spread(hash, outer.spread.into());
            let header = ipv4_outer(source, word(dest), next, total, HOPS, class);
            out.extend(header.iter().flat_map(|word| word.to_ne_bytes()));
        }
        (IpAddr::V6(source), IpAddr::V6(dest)) => {
            let words = |a: Ipv6Addr| {
                let bits = a.to_bits();
                [(bits >> 64) as u64, bits as u64].map(u64::to_be)
            };
            let len = u16::try_from(payload).ok()?;
            let label = tunnel::flow_label(hash);
            let header = ipv6_outer(words(source), words(dest), next, len, HOPS, class, label);
            out.extend(header.iter().flat_map(|word| word.to_ne_bytes()));
        }
        _ => return None,
    }
    if outer.gue {
        let len = u16::try_from(payload).ok()?;
        let header = udp(tunnel::gue_source_port(hash), GUE_PORT, len);
        out.extend(header.iter().flat_map(|word| word.to_ne_bytes()));
    }
    out.extend_from_slice(inner);
    Some(())
}

#[cfg(test)]
mod tests;
