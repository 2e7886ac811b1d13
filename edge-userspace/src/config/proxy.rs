//! The L7 proxy: listeners take requests, routes say what becomes of them, upstreams answer.
//!
//! Listeners and routes name others by their index in [`Proxy`]: names are for people, and were
//! checked. Everything compares, so that a reload knows what it changes.

pub mod listener;
pub mod pattern;
pub mod route;
pub mod template;
pub mod upstream;

use std::{path::PathBuf, time::Duration};

pub use listener::Listener;
pub use route::Route;
use upstream::Balance;
pub use upstream::Upstream;

/// The most workers.
pub const MAX_WORKERS: u32 = 1024;
/// The most listeners.
pub const MAX_LISTENERS: usize = 256;
/// The most upstreams.
pub const MAX_UPSTREAMS: usize = 4096;
/// The most routes.
pub const MAX_ROUTES: usize = 50_000;

/// The proxy's part of a configuration. Without listeners there is no proxy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Proxy {
    /// Threads that serve requests, 1 to [`MAX_WORKERS`]; `None`: one for each CPU.
    pub workers: Option<u32>,
    /// How long connections may take to end when a new process has taken over, 1 s to a day.
    pub drain_timeout: Duration,
    /// Where requests are written down; `None`: nowhere.
    pub access_log: Option<AccessLog>,
    /// When clients are banned for what they send; `None`: never.
    pub bans: Option<Bans>,
    /// Who is told of requests, and of how many; `None`: nobody.
    pub traces: Option<Traces>,
    /// In the order of the file; no name twice, no two take connections of one address.
    pub listeners: Vec<Listener>,
    /// In the order of the file; no name twice.
    pub upstreams: Vec<Upstream>,
    /// In the order of the file; no name twice.
    pub routes: Vec<Route>,
}

impl Proxy {
    /// Whether any upstream chooses servers by a hash, or signs session cookies.
    pub fn has_keys(&self) -> bool {
        self.upstreams.iter().any(|upstream| {
            let balance = &upstream.balance;
            upstream.sticky.is_some()
                || matches!(balance, Balance::IpHash | Balance::ConsistentHash(_))
        })
    }
}

impl Default for Proxy {
    fn default() -> Self {
        Self {
            workers: None,
            drain_timeout: Duration::from_mins(10),
            access_log: None,
            bans: None,
            traces: None,
            listeners: Vec::new(),
            upstreams: Vec::new(),
            routes: Vec::new(),
        }
    }
}

/// When the firewall drops what clients send, because they offended too often.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bans {
    /// So many offences in the window are borne, 1 to [`MAX_OFFENCES`].
    pub offences: u32,
    /// The window, 1 s to a day.
    pub window: Duration,
    /// How long a ban lasts, 1 s to 30 days.
    pub ttl: Duration,
}

/// The most offences that are borne.
pub const MAX_OFFENCES: u32 = 1_000_000;

impl Default for Bans {
    fn default() -> Self {
        Self {
            offences: 20,
            window: Duration::from_secs(10),
            ttl: Duration::from_secs(600),
        }
    }
}

/// Who is told of requests.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Traces {
    /// A collector of OpenTelemetry: `http://` or `https://`, host, port, and a path without a
    /// slash at its end.
    pub endpoint: String,
    /// Certificates of those who sign the collector's, a PEM file; `None`: those that the host
    /// trusts.
    pub ca: Option<PathBuf>,
    /// Headers of each message ([`headers`](super::files::headers)); they may be secret.
    pub headers_file: Option<PathBuf>,
    /// Of a thousand requests whose trace is not sampled by a trusted proxy, so many are told of.
    pub sample_permille: u32,
    /// What this proxy is called there.
    pub service_name: String,
}

impl Traces {
    /// The default of `sample`.
    pub const SAMPLE_PERMILLE: u32 = 10;
    /// The default of `service_name`.
    pub const SERVICE_NAME: &str = "edge";

    /// Whether the collector is spoken to with TLS, and where it is.
    pub fn address(&self) -> (bool, upstream::Address) {
        let (scheme, rest) = self.endpoint.split_once("://").unwrap_or_default();
        let authority = rest.split('/').next().unwrap_or_default();
        let address = authority.parse().map_or_else(
            |_| {
                let (host, port) = authority.rsplit_once(':').unwrap_or((authority, ""));
                upstream::Address::Name(host.to_owned(), port.parse().unwrap_or(0))
            },
            upstream::Address::Ip,
        );
        (scheme == "https", address)
    }
}

/// Where and how requests are written down.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AccessLog {
    /// The file, an absolute path.
    pub path: PathBuf,
    /// How a line looks.
    pub format: LogFormat,
}

/// How a line of the access log looks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum LogFormat {
    /// A JSON object.
    #[default]
    Json,
    /// `key=value` pairs.
    Logfmt,
}

impl LogFormat {
    /// Both.
    pub const ALL: [Self; 2] = [Self::Json, Self::Logfmt];

    /// The word for it in the configuration.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Json => "json",
            Self::Logfmt => "logfmt",
        }
    }
}
