//! Sockets that a program of systemd opens, as `config/edge.socket` asks for them.

use std::fs;
use std::io::{self, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::thread;

use edge_tests::daemon::{Daemon, Installation, Outcome};
use edge_tests::lab::{Lab, Link};
use edge_tests::wait;

const UNIT: &str = include_str!("../../../config/edge.socket");
/// What systemd calls the sockets of a unit without `FileDescriptorName=`.
const UNNAMED: &str = "edge.socket";

/// What the unit says of a key.
fn said(key: &str) -> Vec<&'static str> {
    let of = |line: &'static str| line.strip_prefix(key)?.strip_prefix('=');
    UNIT.lines().filter_map(of).collect()
}

/// Sets what sockets of `[::]` are that do not say it themselves, as those of
/// systemd-socket-activate(1), which has no option for it.
fn set_v6_only(lab: &Lab, only: bool) {
    let value = if only { "1" } else { "0" };
    lab.host
        .inside(|| fs::write("/proc/sys/net/ipv6/bindv6only", value))
        .unwrap();
}

fn request(link: &Link, to: SocketAddr) -> io::Result<String> {
    let mut stream = link.outside.inside(|| TcpStream::connect(to))?;
    stream.set_read_timeout(Some(wait::PATIENCE))?;
    stream.write_all(b"GET / HTTP/1.1\r\nHost: edge\r\nConnection: close\r\n\r\n")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    Ok(answer)
}

/// Where clients reach the host at an address that it listens on.
fn reached(link: &Link, listens: &str) -> SocketAddr {
    let listens: SocketAddr = listens.parse().unwrap();
    let host = if listens.is_ipv4() {
        link.v4(1)
    } else {
        link.v6(1)
    };
    SocketAddr::new(host, listens.port())
}

/// Has sockets opened, each for a name; the first connection, which starts the daemon, is to the
/// first of them. Also what became of its request.
fn activate(
    edge: &Installation<'_>,
    link: &Link,
    sockets: &[(&str, &str)],
) -> (Result<Daemon, Outcome>, io::Result<String>) {
    let first = reached(link, sockets[0].0);
    thread::scope(|scope| {
        let client = scope.spawn(|| {
            wait::until_some("somebody listens", || match request(link, first) {
                Err(e) if e.kind() == io::ErrorKind::ConnectionRefused => None,
                other => Some(other),
            })
        });
        let started = edge.try_start_by_systemd(sockets);
        (started, client.join().unwrap())
    })
}

#[test]
fn a_connection_to_a_socket_of_the_unit_starts_the_daemon() {
    let lab = Lab::new(1);
    let link = lab.link();
    let named = format!("{}:8080", link.v4(1));
    // A word for each, as the unit says.
    assert_eq!(said("BindIPv6Only"), ["ipv6-only"]);
    assert_eq!(said("FileDescriptorName"), [] as [&str; 0]);
    let settings = |addresses: &[&str]| {
        format!(
            "[[listener]]\nname = \"web\"\naddresses = {addresses:?}\n\
             [[route]]\nname = \"all\"\nrespond = {{ status = 200, body = \"here\" }}\n"
        )
    };

    // As systemd opens it without a word of the unit.
    set_v6_only(&lab, false);
    let v6 = said("ListenStream")
        .into_iter()
        .find(|at| at.starts_with('['));
    let v6 = v6.unwrap();
    let edge = Installation::new(&lab.host, &["eth0"], &settings(&[v6]));
    let (started, _) = activate(&edge, link, &[(v6, UNNAMED)]);
    let refused = started.expect_err("IPv4 at a socket of IPv6");
    assert_eq!(refused.code, 1, "{refused:?}");
    let remedy = "BindIPv6Only=ipv6-only";
    assert!(refused.stderr.contains(remedy), "{refused:?}");

    set_v6_only(&lab, true);
    edge.configure(&["eth0"], &settings(&said("ListenStream")));
    let of_unit = said("ListenStream").into_iter().map(|at| (at, UNNAMED));
    let with = |name| {
        let all = of_unit.clone().chain([(&*named, name)]);
        all.collect::<Vec<(&str, &str)>>()
    };
    let (started, first) = activate(&edge, link, &with("web"));
    let daemon = started.unwrap_or_else(|refused| panic!("{refused:?}"));
    let is_answer = |answer: io::Result<String>| {
        let answer = answer.unwrap();
        assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
        assert!(answer.ends_with("\r\n\r\nhere"), "{answer}");
    };
    // The connection that has started it waited for the answer.
    is_answer(first);
    for (at, _) in with("web") {
        is_answer(request(link, reached(link, at)));
    }
    let log = daemon.stop();
    assert!(!log.contains("it is not used"), "{log}");

    // With a name that no listener has, the socket is nobody's.
    let (started, first) = activate(&edge, link, &with("other"));
    is_answer(first);
    let started = started.unwrap_or_else(|refused| panic!("{refused:?}"));
    let log = started.stop();
    let warning = format!("{named} of a socket that was handed over, nor its name \"other\"");
    assert!(log.contains(&warning), "{log}");
}
