//! QUIC: which server a packet says that it is for.
//!
//! A server chooses the connection ids by which clients address it. When it chooses them as
//! QUIC-LB says (draft-ietf-quic-load-balancers, the plaintext algorithm), the balancer
//! finds the server in every packet, whatever address the client has by then:
//!
//! ```text
//!  first octet            server id            nonce
//! ┌───────┬────────────┬────────────────────┬──────────────────┐
//! │ 3 bits│   5 bits   │ 1 to 8 octets      │ 4 octets or more │
//! │ config│ length or  │ the backend's      │ random           │
//! │       │ random     │ `server_id`        │                  │
//! └───────┴────────────┴────────────────────┴──────────────────┘
//! ```
//!
//! Two kinds of packets carry such an id for certain, of versions 1 (RFC 9000) and 2 (RFC
//! 9369): those with a short header, and Handshake packets. The id of an Initial or 0-RTT
//! packet is one that the client has made up, until it has heard of the server, and may look
//! like a server's by chance or on purpose. It says nothing, and neither does an id of a version
//! that nobody knows: those packets go as others do, by the flow that their addresses and
//! ports belong to, or by the ring. Retry and Version Negotiation packets come from servers
//! only.
//!
//! Nothing proves an id. Who makes one up chooses which of the living backends gets a packet of
//! no connection, and where a flow begins that comes from the same address and port soon after.
//! He moves no flow that is there: see `edge-ebpf/src/balance/flows.rs`.

use core::fmt;

/// Bytes at the beginning of a packet that tell. No QUIC packet is shorter than 21: behind
/// the first byte come 4 at least before the 16 that protect the header (RFC 9001, 5.4.2).
pub const HEAD: usize = 16;
/// The longest server id, octets. The draft has 15; a word holds these.
pub const MAX_SERVER_ID: usize = 8;
/// The last codepoint of a configuration; the one behind it says that an id has no server in it.
pub const MAX_CONFIG: u8 = 6;

/// The longest connection id of versions 1 and 2.
const MAX_CONNECTION_ID: u64 = 20;
const VERSION_1: u32 = 1;
const VERSION_2: u32 = 0x6b33_43cf;

/// The id of a server: 1 to [`MAX_SERVER_ID`] octets.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ServerId {
    len: u8,
    value: u64,
}

impl ServerId {
    /// From octets; `None` when there are none, or too many.
    pub const fn new(octets: &[u8]) -> Option<Self> {
        if octets.is_empty() || octets.len() > MAX_SERVER_ID {
            return None;
        }
        let (mut value, mut rest) = (0, octets);
        while let [first, others @ ..] = rest {
            value = value << 8 | *first as u64;
            rest = others;
        }
        Some(Self {
            len: octets.len() as u8,
            value,
        })
    }

    /// From hexadecimal digits, two an octet.
    pub fn from_hex(text: &str) -> Option<Self> {
        let mut octets = [0; MAX_SERVER_ID];
        let mut digits = text.bytes().map(|digit| char::from(digit).to_digit(16));
        let octets = octets.get_mut(..text.len() / 2)?;
        for octet in octets.iter_mut() {
            *octet = (digits.next()?? << 4 | digits.next()??) as u8;
        }
        match digits.next() {
            Some(_) => None,
            None => Self::new(octets),
        }
    }

    /// How many octets it has.
    pub const fn octets(self) -> u8 {
        self.len
    }

    /// The octets as a number, the first one highest.
    pub const fn value(self) -> u64 {
        self.value
    }
}

/// Hexadecimal digits, two an octet.
impl fmt::Display for ServerId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:0width$x}", self.value, width = self.len as usize * 2)
    }
}

/// Where in the connection ids of a service the server id is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Layout {
    config: u8,
    len: u8,
}

impl Layout {
    /// With this codepoint, up to [`MAX_CONFIG`], and server ids of so many octets, 1 to
    /// [`MAX_SERVER_ID`].
    pub const fn new(config: u8, len: u8) -> Option<Self> {
        if config > MAX_CONFIG || len == 0 || len as usize > MAX_SERVER_ID {
            return None;
        }
        Some(Self { config, len })
    }

    /// As seven bits, never all 0.
    pub const fn bits(self) -> u32 {
        (self.config as u32) << 4 | self.len as u32
    }
}

/// The server id in a packet that begins with `head`, as read from the wire, when those of
/// its service have a [`Layout`] with these bits; `None` when it says nothing of a server.
#[inline(always)]
pub const fn server_id(layout: u32, head: [u64; 2]) -> Option<u64> {
    let (a, b) = (u64::from_be(head[0]), u64::from_be(head[1]));
    let len = layout as u64 & 0xf;
    // The bit behind the first one is always set, but for those who have agreed that it says
    // nothing (RFC 9287).
    let (octet, behind) = if a >> 63 == 0 {
        (a >> 48 & 0xff, a << 16 | b >> 48)
    } else {
        let handshake = match (a >> 24) as u32 {
            VERSION_1 => 2,
            VERSION_2 => 3,
            _ => return None,
        };
        let own_len = a >> 16 & 0xff;
        if a >> 60 & 3 != handshake || own_len <= len || own_len > MAX_CONNECTION_ID {
            return None;
        }
        (a >> 8 & 0xff, a << 56 | b >> 8)
    };
    if octet >> 5 != layout as u64 >> 4 {
        return None;
    }
    Some(behind >> ((64 - len * 8) & 63))
}

/// A key of `SERVER_IDS`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
#[repr(C)]
pub struct IdKey {
    /// [`ServerId::value`].
    pub id: u64,
    /// Index of the service.
    pub service: u32,
    /// [`Layout::bits`] of the service: an id of another length is another one.
    pub layout: u32,
}

const _: () = assert!(size_of::<IdKey>() == 16);

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::{collection::vec, prelude::*};
    use std::{string::ToString, vec::Vec};

    /// A connection id as the draft has it.
    fn connection_id(config: u8, id: &[u8], nonce: &[u8]) -> Vec<u8> {
        let len = (id.len() + nonce.len()) as u8;
        [&[config << 5 | len & 0x1f], id, nonce].concat()
    }

    fn long(first: u8, version: u32, id: &[u8], rest: &[u8]) -> Vec<u8> {
        let mut packet = std::vec![first];
        packet.extend(version.to_be_bytes());
        packet.push(id.len() as u8);
        packet.extend(id);
        packet.extend(rest);
        packet
    }

    fn short(first: u8, id: &[u8], rest: &[u8]) -> Vec<u8> {
        [&[first], id, rest].concat()
    }

    /// What the program would read of it.
    fn read(layout: Layout, packet: &[u8]) -> Option<u64> {
        let (a, rest) = packet.split_first_chunk()?;
        let (b, _) = rest.split_first_chunk()?;
        server_id(
            layout.bits(),
            [u64::from_ne_bytes(*a), u64::from_ne_bytes(*b)],
        )
    }

    /// The example of the documentation.
    #[test]
    fn a_short_header_byte_by_byte() {
        let packet = [
            0x43, 0x47, 0x0a, 0x1b, 0xd1, 0xd2, 0xd3, 0xd4, 0xd5, 9, 9, 9, 9, 9, 9, 9,
        ];
        let layout = |config, len| Layout::new(config, len).unwrap();
        assert_eq!(read(layout(2, 2), &packet), Some(0x0a1b));
        assert_eq!(read(layout(2, 1), &packet), Some(0x0a));
        assert_eq!(read(layout(2, 8), &packet), Some(0x0a1b_d1d2_d3d4_d509));
        assert_eq!(read(layout(0, 2), &packet), None);
        assert_eq!(read(layout(2, 2), &packet[..15]), None);
    }

    #[test]
    fn only_handshake_packets_tell_among_long_ones() {
        let id = connection_id(0, &[0x0a, 0x1b], &[1, 2, 3, 4, 5]);
        let layout = Layout::new(0, 2).unwrap();
        let told =
            |version, kind: u8| read(layout, &long(0xc0 | kind << 4, version, &id, &[0; 20]));
        for kind in 0..4 {
            let is = |handshake| (kind == handshake).then_some(0x0a1b);
            assert_eq!(told(1, kind), is(2), "version 1, {kind}");
            assert_eq!(told(0x6b33_43cf, kind), is(3), "version 2, {kind}");
            assert_eq!(told(0, kind), None);
            assert_eq!(told(0xff00_001d, kind), None);
        }
    }

    #[test]
    fn layouts_and_ids_are_within_bounds() {
        assert_eq!(Layout::new(7, 1), None);
        assert_eq!(Layout::new(0, 0), None);
        assert_eq!(Layout::new(0, 9), None);
        assert!(Layout::new(6, 8).is_some_and(|l| l.bits() < 128));
        assert_eq!(ServerId::new(&[]), None);
        assert_eq!(ServerId::new(&[1; 9]), None);
        for wrong in [
            "",
            "a",
            "0a1",
            "0g",
            "+1",
            "0x0a",
            "000102030405060708",
            "é",
        ] {
            assert_eq!(ServerId::from_hex(wrong), None, "{wrong}");
        }
        let id = ServerId::from_hex("000A1b").unwrap();
        assert_eq!((id.octets(), id.value()), (3, 0x0a1b));
        assert_eq!(id.to_string(), "000a1b");
    }

    proptest! {
        #[test]
        fn what_was_put_in_comes_out(
            config in 0u8..7, id in vec(any::<u8>(), 1..9), nonce in vec(any::<u8>(), 4..12),
            low in 0u8..16, fixed: bool, rest in vec(any::<u8>(), 16..40),
        ) {
            let layout = Layout::new(config, id.len() as u8).unwrap();
            let value = ServerId::new(&id).unwrap();
            prop_assert_eq!(ServerId::from_hex(&value.to_string()), Some(value));
            let own = connection_id(config, &id, &nonce);
            let bits = u8::from(fixed) << 6 | low;
            let told = Some(value.value());
            prop_assert_eq!(read(layout, &short(bits, &own, &rest)), told);
            prop_assert_eq!(read(layout, &long(0xa0 | bits, 1, &own, &rest)), told);
            prop_assert_eq!(read(layout, &long(0xb0 | bits, VERSION_2, &own, &rest)), told);
            // Of another configuration, and of none.
            for other in (0..8).filter(|other| *other != config) {
                let own = connection_id(other, &id, &nonce);
                prop_assert_eq!(read(layout, &short(bits, &own, &rest)), None);
                prop_assert_eq!(read(layout, &long(0xa0 | bits, 1, &own, &rest)), None);
            }
            // Too short to have one.
            for len in 0..=id.len() {
                let packet = long(0xa0 | bits, 1, &own[..len], &[own[0]; 30]);
                prop_assert_eq!(read(layout, &packet), None);
            }
        }

        #[test]
        fn any_bytes_say_something_or_nothing(head: [u64; 2], config in 0u8..7, len in 1u8..9) {
            let layout = Layout::new(config, len).unwrap();
            if let Some(id) = server_id(layout.bits(), head) {
                prop_assert!(len == 8 || id < 1 << (len * 8));
            }
        }
    }
}
