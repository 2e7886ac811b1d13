//! The real program on the daemon's own loader, ready for test runs: a clock
//! that the test sets, tables filled by the daemon's own writer.

use std::{
    cell::Cell,
    fmt,
    net::Ipv4Addr,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
};

use anyhow::{Context as _, Result, ensure};
use aya::maps::{Array, MapData, RingBuf};
use edge_common::{
    abi::{Config, Event, FragmentPolicy, LimitKind, MAX_PROFILES, Mode, Profile, TableStat, maps},
    gcra::Limit,
    hash::Seed,
    reason::Reason,
};
use edge_userspace::{
    datapath::{BalanceTables, InterfaceCounters, Program, ServiceTables, Unattached},
    tables::{Capacity, Geometry, Regions, Tables},
};

mod counters;
mod rigs;

use counters::Counters;
pub use rigs::Rigs;

use crate::test_run::{self, Run};

/// The secret of the tables in tests.
pub const SEED: Seed = Seed::new([
    0x0b1c_2d3e_4f50_6172,
    0x8394_a5b6_c7d8_e9fa,
    0x1f2e_3d4c_5b6a_7988,
    0x97a6_b5c4_d3e2_f100,
]);

/// What a program is loaded with.
#[derive(Clone, Debug, PartialEq)]
pub struct Settings {
    /// Checks and limits. Seed and table sizes are filled in.
    ///
    /// The clock stands still (a tick takes 0 ns) until [`Rig::set_time`], or
    /// runs when `tick_ns` is that of the kernel.
    pub config: Config,
    /// The limits by profile number, the default one first.
    pub profiles: Vec<Profile>,
    /// How much the tables have room for.
    pub capacity: Capacity,
    /// Size of the ring buffer of events in bytes.
    pub events_buffer: u32,
    /// Room for addresses and ports of services.
    pub targets: u32,
}

impl Settings {
    /// Every check in this mode, no limits, no samples, small tables.
    pub fn checks(mode: Mode) -> Self {
        let mode = mode as u32;
        Self {
            config: Config {
                malformed: mode,
                tcp_flags: mode,
                land: mode,
                bogons: mode,
                fragments: mode,
                fragment_policy: FragmentPolicy::DropRisky as u32,
                arp_guard: mode,
                blacklist: mode,
                ..Config::OFF
            },
            profiles: Vec::new(),
            capacity: Capacity {
                hosts_v4: 64,
                hosts_v6: 64,
                prefixes: 64,
                limiter_sources: 1024,
            },
            events_buffer: 1 << 16,
            targets: 1,
        }
    }

    /// Every check enforced.
    pub fn enforced() -> Self {
        Self::checks(Mode::Enforce)
    }

    /// With this limit in the profile with this number.
    ///
    /// # Panics
    /// When rate and burst are no limit.
    #[must_use]
    pub fn limit(mut self, profile: usize, kind: LimitKind, rate: u64, burst: u64) -> Self {
        if self.profiles.len() <= profile {
            self.profiles.resize(profile + 1, Profile::default());
        }
        self.profiles[profile].limits[kind as usize] =
            Limit::per_second(rate, burst).expect("a rate and a burst");
        self
    }

    /// With the limits of this kind in a mode.
    #[must_use]
    pub const fn limit_mode(mut self, kind: LimitKind, mode: Mode) -> Self {
        self.config = self.config.with_limit(kind, mode);
        self
    }

    /// With all limits in a mode.
    #[must_use]
    pub const fn limits(mut self, mode: Mode) -> Self {
        self.config = self.config.with_limits(mode);
        self
    }

    /// With other settings changed in place.
    #[must_use]
    pub fn with(mut self, change: impl FnOnce(&mut Config)) -> Self {
        change(&mut self.config);
        self
    }
}

/// Runs that the kernel repeats by itself. Before and after that it patches itself and waits for a
/// grace period, which takes longer than so few calls.
const MANY: u32 = 64;

/// A loaded program.
pub struct Rig {
    edge: Unattached,
    program: OwnedFd,
    clock: Array<MapData, u64>,
    events: RingBuf<MapData>,
    geometry: Geometry,
    settings: Settings,
    /// What the load left in the clock.
    loaded_at: u64,
    counters: Counters,
    /// What the last run left in them.
    counted: Cell<Option<InterfaceCounters>>,
}

impl Rig {
    /// Loads the program.
    ///
    /// # Errors
    /// When the kernel refuses it.
    pub fn load(settings: &Settings) -> Result<Self> {
        let geometry = Geometry::for_capacity(&settings.capacity);
        let mut profiles = Box::new([Profile::default(); MAX_PROFILES]);
        profiles
            .get_mut(..settings.profiles.len())
            .context("too many profiles")?
            .copy_from_slice(&settings.profiles);
        let mut edge = Unattached::load(&Program {
            config: Config {
                seed: SEED,
                hosts4_buckets: geometry.hosts4_buckets,
                hosts4_filter_words: geometry.hosts4_filter_words,
                wide_buckets: geometry.wide_buckets,
                hosts6_filter_words: geometry.hosts6_filter_words,
                prefix_filter_words: geometry.prefix_filter_words,
                long_lengths: geometry.long_lengths,
                limiter_buckets: geometry.limiter_buckets,
                ..settings.config
            },
            profiles,
            events_buffer: settings.events_buffer,
            targets: settings.targets,
        })?;
        let clock = Array::try_from(edge.take_clock()?)?;
        Ok(Self {
            program: edge.with_program(|fd| fd.try_clone_to_owned())??,
            loaded_at: clock.get(&0, 0)?,
            clock,
            events: edge.map(maps::EVENTS)?.try_into()?,
            counters: Counters::of(&edge)?,
            edge,
            geometry,
            settings: settings.clone(),
            counted: Cell::new(None),
        })
    }

    /// Sizes of the tables.
    pub const fn geometry(&self) -> &Geometry {
        &self.geometry
    }

    /// The writer of the program's tables. There must be only one.
    ///
    /// # Errors
    /// When the kernel refuses to map them.
    pub fn tables(&self) -> Result<Tables> {
        let region = |name| self.edge.region(name);
        let regions = Regions::new(region)?;
        Ok(Tables::new(regions, self.geometry, SEED)?)
    }

    /// The program, for runs on other threads.
    pub fn program(&self) -> BorrowedFd<'_> {
        self.program.as_fd()
    }

    /// The time that the program sees when its clock stands still, in
    /// nanoseconds of `CLOCK_MONOTONIC`.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn time(&self) -> Result<u64> {
        Ok(self.clock.get(&0, 0)?)
    }

    /// Sets that time.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn set_time(&mut self, ns: u64) -> Result<()> {
        Ok(self.clock.set(0, ns, 0)?)
    }

    /// How many instructions the verifier went through; 0 where the kernel does not tell.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn verified_instructions(&mut self) -> Result<u32> {
        Ok(self.edge.verified_instructions()?)
    }

    /// The tables of the flood defence. There must be only one writer.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn services(&self) -> Result<ServiceTables> {
        Ok(self.edge.services()?)
    }

    /// The tables of the balancer.
    ///
    /// # Errors
    /// When a map cannot be opened.
    pub fn balance(&self) -> Result<BalanceTables> {
        Ok(self.edge.balance()?)
    }

    /// Makes the ARP bindings exactly these.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn bind_arp(&self, bindings: &[(Ipv4Addr, [u8; 6])]) -> Result<()> {
        Ok(self.edge.set_arp_bindings(bindings)?)
    }

    /// Runs the program over copies of a frame, or, when they are [`MANY`], as [`test_run::run`]
    /// does.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn run(&self, frame: &[u8], times: u32) -> Result<Run> {
        self.counted.set(None);
        let once = |times| {
            test_run::run(self.program(), frame, times)
                .with_context(|| format!("test run over {} bytes", frame.len()))
        };
        if times > MANY {
            return once(times);
        }
        for _ in 1..times {
            once(1)?;
        }
        once(1)
    }

    /// The same, and what it moved in the counters, which nothing but the rig's own runs may
    /// change meanwhile.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn run_and_count(&self, frame: &[u8], times: u32) -> Result<(Run, Moved)> {
        let before = match self.counted.take() {
            Some(counted) => counted,
            None => self.counters.read()?,
        };
        let run = self.run(frame, times)?;
        let after = self.counters.read()?;
        let moved = Moved::between(&before, &after);
        self.counted.set(Some(after));
        Ok((run, moved))
    }

    /// The counters.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn counters(&self) -> Result<InterfaceCounters> {
        Ok(self.edge.counters()?)
    }

    /// A statistic of the tables.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn stat(&self, stat: TableStat) -> Result<u64> {
        Ok(self.edge.stat(stat)?)
    }

    /// The sampled events since the last call.
    ///
    /// # Errors
    /// When a record is no event.
    pub fn samples(&mut self) -> Result<Vec<Event>> {
        let mut events = Vec::new();
        while let Some(record) = self.events.next() {
            ensure!(
                record.len() == size_of::<Event>(),
                "a record of {} bytes",
                record.len()
            );
            events.push(Event::read(&record).context("a record that is no event")?);
        }
        Ok(events)
    }
}

/// How many packets and bytes each reason has more than before.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Moved {
    /// Packets and bytes that ended with the reason.
    pub ended: Vec<(Reason, u64, u64)>,
    /// Those that a dry run would have dropped for it.
    pub would_drop: Vec<(Reason, u64, u64)>,
}

impl Moved {
    /// The difference of two readings; reasons that did not move are left out.
    pub fn between(before: &InterfaceCounters, after: &InterfaceCounters) -> Self {
        let moved = |of: &dyn Fn(&InterfaceCounters, Reason) -> (u64, u64)| {
            let difference = |&reason: &Reason| {
                let ((p0, b0), (p1, b1)) = (of(before, reason), of(after, reason));
                (reason, p1.wrapping_sub(p0), b1.wrapping_sub(b0))
            };
            Reason::ALL
                .iter()
                .map(difference)
                .filter(|(_, packets, bytes)| *packets != 0 || *bytes != 0)
                .collect()
        };
        Self {
            ended: moved(&|c, r| (c.ended(r).packets, c.ended(r).bytes)),
            would_drop: moved(&|c, r| (c.would_drop(r).packets, c.would_drop(r).bytes)),
        }
    }
}

impl fmt::Display for Moved {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ended = self.ended.iter().map(|counted| ("", counted));
        let would = self.would_drop.iter().map(|counted| ("would ", counted));
        for (at, (how, (reason, packets, bytes))) in ended.chain(would).enumerate() {
            let comma = if at == 0 { "" } else { ", " };
            write!(f, "{comma}{how}{} {packets}p {bytes}B", reason.name())?;
        }
        Ok(())
    }
}
