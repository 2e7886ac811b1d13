//! The order in which changes go into the tables. Pure.
//!
//! What is new comes before anything goes that overlaps it: a packet that both
//! the old and the new lists would drop must not pass in between. What overlaps
//! nothing new goes first of all, so that the new has its room.

use std::ops::Range;

use edge_common::addr::{Family, Prefix};

use super::PolicyError;
use crate::tables::{Listing, TableError, Tables};

/// What a change does.
#[derive(Clone, Copy, Debug)]
pub(super) struct Step {
    pub(super) prefix: Prefix,
    /// It says something that was not said before.
    pub(super) adds: bool,
    /// Entries that the tables then have more: 1, 0 or -1.
    pub(super) growth: i32,
}

impl Step {
    /// What puts `own` in the place of `former`.
    pub(super) fn new(prefix: Prefix, former: Listing, own: Listing) -> Self {
        Self {
            prefix,
            adds: own.under(former) != former,
            growth: i32::from(!own.is_empty()) - i32::from(!former.is_empty()),
        }
    }
}

/// The room that a change leaves in the tables: of IPv4 hosts, IPv6 hosts and
/// prefixes.
#[derive(Clone, Copy, Debug)]
pub(super) struct Room {
    /// Entries that fit in besides; negative when the change does not fit.
    left: [i64; 3],
    /// Whether the change takes entries out.
    is_made: [bool; 3],
}

impl Room {
    /// Before any step.
    pub(super) fn new(tables: &Tables) -> Self {
        let (used, most) = (tables.used(), tables.geometry().capacity);
        let left = |most: u32, used: u32| i64::from(most) - i64::from(used);
        Self {
            left: [
                left(most.hosts_v4, used.hosts_v4),
                left(most.hosts_v6, used.hosts_v6),
                left(most.prefixes, used.prefixes),
            ],
            is_made: [false; 3],
        }
    }

    /// Whether there is room for anything.
    pub(super) fn is_any(&self) -> bool {
        self.left.iter().any(|&left| left > 0)
    }

    /// Counts a step of the change.
    pub(super) fn count(&mut self, step: &Step) {
        let table = Self::table(step.prefix);
        self.left[table] -= i64::from(step.growth);
        self.is_made[table] |= step.growth < 0;
    }

    /// Why there is no room for `prefix`: a change that fits when all of it is
    /// done, and makes room itself, would have more luck in parts.
    pub(super) fn error(&self, prefix: Prefix, error: TableError) -> PolicyError {
        let table = Self::table(prefix);
        if self.is_made[table] && self.left[table] >= 0 {
            PolicyError::Overlap(error)
        } else {
            PolicyError::Table(error)
        }
    }

    fn table(prefix: Prefix) -> usize {
        match (prefix.is_host(), prefix.family()) {
            (true, Family::V4) => 0,
            (true, Family::V6) => 1,
            (false, _) => 2,
        }
    }
}

/// Changes that overlap each other: those from one on up to the last whose
/// prefix lies inside its own.
///
/// There are as many groups as entries in most imports, so they are small.
#[derive(Clone, Copy, Debug)]
pub(super) struct Group {
    /// Something is added.
    adds: bool,
    /// Entries that the tables then have more.
    growth: i32,
    first: usize,
}

impl Group {
    /// Its changes, of so many; `prefix_of` tells the prefix of each.
    pub(super) fn range(self, prefix_of: impl Fn(usize) -> Prefix, changes: usize) -> Range<usize> {
        let last = prefix_of(self.first).last_bits();
        let mut end = self.first + 1;
        while end < changes && prefix_of(end).bits() <= last {
            end += 1;
        }
        self.first..end
    }
}

/// Groups of changes in the order in which to carry them out: in each of them
/// first what is added, then what is taken away. No prefix of one group
/// overlaps one of another. `steps` is in the order of prefixes.
pub(super) fn groups(steps: impl Iterator<Item = Step>) -> Vec<Group> {
    let mut groups: Vec<Group> = Vec::with_capacity(steps.size_hint().0);
    // The last address of the prefix that contains the group.
    let mut last = None;
    for (index, step) in steps.enumerate() {
        // By the bits alone, which ::/0 shares with IPv4: a prefix sorts before
        // all that lies inside it, and nothing else in between.
        match groups.last_mut() {
            Some(group) if last.is_some_and(|l| step.prefix.bits() <= l) => {
                group.adds |= step.adds;
                group.growth = group.growth.saturating_add(step.growth);
            }
            _ => {
                last = Some(step.prefix.last_bits());
                groups.push(Group {
                    adds: step.adds,
                    growth: step.growth,
                    first: index,
                });
            }
        }
    }
    // Among equals the order of prefixes, which tables and store like.
    groups.sort_unstable_by_key(|g| (g.adds, g.growth, g.first));
    groups
}

/// What the tables said before the steps of a change, to be put back in reverse.
///
/// Most steps of an import put in what was not there: only its place in the
/// change is kept of these.
#[derive(Debug, Default)]
pub(super) struct Undo {
    /// Places in the change, doubled; odd when something was there before.
    steps: Vec<usize>,
    /// That something, of the odd ones.
    formers: Vec<Listing>,
}

impl Undo {
    /// The step at this place of the change takes the place of `former`.
    pub(super) fn note(&mut self, at: usize, former: Listing) {
        let is_new = former.is_empty();
        self.steps.push(at << 1 | usize::from(!is_new));
        if !is_new {
            self.formers.push(former);
        }
    }

    /// Places and what was there before, the last step first.
    pub(super) fn backwards(self) -> impl Iterator<Item = (usize, Listing)> {
        let mut formers = self.formers.into_iter().rev();
        self.steps.into_iter().rev().map(move |step| {
            let former = (step & 1 == 1).then(|| formers.next());
            (step >> 1, former.flatten().unwrap_or_default())
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn order(steps: &[(&str, bool)]) -> Vec<Vec<String>> {
        let mut steps: Vec<Step> = steps
            .iter()
            .map(|&(prefix, adds)| Step {
                prefix: prefix.parse().unwrap(),
                adds,
                growth: if adds { 1 } else { -1 },
            })
            .collect();
        steps.sort_by_key(|s| s.prefix);
        let name = |s: &Step| s.prefix.to_string();
        groups(steps.iter().copied())
            .into_iter()
            .map(|group| group.range(|at| steps[at].prefix, steps.len()))
            .map(|range| steps[range].iter().map(name).collect())
            .collect()
    }

    #[test]
    fn what_overlaps_nothing_new_goes_first_and_what_grows_comes_last() {
        let got = order(&[
            ("10.0.0.1", true),
            ("10.1.0.0/16", true),
            ("10.1.2.0/24", false),
            ("10.1.3.4", false),
            ("10.2.0.0/16", false),
            ("10.2.3.4", true),
            ("10.3.0.0/16", false),
        ]);
        let want: [&[&str]; 4] = [
            &["10.3.0.0/16"],
            &["10.1.0.0/16", "10.1.2.0/24", "10.1.3.4"],
            &["10.2.0.0/16", "10.2.3.4"],
            &["10.0.0.1"],
        ];
        assert_eq!(got, want);
    }

    #[test]
    fn an_undo_goes_back_step_by_step_and_takes_a_word_for_what_was_not_there() {
        let was = |black| Listing {
            black,
            ..Listing::default()
        };
        let steps = [(7, was(0)), (3, was(9)), (8, was(0)), (3, was(4))];
        let mut undo = Undo::default();
        for (at, former) in steps {
            undo.note(at, former);
        }
        assert_eq!((undo.steps.len(), undo.formers.len()), (4, 2));
        let mut back: Vec<_> = undo.backwards().collect();
        back.reverse();
        assert_eq!(back, steps);
    }

    #[test]
    fn the_whole_of_ipv6_stays_together_around_ipv4() {
        let got = order(&[
            ("::/0", false),
            ("10.0.0.0/8", true),
            ("2001:db8::/32", true),
        ]);
        assert_eq!(got, [["::/0", "10.0.0.0/8", "2001:db8::/32"]]);
    }
}
