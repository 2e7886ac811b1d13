//! The options of a TCP header, walked one by one.

use crate::{emit::Facts, maps::SCRATCH, source::hide};
use aya_ebpf::helpers::generated::{bpf_loop, bpf_xdp_load_bytes};
use core::{ffi::c_void, ptr::null_mut};
use edge_common::defence::options::{MAX_OPTIONS, Walk};

/// Walks `len` bytes of options at an offset, at least one; what was found is in the scratch
/// of this CPU.
#[inline(always)]
pub fn walk(facts: Facts<'_>, at: u32, len: u32) -> Option<&'static Walk> {
    // From 1 to 64, whatever comes in, by arithmetic that every verifier follows.
    let len = (hide(len as u64 - 1) & 0x3f) as u32 + 1;
    if len > MAX_OPTIONS {
        return None;
    }
    let scratch = SCRATCH.get_ptr_mut(0)?;
    // SAFETY: a map value that belongs to this CPU; at most 40 bytes are written, and there
    // are 64; the callback has the type that the helper calls.
    unsafe {
        let walk = &raw mut (*scratch).walk;
        walk.write(Walk::new(len));
        let words = (&raw mut (*walk).words).cast();
        if bpf_xdp_load_bytes(facts.ctx.ctx, at, words, len) != 0 {
            return None;
        }
        bpf_loop(MAX_OPTIONS, step as *mut c_void, null_mut(), 0);
        Some(&*walk)
    }
}

/// Takes one option of the walk in the scratch; 1 ends the loop.
extern "C" fn step(_: u32, _: *mut c_void) -> i64 {
    match SCRATCH.get_ptr_mut(0) {
        // SAFETY: a map value that belongs to this CPU.
        Some(scratch) => (!unsafe { (*scratch).walk.step() }) as i64,
        None => 1,
    }
}
