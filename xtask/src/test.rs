//! `cargo xtask test`: set-up, build, then every test of the workspace.
//!
//! Many tests make network namespaces and load BPF programs, so they need root. Cargo itself never
//! runs as root for an ordinary user: the tests are built as that user, and only the finished test
//! programs are started through sudo.

use std::env;
use std::ffi::OsString;
use std::path::Path;
use std::process::Command;

use anyhow::{Context as _, Result, bail};

use crate::build::{self, Profile};
use crate::exec::{self, announce};
use crate::setup;
use crate::workspace::Workspace;

/// Tells tests where the daemon is.
pub(crate) const BINARY_VAR: &str = "EDGE_BIN";

/// Arguments of `cargo xtask test`.
#[derive(clap::Args, Default)]
pub(crate) struct Args {
    /// Use `cargo test` even where nextest is installed
    #[arg(long)]
    no_nextest: bool,
    /// Build with the log of every dropped packet, and run only the test of that
    #[arg(long)]
    debug_log: bool,
    /// Arguments for the runner, for instance names of tests
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    runner: Vec<OsString>,
}

/// Runs the command.
pub(crate) fn run(workspace: &Workspace, args: &Args) -> Result<()> {
    let is_root = is_root();
    if !is_root {
        acquire_sudo("the tests make network namespaces and load BPF programs, which needs root")?;
    }
    let bpf = setup::bpf_tools(workspace)?;
    setup::test_tools(workspace)?;
    let daemon = if args.debug_log {
        build::ebpf_debug_log(workspace, &bpf)?;
        build::daemon_debug_log(workspace, Profile::Debug)?
    } else {
        build::ebpf(workspace, &bpf)?;
        build::tests(workspace)?
    };
    let variables = [
        ("PATH", exec::path_with(&workspace.tools_bin())?),
        (BINARY_VAR, daemon.into_os_string()),
    ];
    let elevate = if is_root {
        None
    } else {
        Some(sudo_runner(&variables)?)
    };
    let cargo = |subcommand: &[&str]| {
        let mut command = Command::new(exec::host_cargo());
        command.current_dir(&workspace.root);
        command.args(subcommand);
        // After the subcommand: cargo does not hand its own options on to nextest.
        if let Some(config) = &elevate {
            command.arg("--config").arg(config);
        }
        command.envs(variables.iter().cloned());
        command
    };
    if args.debug_log {
        announce("cargo test: the log of dropped packets");
        let mut command = cargo(&["test", "--package", "edge-tests", "--test", "debug_log"]);
        build::with_debug_log(&mut command, workspace);
        return exec::run(command.args(&args.runner));
    }
    if args.no_nextest || !has_nextest() {
        announce("cargo test");
        return exec::run(cargo(&["test", "--workspace"]).args(&args.runner));
    }
    if args.runner.is_empty() {
        // nextest runs no examples in documentation. First, so that its summary comes last.
        announce("cargo test --doc");
        exec::run(&mut cargo(&["test", "--workspace", "--doc", "--quiet"]))?;
    }
    announce("cargo nextest run");
    exec::run(cargo(&["nextest", "run", "--workspace"]).args(&args.runner))
}

/// Whether this process may do what the tests do.
pub(crate) fn is_root() -> bool {
    // SAFETY: geteuid has no arguments, cannot fail and touches no memory.
    unsafe { libc::geteuid() == 0 }
}

/// Asks for the password once, before the long part, and while there is someone to ask.
pub(crate) fn acquire_sudo(why: &str) -> Result<()> {
    if exec::which("sudo", &[]).is_none() {
        bail!("{why}, and there is no sudo here: run this as root");
    }
    announce(&format!(
        "{why}; asking sudo (only the finished programs will run as root)"
    ));
    exec::run(Command::new("sudo").arg("-v")).with_context(|| format!("{why}: run this as root"))
}

/// Cargo configuration that starts test programs through sudo with the environment kept.
fn sudo_runner(variables: &[(&str, OsString)]) -> Result<String> {
    let mut words = vec![
        "sudo".to_owned(),
        "-n".to_owned(),
        "-E".to_owned(),
        "env".to_owned(),
    ];
    for (name, value) in variables {
        // sudo replaces PATH whatever it is told, and its policy may drop others.
        let value = value
            .to_str()
            .with_context(|| format!("{name} is not UTF-8"))?;
        words.push(format!("{name}={value}"));
    }
    // JSON's strings are TOML's basic strings, escapes included.
    let list = serde_json::to_string(&words)?;
    Ok(format!("target.'cfg(unix)'.runner={list}"))
}

/// Whether `cargo nextest` works here.
fn has_nextest() -> bool {
    let cargo = exec::host_cargo();
    let home = env::var_os("CARGO_HOME").or_else(|| {
        env::var_os("HOME").map(|home| Path::new(&home).join(".cargo").into_os_string())
    });
    let bin = home
        .map(|home| Path::new(&home).join("bin"))
        .unwrap_or_default();
    exec::which("cargo-nextest", &[&bin]).is_some()
        && exec::capture(Command::new(cargo).args(["nextest", "--version"])).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sudo_keeps_paths_with_spaces_and_quotes_whole() {
        let variables = [
            ("PATH", OsString::from("/a b/bin:/c\"d")),
            ("X", OsString::from("1")),
        ];
        assert_eq!(
            sudo_runner(&variables).unwrap(),
            r#"target.'cfg(unix)'.runner=["sudo","-n","-E","env","PATH=/a b/bin:/c\"d","X=1"]"#
        );
    }
}
