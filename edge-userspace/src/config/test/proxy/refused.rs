//! What listeners, upstreams and routes cannot be.

use super::{
    LISTENER, ROUTE, SERVER, bare, listener, problem, route, servers, upstream, with_upstream,
};

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
            format!("[proxy]\ntraces = {{ sample = 0.5 }}\n{}", route("")),
            "proxy.traces.endpoint: missing; name the collector",
        ),
        (
            format!(
                "[proxy]\ntraces = {{ endpoint = 'ftp://a:4318' }}\n{}",
                route("")
            ),
            "no URL of a collector that is spoken to by HTTP or HTTPS; name the collector",
        ),
        (
            format!(
                "[proxy]\ntraces = {{ endpoint = 'http://a:4318', ca = '/a' }}\n{}",
                route("")
            ),
            "without TLS there is nobody to trust",
        ),
        (
            format!(
                "[proxy]\ntraces = {{ endpoint = 'https://a:4318', headers_file = 'a' }}\n{}",
                route("")
            ),
            "proxy.traces.headers_file = 'a': no absolute path",
        ),
        (
            format!(
                "[proxy]\ntraces = {{ endpoint = 'http://a:4318', headers_file = '/a' }}\n{}",
                route("")
            ),
            "proxy.traces.headers_file = '/a': what is in it would be sent so that everybody",
        ),
        (
            format!(
                "[proxy]\ntraces = {{ endpoint = 'http://a' }}\n{}",
                route("")
            ),
            "no URL of a collector",
        ),
        (
            format!(
                "[proxy]\ntraces = {{ endpoint = 'http://a:4318/<b>' }}\n{}",
                route("")
            ),
            "no URL of a collector",
        ),
        (
            route("mirror = { fraction = 0.1 }"),
            "route[0].mirror.upstream: missing; name the [[upstream]]",
        ),
        (
            route("mirror = { upstream = 'x' }"),
            "no such upstream; there is app",
        ),
        (
            route("mirror = { upstream = 'app' }"),
            "would get its requests twice; name another one",
        ),
        (
            format!(
                "[[upstream]]\nname = 's'\n{SERVER}{}",
                route("mirror = { upstream = 's', fraction = 0 }")
            ),
            "choose a share from 0.001 to 1 (default 1)",
        ),
        (
            bare("respond = { status = 200 }\nmirror = { upstream = 'app' }"),
            "only for a route with upstream or split",
        ),
        (
            listener("client_header = 'forwarded'"),
            "nobody's word is taken; name those who send it in trusted_proxies",
        ),
        (
            listener("trusted_proxies = ['10.0.0.0/8']\nclient_header = 'x-real-ip'"),
            "x-forwarded-for",
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
            "choose a number of bytes from 1024 to 32768 (default 16384)",
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
            with_upstream("protocol = 'http3'"),
            "upstream[0].protocol = 'http3'",
        ),
        (
            with_upstream("protocol = 'http2'\nproxy_protocol = 'v1'"),
            "upstream[0].proxy_protocol: with protocol = \"http2\" clients share connections",
        ),
        (
            with_upstream("protocol = 'http2'\nkeep_alive = { connections = 0 }"),
            "upstream[0].keep_alive.connections = 0: with protocol = \"http2\" it is how many",
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
            "choose a number from 1 to 50 (default 10)",
        ),
        (
            with_upstream("passive = { error_rate = 0 }"),
            "choose a share from 0.001 to 1 (default 0.5)",
        ),
        (
            with_upstream("passive = { error_rate = 0.5, window = 51 }"),
            "choose a number from 1 to 50 (default 20)",
        ),
        (
            with_upstream("passive = { error_rate = 0.5, latency = '0s' }"),
            "choose a span from 1ms to 1d",
        ),
        (
            with_upstream("passive = { latency = '2s' }"),
            "belongs to error_rate; add that",
        ),
        (
            with_upstream("passive = { window = 20 }"),
            "belongs to error_rate; add that",
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
            route("headers = [{ name = 'Keep-Alive', present = true }]"),
            "route[0].headers[0].name = 'Keep-Alive': belongs to one connection",
        ),
        (
            route("headers = [{ name = 'proxy-authorization', present = true }]"),
            "belongs to one connection",
        ),
        (
            route("headers = [{ name = 'x_tenant', value = '1' }]"),
            "no condition sees this header",
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
            bare("redirect = { to = '//{path}' }"),
            "\"https://\" or \"http://\" and a host, or with",
        ),
        (
            bare("redirect = { to = 'https://{path}' }"),
            "no URL; begin with",
        ),
        (
            bare("redirect = { to = 'http:///a' }"),
            "no URL; begin with",
        ),
        (bare("redirect = { to = '{host}/' }"), "no URL; begin with"),
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
        (
            alike(257),
            "edge.toml:1294: route[257]: more than 256 routes with the same host and path",
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
fn as_many_routes_may_be_alike_as_are_tried_one_by_one() {
    let text = alike(256);
    assert_eq!(crate::config::test::model_of(&text).proxy.routes.len(), 257);
}

/// Routes that only a header tells apart, and the one that takes what is left.
fn alike(n: usize) -> String {
    let one = |i| {
        format!(
            "[[route]]\nname = 't{i}'\nupstream = 'app'\nheaders = [{{ name = 'x-tenant', value = '{i}' }}]\npath = {{ exact = '/' }}\n"
        )
    };
    route("") + &(0..n).map(one).collect::<String>()
}
