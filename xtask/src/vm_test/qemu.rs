//! The emulator: found or fetched, started, bounded in time and output, and gone afterwards.

use std::io::Read;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{self, RecvTimeoutError, SyncSender};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};

use super::locked;
use crate::apt;
use crate::exec;
use crate::workspace::Workspace;

const PROGRAM: &str = "qemu-system-x86_64";
const PACKAGE: &str = "qemu-system-x86";

/// The processor, without what makes its emulation slow and has no part in what is tested: string
/// instructions that copy byte by byte, a fifth level of page tables, and a guard around every
/// access to a program's memory. It saves a third of the time.
const PROCESSOR: &str = "max,erms=off,fsrm=off,la57=off,smap=off";

/// What the kernel is told. A panic ends the machine at once, and with -no-reboot the emulator. A
/// kernel that counts too few ticks while it starts takes its timer for broken and panics, and so
/// it would on an emulator that has to wait for a CPU.
const COMMAND_LINE: &str = "console=ttyS0 quiet panic=-1 rdinit=/init no_timer_check";

/// How often it is told how far a guest is.
const TOLD_EVERY: Duration = Duration::from_secs(10);

/// How many bytes of the last line are shown.
const MAX_LAST: usize = 160;

/// What a serial port may carry: a guest in a loop must not fill the machine's memory.
const MAX_OUTPUT: usize = 4 << 20;

/// What a guest has.
pub(crate) struct Machine {
    /// Processors. Two have to agree on every access to memory that may be shared, which makes each
    /// a fifth slower.
    pub(crate) cpus: u32,
    /// Mebibytes, in which its file system lies too.
    pub(crate) memory: u32,
}

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
    /// Boots `image` with `initramfs` on such a machine, and waits for the guest's end, at most for
    /// `time`. Tells now and then what its last line was.
    pub(crate) fn run(
        &self,
        image: &Path,
        initramfs: &Path,
        machine: &Machine,
        time: Duration,
        told: impl FnMut(&str),
    ) -> Result<Ended> {
        let mut command = Command::new(&self.program);
        // Emulation, because nested virtualisation is often advertised and then does not work.
        command.args(["-machine", "q35,accel=tcg", "-cpu", PROCESSOR]);
        command.arg("-smp").arg(machine.cpus.to_string());
        command.arg("-m").arg(machine.memory.to_string());
        command.args(["-nodefaults", "-no-user-config", "-no-reboot"]);
        command.args(["-display", "none"]);
        for dir in &self.firmware {
            command.arg("-L").arg(dir);
        }
        command.args(["-chardev", "file,id=console,path=/dev/stderr,append=on"]);
        command.args(["-chardev", "stdio,id=results,signal=off"]);
        command.args(["-serial", "chardev:console", "-serial", "chardev:results"]);
        command.arg("-kernel").arg(image);
        command.arg("-initrd").arg(initramfs);
        command.args(["-append", COMMAND_LINE]);
        die_with_parent(&mut command);
        let mut child = command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .with_context(|| format!("cannot run {}", self.program.display()))?;
        let watched = watch(&mut child, time, MAX_OUTPUT, TOLD_EVERY, told);
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

/// How one of the outputs ended.
enum End {
    /// It was closed: the emulator has ended.
    Closed,
    /// It has carried more than it may.
    Flooded,
}

/// Reads both outputs to their end, but no longer than `time` and no more than `limit` bytes each.
/// Tells the last line `every` so often.
fn watch(
    child: &mut Child,
    time: Duration,
    limit: usize,
    every: Duration,
    mut told: impl FnMut(&str),
) -> Result<Ended> {
    let start = Instant::now();
    // Each of the two sends once.
    let (sender, receiver) = mpsc::sync_channel(2);
    let results = child.stdout.take().context("no standard output")?;
    let console = child.stderr.take().context("no standard error")?;
    let results = Drain::start(results, limit, sender.clone());
    let console = Drain::start(console, limit, sender);
    let last = || match (results.last(), console.last()) {
        (line, _) if !line.is_empty() => format!("last line: {line}"),
        (_, line) if !line.is_empty() => format!("last line on the console: {line}"),
        _ => "it has said nothing".to_owned(),
    };
    let (mut open, mut cut) = (2, None);
    while open != 0 && cut.is_none() {
        let left = time.saturating_sub(start.elapsed());
        match receiver.recv_timeout(left.min(every)) {
            Ok(End::Closed) => open -= 1,
            Ok(End::Flooded) => cut = Some(format!("the guest wrote more than {limit} bytes")),
            Err(RecvTimeoutError::Timeout) if left > every => told(&last()),
            Err(RecvTimeoutError::Timeout) => {
                cut = Some(format!("the guest did not end in {} s", time.as_secs()));
            }
            Err(RecvTimeoutError::Disconnected) => break,
        }
    }
    if let Some(why) = &mut cut {
        why.push_str("; ");
        why.push_str(&last());
        child.kill().context("cannot end the emulator")?;
    }
    Ok(Ended {
        results: results.end(),
        console: console.end(),
        cut,
    })
}

/// What comes out of a pipe, collected by a thread of its own.
struct Drain {
    bytes: Arc<Mutex<Vec<u8>>>,
    thread: JoinHandle<()>,
}

impl Drain {
    /// Reads `pipe` to its end or up to `limit` bytes, and sends which of them it was.
    fn start(mut pipe: impl Read + Send + 'static, limit: usize, sender: SyncSender<End>) -> Self {
        let bytes = Arc::new(Mutex::new(Vec::new()));
        let shared = Arc::clone(&bytes);
        let thread = thread::spawn(move || {
            let mut piece = [0; 4096];
            let end = loop {
                // A pipe that cannot be read is as good as a closed one: what was read counts.
                let Ok(read @ 1..) = pipe.read(&mut piece) else {
                    break End::Closed;
                };
                let mut bytes = locked(&shared);
                let room = limit - bytes.len();
                bytes.extend(piece.iter().take(read.min(room)));
                if read >= room {
                    break End::Flooded;
                }
            };
            // Nobody listens any more once the guest was ended for another reason.
            let _ = sender.send(end);
        });
        Self { bytes, thread }
    }

    /// The last line that is not empty, also if it is not complete; its end if it is long.
    fn last(&self) -> String {
        let bytes = locked(&self.bytes);
        let tail = &bytes[bytes.len().saturating_sub(4 * MAX_LAST)..];
        let text = String::from_utf8_lossy(tail);
        let line = text.lines().map(str::trim).rfind(|line| !line.is_empty());
        let line: Vec<char> = line.unwrap_or_default().chars().collect();
        line[line.len().saturating_sub(MAX_LAST)..].iter().collect()
    }

    /// All of it, once the pipe is at its end.
    fn end(self) -> String {
        // The thread cannot panic with anything but what it has read so far.
        let _ = self.thread.join();
        String::from_utf8_lossy(&locked(&self.bytes)).into_owned()
    }
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

    const LIMIT: usize = 4096;

    /// Watches `script` for `time`; what was told is in the second part.
    fn watched(script: &str, time: Duration) -> (Ended, Vec<String>, std::process::ExitStatus) {
        let mut child = shell(script);
        let mut told = Vec::new();
        let tell = |line: &str| told.push(line.to_owned());
        let ended = watch(&mut child, time, LIMIT, Duration::from_millis(100), tell).unwrap();
        (ended, told, child.wait().unwrap())
    }

    #[test]
    fn both_outputs_are_read_to_their_end() {
        let (ended, _, status) = watched("echo result; echo console >&2; exit 3", LONG);
        assert_eq!(status.code(), Some(3));
        assert_eq!(
            (ended.results.as_str(), ended.console.as_str()),
            ("result\n", "console\n")
        );
        assert_eq!(ended.cut, None);
    }

    #[test]
    fn a_guest_that_hangs_is_ended_and_its_last_line_told() {
        for (script, last) in [
            ("echo begun; printf 'and then'", "last line: and then"),
            ("echo panic >&2", "last line on the console: panic"),
            ("true", "it has said nothing"),
        ] {
            let script = format!("{script}; exec sleep 1000");
            let (ended, told, status) = watched(&script, Duration::from_secs(1));
            assert!(!status.success());
            assert!(told.iter().any(|line| line == last), "{told:?}");
            let expected = format!("the guest did not end in 1 s; {last}");
            assert_eq!(ended.cut.unwrap(), expected);
        }
    }

    #[test]
    fn a_guest_that_floods_is_ended() {
        let (ended, _, status) = watched("exec yes", LONG);
        assert!(!status.success());
        assert_eq!(ended.results.len(), LIMIT);
        assert!(ended.cut.unwrap().contains("4096 bytes"));
    }
}
