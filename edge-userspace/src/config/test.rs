//! The configuration as a whole: files in, models or messages out.

mod balance;
mod floods;
mod proxy;
mod services;

use std::path::Path;

use edge_common::{
    abi::{FragmentPolicy, LimitKind, Mode},
    addr::Prefix,
};
use proptest::prelude::*;

use super::{
    Checked, ConfigError, Finding, MAX_FINDINGS,
    balance::Balancing,
    bogons::{DEFAULT, default_prefixes},
    floods::{Floods, Prefixes, REFLECTORS},
    limits::OverrideLimit,
    model::{Model, OnExit},
    parse,
    raw::Root,
    reader::FromToml,
    services::Flood,
};

/// A tick of a kernel with 250 of them a second.
pub(crate) const TICK_NS: u64 = 4_000_000;
const MINIMAL: &str = include_str!("../../../config/edge.minimal.toml");
const EXAMPLE: &str = include_str!("../../../config/edge.example.toml");
const UNIT: &str = include_str!("../../../config/edge.service");
const REFERENCE: &str = include_str!("../../../docs/CONFIGURATION.md");

fn check(text: &str) -> Result<Checked, ConfigError> {
    parse(text, Path::new("edge.toml"), TICK_NS)
}

/// The model of a text that names no interfaces itself.
pub(crate) fn model_of(text: &str) -> Model {
    check(&format!("interfaces = ['eth0']\n{text}"))
        .unwrap()
        .model
}

/// The model with nothing but defaults.
pub(crate) fn model() -> Model {
    model_of("")
}

/// What is wrong with a text.
fn problems(text: &str) -> Vec<Finding> {
    match check(text) {
        Err(ConfigError::Invalid(findings)) => findings.list,
        other => panic!("{text}: {other:?}"),
    }
}

/// The one thing that is wrong with a text, behind a line of interfaces.
fn problem(text: &str) -> String {
    let found = problems(&format!("interfaces = ['eth0']\n{text}"));
    assert_eq!(found.len(), 1, "{found:?}");
    found[0].to_string()
}

fn warnings(text: &str) -> Vec<String> {
    let checked = check(&format!(
        "interfaces = ['eth0']\nlists.management = ['192.0.2.1']\n{text}"
    ));
    checked
        .unwrap()
        .warnings
        .iter()
        .map(ToString::to_string)
        .collect()
}

fn p(s: &str) -> Prefix {
    s.parse().unwrap()
}

/// The example with its commented settings in force: those lines have no blank
/// behind the `#`.
fn full_example() -> String {
    let active = |line: &str| match line.strip_prefix('#') {
        Some(rest) if rest.starts_with(|c: char| c.is_ascii_lowercase() || c == '[') => {
            rest.to_owned()
        }
        _ => line.to_owned(),
    };
    EXAMPLE.lines().map(active).collect::<Vec<_>>().join("\n")
}

fn all_keys() -> Vec<String> {
    let mut keys = Vec::new();
    Root::keys("", &mut keys);
    keys
}

#[test]
fn the_examples_are_valid_and_say_the_defaults() {
    let minimal = check(MINIMAL).unwrap();
    assert_eq!(minimal.model, model());
    assert_eq!(check(EXAMPLE).unwrap().model, model());
    let full = check(&full_example()).unwrap();
    // The one thing that no example can know.
    let warned: Vec<&str> = full.warnings.iter().map(|w| w.key.as_str()).collect();
    assert_eq!(warned, ["lists.management", "limits.syn"]);
    assert!(!full.model.limits.overrides.is_empty() && !full.model.arp_bindings.is_empty());
    // The sections say what they are without a word, but for the limits of prefixes.
    let bare = model_of("[flood.icmp]\n[flood.reflection]\n").floods;
    let said = &full.model.floods;
    assert_eq!(
        (&said.icmp, &said.reflection),
        (&bare.icmp, &bare.reflection)
    );
    assert_eq!(said.prefixes.mode, Prefixes::MODE);
    assert!(said.prefixes.rates.iter().all(Option::is_some));
    for (port, protocol) in REFLECTORS {
        for text in [EXAMPLE, REFERENCE] {
            // The example breaks lines inside of names.
            let text = text.replace("\n# ", " ").replace(" | ", " ");
            assert!(
                text.contains(&format!("{port} {protocol}")),
                "{port} {protocol}"
            );
        }
    }
}

#[test]
fn every_key_stands_in_the_example() {
    let text = full_example();
    let mut section = String::new();
    let mut found = Vec::new();
    for line in text.lines() {
        if let Some(header) = line.strip_prefix('[') {
            section = header
                .trim_start_matches('[')
                .split(']')
                .next()
                .unwrap()
                .to_owned();
        } else if let Some((key, value)) = line.split_once(" = ") {
            let key = super::reader::join(&section, key);
            for inner in ["rate", "burst"] {
                if value.contains(&format!("{inner} = ")) {
                    found.push(format!("{key}.{inner}"));
                }
            }
            found.push(key);
        }
    }
    for key in all_keys() {
        assert!(found.contains(&key), "{key} is missing in the example");
    }
}

#[test]
fn every_key_stands_in_the_reference() {
    for key in all_keys() {
        let row = format!("| `{key}` |");
        let line = REFERENCE.lines().find(|l| l.starts_with(&row));
        let line = line.unwrap_or_else(|| panic!("{key} is missing in the reference"));
        assert_eq!(line.matches(" | ").count(), 3, "{line}");
    }
    for bogon in DEFAULT {
        let row = format!("| `{}` |", bogon.range);
        let line = REFERENCE.lines().find(|l| l.starts_with(&row));
        let line = line.unwrap_or_else(|| panic!("{} is missing in the reference", bogon.range));
        assert!(line.contains(bogon.why), "{line}");
        assert!(bogon.except.iter().all(|e| line.contains(e)), "{line}");
    }
}

#[test]
fn the_reference_names_no_key_that_is_not() {
    let keys = all_keys();
    let named = REFERENCE
        .lines()
        .filter_map(|l| l.strip_prefix("| `")?.split('`').next());
    let is_key = |name: &&str| {
        name.bytes()
            .all(|b| b.is_ascii_alphanumeric() || b"_.".contains(&b))
    };
    for name in named
        .filter(is_key)
        .filter(|n| n.contains(|c: char| c.is_ascii_lowercase()))
    {
        assert!(keys.iter().any(|k| k == name), "{name} is no key");
    }
}

#[test]
fn the_unit_grants_what_the_defaults_need() {
    let all = |key: &str| -> Vec<&str> {
        let lines = UNIT
            .lines()
            .filter_map(|l| l.strip_prefix(key)?.strip_prefix('='));
        lines.flat_map(str::split_whitespace).collect()
    };
    let m = model();
    let [state] = all("StateDirectory")[..] else {
        panic!()
    };
    assert_eq!(m.state_dir, Path::new("/var/lib").join(state));
    let [runtime] = all("RuntimeDirectory")[..] else {
        panic!()
    };
    assert_eq!(
        m.socket.parent(),
        Some(Path::new("/run").join(runtime).as_path())
    );
    assert!(
        all("ReadWritePaths")
            .iter()
            .any(|p| m.bpffs_dir.starts_with(p))
    );
    // It would make the BPF file system read-only in spite of that.
    assert_eq!(all("ProtectKernelTunables"), Vec::<&str>::new());
    assert_eq!(
        all("CapabilityBoundingSet"),
        [
            "CAP_BPF",
            "CAP_NET_ADMIN",
            "CAP_NET_BIND_SERVICE",
            "CAP_NET_RAW",
            "CAP_PERFMON"
        ]
    );
    for name in ["tcp_syncookies", "tcp_timestamps"] {
        let path = format!("-/proc/sys/net/ipv4/{name}");
        assert!(all("ReadWritePaths").contains(&path.as_str()), "{name}");
    }
    // bpf is one of @privileged: only a later line brings it back.
    let calls = all("SystemCallFilter");
    let at = |name| calls.iter().position(|c| *c == name);
    assert!(at("~@privileged").is_some() && at("bpf") > at("~@privileged"));
}

#[test]
fn defaults_are_those_of_the_contract() {
    let m = model();
    assert_eq!(m.interfaces, ["eth0"]);
    assert!(!m.allow_generic);
    assert_eq!(m.on_exit, OnExit::Leave);
    assert_eq!(m.state_dir, Path::new("/var/lib/edge"));
    assert_eq!(m.socket, Path::new("/run/edge/edge.sock"));
    assert_eq!(m.bpffs_dir, Path::new("/sys/fs/bpf/edge"));
    assert_eq!(m.metrics_listen, None);
    assert_eq!((m.events_buffer, m.events_per_second), (1 << 20, 10));
    assert_eq!(m.checks.fragment_policy, FragmentPolicy::DropRisky);
    assert!(
        m.checks
            .modes()
            .iter()
            .all(|(_, mode)| *mode == Mode::Enforce)
    );
    assert_eq!((m.limits.v4_prefix, m.limits.v6_prefix), (32, 64));
    assert_eq!((m.flood, m.services), (Flood::default(), Vec::new()));
    assert_eq!(m.floods, Floods::default());
    assert_eq!(m.balancing, Balancing::default());
    let off = (Mode::Off, Mode::Off, Mode::Off);
    let Floods {
        icmp,
        reflection,
        prefixes,
    } = m.floods;
    assert_eq!((icmp.mode, reflection.mode, prefixes.mode), off);
    let mut bogons = default_prefixes();
    bogons.sort_unstable();
    assert_eq!(m.bogon_prefixes, bogons);
}

#[test]
fn a_whole_file_becomes_what_it_says() {
    let m = model_of(
        r#"
        [xdp]
        allow_generic = true
        on_exit = "detach"
        [metrics]
        listen = "[::1]:9273"
        [tables]
        hosts_v4 = "10M"
        [checks]
        land = "dry-run"
        fragment_policy = "drop-all"
        [bogons]
        defaults = false
        extra = ["10.0.0.0/8"]
        except = ["10.0.0.0/9"]
        [[arp_binding]]
        address = "192.0.2.1"
        mac = "02:00:5e:10:00:01"
        [lists]
        management = ["2001:db8::/32", "192.0.2.0/24"]
        blacklist = ["198.51.100.7"]
        [limits]
        v6_prefix = 56
        packets = { rate = "100k", burst = 1000 }
        bytes = { rate = "1Gbit/s", burst = "1MiB", mode = "dry-run" }
        [[limits.override]]
        prefixes = ["203.0.113.0/24", "198.51.100.0/24"]
        packets = "unlimited"
        syn = { rate = 100 }
        [events]
        buffer = "64KiB"
        "#,
    );
    assert!(m.allow_generic && m.on_exit == OnExit::Detach);
    assert_eq!(m.metrics_listen, Some("[::1]:9273".parse().unwrap()));
    assert_eq!(m.capacity.hosts_v4, 10_000_000);
    assert_eq!(m.checks.land, Mode::DryRun);
    assert_eq!(m.checks.fragment_policy, FragmentPolicy::DropAll);
    assert_eq!(m.bogon_prefixes, [p("10.128.0.0/9")]);
    assert_eq!(
        m.arp_bindings,
        [([192, 0, 2, 1].into(), [2, 0, 0x5e, 0x10, 0, 1])]
    );
    assert_eq!(m.management, [p("192.0.2.0/24"), p("2001:db8::/32")]);
    assert_eq!(m.blacklist, [p("198.51.100.7")]);
    let bytes = m.limits.default.kinds[LimitKind::Bytes as usize].unwrap();
    assert_eq!((bytes.per_second(), bytes.burst()), (125_000_000, 1 << 20));
    assert_eq!(m.limits.mode(LimitKind::Bytes), Mode::DryRun);
    assert_eq!(m.limits.mode(LimitKind::Syn), Mode::Enforce);
    let [first, second] = &m.limits.overrides[..] else {
        panic!()
    };
    assert_eq!(
        (first.prefix, second.prefix),
        (p("198.51.100.0/24"), p("203.0.113.0/24"))
    );
    assert_eq!(first.kinds, second.kinds);
    assert_eq!(
        first.kinds[LimitKind::Packets as usize],
        OverrideLimit::Unlimited
    );
    assert_eq!(first.kinds[LimitKind::Udp as usize], OverrideLimit::Inherit);
    assert_eq!((m.limits.v6_prefix, m.events_buffer), (56, 65_536));
}

#[test]
fn an_error_names_file_line_key_value_and_remedy() {
    assert_eq!(
        problem("\n[limits.packets]\nrate = '100k'\nburst = 10"),
        "edge.toml:5: limits.packets.burst = 10: burst 10 is below what one clock tick admits at \
         100000/s (400); raise burst to at least 400 or lower the rate"
    );
    assert_eq!(
        problem("[lists]\nblacklist = [\n  '10.0.0.0/8',\n  '10.0.0.1/8',\n]"),
        "edge.toml:5: lists.blacklist[1] = '10.0.0.1/8': bits are set behind the prefix length; \
         did you mean 10.0.0.0/8?"
    );
}

#[test]
fn an_unknown_key_names_the_nearest() {
    for (text, want) in [
        (
            "[limit]",
            "edge.toml:2: limit: unknown key; did you mean limits?",
        ),
        (
            "limits.packets.brust = 1",
            "edge.toml:2: limits.packets.brust: unknown key; did you mean limits.packets.burst?",
        ),
        (
            "v6_prefix = 56",
            "edge.toml:2: v6_prefix: unknown key; did you mean limits.v6_prefix?",
        ),
        (
            "[xdp]\nzzzzzzzz = 1",
            "edge.toml:3: xdp.zzzzzzzz: unknown key; this section takes allow_generic, on_exit",
        ),
    ] {
        assert_eq!(problem(text), want);
    }
}

#[test]
fn everything_that_is_wrong_is_told_at_once() {
    let found = problems(
        r#"
        interfaces = ["eth0", "eth0", "a/b", 5]
        unknown = 1
        [xdp]
        allow_generic = "yes"
        on_exit = "stay"
        [paths]
        state_dir = "edge"
        bpffs_dir = "/sys/fs/bpf/a.b"
        [tables]
        hosts_v4 = "21M"
        prefixes = -1
        [checks]
        land = true
        [[arp_binding]]
        address = "192.0.2.1"
        [limits.udp]
        rate = 0
        [[limits.override]]
        prefixes = []
        syn = { burst = 5 }
        [events]
        buffer = 100000
        "#,
    );
    let keys: Vec<&str> = found.iter().map(|f| f.key.as_str()).collect();
    assert_eq!(
        keys,
        [
            "interfaces[3]",
            "interfaces[1]",
            "interfaces[2]",
            "unknown",
            "xdp.allow_generic",
            "xdp.on_exit",
            "paths.state_dir",
            "paths.bpffs_dir",
            "tables.hosts_v4",
            "tables.prefixes",
            "checks.land",
            "arp_binding[0].mac",
            "limits.udp.rate",
            "limits.override[0].prefixes",
            "limits.override[0].syn.burst",
            "events.buffer",
        ]
    );
    let lines: Vec<u32> = found.iter().map(|f| f.line).collect();
    assert!(lines.is_sorted(), "{lines:?}");
}

#[test]
fn broken_toml_is_told_by_line_and_only_that() {
    let found = problems("interfaces = ['eth0'\n[xdp]\nallow_generic = maybe\nunknown = 1\n");
    assert!(
        found.iter().all(|f| f.message.starts_with("not TOML: ")),
        "{found:?}"
    );
    assert!(found.iter().any(|f| f.line == 3), "{found:?}");
    let twice = problem("[xdp]\non_exit = 'leave'\non_exit = 'leave'");
    assert!(
        twice.starts_with("edge.toml:4: not TOML: duplicate key"),
        "{twice}"
    );
}

#[test]
fn an_empty_file_asks_for_interfaces() {
    let found = problems("");
    assert_eq!(found.len(), 1);
    assert!(
        found[0]
            .to_string()
            .starts_with("edge.toml:1: interfaces: missing; ")
    );
    assert!(
        problems("interfaces = []")[0]
            .message
            .contains("at least one")
    );
}

#[test]
fn a_section_written_as_the_wrong_thing_is_told() {
    for (text, want) in [
        (
            "xdp = 1",
            "edge.toml:2: xdp = 1: an integer; expected a section",
        ),
        (
            "[arp_binding]\naddress = '192.0.2.1'",
            "edge.toml:2: arp_binding = [arp_binding]: a table; expected a list; write [[arp_binding]]",
        ),
        (
            "[[limits.override]]\nprefixes = ['10.0.0.0/8']\nudp = 'none'",
            "edge.toml:4: limits.override[0].udp = 'none': a string; expected \"unlimited\" or { rate = 1000, burst = 200 }",
        ),
        (
            "[[limits.override]]\nprefixes = ['10.0.0.0/8']",
            "edge.toml:2: limits.override[0]: an override of nothing; add one of packets, bytes, syn, udp, icmp, or remove it",
        ),
    ] {
        assert_eq!(problem(text), want);
    }
}

#[test]
fn values_that_contradict_each_other_are_refused() {
    for (text, want) in [
        (
            "[[limits.override]]\nprefixes = ['10.0.0.0/8', '10.0.0.0/8']\nudp = 'unlimited'",
            "overridden twice",
        ),
        (
            "[[arp_binding]]\naddress = '192.0.2.1'\nmac = '02:00:00:00:00:01'\n[[arp_binding]]\naddress = '192.0.2.1'\nmac = '02:00:00:00:00:02'",
            "bound twice",
        ),
        (
            "[[arp_binding]]\naddress = '192.0.2.1'\nmac = '01:00:00:00:00:01'",
            "group address",
        ),
        ("[tables]\nprefixes = 8", "tables.prefixes: room for 8"),
        (
            "tables.hosts_v4 = 1\nlists.allow = ['192.0.2.1', '192.0.2.2']",
            "tables.hosts_v4: room for 1, but this file alone lists 2",
        ),
        (
            "bogons.except = ['10.0.0.0/8']",
            "not inside any bogon range",
        ),
        (
            "paths.socket = '/0123456789/0123456789/0123456789/0123456789/0123456789/0123456789/0123456789/0123456789/0123456789/edge.sock'",
            "at most 107",
        ),
        ("paths.state_dir = '/var/../etc'", "without .."),
        ("paths.state_dir = '/'", "root directory"),
        ("limits.v4_prefix = 7", "from 8 to 32 (default 32)"),
        ("limits.packets.burst = 7", "a burst without a rate"),
    ] {
        let got = problem(text);
        assert!(got.contains(want), "{got}");
    }
    let many = (0..33)
        .map(|i| format!("'e{i}'"))
        .collect::<Vec<_>>()
        .join(",");
    assert!(
        problems(&format!("interfaces = [{many}]"))[0]
            .message
            .contains("at most 32")
    );
}

#[test]
fn what_was_probably_not_meant_is_warned_of() {
    assert_eq!(warnings(""), Vec::<String>::new());
    for (text, want) in [
        (
            "metrics.listen = '0.0.0.0:9273'",
            "edge.toml:3: metrics.listen = '0.0.0.0:9273': metrics are served without a password",
        ),
        (
            "lists.blacklist = ['192.0.2.1']",
            "without effect, for 192.0.2.1 in lists.management takes precedence",
        ),
        (
            "lists.allow = ['192.0.0.0/16']\nlists.blacklist = ['192.0.2.0/24']",
            "for 192.0.0.0/16 in lists.allow",
        ),
        (
            "lists.blacklist = ['0.0.0.0/0']",
            "a large part of the Internet",
        ),
        (
            "lists.blacklist = ['10.0.0.0/8', '10.0.0.0/8']",
            "lists.blacklist[1] = '10.0.0.0/8': listed twice",
        ),
        (
            "checks.arp_guard = 'enforce'",
            "there is no [[arp_binding]]",
        ),
        (
            "checks.bogons = 'enforce'\nbogons.defaults = false",
            "the list of bogons is empty",
        ),
        ("limits.syn.mode = 'enforce'", "there is no limit of syn"),
        (
            "[[limits.override]]\nprefixes = ['2001:db8::1']\nudp = 'unlimited'",
            "longer than the /64",
        ),
        ("paths.bpffs_dir = '/mnt/edge'", "outside of /sys/fs/bpf"),
        (
            "flood.hold = '1s'",
            "flood: without effect, for there is no [[service]]",
        ),
        (
            "[[service]]\nname = 'a'\nports = [80, '70-90']",
            "edge.toml:5: service[0].ports[0] = 80: named twice",
        ),
        (
            "[[service]]\nname = 'a'\nports = [80]\naddresses = ['192.0.2.1', '192.0.2.1']",
            "addresses[1] = '192.0.2.1': named twice",
        ),
        (
            "[[service]]\nname = 'a'\nports = [80]\nprotocol = 'udp'",
            "protocol = 'udp': without effect: services of UDP are defended against reflection only; add [flood.reflection]",
        ),
        (
            "[flood.reflection]",
            "flood.reflection: without effect, for there is no [[service]] with protocol = \"udp\"",
        ),
        (
            "[flood.reflection]\nports = [53, '50-60']\n[[service]]\nname = 'a'\nports = [53]\nprotocol = 'udp'",
            "flood.reflection.ports[0] = 53: named twice",
        ),
        (
            "[[service]]\nname = 'a'\nports = [80]\nreflection = { rate = 9 }",
            "service[0].reflection: without effect: reflection comes over UDP",
        ),
        (
            "[flood.prefixes]\nmode = 'enforce'",
            "flood.prefixes: without effect, for there is no limit; add source",
        ),
        (
            "limits.syn.rate = 100\n[[service]]\nname = 'a'\nports = [80]",
            "limits.syn: comes before the defence of services",
        ),
    ] {
        let got = warnings(text);
        assert_eq!(got.len(), 1, "{text}: {got:?}");
        assert!(got[0].contains(want), "{}", got[0]);
    }
    for fine in [
        "[flood.icmp]",
        "flood.rest = 'auto'\nlimits.syn.rate = 100",
        "flood.prefixes.dest.rate = 9",
        "[flood.reflection]\n[[service]]\nname = 'a'\nports = [53]\nprotocol = 'udp'",
    ] {
        assert_eq!(warnings(fine), Vec::<String>::new());
    }
    let open = check("interfaces = ['lo']").unwrap().warnings;
    let keys: Vec<&str> = open.iter().map(|w| w.key.as_str()).collect();
    assert_eq!(keys, ["interfaces[0]", "lists.management"]);
    // Nothing that goes by source is enforced: nobody can be locked out.
    let harmless = check("interfaces = ['eth0']\nchecks.blacklist = 'dry-run'").unwrap();
    assert_eq!(harmless.warnings, []);
}

#[test]
fn exceptions_make_holes_in_the_bogon_list() {
    let m = model_of(
        "[bogons]\nextra = ['10.0.0.0/8', '192.168.0.0/16']\nexcept = ['198.18.0.0/15', '10.1.0.0/16', '2001:db8:1::/48']",
    );
    let is_bogon = |s: &str| m.bogon_prefixes.iter().any(|b| b.contains(p(s)));
    for bogon in [
        "10.0.0.1",
        "10.2.0.1",
        "192.168.1.1",
        "127.0.0.1",
        "2001:db8::1",
    ] {
        assert!(is_bogon(bogon), "{bogon}");
    }
    for fine in ["10.1.2.3", "198.18.0.1", "198.19.0.1", "2001:db8:1::1"] {
        assert!(!is_bogon(fine), "{fine}");
    }
}

#[test]
fn hostile_text_is_bounded() {
    // Depth, number of errors, number of keys.
    assert!(check(&"[".repeat(1 << 18)).is_err());
    assert!(check(&format!("a = {}", "[".repeat(1 << 17))).is_err());
    assert!(check(&format!("a = {}", "{a=".repeat(1 << 16))).is_err());
    assert!(check(&"a.".repeat(1 << 17)).is_err());
    let lines: String = (0..60_000).map(|i| format!("k{i} = 1\n")).collect();
    let Err(ConfigError::Invalid(many)) = check(&lines) else {
        panic!()
    };
    assert_eq!(
        (many.list.len(), many.omitted),
        (MAX_FINDINGS, 60_000 - MAX_FINDINGS)
    );
    assert!(many.to_string().contains("and 59900 more errors"));
    let list: String = (0..65_537).map(|_| "'::1',").collect();
    let found = problems(&format!("interfaces=['a']\nlists.allow=[{list}]"));
    assert!(found[0].message.contains("at most 65536"), "{}", found[0]);
    let odd = problems("interfaces = ['a']\n\"x\\ny\\u001b[2J\" = 1");
    assert!(!odd[0].to_string().contains(char::is_control), "{}", odd[0]);
}

/// Text that is often nearly right.
fn configuration() -> impl Strategy<Value = String> {
    let keys = all_keys();
    let key = prop::sample::select(keys).prop_map(|k| k.replace('\\', ""));
    let value = prop_oneof![
        any::<i64>().prop_map(|n| n.to_string()),
        any::<bool>().prop_map(|b| b.to_string()),
        "[0-9]{1,3}[kMG]?(B|bit|iB)?(/s)?".prop_map(|s| format!("'{s}'")),
        "(off|dry-run|enforce|leave|drop-all|unlimited|eth0|/a/b)".prop_map(|s| format!("'{s}'")),
        "[0-9]{1,3}\\.0\\.0\\.0/[0-9]{1,2}".prop_map(|s| format!("['{s}']")),
        "[0-9a-f:]{0,8}::/[0-9]{1,3}".prop_map(|s| format!("['{s}']")),
        Just("{ rate = 5, burst = 5 }".to_owned()),
        Just("[{ prefixes = ['10.0.0.0/8'], udp = 'unlimited' }]".to_owned()),
        Just(
            "{ echo = { rate = 5 }, source = { rate = 5, burst = 5 }, ports = [9, '8-9'] }"
                .to_owned()
        ),
        Just("[{ name = 'a', ports = ['1-9', 5], addresses = ['192.0.2.1'] }]".to_owned()),
        Just("[{ name = 'a', ports = 'any', addresses = ['192.0.2.0/28'], forward = 'nat', backend = [{ name = 'b', address = '10.0.0.1', port = 5 }], health = { kind = 'tcp' } }]".to_owned()),
        Just("'500ms'".to_owned()),
        Just("[{ address = '192.0.2.1', mac = '02:00:00:00:00:01' }]".to_owned()),
        "\\PC{0,8}",
    ];
    prop::collection::vec((key, value), 0..12).prop_map(|lines| {
        lines
            .into_iter()
            .map(|(k, v)| format!("{k} = {v}\n"))
            .collect()
    })
}

fn every_message_has_its_line(text: &str) -> Result<(), TestCaseError> {
    let lines = 1 + text.bytes().filter(|&b| b == b'\n').count();
    let findings = match check(text) {
        Ok(checked) => {
            prop_assert!(checked.model.limits.profiles().is_ok());
            checked.warnings
        }
        Err(ConfigError::Invalid(findings)) => {
            prop_assert!(!findings.list.is_empty());
            findings.list
        }
        Err(other) => return Err(TestCaseError::fail(other.to_string())),
    };
    for finding in findings {
        prop_assert!((1..=lines).contains(&(finding.line as usize)));
        let shown = finding.to_string();
        prop_assert!(
            shown.starts_with(&format!("edge.toml:{}: ", finding.line)),
            "{}",
            shown
        );
        prop_assert!(!shown.contains('\n'), "{:?}", shown);
    }
    Ok(())
}

proptest! {
    #[test]
    fn any_text_is_survived(text in "(?s).{0,200}") {
        every_message_has_its_line(&text)?;
    }

    #[test]
    fn anything_that_looks_like_toml_is_survived(text in "[a-z.\\[\\]{}='\"#0-9_,\n -]{0,120}") {
        every_message_has_its_line(&text)?;
    }

    #[test]
    fn known_keys_with_any_values_are_survived(text in configuration()) {
        every_message_has_its_line(&text)?;
        every_message_has_its_line(&format!("interfaces = ['eth0']\n{text}"))?;
    }
}
