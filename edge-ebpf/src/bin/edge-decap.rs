//! `edge decap`: takes packets out of tunnels on a backend of the load balancer and
//! hands them to the kernel, which has the service's address. An object of its own,
//! loaded by a process of its own.
#![no_std]
#![no_main]
// Inline assembly for BPF is not stable yet; see `source`.
#![feature(asm_experimental_arch)]

#[path = "../source.rs"]
#[allow(dead_code, reason = "it has more than is needed here")]
mod source;

use aya_ebpf::{
    bindings::{BPF_F_NO_PREALLOC, xdp_action},
    helpers::generated::bpf_xdp_adjust_head,
    macros::{map, xdp},
    maps::{HashMap, LpmTrie, PerCpuArray, lpm_trie::Key},
    programs::XdpContext,
};
use edge_common::{
    addr::Family,
    decap::{self, CHECKSUM_AT, Inner, MAX_LOCAL, Outcome},
    parse::{self, Ip, Network, V4, V6, ethertype},
    reason::Verdict,
    tunnel,
};
use source::XdpSource;

#[map]
static SOURCES4: LpmTrie<V4, u32> = LpmTrie::with_max_entries(1, BPF_F_NO_PREALLOC);
#[map]
static SOURCES6: LpmTrie<V6, u32> = LpmTrie::with_max_entries(1, BPF_F_NO_PREALLOC);
#[map]
static LOCAL4: HashMap<V4, u32> = HashMap::with_max_entries(MAX_LOCAL, 0);
#[map]
static LOCAL6: HashMap<V6, u32> = HashMap::with_max_entries(MAX_LOCAL, 0);
#[map]
static OUTCOMES: PerCpuArray<u64> = PerCpuArray::with_max_entries(Outcome::COUNT as u32, 0);

// SAFETY: no other symbol of the object has this name.
#[unsafe(no_mangle)]
static GUE_PORT: u16 = tunnel::GUE_PORT.to_be();

/// The XDP program. Aware of multi-buffer frames, so that jumbo MTUs attach.
#[xdp(frags)]
pub fn edge_decap(ctx: XdpContext) -> u32 {
    let outcome = run(&ctx);
    if let Some(n) = OUTCOMES.get_ptr_mut(outcome as u32) {
        // SAFETY: the element belongs to this CPU, and XDP programs of one CPU run one
        // after the other.
        unsafe { *n += 1 };
    }
    match outcome.verdict() {
        Verdict::Drop => xdp_action::XDP_DROP,
        Verdict::Pass | Verdict::Reply | Verdict::Forward => xdp_action::XDP_PASS,
    }
}

/// What is malformed outside is no tunnel: the kernel refuses it.
#[inline(always)]
fn run(ctx: &XdpContext) -> Outcome {
    let frame = XdpSource::new(ctx);
    let Ok(link) = parse::link(&frame) else {
        return Outcome::Pass;
    };
    let at = link.offset;
    match link.network {
        Network::Ipv4 => match parse::ipv4(&frame, at) {
            Ok(ip) => tunnelled(ctx, at, Family::V4, &ip),
            Err(_) => Outcome::Pass,
        },
        Network::Ipv6 => match parse::ipv6(&frame, at) {
            Ok(ip) => tunnelled(ctx, at, Family::V6, &ip),
            Err(_) => Outcome::Pass,
        },
        Network::Arp | Network::Other => Outcome::Pass,
    }
}

/// What becomes of an IP packet whose header is at `network`.
#[inline(always)]
fn tunnelled<A: Address>(ctx: &XdpContext, network: usize, family: Family, ip: &Ip<A>) -> Outcome {
    let frame = XdpSource::new(ctx);
    // SAFETY: a static that nobody writes once the program is loaded. Volatile, so that
    // the compiler does not put in the port that the object was built with.
    let gue_port = unsafe { (&raw const GUE_PORT).read_volatile() };
    let Some(tunnel) = decap::find(&frame, ip, gue_port) else {
        return Outcome::Pass;
    };
    if !ip.dest.is_local() {
        return Outcome::Pass;
    }
    if tunnel.is_fragment {
        return Outcome::PassFragment;
    }
    if !ip.source.is_allowed() {
        return Outcome::SourceNotAllowed;
    }
    let Some(outer) = frame.read::<u16>(network) else {
        return Outcome::Pass;
    };
    match decap::open(&frame, &tunnel, outer, family) {
        Ok(inner) => take_out(ctx, network, tunnel.inner, &inner),
        Err(outcome) => outcome,
    }
}

/// Moves the link layer, tags included, right before the inner packet, and makes the
/// frame begin there.
#[inline(always)]
fn take_out(ctx: &XdpContext, network: usize, inner_at: usize, inner: &Inner) -> Outcome {
    let frame = XdpSource::new(ctx);
    let Some(macs) = frame.read::<[u32; 3]>(0) else {
        return Outcome::InnerTruncated;
    };
    let tag = |n: usize| frame.read::<u32>(12 + 4 * n).unwrap_or_default();
    let tags = [tag(0), tag(1)];
    // SAFETY: the context is the running program's; packet pointers are made anew below.
    if unsafe { bpf_xdp_adjust_head(ctx.ctx, (inner_at - network) as i32) } != 0 {
        return Outcome::InnerTruncated;
    }
    let frame = XdpSource::new(ctx);
    let ether_type = match inner.family {
        Family::V4 => ethertype::IPV4,
        Family::V6 => ethertype::IPV6,
    };
    let written = frame.write(0, macs)
        && (network < 18 || frame.write(12, tags[0]))
        && (network < 22 || frame.write(16, tags[1]))
        && frame.write(network - 2, ether_type);
    let marked = match (inner.mark, inner.family) {
        (None, _) => true,
        (Some(mark), Family::V6) => frame.write(network, mark.head),
        (Some(mark), Family::V4) => {
            frame.write(network, mark.head) && frame.write(network + CHECKSUM_AT, mark.checksum)
        }
    };
    // All of it lies in what was read before.
    if written && marked {
        inner.outcome
    } else {
        Outcome::InnerTruncated
    }
}

/// Look-ups by the addresses of the outer header.
trait Address: Copy {
    /// Whether tunnels may come from it.
    fn is_allowed(self) -> bool;
    /// Whether tunnels may go to it.
    fn is_local(self) -> bool;
}

impl Address for V4 {
    #[inline(always)]
    fn is_allowed(self) -> bool {
        SOURCES4.get(Key::new(32, self)).is_some()
    }

    #[inline(always)]
    fn is_local(self) -> bool {
        LOCAL4.get_ptr(self).is_some()
    }
}

impl Address for V6 {
    #[inline(always)]
    fn is_allowed(self) -> bool {
        SOURCES6.get(Key::new(128, self)).is_some()
    }

    #[inline(always)]
    fn is_local(self) -> bool {
        LOCAL6.get_ptr(self).is_some()
    }
}

#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    // The verifier refuses a program in which this could be reached.
    loop {}
}

// SAFETY: where loaders look for the licence; a static of plain bytes, whose name nothing else has.
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";
