//! Counters and sampled events: what userspace sees of a packet.

use crate::{
    atomic::compare_exchange,
    maps::{self, COUNTERS, EVENTS, SAMPLE_BUDGET, config},
    source::hide,
};
use aya_ebpf::{bindings::xdp_md, helpers::generated::bpf_xdp_load_bytes, programs::XdpContext};
use edge_common::{
    abi::{Event, SAMPLE_BYTES, TableStat, counter_index},
    gcra::{TICKS_PER_NS, ticks},
    reason::{Reason, Verdict},
};

/// What there is to tell of a packet, whatever becomes of it.
#[derive(Clone, Copy)]
pub struct Facts<'a> {
    pub ctx: &'a XdpContext,
    /// Coarse monotonic clock, nanoseconds.
    pub now: u64,
    /// Bytes of the frame.
    pub frame_len: u32,
}

/// Records how a packet ended.
#[inline(always)]
pub fn ended(facts: Facts<'_>, reason: Reason) {
    record(facts, reason, false);
}

/// Records that a dry run would have dropped the packet.
#[inline(always)]
pub fn would_drop(facts: Facts<'_>, reason: Reason) {
    record(facts, reason, true);
}

#[inline(always)]
fn record(facts: Facts<'_>, reason: Reason, would_drop: bool) {
    let index = counter_index(config!(interface), would_drop, reason);
    let Some(cell) = COUNTERS.get_ptr_mut(index) else {
        return;
    };
    // SAFETY: the element belongs to this CPU, and XDP programs of one CPU run
    // one after the other.
    let cell = unsafe { &mut *cell };
    cell.counter.packets += 1;
    cell.counter.bytes += facts.frame_len as u64;
    // What was answered has been sampled as it came: see `sample_reply`.
    if !would_drop && reason.verdict() != Verdict::Drop {
        return;
    }
    #[cfg(feature = "debug-log")]
    crate::debug_log::found(facts, reason, would_drop);
    if config!(sample).is_some() && facts.now >= cell.quiet_until {
        cell.quiet_until = sample(facts, reason, would_drop);
    }
}

/// Samples a packet that is about to be made into a reply.
#[inline(always)]
pub fn sample_reply(facts: Facts<'_>, reason: Reason) {
    let Some(cell) = COUNTERS.get_ptr_mut(counter_index(config!(interface), false, reason)) else {
        return;
    };
    // SAFETY: as in `record`.
    let cell = unsafe { &mut *cell };
    if config!(sample).is_some() && facts.now >= cell.quiet_until {
        cell.quiet_until = sample(facts, reason, false);
    }
}

/// Samples the packet if the reason's budget allows. Returns when it will
/// allow the next one, in nanoseconds of the clock.
#[inline(always)]
fn sample(facts: Facts<'_>, reason: Reason, would_drop: bool) -> u64 {
    let limit = config!(sample);
    let Some(budget) = SAMPLE_BUDGET.get_ptr_mut(reason.index()) else {
        return 0;
    };
    // SAFETY: a map value; concurrent writers go through compare_exchange only.
    let tat = unsafe { budget.read_volatile() };
    let Some(new) = limit.admit(tat, ticks(facts.now), 1) else {
        return limit.opens_at(tat) / TICKS_PER_NS;
    };
    // Losing the race means that another CPU took this sample's place.
    // SAFETY: as above, 8 bytes aligned.
    if unsafe { compare_exchange(budget, tat, new) } == tat {
        let which = reason.index() << 1 | would_drop as u32;
        edge_sample(facts.ctx.ctx, facts.now, facts.frame_len, which);
    }
    limit.opens_at(new) / TICKS_PER_NS
}

/// Copies the head of the packet to the ring buffer. It is rare; a global
/// function, which the verifier checks once and not again at every check that
/// may sample.
#[inline(never)]
// SAFETY: no other symbol of the object has this name.
#[unsafe(no_mangle)]
extern "C" fn edge_sample(
    ctx: *mut xdp_md,
    now: u64,
    frame_len: u32,
    reason_and_would: u32,
) -> u32 {
    let Some(mut entry) = EVENTS.reserve::<Event>(0) else {
        maps::count(TableStat::EventsLost);
        return 0;
    };
    // From 1 to SAMPLE_BYTES whatever comes in, by arithmetic: kernels before 6.8
    // learn nothing about the lower bound from a comparison with 0. No frame is empty.
    const { assert!(SAMPLE_BYTES.is_power_of_two()) };
    let wanted = frame_len.min(SAMPLE_BYTES as u32);
    let captured = (hide((wanted as u64).wrapping_sub(1)) & (SAMPLE_BYTES as u64 - 1)) as u32 + 1;
    let event = entry.as_mut_ptr();
    // SAFETY: the reservation has the size and (8-byte) alignment of an Event;
    // every field and every byte of `data` is written before it is submitted;
    // callers pass the context of the running program.
    unsafe {
        (&raw mut (*event).time_ns).write(now);
        (&raw mut (*event).ifindex).write((*ctx).ingress_ifindex);
        (&raw mut (*event).frame_len).write(frame_len);
        (&raw mut (*event).reason).write((reason_and_would >> 1) as u16);
        (&raw mut (*event).would_drop).write((reason_and_would & 1) as u16);
        (&raw mut (*event).captured).write(captured);
        (&raw mut (*event).data)
            .cast::<[u64; SAMPLE_BYTES / 8]>()
            .write([0; SAMPLE_BYTES / 8]);
    }
    // SAFETY: at most SAMPLE_BYTES are written into `data`.
    if unsafe { bpf_xdp_load_bytes(ctx, 0, (&raw mut (*event).data).cast(), captured) } != 0 {
        maps::count(TableStat::EventsLost);
        entry.discard(0);
        return 0;
    }
    entry.submit(0);
    1
}
