//! A client's connection: what comes before its requests, and one request after the other.

use std::{
    cell::Cell, future::poll_fn, io, net::SocketAddr, ops::Deref, rc::Rc, sync::Arc, task::Poll,
};

use tokio::{io::AsyncReadExt as _, net::TcpStream};
use tokio_rustls::{TlsAcceptor, TlsStream};

use super::{
    exchange::{self, Next},
    group::nanoseconds,
    h2,
    link::Link,
    snapshot::{Listener, Place},
    stream::{Socket, Stream},
    timers::Timer,
    worker::{Scratch, Worker},
};
use crate::{
    config::proxy::listener::ProxyProtocol,
    l7::{
        head::Reject,
        http1::{Chunked, parse_request},
        proxy_protocol,
        refusal::Refusal,
        resilience::Deadlines,
    },
};

/// How long a client may take to read a last answer, nanoseconds, and how many bytes it may still
/// send meanwhile: a connection that is closed while bytes of it were not read is reset, and takes
/// the answer with it.
const LINGER: (u64, usize) = (2_000_000_000, 1 << 20);

/// What a connection of HTTP/2 begins with (RFC 9113, 3.4): the line that no HTTP/1 begins with.
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n";

/// A client's connection, or a stream of one, and when it has to have gone on.
pub(super) struct Conn {
    of: Rc<Known>,
    pub(super) timer: Timer,
    is_stream: bool,
    /// When its first byte came, nanoseconds, if it was seen before anybody read it; else 0.
    pub(super) began: Cell<u64>,
}

impl Drop for Conn {
    fn drop(&mut self) {
        // Of a connection, its end is counted at another place.
        if self.is_stream {
            let (peer, listener) = (self.peer, &self.listener.config.name);
            let of = format_args!("a stream of {peer} at the listener {listener:?}");
            self.worker.panics.note(of);
        }
    }
}

/// What is known of a client's connection. Its streams share it: the count of the listener is one
/// for all processors.
pub(super) struct Known {
    pub(super) worker: Rc<Worker>,
    /// As it was when the connection came.
    pub(super) listener: Arc<Listener>,
    /// Where its packets come from.
    pub(super) wire: SocketAddr,
    /// Who connected, as a proxy that is trusted tells by the PROXY protocol.
    pub(super) peer: SocketAddr,
    /// Where it connected to, likewise.
    pub(super) local: SocketAddr,
    /// Whether that is a proxy whose word about clients is taken.
    pub(super) is_trusted: bool,
    /// Whether it is by TLS.
    pub(super) is_secure: bool,
}

impl Deref for Conn {
    type Target = Known;

    fn deref(&self) -> &Known {
        &self.of
    }
}

impl Conn {
    /// A stream of it.
    pub(super) fn stream(&self) -> Self {
        Self {
            of: self.of.clone(),
            timer: self.worker.timers.timer(),
            is_stream: true,
            began: Cell::new(0),
        }
    }

    /// Counts its end for want of a request, unless it ends because all connections do.
    pub(super) fn note_idle(&self) {
        if !self.worker.is_stopping() {
            let connections = self.listener.connections.of(self.worker.index);
            connections.idle.add(1);
        }
    }

    /// Whether who connected is a proxy that a listener trusts: mostly that of the connection.
    pub(super) fn is_trusted_by(&self, listener: &Arc<Listener>) -> bool {
        match Arc::ptr_eq(listener, &self.listener) {
            true => self.is_trusted,
            false => listener.trusts(self.peer.ip()),
        }
    }
}

/// Moves a deadline to the one that comes first.
pub(super) fn arm(timer: &Timer, deadlines: &Deadlines) {
    timer.set(deadlines.next().map_or(u64::MAX, |(at, _)| at));
}

/// Counts the end of a connection.
struct Closing {
    listener: Arc<Listener>,
    worker: Rc<Worker>,
    peer: SocketAddr,
    _place: Place,
}

impl Drop for Closing {
    fn drop(&mut self) {
        let Self {
            listener,
            worker,
            peer,
            ..
        } = self;
        listener.connections.of(worker.index).closed.add(1);
        let name = &listener.config.name;
        let of = format_args!("the connection of {peer} to the listener {name:?}");
        worker.panics.note(of);
    }
}

/// Serves a connection until it ends.
pub(super) async fn serve(
    worker: Rc<Worker>,
    listener: Arc<Listener>,
    place: Place,
    mut stream: TcpStream,
    peer: SocketAddr,
) {
    let _closing = Closing {
        listener: listener.clone(),
        worker: worker.clone(),
        peer,
        _place: place,
    };
    let timer = worker.timers.timer();
    let limits = &listener.config.limits;
    timer.set(Worker::now().saturating_add(nanoseconds(limits.header_timeout)));
    // An answer is written in one go.
    let (Ok(()), Ok(local)) = (stream.set_nodelay(true), stream.local_addr()) else {
        return;
    };
    let mut ends = (peer, local);
    if listener.config.proxy_protocol != ProxyProtocol::Off {
        let header = Box::pin(preface(&listener, &mut stream, peer));
        match timer.within(header).await {
            Ok(Ok(None)) => {}
            Ok(Ok(Some(told))) => ends = (told.source, told.destination),
            // It came as nothing else, so there is nobody to tell.
            Ok(Err(_)) | Err(_) => {
                let refusals = listener.refusals.of(worker.index);
                return refusals.of(Refusal::ProxyHeader).add(1);
            }
        }
    }
    let stream = match listener.tls() {
        None => Stream::Plain(Socket::Tcp(stream)),
        Some(tls) => {
            let session = Box::pin(TlsAcceptor::from(tls).accept(Socket::Tcp(stream)));
            let session = match timer.within(session).await {
                Ok(Ok(session)) => session,
                failed => {
                    if failed.is_err() {
                        let refusals = listener.refusals.of(worker.index);
                        refusals.of(Refusal::TlsTimeout).add(1);
                    }
                    return listener.connections.of(worker.index).tls_failed.add(1);
                }
            };
            Stream::Tls(Box::new(TlsStream::Server(session)))
        }
    };
    let conn = Conn {
        of: Rc::new(Known {
            wire: peer,
            peer: ends.0,
            local: ends.1,
            is_trusted: listener.trusts(ends.0.ip()),
            is_secure: matches!(stream, Stream::Tls(_)),
            worker,
            listener,
        }),
        timer,
        is_stream: false,
        began: Cell::new(0),
    };
    match is_http2(&conn, &stream).await {
        // Apart, as are other things that few connections come to: all of them are as large as the
        // largest that is not.
        Ok(true) => Box::pin(h2::serve(conn, stream)).await,
        Ok(false) => http1(&conn, stream).await,
        Err(_) => {}
    }
}

/// Whether the client speaks HTTP/2: as was agreed with TLS, or else by how it begins.
async fn is_http2(conn: &Conn, stream: &Stream) -> io::Result<bool> {
    let stream = match stream {
        Stream::Tls(stream) => return Ok(stream.get_ref().1.alpn_protocol() == Some(b"h2")),
        Stream::Plain(Socket::Tcp(stream)) if conn.listener.config.http2 => stream,
        Stream::Plain(_) => return Ok(false),
    };
    let patience = nanoseconds(conn.listener.config.limits.header_timeout);
    conn.timer.set_idle(Worker::now().saturating_add(patience));
    let beginning = async {
        let mut seen = [0; PREFACE.len()];
        let mut more = More::default();
        loop {
            let n = stream.peek(&mut seen).await?;
            // From here on it has the time of a head, whatever it turns out to be.
            if n > 0 && conn.began.get() == 0 {
                conn.began.set(Worker::now());
                conn.timer.set(Worker::now().saturating_add(patience));
            }
            let is_alike = n > 0 && PREFACE.starts_with(seen.get(..n).unwrap_or_default());
            if !is_alike || n == PREFACE.len() {
                return Ok(is_alike);
            }
            more.wait(n).await;
        }
    };
    match conn.timer.within(beginning).await {
        Ok(told) => told,
        Err(_) if conn.began.get() == 0 => {
            conn.note_idle();
            Err(io::ErrorKind::TimedOut.into())
        }
        // Too slow a beginning, which is for HTTP/1 to refuse.
        Err(_) => Ok(false),
    }
}

/// What was peeked at stays readable, so nothing tells when there is more of it.
#[derive(Debug, Default)]
struct More {
    had: usize,
    looks: u32,
}

impl More {
    /// Waits after a look that found so many bytes, longer each time when it is not more.
    async fn wait(&mut self, n: usize) {
        if n == self.had {
            let pause = std::time::Duration::from_millis(5 << self.looks.min(6));
            self.looks += 1;
            tokio::time::sleep(pause).await;
        }
        self.had = n;
    }
}

/// Reads the header of the PROXY protocol, if the peer may send one.
async fn preface(
    listener: &Listener,
    stream: &mut TcpStream,
    peer: SocketAddr,
) -> io::Result<Option<proxy_protocol::Addresses>> {
    let is_required = listener.config.proxy_protocol == ProxyProtocol::Require;
    if !listener.trusts(peer.ip()) {
        return if is_required {
            Err(io::ErrorKind::PermissionDenied.into())
        } else {
            Ok(None)
        };
    }
    // Bytes behind the header are somebody else's: they are looked at, and only the header is taken.
    let mut seen = vec![0; proxy_protocol::MAX_LEN];
    let mut more = More::default();
    loop {
        let n = stream.peek(&mut seen).await?;
        if n == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        match proxy_protocol::parse(seen.get(..n).unwrap_or_default()) {
            Ok(Some(header)) => {
                let mut header_bytes = vec![0; header.len];
                stream.read_exact(&mut header_bytes).await?;
                return Ok(header.addresses);
            }
            Ok(None) => {}
            // Neither version begins like this.
            Err(proxy_protocol::Error::Absent) if !is_required => return Ok(None),
            Err(e) => return Err(io::Error::new(io::ErrorKind::InvalidData, e.name())),
        }
        more.wait(n).await;
    }
}

/// Serves requests of HTTP/1. Between them the connection has no buffer.
async fn http1(conn: &Conn, stream: Stream) {
    let limits = &conn.listener.config.limits;
    let idle = nanoseconds(limits.idle_timeout);
    let mut stream = stream;
    let mut served = 0;
    // What came with the end of a handshake is in the session already.
    let mut may_be_there = conn.is_secure;
    let mut waits_after = None;
    let begun = Worker::now();
    loop {
        // A handshake took its time, in which there could be no request.
        let until = match served {
            0 => conn.worker.first_until(begun),
            _ => conn.worker.idle_until(),
        };
        if until <= Worker::now() && !may_be_there {
            return;
        }
        // Once for each wait: a piece of a record of TLS wakes it, and is no request.
        if waits_after != Some(served) {
            waits_after = Some(served);
            // The first request has less time than those that follow.
            let patience = if served == 0 {
                nanoseconds(limits.header_timeout)
            } else {
                idle
            };
            let at = Worker::now().saturating_add(patience);
            conn.timer.set_idle(at.min(until));
        }
        if !may_be_there {
            match conn.timer.within(stream.readable()).await {
                Ok(Ok(())) => {}
                Ok(Err(_)) => return,
                Err(_) => return conn.note_idle(),
            }
        }
        may_be_there = false;
        match Box::pin(burst(conn, stream, &mut served)).await {
            Some(back) => stream = back,
            None => return,
        }
    }
}

/// Serves requests for as long as there are any. Gives the connection back when there is none, and
/// nothing if it is to end.
async fn burst(conn: &Conn, stream: Stream, served: &mut u32) -> Option<Stream> {
    let worker = &conn.worker;
    let mut link = Link::new(stream, worker.client_buffers.take(), worker.out());
    if conn.listener.config.half_close {
        link.bear_half_close();
    }
    let mut scratch = worker.scratch();
    let goes_on = requests(conn, &mut link, &mut scratch, served).await;
    worker.give_scratch(scratch);
    if !goes_on && !link.is_incomplete() {
        Box::pin(linger(conn, &mut link)).await;
    }
    let (stream, out) = link.into_parts();
    worker.give_out(out);
    goes_on.then_some(stream)
}

/// Whether the connection can go on.
async fn requests(conn: &Conn, link: &mut Link, scratch: &mut Scratch, served: &mut u32) -> bool {
    let limits = &conn.listener.config.limits;
    loop {
        let started = match head(conn, link, scratch).await {
            Head::Whole(started) => started,
            Head::None => return true,
            Head::Gone => return false,
            Head::Bad(refusal, started) => {
                exchange::refuse(conn, link, scratch, refusal, started).await;
                return false;
            }
        };
        *served += 1;
        let is_last = limits.requests_per_connection == *served || conn.worker.is_stopping();
        match exchange::run(conn, link, scratch, started, is_last).await {
            Next::Close => return false,
            Next::KeepAlive => {}
        }
        link.next_message();
        scratch.request.reset();
    }
}

/// What came instead of a head, or with it.
enum Head {
    /// A whole head, and when its first byte came.
    Whole(u64),
    /// Nothing, for now.
    None,
    /// The end of the connection.
    Gone,
    /// What is no head.
    Bad(Refusal, u64),
}

async fn head(conn: &Conn, link: &mut Link, scratch: &mut Scratch) -> Head {
    let limits = &conn.listener.limits;
    let mut started = 0;
    loop {
        if !link.bytes().is_empty() {
            if started == 0 {
                started = match conn.began.take() {
                    0 => Worker::now(),
                    began => began,
                };
                let patience = nanoseconds(conn.listener.config.limits.header_timeout);
                conn.timer.set(started.saturating_add(patience));
            }
            match parse_request(link.bytes(), limits, &mut scratch.request) {
                Ok(Some(len)) => {
                    let framing = scratch.request.framing;
                    link.begin(len, framing, Chunked::request(limits.body_bytes));
                    return Head::Whole(started);
                }
                Ok(None) if !link.has_room() => {
                    return Head::Bad(Reject::HeadTooLarge.into(), started);
                }
                Ok(None) => {}
                Err(reject) => return Head::Bad(reject.into(), started),
            }
        }
        // A connection that has nothing to say waits without a buffer.
        let has_begun = started != 0;
        let read = poll_fn(|cx| match link.poll_fill(cx) {
            Poll::Pending if !has_begun => Poll::Ready(None),
            other => other.map(Some),
        });
        match conn.timer.within(read).await {
            Ok(None) => return Head::None,
            Ok(Some(Ok(0) | Err(_))) => return Head::Gone,
            Ok(Some(Ok(_))) => {}
            Err(_) => return Head::Bad(Refusal::HeadTimeout, started),
        }
    }
}

/// Ends a connection so that the client sees all that was sent.
async fn linger(conn: &Conn, link: &mut Link) {
    conn.timer.set(Worker::now().saturating_add(LINGER.0));
    let ending = async {
        poll_fn(|cx| link.poll_drain(cx)).await?;
        pass_over(&mut link.stream).await
    };
    // Whoever does not read has been given its chance.
    let _ = conn.timer.within(ending).await;
}

/// Sends no more, and passes over what still comes.
///
/// # Errors
/// Those of the connection.
pub(super) async fn pass_over(stream: &mut Stream) -> io::Result<()> {
    let mut most = LINGER.1;
    poll_fn(|cx| stream.poll_shutdown(cx)).await?;
    let mut sink = [0; 2048];
    while most > 0 {
        match poll_fn(|cx| stream.poll_read(cx, &mut sink)).await? {
            0 => break,
            n => most = most.saturating_sub(n),
        }
    }
    Ok(())
}
