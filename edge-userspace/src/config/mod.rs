//! The configuration file: text → raw → checked, immutable model.
//!
//! * `raw` (with `reader`, `quantity`, `report`): what the file says, typed,
//!   every key known, every value with its place;
//! * `validate`: what it means, and whether that can be;
//! * [`model`], [`limits`], [`services`], [`balance`], [`floods`], [`bogons`], [`proxy`]: the
//!   result;
//! * `kernel`, [`reload`], `describe`: what the program reads of it, what a
//!   change of it takes, and what it is in words.
//!
//! Whatever is wrong is reported in one go, each with file, line, key and
//! remedy. What works but was probably not meant is a warning. Only [`load`]
//! touches the system, to read the file and those of TLS that it names ([`files`]), and
//! [`possible_cpus`], to tell of memory; nothing else asks it about interfaces or
//! paths, so that a file means the same everywhere.

pub mod balance;
pub mod bogons;
mod cpus;
mod describe;
pub mod files;
pub mod floods;
mod kernel;
pub mod limits;
mod load;
pub mod model;
pub mod proxy;
pub mod quantity;
mod raw;
mod reader;
pub mod reload;
mod report;
pub mod services;
#[cfg(test)]
pub(crate) mod test;
mod validate;

use std::path::Path;

use toml::de::DeTable;

pub use cpus::possible_cpus;
pub use describe::{
    BalanceDescription, BalancingDescription, CheckMode, Description, FloodDescription,
    LimitDescription, ListenerDescription, Lists, MapMemory, ProxyDescription, RouteDescription,
    ServiceDescription, UpstreamDescription, describe,
};
pub use load::{load, load_text};
pub use model::Model;
pub use report::{ConfigError, Finding, Findings, MAX_FINDINGS};

use report::{Place, Report};

/// The largest configuration file, bytes: 1,000 services with 100 backends each, and more.
pub const MAX_FILE_BYTES: u64 = 1 << 24;

/// A configuration that can be put into force.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Checked {
    /// The configuration.
    pub model: Model,
    /// What was probably not meant, by line; bounded as [`MAX_FINDINGS`] says.
    pub warnings: Vec<Finding>,
}

/// Checks the text of a file; `path` is for the messages only. `tick_ns` is the
/// resolution of `CLOCK_MONOTONIC_COARSE` (`clock_getres`) in nanoseconds, which
/// bounds bursts from below.
///
/// # Errors
/// [`ConfigError::Invalid`] with everything that is wrong.
pub fn parse(text: &str, path: &Path, tick_ns: u64) -> Result<Checked, ConfigError> {
    parse_with(text, path, tick_ns, |_, _| {})
}

/// The same; `look` adds what it finds in the files that are named, once all else is right.
fn parse_with(
    text: &str,
    path: &Path,
    tick_ns: u64,
    look: impl FnOnce(&raw::Root, &mut Report<'_>),
) -> Result<Checked, ConfigError> {
    let mut report = Report::new(&path.display().to_string(), text);
    let (document, errors) = DeTable::parse_recoverable(text);
    for error in &errors {
        let place = Place {
            span: error.span().unwrap_or(text.len()..text.len()),
            key: String::new(),
        };
        report.problem_without_value(&place, format_args!("not TOML: {}", error.message()));
    }
    // What was recovered from broken text would only be reported in error.
    if report.has_problems() {
        return Err(report.into_error());
    }
    let raw = raw::Root::from_table(document.get_ref(), Place::default(), &mut report);
    let model = validate::model(&raw, &mut report, tick_ns);
    if !report.has_problems() {
        look(&raw, &mut report);
    }
    let warnings = report.finish()?;
    Ok(Checked { model, warnings })
}
