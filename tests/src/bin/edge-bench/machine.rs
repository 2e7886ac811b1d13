//! What the figures depend on besides the program.

use std::{fs, hint::black_box, io::Error, time::Instant};

use anyhow::{Result, ensure};
use serde_json::{Map, Value, json};

/// Facts about the machine.
pub(crate) fn facts() -> Value {
    let cpuinfo = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let cpu = cpuinfo
        .lines()
        .find_map(|l| l.strip_prefix("model name")?.split_once(": "))
        .map_or("unknown", |(_, name)| name);
    let processors = cpuinfo
        .lines()
        .filter(|l| l.starts_with("processor"))
        .count();
    json!({
        "cpu": cpu,
        "processors": processors,
        "kernel": read("/proc/sys/kernel/osrelease"),
        "bpf_jit": read("/proc/sys/net/core/bpf_jit_enable"),
        "load": read("/proc/loadavg"),
        "dependent_read_from_8_MiB_ns": read_latency(),
        "mitigations": mitigations(),
    })
}

/// What the kernel does against faults of the processor: it prices calls and returns.
fn mitigations() -> Value {
    let mut found = Map::new();
    if let Ok(entries) = fs::read_dir("/sys/devices/system/cpu/vulnerabilities") {
        for entry in entries.flatten() {
            let Ok(text) = fs::read_to_string(entry.path()) else {
                continue;
            };
            if text.trim() != "Not affected" {
                let name = entry.file_name().to_string_lossy().into_owned();
                found.insert(name, text.trim().into());
            }
        }
    }
    Value::Object(found)
}

/// Nanoseconds of a read from 8 MiB whose address is what the read before it
/// gave: what one cold table look-up costs at the least. An undisturbed
/// last-level cache takes some 20; many more say that neighbours use it up. The
/// best and the median of some passes.
fn read_latency() -> Value {
    /// Words of a cache line: one read in each.
    const LINE: usize = 8;
    const LINES: usize = (8 << 20) / (LINE * size_of::<usize>());
    const PASSES: usize = 21;
    // Sattolo's shuffle of the lines: one cycle through all of them.
    let mut next: Vec<usize> = (0..LINES).collect();
    let mut state = 1u64;
    for i in (1..LINES).rev() {
        // Knuth's constants of a 64-bit linear congruential generator.
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        next.swap(i, (state >> 33) as usize % i);
    }
    let mut memory = vec![0usize; LINES * LINE];
    for (line, to) in memory.chunks_mut(LINE).zip(next) {
        line.fill(to * LINE);
    }
    let mut at = 0;
    let mut passes: Vec<f64> = (0..PASSES)
        .map(|_| {
            let start = Instant::now();
            for _ in 0..LINES {
                at = memory.get(at).copied().unwrap_or_default();
            }
            black_box(at);
            start.elapsed().as_secs_f64() * 1e9 / LINES as f64
        })
        .collect();
    passes.sort_by(f64::total_cmp);
    let of = |i: usize| passes.get(i).map(|ns| (ns * 10.0).round() / 10.0);
    json!({ "best": of(0), "median": of(PASSES / 2) })
}

fn read(path: &str) -> String {
    fs::read_to_string(path)
        .unwrap_or_default()
        .trim()
        .to_owned()
}

/// Moves this thread to a network namespace of its own, with a loopback
/// interface that is down and nothing else; it vanishes with the process.
pub(crate) fn withdraw() -> Result<()> {
    // SAFETY: no pointers.
    let moved = unsafe { libc::unshare(libc::CLONE_NEWNET) };
    ensure!(
        moved == 0,
        "cannot make a network namespace (needs root): {}",
        Error::last_os_error()
    );
    Ok(())
}

/// Keeps this thread on one processor and before other processes, so that it
/// finds its caches as it left them.
pub(crate) fn settle() -> Result<()> {
    // SAFETY: no arguments.
    let here = unsafe { libc::sched_getcpu() };
    pin(usize::try_from(here).map_err(|_| Error::last_os_error())?)?;
    hurry()
}

/// Checks that the host and what is outside can have a processor each.
pub(crate) fn need_two() -> Result<()> {
    // SAFETY: no pointers.
    let processors = unsafe { libc::sysconf(libc::_SC_NPROCESSORS_ONLN) };
    ensure!(
        processors > 1,
        "host and client need a processor each, and there is one"
    );
    Ok(())
}

/// Keeps this thread, and all that it starts, on one processor.
pub(crate) fn pin(cpu: usize) -> Result<()> {
    pin_thread(0, cpu)
}

/// Keeps a thread on one processor; 0 is this one.
pub(crate) fn pin_thread(thread: i32, cpu: usize) -> Result<()> {
    // SAFETY: an all-zero set is an empty one.
    let mut set: libc::cpu_set_t = unsafe { std::mem::zeroed() };
    // SAFETY: the index is that of a processor there is.
    unsafe { libc::CPU_SET(cpu, &mut set) };
    // SAFETY: the set is valid for reads of its size.
    let pinned = unsafe { libc::sched_setaffinity(thread, size_of_val(&set), &raw const set) };
    ensure!(
        pinned == 0,
        "cannot stay on one processor: {}",
        Error::last_os_error()
    );
    Ok(())
}

/// Makes this process and all that it starts a session of its own, which ordinary ones
/// wait for. Where the kernel gives each session its share (`sched_autogroup_enabled`),
/// priorities count within a session only.
pub(crate) fn part() {
    // A leader of a group of processes cannot, and stays: then a shell has started us.
    // SAFETY: no pointers.
    if unsafe { libc::setsid() } < 0 {
        return;
    }
    // The terminal's signals do not come any more, but the parent's end does.
    // SAFETY: no pointers.
    unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) };
    // Kernels without have no such file, and no such shares.
    if let Err(error) = fs::write("/proc/self/autogroup", "-20")
        && error.kind() != std::io::ErrorKind::NotFound
    {
        eprintln!("cannot raise the priority of the session: {error}");
    }
}

/// Lets this thread, and all that it starts, run before ordinary processes.
pub(crate) fn hurry() -> Result<()> {
    // SAFETY: no pointers.
    let urgent = unsafe { libc::setpriority(libc::PRIO_PROCESS, 0, -20) };
    ensure!(
        urgent == 0,
        "cannot raise the priority: {}",
        Error::last_os_error()
    );
    Ok(())
}

/// Lets this thread, and all that it starts, run whenever it wants to, as if nothing
/// else ran on the machine.
pub(crate) fn real_time() -> Result<()> {
    real_time_thread(0, 1)
}

/// Gives a thread a real-time priority, from 1 up, or takes it back with 0. Thread 0 is
/// this one, and all that it starts.
pub(crate) fn real_time_thread(thread: i32, priority: i32) -> Result<()> {
    let (policy, parameters) = match priority {
        0 => (libc::SCHED_OTHER, libc::sched_param { sched_priority: 0 }),
        sched_priority => (libc::SCHED_FIFO, libc::sched_param { sched_priority }),
    };
    // SAFETY: the parameters are valid for reads.
    let set = unsafe { libc::sched_setscheduler(thread, policy, &raw const parameters) };
    ensure!(
        set == 0,
        "cannot set a real-time priority: {}",
        Error::last_os_error()
    );
    Ok(())
}
