//! An attack as the operator sees it: while it is on, over a restart, and afterwards.

use std::fs;
use std::io::{BufRead as _, BufReader};
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::Stdio;
use std::sync::Mutex;

use edge_tests::daemon::Installation;
use edge_tests::frames::{self, Payload};
use edge_tests::lab::{Lab, Link};
use edge_tests::server::Nginx;
use edge_tests::wait;
use serde_json::Value;

/// Long enough for a restart of the daemon in the middle of an attack.
const SETTINGS: &str = "[flood]\nhold = \"10s\"\nincomplete = { rate = 100, burst = 200 }\n\
                        [[service]]\nname = \"web\"\nports = [80]\n";

/// Sends 256 SYNs at a time from addresses that do not exist until `done`.
#[track_caller]
fn flood<T>(link: &Link, what: &str, mut done: impl FnMut() -> Option<T>) -> T {
    let syn = |last| link.frame([10, 88, 1, last].into(), Payload::Tcp(frames::SYN));
    let frames: Vec<Vec<u8>> = (0..=255).map(syn).collect();
    wait::until_some(what, || {
        link.sender.send_all(&frames);
        done()
    })
}

fn service(edge: &Installation<'_>) -> Value {
    edge.status()["services"][0].clone()
}

/// Lengths and source addresses of the packets in a file of tcpdump's format.
fn packets(file: &Path) -> Vec<(u32, Vec<u8>)> {
    let bytes = fs::read(file).expect("the file");
    let word = |at: usize| u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap());
    assert_eq!((word(0), word(4), word(20)), (0xa1b2_c3d4, 0x0004_0002, 1));
    let mut at = 24;
    let mut found = Vec::new();
    while at < bytes.len() {
        let (captured, length) = (word(at + 8) as usize, word(at + 12));
        assert!(captured <= 128 && word(at) > 1_600_000_000);
        let frame = &bytes[at + 16..at + 16 + captured];
        found.push((length, frame[26..30].to_vec()));
        at += 16 + captured;
    }
    found
}

#[test]
fn an_attack_is_told_kept_and_goes_on_over_a_restart() {
    let lab = Lab::new(1);
    let link = lab.link();
    let _nginx = Nginx::start(&lab.host);
    let edge = Installation::new(&lab.host, &["eth0"], SETTINGS);
    let daemon = edge.start();
    wait::until("cookies can be sent", || {
        service(&edge)["targets"]["ready"] == 2
    });
    assert_eq!(edge.ok(&["attacks", "list"]), "no attacks\n");

    // Somebody follows.
    let mut follower = edge.edge(&["events", "-f", "--json"]);
    let mut follower = follower
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .expect("edge starts");
    let lines = BufReader::new(follower.stdout.take().expect("a pipe")).lines();
    let told: Mutex<Vec<String>> = Mutex::default();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for line in lines.map_while(Result::ok) {
                let event: Value = serde_json::from_str(&line).expect("JSON");
                if let Some(change) = event["change"].as_str() {
                    let id = &event["attack"]["id"];
                    told.lock().unwrap().push(format!("{change} {id}"));
                }
            }
        });
        let told = || told.lock().unwrap().clone();

        let attack = flood(link, "the attack is told with its samples", || {
            let attack = service(&edge)["attack"].clone();
            (attack["sampled"].as_u64() > Some(0)).then_some(attack)
        });
        assert_eq!(attack["id"], 1);
        assert_eq!(attack["remedy"], "cookies");
        assert_eq!(attack["kinds"][0]["kind"], "syn");
        assert_eq!(attack["sources"][0]["of"], "10.88.1.0/24");
        assert_eq!(attack["ports"][0]["of"], 80);
        assert_eq!(attack["ended_unix_ms"], Value::Null);
        wait::until("it is an event", || told() == ["began 1"]);
        // A real client among it.
        flood(link, "a client got through", || {
            assert!(link.can_get(link.v4(2), wait::PATIENCE));
            (service(&edge)["attack"]["clients"].as_u64() > Some(0)).then_some(())
        });
        let text = edge.ok(&["status"]);
        assert!(text.contains("\nweb: UNDER ATTACK since "), "{text}");
        assert!(text.contains(": a SYN flood of "), "{text}");
        assert!(text.contains("clients got through (attack 1)\n"), "{text}");
        let text = edge.scrape();
        for series in [
            "edge_attacks_total{service=\"web\"} 1",
            "edge_service_under_attack{service=\"web\"} 1",
        ] {
            assert!(text.contains(series), "{series} in\n{text}");
        }
        let began = edge.json(&["attacks", "list"])[0]["began_unix_ms"].clone();

        // A crash in the middle: the attack is the same one.
        daemon.kill();
        let sampled = attack["sampled"].as_u64().unwrap();
        let daemon = edge.start();
        let attack = flood(link, "the attack goes on", || {
            let attack = service(&edge)["attack"].clone();
            let peak = attack["kinds"][0]["peak_per_second"].as_f64();
            (attack["sampled"].as_u64() > Some(sampled) && peak > Some(100.0)).then_some(attack)
        });
        assert_eq!(
            (&attack["id"], attack["began_unix_ms"] == began),
            (&Value::from(1), true)
        );
        assert!(attack["clients"].as_u64() > Some(0), "{attack}");
        assert!(daemon.log().contains("still under attack: a SYN flood"));
        assert!(
            edge.scrape()
                .contains("edge_attacks_total{service=\"web\"} 0")
        );

        wait::until("the attack ends", || {
            service(&edge)["attack"] == Value::Null
        });
        assert!(daemon.log().contains("the attack is over: a SYN flood"));
        // And in good order, with nothing under way.
        daemon.stop();
    });
    let _ = follower.wait();

    let _daemon = edge.start();
    let all = edge.json(&["attacks", "list", "--service", "web"]);
    assert_eq!(all.len(), 1);
    let ended = all[0]["ended_unix_ms"].as_u64().expect("it is over");
    assert!(ended > all[0]["began_unix_ms"].as_u64().unwrap());
    assert!(
        all[0]["kinds"][0]["peak_per_second"].as_f64() > Some(100.0),
        "{all:?}"
    );

    let file = edge.file("attack.pcap");
    let path = file.to_str().unwrap();
    let text = edge.ok(&["attacks", "show", "1", "--pcap", path]);
    assert!(text.contains("\n10.88.1.0/24 "), "{text}");
    assert_eq!(
        fs::metadata(&file).unwrap().permissions().mode() & 0o777,
        0o600
    );
    assert_eq!(
        edge.outcome(&["attacks", "show", "1", "--pcap", path]).code,
        2
    );
    edge.ok(&["attacks", "show", "1", "--pcap", path, "--force"]);
    assert_eq!(edge.outcome(&["attacks", "show", "2"]).code, 2);
    let packets = packets(&file);
    assert!((1..=64).contains(&packets.len()), "{}", packets.len());
    let spoofed = packets
        .iter()
        .filter(|(_, source)| source.starts_with(&[10, 88, 1]))
        .count();
    assert!(spoofed > 0);
    // As its users read it. It stays who it is, for the user that it would become is there only
    // where it was installed.
    let text = lab.host.run("tcpdump", &["-Z", "root", "-nr", path]);
    assert_eq!(text.lines().count(), packets.len(), "{text}");
    let syns = text.lines().filter(|line| {
        line.contains(" IP 10.88.1.") && line.contains("> 10.77.0.1.80: Flags [S], seq 1:25,")
    });
    assert_eq!(syns.count(), spoofed, "{text}");
}
