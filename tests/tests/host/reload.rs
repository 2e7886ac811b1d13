//! Another configuration while the daemon runs.

use std::net::IpAddr;

use edge_tests::daemon::Installation;
use edge_tests::frames::Payload;
use edge_tests::lab::Lab;
use edge_tests::wait;

fn address(text: &str) -> IpAddr {
    text.parse().unwrap()
}

#[test]
fn limits_and_lists_of_the_file_change_by_command_and_by_signal() {
    let lab = Lab::new(1);
    let link = lab.link();
    let edge = Installation::new(&lab.host, &["eth0"], "");
    let daemon = edge.start();
    edge.ok(&["blacklist", "add", "10.66.0.1"]);
    let generation = || edge.status()["config"]["generation"].as_u64().unwrap();
    let all_pass = || (0..50).all(|_| link.passes_from(address("10.70.0.1")));
    assert_eq!(generation(), 1);
    assert!(all_pass());

    edge.configure(
        &["eth0"],
        "lists.blacklist = [\"10.71.0.0/16\", \"fd71::/32\"]\nlists.allow = [\"10.71.5.0/24\"]\n\
         limits.udp = { rate = 1, burst = 5 }\n",
    );
    edge.ok(&["reload"]);
    assert_eq!(generation(), 2);
    assert!(!all_pass());
    for (source, passes) in [
        ("10.71.0.1", false),
        ("fd71::1", false),
        ("10.71.5.1", true),
        ("10.66.0.1", false),
    ] {
        assert_eq!(link.passes_from(address(source)), passes, "{source}");
    }

    edge.configure(&["eth0"], "lists.blacklist = [\"10.72.0.0/16\"]\n");
    daemon.signal(libc::SIGHUP);
    wait::until("the signal is followed", || generation() == 3);
    assert!(all_pass());
    for (source, passes) in [
        ("10.71.0.1", true),
        ("fd71::1", true),
        ("10.72.0.1", false),
        ("10.66.0.1", false),
    ] {
        assert_eq!(link.passes_from(address(source)), passes, "{source}");
    }
    assert!(daemon.told().contains("RELOADING=1"), "{}", daemon.told());
}

#[test]
fn a_wrong_configuration_is_refused_and_the_old_one_stays() {
    let lab = Lab::new(1);
    let link = lab.link();
    let good = "lists.blacklist = [\"10.71.0.0/16\"]\n";
    let edge = Installation::new(&lab.host, &["eth0"], good);
    let daemon = edge.start();
    let wrong = [
        (
            "limits.udp = { rate = \"fast\" }\n",
            vec!["eth0"],
            "limits.udp.rate",
        ),
        (
            "lists.blacklist = [\"10.71.0.1/16\"]\n",
            vec!["eth0"],
            "10.71.0.0/16",
        ),
        ("list.blacklist = []\n", vec!["eth0"], "list"),
        ("this is no TOML\n", vec!["eth0"], "edge.toml"),
        ("", vec!["eth0", "eth7"], "eth7"),
        ("tables.prefixes = 3\n", vec!["eth0"], "prefixes"),
    ];
    for (settings, interfaces, named) in &wrong {
        edge.configure(interfaces, settings);
        let refused = edge.outcome(&["reload"]);
        assert!(refused.code == 1 || refused.code == 2, "{refused:?}");
        assert!(
            refused.stderr.contains(named),
            "{named}: {}",
            refused.stderr
        );
        assert!(!link.passes_from(address("10.71.0.1")), "{named}");
        assert!(link.passes_from(address("10.72.0.1")), "{named}");
        let status = edge.status();
        assert_eq!(status["config"]["generation"], 1);
        let told = status["reloads"]["last_error"].as_str().unwrap_or_default();
        assert!(told.contains(named), "{told}");
    }
    assert_eq!(edge.status()["reloads"]["failed"], wrong.len());
    // A signal has nobody to tell but the log.
    daemon.signal(libc::SIGHUP);
    wait::until("it is refused as well", || {
        edge.status()["reloads"]["failed"] == wrong.len() + 1
    });
    let refused = daemon.log().matches("not reloaded").count();
    assert_eq!(refused, wrong.len() + 1, "{}", daemon.log());
    assert!(!link.passes_from(address("10.71.0.1")));

    edge.configure(&["eth0"], good);
    edge.ok(&["reload"]);
    assert!(edge.status()["reloads"]["last_error"].is_null());
}

#[test]
fn interfaces_come_and_go() {
    let lab = Lab::new(3);
    let settings = "lists.blacklist = [\"10.66.0.0/16\"]\n";
    let edge = Installation::new(&lab.host, &["eth0", "eth1"], settings);
    let daemon = edge.start();
    let source = address("10.66.0.1");
    let protected = |want: [bool; 3]| {
        for (link, want) in lab.links.iter().zip(want) {
            assert_eq!(!link.passes_from(source), want, "{}", link.interface);
        }
    };
    protected([true, true, false]);
    edge.configure(&["eth1", "eth2"], settings);
    edge.ok(&["reload"]);
    protected([false, true, true]);
    let names = |status: &serde_json::Value| -> Vec<String> {
        let interfaces = status["interfaces"].as_array().unwrap();
        interfaces
            .iter()
            .map(|i| i["name"].as_str().unwrap().to_owned())
            .collect()
    };
    assert_eq!(names(&edge.status()), ["eth1", "eth2"]);
    // What the file says at the next start counts, not what was attached before a crash.
    daemon.kill();
    edge.configure(&["eth0"], settings);
    let _daemon = edge.start();
    protected([true, false, false]);
}

#[test]
fn checks_change_their_mode() {
    let lab = Lab::new(1);
    let link = lab.link();
    let edge = Installation::new(&lab.host, &["eth0"], "");
    let _daemon = edge.start();
    let frame = link.frame(address("10.66.0.1"), Payload::Tcp(0));
    let bogon = link.frame(address("192.0.2.1"), Payload::Udp(9));
    assert!(!link.passes(&frame));
    assert!(!link.passes(&bogon));
    edge.configure(
        &["eth0"],
        "checks.tcp_flags = \"dry-run\"\nbogons.except = [\"192.0.2.0/25\"]\n",
    );
    edge.ok(&["reload"]);
    assert!(link.passes(&frame));
    assert!(link.passes(&bogon));
    assert_eq!(edge.packets("tcp_no_flags", "would_drop"), 1);
    edge.configure(
        &["eth0"],
        "checks.tcp_flags = \"off\"\nchecks.bogons = \"off\"\n",
    );
    edge.ok(&["reload"]);
    assert!(link.passes(&frame));
    assert!(link.passes(&bogon));
    assert_eq!(edge.packets("tcp_no_flags", "would_drop"), 1);
}

#[test]
fn other_entries_take_the_room_of_the_former_ones() {
    let lab = Lab::new(1);
    let link = lab.link();
    let settings = |net: u8| {
        let entries: Vec<String> = (0..60).map(|i| format!("10.{net}.{i}.0/24")).collect();
        format!("tables.prefixes = 64\nbogons.defaults = false\nlists.blacklist = {entries:?}\n")
    };
    let edge = Installation::new(&lab.host, &["eth0"], &settings(71));
    let _daemon = edge.start();
    for (net, other) in [(70, 71), (72, 70)] {
        edge.configure(&["eth0"], &settings(net));
        edge.ok(&["reload"]);
        assert!(!link.passes_from(address(&format!("10.{net}.59.1"))));
        assert!(link.passes_from(address(&format!("10.{other}.59.1"))));
    }
}
