//! What an old process leaves to a new one, and what becomes of an upgrade that comes to nothing
//! late.

use std::fs::{self, Permissions};
use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::thread;

use edge_tests::daemon::{Daemon, Installation, Outcome, is_over};
use edge_tests::lab::{Lab, Link};
use edge_tests::server::Nginx;
use edge_tests::wait;
use serde_json::Value;

use crate::proxy::{HTTP, settings, under_load};
use crate::upgrade::{
    Heirs, ask, connect, copy_of_binary, echo, echoes, head, pid, routes, serves, upgraded,
};
use crate::watchdog::{Held, WATCHDOG};

/// The servers of the upstream `app`: whether they drain, and their weights.
fn servers(edge: &Installation<'_>) -> Vec<(bool, u64)> {
    let status = edge.status();
    let upstreams = status["proxy"]["upstreams"].as_array().unwrap();
    let app = upstreams.iter().find(|u| u["name"] == "app").unwrap();
    let servers = app["servers"].as_array().unwrap().iter();
    let one = |s: &Value| {
        let draining = s["draining"].as_bool().unwrap();
        (draining, s["weight"].as_u64().unwrap())
    };
    servers.map(one).collect()
}

#[test]
fn what_was_said_of_servers_holds_in_the_next_process() {
    let lab = Lab::new(3);
    let _servers = [1, 2].map(|n| Nginx::start(&lab.links[n].outside));
    let good = settings(&lab, "", "", "");
    let edge = Installation::new(&lab.host, &["eth0"], &good);
    let _daemon = edge.start();
    let _heirs = Heirs(&edge);
    let binary = copy_of_binary(&edge);
    let [one, two] = [1, 2].map(|n| format!("{}:80", lab.links[n].v4(2)));
    edge.ok(&["upstream", "drain", "app", &one]);
    edge.ok(&["upstream", "weight", "app", &two, "7"]);
    assert_eq!(servers(&edge), [(true, 1), (false, 7)]);
    for _ in 0..2 {
        edge.ok(&["upgrade", "--binary", &binary]);
        assert_eq!(servers(&edge), [(true, 1), (false, 7)]);
    }
    assert!(serves(lab.link()));
    // Of what the file says anew, the file is right.
    let address = format!("address = \"{two}\"\n");
    edge.configure(
        &["eth0"],
        &good.replace(&address, &format!("{address}weight = 3\n")),
    );
    edge.ok(&["upgrade"]);
    assert_eq!(servers(&edge), [(true, 1), (false, 3)]);
    edge.ok(&["upstream", "drain", "app", &one, "--undo"]);
    edge.ok(&["upgrade"]);
    assert_eq!(servers(&edge), [(false, 1), (false, 3)]);
}

#[test]
fn clients_of_old_connections_are_banned_by_the_next_process() {
    let lab = Lab::new(3);
    let link = lab.link();
    let _servers = [1, 2].map(|n| Nginx::start(&lab.links[n].outside));
    let root = "[proxy]\nbans = { offences = 2, window = \"60s\", ttl = \"600s\" }";
    let patience = "limits = { header_timeout = \"10m\" }";
    let settings = settings(&lab, root, patience, "");
    let edge = Installation::new(&lab.host, &["eth0"], &settings);
    let mut daemon = edge.start();
    let _heirs = Heirs(&edge);
    let entries = || edge.json(&["blacklist", "list"]);
    // Requests that have begun are waited for.
    let to = SocketAddr::new(link.v4(1), HTTP);
    let mut clients: Vec<TcpStream> = (0..3)
        .map(|_| {
            let mut client = link.outside.inside(|| TcpStream::connect(to)).unwrap();
            client.set_read_timeout(Some(wait::PATIENCE)).unwrap();
            client.write_all(b"GET / HTTP/1.1\r\n").unwrap();
            client
        })
        .collect();
    let open = || edge.status()["proxy"]["listeners"][0]["open"].clone();
    wait::until("they are accepted", || open() == 3);
    edge.ok(&["upgrade", "--binary", &copy_of_binary(&edge)]);
    assert_eq!(entries().len(), 0);
    for client in &mut clients {
        client.write_all(b"Host: a\r\n folded\r\n\r\n").unwrap();
        assert!(head(client).unwrap().starts_with("http/1.1 400 "));
    }
    let entry = wait::until_some("the entry", || entries().into_iter().next());
    assert_eq!(
        (&entry["origin"], &entry["prefix"]),
        (&"l7".into(), &link.v4(2).to_string().into())
    );
    assert!(!link.passes_from(link.v4(2)));
    wait::until_some("the first has ended", || daemon.ended());
}

#[test]
fn who_waits_at_an_address_that_goes_is_served_by_the_old_process() {
    const WAITING: usize = 400;
    let lab = Lab::new(3);
    let link = lab.link();
    let _servers = [1, 2].map(|n| Nginx::start(&lab.links[n].outside));
    let gone = SocketAddr::new(link.v4(1), HTTP + 7);
    let kept = settings(&lab, "[proxy]\nworkers = 1", "", "");
    let both = format!("{kept}\n[[listener]]\nname = \"gone\"\naddresses = [\"{gone}\"]\n");
    let edge = Installation::new(&lab.host, &["eth0"], &both);
    let daemon = edge.start();
    let _heirs = Heirs(&edge);
    edge.configure(&["eth0"], &kept);
    // It accepts nothing until the new process has taken over.
    let held = Held::new(&daemon, "proxy-0");
    let mut clients: Vec<TcpStream> = (0..WAITING)
        .map(|_| {
            let mut client = link.outside.inside(|| TcpStream::connect(gone)).unwrap();
            client.set_read_timeout(Some(wait::PATIENCE)).unwrap();
            let request = b"GET / HTTP/1.1\r\nHost: edge\r\nConnection: close\r\n\r\n";
            client.write_all(request).unwrap();
            client
        })
        .collect();
    edge.ok(&["upgrade", "--binary", &copy_of_binary(&edge)]);
    wait::until("the old process is about to end", || {
        daemon.log().contains("no more connections are accepted")
    });
    drop(held);
    for (n, client) in clients.iter_mut().enumerate() {
        let mut answer = String::new();
        let read = client.read_to_string(&mut answer);
        assert!(
            read.is_ok() && answer.starts_with("HTTP/1.1 200 "),
            "{n}: {read:?} {answer}"
        );
    }
    assert!(link.outside.inside(|| TcpStream::connect(gone)).is_err());
    assert!(serves(link));
}

/// A program that is none of edge's, in the place of a new process.
fn program(edge: &Installation<'_>, text: &str) -> String {
    let path = edge.file("program");
    fs::write(&path, format!("#!/usr/bin/perl\n{text}\n")).unwrap();
    fs::set_permissions(&path, Permissions::from_mode(0o755)).unwrap();
    path.display().to_string()
}

/// The part of such a program that speaks as a new process until everything is free, and writes a
/// file then.
fn speaking(sign: &Path) -> String {
    format!(
        "open(my $old, '+<&=', $ENV{{EDGE_UPGRADE}}) or die; <$old>;\n\
         syswrite($old, qq({{\"prepared\":{{\"version\":\"0\"}}}}\\n)); <$old>;\n{}",
        signing(sign)
    )
}

/// The part that writes its process id to a file.
fn signing(sign: &Path) -> String {
    let sign = sign.display();
    format!(
        "open(my $f, '>', '{sign}.new'); print $f $$; close $f; rename('{sign}.new', '{sign}');"
    )
}

fn kill(pid: u32, signal: i32) {
    // SAFETY: no pointers; it runs for our own installation.
    let sent = unsafe { libc::kill(i32::try_from(pid).unwrap(), signal) };
    assert_eq!(sent, 0);
}

/// The process that has written its id to a file. It is killed when this is dropped.
struct Stray(u32);

impl Stray {
    #[track_caller]
    fn of(sign: &Path) -> Self {
        Self(wait::until_some("the new process", || {
            fs::read_to_string(sign).ok()?.parse().ok()
        }))
    }
}

impl Drop for Stray {
    fn drop(&mut self) {
        // SAFETY: no pointers; it is ours, and nobody has waited for it before it ended.
        unsafe { libc::kill(i32::try_from(self.0).unwrap(), libc::SIGKILL) };
        // What it has of the daemon's keeps another one from starting.
        wait::until("it is gone", || is_over(self.0));
    }
}

/// Asks for an upgrade that fails, while something else is done.
fn fails<T>(
    edge: &Installation<'_>,
    arguments: &[&str],
    during: impl FnOnce() -> T,
) -> (Outcome, T) {
    thread::scope(|scope| {
        let all = [&["upgrade"], arguments].concat();
        let asking = scope.spawn(move || edge.outcome(&all));
        let done = during();
        let outcome = asking.join().unwrap();
        assert_ne!(outcome.code, 0, "{outcome:?}");
        (outcome, done)
    })
}

#[test]
fn told_to_stop_the_daemon_waits_for_no_process_that_does_not_end() {
    let lab = Lab::new(3);
    let _servers = [1, 2].map(|n| Nginx::start(&lab.links[n].outside));
    let edge = Installation::new(&lab.host, &["eth0"], &settings(&lab, "", "", ""));
    let _heirs = Heirs(&edge);
    let sign = edge.file("sign");
    for spoken in [signing(&sign), speaking(&sign)] {
        let mut daemon = edge.start();
        // One that leaves its group is not killed with it.
        // SAFETY: no pointers.
        let group = unsafe { libc::getpgid(i32::try_from(daemon.pid()).unwrap()) };
        let text = format!("setpgrp(0, {group}) or die;\n{spoken}\nsleep 1000 while 1;");
        let binary = program(&edge, &text);
        let (_, ()) = fails(&edge, &["--timeout", "3s", "--binary", &binary], || {
            // Gone also when this fails, so that nobody waits for it any more.
            let _stray = Stray::of(&sign);
            wait::until("it was killed", || daemon.log().contains("does not end"));
            daemon.signal(libc::SIGTERM);
            let status = wait::until_some("the daemon has ended", || daemon.ended());
            assert!(status.success(), "{status}: {}", daemon.log());
        });
        fs::remove_file(&sign).unwrap();
    }
}

#[test]
fn what_cannot_be_taken_back_at_once_is_taken_back_later() {
    let lab = Lab::new(3);
    let link = lab.link();
    let _servers = [1, 2].map(|n| Nginx::start(&lab.links[n].outside));
    echo(&lab.links[2].outside);
    let edge = Installation::new(&lab.host, &["eth0"], &settings(&lab, "", "", &routes(&lab)));
    let daemon = edge.start();
    let _heirs = Heirs(&edge);
    let binary = copy_of_binary(&edge);
    edge.ok(&["blacklist", "add", "10.66.0.1"]);
    let mut tunnel = upgraded(link);
    let (state, away) = (edge.state_dir(), edge.file("away"));
    fs::rename(&state, &away).unwrap();
    fs::write(&state, "no directory\n").unwrap();
    let (outcome, ()) = fails(&edge, &["--binary", &binary], || {
        wait::until("it is tried again", || {
            daemon.log().contains("is tried again in")
        });
        // The proxy goes on, and so does the firewall.
        under_load(link, |more| more());
        assert!(echoes(&mut tunnel, "alone"));
        assert!(!link.passes_from("10.66.0.1".parse().unwrap()));
        fs::remove_file(&state).unwrap();
        fs::rename(&away, &state).unwrap();
    });
    assert!(outcome.stderr.contains("goes on as before"), "{outcome:?}");
    assert_eq!(pid(&edge), u64::from(daemon.pid()));
    edge.ok(&["blacklist", "add", "10.66.0.2"]);
    assert_eq!(edge.json(&["blacklist", "list"]).len(), 2);
    edge.ok(&["reload"]);
    edge.ok(&["upgrade", "--binary", &binary]);
    assert!(echoes(&mut tunnel, "in the old process"));
}

#[test]
fn the_service_manager_hears_of_a_daemon_without_an_engine() {
    let lab = Lab::new(3);
    let _servers = [1, 2].map(|n| Nginx::start(&lab.links[n].outside));
    let edge = Installation::new(&lab.host, &["eth0"], &settings(&lab, "", "", ""));
    let daemon = edge.start_watched(WATCHDOG);
    let _heirs = Heirs(&edge);
    let sign = edge.file("sign");
    let binary = program(&edge, &format!("{}\nsleep 1000 while 1;", speaking(&sign)));
    let (_, ()) = fails(&edge, &["--binary", &binary], || {
        let stray = Stray::of(&sign);
        goes_on(&daemon);
        drop(stray);
    });
    goes_on(&daemon);
    // The new one gives signs of life, and the old one none that is needed.
    edge.ok(&["upgrade", "--binary", &copy_of_binary(&edge)]);
    let mut daemon = daemon;
    wait::until_some("the first has ended", || daemon.ended());
    goes_on(&daemon);
}

/// Waits for more signs of life than one that came late.
#[track_caller]
fn goes_on(daemon: &Daemon) {
    let before = daemon.signs_of_life();
    wait::until("signs of life", || daemon.signs_of_life() > before + 5);
}

#[test]
fn of_a_process_that_is_not_known_the_old_one_is_the_service() {
    let lab = Lab::new(3);
    let link = lab.link();
    let _servers = [1, 2].map(|n| Nginx::start(&lab.links[n].outside));
    let edge = Installation::new(&lab.host, &["eth0"], &settings(&lab, "", "", ""));
    let _heirs = Heirs(&edge);
    let binary = copy_of_binary(&edge);
    // The service manager is there, but not for that one message.
    let (manager, away) = (edge.file("notify"), edge.file("notify.away"));
    for ends in [libc::SIGTERM, libc::SIGKILL] {
        let mut old = edge.start_watched(WATCHDOG);
        fs::rename(&manager, &away).unwrap();
        edge.ok(&["upgrade", "--binary", &binary]);
        fs::rename(&away, &manager).unwrap();
        let new = u32::try_from(pid(&edge)).unwrap();
        wait::until("the old one stays", || {
            old.log().contains("staying until told to stop")
        });
        assert!(!old.told().contains("MAINPID="));
        assert!(serves(link));
        // Those of the new one are not its own.
        kill(new, libc::SIGSTOP);
        goes_on(&old);
        kill(new, libc::SIGCONT);
        if ends == libc::SIGTERM {
            old.signal(libc::SIGTERM);
            let status = wait::until_some("the old one has ended", || old.ended());
            assert!(status.success(), "{status}");
            kill(new, libc::SIGKILL);
        } else {
            kill(new, libc::SIGKILL);
            let status = wait::until_some("the old one has ended", || old.ended());
            assert!(!status.success(), "{status}");
        }
        wait::until("all are gone", || is_over(new) && edge.daemons().is_empty());
    }
}

#[test]
fn the_number_of_workers_changes_with_a_reload() {
    let lab = Lab::new(3);
    let link = lab.link();
    let _servers = [1, 2].map(|n| Nginx::start(&lab.links[n].outside));
    echo(&lab.links[2].outside);
    let with = |n: usize| settings(&lab, &format!("[proxy]\nworkers = {n}"), "", &routes(&lab));
    let edge = Installation::new(&lab.host, &["eth0"], &with(2));
    let _daemon = edge.start();
    let _heirs = Heirs(&edge);
    let mut tunnels: Vec<TcpStream> = Vec::new();
    let check = |tunnels: &mut Vec<TcpStream>, n: usize| {
        assert_eq!(edge.status()["proxy"]["workers"], n);
        tunnels.push(upgraded(link));
        for (at, tunnel) in tunnels.iter_mut().enumerate() {
            assert!(echoes(tunnel, "still here"), "tunnel {at} with {n}");
        }
        waiting_are_served(link);
    };
    under_load(link, |more| {
        for n in [5, 1, 3, 2, 4] {
            edge.configure(&["eth0"], &with(n));
            edge.ok(&["reload"]);
            check(&mut tunnels, n);
            more();
        }
        // A new process has the same sockets, whatever their number.
        edge.configure(&["eth0"], &with(3));
        edge.ok(&["upgrade", "--binary", &copy_of_binary(&edge)]);
        check(&mut tunnels, 3);
        more();
    });
}

/// Connects more often than there are sockets, and then asks.
fn waiting_are_served(link: &Link) {
    let mut all: Vec<TcpStream> = (0..32).map(|_| connect(link)).collect();
    for (n, stream) in all.iter_mut().enumerate() {
        let answer = ask(stream, "/", "").unwrap();
        assert!(answer.starts_with("http/1.1 200 "), "{n}: {answer}");
    }
}
