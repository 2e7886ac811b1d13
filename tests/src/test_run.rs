//! `BPF_PROG_TEST_RUN` for XDP, with what the packet looks like afterwards,
//! frames of several buffers, and from any thread.

use std::{
    io,
    os::fd::{AsRawFd, BorrowedFd},
};

/// `BPF_PROG_TEST_RUN` of `enum bpf_cmd`.
const BPF_PROG_TEST_RUN: libc::c_long = 10;

/// Room for what comes back: the largest frame that a test run takes.
const MAX_FRAME: usize = 1 << 16;

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
    let mut output = vec![0; MAX_FRAME];
    let number = |n: usize| u32::try_from(n).map_err(io::Error::other);
    let mut attributes = Attributes {
        prog_fd: u32::try_from(program.as_raw_fd()).map_err(io::Error::other)?,
        data_size_in: number(frame.len())?,
        data_size_out: number(MAX_FRAME)?,
        data_in: frame.as_ptr().addr() as u64,
        data_out: output.as_mut_ptr().addr() as u64,
        repeat: times,
        ..Attributes::default()
    };
    // SAFETY: the attributes are of the size given and of the command's layout;
    // the kernel reads `data_size_in` bytes of `frame` and writes at most
    // `data_size_out` bytes to `output`: both outlive the call.
    let result = unsafe {
        libc::syscall(
            libc::SYS_bpf,
            BPF_PROG_TEST_RUN,
            &raw mut attributes,
            size_of::<Attributes>(),
        )
    };
    if result != 0 {
        return Err(io::Error::last_os_error());
    }
    output.truncate(attributes.data_size_out as usize);
    Ok(Run {
        action: attributes.retval,
        output,
    })
}
