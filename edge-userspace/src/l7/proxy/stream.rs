//! What bytes come and go by.

use std::{
    io::{self, IoSlice},
    pin::Pin,
    task::{Context, Poll},
};

use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::{TcpStream, UnixStream},
};
use tokio_rustls::TlsStream;

/// A connection to a client or to a server.
#[derive(Debug)]
pub(super) enum Stream {
    Tcp(TcpStream),
    Unix(UnixStream),
    /// Boxed: a session is large, and most connections have none.
    Tls(Box<TlsStream<TcpStream>>),
}

macro_rules! each {
    ($this:expr, $stream:ident => $do:expr) => {
        match $this {
            Stream::Tcp($stream) => $do,
            Stream::Unix($stream) => $do,
            Stream::Tls($stream) => $do,
        }
    };
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
            Self::Tcp(_) | Self::Unix(_) => Poll::Ready(Ok(())),
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
        match self {
            Self::Tcp(stream) => stream.readable().await,
            Self::Unix(stream) => stream.readable().await,
            Self::Tls(stream) => stream.get_ref().0.readable().await,
        }
    }
}
