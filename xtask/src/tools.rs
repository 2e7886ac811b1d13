//! The programs that tests and the demonstration run.

use std::path::PathBuf;

use anyhow::{Context as _, Result};

use crate::apt;
use crate::exec;
use crate::workspace::Workspace;

/// A program and the Debian package that has it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Tool {
    /// The command.
    pub(crate) command: &'static str,
    /// The Debian package.
    pub(crate) package: &'static str,
    /// What it is for, shown when it is missing.
    pub(crate) purpose: &'static str,
}

/// All of them.
pub(crate) const TOOLS: [Tool; 11] = [
    Tool {
        command: "ip",
        package: "iproute2",
        purpose: "makes the network namespaces",
    },
    Tool {
        command: "ethtool",
        package: "ethtool",
        purpose: "switches offloads of test links",
    },
    Tool {
        command: "nginx",
        package: "nginx-light",
        purpose: "the server that is protected",
    },
    Tool {
        command: "curl",
        package: "curl",
        purpose: "the client",
    },
    Tool {
        command: "nft",
        package: "nftables",
        purpose: "the firewall the bench compares with",
    },
    Tool {
        command: "xdp-filter",
        package: "xdp-tools",
        purpose: "the blacklist the bench compares with",
    },
    Tool {
        command: "promtool",
        package: "prometheus",
        purpose: "checks the metrics",
    },
    Tool {
        command: "tcpdump",
        package: "tcpdump",
        purpose: "reads the packets of an attack",
    },
    Tool {
        command: "haproxy",
        package: "haproxy",
        purpose: "the proxy the bench compares with",
    },
    Tool {
        command: "h2load",
        package: "nghttp2-client",
        purpose: "the load on proxies",
    },
    Tool {
        command: "systemd-socket-activate",
        package: "systemd",
        purpose: "opens sockets as a service manager does",
    },
];

/// Where `tool` is, if anywhere: on `PATH`, in an administration directory, or unpacked by set-up.
pub(crate) fn find(workspace: &Workspace, tool: &Tool) -> Option<PathBuf> {
    exec::which(tool.command, &[&workspace.tools_bin()])
}

/// Unpacks `tool` privately and puts a wrapper into the tools' `bin`.
pub(crate) fn install(workspace: &Workspace, tool: &Tool) -> Result<()> {
    apt::unpack(workspace, tool.package, &[tool.package], &[tool.command])?;
    let bin = workspace.tools_bin();
    std::fs::create_dir_all(&bin).with_context(|| format!("cannot make {}", bin.display()))?;
    let link = bin.join(tool.command);
    if link.is_symlink() {
        std::fs::remove_file(&link).with_context(|| format!("cannot remove {}", link.display()))?;
    }
    let wrapper = PathBuf::from(format!("../debian/{}/bin/{}", tool.package, tool.command));
    std::os::unix::fs::symlink(wrapper, &link)
        .with_context(|| format!("cannot make {}", link.display()))
}
