//! A daemon for one test: the real binary, started, asked, killed.

use std::{
    env, fs,
    io::{self, Read},
    os::unix::{net::UnixDatagram, process::CommandExt},
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    time::Instant,
};

use edge_common::addr::Prefix;
use edge_userspace::{
    control::{
        client::{Client, ClientError},
        protocol::{Addition, ImportHeader, List, Origin, Request, Response},
    },
    status::Status,
};

use crate::netns::{PATIENCE, pause, wait};

/// The binary under test.
///
/// # Panics
/// When it is not built.
pub(crate) fn binary() -> PathBuf {
    if let Some(path) = env::var_os("EDGE_BIN") {
        return path.into();
    }
    // A test's own path is DIR/deps/NAME, the daemon's DIR/edge.
    let test = env::current_exe().expect("the path of the test");
    let path = test.ancestors().nth(2).expect("two levels").join("edge");
    assert!(
        path.exists(),
        "{} is not built; run the tests with `cargo xtask test`",
        path.display()
    );
    path
}

/// Where a daemon of a test keeps everything, below the test's directory.
#[derive(Clone, Debug)]
pub(crate) struct Home {
    directory: PathBuf,
}

impl Home {
    /// A home in `directory` with this configuration; the paths are added.
    ///
    /// # Panics
    /// When it cannot be written.
    pub(crate) fn new(directory: &Path, config: &str) -> Self {
        let home = Self {
            directory: directory.into(),
        };
        home.configure(config);
        home
    }

    /// Writes another configuration.
    ///
    /// # Panics
    /// When it cannot be written.
    pub(crate) fn configure(&self, config: &str) {
        let at = |name: &str| self.directory.join(name).display().to_string();
        let text = format!(
            "{config}\n[paths]\nstate_dir = '{}'\nsocket = '{}'\nbpffs_dir = '{}'\n",
            at("state"),
            at("edge.sock"),
            at("bpf/edge")
        );
        fs::write(self.config(), text).expect("the configuration");
    }

    /// The configuration file.
    pub(crate) fn config(&self) -> PathBuf {
        self.directory.join("edge.toml")
    }

    /// The directory of the pins.
    pub(crate) fn pins(&self) -> PathBuf {
        self.directory.join("bpf/edge")
    }

    /// Starts a daemon and waits until it is ready.
    ///
    /// # Panics
    /// When it ends instead; with what it said.
    pub(crate) fn start(&self) -> Daemon {
        self.try_start(&[]).unwrap_or_else(|said| panic!("{said}"))
    }

    /// Starts a daemon under a wrapper command (none if empty) and waits until
    /// it is ready.
    ///
    /// # Errors
    /// When it ends instead; with what it said.
    ///
    /// # Panics
    /// When nothing happens at all.
    pub(crate) fn try_start(&self, wrapper: &[&str]) -> Result<Daemon, String> {
        let notify = self.directory.join("notify");
        let _ = fs::remove_file(&notify);
        let ready = UnixDatagram::bind(&notify).expect("a socket for notifications");
        ready.set_nonblocking(true).expect("non-blocking");
        let log = self.directory.join("log");
        let to = fs::File::create(&log).expect("a log");
        let binary = binary().display().to_string();
        let mut words = wrapper
            .iter()
            .copied()
            .chain([binary.as_str(), "run", "-c"]);
        let mut command = Command::new(words.next().expect("a command"));
        command
            .args(words)
            .arg(self.config())
            .env("NOTIFY_SOCKET", &notify)
            .env_remove("RUST_LOG")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(to);
        // SAFETY: prctl is async-signal-safe and is given no pointers.
        unsafe {
            command.pre_exec(|| {
                // Nothing outlives a test that is killed.
                libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL);
                Ok(())
            });
        }
        let mut daemon = Daemon {
            child: command.spawn().expect("a process"),
            socket: self.directory.join("edge.sock"),
            notifications: ready,
            log,
        };
        let deadline = Instant::now() + PATIENCE;
        loop {
            if daemon.notified().iter().any(|n| n.contains("READY=1")) {
                return Ok(daemon);
            }
            if daemon.child.try_wait().expect("wait").is_some() {
                return Err(daemon.log());
            }
            assert!(Instant::now() < deadline, "neither ready nor ended");
            pause();
        }
    }
}

/// A running daemon. Killed when dropped.
#[derive(Debug)]
pub(crate) struct Daemon {
    child: Child,
    socket: PathBuf,
    notifications: UnixDatagram,
    log: PathBuf,
}

impl Daemon {
    /// What it told the service manager since the last call.
    pub(crate) fn notified(&self) -> Vec<String> {
        let mut told = Vec::new();
        let mut buffer = [0; 4096];
        while let Ok(n) = self.notifications.recv(&mut buffer) {
            let text = buffer.get(..n).unwrap_or_default();
            told.push(String::from_utf8_lossy(text).into_owned());
        }
        told
    }

    /// What it has logged.
    ///
    /// # Panics
    /// When it cannot be read.
    pub(crate) fn log(&self) -> String {
        fs::read_to_string(&self.log).expect("the log")
    }

    /// A connection to it.
    ///
    /// # Panics
    /// When it does not answer.
    pub(crate) fn client(&self) -> Client {
        Client::connect(&self.socket).expect("a connection to the daemon")
    }

    /// Asks something over a connection of its own.
    ///
    /// # Errors
    /// What the daemon says.
    pub(crate) fn ask(&self, request: Request) -> Result<Response, ClientError> {
        self.client().call(request)
    }

    /// The status.
    ///
    /// # Panics
    /// When there is none.
    pub(crate) fn status(&self) -> Status {
        match self.ask(Request::Status {}) {
            Ok(Response::Status(status)) => *status,
            other => panic!("no status: {other:?}"),
        }
    }

    /// Adds to a list.
    ///
    /// # Errors
    /// What the daemon says.
    ///
    /// # Panics
    /// When a prefix is none.
    pub(crate) fn add(
        &self,
        list: List,
        prefixes: &[&str],
        ttl_s: Option<u64>,
    ) -> Result<Response, ClientError> {
        let parse = |p: &&str| p.parse::<Prefix>().expect("a prefix");
        self.ask(Request::Add(Addition {
            header: ImportHeader {
                list,
                origin: Origin::Cli,
                feed: None,
                ttl_s,
                note: "a test".into(),
                replace: false,
            },
            prefixes: prefixes.iter().map(parse).collect(),
        }))
    }

    /// Reads the configuration again.
    ///
    /// # Errors
    /// What the daemon says.
    pub(crate) fn reload(&self) -> Result<Response, ClientError> {
        self.ask(Request::Reload {})
    }

    /// Sends a signal.
    ///
    /// # Panics
    /// When the process is gone.
    pub(crate) fn signal(&self, signal: libc::c_int) {
        let pid = i32::try_from(self.child.id()).expect("a pid");
        // SAFETY: no pointers; the child was not waited for, so that the id is its own.
        let sent = unsafe { libc::kill(pid, signal) };
        assert_eq!(sent, 0, "kill: {}", io::Error::last_os_error());
    }

    /// Kills it without warning, and waits until it is gone.
    ///
    /// # Panics
    /// When it cannot be killed.
    pub(crate) fn kill(mut self) {
        self.child.kill().expect("kill");
        self.child.wait().expect("wait");
    }

    /// Asks it to end, and waits until it has. Returns how, and its log.
    ///
    /// # Panics
    /// When it does not end.
    pub(crate) fn stop(mut self) -> (ExitStatus, String) {
        self.signal(libc::SIGTERM);
        let mut status = None;
        wait("the end of the daemon", || {
            status = self.child.try_wait().expect("wait");
            status.is_some()
        });
        (status.expect("an end"), self.log())
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if std::thread::panicking() {
            let mut log = String::new();
            let _ = fs::File::open(&self.log).and_then(|mut f| f.read_to_string(&mut log));
            eprintln!("log of the daemon:\n{log}");
        }
    }
}
