//! Groups of servers that answer requests.

use std::{fmt, net::SocketAddr, path::PathBuf, time::Duration};

use super::listener::Certificate;
use crate::config::balance::HealthCheck;

/// The most servers of an upstream.
pub const MAX_SERVERS: usize = 1024;
/// The largest weight of a server.
pub const MAX_WEIGHT: u32 = 1000;

/// A group of servers, any of which can answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Upstream {
    /// Its name: `[a-z0-9._-]`.
    pub name: String,
    /// Who of them answers a request.
    pub balance: Balance,
    /// By which cookie a client returns to the same server; `None`: it does not.
    pub sticky: Option<Sticky>,
    /// What is spoken with them.
    pub protocol: Protocol,
    /// With what TLS is spoken; `None`: plain.
    pub tls: Option<Tls>,
    /// Connections that are kept for the next request.
    pub keep_alive: KeepAlive,
    /// How they are checked; `None`: they are taken for healthy.
    pub health: Option<HealthCheck>,
    /// When what they answer speaks against them; `None`: never.
    pub passive: Option<Passive>,
    /// Of a thousand servers that are no backups, so many must be healthy: below that healthy
    /// backups are used as well, and where there are none all servers as if they were healthy (it
    /// fails open). 0: never.
    pub panic_permille: u32,
    /// Requests at one time; `None`: any number.
    pub concurrency: Option<Concurrency>,
    /// When it is left alone as a whole; `None`: never.
    pub breaker: Option<Breaker>,
    /// How failed requests are tried again.
    pub retries: Retries,
    /// How long each step may take.
    pub timeouts: Timeouts,
    /// Whether connections begin with a header of the PROXY protocol.
    pub proxy_protocol: SendProxy,
    /// How long the weight of a server that is new or has come up rises to its whole; zero for
    /// at once.
    pub slow_start: Duration,
    /// In the order of the file: 1 to [`MAX_SERVERS`], no address twice; among those that are no
    /// backups, one at least has a weight.
    pub servers: Vec<Server>,
}

/// Who of the servers answers a request.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Balance {
    /// One after the other.
    #[default]
    RoundRobin,
    /// Likewise by weight, evenly mixed.
    WeightedRoundRobin,
    /// The one with the fewest requests for its weight.
    LeastConnections,
    /// By the client's address.
    IpHash,
    /// By something in the request.
    ConsistentHash(HashKey),
    /// The one with fewer requests of two that chance names.
    RandomOfTwo,
}

impl Balance {
    /// The words for all of them in the configuration.
    pub const NAMES: [&'static str; 6] = [
        "round-robin",
        "weighted-round-robin",
        "least-connections",
        "ip-hash",
        "consistent-hash",
        "random-of-two",
    ];

    /// The word for it in the configuration.
    pub const fn name(&self) -> &'static str {
        match self {
            Self::RoundRobin => Self::NAMES[0],
            Self::WeightedRoundRobin => Self::NAMES[1],
            Self::LeastConnections => Self::NAMES[2],
            Self::IpHash => Self::NAMES[3],
            Self::ConsistentHash(_) => Self::NAMES[4],
            Self::RandomOfTwo => Self::NAMES[5],
        }
    }
}

/// What of a request is hashed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum HashKey {
    /// The header of this name, in lower case.
    Header(String),
    /// The cookie of this name.
    Cookie(String),
    /// The parameter of this name in the query.
    Query(String),
}

/// A cookie by which a client returns to the same server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sticky {
    /// Its name.
    pub cookie: String,
    /// How long it holds; whole seconds.
    pub ttl: Duration,
}

/// What is spoken with servers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Protocol {
    /// HTTP/1.1.
    #[default]
    Http1,
    /// HTTP/2: by ALPN with TLS, by prior knowledge without.
    Http2,
}

impl Protocol {
    /// All of them.
    pub const ALL: [Self; 2] = [Self::Http1, Self::Http2];

    /// The word for it in the configuration.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Http1 => "http1",
            Self::Http2 => "http2",
        }
    }
}

/// TLS towards servers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tls {
    /// Certificates of those who sign the servers' certificates, a PEM file; `None`: those that
    /// the host trusts.
    pub ca: Option<PathBuf>,
    /// Whether certificates are verified.
    pub verify: bool,
    /// The name that is asked for and verified; `None`: the host of the server's address.
    pub sni: Option<String>,
    /// What is shown when they ask for a certificate.
    pub certificate: Option<Certificate>,
}

/// Connections to servers that are kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KeepAlive {
    /// How many idle ones a worker keeps; 0: none.
    pub connections: u32,
    /// For how long.
    pub idle: Duration,
}

impl Default for KeepAlive {
    fn default() -> Self {
        Self {
            connections: 64,
            idle: Duration::from_secs(60),
        }
    }
}

/// When the answers of a server speak against it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Passive {
    /// So many failures, one after the other.
    pub consecutive_errors: u32,
    /// Which share of its last answers; `None`: it does not matter.
    pub errors: Option<ErrorRate>,
    /// How long it is left alone, the first time.
    pub eject: Duration,
    /// Of a thousand parts of the group, at most so many are left alone at one time; of several
    /// servers one may be, unless this is 0.
    pub max_ejected_permille: u32,
}

impl Default for Passive {
    fn default() -> Self {
        Self {
            consecutive_errors: 5,
            errors: None,
            eject: Duration::from_secs(30),
            max_ejected_permille: 500,
        }
    }
}

/// The most requests that a window looks back at, of `passive` and of a breaker: as many results
/// as one word holds.
pub const MAX_WINDOW: u32 = 50;

/// When the last answers of a server, taken together, speak against it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ErrorRate {
    /// Of a thousand answers in the window, so many must be failures or slow.
    pub permille: u32,
    /// How many of the last answers are looked at, 1 to [`MAX_WINDOW`].
    pub window: u32,
    /// A server that takes longer to connect and, once it has the request, to begin its answer is
    /// slow; `None`: none is.
    pub latency: Option<Duration>,
}

impl ErrorRate {
    /// The default of `window`.
    pub const WINDOW: u32 = 20;
}

/// Requests that are on their way at one time, and those that wait for a place among them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Concurrency {
    /// So many on their way; of all workers together.
    pub requests: u32,
    /// So many wait; 0: none.
    pub queue: u32,
    /// How long one waits before it is refused.
    pub queue_timeout: Duration,
}

impl Default for Concurrency {
    fn default() -> Self {
        Self {
            requests: 1024,
            queue: 256,
            queue_timeout: Duration::from_secs(1),
        }
    }
}

/// When an upstream is left alone as a whole.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Breaker {
    /// Of a thousand requests in the window, so many must fail.
    pub failure_permille: u32,
    /// How many of the last requests are looked at, 1 to [`MAX_WINDOW`].
    pub window: u32,
    /// How long it is left alone.
    pub open: Duration,
    /// How many requests then try whether it is back; all of them must succeed.
    pub probes: u32,
}

impl Default for Breaker {
    fn default() -> Self {
        Self {
            failure_permille: 500,
            window: 10,
            open: Duration::from_secs(30),
            probes: 1,
        }
    }
}

/// How failed requests are tried again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Retries {
    /// How often a request is tried at most, the first time included; 1: it is not tried again.
    pub tries: u32,
    /// How long is waited at most before the second try; twice as long before each next one.
    pub base: Duration,
    /// Of a thousand requests, so many may be tried again.
    pub budget_permille: u32,
    /// Whether a request is tried again although its method is not idempotent and a server may have
    /// begun with it.
    pub non_idempotent: bool,
}

impl Default for Retries {
    fn default() -> Self {
        Self {
            tries: 3,
            base: Duration::from_millis(25),
            budget_permille: 200,
            non_idempotent: false,
        }
    }
}

/// How long each step of a request may take: `request` ≥ `first_byte` ≥ `connect`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timeouts {
    /// Until there is a connection, with TLS.
    pub connect: Duration,
    /// From the last byte of the request to the first of the answer.
    pub first_byte: Duration,
    /// From one piece of the answer to the next.
    pub between_bytes: Duration,
    /// All of it: waiting, all tries, the whole answer.
    pub request: Duration,
}

impl Default for Timeouts {
    fn default() -> Self {
        Self {
            connect: Duration::from_secs(1),
            first_byte: Duration::from_secs(15),
            between_bytes: Duration::from_secs(30),
            request: Duration::from_secs(60),
        }
    }
}

/// Whether connections to servers begin with a header of the PROXY protocol.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum SendProxy {
    /// None does.
    #[default]
    Off,
    /// Version 1, a line of text.
    V1,
    /// Version 2, binary.
    V2,
}

impl SendProxy {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Off, Self::V1, Self::V2];

    /// The word for it in the configuration.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Off => "off",
            Self::V1 => "v1",
            Self::V2 => "v2",
        }
    }
}

/// A server of an upstream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Server {
    /// Where it listens.
    pub address: Address,
    /// Its share beside the weights of the others: 0 to [`MAX_WEIGHT`]. With 0 it gets no requests.
    pub weight: u32,
    /// Whether it is used only when no other is healthy.
    pub backup: bool,
}

/// Where a server listens.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Address {
    /// An address and a port.
    Ip(SocketAddr),
    /// A name of DNS, in lower case and without a dot at its end, and a port.
    Name(String, u16),
    /// A Unix socket, an absolute path.
    Unix(PathBuf),
}

impl Address {
    /// Reads `address:port`, `[address]:port`, `name:port` or `unix:path`; whether anybody can have
    /// that name, path or port is another question. Nothing where it is none of them.
    pub fn read(text: &str) -> Option<Self> {
        if let Some(path) = text.strip_prefix("unix:") {
            return Some(Self::Unix(path.into()));
        }
        if let Ok(address) = text.parse() {
            return Some(Self::Ip(address));
        }
        let (name, port) = text.rsplit_once(':')?;
        let name = name.strip_suffix('.').unwrap_or(name).to_ascii_lowercase();
        let digits = port.bytes().all(|b| b.is_ascii_digit());
        Some(Self::Name(name, port.parse().ok().filter(|_| digits)?))
    }
}

/// As it is written in the configuration.
impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ip(address) => write!(f, "{address}"),
            Self::Name(name, port) => write!(f, "{name}:{port}"),
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}
