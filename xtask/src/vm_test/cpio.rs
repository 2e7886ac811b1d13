//! The archive that a kernel unpacks as its first file system: cpio, format "newc"
//! (Documentation/driver-api/early-userspace/buffer-format.rst of Linux).

use std::collections::BTreeMap;

use anyhow::{Context as _, Result, bail};

/// Starts every header.
const MAGIC: &str = "070701";
/// Name of the entry that ends the archive.
const TRAILER: &str = "TRAILER!!!";
/// Headers and contents start at a multiple of this.
const ALIGNMENT: usize = 4;

/// Types of files in a mode (inode(7)).
const DIRECTORY: u32 = 0o040_000;
const REGULAR: u32 = 0o100_000;
const CHARACTER_DEVICE: u32 = 0o020_000;

/// An archive in the making. Directories that lead to a file are made with it.
#[derive(Debug, Default)]
pub(crate) struct Archive {
    // Sorted, so that a directory comes before what is in it.
    entries: BTreeMap<String, Entry>,
}

#[derive(Debug, PartialEq, Eq)]
struct Entry {
    mode: u32,
    device: (u32, u32),
    data: Vec<u8>,
}

impl Archive {
    /// Adds a file. Paths have no leading slash.
    pub(crate) fn file(&mut self, path: &str, data: Vec<u8>, permissions: u32) -> Result<()> {
        self.add(path, REGULAR | permissions, (0, 0), data)
    }

    /// Adds an empty directory.
    pub(crate) fn directory(&mut self, path: &str) -> Result<()> {
        self.add(path, DIRECTORY | 0o755, (0, 0), Vec::new())
    }

    /// Adds a character device by its major and minor number.
    pub(crate) fn device(&mut self, path: &str, major: u32, minor: u32) -> Result<()> {
        self.add(path, CHARACTER_DEVICE | 0o600, (major, minor), Vec::new())
    }

    fn add(&mut self, path: &str, mode: u32, device: (u32, u32), data: Vec<u8>) -> Result<()> {
        let plain = |part: &str| !matches!(part, "" | "." | "..") && !part.contains('\0');
        if !path.split('/').all(plain) {
            bail!("{path:?} cannot be a path in the guest");
        }
        for (at, _) in path.match_indices('/') {
            let parent = self.entries.entry(path[..at].to_owned());
            let parent = parent.or_insert_with(|| Entry {
                mode: DIRECTORY | 0o755,
                device: (0, 0),
                data: Vec::new(),
            });
            if parent.mode & DIRECTORY == 0 {
                bail!("{path:?} is below a file in the guest");
            }
        }
        let entry = Entry { mode, device, data };
        match self.entries.insert(path.to_owned(), entry) {
            Some(former) if former.mode != mode || mode & DIRECTORY == 0 => {
                bail!("{path:?} is in the guest twice")
            }
            _ => Ok(()),
        }
    }

    /// The bytes of the archive.
    pub(crate) fn bytes(&self) -> Result<Vec<u8>> {
        let size: usize = self.entries.values().map(|entry| entry.data.len()).sum();
        let mut out = Vec::with_capacity(size.saturating_add(self.entries.len() * 256));
        let mut inode = 0;
        for (path, entry) in &self.entries {
            inode += 1;
            append(&mut out, path, inode, entry)?;
        }
        let trailer = Entry {
            mode: 0,
            device: (0, 0),
            data: Vec::new(),
        };
        append(&mut out, TRAILER, 0, &trailer)?;
        Ok(out)
    }
}

fn append(out: &mut Vec<u8>, path: &str, inode: u32, entry: &Entry) -> Result<()> {
    let size = u32::try_from(entry.data.len())
        .with_context(|| format!("{path} is too large for the guest's file system"))?;
    let name = u32::try_from(path.len() + 1).with_context(|| format!("{path} is too long"))?;
    let links = if entry.mode & DIRECTORY == 0 { 1 } else { 2 };
    let (major, minor) = entry.device;
    // Inode, mode, uid, gid, links, mtime, size, device of the archive (2), device of the entry
    // (2), length of the name with its zero, checksum (unused).
    let fields = [
        inode, entry.mode, 0, 0, links, 0, size, 0, 0, major, minor, name, 0,
    ];
    out.extend_from_slice(MAGIC.as_bytes());
    for field in fields {
        out.extend_from_slice(format!("{field:08x}").as_bytes());
    }
    out.extend_from_slice(path.as_bytes());
    out.push(0);
    pad(out);
    out.extend_from_slice(&entry.data);
    pad(out);
    Ok(())
}

fn pad(out: &mut Vec<u8>) {
    out.resize(out.len().next_multiple_of(ALIGNMENT), 0);
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What an archive holds, read back.
    fn read(bytes: &[u8]) -> Vec<(String, Entry)> {
        let mut at = 0;
        let mut found = Vec::new();
        loop {
            assert_eq!(at % ALIGNMENT, 0);
            assert_eq!(&bytes[at..at + 6], MAGIC.as_bytes());
            let field = |n: usize| {
                let text = &bytes[at + 6 + 8 * n..at + 14 + 8 * n];
                u32::from_str_radix(std::str::from_utf8(text).unwrap(), 16).unwrap()
            };
            let (mode, size, name) = (field(1), field(6) as usize, field(11) as usize);
            let device = (field(9), field(10));
            at += 110;
            assert_eq!(bytes[at + name - 1], 0);
            let path = String::from_utf8(bytes[at..at + name - 1].to_vec()).unwrap();
            at = (at + name).next_multiple_of(ALIGNMENT);
            let data = bytes[at..at + size].to_vec();
            at = (at + size).next_multiple_of(ALIGNMENT);
            if path == TRAILER {
                assert_eq!(at, bytes.len());
                return found;
            }
            found.push((path, Entry { mode, device, data }));
        }
    }

    #[test]
    fn what_goes_in_comes_out_directories_first() {
        let mut archive = Archive::default();
        archive
            .file("bin/tool", b"#!/bin/sh\n".to_vec(), 0o755)
            .unwrap();
        archive.file("a", b"x".to_vec(), 0o644).unwrap();
        archive.directory("proc").unwrap();
        archive.device("dev/console", 5, 1).unwrap();
        let expected = [
            ("a", 0o100_644, (0, 0), &b"x"[..]),
            ("bin", 0o040_755, (0, 0), b""),
            ("bin/tool", 0o100_755, (0, 0), b"#!/bin/sh\n"),
            ("dev", 0o040_755, (0, 0), b""),
            ("dev/console", 0o020_600, (5, 1), b""),
            ("proc", 0o040_755, (0, 0), b""),
        ];
        let found = read(&archive.bytes().unwrap());
        assert_eq!(found.len(), expected.len());
        for (found, (path, mode, device, data)) in found.iter().zip(expected) {
            let data = data.to_vec();
            assert_eq!(*found, (path.to_owned(), Entry { mode, device, data }));
        }
    }

    #[test]
    fn paths_stay_inside_and_files_are_unique() {
        let mut archive = Archive::default();
        for path in ["", "/a", "a//b", "../a", "a/./b", "a\0b"] {
            assert!(archive.directory(path).is_err(), "{path:?}");
        }
        archive.file("a", Vec::new(), 0o644).unwrap();
        assert!(archive.file("a", Vec::new(), 0o644).is_err());
        assert!(archive.file("a/b", Vec::new(), 0o644).is_err());
        archive.directory("d").unwrap();
        archive.directory("d").unwrap();
        assert!(archive.file("d", Vec::new(), 0o644).is_err());
    }
}
