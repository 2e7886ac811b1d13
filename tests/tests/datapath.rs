//! Attaching, taking over, replacing and rolling back, on the real kernel.

use std::{
    ffi::{CStr, CString},
    fs,
    net::Ipv4Addr,
    os::fd::{AsRawFd, FromRawFd, OwnedFd},
    os::unix::fs::PermissionsExt,
    path::Path,
    process::Command,
    thread,
    time::{Duration, Instant},
};

use edge_common::{
    abi::{Config, LIMIT_KINDS, MAX_PROFILES, Mode, Profile, TableStat, maps},
    gcra::Limit,
    hash::Seed,
    reason::Reason,
};
use edge_userspace::{
    clock::{Now, coarse_tick_ns},
    datapath::{Datapath, DatapathError, Events, Program, Settings, Unattached, View},
    status::AttachMode,
};

const PATIENCE: Duration = Duration::from_secs(10);

/// Runs a test on a thread with a network namespace of its own, and with a BPF
/// file system of its own in a mount namespace of its own. All three go away
/// with the thread, and with them every interface, pin, map and program.
fn isolated(test: impl FnOnce(&Path) + Send) {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path();
    let outcome = thread::scope(|scope| {
        let run = scope.spawn(|| {
            own_namespaces(path);
            test(&path.join("edge"));
        });
        run.join()
    });
    if let Err(panic) = outcome {
        std::panic::resume_unwind(panic);
    }
}

fn own_namespaces(bpffs: &Path) {
    use std::os::unix::ffi::OsStrExt;
    let bpffs = CString::new(bpffs.as_os_str().as_bytes()).unwrap();
    // SAFETY: no pointers; only this thread moves to the new namespaces.
    let moved = unsafe { libc::unshare(libc::CLONE_NEWNET | libc::CLONE_NEWNS) };
    assert_eq!(moved, 0);
    let mount = |source: &CStr, target: &CStr, kind: &CStr, flags| {
        let (source, target) = (source.as_ptr(), target.as_ptr());
        // SAFETY: all pointers are to C strings, and no data is passed.
        unsafe { libc::mount(source, target, kind.as_ptr(), flags, std::ptr::null()) }
    };
    // Or else the mount would be seen, and stay, outside.
    let private = mount(c"none", c"/", c"none", libc::MS_REC | libc::MS_PRIVATE);
    assert_eq!(private, 0);
    assert_eq!(mount(c"bpf", &bpffs, c"bpf", 0), 0);
}

fn ip(args: &str) -> String {
    let out = Command::new("ip")
        .args(args.split_whitespace())
        .output()
        .unwrap();
    assert!(out.status.success(), "ip {args}: {out:?}");
    String::from_utf8(out.stdout).unwrap()
}

/// A pair of interfaces, `name` to be protected and `name`p to send from.
fn veth(name: &str) {
    ip(&format!("link add {name} type veth peer name {name}p"));
    for end in [name.to_owned(), format!("{name}p")] {
        ip(&format!("link set {end} addrgenmode none"));
        ip(&format!("link set {end} up"));
    }
}

/// Id of the program on the interface's hook.
fn program(name: &str) -> Option<u64> {
    let links: serde_json::Value =
        serde_json::from_str(&ip(&format!("-j link show {name}"))).unwrap();
    links[0]["xdp"]["prog"]["id"].as_u64()
}

fn index(name: &str) -> i32 {
    let c = CString::new(name).unwrap();
    // SAFETY: a valid C string.
    let index = unsafe { libc::if_nametoindex(c.as_ptr()) };
    i32::try_from(index).unwrap()
}

/// An Ethernet frame with a UDP packet.
fn frame(source: [u8; 4], destination: [u8; 4]) -> Vec<u8> {
    let mut f = vec![2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2, 8, 0];
    f.extend([0x45, 0, 0, 28, 0, 0, 0, 0, 64, 17, 0, 0]);
    f.extend(source);
    f.extend(destination);
    f.extend([0x30, 0x39, 0, 53, 0, 8, 0, 0]);
    f.resize(60, 0);
    f
}

fn land() -> Vec<u8> {
    frame([192, 0, 2, 1], [192, 0, 2, 1])
}

/// Sends a frame out of an interface.
fn send(name: &str, frame: &[u8], times: usize) {
    // SAFETY: no pointers.
    let fd = unsafe { libc::socket(libc::AF_PACKET, libc::SOCK_RAW, 0) };
    assert!(fd >= 0);
    // SAFETY: new, and nobody else has it.
    let socket = unsafe { OwnedFd::from_raw_fd(fd) };
    // SAFETY: all zeros is a valid sockaddr_ll.
    let mut to: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
    to.sll_family = libc::AF_PACKET as u16;
    to.sll_ifindex = index(name);
    for _ in 0..times {
        // SAFETY: both pointers are to live values of the given lengths.
        let sent = unsafe {
            libc::sendto(
                socket.as_raw_fd(),
                frame.as_ptr().cast(),
                frame.len(),
                0,
                (&raw const to).cast(),
                size_of::<libc::sockaddr_ll>() as u32,
            )
        };
        assert_eq!(sent, frame.len() as isize);
    }
}

fn settings(interfaces: &[&str]) -> Settings {
    Settings {
        interfaces: interfaces.iter().map(|&i| i.to_owned()).collect(),
        allow_generic: false,
        program: Program {
            config: Config {
                seed: Seed([1, 2, 3, 4]),
                tick_ns: coarse_tick_ns(),
                land: Mode::Enforce as u32,
                hosts4_buckets: 64,
                hosts4_filter_words: 1024,
                wide_buckets: 64,
                wide_filter_words: 1024,
                long_lengths: 1024,
                limiter_buckets: 64,
                ..Config::OFF
            },
            profiles: Box::new([Profile::default(); MAX_PROFILES]),
            events_buffer: 1 << 16,
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
#[expect(
    clippy::disallowed_methods,
    reason = "the pause between two looks at a condition"
)]
fn wait(what: &str, mut done: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !done() {
        assert!(Instant::now() < deadline, "in vain waited for: {what}");
        thread::sleep(Duration::from_millis(5));
    }
}

#[track_caller]
fn expect(view: &View, at: usize, reason: Reason, want: (u64, u64)) {
    wait(&format!("{want:?} of {reason:?}"), || {
        packets(view, at, reason) == want
    });
}

#[test]
fn drops_counts_and_outlives_the_daemon() {
    isolated(|pins| {
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

#[test]
fn a_failed_change_leaves_everything_as_it_was() {
    isolated(|pins| {
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
        next.program.config.seed = Seed([9, 9, 9, 9]);
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
    isolated(|pins| {
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
        assert!(
            error.contains("'b0' in `interfaces` does not exist"),
            "{error}"
        );
        assert_eq!(program("a0"), a);
        assert_ne!(a, b);
        let view = edge.view().unwrap();
        send("a0p", &land(), 2);
        expect(&view, 0, Reason::Land, (2, 0));
    });
}

#[test]
fn interfaces_go_and_come_back() {
    isolated(|pins| {
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
fn tables_of_another_seed_or_version_are_not_taken_over() {
    isolated(|pins| {
        veth("a0");
        let mut first = Datapath::open(pins).unwrap();
        commit(&mut first, settings(&["a0"]));
        let before = program("a0");
        drop(first);
        let mut edge = Datapath::open(pins).unwrap();
        let mut other = settings(&["a0"]);
        other.program.config.seed = Seed([4, 3, 2, 1]);
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
        fs::rename(pins.join("v1/links/a0"), pins.join("v0/links/a0")).unwrap();
        let mut edge = Datapath::open(pins).unwrap();
        commit(&mut edge, settings(&["a0"]));
        assert!(edge.view().unwrap().interfaces()[0].adopted);
        assert!(program("a0").is_some() && program("a0") != before);
        assert!(!pins.join("v0").exists());
    });
}

#[test]
fn generic_mode_only_when_allowed() {
    isolated(|pins| {
        ip("link set lo up");
        let mut edge = Datapath::open(pins).unwrap();
        let prepared = edge.prepare(settings(&["lo"])).unwrap();
        let error = edge.commit(prepared).unwrap_err().to_string();
        assert!(
            error.contains("lo: the driver takes no native XDP"),
            "{error}"
        );
        assert!(error.contains("allow_generic = true"), "{error}");
        assert_eq!(program("lo"), None);
        let mut allowed = settings(&["lo"]);
        allowed.allow_generic = true;
        commit(&mut edge, allowed);
        let view = edge.view().unwrap();
        assert_eq!(view.interfaces()[0].mode, Some(AttachMode::Generic));
        let refused = edge.prepare(settings(&["lo"])).unwrap_err().to_string();
        assert!(refused.contains("attached in generic mode"), "{refused}");
        drop(view);
        edge.detach().unwrap();
        assert_eq!(program("lo"), None);
    });
}

#[test]
fn obstacles_are_named() {
    isolated(|pins| {
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
    isolated(|pins| {
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
    program.config.limit_mode = [Mode::Off as u32; LIMIT_KINDS];
    let mut edge = Unattached::load(&program).unwrap();
    assert_eq!(edge.run(&land(), 1).unwrap().action, 1);
    let pass = frame([192, 0, 2, 1], [192, 0, 2, 2]);
    assert_eq!(edge.run(&pass, 3).unwrap().action, 2);
    let counters = edge.counters().unwrap();
    assert_eq!(counters.ended(Reason::Land).packets, 1);
    assert_eq!(counters.ended(Reason::Pass).packets, 3);
    edge.set_arp_bindings(&[(Ipv4Addr::LOCALHOST, [1; 6])])
        .unwrap();
    assert_eq!(edge.region(maps::HOSTS4).unwrap().bytes(), 64 * 64);
}
