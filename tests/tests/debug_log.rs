//! The log of every dropped packet: `cargo xtask test --debug-log` builds both sides with it and
//! runs this, and nothing else does.

use edge_tests::{
    daemon::Installation,
    frames::{self, Payload},
    lab::{Lab, Link},
    wait,
};

/// Sends a frame that must (not) pass, and waits for the line that says why.
fn logs(daemon: &edge_tests::daemon::Daemon, link: &Link, frame: &[u8], passes: bool, line: &str) {
    assert_eq!(link.passes(frame), passes, "{line}");
    wait::until(line, || {
        daemon
            .log()
            .lines()
            .any(|l| l.contains("DEBUG") && l.trim_end().ends_with(line))
    });
}

#[test]
fn every_dropped_packet_is_in_the_log_of_the_daemon() {
    let lab = Lab::new(2);
    let edge = Installation::new(
        &lab.host,
        &["eth0", "eth1"],
        "checks.tcp_flags = \"dry-run\"\nchecks.fragments = \"enforce\"",
    );
    let daemon = edge.start_with(&["--log", "info,edge::debug_log=debug"]);
    edge.ok(&["blacklist", "add", "10.66.0.1", "fd66::/32"]);
    for link in &lab.links {
        let index = lab.host.ip(&format!("-o link show {}", link.interface));
        let index = index.split(':').next().unwrap_or_default().to_owned();
        let from = |source: &str, payload| link.frame(source.parse().unwrap(), payload);
        let udp = Payload::Udp(9);
        let listed = from("10.66.0.1", udp);
        let says =
            |frame: &[u8], rest: &str| format!("interface {index}, {} bytes{rest}", frame.len());
        let line = says(&listed, " from 10.66.0.1: blacklisted");
        logs(&daemon, link, &listed, false, &line);
        let listed = from("fd66::1", udp);
        let line = says(&listed, " from fd66::1: blacklisted");
        logs(&daemon, link, &listed, false, &line);
        let tagged = frames::tagged(&from("10.66.0.1", udp), 5);
        let line = says(&tagged, " from 10.66.0.1: blacklisted");
        logs(&daemon, link, &tagged, false, &line);
        let null_scan = from("10.68.0.1", Payload::Tcp(0));
        let line = says(&null_scan, " from 10.68.0.1: tcp_no_flags (dry run)");
        logs(&daemon, link, &null_scan, true, &line);
    }
    // Not the loader's own, which are many.
    let log = daemon.log();
    let other = |l: &&str| l.contains("DEBUG") && !l.contains("DEBUG interface ");
    assert_eq!(log.lines().find(other), None);
    // A reload replaces the programs, and the log goes on.
    edge.ok(&["reload"]);
    let before = daemon.log().len();
    let link = lab.link();
    let again = link.frame("10.66.0.1".parse().unwrap(), Payload::Echo);
    assert!(!link.passes(&again));
    wait::until("the log after a reload", || {
        daemon
            .log()
            .get(before..)
            .is_some_and(|l| l.contains(" from 10.66.0.1: blacklisted"))
    });
}
