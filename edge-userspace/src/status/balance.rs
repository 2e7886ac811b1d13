//! How the balancer is.

use std::net::IpAddr;

use serde::{Deserialize, Serialize};

/// All balanced services.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct BalanceStatus {
    /// In the order of the configuration.
    pub services: Vec<BalancedService>,
    /// The flow table.
    pub flows: FlowTable,
    /// Source addresses of NAT, by number.
    pub sources: Vec<NatSource>,
}

/// Source addresses of NAT that share their ports, at most one of each family.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct NatSource {
    /// The addresses.
    pub addresses: Vec<IpAddr>,
    /// Ports with a flow, as counted a moment ago.
    pub ports: u32,
    /// Ports that flows may have.
    pub capacity: u32,
}

impl NatSource {
    /// The addresses as one text.
    pub fn name(&self) -> String {
        let addresses: Vec<String> = self.addresses.iter().map(ToString::to_string).collect();
        addresses.join(",")
    }
}

/// A balanced service.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct BalancedService {
    /// Its name.
    pub name: String,
    /// How packets reach its backends: the key `forward`.
    pub forward: String,
    /// What chooses a backend: the key `hash`.
    pub hash: String,
    /// Codepoint of the configuration in connection ids; `null` unless they choose a backend.
    pub quic_config_id: Option<u8>,
    /// Whether too few backends are healthy, so that all are used as if they were.
    pub failed_open: bool,
    /// In the order of the configuration.
    pub backends: Vec<BackendStatus>,
}

/// What the operator says of a backend.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum AdminState {
    /// It is used.
    #[default]
    Active,
    /// It gets no new flows.
    Draining,
    /// It has none.
    Drained,
}

impl AdminState {
    /// The word for it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Active => "active",
            Self::Draining => "draining",
            Self::Drained => "drained",
        }
    }
}

/// A backend.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct BackendStatus {
    /// Its name.
    pub name: String,
    /// Where it is.
    pub address: IpAddr,
    /// The port that it listens on; `null`: that of the service.
    pub port: Option<u16>,
    /// Whether it is a backup.
    pub backup: bool,
    /// What connection ids of QUIC name it by, hexadecimal digits; `null` unless they choose
    /// a backend.
    pub server_id: Option<String>,
    /// Its number in the kernel's tables.
    pub number: u32,
    /// The weight that the file gives it.
    pub configured_weight: u32,
    /// The weight that was set at run time.
    pub set_weight: Option<u32>,
    /// The weight in force; 0: it gets no new flows.
    pub weight: u32,
    /// Its share of new flows, 0 to 1.
    pub share: f64,
    /// What the operator says.
    pub admin: AdminState,
    /// What checks say: `unknown`, `up`, `down` or `held`; without checks `null`, or `down` while
    /// connections of clients fail.
    pub health: Option<String>,
    /// Which way checks go: `tunnel`, as packets of clients do, or `direct`; `null` without checks.
    pub health_through: Option<String>,
    /// Since when, milliseconds of Unix time.
    pub health_since_unix_ms: Option<u64>,
    /// How often it changed since the daemon started.
    pub health_changes: u64,
    /// Why it gets new flows, or does not.
    pub why: String,
    /// What went wrong with the last check, or with connections of clients, unless it is up.
    pub error: Option<String>,
    /// Why packets cannot reach it.
    pub no_way: Option<String>,
    /// Flows, as counted a moment ago.
    pub flows: u32,
    /// Packets that went to it.
    pub packets: u64,
    /// Bytes of them, as they came.
    pub bytes: u64,
    /// SYNs that went to it; `null` unless by `nat`.
    pub syns: Option<u64>,
    /// SYN-ACKs that came from it, likewise.
    pub syn_acks: Option<u64>,
    /// Resets that came from it in answer to SYNs, likewise.
    pub refusals: Option<u64>,
}

/// The health of a backend changed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HealthNotice {
    /// When it was noticed, Unix milliseconds.
    pub unix_ms: u64,
    /// The service.
    pub service: String,
    /// The backend.
    pub backend: String,
    /// What it was: `unknown`, `up`, `down` or `held`.
    pub old: String,
    /// What it is.
    pub new: String,
    /// Why, in one line.
    pub why: String,
}

/// The flow table.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct FlowTable {
    /// Flows that there is room for.
    pub capacity: u64,
    /// Flows in it, as counted a moment ago.
    pub live: u64,
    /// Packets of flows that were in it.
    pub hits: u64,
    /// Packets of flows that were not.
    pub misses: u64,
    /// Flows that took a free place.
    pub inserted: u64,
    /// Flows that took the place of one that had not become established.
    pub replaced: u64,
    /// Flows that found no place.
    pub refused: u64,
    /// Packets of QUIC that went to the backend that their connection id names.
    pub quic_routed: u64,
    /// Packets of QUIC whose connection id names a server that is none of the service's.
    pub quic_unknown_id: u64,
}
