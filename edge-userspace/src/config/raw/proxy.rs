//! What the L7 proxy has in the file.

use std::{net::SocketAddr, time::Duration};

use edge_common::addr::Prefix;

use super::{
    ProbeKind,
    balance::{HealthCheck, Port, StatusRange},
};
use crate::config::{
    proxy::{
        LogFormat,
        listener::{ClientAuth, ClientHeader, ProxyProtocol, TlsVersion},
        upstream::{self, SendProxy},
    },
    quantity::{ByteRate, Bytes, Count, Share},
    reader::{FromToml, MAX_ELEMENTS, Node, choice, join, place, section, wrong_type},
    report::{At, Report},
};

section! {
    /// `[proxy]`
    Proxy {
        workers = "workers": At<Count>,
        drain_timeout = "drain_timeout": At<Duration>,
        access_log = "access_log": AccessLog,
        bans = "bans": Bans,
        traces = "traces": Traces,
    }
}

section! {
    /// `proxy.bans`
    Bans {
        offences = "offences": At<Count>,
        window = "window": At<Duration>,
        ttl = "ttl": At<Duration>,
    }
}

section! {
    /// `proxy.traces`
    Traces {
        endpoint = "endpoint": At<String>,
        ca = "ca": At<String>,
        headers_file = "headers_file": At<String>,
        sample = "sample": At<Share>,
        service_name = "service_name": At<String>,
    }
}

section! {
    /// `proxy.access_log`
    AccessLog {
        path = "path": At<String>,
        format = "format": LogFormat,
    }
}

section! {
    /// `[[listener]]`
    Listener {
        name = "name": At<String>,
        addresses = "addresses": At<Vec<At<SocketAddr>>>,
        tls = "tls": ListenerTls,
        http2 = "http2": bool,
        proxy_protocol = "proxy_protocol": At<ProxyProtocol>,
        trusted_proxies = "trusted_proxies": At<Vec<At<Prefix>>>,
        client_header = "client_header": At<ClientHeader>,
        redirect_https = "redirect_https": At<bool>,
        half_close = "half_close": bool,
        limits = "limits": ListenerLimits,
    }
}

section! {
    /// `listener.tls`
    ListenerTls {
        certificates = "certificates": At<Vec<Certificate>>,
        min_version = "min_version": TlsVersion,
        client_ca = "client_ca": At<String>,
        client_auth = "client_auth": At<ClientAuth>,
        tickets = "tickets": bool,
    }
}

section! {
    /// `listener.tls.certificates`
    Certificate {
        cert = "cert": At<String>,
        key = "key": At<String>,
    }
}

section! {
    /// `listener.limits`
    ListenerLimits {
        header_timeout = "header_timeout": At<Duration>,
        idle_timeout = "idle_timeout": At<Duration>,
        body_timeout = "body_timeout": At<Duration>,
        header_bytes = "header_bytes": At<Bytes>,
        headers = "headers": At<Count>,
        uri_bytes = "uri_bytes": At<Bytes>,
        body_bytes = "body_bytes": At<Bytes>,
        min_rate = "min_rate": At<ByteRate>,
        connections = "connections": At<Count>,
        connections_per_source = "connections_per_source": At<Count>,
        requests_per_connection = "requests_per_connection": At<Count>,
        h2_streams = "h2_streams": At<Count>,
        h2_resets_per_second = "h2_resets_per_second": At<Count>,
    }
}

section! {
    /// `[[upstream]]`
    Upstream {
        name = "name": At<String>,
        balance = "balance": At<BalanceName>,
        hash = "hash": HashKey,
        sticky = "sticky": Sticky,
        protocol = "protocol": upstream::Protocol,
        tls = "tls": UpstreamTls,
        keep_alive = "keep_alive": KeepAlive,
        health = "health": Health,
        passive = "passive": Passive,
        panic_threshold = "panic_threshold": At<Share>,
        concurrency = "concurrency": Concurrency,
        breaker = "breaker": Breaker,
        retries = "retries": Retries,
        timeouts = "timeouts": Timeouts,
        proxy_protocol = "proxy_protocol": SendProxy,
        slow_start = "slow_start": At<Duration>,
        servers = "server": Vec<Server>,
    }
}

section! {
    /// `upstream.hash`
    HashKey {
        header = "header": At<String>,
        cookie = "cookie": At<String>,
        query = "query": At<String>,
    }
}

section! {
    /// `upstream.sticky`
    Sticky {
        cookie = "cookie": At<String>,
        ttl = "ttl": At<Duration>,
    }
}

section! {
    /// `upstream.tls`
    UpstreamTls {
        ca = "ca": At<String>,
        verify = "verify": At<bool>,
        sni = "sni": At<String>,
        cert = "cert": At<String>,
        key = "key": At<String>,
    }
}

section! {
    /// `upstream.keep_alive`
    KeepAlive {
        connections = "connections": At<Count>,
        idle = "idle": At<Duration>,
    }
}

section! {
    /// `upstream.health`
    Health {
        kind = "kind": At<ProbeKind>,
        interval = "interval": At<Duration>,
        timeout = "timeout": At<Duration>,
        rise = "rise": At<Count>,
        fall = "fall": At<Count>,
        jitter = "jitter": At<Count>,
        port = "port": At<Port>,
        path = "path": At<String>,
        host = "host": At<String>,
        status = "status": At<StatusRange>,
        body = "body": At<String>,
        service = "service": At<String>,
        command = "command": At<Vec<At<String>>>,
    }
}

impl Health {
    /// The same as the section of a balanced service.
    pub(in crate::config) fn as_check(&self) -> HealthCheck {
        HealthCheck {
            place: self.place.clone(),
            kind: self.kind.clone(),
            interval: self.interval.clone(),
            timeout: self.timeout.clone(),
            rise: self.rise.clone(),
            fall: self.fall.clone(),
            jitter: self.jitter.clone(),
            port: self.port.clone(),
            path: self.path.clone(),
            host: self.host.clone(),
            status: self.status.clone(),
            body: self.body.clone(),
            service: self.service.clone(),
            command: self.command.clone(),
            ..HealthCheck::default()
        }
    }
}

section! {
    /// `upstream.passive`
    Passive {
        consecutive_errors = "consecutive_errors": At<Count>,
        error_rate = "error_rate": At<Share>,
        window = "window": At<Count>,
        latency = "latency": At<Duration>,
        eject = "eject": At<Duration>,
        max_ejected = "max_ejected": At<Share>,
    }
}

section! {
    /// `upstream.concurrency` and `route.concurrency`
    Concurrency {
        requests = "requests": At<Count>,
        queue = "queue": At<Count>,
        queue_timeout = "queue_timeout": At<Duration>,
    }
}

section! {
    /// `upstream.breaker`
    Breaker {
        failure_rate = "failure_rate": At<Share>,
        window = "window": At<Count>,
        open = "open": At<Duration>,
        probes = "probes": At<Count>,
    }
}

section! {
    /// `upstream.retries`
    Retries {
        tries = "tries": At<Count>,
        base = "base": At<Duration>,
        budget = "budget": At<Share>,
        non_idempotent = "non_idempotent": bool,
    }
}

section! {
    /// `upstream.timeouts` and `route.timeouts`
    Timeouts {
        connect = "connect": At<Duration>,
        first_byte = "first_byte": At<Duration>,
        between_bytes = "between_bytes": At<Duration>,
        request = "request": At<Duration>,
    }
}

section! {
    /// `[[upstream.server]]`
    Server {
        address = "address": At<String>,
        weight = "weight": At<Count>,
        backup = "backup": bool,
    }
}

section! {
    /// `[[route]]`
    Route {
        name = "name": At<String>,
        listeners = "listeners": At<Vec<At<String>>>,
        hosts = "hosts": At<Vec<At<String>>>,
        path = "path": PathMatch,
        methods = "methods": At<Vec<At<String>>>,
        headers = "headers": Vec<Condition>,
        query = "query": Vec<Condition>,
        upstream = "upstream": At<String>,
        split = "split": At<Vec<SplitPart>>,
        redirect = "redirect": Redirect,
        respond = "respond": Respond,
        mirror = "mirror": Mirror,
        rewrite = "rewrite": Rewrite,
        request_headers = "request_headers": HeaderRules,
        response_headers = "response_headers": HeaderRules,
        timeouts = "timeouts": Timeouts,
        retries = "retries": RouteRetries,
        concurrency = "concurrency": Concurrency,
    }
}

section! {
    /// `route.path`
    PathMatch {
        exact = "exact": At<String>,
        prefix = "prefix": At<String>,
        regex = "regex": At<String>,
    }
}

section! {
    /// `route.headers` and `route.query`
    Condition {
        name = "name": At<String>,
        value = "value": At<String>,
        prefix = "prefix": At<String>,
        regex = "regex": At<String>,
        present = "present": At<bool>,
    }
}

section! {
    /// `route.split`
    SplitPart {
        upstream = "upstream": At<String>,
        weight = "weight": At<Count>,
    }
}

section! {
    /// `route.redirect`
    Redirect {
        to = "to": At<String>,
        status = "status": At<Count>,
    }
}

section! {
    /// `route.respond`
    Respond {
        status = "status": At<Count>,
        body = "body": At<String>,
        headers = "headers": Fields,
    }
}

section! {
    /// `route.mirror`
    Mirror {
        upstream = "upstream": At<String>,
        fraction = "fraction": At<Share>,
    }
}

section! {
    /// `route.rewrite`
    Rewrite {
        prefix = "prefix": At<String>,
        regex = "regex": At<String>,
        to = "to": At<String>,
    }
}

section! {
    /// `route.request_headers` and `route.response_headers`
    HeaderRules {
        set = "set": Fields,
        add = "add": Fields,
        remove = "remove": Vec<At<String>>,
    }
}

section! {
    /// `route.retries`
    RouteRetries {
        tries = "tries": At<Count>,
        base = "base": At<Duration>,
        non_idempotent = "non_idempotent": bool,
    }
}

/// Header fields: names, which the file makes up, and values.
#[derive(Debug, Default)]
pub(in crate::config) struct Fields(pub(in crate::config) Vec<(String, At<String>)>);

impl FromToml for Fields {
    fn from_toml(node: &Node<'_>, key: &str, report: &mut Report<'_>) -> Option<Self> {
        let Some(table) = node.get_ref().as_table() else {
            wrong_type(
                node,
                key,
                "names with values, such as { x-name = \"value\" }",
                report,
            );
            return None;
        };
        if table.len() > MAX_ELEMENTS {
            report.problem_without_value(&place(node, key), "too many; remove some");
            return None;
        }
        let fields = table.iter().filter_map(|(name, node)| {
            let name = name.get_ref().as_ref();
            let value = At::from_toml(node, &join(key, name), report)?;
            Some((name.to_owned(), value))
        });
        Some(Self(fields.collect()))
    }
}

/// A word for [`upstream::Balance`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::config) struct BalanceName(pub(in crate::config) &'static str);

impl FromToml for BalanceName {
    fn from_toml(node: &Node<'_>, key: &str, report: &mut Report<'_>) -> Option<Self> {
        choice(node, key, report, &upstream::Balance::NAMES, |name| name).map(Self)
    }
}

macro_rules! choices {
    ($( $type:ty, )*) => { $(
        impl FromToml for $type {
            fn from_toml(node: &Node<'_>, key: &str, report: &mut Report<'_>) -> Option<Self> {
                choice(node, key, report, &Self::ALL, Self::name)
            }
        }
    )* };
}

choices! {
    LogFormat,
    TlsVersion,
    ClientAuth,
    ClientHeader,
    ProxyProtocol,
    upstream::Protocol,
    SendProxy,
}
