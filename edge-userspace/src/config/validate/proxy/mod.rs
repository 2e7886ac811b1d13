//! The L7 proxy: what listeners, upstreams and routes mean, and whether they fit together.

mod conditions;
mod headers;
mod listeners;
mod passive;
mod routes;
mod shadow;
mod upstreams;

use std::{
    collections::BTreeMap,
    net::{IpAddr, SocketAddr},
    path::PathBuf,
    time::Duration,
};

use super::{
    MAX_PATH,
    health::is_host,
    number,
    services::{NAME_REMEDY, is_name},
    span,
};
use crate::config::{
    proxy::{AccessLog, Bans, MAX_OFFENCES, MAX_WORKERS, Proxy, Traces},
    quantity::{Bytes, Share},
    raw,
    report::{At, Place, Report},
};

/// Checks all of it; `metrics` is where something listens already.
pub(super) fn proxy(
    raw: &raw::Root,
    metrics: Option<SocketAddr>,
    report: &mut Report<'_>,
) -> Proxy {
    let none = raw::proxy::Proxy::default();
    let shared = raw.proxy.as_ref().unwrap_or(&none);
    let listeners = listeners::listeners(raw.listeners.as_deref().unwrap_or(&[]), metrics, report);
    let raw_upstreams = raw.upstreams.as_deref().unwrap_or(&[]);
    let upstreams = upstreams::upstreams(raw_upstreams, report);
    let places = raw.listeners.iter().flatten().map(|l| l.place.clone());
    let places: Vec<Place> = places.collect();
    let routes = routes::routes(
        raw.routes.as_deref().unwrap_or(&[]),
        (&listeners, &places),
        &upstreams,
        report,
    );
    passive::idle(raw_upstreams, &upstreams, &routes, report);
    let places = raw_upstreams.iter().map(|u| &u.place);
    shadow::unused(&upstreams, &places.collect::<Vec<_>>(), &routes, report);
    if raw.listeners.as_ref().is_none_or(Vec::is_empty) {
        let first = (raw.proxy.as_ref().map(|p| &p.place))
            .or_else(|| Some(&raw.routes.as_ref()?.first()?.place))
            .or_else(|| Some(&raw.upstreams.as_ref()?.first()?.place));
        if let Some(place) = first {
            report.warn_without_value(place, "without effect, for there is no [[listener]]");
        }
    }
    Proxy {
        workers: (shared.workers.as_ref()).map(|at| number(Some(at), 1, 1, MAX_WORKERS, report)),
        drain_timeout: span(
            shared.drain_timeout.as_ref(),
            Proxy::default().drain_timeout,
            (SECOND, DAY),
            report,
        ),
        access_log: shared
            .access_log
            .as_ref()
            .and_then(|log| access_log(log, report)),
        bans: shared.bans.as_ref().map(|raw| bans(raw, report)),
        traces: (shared.traces.as_ref()).and_then(|raw| traces(raw, report)),
        listeners,
        upstreams,
        routes,
    }
}

const SECOND: Duration = Duration::from_secs(1);
const DAY: Duration = Duration::from_hours(24);

fn bans(raw: &raw::proxy::Bans, report: &mut Report<'_>) -> Bans {
    let default = Bans::default();
    let offences = raw.offences.as_ref();
    Bans {
        offences: number(offences, default.offences, 1, MAX_OFFENCES, report),
        window: span(raw.window.as_ref(), default.window, (SECOND, DAY), report),
        ttl: span(raw.ttl.as_ref(), default.ttl, (SECOND, 30 * DAY), report),
    }
}

fn traces(raw: &raw::proxy::Traces, report: &mut Report<'_>) -> Option<Traces> {
    const REMEDY: &str = "name the collector, such as endpoint = \"http://127.0.0.1:4318\"";
    let sample_permille = share(raw.sample.as_ref(), Traces::SAMPLE_PERMILLE, 0, report);
    let service_name = raw.service_name.as_ref().map(|at| {
        let is_short = (1..=MAX_TOKEN).contains(&at.value.len());
        if !is_short || at.value.chars().any(char::is_control) {
            report.problem(
                &at.place,
                "no name; write 1 to 256 bytes without control characters",
            );
        }
        at.value.clone()
    });
    let At { value, place } = required(
        raw.endpoint.as_ref(),
        &raw.place,
        "endpoint",
        REMEDY,
        report,
    )?;
    let endpoint = value.trim_end_matches('/');
    if !is_endpoint(endpoint) {
        report.problem(
            place,
            format_args!("no URL of a collector that is spoken to by HTTP or HTTPS; {REMEDY}"),
        );
    }
    if let Some(ca) = raw
        .ca
        .as_ref()
        .filter(|_| !endpoint.starts_with("https://"))
    {
        report.problem(
            &ca.place,
            "without TLS there is nobody to trust; write https:// in endpoint, or remove it",
        );
    }
    if let Some(headers) = raw.headers_file.as_ref().filter(|_| !is_private(endpoint)) {
        report.problem(
            &headers.place,
            "what is in it would be sent so that everybody on the way can read it; \
             write https:// in endpoint, or name a collector on this host (127.0.0.1, ::1, localhost)",
        );
    }
    Some(Traces {
        endpoint: endpoint.to_owned(),
        ca: (raw.ca.as_ref()).map(|at| file(at, "/etc/edge/collector-ca.pem", report)),
        headers_file: (raw.headers_file.as_ref())
            .map(|at| file(at, "/etc/edge/collector-headers", report)),
        sample_permille,
        service_name: service_name.unwrap_or_else(|| Traces::SERVICE_NAME.to_owned()),
    })
}

/// Whether what is sent to a collector is read by nobody else: by TLS, or on this host.
fn is_private(endpoint: &str) -> bool {
    let Some(rest) = endpoint.strip_prefix("http://") else {
        return true;
    };
    let host = rest.split('/').next().unwrap_or_default();
    let host = host.rsplit_once(':').map_or(host, |(host, _)| host);
    let host = host.trim_start_matches('[').trim_end_matches(']');
    let address = host.parse::<IpAddr>();
    host == "localhost" || address.is_ok_and(|address| address.is_loopback())
}

/// Whether a text is `http://host:port` or `https://host:port`, perhaps with a path (RFC 3986,
/// section 3.3).
fn is_endpoint(text: &str) -> bool {
    let Some(("http" | "https", rest)) = text.split_once("://") else {
        return false;
    };
    let (authority, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
    let is_path = path
        .bytes()
        .all(|b| b.is_ascii_graphic() && !b"?#\"<>\\^`{|}".contains(&b));
    let is_address = match authority.parse::<SocketAddr>() {
        Ok(address) => address.port() != 0,
        Err(_) => authority.rsplit_once(':').is_some_and(|(host, port)| {
            is_host(host) && port.parse::<u16>().is_ok_and(|port| port != 0)
        }),
    };
    is_path && is_address && text.len() <= MAX_PATH
}

fn access_log(raw: &raw::proxy::AccessLog, report: &mut Report<'_>) -> Option<AccessLog> {
    let path = required(raw.path.as_ref(), &raw.place, "path", LOG_REMEDY, report)?;
    Some(AccessLog {
        path: file(path, "/var/log/edge/access.log", report),
        format: raw.format.unwrap_or_default(),
    })
}

const LOG_REMEDY: &str = "name the file, such as path = \"/var/log/edge/access.log\"";

/// A key that a section cannot do without.
fn required<'a, T>(
    at: Option<&'a At<T>>,
    section: &Place,
    key: &str,
    remedy: &str,
    report: &mut Report<'_>,
) -> Option<&'a At<T>> {
    if at.is_none() {
        missing(section, key, remedy, report);
    }
    at
}

fn missing(section: &Place, key: &str, remedy: &str, report: &mut Report<'_>) {
    let place = section.child(key);
    if !report.has_problem_at(&place.key) {
        report.problem_without_value(&place, format_args!("missing; {remedy}"));
    }
}

/// The name of a listener, upstream or route, which no other has; `None` after a problem has been
/// reported. `names` gets its index.
fn name(
    at: Option<&At<String>>,
    section: &Place,
    (what, index): (&str, usize),
    names: &mut BTreeMap<String, usize>,
    report: &mut Report<'_>,
) -> Option<String> {
    let remedy = "give it a name, such as name = \"web\"";
    let At { value, place } = required(at, section, "name", remedy, report)?;
    if !is_name(value) {
        report.problem(place, NAME_REMEDY);
        return None;
    }
    if names.contains_key(value) {
        report.problem(
            place,
            format_args!("the name of another {what}; give each one of its own"),
        );
        return None;
    }
    names.insert(value.clone(), index);
    Some(value.clone())
}

/// Whether a list is no longer than it may be.
fn is_within(list: &[Place], most: usize, what: &str, report: &mut Report<'_>) -> bool {
    let Some(first) = list.get(most) else {
        return true;
    };
    report.problem_without_value(first, format_args!("more than {most} {what}; remove some"));
    false
}

/// A file by its absolute path.
fn file(at: &At<String>, example: &str, report: &mut Report<'_>) -> PathBuf {
    super::path(Some(at), example, MAX_PATH, report)
}

/// A number of bytes between bounds, both included.
fn bytes(
    at: Option<&At<Bytes>>,
    default: u64,
    (min, max): (u64, u64),
    report: &mut Report<'_>,
) -> u64 {
    let Some(At { value, place }) = at else {
        return default;
    };
    if (min..=max).contains(&value.0) {
        return value.0;
    }
    report.problem(
        place,
        format_args!(
            "out of range; choose a number of bytes from {min} to {max} (default {default})"
        ),
    );
    default
}

/// A share in thousandths that is not below another one.
fn share(at: Option<&At<Share>>, default: u32, min: u32, report: &mut Report<'_>) -> u32 {
    let Some(At { value, place }) = at else {
        return default;
    };
    if value.0 < min {
        report.problem(
            place,
            format_args!(
                "out of range; choose a share from {} to 1 (default {})",
                Share::spelt(min),
                Share::spelt(default)
            ),
        );
        return default;
    }
    value.0
}

/// Whether a text is a token (RFC 9110, 5.6.2): a method, the name of a header or of a cookie.
fn is_token(text: &str) -> bool {
    let is_allowed = |b: u8| b.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&b);
    (1..=MAX_TOKEN).contains(&text.len()) && text.bytes().all(is_allowed)
}

/// The longest token, bytes.
const MAX_TOKEN: usize = 256;
