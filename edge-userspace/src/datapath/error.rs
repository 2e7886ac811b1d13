//! What can go wrong between the daemon and the kernel, said so that the
//! operator knows what to do.

use std::{io, path::PathBuf};

use aya::{EbpfError, maps::MapError, programs::ProgramError};
use thiserror::Error;

/// An error of the datapath. Nothing was changed when one is returned, unless
/// it says otherwise.
#[derive(Debug, Error)]
pub enum DatapathError {
    /// Capabilities are missing.
    #[error(
        "not allowed to load XDP programs: {missing} missing; run Edge as root, with at least \
         CAP_BPF, CAP_PERFMON and CAP_NET_ADMIN"
    )]
    NotPermitted {
        /// Names of the missing capabilities.
        missing: String,
    },

    /// The pin directory does not lie on a BPF file system.
    #[error(
        "{} is not on a BPF file system; mount one with `mount -t bpf bpf /sys/fs/bpf`, or point \
         `paths.bpffs_dir` to one (`ip netns exec` hides the usual one: enter namespaces with nsenter)",
        path.display()
    )]
    NoBpffs {
        /// The directory asked for.
        path: PathBuf,
    },

    /// Another process works on the same pins.
    #[error(
        "another Edge daemon is using {}; stop it, or give this one its own `paths.bpffs_dir`",
        path.display()
    )]
    InUse {
        /// The pin directory.
        path: PathBuf,
    },

    /// Somebody else can write to the pin directory.
    #[error(
        "{} belongs to another user or others may write to it; remove it, or give `paths.bpffs_dir` \
         another place",
        path.display()
    )]
    NotOurs {
        /// The pin directory.
        path: PathBuf,
    },

    /// A pin or its directory cannot be worked on.
    #[error("cannot {action} {}: {source}", path.display())]
    Pin {
        /// What was tried.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },

    /// A configured interface does not exist.
    #[error("interface '{name}' does not exist in this network namespace; there are: {known}")]
    UnknownInterface {
        /// The name as configured.
        name: String,
        /// Names that exist.
        known: String,
    },

    /// Another program sits on the XDP hook.
    #[error("{interface}: the XDP hook is held by {holder}; {remedy}")]
    HookHeld {
        /// The interface.
        interface: String,
        /// The other program, by name and id.
        holder: String,
        /// How to get rid of it.
        remedy: String,
    },

    /// The driver takes no program, and generic mode is not allowed.
    #[error(
        "{interface}: the driver takes no native XDP program: {why}; change that, or allow the \
         slower generic mode with `xdp.allow_generic = true` (`edge decap`: `--allow-generic`)"
    )]
    NoNative {
        /// The interface.
        interface: String,
        /// The driver's words, or the error number's.
        why: String,
    },

    /// Attaching failed for any other reason.
    #[error("{interface}: cannot attach the XDP program: {why}")]
    Attach {
        /// The interface.
        interface: String,
        /// What the kernel said.
        why: String,
    },

    /// The interface runs in generic mode and must not any more.
    #[error(
        "{interface} is attached in generic mode, which `xdp.allow_generic = false` forbids; take it \
         out of `interfaces`, reload, and put it back, so that it is attached anew"
    )]
    AttachedGeneric {
        /// The interface.
        interface: String,
    },

    /// The kernel refuses the program.
    #[error("the kernel does not take the XDP program for {interface}: {why}")]
    Load {
        /// The interface it was meant for.
        interface: String,
        /// The error and the end of the verifier's log.
        why: String,
    },

    /// A map is not what the daemon was built for.
    #[error("map {map}: {why}")]
    Map {
        /// Name of the map.
        map: &'static str,
        /// What is wrong.
        why: String,
    },

    /// A map operation failed.
    #[error("map {map}: {source}")]
    MapAccess {
        /// Name of the map.
        map: &'static str,
        /// What the kernel said.
        source: Box<MapError>,
    },

    /// The kernel's list of interfaces cannot be read.
    #[error("cannot ask the kernel about network interfaces: {0}")]
    Netlink(#[source] io::Error),

    /// A table cannot be mapped into memory.
    #[error("cannot map table {map} into memory: {source}")]
    Memory {
        /// Name of the map.
        map: &'static str,
        /// What the kernel said.
        source: io::Error,
    },
}

/// The most bytes of a verifier log in an error.
const LOG_TAIL: usize = 4096;

impl DatapathError {
    pub(super) fn pin(action: &'static str, path: impl Into<PathBuf>, source: io::Error) -> Self {
        Self::Pin {
            action,
            path: path.into(),
            source,
        }
    }

    pub(super) fn map_access(map: &'static str, source: MapError) -> Self {
        Self::MapAccess {
            map,
            source: Box::new(source),
        }
    }

    /// From a failed load: the cause, and the end of a log that may be megabytes long.
    pub(super) fn load(interface: &str, error: &EbpfError) -> Self {
        let mut why = match error {
            EbpfError::ProgramError(ProgramError::LoadError {
                io_error,
                verifier_log,
            }) => format!(
                "{io_error}; end of the verifier's log:\n{}",
                tail(&verifier_log.to_string())
            ),
            other => chain(other),
        };
        if !std::path::Path::new("/sys/kernel/btf/vmlinux").exists() {
            why.push_str(
                "\n(this kernel has no BTF; Edge is made for kernels with CONFIG_DEBUG_INFO_BTF)",
            );
        }
        Self::Load {
            interface: interface.into(),
            why,
        }
    }
}

/// An error with all its causes in one line.
pub(super) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(e) = cause {
        let more = e.to_string();
        // Some errors print their source themselves.
        if !text.contains(&more) {
            text.push_str(": ");
            text.push_str(&more);
        }
        cause = e.source();
    }
    text
}

fn tail(log: &str) -> &str {
    let mut start = log.len().saturating_sub(LOG_TAIL);
    while !log.is_char_boundary(start) {
        start += 1;
    }
    log.get(start..).unwrap_or(log)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_tail_of_a_log_is_bounded_and_whole_characters() {
        let log = "é".repeat(LOG_TAIL);
        let end = tail(&log);
        assert!(end.len() <= LOG_TAIL && end.len() > LOG_TAIL - 2);
        assert_eq!(tail("short"), "short");
    }
}
