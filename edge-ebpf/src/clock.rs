//! The program's clock: ticks of the kernel, which the verifier turns into a
//! plain load, on the scale of `CLOCK_MONOTONIC`.

use crate::maps::{CLOCK, config};
use aya_ebpf::helpers::generated::{bpf_jiffies64, bpf_ktime_get_coarse_ns};

/// `CLOCK_MONOTONIC` as of the last tick, nanoseconds.
#[inline(always)]
pub fn now() -> u64 {
    ticks().wrapping_add(CLOCK.get())
}

/// Finds the offset of the tick counter from `CLOCK_MONOTONIC`.
#[inline(always)]
pub fn set() {
    // SAFETY: a helper without arguments.
    let now = unsafe { bpf_ktime_get_coarse_ns() };
    CLOCK.set(now.wrapping_sub(ticks()));
}

#[inline(always)]
fn ticks() -> u64 {
    // SAFETY: a helper without arguments.
    unsafe { bpf_jiffies64() }.wrapping_mul(config!(tick_ns))
}
