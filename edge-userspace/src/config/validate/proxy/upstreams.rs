//! Upstreams and their servers.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::Ipv4Addr,
    time::Duration,
};

use super::{file, is_token, is_within, listeners::ca, missing, name, passive, required, share};
use crate::config::{
    balance::{Forward, HealthCheck, Probe},
    proxy::{
        MAX_UPSTREAMS, Upstream,
        listener::Certificate,
        upstream::{
            Address, Balance, Breaker, Concurrency, HashKey, KeepAlive, MAX_SERVERS, MAX_WEIGHT,
            MAX_WINDOW, Protocol, Retries, SendProxy, Server, Sticky, Timeouts, Tls,
        },
    },
    quantity::{Count, Share, spelt},
    raw::{ProbeKind, proxy as raw},
    report::{At, Place, Report},
    services::Protocol as Transport,
    validate::{
        MAX_PATH, MAX_SOCKET_PATH,
        health::{self, is_host},
        number, path, span,
    },
};

/// How long a step may take.
pub(super) const TIMEOUT: (Duration, Duration) =
    (Duration::from_millis(1), Duration::from_secs(24 * 3600));
/// How long something stays as it is: a connection, an ejection.
pub(super) const HOLD: (Duration, Duration) =
    (Duration::from_millis(100), Duration::from_secs(3600));
/// How long a cookie holds.
const TTL: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(365 * 24 * 3600));
/// The longest that a weight rises.
const MAX_SLOW_START: Duration = Duration::from_secs(3600);
/// The most tries of a request.
const MAX_TRIES: u32 = 10;
/// The longest time before a second try.
const MAX_BASE: Duration = Duration::from_secs(10);
/// The most requests on their way or waiting.
const MAX_REQUESTS: u32 = 1_000_000;
/// The default share below which all servers are used.
const PANIC_PERMILLE: u32 = 500;

pub(super) fn upstreams(list: &[raw::Upstream], report: &mut Report<'_>) -> Vec<Upstream> {
    let places: Vec<Place> = list.iter().map(|u| u.place.clone()).collect();
    if !is_within(&places, MAX_UPSTREAMS, "upstreams", report) {
        return Vec::new();
    }
    let mut names = BTreeMap::new();
    let upstreams = list.iter().enumerate().map(|(i, raw)| {
        let name = name(
            raw.name.as_ref(),
            &raw.place,
            ("upstream", i),
            &mut names,
            report,
        );
        let servers = servers(raw, report);
        let timeouts = timeouts(raw.timeouts.as_ref(), report);
        let balance = balance(raw, &servers, report);
        let proxy_protocol = raw.proxy_protocol.unwrap_or_default();
        let protocol = raw.protocol.unwrap_or_default();
        Upstream {
            balance,
            sticky: raw.sticky.as_ref().and_then(|s| sticky(s, report)),
            protocol,
            tls: raw.tls.as_ref().map(|tls| tls_of(tls, &servers, report)),
            keep_alive: keep_alive(raw, proxy_protocol, report),
            health: raw.health.as_ref().and_then(|h| {
                let check = health_of(h, &servers, report)?;
                Some(as_requests(check, protocol, raw.tls.is_some()))
            }),
            passive: raw.passive.as_ref().map(|p| passive::passive(p, report)),
            panic_permille: share(raw.panic_threshold.as_ref(), PANIC_PERMILLE, 0, report),
            concurrency: (raw.concurrency.as_ref())
                .map(|c| concurrency(c, timeouts.request, report)),
            breaker: raw.breaker.as_ref().map(|b| breaker(b, report)),
            retries: retries(raw.retries.as_ref(), report),
            timeouts,
            proxy_protocol,
            slow_start: span(
                raw.slow_start.as_ref(),
                Duration::ZERO,
                (Duration::ZERO, MAX_SLOW_START),
                report,
            ),
            servers,
            // The model counts only when nothing was reported.
            name: name.unwrap_or_default(),
        }
    });
    upstreams.collect()
}

fn servers(raw: &raw::Upstream, report: &mut Report<'_>) -> Vec<Server> {
    const REMEDY: &str = "an upstream needs a [[upstream.server]] with an address, such as address = \"10.0.0.1:8080\"";
    let list = raw.servers.as_deref().unwrap_or(&[]);
    if list.is_empty() {
        missing(&raw.place, "server", REMEDY, report);
    }
    let places: Vec<Place> = list.iter().map(|s| s.place.clone()).collect();
    if !is_within(&places, MAX_SERVERS, "servers in an upstream", report) {
        return Vec::new();
    }
    let mut addresses = BTreeSet::new();
    let mut servers = Vec::new();
    for raw in list {
        let weight = number(raw.weight.as_ref(), 1, 0, MAX_WEIGHT, report);
        let Some(at) = required(
            raw.address.as_ref(),
            &raw.place,
            "address",
            ADDRESSES,
            report,
        ) else {
            continue;
        };
        let Some(address) = address(at, report) else {
            continue;
        };
        if !addresses.insert(address.clone()) {
            report.problem(
                &at.place,
                "the address of another server of this upstream; remove one, or raise its weight",
            );
        }
        servers.push(Server {
            address,
            weight,
            backup: raw.backup.unwrap_or(false),
        });
    }
    let is_used = |s: &Server| !s.backup && s.weight > 0;
    if servers.len() == list.len() && !servers.is_empty() && !servers.iter().any(is_used) {
        report.problem_without_value(
            &raw.place.child("server"),
            "no server that is no backup has a weight; give one of them a weight",
        );
    }
    servers
}

const ADDRESSES: &str = "write \"10.0.0.1:8080\", \"[2001:db8::1]:8080\", \"app.internal:8080\" or \"unix:/run/app.sock\"";

fn address(at: &At<String>, report: &mut Report<'_>) -> Option<Address> {
    let At { value, place } = at;
    if let Some(socket) = value.strip_prefix("unix:") {
        let socket = At {
            value: socket.to_owned(),
            place: place.clone(),
        };
        let path = path(
            Some(&socket),
            "/run/app.sock",
            MAX_SOCKET_PATH.min(MAX_PATH),
            report,
        );
        return Some(Address::Unix(path));
    }
    let parsed = match Address::read(value) {
        Some(Address::Ip(address)) => Some((address.port(), Address::Ip(address))),
        Some(Address::Name(name, port)) => {
            // What looks like an address and is none is no name either.
            let number = name
                .rsplit('.')
                .next()
                .is_some_and(|last| last.bytes().all(|b| b.is_ascii_digit()));
            (is_host(&name) && !number).then_some((port, Address::Name(name, port)))
        }
        _ => None,
    };
    match parsed {
        None => report.problem(place, format_args!("no address; {ADDRESSES}")),
        Some((0, _)) => report.problem(
            place,
            "port 0 stands for none; name the port that it listens on",
        ),
        Some((_, Address::Ip(address)))
            if address.ip().is_multicast()
                || address.ip() == Ipv4Addr::BROADCAST
                || address.ip().is_unspecified() =>
        {
            report.problem(
                place,
                "no address of a host; name the one that it listens on",
            );
        }
        Some((_, address)) => return Some(address),
    }
    None
}

fn balance(raw: &raw::Upstream, servers: &[Server], report: &mut Report<'_>) -> Balance {
    let name = raw
        .balance
        .as_ref()
        .map_or(Balance::NAMES[0], |b| b.value.0);
    let key = raw.hash.as_ref().map(|hash| (hash, hash_key(hash, report)));
    let balance = match name {
        "weighted-round-robin" => Balance::WeightedRoundRobin,
        "least-connections" => Balance::LeastConnections,
        "ip-hash" => Balance::IpHash,
        "random-of-two" => Balance::RandomOfTwo,
        "consistent-hash" => {
            if key.is_none() {
                missing(
                    &raw.place,
                    "hash",
                    "say what of a request is hashed, such as hash = { header = \"x-user\" }",
                    report,
                );
            }
            return match key {
                Some((_, Some(key))) => Balance::ConsistentHash(key),
                _ => Balance::default(),
            };
        }
        _ => Balance::RoundRobin,
    };
    if let Some((hash, _)) = key {
        report.problem_without_value(
            &hash.place,
            format_args!(
                "only for balance = \"consistent-hash\", and it is \"{name}\"; remove one of them"
            ),
        );
    }
    if balance == Balance::RoundRobin && servers.iter().any(|s| s.weight > 1) {
        report.warn_without_value(
            &raw.place.child("balance"),
            "weights have no effect with \"round-robin\"; choose \"weighted-round-robin\"",
        );
    }
    balance
}

fn hash_key(raw: &raw::HashKey, report: &mut Report<'_>) -> Option<HashKey> {
    match (&raw.header, &raw.cookie, &raw.query) {
        (Some(at), None, None) => {
            token(at, "header", report).map(|n| HashKey::Header(n.to_ascii_lowercase()))
        }
        (None, Some(at), None) => token(at, "cookie", report).map(HashKey::Cookie),
        (None, None, Some(at)) if !at.value.is_empty() => Some(HashKey::Query(at.value.clone())),
        _ => {
            report.problem_without_value(
                &raw.place,
                "name one of header, cookie and query, such as { header = \"x-user\" }",
            );
            None
        }
    }
}

/// The name of a header or a cookie.
fn token(at: &At<String>, what: &str, report: &mut Report<'_>) -> Option<String> {
    let is_token = is_token(&at.value);
    if !is_token {
        report.problem(
            &at.place,
            format_args!("no name of a {what}; write letters, digits and '-'"),
        );
    }
    is_token.then(|| at.value.clone())
}

fn sticky(raw: &raw::Sticky, report: &mut Report<'_>) -> Option<Sticky> {
    let ttl = span(raw.ttl.as_ref(), Duration::from_secs(3600), TTL, report);
    if let Some(At { place, .. }) = &raw.ttl
        && ttl.subsec_nanos() != 0
    {
        report.problem(
            place,
            "cookies hold for whole seconds; leave out the milliseconds",
        );
    }
    let cookie = required(
        raw.cookie.as_ref(),
        &raw.place,
        "cookie",
        "name the cookie, such as cookie = \"edge\"",
        report,
    )?;
    Some(Sticky {
        cookie: token(cookie, "cookie", report)?,
        ttl,
    })
}

fn tls_of(raw: &raw::UpstreamTls, servers: &[Server], report: &mut Report<'_>) -> Tls {
    let verify = raw.verify.as_ref().is_none_or(|v| v.value);
    if let Some(At {
        value: false,
        place,
    }) = &raw.verify
    {
        match &raw.ca {
            Some(ca) => report.problem(&ca.place, "without effect, for verify = false; remove one of them"),
            None => report.warn(place, "whoever answers at the servers' addresses is believed; name who signs their certificates in ca"),
        }
    }
    if let Some(At { value, place }) = &raw.sni
        && !is_host(value)
    {
        report.problem(
            place,
            "no name of a host; write it without scheme and port, such as \"app.example.org\"",
        );
    }
    let has_socket = servers
        .iter()
        .any(|s| matches!(s.address, Address::Unix(_)));
    if raw.sni.is_none() && verify && has_socket {
        missing(
            &raw.place,
            "sni",
            "a Unix socket has no name to verify; say which one the certificate has, or set verify = false",
            report,
        );
    }
    let certificate = match (&raw.cert, &raw.key) {
        (Some(cert), Some(key)) => Some(Certificate {
            cert: file(cert, "/etc/edge/client.pem", report),
            key: file(key, "/etc/edge/client.key", report),
        }),
        (None, None) => None,
        (cert, _) => {
            let key = if cert.is_some() { "key" } else { "cert" };
            missing(
                &raw.place,
                key,
                "a certificate needs its key, and a key its certificate",
                report,
            );
            None
        }
    };
    Tls {
        ca: ca(raw.ca.as_ref(), report),
        verify,
        sni: raw.sni.as_ref().map(|s| s.value.to_ascii_lowercase()),
        certificate,
    }
}

fn keep_alive(
    raw: &raw::Upstream,
    proxy_protocol: SendProxy,
    report: &mut Report<'_>,
) -> KeepAlive {
    let mut default = KeepAlive::default();
    let none = raw::KeepAlive::default();
    let pool = raw.keep_alive.as_ref().unwrap_or(&none);
    if proxy_protocol != SendProxy::Off {
        // A connection is that of one client.
        default.connections = 0;
        if let Some(At {
            value: Count(1..),
            place,
        }) = &pool.connections
        {
            report.problem(
                place,
                "with proxy_protocol a connection is that of one client and cannot be kept for others; remove one of them",
            );
        }
    }
    if raw.protocol == Some(Protocol::Http2) {
        if proxy_protocol != SendProxy::Off {
            report.problem_without_value(
                &raw.place.child("proxy_protocol"),
                "with protocol = \"http2\" clients share connections, which cannot begin with the address of one of them; remove one of the two keys",
            );
        }
        if let Some(At {
            value: Count(0),
            place,
        }) = &pool.connections
        {
            report.problem(
                place,
                "with protocol = \"http2\" it is how many connections the requests of a worker share; write 1 or more",
            );
        }
    }
    KeepAlive {
        connections: number(
            pool.connections.as_ref(),
            default.connections,
            0,
            65_536,
            report,
        ),
        idle: span(pool.idle.as_ref(), default.idle, HOLD, report),
    }
}

fn health_of(
    raw: &raw::Health,
    servers: &[Server],
    report: &mut Report<'_>,
) -> Option<HealthCheck> {
    if let Some(At {
        value: ProbeKind::Udp,
        place,
    }) = &raw.kind
    {
        report.problem(place, "servers of an upstream do not speak UDP; choose \"tcp\", \"http\", \"https\", \"grpc\" or \"exec\"");
        return None;
    }
    if servers
        .iter()
        .any(|s| matches!(s.address, Address::Unix(_)))
    {
        report.problem_without_value(
            &raw.place,
            "checks ask addresses, and a server of this upstream is a Unix socket; use passive instead",
        );
        return None;
    }
    // Requests go to servers in no tunnel.
    health::check(
        &raw.as_check(),
        Forward::L2,
        Transport::Tcp,
        None,
        &[],
        report,
    )
}

/// A check that speaks what requests speak, unless it asks another port than they go to.
fn as_requests(mut check: HealthCheck, protocol: Protocol, has_tls: bool) -> HealthCheck {
    let is_http2 = protocol == Protocol::Http2;
    if check.port.is_none() {
        match &mut check.probe {
            Probe::Http(http) => {
                http.http2 = is_http2;
                http.tls |= has_tls;
            }
            Probe::Grpc { tls, .. } => *tls = is_http2 && has_tls,
            Probe::Tcp | Probe::Udp { .. } | Probe::Exec { .. } => {}
        }
    }
    check
}

fn breaker(raw: &raw::Breaker, report: &mut Report<'_>) -> Breaker {
    let default = Breaker::default();
    Breaker {
        failure_permille: share(
            raw.failure_rate.as_ref(),
            default.failure_permille,
            1,
            report,
        ),
        window: number(raw.window.as_ref(), default.window, 1, MAX_WINDOW, report),
        open: span(raw.open.as_ref(), default.open, HOLD, report),
        probes: number(raw.probes.as_ref(), default.probes, 1, 1000, report),
    }
}

/// Requests at one time, of which each has so much time in all.
pub(super) fn concurrency(
    raw: &raw::Concurrency,
    request: Duration,
    report: &mut Report<'_>,
) -> Concurrency {
    let default = Concurrency::default();
    let most = default.queue_timeout.min(request / 2);
    let queue_timeout = span(raw.queue_timeout.as_ref(), most, TIMEOUT, report);
    if let Some(At { place, .. }) = &raw.queue_timeout
        && queue_timeout >= request
    {
        report.problem(
            place,
            format_args!(
                "not shorter than timeouts.request ({}), so that a request that waited would have no time left; shorten it, or raise timeouts.request",
                spelt(request)
            ),
        );
    }
    Concurrency {
        requests: number(
            raw.requests.as_ref(),
            default.requests,
            1,
            MAX_REQUESTS,
            report,
        ),
        queue: number(raw.queue.as_ref(), default.queue, 0, MAX_REQUESTS, report),
        queue_timeout,
    }
}

fn retries(raw: Option<&raw::Retries>, report: &mut Report<'_>) -> Retries {
    let default = Retries::default();
    let Some(raw) = raw else {
        return default;
    };
    let budget: Option<&At<Share>> = raw.budget.as_ref();
    Retries {
        tries: tries(raw.tries.as_ref(), report).unwrap_or(default.tries),
        base: base(raw.base.as_ref(), report).unwrap_or(default.base),
        budget_permille: share(budget, default.budget_permille, 0, report),
        non_idempotent: raw.non_idempotent.unwrap_or(default.non_idempotent),
    }
}

/// How often a request is tried, if it is said.
pub(super) fn tries(at: Option<&At<Count>>, report: &mut Report<'_>) -> Option<u32> {
    at.map(|at| number(Some(at), Retries::default().tries, 1, MAX_TRIES, report))
}

/// How long is waited before the second try, if it is said.
pub(super) fn base(at: Option<&At<Duration>>, report: &mut Report<'_>) -> Option<Duration> {
    let default = Retries::default().base;
    at.map(|at| span(Some(at), default, (TIMEOUT.0, MAX_BASE), report))
}

fn timeouts(raw: Option<&raw::Timeouts>, report: &mut Report<'_>) -> Timeouts {
    let default = Timeouts::default();
    let Some(raw) = raw else {
        return default;
    };
    // What is not said is no longer than what holds around it.
    let request = span(raw.request.as_ref(), default.request, TIMEOUT, report);
    let first_byte = span(
        raw.first_byte.as_ref(),
        default.first_byte.min(request),
        TIMEOUT,
        report,
    );
    let timeouts = Timeouts {
        connect: span(
            raw.connect.as_ref(),
            default.connect.min(first_byte),
            TIMEOUT,
            report,
        ),
        first_byte,
        between_bytes: span(
            raw.between_bytes.as_ref(),
            default.between_bytes.min(request),
            TIMEOUT,
            report,
        ),
        request,
    };
    check_order(raw, timeouts, "", report);
    timeouts
}

/// Refuses time-outs that end before those within them can: `raw` is the section that is blamed,
/// `of` says whose the others are.
pub(super) fn check_order(
    raw: &raw::Timeouts,
    timeouts: Timeouts,
    of: &str,
    report: &mut Report<'_>,
) {
    let Timeouts {
        connect,
        first_byte,
        between_bytes,
        request,
    } = timeouts;
    for (outer, inner, at) in [
        (
            ("request", request),
            ("first_byte", first_byte),
            [&raw.request, &raw.first_byte],
        ),
        (
            ("request", request),
            ("between_bytes", between_bytes),
            [&raw.request, &raw.between_bytes],
        ),
        (
            ("first_byte", first_byte),
            ("connect", connect),
            [&raw.first_byte, &raw.connect],
        ),
    ] {
        if outer.1 >= inner.1 {
            continue;
        }
        let Some(place) = at.into_iter().flatten().next().map(|at| &at.place) else {
            continue;
        };
        report.problem_without_value(
            place,
            format_args!(
                "{} ({}) is shorter than {} ({}){of}, which could never run out; raise {} or lower {}",
                outer.0, spelt(outer.1), inner.0, spelt(inner.1), outer.0, inner.0,
            ),
        );
    }
}
