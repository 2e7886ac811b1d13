//! Services, and how they are defended against floods.

use std::{collections::BTreeSet, net::IpAddr, ops::RangeInclusive};

use edge_common::{addr::Prefix, defence::When};

use super::{
    balance::{Backend, Balance},
    limits::Rate,
};

/// The longest name of a service, bytes.
pub const MAX_NAME: usize = 63;
/// The name of the service that is made of all TCP ports of this host that are of
/// no other one.
pub const HOST: &str = "host";
/// The most targets.
pub const MAX_SERVICE_TARGETS: u32 = 1 << 20;
/// The most verified sources: 128 MiB.
pub const MAX_VERIFIED_SOURCES: u32 = 1 << 24;

/// What an operator protects.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Service {
    /// Its name: `[a-z0-9._-]`, at most [`MAX_NAME`] bytes.
    pub name: String,
    /// Where it is reached.
    pub addresses: Addresses,
    /// And at each address of these, but for those that another service has by itself, with
    /// the same port and protocol; only if it is balanced. Sorted, no single addresses.
    pub prefixes: BTreeSet<Prefix>,
    /// On which ports.
    pub ports: Ports,
    /// Over which protocol.
    pub protocol: Protocol,
    /// Whether another host answers: always, if it is balanced. Then its answers do not come
    /// by here, unless they are translated ([`super::balance::Forward::Nat`]).
    pub forwarded: bool,
    /// Its backends, if it is balanced here.
    pub balance: Option<Balance>,
    /// Whether ICMP echo requests to its addresses are answered here; only if it is balanced.
    /// An address is answered for if one of its services says so.
    pub echo: bool,
    /// When it is defended against SYN floods; never if it is not TCP.
    pub syn: When,
    /// Whether it is only counted what the defence would do.
    pub dry_run: bool,
    /// Handshakes a second that may stay incomplete without being an attack.
    pub incomplete: Rate,
    /// Packets a second from ports of reflectors, if it is UDP.
    pub reflection: Rate,
}

impl Service {
    /// All TCP ports of this host that are of no other service, under the name
    /// [`HOST`]: its segments are judged, its SYNs are not.
    pub fn rest(dry_run: bool, incomplete: Rate) -> Self {
        Self {
            name: HOST.to_owned(),
            addresses: Addresses::Local,
            prefixes: BTreeSet::new(),
            ports: Ports::Rest,
            protocol: Protocol::Tcp,
            forwarded: false,
            balance: None,
            echo: false,
            syn: When::Auto,
            dry_run,
            incomplete,
            reflection: Rate::REFLECTION,
        }
    }

    /// Which port of a backend its health check asks: that of the check, or that which the
    /// backend listens on. `None` without a check; else there is one, or the file was
    /// refused.
    pub fn check_port(&self, backend: &Backend) -> Option<u16> {
        let check = self.balance.as_ref()?.health.as_ref()?;
        check.port.or(backend.port).or(self.ports.single())
    }

    /// How many addresses the file says it has; 0 for those of this host.
    pub fn listed_addresses(&self) -> u64 {
        let single = match &self.addresses {
            Addresses::Local => 0,
            Addresses::Listed(list) => list.len() as u64,
        };
        let size = |p: &Prefix| (p.last_bits() - p.bits()).saturating_add(1);
        let within: u128 = self.prefixes.iter().map(size).sum();
        single.saturating_add(u64::try_from(within).unwrap_or(u64::MAX))
    }

    /// Whether this host's own TCP must take cookies for it.
    pub fn needs_cookies(&self) -> bool {
        self.ports != Ports::Rest && !self.forwarded && !self.dry_run && self.syn != When::Off
    }
}

/// The addresses of a service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Addresses {
    /// Those of this host, as they come and go.
    Local,
    /// These: those of them that this host has, unless the service is forwarded. None, where
    /// there are only [`Service::prefixes`].
    Listed(BTreeSet<IpAddr>),
}

/// The ports of a service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ports {
    /// Those on which something listens, as listeners come and go, but for those
    /// that another service lists.
    Listening,
    /// These: sorted, apart from each other.
    Listed(Vec<RangeInclusive<u16>>),
    /// All, but for those that another service lists on the same address and protocol: only
    /// of a balanced one.
    Any,
    /// All that are of no other service.
    Rest,
}

impl Ports {
    /// The ports of its targets, of each address, by what the file says. [`Ports::Any`] is
    /// one target, under port 0.
    pub const fn targets(&self) -> &[RangeInclusive<u16>] {
        match self {
            Self::Listening | Self::Rest => &[],
            Self::Any => const { &[0..=0] },
            Self::Listed(ranges) => ranges.as_slice(),
        }
    }

    /// How many targets each address has, likewise.
    pub fn listed(&self) -> u32 {
        let count = |r: &RangeInclusive<u16>| u32::from(*r.end()) - u32::from(*r.start()) + 1;
        self.targets().iter().map(count).sum()
    }

    /// The port, if it is only one.
    pub fn single(&self) -> Option<u16> {
        match self {
            Self::Listed(ranges) if self.listed() == 1 => ranges.first().map(|r| *r.start()),
            _ => None,
        }
    }
}

/// The protocol of a service.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Protocol {
    /// TCP.
    #[default]
    Tcp,
    /// UDP.
    Udp,
}

impl Protocol {
    /// Both.
    pub const ALL: [Self; 2] = [Self::Tcp, Self::Udp];

    /// The word for it in the configuration.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
        }
    }
}

/// Who sets the sysctls that SYN cookies need.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Sysctls {
    /// The daemon, and it puts them back.
    #[default]
    Set,
    /// The operator; the daemon only looks.
    Check,
}

impl Sysctls {
    /// Both.
    pub const ALL: [Self; 2] = [Self::Set, Self::Check];

    /// The word for it in the configuration.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Set => "set",
            Self::Check => "check",
        }
    }
}

/// What all services share.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Flood {
    /// Of a hundred handshakes, those that an honest crowd completes: 1 to 100.
    pub completed: u32,
    /// How long a defence goes on after the pressure fell, seconds.
    pub hold_s: u64,
    /// Who sets the sysctls.
    pub sysctls: Sysctls,
    /// TTL or hop limit of replies.
    pub reply_ttl: u32,
    /// Window of a SYN-ACK.
    pub reply_window: u32,
    /// How long a source stays verified, seconds.
    pub verified_ttl_s: u64,
    /// Room for addresses and ports of services.
    pub targets: u32,
    /// Room for verified sources.
    pub verified_sources: u32,
}

impl Default for Flood {
    fn default() -> Self {
        Self {
            completed: 50,
            hold_s: 10,
            sysctls: Sysctls::Set,
            reply_ttl: 64,
            reply_window: 65_535,
            verified_ttl_s: 3600,
            targets: 4096,
            verified_sources: 65_536,
        }
    }
}
