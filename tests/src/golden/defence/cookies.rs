//! SYN cookies for every offer.

use std::net::IpAddr;

use edge_common::{
    defence::{
        ServiceCounter,
        options::{self, HAS_ECN, HAS_SACK, HAS_TIMESTAMP, HAS_WSCALE, Offer},
        reply::feature,
    },
    reason::Reason,
};

use super::super::V4;
use crate::packet::{ACK, CWR, ECE, PSH, SYN, proto};

use super::*;

/// What must be granted of an offer: flags, options.
pub(super) fn granted(offer: &Offer, dest: &str, now_ms: u32, features: u32) -> (u8, Vec<u8>) {
    let mut options = [&[2, 4][..], &mss(dest.parse().unwrap()).to_be_bytes()].concat();
    if !offer.has(HAS_TIMESTAMP) || features & feature::TIMESTAMPS == 0 {
        return (SYN | ACK, options);
    }
    let (scale, sack, ecn) = (
        offer.has(HAS_WSCALE),
        offer.has(HAS_SACK),
        offer.has(HAS_ECN),
    );
    options.extend(if sack { [4, 2] } else { [1, 1] });
    let mut own = now_ms / 64 * 64
        + if scale { u32::from(offer.wscale) } else { 15 }
        + if sack { 16 } else { 0 }
        + if ecn { 32 } else { 0 };
    if own > now_ms {
        own -= 64;
    }
    options.extend([8, 10]);
    options.extend(own.to_be_bytes());
    options.extend(offer.timestamp.to_be_bytes());
    if scale {
        options.extend([1, 3, 3, WSCALE]);
    }
    (SYN | ACK | if ecn { ECE } else { 0 }, options)
}

/// An offer of these.
pub(super) const fn offer(
    mss: u16,
    wscale: Option<u8>,
    sack: bool,
    timestamp: Option<u32>,
    ecn: bool,
) -> Offer {
    let mut offer = Offer {
        timestamp: 0,
        mss,
        wscale: 0,
        has: if sack { HAS_SACK } else { 0 } | if ecn { HAS_ECN } else { 0 },
    };
    if let Some(scale) = wscale {
        offer.wscale = scale;
        offer.has |= HAS_WSCALE;
    }
    if let Some(timestamp) = timestamp {
        offer.timestamp = timestamp;
        offer.has |= HAS_TIMESTAMP;
    }
    offer
}

/// Sends a SYN, checks the cookie that comes, and sends the end of the handshake.
pub(super) fn handshake(
    world: &mut World,
    what: &str,
    (source, dest): (&str, &str),
    tags: usize,
    syn: &Segment,
    offer: &Offer,
    features: u32,
) {
    let now_ms = (world.now / MS) as u32;
    let (flags, options) = granted(offer, dest, now_ms, features);
    let frame = tagged(syn.packet(source, dest), tags).build();
    let numbers = world.answered(what, &frame, Reason::ReplySynCookie, |seq, _| {
        let reply = Segment {
            ports: (syn.ports.1, syn.ports.0),
            window: WINDOW,
            ..to(0, flags)
        };
        let reply = reply
            .numbers(seq, syn.seq.wrapping_add(1))
            .options(&options);
        reply.reply(source, dest, tags)
    });
    let Some((cookie, _)) = numbers else {
        return world.fail(format!("{what}: no TCP header came back"));
    };
    let end = Segment {
        ports: syn.ports,
        ..to(0, ACK)
    };
    let end = end.numbers(syn.seq.wrapping_add(1), cookie.wrapping_add(1));
    // A neighbour of the cookie is none.
    let wrong = end
        .clone()
        .numbers(syn.seq.wrapping_add(1), cookie.wrapping_add(0x0100_0001));
    let frame = tagged(wrong.packet(source, dest), tags).build();
    world.ends(
        &format!("{what}, not the cookie"),
        &frame,
        Reason::CookieInvalid,
    );
    let valid = world.counted(0, ServiceCounter::CookiesValid);
    let frame = tagged(end.packet(source, dest), tags).build();
    world.ends(&format!("{what}, the cookie"), &frame, Reason::Pass);
    let more = world.counted(0, ServiceCounter::CookiesValid) == valid + 1;
    world.check(&format!("{what}: the cookie was not taken"), more);
    // More of the connection may come before the kernel has made its socket.
    let next = end.numbers(syn.seq.wrapping_add(1000), cookie.wrapping_add(1));
    let frame = tagged(next.packet(source, dest), tags).build();
    world.ends(&format!("{what}, what follows"), &frame, Reason::Pass);
    world.pass_time(3 * SECOND);
    world.ends(
        &format!("{what}, long after"),
        &frame,
        Reason::CookieInvalid,
    );
}

pub(super) fn every_offer(world: &mut World) {
    for n in 0..32u8 {
        let has = |bit: u8| n & bit != 0;
        let mss = if has(1) { 1300 } else { 0 };
        let offer = offer(
            mss,
            has(2).then_some(7),
            has(4),
            has(8).then_some(0xa1b2_c3d4),
            has(16),
        );
        let mut options = Vec::new();
        if offer.mss != 0 {
            options.extend([2, 4, 5, 0x14]);
        }
        if has(4) {
            options.extend([4, 2]);
        }
        if has(8) {
            options.extend([8, 10]);
            options.extend(offer.timestamp.to_be_bytes());
            options.extend([0; 4]);
        }
        if has(2) {
            options.extend([1, 3, 3, 7]);
        }
        let flags = SYN | if has(16) { ECE | CWR } else { 0 };
        for family in FAMILIES {
            for tags in 0..3 {
                world.pass_time(37 * MS);
                let what = format!("{offer:?}, {}, {tags} tags", family.0);
                let syn = to(LOCAL, flags)
                    .on_port(10_000 + u16::from(n))
                    .options(&options);
                handshake(world, &what, family, tags, &syn, &offer, feature::ALL);
            }
        }
    }
    // What a SYN may look like besides.
    for (what, syn) in [
        ("with PSH", to(LOCAL, SYN | PSH)),
        (
            "a sequence number that wraps",
            to(LOCAL, SYN).numbers(u32::MAX, 0),
        ),
        (
            "with a number in the acknowledgement",
            to(LOCAL, SYN).numbers(5, 77),
        ),
        ("ECE alone is no ECN", to(LOCAL, SYN | ECE)),
    ] {
        for family in FAMILIES {
            handshake(
                world,
                what,
                family,
                0,
                &syn,
                &Offer::default(),
                feature::ALL,
            );
        }
    }
    let mut with_data = to(LOCAL, SYN);
    with_data.payload = vec![7; 333];
    for family in FAMILIES {
        let offer = Offer::default();
        handshake(
            world,
            "with data",
            family,
            0,
            &with_data,
            &offer,
            feature::ALL,
        );
    }
    world.ends("to no service", &to(OTHER, SYN).v4(), Reason::Pass);
    world.ends("IPv6, to no service", &to(OTHER, SYN).v6(), Reason::Pass);
    let other = to(LOCAL, SYN).packet(V4, "203.0.113.2").build();
    world.ends("to an address of no service", &other, Reason::Pass);
}

pub(super) fn without_timestamps(world: &mut World) {
    let offered = [
        2, 4, 5, 0xb4, 4, 2, 8, 10, 0, 0, 0, 7, 0, 0, 0, 0, 1, 3, 3, 7,
    ];
    let syn = to(LOCAL, SYN | ECE | CWR).options(&offered);
    let mut offer = options::parse(&offered);
    offer.has |= HAS_ECN;
    for family in FAMILIES {
        handshake(world, "the host has none", family, 0, &syn, &offer, 0);
    }
}

/// Options that something is wrong with, and what is left of them.
pub(super) const MALFORMED: [(&str, &[u8], Offer); 18] = {
    const NONE: Offer = offer(0, None, false, None, false);
    const MSS: Offer = offer(1300, None, false, None, false);
    const SACK: Offer = offer(0, None, true, None, false);
    const LARGE: Offer = offer(0xffff, None, false, None, false);
    [
        ("a length of 0", &[2, 4, 5, 0x14, 8, 0, 1, 1], MSS),
        ("a length of 1", &[2, 4, 5, 0x14, 8, 1, 1, 1], MSS),
        ("an MSS of length 0", &[2, 0, 5, 0x14], NONE),
        ("an MSS of length 3", &[2, 3, 5, 4, 2, 0, 0, 0], SACK),
        ("an MSS of length 5", &[2, 5, 5, 0x14, 1, 4, 2, 0], SACK),
        ("an MSS of 0", &[2, 4, 0, 0], NONE),
        ("an MSS of 65,535", &[2, 4, 0xff, 0xff], LARGE),
        (
            "timestamps beyond the end",
            &[2, 4, 5, 0x14, 8, 10, 0, 0],
            MSS,
        ),
        (
            "timestamps of length 9",
            &[8, 9, 0, 0, 0, 1, 0, 0, 0, 4, 2, 0],
            NONE,
        ),
        (
            "timestamps of length 12",
            &[8, 12, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 4, 2, 0, 0],
            SACK,
        ),
        ("a length of 255", &[254, 255, 0, 0], NONE),
        ("a kind at the very end", &[2, 4, 5, 0x14, 1, 1, 1, 3], MSS),
        ("an end, then more", &[2, 4, 5, 0x14, 0, 4, 2, 0], MSS),
        ("nothing but ends", &[0; 40], NONE),
        ("nothing but no-operations", &[1; 40], NONE),
        (
            "unknown kinds",
            &[200, 2, 201, 3, 0, 202, 2, 4, 2, 0, 0, 0],
            SACK,
        ),
        ("a window scale of length 2", &[3, 2, 4, 2], SACK),
        ("SACK permitted of length 3", &[4, 3, 0, 1], NONE),
    ]
};

pub(super) fn malformed_options(world: &mut World) {
    for (what, bytes, offer) in MALFORMED {
        for family in FAMILIES {
            let syn = to(LOCAL, SYN).options(bytes);
            handshake(world, what, family, 0, &syn, &offer, feature::ALL);
        }
    }
    // The largest scale that counts is 14, and it goes into the cookie, not into the reply.
    let bytes = [8, 10, 0, 0, 0, 1, 0, 0, 0, 0, 3, 3, 99, 1];
    let offer = offer(0, Some(14), false, Some(1), false);
    let syn = to(LOCAL, SYN).options(&bytes);
    for family in FAMILIES {
        handshake(
            world,
            "a scale of 99",
            family,
            0,
            &syn,
            &offer,
            feature::ALL,
        );
    }
}

pub(super) fn checksums(world: &mut World) {
    let linux = [
        2, 4, 5, 0xb4, 4, 2, 8, 10, 0, 0, 0, 7, 0, 0, 0, 0, 1, 3, 3, 7,
    ];
    let some = [2, 4, 5, 0xb4, 1, 1, 4, 2];
    for options in [&linux[..], &some, &[]] {
        for (source, dest) in FAMILIES {
            let syn = to(LOCAL, SYN).options(options);
            let good = syn.packet(source, dest).build();
            let at = good.len() - options.len() - 4;
            let what = format!("{} bytes of options from {source}", options.len());
            world.ends(&what, &good, Reason::ReplySynCookie);
            for (byte, bit) in [(at, 1), (at + 1, 0x80), (at - 12, 4), (good.len() - 1, 2)] {
                let mut bad = good.clone();
                bad[byte] ^= bit;
                let what = format!("{what}, byte {byte} wrong");
                world.ends(&what, &bad, Reason::SynBadChecksum);
            }
            // What a sender leaves to its card: the sum of the pseudo header.
            let mut partial = good.clone();
            partial[at..at + 2].fill(0);
            let tcp = partial.split_off(partial.len() - options.len() - 20);
            let sum = pseudo_sum(source, dest, tcp.len());
            let mut tcp = tcp;
            tcp[16..18].copy_from_slice(&sum.to_be_bytes());
            partial.extend(tcp);
            let what = format!("{what}, partial");
            world.ends(&what, &partial, Reason::ReplySynCookie);
        }
    }
}

/// The sum of the pseudo header, not complemented.
pub(super) fn pseudo_sum(source: &str, dest: &str, len: usize) -> u16 {
    let mut bytes = Vec::new();
    for address in [source, dest] {
        match address.parse().unwrap() {
            IpAddr::V4(a) => bytes.extend(a.octets()),
            IpAddr::V6(a) => bytes.extend(a.octets()),
        }
    }
    bytes.extend([0, proto::TCP]);
    bytes.extend(u16::try_from(len).unwrap().to_be_bytes());
    let sum: u32 = bytes
        .chunks(2)
        .map(|pair| u32::from(pair[0]) << 8 | u32::from(pair[1]))
        .sum();
    let sum = (sum & 0xffff) + (sum >> 16);
    ((sum & 0xffff) + (sum >> 16)) as u16
}
