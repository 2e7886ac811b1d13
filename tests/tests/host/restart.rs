//! Crashes, restarts and the end, under traffic.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;

use edge_common::addr::Prefix;
use edge_tests::daemon::Installation;
use edge_tests::frames::Payload;
use edge_tests::lab::{Lab, Link};
use edge_tests::raw::Which;
use edge_tests::wait;

/// Frames of the allowed flow that are under way at one time: fewer than a link's ring holds.
const WINDOW: usize = 32;

/// A flood from listed sources on the first link, of which nothing may come through, and a flow
/// from an allowed source on the second, of which nothing may be lost, while `during` runs.
/// Returns how many packets were sent of each.
fn under_traffic(lab: &Lab, listed: &[&str], during: impl FnOnce()) -> (u64, u64) {
    let (first, second) = (&lab.links[0], &lab.links[1]);
    let leaks: Vec<_> = listed
        .iter()
        .map(|s| Prefix::host(s.parse().unwrap()))
        .map(|p| (p, first.counter(&lab.host, Which::From(p))))
        .collect();
    let flood: Vec<Vec<u8>> = listed
        .iter()
        .map(|s| first.frame(s.parse().unwrap(), Payload::Udp(9)))
        .collect();
    let allowed = "10.99.0.1".parse().unwrap();
    let flow = second.frame(allowed, Payload::Udp(9));
    let arrived = second.counter(&lab.host, Which::From(Prefix::host(allowed)));
    let (stop, dropped, passed) = (AtomicBool::new(false), AtomicU64::new(0), AtomicU64::new(0));
    thread::scope(|scope| {
        // Also when something panics: the threads must end.
        struct Stop<'a>(&'a AtomicBool);
        impl Drop for Stop<'_> {
            fn drop(&mut self) {
                self.0.store(true, Ordering::Relaxed);
            }
        }
        scope.spawn(|| {
            while !stop.load(Ordering::Relaxed) {
                dropped.fetch_add(first.sender.send_all(&flood) as u64, Ordering::Relaxed);
            }
        });
        scope.spawn(|| {
            let mut sent = 0;
            while !stop.load(Ordering::Relaxed) {
                sent += second.sender.send_all(&vec![&flow; WINDOW]) as u64;
                wait::until("a packet of the allowed flow is lost", || {
                    arrived.packets() >= sent
                });
                passed.store(sent, Ordering::Relaxed);
            }
        });
        let _stop = Stop(&stop);
        let more = |n: &AtomicU64| {
            let now = n.load(Ordering::Relaxed);
            wait::until("traffic", || n.load(Ordering::Relaxed) > now + 1000);
        };
        more(&dropped);
        more(&passed);
        during();
        more(&dropped);
        more(&passed);
    });
    assert!(first.passes_from("10.98.0.1".parse().unwrap()));
    for (source, counter) in &leaks {
        assert_eq!(counter.packets(), 0, "of {source} came through");
    }
    (dropped.into_inner(), passed.into_inner())
}

fn program_id(link: &Link, lab: &Lab) -> u64 {
    let text = lab.host.ip(&format!("-j link show {}", link.interface));
    let links: serde_json::Value = serde_json::from_str(&text).unwrap();
    links[0]["xdp"]["prog"]["id"].as_u64().unwrap_or(0)
}

const LISTED: [&str; 5] = ["10.66.0.1", "10.67.1.2", "fd66::1", "fd67::1", "10.69.0.1"];

fn blacklist(edge: &Installation<'_>) {
    edge.ok(&[
        "blacklist",
        "add",
        "10.66.0.1",
        "10.67.0.0/16",
        "fd66::1",
        "fd67::/32",
    ]);
}

/// The last of [`LISTED`] stands in the file.
const SETTINGS: &str = "lists.blacklist = [\"10.69.0.0/24\"]\n";

#[test]
fn a_crash_and_a_restart_let_nothing_through_and_lose_nothing() {
    let lab = Lab::new(2);
    let edge = Installation::new(&lab.host, &["eth0", "eth1"], SETTINGS);
    let daemon = edge.start();
    blacklist(&edge);
    let mut next = None;
    let (dropped, passed) = under_traffic(&lab, &LISTED, || {
        let mut daemon = daemon;
        for _ in 0..3 {
            let before = program_id(lab.link(), &lab);
            assert_ne!(before, 0);
            daemon.kill();
            assert_eq!(program_id(lab.link(), &lab), before, "the program stays");
            daemon = edge.start();
            assert_ne!(
                program_id(lab.link(), &lab),
                before,
                "the program is a new one"
            );
            assert_eq!(edge.status()["interfaces"][0]["adopted"], true);
        }
        next = Some(daemon);
    });
    println!("{dropped} dropped, {passed} passed over three crashes");
    assert_eq!(edge.packets("blacklisted", "ended"), dropped);
    assert_eq!(edge.json(&["blacklist", "list"]).len(), 5);
}

#[test]
fn a_reload_with_other_sizes_lets_nothing_through_and_loses_nothing() {
    let lab = Lab::new(2);
    let edge = Installation::new(&lab.host, &["eth0", "eth1"], SETTINGS);
    let _daemon = edge.start();
    blacklist(&edge);
    under_traffic(&lab, &LISTED, || {
        for size in ["300k", "50k"] {
            let tables = format!(
                "{SETTINGS}tables.hosts_v4 = \"{size}\"\ntables.hosts_v6 = \"{size}\"\n\
                 tables.prefixes = \"{size}\"\ntables.limiter_sources = \"{size}\"\n"
            );
            edge.configure(&["eth0", "eth1"], &tables);
            edge.ok(&["reload"]);
        }
    });
    let status = edge.status();
    assert_eq!(status["config"]["generation"], 3);
    let tables = status["tables"].as_array().unwrap();
    let hosts = tables.iter().find(|t| t["table"] == "hosts_v4").unwrap();
    assert_eq!(hosts["capacity"], 50_000);
    assert_eq!(edge.json(&["blacklist", "list"]).len(), 5);
}

#[test]
fn the_end_leaves_or_detaches_as_configured() {
    let lab = Lab::new(1);
    let link = lab.link();
    let source = "10.66.0.1".parse().unwrap();
    for (on_exit, stays) in [("leave", true), ("detach", false)] {
        let settings = format!("xdp.on_exit = \"{on_exit}\"\n");
        let edge = Installation::new(&lab.host, &["eth0"], &settings);
        let daemon = edge.start();
        edge.ok(&["blacklist", "add", "10.66.0.1"]);
        assert!(!link.passes_from(source));
        daemon.stop();
        assert_eq!(!link.passes_from(source), stays, "{on_exit}");
        assert_eq!(program_id(link, &lab) != 0, stays, "{on_exit}");
        let pins = lab
            .host
            .output("find", &[&edge.bpffs().display().to_string(), "-type", "f"]);
        assert_eq!(!pins.stdout.is_empty(), stays, "{pins:?}");
        // Either way the entries are there again with the next daemon.
        let daemon = edge.start();
        assert!(!link.passes_from(source), "{on_exit}");
        assert_eq!(edge.json(&["blacklist", "list"]).len(), 1);
        edge.configure(&["eth0"], "xdp.on_exit = \"detach\"\n");
        edge.ok(&["reload"]);
        daemon.stop();
        assert_eq!(program_id(link, &lab), 0);
    }
}
