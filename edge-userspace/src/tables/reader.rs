//! The tables as the kernel reads them, for tests and for explaining.

use std::{net::IpAddr, sync::Arc};

use edge_common::{
    hash::Seed,
    table::{
        Half, LONGER, LenBit, Place, Slot4, SlotW, bitmap24, len_bit, len_key, long_place, mask,
    },
};

use super::{
    Geometry, Listing, Regions,
    cuckoo::slots_of,
    slots::{Slot, WideKey},
    words::load,
};
use crate::memory::Region;

/// Looks sources up as the XDP program does, filters included and in its order,
/// concurrently with the writer. Only in a bucket it goes from slot to slot, where
/// the program compares the later ones at once.
#[derive(Clone, Debug)]
pub struct Reader {
    pub(super) regions: Arc<Regions>,
    pub(super) geometry: Geometry,
    pub(super) seed: Seed,
}

impl Reader {
    /// What the tables say of a source: of the host and of the longest prefix
    /// that covers it. An IPv4-mapped IPv6 address is an IPv6 one here, as it
    /// is on the wire.
    pub fn lookup(&self, addr: IpAddr) -> Listing {
        match addr {
            IpAddr::V4(a) => {
                let wire = u32::from_ne_bytes(a.octets());
                self.host4(wire).under(self.prefix4(a.to_bits()))
            }
            IpAddr::V6(a) => {
                let (hi, lo) = ((a.to_bits() >> 64) as u64, a.to_bits() as u64);
                self.host6(hi, lo).under(self.prefix6(hi, lo))
            }
        }
    }

    fn host4(&self, wire: u32) -> Listing {
        let place = Place::host_v4(&self.seed, wire);
        let filter = place.filter(self.geometry.hosts4_filter_words);
        if !has_bits(&self.regions.hosts4_filter, filter) {
            return Listing::default();
        }
        let n = self.geometry.hosts4_buckets;
        let buckets = [place.first(n), place.second(n)];
        find::<Slot4>(&self.regions.hosts4, buckets, wire).unwrap_or_default()
    }

    fn host6(&self, hi: u64, lo: u64) -> Listing {
        let host = len_bit(false, 128).and_then(|(half, bit)| {
            let sought = self.sought(half, bit, hi, lo);
            let filter = sought.place.filter(self.geometry.hosts6_filter_words);
            has_bits(&self.regions.hosts6_filter, filter).then(|| self.wide(&sought))?
        });
        host.unwrap_or_default()
    }

    fn prefix4(&self, addr: u32) -> Listing {
        let lengths = load(&self.regions.lengths4.u64s()[(addr >> 16) as usize]);
        if lengths == 0 || !has_bits(&self.regions.bitmap24, bitmap24(addr)) {
            return Listing::default();
        }
        self.longest(Half::V4, lengths, 0, u64::from(addr))
            .unwrap_or_default()
    }

    fn prefix6(&self, hi: u64, lo: u64) -> Listing {
        let lengths = load(&self.regions.lengths6.u64s()[(hi >> 48) as usize]);
        let long = || {
            if lengths & LONGER == 0 {
                return None;
            }
            let place = long_place(&self.seed, hi);
            let filter = place.filter(self.geometry.prefix_filter_words);
            if !has_bits(&self.regions.prefix_filter, filter) {
                return None;
            }
            let at = place.first(self.geometry.long_lengths) as usize * 2;
            let words = &self.regions.lengths6_long.u64s()[at..][..2];
            self.longest(Half::Low, load(&words[1]), hi, lo)
                .or_else(|| self.longest(Half::High, load(&words[0]), hi, lo))
        };
        long()
            .or_else(|| self.longest(Half::High, lengths & !LONGER, hi, lo))
            .unwrap_or_default()
    }

    /// The longest match among `lengths`: the lowest bit is the longest. As in the
    /// kernel, the filter is asked for all of them before any bucket is.
    fn longest(&self, half: Half, lengths: u64, hi: u64, lo: u64) -> Option<Listing> {
        let mut left = lengths;
        let mut likely = Vec::new();
        while left != 0 {
            let bit = left & left.wrapping_neg();
            let sought = self.sought(half, bit, hi, lo);
            let filter = sought.place.filter(self.geometry.prefix_filter_words);
            if has_bits(&self.regions.prefix_filter, filter) {
                likely.push(sought);
            }
            left ^= bit;
        }
        likely.iter().find_map(|sought| self.wide(sought))
    }

    fn sought(&self, half: Half, bit: LenBit, hi: u64, lo: u64) -> Sought {
        let (hi, lo) = mask(half, bit, hi, lo);
        let len_key = len_key(half, bit);
        Sought {
            key: WideKey { hi, lo, len_key },
            place: Place::wide(&self.seed, hi, lo, len_key),
        }
    }

    fn wide(&self, sought: &Sought) -> Option<Listing> {
        let n = self.geometry.wide_buckets;
        let buckets = [sought.place.first(n), sought.place.second(n)];
        find::<SlotW>(&self.regions.wide, buckets, sought.key)
    }
}

/// An entry of `WIDE` that may be there.
struct Sought {
    key: WideKey,
    place: Place,
}

fn has_bits(region: &Region, (word, bits): (u32, u64)) -> bool {
    load(&region.u64s()[word as usize]) & bits == bits
}

fn find<S: Slot>(region: &Region, buckets: [u32; 2], key: S::Key) -> Option<Listing> {
    let mut slots = buckets.into_iter().flat_map(slots_of);
    slots.find_map(|i| S::load_if(region, i, key))
}
