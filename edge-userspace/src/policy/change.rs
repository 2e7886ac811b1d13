//! Adding, removing, expiring.

use super::{
    Added, MAX_NOTE, Policy, PolicyError, Removed, Terms,
    clock::Jump,
    is_counted,
    order::{Room, Step, Undo, groups},
    raise, stamp,
};
use crate::{
    clock::Now,
    entry::{FeedName, List, Origin},
    store::{Change, Claim, MAX_CLAIMS, Record},
    tables::Listing,
};
use edge_common::addr::Prefix;
use std::sync::Arc;

/// Entries between two reports of progress.
const REPORT_EVERY: u64 = 8192;
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
    /// Adds entries, all or none. One that its source has already gets the new
    /// expiry and note, and keeps its age and hits. Prefixes may repeat.
    /// `progress` hears of done and total.
    ///
    /// # Errors
    /// [`PolicyError`]; then nothing has changed.
    pub fn add(
        &mut self,
        list: List,
        terms: Terms,
        prefixes: Vec<Prefix>,
        now: Now,
        progress: &mut dyn FnMut(u64, u64),
    ) -> Result<Added, PolicyError> {
        self.change(list, terms, prefixes, false, now, progress)
    }

    /// Adds entries and removes all others of the same list that their source
    /// has, in one step.
    ///
    /// # Errors
    /// [`PolicyError`]; then nothing has changed.
    pub fn replace(
        &mut self,
        list: List,
        terms: Terms,
        prefixes: Vec<Prefix>,
        now: Now,
        progress: &mut dyn FnMut(u64, u64),
    ) -> Result<Added, PolicyError> {
        self.change(list, terms, prefixes, true, now, progress)
    }

    fn change(
        &mut self,
        list: List,
        terms: Terms,
        mut prefixes: Vec<Prefix>,
        replaces: bool,
        now: Now,
        progress: &mut dyn FnMut(u64, u64),
    ) -> Result<Added, PolicyError> {
        let Terms {
            source,
            expires_unix_ms,
            note,
        } = terms;
        if note.len() > MAX_NOTE {
            let length = note.len();
            return Err(PolicyError::NoteTooLong { length });
        }
        if expires_unix_ms.is_some_and(|at| at <= now.unix_ms) {
            // Over already.
            prefixes.clear();
        }
        prefixes.sort_unstable();
        prefixes.dedup();
        let claim = Claim {
            era: self.store.moment(now).era,
            source,
            created_unix_ms: now.unix_ms,
            changed_unix_ms: now.unix_ms,
            expires_unix_ms,
            note,
        };
        let mut done = Added::default();
        let mut changes: Vec<Change> = Vec::new();
        if replaces {
            let is_new = |p| prefixes.binary_search(&p).is_ok();
            let goes = |prefix, c: &Claim| c.source == claim.source && !is_new(prefix);
            (changes, done.removed) = self.without(list, goes, now)?;
        }
        changes.reserve_exact(prefixes.len());
        let former = self.store.read()?;
        // Shared by all entries that nobody else wants.
        let alone = Arc::new(Record {
            claims: vec![claim.clone()],
        });
        for prefix in prefixes {
            // Mostly the tables know of all there is, and most entries of a
            // feed are new: these need no look into the store.
            let may_be_stored =
                self.leftovers.is_some() || stamp(self.tables.own(prefix), list) != 0;
            let stored = if may_be_stored {
                former.get(list, prefix)?
            } else {
                None
            };
            let Some(Record { mut claims }) = stored else {
                done.added += 1;
                changes.push((list, prefix, Some(Arc::clone(&alone))));
                continue;
            };
            claims.retain(|c| !self.is_over(c, now));
            if let Some(same) = claims.iter_mut().find(|c| c.source == claim.source) {
                done.updated += 1;
                *same = Claim {
                    created_unix_ms: same.created_unix_ms,
                    ..claim.clone()
                };
            } else if claims.len() < MAX_CLAIMS {
                done.added += 1;
                claims.reserve_exact(1);
                claims.push(claim.clone());
            } else {
                return Err(PolicyError::TooManySources { prefix });
            }
            changes.push((list, prefix, Some(Arc::new(Record { claims }))));
        }
        drop(former);
        self.apply(changes, now, progress)?;
        Ok(done)
    }

    /// Removes entries, all or none: when one of them is not listed, nothing
    /// is removed, and the result names it.
    ///
    /// # Errors
    /// [`PolicyError`], also when an entry belongs to the configuration file
    /// alone; then nothing has changed.
    pub fn remove(
        &mut self,
        list: List,
        prefixes: &[Prefix],
        now: Now,
    ) -> Result<Removed, PolicyError> {
        let mut prefixes = prefixes.to_vec();
        prefixes.sort_unstable();
        prefixes.dedup();
        let entries = self.store.read()?;
        let mut missing = Vec::new();
        for &prefix in &prefixes {
            let is_there = entries
                .get(list, prefix)?
                .is_some_and(|r| !r.has_expired(self.store.moment(now)));
            if is_there {
                continue;
            }
            if self.system.own(prefix).lists(list) {
                let key = match list {
                    List::Black => "blacklist",
                    List::Allow => "allow",
                };
                return Err(PolicyError::InFile { prefix, key });
            }
            missing.push(prefix);
        }
        drop(entries);
        if !missing.is_empty() {
            return Ok(Removed {
                removed: 0,
                missing,
            });
        }
        let removed = prefixes.len() as u64;
        let changes = prefixes.into_iter().map(|p| (list, p, None)).collect();
        self.apply(changes, now, &mut |_, _| {})?;
        Ok(Removed { removed, missing })
    }

    /// Removes the entries of a list that sources of this origin and this feed
    /// have, of all where nothing is given. Entries of the configuration file
    /// stay. Returns how many are gone.
    ///
    /// # Errors
    /// [`PolicyError`]; then nothing has changed.
    pub fn flush(
        &mut self,
        list: List,
        origin: Option<Origin>,
        feed: Option<&FeedName>,
        now: Now,
    ) -> Result<u64, PolicyError> {
        let goes = |_, claim: &Claim| claim.source.is(origin, feed);
        let (changes, removed) = self.without(list, goes, now)?;
        self.apply(changes, now, &mut |_, _| {})?;
        Ok(removed)
    }

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
            self.apply(changes, now, &mut |_, _| {})?;
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
        progress: &mut dyn FnMut(u64, u64),
    ) -> Result<Option<ClockJump>, PolicyError> {
        let before = self.clock;
        let Some(jump) = self.clock.look(now) else {
            return Ok(None);
        };
        let set = self.follow(jump, now, progress);
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
        progress: &mut dyn FnMut(u64, u64),
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
                    progress(done, done);
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

    /// Whether a claim has run out, by a clock that can be relied on.
    fn is_over(&self, claim: &Claim, now: Now) -> bool {
        self.clock.is_steady(now) && claim.has_expired(self.store.moment(now))
    }

    /// The changes after which a list is without the claims that `goes` tells,
    /// in the order of prefixes, and the number of these claims.
    fn without(
        &self,
        list: List,
        goes: impl Fn(Prefix, &Claim) -> bool,
        now: Now,
    ) -> Result<(Vec<Change>, u64), PolicyError> {
        let entries = self.store.read()?;
        let (mut changes, mut gone) = (Vec::new(), 0);
        for item in entries.range(list, None, None)? {
            let (prefix, mut record) = item?;
            record.claims.retain(|c| !self.is_over(c, now));
            let before = record.claims.len();
            record.claims.retain(|c| !goes(prefix, c));
            let removed = before - record.claims.len();
            if removed > 0 {
                gone += removed as u64;
                let left = (!record.claims.is_empty()).then(|| Arc::new(record));
                changes.push((list, prefix, left));
            }
        }
        Ok((changes, gone))
    }

    /// What the tables are to say of a prefix when the store has `record` of it.
    fn own_after(&self, list: List, prefix: Prefix, record: Option<&Record>, now: Now) -> Listing {
        let mut own = self.tables.own(prefix);
        let file = self.system.own(prefix).listing();
        match list {
            List::Black => own.black = file.black,
            List::Allow => own.allow = file.allow,
        }
        if let Some(record) = record {
            raise(&mut own, list, record, now, self.store.moment(now));
        }
        own
    }

    /// Makes changes in the tables, then in the store; or none of them.
    fn apply(
        &mut self,
        mut changes: Vec<Change>,
        now: Now,
        progress: &mut dyn FnMut(u64, u64),
    ) -> Result<(), PolicyError> {
        // The store likes them in order.
        changes.sort_unstable_by_key(|c| (c.1, c.0));
        let mut room = Room::new(&self.tables);
        let steps = changes.iter().map(|(list, prefix, record)| {
            let former = self.tables.own(*prefix);
            let own = self.own_after(*list, *prefix, record.as_deref(), now);
            Step::new(*prefix, former, own)
        });
        let groups = groups(steps.inspect(|step| room.count(step)));
        let prefix_of = |at: usize| changes[at].1;
        let mut undo = Undo::default();
        let mut counts = self.stored;
        let mut is_left = false;
        for group in groups {
            let group = group.range(prefix_of, changes.len());
            let adds = group.clone().filter(|&at| changes[at].2.is_some());
            let removes = group.filter(|&at| changes[at].2.is_none());
            for at in adds.chain(removes) {
                let (list, prefix, ref record) = changes[at];
                let former = self.tables.own(prefix);
                let own = self.own_after(list, prefix, record.as_deref(), now);
                let file = self.system.own(prefix);
                // Told by the tables where they can tell.
                let was_stored =
                    !file.lists(list) || self.store.read()?.get(list, prefix)?.is_some();
                let was_counted = is_counted(former, file, list, was_stored);
                is_left |= record.is_some() && stamp(own, list) == 0;
                match (was_counted, is_counted(own, file, list, record.is_some())) {
                    (false, true) => counts.add(list, prefix),
                    (true, false) => counts.remove(list, prefix),
                    _ => {}
                }
                if former == own {
                    continue;
                }
                undo.note(at, former);
                if let Err(e) = self.tables.put(prefix, own) {
                    return Err(self.undone(undo, prefix_of, room.error(prefix, e)));
                }
            }
        }
        let total = changes.len() as u64;
        let reported = changes.iter().zip(1u64..).map(|(change, done)| {
            if done % REPORT_EVERY == 0 || done == total {
                progress(done, total);
            }
            change
        });
        if let Err(e) = self.store.write(reported) {
            return Err(self.undone(undo, prefix_of, e.into()));
        }
        self.stored = counts;
        if is_left {
            self.leftovers = Some(Search::START);
        }
        self.tables.settle();
        Ok(())
    }
}
