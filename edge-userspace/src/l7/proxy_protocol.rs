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
