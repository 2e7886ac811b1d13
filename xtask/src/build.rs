//! `cargo xtask build`: the eBPF objects, then the daemon that embeds those it loads.

use std::env;
use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, bail};

use crate::exec::{self, announce};
use crate::setup::{self, BpfTools};
use crate::workspace::Workspace;

/// The kernel's own target, in the byte order of the machines we support.
const BPF_TARGET: &str = "bpfel-unknown-none";

/// Arguments of `cargo xtask build`.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Build the daemon optimised (the default)
    #[arg(long, conflicts_with = "debug")]
    release: bool,
    /// Build the daemon for debugging; the eBPF side is always optimised, as the verifier needs
    #[arg(long)]
    debug: bool,
    /// Build only the eBPF objects
    #[arg(long)]
    ebpf_only: bool,
    /// Log every packet that is dropped, for debugging: `--log info,edge::debug_log=debug` shows it
    #[arg(long)]
    debug_log: bool,
}

/// The feature of both sides that logs every dropped packet.
pub(crate) const DEBUG_LOG: &str = "debug-log";

/// How the daemon is built.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Profile {
    /// cargo's `dev`.
    Debug,
    /// cargo's `release`.
    Release,
}

/// Runs the command.
pub(crate) fn run(workspace: &Workspace, args: &Args) -> Result<()> {
    let bpf = setup::bpf_tools(workspace)?;
    let objects = if args.debug_log {
        ebpf_debug_log(workspace, &bpf)?
    } else {
        ebpf(workspace, &bpf)?
    };
    for object in objects {
        println!("{}", workspace.display(&object));
    }
    if !args.ebpf_only {
        let profile = if args.debug {
            Profile::Debug
        } else {
            Profile::Release
        };
        let daemon = if args.debug_log {
            daemon_debug_log(workspace, profile)?
        } else {
            daemon(workspace, profile)?
        };
        println!("{}", workspace.display(&daemon));
    }
    Ok(())
}

/// Builds every program of `edge-ebpf` and copies each to `bpf/NAME.o` in the target directory.
/// Returns those files.
pub(crate) fn ebpf(workspace: &Workspace, bpf: &BpfTools) -> Result<Vec<PathBuf>> {
    objects(workspace, bpf, &workspace.bpf_dir(), &[])
}

/// The same with the log, in a directory of its own: no other build embeds these.
pub(crate) fn ebpf_debug_log(workspace: &Workspace, bpf: &BpfTools) -> Result<Vec<PathBuf>> {
    objects(workspace, bpf, &debug_log_dir(workspace), &[DEBUG_LOG])
}

fn debug_log_dir(workspace: &Workspace) -> PathBuf {
    workspace.bpf_dir().join(DEBUG_LOG)
}

fn objects(
    workspace: &Workspace,
    bpf: &BpfTools,
    to: &Path,
    features: &[&str],
) -> Result<Vec<PathBuf>> {
    announce(&format!(
        "building the eBPF side with rustc {} ({})",
        bpf.toolchain.version.release, bpf.toolchain.name
    ));
    let mut command = ebpf_cargo(workspace, bpf, "build");
    command.args(["--bins", "--message-format=json-render-diagnostics"]);
    command.arg("--features").arg(features.join(","));
    let mut objects = Vec::new();
    fs::create_dir_all(to).with_context(|| format!("cannot make {}", to.display()))?;
    for (name, file) in build_and_list(&mut command)? {
        let object = to.join(format!("{name}.o"));
        copy_if_changed(&file, &object)?;
        objects.push(object);
    }
    if objects.is_empty() {
        bail!("edge-ebpf has no binary to build");
    }
    Ok(objects)
}

/// A cargo call in `edge-ebpf` with the toolchain, the linker and the flags that make it eBPF.
pub(crate) fn ebpf_cargo(workspace: &Workspace, bpf: &BpfTools, subcommand: &str) -> Command {
    let flags = [
        // aya's bindings of registers and types differ by the machine the program runs on.
        format!("--cfg=bpf_target_arch=\"{}\"", env::consts::ARCH),
        format!("-Clinker={}", bpf.linker.path.display()),
        // 32-bit arithmetic and atomic compare-and-swap; kernels have it since 5.12.
        "-Ctarget-cpu=v3".to_owned(),
        // BTF is made from the debug information, and the loader needs BTF of the maps.
        "-Cdebuginfo=2".to_owned(),
        "-Clink-arg=--btf".to_owned(),
    ];
    let cargo = bpf
        .toolchain
        .cargo
        .as_ref()
        .map_or_else(exec::host_cargo, |path| path.clone().into_os_string());
    let mut command = Command::new(cargo);
    exec::clean_cargo_env(&mut command)
        .current_dir(workspace.root.join("edge-ebpf"))
        .args([
            subcommand,
            "--release",
            "--target",
            BPF_TARGET,
            "-Zbuild-std=core",
        ])
        .env("RUSTC", &bpf.toolchain.rustc)
        // -Zbuild-std and the intrinsics of the program are unstable features; this lets a stable
        // compiler have them too.
        .env("RUSTC_BOOTSTRAP", "1")
        .env("CARGO_ENCODED_RUSTFLAGS", flags.join(exec::FLAG_SEPARATOR))
        .env("CARGO_TARGET_DIR", workspace.bpf_dir());
    command
}

/// Builds the daemon, with the eBPF object embedded. Returns the binary.
pub(crate) fn daemon(workspace: &Workspace, profile: Profile) -> Result<PathBuf> {
    announce("building the daemon");
    binary(workspace, "edge-userspace", "edge", profile)
}

/// Builds all tests and, with them, the daemon that they start: by itself it would have fewer features
/// of its dependencies, and the same crates would be built twice. Returns the daemon.
pub(crate) fn tests(workspace: &Workspace) -> Result<PathBuf> {
    announce("building the tests and the daemon");
    let mut command = Command::new(exec::host_cargo());
    command.current_dir(&workspace.root).args([
        "test",
        "--no-run",
        "--workspace",
        "--message-format=json-render-diagnostics",
    ]);
    let built = build_and_list(&mut command)?;
    // Its own unit tests have a hash in the names of their files.
    let mut files = built.into_iter().map(|(_, file)| file);
    files
        .find(|file| file.file_name() == Some(OsStr::new("edge")))
        .context("cargo built no binary `edge`")
}

/// Builds the daemon with the log and the object that writes to it. Returns the binary.
pub(crate) fn daemon_debug_log(workspace: &Workspace, profile: Profile) -> Result<PathBuf> {
    announce("building the daemon with the log of every dropped packet");
    let mut command = cargo_build(workspace, "edge-userspace", "edge", profile);
    with_debug_log(&mut command, workspace);
    built(&mut command, "edge")
}

/// Lets a cargo command build crates of the workspace with the log; [`ebpf_debug_log`] comes first.
pub(crate) fn with_debug_log(command: &mut Command, workspace: &Workspace) {
    command
        .args(["--features", DEBUG_LOG])
        .env("EDGE_BPF_OBJECT", debug_log_dir(workspace).join("edge.o"));
}

/// Builds the program that measures, optimised. Returns the binary.
pub(crate) fn bench(workspace: &Workspace) -> Result<PathBuf> {
    announce("building the bench");
    binary(workspace, "edge-tests", "edge-bench", Profile::Release)
}

/// Builds one binary of a member of the workspace. Returns it.
pub(crate) fn binary(
    workspace: &Workspace,
    package: &str,
    name: &str,
    profile: Profile,
) -> Result<PathBuf> {
    built(&mut cargo_build(workspace, package, name, profile), name)
}

fn cargo_build(workspace: &Workspace, package: &str, name: &str, profile: Profile) -> Command {
    let mut command = Command::new(exec::host_cargo());
    command
        .current_dir(&workspace.root)
        .args(["build", "--package", package, "--bin", name])
        .arg("--message-format=json-render-diagnostics");
    if profile == Profile::Release {
        command.arg("--release");
    }
    command
}

fn built(command: &mut Command, name: &str) -> Result<PathBuf> {
    build_and_list(command)?
        .pop()
        .map(|(_, file)| file)
        .with_context(|| format!("cargo built no binary `{name}`"))
}

/// Runs a cargo build with JSON messages; returns name and file of each executable.
pub(crate) fn build_and_list(command: &mut Command) -> Result<Vec<(String, PathBuf)>> {
    let output = command
        .stdin(Stdio::null())
        .stderr(Stdio::inherit())
        .output()
        .with_context(|| format!("cannot run {}", command.get_program().display()))?;
    if !output.status.success() {
        let what: Vec<&str> = command.get_args().filter_map(OsStr::to_str).collect();
        bail!("cargo {} ended with {}", what.join(" "), output.status);
    }
    let text =
        String::from_utf8(output.stdout).context("cargo printed something that is not UTF-8")?;
    Ok(text.lines().filter_map(executable).collect())
}

/// Name and file of the executable that one of cargo's messages announces, if it does.
fn executable(message: &str) -> Option<(String, PathBuf)> {
    let message: serde_json::Value = serde_json::from_str(message).ok()?;
    let file = message["executable"].as_str()?;
    let name = message["target"]["name"].as_str()?;
    Some((name.to_owned(), PathBuf::from(file)))
}

/// Copies when the contents differ, so that an unchanged object causes no rebuild of the daemon.
fn copy_if_changed(from: &Path, to: &Path) -> Result<()> {
    let new = fs::read(from).with_context(|| format!("cannot read {}", from.display()))?;
    if fs::read(to).is_ok_and(|old| old == new) {
        return Ok(());
    }
    // Written beside and renamed: a build that runs at the same time never embeds half of it.
    let partial = to.with_extension(format!("o.{}", std::process::id()));
    fs::write(&partial, new).with_context(|| format!("cannot write {}", partial.display()))?;
    fs::rename(&partial, to).with_context(|| format!("cannot replace {}", to.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn executables_are_found_among_the_messages() {
        let artifact =
            r#"{"reason":"compiler-artifact","target":{"name":"edge"},"executable":"/t/edge"}"#;
        assert_eq!(
            executable(artifact),
            Some(("edge".to_owned(), PathBuf::from("/t/edge")))
        );
        let library =
            r#"{"reason":"compiler-artifact","target":{"name":"core"},"executable":null}"#;
        assert_eq!(executable(library), None);
        assert_eq!(executable("not json"), None);
    }

    #[test]
    fn an_unchanged_object_keeps_its_time() {
        let dir = tempfile::tempdir().unwrap();
        let (from, to) = (dir.path().join("a"), dir.path().join("b.o"));
        fs::write(&from, "one").unwrap();
        copy_if_changed(&from, &to).unwrap();
        let before = fs::metadata(&to).unwrap();
        copy_if_changed(&from, &to).unwrap();
        let after = fs::metadata(&to).unwrap();
        // The same inode: not even replaced by an equal file.
        assert_eq!(
            std::os::unix::fs::MetadataExt::ino(&before),
            std::os::unix::fs::MetadataExt::ino(&after)
        );
        fs::write(&from, "two").unwrap();
        copy_if_changed(&from, &to).unwrap();
        assert_eq!(fs::read(&to).unwrap(), b"two");
    }
}
