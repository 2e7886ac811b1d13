//! bpf-linker: finding one that is new enough, or building one.
//!
//! It reads the bitcode that the compiler writes, so its LLVM must be at least as new as the
//! compiler's. Ours is linked to the very `libLLVM` of the compiler, which needs no LLVM package.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result};

use crate::exec;
use crate::toolchain::Toolchain;
use crate::workspace::Workspace;

/// The version that set-up builds, and the oldest that is accepted on `PATH`.
pub(crate) const VERSION: &str = "0.13.0";
const OLDEST: (u32, u32) = (0, 13);

/// A usable linker.
#[derive(Debug, Clone)]
pub(crate) struct Linker {
    /// The program.
    pub(crate) path: PathBuf,
    /// What `--version` printed, for instance `bpf-linker 0.13.0`.
    pub(crate) version: String,
}

/// The linker on `PATH` if it is new enough, else the one that set-up built for this compiler.
pub(crate) fn find(workspace: &Workspace, toolchain: &Toolchain) -> Option<Linker> {
    let on_path = env::split_paths(&env::var_os("PATH")?)
        .map(|dir| dir.join("bpf-linker"))
        .find(|file| exec::is_executable(file));
    on_path
        .and_then(|path| examine(&path))
        .or_else(|| examine(&root(workspace, toolchain).join("bin/bpf-linker")))
}

/// Builds bpf-linker against the compiler's own LLVM.
pub(crate) fn install(workspace: &Workspace, toolchain: &Toolchain) -> Result<()> {
    let llvm = find_llvm(toolchain)?;
    let root = root(workspace, toolchain);
    let scratch = workspace.tools.join("build-bpf-linker");
    let flags = [
        format!("-Clink-arg={}", llvm.display()),
        format!(
            "-Clink-arg=-Wl,-rpath,{}",
            llvm.parent().unwrap_or(Path::new("/")).display()
        ),
        // The old kind of run path also counts for what libLLVM itself needs.
        "-Clink-arg=-Wl,--disable-new-dtags".to_owned(),
    ];
    let mut command = Command::new(exec::host_cargo());
    exec::clean_cargo_env(&mut command)
        .args([
            "install",
            "bpf-linker",
            "--version",
            VERSION,
            "--locked",
            "--force",
            "--quiet",
        ])
        .args(["--no-default-features", "--features"])
        .arg(format!("llvm-{},no-llvm-linking", toolchain.version.llvm))
        .arg("--root")
        .arg(&root)
        .env("CARGO_ENCODED_RUSTFLAGS", flags.join(exec::FLAG_SEPARATOR))
        .env("CARGO_TARGET_DIR", &scratch);
    exec::run(&mut command).context(
        "cannot build bpf-linker. It needs a C++ standard library to link to (Debian: g++) and \
         crates.io. A ready one from https://github.com/aya-rs/bpf-linker on PATH does as well",
    )?;
    fs::remove_dir_all(&scratch).with_context(|| format!("cannot remove {}", scratch.display()))
}

/// Where our own is kept: by LLVM, since a linker for one is none for the next.
fn root(workspace: &Workspace, toolchain: &Toolchain) -> PathBuf {
    workspace.tools.join(format!(
        "bpf-linker-{VERSION}-llvm-{}",
        toolchain.version.llvm
    ))
}

/// Runs it: a linker whose LLVM went away with an updated toolchain exists but does not start.
fn examine(path: &Path) -> Option<Linker> {
    let text = exec::capture(Command::new(path).arg("--version")).ok()?;
    let version = text.lines().next()?.trim().to_owned();
    is_new_enough(&version).then(|| Linker {
        path: path.to_path_buf(),
        version,
    })
}

/// Whether a line like `bpf-linker 0.13.0` names a version that will do.
fn is_new_enough(line: &str) -> bool {
    let number = || {
        let mut parts = line.strip_prefix("bpf-linker ")?.split('.');
        let major: u32 = parts.next()?.parse().ok()?;
        let minor: u32 = parts.next()?.parse().ok()?;
        Some((major, minor))
    };
    number().is_some_and(|number| number >= OLDEST)
}

/// The shared LLVM that belongs to the compiler. Its name differs between toolchains
/// (`libLLVM.so.22.1`, `libLLVM.so.22.1-rust-1.95.0-stable`).
fn find_llvm(toolchain: &Toolchain) -> Result<PathBuf> {
    let prefix = format!("libLLVM.so.{}.", toolchain.version.llvm);
    toolchain
        .lib_dirs
        .iter()
        .filter_map(|dir| dir.read_dir().ok())
        .flat_map(|entries| entries.flatten())
        .find(|entry| entry.file_name().to_string_lossy().starts_with(&prefix))
        .map(|entry| entry.path())
        .with_context(|| {
            format!(
                "the toolchain {} has no shared LLVM ({prefix}*) to build bpf-linker against; put \
                 a bpf-linker {VERSION} on PATH",
                toolchain.name
            )
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_compared_as_numbers() {
        assert!(is_new_enough("bpf-linker 0.13.0"));
        assert!(is_new_enough("bpf-linker 0.100.0"));
        assert!(is_new_enough("bpf-linker 1.0.0"));
        assert!(!is_new_enough("bpf-linker 0.9.15"));
        assert!(!is_new_enough("ld 2.40"));
        assert!(!is_new_enough(""));
    }
}
