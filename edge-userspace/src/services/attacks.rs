//! The history of attacks: what each came to, who was seen in it, and samples of it.
//!
//! Bounded in everything: so many attacks, so many samples of each, so many prefixes
//! and ports that are counted.

use std::{
    borrow::Cow,
    collections::{BTreeMap, VecDeque},
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use edge_common::{
    addr::Prefix,
    defence::{Hitter, ServiceCounter},
    reason::Reason,
};
use serde::{Deserialize, Serialize};

use super::watch::{Counters, HOST_REASONS, Rates, Step, of, of_host};
use crate::{
    clock::Now,
    control::protocol::Event,
    status::attack::{Attack, Change, Found, Kind, KindCount, Remedy, Share, Source},
};

/// Attacks that are remembered.
pub const MAX_ATTACKS: usize = 100;
/// Sampled packets that are kept of an attack.
pub const MAX_SAMPLES: usize = 64;
/// Prefixes and ports that are counted at a time.
const COUNTED: usize = 64;
/// Prefixes and ports that are told of.
const TOLD: usize = 10;
/// A kind is named when it makes up one packet in so many.
const NAMED: u64 = 20;

/// Version of the file; the first one knew attacks on services only.
const VERSION: u32 = 2;

/// Why a file is none of a history.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// It is damaged.
    #[error("not a history of attacks, or damaged: {0}")]
    Damaged(#[from] serde_json::Error),
    /// It is of a later version.
    #[error("a history of attacks of version {0}; this daemon knows version {VERSION}")]
    Version(u32),
}

/// A service, or the host, whose attacks are followed.
#[derive(Clone, Copy, Debug)]
pub struct Subject<'a> {
    /// Its name.
    pub name: &'a str,
    /// What an attack is found by.
    pub found: Found,
    /// What is done about an attack.
    pub remedy: Remedy,
}

/// All attacks that are remembered, the oldest first.
#[derive(Clone, Debug, Default)]
pub struct History {
    /// Which boot this is.
    boot: Option<String>,
    next_id: u64,
    attacks: VecDeque<Record>,
    /// Attacks that began under this daemon.
    begun: BTreeMap<Found, BTreeMap<String, u64>>,
}

/// An attack.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Record {
    id: u64,
    service: String,
    /// A file of before this was told has attacks of the first kind only.
    #[serde(default)]
    found: Found,
    remedy: Remedy,
    /// When it began, nanoseconds of `CLOCK_MONOTONIC`, by the program's word where it says
    /// so: by this it is known again.
    since_ns: u64,
    /// Until when it lasts at least, likewise.
    #[serde(default)]
    until_ns: u64,
    began_unix_ms: u64,
    ended_unix_ms: Option<u64>,
    /// When it was last looked at.
    seen_unix_ms: u64,
    /// The counters as they were read last.
    #[serde(with = "by_name")]
    last: Counters,
    /// What was counted since the attack began.
    #[serde(with = "by_name")]
    total: Counters,
    peaks: BTreeMap<Kind, f64>,
    sampled: u64,
    sources: Top<Source>,
    ports: Top<u16>,
    samples: Samples,
    /// What comes now, a second.
    #[serde(skip)]
    per_second: BTreeMap<Kind, f64>,
    /// Whether this daemon has not seen it yet.
    #[serde(skip)]
    inherited: bool,
}

/// The file.
#[derive(Serialize, Deserialize)]
struct File<'a, A> {
    version: u32,
    /// Which boot its moments are of; `null` where the kernel did not say.
    #[serde(default)]
    boot: Option<Cow<'a, str>>,
    next_id: u64,
    attacks: A,
}

impl History {
    /// Of nothing, in the boot with this name.
    pub fn new(boot: Option<String>) -> Self {
        Self {
            boot,
            ..Self::default()
        }
    }

    /// From what [`History::write`] gave; `boot` names the boot that this is of.
    ///
    /// # Errors
    /// [`ReadError`].
    pub fn read(bytes: &[u8], boot: Option<&str>) -> Result<Self, ReadError> {
        #[derive(Deserialize)]
        struct Head {
            version: u32,
        }
        let head: Head = serde_json::from_slice(bytes)?;
        if !(1..=VERSION).contains(&head.version) {
            return Err(ReadError::Version(head.version));
        }
        let file: File<'_, VecDeque<Record>> = serde_json::from_slice(bytes)?;
        let mut history = Self {
            next_id: file.next_id,
            attacks: file.attacks,
            ..Self::new(boot.map(str::to_owned))
        };
        for record in &mut history.attacks {
            record.inherited = record.ended_unix_ms.is_none();
            // The program's words are gone after a boot; ours have another beginning of time.
            if file.boot.as_deref() != boot && record.found != Found::Segments {
                record.since_ns = u64::MAX;
            }
            // Whatever somebody has written there.
            record.samples.kept.truncate(MAX_SAMPLES);
            record.sources.0.truncate(COUNTED);
            record.ports.0.truncate(COUNTED);
            history.next_id = history.next_id.max(record.id.saturating_add(1));
        }
        history.make_room(0);
        Ok(history)
    }

    /// What is to be kept over a restart.
    ///
    /// # Errors
    /// Those of the serializer, which writes to memory and has none of its own.
    pub fn write(&self) -> Result<Vec<u8>, serde_json::Error> {
        serde_json::to_vec(&File {
            version: VERSION,
            boot: self.boot.as_deref().map(Cow::Borrowed),
            next_id: self.next_id,
            attacks: &self.attacks,
        })
    }

    /// Takes in what was read of a service; what changed by it, in order.
    pub fn take(&mut self, of: Subject<'_>, step: &Step, now: Now) -> Vec<(Change, Attack)> {
        let mut changes = Vec::new();
        let reading = &step.reading;
        if let Some(record) = self.on(of.name, of.found) {
            let is_same = record.since_ns == reading.attack_since;
            if is_same {
                record.remedy = of.remedy;
                record.count(&reading.counters, &step.per_second);
            }
            if is_same && step.attacked {
                record.seen_unix_ms = now.unix_ms;
                record.until_ns = reading.attack_until;
                if std::mem::take(&mut record.inherited) {
                    changes.push((Change::GoesOn, record.tell()));
                }
                return changes;
            }
            // The program may have forgotten it, or have found another one since.
            let end = match is_same {
                true => now.unix_ms_of(reading.attack_until),
                false => record.seen_unix_ms,
            };
            changes.push((Change::Ended, record.end(end)));
        }
        if step.attacked {
            changes.push((Change::Began, self.begin(of, step, now)));
        }
        changes
    }

    /// From when until when an attack lasts at least that another daemon followed, if that
    /// was until a moment ago: nanoseconds of `CLOCK_MONOTONIC`. `slack_ns` is how much older
    /// the file may be than the daemon that wrote it.
    pub fn inherited(&self, of: Subject<'_>, now_ns: u64, slack_ns: u64) -> Option<(u64, u64)> {
        let record = self.current_record(of.name, of.found)?;
        let lasts = record.until_ns.saturating_add(slack_ns) > now_ns;
        let is_of_this_boot = record.since_ns <= now_ns;
        let inherits = record.inherited && lasts && is_of_this_boot;
        inherits.then_some((record.since_ns, record.until_ns))
    }

    /// Ends the attacks on what is no longer there.
    pub fn keep(&mut self, is_there: impl Fn(&str, Found) -> bool) -> Vec<(Change, Attack)> {
        let gone = |r: &&mut Record| r.ended_unix_ms.is_none() && !is_there(&r.service, r.found);
        let ended = self.attacks.iter_mut().filter(gone);
        ended
            .map(|r| (Change::Ended, r.end(r.seen_unix_ms)))
            .collect()
    }

    /// Takes in a sampled packet for a service, or the host, that may be under attack.
    pub fn sample(&mut self, name: &str, found: Found, event: &Event) {
        if let Some(record) = self.on(name, found) {
            record.sample(event);
        }
    }

    fn on(&mut self, name: &str, found: Found) -> Option<&mut Record> {
        let mut attacks = self.attacks.iter_mut().rev();
        attacks.find(|r| r.is_on(name, found))
    }

    fn current_record(&self, name: &str, found: Found) -> Option<&Record> {
        let mut attacks = self.attacks.iter().rev();
        attacks.find(|r| r.is_on(name, found))
    }

    /// Whether any attack is on.
    pub fn is_any_on(&self) -> bool {
        self.attacks.iter().any(|r| r.ended_unix_ms.is_none())
    }

    /// The attack that is on, on a service or the host.
    pub fn current(&self, name: &str, found: Found) -> Option<Attack> {
        self.current_record(name, found).map(Record::tell)
    }

    /// How many attacks on a service, or the host, began under this daemon.
    pub fn begun(&self, name: &str, found: Found) -> u64 {
        let begun = self.begun.get(&found).and_then(|by_name| by_name.get(name));
        begun.copied().unwrap_or_default()
    }

    /// All attacks, the newest first.
    pub fn list(&self) -> Vec<Attack> {
        self.attacks.iter().rev().map(Record::tell).collect()
    }

    /// An attack with its sampled packets.
    pub fn get(&self, id: u64) -> Option<(Attack, Vec<Event>)> {
        let record = self.attacks.iter().find(|r| r.id == id)?;
        Some((record.tell(), record.samples.kept.clone()))
    }

    fn begin(&mut self, of: Subject<'_>, step: &Step, now: Now) -> Attack {
        self.make_room(1);
        let since_ns = step.reading.attack_since;
        let mut record = Record {
            id: self.next_id.max(1),
            service: of.name.to_owned(),
            found: of.found,
            remedy: of.remedy,
            since_ns,
            until_ns: step.reading.attack_until,
            began_unix_ms: now.unix_ms_of(since_ns),
            ended_unix_ms: None,
            seen_unix_ms: now.unix_ms,
            last: step.before,
            total: Counters::default(),
            peaks: BTreeMap::new(),
            sampled: 0,
            sources: Top::default(),
            ports: Top::default(),
            samples: Samples::default(),
            per_second: BTreeMap::new(),
            inherited: false,
        };
        self.next_id = record.id.saturating_add(1);
        record.count(&step.reading.counters, &step.per_second);
        let begun = self.begun.entry(of.found).or_default();
        *begun.entry(record.service.clone()).or_default() += 1;
        let told = record.tell();
        self.attacks.push_back(record);
        told
    }

    /// Forgets the oldest until there is room for some more; those that are on go last.
    fn make_room(&mut self, more: usize) {
        while self.attacks.len() + more > MAX_ATTACKS {
            let over = self.attacks.iter().position(|r| r.ended_unix_ms.is_some());
            self.attacks.remove(over.unwrap_or_default());
        }
    }
}

impl Record {
    fn is_on(&self, name: &str, found: Found) -> bool {
        self.ended_unix_ms.is_none() && self.found == found && self.service == name
    }

    /// What it may consist of.
    fn kinds(&self) -> impl Iterator<Item = Kind> + use<> {
        let found = self.found;
        Kind::ALL
            .into_iter()
            .filter(move |kind| kind.found() == found)
    }

    /// Takes in the counters.
    fn count(&mut self, counters: &Counters, per_second: &Rates) {
        let is_host = Found::HOST.contains(&self.found);
        for ((total, last), &now) in self.total.iter_mut().zip(&mut self.last).zip(counters) {
            // Fewer than before: the table was made anew, or, of the host, an interface left.
            let anew = if is_host { 0 } else { now };
            *total = total.saturating_add(now.checked_sub(*last).unwrap_or(anew));
            *last = now;
        }
        // Rates are whole, as no packet is half.
        let per_second = per_second.map(|rate| rate as u64);
        for kind in self.kinds() {
            let rate = hostile(kind, &per_second) as f64;
            self.per_second.insert(kind, rate);
            let peak = self.peaks.entry(kind).or_default();
            *peak = peak.max(rate);
        }
    }

    fn sample(&mut self, event: &Event) {
        self.sampled += 1;
        if let Some(packet) = &event.packet {
            if let Some(prefix) = neighbourhood(packet.source) {
                self.sources.count(Source(prefix));
            }
            if let Some(port) = packet.destination_port {
                self.ports.count(port);
            }
        }
        self.samples.offer(event);
    }

    fn end(&mut self, unix_ms: u64) -> Attack {
        self.ended_unix_ms = Some(unix_ms.max(self.began_unix_ms));
        self.per_second.clear();
        self.inherited = false;
        self.tell()
    }

    fn tell(&self) -> Attack {
        let packets = |kind| hostile(kind, &self.total);
        let all = self.kinds().map(packets).fold(0, u64::saturating_add);
        let of = |from: &BTreeMap<Kind, f64>, kind| from.get(&kind).copied().unwrap_or_default();
        // What it is before anything is counted.
        let first = match (self.found, self.remedy) {
            (Found::Segments, Remedy::Drops) => Kind::OutOfState,
            (Found::Segments, _) => Kind::Syn,
            (Found::Reflection, _) => Kind::Reflection,
            (Found::Icmp, _) => Kind::Icmp,
            (Found::Prefixes, _) => Kind::Source,
        };
        let mut kinds: Vec<KindCount> = self
            .kinds()
            // What is known of an attack before anything was counted: its pressure.
            .filter(|&kind| match all {
                0 => kind == first,
                all => packets(kind) >= all.div_ceil(NAMED),
            })
            .map(|kind| KindCount {
                kind,
                packets: packets(kind),
                per_second: of(&self.per_second, kind),
                peak_per_second: of(&self.peaks, kind),
            })
            .collect();
        kinds.sort_by_key(|k| std::cmp::Reverse(k.packets));
        Attack {
            id: self.id,
            service: self.service.clone(),
            found: self.found,
            began_unix_ms: self.began_unix_ms,
            ended_unix_ms: self.ended_unix_ms,
            kinds,
            remedy: self.remedy,
            clients: through(&self.total),
            counters: by_name::told(self.found, &self.total),
            sampled: self.sampled,
            sources: self.sources.first(TOLD),
            ports: self.ports.first(TOLD),
        }
    }
}

/// The prefix that an address is counted by.
fn neighbourhood(address: IpAddr) -> Option<Prefix> {
    let bits = Hitter::SourceNarrow.bits(address.is_ipv6());
    let masked = match address {
        IpAddr::V4(a) => {
            let mask = u32::MAX.checked_shl(32 - u32::from(bits)).unwrap_or(0);
            Ipv4Addr::from_bits(a.to_bits() & mask).into()
        }
        IpAddr::V6(a) => {
            let mask = u128::MAX.checked_shl(128 - u32::from(bits)).unwrap_or(0);
            Ipv6Addr::from_bits(a.to_bits() & mask).into()
        }
    };
    Prefix::new(masked, bits).ok()
}

/// Real clients that got through.
fn through(counters: &Counters) -> u64 {
    [
        ServiceCounter::CookiesValid,
        ServiceCounter::Verified,
        ServiceCounter::Completed,
    ]
    .into_iter()
    .fold(0, |sum, c| sum.saturating_add(of(counters, c)))
}

/// Packets of a kind of flood.
fn hostile(kind: Kind, counters: &Counters) -> u64 {
    match kind {
        Kind::Syn => of(counters, ServiceCounter::Syns)
            .saturating_sub(through(counters))
            .saturating_sub(of(counters, ServiceCounter::KnownSyns)),
        Kind::Ack => of(counters, ServiceCounter::CookiesInvalid),
        Kind::OutOfState => of(counters, ServiceCounter::OutOfState),
        Kind::Reflection => of(counters, ServiceCounter::Reflected),
        Kind::Icmp => of_host(counters, Reason::FloodIcmp),
        Kind::Source => of_host(counters, Reason::FloodSource),
        Kind::Destination => of_host(counters, Reason::FloodDest),
    }
}

/// The most frequent of many, with few counters: Metwally, Agrawal and El Abbadi,
/// "Efficient Computation of Frequent and Top-k Elements in Data Streams" (2005),
/// Space-Saving. Whoever makes up more than one in [`COUNTED`] is among them.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(transparent)]
struct Top<K>(Vec<Share<K>>);

impl<K> Default for Top<K> {
    fn default() -> Self {
        Self(Vec::new())
    }
}

impl<K: Copy + PartialEq> Top<K> {
    fn count(&mut self, of: K) {
        if let Some(share) = self.0.iter_mut().find(|share| share.of == of) {
            share.samples += 1;
        } else if self.0.len() < COUNTED {
            let (samples, error) = (1, 0);
            self.0.push(Share { of, samples, error });
        } else if let Some(least) = self.0.iter_mut().min_by_key(|share| share.samples) {
            *least = Share {
                of,
                samples: least.samples + 1,
                error: least.samples,
            };
        }
    }

    /// The first so many, by what is certain of them.
    fn first(&self, n: usize) -> Vec<Share<K>> {
        let mut all = self.0.clone();
        all.sort_by_key(|share| {
            std::cmp::Reverse((
                share.samples - share.error.min(share.samples),
                share.samples,
            ))
        });
        all.truncate(n);
        all
    }
}

/// Samples of the whole time an attack lasts: each `stride`-th, which doubles, with
/// half of them thrown away, whenever there are too many.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Samples {
    stride: u64,
    /// Still to leave out.
    skip: u64,
    kept: Vec<Event>,
}

impl Default for Samples {
    fn default() -> Self {
        Self {
            stride: 1,
            skip: 0,
            kept: Vec::new(),
        }
    }
}

impl Samples {
    fn offer(&mut self, event: &Event) {
        if self.skip > 0 {
            self.skip -= 1;
            return;
        }
        if self.kept.len() >= MAX_SAMPLES {
            let mut nth = 0;
            self.kept.retain(|_| {
                nth += 1;
                nth % 2 == 1
            });
            self.stride = self.stride.saturating_mul(2);
        }
        self.kept.push(event.clone());
        self.skip = self.stride.saturating_sub(1);
    }
}

/// Counters by the names that other versions know as well.
mod by_name {
    use std::collections::BTreeMap;

    use edge_common::defence::ServiceCounter;
    use serde::{Deserialize as _, Deserializer, Serialize as _, Serializer};

    use super::{super::watch::host_place, Counters, Found, HOST_REASONS, of, of_host};

    /// Those that say something of an attack.
    pub(super) fn told(found: Found, counters: &Counters) -> BTreeMap<String, u64> {
        match found {
            Found::Segments | Found::Reflection => of_service(counters).collect(),
            Found::Icmp | Found::Prefixes => of_the_host(counters).collect(),
        }
    }

    fn of_service(counters: &Counters) -> impl Iterator<Item = (String, u64)> {
        let all = ServiceCounter::ALL.iter();
        all.map(|&c| (c.name().to_owned(), of(counters, c)))
    }

    fn of_the_host(counters: &Counters) -> impl Iterator<Item = (String, u64)> {
        let all = HOST_REASONS.iter();
        all.map(|&r| (r.name().to_owned(), of_host(counters, r)))
    }

    pub(super) fn serialize<S: Serializer>(c: &Counters, s: S) -> Result<S::Ok, S::Error> {
        let all: BTreeMap<String, u64> = of_service(c).chain(of_the_host(c)).collect();
        all.serialize(s)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(d: D) -> Result<Counters, D::Error> {
        let map = BTreeMap::<String, u64>::deserialize(d)?;
        let mut counters = Counters::default();
        let services = ServiceCounter::ALL.iter().map(|&c| (c as usize, c.name()));
        let host = HOST_REASONS.iter();
        let host = host.filter_map(|&r| Some((host_place(r)?, r.name())));
        for (place, name) in services.chain(host) {
            if let Some(counter) = counters.get_mut(place) {
                *counter = map.get(name).copied().unwrap_or_default();
            }
        }
        Ok(counters)
    }
}

#[cfg(test)]
mod tests;
