//! The TUN device of health checks that go through tunnels, and the rules by which their
//! packets, and no others, come to it.
//!
//! Sockets of such checks carry [`MARK`]. A rule of each family that is asked leads what has
//! the mark to a table of its own, where the default route is the device. Behind it stands a
//! route that leads nowhere: without the device, nothing falls through to the host's own
//! routes, where another edge's backends might answer. The device is gone with its
//! descriptor, however the daemon ends; rules and the other route are removed at the end, or
//! found and taken over by the next daemon.

use std::{
    collections::BTreeSet,
    fs::File,
    io::{self, Read as _},
    net::{IpAddr, SocketAddr},
    os::fd::{AsRawFd, FromRawFd as _, OwnedFd, RawFd},
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use socket2::{Domain, Protocol, Socket as RawSocket, Type};

use super::{
    addresses::by_interface,
    links::links,
    routes::{Route, route, route_of_mark},
};
use crate::netlink::{Reply, Socket, push_attribute};

/// The name of the device.
pub const DEVICE: &str = "edge-health";
/// `SO_MARK` of the sockets. Its bits are below those that container networks and VPNs usually
/// give a meaning.
pub const MARK: u32 = 0xed;
/// The routing table of what has the mark.
pub const TABLE: u32 = 60_782;
/// The priority of the rules: before those of VRFs (1000) and of most others.
pub const PRIORITY: u32 = 900;
/// MTU of the device, bytes: what IPv6 must carry (RFC 8200, 5). With any outer header it fits
/// into what every link carries.
const MTU: u32 = 1280;
/// Packets that the device holds until they are read: SYNs of all checks that run at once.
const QUEUE: u32 = 8192;
/// How long the device of a daemon that is ending may still be there.
const PATIENCE: Duration = Duration::from_secs(1);
const PAUSE: Duration = Duration::from_millis(20);

const TUN: &str = "/dev/net/tun";
const FAMILIES: [libc::c_int; 2] = [libc::AF_INET, libc::AF_INET6];

/// `linux/fib_rules.h`.
const FR_ACT_TO_TBL: u8 = 1;
const FRA_PRIORITY: u16 = 6;
const FRA_FWMARK: u16 = 10;
const FRA_TABLE: u16 = 15;
const FRA_FWMASK: u16 = 16;
/// `linux/if_link.h`.
const IFLA_INET6_ADDR_GEN_MODE: u16 = 8;
const IN6_ADDR_GEN_MODE_NONE: u8 = 1;
/// `linux/in6.h`.
const IPV6_HDRINCL: libc::c_int = 36;

/// Why checks cannot go through tunnels.
#[derive(Debug, thiserror::Error)]
pub enum TunnelError {
    /// There are no TUN devices, or none for the daemon.
    #[error(
        "health checks go through the tunnel, and {TUN} cannot be opened: {0}. Load the kernel \
         module tun and let the daemon use the device (DeviceAllow={TUN} rw in its unit), or set \
         through = \"direct\" in [service.health]"
    )]
    NoTun(#[source] io::Error),
    /// Somebody has the name.
    #[error(
        "health checks go through the tunnel by an interface {DEVICE} that the daemon makes, and \
         there is one already, of another daemon or none of Edge's: end that, or set through = \
         \"direct\" in [service.health]"
    )]
    Taken,
    /// The kernel refuses something.
    #[error(
        "health checks go through the tunnel, and {doing} fails: {source}. The daemon needs \
         CAP_NET_ADMIN and CAP_NET_RAW, and the kernel policy routing; or set through = \
         \"direct\" in [service.health]"
    )]
    Refused {
        /// What does not work.
        doing: &'static str,
        /// Why.
        source: io::Error,
    },
    /// This host would answer itself.
    #[error(
        "{0} is an address of this host, which would answer the check itself: take it off the \
         host, which needs no address of a service that it balances, or set through = \"direct\" \
         in [service.health]"
    )]
    Local(IpAddr),
    /// What has the mark goes elsewhere.
    #[error(
        "health checks go through the tunnel, but packets for {to} with the mark {MARK:#x} do not \
         leave by {DEVICE}: a rule or a route that is none of Edge's comes before its own. `ip \
         rule` and `ip route show table {TABLE}` show them: move those behind priority \
         {PRIORITY}, take foreign routes out of the table, or set through = \"direct\" in \
         [service.health]"
    )]
    Elsewhere {
        /// The address of a service.
        to: IpAddr,
    },
}

fn refused(doing: &'static str) -> impl FnOnce(io::Error) -> TunnelError {
    move |source| TunnelError::Refused { doing, source }
}

/// The device, with the rules, and the sockets by which packets go on.
#[derive(Debug)]
pub struct Device {
    tun: File,
    index: u32,
    /// By family, as far as backends have addresses of it: opened when first needed.
    senders: [RawSocket; 2],
    netlink: Mutex<Socket>,
    /// The addresses of services whose checks come here.
    services: Mutex<BTreeSet<IpAddr>>,
    is_lost: AtomicBool,
}

impl Device {
    /// Makes the device, and leads what is marked and goes to these addresses to it.
    ///
    /// # Errors
    /// When something is missing or in the way; nothing is left of it then.
    pub fn open(services: &BTreeSet<IpAddr>) -> Result<Self, TunnelError> {
        let tun = open_tun()?;
        let index = index()
            .map_err(refused("looking for the interface"))?
            .ok_or(TunnelError::Taken)?;
        let mut netlink =
            Socket::open(libc::NETLINK_ROUTE).map_err(refused("asking the kernel"))?;
        set_up(&mut netlink, index).map_err(refused("setting the interface up"))?;
        let senders = [sender(Domain::IPV4), sender(Domain::IPV6)];
        let [v4, v6] = senders;
        let device = Self {
            tun,
            index,
            senders: [
                v4.map_err(refused("opening a raw socket"))?,
                v6.map_err(refused("opening a raw socket"))?,
            ],
            netlink: Mutex::new(netlink),
            services: Mutex::default(),
            is_lost: AtomicBool::new(false),
        };
        device.lead(services)?;
        Ok(device)
    }

    /// Sees to it that rules and routes are there, for these addresses and no other family.
    ///
    /// # Errors
    /// When the kernel refuses, or leads such packets elsewhere all the same.
    pub fn lead(&self, services: &BTreeSet<IpAddr>) -> Result<(), TunnelError> {
        let mut kept = self.services.lock().unwrap_or_else(PoisonError::into_inner);
        kept.clone_from(services);
        self.lead_again(&kept)
    }

    /// Sees to it that rules and routes are there still.
    ///
    /// # Errors
    /// As [`Device::lead`].
    pub fn look_after(&self) -> Result<(), TunnelError> {
        let services = self.services.lock().unwrap_or_else(PoisonError::into_inner);
        self.lead_again(&services)
    }

    fn lead_again(&self, services: &BTreeSet<IpAddr>) -> Result<(), TunnelError> {
        let mut netlink = self.netlink.lock().unwrap_or_else(PoisonError::into_inner);
        for (family, is_v4) in FAMILIES.into_iter().zip([true, false]) {
            if services.iter().any(|s| s.is_ipv4() == is_v4) {
                add(&mut netlink, family, self.index)
                    .map_err(refused("adding a rule and routes"))?;
            } else {
                remove(&mut netlink, family, Some(self.index));
            }
        }
        for to in services {
            let found =
                route_of_mark(&mut netlink, *to, MARK).map_err(refused("asking for a route"))?;
            match found {
                Ok(Route {
                    kind: libc::RTN_LOCAL,
                    ..
                }) => return Err(TunnelError::Local(*to)),
                Ok(Route { interface, .. }) if interface == self.index => {}
                _ => return Err(TunnelError::Elsewhere { to: *to }),
            }
        }
        Ok(())
    }

    /// The interface is gone, though the descriptor is not.
    pub fn lost(&self) {
        self.is_lost.store(true, Relaxed);
    }

    /// Whether it is.
    pub fn is_lost(&self) -> bool {
        self.is_lost.load(Relaxed)
    }

    /// The next packet, from its IP header on; as much of it as there is room for.
    ///
    /// # Errors
    /// `WouldBlock` when there is none now; any other when the device is gone.
    pub fn read(&self, packet: &mut [u8]) -> io::Result<usize> {
        (&self.tun).read(packet)
    }

    /// Sends a packet with its IP header, by the host's own routes.
    ///
    /// # Errors
    /// Whatever the kernel returns, such as `ENETUNREACH` without a route.
    pub fn send(&self, packet: &[u8], to: IpAddr) -> io::Result<()> {
        let [v4, v6] = &self.senders;
        let sender = if to.is_ipv4() { v4 } else { v6 };
        sender
            .send_to(packet, &SocketAddr::new(to, 0).into())
            .map(drop)
    }
}

/// The same descriptor as long as it lives.
impl AsRawFd for Device {
    fn as_raw_fd(&self) -> RawFd {
        self.tun.as_raw_fd()
    }
}

impl Drop for Device {
    /// Before the descriptor: who finds the name free finds the rules gone. Those of one
    /// whose interface is lost may be another's by now.
    fn drop(&mut self) {
        if !self.is_lost() {
            let netlink = self.netlink.get_mut();
            remove_all(netlink.unwrap_or_else(PoisonError::into_inner));
        }
    }
}

/// Removes what a daemon that was killed has left, if no other one has a device.
///
/// # Errors
/// When the kernel cannot be asked.
pub fn clean() -> io::Result<()> {
    if index()?.is_none() {
        let mut netlink = Socket::open(libc::NETLINK_ROUTE)?;
        remove_all(&mut netlink);
    }
    Ok(())
}

/// The address from which this host sends to another one, or the error number that a packet
/// for it would get; the address itself when it is one of this host.
///
/// # Errors
/// Whatever the socket returns, and `InvalidData` for a reply that makes no sense.
pub fn source_towards(netlink: &mut Socket, to: IpAddr) -> io::Result<Result<IpAddr, i32>> {
    Ok(route(netlink, to)?.and_then(|route| match route.kind {
        libc::RTN_LOCAL => Ok(to),
        _ => {
            let source = route.source.filter(|s| s.is_ipv4() == to.is_ipv4());
            source.ok_or(libc::EADDRNOTAVAIL)
        }
    }))
}

/// An address of one of the interfaces with these names, of the family, that hosts elsewhere
/// can answer to.
///
/// # Errors
/// Whatever the kernel returns.
pub fn address_on(interfaces: &[String], is_v4: bool) -> io::Result<Option<IpAddr>> {
    let links = links()?;
    let mut all = by_interface()?;
    Ok(all.find_map(|(index, address)| {
        let is_global = match address {
            IpAddr::V4(a) => !a.is_link_local() && !a.is_loopback(),
            IpAddr::V6(a) => !a.is_unicast_link_local() && !a.is_loopback(),
        };
        let link = links.get(&index)?;
        (is_global && address.is_ipv4() == is_v4 && interfaces.contains(&link.name))
            .then_some(address)
    }))
}

fn index() -> io::Result<Option<u32>> {
    let found = links()?.into_values().find(|link| link.name == DEVICE);
    Ok(found.map(|link| link.index))
}

/// A device whose packets begin with their IP headers, and that is gone with its descriptor.
fn open_tun() -> Result<File, TunnelError> {
    let flags = libc::O_RDWR | libc::O_NONBLOCK | libc::O_CLOEXEC;
    // SAFETY: the path is a C string.
    let fd = unsafe { libc::open(c"/dev/net/tun".as_ptr(), flags) };
    if fd < 0 {
        return Err(TunnelError::NoTun(io::Error::last_os_error()));
    }
    // SAFETY: the descriptor is new and nobody else has it.
    let tun = unsafe { OwnedFd::from_raw_fd(fd) };
    // SAFETY: all zeros is a valid request.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(DEVICE.bytes()) {
        *to = from as libc::c_char;
    }
    // Exclusive: a persistent device of somebody else's is not taken over.
    let kind = libc::IFF_TUN | libc::IFF_NO_PI | libc::IFF_TUN_EXCL;
    request.ifr_ifru.ifru_flags = kind as libc::c_short;
    let deadline = Instant::now() + PATIENCE;
    // The name becomes free with the end of another process, of which nobody tells.
    loop {
        // SAFETY: the pointer is to a whole request, which outlives the call.
        let done = unsafe { libc::ioctl(tun.as_raw_fd(), libc::TUNSETIFF, &raw mut request) };
        if done == 0 {
            return Ok(tun.into());
        }
        let error = io::Error::last_os_error();
        match error.raw_os_error() {
            Some(libc::EBUSY | libc::EINVAL | libc::EEXIST) => {
                if Instant::now() >= deadline {
                    return Err(TunnelError::Taken);
                }
                pause();
            }
            _ => return Err(refused("making the interface")(error)),
        }
    }
}

#[expect(
    clippy::disallowed_methods,
    reason = "on the engine's thread, where nothing else is to be done meanwhile"
)]
fn pause() {
    std::thread::sleep(PAUSE);
}

/// A socket for packets with their IP headers (raw(7)).
fn sender(domain: Domain) -> io::Result<RawSocket> {
    let protocol = Protocol::from(libc::IPPROTO_RAW);
    let socket = RawSocket::new(domain, Type::RAW.nonblocking(), Some(protocol))?;
    let (level, option) = match domain {
        Domain::IPV4 => (libc::IPPROTO_IP, libc::IP_HDRINCL),
        _ => (libc::IPPROTO_IPV6, IPV6_HDRINCL),
    };
    let on: libc::c_int = 1;
    // SAFETY: the pointer and length are those of `on`, which the kernel only reads.
    let status = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            level,
            option,
            (&raw const on).cast(),
            size_of_val(&on) as libc::socklen_t,
        )
    };
    match status {
        0 => Ok(socket),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Asks for a change; the error numbers that `are_fine` are none.
fn change(
    netlink: &mut Socket,
    kind: u16,
    flags: libc::c_int,
    body: &[u8],
    are_fine: &[i32],
) -> io::Result<()> {
    match netlink.request(kind, flags | libc::NLM_F_ACK, body)? {
        Reply::Messages(_) => Ok(()),
        Reply::Error { code, .. } if are_fine.contains(&code) => Ok(()),
        Reply::Error { code, message } => Err(match message {
            Some(text) => io::Error::other(text),
            None => io::Error::from_raw_os_error(code),
        }),
    }
}

fn set_up(netlink: &mut Socket, index: u32) -> io::Result<()> {
    let head = |flags: libc::c_int| {
        let mut body = vec![0; 4];
        body.extend(index.to_ne_bytes());
        // Which flags are set, and which are to be changed.
        body.extend(flags.to_ne_bytes());
        body.extend(flags.to_ne_bytes());
        body
    };
    // Without an address of its own it says nothing. Where there is no IPv6, it has none anyway.
    let (mut v6, mut families, mut body) = (Vec::new(), Vec::new(), head(0));
    push_attribute(&mut v6, IFLA_INET6_ADDR_GEN_MODE, &[IN6_ADDR_GEN_MODE_NONE])?;
    push_attribute(&mut families, libc::AF_INET6 as u16, &v6)?;
    push_attribute(&mut body, libc::IFLA_AF_SPEC, &families)?;
    let no_v6 = [libc::EAFNOSUPPORT, libc::EOPNOTSUPP, libc::EINVAL];
    change(netlink, libc::RTM_NEWLINK, 0, &body, &no_v6)?;
    let mut body = head(libc::IFF_UP);
    push_attribute(&mut body, libc::IFLA_MTU, &MTU.to_ne_bytes())?;
    push_attribute(&mut body, libc::IFLA_TXQLEN, &QUEUE.to_ne_bytes())?;
    change(netlink, libc::RTM_NEWLINK, 0, &body, &[])
}

/// What has the mark is looked up in the table.
fn rule(family: libc::c_int) -> io::Result<Vec<u8>> {
    // struct fib_rule_hdr.
    let mut body = vec![family as u8, 0, 0, 0, libc::RT_TABLE_UNSPEC, 0, 0];
    body.extend([FR_ACT_TO_TBL, 0, 0, 0, 0]);
    for (kind, value) in [
        (FRA_PRIORITY, PRIORITY),
        (FRA_FWMARK, MARK),
        (FRA_FWMASK, u32::MAX),
        (FRA_TABLE, TABLE),
    ] {
        push_attribute(&mut body, kind, &value.to_ne_bytes())?;
    }
    Ok(body)
}

/// A default route of the table: by the device, or without one the one that leads nowhere.
fn default_route(family: libc::c_int, device: Option<u32>) -> io::Result<Vec<u8>> {
    let (scope, kind) = match device {
        Some(_) => (libc::RT_SCOPE_LINK, libc::RTN_UNICAST),
        None => (libc::RT_SCOPE_UNIVERSE, libc::RTN_UNREACHABLE),
    };
    // struct rtmsg.
    let mut body = vec![family as u8, 0, 0, 0, libc::RT_TABLE_UNSPEC];
    body.extend([libc::RTPROT_STATIC, scope, kind, 0, 0, 0, 0]);
    push_attribute(&mut body, libc::RTA_TABLE, &TABLE.to_ne_bytes())?;
    match device {
        Some(index) => push_attribute(&mut body, libc::RTA_OIF, &index.to_ne_bytes())?,
        None => push_attribute(&mut body, libc::RTA_PRIORITY, &i32::MAX.to_ne_bytes())?,
    }
    Ok(body)
}

/// Adds what is not there yet. The rule comes last: without routes it leads nowhere.
fn add(netlink: &mut Socket, family: libc::c_int, index: u32) -> io::Result<()> {
    let new = libc::NLM_F_CREATE | libc::NLM_F_EXCL;
    let there = [libc::EEXIST];
    for device in [Some(index), None] {
        let route = default_route(family, device)?;
        change(netlink, libc::RTM_NEWROUTE, new, &route, &there)?;
    }
    change(netlink, libc::RTM_NEWRULE, new, &rule(family)?, &there)
}

fn remove_all(netlink: &mut Socket) {
    for family in FAMILIES {
        remove(netlink, family, None);
    }
}

/// Removes what is there; with a device, also the route by it, which else goes with it.
fn remove(netlink: &mut Socket, family: libc::c_int, device: Option<u32>) {
    let mut gone = |kind, body: io::Result<Vec<u8>>| {
        let missing = [
            libc::ENOENT,
            libc::ESRCH,
            libc::EAFNOSUPPORT,
            libc::EOPNOTSUPP,
        ];
        let done = body.and_then(|body| change(netlink, kind, 0, &body, &missing));
        if let Err(e) = done {
            tracing::warn!("a rule or route of health checks cannot be removed: {e}");
        }
    };
    gone(libc::RTM_DELRULE, rule(family));
    gone(libc::RTM_DELROUTE, default_route(family, None));
    if device.is_some() {
        gone(libc::RTM_DELROUTE, default_route(family, device));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_asks_for_the_way_to_this_host_gets_its_own_address() {
        let mut netlink = Socket::open(libc::NETLINK_ROUTE).unwrap();
        let own = IpAddr::from([127, 0, 0, 1]);
        assert_eq!(source_towards(&mut netlink, own).unwrap(), Ok(own));
        let lo = ["lo".to_owned()];
        assert_eq!(address_on(&lo, true).unwrap(), None);
    }

    /// As `ip -batch` with `rule add ...` and `route add ...` sends them.
    #[test]
    fn requests_are_laid_out_as_the_kernel_reads_them() {
        let attribute = |kind: u16, value: u32| {
            let head = [8u16, kind].map(u16::to_ne_bytes).concat();
            [head, value.to_ne_bytes().to_vec()].concat()
        };
        let rule = rule(libc::AF_INET6).unwrap();
        assert_eq!(rule[..12], [10, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0]);
        let attributes = [(6, 900), (10, 0xed), (16, u32::MAX), (15, 60_782)];
        let attributes = attributes.map(|(kind, value)| attribute(kind, value));
        assert_eq!(rule[12..], attributes.concat());
        let by_device = default_route(libc::AF_INET, Some(7)).unwrap();
        assert_eq!(by_device[..12], [2, 0, 0, 0, 0, 4, 253, 1, 0, 0, 0, 0]);
        assert_eq!(
            by_device[12..],
            [attribute(15, 60_782), attribute(4, 7)].concat()
        );
        let nowhere = default_route(libc::AF_INET, None).unwrap();
        assert_eq!(nowhere[..12], [2, 0, 0, 0, 0, 4, 0, 7, 0, 0, 0, 0]);
    }
}
