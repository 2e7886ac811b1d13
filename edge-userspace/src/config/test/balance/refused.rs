//! What a balanced service cannot be.

use super::{model_of, problem, service};
use crate::config::balance::MAX_SERVICE_BACKENDS;

#[test]
fn balanced_services_that_cannot_be_are_refused() {
    let of = |keys: &str| service("a", keys, "");
    let backend = |backend: &str| service("a", "", backend);
    let nat = |backend: &str| {
        service("a", "forward = 'nat'", backend) + "[balance]\nsnat = ['192.0.2.1']\n"
    };
    let quic = |keys: &str, id: &str| {
        let keys = format!("protocol = 'udp'\nhash = 'quic'\n{keys}");
        service("a", &keys, &format!("server_id = '{id}'"))
    };
    let bare = |keys: &str| format!("[[service]]\nname = 'a'\nports = [1]\n{keys}");
    for (text, want) in [
        // What belongs together.
        (
            of("forward = 'dsr'"),
            "edge.toml:4: service[0].forward = 'dsr': no such choice; expected one of \"local\", \"ipip\", \"gue\", \"l2\", \"nat\"",
        ),
        (
            of("forwarded = false"),
            "edge.toml:4: service[0].forwarded = false: a balanced service is forwarded; remove this key, or forward",
        ),
        (
            bare("forward = 'local'\nforwarded = true\naddresses = ['192.0.2.1']"),
            "service[0].forwarded = true: forward = \"local\" says that this host answers",
        ),
        (
            bare("[[service.backend]]\nname = 'b'\naddress = '10.0.0.1'"),
            "edge.toml:5: service[0].backend[0]: only for a balanced service; add forward = \"ipip\"",
        ),
        (
            bare("forward = 'local'\n[[service.backend]]\nname = 'b'\naddress = '10.0.0.1'"),
            "service[0].backend[0]: only for a balanced service",
        ),
        (
            bare("backend = []"),
            "service[0].backend: only for a balanced",
        ),
        (
            bare("hash = 'source'"),
            "service[0].hash: only for a balanced",
        ),
        (bare("floor = 1"), "service[0].floor: only for a balanced"),
        (bare("slow_start = '1s'"), "service[0].slow_start: only for"),
        (bare("echo = false"), "service[0].echo: only for a balanced"),
        (
            bare("[service.health]\nkind = 'tcp'"),
            "service[0].health: only for a balanced",
        ),
        (
            service("a", "hash = 'quic'", "server_id = '01'"),
            "service[0].hash = 'quic': QUIC runs over UDP, and the service is TCP; set protocol",
        ),
        (
            of("floor = 101"),
            "choose a number from 0 to 100 (default 25)",
        ),
        (
            of("slow_start = '2h'"),
            "service[0].slow_start = '2h': out of range; choose a span from 0s to 1h (default 0s)",
        ),
        // Addresses and ports.
        (
            bare("addresses = ['203.0.113.64/28']"),
            "addresses[0] = '203.0.113.64/28': only balanced services (forward = \"ipip\"",
        ),
        (
            bare("addresses = ['203.0.113.64/28']\nforwarded = true"),
            "only balanced services",
        ),
        (
            "[[service]]\nname = 'a'\nports = 'any'".to_owned(),
            "service[0].ports = 'any': only for balanced services",
        ),
        (
            of("addresses = ['203.0.0.0/21']"),
            "addresses[0] = '203.0.0.0/21': too large, for each address takes room in the tables; name prefixes from /22 to /32",
        ),
        (
            of("addresses = ['2001:db8::/111']"),
            "name prefixes from /112 to /128",
        ),
        (
            of("addresses = ['203.0.113.65/28']"),
            "bits are set behind the prefix length; did you mean 203.0.113.64/28?",
        ),
        (
            of("addresses = ['127.0.0.0/28']"),
            "no address at which packets of others arrive",
        ),
        (
            of("addresses = ['255.255.255.240/28']"),
            "no address at which packets of others arrive",
        ),
        (of("addresses = ['fe80::/112']"), "a link-local address"),
        (
            of("addresses = ['local']"),
            "on other hosts; name its addresses",
        ),
        (
            of("ports = 'listening'"),
            "who listens on another host is not known",
        ),
        (
            of("addresses = ['2001:db8::/112']"),
            "service[0]: up to here services have 65536 addresses and ports or more, and there is room for 4096; raise tables.service_targets",
        ),
        // Backends.
        (
            "[[service]]\nname = 'a'\nports = [1]\naddresses = ['203.0.113.10']\nforward = 'l2'"
                .to_owned(),
            "edge.toml:2: service[0].backend: missing; a balanced service needs a [[service.backend]]",
        ),
        (
            of("backend = []")
                .replace("[[service.backend]]\nname = 'b1'\naddress = '10.0.0.1'", ""),
            "service[0].backend: missing",
        ),
        (
            backend("name = 'B'"),
            "service[0].backend[0].name = 'B': no name; write 1 to 63 of a-z",
        ),
        (
            of("") + "[[service.backend]]\nname = 'b1'\naddress = '10.0.0.2'",
            "service[0].backend[1].name = 'b1': the name of another backend of the service",
        ),
        (
            of("") + "[[service.backend]]\nname = 'b2'\naddress = '10.0.0.1'",
            "service[0].backend[1]: \"b2\" is where \"b1\" is; remove one of them",
        ),
        (
            nat("port = 1").replace(
                "[balance]",
                "[[service.backend]]\nname = 'b2'\naddress = '10.0.0.1'\nport = 1\n[balance]",
            ),
            "service[0].backend[1]: \"b2\" is where \"b1\" is",
        ),
        (
            of("") + "[[service.backend]]\naddress = '10.0.0.2'",
            "service[0].backend[1].name: missing; give the backend a name",
        ),
        (
            of("") + "[[service.backend]]\nname = 'b2'",
            "service[0].backend[1].address: missing; say where it is",
        ),
        (
            backend("address = '10.0.0.1/32'"),
            "no address; expected an address such as",
        ),
        (
            backend("address = '127.0.0.1'"),
            "backend[0].address = '127.0.0.1': no address of a host that packets are sent to; name one of the backend",
        ),
        (backend("address = '0.0.0.0'"), "no address of a host"),
        (backend("address = '::'"), "no address of a host"),
        (backend("address = '224.0.0.1'"), "no address of a host"),
        (backend("address = 'ff02::1'"), "no address of a host"),
        (
            backend("address = '255.255.255.255'"),
            "no address of a host",
        ),
        (backend("address = '169.254.1.1'"), "a link-local address"),
        (backend("address = 'fe80::1'"), "a link-local address"),
        (
            backend("address = '::ffff:10.0.0.1'"),
            "an IPv4-mapped IPv6 address; write it as plain IPv4",
        ),
        (
            backend("port = 80"),
            "service[0].backend[0].port = 80: forward = \"ipip\" leaves packets as they are, with the port of the service; remove it, or choose \"nat\"",
        ),
        (nat("port = 0"), "no port; expected a port from 1 to 65535"),
        (nat("port = '80-81'"), "no port; expected a port"),
        (
            nat("port = 80").replace("[443]", "'any'"),
            "service[0].backend[0].port = 80: the service has ports = \"any\", which would all become this one",
        ),
        (
            backend("weight = 1001"),
            "choose a number from 0 to 1000 (default 100)",
        ),
        (
            backend("backup = true"),
            "service[0].backend: all are backups, and of nothing",
        ),
        (
            backend("weight = 0")
                + "[[service.backend]]\nname = 'b2'\naddress = '10.0.0.2'\nbackup = true",
            "service[0].backend: the weight of all that are no backups is 0",
        ),
        (
            backend("address = '203.0.113.10'"),
            "service[0].backend[0].address = '203.0.113.10': an address of \"a\", which is balanced here, so that its packets would go round; name the backend's own",
        ),
        (
            service("a", "", "address = '203.0.113.65'")
                + &service("b", "addresses = ['203.0.113.64/28']", ""),
            "service[0].backend[0].address = '203.0.113.65': an address of \"b\"",
        ),
        (
            service("a", "", "address = '2001:db8::ffff'")
                + &service("b", "addresses = ['2001:db8::/112']\n", "")
                + "[tables]\nservice_targets = '100k'",
            "an address of \"b\"",
        ),
        (
            nat("port = 443").replace(
                "[balance]",
                "[[service.backend]]\nname = 'b2'\naddress = '10.0.0.1'\n[balance]",
            ),
            "service[0].backend[1]: \"b2\" is where \"b1\" is",
        ),
        // Server ids of QUIC.
        (
            bare("quic_config_id = 1"),
            "service[0].quic_config_id: only for a balanced",
        ),
        (
            of("quic_config_id = 1"),
            "service[0].quic_config_id = 1: only with hash = \"quic\"; add that, or remove this",
        ),
        (
            quic("quic_config_id = 7", "01"),
            "service[0].quic_config_id = 7: out of range; choose a number from 0 to 6 (default 0)",
        ),
        (
            backend("server_id = '01'"),
            "service[0].backend[0].server_id = '01': only for a service with hash = \"quic\"",
        ),
        (
            of("protocol = 'udp'\nhash = 'quic'"),
            "service[0].backend[0].server_id: missing; hash = \"quic\" knows a backend by the id",
        ),
        (
            quic("", "0a1"),
            "service[0].backend[0].server_id = '0a1': no server id; expected 1 to 8 octets in hex",
        ),
        (quic("", "010203040506070809"), "no server id; expected 1"),
        (
            quic("", "01").replace("'01'", "1"),
            "server_id = 1: an integer; expected 1 to 8 octets",
        ),
        (
            quic("", "01")
                + "[[service.backend]]\nname = 'b2'\naddress = '10.0.0.2'\nserver_id = '0102'",
            "service[0].backend[1].server_id = '0102': 2 octets long, and that of another backend of the service, \"01\", 1: where ids are of different length",
        ),
        (
            quic("", "aB")
                + "[[service.backend]]\nname = 'b2'\naddress = '10.0.0.2'\nserver_id = 'Ab'",
            "service[0].backend[1].server_id = 'Ab': the id of \"b1\" too; give each",
        ),
        (
            quic("forward = 'nat'", "01") + "[balance]\nsnat = ['192.0.2.1']",
            "service[0].hash = 'quic': NAT knows a connection by the address and port that it left with",
        ),
        // Source addresses.
        (
            service("a", "forward = 'nat'", ""),
            "edge.toml:4: service[0].forward = 'nat': \"a\" has IPv4 backends, and there is no IPv4 address to translate clients to; add one of this host to balance.snat, such as \"192.0.2.1\"",
        ),
        (
            nat("address = '2001:db8::7'"),
            "service[0].forward = 'nat': \"a\" has IPv6 backends",
        ),
        (
            nat("").replace(
                "['192.0.2.1']",
                "['192.0.2.1', '2001:db8::1', '2001:db8::2']",
            ),
            "balance.snat: 1 IPv4 addresses and 2 of the other family, and \"a\" has IPv4 backends",
        ),
        (
            nat("").replace("192.0.2.1", "203.0.113.10"),
            "balance.snat[0] = '203.0.113.10': an address of \"a\": what backends answer would be taken",
        ),
        (
            nat("").replace("192.0.2.1", "10.0.0.1"),
            "balance.snat[0] = '10.0.0.1': the address of a backend",
        ),
    ] {
        let got = problem(&text);
        assert!(got.contains(want), "{text}\n{got}\n{want}");
    }
    // Families may cross, in all ways.
    for address in ["10.0.0.1", "2001:db8:1::1"] {
        for forward in ["ipip", "gue", "l2", "nat"] {
            let keys =
                format!("forward = '{forward}'\naddresses = ['203.0.113.10', '2001:db8::10']");
            let text = service("a", &keys, &format!("address = '{address}'"));
            let snat = "[balance]\nsnat = ['192.0.2.1', '2001:db8::5']";
            assert_eq!(model_of(&(text + snat)).services.len(), 1);
        }
    }
    let many = |n: usize| -> String {
        let one = |i| {
            format!(
                "{{ name = 'b{i}', address = '10.1.{}.{}' }},",
                i / 256,
                i % 256
            )
        };
        let all: String = (0..n).map(one).collect();
        format!(
            "[[service]]\nname = 'a'\naddresses = ['203.0.113.10']\nports = [1]\nforward = 'ipip'\nbackend = [{all}]\n"
        )
    };
    assert_eq!(model_of(&many(MAX_SERVICE_BACKENDS)).services.len(), 1);
    let got = problem(&many(MAX_SERVICE_BACKENDS + 1));
    assert!(
        got.contains("backend[650]: more than 650 backends"),
        "{got}"
    );
    let got = problem(&(many(300) + "[balance]\nslots = 251"));
    assert!(
        got.contains("service[0]: 300 backends, and a ring has 251 slots, too few"),
        "{got}"
    );
    assert!(
        got.contains("raise balance.slots to 30000 or more"),
        "{got}"
    );
}
