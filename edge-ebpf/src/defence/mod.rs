//! The flood defence: the last stage.
//!
//! It is a program of its own, [`crate::edge_defence`]. Here stands the gate too, inlined
//! into the packet path: one bit says whether a port is of any service, and without an
//! attack only SYNs and samples of all else go further. What does so takes a tail call,
//! which costs less than calling a function and coming back, and has a verifier's budget
//! of its own.

mod challenge;
mod cookie;
pub mod frame;
mod hitters;
mod icmp;
mod pressure;
mod socket;
mod tcp;
mod udp;

pub use socket::halves;

use aya_ebpf::programs::XdpContext;

use crate::{
    emit::{self, Facts},
    hand_over::{self, Asks, Candidate, HandOver, Marks},
    maps::{DEFENCE, PORTS, config},
    source::{XdpSource, hide},
};
use edge_common::{
    abi::{Mode, Stage},
    defence::{DefenceWord, Ports, SEGMENT_SLICES, SKETCH_SAMPLE, port_bit},
    parse::{Kind, PacketSource as _, tcp as flag},
    reason::Reason,
};

/// Nanoseconds of a slice of the time that is sampled, as a shift: 4.2 ms, about the
/// step of the program's clock.
const SLICE_SHIFT: u32 = 22;

/// Whether there is anything to do. Known to the verifier.
#[inline(always)]
pub fn is_on() -> bool {
    config!(defended) | config!(reflection) | config!(icmp_floods) | config!(hitters_mode) != 0
}

/// The program behind the gate. Does not come back when the balancer goes on with the
/// packet.
#[inline(always)]
pub fn run(ctx: &XdpContext) -> Reason {
    let Some(packet) = HandOver::take(ctx) else {
        return Reason::Pass;
    };
    let (facts, marks, asks) = packet;
    let reason = judge(facts, marks, asks);
    if config!(rings) != 0 && reason == Reason::Pass {
        if asks & Asks::BALANCE != 0 {
            hand_over::go_on(facts, Stage::Balance);
        }
        if config!(snat) != 0 && asks & Asks::NAT != 0 {
            hand_over::go_on(facts, Stage::Nat);
        }
    }
    emit::ended(facts, reason);
    reason
}

#[inline(always)]
fn judge(facts: Facts<'_>, marks: u64, asks: u32) -> Reason {
    let (ctx, now, frame_len) = (facts.ctx.ctx, facts.now, facts.frame_len);
    if config!(hitters_mode) != Mode::Off as u32 && asks & Asks::HITTERS != 0 {
        let sampled = (asks & Asks::HITTERS_SAMPLE != 0) as u64;
        let marks = marks | sampled << Marks::SAMPLED;
        if let Err(reason) = ending(hitters::edge_hitters(ctx, now, marks, frame_len)) {
            return reason;
        }
    }
    if config!(icmp_floods) != Mode::Off as u32 && asks & Asks::ICMP != 0 {
        return said(icmp::edge_defend_icmp(ctx, now, marks, frame_len));
    }
    if config!(defended) != 0 && asks & Asks::TCP != 0 {
        return tcp::defend(facts, marks, asks & Asks::TCP_SAMPLE != 0);
    }
    if config!(reflection) != Mode::Off as u32 && asks & Asks::UDP != 0 {
        return said(udp::edge_defend_udp(ctx, now, marks, frame_len));
    }
    Reason::Pass
}

/// What there is to ask of a packet.
#[inline(always)]
pub fn asks(candidate: Candidate<'_>) -> u32 {
    let marks = candidate.marks;
    let kind = marks >> Marks::KIND & 0xf;
    let is_tcp = kind == Kind::Tcp as u64;
    let is_segment = is_tcp && marks as u8 & (flag::SYN | flag::ACK) != flag::SYN;
    let mut asks = 0;
    // Segments of connections are no flood of a prefix, and SYNs for services are
    // answered: both are judged below.
    if config!(hitters_mode) != Mode::Off as u32
        && !is_segment
        && !(is_tcp && config!(defended) != 0 && is_port(Ports::Tcp, marks))
    {
        asks = hitters(candidate);
    }
    if marks >> Marks::WHOLE & 1 == 0 {
        return asks;
    }
    if config!(icmp_floods) != Mode::Off as u32 && kind == Kind::Icmp as u64 {
        return asks | Asks::ICMP;
    }
    if config!(defended) != 0 && is_tcp {
        return asks | segment(candidate, is_segment);
    }
    // By the source port first: what a service gets is seldom from a reflector.
    if config!(reflection) != Mode::Off as u32
        && kind == Kind::Udp as u64
        && is_reflected(candidate)
        && is_port(Ports::Udp, marks)
    {
        return asks | Asks::UDP;
    }
    asks
}

/// Whether the destination port is in a set of them.
#[inline(always)]
fn is_port(set: Ports, marks: u64) -> bool {
    is_in(set, (marks >> Marks::PORT) as u16)
}

/// Whether a port (host byte order) is in a set of them.
#[inline(always)]
fn is_in(set: Ports, port: u16) -> bool {
    let (word, bit) = port_bit(set, port);
    PORTS.get(word).is_some_and(|ports| ports & bit != 0)
}

/// Whether a UDP packet comes from a port of reflectors.
#[inline(always)]
fn is_reflected(candidate: Candidate<'_>) -> bool {
    let transport = (candidate.marks >> Marks::TRANSPORT & Marks::FAR) as usize;
    XdpSource::new(candidate.facts.ctx)
        .half(transport)
        .is_some_and(|port| is_in(Ports::Reflectors, u16::from_be(port)))
}

/// Whether the packet is one in `n` (a power of two): each source is looked at for
/// a few milliseconds, and then for a while not, in an order that nobody outside
/// knows. No word is written for it.
#[inline(always)]
fn is_sample(candidate: Candidate<'_>, n: u64) -> bool {
    (candidate.hash >> 40 ^ candidate.facts.now >> SLICE_SHIFT) & (n - 1) == 0
}

/// A TCP packet; `is_segment` when it is no SYN.
#[inline(always)]
fn segment(candidate: Candidate<'_>, is_segment: bool) -> u32 {
    let sampled = is_segment && is_sample(candidate, SEGMENT_SLICES as u64);
    // While nobody attacks, most segments are done with here, whatever their port.
    if is_segment
        && !sampled
        && config!(always_defended) == 0
        && !is_until(DefenceWord::WatchUntil, candidate.facts.now)
    {
        return 0;
    }
    let is_rest = is_segment && config!(rest) != 0;
    if !is_rest && !is_port(Ports::Tcp, candidate.marks) {
        return 0;
    }
    Asks::TCP | if sampled { Asks::TCP_SAMPLE } else { 0 }
}

/// Counts a packet for its prefixes and its destination, or asks them when some
/// are over their limit.
#[inline(always)]
fn hitters(candidate: Candidate<'_>) -> u32 {
    if is_sample(candidate, SKETCH_SAMPLE as u64) {
        Asks::HITTERS | Asks::HITTERS_SAMPLE
    } else if is_until(DefenceWord::HittersUntil, candidate.facts.now) {
        Asks::HITTERS
    } else {
        0
    }
}

/// The reason that a global function has said.
#[inline(always)]
fn said(index: u32) -> Reason {
    match ending(index) {
        Ok(()) => Reason::Pass,
        Err(reason) => reason,
    }
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

/// Whether a time among the words of the defence lies ahead.
#[inline(always)]
fn is_until(word: DefenceWord, now: u64) -> bool {
    DEFENCE
        .get_ptr(word as u32)
        // SAFETY: a map value, read whole.
        .is_some_and(|until| unsafe { until.read_volatile() } > now)
}

/// How far ahead times among the words of the defence are put, nanoseconds.
pub const AHEAD_NS: u64 = 2_000_000_000;

/// Puts a time among the words of the defence off until `ahead` from now, if it is not
/// nearly as far already: a flood must not write a line at every packet.
#[inline(always)]
fn put_off(word: DefenceWord, now: u64, ahead: u64) {
    if let Some(until) = DEFENCE.get_ptr_mut(word as u32) {
        // SAFETY: a map value, read and written whole; the later time may lose to
        // one a moment before it.
        unsafe {
            if until.read_volatile() < now + ahead - ahead / 8 {
                until.write_volatile(now + ahead);
            }
        }
    }
}

/// Ends the packet with a reason, under the mode of the check.
#[inline(always)]
fn end(facts: Facts<'_>, mode: u32, reason: Reason) -> Reason {
    if mode == Mode::Enforce as u32 {
        return reason;
    }
    emit::would_drop(facts, reason);
    Reason::Pass
}
