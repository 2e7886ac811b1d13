//! Running programs: found, announced, and with errors that say what was run.

use std::env;
use std::ffi::{OsStr, OsString};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, bail};

/// Directories that hold administration tools but are often missing in an ordinary user's `PATH`.
const ADMIN_DIRS: [&str; 3] = ["/usr/local/sbin", "/usr/sbin", "/sbin"];

/// Settings for one cargo run that must not leak into another: they would add flags meant for the
/// outer one, or build for its target. Which compiler the host uses stays as the person chose it.
const CARGO_LEAKS: [&str; 7] = [
    "CARGO_BUILD_RUSTFLAGS",
    "CARGO_BUILD_TARGET",
    "CARGO_ENCODED_RUSTFLAGS",
    "CARGO_MANIFEST_DIR",
    "CARGO_MANIFEST_PATH",
    "RUSTC_WORKSPACE_WRAPPER",
    "RUSTFLAGS",
];

/// Separates flags in `CARGO_ENCODED_RUSTFLAGS`, so that paths may hold spaces.
pub(crate) const FLAG_SEPARATOR: &str = "\u{1f}";

/// The cargo that runs this program.
pub(crate) fn host_cargo() -> OsString {
    env::var_os("CARGO").unwrap_or_else(|| OsString::from("cargo"))
}

/// Takes from `command` what an outer cargo run set for its own purposes.
pub(crate) fn clean_cargo_env(command: &mut Command) -> &mut Command {
    for key in CARGO_LEAKS {
        command.env_remove(key);
    }
    command
}

/// Prints a step before it is done.
pub(crate) fn announce(step: &str) {
    eprintln!("xtask: {step}");
}

/// Runs `command` with its output shown; an error names the command and its exit status.
pub(crate) fn run(command: &mut Command) -> Result<()> {
    let status = command
        .status()
        .with_context(|| format!("cannot run {}", shown(command)))?;
    if !status.success() {
        bail!("{} ended with {status}", shown(command));
    }
    Ok(())
}

/// Runs `command` and returns its standard output; an error carries its standard error.
pub(crate) fn capture(command: &mut Command) -> Result<String> {
    let output = command
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("cannot run {}", shown(command)))?;
    if !output.status.success() {
        bail!(
            "{} ended with {}\n{}",
            shown(command),
            output.status,
            String::from_utf8_lossy(&output.stderr).trim_end()
        );
    }
    String::from_utf8(output.stdout)
        .with_context(|| format!("{} printed something that is not UTF-8", shown(command)))
}

/// The program and its arguments as one line.
fn shown(command: &Command) -> String {
    let mut line = command.get_program().to_string_lossy().into_owned();
    for argument in command.get_args() {
        line.push(' ');
        line.push_str(&argument.to_string_lossy());
    }
    line
}

/// Finds a program in `first`, then in `PATH`, then where administration tools live.
pub(crate) fn which(name: &str, first: &[&Path]) -> Option<PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    first
        .iter()
        .map(|dir| dir.to_path_buf())
        .chain(env::split_paths(&path))
        .chain(ADMIN_DIRS.iter().map(PathBuf::from))
        .map(|dir| dir.join(name))
        .find(|file| is_executable(file))
}

/// Whether `file` is a regular file that someone may execute.
pub(crate) fn is_executable(file: &Path) -> bool {
    file.metadata()
        .is_ok_and(|meta| meta.is_file() && meta.permissions().mode() & 0o111 != 0)
}

/// `PATH` with `first` in front and the administration directories behind.
pub(crate) fn path_with(first: &Path) -> Result<OsString> {
    let path = env::var_os("PATH").unwrap_or_default();
    let mut dirs = vec![first.to_path_buf()];
    dirs.extend(env::split_paths(&path).filter(|dir| dir != first));
    for dir in ADMIN_DIRS {
        if !dirs
            .iter()
            .any(|known| known.as_os_str() == OsStr::new(dir))
        {
            dirs.push(PathBuf::from(dir));
        }
    }
    env::join_paths(dirs).context("a directory in PATH holds a colon")
}
