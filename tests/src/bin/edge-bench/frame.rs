//! The frames that are measured.

use std::net::IpAddr;

use edge_common::addr::Family;
use edge_tests::{
    frames::{self, ACK, Mac, SYN},
    packet,
};

use crate::defence::PORT;

const MACS: (Mac, Mac) = (packet::SOURCE_MAC, packet::DEST_MAC);

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

/// A SYN to the service with all options. The harness puts in the source.
pub(crate) fn linux_syn(source: IpAddr, dest: IpAddr) -> Vec<u8> {
    frames::linux_syn(MACS, source, dest, PORT)
}

/// An acknowledgement to the service of a number that no cookie has but by chance.
pub(crate) fn guess(source: IpAddr, dest: IpAddr) -> Vec<u8> {
    frames::guess(MACS, source, dest, PORT)
}

/// A small frame from this source.
pub(crate) fn from(source: IpAddr, payload: Payload) -> Vec<u8> {
    let dest = host(match source {
        IpAddr::V4(_) => Family::V4,
        IpAddr::V6(_) => Family::V6,
    });
    let payload = match payload {
        Payload::Ack => frames::Payload::Tcp(ACK),
        Payload::Syn => frames::Payload::Tcp(SYN),
        Payload::Udp => frames::Payload::Udp(9),
    };
    frames::frame(MACS, source, dest, payload)
}
