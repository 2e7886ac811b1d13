//! The client's side of an exchange, whatever version of HTTP it speaks.

use std::{
    io,
    task::{Context, Poll},
};

use super::link::{BodyError, Link};
use crate::l7::{
    head::{Field, Framing},
    http1::{Chunked, write},
};

/// What is said of the connection in the head of an answer.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Then<'a> {
    /// It ends with the answer.
    pub(super) close: bool,
    /// A client of HTTP/1.0 is told that it does not.
    pub(super) keep_alive: bool,
    /// It becomes another protocol's.
    pub(super) upgrade: Option<&'a [u8]>,
}

/// A client that has sent the head of a request.
pub(super) trait Front {
    /// What the spans of the request are of.
    fn bytes(&self) -> &[u8];
    /// Waits for data of the request's body; `false` at its end.
    fn poll_body(&mut self, cx: &mut Context<'_>) -> Poll<Result<bool, BodyError>>;
    /// Takes what has come behind the data that nobody takes for now.
    ///
    /// # Errors
    /// When the body will not come to its end.
    fn read_ahead(&mut self, cx: &mut Context<'_>) -> Result<(), BodyError>;
    /// The data that lie ready.
    fn data(&self) -> &[u8];
    /// Is done with so many bytes of them.
    fn consume(&mut self, n: usize);
    /// The trailers of a body that has ended, and what they are spans of.
    fn trailers(&self) -> (&[Field], &[u8]);
    /// Whether the request's body has come to its end.
    fn has_ended(&self) -> bool;
    /// Whether all that came of the body could be had once more.
    fn is_whole(&self) -> bool;
    /// Goes back to the beginning of the body.
    fn rewind(&mut self, framing: Framing, most: u64) -> bool;
    /// Waits until the client is gone. What it sends meanwhile is kept.
    fn poll_gone(&mut self, cx: &mut Context<'_>) -> Poll<()>;
    /// Says that the body may come.
    fn go_on(&mut self);
    /// Begins the head of an answer.
    fn begin(&mut self, status: u16, reason: &[u8]);
    /// One field of it.
    fn field(&mut self, name: &[u8], value: &[u8]);
    /// Ends it. `body` says how what follows is framed, `told` which framing is told: an answer to
    /// HEAD tells the length of a body that does not follow.
    fn end(&mut self, body: Framing, told: Framing, then: Then<'_>);
    /// The same for an interim answer, which another one follows.
    fn end_interim(&mut self);
    /// Takes some bytes of the answer's body.
    fn poll_send(&mut self, cx: &mut Context<'_>, data: &[u8]) -> Poll<io::Result<usize>>;
    /// Ends the answer.
    fn finish(&mut self, trailers: &[Field], of: &[u8]);
    /// Whether anything waits to be sent.
    fn has_out(&self) -> bool;
    /// Sends all that waits.
    fn poll_drain(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>>;
    /// Notes that all of the answer has gone.
    fn complete(&mut self);
    /// Turns both ways into plain bytes.
    fn become_tunnel(&mut self);
    /// Sends no more; all that waited has been sent.
    fn poll_close(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>>;
}

impl Front for Link {
    fn bytes(&self) -> &[u8] {
        self.bytes()
    }

    fn poll_body(&mut self, cx: &mut Context<'_>) -> Poll<Result<bool, BodyError>> {
        self.poll_body(cx)
    }

    /// As much as fits: the rest waits in the kernel, and with it the end of the connection.
    fn read_ahead(&mut self, cx: &mut Context<'_>) -> Result<(), BodyError> {
        self.read_ahead(cx)
    }

    fn data(&self) -> &[u8] {
        self.data()
    }

    fn consume(&mut self, n: usize) {
        self.consume(n);
    }

    fn trailers(&self) -> (&[Field], &[u8]) {
        self.trailers()
    }

    fn has_ended(&self) -> bool {
        self.has_ended()
    }

    fn is_whole(&self) -> bool {
        self.is_whole()
    }

    fn rewind(&mut self, framing: Framing, most: u64) -> bool {
        self.rewind(framing, Chunked::request(most))
    }

    fn poll_gone(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        self.poll_gone(cx)
    }

    fn go_on(&mut self) {
        self.out().extend_from_slice(write::CONTINUE);
    }

    fn end_interim(&mut self) {
        write::end(self.out());
    }

    fn begin(&mut self, status: u16, reason: &[u8]) {
        write::status_line(self.out(), status, reason);
    }

    fn field(&mut self, name: &[u8], value: &[u8]) {
        write::field(self.out(), name, value);
    }

    fn end(&mut self, body: Framing, told: Framing, then: Then<'_>) {
        let out = self.out();
        write::framing(out, told);
        write::connection(
            out,
            write::Connection {
                close: then.close,
                keep_alive: then.keep_alive,
                upgrade: then.upgrade,
                te_trailers: false,
            },
        );
        write::end(out);
        self.send_body(body);
        self.set_incomplete(body == Framing::UntilClose);
    }

    fn poll_send(&mut self, cx: &mut Context<'_>, data: &[u8]) -> Poll<io::Result<usize>> {
        self.poll_send(cx, data)
    }

    fn finish(&mut self, trailers: &[Field], of: &[u8]) {
        self.finish(trailers, of);
    }

    fn has_out(&self) -> bool {
        self.has_out()
    }

    fn poll_drain(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.poll_drain(cx)
    }

    fn complete(&mut self) {
        self.set_incomplete(false);
    }

    fn become_tunnel(&mut self) {
        self.become_tunnel();
    }

    fn poll_close(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.stream.poll_shutdown(cx)
    }
}
