//! The flood defence of services: the last stage.
//!
//! Here stands the gate, inlined into the packet path: one bit says whether a
//! port is of any service, and without an attack only SYNs and a sample of the
//! other segments go further. What lies behind it is a global function, which
//! the verifier checks once.

mod challenge;
mod cookie;
pub mod frame;
mod pressure;
mod socket;
mod tcp;

use crate::{
    emit::{self, Facts},
    maps::{DEFENCE, PORTS, config},
    source::hide,
};
use edge_common::{
    defence::{DefenceWord, port_bit},
    parse::{Kind, tcp as flag},
    reason::Reason,
};

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
    /// Eight bits: the protocol.
    pub const PROTO: u32 = 16;
    /// Eight bits: the offset of the IP header.
    pub const NETWORK: u32 = 24;
    /// Sixteen bits: the destination port, host byte order.
    pub const PORT: u32 = 32;
    /// The offset of the transport header, at most [`Marks::FAR`].
    pub const TRANSPORT: u32 = 48;
    /// An offset that is too large to be noted.
    pub const FAR: u64 = 0xfff;
}

/// Of so many segments without a SYN one is looked at while all is quiet.
const SAMPLE: u64 = 64;

/// Defends services; `marks` as [`Marks`], for a packet that is no fragment.
#[inline(always)]
pub fn judge(facts: Facts<'_>, marks: u64) -> Result<(), Reason> {
    if marks >> Marks::KIND & 0xf != Kind::Tcp as u64 {
        return Ok(());
    }
    let (word, bit) = port_bit(false, (marks >> Marks::PORT) as u16);
    let Some(ports) = PORTS.get(word) else {
        return Ok(());
    };
    if ports & bit == 0 {
        return Ok(());
    }
    let is_syn = marks as u8 & (flag::SYN | flag::ACK) == flag::SYN;
    let sampled = !is_syn && emit::is_sample(SAMPLE);
    if !is_syn && !sampled && config!(always_defended) == 0 && !is_watching(facts.now) {
        return Ok(());
    }
    let marks = marks | (sampled as u64) << Marks::SAMPLED;
    ending(tcp::edge_defend_tcp(
        facts.ctx.ctx,
        facts.now,
        marks,
        facts.frame_len,
    ))
}

/// What a global function has said: the index of a reason, of which the verifier
/// knows nothing.
#[inline(always)]
fn ending(index: u32) -> Result<(), Reason> {
    let index = hide(index as u64);
    if index == Reason::Pass as u64 || index >= Reason::COUNT as u64 {
        return Ok(());
    }
    // SAFETY: reasons have the numbers from 0 to COUNT − 1.
    Err(unsafe { core::mem::transmute::<u8, Reason>(index as u8) })
}

/// Whether some service is watched or under attack.
#[inline(always)]
fn is_watching(now: u64) -> bool {
    // SAFETY: a map value, read whole.
    DEFENCE
        .get_ptr(DefenceWord::WatchUntil as u32)
        .is_some_and(|until| unsafe { until.read_volatile() } > now)
}
