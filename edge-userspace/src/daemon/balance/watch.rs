//! What the traffic of clients says of backends, where NAT sees both directions.

use std::collections::{BTreeSet, HashMap};

use edge_common::nat::Signals;

use tracing::{info, warn};

use super::{Balancer, health_key, key, service_at};
use crate::{
    clock::Now,
    health::{self, passive::Change},
    l4::{BackendKey, Endpoint, plan::Health},
    status::balance::HealthNotice,
};

impl Balancer {
    /// Looks at what backends have answered since the last time, by their numbers, and acts on it.
    /// What changes
    /// by that alone is to be told; what checks make of it, they tell.
    pub(super) fn watch(&mut self, signals: &HashMap<u32, Signals>, now: Now) -> Vec<HealthNotice> {
        let mut notices = Vec::new();
        let Some(force) = &mut self.force else {
            self.watches.clear();
            return notices;
        };
        let (mut there, mut touched) = (BTreeSet::new(), BTreeSet::new());
        for (at, balanced) in force.services.iter_mut().enumerate() {
            let Some((service, balance)) = service_at(&force.model, balanced.position) else {
                continue;
            };
            let Some(how) = &balance.passive else {
                continue;
            };
            for (backend, number) in balance.backends.iter().zip(&balanced.numbers) {
                let endpoint = Endpoint::of(backend);
                let of: BackendKey = key(service, endpoint);
                // One that is in force only since they were read.
                let Some(signals) = signals.get(number).copied() else {
                    continue;
                };
                let is_checked = balance.health.is_some();
                let watch = self.watches.entry(of.clone()).or_default();
                there.insert(of);
                let Some(change) = watch.look(how, is_checked, signals, now.mono_ns) else {
                    continue;
                };
                let named = health_key(service, &backend.name);
                let health = match change {
                    Change::Failed(why) if is_checked => {
                        self.checks.passive_failure(&named, &why);
                        continue;
                    }
                    Change::Failed(why) => {
                        warn!("backend {named} is down, by what clients meet: {why}");
                        notices.push(notice(&named, [UP, DOWN], why, now));
                        Health::Failing
                    }
                    // Its checks say how it is by now.
                    Change::Tried if is_checked => continue,
                    Change::Tried => {
                        info!("backend {named} is tried again");
                        notices.push(notice(&named, [DOWN, UP], "it is tried again".into(), now));
                        Health::Unknown
                    }
                };
                *self.health_changes.entry(named).or_default() += 1;
                if let Some(state) = balanced.states.get_mut(&endpoint) {
                    state.health = health;
                    state.up_since_ns = (health == Health::Unknown).then_some(now.mono_ns);
                    touched.insert(at);
                }
            }
        }
        self.watches.retain(|key, _| there.contains(key));
        for at in touched {
            self.apply(at, now);
        }
        notices
    }
}

/// What a backend is that nothing but its clients tells of.
const UP: health::Health = health::Health::Up;
const DOWN: health::Health = health::Health::Down;

fn notice(
    key: &health::BackendKey,
    [old, new]: [health::Health; 2],
    why: String,
    now: Now,
) -> HealthNotice {
    HealthNotice {
        unix_ms: now.unix_ms,
        service: key.service.to_string(),
        backend: key.backend.to_string(),
        old: old.name().to_owned(),
        new: new.name().to_owned(),
        why,
    }
}
