//! The balancer as the daemon sees it: what checks, routes and operators say of backends
//! becomes plans, and plans become rings and backends in the kernel's tables.
//!
//! The engine (a new configuration, an operator) and a thread of its own (`follow`:
//! health, next hops, time) take turns with it, by a lock.

mod checks;
mod drain;
pub(super) mod follow;
mod ids;
mod memory;
mod rings;
pub(super) mod seed;
mod tell;
mod teller;
mod watch;
mod words;

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    net::IpAddr,
    path::Path,
    sync::Arc,
    time::Duration,
};

use edge_common::{
    balance::{AGE_SHIFT, Backend as AbiBackend, BackendWord, Balance as AbiBalance, hop},
    hash::Seed,
};
use tokio::sync::Notify;
use tracing::warn;

use crate::{
    clock::Now,
    config::{
        Model,
        balance::{self as configured, Balance, HashBy},
        services::Service,
    },
    datapath::{BalanceTables, DatapathError, FlowCount, PortCount},
    health::{self, passive::Watch, runner::Checks},
    host::{
        next_hop::{Answer, NextHop, NoNextHop},
        tunnel::TunnelError,
    },
    l4::{
        BackendKey, Endpoint,
        maglev::{self, Candidate},
        numbers::{Numbers, TooMany},
        plan::{Admin, BackendState, Health, Plan, Standing, States, plan},
    },
    services::{
        slots::Slot,
        sources::{Pair, halves},
    },
};
use checks::{Passage, targets};
use memory::{Memory, Said};
use rings::Rings;
use words::{forward_of, spread};

/// Why the tables of the balancer could not be filled.
#[derive(Debug, thiserror::Error)]
pub(super) enum FillError {
    /// There are too many backends.
    #[error(transparent)]
    TooMany(#[from] TooMany),
    /// The kernel does not take it.
    #[error(transparent)]
    Datapath(#[from] DatapathError),
    /// Checks cannot go as they are to.
    #[error(transparent)]
    Tunnel(#[from] TunnelError),
}

/// A balanced service in force.
#[derive(Debug, Default)]
struct Balanced {
    /// Position among the services of the configuration.
    position: usize,
    /// Index in the tables.
    index: usize,
    /// Of its backends, in the order of the configuration.
    numbers: Vec<u32>,
    states: States,
    plan: Plan,
    /// Those of the ring in force.
    candidates: Vec<Candidate>,
    /// The ring in force; 0: none.
    ring: u32,
    /// Whether it waits for a free ring.
    waits: bool,
}

/// What is in force, or coming into force.
struct Force {
    model: Model,
    seed: Seed,
    /// Written by who has the lock; read without it as well.
    tables: Arc<BalanceTables>,
    /// Source addresses of NAT, by number.
    sources: Vec<Pair>,
    /// In the order of the configuration.
    services: Vec<Balanced>,
    /// Where in `services` a service is, by its name.
    positions: HashMap<String, usize>,
    /// The addresses whose next hops are wanted.
    addresses: Arc<BTreeSet<IpAddr>>,
    /// The next hops that the configuration gives to backends, by address.
    given: Arc<Vec<(IpAddr, configured::NextHop)>>,
    rings: Rings,
    /// By number: which of those that had it.
    generations: BTreeMap<u32, u8>,
    /// Numbers of backends that are no longer configured, and until when their flows may go
    /// on, nanoseconds of `CLOCK_MONOTONIC`.
    leaving: Vec<(u64, u32)>,
}

impl Force {
    /// Before any ring leads to a backend that packets go to from there.
    fn set_sources(&self) {
        let sources: Vec<_> = self.sources.iter().map(|pair| pair.source()).collect();
        self.tables.set_sources(&sources);
    }

    /// Finds out which next hops are wanted, and which are given.
    fn set_addresses(&mut self) {
        let all = balanced(&self.model).flat_map(|(_, _, b)| &b.backends);
        let mut addresses: BTreeSet<IpAddr> = all.map(|b| b.address).collect();
        let given = self.model.balancing.next_hops.iter();
        let given = given.filter(|(address, _)| addresses.contains(address));
        let given: Vec<_> = given.map(|(a, hop)| (*a, hop.clone())).collect();
        for (address, _) in &given {
            addresses.remove(address);
        }
        self.addresses = Arc::new(addresses);
        self.given = Arc::new(given);
    }
}

/// The balancer.
pub(super) struct Balancer {
    force: Option<Force>,
    /// What was in force before a change that is under way, and the numbers then.
    former: Option<Option<Force>>,
    former_numbers: Numbers,
    memory: Memory,
    checks: Checks,
    passage: Passage,
    hops: BTreeMap<IpAddr, Answer>,
    flows: FlowCount,
    ports: PortCount,
    /// What the traffic says of backends.
    watches: BTreeMap<BackendKey, Watch>,
    /// How often the health of backends changed.
    health_changes: BTreeMap<health::BackendKey, u64>,
    /// Which of those that were in force it is.
    epoch: u64,
    /// Wakes the thread: there are other addresses, or there is something to tell.
    woken: Arc<Notify>,
}

impl Balancer {
    /// Of a daemon that keeps its state in `state_dir`.
    pub(super) fn new(state_dir: &Path, checks: Checks) -> Self {
        Self {
            force: None,
            former: None,
            former_numbers: Numbers::default(),
            memory: Memory::open(state_dir),
            checks,
            passage: Passage::default(),
            hops: BTreeMap::new(),
            flows: FlowCount::default(),
            ports: PortCount::default(),
            watches: BTreeMap::new(),
            health_changes: BTreeMap::new(),
            epoch: 0,
            woken: Arc::default(),
        }
    }

    /// Fills the tables of a configuration that is about to come into force, whose services have
    /// these slots, and NAT these source addresses.
    ///
    /// # Errors
    /// When there are too many backends, the kernel refuses, or checks cannot go through
    /// tunnels.
    pub(super) fn fill(
        &mut self,
        model: &Model,
        (slots, sources): (&[Slot], &[Pair]),
        seed: Seed,
        tables: impl FnOnce() -> Result<BalanceTables, DatapathError>,
        now: Now,
    ) -> Result<(), FillError> {
        self.epoch += 1;
        self.former = Some(self.force.take());
        self.former_numbers = self.memory.numbers().clone();
        self.passage.prepare(model)?;
        if !model.has_balanced() {
            return Ok(());
        }
        let tables = Arc::new(tables()?);
        let wanted: BTreeSet<BackendKey> = balanced(model)
            .flat_map(|(_, service, balance)| {
                balance
                    .backends
                    .iter()
                    .map(|b| key(service, Endpoint::of(b)))
            })
            .collect();
        let numbers = self
            .memory
            .numbers()
            .assign(&wanted, tables.room().saturating_sub(1))?;
        let had: BTreeSet<(&BackendKey, u32)> = { self.former_numbers.live().iter() }
            .map(|(key, number)| (key, *number))
            .chain(self.former_numbers.retired())
            .collect();
        let mut generations = BTreeMap::new();
        for (key, &number) in numbers.live() {
            let present = tables.generation(number);
            let same = had.contains(&(key, number));
            // 0 is that of an empty table.
            let generation = match (same, present) {
                (true, 1..) => present,
                _ => present.wrapping_add(1).max(1),
            };
            generations.insert(number, generation);
        }
        let leaves_ns = now
            .mono_ns
            .saturating_add(span_ns(model.balancing.tcp_idle));
        let leaving = numbers
            .retired()
            .map(|(_, number)| (leaves_ns, number))
            .collect();
        drop(had);
        self.memory.set_numbers(numbers);
        if let Err(e) = self.memory.save() {
            warn!(
                "which backend has which number cannot be kept, and a restart may move flows: {e}"
            );
        }
        let at = |position: usize| slots.get(position).map_or(0, |s| s.index as usize);
        let used: BTreeSet<u32> = (0..tables.services()).map(|i| tables.ring_of(i)).collect();
        let mut force = Force {
            rings: Rings::new(
                tables.rings(),
                &used,
                self.former
                    .as_ref()
                    .and_then(Option::as_ref)
                    .map(|f| &f.rings),
            ),
            leaving,
            model: model.clone(),
            seed,
            sources: sources.to_vec(),
            services: Vec::new(),
            positions: HashMap::new(),
            addresses: Arc::default(),
            given: Arc::default(),
            generations,
            tables,
        };
        force.set_sources();
        force.set_addresses();
        let mut indices = BTreeSet::new();
        for (position, service, balance) in balanced(model) {
            let index = at(position);
            indices.insert(index);
            let mut states = States::new();
            for backend in &balance.backends {
                let state = self.state(&force, service, backend);
                states.insert(Endpoint::of(backend), state);
            }
            let ring = force.tables.ring_of(index);
            force
                .positions
                .insert(service.name.clone(), force.services.len());
            let number = |b| self.memory.numbers().get(&key(service, Endpoint::of(b)));
            let numbers = balance.backends.iter().map(number);
            force.services.push(Balanced {
                position,
                index,
                numbers: numbers.map(Option::unwrap_or_default).collect(),
                plan: plan(balance, &states, now.mono_ns),
                states,
                candidates: self.ring_in_force(&force, service, index, ring),
                ring,
                waits: false,
            });
        }
        for index in (0..force.tables.services()).filter(|i| !indices.contains(i)) {
            let ring = force.tables.ring_of(index);
            force.tables.set_balance(index, AbiBalance::default());
            force.rings.retire(ring, now.mono_ns);
        }
        // Before a number means another backend, and before a service says where in
        // connection ids the server id is.
        self.name_backends(&mut force)?;
        self.force = Some(force);
        self.apply_all(now);
        Ok(())
    }

    /// Whose ring a service has already, if a change leaves it as it is; else nobody's.
    fn ring_in_force(
        &self,
        force: &Force,
        service: &Service,
        index: usize,
        ring: u32,
    ) -> Vec<Candidate> {
        let former = self.former.as_ref().and_then(Option::as_ref);
        let same =
            former.filter(|f| (f.seed, f.tables.slots()) == (force.seed, force.tables.slots()));
        let found = same.and_then(|f| {
            f.services.iter().find(|b| {
                let named = f.model.services.get(b.position);
                named.is_some_and(|s| s.name == service.name)
                    && (b.index, b.ring) == (index, ring)
                    && ring != 0
            })
        });
        found.map(|b| b.candidates.clone()).unwrap_or_default()
    }

    /// What was filled is in force.
    pub(super) fn keep(&mut self) {
        self.former = None;
        let force = self.force.iter().flat_map(|force| balanced(&force.model));
        let keys: BTreeSet<health::BackendKey> = force
            .flat_map(|(_, service, balance)| {
                let backends = balance.backends.iter();
                backends.map(|backend| health_key(service, &backend.name))
            })
            .collect();
        self.health_changes.retain(|key, _| keys.contains(key));
        self.passage.keep(&self.checks);
        let model = self.force.as_ref().map(|force| &force.model);
        self.checks.set(model.map(targets).unwrap_or_default());
        self.woken.notify_one();
    }

    /// What was filled does not come into force: what was before does.
    pub(super) fn restore(&mut self, now: Now) {
        let Some(former) = self.former.take() else {
            return;
        };
        self.epoch += 1;
        self.passage.restore();
        let rings = self.force.take().map(|f| f.rings);
        self.memory
            .set_numbers(std::mem::take(&mut self.former_numbers));
        if let Err(e) = self.memory.save() {
            warn!("which backend has which number cannot be kept: {e}");
        }
        let Some(mut force) = former else {
            return;
        };
        // What was filled may have been written into the same tables.
        force.set_sources();
        let tables = &force.tables;
        let used: BTreeSet<u32> = (0..tables.services()).map(|i| tables.ring_of(i)).collect();
        force.rings = Rings::new(tables.rings(), &used, rings.as_ref());
        let mut states = Vec::with_capacity(force.services.len());
        for (_, service, balance) in balanced(&force.model) {
            let of = |backend| (Endpoint::of(backend), self.state(&force, service, backend));
            states.push(balance.backends.iter().map(of).collect());
        }
        for (service, states) in force.services.iter_mut().zip(states) {
            service.ring = force.tables.ring_of(service.index);
            service.candidates.clear();
            service.states = states;
        }
        if let Err(e) = self.name_backends(&mut force) {
            warn!("connection ids of QUIC may name no backend, or another one: {e}");
        }
        self.force = Some(force);
        self.apply_all(now);
    }

    /// Checks are over.
    pub(super) fn end(&mut self) {
        self.passage.end(&self.checks);
    }

    /// What is known of a backend. Of one that has not been checked yet, the tables have what
    /// a former daemon knew.
    fn state(
        &self,
        force: &Force,
        service: &Service,
        backend: &crate::config::balance::Backend,
    ) -> BackendState {
        let said = self.memory.said(&service.name, &backend.name);
        let mut state = BackendState {
            admin: match said {
                Said { drained: true, .. } => Admin::Drained,
                Said {
                    draining_since_unix_ms: Some(_),
                    ..
                } => Admin::Draining,
                Said { .. } => Admin::Active,
            },
            weight_override: said.weight,
            ..BackendState::default()
        };
        if service.balance.as_ref().is_none_or(|b| b.health.is_none()) {
            let is_watched = service
                .balance
                .as_ref()
                .is_some_and(|b| b.passive.is_some());
            let watch = self.watches.get(&key(service, Endpoint::of(backend)));
            let watch = watch.filter(|_| is_watched);
            if watch.is_some_and(|w| w.failure().is_some()) {
                state.health = Health::Failing;
            }
            return state;
        }
        match self.checks.state(&health_key(service, &backend.name)) {
            Some(known) if known.health() != health::Health::Unknown => {
                state.health = health_of(known.health());
            }
            _ => {
                let key = key(service, Endpoint::of(backend));
                let number = self.memory.numbers().get(&key).unwrap_or(0);
                let word = force.tables.backend(number).word;
                let same =
                    force.generations.get(&number) == Some(&BackendWord::generation_of(word));
                if same && state.admin == Admin::Active && !BackendWord::is_alive(word) {
                    state.health = Health::Down;
                }
            }
        }
        state
    }

    /// Takes in what checks have found.
    fn health(&mut self, changes: &[(health::BackendKey, health::Transition)], now: Now) {
        for (key, _) in changes {
            *self.health_changes.entry(key.clone()).or_default() += 1;
        }
        let Some(force) = &mut self.force else {
            return;
        };
        let mut touched = BTreeSet::new();
        for (key, transition) in changes {
            let Some(&at) = force.positions.get(&*key.service) else {
                continue;
            };
            let Some(balanced) = force.services.get_mut(at) else {
                continue;
            };
            let Some((_, balance)) = service_at(&force.model, balanced.position) else {
                continue;
            };
            let named = balance.backends.iter().find(|b| *b.name == *key.backend);
            let Some(state) = named.and_then(|b| balanced.states.get_mut(&Endpoint::of(b))) else {
                continue;
            };
            let was = state.health;
            state.health = health_of(transition.new);
            state.up_since_ns = match (was, state.health) {
                (Health::Down, Health::Up) => Some(transition.at_ns),
                (_, Health::Up) => state.up_since_ns,
                _ => None,
            };
            touched.insert(at);
        }
        for at in touched {
            self.apply(at, now);
        }
    }

    /// Takes in what is known of next hops.
    fn learn(&mut self, answers: Vec<(IpAddr, Answer)>, now: Now) {
        if answers.is_empty() {
            return;
        }
        let mut changed = BTreeSet::new();
        for (address, answer) in answers {
            match &answer {
                Ok(_) => {}
                Err(why) => warn!(%address, "no way to a backend: {why}"),
            }
            changed.insert(address);
            self.hops.insert(address, answer);
        }
        let Some(force) = &self.force else {
            return;
        };
        let has_changed = |b: &Balanced| {
            let mut all = b.plan.standings.iter();
            all.any(|s| changed.contains(&s.endpoint.address))
        };
        let touched: Vec<usize> = (0..force.services.len())
            .filter(|&i| force.services.get(i).is_some_and(has_changed))
            .collect();
        for at in touched {
            self.apply(at, now);
        }
    }

    /// The addresses whose next hops are wanted: the same as before as long as the
    /// configuration is.
    fn addresses(&self) -> Arc<BTreeSet<IpAddr>> {
        let force = self.force.as_ref();
        force.map(|f| f.addresses.clone()).unwrap_or_default()
    }

    /// The next hops that the configuration gives, by the address of the backend.
    fn given(&self) -> Arc<Vec<(IpAddr, configured::NextHop)>> {
        let force = self.force.as_ref();
        force.map(|f| f.given.clone()).unwrap_or_default()
    }

    /// What of these answers is news.
    fn news(&self, answers: Vec<(IpAddr, Answer)>) -> Vec<(IpAddr, Answer)> {
        let is_news = |(address, answer): &(IpAddr, Answer)| self.hops.get(address) != Some(answer);
        answers.into_iter().filter(is_news).collect()
    }

    /// Does what is due.
    fn tick(&mut self, now: Now) {
        let Some(force) = &self.force else {
            return;
        };
        let is_due =
            |b: &Balanced| b.waits || b.plan.again_at_ns.is_some_and(|at| at <= now.mono_ns);
        let due: Vec<usize> = (0..force.services.len())
            .filter(|&i| force.services.get(i).is_some_and(is_due))
            .collect();
        for at in due {
            self.apply(at, now);
        }
        if let Some(force) = &mut self.force {
            let all = std::mem::take(&mut force.leaving);
            let (over, stay) = all.into_iter().partition(|(at, _)| *at <= now.mono_ns);
            force.leaving = stay;
            let over: Vec<(u64, u32)> = over;
            for (_, number) in &over {
                force.tables.end_backend(*number);
            }
            if !over.is_empty()
                && let Some(mut force) = self.force.take()
            {
                if let Err(e) = self.name_backends(&mut force) {
                    warn!("connection ids of QUIC still name backends that are gone: {e}");
                }
                self.force = Some(force);
            }
        }
    }

    /// When there is something to do, nanoseconds of `CLOCK_MONOTONIC`.
    fn due_ns(&self) -> Option<u64> {
        let force = self.force.as_ref()?;
        let rises = force.services.iter().filter_map(|b| b.plan.again_at_ns);
        let waits = force.services.iter().any(|b| b.waits);
        let ring = force.rings.free_at_ns().filter(|_| waits);
        rises.chain(ring).min()
    }

    fn apply_all(&mut self, now: Now) {
        let services = self.force.as_ref().map_or(0, |f| f.services.len());
        for at in 0..services {
            self.apply(at, now);
        }
    }

    /// Makes the plan of a service anew, and brings the tables in line with it.
    fn apply(&mut self, at: usize, now: Now) {
        let Some(mut force) = self.force.take() else {
            return;
        };
        if let Some(mut balanced) = force.services.get_mut(at).map(std::mem::take) {
            self.bring_in_line(&mut force, &mut balanced, now);
            if let Some(place) = force.services.get_mut(at) {
                *place = balanced;
            }
        }
        self.force = Some(force);
    }

    fn bring_in_line(&self, force: &mut Force, balanced: &mut Balanced, now: Now) {
        let Some((service, balance)) = service_at(&force.model, balanced.position) else {
            return;
        };
        let states = self.reachable(force, balance, balanced);
        let new = plan(balance, &states, now.mono_ns);
        if new.failed_open && !balanced.plan.failed_open {
            warn!(
                service = service.name,
                "too few backends are healthy: all are used as if they were (it fails open)"
            );
        }
        // Who takes packets does so before a ring names it, and who does not, after no ring
        // does.
        let numbered = || new.standings.iter().zip(balanced.numbers.iter().copied());
        for (standing, number) in numbered().filter(|(s, _)| !s.why.ends_flows()) {
            self.write(force, balance, number, standing, true);
        }
        let candidates = new.candidates();
        let how = AbiBalance {
            ring: balanced.ring,
            forward: forward_of(balance),
            by: match balance.hash {
                HashBy::Source => edge_common::balance::HashBy::Source,
                HashBy::FiveTuple => edge_common::balance::HashBy::FiveTuple,
                HashBy::Quic => balance
                    .quic()
                    .map_or_else(Default::default, edge_common::balance::HashBy::Quic),
            },
            echo: service.echo,
            is_on: true,
        };
        balanced.waits = false;
        if candidates.is_empty() {
            let none = AbiBalance { ring: 0, ..how };
            force.tables.set_balance(balanced.index, none);
            force.rings.retire(balanced.ring, now.mono_ns);
            balanced.ring = 0;
            balanced.candidates = candidates;
        } else if candidates != balanced.candidates {
            match force.rings.take(now.mono_ns) {
                Some(ring) => {
                    let slots = maglev::ring(&force.seed, &candidates, force.tables.slots());
                    // Candidates are the standings with a weight, in their order.
                    let numbers: Vec<u32> = numbered()
                        .filter(|(s, _)| s.weight > 0)
                        .map(|(_, number)| number)
                        .collect();
                    let owners = slots.iter().map(|&p| numbers.get(usize::from(p)).copied());
                    let owners: Vec<u32> = owners.map(Option::unwrap_or_default).collect();
                    force.tables.write_ring(ring, &owners);
                    force
                        .tables
                        .set_balance(balanced.index, AbiBalance { ring, ..how });
                    force.rings.retire(balanced.ring, now.mono_ns);
                    balanced.ring = ring;
                    balanced.candidates = candidates;
                }
                None => balanced.waits = true,
            }
        } else {
            force.tables.set_balance(balanced.index, how);
        }
        for (standing, number) in numbered().filter(|(s, _)| s.why.ends_flows()) {
            self.write(force, balance, number, standing, false);
        }
        balanced.plan = new;
    }

    /// The states, but that a backend to which there is no way is as good as down.
    fn reachable(&self, force: &Force, balance: &Balance, balanced: &Balanced) -> States {
        let judge = |(backend, number): (&configured::Backend, &u32)| {
            let endpoint = Endpoint::of(backend);
            let state = balanced.states.get(&endpoint).copied().unwrap_or_default();
            let has_way = match self.hops.get(&endpoint.address) {
                Some(answer) => answer.is_ok(),
                // Not asked yet: as a former daemon knew it.
                None => force.tables.backend(*number).hop != [0; 2],
            };
            let health = if has_way { state.health } else { Health::Down };
            (endpoint, BackendState { health, ..state })
        };
        let backends = balance.backends.iter().zip(&balanced.numbers);
        backends.map(judge).collect()
    }

    /// Writes a backend into the tables.
    fn write(
        &self,
        force: &Force,
        balance: &Balance,
        number: u32,
        standing: &Standing,
        alive: bool,
    ) {
        let address = standing.endpoint.address;
        let way = self.way(address);
        let balancing = &force.model.balancing;
        let source = match address {
            IpAddr::V4(_) => balancing.tunnel_source_v4.map(|p| p.addr()),
            IpAddr::V6(_) => balancing.tunnel_source_v6.map(IpAddr::V6),
        };
        let source = source.or(way.map(|w| w.source));
        // Without a source there is no tunnel.
        let is_tunnel = balance.forward.is_tunnel();
        let way = way.filter(|_| !is_tunnel || source.is_some_and(|s| !s.is_unspecified()));
        let port = standing.endpoint.port.unwrap_or(0);
        let (forward, by_id) = (forward_of(balance), balance.quic().is_some());
        let mut backend = AbiBackend {
            address: halves(address),
            source: source.map_or([0; 2], halves),
            hop: way.map_or([0; 2], |w| hop(w.dest_mac, w.source_mac, w.ifindex)),
            word: BackendWord {
                alive,
                v6: address.is_ipv6(),
                generation: force.generations.get(&number).copied().unwrap_or(1),
                mtu: way.map_or(0, |w| u16::try_from(w.mtu).unwrap_or(u16::MAX)),
                vlan: way.and_then(|w| w.vlan).unwrap_or(0),
                port,
                forward,
                by_id,
            }
            .word(),
            spread: balancing.tunnel_source_v4.map_or(0, spread).into(),
        };
        if number == 0 {
            return;
        }
        let present = force.tables.backend(number);
        if !self.hops.contains_key(&address) && present.address == backend.address {
            // Not asked yet: what a former daemon knew is better than nothing.
            backend.hop = present.hop;
            (backend.source, backend.spread) = (present.source, present.spread);
            let word = present.word;
            backend.word = BackendWord {
                alive,
                v6: address.is_ipv6(),
                generation: BackendWord::generation_of(backend.word),
                mtu: u16::try_from(BackendWord::mtu_of(word)).unwrap_or(u16::MAX),
                vlan: BackendWord::vlan_of(word),
                port,
                forward,
                by_id,
            }
            .word();
        }
        force.tables.set_backend(number, &backend);
    }

    /// The way to an address, if there is one.
    fn way(&self, address: IpAddr) -> Option<NextHop> {
        match self.hops.get(&address) {
            Some(Ok(hop)) => Some(*hop),
            Some(Err(_)) | None => None,
        }
    }

    /// Why there is none.
    fn no_way(&self, address: IpAddr) -> Option<&NoNextHop> {
        self.hops.get(&address)?.as_ref().err()
    }
}

/// The balanced services of a configuration, and their positions.
fn balanced(model: &Model) -> impl Iterator<Item = (usize, &Service, &Balance)> {
    let all = model.services.iter().enumerate();
    all.filter_map(|(i, service)| Some((i, service, service.balance.as_ref()?)))
}

fn service_at(model: &Model, position: usize) -> Option<(&Service, &Balance)> {
    let service = model.services.get(position)?;
    Some((service, service.balance.as_ref()?))
}

fn key(service: &Service, endpoint: Endpoint) -> BackendKey {
    BackendKey {
        service: service.name.clone(),
        endpoint,
    }
}

fn health_key(service: &Service, backend: &str) -> health::BackendKey {
    health::BackendKey {
        service: service.name.as_str().into(),
        backend: backend.into(),
    }
}

const fn health_of(health: health::Health) -> Health {
    match health {
        health::Health::Unknown => Health::Unknown,
        health::Health::Up => Health::Up,
        health::Health::Down | health::Health::Held => Health::Down,
    }
}

fn span_ns(span: Duration) -> u64 {
    u64::try_from(span.as_nanos()).unwrap_or(u64::MAX)
}

/// A span in steps of a flow's age.
fn steps(span: Duration) -> u32 {
    u32::try_from((span_ns(span) >> AGE_SHIFT).saturating_add(1)).unwrap_or(u32::MAX)
}
