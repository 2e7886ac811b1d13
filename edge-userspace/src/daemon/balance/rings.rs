//! Which rings of the table are free. Pure.

use std::collections::{BTreeSet, VecDeque};

/// How long a ring that went out of force is left alone, nanoseconds: a packet that found
/// it is through within microseconds.
pub(super) const GRACE_NS: u64 = 5_000_000;

/// Rings are numbered from 1.
#[derive(Debug, Default)]
pub(super) struct Rings {
    free: Vec<u32>,
    /// When they went out of force, the oldest first.
    retired: VecDeque<(u64, u32)>,
}

impl Rings {
    /// Of `total` rings, all but those in use. What `former` has left alone still is.
    pub(super) fn new(total: u32, used: &BTreeSet<u32>, former: Option<&Self>) -> Self {
        let retired: VecDeque<(u64, u32)> = former
            .map(|f| f.retired.iter().copied())
            .into_iter()
            .flatten()
            .filter(|(_, ring)| *ring <= total && !used.contains(ring))
            .collect();
        let is_free = |ring: &u32| !used.contains(ring) && !retired.iter().any(|(_, r)| r == ring);
        Self {
            free: (1..=total).rev().filter(is_free).collect(),
            retired,
        }
    }

    /// A ring that may be written; `None`: there is none yet.
    pub(super) fn take(&mut self, now_ns: u64) -> Option<u32> {
        while let Some(&(at, ring)) = self.retired.front()
            && now_ns.saturating_sub(at) >= GRACE_NS
        {
            self.retired.pop_front();
            self.free.push(ring);
        }
        self.free.pop()
    }

    /// A ring has gone out of force; 0 is none.
    pub(super) fn retire(&mut self, ring: u32, now_ns: u64) {
        if ring != 0 {
            self.retired.push_back((now_ns, ring));
        }
    }

    /// When the next one is free, if one is waited for.
    pub(super) fn free_at_ns(&self) -> Option<u64> {
        self.retired.front().map(|(at, _)| at + GRACE_NS)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_ring_is_not_written_before_its_last_packets_are_through() {
        let mut rings = Rings::new(3, &BTreeSet::from([2]), None);
        assert_eq!(
            (rings.take(0), rings.take(0), rings.take(0)),
            (Some(1), Some(3), None)
        );
        rings.retire(0, 0);
        assert_eq!(rings.free_at_ns(), None);
        rings.retire(2, 100);
        assert_eq!(rings.take(100 + GRACE_NS - 1), None);
        assert_eq!(rings.free_at_ns(), Some(100 + GRACE_NS));
        let mut next = Rings::new(3, &BTreeSet::from([1]), Some(&rings));
        assert_eq!((next.take(101), next.take(101)), (Some(3), None));
        assert_eq!(rings.take(100 + GRACE_NS), Some(2));
        assert_eq!(rings.take(u64::MAX), None);
    }
}
