//! The program without an interface, for `BPF_PROG_TEST_RUN`: golden tests and
//! measurements go through the same loader as the daemon.

use std::{
    collections::BTreeMap,
    net::Ipv4Addr,
    os::fd::{AsFd, BorrowedFd},
    time::Duration,
};

use aya::{Ebpf, TestRun, TestRunOptions, maps::Map, programs::ProgramError};
use edge_common::abi::{self, TableStat};

use super::{
    balance::BalanceTables,
    error::{self, DatapathError},
    events::EventRing,
    maps::{ArpTable, InterfaceCounters, Maps},
    preflight, program,
    program::Program,
    services::ServiceTables,
};
use crate::memory::Region;

/// A loaded program with maps of its own, attached to nothing and pinned nowhere.
#[derive(Debug)]
pub struct Unattached {
    ebpf: Ebpf,
    maps: Maps,
    slots: u32,
}

/// What a test run gave.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Run {
    /// The program's return value: an XDP action.
    pub action: u32,
    /// Mean time of one run.
    pub duration: Duration,
}

impl Unattached {
    /// Loads the program. Counters are those of block 0.
    ///
    /// # Errors
    /// When capabilities are missing, a map cannot be made, or the kernel does
    /// not take the program.
    pub fn load(program: &Program) -> Result<Self, DatapathError> {
        Self::from_object(program, program::OBJECT)
    }

    /// The same from the bytes of another object than that of this build, to
    /// compare the two.
    ///
    /// # Errors
    /// As [`Unattached::load`], and when the object is none of Edge.
    pub fn from_object(program: &Program, object: &[u8]) -> Result<Self, DatapathError> {
        preflight::permissions()?;
        preflight::lift_memory_limit();
        let mut ebpf = program.load_from(object, "a test run", 0, &BTreeMap::new())?;
        let maps = Maps::new(program.specs(), |name| {
            ebpf.take_map(name).ok_or(DatapathError::Map {
                map: name,
                why: "is not in the object".into(),
            })
        })?;
        Ok(Self {
            ebpf,
            maps,
            slots: program.config.slots,
        })
    }

    /// The table with this name ([`abi::maps`]), mapped into memory.
    ///
    /// # Errors
    /// When a map cannot be mapped.
    pub fn region(&self, name: &'static str) -> Result<Region, DatapathError> {
        self.maps.region(name)
    }

    /// Another handle of the map with this name ([`abi::maps`]), for what the
    /// other methods do not do.
    ///
    /// # Errors
    /// When it cannot be opened.
    pub fn map(&self, name: &'static str) -> Result<Map, DatapathError> {
        self.maps.reopen(name)
    }

    /// Takes the map of the program's clock ([`abi::maps::CLOCK`]).
    ///
    /// # Errors
    /// When it was taken before.
    pub fn take_clock(&mut self) -> Result<Map, DatapathError> {
        let map = abi::maps::CLOCK;
        self.ebpf.take_map(map).ok_or(DatapathError::Map {
            map,
            why: "was taken before".into(),
        })
    }

    /// The tables of the flood defence. There must be only one writer.
    ///
    /// # Errors
    /// When a map cannot be opened.
    pub fn services(&self) -> Result<ServiceTables, DatapathError> {
        ServiceTables::new(|name| self.region(name), |name| self.map(name))
    }

    /// The tables of the balancer. There must be only one writer.
    ///
    /// # Errors
    /// When a map cannot be opened.
    pub fn balance(&self) -> Result<BalanceTables, DatapathError> {
        BalanceTables::new(|name| self.region(name), |name| self.map(name), self.slots)
    }

    /// Makes the ARP bindings exactly these.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn set_arp_bindings(&self, bindings: &[(Ipv4Addr, [u8; 6])]) -> Result<(), DatapathError> {
        ArpTable::from_map(self.maps.reopen(abi::maps::ARP_BINDINGS)?)?.set(bindings)
    }

    /// The counters.
    ///
    /// # Errors
    /// When the kernel refuses to read the map.
    pub fn counters(&self) -> Result<InterfaceCounters, DatapathError> {
        self.maps.counters(0)
    }

    /// A statistic of the tables.
    ///
    /// # Errors
    /// When the kernel refuses to read the map.
    pub fn stat(&self, stat: TableStat) -> Result<u64, DatapathError> {
        self.maps.stat(stat)
    }

    /// The ring buffer of events. There must be only one reader.
    ///
    /// # Errors
    /// When it cannot be mapped.
    pub fn events(&self) -> Result<EventRing, DatapathError> {
        Ok(EventRing(self.maps.events()?))
    }

    /// Runs the program `repeat` times over `frame`, without undoing between
    /// runs what a program does to it.
    ///
    /// # Errors
    /// When the kernel refuses, for instance a frame below 14 bytes.
    pub fn run(&mut self, frame: &[u8], repeat: u32) -> Result<Run, DatapathError> {
        let failed = |e| DatapathError::Attach {
            interface: "test run".into(),
            why: error::chain(&e),
        };
        let mut options = TestRunOptions::new();
        options.data_in = Some(frame);
        options.repeat = repeat;
        let result = program::xdp(&mut self.ebpf)
            .and_then(|xdp| xdp.test_run(options))
            .map_err(failed)?;
        Ok(Run {
            action: result.return_value,
            duration: result.duration,
        })
    }

    /// How many instructions the verifier went through to take the program, or the
    /// stage of it that took most; 0 on kernels before 5.16, which do not tell.
    ///
    /// # Errors
    /// When the kernel refuses to tell of a program.
    pub fn verified_instructions(&self) -> Result<u32, DatapathError> {
        let mut most = 0;
        for (_, program) in self.ebpf.programs() {
            // One that is not loaded has nothing to tell.
            let info = match program.info() {
                Ok(info) => info,
                Err(ProgramError::NotLoaded) => continue,
                Err(e) => {
                    return Err(DatapathError::Attach {
                        interface: "test run".into(),
                        why: error::chain(&e),
                    });
                }
            };
            most = most.max(info.verified_instruction_count().unwrap_or_default());
        }
        Ok(most)
    }

    /// Calls `f` with the program's descriptor, for what [`Unattached::run`] does not do.
    ///
    /// # Errors
    /// When the program is not loaded.
    pub fn with_program<T>(
        &mut self,
        f: impl FnOnce(BorrowedFd<'_>) -> T,
    ) -> Result<T, DatapathError> {
        let failed = |e| DatapathError::Attach {
            interface: "test run".into(),
            why: error::chain(&e),
        };
        let xdp = program::xdp(&mut self.ebpf).map_err(failed)?;
        let fd = xdp.fd().map_err(failed)?;
        Ok(f(fd.as_fd()))
    }
}
