//! From a TOML document to the raw structs, all errors at once.
//!
//! serde stops at the first error, and a person who writes a configuration
//! wants to see every one. So each section is a table of its keys, made by
//! [`section!`], and what a key holds knows how to read itself ([`FromToml`]).
//! An unknown key is an error that names the nearest known one.

use std::borrow::Cow;

use toml::{
    Spanned,
    de::{DeTable, DeValue},
};

use super::report::{At, Place, Report};

/// The most elements of an array.
pub(super) const MAX_ELEMENTS: usize = 65_536;

/// A value of the file with its place.
pub(super) type Node<'i> = Spanned<DeValue<'i>>;

/// What can be read from a value.
pub(super) trait FromToml: Sized {
    /// Reads it; `None` after the problem has been reported.
    fn from_toml(node: &Node<'_>, key: &str, report: &mut Report<'_>) -> Option<Self>;

    /// Adds the full keys of everything inside a value at `key`.
    fn keys(key: &str, all: &mut Vec<String>) {
        all.push(key.to_owned());
    }
}

/// The key of something inside a section.
pub(super) fn join(section: &str, key: &str) -> String {
    if section.is_empty() {
        key.to_owned()
    } else {
        format!("{section}.{key}")
    }
}

/// The place of a value.
pub(super) fn place(node: &Node<'_>, key: &str) -> Place {
    Place {
        span: node.span(),
        key: key.to_owned(),
    }
}

/// Reports a value of a wrong type.
pub(super) fn wrong_type(node: &Node<'_>, key: &str, expected: &str, report: &mut Report<'_>) {
    let found = match node.get_ref().type_str() {
        kind @ ("integer" | "array") => format!("an {kind}"),
        kind => format!("a {kind}"),
    };
    report.problem(
        &place(node, key),
        format_args!("{found}; expected {expected}"),
    );
}

/// The text of a string; anything else is reported.
pub(super) fn text<'a>(
    node: &'a Node<'_>,
    key: &str,
    expected: &str,
    report: &mut Report<'_>,
) -> Option<&'a str> {
    let text = node.get_ref().as_str();
    if text.is_none() {
        wrong_type(node, key, expected, report);
    }
    text
}

/// The table of a section; anything else is reported.
pub(super) fn table<'a, 'i>(
    node: &'a Node<'i>,
    key: &str,
    report: &mut Report<'_>,
) -> Option<&'a DeTable<'i>> {
    let table = node.get_ref().as_table();
    if table.is_none() {
        wrong_type(node, key, "a section", report);
    }
    table
}

/// Reports a key that the section does not have.
pub(super) fn unknown_key(
    key: &Spanned<Cow<'_, str>>,
    section: &str,
    known: &[&str],
    report: &mut Report<'_>,
) {
    let name = key.get_ref().as_ref();
    let place = Place {
        span: key.span(),
        key: join(section, name),
    };
    // The nearest key costs a walk over all of them.
    if report.is_full() {
        report.problem_without_value(&place, "unknown key");
        return;
    }
    let elsewhere = || {
        let mut all = Vec::new();
        super::raw::Root::keys("", &mut all);
        all.into_iter()
            .find(|k| k.rsplit('.').next().is_some_and(|last| last == name))
    };
    let hint = match nearest(name, known)
        .map(|k| join(section, k))
        .or_else(elsewhere)
    {
        Some(near) => format!("did you mean {near}?"),
        None if section.is_empty() => format!("the file takes {}", known.join(", ")),
        None => format!("this section takes {}", known.join(", ")),
    };
    report.problem_without_value(&place, format_args!("unknown key; {hint}"));
}

/// The known word that is nearest to a misspelt one, if any is near at all.
pub(super) fn nearest<'a>(word: &str, known: &[&'a str]) -> Option<&'a str> {
    // Distances of long words are costly, and no known word is long.
    if word.len() > 64 {
        return None;
    }
    let most = (word.len() / 3).max(1);
    known
        .iter()
        .map(|&k| (distance(word, k), k))
        .filter(|&(d, _)| d <= most)
        .min_by_key(|&(d, _)| d)
        .map(|(_, k)| k)
}

/// How many characters must be inserted, deleted, replaced or swapped with
/// their neighbour (Damerau 1964) to get from `a` to `b`.
fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let (mut before, mut above): (Vec<usize>, Vec<usize>) = (Vec::new(), (0..=b.len()).collect());
    let mut last = None;
    for (i, ca) in a.chars().enumerate() {
        let mut row = vec![i + 1];
        let mut left = None;
        for (j, &cb) in b.iter().enumerate() {
            let mut best = (above[j] + usize::from(ca != cb)).min(above[j + 1].min(row[j]) + 1);
            if j > 0 && last == Some(cb) && left == Some(ca) {
                best = best.min(before[j - 1] + 1);
            }
            row.push(best);
            left = Some(cb);
        }
        (before, above) = (above, row);
        last = Some(ca);
    }
    above.last().copied().unwrap_or(0)
}

impl<T: FromToml> FromToml for At<T> {
    fn from_toml(node: &Node<'_>, key: &str, report: &mut Report<'_>) -> Option<Self> {
        Some(Self {
            value: T::from_toml(node, key, report)?,
            place: place(node, key),
        })
    }

    fn keys(key: &str, all: &mut Vec<String>) {
        T::keys(key, all);
    }
}

/// An array. What cannot be read is reported and left out.
impl<T: FromToml> FromToml for Vec<T> {
    fn from_toml(node: &Node<'_>, key: &str, report: &mut Report<'_>) -> Option<Self> {
        let Some(array) = node.get_ref().as_array() else {
            if node.get_ref().is_table() {
                wrong_type(node, key, &format!("a list; write [[{key}]]"), report);
            } else {
                wrong_type(node, key, "a list in [ ]", report);
            }
            return None;
        };
        if array.len() > MAX_ELEMENTS {
            report.problem_without_value(
                &place(node, key),
                format_args!(
                    "{} elements; at most {MAX_ELEMENTS} may stand in the file, load longer lists with `edge blacklist import`",
                    array.len()
                ),
            );
            return None;
        }
        let elements = array.iter().enumerate();
        let elements =
            elements.filter_map(|(i, node)| T::from_toml(node, &format!("{key}[{i}]"), report));
        Some(elements.collect())
    }

    fn keys(key: &str, all: &mut Vec<String>) {
        T::keys(key, all);
    }
}

impl FromToml for bool {
    fn from_toml(node: &Node<'_>, key: &str, report: &mut Report<'_>) -> Option<Self> {
        let value = node.get_ref().as_bool();
        if value.is_none() {
            wrong_type(node, key, "true or false", report);
        }
        value
    }
}

impl FromToml for String {
    fn from_toml(node: &Node<'_>, key: &str, report: &mut Report<'_>) -> Option<Self> {
        text(node, key, "a string in quotes", report).map(str::to_owned)
    }
}

/// A value out of a closed set of words.
pub(super) fn choice<T: Copy>(
    node: &Node<'_>,
    key: &str,
    report: &mut Report<'_>,
    all: &[T],
    name: fn(T) -> &'static str,
) -> Option<T> {
    let names: Vec<&str> = all.iter().map(|&v| name(v)).collect();
    let expected = format!("one of \"{}\"", names.join("\", \""));
    let word = text(node, key, &expected, report)?;
    let found = all.iter().copied().find(|&v| name(v) == word);
    if found.is_none() {
        report.problem(
            &place(node, key),
            format_args!("no such choice; expected {expected}"),
        );
    }
    found
}

/// Reads a string by its own parser; the parser's error is reported.
pub(super) fn parsed<T>(
    node: &Node<'_>,
    key: &str,
    expected: &str,
    report: &mut Report<'_>,
    parse: impl FnOnce(&str) -> Result<T, String>,
) -> Option<T> {
    match parse(text(node, key, expected, report)?) {
        Ok(value) => Some(value),
        Err(message) => {
            report.problem(&place(node, key), message);
            None
        }
    }
}

/// Defines a section of the file: a struct of optional values, the place of
/// the section, and its reader.
macro_rules! section {
    ($(#[$doc:meta])* $name:ident { $( $(#[$field_doc:meta])* $field:ident = $key:literal: $type:ty, )* }) => {
        $(#[$doc])*
        #[derive(Debug, Default)]
        pub(in crate::config) struct $name {
            /// Where the section stands.
            pub(in crate::config) place: $crate::config::report::Place,
            $( $(#[$field_doc])* pub(in crate::config) $field: Option<$type>, )*
        }

        impl $name {
            /// Reads the keys of an open table.
            pub(in crate::config) fn from_table(
                table: &toml::de::DeTable<'_>,
                place: $crate::config::report::Place,
                report: &mut $crate::config::report::Report<'_>,
            ) -> Self {
                let mut section = Self { place, ..Self::default() };
                for (name, node) in table {
                    let path = $crate::config::reader::join(&section.place.key, name.get_ref());
                    match name.get_ref().as_ref() {
                        $( $key => section.$field =
                            $crate::config::reader::FromToml::from_toml(node, &path, report), )*
                        _ => $crate::config::reader::unknown_key(
                            name, &section.place.key, &[ $( $key ),* ], report),
                    }
                }
                section
            }
        }

        impl $crate::config::reader::FromToml for $name {
            fn from_toml(
                node: &$crate::config::reader::Node<'_>,
                key: &str,
                report: &mut $crate::config::report::Report<'_>,
            ) -> Option<Self> {
                let table = $crate::config::reader::table(node, key, report)?;
                let place = $crate::config::reader::place(node, key);
                Some(Self::from_table(table, place, report))
            }

            fn keys(key: &str, all: &mut Vec<String>) {
                $( <$type as $crate::config::reader::FromToml>::keys(
                    &$crate::config::reader::join(key, $key), all); )*
            }
        }
    };
}
pub(super) use section;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn distances_count_typing_errors() {
        assert_eq!(distance("", "abc"), 3);
        assert_eq!(distance("burst", "burst"), 0);
        assert_eq!(distance("brust", "burst"), 1);
        assert_eq!(distance("bursts", "burst"), 1);
        assert_eq!(distance("rate", "burst"), 4);
    }

    #[test]
    fn only_what_is_near_is_suggested() {
        let known = ["rate", "burst", "mode"];
        assert_eq!(nearest("brust", &known), Some("burst"));
        assert_eq!(nearest("rates", &known), Some("rate"));
        assert_eq!(nearest("interface", &known), None);
        assert_eq!(nearest("", &known), None);
        assert_eq!(nearest(&"r".repeat(100_000), &known), None);
    }
}
