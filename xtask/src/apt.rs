//! Debian packages without installing them.
//!
//! `apt-get install` would need root, start and enable the services of nginx and prometheus, and
//! take Debian's own `rustc` or `rustup` away where they conflict with what we need. So apt only
//! works out which packages the machine lacks and downloads them; they are unpacked into a private
//! directory, and a small wrapper starts each program with the libraries unpacked beside it. The
//! machine itself is never changed.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result};

use crate::exec;
use crate::workspace::Workspace;

/// Written last; holds the names of the packages that were asked for.
const COMPLETE: &str = "complete";

/// Where programs are in a package.
const PROGRAM_DIRS: [&str; 4] = ["usr/sbin", "usr/bin", "sbin", "bin"];

/// Data in `usr/share` that its program can be told the place of: qemu's firmware.
const FINDABLE_DATA: [&str; 2] = ["qemu", "seabios"];

/// Directories of libraries of one package alone, inside that of all: its programs look for them
/// at their absolute path.
const PRIVATE_LIBS: [&str; 1] = ["systemd"];

/// Whether this machine has apt at all.
pub(crate) fn is_available() -> bool {
    exec::which("apt-get", &[]).is_some() && exec::which("dpkg-deb", &[]).is_some()
}

/// Where a group of packages lives: `root/` (unpacked), `bin/` (wrappers), and the marker.
pub(crate) fn group_dir(workspace: &Workspace, group: &str) -> PathBuf {
    workspace.tools.join("debian").join(group)
}

/// Whether `group` was unpacked to the end, for these packages.
pub(crate) fn is_complete(group: &Path, packages: &[&str]) -> bool {
    fs::read_to_string(group.join(COMPLETE)).is_ok_and(|text| text == packages.join("\n"))
}

/// The directories below `prefix` that hold shared libraries, Debian's multi-arch ones included.
pub(crate) fn lib_dirs(prefix: &Path) -> Vec<PathBuf> {
    let lib = prefix.join("lib");
    let mut dirs = Vec::new();
    if let Ok(entries) = lib.read_dir() {
        dirs.extend(
            entries
                .flatten()
                .filter(|entry| entry.file_name().to_string_lossy().ends_with("-linux-gnu"))
                .map(|entry| entry.path()),
        );
    }
    dirs.push(lib);
    dirs
}

/// Downloads `packages` with all that they need and the machine lacks, unpacks them as `group` and
/// makes a wrapper in the group's `bin/` for each of `programs`.
pub(crate) fn unpack(
    workspace: &Workspace,
    group: &str,
    packages: &[&str],
    programs: &[&str],
) -> Result<()> {
    let dir = group_dir(workspace, group);
    if dir.exists() {
        fs::remove_dir_all(&dir).with_context(|| format!("cannot remove {}", dir.display()))?;
    }
    let root = dir.join("root");
    let debs = dir.join("debs");
    for path in [&root, &debs] {
        fs::create_dir_all(path).with_context(|| format!("cannot make {}", path.display()))?;
    }
    fetch(workspace, packages, &debs)?;
    for entry in debs
        .read_dir()
        .with_context(|| format!("cannot read {}", debs.display()))?
    {
        let deb = entry?.path();
        exec::run(Command::new("dpkg-deb").arg("-x").arg(&deb).arg(&root))?;
    }
    fs::remove_dir_all(&debs).with_context(|| format!("cannot remove {}", debs.display()))?;
    prune(&root)?;
    for program in programs {
        wrap(&dir, program)?;
    }
    fs::write(dir.join(COMPLETE), packages.join("\n"))
        .with_context(|| format!("cannot write in {}", dir.display()))
}

/// Removes what no program started from here would find or need: data that is looked for at its
/// absolute path, and of Rust's sources all but the library. It is more than half of the size.
fn prune(root: &Path) -> Result<()> {
    let mut useless = Vec::new();
    if let Ok(data) = root.join("usr/share").read_dir() {
        useless.extend(
            data.flatten()
                .filter(|entry| !FINDABLE_DATA.iter().any(|name| entry.file_name() == *name))
                .map(|entry| entry.path()),
        );
    }
    if let Ok(sources) = root.join("usr/src").read_dir() {
        for tree in sources.flatten() {
            useless.extend(["compiler", "src"].map(|part| tree.path().join(part)));
        }
    }
    for dir in useless.iter().filter(|dir| dir.is_dir()) {
        fs::remove_dir_all(dir).with_context(|| format!("cannot remove {}", dir.display()))?;
    }
    Ok(())
}

/// Writes `<group>/bin/<program>`, which starts the unpacked program with the unpacked libraries.
/// Paths in it are relative to itself, so that the whole may be moved.
fn wrap(group: &Path, program: &str) -> Result<()> {
    let root = group.join("root");
    let binary = unpacked(group, program)?;
    let relative = |path: &Path| {
        let inner = path.strip_prefix(group).unwrap_or(path);
        format!("$group/{}", inner.display())
    };
    let libs: Vec<String> = unpacked_libs(&root)
        .iter()
        .map(|dir| relative(dir))
        .collect();
    let script = format!(
        "#!/bin/sh\n\
         # Made by cargo xtask setup.\n\
         self=$(readlink -f \"$0\") || exit 127\n\
         group=${{self%/bin/*}}\n\
         LD_LIBRARY_PATH=\"{libs}${{LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}}\"\n\
         export LD_LIBRARY_PATH\n\
         exec \"{binary}\" \"$@\"\n",
        libs = libs.join(":"),
        binary = relative(&binary),
    );
    let bin = group.join("bin");
    fs::create_dir_all(&bin).with_context(|| format!("cannot make {}", bin.display()))?;
    let file = bin.join(program);
    fs::write(&file, script).with_context(|| format!("cannot write {}", file.display()))?;
    fs::set_permissions(&file, fs::Permissions::from_mode(0o755))
        .with_context(|| format!("cannot make {} executable", file.display()))
}

/// The program itself, as it was unpacked in `group`.
pub(crate) fn unpacked(group: &Path, program: &str) -> Result<PathBuf> {
    let root = group.join("root");
    PROGRAM_DIRS
        .iter()
        .map(|dir| root.join(dir).join(program))
        .find(|file| exec::is_executable(file))
        .with_context(|| {
            format!(
                "{program} is not in the packages unpacked below {}",
                root.display()
            )
        })
}

/// Where shared libraries were unpacked below `root`.
pub(crate) fn unpacked_libs(root: &Path) -> Vec<PathBuf> {
    let all: Vec<PathBuf> = [root.join("usr"), root.to_path_buf()]
        .iter()
        .flat_map(|prefix| lib_dirs(prefix))
        .collect();
    let private = all
        .iter()
        .flat_map(|dir| PRIVATE_LIBS.map(|name| dir.join(name)));
    let mut dirs: Vec<PathBuf> = all.iter().cloned().chain(private).collect();
    dirs.retain(|dir| dir.is_dir());
    dirs
}

/// Downloads `packages`, and what they need and the machine lacks, into `to`.
///
/// The machine's package lists are tried first. They may not know the packages (a fresh container
/// has none) or name files that the mirror replaced since, and only root may renew them; so the
/// second try is with lists of our own as they are, the third with them renewed.
fn fetch(workspace: &Workspace, packages: &[&str], to: &Path) -> Result<()> {
    if Apt::of_machine().download(packages, to).is_ok() {
        return Ok(());
    }
    let own = Apt::private(&workspace.tools.join("apt"))?;
    if own.download(packages, to).is_ok() {
        return Ok(());
    }
    own.update()?;
    own.download(packages, to)
}

/// apt with the machine's package lists, or with lists of our own.
pub(crate) struct Apt {
    /// A configuration file read after the machine's own.
    config: Option<PathBuf>,
}

impl Apt {
    pub(crate) fn of_machine() -> Self {
        Self { config: None }
    }

    /// Keeps lists and caches below `state`, with the machine's sources and proxies.
    fn private(state: &Path) -> Result<Self> {
        Self::configured(state, "")
    }

    /// Keeps lists and caches below `state`, with the machine's proxies and these sources (lines
    /// of a `sources.list`) instead of its own.
    pub(crate) fn of_sources(state: &Path, sources: &str) -> Result<Self> {
        let list = state.join("sources.list");
        fs::create_dir_all(state).with_context(|| format!("cannot make {}", state.display()))?;
        fs::write(&list, sources).with_context(|| format!("cannot write {}", list.display()))?;
        let text = format!(
            "Dir::Etc::SourceList \"{}\";\nDir::Etc::SourceParts \"/dev/null\";\n\
             APT::Update::Error-Mode \"any\";\n",
            list.display()
        );
        Self::configured(state, &text)
    }

    fn configured(state: &Path, more: &str) -> Result<Self> {
        for dir in ["lists/partial", "cache/archives/partial"] {
            let dir = state.join(dir);
            fs::create_dir_all(&dir).with_context(|| format!("cannot make {}", dir.display()))?;
        }
        let config = state.join("apt.conf");
        // Hooks of the machine would act on the machine (containers empty its cache with one).
        let text = format!(
            "Dir::State::lists \"{0}/lists\";\nDir::Cache \"{0}/cache\";\n\
             #clear APT::Update::Pre-Invoke;\n#clear APT::Update::Post-Invoke;\n\
             #clear APT::Update::Post-Invoke-Success;\n{more}",
            state.display()
        );
        fs::write(&config, text).with_context(|| format!("cannot write {}", config.display()))?;
        Ok(Self {
            config: Some(config),
        })
    }

    /// Fetches the package lists.
    pub(crate) fn update(&self) -> Result<()> {
        exec::announce("fetching apt's package lists (privately; the machine's stay as they are)");
        exec::capture(self.command("apt-get").args(["-qq", "update"]))?;
        Ok(())
    }

    /// The packages whose names match a regular expression.
    pub(crate) fn search(&self, names: &str) -> Result<Vec<String>> {
        let text =
            exec::capture(
                self.command("apt-cache")
                    .args(["search", "--names-only", names]),
            )?;
        Ok(text
            .lines()
            .filter_map(|line| Some(line.split_once(" - ")?.0.to_owned()))
            .collect())
    }

    /// Downloads these packages alone into `to`.
    pub(crate) fn download_only(&self, packages: &[String], to: &Path) -> Result<()> {
        exec::announce(&format!("downloading {}", packages.join(" ")));
        exec::capture(
            self.command("apt-get")
                .args(["-qq", "download"])
                .args(packages)
                .current_dir(to),
        )?;
        Ok(())
    }

    fn command(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        command.env("LC_ALL", "C");
        if let Some(config) = &self.config {
            command.arg("--config-file").arg(config);
        }
        // The sandbox user cannot write into a private directory; apt would warn for each file.
        command.args(["--option", "APT::Sandbox::User=root"]);
        command
    }

    fn download(&self, packages: &[&str], to: &Path) -> Result<()> {
        self.download_only(&self.closure(packages)?, to)
    }

    /// What an installation would add. A simulation only: it needs no root and changes nothing.
    fn closure(&self, packages: &[&str]) -> Result<Vec<String>> {
        let text = exec::capture(
            self.command("apt-get")
                .args(["install", "--simulate", "--no-install-recommends"])
                .args(packages),
        )?;
        let mut closure = simulated(&text);
        // A package that is installed already is not in the simulation, but its files are wanted.
        for package in packages {
            if !closure
                .iter()
                .any(|known| known.split('=').next() == Some(package))
            {
                closure.push((*package).to_owned());
            }
        }
        Ok(closure)
    }
}

/// The packages that a simulated installation would add, as `name=version`.
fn simulated(text: &str) -> Vec<String> {
    text.lines()
        .filter_map(|line| {
            let mut words = line.strip_prefix("Inst ")?.split_whitespace();
            let name = words.next()?;
            // An upgrade shows the installed version in brackets before the new one.
            let version = words.find_map(|word| word.strip_prefix('('))?;
            Some(format!("{name}={version}"))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn simulation_is_read_with_versions() {
        let text = "Reading package lists...\n\
            Remv rustc [1.63.0+dfsg1-2]\n\
            Inst libllvm22 (1:22.1.8-1~deb12u1 Debian-Security:12/oldstable-security [amd64])\n\
            Inst libc6 [2.36-9] (2.36-10 Debian:12 [amd64]) []\n\
            Conf libllvm22 (1:22.1.8-1~deb12u1 Debian-Security [amd64])\n";
        assert_eq!(
            simulated(text),
            ["libllvm22=1:22.1.8-1~deb12u1", "libc6=2.36-10"]
        );
    }

    #[test]
    fn wrapper_starts_the_program_from_anywhere() {
        let dir = tempfile::tempdir().unwrap();
        let group = dir.path().join("a group");
        let bin = group.join("root/usr/bin");
        fs::create_dir_all(&bin).unwrap();
        fs::create_dir_all(group.join("root/usr/lib/x86_64-linux-gnu")).unwrap();
        let program = bin.join("show");
        fs::write(&program, "#!/bin/sh\necho \"$1|$LD_LIBRARY_PATH\"\n").unwrap();
        fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
        wrap(&group, "show").unwrap();
        let moved = dir.path().join("moved");
        fs::rename(&group, &moved).unwrap();
        let link = dir.path().join("link");
        std::os::unix::fs::symlink(moved.join("bin/show"), &link).unwrap();
        let text =
            exec::capture(Command::new(&link).arg("x y").env_remove("LD_LIBRARY_PATH")).unwrap();
        let moved = moved.canonicalize().unwrap();
        let expected = format!(
            "x y|{0}/root/usr/lib/x86_64-linux-gnu:{0}/root/usr/lib\n",
            moved.display()
        );
        assert_eq!(text, expected);
    }

    #[test]
    fn completeness_is_of_the_packages_asked_for() {
        let dir = tempfile::tempdir().unwrap();
        assert!(!is_complete(dir.path(), &["a"]));
        fs::write(dir.path().join(COMPLETE), "a").unwrap();
        assert!(is_complete(dir.path(), &["a"]));
        assert!(!is_complete(dir.path(), &["a", "b"]));
    }
}
