//! Network namespaces without names, and processes in them.

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::os::unix::process::CommandExt as _;
use std::process::{Command, Output};
use std::thread;

/// A network namespace together with a mount namespace whose `/sys/fs/bpf` is a BPF file system of
/// its own. Both go away when this value and the processes inside are gone.
#[derive(Debug)]
pub struct Namespace {
    net: OwnedFd,
    mounts: OwnedFd,
}

impl Namespace {
    /// A namespace with nothing but its loopback interface, which is up.
    ///
    /// # Panics
    /// Without root.
    #[must_use]
    #[track_caller]
    pub fn new() -> Self {
        let made = thread::scope(|scope| scope.spawn(make).join());
        let namespace = made
            .expect("the thread that makes the namespace does not panic")
            .unwrap_or_else(|e| {
                panic!("cannot make a network namespace: {e} (needs root: cargo xtask test)")
            });
        namespace.ip("link set lo up");
        namespace
    }

    /// Where other processes can open the network namespace, as long as this one lives.
    #[must_use]
    pub fn path(&self) -> String {
        format!("/proc/{}/fd/{}", std::process::id(), self.net.as_raw_fd())
    }

    /// A command that will run inside, and that is killed when the calling thread ends.
    #[must_use]
    pub fn command(&self, program: impl AsRef<std::ffi::OsStr>) -> Command {
        let mut command = Command::new(program);
        let (net, mounts) = (self.net.as_raw_fd(), self.mounts.as_raw_fd());
        // SAFETY: the closure runs in the forked child and makes system calls only; both
        // descriptors are open there, for the child has a copy of this process's.
        unsafe {
            command.pre_exec(move || {
                enter(mounts, libc::CLONE_NEWNS)?;
                enter(net, libc::CLONE_NEWNET)?;
                check(libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL))
            });
        }
        command
    }

    /// Runs a program inside to its end.
    ///
    /// # Panics
    /// When it cannot be started.
    #[track_caller]
    pub fn output(&self, program: &str, arguments: &[&str]) -> Output {
        self.command(program)
            .args(arguments)
            .output()
            .unwrap_or_else(|e| panic!("{program}: {e} (cargo xtask setup fetches it)"))
    }

    /// Runs a program inside and returns what it prints.
    ///
    /// # Panics
    /// When it fails.
    #[track_caller]
    pub fn run(&self, program: &str, arguments: &[&str]) -> String {
        let output = self.output(program, arguments);
        assert!(
            output.status.success(),
            "{program} {}: {}",
            arguments.join(" "),
            String::from_utf8_lossy(&output.stderr)
        );
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    /// `ip` with arguments separated by blanks.
    ///
    /// # Panics
    /// When it fails.
    #[track_caller]
    pub fn ip(&self, arguments: &str) -> String {
        let arguments: Vec<&str> = arguments.split_whitespace().collect();
        self.run("ip", &arguments)
    }

    /// Runs `work` on a thread of its own inside the network namespace. Sockets made there stay
    /// there, and may be used from anywhere afterwards.
    ///
    /// # Panics
    /// When `work` does.
    pub fn inside<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        on_thread(|| {
            enter(self.net.as_raw_fd(), libc::CLONE_NEWNET).expect("setns");
            work()
        })
    }

    /// Runs `work` on a thread of its own inside the mount namespace, where `/sys/fs/bpf` is this
    /// one's: what is pinned there is gone with it.
    ///
    /// # Panics
    /// When `work` does, or without root.
    pub fn among_mounts<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        on_thread(|| {
            // SAFETY: no pointers; the kernel wants a thread with a directory of its own.
            check(unsafe { libc::unshare(libc::CLONE_FS) }).expect("unshare");
            enter(self.mounts.as_raw_fd(), libc::CLONE_NEWNS).expect("setns");
            work()
        })
    }

    /// Index of an interface.
    ///
    /// # Panics
    /// When there is none of that name.
    #[must_use]
    #[track_caller]
    pub fn ifindex(&self, interface: &str) -> u32 {
        let name = std::ffi::CString::new(interface).expect("a name without NUL");
        let index = self.inside(|| {
            // SAFETY: a valid C string.
            unsafe { libc::if_nametoindex(name.as_ptr()) }
        });
        assert!(index != 0, "no interface {interface}");
        index
    }
}

impl Default for Namespace {
    fn default() -> Self {
        Self::new()
    }
}

fn on_thread<T: Send>(work: impl FnOnce() -> T + Send) -> T {
    let outcome = thread::scope(|scope| scope.spawn(work).join());
    outcome.unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}

/// Runs on a thread that ends afterwards: what it unshares is its own.
fn make() -> io::Result<Namespace> {
    // SAFETY: no pointers; only this thread moves.
    check(unsafe { libc::unshare(libc::CLONE_NEWNET | libc::CLONE_NEWNS) })?;
    let private = libc::MS_REC | libc::MS_PRIVATE;
    let (none, root) = (c"none".as_ptr(), c"/".as_ptr());
    // SAFETY: all pointers are to C strings, and no data is passed. Private, or else the mount
    // below would be seen outside and stay.
    check(unsafe { libc::mount(none, root, none, private, std::ptr::null()) })?;
    let (bpf, at) = (c"bpf".as_ptr(), c"/sys/fs/bpf".as_ptr());
    // SAFETY: as above.
    check(unsafe { libc::mount(bpf, at, bpf, 0, std::ptr::null()) })?;
    Ok(Namespace {
        net: File::open("/proc/thread-self/ns/net")?.into(),
        mounts: File::open("/proc/thread-self/ns/mnt")?.into(),
    })
}

fn enter(namespace: i32, kind: i32) -> io::Result<()> {
    // SAFETY: no pointers; the caller owns the descriptor.
    check(unsafe { libc::setns(namespace, kind) })
}

fn check(result: i32) -> io::Result<()> {
    if result == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}
