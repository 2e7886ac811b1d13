//! The tier as the daemon sees it: workers, and what they are to do.

use std::{
    collections::{HashMap, hash_map::Entry},
    io,
    net::SocketAddr,
    sync::Arc,
    thread,
    time::Duration,
};

use edge_common::hash::Seed;
use tracing::warn;

use super::{
    certificates::Loaded,
    crew::{Crew, Seat},
    descriptors,
    group::{Counted, Group, Memory, Places, nanoseconds},
    keys::Keys,
    listen::{Door, Given},
    log_writer::LogWriter,
    snapshot::{Ban, Judge, Listener, Route, Snapshot},
    spans::{Collector, Exporter},
    tls::{TlsError, Towards},
    view::{Held, Said, Shared, View, lock},
    watch::Watcher,
    worker::{Order, Worker},
};
use crate::{
    config::proxy::{AccessLog, LogFormat, Proxy},
    l7::{
        access_log::Format,
        bans::Rule,
        route::{CompileError, Router},
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
    /// The headers for the collector cannot be read.
    #[error("proxy.traces.headers_file = {path:?}: {why}")]
    Headers {
        /// The file.
        path: std::path::PathBuf,
        /// What is wrong, and the remedy; nothing of what is in it.
        why: String,
    },
    /// Routes cannot be compiled.
    #[error(transparent)]
    Routes(#[from] CompileError),
    /// A worker cannot give up its privileges.
    #[error(
        "a worker of the proxy cannot give up its capabilities: {0}; a filter of system calls has to \
         allow capset, see config/edge.service"
    )]
    Privileges(io::Error),
    /// The thread that tells of requests does not start.
    #[error("proxy.traces: what tells the collector does not start: {0}")]
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

/// The proxy.
pub struct Tier {
    memory: Memory,
    counted: Counted,
    shared: Arc<Shared>,
    crew: Crew,
    watcher: Option<Watcher>,
    log: Option<(AccessLog, LogWriter)>,
    exporter: Option<Exporter>,
    judge: Arc<Judge>,
    proxy: Arc<Proxy>,
    /// What another process was told, for the first configuration.
    said: Vec<Said>,
    /// By which the next configuration has servers chosen.
    keys: Keys,
}

/// What is ready to be put into force.
pub struct Prepared {
    snapshot: Arc<Snapshot>,
    router: Router,
    /// More sockets for addresses, and those of new ones.
    sockets: Vec<(SocketAddr, Door)>,
    /// Workers that there are not yet, and how many there are then.
    seats: Vec<Seat>,
    workers: usize,
    log: Option<(AccessLog, LogWriter)>,
    /// If it is not the one that there is.
    exporter: Option<Exporter>,
    /// What is known of servers then.
    memory: Memory,
    /// What was said of servers that are chosen by other keys then.
    said: Vec<Said>,
    proxy: Arc<Proxy>,
}

impl Tier {
    /// Without workers, until a configuration with listeners is put into force. `secret` signs
    /// session cookies; `ban` is told of sources that offend too often, by any worker, and must
    /// not wait; when it says no, it is told again with the next offence.
    pub fn new(
        seed: Seed,
        secret: [u8; 32],
        ban: impl Fn(Ban) -> bool + Send + Sync + 'static,
    ) -> Self {
        let keys = Keys {
            seed,
            cookies: secret,
        };
        Self {
            memory: Memory::new(keys.clone()),
            keys,
            counted: Counted::default(),
            shared: Arc::default(),
            crew: Crew::default(),
            watcher: None,
            log: None,
            exporter: None,
            judge: Arc::new(Judge::new(ban)),
            proxy: Arc::default(),
            said: Vec::new(),
        }
    }

    /// From the next configuration on, servers are chosen and session cookies signed by these keys.
    /// With others than before, requests that were hashed or have a cookie find other servers.
    pub fn set_keys(&mut self, keys: Keys) {
        self.keys = keys;
    }

    /// Counts a ban that was put into force, whichever process has ordered it.
    pub fn count_ban(&self) {
        self.judge.count();
    }

    /// Takes what another process leaves, for the first configuration: sockets that it has opened,
    /// for listeners, and what it was told of servers.
    pub fn take(&mut self, given: Vec<Given>, said: Vec<Said>) {
        self.said = said;
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
        // Without listeners those that there are have nothing to do.
        let workers = match &proxy.listeners[..] {
            [] => self.crew.at_work(),
            _ => self.workers(proxy),
        };
        let router = Router::new(proxy)?;
        let sockets = self.bind(proxy, workers)?;
        let addresses = self.addresses(proxy, &sockets);
        let before = self.snapshot();
        let mut memory = self.memory.clone();
        memory.set_keys(&self.keys);
        let groups = self.groups(proxy, before.as_deref(), &mut memory)?;
        let had = before.iter().flat_map(|before| before.groups.iter());
        let had = had.filter(|group| !memory.has_keys_of(group));
        let said = had.flat_map(|group| group.said()).collect();
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
            let collector = Collector::load(wanted)?;
            let had = self.exporter.as_ref().filter(|had| had.is_of(&collector));
            let queue = match had {
                Some(had) => had.queue.clone(),
                None => {
                    let new = Exporter::start(collector, self.shared.spans.clone());
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
                let had = had.and_then(|had| had.places.as_deref());
                Arc::new(Places::new(wanted, had))
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
        let seats = self.crew.more(workers, &self.shared)?;
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
            seats,
            workers,
            log,
            exporter,
            memory,
            said,
            proxy: config,
        })
    }

    /// How many workers a configuration wants.
    fn workers(&self, proxy: &Proxy) -> usize {
        match (proxy.workers, self.proxy.workers) {
            (Some(wanted), _) => wanted as usize,
            // Nobody has asked for fewer when the CPUs that edge may use have become fewer, and
            // those that are one too many would cut tunnels.
            (None, None) if self.crew.at_work() > 0 => self.crew.at_work(),
            (None, _) => thread::available_parallelism().map_or(1, usize::from),
        }
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
            let before = before.and_then(|before| before.group_named(&upstream.name));
            let same = before.filter(|group| {
                (&group.config.tls, group.config.protocol) == (&upstream.tls, upstream.protocol)
                    // Files may have changed where their names have not.
                    && held(&group.towards) == held(&towards)
            });
            if let Some(same) = same {
                if same.config == *upstream && memory.has_keys_of(same) {
                    groups.push(same.clone());
                    continue;
                }
                // Sessions are resumed as before, and checks go on.
                towards.clone_from(&same.towards);
            }
            let before = before.map(|before| &**before);
            let group = memory.group(upstream, &self.counted, towards, before);
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
                    let loaded = Loaded::load(tls, listener.http2);
                    Some(loaded.map_err(|source| TierError::Tls {
                        whose: format!("[[listener]] {:?}, tls", listener.name),
                        source,
                    })?)
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

    /// Sockets for the addresses that have none, or less than there are workers.
    fn bind(&self, proxy: &Proxy, workers: usize) -> Result<Vec<(SocketAddr, Door)>, TierError> {
        let (have, spare) = (lock(&self.shared.sockets), lock(&self.shared.spare));
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
                let door = match (have.get(&address), spare.get(&address)) {
                    (Some(door), _) => door.missing(address, workers),
                    (None, Some(door)) => door.fitted(address, workers),
                    (None, None) => Door::bind(address, workers),
                };
                sockets.push((address, door.map_err(refused(&listener.name, address))?));
            }
        }
        let is_named = |name: &&String| proxy.listeners.iter().any(|l| l.name == **name);
        for (&address, door) in spare.iter() {
            let is_new = sockets.iter().all(|(new, _)| *new != address);
            if let Some(name) = door.name.as_ref().filter(is_named).filter(|_| is_new) {
                let fitted = door.fitted(address, workers);
                sockets.push((address, fitted.map_err(refused(name, address))?));
            }
        }
        Ok(sockets)
    }

    /// Lets clients connect to those that are new, and to no others than are wanted.
    fn open(
        &self,
        sockets: Vec<(SocketAddr, Door)>,
        wanted: &HashMap<SocketAddr, usize>,
        is_first: bool,
    ) {
        let (mut have, mut spare) = (lock(&self.shared.sockets), lock(&self.shared.spare));
        // Of those, it was told already.
        let mut told: Vec<SocketAddr> = Vec::new();
        if !is_first {
            told.extend(spare.keys());
        }
        let gone = have.extract_if(|address, _| !wanted.contains_key(address));
        spare.extend(gone.filter(|(_, door)| door.is_kept));
        for (address, mut door) in sockets {
            spare.remove(&address);
            if !door.listen(address) {
                continue;
            }
            match have.entry(address) {
                Entry::Occupied(mut had) => had.get_mut().join(door),
                Entry::Vacant(free) => drop(free.insert(door)),
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
            seats,
            workers,
            log,
            exporter,
            memory,
            said,
            proxy,
        } = prepared;
        self.said.extend(said);
        self.memory = memory;
        self.memory.retain(&snapshot.groups);
        self.counted.retain(&proxy);
        let before = self.snapshot();
        let now = Worker::now();
        for group in &snapshot.groups {
            let had = before.as_deref();
            let had = had.and_then(|before| before.group_named(&group.config.name));
            // Those that stay keep what was changed while they run.
            if had.is_none_or(|had| !Arc::ptr_eq(had, group)) {
                group.take_over(had.map(|had| &**had), now);
            }
        }
        for places in snapshot.routes.iter().flat_map(|route| &route.places) {
            places.resize();
        }
        for said in std::mem::take(&mut self.said) {
            for group in &snapshot.groups {
                group.recall(&said, now);
            }
        }
        if let Some(watcher) = &self.watcher {
            watcher.set(&snapshot);
        }
        let is_traced = snapshot.traces.is_some();
        self.crew.change(seats, workers);
        // Workers see sockets and what holds for them together.
        let mut current = lock(&self.shared.current);
        self.open(sockets, &snapshot.addresses, current.is_none());
        *current = Some(Held {
            snapshot,
            router,
            seats: self.crew.numbers(),
        });
        drop(current);
        self.log = log;
        // One that is gone tells what it has, for as long as that may take, and ends by itself.
        if exporter.is_some() || !is_traced {
            self.exporter = exporter;
        }
        self.proxy = proxy;
        self.crew.look();
    }

    /// What holds now.
    fn snapshot(&self) -> Option<Arc<Snapshot>> {
        self.shared.snapshot()
    }

    /// For those who only look, or change what is no configuration.
    pub fn view(&self) -> View {
        View(self.shared.clone())
    }

    /// What is in force.
    pub fn proxy(&self) -> &Proxy {
        &self.proxy
    }

    /// Takes no more connections, and lets those that there are end their requests.
    pub fn stop(&mut self) {
        self.end(&Order::Stop);
        self.join();
    }

    /// The same when another process accepts in our place, but for those addresses: requests and
    /// connections that became something else may take so long to end, or until `is_over` says that
    /// it is enough.
    pub fn drain(
        &mut self,
        patience: Duration,
        unwanted: &[SocketAddr],
        is_over: impl FnMut() -> bool,
    ) {
        self.end(&Order::Drain(patience, unwanted.into()));
        if !self.crew.has_ended(patience, is_over) {
            self.crew.tell(&Order::Stop);
        }
        self.join();
    }

    fn end(&self, order: &Order) {
        self.crew.tell(order);
        self.shared.close();
    }

    fn join(&mut self) {
        self.watcher = None;
        self.crew.join();
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
