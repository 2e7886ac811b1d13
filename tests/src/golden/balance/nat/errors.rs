//! ICMP errors about flows, both ways.

use edge_common::reason::Reason;

use super::*;
use crate::packet::{ACK, Edit as _};

/// An error from `router` about a packet that `about` has sent: its IP header and `len` bytes.
fn error(router: &str, about: &[u8], len: usize) -> Vec<u8> {
    let (_, packet) = network(about);
    let (header, _) = payload(packet);
    let v6 = packet[0] >> 4 == 6;
    let mut message = vec![
        if v6 { 2 } else { 3 },
        if v6 { 0 } else { 4 },
        0,
        0,
        0,
        0,
        5,
        0,
    ];
    message.extend(&packet[..header + len]);
    let proto = if v6 { proto::ICMPV6 } else { proto::ICMP };
    let to = Tuple::of(about).source.to_string();
    ip(router, &to).payload(proto, message).build()
}

/// The same for the other side: from and to these, about a packet with these ends.
fn other_side(frame: &[u8], outer: Tuple, inner: Tuple, link: &Link) -> Vec<u8> {
    let (kind, packet) = network(frame);
    let (header, _) = payload(packet);
    let mut message = packet[header..].to_vec();
    let body = &mut message[8..];
    let (at, ports) = if kind == 0x0800 { (12, 20) } else { (8, 40) };
    body[at..at + inner.octets().len()].copy_from_slice(&inner.octets());
    if kind == 0x0800 {
        body[10..12].fill(0);
        let sum = checksum(&[&body[..20]]);
        body[10..12].copy_from_slice(&sum);
    }
    body[ports..ports + 2].copy_from_slice(&inner.ports.0.to_be_bytes());
    body[ports + 2..ports + 4].copy_from_slice(&inner.ports.1.to_be_bytes());
    let (from, to) = (outer.source.to_string(), outer.dest.to_string());
    let proto = if kind == 0x0800 {
        proto::ICMP
    } else {
        proto::ICMPV6
    };
    let whole = ip(&from, &to).payload(proto, message).build();
    let (_, packet) = network(&whole);
    let packet = super::super::expected::after_a_hop(packet);
    link.frame(kind, &packet)
}

pub(in super::super) fn both_ways(world: &mut World) {
    let routers = ["198.18.0.1", "2001:db8:99::1"];
    for (backend, there) in BACKENDS.into_iter().zip(0..) {
        enter(world, &[backend]);
        for ((client, vip), here) in CLIENTS.into_iter().zip(0..) {
            for port in [TCP, UDP] {
                let tuple = Tuple::new(client, vip, (CLIENT_PORT, port));
                let shape = |p: Ip| match port {
                    TCP => p.tcp_with(ACK, 0, 900),
                    _ => p.udp(900),
                };
                let frame = tuple.packet(shape).build();
                let left = goes(world, "a flow", &frame, backend, &Link::hop(0));
                let before = world.tables.signals(3).expect("the signals");
                let sent = left.packet(shape).build();
                let answer = tuple.reversed().packet(shape).build();
                for len in [8, 20, 200] {
                    let what = format!("{client} to {backend}, port {port}, {len} bytes");
                    // About what went to the backend.
                    for router in [routers[there], backend] {
                        let frame = error(router, &sent, len);
                        if here == there {
                            let outer = tuple.reversed();
                            let bytes = other_side(&frame, outer, tuple, &Link::client(0));
                            world.becomes(&what, &frame, (Reason::Forwarded, TX), &bytes);
                        } else {
                            drops(world, &what, &frame, Reason::NatFamily);
                        }
                    }
                    // About what went to the client.
                    let what = format!("back: {what}");
                    let frame = error(routers[here], &answer, len);
                    if here == there {
                        let bytes = other_side(&frame, left, left.reversed(), &Link::hop(0));
                        world.becomes(&what, &frame, (Reason::Forwarded, TX), &bytes);
                    } else {
                        drops(world, &what, &frame, Reason::NatFamily);
                    }
                }
                let after = world.tables.signals(3).expect("the signals");
                world.check("nothing is counted", before == after);
                // About packets of nobody.
                let ports = (left.ports.0 ^ 1, left.ports.1);
                let stranger = Tuple { ports, ..left }.packet(shape).build();
                let frame = error(routers[there], &stranger, 8);
                passes(world, "about another port", &frame);
                let ports = (port, 9);
                let stranger = Tuple {
                    ports,
                    ..tuple.reversed()
                }
                .packet(shape)
                .build();
                let frame = error(routers[here], &stranger, 8);
                drops(world, "about no flow", &frame, Reason::NatNoFlow);
                // To another one than has sent it.
                let at = if there == 0 {
                    14 + 20 + 8 + 12
                } else {
                    14 + 40 + 8 + 8
                };
                let frame = error(routers[there], &sent, 8).with(at, &[7; 4]);
                passes(world, "sent by another", &frame);
            }
        }
    }
}
