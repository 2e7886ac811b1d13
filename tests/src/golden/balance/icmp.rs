//! ICMP for the address of a service.

use edge_common::balance::{Balance, Forward};

use super::{
    super::{V4, V4_DEST, V6, V6_DEST},
    expected::{Way, forwarded},
    world::*,
    *,
};
use crate::packet::{ACK, Edit as _, SYN, checksum, ip, proto};

const BACKENDS: [&str; 2] = ["10.0.0.3", "2001:db8:b::4"];

fn enter(world: &mut World, echo: bool) {
    for dest in [V4_DEST, V6_DEST] {
        world.enter(dest, proto::TCP, 443, 0);
        world.enter(dest, proto::UDP, 53, 0);
    }
    let balance = Balance {
        forward: Forward::Ipip,
        echo,
        ..Balance::default()
    };
    world.balance(0, balance, &[3, 4]);
    for (number, address) in (3..).zip(BACKENDS) {
        world.backend(number, address, HERE, UP);
    }
}

/// An error from a router about a packet that a backend has sent to the client: its IP
/// header and 8 bytes.
fn error(v6: bool, kind: u8, sent: &[u8]) -> Vec<u8> {
    let len = if v6 { 48 } else { 28 };
    let mut message = vec![kind, 0, 0, 0, 0, 0, 5, 0];
    message.extend(&sent[14..14 + len]);
    let (router, vip, proto) = if v6 {
        ("2001:db8:99::1", V6_DEST, proto::ICMPV6)
    } else {
        ("198.18.0.1", V4_DEST, proto::ICMP)
    };
    ip(router, vip).payload(proto, message).build()
}

pub(super) fn errors(world: &mut World) {
    enter(world, false);
    let families = [(V4, V4_DEST, false, 3, 34), (V6, V6_DEST, true, 2, 54)];
    for (client, vip, v6, kind, at) in families {
        for port in 2000..2040u16 {
            for udp in [false, true] {
                let build = |flags| {
                    let packet = if udp {
                        ip(client, vip).udp(5)
                    } else {
                        ip(client, vip).tcp(flags)
                    };
                    packet.build().with(at, &port.to_be_bytes())
                };
                let number = world.number_of(&build(SYN));
                world.number_of(&build(ACK));
                // What the backend answers, ports the other way round.
                let service = if udp { 53u16 } else { 443 };
                let back = if udp {
                    ip(vip, client).udp(900)
                } else {
                    ip(vip, client).tcp_with(ACK, 0, 900)
                };
                let sent = back
                    .build()
                    .with(at, &service.to_be_bytes())
                    .with(at + 2, &port.to_be_bytes());
                let frame = error(v6, kind, &sent);
                // Wherever new flows go.
                let other = if number == 3 { 4 } else { 3 };
                let balance = Balance {
                    forward: Forward::Ipip,
                    ..Balance::default()
                };
                world.balance(0, balance, &[other]);
                let seen = world.send(&frame).run.output;
                let bytes = forwarded(&frame, Way::Ipip, BACKENDS[number as usize - 3], 0, &seen);
                let what = format!("an error about port {port} of {client}, UDP {udp}");
                world.becomes(&what, &frame, (Reason::Forwarded, TX), &bytes);
                world.balance(0, balance, &[3, 4]);
            }
        }
        // About nobody's packet, and cut off.
        let stranger = ip(client, client).udp(9).build();
        let frame = error(v6, kind, &stranger);
        world.becomes("a stranger's", &frame, (Reason::Pass, PASS), &frame);
        let sent = ip(vip, client)
            .udp(9)
            .build()
            .with(at, &53u16.to_be_bytes());
        let whole = error(v6, kind, &sent);
        for cut in 1..=if v6 { 48 } else { 28 } {
            let message = whole[14 + if v6 { 40 } else { 20 }..whole.len() - cut].to_vec();
            let proto = if v6 { proto::ICMPV6 } else { proto::ICMP };
            let router = if v6 { "2001:db8:99::1" } else { "198.18.0.1" };
            let frame = ip(router, vip).payload(proto, message).build();
            let out = world.send(&frame);
            // Four bytes behind the header are both ports.
            let wanted = if cut <= 4 { TX } else { PASS };
            world.check(&format!("{cut} bytes less"), out.run.action == wanted);
        }
    }
}

pub(super) fn pings(world: &mut World) {
    enter(world, false);
    let families = [(V4, V4_DEST, 8, 0), (V6, V6_DEST, 128, 129)];
    for (client, vip, kind, _) in families {
        let ping = ip(client, vip).icmp(kind, 56).build();
        world.becomes("not answered", &ping, (Reason::Pass, PASS), &ping);
    }
    enter(world, true);
    for (client, vip, kind, answer) in families {
        for tags in 0..3 {
            for len in [0, 1, 56, 1400] {
                let tagged = |p| (0..tags).fold(p, |p: crate::packet::Ip, tag| p.vlan(100 + tag));
                let ping = tagged(ip(client, vip).icmp(kind, len)).build();
                let mut pong = tagged(ip(vip, client).icmp(answer, len)).build();
                // The builder's identification and TTL, but for ours.
                let at = 14 + 4 * usize::from(tags);
                if kind == 8 {
                    pong[at + 8] = 61;
                    pong[at + 10..at + 12].fill(0);
                    let sum = checksum(&[&pong[at..at + 20]]);
                    pong[at + 10..at + 12].copy_from_slice(&sum);
                } else {
                    pong[at + 7] = 61;
                }
                let (dest, source) = (ping[..6].to_vec(), ping[6..12].to_vec());
                pong[..6].copy_from_slice(&source);
                pong[6..12].copy_from_slice(&dest);
                let what = format!("a ping of {len} bytes from {client}, {tags} tags");
                world.becomes(&what, &ping, (Reason::ReplyEcho, TX), &pong);
            }
        }
        let other = ip(client, vip).icmp(answer, 8).build();
        world.becomes("no ping", &other, (Reason::Pass, PASS), &other);
    }
    let ping = ip(V4, V4_DEST).icmp(8, 8).build();
    let ended: Vec<_> = (0..300).map(|_| world.send(&ping).run.action).collect();
    let answered = ended.iter().filter(|a| **a == TX).count();
    world.check("200 pings at once", (150..=200).contains(&answered));
    world.check(
        "the others are dropped",
        ended.iter().all(|a| [TX, DROP].contains(a)),
    );
}
