//! The kernel side of Edge: entry points, and the one place where a reason
//! becomes an XDP action.
#![no_std]
#![no_main]
// Inline assembly for BPF is not stable yet; barriers and atomics need it.
#![feature(asm_experimental_arch)]

mod atomic;
mod clock;
#[cfg(feature = "debug-log")]
mod debug_log;
mod defence;
mod emit;
mod limiter;
mod maps;
mod pipeline;
mod policy;
mod rewrite;
mod source;

use aya_ebpf::{bindings::xdp_action, macros::xdp, programs::XdpContext};
use edge_common::reason::{Reason, Verdict};

/// The XDP program. Aware of multi-buffer frames, so that jumbo MTUs attach.
#[xdp(frags)]
#[inline(always)] // A call from the entry point costs as much as parsing the packet.
pub fn edge_xdp(ctx: XdpContext) -> u32 {
    action(pipeline::run(&ctx))
}

/// The flood defence, which [`edge_xdp`] goes on with where there is something to ask.
#[xdp(frags)]
pub fn edge_defence(ctx: XdpContext) -> u32 {
    action(defence::run(&ctx))
}

#[inline(always)]
fn action(reason: Reason) -> u32 {
    match reason.verdict() {
        Verdict::Pass => xdp_action::XDP_PASS,
        Verdict::Drop => xdp_action::XDP_DROP,
        Verdict::Reply => xdp_action::XDP_TX,
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

#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";
