//! The L4 balancer: what both sides agree on, and its arithmetic.
//!
//! A packet's service has a ring (Maglev; Eisenbud et al., 2016), whose slots hold numbers
//! of backends. A flow that has begun is kept in a table, so that it stays where it is when
//! the ring changes. All tables are arrays that the daemon maps into its memory; what
//! the program follows is always one word, written last.

use crate::{
    hash::{Seed, hash, reduce},
    quic::Layout,
};

/// Bits of the number of a backend; 0 stands for none.
pub const NUMBER_BITS: u32 = 20;

/// How a packet reaches its backend.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(u32)]
pub enum Forward {
    /// In IPv4 or IPv6, by the backend's address (RFC 2003, RFC 2473).
    #[default]
    Ipip = 0,
    /// In UDP (GUE, variant 1).
    Gue = 1,
    /// By its MAC address alone.
    L2 = 2,
    /// With both addresses translated, and the answers likewise ([`crate::nat`]).
    Nat = 3,
}

/// What chooses the backend of a new flow.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum HashBy {
    /// Both ends and the protocol.
    #[default]
    FiveTuple,
    /// The client's address.
    Source,
    /// As [`HashBy::FiveTuple`]; and packets whose connection id names a server go there.
    Quic(Layout),
}

/// A service as the balancer sees it: a word of `BALANCES`, index as in `SERVICES`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Balance {
    /// Its ring in `RINGS`, from 1 on; 0: no backend can take its packets.
    pub ring: u32,
    /// How they reach it.
    pub forward: Forward,
    /// What chooses it.
    pub by: HashBy,
    /// Whether pings of its addresses are answered here.
    pub echo: bool,
    /// Whether the service is balanced at all.
    pub is_on: bool,
}

impl Balance {
    const ON: u64 = 1 << 32;
    const ECHO: u64 = 1 << 33;
    const BY_SOURCE: u64 = 1 << 34;
    const FORWARD: u32 = 40;
    const QUIC: u32 = 48;

    /// The word.
    pub const fn word(self) -> u64 {
        let mut word = self.ring as u64 | (self.forward as u64) << Self::FORWARD;
        if self.is_on {
            word |= Self::ON;
        }
        if self.echo {
            word |= Self::ECHO;
        }
        match self.by {
            HashBy::FiveTuple => {}
            HashBy::Source => word |= Self::BY_SOURCE,
            HashBy::Quic(layout) => word |= (layout.bits() as u64) << Self::QUIC,
        }
        word
    }

    /// The ring of a word; 0: none.
    #[inline(always)]
    pub const fn ring_of(word: u64) -> u32 {
        word as u32
    }

    /// Whether the service of a word is balanced.
    #[inline(always)]
    pub const fn is_balanced(word: u64) -> bool {
        word & Self::ON != 0
    }

    /// Whether pings are answered.
    #[inline(always)]
    pub const fn answers_echo(word: u64) -> bool {
        word & Self::ECHO != 0
    }

    /// Whether the client's address alone chooses.
    #[inline(always)]
    pub const fn is_by_source(word: u64) -> bool {
        word & Self::BY_SOURCE != 0
    }

    /// [`Layout::bits`] of the connection ids of a service; 0: they say nothing.
    #[inline(always)]
    pub const fn quic_of(word: u64) -> u32 {
        (word >> Self::QUIC) as u32 & 0x7f
    }

    /// Whether packets go in IP or UDP, or by MAC address.
    #[inline(always)]
    pub const fn is(word: u64, forward: Forward) -> bool {
        word >> Self::FORWARD & 0xf == forward as u64
    }
}

/// Slots in a word of `RINGS`.
pub const SLOTS_A_WORD: u32 = 2;

/// Words of a ring with so many slots.
pub const fn ring_words(slots: u32) -> u32 {
    slots.div_ceil(SLOTS_A_WORD)
}

/// Word of `RINGS` and shift in it of a slot of a ring (from 1 on), each of `words` words.
#[inline(always)]
pub const fn slot_at(ring: u32, words: u32, slot: u32) -> (u32, u32) {
    (
        ring.wrapping_sub(1).wrapping_mul(words) + slot / SLOTS_A_WORD,
        slot % SLOTS_A_WORD * 32,
    )
}

/// A backend, an entry of `BACKENDS`, by its number. One cache line.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Backend {
    /// Its address; IPv4 in its mapped form ([`crate::defence::v4_halves`]).
    pub address: [u64; 2],
    /// The address that tunnels to it come from, likewise.
    pub source: [u64; 2],
    /// MAC address of the next hop, then that of the interface to it, as on the wire; then
    /// index of the interface, 0 while there is no way. Between two changes of it a
    /// packet may meet half of each, and is lost.
    pub hop: [u64; 2],
    /// [`BackendWord`]: whether it takes packets.
    pub word: u64,
    /// Bits of an IPv4 source that flows are spread over, as on the wire, in the lower half.
    pub spread: u64,
}

const _: () = assert!(size_of::<Backend>() == 64);

/// MAC addresses and interface as [`Backend::hop`].
pub const fn hop(dest: [u8; 6], source: [u8; 6], ifindex: u32) -> [u64; 2] {
    let [a, b, c, d, e, f] = dest;
    let [g, h, i, j, k, l] = source;
    let [w, x, y, z] = ifindex.to_ne_bytes();
    [
        u64::from_ne_bytes([a, b, c, d, e, f, g, h]),
        u64::from_ne_bytes([i, j, k, l, w, x, y, z]),
    ]
}

/// The state of a backend as one word.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct BackendWord {
    /// Whether it takes packets: of new flows if it is in a ring, else of those it has.
    pub alive: bool,
    /// Whether its address is IPv6.
    pub v6: bool,
    /// Which one it is of those that had the number: flows of another one are not its.
    pub generation: u8,
    /// The most bytes of an IP packet on the way to it.
    pub mtu: u16,
    /// VLAN of the next hop, 0 for none.
    pub vlan: u16,
    /// The port that packets go to with [`Forward::Nat`], 0 for that which they came to.
    pub port: u16,
    /// How packets of its service reach it.
    pub forward: Forward,
    /// Whether connection ids of QUIC may say more than the table of flows.
    pub by_id: bool,
}

impl BackendWord {
    const ALIVE: u64 = 1 << 8;
    const V6: u64 = 1 << 9;
    const FORWARD: u32 = 10;
    const BY_ID: u64 = 1 << 12;

    /// The word.
    pub const fn word(self) -> u64 {
        let mut word = self.generation as u64
            | (self.mtu as u64) << 16
            | (self.vlan as u64) << 32
            | (self.port as u64) << 48
            | (self.forward as u64) << Self::FORWARD;
        if self.by_id {
            word |= Self::BY_ID;
        }
        if self.alive {
            word |= Self::ALIVE;
        }
        if self.v6 {
            word |= Self::V6;
        }
        word
    }

    /// Whether the backend of a word takes packets.
    #[inline(always)]
    pub const fn is_alive(word: u64) -> bool {
        word & Self::ALIVE != 0
    }

    /// Whether packets of its service reach it this way.
    #[inline(always)]
    pub const fn is(word: u64, forward: Forward) -> bool {
        word >> Self::FORWARD & 3 == forward as u64
    }

    /// Whether connection ids may say more than the table of flows.
    #[inline(always)]
    pub const fn is_by_id(word: u64) -> bool {
        word & Self::BY_ID != 0
    }

    /// Whether its address is IPv6.
    #[inline(always)]
    pub const fn is_v6(word: u64) -> bool {
        word & Self::V6 != 0
    }

    /// Its generation.
    #[inline(always)]
    pub const fn generation_of(word: u64) -> u8 {
        word as u8
    }

    /// The most bytes of an IP packet.
    #[inline(always)]
    pub const fn mtu_of(word: u64) -> u32 {
        (word >> 16 & 0xffff) as u32
    }

    /// VLAN of the next hop, 0 for none.
    #[inline(always)]
    pub const fn vlan_of(word: u64) -> u16 {
        (word >> 32) as u16
    }

    /// The port that packets go to, 0 for that which they came to.
    #[inline(always)]
    pub const fn port_of(word: u64) -> u16 {
        (word >> 48) as u16
    }
}

/// A flow as its first packet's receiver sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Flow {
    /// The client's address.
    pub client: [u64; 2],
    /// The service's.
    pub vip: [u64; 2],
    /// The client's port and the service's, as read from the wire.
    pub ports: u32,
    /// The protocol.
    pub proto: u8,
}

/// Tags of the hashes of a flow.
const FLOW_TAG: u32 = 0x2020;
const CLIENT_TAG: u32 = 0x2021;

impl Flow {
    /// The hash of all of it, which also stands for it in the table: 64 secret bits,
    /// which nobody outside can make collide.
    #[inline(always)]
    pub const fn hash(&self, seed: &Seed) -> u64 {
        let ends = hash(
            seed,
            self.client[0] ^ self.vip[1].rotate_left(17),
            self.client[1],
            FLOW_TAG,
        );
        let last = (self.ports as u64) << 32 | self.proto as u64;
        hash(seed, ends ^ self.vip[0], last, FLOW_TAG)
    }

    /// The hash of the client alone.
    #[inline(always)]
    pub const fn client_hash(&self, seed: &Seed) -> u64 {
        hash(seed, self.client[0], self.client[1], CLIENT_TAG)
    }
}

/// The slot of a ring that a hash chooses.
#[inline(always)]
pub const fn slot_of(hash: u64, slots: u32) -> u32 {
    reduce(hash as u32, slots)
}

/// The bucket of `FLOWS` that a hash chooses.
#[inline(always)]
pub const fn bucket_of(hash: u64, buckets: u32) -> u32 {
    reduce((hash >> 32) as u32, buckets)
}

/// Flows in a bucket, which is a cache line.
pub const FLOW_WAYS: usize = 4;

/// A flow in the table.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct FlowSlot {
    /// [`Flow::hash`]; 0: free.
    pub tag: u64,
    /// [`FlowWord`].
    pub word: u64,
}

/// A bucket of `FLOWS`.
pub type FlowBucket = [FlowSlot; FLOW_WAYS];

const _: () = assert!(size_of::<FlowBucket>() == 64);

/// How far a flow has come. What is further is harder to evict.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u64)]
pub enum FlowState {
    /// One packet was seen, or SYNs: anybody can send those.
    New = 0,
    /// It has ended, or nearly.
    Closing = 1,
    /// It goes on.
    Established = 2,
}

/// Step of a flow's age in nanoseconds, as a shift: 1.07 s.
pub const AGE_SHIFT: u32 = 30;
/// Steps that a flow of one packet is kept.
pub const NEW_AGE: u32 = 10;
/// Steps without a packet that one is kept which has ended, by what was seen of it: half
/// of it may go on, or somebody has made the end up.
pub const CLOSING_AGE: u32 = 15;

/// Steps that an established flow without a packet is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Idle {
    /// One of TCP.
    pub tcp: u32,
    /// One of any other protocol.
    pub udp: u32,
}

/// What is known of a flow, as one word.
pub struct FlowWord;

impl FlowWord {
    const NUMBER: u64 = (1 << NUMBER_BITS) - 1;
    const GENERATION: u32 = NUMBER_BITS;
    const STATE: u32 = Self::GENERATION + 8;
    const TCP: u64 = 1 << (Self::STATE + 2);
    const SEEN: u32 = 32;
    /// The backend's number and generation.
    const BACKEND: u64 = (1 << Self::STATE) - 1;

    /// A flow, of TCP or not, of a backend with this number and generation.
    #[inline(always)]
    pub const fn of(
        backend: u32,
        generation: u8,
        is_tcp: bool,
        state: FlowState,
        seen: u32,
    ) -> u64 {
        backend as u64 & Self::NUMBER
            | (generation as u64) << Self::GENERATION
            | (state as u64) << Self::STATE
            | if is_tcp { Self::TCP } else { 0 }
            | (seen as u64) << Self::SEEN
    }

    /// Of a place that another CPU is filling for a flow.
    #[inline(always)]
    pub const fn claimed(now: u32) -> u64 {
        3 << Self::STATE | (now as u64) << Self::SEEN
    }

    /// Whether it is that of [`FlowWord::claimed`].
    #[inline(always)]
    pub const fn is_claimed(word: u64) -> bool {
        word >> Self::STATE & 3 == 3
    }

    /// Whether two words are of flows of the same backend.
    #[inline(always)]
    pub const fn is_alike(word: u64, other: u64) -> bool {
        (word ^ other) & Self::BACKEND == 0
    }

    /// The backend's number.
    #[inline(always)]
    pub const fn backend(word: u64) -> u32 {
        (word & Self::NUMBER) as u32
    }

    /// The backend's generation.
    #[inline(always)]
    pub const fn generation(word: u64) -> u8 {
        (word >> Self::GENERATION) as u8
    }

    /// Whether it is in a state.
    #[inline(always)]
    pub const fn is(word: u64, state: FlowState) -> bool {
        word >> Self::STATE & 3 == state as u64
    }

    /// Whether it is of TCP.
    #[inline(always)]
    pub const fn is_tcp(word: u64) -> bool {
        word & Self::TCP != 0
    }

    /// When its last packet was seen, in steps of [`AGE_SHIFT`].
    #[inline(always)]
    pub const fn seen(word: u64) -> u32 {
        (word >> Self::SEEN) as u32
    }

    /// The same flow in another state, seen at another time.
    #[inline(always)]
    pub const fn with(word: u64, state: FlowState, seen: u32) -> u64 {
        word & (Self::BACKEND | Self::TCP)
            | (state as u64) << Self::STATE
            | (seen as u64) << Self::SEEN
    }

    /// The same flow in the same state, seen at another time.
    #[inline(always)]
    pub const fn seen_at(word: u64, seen: u32) -> u64 {
        word & 0xffff_ffff | (seen as u64) << Self::SEEN
    }

    /// Steps since its last packet. Another CPU's clock may be a step ahead.
    #[inline(always)]
    pub const fn age(word: u64, now: u32) -> u32 {
        let age = now.wrapping_sub(Self::seen(word));
        if age > u32::MAX / 2 { 0 } else { age }
    }

    /// Whether it is over.
    #[inline(always)]
    pub const fn is_over(word: u64, now: u32, idle: Idle) -> bool {
        let kept = if Self::is(word, FlowState::Established) {
            if Self::is_tcp(word) {
                idle.tcp
            } else {
                idle.udp
            }
        } else if Self::is(word, FlowState::Closing) {
            CLOSING_AGE
        } else {
            NEW_AGE
        };
        Self::age(word, now) > kept
    }
}

/// How good a slot is to put another flow into: 0: not at all, for an established flow
/// is never evicted. Best is one that is free.
#[inline(always)]
pub const fn worth(slot: FlowSlot, now: u32, idle: Idle) -> u32 {
    if slot.tag == 0 {
        return u32::MAX;
    }
    let age = FlowWord::age(slot.word, now);
    let age = if age > 0xffff { 0xffff } else { age };
    if FlowWord::is_over(slot.word, now, idle) {
        1 << 20 | age
    } else if FlowWord::is(slot.word, FlowState::New) {
        1 << 18 | age
    } else {
        0
    }
}

/// Words of the filter before the look-up of a service's address.
pub const VIP_WORDS: u32 = 1024;

/// Tag of the hash for the filter.
const VIP_TAG: u32 = 0x2022;

/// Word and bit of an address in the filter. One that is not in it is no service's.
#[inline(always)]
pub const fn vip_bit(seed: &Seed, address: [u64; 2]) -> (u32, u64) {
    let hash = hash(seed, address[0], address[1], VIP_TAG);
    (hash as u32 & (VIP_WORDS - 1), 1 << (hash >> 32 & 63))
}

/// Bytes of a packet that a too-big message gives back, from the IP header on: more
/// than the 8 bytes behind the header that it must (RFC 792), and few enough that none of
/// these packets ends before.
pub const QUOTED: usize = 64;

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::HashSet;

    const SEED: Seed = Seed::new([1, 2, 3, 4]);

    #[test]
    fn words_give_back_what_was_put_in() {
        let balance = Balance {
            ring: 77,
            forward: Forward::L2,
            by: HashBy::Source,
            echo: true,
            is_on: true,
        };
        let word = balance.word();
        assert_eq!(Balance::ring_of(word), 77);
        assert!(Balance::is_balanced(word) && Balance::answers_echo(word));
        assert!(Balance::is_by_source(word) && Balance::is(word, Forward::L2));
        assert!(
            !Balance::is(word, Forward::Ipip) && !Balance::is_balanced(Balance::default().word())
        );
        assert_eq!(Balance::quic_of(word), 0);
        let layout = Layout::new(6, 8).unwrap();
        let by_id = Balance {
            by: HashBy::Quic(layout),
            ..balance
        };
        let word = by_id.word();
        assert_eq!(
            (Balance::quic_of(word), Balance::ring_of(word)),
            (layout.bits(), 77)
        );
        assert!(!Balance::is_by_source(word) && Balance::is(word, Forward::L2));
        let backend = BackendWord {
            alive: true,
            v6: true,
            generation: 9,
            mtu: 9000,
            vlan: 4094,
            port: 8080,
            forward: Forward::Nat,
            by_id: true,
        };
        let word = backend.word();
        assert!(BackendWord::is(word, Forward::Nat) && BackendWord::is_by_id(word));
        assert!(BackendWord::is_alive(word) && BackendWord::is_v6(word));
        assert_eq!(BackendWord::generation_of(word), 9);
        assert_eq!(
            (BackendWord::mtu_of(word), BackendWord::vlan_of(word)),
            (9000, 4094)
        );
        assert_eq!(BackendWord::port_of(word), 8080);
    }

    #[test]
    fn slots_of_a_ring_are_apart() {
        let words = ring_words(65_537);
        let mut seen = HashSet::new();
        for ring in 1..4 {
            for slot in 0..65_537 {
                assert!(seen.insert(slot_at(ring, words, slot)));
            }
        }
        let last = seen.iter().map(|(word, _)| *word).max();
        assert_eq!(last, Some(3 * words - 1));
    }

    #[test]
    fn established_flows_are_not_evicted_before_they_are_over() {
        let of = |is_tcp, state, seen| FlowSlot {
            tag: 1,
            word: FlowWord::of(3, 4, is_tcp, state, seen),
        };
        let slot = |state, seen| of(true, state, seen);
        let (now, idle) = (100_000, Idle { tcp: 900, udp: 100 });
        assert_eq!(worth(slot(FlowState::Established, now - 900), now, idle), 0);
        let over = worth(slot(FlowState::Established, now - 901), now, idle);
        let new = worth(slot(FlowState::New, now), now, idle);
        let closing = worth(slot(FlowState::Closing, now - CLOSING_AGE), now, idle);
        let free = worth(FlowSlot::default(), now, idle);
        assert!(free > over && over > new && new > 0);
        assert_eq!(closing, 0);
        // Each by the time of its own protocol.
        let udp = |age| worth(of(false, FlowState::Established, now - age), now, idle);
        assert_eq!((udp(100), udp(101) > 0), (0, true));
    }

    proptest! {
        #[test]
        fn flow_words_hold_all(
            backend in 0..1u32 << NUMBER_BITS,
            generation: u8,
            is_tcp: bool,
            seen: u32,
            later: u32,
        ) {
            let word = FlowWord::of(backend, generation, is_tcp, FlowState::New, seen);
            let word = FlowWord::with(word, FlowState::Established, later);
            prop_assert_eq!(FlowWord::backend(word), backend);
            prop_assert_eq!(FlowWord::generation(word), generation);
            prop_assert_eq!(FlowWord::is_tcp(word), is_tcp);
            prop_assert_eq!(FlowWord::seen(word), later);
            prop_assert!(FlowWord::is(word, FlowState::Established));
        }

        #[test]
        fn every_part_of_a_flow_counts(a: [u64; 2], b: [u64; 2], ports: u32, bit in 0u32..32) {
            let flow = Flow { client: a, vip: b, ports, proto: 6 };
            let hash = flow.hash(&SEED);
            for other in [
                Flow { proto: 17, ..flow },
                Flow { ports: ports ^ 1 << bit, ..flow },
                Flow { client: [a[0] ^ 1 << bit, a[1]], ..flow },
                Flow { client: [a[0], a[1] ^ 1 << bit], ..flow },
                Flow { vip: [b[0] ^ 1 << bit, b[1]], ..flow },
                Flow { vip: [b[0], b[1] ^ 1 << bit], ..flow },
            ] {
                prop_assert_ne!(other.hash(&SEED), hash);
            }
        }
    }
}
