//! How many files the daemon may have open.

use std::fs;

use tracing::warn;

use crate::config::proxy::Proxy;

/// Descriptors for all else: sockets of listeners, maps, files.
const OTHER_FILES: u64 = 4096;
/// What the kernel gives a process at the most, whoever asks.
const MOST: &str = "/proc/sys/fs/nr_open";

/// Each connection takes a descriptor, and one more for that to its server; more where requests of
/// one HTTP/2 connection go to servers by HTTP/1. The daemon gets as many as its listeners need so,
/// if it has the capability to ask for more than it was given.
pub(super) fn raise_limit(proxy: &Proxy) {
    let all = proxy.listeners.iter();
    let most = all.map(|listener| u64::from(listener.limits.connections));
    let wanted = 2 * most.sum::<u64>() + OTHER_FILES;
    let mut limit = libc::rlimit {
        rlim_cur: 0,
        rlim_max: 0,
    };
    // SAFETY: writes into a live value.
    if unsafe { libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut limit) } != 0 {
        return;
    }
    let (had, granted) = (limit.rlim_cur, limit.rlim_max);
    let there_are = fs::read_to_string(MOST).ok();
    let there_are = there_are.and_then(|text| text.trim().parse().ok());
    let there_are: u64 = there_are.unwrap_or(u64::MAX);
    for most in [wanted.min(there_are).max(granted), granted] {
        (limit.rlim_cur, limit.rlim_max) = (most, most);
        // SAFETY: reads from a live value.
        if unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &raw const limit) } == 0 {
            break;
        }
        limit.rlim_cur = had;
    }
    let has = limit.rlim_cur;
    if has >= wanted {
        return;
    }
    let remedy = if has >= there_are {
        "raise the kernel's fs.nr_open"
    } else {
        "raise LimitNOFILE of its unit (or `ulimit -n`)"
    };
    warn!(
        "the listeners' limits.connections may take {wanted} descriptors, and edge may have {has}: \
         {remedy}, or lower limits.connections"
    );
}
