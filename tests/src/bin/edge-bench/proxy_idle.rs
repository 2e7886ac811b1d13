//! Connections that wait for their next request: what memory each takes, and that 100,000 can.

use std::{
    fs,
    net::{Ipv4Addr, SocketAddr, TcpStream},
    sync::Arc,
};

use anyhow::{Context as _, Result, ensure};
use edge_tests::{
    daemon::{Daemon, Installation},
    lab::Lab,
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

/// Connections of one address: a source has fewer ports than 100,000.
const OF_AN_ADDRESS: u32 = 20_000;
/// Descriptors that this takes at the most, here and in the daemon.
const DESCRIPTORS: u64 = 250_000;
/// Connections before those that count: what is needed once is there after them.
const FIRST: u32 = 2_000;
/// Descriptors for all else.
const OTHER_FILES: u64 = 1_000;
const REQUEST: &[u8] = b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n";

struct Spec {
    name: &'static str,
    connections: u32,
    tls: bool,
    /// Bytes that each may take.
    most: f64,
}

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
                    "{}: not measured, a process may have {descriptors} descriptors here",
                    row.name
                );
                continue;
            }
            // A daemon each: memory that was freed is not given back at once.
            let lab = Lab::new(1);
            lab.host.ip("link set lo up");
            let directory = tempfile::tempdir()?;
            let (cert, key) = certificate(directory.path())?;
            let edge = Installation::new(&lab.host, &["eth0"], "");
            let settings = format!(
                "[proxy]\nworkers = 1\n{}[[route]]\nname = \"all\"\n\
                 respond = {{ status = 200, body = \"here\" }}\n",
                listeners(&cert, &key, 200_000)
            );
            edge.configure(&["eth0"], &settings);
            let daemon = edge.start();
            let client = Client::new(&fs::read(&cert)?)?;
            let value = lab
                .host
                .inside(|| connections(&client, &daemon, row))
                .with_context(|| row.name)?;
            self.report.add(Row {
                name: row.name.to_owned(),
                unit: "bytes of the daemon's memory a connection",
                floor: None,
                gross: Some(value),
                value,
                target: Some(Target::AtMost(row.most)),
                note: String::new(),
                more: json!({ "connections": row.connections }),
            });
        }
        Ok(())
    }
}

/// Opens connections, and tells how many bytes each of them takes.
fn connections(client: &Client, daemon: &Daemon, row: &Spec) -> Result<f64> {
    let mut open = Vec::new();
    for n in 0..FIRST {
        open.push(client.open(n, row.tls)?);
    }
    let before = resident(daemon.pid())?;
    for n in FIRST..FIRST + row.connections {
        open.push(client.open(n, row.tls)?);
    }
    let after = resident(daemon.pid())?;
    // They are there: the first and the last one are answered once more.
    if !row.tls {
        for stream in [0, open.len() - 1] {
            let stream = open.get_mut(stream).context("a connection")?;
            ask(stream)?;
        }
    }
    Ok((after - before) / f64::from(row.connections))
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
    fn open(&self, number: u32, tls: bool) -> Result<TcpStream> {
        let from = Ipv4Addr::from(u32::from(Ipv4Addr::LOCALHOST) + 1 + number / OF_AN_ADDRESS);
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None)?;
        socket.bind(&SocketAddr::from((from, 0)).into())?;
        let port = if tls { EDGE + TLS } else { EDGE };
        socket.connect(&SocketAddr::from((Ipv4Addr::LOCALHOST, port)).into())?;
        let mut stream = TcpStream::from(socket);
        if tls {
            let name = ServerName::try_from("localhost")?;
            let mut session = ClientConnection::new(self.tls.clone(), name)?;
            ask(&mut Stream::new(&mut session, &mut stream))?;
        } else {
            ask(&mut stream)?;
        }
        Ok(stream)
    }
}

/// One request, and its answer.
fn ask(stream: &mut (impl std::io::Read + std::io::Write)) -> Result<()> {
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
