//! What operators say of backends, and when draining is done.

use std::{collections::HashMap, io, sync::Arc};

use edge_common::{balance::Idle, nat::Signals};
use tracing::{error, info};

use super::{Balanced, Balancer, memory::Said, service_at, steps};
use crate::{
    clock::Now,
    datapath::{BalanceTables, FlowCount, PortCount},
    l4::{Endpoint, plan::Admin},
    status::balance::HealthNotice,
};

impl Balancer {
    /// What counts the flows, without the balancer: there may be many. And the numbers of backends
    /// whose answers are looked at.
    pub(super) fn counting(&self) -> Option<(Arc<BalanceTables>, Idle, Vec<u32>)> {
        let force = self.force.as_ref()?;
        let balancing = &force.model.balancing;
        let idle = Idle {
            tcp: steps(balancing.tcp_idle),
            udp: steps(balancing.udp_idle),
        };
        let is_watched = |b: &&Balanced| {
            service_at(&force.model, b.position).is_some_and(|(_, b)| b.passive.is_some())
        };
        let watched = force.services.iter().filter(is_watched);
        let watched = watched.flat_map(|b| b.numbers.iter().copied()).collect();
        Some((force.tables.clone(), idle, watched))
    }

    /// Takes in how many flows there are, and acts on it; what is to be told of it.
    pub(super) fn counted(
        &mut self,
        flows: FlowCount,
        ports: PortCount,
        signals: &HashMap<u32, Signals>,
        now: Now,
    ) -> Vec<HealthNotice> {
        self.flows = flows;
        self.ports = ports;
        let notices = self.watch(signals, now);
        self.drain(now);
        notices
    }

    /// Ends draining where no flow is left, or time is up.
    fn drain(&mut self, now: Now) {
        let Some(force) = &self.force else {
            return;
        };
        let mut done = Vec::new();
        for balanced in &force.services {
            let Some((service, balance)) = service_at(&force.model, balanced.position) else {
                continue;
            };
            for (backend, number) in balance.backends.iter().zip(&balanced.numbers) {
                let said = self.memory.said(&service.name, &backend.name);
                let Some(since) = said.draining_since_unix_ms.filter(|_| !said.drained) else {
                    continue;
                };
                let flows = self.flows_of(*number);
                let waited_s = now.unix_ms.saturating_sub(since) / 1000;
                let is_over = said.drain_timeout_s.is_some_and(|most| waited_s >= most);
                // A count that is older than the draining says nothing.
                if is_over || flows == 0 && waited_s >= 2 {
                    info!(
                        service = service.name,
                        backend = backend.name,
                        flows,
                        "drained"
                    );
                    done.push((service.name.clone(), backend.name.clone(), said));
                }
            }
        }
        for (service, backend, said) in done {
            let said = Said {
                drained: true,
                ..said
            };
            if let Err(e) = self.say(&service, &backend, said, now) {
                error!("{service}/{backend}: cannot keep that it is drained: {e}");
            }
        }
    }

    /// Keeps what an operator says of a backend, and puts it into force.
    pub(super) fn say(
        &mut self,
        service: &str,
        backend: &str,
        said: Said,
        now: Now,
    ) -> io::Result<()> {
        let before = self.memory.said(service, backend);
        self.memory.say(service, backend, said);
        if let Err(e) = self.memory.save() {
            self.memory.say(service, backend, before);
            return Err(e);
        }
        let Some(force) = &self.force else {
            return Ok(());
        };
        let Some(&at) = force.positions.get(service) else {
            return Ok(());
        };
        if let Some(force) = &mut self.force
            && let Some(balanced) = force.services.get_mut(at)
            && let Some((_, balance)) = service_at(&force.model, balanced.position)
            && let Some(b) = balance.backends.iter().find(|b| b.name == backend)
            && let Some(state) = balanced.states.get_mut(&Endpoint::of(b))
        {
            state.admin = match said {
                Said { drained: true, .. } => Admin::Drained,
                Said {
                    draining_since_unix_ms: Some(_),
                    ..
                } => Admin::Draining,
                Said { .. } => Admin::Active,
            };
            state.weight_override = said.weight;
        }
        self.apply(at, now);
        Ok(())
    }

    pub(super) fn flows_of(&self, number: u32) -> u32 {
        let at = |of_backends: &[u32]| of_backends.get(number as usize).copied().unwrap_or(0);
        at(&self.flows.of_backends) + at(&self.ports.of_backends)
    }
}
