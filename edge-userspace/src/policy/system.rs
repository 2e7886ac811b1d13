//! What the configuration file says of sources.

use crate::{entry::List, policy::Counts, tables::Listing};
use edge_common::{
    addr::Prefix,
    table::{FLAG_BOGON, FLAG_MANAGEMENT, FOREVER, Meta},
};
use std::collections::{BTreeMap, BTreeSet};

/// The entries of the configuration file.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct System {
    /// Addresses that nothing may lock out.
    pub management: Vec<Prefix>,
    /// Sources that cannot be senders.
    pub bogons: Vec<Prefix>,
    /// Limit profiles by prefix; profile 0 is the default and needs no entry.
    pub profiles: Vec<(Prefix, u8)>,
    /// The file's allowlist.
    pub allow: Vec<Prefix>,
    /// The file's blacklist.
    pub black: Vec<Prefix>,
}

/// What the file says of one prefix.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Own {
    pub(super) black: bool,
    pub(super) allow: bool,
    meta: Meta,
}

impl Own {
    pub(super) fn listing(self) -> Listing {
        let stamp = |listed: bool| if listed { FOREVER } else { 0 };
        Listing {
            black: stamp(self.black),
            allow: stamp(self.allow),
            meta: self.meta,
        }
    }

    pub(super) fn lists(self, list: List) -> bool {
        match list {
            List::Black => self.black,
            List::Allow => self.allow,
        }
    }
}

/// The file's entries by prefix.
#[derive(Debug, Default)]
pub(super) struct Index {
    own: BTreeMap<Prefix, Own>,
    counts: Counts,
}

impl Index {
    pub(super) fn new(system: System) -> Self {
        let mut own: BTreeMap<Prefix, Own> = BTreeMap::new();
        for prefix in system.management {
            own.entry(prefix).or_default().meta.flags |= FLAG_MANAGEMENT;
        }
        for prefix in system.bogons {
            own.entry(prefix).or_default().meta.flags |= FLAG_BOGON;
        }
        for (prefix, profile) in system.profiles {
            own.entry(prefix).or_default().meta.profile = profile;
        }
        for prefix in system.allow {
            own.entry(prefix).or_default().allow = true;
        }
        for prefix in system.black {
            own.entry(prefix).or_default().black = true;
        }
        let mut counts = Counts::default();
        for (&prefix, own) in &own {
            for list in [List::Black, List::Allow] {
                if own.lists(list) {
                    counts.add(list, prefix);
                }
            }
        }
        Self { own, counts }
    }

    pub(super) fn own(&self, prefix: Prefix) -> Own {
        self.own.get(&prefix).copied().unwrap_or_default()
    }

    pub(super) fn counts(&self) -> Counts {
        self.counts
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (Prefix, Own)> {
        self.own.iter().map(|(&prefix, &own)| (prefix, own))
    }

    /// The file's entries of a list behind `after` and inside `within`.
    pub(super) fn range(
        &self,
        list: List,
        after: Option<Prefix>,
        within: Option<Prefix>,
    ) -> impl Iterator<Item = Prefix> {
        self.own
            .iter()
            .filter(move |(p, own)| {
                own.lists(list)
                    && after.is_none_or(|after| **p > after)
                    && within.is_none_or(|within| within.contains(**p))
            })
            .map(|(&p, _)| p)
    }

    /// The prefixes of which another file says something else.
    pub(super) fn differing(&self, other: &Self) -> BTreeSet<Prefix> {
        self.own
            .keys()
            .chain(other.own.keys())
            .copied()
            .filter(|&p| self.own(p) != other.own(p))
            .collect()
    }
}
