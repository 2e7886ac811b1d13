//! The decapsulator on a backend: tunnels come in, and the service answers directly.

use std::io::{Read as _, Write as _};
use std::net::{IpAddr, Shutdown, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

use edge_tests::daemon::Installation;
use edge_tests::decap::Decapsulator;
use edge_tests::lab::{Lab, Link};
use edge_tests::netns::Namespace;
use edge_tests::packet::ip;
use edge_tests::tunnel::{Encapsulator, Outer};
use edge_tests::wait::{self, PATIENCE};

/// The addresses of the service, on the backend's loopback interface.
const SERVICE: [&str; 2] = ["203.0.113.80", "fd80::80"];
/// A client from far away, which nobody answers.
const CLIENT: [&str; 2] = ["198.51.100.7", "fd99::7"];
const PORT: u16 = 8080;

const FROM_LINK: [&str; 4] = ["--source", "10.77.0.2", "--source", "fd77::/64"];

/// A backend with the service's addresses.
fn backend() -> Lab {
    let lab = Lab::new(1);
    lab.host.ip(&format!("addr add {}/32 dev lo", SERVICE[0]));
    lab.host
        .ip(&format!("addr add {}/128 dev lo nodad", SERVICE[1]));
    lab
}

fn start(lab: &Lab) -> Decapsulator {
    let arguments = [&["--interface", "eth0"][..], &FROM_LINK].concat();
    Decapsulator::start(&lab.host, &arguments)
}

/// A tunnel from the balancer to the backend.
fn outer(link: &Link, family: usize, gue: bool) -> Outer {
    let address = |last| [link.v4(last), link.v6(last)][family];
    Outer {
        macs: link.macs(),
        source: address(2),
        dest: address(1),
        gue,
    }
}

/// A datagram of the far client to the service, and what it says.
fn datagram(family: usize, word: u64) -> Vec<u8> {
    let mut bytes = vec![0x9c, 0x40];
    bytes.extend(PORT.to_be_bytes());
    bytes.extend(16u16.to_be_bytes());
    bytes.extend([0, 0]);
    bytes.extend(word.to_be_bytes());
    let packet = ip(CLIENT[family], SERVICE[family]).payload(17, bytes);
    packet.build().split_off(14)
}

/// A datagram with a word of its own, sent as it is or in a tunnel. Returns the word.
fn say(link: &Link, outer: Option<Outer>, family: usize) -> u64 {
    static WORDS: AtomicU64 = AtomicU64::new(1);
    let word = WORDS.fetch_add(1, Ordering::Relaxed);
    let inner = datagram(family, word);
    let frame = match outer {
        Some(outer) => outer.around(&inner),
        None => {
            let (from, to) = link.macs();
            let ether_type = [[0x08, 0x00], [0x86, 0xdd]][family];
            [&to[..], &from, &ether_type, &inner].concat()
        }
    };
    link.sender.send(&frame);
    word
}

/// Listens on the service's addresses for datagrams.
struct Ears([UdpSocket; 2]);

impl Ears {
    fn new(host: &Namespace) -> Self {
        Self(SERVICE.map(|address| {
            let socket = host.inside(|| UdpSocket::bind((address, PORT)).expect("the address"));
            let patience = Some(Duration::from_millis(20));
            socket.set_read_timeout(patience).expect("a timeout");
            socket
        }))
    }

    /// The words that came in up to now, and for a short while.
    fn heard(&self, family: usize) -> Vec<u64> {
        let mut words = Vec::new();
        let mut bytes = [0; 8];
        while let Ok((8, from)) = self.0[family].recv_from(&mut bytes) {
            let as_sent = from.ip().to_string() == CLIENT[family];
            assert!(as_sent, "from {from}");
            words.push(u64::from_be_bytes(bytes));
        }
        words
    }

    /// Datagrams arrive that come in this tunnel. Returns how many were sent.
    #[track_caller]
    fn must_hear(&self, link: &Link, outer: Outer, family: usize) -> usize {
        let mut said = Vec::new();
        wait::until(&format!("a datagram through {outer:?}"), || {
            said.push(say(link, Some(outer), family));
            self.heard(family).iter().any(|word| said.contains(word))
        });
        said.len()
    }

    /// Whether a datagram arrives that comes in this tunnel: those that are sent behind
    /// it, without a tunnel, always do.
    fn hears(&self, link: &Link, outer: Outer, family: usize) -> bool {
        let word = say(link, Some(outer), family);
        let (mut behind, mut heard) = (Vec::new(), Vec::new());
        wait::until("a datagram without a tunnel", || {
            behind.push(say(link, None, family));
            heard.extend(self.heard(family));
            behind.iter().any(|word| heard.contains(word))
        });
        heard.contains(&word)
    }
}

/// Serves echoes over UDP and TCP on the service's addresses until it is told to stop.
fn echo(host: &Namespace, stop: &AtomicBool, serving: impl FnOnce()) {
    let sockets = SERVICE.map(|address| {
        host.inside(|| {
            let udp = UdpSocket::bind((address, PORT)).expect("the address");
            let tcp = TcpListener::bind((address, PORT)).expect("the address");
            let patience = Some(Duration::from_millis(20));
            udp.set_read_timeout(patience).expect("a timeout");
            tcp.set_nonblocking(true).expect("not blocking");
            (udp, tcp)
        })
    });
    thread::scope(|scope| {
        for (udp, tcp) in &sockets {
            scope.spawn(move || {
                let mut bytes = [0; 2048];
                while !stop.load(Ordering::Relaxed) {
                    if let Ok((length, from)) = udp.recv_from(&mut bytes) {
                        let _ = udp.send_to(&bytes[..length], from);
                    }
                }
            });
            scope.spawn(move || {
                while !stop.load(Ordering::Relaxed) {
                    let Ok((mut stream, _)) = tcp.accept() else {
                        wait::pause();
                        continue;
                    };
                    let _ = stream.set_nonblocking(false);
                    let mut all = Vec::new();
                    let _ = stream.read_to_end(&mut all);
                    let _ = stream.write_all(&all);
                }
            });
        }
        // Also when a check in it fails, the servers end.
        let ended = std::panic::catch_unwind(std::panic::AssertUnwindSafe(serving));
        stop.store(true, Ordering::Relaxed);
        if let Err(panic) = ended {
            std::panic::resume_unwind(panic);
        }
    });
}

#[test]
fn real_clients_are_answered_by_the_backend_itself() {
    let lab = backend();
    let link = lab.link();
    let decap = start(&lab);
    let services = [
        (SERVICE[0].parse().unwrap(), link.v4(3)),
        (SERVICE[1].parse().unwrap(), link.v6(3)),
    ];
    let way = outer(link, 0, false);
    let balancer = Encapsulator::new(&link.outside, "out0", &services, way);
    // Full segments on the way in, which carry what was sent.
    let page: Vec<u8> = (0..200_000u32).flat_map(u32::to_be_bytes).collect();
    echo(&lab.host, &AtomicBool::new(false), || {
        for family in 0..2 {
            for gue in [false, true] {
                balancer.change(outer(link, family, gue));
                for (service, source) in services {
                    let what = format!("{source} to {service} through {family}, {gue}");
                    let to = SocketAddr::new(service, PORT);
                    // UDP.
                    let socket = (link.outside).inside(|| UdpSocket::bind((source, 0)).unwrap());
                    socket.set_read_timeout(Some(PATIENCE)).unwrap();
                    socket.send_to(what.as_bytes(), to).unwrap();
                    let mut answer = [0; 256];
                    let (length, from) = socket.recv_from(&mut answer).expect(&what);
                    assert_eq!(&answer[..length], what.as_bytes());
                    assert_eq!(from, to, "the answer is the service's own");
                    // TCP.
                    let mut stream = (link.outside)
                        .inside(|| TcpStream::connect_timeout(&to, PATIENCE).unwrap());
                    stream.set_read_timeout(Some(PATIENCE)).unwrap();
                    stream.write_all(&page).unwrap();
                    stream.shutdown(Shutdown::Write).unwrap();
                    let mut back = Vec::new();
                    stream.read_to_end(&mut back).expect(&what);
                    assert!(back == page, "{what}: {} bytes came back", back.len());
                }
            }
        }
    });
    let sent = balancer.sent();
    let packets = decap.stop(libc::SIGTERM);
    let of = |name: &str| packets[name].as_u64().unwrap();
    let taken = ["ipip", "6in4", "4in6", "ip6ip6", "gue"].map(|form| of(&format!("decap_{form}")));
    assert!(taken.iter().all(|n| *n > 100), "{packets}");
    assert!(taken.iter().sum::<u64>() <= sent, "{packets}");
    for dropped in [
        "source_not_allowed",
        "inner_truncated",
        "inner_bad_version",
        "ecn_not_capable",
    ] {
        assert_eq!(of(dropped), 0, "{packets}");
    }
}

#[test]
fn only_balancers_may_send() {
    let lab = backend();
    let link = lab.link();
    let decap = start(&lab);
    let ears = Ears::new(&lab.host);
    let mut strangers = 0;
    for gue in [false, true] {
        for (family, stranger) in [(0, link.v4(3)), (1, "fd78::2".parse().unwrap())] {
            for inner in 0..2 {
                let way = outer(link, family, gue);
                ears.must_hear(link, way, inner);
                let from = Outer {
                    source: stranger,
                    ..way
                };
                assert!(!ears.hears(link, from, inner), "from {stranger}");
                strangers += 1;
            }
        }
    }
    let packets = decap.stop(libc::SIGINT);
    assert_eq!(packets["source_not_allowed"], strangers, "{packets}");
    // Nothing takes packets in any more.
    assert!(!ears.hears(link, outer(link, 0, false), 0));
    assert!(!lab.host.ip("link show eth0").contains("xdp"));
}

#[test]
fn it_follows_addresses_and_interfaces() {
    let lab = backend();
    let link = lab.link();
    let decap = start(&lab);
    let ears = Ears::new(&lab.host);
    let way = outer(link, 0, false);
    ears.must_hear(link, way, 0);
    let other = Outer {
        dest: "10.77.0.99".parse().unwrap(),
        ..way
    };
    assert!(!ears.hears(link, other, 1), "not an address of the host");
    lab.host.ip("addr add 10.77.0.99/24 dev eth0");
    ears.must_hear(link, other, 1);
    lab.host.ip("addr del 10.77.0.99/24 dev eth0");
    wait::until("the address is given up", || !ears.hears(link, other, 0));
    ears.must_hear(link, way, 0);
    // The interface becomes part of a bridge, which has the addresses then.
    lab.host.ip("addr flush dev eth0");
    lab.host.ip("link add br0 type bridge");
    lab.host.ip("link set eth0 master br0");
    let mac = link.macs().1.map(|byte| format!("{byte:02x}")).join(":");
    lab.host.ip(&format!("link set br0 address {mac} up"));
    lab.host.ip("addr add 10.77.0.1/24 dev br0");
    ears.must_hear(link, way, 0);
    // It vanishes, and comes back.
    lab.host.ip("link del eth0");
    wait::until("it is missed", || decap.log().contains("NOT ATTACHED"));
    let link = Link::new(&lab.host, 0, 1500);
    ears.must_hear(&link, outer(&link, 1, true), 1);
    assert!(decap.log().contains("attached anew"), "{}", decap.log());
}

#[test]
fn addresses_can_be_named() {
    let lab = backend();
    let link = lab.link();
    let named = [
        "--interface",
        "eth0",
        "--local",
        "10.77.0.50",
        "--gue-port",
        "4754",
    ];
    let decap = Decapsulator::start(&lab.host, &[&named[..], &FROM_LINK].concat());
    let ready = &decap.said()[0]["ready"];
    assert_eq!(ready["local"], serde_json::json!(["10.77.0.50"]));
    assert_eq!(ready["gue_port"], 4754);
    assert_eq!(ready["interfaces"][0]["mode"], "native");
    let ears = Ears::new(&lab.host);
    let way = outer(link, 0, false);
    let named = Outer {
        dest: "10.77.0.50".parse().unwrap(),
        ..way
    };
    ears.must_hear(link, named, 0);
    assert!(!ears.hears(link, way, 0), "not named");
    let gue = Outer { gue: true, ..named };
    assert!(!ears.hears(link, gue, 0), "not the port");
    // Not asked to reload, but told that there is nothing to reload.
    decap.signal(libc::SIGHUP);
    wait::until("it says so", || decap.log().contains("nothing to reload"));
    ears.must_hear(link, named, 0);
    assert!(decap.told().contains("READY=1"));
}

#[test]
fn generic_mode_only_where_it_is_allowed() {
    let lab = backend();
    // Loopback has no native XDP.
    let arguments = ["--interface", "lo", "--source", "127.0.0.0/8"];
    let refused = Decapsulator::try_start(&lab.host, &arguments).unwrap_err();
    assert_eq!(refused.code, 1, "{refused:?}");
    assert!(refused.stderr.contains("--allow-generic"), "{refused:?}");
    let arguments = [&arguments[..], &["--allow-generic"]].concat();
    let decap = Decapsulator::start(&lab.host, &arguments);
    assert_eq!(decap.said()[0]["ready"]["interfaces"][0]["mode"], "generic");
    assert!(decap.log().contains("NO NATIVE XDP"), "{}", decap.log());
    let ears = Ears::new(&lab.host);
    let sender = edge_tests::raw::Sender::new(&lab.host, "lo");
    let address: IpAddr = "127.0.0.1".parse().unwrap();
    let way = Outer {
        macs: ([0; 6], [0; 6]),
        source: address,
        dest: address,
        gue: false,
    };
    wait::until("a datagram in generic mode", || {
        sender.send(&way.around(&datagram(0, 7)));
        let mut heard = [0; 64];
        matches!(ears.0[0].recv_from(&mut heard), Ok((8, from)) if from.ip().to_string() == CLIENT[0])
    });
}

#[test]
fn what_stands_in_the_way_is_named() {
    let lab = backend();
    let edge = Installation::new(&lab.host, &["eth0"], "");
    let daemon = edge.start();
    let arguments = [&["--interface", "eth0"][..], &FROM_LINK].concat();
    let refused = Decapsulator::try_start(&lab.host, &arguments).unwrap_err();
    assert_eq!(refused.code, 1, "{refused:?}");
    assert!(
        refused.stderr.contains("eth0") && refused.stderr.contains("edge_xdp"),
        "{refused:?}"
    );
    drop(daemon);
    let refused = Decapsulator::try_start(&lab.host, &["--interface", "eth7", "--source", "::/0"]);
    let refused = refused.unwrap_err();
    assert!(
        refused.stderr.contains("eth7") && refused.stderr.contains("eth0"),
        "{refused:?}"
    );

    let lab = Lab::new(2);
    for (interface, value) in [("all", 0), ("eth0", 1), ("eth1", 2)] {
        let key = format!("net.ipv4.conf.{interface}.rp_filter={value}");
        lab.host.run("sysctl", &["-qw", &key]);
    }
    let both = [
        "--interface",
        "eth0",
        "--interface",
        "eth1",
        "--source",
        "0.0.0.0/0",
    ];
    let decap = Decapsulator::start(&lab.host, &both);
    let log = decap.log();
    assert!(
        log.contains("sysctl -w net.ipv4.conf.eth0.rp_filter=2"),
        "{log}"
    );
    assert!(!log.contains("conf.eth1"), "{log}");
    assert!(log.contains("--source 0.0.0.0/0 lets everybody"), "{log}");
    // Killed, it leaves nothing behind.
    decap.signal(libc::SIGKILL);
    drop(decap);
    for interface in ["eth0", "eth1"] {
        wait::until("the hook is free", || {
            !lab.host
                .ip(&format!("link show {interface}"))
                .contains("xdp")
        });
    }
}

#[test]
fn metrics_tell_what_became_of_tunnels() {
    let lab = backend();
    let link = lab.link();
    let arguments = ["--interface", "eth0", "--metrics", "127.0.0.1:9101"];
    let _decap = Decapsulator::start(&lab.host, &[&arguments[..], &FROM_LINK].concat());
    let ears = Ears::new(&lab.host);
    let sent = ears.must_hear(link, outer(link, 1, false), 0);
    let scrape = || {
        let request = b"GET /metrics HTTP/1.1\r\nHost: edge\r\nConnection: close\r\n\r\n";
        let mut stream = lab
            .host
            .inside(|| TcpStream::connect("127.0.0.1:9101").unwrap());
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.write_all(request).unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        answer
    };
    let text = scrape();
    let taken = (1..=sent).any(|n| {
        text.contains(&format!(
            "edge_decap_packets_total{{reason=\"decap_4in6\"}} {n}\n"
        ))
    });
    assert!(taken, "{text}");
    assert!(
        text.contains("edge_decap_packets_total{reason=\"source_not_allowed\"} 0\n"),
        "{text}"
    );
    assert!(
        text.contains("edge_decap_interface_attached{interface=\"eth0\"} 1\n"),
        "{text}"
    );
    lab.host.ip("link del eth0");
    wait::until("it is missed", || {
        scrape().contains("edge_decap_interface_attached{interface=\"eth0\"} 0\n")
    });
}
