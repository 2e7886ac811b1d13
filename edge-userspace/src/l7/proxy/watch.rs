//! The thread that follows what servers depend on: their health, the addresses of their names, and
//! files of certificates.

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    net::SocketAddr,
    sync::{Arc, Mutex, PoisonError, mpsc},
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use hickory_resolver::{Resolver, TokioResolver, net::NetError, proto::rr::RecordType};
use tokio::{
    sync::{Notify, watch},
    task::{AbortHandle, JoinSet},
};
use tracing::{error, info, warn};

use super::{
    certificates::Files,
    group::{Group, Server},
    privileges,
    snapshot::Snapshot,
    worker::Worker,
};
pub(super) use crate::health::runner::Checks;
use crate::{
    config::proxy::upstream::Address,
    health::{
        BackendKey, Health, Route, State, Target,
        runner::{CONCURRENT, Changes, runner},
    },
};

/// Bounds of how long the addresses of a name are taken for right.
const TTL: (Duration, Duration) = (Duration::from_secs(1), Duration::from_hours(1));
/// After a look-up that failed.
const RETRY: Duration = Duration::from_secs(5);
/// How often files are looked at.
const FILES_EVERY: Duration = Duration::from_secs(2);
/// How long a new configuration waits for names that nobody has looked up yet.
const PATIENCE: Duration = Duration::from_secs(2);

/// The thread. It ends when this is dropped.
pub(super) struct Watcher {
    checks: Checks,
    holds: Arc<Holds>,
    names: mpsc::SyncSender<Ask>,
    stop: watch::Sender<bool>,
    thread: Option<JoinHandle<()>>,
}

/// A name and a port, and its addresses.
type Found = (String, u16, Vec<SocketAddr>);
/// Names to look up, and whom to tell.
type Ask = (Vec<(String, u16)>, mpsc::SyncSender<Found>);

/// What holds, for the thread.
#[derive(Default)]
struct Holds {
    snapshot: Mutex<Option<Arc<Snapshot>>>,
    changed: Notify,
    /// A name has other addresses.
    resolved: Arc<Notify>,
}

impl Watcher {
    /// Starts it, with nothing to do.
    ///
    /// # Errors
    /// When there is no thread to be had, or the host's configuration of DNS cannot be read.
    pub(super) fn start() -> io::Result<Self> {
        let (run, checks, changes) = runner(CONCURRENT);
        let (stop, stopped) = watch::channel(false);
        let holds = Arc::<Holds>::default();
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?;
        let (names, asked) = mpsc::sync_channel::<Ask>(1);
        let follow = {
            let holds = holds.clone();
            let checks = checks.clone();
            move || {
                if let Err(e) = privileges::give_up_but_files() {
                    warn!("the thread that follows servers keeps its capabilities: {e}");
                }
                runtime.block_on(async move {
                    let checking = tokio::spawn(run.run(stopped.clone()));
                    follow(&holds, (&checks, changes), asked, stopped).await;
                    if checking.await.is_err() {
                        error!("the health checks of upstreams have panicked");
                    }
                });
            }
        };
        let thread = thread::Builder::new()
            .name("proxy-watch".into())
            .spawn(follow)?;
        Ok(Self {
            checks,
            holds,
            names,
            stop,
            thread: Some(thread),
        })
    }

    /// Follows what this holds from now on.
    pub(super) fn set(&self, snapshot: &Arc<Snapshot>) {
        let held = &self.holds.snapshot;
        *held.lock().unwrap_or_else(PoisonError::into_inner) = Some(snapshot.clone());
        self.checks.set(targets(snapshot));
        // Who is checked no longer is taken for healthy.
        for group in snapshot.groups.iter().filter(|g| g.config.health.is_none()) {
            for position in 0..group.servers.len() {
                apply(group, position, Health::Unknown);
            }
        }
        for (group, position, state) in states(&self.checks, snapshot) {
            apply(group, position, state.health());
        }
        self.holds.changed.notify_one();
    }

    /// How servers are that are checked.
    pub(super) const fn checks(&self) -> &Checks {
        &self.checks
    }

    /// Looks up the names of servers of which nobody knows an address, for a short time.
    pub(super) fn look_up(&self, groups: &[Arc<Group>]) {
        let all = groups.iter().flat_map(|group| group.servers.iter());
        let unknown: Vec<&Server> = all
            .filter(|server| {
                matches!(server.address, Address::Name(..)) && server.resolved().is_empty()
            })
            .collect();
        let asked: BTreeSet<&Address> = unknown.iter().map(|server| &server.address).collect();
        let asked: Vec<(String, u16)> = asked
            .into_iter()
            .filter_map(|address| match address {
                Address::Name(name, port) => Some((name.clone(), *port)),
                Address::Ip(_) | Address::Unix(_) => None,
            })
            .collect();
        if asked.is_empty() {
            return;
        }
        let (answers, answered) = mpsc::sync_channel(asked.len());
        let wanted = asked.len();
        // There is room: whoever asked before has waited for the answer, or given up long ago.
        if self.names.try_send((asked, answers)).is_err() {
            warn!("names of servers are looked up later: the last ones still are");
        }
        self.holds.changed.notify_one();
        let until = Instant::now() + PATIENCE;
        for _ in 0..wanted {
            let left = until.saturating_duration_since(Instant::now());
            let Ok((name, port, addresses)) = answered.recv_timeout(left) else {
                break;
            };
            if addresses.is_empty() {
                continue;
            }
            let found = Address::Name(name, port);
            for server in unknown.iter().filter(|server| server.address == found) {
                server.set_resolved(&addresses);
            }
        }
        for server in unknown.iter().filter(|server| server.resolved().is_empty()) {
            warn!(
                "{}: no address is known yet; requests go elsewhere until there is one",
                server.name
            );
        }
    }
}

impl Drop for Watcher {
    fn drop(&mut self) {
        self.stop.send_replace(true);
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            error!("the thread that follows servers panicked");
        }
    }
}

/// Whom to check.
fn targets(snapshot: &Snapshot) -> Vec<Target> {
    let mut targets = Vec::new();
    for group in &snapshot.groups {
        let Some(check) = &group.config.health else {
            continue;
        };
        let check = Arc::new(check.clone());
        for server in &group.servers {
            let address = match &server.address {
                Address::Ip(address) => Some(*address),
                // The one that is asked first.
                Address::Name(..) => server.resolved().first().map(|(address, _)| *address),
                // Validation has none with checks.
                Address::Unix(_) => None,
            };
            if let Some(mut address) = address {
                address.set_port(check.port.unwrap_or_else(|| address.port()));
                targets.push(Target {
                    key: key(group, server),
                    address,
                    check: check.clone(),
                    route: Route {
                        // Another port is somebody else's.
                        tls: server.check_tls.clone().filter(|_| check.port.is_none()),
                        ..Route::default()
                    },
                });
            }
        }
    }
    targets
}

/// Under which name a server is checked.
pub(super) fn key(group: &Group, server: &Server) -> BackendKey {
    BackendKey {
        service: group.config.name.as_str().into(),
        backend: (&*server.name).into(),
    }
}

/// What checks say of the servers that are checked.
fn states<'a>(
    checks: &'a Checks,
    snapshot: &'a Snapshot,
) -> impl Iterator<Item = (&'a Group, usize, State)> {
    let groups = snapshot.groups.iter().map(|group| &**group);
    let groups = groups.filter(|group| group.config.health.is_some());
    groups.flat_map(move |group| {
        let servers = group.servers.iter().enumerate();
        servers.filter_map(move |(position, server)| {
            let state = checks.state(&key(group, server))?;
            Some((group, position, state))
        })
    })
}

/// One of which nothing is known yet is used: it was put into the file to be used.
fn apply(group: &Group, position: usize, health: Health) {
    let up = health != Health::Down;
    if group.pick.server(position).is_some_and(|s| s.is_up() != up) {
        group.pick.set_up(position, up, Worker::now());
    }
}

async fn follow(
    holds: &Holds,
    (checks, mut changes): (&Checks, Changes),
    asked: mpsc::Receiver<Ask>,
    mut stopped: watch::Receiver<bool>,
) {
    let resolver = Resolver::builder_tokio().and_then(|mut builder| {
        let options = builder.options_mut();
        // Who asks anew is to get a new answer.
        options.positive_max_ttl = Some(TTL.1);
        options.negative_max_ttl = Some(TTL.0);
        builder.build()
    });
    let resolver = match resolver {
        Ok(resolver) => Some(Arc::new(resolver)),
        Err(e) => {
            error!("the host's configuration of DNS: {e}; names of servers are not looked up");
            None
        }
    };
    let mut names: BTreeMap<Address, AbortHandle> = BTreeMap::new();
    let mut tasks = JoinSet::new();
    let mut files = Files::default();
    let mut look = tokio::time::interval(FILES_EVERY);
    look.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            _ = stopped.wait_for(|stop| *stop) => break,
            changed = changes.next() => {
                let Some(changed) = changed else {
                    break;
                };
                if let Some(snapshot) = held(holds) {
                    for (key, transition) in changed {
                        changed_health(&snapshot, &key, transition.new);
                    }
                }
            }
            () = holds.changed.notified() => {
                while let Ok((asked, answers)) = asked.try_recv() {
                    for (name, port) in asked {
                        let (resolver, answers) = (resolver.clone(), answers.clone());
                        tasks.spawn(async move {
                            let found = match &resolver {
                                Some(resolver) => addresses(resolver, &name, port, &[]).await.ok(),
                                None => None,
                            };
                            let found = found.map(|(found, _)| found).unwrap_or_default();
                            // There is room for each.
                            let _ = answers.try_send((name, port, found));
                        });
                    }
                }
                if let (Some(snapshot), Some(resolver)) = (held(holds), &resolver) {
                    let resolved = &holds.resolved;
                    follow_names(&snapshot, resolver, resolved, &mut names, &mut tasks);
                }
            }
            () = holds.resolved.notified() => {
                if let Some(snapshot) = held(holds) {
                    checks.set(targets(&snapshot));
                }
            }
            _ = look.tick() => {
                if let Some(snapshot) = held(holds) {
                    files.look(&snapshot.listeners);
                }
            }
            Some(_) = tasks.join_next() => {}
        }
    }
    tasks.shutdown().await;
}

fn held(holds: &Holds) -> Option<Arc<Snapshot>> {
    let held = holds.snapshot.lock();
    held.unwrap_or_else(PoisonError::into_inner).clone()
}

fn changed_health(snapshot: &Snapshot, key: &BackendKey, health: Health) {
    for group in &snapshot.groups {
        if group.config.name != *key.service {
            continue;
        }
        for (position, server) in group.servers.iter().enumerate() {
            if *server.name == *key.backend {
                apply(group, position, health);
            }
        }
    }
}

/// Looks names up that are new, and no longer those that are gone.
fn follow_names(
    snapshot: &Arc<Snapshot>,
    resolver: &Arc<TokioResolver>,
    resolved: &Arc<Notify>,
    names: &mut BTreeMap<Address, AbortHandle>,
    tasks: &mut JoinSet<()>,
) {
    // Servers of before are not those of now, even of the same name.
    for task in std::mem::take(names).into_values() {
        task.abort();
    }
    let mut wanted: BTreeMap<Address, Vec<(usize, usize)>> = BTreeMap::new();
    for (at, group) in snapshot.groups.iter().enumerate() {
        for (position, server) in group.servers.iter().enumerate() {
            if matches!(server.address, Address::Name(..)) {
                let places = wanted.entry(server.address.clone()).or_default();
                places.push((at, position));
            }
        }
    }
    for (address, places) in wanted {
        let (snapshot, resolver) = (snapshot.clone(), resolver.clone());
        let resolved = resolved.clone();
        let Address::Name(name, port) = address.clone() else {
            continue;
        };
        let task = tasks.spawn(async move {
            let servers = places.iter().filter_map(|(group, server)| {
                let group = snapshot.groups.get(*group)?;
                group.servers.get(*server)
            });
            // What a configuration before knew of them.
            let known = servers.flat_map(|server| server.resolved().to_vec());
            let known = known.map(|(address, _)| address).collect();
            follow_name(&name, port, &resolver, known, |found| {
                for (group, server) in &places {
                    let group = snapshot.groups.get(*group);
                    if let Some(server) = group.and_then(|group| group.servers.get(*server)) {
                        server.set_resolved(found);
                    }
                }
                resolved.notify_one();
            })
            .await;
        });
        names.insert(address, task);
    }
}

/// Looks a name up again and again, each time when the answer is no longer taken for right. When
/// it cannot be looked up, the addresses of before stay.
async fn follow_name(
    name: &str,
    port: u16,
    resolver: &TokioResolver,
    known: Vec<SocketAddr>,
    tell: impl Fn(&[SocketAddr]),
) {
    let mut before = known;
    let (mut is_first, mut has_failed) = (true, false);
    loop {
        let wait = match addresses(resolver, name, port, &before).await {
            Ok((found, wait)) => {
                // Of those that are new, nobody may know it yet.
                if std::mem::take(&mut is_first) || found != before {
                    info!("{name}: {} addresses", found.len());
                    tell(&found);
                    before = found;
                }
                has_failed = false;
                wait
            }
            Err(e) => {
                if !has_failed {
                    warn!("{name}: {e}; the addresses of before are used");
                }
                has_failed = true;
                RETRY
            }
        };
        tokio::time::sleep(wait).await;
    }
}

/// The addresses of a name, in order, and how long they are right. Those of `before` stay of a
/// family (IPv4, IPv6) that cannot be looked up while the other one can.
async fn addresses(
    resolver: &TokioResolver,
    name: &str,
    port: u16,
    before: &[SocketAddr],
) -> Result<(Vec<SocketAddr>, Duration), NetError> {
    // The dot says that it is whole: no domain of the host is tried behind it.
    let name = format!("{name}.");
    let (v4, v6) = tokio::join!(
        resolver.lookup(name.clone(), RecordType::A),
        resolver.lookup(name, RecordType::AAAA)
    );
    let mut failed = None;
    let (mut all, mut kept) = (Vec::<SocketAddr>::new(), Vec::<SocketAddr>::new());
    let (least, mut wait) = TTL;
    for (found, is_v4) in [(v4, true), (v6, false)] {
        match found {
            Ok(found) => {
                let addresses = found.answers().iter();
                let addresses = addresses.filter_map(|record| record.data.ip_addr());
                all.extend(addresses.map(|ip| SocketAddr::from((ip, port))));
                let left = found.valid_until();
                wait = wait.min(left.saturating_duration_since(Instant::now()));
            }
            Err(e) if e.is_no_records_found() => drop(failed.get_or_insert(e)),
            Err(e) => {
                kept.extend(before.iter().filter(|had| had.is_ipv4() == is_v4));
                wait = wait.min(RETRY);
                failed = Some(e);
            }
        }
    }
    match failed {
        Some(e) if all.is_empty() => Err(e),
        _ => {
            all.extend(kept);
            all.sort_unstable();
            all.dedup();
            Ok((all, wait.max(least)))
        }
    }
}
