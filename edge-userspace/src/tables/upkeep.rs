//! What is done to the tables now and then, to all of them: filling them anew,
//! rebuilding the filters, finding what has expired.

use std::net::IpAddr;

use edge_common::{
    addr::Prefix,
    table::{SlotW, Stamp},
};

use super::{
    Listing, TableError, Tables,
    cuckoo::{Cuckoo, NoRoom},
    filters::{Draft, LengthsDraft, announce},
    prefixes::Prefixes,
    slots::Slot,
    writer::{Home, home, host6, wide_key},
};
use crate::memory::Region;

/// Stale filter bits below which a rebuild is not worth its time.
const STALE_MIN: u64 = 1024;

/// Where the search for expired entries goes on.
#[derive(Clone, Copy, Debug)]
pub(super) enum SweepAt {
    Hosts4(usize),
    Wide(usize),
    Prefixes(Option<Prefix>),
}

/// How [`Tables::refill`] went.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Refilled {
    /// Hosts and prefixes that are in the tables now.
    pub entries: u64,
    /// Entries that were there before and had no right to be.
    pub removed: u64,
}

impl Tables {
    /// Rebuilds the filters when removals left too many stale bits in them.
    /// To be called after a batch of changes; nothing depends on it but speed.
    pub fn settle(&mut self) {
        let used = self.used();
        if self.stale_hosts4 > STALE_MIN.max(u64::from(used.hosts_v4) / 4) {
            self.rebuild_hosts4_filter();
        }
        if self.stale_hosts6 > STALE_MIN.max(u64::from(used.hosts_v6) / 4) {
            self.rebuild_hosts6_filter();
        }
        if self.stale_prefixes > STALE_MIN.max(u64::from(used.prefixes) / 4) {
            self.rebuild_prefix_filters();
        }
    }

    fn rebuild_hosts4_filter(&mut self) {
        let mut draft = Draft::of(&self.regions.hosts4_filter);
        let words = self.geometry.hosts4_filter_words;
        for (_, place) in self.hosts4.places(&self.regions.hosts4) {
            draft.set_bits(place.filter(words));
        }
        draft.store(&self.regions.hosts4_filter);
        self.stale_hosts4 = 0;
    }

    fn rebuild_hosts6_filter(&mut self) {
        let mut draft = Draft::of(&self.regions.hosts6_filter);
        let words = self.geometry.hosts6_filter_words;
        for (key, place) in self.wide.places(&self.regions.wide) {
            if host6(key).is_some() {
                draft.set_bits(place.filter(words));
            }
        }
        draft.store(&self.regions.hosts6_filter);
        self.stale_hosts6 = 0;
    }

    /// `PREFIX_FILTER`, `BITMAP24` and the lengths in use.
    fn rebuild_prefix_filters(&mut self) {
        let mut lengths = LengthsDraft::of(&self.regions);
        for node in self.prefixes.after(None) {
            if let Some(key) = wide_key(node) {
                let place = SlotW::place(&self.seed, &key);
                lengths.set_filter_bits(place.filter(self.geometry.prefix_filter_words));
            }
            lengths.add(node, &self.seed, &self.geometry);
        }
        lengths.store(&self.regions);
        self.stale_prefixes = 0;
    }

    /// Makes the tables hold exactly `entries`, each host and prefix at most
    /// once, in any order, with what is said of it by itself.
    ///
    /// Entries that are in the tables already stay in force all the time, with
    /// their hits, and what must go goes last.
    ///
    /// # Errors
    /// The first error of `entries`, or [`TableError::Full`]. Then the tables
    /// hold a mixture of old and new, and only another refill may follow.
    pub fn refill<E: From<TableError>>(
        &mut self,
        entries: impl IntoIterator<Item = Result<(Prefix, Listing), E>>,
    ) -> Result<Refilled, E> {
        self.refilling = true;
        self.hosts4.mark();
        self.wide.mark();
        self.prefixes = Prefixes::default();
        self.hosts_as_prefixes = 0;
        let mut count = 0;
        for entry in entries {
            let (prefix, own) = entry?;
            count += u64::from(!own.is_empty());
            self.load(prefix, own)?;
        }
        self.write_all_nodes()?;
        let removed = self.hosts4.remove_unmarked(&self.regions.hosts4)
            + self.wide.remove_unmarked(&self.regions.wide);
        self.rebuild_hosts4_filter();
        self.rebuild_hosts6_filter();
        self.rebuild_prefix_filters();
        self.refilling = false;
        let (used, capacity) = (self.used(), self.geometry.capacity);
        if used.hosts_v4 > capacity.hosts_v4 {
            return Err(self.full_hosts4().into());
        }
        if used.hosts_v6 > capacity.hosts_v6 {
            return Err(self.full_hosts6().into());
        }
        if used.prefixes > capacity.prefixes {
            return Err(self.full_prefixes().into());
        }
        Ok(Refilled {
            entries: count,
            removed,
        })
    }

    /// Puts a host in, but keeps a prefix for [`Tables::write_all_nodes`]: what
    /// its entry must say is known only when all are.
    fn load(&mut self, prefix: Prefix, own: Listing) -> Result<(), TableError> {
        match home(prefix) {
            Home::Host4(addr) => {
                let (stamps, meta) = own.split();
                self.put_host4(addr, stamps)?;
                if !meta.is_empty() {
                    self.prefixes.set(prefix, meta);
                    self.hosts_as_prefixes += 1;
                }
            }
            Home::Host6(key) => self.put_host6(key, own)?,
            Home::Prefix => {
                self.prefixes.set(prefix, own);
            }
        }
        Ok(())
    }

    fn write_all_nodes(&mut self) -> Result<(), TableError> {
        let prefixes = std::mem::take(&mut self.prefixes);
        let written = prefixes.for_each(|node, says| {
            if let Some(key) = wide_key(node) {
                self.write_wide(key, says)?;
                announce(&self.regions, node, &self.seed, &self.geometry);
            }
            Ok(())
        });
        self.prefixes = prefixes;
        written.map_err(|NoRoom| self.full_prefixes())
    }

    /// Looks on for entries of which a stamp has run out at `now`, through
    /// about `slots` slots and nodes, and appends about `limit` of them to
    /// `found`. Goes round through everything in successive calls.
    pub fn sweep(&mut self, now: Stamp, slots: usize, limit: usize, found: &mut Vec<Prefix>) {
        let mut left = slots;
        let limit = found.len().saturating_add(limit);
        // All three kinds, once each at the most.
        for _ in 0..3 {
            if left == 0 || found.len() >= limit {
                return;
            }
            match self.sweep {
                SweepAt::Hosts4(at) => {
                    let table = (&self.hosts4, &self.regions.hosts4);
                    let next = sweep_slots(table, host4, now, at, &mut left, limit, found);
                    self.sweep = next.map_or(SweepAt::Wide(0), SweepAt::Hosts4);
                }
                SweepAt::Wide(at) => {
                    let table = (&self.wide, &self.regions.wide);
                    let next = sweep_slots(table, host6, now, at, &mut left, limit, found);
                    self.sweep = next.map_or(SweepAt::Prefixes(None), SweepAt::Wide);
                }
                SweepAt::Prefixes(at) => {
                    let next = self.sweep_prefixes(now, at, &mut left, limit, found);
                    self.sweep = next.map_or(SweepAt::Hosts4(0), |p| SweepAt::Prefixes(Some(p)));
                }
            }
        }
    }

    fn sweep_prefixes(
        &self,
        now: Stamp,
        after: Option<Prefix>,
        left: &mut usize,
        limit: usize,
        found: &mut Vec<Prefix>,
    ) -> Option<Prefix> {
        if after.is_none() {
            let whole = self.prefixes.whole6();
            found.extend(whole.filter(|w| w.1.has_expired(now)).map(|w| w.0));
        }
        for node in self.prefixes.after(after) {
            if self.prefixes.own(node).has_expired(now) {
                found.push(node);
            }
            *left = left.saturating_sub(1);
            if *left == 0 || found.len() >= limit {
                return Some(node);
            }
        }
        None
    }
}

/// Looks for expired hosts in the slots of a table from `from` on; `host` tells
/// the host of a key, if it is one. Returns where to go on, `None` at the end.
fn sweep_slots<S: Slot>(
    (table, region): (&Cuckoo<S>, &Region),
    host: impl Fn(S::Key) -> Option<Prefix>,
    now: Stamp,
    from: usize,
    left: &mut usize,
    limit: usize,
    found: &mut Vec<Prefix>,
) -> Option<usize> {
    for index in from..table.slots() {
        if *left == 0 || found.len() >= limit {
            return Some(index);
        }
        *left -= 1;
        if S::load_listing(region, index).has_expired(now) {
            found.extend(S::load_key(region, index).and_then(&host));
        }
    }
    None
}

/// The host of an entry of `HOSTS4`.
fn host4(addr: u32) -> Option<Prefix> {
    Some(Prefix::host(IpAddr::from(addr.to_ne_bytes())))
}
