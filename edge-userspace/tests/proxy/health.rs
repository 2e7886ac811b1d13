//! How servers are found to be down and well again, what is done when most are, and what of it
//! outlives a reload.

use std::{
    net::TcpListener,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::Instant,
};

use socket2::{Domain, Socket, Type};

use super::{
    balancing::{numbered, reached, reload, set},
    resilience::{GET, ejected, failing_with, held, switched},
    rig::*,
};

const BAD: &str = "GET /bad HTTP/1.1\r\nHost: a.example\r\n\r\n";
const ONE_TRY: &str = "retries = { tries = 1 }";

/// How many of so many requests of one connection have this status.
#[track_caller]
fn count(rig: &Rig, requests: usize, status: u16) -> usize {
    let mut client = rig.client();
    let all = (0..requests).filter(|_| client.get("/").status == status);
    all.count()
}

fn breaker(rig: &Rig) -> String {
    rig.app().breaker.unwrap()
}

#[test]
fn when_all_fail_all_are_asked_unless_that_is_not_wanted() {
    let eject = |threshold: &str| {
        format!(
            "{ONE_TRY}\npanic_threshold = {threshold}\npassive = {{ consecutive_errors = 1, eject = '1h', max_ejected = 1.0 }}"
        )
    };
    let all = [(); 3].map(|()| switched());
    let [a, b, c] = &all;
    let setup = Setup::new(&[&a.0, &b.0, &c.0]);
    let rig = Rig::new(&setup.clone().upstream(eject("0.5")));
    assert_eq!(count(&rig, 30, 500), 30);
    assert_eq!(ejected(&rig), 3);
    assert!(all.iter().all(|(server, _)| server.requests() >= 9));
    all.iter().for_each(|(_, well)| well.store(true, Relaxed));
    assert_eq!(count(&rig, 30, 200), 30);
    assert_eq!(ejected(&rig), 3);

    all.iter().for_each(|(_, well)| well.store(false, Relaxed));
    let rig = Rig::new(&setup.upstream(eject("0")));
    let before = all.iter().map(|(server, _)| server.requests());
    let before: usize = before.sum();
    assert_eq!(count(&rig, 3, 500), 3);
    assert_eq!(count(&rig, 10, 503), 10);
    assert_eq!(rig.refusals("no_server"), 10);
    let after = all.iter().map(|(server, _)| server.requests());
    assert_eq!(after.sum::<usize>(), before + 3);
}

#[test]
fn backups_help_before_servers_are_asked_that_fail() {
    let (down, spare) = ([(); 2].map(|()| switched()), Server::saying("spare"));
    let [(b, _), (c, _)] = &down;
    let a = Server::saying("a");
    let setup = Setup::new(&[&a, b, c, &spare])
        .upstream(format!(
            "{ONE_TRY}\npassive = {{ consecutive_errors = 1, eject = '1h', max_ejected = 1.0 }}"
        ))
        .server(3, "backup = true");
    let rig = Rig::new(&setup);
    // One of three is left, less than half.
    until("two are ejected", || {
        rig.get("/");
        ejected(&rig) == 2
    });
    assert_eq!(reached(&rig, 20), set(["a", "spare"]));
    assert_eq!((b.requests(), c.requests()), (1, 1));
}

/// Answers requests with its name, and checks as the switch says.
fn checked(text: &'static str) -> (Server, Arc<AtomicBool>) {
    let well = Arc::new(AtomicBool::new(true));
    let is_well = well.clone();
    let server = Server::start(move |mut peer| {
        while let Some((head, _)) = peer.request() {
            let status = match head.starts_with("GET /healthz ") && !is_well.load(Relaxed) {
                true => "503 Service Unavailable",
                false => "200 OK",
            };
            let length = text.len();
            let answer = format!("HTTP/1.1 {status}\r\nContent-Length: {length}\r\n\r\n{text}");
            if peer.try_send(answer).is_err() {
                return;
            }
        }
    });
    (server, well)
}

fn is_up(rig: &Rig, at: usize) -> bool {
    rig.app().servers[at].up
}

#[test]
fn checks_by_http_take_a_server_out_and_back() {
    let ((a, a_well), (b, _)) = (checked("a"), checked("b"));
    let setup = Setup::new(&[&a, &b]).upstream(
        "health = { kind = 'http', path = '/healthz', interval = '1s', timeout = '900ms', rise = 1, fall = 3 }",
    );
    let rig = Rig::new(&setup);
    assert_eq!(reached(&rig, 10), set(["a", "b"]));
    a_well.store(false, Relaxed);
    until("it is down", || !is_up(&rig, 0));
    assert_eq!(reached(&rig, 10), set(["b"]));
    assert!(rig.app().servers[0].why.is_some());
    a_well.store(true, Relaxed);
    until("it is up", || is_up(&rig, 0));
    assert_eq!(reached(&rig, 10), set(["a", "b"]));
}

/// A server at a port, and what ends its listening with the next connection.
fn listening(port: &Port, text: &'static str) -> (Server, Arc<AtomicBool>) {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
    socket.set_reuse_address(true).unwrap();
    socket.set_reuse_port(true).unwrap();
    socket.bind(&port.at.into()).unwrap();
    socket.listen(64).unwrap();
    let listener = TcpListener::from(socket);
    let end = Arc::new(AtomicBool::new(false));
    let is_over = end.clone();
    let accept = move || {
        let (stream, _) = listener.accept()?;
        match is_over.load(Relaxed) {
            true => Err(std::io::Error::other("it is over")),
            false => Ok(Peer::of_server(stream)),
        }
    };
    let serve = move |peer| say(peer, "200 OK", text);
    (Server::accepting(port.at.to_string(), serve, accept), end)
}

#[test]
fn checks_by_tcp_take_a_server_out_and_back() {
    let (port, b) = (Port::new(), Server::saying("b"));
    let (a, end) = listening(&port, "a");
    let setup = Setup::new(&[&a, &b]).upstream(
        "health = { kind = 'tcp', interval = '1s', timeout = '900ms', rise = 1, fall = 3 }",
    );
    let rig = Rig::new(&setup);
    assert_eq!(reached(&rig, 10), set(["a", "b"]));
    // Its kept connections are still there.
    end.store(true, Relaxed);
    until("it is down", || !is_up(&rig, 0));
    assert_eq!(reached(&rig, 10), set(["b"]));
    let _back = listening(&port, "back");
    until("it is up", || is_up(&rig, 0));
    until("it is asked again", || {
        reached(&rig, 10).intersection(&set(["a", "back"])).count() > 0
    });
}

#[test]
fn no_more_than_a_share_of_the_requests_is_tried_again() {
    const REQUESTS: u64 = 200;
    let (failing, _) = failing_with("503 Service Unavailable");
    let retries = "retries = { tries = 2, base = '1ms' }";
    let rig = Rig::new(&Setup::new(&[&failing]).upstream(retries));
    let since = Instant::now();
    assert_eq!(count(&rig, REQUESTS as usize, 503) as u64, REQUESTS);
    let app = rig.app();
    // Each is tried again, or is not because of the budget.
    assert_eq!(app.retries + app.retries_denied, REQUESTS);
    assert_eq!(failing.requests() as u64, REQUESTS + app.retries);
    let floor = 3 + since.elapsed().as_secs() + 1;
    assert!(app.retries <= REQUESTS / 5 + floor, "{app:?}");
    assert!(app.retries_denied > 0);
}

#[test]
fn half_open_as_many_requests_go_as_are_to_try() {
    let (server, had, go) = held();
    let rig = Rig::new(&Setup::new(&[&server]).upstream(format!(
        "{ONE_TRY}\nbreaker = {{ failure_rate = 1.0, window = 1, open = '100ms', probes = 2 }}"
    )));
    assert_eq!(rig.get("/fail").status, 500);
    // Also when nobody asks.
    until("it is half open", || breaker(&rig) == "half_open");
    let (mut first, mut second) = (rig.client(), rig.client());
    first.send(GET);
    second.send(GET);
    until("both try", || had.load(Relaxed) == 2);
    assert_eq!(rig.get("/fast").status, 503);
    go.send(()).unwrap();
    until("one has succeeded", || rig.app().servers[0].active == 1);
    assert_eq!(breaker(&rig), "half_open");
    assert_eq!(rig.get("/fast").status, 503);
    go.send(()).unwrap();
    until("it is closed", || breaker(&rig) == "closed");
    assert_eq!(rig.get("/fast").status, 200);
    assert_eq!(rig.refusals("breaker_open"), 2);
    for client in [&mut first, &mut second] {
        assert_eq!(client.answer().status, 200);
    }
}

/// First a place, then the breaker.
#[test]
fn who_waits_for_a_place_is_nothing_to_the_breaker() {
    let (server, had, go) = held();
    let rig = Rig::new(&Setup::new(&[&server]).upstream(format!(
        "{ONE_TRY}\nconcurrency = {{ requests = 2, queue = 4, queue_timeout = '50s' }}\n\
         breaker = {{ failure_rate = 1.0, window = 1, open = '5s', probes = 1 }}"
    )));
    let mut clients = Vec::new();
    let mut send = |request: &str| {
        let mut client = rig.client();
        client.send(request);
        clients.push(client);
    };
    (0..2).for_each(|_| send(BAD));
    until("two are under way", || had.load(Relaxed) == 2);
    (0..3).for_each(|_| send(GET));
    until("three wait", || rig.app().waiting == 3);
    assert_eq!(breaker(&rig), "closed");
    // It opens, and who waited is refused by it as soon as there is a place.
    go.send(()).unwrap();
    until("those that waited are refused", || rig.app().broken == 3);
    assert_eq!((had.load(Relaxed), rig.app().overflows), (2, 0));
    // Of the two places, one is free: the one who gets it tries, the others wait.
    until("it is half open", || breaker(&rig) == "half_open");
    send(GET);
    until("one tries", || had.load(Relaxed) == 3);
    (0..2).for_each(|_| send(GET));
    until("two wait", || rig.app().waiting == 2);
    // The other one that failed is of a time before, and its place is for who waits; who then is
    // refused, as one tries already.
    go.send(()).unwrap();
    until("those that waited are refused", || rig.app().broken == 5);
    assert_eq!(
        (had.load(Relaxed), breaker(&rig).as_str()),
        (3, "half_open")
    );
    go.send(()).unwrap();
    until("it is closed", || breaker(&rig) == "closed");
    let mut statuses: Vec<u16> = clients.iter_mut().map(|c| c.answer().status).collect();
    statuses.sort_unstable();
    assert_eq!(statuses, [200, 500, 500, 503, 503, 503, 503, 503]);
    assert_eq!(rig.refusals("breaker_open"), 5);
}

#[test]
fn a_request_that_is_tried_again_is_one_for_the_breaker_and_has_one_place() {
    let (failing, _) = failing_with("503 Service Unavailable");
    let rig = Rig::new(&Setup::new(&[&failing]).upstream(
        "retries = { tries = 3, base = '1ms', budget = 1.0 }\nconcurrency = { requests = 1, queue = 0 }\n\
         breaker = { failure_rate = 1.0, window = 2, open = '1h' }",
    ));
    let mut client = rig.client();
    assert_eq!(client.get("/").status, 503);
    assert_eq!((failing.requests(), breaker(&rig).as_str()), (3, "closed"));
    assert_eq!(client.get("/").status, 503);
    assert_eq!((failing.requests(), breaker(&rig).as_str()), (6, "open"));
    assert_eq!(client.get("/").status, 503);
    let app = rig.app();
    assert_eq!((failing.requests(), app.overflows, app.broken), (6, 0, 1));
}

#[test]
fn an_open_breaker_stays_open_through_a_reload() {
    let ((failing, _), new) = (switched(), Server::saying("new"));
    let keys = |window: u32| {
        format!("{ONE_TRY}\nbreaker = {{ failure_rate = 1.0, window = {window}, open = '1h' }}")
    };
    let setup = Setup::new(&[&failing]);
    let mut rig = Rig::new(&numbered(&setup.upstream(keys(1)), 0));
    assert_eq!(rig.get("/").status, 500);
    assert_eq!(breaker(&rig), "open");
    let setup = Setup::new(&[&failing, &new]);
    reload(&mut rig, &setup.clone().upstream(keys(1)), 1);
    assert_eq!(breaker(&rig), "open");
    assert_eq!(count(&rig, 4, 503), 4);
    assert_eq!((failing.requests(), new.requests()), (1, 0));
    // Another breaker knows nothing.
    reload(&mut rig, &setup.upstream(keys(2)), 2);
    assert_eq!(breaker(&rig), "closed");
}

#[test]
fn who_is_under_way_counts_on_through_a_reload() {
    let places = |requests: u32, queue: u32| {
        format!("concurrency = {{ requests = {requests}, queue = {queue}, queue_timeout = '50s' }}")
    };
    let under = |keys: String| format!("{ALL}{keys}\n");
    let ((server, had, go), new) = (held(), Server::saying("new"));
    for of_route in [false, true] {
        let before = had.load(Relaxed);
        let with = |servers: &[&Server], keys: String| {
            let setup = Setup::new(servers);
            match of_route {
                true => setup.routes(under(keys)),
                false => setup.upstream(keys),
            }
        };
        let mut rig = Rig::new(&numbered(&with(&[&server], places(1, 1)), 0));
        let (mut first, mut second) = (rig.client(), rig.client());
        first.send(GET);
        until("one is under way", || had.load(Relaxed) == before + 1);
        // The same number, and another server.
        reload(&mut rig, &with(&[&server, &new], places(1, 0)), 1);
        assert_eq!(rig.get("/fast").status, 503);
        assert_eq!((rig.refusals("overloaded"), new.requests()), (1, 0));
        reload(&mut rig, &with(&[&server], places(1, 1)), 2);
        second.send(GET);
        // Who waits for a route is in no gauge.
        if !of_route {
            until("one waits", || rig.app().waiting == 1);
        }
        // More room lets in who waits.
        reload(&mut rig, &with(&[&server], places(2, 0)), 3);
        until("two are under way", || had.load(Relaxed) == before + 2);
        assert_eq!(rig.get("/fast").status, 503);
        // With less nobody begins until there are fewer.
        reload(&mut rig, &with(&[&server], places(1, 0)), 4);
        go.send(()).unwrap();
        until("one is under way", || rig.app().servers[0].active == 1);
        assert_eq!(rig.get("/fast").status, 503);
        go.send(()).unwrap();
        until("nobody is under way", || rig.get("/fast").status == 200);
        for client in [&mut first, &mut second] {
            assert_eq!(client.answer().status, 200);
        }
    }
}

#[test]
fn a_spent_retry_budget_is_no_new_one_after_a_reload() {
    let (server, well) = failing_with("503 Service Unavailable");
    let setup = Setup::new(&[&server]);
    let keys = |base: u32| format!("retries = {{ tries = 2, base = '{base}ms' }}");
    let mut rig = Rig::new(&numbered(&setup.clone().upstream(keys(1)), 0));
    let mut n = 0;
    // What requests bring is there for ten seconds; on a busy machine that is not enough each time.
    until("all are tried again", || {
        well.store(true, Relaxed);
        assert_eq!(count(&rig, 400, 200), 400);
        n += 1;
        reload(&mut rig, &setup.clone().upstream(keys(1 + n as u32 % 2)), n);
        well.store(false, Relaxed);
        let before = rig.app().retries_denied;
        assert_eq!(count(&rig, 60, 503), 60);
        rig.app().retries_denied == before
    });
}
