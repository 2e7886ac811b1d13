//! A proxy, and the server behind it.

use std::{
    collections::HashMap,
    io::{self, Read as _, Write as _},
    net::{SocketAddr, TcpListener, TcpStream},
    sync::{
        Arc, Mutex,
        mpsc::{Receiver, SyncSender, sync_channel},
    },
    thread,
    time::{Duration, Instant},
};

use edge_common::hash::Seed;
use edge_userspace::{
    config::proxy::{
        Bans, Proxy,
        listener::{ClientHeader, Limits, Listener, ProxyProtocol},
        route::{Action, HeaderRules, PathMatch, RetriesOverride, Route, TimeoutsOverride},
        upstream::{
            Address, Balance, KeepAlive, Protocol, Retries, SendProxy, Server, Timeouts, Upstream,
        },
    },
    l7::proxy::{Ban, Tier},
    status::proxy::ListenerStatus,
};

/// How long anything may take.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);

/// A request as it came to the server.
#[derive(Clone, Debug)]
pub(crate) struct Seen {
    pub(crate) head: String,
    pub(crate) body: Vec<u8>,
    pub(crate) trailers: String,
}

/// What the server tells.
#[derive(Debug)]
pub(crate) enum Told {
    /// A whole request has come.
    Came(Seen),
    /// The connection of a request that is not answered (to its end) was closed.
    Gone,
}

/// A proxy in front of a server; both end with it.
pub(crate) struct Rig {
    pub(crate) address: SocketAddr,
    pub(crate) tier: Tier,
    pub(crate) told: Receiver<Told>,
    pub(crate) bans: Arc<Mutex<Vec<Ban>>>,
    /// Waiting requests for `/wait` are answered once something is sent.
    pub(crate) go: SyncSender<()>,
}

impl Rig {
    #[expect(
        clippy::needless_pass_by_value,
        reason = "tests make them where they are given"
    )]
    pub(crate) fn new(limits: Limits) -> Self {
        // As many as a test asks for at once, and more.
        let (tell, told) = sync_channel(1024);
        let (go, wait) = sync_channel(1024);
        let upstream = upstream(tell, wait);
        let bans = Arc::new(Mutex::new(Vec::new()));
        // The port may be somebody else's before it is ours.
        for _ in 0..100 {
            let free = TcpListener::bind("127.0.0.1:0").unwrap();
            let address = free.local_addr().unwrap();
            drop(free);
            let proxy = proxy(address, upstream, limits.clone());
            let noted = bans.clone();
            let mut tier = Tier::new(Seed::new([1, 2, 3, 4]), [7; 32], move |ban| {
                noted.lock().unwrap().push(ban);
                true
            });
            let Ok(prepared) = tier.prepare(&proxy) else {
                continue;
            };
            tier.commit(prepared);
            return Self {
                address,
                tier,
                told,
                bans,
                go,
            };
        }
        panic!("no port is free");
    }

    /// What is told of the listener.
    pub(crate) fn listener(&self) -> ListenerStatus {
        self.tier.view().status().unwrap().listeners.remove(0)
    }

    /// How often requests or connections were refused, by reason.
    pub(crate) fn refusals(&self) -> HashMap<String, u64> {
        self.listener().refusals.into_iter().collect()
    }

    /// The next request that came to the server.
    pub(crate) fn came(&self) -> Seen {
        match self.told.recv_timeout(PATIENCE) {
            Ok(Told::Came(seen)) => seen,
            other => panic!("no request: {other:?}"),
        }
    }

    /// Waits until the server sees that nobody waits for its answer.
    pub(crate) fn gone(&self) {
        let told = self.told.recv_timeout(PATIENCE);
        assert!(matches!(told, Ok(Told::Gone)), "{told:?}");
    }
}

/// Waits until something holds.
pub(crate) fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let end = Instant::now() + PATIENCE;
    while !holds() {
        assert!(Instant::now() < end, "{what}: not in time");
        #[expect(
            clippy::disallowed_methods,
            reason = "the one place: it looks again afterwards"
        )]
        thread::sleep(Duration::from_millis(5));
    }
}

fn proxy(address: SocketAddr, upstream: SocketAddr, limits: Limits) -> Proxy {
    Proxy {
        workers: Some(1),
        bans: Some(Bans {
            offences: 1,
            ..Bans::default()
        }),
        listeners: vec![Listener {
            name: "web".into(),
            addresses: vec![address],
            tls: None,
            http2: true,
            proxy_protocol: ProxyProtocol::Off,
            trusted_proxies: Vec::new(),
            client_header: ClientHeader::default(),
            redirect_https: false,
            half_close: false,
            limits,
        }],
        upstreams: vec![Upstream {
            name: "app".into(),
            balance: Balance::RoundRobin,
            sticky: None,
            protocol: Protocol::Http1,
            tls: None,
            keep_alive: KeepAlive::default(),
            health: None,
            passive: None,
            panic_permille: 500,
            concurrency: None,
            breaker: None,
            retries: Retries::default(),
            timeouts: Timeouts::default(),
            proxy_protocol: SendProxy::Off,
            slow_start: Duration::ZERO,
            servers: vec![Server {
                address: Address::Ip(upstream),
                weight: 1,
                backup: false,
            }],
        }],
        routes: vec![Route {
            name: "all".into(),
            listeners: vec![0],
            hosts: Vec::new(),
            path: PathMatch::Any,
            methods: Vec::new(),
            headers: Vec::new(),
            query: Vec::new(),
            action: Action::Forward(vec![(0, 1)]),
            rewrite: None,
            request_headers: HeaderRules::default(),
            response_headers: HeaderRules::default(),
            timeouts: TimeoutsOverride::default(),
            retries: RetriesOverride::default(),
            mirror: None,
            concurrency: None,
        }],
        ..Proxy::default()
    }
}

/// A server of HTTP/1.1, a thread for each connection.
fn upstream(tell: SyncSender<Told>, wait: Receiver<()>) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let wait = Arc::new(Mutex::new(wait));
    thread::spawn(move || {
        for stream in listener.incoming() {
            let (tell, wait) = (tell.clone(), wait.clone());
            thread::spawn(move || {
                let mut stream = stream?;
                while let Some(seen) = request(&mut stream)? {
                    if !answer(&mut stream, seen, &tell, &wait)? {
                        break;
                    }
                }
                io::Result::Ok(())
            });
        }
    });
    address
}

/// Whether the connection goes on.
fn answer(
    stream: &mut TcpStream,
    seen: Seen,
    tell: &SyncSender<Told>,
    wait: &Mutex<Receiver<()>>,
) -> io::Result<bool> {
    let path = seen.head.split(' ').nth(1).unwrap_or_default().to_owned();
    let body = seen.body.clone();
    let is_head = seen.head.starts_with("HEAD ");
    // Whoever does not listen has what it wanted.
    let _ = tell.send(Told::Came(seen));
    let whole = |body: &[u8]| {
        let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n", body.len());
        let body = if is_head { &[] } else { body };
        [head.as_bytes(), body].concat()
    };
    match path.as_str() {
        "/hang" | "/begin" => {
            if path == "/begin" {
                let begun = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nbegun\r\n";
                stream.write_all(begun.as_bytes())?;
            }
            // Until the other side hangs up.
            let mut rest = Vec::new();
            let _ = stream.read_to_end(&mut rest);
            let _ = tell.send(Told::Gone);
            return Ok(false);
        }
        "/wait" => {
            let _ = wait.lock().unwrap().recv();
            stream.write_all(&whole(b"waited"))?;
        }
        "/break" => {
            stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nhalf")?;
            return Ok(false);
        }
        "/none" => stream.write_all(b"HTTP/1.1 204 No Content\r\n\r\n")?,
        "/trailers" => {
            stream.write_all(
                b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nKeep-Alive: timeout=5\r\n\r\n\
                  5\r\nhello\r\n0\r\ngrpc-status: 0\r\ngrpc-message: fine\r\n\r\n",
            )?;
        }
        "/echo" => stream.write_all(&whole(&body))?,
        _ => stream.write_all(&whole(b"hello"))?,
    }
    Ok(true)
}

/// Reads a request; nothing at the connection's end.
fn request(stream: &mut TcpStream) -> io::Result<Option<Seen>> {
    let Some(head) = section(stream)? else {
        return Ok(None);
    };
    let lower = head.to_ascii_lowercase();
    let mut seen = Seen {
        head,
        body: Vec::new(),
        trailers: String::new(),
    };
    if let Some((_, length)) = lower.split_once("\r\ncontent-length: ") {
        let length = length.split("\r\n").next().unwrap_or_default();
        seen.body = vec![0; length.parse().map_err(io::Error::other)?];
        stream.read_exact(&mut seen.body)?;
    } else if lower.contains("\r\ntransfer-encoding: chunked") {
        loop {
            let size = usize::from_str_radix(&line(stream)?, 16).map_err(io::Error::other)?;
            if size == 0 {
                break;
            }
            let mut chunk = vec![0; size + 2];
            stream.read_exact(&mut chunk)?;
            seen.body.extend_from_slice(&chunk[..size]);
        }
        seen.trailers = section(stream)?.unwrap_or_default();
    }
    Ok(Some(seen))
}

/// Lines up to an empty one.
fn section(stream: &mut TcpStream) -> io::Result<Option<String>> {
    let mut all = String::new();
    loop {
        let line = match line(stream) {
            Ok(line) => line,
            Err(e) if e.kind() == io::ErrorKind::UnexpectedEof && all.is_empty() => {
                return Ok(None);
            }
            Err(e) => return Err(e),
        };
        if line.is_empty() {
            return Ok(Some(all));
        }
        all += &line;
        all += "\r\n";
    }
}

fn line(stream: &mut TcpStream) -> io::Result<String> {
    let mut line = Vec::new();
    while !line.ends_with(b"\r\n") {
        let mut byte = [0];
        stream.read_exact(&mut byte)?;
        line.push(byte[0]);
    }
    line.truncate(line.len() - 2);
    String::from_utf8(line).map_err(io::Error::other)
}
