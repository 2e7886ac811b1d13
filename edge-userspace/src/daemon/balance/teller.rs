//! The thread that counts flows and tells how the balancer is: both take long when there is
//! much, and nothing that is in force waits for it.

use std::{
    collections::HashMap,
    io,
    sync::{
        Arc,
        mpsc::{RecvTimeoutError, SyncSender, sync_channel},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use edge_common::balance::AGE_SHIFT;
use tracing::warn;

use super::follow::Handle;
use crate::{
    clock::Now,
    daemon::facts::Shared,
    status::balance::{BalanceStatus, BalancedService, HealthNotice},
};

/// Between two tellings, if there is no news.
const EVERY: Duration = Duration::from_millis(200);
/// Between two counts of the flow table.
const COUNT_EVERY: Duration = Duration::from_secs(1);
/// Of the thread's time, telling takes one part in so many at the most.
const SHARE: u32 = 4;
/// How long others have their turn before the thread asks for its own again.
const GIVE_WAY: Duration = Duration::from_micros(50);

/// The thread. It ends when this is dropped.
pub(super) struct Teller {
    wake: SyncSender<()>,
    thread: JoinHandle<()>,
}

impl Teller {
    /// Starts it.
    ///
    /// # Errors
    /// When there can be no more threads.
    pub(super) fn start(balancer: Handle, shared: Arc<Shared>) -> io::Result<Self> {
        let (wake, woken) = sync_channel(1);
        let tell = move || {
            let mut counted = None;
            loop {
                let start = Instant::now();
                if counted.is_none_or(|at: Instant| at.elapsed() >= COUNT_EVERY) {
                    counted = Some(start);
                    let notices = count(&balancer);
                    { notices.into_iter() }.for_each(|notice| shared.hub.tell_health(notice));
                }
                shared.publish_balance(told(&balancer));
                let until = start + start.elapsed() * SHARE;
                match woken.recv_timeout(EVERY) {
                    Ok(()) | Err(RecvTimeoutError::Timeout) => {}
                    Err(RecvTimeoutError::Disconnected) => return,
                }
                thread::park_timeout(until.saturating_duration_since(Instant::now()));
            }
        };
        let thread = thread::Builder::new()
            .name("balance-tell".into())
            .spawn(tell)?;
        Ok(Self { wake, thread })
    }

    /// There is news.
    pub(super) fn wake(&self) {
        // It is full when the thread is to tell already.
        let _ = self.wake.try_send(());
    }

    /// Whether it has ended though nobody told it to: it has panicked.
    pub(super) fn is_dead(&self) -> bool {
        self.thread.is_finished()
    }
}

/// Counts the flows, and has done what follows from it. Only for that is it the balancer's turn.
fn count(balancer: &Handle) -> Vec<HealthNotice> {
    let Some((tables, idle, watched)) = balancer.lock().counting() else {
        return Vec::new();
    };
    let now = Now::read();
    let steps = u32::try_from(now.mono_ns >> AGE_SHIFT).unwrap_or(u32::MAX);
    let flows = tables.count_flows(steps, idle);
    let ports = tables.count_ports(steps, idle);
    let mut signals = HashMap::with_capacity(watched.len());
    for number in watched {
        match tables.signals(number) {
            Ok(found) => {
                signals.insert(number, found);
            }
            Err(e) => {
                warn!("what backends answer cannot be read: {e}");
                break;
            }
        }
    }
    balancer.lock().counted(flows, ports, &signals, now)
}

/// How all balanced services are; `None` when there are none. One after the other, so that
/// whoever has something to change waits for one at the most.
fn told(balancer: &Handle) -> Option<BalanceStatus> {
    let mut services: Vec<BalancedService> = Vec::new();
    let mut epoch = None;
    loop {
        while balancer.is_wanted() {
            thread::park_timeout(GIVE_WAY);
        }
        let turn = balancer.lock();
        if epoch != Some(turn.epoch) {
            epoch = Some(turn.epoch);
            services.clear();
        }
        turn.force.as_ref()?;
        match turn.service_status(services.len(), Now::read()) {
            Some(service) => services.push(service),
            None => {
                return Some(BalanceStatus {
                    services,
                    flows: turn.flow_table(),
                    sources: turn.nat_sources(),
                });
            }
        }
    }
}
