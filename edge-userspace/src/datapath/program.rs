//! The XDP program: the embedded object, what is put into it, and loading it.

use std::{collections::BTreeMap, path::PathBuf};

use aya::{
    Ebpf, EbpfError, EbpfLoader, TestRun, TestRunOptions,
    maps::{Map, ProgramArray},
    programs::{ProgramError, Xdp},
};
use edge_common::{
    abi::{self, Config, MAX_PROFILES, Profile, Stage},
    hash::Seed,
};

use super::{
    error::{DatapathError, chain},
    maps::{self, Specs},
};

/// The object of this build.
pub(super) static OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/edge.o"));

/// What a load of the program is made from.
#[derive(Clone, Debug, PartialEq)]
pub struct Program {
    /// Checks, table sizes and the seed. The block of counters is filled in
    /// for each interface.
    pub config: Config,
    /// The limits by profile number.
    pub profiles: Box<[Profile; MAX_PROFILES]>,
    /// Size of the ring buffer of events in bytes, a power of two.
    pub events_buffer: u32,
    /// Room for addresses and ports of services.
    pub targets: u32,
}

impl Program {
    /// The maps it needs.
    pub(super) fn specs(&self) -> Specs {
        maps::specs(&self.config, self.events_buffer, self.targets)
    }

    /// Loads the program, with maps from `pins` by name: those that are not
    /// pinned there yet are made and pinned, those that are not in `pins` are
    /// made for this load alone.
    pub(super) fn load(
        &self,
        interface: &str,
        block: u32,
        pins: &BTreeMap<&'static str, PathBuf>,
    ) -> Result<Ebpf, DatapathError> {
        self.load_from(OBJECT, interface, block, pins)
    }

    /// The same from the bytes of another object.
    pub(super) fn load_from(
        &self,
        object: &[u8],
        interface: &str,
        block: u32,
        pins: &BTreeMap<&'static str, PathBuf>,
    ) -> Result<Ebpf, DatapathError> {
        let config = Config {
            interface: block,
            abi_version: abi::ABI_VERSION,
            ..self.config
        };
        let mut loader = EbpfLoader::new();
        loader
            .override_global(abi::CONFIG_SYMBOL, config_bytes(&config), true)
            .override_global(abi::PROFILES_SYMBOL, profile_bytes(&self.profiles), true);
        for spec in self.specs() {
            loader.map_max_entries(spec.name, spec.entries);
            if let Some(path) = pins.get(spec.name) {
                loader.map_pin_path(spec.name, path.as_path());
            }
        }
        let failed = |e: &EbpfError| DatapathError::load(interface, e);
        let mut loaded = loader.load(object).map_err(|e| failed(&e))?;
        for name in [abi::PROGRAM, abi::CLOCK_PROGRAM] {
            by_name(&mut loaded, name)
                .and_then(Xdp::load)
                .map_err(|e| failed(&EbpfError::ProgramError(e)))?;
        }
        set_clock(&mut loaded)?;
        for stage in Stage::ALL.into_iter().filter(|s| s.is_on(&config)) {
            let fd = by_name(&mut loaded, stage.program())
                .and_then(|xdp| {
                    xdp.load()?;
                    xdp.fd()?.try_clone().map_err(ProgramError::IOError)
                })
                .map_err(|e| failed(&EbpfError::ProgramError(e)))?;
            let map = loaded
                .map_mut(abi::maps::STAGES)
                .ok_or(DatapathError::Map {
                    map: abi::maps::STAGES,
                    why: "is not in the object".into(),
                })?;
            ProgramArray::try_from(map)
                .and_then(|mut stages| stages.set(stage as u32, &fd, 0))
                .map_err(|e| DatapathError::map_access(abi::maps::STAGES, e))?;
        }
        Ok(loaded)
    }
}

/// Pins the stages of a load, at the path that `path` gives for the number of their
/// map: the kernel empties such an array when nobody has it open, although programs
/// go on using it.
pub(super) fn pin_stages(
    loaded: &mut Ebpf,
    path: impl Fn(u32) -> PathBuf,
) -> Result<PathBuf, DatapathError> {
    let failed = |why| DatapathError::Map {
        map: abi::maps::STAGES,
        why,
    };
    let Some(Map::ProgramArray(data)) = loaded.map(abi::maps::STAGES) else {
        return Err(failed("is not in the object".into()));
    };
    let info = (data.info()).map_err(|e| failed(format!("is unknown: {}", chain(&e))))?;
    let path = path(info.id());
    data.pin(&path)
        .map_err(|e| failed(format!("cannot be pinned: {}", chain(&e))))?;
    Ok(path)
}

/// The XDP program of a loaded object.
pub(super) fn xdp(loaded: &mut Ebpf) -> Result<&mut Xdp, ProgramError> {
    by_name(loaded, abi::PROGRAM)
}

fn by_name<'a>(loaded: &'a mut Ebpf, name: &str) -> Result<&'a mut Xdp, ProgramError> {
    loaded
        .program_mut(name)
        .ok_or(ProgramError::NotLoaded)?
        .try_into()
}

/// Closes this process's handles of the maps, which the program in the kernel
/// does not need: the descriptors of many interfaces would run out.
pub(super) fn close_maps(loaded: &mut Ebpf) {
    let names: Vec<String> = loaded.maps().map(|(name, _)| name.to_owned()).collect();
    for name in names {
        drop(loaded.take_map(&name));
    }
}

/// Sets the clock of a load.
pub(super) fn set_clock(loaded: &mut Ebpf) -> Result<(), DatapathError> {
    /// The kernel runs no XDP program on less than an Ethernet header.
    const FRAME: [u8; 64] = [0; 64];
    let mut options = TestRunOptions::new();
    options.data_in = Some(&FRAME);
    by_name(loaded, abi::CLOCK_PROGRAM)
        .and_then(|clock| clock.test_run(options))
        .map_err(|e| DatapathError::Map {
            map: abi::maps::CLOCK,
            why: format!("cannot be set: {}", chain(&e)),
        })?;
    Ok(())
}

/// A short text that differs when the seed does. It says nothing useful about
/// the seed.
pub(super) fn fingerprint(seed: &Seed) -> String {
    // Neither half of any real key is all ones, and no kind of key has this tag.
    let hash = edge_common::hash::hash(seed, u64::MAX, u64::MAX, u32::MAX);
    format!("{hash:016x}")
}

fn config_bytes(config: &Config) -> &[u8] {
    // SAFETY: `Config` is repr(C) without padding (its size is asserted to be
    // the sum of its fields), so that all of its bytes are initialised.
    unsafe { std::slice::from_raw_parts(std::ptr::from_ref(config).cast(), size_of::<Config>()) }
}

fn profile_bytes(profiles: &[Profile; MAX_PROFILES]) -> &[u8] {
    const {
        assert!(size_of::<Profile>() == abi::LIMIT_SLOTS * 2 * size_of::<u64>());
    }
    // SAFETY: a `Profile` is repr(C) and holds nothing but 64-bit words (asserted
    // above), so that all of its bytes are initialised.
    unsafe { std::slice::from_raw_parts(profiles.as_ptr().cast(), size_of_val(profiles)) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fingerprints_tell_seeds_apart() {
        let a = fingerprint(&Seed::new([1, 2, 3, 4]));
        assert_eq!(a, fingerprint(&Seed::new([1, 2, 3, 4])));
        assert_ne!(a, fingerprint(&Seed::new([1, 2, 3, 6])));
        assert_eq!(a.len(), 16);
    }

    #[test]
    fn bytes_are_those_of_the_fields() {
        let config = Config {
            abi_version: 0x0102_0304,
            ..Config::OFF
        };
        // The last word before the seed of the balancer.
        let bytes = config_bytes(&config);
        let at = bytes.len() - size_of::<Seed>() - 4;
        assert_eq!(bytes[at..at + 4], 0x0102_0304u32.to_ne_bytes());
        let mut profiles = [Profile::default(); MAX_PROFILES];
        profiles[1].limits[0] = edge_common::gcra::Limit::per_second(1, 1).unwrap();
        let none = [Profile::default(); MAX_PROFILES];
        let mut pairs = profile_bytes(&profiles).iter().zip(profile_bytes(&none));
        let at = pairs.position(|(a, b)| a != b).unwrap();
        assert!((128..144).contains(&at), "{at}");
    }
}
