//! `cargo xtask vm-test`: the real program on other kernels, in emulated machines.
//!
//! What a verifier accepts changes with every kernel, in both directions. So Debian's kernels are
//! fetched and booted with a file system that holds nothing but the tests: every configuration of
//! the program is loaded, golden packets go through it, and it is attached to interfaces. Neither
//! root nor anything on the machine is needed or changed.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::str::FromStr;
use std::time::Duration;

use anyhow::{Context as _, Error, Result, bail};

use crate::build;
use crate::exec::{self, announce};
use crate::setup;
use crate::workspace::Workspace;

mod cpio;
mod image;
mod kernels;
mod qemu;
mod report;

use image::{Step, Tools};
use kernels::{Kernel, TRACKS, Track};
use qemu::Qemu;
use report::{Outcome, Row, Said};

/// Lines of each serial port that are shown when a guest failed.
const SHOWN_LINES: usize = 100;

/// Arguments of `cargo xtask vm-test`.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// A kernel: 6.1, 6.12, newest, or a path of an image or of unpacked kernel packages; may be
    /// given several times [default: the three of Debian]
    #[arg(long = "kernel", value_name = "KERNEL")]
    kernels: Vec<Choice>,
    /// Look for newer kernels than those fetched before
    #[arg(long)]
    refresh: bool,
    /// Fail where a kernel or the emulator cannot be had, instead of reporting it as skipped
    #[arg(long)]
    require: bool,
    /// How long each guest may take
    #[arg(long, value_name = "SECONDS", default_value_t = 600)]
    timeout: u64,
}

/// A kernel that was asked for.
#[derive(Debug, Clone)]
enum Choice {
    Track(&'static Track),
    Path(PathBuf),
}

impl FromStr for Choice {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        if let Some(track) = TRACKS.iter().find(|track| track.name == text) {
            return Ok(Self::Track(track));
        }
        let path = PathBuf::from(text);
        if !path.exists() {
            let names: Vec<&str> = TRACKS.iter().map(|track| track.name).collect();
            bail!("is neither of {} nor a path", names.join(", "));
        }
        Ok(Self::Path(path))
    }
}

impl Choice {
    fn name(&self) -> String {
        match self {
            Self::Track(track) => track.name.to_owned(),
            Self::Path(path) => path.display().to_string(),
        }
    }
}

/// What all guests need beside their kernels.
struct Rig {
    qemu: Qemu,
    tools: Tools,
    steps: Vec<Step>,
    /// Where images and serial ports go.
    dir: PathBuf,
    time: Duration,
}

/// Runs the command.
pub(crate) fn run(workspace: &Workspace, args: &Args) -> Result<()> {
    let choices = match args.kernels.as_slice() {
        [] => TRACKS.iter().map(Choice::Track).collect(),
        given => given.to_vec(),
    };
    let tools = qemu::find(workspace).and_then(|qemu| Ok((qemu, Tools::find(workspace)?)));
    let mut rows = Vec::new();
    match tools {
        Ok((qemu, tools)) => {
            let rig = Rig {
                qemu,
                tools,
                steps: steps(workspace)?,
                dir: workspace.target.join("vm-test"),
                time: Duration::from_secs(args.timeout),
            };
            for choice in &choices {
                rows.push(test(workspace, &rig, choice, args.refresh)?);
            }
        }
        Err(error) => rows.extend(choices.iter().map(|choice| skipped(choice, &error))),
    }
    print!("{}", report::table(&rows));
    let failed = |row: &Row| match row.outcome {
        Outcome::Passed => false,
        Outcome::Failed(_) => true,
        Outcome::Skipped(_) => args.require,
    };
    match rows.iter().filter(|row| failed(row)).count() {
        0 => Ok(()),
        count => bail!("vm-test: {count} of {} kernels", rows.len()),
    }
}

fn skipped(choice: &Choice, error: &Error) -> Row {
    Row {
        asked: choice.name(),
        outcome: Outcome::Skipped(format!("{error:#}")),
        said: Said::default(),
    }
}

/// Builds what the guests run: the same programs as `cargo xtask test`, so that one build does for
/// both. Their shared libraries go into the guest with them.
fn steps(workspace: &Workspace) -> Result<Vec<Step>> {
    let bpf = setup::bpf_tools(workspace)?;
    build::ebpf(workspace, &bpf)?;
    announce("building the programs of the guests");
    let mut command = Command::new(exec::host_cargo());
    command.current_dir(&workspace.root).args([
        "test",
        "--no-run",
        "--workspace",
        "--test",
        "smoke",
        "--message-format=json-render-diagnostics",
    ]);
    let built = build::build_and_list(&mut command)?;
    let step = |name, program: &str, arguments| -> Result<Step> {
        let mut found = built.iter().filter(|(built, _)| built == program);
        let (_, file) = found
            .next()
            .with_context(|| format!("cargo built no program `{program}`"))?;
        Ok(Step {
            name,
            program: file.clone(),
            arguments,
        })
    };
    Ok(vec![
        step("load", "edge-load", &[])?,
        // Those of the datapath alone: the daemon's are about the daemon. One after the other: the
        // emulated machine is slow enough for one.
        step("attach", "smoke", &["datapath::", "--test-threads=1"])?,
    ])
}

/// Gets one kernel and boots it.
fn test(workspace: &Workspace, rig: &Rig, choice: &Choice, refresh: bool) -> Result<Row> {
    let kernel = match choice {
        Choice::Track(track) => match kernels::fetch(workspace, track, refresh) {
            Ok(kernel) => kernel,
            Err(error) => return Ok(skipped(choice, &error)),
        },
        Choice::Path(path) => kernels::find(path)?,
    };
    announce(&format!("booting {}", workspace.display(&kernel.image)));
    let asked = choice.name();
    let (said, outcome) = boot(workspace, rig, &asked, &kernel)?;
    Ok(Row {
        asked,
        outcome,
        said,
    })
}

fn boot(workspace: &Workspace, rig: &Rig, name: &str, kernel: &Kernel) -> Result<(Said, Outcome)> {
    fs::create_dir_all(&rig.dir).with_context(|| format!("cannot make {}", rig.dir.display()))?;
    // Two runs in one tree must not write over each other's files.
    let stem = format!("{}-{}", name.replace('/', "_"), std::process::id());
    let file = |kind: &str| rig.dir.join(format!("{stem}.{kind}"));
    let initramfs = file("cpio");
    let bytes = image::build(&rig.tools, kernel, &rig.steps)?;
    write(&initramfs, &bytes)?;
    let ended = rig.qemu.run(&kernel.image, &initramfs, rig.time);
    fs::remove_file(&initramfs)
        .with_context(|| format!("cannot remove {}", initramfs.display()))?;
    let ended = ended?;
    let said = report::read(&ended.results);
    let wanted: Vec<&str> = rig.steps.iter().map(|step| step.name).collect();
    let Some(complaint) = ended.cut.or_else(|| said.complaint(&wanted)) else {
        return Ok((said, Outcome::Passed));
    };
    let (results, console) = (file("results"), file("console"));
    write(&results, ended.results.as_bytes())?;
    write(&console, ended.console.as_bytes())?;
    for (file, text) in [(&console, &ended.console), (&results, &ended.results)] {
        println!("--- the end of {}", workspace.display(file));
        println!("{}", tail(text, SHOWN_LINES));
    }
    Ok((said, Outcome::Failed(complaint)))
}

fn write(file: &Path, bytes: &[u8]) -> Result<()> {
    fs::write(file, bytes).with_context(|| format!("cannot write {}", file.display()))
}

/// The last lines of a text.
fn tail(text: &str, lines: usize) -> String {
    let all: Vec<&str> = text.lines().map(str::trim_end).collect();
    all[all.len().saturating_sub(lines)..].join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kernels_are_named_or_are_paths() {
        assert_eq!("6.12".parse::<Choice>().unwrap().name(), "6.12");
        assert_eq!("/".parse::<Choice>().unwrap().name(), "/");
        assert!("6.13".parse::<Choice>().is_err());
    }

    #[test]
    fn only_the_end_is_shown() {
        assert_eq!(tail("a\r\nb\r\nc\r\n", 2), "b\nc");
        assert_eq!(tail("a", 2), "a");
    }
}
