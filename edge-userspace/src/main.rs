//! Command line of Edge.

use std::process::ExitCode;

use edge_userspace::{cli, daemon};
use mimalloc::MiMalloc;

/// Requests of HTTP/2 and records of TLS allocate in crates that are not ours: a tenth of their cost
/// with the allocator of the C library.
#[global_allocator]
static ALLOCATOR: MiMalloc = MiMalloc;

/// Has the kernel give this process small pages only. The allocator asks for huge ones, of which a
/// byte in use takes 2 MiB: half as much memory again, and no request is quicker for it.
fn without_huge_pages() {
    // SAFETY: the call takes numbers only, and changes nothing but how later pages are found.
    // Its failure (a kernel without huge pages) leaves all as it is wanted.
    unsafe { libc::prctl(libc::PR_SET_THP_DISABLE, 1, 0, 0, 0) };
}

fn main() -> ExitCode {
    cli::main(
        |args| {
            without_huge_pages();
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
