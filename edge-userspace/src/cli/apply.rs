//! `edge apply`: another configuration, and what it changes.

use std::{
    fmt::Write as _,
    fs,
    io::{self, Write},
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
};

use serde::Serialize;

use super::{Error, ask, output::Out, status, unexpected};
use crate::{
    clock, config,
    control::{
        client::ClientError,
        protocol::{Comparison, MAX_LINE, Request, Response},
    },
    durable,
};

/// `edge apply`.
pub(super) fn apply<W: Write>(
    path: &Path,
    dry_run: bool,
    socket: &Path,
    out: &mut Out<W>,
) -> Result<(), Error> {
    #[derive(Serialize)]
    struct Applied {
        #[serde(flatten)]
        comparison: Comparison,
        generation: Option<u64>,
        notes: Vec<String>,
    }
    let (text, _) = config::load_text(path, clock::coarse_tick_ns())?;
    let comparison = compare(path, &text, socket)?;
    if !out.json {
        out.text(&told(&comparison))?;
        out.flush()?;
    }
    let reloaded = match dry_run {
        true => None,
        false => Some(replace(path, &text, socket)?),
    };
    let (generation, notes) = reloaded.map_or((None, Vec::new()), |(g, n)| (Some(g), n));
    let applied = Applied {
        comparison,
        generation,
        notes,
    };
    out.either(&applied, || match generation {
        None => "Nothing is changed: a dry run.\n".to_owned(),
        Some(generation) => format!("Generation {generation} is in force.\n"),
    })?;
    Ok(())
}

/// What the daemon says that a configuration would change.
pub(super) fn compare(path: &Path, text: &str, socket: &Path) -> Result<Comparison, Error> {
    // As a JSON text it takes a little more.
    let request = Request::Compare {
        text: text.to_owned(),
        file: path.display().to_string(),
    };
    let len = serde_json::to_vec(&request).map_or(usize::MAX, |line| line.len());
    if len + 64 > MAX_LINE {
        return Err(Error::Failed(format!(
            "{}: too large to be compared with what is in force ({len} bytes as a request, of at \
             most {MAX_LINE}); put it where the daemon reads its own and use `edge reload`",
            path.display()
        )));
    }
    match ask(socket, request)? {
        Response::Comparison(comparison) => Ok(comparison),
        other => Err(unexpected(socket, &other)),
    }
}

/// A comparison for people.
pub(super) fn told(comparison: &Comparison) -> String {
    let mut text = String::new();
    // Writing to a string cannot fail.
    for warning in &comparison.warnings {
        let _ = writeln!(text, "warning: {warning}");
    }
    for change in &comparison.changes {
        let _ = writeln!(text, "{change}");
    }
    for service in &comparison.services {
        let _ = writeln!(text, "{}", service.sentence);
    }
    if comparison.more_services > 0 {
        let _ = writeln!(
            text,
            "and {} more services change",
            comparison.more_services
        );
    }
    text
}

/// Puts a configuration in the place of the daemon's own, and into force: the generation, and
/// what there is to say of it.
fn replace(path: &Path, text: &str, socket: &Path) -> Result<(u64, Vec<String>), Error> {
    let own = match ask(socket, Request::Status {})? {
        Response::Status(status) => PathBuf::from(status.config.file),
        other => return Err(unexpected(socket, &other)),
    };
    let failed = |what: &str, e: &io::Error| {
        Error::Failed(format!("{}: cannot be {what}: {e}", own.display()))
    };
    if own.is_relative() {
        return Err(Error::Failed(format!(
            "the daemon was started with a relative path ({}), which means another file here; put \
             the configuration there and use `edge reload`",
            own.display()
        )));
    }
    // What it is, not a link to it, is replaced.
    let own = own.canonicalize().map_err(|e| failed("found", &e))?;
    if path.canonicalize().is_ok_and(|p| p == own) {
        return status::reload_request(socket);
    }
    let former = fs::read(&own).map_err(|e| failed("read", &e))?;
    let metadata = own.metadata().map_err(|e| failed("read", &e))?;
    let mode = metadata.permissions().mode() & 0o7777;
    durable::replace(&own, text.as_bytes(), mode).map_err(|e| failed("replaced", &e))?;
    let error = match status::reload_request(socket) {
        Ok(reloaded) => return Ok(reloaded),
        Err(error) => error,
    };
    let said = error.message().unwrap_or_default();
    // What is not known to have been refused may be in force.
    if !matches!(error, Error::Client(ClientError::Failed(_))) {
        return Err(Error::Failed(format!(
            "{said}; {} has the new configuration, and `edge status` tells whether it is in force",
            own.display()
        )));
    }
    Err(match durable::replace(&own, &former, mode) {
        Ok(()) => error,
        Err(e) => Error::Failed(format!(
            "{said}; and {} has the new configuration still, because the former one cannot be put \
             back: {e}",
            own.display()
        )),
    })
}
