//! The proxy beside nginx and HAProxy: what a request costs each of them.
//!
//! All of them stand before the same nginx, in one namespace, over loopback. The proxy that is
//! measured has one processor, and everything else the other one. They take turns, so that what
//! else the machine does befalls all of them. What counts is time of the processor, as the kernel
//! accounts it to the proxy's process: it does not depend on who waits for whom. All write an
//! access log.

use std::{
    fs,
    path::Path,
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
    report::{Report, Row, Target},
};

/// The processor of the proxy that is measured, and that of everything else.
const PROXY_CPU: usize = 0;
const OTHER_CPU: usize = 1;
/// Ports of the server, and of the proxies.
const SERVER: u16 = 8100;
const NGINX: u16 = 8101;
const HAPROXY: u16 = 8102;
const EDGE: u16 = 8103;
/// Each contender is measured so often; the least counts.
const TURNS: u32 = 5;

/// What is asked for.
struct Load {
    name: &'static str,
    path: &'static str,
    connections: u32,
    requests: u32,
    /// Bytes of the request's body.
    body: usize,
    /// What a request may cost, as a share of what it costs nginx.
    most: f64,
}

const LOADS: [Load; 4] = [
    Load {
        name: "1 KB, 50 connections",
        path: "/1k",
        connections: 50,
        requests: 60_000,
        body: 0,
        most: 1.0,
    },
    Load {
        name: "1 KB, 500 connections",
        path: "/1k",
        connections: 500,
        requests: 60_000,
        body: 0,
        most: 1.0,
    },
    Load {
        name: "50 KB, 50 connections",
        path: "/50k",
        connections: 50,
        requests: 20_000,
        body: 0,
        most: 1.1,
    },
    Load {
        name: "POST 5 KB, 50 connections",
        path: "/post",
        connections: 50,
        requests: 40_000,
        body: 5 << 10,
        most: 1.0,
    },
];

impl Bench {
    /// What a request costs.
    pub(crate) fn proxy(&mut self) -> Result<()> {
        let wanted: Vec<&Load> = LOADS
            .iter()
            .filter(|load| self.wants(&row_name(load)))
            .collect();
        if wanted.is_empty() {
            return Ok(());
        }
        let arena = Arena::new()?;
        let edge = arena.edge();
        let daemon = edge.start();
        let contenders = arena.contenders(&daemon)?;
        Report::head("Proxy, one processor; floor: nginx", "µs");
        for load in wanted {
            self.proxy_row(&arena, &contenders, load)?;
        }
        Ok(())
    }

    fn proxy_row(&mut self, arena: &Arena, all: &[Contender; 3], load: &Load) -> Result<()> {
        let mut least = [f64::INFINITY; 3];
        let mut p99 = [f64::INFINITY; 3];
        for _ in 0..TURNS {
            for (at, contender) in all.iter().enumerate() {
                let (cost, slow) = arena.measure(contender, load)?;
                least[at] = least[at].min(cost);
                p99[at] = p99[at].min(slow);
            }
        }
        let [nginx, haproxy, edge] = least;
        self.report.add(Row {
            name: row_name(load),
            unit: "µs of the processor a request",
            floor: Some(nginx),
            gross: Some(edge),
            value: edge / nginx,
            target: Some(Target::AtMost(load.most)),
            note: format!(
                "HAProxy {haproxy:.1}; slowest of 100 (edge, nginx, HAProxy) {:.1} {:.1} {:.1} ms",
                p99[2], p99[0], p99[1]
            ),
            more: json!({
                "nginx_us": nginx, "haproxy_us": haproxy, "edge_us": edge,
                "p99_ms": { "nginx": p99[0], "haproxy": p99[1], "edge": p99[2] },
            }),
        });
        Ok(())
    }
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
             server {{ listen 127.0.0.1:{NGINX}; location / {{ proxy_pass http://app;\n\
             proxy_http_version 1.1; proxy_set_header Connection \"\"; proxy_set_header Host $host;\n\
             proxy_set_header X-Forwarded-For $remote_addr; proxy_set_header X-Request-Id $request_id; }} }}",
            log.display()
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
        fs::write(
            &file,
            format!(
                "global\n  nbthread 1\n  maxconn 4000\n  log stdout format raw local0\n\
                 defaults\n  mode http\n  log global\n  option httplog\n  timeout connect 1s\n\
                 \x20 timeout client 60s\n  timeout server 60s\n  http-reuse always\n\
                 frontend web\n  bind 127.0.0.1:{HAPROXY}\n  default_backend app\n\
                 backend app\n  option forwardfor\n  server a 127.0.0.1:{SERVER}\n"
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
        let log = edge.file("access.log");
        let settings = format!(
            "[proxy]\nworkers = 1\naccess_log = {{ path = {log:?} }}\n\
             [[listener]]\nname = \"web\"\naddresses = [\"127.0.0.1:{EDGE}\"]\n\
             limits = {{ requests_per_connection = 0 }}\n\
             [[upstream]]\nname = \"app\"\nkeep_alive = {{ connections = 512 }}\n\
             concurrency = {{ requests = 4000 }}\nbreaker = {{}}\npassive = {{}}\n\
             server = [{{ address = \"127.0.0.1:{SERVER}\" }}]\n\
             [[route]]\nname = \"all\"\nupstream = \"app\"\n"
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
                self.load(contender, 1, 1, "/1k", 0).is_ok()
            });
        }
        Ok(all)
    }

    /// Microseconds of the processor a request, and the duration that one of 100 exceeds,
    /// milliseconds.
    fn measure(&self, contender: &Contender, load: &Load) -> Result<(f64, f64)> {
        let before = cpu_us(contender.pid)?;
        let slow = self.load(
            contender,
            load.requests,
            load.connections,
            load.path,
            load.body,
        )?;
        let spent = cpu_us(contender.pid)? - before;
        Ok((spent / f64::from(load.requests), slow))
    }

    fn load(
        &self,
        contender: &Contender,
        requests: u32,
        connections: u32,
        at: &str,
        body: usize,
    ) -> Result<f64> {
        let log = self.directory.path().join("h2load.log");
        let _ = fs::remove_file(&log);
        let mut command = self.host().command("taskset");
        command.args(["-c", &OTHER_CPU.to_string(), "h2load", "--h1", "-t1"]);
        command.args(["-n", &requests.to_string(), "-c", &connections.to_string()]);
        command.arg(format!("--log-file={}", log.display()));
        if body > 0 {
            let file = self.directory.path().join("body");
            command.arg("-d").arg(file);
        }
        command.arg(format!("http://127.0.0.1:{}{at}", contender.port));
        let output = command.stdin(Stdio::null()).output()?;
        let text = String::from_utf8_lossy(&output.stdout);
        let all = format!("status codes: {requests} 2xx");
        ensure!(output.status.success() && text.contains(&all), "{text}");
        // Start, status, duration in microseconds.
        let mut durations: Vec<f64> = fs::read_to_string(&log)?
            .lines()
            .filter_map(|line| line.split('\t').nth(2)?.parse().ok())
            .collect();
        durations.sort_by(f64::total_cmp);
        let at = durations.len() * 99 / 100;
        Ok(durations.get(at).copied().unwrap_or(0.0) / 1000.0)
    }
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
