//! The daemon and the command line as a user starts them.

use std::env;
use std::fs::{self, File};
use std::io::{self, Read as _, Write as _};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsRawFd as _;
use std::os::unix::net::UnixDatagram;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use serde_json::Value;

use crate::netns::Namespace;
use crate::wait;

/// Names the daemon's binary.
const BINARY_VAR: &str = "EDGE_BIN";

/// Where the daemon's metrics are, in the namespace of the host.
pub const METRICS: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 9273);

/// The daemon's binary.
///
/// # Panics
/// When it is not built.
#[must_use]
pub fn binary() -> PathBuf {
    if let Some(path) = env::var_os(BINARY_VAR) {
        return path.into();
    }
    // A test's own path is DIR/deps/NAME, the daemon's DIR/edge.
    let test = env::current_exe().expect("the path of the test");
    let path = test.ancestors().nth(2).expect("two levels").join("edge");
    assert!(
        path.exists(),
        "{} is not built: run cargo xtask test",
        path.display()
    );
    path
}

/// Whether a process has ended with all its threads, and so has closed what it had open. The kernel
/// takes its memory, and with it its command line, before that.
#[must_use]
pub fn is_over(pid: u32) -> bool {
    let stat = match fs::read_to_string(format!("/proc/{pid}/stat")) {
        Ok(stat) => stat,
        Err(e) => {
            return e.kind() == io::ErrorKind::NotFound || e.raw_os_error() == Some(libc::ESRCH);
        }
    };
    // The name before it may hold anything (proc_pid_stat(5)).
    let state = stat
        .rsplit(") ")
        .next()
        .and_then(|rest| rest.chars().next());
    let threads = fs::read_dir(format!("/proc/{pid}/task")).map_or(0, Iterator::count);
    matches!(state, Some('Z' | 'X')) && threads <= 1
}

/// Files of one installation of Edge on a host: configuration, database, socket, pins. All of them
/// are gone when it is dropped, and so is the daemon.
#[derive(Debug)]
pub struct Installation<'a> {
    host: &'a Namespace,
    directory: tempfile::TempDir,
    bpffs: PathBuf,
}

/// How a command ended.
#[derive(Debug)]
pub struct Outcome {
    /// Its exit code.
    pub code: i32,
    /// What it printed.
    pub stdout: String,
    /// What it complained of.
    pub stderr: String,
}

impl Outcome {
    #[track_caller]
    fn panic(&self) -> ! {
        panic!("edge run ended with {}:\n{}", self.code, self.stderr)
    }

    /// Each line of the output as JSON.
    ///
    /// # Panics
    /// When a line is no JSON.
    #[must_use]
    #[track_caller]
    pub fn json_lines(&self) -> Vec<Value> {
        let parse = |line: &str| {
            serde_json::from_str(line).unwrap_or_else(|e| panic!("{e} in {line:?} of {self:?}"))
        };
        self.stdout.lines().map(parse).collect()
    }
}

impl<'a> Installation<'a> {
    /// An installation on a host with a configuration (TOML; interfaces, paths and metrics are set
    /// here).
    ///
    /// # Panics
    /// When files cannot be written.
    #[must_use]
    pub fn new(host: &'a Namespace, interfaces: &[&str], settings: &str) -> Self {
        let directory = tempfile::tempdir().expect("a temporary directory");
        // In the host's own BPF file system; the name tells two installations on one host apart.
        let name = directory.path().file_name().unwrap_or_default();
        let name = name.to_string_lossy().replace('.', "");
        let installation = Self {
            host,
            bpffs: Path::new("/sys/fs/bpf").join(format!("edge-test{name}")),
            directory,
        };
        installation.configure(interfaces, settings);
        installation
    }

    /// Writes another configuration; nothing reads it yet.
    ///
    /// # Panics
    /// When the file cannot be written.
    pub fn configure(&self, interfaces: &[&str], settings: &str) {
        let text = format!(
            "interfaces = {interfaces:?}\n\
             metrics.listen = \"{METRICS}\"\n\
             paths.state_dir = {:?}\n\
             paths.socket = {:?}\n\
             paths.bpffs_dir = {:?}\n\
             {settings}\n",
            self.state_dir(),
            self.socket(),
            self.bpffs,
        );
        fs::write(self.config(), text).expect("the configuration is written");
    }

    /// The configuration file.
    #[must_use]
    pub fn config(&self) -> PathBuf {
        self.file("edge.toml")
    }

    /// The control socket.
    #[must_use]
    pub fn socket(&self) -> PathBuf {
        self.file("edge.sock")
    }

    /// The directory of the database.
    #[must_use]
    pub fn state_dir(&self) -> PathBuf {
        self.file("state")
    }

    /// The directory of the pins; only processes on the host see it.
    #[must_use]
    pub fn bpffs(&self) -> &Path {
        &self.bpffs
    }

    /// A file of this installation.
    #[must_use]
    pub fn file(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// The command line, not yet started.
    #[must_use]
    pub fn edge(&self, arguments: &[&str]) -> Command {
        self.command(self.host.command(binary()), arguments)
    }

    /// The same as another user, from wherever the binary is.
    ///
    /// # Panics
    /// When there is no binary.
    #[must_use]
    pub fn edge_as(&self, user: u32, arguments: &[&str]) -> Command {
        // Not by its path, which may lead through directories of others.
        let file = File::open(binary()).expect("the binary");
        let mut command = self
            .host
            .command(format!("/proc/self/fd/{}", file.as_raw_fd()));
        let mut held = Some(file);
        // SAFETY: the closure makes system calls only. It runs behind that of the namespace, which
        // needs root.
        unsafe {
            command.pre_exec(move || {
                // Until here, so that the descriptor is open in the child.
                let _open = &mut held;
                let changed = libc::setgroups(0, std::ptr::null()) == 0
                    && libc::setgid(user) == 0
                    && libc::setuid(user) == 0;
                changed.then_some(()).ok_or_else(io::Error::last_os_error)
            });
        }
        self.command(command, arguments)
    }

    fn command(&self, mut command: Command, arguments: &[&str]) -> Command {
        command
            .arg("--socket")
            .arg(self.socket())
            .args(arguments)
            .env_remove("RUST_LOG")
            .env_remove("NOTIFY_SOCKET")
            .env_remove("WATCHDOG_USEC")
            .env_remove("WATCHDOG_PID")
            .stdin(Stdio::null());
        command
    }

    /// Runs a command to its end.
    ///
    /// # Panics
    /// When it cannot be started or ends by a signal.
    #[track_caller]
    pub fn outcome(&self, arguments: &[&str]) -> Outcome {
        outcome(&mut self.edge(arguments))
    }

    /// Runs a command that must succeed, and returns what it prints.
    ///
    /// # Panics
    /// When it fails.
    #[track_caller]
    pub fn ok(&self, arguments: &[&str]) -> String {
        let outcome = self.outcome(arguments);
        assert_eq!(outcome.code, 0, "edge {}: {outcome:?}", arguments.join(" "));
        outcome.stdout
    }

    /// Runs a command that must succeed with `--json`, and returns its lines.
    ///
    /// # Panics
    /// When it fails, or prints something else.
    #[track_caller]
    pub fn json(&self, arguments: &[&str]) -> Vec<Value> {
        let mut all = vec!["--json"];
        all.extend(arguments);
        let outcome = self.outcome(&all);
        assert_eq!(outcome.code, 0, "edge {}: {outcome:?}", all.join(" "));
        outcome.json_lines()
    }

    /// `edge status` as JSON.
    ///
    /// # Panics
    /// When the daemon does not answer.
    #[must_use]
    #[track_caller]
    pub fn status(&self) -> Value {
        self.json(&["status"]).remove(0)
    }

    /// Packets that ended with a reason on all interfaces, as `edge status` says; `key` is `ended`
    /// or `would_drop`.
    ///
    /// # Panics
    /// When the daemon does not answer.
    #[must_use]
    #[track_caller]
    pub fn packets(&self, reason: &str, key: &str) -> u64 {
        let status = self.status();
        let interfaces = status["interfaces"].as_array().cloned().unwrap_or_default();
        interfaces
            .iter()
            .flat_map(|i| i["reasons"].as_array().cloned().unwrap_or_default())
            .filter(|count| count["reason"] == reason)
            .filter_map(|count| count[key]["packets"].as_u64())
            .sum()
    }

    /// The metrics, as Prometheus would get them.
    ///
    /// # Panics
    /// When they are not served.
    #[must_use]
    #[track_caller]
    pub fn scrape(&self) -> String {
        let request = b"GET /metrics HTTP/1.1\r\nHost: edge\r\nConnection: close\r\n\r\n";
        let answer = self.host.inside(|| -> io::Result<String> {
            let mut stream = TcpStream::connect(METRICS)?;
            stream.set_read_timeout(Some(wait::PATIENCE))?;
            stream.write_all(request)?;
            let mut answer = String::new();
            stream.read_to_string(&mut answer)?;
            Ok(answer)
        });
        let answer = answer.expect("metrics are served");
        let (head, body) = answer.split_once("\r\n\r\n").expect("an HTTP answer");
        assert!(head.starts_with("HTTP/1.1 200 "), "{head}");
        assert!(!head.to_lowercase().contains("transfer-encoding"), "{head}");
        body.to_owned()
    }

    /// Starts the daemon and waits until it is ready.
    ///
    /// # Panics
    /// When it does not get ready; the message has its log.
    #[track_caller]
    pub fn start(&self) -> Daemon {
        self.start_within(wait::PATIENCE)
    }

    /// The same for lists so long that getting ready takes longer than anything else.
    ///
    /// # Panics
    /// As [`Installation::start`].
    #[track_caller]
    pub fn start_within(&self, patience: Duration) -> Daemon {
        self.must_start(&[], patience)
    }

    /// The same with further arguments of `edge run`.
    ///
    /// # Panics
    /// As [`Installation::start`].
    #[track_caller]
    pub fn start_with(&self, arguments: &[&str]) -> Daemon {
        self.must_start(arguments, wait::PATIENCE)
    }

    /// The same under a service manager that wants a sign of life at least so often.
    ///
    /// # Panics
    /// As [`Installation::start`].
    #[track_caller]
    pub fn start_watched(&self, watchdog: Duration) -> Daemon {
        let started = self.try_start_with(&[], wait::PATIENCE, Some(watchdog));
        started.unwrap_or_else(|refused| refused.panic())
    }

    /// The same with sockets that the service manager has opened, as systemd.socket(5) says, and
    /// their names.
    ///
    /// # Panics
    /// As [`Installation::start`].
    #[track_caller]
    pub fn start_activated(&self, sockets: &[TcpListener], names: &str) -> Daemon {
        // Only the process itself knows its number before the program begins.
        let mut command = self.host.command("sh");
        command
            .args(["-c", "LISTEN_PID=$$ exec \"$0\" \"$@\""])
            .arg(binary())
            .env("LISTEN_FDS", sockets.len().to_string())
            .env("LISTEN_FDNAMES", names);
        let fds: Vec<i32> = sockets.iter().map(|socket| socket.as_raw_fd()).collect();
        // SAFETY: the closure makes system calls only.
        unsafe {
            command.pre_exec(move || {
                // Out of the way first: one may have the number that another one is to get.
                let mut moved = [0; 8];
                for (moved, fd) in moved.iter_mut().zip(&fds) {
                    *moved = libc::fcntl(*fd, libc::F_DUPFD_CLOEXEC, 64);
                }
                for ((to, from), _) in (3..).zip(moved).zip(&fds) {
                    if libc::dup2(from, to) != to {
                        return Err(io::Error::last_os_error());
                    }
                }
                Ok(())
            });
        }
        let command = self.command(command, &["run", "-c"]);
        let started = self.try_start_by(command, &[], wait::PATIENCE, None);
        started.unwrap_or_else(|refused| refused.panic())
    }

    /// Has systemd-socket-activate(1) open sockets, each with a name, and waits until the daemon,
    /// which the first connection to one of them starts, is ready or has ended, which is the error.
    ///
    /// # Errors
    /// When it ended.
    ///
    /// # Panics
    /// When it does neither in time.
    #[track_caller]
    pub fn try_start_by_systemd(&self, sockets: &[(&str, &str)]) -> Result<Daemon, Outcome> {
        let mut command = self.host.command("systemd-socket-activate");
        for (address, _) in sockets {
            command.args(["--listen", address]);
        }
        let names: Vec<&str> = sockets.iter().map(|(_, name)| *name).collect();
        command
            .arg(format!("--fdname={}", names.join(":")))
            // It hands on nothing that it is not told to.
            .args(["--setenv", "NOTIFY_SOCKET"])
            .arg(binary());
        let command = self.command(command, &["run", "-c"]);
        self.try_start_by(command, &[], wait::PATIENCE, None)
    }

    /// Starts the daemon with no more than these capabilities, which setpriv(1) knows by these names,
    /// and waits until it is ready or has ended, which is the error.
    ///
    /// # Errors
    /// When it ended.
    ///
    /// # Panics
    /// When it does neither in time.
    #[track_caller]
    pub fn try_start_with_capabilities(&self, names: &[String]) -> Result<Daemon, Outcome> {
        let set = format!("-all,+{}", names.join(",+"));
        let mut command = self.host.command("setpriv");
        command
            .args(["--bounding-set", &set, "--inh-caps", &set])
            .arg(binary());
        let command = self.command(command, &["run", "-c"]);
        self.try_start_by(command, &[], wait::PATIENCE, None)
    }

    /// The processes that run the daemon of this installation.
    #[must_use]
    pub fn daemons(&self) -> Vec<u32> {
        let config = self.config().display().to_string();
        let all = fs::read_dir("/proc").expect("processes").flatten();
        all.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok())
            .filter(|pid| {
                // Empty when it has ended and nobody has waited for it.
                let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
                let mut words = line.split(|byte| *byte == 0);
                words.clone().any(|word| word == b"run")
                    && words.any(|word| word == config.as_bytes())
            })
            .collect()
    }

    /// Kills the processes that run the daemon of this installation, and waits until they are
    /// over.
    ///
    /// # Panics
    /// When they are not in time.
    #[track_caller]
    pub fn kill_daemons(&self) {
        let mut all = Vec::new();
        wait::until("all daemons are over", || {
            // Also those that have begun meanwhile.
            let found = self.daemons();
            for pid in &found {
                let pid = i32::try_from(*pid).expect("a process");
                // SAFETY: no pointers; it runs the daemon of our own installation.
                unsafe { libc::kill(pid, libc::SIGKILL) };
            }
            all.extend(&found);
            found.is_empty() && all.iter().all(|pid| is_over(*pid))
        });
    }

    #[track_caller]
    fn must_start(&self, arguments: &[&str], patience: Duration) -> Daemon {
        let started = self.try_start_with(arguments, patience, None);
        started.unwrap_or_else(|refused| refused.panic())
    }

    /// Starts the daemon and waits until it is ready or has ended, which is the error.
    ///
    /// # Errors
    /// When it ended.
    ///
    /// # Panics
    /// When it does neither in time.
    #[track_caller]
    pub fn try_start(&self) -> Result<Daemon, Outcome> {
        self.try_start_with(&[], wait::PATIENCE, None)
    }

    #[track_caller]
    fn try_start_with(
        &self,
        arguments: &[&str],
        patience: Duration,
        watchdog: Option<Duration>,
    ) -> Result<Daemon, Outcome> {
        let command = self.edge(&["run", "-c"]);
        self.try_start_by(command, arguments, patience, watchdog)
    }

    #[track_caller]
    fn try_start_by(
        &self,
        mut command: Command,
        arguments: &[&str],
        patience: Duration,
        watchdog: Option<Duration>,
    ) -> Result<Daemon, Outcome> {
        // As systemd starts it: READY=1 comes on this socket.
        let path = self.file("notify");
        let _ = fs::remove_file(&path);
        let manager = Manager::new(&path);
        let log = self.file("log");
        let stderr = File::create(&log).expect("a log");
        command
            .arg(self.config())
            .args(arguments)
            .env("NOTIFY_SOCKET", &path)
            .stdout(Stdio::null())
            .stderr(stderr);
        if let Some(watchdog) = watchdog {
            command.env("WATCHDOG_USEC", watchdog.as_micros().to_string());
        }
        let child = command.spawn().expect("edge starts");
        let mut daemon = Daemon {
            child,
            log,
            manager,
        };
        let ended = wait::until_some_within(patience, "edge run gets ready", || {
            if daemon.told().contains("READY=1") {
                Some(None)
            } else {
                daemon.ended().map(Some)
            }
        });
        match ended {
            None => Ok(daemon),
            Some(status) => Err(Outcome {
                code: status.code().unwrap_or(-1),
                stdout: String::new(),
                stderr: daemon.log(),
            }),
        }
    }
}

/// Runs a command to its end.
///
/// # Panics
/// When it cannot be started or ends by a signal.
#[track_caller]
pub fn outcome(command: &mut Command) -> Outcome {
    let output = command.output().expect("the command starts");
    Outcome {
        code: output.status.code().expect("an exit code"),
        stdout: String::from_utf8(output.stdout).expect("text"),
        stderr: String::from_utf8(output.stderr).expect("text"),
    }
}

/// A daemon that runs. It is killed when dropped; the program in the kernel stays.
#[derive(Debug)]
pub struct Daemon {
    child: Child,
    log: PathBuf,
    manager: Manager,
}

/// The service manager's end of a daemon's notifications. It takes them at once, as a real one does.
#[derive(Debug)]
pub(crate) struct Manager {
    told: Arc<Mutex<String>>,
    stop: Arc<AtomicBool>,
    reader: Option<JoinHandle<()>>,
}

impl Manager {
    pub(crate) fn new(path: &Path) -> Self {
        let socket = UnixDatagram::bind(path).expect("a notification socket");
        socket
            .set_read_timeout(Some(Duration::from_millis(50)))
            .expect("a timeout");
        let (told, stop) = <(Arc<Mutex<String>>, Arc<AtomicBool>)>::default();
        let (to, end) = (told.clone(), stop.clone());
        let reader = thread::spawn(move || {
            let mut message = [0; 4096];
            while !end.load(Ordering::Relaxed) {
                if let Ok(length) = socket.recv(&mut message) {
                    let text = String::from_utf8_lossy(message.get(..length).unwrap_or_default());
                    let mut told = to.lock().unwrap_or_else(PoisonError::into_inner);
                    told.push_str(&text);
                    told.push('\n');
                }
            }
        });
        Self {
            told,
            stop,
            reader: Some(reader),
        }
    }

    /// What it was told up to now.
    pub(crate) fn told(&self) -> String {
        let told = self.told.lock();
        told.unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl Drop for Manager {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(reader) = self.reader.take() {
            let _ = reader.join();
        }
    }
}

impl Daemon {
    /// What it told the service manager up to now.
    #[must_use]
    pub fn told(&self) -> String {
        self.manager.told()
    }

    /// How often it told the service manager that it is alive.
    #[must_use]
    pub fn signs_of_life(&self) -> usize {
        self.told().matches("WATCHDOG=1").count()
    }

    /// What it wrote to its log up to now.
    #[must_use]
    pub fn log(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// Its process id.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// How it ended, if it did.
    pub fn ended(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().ok().flatten()
    }

    /// Sends it a signal.
    ///
    /// # Panics
    /// When it is gone.
    #[track_caller]
    pub fn signal(&self, signal: i32) {
        let pid = i32::try_from(self.child.id()).expect("a process id");
        // SAFETY: no pointers; the child has not been waited for, so the id is its own.
        assert_eq!(unsafe { libc::kill(pid, signal) }, 0);
    }

    /// Kills it with SIGKILL, as a crash would.
    pub fn kill(mut self) {
        self.end();
    }

    /// Ends it with SIGTERM and waits until it is gone; returns its log.
    ///
    /// # Panics
    /// When it does not end, or not with success.
    #[track_caller]
    pub fn stop(mut self) -> String {
        self.signal(libc::SIGTERM);
        let status = wait::until_some("the daemon ends", || self.ended());
        assert!(status.success(), "{status}:\n{}", self.log());
        self.log()
    }

    fn end(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        self.end();
        if std::thread::panicking() {
            eprintln!("--- log of the daemon ---\n{}", self.log());
        }
    }
}
