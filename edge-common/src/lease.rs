//! Leases on a limit: packets that a CPU has charged ahead for a source.
//!
//! To charge a limit ([`crate::gcra`]) takes an atomic operation each, and those are a third of
//! what a packet costs that passes. But the program's clock stands still between two ticks of the
//! kernel, and at one moment GCRA charges a number of packets as it charges them one by one. So a
//! CPU that gets several packets of a source in a tick charges some ahead, and those that follow
//! take from this lease, which is one word, by a plain store: nobody else writes it while the tick
//! lasts. What is left when it ends goes back.
//!
//! What was admitted never exceeds what was charged, whatever several CPUs do at once: a lease that
//! another CPU overwrites is lost, not used twice. It is only taken while half of every limit is
//! free, so that no packet of another CPU is denied for what one only holds. Its size doubles with
//! each that is used up within a tick, so that at most as much is lost as was used.

/// Bits of the bytes left; a guard bit follows, of which a subtraction borrows.
const BYTES_BITS: u32 = 17;
/// One packet.
const PACKET: u64 = 1 << (BYTES_BITS + 1);
const PACKETS_BITS: u32 = 7;
/// The guards of bytes and packets; both are set in a lease.
const GUARDS: u64 = 1 << BYTES_BITS | PACKET << PACKETS_BITS;
/// The binary logarithm of its size, three bits.
const SIZE_SHIFT: u32 = BYTES_BITS + PACKETS_BITS + 2;
/// Three bits: the limit beside those of packets and bytes.
const CLASS_SHIFT: u32 = SIZE_SHIFT + 3;
/// Thirteen bits: Linux has at most 8,192 CPUs.
const CPU_SHIFT: u32 = CLASS_SHIFT + 3;
/// The rest is the time, in steps of half a millisecond: shorter than a tick, so that it differs
/// from one tick to the next. It comes round after 4.6 minutes.
const TIME_SHIFT: u32 = CPU_SHIFT + 13;
const STEP_SHIFT: u32 = 19;

/// The longest frame, in bytes, that is paid for by a lease.
const MAX_BYTES: u32 = (1 << BYTES_BITS) - 1;
/// The largest lease, as a binary logarithm: 64 packets.
const MAX_SIZE: u32 = PACKETS_BITS - 1;
/// In place of a size: there is none any more in this tick.
const NO_MORE: u32 = 7;

const HOLDER: u64 = u64::MAX << CLASS_SHIFT;
const CPU: u64 = (1 << (TIME_SHIFT - CPU_SHIFT)) - 1 << CPU_SHIFT;
const TIME: u64 = u64::MAX << TIME_SHIFT;

const _: () = assert!(MAX_SIZE < NO_MORE);

/// The word of a lease. 0 is of nobody.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(transparent)]
pub struct Lease(pub u64);

/// Who may use a lease: a CPU, in one tick, for packets of one class.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Holder(u64);

impl Holder {
    /// A CPU at a time (nanoseconds of the program's clock), with a packet of the class with
    /// this number (below 8).
    #[inline(always)]
    pub const fn new(class: u32, cpu: u32, now: u64) -> Self {
        Self(
            now >> STEP_SHIFT << TIME_SHIFT
                | (cpu as u64) << CPU_SHIFT
                | (class as u64) << CLASS_SHIFT,
        )
    }

    /// From the word that [`Holder::word`] gave.
    #[inline(always)]
    pub const fn from_word(word: u64) -> Self {
        Self(word)
    }

    /// All of it as one word.
    #[inline(always)]
    pub const fn word(self) -> u64 {
        self.0
    }

    /// A lease without anything in it: that this holder had a packet in this tick.
    #[inline(always)]
    pub const fn nothing(self) -> Lease {
        Lease(self.0 | GUARDS)
    }

    /// A lease without anything in it, after which none is given in this tick.
    #[inline(always)]
    pub const fn no_more(self) -> Lease {
        Lease(self.0 | GUARDS | (NO_MORE as u64) << SIZE_SHIFT)
    }

    /// A lease of 2^`size` packets with so many bytes each; of fewer, if their bytes do not fit.
    /// Gives the packets as well.
    #[inline(always)]
    pub const fn grant(self, size: u32, bytes: u32) -> (Lease, u32) {
        let size = if size < MAX_SIZE { size } else { MAX_SIZE };
        let packets = 1u32 << size;
        let most = MAX_BYTES / if bytes == 0 { 1 } else { bytes };
        let packets = if packets < most { packets } else { most };
        let left = packets as u64 * PACKET | (packets * bytes) as u64;
        (
            Lease(self.0 | GUARDS | (size as u64) << SIZE_SHIFT | left),
            packets,
        )
    }
}

impl Lease {
    /// What is left when a packet of so many bytes has taken from it; `None` when it is not the
    /// holder's, or does not suffice.
    #[inline(always)]
    pub const fn spend(self, holder: Holder, bytes: u32) -> Option<Self> {
        let rest = self.0.wrapping_sub(PACKET | bytes as u64);
        // A guard that was borrowed of, or another holder, both in one comparison.
        if bytes <= MAX_BYTES && (rest ^ (holder.0 | GUARDS)) & (HOLDER | GUARDS) == 0 {
            Some(Self(rest))
        } else {
            None
        }
    }

    /// Whether it is of this tick, no matter whose.
    #[inline(always)]
    pub const fn is_live(self, holder: Holder) -> bool {
        (self.0 ^ holder.0) & TIME == 0
    }

    /// Whether it is the holder's, and there may be more; or of the same CPU in another tick, of
    /// any class, and there is something to give back.
    #[inline(always)]
    pub const fn can_be_renewed(self, holder: Holder) -> bool {
        let differs = self.0 ^ holder.0;
        if self.is_live(holder) {
            differs & HOLDER == 0 && self.size() != NO_MORE
        } else {
            let (packets, bytes) = self.left();
            differs & CPU == 0 && packets | bytes != 0
        }
    }

    /// The class of its packets.
    #[inline(always)]
    pub const fn class(self) -> u32 {
        (self.0 >> CLASS_SHIFT) as u32 & 7
    }

    /// Packets and bytes that are left.
    #[inline(always)]
    pub const fn left(self) -> (u32, u32) {
        let packets = (self.0 >> (BYTES_BITS + 1)) as u32 & ((1 << PACKETS_BITS) - 1);
        (packets, self.0 as u32 & MAX_BYTES)
    }

    /// The size of the one that comes after it in the same tick.
    #[inline(always)]
    pub const fn next_size(self) -> u32 {
        self.size() + 1
    }

    #[inline(always)]
    const fn size(self) -> u32 {
        (self.0 >> SIZE_SHIFT) as u32 & 7
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gcra::{Limit, ticks};
    use std::vec::Vec;

    const TICK: u64 = 1_000_000;

    fn holder(class: u32, cpu: u32, tick: u64) -> Holder {
        Holder::new(class, cpu, tick * TICK)
    }

    #[test]
    fn a_lease_pays_for_what_it_holds_and_no_more() {
        let mine = holder(2, 8191, 77);
        let (mut lease, packets) = mine.grant(3, 100);
        assert_eq!((packets, lease.left()), (8, (8, 800)));
        for left in (0..8).rev() {
            lease = lease.spend(mine, 100).unwrap();
            assert_eq!(lease.left(), (left, left * 100));
        }
        assert_eq!(lease.spend(mine, 0), None);
        let (lease, _) = mine.grant(3, 100);
        assert_eq!(lease.spend(mine, 801), None);
        assert_eq!(lease.spend(mine, 800).unwrap().left(), (7, 0));
        for bytes in [MAX_BYTES, MAX_BYTES + 1, 1 << 18, (1 << 18) + 1, u32::MAX] {
            assert_eq!(lease.spend(mine, bytes), None, "{bytes}");
        }
        assert_eq!(mine.nothing().spend(mine, 0), None);
        assert_eq!(mine.no_more().spend(mine, 0), None);
        assert_eq!(Lease::default().spend(holder(0, 0, 0), 0), None);
    }

    #[test]
    fn nobody_else_takes_from_it() {
        let mine = holder(2, 5, 77);
        let (lease, _) = mine.grant(6, 60);
        assert!(lease.spend(mine, 60).is_some());
        for other in [holder(3, 5, 77), holder(2, 4, 77), holder(2, 5, 78)] {
            assert_eq!(lease.spend(other, 60), None, "{other:?}");
        }
        // The next tick, of the fastest clock that Linux has.
        assert!(lease.is_live(mine) && !lease.is_live(holder(2, 5, 78)));
        assert!(lease.can_be_renewed(mine) && lease.can_be_renewed(holder(2, 5, 78)));
        assert!(!lease.can_be_renewed(holder(3, 5, 77)) && !lease.can_be_renewed(holder(2, 4, 78)));
        // Whatever comes first in the next tick gives back what is left.
        assert!(lease.can_be_renewed(holder(3, 5, 78)));
        assert_eq!(lease.class(), 2);
        // Once it was refused, not before the next tick, and then there is nothing to give back.
        assert!(mine.nothing().can_be_renewed(mine) && !mine.no_more().can_be_renewed(mine));
        assert!(!mine.no_more().can_be_renewed(holder(2, 5, 78)));
        // Bytes are given back, too, when small packets have used up what there was for large ones.
        let (lease, _) = mine.grant(0, 1_514);
        let rest = lease.spend(mine, 60).unwrap();
        assert_eq!(rest.left(), (0, 1_454));
        assert!(rest.can_be_renewed(holder(2, 5, 78)));
    }

    #[test]
    fn leases_double_up_to_what_their_word_holds() {
        let mine = holder(0, 1, 9);
        let mut lease = mine.nothing();
        let mut sizes = Vec::new();
        for _ in 0..8 {
            let (next, packets) = mine.grant(lease.next_size(), 60);
            sizes.push(packets);
            lease = next;
        }
        assert_eq!(sizes, [2, 4, 8, 16, 32, 64, 64, 64]);
        // 64 of these are more bytes than it has room for.
        let (lease, packets) = mine.grant(6, 9_000);
        assert_eq!((packets, lease.left()), (14, (14, 126_000)));
        for bytes in [MAX_BYTES + 1, u32::MAX] {
            assert_eq!(mine.grant(6, bytes).0.left(), (0, 0));
        }
    }

    /// Packets of one source, as the limiter judges them.
    struct Limiter {
        limits: [Limit; 2],
        tats: [u64; 2],
        lease: Lease,
    }

    impl Limiter {
        /// In the order of the kernel's side, where nothing comes between.
        fn admits(&mut self, cpu: u32, now: u64, bytes: u32) -> bool {
            let mine = Holder::new(0, cpu, now);
            if let Some(rest) = self.lease.spend(mine, bytes) {
                self.lease = rest;
                return true;
            }
            let time = ticks(now);
            if self.lease.can_be_renewed(mine) {
                let (left, left_bytes) = self.lease.left();
                let back = [left, left_bytes];
                let renewed = |tats: [u64; 2], ahead: [u32; 2]| {
                    let [a, b] = tats;
                    let ([l, m], [x, y], [i, j]) = (self.limits, back, ahead);
                    [l.renewed(a, time, x, i), m.renewed(b, time, y, j)]
                };
                let (mut lease, mut ahead) = (mine.nothing(), [0; 2]);
                if self.lease.is_live(mine) {
                    let packets;
                    (lease, packets) = mine.grant(self.lease.next_size(), bytes);
                    ahead = [packets, packets * bytes];
                    let [a, b] = renewed(self.tats, ahead);
                    let [l, m] = self.limits;
                    if !l.is_half_free(a, time) || !m.is_half_free(b, time) {
                        (lease, ahead) = (mine.no_more(), [0; 2]);
                    }
                }
                self.tats = renewed(self.tats, ahead);
                self.lease = lease;
                if let Some(rest) = lease.spend(mine, bytes) {
                    self.lease = rest;
                    return true;
                }
            } else if !self.lease.is_live(mine) {
                self.lease = mine.nothing();
            }
            exactly(&self.limits, &mut self.tats, now, bytes)
        }
    }

    /// Each packet charged by itself.
    fn exactly(limits: &[Limit; 2], tats: &mut [u64; 2], now: u64, bytes: u32) -> bool {
        let [a, b] = *tats;
        let [l, m] = limits;
        match (l.admit(a, ticks(now), 1), m.admit(b, ticks(now), bytes)) {
            (Some(a), Some(b)) => {
                *tats = [a, b];
                true
            }
            _ => false,
        }
    }

    /// Numbers that look like any (xorshift64).
    struct Any(u64);

    impl Any {
        fn new(seed: u64) -> Self {
            Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15))
        }

        fn below(&mut self, n: u64) -> u64 {
            self.0 ^= self.0 << 13;
            self.0 ^= self.0 >> 7;
            self.0 ^= self.0 << 17;
            self.0 % n
        }
    }

    #[test]
    fn on_one_cpu_leases_change_no_verdict() {
        for seed in 1..200 {
            let mut any = Any::new(seed);
            // Costs without fractions of a tick: how those are rounded is not the point here.
            let rate = [1_000, 12_500, 1_000_000][any.below(3) as usize];
            let limits = [
                Limit::per_second(rate, 1 + any.below(500)).unwrap(),
                Limit::per_second(rate * 128, 1 + any.below(500_000)).unwrap(),
            ];
            let mut with = Limiter {
                limits,
                tats: [0; 2],
                lease: Lease::default(),
            };
            let mut without = [0; 2];
            let mut now = 1_000 * TICK;
            for i in 0..3_000 {
                if any.below(20) == 0 {
                    now += TICK * any.below(30);
                }
                let bytes = [60, 60, 1_514][any.below(3) as usize];
                let want = exactly(&limits, &mut without, now, bytes);
                assert_eq!(with.admits(3, now, bytes), want, "seed {seed}, packet {i}");
            }
        }
    }

    #[test]
    fn cpus_together_admit_no_more_than_one_alone_and_not_much_less() {
        for seed in 1..100 {
            let mut any = Any::new(seed);
            let rate = 1_000 * (1 + any.below(1_000));
            let limits = [
                Limit::per_second(rate, 1_000).unwrap(),
                Limit::per_second(1 << 40, 1 << 40).unwrap(),
            ];
            let mut together = Limiter {
                limits,
                tats: [0; 2],
                lease: Lease::default(),
            };
            let cpus = 1 + any.below(4);
            // About twice of what is allowed.
            let (start, mut admitted) = (1_000 * TICK, 0);
            let mut now = start;
            for _ in 0..500 {
                now += TICK;
                for _ in 0..=rate * 2 / 1_000 {
                    let cpu = any.below(cpus) as u32;
                    admitted += u64::from(together.admits(cpu, now, 60));
                }
            }
            let most = 1_000 + rate * (now - start) / 1_000_000_000;
            assert!(admitted <= most, "seed {seed}: {admitted} of {most}");
            assert!(
                admitted * 10 >= most * 9,
                "seed {seed}: {admitted} of {most}"
            );
        }
    }
}
