//! Floods of a service on this host, with real clients beside them.

use std::io::{Read as _, Write as _};
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use edge_tests::client;
use edge_tests::daemon::Installation;
use edge_tests::frames::{self, ACK, Payload, SYN};
use edge_tests::lab::{Lab, Link};
use edge_tests::raw::{Counter, Which};
use edge_tests::server::Nginx;
use edge_tests::wait;

use crate::services::{counter, wait_ready};

/// Where spoofed sources are taken from.
const SPOOFED: &str = "11.0.0.0/8";

/// Segments from as many sources.
fn spoofed(link: &Link, flags: u8, n: u32) -> Vec<Vec<u8>> {
    (0..n)
        .map(|n| {
            let source = frames::nth("11.0.0.1".parse().unwrap(), n * 61);
            link.frame(source, Payload::Tcp(flags))
        })
        .collect()
}

/// A connection to nginx, and a request on it that is not finished.
pub(super) fn begin(link: &Link, to: SocketAddr) -> TcpStream {
    let mut stream = link
        .outside
        .inside(|| TcpStream::connect_timeout(&to, wait::PATIENCE))
        .unwrap();
    stream.set_read_timeout(Some(wait::PATIENCE)).unwrap();
    stream.write_all(b"GET / HTTP/1.0\r\n").unwrap();
    stream
}

pub(super) fn finish(mut stream: TcpStream) {
    stream.write_all(b"\r\n").unwrap();
    let mut page = String::new();
    stream.read_to_string(&mut page).unwrap();
    assert!(page.starts_with("HTTP/1.1 200"), "{page}");
}

#[test]
fn segments_of_no_connection_reach_nobody_and_connections_live_on() {
    const EACH: u32 = 50_000;
    let lab = Lab::new(1);
    let link = lab.link();
    let _nginx = Nginx::start(&lab.host);
    // One that was there before the daemon.
    let nginx = SocketAddr::new(link.v4(1), 80);
    let before = begin(link, nginx);
    let settings = "[[service]]\nname = \"web\"\nports = [80]\nsyn = \"always\"\n";
    let edge = Installation::new(&lab.host, &["eth0"], settings);
    let _daemon = edge.start();
    wait_ready(&edge, "web", 2, 2);
    let through = begin(link, nginx);
    let seen = Counter::new(&lab.host, "eth0", Which::From(SPOOFED.parse().unwrap()));
    // What the link does not take is lost of one kind more than of another.
    let send = |flags| link.sender.send_all(&spoofed(link, flags, EACH)) as u64;
    let might_be_answers = send(ACK) + send(ACK | 0x01);
    let others = send(0x04) + send(SYN | ACK);
    let sent = might_be_answers + others;
    wait::until("all were judged", || {
        counter(&edge, "web", "cookies_invalid") + counter(&edge, "web", "out_of_state") >= sent
    });
    assert!(sent > u64::from(EACH), "{sent}");
    assert_eq!(seen.packets(), 0);
    finish(before);
    finish(through);
    assert_eq!(edge.packets("cookie_invalid", "ended"), might_be_answers);
    assert_eq!(edge.packets("tcp_out_of_state", "ended"), others);
}

#[test]
fn clients_connect_beside_a_flood_and_while_the_daemon_is_dead() {
    const REQUESTS: usize = 30;
    let lab = Lab::new(1);
    let link = lab.link();
    let _nginx = Nginx::start(&lab.host);
    let settings = "[[service]]\nname = \"web\"\nports = [80]\n\
                    incomplete = { rate = 100, burst = 500 }\n";
    let edge = Installation::new(&lab.host, &["eth0"], settings);
    let daemon = edge.start();
    wait_ready(&edge, "web", 2, 2);
    let flood = spoofed(link, SYN, 10_000);
    let stop = AtomicBool::new(false);
    let get = |n: usize| {
        for source in [link.v4(2), link.v6(2)] {
            assert!(link.can_get(source, wait::PATIENCE), "{n}: {source}");
        }
    };
    thread::scope(|scope| {
        scope.spawn(|| flood_until(&stop, link, &flood));
        // Also when a client of these fails: the flood ends with the scope.
        let stops = Stop(&stop);
        wait::until("an attack is seen", || {
            counter(&edge, "web", "cookies_sent") > 10_000
        });
        (0..REQUESTS).for_each(get);
        daemon.kill();
        (0..REQUESTS).for_each(get);
        let daemon = edge.start();
        (0..REQUESTS).for_each(get);
        wait::until("clients got through", || {
            counter(&edge, "web", "cookies_valid") >= 3 * 2 * REQUESTS as u64
        });
        drop(stops);
        drop(daemon);
    });
}

/// Gets a page once from each of so many addresses of either family, some at a time; with each
/// goes a part of the flood. Returns how much of that the interface took.
fn get_from_all(link: &Link, each: u32, flood: &[Vec<u8>]) -> u64 {
    const AT_ONCE: usize = 128;
    let networks: [(IpAddr, IpAddr); 2] = [
        ("10.200.0.1".parse().unwrap(), link.v4(1)),
        ("fd88::1".parse().unwrap(), link.v6(1)),
    ];
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    let turn = Arc::new(tokio::sync::Semaphore::new(AT_ONCE));
    let mut flood = flood.chunks(FLOOD_EACH).cycle();
    let mut sent = 0;
    runtime.block_on(async {
        let mut clients = tokio::task::JoinSet::new();
        for n in 0..each {
            for (base, host) in networks {
                let from = frames::nth(base, n);
                let turn = turn.clone().acquire_owned().await.unwrap();
                sent += link.sender.send_all(flood.next().unwrap()) as u64;
                clients.spawn(async move {
                    let got = client::get(Some(from), SocketAddr::new(host, 80));
                    let got = tokio::time::timeout(wait::PATIENCE, got).await;
                    drop(turn);
                    assert!(matches!(got, Ok(Ok(true))), "{from}: {got:?}");
                });
                while let Some(done) = clients.try_join_next() {
                    done.unwrap();
                }
            }
        }
        clients.join_all().await;
    });
    sent
}

/// Spoofed SYNs for each client.
const FLOOD_EACH: usize = 20;

#[test]
fn a_hundred_thousand_sources_connect_beside_a_flood() {
    const EACH: u32 = 50_000;
    let lab = Lab::new(1);
    let link = lab.link();
    // Addresses of the client's own, by a route instead of one by one.
    for (network, family, gateway) in [
        ("10.200.0.0/16", "-4", link.v4(2)),
        ("fd88::/64", "-6", link.v6(2)),
    ] {
        let outside = format!("{family} route add local {network} dev lo");
        link.outside.ip(&outside);
        let host = format!("{family} route add {network} via {gateway}");
        lab.host.ip(&host);
    }
    let nonlocal = "net.ipv6.ip_nonlocal_bind=1";
    link.outside.run("sysctl", &["-q", "-w", nonlocal]);
    let _nginx = Nginx::start(&lab.host);
    let settings = "[[service]]\nname = \"web\"\nports = [80]\nsyn = \"always\"\n";
    let edge = Installation::new(&lab.host, &["eth0"], settings);
    let _daemon = edge.start();
    wait_ready(&edge, "web", 2, 2);
    let flood = spoofed(link, SYN, 500 * FLOOD_EACH as u32);
    let seen = Counter::new(&lab.host, "eth0", Which::From(SPOOFED.parse().unwrap()));
    let sent = link.outside.inside(|| get_from_all(link, EACH, &flood));
    let clients = u64::from(2 * EACH);
    wait::until("all came through cookies", || {
        counter(&edge, "web", "cookies_valid") >= clients
    });
    assert!(sent > 10 * clients, "{sent} are no flood");
    // The status is read a few times a second only.
    wait::until("a cookie for each SYN", || {
        counter(&edge, "web", "cookies_sent") >= sent + clients
    });
    assert_eq!(seen.packets(), 0);
}

/// Sends frames over and over; returns how many the interface took.
fn flood_until(stop: &AtomicBool, link: &Link, frames: &[Vec<u8>]) -> u64 {
    let mut sent = 0;
    while !stop.load(Ordering::Relaxed) {
        for batch in frames.chunks(64) {
            sent += link.sender.send_all(batch) as u64;
        }
    }
    sent
}

/// Ends the flood, however the test does.
pub(super) struct Stop<'a>(pub(super) &'a AtomicBool);

impl Drop for Stop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}
