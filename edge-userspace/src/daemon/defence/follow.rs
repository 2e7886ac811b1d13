//! Follows what changes by itself: addresses, listeners, sysctls, and what the
//! program finds of each service. A thread of its own.

use std::{
    net::SocketAddr,
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    thread::JoinHandle,
    time::Duration,
};

use edge_common::{abi::Mode, defence::When, reason::Reason};
use tokio::sync::broadcast::error::TryRecvError;
use tracing::{info, warn};

use super::{
    Defence, Services, Told,
    floods::{host_flood, over_limit},
    journal::{Journal, Saver},
    troubles::Trouble,
};
use crate::{
    clock::Now,
    config::services::{HOST, Protocol, Service},
    control::{
        events,
        protocol::{Event, ServerMessage},
    },
    daemon::facts::Shared,
    services::{
        attacks::Subject,
        watch::{Reading, found_by},
    },
    status::attack::{Attack, Change, Found, Notice, Remedy},
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
            let mut events = shared.hub.subscribe(0).1;
            let mut saver = Saver::default();
            for turn in 0u32.. {
                // One last look at the end, so that the history has it.
                let over = is_over(&told);
                let mut defence = defence.lock();
                defence.follow(&shared, turn.is_multiple_of(SELDOM));
                defence.sample(&mut events, &shared.attacks);
                shared.publish_services(&mut defence);
                // The disk keeps nobody waiting.
                drop(defence);
                saver.mind(&shared.attacks, over, Now::read());
                if over {
                    return;
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

    /// Whether the thread has ended though nobody told it to: it has panicked.
    pub(in crate::daemon) fn is_dead(&self) -> bool {
        self.thread.as_ref().is_some_and(JoinHandle::is_finished)
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
    /// Takes a look.
    fn follow(&mut self, shared: &Shared, seldom: bool) {
        self.poll_host(shared, Now::read(), seldom);
        if self.services.is_none() {
            return;
        }
        if seldom {
            self.mind_sysctls(shared);
        }
        let looked = self.look_at_host(seldom);
        let looked = looked.map_err(|e| format!("cannot ask for addresses and listeners: {e}"));
        self.troubles.mind(Trouble::Host, looked);
        // Also what could not be written the last time.
        if self.dirty {
            self.resolve();
        }
        let now = Now::read();
        self.ask_listeners(now);
        if self.dirty {
            let written = self.write_targets();
            self.troubles.mind(Trouble::Targets, written);
        }
        self.poll(shared, now, seldom);
    }

    /// Sees that the host's TCP is still as it must be; when it grants something
    /// else now, the programs must know.
    fn mind_sysctls(&mut self, shared: &Shared) {
        let Some(Services { model, .. }) = &self.services else {
            return;
        };
        let who = model.flood.sysctls;
        if model.needs_cookies() {
            self.troubles
                .mind(Trouble::Sysctls, self.keeper.ensure(who));
        }
        let told = Told::of(model, self.sight.host.protected_mtu)
            .map_err(|e| format!("cannot see what the host's TCP grants: {e}"));
        let told = self.troubles.mind(Trouble::Features, told);
        if told.is_some_and(|told| told != self.told) {
            shared.replan();
        }
    }

    /// Whether the programs in force know how the host is.
    pub(in crate::daemon) fn is_up_to_date(&self) -> bool {
        let now = self.model().map(Told::now);
        now.is_none_or(|now| now.is_ok_and(|told| told == self.told))
    }

    /// Reads what the program found, and tells what changed. Counters, which take a system
    /// call each, are read seldom as long as a service is at rest.
    fn poll(&mut self, shared: &Shared, now: Now, seldom: bool) {
        let Some(s) = &self.services else {
            return;
        };
        let mut trouble = Ok(());
        let mut changes = Vec::new();
        for (service, slot) in s.model.services.iter().zip(&s.slots) {
            let index = slot.index as usize;
            let state = s.tables.state(index);
            let found = found_by(service);
            let busy =
                state.attack_until > now.mono_ns || self.watch.is_attacked(&service.name, found);
            if !seldom && !busy {
                continue;
            }
            let counters = match s.tables.counters(index) {
                Ok(counters) => counters,
                Err(e) => {
                    trouble = Err(e);
                    continue;
                }
            };
            let mut reading = Reading {
                pressure: state.pressure,
                attack_until: state.attack_until,
                attack_since: state.attack_since,
                ..Reading::default()
            };
            for (counter, n) in reading.counters.iter_mut().zip(counters) {
                *counter = n;
            }
            let subject = Subject {
                name: &service.name,
                found,
                remedy: remedy(service, self.limited.reflection),
            };
            let mut journal = shared.attacks.lock();
            let followed = self.followed(subject, &journal, now);
            let step = self.watch.take(followed, reading, now.mono_ns);
            changes.extend(journal.take(subject, &step, now));
        }
        self.troubles.mind(Trouble::Counters, trouble);
        tell(changes, shared);
    }

    /// Takes the sampled packets that came since the last time to the attacks that they
    /// are of.
    fn sample(&self, events: &mut events::Follower, journal: &Journal) {
        loop {
            match events.try_recv() {
                Ok(message) => {
                    let ServerMessage::Event(event) = &*message else {
                        continue;
                    };
                    if let Some(found) = host_flood(event.reason) {
                        journal.lock().sample(HOST, found, event);
                    } else if let Some(service) = self.service_of(event) {
                        let found = found_by(service);
                        // Of UDP one reason tells; what else was dropped is no part of it.
                        if found == Found::Segments || event.reason == Reason::UdpReflection {
                            journal.lock().sample(&service.name, found, event);
                        }
                    }
                }
                // There are plenty.
                Err(TryRecvError::Lagged(_)) => {}
                Err(TryRecvError::Empty | TryRecvError::Closed) => return,
            }
        }
    }

    /// The service that a sampled packet was for.
    fn service_of(&self, event: &Event) -> Option<&Service> {
        let s = self.services.as_ref()?;
        let packet = event.packet.as_ref()?;
        let protocol = Protocol::ALL.into_iter();
        let protocol = { protocol }.find(|p| p.name() == packet.protocol)?;
        let at = SocketAddr::new(packet.destination, packet.destination_port?);
        s.model.services.get(s.targets.service_at(protocol, at)?)
    }
}

/// What is done about an attack on a service.
fn remedy(service: &Service, reflection: Mode) -> Remedy {
    if service.protocol == Protocol::Udp {
        return match service.dry_run {
            true => Remedy::DryRun,
            false => over_limit(reflection),
        };
    }
    match (service.syn, service.dry_run, service.forwarded) {
        (When::Off, _, _) => Remedy::Nothing,
        (_, true, _) => Remedy::DryRun,
        _ if service.name == HOST => Remedy::Drops,
        (_, _, true) => Remedy::Challenges,
        (_, _, false) => Remedy::Cookies,
    }
}

/// Tells the log and those who follow of attacks that began, go on or ended, and sees that the
/// file gets them.
pub(super) fn tell(changes: Vec<(Change, Attack)>, shared: &Shared) {
    if !changes.is_empty() {
        shared.attacks.mark_changed();
    }
    for (change, attack) in changes {
        log(change, &attack);
        shared.hub.announce(Notice {
            unix_ms: Now::read().unix_ms,
            change,
            attack,
        });
    }
}

/// A line in the log.
fn log(change: Change, attack: &Attack) {
    let Attack {
        id,
        service,
        clients,
        ..
    } = attack;
    let remedy = attack.remedy.name();
    let flood = attack.floods();
    let peak_per_second = { attack.kinds.iter() }
        .map(|k| k.peak_per_second)
        .fold(0.0, f64::max);
    match change {
        Change::Began => warn!(
            id,
            service, remedy, peak_per_second, "under attack: {flood}"
        ),
        Change::GoesOn => warn!(id, service, remedy, "still under attack: {flood}"),
        Change::Ended if !attack.knows_clients() => info!(
            id,
            service,
            remedy,
            seconds = seconds(attack),
            peak_per_second,
            packets = { attack.kinds.iter() }.map(|k| k.packets).sum::<u64>(),
            "the attack is over: {flood}"
        ),
        Change::Ended => {
            let of = |counter: &str| attack.counters.get(counter).copied().unwrap_or_default();
            info!(
                id,
                service,
                remedy,
                seconds = seconds(attack),
                peak_per_second,
                clients,
                syns = of("syns"),
                cookies_sent = of("cookies_sent"),
                cookies_invalid = of("cookies_invalid"),
                challenges = of("challenges"),
                out_of_state = of("out_of_state"),
                "the attack is over: {flood}"
            );
        }
    }
}

/// How long an attack lasted that is over.
fn seconds(attack: &Attack) -> u64 {
    let ended = attack.ended_unix_ms.unwrap_or(attack.began_unix_ms);
    ended.saturating_sub(attack.began_unix_ms) / 1000
}

#[cfg(test)]
mod tests {
    use std::{sync::mpsc::sync_channel, time::Instant};

    use super::*;

    #[test]
    fn a_thread_that_panicked_is_noticed() {
        let (go, wait) = sync_channel::<()>(1);
        let die = move || {
            let _ = wait.recv();
            // As a panic does, without its noise.
            std::panic::resume_unwind(Box::new(()));
        };
        let follower = Follower {
            stop: Stop::default(),
            thread: Some(std::thread::spawn(die)),
        };
        assert!(!follower.is_dead());
        drop(go);
        let deadline = Instant::now() + Duration::from_secs(10);
        while !follower.is_dead() {
            assert!(Instant::now() < deadline);
            std::thread::yield_now();
        }
    }
}
