//! `edge decap` as a user starts it.

use std::fs::{self, File};
use std::process::{Child, ExitStatus, Stdio};

use serde_json::Value;

use crate::daemon::{Manager, Outcome, binary};
use crate::netns::Namespace;
use crate::wait;

/// A decapsulator that runs. It is killed when dropped, and its program goes with it.
#[derive(Debug)]
pub struct Decapsulator {
    child: Child,
    directory: tempfile::TempDir,
    manager: Manager,
}

impl Decapsulator {
    /// Starts it with further arguments and waits until it is ready.
    ///
    /// # Panics
    /// When it does not get ready; the message has its log.
    #[must_use]
    #[track_caller]
    pub fn start(host: &Namespace, arguments: &[&str]) -> Self {
        Self::try_start(host, arguments).unwrap_or_else(|refused| {
            panic!(
                "edge decap ended with {}:\n{}",
                refused.code, refused.stderr
            )
        })
    }

    /// The same; that it ended is the error.
    ///
    /// # Errors
    /// When it ended.
    ///
    /// # Panics
    /// When it neither ends nor gets ready in time.
    #[track_caller]
    pub fn try_start(host: &Namespace, arguments: &[&str]) -> Result<Self, Outcome> {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let file = |name: &str| directory.path().join(name);
        // As systemd starts it: READY=1 comes on this socket.
        let manager = Manager::new(&file("notify"));
        let child = host
            .command(binary())
            .args(["--json", "decap"])
            .args(arguments)
            .env_remove("RUST_LOG")
            .env("NOTIFY_SOCKET", file("notify"))
            .stdin(Stdio::null())
            .stdout(File::create(file("out")).expect("a file"))
            .stderr(File::create(file("log")).expect("a log"))
            .spawn()
            .expect("edge starts");
        let mut decapsulator = Self {
            child,
            directory,
            manager,
        };
        let ended = wait::until_some("edge decap gets ready", || {
            // It tells the one from another thread than the other.
            let ready = decapsulator.manager.told().contains("READY=1");
            if ready && !decapsulator.said().is_empty() {
                Some(None)
            } else {
                decapsulator.ended().map(Some)
            }
        });
        match ended {
            None => Ok(decapsulator),
            Some(status) => Err(Outcome {
                code: status.code().unwrap_or(-1),
                stdout: decapsulator.read("out"),
                stderr: decapsulator.log(),
            }),
        }
    }

    fn read(&self, name: &str) -> String {
        fs::read_to_string(self.directory.path().join(name)).unwrap_or_default()
    }

    /// What it wrote to its log up to now.
    #[must_use]
    pub fn log(&self) -> String {
        self.read("log")
    }

    /// What it told the service manager up to now.
    #[must_use]
    pub fn told(&self) -> String {
        self.manager.told()
    }

    /// The whole lines that it printed up to now.
    ///
    /// # Panics
    /// When one is no JSON.
    #[must_use]
    #[track_caller]
    pub fn said(&self) -> Vec<Value> {
        let text = self.read("out");
        let whole = text
            .split_inclusive('\n')
            .filter(|line| line.ends_with('\n'));
        { whole }
            .map(|line| serde_json::from_str(line).unwrap_or_else(|e| panic!("{e} in {line:?}")))
            .collect()
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

    fn ended(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().ok().flatten()
    }

    /// Ends it with a signal that asks it to, and waits until it is gone. Returns the
    /// packets by outcome.
    ///
    /// # Panics
    /// When it does not end, or not with success.
    #[track_caller]
    pub fn stop(mut self, signal: i32) -> Value {
        self.signal(signal);
        let status = wait::until_some("edge decap ends", || self.ended());
        assert!(status.success(), "{status}:\n{}", self.log());
        let last = self.said().pop().expect("totals");
        last["ended"]["packets"].clone()
    }
}

impl Drop for Decapsulator {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if std::thread::panicking() {
            eprintln!("--- log of edge decap ---\n{}", self.log());
        }
    }
}
