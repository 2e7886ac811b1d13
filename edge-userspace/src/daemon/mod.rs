//! The daemon: puts the parts together, starts and ends them.
//!
//! Four threads. The engine owns lists and datapath and does all that changes
//! them. One follows the host for services, and what the program finds of them
//! (`defence`); one checks backends and finds the way to them (`balance`). The other one
//! runs tokio: control socket, metrics, events,
//! signals. They meet in `facts`.

mod backoff;
mod balance;
mod bans;
mod compare;
pub mod decap;
mod defence;
mod engine;
mod facts;
mod inbox;
mod limits;
mod lookup;
mod notify;
mod plan;
mod requests;
mod running;
mod start;
mod upgrade;

use std::{
    io::IsTerminal,
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
        mpsc::sync_channel,
    },
    time::Duration,
};

use anyhow::{Context, Result, anyhow, bail};
use tokio::{
    signal::unix::{Signal, SignalKind, signal},
    time::MissedTickBehavior,
};
use tracing::{info, warn};
use tracing_subscriber::EnvFilter;

use crate::{
    clock::Now,
    config::quantity::spelt,
    control::{
        protocol::Request,
        server::{Handler, Reply},
        socket::Socket,
    },
    l7::proxy,
    metrics,
};
use facts::{Command, Shared};
use inbox::Inbox;
use notify::{News, Notifier};
use running::{Ground, Running};
use upgrade::{After, Gone, Origin, inherited::Inherited};

/// Requests that wait for the engine, at the most.
const QUEUE: usize = 128;

/// What the daemon is started with.
#[derive(Clone, Debug)]
pub struct Options {
    /// The configuration file.
    pub config: PathBuf,
    /// What is logged, in the form of `RUST_LOG`; that variable if `None`, and
    /// `info` without it.
    pub log: Option<String>,
}

/// Runs the daemon until it is told to stop.
///
/// # Errors
/// When it cannot start, with what was in force before still in force; when
/// the engine ends by itself; or when it cannot detach at the end.
pub fn run(options: &Options) -> Result<()> {
    start_log(options.log.as_deref())?;
    let (origin, inherited) = (Origin::read(), Inherited::take()?);
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("cannot start the runtime")?
        .block_on(serve(options, &origin, inherited))
}

fn start_log(directives: Option<&str>) -> Result<()> {
    let filter = match directives {
        Some(text) => EnvFilter::try_new(text).with_context(|| format!("--log {text}"))?,
        None => EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info")),
    };
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal())
        .with_target(false)
        // They would be told where the log goes, and that may be what is closed.
        .log_internal_errors(false)
        .try_init()
        .map_err(|e| anyhow!("cannot start the log: {e}"))
}

async fn serve(options: &Options, origin: &Origin, mut inherited: Inherited) -> Result<()> {
    let started = Now::read();
    let notifier = Notifier::start().context("cannot start a thread")?;
    // From now on a signal ends the daemon in good order or reloads it.
    let mut signals = Signals::new()?;
    let model = start::configuration(&options.config)?;
    let mut predecessor = inherited.predecessor.take();
    let former_metrics = model
        .metrics_listen
        .and_then(|at| inherited.metrics(at, predecessor.as_mut()));
    let mut said = Vec::new();
    if let Some(mut waiting) = predecessor.take() {
        let wait = move || waiting.wait().map(|said| (waiting, said));
        let (waited, servers) = tokio::task::spawn_blocking(wait).await??;
        (predecessor, said) = (Some(waited), servers);
    }
    let (commands, queue) = sync_channel(QUEUE);
    let (upgrades, mut orders) = tokio::sync::mpsc::channel(1);
    let shared = Arc::new(Shared::new(started, commands, upgrades));

    // What can be refused without touching the kernel comes first.
    let former = predecessor.as_mut().and_then(|p| p.control(&model.socket));
    let is_former = former.is_some();
    let control = match former {
        Some((listener, lock)) => Socket::adopt(listener, lock, &model.socket)
            .with_context(|| format!("{}: cannot take it over", model.socket.display()))?,
        None => Socket::bind(&model.socket).await?,
    };
    let metrics = match (former_metrics, model.metrics_listen) {
        (Some(listener), _) => Some(metrics::serve::Server::adopt(listener)?),
        (None, Some(address)) => Some(metrics::serve::Server::bind(address).await?),
        (None, None) => None,
    };
    let ground = Ground {
        path: options.config.clone(),
        shared: shared.clone(),
        notifier: notifier.clone(),
        patience: sd_notify::watchdog_enabled(),
        control: Arc::new(control),
        metrics,
    };
    let inbox = Inbox::new(queue);
    let given = inherited.addresses();
    let left = (inherited.proxy, said);
    let mut running = Running::start(&ground, model, inbox, left).await?;
    if let Some(predecessor) = predecessor {
        let used = shared.proxy.get().map(proxy::View::addresses);
        let used = used.unwrap_or_default();
        let unwanted = given.into_iter().filter(|address| !used.contains(address));
        let unwanted = unwanted.collect();
        let bans = shared.clone();
        let follow = move || {
            predecessor.follow(is_former, unwanted, move |ban| {
                // Whoever has ordered it does not order it again: it waits for the engine.
                bans.command(Command::Ban(ban));
            });
        };
        tokio::task::spawn_blocking(follow).await?;
        ground.control.own();
    }
    if let Some(patience) = ground.patience {
        tokio::spawn(watchdog(shared.clone(), notifier.clone(), patience));
    }
    notifier.tell(News::Ready);
    info!(pid = std::process::id(), "edge is running");

    loop {
        let order = tokio::select! {
            ask = signals.next() => match ask {
                Ask::Stop(name) => {
                    info!("stopping on {name}");
                    break;
                }
                Ask::Reload => {
                    // The engine tells the outcome; nobody else waits for it.
                    shared.handle(Request::Reload {}, Reply::channel().0);
                    continue;
                }
            },
            Some(order) = orders.recv() => order,
            () = running.engine_ended() => break,
        };
        match upgrade::upgrade(&ground, running, order, origin, &mut signals).await? {
            After::GoesOn(back, stopped) => {
                running = back;
                shared.upgrade_is_over();
                if let Some(name) = stopped {
                    info!("stopping on {name}");
                    break;
                }
            }
            After::Stopped(stopped) => {
                info!("stopping on {}", stopped.name);
                notifier.tell(News::Stopping);
                return stopped.stop().await;
            }
            After::Gone(gone) => {
                drop(ground);
                return drain(*gone, &shared, &mut signals).await;
            }
        }
    }
    notifier.tell(News::Stopping);
    running.stop(&ground).await
}

/// Lets connections end that this process has accepted, when another one has taken over. Nothing
/// else is this process's any more.
async fn drain(gone: Gone, shared: &Arc<Shared>, signals: &mut Signals) -> Result<()> {
    let Gone {
        mut proxy,
        unwanted,
        carrier,
        unknown,
    } = gone;
    shared.publish_view(None);
    let patience = proxy.proxy().drain_timeout;
    info!(
        connections = proxy.view().connections(),
        "no more connections are accepted, and those that there are have {} to end",
        spelt(patience)
    );
    let is_enough = Arc::new(AtomicBool::new(false));
    let enough = is_enough.clone();
    let mut draining = tokio::task::spawn_blocking(move || {
        proxy.drain(patience, &unwanted, || enough.load(Relaxed));
    });
    loop {
        let ask = tokio::select! {
            drained = &mut draining => break drained?,
            ask = signals.next() => ask,
        };
        match ask {
            Ask::Stop(name) => {
                info!("ending connections on {name}");
                is_enough.store(true, Relaxed);
            }
            Ask::Reload => info!("another process reads the configuration now; this one only ends"),
        }
    }
    info!("all connections have ended");
    let successor = carrier.finish(shared).await?;
    let Some(_beats) = unknown else {
        return Ok(());
    };
    // For the service manager the service is this process still.
    info!("staying until told to stop, for the service manager knows of no other process");
    tokio::select! {
        name = signals.stop() => {
            info!("stopping on {name}");
            Ok(())
        }
        () = successor.ended() => bail!("the new process has ended"),
    }
}

/// What a signal asks for.
enum Ask {
    Stop(&'static str),
    Reload,
}

struct Signals {
    terminate: Signal,
    interrupt: Signal,
    hangup: Signal,
}

impl Signals {
    fn new() -> Result<Self> {
        let on = |kind| signal(kind).context("cannot listen for signals");
        Ok(Self {
            terminate: on(SignalKind::terminate())?,
            interrupt: on(SignalKind::interrupt())?,
            hangup: on(SignalKind::hangup())?,
        })
    }

    async fn next(&mut self) -> Ask {
        tokio::select! {
            _ = self.terminate.recv() => Ask::Stop("SIGTERM"),
            _ = self.interrupt.recv() => Ask::Stop("SIGINT"),
            _ = self.hangup.recv() => Ask::Reload,
        }
    }

    /// The name of the first one that asks for the end, while nothing can be reloaded.
    async fn stop(&mut self) -> &'static str {
        loop {
            match self.next().await {
                Ask::Stop(name) => return name,
                Ask::Reload => warn!("not reloaded: an upgrade is under way"),
            }
        }
    }
}

/// Tells the service manager that the daemon is alive as long as the engine
/// gives signs of life.
async fn watchdog(shared: Arc<Shared>, notifier: Notifier, patience: Duration) {
    let mut ticks = tokio::time::interval(notify::interval(patience));
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut seen = None;
    loop {
        ticks.tick().await;
        let beats = Some(shared.beats());
        if beats != seen {
            notifier.tell(News::Alive);
            seen = beats;
        }
    }
}
