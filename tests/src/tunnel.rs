//! A balancer as simple as can be: what a namespace sends to some addresses comes out
//! of a TUN device, and goes to a backend in a tunnel.

use std::fs::{File, OpenOptions};
use std::io::{self, Read as _};
use std::net::IpAddr;
use std::os::fd::AsRawFd as _;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};

use edge_common::tunnel::{GUE_PORT, PROTO_IPV4, PROTO_IPV6, ipv4_outer, ipv6_outer, udp};

use crate::frames::Mac;
use crate::netns::Namespace;
use crate::packet::proto;
use crate::raw::Sender;

/// The MTU of the device, bytes: with any outer header a packet fits into 1500.
const MTU: u32 = 1400;

/// How packets are put into other ones.
#[derive(Clone, Copy, Debug)]
pub struct Outer {
    /// MAC addresses of frames, from and to.
    pub macs: (Mac, Mac),
    /// The outer source.
    pub source: IpAddr,
    /// The outer destination, of the same family.
    pub dest: IpAddr,
    /// Whether a UDP header stands in between.
    pub gue: bool,
}

impl Outer {
    /// The frame with a packet inside.
    ///
    /// # Panics
    /// When source and destination are of different families, or the packet is too long.
    #[must_use]
    pub fn around(&self, inner: &[u8]) -> Vec<u8> {
        let short = |n: usize| u16::try_from(n).expect("short enough");
        let mut payload = Vec::new();
        let proto = match (self.gue, inner.first().map(|byte| byte >> 4)) {
            (true, _) => {
                let header = udp(0xc0de, GUE_PORT, short(8 + inner.len()));
                payload.extend(header.iter().flat_map(|word| word.to_ne_bytes()));
                proto::UDP
            }
            (false, Some(6)) => PROTO_IPV6,
            (false, _) => PROTO_IPV4,
        };
        payload.extend(inner);
        let mut frame = Vec::from(self.macs.1);
        frame.extend(self.macs.0);
        match (self.source, self.dest) {
            (IpAddr::V4(source), IpAddr::V4(dest)) => {
                frame.extend([8, 0]);
                let word = |a: std::net::Ipv4Addr| u32::from_ne_bytes(a.octets());
                let total = short(20 + payload.len());
                let header = ipv4_outer(word(source), word(dest), proto, total, 64, 0);
                frame.extend(header.iter().flat_map(|word| word.to_ne_bytes()));
            }
            (IpAddr::V6(source), IpAddr::V6(dest)) => {
                frame.extend([0x86, 0xdd]);
                let words = |a: std::net::Ipv6Addr| {
                    let octets = a.octets();
                    let (words, _) = octets.as_chunks::<8>();
                    [words[0], words[1]].map(u64::from_ne_bytes)
                };
                let len = short(payload.len());
                let header = ipv6_outer(words(source), words(dest), proto, len, 64, 0, 0xbeef);
                frame.extend(header.iter().flat_map(|word| word.to_ne_bytes()));
            }
            (a, b) => panic!("{a} and {b} are not of one family"),
        }
        frame.extend(payload);
        frame
    }
}

/// Puts packets into tunnels until it is dropped.
#[derive(Debug)]
pub struct Encapsulator {
    outer: Arc<Mutex<Outer>>,
    sent: Arc<AtomicU64>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Encapsulator {
    /// Takes what `namespace` sends to addresses of `services`, each with the source
    /// address that it is sent from, and sends it out of `interface`.
    ///
    /// # Panics
    /// Without root or TUN devices.
    #[must_use]
    #[track_caller]
    pub fn new(
        namespace: &Namespace,
        interface: &str,
        services: &[(IpAddr, IpAddr)],
        outer: Outer,
    ) -> Self {
        const DEVICE: &str = "tun0";
        let mut device = namespace.inside(|| open(DEVICE)).expect("a TUN device");
        namespace.ip(&format!("link set {DEVICE} mtu {MTU} up"));
        for (service, source) in services {
            namespace.ip(&format!("route add {service} dev {DEVICE} src {source}"));
        }
        let sender = Sender::new(namespace, interface);
        let outer = Arc::new(Mutex::new(outer));
        let (stop, sent) = <(Arc<AtomicBool>, Arc<AtomicU64>)>::default();
        let (how, end, count) = (outer.clone(), stop.clone(), sent.clone());
        let thread = thread::spawn(move || {
            let mut packet = vec![0; 1 << 16];
            while !end.load(Ordering::Relaxed) {
                let Some(length) = next(&mut device, &mut packet) else {
                    continue;
                };
                let outer = *how.lock().unwrap_or_else(PoisonError::into_inner);
                sender.send(&outer.around(&packet[..length]));
                count.fetch_add(1, Ordering::Relaxed);
            }
        });
        Self {
            outer,
            sent,
            stop,
            thread: Some(thread),
        }
    }

    /// From now on it goes another way.
    pub fn change(&self, outer: Outer) {
        *self.outer.lock().unwrap_or_else(PoisonError::into_inner) = outer;
    }

    /// How many packets went into tunnels.
    #[must_use]
    pub fn sent(&self) -> u64 {
        self.sent.load(Ordering::Relaxed)
    }
}

impl Drop for Encapsulator {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// A device whose packets begin with their IP headers.
fn open(name: &str) -> io::Result<File> {
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .open("/dev/net/tun")?;
    // SAFETY: all zeros is a valid request.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
        *to = from as libc::c_char;
    }
    request.ifr_ifru.ifru_flags = (libc::IFF_TUN | libc::IFF_NO_PI) as libc::c_short;
    // SAFETY: the pointer is to a whole request, which outlives the call.
    let done = unsafe { libc::ioctl(file.as_raw_fd(), libc::TUNSETIFF, &raw mut request) };
    if done == 0 {
        Ok(file)
    } else {
        Err(io::Error::last_os_error())
    }
}

/// Reads the next packet; `None` when there is none for a short while.
fn next(device: &mut File, packet: &mut [u8]) -> Option<usize> {
    let mut poll = libc::pollfd {
        fd: device.as_raw_fd(),
        events: libc::POLLIN,
        revents: 0,
    };
    // SAFETY: the pointer is to one live value.
    if unsafe { libc::poll(&raw mut poll, 1, 50) } <= 0 {
        return None;
    }
    device.read(packet).ok().filter(|length| *length > 0)
}
