//! HTTP/2 (RFC 9113): here towards clients, and in [`upstream`] towards servers.
//!
//! A connection is one task, which reads and writes frames, and each of its streams another one,
//! which answers a request as one of HTTP/1 is answered ([`RequestStream`]). What a stream may
//! cost is bounded by the windows and limits below, and what a client may cost by resetting
//! streams, or having them reset, by a rate.

mod answer;
mod frames;
mod io;
mod message;
mod stream;
mod upstream;

use std::{
    cell::{Cell, RefCell},
    future::{Future as _, poll_fn},
    rc::Rc,
    task::{Context, Poll, Waker, ready},
};

use ::h2::{
    Reason, RecvStream,
    server::{Builder, Connection, SendResponse},
};
use hyper::{Request, body::Bytes};
use tokio::task::spawn_local;

use super::{
    conn::{self, Conn},
    exchange,
    group::nanoseconds,
    stream::Stream,
    worker::Worker,
};
use crate::{
    config::proxy::listener::Limits,
    l7::{head::Reject, refusal::Refusal},
};
pub(super) use answer::AnswerStream;
use frames::{Traffic, Unseen};
use io::Io;
pub(super) use message::append;
use stream::RequestStream;
pub(super) use upstream::{NoPlace, NotSent, Place, Upstreams};

/// Bytes that a client may send of a body, and of all bodies of a connection, before any are
/// taken.
const STREAM_WINDOW: u32 = 256 << 10;
const CONNECTION_WINDOW: u32 = 1 << 20;
/// What frames of data may cost that nobody has taken: each 256 bytes less its data. What comes for
/// a stream that was reset meanwhile counts for the whole life of a connection: so many small
/// messages that were on their way are borne.
const SMALL_FRAMES: usize = 4 << 20;
/// Bytes of a stream that wait to be written before no more are taken of its answer.
const SEND_BUFFER: usize = 64 << 10;
/// What a field counts in the size of a list beside its name and value (RFC 9113, 6.5.2).
const FIELD_OVERHEAD: u32 = 32;
/// Streams that are reset before they are a request (their fields break a rule, or there are too
/// many of them) are counted for the whole life of a connection: as many as may be reset in so
/// many seconds.
const FAULTY_SECONDS: u32 = 10;
/// How long a connection without streams may take to end, nanoseconds.
const ENDING: u64 = 2_000_000_000;

/// What the streams of a connection share.
struct Shared {
    conn: Conn,
    /// Streams under way.
    streams: Cell<u32>,
    resets: Resets,
    /// How many were reset by the crate, and how many of these are noted, or were no requests.
    made: Cell<u64>,
    noted: Cell<u64>,
    /// What is one too many, once there is something.
    flood: Cell<Option<Refusal>>,
    /// Since when a head is under way that has not ended, nanoseconds; 0: none is.
    head: Cell<u64>,
    /// Whether the client was told to open no more.
    is_ending: Cell<bool>,
    /// Wakes the connection's own task.
    waker: RefCell<Option<Waker>>,
}

impl Shared {
    /// Notes a request whose stream was reset, with an error.
    fn note_reset(&self, reason: Reason) {
        // The client may give the errors of the crate as well.
        if frames::is_made(reason) && self.made.get() > self.noted.get() {
            self.noted.set(self.noted.get() + 1);
            self.note(Refusal::H2MadeResets);
        } else {
            self.note(Refusal::H2Resets);
        }
    }

    /// Notes a stream that came to nothing. The connection ends with the refusal if it is one too
    /// many.
    fn note(&self, refusal: Refusal) {
        if self.resets.is_too_many(Worker::now()) && self.flood.get().is_none() {
            self.flood.set(Some(refusal));
            if let Some(waker) = self.waker.borrow_mut().take() {
                waker.wake();
            }
        }
    }

    /// Looks what has gone by on the connection. `accepted` is how many requests it had, if there
    /// are no others to be shown.
    fn look(&self, io: &Io, accepted: Option<u64>) {
        let Some(mut traffic) = io.traffic() else {
            return;
        };
        self.made.set(traffic.made());
        let unseen = match accepted {
            Some(accepted) if io.is_taken() => traffic.unseen(accepted),
            _ => Unseen::default(),
        };
        let head = traffic.since();
        drop(traffic);
        if self.head.replace(head) != head {
            self.arm();
        }
        for _ in 0..unseen.too_many {
            self.refuse(Refusal::H2Streams);
        }
        for _ in 0..unseen.too_large {
            self.refuse(Reject::HeadTooLarge.into());
            self.note(Refusal::H2Heads);
        }
        for _ in 0..unseen.malformed {
            self.refuse(Refusal::H2Malformed);
            self.noted.set(self.noted.get() + 1);
            self.note(Refusal::H2MadeResets);
        }
    }

    /// Sets when the connection ends: not while there are streams, which have deadlines of their
    /// own, unless a head is under way, which has to end in time. At the proxy's end it ends earlier,
    /// and is then told so.
    fn arm(&self) {
        let (now, timer) = (Worker::now(), &self.conn.timer);
        let patience = if self.streams.get() > 0 {
            u64::MAX
        } else if self.is_ending.get() {
            ENDING
        } else {
            nanoseconds(self.conn.listener.config.limits.idle_timeout)
        };
        let until = now.saturating_add(patience);
        match self.head_until() {
            Some(head) if self.is_ending.get() => timer.set(until.min(head)),
            Some(head) => timer.set(head),
            None => timer.set_idle(until),
        }
    }

    /// When the head that is under way has to have ended.
    fn head_until(&self) -> Option<u64> {
        let patience = nanoseconds(self.conn.listener.config.limits.header_timeout);
        let head = self.head.get();
        (head != 0).then(|| head.saturating_add(patience))
    }

    /// Whether a head did not end in time.
    fn is_head_late(&self) -> bool {
        self.head_until()
            .is_some_and(|until| until <= Worker::now())
    }

    /// Counts a connection that is ended for what the client did.
    fn refuse(&self, refusal: Refusal) {
        exchange::offence(&self.conn, refusal);
    }

    /// The same for what the crate found.
    fn fault(&self, io: &Io, error: &::h2::Error) {
        if !error.is_go_away() || !error.is_library() {
            return;
        }
        let calm = || io.traffic().map_or(Refusal::H2Flood, |t| flood(t.why()));
        self.refuse(match error.reason() {
            Some(Reason::ENHANCE_YOUR_CALM) => calm(),
            _ => Refusal::H2Protocol,
        });
    }
}

/// What the crate ended a connection for, as it tells the client.
fn flood(why: &[u8]) -> Refusal {
    match why {
        b"too_many_resets" => Refusal::H2Resets,
        b"too_many_internal_resets" => Refusal::H2MadeResets,
        b"too_many_continuations" => Refusal::H2Continuations,
        b"header_list_way_too_large" => Refusal::H2Hpack,
        _ => Refusal::H2Flood,
    }
}

/// How fast streams are reset (GCRA, ITU-T I.371): so many a second, those of a second at once.
#[derive(Debug)]
struct Resets {
    /// Nanoseconds for each.
    share: u64,
    /// The theoretical arrival time.
    arrival: Cell<u64>,
}

const SECOND: u64 = 1_000_000_000;

impl Resets {
    fn new(per_second: u32) -> Self {
        Self {
            share: SECOND / u64::from(per_second.max(1)),
            arrival: Cell::new(0),
        }
    }

    /// Whether one more, now, is one too many.
    fn is_too_many(&self, now: u64) -> bool {
        let next = self.arrival.get().max(now).saturating_add(self.share);
        if next - now > SECOND {
            return true;
        }
        self.arrival.set(next);
        false
    }
}

/// Counts a stream for as long as it is under way.
struct Open(Rc<Shared>);

impl Open {
    fn new(shared: &Rc<Shared>) -> Self {
        shared.streams.set(shared.streams.get() + 1);
        shared.arm();
        Self(shared.clone())
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.0.streams.set(self.0.streams.get().saturating_sub(1));
        self.0.arm();
    }
}

/// The settings of a connection, and what the crate bounds.
fn settings(limits: &Limits) -> Builder {
    let mut builder = Builder::new();
    let resets = limits.h2_resets_per_second;
    let overhead = limits.headers.saturating_mul(FIELD_OVERHEAD);
    builder
        .initial_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_send_buffer_size(SEND_BUFFER)
        .data_frame_budget(SMALL_FRAMES)
        .max_concurrent_streams(limits.h2_streams)
        // What is larger than a head may be is refused in our own words, unless it is far larger:
        // then the crate answers 431, and beyond four times of this, however small HPACK made it,
        // ends the connection. The number of CONTINUATION frames is bounded by it likewise.
        .max_header_list_size(
            limits
                .header_bytes
                .saturating_mul(2)
                .saturating_add(overhead),
        )
        // Reset before we saw them.
        .max_pending_accept_reset_streams(resets as usize)
        // Reset by the crate, for what the client did to them.
        .max_local_error_reset_streams(Some(resets.saturating_mul(FAULTY_SECONDS) as usize))
        // Remembered, for frames that were on their way.
        .max_concurrent_reset_streams(limits.h2_streams as usize);
    builder
}

/// What happens on a connection.
#[expect(
    clippy::large_enum_variant,
    reason = "nearly all of them are requests, and none is kept"
)]
enum Event {
    Request(Request<RecvStream>, SendResponse<Bytes>),
    /// More of something came than may.
    Flood(Refusal),
    Fault(::h2::Error),
    Closed,
}

/// Serves requests of HTTP/2 until the connection ends.
pub(super) async fn serve(conn: Conn, stream: Stream) {
    let limits = conn.listener.config.limits.clone();
    let traffic = Traffic::new(limits.header_bytes / 2);
    let io = Io::new(stream, conn.worker.clone(), Some(traffic));
    let shared = Rc::new(Shared {
        streams: Cell::new(0),
        resets: Resets::new(limits.h2_resets_per_second),
        made: Cell::new(0),
        noted: Cell::new(0),
        flood: Cell::new(None),
        head: Cell::new(0),
        is_ending: Cell::new(false),
        waker: RefCell::new(None),
        conn,
    });
    let timer = &shared.conn.timer;
    // Its first bytes may have come before.
    let began = match shared.conn.began.take() {
        0 => Worker::now(),
        began => began,
    };
    timer.set_idle(began.saturating_add(nanoseconds(limits.header_timeout)));
    let mut handshake = Box::pin(settings(&limits).handshake(io.clone()));
    let begun = poll_fn(|cx| io.poll_turn(cx, |cx| handshake.as_mut().poll(cx)));
    let begun = timer.within(begun).await;
    drop(handshake);
    match begun {
        Ok(Ok(Ok(connection))) => Box::pin(requests(&shared, &limits, &io, connection)).await,
        Ok(Ok(Err(error))) => shared.fault(&io, &error),
        Ok(Err(_)) => {}
        // What it begins with did not come to its end, or did not begin.
        Err(_) if io.heard() > 0 && !shared.conn.worker.is_stopping() => {
            shared.refuse(Refusal::HeadTimeout);
        }
        Err(_) => shared.conn.note_idle(),
    }
    // What the client has on its way would reset the connection, and take with it what it has not
    // read yet.
    if let Some(mut stream) = io.into_stream() {
        timer.set(Worker::now().saturating_add(ENDING));
        let _ = timer.within(Box::pin(conn::pass_over(&mut stream))).await;
    }
}

/// Takes streams until the connection has ended.
async fn requests(
    shared: &Rc<Shared>,
    limits: &Limits,
    io: &Io,
    mut connection: Connection<Io, Bytes>,
) {
    let worker = &shared.conn.worker;
    let mut served: u64 = 0;
    loop {
        let event = poll_fn(|cx| {
            shared.waker.replace(Some(cx.waker().clone()));
            let accepted = io.poll_turn(cx, |cx| connection.poll_accept(cx));
            shared.look(io, accepted.is_pending().then_some(served));
            if let Some(flood) = shared.flood.take() {
                return Poll::Ready(Event::Flood(flood));
            }
            Poll::Ready(match ready!(accepted) {
                Ok(Some(Ok((request, respond)))) => Event::Request(request, respond),
                Ok(Some(Err(error))) => Event::Fault(error),
                Ok(None) | Err(_) => Event::Closed,
            })
        });
        match shared.conn.timer.within(event).await {
            Ok(Event::Request(request, mut respond)) => {
                served += 1;
                if served == u64::from(limits.requests_per_connection)
                    || worker.is_stopping()
                    || !is_configured(&shared.conn)
                {
                    end(shared, &mut connection);
                }
                // No work is begun for one who does not want it any more.
                let mut now = Context::from_waker(Waker::noop());
                if let Poll::Ready(reset) = respond.poll_reset(&mut now) {
                    shared.note_reset(reset.unwrap_or(Reason::CANCEL));
                    continue;
                }
                spawn_local(answer(Open::new(shared), request, respond));
            }
            Ok(Event::Flood(refusal)) => return break_off(shared, io, connection, refusal).await,
            Ok(Event::Fault(error)) => return shared.fault(io, &error),
            Ok(Event::Closed) => return,
            Err(_) if shared.is_head_late() => {
                return break_off(shared, io, connection, Refusal::HeadTimeout).await;
            }
            // Told so, and had its time.
            Err(_) if shared.is_ending.get() && shared.streams.get() == 0 => return,
            Err(_) => {
                shared.conn.note_idle();
                end(shared, &mut connection);
            }
        }
    }
}

/// Ends a connection, with all of its streams, for what the client did.
async fn break_off(
    shared: &Shared,
    io: &Io,
    mut connection: Connection<Io, Bytes>,
    refusal: Refusal,
) {
    shared.refuse(refusal);
    connection.abrupt_shutdown(Reason::ENHANCE_YOUR_CALM);
    let timer = &shared.conn.timer;
    timer.set(Worker::now().saturating_add(ENDING));
    let closed = poll_fn(|cx| io.poll_turn(cx, |cx| connection.poll_closed(cx)));
    let _ = timer.within(closed).await;
}

/// Tells the client to open no more streams; those that are open end as they would.
fn end(shared: &Shared, connection: &mut Connection<Io, Bytes>) {
    if !shared.is_ending.replace(true) {
        connection.graceful_shutdown();
    }
    shared.arm();
}

/// Whether the listener is in the configuration still.
fn is_configured(conn: &Conn) -> bool {
    let name = &conn.listener.config.name;
    let current = conn.worker.current();
    current.is_some_and(|current| current.snapshot.listener_named(name).is_some())
}

/// Answers the request of a stream.
async fn answer(open: Open, request: Request<RecvStream>, respond: SendResponse<Bytes>) {
    let Open(shared) = &open;
    let conn = shared.conn.stream();
    let worker = &conn.worker;
    let started = Worker::now();
    let mut scratch = worker.scratch();
    let limits = &conn.listener.limits;
    let (head, body) = request.into_parts();
    let mut front = RequestStream::new(respond, body, *limits, worker.out());
    let read = front.read(&head, conn.is_secure, &mut scratch.request);
    drop(head);
    match read {
        Ok(()) => {
            exchange::run(&conn, &mut front, &mut scratch, started, false).await;
        }
        Err(reject) => {
            exchange::refuse(&conn, &mut front, &mut scratch, reject.into(), started).await;
        }
    }
    worker.give_scratch(scratch);
    let (reset, memory) = front.close();
    worker.give_out(memory);
    if let Some(reason) = reset {
        shared.note_reset(reason);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn resets_are_borne_up_to_their_rate() {
        let resets = Resets::new(50);
        let now = 7 * SECOND;
        for _ in 0..50 {
            assert!(!resets.is_too_many(now));
        }
        assert!(resets.is_too_many(now));
        // For ever, if they come no faster.
        let resets = Resets::new(50);
        assert!((0..1000).all(|n| !resets.is_too_many(now + n * SECOND / 50)));
    }
}
