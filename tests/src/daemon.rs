//! The daemon and the command line as a user starts them.

use std::env;
use std::fs::{self, File};
use std::io::{self, Read as _, Write as _};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpStream};
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
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
        let mut command = self.host.command(binary());
        command
            .arg("--socket")
            .arg(self.socket())
            .args(arguments)
            .env_remove("RUST_LOG")
            .env_remove("NOTIFY_SOCKET")
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
        self.try_start().unwrap_or_else(|refused| {
            panic!("edge run ended with {}:\n{}", refused.code, refused.stderr)
        })
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
        // As systemd starts it: READY=1 comes on this socket.
        let path = self.file("notify");
        let _ = fs::remove_file(&path);
        let notify = UnixDatagram::bind(&path).expect("a notification socket");
        notify
            .set_read_timeout(Some(Duration::from_millis(20)))
            .expect("a timeout");
        let log = self.file("log");
        let stderr = File::create(&log).expect("a log");
        let mut command = self.edge(&["run", "-c"]);
        command
            .arg(self.config())
            .env("NOTIFY_SOCKET", &path)
            .stdout(Stdio::null())
            .stderr(stderr);
        let child = command.spawn().expect("edge starts");
        let mut daemon = Daemon {
            child,
            log,
            notify,
            told: String::new(),
        };
        let ended = wait::until_some("edge run gets ready", || {
            if daemon.told().contains("READY=1") {
                return Some(None);
            }
            daemon.ended().map(Some)
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
    notify: UnixDatagram,
    told: String,
}

impl Daemon {
    /// What it told the service manager up to now.
    pub fn told(&mut self) -> &str {
        let mut message = [0; 4096];
        while let Ok(length) = self.notify.recv(&mut message) {
            let text = String::from_utf8_lossy(message.get(..length).unwrap_or_default());
            self.told.push_str(&text);
            self.told.push('\n');
        }
        &self.told
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
