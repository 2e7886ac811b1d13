//! Asks all backends in time.
//!
//! One task keeps the queue and starts the checks, each as a task of its own that it
//! waits for or ends: none outlives it. Several thousand may run at once, each with a
//! socket or a program, so the process's limit of open files has to allow for them.
//! Whoever sets the backends and whoever is told of changes may be other threads.

use std::{
    collections::HashMap,
    hash::{BuildHasher as _, RandomState},
    num::NonZeroUsize,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use tokio::{
    sync::{Notify, watch},
    task::{AbortHandle, Id, JoinError, JoinSet},
    time::Instant,
};

use super::{
    carrier,
    probe::{ProbeError, Ways, probe},
    state::{Health, Outcome, State, Transition},
    table::{Job, Table, Totals},
    target::{BackendKey, Target},
};
use crate::{clock::Now, host::tunnel::Device};

/// Checks at once, unless told otherwise. Backends that do not answer hold their place
/// for the whole timeout, and must not keep the others waiting.
pub const CONCURRENT: NonZeroUsize = NonZeroUsize::new(4096).unwrap();
/// How often the log says that checks could not be made, at the most.
const COMPLAIN_EVERY: Duration = Duration::from_mins(1);

/// Makes the parts: who asks, who says whom to ask, and who is told. `concurrent` is
/// how many checks may run at once.
pub fn runner(concurrent: NonZeroUsize) -> (Runner, Checks, Changes) {
    let shared = Arc::new(Shared {
        table: Mutex::default(),
        clock: Clock {
            start: Instant::now(),
            start_ns: Now::read().mono_ns,
        },
        set: Notify::new(),
        changed: Notify::new(),
        ended: AtomicBool::new(false),
        ways: Arc::default(),
        device: watch::Sender::default(),
    });
    let runner = Runner {
        shared: shared.clone(),
        concurrent: concurrent.get(),
        probes: JoinSet::new(),
        jobs: HashMap::new(),
        complained: None,
    };
    (runner, Checks(shared.clone()), Changes(shared))
}

#[derive(Debug)]
struct Shared {
    table: Mutex<Table>,
    clock: Clock,
    /// The backends were set.
    set: Notify,
    /// The health of one has changed, or the runner has ended.
    changed: Notify,
    ended: AtomicBool,
    ways: Arc<Ways>,
    /// By which checks go that go through tunnels.
    device: watch::Sender<Option<Arc<Device>>>,
}

impl Shared {
    /// Never held while anything is waited for.
    fn table(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// `CLOCK_MONOTONIC`, by the runtime's clock.
#[derive(Clone, Copy, Debug)]
struct Clock {
    start: Instant,
    start_ns: u64,
}

impl Clock {
    fn now_ns(self) -> u64 {
        let passed = u64::try_from(self.start.elapsed().as_nanos()).unwrap_or(u64::MAX);
        self.start_ns.saturating_add(passed)
    }

    fn instant(self, at_ns: u64) -> Instant {
        self.start + Duration::from_nanos(at_ns.saturating_sub(self.start_ns))
    }
}

/// A number for the jitter, which need not be secret.
fn random() -> u64 {
    RandomState::new().hash_one(())
}

/// Whom to check, and how they are. Every clone is of the same runner, and none of its
/// functions waits for a check.
#[derive(Clone, Debug)]
pub struct Checks(Arc<Shared>);

impl Checks {
    /// Replaces the set of backends. Those of which nothing has changed keep their
    /// state, the others begin as [`Health::Unknown`]: [`Changes`] tells of it where it
    /// was something else before. Of one that is no longer there nothing more is told.
    pub fn set(&self, targets: Vec<Target>) {
        let now_ns = self.0.clock.now_ns();
        let mut table = self.0.table();
        table.set(targets, now_ns, random);
        let changed = table.has_changes();
        drop(table);
        self.0.set.notify_one();
        if changed {
            self.0.changed.notify_one();
        }
    }

    /// Checks that go through tunnels go by this device from now on. It is let go of soon
    /// after it was replaced.
    pub fn go_by(&self, device: Option<Arc<Device>>) {
        self.0.device.send_replace(device);
    }

    /// The traffic of clients says that a backend fails (resets, no answers): it is down, until
    /// checks bring it up again. A backend that is not checked has no state here.
    pub fn passive_failure(&self, key: &BackendKey, why: &str) {
        let now_ns = self.0.clock.now_ns();
        let transition = self.0.table().passive_failure(key, why, now_ns);
        if let Some(transition) = transition {
            tell(key, &transition);
            self.0.changed.notify_one();
        }
    }

    /// How one backend is; `None` when it is not checked.
    pub fn state(&self, key: &BackendKey) -> Option<State> {
        self.0.table().state(key).cloned()
    }

    /// How all are, in no order.
    pub fn states(&self) -> Vec<(BackendKey, State)> {
        let table = self.0.table();
        let states = table.states();
        states
            .map(|(key, state)| (key.clone(), state.clone()))
            .collect()
    }

    /// What has become of the checks so far.
    pub fn totals(&self) -> Totals {
        let strays = self.0.ways.strays();
        Totals {
            strays,
            ..self.0.table().totals()
        }
    }
}

/// Changes of health, for the one who acts on them.
#[derive(Debug)]
pub struct Changes(Arc<Shared>);

impl Changes {
    /// Waits for changes and returns all there are; `None` when the runner has ended.
    ///
    /// Each backend is in it once: when nobody looked for so long that it changed twice,
    /// only from what to what is told, and when it is again as it was, nothing. Nothing
    /// is lost when this is dropped while it waits.
    pub async fn next(&mut self) -> Option<Vec<(BackendKey, Transition)>> {
        loop {
            let ended = self.0.ended.load(Ordering::Acquire);
            let changes = self.0.table().take_changes();
            if !changes.is_empty() {
                return Some(changes);
            }
            if ended {
                return None;
            }
            // A notification since then has left a permit.
            self.0.changed.notified().await;
        }
    }
}

/// The task that asks.
#[derive(Debug)]
pub struct Runner {
    shared: Arc<Shared>,
    concurrent: usize,
    probes: JoinSet<Result<(), ProbeError>>,
    /// What each of `probes` is about.
    jobs: HashMap<Id, (Job, AbortHandle)>,
    /// When the log last said that checks could not be made.
    complained: Option<Instant>,
}

impl Runner {
    /// Asks until `stop` becomes true (or its sender is gone), in a tokio runtime with
    /// I/O and time. What is being asked then is ended before this returns.
    pub async fn run(self, stop: watch::Receiver<bool>) {
        let ways = self.shared.ways.clone();
        let ask = |target: Arc<Target>| {
            let ways = ways.clone();
            async move { probe(&target.check, target.address, &target.route, &ways).await }
        };
        let carrying = carrier::carry(self.shared.device.subscribe(), ways.clone());
        let carrying = tokio::spawn(carrying);
        let carrying = AbortOnDrop(carrying.abort_handle());
        self.run_with(ask, stop).await;
        drop(carrying);
    }

    async fn run_with<A, F>(mut self, ask: A, mut stop: watch::Receiver<bool>)
    where
        A: Fn(Arc<Target>) -> F,
        F: Future<Output = Result<(), ProbeError>> + Send + 'static,
    {
        loop {
            let next_due = self.start_due(&ask);
            let due = async {
                match next_due {
                    Some(at_ns) => {
                        tokio::time::sleep_until(self.shared.clock.instant(at_ns)).await;
                    }
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                biased;
                _ = stop.wait_for(|stop| *stop) => break,
                () = self.shared.set.notified() => self.abort_unwanted(),
                Some(ended) = self.probes.join_next_with_id() => self.take_all(ended),
                () = due => {}
            }
        }
        self.probes.shutdown().await;
    }

    /// Starts what is due, as far as there is room; when the next one is due, unless
    /// there is none.
    fn start_due<A, F>(&mut self, ask: &A) -> Option<u64>
    where
        A: Fn(Arc<Target>) -> F,
        F: Future<Output = Result<(), ProbeError>> + Send + 'static,
    {
        let mut table = self.shared.table();
        let now_ns = self.shared.clock.now_ns();
        while self.probes.len() < self.concurrent {
            let Some(job) = table.start(now_ns) else {
                return table.next_due();
            };
            let handle = self.probes.spawn(ask(job.target.clone()));
            self.jobs.insert(handle.id(), (job, handle));
        }
        // The end of one will make room.
        None
    }

    /// Ends the checks of backends that are gone or have changed.
    fn abort_unwanted(&self) {
        let table = self.shared.table();
        for (job, handle) in self.jobs.values() {
            if !table.wants(job) {
                handle.abort();
            }
        }
    }

    /// Takes in the end of a check, and of all others that have ended as well.
    fn take_all(&mut self, first: Ended) {
        let mut ended = Some(first);
        while let Some(one) = ended {
            self.take(one);
            ended = self.probes.try_join_next_with_id();
        }
    }

    fn take(&mut self, ended: Ended) {
        let id = ended.as_ref().map_or_else(JoinError::id, |(id, _)| *id);
        let Some((job, _)) = self.jobs.remove(&id) else {
            return;
        };
        let key = &job.target.key;
        let outcome = match ended {
            Ok((_, Ok(()))) => Outcome::Success,
            Ok((_, Err(e @ ProbeError::NotAsked { .. }))) => Outcome::NotAsked(e.to_string()),
            Ok((_, Err(e))) => Outcome::Failure(e.to_string()),
            Err(e) if e.is_panic() => {
                tracing::error!("the check of {key} panicked: {e}");
                Outcome::Failure("the check panicked; see the daemon's log".to_owned())
            }
            // Aborted: nobody wants to know.
            Err(_) => return,
        };
        let now_ns = self.shared.clock.now_ns();
        let transition = self.shared.table().finish(&job, &outcome, now_ns, random());
        if let Outcome::NotAsked(why) = &outcome {
            self.complain(key, why);
        }
        if let Some(transition) = transition {
            tell(key, &transition);
            self.shared.changed.notify_one();
        }
    }

    fn complain(&mut self, key: &BackendKey, why: &str) {
        let now = Instant::now();
        let quiet = self
            .complained
            .is_none_or(|last| now.duration_since(last) >= COMPLAIN_EVERY);
        if quiet {
            self.complained = Some(now);
            tracing::warn!(
                "checks cannot be made, and health stays as it was; for instance {key}: {why}"
            );
        }
    }
}

/// A task that ends with whoever has this.
struct AbortOnDrop(AbortHandle);

impl Drop for AbortOnDrop {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl Drop for Runner {
    fn drop(&mut self) {
        self.shared.ended.store(true, Ordering::Release);
        self.shared.changed.notify_one();
    }
}

/// How a task of a check ends.
type Ended = Result<(Id, Result<(), ProbeError>), JoinError>;

fn tell(key: &BackendKey, transition: &Transition) {
    let Transition { old, new, why, .. } = transition;
    let (old, new) = (old.name(), new.name());
    if transition.new == Health::Down {
        tracing::warn!("backend {key} is {new} (was {old}): {why}");
    } else {
        tracing::info!("backend {key} is {new} (was {old}): {why}");
    }
}

#[cfg(test)]
mod tests;
