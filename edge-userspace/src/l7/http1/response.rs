//! Answers of upstreams.

use super::super::head::{
    Field, Framing, Known, Limits, Method, Of, Reject, Response, Span, Version,
    check::{self, Body, Connection},
};
use super::fields;

/// What an answer is to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Asked {
    /// The method of the request.
    pub method: Method,
    /// Whether the request asked for a switch of protocols.
    pub upgrade: bool,
}

/// Reads the head of an answer from the beginning of `buf`, and says of how many bytes it is.
/// `None` and `response` are as with [`parse_request`](super::parse_request). Of the limits
/// those of the head's bytes and fields count.
///
/// # Errors
///
/// The first reason to refuse it. The client then gets 502, and the connection to the upstream
/// is closed.
pub fn parse_response(
    buf: &[u8],
    limits: &Limits,
    asked: Asked,
    response: &mut Response,
) -> Result<Option<usize>, Reject> {
    let window = &buf[..buf.len().min(limits.head_bytes)];
    let read = read(window, limits, asked, response);
    if read != Ok(None) {
        response.resume = 0;
    }
    read
}

fn read(
    window: &[u8],
    limits: &Limits,
    asked: Asked,
    response: &mut Response,
) -> Result<Option<usize>, Reject> {
    if response.resume == 0 {
        response.reset();
        response.resume = status_line(window, response)?.unwrap_or_default();
    }
    let Response { resume, fields, .. } = response;
    let end = match *resume {
        0 => None,
        _ => fields::fields(window, resume, fields, limits.fields, Of::Response)?,
    };
    match end {
        Some(end) => {
            settle(window, asked, response)?;
            Ok(Some(end))
        }
        None if window.len() == limits.head_bytes => Err(Reject::HeadTooLarge),
        None => Ok(None),
    }
}

/// Reads the status line (RFC 9112, section 4), and says where the next line begins. The
/// space behind the status may be missing when there is no reason, as some servers have it.
fn status_line(buf: &[u8], response: &mut Response) -> Result<Option<usize>, Reject> {
    let Some((head, rest)) = buf.split_first_chunk::<12>() else {
        return odd_status(buf).map_or(Ok(None), Err);
    };
    if let Some(reject) = odd_status(head) {
        return Err(reject);
    }
    let Some(next) = rest.first() else {
        return Ok(None);
    };
    response.version = if head[7] == b'0' {
        Version::Http10
    } else {
        Version::Http11
    };
    response.status = head[9..]
        .iter()
        .fold(0, |number, digit| number * 10 + u16::from(digit - b'0'));
    if !(100..600).contains(&response.status) {
        return Err(Reject::StatusCode);
    }
    let start = match next {
        b' ' => head.len() + 1,
        b'\r' => head.len(),
        _ => return Err(Reject::StatusLine),
    };
    let stop = start + check::text(&buf[start..]);
    response.reason = Span::new(start, stop);
    match &buf[stop..] {
        [b'\r', b'\n', ..] => Ok(Some(stop + 2)),
        [] | [b'\r'] => Ok(None),
        [byte, ..] => Err(check::not_text(*byte)),
    }
}

/// What is wrong with the beginning of a status line, which may be incomplete.
#[inline]
fn odd_status(buf: &[u8]) -> Option<Reject> {
    const SHAPE: &[u8; 12] = b"HTTP/1.v ddd";
    let at = buf
        .iter()
        .zip(SHAPE)
        .position(|(byte, shape)| match shape {
            b'v' => !matches!(byte, b'0' | b'1'),
            b'd' => !byte.is_ascii_digit(),
            _ => byte != shape,
        })?;
    Some(if at == 7 && buf[at].is_ascii_digit() {
        Reject::VersionUnsupported
    } else {
        Reject::StatusLine
    })
}

/// Looks at what the fields say together (RFC 9112, section 6.3).
fn settle(buf: &[u8], asked: Asked, response: &mut Response) -> Result<(), Reject> {
    let http10 = response.version == Version::Http10;
    let mut body = Body::default();
    let mut connection = Connection::default();
    let mut upgrades = 0;
    let mut upgrade = Span::default();
    for at in 0..response.fields.len() {
        let Field { value, known, .. } = response.fields[at];
        match known {
            Known::ContentLength => body.read_length(value.of(buf))?,
            Known::TransferEncoding if http10 => return Err(Reject::EncodingVersion),
            Known::TransferEncoding => body.read_encoding(value.of(buf))?,
            Known::Connection => connection.read(buf, value, &mut response.fields)?,
            Known::Upgrade => {
                upgrades += 1;
                upgrade = value;
            }
            _ => {}
        }
    }
    let status = response.status;
    response.declared = body.length;
    response.framing = match (status, body) {
        // Nothing may say that a body follows where none does: whoever believes it reads the
        // next answer as that body.
        (100..200 | 204, Body { chunked: true, .. })
        | (
            100..200 | 204,
            Body {
                length: Some(1..), ..
            },
        ) => {
            return Err(Reject::LengthWithoutBody);
        }
        (100..200 | 204 | 304, _) => Framing::None,
        _ if asked.method == Method::Head => Framing::None,
        (_, Body { chunked: true, .. }) => Framing::Chunked,
        (
            _,
            Body {
                length: Some(length),
                ..
            },
        ) => Framing::Length(length),
        _ => Framing::UntilClose,
    };
    response.keep_alive = response.framing != Framing::UntilClose
        && !connection.close
        && (!http10 || connection.keep_alive);
    if status == 101 {
        let switches = asked.upgrade
            && !http10
            && connection.upgrade
            && upgrades == 1
            && check::may_upgrade(upgrade.of(buf));
        if !switches {
            return Err(Reject::UpgradeUnasked);
        }
        response.upgrade = Some(upgrade);
    }
    Ok(())
}
