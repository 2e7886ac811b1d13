//! What the workers of the proxy share while they serve requests: no memory that one allocates and
//! another frees, and no lock. Everything is on that requests pass: access log, metrics, health,
//! bulkheads, breaker.

mod allocations;
mod load;
#[allow(dead_code, reason = "each test binary has its own use for it")]
#[path = "../proxy/rig.rs"]
mod rig;
mod stand_still;

use std::{
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
    thread,
    time::Instant,
};

use allocations::{Counts, LOG, OTHER, WORKERS};
use load::{Arena, Connection, Protocol, runtime};
use rig::PATIENCE;
use stand_still::{Stoppable, thread_named};

/// Connections of each worker.
const CONNECTIONS: usize = 4;
/// Times that all connections are asked between two looks at the metrics.
const ROUNDS: usize = 50;
const LOOKS: usize = 20;
/// Bytes and milliseconds after which lines of the log are handed over
/// (`edge_userspace::l7::proxy`).
const LOG_BATCH: u64 = 32 * 1024;
const TICK: u64 = 200;
/// Times that a worker is made to stand still.
const STOPS: usize = 200;

/// Allocations are counted of all threads, so there is one test at a time.
fn alone() -> MutexGuard<'static, ()> {
    static ALONE: Mutex<()> = Mutex::new(());
    ALONE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Has all connections ask so often, all at one time.
async fn ask_all(connections: Vec<Connection>, times: usize) -> Vec<Connection> {
    let mut asking = Vec::new();
    for mut connection in connections {
        asking.push(tokio::spawn(async move {
            for _ in 0..times {
                connection.ask().await;
            }
            connection
        }));
    }
    let mut back = Vec::new();
    for one in asking {
        let done = tokio::time::timeout(PATIENCE, one).await;
        back.push(done.expect("answers in time").unwrap());
    }
    back
}

#[test]
fn blocks_are_freed_by_whoever_allocated_them() {
    let _alone = alone();
    let (arena, runtime) = (Arena::new(), runtime());
    for protocol in Protocol::ALL {
        let connections = runtime.block_on(arena.connections(protocol, CONNECTIONS));
        let connections: Vec<_> = connections.into_iter().flatten().collect();
        // Everything has been there once.
        let mut connections = runtime.block_on(ask_all(connections, ROUNDS));
        let logged = || std::fs::metadata(arena.rig.log()).unwrap().len();
        let (since, lines, before) = (Instant::now(), logged(), Counts::anew());
        for _ in 0..LOOKS {
            connections = runtime.block_on(ask_all(connections, ROUNDS));
            // All that metrics tell comes from here.
            assert!(arena.rig.tier.view().status().is_some());
        }
        let done = Counts::now() - before;
        let requests = (2 * CONNECTIONS * ROUNDS * LOOKS) as u64;
        let [first, second] = WORKERS;
        let allocated = done.allocated(first) + done.allocated(second);
        let handed_over = done.freed(first, LOG) + done.freed(second, LOG);
        println!(
            "{protocol:?}: {:.2} allocations a request; of {requests} requests' lines, {handed_over} \
             batches were freed by the log",
            allocated as f64 / requests as f64
        );
        for worker in WORKERS {
            assert!(done.freed(worker, worker) > 0, "it is not counted");
            for other in [OTHER, first, second].into_iter().filter(|o| *o != worker) {
                assert_eq!(done.freed(worker, other), 0, "{worker} {other} {done:?}");
                assert_eq!(done.freed(other, worker), 0, "{worker} {other} {done:?}");
            }
        }
        // What waits was not written yet; each worker hands over at most as often.
        let written = logged() - lines + 2 * LOG_BATCH;
        let ticks = u64::try_from(since.elapsed().as_millis()).unwrap() / TICK + 1;
        let batches = written / LOG_BATCH + 2 * ticks;
        assert!(handed_over <= batches, "{handed_over} of {batches}");
        let most = match protocol {
            Protocol::Http1 => 1,
            Protocol::Https => 3,
            Protocol::Http2 => 9,
        };
        // And a little for batches, looks and ticks.
        let most = most * requests + requests / 10;
        assert!(allocated <= most, "{allocated} for {requests}");
    }
}

/// Ends what others do when it is dropped.
struct Over<'a>(&'a AtomicBool);

impl Drop for Over<'_> {
    fn drop(&mut self) {
        self.0.store(true, Relaxed);
    }
}

/// Whoever holds a lock keeps the others waiting when it does not go on. So each worker is made to
/// stand still again and again, wherever it is, and the other one has to answer meanwhile.
#[test]
fn a_worker_that_stands_still_keeps_no_other_waiting() {
    let _alone = alone();
    stand_still::prepare();
    let (arena, asks, is_over) = (Arena::new(), AtomicU64::new(0), AtomicBool::new(false));
    let workers = ["proxy-0", "proxy-1"].map(thread_named);
    for still in [0, 1] {
        is_over.store(false, Relaxed);
        // Those of the one that stands still, which wait with it, and those of the other one.
        let [waiting, other] = [(still, CONNECTIONS), (1 - still, 1)].map(|(worker, count)| {
            let runtime = runtime();
            let mut all = Vec::new();
            for protocol in Protocol::ALL {
                let of_workers = runtime.block_on(arena.connections(protocol, count));
                all.extend(of_workers.into_iter().nth(worker).unwrap());
            }
            (runtime, all)
        });
        thread::scope(|scope| {
            let (asks, is_over) = (&asks, &is_over);
            scope.spawn(move || {
                let (runtime, mut connections) = waiting;
                while !is_over.load(Relaxed) {
                    connections = runtime.block_on(ask_all(connections, 10));
                    asks.fetch_add(1, Relaxed);
                }
            });
            let (runtime, mut connections) = other;
            // Also when something fails here.
            let _over = Over(is_over);
            let begun = asks.load(Relaxed);
            rig::until("it is asked", || asks.load(Relaxed) > begun);
            let mut worker = Stoppable::new(workers[still]);
            let mut waited = None;
            for n in 0..STOPS {
                let stands = worker.stop();
                let asked = runtime.block_on(async {
                    let asking = async {
                        for connection in &mut connections {
                            connection.ask().await;
                        }
                    };
                    tokio::time::timeout(PATIENCE / 2, asking).await
                });
                drop(stands);
                if asked.is_err() {
                    waited = Some(n);
                    break;
                }
            }
            assert_eq!(waited, None, "the other worker did not answer at that stop");
        });
    }
}
