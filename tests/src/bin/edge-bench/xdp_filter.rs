//! The peer of the blacklist: `xdp-filter` of Debian's `xdp-tools`, whose own program is
//! loaded and has its own maps filled. It knows a blacklist of addresses and nothing else.

use std::{
    os::fd::{AsFd, BorrowedFd},
    path::PathBuf,
};

use anyhow::{Context, Result};
use aya::{
    Ebpf, EbpfLoader,
    maps::{PerCpuHashMap, PerCpuValues},
    programs::{ProgramFd, Xdp},
    util::nr_cpus,
};
use edge_common::addr::{Family, Prefix};
use edge_tests::netns::Namespace;

use crate::packets::BOTH;

/// Lets everything pass but what its tables name.
const OBJECT: &str = "xdpfilt_alw_ip.o";
const PROGRAM: &str = "xdpfilt_alw_ip";
/// Of an entry: packets from the address are dropped (`MAP_FLAG_SRC` of xdp-filter). What
/// is above the flags counts packets.
const FROM: u64 = 1;
/// Bits of flags below that (`COUNTER_SHIFT`).
const FLAGS: u32 = 6;

/// The loaded program.
pub(crate) struct XdpFilter {
    ebpf: Ebpf,
    fd: ProgramFd,
}

impl XdpFilter {
    /// Loads it, with room for so many addresses of each family.
    pub(crate) fn load(hosts: u32) -> Result<Self> {
        let path = object()?;
        let mut loader = EbpfLoader::new();
        for family in BOTH {
            loader.map_max_entries(table(family), hosts.max(1));
        }
        // It asks for its maps to be pinned by their names, which is of no use here.
        loader.default_map_pin_directory("/sys/fs/bpf");
        let mut ebpf = Namespace::new()
            .among_mounts(|| loader.load_file(&path))
            .with_context(|| format!("{} does not load", path.display()))?;
        let program: &mut Xdp = ebpf
            .program_mut(PROGRAM)
            .with_context(|| format!("no program {PROGRAM} in {}", path.display()))?
            .try_into()?;
        program.load()?;
        let fd = program.fd()?.try_clone()?;
        Ok(Self { ebpf, fd })
    }

    /// Blacklists addresses.
    pub(crate) fn blacklist(
        &mut self,
        family: Family,
        hosts: impl Iterator<Item = Prefix>,
    ) -> Result<()> {
        let value = || -> Result<_> {
            let cpus = nr_cpus().map_err(|(what, error)| error_of(what, error))?;
            Ok(PerCpuValues::try_from(vec![FROM; cpus])?)
        };
        let map = self.ebpf.map_mut(table(family));
        let map = map.context("xdp-filter has another table")?;
        match family {
            Family::V4 => {
                let mut map = PerCpuHashMap::<_, u32, u64>::try_from(map)?;
                for host in hosts {
                    map.insert((host.bits() as u32).to_be(), value()?, 0)?;
                }
            }
            Family::V6 => {
                let mut map = PerCpuHashMap::<_, [u8; 16], u64>::try_from(map)?;
                for host in hosts {
                    map.insert(host.bits().to_be_bytes(), value()?, 0)?;
                }
            }
        }
        Ok(())
    }

    /// Whether it has dropped a packet from this host.
    pub(crate) fn has_dropped(&self, family: Family, host: Prefix) -> Result<bool> {
        let map = self.ebpf.map(table(family));
        let map = map.context("xdp-filter has another table")?;
        let values = match family {
            Family::V4 => PerCpuHashMap::<_, u32, u64>::try_from(map)?
                .get(&(host.bits() as u32).to_be(), 0)?,
            Family::V6 => PerCpuHashMap::<_, [u8; 16], u64>::try_from(map)?
                .get(&host.bits().to_be_bytes(), 0)?,
        };
        Ok(values.iter().any(|value| value >> FLAGS != 0))
    }

    /// Its program.
    pub(crate) fn fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// The map of a family's addresses.
const fn table(family: Family) -> &'static str {
    match family {
        Family::V4 => "filter_ipv4",
        Family::V6 => "filter_ipv6",
    }
}

fn error_of(what: &str, error: std::io::Error) -> anyhow::Error {
    anyhow::Error::from(error).context(what.to_owned())
}

/// The object, as Debian's `libxdp1` has it, on which `xdp-tools` depends: unpacked beside the
/// program, or of the machine.
fn object() -> Result<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    // A program in `GROUP/bin` was unpacked from what is in `GROUP/root`.
    let unpacked = std::env::split_paths(&path)
        .filter_map(|dir| dir.join("xdp-filter").canonicalize().ok())
        .filter_map(|program| Some(program.ancestors().nth(2)?.join("root/usr/lib")));
    unpacked
        .chain([PathBuf::from("/usr/lib")])
        .flat_map(|lib| lib.read_dir().into_iter().flatten().flatten())
        .map(|of_target| of_target.path().join("bpf").join(OBJECT))
        .find(|file| file.is_file())
        .with_context(|| format!("no {OBJECT} of Debian's libxdp1 (cargo xtask setup fetches it)"))
}
