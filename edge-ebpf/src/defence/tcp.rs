//! What becomes of a TCP packet for a service.

use super::{
    Marks, challenge, cookie,
    frame::Frame,
    pressure::Of,
    socket::{self, Found},
};
use crate::{
    atomic::compare_exchange,
    emit::{self, Facts},
    maps::{DEFENCE, HANDSHAKES, SERVICES, TARGETS, config},
    rewrite,
    source::XdpSource,
};
use aya_ebpf::{
    bindings::xdp_md,
    helpers::generated::{bpf_loop, bpf_xdp_load_bytes},
    programs::XdpContext,
};
use core::ffi::c_void;
use edge_common::{
    defence::{
        CHECK_EVERY_NS, DefenceWord, HANDSHAKES as HANDSHAKE_WORDS, ServiceCounter,
        TARGET_FORWARDED, Target, WSCALE_UNKNOWN,
        options::{self, MAX_OPTIONS, OPTION_BYTES, Offer, Walk, asks_for_ecn},
        reply::{Segment, Sum, grant},
        tags::{self, ATTEMPT_SHIFT},
    },
    gcra::{Limit, ticks},
    hash::reduce,
    parse::{PacketSource as _, tcp as flag},
    reason::{Reason, Verdict},
};

/// SYNs a second to closed ports that the kernel may answer under attack.
const CLOSED: Limit = match Limit::per_second(1000, 100) {
    Some(limit) => limit,
    None => Limit::NONE,
};

/// How many segments a sampled one stands for.
const SAMPLE: u32 = super::SAMPLE as u32;

/// Judges a TCP packet; the index of the reason that it ends with, or 0
/// ([`Reason::Pass`]) to let it go on. `marks` as [`Marks`].
#[inline(never)]
#[unsafe(no_mangle)]
pub extern "C" fn edge_defend_tcp(ctx: *mut xdp_md, now: u64, marks: u64, frame_len: u32) -> u32 {
    let context = XdpContext::new(ctx);
    let facts = Facts {
        ctx: &context,
        now,
        frame_len,
    };
    judge(facts, marks).index()
}

#[inline(always)]
fn judge(facts: Facts<'_>, marks: u64) -> Reason {
    let source = XdpSource::new(facts.ctx);
    let Some(frame) = Frame::read(&source, marks) else {
        return Reason::Pass;
    };
    let Some(target) = TARGETS.get_ptr_mut(frame.target()) else {
        return Reason::Pass;
    };
    // SAFETY: a map value; the daemon replaces entries as a whole.
    let (index, kind) = unsafe { ((*target).service, (*target).kind) };
    let Some(service) = SERVICES.get_ptr_mut(index) else {
        return Reason::Pass;
    };
    let of = Of {
        service,
        index,
        now: facts.now,
    };
    let forwarded = kind == TARGET_FORWARDED;
    if frame.is_syn() {
        syn(facts, of, &frame, target, forwarded)
    } else if forwarded {
        forwarded_segment(facts, of, &frame)
    } else {
        segment(facts, of, &frame, marks >> Marks::SAMPLED & 1 != 0)
    }
}

/// Ends the packet with a reason, unless the service is in dry run.
#[inline(always)]
fn end(facts: Facts<'_>, of: Of, reason: Reason) -> Reason {
    if of.is_dry_run() {
        emit::would_drop(facts, reason);
        return Reason::Pass;
    }
    reason
}

/// Answers the packet, unless the service is in dry run.
#[inline(always)]
fn answer(facts: Facts<'_>, frame: &Frame, reason: Reason, segment: &Segment) -> Reason {
    emit::sample_reply(facts, reason);
    if rewrite::reply(facts, frame, segment) {
        reason
    } else {
        // Nothing was changed, and the kernel knows what to do.
        Reason::Pass
    }
}

#[inline(always)]
fn syn(facts: Facts<'_>, of: Of, frame: &Frame, target: *mut Target, forwarded: bool) -> Reason {
    of.count(ServiceCounter::Syns);
    let watched = of.charge(1);
    let defended = of.is_defended();
    if watched && (!defended || of.is_dry_run()) {
        note(of, frame);
    }
    if !defended {
        return Reason::Pass;
    }
    if forwarded {
        return challenge(facts, of, frame);
    }
    defend_syn(facts, of, frame, target)
}

/// Remembers a SYN, so that the end of its handshake is known when it comes.
#[inline(always)]
fn note(of: Of, frame: &Frame) {
    let seed = config!(seed);
    let hash = frame.tuple_hash(&seed, frame.seq().wrapping_add(1));
    if let Some(slot) = HANDSHAKES.get_ptr_mut(reduce(hash as u32, HANDSHAKE_WORDS)) {
        // SAFETY: a map value, written whole.
        unsafe { slot.write_volatile(tags::word(hash, of.now, ATTEMPT_SHIFT)) };
    }
}

/// Whether a segment is the first behind a SYN that was noted.
#[inline(always)]
fn completes(of: Of, frame: &Frame) -> bool {
    if !frame.has(flag::ACK) || frame.flags & (flag::SYN | flag::RST) != 0 {
        return false;
    }
    let seed = config!(seed);
    let hash = frame.tuple_hash(&seed, frame.seq());
    let Some(slot) = HANDSHAKES.get_ptr_mut(reduce(hash as u32, HANDSHAKE_WORDS)) else {
        return false;
    };
    let word = tags::word(hash, of.now, ATTEMPT_SHIFT);
    // SAFETY: a map value, 8 bytes aligned; the swap lets one CPU have it.
    unsafe {
        let found = slot.read_volatile();
        tags::is_same(found, word) && compare_exchange(slot, found, 0) == found
    }
}

#[inline(always)]
fn defend_syn(facts: Facts<'_>, of: Of, frame: &Frame, target: *mut Target) -> Reason {
    // SAFETY: a map value; each field is read whole.
    let (wscale, mss, checked_at) = unsafe {
        (
            (*target).wscale,
            (*target).mss,
            (&raw const (*target).checked_at).read_volatile(),
        )
    };
    if wscale == WSCALE_UNKNOWN {
        return Reason::Pass;
    }
    let Some((mut offer, sum)) = offer(facts, frame) else {
        return Reason::Pass;
    };
    // With data behind it the checksum is not asked: nothing of it is believed.
    if let Some(sum) = sum
        && !frame.is_checksum_right(sum)
    {
        return end(facts, of, Reason::SynBadChecksum);
    }
    offer.ecn = asks_for_ecn(frame.flags);
    let syn = cookie::syn(frame, frame.seq(), offer.mss);
    let due = of.now.wrapping_sub(checked_at) >= CHECK_EVERY_NS;
    let (found, marked) =
        socket::look_up(facts.ctx.ctx, frame, if due { Some(&syn) } else { None });
    match found {
        // An old connection of the same ends: the kernel knows what a SYN means there.
        Found::Connection => return Reason::Pass,
        Found::Nothing => {
            of.count(ServiceCounter::Closed);
            return if may_be_refused(of.now) {
                Reason::Pass
            } else {
                end(facts, of, Reason::SynClosed)
            };
        }
        Found::Listener if due => {
            of.count(if marked {
                ServiceCounter::Marked
            } else {
                ServiceCounter::Unmarked
            });
            if marked {
                // SAFETY: a map value, written whole.
                unsafe { (&raw mut (*target).checked_at).write_volatile(of.now) };
            }
        }
        Found::Listener => {}
    }
    if of.is_dry_run() {
        emit::would_drop(facts, Reason::ReplySynCookie);
        return Reason::Pass;
    }
    let Some(number) = cookie::make(frame, &syn) else {
        return Reason::Pass;
    };
    let grant = grant(
        &offer,
        config!(tcp_features),
        wscale,
        mss,
        config!(reply_window) as u16,
        (of.now / 1_000_000) as u32,
    );
    let reply = frame
        .reversed()
        .syn_ack(number, frame.seq().wrapping_add(1), &grant);
    of.count(ServiceCounter::CookiesSent);
    answer(facts, frame, Reason::ReplySynCookie, &reply)
}

/// What a SYN offers, and the sum of its options if it has nothing behind them.
#[inline(always)]
fn offer(facts: Facts<'_>, frame: &Frame) -> Option<(Offer, Option<Sum>)> {
    let source = XdpSource::new(facts.ctx);
    let alone = frame.transport as u32 + 20 + frame.options >= facts.frame_len;
    if frame.options == 20
        && let Some(words) = source.words::<5>(frame.transport + 20)
        && let Some(offer) = options::of_linux(words)
    {
        let [a, b, c, d, e] = words;
        let sum = Sum::default().word(a).word(b).word(c).word(d).word(e);
        return Some((offer, alone.then_some(sum)));
    }
    if frame.options == 0 {
        return Some((Offer::default(), alone.then_some(Sum::default())));
    }
    // From 1 to 40, whatever comes in, by arithmetic that every verifier follows.
    let len = (crate::source::hide(frame.options as u64 - 1) & 0x3f) as u32 + 1;
    if len > MAX_OPTIONS {
        return None;
    }
    let mut walk = Walk::new([0; OPTION_BYTES], len);
    // SAFETY: at most 40 bytes are written, and there are 64.
    let loaded = unsafe {
        bpf_xdp_load_bytes(
            facts.ctx.ctx,
            frame.transport as u32 + 20,
            (&raw mut walk.bytes).cast(),
            len,
        )
    };
    if loaded != 0 {
        return None;
    }
    let mut sum = Sum::default();
    for chunk in walk
        .bytes
        .as_chunks::<4>()
        .0
        .iter()
        .take(MAX_OPTIONS as usize / 4)
    {
        sum = sum.word(u32::from_ne_bytes(*chunk));
    }
    // SAFETY: the callback has the type that the helper calls, and the walk
    // lives until the helper returns.
    unsafe {
        bpf_loop(
            MAX_OPTIONS,
            walk_step as *mut c_void,
            (&raw mut walk).cast(),
            0,
        )
    };
    Some((walk.offer(), alone.then_some(sum)))
}

/// One option; 1 ends the loop.
extern "C" fn walk_step(_: u32, walk: *mut c_void) -> i64 {
    // SAFETY: the pointer is the one that `offer` gives to the loop.
    let walk = unsafe { &mut *walk.cast::<Walk>() };
    (!walk.step()) as i64
}

/// Whether a SYN to a closed port is left to the kernel, which refuses it.
#[inline(always)]
fn may_be_refused(now: u64) -> bool {
    let Some(word) = DEFENCE.get_ptr_mut(DefenceWord::Closed as u32) else {
        return true;
    };
    // SAFETY: a map value, 8 bytes aligned, only written by this operation.
    unsafe {
        let tat = word.read_volatile();
        CLOSED
            .admit(tat, ticks(now), 1)
            .is_some_and(|new| compare_exchange(word, tat, new) == tat)
    }
}

/// A segment without SYN for a listener on this host.
#[inline(always)]
fn segment(facts: Facts<'_>, of: Of, frame: &Frame, sampled: bool) -> Reason {
    let defended = of.is_defended();
    if !defended || of.is_dry_run() {
        if completes(of, frame) {
            of.count(ServiceCounter::Completed);
            of.completed();
            return Reason::Pass;
        }
        if !defended && !sampled {
            return Reason::Pass;
        }
    }
    let (found, _) = socket::look_up(facts.ctx.ctx, frame, None);
    let may_be_cookie = found == Found::Listener
        && frame.has(flag::ACK)
        && frame.flags & (flag::SYN | flag::RST) == 0;
    if found == Found::Connection {
        return Reason::Pass;
    }
    if may_be_cookie && cookie::is_valid(frame, frame.seq(), frame.ack()) {
        of.count(ServiceCounter::CookiesValid);
        if defended {
            of.completed();
        }
        return Reason::Pass;
    }
    if !defended {
        of.charge(SAMPLE);
        return Reason::Pass;
    }
    if may_be_cookie {
        of.count(ServiceCounter::CookiesInvalid);
        end(facts, of, Reason::CookieInvalid)
    } else {
        of.count(ServiceCounter::OutOfState);
        end(facts, of, Reason::TcpOutOfState)
    }
}

#[inline(always)]
fn challenge(facts: Facts<'_>, of: Of, frame: &Frame) -> Reason {
    match challenge::syn(of, frame) {
        challenge::Answer::None => Reason::Pass,
        challenge::Answer::Known => {
            of.refund(1);
            Reason::Pass
        }
        challenge::Answer::Challenge(segment) => {
            if of.is_dry_run() {
                emit::would_drop(facts, Reason::ReplyChallenge);
                return Reason::Pass;
            }
            of.count(ServiceCounter::Challenges);
            answer(facts, frame, Reason::ReplyChallenge, &segment)
        }
    }
}

/// A segment without SYN for a service behind this host.
#[inline(always)]
fn forwarded_segment(facts: Facts<'_>, of: Of, frame: &Frame) -> Reason {
    if !of.is_defended() || of.is_dry_run() {
        if completes(of, frame) {
            of.count(ServiceCounter::Completed);
            of.completed();
        }
        return Reason::Pass;
    }
    match challenge::segment(of, frame) {
        None => Reason::Pass,
        Some((reason, segment)) if reason.verdict() == Verdict::Reply => {
            answer(facts, frame, reason, &segment)
        }
        Some((reason, _)) => reason,
    }
}
