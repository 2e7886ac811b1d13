//! Floods of a service on this host, with real clients beside them.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

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
fn begin(link: &Link) -> TcpStream {
    let to = SocketAddr::new(link.v4(1), 80);
    let mut stream = link
        .outside
        .inside(|| TcpStream::connect_timeout(&to, wait::PATIENCE))
        .unwrap();
    stream.set_read_timeout(Some(wait::PATIENCE)).unwrap();
    stream.write_all(b"GET / HTTP/1.0\r\n").unwrap();
    stream
}

fn finish(mut stream: TcpStream) {
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
    let before = begin(link);
    let settings = "[[service]]\nname = \"web\"\nports = [80]\nsyn = \"always\"\n";
    let edge = Installation::new(&lab.host, &["eth0"], settings);
    let _daemon = edge.start();
    wait_ready(&edge, "web", 2, 2);
    let through = begin(link);
    let seen = Counter::new(&lab.host, "eth0", Which::From(SPOOFED.parse().unwrap()));
    let mut sent = 0;
    for flags in [ACK, ACK | 0x01, 0x04, SYN | ACK] {
        sent += link.sender.send_all(&spoofed(link, flags, EACH)) as u64;
    }
    wait::until("all were judged", || {
        counter(&edge, "web", "cookies_invalid") + counter(&edge, "web", "out_of_state") >= sent
    });
    assert!(sent > u64::from(EACH), "{sent}");
    assert_eq!(seen.packets(), 0);
    finish(before);
    finish(through);
    assert_eq!(edge.packets("cookie_invalid", "ended"), sent / 2);
    assert_eq!(edge.packets("tcp_out_of_state", "ended"), sent / 2);
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
        scope.spawn(|| {
            while !stop.load(Ordering::Relaxed) {
                for batch in flood.chunks(64) {
                    link.sender.send_all(batch);
                }
            }
        });
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

/// Ends the flood, however the test does.
struct Stop<'a>(&'a AtomicBool);

impl Drop for Stop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}
