//! What is done to the lists without a request: expiring, and following the clocks.

use super::{
    Meanwhile, Policy, PolicyError, REPORT_EVERY, clock::Jump, is_counted, order::Room, stamp,
};
use crate::{clock::Now, entry::List, store::Change};
use edge_common::addr::Prefix;
use std::sync::Arc;

/// Slots that one call of [`Policy::expire`] looks at: everything within two
/// minutes at ten million entries and a call a second, and 2 MB of memory.
const SWEEP_SLOTS: usize = 1 << 17;
/// Entries that one call of [`Policy::expire`] removes, and stored ones that it
/// looks at besides.
const SWEEP_LIMIT: usize = 1 << 14;

/// A search through the store for what is not in the tables.
#[derive(Clone, Copy, Debug)]
pub(super) struct Search {
    list: List,
    /// Where it goes on.
    after: Option<Prefix>,
    /// Whether it came past something that has to stay.
    is_kept: bool,
}

impl Search {
    pub(super) const START: Self = Self {
        list: List::Allow,
        after: None,
        is_kept: false,
    };

    /// The next one when it came to `last`, `None` for the end of a list.
    fn from(self, last: Option<Prefix>) -> Option<Self> {
        match (self.list, last) {
            (_, Some(_)) => Some(Self {
                after: last,
                ..self
            }),
            (List::Allow, None) => Some(Self {
                list: List::Black,
                after: None,
                ..self
            }),
            (List::Black, None) => self.is_kept.then_some(Self::START),
        }
    }
}

/// What setting the clock, or suspending the machine, did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ClockJump {
    /// By how many milliseconds the wall clock was set; 0 when it was not.
    pub set_by_ms: i64,
    /// For how many milliseconds the machine was suspended; 0 when it was not.
    pub suspended_ms: u64,
    /// Entries that last longer or shorter in the tables than before.
    pub entries: u64,
    /// Entries that are in force again by the new time, for which there is no
    /// room; [`Policy::readmit`] tries again.
    pub left_out: u64,
}

impl Policy {
    /// Removes some of what has run out; bounded work a call, everything is
    /// seen within a few minutes of calls a second apart. The kernel needs
    /// none of this: to it, an expired entry is none. Returns how many were
    /// taken out of tables or store.
    ///
    /// # Errors
    /// [`PolicyError::Store`].
    pub fn expire(&mut self, now: Now) -> Result<u64, PolicyError> {
        let mut found = Vec::new();
        self.tables
            .sweep(now.stamp(), SWEEP_SLOTS, SWEEP_LIMIT, &mut found);
        found.sort_unstable();
        found.dedup();
        let mut changes: Vec<Change> = Vec::new();
        let entries = self.store.read()?;
        for &prefix in &found {
            let own = self.tables.own(prefix);
            for list in [List::Black, List::Allow] {
                let stamp = stamp(own, list);
                if stamp == 0 || stamp > now.stamp() {
                    continue;
                }
                let mut left = None;
                if !self.clock.is_steady(now) {
                    // Claims that the wall clock kept out of the tables: it may
                    // have been wrong about them.
                    left = entries.get(list, prefix)?.filter(|r| r.claims.len() > 1);
                    if let Some(record) = &mut left {
                        let at = self.store.moment(now);
                        record.claims.retain(|c| c.has_expired(at));
                    }
                }
                let left = left.filter(|r| !r.claims.is_empty());
                changes.push((list, prefix, left.map(Arc::new)));
            }
        }
        drop(entries);
        let expired = changes.len() as u64;
        if !changes.is_empty() {
            self.apply(changes, now, &mut |_, _, _| {})?;
        }
        Ok(expired + self.clear_leftovers(now)?)
    }

    /// Removes from the store some of what has run out without having been in
    /// the tables: only the wall clock says so, and it must have been steady.
    fn clear_leftovers(&mut self, now: Now) -> Result<u64, PolicyError> {
        let Some(mut search) = self.leftovers.filter(|_| self.clock.is_steady(now)) else {
            return Ok(0);
        };
        let list = search.list;
        let entries = self.store.read()?;
        let mut changes: Vec<Change> = Vec::new();
        let mut last = None;
        for item in entries.range(list, search.after, None)?.take(SWEEP_LIMIT) {
            let (prefix, record) = item?;
            last = Some(prefix);
            // What the tables have is for the sweep, and what stands behind an
            // entry of the file for when that goes.
            if stamp(self.tables.own(prefix), list) != 0 {
                continue;
            }
            if record.has_expired(self.store.moment(now)) {
                changes.push((list, prefix, None));
            } else {
                search.is_kept = true;
            }
        }
        drop(entries);
        let removed = changes.len() as u64;
        if removed > 0 {
            self.store.write(&changes)?;
        }
        self.leftovers = search.from(last);
        Ok(removed)
    }

    /// Puts some of what had no room in the tables when the clock was set
    /// ([`ClockJump::left_out`]) into them, as far as there is room now: first
    /// the allowlist. Bounded work a call, like that of [`Policy::expire`].
    /// Returns how many entries are in force again.
    ///
    /// # Errors
    /// [`PolicyError::Store`].
    pub fn readmit(&mut self, now: Now) -> Result<u64, PolicyError> {
        let Some(mut search) = self.left_out else {
            return Ok(0);
        };
        if !Room::new(&self.tables).is_any() {
            return Ok(0);
        }
        let (list, at) = (search.list, self.store.moment(now));
        let (mut last, mut back) = (None, 0);
        let entries = self.store.read()?;
        for item in entries.range(list, search.after, None)?.take(SWEEP_LIMIT) {
            let (prefix, record) = item?;
            last = Some(prefix);
            if stamp(self.tables.own(prefix), list) != 0 || record.has_expired(at) {
                continue;
            }
            let own = self.own_after(list, prefix, Some(&record), now);
            if self.tables.put(prefix, own).is_ok() {
                self.stored.add(list, prefix);
                back += 1;
            } else {
                search.is_kept = true;
            }
        }
        drop(entries);
        self.left_out = search.from(last);
        Ok(back)
    }

    /// Looks whether the wall clock was set or the machine suspended, to be
    /// called before every change, and brings what depends on it in line: what
    /// was said while the clock was wrong lasts as long as was meant, and all
    /// else as the time now says.
    ///
    /// # Errors
    /// [`PolicyError::Store`]: the store has expiries by the clock as it was
    /// then, and the next call tries again.
    pub fn mind_clock(
        &mut self,
        now: Now,
        meanwhile: &mut Meanwhile<'_>,
    ) -> Result<Option<ClockJump>, PolicyError> {
        let before = self.clock;
        let Some(jump) = self.clock.look(now) else {
            return Ok(None);
        };
        let set = self.follow(jump, now, meanwhile);
        if set.is_err() {
            self.clock = before.not_seen(now);
        }
        set.map(Some)
    }

    /// Brings tables and store in line with clocks that jumped.
    fn follow(
        &mut self,
        jump: Jump,
        now: Now,
        meanwhile: &mut Meanwhile<'_>,
    ) -> Result<ClockJump, PolicyError> {
        let mut set = ClockJump {
            set_by_ms: jump.set_by_ms,
            suspended_ms: jump.suspended_ms,
            ..ClockJump::default()
        };
        self.leftovers = Some(Search::START);
        if jump.set_by_ms != 0 {
            self.store.clock_was_set(now)?;
        }
        let mut is_left = false;
        let entries = self.store.read()?;
        let mut done = 0;
        // When there is no room for all, better a nuisance passes than a friend
        // does not.
        for list in [List::Allow, List::Black] {
            for item in entries.range(list, None, None)? {
                let (prefix, record) = item?;
                done += 1;
                if done % REPORT_EVERY == 0 {
                    meanwhile(self, 0, 0);
                }
                let former = self.tables.own(prefix);
                let file = self.system.own(prefix);
                let own = self.own_after(list, prefix, Some(&record), now);
                is_left |= stamp(own, list) == 0;
                if own == former {
                    continue;
                }
                match self.tables.put(prefix, own) {
                    Ok(()) => set.entries += 1,
                    Err(_) => {
                        set.left_out += 1;
                        is_left = true;
                        continue;
                    }
                }
                let before = is_counted(former, file, list, true);
                match (before, is_counted(own, file, list, true)) {
                    (false, true) => self.stored.add(list, prefix),
                    (true, false) => self.stored.remove(list, prefix),
                    _ => {}
                }
            }
        }
        drop(entries);
        self.leftovers = is_left.then_some(Search::START);
        self.left_out = (set.left_out > 0).then_some(Search::START);
        self.tables.settle();
        Ok(set)
    }
}
