//! A request to a server, and its answer: a stream of a connection that requests share.

use std::{
    future::Future as _,
    io,
    pin::Pin,
    task::{Context, Poll, ready},
};

use ::h2::{Reason, RecvStream, SendStream, client::ResponseFuture};
use hyper::{HeaderMap, Request, body::Bytes, http::response::Parts};

use super::{
    super::{
        back::{ANSWERS, NoAnswer},
        link::BodyError,
    },
    message::{self, pairs},
    upstream::{NotSent, Place},
};
use crate::l7::{
    head::{Field, Framing, Method, Of, Reject, Response, h2},
    refusal::Refusal,
    resilience::Failure,
};

/// A stream.
struct Live {
    response: ResponseFuture,
    send: SendStream<Bytes>,
    body: Option<RecvStream>,
    /// Behind the stream: it is free when the stream is no more.
    place: Place,
}

/// A request whose head was sent, and its answer.
pub(in super::super) struct AnswerStream {
    /// Nothing once both sides have said all.
    live: Option<Live>,
    /// Whether all of the request was sent.
    is_sent: bool,
    /// Whether the server's window, or the connection, takes no more for now.
    is_blocked: bool,
    method: Method,
    /// The head of the answer.
    head: Vec<u8>,
    framing: Framing,
    received: u64,
    /// The data that lie ready.
    data: Bytes,
    /// What has come behind them.
    ahead: Vec<u8>,
    /// How the body ended.
    ended: Option<Result<(), BodyError>>,
    trailers: Vec<Field>,
    trailer_bytes: Vec<u8>,
    is_lost: bool,
    /// Whether it was lost with a connection of which another request has told already.
    is_echo: bool,
}

impl AnswerStream {
    /// Sends the head of a request, behind which a body comes unless it is empty. `memory` is where
    /// the head of the answer is written.
    ///
    /// # Errors
    /// When it cannot be sent. Nothing of it was.
    pub(in super::super) fn new(
        place: Place,
        head: Request<()>,
        body: Framing,
        method: Method,
        memory: Vec<u8>,
    ) -> Result<Self, NotSent> {
        let is_sent = body.is_empty();
        let (response, send) = place.send(head, is_sent)?;
        Ok(Self {
            live: Some(Live {
                response,
                send,
                body: None,
                place,
            }),
            is_sent,
            is_blocked: false,
            method,
            head: memory,
            framing: Framing::None,
            received: 0,
            data: Bytes::new(),
            ahead: Vec::new(),
            ended: None,
            trailers: Vec::new(),
            trailer_bytes: Vec::new(),
            is_lost: false,
            is_echo: false,
        })
    }

    /// The head of the answer.
    pub(in super::super) fn bytes(&self) -> &[u8] {
        &self.head
    }

    /// Whether the connection ended, or the server sent the request away with it, before anything
    /// of an answer came but interim ones.
    pub(in super::super) const fn is_lost(&self) -> bool {
        self.is_lost
    }

    /// Whether it was lost with others, one of which has told so.
    pub(in super::super) const fn is_echo(&self) -> bool {
        self.is_echo
    }

    /// Waits for the head of an answer, be it an interim one, and says how many bytes it has.
    ///
    /// # Errors
    /// Why there is none.
    pub(in super::super) fn poll_head(
        &mut self,
        cx: &mut Context<'_>,
        response: &mut Response,
    ) -> Poll<Result<usize, NoAnswer>> {
        const BAD: NoAnswer = NoAnswer {
            failure: Failure::Broken,
            refusal: Refusal::BadAnswer,
        };
        let Some(live) = &mut self.live else {
            return Poll::Ready(Err(BAD));
        };
        match live.response.poll_informational(cx) {
            Poll::Ready(Some(Ok(interim))) => {
                live.place.hear();
                let (head, ()) = interim.into_parts();
                let read = self.read_head(&head, false, response);
                return Poll::Ready(read.map_err(|_| BAD));
            }
            Poll::Ready(Some(Err(e))) => return Poll::Ready(Err(self.no_answer(&e))),
            Poll::Ready(None) | Poll::Pending => {}
        }
        let answer = match ready!(Pin::new(&mut live.response).poll(cx)) {
            Ok(answer) => answer,
            Err(e) => return Poll::Ready(Err(self.no_answer(&e))),
        };
        live.place.hear();
        let (head, body) = answer.into_parts();
        let has_ended = body.is_end_stream();
        live.body = Some(body);
        let read = self.read_head(&head, has_ended, response);
        self.framing = response.framing;
        if has_ended {
            self.ended = Some(Ok(()));
            self.free();
        }
        Poll::Ready(read.map_err(|_| BAD))
    }

    /// Reads a head, and says how many bytes it has.
    fn read_head(
        &mut self,
        head: &Parts,
        has_ended: bool,
        response: &mut Response,
    ) -> Result<usize, Reject> {
        h2::response(
            head.status.as_u16(),
            pairs(&head.headers),
            has_ended,
            self.method,
            &ANSWERS,
            &mut self.head,
            response,
        )?;
        Ok(self.head.len())
    }

    /// Is done with an interim answer.
    pub(in super::super) fn pass_over(&mut self) {
        self.head.clear();
    }

    fn no_answer(&mut self, error: &::h2::Error) -> NoAnswer {
        // By GOAWAY only those end that the server will not look at.
        let is_away = error.is_go_away() && error.is_remote();
        self.is_lost = is_away || error.is_io();
        let is_lost = error.is_io() || error.is_go_away();
        self.is_echo = is_lost && (self.live.as_ref()).is_some_and(|live| live.place.tell_lost());
        let is_refused =
            error.is_reset() && error.is_remote() && error.reason() == Some(Reason::REFUSED_STREAM);
        let failure = match is_away || is_refused {
            true => Failure::Unprocessed,
            false => Failure::Broken,
        };
        let refusal = match error.is_library() {
            true => Refusal::BadAnswer,
            false => Refusal::ServerBroke,
        };
        NoAnswer { failure, refusal }
    }

    /// Waits for data of the answer's body; `false` at its end.
    ///
    /// # Errors
    /// When it does not come to its end.
    pub(in super::super) fn poll_body(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Result<bool, BodyError>> {
        if self.data.is_empty() {
            self.data = std::mem::take(&mut self.ahead).into();
        }
        while self.data.is_empty() {
            if let Some(ended) = self.ended {
                return Poll::Ready(ended.map(|()| false));
            }
            if let Some(data) = ready!(self.poll_piece(cx)) {
                self.data = data;
            }
        }
        Poll::Ready(Ok(true))
    }

    /// Takes what has come behind the data that nobody takes for now: at its end the place is free
    /// for others, and one of many pieces costs what its bytes do.
    pub(in super::super) fn read_ahead(&mut self, cx: &mut Context<'_>) {
        while self.ended.is_none()
            && let Poll::Ready(piece) = self.poll_piece(cx)
        {
            self.ahead.extend_from_slice(&piece.unwrap_or_default());
        }
    }

    /// Waits for the next piece of the body, or its end.
    fn poll_piece(&mut self, cx: &mut Context<'_>) -> Poll<Option<Bytes>> {
        let most = self.most();
        let Some(Live {
            body: Some(body),
            place,
            ..
        }) = &mut self.live
        else {
            return self.end(Err(BodyError::Broken));
        };
        match ready!(body.poll_data(cx)) {
            Some(Ok(data)) => {
                place.hear();
                self.received += data.len() as u64;
                if self.received > most {
                    return self.end(Err(BodyError::Broken));
                }
                Poll::Ready(Some(data))
            }
            Some(Err(_)) => self.end(Err(BodyError::Broken)),
            None => match ready!(body.poll_trailers(cx)) {
                Ok(trailers) => {
                    let read = self.read_end(trailers.as_ref());
                    self.end(read)
                }
                Err(_) => self.end(Err(BodyError::Broken)),
            },
        }
    }

    /// Reads what comes behind the body.
    fn read_end(&mut self, trailers: Option<&HeaderMap>) -> Result<(), BodyError> {
        if let Some(trailers) = trailers {
            h2::trailers(
                pairs(trailers),
                Of::Response,
                &ANSWERS,
                &mut self.trailer_bytes,
                &mut self.trailers,
            )?;
        }
        // The client would take the next answer for what is missing.
        if matches!(self.framing, Framing::Length(length) if length != self.received) {
            return Err(BodyError::Broken);
        }
        Ok(())
    }

    fn end(&mut self, ended: Result<(), BodyError>) -> Poll<Option<Bytes>> {
        self.ended = Some(ended);
        self.free();
        Poll::Ready(None)
    }

    /// Gives the stream up, and its place, once nothing of it is wanted any more.
    fn free(&mut self) {
        let is_over = match self.ended {
            Some(Ok(())) => self.is_sent,
            Some(Err(_)) => true,
            None => false,
        };
        if let Some(mut live) = self.live.take_if(|_| is_over)
            && matches!(self.ended, Some(Ok(())))
        {
            live.place.end();
        }
    }

    /// How long the body may be.
    const fn most(&self) -> u64 {
        match self.framing {
            Framing::None => 0,
            Framing::Length(length) => length,
            Framing::Chunked | Framing::UntilClose => u64::MAX,
        }
    }

    /// The data that lie ready.
    pub(in super::super) fn data(&self) -> &[u8] {
        &self.data
    }

    /// Is done with so many bytes of them: the server may send as many again.
    pub(in super::super) fn consume(&mut self, n: usize) {
        let n = n.min(self.data.len());
        if let Some(Live {
            body: Some(body), ..
        }) = &mut self.live
        {
            // Fails only for more than came.
            let _ = body.flow_control().release_capacity(n);
        }
        let _ = self.data.split_to(n);
    }

    /// The trailers of a body that has ended, and what they are spans of.
    pub(in super::super) fn trailers(&self) -> (&[Field], &[u8]) {
        (&self.trailers, &self.trailer_bytes)
    }

    /// Takes some bytes of the request's body.
    ///
    /// # Errors
    /// When the server takes no more.
    pub(in super::super) fn poll_send(
        &mut self,
        cx: &mut Context<'_>,
        data: &[u8],
    ) -> Poll<io::Result<usize>> {
        if data.is_empty() || self.is_sent {
            return Poll::Ready(Ok(data.len()));
        }
        let Some(live) = &mut self.live else {
            return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
        };
        self.is_blocked = true;
        // Trailers may follow, whatever length was told.
        let sent = ready!(message::poll_send(&mut live.send, cx, data, |_| false));
        self.is_blocked = false;
        if sent.is_err() {
            // Nothing more is sent, and nothing more of it is wanted: its answer may be whole.
            self.is_sent = true;
            self.free();
        }
        Poll::Ready(sent)
    }

    /// Ends the request. Whether that reaches the server shows in its answer.
    pub(in super::super) fn finish(&mut self, trailers: &[Field], of: &[u8]) {
        let is_sent = std::mem::replace(&mut self.is_sent, true);
        if let Some(live) = self.live.as_mut().filter(|_| !is_sent) {
            let _ = message::finish(&mut live.send, trailers, of);
        }
        self.free();
    }

    /// Whether anything waits to be sent.
    pub(in super::super) const fn has_out(&self) -> bool {
        self.is_blocked && self.live.is_some()
    }

    /// Notes that the answer, or more of it, was waited for in vain.
    pub(in super::super) fn doubt(&self) {
        if let Some(live) = &self.live {
            live.place.doubt();
        }
    }

    /// Ends the stream, and gives the memory back. What is left of it is reset.
    pub(in super::super) fn close(self) -> Vec<u8> {
        self.head
    }
}
