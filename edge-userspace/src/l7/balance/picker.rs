//! A worker's view of a group, from which it picks.

use std::sync::Arc;

use super::{
    group::Group,
    tier::{Reading, Tier},
};

/// What a pick depends on.
#[derive(Clone, Copy, Debug)]
pub struct Ask<'a> {
    /// Monotonic time, nanoseconds.
    pub now: u64,
    /// Random bits, others for each pick.
    pub random: u64,
    /// What the request is hashed by, if it has that: [`key`](super::key) or
    /// [`address_key`](super::address_key).
    pub key: Option<u64>,
    /// The servers at which this request was tried before.
    pub tried: &'a [usize],
}

/// Which servers are used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Use {
    /// The usable primaries.
    Primaries,
    /// The usable backups, as no primary is usable.
    Backups,
    /// The usable primaries and backups, as too few primaries are usable.
    Both,
    /// All primaries, as too few of them are usable, and no backup.
    Panic,
}

/// A worker's choice among the servers of a group. No pick allocates.
#[derive(Debug)]
pub struct Picker {
    group: Arc<Group>,
    primaries: Tier,
    backups: Tier,
    both: Tier,
    used: Use,
    /// The changes of the group that this knows.
    seen: u64,
    /// When time alone makes a difference, nanoseconds.
    stale_at: u64,
}

impl Picker {
    /// A worker's picker. `random` bits, others for each worker, keep workers from going
    /// through the servers in step.
    pub fn new(group: Arc<Group>, random: u64) -> Self {
        let [primaries, backups] = &group.tiers;
        Self {
            primaries: Tier::new(primaries, random),
            backups: Tier::new(backups, random),
            both: Tier::new(&group.both, random),
            used: Use::Primaries,
            seen: 0,
            stale_at: 0,
            group,
        }
    }

    /// Its group.
    pub const fn group(&self) -> &Arc<Group> {
        &self.group
    }

    /// The position of the server for a request; `None` if there is nobody. It is one of
    /// those that were tried before only when there is no other.
    pub fn pick(&mut self, ask: &Ask<'_>) -> Option<usize> {
        self.look(ask.now);
        let Self {
            group,
            primaries,
            backups,
            both,
            used,
            ..
        } = self;
        let [ring, backup_ring, both_ring] = &group.rings;
        let first = match used {
            Use::Backups => backups.pick(group, backup_ring, ask, ask.tried),
            Use::Both => both.pick(group, both_ring, ask, ask.tried),
            Use::Primaries | Use::Panic => primaries.pick(group, ring, ask, ask.tried),
        };
        if first.is_some() || ask.tried.is_empty() {
            return first;
        }
        match used {
            Use::Backups => backups.pick(group, backup_ring, ask, &[]),
            Use::Both => both.pick(group, both_ring, ask, &[]),
            Use::Primaries | Use::Panic => backups
                .pick(group, backup_ring, ask, ask.tried)
                .or_else(|| primaries.pick(group, ring, ask, &[])),
        }
    }

    /// The position of the server to which a session belongs, if it may go on there: also
    /// on one that is draining or has no weight, but not on one that is down or ejected, unless
    /// all are used, nor on a backup while none is used, nor on one at which this request was
    /// tried before.
    pub fn resume(&mut self, id: u64, ask: &Ask<'_>) -> Option<usize> {
        self.look(ask.now);
        let position = self.group.position(id)?;
        let state = self.group.server(position)?.state();
        let well = state.up && state.ejected_until <= ask.now;
        let may = match self.used {
            Use::Primaries => well && !self.group.is_backup(position),
            Use::Panic => !self.group.is_backup(position),
            Use::Backups | Use::Both => well,
        };
        (may && !ask.tried.contains(&position)).then_some(position)
    }

    /// Whether all primaries are used, as too few of them are usable, and no backup.
    #[cfg(test)]
    pub(super) fn is_panic(&mut self, now: u64) -> bool {
        self.look(now);
        self.used == Use::Panic
    }

    /// Brings what is known of the servers up to date.
    fn look(&mut self, now: u64) {
        let changes = self.group.changes();
        if changes == self.seen && now < self.stale_at {
            return;
        }
        self.seen = changes;
        let group = &*self.group;
        let [ring, backup_ring, both_ring] = &group.rings;
        let mut reading = Reading {
            group,
            now,
            stale_at: u64::MAX,
            all: false,
        };
        self.primaries.read(ring, &mut reading);
        self.backups.read(backup_ring, &mut reading);
        let (usable, wanted) = (self.primaries.usable(), self.primaries.wanted());
        let floor = group.settings.panic_threshold * wanted as f64;
        let too_few = |usable: usize| (usable as f64) < floor;
        let spare = self.backups.usable();
        self.used = if usable == 0 && spare > 0 {
            Use::Backups
        } else if !too_few(usable) {
            Use::Primaries
        } else if spare > 0 && !too_few(usable + spare) {
            self.both.read(both_ring, &mut reading);
            Use::Both
        } else {
            reading.all = true;
            self.primaries.read(ring, &mut reading);
            Use::Panic
        };
        self.stale_at = reading.stale_at;
    }
}
