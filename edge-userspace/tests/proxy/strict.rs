//! Requests that could be read in two ways: each is refused, its connection is closed, and no
//! byte of it reaches a server.

use super::rig::*;

/// A GET with these lines behind the request line.
fn get(lines: &str) -> String {
    format!("GET /x HTTP/1.1\r\n{lines}\r\n")
}

/// The same with a Host.
fn hosted(lines: &str) -> String {
    get(&format!("Host: a.example\r\n{lines}"))
}

fn post(lines: &str, body: &str) -> String {
    format!("POST /x HTTP/1.1\r\nHost: a.example\r\n{lines}\r\n{body}")
}

fn chunks(body: &str) -> String {
    post("Transfer-Encoding: chunked\r\n", body)
}

fn line(line: &str) -> String {
    format!("{line}\r\nHost: a.example\r\n\r\n")
}

/// What is refused, and with which status.
fn vectors() -> Vec<(String, u16)> {
    let long = "a".repeat(9000);
    vec![
        // Two ways to say where the body ends.
        (
            post(
                "Content-Length: 6\r\nTransfer-Encoding: chunked\r\n",
                "0\r\n\r\nG",
            ),
            400,
        ),
        (
            post(
                "Transfer-Encoding: chunked\r\nContent-Length: 6\r\n",
                "0\r\n\r\nG",
            ),
            400,
        ),
        (
            post("Content-Length: 5\r\nContent-Length: 6\r\n", "hello"),
            400,
        ),
        (
            post("Content-Length: 5\r\nContent-Length: 5\r\n", "hello"),
            400,
        ),
        (post("Content-Length: 5, 5\r\n", "hello"), 400),
        // Lengths that are no numbers.
        (post("Content-Length: +5\r\n", "hello"), 400),
        (post("Content-Length: -5\r\n", "hello"), 400),
        (post("Content-Length: 0x5\r\n", "hello"), 400),
        (post("Content-Length: 5 6\r\n", "hello"), 400),
        (post("Content-Length: 5.0\r\n", "hello"), 400),
        (post("Content-Length:\r\n", "hello"), 400),
        (
            post("Content-Length: 18446744073709551621\r\n", "hello"),
            400,
        ),
        (post("Content-Length: 99999999999\r\n", "hello"), 413),
        // Encodings.
        (
            post("Transfer-Encoding: gzip, chunked\r\n", "0\r\n\r\n"),
            400,
        ),
        (
            post("Transfer-Encoding: chunked, gzip\r\n", "0\r\n\r\n"),
            400,
        ),
        (post("Transfer-Encoding: identity\r\n", "0\r\n\r\n"), 400),
        (post("Transfer-Encoding: xchunked\r\n", "0\r\n\r\n"), 400),
        (
            post("Transfer-Encoding: chunked, chunked\r\n", "0\r\n\r\n"),
            400,
        ),
        (post("Transfer-Encoding: \"chunked\"\r\n", "0\r\n\r\n"), 400),
        (post("Transfer-Encoding: chunked;q=1\r\n", "0\r\n\r\n"), 400),
        (post("Transfer-Encoding: ,chunked\r\n", "0\r\n\r\n"), 400),
        (post("Transfer-Encoding: \x0bchunked\r\n", "0\r\n\r\n"), 400),
        (
            post(
                "Transfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n",
                "0\r\n\r\n",
            ),
            400,
        ),
        (
            "POST /x HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n".to_owned(),
            400,
        ),
        // Chunks.
        (chunks("+5\r\nhello\r\n0\r\n\r\n"), 400),
        (chunks("0x5\r\nhello\r\n0\r\n\r\n"), 400),
        (chunks(" 5\r\nhello\r\n0\r\n\r\n"), 400),
        (chunks("5 \r\nhello\r\n0\r\n\r\n"), 400),
        (chunks("5h\r\nhello\r\n0\r\n\r\n"), 400),
        (chunks("\r\nhello\r\n0\r\n\r\n"), 400),
        (chunks("10000000000000005\r\nhello\r\n0\r\n\r\n"), 400),
        (chunks("5\nhello\r\n0\r\n\r\n"), 400),
        (chunks("5\r\nhello\n0\r\n\r\n"), 400),
        (chunks("5\r\nhello0\r\n\r\n"), 400),
        (chunks("5\r\nhelloXX0\r\n\r\n"), 400),
        (chunks("5;a\nhello\r\n0\r\n\r\n"), 400),
        (chunks("5;a\0\r\nhello\r\n0\r\n\r\n"), 400),
        (chunks("5\r\nhello\r\n0\r\nContent-Length: 5\r\n\r\n"), 400),
        (chunks("5\r\nhello\r\n0\r\nHost: b.example\r\n\r\n"), 400),
        (chunks("5\r\nhello\r\n0\r\nx : 1\r\n\r\n"), 400),
        (
            chunks("5\r\nhello\r\n0\r\nGET /admin HTTP/1.1\r\n\r\n"),
            400,
        ),
        // Lines and fields.
        (hosted("X: 1\r\n folded\r\n"), 400),
        (hosted("X: 1\r\n\tfolded\r\n"), 400),
        (get(" Host: a.example\r\n"), 400),
        (hosted("X: 1\n"), 400),
        (hosted("X: 1\nContent-Length: 5\r\n"), 400),
        ("GET /x HTTP/1.1\nHost: a.example\n\n".to_owned(), 400),
        (hosted("X: 1\rContent-Length: 5\r\n"), 400),
        (hosted("\rX: 1\r\n"), 400),
        (hosted("X: a\0b\r\n"), 400),
        (hosted("X: a\x01b\r\n"), 400),
        (hosted("X : 1\r\n"), 400),
        (hosted("Content-Length : 5\r\n"), 400),
        (hosted("Transfer-Encoding\t: chunked\r\n"), 400),
        (hosted(": 1\r\n"), 400),
        (hosted("nothing\r\n"), 400),
        (hosted("X(Y): 1\r\n"), 400),
        (hosted(&"X: 1\r\n".repeat(200)), 431),
        (hosted(&format!("X: {}\r\n", long.repeat(3))), 431),
        // The request line.
        (line("GET  /x HTTP/1.1"), 400),
        (line("GET /x  HTTP/1.1"), 400),
        (line("GET /x HTTP/1.1 "), 400),
        (line(" GET /x HTTP/1.1"), 400),
        (line("GET\t/x HTTP/1.1"), 400),
        (line("GET /x\x7f HTTP/1.1"), 400),
        (line("GET /x#y HTTP/1.1"), 400),
        (line("GET x HTTP/1.1"), 400),
        (line("GET * HTTP/1.1"), 400),
        (line("GET ftp://a.example/x HTTP/1.1"), 400),
        (line(&format!("GET /{long} HTTP/1.1")), 414),
        (line("CONNECT a.example:443 HTTP/1.1"), 501),
        (line("\r\n\r\nGET /x HTTP/1.1"), 400),
        (line("GET /x"), 400),
        (line("GET /x http/1.1"), 400),
        (line("GET /x HTTP/1.2"), 505),
        (line("GET /x HTTP/3.0"), 505),
        ("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_owned(), 505),
        ("\x16\x03\x01\x02\x00\x01".to_owned(), 400),
        // For whom it is.
        (get(""), 400),
        (hosted("Host: a.example\r\n"), 400),
        (hosted("hOST:b.example\r\n"), 400),
        (get("Host: a.example, b.example\r\n"), 400),
        (get("Host: user@a.example\r\n"), 400),
        (get("Host: a.example/b\r\n"), 400),
        (get("Host: a.example:65536\r\n"), 400),
        (line("GET http://b.example/x HTTP/1.1"), 400),
        (line("GET http://u@a.example/x HTTP/1.1"), 400),
        // The connection.
        (
            post(
                "Connection: content-length\r\nContent-Length: 5\r\n",
                "hello",
            ),
            400,
        ),
        (hosted("Connection: close, Host\r\n"), 400),
        (hosted("Connection: x-forwarded-for\r\n"), 400),
        (hosted("Connection: \"close\"\r\n"), 400),
        (hosted("Expect: 200-ok\r\n"), 417),
    ]
}

#[test]
fn nothing_of_a_malformed_request_reaches_a_server() {
    let server = Server::saying("never");
    let rig = Rig::new(&Setup::new(&[&server]));
    let vectors = vectors();
    assert!(vectors.len() >= 60, "{}", vectors.len());
    for (bytes, status) in &vectors {
        // What is behind it would be the next request.
        let both = format!("{bytes}GET /admin HTTP/1.1\r\nHost: a.example\r\n\r\n");
        let answer = rig.ask(&both);
        let shown = bytes.chars().take(200).collect::<String>();
        assert!(
            answer.starts_with(&format!("HTTP/1.1 {status} ")),
            "{shown:?}: {answer}"
        );
        assert_eq!(
            answer.matches("HTTP/1.1 ").count(),
            1,
            "{shown:?}: {answer}"
        );
        assert_eq!(header(&answer, "connection"), Some("close"), "{shown:?}");
        // It names the request, and says nothing of the inside.
        assert!(answer.contains("\r\n\r\n") && answer.contains("request id: "));
        assert!(!answer.contains(&server.address), "{answer}");
        for seen in server.seen() {
            assert_eq!(seen, "", "{shown:?}");
        }
    }
}

#[test]
fn the_same_a_byte_at_a_time() {
    let server = Server::saying("never");
    let rig = Rig::new(&Setup::new(&[&server]));
    for (bytes, status) in [
        (hosted("X : 1\r\n"), 400),
        (hosted("X: 1\r\n folded\r\n"), 400),
        (
            post("Content-Length: 5\r\nTransfer-Encoding: chunked\r\n", ""),
            400,
        ),
        (line("GET /x HTTP/1.2"), 505),
    ] {
        let mut client = rig.client();
        for byte in bytes.as_bytes() {
            // It may have been refused and closed already.
            if client.try_send([*byte]).is_err() {
                break;
            }
        }
        assert_eq!(client.answer().status, status, "{bytes:?}");
        assert!(client.is_closed());
    }
    assert_eq!(server.requests(), 0);
}

#[test]
fn a_path_without_a_normal_form_goes_nowhere() {
    let server = Server::saying("never");
    let rig = Rig::new(&Setup::new(&[&server]));
    // Where such a request ends is beyond doubt, so the connection goes on.
    let mut client = rig.client();
    for path in ["/%zz", "/%0", "/a%"] {
        assert_eq!(client.get(path).status, 400, "{path}");
    }
    assert_eq!(rig.refusals("path"), 3);
    assert_eq!(server.requests(), 0);
}

#[test]
fn what_is_of_one_hop_ends_there() {
    let server = Server::echo();
    let rig = Rig::new(&Setup::new(&[&server]));
    let answer = rig.client().get_with(
        "/a",
        "Connection: keep-alive, X-Hop\r\nX-Hop: 1\r\nKeep-Alive: 5\r\nProxy-Connection: close\r\n\
         Proxy-Authorization: secret\r\nTE: gzip\r\nContent_Length: 5\r\nX-Kept: 1\r\n",
    );
    let head = answer.text().to_lowercase();
    for gone in [
        "x-hop",
        "keep-alive",
        "proxy-",
        "te:",
        "content_length",
        "connection",
    ] {
        assert!(!head.contains(gone), "{gone} in {head}");
    }
    assert!(head.contains("x-kept: 1\r\n"), "{head}");

    // And of the answer.
    let server = Server::start(|mut peer| {
        while peer.request().is_some() {
            peer.send(
                "HTTP/1.1 200 OK\r\nConnection: X-Hop\r\nX-Hop: 1\r\nKeep-Alive: timeout=5\r\n\
                 Content-Length: 2\r\nX-Kept: 1\r\n\r\nok",
            );
        }
    });
    let rig = Rig::new(&Setup::new(&[&server]));
    let answer = rig.get("/");
    assert_eq!(answer.header("x-kept"), Some("1"));
    for gone in ["x-hop", "keep-alive", "connection"] {
        assert_eq!(answer.header(gone), None, "{}", answer.head);
    }
}

#[test]
fn offenders_are_told_but_no_proxy_that_is_trusted() {
    let server = Server::saying("ok");
    let setup = Setup::new(&[&server])
        .proxy("workers = 1\nbans = { offences = 3, window = '60s', ttl = '120s' }");
    let rig = Rig::new(&setup);
    let offend = |rig: &Rig| assert!(rig.ask(get("")).starts_with("HTTP/1.1 400 "));
    for _ in 0..3 {
        offend(&rig);
    }
    // What is no offence does not count.
    assert!(
        rig.ask(line(&format!("GET /{} HTTP/1.1", "a".repeat(9000))))
            .contains(" 414 ")
    );
    assert!(lock(&rig.bans).is_empty());
    offend(&rig);
    until("the ban", || lock(&rig.bans).len() == 1);
    let ban = lock(&rig.bans)[0].clone();
    assert_eq!(ban.source.to_string(), "127.0.0.1");
    assert_eq!(ban.ttl.as_secs(), 120);
    assert!(
        ban.note
            .starts_with("host_missing, more than 3 in 60 s; request "),
        "{}",
        ban.note
    );

    let rig = Rig::new(&setup.listener("trusted_proxies = ['127.0.0.0/8']"));
    for _ in 0..10 {
        offend(&rig);
    }
    until("they are counted", || rig.refusals("host_missing") == 10);
    assert!(lock(&rig.bans).is_empty());
}

#[test]
fn a_network_with_a_trusted_proxy_in_it_is_not_banned() {
    let server = Server::saying("ok");
    for (trusted, banned) in [("::2/128", false), ("2001:db8::2/128", true)] {
        let setup = Setup::new(&[&server])
            .proxy("workers = 1\nbans = { offences = 1, window = '60s', ttl = '60s' }")
            .listener(format!("trusted_proxies = ['{trusted}']"));
        let mut to = None;
        let rig = Rig::with(|at, log| {
            let v6 = std::net::SocketAddr::from((std::net::Ipv6Addr::LOCALHOST, at.port()));
            to = Some(v6);
            setup.text(v6, log)
        });
        for n in 0..4 {
            let mut client = Peer::connect(to.unwrap());
            client.send(get(""));
            assert!(client.rest().starts_with(b"HTTP/1.1 400 "), "{n}");
        }
        until("they are counted", || rig.refusals("host_missing") == 4);
        let bans = lock(&rig.bans);
        assert_eq!(!bans.is_empty(), banned, "{trusted}: {bans:?}");
    }
}
