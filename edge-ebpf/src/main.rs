//! The kernel side of Edge: entry points, and the one place where a reason
//! becomes an XDP action.
#![no_std]
#![no_main]
// Inline assembly for BPF is not stable yet; barriers and atomics need it.
#![feature(asm_experimental_arch)]

mod atomic;
mod balance;
mod clock;
#[cfg(feature = "debug-log")]
mod debug_log;
mod defence;
mod emit;
mod hand_over;
mod limiter;
mod maps;
mod options;
mod pipeline;
mod policy;
mod rewrite;
mod source;

use aya_ebpf::{
    bindings::xdp_action, helpers::generated::bpf_redirect, macros::xdp, programs::XdpContext,
};
use edge_common::reason::{Reason, Verdict};

/// The XDP program. Aware of multi-buffer frames, so that jumbo MTUs attach.
#[xdp(frags)]
#[inline(always)] // A call from the entry point costs as much as parsing the packet.
pub fn edge_xdp(ctx: XdpContext) -> u32 {
    action(pipeline::run(&ctx), 0)
}

/// The flood defence, which [`edge_xdp`] goes on with where there is something to ask.
#[xdp(frags)]
#[inline(always)]
pub fn edge_defence(ctx: XdpContext) -> u32 {
    action(defence::run(&ctx), 0)
}

/// The balancer, which the others go on with for packets of its services.
#[xdp(frags)]
#[inline(always)]
pub fn edge_balance(ctx: XdpContext) -> u32 {
    let end = balance::run(&ctx);
    action(end.reason, end.to)
}

/// The balancer's NAT, both ways.
#[xdp(frags)]
#[inline(always)]
pub fn edge_nat(ctx: XdpContext) -> u32 {
    let end = balance::nat::run(&ctx);
    action(end.reason, end.to)
}

/// What the kernel is to do with a packet; `to` is the interface that one goes to which
/// is forwarded, 0 for that which it came from.
#[inline(always)]
fn action(reason: Reason, to: u32) -> u32 {
    match reason.verdict() {
        Verdict::Pass => xdp_action::XDP_PASS,
        Verdict::Drop => xdp_action::XDP_DROP,
        Verdict::Reply => xdp_action::XDP_TX,
        Verdict::Forward if to == 0 => xdp_action::XDP_TX,
        // SAFETY: a helper that only notes the interface; the flags are those that it wants.
        Verdict::Forward => unsafe { bpf_redirect(to, 0) as u32 },
    }
}

/// Sets the clock of [`edge_xdp`]; never attached, only run by the daemon.
#[xdp]
pub fn edge_clock(_ctx: XdpContext) -> u32 {
    clock::set();
    xdp_action::XDP_PASS
}

#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    // The verifier refuses a program in which this could be reached.
    loop {}
}

// SAFETY: where loaders look for the licence; a static of plain bytes, whose name nothing else has.
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";
