//! A new process in the place of the daemon, and sockets that a service manager opens.

use std::fs::{self, Permissions};
use std::io::{self, Read, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt as _;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;

use edge_common::addr::Prefix;
use edge_tests::daemon::{self, Installation};
use edge_tests::frames::Payload;
use edge_tests::lab::{Lab, Link};
use edge_tests::netns::Namespace;
use edge_tests::raw::Which;
use edge_tests::server::Nginx;
use edge_tests::wait;

use crate::proxy::{HTTP, patient, settings, under_load};

/// Where the server listens that speaks another protocol.
const ECHO: u16 = 81;
/// More than all buffers on the way hold.
const DOWNLOAD: usize = 48 << 20;

/// A directory with the file `large`, and what is in that.
pub(crate) fn downloads() -> (tempfile::TempDir, Vec<u8>) {
    let files = tempfile::tempdir().unwrap();
    fs::set_permissions(files.path(), Permissions::from_mode(0o755)).unwrap();
    let content: Vec<u8> = (0..DOWNLOAD / 4)
        .flat_map(|n| {
            u32::try_from(n)
                .unwrap()
                .wrapping_mul(0x9e37_79b1)
                .to_le_bytes()
        })
        .collect();
    fs::write(files.path().join("large"), &content).unwrap();
    (files, content)
}

/// Ends the processes that have taken over, which are nobody's children.
pub(crate) struct Heirs<'a>(pub(crate) &'a Installation<'a>);

impl Drop for Heirs<'_> {
    fn drop(&mut self) {
        self.0.kill_daemons();
    }
}

/// A server in a namespace that changes to another protocol, in which it says what it hears.
pub(crate) fn echo(namespace: &Namespace) {
    let listener = namespace.inside(|| TcpListener::bind(("0.0.0.0", ECHO)).unwrap());
    // It ends with the test's process.
    thread::spawn(move || {
        for stream in listener.incoming() {
            let Ok(mut stream) = stream else { return };
            thread::spawn(move || -> io::Result<()> {
                head(&mut stream)?;
                stream.write_all(
                    b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\n\
                      Upgrade: websocket\r\n\r\n",
                )?;
                io::copy(&mut &stream, &mut &stream).map(drop)
            });
        }
    });
}

/// Reads up to the end of a head, byte by byte; in lower case.
pub(crate) fn head(stream: &mut impl Read) -> io::Result<String> {
    let mut head = Vec::new();
    let mut byte = [0];
    while !head.ends_with(b"\r\n\r\n") {
        stream.read_exact(&mut byte)?;
        head.push(byte[0]);
    }
    Ok(String::from_utf8_lossy(&head).to_lowercase())
}

pub(crate) fn connect(link: &Link) -> TcpStream {
    let to = SocketAddr::new(link.v4(1), HTTP);
    let stream = link.outside.inside(|| TcpStream::connect(to)).unwrap();
    stream.set_read_timeout(Some(wait::PATIENCE)).unwrap();
    stream
}

/// Asks for a path; the head of the answer.
pub(crate) fn ask(stream: &mut TcpStream, path: &str, more: &str) -> io::Result<String> {
    write!(stream, "GET {path} HTTP/1.1\r\nHost: edge\r\n{more}\r\n")?;
    head(stream)
}

/// A connection that speaks another protocol.
pub(crate) fn upgraded(link: &Link) -> TcpStream {
    let mut stream = connect(link);
    let more = "Connection: Upgrade\r\nUpgrade: websocket\r\n";
    let answer = ask(&mut stream, "/ws", more).unwrap();
    assert!(answer.starts_with("http/1.1 101 "), "{answer}");
    stream
}

/// Whether the other end still says what it hears.
pub(crate) fn echoes(stream: &mut TcpStream, text: &str) -> bool {
    let mut heard = vec![0; text.len()];
    stream.write_all(text.as_bytes()).is_ok()
        && stream.read_exact(&mut heard).is_ok()
        && heard == text.as_bytes()
}

/// Requests on one connection as long as it goes on, until it is told to end.
fn keep_asking(link: &Link, stop: &AtomicBool, done: &AtomicU64) {
    while !stop.load(Ordering::Relaxed) {
        let mut stream = connect(link);
        loop {
            let answer = ask(&mut stream, "/", "").unwrap();
            assert!(answer.starts_with("http/1.1 200 "), "{answer}");
            let mut body = [0; "protected by Edge\n".len()];
            stream.read_exact(&mut body).unwrap();
            assert_eq!(&body, b"protected by Edge\n");
            done.fetch_add(1, Ordering::Relaxed);
            if answer.contains("connection: close") || stop.load(Ordering::Relaxed) {
                break;
            }
        }
    }
}

/// The route and the server of the other protocol.
pub(crate) fn routes(lab: &Lab) -> String {
    format!(
        "[[upstream]]\nname = \"echo\"\n[[upstream.server]]\naddress = \"{}:{ECHO}\"\n\
         [[route]]\nname = \"ws\"\npath = {{ exact = \"/ws\" }}\nupstream = \"echo\"\n",
        lab.links[2].v4(2)
    )
}

/// The daemon's binary where only root may write.
pub(crate) fn copy_of_binary(edge: &Installation<'_>) -> String {
    let copy = edge.file("edge");
    fs::copy(daemon::binary(), &copy).unwrap();
    fs::set_permissions(&copy, Permissions::from_mode(0o755)).unwrap();
    copy.display().to_string()
}

pub(crate) fn pid(edge: &Installation<'_>) -> u64 {
    edge.status()["pid"].as_u64().unwrap()
}

pub(crate) fn serves(link: &Link) -> bool {
    ask(&mut connect(link), "/", "").is_ok_and(|answer| answer.starts_with("http/1.1 200 "))
}

#[test]
fn upgrades_under_load_lose_nothing() {
    let lab = Lab::new(3);
    let link = lab.link();
    let (files, content) = downloads();
    let _servers = [1, 2].map(|n| Nginx::serving(&lab.links[n].outside, files.path()));
    echo(&lab.links[2].outside);
    // A download that is read a part at a time takes as long as all of it.
    let settings = patient(&settings(&lab, "", "", &routes(&lab)));
    let edge = Installation::new(&lab.host, &["eth0"], &settings);
    let mut daemon = edge.start();
    let _heirs = Heirs(&edge);
    let binary = copy_of_binary(&edge);
    edge.ok(&["blacklist", "add", "10.66.0.1"]);
    let listed = "10.66.0.1".parse().unwrap();
    let leak = link.counter(&lab.host, Which::From(Prefix::host(listed)));
    let frames = vec![link.frame(listed, Payload::Udp(9)); 20];

    let mut tunnels = vec![upgraded(link)];
    let mut download = connect(link);
    let answer = ask(&mut download, "/files/large", "").unwrap();
    assert!(answer.starts_with("http/1.1 200 "), "{answer}");
    let mut parts = content.chunks(DOWNLOAD / 6);
    let mut take = || {
        let part = parts.next().unwrap();
        let mut got = vec![0; part.len()];
        download.read_exact(&mut got).unwrap();
        assert!(got == part, "the download is another one");
    };
    take();
    let (stop, kept, sent) = (AtomicBool::new(false), AtomicU64::new(0), AtomicU64::new(0));
    struct Stop<'a>(&'a AtomicBool);
    impl Drop for Stop<'_> {
        fn drop(&mut self) {
            self.0.store(true, Ordering::Relaxed);
        }
    }
    let mut pids = vec![pid(&edge)];
    let answered = thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| keep_asking(link, &stop, &kept));
        }
        scope.spawn(|| {
            while !stop.load(Ordering::Relaxed) {
                sent.fetch_add(link.sender.send_all(&frames) as u64, Ordering::Relaxed);
                wait::pause();
            }
        });
        let _stop = Stop(&stop);
        under_load(link, |more| {
            for n in 0..5 {
                let mut arguments = vec!["upgrade"];
                if n == 0 {
                    arguments.extend(["--binary", &binary]);
                }
                let told = edge.json(&arguments).remove(0);
                assert_eq!(told["former_pid"], pids[n], "{told}");
                pids.push(pid(&edge));
                assert_eq!(told["pid"], pids[n + 1], "{told}");
                assert!(!pids[..=n].contains(&pids[n + 1]), "{pids:?}");
                tunnels.push(upgraded(link));
                for (at, tunnel) in tunnels.iter_mut().enumerate() {
                    assert!(echoes(tunnel, "still here"), "tunnel {at} after {n}");
                }
                take();
                let kept_before = kept.load(Ordering::Relaxed);
                wait::until("connections go on", || {
                    kept.load(Ordering::Relaxed) > kept_before + 20
                });
                more();
                assert!(!link.passes_from(listed), "after {n}");
                assert!(edge.scrape().contains("edge_http_workers"));
            }
        })
    });
    println!(
        "{answered} by new connections, {} by old ones over 5 upgrades",
        kept.into_inner()
    );
    let sent = sent.into_inner();
    wait::until("all have come", || {
        edge.packets("blacklisted", "ended") >= sent
    });
    assert_eq!(leak.packets(), 0);
    assert_eq!(edge.json(&["blacklist", "list"]).len(), 1);
    // Each has a tunnel still.
    assert_eq!(edge.daemons().len(), 6);
    assert!(daemon.told().contains(&format!("MAINPID={}", pids[1])));
    drop((tunnels, download));
    let last = u32::try_from(pids[5]).unwrap();
    wait::until("only the last is left", || edge.daemons() == [last]);
    let status = wait::until_some("the first has ended", || daemon.ended());
    assert!(status.success(), "{status}");
    assert!(serves(link));
    assert!(!link.passes_from(listed));
}

#[test]
fn what_fails_changes_nothing() {
    let lab = Lab::new(3);
    let link = lab.link();
    let _servers = [1, 2].map(|n| Nginx::start(&lab.links[n].outside));
    echo(&lab.links[2].outside);
    let good = settings(&lab, "", "", &routes(&lab));
    let edge = Installation::new(&lab.host, &["eth0"], &good);
    let daemon = edge.start();
    let _heirs = Heirs(&edge);
    let binary = copy_of_binary(&edge);
    edge.ok(&["blacklist", "add", "10.66.0.1"]);
    let mut tunnel = upgraded(link);
    let before = pid(&edge);
    let script = |text: &str| {
        let path = edge.file("script");
        fs::write(&path, text).unwrap();
        fs::set_permissions(&path, Permissions::from_mode(0o755)).unwrap();
        path.display().to_string()
    };
    let mut fails = |arguments: &[&str], code: i32, why: &[&str]| {
        let mut all = vec!["upgrade"];
        all.extend(arguments);
        under_load(link, |more| {
            let outcome = edge.outcome(&all);
            assert_eq!(outcome.code, code, "{outcome:?}");
            for why in why {
                assert!(outcome.stderr.contains(why), "{why} in {}", outcome.stderr);
            }
            more();
        });
        assert_eq!(pid(&edge), before);
        assert_eq!(edge.daemons(), [daemon.pid()]);
        assert!(echoes(&mut tunnel, "as before"));
        assert!(!link.passes_from("10.66.0.1".parse().unwrap()));
    };
    let broken = script("#!/bin/sh\necho 'no such luck' >&2\nexit 1\n");
    fails(
        &["--binary", &broken],
        1,
        &["ended before it was ready", "no such luck"],
    );
    let hanging = script("#!/bin/sh\necho 'just a moment' >&2\nsleep 1000\n");
    fails(
        &["--binary", &hanging, "--timeout", "1s"],
        1,
        &["not ready in time", "just a moment", "goes on as before"],
    );
    fs::set_permissions(&hanging, Permissions::from_mode(0o777)).unwrap();
    fails(&["--binary", &hanging], 2, &["others than root"]);
    fails(&["--binary", "/nowhere/edge"], 2, &["/nowhere/edge"]);
    // What the new process finds at once.
    edge.configure(&["eth0"], "nonsense = 1\n");
    fails(
        &["--binary", &binary],
        1,
        &["nonsense", "goes on as before"],
    );
    // What it finds when the old one has let go of everything.
    let nowhere =
        format!("{good}\n[[listener]]\nname = \"none\"\naddresses = [\"192.0.2.9:80\"]\n");
    edge.configure(&["eth0"], &nowhere);
    fails(
        &["--binary", &binary],
        1,
        &["cannot listen on 192.0.2.9:80"],
    );
    assert_eq!(edge.status()["config"]["generation"], 1);
    edge.ok(&["blacklist", "add", "10.66.0.2"]);
    assert_eq!(edge.json(&["blacklist", "list"]).len(), 2);
    // And then it can.
    edge.configure(&["eth0"], &good);
    edge.ok(&["upgrade", "--binary", &binary]);
    assert_ne!(pid(&edge), before);
    assert!(serves(link));
    assert!(echoes(&mut tunnel, "in the old process"));
    edge.ok(&["reload"]);
}

#[test]
fn draining_has_an_end() {
    let lab = Lab::new(3);
    let link = lab.link();
    let _servers = [1, 2].map(|n| Nginx::start(&lab.links[n].outside));
    echo(&lab.links[2].outside);
    let within = |time: &str| {
        let root = format!("[proxy]\ndrain_timeout = \"{time}\"");
        settings(&lab, &root, "", &routes(&lab))
    };
    let edge = Installation::new(&lab.host, &["eth0"], &within("1s"));
    let mut first = edge.start();
    let _heirs = Heirs(&edge);
    let binary = copy_of_binary(&edge);
    let mut tunnel = upgraded(link);
    edge.configure(&["eth0"], &within("1h"));
    edge.ok(&["upgrade", "--binary", &binary]);
    // The time-out is over.
    wait::until_some("the first has ended", || first.ended());
    assert!(!echoes(&mut tunnel, "gone"));

    let second = u32::try_from(pid(&edge)).unwrap();
    let mut tunnel = upgraded(link);
    edge.ok(&["upgrade"]);
    let third = pid(&edge);
    assert!(echoes(&mut tunnel, "in the second"));
    let signal = |pid: u32, signal| {
        // SAFETY: no pointers; it runs the daemon of our own installation.
        let sent = unsafe { libc::kill(i32::try_from(pid).unwrap(), signal) };
        assert_eq!(sent, 0);
    };
    // Told to end, it does not wait for an hour, and takes nothing with it.
    signal(second, libc::SIGHUP);
    signal(second, libc::SIGTERM);
    wait::until("the second has ended", || daemon::is_over(second));
    assert_eq!(pid(&edge), third);
    assert!(serves(link));

    // When the new one dies, what the old one has goes on, and a third can start.
    let mut tunnel = upgraded(link);
    edge.ok(&["upgrade"]);
    let fourth = u32::try_from(pid(&edge)).unwrap();
    signal(fourth, libc::SIGKILL);
    wait::until("it is gone", || daemon::is_over(fourth));
    assert!(echoes(&mut tunnel, "in the third"));
    let _last = edge.start();
    assert!(serves(link));
    assert!(echoes(&mut tunnel, "still in the third"));
}

#[test]
fn with_sockets_of_the_service_manager_a_restart_refuses_nobody() {
    let lab = Lab::new(3);
    let link = lab.link();
    let _servers = [1, 2].map(|n| Nginx::start(&lab.links[n].outside));
    let root = "[proxy]\nworkers = 3";
    let wanted = settings(&lab, root, "", "");
    let edge = Installation::new(&lab.host, &["eth0"], &wanted);
    let _heirs = Heirs(&edge);
    let bind = |port| {
        let at = SocketAddr::new(link.v4(1), port);
        lab.host.inside(|| TcpListener::bind(at).unwrap())
    };
    // For an address, for a name, and for nothing.
    let sockets = [bind(HTTP), bind(HTTP + 1), bind(HTTP + 2)];
    let names = "edge.socket:web:edge.socket";
    let mut daemon = Some(edge.start_activated(&sockets, names));
    under_load(link, |more| {
        for _ in 0..3 {
            let log = daemon.take().unwrap().stop();
            assert!(log.contains("it is not used"), "{log}");
            daemon = Some(edge.start_activated(&sockets, names));
            more();
        }
        edge.ok(&["upgrade", "--binary", &copy_of_binary(&edge)]);
        more();
    });
    let by_name = SocketAddr::new(link.v4(1), HTTP + 1);
    let mut stream = link.outside.inside(|| TcpStream::connect(by_name)).unwrap();
    let answer = ask(&mut stream, "/", "").unwrap();
    assert!(answer.starts_with("http/1.1 200 "), "{answer}");

    // One that a reload does not want is there for another one, also in the next process.
    let at = |port: u16| format!("addresses = [\"{}:{port}\"]", link.v4(1));
    let other = wanted.replace(&at(HTTP), &at(HTTP + 5));
    assert_ne!(other, wanted);
    edge.configure(&["eth0"], &other);
    edge.ok(&["reload"]);
    edge.ok(&["upgrade"]);
    let mut waiting = connect(link);
    edge.configure(&["eth0"], &wanted);
    edge.ok(&["reload"]);
    let answer = ask(&mut waiting, "/", "").unwrap();
    assert!(answer.starts_with("http/1.1 200 "), "{answer}");
}
