//! The kernel's SYN cookies: its own secret, so that its TCP takes them.

use super::{frame::Frame, socket::halves};
use aya_ebpf::helpers::generated::{
    bpf_tcp_raw_check_syncookie_ipv4, bpf_tcp_raw_check_syncookie_ipv6,
    bpf_tcp_raw_gen_syncookie_ipv4, bpf_tcp_raw_gen_syncookie_ipv6,
};
use edge_common::parse::tcp as flag;

/// Bytes of the header of a SYN as it is prepared: with one option.
pub const SYN_LEN: u32 = 24;

/// Puts the headers of a SYN with this sequence number and MSS (0: none) into the
/// scratch. Nothing else of it counts for a cookie.
#[inline(always)]
pub fn prepare(frame: Frame, seq: u32, mss: u16) {
    // Without an MSS two no-operations and an end: the kernel assumes its default.
    let option = if mss == 0 {
        0x0101_0000
    } else {
        0x0204_0000 | mss as u32
    };
    let control = 6 << 28 | (flag::SYN as u32) << 16;
    ip(frame);
    // SAFETY: a map value that belongs to this CPU.
    unsafe {
        (&raw mut (*frame.scratch).tcp).write([
            frame.ports(),
            seq.to_be(),
            0,
            control.to_be(),
            0,
            option.to_be(),
        ]);
    }
}

/// The IP header, as far as cookies depend on it.
#[inline(always)]
fn ip(frame: Frame) {
    // SAFETY: a map value that belongs to this CPU.
    let ip = unsafe { (&raw mut (*frame.scratch).ip).cast::<u32>() };
    let put = |at: usize, word: u32| {
        // SAFETY: there are ten words.
        unsafe { ip.add(at).write(word) };
    };
    let ([s0, s1], [d0, d1]) = (frame.source(), frame.dest());
    if frame.is_v6() {
        put(0, 0x6000_0000u32.to_be());
        let mut at = 2;
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
    } else {
        put(0, 0x4500_0000u32.to_be());
        put(3, Frame::v4([s0, s1]));
        put(4, Frame::v4([d0, d1]));
    }
}

/// The cookie for the SYN that was prepared; `None` when the kernel has none to give.
#[inline(always)]
pub fn make(frame: Frame) -> Option<u32> {
    // SAFETY: both headers are in the scratch, and as long as the helper reads.
    let cookie = unsafe {
        let (ip, tcp) = (&raw mut (*frame.scratch).ip, &raw mut (*frame.scratch).tcp);
        if frame.is_v6() {
            bpf_tcp_raw_gen_syncookie_ipv6(ip.cast(), tcp.cast(), SYN_LEN)
        } else {
            bpf_tcp_raw_gen_syncookie_ipv4(ip.cast(), tcp.cast(), SYN_LEN)
        }
    };
    // The lower half; the MSS that was taken stands in the upper one.
    if cookie < 0 {
        None
    } else {
        Some(cookie as u32)
    }
}

/// Whether `ack` acknowledges a cookie for a SYN that came from `seq` − 1.
#[inline(always)]
pub fn is_valid(frame: Frame, seq: u32, ack: u32) -> bool {
    ip(frame);
    // SAFETY: a map value that belongs to this CPU; both headers are as long as
    // the helper reads.
    let result = unsafe {
        let control = 5 << 28 | (flag::ACK as u32) << 16;
        let (ip, tcp) = (&raw mut (*frame.scratch).ip, &raw mut (*frame.scratch).tcp);
        tcp.write([
            frame.ports(),
            seq.to_be(),
            ack.to_be(),
            control.to_be(),
            0,
            0,
        ]);
        if frame.is_v6() {
            bpf_tcp_raw_check_syncookie_ipv6(ip.cast(), tcp.cast())
        } else {
            bpf_tcp_raw_check_syncookie_ipv4(ip.cast(), tcp.cast())
        }
    };
    result == 0
}
