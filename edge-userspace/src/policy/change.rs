//! Adding and removing.

use super::{
    Added, MAX_NOTE, Meanwhile, Policy, PolicyError, REPORT_EVERY, Removed, Terms, is_counted,
    order::{Room, Step, Undo, groups},
    raise, stamp,
    upkeep::Search,
};
use crate::{
    clock::Now,
    entry::{FeedName, List, Origin},
    store::{Change, Claim, MAX_CLAIMS, Record, StoreError},
    tables::Listing,
};
use edge_common::addr::Prefix;
use std::{
    panic::resume_unwind,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    thread,
    time::Duration,
};

/// How often it is looked whether the store has written.
const STORE_PAUSE: Duration = Duration::from_millis(5);

impl Policy {
    /// Adds entries, all or none. One that its source has already gets the new
    /// expiry and note, and keeps its age and hits. Prefixes may repeat.
    ///
    /// # Errors
    /// [`PolicyError`]; then nothing has changed.
    pub fn add(
        &mut self,
        list: List,
        terms: Terms,
        prefixes: Vec<Prefix>,
        now: Now,
        meanwhile: &mut Meanwhile<'_>,
    ) -> Result<Added, PolicyError> {
        self.change(list, terms, prefixes, false, now, meanwhile)
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
        meanwhile: &mut Meanwhile<'_>,
    ) -> Result<Added, PolicyError> {
        self.change(list, terms, prefixes, true, now, meanwhile)
    }

    fn change(
        &mut self,
        list: List,
        terms: Terms,
        mut prefixes: Vec<Prefix>,
        replaces: bool,
        now: Now,
        meanwhile: &mut Meanwhile<'_>,
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
            (changes, done.removed) = self.without(list, None, goes, now, meanwhile)?;
        }
        changes.reserve_exact(prefixes.len());
        let former = self.store.read()?;
        // Shared by all entries that nobody else wants.
        let alone = Arc::new(Record {
            claims: vec![claim.clone()],
        });
        let total = prefixes.len() as u64;
        for (prefix, number) in prefixes.into_iter().zip(1u64..) {
            if number % REPORT_EVERY == 0 {
                meanwhile(self, 0, total);
            }
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
        self.apply(changes, now, meanwhile)?;
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
        self.apply(changes, now, &mut |_, _, _| {})?;
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
        meanwhile: &mut Meanwhile<'_>,
    ) -> Result<u64, PolicyError> {
        let goes = |_, claim: &Claim| claim.source.is(origin, feed);
        let (changes, removed) = self.without(list, None, goes, now, meanwhile)?;
        self.apply(changes, now, meanwhile)?;
        Ok(removed)
    }

    /// Removes the entries of a list inside some prefixes that sources of this origin have. Returns
    /// which they were.
    ///
    /// # Errors
    /// [`PolicyError`]; then nothing has changed.
    pub fn flush_within(
        &mut self,
        list: List,
        origin: Origin,
        within: &[Prefix],
        now: Now,
        meanwhile: &mut Meanwhile<'_>,
    ) -> Result<Vec<Prefix>, PolicyError> {
        let goes = |_, claim: &Claim| claim.source.is(Some(origin), None);
        let mut changes = Vec::new();
        for &prefix in within {
            let (found, _) = self.without(list, Some(prefix), goes, now, meanwhile)?;
            changes.extend(found);
        }
        // One may be inside another.
        changes.sort_unstable_by_key(|change| change.1);
        changes.dedup_by_key(|change| change.1);
        let gone: Vec<Prefix> = changes.iter().map(|change| change.1).collect();
        if !gone.is_empty() {
            self.apply(changes, now, meanwhile)?;
        }
        Ok(gone)
    }

    /// Whether a claim has run out, by a clock that can be relied on.
    fn is_over(&self, claim: &Claim, now: Now) -> bool {
        self.clock.is_steady(now) && claim.has_expired(self.store.moment(now))
    }

    /// The changes after which a list is, everywhere or within a prefix, without the claims that
    /// `goes` tells, in the order of prefixes, and the number of these claims.
    fn without(
        &self,
        list: List,
        within: Option<Prefix>,
        goes: impl Fn(Prefix, &Claim) -> bool,
        now: Now,
        meanwhile: &mut Meanwhile<'_>,
    ) -> Result<(Vec<Change>, u64), PolicyError> {
        let entries = self.store.read()?;
        let (mut changes, mut gone) = (Vec::new(), 0);
        for (item, number) in entries.range(list, None, within)?.zip(1u64..) {
            if number % REPORT_EVERY == 0 {
                meanwhile(self, 0, 0);
            }
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
    pub(super) fn own_after(
        &self,
        list: List,
        prefix: Prefix,
        record: Option<&Record>,
        now: Now,
    ) -> Listing {
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
    pub(super) fn apply(
        &mut self,
        mut changes: Vec<Change>,
        now: Now,
        meanwhile: &mut Meanwhile<'_>,
    ) -> Result<(), PolicyError> {
        // The store likes them in order.
        changes.sort_unstable_by_key(|c| (c.1, c.0));
        let total = changes.len() as u64;
        let mut room = Room::new(&self.tables);
        let steps = changes.iter().zip(1u64..).map(|(change, number)| {
            if number % REPORT_EVERY == 0 {
                meanwhile(self, 0, total);
            }
            let (list, prefix, record) = change;
            let former = self.tables.own(*prefix);
            let own = self.own_after(*list, *prefix, record.as_deref(), now);
            Step::new(*prefix, former, own)
        });
        let groups = groups(steps.inspect(|step| room.count(step)));
        let prefix_of = |at: usize| changes[at].1;
        let mut undo = Undo::default();
        let mut counts = self.stored;
        let (mut is_left, mut done) = (false, 0);
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
                done += 1;
                if done % REPORT_EVERY == 0 {
                    meanwhile(self, done / 2, total);
                }
                if former == own {
                    continue;
                }
                undo.note(at, former);
                if let Err(e) = self.tables.put(prefix, own) {
                    let e = room.error(prefix, e);
                    return Err(self.undone(undo, prefix_of, e, meanwhile));
                }
            }
        }
        if let Err(e) = self.write(&changes, meanwhile) {
            return Err(self.undone(undo, prefix_of, e.into(), meanwhile));
        }
        self.stored = counts;
        if is_left {
            self.leftovers = Some(Search::START);
        }
        self.tables.settle();
        Ok(())
    }

    /// Writes changes into the store. Many of them on a thread of its own: how
    /// long a disk takes to make them durable is not for this one to tell, and
    /// whoever waits meanwhile must not.
    fn write(&self, changes: &[Change], meanwhile: &mut Meanwhile<'_>) -> Result<(), StoreError> {
        let (store, total) = (&self.store, changes.len() as u64);
        if total < REPORT_EVERY {
            return store.write(changes);
        }
        let (written, waiting) = (AtomicU64::new(0), thread::current());
        thread::scope(|scope| {
            let write = || {
                let counted = changes.iter().inspect(|_| {
                    written.fetch_add(1, Ordering::Relaxed);
                });
                let done = store.write(counted);
                waiting.unpark();
                done
            };
            let thread = thread::Builder::new().name("store".into());
            let Ok(writer) = thread.spawn_scoped(scope, write) else {
                // There can be no more threads.
                return store.write(changes);
            };
            while !writer.is_finished() {
                meanwhile(self, (total + written.load(Ordering::Relaxed)) / 2, total);
                thread::park_timeout(STORE_PAUSE);
            }
            writer.join().unwrap_or_else(|panic| resume_unwind(panic))
        })
    }
}
