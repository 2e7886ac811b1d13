//! Attacks that the program does not find, but only limits and counts: those on the host as
//! a whole, and what is over a service's limit.

use edge_common::{abi::Mode, reason::Reason};

use super::{
    Defence,
    follow::tell,
    journal::{Journal, SAVE_EVERY_MS},
    troubles::Trouble,
};
use crate::{
    clock::Now,
    config::{Model, services::HOST},
    daemon::facts::Shared,
    services::{
        attacks::{History, Subject},
        watch::{Followed, HOST_REASONS, Reading, found_by},
    },
    status::{
        HostFloodStatus,
        attack::{Found, Remedy},
    },
};

/// How much older the history may be than a daemon that crashed, and a restart takes,
/// nanoseconds.
const SLACK_NS: u64 = 2 * SAVE_EVERY_MS * 1_000_000;

/// What a configuration limits.
#[derive(Clone, Copy, Debug)]
pub(super) struct Limited {
    /// Packets from ports of reflectors.
    pub(super) reflection: Mode,
    icmp: Mode,
    prefixes: Mode,
    /// How long an attack goes on after there was little over a limit.
    hold_ns: u64,
}

impl Default for Limited {
    /// Nothing.
    fn default() -> Self {
        Self {
            reflection: Mode::Off,
            icmp: Mode::Off,
            prefixes: Mode::Off,
            hold_ns: 0,
        }
    }
}

impl Limited {
    pub(super) fn new(model: &Model) -> Self {
        Self {
            reflection: model.floods.reflection.mode,
            icmp: match model.floods.icmp.mode {
                Mode::Off if model.services.iter().any(|s| s.echo) => Mode::Enforce,
                mode => mode,
            },
            prefixes: model.floods.prefixes.effective_mode(),
            hold_ns: model.flood.hold_s.saturating_mul(1_000_000_000),
        }
    }

    /// What is limited of the host as a whole, and how. One limit holds without being asked
    /// for: that of pings of balanced addresses which are answered here.
    fn host(&self) -> impl Iterator<Item = (Found, Mode)> + use<> {
        let all = [(Found::Icmp, self.icmp), (Found::Prefixes, self.prefixes)];
        all.into_iter().filter(|(_, mode)| *mode != Mode::Off)
    }
}

impl Defence {
    /// Reads what was counted of the host as a whole, where that is limited, and tells what
    /// changed. Counters are read seldom as long as all is quiet.
    pub(super) fn poll_host(&mut self, shared: &Shared, now: Now, seldom: bool) {
        let host: Vec<(Found, Mode)> = self.limited.host().collect();
        let is_attacked = |(found, _): &(Found, Mode)| self.watch.is_attacked(HOST, *found);
        if host.is_empty() || !seldom && !host.iter().any(is_attacked) {
            return;
        }
        let counted = shared.packets_of(HOST_REASONS);
        let counted = self.troubles.mind(Trouble::HostCounters, counted);
        let mut changes = Vec::new();
        let mut history = shared.attacks.lock();
        for (found, mode) in host {
            let subject = Subject {
                name: HOST,
                found,
                remedy: over_limit(mode),
            };
            let reading = match (&counted, self.watch.counters(HOST, found)) {
                (Some(counted), _) => Reading::of_host(*counted),
                // It ends even if nothing can be read.
                (None, Some(counters)) => Reading {
                    counters,
                    ..Reading::default()
                },
                (None, None) => continue,
            };
            let followed = self.followed(subject, &history, now);
            let step = self.watch.take(followed, reading, now.mono_ns);
            changes.extend(history.take(subject, &step, now));
        }
        drop(history);
        tell(changes, shared);
    }

    /// How a subject is followed.
    pub(super) fn followed<'a>(
        &self,
        of: Subject<'a>,
        history: &History,
        now: Now,
    ) -> Followed<'a> {
        // What the program finds it knows again itself.
        let is_new =
            of.found != Found::Segments && self.watch.counters(of.name, of.found).is_none();
        let inherited = is_new.then(|| history.inherited(of, now.mono_ns, SLACK_NS));
        Followed {
            name: of.name,
            found: of.found,
            hold_ns: self.limited.hold_ns,
            inherited: inherited.flatten(),
        }
    }

    /// Whether attacks on it are followed.
    pub(super) fn is_there(&self, name: &str, found: Found) -> bool {
        if name == HOST && Found::HOST.contains(&found) {
            return self.limited.host().any(|(flood, _)| flood == found);
        }
        if found == Found::Reflection && self.limited.reflection == Mode::Off {
            return false;
        }
        let services = self.model().map_or(&[][..], |m| &m.services);
        let mut services = services.iter();
        services.any(|s| s.name == name && found_by(s) == found)
    }

    /// How the host as a whole is.
    pub(in crate::daemon) fn host_floods(&self, journal: &Journal) -> Vec<HostFloodStatus> {
        let history = journal.lock();
        let one = |(found, mode): (Found, Mode)| HostFloodStatus {
            flood: found,
            dry_run: mode == Mode::DryRun,
            attack: history.current(HOST, found).map(Box::new),
            attacks: history.begun(HOST, found),
        };
        self.limited.host().map(one).collect()
    }
}

/// The flood of the host that a packet of a reason is of.
pub(super) const fn host_flood(reason: Reason) -> Option<Found> {
    match reason {
        Reason::FloodIcmp => Some(Found::Icmp),
        Reason::FloodSource | Reason::FloodDest => Some(Found::Prefixes),
        _ => None,
    }
}

/// What is done about what is over a limit.
pub(super) const fn over_limit(mode: Mode) -> Remedy {
    match mode {
        Mode::Enforce => Remedy::Drops,
        Mode::DryRun => Remedy::DryRun,
        Mode::Off => Remedy::Nothing,
    }
}

#[cfg(test)]
mod tests {
    use std::{fs, sync::mpsc::sync_channel};

    use super::*;
    use crate::{
        daemon::defence::journal::Saver,
        services::watch::{Followed, Watch},
    };

    #[test]
    fn what_is_no_longer_limited_is_under_attack_no_more() {
        let dir = tempfile::tempdir().unwrap();
        let (commands, _engine) = sync_channel(1);
        let (upgrades, _orders) = tokio::sync::mpsc::channel(1);
        let now = Now::read();
        let shared = Shared::new(now, commands, upgrades);
        shared.attacks.open(dir.path());
        let mut defence = Defence::new(dir.path());
        let subject = Subject {
            name: HOST,
            found: Found::Prefixes,
            remedy: Remedy::Drops,
        };
        let followed = Followed {
            name: HOST,
            found: Found::Prefixes,
            hold_ns: 60_000_000_000,
            inherited: Some((now.mono_ns, now.mono_ns + 60_000_000_000)),
        };
        let reading = Reading::of_host([0; HOST_REASONS.len()]);
        let step = Watch::default().take(followed, reading, now.mono_ns);
        assert!(step.attacked);
        { shared.attacks.lock() }.take(subject, &step, now);
        // A configuration without limits comes into force.
        defence.keep(&shared);
        let list = { shared.attacks.lock() }.list();
        assert!(list.iter().all(|a| a.ended_unix_ms.is_some()), "{list:?}");
        assert_eq!(list.len(), 1);
        assert_eq!(shared.hub.subscribe(9).0.len(), 1, "it is told");
        Saver::default().mind(&shared.attacks, false, Now { unix_ms: 1, ..now });
        let kept = fs::read_to_string(dir.path().join("attacks.json")).unwrap();
        assert!(!kept.contains("\"ended_unix_ms\":null"), "{kept}");
    }
}
