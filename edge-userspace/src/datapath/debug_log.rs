//! The program's log of every packet that is dropped or would be, handed on to
//! the daemon's own at the level `debug`. With the feature `debug-log` only.

use std::{
    io,
    os::fd::{AsFd as _, AsRawFd as _, BorrowedFd},
    sync::Arc,
    thread,
};

use aya::Ebpf;
use aya_log::EbpfLogger;
use tracing::warn;

use super::error::{DatapathError, chain};

/// How long the reader outlives its program, in milliseconds.
const PATIENCE_MS: i32 = 200;

/// Reads the log of one load until it is dropped.
#[derive(Debug)]
pub(super) struct DebugLog {
    _alive: Arc<()>,
}

impl DebugLog {
    /// Starts reading. Takes the log's map from the load.
    ///
    /// # Errors
    /// When the object was built without the log.
    pub(super) fn start(ebpf: &mut Ebpf) -> Result<Self, DatapathError> {
        let failed = |why: String| DatapathError::Map {
            map: "AYA_LOGS",
            why,
        };
        // Goes through the crate `log`, which the daemon's subscriber listens to.
        let mut log = EbpfLogger::init(ebpf).map_err(|e| {
            failed(format!(
                "{}; build both sides with `cargo xtask build --debug-log`",
                chain(&e)
            ))
        })?;
        let alive = Arc::new(());
        let watched = Arc::downgrade(&alive);
        thread::Builder::new()
            .name("debug-log".into())
            .spawn(move || {
                while watched.strong_count() > 0 {
                    if let Err(e) = wait(log.as_fd()) {
                        return warn!("no more log of dropped packets: {e}");
                    }
                    log.flush();
                }
            })
            .map_err(|e| failed(format!("no thread to read it: {e}")))?;
        Ok(Self { _alive: alive })
    }
}

/// Waits until there is something to read, or for [`PATIENCE_MS`].
fn wait(ring: BorrowedFd<'_>) -> io::Result<()> {
    let mut ready = libc::pollfd {
        fd: ring.as_raw_fd(),
        events: libc::POLLIN,
        revents: 0,
    };
    // SAFETY: one entry, which lives and is writable until the call returns.
    if unsafe { libc::poll(&raw mut ready, 1, PATIENCE_MS) } >= 0 {
        return Ok(());
    }
    match io::Error::last_os_error() {
        e if e.kind() == io::ErrorKind::Interrupted => Ok(()),
        e => Err(e),
    }
}
