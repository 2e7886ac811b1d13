//! What the tier counts of its requests. Each worker has counters of its own, which nobody else
//! writes: counting is a plain load and store, and a scrape adds them up.

use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex, OnceLock, PoisonError,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
};

use super::refusal::Refusal;

/// Upper bounds of the classes of durations, microseconds.
pub const DURATION_BOUNDS_US: [u64; 14] = [
    500, 1_000, 2_500, 5_000, 10_000, 25_000, 50_000, 100_000, 250_000, 500_000, 1_000_000,
    2_500_000, 5_000_000, 10_000_000,
];

/// A counter with one writer.
#[derive(Debug, Default)]
pub struct Counter(AtomicU64);

impl Counter {
    /// Counts so many more. Only its own worker does.
    pub fn add(&self, n: u64) {
        self.0.store(self.0.load(Relaxed).wrapping_add(n), Relaxed);
    }

    /// How many were counted.
    pub fn get(&self) -> u64 {
        self.0.load(Relaxed)
    }
}

/// How requests ended, and how long they took.
#[derive(Debug, Default)]
#[repr(align(128))]
pub struct Requests {
    /// By class of status: 1xx to 5xx, and those that got none because the client went away.
    pub classes: [Counter; 6],
    /// By duration, with one class more for what took longer than all.
    pub durations: [Counter; DURATION_BOUNDS_US.len() + 1],
    /// Sum of durations, microseconds.
    pub duration_us: Counter,
    /// Bytes of bodies from the client.
    pub received: Counter,
    /// Bytes of bodies to the client.
    pub sent: Counter,
}

impl Requests {
    /// Counts a request that was answered with a status (0: with none) after so many
    /// microseconds.
    pub fn ended(&self, status: u16, duration_us: u64) {
        let class = usize::from(status / 100);
        let class = if (1..=5).contains(&class) {
            class - 1
        } else {
            5
        };
        self.classes[class].add(1);
        let at = DURATION_BOUNDS_US.partition_point(|bound| *bound < duration_us);
        self.durations[at].add(1);
        self.duration_us.add(duration_us);
    }
}

/// What happened at a listener beside requests.
#[derive(Debug, Default)]
#[repr(align(128))]
pub struct Connections {
    /// That were accepted.
    pub accepted: Counter,
    /// That ended.
    pub closed: Counter,
    /// That were closed at once, for there were too many.
    pub refused: Counter,
    /// TLS handshakes that failed.
    pub tls_failed: Counter,
    /// Connections that were ended because they had no request for too long.
    pub idle: Counter,
}

/// Requests that were refused, by reason.
#[derive(Debug)]
#[repr(align(128))]
pub struct Refusals([Counter; Refusal::COUNT]);

impl Default for Refusals {
    fn default() -> Self {
        Self(std::array::from_fn(|_| Counter::default()))
    }
}

impl Refusals {
    /// The counter of a reason.
    pub fn of(&self, refusal: Refusal) -> &Counter {
        &self.0[refusal.index()]
    }
}

/// What became of the copies of a route's requests.
#[derive(Debug, Default)]
#[repr(align(128))]
pub struct Mirrored {
    /// That were answered, with whatever status.
    pub sent: Counter,
    /// That were not.
    pub failed: Counter,
    /// That were not sent: too many were under way, or the request cannot be copied.
    pub skipped: Counter,
}

/// What an upstream did for those who asked it.
#[derive(Debug, Default)]
#[repr(align(128))]
pub struct Upstream {
    /// Connections that were made.
    pub connects: Counter,
    /// Connections that could not be made.
    pub connect_failures: Counter,
    /// Requests that were tried again.
    pub retries: Counter,
    /// Retries that the budget did not allow.
    pub retries_denied: Counter,
    /// Requests that waited for their turn.
    pub queued: Counter,
    /// Requests refused because too many waited, or one had waited too long.
    pub overflows: Counter,
    /// Requests refused by the circuit breaker.
    pub broken: Counter,
}

/// How many blocks the counters of workers have, each with room for twice as many as the one before.
const BLOCKS: usize = 16;

/// The counters of all workers for one thing. They come to be when they are first asked for: the
/// number of workers changes while the tier runs.
#[derive(Debug)]
pub struct Shards<T>([OnceLock<Box<[T]>>; BLOCKS]);

impl<T: Default> Shards<T> {
    /// Those of a worker, counted from 0 among those that there are at one time. More than 65,535
    /// share the last ones.
    pub fn of(&self, worker: usize) -> &T {
        const MOST: usize = (1 << BLOCKS) - 1;
        let nth = worker.min(MOST - 1) + 1;
        let block = nth.ilog2() as usize;
        let all = self.0[block].get_or_init(|| (0..1 << block).map(|_| T::default()).collect());
        &all[nth - (1 << block)]
    }
}

impl<T> Shards<T> {
    /// The sum over all workers, also those that have gone, of what `read` says.
    pub fn sum(&self, read: impl Fn(&T) -> u64) -> u64 {
        let all = self.0.iter().filter_map(OnceLock::get).flatten();
        all.map(read).fold(0, u64::wrapping_add)
    }
}

impl<T> Default for Shards<T> {
    fn default() -> Self {
        Self([const { OnceLock::new() }; BLOCKS])
    }
}

/// Counters by name, which live on while what they count is configured anew.
#[derive(Debug)]
pub struct Registry<T>(Mutex<BTreeMap<String, Arc<Shards<T>>>>);

impl<T> Default for Registry<T> {
    fn default() -> Self {
        Self(Mutex::default())
    }
}

impl<T> Registry<T> {
    /// The counters with a name, which begin now if there are none.
    pub fn get(&self, name: &str) -> Arc<Shards<T>> {
        let mut named = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(found) = named.get(name) {
            return found.clone();
        }
        let new = Arc::<Shards<T>>::default();
        named.insert(name.to_owned(), new.clone());
        new
    }

    /// Forgets those whose names are not kept.
    pub fn retain(&self, keep: impl Fn(&str) -> bool) {
        self.0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .retain(|name, _| keep(name));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_counts_in_one_class_of_each_kind() {
        let shards: Shards<Requests> = Shards::default();
        shards.of(0).ended(200, 500);
        shards.of(1).ended(503, 501);
        shards.of(1).ended(0, u64::MAX / 2);
        assert_eq!(shards.sum(|r| r.classes[1].get()), 1);
        assert_eq!(shards.sum(|r| r.classes[4].get()), 1);
        assert_eq!(shards.sum(|r| r.classes[5].get()), 1);
        assert_eq!(shards.sum(|r| r.durations[0].get()), 1);
        assert_eq!(shards.sum(|r| r.durations[1].get()), 1);
        assert_eq!(shards.sum(|r| r.durations[14].get()), 1);
    }

    #[test]
    fn each_worker_has_counters_of_its_own_also_one_that_comes_late() {
        let shards: Shards<Connections> = Shards::default();
        let early = shards.of(2);
        for worker in (0..300).rev() {
            shards.of(worker).accepted.add(1 << (worker % 8));
        }
        for worker in 0..300 {
            assert_eq!(shards.of(worker).accepted.get(), 1 << (worker % 8));
        }
        assert!(std::ptr::eq(early, shards.of(2)));
        let sum: u64 = (0..300).map(|worker| 1 << (worker % 8)).sum();
        assert_eq!(shards.sum(|c| c.accepted.get()), sum);
        assert!(std::ptr::eq(shards.of(usize::MAX), shards.of(65_534)));
    }

    #[test]
    fn counters_outlive_a_reload() {
        let registry: Registry<Connections> = Registry::default();
        registry.get("web").of(0).accepted.add(2);
        registry.retain(|name| name == "web");
        assert_eq!(registry.get("web").of(0).accepted.get(), 2);
        registry.retain(|_| false);
        assert_eq!(registry.get("web").of(0).accepted.get(), 0);
    }
}
