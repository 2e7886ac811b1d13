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
        ServiceCounter,
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

/// Makes the challenge to a SYN, in the scratch; `false` when the kernel gives no
/// cookie.
#[inline(always)]
pub fn make(of: Of, frame: Frame) -> bool {
    let seed = config!(seed);
    let hash = frame.tuple_hash(&seed, frame.seq());
    let second = match attempt(hash, of.now) {
        Attempt::First | Attempt::Again => false,
        Attempt::Second => true,
        // Too many others to remember this one: in one second of four.
        Attempt::Unknown => (hash >> 32 ^ of.now >> 30) & 3 == 0,
    };
    cookie::prepare(frame, if second { frame.seq() } else { NO_SEQ }, 0);
    let Some(number) = cookie::make(frame) else {
        return false;
    };
    let ends = frame.reversed();
    // The SYN-ACK has a window of 0, so that nothing is sent which would be lost.
    let (seq, ack, flags) = if second {
        (number, frame.seq().wrapping_add(1), flag::SYN | flag::ACK)
    } else {
        (0, number, flag::ACK)
    };
    put(frame, ends.bare(seq, ack, flags));
    true
}

#[inline(always)]
fn put(frame: Frame, reply: Segment) {
    // SAFETY: a map value that belongs to this CPU.
    unsafe { (&raw mut (*frame.scratch).reply).write(reply) };
}

#[inline(always)]
fn attempt(hash: u64, now: u64) -> Attempt {
    let Some(slot) = ATTEMPTS.get_ptr_mut(tags::place(hash)) else {
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

/// What becomes of a segment that is no SYN: one that answers a challenge
/// verifies its source, and goes no further.
#[inline(always)]
pub fn answered(of: Of, frame: Frame) -> Reason {
    let is_reset = frame.has(flag::RST);
    if !is_reset && (!frame.is_ack() || !frame.is_bare() || is_verified(of, frame, true)) {
        return Reason::Pass;
    }
    // A reset has the number as its own, an acknowledgement acknowledges it.
    let (seq, ack) = if is_reset {
        (NO_SEQ + 1, frame.seq().wrapping_add(1))
    } else {
        (frame.seq(), frame.ack())
    };
    if !cookie::is_valid(frame, seq, ack) {
        return Reason::Pass;
    }
    // Who proves again what is known gets nothing for it.
    if !is_verified(of, frame, true) {
        of.count(ServiceCounter::Verified);
        of.completed();
    }
    remember(of, frame);
    if is_reset {
        return Reason::ChallengeAnswered;
    }
    put(frame, frame.reversed().bare(frame.ack(), 0, flag::RST));
    Reason::ReplyReset
}

/// Whether the source of a SYN is verified, which it stays as long as it comes
/// again now and then.
#[inline(always)]
pub fn is_known(of: Of, frame: Frame) -> bool {
    is_verified(of, frame, false)
}

/// Whether the source is verified. What is asked only to tell leaves its age as
/// it is (`look`); else a source in use stays verified.
#[inline(always)]
fn is_verified(of: Of, frame: Frame, look: bool) -> bool {
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
fn remember(of: Of, frame: Frame) {
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
