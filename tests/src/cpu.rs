//! Which processor a thread runs on.

/// Keeps the calling thread on one processor.
///
/// # Panics
/// When it cannot run there.
pub fn pin_to(cpu: usize) {
    // SAFETY: a zeroed set is an empty one; CPU_SET stays inside it for a small
    // number; the call reads the set, which outlives it.
    let status = unsafe {
        let mut set: libc::cpu_set_t = std::mem::zeroed();
        libc::CPU_SET(cpu, &mut set);
        libc::sched_setaffinity(0, size_of::<libc::cpu_set_t>(), &raw const set)
    };
    assert_eq!(status, 0, "cannot run on CPU {cpu}");
}

/// Keeps the calling thread on the processor that it runs on: what a processor has charged ahead to
/// a limit, another one does not spend.
///
/// # Panics
/// When the kernel does not say which it is.
pub fn stay() {
    // SAFETY: a call without arguments.
    let cpu = unsafe { libc::sched_getcpu() };
    pin_to(usize::try_from(cpu).expect("the number of this CPU"));
}
