//! Every way to a backend, and what stands in it.

use std::collections::BTreeSet;

use edge_common::{
    balance::{BackendWord, Balance, Forward, HashBy},
    reason::Reason,
};

use super::{
    super::{V4, V4_DEST, V6, V6_DEST},
    expected::{Way, after_a_hop, forwarded, linked, network},
    world::*,
    *,
};
use crate::packet::{ACK, Edit as _, Ip, SYN, checksum, ip, proto};

const WAYS: [(Way, Forward); 3] = [
    (Way::Ipip, Forward::Ipip),
    (Way::Gue, Forward::Gue),
    (Way::L2, Forward::L2),
];
const FAMILIES: [(&str, &str); 2] = [(V4, V4_DEST), (V6, V6_DEST)];
const BACKENDS: [&str; 2] = ["10.0.0.11", "2001:db8:b::11"];
/// Bits of the last byte of the outer source that flows are spread over.
const SPREAD: u8 = 0x0e;
/// The port that the builder's TCP segments go to, and UDP packets.
const TCP: u16 = 443;
const UDP: u16 = 53;

fn through(forward: Forward) -> Balance {
    Balance {
        forward,
        ..Balance::default()
    }
}

/// One service for everything at both addresses.
fn enter(world: &mut World) {
    for (_, dest) in FAMILIES {
        world.enter(dest, proto::TCP, TCP, 0);
        world.enter(dest, proto::UDP, UDP, 0);
    }
}

pub(super) fn every_way(world: &mut World) {
    enter(world);
    for (way, forward) in WAYS {
        world.balance(0, through(forward), &[3]);
        for address in BACKENDS {
            for (vlan, out, action) in [(0, HERE, TX), (0, ELSEWHERE, REDIRECT), (7, HERE, TX)] {
                world.backend(3, address, out, BackendWord { vlan, ..UP });
                for (source, dest) in FAMILIES {
                    for tags in 0..3 {
                        let tagged = |p: Ip| (0..tags).fold(p, |p, tag| p.vlan(100 + tag));
                        for (what, packet) in [
                            ("ack", ip(source, dest).tcp_with(ACK, 12, 100)),
                            ("syn", ip(source, dest).tcp(SYN)),
                            ("udp", ip(source, dest).udp(33)),
                            ("padded", ip(source, dest).udp(1).pad(17)),
                            ("largest", ip(source, dest).udp(1400)),
                        ] {
                            let frame = tagged(packet).build();
                            let what = format!(
                                "{what} from {source}, {tags} tags, {way:?} to {address}, \
                                 VLAN {vlan}, out of {out}"
                            );
                            let seen = world.send(&frame).run.output;
                            let bytes = forwarded(&frame, way, address, vlan, &seen);
                            world.becomes(&what, &frame, (Reason::Forwarded, action), &bytes);
                        }
                    }
                }
            }
        }
    }
    // Outer sources of a prefix are spread over flows, each of which keeps its own.
    world.balance(0, through(Forward::Ipip), &[3]);
    world.spread_backend(3, BACKENDS[0], SPREAD);
    let mut sources = BTreeSet::new();
    for port in 0..64u16 {
        let frame = ip(V4, V4_DEST).udp(33).build();
        let [a, b] = (40_000 + port).to_be_bytes();
        let frame = frame.with(34, &[a, b]);
        let seen = world.send(&frame).run.output;
        let source = seen[29] & SPREAD;
        let mut bytes = forwarded(&frame, Way::Ipip, BACKENDS[0], 0, &seen);
        bytes[29] |= source;
        bytes[24..26].fill(0);
        let sum = checksum(&[&bytes[14..34]]);
        bytes[24..26].copy_from_slice(&sum);
        world.becomes("a source of many", &frame, (Reason::Forwarded, TX), &bytes);
        sources.insert(source);
    }
    world.check("flows have all sources", sources.len() == 8);
    // DSCP and ECN go along, IPv4 options and extension headers as they are.
    world.balance(0, through(Forward::Ipip), &[3]);
    for address in BACKENDS {
        world.backend(3, address, HERE, UP);
        let options = ip(V4, V4_DEST).options(8).udp(5).build();
        let marked = {
            let mut frame = ip(V4, V4_DEST).udp(5).build();
            frame[15] = 0xb9;
            frame[24..26].fill(0);
            let sum = checksum(&[&frame[14..34]]);
            frame[24..26].copy_from_slice(&sum);
            frame
        };
        let marked6 = ip(V6, V6_DEST)
            .udp(5)
            .build()
            .with(14, &[0x6b, 0x9a, 0xbc, 0xde]);
        let extended = ip(V6, V6_DEST)
            .extension(crate::packet::Extension::DestOpts(16))
            .udp(5)
            .build();
        for (what, frame) in [
            ("options", options),
            ("a class", marked),
            ("a class, v6", marked6),
            ("extensions", extended),
        ] {
            let seen = world.send(&frame).run.output;
            let bytes = forwarded(&frame, Way::Ipip, address, 0, &seen);
            world.becomes(what, &frame, (Reason::Forwarded, TX), &bytes);
        }
    }
    // What is of no service goes to the kernel.
    for (source, dest) in FAMILIES {
        let other = ip(source, dest)
            .udp(5)
            .build()
            .with(if source == V4 { 36 } else { 56 }, &[9, 9]);
        world.becomes("another port", &other, (Reason::Pass, PASS), &other);
        let nobody = ip(source, source).udp(5).build();
        world.becomes("another address", &nobody, (Reason::Pass, PASS), &nobody);
    }
}

pub(super) fn no_way(world: &mut World) {
    enter(world);
    for (source, dest) in FAMILIES {
        let frame = ip(source, dest).udp(5).build();
        // Without a word it is no balanced service.
        world.tables.set_balance(0, Balance::default());
        world.becomes("not balanced", &frame, (Reason::Pass, PASS), &frame);
        let none = Balance {
            is_on: true,
            ..through(Forward::Ipip)
        };
        world.tables.set_balance(0, none);
        world.becomes("no ring", &frame, (Reason::BackendNone, DROP), &frame);
        world.balance(0, through(Forward::Ipip), &[3]);
        world.backend(3, BACKENDS[0], HERE, BackendWord { alive: false, ..UP });
        world.becomes("dead", &frame, (Reason::BackendNone, DROP), &frame);
        world.backend(3, BACKENDS[0], 0, UP);
        world.becomes("no hop", &frame, (Reason::BackendNoHop, DROP), &frame);
        world.backend(3, BACKENDS[0], HERE, UP);
        for ttl in [0, 1] {
            let mut old = frame.clone();
            if source == V4 {
                old[22] = ttl;
                old[24..26].fill(0);
                let sum = checksum(&[&old[14..34]]);
                old[24..26].copy_from_slice(&sum);
            } else {
                old[21] = ttl;
            }
            world.becomes("TTL", &old, (Reason::ForwardTtl, DROP), &old);
        }
    }
}

/// The answer to a frame that does not fit: what there is of it, and the size that does.
fn too_big_answer(frame: &[u8], most: u16) -> Vec<u8> {
    let (kind, packet) = network(frame);
    let link = frame.len() - packet.len();
    let quoted = &packet[..64];
    let mut bytes = [&frame[6..12], &frame[..6], &frame[12..link]].concat();
    let mut message = vec![3, 4, 0, 0, 0, 0];
    message.extend(most.to_be_bytes());
    if kind == 0x0800 {
        message.extend(quoted);
        let sum = checksum(&[&message]);
        message[2..4].copy_from_slice(&sum);
        let mut ip = vec![0x45, 0, 0, 20 + 72, 0, 0, 0x40, 0, 61, 1, 0, 0];
        ip.extend(&packet[16..20]);
        ip.extend(&packet[12..16]);
        let sum = checksum(&[&ip]);
        ip[10..12].copy_from_slice(&sum);
        bytes.extend(ip);
    } else {
        message[..2].copy_from_slice(&[2, 0]);
        message.extend(quoted);
        let (from, to) = (&packet[24..40], &packet[8..24]);
        let sum = checksum(&[from, to, &[0, 0, 0, 72, 0, 0, 0, 58], &message]);
        message[2..4].copy_from_slice(&sum);
        bytes.extend([0x60, 0, 0, 0, 0, 72, 58, 61]);
        bytes.extend([from, to].concat());
    }
    bytes.extend(message);
    bytes
}

pub(super) fn too_big(world: &mut World) {
    enter(world);
    for (way, forward) in WAYS {
        world.balance(0, through(forward), &[3]);
        for address in BACKENDS {
            world.backend(3, address, HERE, UP);
            let outer = match (way, address.contains(':')) {
                (Way::L2, _) => 0,
                (Way::Ipip, v6) => 20 + 20 * u16::from(v6),
                (Way::Gue, v6) => 28 + 20 * u16::from(v6),
            };
            for (source, dest) in FAMILIES {
                let header = if source == V4 { 20 } else { 40 };
                let fits = usize::from(MTU - outer - header - 8);
                for tags in 0..3 {
                    world.pass_time(SECOND);
                    let sized = |len| {
                        let packet = ip(source, dest).udp(len);
                        (0..tags).fold(packet, |p, tag| p.vlan(100 + tag)).build()
                    };
                    let (whole, one_more) = (sized(fits), sized(fits + 1));
                    let what = format!("from {source}, {tags} tags, {way:?} to {address}");
                    let seen = world.send(&whole).run.output;
                    let bytes = forwarded(&whole, way, address, 0, &seen);
                    world.becomes(&what, &whole, (Reason::Forwarded, TX), &bytes);
                    let answer = too_big_answer(&one_more, MTU - outer);
                    world.becomes(&what, &one_more, (Reason::ReplyTooBig, TX), &answer);
                }
            }
        }
    }
    // A packet that a router may fragment is answered, a fragment is not, nor is a flood.
    world.backend(3, BACKENDS[0], HERE, UP);
    world.balance(0, through(Forward::Ipip), &[3]);
    let mut fragmentable = ip(V4, V4_DEST).udp(1460).build();
    fragmentable[20] = 0;
    fragmentable[24..26].fill(0);
    let sum = checksum(&[&fragmentable[14..34]]);
    fragmentable[24..26].copy_from_slice(&sum);
    world.pass_time(SECOND);
    let answer = too_big_answer(&fragmentable, MTU - 20);
    let ends = (Reason::ReplyTooBig, TX);
    world.becomes("may be fragmented", &fragmentable, ends, &answer);
    let piece = ip(V4, V4_DEST).udp(3000).piece(0..1480).build();
    let ends = (Reason::ForwardTooBig, DROP);
    world.becomes("a fragment", &piece, ends, &piece);
    let big = ip(V4, V4_DEST).udp(1460).build();
    let answered = (0..300)
        .filter(|_| world.send(&big).run.action == TX)
        .count();
    world.check("200 answers at once", (190..=200).contains(&answered));
}

/// A SYN with these options.
fn syn(source: &str, dest: &str, options: &[u8]) -> Vec<u8> {
    let mut segment = vec![
        0x9c, 0x40, 0x01, 0xbb, 0, 0, 0, 1, 0, 0, 0, 0, 0, SYN, 0xff, 0xff, 0, 0, 0, 0,
    ];
    segment.extend(options);
    segment.resize(segment.len().next_multiple_of(4), 0);
    segment[12] = u8::try_from(segment.len() / 4 * 16).unwrap();
    ip(source, dest).payload(proto::TCP, segment).build()
}

pub(super) fn clamp(world: &mut World) {
    enter(world);
    world.balance(0, through(Forward::Ipip), &[3]);
    world.backend(3, BACKENDS[0], HERE, UP);
    for (source, dest) in FAMILIES {
        let most = MTU - 20 - 20 - if source == V4 { 20 } else { 40 };
        let [a, b] = most.to_be_bytes();
        let sizes = [
            (most + 1, [a, b]),
            (65_535, [a, b]),
            (most, [a, b]),
            (536, [2, 24]),
        ];
        for (size, becomes) in sizes {
            let [c, d] = size.to_be_bytes();
            for options in [
                |m: [u8; 2]| vec![2, 4, m[0], m[1]],
                |m: [u8; 2]| {
                    vec![
                        2, 4, m[0], m[1], 4, 2, 8, 10, 1, 2, 3, 4, 5, 6, 7, 8, 1, 3, 3, 7,
                    ]
                },
                |m: [u8; 2]| vec![1, 2, 4, m[0], m[1], 0],
                |m: [u8; 2]| vec![4, 2, 1, 3, 3, 7, 2, 4, m[0], m[1]],
                |m: [u8; 2]| vec![8, 10, 2, 4, 0xff, 0xff, 2, 4, 0xff, 0xff, 2, 4, m[0], m[1]],
            ] {
                let (frame, clamped) = (
                    syn(source, dest, &options([c, d])),
                    syn(source, dest, &options(becomes)),
                );
                let what = format!("a size of {size} among {:02x?}", options([c, d]));
                let seen = world.send(&frame).run.output;
                let bytes = forwarded(&clamped, Way::Ipip, BACKENDS[0], 0, &seen);
                world.becomes(&what, &frame, (Reason::Forwarded, TX), &bytes);
            }
        }
        for options in [
            &[][..],
            &[1, 1, 1, 1],
            &[2, 3, 9, 9],
            &[1, 1, 2, 4],
            &[254, 60, 2, 4],
        ] {
            let frame = syn(source, dest, options);
            let seen = world.send(&frame).run.output;
            let bytes = forwarded(&frame, Way::Ipip, BACKENDS[0], 0, &seen);
            let what = format!("nothing to clamp in {options:02x?}");
            world.becomes(&what, &frame, (Reason::Forwarded, TX), &bytes);
        }
        // Only what opens a connection.
        let frame = syn(source, dest, &[2, 4, 0xff, 0xff]);
        let at = if source == V4 { 47 } else { 67 };
        let mut ack = frame;
        ack[at] = ACK;
        let seen = world.send(&ack).run.output;
        let bytes = forwarded(&ack, Way::Ipip, BACKENDS[0], 0, &seen);
        world.becomes("no SYN", &ack, (Reason::Forwarded, TX), &bytes);
    }
}

pub(super) fn fragments(world: &mut World) {
    enter(world);
    world.balance(0, through(Forward::L2), &[3, 4, 5]);
    for number in 3..6 {
        world.backend(number, &format!("10.0.0.{number}"), HERE, UP);
    }
    for n in 1..60 {
        for source in [format!("198.51.100.{n}"), format!("2001:db8:1::{n}")] {
            let dest = if source.contains(':') {
                V6_DEST
            } else {
                V4_DEST
            };
            let whole = ip(&source, dest).udp(400).id(n);
            let pieces = [0..96, 96..200, 200..408].map(|r| whole.clone().piece(r).build());
            let numbers = [0, 1, 2].map(|i| world.number_of(&pieces[i]));
            world.check(
                "all pieces reach one backend",
                numbers[0] != 0 && numbers.iter().all(|n| *n == numbers[0]),
            );
            let (kind, packet) = network(&pieces[1]);
            let bytes = linked(0, kind, &after_a_hop(packet));
            world.becomes("a piece", &pieces[1], (Reason::Forwarded, TX), &bytes);
        }
    }
    // Where two services share address and protocol, nobody knows.
    world.enter("203.0.113.50", proto::TCP, TCP, 0);
    let piece = ip(V4, "203.0.113.50").udp(400).piece(96..200).build();
    world.becomes("whose", &piece, (Reason::ForwardFragment, DROP), &piece);
}

pub(super) fn no_fragments(world: &mut World) {
    enter(world);
    world.balance(0, through(Forward::L2), &[3]);
    world.backend(3, BACKENDS[0], HERE, UP);
    for (source, dest) in FAMILIES {
        for range in [0..96, 96..200] {
            let piece = ip(source, dest).udp(400).piece(range).build();
            world.becomes("a piece", &piece, (Reason::ForwardFragment, DROP), &piece);
        }
    }
}

/// By the client's address, whatever its ports.
pub(super) fn by_source(world: &mut World) {
    enter(world);
    let balance = Balance {
        by: HashBy::Source,
        ..through(Forward::L2)
    };
    world.balance(0, balance, &[3, 4, 5]);
    for number in 3..6 {
        world.backend(number, &format!("10.0.0.{number}"), HERE, UP);
    }
    let mut seen = std::collections::BTreeSet::new();
    for n in 1..100u16 {
        let source = format!("198.51.100.{n}");
        let of_port = |port: u16| {
            ip(&source, V4_DEST)
                .udp(5)
                .build()
                .with(34, &port.to_be_bytes())
        };
        let first = world.number_of(&of_port(1000));
        for port in 1001..1010 {
            let number = world.number_of(&of_port(port));
            world.check("a client has one backend", number == first && number != 0);
        }
        seen.insert(first);
    }
    world.check("all backends are used", seen.len() == 3);
}
