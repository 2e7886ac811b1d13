//! Programs of `cargo xtask bench`: the harness, which gives each packet its
//! source and hands it to the program under test, and what that is compared with.
//!
//! The harness restores nothing in the packet but the source, since no program
//! here changes anything. It writes the source in whole words: of bytes that were
//! written one by one the processor makes no word before all have reached the
//! cache, and a program that reads the source at once would be charged with that
//! wait, which no packet from a NIC has.
#![no_std]
#![no_main]

use aya_ebpf::{
    bindings::{BPF_F_MMAPABLE, BPF_F_NO_PREALLOC, xdp_action},
    macros::{map, xdp},
    maps::{Array, HashMap, LpmTrie, ProgramArray, lpm_trie::Key},
    programs::XdpContext,
};
use edge_common::bench::{Drive, LISTED, SOURCE4_AT, SOURCE6_AT};

#[map]
static DRIVE: Array<Drive> = Array::with_max_entries(1, BPF_F_MMAPABLE);
#[map]
static SOURCES: Array<u64> = Array::with_max_entries(LISTED, BPF_F_MMAPABLE);
#[map]
static UNDER_TEST: ProgramArray = ProgramArray::with_max_entries(1, 0);
#[map]
static HASH4: HashMap<u32, u32> = HashMap::with_max_entries(1, 0);
#[map]
static HASH6: HashMap<[u32; 4], u32> = HashMap::with_max_entries(1, 0);
#[map]
static LPM4: LpmTrie<u32, u32> = LpmTrie::with_max_entries(1, BPF_F_NO_PREALLOC);
#[map]
static LPM6: LpmTrie<[u32; 4], u32> = LpmTrie::with_max_entries(1, BPF_F_NO_PREALLOC);

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

#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";
