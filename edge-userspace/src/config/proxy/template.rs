//! Texts with places that are filled in for each request.

use super::pattern::Pattern;

/// What takes the place of what a [`Pattern`] found: text and groups.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Replacement {
    /// In order.
    pub parts: Vec<ReplacementPart>,
}

/// A part of a [`Replacement`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ReplacementPart {
    /// This text.
    Text(String),
    /// What the group with this number found; 0 is all of it.
    Group(usize),
}

impl Replacement {
    /// Reads `$1`, `${1}` and `${name}` as groups of a pattern, `$$` as a dollar.
    ///
    /// # Errors
    /// What is wrong with it, in a sentence without its end.
    pub fn new(text: &str, pattern: &Pattern) -> Result<Self, String> {
        let mut parts = Vec::new();
        let mut rest = text;
        while let Some((before, after)) = rest.split_once('$') {
            push_text(&mut parts, before);
            if let Some(after) = after.strip_prefix('$') {
                push_text(&mut parts, "$");
                rest = after;
                continue;
            }
            let name;
            (name, rest) = match after.strip_prefix('{') {
                Some(braced) => braced.split_once('}').ok_or("\"${\" without \"}\"")?,
                None => {
                    let digits = after.find(|c: char| !c.is_ascii_digit());
                    after.split_at(digits.unwrap_or(after.len()))
                }
            };
            if name.is_empty() {
                return Err(
                    "a \"$\" that names no group; write $1, ${name}, or $$ for a dollar".into(),
                );
            }
            let regex = pattern.regex();
            let group = match name.parse() {
                Ok(number) => (number < regex.captures_len()).then_some(number),
                Err(_) => regex.capture_names().position(|n| n == Some(name)),
            };
            let group = group.ok_or_else(|| format!("the expression has no group \"{name}\""))?;
            parts.push(ReplacementPart::Group(group));
        }
        push_text(&mut parts, rest);
        Ok(Self { parts })
    }
}

fn push_text(parts: &mut Vec<ReplacementPart>, text: &str) {
    match parts.last_mut() {
        Some(ReplacementPart::Text(last)) => last.push_str(text),
        _ if text.is_empty() => {}
        _ => parts.push(ReplacementPart::Text(text.to_owned())),
    }
}

/// Where a redirection leads: text and parts of the request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Location {
    /// In order.
    pub parts: Vec<LocationPart>,
}

/// A part of a [`Location`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LocationPart {
    /// This text.
    Text(String),
    /// The host, without port.
    Host,
    /// The normalised path.
    Path,
    /// The query with its question mark; nothing without a query.
    Query,
}

impl Location {
    /// Reads `{host}`, `{path}` and `{query}`.
    ///
    /// # Errors
    /// What is wrong with it, in a sentence without its end.
    pub fn new(text: &str) -> Result<Self, String> {
        const KNOWN: &str = "{host}, {path} and {query}";
        let mut parts = Vec::new();
        let mut rest = text;
        while let Some((before, after)) = rest.split_once('{') {
            if !before.is_empty() {
                parts.push(LocationPart::Text(before.to_owned()));
            }
            let (name, after) = after
                .split_once('}')
                .ok_or_else(|| format!("\"{{\" without \"}}\"; there are {KNOWN}"))?;
            parts.push(match name {
                "host" => LocationPart::Host,
                "path" => LocationPart::Path,
                "query" => LocationPart::Query,
                name => return Err(format!("there is no {{{name}}}; there are {KNOWN}")),
            });
            rest = after;
        }
        if !rest.is_empty() {
            parts.push(LocationPart::Text(rest.to_owned()));
        }
        Ok(Self { parts })
    }

    /// Whether it is a path at the host of the request, and names no host.
    pub fn is_path(&self) -> bool {
        match self.parts.first() {
            Some(LocationPart::Text(text)) => text.starts_with('/') && !text.starts_with("//"),
            first => first == Some(&LocationPart::Path),
        }
    }

    /// Whether it is a path, or says behind `http://`, `https://` or `//` at which host.
    pub fn is_whole(&self) -> bool {
        let Some(LocationPart::Text(text)) = self.parts.first() else {
            return self.is_path();
        };
        let scheme = ["https:", "http:"];
        let mut behind = scheme.iter().filter_map(|scheme| text.strip_prefix(scheme));
        match behind.next().unwrap_or(text).strip_prefix("//") {
            Some("") => self.parts.get(1) == Some(&LocationPart::Host),
            Some(authority) => !authority.starts_with(['/', '?', '#']),
            None => self.is_path(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{LocationPart as L, ReplacementPart as R, *};

    #[test]
    fn replacements_name_groups() {
        let pattern = Pattern::new("^/(a)/(?<rest>.*)$").unwrap();
        let of = |text| Replacement::new(text, &pattern).map(|r| r.parts);
        let text = |t: &str| R::Text(t.to_owned());
        assert_eq!(
            of("/x/$1y/${rest}$$1"),
            Ok(vec![
                text("/x/"),
                R::Group(1),
                text("y/"),
                R::Group(2),
                text("$1")
            ])
        );
        assert_eq!(
            of("/$0${1}1"),
            Ok(vec![text("/"), R::Group(0), R::Group(1), text("1")])
        );
        for (bad, want) in [
            ("/$3", "no group \"3\""),
            ("/${x}", "no group \"x\""),
            ("/$", "names no group"),
            ("/$x", "names no group"),
            ("/${1", "without \"}\""),
            ("/${}", "names no group"),
            ("/$99999999999999999999", "no group"),
        ] {
            assert!(of(bad).unwrap_err().contains(want), "{bad}");
        }
    }

    #[test]
    fn locations_name_parts_of_the_request() {
        let of = |text| Location::new(text).map(|l| l.parts);
        let text = |t: &str| L::Text(t.to_owned());
        assert_eq!(
            of("https://{host}{path}{query}#x"),
            Ok(vec![
                text("https://"),
                L::Host,
                L::Path,
                L::Query,
                text("#x")
            ])
        );
        for (bad, want) in [("/{port}", "no {port}"), ("/{host", "without")] {
            assert!(of(bad).unwrap_err().contains(want), "{bad}");
        }
    }
}
