//! A request that an upstream answers: its turn, a server, and another one if that fails.

use std::{future::poll_fn, sync::Arc, task::Poll};

use super::{
    back::{Back, NoAnswer},
    choice::{hash_key, session},
    conn::arm,
    exchange::{Exchange, Next},
    front::Front,
    group::{Group, Server, nanoseconds},
    h2::{AnswerStream, NotSent},
    link::{BodyError, Link},
    relay::{self, Side},
    request_head::{Head, begin_span},
    waits::{Failed, connect, gone, place, refusal_of, shared, wait},
    worker::{Scratch, Worker},
};
use crate::{
    config::proxy::upstream,
    l7::{
        balance::Ask,
        head::{Framing, Known, Request, Response, Version, decimal},
        http1::{Asked, write},
        refusal::Refusal,
        resilience::{
            Admission, Deadlines, Failure, Open, Replay, RetryPolicy, Sample, Timeout, Timeouts,
        },
        route::{Route, Target},
    },
};

/// Tries of a request that are remembered, so as to go elsewhere.
const TRIED: usize = 8;
/// Slowest bodies are not looked at before so many nanoseconds.
const RATE_GRACE: u64 = 5_000_000_000;

/// Of the interim answers to a request as many go on as take so many bytes together: a client that
/// reads none has them lie here.
const INTERIM_KEPT: usize = 64 << 10;
/// Beyond so many bytes of them, nobody waits for the answer behind them.
const INTERIM_MOST: usize = 1 << 20;
/// Bytes that an interim answer and each of its fields take beside their own.
const INTERIM_EACH: usize = 64;

/// Has the request answered by a server of an upstream. `head` is its head as the server gets it.
pub(super) async fn run<F: Front>(
    exchange: &mut Exchange<'_>,
    front: &mut F,
    scratch: &mut Scratch,
    route: &Route,
    (target, group): (&Target, &Arc<Group>),
    head: &mut Head,
) -> Result<Next, Refusal> {
    let routes = &exchange.current.snapshot.routes;
    let of_route = routes.get(route.index).ok_or(Refusal::Internal)?;
    exchange.facts.upstream = Some(target.upstream);
    let timeouts = timeouts(&target.timeouts);
    let mut deadlines = exchange.deadlines(timeouts);
    let stats = group.stats.of(exchange.conn.worker.index);
    let queue = async {
        let route = place(exchange, front, of_route.places.as_deref(), &deadlines).await?;
        let group = place(exchange, front, group.places.as_ref(), &deadlines).await?;
        Ok((route, group))
    };
    let places = queue.await;
    if exchange.facts.queued > 0 {
        stats.queued.add(1);
    }
    if matches!(places, Err(Refusal::Overloaded | Refusal::QueueTimeout)) {
        stats.overflows.add(1);
    }
    let _places = places?;
    let now = Worker::now();
    let mut admission = match &group.breaker {
        Some(breaker) => match breaker.admit(now) {
            Ok(admission) => Some(admission),
            Err(Open { left }) => {
                stats.broken.add(1);
                exchange.facts.retry_after = Some(left.div_ceil(1_000_000_000).max(1));
                return Err(Refusal::BreakerOpen);
            }
        },
        None => None,
    };
    group.budget.deposit(1, now);
    let answered = tries(
        exchange,
        front,
        scratch,
        route,
        target,
        group,
        head,
        &mut admission,
        &mut deadlines,
    )
    .await;
    if let Some(admission) = admission {
        match &answered {
            Err(
                Refusal::ClientGone
                | Refusal::BodyTimeout
                | Refusal::BodyRate
                | Refusal::Malformed(_)
                | Refusal::NoPlace
                | Refusal::Internal,
            ) => {}
            // Nobody was asked.
            Err(Refusal::NoServer) if exchange.facts.tries == 0 => {}
            Err(_) if exchange.facts.says_nothing => {}
            _ => admission.failed(Worker::now()),
        }
    }
    answered
}

/// Tells how a server did.
fn report(group: &Group, position: usize, sample: Sample) {
    let Some(outliers) = &group.outliers else {
        return;
    };
    if let Some(until) = outliers.report(position, sample, Worker::now()) {
        group.pick.eject(position, until);
    }
}

fn timeouts(of: &upstream::Timeouts) -> Timeouts {
    Timeouts {
        connect: nanoseconds(of.connect),
        first_byte: nanoseconds(of.first_byte),
        between_bytes: nanoseconds(of.between_bytes),
        request: nanoseconds(of.request),
    }
}

/// Tries servers until one answers, or none is left to be tried.
#[expect(clippy::too_many_arguments, reason = "all of a request meets here")]
async fn tries<F: Front>(
    exchange: &mut Exchange<'_>,
    front: &mut F,
    scratch: &mut Scratch,
    route: &Route,
    target: &Target,
    group: &Arc<Group>,
    head: &mut Head,
    admission: &mut Option<Admission<'_>>,
    deadlines: &mut Deadlines,
) -> Result<Next, Refusal> {
    let worker = exchange.conn.worker.clone();
    let request = &scratch.request;
    let framing = request.framing;
    let may_repeat = request.method.is_idempotent() || target.retries.non_idempotent;
    let policy = RetryPolicy {
        tries: target.retries.tries,
        base: nanoseconds(target.retries.base),
    };
    let session = session(exchange, front, request, group);
    let key = hash_key(exchange, front, request, group);
    let mut tried = [0; TRIED];
    let stats = group.stats.of(worker.index);
    loop {
        let already = (exchange.facts.tries as usize).min(TRIED);
        let ask = Ask {
            now: Worker::now(),
            random: worker.random(),
            key,
            tried: &tried[..already],
        };
        let picked = exchange
            .current
            .pickers
            .get(target.upstream)
            .and_then(|picker| {
                let mut picker = picker.borrow_mut();
                session
                    .and_then(|id| picker.resume(id, &ask))
                    .or_else(|| picker.pick(&ask))
            });
        let Some((position, server)) = picked.and_then(|at| Some((at, group.servers.get(at)?)))
        else {
            return Err(Refusal::NoServer);
        };
        let Some(balanced) = group.pick.server(position) else {
            return Err(Refusal::NoServer);
        };
        if let Some(slot) = tried.get_mut(already) {
            *slot = position;
        }
        exchange.facts.tries += 1;
        exchange.facts.server = Some(position);
        if exchange.facts.ids.span != 0 {
            begin_span(exchange.facts, position, head, worker.random() | 1);
        }
        let active = balanced.enter();
        let connect = std::mem::take(&mut exchange.facts.connect);
        exchange.facts.waited = 0;
        let asked = ask_server(exchange, front, scratch, group, position, head, deadlines).await;
        let took = match head {
            Head::Http1(_) => exchange.facts.connect.saturating_add(exchange.facts.waited),
            // Who waits for a place waits for others.
            Head::Http2(_) => exchange.facts.waited,
        };
        exchange.facts.connect += connect;
        // Nor of the others, to the breaker.
        exchange.facts.says_nothing |= matches!(&asked, Err(failed) if failed.failure.is_none());
        if let Some(told) = exchange.facts.told.last_mut() {
            told.outcome = Some(match &asked {
                Ok(answer) => Ok(answer.status),
                Err(failed) => Err(failed.refusal),
            });
            told.ended = Some(Worker::now());
        }
        // A failure of the client says nothing of the server.
        let failure = match &asked {
            Ok(answer) => Some(Failure::Status(answer.status)),
            Err(failed) => failed.failure,
        };
        let mut sample = None;
        if let (Some(failure), false) = (failure, exchange.facts.says_nothing) {
            let error = !matches!(failure, Failure::Status(status) if status < 500);
            let told = Sample { error, took };
            match &asked {
                // A good answer can still break.
                Ok(answer) if !error && !answer.is_there(&scratch.response) => sample = Some(told),
                _ => report(group, position, told),
            }
        }
        let again = match failure {
            None => None,
            Some(failure) => {
                let replay = Replay {
                    may_repeat,
                    body: front.is_whole(),
                };
                let now = Worker::now();
                let left = deadlines.left(now);
                let tries = exchange.facts.tries;
                policy
                    .next(
                        replay,
                        failure,
                        tries,
                        worker.random(),
                        left,
                        (&group.budget, now),
                    )
                    .inspect_err(|no| {
                        if *no == crate::l7::resilience::NoRetry::Budget {
                            stats.retries_denied.add(1);
                        }
                    })
                    .ok()
            }
        };
        if let Some(wait_ns) = again
            && front.rewind(framing, exchange.listener.limits.body_bytes)
        {
            drop((active, asked));
            stats.retries.add(1);
            exchange.facts.progress = relay::Progress::default();
            deadlines.begin(Timeout::Request, Worker::now());
            if wait_ns > 0 {
                let until = deadlines.next().map_or(u64::MAX, |(at, _)| at);
                let pause = tokio::time::sleep(std::time::Duration::from_nanos(wait_ns));
                match wait(exchange, front, until, pause).await {
                    Ok(()) => {}
                    Err(Side::Expired) => return Err(Refusal::RequestTimeout),
                    Err(side) => return Err(refusal_of(side)),
                }
            }
            continue;
        }
        let answer = match asked {
            Ok(answer) => answer,
            Err(failed) => return Err(failed.refusal),
        };
        // The rest of the answer belongs to it.
        if let Some(told) = exchange.facts.told.last_mut() {
            told.ended = None;
        }
        // What the breaker wants to know is known: a download or a tunnel may take for ever.
        if let Some(admission) = admission.take() {
            if answer.status < 500 {
                admission.succeeded();
            } else {
                admission.failed(Worker::now());
            }
        }
        let sticky = group
            .sticky
            .as_ref()
            .filter(|_| session != Some(balanced.id()));
        let cookie = sticky.map(|(name, signer)| {
            let ttl = group.config.sticky.as_ref().map_or(0, |s| s.ttl.as_secs());
            let ends = worker.unix_ms(Worker::now()) / 1000 + ttl;
            let value = signer.mint(balanced.id(), ends);
            let mut text = Vec::with_capacity(name.len() + value.len() + 64);
            text.extend_from_slice(name);
            text.push(b'=');
            text.extend_from_slice(&value);
            text.extend_from_slice(b"; Path=/; HttpOnly; SameSite=Lax; Max-Age=");
            decimal::write(&mut text, ttl);
            if exchange.conn.is_secure {
                text.extend_from_slice(b"; Secure");
            }
            text
        });
        let delivered = deliver(
            exchange,
            front,
            scratch,
            route,
            group,
            server,
            answer,
            cookie.as_deref(),
            deadlines,
        )
        .await;
        if let Some(mut sample) = sample {
            sample.error = delivered.is_err();
            match &delivered {
                Ok(_) => report(group, position, sample),
                Err(Refusal::AnswerBroke | Refusal::AnswerTimeout)
                    if !exchange.facts.says_nothing =>
                {
                    report(group, position, sample);
                }
                // It was not seen to its end, for another reason.
                Err(_) => {}
            }
        }
        return delivered;
    }
}

/// An answer whose head has come.
struct Answer {
    status: u16,
    /// Bytes of its head.
    head: usize,
    back: Back,
}

impl Answer {
    /// Whether all of it that can be waited for is there already.
    fn is_there(&self, response: &Response) -> bool {
        match response.framing {
            Framing::None => true,
            Framing::Length(length) => {
                let there = self.back.bytes().len().saturating_sub(self.head);
                there as u64 >= length
            }
            Framing::Chunked | Framing::UntilClose => false,
        }
    }
}

/// Sends the request to a server, and waits for the head of its answer.
async fn ask_server<F: Front>(
    exchange: &mut Exchange<'_>,
    front: &mut F,
    scratch: &mut Scratch,
    group: &Arc<Group>,
    position: usize,
    head: &Head,
    deadlines: &mut Deadlines,
) -> Result<Answer, Failed> {
    let worker = exchange.conn.worker.clone();
    let mut is_again = false;
    exchange.facts.says_nothing = false;
    loop {
        let request = &scratch.request;
        let (mut back, is_reused) = match head {
            Head::Http1(head) => {
                let Some(server) = group.servers.get(position) else {
                    return Err(Failed::of_client(Refusal::Internal));
                };
                let pooled = (!group.is_per_client())
                    .then(|| worker.pools.take(server.number))
                    .flatten();
                let is_reused = pooled.is_some();
                let stream = match pooled {
                    Some(stream) => stream,
                    // Apart: a request is as large as the largest thing that it may have to do.
                    None => Box::pin(connect(exchange, front, group, server, deadlines)).await?,
                };
                let mut out = worker.out();
                out.extend_from_slice(head);
                let mut link = Link::new(stream, worker.server_buffers.take(), out);
                link.send_body(request.framing);
                (Back::Http1(link), is_reused)
            }
            Head::Http2(head) => {
                let place = Box::pin(shared(exchange, front, group, position, deadlines)).await?;
                let is_reused = place.is_reused();
                let (head, out) = ((**head).clone(), worker.out());
                match AnswerStream::new(place, head, request.framing, request.method, out) {
                    Ok(stream) => (Back::Http2(Box::new(stream)), is_reused),
                    // Nobody gets a place on that one any more.
                    Err(NotSent::Gone) => continue,
                    Err(NotSent::Invalid) => return Err(Failed::of_client(Refusal::Internal)),
                }
            }
        };
        let interim = exchange.facts.interim;
        match converse(exchange, front, scratch, &mut back, deadlines).await {
            Ok(head) => {
                return Ok(Answer {
                    status: scratch.response.status,
                    head,
                    back,
                });
            }
            Err(mut failed) => {
                // Whoever sends an interim answer has begun with the request.
                let has_begun = exchange.facts.interim > interim;
                if has_begun && failed.failure == Some(Failure::Unprocessed) {
                    failed.failure = Some(Failure::Broken);
                }
                // Once: of connections that are shared there are always some that had others.
                let is_shared = matches!(back, Back::Http2(_));
                let is_lost = back.is_lost() && !has_begun && !(is_again && is_shared);
                exchange.facts.says_nothing |= back.is_echo();
                let (_, out) = back.into_parts();
                worker.give_out(out);
                // The server hung up before the request came, which is nobody's fault.
                let request = &scratch.request;
                let is_stale = is_lost
                    && match failed.failure {
                        Some(Failure::Broken) => is_reused && request.method.is_idempotent(),
                        // Of a connection that is shared, the server has said so.
                        failure => {
                            failure == Some(Failure::Unprocessed) && (is_reused || is_shared)
                        }
                    };
                if is_stale && front.rewind(request.framing, exchange.listener.limits.body_bytes) {
                    exchange.facts.progress = relay::Progress::default();
                    is_again = true;
                    continue;
                }
                return Err(failed);
            }
        }
    }
}

/// Sends the request, and reads the head of the answer; how many bytes it has.
async fn converse<F: Front>(
    exchange: &mut Exchange<'_>,
    front: &mut F,
    scratch: &mut Scratch,
    back: &mut Back,
    deadlines: &mut Deadlines,
) -> Result<usize, Failed> {
    let Scratch {
        request, response, ..
    } = scratch;
    response.reset();
    let asked = Asked {
        method: request.method,
        upgrade: request.upgrade.is_some(),
    };
    let limits = &exchange.listener.config.limits;
    let (patience, rate) = (nanoseconds(limits.body_timeout), limits.min_rate);
    let (timer, facts) = (&exchange.conn.timer, &mut *exchange.facts);
    let router = &exchange.current.router;
    // Whoever sends its body without waiting needs no leave.
    let mut may_wait = request.expect_continue;
    let began = Worker::now();
    deadlines.begin(Timeout::Request, began);
    let end = deadlines.next().map_or(u64::MAX, |(at, _)| at);
    // By when more of its body must have come than so many bytes.
    let slowest = move |up: u64| match rate {
        0 => u64::MAX,
        rate => began
            .saturating_add(RATE_GRACE)
            .saturating_add(up.saturating_mul(1_000_000_000) / rate),
    };
    // How long the client has for the next piece.
    let next = move |up: u64, now: u64| now.saturating_add(patience).min(slowest(up));
    timer.set(end.min(next(0, began)));
    let mut is_flushed = false;
    let mut sent_at = None;
    // When the last of the body came that the server has taken.
    let mut moved_at = began;
    let talking = poll_fn(|cx| {
        if !facts.progress.sent {
            let before = facts.progress.up;
            match relay::poll_up(cx, front, back, &mut facts.progress.up) {
                Poll::Ready(Ok(())) => facts.progress.sent = true,
                // It may have said why before it hung up.
                Poll::Ready(Err(Side::Server)) => {
                    facts.progress.sent = true;
                    facts.progress.is_refused = true;
                }
                Poll::Ready(Err(e)) => return Poll::Ready(Err(e)),
                Poll::Pending if facts.progress.up > before => {
                    moved_at = Worker::now();
                    timer.set(end.min(next(facts.progress.up, moved_at)));
                }
                Poll::Pending => {}
            }
        }
        if std::mem::take(&mut may_wait) && !facts.progress.sent && facts.progress.up == 0 {
            front.go_on();
        }
        if facts.progress.sent && !is_flushed {
            // Its failure shows when the answer is read.
            is_flushed = back.poll_drain(cx).is_ready();
            if is_flushed {
                let now = Worker::now();
                sent_at = Some(now);
                deadlines.begin(Timeout::FirstByte, now);
                arm(timer, deadlines);
            }
        }
        loop {
            if front.has_out()
                && let Poll::Ready(Err(_)) = front.poll_drain(cx)
            {
                return Poll::Ready(Err(gone()));
            }
            let head = match back.poll_head(cx, asked, response) {
                Poll::Ready(Ok(head)) if response.is_interim() => head,
                Poll::Ready(head) => return Poll::Ready(Ok(head)),
                Poll::Pending => break,
            };
            facts.interim += head + INTERIM_EACH * (1 + response.fields.len());
            if facts.interim > INTERIM_MOST {
                return Poll::Ready(Ok(Err(NoAnswer::broken(Refusal::BadAnswer))));
            }
            if facts.interim <= INTERIM_KEPT && takes_interim(request, response.status) {
                let route = facts.route.map(|at| router.route(at));
                begin_head(front, response, back.bytes(), route);
                front.end_interim();
            }
            back.pass_over(head);
            response.reset();
        }
        if is_flushed && front.has_ended() && front.poll_gone(cx).is_ready() {
            return Poll::Ready(Err(gone()));
        }
        Poll::Pending
    });
    let talked = timer.within(talking).await;
    let now = Worker::now();
    facts.first_byte = now.saturating_sub(began);
    facts.waited = sent_at.map_or(0, |at| now.saturating_sub(at));
    match talked {
        Ok(Ok(Ok(head))) => Ok(head),
        Ok(Ok(Err(no))) => Err(Failed::of_server(no.failure, no.refusal)),
        Ok(Err(Side::Client(BodyError::Reject(reject)))) => {
            Err(Failed::of_client(Refusal::Malformed(reject)))
        }
        Ok(Err(Side::Client(BodyError::Broken))) => Err(Failed::of_client(Refusal::ClientGone)),
        Ok(Err(Side::Server)) => Err(Failed::of_server(Failure::Broken, Refusal::ServerBroke)),
        Ok(Err(Side::Expired)) | Err(_) => {
            // What has come of the body has been sent: more of it is the client's to send.
            let is_client = !facts.progress.sent && front.data().is_empty();
            if !is_client {
                back.doubt();
            }
            let is_whole_time = deadlines.expired(now) == Some(Timeout::Request);
            Err(match (is_client, is_whole_time) {
                (true, true) => {
                    facts.says_nothing = true;
                    Failed::of_client(Refusal::RequestTimeout)
                }
                (true, false) if slowest(facts.progress.up) <= now => {
                    Failed::of_client(Refusal::BodyRate)
                }
                (true, false) => Failed::of_client(Refusal::BodyTimeout),
                (false, true) => {
                    let since = sent_at.unwrap_or(moved_at);
                    Failed::at_the_end(facts.started, since, now, Failure::Silent)
                }
                (false, false) => Failed::of_server(Failure::Silent, Refusal::AnswerTimeout),
            })
        }
    }
}

/// Whether the client gets an interim answer: one of HTTP/1.0 knows none (RFC 9110, section 15.2),
/// and whoever waits for 100 has got it from here.
fn takes_interim(request: &Request, status: u16) -> bool {
    request.version != Version::Http10 && !(status == 100 && request.expect_continue)
}

/// Begins an answer to the client with what the server's has, but for what the route drops. Tells
/// whether the server has dated it.
fn begin_head<F: Front>(
    front: &mut F,
    response: &Response,
    bytes: &[u8],
    route: Option<&Route>,
) -> bool {
    let reason = match response.reason.of(bytes) {
        b"" => write::reason(response.status).as_bytes(),
        reason => reason,
    };
    front.begin(response.status, reason);
    let rules = route.map(|route| &route.response_headers);
    let rules = rules.filter(|rules| !rules.is_empty());
    let mut is_dated = false;
    for field in &response.fields {
        let name = field.name.of(bytes);
        is_dated |= field.known == Known::Date;
        let is_dropped = || rules.is_some_and(|rules| rules.drops(name));
        if field.kept && !field.known.is_framing() && !is_dropped() {
            front.field(name, field.value.of(bytes));
        }
    }
    is_dated
}

/// Brings an answer to the client.
#[expect(clippy::too_many_arguments, reason = "all of a request meets here")]
async fn deliver<F: Front>(
    exchange: &mut Exchange<'_>,
    front: &mut F,
    scratch: &Scratch,
    route: &Route,
    group: &Group,
    server: &Server,
    answer: Answer,
    cookie: Option<&[u8]>,
    deadlines: &mut Deadlines,
) -> Result<Next, Refusal> {
    let Scratch {
        request, response, ..
    } = scratch;
    let Answer { head, mut back, .. } = answer;
    let is_upgrade = response.status == 101;
    let is_http2 = request.version == Version::Http2;
    let body = match response.framing.towards(request.version) {
        // Trailers may follow, whatever length was told.
        Framing::Length(1..) if is_http2 && response.version == Version::Http2 => Framing::Chunked,
        framing => framing,
    };
    let keep = request.keep_alive
        && !exchange.is_last
        && body != Framing::UntilClose
        // What is left of its body would be taken for the next request.
        && front.has_ended();
    let bytes = back.bytes();
    let bytes = bytes.get(..head).unwrap_or(bytes);
    exchange.facts.status = response.status;
    let is_dated = begin_head(front, response, bytes, Some(route)) || is_upgrade;
    for (name, value) in route.response_headers.added() {
        front.field(name, value);
    }
    if let Some(cookie) = cookie {
        front.field(b"Set-Cookie", cookie);
    }
    if !is_dated {
        exchange.date(front);
    }
    let told = match (body, response.declared) {
        // With 1xx and 204 there is none to be told of (RFC 9110, section 8.6).
        (Framing::None, Some(length)) if response.status > 204 || response.status == 200 => {
            Framing::Length(length)
        }
        (Framing::None, _) => Framing::None,
        // The end is told by the stream's, and no other length than the server's own.
        (_, declared) if is_http2 => declared.map_or(Framing::None, Framing::Length),
        (body, _) => body,
    };
    let upgrade = response.upgrade.filter(|_| is_upgrade);
    let upgrade = upgrade.map(|span| span.of(bytes));
    front.end(body, told, exchange.then(request, keep, upgrade));
    let (timer, facts) = (&exchange.conn.timer, &mut *exchange.facts);
    let ended = if is_upgrade {
        let patience = deadlines_of_tunnel(exchange.listener, group);
        relay::tunnel(timer, patience, front, &mut back, &mut facts.progress).await
    } else {
        relay::answer((timer, deadlines), front, &mut back, &mut facts.progress).await
    };
    if ended.is_ok() {
        front.complete();
    }
    let now = Worker::now();
    let worker = &exchange.conn.worker;
    // Something is there that the client does not take.
    let is_stuck = front.has_out() || !back.data().is_empty();
    // More of the request is the client's to send: a server may wait for that, or have hung up
    // on it.
    let is_owed = !facts.progress.sent && front.data().is_empty();
    if matches!(ended, Err(Side::Expired)) && !is_stuck && !is_owed {
        back.doubt();
    }
    facts.says_nothing |= match ended {
        Err(Side::Server) => !facts.progress.sent || facts.progress.is_refused,
        _ => is_owed,
    };
    let is_whole = ended.is_ok() && !is_upgrade;
    let can_stay = is_whole
        && response.keep_alive
        && facts.progress.sent
        && !facts.progress.is_refused
        && !group.is_per_client()
        && back.can_stay();
    let (stream, out) = back.into_parts();
    worker.give_out(out);
    if let Some(stream) = stream.filter(|_| can_stay) {
        worker.pools.put((group, server), stream, now);
    }
    match ended {
        Ok(()) if keep && is_whole && front.has_ended() => Ok(Next::KeepAlive),
        Ok(()) => Ok(Next::Close),
        Err(Side::Client(_)) => Err(Refusal::ClientGone),
        Err(Side::Server) => Err(Refusal::AnswerBroke),
        Err(Side::Expired) if is_upgrade => Ok(Next::Close),
        Err(Side::Expired) => Err(match deadlines.expired(now) {
            Some(Timeout::Request) => Refusal::RequestTimeout,
            _ if is_stuck => Refusal::ClientGone,
            _ => Refusal::AnswerTimeout,
        }),
    }
}

/// How long a tunnel may be silent, nanoseconds.
fn deadlines_of_tunnel(listener: &super::snapshot::Listener, group: &Group) -> u64 {
    let longest = listener.config.limits.idle_timeout;
    nanoseconds(longest.max(group.config.timeouts.between_bytes))
}
