//! What balanced services share, and what they cannot.

use super::{model_of, problem, service, warnings};

#[test]
fn what_all_share_is_checked() {
    let with = |section: &str| {
        service("a", "forward = 'nat'", "")
            + &service("b", "addresses = ['203.0.113.11']", "")
            + "[balance]\n"
            + section
            + "\n"
            + if section.contains("snat") {
                ""
            } else {
                "snat = ['192.0.2.1']"
            }
    };
    for (section, want) in [
        ("flows = 1023", "from 1024 to 33554432 (default 1000000)"),
        ("flows = '33554433'", "out of range"),
        (
            "tcp_idle = '9s'",
            "choose a span from 10s to 1d (default 15m)",
        ),
        ("tcp_idle = '25h'", "out of range"),
        (
            "udp_idle = '999ms'",
            "choose a span from 1s to 1h (default 2m)",
        ),
        (
            "slots = 65_536",
            "balance.slots = 65_536: not a prime from 251 to 655373, which backends need for even shares; choose 65521 or 65537 (default 65537: up to 650 backends a service)",
        ),
        (
            "slots = 13",
            "not a prime from 251 to 655373, which backends need for even shares; choose 251 (default",
        ),
        ("slots = '10G'", "choose 655373 (default"),
        (
            "seed_file = 'fleet.seed'",
            "no absolute path; write it from / on and without .., such as \"/etc/edge/fleet.seed\"",
        ),
        ("seed_file = '/a/../b'", "no absolute path"),
        ("snat = ['192.0.2.0/24']", "no address; expected an address"),
        (
            "snat = ['127.0.0.1']",
            "balance.snat[0] = '127.0.0.1': no address of a host that packets are sent to; name an address of this host",
        ),
        (
            "tunnel_source = []",
            "balance.tunnel_source: no address; name one of this host",
        ),
        ("tunnel_source = ['fe80::1']", "a link-local address"),
        (
            "tunnel_source = ['192.0.2.1', '192.0.2.2']",
            "balance.tunnel_source[1] = '192.0.2.2': the second of its family",
        ),
        (
            "tunnel_source = ['2001:db8::/64']",
            "balance.tunnel_source[0] = '2001:db8::/64': a prefix; in IPv6 the flow label spreads flows",
        ),
        (
            "tunnel_source = ['10.0.0.0/8']",
            "balance.tunnel_source[0] = '10.0.0.0/8': more sources than flows can be spread over",
        ),
        (
            "tunnel_source = ['192.0.2.1', '::1:1', '::1:2']",
            "balance.tunnel_source: 3 addresses; at most 2 are possible",
        ),
        (
            "fragments = 'pass'",
            "expected one of \"forward\", \"drop\"",
        ),
        (
            "next_hop = [{ interface = 'a', mac = '02:00:00:00:00:01' }]",
            "balance.next_hop[0].backend: missing; a next hop needs backend, interface and mac",
        ),
        (
            "next_hop = [{ backend = '10.0.0.1', mac = '02:00:00:00:00:01' }]",
            "balance.next_hop[0].interface: missing",
        ),
        (
            "next_hop = [{ backend = '10.0.0.1', interface = 'a' }]",
            "balance.next_hop[0].mac: missing",
        ),
        (
            "next_hop = [{ backend = '10.0.0.1', interface = 'a/b', mac = '02:00:00:00:00:01' }]",
            "interface = 'a/b': no name of an interface",
        ),
        (
            "next_hop = [{ backend = '10.0.0.1', interface = 'a', mac = '01:00:00:00:00:01' }]",
            "a group address or zero",
        ),
        (
            "next_hop = [{ backend = '10.0.0.1', interface = 'a', mac = '02:00:00:00:00:01' }, { backend = '10.0.0.1', interface = 'b', mac = '02:00:00:00:00:02' }]",
            "next_hop[1].backend = '10.0.0.1': has a next hop already",
        ),
        (
            "tunnel_source = ['192.0.2.1', '::1:1']\nseed = 1",
            "balance.seed: unknown key; this section takes",
        ),
    ] {
        let got = problem(&with(section));
        assert!(got.contains(want), "{section}\n{got}\n{want}");
    }
    for end in [251, 655_373] {
        assert_eq!(
            model_of(&with(&format!("slots = {end}"))).balancing.slots,
            end
        );
    }
    let list = |n: usize| -> String { (1..=n).map(|i| format!("'192.0.2.{i}',")).collect() };
    assert_eq!(
        model_of(&with(&format!("snat = [{}]", list(64))))
            .balancing
            .snat
            .len(),
        64
    );
    let got = problem(&with(&format!("snat = [{}]", list(65))));
    assert!(
        got.contains("balance.snat: 65 addresses; at most 64 are possible"),
        "{got}"
    );
}

#[test]
fn an_address_and_port_belong_to_one_balanced_service() {
    let two = |one: &str, other: &str| service("a", one, "") + &service("b", other, "");
    let plain = |keys: &str| format!("[[service]]\nname = 'c'\n{keys}\n");
    for (text, want) in [
        (
            two("", "ports = ['400-500']"),
            "service[1]: \"b\" has port 443 in common with \"a\"; an address and port belong to one service",
        ),
        (
            two("ports = 'any'", "ports = 'any'"),
            "service[1]: \"b\" has ports = \"any\" in common with \"a\"",
        ),
        (
            two(
                "addresses = ['203.0.113.0/24']",
                "addresses = ['203.0.113.64/28']",
            ),
            "service[1]: \"b\" has port 443 of overlapping prefixes in common with \"a\"",
        ),
        (
            two(
                "addresses = ['2001:db8::/120']\nports = 'any'",
                "addresses = ['2001:db8::/120']\nports = 'any'",
            ),
            "service[1]: \"b\" has ports = \"any\" of overlapping prefixes in common with \"a\"",
        ),
        (
            service("a", "", "") + &plain("ports = [443]\naddresses = ['203.0.113.10']"),
            "service[1]: \"c\" has port 443 in common with \"a\"",
        ),
    ] {
        let got = problem(&text);
        assert!(got.contains(want), "{text}\n{got}\n{want}");
    }
    for fine in [
        two("ports = 'any'", ""),
        two("ports = 'any'", "ports = 'any'\nprotocol = 'udp'"),
        two(
            "ports = 'any'",
            "ports = 'any'\naddresses = ['203.0.113.11']",
        ),
        two("addresses = ['203.0.113.0/28']", ""),
        two(
            "addresses = ['203.0.113.0/28']\nports = 'any'",
            "ports = 'any'",
        ),
        two(
            "addresses = ['203.0.113.0/28']\nports = 'any'",
            "addresses = ['203.0.113.0/24']",
        ),
        two(
            "addresses = ['203.0.113.0/28']",
            "addresses = ['203.0.113.0/28']\nports = [80]",
        ),
        two(
            "addresses = ['203.0.113.0/28']",
            "addresses = ['203.0.113.16/28']",
        ),
        service("a", "", "") + &plain("ports = [443]"),
        service("a", "ports = 'any'", "") + &plain("ports = 'listening'"),
        service("a", "ports = 'any'", "") + &plain("ports = [443]\naddresses = ['203.0.113.10']"),
    ] {
        assert_eq!(model_of(&fine).services.len(), 2, "{fine}");
    }
}

#[test]
fn what_of_balancing_was_probably_not_meant_is_warned_of() {
    let hop =
        "[[balance.next_hop]]\nbackend = '10.0.0.2'\ninterface = 'a'\nmac = '02:00:00:00:00:01'";
    let nat = service("a", "forward = 'nat'", "") + "[balance]\nsnat = ['192.0.2.1']\n";
    for (text, want) in [
        (
            "[balance]\nflows = 2000".to_owned(),
            "edge.toml:3: balance: without effect, for there is no [[service]] with forward",
        ),
        (
            service("a", "", "") + "[balance]\nsnat = ['192.0.2.1']",
            "balance.snat: without effect, for there is no service with forward = \"nat\"",
        ),
        (
            nat.clone() + "tunnel_source = ['192.0.2.1']",
            "balance.tunnel_source: without effect, for there is no service with forward = \"ipip\" or \"gue\"",
        ),
        (
            service("a", "", "") + hop,
            "balance.next_hop[0].backend = '10.0.0.2': without effect, for no service has such a backend",
        ),
        (
            nat.replace("['192.0.2.1']", "['192.0.2.1', '192.0.2.1']"),
            "balance.snat[1] = '192.0.2.1': named twice",
        ),
        (
            service("a", "", "")
                + "[[service.backend]]\nname = 'b2'\naddress = '10.0.0.2'\n[[service.backend]]\nname = 'b3'\naddress = '10.0.0.3'\n[balance]\nslots = 251",
            "service[0]: 3 backends, and a ring has 251 slots, so that their shares are uneven; raise balance.slots to 300 or more",
        ),
        (
            service("a", "addresses = ['203.0.113.0/24', '203.0.113.64/28']", ""),
            "service[0].addresses: 203.0.113.64/28 lies in 203.0.113.0/24",
        ),
        (
            service("a", "addresses = ['203.0.113.0/24', '203.0.113.0/24']", ""),
            "addresses[1] = '203.0.113.0/24': named twice",
        ),
    ] {
        let got = warnings(&text);
        assert_eq!(got.len(), 1, "{text}: {got:?}");
        assert!(got[0].contains(want), "{}", got[0]);
    }
    for fine in [
        // It has an effect without [flood.reflection].
        service("a", "protocol = 'udp'", ""),
        nat,
        service("a", "", "address = '10.0.0.2'") + hop,
    ] {
        assert_eq!(warnings(&fine), Vec::<String>::new());
    }
}
