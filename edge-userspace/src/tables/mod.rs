//! The writer's side of [`edge_common::table`]: puts hosts and prefixes into
//! memory that the XDP program reads at the same time.
//!
//! A reader finds what was before a change or what is after it, however the two
//! interleave. That holds for each [`Tables::put`] by itself: a packet whose
//! look-up is overtaken by two of them, one adding a prefix and one removing
//! another that covers the same source, may see neither.
//!
//! Pure: no I/O, no clock. The memory is given ([`Regions`]); times are stamps.
//!
//! Hosts live in the tables alone, so that ten million of them cost the daemon
//! nothing; of prefixes a copy is kept, from which follows what each entry of
//! the kernel's table must say on behalf of those that cover it.

mod cuckoo;
mod filters;
mod geometry;
mod prefixes;
mod reader;
mod slots;
#[cfg(test)]
mod tests;
mod upkeep;
mod words;
mod writer;

use edge_common::{
    abi::maps,
    table::{BITMAP24_WORDS, Bucket4, BucketW, LENGTHS_ENTRIES, LongLengths, Meta, Stamp},
};

pub use geometry::{Capacity, Geometry};
pub use reader::Reader;
pub use upkeep::Refilled;
pub use writer::Tables;

use crate::memory::Region;

/// What is said of one host or prefix: by itself, or together with all that
/// cover it. All zero: it is not there.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Listing {
    /// Blacklisted until then.
    pub black: Stamp,
    /// On the allowlist until then.
    pub allow: Stamp,
    /// Flags and limit profile.
    pub meta: Meta,
}

impl Listing {
    /// Whether nothing is said.
    pub fn is_empty(self) -> bool {
        self == Self::default()
    }

    /// Together with what is said by `cover`, which contains it: the later
    /// stamps, all flags, and the own profile if there is one.
    #[must_use]
    pub fn under(self, cover: Self) -> Self {
        Self {
            black: self.black.max(cover.black),
            allow: self.allow.max(cover.allow),
            meta: Meta {
                flags: self.meta.flags | cover.meta.flags,
                profile: match self.meta.profile {
                    0 => cover.meta.profile,
                    own => own,
                },
            },
        }
    }

    /// The stamps alone, and flags and profile alone.
    fn split(self) -> (Self, Self) {
        let stamps = Self {
            meta: Meta::default(),
            ..self
        };
        let meta = Self {
            meta: self.meta,
            ..Self::default()
        };
        (stamps, meta)
    }

    /// Whether a stamp has run out at `now`.
    pub const fn has_expired(self, now: Stamp) -> bool {
        self.black != 0 && self.black <= now || self.allow != 0 && self.allow <= now
    }
}

/// The memory of the maps, by name.
#[derive(Debug)]
pub struct Regions {
    /// [`maps::HOSTS4`].
    pub hosts4: Region,
    /// [`maps::HOSTS4_FILTER`].
    pub hosts4_filter: Region,
    /// [`maps::WIDE`].
    pub wide: Region,
    /// [`maps::HOSTS6_FILTER`].
    pub hosts6_filter: Region,
    /// [`maps::PREFIX_FILTER`].
    pub prefix_filter: Region,
    /// [`maps::BITMAP24`].
    pub bitmap24: Region,
    /// [`maps::LENGTHS4`].
    pub lengths4: Region,
    /// [`maps::LENGTHS6`].
    pub lengths6: Region,
    /// [`maps::LENGTHS6_LONG`].
    pub lengths6_long: Region,
}

impl Regions {
    /// What `region` gives for each name.
    ///
    /// # Errors
    /// Its first one.
    pub fn new<E>(mut region: impl FnMut(&'static str) -> Result<Region, E>) -> Result<Self, E> {
        Ok(Self {
            hosts4: region(maps::HOSTS4)?,
            hosts4_filter: region(maps::HOSTS4_FILTER)?,
            wide: region(maps::WIDE)?,
            hosts6_filter: region(maps::HOSTS6_FILTER)?,
            prefix_filter: region(maps::PREFIX_FILTER)?,
            bitmap24: region(maps::BITMAP24)?,
            lengths4: region(maps::LENGTHS4)?,
            lengths6: region(maps::LENGTHS6)?,
            lengths6_long: region(maps::LENGTHS6_LONG)?,
        })
    }

    /// Zeroed memory of the process, of the sizes of `geometry`: tables that no
    /// kernel reads, for tests and dry runs.
    pub fn heap(geometry: &Geometry) -> Self {
        let [a, b, c, d, e, f, g, h, i] = sizes(geometry).map(|s| Region::heap(s.1));
        Self {
            hosts4: a,
            hosts4_filter: b,
            wide: c,
            hosts6_filter: d,
            prefix_filter: e,
            bitmap24: f,
            lengths4: g,
            lengths6: h,
            lengths6_long: i,
        }
    }

    fn all(&self) -> [&Region; 9] {
        [
            &self.hosts4,
            &self.hosts4_filter,
            &self.wide,
            &self.hosts6_filter,
            &self.prefix_filter,
            &self.bitmap24,
            &self.lengths4,
            &self.lengths6,
            &self.lengths6_long,
        ]
    }
}

/// Names and bytes of the maps in [`Regions`], in the order of its fields.
fn sizes(g: &Geometry) -> [(&'static str, usize); 9] {
    let of = |entries: u32, size: usize| entries as usize * size;
    [
        (maps::HOSTS4, of(g.hosts4_buckets, size_of::<Bucket4>())),
        (maps::HOSTS4_FILTER, of(g.hosts4_filter_words, 8)),
        (maps::WIDE, of(g.wide_buckets, size_of::<BucketW>())),
        (maps::HOSTS6_FILTER, of(g.hosts6_filter_words, 8)),
        (maps::PREFIX_FILTER, of(g.prefix_filter_words, 8)),
        (maps::BITMAP24, of(BITMAP24_WORDS, 8)),
        (maps::LENGTHS4, of(LENGTHS_ENTRIES, 8)),
        (maps::LENGTHS6, of(LENGTHS_ENTRIES, 8)),
        (
            maps::LENGTHS6_LONG,
            of(g.long_lengths, size_of::<LongLengths>()),
        ),
    ]
}

/// Why the tables do not take something.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TableError {
    /// There is no room for another entry of its kind.
    #[error(
        "no room for more {what}: {capacity} are configured; raise `{key}` in the configuration and reload"
    )]
    Full {
        /// What the table holds.
        what: &'static str,
        /// The configured number of entries.
        capacity: u32,
        /// The key of the configuration that sets it.
        key: &'static str,
    },
    /// The memory given for a map does not have the size of the geometry.
    #[error("map {map} has {actual} bytes of memory instead of {expected}")]
    Size {
        /// Name of the map.
        map: &'static str,
        /// Bytes it should have.
        expected: usize,
        /// Bytes it has.
        actual: usize,
    },
}

/// How many entries the tables hold.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Used {
    /// Slots of `HOSTS4`: IPv4 hosts.
    pub hosts_v4: u32,
    /// IPv6 hosts, which are in `WIDE`.
    pub hosts_v6: u32,
    /// Prefixes of both families, which are in `WIDE`.
    pub prefixes: u32,
}

impl Used {
    /// Slots of `WIDE`.
    pub const fn wide(self) -> u32 {
        self.hosts_v6 + self.prefixes
    }
}
