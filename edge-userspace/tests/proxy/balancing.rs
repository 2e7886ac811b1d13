//! Which server a request reaches.

use std::{
    collections::BTreeSet,
    sync::atomic::{AtomicUsize, Ordering::Relaxed},
};

use edge_userspace::l7::proxy::Change;

use super::{
    resilience::{GET, ejected, held},
    rig::*,
};

/// Changes a server as `edge upstream` does.
#[track_caller]
pub(super) fn change(rig: &Rig, server: &Server, change: Change) {
    let view = rig.tier.view();
    view.change("app", &server.address, change).unwrap();
}

/// A configuration that answers itself which one it is.
pub(super) fn numbered(setup: &Setup, n: usize) -> Setup {
    let routes = &setup.routes;
    setup.clone().routes(format!(
        "[[route]]\nname = 'n'\npath = {{ exact = '/n' }}\nrespond = {{ status = 200, body = '{n}' }}\n{routes}"
    ))
}

/// Puts another one into force, and waits until requests find it.
#[track_caller]
pub(super) fn reload(rig: &mut Rig, setup: &Setup, n: usize) {
    rig.change(&numbered(setup, n));
    until("the change holds", || rig.get("/n").text() == n.to_string());
}

/// What so many requests of one connection, one after the other, are answered.
#[track_caller]
fn answers(rig: &Rig, requests: usize) -> Vec<String> {
    let mut client = rig.client();
    let answers = (0..requests).map(|_| client.get("/fast").text().to_owned());
    answers.collect()
}

/// How many of them say this.
#[track_caller]
fn count(rig: &Rig, requests: usize, text: &str) -> usize {
    answers(rig, requests).iter().filter(|a| *a == text).count()
}

/// The servers that some requests reach.
#[track_caller]
pub(super) fn reached(rig: &Rig, requests: usize) -> BTreeSet<String> {
    answers(rig, requests).into_iter().collect()
}

pub(super) fn set<const N: usize>(texts: [&str; N]) -> BTreeSet<String> {
    texts.map(str::to_owned).into()
}

/// Sends requests until one waits at this server, whatever others answer.
#[track_caller]
fn occupy(rig: &Rig, had: &AtomicUsize, others: &[&Server]) -> Vec<Peer> {
    let elsewhere = || others.iter().map(|server| server.requests()).sum::<usize>();
    let (waiting, mut clients) = (had.load(Relaxed), Vec::new());
    while had.load(Relaxed) == waiting {
        let before = elsewhere();
        let mut client = rig.client();
        client.send(GET);
        clients.push(client);
        until("a server has the request", || {
            had.load(Relaxed) > waiting || elsewhere() > before
        });
    }
    clients
}

#[test]
fn weighted_round_robin_shares_exactly() {
    let [a, b, c] = ["a", "b", "c"].map(Server::saying);
    let setup = Setup::new(&[&a, &b, &c])
        .upstream("balance = 'weighted-round-robin'")
        .server(0, "weight = 5")
        .server(1, "weight = 3")
        .server(2, "weight = 2");
    let rig = Rig::new(&setup);
    let answers = answers(&rig, 100);
    for window in answers.windows(10) {
        let count = |text: &str| window.iter().filter(|a| *a == text).count();
        assert_eq!(
            [count("a"), count("b"), count("c")],
            [5, 3, 2],
            "{window:?}"
        );
    }
}

#[test]
fn least_connections_go_where_the_fewest_are_under_way_for_the_weight() {
    // Who is busy gets nothing as long as another one is idle.
    let ((slow, had, go), fast) = (held(), Server::saying("fast"));
    let setup = Setup::new(&[&slow, &fast]).upstream("balance = 'least-connections'");
    let rig = Rig::new(&setup);
    let clients = occupy(&rig, &had, &[&fast]);
    assert_eq!(reached(&rig, 10), set(["fast"]));
    go.send(()).unwrap();
    drop(clients);

    let ((a, had_a, go_a), (b, had_b, go_b)) = (held(), held());
    let setup = Setup::new(&[&a, &b])
        .upstream("balance = 'least-connections'")
        .server(0, "weight = 3");
    let rig = Rig::new(&setup);
    let mut clients = Vec::new();
    for sent in 1..=8 {
        let mut client = rig.client();
        client.send(GET);
        clients.push(client);
        let under_way = || [&had_a, &had_b].map(|had| had.load(Relaxed));
        until("it waits", || under_way().iter().sum::<usize>() == sent);
        if sent % 4 == 0 {
            assert_eq!(under_way(), [sent / 4 * 3, sent / 4]);
        }
    }
    for go in [go_a, go_b] {
        (0..8).for_each(|_| go.send(()).unwrap());
    }
    for mut client in clients {
        assert_eq!(client.answer().status, 200);
    }
}

#[test]
fn of_two_random_ones_the_busier_is_not_taken() {
    let ((busy, had, go), b, c) = (held(), Server::saying("b"), Server::saying("c"));
    let setup = Setup::new(&[&busy, &b, &c]).upstream("balance = 'random-of-two'");
    let rig = Rig::new(&setup);
    let clients = occupy(&rig, &had, &[&b, &c]);
    // Two are drawn, so that one of them is idle.
    assert_eq!(reached(&rig, 60), set(["b", "c"]));
    drop((clients, go));
}

#[test]
fn a_client_stays_with_a_server_by_its_address() {
    let [a, b, c] = ["a", "b", "c"].map(Server::saying);
    let setup = Setup::new(&[&a, &b, &c]).upstream("balance = 'ip-hash'");
    let of = |rig: &Rig, client: usize, path: &str| {
        let line = format!("X-Forwarded-For: 192.0.2.{client}\r\n");
        rig.client().get_with(path, &line).text().to_owned()
    };
    let trusting = "trusted_proxies = ['127.0.0.0/8']";
    let rig = Rig::new(&setup.clone().listener(trusting));
    let servers: Vec<String> = (0..40).map(|client| of(&rig, client, "/")).collect();
    for (client, server) in servers.iter().enumerate() {
        assert_eq!(of(&rig, client, "/other"), *server);
    }
    assert_eq!(
        servers.into_iter().collect::<BTreeSet<_>>(),
        set(["a", "b", "c"])
    );
    // Whoever is not trusted has one address, whatever it says.
    let rig = Rig::new(&setup);
    let servers: BTreeSet<String> = (0..40).map(|client| of(&rig, client, "/")).collect();
    assert_eq!(servers.len(), 1);
}

#[test]
fn a_parameter_of_the_query_says_which_server_it_is() {
    let all = ["a", "b", "c"].map(Server::saying);
    let [a, b, c] = &all;
    let hash = "balance = 'consistent-hash'\nhash = { query = 'user' }";
    let rig = Rig::new(&Setup::new(&[a, b, c]).upstream(hash));
    let of = |user: usize, more: &str| {
        let path = format!("/{more}user={user}");
        rig.client().get(&path).text().to_owned()
    };
    let before: Vec<String> = (0..60).map(|user| of(user, "?")).collect();
    for (user, server) in before.iter().enumerate() {
        assert_eq!(of(user, "other?xuser=1&"), *server);
    }
    let servers: BTreeSet<String> = before.iter().cloned().collect();
    assert_eq!(servers, set(["a", "b", "c"]));
    // When one goes, only its users move, and they come back with it.
    change(&rig, b, Change::Drain(true));
    for (user, server) in before.iter().enumerate() {
        let now = of(user, "?");
        assert_eq!(now == *server, server != "b", "{user}: {server}, {now}");
        assert_ne!(now, "b");
    }
    change(&rig, b, Change::Drain(false));
    for (user, server) in before.iter().enumerate() {
        assert_eq!(of(user, "?"), *server);
    }
}

#[test]
fn backups_are_asked_only_when_no_other_can_be() {
    let [a, b, spare] = ["a", "b", "spare"].map(Server::saying);
    let setup = Setup::new(&[&a, &b, &spare])
        .upstream("sticky = { cookie = 'edge' }")
        .server(2, "backup = true");
    let rig = Rig::new(&setup);
    assert_eq!(reached(&rig, 20), set(["a", "b"]));
    change(&rig, &a, Change::Drain(true));
    assert_eq!(reached(&rig, 20), set(["b"]));
    change(&rig, &b, Change::Drain(true));
    assert_eq!(reached(&rig, 20), set(["spare"]));
    // A session stays with the backup as long as that is used.
    let with = |cookie: &str| rig.client().get_with("/", &format!("Cookie: {cookie}\r\n"));
    let cookie_of = |answer: &Answer| {
        let cookie = answer.header("set-cookie")?;
        Some(cookie.split(';').next().unwrap().to_owned())
    };
    let on_spare = cookie_of(&rig.get("/")).unwrap();
    let answer = with(&on_spare);
    assert_eq!((answer.text(), cookie_of(&answer)), ("spare", None));
    change(&rig, &a, Change::Drain(false));
    assert_eq!(reached(&rig, 20), set(["a"]));
    let answer = with(&on_spare);
    assert_eq!(answer.text(), "a");
    let on_a = cookie_of(&answer).unwrap();
    change(&rig, &b, Change::Drain(false));
    for _ in 0..4 {
        assert_eq!(with(&on_a).text(), "a");
    }
}

#[test]
fn a_drained_server_keeps_its_sessions_and_gets_nothing_new() {
    let [a, b] = ["a", "b"].map(Server::saying);
    let sticky = "sticky = { cookie = 'edge' }\nbalance = 'weighted-round-robin'";
    let rig = Rig::new(&Setup::new(&[&a, &b]).upstream(sticky));
    let session = until_some("a session on a", || {
        let answer = rig.get("/");
        let cookie = answer.header("set-cookie").unwrap();
        let cookie = cookie.split(';').next().unwrap();
        (answer.text() == "a").then(|| format!("Cookie: {cookie}\r\n"))
    });
    let goes_on = || {
        for _ in 0..4 {
            let answer = rig.client().get_with("/", &session);
            assert_eq!((answer.text(), answer.header("set-cookie")), ("a", None));
        }
    };
    for (out, back) in [
        (Change::Drain(true), Change::Drain(false)),
        (Change::Weight(0), Change::Weight(1)),
    ] {
        change(&rig, &a, out);
        assert_eq!(reached(&rig, 20), set(["b"]), "{out:?}");
        goes_on();
        change(&rig, &a, back);
        assert_eq!(count(&rig, 20, "a"), 10, "{back:?}");
    }
    change(&rig, &a, Change::Weight(3));
    assert_eq!(count(&rig, 20, "a"), 15);
}

#[test]
fn who_is_new_or_comes_back_starts_slowly() {
    let [a, b, new] = ["a", "b", "new"].map(Server::saying);
    let slow = |time: &str| format!("balance = 'weighted-round-robin'\nslow_start = '{time}'");
    let setup = Setup::new(&[&a, &b]).upstream(slow("1h"));
    let mut rig = Rig::new(&numbered(&setup, 0));
    // Those that are there from the beginning do not.
    assert_eq!(count(&rig, 100, "b"), 50);
    change(&rig, &b, Change::Drain(true));
    assert_eq!(count(&rig, 10, "b"), 0);
    change(&rig, &b, Change::Drain(false));
    assert!(count(&rig, 100, "b") < 20);
    // Its share rises to the whole, here with the end of a shorter time.
    reload(&mut rig, &setup.upstream(slow("10ms")), 1);
    until("it has its share", || count(&rig, 100, "b") == 50);
    // One that a reload adds.
    let with_new = Setup::new(&[&a, &b, &new]);
    reload(&mut rig, &with_new.clone().upstream(slow("1h")), 2);
    assert!(count(&rig, 99, "new") < 20);
    reload(&mut rig, &with_new.upstream(slow("10ms")), 3);
    until("it has its share", || count(&rig, 99, "new") == 33);
    // One that had no weight until a reload.
    let setup = Setup::new(&[&a, &b]).upstream(slow("1h"));
    let none = setup.clone().server(0, "weight = 0");
    let mut rig = Rig::new(&numbered(&none, 0));
    assert_eq!(count(&rig, 100, "a"), 0);
    reload(&mut rig, &setup, 1);
    assert!(count(&rig, 100, "a") < 20);
}

/// A request that began before a reload tells of its server by what held then.
#[test]
fn what_is_learnt_of_a_server_amid_a_reload_holds_after_it() {
    let ((failing, had, go), well) = (held(), Server::saying("well"));
    let setup = Setup::new(&[&failing, &well]);
    let passive = |more: &str| {
        format!(
            "retries = {{ tries = 1 }}\npassive = {{ consecutive_errors = 1, eject = '1h' }}\n{more}"
        )
    };
    let mut rig = Rig::new(&numbered(&setup.clone().upstream(passive("")), 0));
    // Each of the two gets one.
    let mut clients = [rig.client(), rig.client()];
    for client in &mut clients {
        client.send("GET /bad HTTP/1.1\r\nHost: a.example\r\n\r\n");
    }
    until("one waits", || {
        had.load(Relaxed) == 1 && well.requests() == 1
    });
    let other = setup.upstream(passive("timeouts = { request = '50s' }"));
    reload(&mut rig, &other, 1);
    assert_eq!(reached(&rig, 10), set(["ok", "well"]));
    go.send(()).unwrap();
    let mut statuses = clients.map(|mut client| client.answer().status);
    statuses.sort_unstable();
    assert_eq!(statuses, [200, 500]);
    until("the old configuration has told of it", || {
        ejected(&rig) == 1
    });
    assert_eq!(reached(&rig, 10), set(["well"]));
}
