//! ICMP and ICMPv6, of which the host takes so many of each kind.

use super::{
    end,
    frame::Addresses,
    socket::{self, Found},
};
use crate::{
    atomic::compare_exchange,
    emit::Facts,
    hand_over::Marks,
    maps::{DEFENCE, SCRATCH, config},
    source::XdpSource,
};
use aya_ebpf::{bindings::xdp_md, programs::XdpContext};
use edge_common::{
    defence::{DefenceWord, IcmpKind},
    gcra::{Limit, ticks},
    parse::{PacketSource as _, proto},
    reason::Reason,
};

/// Bytes of an error before the packet that it is about.
const ERROR_LEN: usize = 8;

/// Judges a message; the index of the reason that it ends with, or 0 ([`Reason::Pass`])
/// to let it go on. `marks` as [`Marks`]. A function that the verifier checks once.
#[inline(never)]
// SAFETY: no other symbol of the object has this name.
#[unsafe(no_mangle)]
pub extern "C" fn edge_defend_icmp(ctx: *mut xdp_md, now: u64, marks: u64, frame_len: u32) -> u32 {
    let context = XdpContext::new(ctx);
    let facts = Facts {
        ctx: &context,
        now,
        frame_len,
    };
    judge(facts, marks).index()
}

#[inline(always)]
fn judge(facts: Facts<'_>, marks: u64) -> Reason {
    let source = XdpSource::new(facts.ctx);
    let v6 = marks >> Marks::V6 & 1 != 0;
    let transport = (marks >> Marks::TRANSPORT & Marks::FAR) as usize;
    let Some(message) = source.byte(transport) else {
        return Reason::Pass;
    };
    let Some(kind) = IcmpKind::of(v6, message) else {
        return Reason::Pass;
    };
    let admitted = match kind {
        IcmpKind::Echo => admit(config!(icmp[0]), 0, facts.now),
        IcmpKind::Error => admit(config!(icmp[1]), 1, facts.now),
        IcmpKind::Other => admit(config!(icmp[2]), 2, facts.now),
    };
    if admitted {
        return Reason::Pass;
    }
    if kind == IcmpKind::Error
        && let Some(addresses) = Addresses::read(&source, marks)
        && is_of_live_flow(facts, v6, addresses.dest, transport + ERROR_LEN)
    {
        return Reason::Pass;
    }
    end(facts, config!(icmp_floods), Reason::FloodIcmp)
}

#[inline(always)]
fn admit(limit: Limit, at: u32, now: u64) -> bool {
    let Some(word) = DEFENCE.get_ptr_mut(DefenceWord::Icmp as u32 + at) else {
        return true;
    };
    // SAFETY: a map value, 8 bytes aligned, only written this way. Whoever loses
    // the race is not counted: others are, in plenty.
    unsafe {
        let tat = word.read_volatile();
        let Some(new) = limit.admit(tat, ticks(now), 1) else {
            return false;
        };
        compare_exchange(word, tat, new);
    }
    true
}

/// Whether the packet at `inner`, which an error is about, is of a connection or
/// socket of this host.
#[inline(always)]
fn is_of_live_flow(facts: Facts<'_>, v6: bool, to: [u64; 2], inner: usize) -> bool {
    let source = XdpSource::new(facts.ctx);
    let Some(scratch) = SCRATCH.get_ptr_mut(0) else {
        return false;
    };
    let Some(sent) = Addresses::read_at(&source, v6, inner) else {
        return false;
    };
    // Extension headers of what this host sent are not followed: it sends none.
    let (proto, header) = if v6 {
        (source.byte(inner + 6), 40)
    } else {
        let length = source.byte(inner).map_or(0, |b| (b & 0xf) as usize * 4);
        (source.byte(inner + 9), length)
    };
    let Some([ports]) = source.words::<1>(inner + header) else {
        return false;
    };
    let (remote, local) = (sent.dest, sent.source);
    // An error goes to who sent the packet that it is about.
    if local != to {
        return false;
    }
    // What came in from there would have the ports the other way round.
    let ports = ports.rotate_left(16);
    match proto {
        Some(proto::TCP) => {
            socket::find_tcp(facts.ctx.ctx, scratch, v6, remote, local, ports, false).0
                == Found::Connection
        }
        Some(proto::UDP) => socket::is_udp(facts.ctx.ctx, scratch, v6, remote, local, ports),
        _ => false,
    }
}
