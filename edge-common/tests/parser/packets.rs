//! Valid packets of every kind the parser knows, and what it must find in them; and such as are
//! made the same way but break a rule.

use edge_common::parse::{Arp, Fragment, Ip, Kind, Packet, Transport};
use proptest::{collection::vec, prelude::*, sample::select};

/// What packets keep to.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Rules {
    /// IPv6 extension headers beside hop-by-hop and fragment.
    extensions: usize,
    /// Type 0 is refused.
    lowest_routing_type: u8,
    /// Whether fragments lie within the largest packet.
    fragments_fit: bool,
}

/// Everything is valid.
pub(crate) const VALID: Rules = Rules {
    // Six of them are allowed.
    extensions: 4,
    lowest_routing_type: 1,
    fragments_fit: true,
};

/// A little too much of everything.
pub(crate) const WILD: Rules = Rules {
    extensions: 8,
    lowest_routing_type: 0,
    fragments_fit: false,
};

impl Rules {
    /// The cut, and how many bytes a later part may have. In the whole packet, `before` bytes of
    /// headers stand before the payload.
    fn apply(self, cut: Cut, before: usize) -> (Cut, usize) {
        match cut {
            Cut::Later(offset, more) if self.fragments_fit => {
                let room = LARGEST - before;
                let offset = offset.min(u16::try_from(room / 8 * 8).unwrap());
                (Cut::Later(offset, more), room - usize::from(offset))
            }
            cut => (cut, usize::MAX),
        }
    }
}

/// Bytes that no header explains.
fn data(most: usize) -> impl Strategy<Value = Vec<u8>> {
    vec(any::<u8>(), 0..=most)
}

/// A payload, its protocol, and what the parser finds when it is whole. The offset is 0 here.
#[derive(Clone, Debug)]
struct Payload {
    proto: u8,
    bytes: Vec<u8>,
    header: usize,
    found: Transport,
}

fn tcp() -> impl Strategy<Value = Payload> {
    let options = vec(any::<[u8; 4]>(), 0..=10);
    (
        any::<[u8; 12]>(),
        any::<u8>(),
        any::<[u8; 6]>(),
        options,
        data(40),
    )
        .prop_map(|(start, flags, rest, options, data)| {
            let header = 20 + 4 * options.len();
            let mut bytes = start.to_vec();
            bytes.extend([u8::try_from(header / 4).unwrap() << 4, flags]);
            bytes.extend(rest);
            bytes.extend(options.concat());
            bytes.extend(data);
            Payload {
                proto: 6,
                header,
                found: Transport {
                    kind: Kind::Tcp,
                    source_port: u16::from_ne_bytes([bytes[0], bytes[1]]),
                    dest_port: u16::from_ne_bytes([bytes[2], bytes[3]]),
                    tcp_flags: flags,
                    ..Transport::default()
                },
                bytes,
            }
        })
}

fn udp() -> impl Strategy<Value = Payload> {
    (any::<[u8; 4]>(), any::<[u8; 2]>(), data(40)).prop_map(|(ports, sum, data)| {
        let mut bytes = ports.to_vec();
        bytes.extend(u16::try_from(8 + data.len()).unwrap().to_be_bytes());
        bytes.extend(sum);
        bytes.extend(data);
        Payload {
            proto: 17,
            header: 8,
            found: Transport {
                kind: Kind::Udp,
                source_port: u16::from_ne_bytes([ports[0], ports[1]]),
                dest_port: u16::from_ne_bytes([ports[2], ports[3]]),
                ..Transport::default()
            },
            bytes,
        }
    })
}

fn icmp() -> impl Strategy<Value = Payload> {
    (select(vec![1u8, 58]), any::<[u8; 8]>(), data(40)).prop_map(|(proto, head, data)| Payload {
        proto,
        header: if proto == 1 { 8 } else { 4 },
        found: Transport {
            kind: Kind::Icmp,
            icmp_type: head[0],
            ..Transport::default()
        },
        bytes: [&head[..], &data].concat(),
    })
}

/// GRE, ESP, "no next header", SCTP: what the parser leaves alone.
fn other() -> impl Strategy<Value = Payload> {
    (select(vec![47u8, 50, 59, 132]), data(60)).prop_map(|(proto, bytes)| Payload {
        proto,
        header: 0,
        found: Transport::default(),
        bytes,
    })
}

/// Length of the largest packet: what IPv4's total length and IPv6's payload length can say.
const LARGEST: usize = 65_535;

/// How a packet is fragmented: not; the first so many times 8 bytes; or a later part at an offset.
#[derive(Clone, Copy, Debug)]
enum Cut {
    Whole,
    First(usize),
    Later(u16, bool),
}

fn cut() -> impl Strategy<Value = Cut> {
    prop_oneof![
        2 => Just(Cut::Whole),
        1 => (0usize..12).prop_map(Cut::First),
        1 => (1u16..8192, any::<bool>()).prop_map(|(units, more)| Cut::Later(units * 8, more)),
        // Where the largest packets end.
        1 => (8170u16..8192, any::<bool>()).prop_map(|(units, more)| Cut::Later(units * 8, more)),
    ]
}

impl Cut {
    const fn fragment(self) -> Fragment {
        match self {
            Self::Whole => Fragment::Whole,
            Self::First(_) => Fragment::First,
            Self::Later(offset, _) => Fragment::Later { offset },
        }
    }

    /// Offset in bytes, and whether more follow.
    const fn position(self) -> (u16, bool) {
        match self {
            Self::Whole => (0, false),
            Self::First(_) => (0, true),
            Self::Later(offset, more) => (offset, more),
        }
    }

    /// The bytes of the fragment, and what the parser finds in them. A later part has
    /// at most `room` bytes.
    fn of(self, payload: Payload, room: usize) -> (Vec<u8>, Transport) {
        let Payload {
            mut bytes,
            header,
            found,
            proto,
        } = payload;
        match self {
            Self::Whole => (bytes, found),
            Self::First(units) => {
                bytes.resize(bytes.len().next_multiple_of(8), 0);
                bytes.truncate(units * 8);
                let truncated = bytes.len() < header;
                // Of a TCP header the fixed part is enough.
                let is_readable = !truncated || proto == 6 && bytes.len() >= 20;
                let found = if is_readable {
                    found
                } else {
                    Transport {
                        kind: found.kind,
                        ..Transport::default()
                    }
                };
                let kind = match found.kind {
                    Kind::Tcp if truncated => Kind::TcpHead,
                    kind => kind,
                };
                (
                    bytes,
                    Transport {
                        kind,
                        truncated,
                        ..found
                    },
                )
            }
            Self::Later(_, more) => {
                bytes.truncate(room);
                if more {
                    bytes.truncate(bytes.len() / 8 * 8);
                }
                let kind = match found.kind {
                    Kind::Tcp => Kind::Other,
                    kind => kind,
                };
                (
                    bytes,
                    Transport {
                        kind,
                        ..Transport::default()
                    },
                )
            }
        }
    }
}

/// A packet without its link layer; offsets count from its start.
type Body = (u16, Vec<u8>, Packet);

fn payload() -> impl Strategy<Value = Payload> {
    prop_oneof![tcp(), udp(), icmp(), other()]
}

fn ipv4(rules: Rules) -> impl Strategy<Value = Body> {
    let options = vec(any::<[u8; 4]>(), 0..=10);
    let addresses = (any::<[u8; 4]>(), any::<[u8; 4]>());
    (addresses, options, any::<[u8; 4]>(), cut(), payload()).prop_map(
        move |((source, dest), options, noise, cut, payload)| {
            let proto = payload.proto;
            let header = 20 + 4 * options.len();
            let (cut, room) = rules.apply(cut, header);
            let (bytes, found) = cut.of(payload, room);
            let (offset, more) = cut.position();
            let total = u16::try_from(header + bytes.len()).unwrap();
            let mut packet = vec![0x40 | u8::try_from(header / 4).unwrap(), noise[0]];
            packet.extend(total.to_be_bytes());
            packet.extend([noise[1], noise[2]]);
            // "Don't fragment" says nothing here.
            let flags = u16::from(more) << 13 | u16::from(noise[3] & 1) << 14;
            let units = offset / 8;
            packet.extend((units | flags).to_be_bytes());
            packet.extend([64, proto, 0, 0]);
            packet.extend([source, dest].concat());
            packet.extend(options.concat());
            packet.extend(bytes);
            let ip = Ip {
                source: u32::from_ne_bytes(source),
                dest: u32::from_ne_bytes(dest),
                end: packet.len(),
                proto,
                fragment: cut.fragment(),
                transport: Transport {
                    offset: header,
                    ..found
                },
            };
            (0x0800, packet, Packet::Ipv4(ip))
        },
    )
}

/// An extension header without its first byte, which says what follows it: number and rest.
type Extension = (u8, Vec<u8>);

/// Routing (not type 0), authentication, destination options, mobility.
fn extension(rules: Rules) -> impl Strategy<Value = Extension> {
    let lowest = rules.lowest_routing_type;
    let routing_type = prop_oneof![Just(lowest), lowest..=255];
    (select(vec![43u8, 51, 60, 135]), 0u8..4, routing_type).prop_map(|(kind, units, third)| {
        let mut bytes = vec![1; 8 * (usize::from(units) + 1) - 1];
        bytes[0] = if kind == 51 { 2 * units } else { units };
        // Behind the type of a routing header stand the segments left.
        (bytes[1], bytes[2]) = (third, units);
        (kind, bytes)
    })
}

fn fragment_header(cut: Cut) -> Extension {
    let (offset, more) = cut.position();
    let [a, b] = (offset | u16::from(more)).to_be_bytes();
    (44, vec![0, a, b, 0, 0, 0, 7])
}

fn ipv6(rules: Rules) -> impl Strategy<Value = Body> {
    let addresses = (any::<[u8; 16]>(), any::<[u8; 16]>());
    let hop_by_hop = proptest::option::of((0u8..4).prop_map(|units| {
        let mut bytes = vec![1; 8 * (usize::from(units) + 1) - 1];
        bytes[0] = units;
        (0, bytes)
    }));
    let other = || vec(extension(rules), 0..=rules.extensions / 2);
    let others = (other(), other());
    (
        addresses,
        hop_by_hop,
        others,
        any::<bool>(),
        cut(),
        payload(),
    )
        .prop_map(
            move |((source, dest), hop_by_hop, (before, behind), atomic, cut, payload)| {
                let mut extensions: Vec<Extension> = hop_by_hop.into_iter().chain(before).collect();
                // The fragment header itself is not in the whole.
                let in_whole = extensions.iter().map(|(_, rest)| 1 + rest.len()).sum();
                let (cut, room) = rules.apply(cut, in_whole);
                let is_fragment = !matches!(cut, Cut::Whole);
                if is_fragment || atomic {
                    extensions.push(fragment_header(cut));
                }
                if !is_fragment {
                    // Behind a fragment's header they would be part of what is cut.
                    extensions.extend(behind);
                }
                let proto = payload.proto;
                let (bytes, found) = cut.of(payload, room);
                let numbers: Vec<u8> = extensions.iter().map(|e| e.0).chain([proto]).collect();
                let headers: Vec<u8> = extensions
                    .iter()
                    .zip(&numbers[1..])
                    .flat_map(|((_, rest), next)| [&[*next], &rest[..]].concat())
                    .collect();
                let len = u16::try_from(headers.len() + bytes.len()).unwrap();
                let mut packet = vec![0x60, 0, 0, 0];
                packet.extend(len.to_be_bytes());
                packet.extend([numbers[0], 64]);
                packet.extend([source, dest].concat());
                packet.extend(&headers);
                packet.extend(bytes);
                let words = |address: [u8; 16]| {
                    let mut words = [0; 2];
                    for (word, bytes) in words.iter_mut().zip(address.as_chunks::<8>().0) {
                        *word = u64::from_ne_bytes(*bytes);
                    }
                    words
                };
                let ip = Ip {
                    source: words(source),
                    dest: words(dest),
                    end: packet.len(),
                    proto,
                    fragment: cut.fragment(),
                    transport: Transport {
                        offset: 40 + headers.len(),
                        ..found
                    },
                };
                (0x86dd, packet, Packet::Ipv6(ip))
            },
        )
}

fn arp() -> impl Strategy<Value = Body> {
    (any::<[u8; 6]>(), any::<[u8; 4]>(), any::<[u8; 10]>(), 1u8..).prop_map(
        |(sender_mac, sender_ip, target, operation)| {
            let mut packet = vec![0, 1, 8, 0, 6, 4, 0, operation];
            packet.extend(sender_mac);
            packet.extend(sender_ip);
            packet.extend(target);
            let arp = Arp {
                sender_mac,
                sender_ip: u32::from_ne_bytes(sender_ip),
                // Set by the frame.
                frame_source: [0; 6],
            };
            (0x0806, packet, Packet::Arp(arp))
        },
    )
}

/// A valid frame with up to two VLAN tags and some padding, and what the parser must say of it.
pub(crate) fn frame(rules: Rules) -> impl Strategy<Value = (Vec<u8>, Packet)> {
    let kinds = select(vec![0x8100u16, 0x88a8, 0x9100]);
    let tags = vec((kinds, any::<[u8; 2]>()), 0..=2);
    let body = prop_oneof![3 => ipv4(rules), 3 => ipv6(rules), 1 => arp()];
    (any::<[u8; 6]>(), any::<[u8; 6]>(), tags, body, data(20)).prop_map(
        |(dest, source, tags, (ether_type, packet, mut found), padding)| {
            let mut frame = [dest, source].concat();
            for (kind, control) in tags {
                frame.extend(kind.to_be_bytes());
                frame.extend(control);
            }
            frame.extend(ether_type.to_be_bytes());
            let at = frame.len();
            frame.extend(packet);
            frame.extend(padding);
            match &mut found {
                Packet::Ipv4(ip) => shift(ip, at),
                Packet::Ipv6(ip) => shift(ip, at),
                Packet::Arp(arp) => arp.frame_source = source,
                Packet::Other => {}
            }
            (frame, found)
        },
    )
}

const fn shift<A>(ip: &mut Ip<A>, by: usize) {
    ip.end += by;
    ip.transport.offset += by;
}
