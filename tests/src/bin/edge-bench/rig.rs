//! The daemon and the command line as an operator runs them, on a host of their own.

use std::{
    fs::File,
    io::{BufWriter, Write as _},
    path::Path,
    process::Command,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use edge_common::addr::Prefix;
use edge_tests::daemon::{Installation, binary};
use serde_json::Value;

use crate::edge::ALL_ON;

/// Everything on, and room for so many entries.
pub(crate) fn settings(hosts_v4: u32, hosts_v6: u32, prefixes: u32) -> String {
    // Bogons and the hosts that a measurement adds come on top.
    let room = |entries: u32| entries + 1_000;
    format!(
        "tables = {{ hosts_v4 = {}, hosts_v6 = {}, prefixes = {} }}\n{ALL_ON}",
        room(hosts_v4),
        room(hosts_v6),
        room(prefixes)
    )
}

/// `edge` with arguments. Not through the namespace of the host, which the control
/// socket does not need: entering it would be measured as well.
pub(crate) fn edge(installation: &Installation<'_>, arguments: &[&str]) -> Command {
    let mut command = Command::new(binary());
    command
        .arg("--socket")
        .arg(installation.socket())
        .args(arguments);
    command
}

/// What an import did.
pub(crate) struct Imported {
    /// From the start of the command to its end.
    pub(crate) took: Duration,
    /// Entries that are new on the list.
    pub(crate) added: u64,
}

/// Imports entries into the blacklist, from a file that is written for it.
pub(crate) fn import(
    installation: &Installation<'_>,
    entries: impl IntoIterator<Item = Prefix>,
) -> Result<Imported> {
    let path = installation.file("feed.txt");
    write(&path, entries).with_context(|| format!("cannot write {}", path.display()))?;
    let mut command = edge(installation, &["--json", "blacklist", "import"]);
    let start = Instant::now();
    let output = command.arg(&path).output()?;
    let took = start.elapsed();
    ensure!(
        output.status.success(),
        "edge blacklist import: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    let answer: Value = serde_json::from_slice(&output.stdout)?;
    let added = answer
        .get("added")
        .and_then(Value::as_u64)
        .with_context(|| format!("edge blacklist import printed {answer}"))?;
    Ok(Imported { took, added })
}

fn write(path: &Path, entries: impl IntoIterator<Item = Prefix>) -> std::io::Result<()> {
    let mut file = BufWriter::new(File::create(path)?);
    for entry in entries {
        writeln!(file, "{entry}")?;
    }
    file.flush()
}
