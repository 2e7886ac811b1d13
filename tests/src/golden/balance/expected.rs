//! What comes out, made from the RFCs and not by the code under test.

use std::net::IpAddr;

use super::world::*;
use crate::packet::{ETH, checksum, proto};

/// How a packet goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Way {
    Ipip,
    Gue,
    L2,
}

/// A frame without its link layer: the type of what it carries, and that.
pub(super) fn network(frame: &[u8]) -> (u16, &[u8]) {
    let mut at = ETH - 2;
    loop {
        let kind = u16::from_be_bytes([frame[at], frame[at + 1]]);
        if !matches!(kind, 0x8100 | 0x88a8 | 0x9100) {
            return (kind, &frame[at + 2..]);
        }
        at += 4;
    }
}

/// A packet after a hop: its TTL or hop limit is one less.
pub(super) fn after_a_hop(packet: &[u8]) -> Vec<u8> {
    let mut packet = packet.to_vec();
    if packet[0] >> 4 == 4 {
        packet[8] -= 1;
        packet[10..12].fill(0);
        let header = usize::from(packet[0] & 0xf) * 4;
        let sum = checksum(&[&packet[..header]]);
        packet[10..12].copy_from_slice(&sum);
    } else {
        packet[7] -= 1;
    }
    packet
}

/// The link layer to the next hop.
pub(super) fn linked(vlan: u16, kind: u16, packet: &[u8]) -> Vec<u8> {
    let mut frame = [HOP, OWN].concat();
    if vlan != 0 {
        frame.extend([0x81, 0]);
        frame.extend(vlan.to_be_bytes());
    }
    frame.extend(kind.to_be_bytes());
    frame.extend(packet);
    frame
}

/// What becomes of a frame for the backend at `address`. Of what the flow's hash decides
/// (flow label, source port) the outcome itself is believed: see `seen`.
pub(super) fn forwarded(frame: &[u8], way: Way, address: &str, vlan: u16, seen: &[u8]) -> Vec<u8> {
    let (kind, packet) = network(frame);
    // Padding behind the packet stays.
    let inner = after_a_hop(packet);
    let len = match kind {
        0x0800 => usize::from(u16::from_be_bytes([packet[2], packet[3]])),
        _ => 40 + usize::from(u16::from_be_bytes([packet[4], packet[5]])),
    };
    let address: IpAddr = address.parse().unwrap();
    let outer_kind = if address.is_ipv6() { 0x86dd } else { 0x0800 };
    let link = if vlan == 0 { ETH } else { ETH + 4 };
    if way == Way::L2 {
        return linked(vlan, kind, &inner);
    }
    let (next, udp) = match (way, kind) {
        (Way::Gue, _) => {
            let at = link + if address.is_ipv6() { 40 } else { 20 };
            let source = [seen[at], seen[at + 1]];
            assert!(u16::from_be_bytes(source) >= 0xc000);
            let length = u16::try_from(len + 8).unwrap();
            let mut udp = source.to_vec();
            udp.extend(6080u16.to_be_bytes());
            udp.extend(length.to_be_bytes());
            udp.extend([0, 0]);
            (proto::UDP, udp)
        }
        (_, 0x0800) => (4, Vec::new()),
        _ => (41, Vec::new()),
    };
    let class = match kind {
        0x0800 => packet[1],
        _ => packet[0] << 4 | packet[1] >> 4,
    };
    let payload = u16::try_from(len + udp.len()).unwrap();
    let mut outer = Vec::new();
    match address {
        IpAddr::V4(dest) => {
            outer.extend([0x45, class]);
            outer.extend((payload + 20).to_be_bytes());
            outer.extend([0, 0, 0x40, 0, 64, next, 0, 0]);
            let from: std::net::Ipv4Addr = FROM_V4.parse().unwrap();
            outer.extend(from.octets());
            outer.extend(dest.octets());
            let sum = checksum(&[&outer]);
            outer[10..12].copy_from_slice(&sum);
        }
        IpAddr::V6(dest) => {
            outer.extend([0x60 | class >> 4, class << 4 | seen[link + 1] & 0xf]);
            outer.extend(&seen[link + 2..link + 4]);
            outer.extend(payload.to_be_bytes());
            outer.extend([next, 64]);
            let from: std::net::Ipv6Addr = FROM_V6.parse().unwrap();
            outer.extend(from.octets());
            outer.extend(dest.octets());
        }
    }
    linked(vlan, outer_kind, &[outer, udp, inner].concat())
}
