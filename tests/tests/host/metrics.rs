//! Metrics as Prometheus gets them.

use std::io::Write as _;
use std::process::Stdio;

use edge_tests::daemon::Installation;
use edge_tests::frames::{self, Payload};
use edge_tests::lab::Lab;
use edge_tests::wait;

/// The value of a sample, by name and labels in any order.
fn sample(text: &str, name: &str, labels: &[(&str, &str)]) -> Option<f64> {
    let line = text.lines().find(|line| {
        line.strip_prefix(name)
            .is_some_and(|rest| rest.starts_with(['{', ' ']))
            && labels
                .iter()
                .all(|(key, value)| line.contains(&format!("{key}=\"{value}\"")))
    })?;
    line.rsplit(' ').next()?.parse().ok()
}

/// Has promtool check a text.
#[track_caller]
fn complains_of_nothing(lab: &Lab, text: &str) {
    let mut promtool = lab
        .host
        .command("promtool")
        .args(["check", "metrics"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("promtool (cargo xtask setup fetches it)");
    promtool
        .stdin
        .take()
        .unwrap()
        .write_all(text.as_bytes())
        .unwrap();
    let output = promtool.wait_with_output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr) + String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success() && said.is_empty(), "{said}\n{text}");
}

#[test]
fn promtool_finds_nothing_to_complain_of() {
    let lab = Lab::new(2);
    let edge = Installation::new(&lab.host, &["eth0", "eth1"], "");
    let _daemon = edge.start();
    edge.ok(&["blacklist", "add", "10.66.0.1", "fd66::/32"]);
    assert!(!lab.link().passes_from("10.66.0.1".parse().unwrap()));
    let text = edge.scrape();
    complains_of_nothing(&lab, &text);
}

/// A proxy whose one server is not there.
const PROXY: &str = "
[[listener]]
name = 'web'
addresses = ['127.0.0.1:8080']
[[upstream]]
name = 'app'
breaker = {}
concurrency = {}
[[upstream.server]]
address = '127.0.0.1:9'
[[route]]
name = 'app'
path = { prefix = '/app/' }
upstream = 'app'
rewrite = { prefix = '/' }
";

#[test]
fn the_proxy_is_seen_and_steered() {
    let lab = Lab::new(1);
    let edge = Installation::new(&lab.host, &["eth0"], PROXY);
    let _daemon = edge.start();
    let get = |path: &str| {
        let url = format!("http://127.0.0.1:8080{path}");
        let status = [
            "-s",
            "--noproxy",
            "*",
            "-o",
            "/dev/null",
            "-w",
            "%{http_code}",
        ];
        lab.host.run("curl", &[&status[..], &[&url]].concat())
    };
    assert_eq!([get("/app/a"), get("/other")], ["502", "404"]);
    // They are counted behind their answers.
    let text = wait::until_some("both are counted", || {
        let text = edge.scrape();
        let count = "edge_http_request_duration_seconds_count";
        let all = sample(&text, count, &[("listener", "web")]) == Some(2.0);
        let routed = "edge_http_route_requests_total";
        let routed = sample(&text, routed, &[("route", "app"), ("class", "5xx")]) == Some(1.0);
        (all && routed).then_some(text)
    });
    complains_of_nothing(&lab, &text);
    for (name, labels, value) in [
        (
            "edge_http_requests_total",
            [("listener", "web"), ("class", "4xx")],
            1.0,
        ),
        (
            "edge_http_requests_total",
            [("listener", "web"), ("class", "5xx")],
            1.0,
        ),
        (
            "edge_http_refusals_total",
            [("listener", "web"), ("reason", "no_route")],
            1.0,
        ),
        (
            "edge_http_route_requests_total",
            [("route", "app"), ("class", "5xx")],
            1.0,
        ),
        (
            "edge_http_request_duration_seconds_bucket",
            [("listener", "web"), ("le", "+Inf")],
            2.0,
        ),
        (
            "edge_http_server_up",
            [("upstream", "app"), ("server", "127.0.0.1:9")],
            1.0,
        ),
    ] {
        assert_eq!(
            sample(&text, name, &labels),
            Some(value),
            "{name} {labels:?}\n{text}"
        );
    }

    let server =
        |edge: &Installation<'_>| edge.json(&["upstream", "list", "app"])[0]["servers"][0].clone();
    edge.ok(&["upstream", "drain", "app", "127.0.0.1:9"]);
    assert_eq!(server(&edge)["draining"], true);
    // It lasts through a reload.
    edge.ok(&["reload"]);
    assert_eq!(server(&edge)["draining"], true);
    edge.ok(&["upstream", "drain", "app", "127.0.0.1:9", "--undo"]);
    edge.ok(&["upstream", "weight", "app", "127.0.0.1:9", "7"]);
    assert_eq!(server(&edge)["draining"], false);
    assert_eq!(server(&edge)["weight"], 7);
    let unknown = edge.outcome(&["upstream", "drain", "app", "127.0.0.1:10"]);
    assert_eq!(unknown.code, 2);

    let answer = &edge.json(&["routes", "test", "http://a:8080/app/b?c"])[0];
    assert_eq!(answer["route"], "app");
    assert_eq!(answer["outcome"]["forward"]["target"], "/b?c");
    assert_eq!(edge.outcome(&["routes", "test", "http://a/other"]).code, 1);
    assert_eq!(
        edge.json(&["routes", "list"])[0]["requests"]["classes"][4],
        1
    );
}

#[test]
fn counters_agree_with_what_was_sent() {
    let lab = Lab::new(2);
    let edge = Installation::new(&lab.host, &["eth0", "eth1"], "");
    let _daemon = edge.start();
    edge.ok(&["blacklist", "add", "10.66.0.1", "fd66::1"]);
    edge.ok(&["allow", "add", "10.67.0.1"]);
    let plan = [
        (0, "10.66.0.1", Payload::Udp(9), 7, "blacklisted"),
        (1, "fd66::1", Payload::Udp(9), 5, "blacklisted"),
        (0, "10.68.0.1", Payload::Tcp(0), 4, "tcp_no_flags"),
        (
            1,
            "fd68::1",
            Payload::Tcp(frames::SYN | 1),
            3,
            "tcp_syn_fin",
        ),
        (0, "192.0.2.1", Payload::Echo, 6, "bogon"),
        (1, "10.67.0.1", Payload::Tcp(0), 2, "pass_allowlisted"),
    ];
    for (link, source, payload, times, reason) in plan {
        let interface = format!("eth{link}");
        let link = &lab.links[link];
        let frame = link.frame(source.parse().unwrap(), payload);
        for _ in 0..times {
            assert_eq!(link.passes(&frame), reason.starts_with("pass"), "{source}");
        }
        let text = edge.scrape();
        let labels = [("interface", interface.as_str()), ("reason", reason)];
        let get = |name| sample(&text, name, &labels).unwrap_or_else(|| panic!("{reason}: {text}"));
        assert_eq!(get("edge_packets_total"), f64::from(times), "{reason}");
        let bytes = frame.len() as f64 * f64::from(times);
        assert_eq!(get("edge_bytes_total"), bytes, "{reason}");
        // The command line says the same.
        let status = edge.status();
        let interfaces = status["interfaces"].as_array().unwrap();
        let of_interface = interfaces.iter().find(|i| i["name"] == interface).unwrap();
        let counts = of_interface["reasons"].as_array().unwrap();
        let count = counts.iter().find(|c| c["reason"] == reason).unwrap();
        assert_eq!(count["ended"]["packets"], times, "{reason}");
    }
    let text = edge.scrape();
    for (name, labels, value) in [
        ("edge_interface_attached", vec![("interface", "eth0")], 1.0),
        (
            "edge_interface_info",
            vec![("interface", "eth1"), ("mode", "native")],
            1.0,
        ),
        ("edge_config_generation", vec![], 1.0),
        ("edge_config_last_reload_successful", vec![], 1.0),
        (
            "edge_list_entries",
            vec![("list", "blacklist"), ("family", "ipv4"), ("kind", "host")],
            1.0,
        ),
        (
            "edge_list_entries",
            vec![("list", "allowlist"), ("family", "ipv4"), ("kind", "host")],
            1.0,
        ),
        (
            "edge_table_capacity_entries",
            vec![("table", "hosts_v4")],
            131_072.0,
        ),
        (
            "edge_control_requests_total",
            vec![("command", "add"), ("result", "success")],
            2.0,
        ),
    ] {
        assert_eq!(
            sample(&text, name, &labels),
            Some(value),
            "{name} {labels:?}\n{text}"
        );
    }
}

#[test]
fn counters_go_on_over_a_crash() {
    let lab = Lab::new(1);
    let link = lab.link();
    let edge = Installation::new(&lab.host, &["eth0"], "");
    let daemon = edge.start();
    edge.ok(&["blacklist", "add", "10.66.0.1"]);
    let source = "10.66.0.1".parse().unwrap();
    assert!(!link.passes_from(source));
    daemon.kill();
    assert!(!link.passes_from(source));
    let _daemon = edge.start();
    assert!(!link.passes_from(source));
    assert_eq!(edge.packets("blacklisted", "ended"), 3);
    let labels = [("interface", "eth0"), ("reason", "blacklisted")];
    assert_eq!(
        sample(&edge.scrape(), "edge_packets_total", &labels),
        Some(3.0)
    );
}
