//! The L7 proxy in words and numbers.

use std::{fmt, time::Duration};

use serde::{Deserialize, Serialize};

use crate::config::{
    proxy::{
        Listener, Proxy, Route, Upstream,
        route::{Action, Host, PathMatch},
        upstream::Passive,
    },
    quantity::{Share, spelt},
};

/// The proxy of a configuration.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ProxyDescription {
    /// Threads; none: one for each CPU.
    pub workers: Option<u32>,
    /// File of the access log; none: off.
    pub access_log: Option<String>,
    /// Who is told of requests; none: nobody.
    pub traces: Option<String>,
    /// Listeners in the order of the file.
    pub listeners: Vec<ListenerDescription>,
    /// Upstreams likewise.
    pub upstreams: Vec<UpstreamDescription>,
    /// Routes likewise.
    pub routes: Vec<RouteDescription>,
}

/// A listener.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ListenerDescription {
    /// Its name.
    pub listener: String,
    /// What is spoken: `http/1.1`, `h2`, `tls`.
    pub protocols: Vec<&'static str>,
    /// `off`, `accept` or `require`.
    pub proxy_protocol: &'static str,
    /// The field that trusted proxies name the client in; none without such proxies.
    pub client_header: Option<&'static str>,
    /// Connections at one time.
    pub connections: u32,
    /// Whether every request is redirected to HTTPS.
    pub redirect_https: bool,
    /// Where clients connect.
    pub addresses: Vec<String>,
}

/// An upstream.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct UpstreamDescription {
    /// Its name.
    pub upstream: String,
    /// `http1` or `http2`.
    pub protocol: &'static str,
    /// Whether over TLS.
    pub tls: bool,
    /// Who of the servers answers.
    pub balance: &'static str,
    /// Servers, backups among them.
    pub servers: usize,
    /// Backups.
    pub backups: usize,
    /// What its health check asks; none without one.
    pub health: Option<&'static str>,
    /// After what a server is left alone because of its answers; none: it never is.
    pub left_alone: Option<String>,
    /// How often a request is tried at most.
    pub tries: u32,
    /// How long a request may take, milliseconds.
    pub request_ms: u64,
}

/// A route.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RouteDescription {
    /// Its name.
    pub route: String,
    /// Its listeners.
    pub listeners: Vec<String>,
    /// Its hosts; none: any.
    pub hosts: Vec<String>,
    /// Its path.
    pub path: String,
    /// How many conditions there are besides.
    pub conditions: usize,
    /// What becomes of a request.
    pub action: String,
}

impl ProxyDescription {
    /// Of a configuration with listeners.
    pub(super) fn of(proxy: &Proxy) -> Option<Self> {
        let routes = proxy.routes.iter();
        (!proxy.listeners.is_empty()).then(|| Self {
            workers: proxy.workers,
            access_log: (proxy.access_log.as_ref())
                .map(|log| format!("{} ({})", log.path.display(), log.format.name())),
            traces: proxy.traces.as_ref().map(|traces| {
                let share = Share::spelt(traces.sample_permille);
                let headers = traces.headers_file.as_ref().map(|path| path.display());
                let headers = headers.map(|path| format!(" with the headers of {path}"));
                format!(
                    "{share} of the requests to {} as {}{}",
                    traces.endpoint,
                    traces.service_name,
                    headers.unwrap_or_default()
                )
            }),
            listeners: proxy.listeners.iter().map(listener).collect(),
            upstreams: proxy.upstreams.iter().map(upstream).collect(),
            routes: routes.map(|r| RouteDescription::of(r, proxy)).collect(),
        })
    }
}

fn listener(listener: &Listener) -> ListenerDescription {
    let plain = [
        Some("http/1.1"),
        listener.http2.then_some("h2"),
        listener.tls.as_ref().map(|_| "tls"),
    ];
    ListenerDescription {
        listener: listener.name.clone(),
        protocols: plain.into_iter().flatten().collect(),
        proxy_protocol: listener.proxy_protocol.name(),
        client_header: (!listener.trusted_proxies.is_empty())
            .then(|| listener.client_header.name()),
        connections: listener.limits.connections,
        redirect_https: listener.redirect_https,
        addresses: listener.addresses.iter().map(ToString::to_string).collect(),
    }
}

fn upstream(upstream: &Upstream) -> UpstreamDescription {
    let servers = upstream.servers.iter();
    UpstreamDescription {
        upstream: upstream.name.clone(),
        protocol: upstream.protocol.name(),
        tls: upstream.tls.is_some(),
        balance: upstream.balance.name(),
        servers: upstream.servers.len(),
        backups: servers.filter(|s| s.backup).count(),
        health: upstream.health.as_ref().map(|h| h.probe.name()),
        left_alone: upstream.passive.as_ref().map(left_alone),
        tries: upstream.retries.tries,
        request_ms: u64::try_from(upstream.timeouts.request.as_millis()).unwrap_or(u64::MAX),
    }
}

fn left_alone(passive: &Passive) -> String {
    let mut text = format!("{} errors", passive.consecutive_errors);
    if let Some(errors) = &passive.errors {
        let slow = errors
            .latency
            .map(|l| format!(" or slower than {}", spelt(l)));
        text += &format!(
            ", {} of {} failed{}",
            Share::spelt(errors.permille),
            errors.window,
            slow.unwrap_or_default()
        );
    }
    text
}

impl RouteDescription {
    /// Of a route of a configuration.
    pub fn of(route: &Route, proxy: &Proxy) -> Self {
        let listeners = route.listeners.iter();
        Self {
            route: route.name.clone(),
            listeners: listeners
                .map(|&i| proxy.listeners[i].name.clone())
                .collect(),
            hosts: (route.hosts.iter())
                .map(|host| match host {
                    Host::Exact(name) => name.clone(),
                    Host::Below(end) => format!("*{end}"),
                })
                .collect(),
            path: match &route.path {
                PathMatch::Any => "any".to_owned(),
                PathMatch::Exact(path) => format!("= {path}"),
                PathMatch::Prefix(path) => path.clone(),
                PathMatch::Regex(pattern) => format!("~ {}", pattern.as_str()),
            },
            conditions: route.conditions(),
            action: match &route.action {
                Action::Forward(split) => {
                    let whole: u64 = split.iter().map(|s| u64::from(s.1)).sum();
                    let name = |i: usize| proxy.upstreams[i].name.as_str();
                    let parts = split.iter().map(|&(i, weight)| match split.len() {
                        1 => name(i).to_owned(),
                        _ => format!("{} {weight}/{whole}", name(i)),
                    });
                    let mirror = route.mirror.map(|mirror| {
                        let share = Share::spelt(mirror.permille);
                        format!("copies of {share} to {}", name(mirror.upstream))
                    });
                    parts.chain(mirror).collect::<Vec<_>>().join(", ")
                }
                Action::Redirect { status, .. } => format!("redirect {status}"),
                Action::Respond { status, .. } => format!("respond {status}"),
            },
        }
    }
}

/// Names one after the other, or a word for none.
fn list(names: &[String], none: &str) -> String {
    if names.is_empty() {
        none.to_owned()
    } else {
        names.join(",")
    }
}

impl fmt::Display for ProxyDescription {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let workers = self.workers.map(|n| n.to_string());
        writeln!(
            f,
            "workers     {}",
            workers.as_deref().unwrap_or("one for each CPU")
        )?;
        writeln!(
            f,
            "access log  {}",
            self.access_log.as_deref().unwrap_or("off")
        )?;
        writeln!(f, "traces      {}", self.traces.as_deref().unwrap_or("off"))?;
        writeln!(
            f,
            "\nlistener         speaks            proxy protocol   connections   addresses"
        )?;
        for l in &self.listeners {
            let client = l.client_header.map(|name| format!(" (client by {name})"));
            let note = match l.redirect_https {
                true => " (redirects to https)",
                false => "",
            };
            writeln!(
                f,
                "{:16} {:17} {:14} {:>13}   {}{}{note}",
                l.listener,
                l.protocols.join(" "),
                l.proxy_protocol,
                l.connections,
                l.addresses.join(", "),
                client.unwrap_or_default()
            )?;
        }
        if !self.upstreams.is_empty() {
            writeln!(
                f,
                "\nupstream         speaks      balance                servers   backups   health   tries   request   left alone after"
            )?;
        }
        for u in &self.upstreams {
            let speaks = match u.tls {
                true => format!("{} tls", u.protocol),
                false => u.protocol.to_owned(),
            };
            writeln!(
                f,
                "{:16} {speaks:11} {:20} {:>9} {:>9}   {:6} {:>7} {:>9}   {}",
                u.upstream,
                u.balance,
                u.servers,
                u.backups,
                u.health.unwrap_or("-"),
                u.tries,
                spelt(Duration::from_millis(u.request_ms)),
                u.left_alone.as_deref().unwrap_or("-")
            )?;
        }
        write!(
            f,
            "\nroute            listeners        hosts                path                 conditions   leads to"
        )?;
        for r in &self.routes {
            write!(
                f,
                "\n{:16} {:16} {:20} {:20} {:>10}   {}",
                r.route,
                list(&r.listeners, "-"),
                list(&r.hosts, "any"),
                r.path,
                r.conditions,
                r.action
            )?;
        }
        Ok(())
    }
}
