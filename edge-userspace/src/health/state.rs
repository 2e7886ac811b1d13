//! The health of one backend: rise, fall, and when to ask again.
//!
//! It is unknown at first, and its first check decides. Then it takes `fall` failures
//! in a row to go down, and `rise` successes to come up; one that goes down too often
//! is held down for a while. Time and chance are arguments.

use super::damping::Damping;
use crate::config::balance::HealthCheck;

/// Within how long of the start all backends are first asked, nanoseconds: soon, but
/// not all at once.
pub const FIRST_WITHIN_NS: u64 = 1_000_000_000;
/// The most that is kept of what is said about a failure, bytes.
pub const MAX_TEXT_BYTES: usize = 256;

/// Whether a backend can be used.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Health {
    /// No check has ended yet.
    #[default]
    Unknown,
    /// It answers.
    Up,
    /// It does not.
    Down,
    /// It answers again, but has gone down too often to be believed yet.
    Held,
}

impl Health {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Unknown, Self::Up, Self::Down, Self::Held];

    /// The word for it, in metrics and on the command line.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Unknown => "unknown",
            Self::Up => "up",
            Self::Down => "down",
            Self::Held => "held",
        }
    }
}

/// A change of a backend's health.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Transition {
    /// What it was.
    pub old: Health,
    /// What it is.
    pub new: Health,
    /// Why, in one line: no control characters, [`MAX_TEXT_BYTES`] at the most.
    pub why: String,
    /// When, nanoseconds of `CLOCK_MONOTONIC`.
    pub at_ns: u64,
}

/// What a check has ended with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The backend answered as it should.
    Success,
    /// It did not, and what is wrong.
    Failure(String),
    /// It was not asked, because this host could not: that says nothing about it.
    NotAsked(String),
}

/// What went wrong last.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LastError {
    /// In one line: no control characters, [`MAX_TEXT_BYTES`] at the most.
    pub text: String,
    /// When, nanoseconds of `CLOCK_MONOTONIC`.
    pub at_ns: u64,
}

/// One backend.
#[derive(Clone, Debug)]
pub struct State {
    rise: u32,
    fall: u32,
    interval_ns: u64,
    jitter_per_cent: u32,
    health: Health,
    since_ns: u64,
    /// Results in a row that contradict `health`.
    contrary: u32,
    falls: u64,
    damping: Damping,
    last_error: Option<LastError>,
}

impl State {
    /// A backend that nothing is known of.
    pub fn new(check: &HealthCheck, now_ns: u64) -> Self {
        Self {
            rise: check.rise.max(1),
            fall: check.fall.max(1),
            interval_ns: u64::try_from(check.interval.as_nanos()).unwrap_or(u64::MAX),
            jitter_per_cent: check.jitter_per_cent.min(100),
            health: Health::Unknown,
            since_ns: now_ns,
            contrary: 0,
            falls: 0,
            damping: Damping::default(),
            last_error: None,
        }
    }

    /// Its health.
    pub const fn health(&self) -> Health {
        self.health
    }

    /// Since when it is so, nanoseconds of `CLOCK_MONOTONIC`.
    pub const fn since_ns(&self) -> u64 {
        self.since_ns
    }

    /// What went wrong last, though it may be well since.
    pub const fn last_error(&self) -> Option<&LastError> {
        self.last_error.as_ref()
    }

    /// How often it was up (or held) and went down.
    pub const fn falls(&self) -> u64 {
        self.falls
    }

    /// Until when it is not believed, nanoseconds of `CLOCK_MONOTONIC`: the first check
    /// that succeeds then brings it up, if it answers until then.
    pub fn held_until_ns(&self, now_ns: u64) -> Option<u64> {
        self.damping.held_until(now_ns)
    }

    /// Takes in the end of a check.
    pub fn take(&mut self, outcome: &Outcome, now_ns: u64) -> Option<Transition> {
        match outcome {
            Outcome::Success => self.success(now_ns),
            Outcome::Failure(why) => {
                let needed = match self.health {
                    Health::Unknown => 1,
                    _ => self.fall,
                };
                self.failure(why, needed, now_ns)
            }
            Outcome::NotAsked(why) => {
                self.remember(why, now_ns);
                None
            }
        }
    }

    /// Takes in what the traffic of clients says against it: as much as a check that fails.
    /// Clients may be made up; checks that succeed meanwhile weigh more.
    pub fn passive_failure(&mut self, why: &str, now_ns: u64) -> Option<Transition> {
        self.take(&Outcome::Failure(why.to_owned()), now_ns)
    }

    fn success(&mut self, now_ns: u64) -> Option<Transition> {
        let held = self.damping.held_until(now_ns).is_some();
        match self.health {
            Health::Unknown => self.go(Health::Up, "the first check succeeded", now_ns),
            Health::Up => {
                self.contrary = 0;
                None
            }
            Health::Held if held => {
                self.contrary = 0;
                None
            }
            Health::Held => self.go(Health::Up, "stable again", now_ns),
            Health::Down => {
                self.contrary += 1;
                if self.contrary < self.rise {
                    None
                } else if held {
                    let why = "its checks succeed, but it has gone down too often";
                    self.go(Health::Held, why, now_ns)
                } else {
                    let why = match self.rise {
                        1 => "a check succeeded".to_owned(),
                        rise => format!("{rise} checks in a row succeeded"),
                    };
                    self.go(Health::Up, &why, now_ns)
                }
            }
        }
    }

    fn failure(&mut self, why: &str, needed: u32, now_ns: u64) -> Option<Transition> {
        self.remember(why, now_ns);
        if self.health == Health::Down {
            self.contrary = 0;
            return None;
        }
        self.contrary += 1;
        if self.contrary < needed {
            return None;
        }
        if self.health != Health::Unknown {
            self.falls += 1;
            self.damping.fell(now_ns);
        }
        self.go(Health::Down, why, now_ns)
    }

    fn go(&mut self, new: Health, why: &str, now_ns: u64) -> Option<Transition> {
        let old = std::mem::replace(&mut self.health, new);
        self.since_ns = now_ns;
        self.contrary = 0;
        Some(Transition {
            old,
            new,
            why: one_line(why),
            at_ns: now_ns,
        })
    }

    fn remember(&mut self, why: &str, now_ns: u64) {
        self.last_error = Some(LastError {
            text: one_line(why),
            at_ns: now_ns,
        });
    }

    /// When it is first asked, by a random number: within [`FIRST_WITHIN_NS`], or
    /// within the interval if that is shorter.
    pub fn first(&self, now_ns: u64, random: u64) -> u64 {
        now_ns.saturating_add(scale(random, self.interval_ns.min(FIRST_WITHIN_NS)))
    }

    /// When it is asked next, after a check that began at `began_ns`, by a random number:
    /// the interval later, more or less by as much as the jitter allows.
    pub fn next(&self, began_ns: u64, random: u64) -> u64 {
        let jitter_ns = self.interval_ns / 100 * u64::from(self.jitter_per_cent);
        began_ns
            .saturating_add(self.interval_ns - jitter_ns)
            .saturating_add(scale(random, jitter_ns.saturating_mul(2)))
    }
}

/// A random number of all 64 bits as one of 0 to `most`.
fn scale(random: u64, most: u64) -> u64 {
    ((u128::from(random) * (u128::from(most) + 1)) >> 64) as u64
}

/// A text as it can stand in one line: backends have their say in it.
fn one_line(text: &str) -> String {
    const CUT: char = '…';
    let mut line = String::new();
    for c in text.chars() {
        let c = if c.is_control() { ' ' } else { c };
        if line.len() + c.len_utf8() + CUT.len_utf8() > MAX_TEXT_BYTES {
            line.push(CUT);
            break;
        }
        line.push(c);
    }
    line
}

#[cfg(test)]
mod tests;
