//! The frames that are measured.

use std::net::IpAddr;

use edge_common::addr::Family;
use edge_tests::frames::{self, ACK, SYN};

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

/// A small frame from this source.
pub(crate) fn from(source: IpAddr, payload: Payload) -> Vec<u8> {
    let macs = ([2, 0, 0, 0, 0, 1], [2, 0, 0, 0, 0, 2]);
    let dest = match source {
        IpAddr::V4(_) => [192, 0, 2, 1].into(),
        IpAddr::V6(_) => [0x2001, 0xdb8, 0, 0, 0, 0, 0, 1].into(),
    };
    let payload = match payload {
        Payload::Ack => frames::Payload::Tcp(ACK),
        Payload::Syn => frames::Payload::Tcp(SYN),
        Payload::Udp => frames::Payload::Udp(9),
    };
    frames::frame(macs, source, dest, payload)
}
