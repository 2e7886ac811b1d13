//! Command line of Edge.

use std::process::ExitCode;

use edge_userspace::{cli, daemon};

fn main() -> ExitCode {
    cli::main(
        |args| {
            daemon::run(&daemon::Options {
                config: args.config,
                log: args.log,
            })
        },
        |args, tell| {
            let options = daemon::decap::Options {
                interfaces: args.interfaces,
                sources: args.sources,
                local: args.local,
                gue_port: args.gue_port,
                allow_generic: args.allow_generic,
                metrics: args.metrics,
                log: args.log,
            };
            daemon::decap::run(&options, tell)
        },
    )
}
