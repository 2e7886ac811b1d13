//! The proxy's part of the text.
//!
//! Every label has few values: names of the configuration, classes, states, reasons. A route
//! without a request has no series, as there may be very many.

use std::fmt;

use super::{
    names::{self, Metric},
    registry::{Value, Writer},
};
use crate::{
    l7::refusal::Refusal,
    status::proxy::{
        CLASSES, ListenerStatus, ProxyStatus, RequestCounts, RouteStatus, ServerStatus,
        UpstreamStatus,
    },
};

/// States of a circuit breaker, as [`UpstreamStatus::breaker`] has them.
const BREAKER_STATES: [&str; 3] = ["closed", "open", "half_open"];

/// Writes all of it; without a proxy there are no samples.
pub(super) fn write(proxy: Option<&ProxyStatus>, w: &mut Writer<'_>) -> fmt::Result {
    let none = ProxyStatus::default();
    let all = proxy.unwrap_or(&none);
    listeners(&all.listeners, w)?;
    let used = all.routes.iter().filter(|r| r.requests.total() > 0);
    routes(&used.collect::<Vec<_>>(), w)?;
    upstreams(&all.upstreams, w)?;
    servers(&all.upstreams, w)?;
    let mut single = |metric, value: fn(&ProxyStatus) -> u64| {
        w.family(metric, proxy.map(|p| ([], Value::Int(value(p)))))
    };
    single(&names::HTTP_WORKERS, |p| p.workers.into())?;
    single(&names::HTTP_LOG_LOST, |p| p.log_lost)?;
    let spans = proxy.map(|p| p.spans).into_iter().flat_map(|s| {
        [
            ("exported", s.exported),
            ("dropped", s.dropped),
            ("failed", s.failed),
        ]
        .map(|(result, n)| ([result], Value::Int(n)))
    });
    w.family(&names::HTTP_SPANS, spans)?;
    let mut single = |metric, value: fn(&ProxyStatus) -> u64| {
        w.family(metric, proxy.map(|p| ([], Value::Int(value(p)))))
    };
    single(&names::HTTP_BANS, |p| p.bans)?;
    single(&names::HTTP_PANICS, |p| p.panics)?;
    single(&names::HTTP_WORKER_RESTARTS, |p| p.worker_restarts)
}

/// What has a name and requests.
type Named<'a> = (&'a str, &'a RequestCounts);

/// Rate, errors and duration, and bytes: the families of one kind of thing, in that order.
fn red(all: &[Named<'_>], metrics: [&Metric; 4], w: &mut Writer<'_>) -> fmt::Result {
    let [requests, duration, received, sent] = metrics;
    let classes = all.iter().flat_map(|&(name, counts)| {
        let classes = CLASSES.iter().zip(counts.classes);
        classes.map(move |(class, n)| ([name, *class], Value::Int(n)))
    });
    w.family(requests, classes)?;
    w.family(duration, all.iter().map(|&(name, counts)| ([name], counts)))?;
    let mut bytes = |metric, value: fn(&RequestCounts) -> u64| {
        let samples = all.iter();
        w.family(
            metric,
            samples.map(|&(name, counts)| ([name], Value::Int(value(counts)))),
        )
    };
    bytes(received, |counts| counts.received)?;
    bytes(sent, |counts| counts.sent)
}

fn listeners(all: &[ListenerStatus], w: &mut Writer<'_>) -> fmt::Result {
    let named: Vec<Named<'_>> = all.iter().map(|l| (&*l.name, &l.requests)).collect();
    let metrics = [
        &names::HTTP_REQUESTS,
        &names::HTTP_DURATION,
        &names::HTTP_RECEIVED,
        &names::HTTP_SENT,
    ];
    red(&named, metrics, w)?;
    let mut each = |metric, value: fn(&ListenerStatus) -> u64| {
        let samples = all.iter();
        w.family(
            metric,
            samples.map(|l| ([l.name.as_str()], Value::Int(value(l)))),
        )
    };
    each(&names::HTTP_CONNECTIONS, |l| l.open)?;
    each(&names::HTTP_ACCEPTED, |l| l.accepted)?;
    each(&names::HTTP_REFUSED, |l| l.refused)?;
    each(&names::HTTP_TLS_FAILURES, |l| l.tls_failed)?;
    each(&names::HTTP_IDLE_TIMEOUTS, |l| l.idle_timeouts)?;
    // All reasons from the start, for the same reason as those of packets.
    let refusals = all.iter().flat_map(|l| {
        Refusal::all().map(|refusal| {
            let found = l.refusals.iter().find(|(name, _)| name == refusal.name());
            let count = found.map_or(0, |(_, count)| *count);
            ([l.name.as_str(), refusal.name()], Value::Int(count))
        })
    });
    w.family(&names::HTTP_REFUSALS, refusals)
}

fn routes(all: &[&RouteStatus], w: &mut Writer<'_>) -> fmt::Result {
    let named: Vec<Named<'_>> = all.iter().map(|r| (&*r.name, &r.requests)).collect();
    let metrics = [
        &names::HTTP_ROUTE_REQUESTS,
        &names::HTTP_ROUTE_DURATION,
        &names::HTTP_ROUTE_RECEIVED,
        &names::HTTP_ROUTE_SENT,
    ];
    red(&named, metrics, w)?;
    let mirrored = all.iter().filter_map(|r| Some((&*r.name, r.mirrored?)));
    let results = mirrored.flat_map(|(name, m)| {
        [
            ("sent", m.sent),
            ("failed", m.failed),
            ("skipped", m.skipped),
        ]
        .map(|(result, n)| ([name, result], Value::Int(n)))
    });
    w.family(&names::HTTP_ROUTE_MIRRORED, results)
}

fn upstreams(all: &[UpstreamStatus], w: &mut Writer<'_>) -> fmt::Result {
    let named: Vec<Named<'_>> = all.iter().map(|u| (&*u.name, &u.requests)).collect();
    let metrics = [
        &names::HTTP_UPSTREAM_REQUESTS,
        &names::HTTP_UPSTREAM_DURATION,
        &names::HTTP_UPSTREAM_RECEIVED,
        &names::HTTP_UPSTREAM_SENT,
    ];
    red(&named, metrics, w)?;
    let mut each = |metric, value: fn(&UpstreamStatus) -> u64| {
        let samples = all.iter();
        w.family(
            metric,
            samples.map(|u| ([u.name.as_str()], Value::Int(value(u)))),
        )
    };
    each(&names::HTTP_UPSTREAM_ACTIVE, |u| {
        u.servers.iter().map(|s| u64::from(s.active)).sum()
    })?;
    each(&names::HTTP_UPSTREAM_WAITING, |u| u.waiting.into())?;
    each(&names::HTTP_UPSTREAM_QUEUED, |u| u.queued)?;
    each(&names::HTTP_UPSTREAM_OVERFLOWS, |u| u.overflows)?;
    each(&names::HTTP_UPSTREAM_BROKEN, |u| u.broken)?;
    each(&names::HTTP_UPSTREAM_CONNECTS, |u| u.connects)?;
    each(&names::HTTP_UPSTREAM_CONNECT_FAILURES, |u| {
        u.connect_failures
    })?;
    each(&names::HTTP_UPSTREAM_RETRIES, |u| u.retries)?;
    each(&names::HTTP_UPSTREAM_RETRIES_DENIED, |u| u.retries_denied)?;
    let states = all.iter().flat_map(|u| {
        let now = u.breaker.as_deref();
        BREAKER_STATES
            .iter()
            .filter(move |_| now.is_some())
            .map(move |state| {
                let is_it = now == Some(*state);
                ([u.name.as_str(), *state], Value::Int(is_it.into()))
            })
    });
    w.family(&names::HTTP_UPSTREAM_BREAKER, states)
}

fn servers(all: &[UpstreamStatus], w: &mut Writer<'_>) -> fmt::Result {
    let all: Vec<([&str; 2], &ServerStatus)> = all
        .iter()
        .flat_map(|u| {
            let servers = u.servers.iter();
            servers.map(|s| ([u.name.as_str(), s.address.as_str()], s))
        })
        .collect();
    let requests = all.iter().flat_map(|([upstream, server], s)| {
        let classes = CLASSES.iter().zip(s.requests.classes);
        classes.map(move |(class, n)| ([*upstream, *server, *class], Value::Int(n)))
    });
    w.family(&names::HTTP_SERVER_REQUESTS, requests)?;
    let durations = all.iter().map(|(labels, s)| (*labels, &s.requests));
    w.family(&names::HTTP_SERVER_DURATION, durations)?;
    let mut each = |metric, value: fn(&ServerStatus) -> u64| {
        let samples = all.iter();
        w.family(
            metric,
            samples.map(|(labels, s)| (*labels, Value::Int(value(s)))),
        )
    };
    each(&names::HTTP_SERVER_UP, |s| s.up.into())?;
    each(&names::HTTP_SERVER_DRAINING, |s| s.draining.into())?;
    each(&names::HTTP_SERVER_EJECTED, |s| (s.ejected_ms > 0).into())?;
    each(&names::HTTP_SERVER_WEIGHT, |s| s.weight.into())?;
    each(&names::HTTP_SERVER_ACTIVE, |s| s.active.into())
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::{
        l7::stats::DURATION_BOUNDS_US,
        metrics::registry::tests::{parse, rendered},
        status::proxy::{MirrorCounts, SpanCounts},
    };

    /// Something of everything.
    pub(in crate::metrics) fn proxy() -> ProxyStatus {
        let mut durations = vec![0; DURATION_BOUNDS_US.len() + 1];
        (durations[0], durations[3], durations[14]) = (4, 2, 1);
        let requests = RequestCounts {
            classes: [0, 4, 0, 2, 1, 0],
            durations,
            duration_us: 12_500_000,
            received: 10,
            sent: 20,
        };
        let route = |name: &str, requests: &RequestCounts| RouteStatus {
            name: name.to_owned(),
            requests: requests.clone(),
            mirrored: (name == "api").then_some(MirrorCounts {
                sent: 11,
                failed: 12,
                skipped: 13,
            }),
        };
        ProxyStatus {
            workers: 2,
            listeners: vec![ListenerStatus {
                name: "web".to_owned(),
                open: 3,
                idle_timeouts: 17,
                requests: requests.clone(),
                refusals: vec![("no_route".to_owned(), 2)],
                ..ListenerStatus::default()
            }],
            routes: vec![
                route("api", &requests),
                route("quiet", &RequestCounts::default()),
            ],
            upstreams: vec![
                UpstreamStatus {
                    name: "app".to_owned(),
                    requests: requests.clone(),
                    breaker: Some("half_open".to_owned()),
                    servers: vec![ServerStatus {
                        address: "10.0.0.1:80".to_owned(),
                        weight: 5,
                        active: 6,
                        ejected_ms: 1,
                        requests,
                        ..ServerStatus::default()
                    }],
                    ..UpstreamStatus::default()
                },
                UpstreamStatus {
                    name: "plain".to_owned(),
                    ..UpstreamStatus::default()
                },
            ],
            log_lost: 8,
            spans: SpanCounts {
                exported: 14,
                dropped: 15,
                failed: 16,
            },
            bans: 9,
            panics: 17,
            worker_restarts: 18,
        }
    }

    #[test]
    fn the_proxy_is_counted_where_it_belongs() {
        let samples = parse(&rendered(Some(proxy())));
        let duration = "edge_http_request_duration_seconds";
        for (series, value) in [
            (
                r#"edge_http_requests_total{listener="web",class="4xx"}"#.to_owned(),
                2.0,
            ),
            (
                format!(r#"{duration}_bucket{{le="0.0005",listener="web"}}"#),
                4.0,
            ),
            (
                format!(r#"{duration}_bucket{{le="0.0025",listener="web"}}"#),
                4.0,
            ),
            (
                format!(r#"{duration}_bucket{{le="0.005",listener="web"}}"#),
                6.0,
            ),
            (
                format!(r#"{duration}_bucket{{le="10.0",listener="web"}}"#),
                6.0,
            ),
            (
                format!(r#"{duration}_bucket{{le="+Inf",listener="web"}}"#),
                7.0,
            ),
            (format!(r#"{duration}_count{{listener="web"}}"#), 7.0),
            (format!(r#"{duration}_sum{{listener="web"}}"#), 12.5),
            (
                r#"edge_http_sent_bytes_total{listener="web"}"#.to_owned(),
                20.0,
            ),
            (
                r#"edge_http_idle_timeouts_total{listener="web"}"#.to_owned(),
                17.0,
            ),
            (
                r#"edge_http_refusals_total{listener="web",reason="no_route"}"#.to_owned(),
                2.0,
            ),
            (
                r#"edge_http_refusals_total{listener="web",reason="host_missing"}"#.to_owned(),
                0.0,
            ),
            (
                r#"edge_http_route_requests_total{route="api",class="5xx"}"#.to_owned(),
                1.0,
            ),
            (
                r#"edge_http_route_mirrored_requests_total{route="api",result="skipped"}"#
                    .to_owned(),
                13.0,
            ),
            (
                r#"edge_http_upstream_active_requests{upstream="app"}"#.to_owned(),
                6.0,
            ),
            (
                r#"edge_http_upstream_breaker_state{upstream="app",state="half_open"}"#.to_owned(),
                1.0,
            ),
            (
                r#"edge_http_upstream_breaker_state{upstream="app",state="open"}"#.to_owned(),
                0.0,
            ),
            (
                r#"edge_http_server_ejected{upstream="app",server="10.0.0.1:80"}"#.to_owned(),
                1.0,
            ),
            (
                r#"edge_http_server_weight{upstream="app",server="10.0.0.1:80"}"#.to_owned(),
                5.0,
            ),
            (
                r#"edge_http_spans_total{result="dropped"}"#.to_owned(),
                15.0,
            ),
            ("edge_http_bans_total".to_owned(), 9.0),
            ("edge_http_panics_total".to_owned(), 17.0),
            ("edge_http_worker_restarts_total".to_owned(), 18.0),
        ] {
            assert_eq!(samples.get(&series), Some(&value), "{series}");
        }
        let has = |text: &str| samples.keys().any(|series| series.contains(text));
        assert!(!has("quiet"));
        assert!(!has(r#"breaker_state{upstream="plain""#));
    }

    #[test]
    fn without_a_proxy_there_is_no_sample_of_it() {
        let samples = parse(&rendered(None));
        assert!(!samples.keys().any(|series| series.starts_with("edge_http")));
    }
}
