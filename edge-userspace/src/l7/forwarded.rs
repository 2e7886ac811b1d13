//! Who the client is when trusted proxies stand in front, and what is said of it to upstreams.
//!
//! Each proxy adds the address that connected to it at the right. What stands there is as good as
//! who wrote it, so the chain is read from the right, for as long as its writers are
//! trusted. One kind of field is believed, which the configuration names: a proxy that
//! writes `X-Forwarded-For` passes the `Forwarded` of its client on as it came. The fields of
//! the other kind, and all of them when the peer is not trusted, are replaced and not added to.

use std::io::Write as _;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};

use super::head::Known;
use crate::config::proxy::listener::ClientHeader;

/// How many elements of a chain are read: a longer one ends there.
const MAX_CHAIN: usize = 64;

/// Whether what a field says of the way that a request came is believed, when it came by a proxy
/// that is trusted and says it in `by`, or (`None`) by nobody who is. Any other field is.
pub fn is_believed(by: Option<ClientHeader>, known: Known) -> bool {
    !known.is_forwarding()
        || by.is_some_and(|by| (by == ClientHeader::Forwarded) == (known == Known::Forwarded))
}

/// Finds the client: the first address from the right that is not of a trusted proxy. When all
/// are, it is the leftmost. What cannot be read as an address (`unknown`, a hidden name) ends
/// the search at the proxy that wrote it.
///
/// `values` are the values of all fields of the kind, in the order in which they came.
pub fn client<'a>(
    peer: IpAddr,
    believed: ClientHeader,
    values: impl DoubleEndedIterator<Item = &'a [u8]>,
    trusted: impl Fn(IpAddr) -> bool,
) -> IpAddr {
    let mut client = peer.to_canonical();
    let mut left = MAX_CHAIN;
    for value in values.rev() {
        for element in elements(value, believed) {
            if left == 0 || !trusted(client) {
                return client;
            }
            left -= 1;
            let address = match believed {
                ClientHeader::XForwardedFor => node(element),
                ClientHeader::Forwarded => parameter(element, b"for").and_then(node),
            };
            match address {
                Some(address) => client = address,
                None => return client,
            }
        }
    }
    client
}

/// The elements of a chain from the right to the left, each without the space around it. A quote
/// that is never closed makes the whole value one element, which is then none.
fn elements(value: &[u8], believed: ClientHeader) -> impl Iterator<Item = &[u8]> {
    let quotes = believed == ClientHeader::Forwarded;
    let mut rest = Some(value);
    std::iter::from_fn(move || {
        let value = rest?;
        let mut quoted = false;
        let comma = value.iter().rposition(|byte| {
            quoted ^= quotes && *byte == b'"';
            *byte == b',' && !quoted
        });
        rest = comma.map(|comma| &value[..comma]);
        let element = comma.map_or(value, |comma| &value[comma + 1..]);
        Some(element.trim_ascii())
    })
    // Empty elements mean nothing (RFC 9110, section 5.6.1).
    .filter(|element| !element.is_empty())
}

/// The value of a parameter of one element of `Forwarded`, without quotes. Nothing if it is
/// there twice, or not well-formed: escapes are of no use in what is read here.
fn parameter<'a>(element: &'a [u8], name: &[u8]) -> Option<&'a [u8]> {
    let mut found = None;
    for pair in element.split(|byte| *byte == b';') {
        let equals = pair.iter().position(|byte| *byte == b'=')?;
        if pair[..equals].trim_ascii().eq_ignore_ascii_case(name) {
            let value = pair[equals + 1..].trim_ascii();
            let value = match value {
                [b'"', inner @ .., b'"'] => inner,
                [b'"', ..] | [.., b'"'] => return None,
                plain => plain,
            };
            if found.replace(value).is_some() {
                return None;
            }
        }
    }
    found
}

/// An address, with or without brackets and port.
fn node(text: &[u8]) -> Option<IpAddr> {
    let text = std::str::from_utf8(text).ok()?;
    let bracketed = text
        .strip_prefix('[')
        .and_then(|text| text.strip_suffix(']'))
        .and_then(|text| text.parse::<Ipv6Addr>().ok());
    text.parse::<IpAddr>()
        .ok()
        .or(bracketed.map(IpAddr::V6))
        .or_else(|| text.parse::<SocketAddr>().ok().map(|socket| socket.ip()))
        // An IPv4 address in IPv6 clothes would miss the prefixes it is listed by.
        .map(|address| address.to_canonical())
}

/// Appends what those before have said, each with a comma behind it, before this hop adds its own
/// ([`address`], [`element`]): nothing of it where the peer is not trusted.
pub fn chain<'a>(out: &mut Vec<u8>, before: impl Iterator<Item = &'a [u8]>) {
    for value in before.filter(|value| !value.is_empty()) {
        out.extend_from_slice(value);
        out.extend_from_slice(b", ");
    }
}

/// Appends the text of an address as `X-Forwarded-For` and `X-Real-IP` have it: no brackets,
/// and IPv4 as IPv4.
pub fn address(out: &mut Vec<u8>, address: IpAddr) {
    // Writing to a vector does not fail.
    let _ = write!(out, "{}", address.to_canonical());
}

/// Appends the element of `Forwarded` (RFC 7239, section 4) that this hop adds. `host` is the
/// authority of the request; checked as it is, it needs no escapes.
pub fn element(out: &mut Vec<u8>, peer: IpAddr, scheme: &str, host: &[u8]) {
    // Writing to a vector does not fail.
    let _ = match peer.to_canonical() {
        IpAddr::V4(peer) => write!(out, "for={peer}"),
        IpAddr::V6(peer) => write!(out, "for=\"[{peer}]\""),
    };
    let _ = write!(out, ";proto={scheme}");
    if !host.is_empty() {
        out.extend_from_slice(b";host=\"");
        out.extend_from_slice(host);
        out.push(b'"');
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    /// Proxies are those in 10.0.0.0/8.
    fn trusted(address: IpAddr) -> bool {
        matches!(address, IpAddr::V4(four) if four.octets()[0] == 10)
    }

    fn find(peer: &str, believed: ClientHeader, values: &[&str]) -> IpAddr {
        let values = values.iter().map(|value| value.as_bytes());
        client(ip(peer), believed, values, trusted)
    }

    #[test]
    fn the_chain_is_read_from_the_right_while_its_writers_are_trusted() {
        for (peer, values, expected) in [
            // Nobody who is not trusted is believed.
            ("192.0.2.1", &["198.51.100.1"][..], "192.0.2.1"),
            ("10.0.0.1", &[], "10.0.0.1"),
            ("10.0.0.1", &["192.0.2.1"], "192.0.2.1"),
            // What the client says of itself stands at the left.
            ("10.0.0.1", &["198.51.100.1, 192.0.2.1"], "192.0.2.1"),
            (
                "10.0.0.1",
                &["198.51.100.1, 192.0.2.1, 10.0.0.2"],
                "192.0.2.1",
            ),
            (
                "10.0.0.1",
                &["198.51.100.1", "192.0.2.1", "10.0.0.2"],
                "192.0.2.1",
            ),
            ("10.0.0.1", &["10.0.0.3", "10.0.0.2"], "10.0.0.3"),
            // Forms.
            ("10.0.0.1", &["192.0.2.1:8080"], "192.0.2.1"),
            ("10.0.0.1", &["2001:db8::1"], "2001:db8::1"),
            ("10.0.0.1", &["[2001:db8::1]"], "2001:db8::1"),
            ("10.0.0.1", &["[2001:db8::1]:443"], "2001:db8::1"),
            ("10.0.0.1", &["::ffff:192.0.2.1"], "192.0.2.1"),
            ("::ffff:10.0.0.1", &["192.0.2.1"], "192.0.2.1"),
            ("10.0.0.1", &[" , ,192.0.2.1\t,"], "192.0.2.1"),
            // What is no address ends at the one that wrote it.
            ("10.0.0.1", &["192.0.2.1, unknown"], "10.0.0.1"),
            ("10.0.0.1", &["192.0.2.1, _hidden, 10.0.0.2"], "10.0.0.2"),
            ("10.0.0.1", &["192.0.2.1, \"10.0.0.2"], "10.0.0.1"),
            ("10.0.0.1", &["192.0.2.256"], "10.0.0.1"),
        ] {
            assert_eq!(
                find(peer, ClientHeader::XForwardedFor, values),
                ip(expected),
                "{values:?}"
            );
        }
        let long = format!("192.0.2.1{}", ", 10.0.0.2".repeat(MAX_CHAIN));
        assert_eq!(
            find("10.0.0.1", ClientHeader::XForwardedFor, &[&long]),
            ip("10.0.0.2")
        );
    }

    #[test]
    fn forwarded_is_read_like_it() {
        for (value, expected) in [
            ("for=192.0.2.1", "192.0.2.1"),
            ("For=\"192.0.2.1:80\";proto=https", "192.0.2.1"),
            (
                "proto=https; for=\"[2001:db8::1]:80\" ;by=10.0.0.1",
                "2001:db8::1",
            ),
            (
                "for=198.51.100.1, for=192.0.2.1;host=a, for=10.0.0.2",
                "192.0.2.1",
            ),
            ("for=192.0.2.1;host=\"a, for=198.51.100.1\"", "192.0.2.1"),
            // A quote that the client left open takes nothing from what stands at the right.
            ("for=\"198.51.100.1, for=192.0.2.1", "192.0.2.1"),
            ("for=unknown", "10.0.0.1"),
            ("proto=https", "10.0.0.1"),
            ("for=192.0.2.1;for=192.0.2.2", "10.0.0.1"),
            ("for=\"192.0.2.1", "10.0.0.1"),
            ("192.0.2.1", "10.0.0.1"),
        ] {
            assert_eq!(
                find("10.0.0.1", ClientHeader::Forwarded, &[value]),
                ip(expected),
                "{value}"
            );
        }
    }

    #[test]
    fn what_is_added_is_read_again() {
        let mut out = Vec::new();
        let before = [b"192.0.2.1".as_slice(), b"", b"10.0.0.2"];
        chain(&mut out, before.into_iter());
        address(&mut out, ip("::ffff:10.0.0.1"));
        assert_eq!(out, b"192.0.2.1, 10.0.0.2, 10.0.0.1");
        for (peer, expected) in [
            (
                "192.0.2.1",
                "for=192.0.2.1;proto=https;host=\"a.example:1\"",
            ),
            (
                "2001:db8::1",
                "for=\"[2001:db8::1]\";proto=https;host=\"a.example:1\"",
            ),
        ] {
            let mut out = Vec::new();
            element(&mut out, ip(peer), "https", b"a.example:1");
            let text = String::from_utf8(out).unwrap();
            assert_eq!(text, expected);
            assert_eq!(
                find("10.0.0.1", ClientHeader::Forwarded, &[&text]),
                ip(peer)
            );
        }
    }
}
