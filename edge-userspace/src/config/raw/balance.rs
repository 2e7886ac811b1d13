//! What balanced services have in the file.

use std::{net::IpAddr, time::Duration};

use edge_common::{addr::Prefix, quic::ServerId};

use super::{Mac, range, written};
use crate::config::{
    balance::{Forward, Fragments, HashBy, Through},
    quantity::Count,
    reader::{FromToml, Node, choice, parsed, section},
    report::{At, Report},
};

section! {
    /// `[[service.backend]]`
    Backend {
        name = "name": At<String>,
        address = "address": At<IpAddr>,
        port = "port": At<Port>,
        weight = "weight": At<Count>,
        backup = "backup": bool,
        server_id = "server_id": At<ServerId>,
    }
}

section! {
    /// `[service.health]`
    HealthCheck {
        kind = "kind": At<ProbeKind>,
        interval = "interval": At<Duration>,
        timeout = "timeout": At<Duration>,
        rise = "rise": At<Count>,
        fall = "fall": At<Count>,
        jitter = "jitter": At<Count>,
        through = "through": At<Through>,
        port = "port": At<Port>,
        path = "path": At<String>,
        host = "host": At<String>,
        status = "status": At<StatusRange>,
        body = "body": At<String>,
        send = "send": At<String>,
        expect = "expect": At<String>,
        service = "service": At<String>,
        command = "command": At<Vec<At<String>>>,
        passive = "passive": At<bool>,
        passive_window = "passive_window": At<Duration>,
        passive_syns = "passive_syns": At<Count>,
        passive_retry = "passive_retry": At<Duration>,
    }
}

section! {
    /// `[balance]`
    Balance {
        flows = "flows": At<Count>,
        tcp_idle = "tcp_idle": At<Duration>,
        udp_idle = "udp_idle": At<Duration>,
        slots = "slots": At<Count>,
        seed_file = "seed_file": At<String>,
        snat = "snat": At<Vec<At<IpAddr>>>,
        tunnel_source = "tunnel_source": At<Vec<At<Prefix>>>,
        fragments = "fragments": Fragments,
        mss_clamp = "mss_clamp": bool,
        next_hops = "next_hop": Vec<NextHop>,
    }
}

section! {
    /// `[[balance.next_hop]]`
    NextHop {
        backend = "backend": At<IpAddr>,
        interface = "interface": At<String>,
        mac = "mac": At<Mac>,
    }
}

/// How packets of a service reach whoever answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::config) enum Forwarding {
    /// They go up to this host.
    Local,
    /// They go to a backend.
    Balanced(Forward),
}

impl Forwarding {
    const ALL: [Self; 5] = [
        Self::Local,
        Self::Balanced(Forward::Ipip),
        Self::Balanced(Forward::Gue),
        Self::Balanced(Forward::L2),
        Self::Balanced(Forward::Nat),
    ];

    const fn name(self) -> &'static str {
        match self {
            Self::Local => "local",
            Self::Balanced(forward) => forward.name(),
        }
    }
}

impl FromToml for Forwarding {
    fn from_toml(node: &Node<'_>, key: &str, report: &mut Report<'_>) -> Option<Self> {
        choice(node, key, report, &Self::ALL, Self::name)
    }
}

/// What a health check asks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::config) enum ProbeKind {
    Tcp,
    Http,
    Https,
    Udp,
    Grpc,
    Exec,
}

impl ProbeKind {
    const ALL: [Self; 6] = [
        Self::Tcp,
        Self::Http,
        Self::Https,
        Self::Udp,
        Self::Grpc,
        Self::Exec,
    ];

    /// The word for it.
    pub(in crate::config) const fn name(self) -> &'static str {
        match self {
            Self::Tcp => "tcp",
            Self::Http => "http",
            Self::Https => "https",
            Self::Udp => "udp",
            Self::Grpc => "grpc",
            Self::Exec => "exec",
        }
    }
}

impl FromToml for ProbeKind {
    fn from_toml(node: &Node<'_>, key: &str, report: &mut Report<'_>) -> Option<Self> {
        choice(node, key, report, &Self::ALL, Self::name)
    }
}

impl FromToml for Through {
    fn from_toml(node: &Node<'_>, key: &str, report: &mut Report<'_>) -> Option<Self> {
        choice(node, key, report, &Self::ALL, Self::name)
    }
}

impl FromToml for HashBy {
    fn from_toml(node: &Node<'_>, key: &str, report: &mut Report<'_>) -> Option<Self> {
        choice(node, key, report, &Self::ALL, Self::name)
    }
}

impl FromToml for Fragments {
    fn from_toml(node: &Node<'_>, key: &str, report: &mut Report<'_>) -> Option<Self> {
        choice(node, key, report, &Self::ALL, Self::name)
    }
}

impl FromToml for ServerId {
    fn from_toml(node: &Node<'_>, key: &str, report: &mut Report<'_>) -> Option<Self> {
        const EXPECTED: &str = "1 to 8 octets in hexadecimal digits, such as \"0a1b\"";
        parsed(node, key, EXPECTED, report, |text| {
            Self::from_hex(text).ok_or_else(|| format!("no server id; expected {EXPECTED}"))
        })
    }
}

/// A port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::config) struct Port(pub(in crate::config) u16);

impl FromToml for Port {
    fn from_toml(node: &Node<'_>, key: &str, report: &mut Report<'_>) -> Option<Self> {
        const EXPECTED: &str = "a port from 1 to 65535";
        let wrong = format!("no port; expected {EXPECTED}");
        written(node, key, EXPECTED, &wrong, report, |text| {
            let range = range(text)?;
            let port = *range.start();
            (port > 0 && port == *range.end()).then_some(Self(port))
        })
    }
}

/// Status codes of HTTP (RFC 9110, 15): first and last.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::config) struct StatusRange(pub(in crate::config) u16, pub(in crate::config) u16);

impl FromToml for StatusRange {
    fn from_toml(node: &Node<'_>, key: &str, report: &mut Report<'_>) -> Option<Self> {
        const EXPECTED: &str = "a status code from 100 to 599, or a range such as \"200-299\"";
        let wrong = format!("no status; expected {EXPECTED}");
        written(node, key, EXPECTED, &wrong, report, |text| {
            let range = range(text)?;
            let (first, last) = (*range.start(), *range.end());
            (first >= 100 && last <= 599).then_some(Self(first, last))
        })
    }
}
