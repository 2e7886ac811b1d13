//! Who is banned for what it sends to the proxy, for how long, and whom a configuration spares.

use std::collections::BTreeSet;
use std::io::{Read as _, Write as _};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::time::Instant;

use edge_tests::daemon::Installation;
use edge_tests::frames::{self, Payload};
use edge_tests::lab::{Lab, Link};
use edge_tests::wait;
use serde_json::Value;
use socket2::{Domain, Socket, Type};

use crate::proxy::HTTP;
use crate::secured::H2;
use crate::upgrade::{Heirs, copy_of_binary, head};
use crate::watchdog::Held;

/// A server that never answers listens there.
const SILENT: u16 = 82;
const MS: u64 = 1000;

/// A proxy at both addresses of the host, which answers itself but for `/hang`. `bans` are keys of
/// `proxy.bans`, `listener` those of the listener.
fn settings(lab: &Lab, root: &str, bans: &str, listener: &str) -> String {
    let link = lab.link();
    format!(
        "{root}\n[proxy]\nworkers = 1\nbans = {{ {bans} }}\n\
         [[listener]]\nname = \"web\"\naddresses = [\"{}:{HTTP}\", \"[{}]:{HTTP}\"]\n\
         http2 = true\n{listener}\n\
         [[upstream]]\nname = \"silent\"\n[[upstream.server]]\naddress = \"{}:{SILENT}\"\n\
         [[route]]\nname = \"hang\"\npath = {{ exact = \"/hang\" }}\nupstream = \"silent\"\n\
         [[route]]\nname = \"all\"\nrespond = {{ status = 200, body = \"here\" }}\n",
        link.v4(1),
        link.v6(1),
        lab.links[1].v4(2)
    )
}

/// A connection to the proxy from an address of the outside.
fn from(link: &Link, source: IpAddr) -> TcpStream {
    let (domain, host) = match source {
        IpAddr::V4(_) => (Domain::IPV4, link.v4(1)),
        IpAddr::V6(_) => (Domain::IPV6, link.v6(1)),
    };
    let stream = link.outside.inside(|| {
        let socket = Socket::new(domain, Type::STREAM, None).unwrap();
        socket.bind(&SocketAddr::new(source, 0).into()).unwrap();
        let to = SocketAddr::new(host, HTTP).into();
        socket.connect_timeout(&to, wait::PATIENCE).unwrap();
        TcpStream::from(socket)
    });
    stream.set_read_timeout(Some(wait::PATIENCE)).unwrap();
    stream
}

/// A request without `Host`.
fn offend(link: &Link, source: IpAddr) {
    let mut stream = from(link, source);
    stream.write_all(b"GET / HTTP/1.1\r\n\r\n").unwrap();
    let answer = head(&mut stream).unwrap();
    assert!(answer.starts_with("http/1.1 400 "), "{answer}");
}

/// A head that does not end.
fn be_slow(link: &Link, source: IpAddr) {
    let mut stream = from(link, source);
    stream.write_all(b"GET / HTTP/1.1\r\nHost: ed").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    assert!(answer.starts_with("HTTP/1.1 408 "), "{answer}");
}

/// Streams of a connection that are reset as soon as they are requests, until the proxy has enough.
fn reset_without_end(link: &Link, source: IpAddr) {
    let mut client = H2::new(from(link, source)).unwrap();
    for _ in 0..20 {
        // Fails once the connection has ended.
        let _ = client.begin("/hang").and_then(|id| client.reset(id));
    }
    println!("{source}: {}", client.end());
}

fn entries(edge: &Installation<'_>) -> Vec<Value> {
    edge.json(&["blacklist", "list"])
}

/// Prefixes and origins of all entries.
fn listed(edge: &Installation<'_>) -> BTreeSet<(String, String)> {
    let text = |entry: &Value, key: &str| entry[key].as_str().unwrap().to_owned();
    let all = entries(edge);
    let all = all.iter();
    all.map(|entry| (text(entry, "prefix"), text(entry, "origin")))
        .collect()
}

fn l7(prefix: &str) -> (String, String) {
    (prefix.to_string(), "l7".to_owned())
}

/// What the metrics and `edge status` count.
fn counted(edge: &Installation<'_>) -> (u64, u64) {
    let metrics = edge.scrape();
    let line = metrics
        .lines()
        .find_map(|line| line.strip_prefix("edge_http_bans_total "));
    let status = edge.status()["proxy"]["bans"].as_u64().unwrap();
    (line.unwrap().parse().unwrap(), status)
}

#[test]
fn slow_heads_and_floods_of_resets_become_bans() {
    let lab = Lab::new(2);
    let link = lab.link();
    let silent = SocketAddr::new(lab.links[1].v4(2), SILENT);
    let _silent = { &lab.links[1].outside }.inside(|| TcpListener::bind(silent).unwrap());
    let bans = "offences = 2, window = \"60s\", ttl = \"600s\"";
    let limits = "limits = { header_timeout = \"1s\", h2_resets_per_second = 2 }";
    let edge = Installation::new(&lab.host, &["eth0"], &settings(&lab, "", bans, limits));
    let _daemon = edge.start();
    let syn = |source| link.frame(source, Payload::Tcp(frames::SYN));
    type Case<'a> = (
        fn(&Link, IpAddr),
        IpAddr,
        &'a str,
        &'a [&'a str],
        &'a [IpAddr],
    );
    let (slow, resets) = (&["head_timeout"][..], &["h2_resets", "h2_flood"][..]);
    let cases: [Case<'_>; 3] = [
        (be_slow, link.v4(3), "10.77.0.3", slow, &[]),
        // Found before they are requests, or afterwards.
        (reset_without_end, link.v4(4), "10.77.0.4", resets, &[]),
        // All of its network, which is last for that.
        (
            be_slow,
            link.v6(3),
            "fd77::/64",
            slow,
            &[link.v6(4), link.v6(6)],
        ),
    ];
    for (n, (offend, source, prefix, why, more)) in cases.into_iter().enumerate() {
        for _ in 0..2 {
            offend(link, source);
        }
        assert!(link.passes(&syn(source)), "{source}");
        assert_eq!(entries(&edge).len(), n, "{source}");
        offend(link, source);
        let began = Instant::now();
        let entry = wait::until_some("the entry", || {
            entries(&edge).into_iter().find(|e| e["prefix"] == prefix)
        });
        println!("{source} is listed {:?} after {}", began.elapsed(), why[0]);
        // Whatever comes behind that is dropped.
        for source in [source].iter().chain(more) {
            assert!(!link.passes(&syn(*source)), "{source}");
            assert!(!link.passes_from(*source), "{source}");
        }
        for source in [link.v4(2), link.v4(5)] {
            assert!(link.passes(&syn(source)), "{source}");
        }
        assert_eq!(entry["origin"], "l7", "{entry}");
        let time = |key: &str| entry[key].as_u64().unwrap();
        assert_eq!(
            time("expires_unix_ms") - time("created_unix_ms"),
            600 * MS,
            "{entry}"
        );
        let note = entry["note"].as_str().unwrap();
        let said = |why: &&str| note.strip_prefix(&format!("{why}, more than 2 in 60 s"));
        // Resets are those of a connection, not of a request.
        match why
            .iter()
            .find_map(said)
            .unwrap_or_else(|| panic!("{note}"))
        {
            "" => assert_eq!(why, resets, "{note:?}"),
            rest => {
                let id = rest.strip_prefix("; request ").unwrap_or_default();
                assert!(id.len() == 32 && id != "0".repeat(32), "{note:?}");
                assert!(id.bytes().all(|b| b.is_ascii_hexdigit()), "{note:?}");
            }
        }
    }
    assert!(link.passes(&syn(link.v4(2))));
    assert_eq!(entries(&edge).len(), 3);
    assert_eq!(counted(&edge), (3, 3));
}

#[test]
fn a_ban_ends_by_itself() {
    let lab = Lab::new(2);
    let link = lab.link();
    let bans = "offences = 2, window = \"60s\", ttl = \"3s\"";
    let edge = Installation::new(&lab.host, &["eth0"], &settings(&lab, "", bans, ""));
    let _daemon = edge.start();
    let bad = link.v4(3);
    for _ in 0..3 {
        offend(link, bad);
    }
    // By the count, which does not go by again.
    wait::until("the ban", || counted(&edge) == (1, 1));
    wait::until("its end", || link.passes_from(bad));
    wait::until("an empty list", || entries(&edge).is_empty());
    // It begins anew.
    for _ in 0..2 {
        offend(link, bad);
    }
    assert_eq!(counted(&edge), (1, 1));
}

#[test]
fn only_bans_that_are_in_force_are_counted() {
    let lab = Lab::new(2);
    let link = lab.link();
    let root = "lists.allow = [\"10.77.0.5\"]\nlists.management = [\"10.77.0.4\"]";
    let bans = "offences = 2, window = \"60s\", ttl = \"600s\"";
    let edge = Installation::new(&lab.host, &["eth0"], &settings(&lab, root, bans, ""));
    let daemon = edge.start();
    edge.ok(&["allow", "add", "10.77.0.6"]);
    let spared = [link.v4(4), link.v4(5), link.v4(6)];
    for source in spared {
        (0..3).for_each(|_| offend(link, source));
    }
    (0..3).for_each(|_| offend(link, link.v4(3)));
    wait::until("a ban", || !entries(&edge).is_empty());
    assert_eq!(listed(&edge), BTreeSet::from([l7("10.77.0.3")]));
    assert_eq!(counted(&edge), (1, 1));
    for source in spared {
        assert!(link.passes_from(source), "{source}");
        let line = |line: &str| line.contains("not banned") && line.contains(&source.to_string());
        assert!(daemon.log().lines().any(line), "{source}");
    }
}

#[test]
fn what_a_new_configuration_spares_is_banned_no_more() {
    let lab = Lab::new(2);
    let link = lab.link();
    let with = |allow: &str, trusted: &str| {
        let root = format!("lists.allow = [{allow}]");
        let bans = "offences = 2, window = \"60s\", ttl = \"600s\"";
        let trusted = format!("trusted_proxies = [{trusted}]");
        settings(&lab, &root, bans, &trusted)
    };
    let edge = Installation::new(&lab.host, &["eth0"], &with("", ""));
    let mut daemon = edge.start();
    let _heirs = Heirs(&edge);
    let all = [link.v4(3), link.v4(4), link.v4(5), link.v4(6), link.v6(3)];
    for source in all {
        (0..3).for_each(|_| offend(link, source));
    }
    let banned = || listed(&edge).into_iter().filter(|(_, o)| o == "l7").count();
    wait::until("the bans", || banned() == all.len());
    // What somebody else wants is none of the proxy's.
    edge.ok(&["blacklist", "add", "10.77.0.6"]);
    let cli = ("10.77.0.6".to_owned(), "cli".to_owned());
    // By a reload.
    let trusted = "\"10.77.0.3\", \"10.77.0.6\"";
    edge.configure(&["eth0"], &with("\"10.77.0.5\"", trusted));
    edge.ok(&["reload"]);
    let rest = BTreeSet::from([l7("10.77.0.4"), l7("fd77::/64"), cli.clone()]);
    assert_eq!(listed(&edge), rest);
    let said = |source: &str| {
        let log = daemon.log();
        let mut lines = log.lines();
        lines.any(|line| line.contains("no longer banned") && line.contains(source))
    };
    assert!(said("10.77.0.3") && said("10.77.0.5") && !said("10.77.0.4"));
    assert!(link.passes_from(link.v4(3)));
    assert!(!link.passes_from(link.v4(4)) && !link.passes_from(link.v6(4)));
    // By an upgrade: a proxy in the network.
    let trusted = "\"fd77::9\"";
    edge.configure(&["eth0"], &with("", trusted));
    edge.ok(&["upgrade", "--binary", &copy_of_binary(&edge)]);
    assert_eq!(
        listed(&edge),
        BTreeSet::from([l7("10.77.0.4"), cli.clone()])
    );
    assert!(link.passes_from(link.v6(4)));
    wait::until_some("the first has ended", || daemon.ended());
    // By a start.
    edge.kill_daemons();
    edge.configure(&["eth0"], &with("", "\"10.77.0.0/24\""));
    let _daemon = edge.start();
    assert_eq!(listed(&edge), BTreeSet::from([cli]));
    assert!(link.passes_from(link.v4(4)));
}

#[test]
fn verdicts_of_an_old_process_hold_for_none_whom_the_new_one_trusts() {
    let lab = Lab::new(2);
    let link = lab.link();
    let with = |trusted: &str| {
        let bans = "offences = 2, window = \"60s\", ttl = \"600s\"";
        let listener =
            format!("limits = {{ header_timeout = \"60s\" }}\ntrusted_proxies = [{trusted}]");
        settings(&lab, "", bans, &listener)
    };
    let edge = Installation::new(&lab.host, &["eth0"], &with(""));
    let mut daemon = edge.start();
    let _heirs = Heirs(&edge);
    let (proxy, bad) = (link.v4(3), link.v4(4));
    let mut clients: Vec<TcpStream> = { [proxy, proxy, proxy, bad, bad, bad].into_iter() }
        .map(|source| {
            let mut client = from(link, source);
            client.write_all(b"GET / HTTP/1.1\r\n").unwrap();
            client
        })
        .collect();
    let open = || edge.status()["proxy"]["listeners"][0]["open"].clone();
    wait::until("they are accepted", || open() == 6);
    edge.configure(&["eth0"], &with("\"10.77.0.3\""));
    edge.ok(&["upgrade", "--binary", &copy_of_binary(&edge)]);
    for client in &mut clients {
        client.write_all(b"Host: a\r\n folded\r\n\r\n").unwrap();
        assert!(head(client).unwrap().starts_with("http/1.1 400 "));
    }
    // The other one's comes second.
    wait::until("the ban", || !entries(&edge).is_empty());
    assert_eq!(listed(&edge), BTreeSet::from([l7(&bad.to_string())]));
    assert!(link.passes_from(proxy) && !link.passes_from(bad));
    let log = daemon.log();
    let mut lines = log.lines();
    assert!(lines.any(|line| line.contains("not banned") && line.contains("10.77.0.3")));
    wait::until_some("the first has ended", || daemon.ended());
}

#[test]
fn a_ban_that_finds_no_room_comes_with_the_next_offence() {
    /// More than wait for the engine.
    const SOURCES: u8 = 160;
    let lab = Lab::new(2);
    let link = lab.link();
    let sources = (60..60 + SOURCES).map(|last| link.v4(last));
    for source in sources.clone() {
        link.outside.ip(&format!("addr add {source}/24 dev out0"));
    }
    let bans = "offences = 1, window = \"3600s\", ttl = \"3600s\"";
    let edge = Installation::new(&lab.host, &["eth0"], &settings(&lab, "", bans, ""));
    let daemon = edge.start();
    let held = Held::new(&daemon, "engine");
    for source in sources.clone() {
        (0..2).for_each(|_| offend(link, source));
    }
    assert_eq!(daemon.log().matches("the daemon is busy").count(), 1);
    drop(held);
    // Those who were heard: as many as may wait, give or take what else does.
    let (mut last, mut alike) = (0, 0);
    wait::until("no more come", || {
        let before = std::mem::replace(&mut last, entries(&edge).len());
        alike = if before == last { alike + 1 } else { 0 };
        last >= 100 && alike >= 10
    });
    assert!(last < usize::from(SOURCES), "all were heard");
    let banned = listed(&edge);
    for source in sources.filter(|source| !banned.contains(&l7(&source.to_string()))) {
        offend(link, source);
        wait::until("its ban", || !link.passes_from(source));
    }
    // The last one may not be counted yet.
    let all = (SOURCES.into(), SOURCES.into());
    wait::until("all are counted", || counted(&edge) == all);
}
