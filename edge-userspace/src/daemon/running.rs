//! What a daemon is while it owns its state: the engine, and those who ask it.

use std::{path::PathBuf, sync::Arc, thread, time::Duration};

use anyhow::{Context, Error, Result, anyhow};
use tokio::{
    sync::{mpsc::Receiver, oneshot, watch},
    task::JoinHandle,
};
use tracing::warn;

use super::{
    engine::Kept,
    facts::{Command, Shared},
    inbox::Inbox,
    notify::{self, Notifier},
    start::{self, Before},
};
use crate::{
    clock::Now,
    config::Model,
    control::{
        events,
        server::{Bounds, Server},
        socket::Socket,
    },
    datapath::{EventRing, Events},
    l7::proxy::{Given, Said},
    metrics,
};

/// Ring buffers that wait for their reader, at the most.
const RINGS: usize = 4;

/// Events taken from the ring buffer in one go.
const EVENT_BATCH: usize = 64;

/// How long connections to the control socket may take to end.
pub(super) const LAST_ANSWERS: Duration = Duration::from_secs(10);

/// What stays when an engine goes.
pub(super) struct Ground {
    pub(super) path: PathBuf,
    pub(super) shared: Arc<Shared>,
    pub(super) notifier: Notifier,
    /// How long the service manager waits for a sign of life.
    pub(super) patience: Option<Duration>,
    pub(super) control: Arc<Socket>,
    pub(super) metrics: Option<metrics::serve::Server>,
}

/// The engine, and those who ask it.
pub(super) struct Running {
    engine: thread::JoinHandle<Result<Option<Box<Kept>>>>,
    engine_ended: oneshot::Receiver<()>,
    stop: watch::Sender<bool>,
    server: JoinHandle<()>,
    metrics: Option<JoinHandle<()>>,
    events: JoinHandle<()>,
}

impl Running {
    /// Puts everything into force, and answers.
    ///
    /// # Errors
    /// When anything of it fails. What was in force before is then in force still.
    pub(super) async fn start(
        ground: &Ground,
        model: Model,
        inbox: Inbox,
        (given, said): (Vec<Given>, Vec<Said>),
    ) -> Result<Self> {
        let before = Before {
            file: model,
            given,
            said,
            inbox: Some(inbox),
            proxy: None,
        };
        Self::begin(ground, before).await.map_err(|(e, _)| e)
    }

    /// The same, which leaves what an engine does not come to have.
    async fn begin(
        ground: &Ground,
        mut before: Before,
    ) -> Result<Self, (Error, Option<Box<Before>>)> {
        let (rings, new_rings) = tokio::sync::mpsc::channel(RINGS);
        let engine = {
            let (path, shared) = (ground.path.clone(), ground.shared.clone());
            let notifier = ground.notifier.clone();
            let beat = ground.patience.map_or(Duration::MAX, notify::interval);
            let start = move || {
                start::engine(&path, &mut before, shared, rings, notifier, beat)
                    .map_err(|e| (e, Some(Box::new(before))))
            };
            let started = tokio::task::spawn_blocking(start).await;
            started.map_err(|e| (e.into(), None))??
        };
        let (ended, engine_ended) = oneshot::channel::<()>();
        let engine = thread::Builder::new()
            .name("engine".into())
            .spawn(move || {
                // Sent by being dropped, also in a panic.
                let _ended = ended;
                engine.run()
            })
            .context("cannot start the engine")
            .map_err(|e| (e, None))?;
        let (stop, stopped) = watch::channel(false);
        let shared = &ground.shared;
        let server = Server::new(
            ground.control.clone(),
            shared.clone(),
            shared.hub.clone(),
            shared.stats.clone(),
            Bounds::default(),
        );
        let server = tokio::spawn(server.run(stopped.clone()));
        let metrics = { ground.metrics.clone() }
            .map(|metrics| tokio::spawn(metrics.run(shared.clone(), stopped)));
        Ok(Self {
            engine,
            engine_ended,
            stop,
            server,
            metrics,
            events: tokio::spawn(forward_events(new_rings, shared.clone())),
        })
    }

    /// The same with what an engine had that was to hand over.
    ///
    /// # Errors
    /// When anything of it fails, with what there was, unless that is gone.
    pub(super) async fn resume(
        ground: &Ground,
        kept: Kept,
    ) -> Result<Self, (Error, Option<Box<Kept>>)> {
        let Kept { proxy, inbox, file } = kept;
        let before = Before {
            file,
            given: Vec::new(),
            said: Vec::new(),
            inbox: Some(inbox),
            proxy: Some(proxy),
        };
        Self::begin(ground, before).await.map_err(|(e, before)| {
            let kept = before.and_then(|before| {
                Some(Box::new(Kept {
                    proxy: before.proxy?,
                    inbox: before.inbox?,
                    file: before.file,
                }))
            });
            (e, kept)
        })
    }

    /// Waits until the engine has ended by itself. Not to be called again after that.
    pub(super) async fn engine_ended(&mut self) {
        let _ = (&mut self.engine_ended).await;
    }

    /// Ends it in good order.
    ///
    /// # Errors
    /// When the engine had ended by itself, or cannot detach.
    pub(super) async fn stop(self, ground: &Ground) -> Result<()> {
        self.stop.send_replace(true);
        if tokio::time::timeout(LAST_ANSWERS, self.server)
            .await
            .is_err()
        {
            warn!("a client of the control socket was cut off");
        }
        if let Some(metrics) = self.metrics {
            metrics.abort();
        }
        end(ground, self.engine, Command::Stop).await.map(drop)
    }

    /// Lets go of all that only one process may have. What is left is the proxy, which goes on,
    /// and requests of the control socket that are not answered.
    ///
    /// # Errors
    /// When the engine has ended by itself.
    pub(super) async fn hand_over(self, ground: &Ground) -> Result<(Box<Kept>, JoinHandle<()>)> {
        self.stop.send_replace(true);
        self.events.abort();
        if let Some(metrics) = self.metrics {
            metrics.abort();
        }
        let kept = end(ground, self.engine, Command::HandOver).await?;
        // Its ring buffer is closed then.
        let _ = self.events.await;
        let kept = kept.context("the engine was stopped")?;
        Ok((kept, self.server))
    }
}

/// Has the engine end.
async fn end(
    ground: &Ground,
    engine: thread::JoinHandle<Result<Option<Box<Kept>>>>,
    how: Command,
) -> Result<Option<Box<Kept>>> {
    let shared = ground.shared.clone();
    tokio::task::spawn_blocking(move || {
        // Fails when the engine has ended by itself.
        shared.command(how);
        engine
            .join()
            .unwrap_or_else(|_| Err(anyhow!("the engine panicked; the programs stay in force")))
    })
    .await?
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
