//! A connection as the crate of HTTP/2 reads and writes it.
//!
//! The crate writes and flushes after every frame of data that is not tiny, and would make a
//! system call, and a TLS record, of each answer. So what it writes is gathered here, and goes
//! when it has nothing more to say for now: [`Io::poll_turn`] is around each of its turns.

use std::{
    cell::{Cell, RefCell, RefMut},
    io::{self, IoSlice},
    pin::Pin,
    rc::Rc,
    task::{Context, Poll, ready},
};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::{
    super::{stream::Stream, worker::Worker},
    frames::Traffic,
};

/// Bytes that are gathered: as many as a TLS record has (RFC 8446, section 5.1).
const GATHER: usize = 16 << 10;

/// Bytes that are read before those have their turn for whom they are: small frames of data cost far
/// more than their bytes until they are taken, and what they may cost is bounded.
const TURN: usize = 16 << 10;

/// A connection that comes back when the crate is done with it.
#[derive(Clone)]
pub(super) struct Io(Rc<Shared>);

struct Shared {
    stream: RefCell<Stream>,
    /// How often something came.
    heard: Cell<u64>,
    /// Bytes that came in this turn.
    came: Cell<usize>,
    out: RefCell<Out>,
    /// Whether the crate has something to write that was not taken from it.
    is_full: Cell<bool>,
    /// What goes by, where anybody wants to know.
    traffic: Option<RefCell<Traffic>>,
    /// Has the memory for what waits.
    worker: Rc<Worker>,
}

/// What waits to be written, and how much of it was.
#[derive(Default)]
struct Out {
    bytes: Vec<u8>,
    written: usize,
}

impl Io {
    pub(super) fn new(stream: Stream, worker: Rc<Worker>, traffic: Option<Traffic>) -> Self {
        Self(Rc::new(Shared {
            stream: RefCell::new(stream),
            heard: Cell::new(0),
            came: Cell::new(0),
            out: RefCell::default(),
            is_full: Cell::new(false),
            traffic: traffic.map(RefCell::new),
            worker,
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

    /// What goes by, where anybody wants to know.
    pub(super) fn traffic(&self) -> Option<RefMut<'_, Traffic>> {
        self.0.traffic.as_ref().map(RefCell::borrow_mut)
    }

    /// Whether all that the crate wrote was taken from it.
    pub(super) fn is_taken(&self) -> bool {
        !self.0.is_full.get()
    }

    /// Whether the server is where the connection leads to.
    pub(super) fn is_current(&self) -> bool {
        self.0.stream.borrow().is_current()
    }

    /// A turn of the crate. Once it waits, what it wrote is sent.
    ///
    /// # Errors
    /// When nothing can be sent any more.
    pub(super) fn poll_turn<T>(
        &self,
        cx: &mut Context<'_>,
        turn: impl FnOnce(&mut Context<'_>) -> Poll<T>,
    ) -> Poll<io::Result<T>> {
        match turn(cx) {
            Poll::Ready(done) => Poll::Ready(Ok(done)),
            Poll::Pending => match self.0.poll_out(cx) {
                Poll::Ready(Err(e)) => Poll::Ready(Err(e)),
                Poll::Ready(Ok(())) | Poll::Pending => Poll::Pending,
            },
        }
    }
}

impl Shared {
    /// Sends all that waits.
    fn poll_out(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut stream = self.stream.borrow_mut();
        let out = &mut *self.out.borrow_mut();
        while let Some(rest) = out.bytes.get(out.written..)
            && !rest.is_empty()
        {
            out.written += ready!(stream.poll_write(cx, &[IoSlice::new(rest)]))?;
        }
        if out.bytes.capacity() > 0 {
            // A connection that waits has no memory for this.
            self.worker.give_out(std::mem::take(out).bytes);
        }
        stream.poll_flush(cx)
    }

    /// Takes some of it, and notes what is taken.
    fn poll_write(
        &self,
        cx: &mut Context<'_>,
        (first, second): (&[u8], &[u8]),
    ) -> Poll<io::Result<usize>> {
        let taken = self.poll_take(cx, (first, second));
        self.is_full.set(taken.is_pending());
        if let (Poll::Ready(Ok(n)), Some(traffic)) = (&taken, &self.traffic) {
            let traffic = &mut *traffic.borrow_mut();
            let of_first = first.len().min(*n);
            traffic.write(first.get(..of_first).unwrap_or_default());
            traffic.write(second.get(..n - of_first).unwrap_or_default());
        }
        taken
    }

    /// Takes some of it: what fits is gathered.
    fn poll_take(
        &self,
        cx: &mut Context<'_>,
        (first, second): (&[u8], &[u8]),
    ) -> Poll<io::Result<usize>> {
        let out = &mut *self.out.borrow_mut();
        let size = first.len() + second.len();
        loop {
            let waiting = out.bytes.len() - out.written;
            if waiting + size <= GATHER {
                if out.bytes.capacity() == 0 {
                    out.bytes = self.worker.out();
                    out.bytes.reserve(GATHER);
                }
                // What was written is not kept: there may never be a moment at which all was.
                out.bytes.drain(..out.written);
                out.written = 0;
                out.bytes.extend_from_slice(first);
                out.bytes.extend_from_slice(second);
                return Poll::Ready(Ok(size));
            }
            let before = out.bytes.get(out.written..).unwrap_or_default();
            let all = [before, first, second].map(IoSlice::new);
            let all = if before.is_empty() {
                &all[1..]
            } else {
                &all[..]
            };
            let n = ready!(self.stream.borrow_mut().poll_write(cx, all))?;
            let of_before = n.min(waiting);
            out.written += of_before;
            if out.written == out.bytes.len() {
                out.bytes.clear();
                out.written = 0;
            }
            if n > of_before {
                return Poll::Ready(Ok(n - of_before));
            }
        }
    }
}

impl AsyncRead for Io {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        into: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let shared = &self.0;
        let mut traffic = shared.traffic.as_ref().map(RefCell::borrow_mut);
        if let Some(traffic) = &mut traffic {
            traffic.ask();
        }
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
        if let Some(traffic) = &mut traffic {
            traffic.read(room.get(..n).unwrap_or_default(), Worker::now);
        }
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
        self.0.poll_write(cx, (from, &[]))
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        from: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        // It has no more than two pieces: the heads of frames, and data.
        let piece = |at: usize| from.get(at).map_or(&[][..], |piece| piece);
        self.0.poll_write(cx, (piece(0), piece(1)))
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    /// At the end of the turn: see [`Io::poll_turn`].
    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.0.poll_out(cx))?;
        self.0.stream.borrow_mut().poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use std::{future::poll_fn, io::Read as _, net};

    use tokio::net::TcpStream;

    use super::{super::super::stream::Socket, *};

    /// Both ends of a connection.
    async fn pair() -> (Io, net::TcpStream) {
        let listener = net::TcpListener::bind("127.0.0.1:0").unwrap();
        let far = net::TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (near, _) = listener.accept().unwrap();
        near.set_nonblocking(true).unwrap();
        let near = TcpStream::from_std(near).unwrap();
        near.writable().await.unwrap();
        (
            Io::new(
                Stream::Plain(Socket::Tcp(near)),
                Rc::new(Worker::new(0, 1)),
                None,
            ),
            far,
        )
    }

    /// Writes all of it, as the crate does: with the head of a frame before it.
    fn poll_frame(io: &mut Io, cx: &mut Context<'_>, frame: &mut &[u8]) -> Poll<io::Result<()>> {
        while !frame.is_empty() {
            let (head, data) = frame.split_at(frame.len().min(9));
            let both = [IoSlice::new(head), IoSlice::new(data)];
            let n = ready!(Pin::new(&mut *io).poll_write_vectored(cx, &both))?;
            *frame = &frame[n..];
        }
        Pin::new(io).poll_flush(cx)
    }

    #[tokio::test]
    async fn frames_of_a_turn_leave_at_its_end() {
        let (mut io, mut far) = pair().await;
        far.set_nonblocking(true).unwrap();
        let mut seen = [0; 4096];
        let of_turn = io.clone();
        let turn = poll_fn(|cx| {
            let polled = of_turn.poll_turn(cx, |cx| {
                for _ in 0..2 {
                    let frame = poll_frame(&mut io, cx, &mut &[7; 1033][..]);
                    assert!(matches!(frame, Poll::Ready(Ok(()))));
                }
                let early = far.read(&mut seen).map_err(|e| e.kind());
                assert_eq!(early, Err(io::ErrorKind::WouldBlock));
                Poll::<()>::Pending
            });
            assert!(polled.is_pending());
            Poll::Ready(())
        });
        turn.await;
        far.set_nonblocking(false).unwrap();
        assert_eq!(far.read(&mut seen).unwrap(), 2066);
        // A connection that waits has no memory for it.
        assert_eq!(io.0.out.borrow().bytes.capacity(), 0);
    }

    #[tokio::test]
    async fn frames_arrive_as_they_were_written_whatever_fits() {
        let (mut io, mut far) = pair().await;
        // More than the kernel takes at once, in frames of all sizes around what is gathered.
        let sizes = [9, 300, 16_393, 16_375, 16_376, 1, 16_384, 40_000, 7];
        let sizes = || sizes.iter().cycle().take(9 * 200).copied();
        let whole: Vec<u8> = (0..sizes().sum()).map(|i: usize| (i % 251) as u8).collect();
        let all = whole.clone();
        let reader = std::thread::spawn(move || {
            let mut came = Vec::new();
            far.read_to_end(&mut came).unwrap();
            assert!(came == all, "{} of {} bytes", came.len(), all.len());
        });
        let mut rest = &whole[..];
        for size in sizes() {
            assert!(io.0.out.borrow().bytes.len() <= GATHER);
            let mut frame;
            (frame, rest) = rest.split_at(size);
            let of_turn = io.clone();
            let sent =
                poll_fn(|cx| of_turn.poll_turn(cx, |cx| poll_frame(&mut io, cx, &mut frame)));
            sent.await.unwrap().unwrap();
        }
        poll_fn(|cx| Pin::new(&mut io).poll_shutdown(cx))
            .await
            .unwrap();
        reader.join().unwrap();
    }
}
