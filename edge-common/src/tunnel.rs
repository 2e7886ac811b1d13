//! Tunnels, as both ends must agree on them: protocol numbers, outer headers, and
//! the rules for the ECN field.
//!
//! A packet travels inside IPv4 (RFC 2003, RFC 4213) or IPv6 (RFC 2473), straight
//! behind the IP header, or behind a UDP header as well: that is variant 1 of GUE
//! (draft-ietf-intarea-gue-09, 4), which has no header of its own. The first four
//! bits of what it carries are the inner packet's version.
//!
//! Headers are words as they are read from memory, in the byte order of the wire,
//! and so are addresses. All other numbers are in the byte order of the host.

use crate::{
    addr::Family,
    header::Sum,
    parse::{V4, V6},
};
use network_types::ip::IpProto;

/// Protocol number of an IPv4 packet inside another packet.
pub const PROTO_IPV4: u8 = IpProto::Ipv4 as u8;
/// Protocol number of an IPv6 packet inside another packet.
pub const PROTO_IPV6: u8 = IpProto::Ipv6 as u8;

/// The UDP port of GUE (IANA: `gue`).
pub const GUE_PORT: u16 = 6080;

/// TTL or hop limit of outer headers.
pub const HOPS: u8 = 64;

/// The flow label of an outer IPv6 header, by the hash of the flow inside (RFC 6438).
#[inline(always)]
pub const fn flow_label(hash: u64) -> u32 {
    (hash >> 44) as u32
}

/// Which of several outer IPv4 sources a flow has, by its hash: IPv4 has no label. `hosts`
/// are the bits in which they differ, as in the address; so is what comes back.
#[inline(always)]
pub const fn spread(hash: u64, hosts: u64) -> u32 {
    (hash >> 24 & hosts) as u32
}

/// The source port of GUE: of the dynamic range (RFC 6335, 6), by the hash of the flow.
#[inline(always)]
pub const fn gue_source_port(hash: u64) -> u16 {
    0xc000 | (hash >> 48) as u16 & 0x3fff
}

/// An IPv4 header without options, checksum included.
///
/// Not to be fragmented: whoever takes packets out of tunnels has no memory to put
/// fragments together in, and without fragments the identification may be 0 (RFC
/// 6864, 4.1). `total_len` is in bytes, this header included; `dscp_ecn` is the
/// second byte of the header (RFC 2474, RFC 3168).
#[inline(always)]
pub const fn ipv4_outer(
    source: V4,
    dest: V4,
    proto: u8,
    total_len: u16,
    ttl: u8,
    dscp_ecn: u8,
) -> [u32; 5] {
    let head = (0x4500_0000 | (dscp_ecn as u32) << 16 | total_len as u32).to_be();
    let flags = 0x0000_4000u32.to_be();
    let hops = u32::from_ne_bytes([ttl, proto, 0, 0]);
    let sum = Sum::new()
        .word(head)
        .word(flags)
        .word(hops)
        .word(source)
        .word(dest);
    let [a, b] = sum.checksum().to_ne_bytes();
    let hops = u32::from_ne_bytes([ttl, proto, a, b]);
    [head, flags, hops, source, dest]
}

/// An IPv6 header.
///
/// `payload_len` is in bytes, without this header; `dscp_ecn` is the traffic class
/// (RFC 2474, RFC 3168). Of `flow_label` the lowest 20 bits count (RFC 6437); routers
/// spread tunnels by it (RFC 6438).
#[inline(always)]
pub const fn ipv6_outer(
    source: V6,
    dest: V6,
    proto: u8,
    payload_len: u16,
    hop_limit: u8,
    dscp_ecn: u8,
    flow_label: u32,
) -> [u64; 5] {
    let first = 6 << 28 | (dscp_ecn as u32) << 20 | flow_label & 0x000f_ffff;
    let second = (payload_len as u32) << 16 | (proto as u32) << 8 | hop_limit as u32;
    let head = (first as u64) << 32 | second as u64;
    [head.to_be(), source[0], source[1], dest[0], dest[1]]
}

/// A UDP header without a checksum, which tunnels may leave out in IPv6 as well (RFC
/// 6935, RFC 6936): the packets inside have checksums of their own.
///
/// `len` is in bytes, this header included.
#[inline(always)]
pub const fn udp(source_port: u16, dest_port: u16, len: u16) -> [u32; 2] {
    [
        ((source_port as u32) << 16 | dest_port as u32).to_be(),
        ((len as u32) << 16).to_be(),
    ]
}

/// Values of the ECN field (RFC 3168, 5).
pub mod ecn {
    /// Not ECN-capable.
    pub const NOT_ECT: u8 = 0;
    /// ECN-capable, the second code point for it.
    pub const ECT1: u8 = 1;
    /// ECN-capable.
    pub const ECT0: u8 = 2;
    /// Congestion was experienced.
    pub const CE: u8 = 3;

    /// The field of a packet that comes out of a tunnel, from its own and from that of
    /// the outer header (RFC 6040, 4.2). `None` is to drop the packet: it met
    /// congestion, and has no other way to tell.
    #[inline(always)]
    pub const fn taken_out(inner: u8, outer: u8) -> Option<u8> {
        match (inner & 3, outer & 3) {
            (NOT_ECT, CE) => None,
            (ECT0 | ECT1, CE) => Some(CE),
            (ECT0, ECT1) => Some(ECT1),
            (inner, _) => Some(inner),
        }
    }

    use super::Family;

    /// The field, from the first two bytes of an IP header as read from memory.
    #[inline(always)]
    pub const fn of(head: u16, family: Family) -> u8 {
        (u16::from_be(head) >> shift(family)) as u8 & 3
    }

    /// These two bytes with another value in the field.
    #[inline(always)]
    pub const fn set(head: u16, family: Family, ecn: u8) -> u16 {
        let (mask, field) = (3u16 << shift(family), (ecn as u16 & 3) << shift(family));
        head & !mask.to_be() | field.to_be()
    }

    /// Where it is: in IPv6 the first four bits of the flow label stand behind it.
    const fn shift(family: Family) -> u32 {
        match family {
            Family::V4 => 0,
            Family::V6 => 4,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::{vec, vec::Vec};

    /// The bytes of words as they lie in memory.
    fn bytes4<const N: usize>(words: [u32; N]) -> Vec<u8> {
        words.iter().flat_map(|w| w.to_ne_bytes()).collect()
    }

    fn bytes8<const N: usize>(words: [u64; N]) -> Vec<u8> {
        words.iter().flat_map(|w| w.to_ne_bytes()).collect()
    }

    /// RFC 1071 by the book: byte pairs, and a carry at a time.
    fn slow_sum(header: &[u8]) -> u16 {
        let mut sum = 0u16;
        for pair in header.chunks(2) {
            let word = u16::from(pair[0]) * 256 + u16::from(pair[1]);
            let (next, carry) = sum.overflowing_add(word);
            sum = next + u16::from(carry);
        }
        sum
    }

    #[test]
    fn headers_are_laid_out_as_the_rfcs_have_them() {
        let (a, b) = ([192, 0, 2, 1], [203, 0, 113, 9]);
        let header = ipv4_outer(
            u32::from_ne_bytes(a),
            u32::from_ne_bytes(b),
            PROTO_IPV6,
            1500,
            64,
            0xb9,
        );
        assert_eq!(
            bytes4(header),
            [
                0x45, 0xb9, 0x05, 0xdc, 0, 0, 0x40, 0, 64, 41, 0x36, 0x35, 192, 0, 2, 1, 203, 0,
                113, 9
            ]
        );
        let address = |last: u8| {
            let mut address = vec![0x20, 1, 0x0d, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
            address.push(last);
            address
        };
        let words = |a: &[u8]| {
            let (words, _) = a.as_chunks::<8>();
            [words[0], words[1]].map(u64::from_ne_bytes)
        };
        let header = ipv6_outer(
            words(&address(1)),
            words(&address(9)),
            PROTO_IPV4,
            1460,
            63,
            0xb9,
            0xfff_abcde,
        );
        let mut expected = vec![0x6b, 0x9a, 0xbc, 0xde, 0x05, 0xb4, 4, 63];
        expected.extend(address(1));
        expected.extend(address(9));
        assert_eq!(bytes8(header), expected);
        let header = udp(0xc123, GUE_PORT, 68);
        assert_eq!(
            bytes4(header),
            [0xc1, 0x23, 0x17, 0xc0, 0, 68, 0, 0],
            "without a checksum"
        );
    }

    #[test]
    fn a_header_can_be_made_at_compile_time() {
        const HEADER: [u32; 5] = ipv4_outer(1, 2, PROTO_IPV4, 40, 64, 0);
        assert_eq!(slow_sum(&bytes4(HEADER)), 0xffff);
        const V6: [u64; 5] = ipv6_outer([1, 2], [3, 4], PROTO_IPV6, 40, 64, 0, 0);
        assert_eq!(V6[1..], [1, 2, 3, 4]);
    }

    #[test]
    fn the_table_of_rfc_6040() {
        use ecn::{CE, ECT0, ECT1, NOT_ECT};
        // Rows are the inner field, columns the outer one, in the order of figure 4.
        let outer = [NOT_ECT, ECT0, ECT1, CE];
        let table = [
            (NOT_ECT, [Some(NOT_ECT), Some(NOT_ECT), Some(NOT_ECT), None]),
            (ECT0, [Some(ECT0), Some(ECT0), Some(ECT1), Some(CE)]),
            (ECT1, [Some(ECT1), Some(ECT1), Some(ECT1), Some(CE)]),
            (CE, [Some(CE), Some(CE), Some(CE), Some(CE)]),
        ];
        for (inner, row) in table {
            for (outer, out) in outer.into_iter().zip(row) {
                assert_eq!(ecn::taken_out(inner, outer), out, "{inner} in {outer}");
                // Whatever stands in the rest of the byte.
                assert_eq!(ecn::taken_out(inner | 0xfc, outer | 0xfc), out);
            }
        }
    }

    proptest! {
        #[test]
        fn the_checksum_holds(
            source: u32, dest: u32, proto: u8, len: u16, ttl: u8, tos: u8,
        ) {
            let header = bytes4(ipv4_outer(source, dest, proto, len, ttl, tos));
            prop_assert_eq!(slow_sum(&header), 0xffff);
            prop_assert_eq!(&header[..2], &[0x45, tos]);
            prop_assert_eq!(&header[2..4], &len.to_be_bytes());
            prop_assert_eq!(&header[8..10], &[ttl, proto]);
            prop_assert_eq!(&header[12..16], &source.to_ne_bytes());
            prop_assert_eq!(&header[16..], &dest.to_ne_bytes());
        }

        #[test]
        fn a_changed_checksum_is_that_of_the_changed_header(
            source: u32, dest: u32, len: u16, ttl: u8, tos: u8, field in 0u8..4,
        ) {
            let mut header = bytes4(ipv4_outer(source, dest, PROTO_IPV4, len, ttl, tos));
            let half = |header: &[u8], at: usize| u16::from_ne_bytes([header[at], header[at + 1]]);
            let before = half(&header, 0);
            prop_assert_eq!(ecn::of(before, Family::V4), tos & 3);
            let after = ecn::set(before, Family::V4, field);
            let sum = crate::header::replaced(half(&header, 10), before, after);
            header[..2].copy_from_slice(&after.to_ne_bytes());
            header[10..12].copy_from_slice(&sum.to_ne_bytes());
            prop_assert_eq!(header[1], tos & 0xfc | field);
            prop_assert_eq!(slow_sum(&header), 0xffff);
        }

        #[test]
        fn in_ipv6_the_field_lies_before_the_flow_label(
            class: u8, label in 0u32..1 << 20, field in 0u8..4,
        ) {
            let header = bytes8(ipv6_outer([0; 2], [0; 2], PROTO_IPV4, 0, 0, class, label));
            let before = u16::from_ne_bytes([header[0], header[1]]);
            prop_assert_eq!(ecn::of(before, Family::V6), class & 3);
            let after = ecn::set(before, Family::V6, field).to_ne_bytes();
            let changed = bytes8(ipv6_outer([0; 2], [0; 2], PROTO_IPV4, 0, 0, class & 0xfc | field, label));
            prop_assert_eq!(&after, &changed[..2]);
        }

        #[test]
        fn ports_and_length_of_udp(source: u16, dest: u16, len: u16) {
            let header = bytes4(udp(source, dest, len));
            prop_assert_eq!(&header[..2], &source.to_be_bytes());
            prop_assert_eq!(&header[2..4], &dest.to_be_bytes());
            prop_assert_eq!(&header[4..], &[len.to_be_bytes(), [0; 2]].concat());
        }
    }
}
