//! Outlier detection: servers that fail what others do not are ejected for a while.

use std::sync::{
    Arc,
    atomic::{
        AtomicBool, AtomicU32, AtomicU64,
        Ordering::{Acquire, Relaxed, Release},
    },
};

use super::window::{MAX_WINDOW, Window, bad_of};

/// How often the time of an ejection doubles, at the most.
const DOUBLINGS: u32 = 5;

/// What the configuration says.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct OutlierSettings {
    /// So many errors one after the other eject; 0: they do not.
    pub consecutive_errors: u32,
    /// So large a share (0 to 1) of bad results among the last ones ejects; 0: it does not.
    /// A result is bad if it is an error or slow.
    pub error_rate: f64,
    /// How many results the last ones are: 1 to [`MAX_WINDOW`]. Fewer say nothing.
    pub window: u32,
    /// A result that takes longer is slow, nanoseconds; 0: none is.
    pub latency: u64,
    /// How long the first ejection lasts, nanoseconds. It doubles each time, five times at
    /// the most, and each time that passes without one, as long as the last one was, takes one
    /// doubling back.
    pub eject: u64,
    /// The largest share (0 to 1) of the servers that may be ejected at one time; if it is
    /// not 0, and there is another server, one may.
    pub max_ejected: f64,
}

/// One result of a server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sample {
    /// Whether it is an error: no answer, none in time, or a status of 500 and above.
    pub error: bool,
    /// How long the server took to take the connection and, once it had the whole request, to
    /// send the head of its answer, nanoseconds: nothing that the client can draw out.
    pub took: u64,
}

/// What is known of a server. It goes on in the next configuration that has the server.
// Workers write here: a cache line of its own.
#[derive(Debug)]
#[repr(align(64))]
pub struct Record {
    consecutive: AtomicU32,
    /// The bits of a [`Window`].
    window: AtomicU64,
    /// When the ejection ends, and how often its time was doubled. Written only by who holds
    /// `ejecting`.
    until: AtomicU64,
    doublings: AtomicU32,
}

impl Record {
    /// Of a server of which nothing is known.
    pub const fn new() -> Self {
        Self {
            consecutive: AtomicU32::new(0),
            window: AtomicU64::new(Window::EMPTY.bits()),
            until: AtomicU64::new(0),
            doublings: AtomicU32::new(0),
        }
    }

    /// When its ejection ends or ended, nanoseconds; 0 if there was none.
    pub fn ejected_until(&self) -> u64 {
        self.until.load(Relaxed)
    }

    fn forget(&self) {
        self.consecutive.store(0, Relaxed);
        self.window.store(Window::EMPTY.bits(), Relaxed);
    }
}

impl Default for Record {
    fn default() -> Self {
        Self::new()
    }
}

/// The records of a group's servers, by their positions.
///
/// Each number is right by itself. Between two of them, results that come in at the same
/// moment may be counted in either order, which changes when a server is ejected by one
/// result. That no more are ejected than may be is exact.
#[derive(Debug)]
pub struct Outliers {
    settings: OutlierSettings,
    /// Bad results in a full window that eject; 0: they do not.
    bad: u32,
    most: usize,
    records: Box<[Arc<Record>]>,
    /// Whether a worker is about to eject one.
    ejecting: AtomicBool,
}

impl Outliers {
    /// For a group with these records.
    pub fn new(mut settings: OutlierSettings, records: Vec<Arc<Record>>) -> Self {
        settings.window = settings.window.clamp(1, MAX_WINDOW);
        Self {
            bad: if settings.error_rate > 0.0 {
                bad_of(settings.error_rate, settings.window)
            } else {
                0
            },
            most: match settings.max_ejected {
                share if share > 0.0 => {
                    let most = share.min(1.0) * records.len() as f64 + 1e-9;
                    // One of one is nobody left.
                    (most as usize).max(usize::from(records.len() > 1))
                }
                _ => 0,
            },
            records: records.into_boxed_slice(),
            settings,
            ejecting: AtomicBool::new(false),
        }
    }

    /// All records.
    pub fn records(&self) -> &[Arc<Record>] {
        &self.records
    }

    /// Takes a result of the server at a position. If that ejects the server, until when.
    #[must_use = "the server has to be taken out of use"]
    pub fn report(&self, position: usize, sample: Sample, now: u64) -> Option<u64> {
        let record = self.records.get(position)?;
        let OutlierSettings {
            consecutive_errors,
            window,
            latency,
            ..
        } = self.settings;
        let slow = latency > 0 && sample.took > latency;
        let bad = sample.error || slow;
        let mut out = false;
        if sample.error {
            let errors = record.consecutive.fetch_add(1, Relaxed).saturating_add(1);
            out = consecutive_errors > 0 && errors >= consecutive_errors;
        } else if record.consecutive.load(Relaxed) > 0 {
            record.consecutive.store(0, Relaxed);
        }
        if self.bad > 0 {
            let push = |bits| Window::from_bits(bits).with(bad, window);
            let seen = record.window.load(Relaxed);
            let mut last = push(seen);
            // As long as all goes well, nothing is written.
            if last.bits() != seen
                && let Ok(before) = record
                    .window
                    .fetch_update(Relaxed, Relaxed, |bits| Some(push(bits).bits()))
            {
                last = push(before);
            }
            out |= bad && last.results() == window && last.bad() >= self.bad;
        }
        if !out {
            return None;
        }
        // Whether it is ejected or not, it takes as many results again until it is asked
        // next: with all servers failing, that is asked seldom.
        record.forget();
        self.eject(record, now)
    }

    /// Ejects a server if there may be one more, and it is not out already.
    fn eject(&self, record: &Record, now: u64) -> Option<u64> {
        // One at a time: who comes in between lets it be, and waits for nobody. So nobody is
        // ejected between the count and the ejection that it allows; who comes next sees what
        // was stored before, by release and acquire.
        self.ejecting
            .compare_exchange(false, true, Acquire, Relaxed)
            .ok()?;
        let until = self.may_eject(record, now).then(|| {
            let last = record.until.load(Relaxed);
            let mut doublings = record.doublings.load(Relaxed);
            if last == 0 {
                doublings = 0;
            } else {
                let good = (now - last) / self.length(doublings).max(1);
                doublings = (doublings + 1).saturating_sub(good.min(64) as u32);
            }
            let doublings = doublings.min(DOUBLINGS);
            let until = now.saturating_add(self.length(doublings));
            record.doublings.store(doublings, Relaxed);
            record.until.store(until, Relaxed);
            until
        });
        self.ejecting.store(false, Release);
        until
    }

    /// How long an ejection lasts, nanoseconds.
    const fn length(&self, doublings: u32) -> u64 {
        self.settings.eject.saturating_mul(1 << doublings)
    }

    /// When the ejection of the server at a position ends or ended, nanoseconds; 0 if there was none.
    pub fn ejected_until(&self, position: usize) -> u64 {
        let record = self.records.get(position);
        record.map_or(0, |record| record.ejected_until())
    }

    fn may_eject(&self, record: &Record, now: u64) -> bool {
        let out = |record: &Record| record.until.load(Relaxed) > now;
        !out(record) && self.records.iter().filter(|other| out(other)).count() < self.most
    }
}
