//! The daemon's side of the control socket.

use std::fmt;

use tokio::sync::{oneshot, watch};

use super::protocol::{Failure, Request, Response};
use crate::status::Source;

/// Who carries requests out: the daemon's engine.
pub trait Handler: Source {
    /// Takes a request and returns at once; the answer comes by `reply`, from
    /// any thread. When the engine's queue is full, answer
    /// [`super::protocol::FailureKind::Busy`] instead of waiting.
    fn handle(&self, request: Request, reply: Reply);
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
