//! Sources of forwarded services: those that are not verified get an answer
//! that a real TCP reacts to and a spoofed source cannot.
//!
//! The first challenge is an acknowledgement of something never sent, whose
//! number is a cookie: a TCP in SYN-SENT answers with a reset that has the
//! number (RFC 9293, 3.10.7.3), and sends its SYN again. A client that does not,
//! because something on its way swallows it, gets a SYN-ACK with a cookie when
//! it sends its SYN again; its connection is reset as soon as it has
//! acknowledged that, and the next one passes.

use super::{cookie, frame::Frame, pressure::Of};
use crate::maps::{ATTEMPTS, VERIFIED, config};
use edge_common::{
    defence::{
        ATTEMPTS as ATTEMPT_WORDS, ServiceCounter,
        reply::Segment,
        tags::{self, ATTEMPT_SHIFT, Attempt, VERIFIED_SHIFT, WAYS},
    },
    hash::reduce,
    parse::tcp as flag,
    reason::Reason,
};

/// The sequence number that challenges are made for: of the SYN nothing but its
/// ends counts, so that the answer to any of its copies does.
const NO_SEQ: u32 = 0;

/// What to answer a SYN with.
#[derive(Clone, Copy)]
pub enum Answer {
    /// Nothing: its source is verified.
    Known,
    /// This segment.
    Challenge(Segment),
    /// The kernel gave no cookie.
    None,
}

/// Answers a SYN.
#[inline(always)]
pub fn syn(of: Of, frame: &Frame) -> Answer {
    if is_verified(of, frame, false) {
        of.count(ServiceCounter::KnownSyns);
        return Answer::Known;
    }
    let seed = config!(seed);
    let hash = frame.tuple_hash(&seed, frame.seq());
    let second = match attempt(hash, of.now) {
        Attempt::First | Attempt::Again => false,
        Attempt::Second => true,
        // Too many others to remember this one: once in 16 seconds.
        Attempt::Unknown => (hash ^ of.now >> 30) & 15 == 0,
    };
    let ends = frame.reversed();
    let seq = if second { frame.seq() } else { NO_SEQ };
    let Some(number) = cookie::make(frame, &cookie::syn(frame, seq, 0)) else {
        return Answer::None;
    };
    Answer::Challenge(if second {
        // With a window of 0, so that nothing is sent which would be lost.
        ends.bare(number, frame.seq().wrapping_add(1), flag::SYN | flag::ACK)
    } else {
        ends.bare(0, number, flag::ACK)
    })
}

#[inline(always)]
fn attempt(hash: u64, now: u64) -> Attempt {
    let Some(slot) = ATTEMPTS.get_ptr_mut(reduce(hash as u32, ATTEMPT_WORDS)) else {
        return Attempt::Unknown;
    };
    let word = tags::word(hash, now, ATTEMPT_SHIFT);
    // SAFETY: a map value, read and written whole. Of two that write at one
    // moment the other one is forgotten.
    unsafe {
        let found = tags::attempt(slot.read_volatile(), word);
        if found == Attempt::First {
            slot.write_volatile(word);
        }
        found
    }
}

/// What a segment that is no SYN says of its source: a reason when it answered a
/// challenge, which ends it. The segment is the reply to it.
#[inline(always)]
pub fn segment(of: Of, frame: &Frame) -> Option<(Reason, Segment)> {
    let ends = frame.reversed();
    if frame.has(flag::RST) {
        if !cookie::is_valid(frame, NO_SEQ + 1, frame.seq().wrapping_add(1)) {
            return None;
        }
        verified(of, frame);
        return Some((Reason::ChallengeAnswered, ends.bare(0, 0, 0)));
    }
    if !frame.has(flag::ACK)
        || frame.has(flag::SYN)
        || is_verified(of, frame, true)
        || !cookie::is_valid(frame, frame.seq(), frame.ack())
    {
        return None;
    }
    verified(of, frame);
    Some((Reason::ReplyReset, ends.bare(frame.ack(), 0, flag::RST)))
}

#[inline(always)]
fn verified(of: Of, frame: &Frame) {
    is_verified(of, frame, false);
    remember(of, frame);
    of.count(ServiceCounter::Verified);
    of.completed();
}

/// Whether the source is verified. What is asked only to tell leaves its age as
/// it is (`look`); else a source in use stays verified.
#[inline(always)]
fn is_verified(of: Of, frame: &Frame, look: bool) -> bool {
    let seed = config!(seed);
    let hash = frame.source_hash(&seed);
    let Some(bucket) = VERIFIED.get_ptr_mut(reduce((hash >> 32) as u32, config!(verified_buckets)))
    else {
        return false;
    };
    let now = tags::word(hash << 16, of.now, VERIFIED_SHIFT);
    let ttl = config!(verified_ttl) as u16;
    let words = bucket.cast::<u64>();
    let mut i = 0;
    while i < WAYS {
        // SAFETY: a bucket has so many words; each is read and written whole.
        unsafe {
            let word = words.add(i).read_volatile();
            if tags::is_same(word, now) && tags::age(word, now) <= ttl {
                if !look && tags::age(word, now) > ttl / 4 {
                    words.add(i).write_volatile(now);
                }
                return true;
            }
        }
        i += 1;
    }
    false
}

/// Takes the source into the table.
#[inline(always)]
fn remember(of: Of, frame: &Frame) {
    let seed = config!(seed);
    let hash = frame.source_hash(&seed);
    let Some(bucket) = VERIFIED.get_ptr_mut(reduce((hash >> 32) as u32, config!(verified_buckets)))
    else {
        return;
    };
    let now = tags::word(hash << 16, of.now, VERIFIED_SHIFT);
    let words = bucket.cast::<u64>();
    let (mut best, mut worth) = (words, 0);
    let mut i = 0;
    while i < WAYS {
        // SAFETY: a bucket has so many words; each is read whole.
        unsafe {
            let at = words.add(i);
            let value = tags::worth(at.read_volatile(), now);
            if value > worth {
                (best, worth) = (at, value);
            }
        }
        i += 1;
    }
    // SAFETY: one of the bucket's words, written whole.
    unsafe { best.write_volatile(now) };
}
