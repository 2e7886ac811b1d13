//! A client of [`crate::server::Nginx`]: a connection, one request on it, and its answer.

use std::io;
use std::net::{IpAddr, SocketAddr};

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpSocket, TcpStream};

/// What the client sends, and what the end of the answer looks like.
const REQUEST: &[u8] = b"GET / HTTP/1.1\r\nHost: edge\r\n\r\n";
const ANSWER: &[u8] = b"protected by Edge\n";

/// Whether the whole answer came. The client closes first, so that the waiting for late
/// segments is its own. Sockets are those of the calling thread's network namespace.
///
/// # Errors
/// When the connection is not made, or breaks.
pub async fn get(from: Option<IpAddr>, to: SocketAddr) -> io::Result<bool> {
    let mut stream = connect(from.map(|from| SocketAddr::new(from, 0)), to).await?;
    stream.write_all(REQUEST).await?;
    let mut answer = Vec::with_capacity(1024);
    while !answer.ends_with(ANSWER) {
        if stream.read_buf(&mut answer).await? == 0 {
            return Ok(false);
        }
    }
    Ok(true)
}

/// Connects from an address and port, if one is given (port 0: any).
///
/// # Errors
/// When the address cannot be had, or the connection is not made.
pub async fn connect(from: Option<SocketAddr>, to: SocketAddr) -> io::Result<TcpStream> {
    let socket = match to {
        SocketAddr::V4(_) => TcpSocket::new_v4(),
        SocketAddr::V6(_) => TcpSocket::new_v6(),
    }?;
    if let Some(from) = from {
        socket.bind(from)?;
    }
    socket.connect(to).await
}
