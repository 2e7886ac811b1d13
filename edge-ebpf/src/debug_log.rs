//! A line of log for every packet that is dropped or would be, with the feature
//! `debug-log` only: a line costs more than all checks together.

use crate::{emit::Facts, source::XdpSource};
use aya_ebpf::{bindings::xdp_md, programs::XdpContext};
use aya_log_ebpf::debug;
use edge_common::{
    parse::{self, Network, PacketSource},
    reason::Reason,
};

/// Width of [`TEXTS`]. All lines are padded to one length, because the verifier
/// must know where in a record the parts behind a text lie.
const WIDTH: usize = 32;
const DRY_RUN: &[u8] = b" (dry run)";

/// What a line says was found: the name of each reason, and the same again for
/// the dry run. Bytes and no `&str`: the loader does not relocate pointers in data.
static TEXTS: [[u8; WIDTH]; 2 * Reason::COUNT] = texts();

const fn texts() -> [[u8; WIDTH]; 2 * Reason::COUNT] {
    let mut texts = [[b' '; WIDTH]; 2 * Reason::COUNT];
    let mut at = 0;
    while at < texts.len() {
        let name = Reason::ALL[at / 2].name().as_bytes();
        let mut n = 0;
        while n < name.len() {
            texts[at][n] = name[n];
            n += 1;
        }
        let mut suffix = 0;
        while at % 2 == 1 && suffix < DRY_RUN.len() {
            texts[at][n + suffix] = DRY_RUN[suffix];
            suffix += 1;
        }
        at += 1;
    }
    texts
}

/// Logs what a check found.
#[inline(always)]
pub fn found(facts: Facts<'_>, reason: Reason, would_drop: bool) {
    let which = reason.index() << 1 | would_drop as u32;
    edge_debug_log(facts.ctx.ctx, facts.frame_len, which);
}

/// A global function like `edge_sample`: the verifier goes through a call of the
/// log in 2,205 instructions, and there are many checks.
#[inline(never)]
// SAFETY: no other symbol of the object has this name.
#[unsafe(no_mangle)]
extern "C" fn edge_debug_log(ctx: *mut xdp_md, frame_len: u32, reason_and_would: u32) -> u32 {
    let Some(text) = TEXTS.get(reason_and_would as usize) else {
        return 0;
    };
    // SAFETY: every name is ASCII.
    let text = unsafe { core::str::from_utf8_unchecked(text) };
    // SAFETY: callers pass the context of the running program.
    let interface = unsafe { (*ctx).ingress_ifindex };
    let ctx = XdpContext::new(ctx);
    let packet = XdpSource::new(&ctx);
    let (network, at) = match parse::link(&packet) {
        Ok(link) => (link.network, link.offset),
        Err(_) => (Network::Other, 0),
    };
    // The source is 12 bytes into an IPv4 header, 8 into one of IPv6.
    match network {
        Network::Ipv4 => {
            if let Some([source]) = packet.words::<1>(at + 12) {
                let source = u32::from_be(source);
                debug!(
                    &ctx,
                    "interface {}, {} bytes from {:i}: {}", interface, frame_len, source, text
                );
                return 1;
            }
        }
        Network::Ipv6 => {
            if let Some(source) = packet.words::<4>(at + 8) {
                let source = source.map(u32::to_ne_bytes);
                // SAFETY: 16 bytes either way, and any bytes are bytes.
                let source: [u8; 16] = unsafe { core::mem::transmute(source) };
                debug!(
                    &ctx,
                    "interface {}, {} bytes from {:i}: {}", interface, frame_len, source, text
                );
                return 1;
            }
        }
        Network::Arp | Network::Other => {}
    }
    debug!(
        &ctx,
        "interface {}, {} bytes: {}", interface, frame_len, text
    );
    1
}
