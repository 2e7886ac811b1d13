//! The history of attacks as the threads of the daemon share it, and the file in the
//! state directory that keeps it over a restart.

use std::{
    fs, io,
    path::{Path, PathBuf},
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
};

use tracing::warn;

use crate::{
    clock::Now,
    control::protocol::{Failure, FailureKind, Response},
    durable::{self, PRIVATE},
    host::sysctl,
    services::attacks::History,
};

/// Name of the file in the state directory.
const FILE: &str = "attacks.json";

/// How often the file is brought up to date while an attack is on, and tried again when the disk
/// did not take it, milliseconds. What a crash loses of it are samples and peaks; what was counted
/// is in the kernel.
pub(super) const SAVE_EVERY_MS: u64 = 30_000;

/// The history, and its file once there is one.
#[derive(Debug, Default)]
pub(in crate::daemon) struct Journal {
    history: Mutex<History>,
    file: Mutex<Option<PathBuf>>,
    /// Whether there was something to tell of attacks since the file was last tried.
    changed: AtomicBool,
}

impl Journal {
    /// Takes in what a former daemon left in the state directory. A file that makes no
    /// sense is told of and set aside.
    pub(in crate::daemon) fn open(&self, state_dir: &Path) {
        let path = state_dir.join(FILE);
        let boot = sysctl::read(Path::new(sysctl::ROOT), "kernel/random/boot_id").ok();
        *self.lock() = History::new(boot.clone());
        match fs::read(&path) {
            Ok(bytes) => match History::read(&bytes, boot.as_deref()) {
                Ok(history) => *self.lock() = history,
                Err(e) => set_aside(&path, &e),
            },
            Err(e) if e.kind() == io::ErrorKind::NotFound => {}
            Err(e) => {
                // It is not written over: that it cannot be read may pass.
                warn!(
                    "{}: the history of attacks cannot be read and is not kept: {e}",
                    path.display()
                );
                return;
            }
        }
        *self.file.lock().unwrap_or_else(PoisonError::into_inner) = Some(path);
    }

    /// Takes its turn; for a moment only, as requests are answered meanwhile.
    pub(in crate::daemon) fn lock(&self) -> MutexGuard<'_, History> {
        // Each change leaves a sound history.
        self.history.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// There is something to tell of an attack: the file does not wait until it is due.
    pub(super) fn mark_changed(&self) {
        self.changed.store(true, Ordering::Relaxed);
    }

    /// Writes the file.
    ///
    /// # Errors
    /// When the disk does not take it; what was there before is there still.
    fn save(&self) -> io::Result<()> {
        let path = self.file.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(path) = &*path else {
            return Ok(());
        };
        // Copied, so that nobody waits for the disk.
        let history = self.lock().clone();
        durable::replace(path, &history.write()?, PRIVATE)
    }

    /// The answer to who asks for all attacks.
    pub(in crate::daemon) fn list(&self) -> Response {
        Response::Attacks(self.lock().list())
    }

    /// The answer to who asks for one.
    pub(in crate::daemon) fn get(&self, id: u64) -> Result<Response, Failure> {
        let found = self.lock().get(id);
        let (attack, samples) = found.ok_or_else(|| {
            let text =
                format!("there is no attack {id}; `edge attacks list` shows those that are kept");
            Failure::new(FailureKind::Invalid, text)
        })?;
        Ok(Response::Attack {
            attack: Box::new(attack),
            samples,
        })
    }
}

fn set_aside(path: &Path, why: &dyn std::error::Error) {
    let aside = path.with_extension("broken");
    let to = match fs::rename(path, &aside) {
        Ok(()) => format!("it is now {}", aside.display()),
        Err(e) => format!("and it cannot be moved away: {e}"),
    };
    warn!("{}: {why}; a new history is begun, {to}", path.display());
}

/// When the file is to be written.
#[derive(Debug, Default)]
pub(super) struct Saver {
    tried_unix_ms: u64,
    /// What the disk said the last time.
    trouble: Option<String>,
}

impl Saver {
    /// Writes the file when something changed, now and then during an attack, and when `over`,
    /// at the end. What the disk did not take is tried again when it is due.
    pub(super) fn mind(&mut self, journal: &Journal, over: bool, now: Now) {
        let due = now.unix_ms.abs_diff(self.tried_unix_ms) >= SAVE_EVERY_MS;
        let lacking = self.trouble.is_some();
        let changed = journal.changed.swap(false, Ordering::Relaxed);
        let needed = changed || over || due && (lacking || journal.lock().is_any_on());
        if !needed {
            return;
        }
        self.tried_unix_ms = now.unix_ms;
        let trouble = journal.save().err().map(|e| e.to_string());
        if let Some(e) = trouble
            .as_ref()
            .filter(|e| Some(*e) != self.trouble.as_ref())
        {
            warn!("the history of attacks cannot be written to {FILE}: {e}");
        }
        self.trouble = trouble;
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;
    use crate::{
        services::{
            attacks::Subject,
            watch::{Followed, Reading, Watch},
        },
        status::attack::{Found, Remedy},
    };

    const NOW: Now = Now {
        mono_ns: 10_000_000_000,
        boot_ns: 10_000_000_000,
        unix_ms: 1_000_000,
    };

    /// When a file of [`NOW`] is due.
    const DUE: Now = Now {
        unix_ms: NOW.unix_ms + SAVE_EVERY_MS,
        ..NOW
    };

    /// An attack begins.
    fn attack(journal: &Journal) {
        let reading = Reading {
            attack_since: 9_000_000_000,
            attack_until: 99_000_000_000,
            ..Reading::default()
        };
        let of = Followed {
            name: "web",
            found: Found::Segments,
            hold_ns: 0,
            inherited: None,
        };
        let step = Watch::default().take(of, reading, NOW.mono_ns);
        let subject = Subject {
            name: of.name,
            found: of.found,
            remedy: Remedy::Cookies,
        };
        journal.lock().take(subject, &step, NOW);
        journal.mark_changed();
    }

    fn opened(dir: &Path) -> Journal {
        let journal = Journal::default();
        journal.open(dir);
        journal
    }

    #[test]
    fn it_is_kept_for_root_and_saved_when_something_changed() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join(FILE);
        let journal = opened(dir.path());
        let mut saver = Saver::default();
        saver.mind(&journal, false, NOW);
        assert!(!file.exists(), "nothing to keep");
        attack(&journal);
        saver.mind(&journal, false, NOW);
        let mode = fs::metadata(&file).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        assert_eq!(opened(dir.path()).lock().list().len(), 1);
        fs::remove_file(&file).unwrap();
        saver.mind(&journal, false, NOW);
        assert!(!file.exists(), "not due");
        saver.mind(&journal, false, DUE);
        assert!(file.exists(), "an attack is on");
    }

    #[test]
    fn what_the_disk_did_not_take_is_tried_again_though_the_attack_is_over() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join(FILE);
        let journal = opened(dir.path());
        let mut saver = Saver::default();
        attack(&journal);
        journal.lock().keep(|_, _| false);
        fs::create_dir(&file).unwrap();
        saver.mind(&journal, false, NOW);
        assert!(saver.trouble.is_some());
        fs::remove_dir(&file).unwrap();
        saver.mind(&journal, false, NOW);
        assert!(!file.exists(), "not due");
        saver.mind(&journal, false, DUE);
        assert_eq!(saver.trouble, None);
        assert_eq!(opened(dir.path()).lock().list().len(), 1);
    }

    #[test]
    fn a_broken_file_is_set_aside() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join(FILE);
        for broken in ["{\"version\":1,\"next_id\":", "{\"version\":99}", ""] {
            fs::write(&file, broken).unwrap();
            let journal = opened(dir.path());
            assert!(journal.lock().list().is_empty());
            let aside = fs::read_to_string(dir.path().join("attacks.broken")).unwrap();
            assert_eq!(aside, broken);
            assert!(!file.exists());
            attack(&journal);
            journal.save().unwrap();
            assert_eq!(opened(dir.path()).lock().list().len(), 1);
        }
        // One that cannot be read is left alone.
        fs::remove_file(&file).unwrap();
        fs::create_dir(&file).unwrap();
        let journal = opened(dir.path());
        attack(&journal);
        journal.save().unwrap();
        assert!(file.is_dir());
    }

    #[test]
    fn who_asks_for_one_that_is_not_there_is_told() {
        let journal = Journal::default();
        let failure = journal.get(9).unwrap_err();
        assert_eq!(failure.kind, FailureKind::Invalid);
        assert!(failure.message.contains("edge attacks list"));
        attack(&journal);
        assert!(journal.get(1).is_ok());
    }
}
