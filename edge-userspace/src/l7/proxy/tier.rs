//! The tier as the daemon sees it: workers, and what they are to do.

use std::{
    collections::HashMap,
    io,
    net::{SocketAddr, TcpListener},
    sync::{
        Arc, Mutex, PoisonError,
        mpsc::{SyncSender, sync_channel},
    },
    thread::{self, JoinHandle},
    time::Duration,
};

use edge_common::hash::Seed;
use tokio::sync::mpsc::{Receiver, Sender, channel, error::TrySendError};
use tracing::{error, info};

use super::{
    explain::{self, QuestionError},
    group::{Counted, Group, Memory, Places, nanoseconds},
    listen,
    log_writer::LogWriter,
    privileges,
    snapshot::{Ban, Judge, Listener, Route, Snapshot},
    tell,
    tls::{self, TlsError, Towards},
    watch::{Checks, Watcher},
    worker::{self, Ended, Order, Worker},
};
use crate::{
    config::proxy::{AccessLog, LogFormat, Proxy},
    l7::{
        access_log::Format,
        bans::Rule,
        route::{CompileError, Router},
    },
    status::{
        proxy::{ProxyStatus, UpstreamStatus},
        route::{Answer, Question, RouteEntry},
    },
};

/// Why a configuration cannot be put into force.
#[derive(Debug, thiserror::Error)]
pub enum TierError {
    /// The system does not give an address.
    #[error("[[listener]] {listener:?}: cannot listen on {address}: {source}{}", remedy(.source))]
    Bind {
        /// The listener.
        listener: String,
        /// The address.
        address: SocketAddr,
        /// What the system says.
        source: io::Error,
    },
    /// TLS of a listener or an upstream.
    #[error("{whose}: {source}")]
    Tls {
        /// Whose it is, as in the file.
        whose: String,
        /// What is wrong.
        source: TlsError,
    },
    /// The file of the access log cannot be opened.
    #[error("proxy.access_log.path = {path:?}: {source}")]
    Log {
        /// The file.
        path: std::path::PathBuf,
        /// What the system says.
        source: io::Error,
    },
    /// Routes cannot be compiled.
    #[error(transparent)]
    Routes(#[from] CompileError),
    /// The number of workers has changed.
    #[error(
        "proxy.workers: edge was started for {now}, and the file wants {wanted}; their number \
         changes only with a restart: restart edge, or put the number back"
    )]
    Workers {
        /// For how many it was started.
        now: usize,
        /// How many the file wants.
        wanted: usize,
    },
    /// A worker cannot give up its privileges.
    #[error(
        "a worker of the proxy cannot give up its capabilities: {0}; a filter of system calls has to \
         allow capset, see config/edge.service"
    )]
    Privileges(io::Error),
    /// There is no thread to be had.
    #[error("cannot start a worker of the proxy: {0}")]
    Thread(io::Error),
}

fn remedy(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::AddrInUse => "; see who has it with `ss -ltnp`",
        io::ErrorKind::AddrNotAvailable => {
            "; no interface has this address: give it to one, or listen on 0.0.0.0 or [::]"
        }
        io::ErrorKind::PermissionDenied => {
            "; ports below 1024 need CAP_NET_BIND_SERVICE, see config/edge.service"
        }
        _ => "",
    }
}

/// What workers and those who tell them have in common.
struct Shared {
    /// What holds, once there is anything.
    current: Mutex<Option<(Arc<Snapshot>, Router)>>,
    /// Of each address, the socket of each worker. They stay open here, so that a worker that
    /// starts anew finds the connections that came meanwhile.
    sockets: Mutex<HashMap<SocketAddr, Vec<TcpListener>>>,
    /// What checks say of servers.
    checks: Mutex<Option<Checks>>,
}

/// The proxy.
pub struct Tier {
    memory: Memory,
    counted: Counted,
    workers: usize,
    shared: Arc<Shared>,
    seats: Vec<Seat>,
    watcher: Option<Watcher>,
    log: Option<(AccessLog, LogWriter)>,
    judge: Arc<Judge>,
    proxy: Arc<Proxy>,
}

/// The proxy for those who only look at it, or change what is no configuration; from any thread.
#[derive(Clone)]
pub struct View {
    shared: Arc<Shared>,
    workers: usize,
}

/// A change to a server while the proxy runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    /// Whether it gets no new requests.
    Drain(bool),
    /// Another weight, until the next change of the configuration of its upstream.
    Weight(u16),
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
    fn current(&self) -> Option<(Arc<Snapshot>, Router)> {
        lock(&self.shared.current).clone()
    }

    fn snapshot(&self) -> Option<Arc<Snapshot>> {
        let current = lock(&self.shared.current);
        current.as_ref().map(|(snapshot, _)| snapshot.clone())
    }

    /// The routes in the order of the file, and their requests.
    pub fn routes(&self) -> Vec<RouteEntry> {
        let snapshot = self.snapshot();
        snapshot.as_deref().map(tell::routes).unwrap_or_default()
    }

    /// What a request would get now.
    ///
    /// # Errors
    /// [`QuestionError`].
    pub fn explain(&self, question: &Question) -> Result<Vec<Answer>, QuestionError> {
        let (snapshot, router) = self.current().ok_or(QuestionError::NoProxy)?;
        explain::answer(&snapshot.config, &router, question)
    }

    /// What is told of the proxy; `None` without listeners.
    pub fn status(&self) -> Option<ProxyStatus> {
        let snapshot = self.snapshot()?;
        let checks = lock(&self.shared.checks).clone();
        (!snapshot.listeners.is_empty())
            .then(|| tell::status(&snapshot, self.workers, checks.as_ref()))
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
        let snapshot = self.snapshot();
        let groups = snapshot.iter().flat_map(|snapshot| snapshot.groups.iter());
        let mut groups = groups.filter(|group| group.config.name == upstream);
        let group = groups.next().ok_or_else(|| NoServer::Upstream {
            name: upstream.to_owned(),
        })?;
        let position = group.servers.iter().position(|s| *s.name == *server);
        let position = position.ok_or_else(|| NoServer::Server {
            upstream: upstream.to_owned(),
            name: server.to_owned(),
        })?;
        match change {
            Change::Drain(drain) => group.pick.set_draining(position, drain, Worker::now()),
            Change::Weight(weight) => group.pick.set_weight(position, weight),
        }
        let checks = lock(&self.shared.checks).clone();
        Ok(tell::upstream(group, checks.as_ref()))
    }
}

struct Seat {
    orders: Sender<Order>,
    thread: Option<JoinHandle<()>>,
}

/// What is ready to be put into force.
pub struct Prepared {
    snapshot: Arc<Snapshot>,
    router: Router,
    sockets: Vec<(SocketAddr, Vec<TcpListener>)>,
    log: Option<(AccessLog, LogWriter)>,
    proxy: Arc<Proxy>,
}

impl Tier {
    /// Without workers, until a configuration with listeners is put into force. `secret` signs
    /// session cookies; `ban` is told of sources that offend too often, by any worker, and must
    /// not wait.
    pub fn new(
        proxy: &Proxy,
        seed: Seed,
        secret: [u8; 32],
        ban: impl Fn(Ban) + Send + Sync + 'static,
    ) -> Self {
        let workers = worker_count(proxy);
        Self {
            memory: Memory::new(seed, secret),
            counted: Counted::new(workers),
            workers,
            shared: Arc::new(Shared {
                current: Mutex::new(None),
                sockets: Mutex::new(HashMap::new()),
                checks: Mutex::new(None),
            }),
            seats: Vec::new(),
            watcher: None,
            log: None,
            judge: Arc::new(Judge::new(ban)),
            proxy: Arc::default(),
        }
    }

    /// Does all that can fail to put a configuration into force: binds, reads, compiles. What is
    /// in force stays as it is.
    ///
    /// # Errors
    /// [`TierError`].
    pub fn prepare(&mut self, proxy: &Proxy) -> Result<Prepared, TierError> {
        // What the host has may change; what is not said does not.
        let wanted = proxy.workers.map_or(self.workers, |n| n as usize);
        if wanted != self.workers && !proxy.listeners.is_empty() {
            return Err(TierError::Workers {
                now: self.workers,
                wanted,
            });
        }
        let router = Router::new(proxy)?;
        let before = self.snapshot();
        let groups = self.groups(proxy, before.as_deref())?;
        let listeners = self.listeners(proxy, before.as_deref())?;
        let log = match &proxy.access_log {
            None => None,
            Some(wanted) => match &self.log {
                Some((had, writer)) if had == wanted => Some((had.clone(), writer.clone())),
                _ => {
                    let writer =
                        LogWriter::start(&wanted.path).map_err(|source| TierError::Log {
                            path: wanted.path.clone(),
                            source,
                        })?;
                    Some((wanted.clone(), writer))
                }
            },
        };
        let routes = proxy.routes.iter().map(|route| Route {
            name: route.name.clone(),
            requests: self.counted.routes.get(&route.name),
            places: route.concurrency.as_ref().map(|wanted| {
                let mut before = before.iter().flat_map(|before| before.routes.iter());
                let had = before.find(|had| had.name == route.name);
                let had = had.and_then(|had| had.places.clone());
                // Who is under way counts on.
                had.filter(|had| had.is_of(wanted))
                    .unwrap_or_else(|| Arc::new(Places::new(wanted)))
            }),
        });
        let mut addresses = HashMap::new();
        for (at, listener) in proxy.listeners.iter().enumerate() {
            addresses.extend(listener.addresses.iter().map(|address| (*address, at)));
        }
        let config = Arc::new(proxy.clone());
        let snapshot = Snapshot {
            config: config.clone(),
            routes: routes.collect(),
            listeners: listeners.into(),
            groups: groups.into(),
            log: log.as_ref().map(|(log, writer)| {
                let format = match log.format {
                    LogFormat::Json => Format::Json,
                    LogFormat::Logfmt => Format::Logfmt,
                };
                (writer.clone(), format)
            }),
            bans: proxy.bans.map(|bans| {
                let rule = Rule {
                    offences: bans.offences,
                    window: nanoseconds(bans.window),
                };
                (self.judge.clone(), rule, bans.ttl)
            }),
            addresses,
        };
        let sockets = self.bind(proxy)?;
        if self.seats.is_empty() && !proxy.listeners.is_empty() {
            raise_file_limit();
            // They have nothing to do until there is something in force.
            self.seats = self.start()?;
        }
        if self.watcher.is_none() && !proxy.listeners.is_empty() {
            let watcher = Watcher::start().map_err(TierError::Thread)?;
            *lock(&self.shared.checks) = Some(watcher.checks().clone());
            self.watcher = Some(watcher);
        }
        if let Some(watcher) = &self.watcher {
            watcher.look_up(&snapshot.groups);
        }
        Ok(Prepared {
            snapshot: Arc::new(snapshot),
            router,
            sockets,
            log,
            proxy: config,
        })
    }

    fn groups(
        &mut self,
        proxy: &Proxy,
        before: Option<&Snapshot>,
    ) -> Result<Vec<Arc<Group>>, TierError> {
        let mut groups = Vec::new();
        for upstream in &proxy.upstreams {
            let same = before.and_then(|before| {
                let mut all = before.groups.iter();
                // Files may have changed where their names have not.
                all.find(|group| group.config == *upstream && upstream.tls.is_none())
            });
            if let Some(same) = same {
                groups.push(same.clone());
                continue;
            }
            let of = |source| TierError::Tls {
                whose: format!("[[upstream]] {:?}, tls", upstream.name),
                source,
            };
            let towards = upstream.tls.as_ref();
            let towards = towards.map(|tls| Towards::load(tls, upstream.protocol));
            let towards = towards.transpose().map_err(of)?;
            let mut tls = HashMap::new();
            if let Some(towards) = &towards {
                for server in &upstream.servers {
                    let to = towards.to(&server.address).map_err(of)?;
                    tls.insert(server.address.clone(), to);
                }
            }
            let group = self
                .memory
                .group(upstream, &self.counted, |address| tls.get(address).cloned());
            groups.push(Arc::new(group));
        }
        Ok(groups)
    }

    fn listeners(
        &self,
        proxy: &Proxy,
        before: Option<&Snapshot>,
    ) -> Result<Vec<Arc<Listener>>, TierError> {
        let mut listeners = Vec::new();
        for listener in &proxy.listeners {
            let had = before.and_then(|before| before.listener_named(&listener.name));
            let tls = match &listener.tls {
                None => None,
                Some(tls) => {
                    let loaded = tls::server(tls, listener.http2);
                    Some(Arc::new(loaded.map_err(|source| TierError::Tls {
                        whose: format!("[[listener]] {:?}, tls", listener.name),
                        source,
                    })?))
                }
            };
            let open = had.map(|(_, had)| had.open().clone());
            listeners.push(Arc::new(Listener::new(
                listener.clone(),
                tls,
                self.counted.listeners.get(&listener.name),
                self.counted.connections.get(&listener.name),
                self.counted.refusals.get(&listener.name),
                open.unwrap_or_default(),
            )));
        }
        Ok(listeners)
    }

    /// Sockets for the addresses that have none.
    fn bind(&self, proxy: &Proxy) -> Result<Vec<(SocketAddr, Vec<TcpListener>)>, TierError> {
        let have = lock(&self.shared.sockets);
        let mut sockets = Vec::new();
        for listener in &proxy.listeners {
            for address in &listener.addresses {
                if have.contains_key(address) {
                    continue;
                }
                let bound =
                    listen::bind(*address, self.workers).map_err(|source| TierError::Bind {
                        listener: listener.name.clone(),
                        address: *address,
                        source,
                    })?;
                sockets.push((*address, bound));
            }
        }
        Ok(sockets)
    }

    /// Puts it into force.
    pub fn commit(&mut self, prepared: Prepared) {
        let Prepared {
            snapshot,
            router,
            sockets,
            log,
            proxy,
        } = prepared;
        {
            let mut have = lock(&self.shared.sockets);
            have.retain(|address, _| snapshot.addresses.contains_key(address));
            have.extend(sockets);
        }
        self.memory.retain(&snapshot.groups);
        let c = &self.counted;
        let named = |name: &str| proxy.listeners.iter().any(|l| l.name == name);
        c.listeners.retain(named);
        c.connections.retain(named);
        c.refusals.retain(named);
        c.routes
            .retain(|name| proxy.routes.iter().any(|r| r.name == name));
        let named = |name: &str| proxy.upstreams.iter().any(|u| u.name == name);
        c.upstreams.retain(named);
        c.upstream_stats.retain(named);
        c.servers.retain(|key| {
            let mut all = proxy.upstreams.iter();
            all.any(|u| {
                key.strip_prefix(u.name.as_str())
                    .and_then(|rest| rest.strip_prefix(' '))
                    .is_some_and(|name| u.servers.iter().any(|s| s.address.to_string() == name))
            })
        });
        let before = self.snapshot();
        let had = |group: &Arc<Group>| {
            let mut all = before.iter().flat_map(|before| before.groups.iter());
            all.any(|had| Arc::ptr_eq(had, group))
        };
        // Those that stay keep what was changed while they run.
        for group in snapshot.groups.iter().filter(|group| !had(group)) {
            group.take_weights();
        }
        if let Some(watcher) = &self.watcher {
            watcher.set(&snapshot);
        }
        *lock(&self.shared.current) = Some((snapshot, router));
        self.log = log;
        self.proxy = proxy;
        for seat in &self.seats {
            // Where there is no room it has been told already, and looks only then. One that is
            // gone is about to start anew, and looks by itself.
            let _ = seat.orders.try_send(Order::Look);
        }
    }

    fn start(&self) -> Result<Vec<Seat>, TierError> {
        let mut seats = Vec::new();
        for index in 0..self.workers {
            let (orders, inbox) = channel(ORDERS);
            let shared = self.shared.clone();
            let random = random();
            let (told, safe) = sync_channel(1);
            let thread = thread::Builder::new()
                .name(format!("proxy-{index}"))
                .spawn(move || sit(index, random, &shared, inbox, &told))
                .map_err(TierError::Thread)?;
            // It serves strangers, or does not start.
            let given_up = safe
                .recv()
                .unwrap_or_else(|_| Err(io::ErrorKind::BrokenPipe.into()));
            given_up.map_err(TierError::Privileges)?;
            seats.push(Seat {
                orders,
                thread: Some(thread),
            });
        }
        info!(workers = self.workers, "the proxy has started");
        Ok(seats)
    }

    /// What holds now.
    fn snapshot(&self) -> Option<Arc<Snapshot>> {
        let current = lock(&self.shared.current);
        current.as_ref().map(|(snapshot, _)| snapshot.clone())
    }

    /// For those who only look, or change what is no configuration.
    pub fn view(&self) -> View {
        View {
            shared: self.shared.clone(),
            workers: self.workers,
        }
    }

    /// What is in force.
    pub fn proxy(&self) -> &Proxy {
        &self.proxy
    }

    /// Takes no more connections, and lets those that there are end their requests.
    pub fn stop(&mut self) {
        for seat in &self.seats {
            // It takes its orders one after the other; whoever is gone needs none.
            while let Err(TrySendError::Full(_)) = seat.orders.try_send(Order::Stop) {
                thread::park_timeout(Duration::from_millis(5));
            }
        }
        lock(&self.shared.sockets).clear();
        self.watcher = None;
        for seat in &mut self.seats {
            if let Some(thread) = seat.thread.take()
                && thread.join().is_err()
            {
                error!("a worker of the proxy panicked at its end");
            }
        }
        self.seats.clear();
    }
}

impl Drop for Tier {
    fn drop(&mut self) {
        self.stop();
    }
}

/// A worker's thread: a worker that panics is followed by another one.
fn sit(
    index: usize,
    random: u64,
    shared: &Shared,
    mut orders: Receiver<Order>,
    told: &SyncSender<io::Result<()>>,
) {
    let take = |held: &mut dyn FnMut(SocketAddr) -> bool| {
        let (snapshot, router) = lock(&shared.current).clone()?;
        let mut sockets = Vec::new();
        for (address, all) in lock(&shared.sockets).iter() {
            if held(*address) {
                continue;
            }
            match all.get(index).map(TcpListener::try_clone) {
                Some(Ok(socket)) => sockets.push((*address, socket)),
                Some(Err(e)) => error!("{address}: {e}; worker {index} accepts none there"),
                None => {}
            }
        }
        Some(worker::Take {
            snapshot,
            router,
            sockets,
        })
    };
    let unprivileged = privileges::give_up();
    let is_safe = unprivileged.is_ok();
    // There is room for it.
    let _ = told.try_send(unprivileged);
    if !is_safe {
        return;
    }
    loop {
        match worker::run(index, random, &take, &mut orders, PATIENCE) {
            Ok(Ended::Stopped) => return,
            Ok(Ended::Panicked) => {}
            Err(e) => {
                error!("worker {index} of the proxy cannot start: {e}; it is tried again");
                thread::park_timeout(Duration::from_secs(1));
            }
        }
    }
}

/// Orders that wait for a worker.
const ORDERS: usize = 8;

/// How long requests may take to end when the proxy does.
const PATIENCE: Duration = Duration::from_secs(10);

/// Each connection takes a descriptor, and one more for that to its server: as many as the system
/// allows without asking for more.
fn raise_file_limit() {
    let mut limit = libc::rlimit {
        rlim_cur: 0,
        rlim_max: 0,
    };
    // SAFETY: reads into, and then from, a live value.
    unsafe {
        if libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut limit) == 0 {
            limit.rlim_cur = limit.rlim_max;
            libc::setrlimit(libc::RLIMIT_NOFILE, &raw const limit);
        }
    }
}

fn worker_count(proxy: &Proxy) -> usize {
    let cpus = || thread::available_parallelism().map_or(1, usize::from);
    proxy.workers.map_or_else(cpus, |n| n as usize)
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Random bits for what is no secret.
fn random() -> u64 {
    use std::hash::{BuildHasher as _, RandomState};
    RandomState::new().hash_one(0)
}
