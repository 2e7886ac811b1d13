//! How many files the daemon may have open.

use tracing::warn;

use crate::config::proxy::Proxy;

/// Descriptors for all else: sockets of listeners, maps, files.
const OTHER_FILES: u64 = 4096;

/// Each connection takes a descriptor, and one more for that to its server; more where requests of
/// one HTTP/2 connection go to servers by HTTP/1. The daemon gets as many as its listeners need so, if it has the capability to ask for more than it was given.
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
    for most in [wanted.max(granted), granted] {
        (limit.rlim_cur, limit.rlim_max) = (most, most);
        // SAFETY: reads from a live value.
        if unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &raw const limit) } == 0 {
            break;
        }
        limit.rlim_cur = had;
    }
    if limit.rlim_cur < wanted {
        warn!(
            "the listeners' limits.connections may take {wanted} descriptors, and edge may have {}: \
             raise LimitNOFILE of its unit (or `ulimit -n`), or lower limits.connections",
            limit.rlim_cur
        );
    }
}
