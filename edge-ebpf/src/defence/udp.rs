//! UDP packets for services, from ports of reflectors.

use super::{end, frame::Addresses, pressure::Of};
use crate::{
    emit::Facts,
    hand_over::Marks,
    maps::{SERVICES, TARGETS, config},
    source::XdpSource,
};
use aya_ebpf::{bindings::xdp_md, programs::XdpContext};
use edge_common::{
    abi::Mode,
    defence::{ServiceCounter, TargetKey},
    parse::proto,
    reason::Reason,
};

/// Judges such a packet, as [`super::icmp::edge_defend_icmp`] does messages.
#[inline(never)]
// SAFETY: no other symbol of the object has this name.
#[unsafe(no_mangle)]
pub extern "C" fn edge_defend_udp(ctx: *mut xdp_md, now: u64, marks: u64, frame_len: u32) -> u32 {
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
    let Some(addresses) = Addresses::read(&source, marks) else {
        return Reason::Pass;
    };
    let key = TargetKey {
        address: addresses.dest,
        port: ((marks >> Marks::PORT) as u16).to_be(),
        proto: proto::UDP,
        pad: [0; 5],
    };
    let Some(target) = TARGETS.get_ptr_mut(key) else {
        return Reason::Pass;
    };
    // SAFETY: a map value; the daemon replaces entries as a whole.
    let index = unsafe { (*target).service };
    let Some(service) = SERVICES.get_ptr_mut(index) else {
        return Reason::Pass;
    };
    let of = Of {
        service,
        index,
        now: facts.now,
    };
    if of.may_reflect() {
        return Reason::Pass;
    }
    of.count(ServiceCounter::Reflected);
    if of.is_dry_run() {
        return end(facts, Mode::DryRun as u32, Reason::UdpReflection);
    }
    end(facts, config!(reflection), Reason::UdpReflection)
}
