//! Servers that send whatever frames a test wants.

use std::{
    io::Read as _,
    net::{TcpListener, TcpStream},
    sync::mpsc::{Receiver, sync_channel},
    thread,
};

use hyper::{Method, body::Bytes};

use super::{
    client::{answer, ask, call, connect, send, whole},
    raw::{
        Client, END_HEADERS, END_STREAM, Frame, GOAWAY, HEADERS, RST_STREAM, SETTINGS, field, get,
    },
    rig::{PATIENCE, Rig, Server as Http1, Setup, until},
};

const DATA: u8 = 0;
const PING: u8 = 6;
/// `:status: 200` (RFC 7541, appendix A).
const OK: &[u8] = &[0x88];

/// A server whose connections come out of a channel.
fn connections() -> (String, Receiver<TcpStream>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let (give, take) = sync_channel(16);
    thread::spawn(move || {
        for stream in listener.incoming() {
            if give.send(stream.unwrap()).is_err() {
                return;
            }
        }
    });
    (address, take)
}

fn next(connections: &Receiver<TcpStream>) -> Client {
    next_with(connections, &[])
}

/// The next one, to which the server says these settings.
fn next_with(connections: &Receiver<TcpStream>, settings: &[u8]) -> Client {
    let stream = connections.recv_timeout(PATIENCE).expect("a connection");
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    let mut server = Client(stream);
    // A client that is gone shows when it is read from.
    let _ = server.0.read_exact(&mut [0; 24]);
    let _ = server.send(&[Frame::new(SETTINGS, 0, 0, settings)]);
    server
}

fn rig(address: &str, upstream: &str) -> Rig {
    let mut setup = Setup::new(&[])
        .listener("http2 = true")
        .upstream(format!("protocol = 'http2'\n{upstream}"));
    setup.servers = vec![address.to_owned()];
    Rig::new(&setup)
}

fn head(stream: u32, flags: u8, block: &[u8]) -> Frame {
    Frame::new(HEADERS, END_HEADERS | flags, stream, block)
}

/// The stream of the next request.
fn request(server: &mut Client) -> u32 {
    server.next_of(&[HEADERS]).expect("a request").stream
}

/// The pseudo-fields of a POST.
fn post(path: &str) -> Vec<u8> {
    [
        field(b":method", b"POST"),
        field(b":scheme", b"http"),
        field(b":path", path.as_bytes()),
        field(b":authority", b"a.example"),
    ]
    .concat()
}

fn goaway(last: u32) -> Frame {
    Frame::new(GOAWAY, 0, 0, &[last.to_be_bytes(), [0; 4]].concat())
}

fn reset(stream: u32, code: u32) -> Frame {
    Frame::new(RST_STREAM, 0, stream, &code.to_be_bytes())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_request_is_lost_when_a_server_says_goodbye() {
    let (address, take) = connections();
    // None of them counts as a retry.
    let rig = rig(&address, "retries.tries = 1");
    let server = tokio::task::spawn_blocking(move || {
        let mut old = next(&take);
        let ids: Vec<u32> = (0..5).map(|_| request(&mut old)).collect();
        // The first one it will answer, and none of the others.
        old.send(&[goaway(ids[0])]).unwrap();
        let mut new = next(&take);
        for _ in 1..5 {
            let id = request(&mut new);
            new.send(&[head(id, END_STREAM, OK)]).unwrap();
        }
        old.send(&[head(ids[0], END_STREAM, OK)]).unwrap();
        // Nothing else comes by it.
        assert_eq!(old.next_of(&[HEADERS]), None);
        // The next request neither.
        let id = request(&mut new);
        new.send(&[head(id, END_STREAM, OK)]).unwrap();
    });
    let client = connect(rig.port.at).await;
    let mut answers = Vec::new();
    for _ in 0..5 {
        let (response, mut body) = send(&client, call("/a"), false).await;
        body.send_data(Bytes::from_static(b"body"), true).unwrap();
        answers.push(tokio::spawn(whole(response)));
    }
    // Refused calls have a status of their own.
    let check = |head: hyper::Response<()>| {
        assert_eq!(head.status(), 200);
        assert_eq!(head.headers().get("grpc-status"), None);
    };
    for answer in answers {
        check(answer.await.unwrap().unwrap().0);
    }
    check(answer(&client, call("/b")).await.0);
    server.await.unwrap();
    assert_eq!(rig.app().retries, 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_request_that_the_server_refuses_to_begin_is_tried_again() {
    let (address, take) = connections();
    let rig = rig(&address, "");
    let server = tokio::task::spawn_blocking(move || {
        let mut server = next(&take);
        let id = request(&mut server);
        let data = server.next_of(&[DATA]).unwrap();
        assert_eq!(data.payload, b"body");
        const REFUSED_STREAM: u32 = 7;
        server.send(&[reset(id, REFUSED_STREAM)]).unwrap();
        let id = request(&mut server);
        let data = server.next_of(&[DATA]).unwrap();
        assert_eq!((data.stream, &data.payload[..]), (id, &b"body"[..]));
        server.send(&[head(id, END_STREAM, OK)]).unwrap();
        // Any other reset may be of one that was begun.
        let id = request(&mut server);
        const INTERNAL_ERROR: u32 = 2;
        server.send(&[reset(id, INTERNAL_ERROR)]).unwrap();
        server
    });
    let client = connect(rig.port.at).await;
    let (response, mut body) = send(&client, call("/refused"), false).await;
    body.send_data(Bytes::from_static(b"body"), true).unwrap();
    assert_eq!(whole(response).await.unwrap().0.status(), 200);
    assert_eq!(rig.logged("/refused")["tries"], 2);
    let (head, ..) = answer(&client, ask(Method::POST, "/failed")).await;
    assert_eq!(head.status(), 502);
    let line = rig.logged("/failed");
    assert_eq!(
        (&line["tries"], &line["reason"]),
        (&1.into(), &"server_broke".into()),
        "{line}"
    );
    server.await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_answer_that_breaks_a_rule_is_none() {
    let (address, take) = connections();
    let rig = rig(&address, "retries.tries = 1\nkeep_alive.connections = 1");
    let ok = |name: &[u8], value: &[u8]| [OK, &field(name, value)].concat();
    let vectors: Vec<(&str, Vec<u8>)> = vec![
        ("connection", ok(b"connection", b"close")),
        ("transfer-encoding", ok(b"transfer-encoding", b"chunked")),
        ("upgrade", ok(b"upgrade", b"websocket")),
        ("upper case", ok(b"X-A", b"b")),
        ("line end in a value", ok(b"x-a", b"b\r\nc: d")),
        ("another status", ok(b":status", b"404")),
        ("no status", field(b"x-a", b"b")),
        ("status 101", field(b":status", b"101")),
        ("status 600", field(b":status", b"600")),
        (
            "two lengths",
            [ok(b"content-length", b"1"), field(b"content-length", b"2")].concat(),
        ),
        ("a body that does not come", ok(b"content-length", b"5")),
    ];
    let blocks: Vec<Vec<u8>> = vectors.iter().map(|(_, block)| block.clone()).collect();
    let server = tokio::task::spawn_blocking(move || {
        let mut server = next(&take);
        for block in blocks {
            // What cannot be unpacked ends the connection; there is another one then.
            let id = loop {
                match server.next_of(&[HEADERS]) {
                    Some(request) => break request.stream,
                    None => server = next(&take),
                }
            };
            let answer = match block.ends_with(b"101") {
                // One that would be an answer, if it could be passed over.
                true => vec![head(id, 0, &block), head(id, END_STREAM, OK)],
                false => vec![head(id, END_STREAM, &block)],
            };
            server.send(&answer).unwrap();
        }
        server
    });
    let client = connect(rig.port.at).await;
    for (what, _) in vectors {
        let (head, ..) = answer(&client, ask(Method::GET, "/a")).await;
        assert_eq!(head.status(), 502, "{what}");
    }
    until("all of them", || rig.refusals("bad_answer") == 11);
    server.await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bodies_are_as_long_as_was_told() {
    let (address, take) = connections();
    let rig = rig(&address, "retries.tries = 1");
    let server = tokio::task::spawn_blocking(move || {
        let mut server = next(&take);
        for body in ["shor", "long one"] {
            let id = request(&mut server);
            let five = [OK, &field(b"content-length", b"5")].concat();
            let data = Frame::new(DATA, END_STREAM, id, body.as_bytes());
            server.send(&[head(id, 0, &five), data]).unwrap();
        }
        server
    });
    let address = rig.port.at;
    let client = tokio::task::spawn_blocking(move || {
        for _ in 0..2 {
            let mut client = super::rig::Peer::connect(address);
            client.send("GET /a HTTP/1.1\r\nHost: a.example\r\n\r\nGET /b HTTP/1.1\r\n");
            let all = String::from_utf8(client.rest()).unwrap();
            // Nothing comes behind it that could be taken for its end.
            let is_cut = match all.split_once("\r\n\r\n") {
                Some((head, body)) if head.contains("200 OK") => body.len() < 5,
                _ => all.contains(" 502 "),
            };
            assert!(is_cut, "{all}");
        }
    });
    client.await.unwrap();
    server.await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_connection_that_is_silent_gets_no_more_requests() {
    let (address, take) = connections();
    let upstream = "retries.tries = 1\ntimeouts = { first_byte = '900ms', connect = '900ms' }";
    let rig = rig(&address, upstream);
    let server = tokio::task::spawn_blocking(move || {
        let mut silent = next(&take);
        request(&mut silent);
        // It is asked whether it is there.
        let ping = silent.next_of(&[PING]).expect("a PING");
        let mut other = next(&take);
        let id = request(&mut other);
        other.send(&[head(id, END_STREAM, OK)]).unwrap();
        // Then it says so, and is believed.
        let pong = Frame::new(PING, 1, 0, &ping.payload);
        silent.send(&[pong]).unwrap();
        other.send(&[goaway(id)]).unwrap();
        let id = request(&mut silent);
        silent.send(&[head(id, END_STREAM, OK)]).unwrap();
        // Silent for ever, it is closed.
        request(&mut silent);
        assert_eq!(silent.next_of(&[HEADERS]), None);
    });
    let client = connect(rig.port.at).await;
    let asked = async |path: &str| answer(&client, ask(Method::GET, path)).await.0.status();
    assert_eq!(asked("/a").await, 504);
    assert_eq!(rig.logged("/a")["reason"], "answer_timeout");
    assert_eq!(asked("/b").await, 200);
    // It may be asked before it has said that it is there.
    let mut next = asked("/c").await;
    while next != 200 {
        next = asked("/c").await;
    }
    assert_eq!(asked("/d").await, 504);
    server.await.unwrap();
}

/// `SETTINGS_MAX_CONCURRENT_STREAMS` (RFC 9113, 6.5.2).
fn most(streams: u8) -> Vec<u8> {
    vec![0, 3, 0, 0, 0, streams]
}

#[test]
fn who_came_first_gets_the_first_place() {
    const CANCEL: u32 = 8;
    let (address, take) = connections();
    let upstream = "keep_alive.connections = 1\nretries.tries = 1\n\
                    timeouts = { connect = '20s', first_byte = '30s' }";
    let rig = rig(&address, upstream);
    let mut client = Client::new(rig.port.at);
    let ask = |id| head(id, END_STREAM, &get("/a"));
    client.send(&[ask(1)]).unwrap();
    let mut server = next_with(&take, &most(1));
    request(&mut server);
    // The next one waits.
    client
        .send(&[ask(3), Frame::new(PING, 0, 0, &[7; 8])])
        .unwrap();
    client.next_of(&[PING]).expect("an answer to the ping");
    // Another one comes with what makes a place.
    client.send(&[reset(1, CANCEL), ask(5)]).unwrap();
    for expected in [3, 5] {
        let id = request(&mut server);
        server.send(&[head(id, END_STREAM, OK)]).unwrap();
        let answer = client.next_of(&[HEADERS]).expect("an answer");
        assert_eq!(answer.stream, expected);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn those_who_wait_hear_that_a_server_takes_more() {
    let (address, take) = connections();
    let upstream = "keep_alive.connections = 1\nretries.tries = 1\n\
                    timeouts = { connect = '20s', first_byte = '30s' }";
    let rig = rig(&address, upstream);
    let server = tokio::task::spawn_blocking(move || {
        let mut server = next_with(&take, &most(1));
        let first = request(&mut server);
        // Another one waits, and the first one is not answered before it has come.
        server
            .send(&[Frame::new(SETTINGS, 0, 0, &most(2))])
            .unwrap();
        let second = request(&mut server);
        let answers = [first, second].map(|id| head(id, END_STREAM, OK));
        server.send(&answers).unwrap();
        server
    });
    let client = connect(rig.port.at).await;
    let mut answers = Vec::new();
    for path in ["/a", "/b"] {
        let (response, _) = send(&client, ask(Method::GET, path), true).await;
        answers.push(tokio::spawn(whole(response)));
    }
    for answer in answers {
        assert_eq!(answer.await.unwrap().unwrap().0.status(), 200);
    }
    server.await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn many_small_messages_for_a_slow_server_are_no_flood() {
    const WINDOW_UPDATE: u8 = 8;
    const MESSAGES: usize = 20_000;
    // What it makes of them is its own affair.
    let mut builder = h2::server::Builder::new();
    builder.data_frame_budget(usize::MAX);
    let mut server = super::server::Server::with(&builder);
    let rig = rig(&server.address, "");
    let at = rig.port.at;
    let (told, sent) = sync_channel(1);
    let client = tokio::task::spawn_blocking(move || {
        let mut client = Client::new(at);
        // More than 64 KiB may be on their way once the settings are acknowledged.
        client.next_of(&[WINDOW_UPDATE]).expect("a larger window");
        client.send(&[Frame::new(SETTINGS, 1, 0, &[])]).unwrap();
        let block = [
            field(b":method", b"POST"),
            field(b":scheme", b"http"),
            field(b":path", b"/slow"),
            field(b":authority", b"a.example"),
            field(b"content-type", b"application/grpc"),
        ];
        client.send(&[head(1, 0, &block.concat())]).unwrap();
        // Messages of one byte.
        let message = Frame::new(DATA, 0, 1, b"\0\0\0\0\x01x");
        client.send(&vec![message; MESSAGES]).unwrap();
        let ping = Frame::new(PING, 0, 0, &[7; 8]);
        client
            .send(&[ping, Frame::new(DATA, END_STREAM, 1, &[])])
            .unwrap();
        // It has taken all of them.
        let next = client
            .next_of(&[PING, GOAWAY])
            .expect("an answer to the ping");
        assert_eq!((next.kind, next.code()), (PING, None));
        told.send(()).unwrap();
        let answer = client.next_of(&[DATA, RST_STREAM]).expect("an answer");
        assert_eq!(answer.code(), None);
        answer.payload
    });
    assert_eq!(server.tells().await, "came");
    tokio::task::spawn_blocking(move || sent.recv())
        .await
        .unwrap()
        .unwrap();
    server.counts.go.add_permits(1);
    let all = client.await.unwrap();
    assert_eq!(String::from_utf8(all).unwrap(), (6 * MESSAGES).to_string());
    assert_eq!(rig.refusals("h2_flood"), 0);
}

#[test]
fn what_a_client_does_is_seen_while_the_server_takes_nothing() {
    const CANCEL: u32 = 8;
    /// `SETTINGS_INITIAL_WINDOW_SIZE` (RFC 9113, 6.5.2): nothing.
    const CLOSED: [u8; 6] = [0, 4, 0, 0, 0, 0];
    let (address, take) = connections();
    let mut setup = Setup::new(&[])
        .listener("http2 = true\nlimits = { body_bytes = '1KiB' }")
        .upstream("protocol = 'http2'\ntimeouts = { first_byte = '50s', request = '60s' }");
    setup.servers = vec![address];
    let rig = Rig::new(&setup);
    let mut client = Client::new(rig.port.at);
    let head_of_post = post("/");
    let begin = |id| {
        [
            head(id, 0, &head_of_post),
            Frame::new(DATA, 0, id, &[7; 1000]),
        ]
    };
    client.send(&begin(1)).unwrap();
    let mut server = next_with(&take, &CLOSED);
    let ended = |server: &mut Client, id| {
        let end = server.next_of(&[RST_STREAM]).expect("an end");
        assert_eq!((end.stream, end.code()), (id, Some(CANCEL)));
    };
    // More than it may send.
    let id = request(&mut server);
    client.send(&[Frame::new(DATA, 0, 1, &[7; 1000])]).unwrap();
    let answer = client.next_of(&[HEADERS, RST_STREAM]).expect("an answer");
    assert_eq!((answer.kind, answer.stream), (HEADERS, 1));
    ended(&mut server, id);
    until("it is told", || rig.refusals("body_too_large") == 1);
    // It does not want it any more, with more to come of the body, and with nothing.
    for (stream, end) in [(3, 0), (5, END_STREAM)] {
        client.send(&begin(stream)).unwrap();
        let id = request(&mut server);
        let last = Frame::new(DATA, end, stream, &[7; 20]);
        client.send(&[last, reset(stream, CANCEL)]).unwrap();
        ended(&mut server, id);
    }
    until("they are told", || rig.refusals("client_gone") == 2);
}

#[test]
fn messages_that_were_on_their_way_when_a_call_ended_are_no_flood() {
    let server = super::server::Server::start();
    let rig = rig(&server.address, "");
    let mut client = Client::new(rig.port.at);
    for id in (1..20).step_by(2) {
        let block = post("/early");
        client.send(&[head(id, 0, &block)]).unwrap();
        let end = client.next_of(&[RST_STREAM, GOAWAY]).expect("an end");
        assert_eq!((end.kind, end.stream), (RST_STREAM, id));
        let message = Frame::new(DATA, 0, id, b"\0\0\0\0\x01x");
        client.send(&vec![message; 1000]).unwrap();
    }
    client.send(&[Frame::new(PING, 0, 0, &[7; 8])]).unwrap();
    let next = client
        .next_of(&[PING, GOAWAY])
        .expect("an answer to the ping");
    assert_eq!(next.kind, PING);
    assert_eq!(rig.refusals("h2_flood"), 0);
}

#[test]
fn frames_of_nothing_are_a_flood() {
    let server = Http1::saying("ok");
    let mut setup = Setup::new(&[&server]);
    setup.listener = "http2 = true".to_owned();
    let rig = Rig::new(&setup);
    let mut client = Client::new(rig.port.at);
    let block = post("/");
    let _ = client.send(&[head(1, 0, &block)]);
    let _ = client.send(&vec![Frame::new(DATA, 0, 1, &[]); 1000]);
    const ENHANCE_YOUR_CALM: u32 = 11;
    let goaway = client.next_of(&[GOAWAY]).expect("GOAWAY");
    assert_eq!(goaway.code(), Some(ENHANCE_YOUR_CALM));
    until("it is counted", || rig.refusals("h2_flood") == 1);
}

#[test]
fn a_server_of_http1_is_no_garbled_answer() {
    let server = Http1::start(|mut peer| {
        let _ = peer.take_until(b"\r\n\r\n");
        let _ = peer.try_send("HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n");
    });
    let rig = rig(&server.address, "");
    assert_eq!(rig.get("/a").status, 502);
    let line = rig.logged("/a");
    // Nothing was sent, so others could be tried.
    assert_eq!(
        (&line["reason"], &line["tries"]),
        (&"no_http2".into(), &3.into()),
        "{line}"
    );
}

#[test]
fn a_server_that_says_nothing_is_no_connection() {
    let (address, _take) = connections();
    let rig = rig(&address, "timeouts.connect = '100ms'\nretries.tries = 1");
    assert_eq!(rig.get("/a").status, 504);
    assert_eq!(rig.logged("/a")["reason"], "connect_timeout");
}
