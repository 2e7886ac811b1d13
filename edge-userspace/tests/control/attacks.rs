//! `edge attacks` and `edge status --watch`.

use std::process::Stdio;

use serde_json::{Value, json};

use crate::{
    command_line::{edge, json, rig, run, told},
    rig::until,
};

#[test]
fn attacks_are_listed_shown_and_written_to_a_file() {
    let rig = rig();
    let socket = &rig.path();
    let (code, out, _) = run(socket, "attacks list");
    assert_eq!((code, out.lines().count()), (0, 2), "{out}");
    assert_eq!(run(socket, "attacks list --service mail").1, "no attacks\n");
    let all = json(socket, "attacks list --service web");
    assert_eq!(all[0]["kinds"][0]["kind"], "syn");
    assert!(json(socket, "attacks list --service mail").is_empty());
    let (code, out, _) = run(socket, "attacks show 7");
    assert_eq!(code, 0);
    assert!(out.starts_with("attack 7 on web: a SYN flood\n"), "{out}");
    let (code, out, err) = run(socket, "attacks show 8");
    assert_eq!((code, out.as_str()), (2, ""), "{err}");

    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("a.pcap");
    let show = |more: &str| {
        let arguments = format!("attacks show 7 --pcap {} {more}", file.display());
        run(socket, &arguments)
    };
    let (code, out, err) = show("");
    assert_eq!((code, err.as_str()), (0, ""));
    assert!(out.contains("\n1 packets are in "), "{out}");
    let written = std::fs::read(&file).unwrap();
    assert_eq!(written.len(), 24 + 16 + 2);
    assert!(written.ends_with(&[60, 0, 0, 0, 0, 255]));
    let (code, out, err) = show("");
    assert_eq!((code, out.as_str()), (2, ""));
    assert!(err.contains("--force"), "{err}");
    let (code, out, _) = show("--force --json");
    assert_eq!(code, 0);
    let shown: Value = serde_json::from_str(&out).unwrap();
    assert_eq!(shown["pcap"], json!(file));
    assert_eq!(shown["samples"][0]["data"], "00ff");
    assert_eq!(run(socket, "attacks show 7 --force").0, 2);
    assert_eq!(rig.count("attack"), (4, 1));
}

#[test]
fn a_watched_daemon_that_goes_away_is_told() {
    let mut rig = rig();
    let mut child = edge(&rig.path(), "status --watch 300 --json")
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = std::io::BufRead::lines(std::io::BufReader::new(child.stdout.take().unwrap()));
    let first: Value = serde_json::from_str(&lines.next().unwrap().unwrap()).unwrap();
    assert_eq!(first["version"], "0.0.0-test");
    // At once, not when it is time to ask again.
    rig.restart();
    let (code, _, err) = told(child.wait_with_output().unwrap());
    assert_eq!(code, 3, "{err}");
    let error: Value = serde_json::from_str(&err).unwrap();
    assert_eq!(error["error"]["kind"], "unreachable");
    assert!(err.contains("the daemon went away"), "{err}");

    let mut child = edge(&rig.path(), "status --watch")
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let lines = std::io::BufRead::lines(std::io::BufReader::new(child.stdout.take().unwrap()));
    let shown = lines
        .map(Result::unwrap)
        .filter(|l| l.starts_with("edge 0.0.0-test, up"));
    assert_eq!(shown.take(3).count(), 3);
    // Its reader went away, as `| head` does.
    until("it ends", || child.try_wait().unwrap().is_some());
    assert_eq!(child.wait().unwrap().code(), Some(0));
}
