//! Packet sockets: frames out of an interface as they are, and counters of what comes in.

use std::io;
use std::net::IpAddr;
use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd};
use std::sync::atomic::{AtomicU64, Ordering};

use edge_common::addr::Prefix;

use crate::netns::Namespace;

/// Bytes that a receiving socket may hold back.
const RECEIVE_BUFFER: i32 = 4 << 20;

/// Frames handed to the kernel in one call.
const BATCH: usize = 64;

/// Sends frames out of one interface.
#[derive(Debug)]
pub struct Sender {
    socket: OwnedFd,
}

impl Sender {
    /// A sender on an interface of a namespace.
    ///
    /// # Panics
    /// When the interface does not exist.
    #[must_use]
    #[track_caller]
    pub fn new(namespace: &Namespace, interface: &str) -> Self {
        let socket = packet_socket(namespace, interface, 0);
        // Straight to the driver: nothing queues, and what is full says so.
        set(&socket, libc::SOL_PACKET, libc::PACKET_QDISC_BYPASS, 1);
        Self { socket }
    }

    /// Sends one frame.
    ///
    /// # Panics
    /// When the interface does not take it.
    #[track_caller]
    pub fn send(&self, frame: &[u8]) {
        assert_eq!(self.send_all(&[frame]), 1, "the interface took no frame");
    }

    /// Sends frames in order; returns how many the interface took.
    ///
    /// # Panics
    /// When the interface is gone or down.
    #[track_caller]
    pub fn send_all<F: AsRef<[u8]>>(&self, frames: &[F]) -> usize {
        let mut taken = 0;
        for batch in frames.chunks(BATCH) {
            let mut parts: Vec<libc::iovec> = batch
                .iter()
                .map(|frame| libc::iovec {
                    iov_base: frame.as_ref().as_ptr().cast_mut().cast(),
                    iov_len: frame.as_ref().len(),
                })
                .collect();
            let mut messages: Vec<libc::mmsghdr> = parts
                .iter_mut()
                .map(|part| {
                    // SAFETY: all zeros is a valid message header.
                    let mut message: libc::mmsghdr = unsafe { std::mem::zeroed() };
                    message.msg_hdr.msg_iov = part;
                    message.msg_hdr.msg_iovlen = 1;
                    message
                })
                .collect();
            let mut from = 0;
            while let Some(rest) = messages.get_mut(from..).filter(|rest| !rest.is_empty()) {
                // SAFETY: the headers point to live vectors, and those to live frames, which the
                // kernel only reads.
                let sent = unsafe {
                    libc::sendmmsg(
                        self.socket.as_raw_fd(),
                        rest.as_mut_ptr(),
                        u32::try_from(rest.len()).unwrap_or(1),
                        0,
                    )
                };
                match usize::try_from(sent) {
                    Ok(n) => {
                        taken += n;
                        from += n;
                    }
                    // The receiver's ring was full: that frame is lost.
                    Err(_) => match io::Error::last_os_error() {
                        e if e.raw_os_error() == Some(libc::ENOBUFS) => from += 1,
                        e if e.kind() == io::ErrorKind::Interrupted => {}
                        e => panic!("cannot send: {e}"),
                    },
                }
            }
        }
        taken
    }
}

/// What a [`Counter`] counts.
#[derive(Clone, Copy, Debug)]
pub enum Which {
    /// Packets from these sources.
    From(Prefix),
    /// Frames whose data end with a mark of [`mark`].
    Marked,
}

/// Counts frames that come in on one interface, behind XDP. The kernel counts, so nothing is missed
/// however many there are.
#[derive(Debug)]
pub struct Counter {
    socket: OwnedFd,
    seen: AtomicU64,
}

impl Counter {
    /// A counter on an interface of a namespace.
    ///
    /// # Panics
    /// When the interface does not exist.
    #[must_use]
    #[track_caller]
    pub fn new(namespace: &Namespace, interface: &str, which: Which) -> Self {
        let socket = receiver(namespace, interface, which);
        let counter = Self {
            socket,
            seen: AtomicU64::new(0),
        };
        // What came in between the socket and its filter.
        let _ = counter.packets();
        counter.seen.store(0, Ordering::Relaxed);
        counter
    }

    /// How many came in up to now.
    ///
    /// # Panics
    /// Never in practice: the kernel always knows.
    #[must_use]
    pub fn packets(&self) -> u64 {
        // SAFETY: all zeros is a valid value.
        let mut stats: libc::tpacket_stats = unsafe { std::mem::zeroed() };
        let mut size = socklen::<libc::tpacket_stats>();
        // SAFETY: both pointers are to live values, and the size is the value's.
        let result = unsafe {
            libc::getsockopt(
                self.socket.as_raw_fd(),
                libc::SOL_PACKET,
                libc::PACKET_STATISTICS,
                (&raw mut stats).cast(),
                &raw mut size,
            )
        };
        assert_eq!(result, 0, "{}", io::Error::last_os_error());
        // Reading takes the kernel's count back to zero. What did not fit the buffer is in it too.
        let new = u64::from(stats.tp_packets);
        self.seen.fetch_add(new, Ordering::Relaxed) + new
    }
}

/// Receives the marked frames that come in on one interface, behind XDP.
#[derive(Debug)]
pub struct Tap {
    socket: OwnedFd,
}

impl Tap {
    /// A tap on an interface of a namespace.
    ///
    /// # Panics
    /// When the interface does not exist.
    #[must_use]
    #[track_caller]
    pub fn new(namespace: &Namespace, interface: &str) -> Self {
        let socket = receiver(namespace, interface, Which::Marked);
        set_timeout(&socket);
        Self { socket }
    }

    /// The mark of the next frame; `None` when none came for a short while.
    #[must_use]
    pub fn next(&self) -> Option<u64> {
        let mut frame = [0u8; 1 << 16];
        // SAFETY: the pointer and the length are those of a live buffer.
        let got = unsafe {
            libc::recv(
                self.socket.as_raw_fd(),
                frame.as_mut_ptr().cast(),
                frame.len(),
                0,
            )
        };
        let got = frame.get(..usize::try_from(got).ok()?)?;
        let (_, number) = got.split_last_chunk::<8>()?;
        Some(u64::from_be_bytes(*number))
    }
}

/// Begins a mark: what no other traffic ends with.
const MAGIC: u32 = 0xed9e_51fe;

/// The mark's length in bytes: magic, zeros, number.
const MARK: usize = 16;

/// Writes a mark over the last bytes of a frame. (Its checksum is then wrong, which the packet path
/// does not look at.)
///
/// # Panics
/// When the frame is shorter than the mark.
pub fn mark(frame: &mut [u8], number: u64) {
    let at = frame.len() - MARK;
    frame[at..at + 4].copy_from_slice(&MAGIC.to_be_bytes());
    frame[at + 4..at + 8].fill(0);
    frame[at + 8..].copy_from_slice(&number.to_be_bytes());
}

#[track_caller]
fn receiver(namespace: &Namespace, interface: &str, which: Which) -> OwnedFd {
    let socket = packet_socket(namespace, interface, libc::ETH_P_ALL);
    set(&socket, libc::SOL_PACKET, libc::PACKET_IGNORE_OUTGOING, 1);
    set(
        &socket,
        libc::SOL_SOCKET,
        libc::SO_RCVBUFFORCE,
        RECEIVE_BUFFER,
    );
    let mut program = match which {
        Which::From(prefix) => source_filter(prefix),
        Which::Marked => mark_filter(),
    };
    let filter = libc::sock_fprog {
        len: u16::try_from(program.len()).expect("a short program"),
        filter: program.as_mut_ptr(),
    };
    // SAFETY: the value holds the address and length of a live program, which the kernel copies.
    let result = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_ATTACH_FILTER,
            (&raw const filter).cast(),
            socklen::<libc::sock_fprog>(),
        )
    };
    assert_eq!(result, 0, "{}", io::Error::last_os_error());
    socket
}

// Classic BPF, see `linux/filter.h`. Codes: load a half-word, word, the length; and, subtract;
// jump if equal; return.
const LOAD_HALF: u16 = 0x28;
const LOAD_WORD: u16 = 0x20;
const LOAD_LENGTH: u16 = 0x80;
const LOAD_WORD_AT_X: u16 = 0x40;
const AND: u16 = 0x54;
const SUBTRACT: u16 = 0x14;
const TO_X: u16 = 0x07;
const JUMP_IF_EQUAL: u16 = 0x15;
const RETURN: u16 = 0x06;

fn step(code: u16, k: u32) -> libc::sock_filter {
    libc::sock_filter {
        code,
        jt: 0,
        jf: 0,
        k,
    }
}

/// Jumps of `program` that fail go to its end, where nothing is kept.
fn keep_if(mut program: Vec<libc::sock_filter>) -> Vec<libc::sock_filter> {
    let length = program.len();
    for (i, step) in program.iter_mut().enumerate() {
        if step.code == JUMP_IF_EQUAL {
            step.jf = u8::try_from(length - i).expect("a short program");
        }
    }
    program.push(step(RETURN, u32::MAX));
    program.push(step(RETURN, 0));
    program
}

fn source_filter(prefix: Prefix) -> Vec<libc::sock_filter> {
    let (ethertype, offset, words): (u32, u32, Vec<u32>) = match prefix.addr() {
        IpAddr::V4(a) => (0x0800, 26, vec![a.to_bits()]),
        IpAddr::V6(a) => {
            let words = a.octets();
            let (words, _) = words.as_chunks::<4>();
            (
                0x86dd,
                22,
                words.iter().map(|w| u32::from_be_bytes(*w)).collect(),
            )
        }
    };
    let mut program = vec![step(LOAD_HALF, 12), step(JUMP_IF_EQUAL, ethertype)];
    let mut left = u32::from(prefix.len());
    for (at, word) in (offset..).step_by(4).zip(words) {
        let bits = left.min(32);
        left -= bits;
        let mask = u32::MAX.checked_shl(32 - bits).unwrap_or(0);
        program.extend([
            step(LOAD_WORD, at),
            step(AND, mask),
            step(JUMP_IF_EQUAL, word & mask),
        ]);
    }
    keep_if(program)
}

fn mark_filter() -> Vec<libc::sock_filter> {
    keep_if(vec![
        step(LOAD_LENGTH, 0),
        step(SUBTRACT, 16),
        step(TO_X, 0),
        step(LOAD_WORD_AT_X, 0),
        step(JUMP_IF_EQUAL, MAGIC),
    ])
}

/// A packet socket bound to an interface; `protocol` 0 receives nothing.
#[track_caller]
fn packet_socket(namespace: &Namespace, interface: &str, protocol: i32) -> OwnedFd {
    let index = namespace.ifindex(interface);
    let protocol = u16::try_from(protocol).unwrap_or(0).to_be();
    namespace.inside(|| {
        // SAFETY: no pointers.
        let fd = unsafe {
            libc::socket(
                libc::AF_PACKET,
                libc::SOCK_RAW | libc::SOCK_CLOEXEC,
                // Nothing is received before it is bound.
                0,
            )
        };
        assert!(fd >= 0, "{}", io::Error::last_os_error());
        // SAFETY: new, and nobody else has it.
        let socket = unsafe { OwnedFd::from_raw_fd(fd) };
        // SAFETY: all zeros is a valid address.
        let mut address: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
        address.sll_family = u16::try_from(libc::AF_PACKET).unwrap_or(0);
        address.sll_protocol = protocol;
        address.sll_ifindex = i32::try_from(index).unwrap_or(0);
        // SAFETY: the pointer is to a live address of that size.
        let bound = unsafe {
            libc::bind(
                fd,
                (&raw const address).cast(),
                socklen::<libc::sockaddr_ll>(),
            )
        };
        assert_eq!(bound, 0, "{}", io::Error::last_os_error());
        socket
    })
}

#[track_caller]
fn set(socket: &OwnedFd, level: i32, option: i32, value: i32) {
    // SAFETY: the pointer is to a live integer of that size.
    let result = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            level,
            option,
            (&raw const value).cast(),
            socklen::<i32>(),
        )
    };
    assert_eq!(result, 0, "{}", io::Error::last_os_error());
}

/// Receiving gives up after a short while, so that the caller can look at its deadline.
#[track_caller]
fn set_timeout(socket: &OwnedFd) {
    let patience = libc::timeval {
        tv_sec: 0,
        tv_usec: 50_000,
    };
    // SAFETY: the pointer is to a live value of that size.
    let result = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_RCVTIMEO,
            (&raw const patience).cast(),
            socklen::<libc::timeval>(),
        )
    };
    assert_eq!(result, 0, "{}", io::Error::last_os_error());
}

fn socklen<T>() -> libc::socklen_t {
    libc::socklen_t::try_from(size_of::<T>()).unwrap_or(0)
}
