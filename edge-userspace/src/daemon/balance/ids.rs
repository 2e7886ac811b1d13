//! Which backend the connection ids of QUIC name.

use std::collections::BTreeMap;

use edge_common::quic::IdKey;

use super::{Balancer, Force, service_at};
use crate::datapath::DatapathError;

impl Balancer {
    /// Brings the table of server ids in line with the configuration. A backend that is no
    /// longer configured keeps its id as long as its flows go on, unless another one has it
    /// by now.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub(super) fn name_backends(&self, force: &mut Force) -> Result<(), DatapathError> {
        let mut wanted = BTreeMap::new();
        let mut layouts = BTreeMap::new();
        let mut configured = BTreeMap::new();
        for balanced in &force.services {
            let Some((service, balance)) = service_at(&force.model, balanced.position) else {
                continue;
            };
            let (Some(layout), Ok(index)) = (balance.quic(), u32::try_from(balanced.index)) else {
                continue;
            };
            layouts.insert(service.name.as_str(), (index, layout.bits()));
            for (backend, &number) in balance.backends.iter().zip(&balanced.numbers) {
                let Some(id) = backend.server_id.filter(|_| number != 0) else {
                    continue;
                };
                let key = IdKey {
                    id: id.value(),
                    service: index,
                    layout: layout.bits(),
                };
                configured.insert(key, number);
            }
        }
        let leave = |number: u32| force.leaving.iter().any(|(_, n)| *n == number);
        let services: BTreeMap<u32, &str> = { self.memory.numbers().retired() }
            .map(|(key, number)| (number, key.service.as_str()))
            .filter(|(number, _)| leave(*number))
            .collect();
        for (key, number) in force.tables.server_ids()? {
            let layout = services.get(&number).and_then(|name| layouts.get(name));
            if layout == Some(&(key.service, key.layout)) {
                wanted.insert(key, number);
            }
        }
        wanted.extend(configured);
        force.tables.set_server_ids(&wanted)
    }
}
