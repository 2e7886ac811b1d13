//! The real server on a real socket, in a thread of its own.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
    thread::JoinHandle,
    time::{Duration, Instant},
};

use edge_userspace::control::{
    client::Client,
    events::Hub,
    server::{Bounds, Handler, Server},
    socket::{BindError, Socket},
    stats::Stats,
};
use tokio::sync::watch;

/// How long anything may take before a test gives up.
pub(crate) const DEADLINE: Duration = Duration::from_secs(30);

/// A running server.
pub(crate) struct Rig<H> {
    dir: tempfile::TempDir,
    /// The engine.
    pub(crate) engine: Arc<H>,
    /// Where events are published.
    pub(crate) hub: Arc<Hub>,
    stats: Arc<Stats>,
    bounds: Bounds,
    /// Tells the server to stop.
    pub(crate) stop: watch::Sender<bool>,
    thread: Option<JoinHandle<()>>,
}

impl<H: Handler> Rig<H> {
    /// Starts a server with these bounds.
    pub(crate) fn start(engine: H, bounds: Bounds) -> Self {
        let (stop, _) = watch::channel(false);
        let mut rig = Self {
            dir: tempfile::tempdir().unwrap(),
            engine: Arc::new(engine),
            hub: Arc::default(),
            stats: Arc::default(),
            bounds,
            stop,
            thread: None,
        };
        rig.serve();
        rig
    }

    fn serve(&mut self) {
        let path = self.path();
        let stopped = self.stop.subscribe();
        let (ready, is_ready) = std::sync::mpsc::sync_channel(1);
        let (engine, hub, stats) = (self.engine.clone(), self.hub.clone(), self.stats.clone());
        let bounds = self.bounds;
        self.thread = Some(std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .unwrap();
            runtime.block_on(async {
                let socket = bind(&path).await;
                ready.send(()).unwrap();
                Server::new(socket, engine, hub, stats, bounds)
                    .run(stopped)
                    .await;
            });
        }));
        is_ready.recv_timeout(DEADLINE).unwrap();
    }

    /// Stops the server, which ends all idle connections, and starts it again.
    pub(crate) fn restart(&mut self) {
        self.stop.send_replace(true);
        self.thread.take().unwrap().join().unwrap();
        self.stop.send_replace(false);
        self.serve();
    }

    /// The socket.
    pub(crate) fn path(&self) -> PathBuf {
        self.dir.path().join("edge.sock")
    }

    /// A new client of it.
    pub(crate) fn client(&self) -> Client {
        Client::connect(&self.path()).unwrap()
    }

    /// Requests of a command that succeeded and that failed.
    pub(crate) fn count(&self, command: &str) -> (u64, u64) {
        let counts = self.stats.counts();
        let count = counts.iter().find(|c| c.command == command).unwrap();
        (count.succeeded, count.failed)
    }
}

impl<H> Drop for Rig<H> {
    fn drop(&mut self) {
        let _ = self.stop.send(true);
        if let Some(thread) = self.thread.take() {
            let ended = thread.join();
            if !std::thread::panicking() {
                ended.expect("the server does not panic");
            }
        }
    }
}

/// Listens on the socket. A process that another test starts at this moment has
/// our files, and with them the lock of a former server, until its exec.
async fn bind(path: &Path) -> Socket {
    let start = Instant::now();
    loop {
        match Socket::bind(path).await {
            Err(BindError::InUse { .. }) if start.elapsed() < DEADLINE => {
                tokio::task::yield_now().await;
            }
            bound => return bound.unwrap(),
        }
    }
}

/// Waits for a condition.
pub(crate) fn until(what: &str, mut condition: impl FnMut() -> bool) {
    let start = Instant::now();
    while !condition() {
        assert!(start.elapsed() < DEADLINE, "never: {what}");
        std::thread::park_timeout(Duration::from_millis(1));
    }
}
