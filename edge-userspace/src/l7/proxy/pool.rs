//! Connections to servers: those of a worker that wait for their next request, and new ones.

use std::{
    cell::RefCell,
    collections::BTreeMap,
    io,
    net::SocketAddr,
    sync::Arc,
    task::{Context, Waker},
};

use tokio::{
    io::AsyncWriteExt as _,
    net::{TcpStream, UnixStream},
};
use tokio_rustls::{TlsConnector, TlsStream};

use super::{
    exchange::Exchange,
    group::{Group, Server, nanoseconds},
    stream::{Lease, Socket, Stream},
};
use crate::{
    config::proxy::upstream::{Address, SendProxy},
    l7::proxy_protocol::{self, Addresses},
};

/// Addresses of a name that are tried, at the most.
const ADDRESSES: usize = 4;

/// The idle connections of a worker.
#[derive(Debug, Default)]
pub(super) struct Pools {
    /// By the number of the server; the one that came last is at the end.
    idle: RefCell<BTreeMap<usize, Vec<Idle>>>,
}

#[derive(Debug)]
struct Idle {
    stream: Stream,
    /// When it is closed, nanoseconds of the worker's clock.
    until: u64,
}

impl Pools {
    /// A connection to a server that was used before and is open still, for all that is known.
    pub(super) fn take(&self, server: usize) -> Option<Stream> {
        let mut idle = self.idle.borrow_mut();
        let idle = idle.get_mut(&server)?;
        while let Some(Idle { mut stream, .. }) = idle.pop() {
            if stream.is_current() && is_quiet(&mut stream) {
                return Some(stream);
            }
        }
        None
    }

    /// Keeps a connection for the next request, unless there are as many already as a group keeps of
    /// a server. `now` is nanoseconds of the worker's clock.
    pub(super) fn put(&self, (group, server): (&Group, &Server), stream: Stream, now: u64) {
        let keep_alive = &group.config.keep_alive;
        let until = now.saturating_add(nanoseconds(keep_alive.idle));
        let (server, most) = (server.number, keep_alive.connections as usize);
        let mut idle = self.idle.borrow_mut();
        let idle = idle.entry(server).or_default();
        if idle.len() < most && stream.is_current() {
            idle.push(Idle { stream, until });
        }
    }

    /// Closes those whose time is over, and those to where their server is no longer.
    pub(super) fn sweep(&self, now: u64) {
        self.idle.borrow_mut().retain(|_, idle| {
            // The oldest come first.
            let over = idle.partition_point(|idle| idle.until <= now);
            idle.drain(..over);
            idle.retain(|idle| idle.stream.is_current());
            !idle.is_empty()
        });
    }
}

/// Whether the server has neither said anything nor hung up. No system call unless the kernel
/// has told that there is something.
fn is_quiet(stream: &mut Stream) -> bool {
    let mut byte = [0];
    let mut cx = Context::from_waker(Waker::noop());
    stream.poll_read(&mut cx, &mut byte).is_pending()
}

/// What a new connection to a server of the group begins with.
pub(super) fn preface(exchange: &Exchange<'_>, group: &Group) -> Vec<u8> {
    #[cfg(test)]
    let worker = &exchange.conn.worker;
    #[cfg(test)]
    worker
        .panics
        .strike(worker.index, super::panics::At::Connect);
    let mut preface = Vec::new();
    let addresses = addresses(exchange);
    match group.config.proxy_protocol {
        SendProxy::Off => {}
        SendProxy::V1 => proxy_protocol::write_v1(&mut preface, addresses.as_ref()),
        SendProxy::V2 => proxy_protocol::write_v2(&mut preface, addresses.as_ref()),
    }
    preface
}

/// The ends of the client's connection, as the PROXY protocol tells them.
fn addresses(exchange: &Exchange<'_>) -> Option<Addresses> {
    let source = exchange.facts.client?;
    Some(Addresses {
        source,
        destination: exchange.conn.local,
    })
}

/// A new connection to a server, which begins with `preface`.
///
/// # Errors
/// When there is none to be had; the caller bounds the time.
pub(super) async fn connect(server: &Server, preface: &[u8]) -> io::Result<Stream> {
    let mut socket = match &server.address {
        Address::Ip(address) => Socket::Tcp(tcp(*address).await?),
        Address::Name(..) => any(&server.resolved()).await?,
        Address::Unix(path) => Socket::Unix(UnixStream::connect(path).await?),
    };
    socket.write_all(preface).await?;
    let Some(tls) = &server.tls else {
        return Ok(Stream::Plain(socket));
    };
    let connector = TlsConnector::from(tls.config.clone());
    let session = connector.connect(tls.name.clone(), socket).await?;
    Ok(Stream::Tls(Box::new(TlsStream::Client(session))))
}

async fn tcp(address: SocketAddr) -> io::Result<TcpStream> {
    let stream = TcpStream::connect(address).await?;
    // A request is written in one go, and nothing is gained by waiting for more.
    stream.set_nodelay(true)?;
    Ok(stream)
}

/// A connection to the first of some addresses that takes one.
async fn any(addresses: &[(SocketAddr, Arc<Lease>)]) -> io::Result<Socket> {
    let mut last = io::Error::new(io::ErrorKind::NotFound, "the name has no address");
    for (address, lease) in addresses.iter().take(ADDRESSES) {
        match tcp(*address).await {
            Ok(stream) => return Ok(Socket::Named(stream, lease.clone())),
            Err(e) => last = e,
        }
    }
    Err(last)
}
