//! `cargo xtask vm-test`: the real program on other kernels, in emulated machines.
//!
//! What a verifier accepts changes with every kernel, in both directions. So Debian's kernels are
//! fetched and booted with a file system that holds nothing but the tests: the program is loaded
//! with everything off, in dry run and enforced, all golden packets go through it (a load for each
//! of their configurations), and it is attached to interfaces, native and generic, with traffic.
//! What these kernels say of routes and neighbours is read as well, over VLAN devices, too.
//! Neither root nor anything on the machine is needed or changed.
//!
//! Such a machine may also have what this one may not: with `--idle`, the proxy holds 100,000
//! connections there.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::str::FromStr;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Error, Result, bail};

use crate::build::{self, Profile};
use crate::exec::{self, announce};
use crate::setup;
use crate::test;
use crate::workspace::Workspace;

mod cpio;
mod image;
mod kernels;
mod qemu;
mod report;

use image::{Step, Tools};
use kernels::{Kernel, TRACKS, Track};
use qemu::{Machine, Qemu};
use report::{Outcome, Row, Said};

/// Lines of each serial port that are shown when a guest failed.
const SHOWN_LINES: usize = 100;

/// Mebibytes of a guest.
const MEMORY: u32 = 1536;
/// The same for 100,000 connections, both ends of each.
const IDLE_MEMORY: u32 = 4096;

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
    /// Instead of all that, let the proxy hold 100,000 idle connections, on the newest kernel; with
    /// optimised programs
    #[arg(long)]
    idle: bool,
    /// Fail where a kernel or the emulator cannot be had, instead of reporting it as skipped
    #[arg(long)]
    require: bool,
    /// How long each guest may take; two to five minutes are usual on two CPUs, and ten with
    /// --idle [default: 900, with --idle 2700]
    #[arg(long, value_name = "SECONDS")]
    timeout: Option<u64>,
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

    fn cpus(&self) -> u32 {
        match self {
            Self::Track(track) => track.cpus,
            Self::Path(_) => 1,
        }
    }
}

/// What all guests need beside their kernels.
struct Rig {
    qemu: Qemu,
    tools: Tools,
    steps: Vec<Step>,
    /// Mebibytes of each guest.
    memory: u32,
    /// Whether what a guest tells is for people, also when all is well.
    is_told: bool,
    /// Where images and serial ports go.
    dir: PathBuf,
    time: Duration,
}

/// Runs the command.
pub(crate) fn run(workspace: &Workspace, args: &Args) -> Result<()> {
    let choices = match args.kernels.as_slice() {
        [] if args.idle => TRACKS.last().map(Choice::Track).into_iter().collect(),
        [] => TRACKS.iter().map(Choice::Track).collect(),
        given => given.to_vec(),
    };
    let tools = qemu::find(workspace).and_then(|qemu| Ok((qemu, Tools::find(workspace)?)));
    let rows = match tools {
        Ok((qemu, tools)) => {
            // Kernels are fetched while the programs are built.
            let (kernels, steps) = thread::scope(|scope| {
                let choices = choices.as_slice();
                let fetch = |choice| kernel(workspace, choice, args.refresh);
                let kernels = scope.spawn(move || choices.iter().map(fetch).collect::<Vec<_>>());
                let steps = if args.idle {
                    idle_steps(workspace)
                } else {
                    steps(workspace)
                };
                let kernels = kernels.join().map_err(|_| Error::msg("fetching panicked"));
                Ok::<_, Error>((kernels?, steps?))
            })?;
            let rig = Rig {
                qemu,
                tools,
                steps,
                memory: if args.idle { IDLE_MEMORY } else { MEMORY },
                is_told: args.idle,
                dir: workspace.target.join("vm-test"),
                time: args
                    .timeout
                    .map_or_else(|| time(args.idle), Duration::from_secs),
            };
            test_all(workspace, &rig, &choices, kernels)?
        }
        Err(error) => choices.iter().map(|c| skipped(c, &error)).collect(),
    };
    print!("{}", report::table(&rows));
    let bad: Vec<&str> = rows
        .iter()
        .filter(|row| match row.outcome {
            Outcome::Passed => false,
            Outcome::Failed(_) => true,
            Outcome::Skipped(_) => args.require,
        })
        .map(|row| row.asked.as_str())
        .collect();
    if !bad.is_empty() {
        bail!("vm-test did not pass on {}", bad.join(", "));
    }
    Ok(())
}

/// How long a guest may take that nobody has given a time.
const fn time(idle: bool) -> Duration {
    Duration::from_secs(if idle { 2700 } else { 900 })
}

fn skipped(choice: &Choice, error: &Error) -> Row {
    Row {
        asked: choice.name(),
        outcome: Outcome::Skipped(format!("{error:#}")),
        said: Said::default(),
        time: Duration::ZERO,
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
            starts: None,
        })
    };
    Ok(vec![
        step("load", "edge-load", &[])?,
        step("golden", "edge-golden", &[])?,
        // Those of the datapath alone: the daemon's are about the daemon. One after the other: the
        // emulated machine is slow enough for one.
        step("attach", "smoke", &["datapath::", "--test-threads=1"])?,
        // But for what needs more modules.
        step(
            "next-hop",
            "smoke",
            &["next_hop::", "--skip", "bridge", "--test-threads=1"],
        )?,
    ])
}

/// The row of the bench that needs more descriptors than this machine may give.
fn idle_steps(workspace: &Workspace) -> Result<Vec<Step>> {
    let bpf = setup::bpf_tools(workspace)?;
    build::ebpf(workspace, &bpf)?;
    let daemon = build::daemon(workspace, Profile::Release)?;
    Ok(vec![Step {
        name: "idle",
        program: build::bench(workspace)?,
        // It loads no object by itself.
        arguments: &[
            "--objects",
            "/",
            "--strict",
            "--filter",
            "100,000 idle connections",
        ],
        starts: Some((test::BINARY_VAR, daemon)),
    }])
}

/// Gets a kernel. An error is a reason to skip it.
fn kernel(workspace: &Workspace, choice: &Choice, refresh: bool) -> Result<Kernel> {
    match choice {
        Choice::Track(track) => kernels::fetch(workspace, track, refresh),
        Choice::Path(path) => kernels::find(path),
    }
}

/// Boots every kernel that could be had, as many at once as there are CPUs: most of what a guest
/// does, verifying, keeps one busy. The last begin, because the newest kernels take longest. The
/// rows are in the order of `choices`.
fn test_all(
    workspace: &Workspace,
    rig: &Rig,
    choices: &[Choice],
    kernels: Vec<Result<Kernel>>,
) -> Result<Vec<Row>> {
    let workers = thread::available_parallelism().map_or(1, usize::from);
    let queue = Mutex::new(choices.iter().zip(kernels).enumerate().rev());
    let rows = Mutex::new(Vec::new());
    let work = || {
        loop {
            let next = locked(&queue).next();
            let Some((at, (choice, kernel))) = next else {
                return;
            };
            let row = test(workspace, rig, choice, kernel);
            locked(&rows).push((at, row));
        }
    };
    thread::scope(|scope| {
        for _ in 0..workers.min(choices.len()) {
            scope.spawn(work);
        }
    });
    let mut rows = rows.into_inner().unwrap_or_else(PoisonError::into_inner);
    rows.sort_by_key(|(at, _)| *at);
    rows.into_iter().map(|(_, row)| row).collect()
}

fn test(workspace: &Workspace, rig: &Rig, choice: &Choice, kernel: Result<Kernel>) -> Result<Row> {
    let kernel = match (kernel, choice) {
        (Ok(kernel), _) => kernel,
        (Err(error), Choice::Track(_)) => return Ok(skipped(choice, &error)),
        (Err(error), Choice::Path(_)) => return Err(error),
    };
    announce(&format!("booting {}", workspace.display(&kernel.image)));
    let asked = choice.name();
    let start = Instant::now();
    let (said, outcome) = boot(workspace, rig, (&asked, choice.cpus()), &kernel)?;
    Ok(Row {
        asked,
        outcome,
        said,
        time: start.elapsed(),
    })
}

fn boot(
    workspace: &Workspace,
    rig: &Rig,
    (name, cpus): (&str, u32),
    kernel: &Kernel,
) -> Result<(Said, Outcome)> {
    fs::create_dir_all(&rig.dir).with_context(|| format!("cannot make {}", rig.dir.display()))?;
    // Two runs in one tree must not write over each other's files.
    let stem = format!("{}-{}", name.replace('/', "_"), std::process::id());
    let file = |kind: &str| rig.dir.join(format!("{stem}.{kind}"));
    let initramfs = file("cpio");
    let bytes = image::build(&rig.tools, kernel, &rig.steps)?;
    write(&initramfs, &bytes)?;
    let start = Instant::now();
    let tell = |last: &str| {
        announce(&format!(
            "{name} after {} s, {last}",
            start.elapsed().as_secs()
        ));
    };
    let machine = Machine {
        cpus,
        memory: rig.memory,
    };
    let ended = rig
        .qemu
        .run(&kernel.image, &initramfs, &machine, rig.time, tell);
    fs::remove_file(&initramfs)
        .with_context(|| format!("cannot remove {}", initramfs.display()))?;
    let ended = ended?;
    let said = report::read(&ended.results);
    let wanted: Vec<&str> = rig.steps.iter().map(|step| step.name).collect();
    let Some(complaint) = ended.cut.or_else(|| said.complaint(&wanted)) else {
        if rig.is_told {
            println!("{}", ended.results);
        }
        return Ok((said, Outcome::Passed));
    };
    let (results, console) = (file("results"), file("console"));
    write(&results, ended.results.as_bytes())?;
    write(&console, ended.console.as_bytes())?;
    let [console, results] =
        [(&console, &ended.console), (&results, &ended.results)].map(|(file, text)| {
            let (file, text) = (workspace.display(file), tail(text, SHOWN_LINES));
            format!("--- the end of {file}\n{text}")
        });
    // At once, because other guests may fail now as well.
    println!("{console}\n{results}");
    Ok((said, Outcome::Failed(complaint)))
}

fn write(file: &Path, bytes: &[u8]) -> Result<()> {
    fs::write(file, bytes).with_context(|| format!("cannot write {}", file.display()))
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
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
