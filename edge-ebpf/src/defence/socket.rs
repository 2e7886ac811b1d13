//! What the kernel knows of a connection.

use super::{cookie::SYN_LEN, frame::Frame};
use crate::maps::Scratch;
use aya_ebpf::{
    bindings::{bpf_sock, bpf_sock_tuple, xdp_md},
    helpers::generated::{
        bpf_sk_lookup_udp, bpf_sk_release, bpf_skc_lookup_tcp, bpf_tcp_gen_syncookie,
    },
};

/// `BPF_TCP_LISTEN` and `BPF_TCP_NEW_SYN_RECV` (linux/bpf.h).
const LISTEN: u32 = 10;
const NEW_SYN_RECV: u32 = 12;
/// `BPF_F_CURRENT_NETNS`.
const CURRENT_NETNS: u64 = u64::MAX;

/// What a look-up found.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Found {
    /// Neither connection nor listener.
    Nothing,
    /// A listener, and no connection.
    Listener,
    /// What the kernel remembers of a SYN: nothing is proven.
    Request,
    /// A connection in any state, closing ones included.
    Connection,
}

/// Looks for the connection, then for the listener, of a packet. A listener is
/// marked, if `mark`, by the headers of a SYN for it that
/// [`super::cookie::prepare`] has left in the scratch: from then on it takes raw
/// cookies for two minutes. The second value says whether the kernel did that.
#[inline(always)]
pub fn look_up(ctx: *mut xdp_md, frame: Frame, mark: bool) -> (Found, bool) {
    find_tcp(
        ctx,
        frame.scratch,
        frame.is_v6(),
        frame.source(),
        frame.dest(),
        frame.ports(),
        mark,
    )
}

/// The same for the two ends of a connection; `ports` are those of a packet from
/// the remote end, as read from the wire.
#[inline(always)]
pub fn find_tcp(
    ctx: *mut xdp_md,
    scratch: *mut Scratch,
    v6: bool,
    remote: [u64; 2],
    local: [u64; 2],
    ports: u32,
    mark: bool,
) -> (Found, bool) {
    let (tuple, size) = tuple(scratch, v6, remote, local, ports);
    // SAFETY: the tuple has at least `size` bytes and the layout of the family
    // that the size tells; `ctx` is the running program's.
    let sk: *mut bpf_sock =
        unsafe { bpf_skc_lookup_tcp(ctx.cast(), tuple, size, CURRENT_NETNS, 0) };
    if sk.is_null() {
        return (Found::Nothing, false);
    }
    // SAFETY: not null, and held until it is released below.
    let state = unsafe { (&raw const (*sk).state).read_volatile() };
    let mut marked = false;
    let found = if state == LISTEN {
        if mark {
            // SAFETY: a listener that is held; both headers are in the scratch and
            // as long as is said.
            marked = unsafe {
                bpf_tcp_gen_syncookie(
                    sk.cast(),
                    (&raw mut (*scratch).ip).cast(),
                    if v6 { 40 } else { 20 },
                    (&raw mut (*scratch).tcp).cast(),
                    SYN_LEN,
                )
            } > 0;
        }
        Found::Listener
    } else if state == NEW_SYN_RECV {
        Found::Request
    } else {
        Found::Connection
    };
    // SAFETY: from the look-up above, released once.
    unsafe { bpf_sk_release(sk.cast()) };
    (found, marked)
}

/// Whether there is a UDP socket for packets between these ends.
#[inline(always)]
pub fn is_udp(
    ctx: *mut xdp_md,
    scratch: *mut Scratch,
    v6: bool,
    remote: [u64; 2],
    local: [u64; 2],
    ports: u32,
) -> bool {
    let (tuple, size) = tuple(scratch, v6, remote, local, ports);
    // SAFETY: as in `find_tcp`.
    let sk: *mut bpf_sock = unsafe { bpf_sk_lookup_udp(ctx.cast(), tuple, size, CURRENT_NETNS, 0) };
    if sk.is_null() {
        return false;
    }
    // SAFETY: from the look-up above, released once.
    unsafe { bpf_sk_release(sk.cast()) };
    true
}

/// The tuple for a look-up, in the scratch, and its size, which tells the family.
#[inline(always)]
fn tuple(
    scratch: *mut Scratch,
    v6: bool,
    remote: [u64; 2],
    local: [u64; 2],
    ports: u32,
) -> (*mut bpf_sock_tuple, u32) {
    // In memory: source, destination, the two ports.
    // SAFETY: a map value that belongs to this CPU.
    let words = unsafe { (&raw mut (*scratch).tuple).cast::<u32>() };
    let put = |at: usize, word: u32| {
        // SAFETY: there are nine words.
        unsafe { words.add(at).write(word) };
    };
    let size = if v6 {
        let mut at = 0;
        for half in [remote[0], remote[1], local[0], local[1]] {
            let [a, b] = halves(half);
            put(at, a);
            put(at + 1, b);
            at += 2;
        }
        put(8, ports);
        36
    } else {
        put(0, Frame::v4(remote));
        put(1, Frame::v4(local));
        put(2, ports);
        12
    };
    (words.cast(), size)
}

#[inline(always)]
pub fn halves(double: u64) -> [u32; 2] {
    let [a, b, c, d, e, f, g, h] = double.to_ne_bytes();
    [
        u32::from_ne_bytes([a, b, c, d]),
        u32::from_ne_bytes([e, f, g, h]),
    ]
}
