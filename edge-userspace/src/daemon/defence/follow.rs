//! Follows what changes by itself: addresses, listeners, sysctls, and what the
//! program finds of each service. A thread of its own.

use std::{
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    thread::JoinHandle,
    time::Duration,
};

use edge_common::defence::ServiceCounter;
use tracing::{info, warn};

use super::{Defence, root};
use crate::{
    clock::Now,
    config::services::HOST,
    daemon::facts::Shared,
    host::sysctl,
    services::watch::{Change, Reading, of},
};

/// Between two looks.
const EVERY: Duration = Duration::from_millis(250);
/// What changes seldom is looked at every so many times.
const SELDOM: u32 = 4;

/// The defence, for the engine and the follower.
#[derive(Clone)]
pub(in crate::daemon) struct Handle(Arc<Mutex<Defence>>);

impl Handle {
    pub(in crate::daemon) fn new(defence: Defence) -> Self {
        Self(Arc::new(Mutex::new(defence)))
    }

    /// Takes its turn.
    pub(in crate::daemon) fn lock(&self) -> MutexGuard<'_, Defence> {
        // Tables and what is known of them are worked out anew at each change.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Whether the follower is to end.
type Stop = Arc<(Mutex<bool>, Condvar)>;

/// The thread. It ends when this is dropped.
pub(in crate::daemon) struct Follower {
    stop: Stop,
    thread: Option<JoinHandle<()>>,
}

impl Follower {
    /// Starts following.
    ///
    /// # Errors
    /// When there can be no more threads.
    pub(in crate::daemon) fn start(defence: Handle, shared: Arc<Shared>) -> std::io::Result<Self> {
        let stop = Stop::default();
        let told = stop.clone();
        let follow = move || {
            for turn in 0u32.. {
                if is_over(&told) {
                    return;
                }
                let mut defence = defence.lock();
                if defence.follow(&shared, turn.is_multiple_of(SELDOM)) {
                    shared.publish_services(&defence);
                }
            }
        };
        let thread = std::thread::Builder::new()
            .name("services".into())
            .spawn(follow)?;
        Ok(Self {
            stop,
            thread: Some(thread),
        })
    }
}

/// Waits for the next look, or the end.
fn is_over(stop: &Stop) -> bool {
    let (flag, told) = &**stop;
    let flag = flag.lock().unwrap_or_else(PoisonError::into_inner);
    let waited = told.wait_timeout_while(flag, EVERY, |stop| !*stop);
    let (flag, _) = waited.unwrap_or_else(PoisonError::into_inner);
    *flag
}

impl Drop for Follower {
    fn drop(&mut self) {
        let (flag, told) = &*self.stop;
        *flag.lock().unwrap_or_else(PoisonError::into_inner) = true;
        told.notify_all();
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            warn!("the thread that follows services panicked");
        }
    }
}

impl Defence {
    /// Takes a look; whether there are services at all.
    fn follow(&mut self, shared: &Shared, seldom: bool) -> bool {
        if self.services.is_none() {
            return false;
        }
        if seldom {
            self.mind_sysctls(shared);
        }
        let changed = self.look_at_host(seldom);
        if changed {
            self.resolve();
        }
        let now = Now::read();
        let answered = self.ask_listeners(now);
        if (changed || answered)
            && let Err(e) = self.write_targets()
        {
            self.complain(e.to_string());
        }
        self.poll(now, seldom);
        true
    }

    /// Sees that the host's TCP is still as it must be; when it grants something
    /// else now, the programs must know.
    fn mind_sysctls(&mut self, shared: &Shared) {
        let Some(model) = self.model() else {
            return;
        };
        let who = model.flood.sysctls;
        if model.needs_cookies()
            && let Err(e) = self.keeper.ensure(who)
        {
            self.complain(e.to_string());
        }
        match sysctl::tcp_features(&root()) {
            Ok(features) if features != self.features => shared.replan(),
            Ok(_) => {}
            Err(e) => self.complain(format!("cannot see what the host's TCP grants: {e}")),
        }
    }

    /// Whether the programs in force know what the host's TCP grants.
    pub(in crate::daemon) fn is_up_to_date(&self) -> bool {
        self.services.is_none()
            || sysctl::tcp_features(&root()).is_ok_and(|features| features == self.features)
    }

    /// Reads what the program found, and tells what changed. Counters, which take a
    /// system call each, are read seldom as long as a service is at rest.
    fn poll(&mut self, now: Now, seldom: bool) {
        let Some(s) = &self.services else {
            return;
        };
        let mut trouble = None;
        for (service, slot) in s.model.services.iter().zip(&s.slots) {
            let index = slot.index as usize;
            let state = s.tables.state(index);
            let busy = state.attack_until > now.mono_ns || self.watch.is_attacked(&service.name);
            if !seldom && !busy {
                continue;
            }
            let counters = match s.tables.counters(index) {
                Ok(counters) => counters,
                Err(e) => {
                    trouble = Some(e.to_string());
                    continue;
                }
            };
            let reading = Reading {
                pressure: state.pressure,
                attack_until: state.attack_until,
                attack_since: state.attack_since,
                counters,
            };
            let change = self.watch.take(&service.name, reading, now.mono_ns);
            if let Some(change) = change {
                tell(&service.name, service.syn.name(), service.dry_run, &change);
            }
        }
        if let Some(trouble) = trouble {
            self.complain(trouble);
        }
    }
}

/// A line in the log for an attack that began or ended.
fn tell(service: &str, syn: &str, dry_run: bool, change: &Change) {
    match change {
        Change::Began { syn_per_second } => warn!(
            service,
            syn,
            dry_run,
            syn_per_second = syn_per_second.round(),
            "under attack: {}",
            // SYNs to its ports are not counted.
            match service {
                HOST => "segments of no connection",
                _ => "a SYN flood",
            }
        ),
        Change::Ended(summary) => info!(
            service,
            seconds = summary.lasted_ns / 1_000_000_000,
            peak_syn_per_second = summary.peak.round(),
            syns = of(&summary.counters, ServiceCounter::Syns),
            cookies_sent = of(&summary.counters, ServiceCounter::CookiesSent),
            cookies_valid = of(&summary.counters, ServiceCounter::CookiesValid),
            challenges = of(&summary.counters, ServiceCounter::Challenges),
            verified = of(&summary.counters, ServiceCounter::Verified),
            "the attack is over"
        ),
    }
}
