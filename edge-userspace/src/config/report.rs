//! Where a finding is, what it is and what to do about it; and the collector
//! that lets one pass over a file report all of them.

use std::{fmt, io, ops::Range, path::PathBuf, sync::Arc};

/// The most problems, and the most warnings, that one check keeps; the rest
/// is only counted.
pub const MAX_FINDINGS: usize = 100;

/// The longest value that a finding repeats, in characters.
const SHOWN_CHARS: usize = 48;

/// Something about one place in a configuration file: an error or a warning.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// The file, as it was named.
    pub file: Arc<str>,
    /// The line, from 1 on.
    pub line: u32,
    /// The key with its sections, such as `limits.packets.burst`; empty where
    /// the text is no TOML.
    pub key: String,
    /// The value as written, when it is short.
    pub value: Option<String>,
    /// What is wrong, and the remedy.
    pub message: String,
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}: ", self.file, self.line)?;
        if !self.key.is_empty() {
            f.write_str(&self.key)?;
            if let Some(value) = &self.value {
                write!(f, " = {value}")?;
            }
            f.write_str(": ")?;
        }
        f.write_str(&self.message)
    }
}

/// Why there is no configuration.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("{}: cannot read the configuration: {source}; name a readable file with -c", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
    /// The path is a directory, a pipe or a device.
    #[error("{}: not a regular file; name a configuration file with -c", path.display())]
    NotAFile {
        /// The path.
        path: PathBuf,
    },
    /// The file is larger than [`super::MAX_FILE_BYTES`].
    #[error(
        "{}: larger than {limit} bytes; keep long lists out of it and load them with `edge blacklist import`",
        path.display()
    )]
    TooLarge {
        /// The file.
        path: PathBuf,
        /// The most bytes a configuration may have.
        limit: u64,
    },
    /// The file holds bytes that are no UTF-8.
    #[error("{}:{line}: not UTF-8 text; save the file as UTF-8", path.display())]
    NotText {
        /// The file.
        path: PathBuf,
        /// The line of the first such byte, from 1 on.
        line: u32,
    },
    /// The text was read, and is wrong in one or more places.
    #[error("{0}")]
    Invalid(Findings),
}

/// Everything that is wrong with a configuration, in the order of the lines.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Findings {
    /// At least one, at most [`MAX_FINDINGS`].
    pub list: Vec<Finding>,
    /// How many more there were.
    pub omitted: usize,
}

impl fmt::Display for Findings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, finding) in self.list.iter().enumerate() {
            if i > 0 {
                f.write_str("\n")?;
            }
            fmt::Display::fmt(finding, f)?;
        }
        if let (Some(last), 1..) = (self.list.last(), self.omitted) {
            write!(
                f,
                "\n{}:{}: and {} more errors; correct these first",
                last.file, last.line, self.omitted
            )?;
        }
        Ok(())
    }
}

/// A value with its place in the file and its full key.
#[derive(Clone, Debug)]
pub(super) struct At<T> {
    /// The value.
    pub(super) value: T,
    /// Where it stands.
    pub(super) place: Place,
}

/// A place in the file.
#[derive(Clone, Debug, Default)]
pub(super) struct Place {
    /// Bytes of the text.
    pub(super) span: Range<usize>,
    /// The full key.
    pub(super) key: String,
}

impl Place {
    /// The place of something that a section lacks: the section's own, under
    /// the key that is missing.
    pub(super) fn child(&self, key: &str) -> Self {
        Self {
            span: self.span.clone(),
            key: super::reader::join(&self.key, key),
        }
    }
}

/// Collects what a pass over one text finds.
pub(super) struct Report<'i> {
    file: Arc<str>,
    text: &'i str,
    /// Offset of the first byte of each line.
    lines: Vec<usize>,
    problems: Vec<Finding>,
    omitted: usize,
    warnings: Vec<Finding>,
}

impl<'i> Report<'i> {
    pub(super) fn new(file: &str, text: &'i str) -> Self {
        let mut lines = vec![0];
        lines.extend(
            text.bytes()
                .enumerate()
                .filter(|&(_, b)| b == b'\n')
                .map(|(i, _)| i + 1),
        );
        Self {
            file: file.into(),
            text,
            lines,
            problems: Vec::new(),
            omitted: 0,
            warnings: Vec::new(),
        }
    }

    /// An error at a place; its value is repeated.
    pub(super) fn problem(&mut self, place: &Place, message: impl fmt::Display) {
        self.push(place, self.shown(&place.span), message);
    }

    /// An error at a place whose text is no value: a key, a whole section.
    pub(super) fn problem_without_value(&mut self, place: &Place, message: impl fmt::Display) {
        self.push(place, None, message);
    }

    /// Something that works but is probably not what was meant.
    pub(super) fn warn(&mut self, place: &Place, message: impl fmt::Display) {
        let value = self.shown(&place.span);
        self.push_warning(place, value, message);
    }

    /// The same for a place whose text is no value.
    pub(super) fn warn_without_value(&mut self, place: &Place, message: impl fmt::Display) {
        self.push_warning(place, None, message);
    }

    /// Whether anything is wrong up to now.
    pub(super) fn has_problems(&self) -> bool {
        !self.problems.is_empty()
    }

    /// Whether further problems are only counted.
    pub(super) fn is_full(&self) -> bool {
        self.problems.len() >= MAX_FINDINGS
    }

    /// Whether something is wrong with a key or inside it: then it is there,
    /// and must not be called missing. Errs on that side after many problems.
    pub(super) fn has_problem_at(&self, key: &str) -> bool {
        self.omitted > 0
            || self.problems.iter().any(|p| {
                p.key
                    .strip_prefix(key)
                    .is_some_and(|rest| rest.is_empty() || rest.starts_with(['.', '[']))
            })
    }

    /// The warnings, or all that is wrong.
    pub(super) fn finish(mut self) -> Result<Vec<Finding>, ConfigError> {
        if self.has_problems() {
            return Err(self.into_error());
        }
        self.warnings.sort_by_key(|w| w.line);
        Ok(self.warnings)
    }

    /// All that is wrong.
    pub(super) fn into_error(mut self) -> ConfigError {
        self.problems.sort_by_key(|p| p.line);
        ConfigError::Invalid(Findings {
            list: self.problems,
            omitted: self.omitted,
        })
    }

    fn push(&mut self, place: &Place, value: Option<String>, message: impl fmt::Display) {
        if self.is_full() {
            self.omitted += 1;
            return;
        }
        let finding = self.finding(place, value, message);
        self.problems.push(finding);
    }

    fn push_warning(&mut self, place: &Place, value: Option<String>, message: impl fmt::Display) {
        if self.warnings.len() < MAX_FINDINGS {
            let finding = self.finding(place, value, message);
            self.warnings.push(finding);
        }
    }

    fn finding(&self, place: &Place, value: Option<String>, message: impl fmt::Display) -> Finding {
        let line = self
            .lines
            .partition_point(|&start| start <= place.span.start);
        Finding {
            file: Arc::clone(&self.file),
            line: u32::try_from(line).unwrap_or(u32::MAX).max(1),
            key: printable(&place.key),
            value,
            message: message.to_string(),
        }
    }

    /// The text of a value, when it fits a line.
    fn shown(&self, span: &Range<usize>) -> Option<String> {
        let text = self.text.get(span.clone())?;
        let fits = !text.is_empty()
            && text.chars().take(SHOWN_CHARS + 1).count() <= SHOWN_CHARS
            && !text.chars().any(char::is_control);
        fits.then(|| text.to_owned())
    }
}

/// A key as it can stand in one line: quoted keys of TOML may hold anything.
fn printable(key: &str) -> String {
    let mut shown = String::new();
    for (i, c) in key.chars().enumerate() {
        if i == 4 * SHOWN_CHARS {
            shown.push('…');
            break;
        }
        if c.is_control() {
            shown.extend(c.escape_default());
        } else {
            shown.push(c);
        }
    }
    shown
}
