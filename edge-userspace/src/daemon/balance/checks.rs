//! What of a configuration is checked and by which way, and the device of those checks that go
//! through tunnels.

use std::{
    collections::BTreeSet,
    net::{IpAddr, SocketAddr},
    sync::{Arc, Weak},
};

use edge_common::addr::Family;
use tracing::warn;

use super::{balanced, health_key, words::spread};
use crate::{
    config::{
        Model,
        balance::{Backend, Balance, Forward, Through},
        services::{Addresses, Service},
    },
    health::{Route, Target, runner::Checks, tunnel::Tunnel},
    host::tunnel::{Device, TunnelError, clean},
};

/// The device of a configuration that is in force, or coming into force.
#[derive(Debug, Default)]
pub(super) struct Passage {
    device: Option<Arc<Device>>,
    services: BTreeSet<IpAddr>,
    /// What was before a change that is under way.
    former: Option<(Option<Arc<Device>>, BTreeSet<IpAddr>)>,
    /// The last one that checks went by, until they let go of it.
    last: Weak<Device>,
    /// Whether what a former daemon may have left was looked for.
    is_clean: bool,
}

impl Passage {
    /// Makes what the checks of a configuration need.
    ///
    /// # Errors
    /// When something is missing or in the way. What is in force is as before after
    /// [`Self::restore`].
    pub(super) fn prepare(&mut self, model: &Model) -> Result<(), TunnelError> {
        let wanted: BTreeSet<IpAddr> = balanced(model)
            .filter(|(_, _, balance)| goes_through(balance))
            .flat_map(|(_, service, _)| asked(service))
            .collect();
        let known = { self.device.clone() }
            .or_else(|| self.last.upgrade())
            .filter(|device| !device.is_lost());
        let former = std::mem::replace(&mut self.services, wanted);
        self.former = Some((self.device.take(), former));
        self.device = match known {
            _ if self.services.is_empty() => {
                if !self.is_clean && known.is_none() {
                    // Nothing goes by what was left; it is only untidy.
                    if let Err(e) = clean() {
                        warn!("what a former daemon may have left cannot be looked for: {e}");
                    }
                }
                None
            }
            Some(device) => {
                device.lead(&self.services)?;
                Some(device)
            }
            None => Some(Arc::new(Device::open(&self.services)?)),
        };
        self.is_clean = true;
        Ok(())
    }

    /// What was made is in force.
    pub(super) fn keep(&mut self, checks: &Checks) {
        self.former = None;
        if let Some(device) = &self.device {
            self.last = Arc::downgrade(device);
        }
        checks.go_by(self.device.clone());
    }

    /// What was before is in force again.
    pub(super) fn restore(&mut self) {
        let Some((device, services)) = self.former.take() else {
            return;
        };
        (self.device, self.services) = (device, services);
        if let Some(device) = &self.device
            && let Err(e) = device.lead(&self.services)
        {
            warn!("{e}");
        }
    }

    /// Leaves nothing behind.
    pub(super) fn end(&mut self, checks: &Checks) {
        checks.go_by(None);
        if self.device.take().is_some_and(|device| device.is_lost())
            && let Err(e) = clean()
        {
            warn!("rules and routes of health checks may be left: {e}");
        }
    }
}

/// Whom to check.
pub(super) fn targets(model: &Model) -> Vec<Target> {
    let mut targets = Vec::new();
    let interfaces: Arc<[String]> = model.interfaces.clone().into();
    for (_, service, balance) in balanced(model) {
        let Some(check) = &balance.health else {
            continue;
        };
        let check = Arc::new(check.clone());
        for backend in &balance.backends {
            let Some(port) = service.check_port(backend) else {
                continue;
            };
            let tunnel = goes_through(balance)
                .then(|| tunnel(model, service, balance, (backend, port), &interfaces));
            targets.push(Target {
                key: health_key(service, &backend.name),
                address: (backend.address, port).into(),
                check: check.clone(),
                route: Route {
                    tunnel,
                    ..Route::default()
                },
            });
        }
    }
    targets
}

fn goes_through(balance: &Balance) -> bool {
    let check = balance.health.as_ref();
    check.is_some_and(|check| check.through == Through::Tunnel)
}

/// The addresses of a service that are asked: the first of each family, and of prefixes, where
/// no address of the family is listed, the first of the first one.
fn asked(service: &Service) -> impl Iterator<Item = IpAddr> {
    let listed = match &service.addresses {
        Addresses::Local => None,
        Addresses::Listed(list) => Some(list),
    };
    [Family::V4, Family::V6]
        .into_iter()
        .filter_map(move |family| {
            let is_of = |address: &IpAddr| address.is_ipv4() == (family == Family::V4);
            let listed = listed.and_then(|list| list.iter().copied().find(is_of));
            let prefixes = service.prefixes.iter().map(|p| p.addr());
            listed.or_else(|| prefixes.into_iter().find(is_of))
        })
}

/// The way to a backend, of which a port is asked.
fn tunnel(
    model: &Model,
    service: &Service,
    balance: &Balance,
    (backend, port): (&Backend, u16),
    interfaces: &Arc<[String]>,
) -> Tunnel {
    let balancing = &model.balancing;
    Tunnel {
        services: asked(service).map(|a| SocketAddr::new(a, port)).collect(),
        gue: balance.forward == Forward::Gue,
        source: match backend.address {
            IpAddr::V4(_) => balancing.tunnel_source_v4.map(|p| p.addr()),
            IpAddr::V6(_) => balancing.tunnel_source_v6.map(IpAddr::V6),
        },
        spread: balancing.tunnel_source_v4.map_or(0, spread),
        interfaces: interfaces.clone(),
    }
}
