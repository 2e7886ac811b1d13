//! Numbers of entries, kept up to date so that nobody has to count.

use crate::{
    entry::List,
    tables::{Capacity, Geometry, Used},
};
use edge_common::addr::{Family, Prefix};

/// What an entry is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A single address.
    Host,
    /// A prefix.
    Prefix,
}

/// Entries of the lists, and the fill of the tables.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// By list, family and kind.
    entries: [[[u64; 2]; 2]; 2],
    /// Entries in the kernel's tables.
    pub used: Used,
    /// Entries they are sized for.
    pub capacity: Capacity,
}

impl Counts {
    /// Entries of a list, those of the configuration file with them.
    pub fn entries(&self, list: List, family: Family, kind: Kind) -> u64 {
        let [l, f, k] = place(list, family, kind);
        self.entries[l][f][k]
    }

    pub(super) fn add(&mut self, list: List, prefix: Prefix) {
        *self.of(list, prefix) += 1;
    }

    pub(super) fn remove(&mut self, list: List, prefix: Prefix) {
        let n = self.of(list, prefix);
        *n = n.saturating_sub(1);
    }

    fn of(&mut self, list: List, prefix: Prefix) -> &mut u64 {
        let kind = if prefix.is_host() {
            Kind::Host
        } else {
            Kind::Prefix
        };
        let [l, f, k] = place(list, prefix.family(), kind);
        &mut self.entries[l][f][k]
    }

    pub(super) fn with_file(mut self, file: Self) -> Self {
        let mine = self.entries.as_flattened_mut().as_flattened_mut();
        for (n, more) in mine
            .iter_mut()
            .zip(file.entries.as_flattened().as_flattened())
        {
            *n += more;
        }
        self
    }

    pub(super) fn with_tables(self, used: Used, geometry: &Geometry) -> Self {
        Self {
            used,
            capacity: geometry.capacity,
            ..self
        }
    }
}

fn place(list: List, family: Family, kind: Kind) -> [usize; 3] {
    [
        usize::from(list == List::Allow),
        usize::from(family == Family::V6),
        usize::from(kind == Kind::Prefix),
    ]
}
