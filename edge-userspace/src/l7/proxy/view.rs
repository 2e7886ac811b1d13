//! The proxy for those who only look at it, or change what is no configuration.

use std::{
    collections::HashMap,
    io,
    net::SocketAddr,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
};

use serde::{Deserialize, Serialize};

use super::{
    explain::{self, QuestionError},
    listen::{Door, Given},
    panics::Panics,
    snapshot::Snapshot,
    spans::Counts,
    tell,
    watch::Checks,
    worker::Worker,
};
use crate::{
    config::proxy::upstream::Address,
    l7::route::Router,
    status::{
        proxy::{ProxyStatus, UpstreamStatus},
        route::{Answer, Question, RouteEntry},
    },
};

/// What holds.
#[derive(Clone)]
pub(super) struct Held {
    pub(super) snapshot: Arc<Snapshot>,
    pub(super) router: Router,
    /// Who accepts connections: the numbers of workers. The others are to end.
    pub(super) seats: Arc<[usize]>,
}

/// What workers and those who tell them have in common.
#[derive(Default)]
pub(super) struct Shared {
    /// What holds, once there is anything.
    pub(super) current: Mutex<Option<Held>>,
    /// Set when there is nothing more to accept; told apart under the lock of `current`.
    pub(super) is_closed: AtomicBool,
    /// Of each address, the sockets of the workers. They stay open here, so that a worker that
    /// starts anew, or another process, finds the connections that came meanwhile.
    pub(super) sockets: Mutex<HashMap<SocketAddr, Door>>,
    /// What another process has opened and no listener wants: until the first configuration all,
    /// and then what a service manager keeps, for a later one.
    pub(super) spare: Mutex<HashMap<SocketAddr, Door>>,
    /// What checks say of servers.
    pub(super) checks: Mutex<Option<Checks>>,
    pub(super) spans: Arc<Counts>,
    pub(super) panics: Arc<Panics>,
    /// Each thread of a worker has one more.
    pub(super) threads: Arc<()>,
}

impl Shared {
    /// What holds now.
    pub(super) fn snapshot(&self) -> Option<Arc<Snapshot>> {
        let current = lock(&self.current);
        current.as_ref().map(|held| held.snapshot.clone())
    }

    /// Nobody is to accept from now on what has not begun to. Sockets of the workers are closed when
    /// nobody waits in them.
    pub(super) fn close(&self) {
        let _current = lock(&self.current);
        self.is_closed.store(true, Relaxed);
        lock(&self.sockets).clear();
        lock(&self.spare).clear();
    }
}

/// The proxy for those who only look at it, or change what is no configuration; from any thread.
#[derive(Clone)]
pub struct View(pub(super) Arc<Shared>);

/// A change to a server while the proxy runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    /// Whether it gets no new requests.
    Drain(bool),
    /// Another weight, until the next change of the configuration of its upstream.
    Weight(u16),
}

/// What was said of a server while the proxy ran, for another process.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Said {
    /// The upstream.
    pub upstream: String,
    /// The server's address, as in the configuration.
    pub server: String,
    /// Whether it gets no new requests.
    #[serde(default)]
    pub draining: bool,
    /// The weight that it has in place of that of the configuration.
    #[serde(default)]
    pub weight: Option<NewWeight>,
}

/// A weight in place of another one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NewWeight {
    /// That of the configuration.
    pub of: u16,
    /// What it is now.
    pub now: u16,
}

/// Why there is no such change.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NoServer {
    /// There is no such upstream.
    #[error("there is no upstream {name:?}; `edge upstream list` shows those that there are")]
    Upstream {
        /// The name that was asked for.
        name: String,
    },
    /// The upstream has no such server.
    #[error(
        "the upstream {upstream:?} has no server {name:?}; `edge upstream list` shows its servers"
    )]
    Server {
        /// The upstream.
        upstream: String,
        /// The address that was asked for.
        name: String,
    },
}

impl View {
    /// The sockets that clients connect to, or could after another reload, for another process.
    ///
    /// # Errors
    /// When there are no descriptors left.
    pub fn sockets(&self) -> io::Result<Vec<Given>> {
        let (sockets, spare) = (lock(&self.0.sockets), lock(&self.0.spare));
        let doors = sockets.values().chain(spare.values());
        let given: io::Result<Vec<Vec<Given>>> = doors.map(Door::give).collect();
        Ok(given?.into_iter().flatten().collect())
    }

    /// The addresses of those sockets.
    pub fn addresses(&self) -> Vec<SocketAddr> {
        let (sockets, spare) = (lock(&self.0.sockets), lock(&self.0.spare));
        sockets.keys().chain(spare.keys()).copied().collect()
    }

    /// What was said of servers, of which the configuration knows nothing.
    pub fn said(&self) -> Vec<Said> {
        let snapshot = self.0.snapshot();
        let groups = snapshot.iter().flat_map(|snapshot| snapshot.groups.iter());
        groups.flat_map(|group| group.said()).collect()
    }

    /// Connections of clients that are open.
    pub fn connections(&self) -> u64 {
        let snapshot = self.0.snapshot();
        let listeners = snapshot
            .iter()
            .flat_map(|snapshot| snapshot.listeners.iter());
        listeners.map(|listener| u64::from(listener.count())).sum()
    }

    /// Threads of workers: of those that accept connections, of those that have no place any more
    /// and end with their connections, and of those whose configuration is not in force yet.
    pub fn threads(&self) -> usize {
        Arc::strong_count(&self.0.threads) - 1
    }

    /// The routes in the order of the file, and their requests.
    pub fn routes(&self) -> Vec<RouteEntry> {
        let snapshot = self.0.snapshot();
        snapshot.as_deref().map(tell::routes).unwrap_or_default()
    }

    /// What a request would get now.
    ///
    /// # Errors
    /// [`QuestionError`].
    pub fn explain(&self, question: &Question) -> Result<Vec<Answer>, QuestionError> {
        let held = lock(&self.0.current).clone();
        let held = held.ok_or(QuestionError::NoProxy)?;
        explain::answer(&held.snapshot.config, &held.router, question)
    }

    /// What is told of the proxy; `None` without listeners.
    pub fn status(&self) -> Option<ProxyStatus> {
        let (snapshot, workers) = {
            let current = lock(&self.0.current);
            let held = current.as_ref()?;
            (held.snapshot.clone(), held.seats.len())
        };
        let checks = lock(&self.0.checks).clone();
        (!snapshot.listeners.is_empty()).then(|| {
            tell::status(
                &snapshot,
                workers,
                checks.as_ref(),
                (&self.0.spans, &self.0.panics),
            )
        })
    }

    /// Changes a server of an upstream, and tells how the upstream is then.
    ///
    /// # Errors
    /// [`NoServer`].
    pub fn change(
        &self,
        upstream: &str,
        server: &str,
        change: Change,
    ) -> Result<UpstreamStatus, NoServer> {
        let snapshot = self.0.snapshot();
        let groups = snapshot.iter().flat_map(|snapshot| snapshot.groups.iter());
        let mut groups = groups.filter(|group| group.config.name == upstream);
        let group = groups.next().ok_or_else(|| NoServer::Upstream {
            name: upstream.to_owned(),
        })?;
        // An address may be written in several ways.
        let wanted = Address::read(server);
        let mut servers = group.servers.iter();
        let position = servers.position(|s| Some(&s.address) == wanted.as_ref());
        let position = position.ok_or_else(|| NoServer::Server {
            upstream: upstream.to_owned(),
            name: server.to_owned(),
        })?;
        let now = Worker::now();
        match change {
            Change::Drain(drain) => group.pick.set_draining(position, drain, now),
            Change::Weight(weight) => group.pick.set_weight(position, weight, now),
        }
        let checks = lock(&self.0.checks).clone();
        Ok(tell::upstream(group, checks.as_ref()))
    }
}

pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
