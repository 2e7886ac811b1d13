//! Tasks of the Edge tree: `cargo xtask setup`, `build`, and the rest of what a person types.
//!
//! One module a command. What several commands need (paths, running programs, the eBPF toolchain)
//! has a module of its own below.

use anyhow::Result;
use clap::{Parser, Subcommand};

mod apt;
mod build;
mod exec;
mod linker;
mod setup;
mod toolchain;
mod tools;
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
    /// Find or install what a fresh machine lacks
    Setup(setup::Args),
    /// Build the eBPF object and the daemon that embeds it
    Build(build::Args),
}

fn main() -> Result<()> {
    let cli = Cli::parse();
    let workspace = Workspace::discover()?;
    match cli.command {
        Command::Setup(args) => setup::run(&workspace, &args),
        Command::Build(args) => build::run(&workspace, &args),
    }
}
