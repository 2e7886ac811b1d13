//! What the daemon knows of itself, published by the engine and read by
//! everybody else without asking the engine, which may be busy.

use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex, MutexGuard, OnceLock, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
        mpsc::{SyncSender, TrySendError},
    },
    time::Duration,
};

use edge_common::{
    abi::{ABI_VERSION, Counter, TableStat},
    addr::Family,
    reason::{Reason, Verdict},
};
use tokio::sync::mpsc::error::TrySendError as TrySend;
use tracing::{info, warn};

use super::{
    defence::{Defence, journal::Journal},
    upgrade::Order,
};
use crate::{
    clock::Now,
    control::{
        events::Hub,
        protocol::{Failure, FailureKind, Request, Response, ServerChange},
        server::{Handler, Reply},
        stats::Stats,
    },
    datapath::{DatapathError, InterfaceCounters, InterfaceState, View},
    entry::List,
    l7::proxy::{self, Ban, explain::QuestionError},
    policy::{Counts, Kind},
    status::{
        ConfigStatus, EntryKind, EventsStatus, FamilyName, HostFloodStatus, InterfaceStatus,
        LimiterStatus, ListCount, ReasonCount, Reloads, ServiceStatus, Source, Status, TableStatus,
        Traffic,
        balance::{BalanceStatus, FlowTable},
    },
    tables::Capacity,
};

/// Something for the engine.
pub(super) enum Command {
    /// From the control socket, or `SIGHUP`.
    Request(Request, Reply),
    /// The host's TCP has changed, and the programs must know.
    Replan,
    /// A client of the proxy has offended too often.
    Ban(Ban),
    /// To end, and leave everything in force to another process.
    HandOver,
    /// To end.
    Stop,
}

/// What the threads of the daemon share.
pub(super) struct Shared {
    started: Now,
    commands: SyncSender<Command>,
    upgrades: tokio::sync::mpsc::Sender<(Order, Reply)>,
    /// Whether an upgrade is under way.
    is_upgrading: AtomicBool,
    /// Whether a [`Command::Replan`] waits for the engine.
    replan_waits: AtomicBool,
    /// Whether it was told that the engine has no room for bans.
    is_busy_told: AtomicBool,
    pub(super) hub: Arc<Hub>,
    pub(super) stats: Arc<Stats>,
    pub(super) attacks: Journal,
    /// The proxy, once there is one.
    pub(super) proxy: OnceLock<proxy::View>,
    facts: Mutex<Facts>,
    beats: AtomicU64,
}

/// What the engine publishes.
#[derive(Clone, Debug, Default)]
pub(super) struct Facts {
    pub(super) config: ConfigStatus,
    pub(super) reloads: Reloads,
    pub(super) view: Option<View>,
    pub(super) counts: Counts,
    pub(super) capacity: Capacity,
    pub(super) services: Vec<ServiceStatus>,
    pub(super) host_floods: Vec<HostFloodStatus>,
    /// Addresses and ports of services that there is room for.
    pub(super) service_targets: u64,
    /// Verified sources and the room for them, where any service has some.
    pub(super) verified: Option<(u64, u64)>,
    /// How the balancer is; `None` without balanced services.
    pub(super) balance: Option<BalanceStatus>,
    /// What had passed and what had been dropped when the interface was put
    /// into force first by this daemon.
    pub(super) at_start: BTreeMap<String, (Traffic, Traffic)>,
}

impl Shared {
    pub(super) fn new(
        started: Now,
        commands: SyncSender<Command>,
        upgrades: tokio::sync::mpsc::Sender<(Order, Reply)>,
    ) -> Self {
        Self {
            started,
            commands,
            upgrades,
            is_upgrading: AtomicBool::new(false),
            replan_waits: AtomicBool::new(false),
            is_busy_told: AtomicBool::new(false),
            hub: Arc::default(),
            stats: Arc::default(),
            attacks: Journal::default(),
            proxy: OnceLock::new(),
            facts: Mutex::default(),
            beats: AtomicU64::new(0),
        }
    }

    /// Has the engine do something, and waits until it takes it; one that has ended does not.
    pub(super) fn command(&self, command: Command) {
        let _ = self.commands.send(command);
    }

    /// Another one may begin.
    pub(super) fn upgrade_is_over(&self) {
        self.is_upgrading.store(false, Ordering::Relaxed);
    }

    /// Has the daemon start another process in its place.
    fn upgrade(&self, order: Order, reply: Reply) {
        let busy = |text| Err(Failure::new(FailureKind::Busy, text));
        if self.is_upgrading.swap(true, Ordering::Relaxed) {
            return reply.send(busy("another upgrade is under way"));
        }
        if let Err(e) = self.upgrades.try_send((order, reply)) {
            let (TrySend::Full((_, reply)) | TrySend::Closed((_, reply))) = e;
            reply.send(busy("the daemon is stopping"));
        }
    }

    pub(super) fn facts(&self) -> MutexGuard<'_, Facts> {
        // Facts are only ever replaced as a whole or field by field.
        self.facts.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Publishes what is in force now.
    pub(super) fn publish_view(&self, view: Option<View>) {
        let mut at_start = self.facts().at_start.clone();
        for state in view.iter().flat_map(View::interfaces) {
            if at_start.contains_key(&state.name) {
                continue;
            }
            if let Some(counters) = view.as_ref().and_then(|v| read(v, state)) {
                at_start.insert(state.name.clone(), totals(&counters));
            }
        }
        let mut facts = self.facts();
        facts.view = view;
        facts.at_start = at_start;
    }

    /// Packets of all interfaces that reasons have counted, dropped and in dry run: a change
    /// of the mode is no jump. A ping of a balanced address may count twice in dry run.
    ///
    /// # Errors
    /// When the kernel refuses to read the map.
    pub(super) fn packets_of<const N: usize>(
        &self,
        reasons: [Reason; N],
    ) -> Result<[u64; N], DatapathError> {
        let view = self.facts().view.clone();
        let mut sum = [0u64; N];
        if let Some(view) = &view {
            for state in view.interfaces() {
                let packets = view.packets_of(state, reasons)?;
                for (sum, n) in sum.iter_mut().zip(packets) {
                    *sum = sum.wrapping_add(n);
                }
            }
        }
        Ok(sum)
    }

    /// Publishes how the services are.
    pub(super) fn publish_services(&self, defence: &mut Defence) {
        let now = Now::read();
        let verified = defence.verified(now);
        let mut statuses = defence.statuses(now);
        let attacks = self.attacks.lock();
        for (status, found) in &mut statuses {
            status.attack = attacks.current(&status.name, *found).map(Box::new);
            status.attacks = attacks.begun(&status.name, *found);
        }
        drop(attacks);
        let host_floods = defence.host_floods(&self.attacks);
        let mut facts = self.facts();
        facts.services = statuses.into_iter().map(|(status, _)| status).collect();
        facts.host_floods = host_floods;
        facts.service_targets = defence.room();
        facts.verified = verified;
    }

    /// Publishes how the balancer is.
    pub(super) fn publish_balance(&self, status: Option<BalanceStatus>) {
        self.facts().balance = status;
    }

    /// Asks the engine to load the programs anew, unless it has not come to the last
    /// time yet. It is asked again when it has no room now.
    pub(super) fn replan(&self) {
        if !self.replan_waits.swap(true, Ordering::Relaxed)
            && self.commands.try_send(Command::Replan).is_err()
        {
            self.replan_is_taken();
        }
    }

    /// Asks the engine to ban a source; whether it was heard. If not, it had no room.
    pub(super) fn ban(&self, ban: Ban) -> bool {
        // When there is no engine any more, another process bans.
        let is_full = matches!(
            self.commands.try_send(Command::Ban(ban)),
            Err(TrySendError::Full(_))
        );
        // Once each time: those who offend would fill the log.
        if self.is_busy_told.swap(is_full, Ordering::Relaxed) != is_full && is_full {
            warn!("clients of the proxy are banned when they offend again: the daemon is busy");
        }
        !is_full
    }

    /// The engine has come to it, and may be asked again.
    pub(super) fn replan_is_taken(&self) {
        self.replan_waits.store(false, Ordering::Relaxed);
    }

    /// The answer to a request that is the proxy's.
    fn proxy_answer(&self, request: &Request) -> Result<Response, Failure> {
        let invalid = |text: String| Failure::new(FailureKind::Invalid, text);
        let none = || invalid(QuestionError::NoProxy.to_string());
        let proxy = self.proxy.get().ok_or_else(none)?;
        match request {
            Request::Upstream {
                name,
                server,
                change,
            } => {
                let change = match *change {
                    ServerChange::Drain {} => proxy::Change::Drain(true),
                    ServerChange::Undrain {} => proxy::Change::Drain(false),
                    ServerChange::Weight { weight } => proxy::Change::Weight(weight),
                };
                let status = proxy.change(name, server, change);
                let status = status.map_err(|e| invalid(e.to_string()))?;
                info!(upstream = name, server, ?change, "a server was changed");
                Ok(Response::Upstream(Box::new(status)))
            }
            Request::RouteTest(question) => {
                let answers = proxy.explain(question);
                let answers = answers.map_err(|e| invalid(e.to_string()))?;
                Ok(Response::RouteTest(answers))
            }
            _ => Ok(Response::Routes(proxy.routes())),
        }
    }

    /// The interface with this kernel index, for an event.
    pub(super) fn interface_name(&self, ifindex: u32) -> String {
        let facts = self.facts();
        let view = facts.view.iter().flat_map(View::interfaces);
        let found = { view }.find(|i| i.ifindex == ifindex);
        found.map_or_else(|| format!("interface {ifindex}"), |i| i.name.clone())
    }

    /// A sign of life of the engine.
    pub(super) fn beat(&self) {
        self.beats.fetch_add(1, Ordering::Relaxed);
    }

    /// Signs of life up to now.
    pub(super) fn beats(&self) -> u64 {
        self.beats.load(Ordering::Relaxed)
    }
}

impl Handler for Shared {
    fn handle(&self, request: Request, reply: Reply) {
        // What needs no engine does not wait for it.
        match request {
            Request::Attacks {} => return reply.send(Ok(self.attacks.list())),
            Request::Attack { id } => return reply.send(self.attacks.get(id)),
            Request::Upstream { .. } | Request::Routes {} | Request::RouteTest(_) => {
                return reply.send(self.proxy_answer(&request));
            }
            Request::Upgrade { binary, timeout_ms } => {
                let timeout = Duration::from_millis(timeout_ms);
                return self.upgrade(Order { binary, timeout }, reply);
            }
            // What listens is handed over as it was at the beginning.
            Request::Reload {} if self.is_upgrading.load(Ordering::Relaxed) => {
                let text = "an upgrade is under way, which reads the configuration";
                return reply.send(Err(Failure::new(FailureKind::Busy, text)));
            }
            _ => {}
        }
        let refuse = |reply: Reply, text| reply.send(Err(Failure::new(FailureKind::Busy, text)));
        match self.commands.try_send(Command::Request(request, reply)) {
            Ok(()) => {}
            Err(TrySendError::Full(Command::Request(_, reply))) => {
                refuse(reply, "too many requests are waiting; try again");
            }
            Err(TrySendError::Disconnected(Command::Request(_, reply))) => {
                refuse(reply, "the daemon is stopping");
            }
            Err(_) => {}
        }
    }

    fn import_limit(&self) -> u64 {
        let capacity = self.facts().capacity;
        u64::from(capacity.hosts_v4) + u64::from(capacity.hosts_v6) + u64::from(capacity.prefixes)
    }
}

impl Source for Shared {
    fn status(&self) -> Status {
        // The counters are read without the lock: that takes system calls.
        let facts = self.facts().clone();
        let now = Now::read();
        let stat = |which| {
            let value = facts.view.as_ref()?.stat(which);
            value.map_err(|e| warn!("{e}")).ok()
        };
        let stat = |which| stat(which).unwrap_or_default();
        Status {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            abi_version: ABI_VERSION,
            pid: std::process::id(),
            started_unix_ms: self.started.unix_ms,
            uptime_ms: now.mono_ns.saturating_sub(self.started.mono_ns) / 1_000_000,
            interfaces: interfaces(&facts),
            tables: tables(&facts, stat(TableStat::LimiterClaimed)),
            services: facts.services,
            host_floods: facts.host_floods,
            lists: lists(&facts.counts),
            limiter: LimiterStatus {
                claimed: stat(TableStat::LimiterClaimed),
                recycled: stat(TableStat::LimiterRecycled),
                evicted: stat(TableStat::LimiterEvicted),
                contended: stat(TableStat::LimiterContended),
            },
            events: EventsStatus {
                read: self.hub.published(),
                lost_in_kernel: stat(TableStat::EventsLost),
                lost_by_followers: self.hub.lost(),
            },
            control: self.stats.counts(),
            stage_missing: stat(TableStat::StageMissing),
            balance: facts.balance.map(|balance| BalanceStatus {
                flows: FlowTable {
                    hits: stat(TableStat::FlowHits),
                    misses: stat(TableStat::FlowMisses),
                    inserted: stat(TableStat::FlowsInserted),
                    replaced: stat(TableStat::FlowsReplaced),
                    refused: stat(TableStat::FlowsRefused),
                    quic_routed: stat(TableStat::QuicRouted),
                    quic_unknown_id: stat(TableStat::QuicUnknownId),
                    ..balance.flows
                },
                ..balance
            }),
            proxy: self.proxy.get().and_then(proxy::View::status),
            config: facts.config,
            reloads: facts.reloads,
        }
    }
}

fn read(view: &View, state: &InterfaceState) -> Option<InterfaceCounters> {
    view.counters(state)
        .map_err(|e| warn!(interface = state.name, "{e}"))
        .ok()
}

fn traffic(counter: Counter) -> Traffic {
    Traffic {
        packets: counter.packets,
        bytes: counter.bytes,
    }
}

/// All that passed, here or to a backend, and all that was dropped; what was answered is
/// neither.
fn totals(counters: &InterfaceCounters) -> (Traffic, Traffic) {
    let (mut passed, mut dropped) = (Traffic::default(), Traffic::default());
    for &reason in Reason::ALL {
        let sum = match reason.verdict() {
            Verdict::Pass | Verdict::Forward => &mut passed,
            Verdict::Drop => &mut dropped,
            Verdict::Reply => continue,
        };
        let Counter { packets, bytes } = counters.ended(reason);
        sum.packets = sum.packets.wrapping_add(packets);
        sum.bytes = sum.bytes.wrapping_add(bytes);
    }
    (passed, dropped)
}

fn interfaces(facts: &Facts) -> Vec<InterfaceStatus> {
    let Some(view) = &facts.view else {
        return Vec::new();
    };
    let one = |state: &InterfaceState| {
        let (passed_at_start, dropped_at_start) =
            facts.at_start.get(&state.name).copied().unwrap_or_default();
        let reasons = read(view, state)
            .iter()
            .flat_map(|counters| {
                Reason::ALL.iter().map(|&reason| ReasonCount {
                    reason,
                    ended: traffic(counters.ended(reason)),
                    would_drop: traffic(counters.would_drop(reason)),
                })
            })
            .filter(|c| c.ended.packets != 0 || c.would_drop.packets != 0)
            .collect();
        InterfaceStatus {
            name: state.name.clone(),
            ifindex: state.ifindex,
            mode: state.mode,
            problem: state.problem.clone(),
            adopted: state.adopted,
            passed_at_start,
            dropped_at_start,
            reasons,
        }
    };
    view.interfaces().iter().map(one).collect()
}

fn tables(facts: &Facts, limiter_claimed: u64) -> Vec<TableStatus> {
    let Counts { used, capacity, .. } = &facts.counts;
    let targets = facts.services.iter().map(|s| s.targets.total).sum();
    // Without services the table has no room, and is not told of.
    let of_services = (!facts.services.is_empty()).then(|| TableStatus {
        table: "service_targets".to_owned(),
        entries: targets,
        capacity: facts.service_targets,
    });
    let of_verified = facts.verified.map(|(entries, capacity)| TableStatus {
        table: "verified_sources".to_owned(),
        entries,
        capacity,
    });
    [
        ("hosts_v4", used.hosts_v4.into(), capacity.hosts_v4),
        ("hosts_v6", used.hosts_v6.into(), capacity.hosts_v6),
        ("prefixes", used.prefixes.into(), capacity.prefixes),
        ("limiter_sources", limiter_claimed, capacity.limiter_sources),
    ]
    .map(|(table, entries, capacity)| TableStatus {
        table: table.to_owned(),
        entries,
        capacity: capacity.into(),
    })
    .into_iter()
    .chain(of_services)
    .chain(of_verified)
    .collect()
}

fn lists(counts: &Counts) -> Vec<ListCount> {
    let mut all = Vec::new();
    for list in [List::Black, List::Allow] {
        for (family, name) in [
            (Family::V4, FamilyName::Ipv4),
            (Family::V6, FamilyName::Ipv6),
        ] {
            for (of, kind) in [
                (Kind::Host, EntryKind::Host),
                (Kind::Prefix, EntryKind::Prefix),
            ] {
                all.push(ListCount {
                    list,
                    family: name,
                    kind,
                    entries: counts.entries(list, family, of),
                });
            }
        }
    }
    all
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::sync_channel;

    use super::*;

    #[test]
    fn the_engine_is_asked_once_until_it_comes_to_it() {
        let (sender, commands) = sync_channel(2);
        let (upgrades, _orders) = tokio::sync::mpsc::channel(1);
        let shared = Shared::new(Now::read(), sender, upgrades);
        let waiting = || commands.try_iter().count();
        shared.replan();
        shared.replan();
        assert_eq!(waiting(), 1);
        shared.replan_is_taken();
        shared.replan();
        assert_eq!(waiting(), 1);
        // What found no room does not count as waiting.
        shared.replan_is_taken();
        for _ in 0..2 {
            shared.commands.try_send(Command::Stop).unwrap();
        }
        shared.replan();
        assert_eq!(waiting(), 2);
        shared.replan();
        assert_eq!(waiting(), 1);
    }
}
