//! `edge upstream`, and what `edge status` says of the proxy.

use std::{fmt::Write as _, io::Write, path::Path};

use super::{
    Error,
    args::UpstreamCommand,
    ask,
    output::Out,
    text::{Column, Table, count, scaled, span},
    unexpected,
};
use crate::{
    config::proxy::upstream::Balance,
    control::protocol::{Request, Response, ServerChange},
    status::proxy::{ProxyStatus, RequestCounts, ServerStatus, UpstreamStatus},
};

pub(super) fn execute<W: Write>(
    command: UpstreamCommand,
    socket: &Path,
    out: &mut Out<W>,
) -> Result<(), Error> {
    let (name, server, change) = match command {
        UpstreamCommand::List { name } => return list(name.as_deref(), socket, out),
        UpstreamCommand::Drain { name, server, undo } => {
            let change = match undo {
                true => ServerChange::Undrain {},
                false => ServerChange::Drain {},
            };
            (name, server, change)
        }
        UpstreamCommand::Weight {
            name,
            server,
            weight,
        } => (name, server, ServerChange::Weight { weight }),
    };
    let request = Request::Upstream {
        name,
        server: server.clone(),
        change,
    };
    let upstream = match ask(socket, request)? {
        Response::Upstream(upstream) => upstream,
        other => return Err(unexpected(socket, &other)),
    };
    out.either(&upstream, || sentence(&upstream, &server))?;
    Ok(())
}

/// How a server is after a change.
fn sentence(upstream: &UpstreamStatus, server: &str) -> String {
    let name = &upstream.name;
    let Some(s) = upstream.servers.iter().find(|s| s.address == server) else {
        return String::new();
    };
    let active = count(s.active.into());
    let mut told = match s.draining || s.weight == 0 {
        true => format!("{name} {server}: gets no new requests; {active} are under way\n"),
        false => format!("{name} {server}: weight {}, {}\n", s.weight, state(s)),
    };
    // As `edge check` says of the file.
    if s.weight > 1 && upstream.balance == Balance::RoundRobin.name() {
        told += "weights have no effect with balance = \"round-robin\"; choose \"weighted-round-robin\"\n";
    }
    told
}

fn list<W: Write>(name: Option<&str>, socket: &Path, out: &mut Out<W>) -> Result<(), Error> {
    let status = match ask(socket, Request::Status {})? {
        Response::Status(status) => status,
        other => return Err(unexpected(socket, &other)),
    };
    let mut upstreams = status.proxy.unwrap_or_default().upstreams;
    if let Some(name) = name {
        let known: Vec<&str> = upstreams.iter().map(|u| u.name.as_str()).collect();
        if !known.contains(&name) {
            let known = match known.is_empty() {
                true => "none".to_owned(),
                false => known.join(", "),
            };
            let message = format!("there is no upstream {name:?}; there are: {known}");
            return Err(Error::Input(message));
        }
        upstreams.retain(|u| u.name == name);
    }
    if out.json {
        for upstream in &upstreams {
            out.object(upstream)?;
        }
    } else if upstreams.is_empty() {
        out.text("no upstreams\n")?;
    } else {
        out.text(&text(&upstreams))?;
    }
    Ok(())
}

/// Requests that the server's side failed, of all.
fn errors(requests: &RequestCounts) -> String {
    count(requests.classes[4])
}

/// The mean of what requests took.
fn mean(requests: &RequestCounts) -> String {
    let total = requests.total();
    if total == 0 {
        return "-".to_owned();
    }
    let ms = requests.duration_us as f64 / total as f64 / 1e3;
    // What rounds to a second is one.
    match ms < 999.5 {
        true => scaled(ms, "ms"),
        false => scaled(ms / 1e3, "s"),
    }
}

/// Upstreams and their servers.
fn text(upstreams: &[UpstreamStatus]) -> String {
    let mut table = Table::new([
        Column::Left("UPSTREAM"),
        Column::Left("BALANCE"),
        Column::Left("BREAKER"),
        Column::Right("ACTIVE"),
        Column::Right("WAITING"),
        Column::Right("REQUESTS"),
        Column::Right("5XX"),
        Column::Right("MEAN"),
        Column::Right("RETRIES"),
        Column::Right("REFUSED"),
    ]);
    let mut servers = Table::new([
        Column::Left("UPSTREAM"),
        Column::Left("SERVER"),
        Column::Left("STATE"),
        Column::Right("WEIGHT"),
        Column::Right("ACTIVE"),
        Column::Right("REQUESTS"),
        Column::Right("5XX"),
        Column::Right("MEAN"),
    ]);
    for u in upstreams {
        table.row([
            u.name.clone(),
            u.balance.clone(),
            match u.breaker.as_deref() {
                None => "-".to_owned(),
                Some("closed") => "closed".to_owned(),
                // It must not be overlooked.
                Some(other) => other.to_uppercase().replace('_', " "),
            },
            count(u.servers.iter().map(|s| u64::from(s.active)).sum()),
            count(u.waiting.into()),
            count(u.requests.total()),
            errors(&u.requests),
            mean(&u.requests),
            count(u.retries),
            count(u.overflows.saturating_add(u.broken)),
        ]);
        for s in &u.servers {
            servers.row([
                u.name.clone(),
                s.address.clone(),
                state(s),
                s.weight.to_string(),
                count(s.active.into()),
                count(s.requests.total()),
                errors(&s.requests),
                mean(&s.requests),
            ]);
        }
    }
    format!("{}\n{}", table.text(), servers.text())
}

/// How a server is.
fn state(s: &ServerStatus) -> String {
    let mut state = match (s.up, &s.why) {
        (true, _) => "up".to_owned(),
        (false, Some(why)) => format!("DOWN ({why})"),
        (false, None) => "DOWN".to_owned(),
    };
    if s.ejected_ms > 0 {
        // Less than a second is not nothing.
        let _ = write!(state, ", EJECTED for {}", span(s.ejected_ms.max(1000)));
    }
    if s.draining {
        state += ", draining";
    }
    if s.backup {
        state += ", backup";
    }
    state
}

/// What `edge status` says of it.
pub(super) fn section(proxy: &ProxyStatus) -> String {
    let mut table = Table::new([
        Column::Left("LISTENER"),
        Column::Left("ADDRESSES"),
        Column::Right("OPEN"),
        Column::Right("ACCEPTED"),
        Column::Right("REFUSED"),
        Column::Right("TLS FAILED"),
        Column::Right("REQUESTS"),
        Column::Right("4XX"),
        Column::Right("5XX"),
        Column::Right("MEAN"),
    ]);
    for l in &proxy.listeners {
        table.row([
            l.name.clone(),
            l.addresses.join(", "),
            count(l.open),
            count(l.accepted),
            count(l.refused),
            count(l.tls_failed),
            count(l.requests.total()),
            count(l.requests.classes[3]),
            errors(&l.requests),
            mean(&l.requests),
        ]);
    }
    let mut section = table.text();
    if !proxy.upstreams.is_empty() {
        let _ = write!(section, "\n{}", text(&proxy.upstreams));
    }
    let _ = writeln!(
        section,
        "\nproxy: {} workers, {} lines of the access log lost, {} sources banned",
        proxy.workers,
        count(proxy.log_lost),
        count(proxy.bans)
    );
    section
}

#[cfg(test)]
pub(in crate::cli) mod tests {
    use super::*;
    use crate::status::proxy::ListenerStatus;

    pub(in crate::cli) fn proxy() -> ProxyStatus {
        let requests = RequestCounts {
            classes: [0, 9000, 0, 12, 3, 1],
            duration_us: 9016 * 2500,
            ..RequestCounts::default()
        };
        let server = |address: &str| ServerStatus {
            address: address.to_owned(),
            weight: 1,
            up: true,
            active: 2,
            requests: requests.clone(),
            ..ServerStatus::default()
        };
        ProxyStatus {
            workers: 2,
            listeners: vec![ListenerStatus {
                name: "web".to_owned(),
                addresses: vec!["192.0.2.10:443".to_owned()],
                open: 5,
                accepted: 1234,
                tls_failed: 7,
                requests: requests.clone(),
                ..ListenerStatus::default()
            }],
            upstreams: vec![UpstreamStatus {
                name: "app".to_owned(),
                balance: "round-robin".to_owned(),
                requests: requests.clone(),
                waiting: 3,
                overflows: 1,
                broken: 4,
                breaker: Some("half_open".to_owned()),
                retries: 6,
                servers: vec![
                    server("10.0.0.1:8080"),
                    ServerStatus {
                        up: false,
                        why: Some("connect: refused".to_owned()),
                        draining: true,
                        ..server("10.0.0.2:8080")
                    },
                    ServerStatus {
                        backup: true,
                        ejected_ms: 300,
                        ..server("unix:/run/app.sock")
                    },
                ],
                ..UpstreamStatus::default()
            }],
            bans: 8,
            ..ProxyStatus::default()
        }
    }

    #[test]
    fn the_proxy_is_shown_with_what_needs_attention() {
        assert_eq!(
            section(&proxy()),
            "\
LISTENER  ADDRESSES       OPEN  ACCEPTED  REFUSED  TLS FAILED  REQUESTS  4XX  5XX     MEAN
web       192.0.2.10:443     5     1,234        0           7     9,016   12    3  2.50 ms

UPSTREAM  BALANCE      BREAKER    ACTIVE  WAITING  REQUESTS  5XX     MEAN  RETRIES  REFUSED
app       round-robin  HALF OPEN       6        3     9,016    3  2.50 ms        6        5

UPSTREAM  SERVER              STATE                              WEIGHT  ACTIVE  REQUESTS  5XX     MEAN
app       10.0.0.1:8080       up                                      1       2     9,016    3  2.50 ms
app       10.0.0.2:8080       DOWN (connect: refused), draining       1       2     9,016    3  2.50 ms
app       unix:/run/app.sock  up, EJECTED for 1s, backup              1       2     9,016    3  2.50 ms

proxy: 2 workers, 0 lines of the access log lost, 8 sources banned
"
        );
    }

    #[test]
    fn a_mean_has_a_fitting_unit() {
        let mean = |us: u64| {
            mean(&RequestCounts {
                classes: [0, 2, 0, 0, 0, 0],
                duration_us: us * 2,
                ..RequestCounts::default()
            })
        };
        assert_eq!(
            [50, 2500, 999_400, 999_600, 12_500_000].map(mean),
            ["0.05 ms", "2.50 ms", "999 ms", "1.00 s", "12.5 s"]
        );
        assert_eq!(super::mean(&RequestCounts::default()), "-");
    }

    #[test]
    fn a_change_is_told_as_it_is() {
        let upstream = &proxy().upstreams[0];
        assert_eq!(
            sentence(upstream, "10.0.0.1:8080"),
            "app 10.0.0.1:8080: weight 1, up\n"
        );
        assert_eq!(
            sentence(upstream, "10.0.0.2:8080"),
            "app 10.0.0.2:8080: gets no new requests; 2 are under way\n"
        );
    }

    #[test]
    fn a_weight_without_effect_is_told_to_be_that() {
        let mut upstream = proxy().upstreams.remove(0);
        let weighted = |upstream: &mut UpstreamStatus, weight| {
            upstream.servers[0].weight = weight;
            sentence(upstream, "10.0.0.1:8080")
        };
        let none = "weights have no effect with balance = \"round-robin\"";
        assert!(weighted(&mut upstream, 7).contains(none));
        assert!(!weighted(&mut upstream, 1).contains(none));
        assert!(!weighted(&mut upstream, 0).contains(none));
        upstream.balance = "weighted-round-robin".to_owned();
        assert!(!weighted(&mut upstream, 7).contains(none));
    }
}
