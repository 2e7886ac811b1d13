//! What a change does to flows: how many slots move, how many of them needlessly, and
//! how many live flows that concerns. Between two spreads of a service, and between two
//! configurations.

use std::collections::{BTreeMap, BTreeSet};

use edge_common::hash::Seed;

use crate::config::{
    balance::{Backend, Balance, Forward, HashBy},
    services::Service,
};

use super::{
    Endpoint,
    maglev::Spread,
    plan::{States, plan},
};

/// What moves from one spread of a service to another.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Moves {
    /// The slots of the larger ring; the other is taken for as large.
    pub slots: u32,
    /// Slots that have another owner.
    pub moved: u32,
    /// Those of them that would not have to move for every backend to get its share: when
    /// backends go, the slots of others that move.
    pub needless: u32,
    /// Who has how many slots before and after, by endpoint.
    pub shares: BTreeMap<Endpoint, Share>,
}

/// How many slots a backend has.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Share {
    /// As it was.
    pub before: u32,
    /// As it will be.
    pub after: u32,
}

impl Moves {
    /// What moves from `before` to `after`.
    pub fn between(before: &Spread, after: &Spread) -> Self {
        let slots = before.ring.len().max(after.ring.len());
        // Owners by one numbering for both; number 0 is nobody.
        let mut numbers = BTreeMap::new();
        for candidate in before.candidates.iter().chain(&after.candidates) {
            let next = numbers.len() + 1;
            numbers.entry(candidate.endpoint).or_insert(next);
        }
        let owners = |spread: &Spread| -> Vec<usize> {
            let number = |c: &super::maglev::Candidate| numbers.get(&c.endpoint).copied();
            let of: Vec<usize> = spread.candidates.iter().filter_map(number).collect();
            let owner = |slot: usize| {
                let at = spread.ring.get(slot * spread.ring.len() / slots)?;
                of.get(usize::from(*at)).copied()
            };
            (0..slots).map(|slot| owner(slot).unwrap_or(0)).collect()
        };
        let mut counts = vec![Share::default(); numbers.len() + 1];
        let mut moved = 0;
        for (before, after) in owners(before).into_iter().zip(owners(after)) {
            moved += u32::from(before != after);
            if let Some(share) = counts.get_mut(before) {
                share.before += 1;
            }
            if let Some(share) = counts.get_mut(after) {
                share.after += 1;
            }
        }
        let lost = |share: &Share| share.before.saturating_sub(share.after);
        Self {
            slots: u32::try_from(slots).unwrap_or(u32::MAX),
            moved,
            needless: moved - counts.iter().map(lost).sum::<u32>(),
            shares: numbers
                .into_iter()
                .filter_map(|(endpoint, at)| Some((endpoint, *counts.get(at)?)))
                .collect(),
        }
    }

    /// About how many of `live` flows lose their backend. Flows of the flow table stay
    /// where they are, whatever the ring says; those of backends that `go` do not.
    pub fn flows(&self, live: u64, go: impl Fn(&Endpoint) -> bool) -> u64 {
        let gone: u64 = self
            .shares
            .iter()
            .filter(|(endpoint, _)| go(endpoint))
            .map(|(_, share)| u64::from(share.before))
            .sum();
        let slots = u64::from(self.slots.max(1));
        // Rounded; whole and rest are multiplied apart, so that nothing overflows.
        live / slots * gone + (live % slots * gone + slots / 2) / slots
    }
}

/// A configuration as the balancer sees it.
#[derive(Clone, Debug, Default)]
pub struct Configuration<'a> {
    /// The slots of each ring.
    pub slots: u32,
    /// The balanced services, by name.
    pub services: BTreeMap<&'a str, (&'a Service, &'a Balance)>,
}

/// What is known at the moment of a change, by the name of a service.
#[derive(Clone, Debug, Default)]
pub struct Situation {
    /// The moment, nanoseconds of `CLOCK_MONOTONIC`.
    pub now_ns: u64,
    /// The states of backends.
    pub states: BTreeMap<String, States>,
    /// Live flows, where they are known.
    pub flows: BTreeMap<String, u64>,
}

/// What a new configuration changes of a service. As text, a sentence without its stop.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    /// Its name.
    pub service: String,
    /// What happens to it.
    pub kind: Kind,
    /// About how many live flows lose their backend; `None`: it is not known.
    pub flows: Option<u64>,
}

/// What happens to a service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Kind {
    /// It is new.
    Added {
        /// How many backends it has.
        backends: usize,
    },
    /// It goes.
    Removed,
    /// It is changed.
    Changed {
        /// What of it: at least one.
        edits: Vec<Edit>,
        /// What that moves.
        moves: Moves,
    },
}

/// One difference between a service as it was and as it will be. Backends are named by
/// their names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Edit {
    /// A backend goes.
    Remove(String),
    /// A backend comes.
    Add(String),
    /// A backend has another address or port.
    Readdress(String, Endpoint),
    /// A backend has another name: from, to.
    Rename(String, String),
    /// A backend has another weight: from, to.
    Weight(String, u32, u32),
    /// A backend becomes a backup, or is none any more.
    Backup(String, bool),
    /// Connection ids of QUIC name a backend otherwise.
    ServerId(String),
    /// They are of another configuration: from, to.
    QuicConfig(u8, u8),
    /// The service has other addresses, ports, or another protocol.
    Reach,
    /// Packets reach backends otherwise: from, to.
    Forward(Forward, Forward),
    /// Something else of a packet chooses the backend: from, to.
    Hash(HashBy, HashBy),
    /// Another part of the weight must be healthy, per cent: from, to.
    Floor(u32, u32),
    /// Weights rise in another time.
    SlowStart,
    /// Backends are checked otherwise.
    Health,
    /// Rings have another size: from, to.
    Slots(u32, u32),
}

/// What changes from one configuration to another, by service. Services of which nothing
/// changes are left out.
pub fn changes(
    seed: &Seed,
    before: &Configuration<'_>,
    after: &Configuration<'_>,
    situation: &Situation,
) -> Vec<Change> {
    let names: BTreeSet<&str> = [before, after]
        .iter()
        .flat_map(|c| c.services.keys().copied())
        .collect();
    let change = |name: &str| {
        let live = situation.flows.get(name).copied();
        let (kind, flows) = match (before.services.get(name), after.services.get(name)) {
            (None, None) => return None,
            (None, Some((_, balance))) => {
                let backends = balance.backends.len();
                (Kind::Added { backends }, None)
            }
            (Some(_), None) => (Kind::Removed, live),
            (Some(was), Some(is)) => {
                let mut edits = edits(*was, *is);
                if before.slots != after.slots {
                    edits.push(Edit::Slots(before.slots, after.slots));
                }
                if edits.is_empty() {
                    return None;
                }
                let nothing = States::new();
                let states = situation.states.get(name).unwrap_or(&nothing);
                let spread = |balance: &Balance, slots| {
                    let plan = plan(balance, states, situation.now_ns);
                    Spread::new(seed, plan.candidates(), slots)
                };
                let moves =
                    Moves::between(&spread(was.1, before.slots), &spread(is.1, after.slots));
                let stay: BTreeSet<Endpoint> = is.1.backends.iter().map(Endpoint::of).collect();
                let flows = live.map(|live| moves.flows(live, |e| !stay.contains(e)));
                (Kind::Changed { edits, moves }, flows)
            }
        };
        Some(Change {
            service: name.to_owned(),
            kind,
            flows,
        })
    };
    names.into_iter().filter_map(change).collect()
}

/// The differences of one service.
fn edits(was: (&Service, &Balance), is: (&Service, &Balance)) -> Vec<Edit> {
    let by_endpoint = |balance: &'_ Balance| -> BTreeMap<Endpoint, Backend> {
        let entry = |backend: &Backend| (Endpoint::of(backend), backend.clone());
        balance.backends.iter().map(entry).collect()
    };
    let (old, new) = (by_endpoint(was.1), by_endpoint(is.1));
    let go = || old.iter().filter(|(e, _)| !new.contains_key(e));
    let come = || new.iter().filter(|(e, _)| !old.contains_key(e));
    let mut edits = Vec::new();
    for (_, backend) in go() {
        if !come().any(|(_, other)| other.name == backend.name) {
            edits.push(Edit::Remove(backend.name.clone()));
        }
    }
    for (endpoint, backend) in come() {
        let name = backend.name.clone();
        edits.push(if go().any(|(_, other)| other.name == name) {
            Edit::Readdress(name, *endpoint)
        } else {
            Edit::Add(name)
        });
    }
    for (endpoint, a) in &old {
        let Some(b) = new.get(endpoint) else {
            continue;
        };
        if a.name != b.name {
            edits.push(Edit::Rename(a.name.clone(), b.name.clone()));
        }
        if a.weight != b.weight {
            edits.push(Edit::Weight(b.name.clone(), a.weight, b.weight));
        }
        if a.backup != b.backup {
            edits.push(Edit::Backup(b.name.clone(), b.backup));
        }
        if a.server_id != b.server_id {
            edits.push(Edit::ServerId(b.name.clone()));
        }
    }
    let ((service, a), (other, b)) = (was, is);
    let reach = |s: &Service| (s.addresses.clone(), s.ports.clone(), s.protocol);
    if reach(service) != reach(other) {
        edits.push(Edit::Reach);
    }
    if a.forward != b.forward {
        edits.push(Edit::Forward(a.forward, b.forward));
    }
    if a.hash != b.hash {
        edits.push(Edit::Hash(a.hash, b.hash));
    }
    if a.quic_config_id != b.quic_config_id {
        edits.push(Edit::QuicConfig(a.quic_config_id, b.quic_config_id));
    }
    if a.floor_per_cent != b.floor_per_cent {
        edits.push(Edit::Floor(a.floor_per_cent, b.floor_per_cent));
    }
    if a.slow_start != b.slow_start {
        edits.push(Edit::SlowStart);
    }
    if (&a.health, &a.passive) != (&b.health, &b.passive) {
        edits.push(Edit::Health);
    }
    edits
}
