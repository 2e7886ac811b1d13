//! Services on real traffic: what a client sees of a host that is defended, and what the daemon
//! follows.

use std::io::{self, Read as _, Write as _};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsRawFd as _;
use std::time::Duration;

use edge_tests::daemon::{Daemon, Installation};
use edge_tests::frames::{self, Payload};
use edge_tests::lab::{Lab, Link};
use edge_tests::netns::Namespace;
use edge_tests::server::Nginx;
use edge_tests::wait;
use serde_json::Value;
use tokio::net::TcpSocket;

const COOKIES: &str = "/proc/sys/net/ipv4/tcp_syncookies";
const TIMESTAMPS: &str = "/proc/sys/net/ipv4/tcp_timestamps";

/// A service that is always defended.
const ALWAYS: &str = "[[service]]\nname = \"web\"\nports = [80]\nsyn = \"always\"\n";

pub(super) fn service(edge: &Installation<'_>, name: &str) -> Value {
    let status = edge.status();
    let services = status["services"].as_array().cloned().unwrap_or_default();
    let found = services.into_iter().find(|s| s["name"] == name);
    found.unwrap_or_else(|| panic!("no service {name}: {status}"))
}

pub(crate) fn counter(edge: &Installation<'_>, name: &str, which: &str) -> u64 {
    service(edge, name)["counters"][which].as_u64().unwrap()
}

/// Waits until the service has so many targets, of which so many can be answered for.
#[track_caller]
pub(crate) fn wait_ready(edge: &Installation<'_>, name: &str, total: u64, ready: u64) {
    let want = serde_json::json!({ "total": total, "ready": ready });
    wait::until(&format!("targets {want}"), || {
        service(edge, name)["targets"] == want
    });
}

/// What TCP says of a connection.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Info {
    /// Timestamps, SACK, window scaling, ECN (`TCPI_OPT_*`).
    options: u8,
    /// Window scales: the other end's and the own one.
    scales: u8,
    /// Largest segments to send.
    mss: u32,
}

fn info(stream: &TcpStream) -> Info {
    let mut bytes = [0u8; 104];
    let mut size = bytes.len() as libc::socklen_t;
    // SAFETY: the pointers are to a live buffer of that size and to its size.
    let status = unsafe {
        libc::getsockopt(
            stream.as_raw_fd(),
            libc::IPPROTO_TCP,
            libc::TCP_INFO,
            bytes.as_mut_ptr().cast(),
            &raw mut size,
        )
    };
    assert_eq!(status, 0, "{}", io::Error::last_os_error());
    Info {
        options: bytes[5] & 0xf,
        scales: bytes[6],
        mss: u32::from_ne_bytes(bytes[16..20].try_into().unwrap()),
    }
}

/// A listener on the host, with a receive buffer of its own if one is asked for.
pub(super) fn listen(host: &Namespace, at: SocketAddr, rcvbuf: Option<u32>) -> TcpListener {
    listen_with(host, at, |socket| {
        rcvbuf.map_or(Ok(()), |bytes| socket.set_recv_buffer_size(bytes))
    })
}

/// A listener on the host whose socket is prepared before it is bound.
pub(super) fn listen_with(
    host: &Namespace,
    at: SocketAddr,
    prepare: impl FnOnce(&TcpSocket) -> io::Result<()> + Send,
) -> TcpListener {
    let listen = async || {
        let socket = match at {
            SocketAddr::V4(_) => TcpSocket::new_v4(),
            SocketAddr::V6(_) => TcpSocket::new_v6(),
        }?;
        socket.set_reuseaddr(true)?;
        prepare(&socket)?;
        socket.bind(at)?;
        let listener = socket.listen(128)?.into_std()?;
        listener.set_nonblocking(false)?;
        io::Result::Ok(listener)
    };
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_io()
        .build()
        .expect("a runtime");
    host.inside(|| runtime.block_on(listen()))
        .expect("a listener")
}

pub(super) fn connect(link: &Link, to: SocketAddr) -> io::Result<TcpStream> {
    let stream = link
        .outside
        .inside(|| TcpStream::connect_timeout(&to, Duration::from_secs(10)))?;
    stream.set_read_timeout(Some(wait::PATIENCE))?;
    stream.set_write_timeout(Some(wait::PATIENCE))?;
    Ok(stream)
}

/// Both ends of a connection, as each end sees it.
pub(super) fn ends(link: &Link, listener: &TcpListener, to: SocketAddr) -> (Info, Info) {
    let client = connect(link, to).unwrap();
    let (server, _) = listener.accept().unwrap();
    exchange(client.try_clone().unwrap(), server.try_clone().unwrap());
    (info(&client), info(&server))
}

/// Sends megabytes both ways.
fn exchange(a: TcpStream, b: TcpStream) {
    const BYTES: usize = 4 << 20;
    std::thread::scope(|scope| {
        let both = [(a.try_clone().unwrap(), b.try_clone().unwrap()), (b, a)];
        for (mut from, mut to) in both {
            scope.spawn(move || from.write_all(&vec![7; BYTES]).unwrap());
            scope.spawn(move || to.read_exact(&mut vec![0; BYTES]).unwrap());
        }
    });
}

#[test]
fn clients_of_nginx_get_their_pages_through_cookies() {
    let lab = Lab::new(1);
    let link = lab.link();
    let _nginx = Nginx::start(&lab.host);
    let edge = Installation::new(&lab.host, &["eth0"], ALWAYS);
    let _daemon = edge.start();
    wait_ready(&edge, "web", 2, 2);
    let sent = counter(&edge, "web", "cookies_sent");
    // A request that comes with the end of its handshake shows the cookie as well.
    let mut valid = 0;
    for (n, source) in (1..).zip([link.v4(2), link.v6(2), link.v4(3)]) {
        assert!(link.can_get(source, wait::PATIENCE), "{source}");
        wait::until("cookies are counted", || {
            let before = valid;
            valid = counter(&edge, "web", "cookies_valid");
            valid > before
        });
        assert!((n..=2 * n).contains(&valid), "{valid} of {n}");
    }
    assert!(counter(&edge, "web", "cookies_sent") >= sent + 3);
    assert_eq!(service(&edge, "web")["defended"], true);
    assert_eq!(counter(&edge, "web", "unmarked"), 0);
    let text = edge.ok(&["status"]);
    assert!(text.contains("\nweb      always  defended"), "{text}");
    let text = edge.scrape();
    let series = "edge_service_events_total{service=\"web\",event=\"cookies_valid\"} ";
    let valid = text.lines().find_map(|line| line.strip_prefix(series));
    assert!((3..=6).contains(&valid.unwrap().parse().unwrap()), "{text}");
    for series in [
        "edge_service_defended{service=\"web\"} 1",
        "edge_service_under_attack{service=\"web\"} 0",
        "edge_table_entries{table=\"service_targets\"} 2",
    ] {
        assert!(text.contains(series), "{series} in\n{text}");
    }
}

#[test]
fn a_connection_through_cookies_is_what_it_is_without() {
    let lab = Lab::new(1);
    let link = lab.link();
    let edge = Installation::new(
        &lab.host,
        &["eth0"],
        "xdp.on_exit = \"detach\"\n[[service]]\nname = \"all\"\nports = \"listening\"\nsyn = \"always\"\n",
    );
    // One of each kind, one with a buffer so small that its scale is another one.
    let kinds = [
        ("0.0.0.0:81", None),
        ("0.0.0.0:82", Some(20_000)),
        ("10.77.0.1:83", None),
        ("[::]:84", None),
        ("[fd77::1]:85", None),
    ];
    let listeners = kinds.map(|(at, rcvbuf)| {
        let at: SocketAddr = at.parse().unwrap();
        (at, listen(&lab.host, at, rcvbuf))
    });
    let clients = |at: &SocketAddr| -> Vec<SocketAddr> {
        let both = [link.v4(1), link.v6(1)];
        let takes = |to: &IpAddr| match at.ip() {
            ip if !ip.is_unspecified() => ip == *to,
            ip => ip.is_ipv6() || to.is_ipv4(),
        };
        let to = both.into_iter().filter(takes);
        to.map(|ip| SocketAddr::new(ip, at.port())).collect()
    };
    let all = || -> Vec<(SocketAddr, (Info, Info))> {
        let ends_of = |(at, listener): &(SocketAddr, TcpListener)| {
            let to = clients(at).into_iter();
            to.map(|to| (to, ends(link, listener, to)))
                .collect::<Vec<_>>()
        };
        listeners.iter().flat_map(ends_of).collect()
    };
    let without = all();
    let scales: Vec<u8> = without
        .iter()
        .map(|(_, (client, _))| client.scales)
        .collect();
    assert_ne!(
        scales[0], scales[1],
        "the small buffer has a scale of its own: {without:?}"
    );
    let daemon = edge.start();
    wait_ready(&edge, "all", 6, 6);
    // Nobody who listens has seen that he was asked.
    for (at, listener) in &listeners {
        listener.set_nonblocking(true).unwrap();
        let seen = listener.accept().map_err(|e| e.kind());
        assert!(
            matches!(seen, Err(io::ErrorKind::WouldBlock)),
            "{at}: {seen:?}"
        );
        listener.set_nonblocking(false).unwrap();
    }
    assert_eq!(all(), without);
    wait::until("all went through cookies", || {
        counter(&edge, "all", "cookies_valid") == without.len() as u64
    });
    daemon.stop();
}

#[test]
fn listeners_come_and_go() {
    let lab = Lab::new(1);
    let link = lab.link();
    let settings = "[[service]]\nname = \"listed\"\nports = [80]\nsyn = \"always\"\n\
                    [[service]]\nname = \"rest\"\nports = \"listening\"\nsyn = \"always\"\n";
    let edge = Installation::new(&lab.host, &["eth0"], settings);
    let _daemon = edge.start();
    wait_ready(&edge, "listed", 2, 0);
    wait_ready(&edge, "rest", 0, 0);
    let refused = |port| {
        let to = SocketAddr::new(link.v4(1), port);
        let error = connect(link, to).expect_err("nobody listens");
        assert_eq!(error.kind(), io::ErrorKind::ConnectionRefused, "{error}");
    };
    for _ in 0..2 {
        refused(80);
        refused(90);
        let listeners = [80, 90].map(|port| {
            let at = SocketAddr::new("0.0.0.0".parse().unwrap(), port);
            listen(&lab.host, at, None)
        });
        wait_ready(&edge, "listed", 2, 1);
        wait_ready(&edge, "rest", 1, 1);
        let before = [("listed", 80), ("rest", 90)].map(|(name, port)| {
            let before = counter(&edge, name, "cookies_valid");
            let to = SocketAddr::new(link.v4(1), port);
            connect(link, to).unwrap();
            (name, before)
        });
        for (name, before) in before {
            wait::until("a cookie was valid", || {
                counter(&edge, name, "cookies_valid") > before
            });
        }
        drop(listeners);
        // At once, whatever the daemon knows of it.
        refused(80);
        refused(90);
        wait_ready(&edge, "listed", 2, 0);
        wait_ready(&edge, "rest", 0, 0);
    }
    // An address that comes, and one that goes.
    lab.host.ip("addr add 10.77.0.99/24 dev eth0");
    wait_ready(&edge, "listed", 3, 0);
    lab.host.ip("addr del 10.77.0.99/24 dev eth0");
    wait_ready(&edge, "listed", 2, 0);
}

fn sysctls(host: &Namespace) -> String {
    let text = host.run("cat", &[COOKIES, TIMESTAMPS]);
    text.split_whitespace().collect()
}

#[test]
fn sysctls_are_set_and_put_back() {
    let lab = Lab::new(1);
    let detach = format!("xdp.on_exit = \"detach\"\n{ALWAYS}");
    let edge = Installation::new(&lab.host, &["eth0"], &detach);
    let before = sysctls(&lab.host);
    assert_ne!(before, "22");
    let daemon = edge.start();
    assert_eq!(sysctls(&lab.host), "22");
    // A crash, after which the next daemon knows what was there.
    daemon.kill();
    assert_eq!(sysctls(&lab.host), "22");
    let daemon = edge.start();
    daemon.stop();
    assert_eq!(sysctls(&lab.host), before);
    // A program that stays goes on answering, and needs them.
    edge.configure(&["eth0"], ALWAYS);
    edge.start().stop();
    assert_eq!(sysctls(&lab.host), "22");
    // And a configuration without services does not.
    let daemon = edge.start();
    edge.configure(&["eth0"], "");
    edge.ok(&["reload"]);
    assert_eq!(sysctls(&lab.host), before);
    // A file that is refused changes nothing.
    edge.configure(&["eth0", "no-such-if"], ALWAYS);
    assert_ne!(edge.outcome(&["reload"]).code, 0);
    assert_eq!(sysctls(&lab.host), before);
    daemon.stop();
    assert!(edge.try_start().is_err());
    assert_eq!(sysctls(&lab.host), before);
}

#[test]
fn sysctls_that_somebody_changes_are_set_again_or_told() {
    let lab = Lab::new(1);
    let link = lab.link();
    let _nginx = Nginx::start(&lab.host);
    let set = |value: &str| {
        for path in [COOKIES, TIMESTAMPS] {
            lab.host
                .run("sh", &["-c", &format!("echo {value} > {path}")]);
        }
    };
    let check = format!("flood.sysctls = \"check\"\n{ALWAYS}");
    let edge = Installation::new(&lab.host, &["eth0"], &check);
    let Err(refused) = edge.try_start() else {
        panic!("it must not start")
    };
    assert!(
        refused
            .stderr
            .contains("run `sysctl -w net.ipv4.tcp_syncookies=2"),
        "{refused:?}"
    );
    let checked = edge.ok(&["check", "-c", edge.config().to_str().unwrap()]);
    assert!(
        checked.contains("sysctl -w net.ipv4.tcp_syncookies=2"),
        "{checked}"
    );
    set("2");
    let daemon = edge.start();
    wait_ready(&edge, "web", 2, 2);
    assert!(link.can_get(link.v4(2), wait::PATIENCE));
    // Only told, and the programs learn that there are no timestamps.
    lab.host
        .run("sh", &["-c", &format!("echo 1 > {TIMESTAMPS}")]);
    wait::until("the log tells", || {
        daemon.log().contains("the programs were loaded anew")
    });
    assert!(
        daemon.log().contains("net.ipv4.tcp_timestamps is 1, not 2"),
        "{}",
        daemon.log()
    );
    assert_eq!(sysctls(&lab.host), "21");
    assert!(link.can_get(link.v4(2), wait::PATIENCE));
    daemon.stop();
    edge.configure(&["eth0"], ALWAYS);
    set("1");
    let daemon = edge.start();
    assert_eq!(sysctls(&lab.host), "22");
    set("0");
    wait::until("they are set again", || sysctls(&lab.host) == "22");
    assert!(
        daemon.log().contains("was changed to 0: set to 2 again"),
        "{}",
        daemon.log()
    );
}

/// Floods port 80 of the host with SYNs from addresses that do not exist until `done`.
pub(super) fn flood(link: &Link, mut done: impl FnMut() -> bool) {
    let syn = |last| link.frame([10, 88, 1, last].into(), Payload::Tcp(frames::SYN));
    let frames: Vec<Vec<u8>> = (0..=255).map(syn).collect();
    wait::until("the flood shows", || {
        link.sender.send_all(&frames);
        done()
    });
}

#[test]
fn an_attack_is_seen_and_survived_and_ends() {
    let lab = Lab::new(1);
    let link = lab.link();
    let _nginx = Nginx::start(&lab.host);
    let settings = "[flood]\nhold = \"1s\"\nincomplete = { rate = 100, burst = 200 }\n\
                    [[service]]\nname = \"web\"\nports = [80]\n";
    let edge = Installation::new(&lab.host, &["eth0"], settings);
    let daemon = edge.start();
    wait_ready(&edge, "web", 2, 2);
    for _ in 0..20 {
        assert!(link.can_get(link.v4(2), wait::PATIENCE));
    }
    assert_eq!(service(&edge, "web")["under_attack"], false);
    assert_eq!(counter(&edge, "web", "cookies_sent"), 0);
    // It ends within a second of the flood, so that all is looked at in it.
    let mut seen = Value::Null;
    flood(link, || {
        seen = service(&edge, "web");
        let text = edge.ok(&["status"]);
        seen["under_attack"] == true && text.contains("\nweb: UNDER ATTACK since ")
    });
    assert!(seen["attack_since_unix_ms"].is_u64(), "{seen}");
    assert_eq!(seen["defended"], true);
    let valid = counter(&edge, "web", "cookies_valid");
    let mut got = 0;
    flood(link, || {
        got += u64::from(link.can_get(link.v4(2), wait::PATIENCE));
        got == 5
    });
    wait::until("they came through cookies", || {
        counter(&edge, "web", "cookies_valid") >= valid + 5
    });
    wait::until("the attack ends", || {
        service(&edge, "web")["under_attack"] == false
    });
    let log = daemon.log();
    for line in ["under attack: a SYN flood", "the attack is over"] {
        assert!(log.contains(line), "{line} in\n{log}");
    }
}

#[test]
fn a_reload_keeps_the_state_of_services_that_stay() {
    let lab = Lab::new(1);
    let link = lab.link();
    let _nginx = Nginx::start(&lab.host);
    let edge = Installation::new(&lab.host, &["eth0"], ALWAYS);
    let daemon: Daemon = edge.start();
    wait_ready(&edge, "web", 2, 2);
    // It says nothing: a request that comes with the end of the handshake would count as well.
    let _client = connect(link, SocketAddr::new(link.v4(1), 80)).unwrap();
    let one = |edge: &Installation<'_>| {
        wait::until("a cookie was valid", || {
            counter(edge, "web", "cookies_valid") == 1
        });
    };
    one(&edge);
    let other = "[[service]]\nname = \"another\"\nports = [25]\nsyn = \"off\"\n";
    edge.configure(&["eth0"], &format!("{other}{ALWAYS}"));
    let said = edge.ok(&["reload"]);
    assert!(said.contains("protects the services another"), "{said}");
    wait_ready(&edge, "web", 2, 2);
    wait_ready(&edge, "another", 2, 0);
    one(&edge);
    assert_eq!(counter(&edge, "another", "cookies_valid"), 0);
    // So does a crash, whatever the order in the file is.
    daemon.kill();
    edge.configure(&["eth0"], &format!("{ALWAYS}{other}"));
    let _daemon = edge.start();
    one(&edge);
    // The slot of one that goes is for the next, its counters are not.
    edge.configure(&["eth0"], &ALWAYS.replace("web", "next"));
    edge.ok(&["reload"]);
    edge.configure(
        &["eth0"],
        &(0..16)
            .map(|n| format!("[[service]]\nname = \"s{n}\"\nports = [{}]\n", n + 1))
            .collect::<String>(),
    );
    edge.ok(&["reload"]);
    for n in 0..16 {
        assert_eq!(counter(&edge, &format!("s{n}"), "cookies_valid"), 0);
    }
    // Two that share a port are refused, by name.
    edge.configure(
        &["eth0"],
        &format!("{ALWAYS}{}", ALWAYS.replace("web", "twin")),
    );
    let refused = edge.outcome(&["reload"]);
    assert!(
        refused
            .stderr
            .contains("\"twin\" has port 80 in common with \"web\""),
        "{refused:?}"
    );
}
