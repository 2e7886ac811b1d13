//! `cargo xtask bench`: builds everything optimised and runs the measurements.

use std::ffi::OsString;
use std::process::Command;

use anyhow::Result;

use crate::build::{self, Profile};
use crate::exec::{self, announce};
use crate::setup;
use crate::test;
use crate::workspace::Workspace;

/// Arguments of `cargo xtask bench`.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Arguments of the measuring program, such as `--quick`, `--filter drop` or `--help`
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    rest: Vec<OsString>,
}

/// Runs the command.
pub(crate) fn run(workspace: &Workspace, args: &Args) -> Result<()> {
    const WHY: &str = "measuring loads BPF programs and makes network namespaces, which needs root";
    let is_root = test::is_root();
    if !is_root {
        test::acquire_sudo(WHY)?;
    }
    let bpf = setup::bpf_tools(workspace)?;
    setup::test_tools(workspace)?;
    build::ebpf(workspace, &bpf)?;
    let daemon = build::daemon(workspace, Profile::Release)?;
    let program = build::bench(workspace)?;
    let variables = [
        (test::BINARY_VAR, daemon.into_os_string()),
        ("PATH", exec::path_with(&workspace.tools_bin())?),
        ("EDGE_BPF_DIR", workspace.bpf_dir().into_os_string()),
    ];
    let mut command = if is_root {
        Command::new(&program)
    } else {
        let mut sudo = Command::new("sudo");
        sudo.args(["-n", "env"]);
        for (name, value) in &variables {
            let mut word = OsString::from(format!("{name}="));
            word.push(value);
            sudo.arg(word);
        }
        sudo.arg(&program);
        sudo
    };
    announce("measuring");
    let file = workspace.target.join("bench").join("bench.json");
    exec::run(
        command
            .envs(variables)
            .arg("--json")
            .arg(file)
            .args(&args.rest),
    )
}
