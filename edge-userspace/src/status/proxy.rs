//! How the proxy is.

use serde::{Deserialize, Serialize};

/// The proxy.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct ProxyStatus {
    /// Threads that serve requests.
    pub workers: u32,
    /// In the order of the configuration.
    pub listeners: Vec<ListenerStatus>,
    /// Likewise.
    pub routes: Vec<RouteStatus>,
    /// Likewise.
    pub upstreams: Vec<UpstreamStatus>,
    /// Lines of the access log that were lost because the disk was too slow.
    pub log_lost: u64,
    /// Spans of requests that are recorded (`proxy.traces`).
    pub spans: SpanCounts,
    /// Bans of sources for what they sent that were put into force.
    pub bans: u64,
    /// Connections and streams that were ended by a panic, and other things of theirs.
    pub panics: u64,
    /// Workers that followed one that had panicked.
    pub worker_restarts: u64,
}

/// What became of spans.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SpanCounts {
    /// That the collector took.
    pub exported: u64,
    /// That had no room.
    pub dropped: u64,
    /// That the collector did not take.
    pub failed: u64,
}

/// How requests ended and how long they took.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RequestCounts {
    /// By class of status: 1xx, 2xx, 3xx, 4xx, 5xx, and those without an answer because the client
    /// went away.
    pub classes: [u64; 6],
    /// By duration: up to each of
    /// [`DURATION_BOUNDS_US`](crate::l7::stats::DURATION_BOUNDS_US), and longer. Not cumulative.
    pub durations: Vec<u64>,
    /// Sum of durations, microseconds.
    pub duration_us: u64,
    /// Bytes of bodies that came.
    pub received: u64,
    /// Bytes of bodies that went.
    pub sent: u64,
}

impl RequestCounts {
    /// All of them.
    pub fn total(&self) -> u64 {
        self.classes.iter().sum()
    }
}

/// Words for the classes, in their order.
pub const CLASSES: [&str; 6] = ["1xx", "2xx", "3xx", "4xx", "5xx", "none"];

/// A listener.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ListenerStatus {
    /// Its name.
    pub name: String,
    /// Its addresses.
    pub addresses: Vec<String>,
    /// Connections that are open.
    pub open: u64,
    /// Connections that came.
    pub accepted: u64,
    /// Connections that were closed at once, for there were too many.
    pub refused: u64,
    /// TLS handshakes that failed.
    pub tls_failed: u64,
    /// Connections that were ended because they had no request for too long.
    pub idle_timeouts: u64,
    /// Its requests.
    pub requests: RequestCounts,
    /// Requests that got no answer from an upstream, by reason: those that there were.
    pub refusals: Vec<(String, u64)>,
}

/// A route.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RouteStatus {
    /// Its name.
    pub name: String,
    /// Its requests.
    pub requests: RequestCounts,
    /// Copies of them; `null` where none are made.
    pub mirrored: Option<MirrorCounts>,
}

/// What became of copies of requests.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct MirrorCounts {
    /// That were answered, with whatever status.
    pub sent: u64,
    /// That were not.
    pub failed: u64,
    /// That were not sent: too many were under way, or the request cannot be copied.
    pub skipped: u64,
}

/// An upstream.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct UpstreamStatus {
    /// Its name.
    pub name: String,
    /// How a server is chosen: the key `balance`.
    pub balance: String,
    /// Its requests, as clients saw them.
    pub requests: RequestCounts,
    /// Requests under way, and those that wait for their turn; 0 without `concurrency`.
    pub active: u32,
    /// See `active`.
    pub waiting: u32,
    /// Requests that had to wait.
    pub queued: u64,
    /// Requests refused because too many waited, or one had waited too long.
    pub overflows: u64,
    /// What the circuit breaker does: `closed`, `open`, `half_open`; `null` without one.
    pub breaker: Option<String>,
    /// Requests that it refused.
    pub broken: u64,
    /// Connections that were made, and those that could not be.
    pub connects: u64,
    /// See `connects`.
    pub connect_failures: u64,
    /// Requests that were tried again, and retries that the budget did not allow.
    pub retries: u64,
    /// See `retries`.
    pub retries_denied: u64,
    /// In the order of the configuration.
    pub servers: Vec<ServerStatus>,
}

/// A server of an upstream.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServerStatus {
    /// Its address, as in the configuration.
    pub address: String,
    /// Its weight now.
    pub weight: u32,
    /// Whether it is only used when no other is healthy.
    pub backup: bool,
    /// Whether its checks find it well; always without checks.
    pub up: bool,
    /// Why its checks do not, as they say it.
    pub why: Option<String>,
    /// Whether it gets no new requests.
    pub draining: bool,
    /// For how long it is left alone because of its answers, milliseconds; 0: it is not.
    pub ejected_ms: u64,
    /// Requests under way.
    pub active: u32,
    /// Its requests.
    pub requests: RequestCounts,
}
