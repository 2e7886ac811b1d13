//! Which requests are whose: conditions, shares, redirections, and what a fleet agrees on.

use std::collections::BTreeMap;

use edge_userspace::l7::proxy::{Change, Keys};
use hyper::Method;

use super::{client, rig::*};

/// A route that answers with its name.
fn answering(name: &str, more: &str) -> String {
    format!("[[route]]\nname = '{name}'\nrespond = {{ status = 200, body = '{name}' }}\n{more}\n")
}

/// How often each of `n` requests of one client got which answer.
fn counts(client: &mut Peer, lines: &str, n: usize) -> BTreeMap<String, usize> {
    let mut counts = BTreeMap::new();
    for _ in 0..n {
        let answer = client.get_with("/", lines);
        *counts.entry(answer.text().to_owned()).or_default() += 1;
    }
    counts
}

#[test]
fn upstreams_of_a_split_get_their_shares() {
    let [stable, canary, none] = ["stable", "canary", "none"].map(Server::saying);
    let upstream = |name: &str, server: &Server| {
        format!(
            "[[upstream]]\nname = '{name}'\n[[upstream.server]]\naddress = '{}'\n",
            server.address
        )
    };
    let split = "[[route]]\nname = 'all'\nsplit = [{ upstream = 'app', weight = 90 }, \
                 { upstream = 'canary', weight = 30 }, { upstream = 'none', weight = 0 }]\n";
    let routes = upstream("canary", &canary) + &upstream("none", &none) + split;
    let setup = Setup::new(&[&stable])
        .listener("limits = { requests_per_connection = 0 }")
        .routes(routes);
    let rig = Rig::new(&setup);
    // One client, on one connection and with a cookie: chance alone says who answers.
    let counts = counts(&mut rig.client(), "Cookie: user=1\r\n", 1600);
    assert_eq!(counts.len(), 2, "{counts:?}");
    // 400, give or take seven times the deviation that chance has.
    assert!((280..=520).contains(&counts["canary"]), "{counts:?}");
    assert_eq!(counts["stable"] + counts["canary"], 1600);
    assert_eq!(none.requests(), 0);
}

#[test]
fn routes_are_of_their_listeners() {
    let (server, inside) = (Server::echo(), Port::new());
    let routes = answering("both", "path = { exact = '/both' }")
        + &answering("inside", "listeners = ['inside']")
        + &answering("outside", "listeners = ['web']\nhosts = ['a.example']");
    let setup = Setup::new(&[&server]).routes(routes);
    let rig = Rig::with(|at, log| {
        let listener = format!(
            "[[listener]]\nname = 'inside'\naddresses = ['{}']\n[[upstream]]",
            inside.at
        );
        setup.text(at, log).replacen("[[upstream]]", &listener, 1)
    });
    let (mut web, mut other) = (rig.client(), Peer::connect(inside.at));
    for client in [&mut web, &mut other] {
        client.send("GET /both HTTP/1.1\r\nHost: b.example\r\n\r\n");
        assert_eq!(client.answer().text(), "both");
    }
    assert_eq!(web.get("/").text(), "outside");
    // A better host of a route that is for others counts for nothing.
    assert_eq!(other.get("/").text(), "inside");
    web.send("GET / HTTP/1.1\r\nHost: b.example\r\n\r\n");
    assert_eq!(web.answer().status, 404);
}

#[test]
fn conditions_ask_for_presence_prefixes_and_expressions() {
    let server = Server::echo();
    let on = |name: &str, path: &str, condition: &str| {
        answering(name, &format!("path = {{ exact = '{path}' }}\n{condition}"))
    };
    let routes = [
        on("h-present", "/hp", "headers = [{ name = 'X-A', present = true }]"),
        on("h-prefix", "/hb", "headers = [{ name = 'x-a', prefix = 'ab' }]"),
        on("h-regex", "/hr", "headers = [{ name = 'x-a', regex = '^[0-9]+$' }]"),
        on("q-present", "/qp", "query = [{ name = 'a', present = true }]"),
        on("q-prefix", "/qb", "query = [{ name = 'a', prefix = 'a b' }]"),
        on("q-regex", "/qr", "query = [{ name = 'a', regex = '^\\xc3\\xa9[0-9]$' }]"),
        on("all", "/all", "headers = [{ name = 'x-a', present = true }, { name = 'x-b', prefix = '1' }]\nquery = [{ name = 'a', value = '' }]"),
    ]
    .concat();
    let rig = Rig::new(&Setup::new(&[&server]).routes(routes));
    let mut client = rig.client();
    for (path, lines, route) in [
        ("/hp", "x-a:\r\n", "h-present"),
        ("/hp", "X-A: anything\r\n", "h-present"),
        ("/hp", "x-b: 1\r\n", ""),
        ("/hb", "x-a: abc\r\n", "h-prefix"),
        ("/hb", "x-a: xabc\r\n", ""),
        // One of several fields is enough.
        ("/hb", "x-a: x\r\nx-a: ab\r\n", "h-prefix"),
        ("/hr", "x-a: 0123\r\n", "h-regex"),
        ("/hr", "x-a: 0123x\r\n", ""),
        ("/hr", "", ""),
        ("/qp?a", "", "q-present"),
        ("/qp?b&%61=1", "", "q-present"),
        ("/qp?b=a", "", ""),
        ("/qb?a=a+bc", "", "q-prefix"),
        ("/qb?a=a%20b", "", "q-prefix"),
        ("/qb?a=ab", "", ""),
        ("/qr?a=1&a=%C3%a97", "", "q-regex"),
        ("/qr?a=%c3%a9", "", ""),
        ("/all?a=", "x-a: 1\r\nx-b: 12\r\n", "all"),
        ("/all?a=1", "x-a: 1\r\nx-b: 12\r\n", ""),
        ("/all?a", "x-a: 1\r\nx-b: 2\r\n", ""),
    ] {
        let answer = client.get_with(path, lines);
        match route {
            "" => assert_eq!(answer.status, 404, "{path} {lines}"),
            route => assert_eq!(answer.text(), route, "{path} {lines}"),
        }
    }
}

#[test]
fn a_wish_for_websockets_is_a_condition() {
    let server = Server::echo();
    let routes = answering(
        "ws",
        "headers = [{ name = 'Upgrade', value = 'WebSocket' }]",
    ) + &answering("plain", "");
    let rig = Rig::new(&Setup::new(&[&server]).routes(routes));
    let mut client = rig.client();
    for (lines, route) in [
        ("Connection: Upgrade\r\nUpgrade: websocket\r\n", "ws"),
        ("Connection: upgrade\r\nUpgrade: WebSocket\r\n", "ws"),
        (
            "Connection: upgrade\r\nUpgrade: other/1, websocket\r\n",
            "ws",
        ),
        // What does not go on is no wish.
        ("Upgrade: websocket\r\n", "plain"),
        ("Connection: upgrade\r\nUpgrade: h2c\r\n", "plain"),
        ("Connection: upgrade\r\nUpgrade: websockets\r\n", "plain"),
        ("", "plain"),
    ] {
        assert_eq!(client.get_with("/", lines).text(), route, "{lines}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn the_host_is_the_same_by_all_versions() {
    let names = ["a", "b", "c", "d"];
    let servers = names.map(Server::saying);
    let routes = answering(
        "named",
        "headers = [{ name = 'host', value = 'named.example' }]",
    ) + ALL;
    let setup = Setup::new(&servers.each_ref())
        .listener("http2 = true")
        .upstream("balance = 'consistent-hash'\nhash = { header = 'host' }")
        .routes(routes);
    let rig = Rig::new(&setup);
    let mut lines = rig.client();
    let frames = client::connect(rig.port.at).await;
    let mut by_lines = |host: &str| {
        lines.send(format!("GET / HTTP/1.1\r\nHost: {host}\r\n\r\n"));
        lines.answer().text().to_owned()
    };
    let by_frames = async |host: &str| {
        let mut asked = client::ask(Method::GET, "/");
        *asked.uri_mut() = format!("http://{host}/").parse().unwrap();
        let (_, body, _) = client::answer(&frames, asked).await;
        String::from_utf8(body).unwrap()
    };
    assert_eq!(by_lines("named.example"), "named");
    assert_eq!(by_frames("named.example").await, "named");
    for i in 0..12 {
        let host = format!("h{i}.example");
        assert_eq!(by_lines(&host), by_frames(&host).await, "{host}");
    }
}

#[test]
fn redirections_have_parts_of_the_request_and_any_status() {
    let server = Server::echo();
    let redirect = |name: &str, path: &str, to: &str, status: &str| {
        format!(
            "[[route]]\nname = '{name}'\npath = {{ {path} }}\nredirect = {{ to = '{to}'{status} }}\n"
        )
    };
    let routes = [
        redirect(
            "host",
            "prefix = '/host/'",
            "https://www.{host}/x{path}{query}#z",
            "",
        ),
        redirect("slash", "prefix = '/slash/'", "{path}/", ", status = 301"),
        redirect("any", "prefix = '/'", "{path}{query}", ", status = 302"),
        redirect("see", "prefix = '/see/'", "/{path}", ", status = 303"),
        redirect(
            "temporary",
            "prefix = '/temporary/'",
            "/fixed",
            ", status = 307",
        ),
        redirect(
            "lasting",
            "prefix = '/lasting/'",
            "http://b.example{path}",
            ", status = 308",
        ),
    ]
    .concat();
    let rig = Rig::new(&Setup::new(&[&server]).routes(routes));
    let mut client = rig.client();
    for (target, status, location) in [
        (
            "/host/%7Ea?b=%20",
            308,
            "https://www.a.example/x/host/~a?b=%20#z",
        ),
        ("/host/./a", 308, "https://www.a.example/x/host/a#z"),
        ("/slash/a", 301, "/slash/a/"),
        ("/b?c=d", 302, "/b?c=d"),
        // A client would look for the host behind two slashes.
        ("//evil.example/x?y", 302, "/evil.example/x?y"),
        ("///evil.example", 302, "/evil.example"),
        ("/see/a", 303, "/see/a"),
        ("/temporary/a?b", 307, "/fixed"),
        ("/lasting/a?b", 308, "http://b.example/lasting/a"),
    ] {
        let answer = client.get(target);
        let got = (answer.status, answer.header("location"));
        assert_eq!(got, (status, Some(location)), "{target}");
    }
    // Where the host is that of the request, there has to be one.
    let answer = rig.ask("GET /host/a HTTP/1.0\r\n\r\n");
    assert!(answer.starts_with("HTTP/1.1 400 "), "{answer}");
    assert!(!answer.to_lowercase().contains("location:"), "{answer}");
    assert_eq!(rig.refusals("host_missing"), 1);
    let answer = rig.ask("GET /slash/a HTTP/1.0\r\n\r\n");
    assert!(answer.contains("Location: /slash/a/\r\n"), "{answer}");
    assert_eq!(server.requests(), 0);
}

#[test]
fn thousands_of_routes_lead_each_to_its_own() {
    let server = Server::saying("served");
    let of = |i: usize| match i % 3 {
        0 => format!("hosts = ['h{i}.example']"),
        1 => format!(
            "hosts = ['*.w{}.example']\npath = {{ prefix = '/p{i}/' }}",
            i % 50
        ),
        _ => format!("path = {{ exact = '/e{i}' }}\nmethods = ['GET']"),
    };
    let routes: String = (0..3000)
        .map(|i| answering(&format!("r{i}"), &of(i)))
        .collect();
    let rig = Rig::new(&Setup::new(&[&server]).routes(routes + ALL));
    let mut client = rig.client();
    for i in (0..3000).step_by(97) {
        let (host, path) = match i % 3 {
            0 => (format!("h{i}.example"), "/any".to_owned()),
            1 => (format!("x.y.w{}.example", i % 50), format!("/p{i}/x")),
            _ => ("nobody.example".to_owned(), format!("/e{i}")),
        };
        client.send(format!("GET {path} HTTP/1.1\r\nHost: {host}\r\n\r\n"));
        assert_eq!(client.answer().text(), format!("r{i}"), "{host}{path}");
    }
    assert_eq!(client.get("/").text(), "served");
}

#[test]
fn a_fleet_with_one_secret_agrees_on_servers_and_sessions() {
    let servers = ["a", "b", "c", "d", "e"].map(Server::saying);
    let hashed = Setup::new(&servers.each_ref())
        .upstream("balance = 'consistent-hash'\nhash = { query = 'user' }");
    let sticky =
        Setup::new(&servers.each_ref()).upstream("sticky = { cookie = 'edge', ttl = '1h' }");
    let rig = |setup: &Setup, secret: u8| Rig::keyed(setup, Keys::of(&[secret; 32]));
    let all = |rig: &Rig| -> Vec<String> {
        let mut client = rig.client();
        let users = (0..60).map(|user| format!("/?user={user}"));
        users
            .map(|path| client.get(&path).text().to_owned())
            .collect()
    };
    let first = all(&rig(&hashed, 1));
    assert_eq!(first, all(&rig(&hashed, 1)));
    assert_ne!(first, all(&rig(&hashed, 2)));

    let mut here = rig(&sticky, 1);
    let (there, stranger) = (rig(&sticky, 1), rig(&sticky, 2));
    let answer = here.get("/");
    let cookie = answer.header("set-cookie").unwrap();
    let line = format!("Cookie: {}\r\n", cookie.split(';').next().unwrap());
    let is_known = |rig: &Rig| {
        let mut client = rig.client();
        let answers: Vec<Answer> = (0..8).map(|_| client.get_with("/", &line)).collect();
        let new = |answer: &Answer| answer.header("set-cookie").is_some();
        let knows = !new(&answers[0]);
        assert!(answers.iter().all(|answer| new(answer) != knows));
        assert!(!knows || answers.iter().all(|a| a.text() == answer.text()));
        knows
    };
    assert!(is_known(&here) && is_known(&there));
    assert!(!is_known(&stranger));
    // What was said of servers outlives another secret, sessions do not.
    let drained = &servers[0].address;
    let view = here.tier.view();
    view.change("app", drained, Change::Drain(true)).unwrap();
    here.tier.set_keys(Keys::of(&[2; 32]));
    here.change(&sticky);
    assert!(!is_known(&here));
    let app = here.app();
    let draining = app.servers.iter().filter(|server| server.draining);
    let draining: Vec<&String> = draining.map(|server| &server.address).collect();
    assert_eq!(draining, [drained]);
    here.tier.set_keys(Keys::of(&[1; 32]));
    here.change(&sticky.clone().upstream(sticky.upstream.replace("1h", "2h")));
    assert!(is_known(&here));
}

#[test]
fn parameters_are_hashed_as_they_are_meant() {
    let servers = ["a", "b", "c", "d", "e"].map(Server::saying);
    let setup = Setup::new(&servers.each_ref())
        .upstream("balance = 'consistent-hash'\nhash = { query = 'user' }");
    let rig = Rig::new(&setup);
    let mut client = rig.client();
    for user in 0..8 {
        let mut who = |path: String| client.get(&path).text().to_owned();
        let one = who(format!("/?user={user}+%C3%A9"));
        assert_eq!(who(format!("/?x=1&%75ser=%3{user}%20%c3%a9")), one);
        assert_eq!(who(format!("/?user={user}%20%C3%A9&user=x")), one);
    }
}

#[test]
fn a_server_is_found_however_its_address_is_written() {
    let server = Server::saying("ok");
    let mut setup = Setup::new(&[&server]);
    let more = ["[2001:db8::1]:80", "app.internal:80", "unix:/run/app.sock"];
    setup.servers.extend(more.map(str::to_owned));
    let rig = Rig::new(&setup);
    for (written, address) in [
        ("[2001:DB8:0::0:1]:80", more[0]),
        ("App.Internal.:80", more[1]),
        ("unix:/run/app.sock", more[2]),
    ] {
        let view = rig.tier.view();
        let app = view.change("app", written, Change::Drain(true)).unwrap();
        let server = app.servers.iter().find(|s| s.address == address).unwrap();
        assert!(server.draining, "{written}");
    }
    for nobody in ["[2001:db8::2]:80", "[2001:db8::1]:81", "app", ""] {
        let view = rig.tier.view();
        let refused = view.change("app", nobody, Change::Drain(true));
        assert!(refused.is_err(), "{nobody}");
    }
}
