//! What survives a restart: the entries of the lists and a few settings, in an
//! embedded database (redb) in the state directory.
//!
//! A write is one transaction, durable when it returns. After a crash the
//! database opens at the last one that returned.

mod eras;
mod record;

pub use eras::{Era, Eras};
pub use record::{Claim, MAX_CLAIMS, Moment, Record};

use crate::{clock::Now, entry::List};
use edge_common::addr::Prefix;
use redb::{
    Database, DatabaseError, ReadOnlyTable, ReadableDatabase as _, StorageError, TableDefinition,
};
use std::{
    fs, io,
    ops::Bound,
    os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
    sync::Arc,
};
use thiserror::Error;

/// Name of the database in the state directory.
pub const FILE: &str = "edge.redb";

/// List, then [`Prefix::key`]: entries of a list sort by address.
type Key = [u8; 18];
const ENTRIES: TableDefinition<'_, &Key, &[u8]> = TableDefinition::new("entries");
/// Key of [`Eras`] among the settings.
const CLOCK_SETTING: &str = "clock";
const SETTINGS: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("settings");

/// Memory for database pages, bytes. The lists themselves are read seldom.
const CACHE: usize = 32 << 20;

/// Why the store cannot do what it should.
#[derive(Debug, Error)]
pub enum StoreError {
    /// The directory or the file cannot be made or opened.
    #[error("{}: {source}; check that the directory exists and belongs to the daemon's user", .path.display())]
    Open {
        /// What was opened.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// Another process has it open.
    #[error(
        "{}: another daemon uses this state directory; stop it, or set another paths.state_dir",
        .path.display()
    )]
    InUse {
        /// The database.
        path: PathBuf,
    },
    /// It is damaged, or no database of ours.
    #[error(
        "{}: not a database of this daemon, or damaged ({reason}); move it away to start with empty lists",
        .path.display()
    )]
    Damaged {
        /// The database.
        path: PathBuf,
        /// What was found.
        reason: String,
    },
    /// An entry is of a form that this version does not know.
    #[error(
        "{}: written by a later version of edge; run that version, or move the file away to start with empty lists",
        .path.display()
    )]
    Later {
        /// The database.
        path: PathBuf,
    },
    /// A read or write failed.
    #[error("{}: {source}", .path.display())]
    Failed {
        /// The database.
        path: PathBuf,
        /// Why.
        source: Box<redb::Error>,
    },
}

/// A change of one entry: its new record, which entries may share, or `None` to
/// remove it.
pub type Change = (List, Prefix, Option<Arc<Record>>);

/// The database.
pub struct Store {
    database: Database,
    path: PathBuf,
    eras: Eras,
}

impl Store {
    /// Opens the database in `state_dir`, making both if they are missing.
    ///
    /// # Errors
    /// [`StoreError`], also when another process has it open.
    pub fn open(state_dir: &Path) -> Result<Self, StoreError> {
        let failed = |path: &Path| {
            let path = path.to_owned();
            move |source| StoreError::Open { path, source }
        };
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(state_dir)
            .map_err(failed(state_dir))?;
        let path = state_dir.join(FILE);
        // Made here and not by redb, for its mode: notes may tell what others should not read.
        let made = fs::OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&path);
        match made {
            Err(e) if e.kind() != io::ErrorKind::AlreadyExists => return Err(failed(&path)(e)),
            _ => {}
        }
        let mut builder = Database::builder();
        builder.set_cache_size(CACHE);
        let database = builder.create(&path).map_err(|e| open_error(&path, e))?;
        let mut store = Self {
            database,
            path,
            eras: Eras::default(),
        };
        // Both tables must exist before the first read, and be of our types.
        store.transaction(|_| Ok(()))?;
        if let Some(bytes) = store.setting(CLOCK_SETTING)? {
            store.eras = serde_json::from_slice(&bytes)
                .map_err(|e| store.damaged(format!("what is known of the clock: {e}")))?;
        }
        Ok(store)
    }

    /// Begins with a boot of this id, or goes on with it; to be called before
    /// anything is read or written.
    ///
    /// # Errors
    /// [`StoreError::Failed`].
    pub fn enter(&mut self, boot: Option<&str>, now: Now) -> Result<(), StoreError> {
        self.keep(self.eras.entered(boot, now))
    }

    /// The wall clock was set, and shows `now`: from now on, and for good, all
    /// times of this boot are read as they should have been.
    ///
    /// # Errors
    /// [`StoreError::Failed`]; then they are read as before.
    pub fn clock_was_set(&mut self, now: Now) -> Result<(), StoreError> {
        self.keep(self.eras.set(now))
    }

    fn keep(&mut self, eras: Eras) -> Result<(), StoreError> {
        if eras != self.eras {
            let text = serde_json::to_vec(&eras).map_err(|e| self.damaged(e.to_string()))?;
            self.set_setting(CLOCK_SETTING, &text)?;
            self.eras = eras;
        }
        Ok(())
    }

    /// This moment, as what is left of a claim depends on it.
    pub const fn moment(&self, now: Now) -> Moment {
        Moment {
            era: self.eras.current(),
            uptime_ms: now.boot_ns / 1_000_000,
            unix_ms: now.unix_ms,
        }
    }

    /// A setting's value.
    ///
    /// # Errors
    /// [`StoreError::Failed`].
    pub fn setting(&self, name: &str) -> Result<Option<Vec<u8>>, StoreError> {
        let read = || -> Result<_, redb::Error> {
            let table = self.database.begin_read()?.open_table(SETTINGS)?;
            Ok(table.get(name)?.map(|value| value.value().to_vec()))
        };
        read().map_err(|e| self.failed(e))
    }

    /// Stores a setting durably.
    ///
    /// # Errors
    /// [`StoreError::Failed`]; then the former value stands.
    pub fn set_setting(&self, name: &str, value: &[u8]) -> Result<(), StoreError> {
        self.transaction(|tables| {
            tables.settings.insert(name, value)?;
            Ok(())
        })
    }

    /// Makes all changes, durably, or none. Changes in the order of their
    /// prefixes are several times faster than others.
    ///
    /// # Errors
    /// [`StoreError::Failed`]; then nothing has changed.
    pub fn write<'c>(
        &self,
        changes: impl IntoIterator<Item = &'c Change>,
    ) -> Result<(), StoreError> {
        self.transaction(|tables| {
            let mut value = Vec::with_capacity(64);
            for (list, prefix, record) in changes {
                let key = key(*list, *prefix);
                match record {
                    Some(record) => {
                        record.encode(&self.eras, &mut value);
                        tables.entries.insert(&key, value.as_slice())?;
                    }
                    None => {
                        tables.entries.remove(&key)?;
                    }
                }
            }
            Ok(())
        })
    }

    /// The entries as they are now; later writes do not show.
    ///
    /// # Errors
    /// [`StoreError::Failed`].
    pub fn read(&self) -> Result<Entries<'_>, StoreError> {
        let open =
            || -> Result<_, redb::Error> { Ok(self.database.begin_read()?.open_table(ENTRIES)?) };
        Ok(Entries {
            table: open().map_err(|e| self.failed(e))?,
            store: self,
        })
    }

    fn transaction(
        &self,
        change: impl FnOnce(&mut Tables<'_>) -> Result<(), redb::Error>,
    ) -> Result<(), StoreError> {
        let run = || -> Result<(), redb::Error> {
            let mut transaction = self.database.begin_write()?;
            // Opening after a crash must not take the time of reading all there is.
            transaction.set_quick_repair(true);
            {
                let mut tables = Tables {
                    entries: transaction.open_table(ENTRIES)?,
                    settings: transaction.open_table(SETTINGS)?,
                };
                change(&mut tables)?;
            }
            transaction.commit()?;
            Ok(())
        };
        run().map_err(|e| self.failed(e))
    }

    fn failed(&self, error: redb::Error) -> StoreError {
        match error {
            redb::Error::TableTypeMismatch { .. }
            | redb::Error::TypeDefinitionChanged { .. }
            | redb::Error::Corrupted(_) => self.damaged(error.to_string()),
            error => StoreError::Failed {
                path: self.path.clone(),
                source: Box::new(error),
            },
        }
    }

    fn damaged(&self, reason: String) -> StoreError {
        StoreError::Damaged {
            path: self.path.clone(),
            reason,
        }
    }
}

struct Tables<'t> {
    entries: redb::Table<'t, &'static Key, &'static [u8]>,
    settings: redb::Table<'t, &'static str, &'static [u8]>,
}

/// A consistent view of the entries.
pub struct Entries<'s> {
    table: ReadOnlyTable<&'static Key, &'static [u8]>,
    store: &'s Store,
}

impl Entries<'_> {
    /// The entry of this very prefix.
    ///
    /// # Errors
    /// [`StoreError::Failed`], [`StoreError::Damaged`].
    pub fn get(&self, list: List, prefix: Prefix) -> Result<Option<Record>, StoreError> {
        let found = self
            .table
            .get(&key(list, prefix))
            .map_err(|e| self.store.failed(e.into()))?;
        found.map(|value| self.decode(value.value())).transpose()
    }

    /// The entries of a list in the order of their prefixes, behind `after` and
    /// inside `within`.
    ///
    /// # Errors
    /// [`StoreError::Failed`]; each item [`StoreError::Damaged`] as well.
    pub fn range(
        &self,
        list: List,
        after: Option<Prefix>,
        within: Option<Prefix>,
    ) -> Result<impl Iterator<Item = Result<(Prefix, Record), StoreError>>, StoreError> {
        let first = within.map_or([0; 17], Prefix::key);
        let mut last = [u8::MAX; 17];
        if let Some(within) = within {
            last[..16].copy_from_slice(&within.last_bits().to_be_bytes());
        }
        let low = match after.map(Prefix::key) {
            Some(after) if after >= first => Bound::Excluded(with_list(list, after)),
            _ => Bound::Included(with_list(list, first)),
        };
        let high = with_list(list, last);
        // redb wants the bounds in order.
        let is_empty = matches!(low, Bound::Excluded(low) if low >= high);
        let range = if is_empty {
            None
        } else {
            let bounds = (as_ref(&low), Bound::Included(&high));
            Some(
                self.table
                    .range::<&Key>(bounds)
                    .map_err(|e| self.store.failed(e.into()))?,
            )
        };
        Ok(range.into_iter().flatten().filter_map(move |item| {
            let item = item
                .map_err(|e| self.store.failed(e.into()))
                .and_then(|(key, value)| {
                    let (_, prefix) = key.value().split_at(1);
                    let prefix = <&[u8; 17]>::try_from(prefix)
                        .ok()
                        .and_then(Prefix::from_key);
                    let prefix =
                        prefix.ok_or_else(|| self.store.damaged("a key is no prefix".into()))?;
                    Ok((prefix, self.decode(value.value())?))
                });
            // The key ranges of the families overlap: ::/0 spans the IPv4 mapping.
            match (&item, within) {
                (Ok((prefix, _)), Some(within)) if !within.contains(*prefix) => None,
                _ => Some(item),
            }
        }))
    }

    fn decode(&self, bytes: &[u8]) -> Result<Record, StoreError> {
        Record::decode(&self.store.eras, bytes).ok_or_else(|| match bytes.first() {
            Some(&version) if version > record::ENCODING => StoreError::Later {
                path: self.store.path.clone(),
            },
            _ => self.store.damaged("an entry cannot be read".into()),
        })
    }
}

fn as_ref(bound: &Bound<Key>) -> Bound<&Key> {
    match bound {
        Bound::Included(key) => Bound::Included(key),
        Bound::Excluded(key) => Bound::Excluded(key),
        Bound::Unbounded => Bound::Unbounded,
    }
}

fn key(list: List, prefix: Prefix) -> Key {
    with_list(list, prefix.key())
}

fn with_list(list: List, prefix: [u8; 17]) -> Key {
    let mut key = [0; 18];
    key[0] = match list {
        List::Black => 0,
        List::Allow => 1,
    };
    key[1..].copy_from_slice(&prefix);
    key
}

fn open_error(path: &Path, error: DatabaseError) -> StoreError {
    let path = path.to_owned();
    match error {
        DatabaseError::DatabaseAlreadyOpen => StoreError::InUse { path },
        DatabaseError::Storage(StorageError::Io(source))
            if source.kind() != io::ErrorKind::InvalidData =>
        {
            StoreError::Open { path, source }
        }
        error => StoreError::Damaged {
            path,
            reason: error.to_string(),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::entry::{FeedName, Origin, Source};
    use std::os::unix::fs::PermissionsExt as _;

    fn p(s: &str) -> Prefix {
        s.parse().unwrap()
    }

    fn record(note: &str) -> Record {
        let claim = Claim {
            era: Era(1),
            source: Source::new(Origin::Feed, "drop".parse().ok()),
            created_unix_ms: 1,
            changed_unix_ms: 2,
            expires_unix_ms: Some(3),
            note: note.into(),
        };
        Record {
            claims: vec![claim],
        }
    }

    fn listed(store: &Store, list: List, after: Option<&str>, within: Option<&str>) -> Vec<String> {
        let entries = store.read().unwrap();
        entries
            .range(list, after.map(p), within.map(p))
            .unwrap()
            .map(|item| item.unwrap().0.to_string())
            .collect()
    }

    #[test]
    fn keeps_entries_and_settings() {
        let dir = tempfile::tempdir().unwrap();
        let state = dir.path().join("state");
        {
            let store = Store::open(&state).unwrap();
            store
                .write(&[
                    (List::Black, p("10.0.0.1"), Some(record("a ü").into())),
                    (List::Allow, p("10.0.0.1"), Some(record("").into())),
                ])
                .unwrap();
            store.set_setting("seed", b"\x00\x01").unwrap();
        }
        let store = Store::open(&state).unwrap();
        let entries = store.read().unwrap();
        assert_eq!(
            entries.get(List::Black, p("10.0.0.1")).unwrap(),
            Some(record("a ü"))
        );
        assert_eq!(entries.get(List::Black, p("10.0.0.2")).unwrap(), None);
        assert_eq!(store.setting("seed").unwrap().unwrap(), b"\x00\x01");
        assert_eq!(store.setting("other").unwrap(), None);
        store.write(&[(List::Black, p("10.0.0.1"), None)]).unwrap();
        assert!(listed(&store, List::Black, None, None).is_empty());
        assert_eq!(listed(&store, List::Allow, None, None), ["10.0.0.1"]);
        let mode = fs::metadata(state.join(FILE)).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
    }

    #[test]
    fn ranges_go_by_prefix_and_family() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path()).unwrap();
        let all = [
            "::/1",
            "::1",
            "10.0.0.0/8",
            "10.0.0.0",
            "10.0.0.1",
            "11.0.0.0/8",
            "2001:db8::/32",
        ];
        store
            .write(&all.map(|s| (List::Black, p(s), Some(record(s).into()))))
            .unwrap();
        assert_eq!(listed(&store, List::Black, None, None), all);
        assert_eq!(
            listed(&store, List::Black, Some("10.0.0.0"), None),
            &all[4..]
        );
        assert_eq!(
            listed(&store, List::Black, None, Some("10.0.0.0/8")),
            &all[2..5]
        );
        assert_eq!(
            listed(&store, List::Black, Some("10.0.0.0/8"), Some("10.0.0.0/8")),
            &all[3..5]
        );
        assert_eq!(
            listed(&store, List::Black, None, Some("::/0")),
            ["::/1", "::1", "2001:db8::/32"]
        );
        assert!(listed(&store, List::Black, Some("11.0.0.0/8"), Some("10.0.0.0/8")).is_empty());
        assert!(listed(&store, List::Allow, None, None).is_empty());
    }

    #[test]
    fn a_second_daemon_is_told() {
        let dir = tempfile::tempdir().unwrap();
        let _first = Store::open(dir.path()).unwrap();
        let error = Store::open(dir.path()).map(|_| ()).unwrap_err();
        assert!(matches!(error, StoreError::InUse { .. }), "{error}");
        assert!(error.to_string().contains("paths.state_dir"), "{error}");
    }

    #[test]
    fn a_foreign_file_is_refused_and_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(FILE);
        fs::write(&path, "something else\n".repeat(1000)).unwrap();
        let error = Store::open(dir.path()).map(|_| ()).unwrap_err();
        assert!(matches!(error, StoreError::Damaged { .. }), "{error:?}");
        assert!(
            fs::read_to_string(&path)
                .unwrap()
                .starts_with("something else")
        );
    }

    #[test]
    fn entries_of_a_former_version_are_of_the_default_feed() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path()).unwrap();
        let put = |prefix: &str, bytes: &[u8]| {
            let key = key(List::Black, p(prefix));
            let write = |t: &mut Tables<'_>| Ok(t.entries.insert(&key, bytes).map(|_| ())?);
            store.transaction(write).unwrap();
        };
        let v1_at = |times: [u64; 2], origin: u8| {
            let mut bytes = vec![1];
            bytes.extend(times.map(u64::to_le_bytes).as_flattened());
            bytes.push(origin);
            bytes.extend(b"why");
            bytes
        };
        let v1 = |origin| v1_at([5, 7], origin);
        put("10.0.0.1", &v1(2));
        put("10.0.0.2", &v1(0));
        // Made when the clock ran ahead, and prolonged when it was right.
        put("10.0.0.3", &v1_at([9000, 5000], 0));
        let entries = store.read().unwrap();
        let get = |prefix| entries.get(List::Black, p(prefix)).map(Option::unwrap);
        let old = |source| Claim {
            era: Era::UNKNOWN,
            source,
            created_unix_ms: 5,
            changed_unix_ms: 5,
            expires_unix_ms: Some(7),
            note: "why".into(),
        };
        let feed = Source::new(Origin::Feed, Some(FeedName::default()));
        assert_eq!(get("10.0.0.1").unwrap().claims, [old(feed)]);
        let cli = Source::new(Origin::Cli, None);
        assert_eq!(get("10.0.0.2").unwrap().claims, [old(cli)]);
        let prolonged = get("10.0.0.3").unwrap();
        let at = |unix_ms| Moment {
            era: Era(1),
            uptime_ms: 1_000_000,
            unix_ms,
        };
        assert!(!prolonged.has_expired(at(4999)) && prolonged.has_expired(at(5000)));
        // Version 2 had feeds, and did not know in which boot a thing was said.
        let mut v2 = vec![2, 1];
        v2.extend([5u64, 6, 7].map(u64::to_le_bytes).as_flattened());
        v2.extend(b"\x02\x04drop\x03\0why");
        put("10.0.0.4", &v2);
        let entries = store.read().unwrap();
        let of_drop = entries.get(List::Black, p("10.0.0.4")).unwrap().unwrap();
        let drop_feed = Source::new(Origin::Feed, "drop".parse().ok());
        let want = Claim {
            changed_unix_ms: 6,
            ..old(drop_feed)
        };
        assert_eq!(of_drop.claims, [want]);
        // When it is written again, it is of the present version.
        let change = (List::Black, p("10.0.0.4"), Some(of_drop.clone().into()));
        store.write(&[change]).unwrap();
        let entries = store.read().unwrap();
        let bytes = entries.table.get(&key(List::Black, p("10.0.0.4"))).unwrap();
        assert_eq!(bytes.unwrap().value()[0], record::ENCODING);
        let again = entries.get(List::Black, p("10.0.0.4")).unwrap();
        assert_eq!(again, Some(of_drop));
        // And those of a later one are not ours to throw away.
        put("10.0.0.1", &[record::ENCODING + 1, 0, 0]);
        let entries = store.read().unwrap();
        let error = entries.get(List::Black, p("10.0.0.1")).unwrap_err();
        assert!(matches!(error, StoreError::Later { .. }), "{error}");
    }
}
