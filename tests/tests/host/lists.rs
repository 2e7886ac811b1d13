//! Blacklist, allowlist and management addresses with real clients.

use std::net::IpAddr;
use std::time::Duration;

use edge_common::addr::Prefix;
use edge_tests::daemon::Installation;
use edge_tests::frames::{self, Payload};
use edge_tests::lab::Lab;
use edge_tests::raw::Which;
use edge_tests::server::Nginx;
use edge_tests::wait;

/// Long enough for a page over a link of this machine, busy as it may be.
const A_WHILE: Duration = Duration::from_secs(10);
/// Long enough for a first packet and one more try.
const IN_VAIN: Duration = Duration::from_millis(1500);

fn host(address: &str) -> Prefix {
    Prefix::host(address.parse::<IpAddr>().unwrap())
}

#[test]
fn a_client_is_locked_out_and_let_in_again() {
    let lab = Lab::new(1);
    let link = lab.link();
    let _nginx = Nginx::start(&lab.host);
    let edge = Installation::new(&lab.host, &["eth0"], "");
    let _daemon = edge.start();
    assert_eq!(edge.status()["interfaces"][0]["mode"], "native");

    let cases = [
        (link.v4(3), "10.77.0.3"),
        (link.v6(3), "fd77:0:0:0::3"),
        (link.v4(4), "10.77.0.4/31"),
        (link.v6(4), "fd77::4/126"),
    ];
    for (source, entry) in cases {
        assert!(link.can_get(source, A_WHILE), "{source} before");
        edge.ok(&["blacklist", "add", entry]);
        // Behind it, because the end of the connection before may come late.
        let counter = link.counter(&lab.host, Which::From(Prefix::host(source)));
        assert!(!link.can_get(source, IN_VAIN), "{source} on the blacklist");
        assert_eq!(counter.packets(), 0, "of {source} came through");
        assert!(link.can_get(link.v4(2), A_WHILE), "another client");
        assert!(link.can_get(link.v6(2), A_WHILE), "another client");
        edge.ok(&["blacklist", "del", entry]);
        assert!(link.can_get(source, A_WHILE), "{source} after");
    }
    assert!(edge.packets("blacklisted", "ended") >= 4);
}

#[test]
fn the_allowlist_goes_before_the_blacklist() {
    let lab = Lab::new(1);
    let link = lab.link();
    let edge = Installation::new(&lab.host, &["eth0"], "");
    let _daemon = edge.start();
    edge.ok(&["blacklist", "add", "10.66.0.0/16", "fd66::/32", "10.66.1.1"]);
    edge.ok(&["allow", "add", "10.66.1.0/24", "fd66::1"]);
    for (source, passes) in [
        ("10.66.1.1", true),
        ("10.66.1.2", true),
        ("10.66.2.1", false),
        ("fd66::1", true),
        ("fd66::2", false),
        ("10.67.0.1", true),
    ] {
        assert_eq!(
            link.passes_from(source.parse().unwrap()),
            passes,
            "{source}"
        );
    }
    assert_eq!(edge.packets("pass_allowlisted", "ended"), 3);
    assert_eq!(edge.packets("blacklisted", "ended"), 2);
    edge.ok(&["allow", "del", "10.66.1.0/24", "fd66::1"]);
    for source in ["10.66.1.1", "10.66.1.2", "fd66::1"] {
        assert!(!link.passes_from(source.parse().unwrap()), "{source}");
    }
}

#[test]
fn management_is_never_locked_out() {
    let lab = Lab::new(1);
    let link = lab.link();
    let _nginx = Nginx::start(&lab.host);
    let settings = "lists.management = [\"10.77.0.3\", \"fd77::3\"]\n\
                    lists.blacklist = [\"10.77.0.3\"]\n\
                    bogons.extra = [\"fd77::3\"]\n\
                    limits.packets = { rate = 1000, burst = 5000 }\n\
                    limits.syn = { rate = 1000, burst = 5000 }\n";
    let edge = Installation::new(&lab.host, &["eth0"], settings);
    let _daemon = edge.start();
    edge.ok(&["blacklist", "add", "10.77.0.0/24", "fd77::/64", "10.77.0.3"]);
    for source in [link.v4(3), link.v6(3)] {
        assert!(link.can_get(source, A_WHILE), "{source}");
    }
    assert!(!link.passes_from(link.v4(2)));
    assert!(!link.passes_from(link.v6(2)));
    // Far over the limits, and nothing is lost.
    let counter = link.counter(&lab.host, Which::From(host("10.77.0.3")));
    let frame = link.frame(link.v4(3), Payload::Tcp(frames::SYN));
    let mut sent = 0;
    for _ in 0..200 {
        sent += u64::try_from(link.sender.send_all(&[&frame; 100])).unwrap();
        wait::until("all of management's packets", || counter.packets() >= sent);
    }
    assert_eq!(edge.packets("limit_syn", "ended"), 0);
    assert_eq!(edge.packets("limit_packets", "ended"), 0);
}

#[test]
fn entries_expire_with_and_without_the_daemon() {
    let lab = Lab::new(1);
    let link = lab.link();
    let edge = Installation::new(&lab.host, &["eth0"], "");
    let daemon = edge.start();
    let sources: Vec<IpAddr> = ["10.66.0.1", "10.67.0.9", "fd66::1", "fd67::9"]
        .iter()
        .map(|s| s.parse().unwrap())
        .collect();
    let add = |ttl: &str| {
        edge.ok(&[
            "blacklist",
            "add",
            "10.66.0.1",
            "10.67.0.0/16",
            "fd66::1",
            "fd67::/32",
            "--ttl",
            ttl,
        ]);
    };
    // Long enough to see them in force on a slow machine.
    add("8s");
    for source in &sources {
        assert!(!link.passes_from(*source), "{source} at once");
    }
    for source in &sources {
        wait::until("the entry expires", || link.passes_from(*source));
    }
    // And they are collected from list and tables.
    wait::until("the list is empty", || {
        edge.json(&["blacklist", "list"]).is_empty()
    });
    wait::until("the tables are empty", || {
        let status = edge.status();
        let lists = status["lists"].as_array().cloned().unwrap_or_default();
        !lists.is_empty()
            && lists
                .iter()
                .all(|l| l["list"] != "blacklist" || l["entries"] == 0)
    });

    add("8s");
    for source in &sources {
        assert!(!link.passes_from(*source), "{source} at once");
    }
    daemon.kill();
    for source in &sources {
        wait::until("the kernel lets the entry expire", || {
            link.passes_from(*source)
        });
    }
    // The next daemon does not bring them back.
    let _daemon = edge.start();
    for source in &sources {
        assert!(link.passes_from(*source), "{source} after a restart");
    }
    assert!(edge.json(&["blacklist", "list"]).is_empty());
}

#[test]
fn tagged_frames_are_judged_by_what_is_inside() {
    let lab = Lab::new(1);
    let link = lab.link();
    let edge = Installation::new(&lab.host, &["eth0"], "");
    let _daemon = edge.start();
    edge.ok(&["blacklist", "add", "10.66.0.1", "fd66::/64"]);
    for (source, passes) in [
        ("10.66.0.1", false),
        ("10.66.0.2", true),
        ("fd66::9", false),
        ("fd67::9", true),
    ] {
        let frame = link.frame(source.parse().unwrap(), Payload::Tcp(frames::SYN));
        let once = frames::tagged(&frame, 42);
        let twice = frames::tagged(&once, 43);
        for frame in [frame, once, twice] {
            assert_eq!(
                link.passes(&frame),
                passes,
                "{source}, {} bytes",
                frame.len()
            );
        }
    }
    assert_eq!(edge.packets("blacklisted", "ended"), 6);
}

#[test]
fn a_dry_run_counts_and_passes() {
    let lab = Lab::new(1);
    let link = lab.link();
    let settings = "checks.blacklist = \"dry-run\"\n";
    let edge = Installation::new(&lab.host, &["eth0"], settings);
    let _daemon = edge.start();
    edge.ok(&["blacklist", "add", "10.66.0.1"]);
    for _ in 0..3 {
        assert!(link.passes_from("10.66.0.1".parse().unwrap()));
    }
    assert_eq!(edge.packets("blacklisted", "would_drop"), 3);
    assert_eq!(edge.packets("blacklisted", "ended"), 0);
}
