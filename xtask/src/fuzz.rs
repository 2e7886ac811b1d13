//! `cargo xtask fuzz`: builds a fuzz target, gives it the golden packets or a dictionary to start
//! from, and runs it.
//!
//! This does what `cargo fuzz run` would do, without another tool and with the compiler that is
//! there: the instrumentation is in every compiler, and the nightly-only address sanitizer finds
//! nothing in code without `unsafe`, of which no target has any.

use std::path::Path;
use std::process::Command;

use anyhow::{Context as _, Result};

use crate::build::{self, Profile};
use crate::exec::{self, announce};
use crate::setup;
use crate::workspace::Workspace;

/// The crate of the targets.
const CRATE: &str = "edge-common/fuzz";

/// The target that reads packets, and so begins with the golden ones.
const PACKETS: &str = "parse";

/// Longer frames have nothing behind their headers that decides, and make the fuzzer slow; heads
/// of HTTP are limited to less by their target.
const MAX_LEN: usize = 2048;

/// What makes a program report to libFuzzer which way it took: a counter an edge, and the operands
/// of comparisons. Overflow and assertions end it, too.
const FLAGS: [&str; 8] = [
    "-Cpasses=sancov-module",
    "-Cllvm-args=-sanitizer-coverage-level=4",
    "-Cllvm-args=-sanitizer-coverage-inline-8bit-counters",
    "-Cllvm-args=-sanitizer-coverage-pc-table",
    "-Cllvm-args=-sanitizer-coverage-trace-compares",
    "-Ccodegen-units=1",
    "-Cdebug-assertions",
    "--cfg=fuzzing",
];

/// Arguments of `cargo xtask fuzz`.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// How long to run
    #[arg(long, default_value_t = 60)]
    seconds: u32,
    /// The target, a file in edge-common/fuzz/fuzz_targets
    #[arg(default_value = PACKETS)]
    target: String,
}

/// Runs the command.
pub(crate) fn run(workspace: &Workspace, args: &Args) -> Result<()> {
    let program = build(workspace, &args.target)?;
    let fuzz = workspace.root.join(CRATE);
    let corpus = fuzz.join("corpus").join(&args.target);
    let artifacts = fuzz.join("artifacts").join(&args.target);
    for dir in [&corpus, &artifacts] {
        std::fs::create_dir_all(dir).with_context(|| format!("cannot make {}", dir.display()))?;
    }
    if args.target == PACKETS {
        write_corpus(workspace, &corpus)?;
    }
    announce(&format!("fuzzing for {} seconds", args.seconds));
    let mut command = Command::new(program);
    command
        .arg(format!("-max_total_time={}", args.seconds))
        .arg(format!("-max_len={MAX_LEN}"))
        // A directory: libFuzzer puts the file's name right behind it.
        .arg(format!("-artifact_prefix={}/", artifacts.display()))
        .arg("-timeout=10")
        .arg("-print_final_stats=1")
        .arg(&corpus);
    let dictionary = fuzz.join("dictionaries").join(&args.target);
    if dictionary.is_file() {
        command.arg(format!("-dict={}", dictionary.display()));
    }
    exec::run(&mut command).context(
        "the fuzzer found something, or was interrupted. What it found lies in the file named above; \
         CONTRIBUTING.md says how it becomes a regression test",
    )
}

fn build(workspace: &Workspace, target: &str) -> Result<std::path::PathBuf> {
    announce(&format!("building the fuzz target {target}"));
    let mut command = Command::new(exec::host_cargo());
    exec::clean_cargo_env(&mut command)
        .current_dir(workspace.root.join(CRATE))
        // With a target named, the flags do not reach build scripts, which could not link with them.
        .args(["build", "--release", "--target", "host-tuple", "--bin", target])
        .arg("--message-format=json-render-diagnostics")
        .env("CARGO_ENCODED_RUSTFLAGS", FLAGS.join(exec::FLAG_SEPARATOR))
        .env("CARGO_TARGET_DIR", workspace.target.join("fuzz"));
    let built = build::build_and_list(&mut command)
        .context("libFuzzer is C++, and its compiler is needed (Debian: g++)")?;
    let (_, program) = built
        .into_iter()
        .next()
        .with_context(|| format!("cargo built no fuzz target {target}"))?;
    Ok(program)
}

/// Writes the golden packets where libFuzzer starts from; what it found before stays beside them.
fn write_corpus(workspace: &Workspace, corpus: &Path) -> Result<()> {
    let bpf = setup::bpf_tools(workspace)?;
    // The golden packets stand beside the rig that runs them, which embeds the program.
    build::ebpf(workspace, &bpf)?;
    announce("writing the golden packets");
    let golden = build::binary(workspace, "edge-tests", "edge-golden", Profile::Debug)?;
    exec::run(Command::new(golden).arg("--frames").arg(corpus))
}
