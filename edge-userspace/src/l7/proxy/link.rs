//! A connection that speaks HTTP/1, to a client or to a server: bodies that come and go by it.
//!
//! The head of a message stays at the beginning of the buffer for as long as the message lasts;
//! the rest of the buffer is the window through which its body comes.

use std::{
    io::{self, IoSlice},
    ops::Range,
    task::{Context, Poll, ready},
};

use super::{buffers::Buffer, stream::Stream};
use crate::l7::{
    head::{Field, Framing, Reject},
    http1::{Chunked, write},
};

/// Bytes that wait to be written, beyond which they are written before more is taken. Pieces
/// that fit are copied, so that a head, a small body and its end leave in one go.
const GATHER: usize = 16 * 1024;

/// Why a body cannot be read to its end.
#[derive(Clone, Copy, Debug)]
pub(super) enum BodyError {
    /// The connection broke, or ended before the body did.
    Broken,
    /// It is not as it should be.
    Reject(Reject),
}

impl From<Reject> for BodyError {
    fn from(reject: Reject) -> Self {
        Self::Reject(reject)
    }
}

/// Where the body that comes is.
#[derive(Debug)]
enum Coming {
    /// It has ended.
    Done,
    /// So many bytes are to come.
    Length(u64),
    /// More chunks are to come.
    Chunked(Chunked),
    /// It ends with the connection.
    UntilClose,
}

/// How the body that goes is framed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Going {
    /// As it is.
    Plain,
    /// In chunks; of the one that is begun so many bytes are to follow.
    Chunked { left: usize },
}

/// A connection, and what is under way on it.
#[derive(Debug)]
pub(super) struct Link {
    pub(super) stream: Stream,
    buffer: Buffer,
    /// Bytes of the buffer that are filled.
    filled: usize,
    /// Where the window begins: behind the head.
    base: usize,
    /// The next byte of the body that was not looked at.
    at: usize,
    /// The body's data that lie ready.
    data: Range<usize>,
    coming: Coming,
    /// Whether everything of the body that came is in the window still.
    is_whole: bool,
    /// Trailers, as spans of what begins at `trailers_at`.
    trailers: Vec<Field>,
    trailers_at: usize,
    going: Going,
    /// What waits to be written, and how much of it was.
    out: Vec<u8>,
    written: usize,
    /// Whether a session may hold back what was written.
    is_unflushed: bool,
    /// Whether one that sends no more may still take.
    half_close: bool,
    has_sent_all: bool,
    /// Whether the connection is to end so that what was sent does not look whole.
    is_incomplete: bool,
}

impl Link {
    /// Over a connection, with a buffer that is empty, and whatever `out` holds to be written.
    pub(super) fn new(stream: Stream, buffer: Buffer, out: Vec<u8>) -> Self {
        Self {
            stream,
            buffer,
            filled: 0,
            base: 0,
            at: 0,
            data: 0..0,
            coming: Coming::Done,
            is_whole: true,
            trailers: Vec::new(),
            trailers_at: 0,
            going: Going::Plain,
            out,
            written: 0,
            is_unflushed: false,
            half_close: false,
            has_sent_all: false,
            is_incomplete: false,
        }
    }

    /// The connection, and the memory for what is written.
    pub(super) fn into_parts(self) -> (Stream, Vec<u8>) {
        (self.stream, self.out)
    }

    /// What has come: the head and whatever follows.
    pub(super) fn bytes(&self) -> &[u8] {
        self.buffer.get(..self.filled).unwrap_or_default()
    }

    /// Reads more behind what has come. 0 at the end of the connection.
    ///
    /// # Errors
    /// Those of the connection; `OutOfMemory` when the buffer is full.
    pub(super) fn poll_fill(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        let room = self.buffer.get_mut(self.filled..).unwrap_or_default();
        if room.is_empty() {
            return Poll::Ready(Err(io::ErrorKind::OutOfMemory.into()));
        }
        let n = ready!(self.stream.poll_read(cx, room))?;
        self.filled += n;
        Poll::Ready(Ok(n))
    }

    /// One that ends what it sends is there still, from now on.
    pub(super) const fn bear_half_close(&mut self) {
        self.half_close = true;
    }

    /// Waits until the other side is gone. What it sends meanwhile is kept.
    pub(super) fn poll_gone(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        // One who sends more than fits is not gone.
        while self.has_room() && !self.has_sent_all {
            match self.poll_fill(cx) {
                // Whether it takes anything shows when it is sent that.
                Poll::Ready(Ok(0)) if self.half_close => self.has_sent_all = true,
                Poll::Ready(Ok(0) | Err(_)) => return Poll::Ready(()),
                Poll::Ready(Ok(_)) => {}
                Poll::Pending => break,
            }
        }
        Poll::Pending
    }

    /// Takes what comes of a body while nobody takes its data.
    ///
    /// # Errors
    /// When the other side is gone. The end of a body that ends with the connection is not that.
    pub(super) fn read_ahead(&mut self, cx: &mut Context<'_>) -> Result<(), BodyError> {
        if !matches!(self.coming, Coming::UntilClose) && self.poll_gone(cx).is_ready() {
            return Err(BodyError::Broken);
        }
        Ok(())
    }

    /// Whether what was sent ends with the connection, and is not whole: a reset says so, however
    /// the connection ends, also with the process.
    pub(super) fn set_incomplete(&mut self, is_incomplete: bool) {
        if self.is_incomplete != is_incomplete {
            self.is_incomplete = is_incomplete;
            self.stream.end_by_reset(is_incomplete);
        }
    }

    /// Whether it is.
    pub(super) const fn is_incomplete(&self) -> bool {
        self.is_incomplete
    }

    /// Whether there is room behind what has come.
    pub(super) fn has_room(&self) -> bool {
        self.filled < self.buffer.len()
    }

    /// Begins a body behind a head of so many bytes. A body of chunks may have `most` bytes.
    pub(super) fn begin(&mut self, head: usize, framing: Framing, chunked: Chunked) {
        self.base = head;
        self.at = head;
        self.data = head..head;
        self.is_whole = true;
        self.coming = match framing {
            Framing::None => Coming::Done,
            Framing::Length(length) => Coming::Length(length),
            Framing::Chunked => Coming::Chunked(chunked),
            Framing::UntilClose => Coming::UntilClose,
        };
    }

    /// Goes back to the beginning of the body, if all that came of it is there still.
    pub(super) fn rewind(&mut self, framing: Framing, chunked: Chunked) -> bool {
        if self.is_whole {
            self.begin(self.base, framing, chunked);
        }
        self.is_whole
    }

    /// Whether the body could be sent once more.
    pub(super) const fn is_whole(&self) -> bool {
        self.is_whole
    }

    /// Whether the body has come to its end.
    pub(super) fn has_ended(&self) -> bool {
        self.data.is_empty() && matches!(self.coming, Coming::Done | Coming::Length(0))
    }

    /// What comes from now on, until the connection ends, is one body, and so is what goes.
    pub(super) fn become_tunnel(&mut self) {
        self.is_whole = false;
        self.coming = Coming::UntilClose;
        self.going = Going::Plain;
    }

    /// Nothing of what comes is kept for another try.
    pub(super) fn let_go(&mut self) {
        self.is_whole = false;
    }

    /// Ends the message: what follows it is what has come. Tells whether there is anything.
    pub(super) fn next_message(&mut self) -> bool {
        let rest = self.at.min(self.filled)..self.filled;
        self.filled = rest.len();
        self.buffer.copy_within(rest, 0);
        self.base = 0;
        self.at = 0;
        self.data = 0..0;
        self.coming = Coming::Done;
        self.filled > 0
    }

    /// Takes off what has come of a message that is followed by another: an interim answer.
    pub(super) fn skip(&mut self, head: usize) {
        self.at = head;
        self.next_message();
    }

    /// Waits for data of the body; `false` at its end.
    ///
    /// # Errors
    /// When the body does not come to its end.
    pub(super) fn poll_body(&mut self, cx: &mut Context<'_>) -> Poll<Result<bool, BodyError>> {
        loop {
            if !self.data.is_empty() {
                return Poll::Ready(Ok(true));
            }
            let there = self.filled - self.at;
            match &mut self.coming {
                Coming::Done => return Poll::Ready(Ok(false)),
                Coming::Length(0) => {
                    self.coming = Coming::Done;
                    continue;
                }
                Coming::Length(left) if there > 0 => {
                    let n = usize::try_from(*left).map_or(there, |left| left.min(there));
                    *left -= n as u64;
                    self.data = self.at..self.at + n;
                    self.at += n;
                    continue;
                }
                Coming::UntilClose if there > 0 => {
                    self.data = self.at..self.filled;
                    self.at = self.filled;
                    continue;
                }
                Coming::Chunked(chunked) if there > 0 => {
                    let bytes = self.buffer.get(self.at..self.filled).unwrap_or_default();
                    let step = chunked.step(bytes, &mut self.trailers)?;
                    self.data = self.at + step.data.start..self.at + step.data.end;
                    if step.done {
                        self.coming = Coming::Done;
                        self.trailers_at = self.at;
                    }
                    self.at += step.consumed;
                    if step.done || step.consumed > 0 {
                        continue;
                    }
                }
                Coming::Length(_) | Coming::UntilClose | Coming::Chunked(_) => {}
            }
            self.make_room();
            let is_end = match ready!(self.poll_fill(cx)) {
                Ok(n) => n == 0,
                Err(_) => return Poll::Ready(Err(BodyError::Broken)),
            };
            if is_end {
                if matches!(self.coming, Coming::UntilClose) {
                    self.coming = Coming::Done;
                    continue;
                }
                return Poll::Ready(Err(BodyError::Broken));
            }
        }
    }

    /// Makes the window as large as it can be: of what is in it, only what was not looked at is
    /// needed.
    fn make_room(&mut self) {
        if self.has_room() && self.at < self.filled {
            return;
        }
        // Kept whole for as long as there is room.
        if self.has_room() && self.is_whole && self.buffer.len() - self.filled > GATHER {
            return;
        }
        if self.at == self.base {
            return;
        }
        self.is_whole = false;
        let rest = self.at..self.filled;
        self.filled = self.base + rest.len();
        self.buffer.copy_within(rest, self.base);
        self.at = self.base;
        self.data = self.base..self.base;
    }

    /// The data that lie ready.
    pub(super) fn data(&self) -> &[u8] {
        self.buffer.get(self.data.clone()).unwrap_or_default()
    }

    /// Is done with so many bytes of them.
    pub(super) fn consume(&mut self, n: usize) {
        self.data.start = self.data.end.min(self.data.start + n);
    }

    /// The trailers of a body that has ended, and what they are spans of.
    pub(super) fn trailers(&self) -> (&[Field], &[u8]) {
        let bytes = self.buffer.get(self.trailers_at..self.filled);
        (&self.trailers, bytes.unwrap_or_default())
    }

    /// Where what is to be sent is put together.
    pub(super) fn out(&mut self) -> &mut Vec<u8> {
        &mut self.out
    }

    /// What is sent from now on is a body.
    pub(super) fn send_body(&mut self, framing: Framing) {
        self.going = match framing {
            Framing::Chunked => Going::Chunked { left: 0 },
            Framing::None | Framing::Length(_) | Framing::UntilClose => Going::Plain,
        };
    }

    /// Forgets what was to be sent.
    pub(super) fn forget_out(&mut self) {
        self.out.clear();
        self.written = 0;
    }

    /// Takes some bytes of a body: small ones are copied, to leave with what comes next. 0 of
    /// them when the connection takes no more for now.
    ///
    /// # Errors
    /// Those of the connection.
    pub(super) fn poll_send(
        &mut self,
        cx: &mut Context<'_>,
        data: &[u8],
    ) -> Poll<io::Result<usize>> {
        loop {
            let piece = match &mut self.going {
                Going::Plain => data,
                Going::Chunked { left } => {
                    if *left == 0 {
                        *left = data.len();
                        write::chunk(&mut self.out, data.len());
                    }
                    data.get(..*left).unwrap_or(data)
                }
            };
            let waiting = self.out.len() - self.written;
            if waiting + piece.len() <= GATHER {
                self.out.extend_from_slice(piece);
                let n = piece.len();
                self.sent(n);
                return Poll::Ready(Ok(n));
            }
            let front = self.out.get(self.written..).unwrap_or_default();
            let n = if front.is_empty() {
                ready!(self.stream.poll_write(cx, &[IoSlice::new(piece)]))?
            } else {
                let both = [IoSlice::new(front), IoSlice::new(piece)];
                ready!(self.stream.poll_write(cx, &both))?
            };
            self.is_unflushed = true;
            let of_front = n.min(waiting);
            self.written += of_front;
            if self.written == self.out.len() {
                self.forget_out();
            }
            let n = n - of_front;
            if n > 0 {
                self.sent(n);
                return Poll::Ready(Ok(n));
            }
        }
    }

    /// Notes that so many bytes of data went or wait to go.
    fn sent(&mut self, n: usize) {
        if let Going::Chunked { left } = &mut self.going {
            *left -= n.min(*left);
            if *left == 0 && n > 0 {
                write::chunk_end(&mut self.out);
            }
        }
    }

    /// Ends a body, with trailers if there are any.
    pub(super) fn finish(&mut self, trailers: &[Field], of: &[u8]) {
        if matches!(self.going, Going::Chunked { .. }) {
            write::last_chunk(&mut self.out, of, trailers);
            self.going = Going::Plain;
        }
    }

    /// Whether anything waits to be written, or to leave.
    pub(super) fn has_out(&self) -> bool {
        !self.out.is_empty() || self.is_unflushed
    }

    /// Writes all that waits.
    ///
    /// # Errors
    /// Those of the connection.
    pub(super) fn poll_drain(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while let Some(rest) = self.out.get(self.written..)
            && !rest.is_empty()
        {
            self.written += ready!(self.stream.poll_write(cx, &[IoSlice::new(rest)]))?;
            self.is_unflushed = true;
        }
        self.forget_out();
        ready!(self.stream.poll_flush(cx))?;
        self.is_unflushed = false;
        Poll::Ready(Ok(()))
    }
}

#[cfg(test)]
mod tests {
    use std::{
        future::poll_fn,
        io::Write as _,
        net::{Shutdown, TcpListener},
        rc::Rc,
        time::Duration,
    };

    use super::{
        super::{buffers::Buffers, stream::Socket},
        *,
    };

    /// A link, and the other end of it.
    async fn pair() -> (Link, std::net::TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let near = tokio::net::TcpStream::connect(listener.local_addr().unwrap());
        let near = near.await.unwrap();
        let (far, _) = listener.accept().unwrap();
        let stream = Stream::Plain(Socket::Tcp(near));
        let buffer = Rc::new(Buffers::new(4096)).take();
        (Link::new(stream, buffer, Vec::new()), far)
    }

    /// One whose other end has sent something and will send no more. Its data lie ready.
    async fn ended(framing: Framing) -> Link {
        let (mut link, mut far) = pair().await;
        link.begin(0, framing, Chunked::request(u64::MAX));
        far.write_all(b"hello").unwrap();
        far.shutdown(Shutdown::Write).unwrap();
        assert!(poll_fn(|cx| link.poll_body(cx)).await.unwrap());
        link
    }

    #[tokio::test]
    async fn what_came_before_the_end_of_a_tunnel_is_not_lost_by_reading_ahead() {
        let mut link = ended(Framing::UntilClose).await;
        for _ in 0..10 {
            poll_fn(|cx| Poll::Ready(link.read_ahead(cx)))
                .await
                .unwrap();
            tokio::task::yield_now().await;
        }
        assert_eq!(link.data(), b"hello");
        link.consume(5);
        assert!(!poll_fn(|cx| link.poll_body(cx)).await.unwrap());
    }

    #[tokio::test]
    async fn who_ends_the_connection_is_gone_with_or_without_the_whole_body() {
        for length in [5, 6] {
            let mut link = ended(Framing::Length(length)).await;
            let gone = poll_fn(|cx| match link.read_ahead(cx) {
                Err(error) => Poll::Ready(error),
                Ok(()) => Poll::Pending,
            });
            let gone = tokio::time::timeout(Duration::from_secs(60), gone).await;
            assert!(matches!(gone, Ok(BodyError::Broken)));
        }
    }
}
