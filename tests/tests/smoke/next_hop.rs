//! Next hops, as the kernel knows them of real links. Time passes only where a test says
//! so: what is learned without it is learned because the kernel told of it.

use std::{
    collections::BTreeMap,
    fs,
    io::Write,
    net::{IpAddr, Ipv4Addr},
    process::Stdio,
};

use edge_tests::netns::Namespace;
use edge_userspace::host::next_hop::{
    Answer, Change, NextHop, NoNextHop, Resolver, Watch, next_hop,
};
use tokio::io::unix::AsyncFd;

use crate::netns::{PATIENCE, PacketSocket, wait};

const HOST_MAC: [u8; 6] = [2, 0xed, 0, 0, 0, 1];
const MAC: [u8; 6] = [2, 0xed, 0, 0, 0, 2];
const OTHER_MAC: [u8; 6] = [2, 0xed, 0, 0, 0, 3];

const SECOND: u64 = 1_000_000_000;

/// A host whose `eth0` leads to the `out0` of another one.
struct Rig {
    host: Namespace,
    outside: Namespace,
    resolver: Resolver,
    watch: Watch,
    now_ns: u64,
    told: BTreeMap<IpAddr, Answer>,
}

impl Rig {
    /// The host is 10.77.0.1 and fd77::1, the other one 2, and both have a link-local
    /// address.
    fn new() -> Self {
        let (host, outside) = (Namespace::new(), Namespace::new());
        host.ip(&format!(
            "link add eth0 address {} type veth peer name out0 address {} netns {}",
            text(HOST_MAC),
            text(MAC),
            outside.path()
        ));
        for (namespace, device, last) in [(&host, "eth0", 1), (&outside, "out0", 2)] {
            namespace.ip(&format!("link set {device} addrgenmode none"));
            namespace.ip(&format!("addr add 10.77.0.{last}/24 dev {device}"));
            for prefix in ["fd77", "fe80"] {
                namespace.ip(&format!("addr add {prefix}::{last}/64 dev {device} nodad"));
            }
            namespace.ip(&format!("link set {device} up"));
        }
        wait("carrier", || host.ip("link show eth0").contains("LOWER_UP"));
        let (resolver, watch) = host.inside(|| (Resolver::new().unwrap(), Watch::new().unwrap()));
        Self {
            host,
            outside,
            resolver,
            watch,
            now_ns: SECOND,
            told: BTreeMap::new(),
        }
    }

    fn want(&mut self, addresses: &[&str]) {
        self.resolver.want(addresses.iter().map(|a| ip(a)));
    }

    /// Takes in what changed and what follows from it.
    fn follow(&mut self) {
        let changes = self.watch.changes().unwrap();
        self.follow_changes(&changes);
    }

    fn follow_changes(&mut self, mut changes: &[Change]) {
        loop {
            let told = self.resolver.resolve(self.now_ns, changes).unwrap();
            self.told.extend(told);
            changes = &[];
            if self.resolver.due_ns().is_none_or(|due| due > self.now_ns) {
                return;
            }
        }
    }

    fn wait(&mut self, what: &str, mut done: impl FnMut(&mut Self) -> bool) {
        wait(what, || {
            self.follow();
            done(self)
        });
    }

    /// Waits for the next hop of an address.
    fn hop(&mut self, address: &str) -> NextHop {
        let address = ip(address);
        let of = |rig: &Self| rig.told.get(&address).and_then(|a| a.clone().ok());
        self.wait(&format!("a next hop for {address}"), |rig| {
            of(rig).is_some()
        });
        of(self).unwrap()
    }

    /// Lets so many seconds pass.
    fn pass(&mut self, seconds: u64) {
        self.now_ns += seconds * SECOND;
        self.follow();
    }

    /// Why there is no next hop, if that was told.
    fn why(&self, address: &str) -> Option<NoNextHop> {
        self.told.get(&ip(address))?.clone().err()
    }

    fn eth0(&self) -> u32 {
        self.host.ifindex("eth0")
    }
}

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn text(mac: [u8; 6]) -> String {
    mac.map(|byte| format!("{byte:02x}")).join(":")
}

#[test]
fn a_backend_on_the_link_is_its_own_next_hop() {
    let mut rig = Rig::new();
    rig.want(&["10.77.0.2", "fd77::2"]);
    for (address, source) in [("10.77.0.2", "10.77.0.1"), ("fd77::2", "fd77::1")] {
        let hop = rig.hop(address);
        let expected = NextHop {
            ifindex: rig.eth0(),
            vlan: None,
            dest_mac: MAC,
            source_mac: HOST_MAC,
            mtu: 1500,
            source: ip(source),
        };
        assert_eq!(hop, expected);
        // Whoever asks once hears the same.
        let once = rig.host.inside(|| next_hop(ip(address)).unwrap());
        assert_eq!(once, Ok(hop));
    }
    rig.host.ip("link set eth0 mtu 1400");
    rig.wait("the MTU", |rig| rig.hop("10.77.0.2").mtu == 1400);
}

#[test]
fn a_backend_behind_a_gateway_is_sent_to_the_gateway() {
    let mut rig = Rig::new();
    rig.host
        .ip("route add 198.51.100.0/24 via 10.77.0.2 mtu 1400");
    rig.host
        .ip("route add 203.0.113.0/24 via inet6 fe80::2 dev eth0");
    rig.host
        .ip("-6 route add 2001:db8::/64 via fe80::2 dev eth0");
    rig.host.ip("-6 route add default via fd77::2");
    rig.want(&[
        "198.51.100.7",
        "203.0.113.7",
        "2001:db8::7",
        "2001:db8:1::7",
    ]);
    let of = |rig: &mut Rig, address| {
        let hop = rig.hop(address);
        assert_eq!((hop.ifindex, hop.dest_mac), (rig.eth0(), MAC), "{address}");
        (hop.mtu, hop.source.to_string())
    };
    assert_eq!(of(&mut rig, "198.51.100.7"), (1400, "10.77.0.1".into()));
    assert_eq!(of(&mut rig, "203.0.113.7"), (1500, "10.77.0.1".into()));
    for address in ["2001:db8::7", "2001:db8:1::7"] {
        assert_eq!(of(&mut rig, address), (1500, "fd77::1".into()));
    }
}

#[test]
fn more_backends_than_questions_in_one_go() {
    let mut rig = Rig::new();
    rig.host.ip("route add 198.18.0.0/15 via 10.77.0.2");
    let backends = (0..2000u32).map(|n| IpAddr::from((0xc612_0000 + n).to_be_bytes()));
    rig.resolver.want(backends.clone());
    let first = rig.resolver.resolve(rig.now_ns, &[]).unwrap();
    assert!(first.is_empty(), "the gateway was not known");
    assert!(rig.resolver.due_ns().unwrap() < rig.now_ns, "not in one go");
    for address in backends {
        assert_eq!(rig.hop(&address.to_string()).dest_mac, MAC);
    }
}

#[test]
fn a_mac_address_that_changes_is_told() {
    let mut rig = Rig::new();
    rig.want(&["10.77.0.2"]);
    assert_eq!(rig.hop("10.77.0.2").dest_mac, MAC);
    rig.outside
        .ip(&format!("link set out0 address {}", text(OTHER_MAC)));
    let mut request = Vec::from([0xff; 6]);
    request.extend(OTHER_MAC);
    request.extend([8, 6, 0, 1, 8, 0, 6, 4, 0, 1]);
    request.extend(OTHER_MAC);
    request.extend([10, 77, 0, 2, 0, 0, 0, 0, 0, 0, 10, 77, 0, 1]);
    let wire = rig.outside.inside(|| PacketSocket::new("out0"));
    let mut changes = Vec::new();
    // The kernel does not believe another one within a second.
    wait("another MAC address", || {
        assert!(wire.send(&request));
        let news = rig.watch.changes().unwrap();
        rig.follow_changes(&news);
        changes.extend(news);
        let told = rig.told.get(&ip("10.77.0.2"));
        matches!(told, Some(Ok(hop)) if hop.dest_mac == OTHER_MAC)
    });
    let told = Change::Neighbour {
        ifindex: rig.eth0(),
        address: ip("10.77.0.2"),
    };
    assert!(changes.contains(&told), "{changes:?}");
}

#[test]
fn a_route_that_comes_and_goes_is_told() {
    let mut rig = Rig::new();
    let address = "198.51.100.7";
    rig.want(&[address]);
    rig.follow();
    let why = rig.why(address).unwrap();
    assert!(matches!(why, NoNextHop::NoRoute(_)), "{why:?}");
    rig.host.ip("route add 198.51.100.0/24 via 10.77.0.2");
    rig.hop(address);
    rig.host.ip("route del 198.51.100.0/24");
    rig.follow();
    // It stays in force for some seconds.
    assert!(rig.told[&ip(address)].is_ok());
    rig.pass(5);
    assert!(matches!(rig.why(address), Some(NoNextHop::NoRoute(_))));
}

#[test]
fn an_interface_that_goes_down_takes_its_routes_along() {
    let mut rig = Rig::new();
    rig.want(&["10.77.0.2"]);
    rig.hop("10.77.0.2");
    rig.host.ip("link set eth0 down");
    rig.follow();
    rig.pass(5);
    assert!(matches!(rig.why("10.77.0.2"), Some(NoNextHop::NoRoute(_))));
    rig.host.ip("link set eth0 up");
    rig.hop("10.77.0.2");
    rig.host.ip("addr del 10.77.0.1/24 dev eth0");
    rig.follow();
    rig.pass(5);
    assert!(matches!(rig.why("10.77.0.2"), Some(NoNextHop::NoRoute(_))));
}

#[test]
fn who_never_answers_is_asked_for_again_and_again() {
    let mut rig = Rig::new();
    let wire = rig.outside.inside(|| PacketSocket::new("out0"));
    let silent = ["10.77.0.99", "fd77::99"];
    rig.want(&silent);
    let requests = |rig: &mut Rig, times: usize| {
        let mut seen = [0; 2];
        rig.wait("requests on the wire", |_| {
            while let Some(frame) = wire.receive() {
                // ARP, operation and target; ICMPv6 neighbour solicitation and target.
                let arp = frame.get(12..14) == Some(&[8, 6]) && frame.get(20..22) == Some(&[0, 1]);
                seen[0] += usize::from(arp && frame.get(38..42) == Some(&[10, 77, 0, 99]));
                let solicited =
                    frame.get(12..14) == Some(&[0x86, 0xdd]) && frame.get(54) == Some(&135);
                let target = ip("fd77::99");
                let IpAddr::V6(target) = target else { panic!() };
                seen[1] += usize::from(solicited && frame.get(62..78) == Some(&target.octets()));
            }
            seen.iter().all(|&n| n >= times)
        });
    };
    requests(&mut rig, 1);
    for address in silent {
        assert_eq!(rig.why(address), None, "too early to say");
    }
    rig.pass(5);
    for address in silent {
        let expected = NoNextHop::NoNeighbour {
            interface: "eth0".to_owned(),
            via: ip(address),
        };
        assert_eq!(rig.why(address), Some(expected));
    }
    // After some requests the kernel gives up, and is made to begin anew.
    let host = &rig.host;
    wait("the end of the kernel's patience", || {
        host.ip("neigh").matches("FAILED").count() == 2
    });
    while wire.receive().is_some() {}
    rig.pass(60);
    requests(&mut rig, 1);
    // And then it appears.
    rig.outside.ip("addr add 10.77.0.99/24 dev out0");
    wait("an answer", || {
        rig.pass(60);
        rig.told[&ip("10.77.0.99")].is_ok()
    });
    assert_eq!(rig.hop("10.77.0.99").dest_mac, MAC);
}

#[test]
fn a_stale_neighbour_is_confirmed() {
    let mut rig = Rig::new();
    rig.host.inside(|| {
        fs::write("/proc/sys/net/ipv4/neigh/eth0/delay_first_probe_time", "0").unwrap();
    });
    rig.host.ip(&format!(
        "neigh replace 10.77.0.2 lladdr {} dev eth0 nud stale",
        text(MAC)
    ));
    rig.want(&["10.77.0.2"]);
    rig.follow();
    // Meanwhile it is in force.
    assert_eq!(rig.told[&ip("10.77.0.2")].as_ref().unwrap().dest_mac, MAC);
    rig.wait("the kernel to ask", |rig| {
        rig.host.ip("neigh show 10.77.0.2").contains("REACHABLE")
    });
}

#[test]
fn what_an_administrator_entered_stays() {
    let mut rig = Rig::new();
    let entries = [("10.77.0.5", "permanent"), ("10.77.0.6", "noarp")];
    for (address, state) in entries {
        let mac = text(OTHER_MAC);
        rig.host.ip(&format!(
            "neigh add {address} lladdr {mac} dev eth0 nud {state}"
        ));
    }
    rig.want(&entries.map(|(address, _)| address));
    for (address, state) in entries {
        assert_eq!(rig.hop(address).dest_mac, OTHER_MAC);
        rig.pass(60);
        let shown = rig.host.ip(&format!("neigh show {address} nud {state}"));
        assert!(shown.contains(&text(OTHER_MAC)), "{shown}");
    }
}

#[test]
fn addresses_to_which_nothing_can_be_sent_are_told() {
    let mut rig = Rig::new();
    for route in ["blackhole 192.0.2.0/28", "prohibit 192.0.2.16/28"] {
        rig.host.ip(&format!("route add {route}"));
    }
    rig.host.ip("route add unreachable 192.0.2.32/28");
    rig.host.ip("-6 route add blackhole 2001:db8::/64");
    let expected = [
        ("192.0.2.1", "blackhole"),
        ("2001:db8::1", "blackhole"),
        ("192.0.2.17", "prohibit"),
        ("192.0.2.33", "no route"),
        ("10.77.0.1", "of this host"),
        ("fd77::1", "of this host"),
        ("127.0.0.1", "of this host"),
        ("10.77.0.255", "broadcast"),
        ("ff0e::1", "multicast"),
        ("fe80::2", "link-local"),
        ("224.0.0.1", "no route"),
    ];
    rig.want(&expected.map(|(address, _)| address));
    for (address, part) in expected {
        // The kernel enters an IPv6 address some time after it was given.
        let mut why = None;
        wait(part, || {
            rig.follow();
            why = rig.why(address).map(|none| none.to_string());
            why.as_ref().is_some_and(|why| why.contains(part))
        });
    }
}

#[test]
fn a_bridge_is_named_as_what_is_in_the_way() {
    let mut rig = Rig::new();
    rig.host.ip("link add br0 type bridge");
    rig.host.ip("addr add 10.78.0.1/24 dev br0");
    rig.host.ip("link set br0 up");
    rig.want(&["10.78.0.2"]);
    rig.follow();
    let why = rig.why("10.78.0.2").unwrap().to_string();
    assert!(why.contains("br0") && why.contains("bridge"), "{why}");
}

#[test]
fn a_vlan_device_is_a_tag_on_the_interface_below() {
    let mut rig = Rig::new();
    let vlan = |namespace: &Namespace, device: &str, last| {
        let added = namespace.output(
            "ip",
            &[
                "link", "add", "link", device, "name", "v5", "type", "vlan", "id", "5",
            ],
        );
        let said = String::from_utf8_lossy(&added.stderr).into_owned();
        if said.contains("Unknown device type") {
            return false;
        }
        assert!(added.status.success(), "{said}");
        namespace.ip(&format!("addr add 10.79.0.{last}/24 dev v5"));
        namespace.ip("link set v5 up");
        true
    };
    if !vlan(&rig.host, "eth0", 1) {
        // Debian's kernels have them: there `cargo xtask vm-test` runs this test. Not by
        // println, which is shown of tests that fail only.
        let told = std::io::stderr().write_all(b"NOT TESTED: no VLAN devices in this kernel\n");
        return told.unwrap();
    }
    assert!(vlan(&rig.outside, "out0", 2));
    rig.host
        .ip("link set v5 address 02:ed:00:00:00:05 mtu 1400");
    rig.want(&["10.79.0.2"]);
    let hop = rig.hop("10.79.0.2");
    let expected = NextHop {
        ifindex: rig.eth0(),
        vlan: Some(5),
        dest_mac: MAC,
        source_mac: [2, 0xed, 0, 0, 0, 5],
        mtu: 1400,
        source: ip("10.79.0.1"),
    };
    assert_eq!(hop, expected);
    // The interface below counts as well.
    rig.host.ip("link set v5 mtu 1500");
    rig.wait("the MTU", |rig| rig.hop("10.79.0.2").mtu == 1500);
    rig.host.ip("link add link v5 name v6 type vlan id 6");
    rig.host.ip("addr add 10.80.0.1/24 dev v6");
    rig.host.ip("link set v6 up");
    rig.want(&["10.80.0.2"]);
    rig.follow();
    let why = rig.why("10.80.0.2").unwrap().to_string();
    assert!(why.contains("one tag"), "{why}");
}

#[test]
fn a_watch_that_cannot_keep_up_says_that_anything_may_have_changed() {
    let mut rig = Rig::new();
    // What the kernel enters by itself, it may enter late.
    wait("quiet", || rig.watch.changes().unwrap().is_empty());
    let mut routes = String::new();
    for n in 0..20_000u32 {
        let to = Ipv4Addr::from(0xc612_0000 + n);
        routes.push_str(&format!("route add {to} dev eth0\n"));
    }
    let mut batch = rig.host.command("ip");
    let mut batch = batch
        .args(["-batch", "-"])
        .stdin(Stdio::piped())
        .spawn()
        .unwrap();
    let mut input = batch.stdin.take().unwrap();
    input.write_all(routes.as_bytes()).unwrap();
    drop(input);
    assert!(batch.wait().unwrap().success());
    assert_eq!(rig.watch.changes().unwrap(), [Change::All]);
    rig.host.ip("route add 198.51.100.0/24 dev eth0");
    let route = Change::Routes("198.51.100.0/24".parse().unwrap());
    assert!(rig.watch.changes().unwrap().contains(&route));
}

#[test]
fn a_watch_wakes_a_task_that_waits_for_it() {
    let rig = Rig::new();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(async {
        // SAFETY: a watch owns its descriptor, and has the same one as long as it lives.
        let mut watch = unsafe { AsyncFd::register(rig.watch).unwrap() };
        let mut seen = Vec::new();
        rig.host.ip("route add 198.51.100.0/24 dev eth0");
        let route = Change::Routes("198.51.100.0/24".parse().unwrap());
        while !seen.contains(&route) {
            let ready = tokio::time::timeout(PATIENCE, watch.readable_mut()).await;
            let mut ready = ready.expect("a change").unwrap();
            seen.extend(ready.get_inner_mut().changes().unwrap());
            ready.clear_ready();
        }
    });
}
