//! What bytes come and go by.

use std::{
    io::{self, IoSlice},
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    task::{Context, Poll},
    time::Duration,
};

use socket2::SockRef;
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::{TcpStream, UnixStream},
};
use tokio_rustls::TlsStream;

/// A connection of the kernel.
#[derive(Debug)]
pub(super) enum Socket {
    Tcp(TcpStream),
    /// To an address of a name.
    Named(TcpStream, Arc<Lease>),
    Unix(UnixStream),
}

/// Whether a name has an address still: connections to it are used for as long as it has.
#[derive(Debug, Default)]
pub(super) struct Lease(AtomicBool);

impl Lease {
    /// The name has other addresses.
    pub(super) fn end(&self) {
        self.0.store(true, Relaxed);
    }

    fn has_ended(&self) -> bool {
        self.0.load(Relaxed)
    }
}

/// A connection to a client or to a server.
#[derive(Debug)]
pub(super) enum Stream {
    Plain(Socket),
    /// Boxed: a session is large, and most connections have none.
    Tls(Box<TlsStream<Socket>>),
}

macro_rules! each_socket {
    ($this:expr, $stream:ident => $do:expr) => {
        match $this {
            Socket::Tcp($stream) | Socket::Named($stream, _) => $do,
            Socket::Unix($stream) => $do,
        }
    };
}

macro_rules! each {
    ($this:expr, $stream:ident => $do:expr) => {
        match $this {
            Stream::Plain($stream) => $do,
            Stream::Tls($stream) => $do,
        }
    };
}

impl AsyncRead for Socket {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        into: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        each_socket!(self.get_mut(), stream => Pin::new(stream).poll_read(cx, into))
    }
}

impl AsyncWrite for Socket {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        from: &[u8],
    ) -> Poll<io::Result<usize>> {
        each_socket!(self.get_mut(), stream => Pin::new(stream).poll_write(cx, from))
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        from: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        each_socket!(self.get_mut(), stream => Pin::new(stream).poll_write_vectored(cx, from))
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        each_socket!(self.get_mut(), stream => Pin::new(stream).poll_flush(cx))
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        each_socket!(self.get_mut(), stream => Pin::new(stream).poll_shutdown(cx))
    }
}

impl Stream {
    /// Reads what there is, at least a byte; 0 at the end.
    ///
    /// # Errors
    /// Those of the connection.
    pub(super) fn poll_read(
        &mut self,
        cx: &mut Context<'_>,
        into: &mut [u8],
    ) -> Poll<io::Result<usize>> {
        let mut into = ReadBuf::new(into);
        let read = each!(self, stream => Pin::new(stream).poll_read(cx, &mut into));
        read.map_ok(|()| into.filled().len())
    }

    /// Writes some of it.
    ///
    /// # Errors
    /// Those of the connection; `WriteZero` if it takes nothing.
    pub(super) fn poll_write(
        &mut self,
        cx: &mut Context<'_>,
        from: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = match from {
            [one] => each!(self, stream => Pin::new(stream).poll_write(cx, one)),
            _ => each!(self, stream => Pin::new(stream).poll_write_vectored(cx, from)),
        };
        match written {
            Poll::Ready(Ok(0)) => Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
            other => other,
        }
    }

    /// Sends what was written: a TLS session may hold it back.
    ///
    /// # Errors
    /// Those of the connection.
    pub(super) fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self {
            // The kernel holds nothing back.
            Self::Plain(_) => Poll::Ready(Ok(())),
            Self::Tls(stream) => Pin::new(stream).poll_flush(cx),
        }
    }

    /// Ends what is sent.
    ///
    /// # Errors
    /// Those of the connection.
    pub(super) fn poll_shutdown(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        each!(self, stream => Pin::new(stream).poll_shutdown(cx))
    }

    /// Waits until there is something to read. Only after a read that found nothing: a TLS session
    /// may have read more than it gave.
    ///
    /// # Errors
    /// Those of the connection.
    pub(super) async fn readable(&self) -> io::Result<()> {
        each_socket!(self.socket(), stream => stream.readable().await)
    }

    /// Whether the kernel ends the connection by a reset.
    pub(super) fn end_by_reset(&self, wanted: bool) {
        if let Socket::Tcp(stream) | Socket::Named(stream, _) = self.socket() {
            let linger = wanted.then_some(Duration::ZERO);
            // Fails only for what is no socket.
            let _ = SockRef::from(stream).set_linger(linger);
        }
    }

    /// Whether the server is where the connection leads to, for all that DNS has told.
    pub(super) fn is_current(&self) -> bool {
        match self.socket() {
            Socket::Named(_, lease) => !lease.has_ended(),
            Socket::Tcp(_) | Socket::Unix(_) => true,
        }
    }

    /// What its bytes go by.
    fn socket(&self) -> &Socket {
        match self {
            Self::Plain(socket) => socket,
            Self::Tls(session) => session.get_ref().0,
        }
    }
}
