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

/// The proxy.
pub(super) fn show() {
    let lab = Lab::new(3);
    let client = lab.link();
    let mut servers: Vec<Nginx> = Vec::new();
    for n in 1..=2 {
        servers.push(Nginx::saying(&lab.links[n].outside, &format!("app-{n}")));
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
    answers::print(&parts, &["app-1", "app-2"]);
    println!("\n$ edge status\n{}", edge.ok(&["status"]));
}

/// Requests one after the other, with curl, each on a session of its own that verifies the
/// certificate.
fn requests(client: &Link, trusted: &str) -> Part {
    let (started, mut part) = (Instant::now(), Part::default());
    let url = format!("https://{NAME}/");
    let resolve = format!("{NAME}:443:{}", client.v4(1));
    while started.elapsed() < PART {
        let begun = Instant::now();
        let mut curl = client.outside.command("curl");
        curl.args(["--silent", "--fail", "--max-time", "5"]);
        curl.args(["--cacert", trusted, "--resolve", &resolve, &url]);
        let output = curl.stdin(Stdio::null()).output();
        match output {
            Ok(output) if output.status.success() => {
                let name = String::from_utf8_lossy(&output.stdout).trim().to_owned();
                *part.answers.entry(name).or_default() += 1;
                let ms = begun.elapsed().as_secs_f64() * 1000.0;
                part.longest_ms = part.longest_ms.max(ms);
            }
            Ok(_) | Err(_) => part.failed += 1,
        }
    }
    part
}
