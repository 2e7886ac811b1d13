//! Floods that are no SYNs: ICMP, reflection, and prefixes that send or get too much.

use std::ops::RangeInclusive;

use edge_common::{
    abi::Mode,
    defence::{HITTER_KINDS, ICMP_KINDS},
};

use super::limits::Rate;

/// UDP ports from which reflectors answer, and the protocol that does.
pub const REFLECTORS: [(u16, &str); 24] = [
    (17, "QOTD"),
    (19, "CharGen"),
    (53, "DNS"),
    (69, "TFTP"),
    (111, "portmapper"),
    (123, "NTP"),
    (137, "NetBIOS"),
    (161, "SNMP"),
    (177, "XDMCP"),
    (389, "CLDAP"),
    (427, "SLP"),
    (520, "RIPv1"),
    (623, "IPMI"),
    (1434, "SQL Server Browser"),
    (1900, "SSDP"),
    (3283, "Apple Remote Desktop"),
    (3702, "WS-Discovery"),
    (5093, "Sentinel RMS"),
    (5353, "mDNS"),
    (5683, "CoAP"),
    (10001, "Ubiquiti discovery"),
    (11211, "memcached"),
    (27960, "Quake"),
    (37810, "DHDiscover"),
];

/// What is limited. A section that is not in the file is off, and costs nothing.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Floods {
    /// ICMP and ICMPv6 of the whole host.
    pub icmp: Icmp,
    /// UDP packets from ports of reflectors, for each service.
    pub reflection: Reflection,
    /// Packets of a prefix or for a destination.
    pub prefixes: Prefixes,
}

/// How many ICMP messages the host takes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Icmp {
    /// What happens to those over a limit.
    pub mode: Mode,
    /// A second, by [`edge_common::defence::IcmpKind`].
    pub rates: [Rate; ICMP_KINDS],
}

impl Icmp {
    /// When the section is there and does not say: errors about live connections
    /// pass all the same, and nothing else that is limited keeps a host at work.
    pub const MODE: Mode = Mode::Enforce;
}

impl Default for Icmp {
    fn default() -> Self {
        Self {
            mode: Mode::Off,
            rates: [Rate::ICMP; ICMP_KINDS],
        }
    }
}

/// From where reflectors answer; the rates are the services'.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reflection {
    /// What happens to packets over a service's limit.
    pub mode: Mode,
    /// Source ports: sorted, apart from each other.
    pub ports: Vec<RangeInclusive<u16>>,
}

impl Reflection {
    /// When the section is there and does not say: a service may itself ask servers
    /// of names or time, or be one whose peers use the port of the service.
    pub const MODE: Mode = Mode::DryRun;
}

impl Default for Reflection {
    fn default() -> Self {
        Self {
            mode: Mode::Off,
            ports: REFLECTORS.map(|(port, _)| port..=port).into(),
        }
    }
}

/// How many packets a prefix may send, or get.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Prefixes {
    /// What happens to those over a limit.
    pub mode: Mode,
    /// A second, by [`edge_common::defence::Hitter`]; `None`: not looked for.
    pub rates: [Option<Rate>; HITTER_KINDS],
}

impl Prefixes {
    /// When the section is there and does not say: whole networks share an address
    /// or a prefix, and how much is theirs is seen first.
    pub const MODE: Mode = Mode::DryRun;

    /// What it comes to: off also without any rate.
    pub fn effective_mode(&self) -> Mode {
        match self.rates.iter().any(Option::is_some) {
            true => self.mode,
            false => Mode::Off,
        }
    }
}
