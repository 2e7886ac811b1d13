//! Services behind the host: clients with real stacks, which answer the challenge and then reach a
//! real server.

use std::io::{self, Read as _, Write as _};
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::time::Duration;

use edge_tests::daemon::Installation;
use edge_tests::frames::{self, Payload};
use edge_tests::lab::{Lab, Link};
use edge_tests::raw::{Counter, Which};
use edge_tests::server::Nginx;
use edge_tests::wait;

use crate::services::counter;

/// The service stands behind the second link; Edge sees the first one only.
const SETTINGS: &str = "[[service]]\nname = \"web\"\naddresses = [\"10.77.1.2\", \"fd77:1::2\"]\n\
                        ports = [80]\nforwarded = true\nsyn = \"always\"\n";

/// A host that forwards between its two links.
pub(super) fn router() -> Lab {
    let lab = Lab::new(2);
    for key in ["ipv4.ip_forward", "ipv6.conf.all.forwarding"] {
        lab.host
            .run("sysctl", &["-q", "-w", &format!("net.{key}=1")]);
    }
    for link in &lab.links {
        link.outside
            .ip(&format!("route add default via {}", link.v4(1)));
        link.outside
            .ip(&format!("-6 route add default via {}", link.v6(1)));
    }
    lab
}

/// Gets a page of the server behind, once.
pub(super) fn get(client: &Link, server: IpAddr, patience: Duration) -> io::Result<String> {
    let at = SocketAddr::new(server, 80);
    let mut stream = client
        .outside
        .inside(|| TcpStream::connect_timeout(&at, patience))?;
    stream.set_read_timeout(Some(patience))?;
    stream.write_all(b"GET / HTTP/1.0\r\n\r\n")?;
    let mut page = String::new();
    stream.read_to_string(&mut page)?;
    Ok(page)
}

#[test]
fn a_client_answers_the_challenge_and_is_known_from_then_on() {
    let lab = router();
    let [near, far] = &lab.links[..] else {
        panic!("two links")
    };
    let _nginx = Nginx::start(&far.outside);
    let edge = Installation::new(&lab.host, &["eth0"], SETTINGS);
    let _daemon = edge.start();
    for (n, server) in [far.v4(2), far.v6(2)].into_iter().enumerate() {
        let known = counter(&edge, "web", "known_syns");
        for _ in 0..3 {
            let page = get(near, server, wait::PATIENCE).unwrap();
            assert!(page.starts_with("HTTP/1.1 200"), "{server}: {page}");
        }
        wait::until("the client is known", || {
            counter(&edge, "web", "known_syns") >= known + 3
        });
        assert_eq!(counter(&edge, "web", "verified"), n as u64 + 1);
        assert_eq!(counter(&edge, "web", "challenges"), n as u64 + 1);
    }
    assert_eq!(edge.packets("challenge_answered", "ended"), 2);
    // Both families of the client, in the table that is told of.
    wait::until("the verified sources are counted", || {
        let metrics = edge.scrape();
        metrics.contains("edge_table_entries{table=\"verified_sources\"} 2\n")
            && metrics.contains("edge_table_capacity_entries{table=\"verified_sources\"} 65536\n")
    });
}

#[test]
fn a_client_whose_resets_are_swallowed_is_not_locked_out() {
    let lab = router();
    let [near, far] = &lab.links[..] else {
        panic!("two links")
    };
    let _nginx = Nginx::start(&far.outside);
    let edge = Installation::new(&lab.host, &["eth0"], SETTINGS);
    let _daemon = edge.start();
    near.outside.run(
        "nft",
        &[
            "add table inet f; add chain inet f out { type filter hook output priority 0; }; \
           add rule inet f out tcp flags & rst == rst drop",
        ],
    );
    for server in [far.v4(2), far.v6(2)] {
        // The connection that verifies the source is reset; the next one is the server's.
        let mut failures = 0;
        let page = loop {
            match get(near, server, wait::PATIENCE) {
                Ok(page) => break page,
                Err(_) if failures < 3 => failures += 1,
                Err(e) => panic!("{server}: {e} after {failures} failures"),
            }
        };
        assert!(page.starts_with("HTTP/1.1 200"), "{server}: {page}");
        assert_eq!(failures, 1, "{server}");
    }
    assert_eq!(edge.packets("reply_reset", "ended"), 2);
    wait::until("both were verified", || {
        counter(&edge, "web", "verified") == 2
    });
}

#[test]
fn spoofed_sources_do_not_reach_the_server() {
    let lab = router();
    let [near, far] = &lab.links[..] else {
        panic!("two links")
    };
    let _nginx = Nginx::start(&far.outside);
    let edge = Installation::new(&lab.host, &["eth0"], SETTINGS);
    let _daemon = edge.start();
    let seen = Counter::new(
        &far.outside,
        "out0",
        Which::From("11.0.0.0/8".parse().unwrap()),
    );
    let spoofed: Vec<_> = (0..20_000)
        .map(|n| {
            let source = frames::nth("11.0.0.1".parse().unwrap(), n);
            frames::frame(near.macs(), source, far.v4(2), Payload::Tcp(frames::SYN))
        })
        .collect();
    // A busy machine's link does not take all of them.
    let taken = near.sender.send_all(&spoofed) as u64;
    assert!(taken > 5000, "{taken}");
    wait::until("all were challenged", || {
        counter(&edge, "web", "challenges") >= taken
    });
    // Where so many others are remembered, the first connection may be the one that verifies the
    // client and is reset.
    let page = get(near, far.v4(2), wait::PATIENCE)
        .or_else(|_| get(near, far.v4(2), wait::PATIENCE))
        .unwrap();
    assert!(page.starts_with("HTTP/1.1 200"), "{page}");
    assert_eq!(seen.packets(), 0);
    wait::until("the client alone was verified", || {
        counter(&edge, "web", "verified") == 1
    });
}
