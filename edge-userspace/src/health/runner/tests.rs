use std::{
    net::SocketAddr,
    sync::atomic::{AtomicU64, AtomicUsize},
};

use tokio::{
    net::TcpListener,
    time::{sleep, timeout},
};

use super::*;
use crate::{
    config::balance::{HealthCheck, Probe, Through},
    health::Route,
};

/// How long anything may take on a busy machine.
const PATIENCE: Duration = Duration::from_secs(60);
const INTERVAL: Duration = Duration::from_secs(10);

fn check(interval: Duration) -> Arc<HealthCheck> {
    Arc::new(HealthCheck {
        probe: Probe::Tcp,
        through: Through::Direct,
        port: None,
        interval,
        timeout: PATIENCE,
        rise: 2,
        fall: 2,
        jitter_per_cent: 20,
    })
}

fn key(at: usize) -> BackendKey {
    BackendKey {
        service: Arc::from("web"),
        backend: Arc::from(at.to_string()),
    }
}

fn targets(count: usize, address: SocketAddr, check: &Arc<HealthCheck>) -> Vec<Target> {
    let target = |at| Target {
        key: key(at),
        address,
        check: check.clone(),
        route: Route::default(),
    };
    (0..count).map(target).collect()
}

fn nowhere() -> SocketAddr {
    ([127, 0, 0, 1], 9).into()
}

/// A runner that is asking, and its end.
struct Rig {
    checks: Checks,
    changes: Changes,
    stop: watch::Sender<bool>,
    running: tokio::task::JoinHandle<()>,
}

impl Rig {
    fn start<A, F>(concurrent: usize, ask: A) -> Self
    where
        A: Fn(Arc<Target>) -> F + Send + Sync + 'static,
        F: Future<Output = Result<(), ProbeError>> + Send + 'static,
    {
        let (runner, checks, changes) = runner(NonZeroUsize::new(concurrent).unwrap());
        let (stop, stopped) = watch::channel(false);
        Self {
            checks,
            changes,
            stop,
            running: tokio::spawn(runner.run_with(ask, stopped)),
        }
    }

    async fn next(&mut self) -> Vec<(BackendKey, Transition)> {
        let changes = timeout(PATIENCE, self.changes.next()).await;
        changes.expect("a change in time").expect("it runs")
    }

    async fn end(mut self) {
        self.stop.send(true).unwrap();
        self.running.await.unwrap();
        while let Some(changes) = self.changes.next().await {
            assert!(!changes.is_empty());
        }
    }
}

/// Counts itself while it lives.
struct Alive(Arc<AtomicUsize>);

impl Alive {
    fn new(count: &Arc<AtomicUsize>) -> Self {
        count.fetch_add(1, Ordering::SeqCst);
        Self(count.clone())
    }
}

impl Drop for Alive {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

async fn until(running: &AtomicUsize, count: usize) {
    let reached = async {
        while running.load(Ordering::SeqCst) != count {
            sleep(Duration::from_millis(1)).await;
        }
    };
    timeout(PATIENCE, reached).await.expect("in time");
}

#[tokio::test(start_paused = true)]
async fn all_are_asked_as_often_as_the_interval_says() {
    const TARGETS: usize = 10_000;
    let asked: Arc<Vec<AtomicU64>> = Arc::new((0..TARGETS).map(|_| AtomicU64::new(0)).collect());
    let ask = {
        let asked = asked.clone();
        move |target: Arc<Target>| {
            let at: usize = target.key.backend.parse().unwrap();
            asked[at].fetch_add(1, Ordering::Relaxed);
            async {
                sleep(Duration::from_millis(5)).await;
                Ok(())
            }
        }
    };
    let mut rig = Rig::start(TARGETS, ask);
    rig.checks
        .set(targets(TARGETS, nowhere(), &check(INTERVAL)));
    let mut up = 0;
    while up < TARGETS {
        for (_, transition) in rig.next().await {
            assert_eq!(
                (transition.old, transition.new),
                (Health::Unknown, Health::Up)
            );
            up += 1;
        }
    }
    // The clock stands still while anything runs: this is exact.
    let rounds = 10;
    sleep(INTERVAL * rounds).await;
    for (at, count) in asked.iter().enumerate() {
        let count = count.load(Ordering::Relaxed);
        assert!((8..=14).contains(&count), "{at} was asked {count} times");
    }
    let sum: u64 = asked
        .iter()
        .map(|count| count.load(Ordering::Relaxed))
        .sum();
    let mean = sum as f64 / TARGETS as f64;
    assert!((10.5..11.5).contains(&mean), "{mean} on average");
    let totals = rig.checks.totals();
    assert_eq!((totals.targets, totals.failed), (TARGETS, 0));
    assert!(totals.behind_ns < 10_000_000, "{totals:?}");
    rig.end().await;
}

#[tokio::test(start_paused = true)]
async fn no_more_run_at_once_than_may_and_none_is_left_out() {
    let running = Arc::new(AtomicUsize::new(0));
    let most = Arc::new(AtomicUsize::new(0));
    let ask = {
        let (running, most) = (running.clone(), most.clone());
        move |_| {
            let alive = Alive::new(&running);
            most.fetch_max(running.load(Ordering::SeqCst), Ordering::SeqCst);
            async move {
                let _alive = alive;
                sleep(Duration::from_secs(1)).await;
                Ok(())
            }
        }
    };
    let mut rig = Rig::start(7, ask);
    rig.checks.set(targets(100, nowhere(), &check(INTERVAL)));
    let mut up = 0;
    while up < 100 {
        up += rig.next().await.len();
    }
    assert_eq!(most.load(Ordering::SeqCst), 7);
    // 100 seconds of checks in each 10 seconds, by seven at a time.
    sleep(INTERVAL * 10).await;
    assert!(rig.checks.totals().behind_ns > 1_000_000_000);
    rig.end().await;
    assert_eq!(running.load(Ordering::SeqCst), 0);
}

#[tokio::test(start_paused = true)]
async fn a_check_that_panics_has_failed() {
    let mut rig = Rig::start(10, |target: Arc<Target>| async move {
        assert_ne!(&*target.key.backend, "1", "this one panics");
        Ok(())
    });
    rig.checks.set(targets(2, nowhere(), &check(INTERVAL)));
    let mut seen = HashMap::new();
    while seen.len() < 2 {
        seen.extend(rig.next().await);
    }
    assert_eq!(seen[&key(0)].new, Health::Up);
    assert_eq!(seen[&key(1)].new, Health::Down);
    assert!(seen[&key(1)].why.contains("panicked"), "{seen:?}");
    // And it is asked again.
    sleep(INTERVAL * 3).await;
    assert!(rig.checks.totals().failed > 1);
    rig.end().await;
}

#[tokio::test(start_paused = true)]
async fn what_cannot_be_asked_is_not_down() {
    let rig = Rig::start(10, |_| async {
        Err(ProbeError::NotAsked {
            doing: "socket",
            source: std::io::Error::from_raw_os_error(libc::EMFILE),
        })
    });
    rig.checks.set(targets(1, nowhere(), &check(INTERVAL)));
    sleep(INTERVAL * 5).await;
    let state = rig.checks.state(&key(0)).unwrap();
    assert_eq!(state.health(), Health::Unknown);
    let why = &state.last_error().unwrap().text;
    assert_eq!(why, "not asked: socket: too many open files");
    assert!(rig.checks.totals().not_asked >= 4);
    rig.end().await;
}

#[tokio::test(start_paused = true)]
async fn nothing_is_left_of_what_is_no_longer_wanted() {
    let running = Arc::new(AtomicUsize::new(0));
    let ask = {
        let running = running.clone();
        move |_| {
            let alive = Alive::new(&running);
            async move {
                let _alive = alive;
                std::future::pending().await
            }
        }
    };
    let rig = Rig::start(100, ask);
    let check = check(INTERVAL);
    rig.checks.set(targets(20, nowhere(), &check));
    until(&running, 20).await;
    // Two stay; they are not asked a second time.
    rig.checks.set(targets(2, nowhere(), &check));
    until(&running, 2).await;
    // Replaced by a target of the same name: the old check ends, a new one begins.
    let elsewhere = ([127, 0, 0, 2], 9).into();
    rig.checks.set(targets(2, elsewhere, &check));
    sleep(INTERVAL).await;
    until(&running, 2).await;
    rig.end().await;
    assert_eq!(running.load(Ordering::SeqCst), 0);
}

#[tokio::test(start_paused = true)]
async fn it_ends_with_its_task_too() {
    let running = Arc::new(AtomicUsize::new(0));
    let ask = {
        let running = running.clone();
        move |_| {
            let alive = Alive::new(&running);
            async move {
                let _alive = alive;
                std::future::pending().await
            }
        }
    };
    let mut rig = Rig::start(100, ask);
    rig.checks.set(targets(20, nowhere(), &check(INTERVAL)));
    sleep(INTERVAL).await;
    assert_eq!(running.load(Ordering::SeqCst), 20);
    rig.running.abort();
    assert!(rig.running.await.unwrap_err().is_cancelled());
    assert_eq!(timeout(PATIENCE, rig.changes.next()).await, Ok(None));
    until(&running, 0).await;
}

#[tokio::test(start_paused = true)]
async fn what_the_traffic_shows_is_told_as_well() {
    let asked = AtomicUsize::new(0);
    let mut rig = Rig::start(10, move |_| {
        let first = asked.fetch_add(1, Ordering::SeqCst) == 0;
        async move {
            if first {
                Ok(())
            } else {
                std::future::pending().await
            }
        }
    });
    rig.checks.set(targets(1, nowhere(), &check(INTERVAL)));
    assert_eq!(rig.next().await[0].1.new, Health::Up);
    rig.checks.passive_failure(&key(7), "of nobody");
    for _ in 0..check(INTERVAL).fall {
        rig.checks.passive_failure(&key(0), "reset by the backend");
    }
    let (of, down) = rig.next().await.remove(0);
    assert_eq!((of, down.old, down.new), (key(0), Health::Up, Health::Down));
    assert_eq!(down.why, "reset by the backend");
    rig.end().await;
}

/// Real connections: up, down, and up again.
#[tokio::test]
async fn a_listener_that_goes_and_comes_is_seen() {
    let (runner, checks, mut changes) = runner(CONCURRENT);
    let (stop, stopped) = watch::channel(false);
    let running = tokio::spawn(runner.run(stopped));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let check = Arc::new(HealthCheck {
        interval: Duration::from_millis(20),
        timeout: PATIENCE,
        ..HealthCheck::clone(&check(INTERVAL))
    });
    checks.set(targets(1, address, &check));
    let mut next = async || {
        let changes = timeout(PATIENCE, changes.next()).await.unwrap().unwrap();
        assert_eq!(changes.len(), 1);
        changes[0].1.clone()
    };
    assert_eq!(next().await.new, Health::Up);
    drop(listener);
    let down = next().await;
    assert_eq!((down.old, down.new), (Health::Up, Health::Down));
    assert_eq!(down.why, "connect: connection refused");
    let listener = TcpListener::bind(address).await.unwrap();
    let up = next().await;
    assert_eq!((up.old, up.new), (Health::Down, Health::Up));
    stop.send(true).unwrap();
    running.await.unwrap();
    drop(listener);
    assert_eq!(changes.next().await, None);
}
