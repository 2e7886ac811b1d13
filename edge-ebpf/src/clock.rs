//! The program's clock: ticks of the kernel, which the verifier turns into a
//! plain load, on the scale of `CLOCK_MONOTONIC`.

use crate::maps::{CLOCK, config};
use aya_ebpf::helpers::generated::{bpf_jiffies64, bpf_ktime_get_coarse_ns};

/// `CLOCK_MONOTONIC` as of the last tick, nanoseconds.
#[inline(always)]
pub fn now() -> u64 {
    // SAFETY: a map value; read whole while `set` may write it.
    let offset = CLOCK
        .get_ptr(0)
        .map_or(0, |offset| unsafe { offset.read_volatile() });
    ticks().wrapping_add(offset)
}

/// Finds the offset of the tick counter from `CLOCK_MONOTONIC`.
#[inline(always)]
pub fn set() {
    if let Some(offset) = CLOCK.get_ptr_mut(0) {
        // SAFETY: a helper without arguments; a map value, written whole.
        unsafe { offset.write_volatile(bpf_ktime_get_coarse_ns().wrapping_sub(ticks())) };
    }
}

#[inline(always)]
fn ticks() -> u64 {
    // SAFETY: a helper without arguments.
    unsafe { bpf_jiffies64() }.wrapping_mul(config!(tick_ns))
}
