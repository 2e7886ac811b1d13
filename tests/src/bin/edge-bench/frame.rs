//! The frames that are measured.

use std::net::IpAddr;

use edge_common::addr::Family;
use edge_tests::{
    frames::{self, ACK, SYN},
    packet,
};

use crate::defence::PORT;

/// What is inside the IP packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Payload {
    /// TCP of an established connection.
    Ack,
    /// A connection attempt.
    Syn,
    /// UDP.
    Udp,
}

/// A small frame; the harness puts in the source.
pub(crate) fn build(family: Family, payload: Payload) -> Vec<u8> {
    let source = match family {
        Family::V4 => [11, 0, 0, 1].into(),
        Family::V6 => [0x2a00, 0, 0, 0, 0, 0, 0, 1].into(),
    };
    from(source, payload)
}

/// The address that frames go to.
pub(crate) fn host(family: Family) -> IpAddr {
    match family {
        Family::V4 => [192, 0, 2, 1].into(),
        Family::V6 => [0x2001, 0xdb8, 0, 0, 0, 0, 0, 1].into(),
    }
}

/// The port that TCP segments come from.
pub(crate) const CLIENT_PORT: u16 = 40_000;

/// A SYN with the options of Linux, in its order: MSS, SACK permitted, timestamps,
/// window scale. The harness puts in the source.
pub(crate) fn linux_syn(source: IpAddr, dest: IpAddr) -> Vec<u8> {
    let mss = match dest {
        IpAddr::V4(_) => 1460u16,
        IpAddr::V6(_) => 1440,
    };
    let [a, b] = mss.to_be_bytes();
    let options = [2, 4, a, b, 4, 2, 8, 10, 0, 0, 0, 7, 0, 0, 0, 0, 1, 3, 3, 7];
    tcp(source, dest, SYN, &options)
}

/// An acknowledgement without data, of a number that no cookie has but by chance.
pub(crate) fn guess(source: IpAddr, dest: IpAddr) -> Vec<u8> {
    tcp(source, dest, ACK, &[1, 1, 8, 10, 0, 0, 0, 7, 0, 0, 0, 7])
}

/// A TCP segment without data to the service.
fn tcp(source: IpAddr, dest: IpAddr, flags: u8, options: &[u8]) -> Vec<u8> {
    let mut segment = Vec::from(CLIENT_PORT.to_be_bytes());
    segment.extend(PORT.to_be_bytes());
    let acknowledged = if flags & ACK == 0 { 0 } else { 0x1234_5678u32 };
    segment.extend([0, 0, 0, 1]);
    segment.extend(acknowledged.to_be_bytes());
    let words = u8::try_from(5 + options.len() / 4).unwrap_or(5);
    segment.extend([words << 4, flags, 0xff, 0xff, 0, 0, 0, 0]);
    segment.extend(options);
    packet::ip(&source.to_string(), &dest.to_string())
        .payload(packet::proto::TCP, segment)
        .build()
}

/// A small frame from this source.
pub(crate) fn from(source: IpAddr, payload: Payload) -> Vec<u8> {
    let macs = (packet::SOURCE_MAC, packet::DEST_MAC);
    let dest = host(match source {
        IpAddr::V4(_) => Family::V4,
        IpAddr::V6(_) => Family::V6,
    });
    let payload = match payload {
        Payload::Ack => frames::Payload::Tcp(ACK),
        Payload::Syn => frames::Payload::Tcp(SYN),
        Payload::Udp => frames::Payload::Udp(9),
    };
    frames::frame(macs, source, dest, payload)
}
