//! Adding, removing, expiring.

use super::{Added, MAX_NOTE, NewEntry, Policy, PolicyError, Removed};
use crate::{
    clock::Now,
    entry::{List, Origin},
    store::{Change, Record},
    tables::Listing,
};
use edge_common::{addr::Prefix, table::Stamp};

/// Entries between two reports of progress.
const REPORT_EVERY: u64 = 8192;
/// Slots that one call of [`Policy::expire`] looks at: everything within two
/// minutes at ten million entries and a call a second, and 2 MB of memory.
const SWEEP_SLOTS: usize = 1 << 17;
/// Entries that one call of [`Policy::expire`] removes.
const SWEEP_LIMIT: usize = 1 << 14;

impl Policy {
    /// Adds entries, all or none. One that is listed already gets the new
    /// expiry, origin and note, and keeps its age and hits; of several with
    /// the same prefix the last one counts. `progress` hears of done and total.
    ///
    /// # Errors
    /// [`PolicyError`]; then nothing has changed.
    pub fn add(
        &mut self,
        list: List,
        entries: Vec<NewEntry>,
        now: Now,
        progress: &mut dyn FnMut(u64, u64),
    ) -> Result<Added, PolicyError> {
        self.change(list, entries, None, now, progress)
    }

    /// Adds entries and removes all others of the same list that have this
    /// origin, in one step.
    ///
    /// # Errors
    /// [`PolicyError`]; then nothing has changed.
    pub fn replace(
        &mut self,
        list: List,
        origin: Origin,
        entries: Vec<NewEntry>,
        now: Now,
        progress: &mut dyn FnMut(u64, u64),
    ) -> Result<Added, PolicyError> {
        self.change(list, entries, Some(origin), now, progress)
    }

    fn change(
        &mut self,
        list: List,
        entries: Vec<NewEntry>,
        replaced: Option<Origin>,
        now: Now,
        progress: &mut dyn FnMut(u64, u64),
    ) -> Result<Added, PolicyError> {
        let entries = sorted(entries, now);
        if let Some(long) = entries.iter().find(|e| e.note.len() > MAX_NOTE) {
            return Err(PolicyError::NoteTooLong {
                prefix: long.prefix,
                length: long.note.len(),
            });
        }
        let mut changes: Vec<Change> = Vec::with_capacity(entries.len());
        let mut done = Added::default();
        let gone = match replaced {
            Some(origin) => self.listed(list, Some(origin))?,
            None => Vec::new(),
        };
        let former = self.store.read()?;
        for prefix in gone {
            if entries.binary_search_by_key(&prefix, |e| e.prefix).is_err() {
                done.removed += 1;
                changes.push((list, prefix, None));
            }
        }
        for entry in entries {
            // The tables know of all that is stored: most entries of a feed are
            // new, and need no look into the store.
            let known = stamp(self.tables.own(entry.prefix), list) != 0;
            let record = if known {
                former.get(list, entry.prefix)?
            } else {
                None
            };
            let created_unix_ms = match record {
                Some(record) if !record.has_expired(now.unix_ms) => {
                    done.updated += 1;
                    record.created_unix_ms
                }
                _ => {
                    done.added += 1;
                    now.unix_ms
                }
            };
            let record = Record {
                created_unix_ms,
                expires_unix_ms: entry.expires_unix_ms,
                origin: entry.origin,
                note: entry.note,
            };
            changes.push((list, entry.prefix, Some(record)));
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
                .is_some_and(|r| !r.has_expired(now.unix_ms));
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

    /// Removes all entries of a list, or those of one origin. Entries of the
    /// configuration file stay. Returns how many are gone.
    ///
    /// # Errors
    /// [`PolicyError`]; then nothing has changed.
    pub fn flush(
        &mut self,
        list: List,
        origin: Option<Origin>,
        now: Now,
    ) -> Result<u64, PolicyError> {
        let gone = self.listed(list, origin)?;
        let removed = gone.len() as u64;
        let changes = gone.into_iter().map(|p| (list, p, None)).collect();
        self.apply(changes, now, &mut |_, _| {})?;
        Ok(removed)
    }

    /// Removes some of what has run out; bounded work a call, everything is
    /// seen within a few minutes of calls a second apart. The kernel needs
    /// none of this: to it, an expired entry is none. Returns how many are gone.
    ///
    /// # Errors
    /// [`PolicyError::Store`].
    pub fn expire(&mut self, now: Now) -> Result<u64, PolicyError> {
        let mut found = Vec::new();
        self.tables
            .sweep(now.stamp(), SWEEP_SLOTS, SWEEP_LIMIT, &mut found);
        if found.is_empty() {
            return Ok(0);
        }
        found.sort_unstable();
        found.dedup();
        let mut changes: Vec<Change> = Vec::new();
        for &prefix in &found {
            let own = self.tables.own(prefix);
            for list in [List::Black, List::Allow] {
                let stamp = stamp(own, list);
                if stamp != 0 && stamp <= now.stamp() {
                    changes.push((list, prefix, None));
                }
            }
        }
        let expired = changes.len() as u64;
        self.apply(changes, now, &mut |_, _| {})?;
        Ok(expired)
    }

    /// What the store has of a list, in order.
    fn listed(&self, list: List, origin: Option<Origin>) -> Result<Vec<Prefix>, PolicyError> {
        let entries = self.store.read()?;
        let mut prefixes = Vec::new();
        for item in entries.range(list, None, None)? {
            let (prefix, record) = item?;
            if origin.is_none_or(|origin| record.origin == origin) {
                prefixes.push(prefix);
            }
        }
        Ok(prefixes)
    }

    /// Makes changes in the tables, then in the store; or none of them.
    fn apply(
        &mut self,
        mut changes: Vec<Change>,
        now: Now,
        progress: &mut dyn FnMut(u64, u64),
    ) -> Result<(), PolicyError> {
        // Removals and additions each came in order; the store likes them so.
        changes.sort_by_key(|c| c.1);
        let mut undo = super::Undo::default();
        let mut counts = self.stored;
        // Prefixes go after all else: a source that another one covers from now
        // on must not be without cover in between.
        let goes_last = |c: &&Change| c.2.is_none() && !c.1.is_host();
        let (last, first) = (
            changes.iter().filter(goes_last),
            changes.iter().filter(|c| !goes_last(c)),
        );
        for (list, prefix, record) in first.chain(last) {
            let former = self.tables.own(*prefix);
            let mut own = former;
            let file = self.system.own(*prefix).listing();
            let was_listed = self.is_stored(former, file, *list, *prefix)?;
            match list {
                List::Black => own.black = file.black,
                List::Allow => own.allow = file.allow,
            }
            match record {
                Some(record) => {
                    super::raise(&mut own, *list, record, now);
                    if !was_listed {
                        counts.add(*list, *prefix);
                    }
                }
                None if was_listed => counts.remove(*list, *prefix),
                None => {}
            }
            if own == former {
                continue;
            }
            undo.0.push((*prefix, former));
            if let Err(e) = self.tables.put(*prefix, own) {
                self.undo(undo);
                return Err(e.into());
            }
        }
        let total = changes.len() as u64;
        let reported = changes.into_iter().zip(1u64..).map(|(change, done)| {
            if done % REPORT_EVERY == 0 || done == total {
                progress(done, total);
            }
            change
        });
        if let Err(e) = self.store.write(reported) {
            self.undo(undo);
            return Err(e.into());
        }
        self.stored = counts;
        self.tables.settle();
        Ok(())
    }

    /// Whether the store has an entry, told by the tables where they can tell.
    fn is_stored(
        &self,
        own: Listing,
        file: Listing,
        list: List,
        prefix: Prefix,
    ) -> Result<bool, PolicyError> {
        if stamp(file, list) == 0 {
            return Ok(stamp(own, list) != 0);
        }
        Ok(self.store.read()?.get(list, prefix)?.is_some())
    }
}

fn stamp(listing: Listing, list: List) -> Stamp {
    match list {
        List::Black => listing.black,
        List::Allow => listing.allow,
    }
}

/// What is not over already, in the order of prefixes, of equal ones the last.
fn sorted(mut entries: Vec<NewEntry>, now: Now) -> Vec<NewEntry> {
    entries.retain(|e| e.expires_unix_ms.is_none_or(|at| at > now.unix_ms));
    entries.sort_by_key(|e| e.prefix);
    entries.dedup_by(|later, earlier| {
        let same = later.prefix == earlier.prefix;
        if same {
            std::mem::swap(later, earlier);
        }
        same
    });
    entries
}
