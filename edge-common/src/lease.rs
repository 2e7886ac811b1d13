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

    /// Whether it is the holder's, perhaps of an earlier tick, and there is something to give back
    /// or, in the same tick, to get.
    #[inline(always)]
    pub const fn can_be_renewed(self, holder: Holder) -> bool {
        if (self.0 ^ holder.0) & (HOLDER & !TIME) != 0 {
            return false;
        }
        if self.is_live(holder) {
            self.size() != NO_MORE
        } else {
            self.left().0 != 0
        }
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
