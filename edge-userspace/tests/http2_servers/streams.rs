//! Requests and answers as streams of connections that they share.

use std::{collections::HashSet, future::poll_fn, sync::atomic::Ordering::SeqCst, time::Duration};

use h2::{Reason, server::Builder};
use hyper::{HeaderMap, Method, body::Bytes};
use tokio_rustls::rustls::{ServerConfig, crypto::aws_lc_rs, pki_types::PrivateKeyDer};

use super::{
    client::{answer, ask, call, connect, send, whole},
    rig::{Rig, Setup, until},
    server::{Server, pattern},
};

const UPSTREAM: &str = "protocol = 'http2'";
const LISTENER: &str = "http2 = true\nlimits = { body_bytes = 0 }";

fn setup(server: &Server) -> Setup {
    let mut setup = Setup::new(&[]).upstream(UPSTREAM).listener(LISTENER);
    setup.servers = vec![server.address.clone()];
    setup
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_call_of_grpc_is_answered() {
    let server = Server::start();
    let rig = Rig::new(&setup(&server));
    let client = connect(rig.port.at).await;
    let (response, mut body) = send(&client, call("/unary"), false).await;
    body.send_data(Bytes::from_static(b"\0\0\0\0\x05hello"), false)
        .unwrap();
    let mut fields = HeaderMap::new();
    fields.insert("x-checksum", "17".parse().unwrap());
    body.send_trailers(fields).unwrap();
    let (head, body, trailers) = whole(response).await.unwrap();
    assert_eq!(head.status(), 200);
    assert_eq!(head.headers()["content-type"], "application/grpc+proto");
    assert_eq!(body, b"\0\0\0\0\x05hello");
    let trailers = trailers.expect("trailers");
    assert_eq!(trailers["grpc-status"], "0");
    assert_eq!(trailers["x-checksum"], "17");
    assert_eq!(server.connections(), 1);
    // An answer that is but trailers has no length that nobody told.
    let (head, body, _) = answer(&client, call("/trailers-only")).await;
    assert_eq!(head.headers()["grpc-status"], "5");
    assert!(body.is_empty());
    assert!(!head.headers().contains_key("content-length"), "{head:?}");
    let line = rig.logged("/unary");
    assert_eq!(
        (&line["status"], &line["tries"]),
        (&200.into(), &1.into()),
        "{line}"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_head_is_that_of_the_client_and_ours() {
    let server = Server::start();
    let routes = "[[route]]\nname = 'all'\nupstream = 'app'\n\
                  request_headers = { set = { x-set = 'by-route' }, remove = ['x-gone'] }\n";
    let rig = Rig::new(&setup(&server).routes(routes));
    let client = connect(rig.port.at).await;
    let mut request = ask(Method::GET, "/seen?a=b");
    let fields = request.headers_mut();
    fields.insert("te", "trailers".parse().unwrap());
    fields.insert("x-own", "kept".parse().unwrap());
    fields.insert("x-gone", "gone".parse().unwrap());
    fields.append("cookie", "a=1".parse().unwrap());
    fields.append("cookie", "b=2".parse().unwrap());
    let (_, body, _) = answer(&client, request).await;
    let seen = String::from_utf8(body).unwrap();
    assert!(
        seen.starts_with("GET http://a.example/seen?a=b HTTP/2.0\n"),
        "{seen}"
    );
    for line in [
        "te: trailers",
        "x-own: kept",
        "x-set: by-route",
        "cookie: a=1; b=2",
        "x-forwarded-for: 127.0.0.1",
        "x-forwarded-proto: http",
        "x-forwarded-host: a.example",
    ] {
        assert!(seen.contains(&format!("\n{line}\n")), "{line}: {seen}");
    }
    assert!(seen.contains("\ntraceparent: 00-") && seen.contains("\nx-request-id: "));
    assert!(
        !seen.contains("x-gone") && !seen.contains("\nhost:"),
        "{seen}"
    );

    // HTTP/1.1 likewise: what is of its connection ends here, and a wish for another protocol.
    let mut client = rig.client();
    let answer = client.get_with(
        "/seen?q=<a>",
        "Connection: x-hop, upgrade\r\nX-Hop: 1\r\nUpgrade: websocket\r\nKeep-Alive: 5\r\n",
    );
    let seen = answer.text().to_ascii_lowercase();
    assert_eq!(answer.status, 200);
    assert!(
        seen.starts_with("get http://a.example/seen?q=%3ca%3e http/2.0\n"),
        "{seen}"
    );
    for name in ["connection", "x-hop", "upgrade", "keep-alive", "te"] {
        assert!(!seen.contains(&format!("\n{name}:")), "{name}: {seen}");
    }
    assert_eq!(answer.header("upgrade"), None);
    // The connection goes on.
    assert_eq!(client.get("/seen").status, 200);
}

#[test]
fn clients_of_http1_are_answered() {
    let server = Server::start();
    let rig = Rig::new(&setup(&server));
    let mut client = rig.client();
    client.send("HEAD /head HTTP/1.1\r\nHost: a.example\r\n\r\n");
    let head = client.answer_to("HEAD");
    assert_eq!(head.status, 200);
    assert_ne!(head.header("content-length"), None);
    assert_eq!(client.get("/none").status, 204);
    assert_eq!(client.get("/interim").status, 103);
    assert_eq!(client.answer().text(), "at last");
    let empty = client.get("/trailers-only");
    assert_eq!(empty.header("content-length"), Some("0"));
    // Without a length, in chunks, and trailers behind them.
    client.send(
        "POST /unary HTTP/1.1\r\nHost: a.example\r\nTransfer-Encoding: chunked\r\nTE: trailers\r\n\
         Connection: te\r\n\r\n5\r\nhello\r\n0\r\nx-checksum: 17\r\n\r\n",
    );
    let head = client.head().unwrap();
    assert!(head.contains("Transfer-Encoding: chunked"), "{head}");
    let body = client.take_until(b"0\r\n").unwrap();
    assert_eq!(body, b"5\r\nhello\r\n0\r\n");
    let trailers = String::from_utf8(client.take_until(b"\r\n\r\n").unwrap()).unwrap();
    assert!(trailers.contains("x-checksum: 17\r\n"), "{trailers}");
    assert!(trailers.contains("grpc-status: 0\r\n"), "{trailers}");
    // Expect is answered here.
    client.send(
        "POST /unary HTTP/1.1\r\nHost: a.example\r\nContent-Length: 2\r\n\
         Expect: 100-continue\r\n\r\n",
    );
    assert_eq!(client.answer().status, 100);
    client.send("ok");
    assert_eq!(client.answer().text(), "ok");
    assert_eq!(server.connections(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn interim_answers_go_on() {
    let server = Server::start();
    let rig = Rig::new(&setup(&server));
    let client = connect(rig.port.at).await;
    for _ in 0..2 {
        let (mut response, _) = send(&client, ask(Method::GET, "/interim"), true).await;
        let interim = poll_fn(|cx| response.poll_informational(cx)).await;
        let interim = interim.expect("an interim answer").unwrap();
        assert_eq!(interim.status(), 103);
        assert_eq!(interim.headers()["link"], "</a>");
        let (head, body, _) = whole(response).await.unwrap();
        assert_eq!(head.status(), 200);
        assert!(!head.headers().contains_key("link"));
        assert_eq!(body, b"at last");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn requests_come_as_far_as_their_client_lets_them() {
    let server = Server::start();
    let rig = Rig::new(&setup(&server));
    let client = connect(rig.port.at).await;
    for (method, left, told) in [
        (Method::OPTIONS, "7", Some("\nmax-forwards: 6\n")),
        (Method::TRACE, "1", Some("\nmax-forwards: 0\n")),
        (Method::GET, "0", Some("\nmax-forwards: 0\n")),
        (Method::OPTIONS, "0", None),
    ] {
        let mut request = ask(method, "/seen");
        let fields = request.headers_mut();
        fields.insert("max-forwards", left.parse().unwrap());
        let (head, body, _) = answer(&client, request).await;
        let seen = String::from_utf8(body).unwrap();
        assert_eq!(head.status(), 200);
        match told {
            Some(told) => assert!(seen.contains(told), "{seen}"),
            None => assert_eq!(seen, ""),
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn large_bodies_pass_whole() {
    let server = Server::start();
    let rig = Rig::new(&setup(&server));
    let client = connect(rig.port.at).await;
    let sent = pattern(3_000_000);
    for declared in [false, true] {
        let mut request = call("/unary");
        if declared {
            let fields = request.headers_mut();
            fields.insert("content-length", sent.len().into());
        }
        let (response, mut body) = send(&client, request, false).await;
        body.send_data(Bytes::from(sent.clone()), true).unwrap();
        let (head, body, trailers) = whole(response).await.unwrap();
        assert_eq!(head.headers()["content-length"], "3000000");
        assert!(body == sent, "{} bytes", body.len());
        // Behind a body whose length was told as well.
        assert_eq!(trailers.expect("trailers")["grpc-status"], "0");
    }
    let (_, body, _) = answer(&client, ask(Method::GET, "/large")).await;
    assert!(body == pattern(5_000_000), "{} bytes", body.len());
    // HTTP/1.1.
    let rest = tokio::task::spawn_blocking(move || {
        let mut client = rig.client();
        let head = "POST /unary HTTP/1.1\r\nHost: a.example\r\nContent-Length: 3000000\r\n\r\n";
        client.send(head);
        client.send(&sent);
        let answer = client.answer();
        assert!(answer.body == sent, "{} bytes", answer.body.len());
        assert!(client.get("/large").body == pattern(5_000_000));
    });
    rest.await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn both_ways_go_on_at_the_same_time() {
    let server = Server::start();
    let rig = Rig::new(&setup(&server));
    let client = connect(rig.port.at).await;
    let (response, mut body) = send(&client, call("/echo"), false).await;
    let mut answer = response.await.unwrap().into_body();
    for n in 0..100_u8 {
        body.send_data(Bytes::from(vec![n; 10]), false).unwrap();
        let mut came = Vec::new();
        while came.len() < 10 {
            let data = answer.data().await.unwrap().unwrap();
            answer.flow_control().release_capacity(data.len()).unwrap();
            came.extend_from_slice(&data);
        }
        assert_eq!(came, vec![n; 10]);
    }
    body.send_trailers(HeaderMap::new()).unwrap();
    while let Some(data) = answer.data().await {
        assert!(data.unwrap().is_empty());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_server_that_takes_nothing_holds_its_client_back() {
    const ALL: usize = 64 << 20;
    let mut server = Server::start();
    let rig = Rig::new(&setup(&server));
    let client = connect(rig.port.at).await;
    let (response, mut body) = send(&client, call("/slow"), false).await;
    let mut sent = 0;
    let mut push = async |body: &mut h2::SendStream<Bytes>, most: usize| {
        while sent < most {
            body.reserve_capacity(most - sent);
            let room = poll_fn(|cx| body.poll_capacity(cx));
            // Nothing more fits when there is none for so long; if it takes longer, less is seen.
            let Ok(room) = tokio::time::timeout(Duration::from_millis(500), room).await else {
                return sent;
            };
            let room = room.unwrap().unwrap();
            let data = Bytes::from(vec![b'x'; room]);
            body.send_data(data, false).unwrap();
            sent += room;
        }
        sent
    };
    let held = push(&mut body, ALL).await;
    assert_eq!(server.tells().await, "came");
    assert!(held < 4 << 20, "{held} bytes are on their way");
    // Others are not held back with it.
    let (head, ..) = answer(&client, ask(Method::GET, "/seen")).await;
    assert_eq!(head.status(), 200);
    server.counts.go.add_permits(1);
    let mut all = held;
    while all < ALL {
        all = push(&mut body, ALL).await;
    }
    body.send_data(Bytes::new(), true).unwrap();
    let (_, told, _) = whole(response).await.unwrap();
    assert_eq!(String::from_utf8(told).unwrap(), ALL.to_string());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_client_that_takes_nothing_holds_nobody_else_back() {
    let server = Server::start();
    let rig = Rig::new(&setup(&server));
    let mut held = Vec::new();
    for _ in 0..20 {
        let client = connect(rig.port.at).await;
        let (response, _) = send(&client, ask(Method::GET, "/large"), true).await;
        // Its window is never opened again.
        held.push((response.await.unwrap(), client));
    }
    let client = connect(rig.port.at).await;
    let (_, body, _) = answer(&client, ask(Method::GET, "/large")).await;
    assert!(body == pattern(5_000_000));
    assert_eq!(server.connections(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn many_requests_share_few_connections() {
    let server = Server::start();
    let listener = "http2 = true\nlimits = { h2_streams = 250 }";
    let rig = Rig::new(&setup(&server).listener(listener));
    let client = connect(rig.port.at).await;
    let mut answers = Vec::new();
    for _ in 0..250 {
        let (response, _) = send(&client, ask(Method::GET, "/wait"), true).await;
        answers.push(tokio::spawn(whole(response)));
    }
    until("all are with the server", || server.requests() == 250);
    assert_eq!(server.connections(), 3, "100 on each");
    server.counts.go.add_permits(250);
    for answer in answers {
        let (head, body, _) = answer.await.unwrap().unwrap();
        assert_eq!((head.status().as_u16(), &body[..]), (200, &b"waited"[..]));
    }
    assert_eq!(rig.app().connects, 3);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn no_more_streams_than_a_server_takes() {
    let mut builder = Builder::new();
    builder.max_concurrent_streams(2);
    let server = Server::with(&builder);
    let upstream = format!(
        "{UPSTREAM}\nkeep_alive.connections = 3\nretries.tries = 1\ntimeouts.connect = '15s'"
    );
    let rig = Rig::new(&setup(&server).upstream(upstream));
    let client = connect(rig.port.at).await;
    let mut answers = Vec::new();
    for _ in 0..20 {
        let (response, _) = send(&client, ask(Method::POST, "/wait"), true).await;
        answers.push(tokio::spawn(whole(response)));
    }
    until("as many as may be", || server.requests() == 6);
    assert_eq!(server.connections(), 3);
    // The others wait for a place, one after the other.
    for answered in 7..=20 {
        assert_eq!(server.requests(), answered - 1);
        server.counts.go.add_permits(1);
        until("the next one", || server.requests() == answered);
    }
    server.counts.go.add_permits(6);
    for answer in answers {
        assert_eq!(answer.await.unwrap().unwrap().0.status(), 200);
    }
    assert_eq!(server.connections(), 3);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn bodies_go_on_the_last_stream_that_there_may_be() {
    let mut builder = Builder::new();
    builder.max_concurrent_streams(1);
    let server = Server::with(&builder);
    let upstream = format!(
        "{UPSTREAM}\nkeep_alive.connections = 1\nretries.tries = 1\ntimeouts.connect = '15s'"
    );
    let rig = Rig::new(&setup(&server).upstream(upstream));
    let client = connect(rig.port.at).await;
    for _ in 0..4 {
        let mut answers = Vec::new();
        for _ in 0..20 {
            let (response, mut body) = send(&client, call("/unary"), false).await;
            body.send_data(Bytes::from_static(b"\0\0\0\0\x05hello"), true)
                .unwrap();
            answers.push(tokio::spawn(whole(response)));
        }
        for answer in answers {
            let (head, body, trailers) = answer.await.unwrap().unwrap();
            let trailers = trailers.unwrap_or_else(|| head.headers().clone());
            assert_eq!(trailers["grpc-status"], "0", "{head:?}");
            assert_eq!(body, b"\0\0\0\0\x05hello");
        }
    }
    assert_eq!(server.connections(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_client_that_goes_away_ends_its_stream_alone() {
    let mut server = Server::start();
    let rig = Rig::new(&setup(&server));
    let client = connect(rig.port.at).await;
    for path in ["/hang", "/begin"] {
        let (response, mut body) = send(&client, ask(Method::GET, path), true).await;
        assert_eq!(server.tells().await, "came");
        let begun = if path == "/begin" {
            Some(response.await.unwrap())
        } else {
            None
        };
        body.send_reset(Reason::CANCEL);
        assert_eq!(server.tells().await, "CANCEL");
        drop(begun);
    }
    // HTTP/1.1 does so by hanging up.
    let address = rig.port.at;
    let hung_up = tokio::task::spawn_blocking(move || {
        let mut client = super::rig::Peer::connect(address);
        client.send("GET /begin HTTP/1.1\r\nHost: a.example\r\n\r\n");
        client.take_until(b"begun").unwrap();
    });
    hung_up.await.unwrap();
    assert_eq!(server.tells().await, "came");
    assert_eq!(server.tells().await, "CANCEL");
    let (head, ..) = answer(&client, ask(Method::GET, "/seen")).await;
    assert_eq!(head.status(), 200);
    assert_eq!(server.connections(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn an_answer_that_is_reset_is_no_whole_answer() {
    let server = Server::start();
    let rig = Rig::new(&setup(&server));
    let client = connect(rig.port.at).await;
    let (response, _) = send(&client, ask(Method::GET, "/half"), true).await;
    let mut body = response.await.unwrap().into_body();
    assert_eq!(body.data().await.unwrap().unwrap(), "half");
    server.counts.go.add_permits(1);
    let error = body.data().await.unwrap().unwrap_err();
    assert_eq!(error.reason(), Some(Reason::INTERNAL_ERROR), "{error}");
    let (address, counts) = (rig.port.at, server.counts.clone());
    let cut = tokio::task::spawn_blocking(move || {
        let mut client = super::rig::Peer::connect(address);
        client.send("GET /half HTTP/1.1\r\nHost: a.example\r\n\r\n");
        let head = client.head().unwrap();
        assert!(head.contains("Content-Length: 100"), "{head}");
        assert_eq!(client.take(4), b"half");
        counts.go.add_permits(1);
        assert!(client.is_closed());
    });
    cut.await.unwrap();
    until("both are counted", || rig.refusals("answer_broke") == 2);
    let (head, ..) = answer(&client, ask(Method::GET, "/seen")).await;
    assert_eq!(head.status(), 200);
    assert_eq!(server.connections(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn an_answer_may_come_before_the_request_has_ended() {
    let server = Server::start();
    let rig = Rig::new(&setup(&server));
    let client = connect(rig.port.at).await;
    let (response, mut body) = send(&client, call("/early"), false).await;
    body.send_data(Bytes::from(vec![0; 100_000]), false)
        .unwrap();
    let (head, told, _) = whole(response).await.unwrap();
    assert_eq!(
        (head.status().as_u16(), &told[..]),
        (413, &b"too large"[..])
    );
    let (head, ..) = answer(&client, ask(Method::GET, "/seen")).await;
    assert_eq!(head.status(), 200);
    assert_eq!(server.connections(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_connection_without_requests_ends() {
    let server = Server::start();
    let upstream = format!("{UPSTREAM}\nkeep_alive.idle = '100ms'");
    let rig = Rig::new(&setup(&server).upstream(upstream));
    let client = connect(rig.port.at).await;
    for round in 1..=2 {
        answer(&client, ask(Method::GET, "/seen")).await;
        until("its end", || server.counts.ended.load(SeqCst) == round);
        assert_eq!(server.connections(), round);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn what_is_under_way_ends_when_the_proxy_does() {
    let server = Server::start();
    let mut rig = Rig::new(&setup(&server));
    let client = connect(rig.port.at).await;
    let (response, _) = send(&client, ask(Method::GET, "/wait"), true).await;
    let answered = tokio::spawn(whole(response));
    until("it is with the server", || server.requests() == 1);
    let stopping = tokio::task::spawn_blocking(move || rig.tier.stop());
    server.counts.go.add_permits(1);
    let (_, body, _) = answered.await.unwrap().unwrap();
    assert_eq!(body, b"waited");
    stopping.await.unwrap();
    until("no connection is left", || {
        server.counts.ended.load(SeqCst) == 1
    });
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn calls_that_are_refused_here_get_a_status_of_grpc() {
    let server = Server::start();
    let gone = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let mut setup = setup(&server);
    setup.servers = vec![gone.local_addr().unwrap().to_string()];
    drop(gone);
    let rig = Rig::new(&setup);
    let client = connect(rig.port.at).await;
    let (head, body, _) = answer(&client, call("/unary")).await;
    let fields = head.headers();
    assert_eq!(head.status(), 200);
    assert_eq!(fields["content-type"], "application/grpc");
    assert_eq!(fields["grpc-status"], "14");
    let message = fields["grpc-message"].to_str().unwrap();
    assert!(message.starts_with("502 Bad Gateway"), "{message}");
    assert!(body.is_empty());
    let line = rig.logged("/unary");
    assert_eq!(line["reason"], "connect_failed", "{line}");
    // Others get it as ever.
    let (head, ..) = answer(&client, ask(Method::GET, "/seen")).await;
    assert_eq!(head.status(), 502);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_server_may_be_a_unix_socket() {
    let directory = tempfile::tempdir().unwrap();
    let server = Server::unix(&directory.path().join("app.sock"));
    let rig = Rig::new(&setup(&server));
    let client = connect(rig.port.at).await;
    let (head, ..) = answer(&client, ask(Method::GET, "/seen")).await;
    assert_eq!(head.status(), 200);
}

/// TLS of a server that offers these protocols.
pub(crate) fn tls(protocols: &[&[u8]]) -> ServerConfig {
    let own = rcgen::generate_simple_self_signed(vec!["a.example".to_owned()]).unwrap();
    let key = PrivateKeyDer::Pkcs8(own.signing_key.serialize_der().into());
    let provider = std::sync::Arc::new(aws_lc_rs::default_provider());
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![own.cert.der().clone()], key)
        .unwrap();
    config.alpn_protocols = protocols.iter().map(|name| name.to_vec()).collect();
    config
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn http2_is_agreed_on_with_tls_or_not_spoken() {
    let upstream = format!("{UPSTREAM}\ntls.verify = false");
    let agreed = Server::tls(tls(&[b"http/1.1", b"h2"]));
    let rig = Rig::new(&setup(&agreed).upstream(&upstream));
    let client = connect(rig.port.at).await;
    let (head, body, _) = answer(&client, ask(Method::GET, "/seen")).await;
    assert_eq!(head.status(), 200);
    let seen = String::from_utf8(body).unwrap();
    assert!(seen.starts_with("GET https://a.example/seen "), "{seen}");
    assert!(seen.contains("\nx-forwarded-proto: http\n"), "{seen}");
    // A handshake that fails, and one in which nothing is agreed on.
    for protocols in [&[b"http/1.1".as_slice()][..], &[]] {
        let server = Server::tls(tls(protocols));
        let rig = Rig::new(&setup(&server).upstream(&upstream));
        let client = connect(rig.port.at).await;
        let (head, ..) = answer(&client, ask(Method::GET, "/seen")).await;
        assert_eq!(head.status(), 502);
        assert_eq!(rig.logged("/seen")["reason"], "no_http2");
        assert_eq!(rig.refusals("no_http2"), 1);
        assert!(rig.app().connect_failures > 0);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn sessions_and_servers_are_chosen_for_each_request() {
    let servers = [Server::start(), Server::start()];
    let mut setup = setup(&servers[0]);
    setup.servers = servers.iter().map(|s| s.address.clone()).collect();
    let rig = Rig::new(&setup);
    let client = connect(rig.port.at).await;
    for n in 0..10 {
        let path = format!("/seen{n}");
        answer(&client, ask(Method::GET, &path)).await;
    }
    let requests: Vec<usize> = servers.iter().map(Server::requests).collect();
    assert_eq!(requests, [5, 5]);
    until("ten lines", || rig.lines().len() == 10);
    let lines = rig.lines();
    let named: HashSet<&str> = lines.iter().filter_map(|l| l["server"].as_str()).collect();
    assert_eq!(named.len(), 2);
}

/// A client that takes so few bytes of an answer before it looks at it.
async fn slow(to: std::net::SocketAddr) -> h2::client::SendRequest<Bytes> {
    let stream = tokio::net::TcpStream::connect(to).await.unwrap();
    let mut builder = h2::client::Builder::new();
    builder.initial_window_size(16);
    let (client, connection) = builder.handshake(stream).await.unwrap();
    tokio::spawn(connection);
    client
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_client_that_takes_its_answer_slowly_holds_no_place() {
    let mut builder = Builder::new();
    builder.max_concurrent_streams(1);
    let server = Server::with(&builder);
    let upstream = format!("{UPSTREAM}\nkeep_alive.connections = 1\nretries.tries = 1");
    let rig = Rig::new(&setup(&server).upstream(upstream));
    let mut held = Vec::new();
    for n in 0..5 {
        let client = slow(rig.port.at).await;
        let (response, mut body) = send(&client, call("/unary"), false).await;
        body.send_data(Bytes::from(vec![n; 50_000]), true).unwrap();
        // The server has said all of it.
        held.push((response.await.unwrap(), client));
    }
    let client = connect(rig.port.at).await;
    let (head, ..) = answer(&client, ask(Method::GET, "/seen")).await;
    assert_eq!(head.status(), 200);
    // Each gets the whole of its own.
    for (n, (response, _client)) in held.into_iter().enumerate() {
        let mut body = response.into_body();
        let mut came = Vec::new();
        while let Some(data) = body.data().await {
            let data = data.unwrap();
            body.flow_control().release_capacity(data.len()).unwrap();
            came.extend_from_slice(&data);
        }
        assert!(came == vec![n as u8; 50_000], "{} bytes", came.len());
        let trailers = body.trailers().await.unwrap().expect("trailers");
        assert_eq!(trailers["grpc-status"], "0");
    }
    assert_eq!(server.connections(), 1);
}
