//! A service over three backends, of which one dies.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::thread;
use std::time::{Duration, Instant};

use edge_tests::daemon::Installation;
use edge_tests::decap::Decapsulator;
use edge_tests::lab::Lab;
use edge_tests::server::Nginx;
use edge_tests::wait;

use super::answers::{self, Part};

/// The address of the service.
const VIP: &str = "10.99.0.1";
const SETTINGS: &str = "
[[service]]
name = \"web\"
addresses = [\"10.99.0.1\"]
ports = [80]
forward = \"ipip\"
[service.health]
kind = \"http\"
interval = \"200ms\"
timeout = \"100ms\"
fall = 2
";

/// How long requests go on in each part.
const PART: Duration = Duration::from_secs(3);

/// The balancer.
pub(super) fn show() {
    let mut lab = Lab::new(4);
    for link in lab.links.iter_mut().skip(1) {
        link.free_outside();
    }
    let client = lab.link();
    lab.host
        .run("sysctl", &["-q", "-w", "net.ipv4.ip_forward=1"]);
    for key in ["all", "eth0", "eth1", "eth2", "eth3"] {
        let key = format!("net.ipv4.conf.{key}.rp_filter=0");
        lab.host.run("sysctl", &["-q", "-w", &key]);
    }
    client
        .outside
        .ip(&format!("route add default via {}", client.v4(1)));
    let mut servers = Vec::new();
    let mut decapsulators = Vec::new();
    let mut settings = SETTINGS.to_owned();
    for (n, link) in lab.links.iter().enumerate().skip(1) {
        link.outside
            .ip(&format!("route add default via {}", link.v4(1)));
        for key in ["all", "out0"] {
            let key = format!("net.ipv4.conf.{key}.rp_filter=0");
            link.outside.run("sysctl", &["-q", "-w", &key]);
        }
        link.outside.ip("link set lo up");
        link.outside.ip(&format!("addr add {VIP}/32 dev lo"));
        decapsulators.push(Decapsulator::start(
            &link.outside,
            &["--interface", "out0", "--source", &link.v4(1).to_string()],
        ));
        servers.push(Nginx::saying(&link.outside, &format!("web-{n}")));
        settings += &format!(
            "[[service.backend]]\nname = \"web-{n}\"\naddress = \"{}\"\n",
            link.v4(2)
        );
    }
    println!(
        "\nNow the load balancer: {VIP}, port 80, over three backends with nginx, each behind a link of\n\
         its own. Packets reach them in IPIP, `edge decap` on each takes them out, and they answer\n\
         the client themselves. These lines are in the file:\n{settings}"
    );
    let edge = Installation::new(&lab.host, &["eth0"], &settings);
    let _daemon = edge.start();
    wait::until("all backends are up", || {
        edge.json(&["backend", "list"])
            .iter()
            .flat_map(|s| s["backends"].as_array().cloned().unwrap_or_default())
            .filter(|b| b["health"] == "up" && b["weight"] != 0)
            .count()
            == 3
    });
    let at = SocketAddr::new(VIP.parse().expect("an address"), 80);
    // Until one is at a backend that lives on.
    let mut kept = Vec::new();
    for _ in 0..32 {
        kept.extend(client.outside.inside(|| Kept::open(at)));
    }
    let run = || client.outside.inside(|| requests(at));
    println!("measuring: three backends ({} s)", PART.as_secs());
    let before = run();
    println!(
        "measuring: web-2 is killed at the start ({} s)",
        PART.as_secs()
    );
    let killed = servers.remove(1);
    let during = thread::scope(|scope| {
        let requests = scope.spawn(run);
        drop(killed);
        requests.join().expect("the requests end")
    });
    println!("measuring: after that ({} s)", PART.as_secs());
    let after = run();
    let parts = [
        ("three", before),
        ("web-2 is killed", during),
        ("two", after),
    ];
    answers::print(&parts, &["web-1", "web-2", "web-3"]);
    let alive: Vec<&mut Kept> = kept.iter_mut().filter(|k| k.name != "web-2").collect();
    let all = alive.len();
    let work = alive.into_iter().filter_map(|k| k.ask().ok()).count();
    println!(
        "\nOf {all} connections to web-1 and web-3 that were open all the time, {work} still work.\n\n\
         $ edge backend list\n{}",
        edge.ok(&["backend", "list"])
    );
}

/// Requests one after the other, each on a connection of its own.
fn requests(at: SocketAddr) -> Part {
    let (started, mut part) = (Instant::now(), Part::default());
    while started.elapsed() < PART {
        let begun = Instant::now();
        match super::answer(at).as_deref().map(name_of) {
            Ok(Some(name)) => {
                *part.answers.entry(name.to_owned()).or_default() += 1;
                let ms = begun.elapsed().as_secs_f64() * 1000.0;
                part.longest_ms = part.longest_ms.max(ms);
            }
            Ok(None) | Err(_) => part.failed += 1,
        }
        wait::pause();
    }
    part
}

/// Who gave an answer.
fn name_of(answer: &str) -> Option<&str> {
    let (head, body) = answer.split_once("\r\n\r\n")?;
    head.starts_with("HTTP/1.1 200 ").then(|| body.trim())
}

/// A connection that stays open.
struct Kept {
    stream: TcpStream,
    name: String,
}

impl Kept {
    fn open(at: SocketAddr) -> Option<Self> {
        let stream = TcpStream::connect_timeout(&at, Duration::from_secs(1)).ok()?;
        stream.set_read_timeout(Some(Duration::from_secs(1))).ok()?;
        let mut kept = Self {
            stream,
            name: String::new(),
        };
        kept.name = kept.ask().ok()?;
        Some(kept)
    }

    /// Who answers.
    fn ask(&mut self) -> std::io::Result<String> {
        self.stream
            .write_all(b"GET / HTTP/1.1\r\nHost: edge\r\n\r\n")?;
        let mut answer = Vec::new();
        let mut bytes = [0; 1024];
        loop {
            let n = self.stream.read(&mut bytes)?;
            if n == 0 {
                return Err(std::io::ErrorKind::UnexpectedEof.into());
            }
            answer.extend_from_slice(bytes.get(..n).unwrap_or_default());
            let text = String::from_utf8_lossy(&answer);
            if let Some(name) = name_of(&text).filter(|_| text.ends_with("\n")) {
                return Ok(name.to_owned());
            }
        }
    }
}
