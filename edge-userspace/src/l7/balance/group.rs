//! What the workers share of a group.

use std::sync::{
    Arc,
    atomic::{
        AtomicBool, AtomicU32, AtomicU64,
        Ordering::{Acquire, Relaxed, Release},
    },
};

use edge_common::hash::Seed;

use super::hashing::Ring;

/// How a server is chosen among those that may be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Algorithm {
    /// One after the other, whatever their weights. Constant cost; while one of them is in
    /// its slow start, that of [`WeightedRoundRobin`](Self::WeightedRoundRobin).
    RoundRobin,
    /// Smooth weighted round robin: in W picks, W the sum of all weights, each server has
    /// as many as its weight, spread over them. Linear cost, unless all weights are equal.
    WeightedRoundRobin,
    /// The one that would have the fewest requests under way for its weight with this one
    /// more: of idle ones one with the highest weight. Linear cost.
    LeastConnections,
    /// By the request's key: the client's address, or what it says in a header, a cookie,
    /// or its query. Requests of one key go to one server as long as it is usable. A
    /// request without a key goes to a random one by weight. Constant cost.
    Hash,
    /// Of two random ones by weight the one with fewer requests under way for its weight
    /// (Mitzenmacher, "The power of two choices in randomized load
    /// balancing", 2001). Logarithmic cost.
    RandomOfTwo,
}

/// What the configuration says of a group.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Settings {
    /// How a server is chosen.
    pub algorithm: Algorithm,
    /// When a smaller share (0 to 1) of the primaries is usable, counted by servers, backups
    /// are used as well, and without usable backups all primaries; with 0 backups are used when
    /// no primary is usable, and nobody who is not.
    pub panic_threshold: f64,
    /// How long a server that is new or comes back takes until it has its whole share,
    /// nanoseconds; 0: it has it at once.
    pub slow_start: u64,
}

/// A server, as all workers see it. It outlives the [`Group`] in which it stands when a
/// new configuration still has it.
// Requests count themselves here: a cache line of its own.
#[derive(Debug)]
#[repr(align(64))]
pub struct Server {
    id: u64,
    active: AtomicU32,
    weight: AtomicU32,
    up: AtomicBool,
    draining: AtomicBool,
    /// When it came, or came back; 0 if it was there from the beginning.
    since: AtomicU64,
    ejected_until: AtomicU64,
}

/// One reading of what decides over a server's use.
#[derive(Clone, Copy, Debug)]
pub(super) struct State {
    pub(super) weight: u16,
    pub(super) up: bool,
    pub(super) draining: bool,
    pub(super) since: u64,
    pub(super) ejected_until: u64,
}

impl Server {
    /// A server that is up, not ejected, not draining and past its slow start.
    ///
    /// `id` is its identity: the same after each start and on every host of a fleet, as
    /// [`key`](super::key) makes it of its configured address under the seed of the installation.
    pub const fn new(id: u64, weight: u16) -> Self {
        Self {
            id,
            active: AtomicU32::new(0),
            weight: AtomicU32::new(weight as u32),
            up: AtomicBool::new(true),
            draining: AtomicBool::new(false),
            since: AtomicU64::new(0),
            ejected_until: AtomicU64::new(0),
        }
    }

    /// Its identity.
    pub const fn id(&self) -> u64 {
        self.id
    }

    /// Counts a request as under way at this server, until what is returned is dropped.
    pub fn enter(&self) -> Active<'_> {
        self.active.fetch_add(1, Relaxed);
        Active(self)
    }

    /// Requests under way.
    pub fn active(&self) -> u32 {
        self.active.load(Relaxed)
    }

    /// Its weight now. With 0 it gets no requests but those of its sessions.
    pub fn weight(&self) -> u16 {
        self.weight.load(Relaxed) as u16
    }

    /// Whether its checks find it well.
    pub fn is_up(&self) -> bool {
        self.up.load(Relaxed)
    }

    /// Whether it gets no requests but those of its sessions.
    pub fn is_draining(&self) -> bool {
        self.draining.load(Relaxed)
    }

    /// Until when it is ejected, nanoseconds; a time in the past if it is not.
    pub fn ejected_until(&self) -> u64 {
        self.ejected_until.load(Relaxed)
    }

    pub(super) fn state(&self) -> State {
        State {
            weight: self.weight(),
            up: self.is_up(),
            draining: self.is_draining(),
            since: self.since.load(Relaxed),
            ejected_until: self.ejected_until(),
        }
    }
}

/// A request under way at a server.
#[derive(Debug)]
#[must_use = "the request counts only as long as this lives"]
pub struct Active<'a>(&'a Server);

impl Drop for Active<'_> {
    fn drop(&mut self) {
        self.0.active.fetch_sub(1, Relaxed);
    }
}

/// A server of a group that is to be.
#[derive(Clone, Debug)]
pub struct Member {
    /// The server. Where another group still has it, so does its weight, until this one is in
    /// force.
    pub server: Arc<Server>,
    /// The weight that the configuration gives it, and by which keys are shared out.
    pub weight: u16,
    /// Whether it is a backup.
    pub backup: bool,
}

/// The servers of a group, named by their positions.
#[derive(Debug)]
pub struct Group {
    pub(super) settings: Settings,
    pub(super) seed: Seed,
    servers: Box<[Arc<Server>]>,
    /// Positions of primaries and of backups.
    pub(super) tiers: [Box<[u32]>; 2],
    /// The positions of all, where primaries and backups may be used together; else none.
    pub(super) both: Box<[u32]>,
    /// Who has which slot, as positions in `tiers` and in `both`; empty unless the algorithm is
    /// by hash.
    pub(super) rings: [Ring; 3],
    /// Identities in order, with positions.
    by_id: Box<[(u64, u32)]>,
    /// Of all groups that follow each other: whoever still has the last one changes servers of
    /// this one.
    changes: Arc<AtomicU64>,
}

impl Group {
    /// A group of servers. With [`Algorithm::Hash`] hosts with the same seed and members choose
    /// alike, whatever was before. At most 65,536 servers can be chosen by hash.
    pub fn new(settings: Settings, seed: Seed, members: Vec<Member>) -> Self {
        let tier = |backups: bool| -> Box<[u32]> {
            let all = members.iter().zip(0..);
            all.filter(|(member, _)| member.backup == backups)
                .map(|(_, position)| position)
                .collect()
        };
        let tiers = [tier(false), tier(true)];
        let has_both = tiers.iter().all(|tier| !tier.is_empty());
        let both: Box<[u32]> = if has_both && settings.panic_threshold > 0.0 {
            (0..).zip(&members).map(|(position, _)| position).collect()
        } else {
            Box::default()
        };
        let ring = |all: &[u32]| match settings.algorithm {
            Algorithm::Hash => {
                let all = all.iter();
                let all = all.filter_map(|&position| members.get(position as usize));
                Ring::new(&seed, all.map(|member| (member.server.id, member.weight)))
            }
            _ => Ring::default(),
        };
        let [primaries, backups] = &tiers;
        let rings = [ring(primaries), ring(backups), ring(&both)];
        let servers: Box<[Arc<Server>]> = members.into_iter().map(|m| m.server).collect();
        let mut by_id: Box<[(u64, u32)]> =
            servers.iter().map(|server| server.id).zip(0..).collect();
        by_id.sort_unstable();
        Self {
            settings,
            seed,
            servers,
            tiers,
            both,
            rings,
            by_id,
            changes: Arc::default(),
        }
    }

    /// This group in the place of another one, with which it has servers in common: what is
    /// changed there, by requests that began before, is seen here.
    #[must_use]
    pub fn following(mut self, before: &Self) -> Self {
        self.changes.clone_from(&before.changes);
        self
    }

    /// All servers.
    pub fn servers(&self) -> &[Arc<Server>] {
        &self.servers
    }

    /// The server at a position.
    pub fn server(&self, position: usize) -> Option<&Arc<Server>> {
        self.servers.get(position)
    }

    /// The position of the server with this identity.
    pub fn position(&self, id: u64) -> Option<usize> {
        let at = self.by_id.partition_point(|&(other, _)| other < id);
        let &(found, position) = self.by_id.get(at)?;
        (found == id).then_some(position as usize)
    }

    /// Whether the server at a position is a backup.
    pub(super) fn is_backup(&self, position: usize) -> bool {
        let [_, backups] = &self.tiers;
        backups.binary_search(&(position as u32)).is_ok()
    }

    /// Lets a server that was not there before begin its slow start.
    pub fn begin(&self, position: usize, now: u64) {
        self.change(position, |server| server.since.store(now, Relaxed));
    }

    /// Says what checks find of a server. One that comes back begins its slow start.
    pub fn set_up(&self, position: usize, up: bool, now: u64) {
        self.change(position, |server| {
            if up && !server.up.load(Relaxed) {
                server.since.store(now, Relaxed);
            }
            server.up.store(up, Relaxed);
        });
    }

    /// Ends or resumes the distribution of new requests to a server. One that comes back
    /// begins its slow start.
    pub fn set_draining(&self, position: usize, draining: bool, now: u64) {
        self.change(position, |server| {
            if !draining && server.draining.load(Relaxed) {
                server.since.store(now, Relaxed);
            }
            server.draining.store(draining, Relaxed);
        });
    }

    /// Gives a server another weight. With [`Algorithm::Hash`] only its own keys move if it
    /// gets less. If it gets more than when the group was made, some keys move between the
    /// others as well, which a new group of the same servers would avoid. One that had none
    /// begins its slow start, with `now` 0 it does not.
    pub fn set_weight(&self, position: usize, weight: u16, now: u64) {
        self.change(position, |server| {
            if server.weight.swap(u32::from(weight), Relaxed) == 0 && weight > 0 {
                server.since.store(now, Relaxed);
            }
        });
    }

    /// Takes a server out of use until a time, nanoseconds. Then it comes back by itself,
    /// and begins its slow start.
    pub fn eject(&self, position: usize, until: u64) {
        self.change(position, |server| {
            server.ejected_until.store(until, Relaxed);
        });
    }

    fn change(&self, position: usize, change: impl FnOnce(&Server)) {
        if let Some(server) = self.servers.get(position) {
            change(server);
            // Who sees this count sees what was changed before.
            self.changes.fetch_add(1, Release);
        }
    }

    /// How often the state of a server has changed.
    pub(super) fn changes(&self) -> u64 {
        self.changes.load(Acquire)
    }
}
