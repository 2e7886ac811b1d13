//! One bucketised cuckoo table in shared memory, written by one, read by many.

use std::marker::PhantomData;

use edge_common::{
    hash::Seed,
    table::{Place, WAYS},
};

use super::slots::Slot;
use crate::memory::Region;

/// Buckets that a search for room looks at before it gives up. Below the load
/// that the geometry allows, the second or third has room.
const MAX_SEARCH: usize = 512;

/// Both buckets of an entry are full, and nothing in reach can move.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct NoRoom;

/// The writer's knowledge of a table of `S`; the entries are in the region.
pub(super) struct Cuckoo<S> {
    seed: Seed,
    buckets: u32,
    used: u32,
    /// A bit for each slot that was written since [`Cuckoo::mark`]; empty when
    /// nobody asked.
    marks: Vec<u64>,
    /// Entries may move to their first bucket as well.
    moves_back: bool,
    slot: PhantomData<fn() -> S>,
}

/// A bucket in the search for room, and the slot whose entry would move here.
struct Step {
    bucket: u32,
    from: Option<(usize, usize)>,
}

impl<S: Slot> Cuckoo<S> {
    /// The writer of a table of `buckets` buckets in which nothing is.
    pub(super) const fn empty(buckets: u32, seed: Seed) -> Self {
        Self {
            seed,
            buckets,
            used: 0,
            marks: Vec::new(),
            moves_back: false,
            slot: PhantomData,
        }
    }

    /// The writer of the table of `buckets` buckets in `region`.
    ///
    /// What a former writer left there stays, except what no reader can find
    /// and second copies: it may have died in the middle of a move.
    pub(super) fn adopt(region: &Region, buckets: u32, seed: Seed) -> Self {
        let mut table = Self::empty(buckets, seed);
        for index in 0..table.slots() {
            let Some(key) = S::load_key(region, index) else {
                continue;
            };
            // The first place where the key is found is the one readers use.
            if table.find(region, key) == Some(index) {
                table.used += 1;
            } else {
                S::clear(region, index);
            }
        }
        table
    }

    /// Whether a search for room may also move entries from their second bucket
    /// to their first, which a reader in between misses.
    pub(super) const fn moves_back(&mut self, may: bool) {
        self.moves_back = may;
    }

    /// Number of slots.
    pub(super) const fn slots(&self) -> usize {
        self.buckets as usize * WAYS
    }

    /// Number of entries.
    pub(super) const fn used(&self) -> u32 {
        self.used
    }

    /// The slot that holds `key`.
    pub(super) fn find(&self, region: &Region, key: S::Key) -> Option<usize> {
        let place = S::place(&self.seed, &key);
        [place.first(self.buckets), place.second(self.buckets)]
            .into_iter()
            .flat_map(slots_of)
            .find(|&i| S::load_key(region, i) == Some(key))
    }

    /// The keys of all entries, and their places.
    pub(super) fn places(&self, region: &Region) -> impl Iterator<Item = (S::Key, Place)> {
        (0..self.slots())
            .filter_map(|i| S::load_key(region, i))
            .map(|key| (key, S::place(&self.seed, &key)))
    }

    /// Inserts an entry that is not in the table, and returns its slot. A slot
    /// without a key is ignored.
    pub(super) fn insert(&mut self, region: &Region, slot: S) -> Result<usize, NoRoom> {
        let Some(key) = slot.key() else {
            return Err(NoRoom);
        };
        let place = S::place(&self.seed, &key);
        let (first, second) = (place.first(self.buckets), place.second(self.buckets));
        let index = free_slot::<S>(region, first)
            .or_else(|| free_slot::<S>(region, second))
            .or_else(|| self.make_room(region, first, second))
            .ok_or(NoRoom)?;
        slot.publish(region, index);
        self.used += 1;
        self.touch(index);
        Ok(index)
    }

    /// Removes the entry in a used slot.
    pub(super) fn remove(&mut self, region: &Region, index: usize) {
        S::clear(region, index);
        self.used = self.used.saturating_sub(1);
    }

    /// Frees a slot in one of two full buckets by moving entries from their
    /// first bucket to their second, breadth first. Not the other way unless
    /// that was asked for: a reader that looks at the first bucket, then the
    /// second, would miss it.
    fn make_room(&mut self, region: &Region, first: u32, second: u32) -> Option<usize> {
        let mut steps: Vec<Step> = vec![
            Step {
                bucket: first,
                from: None,
            },
            Step {
                bucket: second,
                from: None,
            },
        ];
        let mut at = 0;
        while let Some(bucket) = steps.get(at).map(|s| s.bucket) {
            for index in slots_of(bucket) {
                let key = S::load_key(region, index)?;
                let place = S::place(&self.seed, &key);
                let (first, second) = (place.first(self.buckets), place.second(self.buckets));
                let target = match bucket {
                    b if b == first => second,
                    _ if self.moves_back => first,
                    _ => continue,
                };
                if steps.iter().any(|s| s.bucket == target) {
                    continue;
                }
                if let Some(free) = free_slot::<S>(region, target) {
                    return Some(self.shift(region, &steps, (at, index), free));
                }
                if steps.len() < MAX_SEARCH {
                    steps.push(Step {
                        bucket: target,
                        from: Some((at, index)),
                    });
                }
            }
            at += 1;
        }
        None
    }

    /// Moves the entry of `last` to `free`, then the one that leads to its
    /// bucket into its slot, and so on; returns the slot that became free at
    /// the start.
    fn shift(
        &mut self,
        region: &Region,
        steps: &[Step],
        last: (usize, usize),
        free: usize,
    ) -> usize {
        let (mut free, mut next) = (free, Some(last));
        while let Some((step, index)) = next {
            S::load(region, index).publish(region, free);
            self.move_mark(index, free);
            S::clear(region, index);
            free = index;
            next = steps.get(step).and_then(|s| s.from);
        }
        free
    }

    /// From now on remembers which slots are written or [`Cuckoo::touch`]ed.
    pub(super) fn mark(&mut self) {
        self.marks = vec![0; self.slots().div_ceil(64)];
    }

    /// Marks a slot, when somebody asked for marks.
    pub(super) fn touch(&mut self, index: usize) {
        if let Some(word) = self.marks.get_mut(index / 64) {
            *word |= 1 << (index % 64);
        }
    }

    fn move_mark(&mut self, from: usize, to: usize) {
        if let Some(word) = self.marks.get_mut(from / 64) {
            let marked = *word & 1 << (from % 64) != 0;
            *word &= !(1 << (from % 64));
            if marked {
                self.touch(to);
            }
        }
    }

    /// Removes every entry that was not marked since [`Cuckoo::mark`], and ends
    /// the marking. Returns how many.
    pub(super) fn remove_unmarked(&mut self, region: &Region) -> u64 {
        let marks = std::mem::take(&mut self.marks);
        let mut removed = 0;
        for index in 0..self.slots() {
            let marked = marks
                .get(index / 64)
                .is_some_and(|w| w & 1 << (index % 64) != 0);
            if !marked && S::load_key(region, index).is_some() {
                self.remove(region, index);
                removed += 1;
            }
        }
        removed
    }
}

/// The slots of a bucket, in the order in which readers look at them.
pub(super) fn slots_of(bucket: u32) -> std::ops::Range<usize> {
    let start = bucket as usize * WAYS;
    start..start + WAYS
}

fn free_slot<S: Slot>(region: &Region, bucket: u32) -> Option<usize> {
    slots_of(bucket).find(|&i| S::load_key(region, i).is_none())
}

#[cfg(test)]
mod tests {
    use super::*;
    use edge_common::table::Slot4;

    /// Random bits, the same ones each time (splitmix64; Steele, Lea and Flood 2014).
    fn seed(n: u64) -> Seed {
        let mut state = n.wrapping_mul(0xd134_2543_de82_ef95);
        Seed::new([(); 4].map(|()| {
            state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
            let z = (state ^ state >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            let z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
            z ^ z >> 31
        }))
    }

    fn slot(addr: u32) -> Slot4 {
        Slot4 {
            addr,
            black: addr.wrapping_mul(3),
            allow: 1,
            hits: 2,
        }
    }

    fn table(buckets: u32) -> (Region, Cuckoo<Slot4>) {
        let region = Region::heap(buckets as usize * 64);
        let table = Cuckoo::adopt(&region, buckets, seed(7));
        (region, table)
    }

    #[test]
    fn moves_make_room_and_lose_nothing() {
        let (region, mut t) = table(64);
        let mut inside = Vec::new();
        let mut refused = 0;
        for addr in 1..=256u32 {
            match t.insert(&region, slot(addr)) {
                Ok(_) => inside.push(addr),
                Err(NoRoom) => refused += 1,
            }
            assert_eq!(t.used() as usize, inside.len());
            for &a in &inside {
                let i = t.find(&region, a).unwrap();
                assert_eq!(Slot4::load(&region, i), slot(a));
            }
        }
        assert!(refused > 0, "256 entries cannot all fit by one-way moves");
        assert!(inside.len() > 192, "{} of 256", inside.len());
    }

    #[test]
    fn room_comes_back() {
        let (region, mut t) = table(1);
        for addr in 1..=4 {
            t.insert(&region, slot(addr)).unwrap();
        }
        assert_eq!(t.insert(&region, slot(5)), Err(NoRoom));
        let i = t.find(&region, 2).unwrap();
        t.remove(&region, i);
        assert_eq!(t.find(&region, 2), None);
        assert_eq!(t.insert(&region, slot(5)), Ok(i));
    }

    #[test]
    fn the_load_of_the_geometry_always_fits() {
        // 60 % of the slots, from the smallest table on; many seeds.
        for (buckets, seeds) in [(64u32, 2000u64), (128, 1000), (1024, 100), (65_536, 2)] {
            for s in 0..seeds {
                let region = Region::heap(buckets as usize * 64);
                let mut t = Cuckoo::adopt(&region, buckets, seed(s));
                for addr in 1..=buckets * 4 * 60 / 100 {
                    assert!(
                        t.insert(&region, slot(addr)).is_ok(),
                        "entry {addr} in {buckets} buckets, seed {s}"
                    );
                }
            }
        }
    }

    #[test]
    fn adopting_repairs_what_a_dead_writer_left() {
        let (region, mut t) = table(64);
        for addr in 1..=100 {
            t.insert(&region, slot(addr)).unwrap();
        }
        // A move that was copied but not cleared, and garbage in a wrong bucket.
        let (mut copied, mut garbage) = (None, None);
        for addr in 1..=100 {
            let (f, s) = {
                let p = Slot4::place(&seed(7), &addr);
                (p.first(64), p.second(64))
            };
            let at = t.find(&region, addr).unwrap();
            if copied.is_none()
                && f != s
                && slots_of(f).contains(&at)
                && let Some(free) = free_slot::<Slot4>(&region, s)
            {
                Slot4::load(&region, at).publish(&region, free);
                copied = Some((addr, at, free));
            }
        }
        let (addr, at, free) = copied.unwrap();
        for bucket in 0..64 {
            let p = Slot4::place(&seed(7), &9999);
            if bucket != p.first(64) && bucket != p.second(64) && garbage.is_none() {
                garbage = free_slot::<Slot4>(&region, bucket);
            }
        }
        slot(9999).publish(&region, garbage.unwrap());

        let t = Cuckoo::<Slot4>::adopt(&region, 64, seed(7));
        assert_eq!(t.used(), 100);
        assert_eq!(t.find(&region, addr), Some(at));
        assert_eq!(Slot4::load_key(&region, free), None);
        assert_eq!(Slot4::load_key(&region, garbage.unwrap()), None);
    }

    #[test]
    fn marks_follow_moves() {
        let (region, mut t) = table(64);
        for addr in 1..=60 {
            t.insert(&region, slot(addr)).unwrap();
        }
        t.mark();
        for addr in 1..=30 {
            let i = t.find(&region, addr).unwrap();
            t.touch(i);
        }
        let new: Vec<u32> = (1000..1150)
            .filter(|&a| t.insert(&region, slot(a)).is_ok())
            .collect();
        assert_eq!(t.remove_unmarked(&region), 30);
        assert_eq!(t.used() as usize, 30 + new.len());
        for addr in (1..=30).chain(new) {
            assert!(t.find(&region, addr).is_some(), "{addr}");
        }
    }
}
