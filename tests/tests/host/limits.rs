//! Limits per source with more senders than one.

use std::net::IpAddr;
use std::thread;
use std::time::Instant;

use edge_common::addr::Prefix;
use edge_tests::daemon::Installation;
use edge_tests::frames::{self, Payload};
use edge_tests::lab::Lab;
use edge_tests::raw::Which;
use edge_tests::wait;

/// Frames that one thread sends in the tests of rates.
const FLOOD: u64 = 60_000;

/// Floods the host over all its links at once from one source each, and returns how many were
/// sent, how many passed, and an upper bound of what the limit allows in the time that took.
fn flood(lab: &Lab, source: IpAddr, payload: Payload, rate: u64, burst: u64) -> (u64, u64, u64) {
    let counters: Vec<_> = lab
        .links
        .iter()
        .map(|link| link.counter(&lab.host, Which::From(Prefix::host(source))))
        .collect();
    let started = Instant::now();
    let sent: u64 = thread::scope(|scope| {
        let threads: Vec<_> = lab
            .links
            .iter()
            .map(|link| {
                scope.spawn(move || {
                    let frame = link.frame(source, payload);
                    let batch = vec![&frame; 1000];
                    let mut sent = 0;
                    while sent < FLOOD {
                        sent += link.sender.send_all(&batch) as u64;
                    }
                    // What was sent before has been judged when this one is through.
                    assert!(link.passes_from(IpAddr::from([10, 200, 0, 1])));
                    sent
                })
            })
            .collect();
        threads.into_iter().map(|t| t.join().unwrap()).sum()
    });
    let took = started.elapsed();
    let passed = counters.iter().map(|c| c.packets()).sum();
    // Two ticks of 10 ms at the most, by which the program's clock may be behind and ahead.
    let allowed = burst + rate * (u64::try_from(took.as_millis()).unwrap() + 20) / 1000 + 1;
    (sent, passed, allowed)
}

#[test]
fn two_senders_of_one_source_stay_within_one_limit() {
    let lab = Lab::new(2);
    let settings = "limits.packets = { rate = 2000, burst = 500 }\n";
    let edge = Installation::new(&lab.host, &["eth0", "eth1"], settings);
    let _daemon = edge.start();
    for source in ["10.66.0.1", "fd66::1"] {
        let source = source.parse().unwrap();
        let before = edge.packets("limit_packets", "ended");
        let (sent, passed, allowed) = flood(&lab, source, Payload::Udp(9), 2000, 500);
        assert!(passed <= allowed, "{passed} passed, {allowed} allowed");
        assert!(passed >= 500, "{passed} passed, not even the burst of 500");
        let dropped = edge.packets("limit_packets", "ended") - before;
        assert_eq!(sent, passed + dropped, "every packet is one or the other");
    }
}

#[test]
fn each_kind_has_its_limit() {
    let lab = Lab::new(1);
    let link = lab.link();
    // Slower than any test: what is over the burst stays over it.
    let settings = "limits.syn = { rate = 1, burst = 5 }\n\
                    limits.udp = { rate = 1, burst = 6 }\n\
                    limits.icmp = { rate = 1, burst = 7 }\n\
                    limits.bytes = { rate = 4096, burst = 70000 }\n\
                    [[limits.override]]\n\
                    prefixes = [\"10.66.0.0/16\", \"fd66::/32\"]\n\
                    udp = \"unlimited\"\n\
                    bytes = \"unlimited\"\n\
                    icmp = { rate = 1, burst = 20 }\n";
    let edge = Installation::new(&lab.host, &["eth0"], settings);
    let _daemon = edge.start();
    let passed = |source: &str, payload, tries: u64| -> u64 {
        let frame = link.frame(source.parse().unwrap(), payload);
        (0..tries).map(|_| u64::from(link.passes(&frame))).sum()
    };
    let syn = Payload::Tcp(frames::SYN);
    // A second may pass in between, or ten on a busy machine; not thirty.
    let close = |passed: u64, burst: u64| (burst..burst + 30).contains(&passed);
    for (payload, burst, name) in [
        (syn, 5, "limit_syn"),
        (Payload::Udp(9), 6, "limit_udp"),
        (Payload::Echo, 7, "limit_icmp"),
    ] {
        for source in ["10.70.0.1", "fd70::1"] {
            let before = edge.packets(name, "ended");
            let n = passed(source, payload, 60);
            assert!(close(n, burst), "{source} {name}: {n}");
            assert_eq!(edge.packets(name, "ended") - before, 60 - n);
        }
    }
    // Sources do not share a limit; those of one IPv6 /64 do.
    assert!(passed("10.70.0.2", syn, 1) == 1);
    assert!(passed("fd70:0:0:1::1", syn, 1) == 1);
    let neighbour = passed("fd70::2", syn, 60);
    assert!(neighbour < 40, "{neighbour}");
    // What is no SYN is not counted as one.
    assert_eq!(passed("10.70.0.1", Payload::Tcp(frames::ACK), 60), 60);
    // The override.
    assert_eq!(passed("10.66.0.1", Payload::Udp(9), 60), 60);
    assert_eq!(passed("fd66::1", Payload::Udp(9), 60), 60);
    let n = passed("10.66.0.1", Payload::Echo, 60);
    assert!(close(n, 20), "{n}");
    let n = passed("10.66.0.1", syn, 60);
    assert!(close(n, 5), "inherited: {n}");
    // Bytes: 50 whole frames are 70 kB.
    let (from, to) = (link.macs(), link.v4(1));
    let large = frames::sized(
        from,
        "10.71.0.1".parse().unwrap(),
        to,
        Payload::Tcp(frames::ACK),
        1346,
    );
    assert_eq!(large.len(), 1400);
    let n = (0..200).filter(|_| link.passes(&large)).count();
    assert!((50..150).contains(&n), "{n}");
    assert_eq!(edge.packets("limit_bytes", "ended"), 200 - n as u64);
}

#[test]
fn limits_are_set_shown_and_taken_back_at_run_time() {
    let lab = Lab::new(1);
    let link = lab.link();
    let edge = Installation::new(&lab.host, &["eth0"], "");
    let daemon = edge.start();
    let source: IpAddr = "10.66.0.1".parse().unwrap();
    let all_pass = |n: u32| (0..n).all(|_| link.passes_from(source));
    assert!(all_pass(100));
    edge.ok(&["limits", "set", "udp", "--rate", "1", "--burst", "3"]);
    wait::until("the limit is in force", || !all_pass(10));
    let shown = edge.ok(&["limits", "show"]);
    assert!(shown.contains("udp") && shown.contains("cli"), "{shown}");
    // Still so after a restart, and after a reload of a file that says nothing of it.
    assert!(daemon.stop().contains("stopping"));
    let _daemon = edge.start();
    wait::until("the limit is in force", || !all_pass(10));
    edge.ok(&["reload"]);
    wait::until("the limit is in force", || !all_pass(10));
    edge.ok(&[
        "limits",
        "set",
        "udp",
        "--unlimited",
        "--prefix",
        "10.66.0.0/24",
    ]);
    assert!(all_pass(100));
    edge.ok(&["limits", "set", "udp", "--mode", "dry-run"]);
    assert!((0..100).all(|_| link.passes_from("10.67.0.1".parse().unwrap())));
    assert!(edge.packets("limit_udp", "would_drop") > 50);
    edge.ok(&["limits", "reset"]);
    assert!(all_pass(100));
    let rules = edge.json(&["limits", "show"]).remove(0);
    let rules = rules["rules"].as_array().unwrap();
    assert!(
        rules
            .iter()
            .all(|r| r["limit"] == "unlimited" && r["origin"] == "file")
    );
}
