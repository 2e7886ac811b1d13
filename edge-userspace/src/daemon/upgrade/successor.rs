//! The new process, as the old one sees it.

use std::{
    collections::VecDeque,
    ffi::OsString,
    fmt::Write as _,
    io::{self, BufRead as _, BufReader, PipeReader, Read as _, Write as _},
    mem::ManuallyDrop,
    net::SocketAddr,
    os::{
        fd::{AsRawFd as _, FromRawFd as _, OwnedFd, RawFd},
        unix::process::CommandExt as _,
    },
    path::Path,
    process::{Command, Stdio},
    sync::{Arc, Mutex, PoisonError},
    thread,
    time::Duration,
};

use serde::de::DeserializeOwned;
use tokio::{
    io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, unix::AsyncFd},
    net::{
        UnixStream,
        unix::{OwnedReadHalf, OwnedWriteHalf},
    },
    sync::oneshot,
    time::timeout,
};
use tracing::warn;

use super::{CHANNEL, Sockets, ToPredecessor, ToSuccessor, inherited};
use crate::{
    daemon::Signals,
    l7::proxy::{Ban, Said},
};

/// Lines of what the new process says that are kept.
const LINES: usize = 20;
/// Bytes of one of them.
const LINE: usize = 1000;
/// Bytes of a message, at the most: it may name every address there is.
const MESSAGE: u64 = 16 << 20;
/// How long one that was killed may take to be gone, and what it said to come.
const LAST: Duration = Duration::from_secs(5);

/// Why the new process did not take over.
#[derive(Debug, thiserror::Error)]
pub(super) enum Trouble {
    /// There is no such process.
    #[error("cannot be started: {0}")]
    Start(io::Error),
    /// It ended.
    #[error("ended before it was ready")]
    Ended,
    /// It says what makes no sense.
    #[error("does not speak as a new process of edge does ({0})")]
    Nonsense(String),
    /// It was not ready in time.
    #[error("was not ready in time")]
    Late,
    /// The old one was told to stop.
    #[error("was not waited for, as the daemon was told to stop")]
    Stopped,
}

impl From<io::Error> for Trouble {
    fn from(error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::BrokenPipe
            | io::ErrorKind::ConnectionReset
            | io::ErrorKind::UnexpectedEof => Self::Ended,
            _ => Self::Nonsense(error.to_string()),
        }
    }
}

/// The new process. It is killed when this is dropped, unless it was released.
pub(in crate::daemon) struct Successor {
    pid: libc::pid_t,
    /// Readable when it has ended.
    end: Option<AsyncFd<OwnedFd>>,
    reader: tokio::io::BufReader<OwnedReadHalf>,
    writer: OwnedWriteHalf,
    /// What is to be sent before anything else.
    sockets: Option<Sockets>,
    said: Arc<Mutex<VecDeque<String>>>,
    /// Everything it says has been read.
    all_said: Option<oneshot::Receiver<()>>,
    is_released: bool,
}

impl Successor {
    /// Starts a program.
    ///
    /// # Errors
    /// Those of the system.
    pub(super) fn start(
        binary: &Path,
        arguments: &[OsString],
        sockets: Sockets,
    ) -> io::Result<Self> {
        let (ours, theirs) = std::os::unix::net::UnixStream::pair()?;
        let (reader, stderr) = io::pipe()?;
        let mut inherited = vec![
            theirs.as_raw_fd(),
            sockets.stderr,
            sockets.control,
            sockets.control_lock,
        ];
        inherited.extend(sockets.metrics);
        inherited.extend(sockets.proxy.iter().map(|socket| socket.fd));
        let mut command = Command::new(binary);
        command
            .args(arguments)
            .env(CHANNEL, theirs.as_raw_fd().to_string())
            // Ours, and the new process is another one.
            .env_remove("WATCHDOG_PID")
            .stdin(Stdio::null())
            .stderr(stderr);
        for name in inherited::LISTEN {
            command.env_remove(name);
        }
        let channel = theirs.as_raw_fd();
        // SAFETY: the closure makes system calls only.
        unsafe { command.pre_exec(move || become_stranger(channel, &inherited)) };
        let mut child = command.spawn()?;
        // It has ended already: the new process is a child of its child.
        child.wait()?;
        drop((command, theirs));
        let mut pid = [0; size_of::<libc::pid_t>()];
        // It was written before the program was begun. One that is not known cannot be killed; it
        // ends by itself, as nobody speaks with it.
        (&ours).read_exact(&mut pid)?;
        let pid = libc::pid_t::from_ne_bytes(pid);
        let orphan = Orphan(pid);
        let said = Arc::default();
        let (all, all_said) = oneshot::channel();
        let lines = Arc::clone(&said);
        thread::Builder::new()
            .name("successor".into())
            .spawn(move || {
                let _all = all;
                listen(reader, &lines);
            })?;
        ours.set_nonblocking(true)?;
        let (reader, writer) = UnixStream::from_std(ours)?.into_split();
        let _ = ManuallyDrop::new(orphan);
        Ok(Self {
            pid,
            end: end_of(pid),
            reader: tokio::io::BufReader::new(reader),
            writer,
            sockets: Some(sockets),
            said,
            all_said: Some(all_said),
            is_released: false,
        })
    }

    /// Its number.
    pub(super) fn pid(&self) -> u32 {
        self.pid.unsigned_abs()
    }

    /// Waits until it has read the configuration; tells its version.
    ///
    /// # Errors
    /// [`Trouble`].
    pub(super) async fn prepared(&mut self) -> Result<String, Trouble> {
        if let Some(sockets) = self.sockets.take() {
            self.send(&ToSuccessor::Sockets(sockets)).await?;
        }
        match self.receive().await? {
            ToPredecessor::Prepared { version } => Ok(version),
            other => Err(Trouble::Nonsense(format!("{other:?}"))),
        }
    }

    /// Lets it put everything into force, and waits for that; tells whether it has the control
    /// socket, and the addresses of sockets that it does not use.
    ///
    /// # Errors
    /// [`Trouble`].
    pub(super) async fn take(
        &mut self,
        servers: Vec<Said>,
    ) -> Result<(bool, Vec<SocketAddr>), Trouble> {
        self.send(&ToSuccessor::Take { servers }).await?;
        match self.receive().await? {
            ToPredecessor::Ready { control, unwanted } => Ok((control, unwanted)),
            other => Err(Trouble::Nonsense(format!("{other:?}"))),
        }
    }

    /// Leaves everything to it.
    pub(super) async fn release(&mut self) {
        self.is_released = true;
        // Without the word it hears of our end, which is as good.
        let _ = self.send(&ToSuccessor::Yours {}).await;
    }

    /// Has it ban a source.
    ///
    /// # Errors
    /// When it has ended, or does not listen.
    pub(super) async fn ban(&mut self, ban: Ban) -> io::Result<()> {
        let told = timeout(LAST, self.send(&ToSuccessor::Ban(ban.into()))).await;
        told.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
    }

    /// Waits until it has ended.
    pub(in crate::daemon) async fn ended(&self) {
        if let Some(end) = &self.end {
            let _ = end.readable().await;
        }
    }

    /// Kills it, waits until it is gone, and tells the last that it said. Told to stop, which is
    /// noted in `stopped`, it waits no longer.
    pub(super) async fn end(
        mut self,
        trouble: &Trouble,
        signals: &mut Signals,
        stopped: &mut Option<&'static str>,
    ) -> String {
        if let (Trouble::Ended, Some(end)) = (trouble, &self.end) {
            // It may be about to say why.
            let _ = timeout(LAST, end.readable()).await;
        }
        self.kill();
        // As long as it is there it may have what only one process can have, which matters to a daemon
        // that goes on.
        let gone = async {
            while timeout(LAST, self.ended()).await.is_err() {
                warn!("process {} was killed, and does not end", self.pid);
            }
        };
        if stopped.is_some() {
            let _ = timeout(LAST, gone).await;
        } else {
            tokio::select! {
                () = gone => {}
                name = signals.stop() => *stopped = Some(name),
            }
        }
        if let Some(all_said) = self.all_said.take()
            && stopped.is_none()
        {
            let _ = timeout(LAST, all_said).await;
        }
        let said = self.said.lock().unwrap_or_else(PoisonError::into_inner);
        said.iter().fold(String::new(), |mut text, line| {
            let first = if text.is_empty() { "" } else { "\n" };
            // Writing to a string cannot fail.
            let _ = write!(text, "{first}  {line}");
            text
        })
    }

    /// Kills it and all that it started.
    fn kill(&mut self) {
        if !std::mem::replace(&mut self.is_released, true) {
            drop(Orphan(self.pid));
        }
    }

    async fn send(&mut self, message: &ToSuccessor) -> io::Result<()> {
        let mut line = serde_json::to_vec(message)?;
        line.push(b'\n');
        self.writer.write_all(&line).await
    }

    async fn receive<T: DeserializeOwned>(&mut self) -> Result<T, Trouble> {
        let mut line = Vec::new();
        let mut limited = (&mut self.reader).take(MESSAGE);
        limited.read_until(b'\n', &mut line).await?;
        if line.last() != Some(&b'\n') {
            return Err(match line.len() as u64 >= MESSAGE {
                true => Trouble::Nonsense(format!("more than {MESSAGE} bytes at once")),
                false => Trouble::Ended,
            });
        }
        serde_json::from_slice(&line).map_err(|e| Trouble::Nonsense(e.to_string()))
    }
}

impl Drop for Successor {
    fn drop(&mut self) {
        self.kill();
    }
}

/// A process that was just started, and all that it starts. They are killed when this is dropped.
struct Orphan(libc::pid_t);

impl Drop for Orphan {
    fn drop(&mut self) {
        // SAFETY: no pointers are passed. It made a process group of its own number before its
        // program began, which lasts as long as anybody is in it.
        unsafe { libc::kill(-self.0, libc::SIGKILL) };
    }
}

/// What a child does before its program begins: goes on as a child of its own, whose parent ends
/// at once, so that it is the service manager's; tells its number; and keeps what it is to have.
fn become_stranger(channel: RawFd, inherited: &[RawFd]) -> io::Result<()> {
    // SAFETY: between fork and exec there is one thread, and nothing but system calls is done.
    unsafe {
        match libc::fork() {
            -1 => return Err(io::Error::last_os_error()),
            0 => {}
            _ => libc::_exit(0),
        }
        if libc::setpgid(0, 0) != 0 {
            return Err(io::Error::last_os_error());
        }
        let pid = libc::getpid().to_ne_bytes();
        if libc::write(channel, pid.as_ptr().cast(), pid.len()) != pid.len().cast_signed() {
            return Err(io::Error::last_os_error());
        }
        for fd in inherited {
            if libc::fcntl(*fd, libc::F_SETFD, 0) != 0 {
                return Err(io::Error::last_os_error());
            }
        }
    }
    Ok(())
}

/// Becomes readable when the process has ended; `None` when it has, or the system has no such
/// thing.
fn end_of(pid: libc::pid_t) -> Option<AsyncFd<OwnedFd>> {
    // SAFETY: no pointers are passed.
    let fd = unsafe { libc::syscall(libc::SYS_pidfd_open, libc::c_long::from(pid), 0) };
    let fd = RawFd::try_from(fd).ok().filter(|fd| *fd >= 0)?;
    // SAFETY: the descriptor is new and nobody else has it.
    let fd = unsafe { OwnedFd::from_raw_fd(fd) };
    // SAFETY: an owned descriptor stays open and the same as long as it lives, which is as long as
    // the `AsyncFd`.
    unsafe { AsyncFd::register_with_interest(fd, tokio::io::Interest::READABLE) }.ok()
}

/// Passes on what the new process says, and keeps the last lines.
fn listen(reader: PipeReader, said: &Mutex<VecDeque<String>>) {
    let mut reader = BufReader::new(reader);
    let mut line = Vec::new();
    while reader.read_until(b'\n', &mut line).is_ok_and(|n| n > 0) {
        // The log is all that it could be told to.
        let _ = io::stderr().write_all(&line);
        let text = String::from_utf8_lossy(&line);
        let text = text.trim_end().chars().take(LINE).collect();
        let mut said = said.lock().unwrap_or_else(PoisonError::into_inner);
        if said.len() == LINES {
            said.pop_front();
        }
        said.push_back(text);
        line.clear();
    }
}
