//! The file as written: every key it may have, typed, with its place.
//! Nothing here is checked against anything else; that is `validate`'s work.

mod balance;
pub(super) mod proxy;

use std::{
    net::{IpAddr, Ipv4Addr, SocketAddr},
    ops::RangeInclusive,
    time::Duration,
};

use edge_common::{
    abi::{FragmentPolicy, Mode},
    addr::{Prefix, PrefixError},
    defence::When,
};

pub(super) use balance::{Backend, Balance, Forwarding, HealthCheck, ProbeKind};

use super::{
    balance::HashBy,
    model::OnExit,
    quantity::{ByteRate, Bytes, Count, CountRate, Seconds},
    reader::{FromToml, Node, choice, parsed, section, wrong_type},
    report::{At, Report},
    services::{Protocol, Sysctls},
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
        flood = "flood": Flood,
        services = "service": Vec<Service>,
        balance = "balance": Balance,
        events = "events": Events,
        proxy = "proxy": proxy::Proxy,
        listeners = "listener": Vec<proxy::Listener>,
        upstreams = "upstream": Vec<proxy::Upstream>,
        routes = "route": Vec<proxy::Route>,
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
        service_targets = "service_targets": At<Count>,
        verified_sources = "verified_sources": At<Count>,
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
    /// `[flood]`
    Flood {
        syn = "syn": When,
        dry_run = "dry_run": bool,
        incomplete = "incomplete": PacketRate,
        completed = "completed": At<Count>,
        hold = "hold": At<Seconds>,
        sysctls = "sysctls": Sysctls,
        reply_ttl = "reply_ttl": At<Count>,
        reply_window = "reply_window": At<Count>,
        verified_ttl = "verified_ttl": At<Seconds>,
        rest = "rest": Rest,
        icmp = "icmp": IcmpFlood,
        reflection = "reflection": Reflection,
        prefixes = "prefixes": PrefixFlood,
    }
}

section! {
    /// `[flood.icmp]`
    IcmpFlood {
        mode = "mode": Mode,
        echo = "echo": PacketRate,
        errors = "errors": PacketRate,
        other = "other": PacketRate,
    }
}

section! {
    /// `[flood.reflection]`
    Reflection {
        mode = "mode": Mode,
        ports = "ports": At<Vec<At<PortRange>>>,
        rate = "rate": At<CountRate>,
        burst = "burst": At<Count>,
    }
}

section! {
    /// `[flood.prefixes]`
    PrefixFlood {
        mode = "mode": Mode,
        source = "source": PacketRate,
        source_wide = "source_wide": PacketRate,
        dest = "dest": PacketRate,
        dest_prefix = "dest_prefix": PacketRate,
    }
}

section! {
    /// `[[service]]`
    Service {
        name = "name": At<String>,
        addresses = "addresses": At<Vec<At<ServiceAddress>>>,
        ports = "ports": At<Ports>,
        protocol = "protocol": At<Protocol>,
        forwarded = "forwarded": At<bool>,
        forward = "forward": At<Forwarding>,
        hash = "hash": At<HashBy>,
        quic_config_id = "quic_config_id": At<Count>,
        floor = "floor": At<Count>,
        slow_start = "slow_start": At<Duration>,
        echo = "echo": At<bool>,
        backends = "backend": Vec<Backend>,
        health = "health": HealthCheck,
        syn = "syn": When,
        dry_run = "dry_run": bool,
        incomplete = "incomplete": PacketRate,
        reflection = "reflection": PacketRate,
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

/// Where a service is reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum ServiceAddress {
    /// The word "local".
    Local,
    /// An address, or several.
    Within(Prefix),
}

impl FromToml for ServiceAddress {
    fn from_toml(node: &Node<'_>, key: &str, report: &mut Report<'_>) -> Option<Self> {
        const EXPECTED: &str = "\"local\" or an address such as \"203.0.113.7\"";
        parsed(node, key, EXPECTED, report, |text| match text {
            "local" => Ok(Self::Local),
            text => text.parse().map(Self::Within).map_err(|e| match e {
                PrefixError::Address => format!("no address; expected {EXPECTED}"),
                e => e.to_string(),
            }),
        })
    }
}

/// When ports of no service are defended: never, or under attack.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Rest(pub(super) When);

impl FromToml for Rest {
    fn from_toml(node: &Node<'_>, key: &str, report: &mut Report<'_>) -> Option<Self> {
        choice(node, key, report, &[When::Off, When::Auto], When::name).map(Self)
    }
}

/// The ports of a service.
#[derive(Clone, Debug)]
pub(super) enum Ports {
    /// The word "listening".
    Listening,
    /// The word "any".
    Any,
    /// Ports and ranges.
    Listed(Vec<At<PortRange>>),
}

impl FromToml for Ports {
    fn from_toml(node: &Node<'_>, key: &str, report: &mut Report<'_>) -> Option<Self> {
        let word = node.get_ref().as_str();
        if word == Some("listening") {
            Some(Self::Listening)
        } else if word == Some("any") {
            Some(Self::Any)
        } else if node.get_ref().as_array().is_some() {
            Vec::from_toml(node, key, report).map(Self::Listed)
        } else {
            wrong_type(
                node,
                key,
                "a list such as [443, \"8000-8010\"], \"listening\" or \"any\"",
                report,
            );
            None
        }
    }
}

/// A port or a range of them, both ends included.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct PortRange(pub(super) RangeInclusive<u16>);

impl FromToml for PortRange {
    fn from_toml(node: &Node<'_>, key: &str, report: &mut Report<'_>) -> Option<Self> {
        const EXPECTED: &str = "a port from 1 to 65535, or a range such as \"8000-8010\"";
        let wrong = format!("no port; expected {EXPECTED}");
        written(node, key, EXPECTED, &wrong, report, port_range)
    }
}

/// Reads an integer, in decimal, or a string, as it is written.
fn written<T>(
    node: &Node<'_>,
    key: &str,
    expected: &str,
    wrong: &str,
    report: &mut Report<'_>,
    read: impl FnOnce(&str) -> Option<T>,
) -> Option<T> {
    let value = node.get_ref();
    let read = match (value.as_integer(), value.as_str()) {
        (Some(n), _) if n.radix() == 10 => read(n.as_str()),
        (_, Some(text)) => read(text),
        (Some(_), None) => None,
        (None, None) => {
            wrong_type(node, key, expected, report);
            return None;
        }
    };
    if read.is_none() {
        report.problem(&super::reader::place(node, key), wrong);
    }
    read
}

fn port_range(text: &str) -> Option<PortRange> {
    let range = range(text)?;
    (*range.start() > 0).then_some(PortRange(range))
}

/// A decimal number, or two that ascend, with a `-` between them.
fn range(text: &str) -> Option<RangeInclusive<u16>> {
    let number = |text: &str| {
        let digits = text.bytes().all(|b| b.is_ascii_digit());
        text.parse::<u16>().ok().filter(|_| digits)
    };
    let (first, last) = text.split_once('-').unwrap_or((text, text));
    let (first, last) = (number(first)?, number(last)?);
    (first <= last).then_some(first..=last)
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

impl FromToml for IpAddr {
    fn from_toml(node: &Node<'_>, key: &str, report: &mut Report<'_>) -> Option<Self> {
        const EXPECTED: &str = "an address such as \"192.0.2.1\" or \"2001:db8::1\"";
        parsed(node, key, EXPECTED, report, |text| {
            text.parse()
                .map_err(|_| format!("no address; expected {EXPECTED}"))
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

impl FromToml for When {
    fn from_toml(node: &Node<'_>, key: &str, report: &mut Report<'_>) -> Option<Self> {
        choice(node, key, report, &Self::ALL, Self::name)
    }
}

impl FromToml for Protocol {
    fn from_toml(node: &Node<'_>, key: &str, report: &mut Report<'_>) -> Option<Self> {
        choice(node, key, report, &Self::ALL, Self::name)
    }
}

impl FromToml for Sysctls {
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
    fn ports_are_decimal_and_ranges_ascend() {
        let range = |text| port_range(text).map(|r| r.0);
        assert_eq!(range("443"), Some(443..=443));
        assert_eq!(range("8000-8010"), Some(8000..=8010));
        assert_eq!(range("1-65535"), Some(1..=65_535));
        for bad in [
            "", "0", "65536", "+80", "80-", "-80", "90-80", "80-90-91", "http",
        ] {
            assert_eq!(range(bad), None, "{bad}");
        }
    }

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
