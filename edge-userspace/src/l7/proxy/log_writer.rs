//! The thread that writes the access log. Requests never wait for it: when it falls behind,
//! lines are lost and counted. It waits outside the channel, as who waits inside is woken under a
//! lock that all workers share.

use std::{
    fs::{File, OpenOptions},
    io,
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

use tracing::{error, info, warn};

use super::privileges;

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
            .spawn(move || {
                if let Err(e) = privileges::give_up_but_files() {
                    warn!("the access log's thread keeps its capabilities: {e}");
                }
                write_all(&path, file, &queue, &losing);
            })?;
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

/// Writes until all senders are gone. What cannot be written, or opened anew, is told once and tried
/// again with the next lines.
fn write_all(path: &Path, file: File, queue: &Receiver<Batch>, lost: &AtomicU64) {
    let mut log = Log {
        file,
        is_torn: false,
    };
    let (mut is_failing, mut is_missing) = (false, false);
    loop {
        let batch = match queue.try_recv() {
            Ok(batch) => Some(batch),
            Err(TryRecvError::Empty) => {
                thread::park_timeout(LOOK);
                None
            }
            Err(TryRecvError::Disconnected) => return,
        };
        if is_moved(path, &log.file) {
            match open(path) {
                Ok(file) => {
                    info!("{}: opened anew", path.display());
                    log = Log {
                        file,
                        is_torn: false,
                    };
                    is_missing = false;
                }
                Err(e) => {
                    if !std::mem::replace(&mut is_missing, true) {
                        error!("{}: {e}; the old file is written on", path.display());
                    }
                }
            }
        }
        let Some(batch) = batch else {
            continue;
        };
        match log.append(&batch.lines) {
            Ok(()) => is_failing = false,
            Err((left, e)) => {
                if !std::mem::replace(&mut is_failing, true) {
                    error!(
                        "{}: {e}; lines are lost until it can be written",
                        path.display()
                    );
                }
                lost.fetch_add(left.min(batch.count), Relaxed);
            }
        }
    }
}

/// The file, and what became of its last line.
struct Log<W> {
    file: W,
    /// Whether a part of it is missing.
    is_torn: bool,
}

impl<W: io::Write> Log<W> {
    /// Appends whole lines. What follows a torn one begins a line of its own.
    ///
    /// # Errors
    /// Those of the file, and how many lines are not in it as a whole.
    fn append(&mut self, lines: &[u8]) -> Result<(), (u64, io::Error)> {
        let mut rest = lines;
        let result = loop {
            if rest.is_empty() {
                return Ok(());
            }
            let piece = if self.is_torn { b"\n" } else { rest };
            match self.file.write(piece) {
                Ok(0) => break io::ErrorKind::WriteZero.into(),
                Ok(_) if self.is_torn => self.is_torn = false,
                Ok(n) => rest = rest.get(n..).unwrap_or_default(),
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => break e,
            }
        };
        let written = lines.len() - rest.len();
        let last = lines.get(..written).and_then(<[u8]>::last);
        self.is_torn |= last.is_some_and(|last| *last != b'\n');
        let left = rest.iter().filter(|byte| **byte == b'\n').count();
        Err((left as u64, result))
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

#[cfg(test)]
mod tests {
    use super::*;

    /// A disk with so much room.
    struct Disk {
        room: usize,
        bytes: Vec<u8>,
    }

    impl io::Write for Disk {
        fn write(&mut self, from: &[u8]) -> io::Result<usize> {
            let n = from.len().min(self.room);
            if n == 0 {
                return Err(io::ErrorKind::StorageFull.into());
            }
            self.room -= n;
            self.bytes.extend_from_slice(&from[..n]);
            Ok(n)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_line_that_is_torn_spoils_no_other() {
        for room in 0..12 {
            let disk = Disk {
                room,
                bytes: Vec::new(),
            };
            let mut log = Log {
                file: disk,
                is_torn: false,
            };
            let (left, error) = log.append(b"one\ntwo\nsix\n").unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::StorageFull);
            assert_eq!(left, 3 - room as u64 / 4);
            // Also when there is no room a second time.
            assert_eq!(log.append(b"ten\n").unwrap_err().0, 1);
            log.file.room = 100;
            log.append(b"end\n").unwrap();
            let text = String::from_utf8(log.file.bytes).unwrap();
            let lines: Vec<&str> = text.lines().collect();
            let whole = ["one", "two", "six"];
            assert_eq!(lines[..room / 4], whole[..room / 4], "{room}");
            assert_eq!(lines.last(), Some(&"end"), "{room}");
            assert_eq!(lines.len(), room / 4 + usize::from(room % 4 > 0) + 1);
        }
    }
}
