//! Whether a privileged process may start a program.

use std::{
    fs::{self, Metadata},
    io,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
};

/// Why it may not.
#[derive(Debug, thiserror::Error)]
pub(super) enum BinaryError {
    /// There is none, or nobody may look at it.
    #[error("{}: {source}", .path.display())]
    Missing {
        /// What was looked at.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
    /// It is a directory or a device.
    #[error("{}: no regular file", .0.display())]
    NoFile(PathBuf),
    /// It has no mode of a program.
    #[error("{}: not executable; chmod 755", .0.display())]
    NotExecutable(PathBuf),
    /// Others could put something else in its place.
    #[error(
        "{}: others than root and the daemon's user may write it, and what they wrote would run \
         with the daemon's privileges; chown it to root and take their right away (chmod go-w)",
        .0.display()
    )]
    Writable(PathBuf),
}

/// The path of a program without links, if only root and the user of this process can change
/// what is there.
///
/// # Errors
/// [`BinaryError`].
pub(super) fn checked(path: &Path) -> Result<PathBuf, BinaryError> {
    let missing = |path: &Path| {
        let path = path.to_path_buf();
        move |source| BinaryError::Missing { path, source }
    };
    let path = path.canonicalize().map_err(missing(path))?;
    let metadata = fs::metadata(&path).map_err(missing(&path))?;
    if !metadata.is_file() {
        return Err(BinaryError::NoFile(path));
    }
    if metadata.mode() & 0o111 == 0 {
        return Err(BinaryError::NotExecutable(path));
    }
    // SAFETY: no preconditions, and it always succeeds (geteuid(2)).
    let own = unsafe { libc::geteuid() };
    for part in path.ancestors() {
        let metadata = fs::metadata(part).map_err(missing(part))?;
        if is_others(&metadata, own) {
            return Err(BinaryError::Writable(part.to_path_buf()));
        }
    }
    Ok(path)
}

/// Whether others than root and a user can change what is there. In a directory with the sticky
/// bit everybody may change only what is their own (inode(7)).
fn is_others(metadata: &Metadata, own: u32) -> bool {
    let is_sticky = metadata.is_dir() && metadata.mode() & 0o1000 != 0;
    let is_writable = metadata.mode() & 0o022 != 0 && !is_sticky;
    is_writable || ![0, own].contains(&metadata.uid())
}

#[cfg(test)]
mod tests {
    use std::{fs::Permissions, os::unix::fs::PermissionsExt as _};

    use super::*;

    #[test]
    fn only_what_nobody_else_can_change_is_started() {
        let dir = tempfile::tempdir().unwrap();
        let inner = dir.path().join("bin");
        fs::create_dir(&inner).unwrap();
        let file = inner.join("edge");
        fs::write(&file, "#!/bin/sh\n").unwrap();
        let mode = |path: &Path, mode| fs::set_permissions(path, Permissions::from_mode(mode));
        let wrong = |path: &Path| checked(path).unwrap_err().to_string();
        mode(&inner, 0o755).unwrap();
        mode(&file, 0o644).unwrap();
        assert!(wrong(&file).contains("not executable"));
        mode(&file, 0o755).unwrap();
        let real = file.canonicalize().unwrap();
        assert_eq!(checked(&file).unwrap(), real);
        let link = dir.path().join("link");
        std::os::unix::fs::symlink(&file, &link).unwrap();
        assert_eq!(checked(&link).unwrap(), real);
        for others in [0o775, 0o757] {
            mode(&file, others).unwrap();
            assert!(
                wrong(&file).contains("edge: others than root"),
                "{others:o}"
            );
            mode(&file, 0o755).unwrap();
            mode(&inner, others).unwrap();
            assert!(wrong(&file).contains("bin: others than root"), "{others:o}");
            mode(&inner, 0o1000 | others).unwrap();
            checked(&file).unwrap();
            mode(&inner, 0o755).unwrap();
        }
        assert!(wrong(&inner).contains("no regular file"));
        assert!(wrong(&dir.path().join("none")).contains("none: "));
    }

    #[test]
    fn files_of_another_user_are_not_started() {
        let metadata = fs::metadata("/proc/self/exe").unwrap();
        assert!(!is_others(&fs::metadata("/").unwrap(), metadata.uid()));
        let file = tempfile::NamedTempFile::new().unwrap();
        let metadata = file.as_file().metadata().unwrap();
        let own = metadata.uid();
        assert!(!is_others(&metadata, own));
        assert_eq!(is_others(&metadata, own + 1), own != 0);
    }
}
