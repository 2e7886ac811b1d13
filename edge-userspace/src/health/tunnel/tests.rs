use proptest::prelude::*;

use super::*;

const SECOND: u64 = 1_000_000_000;
/// Of which each byte can be told in an outer header.
const HASH: u64 = 0x1234_5678_9abc_def0;
/// `ENETUNREACH`.
const UNREACHABLE: i32 = 101;

fn ends(protocol: Protocol, source: &str, dest: &str) -> Ends {
    Ends {
        protocol,
        source: source.parse().unwrap(),
        dest: dest.parse().unwrap(),
    }
}

fn outer(gue: bool, source: &str, dest: &str) -> Outer {
    Outer {
        gue,
        source: source.parse().unwrap(),
        spread: 0,
        dest: dest.parse().unwrap(),
    }
}

/// A SYN from 192.0.2.1:50000 to 203.0.113.10:443, DSCP 46 and ECN 1, by hand.
fn syn_v4() -> Vec<u8> {
    let mut packet = vec![
        0x45, 0xb9, 0, 40, 0, 0, 0x40, 0, 64, 6, 0, 0, 192, 0, 2, 1, 203, 0, 113, 10,
    ];
    packet.extend([
        0xc3, 0x50, 1, 0xbb, 0, 0, 0, 1, 0, 0, 0, 0, 0x50, 2, 0xff, 0xff,
    ]);
    packet.extend([0; 4]);
    packet
}

/// A datagram of four bytes from 2001:db8::1 port 50000 to 2001:db8::10 port 53, of traffic class
/// 0xb9 and a flow label.
fn datagram_v6() -> Vec<u8> {
    let mut packet = vec![0x6b, 0x9a, 0xbc, 0xde, 0, 12, 17, 64];
    for last in [1, 0x10] {
        packet.extend([0x20, 1, 0x0d, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, last]);
    }
    packet.extend([0xc3, 0x50, 0, 53, 0, 12, 0, 0, 1, 2, 3, 4]);
    packet
}

/// RFC 1071, word by word and with a division: nothing of it is the code's own.
fn remainder(header: &[u8]) -> u32 {
    let words = header.chunks(2);
    let words = words.map(|w| u32::from(w[0]) * 256 + u32::from(w[1]));
    words.sum::<u32>() % 0xffff
}

fn around(inner: &[u8], outer: &Outer) -> Vec<u8> {
    let mut out = vec![0xaa; 7];
    encapsulate(inner, outer, HASH, &mut out).unwrap();
    out
}

#[test]
fn outer_headers_are_those_of_the_packet_path() {
    let (v4, v6) = (syn_v4(), datagram_v6());
    // IPIP: 60 bytes, DSCP and ECN of the packet, not to be fragmented, protocol 4.
    let ipip = around(&v4, &outer(false, "192.0.2.1", "10.0.0.11"));
    let header = [
        0x45, 0xb9, 0, 60, 0, 0, 0x40, 0, 64, 4, 0x6d, 0xf9, 192, 0, 2, 1, 10, 0, 0, 11,
    ];
    assert_eq!((&ipip[..20], &ipip[20..]), (&header[..], &v4[..]));
    assert_eq!(remainder(&ipip[..20]), 0);
    // 6in4, and its source by the hash in the bits that it may differ in.
    let spread = Outer {
        spread: u32::from_ne_bytes([0, 0, 0, 15]),
        ..outer(false, "192.0.2.16", "10.0.0.11")
    };
    let six = around(&v6, &spread);
    let word = ((HASH >> 24) as u32).to_ne_bytes();
    assert_eq!(six[9], 41);
    assert_eq!(six[12..16], [192, 0, 2, 16 | word[3] & 15]);
    assert_eq!((six[3], remainder(&six[..20])), (20 + 52, 0));
    assert_eq!(six[20..], v6);
    // 4in6, with a flow label of the highest bits of the hash.
    let four = around(&v4, &outer(false, "2001:db8::1", "2001:db8::11"));
    assert_eq!(four[..8], [0x6b, 0x91, 0x23, 0x45, 0, 40, 4, 64]);
    assert_eq!(four[8..10], [0x20, 1]);
    assert_eq!((four[23], four[39], &four[40..]), (1, 0x11, &v4[..]));
    // GUE over both: from the dynamic range, to port 6080, no checksum, nothing in between.
    let gue = around(&v4, &outer(true, "192.0.2.1", "10.0.0.11"));
    assert_eq!((gue[3], gue[9], remainder(&gue[..20])), (68, 17, 0));
    let port = (0xc000 | 0x1234_u16).to_be_bytes();
    assert_eq!(gue[20..28], [port[0], port[1], 0x17, 0xc0, 0, 48, 0, 0]);
    assert_eq!(gue[28..], v4);
    let gue = around(&v6, &outer(true, "2001:db8::1", "2001:db8::11"));
    assert_eq!(gue[..8], [0x6b, 0x91, 0x23, 0x45, 0, 60, 17, 64]);
    assert_eq!(gue[40..48], [port[0], port[1], 0x17, 0xc0, 0, 60, 0, 0]);
    assert_eq!(gue[48..], v6);
}

#[test]
fn what_no_header_can_say_is_not_sent() {
    let mut out = Vec::new();
    let families = outer(false, "192.0.2.1", "2001:db8::11");
    assert_eq!(encapsulate(&syn_v4(), &families, HASH, &mut out), None);
    for (dest, fits) in [("10.0.0.11", 65_515), ("2001:db8::11", 65_535)] {
        let source = if fits == 65_535 {
            "2001:db8::1"
        } else {
            "192.0.2.1"
        };
        let outer = outer(false, source, dest);
        let mut long = vec![0x45; fits];
        assert_eq!(encapsulate(&long, &outer, HASH, &mut out), Some(()));
        long.push(0);
        assert_eq!(encapsulate(&long, &outer, HASH, &mut out), None);
    }
}

/// Passages with one socket of each packet above.
fn two() -> (Passages, [Arc<Carried>; 2]) {
    let passages = Passages::default();
    let v4 = ends(Protocol::Tcp, "192.0.2.1:50000", "203.0.113.10:443");
    let v6 = ends(Protocol::Udp, "[2001:db8::1]:50000", "[2001:db8::10]:53");
    let (_, a) = passages.enter(v4, outer(false, "192.0.2.1", "10.0.0.11"), 0);
    let (_, b) = passages.enter(v6, outer(true, "192.0.2.1", "10.0.0.12"), 0);
    (passages, [a, b])
}

#[test]
fn packets_go_to_the_backend_of_their_socket() {
    let (passages, [a, b]) = two();
    let mut out = Vec::new();
    let mut padded = syn_v4();
    padded.extend([0; 9]);
    let sending = passages.carry(&padded, |_| HASH, &mut out).unwrap();
    assert_eq!(sending.to, IpAddr::from([10, 0, 0, 11]));
    assert_eq!((a.packets(), b.packets()), (1, 0));
    assert_eq!(out[20..], syn_v4());
    sending.carried.failed(UNREACHABLE);
    assert_eq!((a.error(), b.error()), (Some(UNREACHABLE), None));
    let sending = passages.carry(&datagram_v6(), |_| HASH, &mut out).unwrap();
    assert_eq!(sending.to, IpAddr::from([10, 0, 0, 12]));
    assert_eq!((a.packets(), b.packets(), passages.strays()), (1, 1, 0));
    // Of another port, to another one, to another address, of another protocol, of nobody.
    for (at, value) in [(21, 0), (23, 0), (19, 11), (9, 17), (0, 0x55), (15, 2)] {
        let mut other = syn_v4();
        other[at] = value;
        assert!(passages.carry(&other, |_| HASH, &mut out).is_none(), "{at}");
    }
    // A fragment: sockets of checks send none.
    let mut part = syn_v4();
    part[6] = 0x20;
    part.extend([0; 4]);
    part[3] = 44;
    assert!(passages.carry(&part, |_| HASH, &mut out).is_none());
    assert_eq!((a.packets(), b.packets(), passages.strays()), (1, 1, 7));
}

#[test]
fn the_last_packets_of_a_closed_socket_go_out_and_its_port_is_free() {
    let passages = Passages::default();
    let own = ends(Protocol::Tcp, "192.0.2.1:50000", "203.0.113.10:443");
    let [first, second] = ["10.0.0.11", "10.0.0.12"].map(|to| outer(false, "192.0.2.1", to));
    let mut out = Vec::new();
    let mut to = |passages: &Passages| {
        let sending = passages.carry(&syn_v4(), |_| HASH, &mut out);
        sending.map(|s| s.to.to_string())
    };
    let (serial, _) = passages.enter(own, first, 0);
    passages.leave(own, serial, SECOND);
    assert_eq!(to(&passages).as_deref(), Some("10.0.0.11"));
    // The port is another's before the first is forgotten.
    let (other, _) = passages.enter(own, second, SECOND + 1);
    let elsewhere = ends(Protocol::Tcp, "192.0.2.1:50001", "203.0.113.10:443");
    passages.enter(elsewhere, first, 10 * SECOND);
    assert_eq!(to(&passages).as_deref(), Some("10.0.0.12"));
    passages.leave(own, other, 20 * SECOND);
    passages.leave(elsewhere, 0, 21 * SECOND - 1);
    assert_eq!(to(&passages).as_deref(), Some("10.0.0.12"));
    passages.leave(elsewhere, 0, 21 * SECOND);
    assert_eq!(to(&passages), None);
}

proptest! {
    /// Whatever a packet is: it is carried whole and as it was, or not at all.
    #[test]
    fn nothing_else_comes_out(
        noise in proptest::collection::vec(any::<u8>(), 0..80),
        v6: bool,
        at in any::<prop::sample::Index>(),
        end in any::<prop::sample::Index>(),
    ) {
        let (passages, _) = two();
        let whole = if v6 { datagram_v6() } else { syn_v4() };
        let mut packet = whole.clone();
        let at = at.index(packet.len());
        for (to, byte) in packet[at..].iter_mut().zip(&noise) {
            *to = *byte;
        }
        packet.truncate(end.index(whole.len() + 1));
        let mut out = Vec::new();
        for packet in [&packet[..], &noise] {
            if passages.carry(packet, |_| HASH, &mut out).is_some() {
                let skip = if v6 { 28 } else { 20 };
                prop_assert!(packet.starts_with(&out[skip..]));
                prop_assert!(out.len() >= skip + 20);
            }
        }
    }
}
