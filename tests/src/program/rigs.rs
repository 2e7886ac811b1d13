//! Loads that tests share. The verifier takes most of the time of most tests, and nearly all of it
//! on an emulated machine.

use anyhow::{Context as _, Result, ensure};
use aya::{
    maps::{Array, HashMap, Map, MapData, PerCpuArray, PerCpuValues},
    util::nr_cpus,
};
use edge_common::{
    abi::{Counter, CounterCell, MacAddr, maps},
    defence::{ServiceCounters, Target, TargetKey},
    nat::Signals,
    quic::IdKey,
};
use edge_userspace::datapath::POLICY;
use std::sync::atomic::Ordering::Relaxed;

use super::{Rig, Settings, counters::CELLS};

/// Gives programs to tests, and takes them back for the next.
#[derive(Default)]
pub struct Rigs {
    spare: Option<Rig>,
    loads: usize,
}

impl Rigs {
    /// A program with these settings and nothing in its tables: the one that was given back last,
    /// or a new one.
    ///
    /// # Errors
    /// When the kernel refuses it.
    pub fn take(&mut self, settings: &Settings) -> Result<Rig> {
        // Another one is gone before there is a second set of tables.
        if let Some(mut rig) = self.spare.take().filter(|r| r.settings == *settings) {
            rig.wipe().context("cannot wipe the tables")?;
            return Ok(rig);
        }
        self.loads += 1;
        Rig::load(settings)
    }

    /// Keeps a program for the next test. Nobody may use its tables any more, and those of the
    /// lists were emptied by whoever filled them.
    ///
    /// # Errors
    /// When they were not, or the daemon reads other counters than the tests.
    pub fn give_back(&mut self, rig: Rig) -> Result<()> {
        ensure!(
            rig.counters()? == rig.counters.read()?,
            "the daemon reads other counters"
        );
        for name in POLICY {
            let region = rig.edge.region(name)?;
            let left = region.u32s().iter().position(|w| w.load(Relaxed) != 0);
            ensure!(left.is_none(), "{name} was not emptied: word {left:?}");
        }
        self.spare = Some(rig);
        Ok(())
    }

    /// How often a program was loaded.
    pub const fn loads(&self) -> usize {
        self.loads
    }
}

impl Rig {
    /// Makes the clock and all tables but those of the lists what they were after the load. What
    /// the program hands from one stage to the next is left, as it is by any packet.
    fn wipe(&mut self) -> Result<()> {
        self.counted.set(None);
        for &name in maps::ALL {
            let map = self.edge.map(name)?;
            match name {
                maps::EVENTS => while self.events.next().is_some() {},
                maps::ARP_BINDINGS => empty::<4, { size_of::<MacAddr>() }>(map)?,
                maps::TARGETS => empty::<{ size_of::<TargetKey>() }, { size_of::<Target>() }>(map)?,
                maps::SERVER_IDS => empty::<{ size_of::<IdKey>() }, 4>(map)?,
                maps::SAMPLE_BUDGET => {
                    let mut budget = Array::<MapData, u64>::try_from(map)?;
                    for at in 0..budget.len() {
                        budget.set(at, 0, 0)?;
                    }
                }
                // Test runs count for the first interface only.
                maps::COUNTERS => zero::<{ size_of::<CounterCell>() }>(map, CELLS as u32)?,
                maps::STATS => zero::<8>(map, u32::MAX)?,
                maps::SERVICE_COUNTERS => zero::<{ size_of::<ServiceCounters>() }>(map, u32::MAX)?,
                maps::BACKEND_COUNTERS => zero::<{ size_of::<Counter>() }>(map, u32::MAX)?,
                maps::BACKEND_SIGNALS => zero::<{ size_of::<Signals>() }>(map, u32::MAX)?,
                // The daemon's own writer empties them.
                _ if POLICY.contains(&name) => {}
                _ => {
                    // Nobody else reads or writes now, so that the width is nobody's matter.
                    for word in self.edge.region(name)?.u64s() {
                        word.store(0, Relaxed);
                    }
                }
            }
        }
        self.set_time(self.loaded_at)
    }
}

/// Empties a hash whose keys and values have so many bytes.
fn empty<const KEY: usize, const VALUE: usize>(map: Map) -> Result<()> {
    let mut map = HashMap::<MapData, [u8; KEY], [u8; VALUE]>::try_from(map)?;
    let keys = map.keys().collect::<Result<Vec<_>, _>>()?;
    for key in keys {
        map.remove(&key)?;
    }
    Ok(())
}

/// Zeroes the first entries, of so many bytes, of a per-CPU array; all when it has no more.
fn zero<const VALUE: usize>(map: Map, entries: u32) -> Result<()> {
    let mut map = PerCpuArray::<MapData, [u8; VALUE]>::try_from(map)?;
    let cpus = nr_cpus()
        .map_err(|(_, error)| error)
        .context("the number of CPUs")?;
    for at in 0..map.len().min(entries) {
        map.set(at, PerCpuValues::try_from(vec![[0; VALUE]; cpus])?, 0)?;
    }
    Ok(())
}
