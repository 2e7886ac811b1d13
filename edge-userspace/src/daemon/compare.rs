//! What another configuration would change, before it is in force.

use std::{collections::BTreeSet, path::Path};

use edge_common::hash::Seed;

use super::engine::sentences;
use crate::{
    config::{self, Checked, Model, reload, services::Service},
    control::protocol::{Comparison, Failure, FailureKind, MAX_COMPARED, ServiceChange},
    l4::diff::{self, Configuration, Kind, Situation},
};

/// The most services whose rings are compared while others wait.
const MOST_NOTES: usize = 16;

/// What is in force.
pub(super) struct InForce {
    /// The configuration.
    pub(super) model: Model,
    /// The secret of the choice of backends.
    pub(super) seed: Seed,
    /// How backends and flows are.
    pub(super) situation: Situation,
    /// Resolution of the clock of limits, nanoseconds.
    pub(super) tick_ns: u64,
}

impl InForce {
    /// What the configuration with this text changes; `file` is for messages.
    ///
    /// # Errors
    /// It is wrong, or cannot come into force without a restart.
    pub(super) fn compare(&self, text: &str, file: &str) -> Result<Comparison, Failure> {
        let refused = |e: &dyn std::error::Error| Failure::new(FailureKind::Config, e.to_string());
        let Checked { model, warnings } =
            config::parse(text, Path::new(file), self.tick_ns).map_err(|e| refused(&e))?;
        let changes = reload::changes(&self.model, &model).map_err(|e| refused(&e))?;
        let services = self.services(&model);
        Ok(Comparison {
            warnings: warnings.iter().map(ToString::to_string).collect(),
            changes: sentences(&changes)
                .into_iter()
                .chain(self.reseeds(&model))
                .collect(),
            more_services: services.len().saturating_sub(MAX_COMPARED),
            services: services.into_iter().take(MAX_COMPARED).collect(),
        })
    }

    /// What changes of balanced services, a sentence each; of many at once, only how many.
    pub(super) fn notes(&self, next: &Model) -> Vec<String> {
        let (before, after) = (configuration(&self.model), configuration(next));
        let differs = |name: &&str| before.services.get(name) != after.services.get(name);
        let names: BTreeSet<&str> = [&before, &after]
            .into_iter()
            .flat_map(|c| c.services.keys().copied())
            .collect();
        let mut notes = match names.into_iter().filter(differs).count() {
            0 => Vec::new(),
            1..=MOST_NOTES => self
                .services(next)
                .into_iter()
                .map(|s| s.sentence)
                .collect(),
            n => vec![format!("{n} balanced services change")],
        };
        notes.extend(self.reseeds(next));
        notes
    }

    /// That all rings change, where another secret chooses.
    fn reseeds(&self, next: &Model) -> impl Iterator<Item = String> {
        let both = [&self.model, next];
        let [was, is] = both.map(|m| &m.balancing.seed_file);
        let is_another = was != is;
        let flows = "new flows of all balanced services are spread anew";
        let requests = "requests of the proxy are hashed anew, and its session cookies begin anew";
        [
            (both.iter().all(|m| m.has_balanced()), flows),
            (both.iter().all(|m| m.proxy.has_keys()), requests),
        ]
        .into_iter()
        .filter(move |(has_any, _)| is_another && *has_any)
        .map(|(_, what)| format!("balance.seed_file is another: {what}"))
    }

    /// What changes of balanced services.
    pub(super) fn services(&self, next: &Model) -> Vec<ServiceChange> {
        let (before, after) = (configuration(&self.model), configuration(next));
        let changes = diff::changes(&self.seed, &before, &after, &self.situation);
        changes.into_iter().map(told).collect()
    }
}

fn told(change: diff::Change) -> ServiceChange {
    let moves = match &change.kind {
        Kind::Changed { moves, .. } => Some(moves),
        Kind::Added { .. } | Kind::Removed => None,
    };
    ServiceChange {
        sentence: change.to_string(),
        moved_slots: moves.map(|m| (m.moved, m.slots)),
        needless_slots: moves.map(|m| m.needless),
        lost_flows: change.flows,
        service: change.service,
    }
}

/// A configuration as the balancer sees it.
fn configuration<'a>(model: &'a Model) -> Configuration<'a> {
    let balanced = |s: &'a Service| Some((s.name.as_str(), (s, s.balance.as_ref()?)));
    Configuration {
        slots: model.balancing.slots,
        services: model.services.iter().filter_map(balanced).collect(),
    }
}
