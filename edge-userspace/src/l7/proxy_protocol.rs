//! The PROXY protocol, versions 1 and 2 (HAProxy's `proxy-protocol.txt` of 2020): who the client
//! of a connection is, said before its first byte by a proxy in front.
//!
//! Only a connection that must begin with it is read for it: the protocol forbids to guess.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

/// Bytes of the longest header of version 1, with its end (section 2.1).
const MAX_V1: usize = 107;

/// The first bytes of version 2 (section 2.2).
const SIGNATURE: &[u8; 12] = b"\r\n\r\n\0\r\nQUIT\n";

/// The first bytes of version 2 with version, family and length.
const V2_HEAD: usize = 16;

/// Bytes behind the first 16 of version 2. Senders are told to stay below 536 as a whole;
/// what some say of a client's certificate takes more.
const MAX_V2: usize = 4096;

/// Bytes of the longest header that is read.
pub const MAX_LEN: usize = V2_HEAD + MAX_V2;

/// The type of the additional field with a checksum (section 2.2.3).
const TLV_CRC32C: u8 = 0x03;

/// A header that has been read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// How many bytes it takes.
    pub len: usize,
    /// Client and the address it connected to, if they are told. Else the connection's own
    /// count: the proxy speaks for itself (a health check), or the client came by something
    /// else than TCP over IP.
    pub addresses: Option<Addresses>,
}

/// The two ends of a client's connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Addresses {
    /// The client.
    pub source: SocketAddr,
    /// Where it connected to.
    pub destination: SocketAddr,
}

/// Why what should be a header is none. The connection is closed without a word.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Error {
    /// The first bytes are of neither version.
    Absent,
    /// Of version 1, but not as section 2.1 has it.
    Line,
    /// Of version 2, with a version, command or family that section 2.2 does not have.
    Kind,
    /// Of version 2, with a length that does not fit what is in it, or is beyond the limit.
    Length,
    /// Of version 2, with a checksum that is not right.
    Checksum,
}

impl Error {
    /// Every error.
    pub const ALL: [Self; 5] = [
        Self::Absent,
        Self::Line,
        Self::Kind,
        Self::Length,
        Self::Checksum,
    ];

    /// The stable name, for metrics and logs.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Absent => "proxy_absent",
            Self::Line => "proxy_line",
            Self::Kind => "proxy_kind",
            Self::Length => "proxy_length",
            Self::Checksum => "proxy_checksum",
        }
    }
}

impl std::fmt::Display for Error {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Absent => "The connection does not begin with a PROXY header.",
            Self::Line => "The PROXY line is malformed or too long.",
            Self::Kind => "The PROXY header has an unknown version, command or family.",
            Self::Length => "The lengths in the PROXY header do not fit.",
            Self::Checksum => "The checksum of the PROXY header is wrong.",
        })
    }
}

impl std::error::Error for Error {}

/// Reads the header at the beginning of `buf`; `None` when more bytes are needed.
///
/// The checksum of version 2 is looked at where there is one; other additional fields are
/// passed over.
///
/// # Errors
///
/// Why there is none; that neither version begins like this, from the first wrong byte on.
pub fn parse(buf: &[u8]) -> Result<Option<Header>, Error> {
    let begins = |with: &[u8]| {
        let len = with.len().min(buf.len());
        buf[..len] == with[..len]
    };
    if begins(SIGNATURE) {
        parse_v2(buf)
    } else if begins(b"PROXY ") {
        parse_v1(buf)
    } else {
        Err(Error::Absent)
    }
}

fn parse_v1(buf: &[u8]) -> Result<Option<Header>, Error> {
    let window = &buf[..buf.len().min(MAX_V1)];
    let Some(feed) = window.iter().position(|byte| *byte == b'\n') else {
        return if window.len() == MAX_V1 {
            Err(Error::Line)
        } else {
            Ok(None)
        };
    };
    let line = window[..feed].strip_suffix(b"\r").ok_or(Error::Line)?;
    let line = std::str::from_utf8(line).map_err(|_| Error::Line)?;
    let mut words = line.split(' ');
    let (_, family) = (words.next(), words.next());
    let addresses = match family {
        // Whatever follows is to be passed over.
        Some("UNKNOWN") => None,
        Some(family @ ("TCP4" | "TCP6")) => {
            let mut address = || {
                let word = words.next()?;
                match family {
                    "TCP4" => word.parse::<Ipv4Addr>().ok().map(IpAddr::V4),
                    _ => word.parse::<Ipv6Addr>().ok().map(IpAddr::V6),
                }
            };
            let source = address().ok_or(Error::Line)?;
            let destination = address().ok_or(Error::Line)?;
            let mut port = || words.next().and_then(port).ok_or(Error::Line);
            let addresses = Addresses {
                source: SocketAddr::new(source, port()?),
                destination: SocketAddr::new(destination, port()?),
            };
            if words.next().is_some() {
                return Err(Error::Line);
            }
            Some(addresses)
        }
        _ => return Err(Error::Line),
    };
    Ok(Some(Header {
        len: feed + 1,
        addresses,
    }))
}

/// Digits without a sign or a leading zero.
fn port(word: &str) -> Option<u16> {
    let plain = word.bytes().all(|byte| byte.is_ascii_digit());
    let leading_zero = word.len() > 1 && word.starts_with('0');
    (plain && !leading_zero).then(|| word.parse().ok())?
}

fn parse_v2(buf: &[u8]) -> Result<Option<Header>, Error> {
    // What is there of the first bytes is judged before the rest has come.
    let local = match buf.get(12) {
        None => return Ok(None),
        Some(0x20) => true,
        Some(0x21) => false,
        Some(_) => return Err(Error::Kind),
    };
    let addresses_len = match (buf.get(13), local) {
        (None, _) => return Ok(None),
        // Whatever a LOCAL header says of addresses is to be passed over.
        (Some(_), true) | (Some(0x00), false) => 0,
        (Some(0x11), false) => 12,
        (Some(0x21), false) => 36,
        // Over UDP no stream comes, but the addresses are as good.
        (Some(0x12), false) => 12,
        (Some(0x22), false) => 36,
        (Some(0x31 | 0x32), false) => 216,
        (Some(_), false) => return Err(Error::Kind),
    };
    let Some([high, low]) = buf.get(14..V2_HEAD) else {
        return Ok(None);
    };
    let len = usize::from(u16::from_be_bytes([*high, *low]));
    if len > MAX_V2 || len < addresses_len {
        return Err(Error::Length);
    }
    let Some(whole) = buf.get(..V2_HEAD + len) else {
        return Ok(None);
    };
    let header = |addresses| {
        Ok(Some(Header {
            len: whole.len(),
            addresses,
        }))
    };
    if local {
        return header(None);
    }
    let body = &whole[V2_HEAD..];
    // What follows an unspecified family is to be passed over.
    if whole[13] != 0x00 {
        check_fields(whole, V2_HEAD + addresses_len)?;
    }
    header(match addresses_len {
        12 => addresses::<4>(body),
        36 => addresses::<16>(body),
        _ => None,
    })
}

/// Two addresses of `N` bytes and two ports.
fn addresses<const N: usize>(body: &[u8]) -> Option<Addresses>
where
    IpAddr: From<[u8; N]>,
{
    let (source, rest) = body.split_first_chunk::<N>()?;
    let (destination, rest) = rest.split_first_chunk::<N>()?;
    let (source_port, rest) = rest.split_first_chunk::<2>()?;
    let (destination_port, _) = rest.split_first_chunk::<2>()?;
    let end = |address: &[u8; N], port: &[u8; 2]| {
        SocketAddr::new(IpAddr::from(*address), u16::from_be_bytes(*port))
    };
    Some(Addresses {
        source: end(source, source_port),
        destination: end(destination, destination_port),
    })
}

/// Walks the additional fields from `at` on to the end, which the last of them must meet.
fn check_fields(whole: &[u8], mut at: usize) -> Result<(), Error> {
    while let Some(head) = whole.get(at..).filter(|rest| !rest.is_empty()) {
        let [kind, high, low, rest @ ..] = head else {
            return Err(Error::Length);
        };
        let len = usize::from(u16::from_be_bytes([*high, *low]));
        let value = rest.get(..len).ok_or(Error::Length)?;
        let start = at + 3;
        if *kind == TLV_CRC32C {
            let said: [u8; 4] = value.try_into().map_err(|_| Error::Length)?;
            let parts = [&whole[..start], &[0; 4], &whole[start + 4..]];
            if crc32c(&parts) != u32::from_be_bytes(said) {
                return Err(Error::Checksum);
            }
        }
        at = start + len;
    }
    Ok(())
}

/// CRC-32C (RFC 3720, appendix B.4) of the parts one after the other, a bit at a time: a header
/// is read once a connection.
fn crc32c(parts: &[&[u8]]) -> u32 {
    const POLYNOMIAL: u32 = 0x82f6_3b78;
    !parts.iter().copied().flatten().fold(u32::MAX, |crc, byte| {
        (0..8).fold(crc ^ u32::from(*byte), |crc, _| {
            (crc >> 1) ^ (POLYNOMIAL & (crc & 1).wrapping_neg())
        })
    })
}

/// Appends a header of version 1; without addresses, or with those of two families, it says
/// that the client is unknown.
pub fn write_v1(out: &mut Vec<u8>, addresses: Option<&Addresses>) {
    use std::io::Write as _;
    let line = addresses.and_then(
        |Addresses {
             source,
             destination,
         }| {
            let family = match (source, destination) {
                (SocketAddr::V4(_), SocketAddr::V4(_)) => "TCP4",
                (SocketAddr::V6(_), SocketAddr::V6(_)) => "TCP6",
                _ => return None,
            };
            // Writing to a vector does not fail.
            write!(
                out,
                "PROXY {family} {} {} {} {}\r\n",
                source.ip(),
                destination.ip(),
                source.port(),
                destination.port()
            )
            .ok()
        },
    );
    if line.is_none() {
        out.extend_from_slice(b"PROXY UNKNOWN\r\n");
    }
}

/// Appends a header of version 2; without addresses, or with those of two families, it is LOCAL.
pub fn write_v2(out: &mut Vec<u8>, addresses: Option<&Addresses>) {
    out.extend_from_slice(SIGNATURE);
    let ports = |a: u16, b: u16| [a.to_be_bytes(), b.to_be_bytes()].concat();
    match addresses.map(|addresses| (addresses.source, addresses.destination)) {
        Some((SocketAddr::V4(source), SocketAddr::V4(destination))) => {
            out.extend_from_slice(&[0x21, 0x11, 0, 12]);
            out.extend_from_slice(&source.ip().octets());
            out.extend_from_slice(&destination.ip().octets());
            out.extend_from_slice(&ports(source.port(), destination.port()));
        }
        Some((SocketAddr::V6(source), SocketAddr::V6(destination))) => {
            out.extend_from_slice(&[0x21, 0x21, 0, 36]);
            out.extend_from_slice(&source.ip().octets());
            out.extend_from_slice(&destination.ip().octets());
            out.extend_from_slice(&ports(source.port(), destination.port()));
        }
        _ => out.extend_from_slice(&[0x20, 0x00, 0, 0]),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn addresses(source: &str, destination: &str) -> Addresses {
        Addresses {
            source: source.parse().unwrap(),
            destination: destination.parse().unwrap(),
        }
    }

    #[test]
    fn the_line_of_version_1_is_read() {
        let four = addresses("192.0.2.1:56324", "203.0.113.1:443");
        let six = addresses("[2001:db8::1]:0", "[2001:db8::2]:65535");
        for (line, expected) in [
            ("PROXY TCP4 192.0.2.1 203.0.113.1 56324 443\r\n", Some(four)),
            ("PROXY TCP6 2001:db8::1 2001:db8::2 0 65535\r\n", Some(six)),
            ("PROXY UNKNOWN\r\n", None),
            ("PROXY UNKNOWN ffff::1 whatever 1 2\r\n", None),
        ] {
            let with_more = format!("{line}GET");
            let header = parse(with_more.as_bytes()).unwrap().unwrap();
            assert_eq!((header.len, header.addresses), (line.len(), expected));
            for cut in 0..line.len() {
                assert_eq!(
                    parse(&line.as_bytes()[..cut]),
                    Ok(None),
                    "{line:?} at {cut}"
                );
            }
        }
    }

    #[test]
    fn what_is_no_line_of_version_1_is_refused() {
        for line in [
            "PROXY \r\n",
            "PROXY TCP4\r\n",
            "PROXY TCP5 192.0.2.1 203.0.113.1 1 2\r\n",
            "PROXY tcp4 192.0.2.1 203.0.113.1 1 2\r\n",
            "PROXY TCP4 192.0.2.1 203.0.113.1 1\r\n",
            "PROXY TCP4 192.0.2.1 203.0.113.1 1 2 3\r\n",
            "PROXY TCP4  192.0.2.1 203.0.113.1 1 2\r\n",
            "PROXY TCP4 192.0.2.1 203.0.113.1 1 2 \r\n",
            "PROXY TCP4 192.0.2.1 203.0.113.1 1 2\n",
            "PROXY TCP4 192.0.2.01 203.0.113.1 1 2\r\n",
            "PROXY TCP4 192.0.2.1 203.0.113.1 01 2\r\n",
            "PROXY TCP4 192.0.2.1 203.0.113.1 +1 2\r\n",
            "PROXY TCP4 192.0.2.1 203.0.113.1 65536 2\r\n",
            "PROXY TCP4 2001:db8::1 2001:db8::2 1 2\r\n",
            "PROXY TCP6 192.0.2.1 203.0.113.1 1 2\r\n",
            "PROXY TCP6 2001:db8::1%eth0 2001:db8::2 1 2\r\n",
        ] {
            assert_eq!(parse(line.as_bytes()), Err(Error::Line), "{line:?}");
        }
        let long = format!("PROXY UNKNOWN {}\r\n", "x".repeat(MAX_V1));
        assert_eq!(parse(long.as_bytes()), Err(Error::Line));
        assert_eq!(parse(b"GET / HTTP/1.1\r\n"), Err(Error::Absent));
        assert_eq!(parse(b"\r\n\r\nGET"), Err(Error::Absent));
        assert_eq!(parse(b"PROXYTCP4"), Err(Error::Absent));
    }

    /// A header of version 2.
    fn v2(command: u8, family: u8, body: &[u8]) -> Vec<u8> {
        let len = u16::try_from(body.len()).unwrap().to_be_bytes();
        [SIGNATURE, [command, family].as_slice(), &len, body].concat()
    }

    const V4: &[u8] = &[192, 0, 2, 1, 203, 0, 113, 1, 0xdc, 0x04, 0x01, 0xbb];

    #[test]
    fn version_2_is_read() {
        let four = addresses("192.0.2.1:56324", "203.0.113.1:443");
        let with_field = [V4, &[0x04, 0, 2, 7, 7]].concat();
        for (bytes, expected) in [
            (v2(0x21, 0x11, V4), Some(four)),
            (v2(0x21, 0x12, V4), Some(four)),
            (v2(0x21, 0x11, &with_field), Some(four)),
            (v2(0x20, 0x00, b""), None),
            (v2(0x20, 0x11, b"any bytes"), None),
            (v2(0x20, 0xff, b""), None),
            (v2(0x21, 0x00, b"any bytes"), None),
            (v2(0x21, 0x31, &[0; 216]), None),
        ] {
            let header = parse(&[bytes.as_slice(), b"GET"].concat())
                .unwrap()
                .unwrap();
            assert_eq!((header.len, header.addresses), (bytes.len(), expected));
            for cut in 0..bytes.len() {
                assert_eq!(parse(&bytes[..cut]), Ok(None), "{bytes:?} at {cut}");
            }
        }
    }

    #[test]
    fn what_is_no_version_2_is_refused() {
        for (bytes, error) in [
            (v2(0x11, 0x11, V4), Error::Kind),
            (v2(0x22, 0x11, V4), Error::Kind),
            (v2(0x21, 0x13, V4), Error::Kind),
            (v2(0x21, 0x41, V4), Error::Kind),
            (v2(0x21, 0x11, &V4[..11]), Error::Length),
            (v2(0x21, 0x21, &[0; 35]), Error::Length),
            (v2(0x21, 0x31, &[0; 215]), Error::Length),
            (v2(0x21, 0x11, &[V4, &[4, 0]].concat()), Error::Length),
            (v2(0x21, 0x11, &[V4, &[4, 0, 2, 7]].concat()), Error::Length),
            (
                v2(0x21, 0x11, &[V4, &[3, 0, 2, 7, 7]].concat()),
                Error::Length,
            ),
            (v2(0x21, 0x11, &vec![0; MAX_V2 + 1]), Error::Length),
        ] {
            assert_eq!(parse(&bytes), Err(error), "{bytes:?}");
        }
    }

    #[test]
    fn the_checksum_of_version_2_counts() {
        assert_eq!(crc32c(&[b"1234", b"56789"]), 0xe306_9283);
        let mut bytes = v2(0x21, 0x11, &[V4, &[3, 0, 4, 0, 0, 0, 0]].concat());
        assert_eq!(parse(&bytes), Err(Error::Checksum));
        let sum = crc32c(&[&bytes]).to_be_bytes();
        let at = bytes.len() - 4;
        bytes[at..].copy_from_slice(&sum);
        assert!(parse(&bytes).unwrap().is_some());
        bytes[17] ^= 1;
        assert_eq!(parse(&bytes), Err(Error::Checksum));
    }

    #[test]
    fn ends_of_two_families_are_not_told() {
        let mixed = addresses("192.0.2.1:1", "[2001:db8::2]:2");
        for (write, expected) in [
            (
                write_v1 as fn(&mut Vec<u8>, Option<&Addresses>),
                &b"PROXY UNKNOWN\r\n"[..],
            ),
            (write_v2, &v2(0x20, 0, b"")),
        ] {
            for ends in [None, Some(&mixed)] {
                let mut out = Vec::new();
                write(&mut out, ends);
                assert_eq!(out, expected);
            }
        }
    }

    fn ends() -> impl Strategy<Value = Addresses> {
        let four = (any::<[u8; 4]>(), any::<[u8; 4]>(), any::<[u16; 2]>());
        let six = (any::<[u16; 8]>(), any::<[u16; 8]>(), any::<[u16; 2]>());
        let end = |address: IpAddr, port| SocketAddr::new(address, port);
        prop_oneof![
            four.prop_map(move |(a, b, ports)| Addresses {
                source: end(a.into(), ports[0]),
                destination: end(b.into(), ports[1]),
            }),
            six.prop_map(move |(a, b, ports)| Addresses {
                source: end(a.into(), ports[0]),
                destination: end(b.into(), ports[1]),
            }),
        ]
    }

    proptest! {
        #[test]
        fn what_is_written_is_read(ends in ends()) {
            for write in [write_v1, write_v2] {
                let mut out = Vec::new();
                write(&mut out, Some(&ends));
                let expected = Header { len: out.len(), addresses: Some(ends) };
                prop_assert_eq!(parse(&out), Ok(Some(expected)));
                for cut in 0..out.len() {
                    prop_assert_eq!(parse(&out[..cut]), Ok(None));
                }
            }
        }

        #[test]
        fn any_bytes_behind_a_beginning_end_somehow(
            version in any::<bool>(),
            rest in prop::collection::vec(any::<u8>(), 0..300),
        ) {
            let beginning: &[u8] = if version { b"PROXY " } else { SIGNATURE };
            let bytes = [beginning, &rest].concat();
            if let Ok(Some(header)) = parse(&bytes) {
                prop_assert!(header.len <= bytes.len());
                // What is behind a header does not change it.
                prop_assert_eq!(parse(&bytes[..header.len]), Ok(Some(header)));
            }
        }
    }
}
