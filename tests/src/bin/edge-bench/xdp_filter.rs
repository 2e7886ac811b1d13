//! The peer of the blacklist: `xdp-filter` of Debian's `xdp-tools`, whose own program is
//! loaded and has its own map filled. It knows a blacklist of addresses and nothing else.

use std::{
    os::fd::{AsFd, BorrowedFd},
    path::{Path, PathBuf},
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

/// Lets everything pass but what its tables name.
const OBJECT: &str = "xdpfilt_alw_ip.o";
const PROGRAM: &str = "xdpfilt_alw_ip";
/// Of an entry: packets from the address are dropped (`MAP_FLAG_SRC` of xdp-filter). What
/// is above the flags counts packets.
const FROM: u64 = 1;

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
        for name in ["filter_ipv4", "filter_ipv6"] {
            loader.map_max_entries(name, hosts.max(1));
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
        let name = match family {
            Family::V4 => "filter_ipv4",
            Family::V6 => "filter_ipv6",
        };
        let map = self
            .ebpf
            .map_mut(name)
            .with_context(|| format!("xdp-filter has no map {name}"))?;
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

    /// Its program.
    pub(crate) fn fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

fn error_of(what: &str, error: std::io::Error) -> anyhow::Error {
    anyhow::Error::from(error).context(what.to_owned())
}

/// The object, as the package has it: of the machine, or unpacked beside the program.
fn object() -> Result<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .filter_map(|dir| dir.join("xdp-filter").canonicalize().ok())
        .flat_map(|program| {
            // `/usr/sbin/xdp-filter`, or `GROUP/bin/xdp-filter` of what is in `GROUP/root`.
            let above = program.ancestors().nth(2).map(Path::to_path_buf);
            above
                .into_iter()
                .flat_map(|dir| [dir.join("root/usr/lib"), dir.join("lib")])
        })
        .find_map(|lib| {
            let own = [lib.clone()].into_iter();
            let of_targets = lib
                .read_dir()
                .into_iter()
                .flatten()
                .flatten()
                .map(|e| e.path());
            own.chain(of_targets)
                .map(|dir| dir.join("bpf").join(OBJECT))
                .find(|file| file.is_file())
        })
        .with_context(|| {
            format!("{OBJECT} of xdp-filter is not there (cargo xtask setup fetches it)")
        })
}
