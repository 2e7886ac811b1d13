//! What lets one end of a veth pair receive frames that XDP sends from the other one: an XDP program
//! that passes everything. GRO alone does not do for `XDP_TX`, for the kernel wakes the receiver only
//! if it has a program (`veth_xdp_flush`).

use std::io;
use std::os::fd::{AsFd as _, AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd};

use crate::netns::Namespace;

/// Of `enum bpf_cmd`, `enum bpf_prog_type` and `enum bpf_attach_type`.
const PROG_LOAD: libc::c_long = 5;
const LINK_CREATE: libc::c_long = 28;
const PROG_TYPE_XDP: u32 = 6;
const ATTACH_TYPE_XDP: u32 = 37;
/// `BPF_F_XDP_HAS_FRAGS`: also on interfaces with a large MTU.
const MULTI_BUFFER: u32 = 1 << 5;
/// `XDP_FLAGS_DRV_MODE`.
const IN_DRIVER: u32 = 1 << 2;

/// `r0 = XDP_PASS; exit`.
const PASS: [u64; 2] = [0x0000_0002_0000_00b7, 0x95];

/// The program on an interface, until it is dropped.
#[derive(Debug)]
pub struct Receiver(#[expect(dead_code, reason = "holds the link open")] OwnedFd);

/// `union bpf_attr`, as far as a program needs it.
#[derive(Default)]
#[repr(C)]
struct Load {
    kind: u32,
    instructions: u32,
    code: u64,
    license: u64,
    log: [u32; 2],
    log_buffer: u64,
    kernel_version: u32,
    flags: u32,
    name: [u8; 16],
    ifindex: u32,
    attach_type: u32,
}

/// The same for a link.
#[repr(C)]
struct Link {
    program: u32,
    ifindex: u32,
    attach_type: u32,
    flags: u32,
}

impl Receiver {
    /// Attaches it to an interface of a namespace.
    ///
    /// # Panics
    /// When the kernel refuses.
    #[must_use]
    #[track_caller]
    pub fn new(namespace: &Namespace, interface: &str) -> Self {
        let ifindex = namespace.ifindex(interface);
        let load = Load {
            kind: PROG_TYPE_XDP,
            instructions: PASS.len() as u32,
            code: PASS.as_ptr() as u64,
            license: c"GPL".as_ptr() as u64,
            flags: MULTI_BUFFER,
            attach_type: ATTACH_TYPE_XDP,
            ..Load::default()
        };
        let attached = namespace.inside(|| attach(bpf(PROG_LOAD, &load)?.as_fd(), ifindex));
        Self(attached.unwrap_or_else(|e| panic!("no program on {interface}: {e}")))
    }
}

/// Attaches a program that is already loaded to an interface (its index) of the calling
/// thread's network namespace, in its driver, until the link is closed. (aya attaches only what
/// it loaded itself.)
///
/// # Errors
/// What the kernel says: `EBUSY` when the interface has one.
pub fn attach(program: BorrowedFd<'_>, ifindex: u32) -> io::Result<OwnedFd> {
    let link = Link {
        program: program.as_raw_fd() as u32,
        ifindex,
        attach_type: ATTACH_TYPE_XDP,
        flags: IN_DRIVER,
    };
    bpf(LINK_CREATE, &link)
        .map_err(|e| io::Error::new(e.kind(), format!("cannot attach a program: {e}")))
}

fn bpf<T>(command: libc::c_long, attributes: &T) -> io::Result<OwnedFd> {
    // SAFETY: pointer and size are those of live attributes, and so are the pointers in them.
    let fd = unsafe {
        libc::syscall(
            libc::SYS_bpf,
            command,
            std::ptr::from_ref(attributes),
            size_of::<T>(),
        )
    };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the descriptor is new and nobody else has it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as i32) })
}
