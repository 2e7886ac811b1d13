//! What operators are told of the balancer, and what they tell it.

use std::collections::HashMap;

use edge_common::{
    hash::Seed,
    nat::{FIRST_PORT, PORTS},
};

use super::{Balancer, balanced, health_key, key, service_at};
use crate::{
    clock::Now,
    config::balance::{Balance, Forward, Through},
    control::protocol::{BackendChange, Failure, FailureKind},
    health::{Health, State, passive::Watch},
    l4::{
        Endpoint,
        diff::Situation,
        plan::{Admin, Why},
    },
    status::balance::{AdminState, BackendStatus, BalancedService, FlowTable, NatSource},
};

impl Balancer {
    /// How many flows there are.
    pub(super) fn flow_table(&self) -> FlowTable {
        FlowTable {
            capacity: self.flows.capacity,
            live: self.flows.live,
            ..FlowTable::default()
        }
    }

    /// How the source addresses of NAT are.
    pub(super) fn nat_sources(&self) -> Vec<NatSource> {
        let sources = self.force.iter().flat_map(|force| &force.sources);
        { sources.zip(0..) }
            .map(|(pair, number)| NatSource {
                addresses: pair.addresses().collect(),
                ports: self.ports.live.get(number).copied().unwrap_or(0),
                capacity: PORTS - FIRST_PORT,
            })
            .collect()
    }

    /// How the balanced service at a position is, from 0 on; `None` when there is none.
    pub(super) fn service_status(&self, at: usize, now: Now) -> Option<BalancedService> {
        let force = self.force.as_ref()?;
        let in_force = force.services.get(at)?;
        let (service, balance) = service_at(&force.model, in_force.position)?;
        let share = shares(&in_force.candidates);
        let mut backends = Vec::with_capacity(balance.backends.len());
        let all = balance.backends.iter().zip(&in_force.plan.standings);
        for ((backend, standing), &number) in all.zip(&in_force.numbers) {
            let endpoint = Endpoint::of(backend);
            let state = in_force.states.get(&endpoint).copied().unwrap_or_default();
            let known = self.checks.state(&health_key(service, &backend.name));
            let counter = force.tables.counter(number).unwrap_or_default();
            let signals = balance.forward == Forward::Nat;
            let signals = signals.then(|| force.tables.signals(number).unwrap_or_default());
            let watch = self.watches.get(&key(service, endpoint));
            let failure = watch.and_then(Watch::failure);
            backends.push(BackendStatus {
                name: backend.name.clone(),
                address: backend.address,
                port: backend.port,
                backup: backend.backup,
                server_id: backend.server_id.map(|id| id.to_string()),
                number,
                configured_weight: backend.weight,
                set_weight: state.weight_override,
                weight: standing.weight,
                share: share(endpoint),
                admin: match state.admin {
                    Admin::Active => AdminState::Active,
                    Admin::Draining => AdminState::Draining,
                    Admin::Drained => AdminState::Drained,
                },
                health: match (&known, failure) {
                    (Some(known), _) => Some(known.health().name().to_owned()),
                    (None, Some(_)) => Some(Health::Down.name().to_owned()),
                    (None, None) => None,
                },
                health_through: { balance.health.as_ref() }
                    .map(|check| check.through.name().to_owned()),
                health_since_unix_ms: { known.as_ref().map(State::since_ns) }
                    .or(failure.map(|f| f.since_ns))
                    .map(|at| now.unix_ms_of(at)),
                health_changes: {
                    let key = health_key(service, &backend.name);
                    self.health_changes.get(&key).copied().unwrap_or_default()
                },
                why: match self.no_way(backend.address) {
                    Some(_) if standing.weight == 0 => "there is no way to it".to_owned(),
                    _ => reason(standing.why, balance),
                },
                error: match &known {
                    Some(k) => { k.last_error() }
                        .filter(|_| k.health() != Health::Up)
                        .map(|error| error.text.clone()),
                    None => failure.map(|f| f.why.clone()),
                },
                no_way: self.no_way(backend.address).map(ToString::to_string),
                flows: self.flows_of(number),
                packets: counter.packets,
                bytes: counter.bytes,
                syns: signals.map(|s| s.syns),
                syn_acks: signals.map(|s| s.syn_acks),
                refusals: signals.map(|s| s.resets),
            });
        }
        Some(BalancedService {
            name: service.name.clone(),
            forward: balance.forward.name().to_owned(),
            hash: balance.hash.name().to_owned(),
            quic_config_id: balance.quic().map(|_| balance.quic_config_id),
            failed_open: in_force.plan.failed_open,
            backends,
        })
    }

    /// The secret of the choice of backends, if any service is balanced.
    pub(in crate::daemon) fn seed(&self) -> Option<Seed> {
        self.force.as_ref().map(|force| force.seed)
    }

    /// What a change of the configuration meets.
    pub(in crate::daemon) fn situation(&self, now: Now) -> Situation {
        let mut situation = Situation {
            now_ns: now.mono_ns,
            ..Situation::default()
        };
        let Some(force) = &self.force else {
            return situation;
        };
        for (in_force, (_, service, balance)) in force.services.iter().zip(balanced(&force.model)) {
            let states = self.reachable(force, balance, in_force);
            let numbers = in_force.numbers.iter();
            let flows = numbers
                .map(|&number| u64::from(self.flows_of(number)))
                .sum();
            situation.states.insert(service.name.clone(), states);
            situation.flows.insert(service.name.clone(), flows);
        }
        situation
    }

    /// Does what an operator says of a backend.
    ///
    /// # Errors
    /// When there is no such backend, several have the name, or the disk does not take it.
    pub(in crate::daemon) fn change(
        &mut self,
        backend: &str,
        change: &BackendChange,
        now: Now,
    ) -> Result<BackendStatus, Failure> {
        let invalid = |text: String| Failure::new(FailureKind::Invalid, text);
        let (of_service, name) = match backend.split_once('/') {
            Some((service, name)) => (Some(service), name),
            None => (None, backend),
        };
        let mut found = Vec::new();
        if let Some(force) = &self.force {
            for (_, service, balance) in balanced(&force.model) {
                if of_service.is_none_or(|s| s == service.name)
                    && balance.backends.iter().any(|b| b.name == name)
                {
                    found.push(service.name.clone());
                }
            }
        }
        let service = match found.as_slice() {
            [service] => service.clone(),
            [] => {
                return Err(invalid(format!(
                    "there is no backend {backend}; `edge backend list` shows them"
                )));
            }
            several => {
                return Err(invalid(format!(
                    "services {} have a backend {name}; say which, such as {}/{name}",
                    several.join(", "),
                    several.first().map_or("web", String::as_str)
                )));
            }
        };
        let mut said = self.memory.said(&service, name);
        match *change {
            BackendChange::Drain { timeout_s } => {
                said.draining_since_unix_ms = Some(now.unix_ms);
                said.drain_timeout_s = timeout_s;
                said.drained = false;
            }
            BackendChange::Undrain {} => {
                said.draining_since_unix_ms = None;
                said.drain_timeout_s = None;
                said.drained = false;
            }
            BackendChange::Weight { weight } => {
                use crate::config::balance::MAX_WEIGHT;
                if weight.is_some_and(|w| w > MAX_WEIGHT) {
                    return Err(invalid(format!("weights go from 0 to {MAX_WEIGHT}")));
                }
                said.weight = weight;
            }
        }
        self.say(&service, name, said, now).map_err(|e| {
            let text = format!("it cannot be kept, and is not done: {e}");
            Failure::new(FailureKind::Store, text)
        })?;
        let at = (self.force.as_ref()).and_then(|f| f.positions.get(&service).copied());
        let told = at.and_then(|at| self.service_status(at, now));
        let mut backends = told.into_iter().flat_map(|s| s.backends);
        backends
            .find(|b| b.name == name)
            .ok_or_else(|| Failure::new(FailureKind::Internal, "the backend is gone"))
    }
}

/// Why a backend is used or not, and how that is known where it might be another way.
fn reason(why: Why, balance: &Balance) -> String {
    let check = balance.health.as_ref();
    match check.is_some_and(|check| check.through == Through::Tunnel) {
        true if why == Why::Healthy => format!("{why}, through the tunnel"),
        _ => why.to_string(),
    }
}

/// Which share of the ring each has, by its weight.
fn shares(candidates: &[crate::l4::maglev::Candidate]) -> impl Fn(Endpoint) -> f64 + use<> {
    let sum: u64 = candidates.iter().map(|c| u64::from(c.weight)).sum();
    let weights: HashMap<Endpoint, u32> = { candidates.iter() }
        .map(|c| (c.endpoint, c.weight))
        .collect();
    move |endpoint| {
        let own = weights.get(&endpoint);
        own.map_or(0.0, |weight| f64::from(*weight) / sum.max(1) as f64)
    }
}
