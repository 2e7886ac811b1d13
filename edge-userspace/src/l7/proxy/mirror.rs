//! Copies of requests for another upstream, whose answers nobody gets.
//!
//! A copy is the head that a server of the original gets by HTTP/1, byte for byte, and its body. It is a task
//! of its own: the client's request neither waits for it nor hears of it. A request without a body
//! is copied before it is sent; one with a body when it is over, from what its connection still
//! holds of it.

use std::{
    cell::Cell,
    future::poll_fn,
    rc::Rc,
    sync::Arc,
    task::{Context, Poll, Waker},
    time::Duration,
};

use tokio::task::spawn_local;

use super::{
    back::ANSWERS,
    choice::hash_key,
    exchange::{Exchange, Seen},
    front::Front,
    group::{Group, Places, Server},
    link::{BodyError, Link},
    panics::Witness,
    pool,
    request_head::write_head,
    worker::{Current, Worker},
};
use crate::l7::{
    balance::Ask,
    head::{Framing, Request, Response},
    http1::{Asked, Chunked, parse_response, write},
    resilience::{Admission, Entry},
    route::{Mirror, Route},
    stats::{Mirrored, Shards},
};

/// Copies of a worker that may be under way at one time.
pub(super) const AT_ONCE: usize = 64;
/// Bytes of a body that is copied: as many lie in a connection's buffer behind a head of the same
/// size.
const BODY: usize = 16 * 1024;

/// A place among a worker's copies.
struct Place(Rc<Worker>);

impl Place {
    fn take(worker: &Rc<Worker>) -> Option<Self> {
        let taken: &Cell<usize> = &worker.mirrors;
        (taken.get() < AT_ONCE).then(|| {
            taken.set(taken.get() + 1);
            Self(worker.clone())
        })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.0.mirrors.set(self.0.mirrors.get() - 1);
    }
}

/// A copy on its way.
struct Copy {
    current: Rc<Current>,
    upstream: usize,
    counted: Arc<Shards<Mirrored>>,
    /// What the request is hashed by, if its upstream hashes.
    key: Option<u64>,
    asked: Asked,
    /// What a connection begins with, where it is that of one client.
    preface: Vec<u8>,
    /// Head and body.
    bytes: Vec<u8>,
    place: Place,
}

/// A copy that is to be made: its head, as a server of HTTP/1 gets it.
pub(super) struct Draft<'r> {
    mirror: &'r Mirror,
    head: Vec<u8>,
}

/// Whether a request is to be copied.
pub(super) fn draw<'r>(
    exchange: &Exchange<'_>,
    seen: &Seen<'_>,
    path: &[u8],
    route: &'r Route,
) -> Option<Draft<'r>> {
    let mirror = route.mirror.as_ref()?;
    let worker = &exchange.conn.worker;
    mirror.draws(worker.random()).then(|| {
        let mut head = worker.out();
        write_head(exchange, seen, path, route, &mut head);
        Draft { mirror, head }
    })
}

/// Before a request is sent: copies it if it has no body; gives the draft back if it is to be copied
/// when it is over ([`after`]).
pub(super) fn before<'r, F: Front>(
    exchange: &Exchange<'_>,
    front: &F,
    request: &Request,
    route: &Route,
    draft: Draft<'r>,
) -> Option<Draft<'r>> {
    if !request.framing.is_empty() {
        return Some(draft);
    }
    // What the shadow would switch to has no end.
    let copied = request.upgrade.is_none()
        && send(exchange, front, request, route, draft.mirror, |bytes| {
            bytes.extend_from_slice(&draft.head);
        });
    note_skipped(exchange, route, copied);
    exchange.conn.worker.give_out(draft.head);
    None
}

/// When a request with a body is over, as its client saw it: copies it if all of it is there still.
pub(super) fn after<F: Front>(
    exchange: &Exchange<'_>,
    front: &mut F,
    request: &Request,
    route: &Route,
    draft: Draft<'_>,
) {
    let is_small = exchange.facts.progress.up <= BODY as u64;
    let worker = &exchange.conn.worker;
    let mut body = worker.out();
    let copied = is_small
        && front.has_ended()
        && front.rewind(request.framing, exchange.listener.limits.body_bytes)
        && copy_body(front, request.framing, &mut body)
        && send(exchange, front, request, route, draft.mirror, |bytes| {
            bytes.extend_from_slice(&draft.head);
            bytes.extend_from_slice(&body);
        });
    worker.give_out(body);
    worker.give_out(draft.head);
    note_skipped(exchange, route, copied);
}

fn note_skipped(exchange: &Exchange<'_>, route: &Route, copied: bool) {
    let routes = &exchange.current.snapshot.routes;
    let of = routes.get(route.index).and_then(|r| r.mirrored.as_ref());
    if let (false, Some(of)) = (copied, of) {
        of.of(exchange.conn.worker.index).skipped.add(1);
    }
}

/// Appends a body that has come, framed anew; `false` if there is more to come.
fn copy_body<F: Front>(front: &mut F, framing: Framing, out: &mut Vec<u8>) -> bool {
    let is_chunked = framing == Framing::Chunked;
    // All of it is there: nobody is to be woken.
    let mut cx = Context::from_waker(Waker::noop());
    loop {
        match front.poll_body(&mut cx) {
            Poll::Ready(Ok(true)) => {
                let data = front.data();
                let n = data.len();
                if is_chunked {
                    write::chunk(out, n);
                    out.extend_from_slice(data);
                    write::chunk_end(out);
                } else {
                    out.extend_from_slice(data);
                }
                front.consume(n);
            }
            Poll::Ready(Ok(false)) => {
                if is_chunked {
                    let (trailers, of) = front.trailers();
                    write::last_chunk(out, of, trailers);
                }
                return true;
            }
            Poll::Ready(Err(_)) | Poll::Pending => return false,
        }
    }
}

/// Sends a copy on its way; `false` if there is no room for it.
fn send<F: Front>(
    exchange: &Exchange<'_>,
    front: &F,
    request: &Request,
    route: &Route,
    mirror: &Mirror,
    fill: impl FnOnce(&mut Vec<u8>),
) -> bool {
    let (current, worker) = (exchange.current, &exchange.conn.worker);
    let snapshot = &current.snapshot;
    let counted = snapshot.routes.get(route.index);
    let (Some(group), Some(counted), Some(place)) = (
        snapshot.groups.get(mirror.upstream),
        counted.and_then(|r| r.mirrored.clone()),
        Place::take(worker),
    ) else {
        return false;
    };
    let mut bytes = worker.out();
    fill(&mut bytes);
    spawn_local(run(Copy {
        current: current.clone(),
        upstream: mirror.upstream,
        counted,
        key: hash_key(exchange, front, request, group),
        asked: Asked {
            method: request.method,
            upgrade: false,
        },
        preface: pool::preface(exchange, group),
        bytes,
        place,
    }));
    true
}

async fn run(copy: Copy) {
    let worker = copy.place.0.clone();
    let _witness = Witness(worker.clone(), "a copy of a request");
    #[cfg(test)]
    worker.panics.strike(worker.index, super::panics::At::Copy);
    let done = match copy.current.snapshot.groups.get(copy.upstream) {
        Some(group) => under_way(&copy, &worker, group).await,
        None => None,
    };
    let counted = copy.counted.of(worker.index);
    match done {
        Some(true) => counted.sent.add(1),
        Some(false) => counted.failed.add(1),
        None => counted.skipped.add(1),
    }
    worker.give_out(copy.bytes);
}

/// Whether it was answered; `None` if its upstream has no place for it, or is left alone.
async fn under_way(copy: &Copy, worker: &Rc<Worker>, group: &Group) -> Option<bool> {
    let _permit = match group
        .places
        .as_ref()
        .map(|Places { bulkhead, .. }| bulkhead.enter())
    {
        None => None,
        Some(Entry::Admitted(permit)) => Some(permit),
        Some(Entry::Full | Entry::Queued(_)) => return None,
    };
    let admission: Option<Admission<'_>> = match &group.breaker {
        Some(breaker) => Some(breaker.admit(Worker::now()).ok()?),
        None => None,
    };
    let work = ask(copy, worker, group);
    let status = within(group.config.timeouts.request, work).await.flatten();
    if let Some(admission) = admission {
        match status {
            Some(..500) => admission.succeeded(),
            _ => admission.failed(Worker::now()),
        }
    }
    Some(status.is_some())
}

async fn within<T>(time: Duration, work: impl Future<Output = T>) -> Option<T> {
    tokio::time::timeout(time, work).await.ok()
}

/// Sends it to a server, and reads the answer to its end; its status.
async fn ask(copy: &Copy, worker: &Rc<Worker>, group: &Group) -> Option<u16> {
    let position = {
        let mut picker = copy.current.pickers.get(copy.upstream)?.borrow_mut();
        picker.pick(&Ask {
            now: Worker::now(),
            random: worker.random(),
            key: copy.key,
            tried: &[],
        })?
    };
    let server = group.servers.get(position)?;
    let _active = group.pick.server(position)?.enter();
    let pooled = (!group.is_per_client())
        .then(|| worker.pools.take(server.number))
        .flatten();
    if let Some(stream) = pooled {
        let status = converse(copy, worker, group, server, stream).await;
        // It may have hung up meanwhile, or have begun.
        if status.is_some() || !copy.asked.method.is_idempotent() {
            return status;
        }
    }
    let stats = group.stats.of(worker.index);
    let connecting = pool::connect(server, &copy.preface);
    let Some(Ok(stream)) = within(group.config.timeouts.connect, connecting).await else {
        stats.connect_failures.add(1);
        return None;
    };
    stats.connects.add(1);
    converse(copy, worker, group, server, stream).await
}

async fn converse(
    copy: &Copy,
    worker: &Rc<Worker>,
    group: &Group,
    server: &Server,
    stream: super::stream::Stream,
) -> Option<u16> {
    let mut out = worker.out();
    out.extend_from_slice(&copy.bytes);
    let mut link = Link::new(stream, worker.server_buffers.take(), out);
    let mut response = Response::default();
    let read = exchange_of(copy.asked, &mut link, &mut response).await;
    let can_stay = read.is_ok()
        && response.keep_alive
        && !link.has_out()
        && !link.next_message()
        && !group.is_per_client();
    let (stream, out) = link.into_parts();
    worker.give_out(out);
    if can_stay {
        let now = Worker::now();
        worker.pools.put((group, server), stream, now);
    }
    read.ok().map(|()| response.status)
}

/// Writes what waits, and reads an answer to its end, of which nothing is kept.
async fn exchange_of(
    asked: Asked,
    link: &mut Link,
    response: &mut Response,
) -> Result<(), BodyError> {
    let broken = |_| BodyError::Broken;
    // Also behind the head of an answer: a server may want all of a request to end that. Its failure
    // shows when the answer is read.
    let send = |cx: &mut Context<'_>, link: &mut Link| {
        let _ = link.has_out() && link.poll_drain(cx).is_pending();
    };
    poll_fn(|cx| {
        send(cx, link);
        loop {
            match parse_response(link.bytes(), &ANSWERS, asked, response)? {
                Some(head) if response.is_interim() => {
                    link.skip(head);
                    response.reset();
                }
                Some(head) => {
                    link.begin(head, response.framing, Chunked::response());
                    link.let_go();
                    return Poll::Ready(Ok(()));
                }
                None => match link.poll_fill(cx).map_err(broken)? {
                    Poll::Ready(0) => return Poll::Ready(Err(BodyError::Broken)),
                    Poll::Ready(_) => {}
                    Poll::Pending => return Poll::Pending,
                },
            }
        }
    })
    .await?;
    let body = |cx: &mut Context<'_>, link: &mut Link| {
        send(cx, link);
        link.poll_body(cx)
    };
    while poll_fn(|cx| body(cx, link)).await? {
        let n = link.data().len();
        link.consume(n);
    }
    Ok(())
}
