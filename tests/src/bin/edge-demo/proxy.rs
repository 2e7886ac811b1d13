//! HTTPS through the proxy to two servers, of which one dies.

use std::fs;
use std::process::Stdio;
use std::thread;
use std::time::{Duration, Instant};

use edge_tests::daemon::Installation;
use edge_tests::lab::{Lab, Link};
use edge_tests::server::Nginx;
use rcgen::{CertifiedKey, generate_simple_self_signed};

use super::answers::{self, Part};

/// The name that the client asks for.
const NAME: &str = "shop.example";

/// How long requests go on in each part.
const PART: Duration = Duration::from_secs(3);

/// Requests on one connection.
const REQUESTS: usize = 50;

/// The servers, by what they answer.
const SERVERS: [&str; 2] = ["app-1", "app-2"];

/// The proxy.
///
/// # Errors
/// What it promises and did not do: it answers every request, whichever server is there, and from
/// all that are.
pub(super) fn show() -> Result<(), String> {
    let lab = Lab::new(3);
    let client = lab.link();
    let mut servers: Vec<Nginx> = Vec::new();
    for (link, name) in lab.links.iter().skip(1).zip(SERVERS) {
        servers.push(Nginx::saying(&link.outside, name));
    }
    let CertifiedKey { cert, signing_key } =
        generate_simple_self_signed([NAME.to_owned()]).expect("a certificate");
    let edge = Installation::new(&lab.host, &["eth0"], "");
    let (at_cert, at_key) = (edge.file("shop.pem"), edge.file("shop.key"));
    fs::write(&at_cert, cert.pem()).expect("the certificate is written");
    fs::write(&at_key, signing_key.serialize_pem()).expect("the key is written");
    let settings = format!(
        "[[listener]]\n\
         name = \"shop\"\n\
         addresses = [\"{}:443\"]\n\
         tls = {{ certificates = [{{ cert = {at_cert:?}, key = {at_key:?} }}] }}\n\
         [[upstream]]\n\
         name = \"app\"\n\
         retries = {{ tries = 3, budget = 1.0 }}\n\
         health = {{ kind = \"http\", interval = \"200ms\", timeout = \"100ms\", fall = 2 }}\n\
         server = [{{ address = \"{}:80\" }}, {{ address = \"{}:80\" }}]\n\
         [[route]]\n\
         name = \"shop\"\n\
         hosts = [\"{NAME}\"]\n\
         upstream = \"app\"\n",
        client.v4(1),
        lab.links[1].v4(2),
        lab.links[2].v4(2),
    );
    println!(
        "\nNow the proxy: HTTPS for {NAME}, to two servers with nginx, each behind a link of its own.\n\
         These lines are in the file:\n\n{settings}"
    );
    edge.configure(&["eth0"], &settings);
    let _daemon = edge.start();
    let run = || requests(client, &at_cert.display().to_string());
    println!("measuring: two servers ({} s)", PART.as_secs());
    let before = run();
    println!(
        "measuring: app-2 is killed at the start ({} s)",
        PART.as_secs()
    );
    let killed = servers.pop();
    let during = thread::scope(|scope| {
        let requests = scope.spawn(run);
        drop(killed);
        requests.join().expect("the requests end")
    });
    let parts = [("two", before), ("app-2 is killed", during)];
    answers::print(&parts, &SERVERS);
    println!("\n$ edge status\n{}", edge.ok(&["status"]));
    let [(_, before), (_, during)] = &parts;
    kept(before, &SERVERS)?;
    kept(during, &SERVERS[..1])
}

/// Whether all requests of a part were answered, and some by each of these servers.
fn kept(part: &Part, servers: &[&str]) -> Result<(), String> {
    if part.failed > 0 {
        return Err(format!("{} requests failed", part.failed));
    }
    let silent = |name: &&&str| !part.answers.contains_key(**name);
    match servers.iter().find(silent) {
        Some(name) => Err(format!("{name} has answered nothing")),
        None => Ok(()),
    }
}

/// Requests one after the other, with curl, as browsers ask: over HTTP/2, many on a session, which
/// begins with a look at the certificate.
fn requests(client: &Link, trusted: &str) -> Part {
    let (started, mut part) = (Instant::now(), Part::default());
    let url = format!("https://{NAME}/?[1-{REQUESTS}]");
    // Behind each answer, which ends its line: the status, connections that were made, milliseconds.
    let told = "= %{http_code} %{http_version} %{num_connects} %{time_total}\n";
    let resolve = format!("{NAME}:443:{}", client.v4(1));
    while started.elapsed() < PART {
        let mut curl = client.outside.command("curl");
        curl.args(["--silent", "--fail", "--http2", "--write-out", told]);
        curl.args(["--max-time", "5", "--cacert", trusted]);
        curl.args(["--resolve", &resolve, &url]);
        let output = curl.stdin(Stdio::null()).output();
        let output = output.map_or_else(|_| Vec::new(), |output| output.stdout);
        part.failed += REQUESTS as u64 - answered(&mut part, &String::from_utf8_lossy(&output));
    }
    part
}

/// Takes what curl tells of the requests on a connection: how many were answered on it.
fn answered(part: &mut Part, told: &str) -> u64 {
    let (mut name, mut answered, mut is_first) = ("", 0, true);
    for line in told.lines() {
        let words: Vec<&str> = line.split(' ').collect();
        let ["=", status, version, connects, seconds] = words[..] else {
            name = line;
            continue;
        };
        // One that had to connect again has lost the connection.
        let is_kept = connects == if is_first { "1" } else { "0" };
        is_first = false;
        if (status, version) == ("200", "2") && is_kept {
            answered += 1;
            *part.answers.entry(name.to_owned()).or_default() += 1;
            let ms = seconds.parse().unwrap_or(0.0) * 1000.0;
            part.longest_ms = part.longest_ms.max(ms);
        }
    }
    answered
}
