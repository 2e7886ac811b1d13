//! Bodies, both ways and in every framing.

use std::{
    io::Write as _,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering::Relaxed},
        mpsc,
    },
    thread,
};

use super::rig::*;

/// A server that writes these bytes for each request.
fn answering(bytes: &'static str, then_close: bool) -> Server {
    Server::start(move |mut peer| {
        while peer.request().is_some() {
            if peer.try_send(bytes).is_err() || then_close {
                return;
            }
        }
    })
}

#[test]
fn requests_come_by_length_and_in_chunks() {
    let server = Server::echo();
    let rig = Rig::new(&Setup::new(&[&server]));
    let mut client = rig.client();
    client.send("POST /a HTTP/1.1\r\nHost: a.example\r\nContent-Length: 5\r\n\r\nhello");
    let answer = client.answer();
    assert!(
        answer.text().contains("\r\nContent-Length: 5\r\n"),
        "{}",
        answer.text()
    );
    assert!(
        answer.text().ends_with("\r\n\r\nhello"),
        "{}",
        answer.text()
    );
    client.send(
        "POST /b HTTP/1.1\r\nHost: a.example\r\nTransfer-Encoding: chunked\r\n\r\n\
         5;x=y\r\nhello\r\n1\r\n,\r\n0\r\nX-Sum: 1\r\n\r\n",
    );
    let answer = client.answer();
    assert!(answer.text().contains("\r\nTransfer-Encoding: chunked\r\n"));
    assert!(
        answer.text().ends_with("\r\n\r\nhello,"),
        "{}",
        answer.text()
    );
    assert!(server.seen().concat().contains("0\r\nX-Sum: 1\r\n\r\n"));
    // In pieces.
    client.send("POST /c HTTP/1.1\r\nHost: a.example\r\nTransfer-Encoding: chunked\r\n\r\n");
    for piece in ["3", "\r", "\nab", "c\r\n", "0\r", "\n\r", "\n"] {
        client.send(piece);
    }
    assert!(client.answer().text().ends_with("\r\n\r\nabc"));
    assert_eq!(server.seen().len(), 1, "connections to the server");
    let line = rig.logged("/b");
    assert_eq!(line["received"], 6);
    assert_eq!(line["status"], 200);
}

#[test]
fn answers_come_in_every_framing() {
    for (answer, close, framing, body) in [
        (
            "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello",
            false,
            "content-length",
            "hello",
        ),
        (
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nhe\r\n3\r\nllo\r\n0\r\n\r\n",
            false,
            "transfer-encoding",
            "hello",
        ),
        (
            "HTTP/1.1 200 OK\r\n\r\nhello",
            true,
            "transfer-encoding",
            "hello",
        ),
        (
            "HTTP/1.0 200 OK\r\n\r\nhello",
            true,
            "transfer-encoding",
            "hello",
        ),
        (
            "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n",
            false,
            "content-length",
            "",
        ),
    ] {
        let server = answering(answer, close);
        let rig = Rig::new(&Setup::new(&[&server]));
        let mut client = rig.client();
        for _ in 0..2 {
            let got = client.get("/");
            assert_eq!((got.status, got.text()), (200, body), "{answer}");
            assert!(got.header(framing).is_some(), "{answer}: {}", got.head);
        }
        let connections = if close { 2 } else { 1 };
        assert_eq!(server.seen().len(), connections, "{answer}");
    }
}

#[test]
fn answers_without_a_body_have_none() {
    for (method, answer, told) in [
        (
            "HEAD",
            "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n",
            Some("5"),
        ),
        (
            "GET",
            "HTTP/1.1 304 Not Modified\r\nContent-Length: 5\r\n\r\n",
            Some("5"),
        ),
        ("GET", "HTTP/1.1 204 No Content\r\n\r\n", None),
        // RFC 9110, section 8.6: never with 204.
        (
            "GET",
            "HTTP/1.1 204 No Content\r\nContent-Length: 0\r\n\r\n",
            None,
        ),
        (
            "HEAD",
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n",
            None,
        ),
    ] {
        let server = answering(answer, false);
        let rig = Rig::new(&Setup::new(&[&server]));
        let mut client = rig.client();
        for _ in 0..2 {
            client.send(format!("{method} / HTTP/1.1\r\nHost: a.example\r\n\r\n"));
            let got = client.answer_to(method);
            assert_eq!(got.header("content-length"), told, "{method} {answer}");
        }
        assert_eq!(server.seen().len(), 1, "{answer}");
    }
}

#[test]
fn interim_answers_go_on_before_the_answer() {
    let (go, wait) = mpsc::sync_channel(1);
    let wait = Mutex::new(wait);
    let server = Server::start(move |mut peer| {
        while peer.request().is_some() {
            // Unasked for; two at once; one in pieces.
            peer.send("HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 \r\nLink: </a>\r\n");
            peer.send("Secret: 1\r\nConnection: x-hop\r\nX-Hop: 1\r\n\r\n");
            lock(&wait).recv_timeout(PATIENCE).unwrap();
            peer.send("HTTP/1.1 102 Still at it\r\n\r\nHTTP/1.1 200 OK\r\n");
            peer.send("Content-Length: 2\r\n\r\nok");
        }
    });
    let route = "[[route]]\nname = 'r'\nupstream = 'app'\n\
                 response_headers = { remove = ['secret'], add = { X-Added = '1' } }\n";
    let rig = Rig::new(&Setup::new(&[&server]).routes(route));
    let mut client = rig.client();
    for _ in 0..2 {
        client.send("GET /x HTTP/1.1\r\nHost: a.example\r\n\r\n");
        assert_eq!(client.head().unwrap(), "HTTP/1.1 100 Continue\r\n\r\n");
        let hints = "HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n";
        assert_eq!(client.head().unwrap(), hints);
        go.send(()).unwrap();
        assert_eq!(client.head().unwrap(), "HTTP/1.1 102 Still at it\r\n\r\n");
        let answer = client.answer();
        assert_eq!(answer.text(), "ok");
        assert_eq!(answer.header("x-added"), Some("1"));
    }
    assert_eq!(rig.logged("/x")["status"], 200);
    // Whoever waits for leave has got it from here.
    client.send(
        "POST / HTTP/1.1\r\nHost: a.example\r\nExpect: 100-continue\r\nContent-Length: 2\r\n\r\n",
    );
    assert_eq!(client.answer().status, 100);
    client.send("hi");
    assert_eq!(client.answer().status, 103);
    go.send(()).unwrap();
    assert_eq!([client.answer().status, client.answer().status], [102, 200]);
    // HTTP/1.0 knows none of them.
    go.send(()).unwrap();
    let answer = rig.ask("GET / HTTP/1.0\r\n\r\n");
    assert!(answer.starts_with("HTTP/1.1 200 OK\r\n"), "{answer}");
    assert!(!answer.contains("Link:"), "{answer}");
}

#[test]
fn of_many_interim_answers_only_some_go_on_and_of_too_many_none_is_waited_for() {
    let server = Server::start(|mut peer| {
        while let Some((head, _)) = peer.request() {
            let n: usize = header(&head, "x-n").unwrap().parse().unwrap();
            let interim = "HTTP/1.1 102 Processing\r\n\r\n".repeat(n);
            let answer = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";
            if peer.try_send(interim + answer).is_err() {
                return;
            }
        }
    });
    let rig = Rig::new(&Setup::new(&[&server]).upstream("retries = { tries = 1 }"));
    let mut client = rig.client();
    for (n, told, status) in [
        (700, 700, 200),
        (5_000, 720, 200),
        (20_000, 720, 502),
        (1, 1, 200),
    ] {
        client.send(format!(
            "GET / HTTP/1.1\r\nHost: a.example\r\nX-N: {n}\r\n\r\n"
        ));
        let mut interim = 0;
        let answer = loop {
            match client.answer() {
                answer if answer.status == 102 => interim += 1,
                answer => break answer,
            }
        };
        assert_eq!((interim, answer.status), (told, status), "{n}");
    }
    assert_eq!(rig.refusals("bad_answer"), 1);
}

#[test]
fn a_connection_that_ends_behind_an_interim_answer_was_not_idle() {
    let server = Server::start(|mut peer| {
        while let Some((head, _)) = peer.request() {
            if head.starts_with("GET /hints") {
                peer.send("HTTP/1.1 103 Early Hints\r\n\r\n");
                return;
            }
            peer.send("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok");
        }
    });
    let rig = Rig::new(&Setup::new(&[&server]).upstream("retries = { tries = 1 }"));
    let mut client = rig.client();
    assert_eq!(client.get("/").text(), "ok");
    assert_eq!(client.get("/hints").status, 103);
    assert_eq!(client.answer().status, 502);
    assert_eq!(server.requests(), 2);
}

#[test]
fn whoever_waits_for_100_gets_it_once() {
    let server = Server::echo();
    let rig = Rig::new(&Setup::new(&[&server]));
    let mut client = rig.client();
    client.send(
        "POST / HTTP/1.1\r\nHost: a.example\r\nExpect: 100-continue\r\nContent-Length: 2\r\n\r\n",
    );
    assert_eq!(client.head().unwrap(), "HTTP/1.1 100 Continue\r\n\r\n");
    client.send("hi");
    let answer = client.answer();
    assert_eq!(answer.status, 200);
    assert!(answer.text().ends_with("hi") && !answer.text().contains("Expect"));
    // Whoever does not wait needs none.
    client.send(
        "POST / HTTP/1.1\r\nHost: a.example\r\nExpect: 100-continue\r\nContent-Length: 2\r\n\r\nhi",
    );
    assert_eq!(client.answer().status, 200);
    // Nor does one whose request goes nowhere.
    let rig = Rig::new(
        &Setup::new(&[&server])
            .routes("[[route]]\nname = 'r'\nhosts = ['b.example']\nupstream = 'app'\n"),
    );
    let mut client = rig.client();
    client.send(
        "POST / HTTP/1.1\r\nHost: a.example\r\nExpect: 100-continue\r\nContent-Length: 2\r\n\r\n",
    );
    assert_eq!(client.answer().status, 404);
    assert!(client.is_closed());
}

#[test]
fn clients_of_http_1_0_get_what_they_understand() {
    let chunked = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n";
    let server = answering(chunked, false);
    let rig = Rig::new(&Setup::new(&[&server]));
    let answer = rig.ask("GET / HTTP/1.0\r\n\r\n");
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    assert_eq!(body, "hello");
    assert_eq!(header(head, "transfer-encoding"), None);
    assert_eq!(header(head, "connection"), Some("close"));
    assert!(
        server
            .seen()
            .concat()
            .starts_with("GET / HTTP/1.1\r\nHost: \r\n")
    );

    let server = Server::saying("hello");
    let rig = Rig::new(&Setup::new(&[&server]));
    let mut client = rig.client();
    for _ in 0..2 {
        client.send("GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n");
        let answer = client.answer();
        assert_eq!(answer.text(), "hello");
        assert_eq!(answer.header("connection"), Some("keep-alive"));
    }
    client.send("GET / HTTP/1.0\r\n\r\n");
    assert_eq!(client.answer().text(), "hello");
    assert!(client.is_closed());
}

/// Bytes that are not the same again too soon.
fn piece(at: u64, n: usize) -> Vec<u8> {
    (at..at + n as u64)
        .map(|i| (i ^ (i >> 8) ^ (i >> 16)) as u8)
        .collect()
}

const LARGE: u64 = 64 << 20;

/// The anonymous memory of this process, bytes.
fn memory() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status
        .lines()
        .find(|line| line.starts_with("RssAnon:"))
        .unwrap();
    let kib: u64 = line.split_whitespace().nth(1).unwrap().parse().unwrap();
    kib << 10
}

#[test]
fn a_reader_that_waits_stops_the_writer() {
    let written = Arc::new(AtomicU64::new(0));
    let count = written.clone();
    let server = Server::start(move |mut peer| {
        peer.request();
        peer.send(format!(
            "HTTP/1.1 200 OK\r\nContent-Length: {LARGE}\r\n\r\n"
        ));
        let mut at = 0;
        while at < LARGE {
            let bytes = piece(at, 1 << 16);
            if peer.try_send(&bytes).is_err() {
                return;
            }
            at += bytes.len() as u64;
            count.store(at, Relaxed);
        }
    });
    let rig = Rig::new(&Setup::new(&[&server]));
    let mut client = rig.client();
    let before = memory();
    client.send("GET / HTTP/1.1\r\nHost: a.example\r\n\r\n");
    let head = client.head().unwrap();
    assert_eq!(header(&head, "content-length"), Some(&*LARGE.to_string()));
    // Nothing moves any more when the buffers of the kernel are full.
    let mut last = (0, 0);
    until("the server is stopped", || {
        let now = written.load(Relaxed);
        last = if now == last.0 && now > 0 {
            (now, last.1 + 1)
        } else {
            (now, 0)
        };
        last.1 > 100
    });
    assert!(last.0 < LARGE, "all of it went somewhere");
    let grown = memory().saturating_sub(before);
    assert!(grown < 16 << 20, "{grown} bytes are held");
    let mut at = 0;
    while at < LARGE {
        assert!(client.take(1 << 16) == piece(at, 1 << 16), "at {at}");
        at += 1 << 16;
    }
    assert_eq!(rig.logged("/")["sent"], LARGE);
}

#[test]
fn a_server_that_does_not_read_stops_the_client() {
    let (go, wait) = mpsc::sync_channel::<()>(1);
    let wait = std::sync::Mutex::new(wait);
    let server = Server::start(move |mut peer| {
        peer.head();
        lock(&wait).recv().unwrap();
        let mut at = 0;
        while at < LARGE {
            assert!(peer.take(1 << 16) == piece(at, 1 << 16), "at {at}");
            at += 1 << 16;
        }
        peer.send("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok");
    });
    let rig = Rig::new(&Setup::new(&[&server]).listener("limits = { body_bytes = '100MiB' }"));
    let stream = std::net::TcpStream::connect(rig.port.at).unwrap();
    let mut sender = stream.try_clone().unwrap();
    let sent = Arc::new(AtomicU64::new(0));
    let count = sent.clone();
    let before = memory();
    let sending = thread::spawn(move || {
        let head = format!("PUT / HTTP/1.1\r\nHost: a.example\r\nContent-Length: {LARGE}\r\n\r\n");
        sender.write_all(head.as_bytes()).unwrap();
        let mut at = 0;
        while at < LARGE {
            sender.write_all(&piece(at, 1 << 16)).unwrap();
            at += 1 << 16;
            count.store(at, Relaxed);
        }
    });
    let mut last = (0, 0);
    until("the client is stopped", || {
        let now = sent.load(Relaxed);
        last = if now == last.0 && now > 0 {
            (now, last.1 + 1)
        } else {
            (now, 0)
        };
        last.1 > 100
    });
    assert!(last.0 < LARGE, "all of it went somewhere");
    let grown = memory().saturating_sub(before);
    assert!(grown < 16 << 20, "{grown} bytes are held");
    go.send(()).unwrap();
    let mut client = Peer::of_tcp(stream);
    assert_eq!(client.answer().text(), "ok");
    sending.join().unwrap();
}

#[test]
fn an_answer_before_the_end_of_the_request_is_heard() {
    let server = Server::start(|mut peer| {
        peer.head();
        peer.send(
            "HTTP/1.1 413 Content Too Large\r\nContent-Length: 3\r\nConnection: close\r\n\r\nno\n",
        );
    });
    let rig = Rig::new(&Setup::new(&[&server]));
    let mut client = rig.client();
    client.send("POST / HTTP/1.1\r\nHost: a.example\r\nContent-Length: 1000000\r\n\r\nbegin");
    let answer = client.answer();
    assert_eq!((answer.status, answer.text()), (413, "no\n"));
    assert!(client.is_closed());
}

#[test]
fn bodies_beyond_the_limit_are_refused() {
    let server = Server::echo();
    let rig = Rig::new(&Setup::new(&[&server]).listener("limits = { body_bytes = '4KiB' }"));
    for (bytes, status) in [
        ("Content-Length: 4097\r\n\r\n".to_owned(), 413),
        ("Transfer-Encoding: chunked\r\n\r\n1001\r\n".to_owned(), 413),
        (
            format!(
                "Transfer-Encoding: chunked\r\n\r\n800\r\n{0}\r\n801\r\n",
                "x".repeat(2048)
            ),
            413,
        ),
    ] {
        let answer = rig.ask(format!("POST / HTTP/1.1\r\nHost: a.example\r\n{bytes}"));
        assert!(
            answer.starts_with(&format!("HTTP/1.1 {status} ")),
            "{answer}"
        );
    }
    assert_eq!(rig.refusals("body_too_large"), 3);
}
