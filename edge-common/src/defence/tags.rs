//! Bounded memories of what was seen: words of a tag and an age in tables that
//! never grow.
//!
//! A word holds the upper 48 bits of a keyed hash and 16 bits of time. 0 is an
//! empty word. Two hashes that share 48 bits are taken for one, which happens by
//! chance once in 2^48 looks, and on purpose never without the seed.

/// Entries of a bucket of `VERIFIED`: one cache line.
pub const WAYS: usize = 8;

/// A bucket of `VERIFIED`.
pub type TagBucket = [u64; WAYS];

/// Nanoseconds of one step of the age of a verified source, as a shift: 1.07 s.
pub const VERIFIED_SHIFT: u32 = 30;
/// The same for attempts and handshakes: 16.8 ms, which wrap in 18 minutes.
pub const ATTEMPT_SHIFT: u32 = 24;

const TAG: u64 = !0xffff;

/// The word for a hash at a time.
#[inline(always)]
pub const fn word(hash: u64, now_ns: u64, shift: u32) -> u64 {
    // An empty word is never taken for one.
    (hash | 1 << 63) & TAG | (now_ns >> shift) & 0xffff
}

/// Whether a word has the tag of another one.
#[inline(always)]
pub const fn is_same(a: u64, b: u64) -> bool {
    (a ^ b) & TAG == 0
}

/// Steps from a word to `now`, a word made at that time. A word from a moment ahead is
/// new: clocks of two interfaces are not quite the same.
#[inline(always)]
pub const fn age(word: u64, now: u64) -> u16 {
    const AHEAD: u16 = 0xff00;
    let age = (now as u16).wrapping_sub(word as u16);
    if age >= AHEAD { 0 } else { age }
}

/// Where the word of a hash is in a table of 2^16: the bits that its tag has not.
#[inline(always)]
pub const fn place(hash: u64) -> u32 {
    (hash & !TAG) as u32
}

/// How good it is to put `now` over a word of its bucket: the same tag is best,
/// then an empty word, then the oldest.
#[inline(always)]
pub const fn worth(word: u64, now: u64) -> u32 {
    if is_same(word, now) {
        u32::MAX
    } else if word == 0 {
        u32::MAX - 1
    } else {
        age(word, now) as u32 + 1
    }
}

/// What becomes of a SYN that is not verified, by the word of `ATTEMPTS` that
/// its hash points to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Attempt {
    /// Seen for the first time; the word is to be stored.
    First,
    /// Seen before, just now: a copy on its way.
    Again,
    /// Sent again after the first challenge was not answered.
    Second,
    /// The word is another one's, which is still young: nothing is known.
    Unknown,
}

/// Steps of [`ATTEMPT_SHIFT`] after which a SYN that comes again was sent again:
/// 0.4 s, well below the first timeout of 1 s (RFC 6298, 2.1).
const RETRANSMITTED: u16 = 24;
/// Steps for which a word is kept for its owner: 4 s.
const KEPT: u16 = 240;

/// Looks at the word of `ATTEMPTS`; `now` is the SYN's own word.
#[inline(always)]
pub const fn attempt(word: u64, now: u64) -> Attempt {
    let age = age(word, now);
    if is_same(word, now) {
        if age < RETRANSMITTED {
            Attempt::Again
        } else {
            Attempt::Second
        }
    } else if word == 0 || age > KEPT {
        Attempt::First
    } else {
        Attempt::Unknown
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const STEP: u64 = 1 << VERIFIED_SHIFT;

    fn best(bucket: &TagBucket, now: u64) -> usize {
        (0..WAYS)
            .max_by_key(|&i| (worth(bucket[i], now), WAYS - i))
            .unwrap()
    }

    fn find(bucket: &TagBucket, now: u64, ttl: u16) -> Option<usize> {
        (0..WAYS).find(|&i| is_same(bucket[i], now) && age(bucket[i], now) <= ttl)
    }

    #[test]
    fn a_word_is_found_until_it_is_too_old() {
        let mut bucket = [0; WAYS];
        let start = 5 * STEP;
        let seen = word(0x1234_5678_9abc_def0, start, VERIFIED_SHIFT);
        assert_eq!(find(&bucket, seen, 100), None);
        bucket[best(&bucket, seen)] = seen;
        for (steps, found) in [(0, true), (100, true), (101, false)] {
            let now = word(0x1234_5678_9abc_def0, start + steps * STEP, VERIFIED_SHIFT);
            assert_eq!(find(&bucket, now, 100).is_some(), found, "{steps}");
        }
        let other = word(0x1234_5678_9abd_def0, start, VERIFIED_SHIFT);
        assert_eq!(find(&bucket, other, 100), None);
    }

    #[test]
    fn the_oldest_makes_way_and_none_is_stored_twice() {
        let mut bucket = [0; WAYS];
        for i in 0..WAYS as u64 {
            let w = word((i + 1) << 20, (10 + i) * STEP, VERIFIED_SHIFT);
            bucket[best(&bucket, w)] = w;
        }
        assert!(bucket.iter().all(|&w| w != 0));
        let again = word(3 << 20, 30 * STEP, VERIFIED_SHIFT);
        assert_eq!(best(&bucket, again), 2);
        let new = word(99 << 20, 30 * STEP, VERIFIED_SHIFT);
        assert_eq!(best(&bucket, new), 0);
    }

    #[test]
    fn a_clock_that_is_a_step_behind_makes_nothing_old() {
        let at = |steps| word(7 << 20, steps * STEP, VERIFIED_SHIFT);
        assert_eq!(age(at(5), at(4)), 0);
        assert_eq!(age(at(5), at(6)), 1);
        assert_eq!(
            attempt(
                word(7 << 20, 2 << 24, ATTEMPT_SHIFT),
                word(7 << 20, 1 << 24, ATTEMPT_SHIFT)
            ),
            Attempt::Again
        );
    }

    #[test]
    fn attempts_are_told_apart_by_their_age() {
        let second = 1 << 30;
        let at = |hash, ns| word(hash, ns, ATTEMPT_SHIFT);
        let first = at(7 << 20, second);
        assert_eq!(attempt(0, first), Attempt::First);
        assert_eq!(
            attempt(first, at(7 << 20, second + second / 10)),
            Attempt::Again
        );
        assert_eq!(attempt(first, at(7 << 20, 2 * second)), Attempt::Second);
        assert_eq!(attempt(first, at(8 << 20, 2 * second)), Attempt::Unknown);
        assert_eq!(attempt(first, at(8 << 20, 9 * second)), Attempt::First);
    }
}
