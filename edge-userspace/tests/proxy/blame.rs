//! Whom a failure is held against: the server, the client, or nobody.

use std::sync::atomic::Ordering::Relaxed;

use super::{resilience::held, rig::*};

#[test]
fn clients_that_take_all_the_time_open_no_breaker() {
    let server = Server::saying("ok");
    let rig = Rig::new(&Setup::new(&[&server]).upstream(
        "retries = { tries = 1 }\nbreaker = { window = 2 }\n\
         passive = { consecutive_errors = 1, max_ejected = 1.0 }\n\
         timeouts = { connect = '1s', first_byte = '2s', between_bytes = '2s', request = '2s' }",
    ));
    let mut clients: Vec<Peer> = (0..4).map(|_| rig.client()).collect();
    for client in &mut clients {
        client.send("POST /slow HTTP/1.1\r\nHost: a.example\r\nContent-Length: 4\r\n\r\nha");
    }
    for client in &mut clients {
        assert_eq!(client.answer().status, 504);
    }
    assert_eq!(rig.logged("/slow")["reason"], "request_timeout");
    assert_eq!(rig.app().breaker.as_deref(), Some("closed"));
    assert_eq!(rig.get("/").text(), "ok");
}

#[test]
fn a_server_that_takes_all_the_time_is_left_alone() {
    let silent = Server::start(|mut peer| {
        peer.request();
        peer.rest();
    });
    let well = Server::saying("well");
    // What `edge` makes of it, when only the whole is said: no part has more time than it.
    let rig = Rig::new(&Setup::new(&[&silent, &well]).upstream(
        "retries = { tries = 1 }\ntimeouts = { request = '2s' }\n\
         passive = { consecutive_errors = 1, eject = '60s' }",
    ));
    let statuses: Vec<u16> = (0..8).map(|_| rig.get("/x").status).collect();
    assert_eq!(
        statuses.iter().filter(|status| **status == 504).count(),
        1,
        "{statuses:?}"
    );
    assert_eq!(silent.requests(), 1);
}

#[test]
fn a_server_whose_answers_break_is_left_alone() {
    for broken in [
        "HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhalf",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nhalf\r\n",
    ] {
        let breaking = Server::start(move |mut peer| {
            peer.request();
            peer.send(broken);
        });
        let well = Server::saying("well");
        let rig = Rig::new(&Setup::new(&[&breaking, &well]).upstream(
            "retries = { tries = 1 }\npassive = { consecutive_errors = 2, eject = '60s' }",
        ));
        for _ in 0..12 {
            rig.ask("GET / HTTP/1.1\r\nHost: a.example\r\nConnection: close\r\n\r\n");
        }
        assert_eq!(breaking.requests(), 2, "{broken}");
        assert_eq!(rig.refusals("answer_broke"), 2);
    }
}

#[test]
fn a_client_that_keeps_back_its_body_is_no_fault_of_the_server() {
    // It answers before all of the body is there, and ends with it.
    let server = Server::start(|mut peer| {
        peer.head();
        peer.take(2);
        peer.send("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nha\r\n");
        peer.rest();
    });
    let rig = Rig::new(&Setup::new(&[&server]).upstream(
        "retries = { tries = 1 }\n\
         passive = { consecutive_errors = 1, max_ejected = 1.0, eject = '60s' }\n\
         timeouts = { connect = '200ms', first_byte = '60s', between_bytes = '300ms', request = '60s' }",
    ));
    let mut client = rig.client();
    client.send("POST /owed HTTP/1.1\r\nHost: a.example\r\nContent-Length: 4\r\n\r\nha");
    let answer = String::from_utf8(client.rest()).unwrap();
    assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
    assert_eq!(rig.logged("/owed")["reason"], "answer_timeout");
    assert_eq!(rig.app().servers[0].ejected_ms, 0);
}

#[test]
fn a_server_that_nobody_asked_has_not_failed() {
    let failing = Server::start(|peer| say(peer, "500 Internal Server Error", "no"));
    let rig = Rig::new(&Setup::new(&[&failing]).upstream(
        "retries = { tries = 1 }\npanic_threshold = 0.0\nbreaker = { window = 4, open = '60s' }\n\
         passive = { consecutive_errors = 1, max_ejected = 1.0, eject = '60s' }",
    ));
    assert_eq!(rig.get("/").status, 500);
    for _ in 0..4 {
        assert_eq!(rig.get("/").status, 503);
    }
    assert_eq!(rig.refusals("no_server"), 4);
    assert_eq!(rig.app().breaker.as_deref(), Some("closed"));
}

#[test]
fn who_is_refused_by_a_breaker_is_told_when_to_come_back() {
    let server = Server::start(|peer| say(peer, "500 Internal Server Error", "no"));
    let rig = Rig::new(&Setup::new(&[&server]).upstream(
        "retries = { tries = 1 }\nbreaker = { failure_rate = 1.0, window = 1, open = '1h' }",
    ));
    assert_eq!(rig.get("/").status, 500);
    let answer = rig.get("/");
    assert_eq!(answer.status, 503);
    let seconds = answer.header("retry-after").unwrap().parse().unwrap();
    assert!((3000..=3600u32).contains(&seconds), "{seconds}");
}

/// A POST whose body is there with its head.
const POST: &str = "POST /post HTTP/1.1\r\nHost: a.example\r\nContent-Length: 2\r\n\r\nhi";

#[test]
fn nothing_is_sent_for_a_client_that_went_and_left_its_body() {
    let (server, had, go) = held();
    let rig = Rig::new(
        &Setup::new(&[&server])
            .upstream("concurrency = { requests = 1, queue = 1, queue_timeout = '50s' }"),
    );
    let mut first = rig.client();
    first.send("GET / HTTP/1.1\r\nHost: a.example\r\n\r\n");
    until("the first is under way", || had.load(Relaxed) == 1);
    for part in [POST, &POST[..POST.len() - 1]] {
        // With an end, and with a reset.
        for is_reset in [false, true] {
            let mut second = rig.client();
            second.send(part);
            until("it waits", || rig.app().waiting == 1);
            if is_reset {
                second.reset();
            } else {
                drop(second);
            }
            until("nobody waits", || rig.app().waiting == 0);
        }
    }
    assert_eq!(rig.refusals("client_gone"), 4);
    go.send(()).unwrap();
    assert_eq!(first.answer().text(), "ok");
    // A body that waited is sent as it came, and the next request behind it is not lost.
    first.send("GET / HTTP/1.1\r\nHost: a.example\r\n\r\n");
    until("the first is under way again", || had.load(Relaxed) == 2);
    let mut third = rig.client();
    third.send(POST);
    until("it waits", || rig.app().waiting == 1);
    third.send(POST);
    for _ in 0..3 {
        go.send(()).unwrap();
    }
    assert_eq!(first.answer().text(), "ok");
    assert_eq!(third.answer().text(), "ok");
    assert_eq!(third.answer().text(), "ok");
    assert_eq!(server.seen().concat().matches("\r\n\r\nhi").count(), 2);
}

#[test]
fn every_answer_says_when_it_was_made() {
    let dated = Server::start(|peer| {
        say(peer, "200 OK\r\nDate: Tue, 15 Nov 1994 08:12:31 GMT", "ok");
    });
    let answer = Rig::new(&Setup::new(&[&dated])).get("/");
    assert_eq!(answer.head.matches("Date: ").count(), 1);
    assert_eq!(answer.header("date"), Some("Tue, 15 Nov 1994 08:12:31 GMT"));
    let undated = Server::saying("ok");
    let answer = Rig::new(&Setup::new(&[&undated])).get("/");
    let date = answer.header("date").expect("a date");
    assert!(date.ends_with(" GMT") && date.len() == 29, "{date}");
}
