//! Connections to servers, which the requests of a worker share.
//!
//! A connection is one task, as one to a client is. It is opened for whoever finds no place on
//! those that are there, and all who wait take places on it. What a request that nobody waits for
//! any more costs the others is nothing: its stream is reset.

use std::{
    cell::{Cell, RefCell},
    collections::{BTreeMap, VecDeque},
    future::{Future as _, poll_fn},
    io,
    pin::Pin,
    rc::Rc,
    sync::Arc,
    task::{Context, Poll, Waker},
    thread,
};

use ::h2::{
    Ping, PingPong, SendStream,
    client::{Builder, Connection, ResponseFuture, SendRequest},
};
use hyper::{Request, body::Bytes};
use tokio::task::spawn_local;
use tokio_rustls::rustls::{self, AlertDescription};

use super::{
    super::{
        back::ANSWERS,
        group::{Group, nanoseconds},
        panics::Witness,
        pool,
        stream::Stream,
        timers::Timer,
        worker::Worker,
    },
    ENDING, FIELD_OVERHEAD, SEND_BUFFER,
    io::Io,
};

/// Requests on one connection, at the most, whatever the server allows.
const STREAMS: usize = 100;
/// Bytes of an answer that wait for their client, and of all of a connection: what one client does
/// not take leaves the others theirs.
const ANSWER_WINDOW: u32 = 64 << 10;
const CONNECTION_WINDOW: u32 = STREAMS as u32 * ANSWER_WINDOW;
/// What small frames may cost is not bounded beside the windows, as it is towards clients: many share
/// a connection, and others are not to end for what one has let come and then did not want.
const SMALL_FRAMES: usize = usize::MAX;
/// Streams that are remembered after they were reset, for frames that were on their way.
const RESET_STREAMS: usize = 1000;
/// A connection by which nothing came for so long while an answer was waited for is asked whether
/// it is there, nanoseconds.
const SILENCE: u64 = 1_000_000_000;
/// How long it may take to say so.
const PATIENCE: u64 = 5_000_000_000;
/// How often it is asked because clients have no patience: servers of gRPC take more for abuse
/// (gRFC A8).
const ASKED_EVERY: u64 = 300_000_000_000;

/// Why there is no place for a request on a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in super::super) enum NoPlace {
    /// The server takes no connection.
    Failed,
    /// It does not in time.
    Expired,
    /// It does, but does not speak HTTP/2.
    NoHttp2,
}

/// Why a head was not sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in super::super) enum NotSent {
    /// The connection takes no more requests.
    Gone,
    /// It is none that HTTP/2 can carry.
    Invalid,
}

/// The connections of a worker.
#[derive(Default)]
pub(in super::super) struct Upstreams {
    /// By the number of the server.
    servers: RefCell<BTreeMap<usize, Rc<Server>>>,
}

impl Upstreams {
    /// Those to a server.
    pub(in super::super) fn server(&self, number: usize) -> Rc<Server> {
        let mut servers = self.servers.borrow_mut();
        servers.entry(number).or_default().clone()
    }

    /// Forgets those to which there is no connection and nobody wants one: after a change of the
    /// configuration they may never be asked for again. Connections to where a server is no longer
    /// end.
    pub(in super::super) fn sweep(&self) {
        let mut servers = self.servers.borrow_mut();
        servers.retain(|_, server| {
            server.sweep();
            Rc::strong_count(server) > 1
        });
    }
}

/// The connections to a server.
#[derive(Default)]
pub(in super::super) struct Server {
    /// Those that take requests; the first ones take them first, so that the last ones end.
    open: RefCell<Vec<Rc<Shared>>>,
    opening: RefCell<Option<Rc<Opening>>>,
    /// Those who wait for a place; who came first gets the first one.
    waiting: RefCell<VecDeque<Rc<Waiter>>>,
}

/// One who waits for a place.
#[derive(Default)]
struct Waiter {
    /// How long the connection is kept afterwards, nanoseconds.
    idle: u64,
    /// The place, once there is one, and whether there ever was: then this is not in the queue.
    place: Cell<Option<Place>>,
    is_served: Cell<bool>,
    waker: RefCell<Option<Waker>>,
}

impl Waiter {
    fn wake(&self) {
        if let Some(waker) = self.waker.borrow_mut().take() {
            waker.wake();
        }
    }
}

/// One in the queue, until this is dropped.
struct Queued<'a>(&'a Server, Rc<Waiter>);

impl Drop for Queued<'_> {
    fn drop(&mut self) {
        let Self(server, waiter) = self;
        if waiter.is_served.get() {
            // Too late for this one, if it has it still: it goes to the next.
            drop(waiter.place.take());
        } else {
            let mut waiting = server.waiting.borrow_mut();
            waiting.retain(|other| !Rc::ptr_eq(other, waiter));
        }
    }
}

/// A connection that is about to be one.
#[derive(Default)]
struct Opening {
    failed: Cell<Option<NoPlace>>,
}

/// A connection that is about to be one, until this is dropped, however that is. As long as it is
/// there no other one is opened.
struct Begun(Rc<Server>, Rc<Opening>);

impl Drop for Begun {
    fn drop(&mut self) {
        let Self(server, opening) = self;
        server.opening.replace(None);
        if thread::panicking() {
            opening.failed.set(Some(NoPlace::Failed));
            server.wake_waiting();
        }
    }
}

/// A connection.
struct Shared {
    worker: Rc<Worker>,
    server: Rc<Server>,
    io: Io,
    /// Nothing once no more requests are taken.
    send: RefCell<Option<SendRequest<Bytes>>>,
    /// Requests under way, and whether there ever were any.
    streams: Cell<usize>,
    was_used: Cell<bool>,
    /// How long it is kept without any, nanoseconds.
    idle: Cell<u64>,
    /// What had been heard when a request waited in vain, and until when more has to be.
    doubt: Cell<Option<(u64, u64)>>,
    /// When it was asked last for a client that went away.
    asked: Cell<u64>,
    /// Whether a request has told that the connection was lost.
    is_told: Cell<bool>,
    timer: Timer,
    /// Wakes the connection's own task.
    waker: RefCell<Option<Waker>>,
}

impl Server {
    /// A place for one more request, if there is one and nobody waits for it. `idle`: how long the
    /// connection is kept afterwards, nanoseconds.
    pub(in super::super) fn place(&self, idle: u64) -> Option<Place> {
        let is_first = self.waiting.borrow().is_empty();
        is_first.then(|| self.find(idle)).flatten()
    }

    /// Gives places to those who wait, as far as there are any.
    fn hand_out(&self) {
        let before = self.open.borrow().len();
        loop {
            let Some(first) = self.waiting.borrow().front().cloned() else {
                return;
            };
            let Some(place) = self.find(first.idle) else {
                break;
            };
            self.waiting.borrow_mut().pop_front();
            first.place.set(Some(place));
            first.is_served.set(true);
            first.wake();
        }
        if self.open.borrow().len() < before {
            self.wake_waiting();
        }
    }

    /// Lets those who wait look whether they may have another connection opened.
    fn wake_waiting(&self) {
        for waiter in self.waiting.borrow().iter() {
            waiter.wake();
        }
    }

    /// Takes out the connections to where the server is no longer: they end with their last
    /// requests, and others may be opened in their place.
    fn sweep(&self) {
        let before = self.open.borrow().len();
        self.open.borrow_mut().retain(|shared| {
            let is_current = shared.io.is_current();
            if !is_current {
                shared.arm();
            }
            is_current
        });
        if self.open.borrow().len() < before {
            self.wake_waiting();
        }
    }

    fn find(&self, idle: u64) -> Option<Place> {
        let mut open = self.open.borrow_mut();
        let mut at = 0;
        while let Some(shared) = open.get(at) {
            match shared.has_place() {
                Some(true) => {
                    shared.idle.set(idle);
                    return Some(Place::new(shared));
                }
                Some(false) => at += 1,
                // It ends by itself when its last request has.
                None => open.remove(at).arm(),
            }
        }
        None
    }

    /// Whether a connection is about to be opened.
    pub(in super::super) fn is_opening(&self) -> bool {
        self.opening.borrow().is_some()
    }

    /// Waits for a place. Opens one more connection to the server at a position of a group unless
    /// there are as many as may be. It has the time that the group gives it, for others may wait
    /// for it as well.
    ///
    /// # Errors
    /// When that connection could not be opened.
    pub(in super::super) async fn wait(
        self: &Rc<Self>,
        worker: &Rc<Worker>,
        group: &Arc<Group>,
        position: usize,
    ) -> Result<Place, NoPlace> {
        let keep_alive = &group.config.keep_alive;
        let waiter = Rc::new(Waiter {
            idle: nanoseconds(keep_alive.idle),
            ..Waiter::default()
        });
        self.waiting.borrow_mut().push_back(waiter.clone());
        let queued = Queued(self, waiter);
        self.hand_out();
        let mut opening: Option<Rc<Opening>> = None;
        poll_fn(|cx| {
            let Queued(_, waiter) = &queued;
            if let Some(place) = waiter.place.take() {
                return Poll::Ready(Ok(place));
            }
            if let Some(failed) = opening.as_ref().and_then(|opening| opening.failed.get()) {
                return Poll::Ready(Err(failed));
            }
            waiter.waker.replace(Some(cx.waker().clone()));
            let is_full = self.open.borrow().len() >= keep_alive.connections as usize;
            opening = self.opening.borrow().clone();
            if opening.is_none() && !is_full {
                opening = Some(self.begin(worker, group, position));
            }
            Poll::Pending
        })
        .await
    }

    /// Begins to open a connection, whether or not the one who wants it waits to the end.
    fn begin(
        self: &Rc<Self>,
        worker: &Rc<Worker>,
        group: &Arc<Group>,
        position: usize,
    ) -> Rc<Opening> {
        let opening = Rc::<Opening>::default();
        self.opening.replace(Some(opening.clone()));
        let (server, worker, group) = (self.clone(), worker.clone(), group.clone());
        let told = opening.clone();
        spawn_local(async move {
            let _witness = Witness(worker.clone(), "a connection to a server");
            let begun = Begun(server.clone(), told.clone());
            let timer = worker.timers.timer();
            let patience = nanoseconds(group.config.timeouts.connect);
            timer.set(Worker::now().saturating_add(patience));
            #[cfg(test)]
            worker
                .panics
                .strike(worker.index, super::super::panics::At::Open);
            let opened = timer.within(open(&worker, &group, position)).await;
            let stats = group.stats.of(worker.index);
            drop(begun);
            let (connection, io, send) = match opened.unwrap_or(Err(NoPlace::Expired)) {
                Ok(opened) => opened,
                Err(why) => {
                    stats.connect_failures.add(1);
                    told.failed.set(Some(why));
                    server.hand_out();
                    server.wake_waiting();
                    return;
                }
            };
            stats.connects.add(1);
            let shared = Rc::new(Shared {
                worker,
                server: server.clone(),
                io,
                send: RefCell::new(Some(send)),
                streams: Cell::new(0),
                was_used: Cell::new(false),
                idle: Cell::new(nanoseconds(group.config.keep_alive.idle)),
                doubt: Cell::new(None),
                asked: Cell::new(0),
                is_told: Cell::new(false),
                timer,
                waker: RefCell::new(None),
            });
            drop(group);
            shared.arm();
            server.open.borrow_mut().push(shared.clone());
            server.hand_out();
            server.wake_waiting();
            let leaving = Leaving(shared);
            drive(&leaving.0, connection).await;
        });
        opening
    }
}

/// Takes a connection out of those of its server when its task ends, however that is.
struct Leaving(Rc<Shared>);

impl Drop for Leaving {
    fn drop(&mut self) {
        self.0.leave();
        // Those who wait may have another one opened.
        self.0.server.hand_out();
        self.0.server.wake_waiting();
    }
}

type Opened = (Connection<Io, Bytes>, Io, SendRequest<Bytes>);

/// A new connection on which the server has begun to speak HTTP/2.
async fn open(worker: &Rc<Worker>, group: &Group, position: usize) -> Result<Opened, NoPlace> {
    let server = group.servers.get(position).ok_or(NoPlace::Failed)?;
    let connected = pool::connect(server, &[]).await;
    let stream = connected.map_err(|e| refused(&e))?;
    if let Stream::Tls(session) = &stream
        && session.get_ref().1.alpn_protocol() != Some(b"h2")
    {
        return Err(NoPlace::NoHttp2);
    }
    let io = Io::new(stream, worker.clone(), None);
    let fields = u32::try_from(ANSWERS.fields).unwrap_or(u32::MAX);
    let head = u32::try_from(ANSWERS.head_bytes).unwrap_or(u32::MAX);
    let handshake = Builder::new()
        .enable_push(false)
        .initial_window_size(ANSWER_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_send_buffer_size(SEND_BUFFER)
        .data_frame_budget(SMALL_FRAMES)
        .max_header_list_size(head.saturating_add(fields.saturating_mul(FIELD_OVERHEAD)))
        .max_concurrent_reset_streams(RESET_STREAMS)
        // Those that are at fault are single answers: others are not to end with them.
        .max_local_error_reset_streams(None)
        // None before the server has said how many.
        .initial_max_send_streams(0)
        .handshake(io.clone());
    // One that hangs up now took the connection, and did not like what it begins with.
    let (send, mut connection) = handshake.await.map_err(|_| NoPlace::NoHttp2)?;
    // Its settings come first (RFC 9113, section 3.4).
    let begun = poll_fn(
        |cx| match io.poll_turn(cx, |cx| Pin::new(&mut connection).poll(cx)) {
            Poll::Ready(_) => Poll::Ready(Err(NoPlace::NoHttp2)),
            Poll::Pending if send.current_max_send_streams() > 0 => Poll::Ready(Ok(())),
            Poll::Pending => Poll::Pending,
        },
    );
    begun.await?;
    Ok((connection, io, send))
}

/// Why there is no connection: a server may refuse all protocols that are offered (RFC 7301, 3.2).
fn refused(error: &io::Error) -> NoPlace {
    let tls = error
        .get_ref()
        .and_then(|e| e.downcast_ref::<rustls::Error>());
    match tls {
        Some(rustls::Error::AlertReceived(AlertDescription::NoApplicationProtocol)) => {
            NoPlace::NoHttp2
        }
        _ => NoPlace::Failed,
    }
}

impl Shared {
    /// Whether there is a place for one more request; nothing if there never will be.
    fn has_place(&self) -> Option<bool> {
        let send = self.send.borrow();
        let send = send.as_ref()?;
        if !self.io.is_current() {
            return None;
        }
        // The crate says here that the server is gone. Asked by a copy, that nothing was sent by: one
        // that has sent waits for its stream, and takes the waker of whoever sends a body there.
        let mut now = Context::from_waker(Waker::noop());
        if let Poll::Ready(Err(_)) = send.clone().poll_ready(&mut now) {
            return None;
        }
        let most = send.current_max_send_streams().min(STREAMS);
        Some(self.streams.get() < most && !self.is_doubted())
    }

    /// Whether a request waited in vain, and nothing has been heard since.
    fn is_doubted(&self) -> bool {
        match self.doubt.get() {
            Some((heard, _)) if heard == self.io.heard() => true,
            Some(_) => {
                self.doubt.set(None);
                self.arm();
                false
            }
            None => false,
        }
    }

    /// Asks whether the server is there.
    fn ask(&self) {
        if !self.is_doubted() {
            let until = Worker::now().saturating_add(PATIENCE);
            self.doubt.set(Some((self.io.heard(), until)));
            self.arm();
            if let Some(waker) = self.waker.borrow_mut().take() {
                waker.wake();
            }
        }
    }

    /// Sets when the connection ends, or has to be asked for more.
    fn arm(&self) {
        let until = self.doubt.get().map_or(u64::MAX, |(_, until)| until);
        if self.streams.get() > 0 {
            self.timer.set(until);
            return;
        }
        let idle = match self.worker.is_stopping() || !self.io.is_current() {
            true => 0,
            false => self.idle.get(),
        };
        let idle = Worker::now().saturating_add(idle);
        self.timer.set_idle(until.min(idle));
    }

    /// Takes no more requests.
    fn leave(&self) {
        self.send.borrow_mut().take();
        let mut open = self.server.open.borrow_mut();
        open.retain(|other| !std::ptr::eq(Rc::as_ptr(other), self));
    }
}

/// Reads and writes until the connection ends.
async fn drive(shared: &Shared, mut connection: Connection<Io, Bytes>) {
    let mut pings = connection.ping_pong();
    let mut is_ending = false;
    loop {
        let ended = poll_fn(|cx| {
            shared.waker.replace(Some(cx.waker().clone()));
            if let Some(pings) = &mut pings {
                ping(shared, pings, cx);
            }
            let ended = shared
                .io
                .poll_turn(cx, |cx| Pin::new(&mut connection).poll(cx));
            // The server may have been heard again, or allow more requests than before.
            shared.server.hand_out();
            ended
        });
        if shared.timer.within(ended).await.is_ok() || is_ending {
            return;
        }
        let doubt = shared.doubt.get().filter(|_| shared.is_doubted());
        if doubt.is_some_and(|(_, until)| until <= Worker::now()) {
            return;
        }
        if shared.streams.get() > 0 {
            shared.arm();
            continue;
        }
        // The crate says good-bye once nobody can ask for more.
        is_ending = true;
        shared.leave();
        shared.timer.set(Worker::now().saturating_add(ENDING));
    }
}

/// Sends a ping for a doubt, once.
fn ping(shared: &Shared, pings: &mut PingPong, cx: &mut Context<'_>) {
    // What came has been heard; that makes room for the next one.
    let _ = pings.poll_pong(cx);
    if shared.is_doubted() {
        // Fails while one is under way.
        let _ = pings.send_ping(Ping::opaque());
    }
}

/// A place for a request on a connection.
pub(in super::super) struct Place {
    shared: Rc<Shared>,
    is_reused: bool,
    /// What had been heard, and when, as of the last piece of its answer.
    heard: (u64, u64),
    is_over: bool,
}

impl Place {
    fn new(shared: &Rc<Shared>) -> Self {
        shared.streams.set(shared.streams.get() + 1);
        shared.arm();
        Self {
            is_reused: shared.was_used.replace(true),
            heard: (shared.io.heard(), Worker::now()),
            shared: shared.clone(),
            is_over: false,
        }
    }

    /// Whether the connection had requests before this one.
    pub(in super::super) const fn is_reused(&self) -> bool {
        self.is_reused
    }

    /// Sends the head of a request.
    ///
    /// # Errors
    /// When it cannot be sent. Nothing of it was.
    pub(super) fn send(
        &self,
        head: Request<()>,
        is_end: bool,
    ) -> Result<(ResponseFuture, SendStream<Bytes>), NotSent> {
        // By a copy: it keeps what it has sent, also when nobody wants that any more.
        let send = self.shared.send.borrow().clone();
        let mut send = send.ok_or(NotSent::Gone)?;
        send.send_request(head, is_end).map_err(|e| {
            if e.is_io() || e.is_go_away() {
                NotSent::Gone
            } else {
                NotSent::Invalid
            }
        })
    }

    /// Notes that something of the answer came.
    pub(super) fn hear(&mut self) {
        self.heard = (self.shared.io.heard(), Worker::now());
    }

    /// Notes that all of it came.
    pub(super) const fn end(&mut self) {
        self.is_over = true;
    }

    /// Notes that the connection was lost; whether another request has told so already.
    pub(super) fn tell_lost(&self) -> bool {
        self.shared.is_told.replace(true)
    }

    /// Notes that it was waited for in vain.
    pub(super) fn doubt(&self) {
        if self.heard.0 == self.shared.io.heard() {
            self.shared.ask();
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let shared = &self.shared;
        // The client had less patience than we.
        let now = Worker::now();
        let is_due = now >= shared.asked.get().saturating_add(ASKED_EVERY);
        if !self.is_over && is_due && now.saturating_sub(self.heard.1) >= SILENCE {
            shared.asked.set(now);
            self.doubt();
        }
        shared.streams.set(shared.streams.get().saturating_sub(1));
        shared.arm();
        shared.server.hand_out();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn servers_that_nobody_asks_are_forgotten() {
        let upstreams = Upstreams::default();
        let asked = upstreams.server(1000);
        drop(upstreams.server(7));
        upstreams.sweep();
        assert_eq!(upstreams.servers.borrow().len(), 1);
        assert!(Rc::ptr_eq(&asked, &upstreams.server(1000)));
        drop(asked);
        upstreams.sweep();
        assert!(upstreams.servers.borrow().is_empty());
    }
}
