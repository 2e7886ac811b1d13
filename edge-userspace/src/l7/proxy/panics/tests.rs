//! No input is known that panics, so workers do where a test says: the tier and its connections are
//! real ones.

use std::{
    collections::HashSet,
    future::Future,
    io::{Read as _, Write as _},
    net::{SocketAddr, TcpListener, TcpStream},
    sync::{Arc, Condvar, Mutex, mpsc::sync_channel},
    time::{Duration, Instant},
};

use edge_common::hash::Seed;
use hyper::{Request, StatusCode, body::Bytes};
use socket2::{Domain, Socket, Type};
use tokio::runtime::Builder;

use super::{
    super::{
        tier::Tier,
        view::{View, lock},
    },
    *,
};
use crate::{
    config::{self, proxy::Proxy},
    status::proxy::ProxyStatus,
};

/// How long anything may take on a machine that is busy with other things.
const PATIENCE: Duration = Duration::from_secs(60);
/// Between two looks at a condition.
const PAUSE: Duration = Duration::from_millis(5);

/// Where a worker panics if a test says so.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in super::super) enum At {
    /// Before it does anything.
    Start,
    /// The tasks of its own.
    Timers,
    Tick,
    Accept,
    /// A request that has its places, and is about to have a connection to a server.
    Connect,
    /// One whose answer has come, and is about to be told.
    Answer,
    /// A copy of a request.
    Copy,
    /// A connection to a server that is to be shared.
    Open,
}

/// Where, which worker, and how often.
#[derive(Debug, Default)]
pub(super) struct Ordered(Mutex<Vec<(At, usize, usize)>>);

impl Panics {
    /// Has a worker panic the next times that it comes by.
    fn order(&self, at: At, worker: usize, times: usize) {
        lock(&self.ordered.0).push((at, worker, times));
    }

    /// Called where it comes by.
    pub(in super::super) fn strike(&self, worker: usize, at: At) {
        let mut all = lock(&self.ordered.0);
        let mut meant = all.iter_mut();
        let meant = meant.find(|(there, who, times)| (*there, *who) == (at, worker) && *times > 0);
        let is_struck = meant.map(|(_, _, times)| *times -= 1).is_some();
        drop(all);
        assert!(!is_struck, "as is expected: {at:?}");
    }
}

/// Waits until something holds.
#[track_caller]
pub(in super::super) fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let end = Instant::now() + PATIENCE;
    while !holds() {
        assert!(Instant::now() < end, "waited in vain: {what}");
        #[expect(
            clippy::disallowed_methods,
            reason = "the one place: it looks again afterwards"
        )]
        thread::sleep(PAUSE);
    }
}

/// The same for one whose tasks have to go on meanwhile.
async fn until_there(what: &str, mut holds: impl FnMut() -> bool) {
    let holding = async {
        while !holds() {
            tokio::time::sleep(PAUSE).await;
        }
    };
    let in_time = tokio::time::timeout(PATIENCE, holding).await;
    in_time.unwrap_or_else(|_| panic!("waited in vain: {what}"));
}

/// A server that answers with the head that it got; at `/wait` not before it may.
pub(in super::super) struct Server {
    at: SocketAddr,
    may: Arc<(Mutex<bool>, Condvar)>,
}

impl Server {
    pub(in super::super) fn new() -> Self {
        let socket = TcpListener::bind("127.0.0.1:0").unwrap();
        let (at, may) = (socket.local_addr().unwrap(), Arc::default());
        let given: Arc<(Mutex<bool>, Condvar)> = Arc::clone(&may);
        thread::spawn(move || {
            for stream in socket.incoming() {
                let (may, stream) = (given.clone(), stream.unwrap());
                thread::spawn(move || Self::serve(Client::new(stream), &may));
            }
        });
        Self { at, may }
    }

    fn serve(mut peer: Client, (may, told): &(Mutex<bool>, Condvar)) {
        while let Some(head) = peer.head() {
            if head.starts_with("GET /wait ") {
                drop(told.wait_while(lock(may), |may| !*may));
            }
            let length = head.len();
            let answer = format!("HTTP/1.1 200 OK\r\nContent-Length: {length}\r\n\r\n{head}");
            if peer.0.write_all(answer.as_bytes()).is_err() {
                return;
            }
        }
    }

    /// Lets all who wait have their answers.
    fn release(&self) {
        *lock(&self.may.0) = true;
        self.may.1.notify_all();
    }
}

/// An end of a connection of HTTP/1.
pub(in super::super) struct Client(TcpStream);

impl Client {
    fn new(stream: TcpStream) -> Self {
        stream.set_nodelay(true).unwrap();
        Self(stream)
    }

    pub(in super::super) fn connect(to: SocketAddr) -> Self {
        let stream = TcpStream::connect(to).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        Self::new(stream)
    }

    /// A head; nothing if the connection ended.
    fn head(&mut self) -> Option<String> {
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            let mut byte = [0];
            match self.0.read(&mut byte) {
                Ok(1) => head.push(byte[0]),
                Err(e) if e.kind() == std::io::ErrorKind::WouldBlock => panic!("nothing comes"),
                // The server's end may be reset likewise.
                Ok(_) | Err(_) => {
                    assert_eq!(String::from_utf8_lossy(&head), "", "it ended amid that");
                    return None;
                }
            }
        }
        Some(String::from_utf8(head).unwrap())
    }

    fn ask(&mut self, path: &str) {
        let request = format!("GET {path} HTTP/1.1\r\nHost: a.example\r\n\r\n");
        self.0.write_all(request.as_bytes()).unwrap();
    }

    /// The head that the server got; nothing if the connection ended before the answer began.
    fn answer(&mut self) -> Option<String> {
        let head = self.head()?;
        assert!(head.starts_with("HTTP/1.1 200 "), "{head}");
        let length = value(&head, "content-length").parse().unwrap();
        let mut body = vec![0; length];
        self.0.read_exact(&mut body).unwrap();
        Some(String::from_utf8(body).unwrap())
    }

    /// A request and its answer: the request's id.
    #[track_caller]
    pub(in super::super) fn id(&mut self) -> String {
        self.ask("/");
        let seen = self.answer().expect("an answer");
        value(&seen, "x-request-id").to_owned()
    }

    /// Whether the other side has ended the connection, without a word, and waits for it.
    #[track_caller]
    fn has_ended(&mut self) -> bool {
        self.head().is_none()
    }
}

/// The value of a field.
fn value<'a>(head: &'a str, name: &str) -> &'a str {
    let mut fields = head.lines().filter_map(|line| line.split_once(": "));
    let field = fields.find(|(this, _)| this.eq_ignore_ascii_case(name));
    field.unwrap_or_else(|| panic!("no {name} in {head}")).1
}

/// A tier with a listener.
pub(in super::super) struct Rig {
    pub(in super::super) tier: Tier,
    pub(in super::super) at: SocketAddr,
    proxy: Proxy,
    /// So that nobody else gets the port.
    _held: Socket,
}

impl Rig {
    /// `keys` are those of `[proxy]`, `more` what follows the listener.
    fn new(keys: &str, more: &str, orders: &[(At, usize, usize)]) -> Self {
        let held = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
        held.set_reuse_address(true).unwrap();
        held.set_reuse_port(true).unwrap();
        let any: SocketAddr = "127.0.0.1:0".parse().unwrap();
        held.bind(&any.into()).unwrap();
        let at = held.local_addr().unwrap().as_socket().unwrap();
        let text = format!(
            "interfaces = ['lo']\n[proxy]\n{keys}\n\
             [[listener]]\nname = 'web'\naddresses = ['{at}']\nhttp2 = true\n\
             limits = {{ header_timeout = '60s' }}\n{more}"
        );
        let checked = config::parse(&text, "edge.toml".as_ref(), 4_000_000);
        let proxy = match checked {
            Ok(checked) => checked.model.proxy,
            Err(e) => panic!("{e}\n{text}"),
        };
        let tier = Tier::new(Seed::new([1, 2, 3, 4]), [7; 32], |_| true);
        let mut rig = Self {
            tier,
            at,
            proxy,
            _held: held,
        };
        for &(at, worker, times) in orders {
            rig.order(at, worker, times);
        }
        rig.reload();
        rig
    }

    /// One whose requests all go to a server. `keys` are those of `[proxy]`.
    pub(in super::super) fn to(server: &Server, keys: &str, orders: &[(At, usize, usize)]) -> Self {
        let more = format!("{}{ALL}", upstream("app", server.at, PLACES));
        Self::new(keys, &more, orders)
    }

    fn reload(&mut self) {
        let prepared = self.tier.prepare(&self.proxy).unwrap();
        self.tier.commit(prepared);
    }

    fn view(&self) -> View {
        self.tier.view()
    }

    fn order(&self, at: At, worker: usize, times: usize) {
        self.view().0.panics.order(at, worker, times);
    }

    fn status(&self) -> ProxyStatus {
        self.view().status().unwrap()
    }

    /// Panics that ended something, and restarts.
    fn counted(&self) -> (u64, u64) {
        let status = self.status();
        (status.panics, status.worker_restarts)
    }

    /// How many requests are under way.
    fn active(&self) -> u32 {
        self.status().upstreams[0].servers[0].active
    }

    /// Connections that a worker has accepted.
    fn accepted(&self, worker: usize) -> u64 {
        let snapshot = self.view().0.snapshot().unwrap();
        snapshot.listeners[0].connections.of(worker).accepted.get()
    }

    /// Waits until nothing is under way, and nothing is held.
    fn until_idle(&self) {
        until("nothing is held any more", || {
            let status = self.status();
            let upstream = &status.upstreams[0];
            let held = (
                upstream.active,
                upstream.waiting,
                upstream.servers[0].active,
            );
            status.listeners[0].open == 0 && held == (0, 0, 0)
        });
    }
}

/// As many requests as there are in a test which are not to panic: one that keeps its place would
/// have the others refused.
const PLACES: &str = "concurrency = { requests = 2, queue = 0 }";
const ALL: &str = "[[route]]\nname = 'all'\nupstream = 'app'\n\
                   concurrency = { requests = 2, queue = 0 }\n";

/// What panics may take its time to say why, in which the worker stands still: that is no reason for
/// any of the others to end.
fn upstream(name: &str, server: SocketAddr, keys: &str) -> String {
    format!(
        "[[upstream]]\nname = '{name}'\n{keys}\nretries = {{ tries = 1 }}\n\
         timeouts = {{ connect = '60s', first_byte = '60s' }}\n\
         [[upstream.server]]\naddress = '{server}'\n"
    )
}

fn block_on(test: impl Future<Output = ()>) {
    let runtime = Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(test);
}

#[test]
fn a_panic_amid_a_request_of_http1_ends_its_connection_and_no_other() {
    for at in [At::Connect, At::Answer] {
        let server = Server::new();
        let rig = Rig::to(&server, "workers = 1", &[]);
        let [mut waits, mut other, mut unlucky] = [(); 3].map(|()| Client::connect(rig.at));
        waits.ask("/wait");
        until("it is under way", || rig.active() == 1);
        rig.order(at, 0, 1);
        unlucky.ask("/");
        assert!(unlucky.has_ended(), "{at:?}");
        until("it is counted", || rig.counted() == (1, 0));
        // The worker goes on, and there is a place for this one.
        other.id();
        until("the one that waits is left", || rig.active() == 1);
        server.release();
        assert!(waits.answer().is_some(), "{at:?}");
        // So is everything else.
        waits.id();
        drop((waits, other, unlucky));
        rig.until_idle();
        assert_eq!(rig.counted(), (1, 0));
    }
}

#[test]
fn a_panic_amid_a_request_of_http2_ends_its_stream_and_no_other() {
    block_on(async {
        for at in [At::Connect, At::Answer] {
            let server = Server::new();
            let rig = Rig::to(&server, "workers = 1", &[]);
            let stream = tokio::net::TcpStream::connect(rig.at).await.unwrap();
            let (send, connection) = ::h2::client::handshake(stream).await.unwrap();
            let connection = tokio::spawn(connection);
            let ask = async |path: &str| {
                let uri = format!("http://a.example{path}");
                let request = Request::get(uri).body(()).unwrap();
                let mut send = send.clone().ready().await.unwrap();
                send.send_request(request, true).unwrap()
            };
            let (waits, _) = ask("/wait").await;
            until_there("it is under way", || rig.active() == 1).await;
            rig.order(at, 0, 1);
            let error = ask("/").await.0.await.expect_err("it panics");
            assert!(error.is_reset() && error.is_remote(), "{at:?}: {error:?}");
            assert_eq!(rig.counted(), (1, 0), "{at:?}");
            let status = ask("/").await.0.await.unwrap().status();
            assert_eq!(status, StatusCode::OK);
            until_there("the one that waits is left", || rig.active() == 1).await;
            server.release();
            let mut answer = waits.await.unwrap();
            assert_eq!(answer.status(), StatusCode::OK);
            let data = answer.body_mut().data().await;
            let data: Bytes = data.unwrap().unwrap();
            assert!(data.starts_with(b"GET /wait "), "{data:?}");
            drop((answer, send));
            connection.await.unwrap().unwrap();
            rig.until_idle();
            assert_eq!(rig.counted(), (1, 0), "{at:?}");
        }
    });
}

#[test]
fn a_panic_of_a_copy_is_counted_and_the_request_does_not_notice() {
    let server = Server::new();
    let more = format!(
        "{}{}{ALL}mirror = {{ upstream = 'shadow' }}\n",
        upstream("app", server.at, ""),
        upstream("shadow", server.at, PLACES),
    );
    let rig = Rig::new("workers = 1", &more, &[(At::Copy, 0, 1)]);
    let mut client = Client::connect(rig.at);
    client.id();
    until("it is counted", || rig.counted() == (1, 0));
    client.id();
    let copied = || rig.status().routes[0].mirrored.unwrap();
    until("the next one is copied", || copied().sent == 1);
    assert_eq!((copied().failed, copied().skipped), (0, 0));
    assert_eq!(rig.counted(), (1, 0));
}

#[test]
fn a_panic_while_a_shared_connection_is_opened_fails_those_who_wait_for_it_and_no_others() {
    let socket = TcpListener::bind("127.0.0.1:0").unwrap();
    let at = socket.local_addr().unwrap();
    socket.set_nonblocking(true).unwrap();
    // It answers whatever it is asked.
    thread::spawn(move || {
        block_on(async {
            let socket = tokio::net::TcpListener::from_std(socket).unwrap();
            let (stream, _) = socket.accept().await.unwrap();
            let mut connection = ::h2::server::handshake(stream).await.unwrap();
            while let Some(Ok((_, mut respond))) = connection.accept().await {
                let answer = hyper::Response::new(());
                respond.send_response(answer, true).unwrap();
            }
        });
    });
    let more = format!("{}{ALL}", upstream("app", at, "protocol = 'http2'"));
    let rig = Rig::new("workers = 1", &more, &[(At::Open, 0, 1)]);
    let mut client = Client::connect(rig.at);
    client.ask("/");
    let head = client.head().expect("an answer");
    assert!(head.starts_with("HTTP/1.1 502 "), "{head}");
    drop(client);
    assert_eq!(rig.counted(), (1, 0));
    let mut client = Client::connect(rig.at);
    client.ask("/");
    let head = client.head().expect("an answer");
    assert!(head.starts_with("HTTP/1.1 200 "), "{head}");
    drop(client);
    rig.until_idle();
    assert_eq!(rig.counted(), (1, 0));
}

/// Connects until both of two workers have a connection that was answered, and gives those.
fn one_each(rig: &Rig, ids: &mut HashSet<String>) -> [Client; 2] {
    let mut found = [None, None];
    until("each worker has a connection", || {
        let before = [0, 1].map(|worker| rig.accepted(worker));
        let mut client = Client::connect(rig.at);
        assert!(ids.insert(client.id()), "an id of before");
        let whose = [0, 1].map(|worker| rig.accepted(worker) > before[worker]);
        let whose = usize::from(whose == [false, true]);
        found[whose].get_or_insert(client);
        found.iter().all(Option::is_some)
    });
    found.map(Option::unwrap)
}

#[test]
fn a_panic_in_a_task_of_a_worker_is_followed_by_another_worker_on_its_sockets() {
    for at in [At::Accept, At::Timers, At::Tick] {
        let (server, directory) = (Server::new(), tempfile::tempdir().unwrap());
        let log = directory.path().join("access.log");
        let keys = format!("workers = 2\naccess_log = {{ path = '{}' }}", log.display());
        let rig = Rig::to(&server, &keys, &[]);
        let mut ids = HashSet::new();
        let [mut unlucky, mut other] = one_each(&rig, &mut ids);
        rig.order(at, 0, 1);
        until("there is another one", || {
            if at == At::Accept {
                drop(Client::connect(rig.at));
            }
            rig.counted() == (0, 1)
        });
        assert!(unlucky.has_ended(), "{at:?}");
        assert!(ids.insert(other.id()), "{at:?}");
        // No id is one that the worker before has given.
        for mut client in one_each(&rig, &mut ids) {
            assert!(ids.insert(client.id()), "{at:?}");
        }
        drop((unlucky, other));
        rig.until_idle();
        assert_eq!(rig.counted(), (0, 1), "{at:?}");
        until("all requests are in the log", || {
            let lines = std::fs::read_to_string(&log).unwrap();
            ids.iter().all(|id| lines.contains(id))
        });
    }
}

#[test]
fn a_worker_that_cannot_begin_is_tried_slower_and_slower_until_it_can() {
    let server = Server::new();
    let began = Instant::now();
    // One more than are counted below: the first may take so long that no pause follows.
    let rig = Rig::to(&server, "workers = 1", &[(At::Start, 0, 7)]);
    Client::connect(rig.at).id();
    assert_eq!(rig.counted(), (0, 7));
    let pauses: Duration = (0..6).map(|n| Duration::from_millis(10) * (1 << n)).sum();
    assert!(began.elapsed() >= pauses);
}

#[test]
fn a_worker_that_never_can_begin_ends_when_it_is_told() {
    let server = Server::new();
    let mut rig = Rig::to(&server, "workers = 1", &[(At::Start, 0, usize::MAX)]);
    until("it has been tried", || rig.counted().1 >= 3);
    // More often than there is room for what it is told.
    for _ in 0..20 {
        rig.reload();
    }
    let (told, ended) = sync_channel(1);
    thread::spawn(move || {
        rig.tier.stop();
        told.send(()).unwrap();
    });
    ended.recv_timeout(PATIENCE).expect("it ends");
}
