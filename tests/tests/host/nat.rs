//! NAT with a client, three backends behind links of their own, and real servers on them.
//!
//! The host is no router. Backends do not have the service's addresses: all that they need is a
//! route by which their answers to the source addresses of NAT come back to this host.

use std::fs;
use std::io;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use edge_tests::daemon::Installation;
use edge_tests::lab::{Lab, Link};
use edge_tests::server::Nginx;
use edge_tests::wait;

use super::balance::{Client, PORT, Server, VIPS, backend, servers, wait_until_up};
use super::traffic::{all_at_once, download, noise};

/// Source addresses towards backends, which the host has on its loopback interface.
const SOURCES: [&str; 2] = ["10.98.0.1", "fd98::1"];
/// A port of the service where backends listen on another one, and the port of echo over UDP.
const OTHER_PORT: u16 = 8080;
const ECHO_PORT: u16 = 7;

/// How long a connection may take to a backend that may be dead.
const SHORT: Duration = Duration::from_millis(300);

fn lab() -> Lab {
    let lab = Lab::new(4);
    lab.host.ip("link set lo up");
    lab.host.ip(&format!("addr add {}/32 dev lo", SOURCES[0]));
    lab.host
        .ip(&format!("addr add {}/128 dev lo nodad", SOURCES[1]));
    for link in &lab.links {
        link.outside.ip("link set lo up");
    }
    let client = lab.link();
    for vip in VIPS {
        let via = match vip.contains(':') {
            false => client.v4(1),
            true => client.v6(1),
        };
        client.outside.ip(&format!("route add {vip} via {via}"));
    }
    for backend in backends(&lab) {
        backend
            .outside
            .ip(&format!("route add {} via {}", SOURCES[0], backend.v4(1)));
        backend
            .outside
            .ip(&format!("route add {} via {}", SOURCES[1], backend.v6(1)));
    }
    lab
}

fn backends(lab: &Lab) -> &[Link] {
    &lab.links[1..]
}

/// The interfaces that packets pass: those of backends too, where their answers come in.
const INTERFACES: [&str; 4] = ["eth0", "eth1", "eth2", "eth3"];

/// Whether backends have IPv6 addresses, the port that they listen on if it is another one than
/// the service's, and what else the service says; its health section comes last.
fn service(
    name: &str,
    (port, v6): (u16, bool),
    on: Option<u16>,
    keys: &str,
    health: &str,
) -> String {
    let backends: String = (1..4)
        .map(|n| {
            let address = match v6 {
                false => format!("10.77.{n}.2"),
                true => format!("fd77:{n}::2"),
            };
            let port = on.map_or_else(String::new, |port| format!("port = {port}\n"));
            format!("[[service.backend]]\nname = \"b{n}\"\naddress = \"{address}\"\n{port}")
        })
        .collect();
    format!(
        "[[service]]\nname = \"{name}\"\naddresses = [\"{}\", \"{}\"]\nports = [{port}]\nsyn = \"off\"\n\
         forward = \"nat\"\n{keys}\n{backends}\n{health}\n",
        VIPS[0], VIPS[1]
    )
}

const CHECKED: &str = "[service.health]\nkind = \"tcp\"\ninterval = \"200ms\"\ntimeout = \"100ms\"\n\
                       rise = 1\nfall = 2\n";

fn snat() -> String {
    format!(
        "[balance]\nsnat = [\"{}\", \"{}\"]\n",
        SOURCES[0], SOURCES[1]
    )
}

/// Ports with a flow, by `edge status --json`.
fn ports(edge: &Installation<'_>) -> u64 {
    edge.status()["balance"]["sources"][0]["ports"]
        .as_u64()
        .unwrap_or_default()
}

/// From clients of both families to backends of one, through nginx and curl.
fn downloads(v6: bool, connections: [usize; 2]) {
    let lab = lab();
    let directory = tempfile::tempdir().unwrap();
    let content = noise(100_000_000);
    fs::write(directory.path().join("large"), &content).unwrap();
    let _servers: Vec<Nginx> = backends(&lab)
        .iter()
        .map(|link| Nginx::serving(&link.outside, directory.path()))
        .collect();
    let settings = service("web", (OTHER_PORT, v6), Some(80), "", CHECKED) + &snat();
    let edge = Installation::new(&lab.host, &INTERFACES, &settings);
    let _daemon = edge.start();
    wait_until_up(&edge, &["b1", "b2", "b3"]);
    for (vip, count) in VIPS.into_iter().zip(connections) {
        download(&lab, (vip, OTHER_PORT), directory.path(), &content);
        all_at_once(&lab, (vip, OTHER_PORT), count);
    }
    wait::until("their ports are told", || {
        ports(&edge) >= connections[1] as u64
    });
    let metrics = edge.scrape();
    let name = format!("edge_nat_ports{{source=\"{},{}\"}}", SOURCES[0], SOURCES[1]);
    assert!(metrics.contains(&name), "{metrics}");
    assert!(edge.ok(&["status"]).contains("nat: 10.98.0.1,fd98::1: "));
    for name in ["b1", "b2", "b3"] {
        assert_ne!(
            backend(&edge, name, "packets"),
            "0",
            "nothing went to {name}"
        );
    }
    assert_eq!(edge.packets("nat_no_port", "ended"), 0);
}

#[test]
fn nat_leads_to_ipv4_backends() {
    downloads(false, [100, 1000]);
}

#[test]
fn nat_leads_to_ipv6_backends() {
    downloads(true, [100, 100]);
}

#[test]
fn nat_connections_live_through_every_change() {
    let lab = lab();
    let _servers = servers(&lab);
    let settings = service("web", (PORT, false), None, "", CHECKED);
    let edge = Installation::new(&lab.host, &INTERFACES, &(settings.clone() + &snat()));
    let daemon = edge.start();
    wait_until_up(&edge, &["b1", "b2", "b3"]);
    let mut clients: Vec<Client> = (0..60)
        .map(|n| Client::connect(&lab, VIPS[n % 2]).unwrap())
        .collect();
    for name in ['1', '2', '3'] {
        let n = clients.iter().filter(|c| c.backend == name).count();
        assert!(n > 5, "{n} of 60 connections reach {name}");
    }
    clients[0].carries(1_000_000).unwrap();

    // One is drained: it keeps what it has.
    edge.ok(&["backend", "drain", "b1"]);
    for n in 0..20 {
        assert_ne!(Client::connect(&lab, VIPS[n % 2]).unwrap().backend, '1');
    }
    for client in &mut clients {
        client.works().unwrap();
    }
    wait::until("its flows are counted", || {
        backend(&edge, "b1", "flows")
            .parse()
            .is_ok_and(|n: u32| n > 5)
    });
    assert_eq!(backend(&edge, "b1", "admin"), "draining");

    // The daemon dies, and another one takes over.
    daemon.kill();
    for client in &mut clients {
        client.works().unwrap();
    }
    Client::connect(&lab, VIPS[1]).unwrap().works().unwrap();
    let daemon = edge.start();
    for client in &mut clients {
        client.works().unwrap();
    }

    // Another family has its address changed: that of all these stays what it was.
    lab.host.ip("addr add fd98::2/128 dev lo nodad");
    let other = snat().replace("fd98::1", "fd98::2");
    edge.configure(&INTERFACES, &(settings.clone() + &other));
    edge.ok(&["reload"]);
    for client in &mut clients {
        client.works().unwrap();
    }
    // More of them would leave no flow where it is.
    let more = snat().replace("\"fd98::1\"", "\"fd98::1\", \"10.98.0.2\"");
    edge.configure(&INTERFACES, &(settings + &more));
    let refused = edge.outcome(&["reload"]);
    assert!(
        refused.stderr.contains("the number of balance.snat"),
        "{}",
        refused.stderr
    );
    for client in &mut clients {
        client.works().unwrap();
    }

    clients.retain(|c| c.backend != '1');
    wait::until("no flow is left", || {
        backend(&edge, "b1", "admin") == "drained"
    });
    for client in &mut clients {
        client.works().unwrap();
    }
    daemon.stop();
}

/// Connects until a backend is as told.
fn connect_until(
    lab: &Lab,
    edge: &Installation<'_>,
    what: &str,
    is: impl Fn(&str, &str) -> bool,
    name: &str,
) {
    wait::until(what, || {
        for n in 0..8 {
            let _ = Client::connect_within(lab, VIPS[n % 2], SHORT);
        }
        is(
            &backend(edge, name, "health"),
            &backend(edge, name, "error"),
        )
    });
}

#[test]
fn clients_of_nat_tell_of_dead_backends() {
    let lab = lab();
    let mut servers = servers(&lab);
    let passive = "[service.health]\npassive_syns = 3\npassive_retry = \"2s\"\n";
    let settings = service("web", (PORT, false), None, "floor = 0", passive) + &snat();
    let edge = Installation::new(&lab.host, &INTERFACES, &settings);
    let _daemon = edge.start();
    wait::until("there is a way to all", || {
        ["b1", "b2", "b3"]
            .iter()
            .all(|b| backend(&edge, b, "no_way") == "null" && backend(&edge, b, "weight") == "100")
    });
    let mut clients: Vec<Client> = (0..40)
        .map(|n| Client::connect(&lab, VIPS[n % 2]).unwrap())
        .collect();

    // One refuses connections.
    servers.remove(1).end(&lab.links[2].outside);
    connect_until(
        &lab,
        &edge,
        "who refuses is down",
        |health, error| health == "down" && error.contains("refuses connections"),
        "b2",
    );
    let metrics = edge.scrape();
    assert!(
        metrics.contains("edge_backend_up{service=\"web\",backend=\"b2\"} 0"),
        "{metrics}"
    );
    assert!(!metrics.contains("edge_backend_refusals_total{service=\"web\",backend=\"b2\"} 0\n"));
    let list = edge.ok(&["backend", "list"]);
    assert!(list.contains("refuses connections"), "{list}");
    let events = edge.ok(&["events", "-n", "1024"]);
    assert!(
        events.contains("backend b2 up -> down: it refuses connections"),
        "{events}"
    );
    let counted = "edge_backend_health_changes_total{service=\"web\",backend=\"b2\"} 1\n";
    assert!(metrics.contains(counted), "{metrics}");
    clients.retain(|c| c.backend != '2');
    for client in &mut clients {
        client.works().unwrap();
    }
    // While it is down nobody new comes to it, whatever else is tried.
    wait::until("connections avoid it", || {
        let before = backend(&edge, "b2", "syns");
        let works = (0..20).all(|n| Client::connect_within(&lab, VIPS[n % 2], SHORT).is_ok());
        let after = backend(&edge, "b2", "syns");
        works && before == after && backend(&edge, "b2", "health") == "down"
    });

    // It serves again, and is tried again.
    servers.push(Server::start(&lab.links[2].outside, '2'));
    wait::until("it is used again", || {
        (0..20).any(|n| {
            let client = Client::connect_within(&lab, VIPS[n % 2], SHORT);
            client.is_ok_and(|c| c.backend == '2')
        })
    });

    // Another one has lost its route to this host: what it answers comes to nobody.
    lab.links[3]
        .outside
        .ip(&format!("route del {}", SOURCES[0]));
    connect_until(
        &lab,
        &edge,
        "who is silent is down",
        |health, error| health == "down" && error.contains("does not answer"),
        "b3",
    );
}

/// Gives back what it gets over UDP, until it is dropped.
struct Echo {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Echo {
    /// At one address: from which of several a socket of all answers, the kernel chooses.
    fn start(link: &Link, v6: bool) -> Self {
        let at = if v6 { link.v6(2) } else { link.v4(2) };
        let bind = || UdpSocket::bind((at, ECHO_PORT)).unwrap();
        let socket = link.outside.inside(bind);
        socket
            .set_read_timeout(Some(Duration::from_millis(50)))
            .unwrap();
        let stop = Arc::new(AtomicBool::new(false));
        let told = stop.clone();
        let thread = thread::spawn(move || {
            let mut bytes = [0; 2048];
            while !told.load(Relaxed) {
                if let Ok((n, from)) = socket.recv_from(&mut bytes) {
                    let _ = socket.send_to(&bytes[..n], from);
                }
            }
        });
        Self {
            stop,
            thread: Some(thread),
        }
    }
}

impl Drop for Echo {
    fn drop(&mut self) {
        self.stop.store(true, Relaxed);
        let _ = self.thread.take().map(JoinHandle::join);
    }
}

fn datagrams(lab: &Lab, vip: &str) -> UdpSocket {
    let any: IpAddr = if vip.contains(':') {
        [0u16; 8].into()
    } else {
        [0u8; 4].into()
    };
    let at = SocketAddr::new(vip.parse().unwrap(), ECHO_PORT);
    let socket = lab.link().outside.inside(|| {
        let socket = UdpSocket::bind((any, 0)).unwrap();
        socket.connect(at).unwrap();
        socket
    });
    socket
        .set_read_timeout(Some(Duration::from_millis(200)))
        .unwrap();
    socket
}

#[test]
fn nat_translates_datagrams_errors_and_what_is_allowlisted() {
    for v6 in [false, true] {
        let lab = lab();
        let servers = servers(&lab);
        let echoes: Vec<Echo> = backends(&lab)
            .iter()
            .map(|link| Echo::start(link, v6))
            .collect();
        let udp = "protocol = \"udp\"";
        let settings = service("web", (PORT, v6), None, "", CHECKED)
            + &service("echo", (ECHO_PORT, v6), None, udp, "")
            + &snat();
        let edge = Installation::new(&lab.host, &INTERFACES, &settings);
        let _daemon = edge.start();
        wait_until_up(&edge, &["b1", "b2", "b3"]);
        for allowlisted in [false, true] {
            let before = edge.packets("forwarded", "ended");
            if allowlisted {
                edge.ok(&["allow", "add", "10.77.0.0/16", "fd77::/16"]);
            }
            for vip in VIPS {
                for _ in 0..10 {
                    Client::connect(&lab, vip).unwrap().carries(50_000).unwrap();
                    let socket = datagrams(&lab, vip);
                    wait::until("an echo", || {
                        let mut bytes = [0; 32];
                        socket.send(b"over and out").unwrap();
                        matches!(socket.recv(&mut bytes), Ok(12))
                            && bytes.starts_with(b"over and out")
                    });
                }
            }
            let now = edge.packets("forwarded", "ended");
            assert!(now > before + 1000, "{before} packets went, then {now}");
        }
        // Nobody listens any more: errors of the backend come to the client.
        drop(echoes);
        let vip = VIPS[usize::from(v6)];
        let socket = datagrams(&lab, vip);
        wait::until("an error comes back", || {
            let _ = socket.send(b"anybody?");
            let got = socket.recv(&mut [0; 32]);
            got.is_err_and(|e| e.kind() == io::ErrorKind::ConnectionRefused)
        });
        drop(servers);
    }
}

/// Backends are told what fits on the way to clients, in their own family.
#[test]
fn nat_tells_backends_of_a_narrow_way() {
    for v6 in [false, true] {
        let lab = lab();
        let client = lab.link();
        lab.host.ip("link set eth0 mtu 1300");
        client.outside.ip("link set out0 mtu 1300");
        // The client promises to take more.
        for vip in VIPS {
            let via = if vip.contains(':') {
                client.v6(1)
            } else {
                client.v4(1)
            };
            client
                .outside
                .ip(&format!("route replace {vip} via {via} advmss 1440"));
        }
        let _servers = servers(&lab);
        let snat = snat() + "mss_clamp = false\n";
        let settings = service("web", (PORT, v6), None, "", CHECKED) + &snat;
        let edge = Installation::new(&lab.host, &INTERFACES, &settings);
        let _daemon = edge.start();
        wait_until_up(&edge, &["b1", "b2", "b3"]);
        for vip in VIPS {
            for _ in 0..10 {
                Client::connect(&lab, vip)
                    .unwrap()
                    .carries(200_000)
                    .unwrap();
            }
        }
        let told = edge.packets("reply_too_big", "ended");
        assert!(told > 0, "nobody was told");
    }
}
