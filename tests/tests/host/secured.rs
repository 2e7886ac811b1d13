//! Clients of TLS and HTTP/2, which keep their connections, and what an upgrade does to them.

use std::fs;
use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};

use edge_tests::daemon::Installation;
use edge_tests::lab::{Lab, Link};
use edge_tests::server::Nginx;
use edge_tests::wait;
use rcgen::{CertifiedKey, generate_simple_self_signed};
use tokio_rustls::rustls::client::Resumption;
use tokio_rustls::rustls::pki_types::{CertificateDer, ServerName};
use tokio_rustls::rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned};

use crate::proxy::{HTTPS, patient, settings, with_certificate};
use crate::upgrade::{Heirs, copy_of_binary, downloads, head, pid};

/// The name in the certificates.
const NAME: &str = "edge.example";

const DATA: u8 = 0;
const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const PING: u8 = 6;
const GOAWAY: u8 = 7;
const WINDOW_UPDATE: u8 = 8;
const END_STREAM: u8 = 1;
const ACK: u8 = 1;
const END_HEADERS: u8 = 4;
/// `:status: 200` in the static table of HPACK.
const OK: u8 = 0x88;
/// So many bytes may come before more are asked for: more than any test gets.
const WINDOW: u32 = (1 << 31) - 1;

/// A certificate and its key in files.
pub(crate) struct Certificate {
    pub(crate) cert: PathBuf,
    pub(crate) key: PathBuf,
    pub(crate) der: CertificateDer<'static>,
}

impl Certificate {
    pub(crate) fn new(edge: &Installation<'_>, name: &str) -> Self {
        let CertifiedKey { cert, signing_key } =
            generate_simple_self_signed([NAME.to_owned()]).unwrap();
        let [at_cert, at_key] = ["pem", "key"].map(|end| edge.file(&format!("{name}.{end}")));
        fs::write(&at_cert, cert.pem()).unwrap();
        fs::write(&at_key, signing_key.serialize_pem()).unwrap();
        Self {
            cert: at_cert,
            key: at_key,
            der: cert.der().clone(),
        }
    }

    /// As a listener has it.
    pub(crate) fn files(&self) -> String {
        format!("{{ cert = {:?}, key = {:?} }}", self.cert, self.key)
    }
}

pub(crate) type Tls = StreamOwned<ClientConnection, TcpStream>;

/// A client that trusts some certificates, and speaks one protocol.
pub(crate) fn trusting(certificates: &[&Certificate], protocol: &str) -> Arc<ClientConfig> {
    let mut roots = RootCertStore::empty();
    for certificate in certificates {
        roots.add(certificate.der.clone()).unwrap();
    }
    let config = ClientConfig::builder().with_root_certificates(roots);
    let mut config = config.with_no_client_auth();
    config.alpn_protocols = vec![protocol.into()];
    // What is resumed shows the certificate of then.
    config.resumption = Resumption::disabled();
    Arc::new(config)
}

/// A session with the proxy.
pub(crate) fn shake_hands(link: &Link, config: &Arc<ClientConfig>) -> io::Result<Tls> {
    let to = SocketAddr::new(link.v4(1), HTTPS);
    let stream = link.outside.inside(|| TcpStream::connect(to))?;
    stream.set_read_timeout(Some(wait::PATIENCE))?;
    let name = ServerName::try_from(NAME).unwrap();
    let session = ClientConnection::new(config.clone(), name).map_err(io::Error::other)?;
    let mut stream = StreamOwned::new(session, stream);
    while stream.conn.is_handshaking() {
        stream.conn.complete_io(&mut stream.sock)?;
    }
    Ok(stream)
}

/// Asks for a path by HTTP/1; the head of the answer, in lower case.
pub(crate) fn begin(stream: &mut impl ReadWrite, path: &str) -> io::Result<String> {
    stream.write_all(format!("GET {path} HTTP/1.1\r\nHost: {NAME}\r\n\r\n").as_bytes())?;
    head(stream)
}

/// The same, and the body, whose length the head says.
pub(crate) fn ask(stream: &mut impl ReadWrite, path: &str) -> io::Result<(String, Vec<u8>)> {
    let head = begin(stream, path)?;
    let mut lines = head.lines();
    let length = lines.find_map(|line| line.strip_prefix("content-length: "));
    let length = length.map_or(0, |length| length.parse().unwrap());
    let mut body = vec![0; length];
    stream.read_exact(&mut body)?;
    Ok((head, body))
}

pub(crate) trait ReadWrite: Read + Write {}
impl<S: Read + Write> ReadWrite for S {}

/// A client of HTTP/2 that asks for one thing after the other on one connection.
pub(crate) struct H2<S> {
    stream: S,
    next: u32,
    /// The last stream that the other end takes.
    last: u32,
}

/// What came for a stream.
#[derive(Default)]
pub(crate) struct Answer {
    pub(crate) is_ok: bool,
    pub(crate) body: Vec<u8>,
    pub(crate) is_whole: bool,
}

impl<S: ReadWrite> H2<S> {
    pub(crate) fn new(stream: S) -> io::Result<Self> {
        let mut client = Self {
            stream,
            next: 1,
            last: u32::MAX,
        };
        client
            .stream
            .write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")?;
        let mut window = vec![0, 4];
        window.extend(WINDOW.to_be_bytes());
        client.send(SETTINGS, 0, 0, &window)?;
        // That of the connection is 65,535 at the beginning.
        client.send(WINDOW_UPDATE, 0, 0, &(WINDOW - 65_535).to_be_bytes())?;
        Ok(client)
    }

    fn send(&mut self, kind: u8, flags: u8, stream: u32, payload: &[u8]) -> io::Result<()> {
        let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
        let mut frame = length[1..].to_vec();
        frame.extend([kind, flags]);
        frame.extend(stream.to_be_bytes());
        frame.extend(payload);
        self.stream.write_all(&frame)
    }

    /// Whether the other end takes no more streams.
    pub(crate) fn is_over(&self) -> bool {
        self.last != u32::MAX
    }

    /// Begins a request.
    pub(crate) fn begin(&mut self, path: &str) -> io::Result<u32> {
        // Literal and without any Huffman code (RFC 7541, 6.2.2).
        let mut block = Vec::new();
        for (name, value) in [
            (":method", "GET"),
            (":scheme", "https"),
            (":path", path),
            (":authority", NAME),
        ] {
            block.push(0);
            for text in [name, value] {
                block.push(u8::try_from(text.len()).unwrap());
                block.extend(text.as_bytes());
            }
        }
        let id = self.next;
        self.next += 2;
        self.send(HEADERS, END_HEADERS | END_STREAM, id, &block)?;
        Ok(id)
    }

    /// Resets a stream.
    pub(crate) fn reset(&mut self, id: u32) -> io::Result<()> {
        const CANCEL: [u8; 4] = [0, 0, 0, 8];
        self.send(RST_STREAM, 0, id, &CANCEL)
    }

    /// Reads a frame, and takes what it has for a stream. At the end of the connection: an error.
    fn hear(&mut self, id: u32, answer: &mut Answer) -> io::Result<()> {
        let mut head = [0; 9];
        self.stream.read_exact(&mut head)?;
        let length = u32::from_be_bytes([0, head[0], head[1], head[2]]);
        let (kind, flags) = (head[3], head[4]);
        let of = u32::from_be_bytes([head[5] & 127, head[6], head[7], head[8]]);
        let mut payload = vec![0; length as usize];
        self.stream.read_exact(&mut payload)?;
        match kind {
            SETTINGS if flags & ACK == 0 => self.send(SETTINGS, ACK, 0, &[])?,
            PING if flags & ACK == 0 => self.send(PING, ACK, 0, &payload)?,
            GOAWAY => {
                let last = u32::from_be_bytes(payload[..4].try_into().unwrap());
                let code = u32::from_be_bytes(payload[4..8].try_into().unwrap());
                self.last = self.last.min(last);
                if code != 0 {
                    return Err(io::Error::other(format!("GOAWAY with code {code}")));
                }
            }
            RST_STREAM if of == id => return Err(io::Error::other("the stream was reset")),
            HEADERS if of == id => {
                answer.is_ok |= payload.contains(&OK);
                answer.is_whole |= flags & END_STREAM != 0;
            }
            DATA if of == id => {
                answer.body.extend(payload);
                answer.is_whole |= flags & END_STREAM != 0;
            }
            _ => {}
        }
        Ok(())
    }

    /// Reads until there are so many bytes of a body, or all of it.
    pub(crate) fn take(&mut self, id: u32, answer: &mut Answer, bytes: usize) -> io::Result<()> {
        while answer.body.len() < bytes && !answer.is_whole {
            self.hear(id, answer)?;
        }
        Ok(())
    }

    /// Asks and waits for the answer; `None` when the other end did not take the request, which
    /// may be asked again.
    pub(crate) fn get(&mut self, path: &str) -> io::Result<Option<Answer>> {
        let mut answer = Answer::default();
        let begun = self.next;
        let got = self.begin(path);
        let got = got.and_then(|id| self.take(id, &mut answer, usize::MAX));
        match got {
            Ok(()) => Ok(Some(answer)),
            Err(_) if self.last < begun => Ok(None),
            Err(e) => Err(e),
        }
    }

    /// Reads until the other end ends the connection; why it did.
    pub(crate) fn end(&mut self) -> io::Error {
        loop {
            if let Err(e) = self.hear(0, &mut Answer::default()) {
                return e;
            }
        }
    }
}

/// Asks by HTTP/1 over TLS until it is told to end, on connections that it keeps as long as they go
/// on. All must be answered.
fn by_http1(link: &Link, config: &Arc<ClientConfig>, stop: &AtomicBool, done: &AtomicU64) {
    while !stop.load(Relaxed) {
        let mut stream = shake_hands(link, config).unwrap();
        let mut goes_on = true;
        while goes_on && !stop.load(Relaxed) {
            let (head, body) = ask(&mut stream, "/").unwrap();
            assert!(head.starts_with("http/1.1 200 "), "{head}");
            assert_eq!(body, b"protected by Edge\n");
            done.fetch_add(1, Relaxed);
            goes_on = !head.contains("connection: close");
        }
    }
}

/// The same by HTTP/2.
fn by_http2(link: &Link, config: &Arc<ClientConfig>, stop: &AtomicBool, done: &AtomicU64) {
    while !stop.load(Relaxed) {
        let mut client = H2::new(shake_hands(link, config).unwrap()).unwrap();
        while !stop.load(Relaxed) && !client.is_over() {
            let Some(answer) = client.get("/").unwrap() else {
                break;
            };
            assert!(answer.is_ok);
            assert_eq!(answer.body, b"protected by Edge\n");
            done.fetch_add(1, Relaxed);
        }
    }
}

#[test]
fn clients_of_tls_and_http2_lose_nothing_by_upgrades() {
    const UPGRADES: usize = 3;
    let lab = Lab::new(3);
    let link = lab.link();
    let (files, content) = downloads();
    let _servers = [1, 2].map(|n| Nginx::serving(&lab.links[n].outside, files.path()));
    let edge = Installation::new(&lab.host, &["eth0"], "");
    let certificate = Certificate::new(&edge, "own");
    let settings = patient(&settings(&lab, "", "", ""));
    let text = with_certificate(&settings, &certificate.files());
    edge.configure(&["eth0"], &text);
    let mut daemon = edge.start();
    let _heirs = Heirs(&edge);
    let binary = copy_of_binary(&edge);
    let [http1, http2] = ["http/1.1", "h2"].map(|name| trusting(&[&certificate], name));
    // Large files that begin before the first upgrade and end after the last one.
    let mut large = H2::new(shake_hands(link, &http2).unwrap()).unwrap();
    let id = large.begin("/files/large").unwrap();
    let mut got = Answer::default();
    let mut rest = shake_hands(link, &http1).unwrap();
    begin(&mut rest, "/files/large").unwrap();
    let mut parts = content.chunks(content.len().div_ceil(UPGRADES + 1));
    let mut take = |n: usize| {
        large
            .take(id, &mut got, content.len() * (n + 1) / (UPGRADES + 2))
            .unwrap();
        let part = parts.next().unwrap();
        let mut read = vec![0; part.len()];
        rest.read_exact(&mut read).unwrap();
        assert!(read == part, "the download is another one");
    };
    take(0);
    let stop = AtomicBool::new(false);
    let done = [AtomicU64::new(0), AtomicU64::new(0)];
    struct Stop<'a>(&'a AtomicBool);
    impl Drop for Stop<'_> {
        fn drop(&mut self) {
            self.0.store(true, Relaxed);
        }
    }
    let former = pid(&edge);
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| by_http1(link, &http1, &stop, &done[0]));
            scope.spawn(|| by_http2(link, &http2, &stop, &done[1]));
        }
        let _stop = Stop(&stop);
        let more = || {
            let before = done.each_ref().map(|d| d.load(Relaxed));
            wait::until("all kinds go on", || {
                let now = done.each_ref().map(|d| d.load(Relaxed));
                now.iter()
                    .zip(before)
                    .all(|(now, before)| *now > before + 20)
            });
        };
        more();
        for n in 1..=UPGRADES {
            edge.ok(&["upgrade", "--binary", &binary]);
            more();
            take(n);
        }
    });
    assert_ne!(pid(&edge), former);
    large.take(id, &mut got, usize::MAX).unwrap();
    assert!(got.is_ok && got.body == content, "{}", got.body.len());
    println!("{done:?} answered over {UPGRADES} upgrades");
    drop((large, rest));
    wait::until_some("the first has ended", || daemon.ended());
    wait::until("only the last is left", || edge.daemons().len() == 1);
}
