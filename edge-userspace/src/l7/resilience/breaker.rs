//! The circuit breaker: a group that fails is left alone for a while.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use super::window::{MAX_WINDOW, Window, bad_of};

/// What the configuration says.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct BreakerSettings {
    /// The share (0 to 1) of failures among the last results that opens it.
    pub failure_rate: f64,
    /// How many results that are: 1 to [`MAX_WINDOW`]. Fewer say nothing.
    pub window: u32,
    /// How long nothing is admitted, nanoseconds.
    pub open: u64,
    /// How many requests are let through then to see whether it works again, all of
    /// which have to succeed.
    pub probes: u32,
}

impl Default for BreakerSettings {
    fn default() -> Self {
        Self {
            failure_rate: 0.5,
            window: 10,
            open: 30_000_000_000,
            probes: 1,
        }
    }
}

/// A circuit breaker.
///
/// All of it is one word, changed by compare-and-swap: each decision and each result is a
/// step from one state to the next in one order for all workers, as if there were one. While
/// the window is full of successes, results change nothing, and nothing is written.
#[derive(Debug)]
pub struct CircuitBreaker {
    /// Failures in a full window that open it.
    failures: u32,
    window: u32,
    open: u64,
    probes: u32,
    word: AtomicU64,
}

/// What a breaker does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BreakerState {
    /// It admits requests.
    Closed {
        /// Failures among the last results.
        failures: u32,
        /// How many results those are.
        results: u32,
    },
    /// It admits none.
    Open {
        /// Until when, nanoseconds.
        until: u64,
    },
    /// It admits probes.
    HalfOpen {
        /// Probes under way.
        probing: u32,
        /// Probes that succeeded.
        succeeded: u32,
    },
}

/// No request is admitted now.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the circuit breaker is open")]
pub struct Open {
    /// How long at least, nanoseconds; 0: until probes have their results.
    pub left: u64,
}

/// Bits of what a state consists of.
const PAYLOAD_BITS: u32 = MAX_WINDOW + 1;
/// Bits of the number of probes under way, below those that succeeded.
const PROBES_BITS: u32 = 25;
/// The most probes that the word can count.
const MAX_PROBES: u32 = (1 << PROBES_BITS) - 1;
/// Bits of the era.
const ERA_BITS: u32 = 64 - PAYLOAD_BITS - 2;

/// The word, in parts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Word {
    /// How often it has opened, modulo 2^11. Results of requests that were admitted in
    /// another era say nothing of this one. One would have to be under way while it opens 2,048
    /// times, each for as long as configured, to be taken for another; then a result too
    /// much counts, or a probe too much is admitted.
    era: u16,
    phase: Phase,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Closed(Window),
    /// Until when, in microseconds: enough for 71 years.
    Open(u64),
    HalfOpen {
        probing: u32,
        succeeded: u32,
    },
}

impl Word {
    const CLOSED: Self = Self {
        era: 0,
        phase: Phase::Closed(Window::EMPTY),
    };

    const fn of(word: u64) -> Self {
        let payload = word & ((1 << PAYLOAD_BITS) - 1);
        let phase = match word >> (PAYLOAD_BITS + ERA_BITS) {
            0 => Phase::Closed(Window::from_bits(payload)),
            1 => Phase::Open(payload),
            _ => Phase::HalfOpen {
                probing: payload as u32 & MAX_PROBES,
                succeeded: (payload >> PROBES_BITS) as u32 & MAX_PROBES,
            },
        };
        let era = (word >> PAYLOAD_BITS) as u16 & ((1 << ERA_BITS) - 1);
        Self { era, phase }
    }

    const fn word(self) -> u64 {
        let (tag, payload) = match self.phase {
            Phase::Closed(window) => (0, window.bits()),
            Phase::Open(until) => (1, until),
            Phase::HalfOpen { probing, succeeded } => {
                (2, (succeeded as u64) << PROBES_BITS | probing as u64)
            }
        };
        tag << (PAYLOAD_BITS + ERA_BITS) | (self.era as u64) << PAYLOAD_BITS | payload
    }
}

impl CircuitBreaker {
    /// A closed one. Settings out of their ranges are taken as the nearest within.
    pub fn new(settings: &BreakerSettings) -> Self {
        let window = settings.window.clamp(1, MAX_WINDOW);
        Self {
            failures: bad_of(settings.failure_rate, window),
            window,
            open: settings.open,
            probes: settings.probes.clamp(1, MAX_PROBES),
            word: AtomicU64::new(Word::CLOSED.word()),
        }
    }

    /// Asks whether a request may go on. What becomes of it has to be told to what is
    /// returned.
    ///
    /// # Errors
    /// [`Open`] if not.
    pub fn admit(&self, now: u64) -> Result<Admission<'_>, Open> {
        let (era, is_probe) = self.step(|word| {
            let (left, probing, succeeded) = match word.phase {
                Phase::Closed(_) => return Ok((word, (word.era, false))),
                Phase::Open(until) => ((until * 1000).saturating_sub(now), 0, 0),
                Phase::HalfOpen { probing, succeeded } => (0, probing, succeeded),
            };
            if left > 0 || probing + succeeded >= self.probes {
                return Err(Open { left });
            }
            let probing = probing + 1;
            let phase = Phase::HalfOpen { probing, succeeded };
            Ok((Word { phase, ..word }, (word.era, true)))
        })?;
        Ok(Admission {
            breaker: self,
            era,
            is_probe,
            result: None,
        })
    }

    /// What it does at a time.
    pub fn state(&self, now: u64) -> BreakerState {
        match Word::of(self.word.load(Relaxed)).phase {
            Phase::Closed(window) => BreakerState::Closed {
                failures: window.bad(),
                results: window.results(),
            },
            // Nobody has asked since.
            Phase::Open(until) if until * 1000 <= now => BreakerState::HalfOpen {
                probing: 0,
                succeeded: 0,
            },
            Phase::Open(until) => BreakerState::Open {
                until: until * 1000,
            },
            Phase::HalfOpen { probing, succeeded } => BreakerState::HalfOpen { probing, succeeded },
        }
    }

    /// Takes a step: the word after the present one, and an answer. Nothing is written if
    /// that is the same word, or an error.
    fn step<T, E>(&self, step: impl Fn(Word) -> Result<(Word, T), E>) -> Result<T, E> {
        let mut seen = self.word.load(Relaxed);
        loop {
            let (next, answer) = step(Word::of(seen))?;
            let next = next.word();
            if next == seen {
                return Ok(answer);
            }
            match self
                .word
                .compare_exchange_weak(seen, next, Relaxed, Relaxed)
            {
                Ok(_) => return Ok(answer),
                Err(other) => seen = other,
            }
        }
    }

    /// Takes the result of a request that was admitted in an era.
    fn finish(&self, era: u16, is_probe: bool, result: Option<Finished>) {
        let after = |word: Word| {
            if word.era != era {
                return word;
            }
            let phase = match (word.phase, is_probe) {
                (Phase::Closed(window), false) => self.closed(window, result),
                (Phase::HalfOpen { probing, succeeded }, true) => {
                    self.half_open(probing.saturating_sub(1), succeeded, result)
                }
                (other, _) => other,
            };
            let opens = matches!(phase, Phase::Open(_)) && phase != word.phase;
            Word {
                era: (word.era + u16::from(opens)) & ((1 << ERA_BITS) - 1),
                phase,
            }
        };
        let Ok(()) = self.step(|word| Ok::<_, std::convert::Infallible>((after(word), ())));
    }

    fn closed(&self, window: Window, result: Option<Finished>) -> Phase {
        let Some(result) = result else {
            return Phase::Closed(window);
        };
        let window = window.with(result.failed_at.is_some(), self.window);
        match result.failed_at {
            Some(now) if window.results() == self.window && window.bad() >= self.failures => {
                self.opened(now)
            }
            _ => Phase::Closed(window),
        }
    }

    const fn half_open(&self, probing: u32, succeeded: u32, result: Option<Finished>) -> Phase {
        match result {
            Some(Finished {
                failed_at: Some(now),
            }) => self.opened(now),
            Some(_) if succeeded + 1 >= self.probes => Phase::Closed(Window::EMPTY),
            Some(_) => Phase::HalfOpen {
                probing,
                succeeded: succeeded + 1,
            },
            None => Phase::HalfOpen { probing, succeeded },
        }
    }

    const fn opened(&self, now: u64) -> Phase {
        let until = now.saturating_add(self.open).div_ceil(1000);
        Phase::Open(if until >> PAYLOAD_BITS == 0 {
            until
        } else {
            (1 << PAYLOAD_BITS) - 1
        })
    }
}

/// A result.
#[derive(Clone, Copy, Debug)]
struct Finished {
    /// `None` for a success.
    failed_at: Option<u64>,
}

/// A request that was admitted. Dropped without a result, because the client went away or
/// the request did not get to the group, it says nothing, and the place of a probe is free
/// for another one.
#[derive(Debug)]
#[must_use = "without its result the breaker learns nothing"]
pub struct Admission<'a> {
    breaker: &'a CircuitBreaker,
    era: u16,
    is_probe: bool,
    result: Option<Finished>,
}

impl Admission<'_> {
    /// Whether much depends on this one: it is one of the first after a while.
    pub const fn is_probe(&self) -> bool {
        self.is_probe
    }

    /// The group did what it should.
    pub fn succeeded(mut self) {
        self.result = Some(Finished { failed_at: None });
    }

    /// The group failed, at a time.
    pub fn failed(mut self, now: u64) {
        self.result = Some(Finished {
            failed_at: Some(now),
        });
    }
}

impl Drop for Admission<'_> {
    fn drop(&mut self) {
        self.breaker.finish(self.era, self.is_probe, self.result);
    }
}
