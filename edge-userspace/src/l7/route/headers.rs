//! Changes to the header of a request or an answer.

use crate::config::proxy::route;

/// A field: its name, in lower case, and its value.
pub type Field = (Box<[u8]>, Box<[u8]>);

/// Changes to a header: drop fields for which [`HeaderRules::drops`] is true, then write
/// [`HeaderRules::added`].
#[derive(Debug, Default, PartialEq, Eq)]
pub struct HeaderRules {
    /// Names, in lower case, of fields that go.
    dropped: Box<[Box<[u8]>]>,
    added: Box<[Field]>,
}

impl HeaderRules {
    /// Compiles the rules of a route.
    pub fn new(rules: &route::HeaderRules) -> Self {
        let set = rules.set.iter().map(|(name, _)| name);
        Self {
            dropped: rules
                .remove
                .iter()
                .chain(set)
                .map(|name| bytes(name))
                .collect(),
            added: fields(rules.set.iter().chain(&rules.add)),
        }
    }

    /// Whether nothing changes.
    pub fn is_empty(&self) -> bool {
        self.dropped.is_empty() && self.added.is_empty()
    }

    /// Whether a field of this name, in any case, goes.
    pub fn drops(&self, name: &[u8]) -> bool {
        self.dropped.iter().any(|d| d.eq_ignore_ascii_case(name))
    }

    /// The fields that come, in the order in which they are written.
    pub fn added(&self) -> &[Field] {
        &self.added
    }
}

/// Fields as bytes.
pub(super) fn fields<'a>(fields: impl Iterator<Item = &'a (String, String)>) -> Box<[Field]> {
    fields
        .map(|(name, value)| (bytes(name), bytes(value)))
        .collect()
}

fn bytes(text: &str) -> Box<[u8]> {
    text.as_bytes().into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_set_replaces_and_what_is_added_does_not() {
        let pair = |name: &str, value: &str| (name.to_owned(), value.to_owned());
        let rules = HeaderRules::new(&route::HeaderRules {
            set: vec![pair("x-set", "1")],
            add: vec![pair("x-add", "2"), pair("x-add", "3")],
            remove: vec!["server".to_owned()],
        });
        assert!(rules.drops(b"X-Set") && rules.drops(b"SERVER") && !rules.drops(b"x-add"));
        let added: Vec<&[u8]> = rules.added().iter().map(|(_, value)| &value[..]).collect();
        assert_eq!(added, [b"1", b"2", b"3"]);
        assert!(!rules.is_empty() && HeaderRules::default().is_empty());
    }
}
