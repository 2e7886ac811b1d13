//! A proxy between raw clients and servers that do what a test says, all on the loopback address.

use std::{
    collections::BTreeMap,
    io::{self, Read, Write},
    net::{Shutdown, SocketAddr, TcpListener, TcpStream},
    os::unix::net::UnixListener,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    thread,
    time::{Duration, Instant},
};

use edge_common::hash::Seed;
use edge_userspace::{
    config::{self, proxy::Proxy},
    l7::proxy::{Ban, Keys, Tier},
    status::proxy::UpstreamStatus,
};
use serde_json::Value;
use socket2::{Domain, SockRef, Socket, Type};

/// How long anything may take on a machine that is busy with other things.
pub(crate) const PATIENCE: Duration = Duration::from_secs(40);
/// Between two looks at a condition.
const PAUSE: Duration = Duration::from_millis(5);

/// Waits until `look` gives a value.
#[track_caller]
pub(crate) fn until_some<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(value) = look() {
            return value;
        }
        assert!(Instant::now() < deadline, "waited in vain: {what}");
        // The one place that sleeps: it looks again afterwards.
        #[allow(clippy::disallowed_methods)]
        thread::sleep(PAUSE);
    }
}

/// Waits until `look` says yes.
#[track_caller]
pub(crate) fn until(what: &str, mut look: impl FnMut() -> bool) {
    until_some(what, || look().then_some(()));
}

pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// All that came by a connection.
type Seen = Arc<Mutex<Vec<u8>>>;

/// What bytes go by.
pub(crate) trait Wire: Read + Write + Send {}
impl<T: Read + Write + Send> Wire for T {}

/// One end of a connection.
pub(crate) struct Peer {
    wire: Box<dyn Wire>,
    /// To end one way.
    tcp: Option<TcpStream>,
    /// What came and was not taken.
    pending: Vec<u8>,
    /// All that came.
    seen: Seen,
}

/// An answer, as a client reads it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    /// With its empty line.
    pub(crate) head: String,
    /// Without chunks.
    pub(crate) body: Vec<u8>,
}

impl Answer {
    /// The value of the first header of that name.
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        header(&self.head, name)
    }

    pub(crate) fn text(&self) -> &str {
        std::str::from_utf8(&self.body).unwrap()
    }
}

/// The value of the first header of that name in a head.
pub(crate) fn header<'a>(head: &'a str, name: &str) -> Option<&'a str> {
    head.lines().skip(1).find_map(|line| {
        let (this, value) = line.split_once(": ")?;
        this.eq_ignore_ascii_case(name).then_some(value)
    })
}

impl Peer {
    /// A client's end.
    pub(crate) fn of_tcp(stream: TcpStream) -> Self {
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.set_write_timeout(Some(PATIENCE)).unwrap();
        Self::of_server(stream)
    }

    /// A server's end, which waits as long as there is a test.
    pub(crate) fn of_server(stream: TcpStream) -> Self {
        stream.set_nodelay(true).unwrap();
        let tcp = stream.try_clone().unwrap();
        Self::new(Box::new(stream), Some(tcp))
    }

    pub(crate) fn new(wire: Box<dyn Wire>, tcp: Option<TcpStream>) -> Self {
        Self {
            wire,
            tcp,
            pending: Vec::new(),
            seen: Arc::default(),
        }
    }

    #[track_caller]
    pub(crate) fn connect(to: SocketAddr) -> Self {
        Self::of_tcp(TcpStream::connect(to).unwrap())
    }

    #[track_caller]
    pub(crate) fn send(&mut self, bytes: impl AsRef<[u8]>) {
        self.try_send(bytes).unwrap();
    }

    pub(crate) fn try_send(&mut self, bytes: impl AsRef<[u8]>) -> io::Result<()> {
        self.wire.write_all(bytes.as_ref())?;
        self.wire.flush()
    }

    /// Sends no more.
    pub(crate) fn end(&mut self) {
        let tcp = self.tcp.as_ref().unwrap();
        tcp.shutdown(Shutdown::Write).unwrap();
    }

    /// Breaks the connection off.
    pub(crate) fn reset(mut self) {
        let tcp = self.tcp.take().unwrap();
        let linger = SockRef::from(&tcp).set_linger(Some(Duration::ZERO));
        linger.unwrap();
    }

    /// Takes what comes; `false` at the end.
    #[track_caller]
    fn more(&mut self) -> bool {
        let mut room = [0; 16 * 1024];
        match self.wire.read(&mut room) {
            Ok(0) => false,
            Ok(n) => {
                self.pending.extend_from_slice(&room[..n]);
                lock(&self.seen).extend_from_slice(&room[..n]);
                true
            }
            // TLS whose other end is gone, and what was closed with bytes unread.
            Err(e)
                if matches!(
                    e.kind(),
                    io::ErrorKind::ConnectionReset
                        | io::ErrorKind::UnexpectedEof
                        | io::ErrorKind::BrokenPipe
                ) =>
            {
                false
            }
            Err(e) => panic!(
                "nothing comes any more: {e}; so far {:?}",
                String::from_utf8_lossy(&self.pending)
            ),
        }
    }

    /// So many bytes.
    #[track_caller]
    pub(crate) fn take(&mut self, n: usize) -> Vec<u8> {
        while self.pending.len() < n {
            assert!(
                self.more(),
                "the end after {:?}",
                String::from_utf8_lossy(&self.pending)
            );
        }
        self.pending.drain(..n).collect()
    }

    /// Up to and with `end`; nothing at the end of the connection.
    #[track_caller]
    pub(crate) fn take_until(&mut self, end: &[u8]) -> Option<Vec<u8>> {
        loop {
            let mut windows = self.pending.windows(end.len());
            if let Some(at) = windows.position(|window| window == end) {
                return Some(self.pending.drain(..at + end.len()).collect());
            }
            if !self.more() {
                return None;
            }
        }
    }

    /// A head; nothing at the end of the connection.
    #[track_caller]
    pub(crate) fn head(&mut self) -> Option<String> {
        let head = self.take_until(b"\r\n\r\n")?;
        Some(String::from_utf8(head).unwrap())
    }

    /// A request with its body.
    #[track_caller]
    pub(crate) fn request(&mut self) -> Option<(String, Vec<u8>)> {
        let head = self.head()?;
        let body = self.body(&head, false);
        Some((head, body))
    }

    #[track_caller]
    fn body(&mut self, head: &str, until_close: bool) -> Vec<u8> {
        if let Some(length) = header(head, "content-length") {
            return self.take(length.parse().unwrap());
        }
        if header(head, "transfer-encoding").is_some() {
            let mut body = Vec::new();
            loop {
                let size = self.take_until(b"\r\n").expect("a chunk");
                let size = std::str::from_utf8(&size).unwrap().trim_end();
                let size = usize::from_str_radix(size, 16).unwrap();
                if size == 0 {
                    // Trailers.
                    while self.take_until(b"\r\n").expect("the end of chunks") != b"\r\n" {}
                    return body;
                }
                body.extend(self.take(size));
                assert_eq!(self.take(2), b"\r\n");
            }
        }
        if until_close { self.rest() } else { Vec::new() }
    }

    /// All to the end of the connection.
    #[track_caller]
    pub(crate) fn rest(&mut self) -> Vec<u8> {
        while self.more() {}
        std::mem::take(&mut self.pending)
    }

    /// The answer to a request with a body in it, if the answer has one.
    #[track_caller]
    pub(crate) fn answer(&mut self) -> Answer {
        self.answer_to("GET")
    }

    #[track_caller]
    pub(crate) fn answer_to(&mut self, method: &str) -> Answer {
        let head = self.head().expect("an answer");
        let status = head.split(' ').nth(1).unwrap().parse().unwrap();
        let has_body = method != "HEAD" && !matches!(status, 100..=199 | 204 | 304);
        let body = if has_body {
            self.body(&head, true)
        } else {
            Vec::new()
        };
        Answer { status, head, body }
    }

    /// Sends a GET and takes the answer.
    #[track_caller]
    pub(crate) fn get(&mut self, path: &str) -> Answer {
        self.get_with(path, "")
    }

    /// The same with further header lines.
    #[track_caller]
    pub(crate) fn get_with(&mut self, path: &str, lines: &str) -> Answer {
        self.send(format!(
            "GET {path} HTTP/1.1\r\nHost: a.example\r\n{lines}\r\n"
        ));
        self.answer()
    }

    #[track_caller]
    pub(crate) fn is_closed(&mut self) -> bool {
        self.pending.is_empty() && !self.more()
    }
}

/// A server: each of its connections is served by a thread of its own.
pub(crate) struct Server {
    pub(crate) address: String,
    /// All that came, by connection.
    seen: Arc<Mutex<Vec<Seen>>>,
}

impl Server {
    pub(crate) fn start(serve: impl Fn(Peer) + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        Self::on(listener, serve)
    }

    pub(crate) fn on(listener: TcpListener, serve: impl Fn(Peer) + Send + Sync + 'static) -> Self {
        let address = listener.local_addr().unwrap().to_string();
        Self::accepting(address, serve, move || {
            let (stream, _) = listener.accept()?;
            Ok(Peer::of_server(stream))
        })
    }

    pub(crate) fn unix(path: &Path, serve: impl Fn(Peer) + Send + Sync + 'static) -> Self {
        let listener = UnixListener::bind(path).unwrap();
        Self::accepting(format!("unix:{}", path.display()), serve, move || {
            let (stream, _) = listener.accept()?;
            Ok(Peer::new(Box::new(stream), None))
        })
    }

    /// Whatever `accept` makes of a connection.
    pub(crate) fn accepting(
        address: String,
        serve: impl Fn(Peer) + Send + Sync + 'static,
        accept: impl Fn() -> io::Result<Peer> + Send + 'static,
    ) -> Self {
        let seen: Arc<Mutex<Vec<_>>> = Arc::default();
        let (all, serve) = (seen.clone(), Arc::new(serve));
        thread::spawn(move || {
            while let Ok(peer) = accept() {
                lock(&all).push(peer.seen.clone());
                let serve = serve.clone();
                thread::spawn(move || serve(peer));
            }
        });
        Self { address, seen }
    }

    /// Answers every request with 200 and `text`.
    pub(crate) fn saying(text: &'static str) -> Self {
        Self::start(move |peer| say(peer, "200 OK", text))
    }

    /// Answers every request with what came of it, without what the proxy adds.
    pub(crate) fn echo() -> Self {
        Self::start(|mut peer| {
            while let Some((head, body)) = peer.request() {
                let answer = [head.as_bytes(), &body].concat();
                let head = format!(
                    "HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n",
                    answer.len()
                );
                if peer.try_send([head.as_bytes(), &answer].concat()).is_err() {
                    return;
                }
            }
        })
    }

    /// All that came, by connection.
    pub(crate) fn seen(&self) -> Vec<String> {
        let all = lock(&self.seen);
        let text = |seen: &Seen| String::from_utf8_lossy(&lock(seen)).into_owned();
        all.iter().map(text).collect()
    }

    /// Requests that came.
    pub(crate) fn requests(&self) -> usize {
        let all = self.seen();
        all.iter()
            .map(|seen| seen.matches(" HTTP/1.1\r\n").count())
            .sum()
    }
}

/// Answers every request likewise.
pub(crate) fn say(mut peer: Peer, status: &str, text: &str) {
    while peer.request().is_some() {
        let length = text.len();
        let answer = format!("HTTP/1.1 {status}\r\nContent-Length: {length}\r\n\r\n{text}");
        if peer.try_send(answer).is_err() {
            return;
        }
    }
}

/// A port of the loopback address that nobody else gets: a listener's may be bound to it.
pub(crate) struct Port {
    pub(crate) at: SocketAddr,
    _held: Socket,
}

impl Port {
    pub(crate) fn new() -> Self {
        let held = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
        held.set_reuse_address(true).unwrap();
        held.set_reuse_port(true).unwrap();
        let any: SocketAddr = "127.0.0.1:0".parse().unwrap();
        held.bind(&any.into()).unwrap();
        let at = held.local_addr().unwrap().as_socket().unwrap();
        Self { at, _held: held }
    }
}

/// What a proxy of a test has in its configuration.
#[derive(Clone)]
pub(crate) struct Setup {
    /// Keys of `[proxy]`.
    pub(crate) proxy: String,
    /// Keys of the listener.
    pub(crate) listener: String,
    /// Keys of the upstream `app`.
    pub(crate) upstream: String,
    /// Its servers.
    pub(crate) servers: Vec<String>,
    /// Keys of servers, by their positions.
    pub(crate) keys: BTreeMap<usize, &'static str>,
    /// Routes; everything goes to `app`.
    pub(crate) routes: String,
}

pub(crate) const ALL: &str = "[[route]]\nname = 'all'\nupstream = 'app'\n";

impl Setup {
    pub(crate) fn new(servers: &[&Server]) -> Self {
        Self {
            proxy: "workers = 1".to_owned(),
            listener: String::new(),
            upstream: String::new(),
            servers: servers.iter().map(|s| s.address.clone()).collect(),
            keys: BTreeMap::new(),
            routes: ALL.to_owned(),
        }
    }

    pub(crate) fn listener(self, listener: impl Into<String>) -> Self {
        let listener = listener.into();
        Self { listener, ..self }
    }

    pub(crate) fn upstream(self, upstream: impl Into<String>) -> Self {
        let upstream = upstream.into();
        Self { upstream, ..self }
    }

    /// With keys of the server at a position.
    pub(crate) fn server(mut self, at: usize, keys: &'static str) -> Self {
        self.keys.insert(at, keys);
        self
    }

    pub(crate) fn routes(self, routes: impl Into<String>) -> Self {
        let routes = routes.into();
        Self { routes, ..self }
    }

    pub(crate) fn proxy(self, proxy: impl Into<String>) -> Self {
        let proxy = proxy.into();
        Self { proxy, ..self }
    }

    /// The text of the file.
    pub(crate) fn text(&self, at: SocketAddr, log: &Path) -> String {
        let Self {
            proxy,
            listener,
            upstream,
            servers,
            keys,
            routes,
        } = self;
        let servers: String = servers
            .iter()
            .enumerate()
            .map(|(at, server)| {
                let keys = keys.get(&at).copied().unwrap_or_default();
                format!("[[upstream.server]]\naddress = '{server}'\n{keys}\n")
            })
            .collect();
        format!(
            "interfaces = ['lo']\n[proxy]\n{proxy}\naccess_log = {{ path = '{}' }}\n\
             [[listener]]\nname = 'web'\naddresses = ['{at}']\n{listener}\n\
             [[upstream]]\nname = 'app'\n{upstream}\n{servers}{routes}",
            log.display()
        )
    }
}

/// What a text says.
#[track_caller]
pub(crate) fn proxy_of(text: &str) -> Proxy {
    match config::parse(text, Path::new("edge.toml"), 4_000_000) {
        Ok(checked) => checked.model.proxy,
        Err(e) => panic!("{e}\n{text}"),
    }
}

/// A proxy that runs.
pub(crate) struct Rig {
    pub(crate) tier: Tier,
    pub(crate) port: Port,
    pub(crate) bans: Arc<Mutex<Vec<Ban>>>,
    pub(crate) directory: tempfile::TempDir,
}

impl Rig {
    #[track_caller]
    pub(crate) fn new(setup: &Setup) -> Self {
        Self::with(|at, log| setup.text(at, log))
    }

    /// With another text.
    #[track_caller]
    pub(crate) fn with(text: impl FnOnce(SocketAddr, &Path) -> String) -> Self {
        Self::of(text, None)
    }

    /// With keys of its own.
    #[track_caller]
    pub(crate) fn keyed(setup: &Setup, keys: Keys) -> Self {
        Self::of(|at, log| setup.text(at, log), Some(keys))
    }

    #[track_caller]
    fn of(text: impl FnOnce(SocketAddr, &Path) -> String, keys: Option<Keys>) -> Self {
        let (port, directory) = (Port::new(), tempfile::tempdir().unwrap());
        let proxy = proxy_of(&text(port.at, &directory.path().join("access.log")));
        let bans: Arc<Mutex<Vec<Ban>>> = Arc::default();
        let told = bans.clone();
        let seed = Seed::new([
            0x243f_6a88_85a3_08d3,
            0x1319_8a2e_0370_7344,
            0xa409_3822_299f_31d0,
            0x082e_fa98_ec4e_6c89,
        ]);
        let mut tier = Tier::new(seed, [7; 32], move |ban| {
            lock(&told).push(ban);
            true
        });
        if let Some(keys) = keys {
            tier.set_keys(keys);
        }
        let prepared = tier.prepare(&proxy).unwrap();
        tier.commit(prepared);
        Self {
            tier,
            port,
            bans,
            directory,
        }
    }

    pub(crate) fn log(&self) -> PathBuf {
        self.directory.path().join("access.log")
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// A client.
    #[track_caller]
    pub(crate) fn client(&self) -> Peer {
        Peer::connect(self.port.at)
    }

    /// One request on a connection of its own.
    #[track_caller]
    pub(crate) fn get(&self, path: &str) -> Answer {
        self.client().get(path)
    }

    /// Bytes on a connection of their own, and all that comes back.
    #[track_caller]
    pub(crate) fn ask(&self, bytes: impl AsRef<[u8]>) -> String {
        let mut client = self.client();
        client.send(bytes);
        String::from_utf8_lossy(&client.rest()).into_owned()
    }

    /// Puts another configuration into force.
    #[track_caller]
    pub(crate) fn change(&mut self, setup: &Setup) {
        let proxy = proxy_of(&setup.text(self.port.at, &self.log()));
        let prepared = self.tier.prepare(&proxy).unwrap();
        self.tier.commit(prepared);
    }

    /// The upstream `app` as it is.
    pub(crate) fn app(&self) -> UpstreamStatus {
        let status = self.tier.view().status().unwrap();
        status
            .upstreams
            .into_iter()
            .find(|u| u.name == "app")
            .unwrap()
    }

    /// Refusals for a reason.
    pub(crate) fn refusals(&self, reason: &str) -> u64 {
        let status = self.tier.view().status().unwrap();
        let all = status.listeners.iter().flat_map(|l| &l.refusals);
        all.filter(|(name, _)| name == reason).map(|(_, n)| n).sum()
    }

    /// Lines of the access log so far.
    pub(crate) fn lines(&self) -> Vec<Value> {
        let text = std::fs::read_to_string(self.log()).unwrap();
        let whole = text.rsplit_once('\n').map_or("", |(whole, _)| whole);
        let line =
            |line: &str| serde_json::from_str(line).unwrap_or_else(|e| panic!("{e}: {line}"));
        whole.lines().map(line).collect()
    }

    /// The line of the request with this target.
    #[track_caller]
    pub(crate) fn logged(&self, target: &str) -> Value {
        until_some(&format!("a line for {target}"), || {
            self.lines()
                .into_iter()
                .find(|line| line["target"] == target)
        })
    }
}
