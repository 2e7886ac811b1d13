//! Command line of Edge.

use std::process::ExitCode;

use edge_userspace::{cli, daemon};

fn main() -> ExitCode {
    cli::main(|args| {
        daemon::run(&daemon::Options {
            config: args.config,
            log: args.log,
        })
    })
}
