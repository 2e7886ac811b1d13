//! The file as written: every key it may have, typed, with its place.
//! Nothing here is checked against anything else; that is `validate`'s work.

use std::net::{Ipv4Addr, SocketAddr};

use edge_common::{
    abi::{FragmentPolicy, Mode},
    addr::Prefix,
};

use super::{
    model::OnExit,
    quantity::{ByteRate, Bytes, Count, CountRate},
    reader::{FromToml, Node, choice, parsed, section, wrong_type},
    report::{At, Report},
};

section! {
    /// The whole file.
    Root {
        interfaces = "interfaces": At<Vec<At<String>>>,
        xdp = "xdp": Xdp,
        paths = "paths": Paths,
        metrics = "metrics": Metrics,
        tables = "tables": Tables,
        checks = "checks": Checks,
        bogons = "bogons": Bogons,
        arp_bindings = "arp_binding": Vec<ArpBinding>,
        lists = "lists": Lists,
        limits = "limits": Limits,
        events = "events": Events,
    }
}

section! {
    /// `[xdp]`
    Xdp {
        allow_generic = "allow_generic": bool,
        on_exit = "on_exit": OnExit,
    }
}

section! {
    /// `[paths]`
    Paths {
        state_dir = "state_dir": At<String>,
        socket = "socket": At<String>,
        bpffs_dir = "bpffs_dir": At<String>,
    }
}

section! {
    /// `[metrics]`
    Metrics {
        listen = "listen": At<SocketAddr>,
    }
}

section! {
    /// `[tables]`
    Tables {
        hosts_v4 = "hosts_v4": At<Count>,
        hosts_v6 = "hosts_v6": At<Count>,
        prefixes = "prefixes": At<Count>,
        limiter_sources = "limiter_sources": At<Count>,
    }
}

section! {
    /// `[checks]`
    Checks {
        malformed = "malformed": Mode,
        tcp_flags = "tcp_flags": Mode,
        land = "land": Mode,
        bogons = "bogons": At<Mode>,
        fragments = "fragments": Mode,
        fragment_policy = "fragment_policy": FragmentPolicy,
        arp_guard = "arp_guard": At<Mode>,
        blacklist = "blacklist": Mode,
    }
}

section! {
    /// `[bogons]`
    Bogons {
        defaults = "defaults": bool,
        extra = "extra": Vec<At<Prefix>>,
        except = "except": Vec<At<Prefix>>,
    }
}

section! {
    /// `[[arp_binding]]`
    ArpBinding {
        address = "address": At<Ipv4Addr>,
        mac = "mac": At<Mac>,
    }
}

section! {
    /// `[lists]`
    Lists {
        management = "management": Vec<At<Prefix>>,
        allow = "allow": Vec<At<Prefix>>,
        blacklist = "blacklist": Vec<At<Prefix>>,
    }
}

section! {
    /// `[limits]`
    Limits {
        v4_prefix = "v4_prefix": At<Count>,
        v6_prefix = "v6_prefix": At<Count>,
        packets = "packets": PacketLimit,
        bytes = "bytes": ByteLimit,
        syn = "syn": PacketLimit,
        udp = "udp": PacketLimit,
        icmp = "icmp": PacketLimit,
        overrides = "override": Vec<Override>,
    }
}

section! {
    /// `[limits.packets]` and its like
    PacketLimit {
        mode = "mode": At<Mode>,
        rate = "rate": At<CountRate>,
        burst = "burst": At<Count>,
    }
}

section! {
    /// `[limits.bytes]`
    ByteLimit {
        mode = "mode": At<Mode>,
        rate = "rate": At<ByteRate>,
        burst = "burst": At<Bytes>,
    }
}

section! {
    /// `[[limits.override]]`
    Override {
        prefixes = "prefixes": At<Vec<At<Prefix>>>,
        packets = "packets": OverrideLimit<PacketRate>,
        bytes = "bytes": OverrideLimit<ByteAmounts>,
        syn = "syn": OverrideLimit<PacketRate>,
        udp = "udp": OverrideLimit<PacketRate>,
        icmp = "icmp": OverrideLimit<PacketRate>,
    }
}

section! {
    /// A limit of packets in an override
    PacketRate {
        rate = "rate": At<CountRate>,
        burst = "burst": At<Count>,
    }
}

section! {
    /// A limit of bytes in an override
    ByteAmounts {
        rate = "rate": At<ByteRate>,
        burst = "burst": At<Bytes>,
    }
}

section! {
    /// `[events]`
    Events {
        per_second = "per_second": At<Count>,
        buffer = "buffer": At<Bytes>,
    }
}

/// A limit in an override.
#[derive(Debug)]
pub(super) enum OverrideLimit<T> {
    /// The word "unlimited".
    Unlimited,
    /// `{ rate = …, burst = … }`
    Limit(T),
}

impl<T: FromToml> FromToml for OverrideLimit<T> {
    fn from_toml(node: &Node<'_>, key: &str, report: &mut Report<'_>) -> Option<Self> {
        let value = node.get_ref();
        if value.as_str() == Some("unlimited") {
            Some(Self::Unlimited)
        } else if value.is_table() {
            T::from_toml(node, key, report).map(Self::Limit)
        } else {
            wrong_type(
                node,
                key,
                "\"unlimited\" or { rate = 1000, burst = 200 }",
                report,
            );
            None
        }
    }

    fn keys(key: &str, all: &mut Vec<String>) {
        T::keys(key, all);
    }
}

/// A MAC address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Mac(pub(super) [u8; 6]);

impl FromToml for Mac {
    fn from_toml(node: &Node<'_>, key: &str, report: &mut Report<'_>) -> Option<Self> {
        const EXPECTED: &str = "a MAC address such as \"02:00:5e:10:00:01\"";
        parsed(node, key, EXPECTED, report, |text| {
            mac(text).ok_or_else(|| format!("no MAC address; expected {EXPECTED}"))
        })
    }
}

fn mac(text: &str) -> Option<Mac> {
    let mut octets = [0; 6];
    let mut parts = text.split(if text.contains('-') { '-' } else { ':' });
    for octet in &mut octets {
        let part = parts.next().filter(|p| p.len() == 2)?;
        // from_str_radix would take a sign.
        if !part.bytes().all(|b| b.is_ascii_hexdigit()) {
            return None;
        }
        *octet = u8::from_str_radix(part, 16).ok()?;
    }
    parts.next().is_none().then_some(Mac(octets))
}

impl FromToml for Prefix {
    fn from_toml(node: &Node<'_>, key: &str, report: &mut Report<'_>) -> Option<Self> {
        const EXPECTED: &str = "an address or a prefix in quotes, such as \"203.0.113.0/24\"";
        parsed(node, key, EXPECTED, report, |text| {
            text.parse::<Self>().map_err(|e| e.to_string())
        })
    }
}

impl FromToml for Ipv4Addr {
    fn from_toml(node: &Node<'_>, key: &str, report: &mut Report<'_>) -> Option<Self> {
        const EXPECTED: &str = "an IPv4 address such as \"203.0.113.1\"";
        parsed(node, key, EXPECTED, report, |text| {
            text.parse()
                .map_err(|_| format!("no IPv4 address; expected {EXPECTED}"))
        })
    }
}

impl FromToml for SocketAddr {
    fn from_toml(node: &Node<'_>, key: &str, report: &mut Report<'_>) -> Option<Self> {
        const EXPECTED: &str = "an address and a port such as \"127.0.0.1:9273\" or \"[::1]:9273\"";
        parsed(node, key, EXPECTED, report, |text| {
            text.parse()
                .map_err(|_| format!("no address with port; expected {EXPECTED}"))
        })
    }
}

impl FromToml for Mode {
    fn from_toml(node: &Node<'_>, key: &str, report: &mut Report<'_>) -> Option<Self> {
        choice(node, key, report, &Self::ALL, Self::name)
    }
}

impl FromToml for FragmentPolicy {
    fn from_toml(node: &Node<'_>, key: &str, report: &mut Report<'_>) -> Option<Self> {
        choice(node, key, report, &Self::ALL, Self::name)
    }
}

impl FromToml for OnExit {
    fn from_toml(node: &Node<'_>, key: &str, report: &mut Report<'_>) -> Option<Self> {
        choice(node, key, report, &Self::ALL, Self::name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mac_addresses_are_six_pairs_of_digits() {
        assert_eq!(
            mac("02:00:5e:10:00:fF"),
            Some(Mac([2, 0, 0x5e, 0x10, 0, 0xff]))
        );
        assert_eq!(mac("02-00-5e-10-00-01"), mac("02:00:5e:10:00:01"));
        for bad in [
            "",
            "02:00:5e:10:00",
            "02:00:5e:10:00:01:02",
            "2:0:5e:10:0:1",
            "02:00:5e:10:00:+1",
            "02:00-5e:10:00:01",
        ] {
            assert_eq!(mac(bad), None, "{bad}");
        }
    }
}
