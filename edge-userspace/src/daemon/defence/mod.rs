//! The flood defence as the daemon sees it: services come into force with a
//! configuration, and then follow the host's addresses and listeners.
//!
//! The engine and the follower (`follow`) take turns with it, by a lock: a long
//! import must not keep an attack from being told.

mod floods;
pub(super) mod follow;
pub(super) mod journal;
mod sight;
mod sysctls;
mod troubles;

use std::{
    collections::BTreeMap,
    io,
    net::SocketAddr,
    path::{Path, PathBuf},
    time::Duration,
};

use edge_common::{
    abi::Mode,
    defence::{TARGET_BOUND, TARGET_LOCAL, TargetKey, When},
    hash::Seed,
    nat::Source,
    parse::proto,
};
use tracing::warn;

use crate::{
    clock::Now,
    config::{
        Model,
        services::{Ports, Protocol, Service, Sysctls},
    },
    daemon::facts::Shared,
    datapath::{DatapathError, ServiceTables},
    host::{
        self,
        sysctl::{self, SysctlError},
    },
    services::{
        resolve::{Targets, resolve},
        scales::Scales,
        slots::{self, Slot},
        sources::{self, Pair},
        watch::{Watch, found_by},
    },
    status::{ServiceStatus, ServiceTargets, attack::Found},
};
use floods::Limited;
use follow::tell;
use sight::Sight;
use sysctls::Keeper;
pub(super) use sysctls::Unmet;
use troubles::{Trouble, Troubles};

/// Listeners that are asked for their window scale in one go, at the most, and how
/// long that may take: one that answers does so in microseconds.
const QUESTIONS: usize = 32;
const PATIENCE: Duration = Duration::from_millis(10);
const ALL_PATIENCE_NS: u64 = 50_000_000;

/// Services in force, or coming into force.
struct Services {
    model: Model,
    seed: Seed,
    tables: ServiceTables,
    slots: Vec<Slot>,
    /// Source addresses of NAT, by number.
    sources: Vec<Pair>,
    targets: Targets,
}

/// Between two counts of the verified sources at least, nanoseconds.
const COUNT_EVERY_NS: u64 = 1_000_000_000;

/// What programs are told of the host when they are loaded.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Told {
    /// What its TCP grants ([`edge_common::defence::reply::feature`]).
    pub(super) tcp_features: u32,
    /// The most bytes of an IP packet on the way to clients, with NAT.
    pub(super) client_mtu: u32,
}

/// Where nothing else is known, bytes of an IP packet.
const ETHERNET_MTU: u32 = 1500;

impl Told {
    /// For a configuration, with the smallest MTU of its interfaces.
    fn of(model: &Model, mtu: Option<u32>) -> Result<Self, SysctlError> {
        if model.services.is_empty() {
            return Ok(Self::default());
        }
        Ok(Self {
            tcp_features: sysctl::tcp_features(&root())?,
            client_mtu: match model.nat_sources() {
                0 => ETHERNET_MTU,
                _ => mtu.unwrap_or(ETHERNET_MTU).min(u16::MAX.into()),
            },
        })
    }

    /// The same, with the MTU that the kernel has now.
    fn now(model: &Model) -> Result<Self, SysctlError> {
        let ask = || match model.nat_sources() {
            0 => Ok(None),
            _ => host::smallest_mtu(&model.interfaces),
        };
        let mtu = ask().unwrap_or_else(|e| {
            warn!("the kernel does not tell the MTU of interfaces: {e}");
            None
        });
        Self::of(model, mtu)
    }
}

/// Why the tables of services could not be filled.
#[derive(Debug, thiserror::Error)]
pub(super) enum FillError {
    /// Without addresses and listeners all targets would go that a former daemon left.
    #[error("cannot ask for the addresses and listeners of this host: {0}")]
    Host(#[from] io::Error),
    /// The kernel does not take it.
    #[error(transparent)]
    Datapath(#[from] DatapathError),
}

/// The flood defence.
pub(super) struct Defence {
    services: Option<Services>,
    /// What was in force before a change that is under way.
    former: Option<Option<Services>>,
    keeper: Keeper,
    sight: Sight,
    /// Set by whatever changes targets, until they are written.
    dirty: bool,
    scales: Scales,
    watch: Watch,
    /// What is limited by the configuration in force, and by that which was filled last.
    limited: Limited,
    filled: Limited,
    /// What the programs in force, and those that were prepared last, have been told.
    told: Told,
    prepared: Told,
    troubles: Troubles,
    left_out: usize,
    /// Verified sources and the room for them, when they were last counted.
    verified: (u64, u64),
    counted_ns: u64,
}

impl Defence {
    /// Of a daemon that keeps its state in `state_dir`.
    pub(super) fn new(state_dir: &Path) -> Self {
        Self {
            services: None,
            former: None,
            keeper: Keeper::open(state_dir),
            sight: Sight::default(),
            dirty: false,
            told: Told::default(),
            prepared: Told::default(),
            scales: Scales::default(),
            watch: Watch::default(),
            limited: Limited::default(),
            filled: Limited::default(),
            troubles: Troubles::default(),
            left_out: 0,
            verified: (0, 0),
            counted_ns: 0,
        }
    }

    /// Sees that the host's TCP is as a configuration needs it, and says what programs must
    /// know of the host. What the one in force needs, stays.
    ///
    /// # Errors
    /// When it is not, and cannot or must not be changed, unless the same services
    /// are in force already: then it is only told.
    pub(super) fn prepare(&mut self, model: &Model) -> Result<Told, Unmet> {
        if model.needs_cookies() {
            let same = |m: &Model| (&m.services, &m.flood) == (&model.services, &model.flood);
            match self.keeper.ensure(model.flood.sysctls) {
                Err(e) if self.model().is_some_and(same) => {
                    self.troubles.mind(Trouble::Sysctls, Err::<(), _>(e));
                }
                ensured => ensured?,
            }
        }
        self.prepared = Told::now(model)?;
        Ok(self.prepared)
    }

    /// Fills the tables of a configuration that is about to come into force. `sources` are the
    /// source addresses of NAT that stand in its table.
    ///
    /// # Errors
    /// When the kernel refuses, or does not tell what the host has.
    pub(super) fn fill(
        &mut self,
        model: &Model,
        seed: Seed,
        tables: impl FnOnce() -> Result<ServiceTables, DatapathError>,
        sources: impl FnOnce() -> Result<Vec<Source>, DatapathError>,
    ) -> Result<(), FillError> {
        let former = self.services.take();
        self.former = Some(former);
        self.filled = Limited::new(model);
        if model.services.is_empty() {
            return Ok(());
        }
        let tables = tables()?;
        // At a reload this daemon knows itself, and knows better.
        let inherited = match self.former {
            Some(Some(_)) => BTreeMap::new(),
            _ => tables.window_scales()?,
        };
        let slots = slots::assign(&model.services, &tables.generations());
        let entries = slots::entries(model, &slots);
        let numbers = model.nat_sources() as usize;
        let sources = match numbers {
            0 => Vec::new(),
            _ => {
                let present: Vec<Pair> = sources()?.into_iter().map(Pair::of).collect();
                sources::assign(&model.balancing.snat, numbers, &present)
            }
        };
        self.services = Some(Services {
            model: model.clone(),
            seed,
            tables,
            slots,
            sources,
            targets: Targets::default(),
        });
        // Before anything is written.
        self.look_at_host(true)?;
        if let Some(s) = &mut self.services {
            s.tables.set_services(&entries)?;
        }
        self.dirty = true;
        self.resolve();
        self.inherit(&inherited);
        self.ask_listeners(Now::read());
        Ok(self.write_targets()?)
    }

    /// What was filled is in force. Attacks on what is no longer followed are over with that.
    /// At the start nobody can have asked yet for what is told of them.
    pub(super) fn keep(&mut self, shared: &Shared) {
        self.former = None;
        self.told = self.prepared;
        self.limited = self.filled;
        match self.model().filter(|m| m.needs_cookies()) {
            None => self.keeper.release(),
            // Not before it is in force: a former one may go on.
            Some(model) if model.flood.sysctls == Sysctls::Check => self.keeper.disown(),
            Some(_) => {}
        }
        let mut watch = std::mem::take(&mut self.watch);
        watch.keep(|name, found| self.is_there(name, found));
        self.watch = watch;
        let gone = { shared.attacks.lock() }.keep(|name, found| self.is_there(name, found));
        tell(gone, shared);
        let forwards = || sysctl::read(&root(), "net/ipv4/ip_forward").is_ok_and(|v| v != "0");
        if self.model().is_some_and(Model::has_rest) && forwards() {
            warn!(
                "flood.rest is on, and this host forwards packets (net.ipv4.ip_forward): if its \
                 addresses are those of a NAT, connections through it are taken for a flood; set \
                 flood.rest = \"off\" then"
            );
        }
    }

    /// What was prepared or filled does not come into force: what was before does.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub(super) fn restore(&mut self) -> Result<(), DatapathError> {
        let former = self.former.take();
        let filled = former.is_some();
        if let Some(former) = former {
            self.services = former;
        }
        if !self.model().is_some_and(Model::needs_cookies) {
            self.keeper.release();
        }
        let services = self.services.as_mut().filter(|_| filled);
        if let Some(s) = services {
            s.tables.set_services(&slots::entries(&s.model, &s.slots))?;
            self.dirty = true;
            self.resolve();
            self.write_targets()?;
        }
        Ok(())
    }

    /// The programs are gone: the sysctls are needed no longer.
    pub(super) fn detached(&mut self) {
        self.keeper.release();
    }

    /// The daemon does not come to run.
    pub(super) fn give_up(&mut self) {
        self.keeper.give_up();
    }

    /// The services in force.
    fn model(&self) -> Option<&Model> {
        self.services.as_ref().map(|s| &s.model)
    }

    /// Asks the host for its listeners, and for what changes seldom as well if it is
    /// time for that.
    ///
    /// # Errors
    /// When the kernel does not tell. What it told before the error counts.
    fn look_at_host(&mut self, seldom: bool) -> io::Result<()> {
        let Some(Services { model, .. }) = &self.services else {
            return Ok(());
        };
        let ask_host = || {
            let memory = sysctl::tcp_memory(&root()).unwrap_or_default();
            Ok((host::host(&model.interfaces)?, memory))
        };
        let needs_listeners = model.services.iter().any(is_followed);
        let looked = self.sight.look(
            seldom.then_some(ask_host),
            needs_listeners.then_some(host::listeners),
        );
        self.dirty |= self.sight.take_changed();
        looked
    }

    /// Works the targets out anew.
    fn resolve(&mut self) {
        let Some(s) = &mut self.services else {
            return;
        };
        let room = s.model.flood.targets;
        s.targets = resolve(
            &s.model.services,
            &s.slots,
            &self.sight.host,
            &self.sight.listeners,
            &s.model.balancing.snat,
            room,
        );
        if s.targets.left_out > self.left_out {
            warn!(
                left_out = s.targets.left_out,
                room,
                "addresses and ports of services found no room and are NOT defended: raise \
                 tables.service_targets"
            );
        }
        self.left_out = s.targets.left_out;
        let services = &s.model.services;
        let wanted = s
            .targets
            .listeners(|i| services.get(i).is_some_and(|s| s.syn != When::Off));
        let Sight {
            listeners, memory, ..
        } = &self.sight;
        for note in self.scales.update(&wanted, listeners, *memory) {
            warn!("{note}");
        }
    }

    /// Takes in the window scales that stand in the tables: those of listeners that have
    /// not answered this daemon yet. Should another socket listen there since, its answer
    /// puts that right within moments.
    fn inherit(&mut self, present: &BTreeMap<TargetKey, u8>) {
        let Some(s) = &self.services else {
            return;
        };
        for (key, planned) in &s.targets.planned {
            if let (Some(place), Some(scale)) = (planned.listener, present.get(key)) {
                self.scales.inherit(&place, *scale);
            }
        }
    }

    /// Asks the listeners that are due for their window scale.
    fn ask_listeners(&mut self, now: Now) {
        let mut asked_any = false;
        // The first that could not be asked, and how many there were.
        let mut failed: Option<(SocketAddr, io::Error)> = None;
        let mut failures = 0u32;
        for question in self.scales.due(now.mono_ns, QUESTIONS) {
            let asked = Now::read().mono_ns;
            if asked.saturating_sub(now.mono_ns) > ALL_PATIENCE_NS {
                break;
            }
            asked_any = true;
            let answer = host::window_scale(question.at, PATIENCE).unwrap_or_else(|e| {
                failures += 1;
                failed.get_or_insert((question.at, e));
                None
            });
            self.dirty |= answer.is_some();
            if let Some(note) = self.scales.answer(&question.place, answer, now.mono_ns) {
                warn!("{note}");
            }
        }
        match failed {
            // What is told again when it changes is the error, not how many it met.
            Some((at, e)) if self.troubles.is_new(Trouble::Listeners, &e.to_string()) => {
                let remedy = match e.raw_os_error() {
                    Some(libc::EPERM) => " (needs CAP_NET_RAW)",
                    _ => "",
                };
                warn!(
                    failures,
                    "listeners cannot be asked for their window scale, and their SYNs are left \
                     to the kernel; the first is on {at}: {e}{remedy}"
                );
            }
            Some(_) => {}
            None if asked_any => self.troubles.is_over(Trouble::Listeners),
            None => {}
        }
    }

    /// Writes the targets, with the window scales that are known.
    fn write_targets(&mut self) -> Result<(), DatapathError> {
        let Some(s) = &mut self.services else {
            return Ok(());
        };
        let mut entries = s.targets.entries(|place| self.scales.get(place));
        entries.extend(s.targets.of_addresses(&s.model.services));
        entries.extend(sources::entries(&s.sources));
        let reflection = &s.model.floods.reflection;
        let reflectors: Vec<u16> = match s.model.reflection_mode() {
            Mode::Off => Vec::new(),
            _ => reflection.ports.iter().cloned().flatten().collect(),
        };
        s.tables.set_targets(&entries, &reflectors, &s.seed)?;
        self.dirty = false;
        Ok(())
    }

    /// Where services stand in the tables, in the order of the configuration.
    pub(super) fn slots(&self) -> &[Slot] {
        self.services.as_ref().map_or(&[], |s| &s.slots)
    }

    /// The source addresses of NAT, by number.
    pub(super) fn sources(&self) -> &[Pair] {
        self.services.as_ref().map_or(&[], |s| &s.sources)
    }

    /// How many addresses and ports there is room for.
    pub(super) fn room(&self) -> u64 {
        self.model().map_or(0, |m| m.flood.targets.into())
    }

    /// Verified sources and the room for them, counted a moment ago; `None` where no service
    /// has any.
    pub(super) fn verified(&mut self, now: Now) -> Option<(u64, u64)> {
        let s = self.services.as_ref()?;
        if !s.model.services.iter().any(|service| service.forwarded) {
            return None;
        }
        // A thousandth of the time at most: a word takes about a nanosecond.
        let (_, room) = self.verified;
        if now.mono_ns.saturating_sub(self.counted_ns) >= COUNT_EVERY_NS.max(1000 * room)
            || room == 0
        {
            self.verified = s.tables.verified(now.mono_ns, s.model.verified_ttl());
            self.counted_ns = now.mono_ns;
        }
        Some(self.verified)
    }

    /// How all services are, and what attacks on them are found by.
    pub(super) fn statuses(&self, now: Now) -> Vec<(ServiceStatus, Found)> {
        let Some(s) = &self.services else {
            return Vec::new();
        };
        let mut counts = vec![ServiceTargets::default(); s.model.services.len()];
        for (key, planned) in &s.targets.planned {
            if let Some(count) = counts.get_mut(planned.service) {
                let scale = planned.listener.and_then(|place| self.scales.get(&place));
                count.total += 1;
                // Only the SYNs of a listener are answered in its place.
                let is_local = matches!(planned.kind, TARGET_LOCAL | TARGET_BOUND);
                let of_listener = is_local && key.proto == proto::TCP;
                count.ready += u64::from(!of_listener || scale.is_some());
            }
        }
        let services = s.model.services.iter().zip(counts);
        let one = |(service, targets)| {
            let status = self.watch.status(service, targets, now);
            (status, found_by(service))
        };
        services.map(one).collect()
    }
}

/// Whether listeners matter to a service.
fn is_followed(service: &Service) -> bool {
    let defended = service.syn != When::Off || service.ports == Ports::Listening;
    let has_listeners = service.ports != Ports::Rest;
    defended && has_listeners && service.protocol == Protocol::Tcp && !service.forwarded
}

fn root() -> PathBuf {
    PathBuf::from(sysctl::ROOT)
}
