//! What it costs to check many backends by TCP over the loopback interface:
//! `cargo run --release -p edge-userspace --example health -- [BACKENDS] [INTERVAL_MS] [SECONDS]`.
//!
//! The checks run on a thread of their own, as in the daemon; what is printed is the time
//! of that thread, which has in it what the kernel does on its behalf, and the other end of
//! a loopback connection as far as the kernel does it at once.

use std::{
    env,
    net::{Ipv4Addr, SocketAddr},
    sync::Arc,
    thread,
    time::Duration,
};

use edge_userspace::{
    config::balance::{HealthCheck, Probe, Through},
    health::{BackendKey, Health, Route, Target, runner},
};
use tokio::{net::TcpListener, runtime, sync::watch, time::Instant};

/// Listeners, each of an address of its own: a port of this host can be used once for each.
const LISTENERS: u8 = 250;

fn main() {
    let mut arguments = env::args().skip(1).map(|a| a.parse::<u64>().ok());
    let mut next = |default| arguments.next().flatten().unwrap_or(default);
    let (backends, interval_ms, seconds) = (next(10_000), next(1_000), next(20));
    let runtime = runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("a runtime");
    let addresses = runtime.block_on(listen());
    let (stop, stopped) = watch::channel(false);
    thread::spawn(move || runtime.block_on(std::future::pending::<()>()));

    let (checker, checks, mut changes) = runner::runner(runner::CONCURRENT);
    let checker = thread::spawn(move || {
        runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .expect("a runtime")
            .block_on(checker.run(stopped));
        cpu_time()
    });
    let check = Arc::new(HealthCheck {
        probe: Probe::Tcp,
        port: None,
        interval: Duration::from_millis(interval_ms),
        timeout: Duration::from_millis(interval_ms / 2),
        rise: 2,
        fall: 3,
        jitter_per_cent: 10,
        through: Through::Direct,
    });
    let service: Arc<str> = Arc::from("load");
    let target = |at: u64| Target {
        key: BackendKey {
            service: service.clone(),
            backend: Arc::from(at.to_string()),
        },
        address: addresses[at as usize % addresses.len()],
        check: check.clone(),
        route: Route::default(),
    };
    let begin = Instant::now();
    checks.set((0..backends).map(target).collect());
    let watch = async {
        let (mut up, mut other) = (0, 0);
        let end = begin + Duration::from_secs(seconds);
        while let Ok(Some(told)) = tokio::time::timeout_at(end, changes.next()).await {
            for (_, change) in told {
                match change.new {
                    Health::Up => up += 1,
                    _ => other += 1,
                }
            }
            if up == backends {
                println!("all were up after {:?}", begin.elapsed());
            }
        }
        println!("{up} changes to up, {other} others");
        let totals = checks.totals();
        println!("{totals:?}");
        stop.send(true).expect("the checker runs");
        totals.succeeded + totals.failed
    };
    let made = runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("a runtime")
        .block_on(watch);
    let passed = begin.elapsed();
    let (user, system) = checker.join().expect("the checker ends");
    let whole = user + system;
    println!(
        "{made} checks in {passed:?}: {:.1} % of a CPU; {:.1} µs a check, of these {:.1} in the kernel",
        100.0 * whole.as_secs_f64() / passed.as_secs_f64(),
        whole.as_secs_f64() * 1e6 / made as f64,
        system.as_secs_f64() * 1e6 / made as f64
    );
}

/// Listeners that take connections and let go of them when the other side does.
async fn listen() -> Vec<SocketAddr> {
    let mut addresses = Vec::new();
    for last in 1..=LISTENERS {
        let address = Ipv4Addr::new(127, 0, 0, last);
        let listener = TcpListener::bind((address, 0)).await.expect("a port");
        addresses.push(listener.local_addr().expect("its address"));
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(async move {
                    let _ = stream.readable().await;
                });
            }
        });
    }
    addresses
}

/// The CPU time of this thread: its own, and the kernel's.
fn cpu_time() -> (Duration, Duration) {
    let mut usage = std::mem::MaybeUninit::<libc::rusage>::zeroed();
    // SAFETY: the pointer is that of a live, writable rusage, which the kernel fills; all
    // zero is a valid one too.
    let usage = unsafe {
        libc::getrusage(libc::RUSAGE_THREAD, usage.as_mut_ptr());
        usage.assume_init()
    };
    let part = |time: libc::timeval| {
        Duration::from_secs(time.tv_sec as u64) + Duration::from_micros(time.tv_usec as u64)
    };
    (part(usage.ru_utime), part(usage.ru_stime))
}
