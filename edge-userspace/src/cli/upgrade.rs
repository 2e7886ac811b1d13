//! `edge upgrade`: a new process in the place of the daemon's.

use std::{
    io::Write,
    path::{self, Path, PathBuf},
};

use serde::Serialize;

use super::{Error, args::UpgradeArgs, output::Out, unexpected};
use crate::control::{
    client::Client,
    protocol::{Request, Response},
};

/// `edge upgrade`.
pub(super) fn upgrade<W: Write>(
    args: &UpgradeArgs,
    socket: &Path,
    out: &mut Out<W>,
) -> Result<(), Error> {
    #[derive(Serialize)]
    struct Upgraded {
        former_pid: u32,
        pid: u32,
        version: String,
    }
    // The daemon has another directory.
    let whole = |path: &Path| -> Result<PathBuf, Error> {
        path::absolute(path).map_err(|e| Error::Input(format!("{}: {e}", path.display())))
    };
    let request = Request::Upgrade {
        binary: args.binary.as_deref().map(whole).transpose()?,
        timeout_ms: args.timeout_s.saturating_mul(1000),
    };
    match Client::connect_to_upgrade(socket)?.call(request)? {
        Response::Upgraded {
            former_pid,
            pid,
            version,
        } => {
            let upgraded = Upgraded {
                former_pid,
                pid,
                version,
            };
            out.either(&upgraded, || {
                format!(
                    "Process {pid}, edge {}, has taken over; process {former_pid} ends when its \
                     connections have.\n",
                    upgraded.version
                )
            })?;
            Ok(())
        }
        other => Err(unexpected(socket, &other)),
    }
}
