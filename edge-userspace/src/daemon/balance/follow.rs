//! The thread that follows what the balancer depends on: health, routes and neighbours,
//! and time. It runs a tokio runtime of its own, in which the checks run too.

use std::{
    collections::BTreeSet,
    io,
    net::IpAddr,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU32, Ordering::Relaxed},
    },
    thread::JoinHandle,
    time::Duration,
};

use tokio::{
    io::{Interest, unix::AsyncFd},
    sync::watch,
    time::sleep,
};
use tracing::{error, warn};

use super::{Balancer, teller::Teller};
use crate::{
    clock::Now,
    daemon::facts::Shared,
    health::runner::{Changes, Runner},
    host::next_hop::{Answer, Change, Resolver, Watch, given as given_hop},
    status::balance::HealthNotice,
};

/// The longest without a look.
const EVERY: Duration = Duration::from_millis(200);
/// Between two looks at the interfaces that the configuration gives, nanoseconds.
const GIVEN_EVERY_NS: u64 = 200_000_000;
/// Between two looks at the kernel when it does not answer.
const BACKOFF: Duration = Duration::from_secs(1);

/// The balancer, for the engine and the thread.
#[derive(Clone)]
pub(in crate::daemon) struct Handle(Arc<(Mutex<Balancer>, AtomicU32)>);

impl Handle {
    pub(in crate::daemon) fn new(balancer: Balancer) -> Self {
        Self(Arc::new((Mutex::new(balancer), AtomicU32::new(0))))
    }

    /// Takes its turn.
    pub(in crate::daemon) fn lock(&self) -> MutexGuard<'_, Balancer> {
        let (balancer, waiting) = &*self.0;
        waiting.fetch_add(1, Relaxed);
        // Plans and tables are made anew at each change.
        let turn = balancer.lock().unwrap_or_else(PoisonError::into_inner);
        waiting.fetch_sub(1, Relaxed);
        turn
    }

    /// Whether somebody waits for a turn. A lock gives none to who waits as long as another
    /// asks for it again at once.
    pub(super) fn is_wanted(&self) -> bool {
        self.0.1.load(Relaxed) > 0
    }
}

/// The thread. It ends when this is dropped.
pub(in crate::daemon) struct Follower {
    stop: watch::Sender<bool>,
    thread: Option<JoinHandle<()>>,
}

impl Follower {
    /// Starts following.
    ///
    /// # Errors
    /// When there can be no more threads, or the kernel has no sockets to give.
    pub(in crate::daemon) fn start(
        balancer: Handle,
        shared: Arc<Shared>,
        runner: Runner,
        changes: Changes,
    ) -> io::Result<Self> {
        let (stop, stopped) = watch::channel(false);
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?;
        let resolver = Resolver::new()?;
        let watch = {
            let _inside = runtime.enter();
            let watch = WatchFd(Watch::new()?);
            // SAFETY: the descriptor is the watch's own, which lives as long as the value.
            unsafe { AsyncFd::register_with_interest(watch, Interest::READABLE)? }
        };
        let teller = Teller::start(balancer.clone(), shared.clone())?;
        let follow = move || {
            runtime.block_on(async {
                let checks = tokio::spawn(runner.run(stopped.clone()));
                let mut following = Following {
                    balancer,
                    shared,
                    teller,
                    resolver,
                    watch,
                    wanted: Arc::default(),
                    given_ns: 0,
                };
                following.run(changes, stopped).await;
                if checks.await.is_err() {
                    error!("the health checks have panicked");
                }
            });
        };
        let thread = std::thread::Builder::new()
            .name("balance".into())
            .spawn(follow)?;
        Ok(Self {
            stop,
            thread: Some(thread),
        })
    }

    /// Whether the thread has ended though nobody told it to: it has panicked.
    pub(in crate::daemon) fn is_dead(&self) -> bool {
        self.thread.as_ref().is_some_and(JoinHandle::is_finished)
    }
}

impl Drop for Follower {
    fn drop(&mut self) {
        self.stop.send_replace(true);
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            warn!("the thread of the balancer panicked");
        }
    }
}

/// A watch that tokio can wait for.
struct WatchFd(Watch);

impl std::os::fd::AsRawFd for WatchFd {
    fn as_raw_fd(&self) -> std::os::fd::RawFd {
        self.0.as_raw_fd()
    }
}

struct Following {
    balancer: Handle,
    shared: Arc<Shared>,
    teller: Teller,
    resolver: Resolver,
    watch: AsyncFd<WatchFd>,
    /// What the resolver was told that is wanted.
    wanted: Arc<BTreeSet<IpAddr>>,
    /// When the given next hops were looked at, nanoseconds of `CLOCK_MONOTONIC`.
    given_ns: u64,
}

impl Following {
    async fn run(&mut self, mut health: Changes, mut stopped: watch::Receiver<bool>) {
        let woken = self.balancer.lock().woken.clone();
        loop {
            let mut changes = Vec::new();
            let wait = self.wait();
            tokio::select! {
                _ = stopped.changed() => return,
                found = health.next() => match found {
                    Some(found) => {
                        let now = Now::read();
                        self.balancer.lock().health(&found, now);
                        for (key, transition) in found {
                            self.shared.hub.tell_health(HealthNotice {
                                unix_ms: now.unix_ms_of(transition.at_ns),
                                service: key.service.to_string(),
                                backend: key.backend.to_string(),
                                old: transition.old.name().to_owned(),
                                new: transition.new.name().to_owned(),
                                why: transition.why,
                            });
                        }
                        self.teller.wake();
                    }
                    // The checks have ended, which they do only with all.
                    None => return,
                },
                readable = self.watch.readable_mut() => match readable {
                    Ok(mut ready) => {
                        match ready.get_inner_mut().0.changes() {
                            Ok(told) => changes = told,
                            Err(e) => {
                                warn!("routes and neighbours cannot be followed: {e}");
                                changes = vec![Change::All];
                            }
                        }
                        ready.clear_ready();
                    }
                    Err(e) => {
                        warn!("routes and neighbours cannot be followed: {e}");
                        sleep(BACKOFF).await;
                        changes = vec![Change::All];
                    }
                },
                () = woken.notified() => {}
                () = sleep(wait) => {}
            }
            self.look(&changes);
            // With it go the counts, and so draining and what clients say: a new daemon is the
            // remedy, as when this thread ends.
            if self.teller.is_dead() {
                return;
            }
        }
    }

    /// Until something is due.
    fn wait(&self) -> Duration {
        let now = Now::read().mono_ns;
        let due = [self.balancer.lock().due_ns(), self.resolver.due_ns()];
        let due = due.into_iter().flatten().min();
        due.map_or(EVERY, |at| {
            Duration::from_nanos(at.saturating_sub(now)).min(EVERY)
        })
    }

    fn look(&mut self, changes: &[Change]) {
        let now = Now::read();
        let addresses = self.balancer.lock().addresses();
        if !Arc::ptr_eq(&addresses, &self.wanted) {
            self.resolver.want(addresses.iter().copied());
            self.wanted = addresses;
        }
        let mut answers = match self.resolver.resolve(now.mono_ns, changes) {
            Ok(answers) => answers,
            Err(e) => {
                warn!("the kernel cannot be asked for the way to backends: {e}");
                Vec::new()
            }
        };
        if now.mono_ns.saturating_sub(self.given_ns) >= GIVEN_EVERY_NS {
            self.given_ns = now.mono_ns;
            answers.extend(self.given());
        }
        let mut balancer = self.balancer.lock();
        let answers = balancer.news(answers);
        let is_news = !answers.is_empty();
        balancer.learn(answers, now);
        balancer.tick(now);
        drop(balancer);
        if is_news {
            self.teller.wake();
        }
    }

    /// The next hops that the configuration gives.
    fn given(&self) -> Vec<(IpAddr, Answer)> {
        let given = self.balancer.lock().given();
        let answers = given.iter().filter_map(|(address, hop)| {
            match given_hop(*address, &hop.interface, hop.mac) {
                Ok(answer) => Some((*address, answer)),
                Err(e) => {
                    warn!("the kernel cannot be asked for {}: {e}", hop.interface);
                    None
                }
            }
        });
        answers.collect()
    }
}
