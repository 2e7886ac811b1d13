//! Each time-out, and what is said of it.

use socket2::{Domain, Socket, Type};

use super::rig::*;

/// A listener that nobody accepts from, whose queue is full: connecting to it hangs.
fn black_hole() -> (Socket, Vec<Socket>, String) {
    let any: std::net::SocketAddr = "127.0.0.1:0".parse().unwrap();
    let listener = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
    listener.bind(&any.into()).unwrap();
    listener.listen(0).unwrap();
    let at = listener.local_addr().unwrap();
    let mut waiting = Vec::new();
    for _ in 0..8 {
        let socket = Socket::new(Domain::IPV4, Type::STREAM.nonblocking(), None).unwrap();
        // It is on its way or will never be.
        let _ = socket.connect(&at);
        waiting.push(socket);
    }
    let address = at.as_socket().unwrap().to_string();
    (listener, waiting, address)
}

#[test]
fn connecting_takes_no_longer_than_it_may() {
    let (_listener, _waiting, address) = black_hole();
    let mut setup = Setup::new(&[]).upstream(
        "retries = { tries = 1 }\ntimeouts = { connect = '200ms', first_byte = '60s', request = '60s' }",
    );
    setup.servers = vec![address];
    let rig = Rig::new(&setup);
    assert_eq!(rig.get("/x").status, 504);
    assert_eq!(rig.logged("/x")["reason"], "connect_timeout");
    assert_eq!(rig.app().connect_failures, 1);
}

/// A server that says so much, and nothing more until the proxy hangs up.
fn silent_after(said: &'static str) -> Server {
    Server::start(move |mut peer| {
        peer.request();
        peer.send(said);
        peer.rest();
    })
}

#[test]
fn an_answer_begins_and_goes_on_in_time() {
    let timeouts = "retries = { tries = 1 }\n\
                    timeouts = { connect = '100ms', first_byte = '200ms', between_bytes = '200ms', request = '60s' }";
    for said in ["", "HTTP/1.1 200 OK\r\nX: "] {
        let server = silent_after(said);
        let rig = Rig::new(&Setup::new(&[&server]).upstream(timeouts));
        assert_eq!(rig.get("/x").status, 504);
        assert_eq!(rig.logged("/x")["reason"], "answer_timeout", "{said}");
    }
    let server = silent_after("HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhalf");
    let timeouts = timeouts.replace("first_byte = '200ms'", "first_byte = '50s'");
    let rig = Rig::new(&Setup::new(&[&server]).upstream(timeouts));
    let answer = rig.ask("GET /x HTTP/1.1\r\nHost: a.example\r\n\r\n");
    assert!(answer.ends_with("\r\n\r\nhalf"), "{answer}");
    assert_eq!(rig.logged("/x")["reason"], "answer_timeout");
}

#[test]
fn a_request_as_a_whole_ends_in_time() {
    let timeouts = "retries = { tries = 1 }\n\
                    timeouts = { connect = '100ms', first_byte = '300ms', between_bytes = '300ms', request = '300ms' }";
    let server = silent_after("");
    let rig = Rig::new(&Setup::new(&[&server]).upstream(timeouts));
    assert_eq!(rig.get("/x").status, 504);
    assert_eq!(rig.logged("/x")["reason"], "request_timeout");
    // Also one that always has something to say.
    let server = Server::start(|mut peer| {
        peer.request();
        peer.send("HTTP/1.1 200 OK\r\n\r\n");
        while peer.try_send("x").is_ok() {
            std::thread::yield_now();
        }
    });
    let rig = Rig::new(&Setup::new(&[&server]).upstream(timeouts));
    let mut client = rig.client();
    client.send("GET /y HTTP/1.1\r\nHost: a.example\r\n\r\n");
    client.rest();
    assert_eq!(rig.logged("/y")["reason"], "request_timeout");
}

#[test]
fn clients_are_not_waited_for_for_ever() {
    let server = Server::saying("ok");
    let limits = "limits = { header_timeout = '1s', idle_timeout = '1s', body_timeout = '1s' }";
    let rig = Rig::new(&Setup::new(&[&server]).listener(limits));
    // A head that does not end, however it goes on.
    let answer = rig.ask("GET / HTTP/1.1\r\nHost: a.exa");
    assert!(answer.starts_with("HTTP/1.1 408 "), "{answer}");
    assert_eq!(header(&answer, "connection"), Some("close"));
    assert_eq!(rig.refusals("head_timeout"), 1);
    let mut client = rig.client();
    client.send("GET / HTTP/1.1\r\n");
    while client.try_send("X: 1\r\n").is_ok() {
        std::thread::yield_now();
        if rig.refusals("head_timeout") + rig.refusals("fields_too_many") > 1 {
            break;
        }
    }
    // A connection that says nothing gets no answer.
    assert!(rig.client().is_closed());
    let mut client = rig.client();
    assert_eq!(client.get("/").text(), "ok");
    assert!(client.is_closed());
    // A body that does not go on.
    let mut client = rig.client();
    client.send("POST /body HTTP/1.1\r\nHost: a.example\r\nContent-Length: 5\r\n\r\nhel");
    assert_eq!(client.answer().status, 408);
    assert!(client.is_closed());
    assert_eq!(rig.logged("/body")["reason"], "body_timeout");
}

#[test]
fn a_body_that_comes_too_slowly_is_given_up() {
    let server = Server::start(|mut peer| {
        peer.rest();
    });
    let rig = Rig::new(&Setup::new(&[&server]).listener("limits = { min_rate = '1MiB/s' }"));
    let mut client = rig.client();
    client.send("POST /slow HTTP/1.1\r\nHost: a.example\r\nContent-Length: 1000000\r\n\r\n");
    // A little all the time.
    until("it is given up", || {
        let _ = client.try_send("x");
        rig.refusals("body_rate") == 1
    });
    assert_eq!(rig.logged("/slow")["status"], 408);
}

#[test]
fn a_server_that_takes_no_body_is_not_the_clients_fault() {
    let server = Server::start(|mut peer| {
        peer.head();
        // And reads no more until the proxy has given it up.
        let (_held, wait) = std::sync::mpsc::sync_channel::<()>(1);
        let _ = wait.recv_timeout(PATIENCE);
    });
    let rig = Rig::new(
        &Setup::new(&[&server])
            .listener("limits = { body_bytes = '1GiB', body_timeout = '300ms' }")
            .proxy("workers = 1\nbans = { offences = 1, window = '60s', ttl = '60s' }")
            .upstream("retries = { tries = 1 }"),
    );
    for _ in 0..3 {
        let mut client = rig.client();
        client.send("POST /stuck HTTP/1.1\r\nHost: a.example\r\nContent-Length: 100000000\r\n\r\n");
        let bytes = vec![b'x'; 1 << 16];
        while client.try_send(&bytes).is_ok() {}
    }
    let line = rig.logged("/stuck");
    assert_eq!(line["reason"], "answer_timeout", "{line}");
    assert_eq!(rig.refusals("body_timeout"), 0);
    assert!(lock(&rig.bans).is_empty());
}

#[test]
fn a_client_that_does_not_read_is_given_up() {
    let server = Server::start(|mut peer| {
        peer.request();
        peer.send("HTTP/1.1 200 OK\r\nContent-Length: 1000000000\r\n\r\n");
        let bytes = vec![b'x'; 1 << 16];
        while peer.try_send(&bytes).is_ok() {}
    });
    let rig = Rig::new(&Setup::new(&[&server]).upstream(
        "timeouts = { connect = '100ms', first_byte = '60s', between_bytes = '300ms', request = '60s' }",
    ));
    let mut client = rig.client();
    client.send("GET /deaf HTTP/1.1\r\nHost: a.example\r\n\r\n");
    assert_eq!(rig.logged("/deaf")["reason"], "client_gone");
}

#[test]
fn slow_clients_by_the_thousand_hinder_nobody() {
    let server = Server::echo();
    let rig = Rig::new(
        &Setup::new(&[&server])
            .proxy("workers = 1")
            .listener("limits = { header_timeout = '4s', body_timeout = '4s' }"),
    );
    let (heads, bodies) = (2000, 500);
    let connect = |first: &str| {
        let mut client = std::net::TcpStream::connect(rig.port.at).unwrap();
        std::io::Write::write_all(&mut client, first.as_bytes()).unwrap();
        client
    };
    let slow_heads: Vec<_> = (0..heads)
        .map(|_| connect("GET /slow HTTP/1.1\r\nHo"))
        .collect();
    let body = "POST /slow HTTP/1.1\r\nHost: a.example\r\nContent-Length: 9\r\n\r\nhalf";
    let slow_bodies: Vec<_> = (0..bodies).map(|_| connect(body)).collect();
    // All the time, also by new connections.
    let mut kept = rig.client();
    until("the slow ones are refused", || {
        assert_eq!(kept.get("/kept").status, 200);
        assert_eq!(rig.get("/new").status, 200);
        let late = (rig.refusals("head_timeout"), rig.refusals("body_timeout"));
        late == (heads, bodies)
    });
    for mut client in slow_heads.into_iter().chain(slow_bodies) {
        let mut answer = String::new();
        std::io::Read::read_to_string(&mut client, &mut answer).unwrap();
        assert!(answer.starts_with("HTTP/1.1 408 "), "{answer}");
    }
    assert_eq!(rig.get("/after").status, 200);
}
