//! The daemon as a whole on the real kernel: what is in force before, during
//! and after restarts, reloads and crashes.

use std::{
    path::Path,
    sync::atomic::{AtomicBool, AtomicU64, Ordering},
    thread,
};

use crate::{
    home::{Daemon, Home},
    netns::{PacketSocket, hook_program, ip, isolated, pause, send, udp4, veth, wait},
};
use edge_common::{
    abi::{LimitKind, Mode},
    reason::Reason,
};
use edge_userspace::{
    control::protocol::{
        FailureKind, LimitRule, LimitValue, Limits, List, Origin, Request, Response, SetLimit,
    },
    status::AttachMode,
};

const HERE: [u8; 4] = [198, 51, 100, 1];
const GOOD: [u8; 4] = [9, 9, 9, 9];
const LISTED: [u8; 4] = [9, 0, 0, 1];
const IN_FILE: [u8; 4] = [9, 7, 0, 1];
const MANAGER: [u8; 4] = [9, 8, 0, 1];

const CONFIG: &str = "interfaces = ['a0']\n\
    lists.management = ['9.8.0.0/24']\n\
    lists.blacklist = ['9.7.0.0/16', '9.8.0.0/16']\n";

/// Packets that ended with a reason on an interface.
fn ended(daemon: &Daemon, interface: usize, reason: Reason) -> u64 {
    let status = daemon.status();
    let reasons = &status.interfaces[interface].reasons;
    let found = reasons.iter().find(|r| r.reason == reason);
    found.map_or(0, |r| r.ended.packets)
}

#[track_caller]
fn expect(daemon: &Daemon, reason: Reason, want: u64) {
    wait(&format!("{want} of {reason:?}"), || {
        ended(daemon, 0, reason) == want
    });
}

/// Sends from these sources all the time while `during` runs, and fails if a
/// packet of theirs ever passes. Returns how many were sent.
fn none_passes(sources: &[[u8; 4]], during: impl FnOnce()) -> u64 {
    let behind = PacketSocket::new("a0");
    let sender = PacketSocket::new("a0p");
    let (stop, sent) = (AtomicBool::new(false), AtomicU64::new(0));
    thread::scope(|scope| {
        // Joined at the end of the scope, also when `during` panics.
        struct Stop<'a>(&'a AtomicBool);
        impl Drop for Stop<'_> {
            fn drop(&mut self) {
                self.0.store(true, Ordering::Relaxed);
            }
        }
        scope.spawn(|| {
            while !stop.load(Ordering::Relaxed) {
                for &source in sources {
                    sent.fetch_add(
                        u64::from(sender.send(&udp4(source, HERE))),
                        Ordering::Relaxed,
                    );
                }
                while let Some(frame) = behind.receive() {
                    let from = frame.get(26..30).unwrap_or_default();
                    assert!(!sources.iter().any(|s| s == from), "{from:?} passed");
                }
                thread::yield_now();
            }
        });
        let _stop = Stop(&stop);
        wait("traffic", || sent.load(Ordering::Relaxed) > 100);
        during();
        let at = sent.load(Ordering::Relaxed);
        wait("more traffic", || sent.load(Ordering::Relaxed) > at + 100);
    });
    sent.load(Ordering::Relaxed)
}

fn started(directory: &Path, config: &str) -> (Home, Daemon) {
    veth("a0");
    let home = Home::new(directory, config);
    let daemon = home.start();
    (home, daemon)
}

#[test]
fn lists_are_in_force_and_outlive_a_crash_without_a_gap() {
    isolated(|directory| {
        let (home, daemon) = started(directory, CONFIG);
        daemon
            .add(List::Black, &["9.0.0.1", "2001:db8:1::/48"], None)
            .unwrap();
        for (source, reason) in [
            (LISTED, Reason::Blacklisted),
            (IN_FILE, Reason::Blacklisted),
            (MANAGER, Reason::PassManagement),
            (GOOD, Reason::Pass),
        ] {
            let before = ended(&daemon, 0, reason);
            send("a0p", &udp4(source, HERE), 3);
            expect(&daemon, reason, before + 3);
        }
        let generation = daemon.status().config.generation;
        assert_eq!(generation, 1);

        let mut next = None;
        let sent = none_passes(&[LISTED, IN_FILE], || {
            let old = hook_program("a0");
            daemon.kill();
            assert_eq!(hook_program("a0"), old);
            let daemon = home.start();
            assert_ne!(hook_program("a0"), old);
            next = Some(daemon);
        });
        let daemon = next.unwrap();
        let status = daemon.status();
        assert!(status.interfaces[0].adopted);
        assert_eq!(status.interfaces[0].mode, Some(AttachMode::Native));
        // Not all that were sent: a queue of the pair may have overflowed.
        let dropped = ended(&daemon, 0, Reason::Blacklisted);
        assert!((7..=6 + sent).contains(&dropped), "{dropped} of {sent}");
        assert!(daemon.log().contains("adopted=true"), "{}", daemon.log());
        let lookup = Request::Lookup {
            address: "2001:db8:1::5".parse().unwrap(),
        };
        let Ok(Response::Lookup(found)) = daemon.ask(lookup) else {
            panic!("no answer");
        };
        assert_eq!(found.entries.len(), 1);
        assert_eq!(found.outcome.reason, Reason::Blacklisted);
    });
}

#[test]
fn a_reload_is_all_or_nothing_and_leaves_no_gap() {
    isolated(|directory| {
        let (home, daemon) = started(directory, CONFIG);
        daemon.add(List::Black, &["9.0.0.1"], None).unwrap();
        none_passes(&[LISTED, IN_FILE], || {
            // Other sizes: other tables, filled before they are in force.
            home.configure(&format!(
                "{CONFIG}tables.hosts_v4 = '1M'\ntables.prefixes = '200k'\n"
            ));
            let Ok(Response::Reloaded { generation, notes }) = daemon.reload() else {
                panic!("not reloaded");
            };
            assert_eq!(generation, 2);
            assert!(
                notes.iter().any(|n| n.contains("tables.hosts_v4")),
                "{notes:?}"
            );

            // What is wrong changes nothing and is told.
            for (config, says) in [
                ("interfaces = ['a0']\nnonsense = 1", "nonsense"),
                ("interfaces = ['a0', 'b0']", "'b0'"),
                (
                    "interfaces = ['a0']\nmetrics.listen = '127.0.0.1:1'",
                    "restart needed",
                ),
            ] {
                let program = hook_program("a0");
                home.configure(config);
                let error = daemon.reload().unwrap_err().to_string();
                assert!(error.contains(says), "{error}");
                assert_eq!(hook_program("a0"), program);
            }
            // What fails in the last moment (no driver has native XDP for lo)
            // takes back what was done before, to the lists and to a0.
            for tables in ["", "tables.hosts_v4 = '2M'"] {
                home.configure(&format!("interfaces = ['a0', 'lo']\n{tables}"));
                let error = daemon.reload().unwrap_err().to_string();
                assert!(
                    error.contains("lo: the driver takes no native XDP"),
                    "{error}"
                );
                daemon.add(List::Black, &["9.0.0.2"], None).unwrap();
                let before = ended(&daemon, 0, Reason::PassManagement);
                send("a0p", &udp4(MANAGER, HERE), 2);
                expect(&daemon, Reason::PassManagement, before + 2);
            }
            let status = daemon.status();
            assert_eq!((status.reloads.succeeded, status.reloads.failed), (1, 5));
            assert!(status.reloads.last_error.unwrap().contains("native XDP"));
            assert_eq!(status.config.generation, 2);
        });
        none_passes(&[[9, 0, 0, 2]], || {});

        // By signal, to a dry run and another interface.
        veth("b0");
        // Until now nobody has read what it told its service manager, and it
        // has worked on all the same.
        daemon.notified();
        home.configure(
            &format!("{CONFIG}checks.blacklist = 'dry-run'\n",).replace("['a0']", "['b0', 'a0']"),
        );
        daemon.signal(libc::SIGHUP);
        let mut told = String::new();
        wait("the end of the reload", || {
            told.extend(daemon.notified());
            let last = told.rfind("RELOADING=1\nMONOTONIC_USEC=");
            let ready = told.rfind("READY=1");
            daemon.status().config.generation == 3 && last.is_some() && ready > last
        });
        let status = daemon.status();
        assert_eq!(status.interfaces[0].name, "b0");
        assert_eq!(status.config.generation, 3);
        let passed = ended(&daemon, 1, Reason::Pass);
        send("a0p", &udp4(LISTED, HERE), 5);
        wait("packets that pass", || {
            ended(&daemon, 1, Reason::Pass) == passed + 5
        });
    });
}

#[test]
fn limits_set_at_run_time_outlast_a_restart() {
    let rate = |per_second| {
        Some(LimitValue::Rate {
            per_second,
            burst: per_second,
        })
    };
    let set = |daemon: &Daemon, prefix: Option<&str>, rate, mode| -> Result<Limits, String> {
        let request = Request::SetLimit(SetLimit {
            kind: LimitKind::Udp,
            prefix: prefix.map(|p| p.parse().unwrap()),
            rate,
            mode,
        });
        match daemon.ask(request) {
            Ok(Response::Limits(limits)) => Ok(limits),
            Ok(other) => panic!("{other:?}"),
            Err(e) => Err(e.to_string()),
        }
    };
    isolated(|directory| {
        let (home, daemon) = started(directory, CONFIG);
        let limits = set(&daemon, None, rate(20), None).unwrap();
        let udp = |limits: &Limits| -> LimitRule {
            let mut rules = limits.rules.iter();
            rules.find(|r| r.kind == LimitKind::Udp).cloned().unwrap()
        };
        assert_eq!(udp(&limits).origin, Origin::Cli);
        assert_eq!(Some(udp(&limits).limit), rate(20));
        set(
            &daemon,
            Some("9.9.9.0/24"),
            Some(LimitValue::Unlimited),
            None,
        )
        .unwrap();
        let error = set(&daemon, None, rate(0), None).unwrap_err();
        assert!(!error.is_empty());
        assert_eq!(daemon.status().config.generation, 3);

        // From one CPU: another one does not spend what that has charged ahead.
        edge_tests::cpu::stay();
        let check = |daemon: &Daemon, source: [u8; 4]| {
            let before = ended(daemon, 0, Reason::LimitUdp);
            let all = || ended(daemon, 0, Reason::LimitUdp) + ended(daemon, 0, Reason::Pass);
            // In portions that the queue of the pair holds in any case.
            for from in [GOOD, source, GOOD, source] {
                let so_far = all();
                send("a0p", &udp4(from, HERE), 100);
                wait("100 packets", || all() == so_far + 100);
            }
            ended(daemon, 0, Reason::LimitUdp) - before
        };
        let dropped = check(&daemon, [9, 1, 0, 1]);
        assert!((1..=180).contains(&dropped), "{dropped}");
        daemon.kill();
        let daemon = home.start();
        let dropped = check(&daemon, [9, 1, 0, 2]);
        assert!((1..=180).contains(&dropped), "{dropped}");

        // In dry run, and then no longer at all.
        set(&daemon, None, None, Some(Mode::DryRun)).unwrap();
        assert_eq!(check(&daemon, [9, 1, 0, 3]), 0);
        let reset = Request::ResetLimits {
            kind: None,
            prefix: None,
        };
        let Ok(Response::Limits(limits)) = daemon.ask(reset) else {
            panic!("no limits");
        };
        assert_eq!(udp(&limits).limit, LimitValue::Unlimited);
        assert!(limits.rules.iter().all(|r| r.origin == Origin::File));
        let (status, _) = daemon.stop();
        assert!(status.success());
        let daemon = home.start();
        assert_eq!(check(&daemon, [9, 1, 0, 4]), 0);
    });
}

#[test]
fn entries_expire_in_the_kernel_and_then_everywhere() {
    isolated(|directory| {
        let (_home, daemon) = started(directory, CONFIG);
        daemon.add(List::Black, &["9.0.0.1"], Some(5)).unwrap();
        send("a0p", &udp4(LISTED, HERE), 1);
        expect(&daemon, Reason::Blacklisted, 1);
        wait("a packet that passes", || {
            send("a0p", &udp4(LISTED, HERE), 1);
            ended(&daemon, 0, Reason::Pass) > 0
        });
        let list = || {
            let request = Request::List {
                list: List::Black,
                within: Some("9.0.0.0/16".parse().unwrap()),
                after: None,
                limit: 10,
            };
            match daemon.ask(request) {
                Ok(Response::Page { entries, .. }) => entries.len(),
                other => panic!("{other:?}"),
            }
        };
        wait("an empty list", || list() == 0);
    });
}

#[test]
fn the_end_is_as_configured() {
    isolated(|directory| {
        let (home, daemon) = started(directory, CONFIG);
        let program = hook_program("a0");
        let (status, log) = daemon.stop();
        assert!(status.success() && log.contains("go on dropping"), "{log}");
        assert_eq!(hook_program("a0"), program);
        assert!(program.is_some());
        home.configure(&format!("{CONFIG}[xdp]\non_exit = 'detach'\n"));
        let daemon = home.start();
        let (status, log) = daemon.stop();
        assert!(status.success(), "{log}");
        assert_eq!(hook_program("a0"), None);
        assert!(!home.pins().exists());
    });
}

#[test]
fn interfaces_that_vanish_are_told_and_protected_when_they_return() {
    isolated(|directory| {
        let (_home, daemon) = started(directory, CONFIG);
        ip("link del a0");
        wait("the loss to be told", || {
            let status = daemon.status();
            let a0 = &status.interfaces[0];
            a0.mode.is_none() && a0.ifindex == 0 && a0.problem.is_some()
        });
        veth("a0");
        wait("the program to be back", || {
            daemon.status().interfaces[0].mode == Some(AttachMode::Native)
        });
        send("a0p", &udp4(IN_FILE, HERE), 2);
        expect(&daemon, Reason::Blacklisted, 2);
    });
}

#[test]
fn what_keeps_it_from_starting_is_named_and_changes_nothing() {
    isolated(|directory| {
        let (home, daemon) = started(directory, CONFIG);
        let program = hook_program("a0");
        let second = home.try_start(&[]).unwrap_err();
        assert!(second.contains("another daemon"), "{second}");
        let elsewhere = directory.join("elsewhere");
        std::fs::create_dir(&elsewhere).unwrap();
        let other = Home::new(&elsewhere, CONFIG);
        let refused = other.try_start(&[]).unwrap_err();
        assert!(refused.contains("mount -t bpf"), "{refused}");
        assert_eq!(hook_program("a0"), program);
        assert!(daemon.status().interfaces[0].mode.is_some());
        drop(daemon);
        home.configure("interfaces = ['nope0']");
        let missing = home.try_start(&[]).unwrap_err();
        assert!(
            missing.contains("'nope0'") && missing.contains("a0, a0p, lo"),
            "{missing}"
        );
        home.configure("interfaces = 'a0'");
        let wrong = home.try_start(&[]).unwrap_err();
        assert!(wrong.contains("edge.toml:1"), "{wrong}");
        assert_eq!(hook_program("a0"), program);
    });
}

#[test]
fn the_capabilities_of_the_unit_are_enough() {
    isolated(|directory| {
        veth("a0");
        let home = Home::new(directory, CONFIG);
        let caps = "-all,+bpf,+net_admin,+perfmon";
        let few = ["setpriv", "--bounding-set", caps, "--inh-caps", caps];
        let daemon = home.try_start(&few).unwrap();
        daemon.reload().unwrap();
        send("a0p", &udp4(IN_FILE, HERE), 2);
        expect(&daemon, Reason::Blacklisted, 2);
        daemon.kill();
        let daemon = home.try_start(&few).unwrap();
        assert!(daemon.status().interfaces[0].adopted);
        drop(daemon);
        let none = ["setpriv", "--bounding-set", "-all", "--inh-caps", "-all"];
        let refused = home.try_start(&none).unwrap_err();
        assert!(
            refused.contains("CAP_BPF and CAP_PERFMON and CAP_NET_ADMIN missing"),
            "{refused}"
        );
    });
}

#[test]
fn events_are_handed_on() {
    use edge_userspace::control::protocol::{ClientMessage, ServerMessage, VERSION};
    use std::{
        io::{BufRead, BufReader, Write},
        os::unix::net::UnixStream,
    };
    isolated(|directory| {
        let (_home, daemon) = started(directory, CONFIG);
        let mut stream = UnixStream::connect(directory.join("edge.sock")).unwrap();
        stream
            .set_read_timeout(Some(crate::netns::PATIENCE))
            .unwrap();
        let mut say = |message: &ClientMessage| {
            let mut line = serde_json::to_vec(message).unwrap();
            line.push(b'\n');
            stream.write_all(&line).unwrap();
        };
        say(&ClientMessage::Hello {
            protocol: VERSION,
            upgrade: false,
        });
        say(&ClientMessage::Events {
            last: 0,
            follow: true,
        });
        let mut lines = BufReader::new(stream.try_clone().unwrap()).lines();
        let mut next =
            || -> ServerMessage { serde_json::from_str(&lines.next().unwrap().unwrap()).unwrap() };
        assert!(matches!(next(), ServerMessage::Hello { .. }));
        // Sent until one comes: following begins at some moment.
        let (stop, sender) = (AtomicBool::new(false), PacketSocket::new("a0p"));
        thread::scope(|scope| {
            scope.spawn(|| {
                while !stop.load(Ordering::Relaxed) {
                    sender.send(&udp4(IN_FILE, HERE));
                    pause();
                }
            });
            let event = next();
            stop.store(true, Ordering::Relaxed);
            let ServerMessage::Event(event) = event else {
                panic!("{event:?}");
            };
            assert_eq!(
                (event.interface.as_str(), event.reason),
                ("a0", Reason::Blacklisted)
            );
            let packet = event.packet.unwrap();
            assert_eq!(packet.source.to_string(), "9.7.0.1");
            assert_eq!((event.frame_len, event.would_drop), (60, false));
        });
        let request = Request::Remove {
            list: List::Black,
            prefixes: vec!["9.7.0.0/16".parse().unwrap()],
        };
        // An entry of the file is the file's business.
        match daemon.ask(request) {
            Ok(Response::Removed { removed, .. }) => assert_eq!(removed, 0),
            Ok(other) => panic!("{other:?}"),
            Err(e) => assert!(e.to_string().contains("file"), "{e}"),
        }
    });
}

#[test]
fn a_list_that_is_full_says_which_key_to_raise() {
    isolated(|directory| {
        let (_home, daemon) = started(directory, &format!("{CONFIG}tables.hosts_v4 = 1\n"));
        let all: Vec<String> = (0..200).map(|i| format!("9.1.0.{i}")).collect();
        let all: Vec<&str> = all.iter().map(String::as_str).collect();
        let error = daemon.add(List::Black, &all, None).unwrap_err();
        let edge_userspace::control::client::ClientError::Failed(failure) = error else {
            panic!("{error}");
        };
        assert_eq!(failure.kind, FailureKind::Full);
        assert!(failure.message.contains("tables.hosts_v4"), "{failure}");
        // Nothing of it is in force.
        send("a0p", &udp4([9, 1, 0, 0], HERE), 1);
        expect(&daemon, Reason::Pass, 1);
    });
}
