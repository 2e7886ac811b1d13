//! One request, from its head to the last byte of its answer.

use std::{future::poll_fn, io, net::SocketAddr, rc::Rc, task::Poll};

use super::{
    conn::{Conn, arm},
    forward,
    front::{Front, Then},
    ids::Ids,
    mirror,
    relay::Progress,
    request_head::Head,
    snapshot::Listener,
    spans,
    worker::{Current, Scratch, Worker},
};
use crate::l7::{
    access_log, forwarded,
    head::{Framing, Known, Method, Reject, Request, Version, check},
    http1::write,
    refusal::{self, Refusal},
    resilience::{Deadlines, Timeouts},
    route::{self, Action, View},
    stats::Requests,
};
use crate::{config::proxy::listener::ClientHeader, uri};

/// What becomes of a connection after a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Next {
    /// Another request may follow.
    KeepAlive,
    /// It ends.
    Close,
}

/// What is told of a request when it is over. Times are nanoseconds.
#[derive(Default)]
pub(super) struct Facts {
    /// When its first byte came.
    pub(super) started: u64,
    pub(super) status: u16,
    pub(super) progress: Progress,
    pub(super) queued: u64,
    pub(super) connect: u64,
    pub(super) first_byte: u64,
    /// What the interim answers take, bytes.
    pub(super) interim: usize,
    /// How long the server of the last try had the whole request before the head of its answer
    /// came.
    pub(super) waited: u64,
    pub(super) tries: u32,
    /// What became of each of them, if the request is recorded.
    pub(super) told: Vec<Try>,
    /// Whether the last failure says nothing of the server: another request has told already of
    /// the connection, or the client took the time.
    pub(super) says_nothing: bool,
    /// After how many seconds the client should come back, if that is known.
    pub(super) retry_after: Option<u64>,
    pub(super) refusal: Option<Refusal>,
    /// Positions of its route, its upstream, and of the server in it.
    pub(super) route: Option<usize>,
    pub(super) upstream: Option<usize>,
    pub(super) server: Option<usize>,
    pub(super) client: Option<SocketAddr>,
    /// Its id and its trace.
    pub(super) ids: Ids,
}

/// A server that was asked. Times are nanoseconds.
pub(super) struct Try {
    /// The span that it hears of.
    pub(super) span: u64,
    /// Its position in the upstream.
    pub(super) server: usize,
    pub(super) begin: u64,
    /// The status of its answer, or why there is none; `None`: it was not waited for to the end.
    pub(super) outcome: Option<Result<u16, Refusal>>,
    /// When that was over; `None`: it goes on, or ended as the request did.
    pub(super) ended: Option<u64>,
}

/// The request as the router sees it.
pub(super) struct Seen<'a> {
    pub(super) request: &'a Request,
    pub(super) bytes: &'a [u8],
    pub(super) host: &'a [u8],
    pub(super) path: &'a [u8],
    /// Where what the request says of its way here is believed.
    believed: Option<ClientHeader>,
}

impl<'a> Seen<'a> {
    /// Host and path are in the buffers where they are not what the client wrote. `believed` is
    /// the field of a proxy that is trusted; `None` if it came by none.
    pub(super) fn new(
        (request, believed): (&'a Request, Option<ClientHeader>),
        bytes: &'a [u8],
        host: &'a mut Vec<u8>,
        path: &'a mut Vec<u8>,
    ) -> Result<Self, Refusal> {
        Ok(Self {
            host: uri::host::authority(request.authority.whole.of(bytes), host)
                .map_or(&[], |authority| authority.host),
            path: if request.asterisk {
                b"*"
            } else {
                uri::path::normalise(request.path(bytes), path).map_err(|_| Refusal::Path)?
            },
            request,
            bytes,
            believed,
        })
    }

    /// Whether a test holds for a protocol to which the client wants to switch, in lower case: no
    /// two of them differ by it (RFC 9110, section 7.8).
    fn any_protocol(&self, mut test: impl FnMut(&[u8]) -> bool) -> bool {
        let wanted = self.request.upgrade.map(|span| span.of(self.bytes));
        check::list(wanted.unwrap_or_default()).any(|protocol| {
            let mut room = [0; 64];
            match room.get_mut(..protocol.len()) {
                Some(lower) => {
                    lower.copy_from_slice(protocol);
                    lower.make_ascii_lowercase();
                    test(lower)
                }
                // Nobody's name is as long.
                None => test(protocol),
            }
        })
    }

    /// Whether the request was to come as far as this, and gets an empty answer instead of a
    /// server's.
    ///
    /// # Errors
    /// [`Refusal::Trace`] when that answer would have to say what came.
    pub(super) fn ends_here(&self) -> Result<bool, Refusal> {
        match self.request.max_forwards(self.bytes) {
            Some(0) if self.request.method == Method::Trace => Err(Refusal::Trace),
            left => Ok(left == Some(0)),
        }
    }

    /// Writes where the same is found by HTTPS.
    pub(super) fn write_https(&self, location: &mut Vec<u8>) {
        let (bytes, request) = (self.bytes, self.request);
        location.extend_from_slice(b"https://");
        location.extend_from_slice(request.host(bytes));
        // `OPTIONS *` is about the server as a whole.
        if !request.asterisk {
            location.extend_from_slice(request.path(bytes));
        }
        if let Some(query) = request.query(bytes) {
            location.push(b'?');
            location.extend_from_slice(query);
        }
    }
}

impl View for Seen<'_> {
    fn host(&self) -> &[u8] {
        self.host
    }

    fn method(&self) -> &[u8] {
        self.request.method_name.of(self.bytes)
    }

    fn path(&self) -> &[u8] {
        self.path
    }

    fn query(&self) -> &[u8] {
        self.request.query(self.bytes).unwrap_or_default()
    }

    fn any_header(&self, name: &str, mut test: impl FnMut(&[u8]) -> bool) -> bool {
        match name {
            // There is one, be it a field or not.
            "host" => {
                let authority = self.request.authority.whole.of(self.bytes);
                return !authority.is_empty() && test(authority);
            }
            // It goes on where the client may switch.
            "upgrade" => return self.any_protocol(test),
            _ => {}
        }
        // What ends here, or is said of the way here by anybody, counts for nothing. Id and trace
        // are those of the client, of which servers get others.
        let fields = self
            .request
            .fields
            .iter()
            .filter(|field| field.kept && forwarded::is_believed(self.believed, field.known));
        fields
            .filter(|field| {
                field
                    .name
                    .of(self.bytes)
                    .eq_ignore_ascii_case(name.as_bytes())
            })
            .map(|field| field.value.of(self.bytes))
            .any(test)
    }
}

/// Answers a request. `is_last` tells that the connection ends with it.
pub(super) async fn run<F: Front>(
    conn: &Conn,
    front: &mut F,
    scratch: &mut Scratch,
    started: u64,
    is_last: bool,
) -> Next {
    let Some(current) = conn.worker.current() else {
        return Next::Close;
    };
    let mut facts = Facts {
        started,
        client: Some(conn.peer),
        ids: Ids::new(conn, &current, front, &scratch.request),
        ..Facts::default()
    };
    // A listener that is gone has no requests any more but this one.
    let named = current.snapshot.listener_named(&conn.listener.config.name);
    let is_last = is_last || named.is_none();
    // Not kept: all processors count who does.
    let listener = named.map_or(&conn.listener, |(_, listener)| listener);
    let position = named.map(|(position, _)| position);
    let is_trusted = conn.is_trusted_by(listener);
    if is_trusted {
        facts.client = Some(client(conn, listener, front, &scratch.request));
    }
    let mut exchange = Exchange {
        conn,
        current: &current,
        listener,
        believed: is_trusted.then_some(listener.config.client_header),
        facts: &mut facts,
        is_last,
    };
    let outcome = match position {
        Some(position) => exchange.answer(position, front, scratch).await,
        None => Err(Refusal::NoRoute),
    };
    let next = match outcome {
        Ok(next) => next,
        Err(refusal) => exchange.refused(front, scratch, refusal).await,
    };
    settle(conn, &current, listener, front, &scratch.request, &facts);
    next
}

/// Answers what is no request.
pub(super) async fn refuse<F: Front>(
    conn: &Conn,
    front: &mut F,
    scratch: &mut Scratch,
    refusal: Refusal,
    started: u64,
) {
    let Some(current) = conn.worker.current() else {
        return;
    };
    // Nothing of it counts.
    let version = scratch.request.version;
    scratch.request.reset();
    scratch.request.version = version;
    let mut facts = Facts {
        started,
        client: Some(conn.peer),
        ids: Ids::new(conn, &current, front, &scratch.request),
        ..Facts::default()
    };
    let listener = &conn.listener;
    let mut exchange = Exchange {
        conn,
        current: &current,
        listener,
        believed: None,
        facts: &mut facts,
        is_last: true,
    };
    exchange.refused(front, scratch, refusal).await;
    settle(conn, &current, listener, front, &scratch.request, &facts);
}

/// Counts what a client did that is no request, and holds it against the client.
pub(super) fn offence(conn: &Conn, refusal: Refusal) {
    if let Some(current) = conn.worker.current() {
        note(conn, &current, &conn.listener, refusal, &Ids::default());
    }
}

/// Counts a refusal. Offences are held against those who are no proxies that are trusted.
fn note(conn: &Conn, current: &Current, listener: &Listener, refusal: Refusal, ids: &Ids) {
    listener.refusals.of(conn.worker.index).of(refusal).add(1);
    let source = conn.wire.ip();
    if !listener.trusts(source) {
        let now = Worker::now();
        current.snapshot.offend(source, refusal, &ids.request, now);
    }
}

/// A request under way.
pub(super) struct Exchange<'a> {
    pub(super) conn: &'a Conn,
    pub(super) current: &'a Rc<Current>,
    pub(super) listener: &'a Listener,
    /// In which field who connected is believed that says who the client is; `None`: in none.
    pub(super) believed: Option<ClientHeader>,
    pub(super) facts: &'a mut Facts,
    pub(super) is_last: bool,
}

impl Exchange<'_> {
    async fn answer<F: Front>(
        &mut self,
        listener: usize,
        front: &mut F,
        scratch: &mut Scratch,
    ) -> Result<Next, Refusal> {
        let Scratch {
            request,
            host,
            path,
            rewritten,
            ..
        } = scratch;
        let bytes = front.bytes();
        let seen = Seen::new((request, self.believed), bytes, host, path)?;
        if self.listener.config.redirect_https {
            if seen.host.is_empty() {
                return Err(Reject::HostMissing.into());
            }
            let mut location = self.conn.worker.out();
            seen.write_https(&mut location);
            // RFC 9110, section 15.4.9: the method stays what it was.
            let fields = [(b"Location".as_slice(), location.as_slice())];
            let next = self.own(front, scratch, 308, &fields, b"").await;
            self.conn.worker.give_out(location);
            return Ok(next);
        }
        let current = self.current;
        let router = &current.router;
        let route = router.find(listener, &seen).ok_or(Refusal::NoRoute)?;
        self.facts.route = Some(route.index);
        match &route.action {
            Action::Forward(_) if seen.ends_here()? => {
                Ok(self.own(front, scratch, 200, &[], b"").await)
            }
            Action::Forward(split) => {
                let target = split.pick(self.conn.worker.random());
                let path = router
                    .rewrite(route, seen.path, rewritten)
                    .map_err(|_| Refusal::Path)?;
                let group = current.snapshot.groups.get(target.upstream);
                let group = group.ok_or(Refusal::Internal)?;
                let mut head = Head::new(self, &seen, path, route, group)?;
                let copy = mirror::draw(self, &seen, path, route);
                let copy = copy
                    .and_then(|copy| mirror::before(self, front, &scratch.request, route, copy));
                let done = {
                    let target = (target, group);
                    forward::run(self, front, scratch, route, target, &mut head).await
                };
                if let Some(copy) = copy {
                    mirror::after(self, front, &scratch.request, route, copy);
                }
                head.give_back(&self.conn.worker);
                done
            }
            Action::Redirect { status, to } => {
                let mut location = self.conn.worker.out();
                let next = match route::write_location(to, &seen, &mut location) {
                    Ok(()) => {
                        let fields = [(b"Location".as_slice(), location.as_slice())];
                        Ok(self.own(front, scratch, *status, &fields, b"").await)
                    }
                    Err(reject) => Err(reject.into()),
                };
                self.conn.worker.give_out(location);
                next
            }
            Action::Respond {
                status,
                body,
                headers,
            } => {
                let fields: Vec<(&[u8], &[u8])> = headers
                    .iter()
                    .map(|(name, value)| (&name[..], &value[..]))
                    .collect();
                Ok(self.own(front, scratch, *status, &fields, body).await)
            }
        }
    }

    /// Tells the client why it gets nothing else, if there is one and it was told nothing yet.
    async fn refused<F: Front>(
        &mut self,
        front: &mut F,
        scratch: &mut Scratch,
        refusal: Refusal,
    ) -> Next {
        self.facts.refusal = Some(refusal);
        note(
            self.conn,
            self.current,
            self.listener,
            refusal,
            &self.facts.ids,
        );
        // An answer that has begun cannot become another one.
        if refusal == Refusal::ClientGone || self.facts.status != 0 {
            return Next::Close;
        }
        if matches!(refusal, Refusal::Malformed(_) | Refusal::HeadTimeout) {
            self.is_last = true;
        }
        let status = refusal.status();
        if is_call(front, &scratch.request) {
            return self.refused_call(front, scratch, status).await;
        }
        let mut body = self.conn.worker.out();
        body.extend_from_slice(status.to_string().as_bytes());
        body.push(b' ');
        body.extend_from_slice(write::reason(status).as_bytes());
        body.extend_from_slice(b"\nrequest id: ");
        body.extend_from_slice(&self.facts.ids.request);
        body.push(b'\n');
        let retry_after = self.facts.retry_after.or(refusal.retry_after());
        let retry_after = retry_after.map(|seconds| seconds.to_string());
        let mut fields: Vec<(&[u8], &[u8])> = vec![
            (b"Content-Type", b"text/plain; charset=utf-8"),
            (b"X-Request-Id", &[]),
        ];
        let id = self.facts.ids.request;
        fields[1].1 = &id;
        if let Some(seconds) = &retry_after {
            fields.push((b"Retry-After", seconds.as_bytes()));
        }
        let next = self.own(front, scratch, status, &fields, &body).await;
        self.conn.worker.give_out(body);
        next
    }

    /// The same for a call of gRPC, whose caller looks for a status of its own.
    async fn refused_call<F: Front>(
        &mut self,
        front: &mut F,
        scratch: &Scratch,
        status: u16,
    ) -> Next {
        let code = refusal::grpc_status(status).to_string();
        let reason = write::reason(status);
        let id = self.facts.ids.request;
        // Printable ASCII without percent signs, which needs no encoding.
        let mut message = format!("{status} {reason}, request id ").into_bytes();
        message.extend_from_slice(&id);
        let fields: [(&[u8], &[u8]); 4] = [
            (b"Content-Type", b"application/grpc"),
            (b"grpc-status", code.as_bytes()),
            (b"grpc-message", &message),
            (b"X-Request-Id", &id),
        ];
        self.own(front, scratch, 200, &fields, b"").await
    }

    /// An answer of our own.
    async fn own<F: Front>(
        &mut self,
        front: &mut F,
        scratch: &Scratch,
        status: u16,
        fields: &[(&[u8], &[u8])],
        body: &[u8],
    ) -> Next {
        let request = &scratch.request;
        // What of the body has come is passed over. If there is more to come, it ends here.
        let rest = poll_fn(|cx| {
            loop {
                match front.poll_body(cx) {
                    Poll::Ready(Ok(true)) => {
                        let n = front.data().len();
                        front.consume(n);
                    }
                    Poll::Ready(Ok(false)) => return Poll::Ready(true),
                    Poll::Ready(Err(_)) | Poll::Pending => return Poll::Ready(false),
                }
            }
        });
        let keep = rest.await && request.keep_alive && !self.is_last;
        self.facts.status = status;
        front.begin(status, write::reason(status).as_bytes());
        self.date(front);
        for (name, value) in fields {
            front.field(name, value);
        }
        let has_body = !matches!(status, 204 | 304);
        let told = if has_body {
            Framing::Length(body.len() as u64)
        } else {
            Framing::None
        };
        front.end(told, told, self.then(request, keep, None));
        let body = if request.method == Method::Head || !has_body {
            &[]
        } else {
            body
        };
        self.facts.progress.down = body.len() as u64;
        let timeout = super::group::nanoseconds(self.listener.config.limits.body_timeout);
        self.conn.timer.set(Worker::now().saturating_add(timeout));
        match self.conn.timer.within(send(front, body)).await {
            Ok(Ok(())) if keep => Next::KeepAlive,
            _ => Next::Close,
        }
    }

    /// Says when an answer was made (RFC 9110, section 6.6.1).
    pub(super) fn date<F: Front>(&self, front: &mut F) {
        let worker = &self.conn.worker;
        let mut date = worker.out();
        access_log::http_date(worker.unix_ms(Worker::now()) / 1000, &mut date);
        front.field(b"Date", &date);
        worker.give_out(date);
    }

    /// What is said of the connection.
    pub(super) fn then<'h>(
        &self,
        request: &Request,
        keep: bool,
        upgrade: Option<&'h [u8]>,
    ) -> Then<'h> {
        #[cfg(test)]
        let worker = &self.conn.worker;
        #[cfg(test)]
        worker
            .panics
            .strike(worker.index, super::panics::At::Answer);
        Then {
            close: !keep && upgrade.is_none(),
            keep_alive: keep && request.version == Version::Http10,
            upgrade,
        }
    }

    /// When the request's time is over.
    pub(super) fn deadlines(&self, timeouts: Timeouts) -> Deadlines {
        let deadlines = Deadlines::new(timeouts, self.facts.started);
        arm(&self.conn.timer, &deadlines);
        deadlines
    }
}

/// Whether a request is a call of gRPC, which is always by HTTP/2.
fn is_call<F: Front>(front: &F, request: &Request) -> bool {
    let mut types = request.known(front.bytes(), Known::ContentType);
    request.version == Version::Http2 && types.next().is_some_and(refusal::is_grpc)
}

async fn send<F: Front>(front: &mut F, mut body: &[u8]) -> io::Result<()> {
    while !body.is_empty() {
        let n = poll_fn(|cx| front.poll_send(cx, body)).await?;
        body = body.get(n..).unwrap_or_default();
    }
    front.finish(&[], &[]);
    poll_fn(|cx| front.poll_drain(cx)).await
}

/// Who the client is, as a proxy that is trusted tells.
fn client<F: Front>(conn: &Conn, listener: &Listener, front: &F, request: &Request) -> SocketAddr {
    let bytes = front.bytes();
    let by = listener.config.client_header;
    let values = request.known(
        bytes,
        match by {
            ClientHeader::XForwardedFor => Known::XForwardedFor,
            ClientHeader::Forwarded => Known::Forwarded,
        },
    );
    let address = forwarded::client(conn.peer.ip(), by, values, |ip| listener.trusts(ip));
    if address == conn.peer.ip().to_canonical() {
        conn.peer
    } else {
        // Its port is nobody's knowledge.
        SocketAddr::new(address, 0)
    }
}

fn version(request: &Request) -> &'static str {
    match request.version {
        Version::Http10 => "1.0",
        Version::Http11 => "1.1",
        Version::Http2 => "2",
    }
}

/// Counts a request that is over, and writes it down.
fn settle<F: Front>(
    conn: &Conn,
    current: &Current,
    listener: &Listener,
    front: &F,
    request: &Request,
    facts: &Facts,
) {
    let worker = &conn.worker;
    let us = |ns: u64| ns / 1000;
    let duration = us(Worker::now().saturating_sub(facts.started));
    let status = if facts.refusal == Some(Refusal::ClientGone) {
        0
    } else {
        facts.status
    };
    let count = |requests: &Requests| {
        requests.ended(status, duration);
        requests.received.add(facts.progress.up);
        requests.sent.add(facts.progress.down);
    };
    count(listener.requests.of(worker.index));
    let snapshot = &current.snapshot;
    let route = facts.route.and_then(|at| snapshot.routes.get(at));
    if let Some(route) = route {
        count(route.requests.of(worker.index));
    }
    let group = facts.upstream.and_then(|at| snapshot.groups.get(at));
    if let Some(group) = group {
        count(group.requests.of(worker.index));
    }
    let server = group
        .zip(facts.server)
        .and_then(|(g, at)| g.servers.get(at));
    if let Some(server) = server {
        count(server.requests.of(worker.index));
    }
    let bytes = front.bytes();
    if facts.ids.span != 0
        && let Some((queue, _)) = &snapshot.traces
    {
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        let unix = |ns: u64| {
            worker
                .unix_ms(0)
                .saturating_mul(1_000_000)
                .saturating_add(ns)
        };
        queue.put(spans::Record {
            trace: facts.ids.trace,
            parent: facts.ids.parent,
            span: facts.ids.span,
            upstream: group.map(|group| group.config.name.clone()),
            tries: (facts.told.iter())
                .map(|told| {
                    let server = group.and_then(|group| group.servers.get(told.server));
                    let failed = told.outcome.and_then(Result::err);
                    spans::Try {
                        span: told.span,
                        begin: unix(told.begin),
                        end: unix(told.ended.unwrap_or_else(Worker::now)),
                        server: server.map(|s| s.name.to_string()).unwrap_or_default(),
                        status: told.outcome.and_then(Result::ok).unwrap_or(0),
                        error: match told.ended {
                            Some(_) => failed,
                            // What became of the answer became of it here.
                            None => failed.or(facts.refusal),
                        }
                        .map(Refusal::name),
                    }
                })
                .collect(),
            begin: unix(facts.started),
            end: unix(Worker::now()),
            method: text(request.method_name.of(bytes)),
            path: text(request.path(bytes)),
            host: text(request.host(bytes)),
            scheme: if conn.is_secure { "https" } else { "http" },
            version: version(request),
            client: facts.client.unwrap_or(conn.peer),
            local: conn.local,
            route: route.map(|route| route.name.clone()),
            refusal: facts.refusal.map(Refusal::name),
            status,
        });
    }
    if snapshot.log.is_none() {
        return;
    }
    let record = access_log::Record {
        time_unix_ms: worker.unix_ms(facts.started),
        request_id: &facts.ids.request,
        trace_id: &facts.ids.trace,
        client: facts.client.unwrap_or(conn.peer),
        listener: &listener.config.name,
        route: facts.route.map(|at| &*current.router.route(at).name),
        upstream: group.map(|group| group.config.name.as_str()),
        server: server.map(|server| &*server.name),
        method: request.method_name.of(bytes),
        host: request.host(bytes),
        target: request.target.of(bytes),
        version: version(request),
        status: facts.status,
        received: facts.progress.up,
        sent: facts.progress.down,
        duration,
        queued: us(facts.queued),
        connect: us(facts.connect),
        first_byte: us(facts.first_byte),
        tries: facts.tries,
        reason: facts.refusal.map(Refusal::name),
        user_agent: request.known(bytes, Known::UserAgent).next(),
    };
    worker.log(snapshot, &record);
}
