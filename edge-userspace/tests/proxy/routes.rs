//! Which way requests go, and what becomes of them on it.

use std::collections::BTreeSet;

use super::rig::*;

#[test]
fn routes_lead_by_host_path_method_header_and_query() {
    let server = Server::echo();
    let answer = |name: &str, more: &str| {
        format!(
            "[[route]]\nname = '{name}'\nrespond = {{ status = 200, body = '{name}' }}\n{more}\n"
        )
    };
    let routes = [
        answer("exact", "hosts = ['a.example']\npath = { exact = '/exact' }"),
        answer("prefix", "hosts = ['a.example']\npath = { prefix = '/api/' }"),
        answer("regex", "hosts = ['a.example']\npath = { regex = '/v[0-9]+/.*' }"),
        answer("wild", "hosts = ['*.example']"),
        answer("method", "hosts = ['a.example']\npath = { exact = '/m' }\nmethods = ['DELETE']"),
        answer("header", "hosts = ['a.example']\npath = { exact = '/m' }\nheaders = [{ name = 'x-beta', value = '1' }]"),
        answer("query", "hosts = ['a.example']\npath = { exact = '/m' }\nquery = [{ name = 'v', value = '2' }]"),
    ]
    .concat();
    let rig = Rig::new(&Setup::new(&[&server]).routes(routes));
    let mut client = rig.client();
    for (request, route) in [
        ("GET /exact HTTP/1.1\r\nHost: a.example\r\n", "exact"),
        ("GET /exact?x HTTP/1.1\r\nHost: A.Example:8080\r\n", "exact"),
        ("GET /api/x HTTP/1.1\r\nHost: a.example\r\n", "prefix"),
        ("GET /%61pi/./x HTTP/1.1\r\nHost: a.example\r\n", "prefix"),
        ("GET /v12/x HTTP/1.1\r\nHost: a.example\r\n", "regex"),
        ("GET /api/../exact HTTP/1.1\r\nHost: a.example\r\n", "exact"),
        ("GET / HTTP/1.1\r\nHost: b.example\r\n", "wild"),
        ("DELETE /m HTTP/1.1\r\nHost: a.example\r\n", "method"),
        (
            "GET /m HTTP/1.1\r\nHost: a.example\r\nX-Beta: 1\r\n",
            "header",
        ),
        ("GET /m?v=2 HTTP/1.1\r\nHost: a.example\r\n", "query"),
    ] {
        client.send(format!("{request}\r\n"));
        assert_eq!(client.answer().text(), route, "{request}");
    }
    let mut client = rig.client();
    client.send("GET / HTTP/1.1\r\nHost: nowhere\r\n\r\n");
    let answer = client.answer();
    assert_eq!(answer.status, 404);
    assert!(answer.text().contains("request id: "));
    let line = rig.logged("/");
    assert_eq!(rig.refusals("no_route"), 1);
    assert!(line["request_id"].as_str().unwrap().len() == 32, "{line}");
    assert_eq!(server.requests(), 0);
}

#[test]
fn answers_of_our_own_and_redirections() {
    let server = Server::echo();
    let rig = Rig::new(&Setup::new(&[&server]).routes(
        "[[route]]\nname = 'r'\npath = { prefix = '/old/' }\n\
         redirect = { to = 'https://b.example/new', status = 308 }\n\
         [[route]]\nname = 's'\npath = { exact = '/teapot' }\n\
         respond = { status = 418, body = 'short', headers = { x-kind = 'pot' } }\n",
    ));
    let mut client = rig.client();
    let answer = client.get("/old/x");
    assert_eq!(
        (answer.status, answer.header("location")),
        (308, Some("https://b.example/new"))
    );
    let answer = client.get("/teapot");
    assert_eq!((answer.status, answer.text()), (418, "short"));
    assert_eq!(answer.header("x-kind"), Some("pot"));
    assert!(answer.header("date").is_some());
    client.send("HEAD /teapot HTTP/1.1\r\nHost: a.example\r\n\r\n");
    let answer = client.answer_to("HEAD");
    assert_eq!(answer.header("content-length"), Some("5"));
    // A body that has come is passed over, and the connection goes on.
    client.send("POST /teapot HTTP/1.1\r\nHost: a.example\r\nContent-Length: 3\r\n\r\nabc");
    assert_eq!(client.answer().status, 418);
    assert_eq!(client.get("/teapot").status, 418);
    assert_eq!(server.requests(), 0);

    let rig = Rig::new(
        &Setup::new(&[&server])
            .listener("redirect_https = true")
            .routes(""),
    );
    let answer = rig.get("/a?b=c");
    assert_eq!(answer.status, 308);
    assert_eq!(answer.header("location"), Some("https://a.example/a?b=c"));
    assert_eq!(server.requests(), 0);
}

#[test]
fn paths_and_headers_are_rewritten() {
    let server = Server::echo();
    let rig = Rig::new(&Setup::new(&[&server]).routes(
        "[[route]]\nname = 'p'\npath = { prefix = '/api/' }\nupstream = 'app'\nrewrite = { prefix = '/v1/' }\n\
         request_headers = { set = { x-set = 'new' }, add = { x-add = 'more' }, remove = ['x-gone'] }\n\
         response_headers = { set = { server = 'edge' }, add = { x-also = 'this' }, remove = ['content-type'] }\n\
         [[route]]\nname = 'h'\npath = { exact = '/named' }\nupstream = 'app'\n\
         request_headers = { set = { host = 'inside:80' } }\n\
         [[route]]\nname = 'x'\npath = { regex = '/user/([0-9]+)' }\nupstream = 'app'\n\
         rewrite = { regex = '/user/([0-9]+)', to = '/u/$1/show' }\n",
    ));
    let mut client = rig.client();
    let answer = client.get_with(
        "/api/a%20b?q=1",
        "X-Set: old\r\nX-Add: one\r\nX-Gone: 1\r\n",
    );
    let text = answer.text();
    assert!(text.starts_with("GET /v1/a%20b?q=1 HTTP/1.1\r\n"), "{text}");
    assert!(!text.contains("old") && !text.contains("X-Gone"), "{text}");
    assert!(
        text.contains("x-set: new\r\n") && text.contains("X-Add: one\r\n"),
        "{text}"
    );
    assert!(text.contains("x-add: more\r\n"), "{text}");
    // A name for the server takes the place of the client's: two would be read in two ways.
    let reply = client.get("/named");
    let named = reply.text();
    let hosts = named.to_ascii_lowercase().matches("\r\nhost: ").count();
    assert_eq!(hosts, 1, "{named}");
    assert!(named.contains("\r\nHost: inside:80\r\n"), "{named}");
    assert_eq!(answer.header("server"), Some("edge"));
    assert_eq!(answer.header("x-also"), Some("this"));
    let answer = client.get("/user/42?x");
    assert!(
        answer.text().starts_with("GET /u/42/show?x HTTP/1.1\r\n"),
        "{}",
        answer.text()
    );
}

#[test]
fn rules_and_conditions_see_what_servers_see() {
    // Like the one that says what came, but that it repeats the id, as many servers do.
    let server = Server::start(|mut peer| {
        while let Some((head, _)) = peer.request() {
            let length = head.len();
            let id = "X-Request-Id: the server's\r\nX-Kept: 1";
            peer.send(format!(
                "HTTP/1.1 200 OK\r\nContent-Length: {length}\r\n{id}\r\n\r\n{head}"
            ));
        }
    });
    let rig = Rig::new(&Setup::new(&[&server]).routes(
        "[[route]]\nname = 'inside'\nheaders = [{ name = 'x-forwarded-for', prefix = '10.' }]\n\
         respond = { status = 200, body = 'inside' }\n\
         [[route]]\nname = 'p'\nupstream = 'app'\n\
         request_headers = { set = { x-forwarded-proto = 'ours' }, remove = ['x-forwarded-for', 'x-request-id'] }\n\
         response_headers = { remove = ['x-request-id'] }\n",
    ));
    // What anybody may say of the way here is no reason to be led elsewhere.
    let answer = rig
        .client()
        .get_with("/", "X-Forwarded-For: 10.0.0.1\r\nX-Request-Id: mine\r\n");
    let text = answer.text().to_ascii_lowercase();
    assert!(text.contains("\r\nx-forwarded-proto: ours\r\n"), "{text}");
    assert_eq!(text.matches("x-forwarded-proto").count(), 1, "{text}");
    for gone in ["x-forwarded-for", "x-request-id"] {
        assert!(!text.contains(gone), "{gone}: {text}");
    }
    assert_eq!(answer.header("x-request-id"), None);
    assert_eq!(answer.header("x-kept"), Some("1"));
}

#[test]
fn requests_come_as_far_as_their_client_lets_them() {
    let server = Server::echo();
    let rig = Rig::new(&Setup::new(&[&server]));
    let mut client = rig.client();
    let mut ask = |asked: &str, value: &str| {
        let (method, path) = asked.split_once(' ').unwrap_or((asked, "/far"));
        client.send(format!(
            "{method} {path} HTTP/1.1\r\nHost: a.example\r\nMax-Forwards: {value}\r\n\r\n"
        ));
        let answer = client.answer();
        (answer.status, answer.text().to_owned())
    };
    // What is no number, and what is said of other methods, is for whoever understands it.
    for (method, value, told) in [
        ("OPTIONS", "7", "6"),
        ("OPTIONS", "1", "0"),
        ("TRACE", "007", "6"),
        ("OPTIONS", "-1", "-1"),
        ("OPTIONS", "7, 0", "7, 0"),
        ("OPTIONS", "7\r\nMax-Forwards: 5", "6"),
        ("OPTIONS", "", ""),
        ("OPTIONS *", "2", "1"),
        // What is too large for anybody's number is as large as one may be.
        ("OPTIONS", "99999999999999999999", "18446744073709551614"),
        ("GET", "0", "0"),
    ] {
        let (status, text) = ask(method, value);
        assert_eq!((status, header(&text, "max-forwards")), (200, Some(told)));
    }
    let asked = server.requests();
    assert_eq!(ask("OPTIONS", "0"), (200, String::new()));
    assert_eq!(ask("OPTIONS *", "0"), (200, String::new()));
    assert_eq!(ask("OPTIONS", "3\r\nmax-forwards: 0").0, 200);
    assert_eq!(ask("TRACE", "00").0, 501);
    assert_eq!(rig.refusals("trace"), 1);
    assert_eq!(server.requests(), asked);
}

/// Who answered each of these requests.
fn answers(client: &mut Peer, lines: &str, n: usize) -> Vec<String> {
    (0..n)
        .map(|_| client.get_with("/", lines).text().to_owned())
        .collect()
}

const NAMES: [&str; 4] = ["a", "b", "c", "d"];

#[test]
fn servers_take_turns() {
    let servers = NAMES.map(Server::saying);
    let rig = Rig::new(&Setup::new(&servers.each_ref()));
    let all = answers(&mut rig.client(), "", 40);
    for name in NAMES {
        assert_eq!(all.iter().filter(|n| *n == name).count(), 10, "{all:?}");
    }
}

#[test]
fn a_session_stays_with_its_server() {
    let servers = NAMES.map(Server::saying);
    let setup =
        Setup::new(&servers.each_ref()).upstream("sticky = { cookie = 'edge', ttl = '1h' }");
    let rig = Rig::new(&setup);
    let mut seen = BTreeSet::new();
    for _ in 0..4 {
        let mut client = rig.client();
        let first = client.get("/");
        let cookie = first.header("set-cookie").unwrap();
        assert!(
            cookie.contains("; Path=/; HttpOnly; SameSite=Lax; Max-Age=3600"),
            "{cookie}"
        );
        let pair = cookie.split(';').next().unwrap().to_owned();
        let line = format!("Cookie: other=1; {pair}\r\n");
        for _ in 0..10 {
            let answer = client.get_with("/", &line);
            assert_eq!(answer.text(), first.text());
            assert_eq!(answer.header("set-cookie"), None, "it has one already");
        }
        // One that was not made here is nobody's, and another one is given.
        let mut forged = pair.into_bytes();
        let last = forged.last_mut().unwrap();
        *last = if *last == b'A' { b'B' } else { b'A' };
        let line = format!("Cookie: {}\r\n", String::from_utf8(forged).unwrap());
        assert!(client.get_with("/", &line).header("set-cookie").is_some());
        seen.insert(first.text().to_owned());
    }
    assert!(seen.len() > 1, "{seen:?}");
}

#[test]
fn what_is_hashed_decides() {
    let servers = NAMES.map(Server::saying);
    for (hash, line) in [
        ("header = 'x-user'", "X-User: {}\r\n"),
        ("cookie = 'user'", "Cookie: a=b; user={}\r\n"),
    ] {
        let upstream = format!("balance = 'consistent-hash'\nhash = {{ {hash} }}");
        let setup = Setup::new(&servers.each_ref()).upstream(upstream);
        let rig = Rig::new(&setup);
        let mut client = rig.client();
        let mut all = BTreeSet::new();
        for user in 0..40 {
            let line = line.replace("{}", &user.to_string());
            let who = answers(&mut client, &line, 5);
            assert!(who.iter().all(|name| *name == who[0]), "{user}: {who:?}");
            all.insert(who[0].clone());
        }
        assert_eq!(all.len(), 4, "{all:?}");
    }
}
