//! The tables of the balancer: services, rings, backends and flows.
//!
//! What the program follows comes into force by one word, written last: a ring by that of
//! its service, a backend by its own.

use std::{
    collections::BTreeMap,
    os::fd::AsFd as _,
    path::Path,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicU64, Ordering::Relaxed, Ordering::Release},
    },
};

use aya::maps::{HashMap, Map, MapData, MapError, PerCpuArray};
use edge_common::{
    abi::{Counter, maps},
    balance::{
        Backend, BackendWord, Balance, FLOW_WAYS, FlowSlot, FlowWord, Idle, SLOTS_A_WORD,
        ring_words,
    },
    nat::{PORTS, PortSlot, Signals, Source},
    quic::IdKey,
};

use super::{error::DatapathError, maps::Maps};
use crate::memory::Region;

const BACKEND_WORDS: usize = size_of::<Backend>() / 8;
const SLOT_WORDS: usize = size_of::<FlowSlot>() / 8;
const SOURCE_WORDS: usize = size_of::<Source>() / 8;
const PORT_WORDS: usize = size_of::<PortSlot>() / 8;
/// A [`Counter`]: a foreign type cannot have aya's marker of plain data.
type CounterWords = [u64; size_of::<Counter>() / 8];
/// [`IdKey`], likewise.
type IdWords = [u64; size_of::<IdKey>() / 8];
/// [`Signals`], likewise.
type SignalWords = [u64; size_of::<Signals>() / 8];

/// Flows of the table at a moment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FlowCount {
    /// Slots of the table.
    pub capacity: u64,
    /// Slots with a flow that is not over.
    pub live: u64,
    /// Those of them, by the number of their backend.
    pub of_backends: Vec<u32>,
}

/// Ports of NAT in use at a moment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PortCount {
    /// Ports with a flow that is not over, by the number of their source address.
    pub live: Vec<u32>,
    /// Those of them, by the number of the flow's backend.
    pub of_backends: Vec<u32>,
}

/// The tables, open for writing. There must be only one.
pub struct BalanceTables {
    balances: Region,
    rings: Region,
    backends: Region,
    flows: Region,
    sources: Region,
    ports: Region,
    counters: PerCpuArray<MapData, CounterWords>,
    signals: PerCpuArray<MapData, SignalWords>,
    /// Only who has the tables to write them changes it.
    server_ids: Mutex<HashMap<MapData, IdWords, u32>>,
    slots: u32,
}

impl BalanceTables {
    /// From what opens a region, and another handle of a map, by name. `slots` are those
    /// of a ring.
    pub(super) fn new(
        region: impl Fn(&'static str) -> Result<Region, DatapathError>,
        map: impl Fn(&'static str) -> Result<Map, DatapathError>,
        slots: u32,
    ) -> Result<Self, DatapathError> {
        Ok(Self {
            balances: region(maps::BALANCES)?,
            rings: region(maps::RINGS)?,
            backends: region(maps::BACKENDS)?,
            flows: region(maps::FLOWS)?,
            sources: region(maps::SOURCES)?,
            ports: region(maps::PORTS_IN_USE)?,
            counters: map(maps::BACKEND_COUNTERS)?
                .try_into()
                .map_err(|e| DatapathError::map_access(maps::BACKEND_COUNTERS, e))?,
            signals: map(maps::BACKEND_SIGNALS)?
                .try_into()
                .map_err(|e| DatapathError::map_access(maps::BACKEND_SIGNALS, e))?,
            server_ids: HashMap::try_from(map(maps::SERVER_IDS)?)
                .map(Mutex::new)
                .map_err(|e| DatapathError::map_access(maps::SERVER_IDS, e))?,
            slots,
        })
    }

    /// How many rings there is room for; they are numbered from 1.
    pub fn rings(&self) -> u32 {
        let words = ring_words(self.slots).max(1) as usize;
        u32::try_from(self.rings.u64s().len() / words).unwrap_or(u32::MAX)
    }

    /// How many backends there is room for, number 0 included, which is none.
    pub fn room(&self) -> u32 {
        u32::try_from(self.backends.u64s().len() / BACKEND_WORDS).unwrap_or(u32::MAX)
    }

    /// How a service is balanced, by its index: comes into force at once.
    pub fn set_balance(&self, service: usize, balance: Balance) {
        if let Some(word) = self.balances.u64s().get(service) {
            word.store(balance.word(), Release);
        }
    }

    /// The ring of a service that is in force; 0: none.
    pub fn ring_of(&self, service: usize) -> u32 {
        let word = self.balances.u64s().get(service);
        word.map_or(0, |word| Balance::ring_of(word.load(Relaxed)))
    }

    /// How many services there is room for.
    pub fn services(&self) -> usize {
        self.balances.u64s().len()
    }

    /// Fills a ring that no service has, nor has had a moment ago, with the numbers of
    /// backends.
    pub fn write_ring(&self, ring: u32, numbers: &[u32]) {
        let words = ring_words(self.slots) as usize;
        let start = (ring as usize).saturating_sub(1) * words;
        let to = self.rings.u64s().get(start..).unwrap_or(&[]);
        for (word, two) in to.iter().zip(numbers.chunks(SLOTS_A_WORD as usize)) {
            let value = two
                .iter()
                .rev()
                .fold(0, |value, number| value << 32 | u64::from(*number));
            word.store(value, Relaxed);
        }
    }

    /// Slots of a ring.
    pub fn slots(&self) -> u32 {
        self.slots
    }

    /// Writes a backend. What it is comes before whether it takes packets.
    pub fn set_backend(&self, number: u32, backend: &Backend) {
        let Some(words) = self.backend_words(number) else {
            return;
        };
        // Another backend takes nothing of the one that had the number.
        let is_another = |word: &AtomicU64| {
            let present = BackendWord::generation_of(word.load(Relaxed));
            present != BackendWord::generation_of(backend.word)
        };
        if let Some(word) = words.get(WORD).filter(|word| is_another(word)) {
            word.store(0, Release);
        }
        let [address, source, hop] = [backend.address, backend.source, backend.hop];
        let values = address.into_iter().chain(source).chain(hop);
        let before = words.iter().zip(values);
        for (word, value) in before.chain(words.get(SPREAD).map(|word| (word, backend.spread))) {
            if word.load(Relaxed) != value {
                word.store(value, Relaxed);
            }
        }
        if let Some(word) = words.get(WORD)
            && word.load(Relaxed) != backend.word
        {
            word.store(backend.word, Release);
        }
    }

    /// The backend with a number takes packets no longer.
    pub fn end_backend(&self, number: u32) {
        if let Some(word) = self.backend_words(number).and_then(|words| words.get(WORD)) {
            // Its generation stays: who has the number next is another one.
            word.store(
                u64::from(BackendWord::generation_of(word.load(Relaxed))),
                Release,
            );
        }
    }

    /// A backend as it stands in the table.
    pub fn backend(&self, number: u32) -> Backend {
        let words = self.backend_words(number).unwrap_or(&[]);
        let at = |i: usize| words.get(i).map_or(0, |word| word.load(Relaxed));
        Backend {
            address: [at(0), at(1)],
            source: [at(2), at(3)],
            hop: [at(4), at(5)],
            word: at(WORD),
            spread: at(SPREAD),
        }
    }

    /// The generation of the backend with a number.
    pub fn generation(&self, number: u32) -> u8 {
        BackendWord::generation_of(self.backend(number).word)
    }

    fn backend_words(&self, number: u32) -> Option<&[AtomicU64]> {
        let start = number as usize * BACKEND_WORDS;
        self.backends.u64s().get(start..start + BACKEND_WORDS)
    }

    /// The backends that connection ids name, by number.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn server_ids(&self) -> Result<BTreeMap<IdKey, u32>, DatapathError> {
        let failed = |e| DatapathError::map_access(maps::SERVER_IDS, e);
        let entry = |entry: Result<(IdWords, u32), MapError>| {
            let ([id, rest], number) = entry.map_err(failed)?;
            let [a, b, c, d, layout @ ..] = rest.to_ne_bytes();
            let key = IdKey {
                id,
                service: u32::from_ne_bytes([a, b, c, d]),
                layout: u32::from_ne_bytes(layout),
            };
            Ok((key, number))
        };
        let server_ids = self.server_ids.lock();
        let server_ids = server_ids.unwrap_or_else(PoisonError::into_inner);
        server_ids.iter().map(entry).collect()
    }

    /// Makes the backends that connection ids name exactly these. What an id names changes
    /// in one step, and an id that stays is never missing.
    ///
    /// # Errors
    /// When the kernel refuses, for instance for want of room.
    pub fn set_server_ids(&self, wanted: &BTreeMap<IdKey, u32>) -> Result<(), DatapathError> {
        let failed = |e| DatapathError::map_access(maps::SERVER_IDS, e);
        let present = self.server_ids()?;
        let server_ids = self.server_ids.lock();
        let mut server_ids = server_ids.unwrap_or_else(PoisonError::into_inner);
        for key in present.keys().filter(|key| !wanted.contains_key(key)) {
            server_ids.remove(&id_words(key)).map_err(failed)?;
        }
        for (key, number) in wanted {
            if present.get(key) != Some(number) {
                server_ids
                    .insert(id_words(key), number, 0)
                    .map_err(failed)?;
            }
        }
        Ok(())
    }

    /// How many source addresses of each family NAT has room for.
    pub fn sources(&self) -> usize {
        self.ports.u64s().len() / PORT_WORDS / PORTS as usize
    }

    /// Makes the source addresses of NAT exactly these, by number. For each there must be a
    /// target of kind [`TARGET_SOURCE`](edge_common::defence::TARGET_SOURCE), or answers
    /// are not known. A flow keeps its number: with another address there it is cut off.
    pub fn set_sources(&self, sources: &[Source]) {
        let wanted = sources
            .iter()
            .flat_map(|source| [source.v4, source.v6])
            .flatten()
            .chain(std::iter::repeat(0));
        for (word, value) in self.sources.u64s().iter().zip(wanted) {
            if word.load(Relaxed) != value {
                word.store(value, Relaxed);
            }
        }
    }

    /// Counts the ports of NAT in use. `now` is in steps of
    /// [`edge_common::balance::AGE_SHIFT`].
    pub fn count_ports(&self, now: u32, idle: Idle) -> PortCount {
        let mut count = PortCount {
            live: vec![0; self.sources()],
            of_backends: vec![0; self.room() as usize],
        };
        let generations = self.generations();
        let addresses = self.ports.u64s().chunks_exact(PORT_WORDS * PORTS as usize);
        for (live, ports) in count.live.iter_mut().zip(addresses) {
            for slot in ports.chunks_exact(PORT_WORDS) {
                let [word, ..] = slot else { continue };
                let word = word.load(Relaxed);
                if word == 0 || FlowWord::is_claimed(word) || FlowWord::is_over(word, now, idle) {
                    continue;
                }
                *live += 1;
                let number = FlowWord::backend(word) as usize;
                // Of one that had the number before it has nothing.
                if generations.get(number) == Some(&FlowWord::generation(word))
                    && let Some(n) = count.of_backends.get_mut(number)
                {
                    *n += 1;
                }
            }
        }
        count
    }

    /// What a backend said to SYNs by NAT.
    ///
    /// # Errors
    /// When the kernel refuses to read the map.
    pub fn signals(&self, number: u32) -> Result<Signals, DatapathError> {
        let failed = |e: MapError| DatapathError::map_access(maps::BACKEND_SIGNALS, e);
        let mut sum = Signals::default();
        let cpus = self.signals.get(&number, 0).map_err(failed)?;
        for [syns, syn_acks, resets] in cpus.iter() {
            sum.syns = sum.syns.wrapping_add(*syns);
            sum.syn_acks = sum.syn_acks.wrapping_add(*syn_acks);
            sum.resets = sum.resets.wrapping_add(*resets);
        }
        Ok(sum)
    }

    /// Packets and bytes that went to a backend.
    ///
    /// # Errors
    /// When the kernel refuses to read the map.
    pub fn counter(&self, number: u32) -> Result<Counter, DatapathError> {
        let failed = |e: MapError| DatapathError::map_access(maps::BACKEND_COUNTERS, e);
        let mut sum = Counter::default();
        let cpus = self.counters.get(&number, 0).map_err(failed)?;
        for [packets, bytes] in cpus.iter() {
            sum.packets = sum.packets.wrapping_add(*packets);
            sum.bytes = sum.bytes.wrapping_add(*bytes);
        }
        Ok(sum)
    }

    /// The generations of all backends, by number.
    fn generations(&self) -> Vec<u8> {
        (0..self.room()).map(|n| self.generation(n)).collect()
    }

    /// Counts the flows. `now` is in steps of [`edge_common::balance::AGE_SHIFT`].
    pub fn count_flows(&self, now: u32, idle: Idle) -> FlowCount {
        let words = self.flows.u64s();
        let generations = self.generations();
        let mut count = FlowCount {
            capacity: (words.len() / SLOT_WORDS) as u64,
            live: 0,
            of_backends: vec![0; self.room() as usize],
        };
        for slot in words.chunks_exact(SLOT_WORDS) {
            let [tag, word] = slot else { continue };
            if tag.load(Relaxed) <= 1 {
                continue;
            }
            let word = word.load(Relaxed);
            if FlowWord::is_over(word, now, idle) {
                continue;
            }
            count.live += 1;
            let number = FlowWord::backend(word) as usize;
            // Of one that had the number before it has nothing.
            if generations.get(number) == Some(&FlowWord::generation(word))
                && let Some(n) = count.of_backends.get_mut(number)
            {
                *n += 1;
            }
        }
        count
    }
}

/// Copies the pinned table of backends into a larger one that takes its place, so that flows
/// find theirs. Does nothing when there is none.
pub(super) fn carry_over(pinned: &Path, maps: &Maps) -> Result<(), DatapathError> {
    let failed = |e| DatapathError::map_access(maps::BACKENDS, e);
    if !pinned.exists() {
        return Ok(());
    }
    let old = MapData::from_pin(pinned).map_err(failed)?;
    let entries = old.info().map_err(failed)?.max_entries() as usize;
    let old =
        Region::map_array(old.fd().as_fd(), entries * size_of::<Backend>()).map_err(|source| {
            DatapathError::Memory {
                map: maps::BACKENDS,
                source,
            }
        })?;
    let new = maps.region(maps::BACKENDS)?;
    for (to, from) in new.u64s().iter().zip(old.u64s()) {
        to.store(from.load(Relaxed), Relaxed);
    }
    Ok(())
}

/// The source addresses of NAT in a table, by number.
pub(super) fn sources(table: &Region) -> Vec<Source> {
    let sources = table.u64s().chunks_exact(SOURCE_WORDS);
    let read = |words: &[AtomicU64]| match words {
        [a, b, c, d] => {
            let [a, b, c, d] = [a, b, c, d].map(|word| word.load(Relaxed));
            Source {
                v4: [a, b],
                v6: [c, d],
            }
        }
        _ => Source::default(),
    };
    sources.map(read).collect()
}

fn id_words(key: &IdKey) -> IdWords {
    let [a, b, c, d] = key.service.to_ne_bytes();
    let [e, f, g, h] = key.layout.to_ne_bytes();
    [key.id, u64::from_ne_bytes([a, b, c, d, e, f, g, h])]
}

/// The word of a [`Backend`] that says whether it takes packets.
const WORD: usize = 6;
/// And that of its spread.
const SPREAD: usize = 7;

const _: () = assert!(size_of::<FlowSlot>() * FLOW_WAYS == 64);
