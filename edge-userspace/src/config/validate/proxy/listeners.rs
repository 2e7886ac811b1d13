//! Listeners.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, SocketAddr},
    path::PathBuf,
    time::Duration,
};

use super::{bytes, file, is_within, missing, name, required};
use crate::config::{
    proxy::{
        Listener, MAX_LISTENERS,
        listener::{
            Certificate, ClientAuth, ClientHeader, Limits, MAX_ADDRESSES, MAX_CERTIFICATES,
            ProxyProtocol, Tls,
        },
    },
    quantity::ByteRate,
    raw::proxy as raw,
    report::{At, Place, Report},
    validate::{is_vast, number, span},
};

/// How long clients may take for something.
const TIMEOUT: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(24 * 3600));
/// Bytes of a head.
const HEADER_BYTES: (u64, u64) = (1024, 32 << 10);
/// The shortest limit of a request target, bytes.
const MIN_URI_BYTES: u64 = 64;
/// The largest limit of a body, bytes.
const MAX_BODY_BYTES: u64 = 1 << 50;
/// The largest slowest rate, bytes a second.
const MAX_MIN_RATE: u64 = 1 << 30;
/// The most connections.
const MAX_CONNECTIONS: u32 = 10_000_000;

pub(super) fn listeners(
    list: &[raw::Listener],
    metrics: Option<SocketAddr>,
    report: &mut Report<'_>,
) -> Vec<Listener> {
    let places: Vec<Place> = list.iter().map(|l| l.place.clone()).collect();
    if !is_within(&places, MAX_LISTENERS, "listeners", report) {
        return Vec::new();
    }
    let mut taken = Taken::default();
    if let Some(address) = metrics {
        taken
            .by
            .entry(Taken::group(address))
            .or_default()
            .insert(address.ip(), "metrics.listen".to_owned());
    }
    let mut names = BTreeMap::new();
    let listeners = list.iter().enumerate().map(|(i, raw)| {
        let name = name(raw.name.as_ref(), &raw.place, ("listener", i), &mut names, report);
        let tls = raw.tls.as_ref().map(|tls| tls_of(tls, report));
        let redirect_https = raw.redirect_https.as_ref().is_some_and(|r| r.value);
        if let (true, Some(at), Some(_)) = (redirect_https, &raw.redirect_https, &raw.tls) {
            report.problem(
                &at.place,
                "this listener speaks TLS, and would send clients back to itself; remove tls or this key",
            );
        }
        Listener {
            addresses: addresses(raw, &mut taken, report),
            http2: raw.http2.unwrap_or(tls.is_some()),
            tls,
            proxy_protocol: raw.proxy_protocol.as_ref().map_or(ProxyProtocol::Off, |p| p.value),
            trusted_proxies: trusted(raw, report),
            client_header: raw.client_header.as_ref().map_or_else(ClientHeader::default, |c| c.value),
            redirect_https,
            half_close: raw.half_close.unwrap_or(false),
            limits: limits(raw.limits.as_ref(), report),
            // The model counts only when nothing was reported.
            name: name.unwrap_or_default(),
        }
    });
    listeners.collect()
}

/// Who has which addresses.
#[derive(Default)]
struct Taken {
    by: BTreeMap<(bool, u16), BTreeMap<IpAddr, String>>,
}

impl Taken {
    /// Only addresses of one family and port can overlap: IPv6 sockets take no IPv4.
    fn group(address: SocketAddr) -> (bool, u16) {
        (address.is_ipv6(), address.port())
    }

    /// Takes an address, or says who has it, or one that it overlaps with.
    fn take(&mut self, address: SocketAddr, by: &str) -> Result<(), String> {
        let group = self.by.entry(Self::group(address)).or_default();
        let ip = address.ip();
        if let Some(other) = group.get(&ip) {
            return Err(format!(
                "{other} has this address already; remove one of them"
            ));
        }
        let other = match ip.is_unspecified() {
            true => group.iter().next(),
            false => group.iter().find(|(ip, _)| ip.is_unspecified()),
        };
        if let Some((ip, other)) = other {
            let port = address.port();
            return Err(format!(
                "overlaps with {} of {other}; name single addresses in both, or leave one of them out",
                SocketAddr::new(*ip, port)
            ));
        }
        group.insert(ip, by.to_owned());
        Ok(())
    }
}

fn addresses(raw: &raw::Listener, taken: &mut Taken, report: &mut Report<'_>) -> Vec<SocketAddr> {
    const REMEDY: &str =
        "say where clients connect, such as addresses = [\"0.0.0.0:80\", \"[::]:80\"]";
    let Some(At { value: list, place }) = required(
        raw.addresses.as_ref(),
        &raw.place,
        "addresses",
        REMEDY,
        report,
    ) else {
        return Vec::new();
    };
    if list.is_empty() && !report.has_problem_at(&place.key) {
        report.problem_without_value(place, format_args!("no address; {REMEDY}"));
    }
    if list.len() > MAX_ADDRESSES {
        report.problem_without_value(
            place,
            format_args!("more than {MAX_ADDRESSES} addresses; spread them over several listeners"),
        );
        return Vec::new();
    }
    let who = match &raw.name {
        Some(name) => format!("listener \"{}\"", name.value),
        None => "another listener".to_owned(),
    };
    for At { value, place } in list {
        let ip = value.ip();
        let is_broadcast = matches!(ip, IpAddr::V4(a) if a.is_broadcast());
        if value.port() == 0 {
            report.problem(
                place,
                "port 0 stands for none; name the port that clients connect to",
            );
        } else if ip.is_multicast() || is_broadcast {
            report.problem(
                place,
                "no address of a host; name one that clients connect to",
            );
        } else if matches!(ip, IpAddr::V6(a) if a.to_ipv4_mapped().is_some()) {
            report.problem(place, "an IPv4-mapped IPv6 address; write it as plain IPv4");
        } else if let Err(why) = taken.take(*value, &who) {
            report.problem(place, why);
        }
    }
    list.iter().map(|at| at.value).collect()
}

fn trusted(raw: &raw::Listener, report: &mut Report<'_>) -> Vec<edge_common::addr::Prefix> {
    let list = raw.trusted_proxies.as_ref().map_or(&[][..], |at| &at.value);
    let mut all = BTreeSet::new();
    for At { value, place } in list {
        if !all.insert(*value) {
            report.warn(place, "named twice");
        } else if is_vast(*value) {
            report.warn(
                place,
                "a large part of the Internet, whose every host may say it were another; name the proxies",
            );
        }
    }
    if let Some(At { value, place }) = &raw.proxy_protocol
        && *value != ProxyProtocol::Off
        && all.is_empty()
        && !report.has_problem_at(&raw.place.child("trusted_proxies").key)
    {
        report.problem(
            place,
            "nobody's word is taken for it; name those who send it in trusted_proxies",
        );
    }
    if let Some(At { place, .. }) = &raw.client_header
        && all.is_empty()
        && !report.has_problem_at(&raw.place.child("trusted_proxies").key)
    {
        report.problem(
            place,
            "without effect, for nobody's word is taken; name those who send it in trusted_proxies, or remove this key",
        );
    }
    all.into_iter().collect()
}

fn tls_of(raw: &raw::ListenerTls, report: &mut Report<'_>) -> Tls {
    const REMEDY: &str = "name one, such as certificates = [{ cert = \"/etc/edge/site.pem\", key = \"/etc/edge/site.key\" }]";
    let list = match &raw.certificates {
        Some(At { value, place }) => {
            if value.is_empty() && !report.has_problem_at(&place.key) {
                report.problem_without_value(place, format_args!("no certificate; {REMEDY}"));
            }
            if value.len() > MAX_CERTIFICATES {
                report.problem_without_value(
                    place,
                    format_args!("more than {MAX_CERTIFICATES} certificates; spread them over several listeners"),
                );
            }
            &value[..value.len().min(MAX_CERTIFICATES)]
        }
        None => {
            missing(&raw.place, "certificates", REMEDY, report);
            &[]
        }
    };
    let client_auth = raw
        .client_auth
        .as_ref()
        .map_or(ClientAuth::Off, |a| a.value);
    match (&raw.client_auth, &raw.client_ca) {
        (Some(At { value, place }), None)
            if *value != ClientAuth::Off
                && !report.has_problem_at(&raw.place.child("client_ca").key) =>
        {
            report.problem(
                place,
                "nobody is there who signs clients' certificates; name their certificates in client_ca",
            );
        }
        (_, Some(At { place, .. })) if client_auth == ClientAuth::Off => report.problem(
            place,
            "without effect, for clients are not asked; set client_auth to \"optional\" or \"required\", or remove this key",
        ),
        _ => {}
    }
    Tls {
        certificates: list.iter().filter_map(|c| certificate(c, report)).collect(),
        min_version: raw.min_version.unwrap_or_default(),
        client_ca: ca(raw.client_ca.as_ref(), report),
        client_auth,
        tickets: raw.tickets.unwrap_or(true),
    }
}

fn certificate(raw: &raw::Certificate, report: &mut Report<'_>) -> Option<Certificate> {
    let cert = required(
        raw.cert.as_ref(),
        &raw.place,
        "cert",
        "name the file of the chain, that of the server first",
        report,
    );
    let key = required(
        raw.key.as_ref(),
        &raw.place,
        "key",
        "name the file of the private key",
        report,
    );
    let cert = file(cert?, "/etc/edge/site.pem", report);
    Some(Certificate {
        cert,
        key: file(key?, "/etc/edge/site.key", report),
    })
}

/// A file of those who sign certificates.
pub(super) fn ca(at: Option<&At<String>>, report: &mut Report<'_>) -> Option<PathBuf> {
    at.map(|at| file(at, "/etc/edge/ca.pem", report))
}

fn limits(raw: Option<&raw::ListenerLimits>, report: &mut Report<'_>) -> Limits {
    let default = Limits::default();
    let Some(raw) = raw else {
        return default;
    };
    let small = |n: u64| u32::try_from(n).unwrap_or(u32::MAX);
    let header_bytes = bytes(
        raw.header_bytes.as_ref(),
        default.header_bytes.into(),
        HEADER_BYTES,
        report,
    );
    // What fits into a head, unless it is said.
    let uri_default = u64::from(default.uri_bytes).min(header_bytes);
    let uri_bytes = bytes(
        raw.uri_bytes.as_ref(),
        uri_default,
        (MIN_URI_BYTES, header_bytes),
        report,
    );
    let min_rate = match &raw.min_rate {
        Some(At {
            value: ByteRate(rate),
            place,
        }) if *rate > MAX_MIN_RATE => {
            report.problem(
                place,
                format_args!("out of range; choose a number from 0 to {MAX_MIN_RATE} (default 0)"),
            );
            0
        }
        at => at.as_ref().map_or(default.min_rate, |at| at.value.0),
    };
    let mut time = |at: &Option<At<Duration>>, default| span(at.as_ref(), default, TIMEOUT, report);
    let (header_timeout, idle_timeout, body_timeout) = (
        time(&raw.header_timeout, default.header_timeout),
        time(&raw.idle_timeout, default.idle_timeout),
        time(&raw.body_timeout, default.body_timeout),
    );
    let mut count = |at, default, min, max| number(at, default, min, max, report);
    Limits {
        header_timeout,
        idle_timeout,
        body_timeout,
        header_bytes: small(header_bytes),
        headers: count(raw.headers.as_ref(), default.headers, 1, 1000),
        uri_bytes: small(uri_bytes),
        min_rate,
        connections: count(
            raw.connections.as_ref(),
            default.connections,
            1,
            MAX_CONNECTIONS,
        ),
        connections_per_source: count(
            raw.connections_per_source.as_ref(),
            default.connections_per_source,
            0,
            MAX_CONNECTIONS,
        ),
        requests_per_connection: count(
            raw.requests_per_connection.as_ref(),
            default.requests_per_connection,
            0,
            u32::MAX,
        ),
        h2_streams: count(raw.h2_streams.as_ref(), default.h2_streams, 1, 10_000),
        h2_resets_per_second: count(
            raw.h2_resets_per_second.as_ref(),
            default.h2_resets_per_second,
            1,
            100_000,
        ),
        body_bytes: bytes(
            raw.body_bytes.as_ref(),
            default.body_bytes,
            (0, MAX_BODY_BYTES),
            report,
        ),
    }
}
