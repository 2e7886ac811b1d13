//! The one writer of the tables.

use std::{net::IpAddr, sync::Arc};

use edge_common::{
    addr::{Family, Prefix},
    hash::Seed,
    table::{Place, Slot4, SlotW, len_bit, len_key},
};

use super::{
    Geometry, Listing, Reader, Regions, TableError, Used,
    cuckoo::{Cuckoo, NoRoom},
    filters::{announce, footprint, set_bits},
    prefixes::{Prefixes, halves},
    sizes,
    slots::{Slot, WideKey},
    upkeep::SweepAt,
};

/// Writes hosts and prefixes into the tables, and knows what is in them.
pub struct Tables {
    pub(super) regions: Arc<Regions>,
    pub(super) geometry: Geometry,
    pub(super) seed: Seed,
    pub(super) hosts4: Cuckoo<Slot4>,
    pub(super) wide: Cuckoo<SlotW>,
    pub(super) prefixes: Prefixes,
    /// IPv4 hosts among the prefixes: those with flags or a profile.
    pub(super) hosts_as_prefixes: u32,
    /// Filter bits that removals left behind.
    pub(super) stale_hosts4: u64,
    pub(super) stale_hosts6: u64,
    pub(super) stale_prefixes: u64,
    pub(super) sweep: SweepAt,
    /// Old entries are still among the new ones: numbers of entries mean nothing.
    pub(super) refilling: bool,
}

/// Where a prefix lives.
pub(super) enum Home {
    /// `HOSTS4`, with its address as on the wire; flags and profile, if any, as a prefix.
    Host4(u32),
    /// `WIDE`, alone.
    Host6(WideKey),
    /// `WIDE`, with what covers it.
    Prefix,
}

pub(super) fn home(prefix: Prefix) -> Home {
    match prefix.addr() {
        IpAddr::V4(a) if prefix.is_host() && !a.is_unspecified() => {
            Home::Host4(u32::from_ne_bytes(a.octets()))
        }
        IpAddr::V6(_) if prefix.is_host() => wide_key(prefix).map_or(Home::Prefix, Home::Host6),
        _ => Home::Prefix,
    }
}

/// The key in `WIDE`; `None` for ::/0.
pub(super) fn wide_key(prefix: Prefix) -> Option<WideKey> {
    let v4 = prefix.family() == Family::V4;
    let (half, bit) = len_bit(v4, prefix.len())?;
    let (hi, lo) = match prefix.addr() {
        IpAddr::V4(a) => (0, u64::from(a.to_bits())),
        IpAddr::V6(a) => ((a.to_bits() >> 64) as u64, a.to_bits() as u64),
    };
    Some(WideKey {
        hi,
        lo,
        len_key: len_key(half, bit),
    })
}

/// The host of an entry of `WIDE`, `None` when it is a prefix.
pub(super) fn host6(key: WideKey) -> Option<Prefix> {
    let (half, bit) = len_bit(false, 128)?;
    (key.len_key == len_key(half, bit)).then(|| {
        let bits = u128::from(key.hi) << 64 | u128::from(key.lo);
        Prefix::new(IpAddr::V6(bits.into()), 128).ok()
    })?
}

const fn slot4(addr: u32, listing: Listing) -> Slot4 {
    Slot4 {
        addr,
        black: listing.black,
        allow: listing.allow,
        hits: 0,
    }
}

const fn slot_w(key: WideKey, listing: Listing) -> SlotW {
    SlotW {
        hi: key.hi,
        lo: key.lo,
        meta: listing.meta.word(key.len_key),
        black: listing.black,
        allow: listing.allow,
        hits: 0,
    }
}

impl Tables {
    /// The writer of the tables in `regions`, of these sizes and under this
    /// secret. There must be no other writer.
    ///
    /// What a former writer left in them stays in force until
    /// [`Tables::refill`], which must come before anything else when there may
    /// be something.
    ///
    /// # Errors
    /// [`TableError::Size`] when a region does not fit the geometry.
    pub fn new(regions: Regions, geometry: Geometry, seed: Seed) -> Result<Self, TableError> {
        for (region, (map, expected)) in regions.all().into_iter().zip(sizes(&geometry)) {
            if region.bytes() != expected {
                return Err(TableError::Size {
                    map,
                    expected,
                    actual: region.bytes(),
                });
            }
        }
        Ok(Self {
            hosts4: Cuckoo::adopt(&regions.hosts4, geometry.hosts4_buckets, seed),
            wide: Cuckoo::adopt(&regions.wide, geometry.wide_buckets, seed),
            regions: Arc::new(regions),
            geometry,
            seed,
            prefixes: Prefixes::default(),
            hosts_as_prefixes: 0,
            stale_hosts4: 0,
            stale_hosts6: 0,
            stale_prefixes: 0,
            sweep: SweepAt::Hosts4(0),
            refilling: false,
        })
    }

    /// The sizes.
    pub const fn geometry(&self) -> &Geometry {
        &self.geometry
    }

    /// A reader of the same memory, which may be used on other threads.
    pub fn reader(&self) -> Reader {
        Reader {
            regions: Arc::clone(&self.regions),
            geometry: self.geometry,
            seed: self.seed,
        }
    }

    /// How many entries there are.
    pub fn used(&self) -> Used {
        let prefixes = u32::try_from(self.prefixes.nodes()).unwrap_or(u32::MAX);
        Used {
            hosts_v4: self.hosts4.used(),
            hosts_v6: self.wide.used().saturating_sub(prefixes),
            prefixes,
        }
    }

    /// What is said of this host or prefix by itself.
    pub fn own(&self, prefix: Prefix) -> Listing {
        match home(prefix) {
            Home::Host4(addr) => {
                let r = &self.regions.hosts4;
                let host = self.hosts4.find(r, addr).map(|i| Slot4::load_listing(r, i));
                let meta = match self.hosts_as_prefixes {
                    0 => Listing::default(),
                    _ => self.prefixes.own(prefix),
                };
                host.unwrap_or_default().under(meta)
            }
            Home::Host6(key) => {
                let r = &self.regions.wide;
                let host = self.wide.find(r, key).map(|i| SlotW::load_listing(r, i));
                host.unwrap_or_default()
            }
            Home::Prefix => self.prefixes.own(prefix),
        }
    }

    /// Packets that matched this host, or of which this prefix was the longest
    /// match, since it was put in.
    pub fn hits(&self, prefix: Prefix) -> u32 {
        let wide = |prefix: Prefix| {
            let r = &self.regions.wide;
            wide_key(prefix)
                .and_then(|key| self.wide.find(r, key))
                .map_or(0, |i| SlotW::load_hits(r, i))
        };
        match home(prefix) {
            Home::Host4(addr) => {
                let r = &self.regions.hosts4;
                self.hosts4
                    .find(r, addr)
                    .map_or(0, |i| Slot4::load_hits(r, i))
            }
            Home::Prefix if prefix.family() == Family::V6 && prefix.len() == 0 => halves()
                .into_iter()
                .flatten()
                .fold(0, |sum: u32, half| sum.saturating_add(wide(half))),
            Home::Host6(_) | Home::Prefix => wide(prefix),
        }
    }

    /// The prefixes, not the hosts, that are in the tables and cover `prefix`
    /// or are it; longest first. Those that only flags or profiles are known
    /// of count as well. ::/0 appears as the half that covers.
    pub fn covering(&self, prefix: Prefix) -> impl Iterator<Item = Prefix> {
        self.prefixes.covering(prefix)
    }

    /// Sets what is said of a host or prefix by itself; empty removes it. In
    /// force when this returns; until then readers see what was before.
    ///
    /// # Errors
    /// [`TableError::Full`]; then nothing is changed, except that an IPv4 host
    /// may have its new stamps but not its new flags and profile.
    pub fn put(&mut self, prefix: Prefix, own: Listing) -> Result<(), TableError> {
        match home(prefix) {
            Home::Host4(addr) => {
                let (stamps, meta) = own.split();
                self.put_host4(addr, stamps)?;
                if self.hosts_as_prefixes == 0 && meta.is_empty() {
                    return Ok(());
                }
                let had = !self.prefixes.own(prefix).is_empty();
                self.put_prefix(prefix, meta)?;
                self.hosts_as_prefixes -= u32::from(had);
                self.hosts_as_prefixes += u32::from(!meta.is_empty());
                Ok(())
            }
            Home::Host6(key) => self.put_host6(key, own),
            Home::Prefix => self.put_prefix(prefix, own),
        }
    }

    /// The same for what was there a moment ago and shall be there again: looks
    /// for room harder, at the price that one look-up of a reader may miss an
    /// entry that moves.
    ///
    /// # Errors
    /// As [`Tables::put`].
    pub fn put_back(&mut self, prefix: Prefix, own: Listing) -> Result<(), TableError> {
        self.hosts4.moves_back(true);
        self.wide.moves_back(true);
        let done = self.put(prefix, own);
        self.hosts4.moves_back(false);
        self.wide.moves_back(false);
        done
    }

    pub(super) fn put_host4(&mut self, addr: u32, stamps: Listing) -> Result<(), TableError> {
        let r = &self.regions.hosts4;
        match self.hosts4.find(r, addr) {
            Some(index) if stamps.is_empty() => {
                self.hosts4.remove(r, index);
                self.stale_hosts4 += 1;
            }
            Some(index) => {
                Slot4::update(r, index, stamps);
                self.hosts4.touch(index);
            }
            None if stamps.is_empty() => {}
            None => {
                let most = self.geometry.capacity.hosts_v4;
                if !self.refilling && self.hosts4.used() >= most {
                    return Err(self.full_hosts4());
                }
                let inserted = self.hosts4.insert(r, slot4(addr, stamps));
                inserted.map_err(|NoRoom| self.full_hosts4())?;
                let place = Place::host_v4(&self.seed, addr);
                let bits = place.filter(self.geometry.hosts4_filter_words);
                set_bits(&self.regions.hosts4_filter, bits);
            }
        }
        Ok(())
    }

    pub(super) fn put_host6(&mut self, key: WideKey, own: Listing) -> Result<(), TableError> {
        let most = self.geometry.capacity.hosts_v6;
        let r = &self.regions.wide;
        match self.wide.find(r, key) {
            Some(index) if own.is_empty() => {
                self.wide.remove(r, index);
                self.stale_hosts6 += 1;
                Ok(())
            }
            None if own.is_empty() => Ok(()),
            None if !self.refilling && self.used().hosts_v6 >= most => Err(self.full_hosts6()),
            _ => match self.write_wide(key, own) {
                Ok(_) => Ok(()),
                Err(NoRoom) => Err(self.full_hosts6()),
            },
        }
    }

    pub(super) const fn full_hosts4(&self) -> TableError {
        TableError::Full {
            what: "IPv4 hosts",
            capacity: self.geometry.capacity.hosts_v4,
            key: "tables.hosts_v4",
        }
    }

    pub(super) const fn full_hosts6(&self) -> TableError {
        TableError::Full {
            what: "IPv6 hosts",
            capacity: self.geometry.capacity.hosts_v6,
            key: "tables.hosts_v6",
        }
    }

    pub(super) const fn full_prefixes(&self) -> TableError {
        TableError::Full {
            what: "prefixes",
            capacity: self.geometry.capacity.prefixes,
            key: "tables.prefixes",
        }
    }

    /// Inserts or updates an entry of `WIDE`; tells whether anything changed.
    pub(super) fn write_wide(&mut self, key: WideKey, says: Listing) -> Result<bool, NoRoom> {
        let r = &self.regions.wide;
        if let Some(index) = self.wide.find(r, key) {
            self.wide.touch(index);
            let changed = SlotW::load_listing(r, index) != says;
            if changed {
                SlotW::update(r, index, says);
            }
            return Ok(changed);
        }
        self.wide.insert(r, slot_w(key, says))?;
        let place = <SlotW as Slot>::place(&self.seed, &key);
        if host6(key).is_some() {
            let bits = place.filter(self.geometry.hosts6_filter_words);
            set_bits(&self.regions.hosts6_filter, bits);
        } else {
            let bits = place.filter(self.geometry.prefix_filter_words);
            set_bits(&self.regions.prefix_filter, bits);
        }
        Ok(true)
    }

    fn put_prefix(&mut self, prefix: Prefix, own: Listing) -> Result<(), TableError> {
        let former = self.prefixes.own(prefix);
        if former == own {
            return Ok(());
        }
        let nodes = self.prefixes.set(prefix, own);
        let nodes = nodes.map(|n| n.map(|node| (node, self.prefixes.cover(node))));
        let fits = self.prefixes.nodes() <= self.geometry.capacity.prefixes as usize;
        let done = if fits || own.is_empty() {
            nodes
                .into_iter()
                .flatten()
                .try_for_each(|(node, cover)| self.write_node(node, cover))
        } else {
            Err(NoRoom)
        };
        if done.is_ok() {
            for (node, cover) in nodes.into_iter().flatten() {
                self.write_below(node, cover);
            }
            return Ok(());
        }
        self.prefixes.set(prefix, former);
        for (node, cover) in nodes.into_iter().flatten() {
            // Puts back what was there before; that has its slot already.
            let restored = self.write_node(node, cover);
            debug_assert!(restored.is_ok());
        }
        Err(self.full_prefixes())
    }

    /// Makes the entry of a node what it must be, given what covers it.
    fn write_node(&mut self, node: Prefix, cover: Listing) -> Result<(), NoRoom> {
        let Some(key) = wide_key(node) else {
            return Ok(());
        };
        if let Some(own) = self.prefixes.node(node) {
            self.write_wide(key, own.under(cover))?;
            announce(&self.regions, node, &self.seed, &self.geometry);
        } else if let Some(index) = self.wide.find(&self.regions.wide, key) {
            self.wide.remove(&self.regions.wide, index);
            self.stale_prefixes += footprint(node);
        }
        Ok(())
    }

    /// Makes the entries of all nodes below one what they must be.
    fn write_below(&mut self, node: Prefix, cover: Listing) {
        let own = self.prefixes.node(node).unwrap_or_default();
        let above = own.under(cover);
        let (wide, region) = (&self.wide, &self.regions.wide);
        self.prefixes.push_down(node, above, |below, says| {
            let index = wide_key(below).and_then(|key| wide.find(region, key));
            let Some(index) = index else { return true };
            let changed = SlotW::load_listing(region, index) != says;
            if changed {
                SlotW::update(region, index, says);
            }
            changed
        });
    }
}
