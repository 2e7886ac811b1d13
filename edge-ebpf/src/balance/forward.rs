//! The way to a backend: in another packet, or with another MAC address.

use super::{End, Packet, flows::Chosen, too_big};
use crate::{
    defence::halves,
    emit::Facts,
    maps::{BACKEND_COUNTERS, config},
    source::XdpSource,
};
use aya_ebpf::helpers::generated::bpf_xdp_adjust_head;
use edge_common::{
    balance::{BackendWord, Forward},
    header::replaced,
    parse::{PacketSource as _, ethertype, proto, tcp as flag},
    reason::Reason,
    tunnel::{self, HOPS, ipv4_outer, ipv6_outer, udp},
};

pub const IPV4_LEN: usize = 20;
pub const IPV6_LEN: usize = 40;
const UDP_LEN: usize = 8;
/// Bytes of both MAC addresses and the type, and of a VLAN tag.
pub const ETHERNET_LEN: usize = 14;
const TAG_LEN: usize = 4;
/// The smallest packet that every way carries, bytes.
pub const LEAST: u32 = 68;
/// In the second word of an IPv4 header: more fragments, and the offset.
const FRAGMENT: u32 = 0x3fff;
/// Likewise: not to be fragmented.
pub const DONT_FRAGMENT: u32 = 0x4000;

/// What is read of the IP header.
#[derive(Clone, Copy)]
pub struct Head {
    /// Bytes of the packet.
    pub len: u32,
    /// DSCP and ECN.
    pub class: u8,
    /// TTL or hop limit.
    pub hops: u8,
    /// Whether it is a fragment.
    pub is_piece: bool,
}

impl Head {
    #[inline(always)]
    pub fn read(source: &XdpSource<'_>, packet: Packet) -> Option<Self> {
        if packet.v6 {
            let [first, second] = source.words::<2>(packet.network)?;
            let second = u32::from_be(second);
            Some(Self {
                len: (second >> 16) + IPV6_LEN as u32,
                class: (u32::from_be(first) >> 20) as u8,
                hops: second as u8,
                is_piece: false,
            })
        } else {
            let [first, second, third] = source.words::<3>(packet.network)?;
            let first = u32::from_be(first);
            Some(Self {
                len: first & 0xffff,
                class: (first >> 16) as u8,
                hops: (u32::from_be(third) >> 24) as u8,
                is_piece: u32::from_be(second) & FRAGMENT != 0,
            })
        }
    }
}

/// Sends a packet to a backend.
#[inline(always)]
pub fn to(facts: Facts<'_>, packet: Packet, chosen: Chosen) -> End {
    let source = XdpSource::new(facts.ctx);
    // SAFETY: a map value; each word is read whole.
    let [macs, rest] = unsafe { (&raw const (*chosen.backend).hop).read_volatile() };
    let out = (rest.to_le() >> 32) as u32;
    if out == 0 {
        return End::new(Reason::BackendNoHop);
    }
    let Some(head) = Head::read(&source, packet) else {
        return End::new(Reason::Pass);
    };
    let outer = outer_len(chosen.word);
    let most = BackendWord::mtu_of(chosen.word).saturating_sub(outer as u32);
    // Less than any way must carry (RFC 791): it was found only this moment.
    if most < LEAST {
        return End::new(Reason::BackendNoHop);
    }
    if head.len > most {
        return too_big::answer(facts, packet, head, most);
    }
    if head.hops <= 1 {
        return End::new(Reason::ForwardTtl);
    }
    if config!(clamp_mss) != 0
        && packet.is_tcp
        && packet.flags & (flag::SYN | flag::ACK) == flag::SYN
    {
        let headers = if packet.v6 { IPV6_LEN } else { IPV4_LEN } + 20;
        clamp(facts, packet, most.saturating_sub(headers as u32) as u16);
    }
    let source = XdpSource::new(facts.ctx);
    if !hop(&source, packet, head) {
        return End::new(Reason::Pass);
    }
    let vlan = BackendWord::vlan_of(chosen.word);
    let link = if vlan == 0 {
        ETHERNET_LEN
    } else {
        ETHERNET_LEN + TAG_LEN
    };
    let delta = packet.network as i32 - (link + outer) as i32;
    // SAFETY: the context is the running program's; packet pointers are made anew below.
    if delta != 0 && unsafe { bpf_xdp_adjust_head(facts.ctx.ctx, delta) } != 0 {
        return End::new(Reason::ForwardNoRoom);
    }
    let frame = XdpSource::new(facts.ctx);
    if !write(&frame, packet, head, chosen, vlan, [macs, rest]) {
        return End::new(Reason::ForwardNoRoom);
    }
    count(facts, chosen.number);
    // SAFETY: the context is the running program's.
    let came_from = unsafe { (*facts.ctx.ctx).ingress_ifindex };
    End {
        reason: Reason::Forwarded,
        to: if out == came_from { 0 } else { out },
    }
}

/// Bytes of the headers that go before a packet.
#[inline(always)]
fn outer_len(backend: u64) -> usize {
    if BackendWord::is(backend, Forward::L2) {
        return 0;
    }
    let ip = if BackendWord::is_v6(backend) {
        IPV6_LEN
    } else {
        IPV4_LEN
    };
    if BackendWord::is(backend, Forward::Gue) {
        ip + UDP_LEN
    } else {
        ip
    }
}

/// Takes one hop off the packet.
#[inline(always)]
fn hop(source: &XdpSource<'_>, packet: Packet, head: Head) -> bool {
    if packet.v6 {
        return source.write(packet.network + 7, head.hops - 1);
    }
    let Some([a, b]) = source.read::<[u16; 2]>(packet.network + 8) else {
        return false;
    };
    let less = (u16::from_be(a) - 0x100).to_be();
    source.write(packet.network + 8, [less, replaced(b, a, less)])
}

/// Writes everything that stands before the packet.
#[inline(always)]
fn write(
    frame: &XdpSource<'_>,
    packet: Packet,
    head: Head,
    chosen: Chosen,
    vlan: u16,
    [macs, rest]: [u64; 2],
) -> bool {
    let inner = if packet.v6 {
        ethertype::IPV6
    } else {
        ethertype::IPV4
    };
    let is_l2 = BackendWord::is(chosen.word, Forward::L2);
    let v6 = BackendWord::is_v6(chosen.word);
    let kind = if is_l2 {
        inner
    } else if v6 {
        ethertype::IPV6
    } else {
        ethertype::IPV4
    };
    let linked = frame.write(0, macs)
        && frame.write(8, rest.to_le() as u32)
        && if vlan == 0 {
            frame.write(12, kind)
        } else {
            frame.write(12, [ethertype::VLAN, vlan.to_be()]) && frame.write(16, kind)
        };
    if !linked || is_l2 {
        return linked;
    }
    let at = if vlan == 0 {
        ETHERNET_LEN
    } else {
        ETHERNET_LEN + TAG_LEN
    };
    let is_gue = BackendWord::is(chosen.word, Forward::Gue);
    let (next, len) = if is_gue {
        (proto::UDP, head.len + UDP_LEN as u32)
    } else if packet.v6 {
        (proto::IPV6, head.len)
    } else {
        (proto::IPV4, head.len)
    };
    // SAFETY: a map value; each word is read whole, and a change may be met half way, as
    // with the next hop.
    let (from, dest, spread) = unsafe {
        (
            (&raw const (*chosen.backend).source).read_volatile(),
            (&raw const (*chosen.backend).address).read_volatile(),
            (&raw const (*chosen.backend).spread).read_volatile(),
        )
    };
    // RFC 6040: ECN and DSCP of the packet go outside as well. The flow label spreads
    // flows over paths (RFC 6438).
    let label = tunnel::flow_label(chosen.hash);
    let outer = if v6 {
        let outer = ipv6_outer(from, dest, next, len as u16, HOPS, head.class, label);
        frame.write(at, outer)
    } else {
        let [_, from] = halves(from[1]);
        let [_, dest] = halves(dest[1]);
        // The same in IPv4, which has no label.
        let from = from | tunnel::spread(chosen.hash, spread);
        let len = (len + IPV4_LEN as u32) as u16;
        frame.write(at, ipv4_outer(from, dest, next, len, HOPS, head.class))
    };
    if !outer || !is_gue {
        return outer;
    }
    let at = at + if v6 { IPV6_LEN } else { IPV4_LEN };
    let port = tunnel::gue_source_port(chosen.hash);
    frame.write(
        at,
        udp(
            port,
            config!(gue_port) as u16,
            (head.len + UDP_LEN as u32) as u16,
        ),
    )
}

#[inline(always)]
pub fn count(facts: Facts<'_>, number: u32) {
    if let Some(counter) = BACKEND_COUNTERS.get_ptr_mut(number) {
        // SAFETY: the element belongs to this CPU.
        unsafe {
            (*counter).packets += 1;
            (*counter).bytes += facts.frame_len as u64;
        }
    }
}

/// Makes the segment size that a SYN announces at most `most`: what the backend answers
/// then fits into whatever is as narrow as the tunnel on its way back. What the client
/// sends is limited by the backend's own answer, which does not come by here.
#[inline(always)]
pub fn clamp(facts: Facts<'_>, packet: Packet, most: u16) {
    let source = XdpSource::new(facts.ctx);
    let Some([control, _, first]) = source.words::<3>(packet.transport + 12) else {
        // No options, no size: the default is smaller than any that would not fit.
        return;
    };
    let options = (u32::from_be(control) >> 26 & 0x3c).wrapping_sub(20) & 0x3f;
    if options == 0 {
        return;
    }
    // Where nearly every stack puts it.
    if u32::from_be(first) >> 16 == 0x0204 {
        put_mss(&source, packet, 22, most);
        return;
    }
    let Some(walk) = crate::options::walk(facts, packet.transport as u32 + 20, options) else {
        return;
    };
    let at = walk.mss_at as usize & 0x3f;
    if at != 0 {
        put_mss(&source, packet, 20 + at, most);
    }
}

/// Writes a size at an offset of the TCP header if the one there is larger.
#[inline(always)]
fn put_mss(source: &XdpSource<'_>, packet: Packet, at: usize, most: u16) {
    let at_check = packet.transport + 16;
    let Some(check) = source.half(at_check) else {
        return;
    };
    let Some(old) = source.half(packet.transport + at) else {
        return;
    };
    if u16::from_be(old) <= most {
        return;
    }
    let new = most.to_be();
    // At an odd offset both bytes are of other words of the sum.
    let check = if at & 1 == 0 {
        replaced(check, old, new)
    } else {
        replaced(check, old.swap_bytes(), new.swap_bytes())
    };
    if source.write(packet.transport + at, new) {
        source.write(at_check, check);
    }
}
