//! Workers need no privileges: their sockets were bound by others.

use std::io;

/// `_LINUX_CAPABILITY_VERSION_3` (capget(2)): two words of 32 capabilities each.
const VERSION: u32 = 0x2008_0522;

/// As the kernel takes it.
#[repr(C)]
struct Header {
    version: u32,
    /// 0: the calling thread.
    pid: i32,
}

/// Effective, permitted and inheritable ones of 32.
#[repr(C)]
#[derive(Clone, Copy, Default)]
struct Data {
    effective: u32,
    permitted: u32,
    inheritable: u32,
}

/// Gives up all capabilities of the calling thread for good. Those of other threads stay: the
/// kernel knows capabilities of threads only (capabilities(7)).
///
/// # Errors
/// When the kernel refuses, which it never does when less is asked for.
pub(super) fn give_up() -> io::Result<()> {
    // SAFETY: takes numbers only.
    let cleared = unsafe {
        libc::prctl(
            libc::PR_CAP_AMBIENT,
            libc::PR_CAP_AMBIENT_CLEAR_ALL,
            0,
            0,
            0,
        )
    };
    if cleared != 0 {
        return Err(io::Error::last_os_error());
    }
    let header = Header {
        version: VERSION,
        pid: 0,
    };
    let none = [Data::default(); 2];
    // SAFETY: both point to what this version of the call reads, and live until it returns.
    let set = unsafe { libc::syscall(libc::SYS_capset, &raw const header, none.as_ptr()) };
    if set != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn effective() -> String {
        let status = std::fs::read_to_string("/proc/thread-self/status").expect("status");
        let line = status.lines().find_map(|line| line.strip_prefix("CapPrm:"));
        line.expect("capabilities").trim().to_owned()
    }

    #[test]
    fn a_thread_gives_up_its_own_and_no_others() {
        let before = effective();
        let after = std::thread::spawn(|| {
            give_up().expect("given up");
            effective()
        });
        assert_eq!(after.join().expect("no panic"), "0000000000000000");
        assert_eq!(effective(), before);
    }
}
