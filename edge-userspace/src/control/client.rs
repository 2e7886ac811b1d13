//! The client's side of the control socket.

use std::{
    io::{self, BufRead, BufReader, Read, Write},
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    time::Duration,
};

use edge_common::addr::Prefix;
use serde::Serialize;

use super::protocol::{
    ClientMessage, Failure, FailureKind, ImportHeader, MAX_CHUNK, Request, Response, ServerMessage,
    VERSION,
};
use crate::wire;

/// The longest line taken from a daemon, in bytes.
const MAX_ANSWER: u64 = 64 << 20;

/// How long a daemon may take to say hello.
const HELLO_PATIENCE: Duration = Duration::from_secs(10);

/// A connection to a daemon.
#[derive(Debug)]
pub struct Client {
    path: PathBuf,
    reader: BufReader<UnixStream>,
}

/// Why a request came to nothing.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// No daemon is there.
    #[error(
        "{path}: no daemon listens on this socket ({source}); start it with `edge run`, or name its socket with --socket or EDGE_SOCKET"
    )]
    Unreachable {
        /// The socket.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// We may not speak to it.
    #[error(
        "{path}: permission denied; only root and the user that the daemon runs as may use the control socket"
    )]
    Denied {
        /// The socket.
        path: PathBuf,
    },
    /// The daemon went away in the middle.
    #[error(
        "{path}: the connection to the daemon was lost ({source}); the request may or may not have been carried out"
    )]
    Lost {
        /// The socket.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// What came was not the protocol.
    #[error("{path}: the daemon's answer makes no sense: {what}")]
    Nonsense {
        /// The socket.
        path: PathBuf,
        /// What is wrong with it.
        what: String,
    },
    /// The daemon said no.
    #[error(transparent)]
    Failed(#[from] Failure),
}

impl Client {
    /// Connects to the daemon and greets it.
    ///
    /// # Errors
    /// [`ClientError`] when there is none, or of another version, or it does
    /// not let us in.
    pub fn connect(path: &Path) -> Result<Self, ClientError> {
        Self::greet(path, false)
    }

    /// The same with a daemon of any version, for nothing but [`Request::Upgrade`].
    ///
    /// # Errors
    /// [`ClientError`] when there is none, or it does not let us in.
    pub fn connect_to_upgrade(path: &Path) -> Result<Self, ClientError> {
        Self::greet(path, true)
    }

    fn greet(path: &Path, upgrade: bool) -> Result<Self, ClientError> {
        let stream = UnixStream::connect(path).map_err(|source| match source.kind() {
            io::ErrorKind::PermissionDenied => ClientError::Denied {
                path: path.to_owned(),
            },
            _ => ClientError::Unreachable {
                path: path.to_owned(),
                source,
            },
        })?;
        let mut client = Self {
            path: path.to_owned(),
            reader: BufReader::with_capacity(64 << 10, stream),
        };
        client.set_patience(Some(HELLO_PATIENCE))?;
        // A daemon that refuses us says so and hangs up before it reads: the
        // failure to write must not hide what it said.
        let sent = client.send(&ClientMessage::Hello {
            protocol: VERSION,
            upgrade,
        });
        match client.receive() {
            Ok(ServerMessage::Hello { protocol, .. }) if upgrade || protocol == VERSION => sent?,
            Ok(other) => return Err(client.nonsense(&other)),
            Err(lost @ ClientError::Lost { .. }) => return Err(sent.err().unwrap_or(lost)),
            Err(e) => return Err(e),
        }
        client.set_patience(None)?;
        Ok(client)
    }

    /// Sends a request and waits for its answer.
    ///
    /// # Errors
    /// [`ClientError`], among them the daemon's [`Failure`].
    pub fn call(&mut self, request: Request) -> Result<Response, ClientError> {
        self.send(&ClientMessage::Call(request))?;
        self.answer(&mut |_, _| ())
    }

    /// Imports entries, all or nothing. `progress` hears of entries done, of
    /// how many: first those sent, then those carried out.
    ///
    /// # Errors
    /// [`ClientError`], among them the daemon's [`Failure`].
    pub fn import(
        &mut self,
        header: ImportHeader,
        prefixes: &[Prefix],
        progress: &mut dyn FnMut(ImportStage, u64, u64),
    ) -> Result<Response, ClientError> {
        /// [`ClientMessage::ImportChunk`], without copying the prefixes.
        #[derive(Serialize)]
        #[serde(rename_all = "snake_case")]
        enum Chunk<'a> {
            ImportChunk {
                #[serde(with = "wire::texts")]
                prefixes: &'a [Prefix],
            },
        }
        self.send(&ClientMessage::ImportBegin(header))?;
        self.answer(&mut |_, _| ())?;
        let total = prefixes.len() as u64;
        let mut sent = 0;
        for chunk in prefixes.chunks(MAX_CHUNK) {
            self.send(&Chunk::ImportChunk { prefixes: chunk })?;
            self.answer(&mut |_, _| ())?;
            sent += chunk.len() as u64;
            progress(ImportStage::Sent, sent, total);
        }
        self.send(&ClientMessage::ImportCommit {})?;
        self.answer(&mut |done, total| progress(ImportStage::Applied, done, total))
    }

    /// Waits between two requests, and sees at once when the daemon goes away.
    ///
    /// # Errors
    /// [`ClientError::Lost`] when it has.
    pub fn pause(&mut self, time: Duration) -> Result<(), ClientError> {
        self.set_patience(Some(time))?;
        // Without a request nothing comes but the end.
        let waited = match self.reader.fill_buf() {
            Ok([]) => Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(_) => Err(io::ErrorKind::InvalidData.into()),
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => Ok(()),
            Err(e) => Err(e),
        };
        waited.map_err(|e| self.lost(e))?;
        self.set_patience(None)
    }

    /// Asks for events: the `last` ones, and if `follow` all that come. Read
    /// them with [`Client::next_event`].
    ///
    /// # Errors
    /// [`ClientError`] when the daemon has gone.
    pub fn events(&mut self, last: u32, follow: bool) -> Result<(), ClientError> {
        self.send(&ClientMessage::Events { last, follow })
    }

    /// The next message of the stream: an event, an attack or a loss; `None` at its
    /// end.
    ///
    /// # Errors
    /// [`ClientError`], among them the daemon's [`Failure`].
    pub fn next_event(&mut self) -> Result<Option<ServerMessage>, ClientError> {
        match self.receive()? {
            message @ (ServerMessage::Event(_)
            | ServerMessage::Attack(_)
            | ServerMessage::Health(_)
            | ServerMessage::Lost(_)) => Ok(Some(message)),
            ServerMessage::Result(Response::EventsEnd {}) => Ok(None),
            other => Err(self.nonsense(&other)),
        }
    }

    /// An answer of the right protocol but the wrong kind.
    pub fn nonsense(&self, what: &impl Serialize) -> ClientError {
        let text = serde_json::to_string(what).unwrap_or_default();
        ClientError::Nonsense {
            path: self.path.clone(),
            what: format!("unexpected {}", text.chars().take(200).collect::<String>()),
        }
    }

    fn answer(&mut self, progress: &mut dyn FnMut(u64, u64)) -> Result<Response, ClientError> {
        loop {
            match self.receive()? {
                ServerMessage::Progress { done, total } => progress(done, total),
                ServerMessage::Result(response) => return Ok(response),
                other => return Err(self.nonsense(&other)),
            }
        }
    }

    fn set_patience(&self, patience: Option<Duration>) -> Result<(), ClientError> {
        self.reader
            .get_ref()
            .set_read_timeout(patience)
            .map_err(|source| self.lost(source))
    }

    fn lost(&self, source: io::Error) -> ClientError {
        ClientError::Lost {
            path: self.path.clone(),
            source,
        }
    }

    fn send(&mut self, message: &impl Serialize) -> Result<(), ClientError> {
        let mut line = serde_json::to_vec(message).map_err(|e| self.lost(e.into()))?;
        line.push(b'\n');
        self.reader
            .get_mut()
            .write_all(&line)
            .map_err(|e| self.lost(e))
    }

    /// The next line; a failure that the daemon reports is an error.
    fn receive(&mut self) -> Result<ServerMessage, ClientError> {
        let mut line = Vec::new();
        let read = (&mut self.reader)
            .take(MAX_ANSWER)
            .read_until(b'\n', &mut line);
        match read {
            Ok(_) if line.last() == Some(&b'\n') => {}
            Ok(_) if line.len() as u64 == MAX_ANSWER => {
                return Err(ClientError::Nonsense {
                    path: self.path.clone(),
                    what: format!("a line of more than {MAX_ANSWER} bytes"),
                });
            }
            Ok(_) => return Err(self.lost(io::ErrorKind::UnexpectedEof.into())),
            Err(e) => return Err(self.lost(e)),
        }
        match serde_json::from_slice(&line) {
            Ok(ServerMessage::Error(failure)) if failure.kind == FailureKind::Denied => {
                Err(ClientError::Denied {
                    path: self.path.clone(),
                })
            }
            Ok(ServerMessage::Error(failure)) => Err(failure.into()),
            Ok(message) => Ok(message),
            Err(e) => Err(ClientError::Nonsense {
                path: self.path.clone(),
                what: e.to_string(),
            }),
        }
    }
}

/// How far an import has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ImportStage {
    /// Entries are being sent to the daemon.
    Sent,
    /// The daemon is putting them into force.
    Applied,
}
