//! One connection to the control socket.

use std::{io, sync::Arc, time::Duration};

use edge_common::addr::Prefix;
use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader},
    net::{
        UnixStream,
        unix::{OwnedReadHalf, OwnedWriteHalf},
    },
    sync::{SemaphorePermit, broadcast::error::RecvError, watch},
    time::timeout,
};

use super::{
    check,
    protocol::{
        Addition, ClientMessage, Command, Failure, FailureKind, ImportHeader, MAX_CHUNK, MAX_LINE,
        Request, Response, ServerMessage, VERSION,
    },
    server::{Reply, Shared},
};

/// How often a client hears of progress.
const PROGRESS_INTERVAL: Duration = Duration::from_millis(100);

/// A connection of a client that was let in.
pub(super) struct Connection {
    input: Input,
    output: Output,
    shared: Arc<Shared>,
}

/// Why a connection ends.
enum End {
    /// The client has gone, is too slow or the daemon stops: nothing to say.
    Quiet,
    /// The client does not speak the protocol.
    Malformed(Failure),
}

impl From<io::Error> for End {
    fn from(e: io::Error) -> Self {
        tracing::debug!("control connection: {e}");
        Self::Quiet
    }
}

fn malformed(message: impl Into<String>) -> End {
    End::Malformed(Failure::new(FailureKind::Protocol, message))
}

/// An import that was begun and not yet committed.
struct Import<'a> {
    header: ImportHeader,
    prefixes: Vec<Prefix>,
    limit: u64,
    _permit: SemaphorePermit<'a>,
}

impl Connection {
    pub(super) fn new(stream: UnixStream, shared: Arc<Shared>) -> Self {
        let (read, write) = stream.into_split();
        Self {
            input: Input {
                reader: BufReader::with_capacity(64 << 10, read),
                line: Vec::new(),
            },
            output: Output {
                stream: write,
                line: Vec::new(),
                patience: shared.bounds.write,
                broken: false,
            },
            shared,
        }
    }

    pub(super) async fn run(mut self, stop: watch::Receiver<bool>) {
        if let Err(End::Malformed(failure)) = self.serve(stop).await {
            self.shared.stats.count(Command::Malformed, false);
            // The client may be gone already; it is hung up on anyway.
            let _ = self.output.send(&ServerMessage::Error(failure)).await;
        }
    }

    async fn serve(&mut self, mut stop: watch::Receiver<bool>) -> Result<(), End> {
        let shared = self.shared.clone();
        let is_same = self.greet().await?;
        let mut import = None;
        loop {
            let message = tokio::select! {
                message = self.input.message(shared.bounds.idle) => message?,
                _ = stop.wait_for(|stop| *stop) => return Ok(()),
            };
            let Some(message) = message else {
                return Ok(());
            };
            if !is_same && !matches!(message, ClientMessage::Call(Request::Upgrade { .. })) {
                return Err(malformed("a client of another version may only upgrade"));
            }
            let (command, answer) = match message {
                ClientMessage::Hello { .. } => return Err(malformed("a second hello")),
                ClientMessage::Call(request) => (request.command(), self.call(request).await),
                ClientMessage::ImportBegin(header) => {
                    // A former import gives its permit back first.
                    import = None;
                    match begin(&shared, header) {
                        Ok(begun) => {
                            import = Some(begun);
                            self.answer(Ok(Response::Import { prefixes: 0 })).await?;
                            continue;
                        }
                        Err(failure) => (Command::Import, Err(failure)),
                    }
                }
                ClientMessage::ImportChunk { prefixes } => {
                    let Some(begun) = &mut import else {
                        return Err(malformed("import_chunk without import_begin"));
                    };
                    match begun.take(prefixes) {
                        Ok(prefixes) => {
                            self.answer(Ok(Response::Import { prefixes })).await?;
                            continue;
                        }
                        Err(failure) => {
                            import = None;
                            (Command::Import, Err(failure))
                        }
                    }
                }
                ClientMessage::ImportCommit {} => {
                    let Some(begun) = import.take() else {
                        return Err(malformed("import_commit without import_begin"));
                    };
                    let request = Request::Add(Addition {
                        header: begun.header,
                        prefixes: begun.prefixes,
                    });
                    // The permit is given back only when the engine is done with it.
                    let answer = self.engine(request).await;
                    drop(begun._permit);
                    (Command::Import, answer)
                }
                ClientMessage::Events { last, follow } => {
                    return self.events(last, follow, stop).await;
                }
            };
            shared.stats.count(command, answer.is_ok());
            self.answer(answer).await?;
        }
    }

    /// Tells whether the client speaks the same version.
    async fn greet(&mut self) -> Result<bool, End> {
        let is_same = match self.input.message(self.shared.bounds.hello).await? {
            Some(ClientMessage::Hello { protocol, upgrade }) => {
                let is_same = protocol == VERSION;
                if !is_same && !upgrade {
                    return Err(malformed(format!(
                        "the client speaks version {protocol} of the control protocol, this daemon version {VERSION}; use the edge binary of version {} (/proc/{}/exe)",
                        env!("CARGO_PKG_VERSION"),
                        std::process::id()
                    )));
                }
                is_same
            }
            Some(_) => return Err(malformed("the first line must be a hello")),
            None => return Err(End::Quiet),
        };
        self.output
            .send(&ServerMessage::Hello {
                protocol: VERSION,
                version: env!("CARGO_PKG_VERSION").to_owned(),
            })
            .await?;
        Ok(is_same)
    }

    async fn answer(&mut self, answer: Result<Response, Failure>) -> Result<(), End> {
        self.output
            .send(&match answer {
                Ok(response) => ServerMessage::Result(response),
                Err(failure) => ServerMessage::Error(failure),
            })
            .await
    }

    async fn call(&mut self, request: Request) -> Result<Response, Failure> {
        check::request(&request)?;
        if let Request::Status {} = request {
            let shared = self.shared.clone();
            return tokio::task::spawn_blocking(move || shared.handler.status())
                .await
                .map(|status| Response::Status(Box::new(status)))
                .map_err(|e| Failure::new(FailureKind::Internal, e.to_string()));
        }
        self.engine(request).await
    }

    /// Has the engine carry a request out, and passes its progress on.
    async fn engine(&mut self, request: Request) -> Result<Response, Failure> {
        let (reply, mut pending) = Reply::channel();
        self.shared.handler.handle(request, reply);
        let mut tick = tokio::time::interval(PROGRESS_INTERVAL);
        loop {
            tokio::select! {
                biased;
                answer = &mut pending.answer => {
                    return answer.unwrap_or_else(|_| Err(Failure::new(
                        FailureKind::Internal,
                        "the daemon dropped the request; see its log",
                    )));
                }
                _ = tick.tick() => {
                    if let Ok(true) = pending.progress.has_changed() {
                        let (done, total) = *pending.progress.borrow_and_update();
                        // A client that has gone need not be told, but what it
                        // asked for is done and counted all the same.
                        let _ = self.output.send(&ServerMessage::Progress { done, total }).await;
                    }
                }
            }
        }
    }

    /// Sends events until the client hangs up; all the last ones if it does not follow.
    async fn events(
        &mut self,
        last: u32,
        follow: bool,
        mut stop: watch::Receiver<bool>,
    ) -> Result<(), End> {
        let shared = self.shared.clone();
        let permit = shared.followers.try_acquire();
        shared.stats.count(Command::Events, permit.is_ok());
        let Ok(_permit) = permit else {
            return self
                .answer(Err(Failure::new(
                    FailureKind::Busy,
                    format!(
                        "{} clients follow events already; end one of them",
                        shared.bounds.followers
                    ),
                )))
                .await;
        };
        let (recent, mut new) = shared.hub.subscribe(last);
        for event in recent {
            self.output.send(&event).await?;
        }
        if !follow {
            return self.answer(Ok(Response::EventsEnd {})).await;
        }
        // A pager may hold the stream as long as it likes: it only loses events.
        self.output.patience = Duration::MAX;
        loop {
            let message = tokio::select! {
                event = new.recv() => match event {
                    Ok(event) => event,
                    Err(RecvError::Lagged(events)) => {
                        shared.hub.count_lost(events);
                        Arc::new(ServerMessage::Lost(events))
                    }
                    Err(RecvError::Closed) => return Ok(()),
                },
                // Nothing may come from the client any more but its end.
                _ = self.input.reader.fill_buf() => return Ok(()),
                _ = stop.wait_for(|stop| *stop) => return Ok(()),
            };
            tokio::select! {
                sent = self.output.send(&message) => sent?,
                _ = stop.wait_for(|stop| *stop) => return Ok(()),
            }
        }
    }
}

fn begin(shared: &Shared, header: ImportHeader) -> Result<Import<'_>, Failure> {
    check::header(&header)?;
    let permit = shared.import.try_acquire().map_err(|_| {
        Failure::new(
            FailureKind::Busy,
            "another import is under way; try again when it is done",
        )
    })?;
    Ok(Import {
        header,
        prefixes: Vec::new(),
        limit: shared.handler.import_limit(),
        _permit: permit,
    })
}

impl Import<'_> {
    /// Takes a chunk, and tells how many prefixes there are now.
    fn take(&mut self, chunk: Vec<Prefix>) -> Result<u64, Failure> {
        if chunk.len() > MAX_CHUNK {
            return Err(Failure::new(
                FailureKind::Invalid,
                format!("{} prefixes in one chunk; at most {MAX_CHUNK}", chunk.len()),
            ));
        }
        let total = (self.prefixes.len() + chunk.len()) as u64;
        if total > self.limit {
            return Err(Failure::new(
                FailureKind::Full,
                format!(
                    "the import has more than {} prefixes, which is all that the tables can hold; raise the keys under `tables` in the configuration",
                    self.limit
                ),
            ));
        }
        self.prefixes.extend(chunk);
        Ok(total)
    }
}

/// Lines from the client.
struct Input {
    reader: BufReader<OwnedReadHalf>,
    line: Vec<u8>,
}

impl Input {
    /// The next message; `None` at the end.
    async fn message(&mut self, patience: Duration) -> Result<Option<ClientMessage>, End> {
        self.line.clear();
        let mut limited = (&mut self.reader).take(MAX_LINE as u64 + 1);
        match timeout(patience, limited.read_until(b'\n', &mut self.line)).await {
            Ok(read) => read?,
            Err(_) => return Err(End::Quiet),
        };
        match self.line.last() {
            None => return Ok(None),
            Some(b'\n') => {}
            Some(_) if self.line.len() > MAX_LINE => {
                return Err(malformed(format!("a line of more than {MAX_LINE} bytes")));
            }
            Some(_) => return Err(malformed("the connection ended inside a line")),
        }
        let message = serde_json::from_slice(&self.line)
            .map_err(|e| malformed(format!("not a message of this protocol: {e}")))?;
        // A large chunk does not keep its memory until the connection ends.
        self.line.shrink_to(64 << 10);
        Ok(Some(message))
    }
}

/// Lines to the client.
struct Output {
    stream: OwnedWriteHalf,
    line: Vec<u8>,
    patience: Duration,
    /// A message did not get through whole; nothing may follow it.
    broken: bool,
}

impl Output {
    async fn send(&mut self, message: &ServerMessage) -> Result<(), End> {
        if self.broken {
            return Err(End::Quiet);
        }
        self.line.clear();
        serde_json::to_writer(&mut self.line, message).map_err(io::Error::from)?;
        self.line.push(b'\n');
        self.broken = true;
        match timeout(self.patience, self.stream.write_all(&self.line)).await {
            Ok(written) => written?,
            Err(_) => return Err(End::Quiet),
        }
        self.broken = false;
        Ok(())
    }
}
