//! The arguments of `edge upgrade`.

use std::path::PathBuf;

use clap::Args;

use super::duration;

pub(super) const EXAMPLES: &str = "\
Examples:
  install -m 755 edge /usr/local/bin/edge && edge upgrade
  edge upgrade --binary /opt/edge/edge-next --timeout 5m
  edge upgrade --json | jq .pid

The new process gets the arguments and the sockets of the old one. When it has put
everything into force, the old one takes no more connections and ends when those that
it has are done, at the latest after `proxy.drain_timeout`. When it fails, or is not
ready in time, the old one goes on, and why is told. The file must be one that only
root and the daemon's user can change.";

/// `edge upgrade`.
#[derive(Debug, Args)]
pub(in crate::cli) struct UpgradeArgs {
    /// The program [default: the file that the daemon was started from, as it is now]
    #[arg(long, value_name = "PATH")]
    pub(in crate::cli) binary: Option<PathBuf>,
    /// How long the new process may take to be ready.
    #[arg(long = "timeout", value_name = "TIME", value_parser = duration::parse,
          default_value = "60s")]
    pub(in crate::cli) timeout_s: u64,
}
