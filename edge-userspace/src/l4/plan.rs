//! Which backends of a service get new flows, with which weights, and why.
//!
//! There are three readings of what is known of their health, each less strict than the
//! one before; a pool of backends is used by the strictest that leaves enough of its
//! weight ([`Balance::floor_per_cent`]):
//!
//! 1. **Those that are up.** A backend that has just been added is not checked yet, and
//!    gets no flow before its first check has passed.
//! 2. **And those of which nothing is known.** After a start nothing is known of
//!    anybody, and a service must not be gone until checks have passed. What is known
//!    to be down stays out.
//! 3. **All of them: it fails open.** When so many seem to be down, it is likelier that
//!    the checks fail, or that the rest would break down under the load of all. A floor
//!    of 0 forbids this reading, and only this one.
//!
//! Backups are asked when no primary is up and the second reading does not leave enough
//! primaries either; they are a pool as the primaries are. Nothing but a command of the
//! operator takes a backend out of the third reading: neither one that is drained or
//! being drained nor one of weight 0 is ever used.

use std::{collections::BTreeMap, fmt, time::Duration};

use crate::config::balance::{Backend, Balance, MAX_WEIGHT};

use super::{Endpoint, maglev::Candidate};

/// The weight of a backend that has come up consists of so many equal parts: the first
/// is there at once, the last after [`Balance::slow_start`].
const RAMP_PARTS: u32 = 10;

/// What is known of the backends of one service; one that is not in it has the default.
pub type States = BTreeMap<Endpoint, BackendState>;

/// What checks and operators say of a backend.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct BackendState {
    /// What checks say.
    pub health: Health,
    /// What the operator says.
    pub admin: Admin,
    /// The weight that the operator has set, in place of the configured one; what is
    /// above [`MAX_WEIGHT`] counts as that.
    pub weight_override: Option<u32>,
    /// When it came up, nanoseconds of `CLOCK_MONOTONIC`; `None`: it was up when it was
    /// looked at first, and its weight does not rise.
    pub up_since_ns: Option<u64>,
}

/// What checks say of a backend.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Health {
    /// Nothing yet. Without checks this is as good as [`Health::Up`].
    #[default]
    Unknown,
    /// It answers as it should.
    Up,
    /// Nobody checks it, and connections of clients to it fail. Those that it has may live.
    Failing,
    /// It does not.
    Down,
}

impl Health {
    /// Whether it is known to be of no use.
    pub const fn is_bad(self) -> bool {
        matches!(self, Self::Failing | Self::Down)
    }
}

/// What the operator says of a backend.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Admin {
    /// It is used.
    #[default]
    Active,
    /// It gets no new flows, those that it has live on.
    Draining,
    /// It has no flows either, or they had time enough.
    Drained,
}

/// Which backends of a service are used.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Plan {
    /// All of them, in the order of the configuration.
    pub standings: Vec<Standing>,
    /// Which of them are in question; `None`: not one can be used.
    pub pool: Option<Pool>,
    /// Whether too few were known to be healthy, so that all are used as if they were.
    pub failed_open: bool,
    /// When a weight rises next, without anything else happening: then the plan must be
    /// made anew. Nanoseconds of `CLOCK_MONOTONIC`.
    pub again_at_ns: Option<u64>,
}

/// Backends that are used together.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Pool {
    /// Those that are no backups.
    Primaries,
    /// The backups.
    Backups,
}

impl Pool {
    const fn of(backend: &Backend) -> Self {
        if backend.backup {
            Self::Backups
        } else {
            Self::Primaries
        }
    }
}

/// What became of a backend.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Standing {
    /// Which one.
    pub endpoint: Endpoint,
    /// Its weight in the ring: 0 if and only if it is out.
    pub weight: u32,
    /// Why.
    pub why: Why,
}

/// Why a backend gets new flows or does not. As text, a clause.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Why {
    /// It gets them: its checks pass.
    Healthy,
    /// It gets them: nobody checks it.
    Unchecked,
    /// It gets them, and more of them soon: it came up only now.
    Rising {
        /// How much of its weight it has, of 100 parts.
        per_cent: u32,
    },
    /// It gets them: nothing is known of it, and too few others are known to be up.
    Presumed,
    /// It gets them though it is down: too few others are up.
    FailedOpen,
    /// It gets none: its checks fail.
    Down,
    /// It gets none for a while: connections to it fail.
    Failing,
    /// It gets none: its first check has not passed yet.
    Awaited,
    /// It gets none: the operator drains it.
    Draining,
    /// It gets none: the operator has drained it.
    Drained,
    /// It gets none: its weight is 0.
    NoWeight,
    /// It gets none: it is a backup, and not needed.
    Spare,
}

impl fmt::Display for Why {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Healthy => "its checks pass",
            Self::Unchecked => "it is not checked, and taken for healthy",
            Self::Rising { per_cent } => {
                return write!(f, "it came up only now, and has {per_cent} % of its weight");
            }
            Self::Presumed => {
                "it is not checked yet, and used because too few others are known to be healthy"
            }
            Self::FailedOpen => {
                "it fails, and is used all the same because too few others are healthy"
            }
            Self::Failing => "connections to it fail, and it is tried again in a while",
            Self::Down => "its checks fail",
            Self::Awaited => "its first check has not passed yet",
            Self::Draining => "it is being drained, and keeps the flows that it has",
            Self::Drained => "it is drained",
            Self::NoWeight => "its weight is 0",
            Self::Spare => "it is a backup, and not needed",
        })
    }
}

impl Why {
    /// Whether the flows that it has end as well: go on elsewhere, or not at all.
    pub const fn ends_flows(self) -> bool {
        matches!(self, Self::Down | Self::Drained)
    }
}

impl Plan {
    /// Those that get new flows, in the order of the configuration. The ring has to be
    /// made anew only if they have changed.
    pub fn candidates(&self) -> Vec<Candidate> {
        self.standings
            .iter()
            .filter(|standing| standing.weight > 0)
            .map(|standing| Candidate {
                endpoint: standing.endpoint,
                weight: standing.weight,
            })
            .collect()
    }
}

/// Makes the plan of a service for the moment `now_ns`, nanoseconds of
/// `CLOCK_MONOTONIC`.
pub fn plan(balance: &Balance, states: &States, now_ns: u64) -> Plan {
    let members: Vec<Member> = balance
        .backends
        .iter()
        .map(|backend| Member::new(backend, balance, states))
        .collect();
    let choice = choose(&members, balance.floor_per_cent);
    let mut again_at_ns: Option<u64> = None;
    let mut standings = Vec::with_capacity(members.len());
    for member in &members {
        let (weight, why) = match (member.out, choice) {
            (Some(why), _) => (0, why),
            (None, Some((pool, reading))) if pool == member.pool && reading.uses(member) => {
                match member.rise(reading, balance.slow_start, now_ns) {
                    Some((weight, next_ns)) => {
                        again_at_ns = Some(again_at_ns.map_or(next_ns, |at| at.min(next_ns)));
                        let per_cent = 100 * weight / member.weight;
                        (weight, Why::Rising { per_cent })
                    }
                    None => (member.weight, member.why_used()),
                }
            }
            (None, _) => (0, member.why_not()),
        };
        standings.push(Standing {
            endpoint: member.endpoint,
            weight,
            why,
        });
    }
    Plan {
        standings,
        pool: choice.map(|(pool, _)| pool),
        failed_open: choice.is_some_and(|(_, reading)| reading == Reading::All),
        again_at_ns,
    }
}

/// What of a backend's health counts: see the head of the module.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Reading {
    Up,
    NotDown,
    All,
}

impl Reading {
    /// Whether a member that may be used is.
    fn uses(self, member: &Member) -> bool {
        match self {
            Self::Up => member.health == Health::Up,
            Self::NotDown => !member.health.is_bad(),
            Self::All => true,
        }
    }
}

/// Which pool is used, by which reading.
fn choose(members: &[Member], floor_per_cent: u32) -> Option<(Pool, Reading)> {
    let weight = |pool, reading: Reading| {
        members
            .iter()
            .filter(|m| m.pool == pool && m.out.is_none() && reading.uses(m))
            .map(|m| u64::from(m.weight))
            .sum::<u64>()
    };
    let enough = |pool, reading| {
        let part = weight(pool, reading);
        part > 0 && part * 100 >= weight(pool, Reading::All) * u64::from(floor_per_cent)
    };
    for pool in [Pool::Primaries, Pool::Backups] {
        for reading in [Reading::Up, Reading::NotDown] {
            if enough(pool, reading) {
                return Some((pool, reading));
            }
        }
        // Some are up, so nobody else is asked, and too few, so they do not stay alone.
        if weight(pool, Reading::Up) > 0 {
            return Some((pool, Reading::All));
        }
    }
    [Pool::Primaries, Pool::Backups]
        .into_iter()
        .find(|&pool| floor_per_cent > 0 && weight(pool, Reading::All) > 0)
        .map(|pool| (pool, Reading::All))
}

/// A backend, and what is known of it.
struct Member {
    endpoint: Endpoint,
    pool: Pool,
    /// Configured, or set by the operator.
    weight: u32,
    health: Health,
    up_since_ns: Option<u64>,
    checked: bool,
    /// Why it must not be used, whatever its health.
    out: Option<Why>,
}

impl Member {
    fn new(backend: &Backend, balance: &Balance, states: &States) -> Self {
        let endpoint = Endpoint::of(backend);
        let state = states.get(&endpoint).copied().unwrap_or_default();
        let weight = state
            .weight_override
            .unwrap_or(backend.weight)
            .min(MAX_WEIGHT);
        let checked = balance.health.is_some();
        Self {
            endpoint,
            pool: Pool::of(backend),
            weight,
            health: match state.health {
                Health::Unknown if !checked => Health::Up,
                health => health,
            },
            up_since_ns: state.up_since_ns,
            checked,
            out: match state.admin {
                Admin::Draining => Some(Why::Draining),
                Admin::Drained => Some(Why::Drained),
                Admin::Active if weight == 0 => Some(Why::NoWeight),
                Admin::Active => None,
            },
        }
    }

    /// Its weight while that rises, and when it rises next. Where not enough are known
    /// to be up, those that are get their whole weight.
    fn rise(&self, reading: Reading, slow_start: Duration, now_ns: u64) -> Option<(u32, u64)> {
        let since_ns = self.up_since_ns.filter(|_| reading == Reading::Up)?;
        let ramp = Ramp {
            weight: self.weight,
            since_ns,
            whole_ns: u64::try_from(slow_start.as_nanos()).unwrap_or(u64::MAX),
        };
        ramp.at(now_ns)
    }

    /// Why it is used, with its whole weight.
    const fn why_used(&self) -> Why {
        match self.health {
            Health::Unknown => Why::Presumed,
            Health::Failing | Health::Down => Why::FailedOpen,
            Health::Up if self.checked => Why::Healthy,
            Health::Up => Why::Unchecked,
        }
    }

    /// Why it is not used though it might be.
    const fn why_not(&self) -> Why {
        match self.health {
            Health::Down => Why::Down,
            Health::Failing => Why::Failing,
            Health::Unknown => Why::Awaited,
            Health::Up => Why::Spare,
        }
    }
}

/// A weight that rises from a tenth to the whole, in equal steps.
struct Ramp {
    weight: u32,
    since_ns: u64,
    whole_ns: u64,
}

impl Ramp {
    /// The weight now, and when it rises next; `None` when it is whole.
    fn at(&self, now_ns: u64) -> Option<(u32, u64)> {
        let now_ns = now_ns.max(self.since_ns);
        let parts = (1..RAMP_PARTS).find(|&parts| now_ns < self.begin_ns(parts + 1))?;
        let weight = self.part(parts);
        // A small weight stays the same over several parts.
        let next = (parts + 1..=RAMP_PARTS).find(|&parts| self.part(parts) > weight)?;
        Some((weight, self.begin_ns(next)))
    }

    /// When so many parts are there.
    fn begin_ns(&self, parts: u32) -> u64 {
        let steps = u64::from(RAMP_PARTS) - 1;
        let done = u64::from(parts) - 1;
        // Divided before it is multiplied, so that it cannot overflow.
        let after = self.whole_ns / steps * done + self.whole_ns % steps * done / steps;
        self.since_ns.saturating_add(after)
    }

    /// So many parts of the weight, one at least.
    const fn part(&self, parts: u32) -> u32 {
        (self.weight * parts).div_ceil(RAMP_PARTS)
    }
}
