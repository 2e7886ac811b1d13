//! The server's side of an exchange, whatever version of HTTP it speaks.

use std::{
    io,
    task::{Context, Poll},
};

use super::{
    h2::AnswerStream,
    link::{BodyError, Link},
    stream::Stream,
};
use crate::l7::{
    head::{Field, Limits, Response},
    http1::{Asked, Chunked, parse_response},
    refusal::Refusal,
    resilience::Failure,
};

/// What heads of answers may be: what servers send is less in doubt than what clients do.
pub(super) const ANSWERS: Limits = Limits {
    head_bytes: 32 * 1024,
    fields: 256,
    uri_bytes: 0,
    body_bytes: u64::MAX,
};

/// Why the head of an answer does not come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct NoAnswer {
    pub(super) failure: Failure,
    pub(super) refusal: Refusal,
}

impl NoAnswer {
    pub(super) const fn broken(refusal: Refusal) -> Self {
        Self {
            failure: Failure::Broken,
            refusal,
        }
    }
}

/// A server that is sent a request.
#[expect(
    clippy::large_enum_variant,
    reason = "nearly all of them are of the large one, which costs no memory of its own so"
)]
pub(super) enum Back {
    /// By a connection of its own.
    Http1(Link),
    /// By one that it shares with others. Boxed: most requests need no such thing.
    Http2(Box<AnswerStream>),
}

macro_rules! each {
    ($this:expr, $back:ident => $do:expr) => {
        match $this {
            Back::Http1($back) => $do,
            Back::Http2($back) => $do,
        }
    };
}

impl Back {
    /// What has come of the answer: its head, and perhaps more.
    pub(super) fn bytes(&self) -> &[u8] {
        each!(self, back => back.bytes())
    }

    /// Waits for the head of an answer, and says how many bytes it has. Behind an interim one
    /// another follows, once it is [passed over](Self::pass_over).
    ///
    /// # Errors
    /// Why there is none.
    pub(super) fn poll_head(
        &mut self,
        cx: &mut Context<'_>,
        asked: Asked,
        response: &mut Response,
    ) -> Poll<Result<usize, NoAnswer>> {
        match self {
            Self::Http1(link) => poll_head(link, cx, asked, response),
            Self::Http2(stream) => stream.poll_head(cx, response),
        }
    }

    /// Is done with an interim answer, whose head has so many bytes.
    pub(super) fn pass_over(&mut self, head: usize) {
        match self {
            Self::Http1(link) => link.skip(head),
            Self::Http2(stream) => stream.pass_over(),
        }
    }

    /// Whether the connection ended, or took no requests any more, before anything of an answer
    /// came but interim ones that were passed over.
    pub(super) fn is_lost(&self) -> bool {
        match self {
            Self::Http1(link) => link.bytes().is_empty(),
            Self::Http2(stream) => stream.is_lost(),
        }
    }

    /// Whether it was lost with others, one of which has told so.
    pub(super) fn is_echo(&self) -> bool {
        match self {
            Self::Http1(_) => false,
            Self::Http2(stream) => stream.is_echo(),
        }
    }

    /// Notes that the answer, or more of it, was waited for in vain.
    pub(super) fn doubt(&self) {
        match self {
            // It is not used again.
            Self::Http1(_) => {}
            Self::Http2(stream) => stream.doubt(),
        }
    }

    /// Waits for data of the answer's body; `false` at its end.
    ///
    /// # Errors
    /// When the body does not come to its end.
    pub(super) fn poll_body(&mut self, cx: &mut Context<'_>) -> Poll<Result<bool, BodyError>> {
        each!(self, back => back.poll_body(cx))
    }

    /// The data that lie ready.
    pub(super) fn data(&self) -> &[u8] {
        each!(self, back => back.data())
    }

    /// Is done with so many bytes of them.
    pub(super) fn consume(&mut self, n: usize) {
        each!(self, back => back.consume(n));
    }

    /// Takes what has come behind the data that the client does not take for now.
    pub(super) fn read_ahead(&mut self, cx: &mut Context<'_>) {
        match self {
            // It waits in the kernel, and the connection is of this request alone.
            Self::Http1(_) => {}
            Self::Http2(stream) => stream.read_ahead(cx),
        }
    }

    /// The trailers of a body that has ended, and what they are spans of.
    pub(super) fn trailers(&self) -> (&[Field], &[u8]) {
        each!(self, back => back.trailers())
    }

    /// Takes some bytes of the request's body.
    ///
    /// # Errors
    /// When the server takes no more.
    pub(super) fn poll_send(
        &mut self,
        cx: &mut Context<'_>,
        data: &[u8],
    ) -> Poll<io::Result<usize>> {
        each!(self, back => back.poll_send(cx, data))
    }

    /// Ends the request, with trailers if there are any.
    pub(super) fn finish(&mut self, trailers: &[Field], of: &[u8]) {
        each!(self, back => back.finish(trailers, of));
    }

    /// Whether anything waits to be sent.
    pub(super) fn has_out(&self) -> bool {
        each!(self, back => back.has_out())
    }

    /// Sends all that waits.
    ///
    /// # Errors
    /// Those of the connection.
    pub(super) fn poll_drain(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self {
            Self::Http1(link) => link.poll_drain(cx),
            // What was sent, the connection's own task writes.
            Self::Http2(_) => Poll::Ready(Ok(())),
        }
    }

    /// Turns both ways into plain bytes. Never with HTTP/2, which is asked for no other protocol.
    pub(super) fn become_tunnel(&mut self) {
        if let Self::Http1(link) = self {
            link.become_tunnel();
        }
    }

    /// Sends no more; all that waited has been sent.
    ///
    /// # Errors
    /// Those of the connection.
    pub(super) fn poll_close(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self {
            Self::Http1(link) => link.stream.poll_shutdown(cx),
            Self::Http2(stream) => {
                stream.finish(&[], &[]);
                Poll::Ready(Ok(()))
            }
        }
    }

    /// Whether the connection can be kept for another request, as far as can be seen here.
    pub(super) fn can_stay(&mut self) -> bool {
        match self {
            Self::Http1(link) => !link.has_out() && !link.next_message(),
            // It is not this request's.
            Self::Http2(_) => false,
        }
    }

    /// Ends the exchange: a connection that was of this request alone, and memory.
    pub(super) fn into_parts(self) -> (Option<Stream>, Vec<u8>) {
        match self {
            Self::Http1(link) => {
                let (stream, out) = link.into_parts();
                (Some(stream), out)
            }
            Self::Http2(stream) => (None, stream.close()),
        }
    }
}

fn poll_head(
    link: &mut Link,
    cx: &mut Context<'_>,
    asked: Asked,
    response: &mut Response,
) -> Poll<Result<usize, NoAnswer>> {
    loop {
        // Behind an interim answer the next may lie already.
        if !link.bytes().is_empty() {
            match parse_response(link.bytes(), &ANSWERS, asked, response) {
                Ok(Some(head)) => {
                    if !response.is_interim() {
                        link.begin(head, response.framing, Chunked::response());
                        link.let_go();
                    }
                    return Poll::Ready(Ok(head));
                }
                Ok(None) if link.has_room() => {}
                _ => return Poll::Ready(Err(NoAnswer::broken(Refusal::BadAnswer))),
            }
        }
        match link.poll_fill(cx) {
            Poll::Ready(Ok(n)) if n > 0 => {}
            Poll::Ready(_) => return Poll::Ready(Err(NoAnswer::broken(Refusal::ServerBroke))),
            Poll::Pending => return Poll::Pending,
        }
    }
}
