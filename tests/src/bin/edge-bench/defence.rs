//! The flood defence as the rows about SYNs have it on: one service, its
//! listener, and what the host's TCP is set to.

use std::{
    collections::BTreeMap,
    fs,
    net::{IpAddr, SocketAddr, TcpStream},
    os::fd::{AsFd as _, AsRawFd as _},
};

use anyhow::{Context, Result, ensure};
use edge_common::{
    abi::Mode,
    defence::{Service, TARGET_LOCAL, Target, TargetKey, When, reply::feature, v4_halves},
    gcra::Limit,
    parse::proto,
};
use edge_userspace::datapath::{Program, ServiceTables};

/// The port of the service.
pub(crate) const PORT: u16 = 80;

/// The port of a service of UDP: that which frames of [`crate::frame::Payload::Udp`] go to.
pub(crate) const UDP_PORT: u16 = 9;

/// Bytes of an Ethernet frame's packet, less the headers without options.
const MSS4: u16 = 1460;
const MSS6: u16 = 1440;

/// Ports of reflectors: none that frames of the bench come from.
const REFLECTORS: [u16; 2] = [53, 123];

/// Room for addresses and ports.
const TARGETS: u32 = 4096;

/// A service on [`PORT`] of some addresses, and perhaps one of UDP on [`UDP_PORT`].
#[derive(Clone, Debug)]
pub(crate) struct Defence {
    /// When it is defended.
    pub(crate) when: When,
    /// Handshakes a second that may stay incomplete, and twice as many at once.
    pub(crate) incomplete: u64,
    /// The window scale of its listener.
    pub(crate) wscale: u8,
    /// Where it is reached.
    pub(crate) addresses: Vec<IpAddr>,
    /// Whether there is a service of UDP, and what becomes of packets from reflectors.
    pub(crate) reflection: Option<Mode>,
}

impl Defence {
    /// Turns the defence on in a program that is about to be loaded.
    pub(crate) fn prepare(&self, program: &mut Program) {
        program.targets = TARGETS;
        let config = &mut program.config;
        config.services = self.services() as u32;
        config.reflection = self.reflection.unwrap_or(Mode::Off) as u32;
        config.defended = (self.when != When::Off).into();
        config.always_defended = (self.when == When::Always).into();
        config.tcp_features =
            feature::TIMESTAMPS | feature::SACK | feature::WINDOW_SCALE | feature::ECN;
    }

    /// Puts the service and its targets into the tables.
    pub(crate) fn fill(&self, tables: &mut ServiceTables) -> Result<()> {
        let tcp = Service {
            incomplete: Limit::per_second(self.incomplete, 2 * self.incomplete)
                .context("a limit")?,
            hold_ns: 10_000_000_000,
            when: self.when as u32,
            credit: 2,
            generation: 1,
            ..Service::OFF
        };
        let udp = Service {
            reflection: Limit::per_second(self.incomplete, self.incomplete).context("a limit")?,
            generation: 2,
            ..Service::OFF
        };
        let all = [tcp, udp];
        tables.set_services(all.get(..self.services()).unwrap_or(&all))?;
        let mut targets = BTreeMap::new();
        for address in &self.addresses {
            targets.extend([self.target(*address, proto::TCP)]);
            if self.reflection.is_some() {
                targets.extend([self.target(*address, proto::UDP)]);
            }
        }
        tables.set_targets(&targets, &REFLECTORS, &super::edge::SEED)?;
        Ok(())
    }

    fn services(&self) -> usize {
        1 + usize::from(self.reflection.is_some())
    }

    fn target(&self, address: IpAddr, proto: u8) -> (TargetKey, Target) {
        let (halves, mss) = match address {
            IpAddr::V4(a) => (v4_halves(u32::from_ne_bytes(a.octets())), MSS4),
            IpAddr::V6(a) => {
                let bytes = a.octets();
                let (halves, _) = bytes.as_chunks::<8>();
                let half = |i: usize| halves.get(i).copied().map_or(0, u64::from_ne_bytes);
                ([half(0), half(1)], MSS6)
            }
        };
        let (service, port) = if proto == proto::UDP {
            (1, UDP_PORT)
        } else {
            (0, PORT)
        };
        let key = TargetKey {
            address: halves,
            port: port.to_be(),
            proto,
            pad: [0; 5],
        };
        let target = Target {
            service,
            mss,
            wscale: self.wscale,
            kind: TARGET_LOCAL,
            marked_at: 0,
        };
        (key, target)
    }
}

/// What the network namespace of this thread must be set to, so that its TCP takes
/// cookies that XDP made.
pub(crate) fn set_sysctls() -> Result<()> {
    sysctl("net/ipv4/tcp_syncookies", "2")?;
    sysctl("net/ipv4/tcp_timestamps", "2")
}

/// Sets a sysctl of the network namespace of this thread.
pub(crate) fn sysctl(name: &str, value: &str) -> Result<()> {
    let path = format!("/proc/sys/{name}");
    fs::write(&path, value).with_context(|| format!("cannot set {path}"))
}

/// The window scale that the listener at an address announces: that of a real
/// connection to it.
pub(crate) fn window_scale(listener: SocketAddr) -> Result<u8> {
    scale_of(&TcpStream::connect(listener).with_context(|| format!("no {listener}"))?)
}

/// The window scale that the other end of a connection announced.
pub(crate) fn scale_of(connection: &TcpStream) -> Result<u8> {
    // The head of `struct tcp_info` (linux/tcp.h): six bytes, then two scales of four
    // bits, that of the peer first.
    let mut info = [0u8; 8];
    let mut size = libc::socklen_t::try_from(info.len())?;
    // SAFETY: the pointers are to live values, and the size is the buffer's.
    let result = unsafe {
        libc::getsockopt(
            connection.as_fd().as_raw_fd(),
            libc::IPPROTO_TCP,
            libc::TCP_INFO,
            info.as_mut_ptr().cast(),
            &raw mut size,
        )
    };
    ensure!(result == 0, "{}", std::io::Error::last_os_error());
    let [_, _, _, _, _, _, scales, _] = info;
    Ok(scales & 0xf)
}
