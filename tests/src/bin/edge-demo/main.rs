//! Edge at work: a client, an attacker and a host with nginx, and a service over three
//! backends, HTTPS through the proxy, all in namespaces of their own.
//!
//! Started by `cargo xtask demo`, which builds what it needs. Everything vanishes with this process.

mod answers;
mod balance;
mod proxy;

use std::collections::BTreeMap;
use std::io::{Read as _, Write as _};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpStream};
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use edge_tests::daemon::Installation;
use edge_tests::frames::{self, Payload};
use edge_tests::lab::{Lab, Link};
use edge_tests::server::Nginx;
use edge_tests::wait;
use serde_json::Value;

/// How long each part is measured.
const PART: Duration = Duration::from_secs(5);

/// Packets a second of the flood, if the machine can.
const FLOOD_RATE: u64 = 300_000;

/// Sources that the attacker invents in its own network: a /18.
const SPOOFED: u32 = 1 << 14;

/// The network that the attacker takes them from.
const SPOOFED_FROM: Ipv4Addr = Ipv4Addr::new(10, 200, 0, 0);

/// Where the sources come from that cannot be senders (RFC 5737).
const BOGONS_FROM: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 0);

/// The network that the sources of the SYN flood are taken from, and how many: each so
/// seldom that no limit by source finds it.
const ANYWHERE: Ipv4Addr = Ipv4Addr::new(11, 0, 0, 0);
const ANYBODY: u32 = 1 << 17;

const SETTINGS: &str = "\
lists.management = [\"10.77.9.0/24\"]
limits.syn = { rate = 200, burst = 400 }
";

/// What is added for the defence against SYN floods.
const SERVICE: &str = "
[[service]]
name = \"web\"
ports = [80]
";

fn main() -> ExitCode {
    let directory = match tempfile::Builder::new().prefix("edge-demo").tempdir() {
        Ok(directory) => directory,
        Err(e) => {
            eprintln!("edge-demo: no temporary directory: {e}");
            return ExitCode::FAILURE;
        }
    };
    // Everything that is written goes below it, and with it, however this ends.
    if tempfile::env::override_temp_dir(directory.path()).is_err() {
        eprintln!("edge-demo: the directory for temporary files is set already");
        return ExitCode::FAILURE;
    }
    remove_on_signal(directory.path().to_owned());
    protect();
    balance::show();
    let kept = proxy::show();
    println!(
        "\nSent is what the sender's interface took; what a full receive queue lost after that is in\n\
         neither of the rows below it. All senders and servers share this machine's {} CPUs.\n\
         Nothing is left behind: namespaces, programs and files go with this process.",
        thread::available_parallelism().map_or(1, usize::from)
    );
    match kept {
        Ok(()) => ExitCode::SUCCESS,
        Err(broken) => {
            eprintln!("edge-demo: the proxy did not do what it promises: {broken}");
            ExitCode::FAILURE
        }
    }
}

/// Ctrl-C removes the files and ends the process; namespaces and children go with it.
fn remove_on_signal(directory: std::path::PathBuf) {
    // SAFETY: the set is initialised before it is used, and both pointers are to live values. Every
    // thread made from here on inherits the mask; programs that are started do not.
    let set = unsafe {
        let mut set: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&raw mut set);
        libc::sigaddset(&raw mut set, libc::SIGINT);
        libc::sigaddset(&raw mut set, libc::SIGTERM);
        libc::pthread_sigmask(libc::SIG_BLOCK, &raw const set, std::ptr::null_mut());
        set
    };
    thread::spawn(move || {
        let mut signal = 0;
        // SAFETY: both pointers are to live values.
        unsafe { libc::sigwait(&raw const set, &raw mut signal) };
        let _ = std::fs::remove_dir_all(&directory);
        eprintln!("\nstopped; nothing is left behind");
        std::process::exit(128 + signal);
    });
}

/// The firewall and the defence against SYN floods.
fn protect() {
    let lab = Lab::new(2);
    let (client, attacker) = (&lab.links[0], &lab.links[1]);
    let _nginx = Nginx::start(&lab.host);
    let edge = Installation::new(&lab.host, &["eth0", "eth1"], SETTINGS);
    let _daemon = edge.start();
    let status = edge.status();
    let mode = |n: usize| status["interfaces"][n]["mode"].as_str().unwrap_or("none");
    println!(
        "\nclient    {} ─── {} eth0 (XDP {}) ─┐\n{:53}├─ Edge ─ nginx, port 80\n\
         attacker  {} ─── {} eth1 (XDP {}) ─┘\n",
        client.v4(2),
        client.v4(1),
        mode(0),
        "",
        attacker.v4(2),
        attacker.v4(1),
        mode(1),
    );
    println!(
        "All of it in network namespaces on this machine, over virtual links (veth). The client\n\
         makes a new connection for every request. The attack is SYNs to port 80: a third from the\n\
         attacker's own address, a third from {SPOOFED} invented ones of 10.200.0.0/18, a third from\n\
         192.0.2.0/24, which cannot be a sender (bogon). Edge runs with its defaults and\n\
         `limits.syn = {{ rate = 200, burst = 400 }}` for each source.\n"
    );
    let attack = attack(attacker);
    let mut parts = Vec::new();
    parts.push(part("quiet", &lab, &edge, &[]));
    parts.push(part("attack", &lab, &edge, &attack));
    let own = attacker.v4(2).to_string();
    let command = [
        "blacklist",
        "add",
        own.as_str(),
        "10.200.0.0/18",
        "--ttl",
        "1h",
        "--note",
        "demo",
    ];
    println!("$ edge {}", command.join(" "));
    print!("{}", edge.ok(&command));
    parts.push(part("attack, blacklisted", &lab, &edge, &attack));
    print_table(&parts);
    println!(
        "\nNow a flood of SYNs from {ANYBODY} sources of 11.0.0.0/8, on no list and each below its limit:\n\
         first without a defence, then with these lines in the file and `edge reload`.\n{SERVICE}"
    );
    let syns = syn_flood(attacker);
    let mut parts = vec![part("SYN flood", &lab, &edge, &syns)];
    edge.configure(&["eth0", "eth1"], &format!("{SETTINGS}{SERVICE}"));
    edge.ok(&["reload"]);
    let ready = || edge.status()["services"][0]["targets"]["ready"] == 4;
    wait::until("the service is known", ready);
    parts.push(part("SYN flood, defended", &lab, &edge, &syns));
    let status = edge.ok(&["status"]);
    print_table(&parts);
    println!("\n$ edge status\n{status}");
}

/// What was measured in one part.
struct Part {
    name: &'static str,
    seconds: f64,
    sent: u64,
    /// Milliseconds of every request that succeeded, sorted.
    latencies: Vec<f64>,
    failed: u64,
    /// Packets of the attacker's link by reason.
    reasons: BTreeMap<String, u64>,
}

fn part(name: &'static str, lab: &Lab, edge: &Installation<'_>, attack: &[Vec<u8>]) -> Part {
    println!("measuring: {name} ({} s)", PART.as_secs());
    let (client, attacker) = (&lab.links[0], &lab.links[1]);
    let (stop, sent) = (AtomicBool::new(false), AtomicU64::new(0));
    let before = reasons(edge);
    let started = Instant::now();
    let (latencies, failed) = thread::scope(|scope| {
        if !attack.is_empty() {
            scope.spawn(|| flood(attacker, attack, &stop, &sent));
        }
        let outcome = client.outside.inside(|| requests(client.v4(1), started));
        stop.store(true, Ordering::Relaxed);
        outcome
    });
    let seconds = started.elapsed().as_secs_f64();
    let mut reasons = reasons(edge);
    for (reason, n) in &mut reasons {
        *n -= before.get(reason).copied().unwrap_or(0);
    }
    Part {
        name,
        seconds,
        sent: sent.into_inner(),
        latencies,
        failed,
        reasons,
    }
}

/// Requests one after the other; milliseconds of those that succeeded, and how many failed.
fn requests(host: IpAddr, started: Instant) -> (Vec<f64>, u64) {
    let (mut latencies, mut failed) = (Vec::new(), 0);
    while started.elapsed() < PART {
        let begun = Instant::now();
        match request(SocketAddr::new(host, 80)) {
            Ok(true) => latencies.push(begun.elapsed().as_secs_f64() * 1000.0),
            Ok(false) | Err(_) => failed += 1,
        }
        wait::pause();
    }
    latencies.sort_by(f64::total_cmp);
    (latencies, failed)
}

/// Whether a request is answered as it should be.
fn request(to: SocketAddr) -> std::io::Result<bool> {
    Ok(answer(to)?.starts_with("HTTP/1.1 200 "))
}

/// The answer to a request on a connection of its own.
fn answer(to: SocketAddr) -> std::io::Result<String> {
    const PATIENCE: Duration = Duration::from_secs(1);
    let mut stream = TcpStream::connect_timeout(&to, PATIENCE)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.write_all(b"GET / HTTP/1.1\r\nHost: edge\r\nConnection: close\r\n\r\n")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    Ok(answer)
}

/// SYNs of the attacker, of sources in its network, and of bogons.
fn attack(link: &Link) -> Vec<Vec<u8>> {
    let syn = Payload::Tcp(frames::SYN);
    let own = link.frame(link.v4(2), syn);
    let spoofed = |n| link.frame(frames::nth(SPOOFED_FROM.into(), n), syn);
    let bogon = |n| link.frame(frames::nth(BOGONS_FROM.into(), n % 256), syn);
    (0..SPOOFED)
        .flat_map(|n| [own.clone(), spoofed(n), bogon(n)])
        .collect()
}

/// SYNs of sources from anywhere.
fn syn_flood(link: &Link) -> Vec<Vec<u8>> {
    // An odd factor, so that no two are the same and neighbours are far apart.
    let source = |n: u32| frames::nth(ANYWHERE.into(), n.wrapping_mul(0x9e37_79b1) & 0xff_ffff);
    (0..ANYBODY)
        .map(|n| link.frame(source(n), Payload::Tcp(frames::SYN)))
        .collect()
}

/// Sends at [`FLOOD_RATE`], or as fast as the machine can if that is less.
fn flood(link: &Link, all: &[Vec<u8>], stop: &AtomicBool, sent: &AtomicU64) {
    let started = Instant::now();
    let mut tried = 0;
    for batch in all.chunks(64).cycle() {
        if stop.load(Ordering::Relaxed) {
            return;
        }
        sent.fetch_add(link.sender.send_all(batch) as u64, Ordering::Relaxed);
        tried += batch.len() as u64;
        let due = Duration::from_nanos(tried * 1_000_000_000 / FLOOD_RATE);
        while started.elapsed() < due && !stop.load(Ordering::Relaxed) {
            thread::yield_now();
        }
    }
}

/// Packets of the attacker's interface by reason, from `edge status --json`.
fn reasons(edge: &Installation<'_>) -> BTreeMap<String, u64> {
    let status = edge.status();
    let counts = status["interfaces"][1]["reasons"].as_array().cloned();
    let count = |c: &Value| {
        let packets = c["ended"]["packets"].as_u64().unwrap_or(0);
        (c["reason"].as_str().unwrap_or_default().to_owned(), packets)
    };
    counts.unwrap_or_default().iter().map(count).collect()
}

fn print_table(parts: &[Part]) {
    let cell = |text: String| format!("{text:>22}");
    let row = |name: &str, value: &dyn Fn(&Part) -> String| {
        let cells: String = parts.iter().map(|p| cell(value(p))).collect();
        println!("{name:<34}{cells}");
    };
    println!();
    row("", &|p| p.name.to_owned());
    println!("THE CLIENT");
    row(
        "  requests answered",
        &|p| grouped(p.latencies.len() as u64),
    );
    row("  requests failed", &|p| grouped(p.failed));
    row("  latency, median", &|p| quantile(&p.latencies, 0.5));
    row("  latency, 99th percentile", &|p| {
        quantile(&p.latencies, 0.99)
    });
    println!("THE ATTACK, PACKETS A SECOND");
    let rate = |n: u64, p: &Part| grouped((n as f64 / p.seconds) as u64);
    row("  sent", &|p| rate(p.sent, p));
    let names: std::collections::BTreeSet<&String> =
        parts.iter().flat_map(|p| p.reasons.keys()).collect();
    let (passed, dropped): (Vec<_>, Vec<_>) =
        names.into_iter().partition(|name| name.starts_with("pass"));
    let sum = |p: &Part, names: &[&String]| -> u64 {
        names.iter().filter_map(|name| p.reasons.get(*name)).sum()
    };
    row("  came through to the host", &|p| rate(sum(p, &passed), p));
    for name in &dropped {
        let done = if name.starts_with("reply") {
            "answered"
        } else {
            "dropped"
        };
        row(&format!("  {done}: {name}"), &|p| {
            rate(p.reasons.get(*name).copied().unwrap_or(0), p)
        });
    }
    row("  dropped or answered, in all", &|p| {
        let all = sum(p, &dropped);
        let share = all as f64 * 100.0 / (all + sum(p, &passed)).max(1) as f64;
        format!("{} ({share:.1} %)", rate(all, p))
    });
}

fn quantile(sorted: &[f64], q: f64) -> String {
    let at = ((sorted.len() as f64 * q) as usize).min(sorted.len().saturating_sub(1));
    sorted
        .get(at)
        .map_or("-".to_owned(), |ms| format!("{ms:.2} ms"))
}

/// A number with its thousands told apart.
fn grouped(n: u64) -> String {
    let digits = n.to_string();
    let mut out = String::new();
    for (i, digit) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            out.push(',');
        }
        out.push(digit);
    }
    out
}
