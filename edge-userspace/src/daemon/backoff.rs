//! Longer and longer pauses between attempts that fail.

/// The first pause, and the longest, nanoseconds.
const FIRST_NS: u64 = 1_000_000_000;
const LONGEST_NS: u64 = 300_000_000_000;

/// When the next attempt may be made.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Backoff {
    failures: u32,
    next_ns: u64,
}

impl Backoff {
    /// Whether an attempt may be made.
    pub(super) const fn is_due(&self, now_ns: u64) -> bool {
        now_ns >= self.next_ns
    }

    /// One has failed.
    pub(super) fn failed(&mut self, now_ns: u64) {
        let pause = FIRST_NS << self.failures.min(16);
        self.failures = self.failures.saturating_add(1);
        self.next_ns = now_ns.saturating_add(pause.min(LONGEST_NS));
    }

    /// One has succeeded.
    pub(super) fn succeeded(&mut self) {
        *self = Self::default();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_double_up_to_the_longest_and_end_with_a_success() {
        let mut backoff = Backoff::default();
        assert!(backoff.is_due(0));
        let mut pauses = Vec::new();
        for _ in 0..40 {
            backoff.failed(7);
            assert!(!backoff.is_due(7));
            pauses.push((backoff.next_ns - 7) / FIRST_NS);
        }
        assert_eq!(pauses[..5], [1, 2, 4, 8, 16]);
        assert_eq!(pauses[39], 300);
        backoff.succeeded();
        assert!(backoff.is_due(7));
    }
}
