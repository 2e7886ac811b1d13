//! The engine's answers to the requests of the control socket.

use tracing::{error, info};

use super::{
    engine::{Engine, LIMITS_SETTING, failure},
    limits::{ChangeError, Changes},
    lookup::lookup,
};
use crate::{
    clock::{Now, coarse_tick_ns},
    config::Model,
    control::{
        protocol::{Addition, Entry, Failure, FailureKind, Request, Response},
        server::Reply,
    },
    entry::Source,
    policy::{EntryView, Policy, PolicyError, Terms},
    tables::TableError,
};

/// The answer to a request that changes nothing; `None` to one that does.
pub(super) fn read(
    request: &Request,
    policy: &Policy,
    model: &Model,
    changes: &Changes,
) -> Option<Result<Response, Failure>> {
    let now = Now::read();
    let answer = match *request {
        Request::List {
            list,
            within,
            after,
            limit,
        } => policy
            .list(list, within, after, limit as usize, now)
            .map(|page| Response::Page {
                entries: page.entries.iter().map(entry).collect(),
                next: page.next,
            }),
        Request::Lookup { address } => policy.lookup(address, now).map(|entries| {
            let entries = entries.iter().map(entry).collect();
            Response::Lookup(lookup(address, entries, model, now))
        }),
        Request::Limits {} => Ok(Response::Limits(changes.tell(&model.limits))),
        _ => return None,
    };
    Some(answer.map_err(|e| policy_failure(&e)))
}

impl Engine {
    /// Carries a request out and answers it.
    pub(super) fn answer(&mut self, request: Request, reply: Reply) {
        if let Some(answer) = read(&request, &self.policy, &self.model, &self.changes) {
            return reply.send(answer);
        }
        let now = Now::read();
        let answer = match request {
            Request::Compare { text, file } => return self.compare(text, file, now, reply),
            Request::Status {}
            | Request::List { .. }
            | Request::Lookup { .. }
            | Request::Limits {}
            | Request::Upstream { .. }
            | Request::Routes {}
            | Request::RouteTest(_)
            | Request::Upgrade { .. }
            | Request::Attacks {}
            | Request::Attack { .. } => Err(Failure::new(
                FailureKind::Internal,
                "the engine was asked for what it does not answer",
            )),
            Request::Reload {} => self
                .reload()
                .map(|(generation, notes)| Response::Reloaded { generation, notes }),
            Request::Add(addition) => self.add(addition, now, &reply),
            Request::Remove { list, prefixes } => self
                .policy
                .remove(list, &prefixes, now)
                .map(|r| Response::Removed {
                    removed: r.removed,
                    missing: r.missing,
                })
                .map_err(|e| policy_failure(&e)),
            Request::Flush { list, origin, feed } => {
                let (policy, mut meanwhile) = self.at_length(&reply);
                policy
                    .flush(list, origin, feed.as_ref(), now, &mut meanwhile)
                    .map(|removed| Response::Flushed { removed })
                    .map_err(|e| policy_failure(&e))
            }
            Request::SetLimit(change) => {
                let mut changes = self.changes.clone();
                changes
                    .set(&change)
                    .map_err(|e| change_failure(&e))
                    .and_then(|()| self.change_limits(changes))
            }
            Request::Backend { name, change } => self
                .balancer
                .lock()
                .change(&name, &change, now)
                .map(|status| Response::Backend(Box::new(status))),
            Request::ResetLimits { kind, prefix } => {
                let mut changes = self.changes.clone();
                changes.reset(kind, prefix);
                self.change_limits(changes)
            }
        };
        reply.send(answer);
    }

    /// Compares a configuration with what is in force. Rings of many services take their time,
    /// and others wait for the engine: it is done by a thread of its own.
    fn compare(&self, text: String, file: String, now: Now, reply: Reply) {
        let in_force = self.in_force(now);
        let compare = move || reply.send(in_force.compare(&text, &file).map(Response::Comparison));
        let started = std::thread::Builder::new()
            .name("compare".into())
            .spawn(compare);
        if let Err(e) = started {
            error!("cannot start a thread to compare configurations: {e}");
        }
    }

    fn add(&mut self, addition: Addition, now: Now, reply: &Reply) -> Result<Response, Failure> {
        let Addition { header, prefixes } = addition;
        let expires_unix_ms = header
            .ttl_s
            .map(|s| now.unix_ms.saturating_add(s.saturating_mul(1000)));
        let terms = Terms {
            source: Source::new(header.origin, header.feed),
            expires_unix_ms,
            note: header.note.into(),
        };
        let (policy, mut meanwhile) = self.at_length(reply);
        let done = if header.replace {
            policy.replace(header.list, terms, prefixes, now, &mut meanwhile)
        } else {
            policy.add(header.list, terms, prefixes, now, &mut meanwhile)
        };
        done.map(|a| Response::Added {
            added: a.added,
            updated: a.updated,
            removed: a.removed,
        })
        .map_err(|e| policy_failure(&e))
    }

    /// The lists, to change them, and what is to be done while that takes its
    /// time: a sign of life, a word to the client, and answers to those who only ask.
    fn at_length(&mut self, reply: &Reply) -> (&mut Policy, impl FnMut(&Policy, u64, u64)) {
        let Self { policy, inbox, .. } = self;
        let (shared, model, changes) = (&self.shared, &self.model, &self.changes);
        let meanwhile = move |policy: &Policy, done, total| {
            shared.beat();
            reply.progress(done, total);
            inbox.answer(|request| read(request, policy, model, changes));
        };
        (policy, meanwhile)
    }

    fn tell_limits(&self) -> Response {
        Response::Limits(self.changes.tell(&self.model.limits))
    }

    /// Puts other run-time limits into force, and keeps them.
    fn change_limits(&mut self, changes: Changes) -> Result<Response, Failure> {
        let limits = changes
            .on(&self.file.limits, coarse_tick_ns())
            .map_err(|e| change_failure(&e))?;
        if changes != self.changes {
            let model = self.file.with_limits(limits);
            self.store_limits(&changes)?;
            if let Err(e) = self.force(model) {
                // What is stored must be what is in force.
                let former = self.changes.clone();
                if let Err(e) = self.store_limits(&former) {
                    error!("limits that are not in force are stored: {e}");
                }
                return Err(failure(e));
            }
            self.changes = changes;
            self.publish_generation(Now::read());
            info!("limits changed");
        }
        Ok(self.tell_limits())
    }

    fn store_limits(&self, changes: &Changes) -> Result<(), Failure> {
        let text = serde_json::to_vec(changes)
            .map_err(|e| Failure::new(FailureKind::Internal, e.to_string()))?;
        self.policy
            .set_setting(LIMITS_SETTING, &text)
            .map_err(|e| policy_failure(&e))
    }
}

fn entry(view: &EntryView) -> Entry {
    Entry {
        prefix: view.prefix,
        list: view.list,
        origin: view.source.origin,
        feed: view.source.feed.clone(),
        created_unix_ms: view.created_unix_ms,
        expires_unix_ms: view.expires_unix_ms,
        note: view.note.to_string(),
        hits: view.hits,
    }
}

fn change_failure(error: &ChangeError) -> Failure {
    Failure::new(FailureKind::Invalid, error.to_string())
}
/// A failure of the lists for the one who asked.
pub(super) fn policy_failure(error: &PolicyError) -> Failure {
    if let PolicyError::NotUndone { .. } = error {
        // The daemon ends for it: not only the client must know why.
        error!("{error}");
    }
    let kind = match error {
        PolicyError::Table(TableError::Full { .. }) | PolicyError::Overlap(_) => FailureKind::Full,
        PolicyError::Table(TableError::Size { .. }) | PolicyError::NotUndone { .. } => {
            FailureKind::Internal
        }
        PolicyError::Store(_) => FailureKind::Store,
        PolicyError::NoteTooLong { .. }
        | PolicyError::TooManySources { .. }
        | PolicyError::InFile { .. } => FailureKind::Invalid,
    };
    Failure::new(kind, error.to_string())
}
