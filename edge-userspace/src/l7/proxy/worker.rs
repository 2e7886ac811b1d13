//! A worker: a thread with a runtime of its own, and what all its connections share.

use std::{
    cell::{Cell, RefCell},
    collections::HashMap,
    io,
    net::{SocketAddr, TcpListener as StdListener},
    panic::{AssertUnwindSafe, catch_unwind},
    rc::Rc,
    sync::Arc,
    time::Duration,
};

use socket2::SockRef;
use tokio::{
    net::{TcpListener, TcpStream},
    sync::{mpsc::Receiver, oneshot},
    task::{JoinHandle, LocalSet, spawn_local},
};
use tracing::{error, warn};

use super::{
    buffers::Buffers,
    conn,
    group::nanoseconds,
    h2, listen,
    pool::Pools,
    snapshot::{Listener, Snapshot},
    timers::Timers,
};
use crate::{
    clock,
    l7::{access_log, balance::Picker, head, route::Router},
};

/// Bytes of the buffer of a client's connection: a head, and the window for its body.
const CLIENT_BUFFER: usize = 48 * 1024;
/// Bytes of the buffer of a server's connection.
const SERVER_BUFFER: usize = 64 * 1024;
/// How often lines of the log are handed over and connections that are idle are closed.
const TICK: Duration = Duration::from_millis(200);
/// Bytes of lines that are handed over at once.
const LOG_BATCH: usize = 32 * 1024;
/// How long nobody is accepted when there are no descriptors left.
const NO_DESCRIPTORS: Duration = Duration::from_millis(100);
/// How long a connection without a request waits for one at the end: a client that has just
/// connected, or is about to send one, gets its answer, and is told that the connection ends.
const GRACE: Duration = Duration::from_secs(1);
/// Memory for requests that is kept for later, at the most.
const KEPT: usize = 256;

/// What a worker is told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Order {
    /// That something else holds from now on.
    Look,
    /// To end: no more connections, and those that are there after their request.
    Stop,
    /// The same for whoever has a successor, except at these addresses: requests have this long to
    /// end.
    Drain(Duration, Arc<[SocketAddr]>),
}

/// Gives what holds, with those sockets of which the worker says that it does not have them;
/// `None` when there is nothing to take.
pub(super) type Give<'a> = &'a dyn Fn(&mut dyn FnMut(u64) -> bool) -> Option<Take>;

/// What holds.
pub(super) struct Take {
    pub(super) snapshot: Arc<Snapshot>,
    pub(super) router: Router,
    /// Whether the worker is one of those that accept connections.
    pub(super) has_place: bool,
    /// The numbers of the sockets from which it does, and those that are new to it.
    pub(super) wanted: Vec<u64>,
    pub(super) new: Vec<Entrance>,
}

/// Where a worker accepts connections.
pub(super) struct Entrance {
    pub(super) number: u64,
    pub(super) address: SocketAddr,
    pub(super) socket: StdListener,
    /// Whether somebody else accepts what waits in it when we have gone.
    pub(super) is_kept: bool,
}

/// What holds for requests that begin now.
pub(super) struct Current {
    pub(super) snapshot: Arc<Snapshot>,
    pub(super) router: Router,
    /// One for each upstream.
    pub(super) pickers: Box<[RefCell<Picker>]>,
}

/// Memory that a request needs, whose content means nothing before and after it.
#[derive(Default)]
pub(super) struct Scratch {
    pub(super) request: head::Request,
    pub(super) response: head::Response,
    pub(super) host: Vec<u8>,
    pub(super) path: Vec<u8>,
    pub(super) rewritten: Vec<u8>,
}

/// What the connections of a worker share.
pub(super) struct Worker {
    /// Counted from 0. No other one has it meanwhile.
    pub(super) index: usize,
    pub(super) timers: Rc<Timers>,
    pub(super) client_buffers: Rc<Buffers>,
    pub(super) server_buffers: Rc<Buffers>,
    pub(super) pools: Pools,
    /// Copies of requests that are under way.
    pub(super) mirrors: Cell<usize>,
    /// Connections that requests share.
    pub(super) upstreams: h2::Upstreams,
    current: RefCell<Option<Rc<Current>>>,
    /// When connections without a request end, nanoseconds of the worker's clock; `None`: when
    /// they were idle for too long.
    stopping: Cell<Option<u64>>,
    random: Cell<u64>,
    /// Unix time less monotonic time, milliseconds, as of the last tick.
    wall: Cell<u64>,
    scratch: RefCell<Vec<Scratch>>,
    outs: RefCell<Vec<Vec<u8>>>,
    /// Lines of the log that were not handed over, and how many.
    log: RefCell<(Vec<u8>, u64)>,
}

impl Worker {
    pub(super) fn new(index: usize, random: u64) -> Self {
        Self {
            index,
            timers: Rc::default(),
            client_buffers: Rc::new(Buffers::new(CLIENT_BUFFER)),
            server_buffers: Rc::new(Buffers::new(SERVER_BUFFER)),
            pools: Pools::default(),
            mirrors: Cell::new(0),
            upstreams: h2::Upstreams::default(),
            current: RefCell::default(),
            stopping: Cell::new(None),
            // All zeros is the one state from which there is no way out.
            random: Cell::new(random | 1),
            wall: Cell::new(wall()),
            scratch: RefCell::default(),
            outs: RefCell::default(),
            log: RefCell::default(),
        }
    }

    /// What holds now.
    pub(super) fn current(&self) -> Option<Rc<Current>> {
        self.current.borrow().clone()
    }

    /// Whether connections are to end.
    pub(super) fn is_stopping(&self) -> bool {
        self.stopping.get().is_some()
    }

    /// Until when connections may be without a request, nanoseconds.
    pub(super) fn idle_until(&self) -> u64 {
        self.stopping.get().unwrap_or(u64::MAX)
    }

    /// The same for one that could have no request before a moment.
    pub(super) fn first_until(&self, begun: u64) -> u64 {
        let grace = begun.saturating_add(nanoseconds(GRACE));
        self.idle_until().max(grace)
    }

    /// Connections end after their request, and those without one at that moment.
    fn end_connections(&self, idle_until: u64) {
        self.stopping.set(Some(idle_until));
        self.timers.expire_idle(idle_until);
    }

    /// Monotonic time, nanoseconds.
    pub(super) fn now() -> u64 {
        clock::monotonic_ns()
    }

    /// Unix time, milliseconds, of a moment of the monotonic clock, nanoseconds.
    pub(super) fn unix_ms(&self, mono_ns: u64) -> u64 {
        self.wall.get().saturating_add(mono_ns / 1_000_000)
    }

    /// Random bits; not for secrets (Marsaglia, "Xorshift RNGs", 2003, with the multiplication
    /// of Vigna).
    pub(super) fn random(&self) -> u64 {
        let mut x = self.random.get();
        x ^= x >> 12;
        x ^= x << 25;
        x ^= x >> 27;
        self.random.set(x);
        x.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    /// Memory for a request.
    pub(super) fn scratch(&self) -> Scratch {
        self.scratch.borrow_mut().pop().unwrap_or_default()
    }

    /// Gives it back.
    pub(super) fn give_scratch(&self, scratch: Scratch) {
        let mut kept = self.scratch.borrow_mut();
        if kept.len() < KEPT {
            kept.push(scratch);
        }
    }

    /// Memory for what is written, empty.
    pub(super) fn out(&self) -> Vec<u8> {
        self.outs.borrow_mut().pop().unwrap_or_default()
    }

    /// Gives it back.
    pub(super) fn give_out(&self, mut out: Vec<u8>) {
        let mut kept = self.outs.borrow_mut();
        if kept.len() < KEPT {
            out.clear();
            kept.push(out);
        }
    }

    /// Notes a request in the access log of what holds now.
    pub(super) fn log(&self, snapshot: &Snapshot, record: &access_log::Record<'_>) {
        let Some((_, format)) = &snapshot.log else {
            return;
        };
        let mut log = self.log.borrow_mut();
        access_log::write(*format, record, &mut log.0);
        log.1 += 1;
        if log.0.len() >= LOG_BATCH {
            drop(log);
            self.flush_log(snapshot);
        }
    }

    fn flush_log(&self, snapshot: &Snapshot) {
        let mut log = self.log.borrow_mut();
        if log.1 == 0 {
            return;
        }
        let room = log.0.capacity();
        let (lines, count) = std::mem::replace(&mut *log, (Vec::with_capacity(room), 0));
        if let Some((writer, _)) = &snapshot.log {
            writer.send(lines, count);
        }
    }

    /// Now and then: what is not done at once.
    async fn tick(self: Rc<Self>) {
        loop {
            tokio::time::sleep(TICK).await;
            if let Some(current) = self.current() {
                self.flush_log(&current.snapshot);
            }
            self.pools.sweep(Self::now());
            self.upstreams.sweep();
            self.wall.set(wall());
        }
    }
}

fn wall() -> u64 {
    let now = clock::Now::read();
    now.unix_ms.saturating_sub(now.mono_ns / 1_000_000)
}

/// Runs a worker until it is told to stop and its connections have ended, or were ended by
/// `patience`. Panics of what it runs end a connection; one of its own ends it, and is told.
pub(super) fn run(
    index: usize,
    random: u64,
    give: Give<'_>,
    orders: &mut Receiver<Order>,
    patience: Duration,
) -> io::Result<Ended> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let local = LocalSet::new();
    let worker = Rc::new(Worker::new(index, random));
    let work = AssertUnwindSafe(|| {
        local.block_on(&runtime, async {
            spawn_local(worker.timers.clone().run(Worker::now));
            spawn_local(worker.clone().tick());
            obey(&worker, give, orders, patience).await;
            if let Some(current) = worker.current() {
                worker.flush_log(&current.snapshot);
            }
        });
    });
    match catch_unwind(work) {
        Ok(()) => Ok(Ended::Stopped),
        // All that it had has ended with it.
        Err(_) if worker.is_stopping() => Ok(Ended::Stopped),
        Err(_) => {
            error!("worker {index} of the proxy panicked (see above); it starts anew");
            Ok(Ended::Panicked)
        }
    }
}

/// How a worker came to its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Ended {
    /// As it was told.
    Stopped,
    /// By a mistake.
    Panicked,
}

async fn obey(
    worker: &Rc<Worker>,
    give: Give<'_>,
    orders: &mut Receiver<Order>,
    patience: Duration,
) {
    let mut accepting = HashMap::new();
    // What holds was told to whoever started it, or to one that has panicked.
    let mut order = Some(Order::Look);
    let mut last = loop {
        match order {
            Some(Order::Look) => {
                if let Some(patience) = look(worker, give, &mut accepting) {
                    break Order::Drain(patience, Arc::default());
                }
            }
            other => break other.unwrap_or(Order::Stop),
        }
        order = orders.recv().await;
    };
    let mut until = u64::MAX;
    let mut ended: Vec<JoinHandle<()>> = Vec::new();
    loop {
        let (patience, successor) = match &last {
            Order::Drain(patience, unwanted) => (*patience, Some(unwanted)),
            Order::Look | Order::Stop => (patience, None),
        };
        let after = |span| Worker::now().saturating_add(nanoseconds(span));
        worker.end_connections(after(GRACE));
        until = until.min(after(patience));
        ended.extend(accepting.drain().map(|(_, task)| {
            let is_left = successor.is_some_and(|unwanted| !unwanted.contains(&task.address));
            task.end(if is_left { Rest::Leave } else { Rest::Take })
        }));
        while let Some(task) = ended.pop() {
            // One that has panicked has ended as well.
            let _ = task.await;
        }
        last = loop {
            // At first those that were accepted last come to begin.
            let pause = tokio::time::sleep(Duration::from_millis(20));
            match before(pause, orders).await {
                Some(order @ (Order::Stop | Order::Drain(..))) => break order,
                _ if worker.timers.count() == 0 || Worker::now() >= until => return,
                _ => {}
            }
        };
    }
}

/// The next order, if one comes before that.
async fn before(end: impl Future<Output = ()>, orders: &mut Receiver<Order>) -> Option<Order> {
    let mut end = std::pin::pin!(end);
    tokio::select! {
        order = orders.recv(), if !orders.is_closed() => order,
        () = &mut end => None,
    }
}

/// What becomes of connections that wait in a socket when no more are accepted from it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Rest {
    /// They are taken: they would be reset.
    Take,
    /// They are for the process that has the same socket.
    Leave,
}

/// A task that accepts connections.
struct Accepting {
    address: SocketAddr,
    /// It ends when it is told.
    open: oneshot::Sender<Rest>,
    task: JoinHandle<()>,
}

impl Accepting {
    fn end(self, rest: Rest) -> JoinHandle<()> {
        // One that has panicked needs not be told.
        let _ = self.open.send(rest);
        self.task
    }
}

/// Takes what holds. When the worker has no place any more, it is to end, within the time that is
/// returned.
fn look(
    worker: &Rc<Worker>,
    give: Give<'_>,
    accepting: &mut HashMap<u64, Accepting>,
) -> Option<Duration> {
    let Take {
        snapshot,
        router,
        has_place,
        wanted,
        new,
    } = give(&mut |number| accepting.contains_key(&number))?;
    if let Some(before) = worker.current() {
        worker.flush_log(&before.snapshot);
    }
    for (_, task) in accepting.extract_if(|number, _| !wanted.contains(number)) {
        // Of an address that is a listener's still, another worker has the socket now.
        let rest = match snapshot.listener_at(task.address) {
            Some(_) => Rest::Leave,
            None => Rest::Take,
        };
        task.end(rest);
    }
    let patience = snapshot.config.drain_timeout;
    let pickers = snapshot.groups.iter();
    let pickers =
        pickers.map(|group| RefCell::new(Picker::new(group.pick.clone(), worker.random())));
    let pickers = pickers.collect();
    worker.current.replace(Some(Rc::new(Current {
        snapshot,
        router,
        pickers,
    })));
    for entrance in new {
        let Entrance {
            number,
            address,
            socket,
            is_kept,
        } = entrance;
        match TcpListener::from_std(socket) {
            Ok(socket) => {
                let (open, ended) = oneshot::channel();
                let socket = (socket, is_kept);
                let task = spawn_local(accept(worker.clone(), address, socket, ended));
                let task = Accepting {
                    address,
                    open,
                    task,
                };
                accepting.insert(number, task);
            }
            Err(e) => error!("{address}: {e}; worker {} accepts none there", worker.index),
        }
    }
    (!has_place).then_some(patience)
}

/// Accepts connections to an address until it is no listener's any more, and those that wait then,
/// unless somebody else has the socket.
async fn accept(
    worker: Rc<Worker>,
    address: SocketAddr,
    (socket, is_kept): (TcpListener, bool),
    mut ended: oneshot::Receiver<Rest>,
) {
    let mut told = false;
    let current = worker.current();
    let mut listener = current.and_then(|c| c.snapshot.listener_at(address).cloned());
    let rest = loop {
        let accepted = tokio::select! {
            accepted = socket.accept() => accepted,
            rest = &mut ended => break rest.unwrap_or(Rest::Take),
        };
        match accepted {
            Ok((stream, peer)) => {
                told = false;
                let current = worker.current();
                let now = current.and_then(|c| c.snapshot.listener_at(address).cloned());
                listener = now.or(listener);
                if let Some(listener) = &listener {
                    greet(&worker, listener, stream, peer);
                }
            }
            Err(e) => {
                // Of the connection that was about to be accepted, or of the process.
                let is_ours = matches!(
                    e.raw_os_error(),
                    Some(libc::EMFILE | libc::ENFILE | libc::ENOBUFS | libc::ENOMEM)
                );
                if is_ours {
                    if !told {
                        warn!("{address}: {e}; connections wait until some others have ended");
                    }
                    told = true;
                    tokio::time::sleep(NO_DESCRIPTORS).await;
                }
            }
        }
    };
    if is_kept || rest == Rest::Leave {
        return;
    }
    let current = worker.current();
    let now = current.and_then(|c| c.snapshot.listener_at(address).cloned());
    let Some(listener) = now.or(listener) else {
        return;
    };
    // They would be reset, as nobody else has the socket. No more than can wait: others come as
    // long as it is open.
    for _ in 0..listen::BACKLOG {
        match waiting(&socket) {
            Ok((stream, peer)) => greet(&worker, &listener, stream, peer),
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => return,
            // Of the one that was about to be accepted.
            Err(_) => {}
        }
    }
}

/// A connection that waits to be accepted.
fn waiting(socket: &TcpListener) -> io::Result<(TcpStream, SocketAddr)> {
    let (stream, peer) = SockRef::from(socket).accept()?;
    stream.set_nonblocking(true)?;
    let peer = peer.as_socket().ok_or(io::ErrorKind::InvalidData)?;
    Ok((TcpStream::from_std(stream.into())?, peer))
}

/// Takes a connection, unless there are too many.
fn greet(worker: &Rc<Worker>, listener: &Arc<Listener>, stream: TcpStream, peer: SocketAddr) {
    let connections = listener.connections.of(worker.index);
    connections.accepted.add(1);
    let Some(place) = Listener::admit(listener, peer.ip()) else {
        connections.refused.add(1);
        connections.closed.add(1);
        return;
    };
    spawn_local(conn::serve(
        worker.clone(),
        listener.clone(),
        place,
        stream,
        peer,
    ));
}

/// Random bits for what is no secret.
pub(super) fn random() -> u64 {
    use std::hash::{BuildHasher as _, RandomState};
    RandomState::new().hash_one(0)
}
