//! Single slots of both tables: how they are read and written as words.

use std::sync::atomic::Ordering::Relaxed;

use edge_common::{
    hash::Seed,
    table::{KEY_MASK, Meta, Place, Slot4, SlotW},
};

use super::{
    Listing,
    words::{load, store},
};
use crate::memory::Region;

/// A kind of slot, and the protocol of [`edge_common::table`] for it.
///
/// `index` counts slots from the start of the region; an index beyond it is a
/// mistake of the caller and panics.
pub(super) trait Slot: Copy {
    /// What identifies an entry.
    type Key: Copy + Eq;

    /// The key of a slot as read, `None` when it is free.
    fn key(&self) -> Option<Self::Key>;

    /// Where an entry with this key may be.
    fn place(seed: &Seed, key: &Self::Key) -> Place;

    /// Reads the key alone.
    fn load_key(region: &Region, index: usize) -> Option<Self::Key>;

    /// Reads the values as readers must, if the slot holds `key` before and
    /// after: in between it may have been freed, and filled with another entry.
    fn load_if(region: &Region, index: usize, key: Self::Key) -> Option<Listing>;

    /// Reads everything but the key. Only for the writer.
    fn load_listing(region: &Region, index: usize) -> Listing;

    /// Reads the whole slot. Only for the writer: for others key and values
    /// may belong to different entries.
    fn load(region: &Region, index: usize) -> Self;

    /// Fills a free slot; the word that makes it match comes last.
    fn publish(self, region: &Region, index: usize);

    /// Changes the values of a used slot, each of them at once.
    fn update(region: &Region, index: usize, listing: Listing);

    /// Frees a slot; the word that makes it match goes first.
    fn clear(region: &Region, index: usize);

    /// Reads the hit counter.
    fn load_hits(region: &Region, index: usize) -> u32;
}

const WORDS4: usize = size_of::<Slot4>() / 4;

impl Slot for Slot4 {
    type Key = u32;

    fn key(&self) -> Option<u32> {
        (self.addr != 0).then_some(self.addr)
    }

    fn place(seed: &Seed, key: &u32) -> Place {
        Place::host_v4(seed, *key)
    }

    fn load_key(region: &Region, index: usize) -> Option<u32> {
        let addr = load(&region.u32s()[index * WORDS4]);
        (addr != 0).then_some(addr)
    }

    fn load_if(region: &Region, index: usize, key: u32) -> Option<Listing> {
        if Self::load_key(region, index) != Some(key) {
            return None;
        }
        let listing = Self::load_listing(region, index);
        (Self::load_key(region, index) == Some(key)).then_some(listing)
    }

    fn load_listing(region: &Region, index: usize) -> Listing {
        let w = &region.u32s()[index * WORDS4..][..WORDS4];
        Listing {
            black: load(&w[1]),
            allow: load(&w[2]),
            meta: Meta::default(),
        }
    }

    fn load(region: &Region, index: usize) -> Self {
        let w = &region.u32s()[index * WORDS4..][..WORDS4];
        Self {
            addr: w[0].load(Relaxed),
            black: w[1].load(Relaxed),
            allow: w[2].load(Relaxed),
            hits: w[3].load(Relaxed),
        }
    }

    fn publish(self, region: &Region, index: usize) {
        let w = &region.u32s()[index * WORDS4..][..WORDS4];
        store(&w[1], self.black);
        store(&w[2], self.allow);
        store(&w[3], self.hits);
        store(&w[0], self.addr);
    }

    fn update(region: &Region, index: usize, listing: Listing) {
        let w = &region.u32s()[index * WORDS4..][..WORDS4];
        store(&w[1], listing.black);
        store(&w[2], listing.allow);
    }

    fn clear(region: &Region, index: usize) {
        let w = &region.u32s()[index * WORDS4..][..WORDS4];
        for word in w {
            store(word, 0);
        }
    }

    fn load_hits(region: &Region, index: usize) -> u32 {
        region.u32s()[index * WORDS4 + 3].load(Relaxed)
    }
}

/// The key of an entry of `WIDE`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct WideKey {
    /// Upper half of the masked address.
    pub(super) hi: u64,
    /// Lower half.
    pub(super) lo: u64,
    /// [`edge_common::table::len_key`].
    pub(super) len_key: u32,
}

/// Words of a [`SlotW`]: `hi` and `lo` are 64 bits wide, the others 32.
const LONG_WORDS_W: usize = size_of::<SlotW>() / 8;
const WORDS_W: usize = size_of::<SlotW>() / 4;
const META: usize = 4;
const BLACK: usize = 5;
const ALLOW: usize = 6;
const HITS: usize = 7;

/// Reads the meta word of a slot of `WIDE`, then its address: a slot changes
/// hands with a zero meta word, so that an address read after one that is not
/// zero belongs to it or to a later one.
fn load_wide_key(region: &Region, index: usize) -> Option<(WideKey, Meta)> {
    let meta = load(&region.u32s()[index * WORDS_W + META]);
    let long = &region.u64s()[index * LONG_WORDS_W..][..2];
    let slot = SlotW {
        hi: load(&long[0]),
        lo: load(&long[1]),
        meta,
        ..SlotW::default()
    };
    slot.key().map(|key| (key, Meta::of(meta)))
}

impl Slot for SlotW {
    type Key = WideKey;

    fn key(&self) -> Option<WideKey> {
        (self.meta != 0).then_some(WideKey {
            hi: self.hi,
            lo: self.lo,
            len_key: self.meta & KEY_MASK & 0xff,
        })
    }

    fn place(seed: &Seed, key: &WideKey) -> Place {
        Place::wide(seed, key.hi, key.lo, key.len_key)
    }

    fn load_key(region: &Region, index: usize) -> Option<WideKey> {
        load_wide_key(region, index).map(|(key, _)| key)
    }

    fn load_if(region: &Region, index: usize, key: WideKey) -> Option<Listing> {
        if Self::load_key(region, index) != Some(key) {
            return None;
        }
        let w = &region.u32s()[index * WORDS_W..][..WORDS_W];
        let (black, allow) = (load(&w[BLACK]), load(&w[ALLOW]));
        // Flags and profile from the very word that proves the match: one read
        // before may be that of a slot not yet filled.
        let (again, meta) = load_wide_key(region, index)?;
        (again == key).then_some(Listing { black, allow, meta })
    }

    fn load_listing(region: &Region, index: usize) -> Listing {
        let w = &region.u32s()[index * WORDS_W..][..WORDS_W];
        Listing {
            black: load(&w[BLACK]),
            allow: load(&w[ALLOW]),
            meta: Meta::of(load(&w[META])),
        }
    }

    fn load(region: &Region, index: usize) -> Self {
        let long = &region.u64s()[index * LONG_WORDS_W..][..2];
        let w = &region.u32s()[index * WORDS_W..][..WORDS_W];
        Self {
            hi: long[0].load(Relaxed),
            lo: long[1].load(Relaxed),
            meta: w[META].load(Relaxed),
            black: w[BLACK].load(Relaxed),
            allow: w[ALLOW].load(Relaxed),
            hits: w[HITS].load(Relaxed),
        }
    }

    fn publish(self, region: &Region, index: usize) {
        let long = &region.u64s()[index * LONG_WORDS_W..][..2];
        let w = &region.u32s()[index * WORDS_W..][..WORDS_W];
        // The address after the values: a reader that has seen the meta word of
        // the former entry and now sees this address may take it for a match.
        store(&w[BLACK], self.black);
        store(&w[ALLOW], self.allow);
        store(&w[HITS], self.hits);
        store(&long[0], self.hi);
        store(&long[1], self.lo);
        store(&w[META], self.meta);
    }

    fn update(region: &Region, index: usize, listing: Listing) {
        let w = &region.u32s()[index * WORDS_W..][..WORDS_W];
        let len_key = w[META].load(Relaxed) & KEY_MASK & 0xff;
        store(&w[META], listing.meta.word(len_key));
        store(&w[BLACK], listing.black);
        store(&w[ALLOW], listing.allow);
    }

    fn clear(region: &Region, index: usize) {
        let long = &region.u64s()[index * LONG_WORDS_W..][..2];
        let w = &region.u32s()[index * WORDS_W..][..WORDS_W];
        for word in &w[META..] {
            store(word, 0);
        }
        store(&long[0], 0);
        store(&long[1], 0);
    }

    fn load_hits(region: &Region, index: usize) -> u32 {
        region.u32s()[index * WORDS_W + HITS].load(Relaxed)
    }
}
