//! Settings of the kernel, below `/proc/sys`.

use std::{
    fs,
    io::{self, Write},
    path::{Path, PathBuf},
};

use edge_common::defence::reply::feature;

use crate::services::facts::TcpMemory;

/// Where they are.
pub const ROOT: &str = "/proc/sys";

/// A setting that cannot be read or set.
#[derive(Debug, thiserror::Error)]
#[error("{}: {source}", path.display())]
pub struct SysctlError {
    /// Its file.
    pub path: PathBuf,
    /// Why.
    pub source: io::Error,
}

/// The value of a setting such as `net/ipv4/tcp_sack`.
///
/// # Errors
/// When it cannot be read.
pub fn read(root: &Path, name: &str) -> Result<String, SysctlError> {
    let path = root.join(name);
    match fs::read_to_string(&path) {
        Ok(text) => Ok(text.trim().to_owned()),
        Err(source) => Err(SysctlError { path, source }),
    }
}

/// Sets a setting.
///
/// # Errors
/// When the kernel does not take the value.
pub fn write(root: &Path, name: &str, value: &str) -> Result<(), SysctlError> {
    let path = root.join(name);
    // Not created, should it not exist.
    let written = fs::OpenOptions::new()
        .write(true)
        .truncate(true)
        .open(&path)
        .and_then(|mut file| file.write_all(value.as_bytes()));
    written.map_err(|source| SysctlError { path, source })
}

/// What the host's TCP grants to those who ask ([`feature`]).
///
/// # Errors
/// When a setting cannot be read.
pub fn tcp_features(root: &Path) -> Result<u32, SysctlError> {
    let number = |name: &str| -> Result<i64, SysctlError> {
        // What is no number grants nothing.
        Ok(read(root, name)?.parse().unwrap_or(0))
    };
    let mut features = 0;
    let mut grant = |bit, granted| features |= if granted { bit } else { 0 };
    grant(feature::TIMESTAMPS, number("net/ipv4/tcp_timestamps")? == 2);
    grant(feature::SACK, number("net/ipv4/tcp_sack")? != 0);
    grant(
        feature::WINDOW_SCALE,
        number("net/ipv4/tcp_window_scaling")? != 0,
    );
    grant(feature::ECN, number("net/ipv4/tcp_ecn")? > 0);
    Ok(features)
}

/// What window scales are computed from.
///
/// # Errors
/// When a setting cannot be read.
pub fn tcp_memory(root: &Path) -> Result<TcpMemory, SysctlError> {
    let rmem = read(root, "net/ipv4/tcp_rmem")?;
    let mut values = rmem.split_whitespace().map(|n| n.parse().unwrap_or(0));
    let (_, rmem_default, rmem_limit) = (values.next(), values.next(), values.next());
    Ok(TcpMemory {
        rmem_default: rmem_default.unwrap_or(0),
        rmem_limit: rmem_limit.unwrap_or(0),
        // Of the whole host: a namespace of kernels before 6.12 does not see it.
        rmem_max: match read(root, "net/core/rmem_max") {
            Ok(text) => text.parse().unwrap_or(0),
            Err(_) => 0,
        },
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_tcp_grants_follows_the_settings() {
        let root = tempfile::tempdir().unwrap();
        fs::create_dir_all(root.path().join("net/ipv4")).unwrap();
        let set = |name: &str, value: &str| {
            fs::write(root.path().join("net/ipv4").join(name), value).unwrap();
        };
        set("tcp_timestamps", "1\n");
        set("tcp_sack", "1\n");
        set("tcp_window_scaling", "0\n");
        let missing = tcp_features(root.path()).unwrap_err();
        assert!(
            missing.to_string().contains("net/ipv4/tcp_ecn: "),
            "{missing}"
        );
        set("tcp_ecn", "2\n");
        assert_eq!(
            tcp_features(root.path()).unwrap(),
            feature::SACK | feature::ECN
        );
        set("tcp_timestamps", "2\n");
        set("tcp_ecn", "0\n");
        assert_eq!(
            tcp_features(root.path()).unwrap(),
            feature::SACK | feature::TIMESTAMPS
        );
        set("tcp_rmem", "4096\t131072\t6291456\n");
        let memory = tcp_memory(root.path()).unwrap();
        assert_eq!(
            (memory.rmem_default, memory.rmem_limit),
            (131_072, 6_291_456)
        );
    }

    #[test]
    fn a_setting_that_does_not_exist_is_not_made() {
        let root = tempfile::tempdir().unwrap();
        let error = write(root.path(), "a", "1").unwrap_err();
        assert!(error.to_string().contains("/a: "), "{error}");
        assert!(!root.path().join("a").exists());
    }
}
