//! From the facts to the text that Prometheus reads.

use std::fmt;

use edge_common::reason::{Reason, Verdict};
use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, MetricEncoder, text},
    metrics::MetricType,
    registry::Registry,
};

use super::{
    names::{self, Kind, Metric},
    proxy,
};
use crate::l7::stats::DURATION_BOUNDS_US;
use crate::status::{
    HostFloodStatus, InterfaceStatus, ServiceStatus, Status, Traffic,
    balance::{BackendStatus, BalanceStatus, NatSource},
    decap::{DecapInterface, Totals},
    proxy::RequestCounts,
};

/// The two text formats that Prometheus reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// Prometheus text format 0.0.4.
    Prometheus,
    /// OpenMetrics 1.0.0.
    OpenMetrics,
}

impl Format {
    /// Its media type.
    pub const fn content_type(self) -> &'static str {
        match self {
            Self::Prometheus => "text/plain; version=0.0.4; charset=utf-8",
            Self::OpenMetrics => "application/openmetrics-text; version=1.0.0; charset=utf-8",
        }
    }
}

/// Renders the facts of the daemon.
///
/// # Errors
/// Those of the encoder, which writes to memory and has none of its own.
pub fn render(status: Status, format: Format) -> Result<String, fmt::Error> {
    render_all(Box::new(Facts(status)), format)
}

/// Renders those of `edge decap`.
///
/// # Errors
/// As [`render`].
pub fn render_decap(
    interfaces: Vec<DecapInterface>,
    totals: Totals,
    format: Format,
) -> Result<String, fmt::Error> {
    render_all(Box::new(DecapFacts { interfaces, totals }), format)
}

fn render_all(collector: Box<dyn Collector>, format: Format) -> Result<String, fmt::Error> {
    let mut registry = Registry::default();
    registry.register_collector(collector);
    let mut openmetrics = String::new();
    text::encode(&mut openmetrics, &registry)?;
    Ok(match format {
        Format::OpenMetrics => openmetrics,
        Format::Prometheus => to_prometheus(&openmetrics),
    })
}

/// The older format names a counter's samples in HELP and TYPE, with `_total`,
/// where OpenMetrics names the family; and it has no end mark.
fn to_prometheus(openmetrics: &str) -> String {
    let mut out = String::with_capacity(openmetrics.len() + 1024);
    for line in openmetrics.lines().filter(|line| *line != "# EOF") {
        let mut words = line.splitn(4, ' ');
        match (words.next(), words.next(), words.next(), words.next()) {
            (Some("#"), Some(keyword), Some(name), Some(rest))
                if names::find(name).is_some_and(|m| m.kind == Kind::Counter) =>
            {
                out.extend(["# ", keyword, " ", name, "_total ", rest]);
            }
            _ => out.push_str(line),
        }
        out.push('\n');
    }
    out
}

/// The facts of one scrape.
#[derive(Debug)]
struct Facts(Status);

impl Collector for Facts {
    fn encode(&self, encoder: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        let mut w = Writer { encoder };
        self.daemon(&mut w)?;
        self.interfaces(&mut w)?;
        self.services(&mut w)?;
        self.balance(&mut w)?;
        proxy::write(self.0.proxy.as_ref(), &mut w)?;
        self.tables(&mut w)?;
        self.events_and_control(&mut w)
    }
}

/// The same of `edge decap`.
#[derive(Debug)]
struct DecapFacts {
    interfaces: Vec<DecapInterface>,
    totals: Totals,
}

impl Collector for DecapFacts {
    fn encode(&self, encoder: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        let mut w = Writer { encoder };
        let packets = self.totals.packets.iter();
        w.family(
            &names::DECAP_PACKETS,
            packets.map(|(reason, n)| ([*reason], Value::Int(*n))),
        )?;
        let attached = |i: &DecapInterface| u64::from(i.mode.is_some());
        w.family(
            &names::DECAP_INTERFACE_ATTACHED,
            (self.interfaces.iter()).map(|i| ([i.name.as_str()], Value::Int(attached(i)))),
        )
    }
}

/// What a sample says.
pub(super) trait Encode {
    /// Writes it as a sample of this kind of metric.
    fn encode(self, kind: Kind, sample: &mut MetricEncoder<'_>) -> fmt::Result;
}

/// No exemplar has labels, as there is none.
type NoLabels = [(&'static str, &'static str); 0];

/// The value of a sample.
#[derive(Clone, Copy)]
pub(super) enum Value {
    Int(u64),
    Float(f64),
}

impl Encode for Value {
    fn encode(self, kind: Kind, sample: &mut MetricEncoder<'_>) -> fmt::Result {
        match (kind, self) {
            (Kind::Counter, Self::Int(v)) => sample.encode_counter::<NoLabels, _, u64>(&v, None),
            (Kind::Counter, Self::Float(v)) => sample.encode_counter::<NoLabels, _, u64>(&v, None),
            (Kind::Gauge, Self::Int(v)) => sample.encode_gauge(&v),
            (Kind::Gauge, Self::Float(v)) => sample.encode_gauge(&v),
            // One number is no histogram.
            (Kind::Histogram, _) => Err(fmt::Error),
        }
    }
}

/// Durations as a histogram of seconds.
impl Encode for &RequestCounts {
    fn encode(self, _: Kind, sample: &mut MetricEncoder<'_>) -> fmt::Result {
        let bounds = DURATION_BOUNDS_US.iter().map(|us| *us as f64 / 1e6);
        let bounds = bounds.chain([f64::INFINITY]);
        let counts = self.durations.iter().copied().chain(std::iter::repeat(0));
        let buckets: Vec<(f64, u64)> = bounds.zip(counts).collect();
        // That of the buckets, which were read one after the other while requests ended.
        let count = buckets.iter().map(|(_, n)| n).sum();
        let sum = self.duration_us as f64 / 1e6;
        sample.encode_histogram::<NoLabels>(sum, count, &buckets, None)
    }
}

/// Milliseconds as seconds, the base unit.
fn seconds(ms: u64) -> Value {
    Value::Float(ms as f64 / 1000.0)
}

/// Label values and what a sample says.
type Sample<'a, const LABELS: usize, V> = ([&'a str; LABELS], V);

pub(super) struct Writer<'a> {
    encoder: DescriptorEncoder<'a>,
}

impl Writer<'_> {
    pub(super) fn family<'s, const LABELS: usize, V: Encode>(
        &mut self,
        metric: &Metric,
        samples: impl IntoIterator<Item = Sample<'s, LABELS, V>>,
    ) -> fmt::Result {
        let kind = match metric.kind {
            Kind::Counter => MetricType::Counter,
            Kind::Gauge => MetricType::Gauge,
            Kind::Histogram => MetricType::Histogram,
        };
        let mut family = self
            .encoder
            .encode_descriptor(metric.name, metric.help, None, kind)?;
        for (values, value) in samples {
            debug_assert_eq!(metric.labels.len(), LABELS, "{}", metric.name);
            let labels: Vec<(&str, &str)> = metric.labels.iter().copied().zip(values).collect();
            if labels.is_empty() {
                value.encode(metric.kind, &mut family)?;
            } else {
                value.encode(metric.kind, &mut family.encode_family(&labels)?)?;
            }
        }
        Ok(())
    }

    fn single(&mut self, metric: &Metric, value: Value) -> Result<(), fmt::Error> {
        self.family(metric, [([], value)])
    }
}

impl Facts {
    fn daemon(&self, w: &mut Writer<'_>) -> Result<(), fmt::Error> {
        let s = &self.0;
        let abi = s.abi_version.to_string();
        w.family(
            &names::BUILD_INFO,
            [([s.version.as_str(), abi.as_str()], Value::Int(1))],
        )?;
        w.single(&names::START_TIME, seconds(s.started_unix_ms))?;
        w.single(&names::UPTIME, seconds(s.uptime_ms))?;
        w.single(&names::CONFIG_GENERATION, Value::Int(s.config.generation))?;
        w.single(&names::CONFIG_TIMESTAMP, seconds(s.config.since_unix_ms))?;
        let r = &s.reloads;
        w.family(
            &names::RELOADS,
            [
                ([names::SUCCESS], Value::Int(r.succeeded)),
                ([names::FAILURE], Value::Int(r.failed)),
            ],
        )?;
        w.single(
            &names::LAST_RELOAD_SUCCESSFUL,
            Value::Int(u64::from(r.last_error.is_none())),
        )?;
        w.family(
            &names::LAST_RELOAD_TIMESTAMP,
            [
                (
                    [names::SUCCESS],
                    seconds(r.last_success_unix_ms.unwrap_or(0)),
                ),
                (
                    [names::FAILURE],
                    seconds(r.last_failure_unix_ms.unwrap_or(0)),
                ),
            ],
        )
    }

    fn interfaces(&self, w: &mut Writer<'_>) -> Result<(), fmt::Error> {
        let interfaces = &self.0.interfaces;
        w.family(
            &names::INTERFACE_INFO,
            interfaces.iter().filter_map(|i| {
                let mode = i.mode?.name();
                Some(([i.name.as_str(), mode], Value::Int(1)))
            }),
        )?;
        w.family(
            &names::INTERFACE_ATTACHED,
            interfaces.iter().map(|i| {
                let attached = u64::from(i.mode.is_some());
                ([i.name.as_str()], Value::Int(attached))
            }),
        )?;
        // All reasons, also those still at zero: a counter that appears with
        // its first packet loses that packet from every rate().
        let all: Vec<_> = interfaces
            .iter()
            .flat_map(|i| Reason::ALL.iter().map(move |r| (i, *r)))
            .collect();
        let family = |w: &mut Writer<'_>, metric, dry: bool, pick: fn(Traffic) -> u64| {
            let samples = all
                .iter()
                // What passes cannot have been dropped in a dry run.
                .filter(|(_, reason)| !dry || reason.verdict() != Verdict::Pass)
                .map(|(i, reason)| {
                    let (ended, would_drop) = counters(i, *reason);
                    let value = pick(if dry { would_drop } else { ended });
                    ([i.name.as_str(), reason.name()], Value::Int(value))
                });
            w.family(metric, samples)
        };
        family(w, &names::PACKETS, false, |t| t.packets)?;
        family(w, &names::BYTES, false, |t| t.bytes)?;
        family(w, &names::WOULD_DROP_PACKETS, true, |t| t.packets)?;
        family(w, &names::WOULD_DROP_BYTES, true, |t| t.bytes)
    }

    fn services(&self, w: &mut Writer<'_>) -> Result<(), fmt::Error> {
        let services = &self.0.services;
        let mut each = |metric, value: fn(&ServiceStatus) -> Value| {
            let samples = services.iter().map(|s| ([s.name.as_str()], value(s)));
            w.family(metric, samples)
        };
        each(&names::SERVICE_UNDER_ATTACK, |s| {
            Value::Int(s.under_attack.into())
        })?;
        each(&names::ATTACKS, |s| Value::Int(s.attacks))?;
        each(&names::SERVICE_DEFENDED, |s| Value::Int(s.defended.into()))?;
        each(&names::SERVICE_PRESSURE, |s| Value::Float(s.pressure))?;
        each(&names::SERVICE_TARGETS, |s| Value::Int(s.targets.total))?;
        each(&names::SERVICE_READY_TARGETS, |s| {
            Value::Int(s.targets.ready)
        })?;
        let counters = services.iter().flat_map(|s| {
            let all = s.counters.iter();
            all.map(|(event, n)| ([s.name.as_str(), event.as_str()], Value::Int(*n)))
        });
        w.family(&names::SERVICE_EVENTS, counters)?;
        let host = |value: fn(&HostFloodStatus) -> u64| {
            let floods = self.0.host_floods.iter();
            floods.map(move |f| ([f.flood.name()], Value::Int(value(f))))
        };
        w.family(
            &names::HOST_UNDER_ATTACK,
            host(|f| f.attack.is_some().into()),
        )?;
        w.family(&names::HOST_ATTACKS, host(|f| f.attacks))
    }

    fn balance(&self, w: &mut Writer<'_>) -> Result<(), fmt::Error> {
        let none = BalanceStatus::default();
        let balance = self.0.balance.as_ref().unwrap_or(&none);
        let mut each = |metric, value: fn(&BackendStatus) -> u64| {
            let samples = balance.services.iter().flat_map(|s| {
                let all = s.backends.iter();
                all.map(|b| ([s.name.as_str(), b.name.as_str()], Value::Int(value(b))))
            });
            w.family(metric, samples)
        };
        each(&names::BACKEND_UP, |b| (b.weight > 0).into())?;
        each(&names::BACKEND_WEIGHT, |b| b.weight.into())?;
        each(&names::BACKEND_HEALTH_CHANGES, |b| b.health_changes)?;
        each(&names::BACKEND_REACHABLE, |b| b.no_way.is_none().into())?;
        each(&names::BACKEND_FLOWS, |b| b.flows.into())?;
        each(&names::BACKEND_PACKETS, |b| b.packets)?;
        each(&names::BACKEND_BYTES, |b| b.bytes)?;
        let mut signals = |metric, value: fn(&BackendStatus) -> Option<u64>| {
            let samples = balance.services.iter().flat_map(|s| {
                let all = s.backends.iter();
                all.filter_map(|b| {
                    Some(([s.name.as_str(), b.name.as_str()], Value::Int(value(b)?)))
                })
            });
            w.family(metric, samples)
        };
        signals(&names::BACKEND_SYNS, |b| b.syns)?;
        signals(&names::BACKEND_SYN_ACKS, |b| b.syn_acks)?;
        signals(&names::BACKEND_REFUSALS, |b| b.refusals)?;
        let named: Vec<_> = balance.sources.iter().map(|s| (s.name(), s)).collect();
        let ports = |value: fn(&NatSource) -> u32| {
            let value = move |s| Value::Int(value(s).into());
            let all = named.iter();
            all.map(move |(name, source)| ([name.as_str()], value(source)))
        };
        w.family(&names::NAT_PORTS, ports(|s| s.ports))?;
        w.family(&names::NAT_PORTS_CAPACITY, ports(|s| s.capacity))?;
        let open = balance.services.iter();
        let open = open.map(|s| ([s.name.as_str()], Value::Int(s.failed_open.into())));
        w.family(&names::SERVICE_FAILED_OPEN, open)?;
        let f = &balance.flows;
        w.single(&names::FLOWS, Value::Int(f.live))?;
        w.single(&names::FLOWS_CAPACITY, Value::Int(f.capacity))?;
        w.single(&names::FLOW_HITS, Value::Int(f.hits))?;
        w.single(&names::FLOW_MISSES, Value::Int(f.misses))?;
        w.single(&names::FLOWS_INSERTED, Value::Int(f.inserted))?;
        w.single(&names::FLOWS_REPLACED, Value::Int(f.replaced))?;
        w.single(&names::FLOWS_REFUSED, Value::Int(f.refused))?;
        w.single(&names::QUIC_ROUTED, Value::Int(f.quic_routed))?;
        w.single(&names::QUIC_UNKNOWN_ID, Value::Int(f.quic_unknown_id))
    }

    fn tables(&self, w: &mut Writer<'_>) -> Result<(), fmt::Error> {
        let s = &self.0;
        w.family(
            &names::TABLE_ENTRIES,
            s.tables
                .iter()
                .map(|t| ([t.table.as_str()], Value::Int(t.entries))),
        )?;
        w.family(
            &names::TABLE_CAPACITY,
            s.tables
                .iter()
                .map(|t| ([t.table.as_str()], Value::Int(t.capacity))),
        )?;
        w.family(
            &names::LIST_ENTRIES,
            s.lists.iter().map(|l| {
                (
                    [l.list.name(), l.family.name(), l.kind.name()],
                    Value::Int(l.entries),
                )
            }),
        )?;
        let l = &s.limiter;
        w.single(&names::LIMITER_CLAIMED, Value::Int(l.claimed))?;
        w.single(&names::LIMITER_RECYCLED, Value::Int(l.recycled))?;
        w.single(&names::LIMITER_EVICTED, Value::Int(l.evicted))?;
        w.single(&names::LIMITER_CONTENDED, Value::Int(l.contended))
    }

    fn events_and_control(&self, w: &mut Writer<'_>) -> Result<(), fmt::Error> {
        let s = &self.0;
        w.single(&names::STAGE_MISSING, Value::Int(s.stage_missing))?;
        w.single(&names::EVENTS, Value::Int(s.events.read))?;
        w.family(
            &names::EVENTS_LOST,
            [
                ([names::RING_BUFFER], Value::Int(s.events.lost_in_kernel)),
                ([names::FOLLOWER], Value::Int(s.events.lost_by_followers)),
            ],
        )?;
        w.family(
            &names::CONTROL_REQUESTS,
            s.control.iter().flat_map(|c| {
                [
                    (
                        [c.command.as_str(), names::SUCCESS],
                        Value::Int(c.succeeded),
                    ),
                    ([c.command.as_str(), names::FAILURE], Value::Int(c.failed)),
                ]
            }),
        )
    }
}

/// What ended with a reason on an interface, and what would have.
fn counters(interface: &InterfaceStatus, reason: Reason) -> (Traffic, Traffic) {
    interface
        .reasons
        .iter()
        .find(|c| c.reason == reason)
        .map_or_else(Default::default, |c| (c.ended, c.would_drop))
}

#[cfg(test)]
pub(super) mod tests {
    use std::collections::{BTreeMap, BTreeSet};

    use edge_common::decap::Outcome;

    use super::*;
    use crate::{
        control::{protocol::List, stats::Stats},
        status::{
            AttachMode, ConfigStatus, EntryKind, EventsStatus, FamilyName, LimiterStatus,
            ListCount, ReasonCount, Reloads, ServiceTargets, TableStatus,
            attack::Found,
            balance::{AdminState, BalancedService, FlowTable},
            proxy::ProxyStatus,
        },
    };

    fn status() -> Status {
        Status {
            version: "1.2.3".to_owned(),
            abi_version: 1,
            pid: 7,
            started_unix_ms: 1_790_000_000_500,
            uptime_ms: 1500,
            config: ConfigStatus {
                file: "edge.toml".to_owned(),
                generation: 3,
                since_unix_ms: 1_790_000_001_000,
            },
            reloads: Reloads {
                succeeded: 2,
                failed: 1,
                last_success_unix_ms: Some(1_790_000_001_000),
                last_failure_unix_ms: None,
                last_error: None,
            },
            interfaces: ["eth0", "eth1"]
                .map(|name| InterfaceStatus {
                    name: name.to_owned(),
                    ifindex: 2,
                    mode: Some(AttachMode::Native),
                    problem: None,
                    adopted: false,
                    passed_at_start: Traffic::default(),
                    dropped_at_start: Traffic::default(),
                    reasons: vec![ReasonCount {
                        reason: Reason::Blacklisted,
                        ended: Traffic {
                            packets: 5,
                            bytes: 300,
                        },
                        would_drop: Traffic {
                            packets: 1,
                            bytes: 60,
                        },
                    }],
                })
                .into(),
            services: vec![ServiceStatus {
                name: "web".to_owned(),
                under_attack: true,
                pressure: 0.25,
                targets: ServiceTargets { total: 4, ready: 3 },
                counters: [("cookies_sent".to_owned(), 7)].into(),
                ..ServiceStatus::default()
            }],
            host_floods: vec![HostFloodStatus {
                flood: Found::Icmp,
                dry_run: true,
                attack: None,
                attacks: 3,
            }],
            tables: vec![TableStatus {
                table: "hosts_v4".to_owned(),
                entries: 9,
                capacity: 1000,
            }],
            lists: vec![ListCount {
                list: List::Black,
                family: FamilyName::Ipv4,
                kind: EntryKind::Host,
                entries: 9,
            }],
            limiter: LimiterStatus {
                evicted: 4,
                ..LimiterStatus::default()
            },
            events: EventsStatus::default(),
            control: Stats::default().counts(),
            stage_missing: 0,
            balance: Some(BalanceStatus {
                services: vec![BalancedService {
                    name: "web".to_owned(),
                    forward: "l2".to_owned(),
                    hash: "5-tuple".to_owned(),
                    quic_config_id: None,
                    failed_open: false,
                    backends: vec![BackendStatus {
                        name: "web-1".to_owned(),
                        address: [10, 0, 0, 11].into(),
                        port: None,
                        backup: false,
                        server_id: None,
                        number: 1,
                        configured_weight: 100,
                        set_weight: None,
                        weight: 100,
                        share: 1.0,
                        admin: AdminState::Active,
                        health: None,
                        health_since_unix_ms: None,
                        health_through: Some("tunnel".to_owned()),
                        health_changes: 6,
                        why: String::new(),
                        error: None,
                        no_way: None,
                        flows: 3,
                        packets: 4,
                        bytes: 5,
                        syns: Some(6),
                        syn_acks: Some(7),
                        refusals: Some(8),
                    }],
                }],
                flows: FlowTable::default(),
                sources: vec![NatSource {
                    addresses: vec![[192, 0, 2, 1].into()],
                    ports: 9,
                    capacity: 10,
                }],
            }),
            proxy: Some(proxy::tests::proxy()),
        }
    }

    /// The text with this proxy.
    pub(in crate::metrics) fn rendered(proxy: Option<ProxyStatus>) -> String {
        let status = Status { proxy, ..status() };
        render(status, Format::Prometheus).unwrap()
    }

    /// Samples (name and labels to value) of a rendered text, after checking
    /// that every line is a sample behind its own HELP and TYPE.
    pub(in crate::metrics) fn parse(text: &str) -> BTreeMap<String, f64> {
        let mut samples = BTreeMap::new();
        let mut helped = String::new();
        let mut typed = (String::new(), String::new());
        for line in text.lines() {
            let mut words = line.split(' ');
            match words.next().unwrap() {
                "#" => match words.next().unwrap() {
                    "HELP" => helped = words.next().unwrap().to_owned(),
                    "TYPE" => {
                        typed = (
                            words.next().unwrap().to_owned(),
                            words.next().unwrap().to_owned(),
                        );
                        assert_eq!(helped, typed.0);
                    }
                    other => panic!("{other}"),
                },
                series => {
                    let name = family(series, typed.1 == "histogram");
                    assert_eq!(name, typed.0, "{line}");
                    let value = words.next().unwrap().parse().unwrap();
                    assert_eq!(words.next(), None);
                    assert!(samples.insert(series.to_owned(), value).is_none(), "{line}");
                    assert_eq!(name.ends_with("_total"), typed.1 == "counter", "{line}");
                }
            }
        }
        samples
    }

    /// The name of a sample without its labels, and without the endings of a histogram's.
    fn family(series: &str, is_histogram: bool) -> &str {
        let name = series.split('{').next().unwrap();
        let endings = ["_bucket", "_sum", "_count"];
        let mut plain = endings.iter().filter_map(|end| name.strip_suffix(end));
        plain.next().filter(|_| is_histogram).unwrap_or(name)
    }

    /// Those of the daemon, its proxy included.
    fn of_daemon() -> impl Iterator<Item = &'static Metric> {
        names::ALL.iter().chain(names::PROXY).copied()
    }

    fn of_series(series: &str) -> &'static Metric {
        let is_it = |m: &&Metric| family(series, m.kind == Kind::Histogram) == m.sample_name();
        of_daemon()
            .find(is_it)
            .unwrap_or_else(|| panic!("{series}"))
    }

    #[test]
    fn every_name_is_rendered_and_nothing_else() {
        let samples = parse(&render(status(), Format::Prometheus).unwrap());
        let rendered: BTreeSet<&str> = samples.keys().map(|s| of_series(s).name).collect();
        let named: BTreeSet<&str> = of_daemon().map(|m| m.name).collect();
        assert_eq!(rendered, named);
        for series in samples.keys() {
            let metric = of_series(series);
            let (_, labels) = series.split_once('{').unwrap_or((series, "}"));
            let labels: Vec<&str> = labels
                .trim_end_matches('}')
                .split(',')
                .filter(|l| !l.is_empty())
                .map(|l| l.split('=').next().unwrap())
                // That of the buckets, not ours.
                .filter(|l| *l != "le")
                .collect();
            assert_eq!(labels, metric.labels, "{series}");
        }
    }

    #[test]
    fn values_stand_where_they_belong_in_base_units() {
        let samples = parse(&render(status(), Format::Prometheus).unwrap());
        for (series, value) in [
            (
                r#"edge_packets_total{interface="eth1",reason="blacklisted"}"#,
                5.0,
            ),
            (
                r#"edge_bytes_total{interface="eth1",reason="blacklisted"}"#,
                300.0,
            ),
            (r#"edge_packets_total{interface="eth0",reason="land"}"#, 0.0),
            (
                r#"edge_would_drop_packets_total{interface="eth0",reason="blacklisted"}"#,
                1.0,
            ),
            (
                r#"edge_would_drop_bytes_total{interface="eth0",reason="blacklisted"}"#,
                60.0,
            ),
            ("edge_start_time_seconds", 1_790_000_000.5),
            ("edge_uptime_seconds", 1.5),
            (r#"edge_table_entries{table="hosts_v4"}"#, 9.0),
            (r#"edge_table_capacity_entries{table="hosts_v4"}"#, 1000.0),
            (
                r#"edge_list_entries{list="blacklist",family="ipv4",kind="host"}"#,
                9.0,
            ),
            ("edge_limiter_evicted_total", 4.0),
            (r#"edge_service_under_attack{service="web"}"#, 1.0),
            (r#"edge_host_under_attack{flood="icmp"}"#, 0.0),
            (r#"edge_host_attacks_total{flood="icmp"}"#, 3.0),
            (r#"edge_service_defended{service="web"}"#, 0.0),
            (r#"edge_service_pressure_ratio{service="web"}"#, 0.25),
            (r#"edge_service_targets{service="web"}"#, 4.0),
            (r#"edge_service_ready_targets{service="web"}"#, 3.0),
            (
                r#"edge_service_events_total{service="web",event="cookies_sent"}"#,
                7.0,
            ),
            (r#"edge_config_reloads_total{result="failure"}"#, 1.0),
            (
                r#"edge_control_requests_total{command="add",result="success"}"#,
                0.0,
            ),
            (r#"edge_build_info{version="1.2.3",abi_version="1"}"#, 1.0),
        ] {
            assert_eq!(samples.get(series), Some(&value), "{series}");
        }
        let absent = r#"edge_would_drop_packets_total{interface="eth0",reason="pass"}"#;
        assert_eq!(samples.get(absent), None);
    }

    #[test]
    fn the_number_of_series_follows_the_interfaces_only() {
        let of = |n: usize| {
            let mut status = status();
            let one = status.interfaces.remove(0);
            status.interfaces = (0..n)
                .map(|i| InterfaceStatus {
                    name: format!("eth{i}"),
                    ..one.clone()
                })
                .collect();
            parse(&render(status, Format::Prometheus).unwrap()).len()
        };
        let drops = Reason::ALL
            .iter()
            .filter(|r| r.verdict() != Verdict::Pass)
            .count();
        assert_eq!(of(32) - of(31), 2 * Reason::COUNT + 2 * drops + 2);
    }

    #[test]
    fn the_decapsulator_has_all_outcomes_from_the_start() {
        let mut packets = [0; Outcome::COUNT];
        packets[Outcome::DecapGue as usize] = 7;
        let interface = |name: &str, mode| DecapInterface {
            name: name.to_owned(),
            mode,
        };
        let interfaces = vec![
            interface("eth0", Some(AttachMode::Native)),
            interface("eth1", None),
        ];
        let text = render_decap(interfaces, packets.into(), Format::Prometheus).unwrap();
        let samples = parse(&text);
        let of = |reason| samples[&format!("edge_decap_packets_total{{reason=\"{reason}\"}}")];
        for outcome in Outcome::ALL {
            let expected = if outcome == Outcome::DecapGue {
                7.0
            } else {
                0.0
            };
            assert_eq!(of(outcome.name()), expected);
        }
        let attached =
            |name| samples[&format!("edge_decap_interface_attached{{interface=\"{name}\"}}")];
        assert_eq!([attached("eth0"), attached("eth1")], [1.0, 0.0]);
        assert_eq!(samples.len(), Outcome::COUNT + 2);
    }

    #[test]
    fn openmetrics_names_families_and_ends() {
        let text = render(status(), Format::OpenMetrics).unwrap();
        assert!(text.contains("# TYPE edge_http_request_duration_seconds histogram\n"));
        assert!(text.contains("# TYPE edge_packets counter\nedge_packets_total{"));
        assert!(text.ends_with("# EOF\n"));
        let plain = render(status(), Format::Prometheus).unwrap();
        assert!(plain.contains("# TYPE edge_packets_total counter\nedge_packets_total{"));
        assert!(!plain.contains("# EOF"));
    }
}
