//! The tier as the daemon sees it: workers, and what they are to do.

use std::{
    collections::HashMap,
    io,
    net::SocketAddr,
    sync::{
        Arc, Mutex, PoisonError,
        mpsc::{SyncSender, sync_channel},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use edge_common::hash::Seed;
use tokio::sync::mpsc::{Receiver, Sender, channel, error::TrySendError};
use tracing::{error, info, warn};

use super::{
    descriptors,
    explain::{self, QuestionError},
    group::{Counted, Group, Memory, Places, nanoseconds},
    listen::{Door, Given},
    log_writer::LogWriter,
    privileges,
    snapshot::{Ban, Judge, Listener, Route, Snapshot},
    spans::{Counts, Exporter},
    tell,
    tls::{self, TlsError, Towards},
    watch::{Checks, Watcher},
    worker::{self, Ended, Entrance, Order, Worker},
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
    /// The thread that tells of requests does not start.
    #[error("proxy.traces: cannot start the thread that tells the collector: {0}")]
    Spans(io::Error),
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
    /// Of each address, the sockets of the workers. They stay open here, so that a worker that
    /// starts anew, or another process, finds the connections that came meanwhile.
    sockets: Mutex<HashMap<SocketAddr, Door>>,
    /// What another process has opened and no listener wants: until the first configuration all,
    /// and then what a service manager keeps, for a later one.
    spare: Mutex<HashMap<SocketAddr, Door>>,
    /// What checks say of servers.
    checks: Mutex<Option<Checks>>,
    spans: Arc<Counts>,
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
    exporter: Option<Exporter>,
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

    /// The sockets that clients connect to, or could after another reload, for another process.
    ///
    /// # Errors
    /// When there are no descriptors left.
    pub fn sockets(&self) -> io::Result<Vec<Given>> {
        let (sockets, spare) = (lock(&self.shared.sockets), lock(&self.shared.spare));
        let doors = sockets.values().chain(spare.values());
        let given: io::Result<Vec<Vec<Given>>> = doors.map(Door::give).collect();
        Ok(given?.into_iter().flatten().collect())
    }

    /// Connections of clients that are open.
    pub fn connections(&self) -> u64 {
        let snapshot = self.snapshot();
        let listeners = snapshot
            .iter()
            .flat_map(|snapshot| snapshot.listeners.iter());
        listeners.map(|listener| u64::from(listener.count())).sum()
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
            .then(|| tell::status(&snapshot, self.workers, checks.as_ref(), &self.shared.spans))
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
    sockets: Vec<(SocketAddr, Door)>,
    log: Option<(AccessLog, LogWriter)>,
    /// If it is not the one that there is.
    exporter: Option<Exporter>,
    /// What is known of servers then.
    memory: Memory,
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
                spare: Mutex::new(HashMap::new()),
                checks: Mutex::new(None),
                spans: Arc::default(),
            }),
            seats: Vec::new(),
            watcher: None,
            log: None,
            exporter: None,
            judge: Arc::new(Judge::new(ban)),
            proxy: Arc::default(),
        }
    }

    /// Takes sockets that another process has opened, for listeners of the first configuration.
    pub fn take(&mut self, given: Vec<Given>) {
        let mut spare = lock(&self.shared.spare);
        for given in given {
            match given.socket.local_addr() {
                Ok(address) => spare.entry(address).or_default().push(given),
                Err(e) => warn!("a socket that was handed over is none: {e}"),
            }
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
        let sockets = self.bind(proxy)?;
        let addresses = self.addresses(proxy, &sockets);
        let before = self.snapshot();
        let mut memory = self.memory.clone();
        let groups = self.groups(proxy, before.as_deref(), &mut memory)?;
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
        let (mut exporter, mut traces) = (None, None);
        if let Some(wanted) = proxy
            .traces
            .as_ref()
            .filter(|_| !proxy.listeners.is_empty())
        {
            let had = self.exporter.as_ref().filter(|had| had.is_of(wanted));
            let queue = match had {
                Some(had) => had.queue.clone(),
                None => {
                    let new = Exporter::start(wanted, self.shared.spans.clone());
                    let new = exporter.insert(new.map_err(TierError::Spans)?);
                    new.queue.clone()
                }
            };
            traces = Some((queue, wanted.sample_permille));
        }
        let routes = proxy.routes.iter().map(|route| Route {
            name: route.name.clone(),
            requests: self.counted.routes.get(&route.name),
            mirrored: (route.mirror.as_ref()).map(|_| self.counted.mirrored.get(&route.name)),
            places: route.concurrency.as_ref().map(|wanted| {
                let mut before = before.iter().flat_map(|before| before.routes.iter());
                let had = before.find(|had| had.name == route.name);
                let had = had.and_then(|had| had.places.clone());
                // Who is under way counts on.
                had.filter(|had| had.is_of(wanted))
                    .unwrap_or_else(|| Arc::new(Places::new(wanted)))
            }),
        });
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
            traces,
            bans: proxy.bans.map(|bans| {
                let rule = Rule {
                    offences: bans.offences,
                    window: nanoseconds(bans.window),
                };
                (self.judge.clone(), rule, bans.ttl)
            }),
            addresses,
        };
        if !proxy.listeners.is_empty() {
            descriptors::raise_limit(proxy);
        }
        if self.seats.is_empty() && !proxy.listeners.is_empty() {
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
            exporter,
            memory,
            proxy: config,
        })
    }

    fn groups(
        &self,
        proxy: &Proxy,
        before: Option<&Snapshot>,
        memory: &mut Memory,
    ) -> Result<Vec<Arc<Group>>, TierError> {
        let mut groups = Vec::new();
        let held = |towards: &Option<Towards>| towards.as_ref().map(|towards| towards.held);
        for upstream in &proxy.upstreams {
            let of = |source| TierError::Tls {
                whose: format!("[[upstream]] {:?}, tls", upstream.name),
                source,
            };
            let towards = upstream.tls.as_ref();
            let towards = towards.map(|tls| Towards::load(tls, upstream.protocol));
            let mut towards = towards.transpose().map_err(of)?;
            let mut all = before.iter().flat_map(|before| before.groups.iter());
            let before = all.find(|group| {
                let had = (&group.config.name, &group.config.tls, group.config.protocol);
                had == (&upstream.name, &upstream.tls, upstream.protocol)
                    // Files may have changed where their names have not.
                    && held(&group.towards) == held(&towards)
            });
            if let Some(before) = before {
                if before.config == *upstream {
                    groups.push(before.clone());
                    continue;
                }
                // Sessions are resumed as before, and checks go on.
                towards.clone_from(&before.towards);
            }
            let group = memory.group(upstream, &self.counted, towards);
            groups.push(Arc::new(group.map_err(of)?));
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
    fn bind(&self, proxy: &Proxy) -> Result<Vec<(SocketAddr, Door)>, TierError> {
        let (have, spare) = (lock(&self.shared.sockets), lock(&self.shared.spare));
        let workers = self.workers;
        let mut sockets: Vec<(SocketAddr, Door)> = Vec::new();
        let refused = |listener: &str, address| {
            let listener = listener.to_owned();
            move |source| TierError::Bind {
                listener,
                address,
                source,
            }
        };
        for listener in &proxy.listeners {
            for &address in &listener.addresses {
                if have.contains_key(&address) {
                    continue;
                }
                let door = match spare.get(&address) {
                    None => Door::bind(address, workers),
                    Some(door) => door.fitted(address, workers),
                };
                sockets.push((address, door.map_err(refused(&listener.name, address))?));
            }
        }
        for (&address, door) in spare.iter() {
            let is_named = |name: &&String| proxy.listeners.iter().any(|l| l.name == **name);
            let is_new = sockets.iter().all(|(new, _)| *new != address);
            if let Some(name) = door.name.as_ref().filter(is_named).filter(|_| is_new) {
                let fitted = door.fitted(address, workers);
                sockets.push((address, fitted.map_err(refused(name, address))?));
            }
        }
        Ok(sockets)
    }

    /// Lets clients connect to those that are new, and to no others than are wanted.
    fn open(&self, sockets: Vec<(SocketAddr, Door)>, wanted: &HashMap<SocketAddr, usize>) {
        let (mut have, mut spare) = (lock(&self.shared.sockets), lock(&self.shared.spare));
        // Of those, it was told already.
        let mut told: Vec<SocketAddr> = Vec::new();
        if self.snapshot().is_some() {
            told.extend(spare.keys());
        }
        let gone = have.extract_if(|address, _| !wanted.contains_key(address));
        spare.extend(gone.filter(|(_, door)| door.is_kept));
        for (address, mut door) in sockets {
            spare.remove(&address);
            if door.listen(address) {
                have.insert(address, door);
            }
        }
        for (address, door) in spare.iter().filter(|(address, _)| !told.contains(address)) {
            warn!(
                "no [[listener]] has the address {address} of a socket that was handed over, \
                 nor its name{}: it is not used",
                { door.name.iter() }
                    .map(|name| format!(" {name:?}"))
                    .collect::<String>()
            );
        }
        spare.retain(|_, door| door.is_kept);
    }

    /// To which listener connections to an address belong, by its position: to the one that has
    /// it, or else the one that the socket is named after.
    fn addresses(&self, proxy: &Proxy, new: &[(SocketAddr, Door)]) -> HashMap<SocketAddr, usize> {
        let mut addresses = HashMap::new();
        for (at, listener) in proxy.listeners.iter().enumerate() {
            addresses.extend(listener.addresses.iter().map(|address| (*address, at)));
        }
        let have = lock(&self.shared.sockets);
        let new = new.iter().map(|(address, door)| (address, door));
        for (address, door) in have.iter().chain(new) {
            let Some(name) = &door.name else { continue };
            if let Some(at) = proxy.listeners.iter().position(|l| l.name == *name) {
                addresses.entry(*address).or_insert(at);
            }
        }
        addresses
    }

    /// Puts it into force.
    pub fn commit(&mut self, prepared: Prepared) {
        let Prepared {
            snapshot,
            router,
            sockets,
            log,
            exporter,
            memory,
            proxy,
        } = prepared;
        self.open(sockets, &snapshot.addresses);
        self.memory = memory;
        self.memory.retain(&snapshot.groups);
        self.counted.retain(&proxy);
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
        let is_traced = snapshot.traces.is_some();
        *lock(&self.shared.current) = Some((snapshot, router));
        self.log = log;
        // One that is gone tells what it has, for as long as that may take, and ends by itself.
        if exporter.is_some() || !is_traced {
            self.exporter = exporter;
        }
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
            let (random, workers) = (worker::random(), self.workers);
            let (told, safe) = sync_channel(1);
            let thread = thread::Builder::new()
                .name(format!("proxy-{index}"))
                .spawn(move || sit((index, workers), random, &shared, inbox, &told))
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
        self.tell(Order::Stop);
        self.join();
    }

    /// The same when another process accepts in our place: requests and connections that became
    /// something else may take so long to end, or until `is_over` says that it is enough.
    pub fn drain(&mut self, patience: Duration, mut is_over: impl FnMut() -> bool) {
        let until = Instant::now() + patience;
        self.tell(Order::Drain(patience));
        let threads = || self.seats.iter().filter_map(|seat| seat.thread.as_ref());
        while !threads().all(JoinHandle::is_finished) {
            if is_over() || Instant::now() > until {
                self.tell(Order::Stop);
                break;
            }
            thread::park_timeout(Duration::from_millis(20));
        }
        self.join();
    }

    fn tell(&self, order: Order) {
        for seat in &self.seats {
            // It takes its orders one after the other; whoever is gone needs none.
            while let Err(TrySendError::Full(_)) = seat.orders.try_send(order) {
                thread::park_timeout(Duration::from_millis(5));
            }
        }
        // Those of the workers are closed when nobody waits in them.
        lock(&self.shared.sockets).clear();
        lock(&self.shared.spare).clear();
    }

    fn join(&mut self) {
        self.watcher = None;
        for seat in &mut self.seats {
            if let Some(thread) = seat.thread.take()
                && thread.join().is_err()
            {
                error!("a worker of the proxy panicked at its end");
            }
        }
        self.seats.clear();
        if let Some(exporter) = self.exporter.take() {
            exporter.finish();
        }
    }
}

impl Drop for Tier {
    fn drop(&mut self) {
        self.stop();
    }
}

/// A worker's thread: a worker that panics is followed by another one.
fn sit(
    (index, workers): (usize, usize),
    random: u64,
    shared: &Shared,
    mut orders: Receiver<Order>,
    told: &SyncSender<io::Result<()>>,
) {
    let take = |held: &mut dyn FnMut(SocketAddr) -> bool| {
        let (snapshot, router) = lock(&shared.current).clone()?;
        let mut sockets = Vec::new();
        for (address, door) in lock(&shared.sockets).iter() {
            if held(*address) {
                continue;
            }
            for socket in door.of(index, workers) {
                match socket.try_clone() {
                    Ok(socket) => sockets.push(Entrance {
                        address: *address,
                        socket,
                        is_kept: door.is_kept,
                    }),
                    Err(e) => error!("{address}: {e}; worker {index} accepts none there"),
                }
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

fn worker_count(proxy: &Proxy) -> usize {
    let cpus = || thread::available_parallelism().map_or(1, usize::from);
    proxy.workers.map_or_else(cpus, |n| n as usize)
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
