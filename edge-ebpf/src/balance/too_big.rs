//! Packets that do not fit on the way to their backend: the sender is told what does
//! (RFC 1191, RFC 8201).

use super::{End, Packet, forward::Head, may_send};
use crate::{
    defence::{frame::Addresses, halves},
    emit::{self, Facts},
    maps::config,
    rewrite::turn_round,
    source::XdpSource,
};
use aya_ebpf::helpers::generated::{bpf_xdp_adjust_tail, bpf_xdp_get_buff_len};
use edge_common::{
    balance::QUOTED,
    defence::DefenceWord,
    header::{Sum, with_low_half},
    parse::{PacketSource as _, proto},
    reason::Reason,
    tunnel::{ipv4_outer, ipv6_outer},
};

const ICMP_LEN: usize = 8;
/// Type 3, code 4; type 2 (RFC 4443, 3.2).
const V4_TOO_BIG: u32 = 0x0304_0000;
const V6_TOO_BIG: u32 = 0x0200_0000;

/// Answers a packet of which at most `most` bytes fit.
#[inline(always)]
pub fn answer(facts: Facts<'_>, packet: Packet, head: Head, most: u32) -> End {
    let source = XdpSource::new(facts.ctx);
    // What a router may fragment is answered as well: there is nobody here to fragment it, and
    // most senders take the hint. Not so a fragment, whose sender has cut it already.
    if packet.is_error || head.is_piece || !may_send(DefenceWord::TooBig, facts.now) {
        return End::new(Reason::ForwardTooBig);
    }
    let (Some(addresses), Some(quoted)) = (
        Addresses::read_at(&source, packet.v6, packet.network),
        source.words::<{ QUOTED / 4 }>(packet.network),
    ) else {
        return End::new(Reason::ForwardTooBig);
    };
    let kind = if packet.v6 { V6_TOO_BIG } else { V4_TOO_BIG }.to_be();
    let len = (ICMP_LEN + QUOTED) as u32;
    let (from, dest) = (addresses.dest, addresses.source);
    let mut sum = Sum::default().word(kind).word(most.to_be());
    if packet.v6 {
        sum = sum.plus(Sum::pseudo(from, dest, len, proto::ICMPV6));
    }
    let mut i = 0;
    while i < QUOTED / 4 {
        sum = sum.word(quoted[i]);
        i += 1;
    }
    let first = with_low_half(kind, sum.checksum());
    let ip_len = if packet.v6 { 40 } else { 20 };
    let new_len = (packet.network + ip_len) as u32 + len;
    emit::sample_reply(facts, Reason::ReplyTooBig);
    // SAFETY: helpers on the running program's context; packet pointers are made anew.
    let shortened = unsafe {
        let delta = new_len as i32 - bpf_xdp_get_buff_len(facts.ctx.ctx) as i32;
        bpf_xdp_adjust_tail(facts.ctx.ctx, delta) == 0
    };
    if !shortened {
        return End::new(Reason::ForwardTooBig);
    }
    let out = XdpSource::new(facts.ctx);
    let hops = config!(reply_ttl) as u8;
    let written = turn_round(&out)
        && if packet.v6 {
            let ip = ipv6_outer(from, dest, proto::ICMPV6, len as u16, hops, 0, 0);
            out.write(packet.network, ip)
        } else {
            let ([_, from], [_, dest]) = (halves(from[1]), halves(dest[1]));
            let ip = ipv4_outer(from, dest, proto::ICMP, (len + 20) as u16, hops, 0);
            out.write(packet.network, ip)
        }
        && out.write(packet.network + ip_len, [first, most.to_be()])
        && out.write(packet.network + ip_len + ICMP_LEN, quoted);
    End::new(if written {
        Reason::ReplyTooBig
    } else {
        Reason::ForwardTooBig
    })
}
