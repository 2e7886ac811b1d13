//! Connections that wait for their next request: what memory each takes, and that 100,000 can.

use std::{
    fs,
    io::{Read, Write},
    net::{Ipv4Addr, SocketAddr, TcpStream},
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use edge_tests::{
    daemon::{Daemon, Installation},
    netns::Namespace,
};
use serde_json::json;
use socket2::{Domain, Socket, Type};
use tokio_rustls::rustls::{
    ClientConfig, ClientConnection, RootCertStore, Stream,
    pki_types::{CertificateDer, ServerName, pem::PemObject as _},
};

use crate::{
    packets::Bench,
    proxy::{EDGE, TLS, certificate, listeners},
    report::{Report, Row, Target},
};

/// Connections of one address. A source has 28,000 ports, and finding a free one takes the kernel
/// long when most of the even half of them, which it tries first, are taken.
const OF_AN_ADDRESS: u32 = 10_000;
/// Descriptors that this takes at the most, here and in the daemon.
const DESCRIPTORS: u64 = 250_000;
/// Connections before those that count: what is needed once is there after them.
const FIRST: u32 = 2_000;
/// Descriptors for all else.
const OTHER_FILES: u64 = 1_000;
/// How long the daemon may take to get ready, on an emulated machine too.
const START: Duration = Duration::from_secs(300);
/// The same for an answer.
const ANSWER: Duration = Duration::from_secs(60);
const REQUEST: &[u8] = b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n";

struct Spec {
    name: &'static str,
    connections: u32,
    tls: bool,
    /// Bytes that each may take.
    most: f64,
}

// `cargo xtask vm-test --idle` names what it wants of them by a part of a name.
const ROWS: [Spec; 3] = [
    Spec {
        name: "proxy, 10,000 idle connections",
        connections: 10_000,
        tls: false,
        most: 6.0 * 1024.0,
    },
    Spec {
        name: "proxy, 10,000 idle connections with TLS",
        connections: 10_000,
        tls: true,
        most: 20.0 * 1024.0,
    },
    Spec {
        name: "proxy, 100,000 idle connections",
        connections: 100_000,
        tls: false,
        most: 6.0 * 1024.0,
    },
];

impl Bench {
    /// What connections take that have had an answer and wait.
    pub(crate) fn waiting(&mut self) -> Result<()> {
        let wanted: Vec<&Spec> = ROWS.iter().filter(|row| self.wants(row.name)).collect();
        if wanted.is_empty() {
            return Ok(());
        }
        let descriptors = raise_limit();
        Report::head("Proxy, memory of connections that wait", "bytes");
        for row in wanted {
            if u64::from(row.connections + FIRST) + OTHER_FILES > descriptors {
                println!(
                    "{}: not measured, a process may have {descriptors} descriptors here \
                     (cargo xtask vm-test --idle measures it on an emulated machine)",
                    row.name
                );
                continue;
            }
            // A daemon each: memory that was freed is not given back at once.
            let host = Namespace::new();
            host.ip("link add eth0 type veth peer name out0");
            host.ip("link set eth0 up");
            let directory = tempfile::tempdir()?;
            let (cert, key) = certificate(directory.path())?;
            let settings = format!(
                "[proxy]\nworkers = 1\n{}[[route]]\nname = \"all\"\n\
                 respond = {{ status = 200, body = \"here\" }}\n",
                listeners(&cert, &key, 200_000)
            );
            let edge = Installation::new(&host, &["eth0"], &settings);
            let daemon = edge.start_within(START);
            let client = Client::new(&fs::read(&cert)?)?;
            let taken = host
                .inside(|| connections(&client, &edge, &daemon, row))
                .with_context(|| row.name)?;
            self.report.add(Row {
                name: row.name.to_owned(),
                unit: "bytes of the daemon's memory a connection",
                floor: None,
                gross: Some(taken.daemon),
                value: taken.daemon,
                target: Some(Target::AtMost(row.most)),
                note: format!(
                    "kernel, both ends: {:.0} bytes; all answered once more, the first after \
                     {:.0} s",
                    taken.kernel,
                    taken.waited.as_secs_f64()
                ),
                more: json!({
                    "connections": row.connections,
                    "kernel_bytes_of_both_ends": taken.kernel,
                    "waited_s": taken.waited.as_secs_f64(),
                }),
            });
        }
        Ok(())
    }
}

/// What connections that wait take.
struct Taken {
    /// Bytes of the daemon, each.
    daemon: f64,
    /// Bytes of the kernel, each, for both of its ends and whatever else was made meanwhile.
    kernel: f64,
    /// How long the first one has waited for its second request.
    waited: Duration,
}

/// Opens connections, each with a request, lets all of them wait, and asks each once more.
fn connections(
    client: &Client,
    edge: &Installation<'_>,
    daemon: &Daemon,
    row: &Spec,
) -> Result<Taken> {
    let memory = || -> Result<[f64; 3]> {
        let own = resident(std::process::id())?;
        Ok([resident(daemon.pid())?, own, unavailable()?])
    };
    let all = FIRST + row.connections;
    let mut open = Vec::with_capacity(all as usize);
    for n in 0..FIRST {
        open.push(client.open(n, row.tls)?);
    }
    let (since, before) = (Instant::now(), memory()?);
    for n in FIRST..all {
        let one = client.open(n, row.tls);
        open.push(one.with_context(|| format!("connection {n}"))?);
        // On an emulated machine it takes minutes.
        if (n + 1).is_multiple_of(OF_AN_ADDRESS) {
            eprintln!("{} connections are open", n + 1);
        }
    }
    let after = memory()?;
    // Said by the daemon, and by each of them.
    let is_open = format!(
        "edge_http_connections{{listener=\"{}\"}} {all}",
        if row.tls { "tls" } else { "web" }
    );
    ensure!(
        edge.scrape().lines().any(|line| line == is_open),
        "the daemon does not say {is_open}"
    );
    let waited = since.elapsed();
    for (n, connection) in open.iter_mut().enumerate() {
        let answer = connection.ask();
        answer.with_context(|| format!("connection {n} of {all} after a while"))?;
    }
    let [daemon, own, whole] = std::array::from_fn(|at| after[at] - before[at]);
    let each = f64::from(row.connections);
    Ok(Taken {
        daemon: daemon / each,
        kernel: (whole - daemon - own) / each,
        waited,
    })
}

struct Client {
    tls: Arc<ClientConfig>,
}

impl Client {
    fn new(certificate: &[u8]) -> Result<Self> {
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from_pem_slice(certificate)?)?;
        let config = ClientConfig::builder()
            .with_root_certificates(roots)
            .with_no_client_auth();
        Ok(Self {
            tls: Arc::new(config),
        })
    }

    /// A connection that has had an answer.
    fn open(&self, number: u32, tls: bool) -> Result<Connection> {
        let from = Ipv4Addr::from(u32::from(Ipv4Addr::LOCALHOST) + 1 + number / OF_AN_ADDRESS);
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None)?;
        socket.bind(&SocketAddr::from((from, 0)).into())?;
        let port = if tls { EDGE + TLS } else { EDGE };
        socket.connect(&SocketAddr::from((Ipv4Addr::LOCALHOST, port)).into())?;
        socket.set_read_timeout(Some(ANSWER))?;
        let session = tls.then(|| {
            let name = ServerName::try_from("localhost")?;
            anyhow::Ok(Box::new(ClientConnection::new(self.tls.clone(), name)?))
        });
        let mut connection = Connection {
            stream: socket.into(),
            session: session.transpose()?,
        };
        connection.ask()?;
        Ok(connection)
    }
}

struct Connection {
    stream: TcpStream,
    session: Option<Box<ClientConnection>>,
}

impl Connection {
    /// One request, and its answer.
    fn ask(&mut self) -> Result<()> {
        match &mut self.session {
            Some(session) => ask(&mut Stream::new(&mut **session, &mut self.stream)),
            None => ask(&mut self.stream),
        }
    }
}

fn ask(stream: &mut (impl Read + Write)) -> Result<()> {
    stream.write_all(REQUEST)?;
    let mut answer = Vec::new();
    let mut piece = [0; 1024];
    while !answer.ends_with(b"here") {
        let n = stream.read(&mut piece)?;
        ensure!(n > 0, "the connection ended");
        answer.extend_from_slice(&piece[..n]);
    }
    ensure!(answer.starts_with(b"HTTP/1.1 200 "), "no answer of 200");
    Ok(())
}

/// Bytes of a process that are in memory.
fn resident(pid: u32) -> Result<f64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kib = line.and_then(|line| line.split_whitespace().next());
    Ok(kib.context("VmRSS")?.parse::<f64>()? * 1024.0)
}

/// Bytes of the machine's memory that nobody could have now.
fn unavailable() -> Result<f64> {
    let all = fs::read_to_string("/proc/meminfo")?;
    let kib = |name: &str| -> Result<f64> {
        let line = all.lines().find_map(|line| line.strip_prefix(name));
        let kib = line.and_then(|line| line.split_whitespace().next());
        Ok(kib.context("/proc/meminfo")?.parse()?)
    };
    Ok((kib("MemTotal:")? - kib("MemAvailable:")?) * 1024.0)
}

/// Lets this process, and those that it starts, have as many descriptors as can be had; tells how
/// many those are.
fn raise_limit() -> u64 {
    let mut limit = libc::rlimit {
        rlim_cur: 0,
        rlim_max: 0,
    };
    // SAFETY: writes into, and reads from, a live value.
    unsafe {
        libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut limit);
        for most in [DESCRIPTORS.max(limit.rlim_max), limit.rlim_max] {
            (limit.rlim_cur, limit.rlim_max) = (most, most);
            if libc::setrlimit(libc::RLIMIT_NOFILE, &raw const limit) == 0 {
                break;
            }
        }
    }
    limit.rlim_cur
}
