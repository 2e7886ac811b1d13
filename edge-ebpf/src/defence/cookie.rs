//! The kernel's SYN cookies: its own secret, so that its TCP takes them.

use super::{frame::Frame, socket::Syn};
use aya_ebpf::helpers::generated::{
    bpf_tcp_raw_check_syncookie_ipv4, bpf_tcp_raw_check_syncookie_ipv6,
    bpf_tcp_raw_gen_syncookie_ipv4, bpf_tcp_raw_gen_syncookie_ipv6,
};
use edge_common::parse::tcp as flag;

/// The headers of a SYN with this sequence number and MSS (0: none).
#[inline(always)]
pub fn syn(frame: &Frame, seq: u32, mss: u16) -> Syn {
    // Without an MSS two NOPs and an end: the kernel assumes its default.
    let option = if mss == 0 {
        0x0101_0000
    } else {
        0x0204_0000 | mss as u32
    };
    Syn {
        ip: ip(frame),
        tcp: [
            frame.tcp[0],
            seq.to_be(),
            0,
            (6 << 28 | (flag::SYN as u32) << 16).to_be(),
            0,
            option.to_be(),
        ],
    }
}

/// The IP header, as far as cookies depend on it.
#[inline(always)]
fn ip(frame: &Frame) -> [u32; 10] {
    let mut ip = [0; 10];
    if frame.v6 {
        ip[0] = 0x6000_0000u32.to_be();
        let words = [
            frame.source[0],
            frame.source[1],
            frame.dest[0],
            frame.dest[1],
        ];
        let mut i = 0;
        while i < 4 {
            let [a, b, c, d, e, f, g, h] = words[i].to_ne_bytes();
            ip[2 + 2 * i] = u32::from_ne_bytes([a, b, c, d]);
            ip[3 + 2 * i] = u32::from_ne_bytes([e, f, g, h]);
            i += 1;
        }
    } else {
        ip[0] = 0x4500_0000u32.to_be();
        ip[3] = Frame::v4(frame.source);
        ip[4] = Frame::v4(frame.dest);
    }
    ip
}

/// The cookie for a SYN; `None` when the kernel has none to give.
#[inline(always)]
pub fn make(frame: &Frame, syn: &Syn) -> Option<u32> {
    let ip = (&raw const syn.ip).cast_mut();
    let tcp = (&raw const syn.tcp).cast_mut();
    let len = size_of_val(&syn.tcp) as u32;
    // SAFETY: both headers are on the stack, and as long as the helper reads.
    let cookie = unsafe {
        if frame.v6 {
            bpf_tcp_raw_gen_syncookie_ipv6(ip.cast(), tcp.cast(), len)
        } else {
            bpf_tcp_raw_gen_syncookie_ipv4(ip.cast(), tcp.cast(), len)
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
pub fn is_valid(frame: &Frame, seq: u32, ack: u32) -> bool {
    let ip = ip(frame);
    let tcp = [
        frame.tcp[0],
        seq.to_be(),
        ack.to_be(),
        (5 << 28 | (flag::ACK as u32) << 16).to_be(),
        0,
    ];
    let ip = (&raw const ip).cast_mut();
    let tcp = (&raw const tcp).cast_mut();
    // SAFETY: both headers are on the stack, and as long as the helper reads.
    let result = unsafe {
        if frame.v6 {
            bpf_tcp_raw_check_syncookie_ipv6(ip.cast(), tcp.cast())
        } else {
            bpf_tcp_raw_check_syncookie_ipv4(ip.cast(), tcp.cast())
        }
    };
    result == 0
}
