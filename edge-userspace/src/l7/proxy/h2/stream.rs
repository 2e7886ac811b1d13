//! A stream: one request and its answer.

use std::{
    io,
    task::{Context, Poll, Waker, ready},
};

use ::h2::{Reason, RecvStream, SendStream, server::SendResponse};
use hyper::{
    Response, StatusCode,
    body::Bytes,
    header::{CONTENT_LENGTH, HeaderValue},
    http::request,
};

use super::{
    super::{
        front::{Front, Then},
        link::BodyError,
    },
    message::{self, append, pairs},
};
use crate::l7::head::{
    self, Field, Framing, Limits, Method, Of, Reject,
    h2::{self, Parts},
};

/// Of a body that comes, so many bytes are kept for another try, in so many pieces.
const KEPT: (usize, usize) = (64 << 10, 64);
/// Bytes that are taken at once of what was read ahead: more of them may be kept.
const DRAW: usize = 16 << 10;

/// What is still to be sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Going {
    /// The head of the answer, and whatever follows.
    Head,
    /// So many bytes.
    Length(u64),
    /// Data until it is said that they end.
    Open,
    /// Nothing.
    Done,
}

/// A request whose head has come, and its answer.
pub(super) struct RequestStream {
    respond: SendResponse<Bytes>,
    /// Once the head of the answer has gone.
    send: Option<SendStream<Bytes>>,
    body: RecvStream,
    limits: Limits,
    /// The head of the request.
    head: Vec<u8>,
    is_head: bool,
    /// How long the body is, if that was said, and how much of it has come.
    declared: Option<u64>,
    received: u64,
    /// The data that lie ready, and whether they lie there for the first time: the client's
    /// window grows by them only once.
    data: Bytes,
    is_fresh: bool,
    /// What has come behind them, and was not seen yet.
    ahead: Vec<u8>,
    /// What is left of that, as far as it is taken already.
    drawn: Bytes,
    /// What has come so far, as long as that is little, and which of it comes next.
    kept: Vec<Bytes>,
    kept_bytes: usize,
    next: usize,
    is_whole: bool,
    has_ended: bool,
    reject: Option<Reject>,
    trailers: Vec<Field>,
    trailer_bytes: Vec<u8>,
    /// The head of the answer while it is put together.
    answer: Response<()>,
    going: Going,
    /// Whether the client's window, or the connection, takes no more for now.
    is_blocked: bool,
    /// Whether nothing can be sent any more.
    is_broken: bool,
}

impl RequestStream {
    /// `memory` is where the head is written.
    pub(super) fn new(
        respond: SendResponse<Bytes>,
        body: RecvStream,
        limits: Limits,
        memory: Vec<u8>,
    ) -> Self {
        Self {
            respond,
            send: None,
            has_ended: body.is_end_stream(),
            body,
            limits,
            head: memory,
            is_head: false,
            declared: None,
            received: 0,
            data: Bytes::new(),
            is_fresh: false,
            ahead: Vec::new(),
            drawn: Bytes::new(),
            kept: Vec::new(),
            kept_bytes: 0,
            next: 0,
            is_whole: true,
            reject: None,
            trailers: Vec::new(),
            trailer_bytes: Vec::new(),
            answer: Response::new(()),
            going: Going::Head,
            is_blocked: false,
            is_broken: false,
        }
    }

    /// Reads the head.
    ///
    /// # Errors
    /// Why it is refused.
    pub(super) fn read(
        &mut self,
        from: &request::Parts,
        is_secure: bool,
        request: &mut head::Request,
    ) -> Result<(), Reject> {
        // The crate forgets the scheme where there is no authority.
        let scheme = from.uri.scheme_str();
        let scheme = scheme.unwrap_or(if is_secure { "https" } else { "http" });
        let path = from.uri.path_and_query();
        let parts = Parts {
            method: from.method.as_str().as_bytes(),
            scheme: scheme.as_bytes(),
            authority: from.uri.authority().map(|a| a.as_str().as_bytes()),
            path: path.map_or(&[], |path| path.as_str().as_bytes()),
            ended: self.has_ended,
        };
        self.is_head = parts.method == b"HEAD";
        let fields: Vec<_> = pairs(&from.headers).collect();
        let fields = fields.iter().copied();
        h2::request(&parts, fields, &self.limits, &mut self.head, request)?;
        if let Framing::Length(length) = request.framing {
            self.declared = Some(length);
        }
        debug_assert_eq!(self.is_head, request.method == Method::Head);
        Ok(())
    }

    /// Ends the stream, whether or not its answer is whole. Tells the error with which it was reset,
    /// by the client or for something that the client did, and gives the memory back.
    pub(super) fn close(mut self) -> (Option<Reason>, Vec<u8>) {
        let mut now = Context::from_waker(Waker::noop());
        let is_over = self.going == Going::Done && !self.is_broken;
        let reset = match self.poll_reset(&mut now) {
            Poll::Ready(Ok(reason)) if !is_over => Some(reason),
            _ => None,
        };
        // What is left of a request whose answer is whole, the crate resets with NO_ERROR.
        if !is_over && reset.is_none() {
            match &mut self.send {
                Some(send) => send.send_reset(Reason::INTERNAL_ERROR),
                None => self.respond.send_reset(Reason::INTERNAL_ERROR),
            }
        }
        (reset, self.head)
    }

    fn poll_reset(&mut self, cx: &mut Context<'_>) -> Poll<Result<Reason, ::h2::Error>> {
        match &mut self.send {
            Some(send) => send.poll_reset(cx),
            None => self.respond.poll_reset(cx),
        }
    }

    /// Refuses what is left of the body.
    fn refuse<T>(&mut self, reject: Reject) -> Poll<Result<T, BodyError>> {
        self.reject = Some(reject);
        self.data = Bytes::new();
        self.ahead = Vec::new();
        self.drawn = Bytes::new();
        Poll::Ready(Err(reject.into()))
    }

    /// Waits for the next piece of the body; nothing at its end.
    fn poll_piece(&mut self, cx: &mut Context<'_>) -> Poll<Result<Option<Bytes>, BodyError>> {
        match ready!(self.body.poll_data(cx)) {
            Some(Ok(data)) => {
                self.received += data.len() as u64;
                if self.received > self.limits.body_bytes {
                    return self.refuse(Reject::BodyTooLarge);
                }
                Poll::Ready(Ok(Some(data)))
            }
            Some(Err(_)) => Poll::Ready(Err(BodyError::Broken)),
            None => {
                let trailers = ready!(self.body.poll_trailers(cx));
                let trailers = trailers.map_err(|_| BodyError::Broken)?;
                if let Some(trailers) = trailers {
                    let read = h2::trailers(
                        pairs(&trailers),
                        Of::Request,
                        &self.limits,
                        &mut self.trailer_bytes,
                        &mut self.trailers,
                    );
                    if let Err(reject) = read {
                        return self.refuse(reject);
                    }
                }
                // The server would take the next request for what is missing.
                if self.declared.is_some_and(|length| length != self.received) {
                    return self.refuse(Reject::LengthInvalid);
                }
                self.has_ended = true;
                Poll::Ready(Ok(None))
            }
        }
    }

    /// Keeps data for another try, as long as all that came is kept.
    fn keep(&mut self, data: &Bytes) {
        let (bytes, pieces) = KEPT;
        self.is_whole &= self.kept_bytes + data.len() <= bytes && self.kept.len() < pieces;
        if self.is_whole {
            self.kept_bytes += data.len();
            self.kept.push(data.clone());
        } else {
            self.kept.clear();
        }
        self.next = self.kept.len();
    }

    /// Lets the client send as much again.
    fn release(&mut self, n: usize) {
        if self.is_fresh {
            // Fails only for more than came.
            let _ = self.body.flow_control().release_capacity(n);
        }
    }
}

impl Front for RequestStream {
    fn bytes(&self) -> &[u8] {
        &self.head
    }

    fn poll_body(&mut self, cx: &mut Context<'_>) -> Poll<Result<bool, BodyError>> {
        loop {
            if let Some(reject) = self.reject {
                return Poll::Ready(Err(reject.into()));
            }
            if !self.data.is_empty() {
                return Poll::Ready(Ok(true));
            }
            if let Some(again) = self.kept.get(self.next) {
                self.data = again.clone();
                self.is_fresh = false;
                self.next += 1;
                continue;
            }
            if self.drawn.is_empty() {
                self.drawn = std::mem::take(&mut self.ahead).into();
            }
            let piece = match self.drawn.len().min(DRAW) {
                0 if self.has_ended => return Poll::Ready(Ok(false)),
                0 => ready!(self.poll_piece(cx))?,
                n => Some(self.drawn.split_to(n)),
            };
            if let Some(data) = piece {
                self.keep(&data);
                self.data = data;
                self.is_fresh = true;
            }
        }
    }

    /// Together, as each of many small pieces costs far more than its bytes: the client's window
    /// bounds those.
    fn read_ahead(&mut self, cx: &mut Context<'_>) -> Result<(), BodyError> {
        if let Some(reject) = self.reject {
            return Err(reject.into());
        }
        while !self.has_ended {
            match self.poll_piece(cx) {
                Poll::Ready(piece) => self.ahead.extend_from_slice(&piece?.unwrap_or_default()),
                Poll::Pending => return Ok(()),
            }
        }
        match self.poll_reset(cx) {
            Poll::Ready(_) => Err(BodyError::Broken),
            Poll::Pending => Ok(()),
        }
    }

    fn data(&self) -> &[u8] {
        &self.data
    }

    fn consume(&mut self, n: usize) {
        let n = n.min(self.data.len());
        self.release(n);
        let _ = self.data.split_to(n);
    }

    fn trailers(&self) -> (&[Field], &[u8]) {
        (&self.trailers, &self.trailer_bytes)
    }

    fn has_ended(&self) -> bool {
        let is_read = self.data.is_empty() && self.drawn.is_empty() && self.ahead.is_empty();
        self.has_ended && is_read && self.next == self.kept.len()
    }

    fn is_whole(&self) -> bool {
        self.is_whole
    }

    fn rewind(&mut self, _: Framing, _: u64) -> bool {
        if self.is_whole {
            self.release(self.data.len());
            self.data = Bytes::new();
            self.next = 0;
        }
        self.is_whole
    }

    fn poll_gone(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        self.poll_reset(cx).map(drop)
    }

    fn go_on(&mut self) {
        let mut answer = Response::new(());
        *answer.status_mut() = StatusCode::CONTINUE;
        // A stream that is no more shows when its body is read.
        let _ = self.respond.send_informational(answer);
    }

    fn begin(&mut self, status: u16, _: &[u8]) {
        let status = StatusCode::from_u16(status).unwrap_or(StatusCode::BAD_GATEWAY);
        *self.answer.status_mut() = status;
    }

    fn field(&mut self, name: &[u8], value: &[u8]) {
        append(self.answer.headers_mut(), name, value);
    }

    fn end(&mut self, body: Framing, told: Framing, _: Then<'_>) {
        let mut answer = std::mem::replace(&mut self.answer, Response::new(()));
        if let Framing::Length(length) = told {
            let fields = answer.headers_mut();
            fields.insert(CONTENT_LENGTH, HeaderValue::from(length));
        }
        self.going = match body {
            _ if self.is_head => Going::Done,
            Framing::None | Framing::Length(0) => Going::Done,
            Framing::Length(length) => Going::Length(length),
            Framing::Chunked | Framing::UntilClose => Going::Open,
        };
        let is_end = self.going == Going::Done;
        match self.respond.send_response(answer, is_end) {
            Ok(send) => self.send = Some(send),
            Err(_) => self.is_broken = true,
        }
    }

    fn end_interim(&mut self) {
        let answer = std::mem::replace(&mut self.answer, Response::new(()));
        // A stream that is no more shows when its answer is sent.
        let _ = self.respond.send_informational(answer);
    }

    fn poll_send(&mut self, cx: &mut Context<'_>, data: &[u8]) -> Poll<io::Result<usize>> {
        let Some(send) = self.send.as_mut().filter(|_| !self.is_broken) else {
            return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
        };
        if data.is_empty() || self.going == Going::Done {
            return Poll::Ready(Ok(data.len()));
        }
        self.is_blocked = true;
        let going = &mut self.going;
        let sent = ready!(message::poll_send(send, cx, data, |n| {
            if let Going::Length(left) = going {
                *left = left.saturating_sub(n as u64);
                if *left == 0 {
                    *going = Going::Done;
                }
            }
            *going == Going::Done
        }));
        self.is_blocked = false;
        self.is_broken |= sent.is_err();
        Poll::Ready(sent)
    }

    fn finish(&mut self, trailers: &[Field], of: &[u8]) {
        let Some(send) = self.send.as_mut().filter(|_| self.going != Going::Done) else {
            return;
        };
        self.going = Going::Done;
        self.is_broken |= message::finish(send, trailers, of).is_err();
    }

    fn has_out(&self) -> bool {
        self.is_blocked
    }

    /// What was sent, the connection's own task writes.
    fn poll_drain(&mut self, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(if self.is_broken {
            Err(io::ErrorKind::BrokenPipe.into())
        } else {
            Ok(())
        })
    }

    /// Streams tell their end.
    fn complete(&mut self) {}

    /// Never: requests of HTTP/2 ask for no other protocol.
    fn become_tunnel(&mut self) {}

    fn poll_close(&mut self, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.finish(&[], &[]);
        Poll::Ready(Ok(()))
    }
}
