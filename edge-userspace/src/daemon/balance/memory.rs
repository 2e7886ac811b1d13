//! What the balancer must know after a restart and the tables do not tell: which number is
//! whose, and what operators have said. A file in the state directory.

use std::{
    collections::BTreeMap,
    fs, io,
    net::IpAddr,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};
use tracing::warn;

use crate::{
    durable::{self, PRIVATE},
    l4::{BackendKey, Endpoint, numbers::Numbers},
};

/// Name of the file.
const FILE: &str = "backends.json";

/// A backend and its number.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Known {
    service: String,
    address: IpAddr,
    port: Option<u16>,
    number: u32,
    /// Whether it is one that went.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    retired: bool,
}

/// What an operator has said of a backend.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Said {
    /// To give it no new flows, and since when; milliseconds of the wall clock.
    #[serde(default)]
    pub(super) draining_since_unix_ms: Option<u64>,
    /// After how long the flows that it has left are cut, seconds.
    #[serde(default)]
    pub(super) drain_timeout_s: Option<u64>,
    /// That its draining is done.
    #[serde(default)]
    pub(super) drained: bool,
    /// The weight in place of the configured one.
    #[serde(default)]
    pub(super) weight: Option<u32>,
}

#[derive(Clone, Debug, Default, Serialize, Deserialize)]
struct Contents {
    #[serde(default)]
    backends: Vec<Known>,
    /// By service and name of the backend.
    #[serde(default)]
    said: BTreeMap<String, BTreeMap<String, Said>>,
}

/// The file.
#[derive(Debug)]
pub(super) struct Memory {
    path: PathBuf,
    /// Whether it may be written: it is not written over when it could not be read.
    writable: bool,
    said: BTreeMap<String, BTreeMap<String, Said>>,
    numbers: Numbers,
}

impl Memory {
    /// Reads what a former daemon left. A file that makes no sense is told of and set aside.
    pub(super) fn open(state_dir: &Path) -> Self {
        let path = state_dir.join(FILE);
        let mut memory = Self {
            path,
            writable: true,
            said: BTreeMap::new(),
            numbers: Numbers::default(),
        };
        let path = &memory.path;
        let contents = match fs::read(path) {
            Ok(bytes) => serde_json::from_slice::<Contents>(&bytes),
            Err(e) if e.kind() == io::ErrorKind::NotFound => return memory,
            Err(e) => {
                warn!("{}: cannot be read, and is not kept: {e}", path.display());
                memory.writable = false;
                return memory;
            }
        };
        match contents {
            Ok(contents) => {
                let of = |retired| {
                    let all = contents
                        .backends
                        .iter()
                        .filter(move |b| b.retired == retired);
                    all.map(|b| (b.key(), b.number)).collect::<Vec<_>>()
                };
                memory.numbers = Numbers::resume(of(false), of(true));
                memory.said = contents.said;
            }
            Err(e) => {
                let aside = path.with_extension("broken");
                let moved = fs::rename(path, &aside);
                warn!(
                    "{}: {e}; flows may move to other backends, and what was drained is not \
                     ({})",
                    path.display(),
                    match moved {
                        Ok(()) => format!("it is now {}", aside.display()),
                        Err(e) => format!("it cannot be moved away: {e}"),
                    }
                );
            }
        }
        memory
    }

    /// The numbers of backends.
    pub(super) const fn numbers(&self) -> &Numbers {
        &self.numbers
    }

    /// What was said of a backend of a service.
    pub(super) fn said(&self, service: &str, backend: &str) -> Said {
        let of = self.said.get(service).and_then(|s| s.get(backend));
        of.copied().unwrap_or_default()
    }

    /// Keeps what is said of a backend.
    pub(super) fn say(&mut self, service: &str, backend: &str, said: Said) {
        let of = self.said.entry(service.to_owned()).or_default();
        if said == Said::default() {
            of.remove(backend);
        } else {
            of.insert(backend.to_owned(), said);
        }
        self.said.retain(|_, of| !of.is_empty());
    }

    /// Keeps numbers.
    pub(super) fn set_numbers(&mut self, numbers: Numbers) {
        self.numbers = numbers;
    }

    /// Writes the file.
    ///
    /// # Errors
    /// When the disk does not take it; what was there before is there still.
    pub(super) fn save(&self) -> io::Result<()> {
        if !self.writable {
            let text = format!("{} could not be read at the start", self.path.display());
            return Err(io::Error::other(text));
        }
        let known = |retired| {
            move |(key, number): (&BackendKey, u32)| Known {
                service: key.service.clone(),
                address: key.endpoint.address,
                port: key.endpoint.port,
                number,
                retired,
            }
        };
        let live = self
            .numbers
            .live()
            .iter()
            .map(|(key, number)| (key, *number));
        let contents = Contents {
            backends: (live.map(known(false)))
                .chain(self.numbers.retired().map(known(true)))
                .collect(),
            said: self.said.clone(),
        };
        durable::replace(&self.path, &serde_json::to_vec(&contents)?, PRIVATE)
    }
}

impl Known {
    fn key(&self) -> BackendKey {
        BackendKey {
            service: self.service.clone(),
            endpoint: Endpoint {
                address: self.address,
                port: self.port,
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_saved_is_read_again() {
        let directory = tempfile::tempdir().unwrap();
        let key = |last: u8| BackendKey {
            service: "web".into(),
            endpoint: Endpoint {
                address: [10, 0, 0, last].into(),
                port: (last == 2).then_some(8080),
            },
        };
        let mut memory = Memory::open(directory.path());
        let numbers = Numbers::resume([(key(1), 7), (key(2), 9)], [(key(3), 8)]);
        memory.set_numbers(numbers.clone());
        let said = Said {
            draining_since_unix_ms: Some(5),
            weight: Some(3),
            ..Said::default()
        };
        memory.say("web", "a", said);
        memory.say("web", "b", said);
        memory.say("web", "b", Said::default());
        memory.save().unwrap();
        let again = Memory::open(directory.path());
        assert_eq!(*again.numbers(), numbers);
        assert_eq!(again.said("web", "a"), said);
        assert_eq!(again.said("web", "b"), Said::default());

        fs::write(directory.path().join(FILE), "{").unwrap();
        let broken = Memory::open(directory.path());
        assert_eq!(*broken.numbers(), Numbers::default());
        assert!(directory.path().join("backends.broken").exists());
    }
}
