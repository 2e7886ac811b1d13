//! What the kernel knows of a connection.

use super::frame::Frame;
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
/// marked, if `mark` has the head and the header of a SYN for it: from then on
/// it takes raw cookies for two minutes. The second value says whether the
/// kernel did that.
#[inline(always)]
pub fn look_up(ctx: *mut xdp_md, frame: &Frame, mark: Option<&Syn>) -> (Found, bool) {
    // In memory: source, destination, the two ports.
    let mut tuple = [0u32; 9];
    let size = if frame.v6 {
        let [s0, s1] = frame.source;
        let [d0, d1] = frame.dest;
        let words = [s0, s1, d0, d1].map(halves);
        let mut i = 0;
        while i < 4 {
            tuple[2 * i] = words[i][0];
            tuple[2 * i + 1] = words[i][1];
            i += 1;
        }
        tuple[8] = frame.tcp[0];
        36
    } else {
        tuple[0] = Frame::v4(frame.source);
        tuple[1] = Frame::v4(frame.dest);
        tuple[2] = frame.tcp[0];
        12
    };
    // SAFETY: the tuple has at least `size` bytes and the layout of the family
    // that the size tells; `ctx` is the running program's.
    let sk: *mut bpf_sock = unsafe {
        bpf_skc_lookup_tcp(
            ctx.cast(),
            (&raw mut tuple).cast::<bpf_sock_tuple>(),
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
        if let Some(syn) = mark {
            // SAFETY: a listener that is held; both headers are on the stack and
            // as long as is said.
            marked = unsafe {
                bpf_tcp_gen_syncookie(
                    sk.cast(),
                    (&raw const syn.ip).cast_mut().cast(),
                    if frame.v6 { 40 } else { 20 },
                    (&raw const syn.tcp).cast_mut().cast(),
                    size_of_val(&syn.tcp) as u32,
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
fn halves(double: u64) -> [u32; 2] {
    let [a, b, c, d, e, f, g, h] = double.to_ne_bytes();
    [
        u32::from_ne_bytes([a, b, c, d]),
        u32::from_ne_bytes([e, f, g, h]),
    ]
}

/// The headers of a SYN as the kernel's cookie functions want them: the MSS is
/// the only option that counts for them.
#[derive(Clone, Copy)]
pub struct Syn {
    /// The IPv4 header, or the IPv6 one.
    pub ip: [u32; 10],
    /// The TCP header.
    pub tcp: [u32; 6],
}
