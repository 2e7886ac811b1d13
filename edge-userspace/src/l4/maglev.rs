//! Weighted Maglev: which slot of a ring belongs to which backend.
//!
//! As in Eisenbud et al., "Maglev: A Fast and Reliable Software Network Load
//! Balancer" (NSDI 2016), section 3.4, backends take turns at a ring of slots, and each
//! asks for slots in an order that only its own identity gives, by an offset and a skip.
//! Two things are different here, so that a backend that goes takes hardly more than its
//! own slots with it:
//!
//! * **A slot that another has is passed over, and counts.** In the paper a turn goes on
//!   to the next free slot. Here what a backend asks for, and when, depends on itself
//!   alone, and who asks first has the slot. That is rendezvous hashing (Thaler and
//!   Ravishankar, "Using name-based mappings to increase hit rates", IEEE/ACM
//!   Transactions on Networking 6(1), 1998) with some ten questions a slot in place
//!   of one hash for each slot and backend. It alone would move nothing needlessly, but
//!   leave shares as uneven as chance makes them. So each backend has a **quota**, and
//!   stops when it has it. Only where one stopped and another did not do slots move
//!   needlessly.
//! * **Offset and skip are drawn anew for every turn**, which asks for [`WALK`] slots.
//!   With one skip for good, two backends whose skips happen to stand in a small ratio
//!   meet in the same way all over the ring, and if there are few others, several per
//!   cent of all slots move needlessly.
//!
//! Weights: a backend of weight *w* has its turns at the times (k + ½)/*w* of a clock
//! in which nobody else has a part, so that the order of the others stays as it is
//! when one goes. To ask at a rate is the exponential race of weighted rendezvous
//! hashing (Schindelhauer and Schomaker, "Weighted distributed hash tables", SPAA 2005),
//! and gives shares near the quotas by itself. The quotas are of Webster's method
//! (Balinski and Young, "Fair Representation", 1982), which rounds in favour of neither
//! large nor small ones, and, as all methods of divisors, takes from nobody when
//! another goes.
//!
//! All is arithmetic of integers: every machine with the same seed and [`VERSION`] finds
//! the same ring, in whatever order the backends stand.

use std::{
    cmp::Reverse,
    collections::{BinaryHeap, binary_heap::PeekMut},
    net::IpAddr,
};

use edge_common::hash::{Seed, hash, reduce};

use super::Endpoint;

/// Of the arithmetic below. A change of what [`ring`] answers needs another one, as a
/// fleet must not choose by two.
pub const VERSION: u16 = 1;

/// The slots of a ring unless configured otherwise: the smaller of the two sizes that
/// the paper measures (section 5.3), a prime.
pub const SLOTS: u32 = 65_537;

/// How many slots a turn asks for.
const WALK: u64 = 16;

/// The time between two turns of a backend of weight 1.
const PERIOD: u64 = 1 << 40;

/// Tag of the hash from which a walk is drawn; those of identities have the version in
/// the upper half, which is never this.
const TAG_WALK: u32 = 0xffff_0000;

/// The owner of each slot, as its position in the list of candidates.
pub type Ring = Vec<u16>;

/// A backend that may have slots.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Candidate {
    /// Its identity.
    pub endpoint: Endpoint,
    /// Its share beside the weights of the others; with 0 it gets no slot.
    pub weight: u32,
}

/// A ring and those whose positions stand in it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Spread {
    /// Who may have slots.
    pub candidates: Vec<Candidate>,
    /// Who has which.
    pub ring: Ring,
}

impl Spread {
    /// The spread over `slots` slots: see [`ring`].
    pub fn new(seed: &Seed, candidates: Vec<Candidate>, slots: u32) -> Self {
        let ring = ring(seed, &candidates, slots);
        Self { candidates, ring }
    }
}

/// The ring of `slots` slots for `candidates`; empty if none of them has a weight.
///
/// Each candidate with a weight has a slot at least, as long as there are enough, and
/// otherwise its share of them, rounded. `slots` should be a prime, so that no skip
/// comes back to a slot in one turn; any other number works. Candidates behind the
/// 65,536th get nothing, as positions have 16 bits.
pub fn ring(seed: &Seed, candidates: &[Candidate], slots: u32) -> Ring {
    // The endpoint decides between two keys that are the same by chance.
    let identities = candidates
        .iter()
        .map(|c| ((key(seed, c.endpoint), c.endpoint), c.weight));
    fill(seed, walkers(identities, |&(key, _)| key, slots), slots)
}

/// The ring of `slots` slots for candidates that are known by keys of their own, with
/// their weights: as [`ring`] in everything else. Between equal keys their order decides.
pub fn ring_of_keys(seed: &Seed, candidates: &[(u64, u32)], slots: u32) -> Ring {
    let walkers = walkers(candidates.iter().copied(), |&key| key, slots);
    fill(seed, walkers, slots)
}

/// The ring of those that get slots.
fn fill(seed: &Seed, mut walkers: Vec<(u32, Walker)>, slots: u32) -> Ring {
    let Some(mut last) = walkers.first().map(|(_, walker)| walker.position) else {
        return Ring::new();
    };
    let mut ring = vec![0; slots as usize];
    let mut taken = vec![0; (slots as usize).div_ceil(64)];
    let mut waiting = walkers.len();
    // Those of one weight have their turns together, in the order of their keys.
    walkers.sort_by_key(|&(weight, _)| weight);
    let mut queue = BinaryHeap::new();
    let mut groups = Vec::new();
    for members in walkers.chunk_by(|(a, _), (b, _)| a == b) {
        let period = members
            .first()
            .map_or(PERIOD, |&(weight, _)| PERIOD / u64::from(weight));
        queue.push(Reverse((period / 2, groups.len(), period)));
        groups.push(Group {
            turns: 0,
            walkers: members.iter().map(|&(_, walker)| walker).collect(),
        });
    }
    while waiting > 1
        && let Some(mut next) = queue.peek_mut()
    {
        let Reverse((due, at, period)) = &mut *next;
        *due = due.saturating_add(*period);
        let Some(group) = groups.get_mut(*at) else {
            break;
        };
        waiting -= group.turn(seed, &mut taken, &mut ring);
        if group.walkers.is_empty() {
            PeekMut::pop(next);
        }
    }
    // What is free now belongs to the only one that is not full.
    if let Some(walker) = groups.iter().find_map(|group| group.walkers.first()) {
        last = walker.position;
    }
    for (slot, owner) in ring.iter_mut().enumerate() {
        let word = taken.get(slot / 64).copied().unwrap_or(0);
        if word >> (slot % 64) & 1 == 0 {
            *owner = last;
        }
    }
    ring
}

/// Backends of one weight.
struct Group {
    /// The turns that each has had.
    turns: u64,
    /// Those that are not full, in the order of their keys.
    walkers: Vec<Walker>,
}

impl Group {
    /// A turn for each. How many of them are full now, and gone.
    fn turn(&mut self, seed: &Seed, taken: &mut [u64], ring: &mut [u16]) -> usize {
        let before = self.walkers.len();
        let mut full = false;
        for walker in &mut self.walkers {
            walker.walk(seed, self.turns, taken, ring);
            full |= walker.left == 0;
        }
        self.turns += 1;
        if full {
            self.walkers.retain(|walker| walker.left > 0);
        }
        before - self.walkers.len()
    }
}

/// A backend that wants slots.
#[derive(Clone, Copy)]
struct Walker {
    /// Its identity under the seed.
    key: u64,
    /// How many it still wants.
    left: u32,
    /// Its place among the candidates.
    position: u16,
}

impl Walker {
    /// The turn with this number: asks for [`WALK`] slots, and takes those that are free.
    fn walk(&mut self, seed: &Seed, turn: u64, taken: &mut [u64], ring: &mut [u16]) {
        let slots = ring.len();
        let (mut slot, skip) = self.draw(seed, turn, slots as u64);
        for _ in 0..WALK {
            let bit = 1 << (slot % 64);
            if let Some(word) = taken.get_mut(slot / 64)
                && *word & bit == 0
                && let Some(owner) = ring.get_mut(slot)
            {
                *word |= bit;
                *owner = self.position;
                self.left -= 1;
                if self.left == 0 {
                    return;
                }
            }
            slot += skip;
            if slot >= slots {
                slot -= slots;
            }
        }
    }

    /// Where it goes in a turn: offset and skip.
    fn draw(&self, seed: &Seed, turn: u64, slots: u64) -> (usize, usize) {
        // By chance it has missed few slots by now, e^-16 of them. One after the other it
        // misses none, so that the ring certainly gets full.
        if turn >= slots {
            return ((turn * WALK % slots) as usize, 1);
        }
        let random = hash(seed, self.key, turn, TAG_WALK);
        let offset = reduce((random >> 32) as u32, slots as u32);
        let skip = reduce(random as u32, slots as u32 - 1) + 1;
        (offset as usize, skip as usize)
    }
}

/// The candidates that get slots, with their weights, in the order of their identities,
/// which begin with their keys.
fn walkers<T: Ord>(
    candidates: impl Iterator<Item = (T, u32)>,
    key: impl Fn(&T) -> u64,
    slots: u32,
) -> Vec<(u32, Walker)> {
    let mut all: Vec<(T, u32, u16)> = candidates
        .zip(0..=u16::MAX)
        .filter(|((_, weight), _)| *weight > 0)
        .map(|((identity, weight), position)| (identity, weight, position))
        .collect();
    all.sort_unstable();
    all.truncate(slots as usize);
    let weights: Vec<u32> = all.iter().map(|&(_, weight, _)| weight).collect();
    all.iter()
        .zip(quotas(&weights, slots))
        .map(|((identity, weight, position), left)| {
            let walker = Walker {
                key: key(identity),
                left,
                position: *position,
            };
            (*weight, walker)
        })
        .collect()
}

/// The identity of a backend under the seed.
fn key(seed: &Seed, endpoint: Endpoint) -> u64 {
    let address = match endpoint.address {
        IpAddr::V4(v4) => v4.to_ipv6_mapped(),
        IpAddr::V6(v6) => v6,
    };
    let bits = u128::from(address);
    let tag = u32::from(VERSION) << 16 | u32::from(endpoint.port.unwrap_or(0));
    hash(seed, (bits >> 64) as u64, bits as u64, tag)
}

/// How many slots each weight gets, all together `slots`: by Webster's method, but one
/// at least. There must not be more weights than slots, and none of them 0.
///
/// The method gives a weight the slot number k when a level, the same for all, has
/// risen to (k - ½)/weight; here the first one comes at the level 0. Of those that come
/// at the same level the ones in front are preferred.
fn quotas(weights: &[u32], slots: u32) -> Vec<u32> {
    /// The level has so many binary places.
    const PLACES: u32 = 32;
    let quota = |weight: u32, level: u64| {
        let rounded = level
            .saturating_mul(u64::from(weight))
            .saturating_add(1 << (PLACES - 1))
            >> PLACES;
        rounded.max(1)
    };
    let fits = |level| weights.iter().map(|&w| quota(w, level)).sum::<u64>() <= u64::from(slots);
    let largest = weights.iter().max().map_or(1, |&w| u64::from(w));
    let mut low = 0;
    // There the largest weight alone has them all.
    let mut high = (u64::from(slots) << PLACES) / largest + 1;
    while high - low > 1 {
        let middle = low.midpoint(high);
        if fits(middle) {
            low = middle;
        } else {
            high = middle;
        }
    }
    let mut left = u64::from(slots).saturating_sub(weights.iter().map(|&w| quota(w, low)).sum());
    let mut one = |&weight: &u32| {
        let mut mine = quota(weight, low);
        if left > 0 && quota(weight, low + 1) > mine {
            left -= 1;
            mine += 1;
        }
        u32::try_from(mine).unwrap_or(u32::MAX)
    };
    weights.iter().map(&mut one).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Otherwise a ring might never get full.
    #[test]
    fn a_walk_that_lasts_misses_nothing() {
        for slots in [1, 2, 30, 251] {
            let mut walker = Walker {
                key: 7,
                left: slots,
                position: 0,
            };
            let mut ring = vec![u16::MAX; slots as usize];
            let mut taken = vec![0; 4];
            let first = u64::from(slots);
            for turn in first..=first + first / WALK {
                walker.walk(&Seed::new([1; 4]), turn, &mut taken, &mut ring);
            }
            assert_eq!(walker.left, 0, "{slots} slots");
        }
    }
}
