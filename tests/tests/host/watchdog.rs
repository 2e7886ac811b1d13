//! What a service manager hears that restarts a daemon which gives no sign of life.

use std::fmt::Write as _;
use std::fs;
use std::time::{Duration, Instant};

use edge_tests::daemon::{Daemon, Installation};
use edge_tests::lab::Lab;
use edge_tests::wait;

/// How long the service manager waits for a sign. It gets four in that time.
pub(crate) const WATCHDOG: Duration = Duration::from_millis(400);

#[test]
fn long_changes_do_not_look_like_death() {
    const ENTRIES: u32 = 1_000_000;
    let lab = Lab::new(1);
    let room = |entries: u32| format!("tables.hosts_v4 = {entries}\n");
    let edge = Installation::new(&lab.host, &["eth0"], &room(ENTRIES));
    let unwatched = edge.start();
    assert_eq!(edge.status()["config"]["generation"], 1);
    assert_eq!(unwatched.signs_of_life(), 0, "nobody asked for any");
    unwatched.stop();

    let daemon = edge.start_watched(WATCHDOG);
    wait::until("signs of life at rest", || daemon.signs_of_life() > 3);
    let mut feed = String::new();
    for n in 0..ENTRIES {
        let _ = writeln!(feed, "{}", std::net::Ipv4Addr::from_bits(0x0a64_0000 + n));
    }
    let path = edge.file("feed.txt");
    fs::write(&path, feed).unwrap();
    let path = path.display().to_string();
    edge.configure(&["eth0"], &room(ENTRIES + 5000));
    // Each of these keeps the engine busy for seconds.
    let signs_while = |arguments: &[&str]| {
        let before = daemon.signs_of_life();
        edge.ok(arguments);
        daemon.signs_of_life() - before
    };
    let import = ["blacklist", "import", &path, "--feed", "large", "--replace"];
    for (what, signs, least) in [
        ("import", signs_while(&import), 5),
        ("the same again", signs_while(&import), 5),
        ("reload", signs_while(&["reload"]), 3),
        ("flush", signs_while(&["blacklist", "flush", "--yes"]), 5),
    ] {
        println!("{signs} signs of life: {what}");
        assert!(signs >= least, "{signs} signs of life: {what}");
    }
}

/// A thread of the daemon that is held for as long as this lives.
pub(crate) struct Held(i32);

impl Held {
    pub(crate) fn new(daemon: &Daemon, name: &str) -> Self {
        let tasks = fs::read_dir(format!("/proc/{}/task", daemon.pid())).unwrap();
        let found = tasks.map(|task| task.unwrap().path()).find(|task| {
            let comm = fs::read_to_string(task.join("comm")).unwrap_or_default();
            comm.trim() == name
        });
        let found = found.unwrap_or_else(|| panic!("no thread {name}"));
        let thread: i32 = found
            .file_name()
            .unwrap()
            .to_str()
            .unwrap()
            .parse()
            .unwrap();
        for request in [libc::PTRACE_SEIZE, libc::PTRACE_INTERRUPT] {
            // SAFETY: both requests ignore address and data when these are 0, and touch no memory
            // of this process.
            assert_eq!(unsafe { libc::ptrace(request, thread, 0, 0) }, 0);
        }
        let mut status = 0;
        // SAFETY: `status` is writable and outlives the call.
        let waited = unsafe { libc::waitpid(thread, &raw mut status, libc::__WALL) };
        assert!(waited == thread && libc::WIFSTOPPED(status), "{status}");
        Self(thread)
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        // SAFETY: as above; the thread is stopped by this very thread.
        unsafe { libc::ptrace(libc::PTRACE_DETACH, self.0, 0, 0) };
    }
}

#[test]
fn an_engine_that_hangs_is_not_covered_up() {
    let lab = Lab::new(1);
    let edge = Installation::new(&lab.host, &["eth0"], "");
    let daemon = edge.start_watched(WATCHDOG);
    wait::until("signs of life", || daemon.signs_of_life() > 2);
    let held = Held::new(&daemon, "engine");
    // The rest of the daemon goes on, and says nothing for longer than a manager waits.
    let mut last = (daemon.signs_of_life(), Instant::now());
    wait::until("no more signs of life", || {
        let signs = daemon.signs_of_life();
        if signs != last.0 {
            last = (signs, Instant::now());
        }
        last.1.elapsed() > WATCHDOG
    });
    assert!(edge.scrape().contains("edge_uptime_seconds"));
    drop(held);
    wait::until("signs of life again", || daemon.signs_of_life() > last.0);
    daemon.stop();
}
