//! A program as a check.

use std::{
    env,
    ffi::OsString,
    io,
    net::SocketAddr,
    os::fd::{FromRawFd as _, OwnedFd},
    path::Path,
    process::Stdio,
};

use tokio::{
    io::{Interest, unix::AsyncFd},
    process::Command,
};

use super::{Deadline, ProbeError, Waiting};

/// Where programs are found when this process has no `PATH`.
const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Runs a program with the address and port of `target` as its last arguments.
///
/// It has a process group of its own, which is killed when the time is over, and of which
/// nothing is left when it has ended. It gets no environment but `PATH`, no input, and
/// nobody reads what it writes.
pub(super) async fn run(
    command: &Path,
    arguments: &[String],
    target: SocketAddr,
    deadline: Deadline,
) -> Result<(), ProbeError> {
    let not_asked = |doing| move |source| ProbeError::NotAsked { doing, source };
    let path = env::var_os("PATH").unwrap_or_else(|| OsString::from(PATH));
    let mut child = Command::new(command)
        .args(arguments)
        .arg(target.ip().to_string())
        .arg(target.port().to_string())
        .env_clear()
        .env("PATH", path)
        .current_dir("/")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .process_group(0)
        .kill_on_drop(true)
        .spawn()
        .map_err(not_asked("program"))?;
    // Dropped before the child, which is to say before its number can be another's.
    let group = Group(child.id());
    let end = group.end().map_err(not_asked("program"))?;
    let ended = async {
        let ready = end.readable().await;
        ready.map(drop).map_err(not_asked("program"))
    };
    deadline.within(Waiting::Exit, ended).await?;
    // Before the child is waited for, for the same reason.
    drop(group);
    let status = child.wait().await.map_err(not_asked("program"))?;
    if status.success() {
        Ok(())
    } else {
        Err(ProbeError::Exit(status))
    }
}

/// The process group of a child that nobody has waited for, which keeps its number from
/// being given to another; killed when this is dropped.
struct Group(Option<u32>);

impl Group {
    /// Becomes readable when the child has ended, and leaves the waiting to the caller.
    fn end(&self) -> io::Result<AsyncFd<OwnedFd>> {
        let pid = self.0.unwrap_or_default();
        // SAFETY: no pointers are passed. The child is not waited for yet, so that the
        // number is still its own.
        let fd = unsafe { libc::syscall(libc::SYS_pidfd_open, libc::c_long::from(pid), 0) };
        let fd = i32::try_from(fd).unwrap_or(-1);
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the descriptor is new and nobody else has it.
        let fd = unsafe { OwnedFd::from_raw_fd(fd) };
        // SAFETY: an owned descriptor stays open and the same as long as it lives, which is
        // as long as the `AsyncFd`.
        Ok(unsafe { AsyncFd::register_with_interest(fd, Interest::READABLE)? })
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        let pid = self.0.and_then(|pid| i32::try_from(pid).ok());
        if let Some(pid) = pid.filter(|&pid| pid > 1) {
            // SAFETY: no pointers are passed. The group is that of our child, which is
            // not waited for yet; an error means that nobody is left in it.
            unsafe { libc::kill(-pid, libc::SIGKILL) };
        }
    }
}
