//! What becomes of which requests.

use std::time::Duration;

use super::{
    pattern::Pattern,
    template::{Location, Replacement},
    upstream::{Concurrency, Retries, Timeouts},
};

/// The most hosts, methods, conditions, upstreams of a split or rules of a header list of a route.
pub const MAX_PARTS: usize = 64;
/// The longest answer that stands in the file, bytes.
pub const MAX_BODY: usize = 65_536;
/// The longest host, path, name or value in a route, bytes.
pub const MAX_TEXT: usize = 1024;

/// Fields that speak of one connection or one hop, which no condition sees. Of `upgrade`, conditions
/// see what the client may switch to.
pub const CONNECTION_FIELDS: [&str; 10] = [
    "connection",
    "http2-settings",
    "keep-alive",
    "proxy-authenticate",
    "proxy-authentication-info",
    "proxy-authorization",
    "proxy-connection",
    "te",
    "trailer",
    "transfer-encoding",
];

/// A route: conditions, all of which a request must meet, and what becomes of it then.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Route {
    /// Its name: `[a-z0-9._-]`.
    pub name: String,
    /// Indexes of the listeners that it is for, ascending; at least one.
    pub listeners: Vec<usize>,
    /// The hosts, in the order of the file; none: any.
    pub hosts: Vec<Host>,
    /// The path.
    pub path: PathMatch,
    /// The methods; none: any.
    pub methods: Vec<String>,
    /// Headers, one field of each name must match; names in lower case.
    pub headers: Vec<Condition>,
    /// Parameters of the query, likewise.
    pub query: Vec<Condition>,
    /// What becomes of the request.
    pub action: Action,
    /// How the path is changed; only with [`Action::Forward`].
    pub rewrite: Option<Rewrite>,
    /// Changes to the header of the request; only with [`Action::Forward`].
    pub request_headers: HeaderRules,
    /// Changes to the header of the answer; only with [`Action::Forward`].
    pub response_headers: HeaderRules,
    /// Who gets copies of its requests; only with [`Action::Forward`].
    pub mirror: Option<Mirror>,
    /// Instead of those of the upstream.
    pub timeouts: TimeoutsOverride,
    /// Instead of those of the upstream.
    pub retries: RetriesOverride,
    /// Requests of this route at one time, besides what the upstream says; `None`: any number.
    pub concurrency: Option<Concurrency>,
}

impl Route {
    /// How many conditions there are besides host and path.
    pub fn conditions(&self) -> usize {
        usize::from(!self.methods.is_empty()) + self.headers.len() + self.query.len()
    }
}

/// A host: lower case, without port and without a dot at its end.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Host {
    /// This name or address; IPv6 addresses in brackets.
    Exact(String),
    /// All names below this one, which begins with a dot.
    Below(String),
}

/// A condition on the path, which is normalised.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PathMatch {
    /// Any path.
    Any,
    /// This path.
    Exact(String),
    /// Paths that begin so, in whole segments: `/a` is itself and all below `/a/`; `/a/` is all
    /// that begins with it.
    Prefix(String),
    /// Paths in which it is found.
    Regex(Pattern),
}

/// A condition on a header or a parameter.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Condition {
    /// Its name.
    pub name: String,
    /// What its value must be.
    pub value: ValueMatch,
}

/// A condition on a value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ValueMatch {
    /// There is one.
    Present,
    /// It is this.
    Exact(String),
    /// It begins so.
    Prefix(String),
    /// This is found in it.
    Regex(Pattern),
}

/// What becomes of a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// An upstream answers: index and weight of each that may, at least one; the weights add up to
    /// something.
    Forward(Vec<(usize, u32)>),
    /// It is sent elsewhere.
    Redirect {
        /// An URL or a path.
        to: Location,
        /// 301, 302, 303, 307 or 308.
        status: u16,
    },
    /// It is answered here.
    Respond {
        /// 200 to 599.
        status: u16,
        /// The body.
        body: String,
        /// Names, in lower case, and values.
        headers: Vec<(String, String)>,
    },
}

/// Who gets copies of requests, and of how many.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mirror {
    /// The index of the upstream, which is none of those that answer.
    pub upstream: usize,
    /// Of a thousand requests, 1 to 1000.
    pub permille: u32,
}

impl Mirror {
    /// Whether a request is copied, by a number that is evenly spread over all of its 64 bits.
    pub const fn draws(self, random: u64) -> bool {
        ((random as u128 * 1000) >> 64) < self.permille as u128
    }
}

/// How the path is changed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Rewrite {
    /// This takes the place of the prefix of the route, which has one.
    Prefix(String),
    /// What the expression finds first is replaced.
    Regex {
        /// What is looked for.
        pattern: Pattern,
        /// What takes its place.
        to: Replacement,
    },
}

/// Changes to a header. Names are in lower case; what is removed goes first.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HeaderRules {
    /// Fields that replace all of their name.
    pub set: Vec<(String, String)>,
    /// Fields that come beside others of their name.
    pub add: Vec<(String, String)>,
    /// Names of fields that go.
    pub remove: Vec<String>,
}

/// Timeouts of a route.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TimeoutsOverride {
    /// Instead of [`Timeouts::connect`].
    pub connect: Option<Duration>,
    /// Instead of [`Timeouts::first_byte`].
    pub first_byte: Option<Duration>,
    /// Instead of [`Timeouts::between_bytes`].
    pub between_bytes: Option<Duration>,
    /// Instead of [`Timeouts::request`].
    pub request: Option<Duration>,
}

impl TimeoutsOverride {
    /// What holds for an upstream with these.
    pub fn over(self, upstream: Timeouts) -> Timeouts {
        Timeouts {
            connect: self.connect.unwrap_or(upstream.connect),
            first_byte: self.first_byte.unwrap_or(upstream.first_byte),
            between_bytes: self.between_bytes.unwrap_or(upstream.between_bytes),
            request: self.request.unwrap_or(upstream.request),
        }
    }
}

/// Retries of a route. The budget is the upstream's.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RetriesOverride {
    /// Instead of [`Retries::tries`].
    pub tries: Option<u32>,
    /// Instead of [`Retries::base`].
    pub base: Option<Duration>,
    /// Instead of [`Retries::non_idempotent`].
    pub non_idempotent: Option<bool>,
}

impl RetriesOverride {
    /// What holds for an upstream with these.
    pub fn over(self, upstream: Retries) -> Retries {
        Retries {
            tries: self.tries.unwrap_or(upstream.tries),
            base: self.base.unwrap_or(upstream.base),
            non_idempotent: self.non_idempotent.unwrap_or(upstream.non_idempotent),
            ..upstream
        }
    }
}
