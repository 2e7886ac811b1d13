//! The last results, good or bad, in one word.

/// The most results that a window can have: what is left of a word of 64 bits, besides the
/// state of a breaker.
pub const MAX_WINDOW: u32 = 50;

/// The last results. A bit for each, the newest lowest, 1 for a bad one; above them a 1 that
/// says where they begin.
///
/// A full window of good results does not change with another one, so that workers who
/// share it only read it as long as all goes well.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Window(u64);

impl Window {
    /// No results.
    pub(super) const EMPTY: Self = Self(1);

    /// From [`bits`](Self::bits).
    pub(super) const fn from_bits(bits: u64) -> Self {
        // No word of ours is 0; the results in it could not be told from none.
        Self(if bits == 0 { 1 } else { bits })
    }

    /// What stands for it in a word: less than 2^([`MAX_WINDOW`] + 1).
    pub(super) const fn bits(self) -> u64 {
        self.0
    }

    /// With another result, of which the last `size` (1 to [`MAX_WINDOW`]) are kept.
    #[must_use]
    pub(super) const fn with(self, bad: bool, size: u32) -> Self {
        let all = self.0 << 1 | bad as u64;
        let begin = 1 << size;
        if all < begin {
            Self(all)
        } else {
            Self(all & (begin - 1) | begin)
        }
    }

    /// How many results there are.
    pub(super) const fn results(self) -> u32 {
        self.0.ilog2()
    }

    /// How many of them are bad.
    pub(super) const fn bad(self) -> u32 {
        self.0.count_ones() - 1
    }
}

/// How many bad ones of `size` results are at least a share (0 to 1) of them; one at the
/// least.
pub(super) fn bad_of(share: f64, size: u32) -> u32 {
    // A share in decimals lies a little above or below its binary form, and must not ask
    // for one more because of that.
    ((share * f64::from(size) - 1e-9).ceil() as u32).clamp(1, size)
}
