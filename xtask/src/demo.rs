//! `cargo xtask demo`: set-up and build, then Edge at work in namespaces of its own.

use std::process::Command;

use anyhow::Result;

use crate::build::{self, Profile};
use crate::exec::{self, announce};
use crate::setup;
use crate::test;
use crate::workspace::Workspace;

/// The program that does the work; xtask itself knows nothing of namespaces and eBPF.
const PROGRAM: (&str, &str) = ("edge-tests", "edge-demo");

/// Runs the command.
pub(crate) fn run(workspace: &Workspace) -> Result<()> {
    let is_root = test::is_root();
    if !is_root {
        test::acquire_sudo(
            "the demonstration makes network namespaces and loads BPF programs, which needs root",
        )?;
    }
    let bpf = setup::bpf_tools(workspace)?;
    setup::test_tools(workspace)?;
    build::ebpf(workspace, &bpf)?;
    let daemon = build::daemon(workspace, Profile::Release)?;
    announce("building the demonstration");
    let (package, name) = PROGRAM;
    let demo = build::binary(workspace, package, name, Profile::Release)?;
    let variables = [
        ("PATH", exec::path_with(&workspace.tools_bin())?),
        (test::BINARY_VAR, daemon.into_os_string()),
    ];
    let mut command = if is_root {
        Command::new(&demo)
    } else {
        let mut sudo = Command::new("sudo");
        sudo.args(["-n", "-E", "env"]);
        for (name, value) in &variables {
            // sudo replaces PATH whatever it is told, and its policy may drop others.
            let mut word = std::ffi::OsString::from(name);
            word.push("=");
            word.push(value);
            sudo.arg(word);
        }
        sudo.arg(&demo);
        sudo
    };
    exec::run(command.envs(variables))
}
