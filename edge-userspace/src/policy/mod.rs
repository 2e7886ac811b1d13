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
//!
//! What has run out is removed when the tables' clock, which nobody sets, says
//! so. What the wall clock alone says at a start or when it is set, only keeps
//! an entry out of the tables, until the clock has proved steady ([`clock`]).

mod change;
mod clock;
mod counts;
#[cfg(test)]
mod crash_tests;
#[cfg(test)]
mod memory_tests;
mod order;
mod query;
mod system;
#[cfg(test)]
mod tests;
mod upkeep;

pub use counts::{Counts, Kind};
pub use query::{EntryView, Page};
pub use system::System as SystemEntries;
pub use upkeep::ClockJump;

use crate::{
    clock::Now,
    entry::{List, Source},
    store::{MAX_CLAIMS, Moment, Record, Store, StoreError},
    tables::{Geometry, Listing, Refilled, Regions, TableError, Tables},
};
use clock::WallClock;
use edge_common::{addr::Prefix, hash::Seed, table::Stamp};
use order::{Room, Step, Undo, groups};
use std::{iter::Peekable, sync::Arc};
use system::{Index, Own};
use thiserror::Error;
use upkeep::Search;

/// Entries between two calls of [`Meanwhile`]: some ten milliseconds of work.
const REPORT_EVERY: u64 = 8192;

/// What is called every now and then while a change takes its time, with how
/// many entries of how many are done (0 of 0 while that is not known), and with
/// the lists. Whoever looks into these sees all as it was before the change, or
/// at the very end, when the store has it, all as it is after it.
///
/// The tables alone hold some of the change already: packets see it, and it is
/// put back when the change fails.
pub type Meanwhile<'a> = dyn FnMut(&Policy, u64, u64) + 'a;

/// The longest note, in bytes.
pub const MAX_NOTE: usize = 256;

/// Why the lists did not change.
#[derive(Debug, Error)]
pub enum PolicyError {
    /// A table has no room.
    #[error(transparent)]
    Table(#[from] TableError),
    /// A table has no room for what is new beside what it takes the place of.
    #[error(
        "{0}; for a moment there must be room for new entries and for those of the old ones that they overlap: it is enough to remove some of these first"
    )]
    Overlap(TableError),
    /// A change failed, and what was in the tables could not be put back.
    #[error("{change}; and what was in the tables before cannot be put back: {undo}")]
    NotUndone {
        /// Why the change failed.
        change: Box<Self>,
        /// Why the tables did not take back what they had.
        undo: TableError,
    },
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// A note is too long.
    #[error("the note has {length} bytes; at most {MAX_NOTE} are kept, shorten it")]
    NoteTooLong {
        /// Its bytes.
        length: usize,
    },
    /// Too many sources want the same entry.
    #[error(
        "{prefix} is wanted by {MAX_CLAIMS} sources already; flush a feed that is no longer used"
    )]
    TooManySources {
        /// The entry.
        prefix: Prefix,
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

/// What a source says of all the entries that it adds in one step.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Terms {
    /// Who wants them.
    pub source: Source,
    /// When they run out, Unix time in milliseconds; `None` for never.
    pub expires_unix_ms: Option<u64>,
    /// What a person wrote about them, at most [`MAX_NOTE`] bytes.
    pub note: Arc<str>,
}

/// What adding did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Added {
    /// Entries that this source did not have before.
    pub added: u64,
    /// Entries that it had, and that have a new expiry and note.
    pub updated: u64,
    /// Entries of this source that a replacement took away.
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

/// How the tables were filled.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Filled {
    /// What the tables did.
    pub refilled: Refilled,
    /// Stored entries that have run out if the wall clock is right; they are
    /// kept until it has proved steady.
    pub expired: u64,
    /// Stored entries that the wall clock has not reached yet: it is wrong, or
    /// it was. They last at most as long as they were given from the boot on.
    pub from_the_future: u64,
}

/// The lists. There is one of them, and it is the only writer of store and tables.
pub struct Policy {
    store: Store,
    tables: Tables,
    seed: Seed,
    system: Index,
    stored: Counts,
    clock: WallClock,
    /// The search for what the wall clock has ended; `None` when all that is in
    /// the store is in the tables as well.
    leftovers: Option<Search>,
    /// The search for what is in force by the wall clock and found no room in
    /// the tables; `None` when there is nothing of the kind.
    left_out: Option<Search>,
    /// Set when a change failed and could not be undone.
    torn: bool,
}

impl Policy {
    /// Takes over store and tables: makes the tables hold what the store and
    /// `system` say. Entries that are in them already stay in force meanwhile.
    /// `boot` is the kernel's id of this boot, where it is known.
    ///
    /// # Errors
    /// [`PolicyError`]; the tables may then hold a mixture.
    pub fn open(
        mut store: Store,
        boot: Option<&str>,
        regions: Regions,
        geometry: Geometry,
        seed: Seed,
        system: SystemEntries,
        now: Now,
    ) -> Result<(Self, Filled), PolicyError> {
        let mut tables = Tables::new(regions, geometry, seed)?;
        let system = Index::new(system);
        store.enter(boot, now)?;
        let (filled, stored) = fill(&store, &mut tables, &system, now, &mut || {})?;
        let policy = Self {
            store,
            tables,
            seed,
            system,
            stored,
            clock: WallClock::new(now),
            leftovers: (filled.expired > 0).then_some(Search::START),
            left_out: None,
            torn: false,
        };
        Ok((policy, filled))
    }

    /// Goes over to other tables, which are filled first. On failure the former
    /// ones remain, complete and in use. `alive` is called every now and then.
    ///
    /// # Errors
    /// [`PolicyError`].
    pub fn replace_tables(
        &mut self,
        regions: Regions,
        geometry: Geometry,
        system: SystemEntries,
        now: Now,
        alive: &mut dyn FnMut(),
    ) -> Result<Filled, PolicyError> {
        let mut tables = Tables::new(regions, geometry, self.seed)?;
        let system = Index::new(system);
        let (filled, stored) = fill(&self.store, &mut tables, &system, now, alive)?;
        self.tables = tables;
        self.system = system;
        self.stored = stored;
        // What has expired is not in the new tables, where it would be found.
        self.leftovers = (filled.expired > 0).then_some(Search::START);
        self.left_out = None;
        Ok(filled)
    }

    /// Makes the system's entries these. Writes nothing to the store.
    ///
    /// # Errors
    /// [`PolicyError`]; then nothing has changed.
    pub fn set_system(&mut self, system: SystemEntries, now: Now) -> Result<(), PolicyError> {
        let system = Index::new(system);
        let differing = self.system.differing(&system);
        let entries = self.store.read()?;
        let mut listings = Vec::with_capacity(differing.len());
        let mut stored = self.stored;
        let mut leftovers = false;
        for prefix in differing {
            let former = self.tables.own(prefix);
            let mut own = system.own(prefix).listing();
            for list in [List::Black, List::Allow] {
                let record = entries.get(list, prefix)?;
                if let Some(record) = &record {
                    raise(&mut own, list, record, now, self.store.moment(now));
                }
                let stored_now = record.is_some();
                let before = is_counted(former, self.system.own(prefix), list, stored_now);
                let after = is_counted(own, system.own(prefix), list, stored_now);
                match (before, after) {
                    (false, true) => stored.add(list, prefix),
                    // Has run out, and the file's entry stood before it.
                    (true, false) => {
                        stored.remove(list, prefix);
                        leftovers = true;
                    }
                    _ => {}
                }
            }
            listings.push((prefix, own));
        }
        drop(entries);
        self.put_all(&listings)?;
        self.system = system;
        self.stored = stored;
        if leftovers {
            self.leftovers = Some(Search::START);
        }
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

    /// Whether a change failed and could not be undone
    /// ([`PolicyError::NotUndone`]): the tables then hold a mixture, and only a
    /// new start, with more room, makes them what the store says.
    pub const fn is_torn(&self) -> bool {
        self.torn
    }

    /// Puts all listings, which are in order, into the tables, or none.
    fn put_all(&mut self, listings: &[(Prefix, Listing)]) -> Result<(), PolicyError> {
        let mut room = Room::new(&self.tables);
        let steps = listings
            .iter()
            .map(|&(prefix, own)| Step::new(prefix, self.tables.own(prefix), own));
        let groups = groups(steps.inspect(|step| room.count(step)));
        let prefix_of = |at: usize| listings[at].0;
        let mut undo = Undo::default();
        for group in groups {
            let group = group.range(prefix_of, listings.len());
            // Of old and new first both, then the new alone.
            let both: Vec<_> = group
                .clone()
                .map(|at| (at, listings[at].1.under(self.tables.own(prefix_of(at)))))
                .collect();
            for (at, own) in both.into_iter().chain(group.map(|at| (at, listings[at].1))) {
                let prefix = prefix_of(at);
                let former = self.tables.own(prefix);
                if former == own {
                    continue;
                }
                undo.note(at, former);
                if let Err(e) = self.tables.put(prefix, own) {
                    let e = room.error(prefix, e);
                    return Err(self.undone(undo, prefix_of, e, &mut |_, _, _| {}));
                }
            }
        }
        Ok(())
    }

    /// Puts back what was in the tables before a change that failed; tells why
    /// it failed, and what could not be put back.
    fn undone(
        &mut self,
        undo: Undo,
        prefix_of: impl Fn(usize) -> Prefix,
        change: PolicyError,
        meanwhile: &mut Meanwhile<'_>,
    ) -> PolicyError {
        let mut failed = None;
        for ((at, former), done) in undo.backwards().zip(1u64..) {
            if done % REPORT_EVERY == 0 {
                meanwhile(self, 0, 0);
            }
            if let Err(e) = self.tables.put_back(prefix_of(at), former) {
                failed.get_or_insert(e);
            }
        }
        match failed {
            None => change,
            Some(undo) => {
                self.torn = true;
                PolicyError::NotUndone {
                    change: Box::new(change),
                    undo,
                }
            }
        }
    }
}

/// Adds to a listing what a record says.
fn raise(own: &mut Listing, list: List, record: &Record, now: Now, at: Moment) {
    let of = match list {
        List::Black => &mut own.black,
        List::Allow => &mut own.allow,
    };
    for claim in &record.claims {
        let left = claim.left_ms(at);
        let stamp = now.expiry_stamp(left.map(|left| now.unix_ms.saturating_add(left)));
        *of = stamp.max(*of);
    }
}

/// Whether an entry of the store counts as one: those that the tables have, and
/// those behind an entry of the file, which hides whether they have it.
fn is_counted(own: Listing, file: Own, list: List, is_stored: bool) -> bool {
    is_stored && (file.lists(list) || stamp(own, list) != 0)
}

fn stamp(listing: Listing, list: List) -> Stamp {
    match list {
        List::Black => listing.black,
        List::Allow => listing.allow,
    }
}

/// Makes the tables hold what the store and the system say. Returns as well
/// what is in the store.
fn fill(
    store: &Store,
    tables: &mut Tables,
    system: &Index,
    now: Now,
    alive: &mut dyn FnMut(),
) -> Result<(Filled, Counts), PolicyError> {
    let (entries, at) = (store.read()?, store.moment(now));
    let mut black = entries.range(List::Black, None, None)?.peekable();
    let mut allow = entries.range(List::Allow, None, None)?.peekable();
    let mut files = system.iter().peekable();
    let (mut stored, mut filled) = (Counts::default(), Filled::default());
    let mut done = 0;
    let merged = std::iter::from_fn(|| {
        done += 1;
        if done % REPORT_EVERY == 0 {
            alive();
        }
        // All three streams are in the order of prefixes.
        let heads = [
            next_prefix(&mut black),
            next_prefix(&mut allow),
            files.peek().map(|o| o.0),
        ];
        let prefix = heads.into_iter().flatten().min()?;
        let file = files
            .next_if(|o| o.0 == prefix)
            .map_or(Own::default(), |o| o.1);
        let mut listing = file.listing();
        for (list, head) in [
            (List::Black, take(&mut black, prefix)),
            (List::Allow, take(&mut allow, prefix)),
        ] {
            let record = match head {
                None => continue,
                Some(Err(e)) => return Some(Err(e.into())),
                Some(Ok((_, record))) => record,
            };
            raise(&mut listing, list, &record, now, at);
            if is_counted(listing, file, list, true) {
                stored.add(list, prefix);
            }
            filled.expired += u64::from(record.has_expired(at));
            let ahead = record
                .claims
                .iter()
                .any(|c| c.expires_unix_ms.is_some() && c.changed_unix_ms > now.unix_ms);
            filled.from_the_future += u64::from(ahead);
        }
        Some(Ok((prefix, listing)))
    })
    .filter(|item: &Result<_, PolicyError>| {
        !matches!(item, Ok((_, listing)) if Listing::is_empty(*listing))
    });
    filled.refilled = tables.refill(merged)?;
    Ok((filled, stored))
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
