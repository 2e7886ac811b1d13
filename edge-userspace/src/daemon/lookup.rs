//! What holds for an address, worked out from the lists and the configuration
//! as the XDP program does it. Pure.

use std::net::IpAddr;

use edge_common::{
    abi::{LimitKind, Mode},
    addr::Prefix,
    decide::Standing,
    reason::Reason,
};

use crate::{
    clock::Now,
    config::Model,
    control::protocol::{Entry, List, Lookup, Outcome, Range, RangeRole},
};

/// What holds for `address`, given every list entry that covers it.
pub(super) fn lookup(address: IpAddr, mut entries: Vec<Entry>, model: &Model, now: Now) -> Lookup {
    let host = Prefix::host(address);
    entries.sort_by_key(|e| (e.prefix.len(), e.list));
    let ranges: Vec<Range> = [
        (RangeRole::Management, &model.management),
        (RangeRole::Bogon, &model.bogon_prefixes),
    ]
    .into_iter()
    .flat_map(|(role, prefixes)| prefixes.iter().map(move |&prefix| Range { prefix, role }))
    .chain(model.limits.overrides.iter().map(|o| Range {
        prefix: o.prefix,
        role: RangeRole::Limits,
    }))
    .filter(|range| range.prefix.contains(host))
    .collect();
    let role = |role| ranges.iter().any(|r| r.role == role);
    let on = |list| {
        let in_force = |e: &&Entry| e.expires_unix_ms.is_none_or(|at| at > now.unix_ms);
        entries.iter().filter(in_force).any(|e| e.list == list)
    };
    let standing = if role(RangeRole::Management) {
        Standing::Management
    } else if on(List::Allow) {
        Standing::Allowlisted
    } else if on(List::Black) {
        Standing::Blacklisted
    } else {
        Standing::Unlisted
    };
    let outcome = outcome(standing, role(RangeRole::Bogon), model);
    Lookup {
        address: address.to_canonical(),
        standing,
        entries,
        ranges,
        outcome,
    }
}

fn outcome(standing: Standing, bogon: bool, model: &Model) -> Outcome {
    let ends = |reason, would_drop| Outcome {
        reason,
        would_drop,
        limited: false,
    };
    match standing {
        Standing::Management => return ends(Reason::PassManagement, None),
        Standing::Allowlisted => return ends(Reason::PassAllowlisted, None),
        Standing::Blacklisted | Standing::Unlisted => {}
    }
    let checks = model.effective_checks();
    let found = [
        (
            standing == Standing::Blacklisted,
            checks.blacklist,
            Reason::Blacklisted,
        ),
        (bogon, checks.bogons, Reason::Bogon),
    ];
    let mut would_drop = None;
    for (found, mode, reason) in found {
        match mode {
            Mode::Enforce if found => return ends(reason, would_drop),
            Mode::DryRun if found => would_drop = would_drop.or(Some(reason)),
            _ => {}
        }
    }
    let limited = LimitKind::ALL
        .iter()
        .any(|&kind| model.limits.mode(kind) != Mode::Off);
    Outcome {
        limited,
        ..ends(Reason::Pass, would_drop)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{config, control::protocol::Origin};

    const NOW: Now = Now {
        mono_ns: 1 << 40,
        boot_ns: 1 << 40,
        unix_ms: 1_000_000,
    };

    fn model(text: &str) -> Model {
        let text = format!("interfaces = ['eth0']\n{text}");
        let path = std::path::Path::new("test");
        config::parse(&text, path, 4_000_000).unwrap().model
    }

    fn entry(prefix: &str, list: List, expires_unix_ms: Option<u64>) -> Entry {
        Entry {
            prefix: prefix.parse().unwrap(),
            list,
            origin: Origin::Cli,
            feed: None,
            created_unix_ms: 0,
            expires_unix_ms,
            note: String::new(),
            hits: 0,
        }
    }

    fn ask(address: &str, entries: Vec<Entry>, model: &Model) -> Lookup {
        lookup(address.parse().unwrap(), entries, model, NOW)
    }

    #[test]
    fn precedence_is_that_of_the_program() {
        let model = model("lists.management = ['9.51.100.0/24']");
        let black = || entry("9.51.0.0/16", List::Black, None);
        let got = ask("9.51.100.1", vec![black()], &model);
        assert_eq!(got.standing, Standing::Management);
        assert_eq!(got.outcome.reason, Reason::PassManagement);
        assert_eq!(got.ranges.len(), 1);
        let allow = entry("9.51.7.7", List::Allow, None);
        let got = ask("9.51.7.7", vec![allow.clone(), black()], &model);
        assert_eq!(got.outcome.reason, Reason::PassAllowlisted);
        // The shortest first.
        assert_eq!(got.entries, [black(), allow]);
        let got = ask("9.51.7.8", vec![black()], &model);
        assert_eq!(got.outcome.reason, Reason::Blacklisted);
        let got = ask("9.9.9.9", vec![], &model);
        assert_eq!(got.standing, Standing::Unlisted);
        assert_eq!(
            (got.outcome.reason, got.outcome.limited),
            (Reason::Pass, false)
        );
    }

    #[test]
    fn what_has_expired_does_not_count() {
        let model = model("");
        let entries = vec![entry("9.9.9.9", List::Black, Some(NOW.unix_ms))];
        assert_eq!(ask("9.9.9.9", entries, &model).standing, Standing::Unlisted);
        let entries = vec![entry("9.9.9.9", List::Black, Some(NOW.unix_ms + 1))];
        let got = ask("9.9.9.9", entries, &model);
        assert_eq!(got.standing, Standing::Blacklisted);
    }

    #[test]
    fn dry_runs_and_limits_are_told() {
        let model = model(
            "checks.blacklist = 'dry-run'\n[limits.udp]\nrate = 5\n[[limits.override]]\nprefixes = ['9.0.0.0/8']\nudp = 'unlimited'",
        );
        let black = |p| vec![entry(p, List::Black, None)];
        let got = ask("9.9.9.9", black("9.9.9.9"), &model);
        let passes = Outcome {
            reason: Reason::Pass,
            would_drop: Some(Reason::Blacklisted),
            limited: true,
        };
        assert_eq!(got.outcome, passes);
        assert_eq!(got.ranges[0].role, RangeRole::Limits);
        // Goes on to the next check, which is in force.
        let got = ask("127.0.0.1", black("127.0.0.0/8"), &model);
        assert_eq!(got.outcome.reason, Reason::Bogon);
        assert_eq!(got.outcome.would_drop, Some(Reason::Blacklisted));
    }
}
