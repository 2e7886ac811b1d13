//! QUIC: which backend the connection id of a packet leads to, form by form.

use edge_common::{
    abi::TableStat,
    balance::{Balance, Forward, HashBy},
    quic::{IdKey, Layout, ServerId},
};

use super::{
    super::{V4, V4_DEST, V6, V6_DEST},
    expected::{Way, forwarded},
    world::*,
    *,
};
use crate::packet::{Edit as _, Extension, Ip, ip, proto};

const FAMILIES: [(&str, &str); 2] = [(V4, V4_DEST), (V6, V6_DEST)];
const WAYS: [(Way, Forward); 3] = [
    (Way::Ipip, Forward::Ipip),
    (Way::Gue, Forward::Gue),
    (Way::L2, Forward::L2),
];
/// Whom the ring leads to, and nobody's id names.
const RING: u32 = 3;
/// Whom ids name.
const NAMED: u32 = 4;
const DEAD: u32 = 5;
const OTHER: u32 = 6;
const BACKENDS: [(u32, &str); 4] = [
    (RING, "10.0.0.3"),
    (NAMED, "10.0.0.4"),
    (DEAD, "10.0.0.5"),
    (OTHER, "2001:db8:b::6"),
];
/// Of the service that the tests are about.
const CONFIG: u8 = 5;
const ID: [u8; 3] = [0x0a, 0x1b, 0x2c];
const DEAD_ID: [u8; 3] = [0x0a, 0x1b, 0xdd];
const OTHER_ID: [u8; 3] = [0xff, 0xff, 0xff];
const UNKNOWN: [u8; 3] = [0x0a, 0x1b, 0x00];
/// Versions of QUIC, and the type bits of Initial, 0-RTT, Handshake and Retry packets in each
/// (RFC 9000, 17.2; RFC 9369, 3.2).
const VERSIONS: [(u32, [u8; 4]); 2] = [(1, [0, 1, 2, 3]), (0x6b33_43cf, [1, 2, 3, 0])];
const KINDS: [&str; 4] = ["Initial", "0-RTT", "Handshake", "Retry"];

/// A connection id as the server of an id chooses it: its own length may stand in the first
/// octet.
fn cid(config: u8, id: &[u8]) -> Vec<u8> {
    let nonce = [0xd1, 0xd2, 0xd3, 0xd4, 0xd5];
    let len = u8::try_from(id.len() + nonce.len()).unwrap();
    [&[config << 5 | len], id, &nonce[..]].concat()
}

/// A packet with a short header.
fn short(cid: &[u8]) -> Vec<u8> {
    [&[0x41], cid, &[0x77; 24]].concat()
}

/// One with a long header, from a client whose own connection id has 4 octets.
fn long(first: u8, version: u32, cid: &[u8]) -> Vec<u8> {
    let mut packet = vec![first];
    packet.extend(version.to_be_bytes());
    packet.push(u8::try_from(cid.len()).unwrap());
    packet.extend(cid);
    packet.extend([4, 1, 2, 3, 4]);
    packet.extend([0x66; 30]);
    packet
}

fn datagram(packet: Ip, payload: &[u8]) -> Ip {
    let mut udp = vec![0; 8];
    let len = u16::try_from(8 + payload.len()).unwrap();
    udp[4..6].copy_from_slice(&len.to_be_bytes());
    udp.extend(payload);
    packet.payload(proto::UDP, udp).ports(40_000, 443)
}

fn table(layout: Layout, ids: &[(&[u8], u32)]) -> std::collections::BTreeMap<IdKey, u32> {
    let key = |id: &[u8]| IdKey {
        id: ServerId::new(id).unwrap().value(),
        service: 0,
        layout: layout.bits(),
    };
    ids.iter().map(|(id, number)| (key(id), *number)).collect()
}

fn by_id(forward: Forward, layout: Layout) -> Balance {
    Balance {
        forward,
        by: HashBy::Quic(layout),
        ..Balance::default()
    }
}

fn layout() -> Layout {
    Layout::new(CONFIG, 3).unwrap()
}

/// The service at both addresses, its backends and their ids.
fn enter(world: &mut World) {
    for (_, dest) in FAMILIES {
        world.enter(dest, proto::UDP, 443, 0);
    }
    for (number, address) in BACKENDS {
        let alive = number != DEAD;
        world.backend(number, address, HERE, BackendWord { alive, ..UP });
    }
    world.balance(0, by_id(Forward::L2, layout()), &[RING]);
    let ids = [
        (&ID[..], NAMED),
        (&DEAD_ID[..], DEAD),
        (&OTHER_ID[..], OTHER),
    ];
    world
        .tables
        .set_server_ids(&table(layout(), &ids))
        .expect("room for ids");
}

/// A client of its own for each packet, so that no flow is there.
struct Clients(u16);

impl Clients {
    fn next(&mut self, (v4, dest): (&str, &str), payload: &[u8]) -> Vec<u8> {
        self.0 += 1;
        let [a, b] = self.0.to_be_bytes();
        let source = match v4.contains(':') {
            false => format!("198.51.{a}.{b}"),
            true => format!("2001:db8:c::{:x}", self.0),
        };
        datagram(ip(&source, dest), payload).build()
    }
}

/// Whom the packets of every form reach.
pub(super) fn forms(world: &mut World) {
    enter(world);
    let mut clients = Clients(0);
    let known = cid(CONFIG, &ID);
    for family in FAMILIES {
        let mut reaches = |what: &str, payload: &[u8], number| {
            let frame = clients.next(family, payload);
            world.reaches(&format!("{what} from {}", family.0), &frame, number);
        };
        for (version, types) in VERSIONS {
            for (kind, bits) in KINDS.into_iter().zip(types) {
                // The bit behind the first may say nothing, and the lower ones are protected.
                for first in [0xc0, 0x80, 0xcf] {
                    let packet = long(first | bits << 4, version, &known);
                    let number = if kind == "Handshake" { NAMED } else { RING };
                    let what = format!("{kind} of version {version:x}, {first:02x}");
                    reaches(&what, &packet, number);
                }
            }
        }
        for version in [0, 2, 0xff00_001d, 0x0a0a_0a0a] {
            for bits in 0..4 {
                let packet = long(0xc0 | bits << 4, version, &known);
                reaches(&format!("version {version:x}, {bits}"), &packet, RING);
            }
        }
        for first in [0x40, 0x00, 0x7f, 0x20] {
            let packet = short(&known).with(0, &[first]);
            reaches(&format!("short header {first:02x}"), &packet, NAMED);
        }
        for (id, number) in [
            (ID, NAMED),
            (OTHER_ID, OTHER),
            (DEAD_ID, RING),
            (UNKNOWN, RING),
        ] {
            let packets = [
                short(&cid(CONFIG, &id)),
                long(0xe0, 1, &cid(CONFIG, &id)),
                long(0xf0, 0x6b33_43cf, &cid(CONFIG, &id)),
            ];
            for packet in packets {
                reaches(&format!("the id {id:02x?}"), &packet, number);
            }
        }
        // Other configurations, and 7 of those who have none.
        for config in 0..8 {
            let number = if config == CONFIG { NAMED } else { RING };
            reaches("a short one", &short(&cid(config, &ID)), number);
            reaches("a long one", &long(0xe0, 1, &cid(config, &ID)), number);
        }
        // The lower bits of the first octet are anybody's.
        for low in 0..32 {
            let cid = cid(CONFIG, &ID).with(0, &[CONFIG << 5 | low]);
            reaches("any length", &short(&cid), NAMED);
        }
        // Connection ids that have no room for a server id, or are longer than any.
        for len in 0..=40 {
            let mut own = known.clone();
            own.resize(len, 0x55);
            let number = if (4..=20).contains(&len) { NAMED } else { RING };
            reaches(&format!("{len} octets"), &long(0xe0, 1, &own), number);
        }
        // Cut anywhere: what is shorter than any packet says nothing.
        for whole in [short(&known), long(0xe0, 1, &known)] {
            for len in 0..=whole.len() {
                let number = if len >= 16 { NAMED } else { RING };
                let packet = &whole[..len];
                reaches(&format!("{len} bytes of {:02x}", whole[0]), packet, number);
            }
        }
    }
    // Bytes behind a short packet in its frame are not of it.
    let whole = short(&known);
    let cut = datagram(ip("198.51.100.200", V4_DEST), &whole[..15]);
    let mut frame = cut.build();
    frame.extend(&whole[15..]);
    world.reaches("a short packet and padding", &frame, RING);
    // TCP at the same address has nothing to do with it.
    world.enter(V4_DEST, proto::TCP, 443, 0);
    let segment = ip("198.51.100.201", V4_DEST).tcp_with(crate::packet::ACK, 0, 30);
    world.reaches("TCP", &segment.build(), RING);
    let stat = |world: &World, stat| world.rig.stat(stat).expect("a statistic");
    let unknown = stat(world, TableStat::QuicUnknownId);
    let routed = stat(world, TableStat::QuicRouted);
    world.reaches(
        "unknown",
        &clients.next(FAMILIES[0], &short(&cid(CONFIG, &UNKNOWN))),
        RING,
    );
    world.reaches("known", &clients.next(FAMILIES[0], &short(&known)), NAMED);
    world.reaches(
        "dead",
        &clients.next(FAMILIES[0], &short(&cid(CONFIG, &DEAD_ID))),
        RING,
    );
    world.reaches(
        "an Initial",
        &clients.next(FAMILIES[0], &long(0xc0, 1, &known)),
        RING,
    );
    let counted = (
        stat(world, TableStat::QuicUnknownId) - unknown,
        stat(world, TableStat::QuicRouted) - routed,
    );
    world.check("both are counted", counted == (1, 1));
}

/// Ids of every length, and of other services.
pub(super) fn ids(world: &mut World) {
    enter(world);
    let mut clients = Clients(0);
    for len in 1..=8 {
        let id: Vec<u8> = (0..len).map(|n| 0xf1 + n).collect();
        let other: Vec<u8> = (0..len).map(|n| 0x01 + n).collect();
        for config in 0..7 {
            let layout = Layout::new(config, len).unwrap();
            let ids = table(layout, &[(&id[..], NAMED), (&other[..], OTHER)]);
            world.tables.set_server_ids(&ids).expect("room for ids");
            world.check(
                "what was written is read",
                world.tables.server_ids().ok() == Some(ids),
            );
            world.balance(0, by_id(Forward::L2, layout), &[RING]);
            for family in FAMILIES {
                for (id, number) in [(&id, NAMED), (&other, OTHER)] {
                    for packet in [
                        short(&cid(config, id)),
                        long(0xe0, 1, &cid(config, id)),
                        long(0xf0, 0x6b33_43cf, &cid(config, id)),
                    ] {
                        let frame = clients.next(family, &packet);
                        let what = format!("{len} octets, {config}, {:02x}", packet[0]);
                        world.reaches(&what, &frame, number);
                    }
                }
            }
        }
    }
    // An id is its service's: neither another service has it, nor one that goes by addresses.
    enter(world);
    let frame = clients.next(FAMILIES[0], &short(&cid(CONFIG, &ID)));
    for by in [HashBy::FiveTuple, HashBy::Source] {
        let balance = Balance {
            by,
            ..by_id(Forward::L2, layout())
        };
        world.balance(0, balance, &[RING]);
        world.reaches("another choice", &frame, RING);
    }
    world.enter(V4_DEST, proto::UDP, 444, 1);
    world.balance(1, by_id(Forward::L2, layout()), &[OTHER]);
    let frame = datagram(ip(V4, V4_DEST), &short(&cid(CONFIG, &ID)))
        .ports(40_000, 444)
        .build();
    world.reaches("another service", &frame, OTHER);
}

/// Whole packets, as they reach the backend.
pub(super) fn every_way(world: &mut World) {
    enter(world);
    for (way, forward) in WAYS {
        world.balance(0, by_id(forward, layout()), &[RING]);
        for (id, address) in [(ID, BACKENDS[1].1), (OTHER_ID, BACKENDS[3].1)] {
            for (source, dest) in FAMILIES {
                for tags in 0..3 {
                    let tagged = |p: Ip| (0..tags).fold(p, |p, tag| p.vlan(100 + tag));
                    let own = cid(CONFIG, &id);
                    for (what, payload) in [
                        ("short", short(&own)),
                        ("v1 Handshake", long(0xe0, 1, &own)),
                        ("v2 Handshake", long(0xf0, 0x6b33_43cf, &own)),
                        ("a long packet", [short(&own), vec![7; 1200]].concat()),
                    ] {
                        let frame = datagram(tagged(ip(source, dest)), &payload).build();
                        let what = format!("{what} from {source}, {tags} tags, {way:?}, {address}");
                        let seen = world.send(&frame).run.output;
                        let bytes = forwarded(&frame, way, address, 0, &seen);
                        world.becomes(&what, &frame, (Reason::Forwarded, TX), &bytes);
                    }
                }
            }
        }
    }
    // Behind options and extension headers.
    world.balance(0, by_id(Forward::L2, layout()), &[RING]);
    let payload = short(&cid(CONFIG, &ID));
    for packet in [
        ip(V4, V4_DEST).options(40),
        ip(V6, V6_DEST).extension(Extension::DestOpts(64)),
    ] {
        let frame = datagram(packet, &payload).build();
        let bytes = forwarded(&frame, Way::L2, BACKENDS[1].1, 0, &[]);
        world.becomes("behind more", &frame, (Reason::Forwarded, TX), &bytes);
    }
}

/// Flows and ids together.
pub(super) fn flows(world: &mut World) {
    enter(world);
    let from = |source: &str, payload: &[u8]| datagram(ip(source, V4_DEST), payload).build();
    let (initial, handshake) = (cid(CONFIG, &OTHER_ID), cid(CONFIG, &ID));
    let unroutable = short(&cid(7, &ID));
    let (home, away) = ("198.51.100.1", "203.0.113.77");

    // A handshake: the client's own id looks like another server's, and decides nothing.
    world.balance(0, by_id(Forward::L2, layout()), &[NAMED]);
    world.reaches("an Initial", &from(home, &long(0xc0, 1, &initial)), NAMED);
    world.reaches("0-RTT", &from(home, &long(0xd0, 1, &initial)), NAMED);
    world.balance(0, by_id(Forward::L2, layout()), &[RING]);
    world.reaches("again", &from(home, &long(0xc0, 1, &initial)), NAMED);
    world.reaches("Handshake", &from(home, &long(0xe0, 1, &handshake)), NAMED);
    world.reaches("short", &from(home, &short(&handshake)), NAMED);

    // The client has another address: the id leads, and the table follows it.
    world.reaches("moved", &from(away, &short(&handshake)), NAMED);
    let moved = [
        ("no id", unroutable.clone()),
        ("an unknown one", short(&cid(CONFIG, &UNKNOWN))),
        ("that of a dead one", short(&cid(CONFIG, &DEAD_ID))),
        ("an Initial", long(0xc0, 1, &initial)),
        ("a short packet", vec![0x41]),
    ];
    for (what, payload) in moved {
        world.reaches(&format!("{what}, moved"), &from(away, &payload), NAMED);
    }

    // Whoever makes up an id moves nobody's flow, neither a young one nor an old one.
    let made_up = short(&cid(CONFIG, &OTHER_ID));
    for (client, packets) in [("198.51.100.2", 1), ("198.51.100.3", 3)] {
        let plain = from(client, &long(0xc0, 1, &initial));
        for _ in 0..packets {
            world.reaches("a flow", &plain, RING);
        }
        world.reaches("a made-up id", &from(client, &made_up), OTHER);
        world.balance(0, by_id(Forward::L2, layout()), &[NAMED]);
        world.reaches("the flow stays", &plain, RING);
        world.balance(0, by_id(Forward::L2, layout()), &[RING]);
    }

    // A drained backend is in no ring, and its ids lead to it; a dead one has neither.
    let fresh = |n: u8| format!("198.51.100.{n}");
    world.reaches("drained", &from(&fresh(10), &short(&handshake)), NAMED);
    let word = |alive, generation| BackendWord {
        alive,
        generation,
        ..UP
    };
    world.backend(NAMED, BACKENDS[1].1, HERE, word(false, 1));
    world.reaches("dead", &from(&fresh(10), &short(&handshake)), RING);
    world.reaches("dead, moved", &from(&fresh(11), &short(&handshake)), RING);
    // It lives again: its connections find it, but what began meanwhile stays.
    world.backend(NAMED, BACKENDS[1].1, HERE, word(true, 1));
    world.reaches("alive", &from(&fresh(10), &short(&handshake)), NAMED);
    world.reaches("meanwhile", &from(&fresh(10), &unroutable), RING);
    // Where a flow is over, or its backend is another one, the id's takes its place.
    world.pass_time(200 * SECOND);
    world.reaches("again", &from(&fresh(10), &short(&handshake)), NAMED);
    world.reaches("followed", &from(&fresh(10), &unroutable), NAMED);
    world.backend(NAMED, BACKENDS[1].1, HERE, word(true, 2));
    world.reaches("another one", &from(&fresh(10), &unroutable), RING);

    // Another backend gets the id.
    let ids = table(layout(), &[(&ID[..], OTHER)]);
    world.tables.set_server_ids(&ids).expect("room for ids");
    world.reaches("renamed", &from(&fresh(20), &short(&handshake)), OTHER);
    world.reaches("forgotten", &from(&fresh(21), &made_up), RING);
    world
        .tables
        .set_server_ids(&table(layout(), &[]))
        .expect("room");
    world.reaches("none", &from(&fresh(22), &short(&handshake)), RING);
}

/// Errors about what a backend has sent: its connection id is the client's, and tells nothing.
pub(super) fn errors(world: &mut World) {
    enter(world);
    for ((client, vip), kind) in FAMILIES.into_iter().zip([3, 2]) {
        // The client has moved, so that the ring would lead elsewhere.
        let moved = datagram(ip(client, vip), &short(&cid(CONFIG, &ID)));
        world.reaches("moved", &moved.build(), NAMED);
        world.reaches("moved", &moved.build(), NAMED);
        let sent = datagram(ip(vip, client), &short(&cid(CONFIG, &OTHER_ID))).ports(443, 40_000);
        let mut message = vec![kind, 0, 0, 0, 0, 0, 5, 0];
        message.extend(&sent.build()[14..]);
        let (router, proto) = match client.contains(':') {
            true => ("2001:db8:99::1", proto::ICMPV6),
            false => ("198.18.0.1", proto::ICMP),
        };
        let frame = ip(router, vip).payload(proto, message).build();
        let bytes = forwarded(&frame, Way::L2, BACKENDS[1].1, 0, &[]);
        world.becomes("an error", &frame, (Reason::Forwarded, TX), &bytes);
    }
}
