//! Tasks of the Edge tree: `cargo xtask setup`, `build`, and the rest of what a person types.
//!
//! One module a command. What several commands need (paths, running programs, the eBPF toolchain)
//! has a module of its own below.

use std::process::ExitCode;

use anyhow::Result;
use clap::{CommandFactory as _, Parser, Subcommand};

mod apt;
mod bench;
mod build;
mod demo;
mod exec;
mod fuzz;
mod linker;
mod lint;
mod setup;
mod test;
mod tidy;
mod toolchain;
mod tools;
mod vm_test;
mod workspace;

use workspace::Workspace;

/// Build, set-up, tests and demonstrations of Edge.
#[derive(Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask")]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Find or fetch what a fresh machine lacks
    Setup(setup::Args),
    /// Build the eBPF objects and the daemon that embeds one of them
    Build(build::Args),
    /// Edge at work in network namespaces: a client, an attack, nginx; does set-up and build itself
    Demo,
    /// Run all tests; does set-up and build itself
    Test(test::Args),
    /// Load the program, run all golden packets through it and attach it on other kernels, in
    /// emulated machines
    VmTest(vm_test::Args),
    /// Measure what Edge costs; builds everything optimised
    Bench(bench::Args),
    /// Throw packets at the parser that nobody thought of
    Fuzz(fuzz::Args),
    /// Check format and lints of both sides
    Lint,
    /// Check what the compiler does not: layers of modules, size of files, references in documents
    Tidy,
    /// All that a change must pass: tidy, lint, test
    Ci,
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    match run(cli.command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // Not `{error:?}`: a person needs the chain of causes, not this program's stack.
            eprintln!("xtask: error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(command: Command) -> Result<()> {
    let workspace = Workspace::discover()?;
    match command {
        Command::Setup(args) => setup::run(&workspace, &args),
        Command::Build(args) => build::run(&workspace, &args),
        Command::Demo => demo::run(&workspace),
        Command::Test(args) => test::run(&workspace, &args),
        Command::VmTest(args) => vm_test::run(&workspace, &args),
        Command::Bench(args) => bench::run(&workspace, &args),
        Command::Fuzz(args) => fuzz::run(&workspace, &args),
        Command::Lint => lint::run(&workspace),
        Command::Tidy => run_tidy(&workspace),
        Command::Ci => {
            run_tidy(&workspace)?;
            lint::run(&workspace)?;
            test::run(&workspace, &test::Args::default())
        }
    }
}

fn run_tidy(workspace: &Workspace) -> Result<()> {
    let subcommands: Vec<String> = Cli::command()
        .get_subcommands()
        .map(|command| command.get_name().to_owned())
        .collect();
    tidy::run(workspace, &subcommands)
}
