//! From the ring buffer to those who follow: sampled packets with their
//! headers read, the last ones kept, and every follower served at its own pace.

use std::{
    collections::VecDeque,
    fmt::Write as _,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};

use edge_common::{
    abi,
    parse::{self, Network, PacketSource, proto},
    reason::Reason,
};
use tokio::sync::broadcast;

use super::protocol::{Event, MAX_RECENT_EVENTS, Packet, ServerMessage};
use crate::status::{attack::Notice, balance::HealthNotice};

/// Events a follower may fall behind before it loses some.
const FOLLOWER_BACKLOG: usize = 1024;

/// What comes: events and attacks.
pub type Follower = broadcast::Receiver<Arc<ServerMessage>>;

/// Takes events in and hands them out. Publishing never waits for a follower.
#[derive(Debug)]
pub struct Hub {
    recent: Mutex<VecDeque<Arc<ServerMessage>>>,
    sender: broadcast::Sender<Arc<ServerMessage>>,
    published: AtomicU64,
    lost: AtomicU64,
}

impl Default for Hub {
    fn default() -> Self {
        Self {
            recent: Mutex::default(),
            sender: broadcast::channel(FOLLOWER_BACKLOG).0,
            published: AtomicU64::new(0),
            lost: AtomicU64::new(0),
        }
    }
}

impl Hub {
    /// Publishes an event to all followers, and keeps it among the recent ones.
    pub fn publish(&self, event: Event) {
        self.send(ServerMessage::Event(event));
        self.published.fetch_add(1, Ordering::Relaxed);
    }

    /// The same for an attack that began or ended.
    pub fn announce(&self, notice: Notice) {
        self.send(ServerMessage::Attack(Box::new(notice)));
    }

    /// The same for a backend whose health changed.
    pub fn tell_health(&self, notice: HealthNotice) {
        self.send(ServerMessage::Health(Box::new(notice)));
    }

    fn send(&self, message: ServerMessage) {
        let event = Arc::new(message);
        let mut recent = self.recent.lock().unwrap_or_else(PoisonError::into_inner);
        if recent.len() >= MAX_RECENT_EVENTS as usize {
            recent.pop_front();
        }
        recent.push_back(event.clone());
        // Under the same lock as `subscribe`, so that nobody misses or repeats one.
        // No follower at all is no error.
        let _ = self.sender.send(event);
    }

    /// The last events (at most `last`, oldest first), and all that follow them.
    pub fn subscribe(&self, last: u32) -> (Vec<Arc<ServerMessage>>, Follower) {
        let recent = self.recent.lock().unwrap_or_else(PoisonError::into_inner);
        let skip = recent.len().saturating_sub(last as usize);
        (
            recent.iter().skip(skip).cloned().collect(),
            self.sender.subscribe(),
        )
    }

    /// Counts events that a follower lost by reading too slowly.
    pub fn count_lost(&self, events: u64) {
        self.lost.fetch_add(events, Ordering::Relaxed);
    }

    /// Sampled events published since the start.
    pub fn published(&self) -> u64 {
        self.published.load(Ordering::Relaxed)
    }

    /// Events that followers lost since the start, all together.
    pub fn lost(&self) -> u64 {
        self.lost.load(Ordering::Relaxed)
    }
}

/// A sampled packet as it is told: with `interface` for its `ifindex`, and the
/// time of day `unix_ms` for its monotonic time. `None` when the reason is
/// none of this version.
pub fn tell(event: &abi::Event, interface: &str, unix_ms: u64) -> Option<Event> {
    let sample = Sample {
        bytes: event.bytes(),
        frame_len: event.frame_len as usize,
    };
    let mut data = String::with_capacity(sample.bytes.len() * 2);
    for byte in sample.bytes {
        // Writing to a string cannot fail.
        let _ = write!(data, "{byte:02x}");
    }
    Some(Event {
        unix_ms,
        interface: interface.to_owned(),
        reason: Reason::from_index(u32::from(event.reason))?,
        would_drop: event.would_drop != 0,
        frame_len: event.frame_len,
        packet: headers(&sample),
        data,
    })
}

/// The first bytes of a frame whose whole length is known.
struct Sample<'a> {
    bytes: &'a [u8],
    frame_len: usize,
}

impl PacketSource for Sample<'_> {
    fn words<const N: usize>(&self, offset: usize) -> Option<[u32; N]> {
        self.bytes.words(offset)
    }

    fn doubles<const N: usize>(&self, offset: usize) -> Option<[u64; N]> {
        self.bytes.doubles(offset)
    }

    fn half(&self, offset: usize) -> Option<u16> {
        self.bytes.half(offset)
    }

    fn byte(&self, offset: usize) -> Option<u8> {
        self.bytes.byte(offset)
    }

    fn holds(&self, len: usize) -> bool {
        self.frame_len >= len
    }
}

fn v4(wire: u32) -> IpAddr {
    Ipv4Addr::from(wire.to_ne_bytes()).into()
}

fn v6([hi, lo]: [u64; 2]) -> IpAddr {
    let bits = u128::from(u64::from_be(hi)) << 64 | u128::from(u64::from_be(lo));
    Ipv6Addr::from_bits(bits).into()
}

/// What the headers say. Addresses are shown even when what follows them is
/// malformed: they are why one looks.
fn headers(sample: &Sample<'_>) -> Option<Packet> {
    let link = parse::link(sample).ok()?;
    let at = link.offset;
    let (source, destination, protocol, transport) = match link.network {
        Network::Ipv4 => {
            let [_, _, kind, source, destination] = sample.words::<5>(at)?;
            let ip = parse::ipv4(sample, at).ok();
            let protocol = ip.map_or(kind.to_ne_bytes()[1], |ip| ip.proto);
            (
                v4(source),
                v4(destination),
                protocol,
                ip.map(|ip| ip.transport),
            )
        }
        Network::Ipv6 => {
            let [head, s0, s1, d0, d1] = sample.doubles::<5>(at)?;
            let ip = parse::ipv6(sample, at).ok();
            let protocol = ip.map_or(head.to_ne_bytes()[6], |ip| ip.proto);
            let transport = ip.map(|ip| ip.transport);
            (v6([s0, s1]), v6([d0, d1]), protocol, transport)
        }
        Network::Arp => {
            let arp = parse::arp(sample, at).ok()?;
            let [target] = sample.words::<1>(at + 24)?;
            return Some(Packet {
                source: v4(arp.sender_ip),
                destination: v4(target),
                protocol: "arp".to_owned(),
                source_port: None,
                destination_port: None,
            });
        }
        Network::Other => return None,
    };
    let ports = transport.filter(|t| {
        matches!(protocol, proto::TCP | proto::UDP) && (t.source_port, t.dest_port) != (0, 0)
    });
    Some(Packet {
        source,
        destination,
        protocol: match protocol {
            proto::TCP => "tcp".to_owned(),
            proto::UDP => "udp".to_owned(),
            proto::ICMP => "icmp".to_owned(),
            proto::ICMPV6 => "icmpv6".to_owned(),
            other => other.to_string(),
        },
        source_port: ports.map(|t| u16::from_be(t.source_port)),
        destination_port: ports.map(|t| u16::from_be(t.dest_port)),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sampled(reason: Reason, frame: &[u8], frame_len: u32) -> abi::Event {
        let mut data = [0; abi::SAMPLE_BYTES];
        data[..frame.len()].copy_from_slice(frame);
        abi::Event {
            time_ns: 1,
            ifindex: 3,
            frame_len,
            reason: reason.index() as u16,
            would_drop: 0,
            captured: frame.len() as u32,
            data,
        }
    }

    /// Ethernet, IPv4 192.0.2.1 to 198.51.100.2, UDP 53 to 4000; `len` is the
    /// total length that the IPv4 header claims.
    fn udp4(len: u16) -> Vec<u8> {
        let mut f = vec![0; 12];
        f.extend([0x08, 0x00, 0x45, 0]);
        f.extend(len.to_be_bytes());
        f.extend([0, 0, 0, 0, 64, 17, 0, 0, 192, 0, 2, 1, 198, 51, 100, 2]);
        f.extend([0, 53, 0x0f, 0xa0]);
        f.extend((len - 20).to_be_bytes());
        f.extend([0, 0]);
        f
    }

    #[test]
    fn headers_of_a_sample_cut_short() {
        // 1000 bytes of which only the headers were captured.
        let e = tell(&sampled(Reason::LimitUdp, &udp4(986), 1000), "eth0", 5).unwrap();
        let p = e.packet.unwrap();
        assert_eq!(p.source.to_string(), "192.0.2.1");
        assert_eq!(p.destination.to_string(), "198.51.100.2");
        assert_eq!((p.source_port, p.destination_port), (Some(53), Some(4000)));
        assert_eq!(p.protocol, "udp");
        assert!(e.data.starts_with("000000000000000000000000080045"));
    }

    #[test]
    fn addresses_of_a_malformed_packet() {
        // The frame ends before the total length says.
        let e = tell(&sampled(Reason::Ipv4BadLength, &udp4(986), 42), "eth0", 5).unwrap();
        let p = e.packet.unwrap();
        assert_eq!(p.source.to_string(), "192.0.2.1");
        assert_eq!((p.protocol.as_str(), p.source_port), ("udp", None));
    }

    #[test]
    fn addresses_of_ipv6_and_arp() {
        let mut f = vec![0; 12];
        f.extend([0x86, 0xdd, 0x60, 0, 0, 0, 0, 0, 59, 64]);
        f.extend("2001:db8::1".parse::<Ipv6Addr>().unwrap().octets());
        f.extend("2001:db8::2".parse::<Ipv6Addr>().unwrap().octets());
        let e = tell(&sampled(Reason::Blacklisted, &f, 54), "eth0", 5).unwrap();
        let p = e.packet.unwrap();
        assert_eq!(p.source.to_string(), "2001:db8::1");
        assert_eq!(p.destination.to_string(), "2001:db8::2");
        assert_eq!(p.protocol, "59");

        let mut f = vec![0; 12];
        f.extend([0x08, 0x06, 0, 1, 8, 0, 6, 4, 0, 1, 2, 2, 2, 2, 2, 2]);
        f.extend([10, 0, 0, 1, 0, 0, 0, 0, 0, 0, 10, 0, 0, 9]);
        let e = tell(&sampled(Reason::ArpSpoof, &f, 42), "eth0", 5).unwrap();
        let p = e.packet.unwrap();
        assert_eq!(p.source.to_string(), "10.0.0.1");
        assert_eq!(p.destination.to_string(), "10.0.0.9");
    }

    #[test]
    fn nothing_is_read_from_rubbish() {
        for len in 0..16 {
            let e = tell(
                &sampled(Reason::EthTruncated, &vec![0xff; len], 16),
                "eth0",
                5,
            )
            .unwrap();
            assert_eq!(e.packet, None);
        }
        let mut e = sampled(Reason::Land, &[], 0);
        e.reason = u16::MAX;
        assert_eq!(tell(&e, "eth0", 5), None);
    }

    #[test]
    fn recent_events_are_bounded_and_followed_without_a_gap() {
        let hub = Hub::default();
        let event = |n: u64| tell(&sampled(Reason::Land, &[], 0), "eth0", n).unwrap();
        for n in 0..u64::from(MAX_RECENT_EVENTS) + 10 {
            hub.publish(event(n));
        }
        let at = |message: &ServerMessage| match message {
            ServerMessage::Event(event) => event.unix_ms,
            other => panic!("{other:?}"),
        };
        let (recent, _) = hub.subscribe(u32::MAX);
        assert_eq!(recent.len(), MAX_RECENT_EVENTS as usize);
        assert_eq!(at(&recent[0]), 10);
        let (recent, mut rest) = hub.subscribe(1);
        hub.publish(event(9999));
        assert_eq!(at(&recent[0]), u64::from(MAX_RECENT_EVENTS) + 9);
        assert_eq!(at(&rest.try_recv().unwrap()), 9999);
        assert_eq!(hub.published(), u64::from(MAX_RECENT_EVENTS) + 11);
    }
}
