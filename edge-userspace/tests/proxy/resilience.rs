//! What keeps failures of servers from clients, and load from servers.

use std::{
    net::TcpListener,
    sync::{
        Arc, Barrier, Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed},
        mpsc,
    },
    time::{Duration, Instant},
};

use super::rig::*;

/// A server that takes the first request of a connection, and hangs up at the second.
fn hanging_up() -> Server {
    Server::start(|mut peer| {
        peer.request();
        peer.send("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok");
        peer.head();
    })
}

#[test]
fn a_connection_that_was_closed_meanwhile_is_no_failure() {
    let server = hanging_up();
    let rig = Rig::new(&Setup::new(&[&server]).upstream("retries = { tries = 1 }"));
    let mut client = rig.client();
    for _ in 0..5 {
        assert_eq!(client.get("/").text(), "ok");
    }
    let app = rig.app();
    assert_eq!((app.connects, app.retries), (5, 0));
    // Nobody knows whether the server has begun with it.
    client.send("POST /post HTTP/1.1\r\nHost: a.example\r\nContent-Length: 2\r\n\r\nhi");
    assert_eq!(client.answer().status, 502);
    assert_eq!(rig.logged("/post")["reason"], "server_broke");
    assert_eq!(server.seen().concat().matches("POST ").count(), 1);
    // But one that is known to be closed is not used.
    assert_eq!(client.get("/").text(), "ok");
}

/// An address where nobody listens any more.
fn nobody() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    listener.local_addr().unwrap().to_string()
}

#[test]
fn another_server_is_tried() {
    for failing in [
        Server::start(drop),
        Server::start(|mut peer| {
            peer.request();
        }),
        Server::start(|peer| say(peer, "503 Service Unavailable", "no")),
        Server::start(|mut peer| {
            peer.request();
            peer.send("rubbish\r\n");
        }),
    ] {
        let well = Server::saying("well");
        let upstream = "retries = { tries = 2, base = '1ms', budget = 1.0 }";
        let rig = Rig::new(&Setup::new(&[&failing, &well]).upstream(upstream));
        let mut client = rig.client();
        for n in 0..6 {
            assert_eq!(client.get("/").text(), "well", "{n}");
            client.send("PUT / HTTP/1.1\r\nHost: a.example\r\nContent-Length: 2\r\n\r\nhi");
            assert_eq!(client.answer().text(), "well", "{n}");
        }
        assert!(rig.app().retries > 0);
        assert!(well.seen().concat().contains("\r\n\r\nhi"));
    }
    // Nobody has begun with what was never sent: even POST.
    let well = Server::saying("well");
    let mut setup =
        Setup::new(&[&well]).upstream("retries = { tries = 2, base = '1ms', budget = 1.0 }");
    setup.servers.insert(0, nobody());
    let rig = Rig::new(&setup);
    let mut client = rig.client();
    for _ in 0..4 {
        client.send(POST);
        assert_eq!(client.answer().text(), "well");
    }
    let app = rig.app();
    assert!(
        app.connect_failures > 0 && app.retries == app.connect_failures,
        "{app:?}"
    );
}

#[test]
fn a_request_is_tried_as_often_as_may_be_and_the_last_answer_stands() {
    let failing = Server::start(|peer| say(peer, "503 Service Unavailable", "no"));
    let setup =
        Setup::new(&[&failing]).upstream("retries = { tries = 3, base = '1ms', budget = 1.0 }");
    let rig = Rig::new(&setup);
    assert_eq!(rig.get("/x").text(), "no");
    assert_eq!(failing.requests(), 3);
    assert_eq!(rig.logged("/x")["tries"], 3);
    // Not what is no failure of the server, and not what changes something.
    let mut client = rig.client();
    client.send(POST);
    assert_eq!(client.answer().status, 503);
    assert_eq!(failing.requests(), 4);
    let failing = Server::start(|peer| say(peer, "500 Internal Server Error", "no"));
    let rig = Rig::new(&Setup::new(&[&failing]));
    assert_eq!(rig.get("/").status, 500);
    assert_eq!(failing.requests(), 1);
    // Nobody there.
    let mut setup = setup;
    setup.servers = vec![nobody()];
    let rig = Rig::new(&setup);
    let answer = rig.get("/y");
    assert_eq!(answer.status, 502);
    assert_eq!(rig.logged("/y")["reason"], "connect_failed");
}

const POST: &str = "POST / HTTP/1.1\r\nHost: a.example\r\nContent-Length: 2\r\n\r\nhi";

#[test]
fn what_may_have_been_done_is_repeated_by_leave() {
    let failing: fn(Peer) = |peer| say(peer, "503 Service Unavailable", "no");
    let breaking: fn(Peer) = |mut peer| drop(peer.request());
    let keys = "retries = { tries = 3, base = '1ms', budget = 1.0";
    let leave = format!("{keys}, non_idempotent = true }}");
    let keys = format!("{keys} }}");
    // What the route says goes before what the upstream does.
    let by_route = |leave: bool| format!("{ALL}retries = {{ non_idempotent = {leave} }}\n");
    for (upstream, routes, tries) in [
        (&keys, ALL.to_owned(), 1),
        (&leave, ALL.to_owned(), 3),
        (&keys, by_route(true), 3),
        (&leave, by_route(false), 1),
    ] {
        for (serve, status) in [(failing, 503), (breaking, 502)] {
            let server = Server::start(serve);
            let setup = Setup::new(&[&server]).upstream(upstream).routes(&routes);
            let rig = Rig::new(&setup);
            let mut client = rig.client();
            client.send(POST);
            assert_eq!(client.answer().status, status);
            assert_eq!(server.requests(), tries, "{upstream}, {routes}");
        }
    }
}

#[test]
fn kept_connections_are_no_more_tries_of_what_is_repeated_by_leave() {
    // All are under way at one time, so each has a connection, which is kept.
    const KEPT: usize = 5;
    let all = Arc::new(Barrier::new(KEPT));
    let server = Server::start(move |mut peer| {
        // Upon a POST it hangs up.
        while let Some((head, _)) = peer.request()
            && head.starts_with("GET ")
        {
            all.wait();
            peer.send("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok");
        }
    });
    let leave = "retries = { tries = 2, base = '1ms', budget = 1.0, non_idempotent = true }";
    let rig = Rig::new(&Setup::new(&[&server]).upstream(leave));
    let mut clients: Vec<_> = (0..KEPT).map(|_| rig.client()).collect();
    for client in &mut clients {
        client.send("GET / HTTP/1.1\r\nHost: a.example\r\n\r\n");
    }
    for client in &mut clients {
        assert_eq!(client.answer().text(), "ok");
    }
    clients[0].send(POST);
    assert_eq!(clients[0].answer().status, 502);
    assert_eq!(server.seen().concat().matches("POST ").count(), 2);
}

/// A server whose answers wait until it is let go, and how many requests it has that waited. Those
/// for `/bad` fail then, those for `/fast` and `/fail` are answered and fail at once.
pub(super) fn held() -> (Server, Arc<AtomicUsize>, mpsc::SyncSender<()>) {
    let (go, wait) = mpsc::sync_channel(64);
    let (wait, count) = (Mutex::new(wait), Arc::new(AtomicUsize::new(0)));
    let had = count.clone();
    let server = Server::start(move |mut peer| {
        while let Some((head, _)) = peer.request() {
            let path = head.split(' ').nth(1).unwrap();
            if !["/fast", "/fail"].contains(&path) {
                had.fetch_add(1, Relaxed);
                if lock(&wait).recv().is_err() {
                    return;
                }
            }
            let status = match path {
                "/bad" | "/fail" => "500 Internal Server Error",
                _ => "200 OK",
            };
            let _ = peer.try_send(format!("HTTP/1.1 {status}\r\nContent-Length: 2\r\n\r\nok"));
        }
    });
    (server, count, go)
}

pub(super) const GET: &str = "GET / HTTP/1.1\r\nHost: a.example\r\n\r\n";

#[test]
fn no_more_requests_are_under_way_than_may_be() {
    let (server, had, go) = held();
    let rig = Rig::new(
        &Setup::new(&[&server])
            .upstream("concurrency = { requests = 1, queue = 1, queue_timeout = '30s' }"),
    );
    let (mut first, mut second) = (rig.client(), rig.client());
    first.send(GET);
    until("the first is under way", || had.load(Relaxed) == 1);
    second.send(GET);
    until("the second waits", || rig.app().waiting == 1);
    let answer = rig.get("/third");
    assert_eq!(answer.status, 503);
    assert_eq!(answer.header("retry-after"), Some("1"));
    assert_eq!(rig.logged("/third")["reason"], "overloaded");
    assert_eq!(had.load(Relaxed), 1);
    go.send(()).unwrap();
    assert_eq!(first.answer().text(), "ok");
    go.send(()).unwrap();
    assert_eq!(second.answer().text(), "ok");
    // The client has its answer a moment before its place is free.
    until("nobody is under way", || rig.app().active == 0);
    let app = rig.app();
    assert_eq!((app.waiting, app.queued, app.overflows), (0, 1, 1));
}

#[test]
fn whoever_waits_too_long_or_goes_leaves_the_queue() {
    let (server, had, go) = held();
    let rig = Rig::new(&Setup::new(&[&server]).routes(format!(
        "{ALL}concurrency = {{ requests = 1, queue = 1, queue_timeout = '100ms' }}\n"
    )));
    let mut first = rig.client();
    first.send(GET);
    until("the first is under way", || had.load(Relaxed) == 1);
    let answer = rig.get("/second");
    assert_eq!(answer.status, 503);
    assert_eq!(answer.header("retry-after"), Some("1"));
    assert_eq!(rig.logged("/second")["reason"], "queue_timeout");
    go.send(()).unwrap();
    assert_eq!(first.answer().text(), "ok");

    let (server, had, go) = held();
    let rig = Rig::new(
        &Setup::new(&[&server])
            .upstream("concurrency = { requests = 1, queue = 1, queue_timeout = '30s' }"),
    );
    let (mut first, mut second) = (rig.client(), rig.client());
    first.send(GET);
    until("the first is under way", || had.load(Relaxed) == 1);
    second.send(GET);
    until("the second waits", || rig.app().waiting == 1);
    drop(second);
    until("nobody waits", || rig.app().waiting == 0);
    // The first one goes as well: its place is free.
    drop(first);
    until("nobody is under way", || rig.app().active == 0);
    let mut third = rig.client();
    third.send(GET);
    until("the third is under way", || had.load(Relaxed) == 2);
    go.send(()).unwrap();
    go.send(()).unwrap();
    assert_eq!(third.answer().text(), "ok");
}

/// A server that is well or not as a switch says.
pub(super) fn switched() -> (Server, Arc<AtomicBool>) {
    failing_with("500 Internal Server Error")
}

/// The same with another status while it is not well.
pub(super) fn failing_with(bad: &'static str) -> (Server, Arc<AtomicBool>) {
    let well = Arc::new(AtomicBool::new(false));
    let is_well = well.clone();
    let server = Server::start(move |mut peer| {
        while peer.request().is_some() {
            let status = if is_well.load(Relaxed) { "200 OK" } else { bad };
            let _ = peer.try_send(format!("HTTP/1.1 {status}\r\nContent-Length: 0\r\n\r\n"));
        }
    });
    (server, well)
}

#[test]
fn a_breaker_opens_tries_and_closes() {
    let (server, well) = switched();
    let rig = Rig::new(&Setup::new(&[&server]).upstream(
        "retries = { tries = 1 }\nbreaker = { failure_rate = 0.5, window = 4, open = '300ms', probes = 1 }",
    ));
    let state = || rig.app().breaker.unwrap();
    assert_eq!(state(), "closed");
    let mut client = rig.client();
    until("it opens", || {
        client.get("/");
        state() == "open"
    });
    // It stays open for a while, in which nothing reaches the server.
    let mut refused = None;
    until("a request is refused", || {
        let before = server.requests();
        let answer = client.get("/open");
        if answer.status == 503 {
            assert_eq!(server.requests(), before);
            refused = Some(answer);
        }
        refused.is_some()
    });
    assert!(refused.unwrap().header("retry-after").is_some());
    assert!(rig.refusals("breaker_open") > 0 && rig.app().broken > 0);
    // A probe that fails opens it again; one that succeeds closes it.
    let before = server.requests();
    until("a probe", || {
        client.get("/");
        server.requests() > before
    });
    assert_ne!(state(), "closed");
    well.store(true, Relaxed);
    until("it closes", || {
        client.get("/").status == 200 && state() == "closed"
    });
    for _ in 0..20 {
        assert_eq!(client.get("/").status, 200);
    }
}

#[test]
fn a_server_that_fails_is_left_alone_for_a_while() {
    let (failing, recovered) = switched();
    let well = Server::saying("well");
    let rig = Rig::new(&Setup::new(&[&failing, &well]).upstream(
        "retries = { tries = 1 }\npassive = { consecutive_errors = 3, eject = '2s', max_ejected = 0.5 }",
    ));
    let mut client = rig.client();
    until("it is ejected", || {
        client.get("/");
        rig.app().servers[0].ejected_ms > 0
    });
    assert_eq!(failing.requests(), 3);
    recovered.store(true, Relaxed);
    until("it is back", || {
        client.get("/");
        failing.requests() > 3
    });
    // No more than a share of the group.
    let (one, _) = switched();
    let (two, _) = switched();
    let rig = Rig::new(&Setup::new(&[&one, &two]).upstream(
        "retries = { tries = 1 }\npassive = { consecutive_errors = 3, eject = '60s', max_ejected = 0.5 }",
    ));
    let mut client = rig.client();
    for _ in 0..30 {
        assert_eq!(client.get("/").status, 500);
    }
    let ejected = rig
        .app()
        .servers
        .iter()
        .filter(|s| s.ejected_ms > 0)
        .count();
    assert_eq!(ejected, 1);
}

/// A server of whose requests every fifth and the one after it fail.
fn flaky() -> Server {
    let count = AtomicUsize::new(0);
    Server::start(move |mut peer| {
        while peer.request().is_some() {
            let status = match count.fetch_add(1, Relaxed) % 5 {
                0 | 1 => "500 Internal Server Error",
                _ => "200 OK",
            };
            let _ = peer.try_send(format!("HTTP/1.1 {status}\r\nContent-Length: 0\r\n\r\n"));
        }
    })
}

/// How many servers are left alone.
pub(super) fn ejected(rig: &Rig) -> usize {
    let servers = rig.app().servers;
    servers.iter().filter(|s| s.ejected_ms > 0).count()
}

#[test]
fn a_server_that_fails_too_often_is_left_alone_though_never_in_a_row() {
    let (flaky, well) = (flaky(), Server::saying("well"));
    let passive = |more: &str| {
        format!(
            "retries = {{ tries = 1 }}\npassive = {{ consecutive_errors = 5, eject = '60s', max_ejected = 0.5{more} }}"
        )
    };
    let setup = Setup::new(&[&flaky, &well]);
    let rig = Rig::new(&setup.clone().upstream(passive("")));
    let mut client = rig.client();
    for _ in 0..60 {
        client.get("/");
    }
    assert_eq!(ejected(&rig), 0);
    let rate = ", error_rate = 0.3, window = 10";
    let rig = Rig::new(&setup.upstream(passive(rate)));
    let mut client = rig.client();
    until("it is ejected", || {
        client.get("/");
        ejected(&rig) > 0
    });
    assert!(rig.app().servers[0].ejected_ms > 0);
    let before = flaky.requests();
    for _ in 0..20 {
        assert_eq!(client.get("/").text(), "well");
    }
    assert_eq!(flaky.requests(), before);
}

#[test]
fn no_more_than_a_share_is_left_alone_by_rate() {
    let servers: Vec<Server> = std::iter::repeat_with(flaky).take(5).collect();
    let all: Vec<&Server> = servers.iter().collect();
    let rig = Rig::new(&Setup::new(&all).upstream(
        "retries = { tries = 1 }\npassive = { consecutive_errors = 1000, error_rate = 0.3, window = 5, eject = '60s', max_ejected = 0.4 }",
    ));
    let mut client = rig.client();
    until("two are ejected", || {
        client.get("/");
        ejected(&rig) == 2
    });
    for _ in 0..100 {
        client.get("/");
        assert_eq!(ejected(&rig), 2);
    }
}

#[test]
fn a_slow_server_is_left_alone_and_a_slow_client_is_no_reason() {
    const SLOW: &str = "retries = { tries = 1 }\npassive = { consecutive_errors = 1000, error_rate = 1.0, window = 3, latency = '300ms', eject = '60s', max_ejected = 0.5 }";
    // It takes its time, which nobody cuts short.
    let (_keep, never) = mpsc::sync_channel::<()>(1);
    let never = Mutex::new(never);
    let slow = Server::start(move |mut peer| {
        while peer.request().is_some() {
            let _ = lock(&never).recv_timeout(Duration::from_millis(600));
            let _ = peer.try_send("HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nslow");
        }
    });
    let well = Server::saying("well");
    let rig = Rig::new(&Setup::new(&[&slow, &well]).upstream(SLOW));
    let mut client = rig.client();
    until("it is ejected", || {
        client.get("/");
        ejected(&rig) > 0
    });
    assert!(rig.app().servers[0].ejected_ms > 0);
    assert_eq!(client.get("/").text(), "well");

    let (one, two) = (Server::saying("one"), Server::saying("two"));
    let rig = Rig::new(&Setup::new(&[&one, &two]).upstream(SLOW));
    for at in 0..8 {
        let mut client = rig.client();
        client.send("POST / HTTP/1.1\r\nHost: a.example\r\nContent-Length: 2\r\n\r\nh");
        until("the server has what there is", || {
            one.requests() + two.requests() > at
        });
        let since = Instant::now();
        until("that was slow", || {
            since.elapsed() > Duration::from_millis(400)
        });
        client.send("i");
        assert_eq!(client.answer().status, 200);
    }
    assert_eq!(ejected(&rig), 0);
}
