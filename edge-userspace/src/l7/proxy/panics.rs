//! Panics: mistakes of ours, which end what they happen in and nothing else.
//!
//! A task that serves a request or a connection ends, and what it had is given back as it is at
//! any other end: by whoever drops it. A task of the worker's own takes the worker with it, and
//! another one follows on the same sockets (`crew`).

use std::{
    any::Any,
    fmt::Display,
    rc::Rc,
    sync::atomic::{AtomicU64, Ordering::Relaxed},
    thread,
};

use tokio::task::{JoinHandle, spawn_local};
use tracing::error;

use super::worker::Worker;

/// How often something panicked since the tier began.
#[derive(Debug, Default)]
pub(super) struct Panics {
    /// What ended with one: a connection, a stream of one, a copy of a request.
    ended: AtomicU64,
    /// Workers that followed one that had panicked.
    restarts: AtomicU64,
    #[cfg(test)]
    ordered: tests::Ordered,
}

impl Panics {
    /// How often something of a request's or a connection's panicked.
    pub(super) fn ended(&self) -> u64 {
        self.ended.load(Relaxed)
    }

    /// How often a worker was followed by another one.
    pub(super) fn restarts(&self) -> u64 {
        self.restarts.load(Relaxed)
    }

    /// Counts a worker that follows one that has panicked.
    pub(super) fn restart(&self) {
        self.restarts.fetch_add(1, Relaxed);
    }

    /// Called by what is dropped at the end of a task: counts and tells it if that end is a panic.
    /// What the reason is, the runtime has it told before.
    pub(super) fn note(&self, whose: impl Display) {
        if thread::panicking() {
            self.ended.fetch_add(1, Relaxed);
            error!("{whose} ended by a panic (see above)");
        }
    }
}

/// Notes a panic of the task that has it, under that name.
pub(super) struct Witness(pub(super) Rc<Worker>, pub(super) &'static str);

impl Drop for Witness {
    fn drop(&mut self) {
        self.0.panics.note(self.1);
    }
}

/// What a panic leaves.
pub(super) type Panic = Box<dyn Any + Send>;

impl Worker {
    /// Begins a task of the worker's own: if it panics, so does the worker. What is given ends when
    /// the task has.
    pub(super) fn begin(
        self: &Rc<Self>,
        task: impl Future<Output = ()> + 'static,
    ) -> JoinHandle<()> {
        let (worker, task) = (self.clone(), spawn_local(task));
        spawn_local(async move {
            if let Err(ended) = task.await
                && let Ok(panic) = ended.try_into_panic()
                && let Some(told) = worker.fallen.take()
            {
                // Nobody hears it at the worker's end.
                let _ = told.send(panic);
            }
        })
    }

    /// Goes through the deadlines.
    pub(super) fn time(self: &Rc<Self>) -> impl Future<Output = ()> + use<> {
        #[cfg(test)]
        let worker = self.clone();
        self.timers.clone().run(move || {
            #[cfg(test)]
            worker.panics.strike(worker.index, At::Timers);
            Self::now()
        })
    }
}

/// What a panic says.
pub(super) fn reason(panic: &(dyn Any + Send)) -> &str {
    let text = panic.downcast_ref::<&'static str>().copied();
    let text = text.or_else(|| panic.downcast_ref::<String>().map(String::as_str));
    text.unwrap_or("it does not say why")
}

#[cfg(test)]
pub(super) use tests::At;

#[cfg(test)]
pub(super) mod tests;
