//! The tables of the flood defence: services, and where they are reached.

use std::{
    collections::BTreeMap,
    sync::atomic::{AtomicU64, Ordering::Relaxed},
};

use aya::maps::{HashMap, Map, MapData, MapError, PerCpuArray, PerCpuValues};
use edge_common::{
    abi::maps,
    balance::{VIP_WORDS, vip_bit},
    defence::{
        PORT_WORDS, Ports, SERVICE_COUNTERS, Service, TARGET_FORWARDED, TARGET_SOURCE, Target,
        TargetKey, WSCALE_UNKNOWN, When, port_bit, tags,
    },
    gcra::Limit,
    hash::Seed,
    parse::proto,
};

use super::error::DatapathError;
use crate::memory::Region;

/// 64-bit words of a [`Service`], and of the part that the daemon writes.
const WORDS: usize = size_of::<Service>() / 8;
const OWN_WORDS: usize = WORDS / 2;

/// A [`TargetKey`] and a [`Target`]: foreign types cannot have aya's marker of plain data.
type KeyWords = [u64; size_of::<TargetKey>() / 8];
type TargetWords = [u64; size_of::<Target>() / 8];

/// What the program wrote of a service.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ServiceState {
    /// TAT of incomplete handshakes, in [`edge_common::gcra::ticks`].
    pub pressure: u64,
    /// The attack lasts until then at least, nanoseconds of `CLOCK_MONOTONIC`; in the
    /// past: there is none.
    pub attack_until: u64,
    /// When the last attack was found, likewise; 0: never.
    pub attack_since: u64,
}

/// The tables, open for writing. There must be only one.
pub struct ServiceTables {
    services: Region,
    ports: Region,
    vips: Region,
    verified: Region,
    targets: HashMap<MapData, KeyWords, TargetWords>,
    counters: PerCpuArray<MapData, [u64; SERVICE_COUNTERS]>,
    /// By index: whether TCP and UDP packets for the service are looked at.
    asks: Vec<[bool; 2]>,
}

impl ServiceTables {
    /// From what opens a region, and another handle of a map, by name.
    pub(super) fn new(
        region: impl Fn(&'static str) -> Result<Region, DatapathError>,
        map: impl Fn(&'static str) -> Result<Map, DatapathError>,
    ) -> Result<Self, DatapathError> {
        Ok(Self {
            services: region(maps::SERVICES)?,
            ports: region(maps::PORTS)?,
            vips: region(maps::VIPS)?,
            verified: region(maps::VERIFIED)?,
            targets: map(maps::TARGETS)?
                .try_into()
                .map_err(|e| DatapathError::map_access(maps::TARGETS, e))?,
            counters: map(maps::SERVICE_COUNTERS)?
                .try_into()
                .map_err(|e| DatapathError::map_access(maps::SERVICE_COUNTERS, e))?,
            asks: Vec::new(),
        })
    }

    /// How many services there is room for.
    pub fn room(&self) -> usize {
        self.services.bytes() / size_of::<Service>()
    }

    /// The generation of each service by its index, 0 for none.
    pub fn generations(&self) -> Vec<u32> {
        let slots = self.services.u64s().chunks_exact(WORDS);
        let generation = |slot: &[AtomicU64]| {
            let word = slot.get(GENERATION).map_or(0, |word| word.load(Relaxed));
            let [.., a, b, c, d] = word.to_ne_bytes();
            u32::from_ne_bytes([a, b, c, d])
        };
        slots.map(generation).collect()
    }

    /// Writes the daemon's part of each service by its index. One whose
    /// generation is another than before starts without a state, and its counters
    /// at 0.
    ///
    /// # Errors
    /// When there is no room for so many, or the kernel refuses.
    pub fn set_services(&mut self, services: &[Service]) -> Result<(), DatapathError> {
        if services.len() > self.room() {
            return Err(DatapathError::Map {
                map: maps::SERVICES,
                why: format!("has room for {}, not {}", self.room(), services.len()),
            });
        }
        let asks = |s: &Service| [s.when != When::Off as u32, s.reflection != Limit::NONE];
        self.asks = services.iter().map(asks).collect();
        let slots = self.services.u64s().chunks_exact(WORDS);
        let rest = std::iter::repeat(&Service::OFF);
        for (index, (slot, service)) in slots.zip(services.iter().chain(rest)).enumerate() {
            let words = own_words(service);
            let (own, state) = slot.split_at(OWN_WORDS);
            let former = own.get(GENERATION).map_or(0, |w| w.load(Relaxed) >> 32);
            let is_another = Some(former) != words.get(GENERATION).map(|w| w >> 32);
            if is_another {
                // Off until all of it is there.
                if let Some(when) = own.get(WHEN) {
                    when.store(0, Relaxed);
                }
                state.iter().for_each(|word| word.store(0, Relaxed));
                if former != 0 {
                    clear(&mut self.counters, index)?;
                }
            }
            for (word, value) in own.iter().zip(words) {
                if word.load(Relaxed) != value {
                    word.store(value, Relaxed);
                }
            }
        }
        Ok(())
    }

    /// Makes the targets of the services that were set before, and the ports of reflectors (host byte order), exactly
    /// these; targets that stay keep what the program wrote in them. With the secret of the
    /// hashes the filter is made of the addresses of balanced services, which have a target
    /// of ICMP, and of those that NAT sends from.
    ///
    /// # Errors
    /// When the kernel refuses, for instance for want of room.
    pub fn set_targets(
        &mut self,
        wanted: &BTreeMap<TargetKey, Target>,
        reflectors: &[u16],
        seed: &Seed,
    ) -> Result<(), DatapathError> {
        let failed = |e| DatapathError::map_access(maps::TARGETS, e);
        let mut present = BTreeMap::new();
        for entry in self.targets.iter() {
            let (key, value) = entry.map_err(failed)?;
            present.insert(key, value);
        }
        let wanted_words: BTreeMap<KeyWords, &Target> =
            wanted.iter().map(|(k, t)| (key_words(k), t)).collect();
        let gone = present.keys().filter(|k| !wanted_words.contains_key(*k));
        for key in gone {
            self.targets.remove(key).map_err(failed)?;
        }
        for (key, target) in &wanted_words {
            let [head, _] = target_words(target);
            if present.get(key).map(|[h, _]| *h) != Some(head) {
                self.targets.insert(key, [head, 0], 0).map_err(failed)?;
            }
        }
        let mut vips = vec![[0u64; 2]; VIP_WORDS as usize];
        for (key, target) in wanted {
            let (word, bit) = vip_bit(seed, key.address);
            let Some([services, sources]) = vips.get_mut(word as usize) else {
                continue;
            };
            if target.kind == TARGET_SOURCE {
                *sources |= bit;
            } else if key.proto == proto::ICMP {
                *services |= bit;
            }
        }
        for (word, value) in self.vips.u64s().iter().zip(vips.into_iter().flatten()) {
            if word.load(Relaxed) != value {
                word.store(value, Relaxed);
            }
        }
        // A bit that is set leads to a look-up that finds what there is; without one nothing
        // is asked of a packet.
        let mut bits = vec![0u64; PORT_WORDS as usize];
        for (key, target) in wanted {
            let [tcp, udp] = self.asks.get(target.service as usize).unwrap_or(&[true; 2]);
            let set = match key.proto {
                proto::TCP if *tcp => Ports::Tcp,
                proto::UDP if *udp => Ports::Udp,
                _ => continue,
            };
            let port = u16::from_be(key.port);
            let (word, bit) = port_bit(set, port);
            if port == 0 && target.kind == TARGET_FORWARDED {
                // All of them.
                let (last, _) = port_bit(set, u16::MAX);
                let all = bits.get_mut(word as usize..=last as usize);
                all.unwrap_or_default().fill(u64::MAX);
            } else if let Some(word) = bits.get_mut(word as usize) {
                *word |= bit;
            }
        }
        for &port in reflectors {
            let (word, bit) = port_bit(Ports::Reflectors, port);
            if let Some(word) = bits.get_mut(word as usize) {
                *word |= bit;
            }
        }
        for (word, value) in self.ports.u64s().iter().zip(bits) {
            if word.load(Relaxed) != value {
                word.store(value, Relaxed);
            }
        }
        Ok(())
    }

    /// The window scales in the targets, where they are known.
    ///
    /// # Errors
    /// When the kernel refuses to read the map.
    pub fn window_scales(&self) -> Result<BTreeMap<TargetKey, u8>, DatapathError> {
        let mut scales = BTreeMap::new();
        for entry in self.targets.iter() {
            let (key, [head, _]) =
                entry.map_err(|e| DatapathError::map_access(maps::TARGETS, e))?;
            let [.., wscale, _] = head.to_ne_bytes();
            if wscale != WSCALE_UNKNOWN {
                scales.insert(key_of(key), wscale);
            }
        }
        Ok(scales)
    }

    /// How many sources are verified at a time (nanoseconds of the program's clock), each for
    /// `ttl` steps of [`tags::VERIFIED_SHIFT`], and how many there is room for.
    pub fn verified(&self, now_ns: u64, ttl: u32) -> (u64, u64) {
        let words = self.verified.u64s();
        let now = tags::word(0, now_ns, tags::VERIFIED_SHIFT);
        let is_young = |word: &&AtomicU64| {
            let word = word.load(Relaxed);
            word != 0 && u32::from(tags::age(word, now)) <= ttl
        };
        (
            words.iter().filter(is_young).count() as u64,
            words.len() as u64,
        )
    }

    /// What the program wrote of a service.
    pub fn state(&self, index: usize) -> ServiceState {
        let slots = self.services.u64s();
        let at = |word: usize| {
            slots
                .get(index * WORDS + OWN_WORDS + word)
                .map_or(0, |word: &AtomicU64| word.load(Relaxed))
        };
        ServiceState {
            pressure: at(0),
            attack_until: at(1),
            attack_since: at(2),
        }
    }

    /// The counters of a service, summed over the CPUs, by
    /// [`edge_common::defence::ServiceCounter`].
    ///
    /// # Errors
    /// When the kernel refuses to read the map.
    pub fn counters(&self, index: usize) -> Result<[u64; SERVICE_COUNTERS], DatapathError> {
        let failed = |e| DatapathError::map_access(maps::SERVICE_COUNTERS, e);
        let index = u32::try_from(index).map_err(|_| failed(MapError::KeyNotFound))?;
        let mut sum = [0u64; SERVICE_COUNTERS];
        for counters in self.counters.get(&index, 0).map_err(failed)?.iter() {
            for (sum, n) in sum.iter_mut().zip(counters) {
                *sum = sum.wrapping_add(*n);
            }
        }
        Ok(sum)
    }
}

/// Sets the counters of a service to 0, on all CPUs.
fn clear(
    counters: &mut PerCpuArray<MapData, [u64; SERVICE_COUNTERS]>,
    index: usize,
) -> Result<(), DatapathError> {
    let failed = |e| DatapathError::map_access(maps::SERVICE_COUNTERS, e);
    let index = u32::try_from(index).map_err(|_| failed(MapError::KeyNotFound))?;
    let cpus = aya::util::nr_cpus().map_err(|(_, e)| failed(MapError::IoError(e)))?;
    let zeros = PerCpuValues::try_from(vec![[0; SERVICE_COUNTERS]; cpus])
        .map_err(|e| failed(MapError::IoError(e)))?;
    counters.set(index, zeros, 0).map_err(failed)
}

/// The word with [`Service::when`], and that with [`Service::generation`].
const WHEN: usize = 5;
const GENERATION: usize = 6;

/// The part of a service that the daemon writes, as the program reads it.
fn own_words(service: &Service) -> [u64; OWN_WORDS] {
    let pair = |low: u32, high: u32| {
        let ([a, b, c, d], [e, f, g, h]) = (low.to_ne_bytes(), high.to_ne_bytes());
        u64::from_ne_bytes([a, b, c, d, e, f, g, h])
    };
    let [a, b] = service.incomplete.words();
    let [c, d] = service.reflection.words();
    [
        a,
        b,
        c,
        d,
        service.hold_ns,
        pair(service.when, service.dry_run),
        pair(service.credit, service.generation),
        0,
    ]
}

fn key_words(key: &TargetKey) -> KeyWords {
    let [port_a, port_b] = key.port.to_ne_bytes();
    let [a, b] = key.address;
    [
        a,
        b,
        u64::from_ne_bytes([port_a, port_b, key.proto, 0, 0, 0, 0, 0]),
    ]
}

fn key_of([a, b, last]: KeyWords) -> TargetKey {
    let [port_a, port_b, proto, ..] = last.to_ne_bytes();
    TargetKey {
        address: [a, b],
        port: u16::from_ne_bytes([port_a, port_b]),
        proto,
        pad: [0; 5],
    }
}

fn target_words(target: &Target) -> TargetWords {
    let [a, b, c, d] = target.service.to_ne_bytes();
    let [e, f] = target.mss.to_ne_bytes();
    [
        u64::from_ne_bytes([a, b, c, d, e, f, target.wscale, target.kind]),
        target.marked_at,
    ]
}

#[cfg(test)]
mod tests {
    use super::*;
    use edge_common::gcra::Limit;

    #[test]
    fn words_are_those_of_the_layout() {
        let service = Service {
            incomplete: Limit::per_second(7, 8).unwrap(),
            reflection: Limit::per_second(9, 10).unwrap(),
            hold_ns: 1,
            when: 2,
            dry_run: 3,
            credit: 4,
            generation: 5,
            ..Service::OFF
        };
        // SAFETY: a Service is repr(C) without padding, so that it is plain words.
        let words: [u64; WORDS] = unsafe { std::mem::transmute(service) };
        assert_eq!(own_words(&service), words[..OWN_WORDS]);
        let key = TargetKey {
            address: [1, 2],
            port: 0x0102,
            proto: 6,
            pad: [0; 5],
        };
        // SAFETY: as above.
        let words: KeyWords = unsafe { std::mem::transmute(key) };
        assert_eq!(key_words(&key), words);
        assert_eq!(key_of(words), key);
        let target = Target {
            service: 0x0102_0304,
            mss: 0x0506,
            wscale: 7,
            kind: 8,
            marked_at: 9,
        };
        // SAFETY: as above.
        let words: TargetWords = unsafe { std::mem::transmute(target) };
        assert_eq!(target_words(&target), words);
    }
}
