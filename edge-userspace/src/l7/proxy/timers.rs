//! Deadlines of a worker's connections.
//!
//! A request moves its deadline several times, and nearly never meets it. So a deadline is a
//! number in a list, which costs nothing to move, and the list is gone through a few times a
//! second. A deadline is met late by up to [`TICK`], never early.

use std::{
    cell::RefCell,
    future::poll_fn,
    pin::pin,
    rc::Rc,
    task::{Context, Poll, Waker},
    time::Duration,
};

use tokio::sync::Notify;

/// How often the list is gone through.
const TICK: Duration = Duration::from_millis(50);
/// No deadline.
const NEVER: u64 = u64::MAX;

/// The deadlines of one worker.
#[derive(Debug, Default)]
pub(super) struct Timers {
    slots: RefCell<Slots>,
    /// Tells the sweeper that there is something to do.
    busy: Notify,
}

#[derive(Debug, Default)]
struct Slots {
    /// Nanoseconds of the worker's clock.
    deadlines: Vec<u64>,
    wakers: Vec<Option<Waker>>,
    /// Whether whoever waits has nothing under way.
    idle: Vec<bool>,
    free: Vec<usize>,
    /// As of the last sweep.
    now: u64,
}

/// A deadline has passed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Expired;

impl Timers {
    /// A deadline, that is never at first.
    pub(super) fn timer(self: &Rc<Self>) -> Timer {
        let mut slots = self.slots.borrow_mut();
        let at = slots.free.pop().unwrap_or_else(|| {
            slots.deadlines.push(NEVER);
            slots.wakers.push(None);
            slots.idle.push(false);
            slots.deadlines.len() - 1
        });
        drop(slots);
        self.busy.notify_one();
        Timer {
            timers: self.clone(),
            at,
        }
    }

    /// Wakes whoever's deadline is over. `now` is nanoseconds of the worker's clock. Tells
    /// whether there are any deadlines.
    fn sweep(&self, now: u64) -> bool {
        let mut slots = self.slots.borrow_mut();
        let Slots {
            deadlines, wakers, ..
        } = &mut *slots;
        for (deadline, waker) in deadlines.iter().zip(wakers) {
            if *deadline <= now
                && let Some(waker) = waker.take()
            {
                waker.wake();
            }
        }
        slots.now = now;
        slots.free.len() < slots.deadlines.len()
    }

    /// Lets all who have nothing under way meet their deadline then, if it is not earlier.
    pub(super) fn expire_idle(&self, at: u64) {
        let mut slots = self.slots.borrow_mut();
        let Slots {
            deadlines, idle, ..
        } = &mut *slots;
        for (deadline, _) in deadlines.iter_mut().zip(idle).filter(|(_, idle)| **idle) {
            *deadline = at.min(*deadline);
        }
    }

    /// How many there are.
    pub(super) fn count(&self) -> usize {
        let slots = self.slots.borrow();
        slots.deadlines.len() - slots.free.len()
    }

    /// Goes through the deadlines as long as the worker lives.
    pub(super) async fn run(self: Rc<Self>, now: impl Fn() -> u64) {
        loop {
            if self.sweep(now()) {
                tokio::time::sleep(TICK).await;
            } else {
                self.busy.notified().await;
            }
        }
    }
}

/// A deadline.
#[derive(Debug)]
pub(super) struct Timer {
    timers: Rc<Timers>,
    at: usize,
}

impl Timer {
    /// Moves it to a moment, nanoseconds of the worker's clock.
    pub(super) fn set(&self, deadline: u64) {
        self.put(deadline, false);
    }

    /// The same for one who has nothing under way.
    pub(super) fn set_idle(&self, deadline: u64) {
        self.put(deadline, true);
    }

    fn put(&self, deadline: u64, is_idle: bool) {
        let mut slots = self.timers.slots.borrow_mut();
        if let Some(slot) = slots.deadlines.get_mut(self.at) {
            *slot = deadline;
        }
        if let Some(slot) = slots.idle.get_mut(self.at) {
            *slot = is_idle;
        }
    }

    /// Runs a future to its end, or to the deadline, wherever that is moved meanwhile.
    ///
    /// # Errors
    /// When the deadline came first.
    pub(super) async fn within<F: Future>(&self, future: F) -> Result<F::Output, Expired> {
        let mut future = pin!(future);
        poll_fn(|cx| match future.as_mut().poll(cx) {
            Poll::Ready(done) => Poll::Ready(Ok(done)),
            Poll::Pending => self.poll(cx).map(Err),
        })
        .await
    }

    fn poll(&self, cx: &Context<'_>) -> Poll<Expired> {
        let mut slots = self.timers.slots.borrow_mut();
        let now = slots.now;
        if slots.deadlines.get(self.at).is_some_and(|&d| d <= now) {
            return Poll::Ready(Expired);
        }
        if let Some(waker) = slots.wakers.get_mut(self.at) {
            match waker {
                Some(old) => old.clone_from(cx.waker()),
                None => *waker = Some(cx.waker().clone()),
            }
        }
        Poll::Pending
    }
}

impl Drop for Timer {
    fn drop(&mut self) {
        let mut slots = self.timers.slots.borrow_mut();
        if let Some(deadline) = slots.deadlines.get_mut(self.at) {
            *deadline = NEVER;
        }
        if let Some(waker) = slots.wakers.get_mut(self.at) {
            *waker = None;
        }
        if let Some(idle) = slots.idle.get_mut(self.at) {
            *idle = false;
        }
        slots.free.push(self.at);
    }
}
