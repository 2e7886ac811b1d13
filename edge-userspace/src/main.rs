//! Command line of Edge.

use std::process::ExitCode;

use edge_userspace::{cli, daemon};
use mimalloc::MiMalloc;

/// Requests of HTTP/2 and records of TLS allocate in crates that are not ours: a tenth of their cost
/// with the allocator of the C library.
#[global_allocator]
static ALLOCATOR: MiMalloc = MiMalloc;

/// Has the kernel give this process, and what it starts, small pages from now on. The allocator asks
/// for huge ones, of which a byte in use takes 2 MiB: half as much memory again.
fn without_huge_pages() {
    let [yes, none]: [libc::c_ulong; 2] = [1, 0];
    // SAFETY: the call takes numbers only, and changes nothing but how later pages are found. Where
    // it is refused there is more memory in use, and nothing else.
    unsafe { libc::prctl(libc::PR_SET_THP_DISABLE, yes, none, none, none) };
}

fn main() -> ExitCode {
    without_huge_pages();
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
