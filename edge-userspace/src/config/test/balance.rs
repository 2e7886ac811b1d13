//! Balanced services: files in, models or messages out.

mod health;
mod refused;
mod shared;

use std::{fmt::Write as _, net::IpAddr, path::PathBuf, time::Duration};

use edge_common::quic::{Layout, ServerId};

use super::{check, model_of, p, problem, problems, warnings};
use crate::config::{
    balance::{
        Backend, Balance, Balancing, Forward, Fragments, HashBy, HealthCheck, HttpProbe, NextHop,
        Passive, Probe, Through,
    },
    describe,
    model::Model,
    services::{Addresses, Ports, Service},
};
use crate::tables::Geometry;

/// A service with one backend, which `backend` and what follows it say more of.
fn service(name: &str, keys: &str, backend: &str) -> String {
    let mut text = format!("[[service]]\nname = '{name}'\n{keys}\n");
    for (key, default) in [
        ("addresses", "['203.0.113.10']"),
        ("ports", "[443]"),
        ("forward", "'ipip'"),
    ] {
        if !keys.contains(&format!("{key} = ")) {
            writeln!(text, "{key} = {default}").unwrap();
        }
    }
    text.push_str("[[service.backend]]\n");
    for (key, default) in [("name", "'b1'"), ("address", "'10.0.0.1'")] {
        if !backend.contains(&format!("{key} = ")) {
            writeln!(text, "{key} = {default}").unwrap();
        }
    }
    writeln!(text, "{backend}").unwrap();
    text
}

/// A service with a health check.
fn checked(keys: &str, health: &str) -> String {
    service("a", keys, "") + &format!("[service.health]\n{health}\n")
}

fn only(model: &Model) -> &Service {
    let [service] = &model.services[..] else {
        panic!("{:?}", model.services)
    };
    service
}

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

#[test]
fn a_balanced_service_becomes_what_it_says() {
    let m = model_of(
        r#"
        [[service]]
        name = "web"
        addresses = ["203.0.113.10", "2001:db8::10", "203.0.113.64/28", "203.0.113.11/32"]
        ports = [443, "8000-8010"]
        forward = "nat"
        forwarded = true
        hash = "source"
        floor = 0
        slow_start = "1m500ms"
        echo = true
        [[service.backend]]
        name = "web-1"
        address = "10.0.0.11"
        port = 8080
        weight = 0
        [[service.backend]]
        name = "web-2"
        address = "2001:db8:1::12"
        weight = 1000
        [[service.backend]]
        name = "web-3"
        address = "10.0.0.11"
        backup = true
        [service.health]
        kind = "https"
        interval = "500ms"
        timeout = "400ms"
        rise = 1
        fall = 5
        jitter = 0
        port = 8443
        path = "/health?deep=1"
        host = "www.example.org"
        status = 204
        body = "ok"
        [balance]
        flows = "2M"
        tcp_idle = "1h"
        udp_idle = "30s"
        slots = 655_373
        seed_file = "/etc/edge/fleet.seed"
        snat = ["192.0.2.1", "2001:db8::5"]
        fragments = "drop"
        mss_clamp = false
        [[balance.next_hop]]
        backend = "10.0.0.11"
        interface = "eth1"
        mac = "02:00:00:00:00:01"
        "#,
    );
    let web = only(&m);
    assert!(web.forwarded && web.echo && m.has_balanced());
    let listed = ["203.0.113.10", "203.0.113.11", "2001:db8::10"].map(ip);
    assert_eq!(web.addresses, Addresses::Listed(listed.into()));
    assert_eq!(web.prefixes, [p("203.0.113.64/28")].into());
    assert_eq!((web.listed_addresses(), web.ports.listed()), (19, 12));
    let backend = |name: &str, address, port, weight, backup| Backend {
        name: name.to_owned(),
        address: ip(address),
        port,
        weight,
        backup,
        server_id: None,
    };
    let balance = Balance {
        forward: Forward::Nat,
        hash: HashBy::Source,
        quic_config_id: 0,
        backends: vec![
            backend("web-1", "10.0.0.11", Some(8080), 0, false),
            backend("web-2", "2001:db8:1::12", None, 1000, false),
            backend("web-3", "10.0.0.11", None, 100, true),
        ],
        floor_per_cent: 0,
        slow_start: Duration::from_millis(60_500),
        health: Some(HealthCheck {
            probe: Probe::Http(HttpProbe {
                tls: true,
                http2: false,
                path: "/health?deep=1".to_owned(),
                host: Some("www.example.org".to_owned()),
                status: (204, 204),
                body: Some("ok".to_owned()),
            }),
            through: Through::Direct,
            port: Some(8443),
            interval: Duration::from_millis(500),
            timeout: Duration::from_millis(400),
            rise: 1,
            fall: 5,
            jitter_per_cent: 0,
        }),
        passive: Some(Passive::default()),
    };
    assert_eq!(web.check_port(&balance.backends[0]), Some(8443));
    assert_eq!(web.balance.as_ref(), Some(&balance));
    let hop = NextHop {
        interface: "eth1".to_owned(),
        mac: [2, 0, 0, 0, 0, 1],
    };
    let balancing = Balancing {
        flows: 2_000_000,
        tcp_idle: Duration::from_secs(3600),
        udp_idle: Duration::from_secs(30),
        slots: 655_373,
        seed_file: Some(PathBuf::from("/etc/edge/fleet.seed")),
        snat: ["192.0.2.1", "2001:db8::5"].map(ip).into(),
        tunnel_source_v4: None,
        tunnel_source_v6: None,
        fragments: Fragments::Drop,
        mss_clamp: false,
        next_hops: [(ip("10.0.0.11"), hop)].into(),
    };
    assert_eq!(m.balancing, balancing);
}

#[test]
fn a_service_of_quic_knows_its_backends_by_server_ids() {
    let quic = |more: &str| format!("protocol = 'udp'\nhash = 'quic'\n{more}");
    let two = |keys: &str, first: &str, second: &str| {
        service("a", keys, &format!("server_id = '{first}'"))
            + &format!(
                "[[service.backend]]\nname = 'b2'\naddress = '10.0.0.2'\nserver_id = '{second}'\n"
            )
    };
    let m = model_of(&two(&quic("quic_config_id = 6"), "0a1B", "0000"));
    let balance = only(&m).balance.as_ref().unwrap();
    assert_eq!(balance.quic(), Layout::new(6, 2));
    let ids: Vec<_> = balance.backends.iter().map(|b| b.server_id).collect();
    assert_eq!(ids, [ServerId::new(&[0x0a, 0x1b]), ServerId::new(&[0, 0])]);
    let geometry = Geometry::for_capacity(&m.capacity);
    let json = serde_json::to_value(describe(&m, &geometry, 1)).unwrap();
    assert_eq!(json["services"][0]["balance"]["quic_config_id"], 6);
    let m = model_of(&service(
        "a",
        &quic("ports = 'any'"),
        "server_id = '0001020304050607'",
    ));
    assert_eq!(only(&m).balance.as_ref().unwrap().quic(), Layout::new(0, 8));
    let plain = model_of(&service("a", "", ""));
    assert_eq!(only(&plain).balance.as_ref().unwrap().quic(), None);
}

#[test]
fn what_a_balanced_service_does_not_say_has_defaults() {
    let m = model_of(&service("a", "", ""));
    let a = only(&m);
    assert!(a.forwarded && !a.echo && !m.needs_cookies());
    let balance = Balance {
        forward: Forward::Ipip,
        hash: HashBy::FiveTuple,
        quic_config_id: 0,
        backends: vec![Backend {
            name: "b1".to_owned(),
            address: ip("10.0.0.1"),
            port: None,
            weight: 100,
            backup: false,
            server_id: None,
        }],
        floor_per_cent: 25,
        slow_start: Duration::ZERO,
        health: None,
        passive: None,
    };
    assert_eq!(a.balance.as_ref(), Some(&balance));
    assert_eq!(m.balancing, Balancing::default());
    assert_eq!(model_of("[balance]").balancing, Balancing::default());
    let sources = model_of(
        &(service("a", "", "") + "[balance]\ntunnel_source = ['2001:db8::1', '192.0.2.1']"),
    )
    .balancing;
    assert_eq!(
        (sources.tunnel_source_v4, sources.tunnel_source_v6),
        ("192.0.2.1".parse().ok(), "2001:db8::1".parse().ok())
    );
    let spread = service("a", "", "") + "[balance]\ntunnel_source = ['192.0.2.0/28']";
    let spread = model_of(&spread).balancing.tunnel_source_v4;
    assert_eq!(spread, "192.0.2.0/28".parse().ok());
    // As without the key.
    let local = model_of("[[service]]\nname = 'a'\nports = [1]\nforward = 'local'");
    assert_eq!(local, model_of("[[service]]\nname = 'a'\nports = [1]"));
    let any = model_of(&service("a", "ports = 'any'", ""));
    assert_eq!(only(&any).ports, Ports::Any);
}

#[test]
fn thousands_of_services_and_backends_are_checked_in_one_go() {
    let many = |services: usize, backends: usize| {
        let mut text = "interfaces = ['eth0']\ntables.service_targets = '100k'\nlists.management = ['192.0.2.1']\n".to_owned();
        for s in 0..services {
            let (hi, lo) = (s / 256, s % 256);
            writeln!(text, "[[service]]\nname = 's{s}'\naddresses = ['203.{hi}.{lo}.1', '203.{hi}.{lo}.16/28', '2001:db8:{s:x}::1']\nports = [443]\nforward = 'gue'").unwrap();
            for b in 0..backends {
                writeln!(
                    text,
                    "[[service.backend]]\nname = 'b{b}'\naddress = '10.{hi}.{lo}.{b}'"
                )
                .unwrap();
            }
            writeln!(text, "[service.health]\nkind = 'http'\npath = '/s{s}'").unwrap();
        }
        text
    };
    for (services, each) in [(2000, 10), (1000, 100)] {
        let checked = check(&many(services, each)).unwrap();
        assert_eq!(checked.warnings, []);
        let all = &checked.model.services;
        let backends = all.iter().map(|s| s.balance.as_ref().unwrap());
        let backends = backends.map(|b| b.backends.len()).sum::<usize>();
        assert_eq!((all.len(), backends), (services, services * each));
    }
    // All of them wrong.
    let found = problems(&many(2000, 10).replace("'203.", "'10."));
    assert!(
        found.iter().all(|f| f.message.contains("would go round")),
        "{}",
        found[0]
    );
}

#[test]
fn balanced_services_are_told() {
    let text = service(
        "web",
        "hash = 'source'\necho = true\nslow_start = '90s'\naddresses = ['203.0.113.10', '203.0.113.64/28']",
        "",
    ) + "[[service.backend]]\nname = 'b2'\naddress = '10.0.0.2'\nbackup = true\n[service.health]\nkind = 'http'\ninterval = '500ms'\n"
        + &service(
            "any",
            "forward = 'nat'\nports = 'any'\nprotocol = 'udp'",
            "",
        )
        + "[balance]\nsnat = ['192.0.2.1']\ntunnel_source = ['2001:db8::1']\nseed_file = '/etc/edge/fleet.seed'";
    let model = model_of(&text);
    let geometry = Geometry::for_capacity(&model.capacity);
    let told = describe(&model, &geometry, 1).to_string();
    for line in [
        "web              auto                     1000    2000          17   tcp 443 (forwarded)",
        "any              off                      1000    2000           1   udp any (forwarded)",
        "web              ipip      source           2         1    25 %          90s   yes    http every 500ms, through the tunnel\n",
        "any              nat       5-tuple          1         0    25 %           0s   no     -\n",
        "flows       room for 1000000, kept for 15m without packets (UDP 2m)\n",
        "rings       65537 slots, seed in /etc/edge/fleet.seed\n",
        "snat        192.0.2.1\n",
        "tunnels     from 2001:db8::1\n",
        "fragments   forward; segment size of SYNs: lowered to what fits\n",
    ] {
        assert!(told.contains(line), "{line} in\n{told}");
    }
    assert_eq!(describe(&model_of(""), &geometry, 1).balancing, None);
    let json = serde_json::to_value(describe(&model, &geometry, 1)).unwrap();
    assert_eq!(json["services"][0]["balance"]["health_interval_ms"], 500);
    assert_eq!(json["services"][0]["balance"]["health_through"], "tunnel");
    assert_eq!(json["balancing"]["tunnel_source"][0], "2001:db8::1");
}
