//! The decapsulator: an object of its own, whose links live as long as the process.

use std::{
    collections::BTreeSet,
    net::IpAddr,
    os::fd::{AsFd, BorrowedFd},
};

use aya::{
    Ebpf, EbpfError, EbpfLoader, Pod,
    maps::{HashMap, LpmTrie, Map, MapData, MapError, PerCpuArray, lpm_trie::Key},
    programs::{ProgramError, Xdp, links::FdLink},
};
use edge_common::{
    addr::Prefix,
    decap::{GUE_PORT_SYMBOL, MAX_LOCAL, Outcome, PROGRAM, maps},
};
use tracing::{info, warn};

use super::{
    attach,
    commit::wait_detached,
    error::{DatapathError, chain},
    netlink::{self, Interface},
    preflight,
};
use crate::status::{
    AttachMode,
    decap::{DecapInterface, Packets},
};

/// The object of this build.
static OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/edge-decap.o"));

/// The loaded program, and the interfaces it is attached to.
pub struct Decap {
    ebpf: Ebpf,
    outcomes: PerCpuArray<MapData, u64>,
    local4: HashMap<MapData, [u8; 4], u32>,
    local6: HashMap<MapData, [u8; 16], u32>,
    local: BTreeSet<IpAddr>,
    attached: Vec<Attached>,
}

/// An interface.
#[derive(Debug)]
struct Attached {
    name: String,
    allow_generic: bool,
    link: Option<(FdLink, AttachMode)>,
    /// Why it is not attached any more.
    problem: Option<String>,
}

impl Decap {
    /// Loads the program. It takes packets out of tunnels from `sources`, once there
    /// are addresses that these may go to.
    ///
    /// # Errors
    /// When capabilities are missing, a map cannot be made or filled, or the kernel
    /// does not take the program.
    pub fn load(sources: &[Prefix], gue_port: u16) -> Result<Self, DatapathError> {
        preflight::permissions()?;
        preflight::lift_memory_limit();
        let failed = |e: EbpfError| DatapathError::load(PROGRAM, &e);
        let v4 = sources.iter().filter(|p| p.addr().is_ipv4()).count();
        let gue_port = gue_port.to_be();
        let mut loader = EbpfLoader::new();
        loader.override_global(GUE_PORT_SYMBOL, &gue_port, true);
        for (name, prefixes) in [(maps::SOURCES4, v4), (maps::SOURCES6, sources.len() - v4)] {
            let entries = u32::try_from(prefixes.max(1)).unwrap_or(u32::MAX);
            loader.map_max_entries(name, entries);
        }
        let mut ebpf = loader.load(OBJECT).map_err(failed)?;
        xdp(&mut ebpf)
            .and_then(Xdp::load)
            .map_err(|e| failed(EbpfError::ProgramError(e)))?;
        let mut trie4: LpmTrie<_, [u8; 4], u32> = typed(&mut ebpf, maps::SOURCES4)?;
        let mut trie6: LpmTrie<_, [u8; 16], u32> = typed(&mut ebpf, maps::SOURCES6)?;
        for prefix in sources {
            let length = prefix.len().into();
            match prefix.addr() {
                IpAddr::V4(a) => trie4.insert(&Key::new(length, a.octets()), 1, 0),
                IpAddr::V6(a) => trie6.insert(&Key::new(length, a.octets()), 1, 0),
            }
            .map_err(|e| DatapathError::map_access(maps::SOURCES4, e))?;
        }
        Ok(Self {
            outcomes: typed(&mut ebpf, maps::OUTCOMES)?,
            local4: typed(&mut ebpf, maps::LOCAL4)?,
            local6: typed(&mut ebpf, maps::LOCAL6)?,
            ebpf,
            local: BTreeSet::new(),
            attached: Vec::new(),
        })
    }

    /// Makes these the addresses that tunnels may go to. Those that stay are there all
    /// the time.
    ///
    /// # Errors
    /// When there are more than [`MAX_LOCAL`] of a family, or the kernel refuses; some
    /// may have been changed then.
    pub fn set_local(&mut self, local: &BTreeSet<IpAddr>) -> Result<(), DatapathError> {
        // What goes makes room for what comes.
        for address in self.local.clone().difference(local) {
            match address {
                IpAddr::V4(a) => remove(&mut self.local4, maps::LOCAL4, a.octets())?,
                IpAddr::V6(a) => remove(&mut self.local6, maps::LOCAL6, a.octets())?,
            }
            self.local.remove(address);
        }
        for address in local.difference(&self.local.clone()) {
            match address {
                IpAddr::V4(a) => insert(&mut self.local4, maps::LOCAL4, a.octets())?,
                IpAddr::V6(a) => insert(&mut self.local6, maps::LOCAL6, a.octets())?,
            }
            self.local.insert(*address);
        }
        Ok(())
    }

    /// The addresses that tunnels may go to.
    pub const fn local(&self) -> &BTreeSet<IpAddr> {
        &self.local
    }

    /// Attaches the program to an interface.
    ///
    /// # Errors
    /// When there is none of that name, another program holds its hook, or the driver
    /// refuses and generic mode is not allowed.
    pub fn attach(&mut self, interface: &str, allow_generic: bool) -> Result<(), DatapathError> {
        let facts = preflight::interface(interface)?;
        let link = attach(&mut self.ebpf, &facts, allow_generic)?;
        self.attached.push(Attached {
            name: interface.into(),
            allow_generic,
            link: Some(link),
            problem: None,
        });
        Ok(())
    }

    /// The interfaces, in the order in which they were attached.
    pub fn interfaces(&self) -> Vec<DecapInterface> {
        let state = |a: &Attached| DecapInterface {
            name: a.name.clone(),
            mode: a.link.as_ref().map(|(_, mode)| *mode),
        };
        self.attached.iter().map(state).collect()
    }

    /// Looks after interfaces that went away or came back, and attaches the latter
    /// anew. To be called about once a second.
    pub fn watch(&mut self) {
        let program = match self.program_id() {
            Ok(program) => program,
            Err(e) => return warn!("{e}"),
        };
        for attached in &mut self.attached {
            let problem = match netlink::interface(&attached.name) {
                Ok(Some(facts)) if facts.hook.is_some_and(|h| h.program == program) => continue,
                Ok(Some(facts)) => match attach(&mut self.ebpf, &facts, attached.allow_generic) {
                    Ok(link) => {
                        info!(
                            interface = attached.name,
                            mode = link.1.name(),
                            "attached anew"
                        );
                        attached.link = Some(link);
                        attached.problem = None;
                        continue;
                    }
                    Err(e) => e.to_string(),
                },
                Ok(None) => "the interface does not exist any more".to_owned(),
                Err(e) => {
                    warn!(
                        interface = attached.name,
                        "cannot ask for the interface: {e}"
                    );
                    continue;
                }
            };
            attached.link = None;
            if attached.problem.as_ref() != Some(&problem) {
                warn!(interface = attached.name, "NOT ATTACHED: {problem}");
                attached.problem = Some(problem);
            }
        }
    }

    /// What became of all packets up to now.
    ///
    /// # Errors
    /// When the kernel refuses to read the map.
    pub fn packets(&self) -> Result<Packets, DatapathError> {
        let mut packets = [0u64; Outcome::COUNT];
        for (sum, index) in packets.iter_mut().zip(0..) {
            let values = self
                .outcomes
                .get(&index, 0)
                .map_err(|e| DatapathError::map_access(maps::OUTCOMES, e))?;
            *sum = values.iter().fold(0, |sum, n| sum.wrapping_add(*n));
        }
        Ok(packets)
    }

    /// Takes the program off all interfaces.
    ///
    /// # Errors
    /// When a hook is still held afterwards.
    pub fn detach(&mut self) -> Result<(), DatapathError> {
        let program = self.program_id()?;
        let gone: Vec<_> = { self.attached.drain(..) }
            .map(|a| (a.name, program))
            .collect();
        wait_detached(&gone)
    }

    /// Calls `f` with the program's descriptor, for test runs.
    ///
    /// # Errors
    /// When the program is not loaded.
    pub fn with_program<T>(
        &mut self,
        f: impl FnOnce(BorrowedFd<'_>) -> T,
    ) -> Result<T, DatapathError> {
        let fd = xdp(&mut self.ebpf).and_then(|xdp| Ok(xdp.fd()?.as_fd()));
        fd.map(f).map_err(|e| unknown(&e))
    }

    /// How many instructions the verifier went through; 0 where the kernel does not tell.
    ///
    /// # Errors
    /// When the kernel refuses to tell of the program.
    pub fn verified_instructions(&mut self) -> Result<u32, DatapathError> {
        let info = xdp(&mut self.ebpf).and_then(|xdp| xdp.info());
        let info = info.map_err(|e| unknown(&e))?;
        Ok(info.verified_instruction_count().unwrap_or_default())
    }

    fn program_id(&mut self) -> Result<u32, DatapathError> {
        let info = xdp(&mut self.ebpf).and_then(|xdp| xdp.info());
        info.map(|info| info.id()).map_err(|e| unknown(&e))
    }
}

fn unknown(error: &ProgramError) -> DatapathError {
    DatapathError::Attach {
        interface: PROGRAM.into(),
        why: chain(error),
    }
}

fn xdp(ebpf: &mut Ebpf) -> Result<&mut Xdp, ProgramError> {
    ebpf.program_mut(PROGRAM)
        .ok_or(ProgramError::NotLoaded)?
        .try_into()
}

fn attach(
    ebpf: &mut Ebpf,
    facts: &Interface,
    allow_generic: bool,
) -> Result<(FdLink, AttachMode), DatapathError> {
    let program = xdp(ebpf).map_err(|e| DatapathError::Attach {
        interface: facts.name.clone(),
        why: chain(&e),
    })?;
    attach::attach_unpinned(program, facts, allow_generic)
}

/// Takes a map out of the object.
fn typed<T>(ebpf: &mut Ebpf, name: &'static str) -> Result<T, DatapathError>
where
    T: TryFrom<Map, Error = MapError>,
{
    let map = ebpf.take_map(name).ok_or(DatapathError::Map {
        map: name,
        why: "is not in the object".into(),
    })?;
    T::try_from(map).map_err(|e| DatapathError::map_access(name, e))
}

fn insert<K: Pod>(
    map: &mut HashMap<MapData, K, u32>,
    name: &'static str,
    key: K,
) -> Result<(), DatapathError> {
    map.insert(key, 1, 0).map_err(|e| match &e {
        MapError::SyscallError(s) if s.io_error.raw_os_error() == Some(libc::E2BIG) => {
            DatapathError::Map {
                map: name,
                why: format!(
                    "has room for {MAX_LOCAL} addresses, and there are more; name those that \
                     tunnels go to with `--local`"
                ),
            }
        }
        _ => DatapathError::map_access(name, e),
    })
}

fn remove<K: Pod>(
    map: &mut HashMap<MapData, K, u32>,
    name: &'static str,
    key: K,
) -> Result<(), DatapathError> {
    map.remove(&key)
        .map_err(|e| DatapathError::map_access(name, e))
}
