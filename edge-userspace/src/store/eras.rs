//! Which wall clock the times of the store were read from. Pure.
//!
//! A machine without a battery for its clock, or one that has not reached its
//! time server yet, says wrong times until somebody sets it; that they were
//! wrong, and by how much, turns out when the clock is set. So each claim tells
//! the boot in which it was said (its era) and keeps times as the clock of that
//! era showed them when the daemon first looked at it; and for each era it is
//! known once how far that was off. When the clock is set, that one number is
//! changed: everything that was said since the boot is right then, whichever
//! process of the daemon wrote it, and nothing else is touched.
//!
//! This takes a clock that is set for one that was wrong since the boot. When
//! it was right and is set wrong, times are wrong until it is set back, and
//! right again then.

use crate::clock::{Now, STEP_MS};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// The most former eras of which it is known how far they were off; of earlier
/// ones times are taken as they were shown.
const MAX_CORRECTIONS: usize = 1024;

/// The number of a boot, counted by the boots in which a daemon ran.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Era(pub(super) u32);

impl Era {
    /// Of what was written before eras were counted.
    pub const UNKNOWN: Self = Self(0);

    /// Whether it is known to be an earlier boot than `other`.
    pub fn is_before(self, other: Self) -> bool {
        self != Self::UNKNOWN && self < other
    }
}

/// What is known of the wall clocks of this boot and of former ones.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Eras {
    /// The kernel's id of the latest boot, where it could be read.
    boot: Option<String>,
    /// Its number.
    current: Era,
    /// [`Now::offset_ms`] when it was first looked at in this boot.
    offset_ms: i64,
    /// By how many milliseconds the clock was set since then, where it was.
    corrections: BTreeMap<Era, i64>,
}

impl Eras {
    /// The boot that it is.
    pub const fn current(&self) -> Era {
        self.current
    }

    /// The same in the boot of this id: another era, or the latest one, when
    /// the clock may have been set while no daemon ran.
    #[must_use]
    pub fn entered(&self, boot: Option<&str>, now: Now) -> Self {
        if boot.is_some() && self.boot.as_deref() == boot {
            let known = self.offset_ms.wrapping_add(self.correction(self.current));
            let by_ms = now.offset_ms().wrapping_sub(known);
            return if by_ms.unsigned_abs() < STEP_MS {
                self.clone()
            } else {
                self.set(now)
            };
        }
        Self {
            boot: boot.map(str::to_owned),
            current: Era(self.current.0.saturating_add(1)),
            offset_ms: now.offset_ms(),
            corrections: self.corrections.clone(),
        }
    }

    /// The same when the clock was set, and shows `now`.
    #[must_use]
    pub fn set(&self, now: Now) -> Self {
        let mut eras = self.clone();
        let by_ms = now.offset_ms().wrapping_sub(self.offset_ms);
        eras.corrections.insert(self.current, by_ms);
        eras.corrections.retain(|_, by_ms| *by_ms != 0);
        while eras.corrections.len() > MAX_CORRECTIONS {
            eras.corrections.pop_first();
        }
        eras
    }

    /// The right time, given what was shown in an era. At the least 1, since 0
    /// has a meaning of its own in the store.
    pub(super) fn right(&self, era: Era, shown_unix_ms: u64) -> u64 {
        match self.correction(era) {
            0 => shown_unix_ms,
            _ if shown_unix_ms == 0 => 0,
            by_ms => shown_unix_ms.saturating_add_signed(by_ms).max(1),
        }
    }

    /// What was shown in an era at a time: the reverse.
    pub(super) fn shown(&self, era: Era, unix_ms: u64) -> u64 {
        match self.correction(era) {
            0 => unix_ms,
            _ if unix_ms == 0 => 0,
            by_ms => unix_ms.saturating_add_signed(by_ms.saturating_neg()).max(1),
        }
    }

    fn correction(&self, era: Era) -> i64 {
        self.corrections.get(&era).copied().unwrap_or(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn at(boot_s: u64, unix_s: u64) -> Now {
        Now {
            mono_ns: boot_s * 1_000_000_000,
            boot_ns: boot_s * 1_000_000_000,
            unix_ms: unix_s * 1000,
        }
    }

    #[test]
    fn each_boot_has_its_own_correction() {
        let first = Eras::default().entered(Some("a"), at(10, 110));
        let second = first.set(at(20, 9120)).entered(Some("b"), at(5, 10_000));
        let (a, b) = (first.current(), second.current());
        assert!(a.is_before(b) && !b.is_before(a) && !b.is_before(b));
        assert!(!Era::UNKNOWN.is_before(b));
        assert_eq!(second.right(a, 115_000), 9_115_000);
        assert_eq!(second.shown(a, 9_115_000), 115_000);
        for era in [b, Era::UNKNOWN] {
            assert_eq!(second.right(era, 115_000), 115_000);
        }
        assert_eq!(second.right(a, 0), 0, "never");
        // Back to where it was.
        let again = second.set(at(6, 50)).set(at(7, 10_002));
        assert_eq!(again, second);
    }

    #[test]
    fn the_same_boot_goes_on_and_a_step_in_between_is_seen() {
        let eras = Eras::default().entered(Some("a"), at(10, 110));
        assert_eq!(eras.entered(Some("a"), at(30, 131)), eras);
        let set = eras.entered(Some("a"), at(30, 530));
        assert_eq!(set.current(), eras.current());
        assert_eq!(set.right(set.current(), 110_000), 510_000);
        assert_eq!(set.entered(Some("a"), at(40, 540)), set);
        // Who does not know which boot it is takes it for another one.
        let unknown = eras.entered(None, at(30, 130));
        assert!(eras.current().is_before(unknown.current()));
        let more = unknown.entered(None, at(30, 130)).current();
        assert!(unknown.current().is_before(more));
    }

    #[test]
    fn what_is_known_of_former_boots_is_bounded() {
        let mut eras = Eras::default();
        for boot in 0..MAX_CORRECTIONS as u64 + 9 {
            eras = eras.entered(None, at(1, 100)).set(at(2, 500 + boot));
        }
        assert_eq!(eras.corrections.len(), MAX_CORRECTIONS);
        assert_eq!(eras.right(Era(9), 100), 100);
        assert_ne!(eras.right(Era(10), 100), 100);
        assert_ne!(eras.right(eras.current(), 100), 100);
    }

    #[test]
    fn they_can_be_written_and_read() {
        let eras = Eras::default().entered(Some("a"), at(1, 2)).set(at(1, 3));
        let text = serde_json::to_vec(&eras).unwrap();
        assert_eq!(serde_json::from_slice::<Eras>(&text).unwrap(), eras);
    }
}
