//! Services: files in, models or messages out.

use edge_common::{abi::LimitKind, defence::When};

use super::{TICK_NS, model_of, problem, warnings};
use crate::config::{
    limits::Rate,
    services::{Addresses, Flood, Ports, Protocol, Sysctls},
};

#[test]
fn services_take_what_they_do_not_say_from_flood() {
    let m = model_of(
        r#"
        [tables]
        service_targets = 100
        verified_sources = "1k"
        [flood]
        syn = "always"
        dry_run = true
        incomplete = { rate = 10, burst = 300 }
        completed = 80
        hold = "1m30s"
        sysctls = "check"
        reply_ttl = 128
        reply_window = 1000
        verified_ttl = "2h"
        [[service]]
        name = "web-1.a_b"
        ports = [443, "8000-8010", 80]
        [[service]]
        name = "far"
        addresses = ["203.0.113.7", "2001:db8::7"]
        ports = ["53"]
        forwarded = true
        syn = "auto"
        dry_run = false
        incomplete = { rate = 90 }
        [[service]]
        name = "dns"
        ports = [53]
        protocol = "udp"
        [[service]]
        name = "rest"
        ports = "listening"
        "#,
    );
    let flood = Flood {
        completed: 80,
        hold_s: 90,
        sysctls: Sysctls::Check,
        reply_ttl: 128,
        reply_window: 1000,
        verified_ttl_s: 7200,
        targets: 100,
        verified_sources: 1000,
    };
    assert_eq!(m.flood, flood);
    let [web, far, dns, rest] = &m.services[..] else {
        panic!("{:?}", m.services)
    };
    assert_eq!(
        (web.name.as_str(), web.syn, web.dry_run),
        ("web-1.a_b", When::Always, true)
    );
    assert_eq!(web.addresses, Addresses::Local);
    assert_eq!(
        web.ports,
        Ports::Listed(vec![80..=80, 443..=443, 8000..=8010])
    );
    assert_eq!(web.ports.listed(), 13);
    let rate = |rate, burst| Rate::new(LimitKind::Syn, rate, Some(burst), TICK_NS).unwrap();
    assert_eq!(
        (web.incomplete, far.incomplete),
        (rate(10, 300), rate(90, 180))
    );
    assert_eq!(
        (far.syn, far.dry_run, far.forwarded),
        (When::Auto, false, true)
    );
    let listed = ["203.0.113.7", "2001:db8::7"].map(|a| a.parse().unwrap());
    assert_eq!(far.addresses, Addresses::Listed(listed.into()));
    assert_eq!((dns.protocol, dns.syn), (Protocol::Udp, When::Off));
    assert_eq!(rest.ports, Ports::Listening);
    assert!(!m.needs_cookies());
    assert!(model_of("[[service]]\nname = 'a'\nports = [1]").needs_cookies());
    assert!(!model_of("[[service]]\nname = 'a'\nports = [1]\nsyn = 'off'").needs_cookies());
}

#[test]
fn services_that_make_no_sense_are_refused() {
    let service = |name: &str, rest: &str| format!("[[service]]\nname = '{name}'\n{rest}\n");
    for (text, want) in [
        (
            "[[service]]\nports = [1]".to_owned(),
            "edge.toml:2: service[0].name: missing; give",
        ),
        (
            service("a", ""),
            "edge.toml:2: service[0].ports: missing; name them",
        ),
        (
            service("A", "ports = [1]"),
            "service[0].name = 'A': no name; write 1 to 63 of",
        ),
        (
            service("a", "ports = []"),
            "service[0].ports: no port; name some",
        ),
        (
            service("a", "ports = [0]"),
            "service[0].ports[0] = 0: no port; expected",
        ),
        (
            service("a", "ports = ['9-8']"),
            "service[0].ports[0] = '9-8': no port",
        ),
        (
            service("a", "ports = 'all'"),
            "a string; expected a list such as",
        ),
        (
            service("a", "ports = [1]\nprotocol = 'sctp'"),
            "expected one of \"tcp\", \"udp\"",
        ),
        (
            service("a", "ports = [1]\nsyn = 'on'"),
            "expected one of \"off\", \"auto\", \"always\"",
        ),
        (
            service("a", "ports = 'listening'\nprotocol = 'udp'"),
            "UDP sockets do not tell",
        ),
        (
            service("a", "ports = [1]\naddresses = []"),
            "addresses: no address; name some",
        ),
        (
            service("a", "ports = [1]\naddresses = ['eth0']"),
            "no address; expected \"local\"",
        ),
        (
            service("a", "ports = [1]\naddresses = ['127.0.0.1']"),
            "packets of others",
        ),
        (
            service("a", "ports = [1]\naddresses = ['fe80::1']"),
            "a link-local address",
        ),
        (
            service("a", "ports = [1]\naddresses = ['::ffff:192.0.2.1']"),
            "an IPv4-mapped IPv6 address; write it as plain IPv4",
        ),
        (
            service("a", "ports = [1]\naddresses = ['local', '192.0.2.1']"),
            "write it alone",
        ),
        (
            service("a", "ports = [1]\nforwarded = true"),
            "service[0].addresses: missing; a forwarded",
        ),
        (
            service("a", "ports = [1]\nforwarded = true\naddresses = ['local']"),
            "on other hosts",
        ),
        (
            service(
                "a",
                "ports = 'listening'\nforwarded = true\naddresses = ['192.0.2.1']",
            ),
            "name the ports",
        ),
        (
            service("a", "ports = [1]\nincomplete = { burst = 5 }"),
            "a burst without a rate",
        ),
        (
            service("a", "ports = [1]\nincomplete = { rate = 5, burst = 127 }"),
            "edge.toml:5: service[0].incomplete.burst = 127: burst 127 is below 128: one packet in 64 is counted, for 64, so that two would be over it; raise burst to at least 128",
        ),
        (
            service("host", "ports = [1]"),
            "service[0].name = 'host': the name for all ports of no service (flood.rest); choose another",
        ),
        (
            service("a", "ports = [1]\nprotocol = 'udp'\nreflection.burst = 1")
                + "[flood.reflection]",
            "service[0].reflection.burst = 1: a burst without a rate",
        ),
        (
            "flood.rest = 'always'".to_owned(),
            "expected one of \"off\", \"auto\"",
        ),
        (
            "flood.icmp.echo = { rate = 0 }".to_owned(),
            "flood.icmp.echo.rate = 0: rate 0 is below the lowest",
        ),
        (
            "flood.icmp.echo = { rate = 1000, burst = 3 }".to_owned(),
            "flood.icmp.echo.burst = 3: burst 3 is below what one clock tick admits",
        ),
        (
            "flood.icmp.errors = { burst = 3 }".to_owned(),
            "a burst without a rate",
        ),
        (
            "flood.prefixes.dest = { rate = 1000, burst = 31 }".to_owned(),
            "flood.prefixes.dest.burst = 31: burst 31 is below 32: one packet in 16 is counted",
        ),
        (
            "flood.prefixes.sources = { rate = 1 }".to_owned(),
            "did you mean flood.prefixes.source?",
        ),
        (
            "[flood.reflection]\nports = []".to_owned(),
            "flood.reflection.ports: no port; name some, or leave the key out",
        ),
        (
            "[flood.reflection]\nports = [0]".to_owned(),
            "flood.reflection.ports[0] = 0: no port; expected",
        ),
        (
            "[flood.reflection]\nmode = 'on'".to_owned(),
            "expected one of \"off\", \"dry-run\", \"enforce\"",
        ),
        (
            service("a", "ports = [1]\nincomplete = { rate = 0 }"),
            "below the lowest",
        ),
        (
            service(
                "a",
                "ports = ['1-4096']\naddresses = ['192.0.2.1', '192.0.2.2']",
            ),
            "8192 addresses and ports or more",
        ),
        (
            service("a", "ports = [1]") + &service("a", "ports = [2]"),
            "edge.toml:6: service[1].name = 'a': the name of another",
        ),
        (
            service("a", "ports = ['1-9']") + &service("b", "ports = [9, 5]"),
            "service[1]: \"b\" has port 5 in common with \"a\"",
        ),
        (
            service("a", "ports = 'listening'") + &service("b", "ports = 'listening'"),
            "\"b\" has what listens in common with \"a\"",
        ),
        (
            service("b", "ports = [5]\naddresses = ['192.0.2.1']") + &service("a", "ports = [5]"),
            "\"b\" has port 5 in common with \"a\", which has it on all addresses",
        ),
        (
            "flood.completed = 0".to_owned(),
            "choose a number from 1 to 100",
        ),
        (
            "flood.hold = 10".to_owned(),
            "an integer; expected a span of time",
        ),
        (
            "flood.hold = '2h'".to_owned(),
            "from 1s to 3600s (default 10s)",
        ),
        ("flood.verified_ttl = '19h'".to_owned(), "from 1s to 64800s"),
        (
            "flood.sysctls = 'no'".to_owned(),
            "expected one of \"set\", \"check\"",
        ),
        (
            "tables.service_targets = 0".to_owned(),
            "from 1 to 1048576 (default 4096)",
        ),
    ] {
        let got = problem(&text);
        assert!(got.contains(want), "{text}\n{got}\n{want}");
    }
    // What looks alike, and is not the same.
    for fine in [
        service("a", "ports = [1]") + &service("b", "ports = [1]\nprotocol = 'udp'"),
        service("a", "ports = [1]") + &service("b", "ports = 'listening'"),
        service("a", "ports = [1]")
            + &service(
                "b",
                "ports = [1]\nforwarded = true\naddresses = ['192.0.2.1']",
            ),
        service("a", "ports = [1]\naddresses = ['192.0.2.1']")
            + &service("b", "ports = [1]\naddresses = ['192.0.2.2']"),
    ] {
        assert_eq!(model_of(&fine).services.len(), 2, "{fine}");
    }
}

#[test]
fn a_service_with_the_port_of_bgp_is_warned_of() {
    let warned = |ports: &str, more: &str| {
        let text = format!("[[service]]\nname = 'a'\nports = {ports}\n{more}");
        let told = "has port 179, that of BGP";
        warnings(&text).iter().any(|w| w.contains(told))
    };
    assert!(warned("[179]", "") && warned("[22, '100-200']", "syn = 'always'"));
    assert!(!warned("[178, 180]", "") && !warned("[179]", "syn = 'off'"));
    assert!(!warned("[179]", "protocol = 'udp'"));
}
