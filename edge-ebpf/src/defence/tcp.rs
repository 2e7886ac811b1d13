//! What becomes of a TCP packet for a service.

use super::{
    challenge, cookie,
    frame::Frame,
    pressure::Of,
    socket::{self, Found},
};
use crate::{
    atomic::compare_exchange,
    emit::{self, Facts},
    maps::{DEFENCE, HANDSHAKES, SCRATCH, SERVICES, TARGETS, config, seed},
    rewrite,
    source::XdpSource,
};
use edge_common::{
    defence::{
        DefenceWord, MARK_EVERY_NS, MARK_LASTS_NS, SEGMENT_SAMPLE, SEGMENT_SLICES, ServiceCounter,
        TARGET_BOUND, TARGET_FORWARDED, TARGET_REST, Target, WSCALE_UNKNOWN,
        options::{self, HAS_ECN, MAX_OPTIONS, Offer, asks_for_ecn},
        reply::grant,
        tags::{self, ATTEMPT_SHIFT},
    },
    gcra::{Limit, ticks},
    header::Sum,
    parse::PacketSource as _,
    reason::{Reason, Verdict},
};

/// Stands for the sequence number in the hash of a whole connection.
const CONNECTION: u32 = 0;
/// Steps of [`ATTEMPT_SHIFT`] for which a handshake is remembered: 10 s.
const HANDSHAKE_AGE: u16 = 600;
/// The same for a connection that was proven: 2 s, in which its socket is made.
const CONNECTION_AGE: u16 = 120;

/// SYNs a second to closed ports that the kernel may answer under attack.
const CLOSED: Limit = match Limit::per_second(1000, 100) {
    Some(limit) => limit,
    None => Limit::NONE,
};

/// Judges a TCP packet, and makes it into a reply if need be. `marks` as [`crate::hand_over::Marks`].
#[inline(always)]
pub fn defend(facts: Facts<'_>, marks: u64, sampled: bool) -> Reason {
    let source = XdpSource::new(facts.ctx);
    let Some(scratch) = SCRATCH.get_ptr_mut(0) else {
        return Reason::Pass;
    };
    let Some(frame) = Frame::read(&source, marks, scratch) else {
        return Reason::Pass;
    };
    let reason = judge(facts, frame, sampled);
    if reason.verdict() == Verdict::Reply {
        emit::sample_reply(facts, reason);
        if !rewrite::reply(facts, frame) {
            // Nothing was changed, and the kernel knows what to do.
            return Reason::Pass;
        }
    }
    reason
}

/// What becomes of the packet. For a reason that replies, the segment to reply
/// with is in the scratch.
#[expect(
    clippy::needless_borrows_for_generic_args,
    reason = "by value the key is copied once more, in pieces of another width"
)]
#[inline(always)]
fn judge(facts: Facts<'_>, frame: Frame, sampled: bool) -> Reason {
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
    if forwarded {
        return challenge(facts, of, frame);
    }
    let watched = of.charge(1);
    let defended = of.is_defended();
    if watched && (!defended || of.is_dry_run()) {
        remember(of, frame.tuple_hash(seed(), frame.seq().wrapping_add(1)));
    }
    if !defended {
        return Reason::Pass;
    }
    defend_syn(facts, of, frame, target)
}

/// Takes a hash into the table of handshakes.
#[inline(always)]
fn remember(of: Of, hash: u64) {
    if let Some(slot) = HANDSHAKES.get_ptr_mut(tags::place(hash)) {
        // SAFETY: a map value, written whole.
        unsafe { slot.write_volatile(tags::word(hash, of.now, ATTEMPT_SHIFT)) };
    }
}

/// Whether the hash was taken in at most so many steps ago; with `take` it no longer is.
#[inline(always)]
fn remembers(of: Of, hash: u64, most: u16, take: bool) -> bool {
    let Some(slot) = HANDSHAKES.get_ptr_mut(tags::place(hash)) else {
        return false;
    };
    let word = tags::word(hash, of.now, ATTEMPT_SHIFT);
    // SAFETY: a map value, 8 bytes aligned; the swap lets one CPU have it.
    unsafe {
        let found = slot.read_volatile();
        tags::is_same(found, word)
            && tags::age(found, word) <= most
            && (!take || compare_exchange(slot, found, 0) == found)
    }
}

#[inline(always)]
fn defend_syn(facts: Facts<'_>, of: Of, frame: Frame, target: *mut Target) -> Reason {
    // SAFETY: a map value; each field is read whole.
    let (kind, wscale, mss, marked_at) = unsafe {
        (
            (*target).kind,
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
    let each = kind == TARGET_BOUND;
    let due = !of.is_dry_run() && (each || of.now.wrapping_sub(marked_at) >= MARK_EVERY_NS);
    let (found, marked) = socket::look_up(facts.ctx.ctx, frame, due);
    match found {
        // An old connection of the same ends: the kernel knows what a SYN means there.
        Found::Connection | Found::Request => return Reason::Pass,
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
        if each || marked_at == 0 || of.now.wrapping_sub(marked_at) > MARK_LASTS_NS {
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
    let alone = frame.is_bare();
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
    let walk = crate::options::walk(facts, frame.transport() + 20, frame.options())?;
    let mut sum = Sum::default();
    let mut i = 0;
    while i < MAX_OPTIONS as usize / 4 {
        sum = sum.word(walk.words[i]);
        i += 1;
    }
    Some((walk.offer, alone.then_some(sum)))
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
fn segment(facts: Facts<'_>, of: Of, frame: Frame, in_slice: bool) -> Reason {
    let defended = of.is_defended();
    // With the sequence number in it, so that a source is not sampled as a whole.
    let first = frame.tuple_hash(seed(), frame.seq());
    let sampled = in_slice && first >> 20 & (SEGMENT_SAMPLE / SEGMENT_SLICES - 1) as u64 == 0;
    let may_complete = (!defended || of.is_dry_run()) && remembers(of, first, HANDSHAKE_AGE, false);
    if !defended && !sampled && !may_complete {
        return Reason::Pass;
    }
    let (found, _) = socket::look_up(facts.ctx.ctx, frame, false);
    let may_be_cookie = found == Found::Listener && frame.is_ack();
    let proves = may_be_cookie && cookie::is_valid(frame, frame.seq(), frame.ack());
    if proves {
        of.count(ServiceCounter::CookiesValid);
        // Once a connection: what follows it may come before the kernel has made the
        // socket, and an acknowledgement may come twice.
        let connection = frame.tuple_hash(seed(), CONNECTION);
        if defended && !remembers(of, connection, CONNECTION_AGE, false) {
            of.completed();
        }
        remember(of, connection);
    }
    // Neither a SYN that the kernel remembers proves anything, nor an acknowledgement
    // of whatever: it is the connection that does.
    if may_complete
        && (proves || found == Found::Connection)
        && remembers(of, first, HANDSHAKE_AGE, true)
    {
        of.count(ServiceCounter::Completed);
        of.completed();
    }
    if proves || found == Found::Connection || found == Found::Request {
        return Reason::Pass;
    }
    let connection = frame.tuple_hash(seed(), CONNECTION);
    if found == Found::Listener && remembers(of, connection, CONNECTION_AGE, false) {
        return Reason::Pass;
    }
    if sampled {
        of.charge(SEGMENT_SAMPLE);
    }
    if !defended {
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

/// A SYN for a service behind this host.
#[inline(always)]
fn challenge(facts: Facts<'_>, of: Of, frame: Frame) -> Reason {
    // Whether handshakes complete is not known here: what counts are SYNs of sources
    // that are not verified.
    if of.is_defended() && challenge::is_known(of, frame) {
        of.count(ServiceCounter::KnownSyns);
        return Reason::Pass;
    }
    of.charge(1);
    if !of.is_defended()
        || end(facts, of, Reason::ReplyChallenge) == Reason::Pass
        || !challenge::make(of, frame)
    {
        return Reason::Pass;
    }
    of.count(ServiceCounter::Challenges);
    Reason::ReplyChallenge
}

/// A segment without SYN for a service behind this host.
#[inline(always)]
fn forwarded_segment(of: Of, frame: Frame) -> Reason {
    if !of.is_defended() || of.is_dry_run() {
        return Reason::Pass;
    }
    challenge::answered(of, frame)
}
