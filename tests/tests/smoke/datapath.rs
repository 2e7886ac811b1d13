//! Attaching, taking over, replacing and rolling back, on the real kernel.

use std::{
    collections::BTreeSet,
    fs,
    net::Ipv4Addr,
    os::unix::fs::PermissionsExt,
    path::Path,
    sync::atomic::{AtomicBool, Ordering::Relaxed},
    thread,
};

use crate::netns::{
    PATIENCE, PacketSocket, hook_program as program, index, ip, isolated, send, udp4, veth, wait,
};
use edge_common::{
    abi::{ABI_VERSION, Config, MAX_PROFILES, Mode, Profile, TableStat, maps},
    gcra::Limit,
    hash::Seed,
    reason::Reason,
    table::stamp,
};
use edge_tests::packet;
use edge_userspace::{
    clock::{Now, coarse_tick_ns},
    datapath::{Datapath, DatapathError, Events, Program, Settings, Unattached, View},
    status::AttachMode,
    tables::{Capacity, Geometry, Listing, Regions, Tables},
};

fn with_pins(test: impl FnOnce(&Path) + Send) {
    isolated(|directory| test(&directory.join("bpf/edge")));
}

/// A frame from and to one address.
fn land() -> Vec<u8> {
    udp4([192, 0, 2, 1], [192, 0, 2, 1])
}

fn settings(interfaces: &[&str]) -> Settings {
    Settings {
        interfaces: interfaces.iter().map(|&i| i.to_owned()).collect(),
        allow_generic: false,
        program: Program {
            config: Config {
                seed: Seed::new([1, 2, 3, 4]),
                tick_ns: coarse_tick_ns(),
                land: Mode::Enforce as u32,
                hosts4_buckets: 64,
                hosts4_filter_words: 1024,
                wide_buckets: 64,
                hosts6_filter_words: 1024,
                prefix_filter_words: 1024,
                long_lengths: 1024,
                limiter_buckets: 64,
                ..Config::OFF
            },
            profiles: Box::new([Profile::default(); MAX_PROFILES]),
            events_buffer: 1 << 16,
            targets: 1,
        },
        arp_bindings: Vec::new(),
    }
}

fn commit(datapath: &mut Datapath, settings: Settings) {
    let prepared = datapath.prepare(settings).unwrap();
    datapath.commit(prepared).unwrap();
}

/// (ended, would have been dropped) packets of a reason.
fn packets(view: &View, at: usize, reason: Reason) -> (u64, u64) {
    let counters = view.counters(&view.interfaces()[at]).unwrap();
    (
        counters.ended(reason).packets,
        counters.would_drop(reason).packets,
    )
}

#[track_caller]
fn expect(view: &View, at: usize, reason: Reason, want: (u64, u64)) {
    wait(&format!("{want:?} of {reason:?}"), || {
        packets(view, at, reason) == want
    });
}

#[test]
fn drops_counts_and_outlives_the_daemon() {
    with_pins(|pins| {
        veth("a0");
        let mut first = Datapath::open(pins).unwrap();
        commit(&mut first, settings(&["a0"]));
        let view = first.view().unwrap();
        let state = &view.interfaces()[0];
        assert_eq!(
            (state.mode, state.adopted),
            (Some(AttachMode::Native), false)
        );
        send("a0p", &land(), 10);
        expect(&view, 0, Reason::Land, (10, 0));
        let counters = view.counters(state).unwrap();
        assert_eq!(counters.ended(Reason::Land).bytes, 600);

        // The daemon dies: everything of it that is not pinned is gone.
        drop((first, view));
        let before = program("a0").unwrap();
        send("a0p", &land(), 5);

        let mut second = Datapath::open(pins).unwrap();
        let prepared = second.prepare(settings(&["a0"])).unwrap();
        assert!(!prepared.tables_are_new() && !prepared.limiter_is_new());
        assert_eq!(prepared.notes(), [""; 0]);
        assert_eq!(program("a0"), Some(before));
        second.commit(prepared).unwrap();
        assert_ne!(program("a0"), Some(before));
        let view = second.view().unwrap();
        assert!(view.interfaces()[0].adopted);
        expect(&view, 0, Reason::Land, (15, 0));

        // A change of the configuration, twice.
        let mut dry = settings(&["a0"]);
        dry.program.config.land = Mode::DryRun as u32;
        commit(&mut second, dry.clone());
        send("a0p", &land(), 3);
        expect(&view, 0, Reason::Land, (15, 3));
        dry.program.config.land = Mode::Off as u32;
        commit(&mut second, dry);
        send("a0p", &land(), 3);
        expect(&view, 0, Reason::Pass, (6, 0));
        assert_eq!(packets(&view, 0, Reason::Land), (15, 3));

        drop(view);
        second.detach().unwrap();
        assert_eq!(program("a0"), None);
        assert!(!pins.exists());
    });
}

/// The programs that the main one goes on with are in an array that the kernel empties
/// when nobody has it open.
#[test]
fn stages_outlive_the_daemon() {
    with_pins(|pins| {
        veth("a0");
        let limited = || {
            let mut settings = settings(&["a0"]);
            settings.program.config.icmp_floods = Mode::Enforce as u32;
            settings.program.config.icmp = [Limit::per_second(1, 1).unwrap(); 3];
            settings
        };
        let ping = packet::ip("192.0.2.1", "192.0.2.2").icmp(8, 64).build();
        let stages = || {
            let directory = pins.join(format!("v{ABI_VERSION}/stages"));
            let names = fs::read_dir(directory).unwrap();
            names
                .map(|n| n.unwrap().file_name())
                .collect::<BTreeSet<_>>()
        };
        let mut first = Datapath::open(pins).unwrap();
        commit(&mut first, limited());
        let view = first.view().unwrap();
        send("a0p", &ping, 50);
        wait("a flood of pings", || {
            packets(&view, 0, Reason::FloodIcmp).0 > 40
        });
        // A change that does not come into force leaves nothing.
        let before = stages();
        drop(first.prepare(limited()).unwrap());
        assert_eq!((before.len(), stages()), (1, before.clone()));

        drop((first, view));
        send("a0p", &ping, 50);
        let mut second = Datapath::open(pins).unwrap();
        commit(&mut second, limited());
        let view = second.view().unwrap();
        wait("a flood of pings without a daemon", || {
            packets(&view, 0, Reason::FloodIcmp).0 > 90
        });
        assert_eq!(view.stat(TableStat::StageMissing).unwrap(), 0);
        let after = stages();
        assert!(
            after.len() == 1 && after.is_disjoint(&before),
            "{before:?} {after:?}"
        );
        drop(view);
        second.detach().unwrap();
        assert!(!pins.exists());
    });
}

/// What is loaded beside a running program leaves its clock alone: entries with an
/// expiry stay in force, and they would not for one that jumps ahead.
#[test]
fn a_load_leaves_the_clock_of_what_runs_alone() {
    let mut settings = settings(&["a0"]);
    settings.program.config.blacklist = Mode::Enforce as u32;
    with_pins(move |pins| {
        veth("a0");
        let mut edge = Datapath::open(pins).unwrap();
        commit(&mut edge, settings.clone());
        let config = &settings.program.config;
        let geometry = Geometry {
            hosts4_buckets: config.hosts4_buckets,
            hosts4_filter_words: config.hosts4_filter_words,
            wide_buckets: config.wide_buckets,
            hosts6_filter_words: config.hosts6_filter_words,
            prefix_filter_words: config.prefix_filter_words,
            long_lengths: config.long_lengths,
            limiter_buckets: config.limiter_buckets,
            ..Geometry::for_capacity(&Capacity::default())
        };
        let regions = Regions::new(|name| edge.region(name)).unwrap();
        let mut tables = Tables::new(regions, geometry, config.seed).unwrap();
        let in_an_hour = Now::read().mono_ns + 3_600_000_000_000;
        let listing = Listing {
            black: stamp(in_an_hour),
            ..Listing::default()
        };
        tables.put("192.0.2.1".parse().unwrap(), listing).unwrap();
        let view = edge.view().unwrap();
        let frame = udp4([192, 0, 2, 1], [192, 0, 2, 2]);
        let done = AtomicBool::new(false);
        thread::scope(|scope| {
            scope.spawn(|| {
                let socket = PacketSocket::new("a0p");
                for _ in 0..1_000_000 {
                    if done.load(Relaxed) {
                        break;
                    }
                    socket.send(&frame);
                }
            });
            wait("the first packet", || {
                packets(&view, 0, Reason::Blacklisted).0 > 0
            });
            for _ in 0..3 {
                drop(edge.prepare(settings.clone()).unwrap());
            }
            done.store(true, Relaxed);
        });
        assert!(packets(&view, 0, Reason::Blacklisted).0 > 100);
        assert_eq!(packets(&view, 0, Reason::Pass), (0, 0));
    });
}

#[test]
fn a_failed_change_leaves_everything_as_it_was() {
    with_pins(|pins| {
        veth("a0");
        veth("b0");
        let mut edge = Datapath::open(pins).unwrap();
        let mut in_force = settings(&["a0"]);
        in_force.arp_bindings = vec![(Ipv4Addr::new(192, 0, 2, 9), [2, 0, 0, 0, 0, 9])];
        commit(&mut edge, in_force.clone());
        let view = edge.view().unwrap();
        let before = program("a0");

        // Larger tables, another interface, which is taken in the last moment.
        let mut next = settings(&["a0", "b0"]);
        next.program.config.hosts4_buckets = 128;
        next.program.config.land = Mode::Off as u32;
        next.program.config.seed = Seed::new([9, 9, 9, 9]);
        let prepared = edge.prepare(next.clone()).unwrap();
        assert!(prepared.tables_are_new() && !prepared.limiter_is_new());
        assert!(prepared.notes()[0].contains("HOSTS4 has entries 64, not 128"));
        let mut holder = Datapath::open(&pins.with_file_name("other")).unwrap();
        commit(&mut holder, settings(&["b0"]));
        let error = edge.commit(prepared).unwrap_err();
        let text = error.to_string();
        assert!(matches!(error, DatapathError::HookHeld { .. }), "{text}");
        assert!(
            text.contains("b0") && text.contains("program 'edge_xdp' (id "),
            "{text}"
        );
        assert!(text.contains("bpftool link detach id"), "{text}");

        assert_eq!(program("a0"), before);
        send("a0p", &land(), 4);
        expect(&view, 0, Reason::Land, (4, 0));
        // What fits is taken over again: nothing was exchanged.
        let again = edge.prepare(in_force).unwrap();
        assert!(!again.tables_are_new());
        drop(again);
        // Asked early, it is refused early.
        assert!(matches!(
            edge.prepare(next.clone()),
            Err(DatapathError::HookHeld { .. })
        ));

        // With the way free, the same change succeeds.
        holder.detach().unwrap();
        commit(&mut edge, next);
        let view = edge.view().unwrap();
        send("a0p", &land(), 2);
        send("b0p", &land(), 3);
        expect(&view, 0, Reason::Pass, (2, 0));
        expect(&view, 1, Reason::Pass, (3, 0));
        assert_eq!(packets(&view, 0, Reason::Land), (4, 0));

        // And an interface that is not wanted any more is let go.
        commit(&mut edge, settings(&["b0"]));
        assert_eq!(program("a0"), None);
        assert!(program("b0").is_some());
        let view = edge.view().unwrap();
        assert_eq!(packets(&view, 0, Reason::Pass), (3, 0));
        drop(view);
        edge.detach().unwrap();
    });
}

#[test]
fn a_replacement_that_fails_is_rolled_back_on_the_others() {
    with_pins(|pins| {
        veth("a0");
        veth("b0");
        let mut edge = Datapath::open(pins).unwrap();
        commit(&mut edge, settings(&["a0", "b0"]));
        let (a, b) = (program("a0"), program("b0"));
        let mut next = settings(&["a0", "b0"]);
        next.program.config.land = Mode::Off as u32;
        let prepared = edge.prepare(next).unwrap();
        // By the time of the change b0 is gone; a0 was replaced before it.
        ip("link del b0");
        let error = edge.commit(prepared).unwrap_err().to_string();
        assert!(error.contains("interface 'b0' does not exist"), "{error}");
        assert_eq!(program("a0"), a);
        assert_ne!(a, b);
        let view = edge.view().unwrap();
        send("a0p", &land(), 2);
        expect(&view, 0, Reason::Land, (2, 0));
    });
}

#[test]
fn interfaces_go_and_come_back() {
    with_pins(|pins| {
        veth("a0.7");
        let mut edge = Datapath::open(pins).unwrap();
        commit(&mut edge, settings(&["a0.7"]));
        assert!(!edge.watch());
        ip("link del a0.7");
        assert!(edge.watch());
        let view = edge.view().unwrap();
        let gone = &view.interfaces()[0];
        assert_eq!((gone.ifindex, gone.mode), (0, None));
        assert!(gone.problem.as_ref().unwrap().contains("does not exist"));
        assert!(!edge.watch());
        veth("a0.7");
        assert!(edge.watch());
        let view = edge.view().unwrap();
        let back = &view.interfaces()[0];
        assert_eq!(
            (back.mode, &back.problem),
            (Some(AttachMode::Native), &None)
        );
        assert_eq!(back.ifindex, index("a0.7") as u32);
        send("a0.7p", &land(), 2);
        expect(&view, 0, Reason::Land, (2, 0));

        // The same while no daemon runs: the pinned link is of no use.
        drop((edge, view));
        ip("link del a0.7");
        veth("a0.7");
        let mut edge = Datapath::open(pins).unwrap();
        commit(&mut edge, settings(&["a0.7"]));
        let view = edge.view().unwrap();
        assert!(!view.interfaces()[0].adopted);
        send("a0.7p", &land(), 2);
        expect(&view, 0, Reason::Land, (4, 0));
    });
}

#[test]
fn programs_that_lost_their_pins_are_put_back_all_the_same() {
    with_pins(|pins| {
        veth("a0");
        let mut edge = Datapath::open(pins).unwrap();
        for restarted in [false, true] {
            veth("b0");
            commit(&mut edge, settings(&["a0", "b0"]));
            let before = program("a0");
            for name in ["a0", "b0"] {
                fs::remove_file(pins.join(format!("v{ABI_VERSION}/programs")).join(name)).unwrap();
            }
            if restarted {
                drop(edge);
                edge = Datapath::open(pins).unwrap();
            }
            let mut next = settings(&["a0", "b0"]);
            next.program.config.land = Mode::Off as u32;
            let prepared = edge.prepare(next).unwrap();
            ip("link del b0");
            edge.commit(prepared).unwrap_err();
            assert_eq!(program("a0"), before, "restarted: {restarted}");
        }
    });
}

#[test]
fn tables_of_another_seed_or_version_are_not_taken_over() {
    with_pins(|pins| {
        veth("a0");
        let mut first = Datapath::open(pins).unwrap();
        commit(&mut first, settings(&["a0"]));
        let before = program("a0");
        drop(first);
        let mut edge = Datapath::open(pins).unwrap();
        let mut other = settings(&["a0"]);
        other.program.config.seed = Seed::new([4, 3, 2, 1]);
        let prepared = edge.prepare(other.clone()).unwrap();
        assert!(prepared.tables_are_new());
        assert!(prepared.notes()[0].contains("another seed"));
        drop(prepared);
        commit(&mut edge, other.clone());
        assert!(!edge.prepare(other).unwrap().tables_are_new());
        assert_ne!(program("a0"), before);
        drop(edge);

        // A link that a daemon with other tables left is still taken over.
        let before = program("a0");
        fs::create_dir_all(pins.join("v0/links")).unwrap();
        let current = pins.join(format!("v{ABI_VERSION}/links/a0"));
        fs::rename(current, pins.join("v0/links/a0")).unwrap();
        let mut edge = Datapath::open(pins).unwrap();
        commit(&mut edge, settings(&["a0"]));
        assert!(edge.view().unwrap().interfaces()[0].adopted);
        assert!(program("a0").is_some() && program("a0") != before);
        assert!(!pins.join("v0").exists());
    });
}

#[test]
fn generic_mode_only_when_allowed() {
    with_pins(|pins| {
        ip("link set lo up");
        let mut edge = Datapath::open(pins).unwrap();
        let prepared = edge.prepare(settings(&["lo"])).unwrap();
        let error = edge.commit(prepared).unwrap_err().to_string();
        assert!(
            error.contains("lo: the driver takes no native XDP"),
            "{error}"
        );
        assert!(error.contains("allow_generic = true"), "{error}");
        // The kernel's own sentence, which no error number carries.
        assert!(error.contains("driver does not support XDP"), "{error}");
        assert_eq!(program("lo"), None);
        let mut allowed = settings(&["lo"]);
        allowed.allow_generic = true;
        commit(&mut edge, allowed);
        let view = edge.view().unwrap();
        assert_eq!(view.interfaces()[0].mode, Some(AttachMode::Generic));
        send("lo", &land(), 3);
        expect(&view, 0, Reason::Land, (3, 0));
        let refused = edge.prepare(settings(&["lo"])).unwrap_err().to_string();
        assert!(refused.contains("attached in generic mode"), "{refused}");
        drop(view);
        edge.detach().unwrap();
        assert_eq!(program("lo"), None);
    });
}

#[test]
fn obstacles_are_named() {
    with_pins(|pins| {
        veth("a0");
        let edge = Datapath::open(pins).unwrap();
        let second = Datapath::open(pins).unwrap_err().to_string();
        assert!(second.contains("another Edge daemon is using"), "{second}");
        let error = edge.prepare(settings(&["nope0"])).unwrap_err().to_string();
        assert!(
            error.contains("'nope0'") && error.contains("a0, a0p, lo"),
            "{error}"
        );
        let open = pins.with_file_name("open");
        fs::create_dir(&open).unwrap();
        fs::set_permissions(&open, fs::Permissions::from_mode(0o777)).unwrap();
        let error = Datapath::open(&open).unwrap_err().to_string();
        assert!(error.contains("others may write to it"), "{error}");
        let error = Datapath::open(Path::new("/dev/shm/edge-none")).unwrap_err();
        assert!(error.to_string().contains("mount -t bpf"), "{error}");
    });
}

#[test]
fn samples_are_read() {
    with_pins(|pins| {
        veth("a0");
        let mut edge = Datapath::open(pins).unwrap();
        let mut sampled = settings(&["a0"]);
        sampled.program.config.sample = Limit::per_second(2, 2).unwrap();
        commit(&mut edge, sampled);
        let view = edge.view().unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        let events = runtime.block_on(async {
            let mut source = Events::new(edge.events().unwrap().unwrap()).unwrap();
            let before = Now::read().mono_ns;
            send("a0p", &land(), 20);
            let mut events = Vec::new();
            while events.len() < 2 {
                let read = source.read(&mut events, 1);
                tokio::time::timeout(PATIENCE, read).await.unwrap().unwrap();
            }
            // The program's clock is the daemon's, as of the last tick.
            let now = Now::read().mono_ns;
            let at = events[0].time_ns;
            assert!((before - 3 * coarse_tick_ns()..=now).contains(&at), "{at}");
            events
        });
        assert_eq!(events[0].reason, Reason::Land.index() as u16);
        assert_eq!(events[0].ifindex, index("a0") as u32);
        assert_eq!(events[0].bytes(), land());
        expect(&view, 0, Reason::Land, (20, 0));
        assert_eq!(view.stat(TableStat::EventsLost).unwrap(), 0);
    });
}

#[test]
fn test_runs_need_no_interface() {
    let mut program = settings(&[]).program;
    program.config = program.config.with_limits(Mode::Off);
    let mut edge = Unattached::load(&program).unwrap();
    assert_eq!(edge.run(&land(), 1).unwrap().action, 1);
    let pass = udp4([192, 0, 2, 1], [192, 0, 2, 2]);
    assert_eq!(edge.run(&pass, 3).unwrap().action, 2);
    let counters = edge.counters().unwrap();
    assert_eq!(counters.ended(Reason::Land).packets, 1);
    assert_eq!(counters.ended(Reason::Pass).packets, 3);
    edge.set_arp_bindings(&[(Ipv4Addr::LOCALHOST, [1; 6])])
        .unwrap();
    assert_eq!(edge.region(maps::HOSTS4).unwrap().bytes(), 64 * 64);
}
