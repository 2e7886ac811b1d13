//! Segments, and what becomes of them.

use super::super::{V4, V4_DEST, V6, V6_DEST};
use crate::packet::{ETH, Ip, QTAG, ip, proto};

use super::*;

/// A TCP segment.
#[derive(Clone)]
pub(in crate::golden) struct Segment {
    pub(super) ports: (u16, u16),
    pub(super) seq: u32,
    pub(super) ack: u32,
    pub(super) flags: u8,
    pub(super) window: u16,
    pub(super) options: Vec<u8>,
    pub(super) payload: Vec<u8>,
}

/// From the client's port to this one.
pub(in crate::golden) fn to(port: u16, flags: u8) -> Segment {
    Segment {
        ports: (CLIENT_PORT, port),
        seq: 0x0102_0304,
        ack: 0,
        flags,
        window: 64_000,
        options: Vec::new(),
        payload: Vec::new(),
    }
}

impl Segment {
    pub(super) fn on_port(mut self, port: u16) -> Self {
        self.ports.0 = port;
        self
    }

    pub(super) const fn numbers(mut self, seq: u32, ack: u32) -> Self {
        (self.seq, self.ack) = (seq, ack);
        self
    }

    pub(super) fn options(mut self, options: &[u8]) -> Self {
        self.options = options.to_vec();
        self
    }

    pub(super) fn bytes(&self) -> Vec<u8> {
        let mut options = self.options.clone();
        options.resize(options.len().next_multiple_of(4), 0);
        let offset = u8::try_from((20 + options.len()) / 4).expect("at most 40 bytes");
        [
            &self.ports.0.to_be_bytes()[..],
            &self.ports.1.to_be_bytes(),
            &self.seq.to_be_bytes(),
            &self.ack.to_be_bytes(),
            &[offset << 4, self.flags],
            &self.window.to_be_bytes(),
            &[0; 4],
            &options,
            &self.payload,
        ]
        .concat()
    }

    /// In a packet between these addresses.
    pub(in crate::golden) fn packet(&self, source: &str, dest: &str) -> Ip {
        ip(source, dest).payload(proto::TCP, self.bytes())
    }

    pub(super) fn v4(&self) -> Vec<u8> {
        self.packet(V4, V4_DEST).build()
    }

    pub(super) fn v6(&self) -> Vec<u8> {
        self.packet(V6, V6_DEST).build()
    }

    /// As an answer to a packet between these addresses, with these tags.
    pub(super) fn reply(&self, source: &str, dest: &str, tags: usize) -> Vec<u8> {
        let mut frame = tagged(self.packet(dest, source).id(0), tags).build();
        frame[..12].rotate_left(6);
        let hops = ETH + 4 * tags + if source == V4 { 8 } else { 7 };
        if source == V4 {
            // The checksum changes by what the TTL does (RFC 1624).
            let at = hops + 2;
            let sum = u16::from_be_bytes([frame[at], frame[at + 1]]) + (u16::from(64 - TTL) << 8);
            frame[at..at + 2].copy_from_slice(&sum.to_be_bytes());
        }
        frame[hops] = TTL;
        frame
    }
}

pub(super) fn tagged(mut packet: Ip, tags: usize) -> Ip {
    for id in 0..tags {
        packet = packet.tag(QTAG, 100 + id as u16);
    }
    packet
}

/// The TCP header of a frame.
pub(super) fn tcp_of(frame: &[u8]) -> Option<&[u8]> {
    let mut at = 12;
    while *frame.get(at..)?.first_chunk()? == QTAG.to_be_bytes() {
        at += 4;
    }
    match frame.get(at + 2)? >> 4 {
        4 => frame.get(at + 22..),
        _ => frame.get(at + 42..),
    }
}

/// The families: source and destination.
pub(in crate::golden) const FAMILIES: [(&str, &str); 2] = [(V4, V4_DEST), (V6, V6_DEST)];
