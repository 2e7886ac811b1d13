//! Whether a service is under attack: one word of it, and the clock.

use crate::{atomic::compare_exchange, maps::SERVICE_COUNTERS};
use edge_common::{
    defence::{
        DefenceWord, Pressure, SERVICE_COUNTERS as COUNTERS, Service, ServiceCounter, When,
        pressure,
    },
    gcra::{Limit, ticks},
};

/// A service of the packet at hand.
#[derive(Clone, Copy)]
pub struct Of {
    pub service: *mut Service,
    /// Its index.
    pub index: u32,
    pub now: u64,
}

/// Reads or writes a field of a service.
macro_rules! field {
    ($of:expr, $field:ident) => {
        // SAFETY: a map value; each field is read whole.
        unsafe { (&raw const (*$of.service).$field).read_volatile() }
    };
    ($of:expr, $field:ident = $value:expr) => {
        // SAFETY: a map value; each field is written whole, and of two CPUs that
        // write at one moment either may be last.
        unsafe { (&raw mut (*$of.service).$field).write_volatile($value) }
    };
}
impl Of {
    /// Whether the service is defended now.
    #[inline(always)]
    pub fn is_defended(self) -> bool {
        let when = field!(self, when);
        when == When::Always as u32
            || when == When::Auto as u32 && field!(self, attack_until) > self.now
    }

    /// Charges a packet from a reflector; `false` when it is over the limit.
    #[inline(always)]
    pub fn may_reflect(self) -> bool {
        let (limit, tat) = (field!(self, reflection), field!(self, reflected));
        let Some(new) = limit.admit(tat, ticks(self.now), 1) else {
            return false;
        };
        // SAFETY: a word of a map value, 8 bytes aligned, only written this way.
        // Whoever loses the race is not counted: others are, in plenty.
        unsafe { compare_exchange(&raw mut (*self.service).reflected, tat, new) };
        true
    }

    /// Whether nothing is to be dropped or answered.
    #[inline(always)]
    pub fn is_dry_run(self) -> bool {
        field!(self, dry_run) != 0
    }

    /// Counts for the service.
    #[inline(always)]
    pub fn count(self, counter: ServiceCounter) {
        if let Some(counters) = SERVICE_COUNTERS.get_ptr_mut(self.index) {
            let at = counter as usize & (COUNTERS - 1);
            // SAFETY: the element belongs to this CPU, and the index is in it.
            unsafe { *counters.cast::<u64>().add(at) += 1 };
        }
    }

    #[inline(always)]
    fn limit(self) -> Limit {
        field!(self, incomplete)
    }

    /// Charges handshakes that may stay incomplete; gives whether the service is
    /// at least watched.
    #[inline(always)]
    pub fn charge(self, units: u32) -> bool {
        let limit = self.limit();
        // No limit: the pressure is never asked.
        if !limit.is_some() {
            return false;
        }
        let (now, tat) = (ticks(self.now), field!(self, pressure));
        let new = limit.arrival(tat, now, units);
        let level = pressure(&limit, new, now);
        if level < Pressure::Over {
            // SAFETY: a word of a map value, 8 bytes aligned, only written this way.
            // Whoever loses the race is not counted: others are, in plenty.
            unsafe { compare_exchange(&raw mut (*self.service).pressure, tat, new) };
        }
        if level >= Pressure::High {
            self.attacked(level);
        }
        if level >= Pressure::Watch {
            super::put_off(DefenceWord::WatchUntil, self.now, super::AHEAD_NS);
        }
        level >= Pressure::Watch
    }

    /// Takes note of a high pressure: an attack begins when it is over the limit,
    /// and goes on while it is high.
    #[inline(always)]
    fn attacked(self, level: Pressure) {
        let (until, hold) = (field!(self, attack_until), field!(self, hold_ns));
        if until <= self.now {
            if level < Pressure::Over {
                return;
            }
            field!(self, attack_since = self.now);
        } else if until.wrapping_sub(self.now) > hold - hold / 8 {
            // Noted a moment ago: a flood must not write a line at every packet.
            return;
        }
        field!(self, attack_until = self.now + hold);
        // As long as it is defended, what answers a challenge must be seen.
        super::put_off(DefenceWord::WatchUntil, self.now, hold);
    }

    /// A handshake that was counted was completed.
    #[inline(always)]
    pub fn completed(self) {
        self.refund(field!(self, credit));
    }

    /// Takes back what [`Of::charge`] charged.
    #[inline(always)]
    pub fn refund(self, units: u32) {
        let (limit, tat) = (self.limit(), field!(self, pressure));
        if tat > ticks(self.now) {
            let new = limit.refund(tat, units);
            // SAFETY: as above.
            unsafe { compare_exchange(&raw mut (*self.service).pressure, tat, new) };
        }
    }
}
