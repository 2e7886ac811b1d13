//! Programs of `cargo xtask bench`: the harness, which gives each packet its
//! source and hands it to the program under test, and what that is compared with.
//!
//! The harness restores nothing in the packet but the source, except for SYNs, which are
//! answered in place, and for what is forwarded: those frames it makes anew. A test run
//! keeps the frame between rounds, head included. It writes the source in whole
//! words: of bytes that were written one by one the processor makes no word before
//! all have reached the cache, and a program that reads the source at once would be
//! charged with that wait, which no packet from a NIC has.
#![no_std]
#![no_main]
// Inline assembly for BPF is not stable yet; what stands for a program's work needs it.
#![feature(asm_experimental_arch)]

use aya_ebpf::{
    bindings::{BPF_F_MMAPABLE, BPF_F_NO_PREALLOC, bpf_sock_tuple, xdp_action},
    helpers::{
        bpf_ktime_get_ns,
        generated::{
            bpf_redirect, bpf_sk_release, bpf_skc_lookup_tcp, bpf_tcp_raw_check_syncookie_ipv4,
            bpf_tcp_raw_check_syncookie_ipv6, bpf_tcp_raw_gen_syncookie_ipv4,
            bpf_tcp_raw_gen_syncookie_ipv6, bpf_xdp_adjust_head,
        },
    },
    macros::{map, xdp},
    maps::{Array, HashMap, LpmTrie, ProgramArray, lpm_trie::Key},
    programs::XdpContext,
};
use core::arch::asm;
use edge_common::{
    bench::{
        DEST4_AT, DEST6_AT, Drive, LISTED, PATIENCE_NS, Pace, SLACK_NS, SOURCE4_AT, SOURCE6_AT,
        SYN4_LEN, SYN6_LEN, Syn, TCP_FLAGS_AT, TCP4_AT, TCP6_AT,
    },
    hash::{Seed, hash64, reduce},
    header::Sum,
    parse::tcp as flag,
};

#[map]
static DRIVE: Array<Drive> = Array::with_max_entries(1, BPF_F_MMAPABLE);
#[map]
static SOURCES: Array<u64> = Array::with_max_entries(LISTED, BPF_F_MMAPABLE);
#[map]
static UNDER_TEST: ProgramArray = ProgramArray::with_max_entries(1, 0);
/// The kernel has one array for programs of one kind.
#[map]
static UNDER_TEST_LINEAR: ProgramArray = ProgramArray::with_max_entries(1, 0);
#[map]
static HASH4: HashMap<u32, u32> = HashMap::with_max_entries(1, 0);
#[map]
static HASH6: HashMap<[u32; 4], u32> = HashMap::with_max_entries(1, 0);
#[map]
static LPM4: LpmTrie<u32, u32> = LpmTrie::with_max_entries(1, BPF_F_NO_PREALLOC);
#[map]
static LPM6: LpmTrie<[u32; 4], u32> = LpmTrie::with_max_entries(1, BPF_F_NO_PREALLOC);
#[map]
static LINES4: Array<[u64; 8]> = Array::with_max_entries(1, 0);
#[map]
static LINES6: Array<[u64; 16]> = Array::with_max_entries(1, 0);
#[map]
static SYN: Array<Syn> = Array::with_max_entries(1, BPF_F_MMAPABLE);
#[map]
static PACE: Array<Pace> = Array::with_max_entries(1, BPF_F_MMAPABLE);
#[map]
static TO: Array<u64> = Array::with_max_entries(1, BPF_F_MMAPABLE);

/// Gives the packet the next IPv4 source and runs the program under test.
#[xdp(frags)]
pub fn harness4(ctx: XdpContext) -> u32 {
    match put_source4(&ctx) {
        Some(()) => under_test(&ctx),
        None => xdp_action::XDP_ABORTED,
    }
}

/// Gives the packet the next IPv6 source and runs the program under test.
#[xdp(frags)]
pub fn harness6(ctx: XdpContext) -> u32 {
    match put_source6(&ctx) {
        Some(()) => under_test(&ctx),
        None => xdp_action::XDP_ABORTED,
    }
}

/// [`harness4`] for programs that know no frames of several buffers.
#[xdp]
pub fn harness_linear4(ctx: XdpContext) -> u32 {
    match put_source4(&ctx) {
        Some(()) => linear_under_test(&ctx),
        None => xdp_action::XDP_ABORTED,
    }
}

/// [`harness6`] likewise.
#[xdp]
pub fn harness_linear6(ctx: XdpContext) -> u32 {
    match put_source6(&ctx) {
        Some(()) => linear_under_test(&ctx),
        None => xdp_action::XDP_ABORTED,
    }
}

/// [`floor_pass`] likewise.
#[xdp]
pub fn floor_linear(_ctx: XdpContext) -> u32 {
    xdp_action::XDP_PASS
}

/// Lets everything pass: what the harness itself costs.
#[xdp(frags)]
pub fn floor_pass(_ctx: XdpContext) -> u32 {
    xdp_action::XDP_PASS
}

/// Drops without looking.
#[xdp(frags)]
pub fn floor_drop(_ctx: XdpContext) -> u32 {
    xdp_action::XDP_DROP
}

/// Forwards without looking.
#[xdp(frags)]
pub fn floor_redirect(_ctx: XdpContext) -> u32 {
    match TO.get(0) {
        // SAFETY: a helper that only notes the interface; the flags are those that it wants.
        Some(to) => unsafe { bpf_redirect(*to as u32, 0) as u32 },
        None => xdp_action::XDP_ABORTED,
    }
}

/// Sends the frame out: makes a flood of a test run with live frames.
#[xdp(frags)]
pub fn flood(_ctx: XdpContext) -> u32 {
    xdp_action::XDP_TX
}

/// The same, with the next IPv4 source in each frame.
#[xdp(frags)]
pub fn flood4(ctx: XdpContext) -> u32 {
    match put_source4(&ctx) {
        Some(()) => xdp_action::XDP_TX,
        None => xdp_action::XDP_ABORTED,
    }
}

/// The same, with the next IPv6 source in each frame.
#[xdp(frags)]
pub fn flood6(ctx: XdpContext) -> u32 {
    match put_source6(&ctx) {
        Some(()) => xdp_action::XDP_TX,
        None => xdp_action::XDP_ABORTED,
    }
}

/// Makes the packet the next IPv4 SYN and runs the program under test.
#[xdp(frags)]
pub fn harness_syn4(ctx: XdpContext) -> u32 {
    match put_syn4(&ctx) {
        Some(()) => under_test(&ctx),
        None => xdp_action::XDP_ABORTED,
    }
}

/// The same for IPv6.
#[xdp(frags)]
pub fn harness_syn6(ctx: XdpContext) -> u32 {
    match put_syn6(&ctx) {
        Some(()) => under_test(&ctx),
        None => xdp_action::XDP_ABORTED,
    }
}

/// Makes the frame the one with the next IPv4 source, where it began before the program under
/// test moved its head, and runs that.
#[xdp(frags)]
pub fn harness_moved4(ctx: XdpContext) -> u32 {
    match move_back(&ctx, SYN4_LEN).and_then(|()| put_syn4(&ctx)) {
        Some(()) => under_test(&ctx),
        None => xdp_action::XDP_ABORTED,
    }
}

/// The same for IPv6.
#[xdp(frags)]
pub fn harness_moved6(ctx: XdpContext) -> u32 {
    match move_back(&ctx, SYN6_LEN).and_then(|()| put_syn6(&ctx)) {
        Some(()) => under_test(&ctx),
        None => xdp_action::XDP_ABORTED,
    }
}

/// A flood of IPv4 SYNs at a pace. What is not due yet is dropped.
#[xdp(frags)]
pub fn flood_syn4(ctx: XdpContext) -> u32 {
    match is_due() {
        Some(true) => put_syn4(&ctx).map_or(xdp_action::XDP_ABORTED, |()| xdp_action::XDP_TX),
        Some(false) => xdp_action::XDP_DROP,
        None => xdp_action::XDP_ABORTED,
    }
}

/// The same for IPv6.
#[xdp(frags)]
pub fn flood_syn6(ctx: XdpContext) -> u32 {
    match is_due() {
        Some(true) => put_syn6(&ctx).map_or(xdp_action::XDP_ABORTED, |()| xdp_action::XDP_TX),
        Some(false) => xdp_action::XDP_DROP,
        None => xdp_action::XDP_ABORTED,
    }
}

/// Counts and drops what comes back from a flood; all else passes.
#[xdp(frags)]
pub fn sink(ctx: XdpContext) -> u32 {
    let flags = match replied4(&ctx) {
        Some(flags) => Some(flags),
        None => replied6(&ctx),
    };
    match (flags, PACE.get_ptr_mut(0)) {
        // SAFETY: a map value; one CPU receives.
        (Some(flags), Some(pace)) => unsafe {
            if flags & (flag::SYN | flag::ACK) == flag::SYN | flag::ACK {
                (*pace).answered += 1;
            } else {
                (*pace).other += 1;
            }
            xdp_action::XDP_DROP
        },
        _ => xdp_action::XDP_PASS,
    }
}

/// What a cookie for a SYN costs with the kernel's helpers alone: the listener is
/// looked up and the cookie made.
#[xdp(frags)]
pub fn helpers_syn4(ctx: XdpContext) -> u32 {
    helpers(&ctx, Family::V4, false)
}

/// The same for IPv6.
#[xdp(frags)]
pub fn helpers_syn6(ctx: XdpContext) -> u32 {
    helpers(&ctx, Family::V6, false)
}

/// What it costs to check one, and to look its socket up before.
#[xdp(frags)]
pub fn helpers_ack4(ctx: XdpContext) -> u32 {
    helpers(&ctx, Family::V4, true)
}

/// The same for IPv6.
#[xdp(frags)]
pub fn helpers_ack6(ctx: XdpContext) -> u32 {
    helpers(&ctx, Family::V6, true)
}

/// What the check alone costs.
#[xdp(frags)]
pub fn cookie_ack4(ctx: XdpContext) -> u32 {
    headers(&ctx, Family::V4).map_or(xdp_action::XDP_ABORTED, |(_, _, ip, tcp)| {
        check(Family::V4, ip, tcp)
    })
}

/// The same for IPv6.
#[xdp(frags)]
pub fn cookie_ack6(ctx: XdpContext) -> u32 {
    headers(&ctx, Family::V6).map_or(xdp_action::XDP_ABORTED, |(_, _, ip, tcp)| {
        check(Family::V6, ip, tcp)
    })
}

/// What the cookie alone costs.
#[xdp(frags)]
pub fn cookie_syn4(ctx: XdpContext) -> u32 {
    headers(&ctx, Family::V4)
        .and_then(|(_, _, ip, tcp)| make(Family::V4, ip, tcp))
        .unwrap_or(xdp_action::XDP_ABORTED)
}

/// The same for IPv6.
#[xdp(frags)]
pub fn cookie_syn6(ctx: XdpContext) -> u32 {
    headers(&ctx, Family::V6)
        .and_then(|(_, _, ip, tcp)| make(Family::V6, ip, tcp))
        .unwrap_or(xdp_action::XDP_ABORTED)
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Family {
    V4,
    V6,
}

/// Looks the packet's socket up, then makes or checks a cookie.
#[inline(always)]
fn helpers(ctx: &XdpContext, family: Family, is_ack: bool) -> u32 {
    asked(ctx, family, is_ack).unwrap_or(xdp_action::XDP_ABORTED)
}

#[inline(always)]
fn asked(ctx: &XdpContext, family: Family, is_ack: bool) -> Option<u32> {
    let (mut tuple, size, ip, tcp) = headers(ctx, family)?;
    // SAFETY: the tuple has at least `size` bytes; the context is the running program's.
    let socket = unsafe {
        let tuple = (&raw mut tuple).cast::<bpf_sock_tuple>();
        bpf_skc_lookup_tcp(ctx.ctx.cast(), tuple, size, u64::MAX, 0)
    };
    if socket.is_null() {
        return None;
    }
    // SAFETY: from the look-up above, released once.
    unsafe { bpf_sk_release(socket.cast()) };
    if !is_ack {
        return make(family, ip, tcp);
    }
    Some(check(family, ip, tcp))
}

/// Checks the cookie of an acknowledgement.
#[inline(always)]
fn check(family: Family, mut ip: [u32; 10], [ports, seq, ack, _, _]: [u32; 5]) -> u32 {
    let mut tcp = [ports, seq, ack, 0x5010_0000u32.to_be(), 0];
    let (ip, tcp) = (&raw mut ip, (&raw mut tcp).cast());
    // SAFETY: the headers are on the stack and as long as the helpers read.
    let valid = unsafe {
        match family {
            Family::V4 => bpf_tcp_raw_check_syncookie_ipv4(ip.cast(), tcp),
            Family::V6 => bpf_tcp_raw_check_syncookie_ipv6(ip.cast(), tcp),
        }
    };
    if valid == 0 {
        xdp_action::XDP_PASS
    } else {
        xdp_action::XDP_DROP
    }
}

/// The tuple of the packet's socket and its length, the IP header as far as cookies
/// depend on it, and the fixed part of the TCP header.
type Headers = ([u32; 9], u32, [u32; 10], [u32; 5]);

#[inline(always)]
fn headers(ctx: &XdpContext, family: Family) -> Option<Headers> {
    // SAFETY: `at` checked the bounds; loads need no more alignment than stores.
    unsafe {
        if family == Family::V4 {
            let [s, d, ports] = at::<[u32; 3]>(ctx, SOURCE4_AT)?.read();
            let ip = [0x4500_0000u32.to_be(), 0, 0, s, d, 0, 0, 0, 0, 0];
            let tcp = at::<[u32; 5]>(ctx, TCP4_AT)?.read();
            Some(([s, d, ports, 0, 0, 0, 0, 0, 0], 12, ip, tcp))
        } else {
            let [a, b, c, d, e, f, g, h, ports] = at::<[u32; 9]>(ctx, SOURCE6_AT)?.read();
            let ip = [0x6000_0000u32.to_be(), 0, a, b, c, d, e, f, g, h];
            let tcp = at::<[u32; 5]>(ctx, TCP6_AT)?.read();
            Some(([a, b, c, d, e, f, g, h, ports], 36, ip, tcp))
        }
    }
}

/// Makes a cookie for a SYN.
#[inline(always)]
fn make(family: Family, mut ip: [u32; 10], [ports, seq, ..]: [u32; 5]) -> Option<u32> {
    let (head, mss) = (0x6002_0000u32.to_be(), 0x0204_05b4u32.to_be());
    let mut tcp = [ports, seq, 0, head, 0, mss];
    let (ip, tcp) = (&raw mut ip, (&raw mut tcp).cast());
    // SAFETY: the headers are on the stack and as long as the helpers read.
    let cookie = unsafe {
        match family {
            Family::V4 => bpf_tcp_raw_gen_syncookie_ipv4(ip.cast(), tcp, 24),
            Family::V6 => bpf_tcp_raw_gen_syncookie_ipv6(ip.cast(), tcp, 24),
        }
    };
    (cookie >= 0).then_some(xdp_action::XDP_TX)
}

/// A blacklist in the obvious way: the kernel's hash, one look-up.
#[xdp(frags)]
pub fn plain_hash4(ctx: XdpContext) -> u32 {
    // SAFETY: `at` checked the bounds; the entries are not changed meanwhile.
    verdict(at::<u32>(&ctx, SOURCE4_AT).map(|at| unsafe { HASH4.get(*at).is_some() }))
}

/// The same for IPv6.
#[xdp(frags)]
pub fn plain_hash6(ctx: XdpContext) -> u32 {
    // SAFETY: as above.
    verdict(at::<[u32; 4]>(&ctx, SOURCE6_AT).map(|at| unsafe { HASH6.get(*at).is_some() }))
}

/// What no look-up among as many hosts can do without, unless they fit into a smaller table: one
/// line of memory, found by a hash of the source. And 60 instructions that do nothing, fewer than it
/// takes to parse a packet and to count it: without them the processor is at the next packet's line
/// while it waits for this one's, as it never is with a firewall in between.
#[xdp(frags)]
pub fn plain_line4(ctx: XdpContext) -> u32 {
    // SAFETY: `at` checked the bounds.
    verdict(at::<u32>(&ctx, SOURCE4_AT).and_then(|at| line(&LINES4, unsafe { *at } as u64)))
}

/// The same for IPv6.
#[xdp(frags)]
pub fn plain_line6(ctx: XdpContext) -> u32 {
    // SAFETY: as above.
    let halves = at::<[u64; 2]>(&ctx, SOURCE6_AT).map(|at| unsafe { *at });
    verdict(halves.and_then(|[hi, lo]| line(&LINES6, hi ^ lo)))
}

/// Whether the line that a source's hash leads to is as it was made: it always is.
#[inline(always)]
fn line<T>(lines: &Array<T>, source: u64) -> Option<bool> {
    const SEED: Seed = Seed::new([
        0x9e37_79b9_7f4a_7c15,
        0xbf58_476d_1ce4_e5b9,
        0x94d0_49bb_1331_11eb,
        0xd6e8_feb8_6659_fd93,
    ]);
    // SAFETY: a map value that the program's user has set.
    let all = unsafe { (*DRIVE.get_ptr(0)?).lines } as u32;
    let at = reduce((hash64(&SEED, source) >> 32) as u32, all);
    let word = lines.get_ptr(at)?.cast::<u64>();
    // SAFETY: a line begins with a word.
    let is_zero = unsafe { word.read_volatile() } == 0;
    work(source);
    Some(is_zero)
}

/// 60 instructions that need nothing of the line.
#[inline(always)]
fn work(mut a: u64) {
    let mut b = a;
    // SAFETY: only registers are changed.
    unsafe {
        asm!(
            ".rept 30",
            "{0} += 1",
            "{1} ^= 5",
            ".endr",
            inout(reg) a,
            inout(reg) b,
            options(nomem, nostack),
        );
    }
    let _ = (a, b);
}

/// Blacklisted prefixes in the obvious way: the kernel's LPM trie.
#[xdp(frags)]
pub fn plain_lpm4(ctx: XdpContext) -> u32 {
    // SAFETY: `at` checked the bounds.
    let key = at::<u32>(&ctx, SOURCE4_AT).map(|at| Key::new(32, unsafe { *at }));
    verdict(key.map(|key| LPM4.get(&key).is_some()))
}

/// The same for IPv6.
#[xdp(frags)]
pub fn plain_lpm6(ctx: XdpContext) -> u32 {
    // SAFETY: `at` checked the bounds.
    let key = at::<[u32; 4]>(&ctx, SOURCE6_AT).map(|at| Key::new(128, unsafe { *at }));
    verdict(key.map(|key| LPM6.get(&key).is_some()))
}

#[inline(always)]
fn verdict(is_listed: Option<bool>) -> u32 {
    match is_listed {
        Some(false) => xdp_action::XDP_PASS,
        Some(true) => xdp_action::XDP_DROP,
        None => xdp_action::XDP_ABORTED,
    }
}

/// Gives the packet the next IPv4 source.
#[inline(always)]
fn put_source4(ctx: &XdpContext) -> Option<()> {
    let (addr, _) = next()?;
    let source = at::<u32>(ctx, SOURCE4_AT)?;
    // SAFETY: `at` checked the bounds. Packet memory has no alignment guarantee, but
    // BPF stores need none on targets with efficient unaligned access.
    unsafe { *source = (addr as u32).to_be() };
    Some(())
}

/// Gives the packet the next IPv6 source.
#[inline(always)]
fn put_source6(ctx: &XdpContext) -> Option<()> {
    let (hi, lo) = next()?;
    let source = at::<[u64; 2]>(ctx, SOURCE6_AT)?;
    // SAFETY: as above.
    unsafe { *source = [hi.to_be(), lo.to_be()] };
    Some(())
}

/// Makes the packet the SYN with the next IPv4 source.
#[inline(always)]
fn put_syn4(ctx: &XdpContext) -> Option<()> {
    let (addr, _) = next()?;
    let source = (addr as u32).to_be();
    let syn = SYN.get_ptr(0)?;
    let frame = at::<[u8; SYN4_LEN]>(ctx, 0)?.cast::<u8>();
    // SAFETY: `at` checked the bounds of the frame, in which all that is written
    // lies; a map value, which nobody writes meanwhile.
    unsafe {
        let sum = |sum| Sum::default().double(sum).word(source).checksum() as u32;
        let [a, b, c, _, e] = (*syn).ip.map(|word| word as u32);
        put_ethernet(frame, syn);
        put(frame, 14, [a, b, c | sum((*syn).ip_sum) << 16, source, e]);
        put_tcp(frame, TCP4_AT, syn, sum((*syn).tcp_sum));
    }
    Some(())
}

/// Makes the packet the SYN with the next IPv6 source.
#[inline(always)]
fn put_syn6(ctx: &XdpContext) -> Option<()> {
    let (hi, lo) = next()?;
    let (hi, lo) = (hi.to_be(), lo.to_be());
    let syn = SYN.get_ptr(0)?;
    let frame = at::<[u8; SYN6_LEN]>(ctx, 0)?.cast::<u8>();
    // SAFETY: as above.
    unsafe {
        let sum = Sum::default().double((*syn).tcp_sum).double(hi).double(lo);
        let [a, _, _, d, e] = (*syn).ip;
        put_ethernet(frame, syn);
        put(frame, 14, [a, hi, lo, d, e]);
        put_tcp(frame, TCP6_AT, syn, sum.checksum() as u32);
    }
    Some(())
}

/// Moves the head back to where a frame of so many bytes began. Also by nothing, so that
/// it costs the same before every program.
#[inline(always)]
fn move_back(ctx: &XdpContext, len: usize) -> Option<()> {
    let grown = ctx.data_end() as i64 - ctx.data() as i64 - len as i64;
    // SAFETY: the context is the running program's; packet pointers are made anew after it.
    let moved = unsafe { bpf_xdp_adjust_head(ctx.ctx, grown as i32) };
    (moved == 0).then_some(())
}

/// # Safety
/// The frame must have 14 bytes.
#[inline(always)]
unsafe fn put_ethernet(frame: *mut u8, syn: *const Syn) {
    // SAFETY: the caller's promise.
    unsafe {
        let [a, b, c, d] = (*syn).ethernet;
        put(frame, 0, [a, b, c]);
        put(frame, 12, [d as u16]);
    }
}

/// # Safety
/// The frame must have 40 bytes from `at` on.
#[inline(always)]
unsafe fn put_tcp(frame: *mut u8, at: usize, syn: *const Syn, sum: u32) {
    // SAFETY: the caller's promise.
    unsafe {
        let [a, b, c, d, e, f, g, h, i, j] = (*syn).tcp;
        put(frame, at, [a, b, c, d, e | sum, f, g, h, i, j]);
    }
}

/// Writes words one by one, as wide as programs read them: of those that are wider or
/// narrower the processor makes a word only once all have reached the cache.
///
/// # Safety
/// They must lie in the frame.
#[inline(always)]
unsafe fn put<T: Copy, const N: usize>(frame: *mut u8, at: usize, words: [T; N]) {
    // SAFETY: the caller's promise. Packet memory has no alignment guarantee, but BPF
    // stores need none on targets with efficient unaligned access.
    unsafe {
        let at = frame.add(at).cast::<T>();
        let mut i = 0;
        while i < N {
            at.add(i).write_volatile(words[i]);
            i += 1;
        }
    }
}

/// Whether the next SYN of a flood is due; it counts as sent then.
#[inline(always)]
fn is_due() -> Option<bool> {
    let pace = PACE.get_ptr_mut(0)?;
    // SAFETY: a map value; one CPU sends, and what others write is read whole.
    unsafe {
        let (interval, window) = ((*pace).interval_ns, (*pace).window);
        if interval != 0 || window != 0 {
            let now = bpf_ktime_get_ns();
            let next = (&raw const (*pace).next).read_volatile();
            if interval != 0 {
                if now < next {
                    return Some(false);
                }
                let behind = now.saturating_sub(SLACK_NS);
                (*pace).next = interval + if next > behind { next } else { behind };
            } else {
                let answered = (&raw const (*pace).answered).read_volatile() + (*pace).other;
                let open = (*pace).sent.wrapping_sub(answered + (*pace).lost) as i64;
                if open >= window as i64 {
                    if now < next + PATIENCE_NS {
                        return Some(false);
                    }
                    (*pace).lost += open as u64;
                }
                (*pace).next = now;
            }
        }
        (*pace).sent += 1;
    }
    Some(true)
}

/// The TCP flags of an IPv4 packet to a source of the flood.
#[inline(always)]
fn replied4(ctx: &XdpContext) -> Option<u8> {
    let drive = DRIVE.get_ptr(0)?;
    let ether_type = at::<u16>(ctx, 12)?;
    let dest = at::<u32>(ctx, DEST4_AT)?;
    // SAFETY: `at` checked the bounds; a map value.
    unsafe {
        if *ether_type != 0x0800u16.to_be() || !(*drive).space.has(u32::from_be(*dest) as u64) {
            return None;
        }
        Some(at::<u8>(ctx, TCP4_AT + TCP_FLAGS_AT).map_or(0, |flags| *flags))
    }
}

/// The same for IPv6.
#[inline(always)]
fn replied6(ctx: &XdpContext) -> Option<u8> {
    let drive = DRIVE.get_ptr(0)?;
    let ether_type = at::<u16>(ctx, 12)?;
    let dest = at::<u64>(ctx, DEST6_AT)?;
    // SAFETY: as above.
    unsafe {
        if *ether_type != 0x86ddu16.to_be() || !(*drive).space.has(u64::from_be(*dest)) {
            return None;
        }
        Some(at::<u8>(ctx, TCP6_AT + TCP_FLAGS_AT).map_or(0, |flags| *flags))
    }
}

/// The source of this packet.
#[inline(always)]
fn next() -> Option<(u64, u64)> {
    let drive = DRIVE.get_ptr_mut(0)?;
    // SAFETY: a map value; one test run at a time uses it.
    unsafe {
        let at = (*drive).next;
        (*drive).next = if at + 1 < (*drive).count { at + 1 } else { 0 };
        if (*drive).listed == 0 {
            return Some((*drive).space.source((*drive).first + at));
        }
        let source = *SOURCES.get(at as u32 & (LISTED - 1))?;
        Some((source, source))
    }
}

/// Runs the program under test. Returns only when there is none.
#[inline(always)]
fn under_test(ctx: &XdpContext) -> u32 {
    // SAFETY: nothing in this frame needs dropping.
    unsafe { UNDER_TEST.tail_call(ctx, 0) };
    xdp_action::XDP_ABORTED
}

#[inline(always)]
fn linear_under_test(ctx: &XdpContext) -> u32 {
    // SAFETY: nothing in this frame needs dropping.
    unsafe { UNDER_TEST_LINEAR.tail_call(ctx, 0) };
    xdp_action::XDP_ABORTED
}

/// A `T` at an offset into the frame, when it is there.
#[inline(always)]
fn at<T>(ctx: &XdpContext, offset: usize) -> Option<*mut T> {
    let start = ctx.data() + offset;
    (start + size_of::<T>() <= ctx.data_end()).then_some(start as *mut T)
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
