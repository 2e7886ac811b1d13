//! Floods that are no SYNs on real traffic: what is dropped, and that the rest goes on.

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};

use edge_tests::daemon::Installation;
use edge_tests::frames::{self, Payload};
use edge_tests::lab::{Lab, Link};
use edge_tests::wait;
use serde_json::Value;

use super::services::{connect, counter, listen, service, wait_ready};

/// A connection to a port of the host that is of no service.
struct Connection {
    listener: TcpListener,
    client: TcpStream,
    server: TcpStream,
}

impl Connection {
    fn new(lab: &Lab) -> Self {
        let at: SocketAddr = "0.0.0.0:90".parse().unwrap();
        let listener = listen(&lab.host, at, None);
        let (client, server) = Self::ends(lab, &listener);
        Self {
            listener,
            client,
            server,
        }
    }

    fn ends(lab: &Lab, listener: &TcpListener) -> (TcpStream, TcpStream) {
        let to = SocketAddr::new(lab.link().v4(1), 90);
        let client = connect(lab.link(), to).expect("it connects");
        let (server, _) = listener.accept().unwrap();
        server.set_read_timeout(Some(wait::PATIENCE)).unwrap();
        (client, server)
    }

    /// Data goes both ways, and others can connect.
    fn goes_on(&self, lab: &Lab) {
        let (client, server) = Self::ends(lab, &self.listener);
        for (a, b) in [(&self.client, &self.server), (&client, &server)] {
            for (mut from, mut to) in [(a, b), (b, a)] {
                from.write_all(b"a segment").unwrap();
                to.read_exact(&mut [0; 9]).unwrap();
            }
        }
    }
}

/// Whether the metrics have a value above 0 for a reason that packets ended with.
fn is_in_metrics(edge: &Installation<'_>, reason: &str) -> bool {
    let series = format!("edge_packets_total{{interface=\"eth0\",reason=\"{reason}\"}} ");
    let text = edge.scrape();
    let value = text.lines().find_map(|line| line.strip_prefix(&series));
    value.is_some_and(|value| value.parse::<u64>().unwrap() > 0)
}

/// Frames from so many sources of each family.
fn crowd(link: &Link, payload: Payload) -> Vec<Vec<u8>> {
    let (v4, v6) = ("10.88.1.1".parse().unwrap(), "fd88::1".parse().unwrap());
    let sources = (0..100).flat_map(|n| [frames::nth(v4, n), frames::nth(v6, n)]);
    sources.map(|s| link.frame(s, payload)).collect()
}

#[test]
fn icmp_is_limited_for_the_whole_host() {
    let lab = Lab::new(1);
    let link = lab.link();
    // Slower than any test: what is over the burst stays over it.
    let settings = "[flood.icmp]\necho = { rate = 1, burst = 20 }\n";
    let edge = Installation::new(&lab.host, &["eth0"], settings);
    let _daemon = edge.start();
    let connection = Connection::new(&lab);
    let pings = crowd(link, Payload::Echo);
    let passed = pings.iter().filter(|ping| link.passes(ping)).count();
    // All sources and both families share it. Seconds may pass on a busy machine.
    assert!((20..100).contains(&passed), "{passed}");
    let dropped = edge.packets("flood_icmp", "ended");
    assert_eq!(dropped, (pings.len() - passed) as u64);
    assert!(is_in_metrics(&edge, "flood_icmp"));
    let other = link.frame(link.v4(77), Payload::Udp(9));
    assert!(link.passes(&other), "other packets pass");
    connection.goes_on(&lab);
    // In dry run all pass, and are counted.
    edge.configure(&["eth0"], &format!("{settings}mode = \"dry-run\"\n"));
    edge.ok(&["reload"]);
    assert!(pings.iter().all(|ping| link.passes(ping)));
    assert!(edge.packets("flood_icmp", "would_drop") > 100);
    assert_eq!(edge.packets("flood_icmp", "ended"), dropped);
    // Without the section it is off.
    edge.configure(&["eth0"], "");
    edge.ok(&["reload"]);
    let would = edge.packets("flood_icmp", "would_drop");
    assert!(pings.iter().all(|ping| link.passes(ping)));
    assert_eq!(edge.packets("flood_icmp", "would_drop"), would);
}

#[test]
fn reflection_is_limited_for_each_service() {
    let lab = Lab::new(1);
    let link = lab.link();
    // Frames of the tests come from port 40000.
    let of = |mode: &str, ports: &str| {
        format!(
            "[flood.reflection]\nmode = \"{mode}\"\n{ports}\nrate = 1\nburst = 20\n\
             [[service]]\nname = \"game\"\nports = [27015]\nprotocol = \"udp\"\n"
        )
    };
    let edge = Installation::new(&lab.host, &["eth0"], &of("dry-run", "ports = [53, 40000]"));
    let _daemon = edge.start();
    // Nobody has to listen for it.
    wait_ready(&edge, "game", 2, 2);
    let connection = Connection::new(&lab);
    let flood = crowd(link, Payload::Udp(27_015));
    assert!(flood.iter().all(|frame| link.passes(frame)));
    assert!(edge.packets("udp_reflection", "would_drop") > 100);
    edge.configure(&["eth0"], &of("enforce", "ports = [53, \"39999-40001\"]"));
    edge.ok(&["reload"]);
    let passed = flood.iter().filter(|frame| link.passes(frame)).count();
    // The service has kept its state, and nothing is left of its burst.
    assert!(passed < 80, "{passed}");
    let dropped = edge.packets("udp_reflection", "ended");
    assert_eq!(dropped, (flood.len() - passed) as u64);
    assert!(is_in_metrics(&edge, "udp_reflection"));
    wait::until("the service has counted it", || {
        counter(&edge, "game", "reflected") > dropped
    });
    connection.goes_on(&lab);
    // To no service, and from a port that is not listed any more.
    let other = crowd(link, Payload::Udp(27_016));
    assert!(other.iter().all(|frame| link.passes(frame)));
    edge.configure(&["eth0"], &of("enforce", ""));
    edge.ok(&["reload"]);
    assert!(flood.iter().all(|frame| link.passes(frame)));
    assert_eq!(edge.packets("udp_reflection", "ended"), dropped);
}

#[test]
fn a_prefix_that_sends_too_much_is_found_and_stopped() {
    let lab = Lab::new(1);
    let link = lab.link();
    let of = |mode: &str| {
        format!("[flood.prefixes]\nmode = \"{mode}\"\nsource = {{ rate = 100, burst = 100 }}\n")
    };
    let edge = Installation::new(&lab.host, &["eth0"], &of("dry-run"));
    let _daemon = edge.start();
    let connection = Connection::new(&lab);
    let flood = crowd(link, Payload::Udp(9));
    wait::until("the prefixes are found", || {
        link.sender.send_all(&flood);
        edge.packets("flood_source", "would_drop") > 0
    });
    assert_eq!(edge.packets("flood_source", "ended"), 0);
    edge.configure(&["eth0"], &of("enforce"));
    edge.ok(&["reload"]);
    wait::until("the prefixes are stopped", || {
        link.sender.send_all(&flood);
        // Their neighbours, and connections, are not.
        for source in [[10, 88, 2, 1].into(), "fd88:1::1".parse().unwrap()] {
            assert!(link.passes(&link.frame(source, Payload::Udp(9))));
        }
        connection.goes_on(&lab);
        edge.packets("flood_source", "ended") > 1000
    });
    assert!(is_in_metrics(&edge, "flood_source"));
}

/// How a flood of the host as a whole stands, by its name.
fn host_flood(edge: &Installation<'_>, name: &str) -> Value {
    let status = edge.status();
    let floods = status["host_floods"].as_array().expect("a list").clone();
    { floods.into_iter() }
        .find(|flood| flood["flood"] == name)
        .expect("it is limited")
}

/// Sends frames until there is an attack with samples, and gives it.
fn attacked(link: &Link, frames: &[Vec<u8>], mut attack: impl FnMut() -> Value) -> Value {
    wait::until_some("the flood is an attack", || {
        link.sender.send_all(frames);
        let attack = attack();
        (attack["sampled"].as_u64() > Some(0)).then_some(attack)
    })
}

#[test]
fn floods_that_are_no_syns_are_attacks_in_the_history() {
    let lab = Lab::new(1);
    let link = lab.link();
    let settings = "[flood]\nhold = \"5s\"\n\
                    [flood.icmp]\necho = { rate = 10, burst = 20 }\n\
                    [flood.prefixes]\nsource = { rate = 100, burst = 100 }\n\
                    [flood.reflection]\nports = [40000]\nrate = 10\nburst = 20\n\
                    [[service]]\nname = \"game\"\nports = [27015]\nprotocol = \"udp\"\n";
    let edge = Installation::new(&lab.host, &["eth0"], settings);
    let daemon = edge.start();
    wait_ready(&edge, "game", 2, 2);
    let text = edge.scrape();
    for series in [
        "edge_host_under_attack{flood=\"icmp\"} 0",
        "edge_host_attacks_total{flood=\"prefixes\"} 0",
    ] {
        assert!(text.contains(series), "{series} in\n{text}");
    }

    let pings = crowd(link, Payload::Echo);
    let icmp = || host_flood(&edge, "icmp");
    let attack = attacked(link, &pings, || icmp()["attack"].clone());
    assert_eq!(
        (
            &attack["service"],
            &attack["remedy"],
            &attack["kinds"][0]["kind"]
        ),
        (&"host".into(), &"drops".into(), &"icmp".into())
    );
    assert_eq!(attack["ended_unix_ms"], Value::Null);
    let mut told = String::new();
    wait::until("the status tells it", || {
        link.sender.send_all(&pings);
        told = edge.ok(&["status"]);
        told.contains("\nhost: UNDER ATTACK since ")
    });
    assert!(told.contains(": an ICMP flood of "), "{told}");
    assert!(
        told.contains("what is over the limit is dropped (attack"),
        "{told}"
    );
    wait::until("the metrics tell it", || {
        link.sender.send_all(&pings);
        edge.scrape()
            .contains("edge_host_under_attack{flood=\"icmp\"} 1")
    });

    // A crash in the middle, once it is on the disk: the attack is the same one.
    let file = edge.state_dir().join("attacks.json");
    wait::until("the attack is kept", || {
        fs::read_to_string(&file).is_ok_and(|text| text.contains("\"icmp\""))
    });
    link.sender.send_all(&pings);
    let id = icmp()["attack"]["id"].clone();
    assert_ne!(id, Value::Null);
    daemon.kill();
    let daemon = edge.start();
    wait::until("the attack goes on", || {
        link.sender.send_all(&pings);
        daemon.log().contains("still under attack: an ICMP flood") && icmp()["attack"]["id"] == id
    });
    wait::until("the attack ends", || icmp()["attack"] == Value::Null);
    assert!(daemon.log().contains("the attack is over: an ICMP flood"));

    // Of prefixes and of a service, both of which are in dry run unless the file says otherwise.
    let flood = crowd(link, Payload::Udp(9));
    let prefixes = || host_flood(&edge, "prefixes");
    let attack = attacked(link, &flood, || prefixes()["attack"].clone());
    assert_eq!(
        (&attack["remedy"], &attack["kinds"][0]["kind"]),
        (&"dry_run".into(), &"source".into())
    );
    let sources: Vec<&str> = { attack["sources"].as_array().unwrap().iter() }
        .filter_map(|source| source["of"].as_str())
        .collect();
    let expected = ["10.88.1.0/24", "fd88::/48"];
    let is_expected = |s: &&str| expected.contains(s);
    assert!(
        !sources.is_empty() && sources.iter().all(is_expected),
        "{attack}"
    );
    let flood = crowd(link, Payload::Udp(27_015));
    let game = || service(&edge, "game");
    let attack = attacked(link, &flood, || game()["attack"].clone());
    assert_eq!(
        (&attack["remedy"], &attack["kinds"][0]["kind"]),
        (&"dry_run".into(), &"reflection".into())
    );
    assert_eq!(attack["ports"][0]["of"], 27_015);
    wait::until("all is over", || {
        game()["under_attack"] == false && prefixes()["attack"] == Value::Null
    });
    // Another mode counts elsewhere, which is no flood.
    for mode in ["enforce", "dry-run"] {
        let with = format!("[flood.prefixes]\nmode = \"{mode}\"\n");
        edge.configure(&["eth0"], &settings.replace("[flood.prefixes]\n", &with));
        edge.ok(&["reload"]);
        let uptime = || edge.status()["uptime_ms"].as_u64().unwrap();
        let since = uptime();
        wait::until("the daemon has looked more than once", || {
            uptime() > since + 3000
        });
        let flood = prefixes();
        assert_eq!(flood["dry_run"], mode == "dry-run");
        assert_eq!(flood["attack"], Value::Null, "{mode}");
    }
    let list = edge.json(&["attacks", "list"]);
    let kinds: Vec<&str> = { list.iter() }
        .filter_map(|attack| attack["kinds"][0]["kind"].as_str())
        .collect();
    for kind in ["icmp", "source", "reflection"] {
        assert!(kinds.contains(&kind), "{kinds:?}");
    }
    let shown = edge.ok(&["attacks", "show", &id.to_string()]);
    assert!(shown.contains(" on host: an ICMP flood\n"), "{shown}");
    assert!(!shown.contains("clients"), "{shown}");
    // What is no longer limited is no longer told of, and under attack no more, as soon as a
    // reload has answered.
    let flood = crowd(link, Payload::Udp(9));
    attacked(link, &flood, || prefixes()["attack"].clone());
    edge.configure(&["eth0"], "");
    edge.ok(&["reload"]);
    assert_eq!(edge.status()["host_floods"], Value::Array(Vec::new()));
    let list = edge.json(&["attacks", "list"]);
    assert!(list.iter().all(|a| a["ended_unix_ms"].is_u64()), "{list:?}");
}

#[test]
fn segments_to_ports_of_no_service_are_dropped_under_attack() {
    let lab = Lab::new(1);
    let link = lab.link();
    let settings = "[flood]\nrest = \"auto\"\nhold = \"1s\"\n\
                    incomplete = { rate = 200, burst = 400 }\n";
    let edge = Installation::new(&lab.host, &["eth0"], settings);
    let forward = "echo 1 > /proc/sys/net/ipv4/ip_forward";
    lab.host.run("sh", &["-c", forward]);
    let daemon = edge.start();
    wait_ready(&edge, "host", 2, 2);
    let log = daemon.log();
    assert!(
        log.contains("flood.rest is on, and this host forwards"),
        "{log}"
    );
    let connection = Connection::new(&lab);
    // Alone it is the kernel's to refuse.
    let stray = link.frame(link.v4(77), Payload::Tcp(frames::ACK));
    assert!(link.passes(&stray));
    let flood = crowd(link, Payload::Tcp(frames::ACK));
    let dropped = || edge.packets("tcp_out_of_state", "ended");
    let (mut told, mut rounds) = (String::new(), 0);
    wait::until("the flood is dropped", || {
        link.sender.send_all(&flood);
        connection.goes_on(&lab);
        let before = dropped();
        link.sender.send_all(&flood);
        if dropped() < before + flood.len() as u64 / 2 {
            return false;
        }
        rounds += 1;
        told = edge.ok(&["status"]);
        rounds > 5 && told.contains("which are dropped")
    });
    let line = "\nhost: UNDER ATTACK since ";
    assert!(told.contains(line), "{told}");
    assert_eq!(service(&edge, "host")["syn"], "auto");
    assert!(counter(&edge, "host", "out_of_state") > 0);
    assert!(is_in_metrics(&edge, "tcp_out_of_state"));
    wait::until("the attack ends", || {
        service(&edge, "host")["under_attack"] == false
    });
    assert!(link.passes(&stray));
    connection.goes_on(&lab);
    let log = daemon.log();
    let began = "under attack: a flood of segments of no connection";
    assert!(log.contains(began), "{log}");
    // A reload without it lets everything through again.
    edge.configure(&["eth0"], "");
    let said = edge.ok(&["reload"]);
    assert!(
        said.contains("no longer protects the services host"),
        "{said}"
    );
    let before = dropped();
    for _ in 0..20 {
        link.sender.send_all(&flood);
    }
    assert!(link.passes(&stray));
    assert_eq!(dropped(), before);
}
