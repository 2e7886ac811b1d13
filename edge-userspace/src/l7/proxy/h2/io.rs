//! A connection as the crate of HTTP/2 reads and writes it.

use std::{
    cell::{Cell, RefCell},
    io::{self, IoSlice},
    pin::Pin,
    rc::Rc,
    task::{Context, Poll, ready},
};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::super::stream::Stream;

/// Bytes that are read before those have their turn for whom they are: small frames of data cost far
/// more than their bytes until they are taken, and what they may cost is bounded.
const TURN: usize = 16 << 10;

/// A connection that comes back when the crate is done with it.
#[derive(Clone, Debug)]
pub(super) struct Io(Rc<Shared>);

#[derive(Debug)]
struct Shared {
    stream: RefCell<Stream>,
    /// How often something came.
    heard: Cell<u64>,
    /// Bytes that came in this turn.
    came: Cell<usize>,
}

impl Io {
    pub(super) fn new(stream: Stream) -> Self {
        Self(Rc::new(Shared {
            stream: RefCell::new(stream),
            heard: Cell::new(0),
            came: Cell::new(0),
        }))
    }

    /// The connection, if nobody else has it.
    pub(super) fn into_stream(self) -> Option<Stream> {
        Rc::into_inner(self.0).map(|shared| shared.stream.into_inner())
    }

    /// How often something came from the other side.
    pub(super) fn heard(&self) -> u64 {
        self.0.heard.get()
    }
}

impl AsyncRead for Io {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        into: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let shared = &self.0;
        let came = shared.came.replace(0);
        if came >= TURN {
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        let most = into.remaining().min(TURN - came);
        let room = into.initialize_unfilled_to(most);
        let n = ready!(shared.stream.borrow_mut().poll_read(cx, room))?;
        shared.heard.set(shared.heard.get().wrapping_add(1));
        shared.came.set(came + n);
        into.advance(n);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Io {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        from: &[u8],
    ) -> Poll<io::Result<usize>> {
        let mut stream = self.0.stream.borrow_mut();
        stream.poll_write(cx, &[IoSlice::new(from)])
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        from: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.0.stream.borrow_mut().poll_write(cx, from)
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.0.stream.borrow_mut().poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.0.stream.borrow_mut().poll_shutdown(cx)
    }
}
