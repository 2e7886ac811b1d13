//! The listening Unix socket: mode 0600 from its first moment, and one daemon
//! at a time behind it.

use std::{
    fs::{DirBuilder, File, OpenOptions, Permissions, TryLockError},
    io,
    os::{
        fd::{AsFd, BorrowedFd},
        unix::fs::{DirBuilderExt, FileTypeExt, MetadataExt, OpenOptionsExt, PermissionsExt},
    },
    path::{Path, PathBuf},
    sync::atomic::{AtomicBool, Ordering::Relaxed},
};

use tokio::net::{UnixListener, UnixSocket, UnixStream};

/// Connections that the kernel holds until they are accepted.
const BACKLOG: u32 = 64;

/// The listening socket. Its path is removed when it is dropped.
#[derive(Debug)]
pub struct Socket {
    /// Accepts connections.
    pub listener: UnixListener,
    path: PathBuf,
    /// Device and inode of the path as it was made.
    identity: (u64, u64),
    /// Held as long as anybody listens.
    lock: File,
    /// Whether the path is ours to remove.
    is_ours: AtomicBool,
}

/// Why the socket could not be made.
#[derive(Debug, thiserror::Error)]
pub enum BindError {
    /// Somebody listens on it.
    #[error(
        "{path}: another daemon listens on this socket; stop it, or give this one other `paths` in its configuration"
    )]
    InUse {
        /// The path of the socket.
        path: PathBuf,
    },
    /// There is something else at the path.
    #[error(
        "{path}: there is a file here that is not a socket; remove it or change `paths.socket`"
    )]
    NotASocket {
        /// The path of the socket.
        path: PathBuf,
    },
    /// The system refused.
    #[error("{path}: cannot {action} (`paths.socket`): {source}")]
    Io {
        /// The path of the socket.
        path: PathBuf,
        /// What could not be done.
        action: &'static str,
        /// Why.
        source: io::Error,
    },
}

impl Socket {
    /// Listens on `path`. The directory is made if it is missing; the socket of
    /// a daemon that died is taken over. To be called inside a tokio runtime.
    ///
    /// # Errors
    /// [`BindError`], with nothing changed at `path`.
    pub async fn bind(path: &Path) -> Result<Self, BindError> {
        let failed = |action| {
            move |source| BindError::Io {
                path: path.to_owned(),
                action,
                source,
            }
        };
        if let Some(dir) = path.parent().filter(|d| !d.as_os_str().is_empty()) {
            DirBuilder::new()
                .recursive(true)
                .mode(0o755)
                .create(dir)
                .map_err(failed("make its directory"))?;
        }
        let mut lock_path = path.as_os_str().to_owned();
        lock_path.push(".lock");
        let lock = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(lock_path)
            .map_err(failed("open its lock file"))?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                return Err(BindError::InUse {
                    path: path.to_owned(),
                });
            }
            Err(TryLockError::Error(e)) => return Err(failed("lock its lock file")(e)),
        }
        remove_stale(path).await?;

        let socket = UnixSocket::new_stream().map_err(failed("make a socket"))?;
        // The mode of the socket before it has a path is the mode of the path
        // less the umask (unix(7) leaves this out, net/unix/af_unix.c has it),
        // so that nobody can connect between bind and chmod.
        socket
            .as_fd()
            .try_clone_to_owned()
            .and_then(|fd| File::from(fd).set_permissions(Permissions::from_mode(0o600)))
            .map_err(failed("set its mode"))?;
        socket.bind(path).map_err(failed("bind"))?;
        let found = std::fs::symlink_metadata(path).map_err(failed("look at it"))?;
        let identity = (found.dev(), found.ino());
        let listener = socket.listen(BACKLOG).map_err(failed("listen"))?;
        Ok(Self {
            listener,
            path: path.to_owned(),
            identity,
            lock,
            is_ours: AtomicBool::new(true),
        })
    }

    /// Listens on the socket of another daemon that hands over to us, which keeps the path until
    /// [`Self::own`]. To be called inside a tokio runtime.
    ///
    /// # Errors
    /// Those of the system.
    pub fn adopt(
        listener: std::os::unix::net::UnixListener,
        lock: File,
        path: &Path,
    ) -> io::Result<Self> {
        let found = std::fs::symlink_metadata(path)?;
        listener.set_nonblocking(true)?;
        Ok(Self {
            listener: UnixListener::from_std(listener)?,
            path: path.to_owned(),
            identity: (found.dev(), found.ino()),
            lock,
            is_ours: AtomicBool::new(false),
        })
    }

    /// The path is ours from now on.
    pub fn own(&self) {
        self.is_ours.store(true, Relaxed);
    }

    /// The path is somebody else's from now on.
    pub fn release(&self) {
        self.is_ours.store(false, Relaxed);
    }

    /// The socket and its lock, for another process.
    pub fn descriptors(&self) -> [BorrowedFd<'_>; 2] {
        [self.listener.as_fd(), self.lock.as_fd()]
    }
}

/// Removes a socket on which nobody listens any more.
async fn remove_stale(path: &Path) -> Result<(), BindError> {
    let failed = |action| {
        move |source| BindError::Io {
            path: path.to_owned(),
            action,
            source,
        }
    };
    match std::fs::symlink_metadata(path) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(e) => return Err(failed("look at it")(e)),
        Ok(found) if !found.file_type().is_socket() => {
            return Err(BindError::NotASocket {
                path: path.to_owned(),
            });
        }
        Ok(_) => {}
    }
    // Our lock says that no daemon of ours listens. This is for others, and
    // for a lock file that somebody removed.
    match UnixStream::connect(path).await {
        Err(e) if e.kind() == io::ErrorKind::ConnectionRefused => {
            std::fs::remove_file(path).map_err(failed("remove the one of a dead daemon"))
        }
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
        _ => Err(BindError::InUse {
            path: path.to_owned(),
        }),
    }
}

impl Drop for Socket {
    fn drop(&mut self) {
        let ours = *self.is_ours.get_mut()
            && std::fs::symlink_metadata(&self.path)
                .is_ok_and(|found| (found.dev(), found.ino()) == self.identity);
        if ours && let Err(e) = std::fs::remove_file(&self.path) {
            tracing::warn!(path = %self.path.display(), "cannot remove the control socket: {e}");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn dir() -> tempfile::TempDir {
        tempfile::tempdir().unwrap()
    }

    #[tokio::test]
    async fn only_the_owner_may_connect() {
        let dir = dir();
        let path = dir.path().join("deeper/edge.sock");
        let socket = Socket::bind(&path).await.unwrap();
        let mode = std::fs::metadata(&path).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        drop(socket);
        assert!(!path.exists());
    }

    #[tokio::test]
    async fn a_living_daemon_is_not_pushed_aside() {
        let dir = dir();
        let path = dir.path().join("edge.sock");
        let first = Socket::bind(&path).await.unwrap();
        let e = Socket::bind(&path).await.unwrap_err();
        assert!(matches!(e, BindError::InUse { .. }), "{e}");
        // Not even when the lock file is gone.
        std::fs::remove_file(dir.path().join("edge.sock.lock")).unwrap();
        let e = Socket::bind(&path).await.unwrap_err();
        assert!(matches!(e, BindError::InUse { .. }), "{e}");
        UnixStream::connect(&path).await.unwrap();
        drop(first);
    }

    #[tokio::test]
    async fn a_successor_takes_the_path_over_when_it_is_told_to() {
        let dir = dir();
        let path = dir.path().join("edge.sock");
        let first = Socket::bind(&path).await.unwrap();
        let heir = || {
            let [listener, lock] = first.descriptors();
            let listener = listener.try_clone_to_owned().unwrap();
            let lock = lock.try_clone_to_owned().unwrap();
            Socket::adopt(listener.into(), lock.into(), &path).unwrap()
        };
        // One that gives up leaves everything as it was.
        drop(heir());
        UnixStream::connect(&path).await.unwrap();
        let heir = heir();
        heir.own();
        first.release();
        drop(first);
        UnixStream::connect(&path).await.unwrap();
        let e = Socket::bind(&path).await.unwrap_err();
        assert!(matches!(e, BindError::InUse { .. }), "{e}");
        drop(heir);
        assert!(!path.exists());
    }

    #[tokio::test]
    async fn the_socket_of_a_dead_daemon_is_taken_over() {
        let dir = dir();
        let path = dir.path().join("edge.sock");
        // A listener that goes away without removing its path, as by SIGKILL.
        drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
        assert!(path.exists());
        let socket = Socket::bind(&path).await.unwrap();
        UnixStream::connect(&path).await.unwrap();
        // A successor that took the path over keeps it.
        std::fs::remove_file(&path).unwrap();
        let _other = std::os::unix::net::UnixListener::bind(&path).unwrap();
        drop(socket);
        assert!(path.exists());
    }

    #[tokio::test]
    async fn other_files_are_left_alone() {
        let dir = dir();
        let path = dir.path().join("edge.sock");
        std::fs::write(&path, "precious").unwrap();
        let e = Socket::bind(&path).await.unwrap_err();
        assert!(matches!(e, BindError::NotASocket { .. }), "{e}");
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "precious");

        let long = dir.path().join("x".repeat(120));
        let e = Socket::bind(&long).await.unwrap_err();
        assert!(e.to_string().contains("`paths.socket`"), "{e}");
    }
}
