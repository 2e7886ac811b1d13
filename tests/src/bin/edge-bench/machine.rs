//! What the figures depend on besides the program.

use std::{fs, io::Error};

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
    // SAFETY: an all-zero set is an empty one.
    let mut set: libc::cpu_set_t = unsafe { std::mem::zeroed() };
    // SAFETY: no arguments.
    let here = unsafe { libc::sched_getcpu() };
    let here = usize::try_from(here).map_err(|_| Error::last_os_error())?;
    // SAFETY: the index is that of a processor there is.
    unsafe { libc::CPU_SET(here, &mut set) };
    // SAFETY: the set is valid for reads of its size; 0 is this thread.
    let pinned = unsafe { libc::sched_setaffinity(0, size_of_val(&set), &raw const set) };
    ensure!(
        pinned == 0,
        "cannot stay on one processor: {}",
        Error::last_os_error()
    );
    // SAFETY: no pointers.
    let urgent = unsafe { libc::setpriority(libc::PRIO_PROCESS, 0, -20) };
    ensure!(
        urgent == 0,
        "cannot raise the priority: {}",
        Error::last_os_error()
    );
    Ok(())
}
