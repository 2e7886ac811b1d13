//! `BPF_PROG_TEST_RUN` for XDP, with what the packet looks like afterwards,
//! frames of several buffers, and from any thread; and its live frames, which
//! make the fastest flood there is.

use std::{
    io,
    os::fd::{AsRawFd, BorrowedFd},
};

/// `BPF_PROG_TEST_RUN` of `enum bpf_cmd`.
const BPF_PROG_TEST_RUN: libc::c_long = 10;

/// Room for what a program puts before a frame, or makes of a short one.
const ROOM: usize = 4096;

/// The part of `union bpf_attr` for test runs (linux/bpf.h).
#[repr(C)]
#[derive(Default)]
struct Attributes {
    prog_fd: u32,
    retval: u32,
    data_size_in: u32,
    data_size_out: u32,
    data_in: u64,
    data_out: u64,
    repeat: u32,
    duration: u32,
    ctx_size_in: u32,
    ctx_size_out: u32,
    ctx_in: u64,
    ctx_out: u64,
    flags: u32,
    cpu: u32,
    batch_size: u32,
    pad: u32,
}

const _: () = assert!(size_of::<Attributes>() == 80);

/// `BPF_F_TEST_XDP_LIVE_FRAMES` (linux/bpf.h, since 5.18): what the program
/// says of a frame is done.
const LIVE_FRAMES: u32 = 1 << 1;

/// `struct xdp_md` (linux/bpf.h).
#[repr(C)]
#[derive(Default)]
struct Context {
    data: u32,
    data_end: u32,
    data_meta: u32,
    ingress_ifindex: u32,
    rx_queue_index: u32,
    egress_ifindex: u32,
}

/// What a run gave.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Run {
    /// The program's return value: an XDP action.
    pub action: u32,
    /// The frame as the (last) run left it.
    pub output: Vec<u8>,
}

/// Runs an XDP program `times` over `frame`, on the CPU of the calling thread.
/// What a run changes in the frame is not undone before the next.
///
/// A frame that is too long for a page is given to the program in several
/// buffers.
///
/// # Errors
/// What the kernel says: `EINVAL` for a frame below 14 bytes.
pub fn run(program: BorrowedFd<'_>, frame: &[u8], times: u32) -> io::Result<Run> {
    let mut output = vec![0; frame.len() + ROOM];
    let number = |n: usize| u32::try_from(n).map_err(io::Error::other);
    let mut attributes = Attributes {
        prog_fd: u32::try_from(program.as_raw_fd()).map_err(io::Error::other)?,
        data_size_in: number(frame.len())?,
        data_size_out: number(output.len())?,
        data_in: frame.as_ptr().addr() as u64,
        data_out: output.as_mut_ptr().addr() as u64,
        repeat: times,
        ..Attributes::default()
    };
    // The kernel reads `data_size_in` bytes of `frame` and writes at most
    // `data_size_out` bytes to `output`: both outlive the call.
    test_run(&mut attributes)?;
    output.truncate(attributes.data_size_out as usize);
    Ok(Run {
        action: attributes.retval,
        output,
    })
}

/// Runs an XDP program over `times` copies of `frame` that came in on an
/// interface of the calling thread's network namespace, and does with each what
/// the program says: `XDP_TX` sends it out of that interface. In batches of 64,
/// and whoever is woken by a batch runs before the next one.
///
/// The interface must have an XDP program attached. A copy is used again without
/// being restored: what the program changes in it stays.
///
/// # Errors
/// What the kernel says: `EINVAL` without a program on the interface.
pub fn run_live(
    program: BorrowedFd<'_>,
    frame: &[u8],
    interface: u32,
    times: u32,
) -> io::Result<()> {
    let number = |n: usize| u32::try_from(n).map_err(io::Error::other);
    let context = Context {
        data_end: number(frame.len())?,
        ingress_ifindex: interface,
        ..Context::default()
    };
    // The kernel reads `data_size_in` bytes of `frame` and `ctx_size_in` bytes of
    // `context`: both outlive the call.
    test_run(&mut Attributes {
        prog_fd: u32::try_from(program.as_raw_fd()).map_err(io::Error::other)?,
        data_size_in: number(frame.len())?,
        data_in: frame.as_ptr().addr() as u64,
        ctx_size_in: number(size_of::<Context>())?,
        ctx_in: (&raw const context).addr() as u64,
        repeat: times,
        flags: LIVE_FRAMES,
        ..Attributes::default()
    })
}

/// The call itself. What the attributes point to must be as long as they say.
fn test_run(attributes: &mut Attributes) -> io::Result<()> {
    // SAFETY: the attributes are of the size given and of the command's layout;
    // both callers point to buffers that live until it returns.
    let result = unsafe {
        libc::syscall(
            libc::SYS_bpf,
            BPF_PROG_TEST_RUN,
            &raw mut *attributes,
            size_of::<Attributes>(),
        )
    };
    if result == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}
