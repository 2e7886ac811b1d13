//! Finding a Rust compiler that can build `core` for `bpfel-unknown-none`.
//!
//! The target has no pre-built `core`, so the compiler needs the standard library's sources *of its
//! own version* beside it (another version's fail to compile). Sources are found where rustup and
//! Debian both link them: `<sysroot>/lib/rustlib/src/rust/library`.

use std::cmp::Reverse;
use std::env;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result};

use crate::apt;
use crate::exec;
use crate::workspace::Workspace;

/// Names the toolchain to use: a rustup toolchain's name, `system`, or `debian`.
pub(crate) const CHOICE_VAR: &str = "EDGE_BPF_TOOLCHAIN";

/// The oldest compiler that the crates of this tree accept (`rust-version` in `Cargo.toml`).
const OLDEST: (u32, u32) = (1, 95);

/// The LLVM majors that the bpf-linker we install can be built for.
const LLVM_MAJORS: std::ops::RangeInclusive<u32> = 21..=23;

/// The apt group under which Debian's pair of compiler and sources is unpacked.
pub(crate) const DEBIAN_GROUP: &str = "rust";

/// The name of the toolchain that set-up unpacks.
pub(crate) const DEBIAN: &str = "debian";

/// Debian's current compiler, its sources and its lints; they always have the same version.
pub(crate) const DEBIAN_PACKAGES: [&str; 3] = ["rustc-web", "rust-web-src", "rust-web-clippy"];

/// A compiler together with the sources of its `core`.
#[derive(Debug, Clone)]
pub(crate) struct Toolchain {
    /// What a person calls it, as in `EDGE_BPF_TOOLCHAIN`.
    pub(crate) name: String,
    /// The compiler itself, never a rustup proxy.
    pub(crate) rustc: PathBuf,
    /// The cargo of the same toolchain, when it has one.
    pub(crate) cargo: Option<PathBuf>,
    /// The lint driver of the same toolchain, when it has one.
    pub(crate) clippy_driver: Option<PathBuf>,
    /// Directories that may hold the compiler's own `libLLVM`.
    pub(crate) lib_dirs: Vec<PathBuf>,
    /// Its version.
    pub(crate) version: Version,
}

/// What `rustc -vV` says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Version {
    /// As printed, for instance `1.97.0-nightly`.
    pub(crate) release: String,
    /// Major and minor number.
    pub(crate) number: (u32, u32),
    /// Major number of the LLVM in it.
    pub(crate) llvm: u32,
}

impl Version {
    /// Reads the output of `rustc -vV`.
    pub(crate) fn parse(text: &str) -> Option<Self> {
        let field = |name: &str| {
            text.lines()
                .find_map(|line| line.strip_prefix(name)?.strip_prefix(": "))
                .map(str::trim)
        };
        let release = field("release")?;
        let mut parts = release.split('.');
        let number = (parts.next()?.parse().ok()?, parts.next()?.parse().ok()?);
        let llvm = field("LLVM version")?.split('.').next()?.parse().ok()?;
        Some(Self {
            release: release.to_owned(),
            number,
            llvm,
        })
    }

    /// Why this compiler cannot be used, if so.
    fn unfit(&self) -> Option<String> {
        if self.number < OLDEST {
            return Some(format!(
                "rustc {} is older than {}.{}",
                self.release, OLDEST.0, OLDEST.1
            ));
        }
        if !LLVM_MAJORS.contains(&self.llvm) {
            return Some(format!(
                "rustc {} has LLVM {}, and bpf-linker {} knows {} to {}",
                self.release,
                self.llvm,
                crate::linker::VERSION,
                LLVM_MAJORS.start(),
                LLVM_MAJORS.end()
            ));
        }
        None
    }
}

/// The result of looking for a toolchain.
#[derive(Debug, Default)]
pub(crate) struct Search {
    /// The best that was found.
    pub(crate) found: Option<Toolchain>,
    /// What was seen and why it was not taken, for the person who expected otherwise.
    pub(crate) rejected: Vec<String>,
}

/// Looks for a usable toolchain: rustup's first (nightly before stable before others), then the
/// system's compiler, then the pair that set-up unpacked.
pub(crate) fn search(workspace: &Workspace) -> Result<Search> {
    let choice = choice();
    let mut search = Search::default();
    for candidate in candidates(workspace)? {
        if choice
            .as_ref()
            .is_some_and(|name| !candidate.answers_to(name))
        {
            continue;
        }
        match candidate.examine() {
            Ok(toolchain) => {
                search.found = Some(toolchain);
                break;
            }
            Err(why) => search.rejected.push(format!("{}: {why:#}", candidate.name)),
        }
    }
    Ok(search)
}

/// The toolchain that the person asked for, if any.
pub(crate) fn choice() -> Option<String> {
    env::var(CHOICE_VAR).ok().filter(|name| !name.is_empty())
}

/// A place where a compiler may be, not yet looked at.
struct Candidate {
    name: String,
    sysroot: PathBuf,
    /// The program to run, where it is not simply `<sysroot>/bin`.
    bin: PathBuf,
}

impl Candidate {
    fn new(name: &str, sysroot: PathBuf) -> Self {
        Self {
            name: name.to_owned(),
            bin: sysroot.join("bin"),
            sysroot,
        }
    }

    /// rustup accepts `nightly` for `nightly-x86_64-unknown-linux-gnu`; so do we.
    fn answers_to(&self, choice: &str) -> bool {
        self.name == choice
            || self
                .name
                .strip_prefix(choice)
                .is_some_and(|rest| rest.starts_with('-') && !choice.is_empty())
    }

    fn examine(&self) -> Result<Toolchain> {
        let core = self
            .sysroot
            .join("lib/rustlib/src/rust/library/core/Cargo.toml");
        anyhow::ensure!(core.is_file(), "has no rust-src");
        let rustc = self.bin.join("rustc");
        let text = exec::capture(Command::new(&rustc).arg("-vV"))?;
        let version = Version::parse(&text).context("rustc -vV is not understood")?;
        if let Some(why) = version.unfit() {
            anyhow::bail!(why);
        }
        let beside =
            |name: &str| Some(self.bin.join(name)).filter(|file| exec::is_executable(file));
        Ok(Toolchain {
            name: self.name.clone(),
            cargo: beside("cargo"),
            clippy_driver: beside("clippy-driver"),
            rustc,
            lib_dirs: apt::lib_dirs(&self.sysroot),
            version,
        })
    }
}

fn candidates(workspace: &Workspace) -> Result<Vec<Candidate>> {
    let mut list = rustup_candidates();
    list.push(Candidate::new("system", PathBuf::from("/usr")));
    let group = apt::group_dir(workspace, DEBIAN_GROUP);
    if apt::is_complete(&group, &DEBIAN_PACKAGES) {
        list.push(Candidate {
            bin: group.join("bin"),
            ..Candidate::new(DEBIAN, group.join("root/usr"))
        });
    }
    Ok(list)
}

/// rustup's toolchains, the preferred first. rustup itself is not asked: it takes longer and may
/// want to download.
fn rustup_candidates() -> Vec<Candidate> {
    let home = env::var_os("RUSTUP_HOME")
        .map(PathBuf::from)
        .or_else(|| env::var_os("HOME").map(|home| Path::new(&home).join(".rustup")));
    let Some(entries) = home.and_then(|home| home.join("toolchains").read_dir().ok()) else {
        return Vec::new();
    };
    let mut found: Vec<(String, PathBuf)> = entries
        .flatten()
        .filter(|entry| entry.path().is_dir())
        .map(|entry| {
            (
                entry.file_name().to_string_lossy().into_owned(),
                entry.path(),
            )
        })
        .collect();
    found.sort_by_key(|(name, _)| (rank(name), Reverse(name.clone())));
    found
        .into_iter()
        .map(|(name, path)| Candidate::new(&name, path))
        .collect()
}

/// The order in which toolchains are preferred; dated nightlies come after the plain one.
fn rank(name: &str) -> u8 {
    let dated = name
        .split('-')
        .nth(1)
        .is_some_and(|part| part.len() == 4 && part.bytes().all(|byte| byte.is_ascii_digit()));
    match name.split('-').next() {
        Some("nightly") if !dated => 0,
        Some("nightly") => 1,
        Some("stable") => 2,
        _ => 3,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NIGHTLY: &str = "rustc 1.97.0-nightly (abc 2026-05-19)\nbinary: rustc\n\
        host: x86_64-unknown-linux-gnu\nrelease: 1.97.0-nightly\nLLVM version: 22.1.4\n";

    #[test]
    fn version_of_a_nightly_is_read() {
        let version = Version::parse(NIGHTLY).unwrap();
        assert_eq!(version.number, (1, 97));
        assert_eq!(version.llvm, 22);
        assert_eq!(version.unfit(), None);
    }

    #[test]
    fn version_needs_its_fields() {
        assert_eq!(Version::parse("rustc 1.97.0\n"), None);
        assert_eq!(Version::parse("release: x.y\nLLVM version: 22.1\n"), None);
    }

    #[test]
    fn too_old_and_too_new_are_refused() {
        let old = Version::parse("release: 1.94.1\nLLVM version: 22.1\n").unwrap();
        assert!(old.unfit().unwrap().contains("older"));
        let new = Version::parse("release: 1.120.0\nLLVM version: 30.1\n").unwrap();
        assert!(new.unfit().unwrap().contains("LLVM 30"));
    }

    #[test]
    fn plain_nightly_comes_first() {
        let mut names = [
            "1.95.0-x86_64",
            "nightly-2026-01-01-x86_64",
            "stable-x86_64",
            "nightly-x86_64",
        ];
        names.sort_by_key(|name| rank(name));
        assert_eq!(
            names,
            [
                "nightly-x86_64",
                "nightly-2026-01-01-x86_64",
                "stable-x86_64",
                "1.95.0-x86_64"
            ]
        );
    }

    #[test]
    fn a_choice_may_leave_out_the_host() {
        let candidate = Candidate::new("nightly-x86_64-unknown-linux-gnu", PathBuf::from("/x"));
        assert!(candidate.answers_to("nightly"));
        assert!(candidate.answers_to("nightly-x86_64-unknown-linux-gnu"));
        assert!(!candidate.answers_to("night"));
        assert!(!candidate.answers_to("debian"));
    }
}
