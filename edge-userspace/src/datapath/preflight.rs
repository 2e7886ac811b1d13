//! What is looked at before anything is changed, so that the usual obstacles
//! are named and not guessed from an error number.

use std::fs;

use super::{
    error::DatapathError,
    netlink::{self, Interface},
};

/// Bits of `CapEff` in proc(5): capability numbers of `linux/capability.h`.
const CAP_NET_ADMIN: u32 = 12;
const CAP_SYS_ADMIN: u32 = 21;
const CAP_PERFMON: u32 = 38;
const CAP_BPF: u32 = 39;

/// Whether this process may do what the datapath needs.
pub(super) fn permissions() -> Result<(), DatapathError> {
    // Without proc nothing is known; the kernel will say.
    let Some(held) = fs::read_to_string("/proc/thread-self/status")
        .ok()
        .and_then(|s| effective(&s))
    else {
        return Ok(());
    };
    let missing = missing(held);
    if missing.is_empty() {
        return Ok(());
    }
    Err(DatapathError::NotPermitted {
        missing: missing.join(" and "),
    })
}

fn effective(status: &str) -> Option<u64> {
    let line = status.lines().find_map(|l| l.strip_prefix("CapEff:"))?;
    u64::from_str_radix(line.trim(), 16).ok()
}

fn missing(held: u64) -> Vec<&'static str> {
    let has = |cap: u32| held & (1 << cap) != 0;
    let needed = [
        ("CAP_BPF", has(CAP_BPF) || has(CAP_SYS_ADMIN)),
        // Without it the verifier refuses the arithmetic on packet pointers.
        ("CAP_PERFMON", has(CAP_PERFMON) || has(CAP_SYS_ADMIN)),
        ("CAP_NET_ADMIN", has(CAP_NET_ADMIN)),
    ];
    needed.iter().filter(|n| !n.1).map(|n| n.0).collect()
}

/// The facts of an interface that must exist.
pub(super) fn interface(name: &str) -> Result<Interface, DatapathError> {
    match netlink::interface(name).map_err(DatapathError::Netlink)? {
        Some(found) => Ok(found),
        None => {
            let mut known: Vec<_> = netlink::interfaces()
                .map_err(DatapathError::Netlink)?
                .into_iter()
                .map(|i| i.name)
                .collect();
            known.sort_unstable();
            known.truncate(64);
            Err(DatapathError::UnknownInterface {
                name: name.into(),
                known: known.join(", "),
            })
        }
    }
}

/// Lifts the limit on locked memory, from which kernels before 5.11 take the
/// maps. On newer ones it has no effect, and where it may not be lifted the
/// kernel will say so when a map is made.
pub(super) fn lift_memory_limit() {
    let none = libc::rlimit {
        rlim_cur: libc::RLIM_INFINITY,
        rlim_max: libc::RLIM_INFINITY,
    };
    // SAFETY: the pointer is to a whole `rlimit`, which is only read.
    let _ = unsafe { libc::setrlimit(libc::RLIMIT_MEMLOCK, &raw const none) };
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn capabilities_are_read_from_proc() {
        assert_eq!(
            effective("Name:\tx\nCapPrm:\t0\nCapEff:\t000001ffffffffff\n"),
            Some(0x1ff_ffff_ffff)
        );
        assert_eq!(effective("CapEff: zz"), None);
        assert_eq!(effective(""), None);
    }

    #[test]
    fn missing_capabilities_are_named() {
        assert_eq!(missing(0), ["CAP_BPF", "CAP_PERFMON", "CAP_NET_ADMIN"]);
        assert_eq!(missing(1 << CAP_BPF | 1 << CAP_PERFMON), ["CAP_NET_ADMIN"]);
        assert!(missing(1 << CAP_NET_ADMIN | 1 << CAP_SYS_ADMIN).is_empty());
    }
}
