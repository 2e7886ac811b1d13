//! Limits that an operator set while the daemon ran: changes on top of the
//! configuration file, kept in the store so that they outlast a restart. Pure.

use edge_common::{abi::LimitKind, addr::Prefix};
use serde::{Deserialize, Serialize};

use crate::{
    config::limits::{Limits, OverrideLimit, Rate, RateError, TooManyProfiles},
    control::protocol::{self, LimitMode, LimitRule, LimitValue, Origin, SetLimit},
};

/// The most changes that are kept.
const MAX_CHANGES: usize = 4096;

/// All changes in force, in the form in which they are stored.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Changes {
    /// Each sets either the rate or the mode, and no two the same.
    changes: Vec<SetLimit>,
}

/// Why a change is refused. The text ends with the remedy.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum ChangeError {
    /// There is nothing in it.
    #[error("neither a rate nor a mode is given; give at least one")]
    Nothing,
    /// Modes have no prefix.
    #[error("a mode holds for all sources; leave the prefix out")]
    ModeOfPrefix,
    /// The rate cannot be kept.
    #[error("{}: {source}", kind.name())]
    Rate {
        /// Of which limit.
        kind: LimitKind,
        /// Why.
        source: RateError,
    },
    /// The overrides differ too much.
    #[error(transparent)]
    TooManyProfiles(#[from] TooManyProfiles),
    /// There are too many.
    #[error(
        "more than {MAX_CHANGES} limits are set at run time; reset some, or write them to the file"
    )]
    TooMany,
}

impl Changes {
    /// Adds a change; it takes the place of a former one of the same limit.
    ///
    /// # Errors
    /// [`ChangeError`]; then nothing is changed.
    pub(super) fn set(&mut self, change: &SetLimit) -> Result<(), ChangeError> {
        let SetLimit {
            kind,
            prefix,
            rate,
            mode,
        } = *change;
        if rate.is_none() && mode.is_none() {
            return Err(ChangeError::Nothing);
        }
        if mode.is_some() && prefix.is_some() {
            return Err(ChangeError::ModeOfPrefix);
        }
        let mut changes = self.changes.clone();
        let mut put = |one: SetLimit| {
            changes.retain(|c| !same_limit(c, &one));
            changes.push(one);
        };
        if rate.is_some() {
            put(SetLimit {
                kind,
                prefix,
                rate,
                mode: None,
            });
        }
        if mode.is_some() {
            put(SetLimit {
                kind,
                prefix: None,
                rate: None,
                mode,
            });
        }
        if changes.len() > MAX_CHANGES {
            return Err(ChangeError::TooMany);
        }
        self.changes = changes;
        Ok(())
    }

    /// Takes changes back: those of a kind, of a prefix, of both, or all.
    pub(super) fn reset(&mut self, kind: Option<LimitKind>, prefix: Option<Prefix>) {
        let concerned = |c: &SetLimit| {
            kind.is_none_or(|k| k == c.kind)
                && prefix.is_none_or(|p| c.mode.is_none() && c.prefix == Some(p))
        };
        self.changes.retain(|c| !concerned(c));
    }

    /// Whether there are none.
    pub(super) fn is_empty(&self) -> bool {
        self.changes.is_empty()
    }

    /// The limits of the file with the changes on top. `tick_ns` is the
    /// resolution of the limits' clock.
    ///
    /// # Errors
    /// When a rate cannot be kept, or the overrides differ too much.
    pub(super) fn on(&self, file: &Limits, tick_ns: u64) -> Result<Limits, ChangeError> {
        let mut limits = file.clone();
        for change in &self.changes {
            let kind = change.kind;
            let rate = match change.rate {
                Some(LimitValue::Rate { per_second, burst }) => {
                    let rate = Rate::new(kind, per_second, Some(burst), tick_ns);
                    Some(Some(
                        rate.map_err(|source| ChangeError::Rate { kind, source })?,
                    ))
                }
                Some(LimitValue::Unlimited) => Some(None),
                None => None,
            };
            if let Some(rate) = rate {
                limits.set(kind, change.prefix, rate)?;
            }
            if let Some(mode) = change.mode
                && let Some(m) = limits.modes.get_mut(kind as usize)
            {
                *m = mode;
            }
        }
        Ok(limits)
    }

    fn sets_rate(&self, kind: LimitKind, prefix: Option<Prefix>) -> Origin {
        let set = |c: &SetLimit| c.rate.is_some() && c.kind == kind && c.prefix == prefix;
        self.origin(set)
    }

    fn origin(&self, of: impl Fn(&SetLimit) -> bool) -> Origin {
        if self.changes.iter().any(of) {
            Origin::Cli
        } else {
            Origin::File
        }
    }

    /// What is in force, `limits`, as it is told.
    pub(super) fn tell(&self, limits: &Limits) -> protocol::Limits {
        let modes = LimitKind::ALL
            .into_iter()
            .zip(limits.modes)
            .map(|(kind, mode)| LimitMode {
                kind,
                mode,
                origin: self.origin(|c| c.mode.is_some() && c.kind == kind),
            })
            .collect();
        let value = |rate: Option<Rate>| match rate {
            Some(rate) => LimitValue::Rate {
                per_second: rate.per_second(),
                burst: rate.burst(),
            },
            None => LimitValue::Unlimited,
        };
        let rule = |kind, prefix, rate| LimitRule {
            kind,
            prefix,
            limit: value(rate),
            origin: self.sets_rate(kind, prefix),
        };
        let defaults = LimitKind::ALL
            .into_iter()
            .zip(limits.default.kinds)
            .map(|(kind, rate)| rule(kind, None, rate));
        let overrides = limits.overrides.iter().flat_map(|o| {
            LimitKind::ALL
                .into_iter()
                .zip(o.kinds)
                .filter_map(move |(kind, limit)| match limit {
                    OverrideLimit::Inherit => None,
                    OverrideLimit::Unlimited => Some(rule(kind, Some(o.prefix), None)),
                    OverrideLimit::Rate(rate) => Some(rule(kind, Some(o.prefix), Some(rate))),
                })
        });
        protocol::Limits {
            v4_prefix: limits.v4_prefix,
            v6_prefix: limits.v6_prefix,
            modes,
            rules: defaults.chain(overrides).collect(),
        }
    }
}

fn same_limit(a: &SetLimit, b: &SetLimit) -> bool {
    a.kind == b.kind && a.prefix == b.prefix && a.mode.is_some() == b.mode.is_some()
}

#[cfg(test)]
mod tests {
    use super::*;
    use edge_common::abi::Mode;

    const TICK: u64 = 4_000_000;

    fn rate(per_second: u64) -> LimitValue {
        LimitValue::Rate {
            per_second,
            burst: per_second,
        }
    }

    fn change(kind: LimitKind, prefix: Option<&str>, rate: Option<LimitValue>) -> SetLimit {
        SetLimit {
            kind,
            prefix: prefix.map(|p| p.parse().unwrap()),
            rate,
            mode: None,
        }
    }

    fn mode(kind: LimitKind, mode: Mode) -> SetLimit {
        SetLimit {
            mode: Some(mode),
            ..change(kind, None, None)
        }
    }

    #[test]
    fn changes_lie_on_top_of_the_file() {
        let mut changes = Changes::default();
        let file = Limits::default();
        changes
            .set(&change(LimitKind::Syn, None, Some(rate(100))))
            .unwrap();
        changes
            .set(&change(
                LimitKind::Syn,
                Some("10.0.0.0/8"),
                Some(LimitValue::Unlimited),
            ))
            .unwrap();
        changes.set(&mode(LimitKind::Syn, Mode::DryRun)).unwrap();
        changes
            .set(&change(LimitKind::Syn, None, Some(rate(200))))
            .unwrap();
        let limits = changes.on(&file, TICK).unwrap();
        let syn = LimitKind::Syn as usize;
        assert_eq!(limits.default.kinds[syn].unwrap().per_second(), 200);
        assert_eq!(limits.modes[syn], Mode::DryRun);
        assert_eq!(limits.overrides[0].kinds[syn], OverrideLimit::Unlimited);

        let told = changes.tell(&limits);
        let cli = told.rules.iter().filter(|r| r.origin == Origin::Cli);
        assert_eq!(cli.count(), 2);
        assert_eq!(told.rules.len(), 6);
        assert_eq!(told.modes[syn].origin, Origin::Cli);

        // Stored and read again they are the same.
        let text = serde_json::to_string(&changes).unwrap();
        assert_eq!(serde_json::from_str::<Changes>(&text).unwrap(), changes);

        changes.reset(None, Some("10.0.0.0/8".parse().unwrap()));
        assert_eq!(changes.changes.len(), 2);
        changes.reset(Some(LimitKind::Udp), None);
        assert_eq!(changes.changes.len(), 2);
        changes.reset(Some(LimitKind::Syn), None);
        assert!(changes.is_empty());
        assert_eq!(changes.on(&file, TICK).unwrap(), file);
    }

    #[test]
    fn what_makes_no_sense_is_refused() {
        let mut changes = Changes::default();
        assert_eq!(
            changes.set(&change(LimitKind::Syn, None, None)),
            Err(ChangeError::Nothing)
        );
        let of_prefix = SetLimit {
            prefix: Some("10.0.0.0/8".parse().unwrap()),
            ..mode(LimitKind::Udp, Mode::Off)
        };
        assert_eq!(changes.set(&of_prefix), Err(ChangeError::ModeOfPrefix));
        assert!(changes.is_empty());
        changes
            .set(&change(LimitKind::Bytes, None, Some(rate(1))))
            .unwrap();
        let error = changes.on(&Limits::default(), TICK).unwrap_err();
        assert!(
            error.to_string().starts_with("bytes: rate 1 is below"),
            "{error}"
        );
    }
}
