//! Replies of TCP. With `balance` the only packet writes.

use crate::{defence::frame::Frame, emit::Facts, maps::config, source::XdpSource};
use aya_ebpf::helpers::generated::bpf_xdp_adjust_tail;
use edge_common::{
    defence::reply::TCP_WORDS,
    parse::proto,
    tunnel::{ipv4_outer, ipv6_outer},
};

/// Bytes of the fixed headers.
const IPV4_LEN: usize = 20;
const IPV6_LEN: usize = 40;

/// Makes a packet into a reply to it: its link layer turned round, tags kept,
/// then an IP header, and the TCP header in the scratch. `false` when it could not
/// be: there is no room for a longer one. Then it is as it was.
#[inline(always)]
pub fn reply(facts: Facts<'_>, frame: Frame) -> bool {
    let ctx = facts.ctx;
    let source = XdpSource::new(ctx);
    let network = frame.network() as usize;
    let ip_len = if frame.is_v6() { IPV6_LEN } else { IPV4_LEN };
    // SAFETY: a map value that belongs to this CPU.
    let segment = unsafe { &(*frame.scratch).reply };
    // Never more words than there are: the mask is for the verifier.
    let words = segment.len & 0xf;
    let tcp_len = words * 4;
    let new_len = (network + ip_len) as u32 + tcp_len;
    let linear = source.linear_len() as u32;
    // Of several buffers, or headers that end in another one: none is a mere SYN.
    if facts.frame_len > linear {
        return false;
    }
    let old_len = linear;
    // The answer to a SYN of the usual options is as long as the SYN.
    if new_len != old_len {
        let delta = new_len as i32 - old_len as i32;
        // SAFETY: the context is the running program's; packet pointers are made anew below.
        if unsafe { bpf_xdp_adjust_tail(ctx.ctx, delta) } != 0 {
            return false;
        }
    }
    let out = XdpSource::new(ctx);
    let ends = frame.reversed();
    let hops = config!(reply_ttl) as u8;
    let written = turn_round(&out)
        && if frame.is_v6() {
            out.write(
                network,
                ipv6_outer(
                    ends.source,
                    ends.dest,
                    proto::TCP,
                    tcp_len as u16,
                    hops,
                    0,
                    0,
                ),
            )
        } else {
            let (from, to) = (Frame::v4(ends.source), Frame::v4(ends.dest));
            out.write(
                network,
                ipv4_outer(from, to, proto::TCP, (tcp_len + 20) as u16, hops, 0),
            )
        };
    let at = network + ip_len;
    let [a, b, c, d, e, f, g, h, i, j] = segment.words;
    const { assert!(TCP_WORDS == 10) };
    written
        && out.write(at, [a, b, c, d, e])
        && (words < 6 || out.write(at + 20, [f]))
        && (words < 9 || out.write(at + 24, [g, h, i]))
        && (words < 10 || out.write(at + 36, [j]))
}

/// Source and destination MAC address change places.
#[inline(always)]
pub fn turn_round(frame: &XdpSource<'_>) -> bool {
    let Some([a, b, c, d, e, f]) = frame.read::<[u16; 6]>(0) else {
        return false;
    };
    frame.write(0, [d, e, f, a, b, c])
}
