//! Health checks that go as packets of clients do: through the tunnel, to the service's
//! address.

use std::net::{SocketAddr, TcpStream, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use edge_tests::daemon::Installation;
use edge_tests::decap::Decapsulator;
use edge_tests::lab::{Lab, Link};
use edge_tests::netns::Namespace;
use edge_tests::raw::{Counter, Which};
use edge_tests::server::Nginx;
use edge_tests::wait;

use super::balance::{self, PORT, VIPS, backend, servers, settings, wait_until_up};

const NAMES: [&str; 3] = ["b1", "b2", "b3"];

/// The lab of the balancer, whose backends may run decapsulators.
fn lab() -> Lab {
    let mut lab = balance::lab();
    for link in &mut lab.links[1..] {
        link.free_outside();
        for key in ["all", "out0"] {
            let key = format!("net.ipv4.conf.{key}.rp_filter=0");
            link.outside.run("sysctl", &["-q", "-w", &key]);
        }
    }
    lab
}

fn decapsulator(link: &Link) -> Decapsulator {
    let arguments = ["--interface", "out0", "--source", "10.77.0.0/16"];
    let arguments = [&arguments[..], &["--source", "fd77::/16"]].concat();
    Decapsulator::start(&link.outside, &arguments)
}

fn decapsulators(lab: &Lab) -> Vec<Decapsulator> {
    lab.links[1..].iter().map(decapsulator).collect()
}

/// The service with one address only.
fn at(vip: &str, forward: &str) -> String {
    let both = format!("[\"{}\", \"{}\"]", VIPS[0], VIPS[1]);
    settings(forward, "").replace(&both, &format!("[\"{vip}\"]"))
}

fn direct(settings: &str) -> String {
    settings.replace("kind = \"tcp\"\n", "kind = \"tcp\"\nthrough = \"direct\"\n")
}

/// Rules, routes and the interface of checks, as `ip` shows them.
fn traces(host: &Namespace) -> Vec<String> {
    let mut all = String::new();
    for family in ["-4", "-6"] {
        all += &host.ip(&format!("{family} rule show"));
        let routes = ["route", "show", "table", "60782"];
        let routes = host.output("ip", &[&[family], &routes[..]].concat());
        all += &String::from_utf8(routes.stdout).unwrap();
    }
    all += &host.ip("-o link show");
    let is_one = |line: &&str| {
        ["0xed", "edge-health", "unreachable"]
            .iter()
            .any(|word| line.contains(word))
    };
    all.lines().filter(is_one).map(str::to_owned).collect()
}

/// Both families have a rule, two routes, and there is one interface.
const COMPLETE: usize = 7;

/// How often the health of a backend changed.
fn changes(edge: &Installation<'_>, name: &str) -> String {
    backend(edge, name, "health_changes")
}

#[test]
fn who_takes_nothing_out_of_tunnels_is_down_though_it_answers() {
    for (forward, vip) in [
        ("ipip", VIPS[0]),
        ("ipip", VIPS[1]),
        ("gue", VIPS[0]),
        ("gue", VIPS[1]),
    ] {
        let lab = lab();
        let _servers = servers(&lab);
        let mut decapsulators = decapsulators(&lab);
        let mut settings = at(vip, forward);
        // The outer packet is of the other family.
        if vip == VIPS[0] {
            settings = settings.replace("10.77.2.2", "fd77:2::2");
        }
        let edge = Installation::new(&lab.host, &["eth0"], &settings);
        let _daemon = edge.start();
        wait_until_up(&edge, &NAMES);
        let told = edge.ok(&["backend", "list"]);
        assert!(
            told.contains("its checks pass, through the tunnel"),
            "{told}"
        );
        assert_eq!(backend(&edge, "b2", "health_through"), "tunnel");

        let link = &lab.links[2];
        decapsulators.remove(1).stop(libc::SIGTERM);
        wait::until("it is down", || backend(&edge, "b2", "health") == "down");
        let why = backend(&edge, "b2", "error");
        let asked = SocketAddr::new(vip.parse().unwrap(), PORT);
        let want = format!("{asked} through the tunnel: connect: no answer within 100ms");
        assert_eq!(why, want, "{vip} by {forward}");
        let own = SocketAddr::new(link.v4(2), PORT);
        lab.host.inside(|| TcpStream::connect(own)).unwrap();
        assert_eq!(backend(&edge, "b1", "health"), "up");

        decapsulators.insert(1, decapsulator(link));
        wait_until_up(&edge, &["b2"]);

        // The service's address is another thing that a backend must have.
        let length = if vip.contains(':') { 128 } else { 32 };
        link.outside.ip(&format!("addr del {vip}/{length} dev lo"));
        wait::until("it is down", || backend(&edge, "b2", "health") == "down");
        let nodad = if length == 128 { "nodad" } else { "" };
        link.outside
            .ip(&format!("addr add {vip}/{length} dev lo {nodad}"));
        wait_until_up(&edge, &["b2"]);

        // Asked directly, all of that goes unseen.
        edge.configure(&["eth0"], &direct(&settings));
        edge.ok(&["reload"]);
        wait::until("nothing of the tunnels is left", || {
            traces(&lab.host).is_empty()
        });
        wait_until_up(&edge, &NAMES);
        let before = changes(&edge, "b2");
        decapsulators.remove(1).stop(libc::SIGTERM);
        let host = [link.v4(1), link.v6(1)].map(|a| a.to_string());
        let counters = host.map(|host| {
            let from = format!("{host}/{}", if host.contains(':') { 128 } else { 32 });
            Counter::new(&link.outside, "out0", Which::From(from.parse().unwrap()))
        });
        wait::until("it is asked again and again", || {
            counters.iter().map(Counter::packets).sum::<u64>() > 20
        });
        assert_eq!(changes(&edge, "b2"), before);
        assert_eq!(backend(&edge, "b2", "health"), "up");
        assert_eq!(backend(&edge, "b2", "health_through"), "direct");
    }
}

#[test]
fn nothing_is_left_and_what_a_crash_leaves_is_taken_over() {
    let lab = lab();
    let _servers = servers(&lab);
    let _decapsulators = decapsulators(&lab);
    let own = settings("ipip", "");
    let edge = Installation::new(&lab.host, &["eth0"], &own);
    let none = Vec::<String>::new();
    let daemon = edge.start();
    wait_until_up(&edge, &NAMES);
    assert_eq!(traces(&lab.host).len(), COMPLETE, "{:?}", traces(&lab.host));
    daemon.kill();
    wait::until("the interface is gone", || {
        !traces(&lab.host).concat().contains("edge-health")
    });
    assert_ne!(traces(&lab.host), none);
    let daemon = edge.start();
    wait_until_up(&edge, &NAMES);
    assert_eq!(traces(&lab.host).len(), COMPLETE, "{:?}", traces(&lab.host));

    // A reload takes away what is no longer needed, and brings it again.
    for (settings, lines) in [(direct(&own), 0), (own.clone(), COMPLETE)] {
        edge.configure(&["eth0"], &settings);
        edge.ok(&["reload"]);
        wait::until("it is as the file says", || {
            traces(&lab.host).len() == lines
        });
        wait_until_up(&edge, &NAMES);
    }
    // Only one family is asked.
    edge.configure(&["eth0"], &at(VIPS[1], "gue"));
    edge.ok(&["reload"]);
    wait_until_up(&edge, &NAMES);
    assert_eq!(traces(&lab.host).len(), 4, "{:?}", traces(&lab.host));
    daemon.stop();
    assert_eq!(traces(&lab.host), none);

    // What a crash leaves goes also when nothing needs it any more.
    let daemon = edge.start();
    daemon.kill();
    edge.configure(&["eth0"], &direct(&own));
    let _daemon = edge.start();
    assert_eq!(traces(&lab.host), none);
}

#[test]
fn what_is_in_the_way_is_told_and_nothing_is_done_halfway() {
    let lab = lab();
    let _servers = servers(&lab);
    let _decapsulators = decapsulators(&lab);
    let own = settings("gue", "");
    let edge = Installation::new(&lab.host, &["eth0"], &own);
    let rule = "rule add priority 100 lookup main";
    let refused = [
        (
            format!("addr add {}/32 dev lo", VIPS[0]),
            "10.99.0.1 is an address of this host, which would answer the check itself",
        ),
        (
            "tuntap add edge-health mode tun".to_owned(),
            "there is one already, of another daemon or none of Edge's",
        ),
        (
            rule.to_owned(),
            "packets for 10.99.0.1 with the mark 0xed do not leave by edge-health: a rule or a \
             route that is none of Edge's comes before its own",
        ),
    ];
    lab.host
        .ip(&format!("route add default via {}", lab.link().v4(2)));
    let daemon = {
        edge.configure(&["eth0"], &direct(&own));
        edge.start()
    };
    wait_until_up(&edge, &NAMES);
    for (command, why) in &refused {
        lab.host.ip(command);
        let before = traces(&lab.host);
        edge.configure(&["eth0"], &own);
        let outcome = edge.outcome(&["reload"]);
        assert!(outcome.stderr.contains(why), "{}", outcome.stderr);
        let remedy = "set through = \"direct\" in [service.health]";
        assert!(outcome.stderr.contains(remedy), "{}", outcome.stderr);
        assert_eq!(traces(&lab.host), before);
        wait_until_up(&edge, &NAMES);
        lab.host.ip(&command.replacen(" add ", " del ", 1));
    }
    daemon.stop();
    lab.host.ip(&refused[0].0);
    let outcome = edge.try_start().expect_err("it does not start");
    assert!(outcome.stderr.contains(refused[0].1), "{}", outcome.stderr);
    assert_eq!(traces(&lab.host), Vec::<String>::new());
}

/// Others may take rules away, such as a network manager that is restarted.
#[test]
fn checks_that_cannot_be_made_change_nothing_and_come_back() {
    let lab = lab();
    let _servers = servers(&lab);
    let _decapsulators = decapsulators(&lab);
    let edge = Installation::new(&lab.host, &["eth0"], &settings("ipip", ""));
    let daemon = edge.start();
    wait_until_up(&edge, &NAMES);
    let before = changes(&edge, "b1");
    for family in ["-4", "-6"] {
        lab.host.ip(&format!("{family} rule del priority 900"));
    }
    wait::until("the rules are back", || traces(&lab.host).len() == COMPLETE);
    // The interface itself only comes back with a reload.
    lab.host.ip("link del edge-health");
    wait::until("it is told", || {
        daemon.log().contains("`edge reload` makes it anew")
    });
    assert_eq!(changes(&edge, "b1"), before);
    edge.ok(&["reload"]);
    wait::until("all is there", || traces(&lab.host).len() == COMPLETE);
    let link = &lab.links[1];
    let counter = Counter::new(
        &link.outside,
        "out0",
        Which::From(format!("{}/32", lab.link().v4(1)).parse().unwrap()),
    );
    wait::until("it is asked again", || counter.packets() > 10);
    assert_eq!(changes(&edge, "b1"), before);
    daemon.stop();
    assert_eq!(traces(&lab.host), Vec::<String>::new());
}

/// A check leaves no connection behind at the backend, though it ends with a reset.
#[test]
fn backends_keep_no_connections_of_checks() {
    let lab = lab();
    let _servers = servers(&lab);
    let _decapsulators = decapsulators(&lab);
    let edge = Installation::new(&lab.host, &["eth0"], &settings("gue", ""));
    let _daemon = edge.start();
    wait_until_up(&edge, &NAMES);
    let link = &lab.links[1];
    let counter = Counter::new(
        &link.outside,
        "out0",
        Which::From(format!("{}/32", lab.link().v4(1)).parse().unwrap()),
    );
    // A SYN, an acknowledgement and a reset each.
    wait::until("it was asked often", || counter.packets() > 60);
    let open = ["-Htn", "state", "established", "sport", "=", ":80"];
    let open = link.outside.run("ss", &open);
    assert!(open.lines().count() <= 4, "{open}");
}

/// Gives back what it gets at one address.
struct Echo {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Echo {
    fn start(namespace: &Namespace, at: &str) -> Self {
        let at = SocketAddr::new(at.parse().unwrap(), PORT);
        let socket = namespace.inside(|| UdpSocket::bind(at).unwrap());
        let often = Duration::from_millis(50);
        socket.set_read_timeout(Some(often)).unwrap();
        let stop = Arc::<AtomicBool>::default();
        let told = stop.clone();
        let thread = thread::spawn(move || {
            let mut packet = [0; 1500];
            while !told.load(Relaxed) {
                if let Ok((length, from)) = socket.recv_from(&mut packet) {
                    let _ = socket.send_to(&packet[..length], from);
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
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

#[test]
fn requests_and_packets_go_through_as_well() {
    let lab = lab();
    let decapsulators = decapsulators(&lab);
    let servers: Vec<Nginx> = lab.links[1..]
        .iter()
        .map(|link| Nginx::start(&link.outside))
        .collect();
    let http = "kind = \"http\"\nbody = \"protected\"\n";
    let mut own = settings("ipip", "").replace("kind = \"tcp\"\n", http);
    // The first address of a prefix is asked, from outer sources of a prefix.
    own = own.replace("\"10.99.0.1\"", "\"10.99.0.0/31\"");
    for link in &lab.links[1..] {
        link.outside.ip("addr add 10.99.0.0/32 dev lo");
    }
    own += "[balance]\ntunnel_source = [\"10.77.200.0/28\"]\n";
    let edge = Installation::new(&lab.host, &["eth0"], &own);
    let _daemon = edge.start();
    wait_until_up(&edge, &NAMES);
    drop(servers);
    wait::until("all are down", || {
        NAMES.iter().all(|b| backend(&edge, b, "health") == "down")
    });
    // A check that was under way may have ended otherwise.
    let want = "10.99.0.0:80 through the tunnel: connect: connection refused";
    wait::until("it is refused", || backend(&edge, "b3", "error") == want);

    let _echoes: Vec<Echo> = { lab.links[1..].iter() }
        .flat_map(|link| ["10.99.0.0", VIPS[1]].map(|vip| Echo::start(&link.outside, vip)))
        .collect();
    let udp = "kind = \"udp\"\nsend = \"are you there?\"\nexpect = \"are you\"\n";
    let udp = own
        .replace(http, udp)
        .replace("syn = \"off\"", "protocol = \"udp\"");
    edge.configure(&["eth0"], &udp);
    edge.ok(&["reload"]);
    wait_until_up(&edge, &NAMES);
    drop(decapsulators);
    wait::until("all are down", || {
        NAMES.iter().all(|b| backend(&edge, b, "health") == "down")
    });
    let want = "10.99.0.0:80 through the tunnel: no answer within 100ms";
    assert_eq!(backend(&edge, "b3", "error"), want);
}
