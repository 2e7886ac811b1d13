//! Health checks: files in, models or messages out.

use std::{path::PathBuf, time::Duration};

use super::{checked, model_of, only, problem, service};
use crate::config::balance::{HealthCheck, HttpProbe, Passive, Probe, Through};

#[test]
fn health_checks_have_a_port_and_defaults_of_their_kind() {
    let health = |keys: &str, health: &str| {
        let m = model_of(&checked(keys, health));
        only(&m).balance.clone().unwrap().health.unwrap()
    };
    let tcp = health("", "kind = 'tcp'");
    let want = HealthCheck {
        probe: Probe::Tcp,
        through: Through::Tunnel,
        port: None,
        interval: Duration::from_secs(2),
        timeout: Duration::from_secs(1),
        rise: 2,
        fall: 3,
        jitter_per_cent: 10,
    };
    assert_eq!(tcp, want);
    let quick = health("", "kind = 'tcp'\ninterval = '100ms'");
    assert_eq!(quick.timeout, Duration::from_millis(50));
    let http = HttpProbe {
        tls: false,
        http2: false,
        path: "/".to_owned(),
        host: None,
        status: (200, 299),
        body: None,
    };
    assert_eq!(health("", "kind = 'http'").probe, Probe::Http(http));
    let udp = health(
        "protocol = 'udp'",
        r#"kind = 'udp'
        send = "\u0000ping""#,
    );
    let want = Probe::Udp {
        send: b"\0ping".to_vec(),
        expect: Vec::new(),
    };
    assert_eq!(udp.probe, want);
    let grpc = health("", "kind = 'grpc'\nservice = 'a.v1.B'").probe;
    let want = Probe::Grpc {
        tls: false,
        service: "a.v1.B".to_owned(),
    };
    assert_eq!(grpc, want);
    let exec = health("", "kind = 'exec'\ncommand = ['/bin/check', '-v', '']").probe;
    let want = Probe::Exec {
        command: PathBuf::from("/bin/check"),
        arguments: vec!["-v".to_owned(), String::new()],
    };
    assert_eq!(exec, want);
    // Over another protocol, of several ports, of the backends' own.
    let port = |keys: &str, backend: &str, health: &str| {
        let text = service("a", keys, backend) + "[service.health]\n" + health;
        let m = model_of(&text);
        let a = only(&m);
        a.check_port(&a.balance.as_ref().unwrap().backends[0])
    };
    let quic = "protocol = 'udp'\nhash = 'quic'";
    assert_eq!(
        port(quic, "server_id = '01'", "kind = 'https'\nport = 443"),
        Some(443)
    );
    assert_eq!(
        port("ports = 'any'", "", "kind = 'tcp'\nport = 22"),
        Some(22)
    );
    assert_eq!(port("", "", "kind = 'tcp'"), Some(443));
    let nat = "forward = 'nat'\nports = [80, 81]";
    let snat = "kind = 'tcp'\n[balance]\nsnat = ['192.0.2.1']";
    assert_eq!(port(nat, "port = 8080", snat), Some(8080));
}

/// The default follows from how packets reach backends, and a program goes its own way.
#[test]
fn checks_go_as_packets_of_clients_do() {
    let through = |keys: &str, health: &str| {
        let nat = match keys.contains("nat") {
            true => "[balance]\nsnat = ['192.0.2.1']\n",
            false => "",
        };
        let m = model_of(&(checked(keys, health) + nat));
        only(&m).balance.clone().unwrap().health.unwrap().through
    };
    for (forward, default) in [
        ("ipip", Through::Tunnel),
        ("gue", Through::Tunnel),
        ("l2", Through::Direct),
        ("nat", Through::Direct),
    ] {
        let keys = format!("forward = '{forward}'");
        assert_eq!(through(&keys, "kind = 'http'"), default, "{forward}");
        let direct = "kind = 'http'\nthrough = 'direct'";
        assert_eq!(through(&keys, direct), Through::Direct, "{forward}");
        let program = "kind = 'exec'\ncommand = ['/bin/check']";
        assert_eq!(through(&keys, program), Through::Direct, "{forward}");
    }
    let said = "kind = 'grpc'\nthrough = 'tunnel'";
    assert_eq!(through("forward = 'gue'", said), Through::Tunnel);
}

#[test]
fn health_checks_that_cannot_be_are_refused() {
    for (keys, health, want) in [
        (
            "",
            "rise = 1",
            "service[0].health.kind: missing; say what is asked",
        ),
        (
            "",
            "kind = 'icmp'",
            "expected one of \"tcp\", \"http\", \"https\", \"udp\", \"grpc\", \"exec\"",
        ),
        (
            "forward = 'l2'",
            "kind = 'tcp'\nthrough = 'tunnel'",
            "service[0].health.through = 'tunnel': only with forward = \"ipip\" or \"gue\": with \"l2\" packets go to backends in no tunnel; remove it, or set \"direct\"",
        ),
        (
            "",
            "kind = 'exec'\ncommand = ['/bin/check']\nthrough = 'tunnel'",
            "service[0].health.through = 'tunnel': a program sends what it likes",
        ),
        (
            "",
            "kind = 'tcp'\nthrough = 'ipip'",
            "no such choice; expected one of \"tunnel\", \"direct\"",
        ),
        (
            "",
            "kind = 'tcp'\ninterval = '99ms'",
            "interval = '99ms': out of range; choose a span from 100ms to 1h (default 2s)",
        ),
        ("", "kind = 'tcp'\ninterval = '2h'", "out of range"),
        (
            "",
            "kind = 'tcp'\ninterval = 2",
            "an integer; expected a span of time such as \"500ms\"",
        ),
        (
            "",
            "kind = 'tcp'\ntimeout = '9ms'",
            "choose a span from 10ms to 1h (default 1s)",
        ),
        (
            "",
            "kind = 'tcp'\ntimeout = '2s'",
            "timeout = '2s': not shorter than the interval (2s), so that checks would overtake each other",
        ),
        (
            "",
            "kind = 'tcp'\nrise = 0",
            "choose a number from 1 to 100 (default 2)",
        ),
        (
            "",
            "kind = 'tcp'\nfall = 101",
            "choose a number from 1 to 100 (default 3)",
        ),
        (
            "",
            "kind = 'tcp'\njitter = 51",
            "choose a number from 0 to 50 (default 10)",
        ),
        (
            "",
            "kind = 'tcp'\nport = 65536",
            "no port; expected a port from 1 to 65535",
        ),
        // Keys of another kind.
        (
            "",
            "kind = 'tcp'\npath = '/'",
            "service[0].health.path: only for kind = \"http\" or \"https\", and it is \"tcp\"; remove one of them",
        ),
        (
            "",
            "kind = 'grpc'\nhost = 'a'",
            "health.host: only for kind = \"http\"",
        ),
        (
            "",
            "kind = 'tcp'\nstatus = 200",
            "health.status: only for kind = \"http\"",
        ),
        (
            "",
            "kind = 'tcp'\nbody = 'a'",
            "health.body: only for kind = \"http\"",
        ),
        (
            "",
            "kind = 'http'\nsend = 'a'",
            "health.send: only for kind = \"udp\", and it is \"http\"",
        ),
        (
            "",
            "kind = 'http'\nexpect = 'a'",
            "health.expect: only for kind = \"udp\"",
        ),
        (
            "",
            "kind = 'http'\nservice = 'a'",
            "health.service: only for kind = \"grpc\"",
        ),
        (
            "",
            "kind = 'http'\ncommand = ['/a']",
            "health.command: only for kind = \"exec\"",
        ),
        // The port that is asked.
        (
            "ports = [80, 81]",
            "kind = 'tcp'",
            "service[0].health.port: missing: the service has more than one port; name that which is asked",
        ),
        (
            "ports = 'any'",
            "kind = 'tcp'",
            "health.port: missing: the service has more than",
        ),
        (
            "protocol = 'udp'",
            "kind = 'https'",
            "health.port: missing: \"https\" does not ask over udp, the protocol of the service; name the port",
        ),
        (
            "",
            "kind = 'udp'\nsend = 'a'",
            "health.port: missing: \"udp\" does not ask over tcp",
        ),
        // What is asked.
        (
            "",
            "kind = 'http'\npath = 'health'",
            "health.path = 'health': no path; begin with '/', and write blanks",
        ),
        ("", "kind = 'http'\npath = ''", "no path; begin"),
        ("", "kind = 'http'\npath = '/a b'", "no path; begin"),
        (
            "",
            "kind = 'http'\npath = \"/a\\r\\nX: y\"",
            "no path; begin",
        ),
        ("", "kind = 'http'\npath = '/ä'", "no path; begin"),
        (
            "",
            "kind = 'http'\nhost = 'a b'",
            "host = 'a b': no name of a host; write it without scheme",
        ),
        ("", "kind = 'http'\nhost = 'https://a'", "no name of a host"),
        ("", "kind = 'http'\nhost = 'a:80'", "no name of a host"),
        ("", "kind = 'http'\nhost = 'a..b'", "no name of a host"),
        ("", "kind = 'http'\nhost = '-a'", "no name of a host"),
        (
            "",
            "kind = 'http'\nhost = \"a\\r\\nX\"",
            "no name of a host",
        ),
        (
            "",
            "kind = 'http'\nbody = ''",
            "body = '': empty, which any body contains",
        ),
        (
            "",
            "kind = 'http'\nstatus = 99",
            "status = 99: no status; expected a status code from 100 to 599",
        ),
        ("", "kind = 'http'\nstatus = '200-600'", "no status"),
        ("", "kind = 'http'\nstatus = '299-200'", "no status"),
        (
            "",
            "kind = 'http'\nstatus = true",
            "a boolean; expected a status code",
        ),
        (
            "protocol = 'udp'",
            "kind = 'udp'",
            "health.send: missing; say what the backend is sent",
        ),
        (
            "",
            "kind = 'grpc'\nservice = 'a b'",
            "service = 'a b': no name of a service",
        ),
        (
            "",
            "kind = 'exec'",
            "health.command: missing; name a program by its absolute path",
        ),
        (
            "",
            "kind = 'exec'\ncommand = []",
            "health.command: no program; name",
        ),
        (
            "",
            "kind = 'exec'\ncommand = ['check']",
            "command[0] = 'check': no absolute path; name",
        ),
        (
            "",
            "kind = 'exec'\ncommand = ['/']",
            "no absolute path; name",
        ),
        (
            "",
            "kind = 'exec'\ncommand = ['/a', \"b\\u0000\"]",
            "command[1] = \"b\\u0000\": holds a zero",
        ),
    ] {
        let got = problem(&checked(keys, health));
        assert!(got.contains(want), "{keys} {health}\n{got}\n{want}");
    }
    let long = "a".repeat(1025);
    for (keys, health) in [
        ("", format!("kind = 'http'\npath = '/{long}'")),
        ("", format!("kind = 'http'\nbody = '{long}'")),
        ("protocol = 'udp'", format!("kind = 'udp'\nsend = '{long}'")),
        (
            "protocol = 'udp'",
            format!("kind = 'udp'\nsend = ''\nexpect = '{long}'"),
        ),
        ("", format!("kind = 'grpc'\nservice = '{long}'")),
        ("", format!("kind = 'exec'\ncommand = ['/a', '{long}']")),
    ] {
        let got = problem(&checked(keys, &health));
        assert!(
            got.contains("bytes long, at most 1024 are possible"),
            "{got}"
        );
    }
    let label = "a".repeat(63);
    let host = |host: &str| checked("", &format!("kind = 'http'\nhost = '{host}'"));
    assert!(problem(&host(&format!("{label}a"))).contains("no name of a host"));
    let longest = format!("{label}.{label}.{label}.{}", &label[..61]);
    assert_eq!(model_of(&host(&longest)).services.len(), 1);
    assert!(problem(&host(&format!("{longest}a"))).contains("no name of a host"));
    let words = |n: usize| format!("kind = 'exec'\ncommand = [{}]", "'/a',".repeat(n));
    assert_eq!(model_of(&checked("", &words(65))).services.len(), 1);
    let got = problem(&checked("", &words(66)));
    assert!(got.contains("more than 64 arguments; put them"), "{got}");
}

#[test]
fn what_clients_meet_counts_with_nat() {
    let with = |keys: &str, health: &str| {
        service("a", keys, "") + health + "\n[balance]\nsnat = ['192.0.2.1']\n"
    };
    let of = |keys: &str, health: &str| {
        let m = model_of(&with(keys, health));
        let balance = only(&m).balance.clone().unwrap();
        (balance.health.is_some(), balance.passive)
    };
    let default = Passive {
        window: Duration::from_secs(10),
        syns: 5,
        retry: Duration::from_secs(10),
    };
    let nat = "forward = 'nat'";
    assert_eq!(of(nat, ""), (false, Some(default)));
    assert_eq!(of(nat, "[service.health]"), (false, Some(default)));
    assert_eq!(
        of(nat, "[service.health]\nkind = 'tcp'"),
        (true, Some(default))
    );
    assert_eq!(of(nat, "[service.health]\npassive = false"), (false, None));
    let own = "[service.health]\npassive_window = '2s'\npassive_syns = 1\npassive_retry = '1h'";
    let want = Passive {
        window: Duration::from_secs(2),
        syns: 1,
        retry: Duration::from_secs(3600),
    };
    assert_eq!(of(nat, own), (false, Some(want)));
    let off = "[service.health]\nkind = 'tcp'\npassive = false";
    assert_eq!(of(nat, off), (true, None));
    assert_eq!(of("forward = 'l2'", off), (true, None));
    let udp = "forward = 'nat'\nprotocol = 'udp'";
    assert_eq!(of(udp, ""), (false, None));
    for (keys, health, want) in [
        (
            udp,
            "kind = 'tcp'\nport = 1\npassive = true",
            "service[0].health.passive: only for TCP with forward = \"nat\"",
        ),
        (
            "forward = 'gue'",
            "kind = 'tcp'\npassive_syns = 9",
            "health.passive_syns: only for TCP",
        ),
        (
            nat,
            "passive = false\npassive_retry = '3s'",
            "health.passive_retry: without effect, for passive = false",
        ),
        (
            nat,
            "passive_window = '1s'",
            "choose a span from 2s to 1h (default 10s)",
        ),
        (
            nat,
            "passive_syns = 0",
            "choose a number from 1 to 1000000 (default 5)",
        ),
        (nat, "interval = '1s'", "health.kind: missing"),
        ("forward = 'l2'", "passive = false", "health.kind: missing"),
    ] {
        let got = problem(&with(keys, &format!("[service.health]\n{health}")));
        assert!(got.contains(want), "{health}\n{got}");
    }
}
