//! Regular expressions of the configuration, bounded in size and compared by their text.

use regex::bytes::{Regex, RegexBuilder};

/// The longest regular expression, bytes of text.
pub const MAX_PATTERN: usize = 1024;
/// The most memory that a compiled one may take, bytes.
const MAX_COMPILED: usize = 1 << 18;

/// A regular expression over bytes. It matches anywhere unless it begins with `^` or ends with `$`.
/// Matching takes time linear in the text.
#[derive(Clone, Debug)]
pub struct Pattern(Regex);

impl Pattern {
    /// Compiles a regular expression.
    ///
    /// # Errors
    /// What is wrong with it, in a sentence without its end.
    pub fn new(text: &str) -> Result<Self, String> {
        if text.len() > MAX_PATTERN {
            return Err(format!(
                "{} bytes long, at most {MAX_PATTERN} are possible",
                text.len()
            ));
        }
        let built = RegexBuilder::new(text)
            .unicode(false)
            .size_limit(MAX_COMPILED)
            .build();
        built.map(Self).map_err(|e| match e {
            regex::Error::CompiledTooBig(_) => format!(
                "takes more than {} KiB once it is compiled",
                MAX_COMPILED >> 10
            ),
            // The last line has the reason, those before it a drawing of the place.
            e => {
                let text = e.to_string();
                let last = text.lines().last().unwrap_or_default();
                format!(
                    "no regular expression: {}",
                    last.trim_start_matches("error: ")
                )
            }
        })
    }

    /// Its text.
    pub fn as_str(&self) -> &str {
        self.0.as_str()
    }

    /// The compiled expression.
    pub fn regex(&self) -> &Regex {
        &self.0
    }
}

impl PartialEq for Pattern {
    fn eq(&self, other: &Self) -> bool {
        self.as_str() == other.as_str()
    }
}

impl Eq for Pattern {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_wrong_is_said_in_one_line() {
        for (text, want) in [
            ("(", "no regular expression: unclosed group"),
            ("a{2,1}", "invalid repetition count range"),
            ("(?:a{1000}){1000}", "takes more than 256 KiB"),
            (r"\p{Greek}", "no regular expression"),
            (&"a".repeat(MAX_PATTERN + 1), "1025 bytes long"),
        ] {
            let got = Pattern::new(text).unwrap_err();
            assert!(got.contains(want) && !got.contains('\n'), "{text}: {got}");
        }
        assert_eq!(Pattern::new("^/a").unwrap(), Pattern::new("^/a").unwrap());
        assert_ne!(Pattern::new("^/a").unwrap(), Pattern::new("^/b").unwrap());
    }
}
