//! The proxy beside nginx and HAProxy: what a request, a handshake and an idle connection cost each
//! of them.
//!
//! All of them stand before the same nginx, in one namespace, over loopback. The proxy that is
//! measured has one processor, and everything else the other one. They take turns, so that what
//! else the machine does befalls all of them. What counts is time of the processor, as the kernel
//! accounts it to the proxy's process: it does not depend on who waits for whom. All write an
//! access log.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Child, Stdio},
};

use anyhow::{Context, Result, bail, ensure};
use edge_tests::{
    daemon::{Daemon, Installation},
    lab::Lab,
    netns::Namespace,
    wait,
};
use serde_json::json;

use crate::{
    packets::Bench,
    report::{Report, Row, Target, median},
};

/// The processor of the proxy that is measured, and that of everything else.
const PROXY_CPU: usize = 0;
const OTHER_CPU: usize = 1;
/// The port of the server.
const SERVER: u16 = 8100;
/// Ports of the proxies; what they serve with TLS is [`TLS`] beyond.
const NGINX: u16 = 8101;
const HAPROXY: u16 = 8102;
pub(crate) const EDGE: u16 = 8103;
/// From the port of a proxy to the one that is served with TLS.
pub(crate) const TLS: u16 = 100;
/// Each contender is measured so often, as often first as second and third; the median counts. One
/// turn's ratio may be a fifth off.
const TURNS: usize = 21;

/// How it is asked for.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Protocol {
    Http1,
    Https,
    /// HTTP/2 with TLS, so many streams of a connection at once.
    Http2(u32),
}

/// Whom Edge is compared with.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Peer {
    Nginx,
    Haproxy,
}

/// What is asked for.
struct Load {
    name: &'static str,
    path: &'static str,
    protocol: Protocol,
    connections: u32,
    requests: u32,
    /// Bytes of the request's body.
    body: usize,
    peer: Peer,
    /// What a request may cost, as a share of what it costs the peer.
    most: f64,
    /// What the slowest of 100 may take, as a share of the better of the two.
    slowest: Option<f64>,
}

const BASE: Load = Load {
    name: "",
    path: "/1k",
    protocol: Protocol::Http1,
    connections: 50,
    requests: 60_000,
    body: 0,
    peer: Peer::Nginx,
    most: 1.0,
    slowest: Some(1.1),
};

const LOADS: [Load; 7] = [
    Load {
        name: "1 KB, 50 connections",
        ..BASE
    },
    Load {
        name: "1 KB, 500 connections",
        connections: 500,
        ..BASE
    },
    Load {
        name: "50 KB, 50 connections",
        path: "/50k",
        requests: 20_000,
        most: 1.1,
        ..BASE
    },
    Load {
        name: "POST 5 KB, 50 connections",
        path: "/post",
        requests: 40_000,
        body: 5 << 10,
        ..BASE
    },
    Load {
        name: "HTTPS, 1 KB, 50 connections",
        protocol: Protocol::Https,
        requests: 40_000,
        peer: Peer::Haproxy,
        most: 0.9,
        ..BASE
    },
    Load {
        name: "HTTP/2, 1 KB, 10 connections of 10 streams",
        protocol: Protocol::Http2(10),
        connections: 10,
        requests: 40_000,
        peer: Peer::Haproxy,
        most: 1.2,
        ..BASE
    },
    // Each connection has one request.
    Load {
        name: "TLS handshake and 1 KB",
        protocol: Protocol::Https,
        connections: 1000,
        requests: 1000,
        peer: Peer::Haproxy,
        most: 0.5,
        slowest: None,
        ..BASE
    },
];

impl Bench {
    /// What requests cost, and connections that wait.
    pub(crate) fn proxy(&mut self) -> Result<()> {
        let wanted: Vec<&Load> = LOADS
            .iter()
            .filter(|load| self.wants(&row_name(load)))
            .collect();
        if !wanted.is_empty() {
            let arena = Arena::new()?;
            let edge = arena.edge();
            let daemon = edge.start();
            let contenders = arena.contenders(&daemon)?;
            Report::head("Proxy, one processor; floor: nginx or HAProxy", "paired");
            for load in wanted {
                self.proxy_row(&arena, &contenders, load)?;
            }
        }
        self.waiting()
    }

    fn proxy_row(&mut self, arena: &Arena, all: &[Contender; 3], load: &Load) -> Result<()> {
        let mut turns = Vec::new();
        for first in 0..TURNS {
            let mut turn = [Measured::default(); 3];
            for at in (0..all.len()).map(|at| (first + at) % all.len()) {
                turn[at] = arena.measure(&all[at], load)?;
            }
            turns.push(turn);
        }
        let all_of = |of: &dyn Fn(&[Measured; 3]) -> f64| {
            let mut values: Vec<f64> = turns.iter().map(of).collect();
            values.sort_by(f64::total_cmp);
            median(&values)
        };
        let each = |of: fn(&Measured) -> f64| {
            [0, 1, 2].map(|at| all_of(&|turn| turn.get(at).map_or(f64::NAN, of)))
        };
        let [nginx, haproxy, edge] = each(|m| m.cost);
        let rates = each(|m| m.rate);
        let (floor, other) = match load.peer {
            Peer::Nginx => (nginx, format!("HAProxy {haproxy:.1}")),
            Peer::Haproxy => (haproxy, format!("nginx {nginx:.1}")),
        };
        let ratio = |[nginx, haproxy, edge]: &[Measured; 3]| match load.peer {
            Peer::Nginx => edge.cost / nginx.cost,
            Peer::Haproxy => edge.cost / haproxy.cost,
        };
        let [a, b, c] = rates.map(|rate| rate / 1000.0);
        self.report.add(Row {
            name: row_name(load),
            unit: "µs of the processor a request",
            floor: Some(floor),
            gross: Some(edge),
            // What lasts longer than a turn befalls all of it; what is shorter, the median leaves out.
            value: all_of(&ratio),
            target: Some(Target::AtMost(load.most)),
            note: format!("{other}; 1000 requests/s: nginx {a:.1}, HAProxy {b:.1}, Edge {c:.1}"),
            more: json!({
                "nginx_us": nginx, "haproxy_us": haproxy, "edge_us": edge,
                "nginx_rps": rates[0], "haproxy_rps": rates[1], "edge_rps": rates[2],
                "ratios": turns.iter().map(ratio).collect::<Vec<_>>(),
            }),
        });
        let Some(most) = load.slowest else {
            return Ok(());
        };
        let p99 = each(|m| m.p99);
        // By the medians: the better one of each turn would be better than either, by luck.
        let better = usize::from(p99[1] < p99[0]);
        let slowest = |turn: &[Measured; 3]| turn[2].p99 / turn[better].p99;
        self.report.add(Row {
            name: format!("{}, slowest of 100", row_name(load)),
            unit: "ms, beside the better of nginx and HAProxy",
            floor: Some(p99[0].min(p99[1])),
            gross: Some(p99[2]),
            value: all_of(&slowest),
            target: Some(Target::AtMost(most)),
            note: format!("ms: nginx {:.1}, HAProxy {:.1}", p99[0], p99[1]),
            more: json!({
                "nginx_ms": p99[0], "haproxy_ms": p99[1], "edge_ms": p99[2],
                "ratios": turns.iter().map(slowest).collect::<Vec<_>>(),
            }),
        });
        Ok(())
    }
}

/// What a load cost a proxy in one turn.
#[derive(Clone, Copy, Default)]
struct Measured {
    /// Microseconds of the processor a request.
    cost: f64,
    /// Requests a second.
    rate: f64,
    /// The duration that one of 100 exceeds, milliseconds.
    p99: f64,
}

fn row_name(load: &Load) -> String {
    format!("proxy, {}", load.name)
}

/// A proxy under test.
struct Contender {
    pid: u32,
    port: u16,
}

/// The server and the proxies, until they are dropped.
struct Arena {
    lab: Lab,
    directory: tempfile::TempDir,
    children: Vec<Running>,
}

struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Arena {
    fn new() -> Result<Self> {
        let lab = Lab::new(1);
        lab.host.ip("link set lo up");
        let directory = tempfile::tempdir()?;
        let mut arena = Self {
            lab,
            directory,
            children: Vec::new(),
        };
        let files = arena.directory.path().join("files");
        fs::create_dir(&files)?;
        fs::write(files.join("1k"), vec![b'x'; 1 << 10])?;
        fs::write(files.join("50k"), vec![b'y'; 50 << 10])?;
        fs::write(arena.directory.path().join("body"), vec![b'z'; 5 << 10])?;
        let (certificate, key) = certificate(arena.directory.path())?;
        let server = format!(
            "access_log off; server {{ listen 127.0.0.1:{SERVER} reuseport; root {};\n\
             location /post {{ client_max_body_size 1m; return 200 \"ok\"; }} }}",
            files.display()
        );
        arena.nginx("server", &server, OTHER_CPU)?;
        let log = arena.directory.path().join("nginx.log");
        let proxy = format!(
            "log_format j escape=json '{{\"t\":\"$time_iso8601\",\"id\":\"$request_id\",\
             \"c\":\"$remote_addr\",\"m\":\"$request_method\",\"h\":\"$host\",\"u\":\"$request_uri\",\
             \"s\":$status,\"b\":$body_bytes_sent,\"d\":$request_time,\"up\":\"$upstream_addr\",\
             \"ud\":\"$upstream_response_time\",\"ua\":\"$http_user_agent\"}}';\n\
             access_log {} j buffer=32k flush=1s;\n\
             upstream app {{ server 127.0.0.1:{SERVER}; keepalive 512; keepalive_requests 1000000000; }}\n\
             server {{ listen 127.0.0.1:{NGINX}; listen 127.0.0.1:{} ssl http2;\n\
             ssl_certificate {}; ssl_certificate_key {}; location / {{ proxy_pass http://app;\n\
             proxy_http_version 1.1; proxy_set_header Connection \"\"; proxy_set_header Host $host;\n\
             proxy_set_header X-Forwarded-For $remote_addr; proxy_set_header X-Request-Id $request_id; }} }}",
            log.display(),
            NGINX + TLS,
            certificate.display(),
            key.display(),
        );
        arena.nginx("proxy", &proxy, PROXY_CPU)?;
        arena.haproxy()?;
        Ok(arena)
    }

    fn host(&self) -> &Namespace {
        &self.lab.host
    }

    fn nginx(&mut self, name: &str, http: &str, cpu: usize) -> Result<()> {
        let at = self.directory.path().join(name);
        fs::create_dir(&at)?;
        let file = at.join("nginx.conf");
        let dir = at.display();
        fs::write(
            &file,
            format!(
                "daemon off; master_process off; pid {dir}/pid; error_log {dir}/error.log;\n\
                 worker_rlimit_nofile 8192; events {{ worker_connections 4096; }}\n\
                 http {{ default_type text/plain; keepalive_requests 1000000000;\n\
                 client_body_temp_path {dir}/1; proxy_temp_path {dir}/2; fastcgi_temp_path {dir}/3;\n\
                 uwsgi_temp_path {dir}/4; scgi_temp_path {dir}/5;\n{http}\n}}\n"
            ),
        )?;
        let arguments = ["-p", path(&at)?, "-c", path(&file)?];
        self.spawn(cpu, "nginx", &arguments)
    }

    fn haproxy(&mut self) -> Result<()> {
        let file = self.directory.path().join("haproxy.cfg");
        let both = self.directory.path().join("both.pem");
        fs::write(
            &file,
            format!(
                "global\n  nbthread 1\n  maxconn 4000\n  log stdout format raw local0\n\
                 defaults\n  mode http\n  log global\n  option httplog\n  timeout connect 1s\n\
                 \x20 timeout client 60s\n  timeout server 60s\n  http-reuse always\n\
                 frontend web\n  bind 127.0.0.1:{HAPROXY}\n\
                 \x20 bind 127.0.0.1:{} ssl crt {} alpn h2,http/1.1\n  default_backend app\n\
                 backend app\n  option forwardfor\n  server a 127.0.0.1:{SERVER}\n",
                HAPROXY + TLS,
                both.display()
            ),
        )?;
        let arguments = ["-db", "-f", path(&file)?];
        self.spawn(PROXY_CPU, "haproxy", &arguments)
    }

    /// Starts a program on a processor; what it writes goes to a file.
    fn spawn(&mut self, cpu: usize, program: &str, arguments: &[&str]) -> Result<()> {
        let log = self.directory.path().join(format!("{program}.out"));
        let log = fs::OpenOptions::new().create(true).append(true).open(log)?;
        let child = self
            .host()
            .command("taskset")
            .args(["-c", &cpu.to_string(), program])
            .args(arguments)
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()
            .with_context(|| format!("{program} does not start (cargo xtask setup fetches it)"))?;
        self.children.push(Running(child));
        Ok(())
    }

    /// The daemon's files.
    fn edge(&self) -> Installation<'_> {
        let edge = Installation::new(self.host(), &["eth0"], "");
        let at = self.directory.path();
        let log = edge.file("access.log");
        let settings = format!(
            "[proxy]\nworkers = 1\naccess_log = {{ path = {log:?} }}\n{}\
             [[upstream]]\nname = \"app\"\nkeep_alive = {{ connections = 512 }}\n\
             concurrency = {{ requests = 4000 }}\nbreaker = {{}}\npassive = {{}}\n\
             server = [{{ address = \"127.0.0.1:{SERVER}\" }}]\n\
             [[route]]\nname = \"all\"\nupstream = \"app\"\n",
            listeners(&at.join(CERTIFICATE), &at.join(KEY), 10_000)
        );
        edge.configure(&["eth0"], &settings);
        edge
    }

    fn contenders(&self, daemon: &Daemon) -> Result<[Contender; 3]> {
        // The children: the server, nginx, HAProxy.
        let pid = |at: usize| -> Result<u32> {
            let child = self.children.get(at).context("a child")?;
            Ok(child.0.id())
        };
        pin(daemon.pid(), PROXY_CPU)?;
        let all = [
            Contender {
                pid: pid(1)?,
                port: NGINX,
            },
            Contender {
                pid: pid(2)?,
                port: HAPROXY,
            },
            Contender {
                pid: daemon.pid(),
                port: EDGE,
            },
        ];
        for contender in &all {
            wait::until("a proxy answers", || {
                self.load(
                    contender,
                    &Load {
                        connections: 1,
                        requests: 1,
                        ..BASE
                    },
                )
                .is_ok()
            });
        }
        Ok(all)
    }

    /// Puts a load on a proxy.
    fn measure(&self, contender: &Contender, load: &Load) -> Result<Measured> {
        let before = cpu_us(contender.pid)?;
        let (rate, p99) = self.load(contender, load)?;
        let spent = cpu_us(contender.pid)? - before;
        Ok(Measured {
            cost: spent / f64::from(load.requests),
            rate,
            p99,
        })
    }

    /// The same; requests a second, and the duration that one of 100 exceeds, milliseconds.
    fn load(&self, contender: &Contender, load: &Load) -> Result<(f64, f64)> {
        let log = self.directory.path().join("h2load.log");
        let _ = fs::remove_file(&log);
        let requests = load.requests;
        let mut command = self.host().command("taskset");
        command.args(["-c", &OTHER_CPU.to_string(), "h2load", "-t1"]);
        command.args(["-n", &requests.to_string()]);
        command.args(["-c", &load.connections.to_string()]);
        command.arg(format!("--log-file={}", log.display()));
        match load.protocol {
            Protocol::Http1 | Protocol::Https => command.arg("--h1"),
            Protocol::Http2(streams) => command.args(["-m", &streams.to_string()]),
        };
        if load.body > 0 {
            let file = self.directory.path().join("body");
            command.arg("-d").arg(file);
        }
        let (scheme, port) = match load.protocol {
            Protocol::Http1 => ("http", contender.port),
            Protocol::Https | Protocol::Http2(_) => ("https", contender.port + TLS),
        };
        command.arg(format!("{scheme}://127.0.0.1:{port}{}", load.path));
        let output = command.stdin(Stdio::null()).output()?;
        let text = String::from_utf8_lossy(&output.stdout);
        let all = format!("status codes: {requests} 2xx");
        ensure!(output.status.success() && text.contains(&all), "{text}");
        // Start, status, duration in microseconds.
        let mut durations: Vec<f64> = fs::read_to_string(&log)?
            .lines()
            .filter_map(|line| line.split('\t').nth(2)?.parse().ok())
            .collect();
        ensure!(!durations.is_empty(), "{}: no durations", log.display());
        durations.sort_by(f64::total_cmp);
        let at = durations.len() * 99 / 100;
        let p99 = durations.get(at).copied().unwrap_or(0.0) / 1000.0;
        // finished in 1.23s, 45678.90 req/s, 56.78MB/s
        let rate = text.lines().find_map(|line| {
            let (before, _) = line.split_once(" req/s")?;
            before.rsplit(' ').next()?.parse().ok()
        });
        Ok((rate.context("h2load tells no rate")?, p99))
    }
}

/// Files of a certificate and its key, and of both for HAProxy.
const CERTIFICATE: &str = "cert.pem";
const KEY: &str = "key.pem";

/// Makes them, and tells where they are.
pub(crate) fn certificate(at: &Path) -> Result<(PathBuf, PathBuf)> {
    let made = rcgen::generate_simple_self_signed(["localhost".to_owned()])?;
    let (cert, key) = (made.cert.pem(), made.signing_key.serialize_pem());
    fs::write(at.join(CERTIFICATE), &cert)?;
    fs::write(at.join(KEY), &key)?;
    fs::write(at.join("both.pem"), cert + &key)?;
    Ok((at.join(CERTIFICATE), at.join(KEY)))
}

/// Edge's two listeners, without and with TLS.
pub(crate) fn listeners(certificate: &Path, key: &Path, connections: u32) -> String {
    let limits = format!(
        "limits = {{ requests_per_connection = 0, connections = {connections}, \
         idle_timeout = \"1h\" }}"
    );
    format!(
        "[[listener]]\nname = \"web\"\naddresses = [\"127.0.0.1:{EDGE}\"]\n{limits}\n\
         [[listener]]\nname = \"tls\"\naddresses = [\"127.0.0.1:{}\"]\n{limits}\n\
         tls = {{ certificates = [{{ cert = {certificate:?}, key = {key:?} }}] }}\n",
        EDGE + TLS
    )
}

fn path(path: &Path) -> Result<&str> {
    path.to_str().context("a path that is text")
}

/// Puts all threads of a process onto a processor.
fn pin(pid: u32, cpu: usize) -> Result<()> {
    let status = std::process::Command::new("taskset")
        .args(["-a", "-p", "-c", &cpu.to_string(), &pid.to_string()])
        .stdout(Stdio::null())
        .status()?;
    if !status.success() {
        bail!("taskset: {status}");
    }
    Ok(())
}

/// Time of the processor that a process took, microseconds.
fn cpu_us(pid: u32) -> Result<f64> {
    let mut sum = 0.0;
    // In nanoseconds, for each thread: /proc/PID/stat has only hundredths of a second.
    for entry in fs::read_dir(format!("/proc/{pid}/task"))? {
        let text = fs::read_to_string(entry?.path().join("schedstat"))?;
        let first = text.split_whitespace().next().context("schedstat")?;
        sum += first.parse::<f64>()?;
    }
    Ok(sum / 1000.0)
}
