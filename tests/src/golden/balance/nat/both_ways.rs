//! Packets there and back, in every pair of families.

use edge_common::{balance::BackendWord, reason::Reason};

use super::{super::REDIRECT, *};
use crate::packet::{ACK, Edit as _, Extension, SYN};

/// What is sent both ways: its name, its protocol, and the packet.
type Shape = (&'static str, u8, fn(Ip) -> Ip);

const SHAPES: [Shape; 6] = [
    ("syn", proto::TCP, |p| p.tcp(SYN)),
    ("ack", proto::TCP, |p| p.tcp_with(ACK, 12, 100)),
    ("odd", proto::TCP, |p| p.tcp_with(ACK, 0, 33)),
    ("large", proto::TCP, |p| p.tcp_with(ACK, 12, 1380)),
    ("udp", proto::UDP, |p| p.udp(33)),
    ("padded", proto::UDP, |p| p.udp(1).pad(17)),
];

const fn service(proto: u8) -> u16 {
    if proto == proto::TCP { TCP } else { UDP }
}

pub(in super::super) fn every_way(world: &mut World) {
    for backend in BACKENDS {
        enter(world, &[backend]);
        for (vlan, out, action) in [(0, HERE, TX), (0, ELSEWHERE, REDIRECT), (7, HERE, TX)] {
            for port in [0, 8080] {
                world.backend(3, backend, out, BackendWord { vlan, port, ..UP });
                for (client, vip) in CLIENTS {
                    for tags in 0..3 {
                        for (what, proto, shape) in SHAPES {
                            let what = format!(
                                "{what} from {client}, {tags} tags, to {backend}, port {port}, \
                                 VLAN {vlan}, out of {out}"
                            );
                            let tuple = Tuple::new(client, vip, (CLIENT_PORT, service(proto)));
                            let frame = tagged(tuple.packet(shape), tags).build();
                            let link = Link::hop(vlan);
                            let left =
                                goes_by(world, &what, &frame, (backend, port), &link, action);
                            // What is larger there is as much larger here.
                            if what.starts_with("large") {
                                continue;
                            }
                            let back = left.reversed();
                            for back_tags in 0..3 {
                                let frame = tagged(back.packet(shape), back_tags).build();
                                let what = format!("back, in {back_tags} tags: {what}");
                                comes(world, &what, &frame, tuple, &Link::client(tags));
                            }
                        }
                    }
                }
            }
        }
    }
    // Frames with other kinds of tags are answered with the same.
    enter(world, &BACKENDS[..1]);
    let tuple = Tuple::new(V4, V4_DEST, (CLIENT_PORT, UDP));
    for kind in [0x88a8u16, 0x9100] {
        let tagged = tuple.packet(|p| p.udp(9)).tag(kind, 0x2005).vlan(6).build();
        let left = goes(world, "a service tag", &tagged, BACKENDS[0], &Link::hop(0));
        let answer = left.reversed().packet(|p| p.udp(9)).build();
        let bytes = translated(&answer, tuple.reversed(), &Link::client(2));
        let [a, b] = kind.to_be_bytes();
        let bytes = bytes.with(12, &[a, b, 0, 5, 0x81, 0, 0, 6]);
        world.becomes("back in it", &answer, (Reason::Forwarded, TX), &bytes);
    }
    // The client's next hop has changed: answers follow.
    let moved = tuple
        .packet(|p| p.udp(9))
        .build()
        .with(0, &[2, 0, 0, 0, 7, 7, 2, 0, 0, 0, 8, 8]);
    let left = goes(world, "moved", &moved, BACKENDS[0], &Link::hop(0));
    let link = Link {
        macs: [[2, 0, 0, 0, 8, 8], [2, 0, 0, 0, 7, 7]],
        tags: Vec::new(),
    };
    let answer = left.reversed().packet(|p| p.udp(9)).build();
    comes(world, "answered there", &answer, tuple, &link);
}

pub(in super::super) fn headers(world: &mut World) {
    for backend in BACKENDS {
        enter(world, &[backend]);
        let v4 = Tuple::new(V4, V4_DEST, (CLIENT_PORT, UDP));
        let v6 = Tuple::new(V6, V6_DEST, (CLIENT_PORT, UDP));
        let marked = v4.packet(|p| p.udp(5)).build();
        let marked = reclassed(marked, 0xb9);
        let frames = [
            (
                "IPv4 options",
                v4,
                v4.packet(|p| p.options(8).udp(5)).build(),
            ),
            ("a class", v4, marked),
            (
                "a class and flow label",
                v6,
                v6.packet(|p| p.udp(5))
                    .build()
                    .with(14, &[0x6b, 0x9a, 0xbc, 0xde]),
            ),
            (
                "extension headers",
                v6,
                v6.packet(|p| {
                    p.extension(Extension::HopByHop(8))
                        .extension(Extension::DestOpts(16))
                        .udp(5)
                })
                .build(),
            ),
        ];
        for (what, tuple, frame) in frames {
            let what = format!("{what}, to {backend}");
            // Ports stand behind the headers, where `Tuple::of` does not look.
            let seen = goes_unread(world, &frame, backend, tuple);
            let Some(left) = seen else {
                world.fail(format!("{what}: did not go"));
                continue;
            };
            let bytes = translated(&frame, left, &Link::hop(0));
            world.becomes(&what, &frame, (Reason::Forwarded, TX), &bytes);
            let answer = left.reversed().packet(|p| p.udp(7)).build();
            comes(world, &what, &answer, tuple, &Link::client(0));
        }
    }
}

/// The same, with the source that a plain packet of the flow leaves with.
fn goes_unread(world: &mut World, frame: &[u8], backend: &str, tuple: Tuple) -> Option<Tuple> {
    let out = world.send(frame);
    (out.run.action == TX).then(|| {
        let plain = tuple.packet(|p| p.udp(0)).build();
        goes(world, "a plain one", &plain, backend, &Link::hop(0))
    })
}

/// An untagged IPv4 frame with another class.
fn reclassed(mut frame: Vec<u8>, class: u8) -> Vec<u8> {
    frame[15] = class;
    frame[24..26].fill(0);
    let sum = checksum(&[&frame[14..34]]);
    frame[24..26].copy_from_slice(&sum);
    frame
}

pub(in super::super) fn no_checksum(world: &mut World) {
    let tuple = Tuple::new(V4, V4_DEST, (CLIENT_PORT, UDP));
    let without = |tuple: Tuple, len| {
        let frame = tuple.packet(|p| p.udp(len)).build();
        frame.with(40, &[0, 0])
    };
    for backend in BACKENDS {
        enter(world, &[backend]);
        for len in [0, 1, 3, 55, 56, 57, 119, 120, 121, 1000, 1452] {
            let what = format!("{len} bytes without, to {backend}");
            let left = goes(world, &what, &without(tuple, len), backend, &Link::hop(0));
            if left.dest.is_ipv4() {
                let answer = without(left.reversed(), len);
                comes(world, "back without", &answer, tuple, &Link::client(0));
            }
        }
    }
    // Filled with what adds up, too, and too long for it.
    world.backend(3, BACKENDS[1], HERE, BackendWord { mtu: 9000, ..UP });
    let full = without(tuple, 700).with(42, &[0xa5; 700]);
    goes(world, "filled", &full, BACKENDS[1], &Link::hop(0));
    drops(
        world,
        "too long",
        &without(tuple, 1600),
        Reason::NatChecksum,
    );
}

pub(in super::super) fn stopped(world: &mut World) {
    for backend in BACKENDS {
        enter(world, &[backend]);
        for (client, vip) in CLIENTS {
            let tuple = Tuple::new(client, vip, (CLIENT_PORT, UDP));
            let plain = tuple.packet(|p| p.udp(9)).build();
            let left = goes(world, "plain", &plain, backend, &Link::hop(0));
            let what = format!("{client} to {backend}");
            // Hops used up, both ways.
            for tuple in [tuple, left.reversed()] {
                let spent = with_hops(tuple.packet(|p| p.udp(9)).build(), 1);
                drops(world, &what, &spent, Reason::ForwardTtl);
                let last = with_hops(tuple.packet(|p| p.udp(9)).build(), 2);
                let went = world.send(&last).run.action == TX;
                world.check(&format!("{what}: one hop left"), went);
            }
            // Pieces, both ways; of those for an address of ours only what is known by its ports.
            let answer = left.reversed();
            let stranger = Tuple {
                ports: (answer.ports.0 + 1, answer.ports.1),
                ..answer
            };
            let piece = |tuple: Tuple, range| tuple.packet(|p| p.udp(400)).piece(range).build();
            for piece in [
                piece(tuple, 0..96),
                piece(tuple, 96..200),
                piece(answer, 0..96),
            ] {
                drops(world, &what, &piece, Reason::ForwardFragment);
            }
            for piece in [
                piece(answer, 96..200),
                piece(stranger, 0..96),
                piece(stranger, 96..200),
            ] {
                passes(world, &format!("{what}: the host's own piece"), &piece);
            }
            // As large as fits, and one byte larger, both ways.
            for (tuple, to_v6) in [
                (tuple, left.dest.is_ipv6()),
                (left.reversed(), tuple.source.is_ipv6()),
            ] {
                let header = if to_v6 { 48 } else { 28 };
                let fits = usize::from(MTU) - header;
                let (whole, more) = (
                    tuple.packet(|p| p.udp(fits)).build(),
                    tuple.packet(|p| p.udp(fits + 1)).build(),
                );
                let out = world.send(&whole);
                world.check(
                    &format!("{what}: fits, {}", out.moved),
                    out.run.action == TX,
                );
                let out = world.send(&more);
                let (_, answer) = network(&out.run.output);
                let (at, mtu) = if answer[0] >> 4 == 4 {
                    (20, 26)
                } else {
                    (40, 46)
                };
                let told = u16::from_be_bytes([answer[mtu], answer[mtu + 1]]);
                let own = if tuple.dest.is_ipv6() { 48 } else { 28 };
                let is = matches!(out.moved.ended[..], [(Reason::ReplyTooBig, 1, _)])
                    && [3, 2].contains(&answer[at])
                    && usize::from(told) == fits + own;
                world.check(&format!("{what}: {told} fit, {}", out.moved), is);
            }
        }
    }
    // Without a source address of the family, and without a backend.
    for (sources, backend) in [
        ((None, Some(SOURCES[0].1)), 0),
        ((Some(SOURCES[0].0), None), 1),
    ] {
        enter(world, &BACKENDS[backend..=backend]);
        world.sources(&[sources, sources]);
        let frame = Tuple::new(V4, V4_DEST, (50_000, UDP))
            .packet(|p| p.udp(9))
            .build();
        drops(world, "no address", &frame, Reason::NatNoPort);
    }
    enter(world, &BACKENDS);
    world.backend(3, BACKENDS[0], 0, UP);
    world.balance(0, NAT, &[3]);
    let frame = Tuple::new(V4, V4_DEST, (50_001, UDP))
        .packet(|p| p.udp(9))
        .build();
    drops(world, "no way there", &frame, Reason::BackendNoHop);
    world.balance(0, NAT, &[9]);
    let frame = Tuple::new(V4, V4_DEST, (50_002, UDP))
        .packet(|p| p.udp(9))
        .build();
    drops(world, "no backend", &frame, Reason::BackendNone);
    // Where a service has a port of a source address, and none of it.
    world.enter(SOURCES[0].0, proto::UDP, UDP, 0);
    let frame = Tuple::new(V4, SOURCES[0].0, (50_003, 9))
        .packet(|p| p.udp(9))
        .build();
    passes(world, "the host's own", &frame);
    let ping = ip(V4, SOURCES[0].0).icmp(8, 8).build();
    passes(world, "a ping", &ping);
}

/// An untagged frame with another TTL or hop limit.
fn with_hops(mut frame: Vec<u8>, hops: u8) -> Vec<u8> {
    if frame[14] >> 4 == 6 {
        frame[21] = hops;
        return frame;
    }
    frame[22] = hops;
    frame[24..26].fill(0);
    let sum = checksum(&[&frame[14..34]]);
    frame[24..26].copy_from_slice(&sum);
    frame
}

/// A segment with these flags that announces a size.
fn announcing(tuple: Tuple, flags: u8, size: u16) -> Vec<u8> {
    let [a, b] = size.to_be_bytes();
    let mut segment = vec![
        0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0x70, flags, 0xff, 0xff, 0, 0, 0, 0,
    ];
    segment.extend([1, 1, 2, 4, a, b, 1, 1]);
    tuple.packet(|p| p.payload(proto::TCP, segment)).build()
}

pub(in super::super) fn clamp(world: &mut World) {
    for (mtu, backend) in [(1500, 0), (1400, 0), (1500, 1), (9000, 1)] {
        let backend = BACKENDS[backend];
        enter(world, &[backend]);
        world.backend(3, backend, HERE, BackendWord { mtu, ..UP });
        for (client, vip) in CLIENTS {
            let is_v6 = client == V6 || backend == BACKENDS[1];
            let most = mtu.min(MTU) - if is_v6 { 60 } else { 40 };
            for (size, becomes) in [(65_535, most), (most + 1, most), (most, most), (536, 536)] {
                let tuple = Tuple::new(client, vip, (CLIENT_PORT, TCP));
                let what = format!("{size} from {client} to {backend}, {mtu}");
                // Where it goes is that of any packet of the flow.
                let plain = tuple.packet(|p| p.tcp(ACK)).build();
                let left = goes(world, "plain", &plain, backend, &Link::hop(0));
                let clamped = announcing(tuple, SYN, becomes);
                let bytes = translated(&clamped, left, &Link::hop(0));
                let syn = announcing(tuple, SYN, size);
                world.becomes(&what, &syn, (Reason::Forwarded, TX), &bytes);
                let back = left.reversed();
                let clamped = announcing(back, SYN | ACK, becomes);
                let bytes = translated(&clamped, tuple.reversed(), &Link::client(0));
                let syn_ack = announcing(back, SYN | ACK, size);
                let what = format!("back: {what}");
                world.becomes(&what, &syn_ack, (Reason::Forwarded, TX), &bytes);
            }
        }
    }
}
