//! `cargo xtask lint`: rustfmt and clippy, with warnings as errors, on every crate of the tree.
//!
//! The eBPF side is linted for its own target, with the clippy of the very compiler that builds it.
//! `cargo clippy` itself would choose another one, so cargo is told to put the lint driver in front
//! of the compiler, which is all that `cargo clippy` does.

use std::process::Command;

use anyhow::{Context as _, Result, bail};

use crate::build;
use crate::exec::{self, announce};
use crate::setup::{self, BpfTools};
use crate::workspace::Workspace;

/// Crates outside of the workspace, by their manifests.
const OUTSIDE: [&str; 2] = ["edge-ebpf/Cargo.toml", "edge-common/fuzz/Cargo.toml"];

/// How cargo-clippy hands its arguments to the driver: joined by this.
const DRIVER_ARGS: &str = "-D__CLIPPY_HACKERY__warnings__CLIPPY_HACKERY__";

/// Runs the command. All checks run, so that one round shows everything.
pub(crate) fn run(workspace: &Workspace) -> Result<()> {
    let mut failures = Vec::new();
    let mut note = |result: Result<()>| {
        if let Err(error) = result {
            failures.push(format!("{error:#}"));
        }
    };
    announce("rustfmt: all crates");
    let outside = OUTSIDE
        .into_iter()
        .filter(|manifest| workspace.root.join(manifest).is_file());
    for manifest in std::iter::once("Cargo.toml").chain(outside) {
        note(format(workspace, manifest));
    }
    let bpf = setup::bpf_tools(workspace)?;
    // The daemon does not compile without the object that it embeds.
    build::ebpf(workspace, &bpf)?;
    announce("clippy: the workspace");
    note(clippy(workspace, "Cargo.toml", &["--workspace"]));
    let fuzz = OUTSIDE[1];
    if workspace.root.join(fuzz).is_file() {
        announce("clippy: the fuzz targets");
        note(clippy(workspace, fuzz, &["--no-default-features"]));
    }
    announce("clippy: the eBPF side");
    note(clippy_ebpf(workspace, &bpf, &[]));
    announce("clippy: both sides with the log of dropped packets");
    let log = ["--features", build::DEBUG_LOG];
    note(clippy_ebpf(workspace, &bpf, &log));
    note(clippy(
        workspace,
        "tests/Cargo.toml",
        &[
            "--package=edge-userspace",
            "--package=edge-tests",
            log[0],
            log[1],
        ],
    ));
    if !failures.is_empty() {
        bail!("lint:\n  {}", failures.join("\n  "));
    }
    println!("lint: no findings");
    Ok(())
}

fn format(workspace: &Workspace, manifest: &str) -> Result<()> {
    let mut command = Command::new(exec::host_cargo());
    command.current_dir(&workspace.root).args([
        "fmt",
        "--all",
        "--check",
        "--manifest-path",
        manifest,
    ]);
    exec::run(&mut command).with_context(|| {
        format!("the format differs; cargo fmt --all --manifest-path {manifest} mends it")
    })
}

fn clippy(workspace: &Workspace, manifest: &str, more: &[&str]) -> Result<()> {
    let mut command = Command::new(exec::host_cargo());
    command
        .current_dir(&workspace.root)
        .args([
            "clippy",
            "--quiet",
            "--all-targets",
            "--manifest-path",
            manifest,
        ])
        .args(more)
        .args(["--", "-Dwarnings"])
        .env("CARGO_TARGET_DIR", &workspace.target);
    exec::run(&mut command)
}

fn clippy_ebpf(workspace: &Workspace, bpf: &BpfTools, more: &[&str]) -> Result<()> {
    let toolchain = &bpf.toolchain;
    let driver = toolchain.clippy_driver.as_ref().with_context(|| {
        format!(
            "the toolchain {0} has no clippy; rustup component add clippy --toolchain {0} (Debian: \
             rust-web-clippy)",
            toolchain.name
        )
    })?;
    let mut command = build::ebpf_cargo(workspace, bpf, "check");
    command
        .args(["--quiet", "--bins"])
        .args(more)
        .env("RUSTC_WORKSPACE_WRAPPER", driver)
        .env("CLIPPY_ARGS", DRIVER_ARGS);
    exec::run(&mut command)
}
