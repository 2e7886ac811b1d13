//! Which kernels there are, and getting them: Debian's packages, unpacked privately.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail};

use crate::apt::{self, Apt};
use crate::exec;
use crate::workspace::Workspace;

/// The modules that the guest needs and that no Debian kernel has built in, each behind those
/// that it needs itself: links, and VLAN devices on them.
const MODULES: [&str; 6] = ["veth", "llc", "stp", "garp", "mrp", "8021q"];

/// Names the packages of the kernel, and the modules that were looked for in them; written last.
const COMPLETE: &str = "complete";

/// What the kernels of the `cloud` flavour are called: the smallest ones that have all we need.
const FLAVOUR: &str = "-cloud-amd64";

/// Debian's keys, under the names that its releases give the file.
const KEYRINGS: [&str; 2] = [
    "/usr/share/keyrings/debian-archive-keyring.gpg",
    "/usr/share/keyrings/debian-archive-keyring.pgp",
];

const ARCHIVE: &str = "http://deb.debian.org/debian";
const SECURITY: &str = "http://deb.debian.org/debian-security";

/// A series of kernels and the suites of Debian's archive that carry it.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Track {
    /// What a person calls it.
    pub(crate) name: &'static str,
    /// Processors of its guest. Several see what one does not, and the slowest of the guests is
    /// that of the newest kernel in any case: the others wait for each other.
    pub(crate) cpus: u32,
    /// The numbers its versions start with; empty for any.
    series: &'static [u32],
    /// Mirror and suite of each source.
    suites: &'static [(&'static str, &'static str)],
}

/// All of them, oldest first.
pub(crate) static TRACKS: [Track; 3] = [
    Track {
        name: "6.1",
        cpus: 1,
        series: &[6, 1],
        suites: &[(ARCHIVE, "bookworm"), (SECURITY, "bookworm-security")],
    },
    Track {
        name: "6.12",
        cpus: 1,
        series: &[6, 12],
        suites: &[(ARCHIVE, "trixie"), (SECURITY, "trixie-security")],
    },
    Track {
        name: "newest",
        cpus: 2,
        series: &[],
        suites: &[(ARCHIVE, "sid"), (ARCHIVE, "experimental")],
    },
];

/// A kernel to boot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Kernel {
    /// The compressed image.
    pub(crate) image: PathBuf,
    /// Those of [`MODULES`] that are in the package, in that order; others are taken to be built
    /// in.
    pub(crate) modules: Vec<PathBuf>,
}

/// The newest kernel of `track`: the one fetched before unless `refresh`, else from the machine's
/// own package sources if they carry the series, else from Debian's.
pub(crate) fn fetch(workspace: &Workspace, track: &Track, refresh: bool) -> Result<Kernel> {
    let dir = apt::group_dir(workspace, &format!("kernel-{}", track.name));
    let _lock = workspace.lock_tools()?;
    if !refresh && is_complete(&dir) {
        return find(&dir);
    }
    if std::env::consts::ARCH != "x86_64" {
        bail!("kernels are fetched for x86-64 only; give one with --kernel PATH");
    }
    if !apt::is_available() {
        bail!("this machine has no apt-get; give a kernel with --kernel PATH");
    }
    exec::announce(&format!("looking for Debian's kernel {}", track.name));
    // Only Debian's development suites have the newest one.
    if !track.series.is_empty() {
        let machine = Apt::of_machine();
        if let Ok(Some(packages)) = latest(&machine, track)
            && unpack(&machine, &packages, &dir).is_ok()
        {
            return find(&dir);
        }
    }
    let state = workspace.tools.join("apt").join(track.name);
    let apt = Apt::of_sources(&state, &sources(track, keyring()?))?;
    apt.update()?;
    let Some(packages) = latest(&apt, track)? else {
        bail!("Debian's archive has no kernel {} now", track.name);
    };
    unpack(&apt, &packages, &dir)?;
    find(&dir)
}

/// Whether a kernel was unpacked here to the end, with the modules that are needed now.
fn is_complete(dir: &Path) -> bool {
    fs::read_to_string(dir.join(COMPLETE))
        .is_ok_and(|text| text.lines().next_back() == Some(&MODULES.join(" ")))
}

fn keyring() -> Result<&'static str> {
    let found = KEYRINGS.into_iter().find(|file| Path::new(file).is_file());
    found.context("Debian's keys are not here; install its package debian-archive-keyring")
}

/// The lines of a `sources.list`.
fn sources(track: &Track, keyring: &str) -> String {
    let options = format!("arch=amd64 lang=none target=Packages signed-by={keyring}");
    let line = |(url, suite)| format!("deb [{options}] {url} {suite} main\n");
    track.suites.iter().copied().map(line).collect()
}

/// The packages that make up the newest kernel of `track` that `apt` knows.
fn latest(apt: &Apt, track: &Track) -> Result<Option<Vec<String>>> {
    let names = apt.search(&format!("^linux-(image|binary)-[0-9].*{FLAVOUR}$"))?;
    Ok(choose(&names, track.series))
}

/// The packages of the newest kernel among `names` whose version starts with `series`.
fn choose(names: &[String], series: &[u32]) -> Option<Vec<String>> {
    let newest = names
        .iter()
        .filter_map(|name| release(name))
        .filter(|release| version(release).starts_with(series))
        // Not the meta package of a series (`linux-image-6.12-cloud-amd64`): it is empty, and its
        // version is the shorter one.
        .max_by_key(|release| version(release))?;
    let binary = format!("linux-binary-{newest}");
    // Image and modules are packages of their own since 7.0.
    Some(if names.contains(&binary) {
        vec![binary, format!("linux-modules-{newest}")]
    } else {
        vec![format!("linux-image-{newest}")]
    })
}

/// The kernel release in the name of a package that has an image.
fn release(package: &str) -> Option<&str> {
    let rest = package
        .strip_prefix("linux-image-")
        .or_else(|| package.strip_prefix("linux-binary-"))?;
    let starts_well = rest.starts_with(|c: char| c.is_ascii_digit());
    (starts_well && rest.ends_with(FLAVOUR)).then_some(rest)
}

/// The numbers of a release before its flavour and Debian's own additions: `6.12.117+deb12` is
/// [6, 12, 117], `6.1.0-56` is [6, 1, 0, 56].
fn version(release: &str) -> Vec<u32> {
    let numbers = release.strip_suffix(FLAVOUR).unwrap_or(release);
    let numbers = numbers.split('+').next().unwrap_or(numbers);
    numbers
        .split(['.', '-'])
        .map_while(|number| number.parse().ok())
        .collect()
}

/// Downloads and unpacks `packages` into `dir`, of which only image and modules are kept: a
/// package is a hundred megabytes, those are ten.
fn unpack(apt: &Apt, packages: &[String], dir: &Path) -> Result<()> {
    if dir.exists() {
        fs::remove_dir_all(dir).with_context(|| format!("cannot remove {}", dir.display()))?;
    }
    let (debs, root) = (dir.join("debs"), dir.join("root"));
    for path in [&debs, &root] {
        fs::create_dir_all(path).with_context(|| format!("cannot make {}", path.display()))?;
    }
    apt.download_only(packages, &debs)?;
    for entry in debs
        .read_dir()
        .with_context(|| format!("cannot read {}", debs.display()))?
    {
        exec::run(
            Command::new("dpkg-deb")
                .arg("-x")
                .arg(entry?.path())
                .arg(&root),
        )?;
    }
    let found = find(&root)?;
    for file in found.modules.into_iter().chain([found.image]) {
        let name = file.file_name().context("a file without a name")?;
        fs::rename(&file, dir.join(name))
            .with_context(|| format!("cannot move {}", file.display()))?;
    }
    for path in [&debs, &root] {
        fs::remove_dir_all(path).with_context(|| format!("cannot remove {}", path.display()))?;
    }
    let complete = format!("{}\n{}\n", packages.join("\n"), MODULES.join(" "));
    fs::write(dir.join(COMPLETE), complete)
        .with_context(|| format!("cannot write in {}", dir.display()))
}

/// The kernel in a directory into which its packages were unpacked, or at a path of its image.
pub(crate) fn find(path: &Path) -> Result<Kernel> {
    if path.is_file() {
        return Ok(Kernel {
            image: path.to_path_buf(),
            modules: modules_of(path).map_or_else(Vec::new, |dir| modules(&dir)),
        });
    }
    if !path.is_dir() {
        bail!(
            "{} is no kernel image and no directory with one",
            path.display()
        );
    }
    let image = search(path, &|name| name.starts_with("vmlinuz"))
        .with_context(|| format!("{} holds no vmlinuz", path.display()))?;
    let modules = modules(path);
    Ok(Kernel { image, modules })
}

/// Those of [`MODULES`] that are somewhere below `dir`.
fn modules(dir: &Path) -> Vec<PathBuf> {
    let find = |module| search(dir, &|name| is_module(name, module));
    MODULES.into_iter().filter_map(find).collect()
}

fn is_module(name: &str, module: &str) -> bool {
    let compressed = name
        .strip_prefix(module)
        .and_then(|rest| rest.strip_prefix(".ko"));
    compressed.is_some_and(|rest| matches!(rest, "" | ".xz" | ".gz"))
}

/// Where the modules of an image outside of any package directory are installed: beside it, or
/// for `boot/vmlinuz-RELEASE` in `lib/modules/RELEASE`.
fn modules_of(image: &Path) -> Option<PathBuf> {
    let dir = image.parent()?;
    let release = image.file_name()?.to_str()?.strip_prefix("vmlinuz-");
    let is_first = |name: &str| is_module(name, MODULES[0]);
    let installed = release.map(|release| dir.join("../lib/modules").join(release));
    installed
        .into_iter()
        .chain([dir.to_path_buf()])
        .find(|dir| dir.join("kernel").is_dir() || search_here(dir, &is_first).is_some())
}

/// The first file below `dir` whose name fits, without following links.
fn search(dir: &Path, fits: &dyn Fn(&str) -> bool) -> Option<PathBuf> {
    search_here(dir, fits).or_else(|| {
        let mut dirs: Vec<PathBuf> = entries(dir)
            .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()))
            .map(|entry| entry.path())
            .collect();
        dirs.sort();
        dirs.iter().find_map(|dir| search(dir, fits))
    })
}

/// The first file in `dir` itself whose name fits.
fn search_here(dir: &Path, fits: &dyn Fn(&str) -> bool) -> Option<PathBuf> {
    let mut files: Vec<PathBuf> = entries(dir)
        .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_file()))
        .filter(|entry| entry.file_name().to_str().is_some_and(fits))
        .map(|entry| entry.path())
        .collect();
    files.sort();
    files.into_iter().next()
}

fn entries(dir: &Path) -> impl Iterator<Item = fs::DirEntry> {
    dir.read_dir().into_iter().flatten().flatten()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(names: &[&str]) -> Vec<String> {
        names.iter().map(|&name| name.to_owned()).collect()
    }

    #[test]
    fn the_newest_of_a_series_is_chosen_by_its_numbers() {
        let known = names(&[
            "linux-image-6.1.0-9-cloud-amd64",
            "linux-image-6.1.0-56-cloud-amd64",
            "linux-image-6.1.0-56-cloud-amd64-dbg",
            "linux-image-6.1.0-56-cloud-amd64-unsigned",
            "linux-image-6.1.0-99-rt-amd64",
            "linux-image-6.12-cloud-amd64",
            "linux-image-6.12.9+deb12-cloud-amd64",
            "linux-image-6.12.117+deb12-cloud-amd64",
            "linux-image-cloud-amd64",
        ]);
        let chosen = |series| choose(&known, series);
        assert_eq!(
            chosen(&[6, 1]).unwrap(),
            ["linux-image-6.1.0-56-cloud-amd64"]
        );
        assert_eq!(
            chosen(&[6, 12]).unwrap(),
            ["linux-image-6.12.117+deb12-cloud-amd64"]
        );
        assert_eq!(chosen(&[6, 120]), None);
        assert_eq!(chosen(&[]), chosen(&[6, 12]));
    }

    #[test]
    fn newer_kernels_come_in_two_packages() {
        let known = names(&[
            "linux-binary-7.2.13+deb14-cloud-amd64",
            "linux-image-7.2.13+deb14-cloud-amd64",
            "linux-binary-7.3-cloud-amd64",
            "linux-image-7.3-cloud-amd64",
            "linux-binary-unsigned-7.4-cloud-amd64",
        ]);
        assert_eq!(
            choose(&known, &[]).unwrap(),
            [
                "linux-binary-7.3-cloud-amd64",
                "linux-modules-7.3-cloud-amd64"
            ]
        );
    }

    #[test]
    fn sources_name_suite_and_key() {
        assert_eq!(
            sources(&TRACKS[0], "/k.gpg"),
            "deb [arch=amd64 lang=none target=Packages signed-by=/k.gpg] \
             http://deb.debian.org/debian bookworm main\n\
             deb [arch=amd64 lang=none target=Packages signed-by=/k.gpg] \
             http://deb.debian.org/debian-security bookworm-security main\n"
        );
    }

    #[test]
    fn kernels_are_found_in_packages_and_beside_their_image() {
        let dir = tempfile::tempdir().unwrap();
        let file = |path: &str| {
            let file = dir.path().join(path);
            fs::create_dir_all(file.parent().unwrap()).unwrap();
            fs::write(&file, "").unwrap();
            file
        };
        assert!(find(dir.path()).is_err());
        let image = file("boot/vmlinuz-6.1");
        assert_eq!(find(&image).unwrap().modules, [] as [PathBuf; 0]);
        let vlan = file("lib/modules/6.1/kernel/net/8021q/8021q.ko");
        let veth = file("lib/modules/6.1/kernel/drivers/net/veth.ko.xz");
        file("lib/modules/6.1/kernel/drivers/net/veth.ko.zst");
        let expected = Kernel {
            image: image.clone(),
            modules: vec![veth, vlan],
        };
        assert_eq!(find(dir.path()).unwrap(), expected);
        let same = |modules: Vec<PathBuf>| {
            let whole = modules.iter().map(|file| file.canonicalize().unwrap());
            whole.collect::<Vec<_>>()
        };
        let found = find(&image).unwrap();
        assert_eq!(same(found.modules), same(expected.modules));
        assert!(find(&dir.path().join("none")).is_err());
    }

    #[test]
    fn a_kernel_that_was_fetched_for_other_modules_is_fetched_again() {
        let dir = tempfile::tempdir().unwrap();
        assert!(!is_complete(dir.path()));
        let file = dir.path().join(COMPLETE);
        fs::write(&file, "linux-image-6.1").unwrap();
        assert!(!is_complete(dir.path()));
        fs::write(&file, format!("linux-image-6.1\n{}\n", MODULES.join(" "))).unwrap();
        assert!(is_complete(dir.path()));
    }
}
