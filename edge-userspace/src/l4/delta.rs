//! What the kernel's tables hold of the balancer, and what has to be written to get from
//! one state to another.
//!
//! A ring is known by its [`Recipe`]: of a thousand services the rings together have
//! 130 MB, and only those that change have to be made.

use std::collections::{BTreeMap, BTreeSet};

use edge_common::hash::Seed;

use super::{
    BackendKey,
    maglev::{Candidate, ring},
    numbers::Numbers,
};

/// All that a ring depends on besides the seed: rings of the same recipe are the same.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Recipe {
    /// How many slots it has.
    pub slots: u32,
    /// Who may have slots, with its number, sorted by endpoint.
    pub members: Vec<(Candidate, u32)>,
}

impl Recipe {
    /// That of a service. Candidates without a number are left out.
    pub fn new(service: &str, candidates: &[Candidate], slots: u32, numbers: &Numbers) -> Self {
        let numbered = |&candidate: &Candidate| {
            let key = BackendKey {
                service: service.to_owned(),
                endpoint: candidate.endpoint,
            };
            Some((candidate, numbers.get(&key)?))
        };
        let mut members: Vec<(Candidate, u32)> = candidates.iter().filter_map(numbered).collect();
        members.sort_by_key(|(candidate, _)| candidate.endpoint);
        Self { slots, members }
    }

    /// The ring, as the kernel has it: the number of the backend of each slot; empty if
    /// there is nobody to give flows to.
    pub fn ring(&self, seed: &Seed) -> Vec<u32> {
        let (candidates, numbers): (Vec<Candidate>, Vec<u32>) =
            self.members.iter().copied().unzip();
        let ring = ring(seed, &candidates, self.slots).into_iter();
        ring.map(|at| numbers.get(usize::from(at)).copied().unwrap_or(0))
            .collect()
    }
}

/// What the tables hold.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Contents {
    /// By the name of a service.
    pub rings: BTreeMap<String, Recipe>,
    /// By number, the backends. Also those that get no new flows are there, as flow
    /// entries may name them.
    pub backends: BTreeMap<u32, BackendKey>,
}

impl Contents {
    /// The contents for services with these candidates.
    pub fn new(services: &BTreeMap<String, Vec<Candidate>>, slots: u32, numbers: &Numbers) -> Self {
        let recipe = |(name, candidates): (&String, &Vec<Candidate>)| {
            (name.clone(), Recipe::new(name, candidates, slots, numbers))
        };
        let backend = |(key, &number): (&BackendKey, &u32)| (number, key.clone());
        Self {
            rings: services.iter().map(recipe).collect(),
            backends: numbers.live().iter().map(backend).collect(),
        }
    }
}

/// What has to be written, in this order: then no packet finds a number of which nobody
/// knows whose it is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Delta {
    /// Backends that are new, or that have taken over the number of another.
    pub backends: BTreeMap<u32, BackendKey>,
    /// Rings that are new or others.
    pub rings: BTreeMap<String, Recipe>,
    /// Services that go.
    pub services_gone: BTreeSet<String>,
    /// Backends that go.
    pub backends_gone: BTreeSet<u32>,
}

impl Delta {
    /// From the contents as they are to those that are wanted.
    pub fn between(before: &Contents, after: &Contents) -> Self {
        Self {
            backends: news(&before.backends, &after.backends),
            rings: news(&before.rings, &after.rings),
            services_gone: gone(&before.rings, &after.rings),
            backends_gone: gone(&before.backends, &after.backends),
        }
    }

    /// Whether nothing has to be written.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

/// What is new or another in `after`.
fn news<K: Ord + Clone, V: PartialEq + Clone>(
    before: &BTreeMap<K, V>,
    after: &BTreeMap<K, V>,
) -> BTreeMap<K, V> {
    after
        .iter()
        .filter(|&(key, value)| before.get(key) != Some(value))
        .map(|(key, value)| (key.clone(), value.clone()))
        .collect()
}

/// What is no longer in `after`.
fn gone<K: Ord + Clone, V>(before: &BTreeMap<K, V>, after: &BTreeMap<K, V>) -> BTreeSet<K> {
    let gone = |key: &&K| !after.contains_key(key);
    before.keys().filter(gone).cloned().collect()
}
