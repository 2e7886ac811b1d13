//! The maps: what each must look like, and typed access to what is in them.

use std::{collections::BTreeMap, io, net::Ipv4Addr, os::fd::AsFd, path::Path};

use aya::maps::{
    HashMap, Map, MapData, MapError, MapInfo, MapType, PerCpuArray, PerCpuValues, RingBuf,
};
use edge_common::{
    abi::{
        COUNTER_ENTRIES, Config, Counter, CounterCell, LimiterBucket, Mode, STATS_ENTRIES,
        TableStat, counter_index, maps,
    },
    balance::{Backend, FlowBucket, VIP_WORDS, ring_words},
    defence::{
        ATTEMPTS, DEFENCE_WORDS, HANDSHAKES, PORT_WORDS, SKETCH_WORDS, Service, ServiceCounters,
        Target, TargetKey, tags::TagBucket,
    },
    nat,
    quic::IdKey,
    reason::Reason,
    table::{BITMAP24_WORDS, Bucket4, BucketW, LENGTHS_ENTRIES, LongLengths},
};

use super::error::DatapathError;
use crate::memory::Region;

/// The most ARP bindings.
pub const MAX_ARP_BINDINGS: u32 = 4096;

/// `BPF_F_MMAPABLE`.
const MAPPABLE: u32 = 1 << 10;

/// What a map must look like for the program of this build to use it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Spec {
    pub(super) name: &'static str,
    kind: MapType,
    key: u32,
    value: u32,
    pub(super) entries: u32,
    flags: u32,
}

impl Spec {
    const fn table(name: &'static str, value: usize, entries: u32) -> Self {
        Self {
            name,
            kind: MapType::Array,
            key: 4,
            value: value as u32,
            entries,
            flags: MAPPABLE,
        }
    }

    /// Why a map is not what it must be; `None` when it is.
    pub(super) fn mismatch(&self, info: &MapInfo) -> Option<String> {
        let kind = info.map_type().ok();
        if kind != Some(self.kind) {
            return Some(format!("is of type {kind:?}, not {:?}", self.kind));
        }
        let facts = [
            ("key size", info.key_size(), self.key),
            ("value size", info.value_size(), self.value),
            ("entries", info.max_entries(), self.entries),
            ("flags", info.map_flags(), self.flags),
        ];
        facts
            .iter()
            .find(|(_, is, must)| is != must)
            .map(|(what, is, must)| format!("has {what} {is}, not {must}"))
    }

    /// Whether the map is one of those that only fit together: the policy tables.
    pub(super) fn is_policy(&self) -> bool {
        POLICY.contains(&self.name)
    }
}

/// The tables of the lists, which [`crate::tables::Tables`] fills; a look-up goes through several of
/// them.
pub const POLICY: [&str; 9] = [
    maps::HOSTS4,
    maps::HOSTS4_FILTER,
    maps::WIDE,
    maps::HOSTS6_FILTER,
    maps::PREFIX_FILTER,
    maps::BITMAP24,
    maps::LENGTHS4,
    maps::LENGTHS6,
    maps::LENGTHS6_LONG,
];

/// One a map.
pub(super) type Specs = [Spec; maps::ALL.len()];

/// What all maps must look like. `events` is the size of the ring buffer in
/// bytes, `targets` the room for addresses and ports of services.
pub(super) fn specs(config: &Config, events: u32, targets: u32) -> Specs {
    let word = size_of::<u64>();
    // Without services their tables take no room.
    let when_on = |entries| if config.services == 0 { 1 } else { entries };
    let when_balanced = |entries: u32| if config.rings == 0 { 1 } else { entries.max(1) };
    let when_nat = |entries| {
        if config.snat == 0 {
            1
        } else {
            when_balanced(entries)
        }
    };
    [
        Spec {
            kind: MapType::PerCpuArray,
            flags: 0,
            ..Spec::table(maps::COUNTERS, size_of::<CounterCell>(), COUNTER_ENTRIES)
        },
        Spec {
            kind: MapType::PerCpuArray,
            flags: 0,
            ..Spec::table(maps::STATS, word, STATS_ENTRIES)
        },
        Spec {
            flags: 0,
            ..Spec::table(maps::SAMPLE_BUDGET, word, Reason::COUNT as u32)
        },
        Spec {
            name: maps::EVENTS,
            kind: MapType::RingBuf,
            key: 0,
            value: 0,
            // The kernel takes whole pages and powers of two only.
            entries: events.next_power_of_two().max(page_size()),
            flags: 0,
        },
        Spec::table(maps::HOSTS4, size_of::<Bucket4>(), config.hosts4_buckets),
        Spec::table(maps::HOSTS4_FILTER, word, config.hosts4_filter_words),
        Spec::table(maps::WIDE, size_of::<BucketW>(), config.wide_buckets),
        Spec::table(maps::HOSTS6_FILTER, word, config.hosts6_filter_words),
        Spec::table(maps::PREFIX_FILTER, word, config.prefix_filter_words),
        Spec::table(maps::BITMAP24, word, BITMAP24_WORDS),
        Spec::table(maps::LENGTHS4, word, LENGTHS_ENTRIES),
        Spec::table(maps::LENGTHS6, word, LENGTHS_ENTRIES),
        Spec::table(
            maps::LENGTHS6_LONG,
            size_of::<LongLengths>(),
            config.long_lengths,
        ),
        Spec::table(
            maps::LIMITER,
            size_of::<LimiterBucket>(),
            config.limiter_buckets,
        ),
        Spec {
            name: maps::ARP_BINDINGS,
            kind: MapType::Hash,
            key: 4,
            value: 8,
            entries: MAX_ARP_BINDINGS,
            flags: 0,
        },
        Spec::table(maps::PORTS, word, PORT_WORDS),
        Spec {
            name: maps::TARGETS,
            kind: MapType::Hash,
            key: size_of::<TargetKey>() as u32,
            value: size_of::<Target>() as u32,
            // Of a balanced service each address has up to three more; a number of NAT has two.
            entries: when_on(match config.rings {
                0 => targets.max(1),
                _ => targets
                    .max(1)
                    .saturating_mul(4)
                    .saturating_add(config.snat.saturating_mul(2)),
            }),
            flags: 0,
        },
        Spec::table(maps::SERVICES, size_of::<Service>(), config.services.max(1)),
        Spec {
            kind: MapType::PerCpuArray,
            flags: 0,
            ..Spec::table(
                maps::SERVICE_COUNTERS,
                size_of::<ServiceCounters>(),
                config.services.max(1),
            )
        },
        Spec::table(maps::DEFENCE, word, DEFENCE_WORDS),
        Spec::table(
            maps::VERIFIED,
            size_of::<TagBucket>(),
            config.verified_buckets.max(1),
        ),
        Spec::table(maps::ATTEMPTS, word, when_on(ATTEMPTS)),
        Spec::table(maps::HANDSHAKES, word, when_on(HANDSHAKES)),
        Spec::table(
            maps::SKETCH,
            word,
            if config.hitters_mode == Mode::Off as u32 {
                1
            } else {
                SKETCH_WORDS
            },
        ),
        Spec::table(maps::BALANCES, word, when_balanced(config.services)),
        Spec::table(
            maps::RINGS,
            word,
            config.rings.saturating_mul(ring_words(config.slots)).max(1),
        ),
        Spec::table(
            maps::BACKENDS,
            size_of::<Backend>(),
            when_balanced(config.backends),
        ),
        Spec {
            kind: MapType::PerCpuArray,
            flags: 0,
            ..Spec::table(
                maps::BACKEND_COUNTERS,
                size_of::<Counter>(),
                when_balanced(config.backends),
            )
        },
        Spec::table(
            maps::FLOWS,
            size_of::<FlowBucket>(),
            when_balanced(config.flow_buckets),
        ),
        Spec::table(maps::VIPS, 2 * word, VIP_WORDS),
        Spec::table(
            maps::SOURCES,
            size_of::<nat::Source>(),
            when_nat(config.snat),
        ),
        Spec::table(
            maps::PORTS_IN_USE,
            size_of::<nat::PortSlot>(),
            when_nat(config.snat.saturating_mul(nat::PORTS)),
        ),
        Spec {
            kind: MapType::PerCpuArray,
            flags: 0,
            ..Spec::table(
                maps::BACKEND_SIGNALS,
                size_of::<nat::Signals>(),
                when_nat(config.backends),
            )
        },
        Spec {
            name: maps::SERVER_IDS,
            kind: MapType::Hash,
            key: size_of::<IdKey>() as u32,
            value: size_of::<u32>() as u32,
            entries: when_balanced(config.server_ids),
            flags: 0,
        },
    ]
}

/// A [`CounterCell`]: a foreign type cannot have aya's marker of plain data.
type CellWords = [u64; size_of::<CounterCell>() / size_of::<u64>()];

fn page_size() -> u32 {
    // SAFETY: no pointers are passed.
    let size = unsafe { libc::sysconf(libc::_SC_PAGESIZE) };
    u32::try_from(size).unwrap_or(4096)
}

/// What became of one interface's packets, by reason.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InterfaceCounters {
    /// Packets and bytes that ended with each reason; index is [`Reason::index`].
    pub ended: [Counter; Reason::COUNT],
    /// What checks in dry run would have dropped for each reason.
    pub would_drop: [Counter; Reason::COUNT],
}

impl InterfaceCounters {
    /// What ended with a reason.
    pub fn ended(&self, reason: Reason) -> Counter {
        at(&self.ended, reason)
    }

    /// What a check in dry run would have dropped for a reason.
    pub fn would_drop(&self, reason: Reason) -> Counter {
        at(&self.would_drop, reason)
    }
}

/// One counter of a block, summed over the CPUs.
fn sum(
    array: &PerCpuArray<&MapData, CellWords>,
    block: u32,
    would_drop: bool,
    reason: Reason,
) -> Result<Counter, DatapathError> {
    let values = array
        .get(&counter_index(block, would_drop, reason), 0)
        .map_err(|e| DatapathError::map_access(maps::COUNTERS, e))?;
    let mut counter = Counter::default();
    for [packets, bytes, ..] in values.iter() {
        counter.packets = counter.packets.wrapping_add(*packets);
        counter.bytes = counter.bytes.wrapping_add(*bytes);
    }
    Ok(counter)
}

fn at(counters: &[Counter; Reason::COUNT], reason: Reason) -> Counter {
    counters
        .get(reason.index() as usize)
        .copied()
        .unwrap_or_default()
}

/// The open maps. Cheap reads from any thread; writes are the engine's.
#[derive(Debug)]
pub(super) struct Maps {
    maps: BTreeMap<&'static str, Map>,
    specs: Specs,
}

impl Maps {
    /// From the maps by name, all of which must be there and as specified.
    pub(super) fn new(
        specs: Specs,
        mut open: impl FnMut(&'static str) -> Result<Map, DatapathError>,
    ) -> Result<Self, DatapathError> {
        let mut maps = BTreeMap::new();
        for spec in &specs {
            let map = open(spec.name)?;
            let info = data(&map)
                .ok_or_else(|| missing(spec.name))?
                .info()
                .map_err(|e| DatapathError::map_access(spec.name, e))?;
            if let Some(why) = spec.mismatch(&info) {
                return Err(DatapathError::Map {
                    map: spec.name,
                    why: format!("{why}; object and daemon are not of one build"),
                });
            }
            maps.insert(spec.name, map);
        }
        Ok(Self { maps, specs })
    }

    fn map(&self, name: &'static str) -> Result<&Map, DatapathError> {
        self.maps.get(name).ok_or_else(|| missing(name))
    }

    /// Maps a table into memory.
    pub(super) fn region(&self, name: &'static str) -> Result<Region, DatapathError> {
        let memory = |source: io::Error| DatapathError::Memory { map: name, source };
        let map = data(self.map(name)?).ok_or_else(|| missing(name))?;
        let spec = self
            .specs
            .iter()
            .find(|s| s.name == name)
            .ok_or_else(|| missing(name))?;
        let bytes = (spec.entries as usize)
            .checked_mul(spec.value as usize)
            .ok_or_else(|| memory(io::ErrorKind::OutOfMemory.into()))?;
        Region::map_array(map.fd().as_fd(), bytes).map_err(memory)
    }

    /// The counters of a block, summed over the CPUs.
    pub(super) fn counters(&self, block: u32) -> Result<InterfaceCounters, DatapathError> {
        let array = self.counter_cells()?;
        let read = |would_drop| -> Result<[Counter; Reason::COUNT], DatapathError> {
            let mut counters = [Counter::default(); Reason::COUNT];
            for (counter, &reason) in counters.iter_mut().zip(Reason::ALL) {
                *counter = sum(&array, block, would_drop, reason)?;
            }
            Ok(counters)
        };
        Ok(InterfaceCounters {
            ended: read(false)?,
            would_drop: read(true)?,
        })
    }

    /// Packets of a block that reasons have counted, dropped and in dry run.
    pub(super) fn packets_of<const N: usize>(
        &self,
        block: u32,
        reasons: [Reason; N],
    ) -> Result<[u64; N], DatapathError> {
        let array = self.counter_cells()?;
        let mut packets = [0; N];
        for (packets, reason) in packets.iter_mut().zip(reasons) {
            let ended = sum(&array, block, false, reason)?;
            let would_drop = sum(&array, block, true, reason)?;
            *packets = ended.packets.wrapping_add(would_drop.packets);
        }
        Ok(packets)
    }

    fn counter_cells(&self) -> Result<PerCpuArray<&MapData, CellWords>, DatapathError> {
        { self.map(maps::COUNTERS)?.try_into() }
            .map_err(|e| DatapathError::map_access(maps::COUNTERS, e))
    }

    /// Sets the counters of a block to zero.
    pub(super) fn clear_counters(&mut self, block: u32) -> Result<(), DatapathError> {
        let failed = |e| DatapathError::map_access(maps::COUNTERS, e);
        let map = self
            .maps
            .get_mut(maps::COUNTERS)
            .ok_or_else(|| missing(maps::COUNTERS))?;
        let mut array: PerCpuArray<&mut MapData, CellWords> = map.try_into().map_err(failed)?;
        let cpus = aya::util::nr_cpus().map_err(|(_, e)| failed(MapError::IoError(e)))?;
        for would_drop in [false, true] {
            for &reason in Reason::ALL {
                let zero = PerCpuValues::try_from(vec![CellWords::default(); cpus])
                    .map_err(|e| failed(MapError::IoError(e)))?;
                array
                    .set(counter_index(block, would_drop, reason), zero, 0)
                    .map_err(failed)?;
            }
        }
        Ok(())
    }

    /// A statistic of the tables, summed over the CPUs.
    pub(super) fn stat(&self, stat: TableStat) -> Result<u64, DatapathError> {
        let failed = |e| DatapathError::map_access(maps::STATS, e);
        let array: PerCpuArray<&MapData, u64> =
            self.map(maps::STATS)?.try_into().map_err(failed)?;
        let values = array.get(&(stat as u32), 0).map_err(failed)?;
        Ok(values.iter().fold(0, |sum, v| sum.wrapping_add(*v)))
    }

    /// The ring buffer, to be read from by one reader, which may outlive this value.
    pub(super) fn events(&self) -> Result<RingBuf<MapData>, DatapathError> {
        self.reopen(maps::EVENTS)?
            .try_into()
            .map_err(|e| DatapathError::map_access(maps::EVENTS, e))
    }

    /// Another handle of a map.
    pub(super) fn reopen(&self, name: &'static str) -> Result<Map, DatapathError> {
        let failed = |e| DatapathError::map_access(name, e);
        let map = data(self.map(name)?).ok_or_else(|| missing(name))?;
        let again = map
            .fd()
            .as_fd()
            .try_clone_to_owned()
            .map_err(|e| failed(MapError::IoError(e)))?;
        MapData::from_fd(again)
            .and_then(Map::from_map_data)
            .map_err(failed)
    }
}

/// The table of ARP bindings.
pub(super) struct ArpTable(HashMap<MapData, u32, [u8; 8]>);

impl ArpTable {
    /// From its pin.
    pub(super) fn open(path: &Path) -> Result<Self, DatapathError> {
        MapData::from_pin(path)
            .and_then(Map::from_map_data)
            .and_then(Self::new)
            .map_err(arp_failed)
    }

    fn new(map: Map) -> Result<Self, MapError> {
        Ok(Self(map.try_into()?))
    }

    /// From an open map.
    pub(super) fn from_map(map: Map) -> Result<Self, DatapathError> {
        Self::new(map).map_err(arp_failed)
    }

    /// The bindings.
    pub(super) fn get(&self) -> Result<Vec<(Ipv4Addr, [u8; 6])>, DatapathError> {
        let mut bindings = Vec::new();
        for entry in self.0.iter() {
            let (key, [a, b, c, d, e, f, _, _]) = entry.map_err(arp_failed)?;
            bindings.push((Ipv4Addr::from(key.to_ne_bytes()), [a, b, c, d, e, f]));
        }
        Ok(bindings)
    }

    /// Makes the bindings exactly these; those that stay are not touched.
    pub(super) fn set(&mut self, bindings: &[(Ipv4Addr, [u8; 6])]) -> Result<(), DatapathError> {
        let wanted: BTreeMap<_, _> = bindings.iter().copied().collect();
        let present: BTreeMap<_, _> = self.get()?.into_iter().collect();
        let key = |addr: &Ipv4Addr| u32::from_ne_bytes(addr.octets());
        for addr in present.keys().filter(|a| !wanted.contains_key(a)) {
            self.0.remove(&key(addr)).map_err(arp_failed)?;
        }
        for (addr, mac) in &wanted {
            if present.get(addr) != Some(mac) {
                let [a, b, c, d, e, f] = *mac;
                self.0
                    .insert(key(addr), [a, b, c, d, e, f, 0, 0], 0)
                    .map_err(arp_failed)?;
            }
        }
        Ok(())
    }
}

fn arp_failed(e: MapError) -> DatapathError {
    DatapathError::map_access(maps::ARP_BINDINGS, e)
}

fn missing(map: &'static str) -> DatapathError {
    DatapathError::Map {
        map,
        why: "is not in the object; object and daemon are not of one build".into(),
    }
}

/// The untyped map in one of the kinds that Edge uses.
fn data(map: &Map) -> Option<&MapData> {
    match map {
        Map::Array(d) | Map::PerCpuArray(d) | Map::HashMap(d) | Map::RingBuf(d) => Some(d),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_map_has_its_spec() {
        let mut named = specs(&Config::OFF, 4096, 1).map(|s| s.name);
        let mut all: Vec<_> = maps::ALL.to_vec();
        named.sort_unstable();
        all.sort_unstable();
        assert_eq!(named.as_slice(), all);
        assert!(POLICY.iter().all(|name| named.contains(name)));
    }
}
