//! What strangers can make the host remember is bounded, however many there are.

use std::collections::BTreeMap;
use std::fs;
use std::io::{Read as _, Write as _};
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::os::fd::{AsFd as _, AsRawFd as _};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;

use aya::maps::{HashMap, Map, MapData};
use edge_common::abi::{ABI_VERSION, LIMITER_WAYS, maps};
use edge_common::addr::Family;
use edge_common::bench::{SOURCE4_AT, SOURCE6_AT, Space};
use edge_common::defence::tags::WAYS;
use edge_common::defence::{ATTEMPTS, HANDSHAKES, SKETCH_WORDS};
use edge_tests::daemon::{Daemon, Installation};
use edge_tests::frames::{self, CLIENT_PORT, Payload};
use edge_tests::harness::{self, Harness, Sources};
use edge_tests::lab::Link;
use edge_tests::receiver::attach;
use edge_tests::server::Nginx;
use edge_tests::{test_run, wait};
use edge_userspace::memory::Region;

use crate::challenge::{get, router};
use crate::flood::{Stop, begin, finish};
use crate::services::{connect, counter, listen, wait_ready};

/// Each kind of table, small, and the whole defence on.
const SETTINGS: &str = "\
tables = { limiter_sources = 1024, service_targets = 64, verified_sources = 1024 }
limits.packets = { rate = 1000000, burst = 1000000 }
[flood]
rest = \"auto\"
[flood.icmp]
[flood.reflection]
mode = \"enforce\"
[flood.prefixes]
mode = \"enforce\"
source = { rate = 100000, burst = 100000 }
dest = { rate = 10000, burst = 10000 }
[[service]]
name = \"web\"
ports = [80, 443]
syn = \"always\"
[[service]]
name = \"trial\"
ports = [81]
dry_run = true
[[service]]
name = \"behind\"
addresses = [\"10.77.1.2\", \"fd77:1::2\"]
ports = [80]
forwarded = true
syn = \"always\"
[[service]]
name = \"game\"
ports = [27015]
protocol = \"udp\"
";

/// Packets that are to be judged.
const PACKETS: u64 = 10_000_000;

/// How often all of them are sent at most: a machine whose softirqs wait for their turn loses more than
/// half of them at the link. Sources of a later round are those of the first one.
const ROUNDS: usize = 8;

/// A flood from sources that differ, all of one family.
struct Flood {
    family: Family,
    /// Of the harness; `None`: from here.
    program: Option<&'static str>,
    frame: Vec<u8>,
    packets: u32,
}

/// SYNs, acknowledgements and UDP for everything that there is: together [`PACKETS`].
fn floods(near: &Link, far: &Link) -> Vec<Flood> {
    let mut all = Vec::new();
    for (family, syns, others, source, host, behind) in [
        (
            Family::V4,
            "flood_syn4",
            "flood4",
            near.v4(77),
            near.v4(1),
            far.v4(2),
        ),
        (
            Family::V6,
            "flood_syn6",
            "flood6",
            near.v6(77),
            near.v6(1),
            far.v6(2),
        ),
    ] {
        let macs = near.macs();
        let udp = |port| frames::frame(macs, source, host, Payload::Udp(port));
        let syn = |to, port| frames::linux_syn(macs, source, to, port);
        let ack = |port| frames::guess(macs, source, host, port);
        let mut reflected = udp(27_015);
        let (at, own) = (reflected.len() - 32, CLIENT_PORT.to_be_bytes());
        assert_eq!(reflected[at..at + 2], own, "the source port");
        reflected[at..at + 2].copy_from_slice(&53u16.to_be_bytes());
        let of_family = [
            (Some(syns), syn(host, 80), 1_200_000),
            (Some(others), ack(80), 1_000_000),
            // A dry run, so that the kernel gets it.
            (Some(syns), syn(host, 81), 100_000),
            (Some(others), ack(9), 1_100_000),
            (Some(others), udp(9), 1_000_000),
            (Some(others), reflected, 500_000),
            // The harness cannot use a frame again that a shorter one has answered.
            (None, syn(behind, 80), 100_000),
        ];
        let flood = |(program, frame, packets)| Flood {
            family,
            program,
            frame,
            packets,
        };
        all.extend(of_family.map(flood));
    }
    let packets = all.iter().map(|flood| u64::from(flood.packets));
    assert_eq!(packets.sum::<u64>(), PACKETS);
    all
}

impl Flood {
    /// Sends it from the other end of a link.
    fn send(&self, harness: &mut Harness, near: &Link) {
        let Some(program) = self.program else {
            let (at, base): (_, IpAddr) = match self.family {
                Family::V4 => (SOURCE4_AT, "11.0.0.1".parse().unwrap()),
                Family::V6 => (SOURCE6_AT, "2a00::1".parse().unwrap()),
            };
            let spoofed = |n| {
                let mut frame = self.frame.clone();
                match frames::nth(base, n) {
                    IpAddr::V4(a) => frame[at..at + 4].copy_from_slice(&a.octets()),
                    IpAddr::V6(a) => frame[at..at + 16].copy_from_slice(&a.octets()),
                }
                frame
            };
            let all: Vec<_> = (0..self.packets).map(spoofed).collect();
            near.sender.send_all(&all);
            return;
        };
        if program.starts_with("flood_syn") {
            harness.put_syn(self.family, &self.frame).unwrap();
            harness.pace(0, 0);
        }
        let program = harness.contender(program).unwrap();
        let index = near.outside.ifindex("out0");
        let run = || test_run::run_live(program.as_fd(), &self.frame, index, self.packets);
        near.outside.inside(run).unwrap();
    }
}

/// Sends floods in turn until as many packets were judged as they have together.
fn flood(harness: &mut Harness, near: &Link, far: &Link, edge: &Installation<'_>) {
    let floods = floods(near, far);
    let start = judged(edge);
    let mut family = None;
    for flood in floods.iter().cycle().take(ROUNDS * floods.len()) {
        if family != Some(flood.family) {
            harness.start_over(Sources::Fresh(match flood.family {
                Family::V4 => Space::V4,
                Family::V6 => Space::V6,
            }));
            family = Some(flood.family);
        }
        flood.send(harness, near);
        if judged(edge) - start >= PACKETS {
            return;
        }
    }
    panic!("{} were judged", judged(edge) - start);
}

/// Packets of all reasons together.
fn judged(edge: &Installation<'_>) -> u64 {
    let status = edge.status();
    let reasons = status["interfaces"][0]["reasons"].as_array().unwrap();
    let packets = |count: &serde_json::Value| count["ended"]["packets"].as_u64();
    reasons.iter().filter_map(packets).sum()
}

/// A map that the daemon has pinned.
struct Pinned {
    path: PathBuf,
    /// Entries it has room for.
    room: u32,
    /// Bytes of it in the kernel.
    memory: u64,
}

/// All of them by name: what strangers can change, and what they cannot.
fn pinned(edge: &Installation<'_>, daemon: &Daemon) -> BTreeMap<String, Pinned> {
    // The directory is in the file systems that the daemon sees.
    let bpffs = edge.bpffs().strip_prefix("/").unwrap();
    let root = PathBuf::from(format!("/proc/{}/root", daemon.pid())).join(bpffs);
    let directory = root.join(format!("v{ABI_VERSION}/maps"));
    let pin = |entry: fs::DirEntry| {
        let path = entry.path();
        let map = MapData::from_pin(&path).unwrap();
        let facts = format!("/proc/self/fdinfo/{}", map.fd().as_fd().as_raw_fd());
        let facts = fs::read_to_string(facts).unwrap();
        let memory = facts.lines().find_map(|line| line.strip_prefix("memlock:"));
        let pinned = Pinned {
            room: map.info().unwrap().max_entries(),
            memory: memory.unwrap().trim().parse().unwrap(),
            path,
        };
        (entry.file_name().into_string().unwrap(), pinned)
    };
    let entries = fs::read_dir(directory).unwrap();
    entries.map(|entry| pin(entry.unwrap())).collect()
}

impl Pinned {
    /// How many words of an array are not 0.
    fn words(&self) -> usize {
        let map = MapData::from_pin(&self.path).unwrap();
        let bytes = self.room * map.info().unwrap().value_size();
        let region = Region::map_array(map.fd().as_fd(), bytes as usize).unwrap();
        let words = region.u64s().iter();
        words.filter(|w| w.load(Ordering::Relaxed) != 0).count()
    }

    /// How many entries a hash of targets has.
    fn targets(&self) -> usize {
        let map = Map::HashMap(MapData::from_pin(&self.path).unwrap());
        let map: HashMap<MapData, [u64; 3], [u64; 2]> = map.try_into().unwrap();
        map.keys().collect::<Result<Vec<_>, _>>().unwrap().len()
    }
}

/// Bytes of the daemon that are in memory.
fn resident(daemon: &Daemon) -> u64 {
    let status = fs::read_to_string(format!("/proc/{}/status", daemon.pid())).unwrap();
    let line = status.lines().find_map(|l| l.strip_prefix("VmRSS:"));
    let kib = line.unwrap().trim().trim_end_matches(" kB");
    kib.parse::<u64>().unwrap() << 10
}

/// Both ends of a connection say something.
fn talk(ends: &[TcpStream; 2]) {
    let [a, b] = ends;
    for (mut from, mut to) in [(a, b), (b, a)] {
        from.write_all(b"hello").unwrap();
        let mut got = [0; 5];
        to.read_exact(&mut got).unwrap();
        assert_eq!(&got, b"hello");
    }
}

#[test]
fn ten_million_spoofed_packets_are_not_remembered_and_connections_live_on() {
    let mut lab = router();
    lab.links[0].free_outside();
    let [near, far] = &lab.links[..] else {
        panic!("two links")
    };
    // What comes back of the flood is dropped where that costs least.
    let mut harness = Harness::load(&harness::object(), 1, 1).unwrap();
    let sink = harness.contender("sink").unwrap();
    let index = near.outside.ifindex("out0");
    let _sink = near.outside.inside(|| attach(sink.as_fd(), index)).unwrap();
    let _nginx = (Nginx::start(&lab.host), Nginx::start(&far.outside));
    let [trial, echo] = [81, 443].map(|port| {
        let at = SocketAddr::new("0.0.0.0".parse().unwrap(), port);
        listen(&lab.host, at, None)
    });
    // Connections of before the daemon, through a cookie, and through a challenge.
    let host = SocketAddr::new(near.v4(1), 80);
    let old = begin(near, host);
    let edge = Installation::new(&lab.host, &["eth0"], SETTINGS);
    let daemon = edge.start();
    wait_ready(&edge, "web", 8, 6);
    wait_ready(&edge, "trial", 4, 2);
    let new = begin(near, host);
    let client = connect(near, SocketAddr::new(near.v4(1), 443)).unwrap();
    let ends = [client, echo.accept().unwrap().0];
    ends[1].set_read_timeout(Some(wait::PATIENCE)).unwrap();
    talk(&ends);
    let behind = [far.v4(2), far.v6(2)].map(|to| begin(near, SocketAddr::new(to, 80)));
    let verified = || counter(&edge, "behind", "verified");
    wait::until("both families are verified", || verified() == 2);

    let before = pinned(&edge, &daemon);
    let targets = before[maps::TARGETS].targets();
    let memory = resident(&daemon);
    let (stop, talks) = (AtomicBool::new(false), AtomicU64::new(0));
    let during = thread::scope(|scope| {
        scope.spawn(|| {
            while !stop.load(Ordering::Relaxed) {
                talk(&ends);
                talks.fetch_add(1, Ordering::Relaxed);
            }
        });
        let _stops = Stop(&stop);
        let before = talks.load(Ordering::Relaxed);
        flood(&mut harness, near, far, &edge);
        talks.load(Ordering::Relaxed) - before
    });
    assert!(during > 10, "{during} exchanges beside the flood");

    let after = pinned(&edge, &daemon);
    let sizes = |of: &BTreeMap<String, Pinned>| -> Vec<(String, u32, u64)> {
        let all = of.iter();
        all.map(|(name, p)| (name.clone(), p.room, p.memory))
            .collect()
    };
    assert_eq!(sizes(&after), sizes(&before));
    for (name, room) in [
        (maps::TARGETS, 64),
        (maps::VERIFIED, 1024 / WAYS as u32),
        (maps::LIMITER, 1024 / LIMITER_WAYS as u32),
        (maps::ATTEMPTS, ATTEMPTS),
        (maps::HANDSHAKES, HANDSHAKES),
        (maps::SKETCH, SKETCH_WORDS),
    ] {
        assert_eq!(after[name].room, room, "{name}");
    }
    // Only proof is remembered.
    assert_eq!((verified(), after[maps::VERIFIED].words()), (2, 2));
    assert_eq!(after[maps::TARGETS].targets(), targets);
    // The flood has been everywhere else.
    for (name, least) in [
        (maps::ATTEMPTS, ATTEMPTS / 2),
        (maps::HANDSHAKES, 1000),
        (maps::SKETCH, SKETCH_WORDS / 8),
    ] {
        let words = after[name].words();
        assert!(words >= least as usize, "{name}: {words}");
    }
    let claimed = edge.scrape();
    for series in [
        "edge_limiter_claimed_total 1024",
        "edge_table_entries{table=\"limiter_sources\"} 1024",
    ] {
        assert!(claimed.contains(series), "{series} in\n{claimed}");
    }
    let half_open = lab.host.run("ss", &["-Htan", "state", "syn-recv"]);
    assert_eq!(half_open, "", "the kernel remembers SYNs");
    let more = resident(&daemon).saturating_sub(memory);
    assert!(more < 32 << 20, "the daemon has {more} bytes more");

    // And everything goes on.
    talk(&ends);
    [old, new].into_iter().chain(behind).for_each(finish);
    for at in [near.v4(1), near.v6(1), far.v4(2), far.v6(2)] {
        assert!(
            get(near, at, wait::PATIENCE)
                .unwrap()
                .starts_with("HTTP/1.1 200"),
            "{at}"
        );
    }
    assert_eq!(verified(), 2);
    drop(trial);
}
