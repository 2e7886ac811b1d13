//! A new process in the place of this one, without a connection lost.
//!
//! The old process starts the new one and gives it its sockets. The new one reads the
//! configuration, and up to then nothing has changed. Then the old one lets go of all that only
//! one process may have: the lists' database, the pins, the TUN device of health checks, the control
//! socket. The proxy stays, and goes on accepting. The new one puts everything into force and accepts
//! from the same sockets; only then the old one stops, and has nothing left but the connections
//! that it accepted. When the new one fails, the old one takes everything back, just as a daemon
//! does at its start, around the proxy that never stopped.

mod binary;
pub(super) mod inherited;
mod successor;

use std::{
    ffi::OsString,
    os::fd::{AsFd as _, BorrowedFd, RawFd},
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::Result;
use serde::{Deserialize, Serialize};
use tokio::time::{Instant, MissedTickBehavior, interval, timeout};
use tracing::{info, warn};

use super::{
    Signals,
    engine::Kept,
    notify,
    running::{Ground, LAST_ANSWERS, Running},
};
use crate::{
    control::{
        protocol::{Failure, FailureKind, Response},
        server::Reply,
    },
    l7::proxy::Given,
};
use successor::{Successor, Trouble};

/// Names the descriptor by which a new process speaks with the one that started it.
const CHANNEL: &str = "EDGE_UPGRADE";

/// How often the service manager hears that all is well while the engine is away.
const BEAT: Duration = Duration::from_millis(50);
/// How long the service manager may take to be told of a new process.
const NOTIFY: Duration = Duration::from_secs(5);

/// Lines to the new process.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum ToSuccessor {
    /// The first one.
    Sockets(Sockets),
    /// Everything that only one may have is free.
    Take {},
    /// The old process has stopped for good.
    Yours {},
}

/// Lines to the old process.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum ToPredecessor {
    /// The configuration is right.
    Prepared {
        /// The version of the new process.
        version: String,
    },
    /// Everything is in force, and connections are accepted.
    Ready {
        /// Whether the control socket is the one that was given.
        control: bool,
    },
}

/// Descriptors that the new process has.
#[derive(Debug, Serialize, Deserialize)]
struct Sockets {
    /// Where the log goes once the old process no longer reads it.
    stderr: RawFd,
    control: RawFd,
    control_lock: RawFd,
    metrics: Option<RawFd>,
    proxy: Vec<ProxySocket>,
}

/// As [`Given`].
#[derive(Debug, Serialize, Deserialize)]
struct ProxySocket {
    fd: RawFd,
    name: Option<String>,
    is_kept: bool,
}

/// How this process was started.
#[derive(Debug)]
pub(super) struct Origin {
    binary: Option<PathBuf>,
    arguments: Vec<OsString>,
}

impl Origin {
    /// Of this process. To be called at the start: the file may be replaced later.
    pub(super) fn read() -> Self {
        Self {
            binary: std::env::current_exe().ok(),
            arguments: std::env::args_os().skip(1).collect(),
        }
    }
}

/// What is asked for.
#[derive(Debug)]
pub(super) struct Order {
    /// Another program than the one of this process.
    pub(super) binary: Option<PathBuf>,
    /// How long the new process may take.
    pub(super) timeout: Duration,
}

/// What there is after it.
pub(super) enum After {
    /// Nothing has changed; the name of the signal by which it was told to stop meanwhile.
    GoesOn(Running, Option<&'static str>),
    /// Another process has taken over, and the proxy has connections still.
    Gone(Box<Kept>),
}

/// Starts a new process and hands over to it.
///
/// # Errors
/// When the engine has ended by itself, or cannot come back.
pub(super) async fn upgrade(
    ground: &Ground,
    running: Running,
    (order, reply): (Order, Reply),
    origin: &Origin,
    signals: &mut Signals,
) -> Result<After> {
    let deadline = Instant::now() + order.timeout;
    let binary = match binary(&order, origin) {
        Ok(binary) => binary,
        Err(failure) => {
            warn!("not upgraded: {failure}");
            reply.send(Err(failure));
            return Ok(After::GoesOn(running, None));
        }
    };
    info!(binary = %binary.display(), "upgrading");
    let started = start(ground, &binary, origin);
    let (mut successor, mut stopped) = match started {
        Ok(successor) => (successor, None),
        Err(e) => {
            reply.send(Err(refusal(&binary, &Trouble::Start(e), "")));
            return Ok(After::GoesOn(running, None));
        }
    };
    let prepared = tokio::select! {
        prepared = tokio::time::timeout_at(deadline, successor.prepared()) => {
            prepared.unwrap_or(Err(Trouble::Late))
        }
        name = signals.stop() => {
            stopped = Some(name);
            Err(Trouble::Stopped)
        }
    };
    let version = match prepared {
        Ok(version) => version,
        Err(trouble) => {
            let said = successor.end(&trouble).await;
            reply.send(Err(refusal(&binary, &trouble, &said)));
            return Ok(After::GoesOn(running, stopped));
        }
    };
    let (kept, answering) = running.hand_over(ground).await?;
    let mut beats = interval(BEAT);
    beats.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let taken = {
        let mut taking = std::pin::pin!(tokio::time::timeout_at(deadline, successor.take()));
        loop {
            tokio::select! {
                taken = &mut taking => break taken.unwrap_or(Err(Trouble::Late)),
                name = signals.stop() => {
                    stopped = Some(name);
                    break Err(Trouble::Stopped);
                }
                // The engine is away, and that is no reason to be restarted.
                _ = beats.tick() => ground.shared.beat(),
            }
        }
    };
    let has_control = match taken {
        Ok(has_control) => has_control,
        Err(trouble) => {
            let said = successor.end(&trouble).await;
            let failure = refusal(&binary, &trouble, &said);
            let resumed = Running::resume(ground, *kept).await;
            reply.send(Err(failure));
            return Ok(After::GoesOn(resumed?, stopped));
        }
    };
    let pid = successor.pid();
    let telling = tokio::task::spawn_blocking(move || notify::main_process_is(pid));
    match timeout(NOTIFY, telling).await {
        Ok(Ok(Ok(()))) => {}
        Ok(Ok(Err(e))) => warn!("cannot tell the service manager of process {pid}: {e}"),
        Ok(Err(_)) | Err(_) => warn!("the service manager does not listen: not told of {pid}"),
    }
    if has_control {
        ground.control.release();
    }
    successor.release().await;
    reply.send(Ok(Response::Upgraded {
        former_pid: std::process::id(),
        pid,
        version,
    }));
    if timeout(LAST_ANSWERS, answering).await.is_err() {
        warn!("a client of the control socket was cut off");
    }
    info!(pid, "another process has taken over");
    Ok(After::Gone(kept))
}

/// The program to start.
fn binary(order: &Order, origin: &Origin) -> Result<PathBuf, Failure> {
    let invalid = |text: String| Failure::new(FailureKind::Invalid, text);
    let path = order.binary.as_deref().or(origin.binary.as_deref());
    let path = path.ok_or_else(|| {
        invalid(
            "the file that this daemon was started from is not known; name one (--binary)".into(),
        )
    })?;
    binary::checked(path).map_err(|e| invalid(e.to_string()))
}

fn start(ground: &Ground, binary: &Path, origin: &Origin) -> std::io::Result<Successor> {
    let given = ground
        .shared
        .proxy
        .get()
        .map(crate::l7::proxy::View::sockets);
    let given = given.transpose()?.unwrap_or_default();
    let stderr = std::io::stderr().as_fd().try_clone_to_owned()?;
    let [control, control_lock] = ground.control.descriptors();
    let metrics = ground.metrics.as_ref().map(|m| m.descriptor());
    let number = |fd: BorrowedFd<'_>| std::os::fd::AsRawFd::as_raw_fd(&fd);
    let sockets = Sockets {
        stderr: number(stderr.as_fd()),
        control: number(control),
        control_lock: number(control_lock),
        metrics: metrics.map(number),
        proxy: given
            .iter()
            .map(|given: &Given| ProxySocket {
                fd: number(given.socket.as_fd()),
                name: given.name.clone(),
                is_kept: given.is_kept,
            })
            .collect(),
    };
    Successor::start(binary, &origin.arguments, sockets)
}

/// Why there was no upgrade, for the one who asked.
fn refusal(binary: &Path, trouble: &Trouble, said: &str) -> Failure {
    let mut text = format!(
        "{}: the new process {trouble}; the old one goes on as before",
        binary.display()
    );
    if !said.is_empty() {
        text.push_str(". The last that the new one said:\n");
        text.push_str(said);
    }
    warn!("not upgraded: {text}");
    Failure::new(FailureKind::Upgrade, text)
}
