//! The thread that writes the access log. Requests never wait for it: when it falls behind,
//! lines are lost and counted. It waits outside the channel, as who waits inside is woken under a
//! lock that all workers share.

use std::{
    fs::{File, OpenOptions},
    io::{self, Write as _},
    os::unix::fs::{MetadataExt as _, OpenOptionsExt as _},
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
        mpsc::{Receiver, SyncSender, TryRecvError, TrySendError, sync_channel},
    },
    thread::{self, Thread},
    time::Duration,
};

use tracing::{error, info};

/// Batches of lines that may wait.
const QUEUE: usize = 256;
/// How often it is looked whether the file was moved away.
const LOOK: Duration = Duration::from_secs(1);
/// Who may read it: it tells who asked for what.
const MODE: u32 = 0o640;

/// Where the lines of a worker go. The file is closed when nobody has one any more.
#[derive(Clone, Debug)]
pub(super) struct LogWriter {
    batches: SyncSender<Batch>,
    // Dropped behind the sender: the thread is to see that nobody has one any more.
    writer: Writer,
    lost: Arc<AtomicU64>,
}

/// The thread, which is woken when this is dropped.
#[derive(Clone, Debug)]
struct Writer(Thread);

impl Drop for Writer {
    fn drop(&mut self) {
        self.0.unpark();
    }
}

/// Whole lines, and how many.
struct Batch {
    lines: Vec<u8>,
    count: u64,
}

impl LogWriter {
    /// Opens the file, and starts the thread that appends to it.
    ///
    /// # Errors
    /// When the file cannot be opened, or there is no thread to be had.
    pub(super) fn start(path: &Path) -> io::Result<Self> {
        let file = open(path)?;
        let (batches, queue) = sync_channel(QUEUE);
        let path = path.to_path_buf();
        let lost = Arc::<AtomicU64>::default();
        let losing = lost.clone();
        let writer = thread::Builder::new()
            .name("access-log".into())
            .spawn(move || write_all(&path, file, &queue, &losing))?;
        Ok(Self {
            batches,
            writer: Writer(writer.thread().clone()),
            lost,
        })
    }

    /// Hands so many lines over.
    pub(super) fn send(&self, lines: Vec<u8>, count: u64) {
        match self.batches.try_send(Batch { lines, count }) {
            Ok(()) => self.writer.0.unpark(),
            Err(TrySendError::Full(lost) | TrySendError::Disconnected(lost)) => {
                self.lost.fetch_add(lost.count, Relaxed);
            }
        }
    }

    /// Lines that were lost because the disk was too slow or took none.
    pub(super) fn lost(&self) -> u64 {
        self.lost.load(Relaxed)
    }
}

fn open(path: &Path) -> io::Result<File> {
    OpenOptions::new()
        .append(true)
        .create(true)
        .mode(MODE)
        .open(path)
}

/// Writes until all senders are gone. What cannot be written is told once and tried again with
/// the next lines.
fn write_all(path: &Path, mut file: File, queue: &Receiver<Batch>, lost: &AtomicU64) {
    let mut failed = false;
    loop {
        let batch = match queue.try_recv() {
            Ok(batch) => Some(batch),
            Err(TryRecvError::Empty) => {
                thread::park_timeout(LOOK);
                None
            }
            Err(TryRecvError::Disconnected) => return,
        };
        if is_moved(path, &file) {
            match open(path) {
                Ok(new) => {
                    info!("{}: opened anew", path.display());
                    file = new;
                }
                Err(e) if !failed => error!("{}: {e}; the old file is written on", path.display()),
                Err(_) => {}
            }
        }
        let Some(batch) = batch else {
            continue;
        };
        match file.write_all(&batch.lines) {
            Ok(()) => failed = false,
            Err(e) => {
                if !failed {
                    error!(
                        "{}: {e}; lines are lost until it can be written",
                        path.display()
                    );
                }
                failed = true;
                lost.fetch_add(batch.count, Relaxed);
            }
        }
    }
}

/// Whether the file is no longer what its path leads to.
fn is_moved(path: &Path, file: &File) -> bool {
    match (std::fs::metadata(path), file.metadata()) {
        (Ok(there), Ok(here)) => (there.dev(), there.ino()) != (here.dev(), here.ino()),
        (Err(e), _) => e.kind() == io::ErrorKind::NotFound,
        (_, Err(_)) => false,
    }
}
