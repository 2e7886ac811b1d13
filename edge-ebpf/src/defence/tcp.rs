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
    maps::{DEFENCE, HANDSHAKES, SCRATCH, SERVICES, TARGETS, config},
    rewrite,
    source::XdpSource,
};
use aya_ebpf::{
    bindings::xdp_md,
    helpers::generated::{bpf_loop, bpf_xdp_load_bytes},
    programs::XdpContext,
};
use core::{ffi::c_void, ptr::null_mut};
use edge_common::{
    defence::{
        DefenceWord, HANDSHAKES as HANDSHAKE_WORDS, MARK_EVERY_NS, MARK_LASTS_NS, SEGMENT_SAMPLE,
        ServiceCounter, TARGET_FORWARDED, TARGET_REST, Target, WSCALE_UNKNOWN,
        options::{self, HAS_ECN, MAX_OPTIONS, Offer, Walk, asks_for_ecn},
        reply::{Sum, grant},
        tags::{self, ATTEMPT_SHIFT},
    },
    gcra::{Limit, ticks},
    hash::reduce,
    parse::PacketSource as _,
    reason::{Reason, Verdict},
};

/// SYNs a second to closed ports that the kernel may answer under attack.
const CLOSED: Limit = match Limit::per_second(1000, 100) {
    Some(limit) => limit,
    None => Limit::NONE,
};

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
    let source = XdpSource::new(facts.ctx);
    let Some(scratch) = SCRATCH.get_ptr_mut(0) else {
        return Reason::Pass.index();
    };
    let Some(frame) = Frame::read(&source, marks, scratch) else {
        return Reason::Pass.index();
    };
    let reason = judge(facts, frame, marks);
    if reason.verdict() == Verdict::Reply {
        emit::sample_reply(facts, reason);
        if !rewrite::reply(facts, frame) {
            // Nothing was changed, and the kernel knows what to do.
            return Reason::Pass.index();
        }
    }
    reason.index()
}

/// What becomes of the packet. For a reason that replies, the segment to reply
/// with is in the scratch.
#[inline(always)]
fn judge(facts: Facts<'_>, frame: Frame, marks: u64) -> Reason {
    let mut key = frame.target();
    let mut target = TARGETS.get_ptr_mut(&key);
    if target.is_none() && config!(rest) != 0 {
        key.port = 0;
        target = TARGETS.get_ptr_mut(&key);
    }
    let Some(target) = target else {
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
    if kind == TARGET_REST && frame.is_syn() {
        Reason::Pass
    } else if frame.is_syn() {
        syn(facts, of, frame, target, forwarded)
    } else if forwarded {
        forwarded_segment(of, frame)
    } else {
        let sampled = marks >> Marks::SAMPLED & 1 != 0;
        segment(facts, of, frame, sampled)
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

#[inline(always)]
fn syn(facts: Facts<'_>, of: Of, frame: Frame, target: *mut Target, forwarded: bool) -> Reason {
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
fn note(of: Of, frame: Frame) {
    let seed = config!(seed);
    let hash = frame.tuple_hash(&seed, frame.seq().wrapping_add(1));
    if let Some(slot) = HANDSHAKES.get_ptr_mut(reduce(hash as u32, HANDSHAKE_WORDS)) {
        // SAFETY: a map value, written whole.
        unsafe { slot.write_volatile(tags::word(hash, of.now, ATTEMPT_SHIFT)) };
    }
}

/// Whether a segment is the first behind a SYN that was noted.
#[inline(always)]
fn completes(of: Of, frame: Frame) -> bool {
    if !frame.is_ack() {
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
fn defend_syn(facts: Facts<'_>, of: Of, frame: Frame, target: *mut Target) -> Reason {
    // SAFETY: a map value; each field is read whole.
    let (wscale, mss, marked_at) = unsafe {
        (
            (*target).wscale,
            (*target).mss,
            (&raw const (*target).marked_at).read_volatile(),
        )
    };
    let Some((mut offer, sum)) = offer(facts, frame) else {
        return Reason::Pass;
    };
    // With data behind it the checksum is not asked: nothing of it is believed.
    if let Some(sum) = sum
        && !frame.is_checksum_right(sum)
    {
        return end(facts, of, Reason::SynBadChecksum);
    }
    if asks_for_ecn(frame.flags()) {
        offer.has |= HAS_ECN;
    }
    cookie::prepare(frame, frame.seq(), offer.mss);
    let due = !of.is_dry_run() && of.now.wrapping_sub(marked_at) >= MARK_EVERY_NS;
    let (found, marked) = socket::look_up(facts.ctx.ctx, frame, due);
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
        // What it would grant is not known yet.
        Found::Listener if wscale == WSCALE_UNKNOWN => return Reason::Pass,
        Found::Listener => {}
    }
    // A dry run has no sysctl set, and does not ask whether the listener would do.
    if end(facts, of, Reason::ReplySynCookie) == Reason::Pass {
        return Reason::Pass;
    }
    if due && marked {
        of.count(ServiceCounter::Marked);
        // SAFETY: a map value, written whole.
        unsafe { (&raw mut (*target).marked_at).write_volatile(of.now) };
    } else if due {
        of.count(ServiceCounter::Unmarked);
        // It would refuse the cookie: `tcp_syncookies` is not 2, or its queue has been
        // full for long. The kernel does what it can.
        if marked_at == 0 || of.now.wrapping_sub(marked_at) > MARK_LASTS_NS {
            return Reason::Pass;
        }
    }
    let Some(number) = cookie::make(frame) else {
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
    // SAFETY: a map value that belongs to this CPU.
    unsafe { (&raw mut (*frame.scratch).reply).write(reply) };
    of.count(ServiceCounter::CookiesSent);
    Reason::ReplySynCookie
}

/// What a SYN offers, and the sum of its options if it has nothing behind them.
#[inline(always)]
fn offer(facts: Facts<'_>, frame: Frame) -> Option<(Offer, Option<Sum>)> {
    let source = XdpSource::new(facts.ctx);
    let alone = frame.transport() + 20 + frame.options() >= facts.frame_len;
    if frame.options() == 20
        && let Some(words) = source.words::<5>(frame.transport() as usize + 20)
        && let Some(offer) = options::of_linux(words)
    {
        let [a, b, c, d, e] = words;
        let sum = Sum::default().word(a).word(b).word(c).word(d).word(e);
        return Some((offer, alone.then_some(sum)));
    }
    if frame.options() == 0 {
        return Some((Offer::default(), alone.then_some(Sum::default())));
    }
    // From 1 to 40, whatever comes in, by arithmetic that every verifier follows.
    let len = (crate::source::hide(frame.options() as u64 - 1) & 0x3f) as u32 + 1;
    if len > MAX_OPTIONS {
        return None;
    }
    // SAFETY: a map value that belongs to this CPU.
    let walk = unsafe { &mut (*frame.scratch).walk };
    *walk = Walk::new(len);
    // SAFETY: at most 40 bytes are written, and there are 64.
    let loaded = unsafe {
        bpf_xdp_load_bytes(
            facts.ctx.ctx,
            frame.transport() + 20,
            (&raw mut walk.words).cast(),
            len,
        )
    };
    if loaded != 0 {
        return None;
    }
    let mut sum = Sum::default();
    let mut i = 0;
    while i < MAX_OPTIONS as usize / 4 {
        sum = sum.word(walk.words[i]);
        i += 1;
    }
    // SAFETY: the callback has the type that the helper calls.
    unsafe { bpf_loop(MAX_OPTIONS, walk_step as *mut c_void, null_mut(), 0) };
    Some((walk.offer, alone.then_some(sum)))
}

/// Takes one option of the walk in the scratch; 1 ends the loop.
extern "C" fn walk_step(_: u32, _: *mut c_void) -> i64 {
    match SCRATCH.get_ptr_mut(0) {
        // SAFETY: a map value that belongs to this CPU.
        Some(scratch) => (!unsafe { (*scratch).walk.step() }) as i64,
        None => 1,
    }
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
fn segment(facts: Facts<'_>, of: Of, frame: Frame, sampled: bool) -> Reason {
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
    let (found, _) = socket::look_up(facts.ctx.ctx, frame, false);
    let may_be_cookie = found == Found::Listener && frame.is_ack();
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
        of.charge(SEGMENT_SAMPLE);
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
fn challenge(facts: Facts<'_>, of: Of, frame: Frame) -> Reason {
    if challenge::is_known(of, frame) {
        of.count(ServiceCounter::KnownSyns);
        of.refund(1);
        return Reason::Pass;
    }
    if end(facts, of, Reason::ReplyChallenge) == Reason::Pass || !challenge::make(of, frame) {
        return Reason::Pass;
    }
    of.count(ServiceCounter::Challenges);
    Reason::ReplyChallenge
}

/// A segment without SYN for a service behind this host.
#[inline(always)]
fn forwarded_segment(of: Of, frame: Frame) -> Reason {
    if !of.is_defended() || of.is_dry_run() {
        if completes(of, frame) {
            of.count(ServiceCounter::Completed);
            of.completed();
        }
        return Reason::Pass;
    }
    challenge::answered(of, frame)
}
