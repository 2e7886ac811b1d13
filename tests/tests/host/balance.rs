//! The balancer with a client, three backends, and real TCP between them.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, Read as _, Write as _};
use std::net::{IpAddr, Ipv6Addr, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use edge_tests::daemon::Installation;
use edge_tests::decap::Decapsulator;
use edge_tests::frames::{self, Payload};
use edge_tests::lab::Lab;
use edge_tests::netns::Namespace;
use edge_tests::raw::{Counter, Which};
use edge_tests::wait;

/// Addresses of the service.
pub(crate) const VIPS: [&str; 2] = ["10.99.0.1", "fd99::1"];
pub(crate) const PORT: u16 = 80;

/// A server of all addresses of a namespace that says which one it is, and then gives back
/// what it gets, connection by connection.
pub(crate) struct Server {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
    wakes: SocketAddr,
}

impl Server {
    pub(crate) fn start(namespace: &Namespace, name: char) -> Self {
        let listener =
            namespace.inside(|| TcpListener::bind((Ipv6Addr::UNSPECIFIED, PORT)).unwrap());
        let stop = Arc::new(AtomicBool::new(false));
        let told = stop.clone();
        let thread = thread::spawn(move || {
            let mut open = Vec::new();
            for stream in listener.incoming() {
                if told.load(Relaxed) {
                    break;
                }
                let Ok(mut stream) = stream else { continue };
                let _ = stream.set_nodelay(true);
                if let Ok(own) = stream.try_clone() {
                    open.push(own);
                }
                thread::spawn(move || {
                    let _ = stream.write_all(&[name as u8]);
                    let mut bytes = [0; 65_536];
                    while let Ok(n @ 1..) = stream.read(&mut bytes) {
                        if stream.write_all(&bytes[..n]).is_err() {
                            break;
                        }
                    }
                });
            }
            for stream in open {
                let _ = stream.shutdown(std::net::Shutdown::Both);
            }
        });
        Self {
            stop,
            thread: Some(thread),
            wakes: (Ipv6Addr::LOCALHOST, PORT).into(),
        }
    }

    /// Ends it, and all its connections.
    pub(crate) fn end(mut self, namespace: &Namespace) {
        self.stop.store(true, Relaxed);
        let _ = namespace.inside(|| TcpStream::connect(self.wakes));
        self.thread.take().unwrap().join().unwrap();
    }
}

/// The host between a client (the first link) and three backends, which have the service's
/// addresses and answer it themselves.
pub(super) fn lab() -> Lab {
    let lab = Lab::new(4);
    for key in ["ipv4.ip_forward", "ipv6.conf.all.forwarding"] {
        lab.host
            .run("sysctl", &["-q", "-w", &format!("net.{key}=1")]);
    }
    for key in ["all", "eth0", "eth1", "eth2", "eth3"] {
        let key = format!("net.ipv4.conf.{key}.rp_filter=0");
        lab.host.run("sysctl", &["-q", "-w", &key]);
    }
    for link in &lab.links {
        link.outside
            .ip(&format!("route add default via {}", link.v4(1)));
        link.outside
            .ip(&format!("-6 route add default via {}", link.v6(1)));
    }
    for backend in &lab.links[1..] {
        backend.outside.ip("link set lo up");
        backend
            .outside
            .ip(&format!("addr add {}/32 dev lo", VIPS[0]));
        backend
            .outside
            .ip(&format!("addr add {}/128 dev lo nodad", VIPS[1]));
    }
    lab
}

pub(super) fn settings(forward: &str, more: &str) -> String {
    let backends: String = (1..4)
        .map(|n| format!("[[service.backend]]\nname = \"b{n}\"\naddress = \"10.77.{n}.2\"\n"))
        .collect();
    format!(
        "[[service]]\nname = \"web\"\naddresses = [\"{}\", \"{}\"]\nports = [{PORT}]\nsyn = \"off\"\n\
         forward = \"{forward}\"\necho = true\n{more}\n{backends}\
         [service.health]\nkind = \"tcp\"\ninterval = \"200ms\"\ntimeout = \"100ms\"\nrise = 1\nfall = 2\n",
        VIPS[0], VIPS[1]
    )
}

/// A server on each backend, named by its number.
pub(super) fn servers(lab: &Lab) -> Vec<Server> {
    { lab.links[1..].iter().zip(['1', '2', '3']) }
        .map(|(link, name)| Server::start(&link.outside, name))
        .collect()
}

/// A connection of the client, and who answers it.
pub(crate) struct Client {
    stream: TcpStream,
    pub(crate) backend: char,
}

impl Client {
    pub(crate) fn connect(lab: &Lab, vip: &str) -> io::Result<Self> {
        Self::connect_within(lab, vip, wait::PATIENCE)
    }

    /// The same, with less patience for the handshake.
    pub(crate) fn connect_within(lab: &Lab, vip: &str, patience: Duration) -> io::Result<Self> {
        let vip: IpAddr = vip.parse().unwrap();
        let at = SocketAddr::new(vip, PORT);
        let mut stream = lab
            .link()
            .outside
            .inside(|| TcpStream::connect_timeout(&at, patience))?;
        stream.set_read_timeout(Some(wait::PATIENCE))?;
        stream.set_nodelay(true)?;
        let mut name = [0];
        stream.read_exact(&mut name)?;
        Ok(Self {
            stream,
            backend: name[0] as char,
        })
    }

    /// Sends so many bytes and gets them back.
    pub(crate) fn carries(&mut self, bytes: usize) -> io::Result<()> {
        let sent: Vec<u8> = (0..bytes).map(|n| (n % 251) as u8).collect();
        let mut got = vec![0; bytes];
        let mut out = self.stream.try_clone()?;
        thread::scope(|scope| {
            let sending = scope.spawn(|| out.write_all(&sent));
            self.stream.read_exact(&mut got)?;
            sending.join().unwrap()
        })?;
        assert!(got == sent);
        Ok(())
    }

    /// Sends something and gets it back.
    pub(crate) fn works(&mut self) -> io::Result<()> {
        self.stream.write_all(b"there and back")?;
        let mut bytes = [0; 14];
        self.stream.read_exact(&mut bytes)?;
        assert_eq!(&bytes, b"there and back");
        Ok(())
    }
}

/// How a backend is, by `edge status --json`.
pub(crate) fn backend(edge: &Installation<'_>, name: &str, key: &str) -> String {
    let status = edge.status();
    // Nothing is told before the first look.
    let services = status["balance"]["services"].as_array().cloned();
    let services = services.unwrap_or_default();
    let mut backends = services
        .iter()
        .flat_map(|s| s["backends"].as_array().unwrap().clone());
    let found = backends.find(|b| b["name"] == name).unwrap_or_default();
    match &found[key] {
        serde_json::Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}

pub(crate) fn wait_until_up(edge: &Installation<'_>, names: &[&str]) {
    wait::until("backends are up, and there is a way to them", || {
        names.iter().all(|name| {
            backend(edge, name, "health") == "up"
                && backend(edge, name, "no_way") == "null"
                && backend(edge, name, "weight") != "0"
        })
    });
}

#[test]
fn connections_are_spread_and_live_through_every_change() {
    let lab = lab();
    let mut servers: BTreeMap<char, Server> = BTreeMap::new();
    for (link, name) in lab.links[1..].iter().zip(['1', '2', '3']) {
        servers.insert(name, Server::start(&link.outside, name));
    }
    let edge = Installation::new(&lab.host, &["eth0"], &settings("l2", ""));
    let daemon = edge.start();
    wait_until_up(&edge, &["b1", "b2", "b3"]);

    let mut clients = Vec::new();
    for n in 0..60 {
        clients.push(Client::connect(&lab, VIPS[n % 2]).unwrap());
    }
    for name in ['1', '2', '3'] {
        let n = clients.iter().filter(|c| c.backend == name).count();
        assert!(n > 5, "{n} of 60 connections reach {name}");
    }
    // A SYN and an acknowledgement each, at the least.
    assert!(edge.packets("forwarded", "ended") >= 120);

    // One dies: the others' connections live on, and nobody new comes to it.
    servers.remove(&'2').unwrap().end(&lab.links[2].outside);
    wait::until("it is found dead", || {
        backend(&edge, "b2", "health") == "down"
    });
    wait::until("it is out", || backend(&edge, "b2", "weight") == "0");
    let events = edge.ok(&["events", "-n", "1024"]);
    let told = "service web backend b2 up -> down: ";
    assert!(events.contains(told), "{events}");
    let metrics = edge.scrape();
    let counted = "edge_backend_health_changes_total{service=\"web\",backend=\"b2\"} 2\n";
    assert!(metrics.contains(counted), "{metrics}");
    clients.retain(|c| c.backend != '2');
    for client in &mut clients {
        client.works().unwrap();
    }
    for n in 0..40 {
        let mut client = Client::connect(&lab, VIPS[n % 2]).unwrap();
        assert_ne!(client.backend, '2');
        client.works().unwrap();
        clients.push(client);
    }

    // The daemon dies, and another one takes over.
    daemon.kill();
    for client in &mut clients {
        client.works().unwrap();
    }
    let mut without = Client::connect(&lab, VIPS[0]).unwrap();
    without.works().unwrap();
    let daemon = edge.start();
    for client in &mut clients {
        client.works().unwrap();
    }
    wait_until_up(&edge, &["b1", "b3"]);
    // It comes back, and gets its share.
    servers.insert('2', Server::start(&lab.links[2].outside, '2'));
    wait_until_up(&edge, &["b2"]);
    let mut again = Vec::new();
    for n in 0..60 {
        again.push(Client::connect(&lab, VIPS[n % 2]).unwrap());
    }
    assert!(again.iter().any(|c| c.backend == '2'));
    for client in clients.iter_mut().chain(&mut again) {
        client.works().unwrap();
    }
    daemon.stop();
}

#[test]
fn operators_drain_and_weigh_backends() {
    let lab = lab();
    let _servers = servers(&lab);
    let edge = Installation::new(&lab.host, &["eth0"], &settings("l2", ""));
    let daemon = edge.start();
    wait_until_up(&edge, &["b1", "b2", "b3"]);
    let mut clients: Vec<Client> = (0..30)
        .map(|n| Client::connect(&lab, VIPS[n % 2]).unwrap())
        .collect();

    let said = edge.ok(&["backend", "drain", "web/b1"]);
    assert!(said.contains("b1: gets no new flows"), "{said}");
    for _ in 0..20 {
        assert_ne!(Client::connect(&lab, VIPS[0]).unwrap().backend, '1');
    }
    for client in &mut clients {
        client.works().unwrap();
    }
    // A restart knows it, and so it is until the last flow is gone.
    daemon.stop();
    let _daemon = edge.start();
    wait::until("it is drained still", || {
        backend(&edge, "b1", "admin") == "draining"
    });
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

    edge.ok(&["backend", "undrain", "b1"]);
    edge.ok(&["backend", "weight", "b2", "0"]);
    wait_until_up(&edge, &["b1", "b3"]);
    let seen: Vec<char> = (0..40)
        .map(|n| Client::connect(&lab, VIPS[n % 2]).unwrap().backend)
        .collect();
    assert!(seen.contains(&'1') && seen.contains(&'3') && !seen.contains(&'2'));
    edge.ok(&["backend", "weight", "b2", "configured"]);
    wait_until_up(&edge, &["b2"]);

    let list = edge.ok(&["backend", "list"]);
    for wanted in ["SERVICE", "web", "b2", "10.77.2.2", "up", "its checks pass"] {
        assert!(list.contains(wanted), "{list}");
    }
    let refused = edge.outcome(&["backend", "drain", "nobody"]);
    assert!(
        refused.stderr.contains("there is no backend nobody"),
        "{}",
        refused.stderr
    );
    let metrics = edge.scrape();
    for wanted in [
        "edge_backend_up{service=\"web\",backend=\"b1\"} 1",
        "edge_backend_weight{service=\"web\",backend=\"b2\"} 100",
        "edge_service_failed_open{service=\"web\"} 0",
    ] {
        assert!(metrics.contains(wanted), "{metrics}");
    }
}

#[test]
fn pings_of_the_service_are_answered_and_all_dead_is_open() {
    let lab = lab();
    let edge = Installation::new(&lab.host, &["eth0"], &settings("l2", ""));
    let _daemon = edge.start();
    wait::until("all are dead", || {
        ["b1", "b2", "b3"]
            .iter()
            .all(|b| backend(&edge, b, "health") == "down")
    });
    // Of none at all is known that it is better: all are used.
    wait::until("it fails open", || {
        let status = edge.status();
        status["balance"]["services"][0]["failed_open"] == true
    });
    let link = lab.link();
    for (vip, source) in VIPS.into_iter().zip([link.v4(2), link.v6(2)]) {
        let answers = Counter::new(&link.outside, "out0", Which::From(vip.parse().unwrap()));
        let ping = frames::frame(link.macs(), source, vip.parse().unwrap(), Payload::Echo);
        assert_eq!(link.sender.send_all(&[ping.clone(), ping]), 2);
        wait::until("both pings are answered", || answers.packets() == 2);
    }
    wait::until("both are counted", || {
        edge.packets("reply_echo", "ended") == 4
    });
}

/// Through each tunnel, inside and outside of either family, and as much as a page has.
#[test]
fn tunnels_lead_to_backends_without_tunnel_modules() {
    for (forward, outside) in [("ipip", 4), ("ipip", 6), ("gue", 4), ("gue", 6)] {
        let mut lab = lab();
        for link in &mut lab.links[1..] {
            link.free_outside();
        }
        let _decapsulators: Vec<_> = lab.links[1..]
            .iter()
            .map(|link| {
                for key in ["all", "out0"] {
                    let key = format!("net.ipv4.conf.{key}.rp_filter=0");
                    link.outside.run("sysctl", &["-q", "-w", &key]);
                }
                let arguments = ["--interface", "out0", "--source", "10.77.0.0/16"];
                let arguments = [&arguments[..], &["--source", "fd77::/16"]].concat();
                Decapsulator::start(&link.outside, &arguments)
            })
            .collect();
        let _servers = servers(&lab);
        let mut settings = settings(forward, "");
        if outside == 6 {
            for n in 1..4 {
                settings = settings.replace(&format!("10.77.{n}.2"), &format!("fd77:{n}::2"));
            }
        }
        let edge = Installation::new(&lab.host, &["eth0"], &settings);
        let _daemon = edge.start();
        wait_until_up(&edge, &["b1", "b2", "b3"]);
        for vip in VIPS {
            let mut seen = BTreeSet::new();
            for n in 0..30 {
                let mut client = Client::connect(&lab, vip).unwrap();
                client.works().unwrap();
                if n % 10 == 0 {
                    client.carries(1_000_000).unwrap();
                }
                seen.insert(client.backend);
            }
            assert_eq!(
                seen.len(),
                3,
                "{vip} by {forward} over IPv{outside}: {seen:?}"
            );
        }
        assert_eq!(edge.packets("forward_too_big", "ended"), 0);
    }
}

#[test]
fn flows_stay_when_the_table_of_backends_grows() {
    let lab = lab();
    let _servers = servers(&lab);
    let edge = Installation::new(&lab.host, &["eth0"], &settings("l2", ""));
    edge.start().stop();
    // Who has the numbers now is not who had them before.
    std::fs::remove_file(edge.state_dir().join("backends.json")).unwrap();
    let daemon = edge.start();
    wait_until_up(&edge, &["b1", "b2", "b3"]);
    let mut clients: Vec<Client> = (0..60)
        .map(|n| Client::connect(&lab, VIPS[n % 2]).unwrap())
        .collect();
    // No ring leads to the second one any more, only its flows do.
    clients.retain(|c| c.backend == '2');
    assert!(!clients.is_empty());
    edge.ok(&["backend", "weight", "web/b2", "0"]);

    let mut many = settings("l2", "");
    for service in 0..5 {
        many += &format!(
            "[[service]]\nname = \"s{service}\"\naddresses = [\"10.98.0.{service}\"]\n\
             ports = [{PORT}]\nsyn = \"off\"\nforward = \"l2\"\n"
        );
        for n in 0..600 {
            let (hi, lo) = (n / 256, n % 256);
            many += &format!(
                "[[service.backend]]\nname = \"n{n}\"\naddress = \"10.{service}.{hi}.{lo}\"\n"
            );
        }
    }
    for settings in [many, settings("l2", "")] {
        edge.configure(&["eth0"], &settings);
        edge.ok(&["reload"]);
        for client in &mut clients {
            client.works().unwrap();
        }
    }
    daemon.stop();
}
