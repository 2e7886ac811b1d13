//! Putting a prepared change into force, all of it or nothing.

use std::{
    collections::BTreeMap,
    net::Ipv4Addr,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant},
};

use aya::{Ebpf, programs::Xdp};
use edge_common::abi;
use tracing::{error, info, warn};

use super::{
    Active, Datapath, Loaded, Prepared,
    attach::{self, Existing},
    error::{self, DatapathError},
    maps::ArpTable,
    netlink,
    pins::{self, Pins},
    preflight, program,
};
use crate::status::AttachMode;

/// A step that was taken, and what undoes it.
enum Step {
    /// A pin got another name.
    Renamed { from: PathBuf, to: PathBuf },
    /// A link was made.
    Attached { pin: PathBuf },
    /// A program was replaced by another one.
    Replaced {
        pin: PathBuf,
        interface: String,
        old: Box<Xdp>,
    },
    /// The ARP bindings were changed.
    ArpBindings(Vec<(Ipv4Addr, [u8; 6])>),
    /// The assignment of counters was changed.
    Blocks(BTreeMap<String, u32>),
    /// The tables' fingerprint was changed.
    Seed(Option<String>),
}

impl Datapath {
    /// Puts a prepared change into force. Interfaces that are attached already
    /// get the new program in the place of the old one, with no packet in
    /// between that neither saw; new ones are attached, and those that are no
    /// longer wanted are detached last.
    ///
    /// # Errors
    /// When an interface cannot be attached or replaced. Everything is then as
    /// it was.
    pub fn commit(&mut self, prepared: Prepared) -> Result<(), DatapathError> {
        let Prepared {
            settings,
            maps,
            mut loaded,
            blocks,
            mut staged,
            ..
        } = prepared;
        self.secure_ways_back()?;
        let mut steps = Vec::new();
        let done = (|| {
            self.place_maps(
                &mut steps,
                &staged.0,
                &program::fingerprint(&settings.program.config.seed),
            )?;
            steps.push(Step::Blocks(self.pins.blocks()));
            self.pins.set_blocks(&blocks)?;
            let mut table = ArpTable::open(&self.pins.map(abi::maps::ARP_BINDINGS))?;
            steps.push(Step::ArpBindings(table.get()?));
            table.set(&settings.arp_bindings)?;
            // What can fail comes first: a new interface may refuse, a
            // replacement hardly ever does. And last what cannot be undone.
            let mut order: Vec<&mut Loaded> = loaded.iter_mut().collect();
            order.sort_by_cached_key(|l| match self.pins.find_link(&l.state.name) {
                None => 0,
                Some(link) if self.way_back(&link, &l.state.name).is_some() => 1,
                Some(_) => 2,
            });
            for l in order {
                self.place_program(&mut steps, l, settings.allow_generic)?;
            }
            Ok(())
        })();
        if let Err(e) = done {
            for step in steps.into_iter().rev() {
                if let Err(e) = self.undo(step) {
                    error!("cannot undo a step of a failed change: {e}");
                }
            }
            return Err(e);
        }
        staged.0.clear();
        staged.1.clear();
        drop(steps);
        // Whoever has a link open keeps it attached.
        self.active = None;
        self.clean_up(&mut loaded);
        self.active = Some(Active {
            maps: Arc::new(maps),
            loaded,
            allow_generic: settings.allow_generic,
        });
        Ok(())
    }

    /// Gives the new maps the names of those in force.
    fn place_maps(
        &self,
        steps: &mut Vec<Step>,
        staged: &BTreeMap<&'static str, PathBuf>,
        seed: &str,
    ) -> Result<(), DatapathError> {
        // The fingerprint never stands beside tables that it does not belong
        // to, even if this process dies in between.
        let former = self.pins.seed();
        if former.as_deref() != Some(seed) {
            steps.push(Step::Seed(former));
            self.pins.set_seed(None)?;
        }
        for (name, from) in staged {
            let to = self.pins.map(name);
            if to.exists() {
                let retired = self.pins.retired(name);
                rename(steps, &to, &retired)?;
            }
            rename(steps, from, &to)?;
        }
        self.pins.set_seed(Some(seed))
    }

    fn undo(&self, step: Step) -> Result<(), DatapathError> {
        match step {
            Step::Renamed { from, to } => pins::rename(&to, &from),
            Step::Attached { pin } => pins::unlink(&pin),
            Step::Replaced {
                pin,
                interface,
                mut old,
            } => attach::replace(&mut old, &pin, &interface),
            Step::ArpBindings(bindings) => {
                ArpTable::open(&self.pins.map(abi::maps::ARP_BINDINGS))?.set(&bindings)
            }
            Step::Blocks(blocks) => self.pins.set_blocks(&blocks),
            Step::Seed(seed) => self.pins.set_seed(seed.as_deref()),
        }
    }

    /// What is left to do once the change is in force; no failure of it
    /// matters to a packet.
    fn clean_up(&self, loaded: &mut [Loaded]) {
        let mut gone = Vec::new();
        for name in self.pins.linked() {
            if loaded.iter().any(|l| l.state.name == name) {
                continue;
            }
            match self.release(&name) {
                Ok(program) => {
                    info!(interface = name, "detached");
                    gone.extend(program.map(|p| (name, p)));
                }
                Err(e) => error!(interface = name, "cannot detach: {e}"),
            }
        }
        if let Err(e) = wait_detached(&gone) {
            warn!("{e}");
        }
        for Loaded { ebpf, state, .. } in loaded.iter_mut() {
            if let Err(e) = pin_program(&self.pins, ebpf, &state.name) {
                warn!("a later change that fails cannot put this program back: {e}");
            }
        }
        let stages: Vec<&Path> = loaded.iter().map(|l| l.stages.as_path()).collect();
        self.pins.keep_stages(&stages);
        self.pins.remove_other_versions();
        self.pins.clear_staging();
    }

    /// Lets go of an interface. Returns the program that ran there.
    pub(super) fn release(&self, interface: &str) -> Result<Option<u32>, DatapathError> {
        let pin = self.pins.link(interface);
        let program = attach::program_of(&pin);
        pins::unlink(&pin)?;
        pins::unlink(&self.pins.program(interface))?;
        Ok(program)
    }

    /// Pins the programs of this process that have lost their pin: whatever
    /// begins a change must be able to put them back.
    fn secure_ways_back(&mut self) -> Result<(), DatapathError> {
        let active = self.active.iter_mut();
        for Loaded { ebpf, state, .. } in active.flat_map(|a| &mut a.loaded) {
            let id = program::xdp(ebpf).and_then(|p| p.info()).map(|i| i.id());
            let pin = self.pins.program(&state.name);
            if !id.is_ok_and(|id| attach::pinned(&pin, id).is_some()) {
                pin_program(&self.pins, ebpf, &state.name)?;
            }
        }
        Ok(())
    }

    /// The program that runs under the interface's link, to be put back if need
    /// be; `None` when there is no way to get hold of it.
    fn way_back(&self, link: &Path, interface: &str) -> Option<Xdp> {
        let program = attach::program_of(link)?;
        attach::pinned(&self.pins.program_beside(link, interface), program)
            .or_else(|| attach::by_id(program))
    }

    /// Attaches or replaces the program of one interface.
    fn place_program(
        &self,
        steps: &mut Vec<Step>,
        loaded: &mut Loaded,
        allow_generic: bool,
    ) -> Result<(), DatapathError> {
        let Loaded { ebpf, state, .. } = loaded;
        let facts = preflight::interface(&state.name)?;
        let xdp = program::xdp(ebpf).map_err(|e| DatapathError::Attach {
            interface: state.name.clone(),
            why: error::chain(&e),
        })?;
        state.ifindex = facts.index;
        let pin = self.pins.link(&state.name);
        let found = self.pins.find_link(&state.name);
        if let Some(found) = &found
            && let Existing::Attached { mode } = attach::existing(found, &facts)
        {
            if mode == AttachMode::Generic && !allow_generic {
                return Err(DatapathError::AttachedGeneric {
                    interface: state.name.clone(),
                });
            }
            if mode == AttachMode::Generic {
                warn!(interface = state.name, "attached in the slow GENERIC mode");
            }
            let old = self.way_back(found, &state.name);
            if *found != pin {
                rename(steps, found, &pin)?;
            }
            attach::replace(xdp, &pin, &state.name)?;
            match old {
                Some(old) => steps.push(Step::Replaced {
                    pin,
                    interface: state.name.clone(),
                    old: Box::new(old),
                }),
                None => warn!(
                    interface = state.name,
                    "its former program has no pin: if another interface fails now, this one \
                     keeps the new program"
                ),
            }
            state.mode = Some(mode);
            state.adopted = true;
            return Ok(());
        }
        let staged = self.pins.staged_link(&state.name);
        let mode = attach::attach(xdp, &facts, allow_generic, &staged)?;
        // Whatever lies at the pin is the link of an interface that is gone.
        if let Err(e) = pins::rename(&staged, &pin) {
            pins::unlink(&staged)?;
            return Err(e);
        }
        steps.push(Step::Attached { pin });
        state.mode = Some(mode);
        Ok(())
    }
}

/// Pins the program of an interface, so that a later change can put it back.
fn pin_program(pins: &Pins, ebpf: &mut Ebpf, interface: &str) -> Result<(), DatapathError> {
    let path = pins.program(interface);
    pins::unlink(&path)?;
    let failed = |why| DatapathError::Attach {
        interface: interface.into(),
        why,
    };
    program::xdp(ebpf)
        .map_err(|e| failed(error::chain(&e)))?
        .pin(&path)
        .map_err(|e| failed(error::chain(&e)))
}

fn rename(steps: &mut Vec<Step>, from: &Path, to: &Path) -> Result<(), DatapathError> {
    pins::rename(from, to)?;
    steps.push(Step::Renamed {
        from: from.into(),
        to: to.into(),
    });
    Ok(())
}

/// Waits until none of the interfaces runs the program with the id beside it:
/// the kernel takes a program off a moment after its last pin is gone.
#[expect(
    clippy::disallowed_methods,
    reason = "the pause between two looks; nothing says when the kernel is done"
)]
pub(super) fn wait_detached(gone: &[(String, u32)]) -> Result<(), DatapathError> {
    const PATIENCE: Duration = Duration::from_secs(2);
    let deadline = Instant::now() + PATIENCE;
    for (name, program) in gone {
        loop {
            let hook = netlink::interface(name)
                .map_err(DatapathError::Netlink)?
                .and_then(|i| i.hook)
                .filter(|h| h.program == *program);
            let Some(hook) = hook else {
                break;
            };
            if Instant::now() >= deadline {
                return Err(attach::held(name, hook));
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }
    Ok(())
}
