//! What a request waits for before a server gets it: its turn, and a connection. Meanwhile its
//! client may go away.

use std::{
    future::{Future, poll_fn},
    pin::pin,
    sync::Arc,
    task::Poll,
};

use super::{
    exchange::Exchange,
    front::Front,
    group::{Group, Places, Server, nanoseconds},
    h2::{NoPlace, Place},
    link::BodyError,
    pool,
    relay::Side,
    stream::Stream,
    worker::Worker,
};
use crate::l7::{
    refusal::Refusal,
    resilience::{Deadlines, Entry, Failure, Permit, Timeout},
};

/// Why there is none.
pub(super) struct Failed {
    /// What the server has to do with it, if anything.
    pub(super) failure: Option<Failure>,
    pub(super) refusal: Refusal,
}

impl Failed {
    pub(super) const fn of_server(failure: Failure, refusal: Refusal) -> Self {
        Self {
            failure: Some(failure),
            refusal,
        }
    }

    pub(super) const fn of_client(refusal: Refusal) -> Self {
        Self {
            failure: None,
            refusal,
        }
    }

    /// The whole time of a request that began at `started` was over while it waited, since
    /// `since`, for the server: that says something of the server if it had most of that time.
    pub(super) const fn at_the_end(started: u64, since: u64, now: u64, failure: Failure) -> Self {
        let (all, here) = (now.saturating_sub(started), now.saturating_sub(since));
        if here >= all / 2 {
            Self::of_server(failure, Refusal::RequestTimeout)
        } else {
            Self::of_client(Refusal::RequestTimeout)
        }
    }
}

/// Waits for something, as long as the client is there and the request has time.
pub(super) async fn wait<F: Front, T>(
    exchange: &Exchange<'_>,
    front: &mut F,
    until: u64,
    work: impl Future<Output = T>,
) -> Result<T, Side> {
    exchange.conn.timer.set(until);
    let mut work = pin!(work);
    let both = poll_fn(|cx| {
        if let Poll::Ready(done) = work.as_mut().poll(cx) {
            return Poll::Ready(Ok(done));
        }
        // One who sends its body is there.
        if !front.has_ended() {
            front.read_ahead(cx).map_err(Side::Client)?;
        } else if front.poll_gone(cx).is_ready() {
            return Poll::Ready(Err(gone()));
        }
        Poll::Pending
    });
    exchange.conn.timer.within(both).await?
}

pub(super) const fn gone() -> Side {
    Side::Client(BodyError::Broken)
}

/// What a client did while something was waited for.
pub(super) const fn refusal_of(side: Side) -> Refusal {
    match side {
        Side::Client(BodyError::Reject(reject)) => Refusal::Malformed(reject),
        Side::Client(BodyError::Broken) | Side::Server | Side::Expired => Refusal::ClientGone,
    }
}

/// A place among the requests under way.
pub(super) async fn place<'p, F: Front>(
    exchange: &mut Exchange<'_>,
    front: &mut F,
    places: Option<&'p Places>,
    deadlines: &Deadlines,
) -> Result<Option<Permit<'p>>, Refusal> {
    let Some(places) = places else {
        return Ok(None);
    };
    let mut ticket = match places.bulkhead.enter() {
        Entry::Admitted(permit) => return Ok(Some(permit)),
        Entry::Full => return Err(Refusal::Overloaded),
        Entry::Queued(ticket) => ticket,
    };
    let began = Worker::now();
    let patience = began.saturating_add(nanoseconds(places.patience));
    let (end, _) = deadlines.next().unwrap_or((u64::MAX, Timeout::Request));
    let waited = loop {
        ticket = match ticket.admit() {
            Ok(permit) => break Ok(Some(permit)),
            Err(ticket) => ticket,
        };
        match wait(exchange, front, patience.min(end), places.free.notified()).await {
            Ok(()) => {}
            Err(Side::Expired) if end <= patience => break Err(Refusal::RequestTimeout),
            Err(Side::Expired) => break Err(Refusal::QueueTimeout),
            Err(side) => break Err(refusal_of(side)),
        }
    };
    exchange.facts.queued += Worker::now().saturating_sub(began);
    waited
}

/// A place on a connection to a server that requests share.
pub(super) async fn shared<F: Front>(
    exchange: &mut Exchange<'_>,
    front: &mut F,
    group: &Arc<Group>,
    position: usize,
    deadlines: &mut Deadlines,
) -> Result<Place, Failed> {
    let Some(server) = group.servers.get(position) else {
        return Err(Failed::of_client(Refusal::Internal));
    };
    let worker = &exchange.conn.worker;
    let server = worker.upstreams.server(server.number);
    let idle = nanoseconds(group.config.keep_alive.idle);
    if let Some(place) = server.place(idle) {
        return Ok(place);
    }
    let began = Worker::now();
    deadlines.begin(Timeout::Connect, began);
    let until = deadlines.next().map_or(u64::MAX, |(at, _)| at);
    let work = server.wait(worker, group, position);
    let found = wait(exchange, front, until, work).await;
    exchange.facts.connect += Worker::now().saturating_sub(began);
    let refusal = match found {
        Ok(Ok(place)) => return Ok(place),
        Ok(Err(NoPlace::Failed)) => Refusal::ConnectFailed,
        Ok(Err(NoPlace::NoHttp2)) => Refusal::NoHttp2,
        // Others have all that there are: the server has nothing to do with it.
        Err(Side::Expired) if !server.is_opening() => {
            return Err(match deadlines.expired(Worker::now()) {
                Some(Timeout::Request) => Failed::of_client(Refusal::RequestTimeout),
                _ => Failed::of_client(Refusal::NoPlace),
            });
        }
        Ok(Err(NoPlace::Expired)) | Err(Side::Expired) => {
            return Err(late(exchange, deadlines, began));
        }
        Err(side) => return Err(Failed::of_client(refusal_of(side))),
    };
    Err(Failed::of_server(Failure::Connect, refusal))
}

/// There is no connection in time, waited for since `began`.
fn late(exchange: &Exchange<'_>, deadlines: &Deadlines, began: u64) -> Failed {
    let now = Worker::now();
    match deadlines.expired(now) {
        Some(Timeout::Request) => {
            Failed::at_the_end(exchange.facts.started, began, now, Failure::Connect)
        }
        _ => Failed::of_server(Failure::Connect, Refusal::ConnectTimeout),
    }
}

/// A new connection to a server.
pub(super) async fn connect<F: Front>(
    exchange: &mut Exchange<'_>,
    front: &mut F,
    group: &Group,
    server: &Server,
    deadlines: &mut Deadlines,
) -> Result<Stream, Failed> {
    let preface = pool::preface(exchange, group);
    let began = Worker::now();
    deadlines.begin(Timeout::Connect, began);
    let until = deadlines.next().map_or(u64::MAX, |(at, _)| at);
    let stats = group.stats.of(exchange.conn.worker.index);
    let work = pool::connect(server, &preface);
    let connected = wait(exchange, front, until, work).await;
    exchange.facts.connect += Worker::now().saturating_sub(began);
    match connected {
        Ok(Ok(stream)) => {
            stats.connects.add(1);
            Ok(stream)
        }
        Ok(Err(_)) => {
            stats.connect_failures.add(1);
            Err(Failed::of_server(Failure::Connect, Refusal::ConnectFailed))
        }
        Err(Side::Expired) => {
            stats.connect_failures.add(1);
            Err(late(exchange, deadlines, began))
        }
        Err(side) => Err(Failed::of_client(refusal_of(side))),
    }
}
