//! From the raw file to the model: every rule that ties a value to a bound or
//! to another value. A section that is wrong is reported and replaced by its
//! default, so that the rest is checked as well.

mod backends;
mod balance;
mod balancing;
mod floods;
mod health;
mod limits;
mod lists;
mod proxy;
mod services;
mod targets;

use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv4Addr},
    path::{Component, Path, PathBuf},
    time::Duration,
};

use edge_common::{
    abi::{MAX_INTERFACES, Mode},
    addr::Prefix,
};

use super::{
    limits::Limits,
    model::{BPFFS_DIR, Checks, EVENTS_BUFFER, EVENTS_PER_SECOND, Model, SOCKET, STATE_DIR},
    quantity::{Count, spelt},
    raw,
    report::{At, Place, Report},
};
use crate::tables::Capacity;

/// The longest name of an interface: `IFNAMSIZ` less the terminating zero.
const MAX_INTERFACE_NAME: usize = 15;
/// The longest path of a Unix socket: `sun_path` less the terminating zero.
const MAX_SOCKET_PATH: usize = 107;
/// The longest path, as `PATH_MAX` less the names that are appended.
const MAX_PATH: usize = 3072;
/// The most IPv4 or IPv6 hosts.
pub(super) const MAX_HOSTS: u32 = 20_000_000;
/// The most prefixes.
pub(super) const MAX_PREFIXES: u32 = 2_000_000;
/// The most sources that the limits tell apart: 1 GiB of memory.
pub(super) const MAX_LIMITER_SOURCES: u32 = 1 << 24;
/// The most ARP bindings.
const MAX_ARP_BINDINGS: usize = 4096;
/// The most events a second of each reason.
const MAX_EVENTS_PER_SECOND: u32 = 10_000;
/// The smallest ring buffer: 64 KiB, 16 pages of the usual size or one of the largest.
const MIN_EVENTS_BUFFER: u32 = 1 << 16;
/// The largest ring buffer.
const MAX_EVENTS_BUFFER: u32 = 1 << 28;

/// Checks the whole file. The model counts only when nothing was reported.
pub(super) fn model(raw: &raw::Root, report: &mut Report<'_>, tick_ns: u64) -> Model {
    let capacity = capacity(raw.tables.as_ref(), report);
    let (events_buffer, events_per_second) = events(raw.events.as_ref(), report);
    let paths = paths(raw.paths.as_ref(), report);
    let checks = checks(raw.checks.as_ref());
    let limits = raw
        .limits
        .as_ref()
        .map_or_else(Limits::default, |l| limits::limits(l, report, tick_ns));
    let flood = services::flood(raw.flood.as_ref(), raw.tables.as_ref(), report);
    let floods = floods::floods(raw.flood.as_ref(), report, tick_ns);
    let balancing = balancing::balancing(raw.balance.as_ref(), report);
    let services = services::services(raw, &flood, &balancing, report, tick_ns);
    let none = raw::Lists::default();
    let raw_lists = raw.lists.as_ref().unwrap_or(&none);
    let metrics_listen = metrics(raw.metrics.as_ref(), report);
    let proxy = proxy::proxy(raw, metrics_listen, report);
    let model = Model {
        interfaces: interfaces(raw, report),
        allow_generic: raw
            .xdp
            .as_ref()
            .and_then(|x| x.allow_generic)
            .unwrap_or(false),
        on_exit: raw.xdp.as_ref().and_then(|x| x.on_exit).unwrap_or_default(),
        state_dir: paths.state_dir,
        socket: paths.socket,
        bpffs_dir: paths.bpffs_dir,
        metrics_listen,
        capacity,
        events_buffer,
        events_per_second,
        checks,
        bogon_prefixes: lists::bogons(raw.bogons.as_ref(), report),
        arp_bindings: arp_bindings(raw.arp_bindings.as_deref().unwrap_or(&[]), report),
        management: lists::list(raw_lists.management.as_deref(), report),
        allow: lists::list(raw_lists.allow.as_deref(), report),
        blacklist: lists::list(raw_lists.blacklist.as_deref(), report),
        limits,
        flood,
        floods,
        balancing,
        services,
        proxy,
    };
    lists::check_room(&model, raw, report);
    lists::check_effect(&model, raw_lists, report);
    check_guards(&model, raw, report);
    services::check_effect(&model, raw, report);
    floods::check_effect(&model, raw, report);
    model
}

fn interfaces(raw: &raw::Root, report: &mut Report<'_>) -> Vec<String> {
    let Some(list) = &raw.interfaces else {
        if !report.has_problem_at("interfaces") {
            report.problem_without_value(
                &Place::default().child("interfaces"),
                "missing; name the network interfaces to protect, such as interfaces = [\"eth0\"]",
            );
        }
        return Vec::new();
    };
    if list.value.is_empty() && !report.has_problem_at("interfaces") {
        report.problem(
            &list.place,
            "no interface; name at least one, such as [\"eth0\"]",
        );
    }
    if list.value.len() > MAX_INTERFACES as usize {
        report.problem_without_value(
            &list.place,
            format_args!(
                "{} interfaces; one daemon serves at most {MAX_INTERFACES}, run a second one with paths of its own",
                list.value.len()
            ),
        );
    }
    let mut names: Vec<String> = Vec::new();
    for at in list.value.iter().take(MAX_INTERFACES as usize) {
        let At { value: name, place } = at;
        if names.contains(name) {
            report.problem(place, "named twice; remove one");
        } else if check_interface(at, report) {
            if name == "lo" {
                report.warn(
                    place,
                    "the loopback interface: its sources are 127.0.0.1 and ::1, which are bogons, and it knows no native XDP",
                );
            }
            names.push(name.clone());
        }
    }
    names
}

/// Whether an interface can have a name.
fn check_interface(At { value: name, place }: &At<String>, report: &mut Report<'_>) -> bool {
    let is_name = is_interface_name(name);
    if !is_name {
        report.problem(
            place,
            format_args!(
                "no name of an interface (1 to {MAX_INTERFACE_NAME} bytes without blanks, '/' and ':'); see `ip link`"
            ),
        );
    }
    is_name
}

/// As the kernel's `dev_valid_name`, and without control characters.
fn is_interface_name(name: &str) -> bool {
    (1..=MAX_INTERFACE_NAME).contains(&name.len())
        && name != "."
        && name != ".."
        && !name
            .chars()
            .any(|c| c == '/' || c == ':' || c.is_whitespace() || c.is_control())
}

struct Paths {
    state_dir: PathBuf,
    socket: PathBuf,
    bpffs_dir: PathBuf,
}

fn paths(raw: Option<&raw::Paths>, report: &mut Report<'_>) -> Paths {
    let none = raw::Paths::default();
    let raw = raw.unwrap_or(&none);
    let paths = Paths {
        state_dir: path(raw.state_dir.as_ref(), STATE_DIR, MAX_PATH, report),
        socket: path(raw.socket.as_ref(), SOCKET, MAX_SOCKET_PATH, report),
        bpffs_dir: path(raw.bpffs_dir.as_ref(), BPFFS_DIR, MAX_PATH, report),
    };
    if let Some(at) = &raw.bpffs_dir {
        let dotted = paths.bpffs_dir.components().any(
            |c| matches!(c, Component::Normal(name) if name.as_encoded_bytes().contains(&b'.')),
        );
        if dotted {
            report.problem(
                &at.place,
                "the BPF file system allows no dot in a name; choose another one",
            );
        } else if !paths.bpffs_dir.starts_with("/sys/fs/bpf") {
            report.warn(
                &at.place,
                "outside of /sys/fs/bpf; a BPF file system must be mounted there",
            );
        }
    }
    paths
}

fn path(at: Option<&At<String>>, default: &str, max: usize, report: &mut Report<'_>) -> PathBuf {
    let Some(At { value, place }) = at else {
        return PathBuf::from(default);
    };
    let path = Path::new(value);
    let plain = path
        .components()
        .all(|c| matches!(c, Component::RootDir | Component::Normal(_)));
    if !path.is_absolute() || !plain || value.contains('\0') {
        report.problem(
            place,
            format_args!(
                "no absolute path; write it from / on and without .., such as \"{default}\""
            ),
        );
    } else if path.parent().is_none() {
        report.problem(
            place,
            format_args!("the root directory; name one of its own, such as \"{default}\""),
        );
    } else if value.len() > max {
        report.problem(
            place,
            format_args!(
                "{} bytes long, at most {max} are possible; choose a shorter path",
                value.len()
            ),
        );
    }
    path.to_path_buf()
}

fn metrics(raw: Option<&raw::Metrics>, report: &mut Report<'_>) -> Option<std::net::SocketAddr> {
    let listen = raw?.listen.as_ref()?;
    if !listen.value.ip().is_loopback() {
        report.warn(
            &listen.place,
            "metrics are served without a password, and this is not the loopback address: see that only the monitoring reaches it",
        );
    }
    if listen.value.port() == 0 {
        report.warn(
            &listen.place,
            "port 0 lets the system choose one, another at each start; the log says which",
        );
    }
    Some(listen.value)
}

fn capacity(raw: Option<&raw::Tables>, report: &mut Report<'_>) -> Capacity {
    let default = Capacity::default();
    let Some(raw) = raw else {
        return default;
    };
    let mut size =
        |at: Option<&At<Count>>, default, min, max| number(at, default, min, max, report);
    Capacity {
        hosts_v4: size(raw.hosts_v4.as_ref(), default.hosts_v4, 0, MAX_HOSTS),
        hosts_v6: size(raw.hosts_v6.as_ref(), default.hosts_v6, 0, MAX_HOSTS),
        prefixes: size(raw.prefixes.as_ref(), default.prefixes, 0, MAX_PREFIXES),
        limiter_sources: size(
            raw.limiter_sources.as_ref(),
            default.limiter_sources,
            2,
            MAX_LIMITER_SOURCES,
        ),
    }
}

/// A number between bounds, both included.
fn number(
    at: Option<&At<Count>>,
    default: u32,
    min: u32,
    max: u32,
    report: &mut Report<'_>,
) -> u32 {
    let Some(At { value, place }) = at else {
        return default;
    };
    match u32::try_from(value.0) {
        Ok(n) if (min..=max).contains(&n) => n,
        _ => {
            report.problem(
                place,
                format_args!(
                    "out of range; choose a number from {min} to {max} (default {default})"
                ),
            );
            default
        }
    }
}

/// A span of time between bounds, both included.
fn span(
    at: Option<&At<Duration>>,
    default: Duration,
    (min, max): (Duration, Duration),
    report: &mut Report<'_>,
) -> Duration {
    let Some(At { value, place }) = at else {
        return default;
    };
    if (min..=max).contains(value) {
        return *value;
    }
    report.problem(
        place,
        format_args!(
            "out of range; choose a span from {} to {} (default {})",
            spelt(min),
            spelt(max),
            spelt(default)
        ),
    );
    default
}

fn events(raw: Option<&raw::Events>, report: &mut Report<'_>) -> (u32, u32) {
    let Some(raw) = raw else {
        return (EVENTS_BUFFER, EVENTS_PER_SECOND);
    };
    let per_second = number(
        raw.per_second.as_ref(),
        EVENTS_PER_SECOND,
        0,
        MAX_EVENTS_PER_SECOND,
        report,
    );
    let Some(At { value, place }) = &raw.buffer else {
        return (EVENTS_BUFFER, per_second);
    };
    let valid = u32::try_from(value.0)
        .ok()
        .filter(|n| n.is_power_of_two() && (MIN_EVENTS_BUFFER..=MAX_EVENTS_BUFFER).contains(n));
    if valid.is_none() {
        report.problem(
            place,
            "not a power of two from 64KiB to 256MiB; choose one, such as \"1MiB\"",
        );
    }
    (valid.unwrap_or(EVENTS_BUFFER), per_second)
}

fn checks(raw: Option<&raw::Checks>) -> Checks {
    let default = Checks::default();
    let Some(raw) = raw else {
        return default;
    };
    Checks {
        malformed: raw.malformed.unwrap_or(default.malformed),
        tcp_flags: raw.tcp_flags.unwrap_or(default.tcp_flags),
        land: raw.land.unwrap_or(default.land),
        bogons: raw.bogons.as_ref().map_or(default.bogons, |b| b.value),
        fragments: raw.fragments.unwrap_or(default.fragments),
        fragment_policy: raw.fragment_policy.unwrap_or(default.fragment_policy),
        arp_guard: raw
            .arp_guard
            .as_ref()
            .map_or(default.arp_guard, |a| a.value),
        blacklist: raw.blacklist.unwrap_or(default.blacklist),
    }
}

fn arp_bindings(raw: &[raw::ArpBinding], report: &mut Report<'_>) -> Vec<(Ipv4Addr, [u8; 6])> {
    if let Some(first) = raw.get(MAX_ARP_BINDINGS) {
        report.problem_without_value(
            &first.place,
            format_args!("more than {MAX_ARP_BINDINGS} bindings; protect fewer addresses"),
        );
    }
    let mut bindings = BTreeMap::new();
    for binding in raw.iter().take(MAX_ARP_BINDINGS) {
        let (address, mac) = match (&binding.address, &binding.mac) {
            (Some(address), Some(mac)) => (address, mac),
            (address, _) => {
                let key = if address.is_none() { "address" } else { "mac" };
                let place = binding.place.child(key);
                if !report.has_problem_at(&place.key) {
                    report
                        .problem_without_value(&place, "missing; a binding needs address and mac");
                }
                continue;
            }
        };
        let ip = address.value;
        if ip.is_unspecified() || ip.is_multicast() || ip.is_broadcast() || ip.is_loopback() {
            report.problem(
                &address.place,
                "no address of a host; name the address to protect",
            );
        }
        check_mac(mac, report);
        if bindings.insert(ip, mac.value.0).is_some() {
            report.problem(
                &address.place,
                "bound twice; an address has one MAC address, remove one",
            );
        }
    }
    bindings.into_iter().collect()
}

/// Refuses a MAC address that is none of a host.
fn check_mac(At { value, place }: &At<raw::Mac>, report: &mut Report<'_>) {
    let raw::Mac(octets @ [first, ..]) = *value;
    if first & 1 != 0 || octets == [0; 6] {
        report.problem(
            place,
            "a group address or zero, which no host has; see `ip neigh` or `ip link`",
        );
    }
}

/// Whether an address can be that of one host, beyond the host itself.
fn is_host(address: IpAddr) -> bool {
    let is_broadcast = matches!(address, IpAddr::V4(a) if a.is_broadcast());
    !is_broadcast && !address.is_unspecified() && !address.is_multicast() && !address.is_loopback()
}

/// Whether packets for an address reach one host, wherever they are sent.
fn check_unicast(address: IpAddr, place: &Place, remedy: &str, report: &mut Report<'_>) -> bool {
    let is_link_local = match address {
        IpAddr::V4(a) => a.is_link_local(),
        IpAddr::V6(a) => a.is_unicast_link_local(),
    };
    let why = if matches!(address, IpAddr::V6(a) if a.to_ipv4_mapped().is_some()) {
        "an IPv4-mapped IPv6 address; write it as plain IPv4"
    } else if is_link_local {
        "a link-local address, which may stand for another host on each link"
    } else if !is_host(address) {
        "no address of a host that packets are sent to"
    } else {
        return true;
    };
    report.problem(place, format_args!("{why}; {remedy}"));
    false
}

/// Warns of what is on without effect, and of the operator who is not spared.
fn check_guards(model: &Model, raw: &raw::Root, report: &mut Report<'_>) {
    let checks = raw.checks.as_ref();
    if let Some(at) = checks.and_then(|c| c.arp_guard.as_ref())
        && at.value != Mode::Off
        && model.arp_bindings.is_empty()
    {
        report.warn(&at.place, "without effect, for there is no [[arp_binding]]");
    }
    if let Some(at) = checks.and_then(|c| c.bogons.as_ref())
        && at.value != Mode::Off
        && model.bogon_prefixes.is_empty()
    {
        report.warn(&at.place, "without effect, for the list of bogons is empty");
    }
    let limits = edge_common::abi::LimitKind::ALL;
    let by_source = model.checks.blacklist == Mode::Enforce
        || limits
            .iter()
            .any(|&k| model.limits.mode(k) == Mode::Enforce);
    if model.management.is_empty() && by_source {
        let place = raw
            .lists
            .as_ref()
            .map_or_else(Place::default, |l| l.place.clone());
        let key = if place.key.is_empty() {
            "lists.management"
        } else {
            "management"
        };
        report.warn_without_value(
            &place.child(key),
            "empty: a blacklist entry or a limit can lock you out; name the addresses that you administer this host from",
        );
    }
}

/// Whether a prefix takes in so much that it is more likely a slip.
fn is_vast(prefix: Prefix) -> bool {
    use edge_common::addr::Family;
    match prefix.family() {
        Family::V4 => prefix.len() < 8,
        Family::V6 => prefix.len() < 12,
    }
}
