//! What is to be done when.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use crate::host::neighbours::Neighbour;

/// Something to do. Of those due at one time the first kinds go first: they complete what
/// is known of many addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Task {
    /// Ask for the interface with an index.
    Device(u32),
    /// Ask for a neighbour.
    Neighbour(Neighbour),
    /// Ask for the route to an address.
    Route(IpAddr),
    /// Judge what is known of an address anew, because time has passed.
    Verdict(IpAddr),
}

/// Tasks, each once, by the time when they are due.
#[derive(Debug, Default)]
pub(super) struct Schedule {
    by_time: BTreeSet<(u64, Task)>,
    times: BTreeMap<Task, u64>,
}

impl Schedule {
    /// Sets the time of a task.
    pub(super) fn set(&mut self, task: Task, time_ns: u64) {
        if let Some(old) = self.times.insert(task, time_ns) {
            self.by_time.remove(&(old, task));
        }
        self.by_time.insert((time_ns, task));
    }

    /// Sees to it that a task is done at a time, if it is not done earlier.
    pub(super) fn by(&mut self, task: Task, time_ns: u64) {
        if self.times.get(&task).is_none_or(|&old| time_ns < old) {
            self.set(task, time_ns);
        }
    }

    /// Takes a task off.
    pub(super) fn remove(&mut self, task: Task) {
        if let Some(old) = self.times.remove(&task) {
            self.by_time.remove(&(old, task));
        }
    }

    /// Whether a task is on it.
    #[cfg(test)]
    pub(super) fn has(&self, task: Task) -> bool {
        self.times.contains_key(&task)
    }

    /// All tasks.
    #[cfg(test)]
    pub(super) fn tasks(&self) -> impl Iterator<Item = Task> {
        self.by_time.iter().map(|(_, task)| *task)
    }

    /// The first task and its time.
    pub(super) fn first(&self) -> Option<(u64, Task)> {
        self.by_time.first().copied()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_task_has_one_time() {
        let mut schedule = Schedule::default();
        let (a, b) = (Task::Device(1), Task::Device(2));
        schedule.set(a, 10);
        schedule.set(a, 30);
        schedule.set(b, 20);
        assert_eq!(schedule.first(), Some((20, b)));
        schedule.by(a, 40);
        schedule.remove(b);
        assert_eq!(schedule.first(), Some((30, a)));
        schedule.by(a, 5);
        schedule.by(b, 5);
        assert_eq!(schedule.first(), Some((5, a)));
        schedule.remove(a);
        schedule.remove(b);
        schedule.remove(b);
        assert_eq!(schedule.first(), None);
        assert!(schedule.times.is_empty());
    }
}
