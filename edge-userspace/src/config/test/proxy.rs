//! The L7 proxy's part of the file.

mod refused;

use std::time::Duration;

use super::{model_of, problem, warnings};
use crate::config::{
    balance::Probe,
    describe,
    proxy::{
        LogFormat, Proxy,
        listener::{ClientAuth, Limits, ProxyProtocol, TlsVersion},
        route::{Action, Condition, Host, PathMatch, RetriesOverride, Rewrite, ValueMatch},
        upstream::{
            Address, Balance, Breaker, Concurrency, ErrorRate, HashKey, KeepAlive, Passive,
            Protocol, Retries, SendProxy, Timeouts,
        },
    },
};
use crate::tables::Geometry;

const LISTENER: &str = "[[listener]]\nname = 'web'\naddresses = ['192.0.2.10:80']\n";
const SERVER: &str = "[[upstream.server]]\naddress = '10.0.0.1:80'\n";
const OTHER: &str = "[[upstream.server]]\naddress = '10.0.0.2:80'\n";
const ROUTE: &str = "[[route]]\nname = 'r'\nupstream = 'app'\n";

fn upstream(keys: &str) -> String {
    format!("[[upstream]]\nname = 'app'\n{keys}\n{SERVER}")
}

/// A listener with keys.
fn listener(keys: &str) -> String {
    format!("{LISTENER}{keys}\n{}{ROUTE}", upstream(""))
}

/// An upstream with keys.
fn with_upstream(keys: &str) -> String {
    format!("{LISTENER}{}{ROUTE}", upstream(keys))
}

/// The servers of an upstream.
fn servers(servers: &str) -> String {
    format!("{LISTENER}[[upstream]]\nname = 'app'\n{servers}\n{ROUTE}")
}

/// A route that leads to an upstream, with keys.
fn route(keys: &str) -> String {
    format!("{LISTENER}{}{ROUTE}{keys}\n", upstream(""))
}

/// A route with nothing but keys.
fn bare(keys: &str) -> String {
    format!(
        "{LISTENER}{}{ROUTE}[[route]]\nname = 'x'\n{keys}\n",
        upstream("")
    )
}

fn proxy(text: &str) -> Proxy {
    model_of(text).proxy
}

#[test]
fn without_a_listener_there_is_no_proxy() {
    assert_eq!(proxy(""), Proxy::default());
    let model = model_of("");
    let geometry = Geometry::for_capacity(&model.capacity);
    assert_eq!(describe(&model, &geometry, 1).proxy, None);
}

#[test]
fn checks_speak_what_requests_speak_unless_they_ask_another_port() {
    // HTTP/2, and TLS.
    let speaks = |upstream: &str, health: &str| {
        let keys = format!("{upstream}\nhealth = {{ {health} }}");
        let proxy = proxy(&with_upstream(&keys));
        match proxy.upstreams[0].health.clone().unwrap().probe {
            Probe::Http(http) => (http.http2, http.tls),
            Probe::Grpc { tls, .. } => (true, tls),
            other => panic!("{other:?}"),
        }
    };
    let tls = "tls = { verify = false, sni = 'app.example' }";
    let both = format!("protocol = 'http2'\n{tls}");
    for (upstream, health, wanted) in [
        (&*both, "kind = 'https'", (true, true)),
        (&both, "kind = 'http'", (true, true)),
        (&both, "kind = 'http', port = 8080", (false, false)),
        (&both, "kind = 'https', port = 8443", (false, true)),
        (&both, "kind = 'grpc'", (true, true)),
        (&both, "kind = 'grpc', port = 8080", (true, false)),
        (tls, "kind = 'http'", (false, true)),
        (tls, "kind = 'http', port = 8080", (false, false)),
        ("", "kind = 'http'", (false, false)),
        ("", "kind = 'https'", (false, true)),
    ] {
        assert_eq!(speaks(upstream, health), wanted, "{upstream} {health}");
    }
}

#[test]
fn what_is_not_said_has_its_default() {
    let proxy = proxy(&route(""));
    let listener = &proxy.listeners[0];
    assert_eq!(listener.addresses, ["192.0.2.10:80".parse().unwrap()]);
    assert_eq!(listener.limits, Limits::default());
    assert!(!listener.http2 && listener.tls.is_none() && !listener.redirect_https);
    assert!(!listener.half_close);
    let upstream = &proxy.upstreams[0];
    assert_eq!(
        (
            &upstream.balance,
            upstream.protocol,
            upstream.proxy_protocol
        ),
        (&Balance::RoundRobin, Protocol::Http1, SendProxy::Off)
    );
    assert_eq!(upstream.timeouts, Timeouts::default());
    assert_eq!(upstream.retries, Retries::default());
    assert_eq!(upstream.keep_alive, KeepAlive::default());
    assert_eq!(
        (upstream.passive, upstream.breaker, upstream.concurrency),
        (None, None, None)
    );
    assert_eq!(
        (upstream.panic_permille, upstream.servers[0].weight),
        (500, 1)
    );
    let route = &proxy.routes[0];
    assert_eq!(
        (&route.path, route.listeners.as_slice()),
        (&PathMatch::Any, &[0][..])
    );
    assert_eq!(route.action, Action::Forward(vec![(0, 1)]));
}

#[test]
fn everything_is_taken_over() {
    let text = "[proxy]\nworkers = 2\ndrain_timeout = '1m'\naccess_log = { path = '/var/log/a', format = 'logfmt' }\n\
        [[listener]]\nname = 'web'\naddresses = ['192.0.2.10:443', '[2001:db8::10]:443']\nproxy_protocol = 'require'\n\
        trusted_proxies = ['10.0.0.0/8']\nclient_header = 'forwarded'\n\
        tls = { certificates = [{ cert = '/a.pem', key = '/a.key' }], min_version = '1.3', client_ca = '/ca.pem', client_auth = 'required', tickets = false }\n\
        limits = { header_timeout = '1s', header_bytes = '8KiB', body_bytes = '1MiB', min_rate = '1kB', h2_streams = 7 }\n\
        [[upstream]]\nname = 'app'\nbalance = 'consistent-hash'\nhash = { header = 'X-User' }\nsticky = { cookie = 'edge', ttl = '1h' }\n\
        protocol = 'http1'\ntls = { ca = '/ca.pem', sni = 'App.internal', cert = '/c.pem', key = '/c.key' }\n\
        keep_alive = { connections = 3, idle = '5s' }\nhealth = { kind = 'http', path = '/healthz' }\npassive = { max_ejected = 0.25, error_rate = 0.3, latency = '2s' }\n\
        panic_threshold = 0.333\nconcurrency = { requests = 5 }\nbreaker = { failure_rate = 0.75 }\nretries = { tries = 2, budget = 0, non_idempotent = true }\n\
        timeouts = { request = '10s', connect = '100ms' }\nslow_start = '5s'\n\
        [[upstream.server]]\naddress = 'App.internal.:8080'\nweight = 3\n[[upstream.server]]\naddress = 'unix:/run/a.sock'\nbackup = true\n[[upstream.server]]\naddress = '[2001:db8::1]:80'\n";
    // Unix sockets and checks do not go together.
    let text = text.replace(
        "[[upstream.server]]\naddress = 'unix:/run/a.sock'\nbackup = true\n",
        "",
    );
    let text = format!(
        "{text}[[upstream]]\nname = 'b'\n[[upstream.server]]\naddress = 'unix:/run/a.sock'\n\
        [[route]]\nname = 'r'\nlisteners = ['web']\nhosts = ['Example.com.', '*.example.com', '::1']\npath = {{ prefix = '/api/' }}\nmethods = ['PUT', 'GET']\n\
        headers = [{{ name = 'X-Beta', regex = '^1' }}]\nquery = [{{ name = 'v', present = true }}]\nsplit = [{{ upstream = 'b', weight = 5 }}, {{ upstream = 'app', weight = 0 }}]\n\
        rewrite = {{ prefix = '/' }}\nrequest_headers = {{ set = {{ X-A = '1', host = 'a:80' }}, remove = ['Cookie'] }}\nresponse_headers = {{ add = {{ x-b = '2' }} }}\n\
        timeouts = {{ between_bytes = '5s' }}\nretries = {{ tries = 1 }}\nconcurrency = {{ queue = 0 }}\n"
    );
    let proxy = proxy(&text);
    assert_eq!(proxy.workers, Some(2));
    assert_eq!(proxy.drain_timeout, Duration::from_mins(1));
    assert_eq!(proxy.access_log.unwrap().format, LogFormat::Logfmt);
    let listener = &proxy.listeners[0];
    let tls = listener.tls.as_ref().unwrap();
    assert!(listener.http2 && !tls.tickets);
    assert_eq!(
        (tls.min_version, tls.client_auth, listener.proxy_protocol),
        (
            TlsVersion::V13,
            ClientAuth::Required,
            ProxyProtocol::Require
        )
    );
    let limits = &listener.limits;
    assert_eq!(
        (limits.header_bytes, limits.uri_bytes, limits.body_bytes),
        (8192, 8192, 1 << 20)
    );
    assert_eq!((limits.min_rate, limits.h2_streams), (1000, 7));
    let app = &proxy.upstreams[0];
    assert_eq!(
        app.balance,
        Balance::ConsistentHash(HashKey::Header("x-user".to_owned()))
    );
    assert_eq!(
        app.tls.as_ref().unwrap().sni.as_deref(),
        Some("app.internal")
    );
    assert_eq!(app.health.as_ref().map(|h| h.probe.name()), Some("https"));
    assert_eq!(
        app.passive,
        Some(Passive {
            max_ejected_permille: 250,
            errors: Some(ErrorRate {
                permille: 300,
                window: 20,
                latency: Some(Duration::from_secs(2)),
            }),
            ..Passive::default()
        })
    );
    assert_eq!(
        app.breaker,
        Some(Breaker {
            failure_permille: 750,
            ..Breaker::default()
        })
    );
    assert_eq!(
        app.concurrency,
        Some(Concurrency {
            requests: 5,
            ..Concurrency::default()
        })
    );
    assert_eq!(
        (
            app.panic_permille,
            app.retries.tries,
            app.retries.budget_permille,
            app.retries.non_idempotent
        ),
        (333, 2, 0, true)
    );
    // What is not said is no longer than what holds around it.
    let timeouts = app.timeouts;
    assert_eq!(timeouts.first_byte, Duration::from_secs(10));
    assert_eq!(timeouts.between_bytes, Duration::from_secs(10));
    let addresses: Vec<String> = app.servers.iter().map(|s| s.address.to_string()).collect();
    assert_eq!(addresses, ["app.internal:8080", "[2001:db8::1]:80"]);
    assert_eq!(
        proxy.upstreams[1].servers[0].address,
        Address::Unix("/run/a.sock".into())
    );
    let route = &proxy.routes[0];
    let hosts = [
        Host::Exact("example.com".into()),
        Host::Below(".example.com".into()),
        Host::Exact("[::1]".into()),
    ];
    assert_eq!(route.hosts, hosts);
    assert_eq!(route.methods, ["GET", "PUT"]);
    assert!(
        matches!(&route.headers[..], [Condition { name, value: ValueMatch::Regex(_) }] if name == "x-beta")
    );
    assert_eq!(route.query[0].value, ValueMatch::Present);
    assert_eq!(route.action, Action::Forward(vec![(1, 5), (0, 0)]));
    assert_eq!(route.rewrite, Some(Rewrite::Prefix("/".to_owned())));
    assert_eq!(route.conditions(), 3);
    assert_eq!(route.request_headers.remove, ["cookie"]);
    assert_eq!(
        route.timeouts.over(app.timeouts).between_bytes,
        Duration::from_secs(5)
    );
    let retries = route.retries.over(app.retries);
    assert_eq!((retries.tries, retries.non_idempotent), (1, true));
    let without = RetriesOverride {
        non_idempotent: Some(false),
        ..route.retries
    };
    assert!(!without.over(app.retries).non_idempotent);
    assert_eq!(model_of(&text), model_of(&text));
    let described = {
        let model = model_of(&text);
        describe(&model, &Geometry::for_capacity(&model.capacity), 1).to_string()
    };
    for line in [
        "workers     2",
        "access log  /var/log/a (logfmt)",
        "traces      off",
        "web              http/1.1 h2 tls   require                10000   192.0.2.10:443, [2001:db8::10]:443 (client by forwarded)",
        "app              http1 tls   consistent-hash              2         0   https        2       10s   5 errors, 0.3 of 20 failed or slower than 2s",
        "r                web              example.com,*.example.com,[::1] /api/                         3   b 5/5, app 0/5",
    ] {
        assert!(described.contains(line), "{line} in\n{described}");
    }
}

#[test]
fn routes_that_differ_are_not_refused() {
    for (a, b) in [
        ("", "methods = ['GET']"),
        ("methods = ['GET']", ""),
        ("methods = ['GET']", "methods = ['GET', 'PUT']"),
        ("hosts = ['a']", "hosts = ['*.a']"),
        (
            "headers = [{ name = 'a', value = '1' }]",
            "query = [{ name = 'a', value = '1' }]",
        ),
        ("path = { prefix = '/' }", "path = { exact = '/' }"),
        (
            "path = { prefix = '/' }\nmethods = ['GET']",
            "path = { regex = '^/' }",
        ),
        (
            "path = { prefix = '/' }\nhosts = ['a']",
            "path = { regex = '^/' }",
        ),
    ] {
        let text = format!(
            "{LISTENER}{}{ROUTE}{a}\n{}{b}\n",
            upstream(""),
            ROUTE.replace("'r'", "'s'")
        );
        assert_eq!(warnings(&text), Vec::<String>::new(), "{a} and {b}");
    }
}

#[test]
fn what_is_there_for_nothing_is_warned_of() {
    for (text, want) in [
        (
            "[proxy]\nworkers = 1".to_owned(),
            "proxy: without effect, for there is no [[listener]]",
        ),
        (
            route("").replace(LISTENER, ""),
            "without effect, for there is no [[listener]]",
        ),
        (
            route("") + "[[upstream]]\nname = 'b'\n" + SERVER,
            "edge.toml:15: upstream[1]: no route leads to upstream \"b\"",
        ),
        (
            LISTENER.to_owned(),
            "listener[0]: no route takes its requests",
        ),
        (
            servers("[[upstream.server]]\naddress = 'a:80'\nweight = 2"),
            "upstream[0].balance: weights have no effect with \"round-robin\"",
        ),
        (
            with_upstream("passive = {}"),
            "edge.toml:8: upstream[0].passive: without effect, for the only server",
        ),
        (
            with_upstream("passive = { max_ejected = 0 }"),
            "upstream[0].passive.max_ejected: with 0 no server is ever left alone",
        ),
        (
            with_upstream(&format!(
                "timeouts = {{ first_byte = '2s' }}\npassive = {{ error_rate = 0.5, latency = '2s' }}\n{OTHER}"
            )),
            "upstream[0].passive.latency = '2s': no shorter than timeouts.first_byte (2s)",
        ),
        (
            with_upstream("tls = { verify = false }"),
            "whoever answers at the servers' addresses is believed",
        ),
        (
            listener("trusted_proxies = ['0.0.0.0/0']"),
            "whose every host may say it were another",
        ),
        (
            listener("trusted_proxies = ['10.0.0.0/8', '10.0.0.0/8']"),
            "named twice",
        ),
        (
            route("hosts = ['a', 'A']"),
            "route[0].hosts[1] = 'A': named twice",
        ),
        (
            route("hosts = ['a']")
                + "[[route]]\nname = 's'\nupstream = 'app'\nhosts = ['a', 'b']\n",
            "route[1]: for some of its hosts or listeners no request takes this route",
        ),
    ] {
        let got = warnings(&text);
        assert!(
            matches!(&got[..], [one] if one.contains(want)),
            "{want}: {got:?}"
        );
    }
}

#[test]
fn passive_that_can_take_a_server_out_is_not_warned_of() {
    for (passive, route) in [
        ("", ""),
        (
            "error_rate = 0.5, latency = '14s'",
            "timeouts = { first_byte = '1s' }\n",
        ),
        // The route gives more time.
        (
            "error_rate = 0.5, latency = '20s'",
            "timeouts = { first_byte = '30s' }\n",
        ),
    ] {
        let text = with_upstream(&format!("passive = {{ {passive} }}\n{OTHER}")) + route;
        assert_eq!(warnings(&text), Vec::<String>::new(), "{passive} {route}");
    }
    let alone = with_upstream("passive = { max_ejected = 1 }");
    assert_eq!(warnings(&alone), Vec::<String>::new());
}

#[test]
fn routes_and_their_checks_come_by_the_thousand() {
    let mut text = format!("{LISTENER}{}", upstream(""));
    for i in 0..5000 {
        text += &format!(
            "[[route]]\nname = 'r{i}'\nhosts = ['h{}.example.com']\npath = {{ prefix = '/{i}' }}\nupstream = 'app'\n",
            i % 100
        );
    }
    let model = model_of(&text);
    assert_eq!(model.proxy.routes.len(), 5000);
    let mut text = format!("{LISTENER}{}", upstream(""));
    for i in 0..1001 {
        text +=
            &format!("[[route]]\nname = 'r{i}'\npath = {{ regex = '^/{i}$' }}\nupstream = 'app'\n");
    }
    assert!(problem(&text).contains("route[1000].path: more than 1000 regular expressions"));
}

#[test]
fn conditions_on_protocols_know_no_case() {
    let text = route("headers = [{ name = 'Upgrade', value = 'WebSocket' }]");
    let condition = Condition {
        name: "upgrade".to_owned(),
        value: ValueMatch::Exact("websocket".to_owned()),
    };
    assert_eq!(proxy(&text).routes[0].headers, [condition]);
}

#[test]
fn redirections_lead_to_paths_and_hosts() {
    for to in [
        "{path}",
        "/{path}",
        "//b.example{path}",
        "https://{host}{path}",
        "http://b.example/",
        "https://www.{host}",
    ] {
        let text = bare(&format!("redirect = {{ to = '{to}' }}"));
        let text = text.replace(ROUTE, &format!("{ROUTE}path = {{ exact = '/a' }}\n"));
        assert_eq!(proxy(&text).routes.len(), 2, "{to}");
    }
}
