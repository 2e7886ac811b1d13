//! The atomic operation that `core::sync::atomic` does not give on this target.

use core::arch::asm;

/// Stores `new` where `old` is, and returns what was there.
///
/// # Safety
/// `at` must be valid for reads and writes of 8 bytes and 8-byte aligned, and
/// every concurrent writer must be atomic.
#[inline(always)]
pub unsafe fn compare_exchange(at: *mut u64, old: u64, new: u64) -> u64 {
    let found: u64;
    // SAFETY: the caller vouches for the pointer; the instruction
    // (BPF_ATOMIC | BPF_CMPXCHG, cpu v3) compares with and returns in r0.
    unsafe {
        asm!(
            "r0 = cmpxchg_64({at} + 0, r0, {new})",
            at = in(reg) at,
            new = in(reg) new,
            inout("r0") old => found,
            options(nostack),
        );
    }
    found
}
