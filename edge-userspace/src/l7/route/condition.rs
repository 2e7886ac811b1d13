//! Conditions on method, headers and query.

use super::{Engines, View};
use crate::uri::path::escaped;

/// All of them hold, or the route is not that of the request.
#[derive(Debug)]
pub(super) struct Conditions {
    /// None: any.
    pub(super) methods: Box<[Box<[u8]>]>,
    /// Names in lower case.
    pub(super) headers: Box<[(Box<str>, Test)]>,
    pub(super) query: Box<[(Box<[u8]>, Test)]>,
}

/// What a value must be.
#[derive(Debug)]
pub(super) enum Test {
    Present,
    Exact(Box<[u8]>),
    Prefix(Box<[u8]>),
    /// One of [`Engines::single`].
    Regex(usize),
}

impl Conditions {
    pub(super) fn hold(&self, request: &impl View, engines: &Engines) -> bool {
        let method =
            self.methods.is_empty() || self.methods.iter().any(|m| **m == *request.method());
        let mut headers = self.headers.iter();
        let mut query = self.query.iter();
        method
            && headers.all(|(name, test)| request.any_header(name, |v| test.holds(v, engines)))
            && query.all(|(name, test)| {
                parameters(request.query()).any(|(n, v)| {
                    decoded(n).eq(name.iter().copied()) && test.holds_decoded(v, engines)
                })
            })
    }
}

impl Test {
    fn holds(&self, value: &[u8], engines: &Engines) -> bool {
        match self {
            Self::Present => true,
            Self::Exact(want) => **want == *value,
            Self::Prefix(want) => value.starts_with(want),
            Self::Regex(i) => engines.single[*i].regex.is_match(value),
        }
    }

    /// The same of a value of a query.
    fn holds_decoded(&self, value: &[u8], engines: &Engines) -> bool {
        if !is_encoded(value) {
            return self.holds(value, engines);
        }
        let mut buffer = engines.decoded.borrow_mut();
        buffer.clear();
        buffer.extend(decoded(value));
        self.holds(&buffer, engines)
    }
}

/// The value of the first parameter of a name, decoded; it is written into `buffer`, whose content
/// is lost, where it is not what stands there.
pub fn parameter<'a>(query: &'a [u8], name: &[u8], buffer: &'a mut Vec<u8>) -> Option<&'a [u8]> {
    let mut all = parameters(query);
    let (_, value) = all.find(|(n, _)| decoded(n).eq(name.iter().copied()))?;
    if !is_encoded(value) {
        return Some(value);
    }
    buffer.clear();
    buffer.extend(decoded(value));
    Some(buffer)
}

fn is_encoded(value: &[u8]) -> bool {
    value.iter().any(|b| matches!(b, b'%' | b'+'))
}

/// Names and values of a query, as they are written (WHATWG URL, 5.1).
fn parameters(query: &[u8]) -> impl Iterator<Item = (&[u8], &[u8])> {
    let parts = query.split(|&b| b == b'&').filter(|p| !p.is_empty());
    parts.map(|part| match part.iter().position(|&b| b == b'=') {
        Some(at) => (&part[..at], &part[at + 1..]),
        None => (part, &[][..]),
    })
}

/// What a name or a value of a query stands for (WHATWG URL, 5.1): `+` is a blank, an escape its
/// byte, and what is no escape stays as it is.
fn decoded(text: &[u8]) -> impl Iterator<Item = u8> {
    let mut rest = text;
    std::iter::from_fn(move || {
        let (&first, after) = rest.split_first()?;
        if let Some(byte) = escaped(rest) {
            rest = &rest[3..];
            return Some(byte);
        }
        rest = after;
        Some(if first == b'+' { b' ' } else { first })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn queries_are_read_as_forms_are() {
        let of = |query: &str| -> Vec<(String, String)> {
            let text = |t: &[u8]| String::from_utf8(decoded(t).collect()).unwrap();
            let all = parameters(query.as_bytes());
            all.map(|(n, v)| (text(n), text(v))).collect()
        };
        let pair = |n: &str, v: &str| (n.to_owned(), v.to_owned());
        assert_eq!(of(""), []);
        assert_eq!(of("&&a"), [pair("a", "")]);
        assert_eq!(
            of("a=1&b=2=3&a="),
            [pair("a", "1"), pair("b", "2=3"), pair("a", "")]
        );
        assert_eq!(of("%61+b=%3d%4&=x"), [pair("a b", "=%4"), pair("", "x")]);
    }

    #[test]
    fn a_parameter_is_found_however_it_is_written() {
        for (query, want) in [
            ("user=a+b", Some("a b")),
            ("x=1&us%65r=%61+b&user=2", Some("a b")),
            ("user=ab", Some("ab")),
            ("user", Some("")),
            ("users=1&x=user", None),
            ("", None),
        ] {
            let mut buffer = Vec::new();
            let found = parameter(query.as_bytes(), b"user", &mut buffer);
            assert_eq!(found, want.map(str::as_bytes), "{query}");
        }
    }
}
