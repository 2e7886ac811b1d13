//! The rig itself: without Edge everything passes, and what is counted is what was sent.

use std::time::Duration;

use edge_common::addr::Prefix;
use edge_tests::frames::{self, Payload};
use edge_tests::lab::Lab;
use edge_tests::raw::Which;
use edge_tests::server::Nginx;
use edge_tests::wait;

#[test]
fn an_unprotected_host_gets_everything() {
    let lab = Lab::new(2);
    let _nginx = Nginx::start(&lab.host);
    for link in &lab.links {
        for source in [link.v4(2), link.v6(3)] {
            assert!(link.can_get(source, Duration::from_secs(10)), "{source}");
        }
        for payload in [Payload::Udp(9), Payload::Tcp(frames::SYN), Payload::Echo] {
            for source in [link.v4(77), link.v6(77)] {
                let frame = link.frame(source, payload);
                assert!(link.passes(&frame));
                assert!(link.passes(&frames::tagged(&frame, 7)));
            }
        }
    }
}

#[test]
fn counters_count_their_prefix_only() {
    let lab = Lab::new(1);
    let link = lab.link();
    let prefixes = [
        "10.9.0.0/16",
        "10.9.8.7",
        "fd99:1:2::/47",
        "fd99::5",
        "0.0.0.0/0",
    ];
    let counters = prefixes.map(|p| {
        let prefix: Prefix = p.parse().unwrap();
        link.counter(&lab.host, Which::From(prefix))
    });
    let sources = [
        ("10.9.8.7", [1, 1, 0, 0, 1]),
        ("10.9.9.9", [1, 0, 0, 0, 1]),
        ("10.10.8.7", [0, 0, 0, 0, 1]),
        ("fd99:1:2::7", [0, 0, 1, 0, 0]),
        ("fd99:1:3:1::7", [0, 0, 1, 0, 0]),
        ("fd99::5", [0, 0, 0, 1, 0]),
        ("fd99::6", [0, 0, 0, 0, 0]),
    ];
    let mut want = [0u64; 5];
    for (source, hits) in sources {
        let frame = link.frame(source.parse().unwrap(), Payload::Udp(9));
        for _ in 0..20 {
            assert!(link.passes(&frame), "{source}");
        }
        for (want, hit) in want.iter_mut().zip(hits) {
            *want += 20 * hit;
        }
    }
    let first: Vec<u64> = counters[..4].iter().map(|c| c.packets()).collect();
    assert_eq!(first, want[..4]);
    // Others may have sent something too; nothing is missing.
    wait::until("all IPv4", || counters[4].packets() >= want[4]);
}
