//! Files that are replaced as a whole, or not at all.

use std::{
    fs::{self, File, OpenOptions, Permissions},
    io::{self, Write as _},
    os::unix::fs::{MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _, fchown},
    path::{Path, PathBuf},
};

/// Who may read and write what the daemon keeps for itself.
pub const PRIVATE: u32 = 0o600;

/// Names that are tried for the file that is to take the place of another.
const MOST_NAMES: u32 = 100;

/// Replaces a file, also one that is not there, and waits until the disk has it. `mode` are the
/// permissions of the new one; its owner and group are those of the former.
///
/// # Errors
/// When the disk does not take it: what was there before is there still, unless it is only
/// unknown whether the change would outlast a loss of power.
pub fn replace(path: &Path, bytes: &[u8], mode: u32) -> io::Result<()> {
    let (new, file) = create_beside(path)?;
    if let Err(e) = fill(&file, path, bytes, mode).and_then(|()| fs::rename(&new, path)) {
        // The first error counts.
        let _ = fs::remove_file(&new);
        return Err(e);
    }
    match path.parent() {
        Some(directory) if directory.as_os_str().is_empty() => File::open(".")?.sync_all(),
        Some(directory) => File::open(directory)?.sync_all(),
        None => Ok(()),
    }
}

fn fill(mut file: &File, path: &Path, bytes: &[u8], mode: u32) -> io::Result<()> {
    file.write_all(bytes)?;
    if let Ok(former) = path.metadata() {
        let own = file.metadata()?;
        if (own.uid(), own.gid()) != (former.uid(), former.gid()) {
            fchown(file, Some(former.uid()), Some(former.gid()))?;
        }
    }
    file.set_permissions(Permissions::from_mode(mode))?;
    file.sync_all()
}

/// A new file in the directory of another, under a name that nobody has: what is there is
/// never opened, nor followed.
fn create_beside(path: &Path) -> io::Result<(PathBuf, File)> {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let mut options = OpenOptions::new();
    options.write(true).create_new(true).mode(PRIVATE);
    let mut tried = 0;
    loop {
        let new = path.with_file_name(format!(".{name}.{}.{tried}", std::process::id()));
        match options.open(&new) {
            Ok(file) => return Ok((new, file)),
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists && tried < MOST_NAMES => tried += 1,
            Err(e) => return Err(e),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_replaced_with_its_permissions() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("edge.toml");
        for (text, mode) in [("one", 0o644), ("two", PRIVATE)] {
            replace(&path, text.as_bytes(), mode).unwrap();
            assert_eq!(fs::read_to_string(&path).unwrap(), text);
            assert_eq!(path.metadata().unwrap().permissions().mode() & 0o777, mode);
        }
        // Nothing else is left there.
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
        // What has the name of the new one is left alone.
        let taken = dir
            .path()
            .join(format!(".edge.toml.{}.0", std::process::id()));
        fs::write(&taken, "mine").unwrap();
        replace(&path, b"three", PRIVATE).unwrap();
        assert_eq!(fs::read_to_string(&taken).unwrap(), "mine");
        assert_eq!(fs::read_to_string(&path).unwrap(), "three");
        let missing = dir.path().join("none").join("edge.toml");
        assert!(replace(&missing, b"", PRIVATE).is_err());
    }
}
