//! QUIC over backends that choose their connection ids: what is QUIC-shaped is answered by a
//! server that says which one it is.

use std::cell::{Cell, RefCell};
use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use edge_tests::daemon::Installation;
use edge_tests::lab::{LAST_ADDRESS, Lab};
use edge_tests::netns::Namespace;
use edge_tests::wait;

use super::balance::{VIPS, backend, lab, wait_until_up};

const PORT: u16 = 443;
/// What the servers' connection ids have in their first three bits.
const CONFIG: u8 = 2;

/// A server at all addresses of a service and one of its own. It gives back each packet behind
/// its name.
struct Server {
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
    addresses: Vec<SocketAddr>,
}

impl Server {
    fn start(namespace: &Namespace, own: IpAddr, name: char) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let vips = VIPS.map(|vip| vip.parse::<IpAddr>().unwrap());
        let addresses: Vec<SocketAddr> = { vips.into_iter().chain([own]) }
            .map(|address| (address, PORT).into())
            .collect();
        let serve = |address: &SocketAddr| {
            let socket = namespace.inside(|| UdpSocket::bind(address).unwrap());
            let told = stop.clone();
            thread::spawn(move || {
                let mut bytes = [0; 2048];
                bytes[0] = name as u8;
                while let Ok((len, client)) = socket.recv_from(&mut bytes[1..]) {
                    if told.load(Relaxed) {
                        break;
                    }
                    let _ = socket.send_to(&bytes[..=len], client);
                }
            })
        };
        Self {
            threads: addresses.iter().map(serve).collect(),
            stop,
            addresses,
        }
    }

    fn end(self, namespace: &Namespace) {
        self.stop.store(true, Relaxed);
        for address in &self.addresses {
            namespace.inside(|| {
                let socket = UdpSocket::bind((address.ip(), 0)).unwrap();
                socket.send_to(b"stop", address).unwrap();
            });
        }
        for thread in self.threads {
            thread.join().unwrap();
        }
    }
}

/// A socket of the client.
struct Client {
    socket: UdpSocket,
    vip: SocketAddr,
    sent: Cell<u32>,
}

/// The client's host. It keeps every socket open: none gets the port, and so the flow, of one
/// that was there before.
struct Clients<'a> {
    lab: &'a Lab,
    open: RefCell<Vec<UdpSocket>>,
}

impl Clients<'_> {
    /// A socket at address `last` of its link, with a port of its own.
    fn at(&self, last: u8, vip: &str) -> Client {
        let vip: IpAddr = vip.parse().unwrap();
        let link = self.lab.link();
        let own = match vip.is_ipv4() {
            true => link.v4(last),
            false => link.v6(last),
        };
        let socket = link.outside.inside(|| UdpSocket::bind((own, 0)).unwrap());
        let patience = Duration::from_millis(500);
        socket.set_read_timeout(Some(patience)).unwrap();
        self.open.borrow_mut().push(socket.try_clone().unwrap());
        Client {
            socket,
            vip: (vip, PORT).into(),
            sent: Cell::new(0),
        }
    }
}

impl Client {
    /// Sends a packet until somebody answers it, and says who.
    fn ask(&self, head: &[u8]) -> char {
        wait::until_some("a server answers", || {
            self.sent.set(self.sent.get() + 1);
            let mut packet = head.to_vec();
            packet.extend([0x77; 20]);
            packet.extend(self.sent.get().to_be_bytes());
            self.socket.send_to(&packet, self.vip).unwrap();
            let mut answer = [0; 2048];
            loop {
                let len = self.socket.recv(&mut answer).ok()?;
                // That to an earlier packet may come late.
                if answer[1..len] == packet {
                    return Some(answer[0] as char);
                }
            }
        })
    }

    /// Whom a packet of an open connection reaches.
    fn short(&self, cid: &[u8]) -> char {
        self.ask(&[&[0x40], cid].concat())
    }

    /// Whom a client's first packet reaches.
    fn initial(&self, cid: &[u8]) -> char {
        self.ask(&long(0xc0, cid))
    }

    /// Whom its last packet of a handshake reaches.
    fn handshake(&self, cid: &[u8]) -> char {
        self.ask(&long(0xe0, cid))
    }
}

/// A long header of version 1.
fn long(first: u8, cid: &[u8]) -> Vec<u8> {
    let len = u8::try_from(cid.len()).unwrap();
    [&[first, 0, 0, 0, 1, len], cid, &[4, 1, 2, 3, 4]].concat()
}

/// A connection id that the server of an id might choose.
fn cid(id: [u8; 2], nonce: u8) -> Vec<u8> {
    let nonce = [nonce, 0x5a, nonce, 0xa5, nonce];
    [&[CONFIG << 5 | 7][..], &id, &nonce].concat()
}

/// One that leads nowhere.
fn no_cid(nonce: u8) -> Vec<u8> {
    [&[0xe7][..], &[nonce; 7]].concat()
}

fn id(name: char) -> [u8; 2] {
    [0x0a, name as u8]
}

fn settings(backends: &[(char, [u8; 2])]) -> String {
    let backends: String = backends
        .iter()
        .map(|(n, [a, b])| {
            format!(
                "[[service.backend]]\nname = \"b{n}\"\naddress = \"10.77.{n}.2\"\n\
                 server_id = \"{a:02x}{b:02x}\"\n"
            )
        })
        .collect();
    format!(
        "[[service]]\nname = \"h3\"\naddresses = [\"{}\", \"{}\"]\nports = [{PORT}]\n\
         protocol = \"udp\"\nforward = \"l2\"\nhash = \"quic\"\nquic_config_id = {CONFIG}\n\
         {backends}[service.health]\nkind = \"udp\"\nsend = \"are you there?\"\n\
         interval = \"200ms\"\ntimeout = \"190ms\"\nrise = 1\nfall = 8\n",
        VIPS[0], VIPS[1]
    )
}

/// Whether the id of a backend leads to it, from every address of the client, and each time
/// from a port of its own.
fn check(clients: &Clients<'_>, name: char, id: [u8; 2]) {
    for last in 2..=LAST_ADDRESS {
        for vip in VIPS {
            let client = clients.at(last, vip);
            let own = cid(id, last);
            assert_eq!(client.handshake(&own), name, "from {last} to {vip}");
            assert_eq!(client.short(&own), name, "from {last} to {vip}");
        }
    }
}

fn figure(edge: &Installation<'_>, name: &str) -> u64 {
    let metrics = edge.scrape();
    let line = metrics.lines().find(|line| line.starts_with(name));
    let value = line.and_then(|line| line.rsplit(' ').next());
    value
        .unwrap_or_else(|| panic!("{metrics}"))
        .parse()
        .unwrap()
}

#[test]
fn connections_follow_their_ids_wherever_the_client_is() {
    let lab = lab();
    let clients = Clients {
        lab: &lab,
        open: RefCell::default(),
    };
    let mut servers: Vec<Server> = lab.links[1..]
        .iter()
        .zip(['1', '2', '3'])
        .map(|(link, name)| Server::start(&link.outside, link.v4(2), name))
        .collect();
    let all = ['1', '2', '3'].map(|name| (name, id(name)));
    let edge = Installation::new(&lab.host, &["eth0"], &settings(&all));
    let daemon = edge.start();
    wait_until_up(&edge, &["b1", "b2", "b3"]);
    for (name, id) in all {
        check(&clients, name, id);
    }

    // Connections begin anywhere, whatever the client's first id looks like, and go on there
    // when the client is somewhere else, by then also without an id.
    let mut seen = BTreeSet::new();
    for n in 0..40 {
        let vip = VIPS[usize::from(n) % 2];
        let home = clients.at(2, vip);
        let made_up = cid(id('1'), n);
        let name = home.initial(&made_up);
        seen.insert(name);
        assert_eq!(home.initial(&made_up), name);
        assert_eq!(home.handshake(&cid(id(name), n)), name);
        let away = clients.at(3 + n % 4, vip);
        assert_eq!(away.short(&cid(id(name), n + 1)), name);
        assert_eq!(away.short(&no_cid(n)), name);
        assert_eq!(home.short(&no_cid(n)), name);
    }
    assert_eq!(seen.len(), 3, "{seen:?}");
    assert!(figure(&edge, "edge_quic_routed_packets_total") >= 140);
    assert_eq!(figure(&edge, "edge_quic_unknown_id_packets_total"), 0);

    // One is drained: what has begun goes on there, and nothing begins there.
    edge.ok(&["backend", "drain", "b1"]);
    check(&clients, '1', id('1'));
    for n in 0..30 {
        let client = clients.at(2, VIPS[n % 2]);
        assert_ne!(client.initial(&cid(id('1'), 9)), '1');
    }

    // Without a daemon, and with the next one, it is all the same.
    daemon.kill();
    for (name, id) in all {
        check(&clients, name, id);
    }
    let daemon = edge.start();
    for (name, id) in all {
        check(&clients, name, id);
    }
    wait::until("it is drained still", || {
        backend(&edge, "b1", "admin") == "draining"
    });
    edge.ok(&["backend", "undrain", "b1"]);
    let list = edge.json(&["backend", "list"]);
    assert_eq!(list[0]["quic_config_id"], u64::from(CONFIG));
    assert_eq!(list[0]["backends"][2]["server_id"], "0a33");

    // A reload gives one another id, and another one goes: its connections go on.
    let some = [('1', id('1')), ('2', [0xff, 0xff])];
    edge.configure(&["eth0"], &settings(&some));
    edge.ok(&["reload"]);
    for (name, id) in some.into_iter().chain([('3', id('3'))]) {
        check(&clients, name, id);
    }
    let unknown = figure(&edge, "edge_quic_unknown_id_packets_total");
    let stray = clients.at(2, VIPS[0]).short(&cid(id('2'), 1));
    assert_ne!(stray, '3');
    assert!(figure(&edge, "edge_quic_unknown_id_packets_total") > unknown);
    // Its id is another one's by now.
    edge.configure(&["eth0"], &settings(&[('1', id('1')), ('2', id('3'))]));
    edge.ok(&["reload"]);
    check(&clients, '2', id('3'));
    edge.configure(&["eth0"], &settings(&all));
    edge.ok(&["reload"]);
    wait_until_up(&edge, &["b1", "b2", "b3"]);
    for (name, id) in all {
        check(&clients, name, id);
    }

    // One dies: its id leads to those who live.
    servers.remove(1).end(&lab.links[2].outside);
    wait::until("it is found dead, and out", || {
        backend(&edge, "b2", "health") == "down" && backend(&edge, "b2", "weight") == "0"
    });
    for vip in VIPS {
        let client = clients.at(4, vip);
        assert_ne!(client.short(&cid(id('2'), 1)), '2');
    }
    check(&clients, '1', id('1'));
    check(&clients, '3', id('3'));
    daemon.stop();
}
