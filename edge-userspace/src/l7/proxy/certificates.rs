//! Files of certificates, which are read anew when they change.

use std::{collections::BTreeMap, fs, mem, os::unix::fs::MetadataExt as _, path::Path, sync::Arc};

use tokio_rustls::rustls::ServerConfig;
use tracing::{info, warn};

use super::{
    snapshot::Listener,
    tls::{self, TlsError},
};
use crate::config::proxy::listener::Tls;

/// What a file is known by (stat(2)): which one it is, its size in bytes, and when its content or
/// what is known of it was last changed, in seconds and nanoseconds. One that takes the place of
/// another is told from it even if it is as long and was written at the same time. `None`: there
/// is no such file.
type Stamp = Option<(u64, u64, u64, i64, i64)>;

/// Those of all files of a listener.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Stamps(Vec<Stamp>);

impl Stamps {
    fn of(tls: &Tls) -> Self {
        let pairs = tls.certificates.iter();
        let pairs = pairs.flat_map(|pair| [&pair.cert, &pair.key]);
        Self(
            pairs
                .chain(&tls.client_ca)
                .map(|path| stamp(path))
                .collect(),
        )
    }
}

fn stamp(path: &Path) -> Stamp {
    let found = fs::metadata(path).ok()?;
    Some((
        found.dev(),
        found.ino(),
        found.size(),
        found.ctime(),
        found.ctime_nsec(),
    ))
}

/// TLS of a listener, and how its files were before they were read: what changes amid that is
/// seen at the next look.
pub(super) struct Loaded {
    pub(super) config: Arc<ServerConfig>,
    pub(super) files: Stamps,
}

impl Loaded {
    /// Reads the files.
    ///
    /// # Errors
    /// [`TlsError`].
    pub(super) fn load(tls: &Tls, http2: bool) -> Result<Self, TlsError> {
        let files = Stamps::of(tls);
        let config = Arc::new(tls::server(tls, http2)?);
        Ok(Self { config, files })
    }
}

/// What was seen of the files of listeners, by their names.
#[derive(Default)]
pub(super) struct Files {
    seen: BTreeMap<String, Seen>,
}

/// What was seen of the files of a listener.
#[derive(Default)]
struct Seen {
    /// As they were at the last look.
    last: Stamps,
    /// As they were when they could not be used.
    refused: Option<Stamps>,
}

impl Files {
    /// Reads the files of a listener anew when they have changed, and are what they were a look
    /// before: who writes two files does so one after the other.
    pub(super) fn look(&mut self, listeners: &[Arc<Listener>]) {
        let mut before = mem::take(&mut self.seen);
        for listener in listeners {
            let name = &listener.config.name;
            let (Some(tls), Some(read)) = (&listener.config.tls, listener.files()) else {
                continue;
            };
            let mut seen = before.remove(name).unwrap_or_default();
            let now = Stamps::of(tls);
            let is_quiet = mem::replace(&mut seen.last, now.clone()) == now;
            if read == now {
                seen.refused = None;
            } else if is_quiet {
                match Loaded::load(tls, listener.config.http2) {
                    Ok(loaded) => {
                        listener.set_tls(loaded);
                        seen.refused = None;
                        info!("listener {name}: its certificates were read anew");
                    }
                    // It is tried again, and told again when they have changed again.
                    Err(e) if seen.refused.as_ref() != Some(&now) => {
                        warn!(
                            "listener {name}: its certificates have changed and cannot be used, \
                             those of before are: {e}"
                        );
                        seen.refused = Some(now);
                    }
                    Err(_) => {}
                }
            }
            self.seen.insert(name.clone(), seen);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{config::test::model_of, l7::proxy::snapshot::Open};

    /// Puts another certificate and key in a directory.
    fn issue(directory: &Path) {
        let new = directory.join("new");
        let made = rcgen::generate_simple_self_signed(["a.example".to_owned()]).expect("made");
        for (name, text) in [
            ("key", made.signing_key.serialize_pem()),
            ("cert", made.cert.pem()),
        ] {
            fs::write(&new, text).expect("written");
            fs::rename(&new, directory.join(name)).expect("renamed");
        }
    }

    fn listener(directory: &Path) -> Arc<Listener> {
        let at = directory.display();
        let model = model_of(&format!(
            "
            [[listener]]
            name = 'web'
            addresses = ['127.0.0.1:443']
            tls = {{ certificates = [{{ cert = '{at}/cert', key = '{at}/key' }}] }}
            [[route]]
            name = 'all'
            respond = {{ status = 200 }}
            "
        ));
        let config = model.proxy.listeners[0].clone();
        let tls = config.tls.as_ref().expect("TLS");
        let loaded = Loaded::load(tls, config.http2).expect("loaded");
        Arc::new(Listener::new(
            config,
            Some(loaded),
            Arc::default(),
            Arc::default(),
            Arc::default(),
            Arc::<Open>::default(),
        ))
    }

    #[test]
    fn files_are_read_anew_when_they_have_changed_since_they_were_read() {
        let directory = tempfile::tempdir().expect("made");
        let directory = directory.path();
        issue(directory);
        let all = [listener(directory)];
        let held = || Arc::as_ptr(&all[0].tls().expect("TLS"));
        let first = held();
        let mut files = Files::default();
        // Between the reading and the first look, as an authority's client may that also reloads.
        issue(directory);
        files.look(&all);
        assert_eq!(held(), first, "they may be changing still");
        files.look(&all);
        let second = held();
        assert_ne!(second, first);
        files.look(&all);
        assert_eq!(held(), second, "nothing has changed");

        // One that cannot be used, until it can, and then again the one of before.
        let link = |target: &str| {
            std::os::unix::fs::symlink(directory.join(target), directory.join("new"))
                .expect("made");
            fs::rename(directory.join("new"), directory.join("cert")).expect("renamed");
        };
        fs::rename(directory.join("cert"), directory.join("good")).expect("renamed");
        fs::write(directory.join("bad"), "none").expect("written");
        for _ in 0..2 {
            let before = held();
            link("bad");
            files.look(&all);
            files.look(&all);
            assert!(files.seen["web"].refused.is_some());
            assert_eq!(held(), before);
            link("good");
            files.look(&all);
            files.look(&all);
            assert!(
                files.seen["web"].refused.is_none(),
                "it is told of the next one"
            );
        }
        issue(directory);
        let before = held();
        files.look(&all);
        files.look(&all);
        assert_ne!(held(), before);
    }

    #[test]
    fn a_file_is_told_from_one_that_is_like_it() {
        let directory = tempfile::tempdir().expect("made");
        let paths = ["a", "b"].map(|name| directory.path().join(name));
        let now = std::time::SystemTime::now();
        for path in &paths {
            let file = fs::File::create(path).expect("made");
            file.set_modified(now).expect("set");
        }
        let before = stamp(&paths[0]);
        assert_eq!(stamp(&paths[0]), before);
        fs::rename(&paths[1], &paths[0]).expect("renamed");
        assert_ne!(stamp(&paths[0]), before);
        assert_eq!(stamp(&paths[1]), None);
    }
}
