//! Threads of workers: as many as a configuration wants, which may change while they run.

use std::{
    io,
    sync::{
        Arc,
        atomic::Ordering::Relaxed,
        mpsc::{SyncSender, sync_channel},
    },
    task::{Context, Poll, Waker},
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use tokio::sync::mpsc::{Receiver, Sender, channel, error::TrySendError};
use tracing::{error, info};

use super::{
    privileges,
    tier::TierError,
    view::{Held, Shared, lock},
    worker::{self, Ended, Entrance, Order},
};

/// Orders that wait for a worker.
const ORDERS: usize = 8;

/// How long requests may take to end when the proxy does.
const PATIENCE: Duration = Duration::from_secs(10);

/// A worker that panics sooner than this after its start is followed by the next one after a
/// pause, and each of them by a longer one: whatever the cause is, it does not fill the log. Who
/// connects meanwhile waits.
const SOON: Duration = Duration::from_secs(2);
/// The first pause, and the longest.
const PAUSE: (Duration, Duration) = (Duration::from_millis(10), Duration::from_secs(1));

/// A worker's thread. It ends when it has not begun and this is dropped.
pub(super) struct Seat {
    /// No other worker has it meanwhile.
    number: usize,
    orders: Sender<Order>,
    thread: Option<JoinHandle<()>>,
}

/// The workers.
#[derive(Default)]
pub(super) struct Crew {
    /// Who accepts connections.
    at_work: Vec<Seat>,
    /// Who has connections still, and no place any more.
    leaving: Vec<Seat>,
}

impl Crew {
    /// How many accept connections.
    pub(super) const fn at_work(&self) -> usize {
        self.at_work.len()
    }

    /// Their numbers.
    pub(super) fn numbers(&self) -> Arc<[usize]> {
        self.at_work.iter().map(|seat| seat.number).collect()
    }

    /// Starts those that are missing, which do nothing until they belong to it.
    ///
    /// # Errors
    /// When there is no thread to be had, or it cannot give up its privileges.
    pub(super) fn more(&self, wanted: usize, shared: &Arc<Shared>) -> Result<Vec<Seat>, TierError> {
        let taken = |number: &usize| self.all().any(|seat| seat.number == *number);
        let free = (0..).filter(|number| !taken(number));
        let missing = wanted.saturating_sub(self.at_work.len());
        free.take(missing)
            .map(|number| Seat::start(number, shared.clone()))
            .collect()
    }

    /// Has so many at work, with those that are new. Those who have no place any more are told so
    /// when they look.
    pub(super) fn change(&mut self, new: Vec<Seat>, wanted: usize) {
        // Whoever has ended has nothing to say.
        self.leaving
            .retain_mut(|seat| !seat.has_ended() || !seat.join());
        let before = self.at_work.len();
        self.at_work.extend(new);
        let kept = wanted.min(self.at_work.len());
        self.leaving.extend(self.at_work.drain(kept..));
        match before {
            _ if before == kept => {}
            0 => info!(workers = kept, "the proxy has started"),
            _ => info!(
                workers = kept,
                before, "the proxy has another number of workers"
            ),
        }
    }

    /// Has all of them look at what holds.
    pub(super) fn look(&self) {
        for seat in self.all() {
            // Where there is no room it has been told already, and looks only then. One that is
            // gone is about to start anew, and looks by itself.
            let _ = seat.orders.try_send(Order::Look);
        }
    }

    /// Tells all of them.
    pub(super) fn tell(&self, order: &Order) {
        for seat in self.all() {
            // It takes its orders one after the other; whoever is gone needs none.
            while let Err(TrySendError::Full(_)) = seat.orders.try_send(order.clone()) {
                thread::park_timeout(Duration::from_millis(5));
            }
        }
    }

    /// Waits until all have ended; `false` when that takes too long, or `is_over` says so.
    pub(super) fn has_ended(&self, patience: Duration, mut is_over: impl FnMut() -> bool) -> bool {
        let until = Instant::now() + patience;
        while !self.all().all(Seat::has_ended) {
            if is_over() || Instant::now() > until {
                return false;
            }
            thread::park_timeout(Duration::from_millis(20));
        }
        true
    }

    /// Waits for their end.
    pub(super) fn join(&mut self) {
        for mut seat in self.at_work.drain(..).chain(self.leaving.drain(..)) {
            seat.join();
        }
    }

    fn all(&self) -> impl Iterator<Item = &Seat> {
        self.at_work.iter().chain(&self.leaving)
    }
}

impl Seat {
    fn start(number: usize, shared: Arc<Shared>) -> Result<Self, TierError> {
        let (orders, inbox) = channel(ORDERS);
        let (told, ready) = sync_channel(1);
        let counted = shared.threads.clone();
        let thread = thread::Builder::new()
            .name(format!("proxy-{number}"))
            .spawn(move || {
                sit(number, &shared, inbox, &told);
                drop(counted);
            })
            .map_err(TierError::Thread)?;
        ready
            .recv()
            .unwrap_or_else(|_| Err(TierError::Thread(io::ErrorKind::BrokenPipe.into())))?;
        Ok(Self {
            number,
            orders,
            thread: Some(thread),
        })
    }

    fn has_ended(&self) -> bool {
        self.thread.as_ref().is_none_or(JoinHandle::is_finished)
    }

    /// Waits for its end, and says that it has ended.
    fn join(&mut self) -> bool {
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            error!("worker {} of the proxy panicked at its end", self.number);
        }
        true
    }
}

/// A worker's thread: a worker that panics is followed by another one.
fn sit(
    number: usize,
    shared: &Shared,
    mut orders: Receiver<Order>,
    told: &SyncSender<Result<(), TierError>>,
) {
    let take = |held: &mut dyn FnMut(u64) -> bool| {
        let current = lock(&shared.current);
        if shared.is_closed.load(Relaxed) {
            return None;
        }
        let Held {
            snapshot,
            router,
            seats,
        } = current.clone()?;
        let place = seats.iter().position(|seat| *seat == number);
        let (mut wanted, mut new) = (Vec::new(), Vec::new());
        let doors = lock(&shared.sockets);
        for (&address, door) in doors.iter().filter(|_| place.is_some()) {
            for queue in door.of(place.unwrap_or_default(), seats.len()) {
                wanted.push(queue.number);
                if held(queue.number) {
                    continue;
                }
                new.push(Entrance {
                    number: queue.number,
                    address,
                    socket: queue.socket.try_clone(),
                    is_kept: door.is_kept,
                });
            }
        }
        Some(worker::Take {
            has_place: place.is_some(),
            snapshot,
            router,
            wanted,
            new,
        })
    };
    // It serves strangers, or does not start. Nor does it where descriptors for its runtime are
    // missing: nobody else would accept what comes to its sockets.
    let runtime = privileges::give_up()
        .map_err(TierError::Privileges)
        .and_then(|()| worker::runtime().map_err(TierError::Thread));
    let (runtime, ready) = match runtime {
        Ok(runtime) => (Some(runtime), Ok(())),
        Err(e) => (None, Err(e)),
    };
    // There is room for it.
    let _ = told.try_send(ready);
    let Some(mut runtime) = runtime else { return };
    // What it is for may never come into force, or not yet.
    if orders.blocking_recv() != Some(Order::Look) {
        return;
    }
    let mut pause = Duration::ZERO;
    loop {
        let began = Instant::now();
        // Each has random bits of its own: ids of requests are made of them.
        let random = worker::random();
        let panics = &shared.panics;
        let ended = worker::run(
            runtime,
            number,
            random,
            panics,
            &take,
            &mut orders,
            PATIENCE,
        );
        if ended != Ended::Panicked {
            return;
        }
        pause = next_pause(pause, began.elapsed());
        let another = another_runtime(number, &mut orders, worker::runtime);
        let Some(another) = another else { return };
        runtime = another;
        if !pause.is_zero() && runtime.block_on(is_told_to_end(pause, &mut orders)) {
            return;
        }
        panics.restart();
    }
}

/// A runtime for who follows a worker that has panicked, as soon as it can be had: descriptors of the
/// last one may be somebody else's by now. `None` if it is told to end meanwhile.
fn another_runtime<T>(
    number: usize,
    orders: &mut Receiver<Order>,
    mut make: impl FnMut() -> io::Result<T>,
) -> Option<T> {
    let mut is_told = false;
    loop {
        // It looks by itself when it begins. The waker of the last one, which this replaces, holds
        // descriptors.
        loop {
            match orders.poll_recv(&mut Context::from_waker(Waker::noop())) {
                Poll::Ready(Some(Order::Look)) => {}
                Poll::Pending => break,
                Poll::Ready(Some(Order::Stop | Order::Drain(..)) | None) => return None,
            }
        }
        match make() {
            Ok(runtime) => return Some(runtime),
            Err(e) if !is_told => {
                error!("worker {number} of the proxy waits until it can start anew: {e}");
                is_told = true;
            }
            Err(_) => {}
        }
        thread::park_timeout(worker::NO_DESCRIPTORS);
    }
}

/// Waits so long; whether a worker that could not begin is told to end meanwhile: it has nothing
/// that could, and whoever tells it waits. What else there is, it sees when it begins.
async fn is_told_to_end(pause: Duration, orders: &mut Receiver<Order>) -> bool {
    let told = async { while orders.recv().await == Some(Order::Look) {} };
    tokio::time::timeout(pause, told).await.is_ok()
}

/// How long to wait before another worker takes the place of one that has panicked: after how
/// long a pause that one had begun, and how long it lived.
fn next_pause(before: Duration, lived: Duration) -> Duration {
    let (first, most) = PAUSE;
    match lived < SOON {
        true => (before * 2).clamp(first, most),
        false => Duration::ZERO,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_follows_a_worker_waits_for_descriptors_or_is_told_to_end() {
        let (told, mut orders) = channel(ORDERS);
        let mut tries = 0;
        let third = || {
            tries += 1;
            match tries {
                3 => Ok(()),
                _ => Err(io::Error::from_raw_os_error(libc::EMFILE)),
            }
        };
        assert_eq!(another_runtime(0, &mut orders, third), Some(()));
        let never = || Err::<(), _>(io::Error::from_raw_os_error(libc::EMFILE));
        for last in [Order::Stop, Order::Drain(SOON, Arc::default())] {
            for order in [Order::Look, Order::Look, last] {
                told.try_send(order).expect("room");
            }
            assert_eq!(another_runtime(0, &mut orders, never), None);
        }
        drop(told);
        assert_eq!(another_runtime(0, &mut orders, never), None);
    }

    #[test]
    fn workers_that_panic_soon_are_followed_slower_and_slower() {
        let soon = Duration::from_millis(1);
        let mut pause = Duration::ZERO;
        let mut all = Duration::ZERO;
        for _ in 0..20 {
            pause = next_pause(pause, soon);
            all += pause;
        }
        assert_eq!(next_pause(Duration::ZERO, soon), PAUSE.0);
        assert_eq!(pause, PAUSE.1, "by then no longer");
        assert!(all > 12 * PAUSE.1 && all < 20 * PAUSE.1, "{all:?}");
        // One that has served is followed at once.
        assert_eq!(next_pause(pause, SOON), Duration::ZERO);
    }
}
