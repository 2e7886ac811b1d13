//! `cargo xtask setup`: finds or fetches what a fresh machine lacks.
//!
//! Everything goes below the tools directory; the machine itself is not changed, so no root is
//! needed. The one exception is announced as such: where neither a toolchain with sources nor apt
//! is there, rustup is asked to add its `rust-src` component.

use std::process::Command;

use anyhow::{Result, bail};

use crate::apt;
use crate::exec::{self, announce};
use crate::linker::{self, Linker};
use crate::toolchain::{self, Toolchain};
use crate::tools::{self, TOOLS, Tool};
use crate::workspace::Workspace;

/// Arguments of `cargo xtask setup`.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Only report; exit with 1 if something is missing
    #[arg(long)]
    check: bool,
    /// Only what the build needs, not the programs of tests and the demonstration
    #[arg(long)]
    build_only: bool,
}

/// What is needed to build the eBPF side.
pub(crate) struct BpfTools {
    /// The compiler with its sources.
    pub(crate) toolchain: Toolchain,
    /// The linker.
    pub(crate) linker: Linker,
}

/// Runs the command.
pub(crate) fn run(workspace: &Workspace, args: &Args) -> Result<()> {
    if args.check {
        return check(workspace, args.build_only);
    }
    let bpf = bpf_tools(workspace)?;
    println!(
        "eBPF toolchain: rustc {} ({}), {}",
        bpf.toolchain.version.release, bpf.toolchain.name, bpf.linker.version
    );
    if !args.build_only {
        test_tools(workspace)?;
        let names: Vec<&str> = TOOLS.iter().map(|tool| tool.command).collect();
        println!("test tools: {}", names.join(", "));
    }
    Ok(())
}

/// Finds the compiler and the linker, and fetches those that are missing.
pub(crate) fn bpf_tools(workspace: &Workspace) -> Result<BpfTools> {
    if let Some(found) = find_bpf_tools(workspace)? {
        return Ok(found);
    }
    let _lock = workspace.lock_tools()?;
    // Looked for again: another set-up may just have fetched them.
    let toolchain = match toolchain::search(workspace)? {
        toolchain::Search {
            found: Some(toolchain),
            ..
        } => toolchain,
        toolchain::Search { rejected, .. } => install_toolchain(workspace, &rejected)?,
    };
    if linker::find(workspace, &toolchain).is_none() {
        announce(&format!(
            "building bpf-linker {} against LLVM {} of the toolchain {} into {} (about a minute)",
            linker::VERSION,
            toolchain.version.llvm,
            toolchain.name,
            workspace.display(&workspace.tools)
        ));
        linker::install(workspace, &toolchain)?;
    }
    match linker::find(workspace, &toolchain) {
        Some(linker) => Ok(BpfTools { toolchain, linker }),
        None => bail!(
            "bpf-linker was built but does not run; see `ldd` of it below {}",
            workspace.tools.display()
        ),
    }
}

fn find_bpf_tools(workspace: &Workspace) -> Result<Option<BpfTools>> {
    let found = toolchain::search(workspace)?.found;
    Ok(found.and_then(|toolchain| {
        let linker = linker::find(workspace, &toolchain)?;
        Some(BpfTools { toolchain, linker })
    }))
}

/// Finds the programs of tests and the demonstration, and fetches those that are missing.
pub(crate) fn test_tools(workspace: &Workspace) -> Result<()> {
    if missing_tools(workspace).is_empty() {
        return Ok(());
    }
    let _lock = workspace.lock_tools()?;
    let missing = missing_tools(workspace);
    for tool in &missing {
        announce(&format!("{} is missing ({})", tool.command, tool.purpose));
    }
    if missing.is_empty() {
        return Ok(());
    }
    let packages: Vec<&str> = missing.iter().map(|tool| tool.package).collect();
    if !apt::is_available() {
        bail!(
            "this machine has no apt-get; install what Debian calls {} with its own package manager",
            packages.join(", ")
        );
    }
    announce(&format!(
        "fetching Debian's {} and unpacking below {} (nothing is installed on the machine, no \
         service is started)",
        packages.join(", "),
        workspace.display(&workspace.tools)
    ));
    for tool in &missing {
        tools::install(workspace, tool)?;
        if tools::find(workspace, tool).is_none() {
            bail!("{} was unpacked but is not executable", tool.command);
        }
    }
    Ok(())
}

fn missing_tools(workspace: &Workspace) -> Vec<Tool> {
    TOOLS
        .into_iter()
        .filter(|tool| tools::find(workspace, tool).is_none())
        .collect()
}

/// Nothing usable is there: Debian's pair, privately, or rustup's component.
fn install_toolchain(workspace: &Workspace, rejected: &[String]) -> Result<Toolchain> {
    if let Some(choice) = toolchain::choice()
        && choice != toolchain::DEBIAN
    {
        bail!(
            "{}={choice} names no toolchain that can build core for eBPF{}\nRemedy: rustup \
             component add rust-src --toolchain {choice}, or unset the variable",
            toolchain::CHOICE_VAR,
            rejected
                .iter()
                .map(|why| format!("\n  {why}"))
                .collect::<String>()
        );
    }
    announce("no compiler with sources of its own core was found:");
    for why in rejected {
        announce(&format!("  {why}"));
    }
    let mut failures = Vec::new();
    if apt::is_available() {
        announce(&format!(
            "fetching Debian's {} and unpacking below {} (nothing is installed on the machine)",
            toolchain::DEBIAN_PACKAGES.join(", "),
            workspace.display(&workspace.tools)
        ));
        let done = apt::unpack(
            workspace,
            toolchain::DEBIAN_GROUP,
            &toolchain::DEBIAN_PACKAGES,
            &["rustc", "clippy-driver", "cargo-clippy"],
        );
        match done.and_then(|()| toolchain::search(workspace)) {
            Ok(toolchain::Search {
                found: Some(toolchain),
                ..
            }) => return Ok(toolchain),
            Ok(toolchain::Search { rejected, .. }) => failures.extend(rejected),
            Err(error) => failures.push(format!("{error:#}")),
        }
    }
    if exec::which("rustup", &[]).is_some() {
        announce("asking rustup to add the component rust-src to its toolchain nightly");
        let added = exec::run(Command::new("rustup").args([
            "component",
            "add",
            "rust-src",
            "--toolchain",
            "nightly",
        ]));
        match added.and_then(|()| toolchain::search(workspace)) {
            Ok(toolchain::Search {
                found: Some(toolchain),
                ..
            }) => return Ok(toolchain),
            Ok(toolchain::Search { rejected, .. }) => failures.extend(rejected),
            Err(error) => failures.push(format!("{error:#}")),
        }
    }
    bail!(
        "no toolchain can build core for eBPF:\n  {}\nRemedy: rustup toolchain install nightly \
         --component rust-src (or name one that is there in {})",
        failures.join("\n  "),
        toolchain::CHOICE_VAR
    );
}

/// Reports without changing anything.
fn check(workspace: &Workspace, build_only: bool) -> Result<()> {
    let mut missing = false;
    let search = toolchain::search(workspace)?;
    if let Some(toolchain) = &search.found {
        println!(
            "ok       rustc {} ({})",
            toolchain.version.release, toolchain.name
        );
        match linker::find(workspace, toolchain) {
            Some(linker) => println!(
                "ok       {} ({})",
                linker.version,
                workspace.display(&linker.path)
            ),
            None => {
                missing = true;
                println!("missing  bpf-linker {}", linker::VERSION);
            }
        }
    } else {
        missing = true;
        println!(
            "missing  a Rust compiler with the sources of its core (rust-src), and bpf-linker"
        );
        for why in &search.rejected {
            println!("         {why}");
        }
    }
    if !build_only {
        for tool in TOOLS {
            match tools::find(workspace, &tool) {
                Some(path) => println!("ok       {} ({})", tool.command, workspace.display(&path)),
                None => {
                    missing = true;
                    println!(
                        "missing  {}: {} (Debian: {})",
                        tool.command, tool.purpose, tool.package
                    );
                }
            }
        }
    }
    if missing {
        println!("Remedy: cargo xtask setup");
        std::process::exit(1);
    }
    Ok(())
}
