//! Where things are: the tree, cargo's target directory, and the tools that set-up made.

use std::env;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail};

use crate::exec;

/// Overrides where set-up keeps what it installs, so that several checkouts can share it.
const TOOLS_DIR_VAR: &str = "EDGE_TOOLS_DIR";

/// The directories every command works in. All paths are absolute.
#[derive(Debug, Clone)]
pub(crate) struct Workspace {
    /// The directory of the workspace's `Cargo.toml`.
    pub(crate) root: PathBuf,
    /// Cargo's target directory, as cargo itself resolves it.
    pub(crate) target: PathBuf,
    /// Private tools: `EDGE_TOOLS_DIR`, or `tools` in the target directory.
    pub(crate) tools: PathBuf,
}

impl Workspace {
    /// Asks cargo where the workspace and its target directory are.
    pub(crate) fn discover() -> Result<Self> {
        let manifest_dir = env::var_os("CARGO_MANIFEST_DIR")
            .map_or_else(|| PathBuf::from(env!("CARGO_MANIFEST_DIR")), PathBuf::from);
        let manifest = manifest_dir.join("Cargo.toml");
        let mut command = Command::new(exec::host_cargo());
        command
            .args([
                "metadata",
                "--no-deps",
                "--format-version=1",
                "--manifest-path",
            ])
            .arg(&manifest);
        let text = exec::capture(&mut command)?;
        let metadata: serde_json::Value =
            serde_json::from_str(&text).context("cargo metadata did not print JSON")?;
        let path = |key: &str| {
            metadata[key]
                .as_str()
                .map(PathBuf::from)
                .with_context(|| format!("cargo metadata has no {key}"))
        };
        let root = path("workspace_root")?;
        if !root.join("edge-ebpf").is_dir() {
            bail!(
                "{} is not the Edge tree: run cargo xtask inside of it",
                root.display()
            );
        }
        let target = path("target_directory")?;
        let tools = match env::var_os(TOOLS_DIR_VAR) {
            Some(dir) => std::path::absolute(dir)
                .with_context(|| format!("{TOOLS_DIR_VAR} is not a usable path"))?,
            None => target.join("tools"),
        };
        Ok(Self {
            root,
            target,
            tools,
        })
    }

    /// Where eBPF objects are: `edge.o`, and one file for every further program.
    pub(crate) fn bpf_dir(&self) -> PathBuf {
        self.target.join("bpf")
    }

    /// Wrappers of the programs that set-up unpacked; goes at the front of `PATH`.
    pub(crate) fn tools_bin(&self) -> PathBuf {
        self.tools.join("bin")
    }

    /// Waits until no other set-up changes the tools directory; holds it until the file is dropped.
    /// Checkouts that share the directory may be set up at once.
    pub(crate) fn lock_tools(&self) -> Result<File> {
        fs::create_dir_all(&self.tools)
            .with_context(|| format!("cannot make {}", self.tools.display()))?;
        let path = self.tools.join("lock");
        let file =
            File::create(&path).with_context(|| format!("cannot write {}", path.display()))?;
        file.lock()
            .with_context(|| format!("cannot lock {}", path.display()))?;
        Ok(file)
    }

    /// A path as a person wants to read it: relative to the tree when inside of it.
    pub(crate) fn display<'a>(&self, path: &'a Path) -> std::path::Display<'a> {
        path.strip_prefix(&self.root).unwrap_or(path).display()
    }
}
