//! The daemon: puts the parts together, starts and ends them.
//!
//! Four threads. The engine owns lists and datapath and does all that changes
//! them. One follows the host for services, and what the program finds of them
//! (`defence`); one checks backends and finds the way to them (`balance`). The other one
//! runs tokio: control socket, metrics, events,
//! signals. They meet in `facts`.

mod backoff;
mod balance;
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
mod start;

use std::{
    io::IsTerminal,
    path::PathBuf,
    sync::{Arc, mpsc::sync_channel},
    thread,
    time::Duration,
};

use anyhow::{Context, Result, anyhow};
use tokio::{
    signal::unix::{Signal, SignalKind, signal},
    sync::{mpsc::Receiver, oneshot, watch},
    time::MissedTickBehavior,
};
use tracing::{info, warn};
use tracing_subscriber::EnvFilter;

use crate::{
    clock::Now,
    control::{
        events,
        protocol::Request,
        server::{Bounds, Handler, Reply, Server},
        socket::Socket,
    },
    datapath::{EventRing, Events},
    metrics,
};
use facts::{Command, Shared};
use inbox::Inbox;
use notify::{News, Notifier};

/// Requests that wait for the engine, at the most.
const QUEUE: usize = 128;

/// Ring buffers that wait for their reader, at the most.
const RINGS: usize = 4;

/// Events taken from the ring buffer in one go.
const EVENT_BATCH: usize = 64;

/// How long connections may take to end.
const LAST_ANSWERS: Duration = Duration::from_secs(10);

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
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("cannot start the runtime")?
        .block_on(serve(options))
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
        .try_init()
        .map_err(|e| anyhow!("cannot start the log: {e}"))
}

async fn serve(options: &Options) -> Result<()> {
    let started = Now::read();
    let notifier = Notifier::start().context("cannot start a thread")?;
    // From now on a signal ends the daemon in good order or reloads it.
    let mut signals = Signals::new()?;
    let model = start::configuration(&options.config)?;
    let (commands, queue) = sync_channel(QUEUE);
    let (rings, new_rings) = tokio::sync::mpsc::channel(RINGS);
    let shared = Arc::new(Shared::new(started, commands.clone()));

    // What can be refused without touching the kernel comes first.
    let socket = Socket::bind(&model.socket).await?;
    let metrics = match model.metrics_listen {
        Some(address) => Some(metrics::serve::Server::bind(address).await?),
        None => None,
    };

    let patience = sd_notify::watchdog_enabled();
    let engine = {
        let (path, shared) = (options.config.clone(), shared.clone());
        let notifier = notifier.clone();
        let beat = patience.map_or(Duration::MAX, notify::interval);
        let inbox = Inbox::new(queue);
        let start = move || start::engine(&path, model, shared, inbox, rings, notifier, beat);
        tokio::task::spawn_blocking(start).await??
    };
    let (ended, mut engine_ended) = oneshot::channel::<()>();
    let engine = thread::Builder::new()
        .name("engine".into())
        .spawn(move || {
            // Sent by being dropped, also in a panic.
            let _ended = ended;
            engine.run()
        })
        .context("cannot start the engine")?;

    let (stop, stopped) = watch::channel(false);
    let source = shared.clone();
    let server = tokio::spawn(
        Server::new(
            socket,
            shared.clone(),
            shared.hub.clone(),
            shared.stats.clone(),
            Bounds::default(),
        )
        .run(stopped.clone()),
    );
    let metrics = metrics.map(|m| tokio::spawn(m.run(source, stopped)));
    tokio::spawn(forward_events(new_rings, shared.clone()));
    if let Some(patience) = patience {
        tokio::spawn(watchdog(shared.clone(), notifier.clone(), patience));
    }
    notifier.tell(News::Ready);
    info!(pid = std::process::id(), "edge is running");

    loop {
        let ask = tokio::select! {
            ask = signals.next() => ask,
            _ = &mut engine_ended => break,
        };
        match ask {
            Ask::Stop(name) => {
                info!("stopping on {name}");
                break;
            }
            // The engine tells the outcome; nobody else waits for it.
            Ask::Reload => shared.handle(Request::Reload {}, Reply::channel().0),
        }
    }
    notifier.tell(News::Stopping);
    stop.send_replace(true);
    if tokio::time::timeout(LAST_ANSWERS, server).await.is_err() {
        warn!("a client of the control socket was cut off");
    }
    if let Some(metrics) = metrics {
        metrics.abort();
    }
    tokio::task::spawn_blocking(move || {
        // Fails when the engine has ended by itself.
        let _ = commands.send(Command::Stop);
        engine
            .join()
            .unwrap_or_else(|_| Err(anyhow!("the engine panicked; the programs stay in force")))
    })
    .await?
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
}

/// Publishes what comes out of the ring buffer, and changes over to a new one
/// when there is one.
async fn forward_events(mut rings: Receiver<EventRing>, shared: Arc<Shared>) {
    let mut events = None;
    let mut batch = Vec::with_capacity(EVENT_BATCH);
    loop {
        let ring = match &mut events {
            None => rings.recv().await,
            Some(source) => tokio::select! {
                ring = rings.recv() => ring,
                read = Events::read(source, &mut batch, EVENT_BATCH) => {
                    if let Err(e) = read {
                        warn!("no more sampled events: {e}");
                        events = None;
                    }
                    publish(&mut batch, &shared);
                    // A flood of events must not keep requests waiting.
                    tokio::task::yield_now().await;
                    continue;
                }
            },
        };
        let Some(ring) = ring else {
            return;
        };
        match Events::new(ring) {
            Ok(source) => events = Some(source),
            Err(e) => warn!("no sampled events: {e}"),
        }
    }
}

fn publish(batch: &mut Vec<edge_common::abi::Event>, shared: &Shared) {
    let now = Now::read();
    for event in batch.drain(..) {
        let at = now.unix_ms_of(event.time_ns);
        let interface = shared.interface_name(event.ifindex);
        if let Some(event) = events::tell(&event, &interface, at) {
            shared.hub.publish(event);
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
