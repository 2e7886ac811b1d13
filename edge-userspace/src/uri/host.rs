//! Hosts of requests in one form.

use std::{fmt::Write as _, net::Ipv6Addr};

/// The longest host (RFC 1035, 2.3.4).
const MAX_HOST: usize = 253;

/// What a request is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Authority<'a> {
    /// In lower case, without a dot at its end; IPv6 addresses in brackets, in their shortest form
    /// (RFC 5952).
    pub host: &'a [u8],
    /// Behind the colon, if there is one and something behind it.
    pub port: Option<u16>,
}

/// Reads an authority (RFC 3986, 3.2) without user: a Host header, or `:authority`. The host is the
/// text itself where nothing changes; else it is written into `buffer`, whose content is lost.
/// `None`: it is malformed.
pub fn authority<'a>(text: &'a [u8], buffer: &'a mut Vec<u8>) -> Option<Authority<'a>> {
    let (host, port) = match text.first()? {
        b'[' => {
            let end = text.iter().position(|&b| b == b']')? + 1;
            (&text[..end], &text[end..])
        }
        _ => text.split_at(text.iter().position(|&b| b == b':').unwrap_or(text.len())),
    };
    let port = match port {
        [] | b":" => None,
        [b':', digits @ ..] => Some(number(digits)?),
        _ => return None,
    };
    let host = if host.first() == Some(&b'[') {
        ipv6(host, buffer)?
    } else {
        name(host, buffer)?
    };
    Some(Authority { host, port })
}

fn number(digits: &[u8]) -> Option<u16> {
    let mut number = 0u16;
    for digit in digits {
        let digit = digit.is_ascii_digit().then(|| u16::from(digit - b'0'))?;
        number = number.checked_mul(10)?.checked_add(digit)?;
    }
    Some(number)
}

fn name<'a>(host: &'a [u8], buffer: &'a mut Vec<u8>) -> Option<&'a [u8]> {
    let host = host.strip_suffix(b".").unwrap_or(host);
    let is_allowed = |b: &u8| b.is_ascii_alphanumeric() || b"-._~".contains(b);
    if !(1..=MAX_HOST).contains(&host.len())
        || !host.iter().all(is_allowed)
        || host.split(|&b| b == b'.').any(<[u8]>::is_empty)
    {
        return None;
    }
    if !host.iter().any(u8::is_ascii_uppercase) {
        return Some(host);
    }
    buffer.clear();
    buffer.extend(host.iter().map(u8::to_ascii_lowercase));
    Some(buffer)
}

/// IPv6 addresses have many forms, of which RFC 5952 says which to write.
fn ipv6<'a>(host: &'a [u8], buffer: &'a mut Vec<u8>) -> Option<&'a [u8]> {
    struct Bytes<'a>(&'a mut Vec<u8>);
    impl std::fmt::Write for Bytes<'_> {
        fn write_str(&mut self, text: &str) -> std::fmt::Result {
            self.0.extend_from_slice(text.as_bytes());
            Ok(())
        }
    }
    let inner = host.strip_prefix(b"[")?.strip_suffix(b"]")?;
    let address: Ipv6Addr = std::str::from_utf8(inner).ok()?.parse().ok()?;
    buffer.clear();
    write!(Bytes(buffer), "[{address}]").ok()?;
    Some(buffer)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(text: &str) -> Option<(String, Option<u16>)> {
        let mut buffer = Vec::new();
        let got = authority(text.as_bytes(), &mut buffer)?;
        Some((String::from_utf8(got.host.to_vec()).unwrap(), got.port))
    }

    #[test]
    fn hosts_have_one_form() {
        for (text, host, port) in [
            ("example.com", "example.com", None),
            ("Example.COM", "example.com", None),
            ("example.com.", "example.com", None),
            ("example.com.:8080", "example.com", Some(8080)),
            ("example.com:", "example.com", None),
            ("example.com:0443", "example.com", Some(443)),
            ("192.0.2.1:80", "192.0.2.1", Some(80)),
            ("[2001:DB8:0:0::1]:443", "[2001:db8::1]", Some(443)),
            ("[::1]", "[::1]", None),
            ("a_b-c~d", "a_b-c~d", None),
        ] {
            assert_eq!(of(text), Some((host.to_owned(), port)), "{text}");
        }
        let long = "a".repeat(MAX_HOST + 1);
        for bad in [
            "",
            ".",
            "..",
            "a..",
            "a..b",
            ".a",
            ":80",
            "a:65536",
            "a:8x",
            "a:-1",
            "a:1:2",
            "u@a",
            "a/b",
            "a b",
            "a%41",
            "é",
            "[::1",
            "::1",
            "[::1]x",
            "[::1]:x",
            "[1.2.3.4]",
            "[fe80::1%25eth0]",
            "a,b",
            "a\0",
            &long,
        ] {
            assert_eq!(of(bad), None, "{bad}");
        }
    }

    #[test]
    fn nothing_is_written_where_nothing_changes() {
        let (mut buffer, text) = (Vec::new(), b"example.com.:1");
        let got = authority(text, &mut buffer).unwrap();
        assert_eq!(got.host.as_ptr(), text.as_ptr());
        assert_eq!(buffer.capacity(), 0);
    }
}
