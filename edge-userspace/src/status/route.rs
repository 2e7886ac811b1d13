//! Routes of the proxy, and what a request would get from them.

use std::net::IpAddr;

use serde::{Deserialize, Serialize};

use super::proxy::RequestCounts;
use crate::config::RouteDescription;

/// A route, and what it has done.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RouteEntry {
    /// What the configuration says.
    #[serde(flatten)]
    pub route: RouteDescription,
    /// Its requests.
    pub requests: RequestCounts,
}

/// A request that somebody asks about.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Question {
    /// `http://` or `https://`, host, port, path and query; or only the path and the query, with
    /// the host among the headers.
    pub url: String,
    /// The method.
    pub method: String,
    /// Names and values of fields, in order.
    pub headers: Vec<(String, String)>,
    /// The listener it comes to; without it, those that the URL leads to.
    pub listener: Option<String>,
    /// Who connects; without it, somebody who is no trusted proxy.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub from: Option<IpAddr>,
}

/// What a request would get at a listener.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Answer {
    /// The listener.
    pub listener: String,
    /// Whether who connects is a trusted proxy of it, whose word about the client is taken.
    #[serde(default)]
    pub trusted: bool,
    /// The method.
    pub method: String,
    /// The host in the form that routes are compared with.
    pub host: String,
    /// The path likewise.
    pub path: String,
    /// The route; `null` when it is refused or redirected before.
    pub route: Option<String>,
    /// What becomes of it.
    pub outcome: Outcome,
}

/// What becomes of a request.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// A server answers.
    Forward(Box<Forward>),
    /// It is sent elsewhere.
    Redirect {
        /// The status.
        status: u16,
        /// The field `Location`.
        to: String,
    },
    /// It gets a fixed answer.
    Respond {
        /// The status.
        status: u16,
        /// Names and values of fields.
        headers: Vec<(String, String)>,
        /// Bytes of the body.
        body_bytes: u64,
    },
    /// It is refused.
    Refused {
        /// The status.
        status: u16,
        /// The reason, as metrics and logs have it.
        reason: String,
        /// The same for people.
        sentence: String,
    },
}

/// How a request goes on to a server.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Forward {
    /// Path and query that the server sees.
    pub target: String,
    /// Changes to the header of the request.
    pub request_headers: HeaderChanges,
    /// Changes to the header of the answer.
    pub response_headers: HeaderChanges,
    /// Requests of the route at one time; `null`: any number.
    pub concurrency: Option<Places>,
    /// Who may answer.
    pub upstreams: Vec<Share>,
    /// Who gets a copy; `null`: nobody.
    pub mirror: Option<Copied>,
}

/// Who gets copies of requests.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Copied {
    /// The upstream.
    pub upstream: String,
    /// Of which share of such requests, 0 to 1.
    pub share: f64,
}

/// Changes to a header; what goes, goes first.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct HeaderChanges {
    /// Fields that go.
    pub remove: Vec<String>,
    /// Fields that replace all of their name.
    pub set: Vec<(String, String)>,
    /// Fields that come besides.
    pub add: Vec<(String, String)>,
}

/// How many requests there may be at one time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Places {
    /// Under way.
    pub requests: u32,
    /// Waiting.
    pub queue: u32,
    /// How long one waits at most, milliseconds.
    pub queue_timeout_ms: u64,
}

/// An upstream that may answer a request, and what holds for the request there.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Share {
    /// Its name.
    pub upstream: String,
    /// Its share of such requests, 0 to 1.
    pub share: f64,
    /// How one of its servers is chosen: the key `balance`.
    pub balance: String,
    /// The cookie by which a client returns to its server; `null` without one.
    pub sticky: Option<String>,
    /// `http1` or `http2`.
    pub protocol: String,
    /// Whether over TLS.
    pub tls: bool,
    /// Requests at one time; `null`: any number.
    pub concurrency: Option<Places>,
    /// Whether a circuit breaker may refuse the request.
    pub breaker: bool,
    /// How often it is tried at most, the first time included.
    pub tries: u32,
    /// The longest wait before the second try, milliseconds.
    pub retry_base_ms: u64,
    /// Whether it is tried again also where its method is not idempotent and it may have been carried
    /// out.
    #[serde(default)]
    pub retry_non_idempotent: bool,
    /// How long a connection may take, milliseconds.
    pub connect_ms: u64,
    /// How long the first byte of the answer may take, milliseconds.
    pub first_byte_ms: u64,
    /// How long each next piece of it may take, milliseconds.
    pub between_bytes_ms: u64,
    /// How long all of it may take, milliseconds.
    pub request_ms: u64,
}
