//! The proxy behind the firewall, with real servers and clients.

use std::net::{IpAddr, SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;

use edge_tests::client;
use edge_tests::daemon::Installation;
use edge_tests::frames::{self, Payload};
use edge_tests::lab::{Lab, Link};
use edge_tests::server::Nginx;
use edge_tests::wait;

/// The directory of a certificate and its key.
fn tls() -> PathBuf {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    let there = here.join("../edge-userspace/tests/health/tls");
    there.canonicalize().expect("the directory")
}

/// A certificate, as a listener has it.
fn certificate() -> String {
    let (cert, key) = (tls().join("v3.pem"), tls().join("key.pem"));
    format!("{{ cert = {cert:?}, key = {key:?} }}")
}

/// [`settings`] with another certificate.
pub(crate) fn with_certificate(settings: &str, other: &str) -> String {
    settings.replace(&certificate(), other)
}

/// Where the proxy listens, on every link of the host.
pub(crate) const HTTP: u16 = 8080;
pub(crate) const HTTPS: u16 = 8443;

/// A proxy on the host of a lab, before the servers behind its second and third link. Clients are
/// behind the first, where the firewall is. `root` is what stands before all tables, `listener`
/// are keys of the listener, `routes` go before the one that takes everything.
pub(crate) fn settings(lab: &Lab, root: &str, listener: &str, routes: &str) -> String {
    let certificate = certificate();
    let servers: String = (1..3)
        .map(|n| {
            format!(
                "[[upstream.server]]\naddress = \"{}:80\"\n",
                lab.links[n].v4(2)
            )
        })
        .collect();
    let at = lab.link().v4(1);
    format!(
        "{root}\n\
         [[listener]]\nname = \"web\"\naddresses = [\"{at}:{HTTP}\"]\n{listener}\n\
         [[listener]]\nname = \"tls\"\naddresses = [\"{at}:{HTTPS}\"]\n\
         tls = {{ certificates = [{certificate}] }}\n\
         [[upstream]]\nname = \"app\"\nretries = {{ tries = 3, base = \"1ms\", budget = 1.0 }}\n\
         {servers}{routes}\n[[route]]\nname = \"all\"\nupstream = \"app\"\n"
    )
}

/// The same, but the upstream `app` waits as long as any test goes on.
pub(crate) fn patient(settings: &str) -> String {
    let app = "name = \"app\"\n";
    let patience = "timeouts = { request = \"1000s\", between_bytes = \"300s\" }\n";
    let patient = settings.replace(app, &format!("{app}{patience}"));
    assert_ne!(patient, settings);
    patient
}

/// What curl gets from a source: the status and the body; an error of curl's is 0.
pub(crate) fn curl(link: &Link, source: IpAddr, url: &str, more: &[&str]) -> (u16, String) {
    let source = source.to_string();
    let mut arguments = vec![
        "--silent",
        "--insecure",
        "--http1.1",
        "--noproxy",
        "*",
        "--max-time",
        "20",
        "--interface",
        &source,
        "--write-out",
        "%{http_code}",
    ];
    arguments.extend(more);
    arguments.push(url);
    let output = link.outside.output("curl", &arguments);
    let text = String::from_utf8(output.stdout).unwrap();
    let (body, status) = text.split_at(text.len() - 3);
    (status.parse().unwrap(), body.to_owned())
}

pub(crate) fn url(link: &Link, scheme: &str, path: &str) -> String {
    let port = if scheme == "https" { HTTPS } else { HTTP };
    format!("{scheme}://{}:{port}{path}", link.v4(1))
}

#[test]
fn requests_reach_two_servers_and_go_on_when_one_dies() {
    let lab = Lab::new(3);
    let link = lab.link();
    let one = Nginx::saying(&lab.links[1].outside, "one");
    let _two = Nginx::saying(&lab.links[2].outside, "two");
    let edge = Installation::new(&lab.host, &["eth0"], &settings(&lab, "", "", ""));
    let _daemon = edge.start();
    for scheme in ["http", "https"] {
        let mut said: Vec<String> = (0..8)
            .map(|_| {
                let (status, body) = curl(link, link.v4(2), &url(link, scheme, "/"), &[]);
                assert_eq!(status, 200, "{scheme}: {body}");
                body
            })
            .collect();
        said.sort();
        said.dedup();
        assert_eq!(said, ["one\n", "two\n"], "{scheme}");
    }
    drop(one);
    for _ in 0..10 {
        let got = curl(link, link.v4(2), &url(link, "http", "/"), &[]);
        assert_eq!(got, (200, "two\n".to_owned()));
    }
    // The firewall is before it.
    edge.ok(&["blacklist", "add", "10.77.0.3"]);
    let (status, _) = curl(
        link,
        link.v4(3),
        &url(link, "http", "/"),
        &["--max-time", "2"],
    );
    assert_eq!(status, 0);
    edge.ok(&["blacklist", "del", "10.77.0.3"]);
    assert_eq!(curl(link, link.v4(3), &url(link, "http", "/"), &[]).0, 200);
}

/// Servers end connections after a thousand requests, and so does the proxy, whatever the clients
/// have on their way.
#[test]
fn every_request_of_a_load_is_answered() {
    let lab = Lab::new(3);
    let link = lab.link();
    let _servers = [1, 2].map(|n| Nginx::start(&lab.links[n].outside));
    let edge = Installation::new(&lab.host, &["eth0"], &settings(&lab, "", "", ""));
    let _daemon = edge.start();
    for (scheme, protocol) in [("http", "--h1"), ("https", "--h1"), ("https", "-m10")] {
        let url = url(link, scheme, "/");
        let arguments = ["-n", "6000", "-c", "10", "-T", "60", protocol, &url];
        let told = link.outside.run("h2load", &arguments);
        let all = "6000 total, 6000 started, 6000 done, 6000 succeeded, 0 failed, 0 errored";
        assert!(told.contains(all), "{scheme} {protocol}: {told}");
        let version = if protocol == "--h1" { "http/1.1" } else { "h2" };
        assert!(told.contains(&format!("protocol: {version}")), "{told}");
    }
}

/// Runs `during` while four clients ask for a page all the time, each time by a new connection;
/// none may be refused. Tells how many were answered.
pub(crate) fn under_load(link: &Link, during: impl FnOnce(&dyn Fn())) -> u64 {
    let to = SocketAddr::new(link.v4(1), HTTP);
    let (stop, done) = (AtomicBool::new(false), AtomicU64::new(0));
    struct Stop<'a>(&'a AtomicBool);
    impl Drop for Stop<'_> {
        fn drop(&mut self) {
            self.0.store(true, Ordering::Relaxed);
        }
    }
    thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                link.outside.inside(|| {
                    let runtime = tokio::runtime::Builder::new_current_thread()
                        .enable_all()
                        .build()
                        .unwrap();
                    while !stop.load(Ordering::Relaxed) {
                        let got = runtime.block_on(async {
                            tokio::time::timeout(wait::PATIENCE, client::get(None, to)).await
                        });
                        assert!(got.expect("an answer in time").unwrap());
                        done.fetch_add(1, Ordering::Relaxed);
                    }
                });
            });
        }
        let _stop = Stop(&stop);
        let more = || {
            let before = done.load(Ordering::Relaxed);
            wait::until("load goes on", || {
                done.load(Ordering::Relaxed) > before + 20
            });
        };
        more();
        during(&more);
        more();
    });
    done.into_inner()
}

#[test]
fn reloads_under_load_lose_nothing() {
    let lab = Lab::new(3);
    let link = lab.link();
    let _servers = [1, 2].map(|n| Nginx::start(&lab.links[n].outside));
    let with = |route: &str| settings(&lab, "", "", route);
    let edge = Installation::new(&lab.host, &["eth0"], &with(""));
    let _daemon = edge.start();
    let answered = under_load(link, |more| {
        for n in 0..10 {
            let route = format!(
                "[[route]]\nname = \"n\"\npath = {{ exact = \"/n\" }}\n\
                 respond = {{ status = 200, body = \"{n}\" }}\n"
            );
            edge.configure(&["eth0"], &with(&route));
            edge.ok(&["reload"]);
            wait::until("the new route", || {
                curl(link, link.v4(2), &url(link, "http", "/n"), &[]) == (200, n.to_string())
            });
            more();
        }
    });
    println!("{answered} answered over 10 reloads");
    let status = edge.status();
    let listener = &status["proxy"]["listeners"][0];
    assert_eq!(
        listener["refusals"].as_array().unwrap().len(),
        0,
        "{listener}"
    );
}

#[test]
fn clients_that_offend_are_dropped_by_the_firewall() {
    let lab = Lab::new(3);
    let link = lab.link();
    let _servers = [1, 2].map(|n| Nginx::start(&lab.links[n].outside));
    let root = "lists.allow = [\"10.77.0.5\"]\n\
                [proxy]\nbans = { offences = 4, window = \"60s\", ttl = \"600s\" }";
    let trusted = "trusted_proxies = [\"10.77.0.4\"]";
    let edge = Installation::new(&lab.host, &["eth0"], &settings(&lab, root, trusted, ""));
    let _daemon = edge.start();
    // Without Host.
    let offend = |source| {
        curl(
            link,
            source,
            &url(link, "http", "/"),
            &["--header", "Host:"],
        )
    };
    let entries = || edge.json(&["blacklist", "list"]);
    let syn = |source| link.frame(source, Payload::Tcp(frames::SYN));
    let (bad, trusted, allowed) = (link.v4(3), link.v4(4), link.v4(5));
    for source in [trusted, allowed] {
        for n in 0..10 {
            assert_eq!(offend(source).0, 400, "{source} {n}");
        }
    }
    for n in 0..5 {
        assert!(link.passes(&syn(bad)), "{n}");
        assert_eq!(offend(bad).0, 400, "{n}");
    }
    let entry = wait::until_some("the entry", || entries().into_iter().next());
    assert_eq!(entry["prefix"], "10.77.0.3", "{entry}");
    assert_eq!(entry["origin"], "l7", "{entry}");
    let note = entry["note"].as_str().unwrap();
    assert!(
        note.starts_with("host_missing, more than 4 in 60 s; request "),
        "{note}"
    );
    assert!(entry["expires_unix_ms"].is_u64(), "{entry}");
    // Not a packet of it comes through any more, and everybody else's do.
    assert!(!link.passes(&syn(bad)));
    assert!(!link.passes_from(bad));
    for source in [link.v4(2), trusted, allowed] {
        assert!(link.passes(&syn(source)), "{source}");
        assert_eq!(
            curl(link, source, &url(link, "http", "/"), &[]).0,
            200,
            "{source}"
        );
    }
    assert_eq!(entries().len(), 1);
    // Whoever is pardoned begins anew.
    edge.ok(&["blacklist", "del", "10.77.0.3"]);
    assert_eq!(curl(link, bad, &url(link, "http", "/"), &[]).0, 200);
}

#[test]
fn what_cannot_be_put_into_force_leaves_the_former_configuration() {
    let lab = Lab::new(3);
    let link = lab.link();
    let _servers = [1, 2].map(|n| Nginx::start(&lab.links[n].outside));
    let good = settings(&lab, "", "", "");
    let edge = Installation::new(&lab.host, &["eth0"], &good);
    let _daemon = edge.start();
    let taken = SocketAddr::new(link.v4(1), 8081);
    let _taken = lab.host.inside(|| TcpListener::bind(taken).unwrap());
    let rubbish = edge.file("rubbish.pem");
    std::fs::write(&rubbish, "no certificate\n").unwrap();
    let certificate = tls().join("v3.pem").display().to_string();
    for (text, named) in [
        (
            format!("{good}[[listener]]\nname = \"more\"\naddresses = [\"{taken}\"]\n"),
            "10.77.0.1:8081",
        ),
        (
            good.replace(&certificate, "/nowhere/cert.pem"),
            "/nowhere/cert.pem",
        ),
        (
            good.replace(&certificate, &rubbish.display().to_string()),
            "rubbish.pem",
        ),
        (
            good.replace("upstream = \"app\"", "upstream = \"apq\""),
            "apq",
        ),
    ] {
        edge.configure(&["eth0"], &text);
        let refused = edge.outcome(&["reload"]);
        assert!(refused.code != 0, "{named}: {refused:?}");
        assert!(
            refused.stderr.contains(named),
            "{named}: {}",
            refused.stderr
        );
        for scheme in ["http", "https"] {
            let (status, body) = curl(link, link.v4(2), &url(link, scheme, "/"), &[]);
            assert_eq!((status, &*body), (200, "protected by Edge\n"), "{named}");
        }
        assert_eq!(edge.status()["config"]["generation"], 1, "{named}");
    }
    edge.configure(&["eth0"], &good);
    edge.ok(&["reload"]);
}

#[test]
fn a_daemon_that_was_killed_listens_again() {
    let lab = Lab::new(3);
    let link = lab.link();
    let _servers = [1, 2].map(|n| Nginx::start(&lab.links[n].outside));
    let edge = Installation::new(&lab.host, &["eth0"], &settings(&lab, "", "", ""));
    let mut daemon = edge.start();
    for n in 0..3 {
        // With connections that are under way.
        assert_eq!(
            curl(link, link.v4(2), &url(link, "http", "/"), &[]).0,
            200,
            "{n}"
        );
        daemon.kill();
        assert_eq!(
            curl(link, link.v4(2), &url(link, "http", "/"), &[]).0,
            0,
            "{n}"
        );
        daemon = edge.start();
        assert_eq!(
            curl(link, link.v4(2), &url(link, "https", "/"), &[]).0,
            200,
            "{n}"
        );
    }
    daemon.stop();
}
