//! ICMP for the address of a service: pings, and errors about its flows.

use super::{End, Packet, dest_port, find, flows, forward, may_send, nat, word};
use crate::{
    defence::{frame::Addresses, halves},
    emit::{self, Facts},
    maps::config,
    rewrite::turn_round,
    source::XdpSource,
};
use edge_common::{
    balance::{Balance, Flow, Forward},
    defence::{DefenceWord, IcmpKind},
    header::{replaced, with_low_half},
    parse::{PacketSource as _, proto},
    reason::Reason,
};

/// Bytes of an error before the packet that it is about.
pub const ERROR_LEN: usize = 8;
/// An answer to a ping.
const V4_REPLY: u8 = 0;
const V6_REPLY: u8 = 129;

/// What becomes of a message.
#[inline(always)]
pub fn judge(facts: Facts<'_>, packet: Packet, client: [u64; 2], vip: [u64; 2]) -> End {
    let source = XdpSource::new(facts.ctx);
    let Some([first]) = source.words::<1>(packet.transport) else {
        return End::new(Reason::Pass);
    };
    let [kind, code, _, _] = first.to_ne_bytes();
    match IcmpKind::of(packet.v6, kind) {
        Some(IcmpKind::Echo) => echo(facts, packet, client, vip, first, code),
        Some(IcmpKind::Error) => error(facts, packet, vip),
        Some(IcmpKind::Other) | None => End::new(Reason::Pass),
    }
}

/// Sends an error about a flow to the backend of that flow, by as much of its packet as
/// an error must have: 8 bytes behind the IP header (RFC 792).
#[inline(always)]
fn error(facts: Facts<'_>, packet: Packet, vip: [u64; 2]) -> End {
    let source = XdpSource::new(facts.ctx);
    let Some(flow) = embedded(&source, packet) else {
        return End::new(Reason::Pass);
    };
    // Who sent the packet gets the error.
    if flow.vip != vip {
        return End::new(Reason::Pass);
    }
    let proto = flow.proto;
    let Some(service) = find(vip, dest_port(flow.ports), proto) else {
        return End::new(Reason::Pass);
    };
    let balance = word(service);
    if !Balance::is_balanced(balance) {
        return End::new(Reason::Pass);
    }
    if Balance::is(balance, Forward::Nat) {
        return nat::go_on(facts, balance);
    }
    match flows::look(facts, flow, balance) {
        Some(chosen) => {
            let packet = Packet {
                flags: 0,
                is_tcp: false,
                is_error: true,
                ..packet
            };
            forward::to(facts, packet, chosen)
        }
        None => End::new(Reason::BackendNone),
    }
}

/// Of an error, the flow that it is about: as the packets have it that go where the error
/// goes. `None` when that is none of TCP or UDP.
#[inline(always)]
pub fn embedded(source: &XdpSource<'_>, packet: Packet) -> Option<Flow> {
    let inner = packet.transport + ERROR_LEN;
    let sent = Addresses::read_at(source, packet.v6, inner)?;
    let proto = source.byte(inner + if packet.v6 { 6 } else { 9 })?;
    let [ports] = source.words::<1>(inner + embedded_len(source, packet)?)?;
    (proto == proto::TCP || proto == proto::UDP).then_some(Flow {
        client: sent.dest,
        vip: sent.source,
        ports: ports.rotate_left(16),
        proto,
    })
}

/// Bytes of the IP header in an error. Extension headers of what we have let pass are not
/// followed: hardly anybody sends any.
#[inline(always)]
pub fn embedded_len(source: &XdpSource<'_>, packet: Packet) -> Option<usize> {
    if packet.v6 {
        return Some(40);
    }
    let first = source.byte(packet.transport + ERROR_LEN)?;
    Some((first & 0xf) as usize * 4)
}

/// Answers a ping, if the service does.
#[inline(always)]
fn echo(
    facts: Facts<'_>,
    packet: Packet,
    client: [u64; 2],
    vip: [u64; 2],
    first: u32,
    code: u8,
) -> End {
    let Some(service) = find(vip, 0, proto::ICMP) else {
        return End::new(Reason::Pass);
    };
    if code != 0 || !Balance::answers_echo(word(service)) {
        return End::new(Reason::Pass);
    }
    if !may_send(DefenceWord::VipEcho, facts.now) {
        return End::new(Reason::FloodIcmp);
    }
    let source = XdpSource::new(facts.ctx);
    let kind = if packet.v6 { V6_REPLY } else { V4_REPLY };
    let [was, _, c, d] = first.to_ne_bytes();
    let old = u16::from_ne_bytes([was, code]);
    let new = u16::from_ne_bytes([kind, code]);
    let check = match replaced(u16::from_ne_bytes([c, d]), old, new) {
        // Of a message that is all zeros the sum is another zero (RFC 1624, 3).
        0 => u16::MAX,
        check => check,
    };
    let answer = with_low_half(u32::from_ne_bytes([kind, code, 0, 0]), check);
    let hops = config!(reply_ttl) as u8;
    // The two addresses change places, which leaves every sum as it was.
    let turned = if packet.v6 {
        emit::sample_reply(facts, Reason::ReplyEcho);
        let [a, b] = vip;
        let [c, d] = client;
        source.write(packet.network + 7, hops) && source.write(packet.network + 8, [a, b, c, d])
    } else {
        let Some([a, b]) = source.read::<[u16; 2]>(packet.network + 8) else {
            return End::new(Reason::Pass);
        };
        emit::sample_reply(facts, Reason::ReplyEcho);
        let [_, protocol] = a.to_ne_bytes();
        let ttl = u16::from_ne_bytes([hops, protocol]);
        let ([_, from], [_, dest]) = (halves(vip[1]), halves(client[1]));
        source.write(packet.network + 8, [ttl, replaced(b, a, ttl)])
            && source.write(packet.network + 12, [from, dest])
    };
    let written = turned && source.write(packet.transport, answer) && turn_round(&source);
    End::new(if written {
        Reason::ReplyEcho
    } else {
        Reason::Pass
    })
}
