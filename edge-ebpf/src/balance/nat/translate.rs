//! A packet gets other addresses and ports, and other headers where the families differ
//! (RFC 7915).

use super::{Translation, work};
use crate::{
    balance::{
        End, Packet,
        forward::{self, DONT_FRAGMENT, ETHERNET_LEN, Head, IPV4_LEN, IPV6_LEN, LEAST},
        too_big,
    },
    defence::{frame::Addresses, halves},
    emit::Facts,
    hand_over::Marks,
    maps::{SCRATCH, config},
    source::{XdpSource, hide},
};
use aya_ebpf::{
    bindings::xdp_md,
    helpers::generated::{bpf_xdp_adjust_head, bpf_xdp_load_bytes},
};
use edge_common::{
    header::Sum,
    nat::Tags,
    parse::{PacketSource as _, ethertype, proto, tcp as flag},
    reason::Reason,
    tunnel::{ipv4_outer, ipv6_outer},
};

/// Bytes that are summed at a time.
pub const CHUNK: usize = 64;
/// The longest UDP packet that is given a checksum.
const MOST_SUMMED: u32 = 1536;
const CHUNKS: u32 = MOST_SUMMED / CHUNK as u32;
/// What [`edge_nat_sum`] says when it could not read the packet.
const UNREAD: u64 = 1 << 32;
/// Longer packets are not to be fragmented behind a translator (RFC 7915, 5.1).
const FRAGMENTABLE: u32 = 1260;

/// Sends a packet of a protocol as the work says; 0: an ICMP error, which is done but for
/// its addresses.
#[inline(always)]
pub fn send(facts: Facts<'_>, packet: Packet, work: *const Translation, proto: u8) -> End {
    let source = XdpSource::new(facts.ctx);
    let Some(head) = Head::read(&source, packet) else {
        return End::new(Reason::Pass);
    };
    let v6 = work!(work, v6) != 0;
    let ip_len = packet.transport.wrapping_sub(packet.network) & Marks::FAR as usize;
    let new_len = if v6 == packet.v6 {
        ip_len
    } else if v6 {
        IPV6_LEN
    } else {
        IPV4_LEN
    };
    // The way was found only this moment.
    if work!(work, mtu) < LEAST {
        return End::new(Reason::BackendNoHop);
    }
    let most = (work!(work, mtu) + ip_len as u32).saturating_sub(new_len as u32);
    if head.len > most {
        return too_big::answer(facts, packet, head, most);
    }
    if head.hops <= 1 {
        return End::new(Reason::ForwardTtl);
    }
    if config!(clamp_mss) != 0 && proto == proto::TCP && packet.flags & flag::SYN != 0 {
        // Of both ways and families the least.
        let headers = if v6 || packet.v6 { IPV6_LEN } else { IPV4_LEN } as u32 + 20;
        let (mtu, mtu_back) = (work!(work, mtu), work!(work, mtu_back));
        let mtu = if mtu < mtu_back { mtu } else { mtu_back };
        if mtu >= LEAST {
            forward::clamp(facts, packet, mtu.saturating_sub(headers) as u16);
        }
    }
    let mut check = 0;
    if proto != 0 {
        let Some(old) = checksum(facts, packet, v6, proto) else {
            return End::new(Reason::NatChecksum);
        };
        let source = XdpSource::new(facts.ctx);
        let ports = work!(work, ports);
        let Some([were]) = source.words::<1>(packet.transport) else {
            return End::new(Reason::Pass);
        };
        let change = Sum::default().replace(were, ports).word(work!(work, diff));
        check = if proto == proto::TCP {
            change.amend(old)
        } else if old == 0 {
            0
        } else {
            match change.amend(old) {
                // Zero says that there is none (RFC 768).
                0 => u16::MAX,
                check => check,
            }
        };
        if !source.write(packet.transport, ports)
            || !source.write(packet.transport + at_check(proto), check)
        {
            return End::new(Reason::Pass);
        }
    }
    let (link, tags) = (work!(work, link), work!(work, tags));
    let (from, dest) = (work!(work, source), work!(work, dest));
    let source = XdpSource::new(facts.ctx);
    let is_same = v6 == packet.v6;
    if is_same && !readdress(&source, packet, head, from, dest, work!(work, diff)) {
        return End::new(Reason::Pass);
    }
    let link_len = ETHERNET_LEN + Tags::len(tags);
    let delta = packet.transport as i32 - (new_len + link_len) as i32;
    // SAFETY: the context is the running program's; packet pointers are made anew below.
    if delta != 0 && unsafe { bpf_xdp_adjust_head(facts.ctx.ctx, delta) } != 0 {
        return End::new(Reason::ForwardNoRoom);
    }
    let frame = XdpSource::new(facts.ctx);
    let written = (is_same || {
        let rest = head.len.wrapping_sub(ip_len as u32);
        let (hops, class) = (head.hops - 1, head.class);
        if v6 {
            let ip = ipv6_outer(from, dest, proto, rest as u16, hops, class, 0);
            frame.write(link_len, ip)
        } else {
            let ([_, from], [_, dest]) = (halves(from[1]), halves(dest[1]));
            let len = rest + IPV4_LEN as u32;
            let mut ip = ipv4_outer(from, dest, proto, len as u16, hops, class);
            if len <= FRAGMENTABLE {
                // Told apart by a number as good as by chance, another one for each packet.
                let id = (check as u32).to_le();
                let [a, b, c, d] = ip[2].to_ne_bytes();
                let sum = Sum::default().replace(DONT_FRAGMENT.to_be(), id);
                let [c, d] = sum.amend(u16::from_ne_bytes([c, d])).to_ne_bytes();
                ip[1] = id;
                ip[2] = u32::from_ne_bytes([a, b, c, d]);
            }
            frame.write(link_len, ip)
        }
    }) && write_link(&frame, link, tags, v6);
    if !written {
        return End::new(Reason::ForwardNoRoom);
    }
    let out = (link[1].to_le() >> 32) as u32;
    // SAFETY: the context is the running program's.
    let came_from = unsafe { (*facts.ctx.ctx).ingress_ifindex };
    End {
        reason: Reason::Forwarded,
        to: if out == came_from { 0 } else { out },
    }
}

/// Offset of the checksum in a header of a protocol.
#[inline(always)]
const fn at_check(proto: u8) -> usize {
    if proto == proto::TCP { 16 } else { 6 }
}

/// The checksum of the packet. UDP may do without in IPv4 (0), but not where it goes on in
/// IPv6: there it gets one, unless it is too long.
#[inline(always)]
fn checksum(facts: Facts<'_>, packet: Packet, v6: bool, proto: u8) -> Option<u16> {
    let source = XdpSource::new(facts.ctx);
    let check = source.half(packet.transport + at_check(proto))?;
    if proto == proto::TCP || check != 0 || packet.v6 || !v6 {
        return Some(check);
    }
    let addresses = Addresses::read_at(&source, false, packet.network)?;
    let len = u16::from_be(source.half(packet.transport + 4)?) as u32;
    let sum = edge_nat_sum(facts.ctx.ctx, packet.transport as u32, len);
    if sum >= UNREAD {
        return None;
    }
    let pseudo = Sum::pseudo(addresses.source, addresses.dest, len, proto::UDP);
    match pseudo.word(sum as u32).checksum() {
        0 => Some(u16::MAX),
        check => Some(check),
    }
}

/// The sum of so many bytes at an offset, folded; [`UNREAD`] when they are too many. Rare:
/// a function of its own.
#[inline(never)]
// SAFETY: no other symbol of the object has this name.
#[unsafe(no_mangle)]
extern "C" fn edge_nat_sum(ctx: *mut xdp_md, at: u32, len: u32) -> u64 {
    let Some(scratch) = SCRATCH.get_ptr_mut(0) else {
        return UNREAD;
    };
    if len == 0 || len > MOST_SUMMED {
        return UNREAD;
    }
    // SAFETY: a map value that belongs to this CPU.
    let bytes = unsafe { (&raw mut (*scratch).nat.bytes).cast::<u32>() };
    let mut sum = Sum::default();
    let mut i = 0;
    while i < CHUNKS {
        let done = i * CHUNK as u32;
        if done >= len {
            break;
        }
        let left = len - done;
        let wanted = if left < CHUNK as u32 {
            left
        } else {
            CHUNK as u32
        };
        // From 1 to CHUNK, whatever comes in, by arithmetic that every verifier follows.
        let wanted = (hide(wanted as u64 - 1) & (CHUNK as u64 - 1)) as u32 + 1;
        let mut k = 0;
        // SAFETY: the buffer has CHUNK bytes.
        unsafe {
            while k < CHUNK / 4 {
                bytes.add(k).write_volatile(0);
                k += 1;
            }
            if bpf_xdp_load_bytes(ctx, at + done, bytes.cast(), wanted) != 0 {
                return UNREAD;
            }
            k = 0;
            while k < CHUNK / 4 {
                sum = sum.word(bytes.add(k).read_volatile());
                k += 1;
            }
        }
        i += 1;
    }
    sum.fold() as u64
}

/// Other addresses of the same family, and one hop less. Options and extension headers stay.
#[inline(always)]
fn readdress(
    source: &XdpSource<'_>,
    packet: Packet,
    head: Head,
    from: [u64; 2],
    dest: [u64; 2],
    diff: u32,
) -> bool {
    if packet.v6 {
        return source.write(packet.network + 7, head.hops - 1)
            && source.write(packet.network + 8, [from[0], from[1], dest[0], dest[1]]);
    }
    let Some([a, check]) = source.read::<[u16; 2]>(packet.network + 8) else {
        return false;
    };
    let less = (u16::from_be(a) - 0x100).to_be();
    let change = Sum::default().replace(a as u32, less as u32).word(diff);
    let ([_, from], [_, dest]) = (halves(from[1]), halves(dest[1]));
    let [a, b] = less.to_ne_bytes();
    let [c, d] = change.amend(check).to_ne_bytes();
    let third = u32::from_ne_bytes([a, b, c, d]);
    source.write(packet.network + 8, [third, from, dest])
}

/// Writes the link layer.
#[inline(always)]
fn write_link(frame: &XdpSource<'_>, link: [u64; 2], tags: u32, v6: bool) -> bool {
    let kind = if v6 { ethertype::IPV6 } else { ethertype::IPV4 };
    if !frame.write(0, link[0]) || !frame.write(8, link[1].to_le() as u32) {
        return false;
    }
    match Tags::len(tags) {
        0 => frame.write(12, kind),
        4 => frame.write(12, Tags::outer(tags)) && frame.write(16, kind),
        _ => {
            frame.write(12, Tags::outer(tags))
                && frame.write(16, Tags::inner(tags))
                && frame.write(20, kind)
        }
    }
}
