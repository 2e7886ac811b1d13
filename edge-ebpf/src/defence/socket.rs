//! What the kernel knows of a connection.

use super::{cookie::SYN_LEN, frame::Frame};
use aya_ebpf::{
    bindings::{bpf_sock, bpf_sock_tuple, xdp_md},
    helpers::generated::{bpf_sk_release, bpf_skc_lookup_tcp, bpf_tcp_gen_syncookie},
};

/// `BPF_TCP_LISTEN` (linux/bpf.h).
const LISTEN: u32 = 10;
/// `BPF_F_CURRENT_NETNS`.
const CURRENT_NETNS: u64 = u64::MAX;

/// What a look-up found.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Found {
    /// Neither connection nor listener.
    Nothing,
    /// A listener, and no connection.
    Listener,
    /// A connection in any state, closing ones included.
    Connection,
}

/// Looks for the connection, then for the listener, of a packet. A listener is
/// marked, if `mark`, by the headers of a SYN for it that [`crate::defence::cookie::prepare`]
/// has left in the scratch: from then on it takes raw cookies for two minutes. The
/// second value says whether the kernel did that.
#[inline(always)]
pub fn look_up(ctx: *mut xdp_md, frame: Frame, mark: bool) -> (Found, bool) {
    // In memory: source, destination, the two ports.
    // SAFETY: a map value that belongs to this CPU.
    let tuple = unsafe { (&raw mut (*frame.scratch).tuple).cast::<u32>() };
    let put = |at: usize, word: u32| {
        // SAFETY: there are nine words.
        unsafe { tuple.add(at).write(word) };
    };
    let ([s0, s1], [d0, d1]) = (frame.source(), frame.dest());
    let size = if frame.is_v6() {
        let mut at = 0;
        for half in [
            frame.source()[0],
            frame.source()[1],
            frame.dest()[0],
            frame.dest()[1],
        ] {
            let [a, b] = halves(half);
            put(at, a);
            put(at + 1, b);
            at += 2;
        }
        put(8, frame.ports());
        36
    } else {
        put(0, Frame::v4([s0, s1]));
        put(1, Frame::v4([d0, d1]));
        put(2, frame.ports());
        12
    };
    // SAFETY: the tuple has at least `size` bytes and the layout of the family
    // that the size tells; `ctx` is the running program's.
    let sk: *mut bpf_sock = unsafe {
        bpf_skc_lookup_tcp(
            ctx.cast(),
            tuple.cast::<bpf_sock_tuple>(),
            size,
            CURRENT_NETNS,
            0,
        )
    };
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
                    (&raw mut (*frame.scratch).ip).cast(),
                    if frame.is_v6() { 40 } else { 20 },
                    (&raw mut (*frame.scratch).tcp).cast(),
                    SYN_LEN,
                )
            } > 0;
        }
        Found::Listener
    } else {
        Found::Connection
    };
    // SAFETY: from the look-up above, released once.
    unsafe { bpf_sk_release(sk.cast()) };
    (found, marked)
}

#[inline(always)]
pub fn halves(double: u64) -> [u32; 2] {
    let [a, b, c, d, e, f, g, h] = double.to_ne_bytes();
    [
        u32::from_ne_bytes([a, b, c, d]),
        u32::from_ne_bytes([e, f, g, h]),
    ]
}
