//! Other configurations while the proxy runs, its end, and its log.

use std::{
    net::SocketAddr,
    process::Command,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
        mpsc,
    },
    thread,
};

use super::{connections::UPGRADE, rig::*};

/// A configuration of a reload that is not like the one before: another route, another listener
/// limit, another upstream.
fn nth(setup: &Setup, n: usize) -> Setup {
    let routes = format!(
        "[[route]]\nname = 'n'\npath = {{ exact = '/{n}' }}\nrespond = {{ status = 200, body = '{n}' }}\n{ALL}"
    );
    let upstream = format!("timeouts = {{ request = '{}s' }}", 100 + n % 7);
    setup.clone().routes(routes).upstream(upstream)
}

/// Four clients that ask all the time, until this is ended. Half of them come anew each time.
struct Load {
    stop: Arc<AtomicBool>,
    done: Arc<AtomicU64>,
    clients: Vec<thread::JoinHandle<()>>,
}

impl Load {
    fn start(at: SocketAddr) -> Self {
        let (stop, done) = <(Arc<AtomicBool>, Arc<AtomicU64>)>::default();
        let client = |kept: u32| {
            let (stop, done) = (stop.clone(), done.clone());
            thread::spawn(move || {
                let mut client = Peer::connect(at);
                while !stop.load(Relaxed) {
                    let answer = client.get("/load");
                    assert_eq!((answer.status, answer.text()), (200, "ok"));
                    done.fetch_add(1, Relaxed);
                    if kept.is_multiple_of(2) || answer.header("connection") == Some("close") {
                        client = Peer::connect(at);
                    }
                }
            })
        };
        let clients = (0..4).map(client).collect();
        Self {
            stop,
            done,
            clients,
        }
    }

    /// Requests that were answered.
    fn done(&self) -> u64 {
        self.done.load(Relaxed)
    }

    /// Waits until there are more than so many, or one has failed.
    fn goes_on(&self, more_than: u64) {
        until("load goes on", || {
            self.done() > more_than || self.clients.iter().any(|client| client.is_finished())
        });
    }

    /// Ends it; no request may have failed.
    fn end(self) -> u64 {
        self.stop.store(true, Relaxed);
        for client in self.clients {
            client.join().unwrap();
        }
        self.done.load(Relaxed)
    }
}

#[test]
fn a_hundred_changes_lose_nothing() {
    const LENGTH: usize = 8 << 20;
    let (go, wait) = mpsc::sync_channel::<()>(1);
    let wait = Mutex::new(wait);
    let server = Server::start(move |mut peer| {
        while let Some(head) = peer.head() {
            if head.starts_with("GET /up ") {
                peer.send("HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: upgrade\r\n\r\n");
                while let Some(line) = peer.take_until(b"\n") {
                    peer.send(line);
                }
                return;
            }
            if head.starts_with("GET /download ") {
                peer.send(format!(
                    "HTTP/1.1 200 OK\r\nContent-Length: {LENGTH}\r\n\r\n"
                ));
                peer.send(vec![b'x'; LENGTH / 2]);
                let _ = lock(&wait).recv();
                peer.send(vec![b'x'; LENGTH / 2]);
            } else {
                let _ = peer.try_send("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok");
            }
        }
    });
    let setup = Setup::new(&[&server]).proxy("workers = 2");
    let mut rig = Rig::new(&setup);
    let mut open: Vec<Peer> = (0..1000)
        .map(|_| {
            let mut client = rig.client();
            client.send(UPGRADE);
            assert!(client.head().unwrap().starts_with("HTTP/1.1 101 "));
            client
        })
        .collect();
    let mut download = rig.client();
    download.send("GET /download HTTP/1.1\r\nHost: a.example\r\n\r\n");
    download.head().unwrap();
    let load = Load::start(rig.port.at);
    for n in 0..100 {
        let before = load.done();
        rig.change(&nth(&setup, n));
        until("the change holds", || {
            rig.get(&format!("/{n}")).text() == n.to_string()
        });
        load.goes_on(before + 4);
    }
    go.send(()).unwrap();
    assert_eq!(download.take(LENGTH).len(), LENGTH);
    for (n, client) in open.iter_mut().enumerate() {
        client.send(format!("{n}\n"));
        assert_eq!(
            client.take_until(b"\n").unwrap(),
            format!("{n}\n").as_bytes()
        );
    }
    let done = load.end();
    let line = |line: &serde_json::Value| line.get("reason").is_some();
    drop(open);
    until("the lines are there", || rig.lines().len() as u64 >= done);
    let refused: Vec<_> = rig.lines().into_iter().filter(line).collect();
    assert!(refused.is_empty(), "{refused:?}");
}

#[test]
fn listeners_come_and_go() {
    let server = Server::saying("ok");
    let setup = Setup::new(&[&server]);
    let mut rig = Rig::new(&setup);
    let mut client = rig.client();
    assert_eq!(client.get("/").text(), "ok");
    let other = Port::new();
    let text = |more: &str, rig: &Rig| setup.text(rig.port.at, &rig.log()) + more;
    let second = format!(
        "[[listener]]\nname = 'second'\naddresses = ['{}']\n",
        other.at
    );
    let proxy = proxy_of(&text(&second, &rig));
    let prepared = rig.tier.prepare(&proxy).unwrap();
    rig.tier.commit(prepared);
    until("the second listener", || {
        std::net::TcpStream::connect(other.at).is_ok()
    });
    let mut second_client = Peer::connect(other.at);
    assert_eq!(second_client.get("/").text(), "ok");
    rig.change(&setup);
    until("it is gone", || {
        std::net::TcpStream::connect(other.at).is_err()
    });
    // Its connections end with the next request, which is one of a listener that is no more.
    let answer = second_client.get("/");
    assert_eq!(answer.header("connection"), Some("close"));
    assert!(second_client.is_closed());
    assert_eq!(client.get("/").text(), "ok");
}

#[test]
fn what_cannot_be_put_into_force_changes_nothing() {
    let (one, two) = (Server::saying("one"), Server::saying("two"));
    let setup = Setup::new(&[&one, &two]);
    let mut rig = Rig::new(&setup);
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let at = taken.local_addr().unwrap();
    let text = setup
        .upstream("balance = 'weighted-round-robin'\nretries = { tries = 2 }")
        .text(rig.port.at, &rig.log())
        // The first server gets nothing any more.
        .replace(&format!("address = '{}'", one.address), &format!("address = '{}'\nweight = 0", one.address));
    let text = format!("{text}[[listener]]\nname = 'second'\naddresses = ['{at}']\n");
    let error = rig
        .tier
        .prepare(&proxy_of(&text))
        .map(|_| ())
        .unwrap_err()
        .to_string();
    assert!(
        error.contains("second") && error.contains(&at.to_string()),
        "{error}"
    );
    assert!(error.contains("ss -ltnp"), "{error}");
    let weights: Vec<u32> = rig.app().servers.iter().map(|s| s.weight).collect();
    assert_eq!(weights, [1, 1]);
    let mut client = rig.client();
    let said: Vec<String> = (0..10).map(|_| client.get("/").text().to_owned()).collect();
    assert_eq!(said.iter().filter(|s| *s == "one").count(), 5, "{said:?}");
    // Without the obstacle it holds.
    drop(taken);
    let prepared = rig.tier.prepare(&proxy_of(&text)).unwrap();
    rig.tier.commit(prepared);
    until("it holds", || rig.app().servers[0].weight == 0);
    let weights: Vec<u32> = rig.app().servers.iter().map(|s| s.weight).collect();
    assert_eq!(weights, [0, 1]);
}

/// Threads of workers.
fn workers(rig: &Rig) -> usize {
    rig.tier.view().threads()
}

fn with_workers(setup: &Setup, n: usize) -> Setup {
    setup.clone().proxy(format!("workers = {n}"))
}

#[test]
fn the_number_of_workers_changes_under_load_and_nothing_is_lost() {
    let server = Server::start(|mut peer| {
        while let Some(head) = peer.head() {
            if head.starts_with("GET /up ") {
                peer.send("HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: upgrade\r\n\r\n");
                while let Some(line) = peer.take_until(b"\n") {
                    peer.send(line);
                }
                return;
            }
            let _ = peer.try_send("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok");
        }
    });
    let setup = Setup::new(&[&server]);
    let mut rig = Rig::new(&setup);
    let load = Load::start(rig.port.at);
    let mut tunnels: Vec<Peer> = Vec::new();
    for (round, n) in [4, 2, 5, 1, 3, 2, 6, 1]
        .into_iter()
        .cycle()
        .take(24)
        .enumerate()
    {
        rig.change(&with_workers(&setup, n));
        assert_eq!(rig.tier.view().status().unwrap().workers, n as u32);
        // More than there are sockets, so that all of them get some.
        let mut waiting: Vec<Peer> = (0..32).map(|_| rig.client()).collect();
        for client in &mut waiting {
            assert_eq!(client.get("/").text(), "ok", "round {round}");
        }
        let mut tunnel = rig.client();
        tunnel.send(UPGRADE);
        assert!(tunnel.head().unwrap().starts_with("HTTP/1.1 101 "));
        tunnels.push(tunnel);
        for (at, tunnel) in tunnels.iter_mut().enumerate() {
            tunnel.send(format!("{round}\n"));
            let heard = tunnel.take_until(b"\n");
            let heard = heard.unwrap_or_else(|| panic!("tunnel {at} in round {round}"));
            assert_eq!(heard, format!("{round}\n").as_bytes());
        }
        let before = load.done();
        load.goes_on(before + 20);
    }
    let done = load.end();
    // One works, and those that have a tunnel live on until it ends.
    assert!(workers(&rig) > 1);
    drop(tunnels);
    until("the others have ended", || workers(&rig) == 1);
    // Nobody has counted in the place of another one, also not of one that has gone.
    let listener = || rig.tier.view().status().unwrap().listeners.remove(0);
    until("all connections have ended", || listener().open == 0);
    let requests = listener().requests.classes.iter().sum::<u64>();
    assert_eq!(requests, done + 24 * 33);
}

#[test]
fn a_worker_that_is_one_too_many_ends_its_connections_in_time() {
    let server = Server::start(|mut peer| {
        let _ = peer.head();
        peer.send(
            "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: upgrade\r\n\r\n",
        );
        peer.rest();
    });
    let within = |n: usize, time: &str| {
        Setup::new(&[&server]).proxy(format!("workers = {n}\ndrain_timeout = '{time}'"))
    };
    let mut rig = Rig::new(&within(8, "1h"));
    let tunnels: Vec<Peer> = (0..64)
        .map(|_| {
            let mut client = rig.client();
            client.send(UPGRADE);
            assert!(client.head().unwrap().starts_with("HTTP/1.1 101 "));
            client
        })
        .collect();
    // What the file says now is what holds.
    rig.change(&within(1, "1s"));
    until("the others have ended", || workers(&rig) == 1);
    // Some were the one's that stays.
    let open = || rig.tier.view().connections();
    until("theirs have ended with them", || (1..64).contains(&open()));
    drop(tunnels);
}

#[test]
fn only_who_asks_for_it_gets_another_number_of_workers() {
    let server = Server::saying("ok");
    let setup = Setup::new(&[&server]).proxy("");
    let all = thread::available_parallelism().unwrap().get();
    let mut rig = Rig::new(&setup);
    let number = |rig: &Rig| rig.tier.view().status().unwrap().workers as usize;
    assert_eq!(number(&rig), all);
    // Each thread has CPUs of its own that it may use.
    thread::scope(|scope| {
        scope.spawn(|| {
            only_one_cpu();
            assert_eq!(thread::available_parallelism().unwrap().get(), 1);
            rig.change(&nth(&setup, 1));
            assert_eq!(number(&rig), all);
            rig.change(&with_workers(&setup, 3));
            assert_eq!(number(&rig), 3);
            // Whoever takes the number out of the file wants that of the CPUs.
            rig.change(&setup);
            assert_eq!(number(&rig), 1);
        });
    });
    assert_eq!(rig.get("/").text(), "ok");
}

/// Has this thread use one of its CPUs only.
fn only_one_cpu() {
    // SAFETY: a set of CPUs is plain bits, of which none is set.
    let (mut may, mut one): (libc::cpu_set_t, libc::cpu_set_t) = unsafe { std::mem::zeroed() };
    let size = size_of::<libc::cpu_set_t>();
    // SAFETY: writes into a live value of that size.
    let got = unsafe { libc::sched_getaffinity(0, size, &raw mut may) };
    assert_eq!(got, 0);
    let mut cpus = 0..libc::CPU_SETSIZE as usize;
    // SAFETY: the position is within the set.
    let first = cpus.find(|&cpu| unsafe { libc::CPU_ISSET(cpu, &may) });
    // SAFETY: likewise.
    unsafe { libc::CPU_SET(first.unwrap(), &mut one) };
    // SAFETY: reads from a live value of that size.
    let set = unsafe { libc::sched_setaffinity(0, size, &raw const one) };
    assert_eq!(set, 0);
}

#[test]
fn workers_without_descriptors_of_their_own_do_not_come_into_force() {
    // Descriptors are a process's: the test needs one for itself.
    const ALONE: &str = "EDGE_TEST_ALONE";
    if std::env::var_os(ALONE).is_none() {
        let name = "changes::workers_without_descriptors_of_their_own_do_not_come_into_force";
        let ended = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", name, "--nocapture"])
            .env(ALONE, "1")
            .output();
        let ended = ended.unwrap();
        let said = String::from_utf8_lossy(&ended.stdout);
        assert!(
            ended.status.success() && said.contains("1 passed"),
            "{ended:?}"
        );
        return;
    }
    // So many that the proxy asks for no more.
    let few = libc::rlimit {
        rlim_cur: 5000,
        rlim_max: 5000,
    };
    // SAFETY: reads from a live value.
    let set = unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &raw const few) };
    assert_eq!(set, 0);
    let server = Server::saying("ok");
    let setup = Setup::new(&[&server]).listener("limits = { connections = 100 }");
    let mut rig = Rig::new(&setup);
    let proxy = proxy_of(&with_workers(&setup, 33).text(rig.port.at, &rig.log()));
    let file = std::fs::File::open("/dev/null").unwrap();
    let mut taken: Vec<_> = std::iter::from_fn(|| file.try_clone().ok()).collect();
    // There are enough for their sockets.
    taken.truncate(taken.len() - 40);
    let error = rig.tier.prepare(&proxy).map(|_| ()).unwrap_err();
    drop(taken);
    let error = error.to_string();
    assert!(
        error.starts_with("cannot start a worker of the proxy: Too many open files"),
        "{error}"
    );
    until("those that had begun have ended", || workers(&rig) == 1);
    assert_eq!(rig.get("/").text(), "ok");
}

#[test]
fn without_listeners_there_is_nothing_for_workers() {
    let server = Server::saying("ok");
    let setup = Setup::new(&[&server]);
    let mut rig = Rig::new(&with_workers(&setup, 2));
    let none = proxy_of("interfaces = ['lo']\n[proxy]\nworkers = 4\n");
    let prepared = rig.tier.prepare(&none).unwrap();
    rig.tier.commit(prepared);
    until("nobody listens", || {
        std::net::TcpStream::connect(rig.port.at).is_err()
    });
    rig.change(&with_workers(&setup, 3));
    assert_eq!(rig.get("/").text(), "ok");
    assert_eq!(rig.tier.view().status().unwrap().workers, 3);
    // One that is not put into force leaves nothing behind.
    let proxy = proxy_of(&with_workers(&setup, 6).text(rig.port.at, &rig.log()));
    let prepared = rig.tier.prepare(&proxy).unwrap();
    assert_eq!(workers(&rig), 6);
    drop(prepared);
    until("the new ones have ended", || workers(&rig) == 3);
    assert_eq!(rig.get("/").text(), "ok");
}

#[test]
fn the_end_waits_for_requests_and_closes_what_is_idle() {
    let (go, wait) = mpsc::sync_channel::<()>(1);
    let wait = Mutex::new(wait);
    let (had, told) = mpsc::sync_channel(1);
    let server = Server::start(move |mut peer| {
        while let Some((head, _)) = peer.request() {
            if head.starts_with("GET /slow ") {
                had.send(()).unwrap();
                lock(&wait).recv().unwrap();
            }
            let _ = peer.try_send("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok");
        }
    });
    let rig = Rig::new(&Setup::new(&[&server]));
    let (mut idle, mut busy) = (rig.client(), rig.client());
    assert_eq!(idle.get("/").text(), "ok");
    busy.send("GET /slow HTTP/1.1\r\nHost: a.example\r\n\r\n");
    told.recv().unwrap();
    let Rig {
        mut tier,
        port,
        directory: _directory,
        ..
    } = rig;
    let stopping = thread::spawn(move || tier.stop());
    assert!(idle.is_closed());
    until("nobody listens", || {
        std::net::TcpStream::connect(port.at).is_err()
    });
    assert!(!stopping.is_finished());
    go.send(()).unwrap();
    let answer = busy.answer();
    assert_eq!(answer.text(), "ok");
    assert!(busy.is_closed());
    drop(busy);
    stopping.join().unwrap();
}

#[test]
fn the_log_goes_on_in_a_new_file_when_the_old_one_is_moved() {
    let server = Server::saying("ok");
    let rig = Rig::new(&Setup::new(&[&server]));
    let mut client = rig.client();
    client.send("GET /a?b=%22c HTTP/1.1\r\nHost: a.example\r\nUser-Agent: \"x\"\\\r\n\r\n");
    client.answer();
    let line = rig.logged("/a?b=%22c");
    for (key, value) in [
        ("method", "GET"),
        ("host", "a.example"),
        ("version", "1.1"),
        ("listener", "web"),
        ("route", "all"),
        ("upstream", "app"),
        ("server", &server.address),
        ("user_agent", "\"x\"\\"),
    ] {
        assert_eq!(line[key], value, "{line}");
    }
    assert_eq!(
        (&line["status"], &line["sent"], &line["tries"]),
        (&200.into(), &2.into(), &1.into())
    );
    let moved = rig.path("access.log.1");
    std::fs::rename(rig.log(), &moved).unwrap();
    until("the new file", || rig.log().exists());
    client.get("/after");
    rig.logged("/after");
    let old = std::fs::read_to_string(&moved).unwrap();
    assert!(old.contains("/a?b=") && !old.contains("/after"), "{old}");
    assert_eq!(rig.lines().len(), 1);
    assert_eq!(rig.tier.view().status().unwrap().log_lost, 0);
}
