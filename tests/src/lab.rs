//! A protected host and the networks around it.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use crate::frames::{self, Mac, Payload};
use crate::netns::Namespace;
use crate::raw::{self, Counter, Sender, Tap, Which};
use crate::receiver::Receiver;
use crate::wait::PATIENCE;

/// Addresses that the outside of a link really has: 2 to this one.
pub const LAST_ADDRESS: u8 = 6;

/// An Ethernet type for local experiments (IEEE 802): what every check lets through.
const LOCAL_EXPERIMENT: [u8; 2] = [0x88, 0xb5];

/// The protected host with a number of links, `eth0`, `eth1` and so on.
///
/// Link `n` has the networks 10.77.`n`.0/24 and fd77:`n`::/64; the host is 1 in them, the outside
/// is 2 to [`LAST_ADDRESS`].
#[derive(Debug)]
pub struct Lab {
    /// The host that Edge protects.
    pub host: Namespace,
    /// Its links.
    pub links: Vec<Link>,
}

impl Lab {
    /// A host with so many links.
    ///
    /// # Panics
    /// Without root, `ip` or `ethtool`.
    #[must_use]
    #[track_caller]
    pub fn new(links: u8) -> Self {
        let host = Namespace::new();
        let links = (0..links).map(|n| Link::new(&host, n, 1500)).collect();
        Self { host, links }
    }

    /// The first link.
    ///
    /// # Panics
    /// When the host has none.
    #[must_use]
    #[track_caller]
    pub fn link(&self) -> &Link {
        &self.links[0]
    }
}

/// A link of the host, and the network at its other end.
#[derive(Debug)]
pub struct Link {
    /// The interface of the host.
    pub interface: String,
    /// The other end's namespace; its interface is `out0`.
    pub outside: Namespace,
    /// Sends from the other end.
    pub sender: Sender,
    number: u8,
    tap: Tap,
    receiver: Option<Receiver>,
    marks: AtomicU64,
}

impl Link {
    /// Link `number` of the host, with an MTU in bytes.
    ///
    /// # Panics
    /// When it cannot be made.
    #[must_use]
    #[track_caller]
    pub fn new(host: &Namespace, number: u8, mtu: u32) -> Self {
        let outside = Namespace::new();
        let interface = format!("eth{number}");
        let macs =
            [mac(number, 1), mac(number, 2)].map(|m| m.map(|byte| format!("{byte:02x}")).join(":"));
        host.ip(&format!(
            "link add {interface} mtu {mtu} address {} type veth peer name out0 mtu {mtu} address \
             {} netns {}",
            macs[0],
            macs[1],
            outside.path()
        ));
        host.ip(&format!("addr add 10.77.{number}.1/24 dev {interface}"));
        host.ip(&format!(
            "addr add fd77:{number}::1/64 dev {interface} nodad"
        ));
        for last in 2..=LAST_ADDRESS {
            outside.ip(&format!("addr add 10.77.{number}.{last}/24 dev out0"));
            outside.ip(&format!("addr add fd77:{number}::{last}/64 dev out0 nodad"));
        }
        host.ip(&format!("link set {interface} up"));
        outside.ip("link set out0 up");
        // Everything a namespace sends goes the way of a packet from a wire: one by one and with
        // its checksum. And replies that XDP sends are received.
        outside.run("ethtool", &["-K", "out0", "tx", "off"]);
        let receiver = Receiver::new(&outside, "out0");
        let sender = Sender::new(&outside, "out0");
        let tap = Tap::new(host, &interface);
        let link = Self {
            interface,
            outside,
            sender,
            number,
            tap,
            receiver: Some(receiver),
            marks: AtomicU64::new(0),
        };
        link.wait_for_carrier();
        link
    }

    /// Takes the program off the other end, which must get another one to receive what XDP sends.
    pub fn free_outside(&mut self) {
        self.receiver = None;
    }

    /// MAC addresses of a frame from the outside to the host.
    #[must_use]
    pub fn macs(&self) -> (Mac, Mac) {
        (mac(self.number, 2), mac(self.number, 1))
    }

    /// IPv4 address `last` on this link; 1 is the host.
    #[must_use]
    pub fn v4(&self, last: u8) -> IpAddr {
        Ipv4Addr::new(10, 77, self.number, last).into()
    }

    /// IPv6 address `last` on this link; 1 is the host.
    #[must_use]
    pub fn v6(&self, last: u8) -> IpAddr {
        Ipv6Addr::new(0xfd77, self.number.into(), 0, 0, 0, 0, 0, last.into()).into()
    }

    /// A frame from any source to the host.
    #[must_use]
    pub fn frame(&self, source: IpAddr, payload: Payload) -> Vec<u8> {
        let host = match source {
            IpAddr::V4(_) => self.v4(1),
            IpAddr::V6(_) => self.v6(1),
        };
        frames::frame(self.macs(), source, host, payload)
    }

    /// Sends a frame, and says whether it came through to the host's stack.
    ///
    /// A second frame that passes every check is sent behind it: once that one is there, the first
    /// is there too or was dropped.
    ///
    /// # Panics
    /// When the second frame does not arrive.
    #[must_use]
    #[track_caller]
    pub fn passes(&self, frame: &[u8]) -> bool {
        let number = self.marks.fetch_add(2, Ordering::Relaxed);
        let mut frame = frame.to_vec();
        raw::mark(&mut frame, number);
        let mut last = self.local_frame();
        raw::mark(&mut last, number + 1);
        self.sender.send(&frame);
        self.sender.send(&last);
        let deadline = Instant::now() + PATIENCE;
        let mut passed = false;
        loop {
            match self.tap.next() {
                Some(n) if n == number => passed = true,
                Some(n) if n == number + 1 => return passed,
                _ => assert!(Instant::now() < deadline, "{} is dead", self.interface),
            }
        }
    }

    /// Whether a UDP packet from `source` passes.
    ///
    /// # Panics
    /// When the link is dead.
    #[must_use]
    #[track_caller]
    pub fn passes_from(&self, source: IpAddr) -> bool {
        self.passes(&self.frame(source, Payload::Udp(9)))
    }

    /// Counts what comes in to the host's stack.
    #[must_use]
    #[track_caller]
    pub fn counter(&self, host: &Namespace, which: Which) -> Counter {
        Counter::new(host, &self.interface, which)
    }

    /// Whether the real client `curl` gets a page from the host when it calls from address `last`.
    #[must_use]
    pub fn can_get(&self, source: IpAddr, patience: Duration) -> bool {
        let host = match source {
            IpAddr::V4(_) => self.v4(1).to_string(),
            IpAddr::V6(_) => format!("[{}]", self.v6(1)),
        };
        let output = self.outside.output(
            "curl",
            &[
                "--silent",
                "--show-error",
                "--globoff",
                "--noproxy",
                "*",
                "--output",
                "/dev/null",
                "--write-out",
                "%{http_code}",
                "--max-time",
                &format!("{:.1}", patience.as_secs_f32()),
                "--interface",
                &source.to_string(),
                &format!("http://{host}/"),
            ],
        );
        output.status.success() && output.stdout == b"200"
    }

    fn local_frame(&self) -> Vec<u8> {
        let (from, to) = self.macs();
        let mut frame = Vec::from(to);
        frame.extend(from);
        frame.extend(LOCAL_EXPERIMENT);
        frame.resize(60, 0);
        frame
    }

    /// Frames that are sent before both ends are up are lost.
    #[track_caller]
    fn wait_for_carrier(&self) {
        crate::wait::until("carrier", || {
            self.outside.ip("-o link show out0").contains("LOWER_UP")
        });
    }
}

fn mac(link: u8, end: u8) -> Mac {
    [0x02, 0xed, 0, 0, link, end]
}
