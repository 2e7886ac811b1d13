//! All backends: which of them is asked next, and what has changed.

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
};

use super::{
    state::{Health, Outcome, State, Transition},
    target::{BackendKey, Target},
};

/// What has become of the checks so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Totals {
    /// Backends that are checked.
    pub targets: usize,
    /// Checks that succeeded.
    pub succeeded: u64,
    /// Checks that failed.
    pub failed: u64,
    /// Checks that this host could not make.
    pub not_asked: u64,
    /// Packets that came to the device of checks through tunnels and were of none, and dropped.
    pub strays: u64,
    /// How much later than planned the last one began, nanoseconds. Seconds of it say
    /// that more checks are due than may run at once, or than this host can make.
    pub behind_ns: u64,
}

/// A check that is to be made, or is being made.
#[derive(Clone, Debug)]
pub(super) struct Job {
    pub(super) target: Arc<Target>,
    /// Of the entry, so that one that was replaced takes no result of its predecessor.
    serial: u64,
    began_ns: u64,
}

#[derive(Debug)]
struct Entry {
    target: Arc<Target>,
    state: State,
    serial: u64,
    /// Its place in the queue; `None` while it is being asked.
    due_ns: Option<u64>,
}

/// All backends.
#[derive(Debug, Default)]
pub(super) struct Table {
    entries: HashMap<BackendKey, Entry>,
    /// By when they are due, and serial.
    queue: BTreeMap<(u64, u64), BackendKey>,
    /// What nobody has been told yet, at most one for each backend.
    changes: BTreeMap<BackendKey, Transition>,
    last_serial: u64,
    totals: Totals,
}

impl Table {
    /// Replaces the set of backends. Those whose target is the same keep their state and
    /// their place; one with another address or check is unknown again. Of two with the
    /// same key the last one counts.
    pub(super) fn set(
        &mut self,
        targets: Vec<Target>,
        now_ns: u64,
        mut random: impl FnMut() -> u64,
    ) {
        let targets: BTreeMap<BackendKey, Target> = targets
            .into_iter()
            .map(|target| (target.key.clone(), target))
            .collect();
        let mut before = std::mem::take(&mut self.entries);
        for (key, target) in targets {
            let entry = match before.remove(&key) {
                Some(entry) if *entry.target == target => entry,
                Some(entry) => {
                    self.unqueue(&entry);
                    let transition = Transition {
                        old: entry.state.health(),
                        new: Health::Unknown,
                        why: "its address or check has changed".to_owned(),
                        at_ns: now_ns,
                    };
                    self.note(&key, transition);
                    self.enter(target, now_ns, random())
                }
                None => self.enter(target, now_ns, random()),
            };
            self.entries.insert(key, entry);
        }
        for (key, entry) in before {
            self.unqueue(&entry);
            self.changes.remove(&key);
        }
    }

    fn enter(&mut self, target: Target, now_ns: u64, random: u64) -> Entry {
        self.last_serial += 1;
        let state = State::new(&target.check, now_ns);
        let due_ns = state.first(now_ns, random);
        self.queue
            .insert((due_ns, self.last_serial), target.key.clone());
        Entry {
            target: Arc::new(target),
            state,
            serial: self.last_serial,
            due_ns: Some(due_ns),
        }
    }

    fn unqueue(&mut self, entry: &Entry) {
        if let Some(due_ns) = entry.due_ns {
            self.queue.remove(&(due_ns, entry.serial));
        }
    }

    /// When the next check is due.
    pub(super) fn next_due(&self) -> Option<u64> {
        self.queue.first_key_value().map(|(&(due_ns, _), _)| due_ns)
    }

    /// Takes the check that is due first, if it is due by now.
    pub(super) fn start(&mut self, now_ns: u64) -> Option<Job> {
        let due = self.queue.first_entry()?;
        let (due_ns, serial) = *due.key();
        if due_ns > now_ns {
            return None;
        }
        let entry = self.entries.get_mut(&due.remove())?;
        entry.due_ns = None;
        self.totals.behind_ns = now_ns - due_ns;
        Some(Job {
            target: entry.target.clone(),
            serial,
            began_ns: now_ns,
        })
    }

    /// Whether anybody still wants to know what becomes of it.
    pub(super) fn wants(&self, job: &Job) -> bool {
        self.entries
            .get(&job.target.key)
            .is_some_and(|entry| entry.serial == job.serial)
    }

    /// Takes in the end of a check, and queues the next one of this backend.
    pub(super) fn finish(
        &mut self,
        job: &Job,
        outcome: &Outcome,
        now_ns: u64,
        random: u64,
    ) -> Option<Transition> {
        let key = &job.target.key;
        let entry = self.entries.get_mut(key)?;
        if entry.serial != job.serial {
            return None;
        }
        match outcome {
            Outcome::Success => self.totals.succeeded += 1,
            Outcome::Failure(_) => self.totals.failed += 1,
            Outcome::NotAsked(_) => self.totals.not_asked += 1,
        }
        let due_ns = entry.state.next(job.began_ns, random).max(now_ns);
        entry.due_ns = Some(due_ns);
        self.queue.insert((due_ns, entry.serial), key.clone());
        let transition = entry.state.take(outcome, now_ns)?;
        self.note(key, transition.clone());
        Some(transition)
    }

    /// Takes in a sign of failure that was seen in the traffic.
    pub(super) fn passive_failure(
        &mut self,
        key: &BackendKey,
        why: &str,
        now_ns: u64,
    ) -> Option<Transition> {
        let entry = self.entries.get_mut(key)?;
        let transition = entry.state.passive_failure(why, now_ns)?;
        self.note(key, transition.clone());
        Some(transition)
    }

    /// Remembers a change until it is told; several of one backend become one.
    fn note(&mut self, key: &BackendKey, mut transition: Transition) {
        if let Some(before) = self.changes.remove(key) {
            transition.old = before.old;
        }
        if transition.old != transition.new {
            self.changes.insert(key.clone(), transition);
        }
    }

    /// What has changed since this was last asked.
    pub(super) fn take_changes(&mut self) -> Vec<(BackendKey, Transition)> {
        std::mem::take(&mut self.changes).into_iter().collect()
    }

    /// Whether anything has.
    pub(super) fn has_changes(&self) -> bool {
        !self.changes.is_empty()
    }

    /// One backend.
    pub(super) fn state(&self, key: &BackendKey) -> Option<&State> {
        self.entries.get(key).map(|entry| &entry.state)
    }

    /// All backends, in no order.
    pub(super) fn states(&self) -> impl Iterator<Item = (&BackendKey, &State)> {
        self.entries.iter().map(|(key, entry)| (key, &entry.state))
    }

    /// What has become of the checks.
    pub(super) fn totals(&self) -> Totals {
        Totals {
            targets: self.entries.len(),
            ..self.totals
        }
    }
}

#[cfg(test)]
mod tests;
