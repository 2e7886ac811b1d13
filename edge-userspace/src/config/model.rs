//! The checked configuration: what the rest of the daemon works with.
//!
//! A [`Model`] is made by [`super::load`] or [`super::parse`] only, and is
//! never changed afterwards, but for the limits that an operator sets at run
//! time ([`Model::with_limits`]).

use std::{
    net::{Ipv4Addr, SocketAddr},
    path::PathBuf,
};

use edge_common::{
    abi::{FragmentPolicy, Mode},
    addr::Prefix,
};

use super::{
    balance::{Balancing, Forward},
    floods::Floods,
    limits::Limits,
    proxy::Proxy,
    services::{Flood, Ports, Protocol, Service},
};
use crate::tables::Capacity;

/// Default of [`Model::state_dir`].
pub const STATE_DIR: &str = "/var/lib/edge";
/// Default of [`Model::socket`].
pub const SOCKET: &str = "/run/edge/edge.sock";
/// Default of [`Model::bpffs_dir`].
pub const BPFFS_DIR: &str = "/sys/fs/bpf/edge";
/// Default of [`Model::events_buffer`], bytes.
pub const EVENTS_BUFFER: u32 = 1 << 20;
/// Default of [`Model::events_per_second`].
pub const EVENTS_PER_SECOND: u32 = 10;

/// A whole configuration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Model {
    /// Names of the interfaces to protect: 1 to 32, each once.
    pub interfaces: Vec<String>,
    /// Whether the slow generic mode may be used where native XDP is missing.
    pub allow_generic: bool,
    /// What becomes of the program when the daemon ends.
    pub on_exit: OnExit,
    /// Directory of the database.
    pub state_dir: PathBuf,
    /// The control socket.
    pub socket: PathBuf,
    /// Directory in the BPF file system that holds the pins.
    pub bpffs_dir: PathBuf,
    /// Where metrics are served; `None` for nowhere.
    pub metrics_listen: Option<SocketAddr>,
    /// Room in the tables.
    pub capacity: Capacity,
    /// Bytes of the ring buffer of events: a power of two, and whole pages.
    pub events_buffer: u32,
    /// Events a second of each reason; 0 for none.
    pub events_per_second: u32,
    /// What each check does.
    pub checks: Checks,
    /// Source ranges that cannot be senders: sorted, none twice.
    pub bogon_prefixes: Vec<Prefix>,
    /// Addresses that only one MAC address may claim: sorted by address.
    pub arp_bindings: Vec<(Ipv4Addr, [u8; 6])>,
    /// Sources that nothing may lock out: sorted, none twice.
    pub management: Vec<Prefix>,
    /// The allowlist of the file: sorted, none twice.
    pub allow: Vec<Prefix>,
    /// The blacklist of the file: sorted, none twice.
    pub blacklist: Vec<Prefix>,
    /// Limits per source.
    pub limits: Limits,
    /// What all services share.
    pub flood: Flood,
    /// Floods that are no SYNs.
    pub floods: Floods,
    /// What all balanced services share.
    pub balancing: Balancing,
    /// What is protected against floods, or balanced, in the order of the file; no name twice.
    /// Last, if it is on, all ports of this host that are of no other.
    pub services: Vec<Service>,
    /// The L7 proxy.
    pub proxy: Proxy,
}

impl Model {
    /// The same configuration with other limits.
    #[must_use]
    pub fn with_limits(&self, limits: Limits) -> Self {
        Self {
            limits,
            ..self.clone()
        }
    }

    /// Whether this host's own TCP must take SYN cookies, and so needs its sysctls.
    pub fn needs_cookies(&self) -> bool {
        self.services.iter().any(Service::needs_cookies)
    }

    /// Whether any service is balanced.
    pub fn has_balanced(&self) -> bool {
        self.services.iter().any(|s| s.balance.is_some())
    }

    /// Numbers of source addresses of NAT ([`super::balance::Balancing::sources`]); 0 without a
    /// service that is balanced so.
    pub fn nat_sources(&self) -> u32 {
        let is_nat = |s: &Service| {
            let forward = s.balance.as_ref().map(|b| b.forward);
            forward == Some(Forward::Nat)
        };
        if self.services.iter().any(is_nat) {
            u32::try_from(self.balancing.sources()).unwrap_or(u32::MAX)
        } else {
            0
        }
    }

    /// Whether segments to ports of no service are judged.
    pub fn has_rest(&self) -> bool {
        self.services.iter().any(|s| s.ports == Ports::Rest)
    }

    /// What happens to packets of reflectors: off also where no service is UDP, so
    /// that it costs nothing.
    pub fn reflection_mode(&self) -> Mode {
        let mut services = self.services.iter();
        match services.any(|s| s.protocol == Protocol::Udp) {
            true => self.floods.reflection.mode,
            false => Mode::Off,
        }
    }

    /// What each check comes to: off also where it has nothing to look for (no
    /// bogon range, no ARP binding), so that it costs nothing.
    pub fn effective_checks(&self) -> Checks {
        let unless = |idle: bool, mode| if idle { Mode::Off } else { mode };
        Checks {
            bogons: unless(self.bogon_prefixes.is_empty(), self.checks.bogons),
            arp_guard: unless(self.arp_bindings.is_empty(), self.checks.arp_guard),
            ..self.checks
        }
    }
}

/// What becomes of the XDP program when the daemon ends in good order. After a
/// crash it always stays.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum OnExit {
    /// It stays and goes on dropping.
    #[default]
    Leave,
    /// It is detached, and its maps are removed.
    Detach,
}

impl OnExit {
    /// Both.
    pub const ALL: [Self; 2] = [Self::Leave, Self::Detach];

    /// The word for it in the configuration.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Leave => "leave",
            Self::Detach => "detach",
        }
    }
}

/// What each check does with what it finds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Checks {
    /// Headers that cannot be parsed.
    pub malformed: Mode,
    /// TCP flags that no stack sends together.
    pub tcp_flags: Mode,
    /// Source and destination address are the same.
    pub land: Mode,
    /// Sources in [`Model::bogon_prefixes`].
    pub bogons: Mode,
    /// Fragments, by `fragment_policy`.
    pub fragments: Mode,
    /// Which fragments.
    pub fragment_policy: FragmentPolicy,
    /// ARP packets that contradict [`Model::arp_bindings`].
    pub arp_guard: Mode,
    /// Sources on the blacklist.
    pub blacklist: Mode,
}

impl Default for Checks {
    /// All on: no check that is on by default stops a packet that a working
    /// host of the Internet sends.
    fn default() -> Self {
        Self {
            malformed: Mode::Enforce,
            tcp_flags: Mode::Enforce,
            land: Mode::Enforce,
            bogons: Mode::Enforce,
            fragments: Mode::Enforce,
            fragment_policy: FragmentPolicy::DropRisky,
            arp_guard: Mode::Enforce,
            blacklist: Mode::Enforce,
        }
    }
}

impl Checks {
    /// The key and mode of each check.
    pub const fn modes(&self) -> [(&'static str, Mode); 7] {
        [
            ("malformed", self.malformed),
            ("tcp_flags", self.tcp_flags),
            ("land", self.land),
            ("bogons", self.bogons),
            ("fragments", self.fragments),
            ("arp_guard", self.arp_guard),
            ("blacklist", self.blacklist),
        ]
    }
}
