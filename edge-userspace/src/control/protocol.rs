//! What is said on the control socket.
//!
//! Both sides send JSON, one message a line, at most [`MAX_LINE`] bytes from
//! the client. The client opens with [`ClientMessage::Hello`] and the daemon
//! answers with [`ServerMessage::Hello`]; then the client sends one message at
//! a time and waits for its answer: any number of
//! [`ServerMessage::Progress`], then exactly one [`ServerMessage::Result`] or
//! [`ServerMessage::Error`]. After [`ClientMessage::Events`] the daemon only
//! sends, until either side closes.
//!
//! An import too large for one line is `ImportBegin`, any number of
//! `ImportChunk`, `ImportCommit`; each is answered, and only the commit
//! changes anything.

use std::{net::IpAddr, path::PathBuf};

use edge_common::{
    abi::{LimitKind, Mode},
    addr::Prefix,
    decide::Standing,
    reason::Reason,
};
use serde::{Deserialize, Serialize};

pub use crate::entry::{FeedName, List, Origin};
use crate::{
    status::{
        Status,
        attack::{Attack, Notice},
        balance::{BackendStatus, HealthNotice},
        proxy::UpstreamStatus,
        route::{Answer, Question, RouteEntry},
    },
    wire,
};

/// Version of this protocol. Client and daemon must have the same one, but for an upgrade: both
/// hellos, [`Request::Upgrade`], [`Response::Upgraded`] and [`ServerMessage::Error`] stay as they
/// are in all versions.
pub const VERSION: u32 = 7;

/// The longest line a client may send, without its newline.
pub const MAX_LINE: usize = 1 << 20;

/// The most prefixes in one chunk: as many of the longest as a line holds.
pub const MAX_CHUNK: usize = 16_384;

/// The most services that a [`Comparison`] tells of: each takes two rings.
pub const MAX_COMPARED: usize = 100;

/// The most entries in one page of a list.
pub const MAX_PAGE: u32 = 1000;

/// The longest note, in bytes.
pub const MAX_NOTE: usize = 256;

/// The longest time to live, in seconds: ten years.
pub const MAX_TTL_S: u64 = 3650 * 24 * 60 * 60;

/// The most events that are kept for `events` without `--follow`.
pub const MAX_RECENT_EVENTS: u32 = 1024;

/// One line from the client.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum ClientMessage {
    /// The first line.
    Hello {
        /// [`VERSION`].
        protocol: u32,
        /// Whether nothing is asked for but [`Request::Upgrade`], which a daemon of any version
        /// takes.
        #[serde(default, skip_serializing_if = "std::ops::Not::not")]
        upgrade: bool,
    },
    /// Something for the engine to do.
    Call(Request),
    /// Starts an import; a former one that was not committed is forgotten.
    ImportBegin(ImportHeader),
    /// More prefixes of the import.
    ImportChunk {
        /// At most [`MAX_CHUNK`].
        #[serde(with = "wire::texts")]
        prefixes: Vec<Prefix>,
    },
    /// Ends the import and carries it out.
    ImportCommit {},
    /// Sampled events.
    Events {
        /// So many of the last ones first, at most [`MAX_RECENT_EVENTS`].
        last: u32,
        /// Go on with new ones until the connection is closed.
        follow: bool,
    },
}

/// One line from the daemon.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ServerMessage {
    /// The answer to [`ClientMessage::Hello`].
    Hello {
        /// [`VERSION`].
        protocol: u32,
        /// Version of the daemon.
        version: String,
    },
    /// How far a long request has come.
    Progress {
        /// Entries done.
        done: u64,
        /// Of so many.
        total: u64,
    },
    /// The request succeeded.
    Result(Response),
    /// The request failed; nothing was changed unless the message says so.
    Error(Failure),
    /// A sampled event.
    Event(Event),
    /// An attack began or ended.
    Attack(Box<Notice>),
    /// The health of a backend changed.
    Health(Box<HealthNotice>),
    /// So many events were lost here because the client read too slowly.
    Lost(u64),
}

/// Head of an import.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ImportHeader {
    /// Into which list.
    pub list: List,
    /// As what.
    pub origin: Origin,
    /// Of which feed; [`FeedName::default`], if not given. Only with
    /// [`Origin::Feed`].
    pub feed: Option<FeedName>,
    /// Seconds from now until the entries expire; never, if not given.
    pub ttl_s: Option<u64>,
    /// Note of every entry.
    pub note: String,
    /// Entries of this list and feed that are not in the import go away, in the
    /// same step. Only with a `feed` that is given.
    pub replace: bool,
}

/// Entries to add, as the engine gets them from an `add` or a whole import.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Addition {
    /// To which list, as what, until when.
    pub header: ImportHeader,
    /// The entries. They may repeat.
    #[serde(with = "wire::texts")]
    pub prefixes: Vec<Prefix>,
}

/// Something for the engine to do. Each is answered with the [`Response`] of
/// the name given.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Request {
    /// [`Response::Status`]. The server answers it from [`crate::status::Source`];
    /// it never reaches the engine.
    Status {},
    /// Reads the configuration file again. [`Response::Reloaded`].
    Reload {},
    /// What a configuration would change if it came into force now; nothing is
    /// changed. [`Response::Comparison`].
    Compare {
        /// Its text.
        text: String,
        /// Name of its file, for messages.
        file: String,
    },
    /// Adds or updates entries, all or nothing. [`Response::Added`].
    Add(Addition),
    /// Removes the entries with exactly these prefixes, all or nothing: when
    /// one is missing, nothing is removed. [`Response::Removed`].
    Remove {
        /// From which list.
        list: List,
        /// The entries.
        #[serde(with = "wire::texts")]
        prefixes: Vec<Prefix>,
    },
    /// A page of a list, in the order of the prefixes. [`Response::Page`].
    List {
        /// Which list.
        list: List,
        /// Only entries inside this prefix.
        #[serde(with = "wire::text_option")]
        within: Option<Prefix>,
        /// Go on behind this entry.
        #[serde(with = "wire::text_option")]
        after: Option<Prefix>,
        /// At most so many entries, 1 to [`MAX_PAGE`].
        limit: u32,
    },
    /// Removes every entry (except those of the configuration file).
    /// [`Response::Flushed`].
    Flush {
        /// From which list.
        list: List,
        /// Only those of this origin.
        origin: Option<Origin>,
        /// Only those of this feed.
        feed: Option<FeedName>,
    },
    /// What holds for an address. [`Response::Lookup`].
    Lookup {
        /// The address.
        address: IpAddr,
    },
    /// The limits in force. [`Response::Limits`].
    Limits {},
    /// Changes a limit; the change outlasts a restart. [`Response::Limits`].
    SetLimit(SetLimit),
    /// Takes changes of [`Request::SetLimit`] back: what the file says is in
    /// force again. [`Response::Limits`].
    ResetLimits {
        /// Only of this kind.
        #[serde(with = "wire::word_option")]
        kind: Option<LimitKind>,
        /// Only of this prefix; without it, of the default and every prefix.
        #[serde(with = "wire::text_option")]
        prefix: Option<Prefix>,
    },
    /// Changes what holds for a backend; the change outlasts a restart. [`Response::Backend`].
    Backend {
        /// Its name, or its service's and its own, such as `web/web-1`.
        name: String,
        /// The change.
        change: BackendChange,
    },
    /// Changes what holds for a server of an upstream of the proxy, until the daemon ends.
    /// [`Response::Upstream`]. Answered without the engine, which may be busy.
    Upstream {
        /// The upstream.
        name: String,
        /// The server's address, as in the configuration.
        server: String,
        /// The change.
        change: ServerChange,
    },
    /// The routes of the proxy. [`Response::Routes`]. Likewise.
    Routes {},
    /// What a request would get from the proxy. [`Response::RouteTest`]. Likewise.
    RouteTest(Question),
    /// Starts a new process in the place of the daemon's. [`Response::Upgraded`], once it has taken
    /// over. When it does not, everything is as it was.
    Upgrade {
        /// Its program, an absolute path; without it, the file that the daemon was started from.
        binary: Option<PathBuf>,
        /// How long it may take to be ready, milliseconds, at least 1.
        timeout_ms: u64,
    },
    /// The attacks that are remembered. [`Response::Attacks`]. Answered without the
    /// engine, which may be busy.
    Attacks {},
    /// One of them, with sampled packets. [`Response::Attack`]. Likewise.
    Attack {
        /// Its number.
        id: u64,
    },
}

/// What a configuration would change.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Comparison {
    /// What was probably not meant, a sentence each.
    pub warnings: Vec<String>,
    /// What changes outside of balanced services, a sentence each.
    pub changes: Vec<String>,
    /// Balanced services of which something changes, by name; at most [`MAX_COMPARED`].
    pub services: Vec<ServiceChange>,
    /// How many more there are.
    pub more_services: usize,
}

/// What changes of a balanced service.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServiceChange {
    /// Its name.
    pub service: String,
    /// All of it as a sentence, without the stop.
    pub sentence: String,
    /// The slots of its ring that get another backend, and all of them; `None` for a service
    /// that is new, or goes.
    pub moved_slots: Option<(u32, u32)>,
    /// Those that would not have to move for every backend to get its share.
    pub needless_slots: Option<u32>,
    /// About how many live flows lose their backend; `None`: it is not known.
    pub lost_flows: Option<u64>,
}

/// A change of a limit. At least one of `rate` and `mode` is given.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SetLimit {
    /// Which limit.
    #[serde(with = "wire::word")]
    pub kind: LimitKind,
    /// For sources inside this prefix; without it, the default. Not with `mode`.
    #[serde(with = "wire::text_option")]
    pub prefix: Option<Prefix>,
    /// The new limit.
    pub rate: Option<LimitValue>,
    /// The new mode of this kind, for all sources.
    #[serde(with = "wire::word_option")]
    pub mode: Option<Mode>,
}

/// A limit on one source.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum LimitValue {
    /// No limit.
    Unlimited,
    /// So many packets (or bytes) a second, and so many at once.
    Rate {
        /// Packets or bytes a second, at least 1.
        per_second: u64,
        /// Packets or bytes at once, at least 1.
        burst: u64,
    },
}

/// A change of what holds for a backend.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum BackendChange {
    /// It gets no new flows; those that it has live on.
    Drain {
        /// For so long, seconds; without it, until they end by themselves.
        timeout_s: Option<u64>,
    },
    /// It is used again.
    Undrain {},
    /// It has another weight than the configured one.
    Weight {
        /// Which; without it, the configured one again.
        weight: Option<u32>,
    },
}

/// A change of what holds for a server of an upstream.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum ServerChange {
    /// It gets no new requests; those that it has go on.
    Drain {},
    /// It is used again.
    Undrain {},
    /// It has another weight than the configured one, until a reload that changes the upstream.
    Weight {
        /// At most [`MAX_WEIGHT`](crate::config::proxy::upstream::MAX_WEIGHT).
        weight: u16,
    },
}

/// The answer to a [`Request`] that succeeded.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Response {
    /// The facts.
    Status(Box<Status>),
    /// The new configuration is in force.
    Reloaded {
        /// Its generation.
        generation: u64,
        /// What changed or could not be changed without a restart, a sentence each.
        notes: Vec<String>,
    },
    /// What would change.
    Comparison(Comparison),
    /// The entries are in force and durable.
    Added {
        /// Entries that this source did not have.
        added: u64,
        /// Entries that it had, and that got a new expiry and note.
        updated: u64,
        /// Entries that `replace` removed.
        removed: u64,
    },
    /// The entries are gone, durably; or some were missing, and all are still there.
    Removed {
        /// How many prefixes; 0 when some were missing.
        removed: u64,
        /// Prefixes that are not on the list.
        #[serde(with = "wire::texts")]
        missing: Vec<Prefix>,
    },
    /// A page of a list.
    Page {
        /// The entries, in order.
        entries: Vec<Entry>,
        /// What to give as `after` for the next page; none at the end.
        #[serde(with = "wire::text_option")]
        next: Option<Prefix>,
    },
    /// The entries are gone, durably.
    Flushed {
        /// How many.
        removed: u64,
    },
    /// What holds for an address.
    Lookup(Lookup),
    /// The limits in force.
    Limits(Limits),
    /// The backend as it is now.
    Backend(Box<BackendStatus>),
    /// The upstream as it is now.
    Upstream(Box<UpstreamStatus>),
    /// The routes, in the order of the configuration.
    Routes(Vec<RouteEntry>),
    /// What the request would get at each listener that it may come to.
    RouteTest(Vec<Answer>),
    /// Another process has taken over.
    Upgraded {
        /// The process that had it.
        former_pid: u32,
        /// The one that has taken over.
        pid: u32,
        /// Its version.
        version: String,
    },
    /// The attacks, the newest first.
    Attacks(Vec<Attack>),
    /// An attack.
    Attack {
        /// What it came to.
        attack: Box<Attack>,
        /// Sampled packets, from begin to end.
        samples: Vec<Event>,
    },
    /// An import has so many prefixes up to now.
    Import {
        /// Prefixes.
        prefixes: u64,
    },
    /// All recent events were sent.
    EventsEnd {},
}

/// An entry of a list.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    /// Address or prefix.
    #[serde(with = "wire::text")]
    pub prefix: Prefix,
    /// On which list.
    pub list: List,
    /// Where it came from.
    pub origin: Origin,
    /// Of which feed; `null` when it is of none.
    pub feed: Option<FeedName>,
    /// When it was made, Unix milliseconds.
    pub created_unix_ms: u64,
    /// When it expires, Unix milliseconds; `null` for never.
    pub expires_unix_ms: Option<u64>,
    /// What somebody wrote about it.
    pub note: String,
    /// Packets that it decided, since the tables were made.
    pub hits: u32,
}

/// What holds for an address.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lookup {
    /// The address.
    pub address: IpAddr,
    /// What the tables say of it.
    #[serde(with = "wire::word")]
    pub standing: Standing,
    /// Every list entry that covers it, the shortest prefix first.
    pub entries: Vec<Entry>,
    /// Ranges of the configuration that cover it.
    pub ranges: Vec<Range>,
    /// What happens to a sound packet from this source.
    pub outcome: Outcome,
}

/// A range of the configuration that covers an address.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Range {
    /// The range.
    #[serde(with = "wire::text")]
    pub prefix: Prefix,
    /// Why it is there.
    pub role: RangeRole,
}

/// Why a range is in the configuration.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RangeRole {
    /// Management addresses.
    Management,
    /// Addresses that cannot be senders.
    Bogon,
    /// A range with limits of its own.
    Limits,
}

/// What happens to a sound packet from a source that is not over a limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Outcome {
    /// The reason it ends with.
    #[serde(with = "wire::word")]
    pub reason: Reason,
    /// What a check in dry run would have dropped it for.
    #[serde(with = "wire::word_option")]
    pub would_drop: Option<Reason>,
    /// Whether the limits apply to it.
    pub limited: bool,
}

impl wire::Word for Standing {
    const WHAT: &'static str = "a standing: management, allowlisted, blacklisted or unlisted";
    const VALUES: &'static [Self] = &[
        Self::Management,
        Self::Allowlisted,
        Self::Blacklisted,
        Self::Unlisted,
    ];
    fn word(self) -> &'static str {
        match self {
            Self::Management => "management",
            Self::Allowlisted => "allowlisted",
            Self::Blacklisted => "blacklisted",
            Self::Unlisted => "unlisted",
        }
    }
}

/// The limits in force.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Limits {
    /// IPv4 sources that share their first so many bits share a limit.
    pub v4_prefix: u8,
    /// The same for IPv6.
    pub v6_prefix: u8,
    /// Mode of every kind.
    pub modes: Vec<LimitMode>,
    /// The limits: the default ones first, then by prefix. An override that
    /// leaves a kind alone has no rule of that kind.
    pub rules: Vec<LimitRule>,
}

/// The mode of a kind of limit.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LimitMode {
    /// The kind.
    #[serde(with = "wire::word")]
    pub kind: LimitKind,
    /// Its mode.
    #[serde(with = "wire::word")]
    pub mode: Mode,
    /// [`Origin::File`] or [`Origin::Cli`].
    pub origin: Origin,
}

/// A limit.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LimitRule {
    /// The kind.
    #[serde(with = "wire::word")]
    pub kind: LimitKind,
    /// For sources inside this prefix; `null` for the default.
    #[serde(with = "wire::text_option")]
    pub prefix: Option<Prefix>,
    /// How much.
    pub limit: LimitValue,
    /// [`Origin::File`] or [`Origin::Cli`].
    pub origin: Origin,
}

/// A sampled packet.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Event {
    /// When, Unix milliseconds.
    pub unix_ms: u64,
    /// The interface it came in on.
    pub interface: String,
    /// Why it was dropped, or would have been.
    #[serde(with = "wire::word")]
    pub reason: Reason,
    /// Its check is in dry run: it was not dropped.
    pub would_drop: bool,
    /// Length of the frame in bytes.
    pub frame_len: u32,
    /// What could be read of its headers.
    pub packet: Option<Packet>,
    /// The first bytes of the frame, two hexadecimal digits each.
    pub data: String,
}

/// The headers of a sampled packet.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Packet {
    /// Source address.
    pub source: IpAddr,
    /// Destination address.
    pub destination: IpAddr,
    /// `tcp`, `udp`, `icmp`, `icmpv6`, `arp` or the number of the protocol.
    pub protocol: String,
    /// Source port of TCP and UDP.
    pub source_port: Option<u16>,
    /// Destination port of TCP and UDP.
    pub destination_port: Option<u16>,
}

/// Why a request failed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{message}")]
pub struct Failure {
    /// The class of the failure, for programs.
    pub kind: FailureKind,
    /// What is wrong and what to do about it, for people.
    pub message: String,
}

impl Failure {
    /// A failure of this kind.
    pub fn new(kind: FailureKind, message: impl Into<String>) -> Self {
        Self {
            kind,
            message: message.into(),
        }
    }
}

/// The class of a failure.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FailureKind {
    /// Not the protocol, or another version of it.
    Protocol,
    /// The peer may not do that.
    Denied,
    /// The request itself is wrong, for instance a value out of range.
    Invalid,
    /// A table is full; the message names the key that sizes it.
    Full,
    /// The configuration was refused; the old one is in force.
    Config,
    /// The state on disk could not be read or written.
    Store,
    /// The kernel refused something.
    Kernel,
    /// Too much is asked at once, or the daemon is stopping; try again.
    Busy,
    /// The new process did not take over.
    Upgrade,
    /// A fault of the daemon.
    Internal,
}

/// The commands by which requests are counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(usize)]
pub enum Command {
    /// [`Request::Status`].
    Status,
    /// [`Request::Reload`].
    Reload,
    /// [`Request::Compare`].
    Compare,
    /// [`Request::Add`].
    Add,
    /// [`Request::Remove`].
    Remove,
    /// [`Request::List`].
    List,
    /// [`Request::Flush`].
    Flush,
    /// [`Request::Lookup`].
    Lookup,
    /// [`Request::Limits`].
    Limits,
    /// [`Request::SetLimit`].
    SetLimit,
    /// [`Request::ResetLimits`].
    ResetLimits,
    /// [`Request::Attacks`].
    Attacks,
    /// [`Request::Attack`].
    Attack,
    /// [`Request::Backend`].
    Backend,
    /// [`Request::Upstream`].
    Upstream,
    /// [`Request::Routes`].
    Routes,
    /// [`Request::RouteTest`].
    RouteTest,
    /// [`Request::Upgrade`].
    Upgrade,
    /// An import, from begin to commit.
    Import,
    /// [`ClientMessage::Events`].
    Events,
    /// What was none of them.
    Malformed,
}

impl Command {
    /// All of them, in the order of their index.
    pub const ALL: [Self; 21] = [
        Self::Status,
        Self::Reload,
        Self::Compare,
        Self::Add,
        Self::Remove,
        Self::List,
        Self::Flush,
        Self::Lookup,
        Self::Limits,
        Self::SetLimit,
        Self::ResetLimits,
        Self::Attacks,
        Self::Attack,
        Self::Backend,
        Self::Upstream,
        Self::Routes,
        Self::RouteTest,
        Self::Upgrade,
        Self::Import,
        Self::Events,
        Self::Malformed,
    ];

    /// The word for it, also the value of the metric label.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Status => "status",
            Self::Reload => "reload",
            Self::Compare => "compare",
            Self::Add => "add",
            Self::Remove => "remove",
            Self::List => "list",
            Self::Flush => "flush",
            Self::Lookup => "lookup",
            Self::Limits => "limits",
            Self::SetLimit => "set_limit",
            Self::ResetLimits => "reset_limits",
            Self::Attacks => "attacks",
            Self::Attack => "attack",
            Self::Backend => "backend",
            Self::Upstream => "upstream",
            Self::Routes => "routes",
            Self::RouteTest => "route_test",
            Self::Upgrade => "upgrade",
            Self::Import => "import",
            Self::Events => "events",
            Self::Malformed => "malformed",
        }
    }
}

impl Request {
    /// The command it is counted by.
    pub const fn command(&self) -> Command {
        match self {
            Self::Status {} => Command::Status,
            Self::Reload {} => Command::Reload,
            Self::Compare { .. } => Command::Compare,
            Self::Add(_) => Command::Add,
            Self::Remove { .. } => Command::Remove,
            Self::List { .. } => Command::List,
            Self::Flush { .. } => Command::Flush,
            Self::Lookup { .. } => Command::Lookup,
            Self::Limits {} => Command::Limits,
            Self::SetLimit(_) => Command::SetLimit,
            Self::ResetLimits { .. } => Command::ResetLimits,
            Self::Attacks {} => Command::Attacks,
            Self::Attack { .. } => Command::Attack,
            Self::Backend { .. } => Command::Backend,
            Self::Upstream { .. } => Command::Upstream,
            Self::Routes {} => Command::Routes,
            Self::RouteTest(_) => Command::RouteTest,
            Self::Upgrade { .. } => Command::Upgrade,
        }
    }
}

#[cfg(test)]
mod tests;
