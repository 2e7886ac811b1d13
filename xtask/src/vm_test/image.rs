//! The guest's first and only file system.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, bail};

use super::cpio::Archive;
use super::kernels::Kernel;
use crate::apt;
use crate::exec;
use crate::workspace::Workspace;

const INIT: &str = include_str!("../../../tests/vm/init");

/// Debian's packages.
const BUSYBOX: &str = "busybox-static";
const IPROUTE: &str = "iproute2";

/// The guest's `LD_LIBRARY_PATH`, as `tests/vm/init` sets it.
const LIBRARIES: &str = "lib/guest";

/// Something for the guest to do.
#[derive(Debug)]
pub(crate) struct Step {
    /// What the report calls it; one word.
    pub(crate) name: &'static str,
    /// The program on this machine.
    pub(crate) program: PathBuf,
    /// Its arguments, without tabs.
    pub(crate) arguments: &'static [&'static str],
    /// Another program that it starts, by the variable of the environment that names it.
    pub(crate) starts: Option<(&'static str, PathBuf)>,
}

/// The archive from which `kernel` starts and does `steps`.
pub(crate) fn build(tools: &Tools, kernel: &Kernel, steps: &[Step]) -> Result<Vec<u8>> {
    let mut archive = Archive::default();
    for dir in ["proc", "sys", "tmp", "modules", LIBRARIES] {
        archive.directory(dir)?;
    }
    // The kernel opens it for the first program before that one can mount anything.
    archive.device("dev/console", 5, 1)?;
    archive.file("init", INIT.as_bytes().to_vec(), 0o755)?;
    archive.file("bin/busybox", read(&tools.busybox)?, 0o755)?;
    for (at, module) in kernel.modules.iter().enumerate() {
        let bytes = decompressed(&tools.busybox, module)?;
        // The guest loads them by name.
        archive.file(&format!("modules/{at:02}.ko"), bytes, 0o644)?;
    }
    let mut libraries = BTreeMap::new();
    archive.file("bin/ip", read(&tools.ip)?, 0o755)?;
    libraries.extend(dependencies(&tools.ip, &tools.ip_libraries)?);
    let mut script = String::new();
    for step in steps {
        let path = format!("steps.d/{}", step.name);
        archive.file(&path, read(&step.program)?, 0o755)?;
        libraries.extend(dependencies(&step.program, &[])?);
        let mut words = vec![step.name.to_owned()];
        if let Some((variable, program)) = &step.starts {
            let name = program.file_name().and_then(|name| name.to_str());
            let path = format!("bin/{}", name.context("a program has a name")?);
            archive.file(&path, read(program)?, 0o755)?;
            libraries.extend(dependencies(program, &[])?);
            words.extend([
                "busybox".into(),
                "env".into(),
                format!("{variable}=/{path}"),
            ]);
        }
        words.push(format!("/{path}"));
        words.extend(step.arguments.iter().map(|&word| word.to_owned()));
        script.push_str(&words.join("\t"));
        script.push('\n');
    }
    archive.file("steps", script.into_bytes(), 0o644)?;
    for (name, file) in libraries {
        archive.file(name.trim_start_matches('/'), read(&file)?, 0o755)?;
    }
    archive.bytes()
}

/// What goes into every guest beside kernel and steps.
pub(crate) struct Tools {
    /// Debian's static busybox.
    busybox: PathBuf,
    /// iproute2's `ip`, which can say what hangs on an XDP hook as busybox's cannot.
    ip: PathBuf,
    /// Where the libraries of `ip` are, if not in the usual place.
    ip_libraries: Vec<PathBuf>,
}

impl Tools {
    /// Finds them, and fetches privately what the machine lacks.
    pub(crate) fn find(workspace: &Workspace) -> Result<Self> {
        let _lock = workspace.lock_tools()?;
        let dir = apt::group_dir(workspace, "busybox");
        if !apt::is_complete(&dir, &[BUSYBOX]) {
            apt::unpack(workspace, "busybox", &[BUSYBOX], &[])?;
        }
        let busybox = apt::unpacked(&dir, "busybox")?;
        if let Some(ip) = exec::which("ip", &[]) {
            return Ok(Self {
                busybox,
                ip,
                ip_libraries: Vec::new(),
            });
        }
        let dir = apt::group_dir(workspace, IPROUTE);
        if !apt::is_complete(&dir, &[IPROUTE]) {
            apt::unpack(workspace, IPROUTE, &[IPROUTE], &["ip"])?;
        }
        Ok(Self {
            busybox,
            ip: apt::unpacked(&dir, "ip")?,
            ip_libraries: apt::unpacked_libs(&dir.join("root")),
        })
    }
}

/// Where in the guest each shared object goes that `program` is started with, and where it is
/// here. Nothing for a static program.
fn dependencies(program: &Path, search: &[PathBuf]) -> Result<BTreeMap<String, PathBuf>> {
    let path = std::env::join_paths(search).context("a directory of libraries holds a colon")?;
    let output = Command::new("ldd")
        .arg(program)
        .env("LC_ALL", "C")
        .env("LD_LIBRARY_PATH", path)
        .stdin(Stdio::null())
        .output()
        .context("cannot run ldd")?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    if !output.status.success() && !said.contains("not a dynamic executable") {
        bail!("ldd {}: {}", program.display(), said.trim());
    }
    listed(&text).with_context(|| format!("libraries of {}", program.display()))
}

/// Reads the output of ldd: `NAME => FILE (ADDRESS)` for a library, `FILE (ADDRESS)` for the
/// interpreter, which is looked for at just that path, and `NAME (ADDRESS)` for what the kernel
/// brings itself.
fn listed(text: &str) -> Result<BTreeMap<String, PathBuf>> {
    let mut found = BTreeMap::new();
    for line in text.lines() {
        let words: Vec<&str> = line.split_whitespace().collect();
        match words[..] {
            [name, "=>", "not", "found"] => bail!("{name} is not found"),
            [name, "=>", file, _] if !name.contains('/') => {
                found.insert(format!("/{LIBRARIES}/{name}"), PathBuf::from(file));
            }
            [file, _] | [_, "=>", file, _] if file.starts_with('/') => {
                found.insert(file.to_owned(), PathBuf::from(file));
            }
            _ => {}
        }
    }
    Ok(found)
}

/// A kernel module as the kernel takes it.
fn decompressed(busybox: &Path, module: &Path) -> Result<Vec<u8>> {
    let applet = match module.extension().and_then(|extension| extension.to_str()) {
        Some("xz") => "xzcat",
        Some("gz") => "zcat",
        _ => return read(module),
    };
    let output = Command::new(busybox)
        .arg(applet)
        .arg(module)
        .stdin(Stdio::null())
        .stderr(Stdio::inherit())
        .output()
        .with_context(|| format!("cannot run {}", busybox.display()))?;
    if !output.status.success() {
        bail!("{} cannot be decompressed", module.display());
    }
    Ok(output.stdout)
}

fn read(file: &Path) -> Result<Vec<u8>> {
    fs::read(file).with_context(|| format!("cannot read {}", file.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn libraries_and_interpreter_are_read() {
        let found = listed(
            "\tlinux-vdso.so.1 (0x00007ffc)\n\
             \tlibc.so.6 => /lib/x86_64-linux-gnu/libc.so.6 (0x00007f00)\n\
             \t/lib64/ld-linux-x86-64.so.2 (0x00007f11)\n",
        )
        .unwrap();
        let expected = [
            ("/lib/guest/libc.so.6", "/lib/x86_64-linux-gnu/libc.so.6"),
            ("/lib64/ld-linux-x86-64.so.2", "/lib64/ld-linux-x86-64.so.2"),
        ];
        let expected = expected.map(|(to, from)| (to.to_owned(), PathBuf::from(from)));
        assert_eq!(found, BTreeMap::from(expected));
        assert_eq!(listed("\tstatically linked\n").unwrap(), BTreeMap::new());
        assert!(listed("\tlibx.so.1 => not found\n").is_err());
    }

    #[test]
    fn a_program_of_this_machine_is_resolved() {
        let this = std::env::current_exe().unwrap();
        for file in dependencies(&this, &[]).unwrap().values() {
            assert!(file.is_file(), "{}", file.display());
        }
    }
}
