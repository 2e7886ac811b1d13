//! The lists: what is on them, in the store for good and in the kernel's tables
//! for the packets.
//!
//! A change reaches the tables first, so that it is in force at once, and is
//! acknowledged when the store has it. When either refuses, the other is put
//! back: a change happens as a whole or not at all. After a crash in between,
//! [`Policy::open`] makes the tables what the store says.
//!
//! Beside the lists of the store stand the system's entries ([`System`]):
//! lists, management addresses, bogons and limit profiles of the configuration
//! file. They are not stored; each start and reload brings them anew.

mod change;
mod counts;
#[cfg(test)]
mod crash_tests;
mod query;
mod system;
#[cfg(test)]
mod tests;

pub use counts::{Counts, Kind};
pub use query::{EntryView, Page};
pub use system::System as SystemEntries;

use crate::{
    clock::Now,
    entry::{List, Origin},
    store::{Change, Record, Store, StoreError},
    tables::{Geometry, Listing, Refilled, Regions, TableError, Tables},
};
use edge_common::{addr::Prefix, hash::Seed};
use std::{iter::Peekable, sync::Arc};
use system::{Index, Own};
use thiserror::Error;

/// The longest note, in bytes.
pub const MAX_NOTE: usize = 256;

/// Why the lists did not change.
#[derive(Debug, Error)]
pub enum PolicyError {
    /// A table has no room.
    #[error(transparent)]
    Table(#[from] TableError),
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// A note is too long.
    #[error("the note of {prefix} has {length} bytes; at most {MAX_NOTE} are kept, shorten it")]
    NoteTooLong {
        /// The entry.
        prefix: Prefix,
        /// Bytes of its note.
        length: usize,
    },
    /// The entry belongs to the configuration file.
    #[error(
        "{prefix} is listed in the configuration file; remove it from lists.{key} there and reload"
    )]
    InFile {
        /// The entry.
        prefix: Prefix,
        /// The key below `lists`.
        key: &'static str,
    },
}

/// An entry to add.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NewEntry {
    /// What it lists.
    pub prefix: Prefix,
    /// When it runs out, Unix time in milliseconds; `None` for never.
    pub expires_unix_ms: Option<u64>,
    /// Where it comes from.
    pub origin: Origin,
    /// What a person wrote about it, at most [`MAX_NOTE`] bytes.
    pub note: Arc<str>,
}

/// What adding did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Added {
    /// Entries that were not there before.
    pub added: u64,
    /// Entries that were there, and have a new expiry, origin and note.
    pub updated: u64,
    /// Entries that a replacement took away.
    pub removed: u64,
}

/// What removing did.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Removed {
    /// Entries that are gone.
    pub removed: u64,
    /// What was not there; then nothing was removed.
    pub missing: Vec<Prefix>,
}

/// The lists. There is one of them, and it is the only writer of store and tables.
pub struct Policy {
    store: Store,
    tables: Tables,
    seed: Seed,
    system: Index,
    stored: Counts,
}

impl Policy {
    /// Takes over store and tables: makes the tables hold what the store and
    /// `system` say. Entries that are in them already stay in force meanwhile.
    ///
    /// # Errors
    /// [`PolicyError`]; the tables may then hold a mixture.
    pub fn open(
        store: Store,
        regions: Regions,
        geometry: Geometry,
        seed: Seed,
        system: SystemEntries,
        now: Now,
    ) -> Result<(Self, Refilled), PolicyError> {
        let mut tables = Tables::new(regions, geometry, seed)?;
        let system = Index::new(system);
        let filled = fill(&store, &mut tables, &system, now)?;
        // What ran out while nobody was here.
        store.write(filled.expired)?;
        let policy = Self {
            store,
            tables,
            seed,
            system,
            stored: filled.stored,
        };
        Ok((policy, filled.refilled))
    }

    /// Goes over to other tables, which are filled first. On failure the former
    /// ones remain, complete and in use.
    ///
    /// # Errors
    /// [`PolicyError`].
    pub fn replace_tables(
        &mut self,
        regions: Regions,
        geometry: Geometry,
        system: SystemEntries,
        now: Now,
    ) -> Result<Refilled, PolicyError> {
        let mut tables = Tables::new(regions, geometry, self.seed)?;
        let system = Index::new(system);
        let filled = fill(&self.store, &mut tables, &system, now)?;
        // What has expired is not in the new tables, where it would be found later.
        self.store.write(filled.expired)?;
        self.tables = tables;
        self.system = system;
        self.stored = filled.stored;
        Ok(filled.refilled)
    }

    /// Makes the system's entries these.
    ///
    /// # Errors
    /// [`PolicyError`]; then nothing has changed.
    pub fn set_system(&mut self, system: SystemEntries, now: Now) -> Result<(), PolicyError> {
        let system = Index::new(system);
        let differing = self.system.differing(&system);
        let entries = self.store.read()?;
        let mut listings = Vec::with_capacity(differing.len());
        let (mut expired, mut stored) = (Vec::new(), self.stored);
        for prefix in differing {
            let mut own = system.own(prefix).listing();
            for list in [List::Black, List::Allow] {
                match entries.get(list, prefix)? {
                    // The file's entry, which never expires, stood before it.
                    Some(record) if record.has_expired(now.unix_ms) => {
                        stored.remove(list, prefix);
                        expired.push((list, prefix, None));
                    }
                    Some(record) => raise(&mut own, list, &record, now),
                    None => {}
                }
            }
            listings.push((prefix, own));
        }
        drop(entries);
        if !expired.is_empty() {
            self.store.write(expired)?;
            self.stored = stored;
        }
        // What is new comes before anything goes: a source that another prefix
        // covers from now on must not be without cover in between.
        let both: Vec<_> = listings
            .iter()
            .map(|&(prefix, own)| (prefix, own.under(self.tables.own(prefix))))
            .collect();
        let undo = self.put_all(both)?;
        if let Err(e) = self.put_all(listings) {
            self.undo(undo);
            return Err(e);
        }
        self.system = system;
        self.tables.settle();
        Ok(())
    }

    /// Stores a setting durably.
    ///
    /// # Errors
    /// [`PolicyError::Store`]; then the former value stands.
    pub fn set_setting(&self, name: &str, value: &[u8]) -> Result<(), PolicyError> {
        Ok(self.store.set_setting(name, value)?)
    }

    /// Numbers of entries. O(1).
    pub fn counts(&self) -> Counts {
        self.stored
            .with_file(self.system.counts())
            .with_tables(self.tables.used(), self.tables.geometry())
    }

    /// Puts all listings into the tables, or none.
    fn put_all(
        &mut self,
        listings: impl IntoIterator<Item = (Prefix, Listing)>,
    ) -> Result<Undo, PolicyError> {
        let mut undo = Undo::default();
        for (prefix, listing) in listings {
            let former = self.tables.own(prefix);
            if former == listing {
                continue;
            }
            undo.0.push((prefix, former));
            if let Err(e) = self.tables.put(prefix, listing) {
                self.undo(undo);
                return Err(e.into());
            }
        }
        Ok(undo)
    }

    fn undo(&mut self, undo: Undo) {
        for (prefix, former) in undo.0.into_iter().rev() {
            // What was there a moment ago has room.
            let restored = self.tables.put(prefix, former);
            debug_assert!(restored.is_ok());
        }
    }
}

/// What the tables said before a change, to be put back in reverse.
#[derive(Default)]
struct Undo(Vec<(Prefix, Listing)>);

/// Adds to a listing what a record says.
fn raise(own: &mut Listing, list: List, record: &Record, now: Now) {
    let stamp = now.expiry_stamp(record.expires_unix_ms);
    let of = match list {
        List::Black => &mut own.black,
        List::Allow => &mut own.allow,
    };
    *of = stamp.max(*of);
}

/// How tables were filled.
struct Filled {
    refilled: Refilled,
    /// What is in the store.
    stored: Counts,
    /// Records that have run out, to be removed.
    expired: Vec<Change>,
}

/// Makes the tables hold what the store and the system say.
fn fill(
    store: &Store,
    tables: &mut Tables,
    system: &Index,
    now: Now,
) -> Result<Filled, PolicyError> {
    let entries = store.read()?;
    let mut black = entries.range(List::Black, None, None)?.peekable();
    let mut allow = entries.range(List::Allow, None, None)?.peekable();
    let mut own = system.iter().peekable();
    let (mut stored, mut expired) = (Counts::default(), Vec::new());
    let merged = std::iter::from_fn(|| {
        // All three streams are in the order of prefixes.
        let heads = [next_prefix(&mut black), next_prefix(&mut allow), own.peek().map(|o| o.0)];
        let prefix = heads.into_iter().flatten().min()?;
        let mut listing = own.next_if(|o| o.0 == prefix).map_or(Own::default(), |o| o.1).listing();
        for (list, head) in [(List::Black, take(&mut black, prefix)), (List::Allow, take(&mut allow, prefix))] {
            match head {
                Some(Err(e)) => return Some(Err(e.into())),
                Some(Ok((_, record))) if record.has_expired(now.unix_ms) => {
                    expired.push((list, prefix, None));
                }
                Some(Ok((_, record))) => {
                    stored.add(list, prefix);
                    raise(&mut listing, list, &record, now);
                }
                None => {}
            }
        }
        Some(Ok((prefix, listing)))
    })
    .filter(|item: &Result<_, PolicyError>| !matches!(item, Ok((_, listing)) if Listing::is_empty(*listing)));
    let refilled = tables.refill(merged)?;
    Ok(Filled {
        refilled,
        stored,
        expired,
    })
}

type Item = Result<(Prefix, Record), StoreError>;

/// The next prefix; the lowest there is for an error, so that it comes up at once.
fn next_prefix(items: &mut Peekable<impl Iterator<Item = Item>>) -> Option<Prefix> {
    let lowest = Prefix::host(std::net::Ipv6Addr::UNSPECIFIED.into());
    items
        .peek()
        .map(|item| item.as_ref().map_or(lowest, |i| i.0))
}

fn take(items: &mut Peekable<impl Iterator<Item = Item>>, prefix: Prefix) -> Option<Item> {
    items.next_if(|item| item.as_ref().map_or(true, |i| i.0 == prefix))
}
