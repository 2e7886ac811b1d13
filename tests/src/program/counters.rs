//! The counters of test runs in one system call. The daemon's own way takes one for each reason,
//! which is nothing twice a second, and most of the time of forty thousand packets.

use std::{
    io,
    os::fd::{AsFd as _, AsRawFd as _},
};

use anyhow::{Context as _, Result};
use aya::{
    maps::{Map, MapData},
    util::nr_cpus,
};
use edge_common::{
    abi::{CounterCell, counter_index, maps},
    reason::Reason,
};
use edge_userspace::datapath::{InterfaceCounters, Unattached};

/// `BPF_MAP_LOOKUP_BATCH` of `enum bpf_cmd`.
const BPF_MAP_LOOKUP_BATCH: libc::c_long = 24;
/// Cells of an interface: for each reason what ended with it, and what a dry run would have dropped.
pub(super) const CELLS: usize = 2 * Reason::COUNT;
/// 64-bit words of a cell: packets and bytes are the first two.
const WORDS: usize = size_of::<CounterCell>() / size_of::<u64>();

/// The part of `union bpf_attr` for batches (linux/bpf.h).
#[repr(C)]
#[derive(Default)]
struct Attributes {
    in_batch: u64,
    out_batch: u64,
    keys: u64,
    values: u64,
    count: u32,
    map_fd: u32,
    elem_flags: u64,
    flags: u64,
}

const _: () = assert!(size_of::<Attributes>() == 56);

/// Reads the counters of the first interface, which is that of test runs.
pub(super) struct Counters {
    map: MapData,
    cpus: usize,
}

impl Counters {
    pub(super) fn of(edge: &Unattached) -> Result<Self> {
        let Map::PerCpuArray(map) = edge.map(maps::COUNTERS)? else {
            anyhow::bail!("the counters are no per-CPU array");
        };
        let cpus = nr_cpus().map_err(|(_, error)| error).context("the CPUs")?;
        Ok(Self { map, cpus })
    }

    pub(super) fn read(&self) -> Result<InterfaceCounters> {
        let mut keys = [0u32; CELLS];
        let mut values = vec![0u64; CELLS * self.cpus * WORDS];
        let mut next = 0u32;
        let mut attributes = Attributes {
            out_batch: (&raw mut next).expose_provenance() as u64,
            keys: keys.as_mut_ptr().expose_provenance() as u64,
            values: values.as_mut_ptr().expose_provenance() as u64,
            count: CELLS as u32,
            map_fd: u32::try_from(self.map.fd().as_fd().as_raw_fd())?,
            ..Attributes::default()
        };
        // SAFETY: the attributes are of the size given and of the command's layout, and may be
        // written to, as the kernel does with `count`. It writes one key to `next`, and at most
        // `count` keys of 4 bytes and values of a cell a possible CPU to the buffers, which are as
        // long and live until it returns.
        let result = unsafe {
            libc::syscall(
                libc::SYS_bpf,
                BPF_MAP_LOOKUP_BATCH,
                &raw mut attributes,
                size_of::<Attributes>(),
            )
        };
        if result != 0 {
            return Err(io::Error::last_os_error()).context("cannot read the counters");
        }
        let mut counters = InterfaceCounters {
            ended: [Default::default(); Reason::COUNT],
            would_drop: [Default::default(); Reason::COUNT],
        };
        for &reason in Reason::ALL {
            for (would_drop, all) in [
                (false, &mut counters.ended),
                (true, &mut counters.would_drop),
            ] {
                let at = counter_index(0, would_drop, reason) as usize * self.cpus * WORDS;
                let (cells, _) = values[at..][..self.cpus * WORDS].as_chunks::<WORDS>();
                let sum = &mut all[reason.index() as usize];
                for [packets, bytes, ..] in cells {
                    sum.packets = sum.packets.wrapping_add(*packets);
                    sum.bytes = sum.bytes.wrapping_add(*bytes);
                }
            }
        }
        Ok(counters)
    }
}
