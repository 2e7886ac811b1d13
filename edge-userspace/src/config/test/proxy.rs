//! The L7 proxy's part of the file.

use std::time::Duration;

use super::{model_of, problem, warnings};
use crate::config::{
    describe,
    proxy::{
        LogFormat, Proxy,
        listener::{ClientAuth, Limits, ProxyProtocol, TlsVersion},
        route::{Action, Condition, Host, PathMatch, Rewrite, ValueMatch},
        upstream::{
            Address, Balance, Breaker, Concurrency, HashKey, KeepAlive, Passive, Protocol, Retries,
            SendProxy, Timeouts,
        },
    },
};
use crate::tables::Geometry;

const LISTENER: &str = "[[listener]]\nname = 'web'\naddresses = ['192.0.2.10:80']\n";
const SERVER: &str = "[[upstream.server]]\naddress = '10.0.0.1:80'\n";
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
fn what_is_not_said_has_its_default() {
    let proxy = proxy(&route(""));
    let listener = &proxy.listeners[0];
    assert_eq!(listener.addresses, ["192.0.2.10:80".parse().unwrap()]);
    assert_eq!(listener.limits, Limits::default());
    assert!(!listener.http2 && listener.tls.is_none() && !listener.redirect_https);
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
    let text = "[proxy]\nworkers = 2\naccess_log = { path = '/var/log/a', format = 'logfmt' }\n\
        [[listener]]\nname = 'web'\naddresses = ['192.0.2.10:443', '[2001:db8::10]:443']\nproxy_protocol = 'require'\n\
        trusted_proxies = ['10.0.0.0/8']\n\
        tls = { certificates = [{ cert = '/a.pem', key = '/a.key' }], min_version = '1.3', client_ca = '/ca.pem', client_auth = 'required', tickets = false }\n\
        limits = { header_timeout = '1s', header_bytes = '8KiB', body_bytes = '1MiB', min_rate = '1kB', h2_streams = 7 }\n\
        [[upstream]]\nname = 'app'\nbalance = 'consistent-hash'\nhash = { header = 'X-User' }\nsticky = { cookie = 'edge', ttl = '1h' }\n\
        protocol = 'http2'\ntls = { ca = '/ca.pem', sni = 'App.internal', cert = '/c.pem', key = '/c.key' }\n\
        keep_alive = { connections = 3, idle = '5s' }\nhealth = { kind = 'http', path = '/healthz' }\npassive = { max_ejected = 0.25 }\n\
        panic_threshold = 0.333\nconcurrency = { requests = 5 }\nbreaker = { failure_rate = 0.75 }\nretries = { tries = 2, budget = 0 }\n\
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
    assert_eq!(app.health.as_ref().map(|h| h.probe.name()), Some("http"));
    assert_eq!(
        app.passive,
        Some(Passive {
            max_ejected_permille: 250,
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
            app.retries.budget_permille
        ),
        (333, 2, 0)
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
    assert_eq!(route.retries.over(app.retries).tries, 1);
    assert_eq!(model_of(&text), model_of(&text));
    let described = {
        let model = model_of(&text);
        describe(&model, &Geometry::for_capacity(&model.capacity), 1).to_string()
    };
    for line in [
        "workers     2",
        "access log  /var/log/a (logfmt)",
        "web              http/1.1 h2 tls   require                10000   192.0.2.10:443, [2001:db8::10]:443",
        "app              http2 tls   consistent-hash              2         0   http         2       10s",
        "r                web              example.com,*.example.com,[::1] /api/                         3   b 5/5, app 0/5",
    ] {
        assert!(described.contains(line), "{line} in\n{described}");
    }
}

#[test]
fn listeners_that_cannot_be_are_refused() {
    let two = |a: &str, b: &str| {
        let second = LISTENER
            .replace("'web'", "'two'")
            .replace("192.0.2.10:80", b);
        format!(
            "{}{second}{}{ROUTE}",
            LISTENER.replace("192.0.2.10:80", a),
            upstream("")
        )
    };
    let tls = |keys: &str| {
        listener(&format!(
            "[listener.tls]\ncertificates = [{{ cert = '/a', key = '/b' }}]\n{keys}"
        ))
    };
    for (text, want) in [
        (
            "[[listener]]\naddresses = ['192.0.2.10:80']\n[[route]]\nname = 'r'\nrespond = {}"
                .to_owned(),
            "edge.toml:2: listener[0].name: missing; give it a name",
        ),
        (
            LISTENER.replace("web", "Web") + &upstream("") + ROUTE,
            "listener[0].name = 'Web': no name; write 1 to 63 of",
        ),
        (
            two("192.0.2.1:80", "192.0.2.2:80").replace("'two'", "'web'"),
            "listener[1].name = 'web': the name of another listener",
        ),
        (
            "[[listener]]\nname = 'web'\n[[route]]\nname = 'r'\nrespond = {}".to_owned(),
            "listener[0].addresses: missing; say where clients connect",
        ),
        (
            LISTENER.replace("'192.0.2.10:80'", "") + &upstream("") + ROUTE,
            "listener[0].addresses: no address",
        ),
        (
            LISTENER.replace(":80", "") + &upstream("") + ROUTE,
            "listener[0].addresses[0] = '192.0.2.10': no address with port",
        ),
        (
            LISTENER.replace(":80", ":0") + &upstream("") + ROUTE,
            "port 0 stands for none",
        ),
        (two("224.0.0.1:80", "192.0.2.2:80"), "no address of a host"),
        (two("[::ffff:192.0.2.1]:80", "192.0.2.2:80"), "IPv4-mapped"),
        (
            two("192.0.2.1:80", "192.0.2.1:80"),
            "edge.toml:7: listener[1].addresses[0] = '192.0.2.1:80': listener \"web\" has this address already",
        ),
        (
            two("192.0.2.1:80", "0.0.0.0:80"),
            "overlaps with 192.0.2.1:80 of listener \"web\"",
        ),
        (
            two("[::]:80", "[2001:db8::1]:80"),
            "overlaps with [::]:80 of listener \"web\"",
        ),
        (
            LISTENER.replace("'192", "'192.0.2.10:80', '192") + &upstream("") + ROUTE,
            "listener \"web\" has this address already",
        ),
        (
            "metrics.listen = '127.0.0.1:80'\n".to_owned() + &two("127.0.0.1:80", "192.0.2.1:80"),
            "metrics.listen has this address already",
        ),
        (
            listener("proxy_protocol = 'accept'"),
            "listener[0].proxy_protocol = 'accept': nobody's word is taken for it",
        ),
        (
            listener("proxy_protocol = 'v1'"),
            "no such choice; expected one of \"off\", \"accept\", \"require\"",
        ),
        (
            listener("trusted_proxies = ['10.0.0.1/8']"),
            "listener[0].trusted_proxies[0] = '10.0.0.1/8': bits are set",
        ),
        (listener("http3 = true"), "unknown key"),
        (
            listener("tls = {}"),
            "listener[0].tls.certificates: missing; name one",
        ),
        (
            listener("tls = { certificates = [] }"),
            "listener[0].tls.certificates: no certificate",
        ),
        (
            listener("tls = { certificates = [{ cert = '/a' }] }"),
            "listener[0].tls.certificates[0].key: missing",
        ),
        (
            listener("tls = { certificates = [{ cert = 'a', key = '/b' }] }"),
            "cert = 'a': no absolute path",
        ),
        (
            tls("min_version = '1.1'"),
            "no such choice; expected one of \"1.2\", \"1.3\"",
        ),
        (
            tls("client_auth = 'required'"),
            "listener[0].tls.client_auth = 'required': nobody is there who signs",
        ),
        (
            tls("client_ca = '/a'"),
            "listener[0].tls.client_ca = '/a': without effect",
        ),
        (
            listener(
                "redirect_https = true\ntls = { certificates = [{ cert = '/a', key = '/b' }] }",
            )
            .replace(ROUTE, "[[route]]\nname = 'r'\nupstream = 'app'\n"),
            "this listener speaks TLS",
        ),
        (
            listener("redirect_https = true"),
            "route[0]: no request takes this route, for its listeners redirect every request",
        ),
        (
            listener("limits = { header_timeout = '0s' }"),
            "choose a span from 100ms to 1d (default 10s)",
        ),
        (
            listener("limits = { header_bytes = 100 }"),
            "choose a number of bytes from 1024 to 1048576 (default 16384)",
        ),
        (
            listener("limits = { header_bytes = 2048, uri_bytes = 4096 }"),
            "listener[0].limits.uri_bytes = 4096: out of range; choose a number of bytes from 64 to 2048",
        ),
        (
            listener("limits = { headers = 0 }"),
            "choose a number from 1 to 1000 (default 100)",
        ),
        (
            listener("limits = { body_bytes = '10M' }"),
            "bytes or bits?",
        ),
        (
            listener("limits = { min_rate = '2GB' }"),
            "choose a number from 0 to 1073741824",
        ),
        (
            listener("limits = { h2_streams = 0 }"),
            "choose a number from 1 to 10000",
        ),
        (
            "proxy.workers = 0\n".to_owned() + &route(""),
            "proxy.workers = 0: out of range",
        ),
        (
            "proxy.access_log = {}\n".to_owned() + &route(""),
            "proxy.access_log.path: missing; name the file",
        ),
        (
            "proxy.access_log.path = 'a'\n".to_owned() + &route(""),
            "no absolute path",
        ),
    ] {
        let got = problem(&text);
        assert!(got.contains(want), "{want}: {got}");
    }
}

#[test]
fn upstreams_that_cannot_be_are_refused() {
    let server = |address: &str| servers(&format!("[[upstream.server]]\naddress = '{address}'"));
    for (text, want) in [
        (
            servers(""),
            "upstream[0].server: missing; an upstream needs a [[upstream.server]]",
        ),
        (
            servers("[[upstream.server]]\nweight = 1"),
            "upstream[0].server[0].address: missing",
        ),
        (
            server("10.0.0.1"),
            "edge.toml:8: upstream[0].server[0].address = '10.0.0.1': no address; write \"10.0.0.1:8080\"",
        ),
        (server("10.0.0.256:80"), "no address; write"),
        (server("app_internal:x"), "no address; write"),
        (server("app:99999"), "no address; write"),
        (server("-app:80"), "no address; write"),
        (server("app:0"), "port 0 stands for none"),
        (server("0.0.0.0:80"), "no address of a host"),
        (server("unix:app.sock"), "no absolute path"),
        (
            server(&format!("unix:/{}", "a".repeat(107))),
            "108 bytes long, at most 107",
        ),
        (
            servers(
                "[[upstream.server]]\naddress = 'a:80'\n[[upstream.server]]\naddress = 'A.:80'",
            ),
            "upstream[0].server[1].address = 'A.:80': the address of another server",
        ),
        (
            servers("[[upstream.server]]\naddress = 'a:80'\nbackup = true"),
            "no server that is no backup has a weight",
        ),
        (
            servers("[[upstream.server]]\naddress = 'a:80'\nweight = 0"),
            "no server that is no backup has a weight",
        ),
        (
            servers("[[upstream.server]]\naddress = 'a:80'\nweight = 1001"),
            "choose a number from 0 to 1000 (default 1)",
        ),
        (with_upstream("balance = 'random'"), "no such choice"),
        (
            with_upstream("balance = 'consistent-hash'"),
            "upstream[0].hash: missing; say what of a request is hashed",
        ),
        (
            with_upstream("hash = { header = 'a' }"),
            "only for balance = \"consistent-hash\", and it is \"round-robin\"",
        ),
        (
            with_upstream("balance = 'consistent-hash'\nhash = { header = 'a', query = 'b' }"),
            "name one of header, cookie and query",
        ),
        (
            with_upstream("balance = 'consistent-hash'\nhash = { header = 'a b' }"),
            "no name of a header",
        ),
        (
            with_upstream("sticky = { ttl = '1h' }"),
            "upstream[0].sticky.cookie: missing",
        ),
        (
            with_upstream("sticky = { cookie = 'a=b' }"),
            "no name of a cookie",
        ),
        (
            with_upstream("sticky = { cookie = 'a', ttl = '1s500ms' }"),
            "cookies hold for whole seconds",
        ),
        (
            with_upstream("tls = { cert = '/a' }"),
            "upstream[0].tls.key: missing; a certificate needs its key",
        ),
        (
            with_upstream("tls = { key = '/a' }"),
            "upstream[0].tls.cert: missing",
        ),
        (
            with_upstream("tls = { verify = false, ca = '/a' }"),
            "upstream[0].tls.ca = '/a': without effect",
        ),
        (with_upstream("tls = { sni = 'a b' }"), "no name of a host"),
        (
            servers("tls = {}\n[[upstream.server]]\naddress = 'unix:/a'"),
            "upstream[0].tls.sni: missing; a Unix socket has no name",
        ),
        (
            with_upstream("proxy_protocol = 'v2'\nprotocol = 'http2'"),
            "an HTTP/2 connection carries requests of many clients",
        ),
        (
            with_upstream("proxy_protocol = 'v2'\nkeep_alive = { connections = 1 }"),
            "upstream[0].keep_alive.connections = 1: with proxy_protocol a connection is that of one client",
        ),
        (
            with_upstream("health = {}"),
            "upstream[0].health.kind: missing",
        ),
        (
            with_upstream("health = { kind = 'udp' }"),
            "do not speak UDP",
        ),
        (
            with_upstream("health = { kind = 'tcp', path = '/' }"),
            "only for kind = \"http\" or \"https\"",
        ),
        (
            with_upstream("health = { kind = 'tcp', passive = true }"),
            "unknown key",
        ),
        (
            servers("health = { kind = 'tcp' }\n[[upstream.server]]\naddress = 'unix:/a'"),
            "a server of this upstream is a Unix socket",
        ),
        (
            with_upstream("panic_threshold = 50"),
            "no share; expected a share from 0 to 1",
        ),
        (
            with_upstream("panic_threshold = '0.5'"),
            "a string; expected a share from 0 to 1",
        ),
        (
            with_upstream("breaker = { failure_rate = 0.0 }"),
            "choose a share from 0.001 to 1 (default 0.5)",
        ),
        (
            with_upstream("breaker = { window = 0 }"),
            "choose a number from 1 to 10000 (default 10)",
        ),
        (
            with_upstream("passive = { error_rate = 0.5 }"),
            "unknown key",
        ),
        (
            with_upstream("retries = { tries = 0 }"),
            "choose a number from 1 to 10 (default 3)",
        ),
        (
            with_upstream("concurrency = { queue_timeout = '60s' }"),
            "not shorter than timeouts.request (1m)",
        ),
        (
            with_upstream("timeouts = { request = '1s', first_byte = '2s' }"),
            "edge.toml:7: upstream[0].timeouts.request: request (1s) is shorter than first_byte (2s), which could never run out; raise request or lower first_byte",
        ),
        (
            with_upstream("timeouts = { first_byte = '90s' }"),
            "upstream[0].timeouts.first_byte: request (1m) is shorter than first_byte (90s)",
        ),
        (
            with_upstream("timeouts = { between_bytes = '90s' }"),
            "request (1m) is shorter than between_bytes (90s)",
        ),
        (
            with_upstream("timeouts = { connect = '20s' }"),
            "first_byte (15s) is shorter than connect (20s)",
        ),
        (
            with_upstream("slow_start = '2h'"),
            "choose a span from 0s to 1h",
        ),
        (
            with_upstream("") + &upstream(""),
            "upstream[1].name = 'app': the name of another upstream",
        ),
    ] {
        let got = problem(&text);
        assert!(got.contains(want), "{want}: {got}");
    }
}

#[test]
fn routes_that_cannot_be_are_refused() {
    let second = |a: &str, b: &str| {
        format!(
            "{LISTENER}{}[[route]]\nname = 'a'\nupstream = 'app'\n{a}\n[[route]]\nname = 'b'\nupstream = 'app'\n{b}\n",
            upstream("")
        )
    };
    for (text, want) in [
        (
            bare(""),
            "edge.toml:13: route[1].upstream: missing; say what becomes of a request: upstream, split, redirect or respond",
        ),
        (
            route("respond = {}"),
            "route[0]: has upstream and respond, of which only one can be done",
        ),
        (
            bare("upstream = 'x'"),
            "route[1].upstream = 'x': no such upstream; there is app",
        ),
        (
            route("listeners = ['x']"),
            "route[0].listeners[0] = 'x': no such listener; there is web",
        ),
        (route("listeners = []"), "no listener; name some"),
        (route("mirror = { upstream = 'app' }"), "unknown key"),
        (
            bare("split = []"),
            "route[1].split: the weights add up to nothing",
        ),
        (
            bare("split = [{ upstream = 'app', weight = 0 }]"),
            "the weights add up to nothing",
        ),
        (
            bare("split = [{ upstream = 'app' }]"),
            "route[1].split[0].weight: missing",
        ),
        (
            bare("split = [{ weight = 1 }]"),
            "route[1].split[0].upstream: missing",
        ),
        (
            bare("split = [{ upstream = 'app', weight = 1 }, { upstream = 'app', weight = 1 }]"),
            "named twice; add the weights up",
        ),
        (route("hosts = []"), "no host; name some"),
        (route("hosts = ['*']"), "leave the key out for any host"),
        (
            route("hosts = ['a.*']"),
            "a star stands for whole labels in front",
        ),
        (route("hosts = ['*.']"), "no name of a host behind"),
        (
            route("hosts = ['example.com:80']"),
            "no name of a host; write it without scheme and port",
        ),
        (route("hosts = ['bücher.example']"), "as \"xn--\""),
        (
            route("path = {}"),
            "route[0].path: name one of exact, prefix and regex",
        ),
        (
            route("path = { exact = '/', prefix = '/' }"),
            "name one of exact, prefix and regex",
        ),
        (
            route("path = { prefix = 'api' }"),
            "no path of a request: the path does not begin with a slash",
        ),
        (
            route("path = { prefix = '/a/../b' }"),
            "route[0].path.prefix = '/a/../b': no request has this path, for paths are compared in their normal form; write \"/b\"",
        ),
        (route("path = { exact = '/%7ea' }"), "write \"/~a\""),
        (
            route("path = { exact = '/a?b=c' }"),
            "no path of a request: the path has a character that must be escaped",
        ),
        (
            route("path = { regex = '(' }"),
            "no regular expression: unclosed group; correct or simplify it",
        ),
        (
            route("path = { regex = '(?:a{1000}){1000}' }"),
            "takes more than 256 KiB",
        ),
        (route("methods = []"), "no method; name some"),
        (route("methods = ['get']"), "write \"GET\""),
        (route("methods = ['G T']"), "no method; write it as in"),
        (route("methods = ['CONNECT']"), "CONNECT is refused"),
        (
            route("headers = [{ value = '1' }]"),
            "route[0].headers[0].name: missing",
        ),
        (
            route("headers = [{ name = 'a:', value = '1' }]"),
            "no name of a header",
        ),
        (
            route("headers = [{ name = 'a' }]"),
            "route[0].headers[0]: name one of value, prefix, regex and present",
        ),
        (
            route("headers = [{ name = 'a', value = '1', regex = '1' }]"),
            "name one of value",
        ),
        (
            route("headers = [{ name = 'a', present = false }]"),
            "only true is possible",
        ),
        (
            route("query = [{ name = '', value = '1' }]"),
            "no name of a parameter",
        ),
        (
            route("query = [{ name = 'a', regex = '[' }]"),
            "route[0].query[0].regex = '[': no regular expression",
        ),
        (bare("redirect = {}"), "route[1].redirect.to: missing"),
        (
            bare("redirect = { to = 'example.com' }"),
            "no URL; begin with",
        ),
        (bare("redirect = { to = '/a b' }"), "no URL; begin with"),
        (
            bare("redirect = { to = '/{port}' }"),
            "there is no {port}; there are {host}, {path} and {query}",
        ),
        (
            bare("redirect = { to = '/', status = 200 }"),
            "no status of a redirection",
        ),
        (
            bare("respond = { status = 199 }"),
            "choose a number from 200 to 599 (default 200)",
        ),
        (
            bare("respond = { status = 204, body = 'a' }"),
            "an answer with status 204 has no body",
        ),
        (
            bare(&format!("respond = {{ body = '{}' }}", "a".repeat(65_537))),
            "65537 bytes long, at most 65536",
        ),
        (
            bare("respond = { headers = { Content-Length = '1' } }"),
            "route[1].respond.headers.Content-Length = '1': says where a message ends",
        ),
        (
            bare("respond = { headers = { a = \"b\\r\\nc\" } }"),
            "no value of a header",
        ),
        (
            bare("respond = { headers = { 'a b' = '1' } }"),
            "no name of a header",
        ),
        (
            bare("respond = {}\nrewrite = { prefix = '/' }"),
            "route[1].rewrite: only for a route with upstream or split",
        ),
        (
            bare("respond = {}\ntimeouts = {}"),
            "route[1].timeouts: only for a route with upstream or split",
        ),
        (route("rewrite = {}"), "name one of prefix and regex"),
        (
            route("rewrite = { prefix = '/' }"),
            "replaces the prefix of the route, which has none",
        ),
        (
            route("path = { prefix = '/a' }\nrewrite = { prefix = '/./b' }"),
            "write \"/b\"",
        ),
        (
            route("rewrite = { regex = '^/a' }"),
            "route[0].rewrite.to: missing",
        ),
        (
            route("rewrite = { regex = '^/a', to = '/$1' }"),
            "the expression has no group \"1\"",
        ),
        (
            route("rewrite = { regex = '^/a', to = '/b?c' }"),
            "no part of a path",
        ),
        (
            route("path = { prefix = '/a' }\nrewrite = { prefix = '/', to = '/' }"),
            "belongs to regex",
        ),
        (
            route("request_headers = { set = { connection = 'close' } }"),
            "route[0].request_headers.set.connection = 'close': says where a message ends",
        ),
        (
            route("request_headers = { remove = ['Host'] }"),
            "every request has one host",
        ),
        (
            route("request_headers = { add = { host = 'a' } }"),
            "every request has one host",
        ),
        (
            route("request_headers = { set = { host = 'a b' } }"),
            "no host; write it as in",
        ),
        (
            route("request_headers = { set = { a = '1' }, add = { A = '2' } }"),
            "set as well; keep one",
        ),
        (
            route("request_headers = { set = { a = '1' }, remove = ['A'] }"),
            "set as well, which replaces it",
        ),
        (
            route("response_headers = { set = { a = '1', A = '2' } }"),
            "names of headers know no case",
        ),
        (
            route("response_headers = { set = { a = 1 } }"),
            "an integer; expected a string",
        ),
        (
            route("response_headers = { set = 'a' }"),
            "expected names with values",
        ),
        (
            route("timeouts = { request = '1s', between_bytes = '1s' }"),
            "route[0].timeouts.request: request (1s) is shorter than first_byte (15s), with what upstream \"app\" says",
        ),
        (
            with_upstream(
                "timeouts = { request = '20s' }\nconcurrency = { queue_timeout = '10s' }",
            ) + "timeouts = { request = '5s', first_byte = '5s', between_bytes = '5s' }",
            "not longer than concurrency.queue_timeout of upstream \"app\"",
        ),
        (
            route("concurrency = { queue_timeout = '1m' }"),
            "route[0].concurrency.queue_timeout = '1m': not shorter than timeouts.request (1m)",
        ),
        (route("retries = { budget = 0.5 }"), "unknown key"),
        (
            second("", "").replace("'b'", "'a'"),
            "route[1].name = 'a': the name of another route",
        ),
        // Routes that get nothing.
        (
            second("", ""),
            "edge.toml:14: route[1]: no request takes this route, for route \"a\" comes before it",
        ),
        (
            second("hosts = ['a', 'b']", "hosts = ['b']"),
            "route[1]: no request takes this route",
        ),
        (
            second("methods = ['GET', 'PUT']", "methods = ['PUT']"),
            "route[1]: no request takes this route",
        ),
        (
            second(
                "headers = [{ name = 'a', value = '1' }, { name = 'b', value = '1' }]",
                "headers = [{ name = 'b', value = '1' }, { name = 'a', value = '1' }]",
            ),
            "route[1]: no request takes this route",
        ),
        (
            second("path = { regex = '^/a' }", "path = { prefix = '/' }"),
            "route[0]: no request takes this route, for route \"b\" comes before it",
        ),
        (
            second("", "path = { prefix = '/' }"),
            "route[0]: no request takes this route",
        ),
    ] {
        let got = problem(&text);
        assert!(got.contains(want), "{want}: {got}");
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
