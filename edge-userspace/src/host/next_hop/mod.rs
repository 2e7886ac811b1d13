//! Where packets for an address go: which interface sends them, under which tag, to which
//! MAC address.
//!
//! The kernel is asked what it would do itself. (`bpf_fib_lookup` would tell the packet
//! path the same, but only on a host that is a router.) What it knows of a neighbour grows
//! stale, because packets that XDP sends confirm nothing, and is forgotten: so it is
//! provoked into asking again.

mod schedule;
mod state;
#[cfg(test)]
mod tests;
mod watch;
mod way;

use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use super::{
    links::links,
    neighbours::{provoke, resolution},
};
use crate::netlink::Socket;
use schedule::Task;
use state::State;
pub use watch::{Change, Watch};

/// Questions to the kernel in one go, at the most: one takes some microseconds.
const MAX_QUESTIONS: usize = 512;

/// How packets for an address leave this host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NextHop {
    /// Index of the interface that sends them; of a VLAN device, that which it is on.
    pub ifindex: u32,
    /// The VLAN of their tag (IEEE 802.1Q).
    pub vlan: Option<u16>,
    /// The MAC address they are sent to.
    pub dest_mac: [u8; 6],
    /// The MAC address they are sent from.
    pub source_mac: [u8; 6],
    /// The largest packet, bytes from the IP header on.
    pub mtu: u32,
    /// The address of this host that the kernel would send from.
    pub source: IpAddr,
}

/// Why there is no [`NextHop`].
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NoNextHop {
    /// The routing tables have no way, for this reason.
    #[error("there is no route to it: {0}")]
    NoRoute(String),
    /// Nobody answers for an address of the link.
    #[error("nobody answers for {via} on {interface}")]
    NoNeighbour {
        /// Name of the interface.
        interface: String,
        /// The address itself, or the gateway's.
        via: IpAddr,
    },
    /// XDP cannot send this way; what is in the way, and a remedy.
    #[error("{0}")]
    Unsuitable(String),
}

/// What became of an address.
pub type Answer = Result<NextHop, NoNextHop>;

/// Asks the kernel for the next hop of an address, in the calling thread's network
/// namespace. Nothing is provoked: a neighbour that the kernel does not know now is none.
///
/// # Errors
/// Whatever the kernel returns for the questions; what it answers is no error.
pub fn next_hop(address: IpAddr) -> io::Result<Answer> {
    let mut socket = Socket::open(libc::NETLINK_ROUTE)?;
    let path = match way::path(&mut socket, address)? {
        Ok(path) => path,
        Err(none) => return Ok(Err(none)),
    };
    let device = match way::device(&mut socket, path.via.interface)? {
        Ok(device) => device,
        Err(none) => return Ok(Err(none)),
    };
    let found = resolution(&mut socket, path.via)?;
    Ok(way::join(&path, &device, found.mac))
}

/// The next hop of an address that frames reach by an interface and a MAC address that are
/// given, in the calling thread's network namespace. Where the kernel knows no way to the
/// address, there is no source: it is unspecified.
///
/// # Errors
/// Whatever the kernel returns for the questions.
pub fn given(address: IpAddr, interface: &str, dest_mac: [u8; 6]) -> io::Result<Answer> {
    let mut socket = Socket::open(libc::NETLINK_ROUTE)?;
    let found = links()?.into_values().find(|link| link.name == interface);
    let Some(link) = found else {
        return Ok(Err(NoNextHop::Unsuitable(format!(
            "there is no interface {interface}: balance.next_hop names it"
        ))));
    };
    let device = match way::device(&mut socket, link.index)? {
        Ok(device) => device,
        Err(none) => return Ok(Err(none)),
    };
    let path = way::path(&mut socket, address)?;
    let source = path.map_or(
        match address {
            IpAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
            IpAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
        },
        |path| path.source,
    );
    Ok(Ok(NextHop {
        ifindex: device.ifindex,
        vlan: device.vlan,
        dest_mac,
        source_mac: device.mac,
        mtu: device.mtu,
        source,
    }))
}

/// Knows the next hops of many addresses, and keeps up with the kernel.
///
/// Routes, interfaces and neighbours are asked for one by one: those that a [`Change`] is
/// about at once, all now and then. Addresses behind one gateway share what is known of
/// it. A next hop stays in force until there is another one, or has been none for some
/// seconds; that a neighbour does not answer is told after that time only, too.
#[derive(Debug)]
pub struct Resolver {
    socket: Socket,
    state: State,
}

impl Resolver {
    /// One that wants nothing yet, in the calling thread's network namespace. Whoever has
    /// a [`Watch`] opens it before, so that nothing changes unseen.
    ///
    /// # Errors
    /// When there is no socket.
    pub fn new() -> io::Result<Self> {
        Ok(Self {
            socket: Socket::open(libc::NETLINK_ROUTE)?,
            state: State::default(),
        })
    }

    /// Sets the addresses whose next hops are wanted. Others are forgotten; what is known
    /// of those that stay is kept.
    pub fn want(&mut self, addresses: impl IntoIterator<Item = IpAddr>) {
        self.state.want(addresses.into_iter().collect());
    }

    /// When to call [`Resolver::resolve`] again if nothing changes, nanoseconds of
    /// `CLOCK_MONOTONIC`: in the past when it had more to ask than it may in one go.
    /// `None` when nothing is wanted.
    pub fn due_ns(&self) -> Option<u64> {
        self.state.due_ns()
    }

    /// Asks what is due, provokes neighbours, and returns the answers that are not what
    /// was told of an address before. `now_ns` is `CLOCK_MONOTONIC`, `changes` what a
    /// [`Watch`] has told since the last call.
    ///
    /// # Errors
    /// Whatever the kernel returns for the questions. What was asked in vain is asked
    /// again a second later; nothing is lost.
    pub fn resolve(
        &mut self,
        now_ns: u64,
        changes: &[Change],
    ) -> io::Result<Vec<(IpAddr, Answer)>> {
        self.state.change(changes, now_ns);
        for _ in 0..MAX_QUESTIONS {
            match self.state.next(now_ns) {
                None => break,
                Some(Task::Route(address)) => {
                    let path = way::path(&mut self.socket, address)?;
                    self.state.path(address, path, now_ns);
                }
                Some(Task::Device(index)) => {
                    let device = way::device(&mut self.socket, index)?;
                    self.state.device(index, device, now_ns);
                }
                Some(Task::Neighbour(of)) => {
                    let found = resolution(&mut self.socket, of)?;
                    if self.state.neighbour(of, found, now_ns) {
                        let refused = provoke(&mut self.socket, of)?.err();
                        self.state.provoked(of, refused);
                    }
                }
                Some(Task::Verdict(address)) => self.state.suspect(address),
            }
        }
        Ok(self.state.verdicts(now_ns))
    }
}
