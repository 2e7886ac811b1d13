//! A new process in the place of this one, without a connection lost.
//!
//! The old process starts the new one and gives it its sockets. The new one reads the
//! configuration, and up to then nothing has changed. Then the old one lets go of all that only
//! one process may have: the lists' database, the pins, the TUN device of health checks, the control
//! socket. The proxy stays, and goes on accepting. The new one puts everything into force and accepts
//! from the same sockets; only then the old one stops, and has nothing left but the connections
//! that it accepted. When the new one fails, the old one takes everything back, just as a daemon
//! does at its start, around the proxy that never stopped.
//!
//! The two may be of different versions: what a message has that its reader does not know is passed
//! over, and what it lacks has a default.

mod bans;
mod binary;
pub(super) mod inherited;
mod successor;

use std::{
    ffi::OsString,
    net::{IpAddr, SocketAddr},
    os::fd::{AsFd as _, BorrowedFd, RawFd},
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use anyhow::Result;
use edge_common::addr::Prefix;
use serde::{Deserialize, Serialize};
use tokio::{
    task::JoinHandle,
    time::{Instant, MissedTickBehavior, interval, timeout},
};
use tracing::{error, info, warn};

use super::{
    Signals,
    engine::Kept,
    facts::Shared,
    notify,
    running::{Ground, LAST_ANSWERS, Running},
};
use crate::{
    config::quantity::spelt,
    control::{
        protocol::{Failure, FailureKind, Response},
        server::Reply,
    },
    l7::proxy::{Ban, Given, Said, Tier},
    wire,
};
use bans::Carrier;
use successor::{Successor, Trouble};

/// Names the descriptor by which a new process speaks with the one that started it.
const CHANNEL: &str = "EDGE_UPGRADE";

/// How often the service manager hears that all is well while the engine is away.
const BEAT: Duration = Duration::from_millis(50);
/// How long it is waited before everything is taken back once more: at first, and at the most.
const RETRY: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(30));
/// How long the service manager may take to be told of a new process.
const NOTIFY: Duration = Duration::from_secs(5);

/// Lines to the new process.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum ToSuccessor {
    /// The first one.
    Sockets(Sockets),
    /// Everything that only one may have is free.
    Take {
        /// What was said of servers of the proxy.
        #[serde(default)]
        servers: Vec<Said>,
    },
    /// The old process has stopped for good.
    Yours {},
    /// It has connections still, and one of their clients is to be banned; any number of times.
    Ban(BanOrder),
}

/// As [`Ban`].
#[derive(Debug, Serialize, Deserialize)]
struct BanOrder {
    #[serde(with = "wire::text")]
    source: Prefix,
    address: IpAddr,
    ttl_ms: u64,
    note: String,
}

impl From<Ban> for BanOrder {
    fn from(ban: Ban) -> Self {
        Self {
            source: ban.source,
            address: ban.address,
            ttl_ms: u64::try_from(ban.ttl.as_millis()).unwrap_or(u64::MAX),
            note: ban.note,
        }
    }
}

impl From<BanOrder> for Ban {
    fn from(order: BanOrder) -> Self {
        Self {
            source: order.source,
            address: order.address,
            ttl: Duration::from_millis(order.ttl_ms),
            note: order.note,
        }
    }
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
        /// Addresses of sockets that were given and are not used: nobody but the old process
        /// accepts what waits in them.
        #[serde(default)]
        unwanted: Vec<SocketAddr>,
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
            binary: { std::env::args_os().next().map(PathBuf::from) }
                // What systemd was told, also where a link of it leads elsewhere by now.
                .filter(|path| path.is_absolute())
                .or_else(|| std::env::current_exe().ok()),
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
    /// There is no new process, and the daemon was told to stop when it had let go of everything.
    Stopped(Stopped),
    /// Another process has taken over.
    Gone(Box<Gone>),
}

/// What is left of a daemon that is to stop.
pub(super) struct Stopped {
    kept: Box<Kept>,
    /// The control socket, of which the last answers are on their way.
    answering: JoinHandle<()>,
    /// The signal.
    pub(super) name: &'static str,
}

impl Stopped {
    /// Ends it in good order.
    ///
    /// # Errors
    /// When detaching fails.
    pub(super) async fn stop(self) -> Result<()> {
        let kept = self.kept;
        let stopped = tokio::task::spawn_blocking(move || kept.stop()).await?;
        last_answers(self.answering).await;
        stopped
    }
}

/// What is left of the old process.
pub(super) struct Gone {
    /// Has connections still.
    pub(super) proxy: Tier,
    /// Addresses of which the new process has no socket.
    pub(super) unwanted: Vec<SocketAddr>,
    /// What the proxy wants of an engine goes to the new process.
    pub(super) carrier: Carrier,
    /// If the service manager does not know of the new process: as long as that lives, this one is
    /// the service, and gives signs of life.
    pub(super) unknown: Option<Beats>,
}

/// Signs of life while there is no engine, which is no reason to be restarted; until this is
/// dropped.
pub(super) struct Beats(JoinHandle<()>);

impl Beats {
    fn start(shared: Arc<Shared>) -> Self {
        Self(tokio::spawn(async move {
            let mut beats = interval(BEAT);
            beats.set_missed_tick_behavior(MissedTickBehavior::Delay);
            loop {
                beats.tick().await;
                shared.beat();
            }
        }))
    }
}

impl Drop for Beats {
    fn drop(&mut self) {
        self.0.abort();
    }
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
            let said = successor.end(&trouble, signals, &mut stopped).await;
            reply.send(Err(refusal(&binary, &trouble, &said)));
            return Ok(After::GoesOn(running, stopped));
        }
    };
    let beats = Beats::start(ground.shared.clone());
    let (kept, answering) = running.hand_over(ground).await?;
    let taking = async {
        if Instant::now() >= deadline {
            return Err(Trouble::Late);
        }
        let said = kept.proxy.view().said();
        let taken = tokio::time::timeout_at(deadline, successor.take(said)).await;
        taken.unwrap_or(Err(Trouble::Late))
    };
    let taken = tokio::select! {
        taken = taking => taken,
        name = signals.stop() => {
            stopped = Some(name);
            Err(Trouble::Stopped)
        }
    };
    let (has_control, unwanted) = match taken {
        Ok(taken) => taken,
        Err(trouble) => {
            let said = successor.end(&trouble, signals, &mut stopped).await;
            let failure = refusal(&binary, &trouble, &said);
            let resumed = match stopped {
                Some(name) => Ok(Err((kept, name))),
                None => resume(ground, kept, signals).await,
            };
            reply.send(Err(failure));
            return Ok(match resumed? {
                Ok(running) => After::GoesOn(running, None),
                Err((kept, name)) => After::Stopped(Stopped {
                    kept,
                    answering,
                    name,
                }),
            });
        }
    };
    let pid = successor.pid();
    let is_known = tell_of(pid).await;
    if has_control {
        ground.control.release();
    }
    successor.release().await;
    reply.send(Ok(Response::Upgraded {
        former_pid: std::process::id(),
        pid,
        version,
    }));
    let Kept { proxy, inbox, .. } = *kept;
    let carrier = Carrier::start(inbox, successor);
    last_answers(answering).await;
    info!(pid, "another process has taken over");
    Ok(After::Gone(Box::new(Gone {
        proxy,
        unwanted,
        carrier,
        unknown: (!is_known).then_some(beats),
    })))
}

/// Takes everything back, again and again until it succeeds: what only looks as if it would never
/// may come to an end, and the proxy serves meanwhile. When the daemon is told to stop, gives back
/// what there is, and the name of the signal.
///
/// # Errors
/// When there is no proxy any more.
async fn resume(
    ground: &Ground,
    mut kept: Box<Kept>,
    signals: &mut Signals,
) -> Result<Result<Running, (Box<Kept>, &'static str)>> {
    let mut pause = Duration::ZERO;
    loop {
        tokio::select! {
            biased;
            name = signals.stop() => return Ok(Err((kept, name))),
            () = tokio::time::sleep(pause) => {}
        }
        match Running::resume(ground, *kept).await {
            Ok(running) => return Ok(Ok(running)),
            Err((e, Some(back))) => {
                kept = back;
                pause = (2 * pause).clamp(RETRY.0, RETRY.1);
                error!(
                    "a new process failed, and this one cannot go on: {e:#}; the proxy and the \
                     programs in the kernel do, and it is tried again in {}",
                    spelt(pause)
                );
            }
            Err((e, None)) => {
                return Err(e.context("a new process failed, and the old one cannot go on"));
            }
        }
    }
}

/// Tells the service manager of a new process. Whether it knows it then, or there is none.
async fn tell_of(pid: u32) -> bool {
    let telling = tokio::task::spawn_blocking(move || notify::main_process_is(pid));
    match timeout(NOTIFY, telling).await {
        Ok(Ok(Ok(()))) => return true,
        Ok(Ok(Err(e))) => warn!("cannot tell the service manager of process {pid}: {e}"),
        Ok(Err(_)) | Err(_) => warn!("the service manager does not listen: not told of {pid}"),
    }
    false
}

/// Waits for the last answers of a control socket that another process has.
async fn last_answers(mut answering: JoinHandle<()>) {
    if timeout(LAST_ANSWERS, &mut answering).await.is_err() {
        warn!("a client of the control socket was cut off");
        // It has the listener still, and the lock of that.
        answering.abort();
        let _ = answering.await;
    }
}

/// The program to start.
fn binary(order: &Order, origin: &Origin) -> Result<PathBuf, Failure> {
    let invalid = |text: String| Failure::new(FailureKind::Invalid, text);
    if std::process::id() == 1 {
        return Err(invalid(
            "the daemon is process 1 of its container, which ends with it: upgrade the container"
                .into(),
        ));
    }
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
