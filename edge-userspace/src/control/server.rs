//! The daemon's side of the control socket.
//!
//! Everything a client can do is bounded: connections, followers of events,
//! imports at once, length of a line, time to send one and to take an answer.

use std::{fmt, io, sync::Arc, time::Duration};

use tokio::{
    net::UnixStream,
    sync::{Semaphore, oneshot, watch},
    task::JoinSet,
};

use super::{
    connection::Connection,
    events::Hub,
    protocol::{Failure, FailureKind, Request, Response, ServerMessage},
    socket::Socket,
    stats::Stats,
};
use crate::status::Source;

/// Who carries requests out: the daemon's engine.
pub trait Handler: Source {
    /// Takes a request and returns at once; the answer comes by `reply`, from
    /// any thread. When the engine's queue is full, answer
    /// [`FailureKind::Busy`] instead of waiting.
    fn handle(&self, request: Request, reply: Reply);

    /// The most prefixes an import may have: what the tables can hold.
    fn import_limit(&self) -> u64;
}

/// Entries done, of how many.
type Progress = (u64, u64);

/// The way back to the client that sent a request. Never blocks; when it is
/// dropped without an answer, the client gets an internal error.
pub struct Reply {
    progress: watch::Sender<Progress>,
    answer: oneshot::Sender<Result<Response, Failure>>,
}

/// The server's end of a [`Reply`].
pub struct Pending {
    /// The latest progress.
    pub progress: watch::Receiver<Progress>,
    /// The answer.
    pub answer: oneshot::Receiver<Result<Response, Failure>>,
}

impl Reply {
    /// A reply and its other end.
    pub fn channel() -> (Self, Pending) {
        let (progress, progress_in) = watch::channel((0, 0));
        let (answer, answer_in) = oneshot::channel();
        (
            Self { progress, answer },
            Pending {
                progress: progress_in,
                answer: answer_in,
            },
        )
    }

    /// Tells how far the request has come. The client sees the latest, not each.
    pub fn progress(&self, done: u64, total: u64) {
        self.progress.send_replace((done, total));
    }

    /// Answers. A client that has gone is no error.
    pub fn send(self, answer: Result<Response, Failure>) {
        // The receiver is gone when the client is; nobody is left to tell.
        let _ = self.answer.send(answer);
    }
}

impl fmt::Debug for Reply {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Reply")
    }
}

/// Bounds of the server.
#[derive(Clone, Copy, Debug)]
pub struct Bounds {
    /// Connections at once.
    pub connections: usize,
    /// Connections at once that follow events.
    pub followers: usize,
    /// From the connection to the whole hello.
    pub hello: Duration,
    /// From an answer to the whole next line.
    pub idle: Duration,
    /// For a client to take one message (not in a stream of events).
    pub write: Duration,
}

impl Default for Bounds {
    fn default() -> Self {
        Self {
            connections: 64,
            followers: 16,
            hello: Duration::from_secs(5),
            idle: Duration::from_secs(600),
            write: Duration::from_secs(30),
        }
    }
}

/// What all connections share.
pub(super) struct Shared {
    pub(super) handler: Arc<dyn Handler>,
    pub(super) hub: Arc<Hub>,
    pub(super) stats: Arc<Stats>,
    pub(super) bounds: Bounds,
    /// A permit a follower.
    pub(super) followers: Semaphore,
    /// One import at a time, so that their memory is bounded.
    pub(super) import: Semaphore,
}

/// The server.
pub struct Server {
    socket: Arc<Socket>,
    shared: Arc<Shared>,
    owner: u32,
}

impl Server {
    /// A server that listens on `socket` and gives requests to `handler`.
    pub fn new(
        socket: impl Into<Arc<Socket>>,
        handler: Arc<dyn Handler>,
        hub: Arc<Hub>,
        stats: Arc<Stats>,
        bounds: Bounds,
    ) -> Self {
        Self {
            socket: socket.into(),
            shared: Arc::new(Shared {
                handler,
                hub,
                stats,
                bounds,
                followers: Semaphore::new(bounds.followers),
                import: Semaphore::new(1),
            }),
            // SAFETY: geteuid has no preconditions and always succeeds (geteuid(2)).
            owner: unsafe { libc::geteuid() },
        }
    }

    /// Serves until `stop` becomes true (or its sender is gone). Requests under
    /// way are then still answered; idle connections are closed.
    pub async fn run(self, mut stop: watch::Receiver<bool>) {
        let mut connections = JoinSet::new();
        loop {
            let accepted = tokio::select! {
                _ = stop.wait_for(|stop| *stop) => break,
                Some(done) = connections.join_next() => {
                    if let Err(e) = done {
                        tracing::error!("a control connection failed: {e}");
                    }
                    continue;
                }
                accepted = self.socket.listener.accept() => accepted,
            };
            match accepted {
                Ok((stream, _)) => {
                    if connections.len() >= self.shared.bounds.connections {
                        refuse(
                            &stream,
                            FailureKind::Busy,
                            "too many connections to the control socket; try again later",
                        );
                    } else if self.is_allowed(&stream) {
                        let connection = Connection::new(stream, self.shared.clone());
                        connections.spawn(connection.run(stop.clone()));
                    } else {
                        refuse(
                            &stream,
                            FailureKind::Denied,
                            "only root and the user that the daemon runs as may use the control socket",
                        );
                    }
                }
                Err(e) => {
                    // Out of file descriptors, for instance: it passes.
                    tracing::warn!("cannot accept on the control socket: {e}");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            }
        }
        while connections.join_next().await.is_some() {}
    }

    fn is_allowed(&self, stream: &UnixStream) -> bool {
        stream
            .peer_cred()
            .is_ok_and(|peer| may_connect(peer.uid(), self.owner))
    }
}

/// Whether a user may use the socket of a daemon that runs as `owner`.
const fn may_connect(uid: u32, owner: u32) -> bool {
    uid == 0 || uid == owner
}

/// Says why not, if the client takes it without waiting, and hangs up.
fn refuse(stream: &UnixStream, kind: FailureKind, message: &str) {
    let mut line =
        serde_json::to_vec(&ServerMessage::Error(Failure::new(kind, message))).unwrap_or_default();
    line.push(b'\n');
    match stream.try_write(&line) {
        Ok(_) => {}
        Err(e) if e.kind() == io::ErrorKind::WouldBlock => {}
        Err(e) => tracing::debug!("cannot tell a control client that it is refused: {e}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_root_and_the_owner() {
        assert!(may_connect(0, 0) && may_connect(0, 7) && may_connect(7, 7));
        assert!(!may_connect(8, 7) && !may_connect(7, 0));
    }
}
