//! The order in which changes go into the tables. Pure.
//!
//! What is new comes before anything goes that overlaps it: a packet that both
//! the old and the new lists would drop must not pass in between. What overlaps
//! nothing new goes first of all, so that the new has its room.

use std::ops::Range;

use edge_common::addr::Prefix;

/// What a change does.
#[derive(Clone, Copy, Debug)]
pub(super) struct Step {
    pub(super) prefix: Prefix,
    /// It says something that was not said before.
    pub(super) adds: bool,
    /// Entries that the tables then have more: 1, 0 or -1.
    pub(super) growth: i64,
}

/// Groups of changes, as ranges of `steps`, in the order in which to carry them
/// out: in each of them first what is added, then what is taken away. No prefix
/// of one group overlaps one of another. `steps` is in the order of prefixes.
pub(super) fn groups(steps: impl Iterator<Item = Step>) -> Vec<Range<usize>> {
    let mut groups: Vec<(bool, i64, Range<usize>)> = Vec::new();
    // The last address of the prefix that contains the group.
    let mut last = None;
    for (index, step) in steps.enumerate() {
        // By the bits alone, which ::/0 shares with IPv4: a prefix sorts before
        // all that lies inside it, and nothing else in between.
        match groups.last_mut() {
            Some((adds, growth, range)) if last.is_some_and(|l| step.prefix.bits() <= l) => {
                *adds |= step.adds;
                *growth += step.growth;
                range.end = index + 1;
            }
            _ => {
                last = Some(step.prefix.last_bits());
                groups.push((step.adds, step.growth, index..index + 1));
            }
        }
    }
    // Stable: among equals the order of prefixes, which tables and store like.
    groups.sort_by_key(|g| (g.0, g.1));
    groups.into_iter().map(|g| g.2).collect()
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
    fn the_whole_of_ipv6_stays_together_around_ipv4() {
        let got = order(&[
            ("::/0", false),
            ("10.0.0.0/8", true),
            ("2001:db8::/32", true),
        ]);
        assert_eq!(got, [["::/0", "10.0.0.0/8", "2001:db8::/32"]]);
    }
}
