//! The two settings of the host's TCP that SYN cookies need, and what they were
//! before.
//!
//! What was there is written to a file before anything is set, so that also the
//! next daemon after a crash can put it back.

use std::{
    collections::BTreeMap,
    fs::{self, File},
    io::{self, Write},
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};
use tracing::{info, warn};

use crate::{
    config::services::Sysctls,
    host::sysctl::{self, SysctlError},
};

/// Settings and the values that they must have.
const NEEDED: [(&str, &str); 2] = [
    // Else a listener is not told to take cookies.
    ("net/ipv4/tcp_syncookies", "2"),
    // Else the options in a cookie are not where the kernel looks for them.
    ("net/ipv4/tcp_timestamps", "2"),
];

/// Name of the file in the state directory.
const FILE: &str = "sysctls.json";

/// Why the settings are not what they must be.
#[derive(Debug, thiserror::Error)]
pub(in crate::daemon) enum Unmet {
    /// The operator wants to set them, and has not.
    #[error(
        "services are to be defended with SYN cookies, and {} is {found}, not {needed}; run \
         `sysctl -w net.ipv4.tcp_syncookies=2 net.ipv4.tcp_timestamps=2`, or let the daemon do \
         it with flood.sysctls = \"set\"",
        .name.replace('/', ".")
    )]
    Wrong {
        name: &'static str,
        found: String,
        needed: &'static str,
    },
    /// One cannot be read or set.
    #[error(
        "services are to be defended with SYN cookies, which need the sysctls \
         net.ipv4.tcp_syncookies = 2 and net.ipv4.tcp_timestamps = 2: {0}; set them yourself and \
         write flood.sysctls = \"check\""
    )]
    Sysctl(#[from] SysctlError),
    /// What was there cannot be written down, so that it could not be put back.
    #[error("{}: cannot keep what sysctls were before: {source}", path.display())]
    Record { path: PathBuf, source: io::Error },
}

/// What was there before, and where that holds: a boot, and a network namespace.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Record {
    boot: String,
    namespace: u64,
    before: BTreeMap<String, String>,
}

/// Sets the settings, and puts them back.
#[derive(Debug)]
pub(super) struct Keeper {
    root: PathBuf,
    file: PathBuf,
    record: Record,
    /// Whether a former daemon had set something.
    inherited: bool,
}

impl Keeper {
    /// With what a former daemon has left in the state directory.
    pub(super) fn open(state_dir: &Path) -> Self {
        let boot = sysctl::read(Path::new(sysctl::ROOT), "kernel/random/boot_id");
        let namespace = fs::metadata("/proc/thread-self/ns/net").map(|m| m.ino());
        let here = Record {
            boot: boot.unwrap_or_default(),
            namespace: namespace.unwrap_or_default(),
            before: BTreeMap::new(),
        };
        Self::at(PathBuf::from(sysctl::ROOT), state_dir.join(FILE), here)
    }

    fn at(root: PathBuf, file: PathBuf, here: Record) -> Self {
        let former = fs::read(&file).ok().and_then(|bytes| {
            let read = serde_json::from_slice::<Record>(&bytes);
            read.map_err(|e| warn!("{}: {e}", file.display())).ok()
        });
        let record = match former {
            // After a boot, or elsewhere, the settings are what others made them.
            Some(former) if (&former.boot, former.namespace) == (&here.boot, here.namespace) => {
                former
            }
            _ => here,
        };
        Self {
            inherited: !record.before.is_empty(),
            root,
            file,
            record,
        }
    }

    /// Sees that the settings are as needed, by setting them or only by looking.
    pub(super) fn ensure(&mut self, who: Sysctls) -> Result<(), Unmet> {
        for (name, needed) in NEEDED {
            let found = sysctl::read(&self.root, name)?;
            if found == needed {
                continue;
            }
            if who == Sysctls::Check {
                return Err(Unmet::Wrong {
                    name,
                    found,
                    needed,
                });
            }
            let former = self.record.before.insert(name.to_owned(), found.clone());
            if let Err(e) = self.save() {
                self.undo(name, former);
                return Err(e);
            }
            if let Err(e) = sysctl::write(&self.root, name, needed) {
                self.undo(name, former);
                self.save()?;
                return Err(e.into());
            }
            let setting = name.replace('/', ".");
            match former {
                Some(_) => warn!("{setting} was changed to {found}: set to {needed} again"),
                None => info!("{setting} was {found}: set to {needed} for SYN cookies"),
            }
        }
        Ok(())
    }

    /// Nothing was changed, and there is nothing to put back but what was before.
    fn undo(&mut self, name: &str, former: Option<String>) {
        match former {
            Some(value) => self.record.before.insert(name.to_owned(), value),
            None => self.record.before.remove(name),
        };
    }

    /// The settings are the operator's from now on: what was there before is forgotten.
    pub(super) fn disown(&mut self) {
        if self.record.before.is_empty() {
            return;
        }
        self.record.before.clear();
        if let Err(e) = self.save() {
            warn!("{e}");
        }
    }

    /// Puts back what was there before, unless somebody has changed it since. What
    /// cannot be put back now is kept for the next time.
    pub(super) fn release(&mut self) {
        for (name, value) in std::mem::take(&mut self.record.before) {
            let setting = name.replace('/', ".");
            let Some((_, needed)) = NEEDED.iter().find(|(n, _)| *n == name) else {
                continue;
            };
            let put_back = sysctl::read(&self.root, &name).and_then(|found| {
                if found != *needed {
                    return Ok(Some(found));
                }
                sysctl::write(&self.root, &name, &value).map(|()| None)
            });
            match put_back {
                Ok(None) => info!("{setting} is {value} again"),
                Ok(Some(found)) => {
                    info!("{setting} was changed to {found} meanwhile, and stays so");
                }
                Err(e) => {
                    warn!("{setting} cannot be put back to {value}: {e}");
                    self.record.before.insert(name, value);
                }
            }
        }
        if let Err(e) = self.save() {
            warn!("{e}");
        }
    }

    /// Undoes what this daemon has done, when it does not come to run.
    pub(super) fn give_up(&mut self) {
        // A former daemon's program may need them still.
        if !self.inherited {
            self.release();
        }
    }

    fn save(&self) -> Result<(), Unmet> {
        let save = || {
            if self.record.before.is_empty() {
                return match fs::remove_file(&self.file) {
                    Err(e) if e.kind() != io::ErrorKind::NotFound => Err(e),
                    _ => Ok(()),
                };
            }
            let new = self.file.with_extension("new");
            let mut file = File::create(&new)?;
            file.write_all(&serde_json::to_vec(&self.record)?)?;
            file.sync_all()?;
            fs::rename(&new, &self.file)
        };
        save().map_err(|source| Unmet::Record {
            path: self.file.clone(),
            source,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Host(tempfile::TempDir);

    impl Host {
        fn new() -> Self {
            let host = Self(tempfile::tempdir().unwrap());
            fs::create_dir_all(host.0.path().join("net/ipv4")).unwrap();
            host.set(["1", "1"]);
            host
        }

        fn set(&self, values: [&str; 2]) {
            for ((name, _), value) in NEEDED.iter().zip(values) {
                fs::write(self.0.path().join(name), format!("{value}\n")).unwrap();
            }
        }

        fn values(&self) -> [String; 2] {
            NEEDED.map(|(name, _)| sysctl::read(self.0.path(), name).unwrap())
        }

        fn keeper(&self, boot: &str) -> Keeper {
            let here = Record {
                boot: boot.to_owned(),
                namespace: 7,
                before: BTreeMap::new(),
            };
            let root = self.0.path();
            Keeper::at(root.into(), root.join(FILE), here)
        }
    }

    #[test]
    fn settings_are_set_and_put_back() {
        let host = Host::new();
        let mut keeper = host.keeper("a");
        keeper.ensure(Sysctls::Set).unwrap();
        assert_eq!(host.values(), ["2", "2"]);
        keeper.release();
        assert_eq!(host.values(), ["1", "1"]);
        assert!(!host.0.path().join(FILE).exists());
    }

    #[test]
    fn the_next_daemon_puts_back_what_a_crashed_one_found() {
        let host = Host::new();
        host.keeper("a").ensure(Sysctls::Set).unwrap();
        let mut next = host.keeper("a");
        next.ensure(Sysctls::Set).unwrap();
        // It did not come to run, and the program in the kernel does.
        next.give_up();
        assert_eq!(host.values(), ["2", "2"]);
        next.release();
        assert_eq!(host.values(), ["1", "1"]);
        // What was found before a boot says nothing.
        host.keeper("a").ensure(Sysctls::Set).unwrap();
        let mut other = host.keeper("b");
        other.ensure(Sysctls::Set).unwrap();
        other.release();
        assert_eq!(host.values(), ["2", "2"]);
    }

    #[test]
    fn what_somebody_else_sets_is_respected_at_the_end() {
        let host = Host::new();
        let mut keeper = host.keeper("a");
        keeper.ensure(Sysctls::Set).unwrap();
        host.set(["0", "2"]);
        keeper.release();
        assert_eq!(host.values(), ["0", "1"]);
        // While it is needed it is set again, and put back to the new value.
        keeper.ensure(Sysctls::Set).unwrap();
        host.set(["1", "0"]);
        keeper.ensure(Sysctls::Set).unwrap();
        assert_eq!(host.values(), ["2", "2"]);
        keeper.release();
        assert_eq!(host.values(), ["1", "0"]);
    }

    #[test]
    fn who_only_looks_sets_nothing_and_says_what_to_do() {
        let host = Host::new();
        let error = host.keeper("a").ensure(Sysctls::Check).unwrap_err();
        let text = error.to_string();
        assert!(
            text.contains("net.ipv4.tcp_syncookies is 1, not 2; run `sysctl -w"),
            "{text}"
        );
        assert_eq!(host.values(), ["1", "1"]);
        host.set(["2", "2"]);
        host.keeper("a").ensure(Sysctls::Check).unwrap();
    }

    #[test]
    fn what_the_operator_has_taken_over_is_left_alone() {
        let host = Host::new();
        host.keeper("a").ensure(Sysctls::Set).unwrap();
        let mut next = host.keeper("a");
        next.ensure(Sysctls::Check).unwrap();
        next.disown();
        assert!(!host.0.path().join(FILE).exists());
        next.release();
        assert_eq!(host.values(), ["2", "2"]);
    }

    #[test]
    fn what_cannot_be_put_back_is_kept_for_the_next_time() {
        let host = Host::new();
        let mut keeper = host.keeper("a");
        keeper.ensure(Sysctls::Set).unwrap();
        let (there, away) = (host.0.path().join(NEEDED[1].0), host.0.path().join("away"));
        fs::rename(&there, &away).unwrap();
        keeper.release();
        fs::rename(&away, &there).unwrap();
        assert_eq!(host.values(), ["1", "2"]);
        host.keeper("a").release();
        assert_eq!(host.values(), ["1", "1"]);
        assert!(!host.0.path().join(FILE).exists());
    }

    #[test]
    fn what_cannot_be_written_down_is_not_remembered() {
        let host = Host::new();
        let mut keeper = host.keeper("a");
        // A directory is in the way.
        fs::create_dir(host.0.path().join("sysctls.new")).unwrap();
        let error = keeper.ensure(Sysctls::Set).unwrap_err();
        assert!(matches!(error, Unmet::Record { .. }), "{error}");
        assert!(keeper.record.before.is_empty());
        assert_eq!(host.values(), ["1", "1"]);
    }

    #[test]
    fn a_start_that_fails_leaves_things_as_they_were() {
        let host = Host::new();
        let mut keeper = host.keeper("a");
        keeper.ensure(Sysctls::Set).unwrap();
        keeper.give_up();
        assert_eq!(host.values(), ["1", "1"]);
        fs::remove_file(host.0.path().join(NEEDED[1].0)).unwrap();
        let error = keeper.ensure(Sysctls::Set).unwrap_err();
        assert!(
            error.to_string().contains("flood.sysctls = \"check\""),
            "{error}"
        );
    }
}
