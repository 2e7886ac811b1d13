//! The way into the kernel: maps, programs, links. The only user of aya.
//!
//! A change, be it the first start, a restart or a reload, always goes the
//! same way:
//!
//! 1. [`Datapath::prepare`] takes over every pinned map that still fits, makes
//!    the others beside them, and loads one program per interface. What is in
//!    force goes on untouched.
//! 2. The caller fills the policy tables through [`Prepared::region`].
//! 3. [`Datapath::commit`] puts programs and maps into force, one atomic
//!    replacement per interface, and undoes all of it when any part fails.
//!
//! The daemon's death changes nothing: links and maps are pinned, see `pins`.

mod attach;
mod balance;
mod commit;
#[cfg(feature = "debug-log")]
mod debug_log;
mod decap;
mod error;
mod events;
mod maps;
mod netlink;
mod pins;
mod preflight;
mod program;
mod services;
mod unattached;

use std::{
    collections::{BTreeMap, BTreeSet},
    net::Ipv4Addr,
    path::{Path, PathBuf},
    sync::Arc,
};

use aya::{
    Ebpf,
    maps::{Map, MapData, MapInfo},
};
use edge_common::{
    abi::{self, TableStat},
    nat::Source,
};
use tracing::{info, warn};

use crate::{memory::Region, status::AttachMode};
use attach::Existing;
use maps::{Maps, Spec};
use netlink::Interface;
use pins::Pins;

pub use crate::services::watch::of as counter;
pub use balance::{BalanceTables, FlowCount, PortCount};
pub use decap::Decap;
pub use error::DatapathError;
pub use events::{EventRing, Events};
pub use maps::{InterfaceCounters, MAX_ARP_BINDINGS, POLICY};
pub use program::Program;
pub use services::{ServiceState, ServiceTables};
pub use unattached::{Run, Unattached};

/// What is to be in force.
#[derive(Clone, Debug, PartialEq)]
pub struct Settings {
    /// Interfaces by name, at most [`abi::MAX_INTERFACES`].
    pub interfaces: Vec<String>,
    /// Whether the slower generic mode will do where a driver has no native one.
    pub allow_generic: bool,
    /// Checks, limits and table sizes.
    pub program: Program,
    /// The ARP guard's bindings, at most [`MAX_ARP_BINDINGS`].
    pub arp_bindings: Vec<(Ipv4Addr, [u8; 6])>,
}

/// The state of an interface.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InterfaceState {
    /// Its name.
    pub name: String,
    /// Its kernel index; 0 while it does not exist.
    pub ifindex: u32,
    /// How the program is attached; `None` while it is not.
    pub mode: Option<AttachMode>,
    /// Whether the program took the place of a former daemon's.
    pub adopted: bool,
    /// Why the program is not attached.
    pub problem: Option<String>,
    /// Its block of counters.
    block: u32,
}

/// A view of what is in force that any thread may keep and read from.
#[derive(Clone, Debug)]
pub struct View {
    maps: Arc<Maps>,
    interfaces: Vec<InterfaceState>,
}

impl View {
    /// The interfaces, in the order of the configuration.
    pub fn interfaces(&self) -> &[InterfaceState] {
        &self.interfaces
    }

    /// The counters of an interface. They outlast the daemon and every change.
    ///
    /// # Errors
    /// When the kernel refuses to read the map.
    pub fn counters(&self, interface: &InterfaceState) -> Result<InterfaceCounters, DatapathError> {
        self.maps.counters(interface.block)
    }

    /// Packets of an interface that reasons have counted, dropped and in dry run.
    ///
    /// # Errors
    /// When the kernel refuses to read the map.
    pub fn packets_of<const N: usize>(
        &self,
        interface: &InterfaceState,
        reasons: [edge_common::reason::Reason; N],
    ) -> Result<[u64; N], DatapathError> {
        self.maps.packets_of(interface.block, reasons)
    }

    /// A statistic of the tables.
    ///
    /// # Errors
    /// When the kernel refuses to read the map.
    pub fn stat(&self, stat: TableStat) -> Result<u64, DatapathError> {
        self.maps.stat(stat)
    }
}

/// The kernel side of one daemon.
#[derive(Debug)]
pub struct Datapath {
    pins: Pins,
    active: Option<Active>,
}

/// What is in force.
#[derive(Debug)]
struct Active {
    maps: Arc<Maps>,
    loaded: Vec<Loaded>,
    allow_generic: bool,
}

/// A loaded program and its interface.
#[derive(Debug)]
struct Loaded {
    ebpf: Ebpf,
    /// Where the programs are pinned that it goes on with.
    stages: PathBuf,
    state: InterfaceState,
    #[cfg(feature = "debug-log")]
    _log: debug_log::DebugLog,
}

impl Datapath {
    /// Checks that this process may work on the kernel and is the only one
    /// with these pins. Changes nothing that is in force.
    ///
    /// # Errors
    /// When capabilities are missing, `bpffs_dir` is on no BPF file system, or
    /// another daemon uses it.
    pub fn open(bpffs_dir: &Path) -> Result<Self, DatapathError> {
        preflight::permissions()?;
        preflight::lift_memory_limit();
        Ok(Self {
            pins: Pins::open(bpffs_dir)?,
            active: None,
        })
    }

    /// Prepares a change: takes over the maps that fit, makes the others, and
    /// loads the programs. Nothing of it is in force before
    /// [`Datapath::commit`]; dropping it frees what was made.
    ///
    /// # Errors
    /// When an interface does not exist or its hook is taken, a map cannot be
    /// made, or the kernel does not take the program.
    pub fn prepare(&self, mut settings: Settings) -> Result<Prepared, DatapathError> {
        for name in &settings.interfaces {
            let facts = preflight::interface(name)?;
            self.check_hook(&facts, settings.allow_generic)?;
        }
        self.pins.clear_staging();
        let config = &mut settings.program.config;
        config.backends = config.backends.max(self.backends());
        if config.server_ids != 0 {
            // An id for each, also of those that are leaving.
            config.server_ids = config.backends;
        }
        let program = &settings.program;
        let specs = program.specs();
        let (kept, notes) = self.fitting(&specs, &program::fingerprint(&program.config.seed));
        let mut staged = Staged::default();
        let mut paths = BTreeMap::new();
        for spec in &specs {
            let path = if kept.contains(spec.name) {
                self.pins.map(spec.name)
            } else {
                let path = self.pins.staged(spec.name);
                staged.0.insert(spec.name, path.clone());
                path
            };
            paths.insert(spec.name, path);
        }
        let former = self.pins.blocks();
        let (blocks, fresh) = pins::assign_blocks(&former, &settings.interfaces);
        let mut loaded = Vec::with_capacity(settings.interfaces.len());
        for name in &settings.interfaces {
            let block = blocks.get(name).copied().unwrap_or_default();
            let mut ebpf = program.load(name, block, &paths)?;
            #[cfg(feature = "debug-log")]
            let log = debug_log::DebugLog::start(&mut ebpf)?;
            let stages = program::pin_stages(&mut ebpf, |map| self.pins.stages(map))?;
            staged.1.push(stages.clone());
            program::close_maps(&mut ebpf);
            loaded.push(Loaded {
                ebpf,
                stages,
                state: InterfaceState {
                    name: name.clone(),
                    ifindex: 0,
                    mode: None,
                    adopted: false,
                    problem: None,
                    block,
                },
                #[cfg(feature = "debug-log")]
                _log: log,
            });
        }
        let mut maps = Maps::new(specs, |name| {
            let path = paths
                .get(name)
                .map(PathBuf::as_path)
                .unwrap_or(Path::new(""));
            open_map(name, path)
        })?;
        for block in fresh {
            maps.clear_counters(block)?;
        }
        if staged.0.contains_key(abi::maps::BACKENDS) {
            balance::carry_over(&self.pins.map(abi::maps::BACKENDS), &maps)?;
        }
        Ok(Prepared {
            settings,
            maps,
            loaded,
            blocks,
            staged,
            notes,
        })
    }

    /// How many backends there is room for so far. It never gets less: of those that stay
    /// some may have high numbers, and flows name them.
    fn backends(&self) -> u32 {
        let present = MapInfo::from_pin(self.pins.map(abi::maps::BACKENDS));
        present.map_or(0, |info| info.max_entries())
    }

    /// Refuses early what attaching would refuse late.
    fn check_hook(&self, facts: &Interface, allow_generic: bool) -> Result<(), DatapathError> {
        let Some(hook) = facts.hook else {
            return Ok(());
        };
        let existing = self
            .pins
            .find_link(&facts.name)
            .map(|pin| attach::existing(&pin, facts));
        match existing {
            Some(Existing::Attached {
                mode: AttachMode::Generic,
                ..
            }) if !allow_generic => Err(DatapathError::AttachedGeneric {
                interface: facts.name.clone(),
            }),
            Some(Existing::Attached { .. }) => Ok(()),
            Some(Existing::Stale) | None => Err(attach::held(&facts.name, hook)),
        }
    }

    /// Which pinned maps can be used as they are, and what there is to say of
    /// the others. The policy tables only go together, and only with the seed
    /// they were filled with.
    fn fitting(&self, specs: &[Spec], seed: &str) -> (BTreeSet<&'static str>, Vec<String>) {
        let mut kept = BTreeSet::new();
        let mut notes = Vec::new();
        for spec in specs {
            let path = self.pins.map(spec.name);
            if !path.exists() {
                continue;
            }
            match MapInfo::from_pin(&path) {
                Ok(info) => match spec.mismatch(&info) {
                    None => {
                        kept.insert(spec.name);
                    }
                    Some(why) => notes.push(format!("{} {why}: made anew", spec.name)),
                },
                Err(e) => notes.push(format!(
                    "{} cannot be taken over ({}): made anew",
                    spec.name,
                    error::chain(&e)
                )),
            }
        }
        let policy = || specs.iter().filter(|s| s.is_policy());
        let whole = policy().all(|s| kept.contains(s.name));
        let same_seed = self.pins.seed().as_deref() == Some(seed);
        if !whole || !same_seed {
            if whole {
                notes.push("the tables were filled with another seed: made anew".into());
            }
            for spec in policy() {
                kept.remove(spec.name);
            }
        }
        // A service names its ring.
        let of_rings = [abi::maps::BALANCES, abi::maps::RINGS];
        if !of_rings.iter().all(|name| kept.contains(name)) {
            kept.retain(|name| !of_rings.contains(name));
        }
        (kept, notes)
    }

    /// A view of what is in force; `None` before the first commit.
    pub fn view(&self) -> Option<View> {
        let active = self.active.as_ref()?;
        Some(View {
            maps: Arc::clone(&active.maps),
            interfaces: active.loaded.iter().map(|l| l.state.clone()).collect(),
        })
    }

    /// The table in force with this name ([`abi::maps`]), mapped into memory.
    ///
    /// # Errors
    /// When nothing is in force, or a map cannot be mapped.
    pub fn region(&self, name: &'static str) -> Result<Region, DatapathError> {
        let active = self.active.as_ref().ok_or(DatapathError::Map {
            map: abi::maps::HOSTS4,
            why: "is not in force yet".into(),
        })?;
        active.maps.region(name)
    }

    /// The ring buffer of events in force; `None` before the first commit.
    ///
    /// # Errors
    /// When it cannot be mapped.
    pub fn events(&self) -> Result<Option<EventRing>, DatapathError> {
        let Some(active) = &self.active else {
            return Ok(None);
        };
        Ok(Some(EventRing(active.maps.events()?)))
    }

    /// Looks after interfaces that went away or came back, and attaches the
    /// latter anew; sets the programs' clocks, which drift from the daemon's by
    /// what the clock of the machine is corrected. To be called about once a
    /// second. Returns whether anything changed.
    pub fn watch(&mut self) -> bool {
        let Some(active) = &mut self.active else {
            return false;
        };
        let mut changed = false;
        for loaded in &mut active.loaded {
            let before = loaded.state.clone();
            check_interface(&self.pins, loaded, active.allow_generic);
            changed |= loaded.state != before;
            if let Err(e) = program::set_clock(&mut loaded.ebpf) {
                warn!("{e}");
            }
        }
        changed
    }

    /// Takes the programs off all interfaces and frees maps and pins.
    ///
    /// # Errors
    /// When a hook is still held afterwards.
    pub fn detach(mut self) -> Result<(), DatapathError> {
        // Whoever has a link open keeps it attached.
        self.active = None;
        let mut gone = Vec::new();
        for name in self.pins.linked() {
            let program = self.release(&name)?;
            gone.extend(program.map(|p| (name, p)));
        }
        self.pins.remove_all();
        commit::wait_detached(&gone)
    }
}

/// Brings the state of one interface up to date.
fn check_interface(pins: &Pins, loaded: &mut Loaded, allow_generic: bool) {
    let Loaded { ebpf, state, .. } = loaded;
    let facts = match netlink::interface(&state.name) {
        Ok(Some(facts)) => facts,
        Ok(None) => {
            if state.ifindex != 0 || state.problem.is_none() {
                warn!(interface = state.name, "the interface is gone");
            }
            state.ifindex = 0;
            state.mode = None;
            state.problem = Some("the interface does not exist".into());
            return;
        }
        Err(e) => {
            warn!(interface = state.name, "cannot ask for the interface: {e}");
            return;
        }
    };
    let pin = pins.link(&state.name);
    state.ifindex = facts.index;
    if let Existing::Attached { mode, .. } = attach::existing(&pin, &facts) {
        state.mode = Some(mode);
        state.problem = None;
        return;
    }
    let staged = pins.staged_link(&state.name);
    let attached = program::xdp(ebpf)
        .map_err(|e| DatapathError::Attach {
            interface: state.name.clone(),
            why: error::chain(&e),
        })
        .and_then(|xdp| attach::attach(xdp, &facts, allow_generic, &staged))
        .and_then(|mode| pins::rename(&staged, &pin).map(|()| mode));
    match attached {
        Ok(mode) => {
            info!(
                interface = state.name,
                ifindex = facts.index,
                mode = mode.name(),
                "attached anew"
            );
            state.mode = Some(mode);
            state.adopted = false;
            state.problem = None;
        }
        Err(e) => {
            let problem = e.to_string();
            if state.problem.as_deref() != Some(&problem) {
                warn!(interface = state.name, "not attached: {problem}");
            }
            state.mode = None;
            state.problem = Some(problem);
        }
    }
}

/// Pins that go away with the value unless they were put into force: maps by name, and
/// stages.
#[derive(Debug, Default)]
struct Staged(BTreeMap<&'static str, PathBuf>, Vec<PathBuf>);

impl Drop for Staged {
    fn drop(&mut self) {
        for path in self.0.values().chain(&self.1) {
            if let Err(e) = pins::unlink(path) {
                warn!("{e}");
            }
        }
    }
}

/// A change that is ready to come into force.
#[derive(Debug)]
pub struct Prepared {
    settings: Settings,
    maps: Maps,
    loaded: Vec<Loaded>,
    blocks: BTreeMap<String, u32>,
    staged: Staged,
    notes: Vec<String>,
}

impl Prepared {
    /// The table with this name ([`abi::maps`]), mapped into memory.
    ///
    /// # Errors
    /// When a map cannot be mapped.
    pub fn region(&self, name: &'static str) -> Result<Region, DatapathError> {
        self.maps.region(name)
    }

    /// The tables of the flood defence that come into force with the change, which
    /// may be those in force already.
    ///
    /// # Errors
    /// When a map cannot be opened.
    pub fn services(&self) -> Result<ServiceTables, DatapathError> {
        ServiceTables::new(|name| self.maps.region(name), |name| self.maps.reopen(name))
    }

    /// The tables of the balancer that come into force with the change, likewise.
    ///
    /// # Errors
    /// When a map cannot be opened.
    pub fn balance(&self) -> Result<BalanceTables, DatapathError> {
        BalanceTables::new(
            |name| self.maps.region(name),
            |name| self.maps.reopen(name),
            self.settings.program.config.slots,
        )
    }

    /// The source addresses of NAT in them, by number.
    ///
    /// # Errors
    /// When the map cannot be mapped.
    pub fn sources(&self) -> Result<Vec<Source>, DatapathError> {
        Ok(balance::sources(&self.maps.region(abi::maps::SOURCES)?))
    }

    /// Whether the policy tables are new and empty, and not those in force.
    pub fn tables_are_new(&self) -> bool {
        self.staged.0.contains_key(abi::maps::HOSTS4)
    }

    /// Whether the limiter starts empty: every source then has its whole burst again.
    pub fn limiter_is_new(&self) -> bool {
        self.staged.0.contains_key(abi::maps::LIMITER)
    }

    /// Whether there is a new ring buffer of events to read from.
    pub fn events_are_new(&self) -> bool {
        self.staged.0.contains_key(abi::maps::EVENTS)
    }

    /// Which maps could not be taken over, and why, a sentence each.
    pub fn notes(&self) -> &[String] {
        &self.notes
    }
}

fn open_map(name: &'static str, path: &Path) -> Result<Map, DatapathError> {
    MapData::from_pin(path)
        .and_then(Map::from_map_data)
        .map_err(|e| DatapathError::map_access(name, e))
}
