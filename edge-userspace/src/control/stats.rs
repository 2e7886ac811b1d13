//! Counts of the requests on the control socket.

use std::sync::atomic::{AtomicU64, Ordering};

use super::protocol::Command;
use crate::status::ControlCount;

/// Requests by command and result since the start.
#[derive(Debug, Default)]
pub struct Stats {
    counts: [Count; Command::ALL.len()],
}

#[derive(Debug, Default)]
struct Count {
    succeeded: AtomicU64,
    failed: AtomicU64,
}

impl Stats {
    /// Counts a request that was answered.
    pub fn count(&self, command: Command, succeeded: bool) {
        if let Some(count) = self.counts.get(command as usize) {
            let which = if succeeded {
                &count.succeeded
            } else {
                &count.failed
            };
            which.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// The counts of all commands.
    pub fn counts(&self) -> Vec<ControlCount> {
        Command::ALL
            .iter()
            .zip(&self.counts)
            .map(|(command, count)| ControlCount {
                command: command.name().to_owned(),
                succeeded: count.succeeded.load(Ordering::Relaxed),
                failed: count.failed.load(Ordering::Relaxed),
            })
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_command_counts_at_its_own_place() {
        for (i, command) in Command::ALL.iter().enumerate() {
            assert_eq!(*command as usize, i);
            let stats = Stats::default();
            stats.count(*command, true);
            stats.count(*command, false);
            for count in stats.counts() {
                let expected = u64::from(count.command == command.name());
                assert_eq!((count.succeeded, count.failed), (expected, expected));
            }
        }
    }
}
