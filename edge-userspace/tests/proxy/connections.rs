//! Connections: kept, pipelined, upgraded, given up.

use std::{
    io::{self, Read as _, Write as _},
    net::TcpStream,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering::Relaxed},
        mpsc::{SyncSender, sync_channel},
    },
    time::Duration,
};

use socket2::SockRef;

use super::rig::*;

#[test]
fn both_sides_are_kept() {
    let server = Server::echo();
    let rig = Rig::new(&Setup::new(&[&server]));
    let mut client = rig.client();
    for _ in 0..10 {
        assert_eq!(client.get("/").status, 200);
    }
    assert_eq!(rig.get("/").status, 200);
    assert_eq!(server.seen().len(), 1, "connections to the server");
    assert_eq!(rig.app().connects, 1);

    // As many as the configuration says, and none with 0.
    let setup = Setup::new(&[&server]).upstream("keep_alive = { connections = 0 }");
    let rig = Rig::new(&setup);
    for _ in 0..3 {
        assert_eq!(rig.get("/").status, 200);
    }
    assert_eq!(rig.app().connects, 3);
    let setup = Setup::new(&[&server]).listener("limits = { requests_per_connection = 2 }");
    let rig = Rig::new(&setup);
    let mut client = rig.client();
    assert_eq!(client.get("/").header("connection"), None);
    assert_eq!(client.get("/").header("connection"), Some("close"));
    assert!(client.is_closed());
}

#[test]
fn requests_that_follow_at_once_are_answered_in_order() {
    let server = Server::echo();
    let rig = Rig::new(&Setup::new(&[&server]));
    let mut client = rig.client();
    let all: String = (0..50)
        .map(|n| match n % 2 {
            0 => format!("GET /{n} HTTP/1.1\r\nHost: a.example\r\n\r\n"),
            _ => format!("POST /{n} HTTP/1.1\r\nHost: a.example\r\nContent-Length: 3\r\n\r\nabc"),
        })
        .collect();
    client.send(all);
    for n in 0..50 {
        let answer = client.answer();
        assert!(
            answer.text().contains(&format!(" /{n} HTTP/1.1\r\n")),
            "{n}"
        );
    }
    // A client that wants no more gets no more.
    client.send("GET /a HTTP/1.1\r\nHost: a.example\r\nConnection: close\r\n\r\nGET /b HTTP/1.1\r\nHost: a.example\r\n\r\n");
    assert!(client.answer().text().contains(" /a "));
    assert!(client.is_closed());
}

/// Switches protocols, and gives everything back.
fn echo_of_another_protocol(mut peer: Peer) {
    let head = peer.head().unwrap();
    assert_eq!(header(&head, "upgrade"), Some("websocket"));
    assert_eq!(header(&head, "connection"), Some("upgrade"));
    peer.send("HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: upgrade\r\n\r\nhello ");
    loop {
        let bytes = peer.take_until(b"\n");
        match bytes {
            Some(line) => peer.send(line),
            None => {
                peer.send("bye\n");
                return;
            }
        }
    }
}

pub(crate) const UPGRADE: &str =
    "GET /up HTTP/1.1\r\nHost: a.example\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n";

#[test]
fn another_protocol_goes_both_ways_to_its_end() {
    let server = Server::start(echo_of_another_protocol);
    let rig = Rig::new(&Setup::new(&[&server]));
    let mut client = rig.client();
    // What comes before the answer is the other protocol's already.
    client.send(format!("{UPGRADE}world\n"));
    let head = client.head().unwrap();
    assert!(
        head.starts_with("HTTP/1.1 101 Switching Protocols\r\n"),
        "{head}"
    );
    assert_eq!(header(&head, "upgrade"), Some("websocket"));
    assert_eq!(header(&head, "connection"), Some("upgrade"));
    assert_eq!(client.take_until(b"\n").unwrap(), b"hello world\n");
    for n in 0..100 {
        let line = format!("{n}{}\n", "x".repeat(n * 37));
        client.send(&line);
        assert_eq!(client.take_until(b"\n").unwrap(), line.as_bytes());
    }
    // One way ends before the other.
    client.end();
    assert_eq!(client.rest(), b"bye\n");
    let line = rig.logged("/up");
    assert_eq!(line["status"], 101);
    assert!(line.get("reason").is_none(), "{line}");
}

#[test]
fn a_switch_that_nobody_asked_for_is_no_answer() {
    let server = Server::start(|mut peer| {
        peer.head();
        peer.send(
            "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: upgrade\r\n\r\n",
        );
    });
    let rig = Rig::new(&Setup::new(&[&server]).upstream("retries = { tries = 1 }"));
    assert_eq!(rig.get("/").status, 502);
    // And one that is refused is an answer like any other.
    let server = Server::saying("no");
    let rig = Rig::new(&Setup::new(&[&server]));
    let mut client = rig.client();
    client.send(UPGRADE);
    assert_eq!(client.answer().text(), "no");
    assert_eq!(client.get("/").text(), "no");
}

/// Says when each connection to it is over.
fn waiting(first: &'static str) -> (Server, Arc<AtomicUsize>, Arc<AtomicUsize>) {
    let (began, ended) = <(Arc<AtomicUsize>, Arc<AtomicUsize>)>::default();
    let (begin, end) = (began.clone(), ended.clone());
    let server = Server::start(move |mut peer| {
        peer.head();
        peer.send(first);
        begin.fetch_add(1, Relaxed);
        peer.rest();
        end.fetch_add(1, Relaxed);
    });
    (server, began, ended)
}

#[test]
fn work_for_a_client_that_is_gone_ends() {
    for first in [
        // Before the answer, and in the middle of it.
        "",
        "HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhalf",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nhalf\r\n",
    ] {
        let (server, began, ended) = waiting(first);
        let rig = Rig::new(&Setup::new(&[&server]));
        let mut client = rig.client();
        client.send("GET /gone HTTP/1.1\r\nHost: a.example\r\n\r\n");
        until("the server has it", || began.load(Relaxed) == 1);
        if !first.is_empty() {
            client.head().unwrap();
        }
        assert_eq!(ended.load(Relaxed), 0);
        drop(client);
        until("the server is told", || ended.load(Relaxed) == 1);
        let line = rig.logged("/gone");
        assert_eq!(line["reason"], "client_gone", "{line}");
        assert_eq!(rig.refusals("client_gone"), 1);
    }
}

/// A server that answers when it is told to.
fn patient() -> (Server, SyncSender<()>, Arc<AtomicUsize>) {
    let (go, went) = sync_channel(1);
    let (went, asked) = (Mutex::new(went), Arc::<AtomicUsize>::default());
    let ask = asked.clone();
    let server = Server::start(move |mut peer| {
        while peer.request().is_some() {
            ask.fetch_add(1, Relaxed);
            if lock(&went).recv().is_err() {
                return;
            }
            let _ = peer.try_send("HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello");
        }
    });
    (server, go, asked)
}

#[test]
fn a_client_that_sends_no_more_waits_for_its_answer_where_it_may() {
    const GET: &str = "GET /x HTTP/1.1\r\nHost: a.example\r\n\r\n";
    let (server, go, asked) = patient();
    let rig = Rig::new(&Setup::new(&[&server]).listener("half_close = true"));
    for (n, request) in [
        GET,
        "GET /x HTTP/1.0\r\n\r\n",
        "POST /x HTTP/1.1\r\nHost: a.example\r\nContent-Length: 2\r\n\r\nhi",
    ]
    .into_iter()
    .enumerate()
    {
        let mut client = rig.client();
        client.send(request);
        client.end();
        until("the server has it", || asked.load(Relaxed) == n + 1);
        go.send(()).unwrap();
        assert_eq!(client.answer().text(), "hello", "{request}");
        assert!(client.is_closed());
    }
    assert_eq!(rig.refusals("client_gone"), 0);
    // Both of two requests.
    let mut client = rig.client();
    client.send(GET.repeat(2));
    client.end();
    for _ in 0..2 {
        go.send(()).unwrap();
        assert_eq!(client.answer().text(), "hello");
    }
    assert!(client.is_closed());
    // One that breaks off is gone.
    let (server, began, ended) = waiting("");
    let rig = Rig::new(&Setup::new(&[&server]).listener("half_close = true"));
    let client = TcpStream::connect(rig.port.at).unwrap();
    (&client).write_all(GET.as_bytes()).unwrap();
    until("the server has it", || began.load(Relaxed) == 1);
    SockRef::from(&client)
        .set_linger(Some(Duration::ZERO))
        .unwrap();
    drop(client);
    until("the server is told", || ended.load(Relaxed) == 1);
    assert_eq!(rig.logged("/x")["reason"], "client_gone");
}

#[test]
fn a_client_that_sends_no_more_is_gone_by_default() {
    let (server, began, ended) = waiting("");
    let rig = Rig::new(&Setup::new(&[&server]));
    let mut client = rig.client();
    client.send("GET /x HTTP/1.1\r\nHost: a.example\r\n\r\n");
    client.end();
    until("the server has it", || began.load(Relaxed) == 1);
    until("the server is told", || ended.load(Relaxed) == 1);
    assert_eq!(rig.logged("/x")["reason"], "client_gone");
}

/// What a client of HTTP/1.0 gets until its connection ends, and how that is.
fn until_close(rig: &Rig) -> (Vec<u8>, io::Result<usize>) {
    let mut client = TcpStream::connect(rig.port.at).unwrap();
    client.set_read_timeout(Some(PATIENCE)).unwrap();
    client.write_all(b"GET /x HTTP/1.0\r\n\r\n").unwrap();
    let mut came = Vec::new();
    let end = client.read_to_end(&mut came);
    (came, end)
}

#[test]
fn an_answer_that_breaks_looks_whole_to_nobody() {
    const ENDLESS: &str = "HTTP/1.1 200 OK\r\n\r\nhalf";
    const CHUNKED: &str = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nhalf\r\n";
    // A reset; the end before the last chunk; silence.
    for (answer, then) in [(ENDLESS, "reset"), (CHUNKED, "end"), (ENDLESS, "silence")] {
        let server = Server::start(move |mut peer| {
            peer.request();
            peer.send(answer);
            match then {
                "reset" => peer.reset(),
                "end" => {}
                _ => drop(peer.rest()),
            }
        });
        let upstream = "timeouts = { between_bytes = '300ms' }";
        let rig = Rig::new(&Setup::new(&[&server]).upstream(upstream));
        let (came, end) = until_close(&rig);
        let came = String::from_utf8(came).unwrap();
        let kind = end.map_err(|e| e.kind());
        assert_eq!(kind, Err(io::ErrorKind::ConnectionReset), "{then}: {came}");
    }
    // One that is whole ends in order.
    for (answer, body) in [
        (ENDLESS, "half"),
        (
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nhalf\r\n0\r\n\r\n",
            "half",
        ),
    ] {
        let server = Server::start(move |mut peer| {
            peer.request();
            peer.send(answer);
        });
        let rig = Rig::new(&Setup::new(&[&server]));
        let (came, end) = until_close(&rig);
        end.unwrap();
        assert!(came.ends_with(body.as_bytes()), "{came:?}");
    }
}

#[test]
fn a_server_that_hangs_up_in_the_middle_is_told_of() {
    for (answer, until_close) in [
        ("HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhalf", false),
        (
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nhalf\r\n",
            true,
        ),
    ] {
        let server = Server::start(move |mut peer| {
            peer.request();
            peer.send(answer);
        });
        let rig = Rig::new(&Setup::new(&[&server]));
        let mut client = rig.client();
        client.send("GET /half HTTP/1.1\r\nHost: a.example\r\n\r\n");
        let head = client.head().unwrap();
        assert!(head.starts_with("HTTP/1.1 200 "));
        // Without its end: no last chunk, and too few bytes.
        let rest = String::from_utf8(client.rest()).unwrap();
        assert!(rest.contains("half"), "{rest}");
        assert!(!until_close || !rest.contains("\r\n0\r\n"), "{rest}");
        assert_eq!(rig.logged("/half")["reason"], "answer_broke");
    }
}

#[test]
fn answers_that_are_no_http_are_not_passed_on() {
    for answer in [
        "SSH-2.0-OpenSSH_9.6\r\n",
        "HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\nhello!",
        "HTTP/1.1 200 OK\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\nhello",
        "HTTP/1.1 200 OK\r\nX : 1\r\n\r\n",
        "HTTP/1.1 200 OK\nContent-Length: 0\n\n",
        "HTTP/1.1 204 No Content\r\nContent-Length: 5\r\n\r\nhello",
        "HTTP/2 200\r\n\r\n",
    ] {
        let server = Server::start(move |mut peer| {
            peer.request();
            peer.send(answer);
            peer.rest();
        });
        let rig = Rig::new(&Setup::new(&[&server]).upstream("retries = { tries = 1 }"));
        let mut client = rig.client();
        assert_eq!(client.get("/x").status, 502, "{answer}");
        assert_eq!(rig.logged("/x")["reason"], "bad_answer", "{answer}");
        // It was the server's fault: the client's connection goes on.
        assert_eq!(client.get("/y").status, 502, "{answer}");
    }
}

#[test]
fn bytes_behind_an_answer_are_nobodys() {
    let server = Server::start(|mut peer| {
        while peer.request().is_some() {
            let _ = peer.try_send(
                "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nokHTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nbad",
            );
        }
    });
    let rig = Rig::new(&Setup::new(&[&server]));
    for _ in 0..5 {
        assert_eq!(rig.get("/").text(), "ok");
    }
    assert_eq!(rig.app().connects, 5);
}

#[test]
fn no_more_connections_than_may_be() {
    let server = Server::saying("ok");
    let rig = Rig::new(&Setup::new(&[&server]).listener("limits = { connections = 2 }"));
    let mut kept = [rig.client(), rig.client()];
    for client in &mut kept {
        assert_eq!(client.get("/").status, 200);
    }
    assert!(rig.client().is_closed());
    let [first, mut second] = kept;
    drop(first);
    until("there is room", || {
        let mut client = rig.client();
        client
            .try_send("GET / HTTP/1.1\r\nHost: a.example\r\n\r\n")
            .is_ok()
            && client.head().is_some()
    });
    assert_eq!(second.get("/").status, 200);
    assert!(rig.refusals("connections") > 0);
    assert_eq!(rig.refusals("connections_per_source"), 0);

    let limits = "limits = { connections_per_source = 1 }";
    let rig = Rig::new(&Setup::new(&[&server]).listener(limits));
    let mut client = rig.client();
    assert_eq!(client.get("/").status, 200);
    assert!(rig.client().is_closed());
    assert_eq!(client.get("/").status, 200);
    assert_eq!(rig.refusals("connections_per_source"), 1);
    assert_eq!(rig.refusals("connections"), 0);
}
