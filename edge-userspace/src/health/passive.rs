//! What the traffic of clients says of a backend: with NAT both directions are seen, and so is
//! whether SYNs are answered.
//!
//! One verdict is about many connections of a while, and decides at once. Time and counts are
//! arguments.

use edge_common::nat::Signals;

use crate::config::balance::Passive;

/// Of so many SYNs one must be answered by a SYN-ACK: one in twenty may be of somebody who
/// only tries, and a backend that takes fewer takes none.
const ONE_IN: u64 = 20;
/// How often the time until it is tried again doubles, at the most.
const DOUBLINGS: u32 = 5;

/// A change.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// Connections to it fail, and how.
    Failed(String),
    /// It may be tried again.
    Tried,
}

/// Since when connections fail, and how.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    /// What they meet.
    pub why: String,
    /// Nanoseconds of `CLOCK_MONOTONIC`.
    pub since_ns: u64,
    /// When it is tried again, likewise.
    pub until_ns: u64,
}

/// What is known of one backend.
#[derive(Clone, Debug, Default)]
pub struct Watch {
    /// Counts at the begin of the window, at the last look, and when the window began.
    window: Option<(Signals, Signals, u64)>,
    /// How often it has failed since connections last succeeded.
    failures: u32,
    failure: Option<Failure>,
}

impl Watch {
    /// How connections fail, while it is not tried.
    pub const fn failure(&self) -> Option<&Failure> {
        self.failure.as_ref()
    }

    /// Takes a look, of which there should be one about each second. One that `is_checked` by
    /// others is brought back by them; else it is tried again after a while.
    pub fn look(
        &mut self,
        how: &Passive,
        is_checked: bool,
        signals: Signals,
        now_ns: u64,
    ) -> Option<Change> {
        if let Some(failure) = &self.failure {
            if now_ns < failure.until_ns && !is_checked {
                self.window = None;
                return None;
            }
            self.failure = None;
            self.window = Some((signals, signals, now_ns));
            return Some(Change::Tried);
        }
        let (start, before, began_ns) = match self.window {
            // A table that was made anew begins at nothing.
            Some(window) if window.1.syns <= signals.syns => window,
            _ => {
                self.window = Some((signals, signals, now_ns));
                return None;
            }
        };
        // SYNs up to the last look have had the time to be answered.
        let syns = before.syns - start.syns;
        let answered = signals.syn_acks.saturating_sub(start.syn_acks);
        let resets = signals.resets.saturating_sub(start.resets);
        if syns >= how.syns.into() && answered * ONE_IN < syns {
            self.window = Some((signals, signals, now_ns));
            let seconds = now_ns.saturating_sub(began_ns).div_ceil(1_000_000_000);
            let why = if resets * 2 >= syns {
                format!("it refuses connections: {resets} resets to {syns} SYNs in {seconds} s")
            } else {
                format!("it does not answer: {answered} SYN-ACKs to {syns} SYNs in {seconds} s")
            };
            if !is_checked {
                self.fail(how, &why, now_ns);
            }
            return Some(Change::Failed(why));
        }
        if answered > 0 {
            self.failures = 0;
        }
        let is_over = now_ns.saturating_sub(began_ns) >= nanoseconds(how.window);
        self.window = Some(match is_over {
            // Answers are counted from when SYNs are: those to former ones may be among
            // them, and none is missing.
            true => (before, signals, now_ns),
            false => (start, signals, began_ns),
        });
        None
    }

    fn fail(&mut self, how: &Passive, why: &str, now_ns: u64) {
        let wait_ns = nanoseconds(how.retry) << self.failures.min(DOUBLINGS);
        self.failures = self.failures.saturating_add(1);
        self.failure = Some(Failure {
            why: why.to_owned(),
            since_ns: now_ns,
            until_ns: now_ns.saturating_add(wait_ns),
        });
    }
}

/// At most an hour, which is the longest that the file may say.
fn nanoseconds(span: std::time::Duration) -> u64 {
    const HOUR: u64 = 3_600_000_000_000;
    u64::try_from(span.as_nanos()).map_or(HOUR, |ns| ns.min(HOUR))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use proptest::prelude::*;

    use super::*;

    const SECOND: u64 = 1_000_000_000;
    const HOW: Passive = Passive {
        window: Duration::from_secs(10),
        syns: 5,
        retry: Duration::from_secs(10),
    };

    /// A backend, and what it has been sent and answered.
    #[derive(Default)]
    struct Rig {
        watch: Watch,
        sum: Signals,
        now_s: u64,
        is_checked: bool,
    }

    impl Rig {
        /// A second in which so much happens.
        fn second(&mut self, syns: u64, syn_acks: u64, resets: u64) -> Option<Change> {
            self.sum.syns += syns;
            self.sum.syn_acks += syn_acks;
            self.sum.resets += resets;
            self.now_s += 1;
            let now_ns = self.now_s * SECOND;
            self.watch.look(&HOW, self.is_checked, self.sum, now_ns)
        }

        fn seconds(&mut self, n: u64, syns: u64, syn_acks: u64, resets: u64) -> Vec<Change> {
            let each = (0..n).filter_map(|_| self.second(syns, syn_acks, resets));
            each.collect()
        }
    }

    fn why(change: Option<Change>) -> String {
        match change {
            Some(Change::Failed(why)) => why,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn who_is_silent_or_refuses_has_failed() {
        let mut rig = Rig::default();
        assert_eq!(rig.seconds(2, 0, 0, 0), []);
        assert_eq!(rig.second(7, 0, 0), None);
        assert_eq!(
            why(rig.second(3, 0, 0)),
            "it does not answer: 0 SYN-ACKs to 7 SYNs in 3 s"
        );
        let mut rig = Rig::default();
        rig.second(0, 0, 0);
        rig.second(6, 0, 5);
        assert_eq!(
            why(rig.second(0, 0, 1)),
            "it refuses connections: 6 resets to 6 SYNs in 2 s"
        );
        assert_eq!(rig.watch.failure().unwrap().until_ns, 13 * SECOND);
    }

    #[test]
    fn few_syns_old_ones_and_late_answers_say_nothing() {
        let mut rig = Rig::default();
        rig.second(0, 0, 0);
        // Four in ten seconds, again and again.
        for _ in 0..50 {
            assert_eq!(rig.second(4, 0, 0), None);
            assert_eq!(rig.seconds(12, 0, 0, 0), []);
        }
        // Answers that come a moment later.
        for _ in 0..50 {
            assert_eq!(rig.second(100, 0, 0), None);
            assert_eq!(rig.second(0, 100, 0), None);
        }
        // Resets alone: strays of nobody's connections.
        assert_eq!(rig.seconds(50, 0, 0, 1000), []);
        // Few who answer among many that are refused are no reason either.
        assert_eq!(rig.seconds(50, 100, 10, 90), []);
    }

    #[test]
    fn it_is_tried_again_later_each_time_until_it_answers() {
        let mut rig = Rig::default();
        let mut waits = Vec::new();
        let mut failed_at = None;
        while waits.len() < 8 {
            match rig.second(3, 0, 3) {
                Some(Change::Failed(_)) => failed_at = Some(rig.now_s),
                Some(Change::Tried) => waits.push(rig.now_s - failed_at.take().unwrap()),
                None => {}
            }
        }
        assert_eq!(waits, [10, 20, 40, 80, 160, 320, 320, 320]);
        assert_eq!(rig.seconds(20, 3, 3, 0), []);
        let failed = rig.seconds(15, 3, 0, 3);
        assert!(matches!(failed[..], [Change::Failed(_)]), "{failed:?}");
        let until_ns = rig.watch.failure().unwrap().until_ns;
        let since_ns = rig.watch.failure().unwrap().since_ns;
        assert_eq!(until_ns - since_ns, 10 * SECOND);
    }

    #[test]
    fn who_is_checked_is_told_of_again_and_again() {
        let mut rig = Rig {
            is_checked: true,
            ..Rig::default()
        };
        let told = rig.seconds(60, 10, 0, 0);
        assert!(told.len() > 10, "{told:?}");
        assert!(told.iter().all(|c| matches!(c, Change::Failed(_))));
        assert_eq!(rig.watch.failure(), None);
    }

    #[test]
    fn counts_that_begin_anew_are_no_news() {
        let mut rig = Rig::default();
        rig.seconds(5, 100, 100, 0);
        rig.sum = Signals::default();
        assert_eq!(rig.seconds(5, 100, 100, 0), []);
    }

    proptest! {
        /// However its traffic comes, one that answers each SYN within a second never fails.
        #[test]
        fn who_answers_never_fails(seconds in prop::collection::vec((0u64..50, any::<bool>()), 1..200)) {
            let mut rig = Rig::default();
            let mut owed = 0;
            for (syns, late) in seconds {
                let answers = owed + if late { 0 } else { syns };
                owed = if late { syns } else { 0 };
                prop_assert_eq!(rig.second(syns, answers, 0), None);
            }
        }

        /// And one that never does fails once it was asked enough in a window.
        #[test]
        fn who_never_answers_fails(syns in prop::collection::vec(1u64..20, 12), refuses: bool) {
            let mut rig = Rig::default();
            rig.second(0, 0, 0);
            let failed = syns.iter().any(|&n| {
                rig.second(n, 0, if refuses { n } else { 0 }).is_some()
            });
            prop_assert!(failed);
        }
    }
}
