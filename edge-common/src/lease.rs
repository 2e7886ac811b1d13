//! Leases on a limit: packets that a CPU has charged ahead for a source.
//!
//! To charge a limit ([`crate::gcra`]) takes an atomic operation each, and those are a third of
//! what a packet costs that passes. But the program's clock stands still between two ticks of the
//! kernel, and at one moment GCRA charges a number of packets as it charges them one by one. So a
//! CPU that gets several packets of a source in a tick charges some ahead, and those that follow
//! take from this lease, which is one word, by a plain store. What is left when another tick has
//! begun, or when a packet of another class comes, goes back.
//!
//! Nothing is admitted that was not charged. A lease is spent and given back by its CPU alone: if
//! another one overwrites it, it is lost, and the source has so much less. Who charges in another
//! tick overwrites it first, so that what has run back to rest since is not given back. Three
//! things are left to chance, of 64 packets or 128 KiB each:
//!
//! * A CPU that spends while another one takes the place over for another source, or charges in the
//!   next tick, puts back what that has overwritten.
//! * A lease that is left alone for a round of its time counts again if its CPU comes back to it in
//!   the very tick.
//! * Programs that are replaced by such with other limits give back in those what was charged in
//!   the former.
//!
//! Its size doubles with each that is used up within a tick, so that at most as many packets are
//! lost as were used. It is only taken while half of every limit stays free, and that half is worth
//! two ticks: so a source whose packets come to several CPUs may find half of its burst gone, but
//! its rate is let through.

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
const TIME: u64 = u64::MAX << TIME_SHIFT;
const CPU: u64 = (u64::MAX << CPU_SHIFT) & !TIME;

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
    /// this number (below 7).
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

    /// What stands for the first packet of a tick, which is charged by itself. After one of
    /// `u32::MAX` bytes none is given.
    #[inline(always)]
    pub const fn first(self, bytes: u32) -> Lease {
        // Without a branch, for the verifier's sake.
        let size = (bytes >> 31) * NO_MORE;
        Lease(self.0 | GUARDS | (size as u64) << SIZE_SHIFT)
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
        let left = packets as u64 * PACKET + (packets * bytes) as u64;
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

    /// Whether there is something to give back or to get: it is of the same CPU, and not used up,
    /// or the holder may have another one.
    #[inline(always)]
    pub const fn is_renewable(self, holder: Holder) -> bool {
        let differs = self.0 ^ holder.0;
        let (packets, bytes) = self.left();
        differs & CPU == 0
            && (packets | bytes != 0 || differs & HOLDER == 0 && self.size() != NO_MORE)
    }

    /// What becomes of a lease that [`Lease::is_renewable`] when the holder's packet of so many
    /// bytes is not paid for.
    #[inline(always)]
    pub const fn renewal(self, holder: Holder, bytes: u32) -> Renewal {
        let (back_packets, back_bytes) = self.left();
        let (mut lease, mut packets) = (holder.nothing(), 0);
        let is_same = (self.0 ^ holder.0) & HOLDER == 0;
        if is_same && self.size() != NO_MORE && bytes <= MAX_BYTES {
            (lease, packets) = holder.grant(self.size() + 1, bytes);
        } else if self.is_live(holder) {
            // Classes, or sources, take turns: nothing is held back from one for the other.
            lease = holder.no_more();
        }
        Renewal {
            lease,
            back: [back_packets, back_bytes],
            ahead: [packets, packets.wrapping_mul(bytes)],
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

    #[inline(always)]
    const fn size(self) -> u32 {
        (self.0 >> SIZE_SHIFT) as u32 & 7
    }
}

/// A lease that takes the place of another one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Renewal {
    /// The new one.
    pub lease: Lease,
    /// Packets and bytes that the old one gives back, to the limit of its class as well.
    pub back: [u32; 2],
    /// Packets and bytes that are to be charged for the new one.
    pub ahead: [u32; 2],
}

impl Renewal {
    /// The same, but that nothing is charged, and no more is asked for in this tick: a limit
    /// would not stay half free.
    #[inline(always)]
    pub const fn refused(self, holder: Holder) -> Self {
        Self {
            lease: holder.no_more(),
            back: self.back,
            ahead: [0; 2],
        }
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
        // Of another CPU nothing is given back.
        for other in [holder(2, 4, 77), holder(2, 4, 78)] {
            assert!(!lease.is_renewable(other) && !other.nothing().is_renewable(mine));
        }
    }

    #[test]
    fn what_is_left_is_given_back() {
        let mine = holder(2, 5, 77);
        let (lease, _) = mine.grant(0, 1_514);
        let lease = lease.spend(mine, 60).unwrap();
        // Bytes alone, when small packets have used up what there was for large ones.
        let back = [0, 1_454];
        let (next, other) = (holder(3, 5, 78), holder(3, 5, 77));
        for (holder, left) in [(next, next.nothing()), (other, other.no_more())] {
            assert!(lease.is_renewable(holder));
            let want = Renewal {
                lease: left,
                back,
                ahead: [0; 2],
            };
            assert_eq!(lease.renewal(holder, 60), want);
            assert_eq!(lease.class(), 2);
        }
        let renewed = lease.renewal(mine, 100);
        assert_eq!(renewed.lease, mine.grant(1, 100).0);
        assert_eq!((renewed.back, renewed.ahead), (back, [2, 200]));
        let refused = renewed.refused(mine);
        assert_eq!((refused.back, refused.ahead), (back, [0; 2]));
        // Then there is nothing to get before the next tick, and nothing to give.
        let tick = [mine, other, next, holder(2, 5, 78)];
        assert!(tick.iter().all(|h| !refused.lease.is_renewable(*h)));
        assert!(mine.nothing().is_renewable(mine) && !mine.nothing().is_renewable(next));
    }

    #[test]
    fn leases_double_up_to_what_their_word_holds() {
        let mine = holder(0, 1, 9);
        let mut lease = mine.nothing();
        let mut sizes = Vec::new();
        for _ in 0..8 {
            assert!(lease.is_renewable(mine));
            let renewal = lease.renewal(mine, 60);
            sizes.push(renewal.ahead[0]);
            lease = renewal.lease;
        }
        assert_eq!(sizes, [2, 4, 8, 16, 32, 64, 64, 64]);
        // 64 of these are more bytes than it has room for.
        let (lease, packets) = mine.grant(6, 9_000);
        assert_eq!((packets, lease.left()), (14, (14, 126_000)));
        // What no lease pays for gives it back.
        for bytes in [MAX_BYTES + 1, u32::MAX] {
            let want = Renewal {
                lease: mine.no_more(),
                back: [14, 126_000],
                ahead: [0; 2],
            };
            assert_eq!(lease.renewal(mine, bytes), want);
        }
        assert_eq!(mine.first(u32::MAX), mine.no_more());
        assert_eq!(mine.first(MAX_BYTES), mine.nothing());
    }

    /// Limits of one source, of packets and of bytes, and of packets of two classes.
    #[derive(Clone)]
    struct Limiter {
        limits: [Limit; 4],
        tats: [u64; 4],
        lease: Lease,
    }

    impl Limiter {
        fn new(limits: [Limit; 4]) -> Self {
            Self {
                limits,
                tats: [0; 4],
                lease: Lease::default(),
            }
        }

        /// With leases, in the order of the kernel's side, where nothing comes between.
        fn admits(&mut self, cpu: u32, class: usize, now: u64, bytes: u32) -> bool {
            let mine = Holder::new(class as u32, cpu, now);
            if let Some(rest) = self.lease.spend(mine, bytes) {
                self.lease = rest;
                return true;
            }
            if self.lease.is_renewable(mine) {
                let mut renewal = self.lease.renewal(mine, bytes);
                let class = 2 + self.lease.class() as usize;
                let mut tats = self.renewed(renewal, class, now);
                let is_free = |kind: usize| {
                    self.limits[kind].is_half_free(tats[kind], ticks(now), ticks(TICK))
                };
                if ![0, 1, class].into_iter().all(is_free) {
                    renewal = renewal.refused(mine);
                    tats = self.renewed(renewal, class, now);
                }
                self.tats = tats;
                self.lease = renewal.lease;
                if let Some(rest) = self.lease.spend(mine, bytes) {
                    self.lease = rest;
                    return true;
                }
            }
            let is_admitted = self.admits_exactly(class, now, bytes);
            if is_admitted && !self.lease.is_live(mine) {
                self.lease = mine.first(bytes);
            }
            is_admitted
        }

        fn renewed(&self, renewal: Renewal, class: usize, now: u64) -> [u64; 4] {
            let ([packets, bytes], [more, more_bytes]) = (renewal.back, renewal.ahead);
            let mut tats = self.tats;
            for (kind, back, ahead) in [
                (0, packets, more),
                (1, bytes, more_bytes),
                (class, packets, more),
            ] {
                tats[kind] = self.limits[kind].renewed(tats[kind], ticks(now), back, ahead);
            }
            tats
        }

        /// Each packet charged by itself.
        fn admits_exactly(&mut self, class: usize, now: u64, bytes: u32) -> bool {
            let mut tats = self.tats;
            for (kind, units) in [(0, 1), (1, bytes), (2 + class, 1)] {
                match self.limits[kind].admit(tats[kind], ticks(now), units) {
                    Some(tat) => tats[kind] = tat,
                    None => return false,
                }
            }
            self.tats = tats;
            true
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
            let classes = [any.below(500), any.below(500)];
            let [a, b] = classes.map(|burst| Limit::per_second(rate, 1 + burst).unwrap());
            let mut with = Limiter::new([
                Limit::per_second(rate, 1 + any.below(500)).unwrap(),
                Limit::per_second(rate * 128, 1 + any.below(500_000)).unwrap(),
                a,
                b,
            ]);
            let mut without = with.clone();
            let mut now = 1_000 * TICK;
            let turns = [1, 3, 50, 1_000][any.below(4) as usize];
            let (ticks, pause) = [(20, 30), (300, 30), (300, 3_000)][any.below(3) as usize];
            let mut class = 0;
            for i in 0..3_000 {
                if any.below(ticks) == 0 {
                    now += TICK * any.below(pause);
                }
                if any.below(turns) == 0 {
                    class = 1 - class;
                }
                let bytes = [60, 60, 1_514][any.below(3) as usize];
                let want = without.admits_exactly(class, now, bytes);
                let got = with.admits(3, class, now, bytes);
                assert_eq!(got, want, "seed {seed}, packet {i}");
            }
        }
    }

    #[test]
    fn cpus_together_admit_no_more_than_the_limit_and_let_the_rate_through() {
        for seed in 1..100 {
            let mut any = Any::new(seed);
            let rate = 1_000 * (1 + any.below(300));
            // From a tick of the rate on.
            let burst = rate / 1_000 * (1 + any.below(8));
            let none = Limit::NONE;
            let limit = Limit::per_second(rate, burst).unwrap();
            let mut together = Limiter::new([limit, none, none, none]);
            let cpus = 1 + any.below(4);
            // A little less than is allowed, all of it; or twice as much.
            let is_flood = any.below(2) == 0;
            let each = rate / 1_000 * if is_flood { 2 } else { 1 };
            let (start, mut admitted) = (1_000 * TICK, 0);
            let (mut now, mut denied) = (start, 0);
            for _ in 0..500 {
                now += TICK;
                let mut cpu = any.below(cpus) as u32;
                for _ in 0..each {
                    if any.below(10) == 0 {
                        cpu = any.below(cpus) as u32;
                    }
                    match together.admits(cpu, 0, now, 60) {
                        true => admitted += 1,
                        false => denied += 1,
                    }
                }
            }
            let most = burst + rate * (now - start) / 1_000_000_000;
            assert!(admitted <= most, "seed {seed}: {admitted} of {most}");
            if is_flood {
                assert!(
                    admitted + each >= most - burst,
                    "seed {seed}: {admitted} of {most}"
                );
            } else {
                assert_eq!(denied, 0, "seed {seed}: of {admitted}");
            }
        }
    }
}
