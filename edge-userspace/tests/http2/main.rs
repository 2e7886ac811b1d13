//! HTTP/2 between clients and the proxy, over the loopback interface: what honest clients get,
//! and what others do.

#[allow(dead_code, reason = "each test binary has its own use for it")]
#[path = "../http2_servers/client.rs"]
mod client;
mod limits;
mod raw;
mod rig;

use std::{
    io::{Read as _, Write as _},
    net::TcpStream,
    time::Duration,
};

use client::{answer, ask, whole};
use edge_userspace::config::proxy::listener::Limits;
use h2::{
    Reason,
    client::{SendRequest, handshake},
};
use hyper::{HeaderMap, Method, body::Bytes};
use raw::{Client, END_HEADERS, END_STREAM, Frame, GOAWAY, HEADERS, RST_STREAM, field, get};
use rig::{PATIENCE, Rig, until};
use tokio::task::JoinHandle;

type Connected = (SendRequest<Bytes>, JoinHandle<Result<(), h2::Error>>);

async fn connect(rig: &Rig) -> Connected {
    let stream = tokio::net::TcpStream::connect(rig.address).await.unwrap();
    let (client, connection) = handshake(stream).await.unwrap();
    (client, tokio::spawn(connection))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn an_answer_is_that_of_the_server() {
    let rig = Rig::new(Limits::default());
    let (client, _connection) = connect(&rig).await;
    let mut request = ask(Method::GET, "/hello?a=b");
    let fields = request.headers_mut();
    fields.append("cookie", "a=1".parse().unwrap());
    fields.append("cookie", "b=2".parse().unwrap());
    let (head, body, trailers) = answer(&client, request).await;
    assert_eq!((head.status().as_u16(), &body[..]), (200, &b"hello"[..]));
    assert_eq!(head.headers()["content-length"], "5");
    assert!(trailers.is_none());
    let seen = rig.came().head;
    assert!(seen.starts_with("GET /hello?a=b HTTP/1.1\r\n"), "{seen}");
    assert!(seen.contains("\r\nHost: a.example\r\n"), "{seen}");
    assert!(seen.contains("cookie: a=1; b=2\r\n"), "{seen}");
    assert!(
        seen.contains("\r\nX-Forwarded-For: 127.0.0.1\r\n"),
        "{seen}"
    );

    // Without a body, whatever length is told.
    let (head, body, _) = answer(&client, ask(Method::HEAD, "/hello")).await;
    assert_eq!((head.status().as_u16(), body.len()), (200, 0));
    assert_eq!(head.headers()["content-length"], "5");
    let (head, body, _) = answer(&client, ask(Method::GET, "/none")).await;
    assert_eq!((head.status().as_u16(), body.len()), (204, 0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn bodies_larger_than_any_window_pass() {
    let rig = Rig::new(Limits::default());
    let (client, _connection) = connect(&rig).await;
    let sent: Vec<u8> = (0..3_000_000_u32).map(|n| (n / 7) as u8).collect();
    for declared in [false, true] {
        let mut request = ask(Method::POST, "/echo");
        if declared {
            let fields = request.headers_mut();
            fields.insert("content-length", sent.len().into());
        }
        let mut ready = client.clone().ready().await.unwrap();
        let (response, mut send) = ready.send_request(request, false).unwrap();
        send.send_data(Bytes::from(sent.clone()), true).unwrap();
        let answered = tokio::time::timeout(PATIENCE, whole(response)).await;
        let (head, body, _) = answered.expect("in time").unwrap();
        assert_eq!(head.status(), 200);
        assert!(body == sent, "{} bytes of {}", body.len(), sent.len());
        assert!(rig.came().body == sent);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn trailers_pass_both_ways() {
    let rig = Rig::new(Limits::default());
    let (client, _connection) = connect(&rig).await;
    let mut request = ask(Method::POST, "/trailers");
    request
        .headers_mut()
        .insert("te", "trailers".parse().unwrap());
    let mut ready = client.clone().ready().await.unwrap();
    let (response, mut send) = ready.send_request(request, false).unwrap();
    send.send_data(Bytes::from_static(b"\0\0\0\0\0"), false)
        .unwrap();
    let mut fields = HeaderMap::new();
    fields.insert("x-checksum", "17".parse().unwrap());
    send.send_trailers(fields).unwrap();
    let (head, body, trailers) = whole(response).await.unwrap();
    assert_eq!((head.status().as_u16(), &body[..]), (200, &b"hello"[..]));
    assert!(!head.headers().contains_key("keep-alive"));
    let trailers = trailers.expect("trailers");
    assert_eq!(trailers["grpc-status"], "0");
    assert_eq!(trailers["grpc-message"], "fine");
    let seen = rig.came();
    assert_eq!(seen.body, b"\0\0\0\0\0");
    assert!(seen.trailers.contains("x-checksum: 17\r\n"), "{seen:?}");
    assert!(
        seen.head.to_lowercase().contains("\r\nte: trailers\r\n"),
        "{seen:?}"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_hundred_streams_at_one_time() {
    let rig = Rig::new(Limits::default());
    let (client, _connection) = connect(&rig).await;
    let mut answers = Vec::new();
    for _ in 0..100 {
        let mut ready = client.clone().ready().await.unwrap();
        let (response, _) = ready.send_request(ask(Method::GET, "/wait"), true).unwrap();
        answers.push(tokio::spawn(whole(response)));
    }
    // All of them are with the server before the first one is answered.
    let rig = tokio::task::spawn_blocking(move || {
        for _ in 0..100 {
            rig.came();
        }
        for _ in 0..100 {
            rig.go.send(()).unwrap();
        }
        rig
    });
    let _rig = rig.await.unwrap();
    for answer in answers {
        let (head, body, _) = answer.await.unwrap().unwrap();
        assert_eq!((head.status().as_u16(), &body[..]), (200, &b"waited"[..]));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_stream_that_is_reset_ends_the_work_behind_it() {
    let rig = Rig::new(Limits::default());
    let (client, _connection) = connect(&rig).await;
    for path in ["/hang", "/begin"] {
        let mut ready = client.clone().ready().await.unwrap();
        let (response, mut send) = ready.send_request(ask(Method::GET, path), true).unwrap();
        rig.came();
        if path == "/begin" {
            let mut body = response.await.unwrap().into_body();
            assert_eq!(body.data().await.unwrap().unwrap(), "begun");
        }
        send.send_reset(Reason::CANCEL);
        rig.gone();
        // The connection goes on.
        let (head, ..) = answer(&client, ask(Method::GET, "/hello")).await;
        assert_eq!(head.status(), 200);
        rig.came();
    }
    until("two that were counted", || {
        rig.refusals().get("client_gone") == Some(&2)
    });
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn an_answer_that_breaks_is_no_whole_answer() {
    let rig = Rig::new(Limits::default());
    let (client, _connection) = connect(&rig).await;
    let mut ready = client.clone().ready().await.unwrap();
    let (response, _) = ready
        .send_request(ask(Method::GET, "/break"), true)
        .unwrap();
    let error = whole(response).await.unwrap_err();
    assert_eq!(error.reason(), Some(Reason::INTERNAL_ERROR), "{error}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_body_is_limited_though_its_length_is_not_told() {
    let rig = Rig::new(Limits {
        body_bytes: 1000,
        ..Limits::default()
    });
    let (client, _connection) = connect(&rig).await;
    for declared in [false, true] {
        let mut request = ask(Method::POST, "/echo");
        if declared {
            request.headers_mut().insert("content-length", 1001.into());
        }
        let mut ready = client.clone().ready().await.unwrap();
        let (response, mut send) = ready.send_request(request, false).unwrap();
        // It may have been refused already.
        let _ = send.send_data(Bytes::from(vec![b'x'; 1001]), true);
        let response = tokio::time::timeout(PATIENCE, response).await.unwrap();
        assert_eq!(response.unwrap().status(), 413);
    }
    assert_eq!(rig.refusals()["body_too_large"], 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_head_is_limited() {
    let rig = Rig::new(Limits::default());
    let (client, _connection) = connect(&rig).await;
    // What is a little too large, we refuse, and what is far too large, the crate.
    for (counted, bytes, is_end) in [(1, 17_000, true), (2, 50_000, true), (3, 50_000, false)] {
        let mut request = ask(Method::POST, "/hello");
        let value = "x".repeat(bytes).parse().unwrap();
        request.headers_mut().insert("x-large", value);
        let mut ready = client.clone().ready().await.unwrap();
        let (response, _send) = ready.send_request(request, is_end).unwrap();
        let response = tokio::time::timeout(PATIENCE, response).await.unwrap();
        assert_eq!(response.unwrap().status(), 431, "{bytes}");
        until("it is counted", || {
            rig.refusals() == [("head_too_large".to_owned(), counted)].into()
        });
    }
    // It is no offence, and the connection goes on.
    let (head, ..) = answer(&client, ask(Method::GET, "/hello")).await;
    assert_eq!(head.status(), 200);
    assert!(rig.bans.lock().unwrap().is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_connection_ends_gracefully_after_its_last_request() {
    let rig = Rig::new(Limits {
        requests_per_connection: 2,
        ..Limits::default()
    });
    let (client, connection) = connect(&rig).await;
    for _ in 0..2 {
        let (head, ..) = answer(&client, ask(Method::GET, "/hello")).await;
        assert_eq!(head.status(), 200);
    }
    let ended = tokio::time::timeout(PATIENCE, connection).await;
    ended.expect("an end").unwrap().expect("no error");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_connection_without_streams_ends() {
    let rig = Rig::new(Limits {
        idle_timeout: Duration::from_millis(100),
        ..Limits::default()
    });
    let (client, connection) = connect(&rig).await;
    answer(&client, ask(Method::GET, "/hello")).await;
    let ended = tokio::time::timeout(PATIENCE, connection).await;
    ended.expect("an end").unwrap().expect("no error");
    assert_eq!(rig.listener().idle_timeouts, 1);
    assert!(rig.refusals().is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn what_is_under_way_ends_when_the_proxy_does() {
    let mut rig = Rig::new(Limits::default());
    let (client, connection) = connect(&rig).await;
    let mut ready = client.clone().ready().await.unwrap();
    let (response, _) = ready.send_request(ask(Method::GET, "/wait"), true).unwrap();
    let answered = tokio::spawn(whole(response));
    let stopping = tokio::task::spawn_blocking(move || {
        rig.came();
        let go = rig.go.clone();
        let stopped = std::thread::spawn(move || rig.tier.stop());
        (go, stopped)
    });
    let (go, stopped) = stopping.await.unwrap();
    // It is told not to open more, while the last one is under way.
    let closed = async {
        let mut client = client;
        while client.clone().ready().await.is_ok() {
            tokio::task::yield_now().await;
            client = client.clone();
        }
    };
    tokio::time::timeout(PATIENCE, closed)
        .await
        .expect("GOAWAY");
    go.send(()).unwrap();
    let (head, body, _) = answered.await.unwrap().unwrap();
    assert_eq!((head.status().as_u16(), &body[..]), (200, &b"waited"[..]));
    connection.await.unwrap().expect("no error");
    stopped.join().unwrap();
}

#[test]
fn http1_is_spoken_at_the_same_address() {
    let rig = Rig::new(Limits::default());
    for request in [
        "GET /hello HTTP/1.1\r\nHost: example.com\r\nConnection: close\r\n\r\n",
        "PROPFIND /hello HTTP/1.1\r\nHost: example.com\r\nConnection: close\r\n\r\n",
    ] {
        let mut client = TcpStream::connect(rig.address).unwrap();
        client.set_read_timeout(Some(PATIENCE)).unwrap();
        // The first bytes say nothing yet.
        let (first, rest) = request.split_at(2);
        client.write_all(first.as_bytes()).unwrap();
        client.write_all(rest.as_bytes()).unwrap();
        let mut answer = String::new();
        client.read_to_string(&mut answer).unwrap();
        assert!(answer.starts_with("HTTP/1.1 200 OK\r\n"), "{answer}");
        assert!(answer.ends_with("hello"), "{answer}");
    }
}

#[test]
fn what_only_lines_would_confuse_is_refused() {
    let rig = Rig::new(Limits {
        h2_resets_per_second: 1000,
        ..Limits::default()
    });
    let smuggled: &[u8] = b"a\r\nHost: other.example";
    let pseudo = |name: &[u8], value: &[u8]| [get("/"), field(name, value)].concat();
    let mut client = Client::new(rig.address);
    let valid = Frame::new(HEADERS, END_HEADERS | END_STREAM, 1, &get("/"));
    client.send(&[valid]).unwrap();
    let first = client.next_of(&[HEADERS, RST_STREAM, GOAWAY]).unwrap();
    assert_eq!((first.kind, first.payload[0]), (HEADERS, 0x88), "200");
    rig.came();
    let vectors: [(&str, Vec<u8>); 22] = [
        ("connection", pseudo(b"connection", b"close")),
        ("keep-alive", pseudo(b"keep-alive", b"timeout=5")),
        ("proxy-connection", pseudo(b"proxy-connection", b"close")),
        ("upgrade", pseudo(b"upgrade", b"websocket")),
        ("chunked", pseudo(b"transfer-encoding", b"chunked")),
        ("identity", pseudo(b"transfer-encoding", b"identity")),
        ("te", pseudo(b"te", b"gzip")),
        ("http2-settings", pseudo(b"http2-settings", b"AAA")),
        ("line end in a value", pseudo(b"x-a", smuggled)),
        ("LF in a value", pseudo(b"x-a", b"a\nb: c")),
        ("NUL in a value", pseudo(b"x-a", b"a\0b")),
        ("line end in a name", pseudo(b"x-a: b\r\nx-b", b"c")),
        ("space in a name", pseudo(b"x a", b"b")),
        ("colon in a name", pseudo(b"x-a:", b"b")),
        ("upper case", pseudo(b"X-A", b"b")),
        ("empty name", pseudo(b"", b"b")),
        (
            "pseudo-field after a field",
            [
                field(b":method", b"GET"),
                field(b":scheme", b"http"),
                field(b"x-a", b"b"),
                field(b":path", b"/"),
                field(b":authority", b"example.com"),
            ]
            .concat(),
        ),
        ("two paths", pseudo(b":path", b"/other")),
        ("another host", pseudo(b"host", b"other.example")),
        ("a body that does not come", pseudo(b"content-length", b"5")),
        (
            "two lengths",
            [
                pseudo(b"content-length", b"0"),
                field(b"content-length", b"5"),
            ]
            .concat(),
        ),
        (
            "line end in the path",
            [
                field(b":method", b"GET"),
                field(b":scheme", b"http"),
                field(b":path", b"/ HTTP/1.1\r\nHost: a\r\n\r\nGET /b"),
                field(b":authority", b"example.com"),
            ]
            .concat(),
        ),
    ];
    for (offences, (what, block)) in (1..).zip(vectors) {
        let mut client = Client::new(rig.address);
        let head = Frame::new(HEADERS, END_HEADERS | END_STREAM, 1, &block);
        client.send(&[head]).unwrap();
        let refused = client.next_of(&[HEADERS, RST_STREAM, GOAWAY]);
        let refused = refused.unwrap_or_else(|| panic!("{what}: nothing"));
        match refused.kind {
            // 400, as it stands in the static table (RFC 7541, appendix A).
            HEADERS => assert_eq!(refused.payload[0], 0x8c, "{what}: {refused:?}"),
            _ => assert!(matches!(refused.code(), Some(1 | 9)), "{what}: {refused:?}"),
        }
        assert!(rig.told.try_recv().is_err(), "{what} came to the server");
        // Whoever refused it: an offence, one of which is borne.
        until(what, || rig.refusals().values().sum::<u64>() == offences);
        until(what, || {
            rig.bans.lock().unwrap().len() as u64 == offences / 2
        });
    }
}
