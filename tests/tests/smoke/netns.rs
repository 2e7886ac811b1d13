//! A network and a BPF file system for one test, which leave nothing behind.

use std::{
    ffi::{CStr, CString},
    os::{
        fd::{AsRawFd, FromRawFd, OwnedFd},
        unix::ffi::OsStrExt,
    },
    path::Path,
    process::Command,
    ptr, thread,
    time::{Duration, Instant},
};

/// How long a test waits for anything before it fails.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);

/// Runs a test on a thread with a network namespace of its own, and with a BPF
/// file system of its own in a mount namespace of its own. All three go away
/// with the thread, and with them every interface, pin, map and program.
/// Programs that the test starts live in the same namespaces.
///
/// The test gets an empty directory; `bpf` in it is the BPF file system.
///
/// # Panics
/// When the test does, or without root.
pub(crate) fn isolated(test: impl FnOnce(&Path) + Send) {
    // Without a dot, which the BPF file system does not allow in a name.
    let directory = tempfile::Builder::new()
        .prefix("edge-test-")
        .tempdir()
        .expect("a directory");
    let path = directory.path();
    let outcome = thread::scope(|scope| {
        let run = scope.spawn(|| {
            own_namespaces(&path.join("bpf"));
            test(path);
        });
        run.join()
    });
    if let Err(panic) = outcome {
        std::panic::resume_unwind(panic);
    }
}

fn own_namespaces(bpffs: &Path) {
    std::fs::create_dir(bpffs).expect("a mount point");
    let bpffs = CString::new(bpffs.as_os_str().as_bytes()).expect("a path");
    // SAFETY: no pointers; only this thread moves to the new namespaces.
    let moved = unsafe { libc::unshare(libc::CLONE_NEWNET | libc::CLONE_NEWNS) };
    assert_eq!(moved, 0, "unshare: these tests need root");
    let mount = |source: &CStr, target: &CStr, kind: &CStr, flags| {
        let (source, target) = (source.as_ptr(), target.as_ptr());
        // SAFETY: all pointers are to C strings, and no data is passed.
        unsafe { libc::mount(source, target, kind.as_ptr(), flags, ptr::null()) }
    };
    // Or else the mount would be seen, and stay, outside.
    let private = mount(c"none", c"/", c"none", libc::MS_REC | libc::MS_PRIVATE);
    assert_eq!(private, 0, "a private mount namespace");
    assert_eq!(mount(c"bpf", &bpffs, c"bpf", 0), 0, "a BPF file system");
}

/// Runs `ip` with these words and returns what it prints.
///
/// # Panics
/// When it fails.
#[track_caller]
pub(crate) fn ip(words: &str) -> String {
    let out = Command::new("ip")
        .args(words.split_whitespace())
        .output()
        .expect("ip");
    assert!(out.status.success(), "ip {words}: {out:?}");
    String::from_utf8(out.stdout).expect("text")
}

/// Makes a pair of interfaces, both up and silent: `name`, to be protected, and
/// `name`p, to send from.
///
/// # Panics
/// When it cannot.
pub(crate) fn veth(name: &str) {
    ip(&format!("link add {name} type veth peer name {name}p"));
    for end in [name.to_owned(), format!("{name}p")] {
        ip(&format!("link set {end} addrgenmode none"));
        ip(&format!("link set {end} up"));
    }
}

/// Kernel id of the program on an interface's XDP hook.
///
/// # Panics
/// When there is no such interface.
pub(crate) fn hook_program(name: &str) -> Option<u64> {
    let text = ip(&format!("-j link show {name}"));
    let links: serde_json::Value = serde_json::from_str(&text).expect("JSON");
    links.pointer("/0/xdp/prog/id")?.as_u64()
}

/// Kernel index of an interface.
///
/// # Panics
/// When there is no such interface.
pub(crate) fn index(name: &str) -> i32 {
    let name = CString::new(name).expect("a name");
    // SAFETY: the pointer is to a C string.
    let index = unsafe { libc::if_nametoindex(name.as_ptr()) };
    assert_ne!(index, 0, "no interface {name:?}");
    i32::try_from(index).expect("an index")
}

/// A whole Ethernet frame of 60 bytes with a UDP packet without checksum.
pub(crate) fn udp4(source: [u8; 4], destination: [u8; 4]) -> Vec<u8> {
    let mut frame = vec![2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2, 8, 0];
    frame.extend([0x45, 0, 0, 28, 0, 0, 0, 0, 64, 17, 0, 0]);
    frame.extend(source);
    frame.extend(destination);
    frame.extend([0x30, 0x39, 0, 53, 0, 8, 0, 0]);
    frame.resize(60, 0);
    frame
}

/// A packet socket on one interface.
pub(crate) struct PacketSocket {
    socket: OwnedFd,
}

impl PacketSocket {
    /// Opens one that sends from, and gets all that reaches the kernel on,
    /// the interface: after XDP has decided.
    ///
    /// # Panics
    /// When there is no such interface.
    pub(crate) fn new(interface: &str) -> Self {
        let all = (libc::ETH_P_ALL as u16).to_be();
        let kind = libc::SOCK_RAW | libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK;
        // SAFETY: no pointers.
        let fd = unsafe { libc::socket(libc::AF_PACKET, kind, libc::c_int::from(all)) };
        assert!(fd >= 0, "a packet socket");
        // SAFETY: the descriptor is new, and nobody else has it.
        let socket = unsafe { OwnedFd::from_raw_fd(fd) };
        // SAFETY: all zeros is a valid sockaddr_ll.
        let mut address: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
        address.sll_family = libc::AF_PACKET as u16;
        address.sll_protocol = all;
        address.sll_ifindex = index(interface);
        // SAFETY: the pointer and length are those of a live sockaddr_ll.
        let bound = unsafe {
            libc::bind(
                socket.as_raw_fd(),
                (&raw const address).cast(),
                size_of::<libc::sockaddr_ll>() as u32,
            )
        };
        assert_eq!(bound, 0, "bind");
        Self { socket }
    }

    /// Sends a frame; tells whether the kernel took it.
    pub(crate) fn send(&self, frame: &[u8]) -> bool {
        // SAFETY: the pointer and length are those of a live buffer.
        let sent = unsafe {
            libc::send(
                self.socket.as_raw_fd(),
                frame.as_ptr().cast(),
                frame.len(),
                0,
            )
        };
        usize::try_from(sent) == Ok(frame.len())
    }

    /// The next frame, if there is one already.
    pub(crate) fn receive(&self) -> Option<Vec<u8>> {
        let mut frame = vec![0; 2048];
        // SAFETY: the pointer and length are those of a live, writable buffer.
        let got = unsafe {
            libc::recv(
                self.socket.as_raw_fd(),
                frame.as_mut_ptr().cast(),
                frame.len(),
                0,
            )
        };
        frame.truncate(usize::try_from(got).ok()?);
        Some(frame)
    }
}

/// Sends a frame out of an interface so many times.
///
/// # Panics
/// When the kernel does not take it.
#[track_caller]
pub(crate) fn send(interface: &str, frame: &[u8], times: usize) {
    let socket = PacketSocket::new(interface);
    for _ in 0..times {
        assert!(socket.send(frame), "send");
    }
}

/// Waits until `done` says so.
///
/// # Panics
/// When it does not in [`PATIENCE`].
#[track_caller]
pub(crate) fn wait(what: &str, mut done: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !done() {
        assert!(Instant::now() < deadline, "in vain waited for: {what}");
        pause();
    }
}

/// The pause between two looks at a condition.
#[expect(
    clippy::disallowed_methods,
    reason = "the pause between two looks at a condition"
)]
pub(crate) fn pause() {
    thread::sleep(Duration::from_millis(5));
}
