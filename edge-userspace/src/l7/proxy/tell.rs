//! What is told of the proxy.

use std::sync::atomic::Ordering::Relaxed;

use super::{
    group::Group,
    panics::Panics,
    snapshot::{Listener, Snapshot},
    spans::Counts,
    watch::{self, Checks},
    worker::Worker,
};
use crate::{
    config::RouteDescription,
    l7::{
        refusal::Refusal,
        resilience::BreakerState,
        stats::{DURATION_BOUNDS_US, Requests, Shards},
    },
    status::{
        proxy::{
            ListenerStatus, MirrorCounts, ProxyStatus, RequestCounts, RouteStatus, ServerStatus,
            SpanCounts, UpstreamStatus,
        },
        route::RouteEntry,
    },
};

/// What is told of what holds.
pub(super) fn status(
    snapshot: &Snapshot,
    workers: usize,
    checks: Option<&Checks>,
    (spans, panics): (&Counts, &Panics),
) -> ProxyStatus {
    let routes = snapshot.routes.iter();
    ProxyStatus {
        workers: u32::try_from(workers).unwrap_or(u32::MAX),
        listeners: snapshot.listeners.iter().map(|l| listener(l)).collect(),
        routes: routes
            .map(|route| RouteStatus {
                name: route.name.clone(),
                requests: requests(&route.requests),
                mirrored: route.mirrored.as_ref().map(|mirrored| MirrorCounts {
                    sent: mirrored.sum(|m| m.sent.get()),
                    failed: mirrored.sum(|m| m.failed.get()),
                    skipped: mirrored.sum(|m| m.skipped.get()),
                }),
            })
            .collect(),
        upstreams: snapshot
            .groups
            .iter()
            .map(|g| upstream(g, checks))
            .collect(),
        log_lost: snapshot.log.as_ref().map_or(0, |(log, _)| log.lost()),
        spans: SpanCounts {
            exported: spans.exported.load(Relaxed),
            dropped: spans.dropped.load(Relaxed),
            failed: spans.failed.load(Relaxed),
        },
        bans: snapshot
            .bans
            .as_ref()
            .map_or(0, |(judge, ..)| judge.banned()),
        panics: panics.ended(),
        worker_restarts: panics.restarts(),
    }
}

fn requests(shards: &Shards<Requests>) -> RequestCounts {
    let durations = 0..=DURATION_BOUNDS_US.len();
    RequestCounts {
        classes: std::array::from_fn(|at| shards.sum(|r| r.classes[at].get())),
        durations: durations
            .map(|at| shards.sum(|r| r.durations[at].get()))
            .collect(),
        duration_us: shards.sum(|r| r.duration_us.get()),
        received: shards.sum(|r| r.received.get()),
        sent: shards.sum(|r| r.sent.get()),
    }
}

fn listener(of: &Listener) -> ListenerStatus {
    let c = &of.connections;
    ListenerStatus {
        name: of.config.name.clone(),
        addresses: of
            .config
            .addresses
            .iter()
            .map(ToString::to_string)
            .collect(),
        open: of.count().into(),
        accepted: c.sum(|c| c.accepted.get()),
        refused: c.sum(|c| c.refused.get()),
        tls_failed: c.sum(|c| c.tls_failed.get()),
        idle_timeouts: c.sum(|c| c.idle.get()),
        requests: requests(&of.requests),
        refusals: Refusal::all()
            .map(|refusal| {
                let count = of.refusals.sum(|r| r.of(refusal).get());
                (refusal.name().to_owned(), count)
            })
            .filter(|(_, count)| *count > 0)
            .collect(),
    }
}

/// The routes in the order of the file, and their requests.
pub(super) fn routes(snapshot: &Snapshot) -> Vec<RouteEntry> {
    let all = snapshot.routes.iter().zip(&snapshot.config.routes);
    all.map(|(route, config)| RouteEntry {
        route: RouteDescription::of(config, &snapshot.config),
        requests: requests(&route.requests),
    })
    .collect()
}

/// What is told of an upstream.
pub(super) fn upstream(of: &Group, checks: Option<&Checks>) -> UpstreamStatus {
    let stats = &of.stats;
    let bulkhead = of.places.as_ref().map(|places| &places.bulkhead);
    UpstreamStatus {
        name: of.config.name.clone(),
        balance: of.config.balance.name().to_owned(),
        requests: requests(&of.requests),
        active: bulkhead.map_or(0, |b| b.active()),
        waiting: bulkhead.map_or(0, |b| b.waiting()),
        queued: stats.sum(|s| s.queued.get()),
        overflows: stats.sum(|s| s.overflows.get()),
        breaker: of.breaker.as_ref().map(|breaker| {
            let word = match breaker.state(Worker::now()) {
                BreakerState::Closed { .. } => "closed",
                BreakerState::Open { .. } => "open",
                BreakerState::HalfOpen { .. } => "half_open",
            };
            word.to_owned()
        }),
        broken: stats.sum(|s| s.broken.get()),
        connects: stats.sum(|s| s.connects.get()),
        connect_failures: stats.sum(|s| s.connect_failures.get()),
        retries: stats.sum(|s| s.retries.get()),
        retries_denied: stats.sum(|s| s.retries_denied.get()),
        servers: servers(of, checks),
    }
}

fn servers(of: &Group, checks: Option<&Checks>) -> Vec<ServerStatus> {
    let now = Worker::now();
    let all = of.servers.iter().zip(of.pick.servers());
    all.zip(&of.config.servers)
        .map(|((server, state), config)| ServerStatus {
            address: server.name.to_string(),
            weight: state.weight().into(),
            backup: config.backup,
            up: state.is_up(),
            why: checks.filter(|_| !state.is_up()).and_then(|checks| {
                let found = checks.state(&watch::key(of, server))?;
                found.last_error().map(|error| error.text.clone())
            }),
            draining: state.is_draining(),
            ejected_ms: state.ejected_until().saturating_sub(now) / 1_000_000,
            active: state.active(),
            requests: requests(&server.requests),
        })
        .collect()
}
