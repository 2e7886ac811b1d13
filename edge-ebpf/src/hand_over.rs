//! From one program to the next: what the first has found out about a packet, and what
//! the others are to be asked.

use crate::{
    emit::Facts,
    maps::{self, SCRATCH, STAGES},
};
use aya_ebpf::programs::XdpContext;
use edge_common::abi::{Stage, TableStat};

/// A packet as one word: what the parser found of it, in the order of the bits.
pub struct Marks;

impl Marks {
    /// Eight bits of TCP flags come first.
    /// Four bits of [`Kind`].
    pub const KIND: u32 = 8;
    /// Whether the header is truncated.
    pub const TRUNCATED: u32 = 12;
    /// Whether it is an IPv6 packet.
    pub const V6: u32 = 13;
    /// Whether it is looked at as a sample of its kind.
    pub const SAMPLED: u32 = 14;
    /// Whether it has its transport header.
    pub const WHOLE: u32 = 15;
    /// Eight bits: the protocol.
    pub const PROTO: u32 = 16;
    /// Eight bits: the offset of the IP header.
    pub const NETWORK: u32 = 24;
    /// Sixteen bits: the destination port, host byte order.
    pub const PORT: u32 = 32;
    /// The offset of the transport header, at most [`Marks::FAR`].
    pub const TRANSPORT: u32 = 48;
    /// Whether it is a fragment.
    pub const FRAGMENT: u32 = 60;
    /// An offset that is too large to be noted.
    pub const FAR: u64 = 0xfff;
}

/// What is to be asked of a packet, bits.
pub struct Asks;

impl Asks {
    /// Whether its prefixes get or send too much.
    pub const HITTERS: u32 = 1;
    /// And it is a sample, which is counted.
    pub const HITTERS_SAMPLE: u32 = 2;
    /// Of an ICMP message.
    pub const ICMP: u32 = 4;
    /// Of a TCP segment.
    pub const TCP: u32 = 8;
    /// And it is a sample.
    pub const TCP_SAMPLE: u32 = 16;
    /// Of a UDP packet.
    pub const UDP: u32 = 32;
    /// Whether a service that is balanced has it.
    pub const BALANCE: u32 = 64;
}

/// A packet on its way to the stages.
#[derive(Clone, Copy)]
pub struct Candidate<'a> {
    pub facts: Facts<'a>,
    /// As [`Marks`].
    pub marks: u64,
    /// A keyed hash of its source.
    pub hash: u64,
}

/// What one program leaves to the next about a packet, in the scratch of the CPU: of
/// what comes back from there the verifier knows nothing, which keeps small what it has
/// to follow.
#[repr(C)]
pub struct HandOver {
    now: u64,
    /// As [`Marks`].
    marks: u64,
    frame_len: u32,
    /// As [`Asks`].
    asks: u32,
}

impl HandOver {
    /// What was left for this program: facts, marks and what is asked.
    #[inline(always)]
    pub fn take(ctx: &XdpContext) -> Option<(Facts<'_>, u64, u32)> {
        let scratch = SCRATCH.get_ptr_mut(0)?;
        // SAFETY: a map value that belongs to this CPU, written before the tail call.
        let Self {
            now,
            marks,
            frame_len,
            asks,
        } = unsafe { (&raw const (*scratch).hand_over).read() };
        let facts = Facts {
            ctx,
            now,
            frame_len,
        };
        Some((facts, marks, asks))
    }
}

/// Hands a packet over to a stage, from which it does not come back, unless the stage
/// is missing.
#[inline(always)]
pub fn to(candidate: Candidate<'_>, asks: u32, stage: Stage) {
    let Some(scratch) = SCRATCH.get_ptr_mut(0) else {
        return;
    };
    let facts = candidate.facts;
    // SAFETY: a map value that belongs to this CPU.
    unsafe {
        (&raw mut (*scratch).hand_over).write(HandOver {
            now: facts.now,
            marks: candidate.marks,
            frame_len: facts.frame_len,
            asks,
        });
    }
    go_on(facts, stage);
}

/// Goes on with a stage, which finds what was handed over before.
#[inline(always)]
pub fn go_on(facts: Facts<'_>, stage: Stage) {
    // SAFETY: the map holds programs of this type. Never to return, but for an array that
    // was emptied.
    unsafe { STAGES.tail_call(facts.ctx, stage as u32) };
    maps::count(TableStat::StageMissing);
}
