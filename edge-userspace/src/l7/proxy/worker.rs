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
    runtime::{Builder, LocalOptions, LocalRuntime},
    sync::{mpsc::Receiver, oneshot},
    task::{JoinHandle, spawn_local},
    time::timeout,
};
use tracing::{error, warn};

use super::{
    buffers::Buffers,
    conn,
    group::nanoseconds,
    h2, listen,
    panics::{self, Panic, Panics},
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
/// How long nobody is accepted when there are no descriptors left, and until what could not be had
/// is tried again.
pub(super) const NO_DESCRIPTORS: Duration = Duration::from_millis(100);
/// How long a connection without a request waits for one at the end: a client that has just
/// connected, or is about to send one, gets its answer, and is told that the connection ends.
const GRACE: Duration = Duration::from_secs(1);
/// Memory for requests that is kept for later, at the most, and for what is written, of which each
/// takes three. What does not go round is allocated anew, and grows step by step.
const KEPT: usize = 1024;
const OUTS_KEPT: usize = 3 * KEPT;
/// What has room for more bytes is not kept: of what is written, a link gathers half as much.
const KEPT_BYTES: usize = 32 * 1024;

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
    /// Or why there is none.
    pub(super) socket: io::Result<StdListener>,
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
    /// Panics of all workers.
    pub(super) panics: Arc<Panics>,
    /// Who is told the first panic of a task of the worker's own.
    pub(super) fallen: Cell<Option<oneshot::Sender<Panic>>>,
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
            panics: Arc::default(),
            fallen: Cell::new(None),
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

    /// Has something else hold. Lines of the log go where they belong.
    fn hold(&self, snapshot: Arc<Snapshot>, router: Router) {
        if let Some(before) = self.current() {
            self.flush_log(&before.snapshot);
        }
        let pickers = snapshot.groups.iter();
        let pickers =
            pickers.map(|group| RefCell::new(Picker::new(group.pick.clone(), self.random())));
        let pickers = pickers.collect();
        self.current.replace(Some(Rc::new(Current {
            snapshot,
            router,
            pickers,
        })));
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
        let Scratch {
            host,
            path,
            rewritten,
            ..
        } = &scratch;
        let bytes = host.capacity() + path.capacity() + rewritten.capacity();
        let mut kept = self.scratch.borrow_mut();
        if kept.len() < KEPT && bytes <= KEPT_BYTES {
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
        if kept.len() < OUTS_KEPT && out.capacity() <= KEPT_BYTES {
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
            #[cfg(test)]
            self.panics.strike(self.index, panics::At::Tick);
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

/// What a worker runs in. Tasks that stay on its thread are this scheduler's own; a `LocalSet` would
/// be a second one within it, through which each task that is woken has to go.
///
/// # Errors
/// When the kernel has no descriptors or no memory for it.
pub(super) fn runtime() -> io::Result<LocalRuntime> {
    Builder::new_current_thread()
        .enable_all()
        .build_local(LocalOptions::default())
}

/// Runs a worker until it is told to stop and its connections have ended, or were ended by
/// `patience`. Panics of what it runs end a connection; one of its own, whichever of its tasks it is
/// in, ends it, and is told. With the runtime end its tasks.
pub(super) fn run(
    runtime: LocalRuntime,
    index: usize,
    random: u64,
    panics: &Arc<Panics>,
    give: Give<'_>,
    orders: &mut Receiver<Order>,
    patience: Duration,
) -> Ended {
    let (told, fallen) = oneshot::channel();
    let worker = Rc::new(Worker {
        panics: panics.clone(),
        fallen: Cell::new(Some(told)),
        ..Worker::new(index, random)
    });
    let work = AssertUnwindSafe(|| {
        runtime.block_on(async {
            #[cfg(test)]
            panics.strike(index, panics::At::Start);
            worker.begin(worker.time());
            worker.begin(worker.clone().tick());
            let work = obey(&worker, give, orders, patience);
            tokio::select! {
                biased;
                Ok(panic) = fallen => Err(panic),
                () = work => Ok(()),
            }
        })
    });
    let ended = catch_unwind(work).and_then(|ended| ended);
    // Requests that are over are told, whatever came afterwards.
    let flush = || {
        let current = worker.current();
        current.inspect(|current| worker.flush_log(&current.snapshot))
    };
    drop(catch_unwind(AssertUnwindSafe(flush)));
    drop(runtime);
    let Err(panic) = ended else {
        return Ended::Stopped;
    };
    let reason = panics::reason(&*panic);
    if worker.is_stopping() {
        // All that it had has ended with it.
        error!("worker {index} of the proxy panicked at its end: {reason}");
        return Ended::Stopped;
    }
    error!("worker {index} of the proxy panicked: {reason}; it starts anew");
    Ended::Panicked
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
    let mut is_told = false;
    let mut last = loop {
        match order {
            Some(Order::Look) => {}
            other => break other.unwrap_or(Order::Stop),
        }
        let next = look(worker, give, &mut accepting, is_told);
        is_told = next == Next::Again;
        order = match next {
            Next::Wait => orders.recv().await,
            Next::Again => {
                let order = timeout(NO_DESCRIPTORS, orders.recv()).await;
                order.unwrap_or(Some(Order::Look))
            }
            Next::Leave(patience) => break Order::Drain(patience, Arc::default()),
        };
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
                // Nothing to accept, but logs and collectors may be others.
                Some(Order::Look) => {
                    if let Some(Take {
                        snapshot, router, ..
                    }) = give(&mut |_| true)
                    {
                        worker.hold(snapshot, router);
                    }
                }
                None => {}
            }
            if worker.timers.count() == 0 || Worker::now() >= until {
                return;
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

/// What a worker does when it has looked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Next {
    /// It waits for an order.
    Wait,
    /// It looks again before long: some of its sockets could not be had, and nobody else may have
    /// them.
    Again,
    /// It ends within that time, as it has no place any more.
    Leave(Duration),
}

/// Takes what holds. Of sockets that cannot be had, nothing is said when that `is_told` already.
fn look(
    worker: &Rc<Worker>,
    give: Give<'_>,
    accepting: &mut HashMap<u64, Accepting>,
    is_told: bool,
) -> Next {
    let Some(Take {
        snapshot,
        router,
        has_place,
        wanted,
        new,
    }) = give(&mut |number| accepting.contains_key(&number))
    else {
        return Next::Wait;
    };
    for (_, task) in accepting.extract_if(|number, _| !wanted.contains(number)) {
        // Of an address that is a listener's still, another worker has the socket now.
        let rest = match snapshot.listener_at(task.address) {
            Some(_) => Rest::Leave,
            None => Rest::Take,
        };
        task.end(rest);
    }
    let patience = snapshot.config.drain_timeout;
    worker.hold(snapshot, router);
    let mut is_short = false;
    for entrance in new {
        let Entrance {
            number,
            address,
            socket,
            is_kept,
        } = entrance;
        match socket.and_then(TcpListener::from_std) {
            Ok(socket) => {
                let (open, ended) = oneshot::channel();
                let socket = (socket, is_kept);
                let task = worker.begin(accept(worker.clone(), address, socket, ended));
                let task = Accepting {
                    address,
                    open,
                    task,
                };
                accepting.insert(number, task);
            }
            Err(e) => {
                if !is_told {
                    let index = worker.index;
                    error!("{address}: {e}; worker {index} accepts none there until it can");
                }
                is_short = true;
            }
        }
    }
    match (has_place, is_short) {
        (false, _) => Next::Leave(patience),
        (true, true) => Next::Again,
        (true, false) => Next::Wait,
    }
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
        #[cfg(test)]
        worker.panics.strike(worker.index, panics::At::Accept);
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
    let place = match Listener::admit(listener, peer.ip()) {
        Ok(place) => place,
        Err(refusal) => {
            listener.refusals.of(worker.index).of(refusal).add(1);
            connections.refused.add(1);
            connections.closed.add(1);
            return;
        }
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

#[cfg(test)]
mod tests {
    use std::{io::Read as _, thread};

    use tokio::sync::mpsc::channel;

    use super::*;

    /// How long anything may take on a machine that is busy with other things.
    const PATIENCE: Duration = Duration::from_secs(40);

    /// Without anything in it, for a worker with a place or without.
    fn nothing(has_place: bool) -> Take {
        let snapshot = Snapshot {
            config: Arc::default(),
            listeners: Box::default(),
            groups: Box::default(),
            routes: Box::default(),
            log: None,
            traces: None,
            bans: None,
            addresses: HashMap::new(),
        };
        Take {
            router: Router::new(&snapshot.config).expect("no routes"),
            snapshot: Arc::new(snapshot),
            has_place,
            wanted: Vec::new(),
            new: Vec::new(),
        }
    }

    #[test]
    fn a_socket_that_cannot_be_had_is_tried_again() {
        let socket = StdListener::bind("127.0.0.1:0").expect("bound");
        socket.set_nonblocking(true).expect("set");
        let address = socket.local_addr().expect("an address");
        let (told, mut orders) = channel(1);
        let worker = thread::spawn(move || {
            let is_first = Cell::new(true);
            let give = |held: &mut dyn FnMut(u64) -> bool| {
                let mut take = nothing(true);
                take.wanted.push(0);
                if !held(0) {
                    take.new.push(Entrance {
                        number: 0,
                        address,
                        socket: match is_first.replace(false) {
                            true => Err(io::Error::from_raw_os_error(libc::EMFILE)),
                            false => socket.try_clone(),
                        },
                        is_kept: false,
                    });
                }
                Some(take)
            };
            let runtime = runtime().expect("a runtime");
            run(runtime, 0, 1, &Arc::default(), &give, &mut orders, PATIENCE)
        });
        // It is accepted, by a worker that has no listener and lets it go.
        let mut client = std::net::TcpStream::connect(address).expect("it listens");
        client.set_read_timeout(Some(PATIENCE)).expect("set");
        assert_eq!(client.read(&mut [0]).expect("accepted"), 0);
        told.blocking_send(Order::Stop).expect("it is there");
        assert_eq!(worker.join().expect("no panic"), Ended::Stopped);
    }

    #[test]
    fn a_worker_that_panics_is_followed_by_another_one() {
        let (told, mut orders) = channel(1);
        told.try_send(Order::Stop).expect("room");
        let counted = Arc::default();
        let panics: Give<'_> = &|_| panic!("as is expected");
        let begins: Give<'_> = &|_| Some(nothing(true));
        for (give, expected) in [(panics, Ended::Panicked), (begins, Ended::Stopped)] {
            let runtime = runtime().expect("a runtime");
            let ended = run(runtime, 0, 1, &counted, give, &mut orders, PATIENCE);
            assert_eq!(ended, expected);
        }
    }

    #[test]
    fn a_worker_that_leaves_takes_what_holds() {
        let runtime = runtime().expect("a runtime");
        let worker = Rc::new(Worker::new(0, 1));
        let (told, mut orders) = channel(1);
        let given = RefCell::new(Vec::new());
        let give = |_: &mut dyn FnMut(u64) -> bool| {
            let take = nothing(false);
            given.borrow_mut().push(take.snapshot.clone());
            Some(take)
        };
        let holds = |n: usize| {
            let current = worker.current().expect("it has looked");
            let given = given.borrow();
            given.len() == n && Arc::ptr_eq(&given[n - 1], &current.snapshot)
        };
        runtime.block_on(async {
            let connection = worker.timers.timer();
            let change = async {
                assert!(worker.is_stopping() && holds(1));
                told.try_send(Order::Look).expect("room");
                while !holds(2) {
                    tokio::time::sleep(Duration::from_millis(5)).await;
                }
                // It was the last one.
                drop(connection);
            };
            let both = async { tokio::join!(obey(&worker, &give, &mut orders, PATIENCE), change) };
            timeout(PATIENCE, both).await.expect("it looks, and ends");
        });
    }
}
