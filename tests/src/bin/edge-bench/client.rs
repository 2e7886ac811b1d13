//! A client of the service: connections with one request each, and how
//! they went.

use std::{
    io::Error,
    net::{IpAddr, SocketAddr, TcpStream},
    os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd},
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use edge_tests::client::{connect, get};
use tokio::{
    io::{Interest, unix::AsyncFd},
    runtime::Runtime,
    time::timeout,
};

/// How long a connection may take, from its first SYN to the last byte of the answer.
const PATIENCE: Duration = Duration::from_secs(3);

/// How connections come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Load {
    /// So many a second, whatever became of those before.
    Rate(u32),
    /// As fast as they go, so many at a time.
    FlatOut(u32),
}

/// How connections went.
#[derive(Clone, Debug, Default)]
pub(crate) struct Outcome {
    /// Milliseconds of those that succeeded, least first.
    took: Vec<f64>,
    failed: usize,
    seconds: f64,
}

impl Outcome {
    /// Connections that were tried.
    pub(crate) fn tried(&self) -> usize {
        self.took.len() + self.failed
    }

    /// Per cent of them that succeeded.
    pub(crate) fn succeeded(&self) -> f64 {
        self.took.len() as f64 / self.tried().max(1) as f64 * 100.0
    }

    /// Successful ones a second.
    pub(crate) fn rate(&self) -> f64 {
        self.took.len() as f64 / self.seconds
    }

    /// Milliseconds within which this per cent of the successful ones were done.
    pub(crate) fn percentile(&self, per_cent: usize) -> f64 {
        let at = (self.took.len() * per_cent / 100).min(self.took.len().saturating_sub(1));
        self.took.get(at).copied().unwrap_or(f64::NAN)
    }
}

/// Connects to `to` for so long, from each of the addresses in turn. Sockets are those of
/// the calling thread's network namespace.
pub(crate) fn load(from: &[IpAddr], to: SocketAddr, load: Load, time: Duration) -> Result<Outcome> {
    let outcome = Arc::new(Mutex::new(Outcome::default()));
    let runtime = runtime()?;
    let from: Arc<[IpAddr]> = from.into();
    runtime.block_on(async {
        let start = Instant::now();
        let mut tasks = tokio::task::JoinSet::new();
        match load {
            Load::Rate(rate) => {
                let interval = Duration::from_secs(1) / rate.max(1);
                let clock = Clock::new(interval)?;
                let mut i = 0;
                while interval * i < time {
                    for _ in 0..clock.ticks().await? {
                        i += 1;
                        // From when it was due: a client that lags counts as well.
                        let due = start + interval * i;
                        let (from, outcome) = (Arc::clone(&from), Arc::clone(&outcome));
                        tasks.spawn(async move { one(source(&from, i), to, due, &outcome).await });
                    }
                }
            }
            Load::FlatOut(at_once) => {
                for n in 0..at_once {
                    let (from, outcome) = (Arc::clone(&from), Arc::clone(&outcome));
                    tasks.spawn(async move {
                        let mut i = n;
                        while start.elapsed() < time {
                            one(source(&from, i), to, Instant::now(), &outcome).await;
                            i += at_once;
                        }
                    });
                }
            }
        }
        tasks.join_all().await;
        locked(&outcome, |o| o.seconds = start.elapsed().as_secs_f64());
        anyhow::Ok(())
    })?;
    let mut outcome = locked(&outcome, std::mem::take);
    outcome.took.sort_by(f64::total_cmp);
    Ok(outcome)
}

/// A timer of the kernel's own resolution; that of the runtime's is a millisecond.
struct Clock(AsyncFd<OwnedFd>);

impl Clock {
    fn new(interval: Duration) -> Result<Self> {
        // SAFETY: no pointers.
        let fd = unsafe {
            libc::timerfd_create(
                libc::CLOCK_MONOTONIC,
                libc::TFD_NONBLOCK | libc::TFD_CLOEXEC,
            )
        };
        ensure!(fd >= 0, "no timer: {}", Error::last_os_error());
        // SAFETY: new, and nobody else has it.
        let fd = unsafe { OwnedFd::from_raw_fd(fd) };
        let every = libc::timespec {
            tv_sec: interval.as_secs().try_into()?,
            tv_nsec: interval.subsec_nanos().into(),
        };
        let timer = libc::itimerspec {
            it_interval: every,
            it_value: every,
        };
        // SAFETY: the descriptor is open and the value valid for reads.
        let set = unsafe {
            libc::timerfd_settime(fd.as_raw_fd(), 0, &raw const timer, std::ptr::null_mut())
        };
        ensure!(set == 0, "no timer: {}", Error::last_os_error());
        // SAFETY: an owned descriptor stays the same until it is dropped.
        let fd = unsafe { AsyncFd::register_with_interest(fd, Interest::READABLE)? };
        Ok(Self(fd))
    }

    /// Waits for a tick; how many there were since the last call.
    async fn ticks(&self) -> Result<u64> {
        loop {
            let mut ready = self.0.readable().await?;
            let mut ticks = 0u64;
            // SAFETY: the pointer is to a live word, of as many bytes.
            let got = unsafe {
                libc::read(
                    self.0.as_raw_fd(),
                    (&raw mut ticks).cast(),
                    size_of::<u64>(),
                )
            };
            if got > 0 {
                return Ok(ticks);
            }
            ready.clear_ready();
        }
    }
}

fn source(from: &[IpAddr], i: u32) -> Option<IpAddr> {
    from.get(i as usize % from.len().max(1)).copied()
}

fn locked<T>(outcome: &Mutex<Outcome>, f: impl FnOnce(&mut Outcome) -> T) -> T {
    f(&mut outcome.lock().unwrap_or_else(PoisonError::into_inner))
}

/// One connection and request, from when it was due.
async fn one(from: Option<IpAddr>, to: SocketAddr, due: Instant, outcome: &Mutex<Outcome>) {
    let end = due + PATIENCE;
    let left = end.saturating_duration_since(Instant::now());
    let done = matches!(timeout(left, get(from, to)).await, Ok(Ok(true)));
    locked(outcome, |o| {
        if done {
            o.took.push(due.elapsed().as_secs_f64() * 1e3);
        } else {
            o.failed += 1;
        }
    });
}

fn runtime() -> Result<Runtime> {
    Ok(tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?)
}

/// Connects from an address and port.
pub(crate) fn connect_from(from: SocketAddr, to: SocketAddr) -> Result<TcpStream> {
    runtime()?
        .block_on(async { connect(Some(from), to).await?.into_std() })
        .with_context(|| format!("cannot connect from {from} to {to}"))
}
