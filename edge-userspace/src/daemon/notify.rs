//! What systemd is told, where it listens.
//!
//! Telling it blocks when it does not read, and neither engine nor sockets may
//! wait for that: a thread of its own does the telling, and what it has no time
//! for is left out.

use std::{
    sync::mpsc::{Receiver, SyncSender, sync_channel},
    thread,
    time::Duration,
};

use sd_notify::NotifyState;
use tracing::warn;

/// Messages that wait, at the most.
const QUEUE: usize = 16;

/// How often the engine gives a sign of life, and how often the service manager
/// is told of one, when its patience is so long. Both together, out of step, and
/// with one message lost, stay below it.
pub(super) fn interval(patience: Duration) -> Duration {
    (patience / 4).max(Duration::from_millis(1))
}

/// Tells the service manager how the daemon is.
#[derive(Clone, Debug)]
pub(super) struct Notifier(SyncSender<News>);

/// What there is to tell.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum News {
    /// Everything is in force.
    Ready,
    /// A reload begins.
    Reloading,
    /// The end begins.
    Stopping,
    /// The daemon is alive.
    Alive,
}

impl Notifier {
    /// Starts the thread. It ends when all notifiers are gone.
    ///
    /// # Errors
    /// When there can be no more threads.
    pub(super) fn start() -> std::io::Result<Self> {
        let (sender, news) = sync_channel(QUEUE);
        thread::Builder::new()
            .name("notify".into())
            .spawn(move || pass_on(&news))?;
        Ok(Self(sender))
    }

    /// Tells it, sooner or later.
    pub(super) fn tell(&self, news: News) {
        if self.0.try_send(news).is_err() {
            warn!("the service manager does not listen: not told {news:?}");
        }
    }
}

/// Tells the service manager that another process is the main one of the service from now on. To
/// be called where waiting is no harm.
///
/// # Errors
/// Those of the system.
pub(super) fn main_process_is(pid: u32) -> std::io::Result<()> {
    sd_notify::notify(&[NotifyState::MainPid(pid)])
}

fn pass_on(news: &Receiver<News>) {
    for news in news {
        let told = match news {
            News::Ready => sd_notify::notify(&[NotifyState::Ready]),
            News::Reloading => NotifyState::monotonic_usec_now()
                .and_then(|now| sd_notify::notify(&[NotifyState::Reloading, now])),
            News::Stopping => sd_notify::notify(&[NotifyState::Stopping]),
            News::Alive => sd_notify::notify(&[NotifyState::Watchdog]),
        };
        if let Err(e) = told {
            warn!("cannot notify the service manager: {e}");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_service_manager_hears_in_time_also_when_a_message_is_lost() {
        for ms in [20, 300, 1000, 4000, 30_000] {
            let patience = Duration::from_millis(ms);
            // A beat just missed, a telling just missed, and one lost.
            assert!(3 * interval(patience) < patience, "{ms} ms");
        }
        assert!(
            interval(Duration::ZERO) > Duration::ZERO,
            "tokio refuses none"
        );
    }
}
