//! Runs the golden packets on the kernel of this machine: a line for each table as soon as it is
//! done, and at the end `edge-golden: tables=N rows=N failures=N loads=N`. Exits with 1 when any
//! packet differed. Needs root.
//!
//! With `--frames DIRECTORY` it writes each different frame to a file there instead, for a fuzzer
//! to start from. Needs nothing.

use std::{collections::BTreeSet, fs, path::PathBuf, process::ExitCode};

use anyhow::{Context as _, Result};
use clap::Parser as _;
use edge_tests::golden;

#[derive(clap::Parser)]
struct Args {
    /// Write the frames into this directory, and run nothing
    #[arg(long, value_name = "DIRECTORY")]
    frames: Option<PathBuf>,
}

fn main() -> Result<ExitCode> {
    if let Some(directory) = Args::parse().frames {
        write_frames(&directory)?;
        return Ok(ExitCode::SUCCESS);
    }
    let report = golden::run_all(|table| println!("{table}"));
    println!("edge-golden: {report}");
    Ok(if report.passed() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

fn write_frames(directory: &std::path::Path) -> Result<()> {
    let frames: BTreeSet<Vec<u8>> = golden::tables()
        .into_iter()
        .flat_map(|table| table.rows)
        .map(|row| row.frame)
        .collect();
    for (number, frame) in frames.iter().enumerate() {
        let file = directory.join(format!("golden-{number:04}"));
        fs::write(&file, frame).with_context(|| format!("cannot write {}", file.display()))?;
    }
    println!("{} frames in {}", frames.len(), directory.display());
    Ok(())
}
