//! Listeners that are bound to an interface: the daemon cannot ask them for their window scale.

use std::net::{SocketAddr, TcpListener};

use edge_tests::daemon::Installation;
use edge_tests::lab::{Lab, Link};
use edge_tests::wait;

use crate::services::{Info, connect, counter, ends, flood, listen_with, wait_ready};

const SETTINGS: &str = "[[service]]\nname = \"web\"\nports = [80]\nsyn = \"always\"\n";

/// Clients beside a flood.
const CLIENTS: u64 = 5;

/// A listener on port 80 of an interface, with a receive buffer of its own if one is asked for.
fn listen_on(lab: &Lab, interface: &str, rcvbuf: Option<u32>) -> TcpListener {
    let any = "0.0.0.0:80".parse().unwrap();
    listen_with(&lab.host, any, |socket| {
        if let Some(bytes) = rcvbuf {
            socket.set_recv_buffer_size(bytes)?;
        }
        socket.bind_device(Some(interface.as_bytes()))
    })
}

fn web(link: &Link) -> SocketAddr {
    SocketAddr::new(link.v4(1), 80)
}

/// Clients connect while a flood comes, and their connections are what they are `without`.
fn clients_beside_a_flood(link: &Link, listener: &TcpListener, without: &(Info, Info)) {
    let mut clients = 0;
    flood(link, || {
        assert_eq!(&ends(link, listener, web(link)), without);
        clients += 1;
        clients == CLIENTS
    });
}

#[test]
fn a_listener_of_an_interface_is_defended_with_the_default_scale() {
    let lab = Lab::new(2);
    let listeners = ["eth0", "eth1"].map(|interface| listen_on(&lab, interface, None));
    let links = || lab.links.iter().zip(&listeners);
    let without: Vec<_> = links().map(|(link, l)| ends(link, l, web(link))).collect();
    let edge = Installation::new(&lab.host, &["eth0", "eth1"], SETTINGS);
    let daemon = edge.start();
    // Nobody listens for IPv6.
    wait_ready(&edge, "web", 4, 2);
    for ((link, listener), without) in links().zip(&without) {
        let valid = counter(&edge, "web", "cookies_valid");
        clients_beside_a_flood(link, listener, without);
        wait::until("they came through cookies", || {
            counter(&edge, "web", "cookies_valid") >= valid + CLIENTS
        });
    }
    let [_, other] = listeners;
    drop(other);
    let refused = connect(&lab.links[1], web(&lab.links[1])).expect_err("nobody listens");
    assert_eq!(refused.kind(), std::io::ErrorKind::ConnectionRefused);
    let log = daemon.log();
    let said = "the listener on 0.0.0.0:80 is bound to an interface and cannot be asked";
    assert!(log.contains(said), "{log}");
}

/// Both get SYNs for the same address and port, and each has to be marked.
#[test]
fn listeners_of_two_interfaces_at_one_address_both_take_cookies() {
    let lab = Lab::new(2);
    let listeners = ["eth0", "eth1"].map(|interface| listen_on(&lab, interface, None));
    let [near, far] = &lab.links[..] else {
        panic!("two links");
    };
    let address = web(near);
    let route = format!("route add {}/32 via {}", near.v4(1), far.v4(1));
    far.outside.ip(&route);
    let without = ends(far, &listeners[1], address);
    let edge = Installation::new(&lab.host, &["eth0", "eth1"], SETTINGS);
    let _daemon = edge.start();
    wait_ready(&edge, "web", 4, 2);
    let valid = counter(&edge, "web", "cookies_valid");
    let mut clients = 0;
    flood(near, || {
        assert_eq!(ends(far, &listeners[1], address), without);
        clients += 1;
        clients == CLIENTS
    });
    wait::until("they came through cookies", || {
        counter(&edge, "web", "cookies_valid") >= valid + CLIENTS
    });
}

#[test]
fn a_listener_of_an_interface_with_a_buffer_of_its_own_is_left_to_the_kernel() {
    let lab = Lab::new(1);
    let link = lab.link();
    let listener = listen_on(&lab, "eth0", Some(20_000));
    let edge = Installation::new(&lab.host, &["eth0"], SETTINGS);
    let daemon = edge.start();
    wait_ready(&edge, "web", 2, 0);
    // With the sysctls as the daemon sets them the kernel always makes cookies itself.
    let without = ends(link, &listener, web(link));
    clients_beside_a_flood(link, &listener, &without);
    assert_eq!(counter(&edge, "web", "cookies_sent"), 0);
    let log = daemon.log();
    let said = "the listener on 0.0.0.0:80 is bound to an interface and has a receive buffer of \
                its own: its window scale cannot be known, and its SYNs are left to the kernel";
    assert!(log.contains(said), "{log}");
}
