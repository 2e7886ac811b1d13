//! Which backend has which number in the kernel's tables.
//!
//! Flow entries and rings name backends by numbers. A number says the same as
//! long as anything may name it: a backend keeps its own through every change, and that of
//! one that has gone is given away last. If it comes back before, it gets it again, and
//! with it the flows that still name it.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use super::BackendKey;

/// The numbers of the backends of all services, from 1 on. 0 is nobody.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Numbers {
    live: BTreeMap<BackendKey, u32>,
    /// Of backends that went, the oldest first, each number once.
    retired: VecDeque<(u32, BackendKey)>,
}

/// There are more backends than numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{wanted} backends of all services together; there are numbers for {room}: remove some")]
pub struct TooMany {
    /// How many.
    pub wanted: usize,
    /// How many there can be.
    pub room: u32,
}

impl Numbers {
    /// What was found in the tables of the daemon before: the backends in use, and those
    /// that went, the oldest first. Of a number that stands there twice only the first
    /// counts; those in use are asked before.
    pub fn resume(
        live: impl IntoIterator<Item = (BackendKey, u32)>,
        retired: impl IntoIterator<Item = (BackendKey, u32)>,
    ) -> Self {
        let mut used = BTreeSet::from([0]);
        let live: BTreeMap<BackendKey, u32> = live
            .into_iter()
            .filter(|&(_, number)| used.insert(number))
            .collect();
        let retired = retired
            .into_iter()
            .filter(|(key, number)| !live.contains_key(key) && used.insert(*number))
            .map(|(key, number)| (number, key))
            .collect();
        Self { live, retired }
    }

    /// The numbers for `wanted`, from 1 to `last`. New backends get numbers that nobody has had, as long
    /// as there are any, then those of backends that went, the oldest first; of backends
    /// that go with this change only when nothing else is left. Numbers above the last
    /// are given up.
    ///
    /// # Errors
    /// [`TooMany`] if there are more than numbers.
    pub fn assign(&self, wanted: &BTreeSet<BackendKey>, last: u32) -> Result<Self, TooMany> {
        if wanted.len() > last as usize {
            return Err(TooMany {
                wanted: wanted.len(),
                room: last,
            });
        }
        let (mut live, going): (BTreeMap<_, _>, Vec<_>) = {
            let (stay, go): (Vec<_>, Vec<_>) = self
                .live
                .iter()
                .filter(|(_, number)| **number <= last)
                .map(|(key, &number)| (key.clone(), number))
                .partition(|(key, _)| wanted.contains(key));
            (stay.into_iter().collect(), go)
        };
        let mut retired = VecDeque::new();
        for (number, key) in self.retired.iter().filter(|(number, _)| *number <= last) {
            if wanted.contains(key) && !live.contains_key(key) {
                live.insert(key.clone(), *number);
            } else {
                retired.push_back((*number, key.clone()));
            }
        }
        retired.extend(going.into_iter().map(|(key, number)| (number, key)));

        let used: BTreeSet<u32> = live
            .values()
            .copied()
            .chain(retired.iter().map(|&(number, _)| number))
            .collect();
        let mut unused = (1..=last).filter(|number| !used.contains(number));
        for key in wanted {
            if !live.contains_key(key)
                && let Some(number) = unused
                    .next()
                    .or_else(|| retired.pop_front().map(|(number, _)| number))
            {
                live.insert(key.clone(), number);
            }
        }
        Ok(Self { live, retired })
    }

    /// The number of a backend in use.
    pub fn get(&self, key: &BackendKey) -> Option<u32> {
        self.live.get(key).copied()
    }

    /// The backends in use.
    pub const fn live(&self) -> &BTreeMap<BackendKey, u32> {
        &self.live
    }

    /// Those that went and whose numbers nobody else has got, the oldest first.
    pub fn retired(&self) -> impl Iterator<Item = (&BackendKey, u32)> {
        self.retired.iter().map(|(number, key)| (key, *number))
    }
}
