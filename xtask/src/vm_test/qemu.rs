//! The emulator: found or fetched, started, bounded in time and output, and gone afterwards.

use std::io::Read;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{self, RecvTimeoutError, SyncSender};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};

use crate::apt;
use crate::exec;
use crate::workspace::Workspace;

const PROGRAM: &str = "qemu-system-x86_64";
const PACKAGE: &str = "qemu-system-x86";

/// Mebibytes of the guest; its file system lies in them too.
const MEMORY: &str = "1536";

/// What a serial port may carry: a guest in a loop must not fill the machine's memory.
const MAX_OUTPUT: u64 = 4 << 20;

/// A way to start the emulator.
pub(crate) struct Qemu {
    program: PathBuf,
    /// Directories of firmware, where the program would not find its own.
    firmware: Vec<PathBuf>,
}

/// What a guest left.
pub(crate) struct Ended {
    /// The second serial port: the results.
    pub(crate) results: String,
    /// The first serial port, and what the emulator itself has to say.
    pub(crate) console: String,
    /// Why the guest was ended from outside, if it was.
    pub(crate) cut: Option<String>,
}

/// The machine's emulator, or Debian's unpacked privately.
pub(crate) fn find(workspace: &Workspace) -> Result<Qemu> {
    if let Some(program) = exec::which(PROGRAM, &[]) {
        return Ok(Qemu {
            program,
            firmware: Vec::new(),
        });
    }
    let _lock = workspace.lock_tools()?;
    let dir = apt::group_dir(workspace, "qemu");
    if !apt::is_complete(&dir, &[PACKAGE]) {
        exec::announce(&format!(
            "fetching Debian's {PACKAGE} and unpacking below {} (nothing is installed on the \
             machine)",
            workspace.display(&workspace.tools)
        ));
        apt::unpack(workspace, "qemu", &[PACKAGE], &[PROGRAM])?;
    }
    let data = dir.join("root/usr/share");
    Ok(Qemu {
        program: dir.join("bin").join(PROGRAM),
        firmware: ["qemu", "seabios"].map(|name| data.join(name)).into(),
    })
}

impl Qemu {
    /// Boots `image` with `initramfs` and waits for the guest's end, at most for `time`.
    pub(crate) fn run(&self, image: &Path, initramfs: &Path, time: Duration) -> Result<Ended> {
        let mut command = Command::new(&self.program);
        // Emulation, because nested virtualisation is often advertised and then does not work.
        command.args(["-machine", "q35,accel=tcg", "-cpu", "max", "-smp", "2"]);
        command.args(["-m", MEMORY, "-nodefaults", "-no-user-config", "-no-reboot"]);
        command.args(["-display", "none"]);
        for dir in &self.firmware {
            command.arg("-L").arg(dir);
        }
        command.args(["-chardev", "file,id=console,path=/dev/stderr,append=on"]);
        command.args(["-chardev", "stdio,id=results,signal=off"]);
        command.args(["-serial", "chardev:console", "-serial", "chardev:results"]);
        command.arg("-kernel").arg(image);
        command.arg("-initrd").arg(initramfs);
        // A panic ends the machine at once, and with -no-reboot the emulator.
        command.args(["-append", "console=ttyS0 quiet panic=-1 rdinit=/init"]);
        die_with_parent(&mut command);
        let mut child = command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .with_context(|| format!("cannot run {}", self.program.display()))?;
        let watched = watch(&mut child, time, MAX_OUTPUT);
        // Also when it ended by itself: the process has to be collected, and killing one that has
        // ended does nothing.
        let killed = child.kill();
        let waited = child.wait();
        killed.and(waited).context("cannot end the emulator")?;
        watched
    }
}

/// Sees to it that the emulator does not outlive this program, whatever ends it.
fn die_with_parent(command: &mut Command) {
    // SAFETY: between fork and exec only this system call is made, which allocates nothing and
    // takes no lock.
    unsafe {
        command.pre_exec(
            || match libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) {
                0 => Ok(()),
                _ => Err(std::io::Error::last_os_error()),
            },
        );
    }
}

/// What happens to one of the outputs.
enum Output {
    /// It was closed: the emulator has ended.
    Closed,
    /// It has carried more than it may.
    Flooded,
}

/// Reads both outputs to their end, but no longer than `time` and no more than `limit` bytes each.
fn watch(child: &mut Child, time: Duration, limit: u64) -> Result<Ended> {
    let deadline = Instant::now() + time;
    let (sender, receiver) = mpsc::sync_channel(2);
    let results = child.stdout.take().context("no standard output")?;
    let console = child.stderr.take().context("no standard error")?;
    let results = drain(results, limit, sender.clone());
    let console = drain(console, limit, sender);
    let mut cut = None;
    for _ in 0..2 {
        let left = deadline.saturating_duration_since(Instant::now());
        cut = match receiver.recv_timeout(left) {
            Ok(Output::Closed) => continue,
            Ok(Output::Flooded) => Some(format!("the guest wrote more than {limit} bytes")),
            Err(RecvTimeoutError::Timeout) => {
                Some(format!("the guest did not end in {} s", time.as_secs()))
            }
            Err(RecvTimeoutError::Disconnected) => break,
        };
        child.kill().context("cannot end the emulator")?;
        break;
    }
    Ok(Ended {
        results: text(results),
        console: text(console),
        cut,
    })
}

/// Collects what comes out of a pipe on a thread of its own.
fn drain(
    pipe: impl Read + Send + 'static,
    limit: u64,
    sender: SyncSender<Output>,
) -> JoinHandle<Vec<u8>> {
    thread::spawn(move || {
        let mut bytes = Vec::new();
        // A pipe that cannot be read is as good as a closed one: what was read counts.
        let _ = pipe.take(limit).read_to_end(&mut bytes);
        let full = bytes.len() as u64 == limit;
        // Nobody listens any more once the guest was ended for another reason.
        let _ = sender.send(if full {
            Output::Flooded
        } else {
            Output::Closed
        });
        bytes
    })
}

fn text(reader: JoinHandle<Vec<u8>>) -> String {
    let bytes = reader.join().unwrap_or_default();
    String::from_utf8_lossy(&bytes).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(script: &str) -> Child {
        Command::new("sh")
            .args(["-c", script])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap()
    }

    const LONG: Duration = Duration::from_secs(60);

    #[test]
    fn both_outputs_are_read_to_their_end() {
        let mut child = shell("echo result; echo console >&2; exit 3");
        let ended = watch(&mut child, LONG, 1 << 20).unwrap();
        assert_eq!(child.wait().unwrap().code(), Some(3));
        assert_eq!(
            (ended.results.as_str(), ended.console.as_str()),
            ("result\n", "console\n")
        );
        assert_eq!(ended.cut, None);
    }

    #[test]
    fn a_guest_that_hangs_is_ended() {
        let mut child = shell("echo begun; exec sleep 1000");
        let ended = watch(&mut child, Duration::from_secs(1), 1 << 20).unwrap();
        assert!(!child.wait().unwrap().success());
        assert_eq!(ended.results, "begun\n");
        assert_eq!(ended.cut.unwrap(), "the guest did not end in 1 s");
    }

    #[test]
    fn a_guest_that_floods_is_ended() {
        let mut child = shell("exec yes");
        let ended = watch(&mut child, LONG, 4096).unwrap();
        assert!(!child.wait().unwrap().success());
        assert_eq!(ended.results.len(), 4096);
        assert!(ended.cut.unwrap().contains("4096 bytes"));
    }
}
