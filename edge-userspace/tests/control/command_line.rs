//! The `edge` binary against the real server, with an engine that keeps the
//! lists in memory: output, exit codes, and who may do what.

use std::{
    collections::BTreeMap,
    fs::Permissions,
    io::{Read as _, Write as _},
    net::IpAddr,
    os::{
        fd::AsRawFd as _,
        unix::{fs::PermissionsExt as _, process::CommandExt as _},
    },
    path::Path,
    process::{Command, Output, Stdio},
    sync::Mutex,
};

use edge_common::{addr::Prefix, decide::Standing, reason::Reason};
use edge_userspace::{
    control::{
        protocol::{
            Addition, Comparison, Entry, Event, Failure, FailureKind, Limits, List, Lookup, Origin,
            Outcome, Request, Response, ServerChange, SetLimit,
        },
        server::{Bounds, Handler, Reply},
    },
    status::{
        Source, Status,
        attack::{Attack, Change, Found, Kind, KindCount, Notice, Remedy},
        proxy::ProxyStatus,
    },
};
use serde_json::{Value, json};

use crate::{
    proxy,
    rig::{Rig, until},
};

/// Both lists in memory.
#[derive(Default)]
pub(crate) struct Lists {
    entries: Mutex<BTreeMap<(List, Prefix), Entry>>,
    set: Mutex<Vec<SetLimit>>,
    pub(crate) changes: Mutex<Vec<ServerChange>>,
}

impl Source for Lists {
    fn status(&self) -> Status {
        Status {
            version: "0.0.0-test".to_owned(),
            proxy: Some(ProxyStatus {
                upstreams: vec![proxy::upstream(ServerChange::Undrain {})],
                ..ProxyStatus::default()
            }),
            ..Status::default()
        }
    }
}

impl Lists {
    fn answer(&self, request: Request) -> Result<Response, Failure> {
        let mut entries = self.entries.lock().unwrap();
        let before = entries.len();
        Ok(match request {
            Request::Status {} => return Err(Failure::new(FailureKind::Internal, "not here")),
            Request::Reload {} => {
                return Err(Failure::new(FailureKind::Config, "edge.toml:3: nonsense"));
            }
            Request::Upgrade { binary, timeout_ms } => match binary {
                Some(path) if path.is_absolute() && timeout_ms == 90_000 => Response::Upgraded {
                    former_pid: 7,
                    pid: 8,
                    version: "1.2.3".to_owned(),
                },
                _ => {
                    return Err(Failure::new(
                        FailureKind::Upgrade,
                        "it ended; it said:\n  no",
                    ));
                }
            },
            Request::Compare { .. } => Response::Comparison(Comparison::default()),
            Request::Add(Addition { header, prefixes }) => {
                if header.note == "full" {
                    return Err(Failure::new(FailureKind::Full, "raise tables.hosts_v4"));
                }
                let (list, origin, feed) = (header.list, header.origin, header.feed);
                if header.replace {
                    entries
                        .retain(|(l, p), e| *l != list || e.feed != feed || prefixes.contains(p));
                }
                let removed = (before - entries.len()) as u64;
                let kept = entries.len();
                for prefix in &prefixes {
                    let entry = Entry {
                        prefix: *prefix,
                        list,
                        origin,
                        feed: feed.clone(),
                        created_unix_ms: 1_795_325_503_000,
                        expires_unix_ms: header.ttl_s.map(|s| 1_795_325_503_000 + s * 1000),
                        note: header.note.clone(),
                        hits: 0,
                    };
                    entries.insert((list, *prefix), entry);
                }
                let added = (entries.len() - kept) as u64;
                Response::Added {
                    added,
                    updated: prefixes.len() as u64 - added,
                    removed,
                }
            }
            Request::Remove { list, prefixes } => {
                let is_missing = |p: &Prefix| !entries.contains_key(&(list, *p));
                let missing: Vec<Prefix> = prefixes.iter().copied().filter(is_missing).collect();
                if missing.is_empty() {
                    entries.retain(|(l, p), _| *l != list || !prefixes.contains(p));
                }
                let removed = (before - entries.len()) as u64;
                Response::Removed { removed, missing }
            }
            Request::List {
                list,
                within,
                after,
                limit,
            } => {
                let mut all = entries
                    .values()
                    .filter(|e| e.list == list)
                    .filter(|e| within.is_none_or(|w| w.contains(e.prefix)))
                    .filter(|e| after.is_none_or(|a| e.prefix > a))
                    .cloned();
                let page: Vec<Entry> = all.by_ref().take(limit as usize).collect();
                let next = all.next().and(page.last().map(|e| e.prefix));
                Response::Page {
                    entries: page,
                    next,
                }
            }
            Request::Flush { list, origin, feed } => {
                entries.retain(|_, e| {
                    e.list != list
                        || origin.is_some_and(|o| e.origin != o)
                        || feed.is_some() && e.feed != feed
                });
                Response::Flushed {
                    removed: (before - entries.len()) as u64,
                }
            }
            Request::Lookup { address } => Response::Lookup(lookup(address, &entries)),
            Request::Limits {} | Request::ResetLimits { .. } => Response::Limits(limits()),
            Request::Attacks {} => Response::Attacks(vec![attack()]),
            Request::Attack { id: 7 } => Response::Attack {
                attack: Box::new(attack()),
                samples: vec![Event {
                    frame_len: 60,
                    data: "00ff".to_owned(),
                    ..event(5)
                }],
            },
            Request::Attack { .. } => {
                return Err(Failure::new(
                    FailureKind::Invalid,
                    "there is no such attack",
                ));
            }
            Request::Backend { .. } => {
                return Err(Failure::new(
                    FailureKind::Invalid,
                    "there is no such backend",
                ));
            }
            Request::Upstream { .. } | Request::Routes {} | Request::RouteTest(_) => {
                return proxy::answer(request, &mut self.changes.lock().unwrap());
            }
            Request::SetLimit(set) => {
                self.set.lock().unwrap().push(set);
                Response::Limits(limits())
            }
        })
    }
}

pub(crate) fn attack() -> Attack {
    Attack {
        id: 7,
        service: "web".to_owned(),
        found: Found::Segments,
        began_unix_ms: 1_795_325_503_000,
        ended_unix_ms: Some(1_795_325_563_000),
        kinds: vec![KindCount {
            kind: Kind::Syn,
            packets: 5000,
            per_second: 0.0,
            peak_per_second: 900.0,
        }],
        remedy: Remedy::Cookies,
        clients: 3,
        counters: [("syns".to_owned(), 5003)].into(),
        sampled: 1,
        sources: vec![],
        ports: vec![],
    }
}

fn event(unix_ms: u64) -> Event {
    Event {
        unix_ms,
        interface: "eth0".to_owned(),
        reason: Reason::Land,
        would_drop: true,
        frame_len: 60,
        packet: None,
        data: String::new(),
    }
}

fn lookup(address: IpAddr, entries: &BTreeMap<(List, Prefix), Entry>) -> Lookup {
    let host = Prefix::host(address);
    let covering = entries.values().filter(|e| e.prefix.contains(host));
    let entries: Vec<Entry> = covering.cloned().collect();
    let (standing, reason) = if entries.is_empty() {
        (Standing::Unlisted, Reason::Pass)
    } else {
        (Standing::Blacklisted, Reason::Blacklisted)
    };
    Lookup {
        address,
        standing,
        entries,
        ranges: vec![],
        outcome: Outcome {
            reason,
            would_drop: None,
            limited: false,
        },
    }
}

fn limits() -> Limits {
    Limits {
        v4_prefix: 32,
        v6_prefix: 64,
        modes: vec![],
        rules: vec![],
    }
}

impl Handler for Lists {
    fn handle(&self, request: Request, reply: Reply) {
        reply.send(self.answer(request));
    }

    fn import_limit(&self) -> u64 {
        2_000_000
    }
}

pub(crate) fn rig() -> Rig<Lists> {
    Rig::start(Lists::default(), Bounds::default())
}

/// The binary with these arguments, split at blanks.
pub(crate) fn edge(socket: &Path, arguments: &str) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_edge"));
    command
        .args(arguments.split_whitespace())
        .env("EDGE_SOCKET", socket)
        .env_remove("RUST_LOG")
        .env("RUST_BACKTRACE", "0")
        .stdin(Stdio::null());
    command
}

/// Exit code, stdout and stderr.
pub(crate) fn run(socket: &Path, arguments: &str) -> (i32, String, String) {
    told(edge(socket, arguments).output().unwrap())
}

pub(crate) fn told(output: Output) -> (i32, String, String) {
    (
        output.status.code().expect("no signal ends edge"),
        String::from_utf8(output.stdout).unwrap(),
        String::from_utf8(output.stderr).unwrap(),
    )
}

/// The JSON lines of a command that succeeds.
pub(crate) fn json(socket: &Path, arguments: &str) -> Vec<Value> {
    let (code, out, err) = run(socket, &format!("{arguments} --json"));
    assert_eq!((code, err.as_str()), (0, ""), "{arguments}: {out}");
    out.lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect()
}

/// A command with something on its standard input.
fn fed(socket: &Path, arguments: &str, input: &str) -> (i32, String, String) {
    let mut child = edge(socket, arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdin = child.stdin.take().unwrap();
    // One that refuses at once may not read it all.
    let _ = stdin.write_all(input.as_bytes());
    drop(stdin);
    told(child.wait_with_output().unwrap())
}

#[test]
fn entries_come_and_go() {
    let rig = rig();
    let socket = &rig.path();
    let (code, out, err) = run(
        socket,
        "blacklist add 192.0.2.7 198.51.100.0/24 2001:db8::/32 --ttl 1h --note scan",
    );
    assert_eq!(
        (code, out.as_str(), err.as_str()),
        (0, "blacklist: 3 added\n", "")
    );
    let again = json(socket, "blacklist add 192.0.2.7 203.0.113.1");
    assert_eq!(
        again,
        [json!({"list": "blacklist", "feed": null, "added": 1, "updated": 1, "removed": 0})]
    );
    // The other list is another list.
    assert_eq!(run(socket, "allow list").1, "allowlist: no entries\n");
    assert_eq!(run(socket, "allow add ::1").1, "allowlist: 1 added\n");

    let within = json(socket, "blacklist list 192.0.0.0/8 --limit 1");
    assert_eq!(
        within,
        [json!({
            "prefix": "192.0.2.7", "list": "blacklist", "origin": "cli", "feed": null,
            "created_unix_ms": 1_795_325_503_000_u64, "expires_unix_ms": null,
            "note": "", "hits": 0,
        })]
    );
    assert_eq!(json(socket, "blacklist list").len(), 4);
    let (_, table, _) = run(socket, "blacklist list");
    assert_eq!(table.lines().count(), 5);
    assert!(table.starts_with("PREFIX "), "{table}");

    let export = run(socket, "blacklist export").1;
    assert_eq!(
        export,
        "192.0.2.7\n198.51.100.0/24 ; scan\n203.0.113.1\n2001:db8::/32 ; scan\n"
    );
    let (code, out, err) = run(socket, "blacklist del 192.0.2.7 192.0.2.8");
    assert_eq!((code, out.as_str()), (1, ""));
    assert!(
        err.contains("nothing was removed; not on the blacklist: 192.0.2.8"),
        "{err}"
    );
    assert_eq!(
        run(socket, "blacklist del 192.0.2.7").1,
        "blacklist: 1 removed\n"
    );
    let (code, out, err) = run(socket, "blacklist del 192.0.2.8 203.0.113.1 --json");
    assert_eq!((code, err.as_str()), (1, ""));
    let expected = json!({"list": "blacklist", "removed": 0, "missing": ["192.0.2.8"]});
    assert_eq!(serde_json::from_str::<Value>(&out).unwrap(), expected);
    assert_eq!(run(socket, "blacklist del 2001:db8::/32").0, 0);
}

#[test]
fn a_flush_is_confirmed() {
    let rig = rig();
    let socket = &rig.path();
    run(socket, "blacklist add 192.0.2.7");
    fed(socket, "blacklist import -", "192.0.2.8\n");
    let (code, out, err) = fed(socket, "blacklist flush", "y\n");
    assert_eq!((code, out.as_str()), (2, ""));
    assert!(err.contains("--yes"), "{err}");
    assert_eq!(json(socket, "blacklist list").len(), 2);
    assert_eq!(
        run(socket, "blacklist flush --origin feed -y").1,
        "blacklist: 1 removed\n"
    );
    assert_eq!(
        json(socket, "blacklist flush --yes"),
        [json!({"list": "blacklist", "removed": 1})]
    );
}

#[test]
fn a_feed_is_imported_whole_or_not_at_all() {
    let rig = rig();
    let socket = &rig.path();
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("feed.txt");
    std::fs::write(
        &file,
        "\u{feff}; Spamhaus\r\n\r\n1.10.16.0/20 ; SBL256894\r\n2001:db8::/32 # x\n192.0.2.1",
    )
    .unwrap();
    let import = |arguments: &str| {
        told(
            edge(socket, "blacklist import")
                .arg(&file)
                .args(arguments.split_whitespace())
                .output()
                .unwrap(),
        )
    };
    let (code, out, err) = import("--ttl 1d --note drop");
    assert_eq!(
        (code, out.as_str(), err.as_str()),
        (0, "blacklist, feed feed: 3 added\n", "")
    );
    // An export is a feed again.
    let export = run(socket, "blacklist export").1;
    let (code, out, _) = fed(socket, "allow import -", &export);
    let told = "allowlist, feed default: 3 added\n";
    assert_eq!((code, out.as_str()), (0, told));

    // Wrong lines are named; nothing of the rest is taken.
    std::fs::write(&file, "192.0.2.2\nnonsense\n10.0.0.1/8\n").unwrap();
    let (code, out, err) = import("");
    assert_eq!((code, out.as_str()), (2, ""));
    for word in ["feed.txt", "line 2", "line 3", "10.0.0.0/8", "--lenient"] {
        assert!(err.contains(word), "{word}: {err}");
    }
    assert_eq!(json(socket, "blacklist list").len(), 3);
    let lenient = "blacklist import - --feed feed --lenient";
    let (code, out, _) = fed(socket, lenient, "10.0.0.1/8\n");
    let told = "blacklist, feed feed: 1 added\n";
    assert_eq!((code, out.as_str()), (0, told));

    // What replaces goes before what was imported, and leaves the rest alone.
    run(socket, "blacklist add 203.0.113.1");
    fed(socket, "blacklist import - --feed other", "203.0.113.2\n");
    let (code, out, _) = fed(
        socket,
        "blacklist import - --feed feed --replace --json",
        "192.0.2.1\n::2\n",
    );
    let expected =
        json!({"list": "blacklist", "feed": "feed", "added": 1, "updated": 1, "removed": 3});
    assert_eq!(code, 0);
    assert_eq!(serde_json::from_str::<Value>(&out).unwrap(), expected);
    assert_eq!(json(socket, "blacklist list").len(), 4);
    let of_feed = json(socket, "blacklist list --feed feed");
    assert_eq!(of_feed.len(), 2);
    assert!(of_feed.iter().all(|e| e["feed"] == "feed"));
    assert_eq!(
        json(socket, "blacklist list --feed feed --limit 1").len(),
        1
    );
    assert_eq!(
        run(socket, "blacklist export --feed other").1,
        "203.0.113.2 ; feed other\n"
    );
    assert_eq!(
        run(socket, "blacklist flush --feed other -y").1,
        "blacklist: 1 removed\n"
    );
    // A download that failed replaces nothing.
    let (code, _, err) = fed(socket, "blacklist import - --feed feed --replace", "");
    assert_eq!(code, 2);
    assert!(err.contains("flush --feed feed"), "{err}");
    // Nor does one that does not say what it replaces.
    let (code, _, err) = fed(socket, "blacklist import - --replace", "192.0.2.9\n");
    assert_eq!(code, 2);
    for word in ["--feed <NAME>", "--feed drop --replace"] {
        assert!(err.contains(word), "{word}: {err}");
    }
    assert_eq!(json(socket, "blacklist list").len(), 3);

    let (code, _, err) = run(socket, "blacklist import /nonexistent/feed");
    assert_eq!(code, 2);
    assert!(err.contains("/nonexistent/feed"), "{err}");
}

#[test]
fn long_lists_come_in_pages_and_a_reader_may_leave() {
    let rig = rig();
    let socket = &rig.path();
    let feed: String = (0..50_000u32)
        .map(|i| format!("{}\n", std::net::Ipv4Addr::from_bits(0x0a00_0000 + i)))
        .collect();
    let (code, out, _) = fed(socket, "blacklist import - --note n", &feed);
    assert_eq!(
        (code, out.as_str()),
        (0, "blacklist, feed default: 50,000 added\n")
    );
    let export = run(socket, "blacklist export").1;
    assert_eq!(export.replace(" ; feed default ; n", ""), feed);
    assert_eq!(json(socket, "blacklist list --limit 2500").len(), 2500);

    // `edge blacklist export | head -c 10`
    let mut child = edge(socket, "blacklist list")
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut first = [0; 10];
    child.stdout.take().unwrap().read_exact(&mut first).unwrap();
    let (code, _, err) = told(child.wait_with_output().unwrap());
    assert_eq!((code, err.as_str()), (0, ""));
}

#[test]
fn a_list_in_a_pager_outlasts_the_connection() {
    let mut rig = rig();
    let socket = &rig.path();
    let feed: String = (0..20_000u32)
        .map(|i| format!("{}\n", std::net::Ipv4Addr::from_bits(0x0a00_0000 + i)))
        .collect();
    fed(socket, "blacklist import -", &feed);
    let mut child = edge(socket, "blacklist export")
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdout = child.stdout.take().unwrap();
    let mut exported = Vec::new();
    // Twice: what fills the pipe again behind the first bytes is a second write,
    // which is longer than what there was room for. So it waits for its reader,
    // in the middle of the list.
    for _ in 0..2 {
        until("the pipe is full", || {
            let mut unread: libc::c_int = 0;
            // SAFETY: the descriptor is open, and FIONREAD writes one int.
            let rc = unsafe { libc::ioctl(stdout.as_raw_fd(), libc::FIONREAD, &raw mut unread) };
            assert_eq!(rc, 0);
            unread > 60_000
        });
        if exported.is_empty() {
            exported.resize(8192, 0);
            stdout.read_exact(&mut exported).unwrap();
        }
    }
    rig.restart();
    stdout.read_to_end(&mut exported).unwrap();
    let (code, _, err) = told(child.wait_with_output().unwrap());
    assert_eq!((code, err.as_str()), (0, ""));
    let exported = String::from_utf8(exported).unwrap();
    assert!(
        exported.replace(" ; feed default", "") == feed,
        "the list has a gap"
    );
}

#[test]
fn failures_have_exit_codes_and_say_what_to_do() {
    let rig = rig();
    let socket = &rig.path();
    for (arguments, code, word) in [
        (
            "blacklist add 192.0.2.7 --note full",
            1,
            "raise tables.hosts_v4",
        ),
        ("reload", 2, "edge.toml:3"),
        ("blacklist add 10.0.0.1/8", 2, "did you mean 10.0.0.0/8"),
        ("limits set syn", 2, "--rate"),
        ("limits set bytes --rate 10M", 2, "bytes or bits"),
        (
            "check -c /nonexistent/edge.toml",
            2,
            "/nonexistent/edge.toml",
        ),
        ("--socket /nonexistent/edge.sock status", 3, "edge run"),
        ("frobnicate", 2, "Usage"),
    ] {
        let (got, out, err) = run(socket, arguments);
        assert_eq!((got, out.as_str()), (code, ""), "{arguments}: {err}");
        assert!(err.contains(word), "{arguments}: {err}");
    }
    let (code, out, err) = run(socket, "reload --json");
    assert_eq!((code, out.as_str()), (2, ""));
    assert_eq!(
        serde_json::from_str::<Value>(&err).unwrap(),
        json!({"error": {"kind": "config", "message": "edge.toml:3: nonsense"}})
    );
    // Nothing was changed by any of it.
    assert_eq!(run(socket, "blacklist list").1, "blacklist: no entries\n");
    assert!(rig.engine.set.lock().unwrap().is_empty());
}

#[test]
fn a_socket_without_a_daemon_is_unreachable() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("edge.sock");
    drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
    let (code, _, err) = run(&path, "status --json");
    assert_eq!(code, 3);
    assert_eq!(
        serde_json::from_str::<Value>(&err).unwrap()["error"]["kind"],
        "unreachable"
    );
}

#[test]
fn another_user_is_kept_out_twice() {
    // SAFETY: geteuid has no preconditions.
    if unsafe { libc::geteuid() } != 0 {
        // Only root can become somebody else.
        return;
    }
    let rig = rig();
    let socket = rig.path();
    // A copy that the other user can reach, whatever the build directory allows.
    // Made by another process: were the copy open for writing here, a child that
    // another test starts meanwhile would hold it open, and it could not be run.
    let dir = tempfile::tempdir().unwrap();
    let open = |path: &Path, mode| {
        std::fs::set_permissions(path, Permissions::from_mode(mode)).unwrap();
    };
    let binary = dir.path().join("edge");
    let copied = Command::new("cp")
        .arg(env!("CARGO_BIN_EXE_edge"))
        .arg(&binary)
        .status()
        .unwrap();
    assert!(copied.success());
    open(dir.path(), 0o755);
    open(&binary, 0o755);
    open(socket.parent().unwrap(), 0o755);
    let status = || {
        told(
            Command::new(&binary)
                .args(["status", "--socket"])
                .arg(&socket)
                .uid(65_534)
                .gid(65_534)
                .output()
                .unwrap(),
        )
    };
    // By the mode of the socket, and by the daemon if that is opened.
    for mode in [0o600, 0o666] {
        open(&socket, mode);
        let (code, out, err) = status();
        assert_eq!((code, out.as_str()), (4, ""), "{err}");
        assert!(err.contains("only root"), "{err}");
    }
    assert_eq!(rig.count("status"), (0, 0));
}

#[test]
fn status_lookup_and_limits_are_asked_for() {
    let rig = rig();
    let socket = &rig.path();
    assert!(
        run(socket, "status")
            .1
            .starts_with("edge 0.0.0-test, up 0s")
    );
    assert_eq!(json(socket, "status")[0]["version"], "0.0.0-test");
    run(socket, "blacklist add 192.0.2.0/24");
    let (_, out, _) = run(socket, "lookup 192.0.2.7");
    assert!(
        out.starts_with("192.0.2.7: dropped, blacklisted\n"),
        "{out}"
    );
    assert!(out.contains("192.0.2.0/24"), "{out}");
    assert_eq!(json(socket, "lookup ::1")[0]["outcome"]["reason"], "pass");

    let shown = json(socket, "limits set bytes --rate 100Mbit --prefix ::/0");
    assert_eq!(shown[0]["v6_prefix"], 64);
    let set = serde_json::to_value(&*rig.engine.set.lock().unwrap()).unwrap();
    assert_eq!(
        set,
        json!([{
            "kind": "bytes", "prefix": "::/0", "mode": null,
            "rate": {"rate": {"per_second": 12_500_000, "burst": 12_500_000}},
        }])
    );
    assert!(run(socket, "limits show").1.contains("IPv6 /64"));
    assert_eq!(run(socket, "limits reset").0, 0);
}

#[test]
fn events_are_printed_as_they_come() {
    let rig = rig();
    let socket = &rig.path();
    for n in 0..30 {
        rig.hub.publish(event(n));
    }
    let (code, out, _) = run(socket, "events");
    assert_eq!((code, out.lines().count()), (0, 20));
    assert!(
        out.ends_with(".029Z eth0 would-drop land - 60 bytes\n"),
        "{out}"
    );

    let mut child = edge(socket, "events -f -n 1 --json")
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = std::io::BufRead::lines(std::io::BufReader::new(child.stdout.take().unwrap()));
    let mut next = || -> Value { serde_json::from_str(&lines.next().unwrap().unwrap()).unwrap() };
    assert_eq!(next()["unix_ms"], 29);
    rig.hub.publish(event(30));
    assert_eq!(next()["unix_ms"], 30);
    rig.hub.announce(Notice {
        unix_ms: 40,
        change: Change::Ended,
        attack: attack(),
    });
    let told = next();
    assert_eq!(
        (&told["change"], &told["attack"]["id"]),
        (&json!("ended"), &json!(7))
    );
    // Its reader goes away: it ends at the next event, in good order.
    drop(lines);
    until("the follower ends", || {
        rig.hub.publish(event(31));
        child.try_wait().unwrap().is_some()
    });
    assert_eq!(child.wait().unwrap().code(), Some(0));
}

#[test]
fn what_needs_no_daemon_works_without_one() {
    let nowhere = Path::new("/nonexistent/edge.sock");
    let reasons = json(nowhere, "reasons");
    assert_eq!(reasons.len(), Reason::COUNT);
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("edge.toml");
    std::fs::write(&file, "interfaces = ['eth0']\n").unwrap();
    let check = format!("check -c {}", file.display());
    let (code, out, err) = run(nowhere, &check);
    assert_eq!(code, 0);
    // Nobody is a management address: worth a warning, but no error.
    assert!(
        err.starts_with("warning: ") && err.contains("lists.management"),
        "{err}"
    );
    assert!(out.contains("HOSTS4") && out.contains("total"), "{out}");
    let described = &json(nowhere, &check)[0];
    assert_eq!(described["interfaces"], json!(["eth0"]));
    assert_eq!(described["warnings"].as_array().unwrap().len(), 1);
    assert!(described["memory_total"].as_u64().unwrap() > 1 << 20);
    std::fs::write(&file, "interfaces = ['eth0']\ncolour = 'red'\n").unwrap();
    let (code, out, err) = run(nowhere, &check);
    assert_eq!((code, out.as_str()), (2, ""));
    assert!(
        err.contains("edge.toml:2") && err.contains("colour"),
        "{err}"
    );
}

#[test]
fn the_origin_of_an_import_is_the_feed() {
    let rig = rig();
    fed(&rig.path(), "allow import -", "192.0.2.1\n");
    let entries = rig.engine.entries.lock().unwrap();
    let origins: Vec<_> = entries
        .values()
        .map(|e| (e.list, e.origin, e.feed.as_ref().map(ToString::to_string)))
        .collect();
    let default = Some("default".to_owned());
    assert_eq!(origins, [(List::Allow, Origin::Feed, default)]);
}
