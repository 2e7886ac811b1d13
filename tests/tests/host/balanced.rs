//! Balanced services under the traffic, changes and rules that they meet.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;

use edge_tests::daemon::Installation;
use edge_tests::decap::Decapsulator;
use edge_tests::frames::{self, Payload};
use edge_tests::lab::Lab;
use edge_tests::raw::{Counter, Which};
use edge_tests::server::Nginx;
use edge_tests::wait;

use super::balance::{Client, PORT, Server, VIPS, backend, lab, servers, settings, wait_until_up};
use super::traffic::{all_at_once, download, noise};

const NAMES: [&str; 3] = ["b1", "b2", "b3"];

/// Who answers so many connections, one after the other.
fn answers(lab: &Lab, count: usize) -> Vec<char> {
    let one = |n| Client::connect(lab, VIPS[n % 2]).unwrap().backend;
    (0..count).map(one).collect()
}

/// 100 MB to clients of both families, and 1,000 connections at once.
fn carries(forward: &str) {
    let mut lab = lab();
    let mut decapsulators = Vec::new();
    if forward != "l2" {
        for link in &mut lab.links[1..] {
            link.free_outside();
        }
        for link in &lab.links[1..] {
            for key in ["all", "out0"] {
                let key = format!("net.ipv4.conf.{key}.rp_filter=0");
                link.outside.run("sysctl", &["-q", "-w", &key]);
            }
            let arguments = ["--interface", "out0", "--source", "10.77.0.0/16"];
            decapsulators.push(Decapsulator::start(&link.outside, &arguments));
        }
    }
    let directory = tempfile::tempdir().unwrap();
    let content = noise(100_000_000);
    fs::write(directory.path().join("large"), &content).unwrap();
    let _servers: Vec<Nginx> = lab.links[1..]
        .iter()
        .map(|link| Nginx::serving(&link.outside, directory.path()))
        .collect();
    let edge = Installation::new(&lab.host, &["eth0"], &settings(forward, ""));
    let _daemon = edge.start();
    wait_until_up(&edge, &NAMES);
    for (vip, count) in VIPS.into_iter().zip([1000, 100]) {
        download(&lab, (vip, PORT), directory.path(), &content);
        all_at_once(&lab, (vip, PORT), count);
    }
    wait::until("something went to each", || {
        NAMES.iter().all(|b| backend(&edge, b, "packets") != "0")
    });
    assert_eq!(edge.packets("forward_too_big", "ended"), 0);
}

#[test]
fn ipip_carries_downloads_and_many_connections() {
    carries("ipip");
}

#[test]
fn gue_carries_downloads_and_many_connections() {
    carries("gue");
}

#[test]
fn l2_carries_downloads_and_many_connections() {
    carries("l2");
}

/// Two edges with the same seed and configuration: packets of a connection may come by either.
#[test]
fn two_edges_with_one_seed_choose_alike() {
    let lab = lab();
    let _servers = servers(&lab);
    let client = &lab.link().outside;
    let path = client.path();
    lab.host.ip(&format!(
        "link add eth9 type veth peer name out9 netns {path}"
    ));
    lab.host.ip("addr add 10.79.9.1/24 dev eth9");
    lab.host.ip("link set eth9 up");
    lab.host
        .run("sysctl", &["-q", "-w", "net.ipv4.conf.eth9.rp_filter=0"]);
    client.ip("addr add 10.79.9.2/24 dev out9");
    client.ip("link set out9 up");
    // As packets from a wire have them.
    client.run("ethtool", &["-K", "out9", "tx", "off"]);
    let seed = tempfile::NamedTempFile::new().unwrap();
    fs::write(seed.path(), "0123456789abcdef".repeat(4)).unwrap();
    fs::set_permissions(seed.path(), fs::Permissions::from_mode(0o600)).unwrap();
    let settings = settings("l2", "") + &format!("[balance]\nseed_file = {:?}\n", seed.path());
    let edges = ["eth0", "eth9"].map(|link| Installation::new(&lab.host, &[link], &settings));
    // One of them has the port for metrics.
    let text = fs::read_to_string(edges[1].config()).unwrap();
    let without = text.lines().filter(|l| !l.starts_with("metrics.listen"));
    let without: Vec<&str> = without.collect();
    fs::write(edges[1].config(), without.join("\n")).unwrap();
    let _daemons = edges.each_ref().map(Installation::start);
    for edge in &edges {
        wait_until_up(edge, &NAMES);
    }
    let mut clients: Vec<Client> = (0..40)
        .map(|_| Client::connect(&lab, VIPS[0]).unwrap())
        .collect();
    let link = lab.link();
    let forwarded = || edges[1].packets("forwarded", "ended");
    let mut before = forwarded();
    for turn in 0..4 {
        let via = match turn % 2 {
            0 => "10.79.9.1".to_owned(),
            _ => link.v4(1).to_string(),
        };
        client.ip(&format!("route replace {}/32 via {via}", VIPS[0]));
        for client in &mut clients {
            client.works().unwrap();
        }
        if turn % 2 == 0 {
            wait::until("they came by the other edge", || forwarded() >= before + 40);
        }
        before = forwarded();
    }
}

#[test]
fn backups_stand_in_and_weights_rise_slowly() {
    let lab = lab();
    let mut servers = servers(&lab);
    let spare = "name = \"b3\"\naddress = \"10.77.3.2\"\n";
    let settings =
        settings("l2", "slow_start = \"5s\"").replace(spare, &format!("{spare}backup = true\n"));
    let edge = Installation::new(&lab.host, &["eth0"], &settings);
    let _daemon = edge.start();
    wait_until_up(&edge, &["b1", "b2"]);
    assert!(!answers(&lab, 30).contains(&'3'));
    for link in &lab.links[1..3] {
        servers.remove(0).end(&link.outside);
    }
    wait::until("the backup is used", || {
        backend(&edge, "b3", "weight") != "0" && backend(&edge, "b2", "weight") == "0"
    });
    assert!(answers(&lab, 20).iter().all(|b| *b == '3'));
    servers.insert(0, Server::start(&lab.links[1].outside, '1'));
    let weight = || backend(&edge, "b1", "weight").parse::<u32>().unwrap();
    wait::until("it begins to rise", || (1..100).contains(&weight()));
    wait::until("it has its whole weight", || weight() == 100);
    assert!(answers(&lab, 20).iter().all(|b| *b == '1'));
    assert_eq!(backend(&edge, "b3", "weight"), "0");
}

/// Spoofed SYNs are challenged before they reach a backend; clients get through.
#[test]
fn the_challenge_stands_before_balanced_services() {
    let lab = lab();
    let _servers = servers(&lab);
    let settings = settings("l2", "").replace("syn = \"off\"", "syn = \"always\"");
    let edge = Installation::new(&lab.host, &["eth0"], &settings);
    let _daemon = edge.start();
    wait_until_up(&edge, &NAMES);
    let mut client = Client::connect(&lab, VIPS[0]).unwrap();
    client.works().unwrap();
    let link = lab.link();
    let vip = VIPS[0].parse().unwrap();
    let spoofed = "10.88.3.0/24".parse().unwrap();
    let counters: Vec<Counter> = lab.links[1..]
        .iter()
        .map(|l| Counter::new(&l.outside, "out0", Which::From(spoofed)))
        .collect();
    let before = edge.packets("reply_challenge", "ended");
    let syns: Vec<Vec<u8>> = (0..200u8)
        .map(|n| {
            let source = [10, 88, 3, n].into();
            frames::frame(link.macs(), source, vip, Payload::Tcp(frames::SYN))
        })
        .collect();
    let taken = link.sender.send_all(&syns) as u64;
    assert!(taken > 100, "{taken}");
    wait::until("all are challenged", || {
        edge.packets("reply_challenge", "ended") >= before + taken
    });
    assert_eq!(counters.iter().map(Counter::packets).sum::<u64>(), 0);
    client.works().unwrap();
    for _ in 0..20 {
        Client::connect(&lab, VIPS[0]).unwrap().works().unwrap();
    }
}

/// No route leads to these backends, and nobody answers ARP for them.
#[test]
fn next_hops_that_are_given_need_no_route() {
    let lab = lab();
    let _servers = servers(&lab);
    let all = settings("l2", "");
    let (service, _) = all.split_once("[service.health]").unwrap();
    let mut settings = service.replace("10.77.", "10.96.");
    settings += "[balance]\n";
    for (n, link) in lab.links.iter().enumerate().skip(1) {
        let (outside, _) = link.macs();
        let mac = outside.map(|byte| format!("{byte:02x}")).join(":");
        settings += &format!(
            "[[balance.next_hop]]\nbackend = \"10.96.{n}.2\"\ninterface = \"eth{n}\"\n\
             mac = \"{mac}\"\n"
        );
    }
    let edge = Installation::new(&lab.host, &["eth0"], &settings);
    let _daemon = edge.start();
    wait::until("there is a way to all", || {
        NAMES.iter().all(|b| backend(&edge, b, "weight") == "100")
    });
    let seen = answers(&lab, 40);
    for name in ['1', '2', '3'] {
        assert!(seen.contains(&name), "{seen:?}");
    }
}

#[test]
fn lists_and_failed_reloads_leave_services_as_they_are() {
    let lab = lab();
    let _servers = servers(&lab);
    let own = settings("l2", "");
    let edge = Installation::new(&lab.host, &["eth0"], &own);
    let _daemon = edge.start();
    wait_until_up(&edge, &NAMES);
    let mut clients: Vec<Client> = (0..30)
        .map(|n| Client::connect(&lab, VIPS[n % 2]).unwrap())
        .collect();
    let client = lab.link().v4(2).to_string();
    // Who is allowed is forwarded like anybody else.
    edge.ok(&["allow", "add", &client]);
    clients.push(Client::connect(&lab, VIPS[0]).unwrap());
    clients.last_mut().unwrap().works().unwrap();
    // A reload that fails at its last step.
    let fewer = own.replace(
        "[[service.backend]]\nname = \"b3\"\naddress = \"10.77.3.2\"\n",
        "",
    );
    edge.configure(&["eth0", "eth77"], &fewer);
    let refused = edge.outcome(&["reload"]);
    assert!(refused.stderr.contains("eth77"), "{}", refused.stderr);
    for client in &mut clients {
        client.works().unwrap();
    }
    wait_until_up(&edge, &NAMES);
    assert!(answers(&lab, 40).contains(&'3'));
}
