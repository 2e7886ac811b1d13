//! The directory on the BPF file system in which maps and links outlive the
//! daemon.
//!
//! ```text
//! <bpffs_dir>/                 locked (flock) by the running daemon
//!   v<ABI_VERSION>/
//!     maps/NAME                the tables in force
//!     links/INTERFACE          what keeps a program attached
//!     programs/INTERFACE       the program, to put it back if a change fails
//!     stages/17                the programs that one of them goes on with
//!     blocks/INTERFACE -> 3    symlink: its block in the map of counters
//!     seed -> 0123456789abcdef symlink: fingerprint of the hash seed of the tables
//!     staging/NAME             tables of a change that is not in force yet
//! ```
//!
//! Whatever describes pinned state is kept beside it, so that all of it goes
//! away together at a reboot. Interfaces are found by name, and names belong
//! to a network namespace while paths do not: daemons in several namespaces
//! that share one BPF file system need a `bpffs_dir` each.

use std::{
    collections::BTreeMap,
    fs::{self, DirBuilder, File, TryLockError},
    io,
    os::unix::fs::{DirBuilderExt, MetadataExt, symlink},
    path::{Path, PathBuf},
};

use edge_common::abi::{ABI_VERSION, MAX_INTERFACES};

use super::error::DatapathError;

/// The directories of a version.
const DIRECTORIES: [&str; 6] = ["maps", "links", "programs", "stages", "blocks", "staging"];

/// The pins of one daemon; nobody else has them while this value lives.
#[derive(Debug)]
pub(super) struct Pins {
    root: PathBuf,
    version: PathBuf,
    _lock: File,
}

impl Pins {
    /// Opens the directory, making it where needed, and locks it.
    pub(super) fn open(root: &Path) -> Result<Self, DatapathError> {
        if !on_bpffs(root) {
            return Err(DatapathError::NoBpffs { path: root.into() });
        }
        let version = root.join(format!("v{ABI_VERSION}"));
        for directory in DIRECTORIES {
            let path = version.join(directory);
            DirBuilder::new()
                .recursive(true)
                .mode(0o700)
                .create(&path)
                .map_err(|e| DatapathError::pin("create (no dots in names there)", &path, e))?;
        }
        let lock = File::open(root).map_err(|e| DatapathError::pin("open", root, e))?;
        let facts = lock
            .metadata()
            .map_err(|e| DatapathError::pin("look at", root, e))?;
        // SAFETY: no preconditions, and it always succeeds (geteuid(2)).
        let own = unsafe { libc::geteuid() };
        // A BPF file system is commonly open to everybody: somebody may have
        // been here first.
        if facts.uid() != own || facts.mode() & 0o022 != 0 {
            return Err(DatapathError::NotOurs { path: root.into() });
        }
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                return Err(DatapathError::InUse { path: root.into() });
            }
            Err(TryLockError::Error(e)) => return Err(DatapathError::pin("lock", root, e)),
        }
        let pins = Self {
            root: root.into(),
            version,
            _lock: lock,
        };
        pins.clear_staging();
        Ok(pins)
    }

    /// Where a map in force is pinned.
    pub(super) fn map(&self, name: &str) -> PathBuf {
        self.version.join("maps").join(name)
    }

    /// Where a map is pinned until it comes into force.
    pub(super) fn staged(&self, name: &str) -> PathBuf {
        self.version.join("staging").join(name)
    }

    /// Where a map that goes out of force waits for the change to succeed.
    pub(super) fn retired(&self, name: &str) -> PathBuf {
        self.version.join("staging").join(format!("old-{name}"))
    }

    /// Where the link of an interface is pinned.
    pub(super) fn link(&self, interface: &str) -> PathBuf {
        self.version.join("links").join(encode(interface))
    }

    /// Where a link is pinned until it takes the place of a former one.
    pub(super) fn staged_link(&self, interface: &str) -> PathBuf {
        self.version
            .join("staging")
            .join(format!("link-{}", encode(interface)))
    }

    /// Where the program of an interface is pinned.
    pub(super) fn program(&self, interface: &str) -> PathBuf {
        self.version.join("programs").join(encode(interface))
    }

    /// Where the program of an interface is pinned whose link was found there.
    pub(super) fn program_beside(&self, link: &Path, interface: &str) -> PathBuf {
        let version = link.ancestors().nth(2).unwrap_or(&self.version);
        version.join("programs").join(encode(interface))
    }

    /// Where the stages of a load are pinned whose map has this number.
    pub(super) fn stages(&self, map: u32) -> PathBuf {
        self.version.join("stages").join(map.to_string())
    }

    /// Frees the stages of all loads but these.
    pub(super) fn keep_stages(&self, kept: &[&Path]) {
        let directory = self.version.join("stages");
        for path in names(&directory).iter().map(|n| directory.join(n)) {
            if !kept.contains(&path.as_path()) {
                let _ = fs::remove_file(path);
            }
        }
    }

    /// Frees what a failed or interrupted change left behind.
    pub(super) fn clear_staging(&self) {
        empty(&self.version.join("staging"));
    }

    /// The interface's pinned link, also one of another version of the
    /// tables, which is taken over all the same.
    pub(super) fn find_link(&self, interface: &str) -> Option<PathBuf> {
        let here = self.link(interface);
        if here.exists() {
            return Some(here);
        }
        self.other_versions()
            .map(|v| v.join("links").join(encode(interface)))
            .find(|p| p.exists())
    }

    /// Names of interfaces with a pinned link.
    pub(super) fn linked(&self) -> Vec<String> {
        names(&self.version.join("links"))
            .iter()
            .filter_map(|n| decode(n))
            .collect()
    }

    /// Removes all that daemons with another version of the tables left.
    pub(super) fn remove_other_versions(&self) {
        for version in self.other_versions() {
            remove_version(&version);
        }
    }

    /// Removes every pin: programs without another holder are detached, maps freed.
    pub(super) fn remove_all(&self) {
        remove_version(&self.version);
        // Fails when somebody else keeps something there.
        let _ = fs::remove_dir(&self.root);
    }

    /// The fingerprint of the seed that the pinned tables were filled with.
    pub(super) fn seed(&self) -> Option<String> {
        let target = fs::read_link(self.version.join("seed")).ok()?;
        Some(target.to_str()?.to_owned())
    }

    /// Notes the fingerprint, or that there is none that holds.
    pub(super) fn set_seed(&self, fingerprint: Option<&str>) -> Result<(), DatapathError> {
        let path = self.version.join("seed");
        unlink(&path)?;
        match fingerprint {
            Some(text) => symlink(text, &path).map_err(|e| DatapathError::pin("create", path, e)),
            None => Ok(()),
        }
    }

    /// Which block of counters belongs to which interface.
    pub(super) fn blocks(&self) -> BTreeMap<String, u32> {
        let directory = self.version.join("blocks");
        names(&directory)
            .iter()
            .filter_map(|n| {
                let target = fs::read_link(directory.join(n)).ok()?;
                let block = target.to_str()?.parse().ok()?;
                (block < MAX_INTERFACES).then_some((decode(n)?, block))
            })
            .collect()
    }

    /// Notes which block of counters belongs to which interface.
    pub(super) fn set_blocks(&self, blocks: &BTreeMap<String, u32>) -> Result<(), DatapathError> {
        let directory = self.version.join("blocks");
        empty(&directory);
        for (interface, block) in blocks {
            let path = directory.join(encode(interface));
            symlink(block.to_string(), &path).map_err(|e| DatapathError::pin("create", path, e))?;
        }
        Ok(())
    }

    fn other_versions(&self) -> impl Iterator<Item = PathBuf> {
        names(&self.root)
            .into_iter()
            .filter(|n| {
                n.strip_prefix('v')
                    .is_some_and(|v| !v.is_empty() && v.bytes().all(|b| b.is_ascii_digit()))
            })
            .map(|n| self.root.join(n))
            .filter(|p| *p != self.version)
    }
}

/// Gives a pin another name.
pub(super) fn rename(from: &Path, to: &Path) -> Result<(), DatapathError> {
    fs::rename(from, to).map_err(|e| DatapathError::pin("rename", from, e))
}

/// Removes a pin; one that is not there is as good as removed.
pub(super) fn unlink(path: &Path) -> Result<(), DatapathError> {
    match fs::remove_file(path) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(DatapathError::pin("remove", path, e)),
        _ => Ok(()),
    }
}

/// Whether the nearest existing directory on the way to `path` is on a BPF file system.
fn on_bpffs(path: &Path) -> bool {
    path.ancestors()
        .find(|p| p.is_dir())
        .and_then(|p| file_system(p).ok())
        .is_some_and(|magic| magic == i128::from(libc::BPF_FS_MAGIC))
}

fn file_system(path: &Path) -> io::Result<i128> {
    use std::os::fd::AsRawFd;
    let directory = File::open(path)?;
    let mut facts = std::mem::MaybeUninit::<libc::statfs>::uninit();
    // SAFETY: the descriptor is open and the pointer is to a whole `statfs`.
    let status = unsafe { libc::fstatfs(directory.as_raw_fd(), facts.as_mut_ptr()) };
    if status != 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the call succeeded and has filled it.
    let facts = unsafe { facts.assume_init() };
    Ok(i128::from(facts.f_type))
}

fn remove_version(version: &Path) {
    for directory in DIRECTORIES {
        let path = version.join(directory);
        empty(&path);
        let _ = fs::remove_dir(&path);
    }
    let _ = fs::remove_file(version.join("seed"));
    let _ = fs::remove_dir(version);
}

/// Removes every file of a directory. What cannot be removed is found again
/// by the next daemon.
fn empty(directory: &Path) {
    for name in names(directory) {
        let _ = fs::remove_file(directory.join(name));
    }
}

fn names(directory: &Path) -> Vec<String> {
    let Ok(entries) = fs::read_dir(directory) else {
        return Vec::new();
    };
    entries
        .filter_map(|e| e.ok()?.file_name().into_string().ok())
        .collect()
}

/// An interface name as a file name: the BPF file system refuses dots, which
/// VLAN interfaces have.
fn encode(interface: &str) -> String {
    interface.replace('%', "%25").replace('.', "%2e")
}

fn decode(name: &str) -> Option<String> {
    let mut interface = String::new();
    let mut parts = name.split('%');
    interface.push_str(parts.next()?);
    for part in parts {
        let (code, rest) = part.split_at_checked(2)?;
        interface.push(match code {
            "25" => '%',
            "2e" => '.',
            _ => return None,
        });
        interface.push_str(rest);
    }
    Some(interface)
}

/// Gives every interface a block of counters: the one it had, else one that
/// nobody had, else one that nobody has any more. Returns the blocks and which
/// of them are new and have to be cleared.
pub(super) fn assign_blocks(
    former: &BTreeMap<String, u32>,
    interfaces: &[String],
) -> (BTreeMap<String, u32>, Vec<u32>) {
    let mut blocks: BTreeMap<String, u32> = BTreeMap::new();
    for name in interfaces {
        if let Some(&block) = former.get(name)
            && !blocks.values().any(|&b| b == block)
        {
            blocks.insert(name.clone(), block);
        }
    }
    let mut fresh = Vec::new();
    for name in interfaces {
        if blocks.contains_key(name) {
            continue;
        }
        let free = |b: &u32| !blocks.values().any(|v| v == b);
        let unused = |b: &u32| free(b) && !former.values().any(|v| v == b);
        let Some(block) = (0..MAX_INTERFACES)
            .find(unused)
            .or_else(|| (0..MAX_INTERFACES).find(free))
        else {
            // The configuration admits no more than there are blocks.
            break;
        };
        blocks.insert(name.clone(), block);
        fresh.push(block);
    }
    (blocks, fresh)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn named(names: &[&str]) -> Vec<String> {
        names.iter().map(|n| (*n).to_owned()).collect()
    }

    #[test]
    fn names_survive_the_file_system() {
        for name in ["eth0", "eth0.100", "a%b", "%2e.", "x%"] {
            assert_eq!(decode(&encode(name)).as_deref(), Some(name));
            assert!(!encode(name).contains('.'));
        }
        for name in ["%", "%zz", "a%2"] {
            assert_eq!(decode(name), None);
        }
    }

    #[test]
    fn interfaces_keep_their_blocks() {
        let (first, fresh) = assign_blocks(&BTreeMap::new(), &named(&["a", "b"]));
        assert_eq!(fresh, [0, 1]);
        let (second, fresh) = assign_blocks(&first, &named(&["c", "b"]));
        assert_eq!(second["b"], 1);
        assert_eq!((second["c"], fresh), (2, vec![2]));
    }

    #[test]
    fn blocks_are_used_again_when_there_are_no_others() {
        let many: Vec<_> = (0..MAX_INTERFACES).map(|i| format!("i{i}")).collect();
        let (all, _) = assign_blocks(&BTreeMap::new(), &many);
        let (next, fresh) = assign_blocks(&all, &named(&["i3", "new"]));
        assert_eq!((next["i3"], next["new"]), (3, 0));
        assert_eq!(fresh, [0]);
    }

    #[test]
    fn a_hostile_assignment_gives_no_block_twice() {
        let former = [("a".to_owned(), 4), ("b".to_owned(), 4)].into();
        let (blocks, fresh) = assign_blocks(&former, &named(&["a", "b"]));
        assert_eq!((blocks["a"], blocks["b"]), (4, 0));
        assert_eq!(fresh, [0]);
    }
}
