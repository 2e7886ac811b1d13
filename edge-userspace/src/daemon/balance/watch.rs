//! What the traffic of clients says of backends, where NAT sees both directions.

use std::collections::BTreeSet;

use tracing::{info, warn};

use super::{Balancer, health_key, key, service_at};
use crate::{
    clock::Now,
    health::passive::Change,
    l4::{BackendKey, Endpoint, plan::Health},
};

impl Balancer {
    /// Looks at what backends have answered since the last time, and acts on it.
    pub(super) fn watch(&mut self, now: Now) {
        let Some(force) = &mut self.force else {
            self.watches.clear();
            return;
        };
        let (mut there, mut touched) = (BTreeSet::new(), BTreeSet::new());
        for (at, balanced) in force.services.iter_mut().enumerate() {
            let Some((service, balance)) = service_at(&force.model, balanced.position) else {
                continue;
            };
            let Some(how) = &balance.passive else {
                continue;
            };
            for backend in &balance.backends {
                let endpoint = Endpoint::of(backend);
                let of: BackendKey = key(service, endpoint);
                let number = self.memory.numbers().get(&of).unwrap_or_default();
                let signals = match force.tables.signals(number) {
                    Ok(signals) => signals,
                    Err(e) => {
                        warn!("what backends answer cannot be read: {e}");
                        return;
                    }
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
                        Health::Failing
                    }
                    // Its checks say how it is by now.
                    Change::Tried if is_checked => continue,
                    Change::Tried => {
                        info!("backend {named} is tried again");
                        Health::Unknown
                    }
                };
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
    }
}
