//! The command line: arguments in, requests to the daemon, text or JSON out.
//!
//! With `--json` every command prints JSON lines: one object a line, one line
//! for what is one thing. Errors go to stderr, in the same form.

mod apply;
mod args;
mod attacks;
mod backends;
mod decap;
mod duration;
mod events;
mod import;
mod limits;
mod lists;
mod offline;
mod output;
mod pcap;
mod proxy;
mod routes;
mod status;
mod text;
mod upgrade;

use std::{
    io::{self, Write as _},
    path::{Path, PathBuf},
    process::ExitCode,
    time::Duration,
};

use crate::{
    config::ConfigError,
    control::{
        client::{Client, ClientError},
        protocol::{FailureKind, Request, Response},
    },
    entry::List,
    status::decap::News,
};
use args::Command;
pub use args::{DecapArgs, RunArgs};
use output::Out;

/// How a command ends. The numbers are documented and do not change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
enum Exit {
    /// The operation failed, or an entry to remove was not there.
    Failed = 1,
    /// The command line, a file or a value is wrong; nothing was changed.
    Input = 2,
    /// No daemon listens on the socket.
    Unreachable = 3,
    /// The socket may not be used by this user.
    Denied = 4,
}

/// Why a command did not succeed.
#[derive(Debug)]
enum Error {
    /// The daemon or the way to it.
    Client(ClientError),
    /// The daemon went away while it was watched.
    Gone(PathBuf),
    /// What the user gave is wrong.
    Input(String),
    /// Something else did not work.
    Failed(String),
    /// All was said on stdout; only the exit code is missing.
    Told,
    /// stdout takes no more.
    Output(io::Error),
}

impl From<ClientError> for Error {
    fn from(e: ClientError) -> Self {
        Self::Client(e)
    }
}

impl From<io::Error> for Error {
    fn from(e: io::Error) -> Self {
        Self::Output(e)
    }
}

impl From<ConfigError> for Error {
    fn from(e: ConfigError) -> Self {
        Self::Input(e.to_string())
    }
}

impl Error {
    fn exit(&self) -> Exit {
        match self {
            Self::Client(ClientError::Unreachable { .. }) | Self::Gone(_) => Exit::Unreachable,
            Self::Client(ClientError::Denied { .. }) => Exit::Denied,
            Self::Client(ClientError::Failed(failure)) => match failure.kind {
                FailureKind::Denied => Exit::Denied,
                FailureKind::Invalid | FailureKind::Config => Exit::Input,
                _ => Exit::Failed,
            },
            Self::Input(_) => Exit::Input,
            Self::Client(_) | Self::Failed(_) | Self::Told | Self::Output(_) => Exit::Failed,
        }
    }

    /// The class of the error for programs.
    fn kind(&self) -> String {
        match self {
            Self::Client(ClientError::Unreachable { .. }) | Self::Gone(_) => {
                "unreachable".to_owned()
            }
            Self::Client(ClientError::Denied { .. }) => "denied".to_owned(),
            Self::Client(ClientError::Lost { .. }) => "lost".to_owned(),
            Self::Client(ClientError::Nonsense { .. }) => "protocol".to_owned(),
            Self::Client(ClientError::Failed(failure)) => serde_json::to_value(failure.kind)
                .ok()
                .and_then(|v| v.as_str().map(str::to_owned))
                .unwrap_or_default(),
            Self::Input(_) => "invalid".to_owned(),
            Self::Failed(_) | Self::Told | Self::Output(_) => "failed".to_owned(),
        }
    }

    /// What to print; nothing when all was said, or nobody listens any more.
    fn message(&self) -> Option<String> {
        match self {
            Self::Client(e) => Some(e.to_string()),
            Self::Gone(socket) => Some(format!(
                "{}: the daemon went away; its program in the kernel goes on unless it was told \
                 to detach",
                socket.display()
            )),
            Self::Input(m) | Self::Failed(m) => Some(m.clone()),
            Self::Told => None,
            Self::Output(e) if e.kind() == io::ErrorKind::BrokenPipe => None,
            Self::Output(e) => Some(format!("cannot write the output: {e}")),
        }
    }
}

/// Reads the command line and does what it says. `run` is the daemon and `decapsulate`
/// the decapsulator, which come back when they end; the latter has news to print.
pub fn main(
    run: impl FnOnce(RunArgs) -> anyhow::Result<()>,
    decapsulate: impl FnOnce(DecapArgs, &mut dyn FnMut(&News) -> io::Result<()>) -> anyhow::Result<()>,
) -> ExitCode {
    let cli = args::parse();
    let json = cli.global.json;
    let mut out = Out::new(io::stdout().lock(), json);
    let result = execute(cli.command, run, decapsulate, &cli.global.socket, &mut out)
        .and_then(|()| out.flush().map_err(Error::Output));
    let Err(error) = result else {
        return ExitCode::SUCCESS;
    };
    if let Error::Output(e) = &error
        && e.kind() == io::ErrorKind::BrokenPipe
    {
        // `edge blacklist export | head` has what it wanted.
        return ExitCode::SUCCESS;
    }
    if let Some(message) = error.message() {
        // With nobody left to read it, only the exit code tells.
        let _ = if json {
            let line = serde_json::json!({"error": {"kind": error.kind(), "message": message}});
            writeln!(io::stderr(), "{line}")
        } else {
            writeln!(io::stderr(), "edge: {message}")
        };
    }
    ExitCode::from(error.exit() as u8)
}

fn execute<W: io::Write>(
    command: Command,
    run: impl FnOnce(RunArgs) -> anyhow::Result<()>,
    decapsulate: impl FnOnce(DecapArgs, &mut dyn FnMut(&News) -> io::Result<()>) -> anyhow::Result<()>,
    socket: &Path,
    out: &mut Out<W>,
) -> Result<(), Error> {
    match command {
        Command::Run(args) => run(args).map_err(|e| match e.downcast::<ConfigError>() {
            Ok(e) => e.into(),
            Err(e) => Error::Failed(format!("{e:#}")),
        }),
        Command::Decap(args) => decapsulate(args, &mut |news| decap::tell(news, out))
            .map_err(|e| Error::Failed(format!("{e:#}"))),
        Command::Check { config } => offline::check(&config, socket, out),
        Command::Apply { config, dry_run } => apply::apply(&config, dry_run, socket, out),
        Command::Reasons => offline::reasons(out),
        Command::Status { watch } => match watch {
            None => status::status(socket, out),
            Some(seconds) => status::watch(Duration::from_secs(seconds), socket, out),
        },
        Command::Attacks(command) => attacks::execute(command, socket, out),
        Command::Backend(command) => backends::execute(command, socket, out),
        Command::Upstream(command) => proxy::execute(command, socket, out),
        Command::Routes(command) => routes::execute(command, socket, out),
        Command::Reload => status::reload(socket, out),
        Command::Upgrade(args) => upgrade::upgrade(&args, socket, out),
        Command::Blacklist(command) => lists::execute(List::Black, command, socket, out),
        Command::Allow(command) => lists::execute(List::Allow, command, socket, out),
        Command::Lookup { address } => lists::lookup(address, socket, out),
        Command::Limits(command) => limits::execute(command, socket, out),
        Command::Events { last, follow } => events::events(last, follow, socket, out),
    }
}

/// One request on a connection of its own.
fn ask(socket: &Path, request: Request) -> Result<Response, Error> {
    Ok(Client::connect(socket)?.call(request)?)
}

/// An answer of the wrong kind.
fn unexpected(socket: &Path, response: &Response) -> Error {
    ClientError::Nonsense {
        path: PathBuf::from(socket),
        what: format!("unexpected {response:?}")
            .chars()
            .take(200)
            .collect(),
    }
    .into()
}
