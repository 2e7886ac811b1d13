//! Workers need no privileges: their sockets were bound by others. Nor do the other threads of the
//! proxy, but to read or write files that belong to somebody else.

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

/// The calling thread, for both calls.
const HEADER: Header = Header {
    version: VERSION,
    pid: 0,
};

/// Effective, permitted and inheritable ones of 32.
#[repr(C)]
#[derive(Clone, Copy, Default)]
struct Data {
    effective: u32,
    permitted: u32,
    inheritable: u32,
}

/// CAP_DAC_OVERRIDE and CAP_DAC_READ_SEARCH (capabilities(7)).
const FILES: u32 = 1 << 1 | 1 << 2;

/// Gives up all capabilities of the calling thread for good. Those of other threads stay: the
/// kernel knows capabilities of threads only (capabilities(7)).
///
/// # Errors
/// When the kernel refuses, which it never does when less is asked for.
pub(super) fn give_up() -> io::Result<()> {
    keep([Data::default(); 2])
}

/// The same, but for those to open whatever file the configuration names, as far as there are any:
/// files are opened anew while the proxy runs, and are to be found then as they were before.
///
/// # Errors
/// When the kernel refuses.
pub(super) fn give_up_but_files() -> io::Result<()> {
    let header = HEADER;
    let mut had = [Data::default(); 2];
    // SAFETY: both point to what this version of the call reads and writes, and live until it
    // returns.
    let got = unsafe { libc::syscall(libc::SYS_capget, &raw const header, had.as_mut_ptr()) };
    if got != 0 {
        return Err(io::Error::last_os_error());
    }
    let files = Data {
        effective: had[0].effective & FILES,
        permitted: had[0].permitted & FILES,
        inheritable: 0,
    };
    keep([files, Data::default()])
}

fn keep(kept: [Data; 2]) -> io::Result<()> {
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
    let header = HEADER;
    // SAFETY: both point to what this version of the call reads, and live until it returns.
    let set = unsafe { libc::syscall(libc::SYS_capset, &raw const header, kept.as_ptr()) };
    if set != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::{collections::BTreeMap, fs, path::Path, thread};

    use super::{
        super::panics::tests::{Client, Rig, Server, until},
        *,
    };

    /// CAP_NET_BIND_SERVICE.
    const BIND: u32 = 1 << 10;

    /// The sets of capabilities of a thread.
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
    struct Sets {
        effective: u64,
        permitted: u64,
        inheritable: u64,
        ambient: u64,
    }

    const NONE: Sets = Sets {
        effective: 0,
        permitted: 0,
        inheritable: 0,
        ambient: 0,
    };

    /// Those of the thread that a directory of /proc is of; nothing if it has just ended.
    fn sets(of: &Path) -> Option<Sets> {
        let status = fs::read_to_string(of.join("status")).ok()?;
        let set = |name: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(name));
            u64::from_str_radix(line.expect(name).trim(), 16).expect("a set")
        };
        Some(Sets {
            effective: set("CapEff:"),
            permitted: set("CapPrm:"),
            inheritable: set("CapInh:"),
            ambient: set("CapAmb:"),
        })
    }

    fn own() -> Sets {
        sets("/proc/thread-self".as_ref()).expect("it is there")
    }

    /// What this thread has to lose. Without root there is mostly nothing, which is said.
    fn to_lose(test: &str) -> Option<Sets> {
        let had = own();
        // SAFETY: takes nothing and cannot fail.
        if unsafe { libc::geteuid() } == 0 {
            assert_ne!(had.effective, 0, "root has something to lose");
            assert_ne!(had.permitted, 0, "root has something to lose");
        } else if had == NONE {
            println!("SKIPPED {test}: without root there is nothing to give up");
            return None;
        }
        Some(had)
    }

    /// Has the calling thread hold something in all four sets; not where that capability is none
    /// of its own.
    fn hold_all_kinds(had: Sets) {
        if had.permitted & u64::from(BIND) == 0 {
            println!("SKIPPED inheritable and ambient ones: there are none to be had");
            return;
        }
        let low = |set: u64| u32::try_from(set & u64::from(u32::MAX)).expect("it fits");
        let high = |set: u64| u32::try_from(set >> 32).expect("it fits");
        let of = |word: fn(u64) -> u32, inheritable| Data {
            effective: word(had.effective),
            permitted: word(had.permitted),
            inheritable,
        };
        let header = HEADER;
        let sets = [of(low, BIND), of(high, 0)];
        // SAFETY: both point to what this version of the call reads, and live until it returns.
        let set = unsafe { libc::syscall(libc::SYS_capset, &raw const header, sets.as_ptr()) };
        assert_eq!(set, 0, "{}", io::Error::last_os_error());
        let raise = libc::PR_CAP_AMBIENT_RAISE;
        // SAFETY: takes numbers only.
        let raised = unsafe { libc::prctl(libc::PR_CAP_AMBIENT, raise, BIND.ilog2(), 0, 0) };
        assert_eq!(raised, 0, "{}", io::Error::last_os_error());
        let Sets {
            inheritable,
            ambient,
            ..
        } = own();
        assert_eq!((inheritable, ambient), (BIND.into(), BIND.into()));
    }

    #[test]
    fn a_thread_gives_up_its_own_of_all_kinds_and_no_others() {
        let Some(before) = to_lose("a_thread_gives_up_its_own_of_all_kinds_and_no_others") else {
            return;
        };
        let after = |give_up: fn() -> io::Result<()>| {
            let thread = thread::spawn(move || {
                hold_all_kinds(before);
                give_up().expect("given up");
                own()
            });
            thread.join().expect("no panic")
        };
        assert_eq!(after(give_up), NONE);
        let files = Sets {
            effective: before.effective & u64::from(FILES),
            permitted: before.permitted & u64::from(FILES),
            ..NONE
        };
        assert_eq!(after(give_up_but_files), files);
        assert_eq!(own(), before);
    }

    #[test]
    fn no_thread_of_the_proxy_holds_more_than_it_needs() {
        let Some(before) = to_lose("no_thread_of_the_proxy_holds_more_than_it_needs") else {
            return;
        };
        let (server, directory) = (Server::new(), tempfile::tempdir().expect("a directory"));
        let keys = format!(
            "workers = 2\naccess_log = {{ path = '{}' }}\n\
             traces = {{ endpoint = 'http://127.0.0.1:9/', sample = 1 }}",
            directory.path().join("access.log").display()
        );
        let rig = Rig::to(&server, &keys, &[]);
        Client::connect(rig.at).id();
        let files = Sets {
            effective: before.effective & u64::from(FILES),
            permitted: before.permitted & u64::from(FILES),
            ..NONE
        };
        let wanted = BTreeMap::from([
            ("access-log", files),
            ("proxy-0", NONE),
            ("proxy-1", NONE),
            ("proxy-spans", NONE),
            ("proxy-watch", files),
        ]);
        let mut seen = BTreeMap::new();
        // One that has just been started may not have come so far.
        until("all threads hold no more than that", || {
            seen.clear();
            for task in fs::read_dir("/proc/self/task").expect("threads") {
                let task = task.expect("a thread").path();
                let name = fs::read_to_string(task.join("comm")).unwrap_or_default();
                let wanted = wanted.get_key_value(name.trim());
                if let (Some((name, wanted)), Some(sets)) = (wanted, sets(&task)) {
                    // Others of that name are of other tests.
                    *seen.entry(*name).or_insert(true) &= sets == *wanted;
                }
            }
            seen.len() == wanted.len() && seen.values().all(|is_right| *is_right)
        });
    }
}
