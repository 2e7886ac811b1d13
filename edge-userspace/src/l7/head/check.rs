//! What is asked of parts of a head, whichever version of HTTP it came by.

use std::net::Ipv6Addr;

use super::{Authority, Field, Known, Reject, Span};

/// Bytes of a token (RFC 9110, section 5.6.2).
const TOKEN: u8 = 1;
/// The one byte of a token that fields of requests do without.
const UNDERSCORE: u8 = 2;
/// Bytes of a request target: visible ASCII without the fragment's sign.
const TARGET: u8 = 4;
/// Bytes of a registered name or IPv4 address as this proxy takes them: no percent-encoding
/// and none of the signs that RFC 3986 leaves to schemes.
const NAME: u8 = 8;

static CLASS: [u8; 256] = {
    let mut class = [0; 256];
    let mut at = 0;
    while at < 256 {
        let byte = at as u8;
        if byte.is_ascii_alphanumeric() {
            class[at] |= TOKEN | NAME;
        }
        if matches!(
            byte,
            b'!' | b'#'
                | b'$'
                | b'%'
                | b'&'
                | b'\''
                | b'*'
                | b'+'
                | b'-'
                | b'.'
                | b'^'
                | b'_'
                | b'`'
                | b'|'
                | b'~'
        ) {
            class[at] |= TOKEN;
        }
        if byte == b'_' {
            class[at] |= UNDERSCORE;
        }
        if byte.is_ascii_graphic() && byte != b'#' {
            class[at] |= TARGET;
        }
        if matches!(byte, b'-' | b'.' | b'_') {
            class[at] |= NAME;
        }
        at += 1;
    }
    class
};

#[inline]
fn is(byte: u8, class: u8) -> bool {
    CLASS[usize::from(byte)] & class != 0
}

/// How long the token at the beginning is, and whether it has an underscore.
#[inline]
pub(in crate::l7) fn token(bytes: &[u8]) -> (usize, bool) {
    let mut seen = 0;
    let mut len = 0;
    for byte in bytes {
        let class = CLASS[usize::from(*byte)];
        if class & TOKEN == 0 {
            break;
        }
        seen |= class;
        len += 1;
    }
    (len, seen & UNDERSCORE != 0)
}

/// How long the beginning is that a request target may have, and where its first question
/// mark stands.
#[inline]
pub(in crate::l7) fn target(bytes: &[u8]) -> (usize, Option<usize>) {
    let len = bytes
        .iter()
        .position(|byte| !is(*byte, TARGET))
        .unwrap_or(bytes.len());
    (len, bytes[..len].iter().position(|byte| *byte == b'?'))
}

/// How long the beginning is that a field value may have (RFC 9110, section 5.5): visible bytes,
/// also beyond ASCII, space and tab.
#[inline]
pub(in crate::l7) fn text(bytes: &[u8]) -> usize {
    const EACH: u64 = u64::MAX / 255;
    const HIGH: u64 = EACH * 0x80;
    let mut at = 0;
    while let Some(word) = bytes.get(at..).and_then(<[u8]>::first_chunk::<8>) {
        let word = u64::from_le_bytes(*word);
        // Bytes below 0x20, and 0x7f as the zeros of an exclusive or. A borrow may mark bytes
        // behind the first marked one needlessly, never before it.
        let low = word.wrapping_sub(EACH * 0x20) & !word;
        let delete = word ^ (EACH * 0x7f);
        let delete = delete.wrapping_sub(EACH) & !delete;
        let marks = (low | delete) & HIGH;
        if marks == 0 {
            at += 8;
            continue;
        }
        at += (marks.trailing_zeros() / 8) as usize;
        if bytes[at] != b'\t' {
            return at;
        }
        at += 1;
    }
    let is_text = |byte: &u8| (*byte >= 0x20 && *byte != 0x7f) || *byte == b'\t';
    let rest = &bytes[at..];
    at + rest
        .iter()
        .position(|byte| !is_text(byte))
        .unwrap_or(rest.len())
}

/// The reason for a byte at which [`text`] stopped, when it is not the begin of a line's end.
pub(in crate::l7) fn not_text(byte: u8) -> Reject {
    match byte {
        0 => Reject::Nul,
        b'\n' => Reject::BareLf,
        b'\r' => Reject::BareCr,
        _ => Reject::ControlByte,
    }
}

/// White space inside of a line (RFC 9110, section 5.6.3).
#[inline]
pub(in crate::l7) const fn is_space(byte: u8) -> bool {
    byte == b' ' || byte == b'\t'
}

/// Without the white space around it.
pub(in crate::l7) fn trim(mut bytes: &[u8]) -> &[u8] {
    while let [first, rest @ ..] = bytes
        && is_space(*first)
    {
        bytes = rest;
    }
    while let [rest @ .., last] = bytes
        && is_space(*last)
    {
        bytes = rest;
    }
    bytes
}

/// The elements of a comma-separated list (RFC 9110, section 5.6.1) without empty ones and
/// without quoted strings, in which commas would not separate.
pub(in crate::l7) fn list(value: &[u8]) -> impl Iterator<Item = &[u8]> {
    value
        .split(|byte| *byte == b',')
        .map(trim)
        .filter(|element| !element.is_empty())
}

/// The number of a `Content-Length`: digits alone.
///
/// # Errors
///
/// [`Reject::LengthInvalid`] for anything else: signs, other bases, lists, nothing, and what
/// could overflow (more than 18 digits: an exabyte).
pub fn length(value: &[u8]) -> Result<u64, Reject> {
    if value.is_empty() || value.len() > 18 || !value.iter().all(u8::is_ascii_digit) {
        return Err(Reject::LengthInvalid);
    }
    Ok(value
        .iter()
        .fold(0, |number, digit| number * 10 + u64::from(digit - b'0')))
}

/// The longest name that DNS has, as it is written (RFC 1035, section 2.3.4).
const MAX_HOST: usize = 255;

/// Reads host and port (RFC 3986, section 3.2) where `span` says.
///
/// # Errors
///
/// [`Reject::HostUserinfo`] where there is an at sign, [`Reject::HostInvalid`] for anything but
/// letters, digits, hyphens, dots and underscores, or an IPv6 address in brackets; also for an
/// empty host or port. RFC 3986 allows percent-encoding, other signs and empty ports, on
/// which servers do not agree.
pub fn authority(buf: &[u8], span: Span) -> Result<Authority, Reject> {
    let bytes = span.of(buf);
    let len = if bytes.first() == Some(&b'[') {
        let end = bytes.iter().position(|byte| *byte == b']').unwrap_or(0);
        std::str::from_utf8(bytes.get(1..end).unwrap_or_default())
            .ok()
            .and_then(|address| address.parse::<Ipv6Addr>().ok())
            .ok_or(Reject::HostInvalid)?;
        end + 1
    } else {
        bytes
            .iter()
            .position(|byte| !is(*byte, NAME))
            .unwrap_or(bytes.len())
    };
    let port = match &bytes[len..] {
        [] => None,
        [b':', digits @ ..] if !digits.contains(&b'@') => Some(port(digits)?),
        rest if rest.contains(&b'@') => return Err(Reject::HostUserinfo),
        _ => return Err(Reject::HostInvalid),
    };
    if len == 0 || len > MAX_HOST {
        return Err(Reject::HostInvalid);
    }
    let start = span.start as usize;
    Ok(Authority {
        whole: span,
        host: Span::new(start, start + len),
        port,
    })
}

fn port(digits: &[u8]) -> Result<u16, Reject> {
    if digits.is_empty() || digits.len() > 5 || !digits.iter().all(u8::is_ascii_digit) {
        return Err(Reject::HostInvalid);
    }
    let port = digits
        .iter()
        .fold(0, |number, digit| number * 10 + u32::from(digit - b'0'));
    u16::try_from(port).map_err(|_| Reject::HostInvalid)
}

/// Whether two authorities are the same, the port of the scheme being named or not.
#[must_use]
pub fn same_authority(buf: &[u8], a: &Authority, b: &Authority, default_port: u16) -> bool {
    a.host.of(buf).eq_ignore_ascii_case(b.host.of(buf))
        && a.port.unwrap_or(default_port) == b.port.unwrap_or(default_port)
}

/// The port of a URI's scheme, if it is http or https.
#[must_use]
pub fn scheme_port(scheme: &[u8]) -> Option<u16> {
    if scheme.eq_ignore_ascii_case(b"http") {
        Some(80)
    } else if scheme.eq_ignore_ascii_case(b"https") {
        Some(443)
    } else {
        None
    }
}

/// How many options `Connection` may have: each is compared with each field.
const MAX_OPTIONS: usize = 32;

/// What the `Connection` fields of a head say.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(in crate::l7) struct Connection {
    pub(in crate::l7) close: bool,
    pub(in crate::l7) keep_alive: bool,
    pub(in crate::l7) upgrade: bool,
    options: usize,
}

impl Connection {
    /// Reads one `Connection`, and keeps the fields that it names from going on.
    ///
    /// Names of fields that say where the message goes or ends, or who the client is, are
    /// refused: a message without them would be another one.
    pub(in crate::l7) fn read(
        &mut self,
        buf: &[u8],
        value: Span,
        fields: &mut [Field],
    ) -> Result<(), Reject> {
        for option in list(value.of(buf)) {
            self.options += 1;
            if token(option).0 < option.len() || self.options > MAX_OPTIONS {
                return Err(Reject::ConnectionInvalid);
            }
            if option.eq_ignore_ascii_case(b"close") {
                self.close = true;
                continue;
            }
            match Known::of(option) {
                Known::KeepAlive => self.keep_alive = true,
                Known::Upgrade => self.upgrade = true,
                known if known.is_framing() || known.is_forwarding() => {
                    return Err(Reject::ConnectionNominates);
                }
                known if known.is_hop_by_hop() => {}
                known => {
                    for field in &mut *fields {
                        if field.known == known
                            && (known != Known::Other
                                || field.name.of(buf).eq_ignore_ascii_case(option))
                        {
                            field.kept = false;
                        }
                    }
                }
            }
        }
        Ok(())
    }
}

/// What the fields say of a body's length.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(in crate::l7) struct Body {
    pub(in crate::l7) length: Option<u64>,
    pub(in crate::l7) chunked: bool,
}

impl Body {
    /// Reads a `Content-Length`.
    pub(in crate::l7) fn read_length(&mut self, value: &[u8]) -> Result<(), Reject> {
        if self.length.is_some() {
            return Err(Reject::LengthRepeated);
        }
        if self.chunked {
            return Err(Reject::LengthWithEncoding);
        }
        self.length = Some(length(value)?);
        Ok(())
    }

    /// Reads a `Transfer-Encoding`. The only one is chunked, alone and once: what else could
    /// precede it, nobody sends to a gateway, and servers do not agree on it.
    pub(in crate::l7) fn read_encoding(&mut self, value: &[u8]) -> Result<(), Reject> {
        if self.chunked {
            return Err(Reject::EncodingRepeated);
        }
        if self.length.is_some() {
            return Err(Reject::LengthWithEncoding);
        }
        if value.eq_ignore_ascii_case(b"chunked") {
            self.chunked = true;
            return Ok(());
        }
        let all_chunked = !value.is_empty()
            && list(value).count() > 1
            && list(value).all(|coding| coding.eq_ignore_ascii_case(b"chunked"));
        Err(if all_chunked {
            Reject::EncodingRepeated
        } else {
            Reject::EncodingUnknown
        })
    }
}

/// Whether a list of protocols is one to which a client and its upstream may switch: not to
/// another version of HTTP, whose messages would pass unread.
pub(in crate::l7) fn may_upgrade(protocols: &[u8]) -> bool {
    let mut any = false;
    list(protocols).all(|protocol| {
        any = true;
        let name = protocol.split(|byte| *byte == b'/').next();
        let name = name.unwrap_or_default();
        let (len, _) = token(name);
        let http = [b"h2c".as_slice(), b"h2", b"h3", b"http", b"tls"];
        len > 0 && len == name.len() && !http.iter().any(|of| name.eq_ignore_ascii_case(of))
    }) && any
}
