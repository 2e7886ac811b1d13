//! What the daemon knows of itself: one set of facts that `edge status`
//! prints and the metrics are made of. Putting it together reads counters and
//! O(1) counts only, never a table from end to end.

pub mod attack;
pub mod balance;
pub mod decap;
pub mod proxy;
pub mod route;

use std::collections::BTreeMap;

use attack::{Attack, Found};
use edge_common::{defence::When, reason::Reason};
use serde::{Deserialize, Serialize};

use crate::{entry::List, wire};

/// Who can tell the [`Status`], at any time and without waiting for work that
/// is under way. Called from a thread that may block for a short time.
pub trait Source: Send + Sync + 'static {
    /// The facts of this moment.
    fn status(&self) -> Status;
}

/// The facts. All times are Unix milliseconds, all sizes bytes.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Status {
    /// Version of the daemon.
    pub version: String,
    /// [`edge_common::abi::ABI_VERSION`] of its tables.
    pub abi_version: u32,
    /// Process id.
    pub pid: u32,
    /// When the daemon started.
    pub started_unix_ms: u64,
    /// How long it has been running, milliseconds of the monotonic clock.
    pub uptime_ms: u64,
    /// The configuration in force.
    pub config: ConfigStatus,
    /// Reloads since the start.
    pub reloads: Reloads,
    /// The interfaces, in the order of the configuration.
    pub interfaces: Vec<InterfaceStatus>,
    /// The services, in the order of the configuration.
    pub services: Vec<ServiceStatus>,
    /// What is limited of the host as a whole.
    #[serde(default)]
    pub host_floods: Vec<HostFloodStatus>,
    /// Fill of every table that has a capacity.
    pub tables: Vec<TableStatus>,
    /// Entries of the lists.
    pub lists: Vec<ListCount>,
    /// State of the limiter.
    pub limiter: LimiterStatus,
    /// Sampled events.
    pub events: EventsStatus,
    /// Requests on the control socket.
    pub control: Vec<ControlCount>,
    /// Packets that went on without the flood defence because its program was missing.
    #[serde(default)]
    pub stage_missing: u64,
    /// The balancer; absent without balanced services.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub balance: Option<balance::BalanceStatus>,
    /// The proxy; absent without listeners.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub proxy: Option<proxy::ProxyStatus>,
}

/// The configuration in force.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct ConfigStatus {
    /// The file it was read from.
    pub file: String,
    /// 1 at the start, one more at every successful reload or change of limits.
    pub generation: u64,
    /// When this generation came into force.
    pub since_unix_ms: u64,
}

/// Reloads since the start; the load at the start is none.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Reloads {
    /// Reloads that came into force.
    pub succeeded: u64,
    /// Reloads that were refused or rolled back.
    pub failed: u64,
    /// When the last one came into force.
    pub last_success_unix_ms: Option<u64>,
    /// When the last one failed.
    pub last_failure_unix_ms: Option<u64>,
    /// Why the last one failed; gone after one that succeeded.
    pub last_error: Option<String>,
}

/// How the program is attached.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum AttachMode {
    /// In the driver.
    Native,
    /// In the stack, after the kernel has made an skb of the frame: slow.
    Generic,
}

impl AttachMode {
    /// The word for it, also the value of the metric label.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Native => "native",
            Self::Generic => "generic",
        }
    }
}

/// Packets and bytes (whole frames).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Traffic {
    /// Packets.
    pub packets: u64,
    /// Bytes.
    pub bytes: u64,
}

/// One interface. The counters live in the kernel and outlast the daemon.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct InterfaceStatus {
    /// Its name.
    pub name: String,
    /// Its kernel index; 0 while it does not exist.
    pub ifindex: u32,
    /// How the program is attached; `null` while it is not.
    pub mode: Option<AttachMode>,
    /// Why the program is not attached.
    pub problem: Option<String>,
    /// Whether the link of a former daemon was taken over.
    pub adopted: bool,
    /// All that passed when this daemon started.
    pub passed_at_start: Traffic,
    /// All that was dropped when this daemon started.
    pub dropped_at_start: Traffic,
    /// Counters by reason; those that are not zero.
    pub reasons: Vec<ReasonCount>,
}

/// The counters of one reason on one interface.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct ReasonCount {
    /// The reason.
    #[serde(with = "wire::word")]
    pub reason: Reason,
    /// What ended with the reason.
    pub ended: Traffic,
    /// What would have been dropped for it, were its check not in dry run.
    pub would_drop: Traffic,
}

/// A service, as it was a moment ago.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct ServiceStatus {
    /// Its name.
    pub name: String,
    /// When it is defended against SYN floods: `off`, `auto` or `always`.
    pub syn: String,
    /// Whether it is only counted what the defence would do.
    pub dry_run: bool,
    /// Whether another host answers.
    pub forwarded: bool,
    /// Its addresses and ports.
    pub targets: ServiceTargets,
    /// Whether the program finds it under attack.
    pub under_attack: bool,
    /// Since when; gone with the attack.
    pub attack_since_unix_ms: Option<u64>,
    /// The attack that is on; gone with it.
    pub attack: Option<Box<Attack>>,
    /// Attacks that began since the daemon started.
    pub attacks: u64,
    /// Whether its SYNs are answered in its place, at one address and port at least.
    pub defended: bool,
    /// Incomplete handshakes as a share of those that are tolerated: an attack is
    /// found above 1.
    pub pressure: f64,
    /// SYNs a second.
    pub syn_per_second: f64,
    /// By [`edge_common::defence::ServiceCounter::name`]. They live in the kernel
    /// and outlast the daemon.
    pub counters: BTreeMap<String, u64>,
}

impl ServiceStatus {
    /// Whether it is to be defended and cannot be: no listener is ready.
    pub fn lacks_listeners(&self) -> bool {
        let wanted = self.syn != When::Off.name() && !self.dry_run;
        wanted && !self.forwarded && self.targets.ready == 0
    }
}

/// Floods of a kind, of the host as a whole.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct HostFloodStatus {
    /// What an attack is found by: one of [`Found::HOST`].
    pub flood: Found,
    /// Whether what is over the limit is only counted.
    pub dry_run: bool,
    /// The attack that is on; gone with it.
    pub attack: Option<Box<Attack>>,
    /// Attacks that began since the daemon started.
    pub attacks: u64,
}

/// The addresses and ports of a service, each port of each address.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServiceTargets {
    /// How many there are.
    pub total: u64,
    /// Those whose SYNs the program can answer: of ports of this host those with a
    /// listener whose window scale is known.
    pub ready: u64,
}

/// Fill of a table.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TableStatus {
    /// Its key under `[tables]` in the configuration, for instance `hosts_v4`.
    pub table: String,
    /// Entries in it.
    pub entries: u64,
    /// Entries it is sized for.
    pub capacity: u64,
}

/// Entries of a list.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ListCount {
    /// Which list.
    pub list: List,
    /// IPv4 or IPv6.
    pub family: FamilyName,
    /// Single addresses or prefixes.
    pub kind: EntryKind,
    /// How many.
    pub entries: u64,
}

/// An address family.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FamilyName {
    /// IPv4.
    Ipv4,
    /// IPv6.
    Ipv6,
}

impl FamilyName {
    /// The word for it, also the value of the metric label.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Ipv4 => "ipv4",
            Self::Ipv6 => "ipv6",
        }
    }
}

/// A single address or a prefix.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum EntryKind {
    /// A /32 or /128.
    Host,
    /// Anything shorter.
    Prefix,
}

impl EntryKind {
    /// The word for it, also the value of the metric label.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Host => "host",
            Self::Prefix => "prefix",
        }
    }
}

/// State of the limiter: [`edge_common::abi::TableStat`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct LimiterStatus {
    /// Entries taken for the first time: the fill.
    pub claimed: u64,
    /// Entries taken over from an idle source, losing nothing.
    pub recycled: u64,
    /// Entries taken from a source whose limit was still in use.
    pub evicted: u64,
    /// Packets denied because other CPUs won every compare-and-swap.
    pub contended: u64,
}

/// Sampled events.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct EventsStatus {
    /// Read from the ring buffer since the start.
    pub read: u64,
    /// Lost in the kernel because the ring buffer was full.
    pub lost_in_kernel: u64,
    /// Not delivered to a follower that read too slowly.
    pub lost_by_followers: u64,
}

/// Requests of one command on the control socket since the start.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ControlCount {
    /// The command, for instance `add`.
    pub command: String,
    /// Answered with success.
    pub succeeded: u64,
    /// Answered with an error.
    pub failed: u64,
}
