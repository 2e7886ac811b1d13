//! What the threads of the daemon may do.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use edge_tests::daemon::{Daemon, Installation};
use edge_tests::lab::Lab;

use crate::proxy::curl;

/// The numbers of capabilities (capability.h) that the unit may grant.
const NUMBERS: [(&str, u32); 5] = [
    ("net_bind_service", 10),
    ("net_admin", 12),
    ("net_raw", 13),
    ("perfmon", 38),
    ("bpf", 39),
];
const BIND: u64 = 1 << 10;

/// The capabilities of the unit, as setpriv(1) names them, and as a set.
fn unit() -> (Vec<String>, u64) {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    let text = fs::read_to_string(here.join("../config/edge.service")).unwrap();
    let mut lines = text.lines();
    let names = lines.find_map(|line| line.strip_prefix("CapabilityBoundingSet="));
    let names = names.unwrap().split_whitespace();
    let names: Vec<String> = names
        .map(|name| name.strip_prefix("CAP_").unwrap().to_lowercase())
        .collect();
    let bit = |name: &String| {
        let known = NUMBERS.iter().find(|(known, _)| known == name);
        1_u64 << known.unwrap_or_else(|| panic!("{name}")).1
    };
    let set = names.iter().map(bit).sum();
    (names, set)
}

/// Effective, permitted, inheritable and ambient capabilities of each thread of a daemon, by its
/// name and number.
fn threads(daemon: &Daemon) -> BTreeMap<(String, u32), [u64; 4]> {
    let tasks = fs::read_dir(format!("/proc/{}/task", daemon.pid())).unwrap();
    let thread = |task: fs::DirEntry| {
        let number = task.file_name().to_str()?.parse().ok()?;
        // It may end meanwhile.
        let status = fs::read_to_string(task.path().join("status")).ok()?;
        let get = |key: &str| {
            let mut lines = status.lines();
            lines.find_map(|line| line.strip_prefix(key)).map(str::trim)
        };
        let sets = ["CapEff:", "CapPrm:", "CapInh:", "CapAmb:"];
        let sets = sets.map(|key| u64::from_str_radix(get(key).unwrap(), 16).unwrap());
        Some(((get("Name:")?.to_owned(), number), sets))
    };
    tasks.flatten().filter_map(thread).collect()
}

/// Looks at all threads that a daemon with so many workers has: those that serve may do nothing,
/// the others what they were started with.
#[track_caller]
fn look(daemon: &Daemon, workers: usize, granted: Option<u64>) {
    let all = threads(daemon);
    let named = |name: &str| -> Vec<&[u64; 4]> {
        let found = all.iter().filter(|((comm, _), _)| comm == name);
        found.map(|(_, sets)| sets).collect()
    };
    for n in 0..workers {
        assert_eq!(
            named(&format!("proxy-{n}")),
            [&[0; 4]],
            "worker {n}: {all:?}"
        );
    }
    // What tells a collector of requests, in which clients have their say.
    assert_eq!(named("proxy-spans"), [&[0; 4]], "{all:?}");
    for name in ["edge", "engine"] {
        let [[effective, permitted, ..]] = named(name)[..] else {
            panic!("{name}: {all:?}")
        };
        match granted {
            Some(granted) => assert_eq!((*effective, *permitted), (granted, granted), "{name}"),
            None => assert!(effective & BIND != 0 && effective == permitted, "{name}"),
        }
    }
}

/// A listener on a port below 1024, and all threads that there can be.
fn settings(lab: &Lab, edge: &Installation<'_>, workers: usize) -> String {
    format!(
        "[proxy]\nworkers = {workers}\naccess_log.path = {:?}\n\
         traces = {{ endpoint = \"http://127.0.0.1:4318\" }}\n\
         [[listener]]\nname = \"web\"\naddresses = [\"{}:80\"]\n\
         [[route]]\nname = \"all\"\nrespond = {{ status = 200, body = \"here\" }}\n",
        edge.file("access.log"),
        lab.link().v4(1),
    )
}

#[track_caller]
fn serves(lab: &Lab) {
    let link = lab.link();
    let url = format!("http://{}/", link.v4(1));
    let got = curl(link, link.v4(2), &url, &[]);
    assert_eq!(got, (200, "here".to_owned()));
}

#[test]
fn no_thread_that_serves_has_a_capability() {
    let lab = Lab::new(1);
    let edge = Installation::new(&lab.host, &["eth0"], "");
    edge.configure(&["eth0"], &settings(&lab, &edge, 3));
    let daemon = edge.start();
    serves(&lab);
    look(&daemon, 3, None);
    // Nor has one that comes later.
    edge.configure(&["eth0"], &settings(&lab, &edge, 5));
    edge.ok(&["reload"]);
    serves(&lab);
    look(&daemon, 5, None);
}

#[test]
fn the_daemon_has_small_pages() {
    let lab = Lab::new(1);
    let edge = Installation::new(&lab.host, &["eth0"], "");
    let daemon = edge.start();
    let status = fs::read_to_string(format!("/proc/{}/status", daemon.pid())).unwrap();
    assert!(status.contains("\nTHP_enabled:\t0\n"), "{status}");
}

#[test]
fn the_capabilities_of_the_unit_are_enough_for_the_proxy() {
    let lab = Lab::new(1);
    let edge = Installation::new(&lab.host, &["eth0"], "");
    edge.configure(&["eth0"], &settings(&lab, &edge, 2));
    let (names, granted) = unit();
    let daemon = edge.try_start_with_capabilities(&names).unwrap();
    serves(&lab);
    look(&daemon, 2, Some(granted));
    edge.ok(&["reload"]);
    edge.ok(&["blacklist", "add", "10.77.0.3"]);
    assert!(!lab.link().passes_from(lab.link().v4(3)));
    drop(daemon);
    // Each is there for something: this one for the port.
    let without: Vec<String> = { names.into_iter() }
        .filter(|name| name != "net_bind_service")
        .collect();
    let refused = edge.try_start_with_capabilities(&without).unwrap_err();
    let at = format!("cannot listen on {}:80", lab.link().v4(1));
    assert!(refused.stderr.contains(&at), "{refused:?}");
}
