//! The bulkhead: how many requests may be under way.

use std::{
    fmt,
    sync::atomic::{
        AtomicU32, AtomicU64,
        Ordering::{AcqRel, Acquire, Relaxed},
    },
};

/// Bounds the requests under way, and those that wait to be.
///
/// Both numbers stand in one word, so that they are seen and changed together: there are
/// never more requests than the limit, and no place stays free unnoticed while somebody
/// waits. The waiting itself is the caller's, woken by the function given to
/// [`new`](Self::new).
pub struct Bulkhead {
    limit: AtomicU32,
    queue: AtomicU32,
    counts: AtomicU64,
    wake: Box<dyn Fn() + Send + Sync>,
}

/// How many there are.
#[derive(Clone, Copy)]
struct Counts {
    active: u32,
    waiting: u32,
}

/// What becomes of a request.
#[derive(Debug)]
pub enum Entry<'a> {
    /// It may go on.
    Admitted(Permit<'a>),
    /// It may wait.
    Queued(Ticket<'a>),
    /// There is no room for it.
    Full,
}

impl Bulkhead {
    /// Room for `limit` requests, and for `queue` that wait.
    ///
    /// `wake` is called when a place has become free and somebody waits: it lets one of
    /// those who wait ask their [`Ticket`], and must remember that when nobody listens yet,
    /// once, as `tokio::sync::Notify::notify_one` does. It may be called from any worker.
    pub fn new(limit: u32, queue: u32, wake: impl Fn() + Send + Sync + 'static) -> Self {
        Self {
            limit: AtomicU32::new(limit),
            queue: AtomicU32::new(queue),
            counts: AtomicU64::new(0),
            wake: Box::new(wake),
        }
    }

    /// Room for so many from now on. Who is under way or waits stays, also when there are more
    /// than may be by now.
    pub fn resize(&self, limit: u32, queue: u32) {
        self.queue.store(queue, Relaxed);
        if self.limit.swap(limit, Relaxed) == limit {
            return;
        }
        // Who changes the counts after this sees the limit; who came to wait before is seen here.
        let counts = self.counts.fetch_add(0, AcqRel);
        self.tell(Counts::of(counts));
    }

    /// Asks for a place. Places that those who wait will take are not given away.
    pub fn enter(&self) -> Entry<'_> {
        let mut queued = false;
        let entered = self.change(|counts| {
            queued = counts.active.saturating_add(counts.waiting) >= self.limit.load(Relaxed);
            if !queued {
                Some(Counts {
                    active: counts.active + 1,
                    ..counts
                })
            } else if counts.waiting < self.queue.load(Relaxed) {
                Some(Counts {
                    waiting: counts.waiting + 1,
                    ..counts
                })
            } else {
                None
            }
        });
        match entered {
            None => Entry::Full,
            Some(_) if queued => Entry::Queued(Ticket(self)),
            Some(_) => Entry::Admitted(Permit(self)),
        }
    }

    /// Requests under way.
    pub fn active(&self) -> u32 {
        Counts::of(self.counts.load(Relaxed)).active
    }

    /// Requests that wait.
    pub fn waiting(&self) -> u32 {
        Counts::of(self.counts.load(Relaxed)).waiting
    }

    /// Changes both numbers at once, and answers what they are then. `None` leaves them.
    fn change(&self, mut change: impl FnMut(Counts) -> Option<Counts>) -> Option<Counts> {
        let mut next = None;
        self.counts
            .fetch_update(Acquire, Relaxed, |word| {
                next = change(Counts::of(word));
                next.map(Counts::word)
            })
            .ok()
            .and(next)
    }

    /// Lets one of those who wait know that there is a place, if there is.
    ///
    /// Everything that makes a place, or leaves one to others, ends here with the counts
    /// that it left. As the word changes in one order for all, the last of them sees
    /// whoever waits; who comes to wait later found no place that nobody was told of.
    fn tell(&self, counts: Counts) {
        if counts.waiting > 0 && counts.active < self.limit.load(Relaxed) {
            (self.wake)();
        }
    }
}

impl Counts {
    const fn of(word: u64) -> Self {
        Self {
            active: word as u32,
            waiting: (word >> 32) as u32,
        }
    }

    const fn word(self) -> u64 {
        (self.waiting as u64) << 32 | self.active as u64
    }
}

impl fmt::Debug for Bulkhead {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Bulkhead")
            .field("limit", &self.limit.load(Relaxed))
            .field("queue", &self.queue.load(Relaxed))
            .field("active", &self.active())
            .field("waiting", &self.waiting())
            .finish_non_exhaustive()
    }
}

/// A request under way, until this is dropped.
#[derive(Debug)]
#[must_use = "the place is given back when this is dropped"]
pub struct Permit<'a>(&'a Bulkhead);

impl Drop for Permit<'_> {
    fn drop(&mut self) {
        let left = self.0.change(|counts| {
            Some(Counts {
                active: counts.active.saturating_sub(1),
                ..counts
            })
        });
        if let Some(counts) = left {
            self.0.tell(counts);
        }
    }
}

/// A request that waits, until this is dropped.
#[derive(Debug)]
#[must_use = "the place in the queue is given back when this is dropped"]
pub struct Ticket<'a>(&'a Bulkhead);

impl<'a> Ticket<'a> {
    /// Asks for a place, to be done when woken.
    ///
    /// # Errors
    /// Itself if there is none yet.
    pub fn admit(self) -> Result<Permit<'a>, Self> {
        let bulkhead = self.0;
        let admitted = bulkhead.change(|counts| {
            (counts.active < bulkhead.limit.load(Relaxed)).then(|| Counts {
                active: counts.active + 1,
                waiting: counts.waiting.saturating_sub(1),
            })
        });
        let Some(counts) = admitted else {
            return Err(self);
        };
        // It waits no longer, and the counts say so already.
        let _ = std::mem::ManuallyDrop::new(self);
        // Two places may have become free before anybody listened, who then is told once.
        bulkhead.tell(counts);
        Ok(Permit(bulkhead))
    }
}

impl Drop for Ticket<'_> {
    fn drop(&mut self) {
        let left = self.0.change(|counts| {
            Some(Counts {
                waiting: counts.waiting.saturating_sub(1),
                ..counts
            })
        });
        // Perhaps it was woken and cannot come any more.
        if let Some(counts) = left {
            self.0.tell(counts);
        }
    }
}
