//! NAT: whole packets, there and back, made here from the RFCs.

pub(super) mod both_ways;
pub(super) mod errors;
pub(super) mod flows;

use std::net::IpAddr;

use edge_common::{
    balance::{Balance, Forward},
    reason::Reason,
};

use super::{
    super::{V4, V4_DEST, V6, V6_DEST},
    DROP, MTU, PASS, TX, UP,
    expected::network,
    world::*,
};
use crate::packet::{DEST_MAC, ETH, Ip, SOURCE_MAC, checksum, ip, proto};

/// The addresses that packets leave with, by family.
const SOURCES: [(&str, &str); 2] = [
    ("192.0.2.101", "2001:db8:5::1"),
    ("192.0.2.102", "2001:db8:5::2"),
];
/// Client and service, by family.
const CLIENTS: [(&str, &str); 2] = [(V4, V4_DEST), (V6, V6_DEST)];
/// A backend of each family.
const BACKENDS: [&str; 2] = ["10.0.0.11", "2001:db8:b::11"];
/// The port that the builder's packets come from, and those they go to.
const CLIENT_PORT: u16 = 40_000;
const TCP: u16 = 443;
const UDP: u16 = 53;

const NAT: Balance = Balance {
    ring: 0,
    forward: Forward::Nat,
    by: edge_common::balance::HashBy::FiveTuple,
    echo: false,
    is_on: true,
};

/// One service for everything at both addresses, with these backends from number 3 on.
fn enter(world: &mut World, backends: &[&str]) {
    for (_, vip) in CLIENTS {
        world.enter(vip, proto::TCP, TCP, 0);
        world.enter(vip, proto::UDP, UDP, 0);
    }
    world.sources(&SOURCES.map(|(v4, v6)| (Some(v4), Some(v6))));
    let numbers: Vec<u32> = (3..).take(backends.len()).collect();
    for (number, address) in numbers.iter().zip(backends) {
        world.backend(*number, address, HERE, UP);
    }
    world.balance(0, NAT, &numbers);
}

/// Addresses and ports of a packet, source first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Tuple {
    source: IpAddr,
    dest: IpAddr,
    ports: (u16, u16),
}

impl Tuple {
    fn new(source: &str, dest: &str, ports: (u16, u16)) -> Self {
        let parse = |a: &str| a.parse().expect("an address");
        Self {
            source: parse(source),
            dest: parse(dest),
            ports,
        }
    }

    /// That of a whole frame.
    fn of(frame: &[u8]) -> Self {
        let (_, packet) = network(frame);
        let (source, dest, header) = match packet[0] >> 4 {
            4 => {
                let at = |i| IpAddr::from(<[u8; 4]>::try_from(&packet[i..i + 4]).unwrap());
                (at(12), at(16), usize::from(packet[0] & 0xf) * 4)
            }
            _ => {
                let at = |i| IpAddr::from(<[u8; 16]>::try_from(&packet[i..i + 16]).unwrap());
                (at(8), at(24), 40)
            }
        };
        let port = |i| u16::from_be_bytes([packet[header + i], packet[header + i + 1]]);
        Self {
            source,
            dest,
            ports: (port(0), port(2)),
        }
    }

    /// That of answers.
    const fn reversed(self) -> Self {
        Self {
            source: self.dest,
            dest: self.source,
            ports: (self.ports.1, self.ports.0),
        }
    }

    /// A packet of this tuple, of which the builder makes all but the ports.
    fn packet(self, build: impl FnOnce(Ip) -> Ip) -> Ip {
        let (from, to) = self.ports;
        build(ip(&self.source.to_string(), &self.dest.to_string())).ports(from, to)
    }

    fn octets(self) -> Vec<u8> {
        let of = |address| match address {
            IpAddr::V4(a) => a.octets().to_vec(),
            IpAddr::V6(a) => a.octets().to_vec(),
        };
        [of(self.source), of(self.dest)].concat()
    }
}

/// MAC addresses of a frame, destination first, and its VLAN tags.
#[derive(Clone, Debug)]
struct Link {
    macs: [[u8; 6]; 2],
    tags: Vec<u16>,
}

impl Link {
    /// To the backends' next hop.
    fn hop(vlan: u16) -> Self {
        Self {
            macs: [HOP, OWN],
            tags: Vec::from_iter((vlan != 0).then_some(vlan)),
        }
    }

    /// To where the builder's frames come from.
    fn client(tags: u16) -> Self {
        Self {
            macs: [SOURCE_MAC, DEST_MAC],
            tags: (0..tags).map(|tag| 100 + tag).collect(),
        }
    }

    fn frame(&self, kind: u16, packet: &[u8]) -> Vec<u8> {
        let mut frame = self.macs.concat();
        for id in &self.tags {
            frame.extend([0x81, 0]);
            frame.extend(id.to_be_bytes());
        }
        frame.extend(kind.to_be_bytes());
        frame.extend(packet);
        frame
    }
}

/// A packet of 100 + n tags.
fn tagged(packet: Ip, tags: u16) -> Ip {
    (0..tags).fold(packet, |packet, tag| packet.vlan(100 + tag))
}

/// Where the payload of a packet begins, and its protocol, behind options and extension
/// headers.
fn payload(packet: &[u8]) -> (usize, u8) {
    if packet[0] >> 4 == 4 {
        return (usize::from(packet[0] & 0xf) * 4, packet[9]);
    }
    let (mut at, mut next) = (40, packet[6]);
    while matches!(next, 0 | 43 | 60) {
        next = packet[at];
        at += 8 + usize::from(packet[at + 1]) * 8;
    }
    (at, next)
}

/// What becomes of a frame that goes on with these addresses and ports. Every checksum is
/// made anew, over the whole packet.
fn translated(frame: &[u8], tuple: Tuple, link: &Link) -> Vec<u8> {
    let (_, packet) = network(frame);
    let was_v4 = packet[0] >> 4 == 4;
    let (at, proto) = payload(packet);
    let total = usize::from(if was_v4 {
        u16::from_be_bytes([packet[2], packet[3]])
    } else {
        40 + u16::from_be_bytes([packet[4], packet[5]])
    });
    let (mut body, padding) = (packet[at..total].to_vec(), &packet[total..]);
    // Transport.
    let at_check = if proto == proto::TCP { 16 } else { 6 };
    let had_none = proto == proto::UDP && body[6..8] == [0, 0];
    let (from, to) = tuple.ports;
    body[..2].copy_from_slice(&from.to_be_bytes());
    body[2..4].copy_from_slice(&to.to_be_bytes());
    if !had_none || was_v4 && tuple.dest.is_ipv6() {
        let len = u32::try_from(body.len()).unwrap().to_be_bytes();
        let pseudo = [&tuple.octets()[..], &len, &[0, 0, 0, proto]].concat();
        body[at_check..at_check + 2].fill(0);
        let sum = match checksum(&[&pseudo, &body]) {
            [0, 0] if proto == proto::UDP => [0xff, 0xff],
            sum => sum,
        };
        body[at_check..at_check + 2].copy_from_slice(&sum);
    }
    let check = [body[at_check], body[at_check + 1]];
    // Network.
    let (class, hops) = if was_v4 {
        (packet[1], packet[8] - 1)
    } else {
        (packet[0] << 4 | packet[1] >> 4, packet[7] - 1)
    };
    let mut header = packet[..at].to_vec();
    let kind = match (was_v4, tuple.dest) {
        (false, IpAddr::V6(_)) => {
            header[7] = hops;
            header[8..40].copy_from_slice(&tuple.octets());
            0x86dd
        }
        (true, IpAddr::V6(_)) => {
            header = vec![0x60 | class >> 4, class << 4, 0, 0];
            header.extend(u16::try_from(body.len()).unwrap().to_be_bytes());
            header.extend([proto, hops]);
            header.extend(tuple.octets());
            0x86dd
        }
        (_, IpAddr::V4(_)) => {
            if !was_v4 {
                let len = u16::try_from(20 + body.len()).unwrap();
                header = vec![0x45, class];
                header.extend(len.to_be_bytes());
                // RFC 7915, 5.1: what is short may be fragmented, and is told apart.
                let second = if len > 1260 {
                    [0, 0, 0x40, 0]
                } else {
                    [check[0], check[1], 0, 0]
                };
                header.extend(second);
                header.extend([hops, proto, 0, 0]);
                header.extend(tuple.octets());
            }
            header[8] = hops;
            header[12..20].copy_from_slice(&tuple.octets());
            header[10..12].fill(0);
            let sum = checksum(&[&header]);
            header[10..12].copy_from_slice(&sum);
            0x0800
        }
    };
    link.frame(kind, &[&header[..], &body, padding].concat())
}

/// Sends a client's packet that must go to the backend at `address`, as these bytes; gives what
/// went there.
fn goes(world: &mut World, what: &str, frame: &[u8], address: &str, link: &Link) -> Tuple {
    let action = TX;
    goes_by(world, what, frame, (address, 0), link, action)
}

/// The same to a port (0: the service's), with another action.
fn goes_by(
    world: &mut World,
    what: &str,
    frame: &[u8],
    (address, port): (&str, u16),
    link: &Link,
    action: u32,
) -> Tuple {
    let was = Tuple::of(frame);
    let seen = world.send(frame);
    if ![TX, super::REDIRECT].contains(&seen.run.action) {
        world.fail(format!("{what}: {}", seen.moved));
        return was;
    }
    // Which of ours it left with.
    let left = Tuple::of(&seen.run.output);
    let (number, from) = SOURCES
        .iter()
        .enumerate()
        .flat_map(|(number, (v4, v6))| [(number, *v4), (number, *v6)])
        .find(|(_, a)| a.parse() == Ok(left.source))
        .unwrap_or((9, "0.0.0.0"));
    let port = if port == 0 { was.ports.1 } else { port };
    let tuple = Tuple::new(from, address, (left.ports.0, port));
    world.check(
        &format!("{what}: left with {left:?}, source {number}"),
        left == tuple && left.ports.0 >= 1024,
    );
    // And again, as the same.
    let bytes = translated(frame, tuple, link);
    world.becomes(what, frame, (Reason::Forwarded, action), &bytes);
    tuple
}

/// Sends a backend's answer, which must come to the client as the service's.
fn comes(world: &mut World, what: &str, frame: &[u8], client: Tuple, link: &Link) {
    let bytes = translated(frame, client.reversed(), link);
    world.becomes(what, frame, (Reason::Forwarded, TX), &bytes);
}

/// Sends a packet that the kernel must get as it is.
fn passes(world: &mut World, what: &str, frame: &[u8]) {
    world.becomes(what, frame, (Reason::Pass, PASS), frame);
}

/// Sends a packet that must be dropped.
fn drops(world: &mut World, what: &str, frame: &[u8], reason: Reason) {
    world.becomes(what, frame, (reason, DROP), frame);
}

const _: () = assert!(ETH == 14 && MTU == 1500);
