//! What a configuration turns on and what it takes, for `edge check`.

mod balance;
mod proxy;

use std::fmt;

use edge_common::{
    abi::{Counter, LimitKind, Mode, maps},
    balance::{Backend, FLOW_WAYS, FlowBucket, ring_words},
    defence::{
        ATTEMPTS, HANDSHAKES, Hitter, IcmpKind, SKETCH_WORDS, Service as AbiService,
        ServiceCounters, tags::TagBucket,
    },
    nat,
};
use serde::Serialize;

pub use balance::{BalanceDescription, BalancingDescription};
pub use proxy::{ListenerDescription, ProxyDescription, RouteDescription, UpstreamDescription};

use super::{
    limits::{LimitSet, OverrideLimit, Rate},
    model::Model,
    services::{Addresses, Ports, Protocol, Service, Sysctls},
};
use crate::tables::Geometry;

/// Port ranges of a service that are spelt out.
const SHOWN_PORTS: usize = 8;
/// Bytes of an entry of `TARGETS`: key and value (40), the kernel's head of an
/// element (48) and its share of the buckets.
const TARGET_BYTES: usize = 104;
/// Bytes of an entry of `SERVER_IDS`, likewise: 24 bytes of key and value.
const SERVER_ID_BYTES: usize = 88;

/// A configuration in words and numbers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Description {
    /// The interfaces.
    pub interfaces: Vec<String>,
    /// `native` or `native or generic`.
    pub attach: &'static str,
    /// Mode of each check.
    pub checks: Vec<CheckMode>,
    /// Mode and default of each limit.
    pub limits: Vec<LimitDescription>,
    /// Prefixes with limits of their own.
    pub overrides: usize,
    /// Entries of the lists in the file.
    pub lists: Lists,
    /// The services, in the order of the file.
    pub services: Vec<ServiceDescription>,
    /// What balanced services share; none without one.
    pub balancing: Option<BalancingDescription>,
    /// The L7 proxy; none without a listener.
    pub proxy: Option<ProxyDescription>,
    /// The limits that are on against floods that are no SYNs.
    pub floods: Vec<FloodDescription>,
    /// The sysctls that the services need, and who sets them; none without need.
    pub sysctls: Option<String>,
    /// Where metrics are served.
    pub metrics_listen: Option<String>,
    /// Kernel memory of the maps.
    pub memory: Vec<MapMemory>,
    /// Their sum, bytes.
    pub memory_total: u64,
}

/// What a check does.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct CheckMode {
    /// Its key.
    pub check: &'static str,
    /// `off`, `dry-run` or `enforce`.
    pub mode: &'static str,
}

/// A limit.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct LimitDescription {
    /// Its key.
    pub limit: &'static str,
    /// `off`, `dry-run` or `enforce`.
    pub mode: &'static str,
    /// Packets or bytes a second of a source; none for no limit by default.
    pub per_second: Option<u64>,
    /// Packets or bytes at once.
    pub burst: Option<u64>,
    /// How many prefixes have another one.
    pub overrides: usize,
}

/// A service.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ServiceDescription {
    /// Its name.
    pub service: String,
    /// `off`, `auto` or `always`.
    pub syn: &'static str,
    /// Whether it is only counted.
    pub dry_run: bool,
    /// Whether another host answers.
    pub forwarded: bool,
    /// `local`, or how many addresses.
    pub addresses: String,
    /// Protocol and ports.
    pub ports: String,
    /// Incomplete handshakes a second that are no attack.
    pub incomplete_per_second: u64,
    /// Incomplete handshakes at once.
    pub incomplete_burst: u64,
    /// How it is balanced, if it is.
    pub balance: Option<BalanceDescription>,
}

/// A limit on floods that are no SYNs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct FloodDescription {
    /// Its key under `flood`.
    pub flood: String,
    /// The service that it is for; none for the host.
    pub service: Option<String>,
    /// `dry-run` or `enforce`.
    pub mode: &'static str,
    /// Packets a second.
    pub per_second: u64,
    /// Packets at once.
    pub burst: u64,
}

/// The limits that are on.
fn floods(model: &Model) -> Vec<FloodDescription> {
    let (icmp, prefixes) = (&model.floods.icmp, &model.floods.prefixes);
    let one = |flood: String, service: Option<&Service>, mode: Mode, rate: Rate| FloodDescription {
        flood,
        service: service.map(|s| s.name.clone()),
        mode: mode.name(),
        per_second: rate.per_second(),
        burst: rate.burst(),
    };
    let mut all = Vec::new();
    if icmp.mode != Mode::Off {
        let kinds = IcmpKind::ALL.into_iter().zip(icmp.rates);
        all.extend(
            kinds.map(|(kind, rate)| one(format!("icmp.{}", kind.name()), None, icmp.mode, rate)),
        );
    }
    let mode = model.reflection_mode();
    if mode != Mode::Off {
        let udp = model
            .services
            .iter()
            .filter(|s| s.protocol == Protocol::Udp);
        all.extend(udp.map(|s| {
            let mode = if s.dry_run { Mode::DryRun } else { mode };
            one("reflection".to_owned(), Some(s), mode, s.reflection)
        }));
    }
    let mode = prefixes.effective_mode();
    if mode != Mode::Off {
        let kinds = Hitter::ALL.into_iter().zip(prefixes.rates);
        all.extend(kinds.filter_map(|(kind, rate)| {
            Some(one(format!("prefixes.{}", kind.name()), None, mode, rate?))
        }));
    }
    all
}

fn service(service: &Service) -> ServiceDescription {
    let ports = match &service.ports {
        Ports::Listening => "listening".to_owned(),
        Ports::Any => "any".to_owned(),
        Ports::Rest => "all others, no SYNs".to_owned(),
        Ports::Listed(ranges) => {
            let shown = ranges.iter().take(SHOWN_PORTS).map(|r| {
                if r.start() == r.end() {
                    r.start().to_string()
                } else {
                    format!("{}-{}", r.start(), r.end())
                }
            });
            let mut shown: Vec<String> = shown.collect();
            if ranges.len() > SHOWN_PORTS {
                shown.push("...".to_owned());
            }
            shown.join(",")
        }
    };
    ServiceDescription {
        service: service.name.clone(),
        syn: service.syn.name(),
        dry_run: service.dry_run,
        forwarded: service.forwarded,
        addresses: match &service.addresses {
            Addresses::Local => "local".to_owned(),
            Addresses::Listed(_) => service.listed_addresses().to_string(),
        },
        ports: format!("{} {ports}", service.protocol.name()),
        incomplete_per_second: service.incomplete.per_second(),
        incomplete_burst: service.incomplete.burst(),
        balance: BalanceDescription::of(service),
    }
}

/// What the services need of the host, and who sees to it.
fn sysctls(model: &Model) -> Option<String> {
    let who = match model.flood.sysctls {
        Sysctls::Set => "set by the daemon, and put back when no service needs them",
        Sysctls::Check => {
            "to be set before the start: sysctl -w net.ipv4.tcp_syncookies=2 net.ipv4.tcp_timestamps=2"
        }
    };
    model
        .needs_cookies()
        .then(|| format!("net.ipv4.tcp_syncookies = 2, net.ipv4.tcp_timestamps = 2: {who}"))
}

/// Kernel memory of the maps of the flood defence; next to none for what is off.
fn flood_memory(model: &Model, cpus: u32) -> Vec<(&'static str, u64)> {
    let of = |entries: u32, size: usize| u64::from(entries) * size as u64;
    let mut memory = Vec::new();
    if model.floods.prefixes.effective_mode() != Mode::Off {
        memory.push((maps::SKETCH, of(SKETCH_WORDS, 8)));
    }
    let slots = model.service_slots();
    if slots == 0 {
        return memory;
    }
    let rings = model.rings();
    // Of a balanced service each address has up to three more.
    let targets = model
        .flood
        .targets
        .saturating_mul(if rings == 0 { 1 } else { 4 })
        .saturating_add(2 * model.nat_sources());
    if rings != 0 {
        let ring = of(ring_words(model.balancing.slots), 8);
        let flows = model.balancing.flows.div_ceil(FLOW_WAYS as u32);
        memory.extend([
            (maps::RINGS, u64::from(rings).saturating_mul(ring)),
            (maps::BACKENDS, of(model.backends(), size_of::<Backend>())),
            (
                maps::BACKEND_COUNTERS,
                of(model.backends(), size_of::<Counter>()).saturating_mul(cpus.into()),
            ),
            (maps::FLOWS, of(flows, size_of::<FlowBucket>())),
            (maps::SERVER_IDS, of(model.server_ids(), SERVER_ID_BYTES)),
        ]);
    }
    let sources = if rings == 0 { 0 } else { model.nat_sources() };
    if sources != 0 {
        let ports = sources.saturating_mul(nat::PORTS);
        memory.extend([
            (maps::PORTS_IN_USE, of(ports, size_of::<nat::PortSlot>())),
            (
                maps::BACKEND_SIGNALS,
                of(model.backends(), size_of::<nat::Signals>()).saturating_mul(cpus.into()),
            ),
        ]);
    }
    memory.extend([
        (maps::TARGETS, of(targets, TARGET_BYTES)),
        (maps::SERVICES, of(slots, size_of::<AbiService>())),
        (
            maps::SERVICE_COUNTERS,
            of(slots, size_of::<ServiceCounters>()).saturating_mul(cpus.into()),
        ),
        (
            maps::VERIFIED,
            of(model.verified_buckets(), size_of::<TagBucket>()),
        ),
        (maps::ATTEMPTS, of(ATTEMPTS, 8)),
        (maps::HANDSHAKES, of(HANDSHAKES, 8)),
    ]);
    memory
}

/// How many entries the file itself lists.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Lists {
    /// Management prefixes.
    pub management: usize,
    /// Allowlist.
    pub allow: usize,
    /// Blacklist.
    pub blacklist: usize,
    /// Bogon ranges.
    pub bogons: usize,
    /// ARP bindings.
    pub arp_bindings: usize,
}

/// The memory of a map.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct MapMemory {
    /// Its name.
    pub map: &'static str,
    /// Bytes.
    pub bytes: u64,
}

/// Describes a configuration and the maps made for it on a host with so many CPUs.
pub fn describe(model: &Model, geometry: &Geometry, cpus: u32) -> Description {
    let LimitSet { kinds } = model.limits.default;
    let limits = LimitKind::ALL.map(|kind| {
        let default = kinds[kind as usize];
        let own = |o: &OverrideLimit| *o != OverrideLimit::Inherit;
        let overrides = model.limits.overrides.iter();
        LimitDescription {
            limit: kind.name(),
            mode: model.limits.mode(kind).name(),
            per_second: default.map(Rate::per_second),
            burst: default.map(Rate::burst),
            overrides: overrides.filter(|o| own(&o.kinds[kind as usize])).count(),
        }
    });
    let checks = model.effective_checks().modes();
    let buffer = u64::from(model.events_buffer);
    let memory: Vec<MapMemory> = geometry
        .memory()
        .into_iter()
        .chain(flood_memory(model, cpus))
        .chain([(maps::EVENTS, buffer)])
        .map(|(map, bytes)| MapMemory { map, bytes })
        .collect();
    Description {
        interfaces: model.interfaces.clone(),
        attach: if model.allow_generic {
            "native or generic"
        } else {
            "native"
        },
        checks: checks
            .into_iter()
            .map(|(check, mode)| CheckMode {
                check,
                mode: mode.name(),
            })
            .collect(),
        limits: limits.to_vec(),
        overrides: model.limits.overrides.len(),
        lists: Lists {
            management: model.management.len(),
            allow: model.allow.len(),
            blacklist: model.blacklist.len(),
            bogons: model.bogon_prefixes.len(),
            arp_bindings: model.arp_bindings.len(),
        },
        services: model.services.iter().map(service).collect(),
        balancing: BalancingDescription::of(model),
        proxy: ProxyDescription::of(&model.proxy),
        floods: floods(model),
        sysctls: sysctls(model),
        metrics_listen: model.metrics_listen.map(|l| l.to_string()),
        memory_total: memory.iter().map(|m| m.bytes).sum(),
        memory,
    }
}

impl fmt::Display for Description {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "interfaces  {} ({})",
            self.interfaces.join(", "),
            self.attach
        )?;
        writeln!(
            f,
            "metrics     {}",
            self.metrics_listen.as_deref().unwrap_or("not served")
        )?;
        let Lists {
            management,
            allow,
            blacklist,
            bogons,
            arp_bindings,
        } = &self.lists;
        writeln!(
            f,
            "lists       management {management}, allow {allow}, blacklist {blacklist}, bogons {bogons}, ARP bindings {arp_bindings}"
        )?;
        writeln!(f, "\ncheck       mode")?;
        for CheckMode { check, mode } in &self.checks {
            writeln!(f, "{check:11} {mode}")?;
        }
        writeln!(
            f,
            "\nlimit       mode     per second and source   burst   overrides"
        )?;
        for l in &self.limits {
            let shown = |n: Option<u64>| n.map_or_else(|| "-".to_owned(), |n| n.to_string());
            let (rate, burst) = (shown(l.per_second), shown(l.burst));
            writeln!(
                f,
                "{:11} {:8} {rate:>21} {burst:>7} {:>11}",
                l.limit, l.mode, l.overrides
            )?;
        }
        if !self.services.is_empty() {
            writeln!(
                f,
                "\nservice          syn     incomplete per second   burst   addresses   ports"
            )?;
        }
        for s in &self.services {
            let note = match (s.forwarded, s.dry_run) {
                (true, true) => " (forwarded, dry run)",
                (true, false) => " (forwarded)",
                (false, true) => " (dry run)",
                (false, false) => "",
            };
            writeln!(
                f,
                "{:16} {:7} {:>21} {:>7} {:>11}   {}{note}",
                s.service, s.syn, s.incomplete_per_second, s.incomplete_burst, s.addresses, s.ports
            )?;
        }
        if let Some(balancing) = &self.balancing {
            writeln!(f, "\n{}", balance::HEADER)?;
            let services = self.services.iter();
            for (name, b) in services.filter_map(|s| Some((&s.service, s.balance.as_ref()?))) {
                writeln!(f, "{name:16} {b}")?;
            }
            writeln!(f, "\n{balancing}")?;
        }
        if let Some(proxy) = &self.proxy {
            writeln!(f, "\n{proxy}")?;
        }
        if !self.floods.is_empty() {
            writeln!(
                f,
                "\nflood                  mode     per second   burst   of"
            )?;
        }
        for l in &self.floods {
            writeln!(
                f,
                "{:22} {:8} {:>10} {:>7}   {}",
                l.flood,
                l.mode,
                l.per_second,
                l.burst,
                l.service.as_deref().unwrap_or("the host")
            )?;
        }
        if let Some(sysctls) = &self.sysctls {
            writeln!(f, "\nsysctls     {sysctls}")?;
        }
        writeln!(f, "\nmap                 memory")?;
        for MapMemory { map, bytes } in &self.memory {
            writeln!(f, "{map:16} {:>9}", size(*bytes))?;
        }
        write!(f, "{:16} {:>9}", "total", size(self.memory_total))
    }
}

/// Bytes in the largest unit that keeps three digits.
fn size(bytes: u64) -> String {
    match bytes {
        0..10_240 => format!("{bytes} B"),
        10_240..10_485_760 => format!("{} KiB", bytes >> 10),
        _ => format!("{} MiB", bytes >> 20),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::test::{model, model_of};

    fn describe(model: &Model, geometry: &Geometry) -> Description {
        super::describe(model, geometry, 2)
    }

    #[test]
    fn memory_adds_up_and_everything_is_told() {
        let model = model_of(
            "[limits.packets]\nrate = 1000\nburst = 500\n[[limits.override]]\nprefixes = ['10.0.0.0/8', '10.1.0.0/16']\npackets = 'unlimited'",
        );
        let geometry = Geometry::for_capacity(&model.capacity);
        let got = describe(&model, &geometry);
        let maps: u64 = geometry.memory().iter().map(|m| m.1).sum();
        assert_eq!(got.memory_total, maps + u64::from(model.events_buffer));
        assert_eq!(got.overrides, 2);
        let packets = LimitDescription {
            limit: "packets",
            mode: "enforce",
            per_second: Some(1000),
            burst: Some(500),
            overrides: 2,
        };
        assert_eq!(got.limits[0], packets);
        let text = got.to_string();
        for word in [
            "eth0",
            "HOSTS4_FILTER",
            "LIMITER",
            "EVENTS",
            "tcp_flags",
            "icmp",
            "total",
            "1000",
        ] {
            assert!(text.contains(word), "{word} in\n{text}");
        }
    }

    #[test]
    fn a_check_with_nothing_to_look_for_is_told_as_off() {
        let got = describe(&model(), &Geometry::for_capacity(&model().capacity));
        let mode = |name| got.checks.iter().find(|c| c.check == name).map(|c| c.mode);
        assert_eq!(
            (mode("arp_guard"), mode("bogons")),
            (Some("off"), Some("enforce"))
        );
    }

    #[test]
    fn services_are_told_with_what_they_need() {
        let text = "[[service]]\nname = 'web'\nports = [443, '8000-8010']\n[[service]]\nname = 'mail'\nports = 'listening'\nsyn = 'always'\n";
        let model = model_of(text);
        let geometry = Geometry::for_capacity(&model.capacity);
        let got = describe(&model, &geometry);
        let text = got.to_string();
        for line in [
            "web              auto                     1000    2000       local   tcp 443,8000-8010",
            "mail             always                   1000    2000       local   tcp listening",
            "tcp_timestamps = 2: set by the daemon",
            "TARGETS",
        ] {
            assert!(text.contains(line), "{line} in\n{text}");
        }
        let dry = model_of(
            "flood.sysctls = 'check'\nflood.dry_run = true\n[[service]]\nname = 'a'\nports = [1]",
        );
        assert_eq!(describe(&dry, &geometry).sysctls, None);
        let check = model_of("flood.sysctls = 'check'\n[[service]]\nname = 'a'\nports = [1]");
        let told = describe(&check, &geometry).sysctls.unwrap();
        assert!(told.contains("sysctl -w"), "{told}");
        let counters = |cpus| {
            let memory = super::describe(&check, &geometry, cpus).memory;
            let found = memory.iter().find(|m| m.map == maps::SERVICE_COUNTERS);
            found.unwrap().bytes
        };
        let each = size_of::<ServiceCounters>() as u64;
        assert_eq!((counters(1), counters(64)), (16 * each, 16 * 64 * each));
    }

    #[test]
    fn other_floods_are_told_while_they_are_on() {
        let text = "[flood]\nrest = 'auto'\n[flood.icmp]\necho = { rate = 70, burst = 80 }\n[flood.reflection]\nmode = 'enforce'\n[flood.prefixes]\ndest = { rate = 90000 }\n[[service]]\nname = 'dns'\nports = [53]\nprotocol = 'udp'\n";
        let model = model_of(text);
        let geometry = Geometry::for_capacity(&model.capacity);
        let got = describe(&model, &geometry);
        let text = got.to_string();
        for line in [
            "host             auto                     1000    2000       local   tcp all others, no SYNs",
            "icmp.echo              enforce          70      80   the host",
            "reflection             enforce        1000    1000   dns",
            "prefixes.dest          dry-run       90000   90000   the host",
            "SKETCH             512 KiB",
        ] {
            assert!(text.contains(line), "{line} in\n{text}");
        }
        assert_eq!((got.floods.len(), got.sysctls), (5, None));
        // A service in dry run drops nothing.
        let dry = model_of(
            "[flood.reflection]\nmode = 'enforce'\n[[service]]\nname = 'dns'\nports = [53]\nprotocol = 'udp'\ndry_run = true",
        );
        assert_eq!(describe(&dry, &geometry).floods[0].mode, "dry-run");
        let off = describe(&model_of("[flood.prefixes]"), &geometry);
        assert!(off.floods.is_empty() && off.memory.iter().all(|m| m.map != "SKETCH"));
    }

    #[test]
    fn sizes_are_short() {
        assert_eq!(size(0), "0 B");
        assert_eq!(size(65_536), "64 KiB");
        assert_eq!(size(1 << 30), "1024 MiB");
    }
}
