//! `cargo xtask bench`: what Edge costs, against programs that do nothing and
//! against the obvious way to do the same. Figures to compare within one run;
//! nothing is asserted.

mod balance;
mod bulk;
mod client;
mod defence;
mod edge;
mod forward;
mod frame;
mod idle;
mod import;
mod latency;
mod lists;
mod machine;
mod many;
mod memory;
mod packets;
mod pair;
mod proxy;
mod proxy_ban;
mod proxy_idle;
mod rates;
mod report;
mod rig;
mod scale;
mod service;
mod syn;
mod syn_rates;
mod xdp_filter;

use std::{panic, path::PathBuf, thread};

use anyhow::{Result, ensure};
use clap::Parser;

use edge_tests::harness::Effort;
use packets::Bench;
use report::Report;

/// Measures Edge. Needs root; `cargo xtask bench` builds and calls it.
#[derive(Parser)]
struct Args {
    /// Directory of the eBPF objects
    #[arg(long, env = "EDGE_BPF_DIR")]
    objects: PathBuf,
    /// Where the figures go, as JSON
    #[arg(long)]
    json: Option<PathBuf>,
    /// A minute or two, with less certain figures
    #[arg(long)]
    quick: bool,
    /// Also 10 million hosts and 1 million prefixes: some minutes, and gigabytes of memory
    #[arg(long)]
    scale: bool,
    /// Times that each program is measured
    #[arg(long)]
    rounds: Option<u32>,
    /// Packets each time
    #[arg(long, default_value_t = 5_000)]
    packets: u32,
    /// Fail when a target is missed, or nothing was measured that has one
    #[arg(long)]
    strict: bool,
    /// Only rows whose names contain this text
    #[arg(long, default_value = "")]
    filter: String,
    /// Another build of edge.o to measure beside the one in this binary
    #[arg(long)]
    against: Option<PathBuf>,
}

fn main() -> Result<()> {
    let args = Args::parse();
    machine::part();
    let machine = apart(machine::settle, || Ok(machine::facts()))?;
    println!("{machine:#}");
    let mut bench = Bench {
        objects: args.objects,
        against: args.against,
        filter: args.filter,
        effort: Effort {
            rounds: args.rounds.unwrap_or(if args.quick { 50 } else { 400 }),
            packets: args.packets,
        },
        report: Report::default(),
    };
    apart(
        || machine::withdraw().and_then(|()| machine::settle()),
        || {
            bench.packets()?;
            bench.rates()?;
            bench.memory()
        },
    )?;
    apart(
        || machine::withdraw().and_then(|()| machine::settle()),
        || {
            bench.syn_packets()?;
            bench.syn_rates()
        },
    )?;
    apart(
        || machine::withdraw().and_then(|()| machine::settle()),
        || bench.idle(),
    )?;
    apart(
        || machine::withdraw().and_then(|()| machine::settle()),
        || {
            bench.balance()?;
            bench.forwarding()
        },
    )?;
    apart(machine::hurry, || bench.service())?;
    apart(machine::hurry, || bench.bulk())?;
    apart(machine::real_time, || bench.latencies())?;
    apart(machine::hurry, || bench.many())?;
    bench.proxy()?;
    bench.bans()?;
    apart(machine::hurry, || {
        bench.imports()?;
        if args.scale { bench.scale() } else { Ok(()) }
    })?;
    let (missed, all) = bench.report.missed();
    println!("\n{missed} of {all} targets missed");
    ensure!(
        !args.strict || (missed == 0 && all > 0),
        "not all that was asked for was measured and met"
    );
    if let Some(path) = &args.json {
        bench.report.write(path, &machine)?;
        println!("written to {}", path.display());
    }
    Ok(())
}

/// Runs `work` on a thread of its own that `prepare` has given something special.
fn apart<T: Send>(
    prepare: impl FnOnce() -> Result<()> + Send,
    work: impl FnOnce() -> Result<T> + Send,
) -> Result<T> {
    let outcome = thread::scope(|scope| scope.spawn(|| prepare().and_then(|()| work())).join());
    outcome.unwrap_or_else(|panic| panic::resume_unwind(panic))
}
