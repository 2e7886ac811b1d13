//! The command line as a person and as a script use it.

use std::fs;
use std::io::{BufRead as _, BufReader, Read as _};
use std::os::unix::fs::PermissionsExt as _;
use std::process::Stdio;
use std::sync::mpsc::sync_channel;
use std::thread;

use edge_tests::daemon::{self, Installation};
use edge_tests::lab::Lab;
use edge_tests::wait;
use serde_json::json;

/// A user without any rights: nobody.
const NOBODY: u32 = 65534;

#[test]
fn every_command_answers_for_people_and_for_programs() {
    let lab = Lab::new(1);
    let edge = Installation::new(
        &lab.host,
        &["eth0"],
        "lists.blacklist = [\"10.71.0.0/16\"]\n",
    );
    let daemon = edge.start();
    // What systemd waits for.
    assert!(daemon.told().contains("READY=1"));
    let config = edge.config().display().to_string();
    let feed = edge.file("feed.txt");
    fs::write(&feed, "10.80.0.1\n10.81.0.0/16 ; a note\n").unwrap();
    let feed = feed.display().to_string();
    let commands: &[&[&str]] = &[
        &["status"],
        &["check", "-c", &config],
        &["reasons"],
        &["reload"],
        &[
            "blacklist",
            "add",
            "10.66.0.1",
            "fd66::/32",
            "--ttl",
            "1h",
            "--note",
            "scan",
        ],
        &["blacklist", "list"],
        &["blacklist", "list", "10.66.0.0/16", "--limit", "1"],
        &["blacklist", "import", &feed],
        &["blacklist", "export"],
        &["lookup", "10.66.0.1"],
        &["lookup", "fd66::7"],
        &["lookup", "10.71.3.3"],
        &["blacklist", "del", "10.66.0.1", "fd66::/32"],
        &["blacklist", "flush", "--origin", "feed", "--yes"],
        &["allow", "add", "10.90.0.1"],
        &["allow", "list"],
        &["allow", "import", &feed],
        &["allow", "export"],
        &["allow", "del", "10.90.0.1"],
        &["allow", "flush", "--yes"],
        &["limits", "set", "syn", "--rate", "2k", "--burst", "2k"],
        &["limits", "show"],
        &["limits", "reset"],
        &["events"],
    ];
    for command in commands {
        let text = edge.ok(command);
        if command[0] != "events" {
            assert!(!text.trim().is_empty(), "{command:?} says nothing");
        }
        // Each is run again with --json: what was removed is put back first.
        match command[1..] {
            ["del", "10.66.0.1", ..] => {
                edge.ok(&["blacklist", "add", "10.66.0.1", "fd66::/32"]);
            }
            ["del", ..] => {
                edge.ok(&["allow", "add", "10.90.0.1"]);
            }
            _ => {}
        }
        let lines = edge.json(command);
        if command[0] != "events" {
            assert!(
                lines.iter().all(serde_json::Value::is_object),
                "{command:?}"
            );
        }
    }
    for command in [
        &["--help"][..],
        &["--version"],
        &["blacklist", "add", "--help"],
    ] {
        assert!(!edge.ok(command).is_empty());
    }
    let lookup = edge.json(&["lookup", "10.71.3.3"]).remove(0);
    assert_eq!(lookup["outcome"]["reason"], "blacklisted");
    assert_eq!(lookup["entries"][0]["origin"], "file");
}

#[test]
fn entries_are_listed_as_they_were_given() {
    let lab = Lab::new(1);
    let edge = Installation::new(&lab.host, &["eth0"], "");
    let daemon = edge.start();
    edge.ok(&[
        "blacklist",
        "add",
        "10.66.0.1",
        "--note",
        "a \"note\"",
        "--ttl",
        "2d",
    ]);
    edge.ok(&["blacklist", "add", "10.66.0.0/16", "fd66::/32"]);
    // Once more with other terms: an update.
    let again = edge
        .json(&["blacklist", "add", "10.66.0.0/16", "--note", "new"])
        .remove(0);
    assert_eq!((&again["added"], &again["updated"]), (&json!(0), &json!(1)));
    for _ in 0..5 {
        assert!(!lab.link().passes_from("10.66.0.1".parse().unwrap()));
    }
    let look = || {
        edge.json(&["blacklist", "list"])
            .into_iter()
            .map(|e| (e["prefix"].as_str().unwrap().to_owned(), e))
            .collect::<Vec<_>>()
    };
    let check = |entries: &[(String, serde_json::Value)]| {
        let prefixes: Vec<&str> = entries.iter().map(|e| e.0.as_str()).collect();
        assert_eq!(prefixes, ["10.66.0.0/16", "10.66.0.1", "fd66::/32"]);
        assert_eq!(entries[0].1["note"], "new");
        assert_eq!(entries[1].1["note"], "a \"note\"");
        assert!(entries[1].1["expires_unix_ms"].is_u64());
        assert!(entries[2].1["expires_unix_ms"].is_null());
        assert!(entries.iter().all(|e| e.1["origin"] == "cli"));
    };
    let entries = look();
    check(&entries);
    assert_eq!(entries[1].1["hits"], 5);
    daemon.stop();
    let _daemon = edge.start();
    check(&look());
    let after = look();
    assert_eq!(
        after[1].1["expires_unix_ms"],
        entries[1].1["expires_unix_ms"]
    );
}

#[test]
fn exit_codes_tell_what_went_wrong() {
    let lab = Lab::new(1);
    let edge = Installation::new(&lab.host, &["eth0"], "");
    // 3: nobody listens.
    let outcome = edge.outcome(&["status"]);
    assert_eq!(outcome.code, 3, "{outcome:?}");
    let outcome = edge.outcome(&["--json", "status"]);
    let error: serde_json::Value = serde_json::from_str(outcome.stderr.trim()).unwrap();
    assert_eq!(error["error"]["kind"], "unreachable");
    assert!(outcome.stdout.is_empty());

    let _daemon = edge.start();
    // 1: not there.
    let outcome = edge.outcome(&["blacklist", "del", "10.66.0.1"]);
    assert_eq!(outcome.code, 1, "{outcome:?}");
    assert!(outcome.stderr.contains("10.66.0.1"), "{outcome:?}");
    // 2: wrong input, with the place and the remedy, and nothing is changed.
    edge.ok(&["blacklist", "add", "10.66.0.9"]);
    for (command, named) in [
        (
            &["blacklist", "add", "10.66.0.1/16", "10.66.0.2"][..],
            "10.66.0.0/16",
        ),
        (&["blacklist", "add", "10.66.0.1", "--ttl", "soon"], "1h30m"),
        (&["blacklist", "add"], "PREFIX"),
        (&["blacklist", "import", "/nonexistent"], "/nonexistent"),
        (&["blacklist", "flush"], "--yes"),
        (&["limits", "set", "syn", "--rate", "10MB"], "--rate"),
        (
            &["limits", "set", "bytes", "--rate", "1kB", "--burst", "10"],
            "bytes",
        ),
        (&["check", "-c", "/nonexistent.toml"], "/nonexistent.toml"),
        (&["nonsense"], "nonsense"),
    ] {
        let outcome = edge.outcome(command);
        assert_eq!(outcome.code, 2, "{command:?}: {outcome:?}");
        assert!(
            outcome.stderr.contains(named),
            "{command:?}: {}",
            outcome.stderr
        );
        assert!(outcome.stdout.is_empty(), "{command:?}");
        assert_eq!(edge.json(&["blacklist", "list"]).len(), 1, "{command:?}");
    }
    // A daemon with a wrong file does not start.
    let bad = edge.file("bad.toml");
    fs::write(&bad, "interfaces = []\nunknown = 1\n").unwrap();
    let outcome = daemon::outcome(edge.edge(&["run", "-c"]).arg(&bad));
    assert_eq!(outcome.code, 2, "{outcome:?}");
    assert!(outcome.stderr.contains("interfaces") && outcome.stderr.contains("unknown"));
}

#[test]
fn the_socket_is_for_root_only() {
    let lab = Lab::new(1);
    let edge = Installation::new(&lab.host, &["eth0"], "");
    let _daemon = edge.start();
    let mode = |path: &std::path::Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(&edge.socket()), 0o600);
    assert_eq!(mode(&edge.state_dir()) & 0o077, 0);

    let as_nobody = || daemon::outcome(&mut edge.edge_as(NOBODY, &["status"]));
    // By the directory, then by the socket's mode, then by the credentials of the peer.
    let directory = edge.socket().parent().unwrap().to_owned();
    for (path, allow) in [(directory, 0o755), (edge.socket(), 0o666)] {
        let refused = as_nobody();
        assert_eq!(refused.code, 4, "{refused:?}");
        fs::set_permissions(path, fs::Permissions::from_mode(allow)).unwrap();
    }
    let refused = as_nobody();
    assert_eq!(refused.code, 4, "{refused:?}");
    assert!(!edge.status().is_null());
}

#[test]
fn events_show_what_is_dropped_and_why() {
    let lab = Lab::new(1);
    let link = lab.link();
    let edge = Installation::new(&lab.host, &["eth0"], "");
    let _daemon = edge.start();
    edge.ok(&["blacklist", "add", "10.66.0.1", "fd66::1"]);
    let mut child = edge
        .edge(&["--json", "events", "-f", "-n", "0"])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let output = child.stdout.take().unwrap();
    let (to, lines) = sync_channel(64);
    let reader = thread::spawn(move || {
        for line in BufReader::new(output).lines().map_while(Result::ok) {
            if to.send(line).is_err() {
                return;
            }
        }
    });
    for source in ["10.66.0.1", "fd66::1"] {
        let event = wait::until_some("an event", || {
            assert!(!link.passes_from(source.parse().unwrap()));
            lines
                .try_iter()
                .filter_map(|line| serde_json::from_str::<serde_json::Value>(&line).ok())
                .find(|e| e["packet"]["source"] == source)
        });
        assert_eq!(event["reason"], "blacklisted");
        assert_eq!(event["interface"], "eth0");
        assert_eq!(event["would_drop"], false);
        assert_eq!(event["packet"]["protocol"], "udp");
        assert_eq!(event["packet"]["destination_port"], 9);
        let data = event["data"].as_str().unwrap();
        assert!(data.starts_with("02ed000000"), "the frame itself: {data}");
    }
    child.kill().unwrap();
    child.wait().unwrap();
    drop(lines);
    reader.join().unwrap();
    // For people.
    let text = edge.ok(&["events"]);
    assert!(text.contains("drop blacklisted udp 10.66.0.1:"), "{text}");
}

#[test]
fn a_reader_that_goes_away_is_no_error() {
    let lab = Lab::new(1);
    let edge = Installation::new(&lab.host, &["eth0"], "");
    let _daemon = edge.start();
    let feed = edge.file("feed.txt");
    let lines: String = (0..60_000u32)
        .map(|n| format!("{}\n", std::net::Ipv4Addr::from_bits(0x0a80_0000 + n)))
        .collect();
    fs::write(&feed, lines).unwrap();
    edge.ok(&["blacklist", "import", &feed.display().to_string()]);
    let mut child = edge
        .edge(&["blacklist", "export"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut first = [0; 10];
    child.stdout.take().unwrap().read_exact(&mut first).unwrap();
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success(), "{output:?}");
    assert!(output.stderr.is_empty(), "{output:?}");
    assert_eq!(edge.json(&["blacklist", "export"]).len(), 60_000);
}
