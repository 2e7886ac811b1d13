//! Edge's own program under measurement: configured as an operator would, with
//! tables of its own, attached to nothing.

use std::{
    fs,
    net::IpAddr,
    os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd},
    path::Path,
};

use anyhow::{Context, Result, bail};
use aya::maps::Map;
use edge_common::{
    abi::{Mode, TableStat},
    addr::{Family, Prefix},
    hash::Seed,
    reason::{Reason, Verdict},
    table::{FLAG_BOGON, FOREVER, Meta},
};
use edge_userspace::{
    clock::coarse_tick_ns,
    config,
    datapath::{BalanceTables, Program, ServiceTables, Unattached},
    tables::{Capacity, Geometry, Listing, Reader, Regions, Tables},
};

use crate::defence::Defence;

/// Any will do; the same in every run.
pub(crate) const SEED: Seed = Seed::new([
    0x6a09_e667_f3bc_c908,
    0xbb67_ae85_84ca_a73b,
    0x3c6e_f372_fe94_f82b,
    0xa54f_f53a_5f1d_36f1,
]);

/// All checks and limits on, and rates that nothing reaches.
pub(crate) const ALL_ON: &str = "
[[arp_binding]]
address = '192.0.2.254'
mac = '02:00:00:00:00:fe'
[limits]
packets.rate = '1G'
bytes.rate = '1000GB'
syn.rate = '1G'
udp.rate = '1G'
icmp.rate = '1G'
";

/// Checks on, limits and samples off.
pub(crate) const CHECKS: &str = "
events.per_second = 0
[[arp_binding]]
address = '192.0.2.254'
mac = '02:00:00:00:00:fe'
";

/// Nothing on that can be off.
pub(crate) const ALL_OFF: &str = "
checks = { malformed = 'off', tcp_flags = 'off', land = 'off', bogons = 'off', fragments = 'off', arp_guard = 'off', blacklist = 'off' }
bogons.defaults = false
events.per_second = 0
";

/// A loaded program.
pub(crate) struct Edge {
    program: Unattached,
    tables: Tables,
    reader: Reader,
}

impl Edge {
    /// Loads it, from another object than the embedded one if given.
    pub(crate) fn load(settings: &str, capacity: Capacity, object: Option<&Path>) -> Result<Self> {
        Self::load_with(settings, capacity, object, |_| {})
    }

    /// Loads it with the defence of a service on.
    pub(crate) fn defending(
        settings: &str,
        capacity: Capacity,
        object: Option<&Path>,
        defence: &Defence,
    ) -> Result<Self> {
        let edge = Self::load_with(settings, capacity, object, |program| {
            defence.prepare(program);
        })?;
        defence.fill(&mut edge.services()?)?;
        Ok(edge)
    }

    /// Loads it with changed settings of the program, to be filled by the caller.
    pub(crate) fn load_with(
        settings: &str,
        capacity: Capacity,
        object: Option<&Path>,
        change: impl FnOnce(&mut Program),
    ) -> Result<Self> {
        let tick_ns = coarse_tick_ns();
        let text = format!("interfaces = ['bench0']\n{settings}");
        let mut model =
            config::parse(&text, Path::new("the bench's configuration"), tick_ns)?.model;
        model.capacity = capacity;
        let geometry = Geometry::for_capacity(&capacity);
        let mut program = Program {
            config: model.abi_config(&geometry, SEED, tick_ns, 0, 0),
            profiles: Box::new(model.profiles()?.table),
            events_buffer: model.events_buffer,
            targets: 1,
        };
        change(&mut program);
        let program = match object {
            None => Unattached::load(&program)?,
            Some(path) => {
                let bytes =
                    fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
                Unattached::from_object(&program, &bytes)?
            }
        };
        program.set_arp_bindings(&model.arp_bindings)?;
        let mut tables = Tables::new(Regions::new(|name| program.region(name))?, geometry, SEED)?;
        if model.checks.bogons != Mode::Off {
            let bogon = Listing {
                meta: Meta {
                    flags: FLAG_BOGON,
                    profile: 0,
                },
                ..Listing::default()
            };
            for prefix in &model.bogon_prefixes {
                tables.put(*prefix, bogon)?;
            }
        }
        let reader = tables.reader();
        Ok(Self {
            program,
            tables,
            reader,
        })
    }

    /// Blacklists hosts or prefixes for ever.
    pub(crate) fn blacklist(&mut self, prefixes: impl IntoIterator<Item = Prefix>) -> Result<()> {
        for prefix in prefixes {
            self.tables.put(
                prefix,
                Listing {
                    black: FOREVER,
                    ..self.tables.own(prefix)
                },
            )?;
        }
        Ok(())
    }

    /// Whether the blacklist has a source.
    pub(crate) fn is_blacklisted(&self, addr: IpAddr) -> bool {
        self.reader.lookup(addr).black != 0
    }

    /// Packets it has passed and dropped so far.
    pub(crate) fn passed_and_dropped(&self) -> Result<(u64, u64)> {
        Ok((self.ended(Verdict::Pass)?, self.ended(Verdict::Drop)?))
    }

    /// Packets that have ended with a verdict so far.
    pub(crate) fn ended(&self, verdict: Verdict) -> Result<u64> {
        let counters = self.program.counters()?;
        let reasons = Reason::ALL.iter().filter(|r| r.verdict() == verdict);
        Ok(reasons.map(|r| counters.ended(*r).packets).sum())
    }

    /// Reasons with which packets have ended so far, and how many.
    pub(crate) fn endings(&self) -> Result<Vec<(Reason, u64)>> {
        let counters = self.program.counters()?;
        let all = Reason::ALL.iter().map(|r| (*r, counters.ended(*r).packets));
        Ok(all.filter(|(_, n)| *n > 0).collect())
    }

    /// The tables of the flood defence.
    pub(crate) fn services(&self) -> Result<ServiceTables> {
        Ok(self.program.services()?)
    }

    /// The tables of the balancer.
    pub(crate) fn balance(&self) -> Result<BalanceTables> {
        Ok(self.program.balance()?)
    }

    /// A statistic of the tables.
    pub(crate) fn stat(&self, stat: TableStat) -> Result<u64> {
        Ok(self.program.stat(stat)?)
    }

    /// Bytes that a map takes of the kernel's memory, by the kernel's own account.
    pub(crate) fn kernel_memory(&self, name: &'static str) -> Result<u64> {
        let Map::Array(map) = self.program.map(name)? else {
            bail!("map {name} is no array");
        };
        fdinfo(map.fd().as_fd(), "memlock:")?.context("the kernel does not tell a map's memory")
    }

    /// A descriptor of the loaded program.
    pub(crate) fn fd(&mut self) -> Result<OwnedFd> {
        Ok(self.program.with_program(|fd| fd.try_clone_to_owned())??)
    }

    /// Instructions that the verifier followed.
    pub(crate) fn verified_instructions(&mut self) -> Result<Option<u64>> {
        self.program
            .with_program(|fd| fdinfo(fd, "verified_insns:"))?
    }
}

/// A number that the kernel tells of a descriptor, if it does.
fn fdinfo(fd: BorrowedFd<'_>, name: &str) -> Result<Option<u64>> {
    let info = fs::read_to_string(format!("/proc/self/fdinfo/{}", fd.as_raw_fd()))?;
    let value = info.lines().find_map(|line| line.strip_prefix(name));
    Ok(value.and_then(|value| value.trim().parse().ok()))
}

/// Room for so many of each kind.
pub(crate) fn capacity(hosts_v4: u32, hosts_v6: u32, prefixes: u32) -> Capacity {
    Capacity {
        hosts_v4,
        hosts_v6,
        prefixes,
        ..Capacity::default()
    }
}

/// A family's word in the names of rows.
pub(crate) const fn family_name(family: Family) -> &'static str {
    match family {
        Family::V4 => "v4",
        Family::V6 => "v6",
    }
}
