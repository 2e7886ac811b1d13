//! Requests.

use super::super::head::{
    Authority, Field, Framing, Known, Limits, Method, Of, Reject, Request, Span, Version,
    check::{self, Body, Connection},
};
use super::fields;

/// The longest registered method (`UPDATEREDIRECTREF`) has 17 bytes.
const MAX_METHOD: usize = 24;

/// Reads the head of a request from the beginning of `buf`, and says of how many bytes it is.
///
/// `None` when it is not yet complete: call again with the same bytes and more of them behind,
/// and the same `request`, which remembers how far it was read until the head is complete or
/// refused. When a head is given up before that, [`Request::reset`] comes before the next one.
/// `request` means something only when a number of bytes was returned.
///
/// One empty line may precede the request line (RFC 9112, section 2.2).
///
/// # Errors
///
/// The first reason to refuse it, in the order of its bytes; when all bytes are as they should
/// be, what its fields say together is looked at.
pub fn parse_request(
    buf: &[u8],
    limits: &Limits,
    request: &mut Request,
) -> Result<Option<usize>, Reject> {
    let read = read(&buf[..buf.len().min(limits.head_bytes)], limits, request);
    if read != Ok(None) {
        request.resume = 0;
    }
    read
}

fn read(window: &[u8], limits: &Limits, request: &mut Request) -> Result<Option<usize>, Reject> {
    if request.resume == 0 {
        request.reset();
        match request_line(window, limits, request)? {
            Some(next) => request.resume = next,
            None if window.len() == limits.head_bytes => return Err(Reject::TargetTooLong),
            None => return Ok(None),
        }
    }
    let Request { resume, fields, .. } = request;
    match fields::fields(window, resume, fields, limits.fields, Of::Request)? {
        Some(end) => {
            settle(window, limits, request)?;
            Ok(Some(end))
        }
        None if window.len() == limits.head_bytes => Err(Reject::HeadTooLarge),
        None => Ok(None),
    }
}

/// Reads the request line, and says where the next line begins.
fn request_line(
    buf: &[u8],
    limits: &Limits,
    request: &mut Request,
) -> Result<Option<usize>, Reject> {
    let mut start = 0;
    if buf.first() == Some(&b'\r') {
        match buf {
            [_] => return Ok(None),
            [_, b'\n', ..] => start = 2,
            _ => return Err(Reject::BareCr),
        }
    }
    let (len, _) = check::token(&buf[start..buf.len().min(start + MAX_METHOD + 1)]);
    if len > MAX_METHOD {
        return Err(Reject::MethodTooLong);
    }
    let method_end = start + len;
    match buf.get(method_end) {
        None => return Ok(None),
        Some(b' ') if len > 0 => {}
        Some(byte) => return odd_method(buf, start, len, *byte),
    }
    request.method_name = Span::new(start, method_end);
    request.method = Method::of(&buf[start..method_end]);

    let target = method_end + 1;
    let (len, query) = check::target(&buf[target..buf.len().min(target + limits.uri_bytes + 1)]);
    if len > limits.uri_bytes {
        return Err(Reject::TargetTooLong);
    }
    let target_end = target + len;
    match buf.get(target_end) {
        None => return Ok(None),
        Some(b' ') if len > 0 => {}
        Some(byte) => return Err(odd_target(*byte)),
    }
    request.target = Span::new(target, target_end);

    let rest = &buf[target_end + 1..];
    let next = target_end + 1 + b"HTTP/1.1\r\n".len();
    if rest.starts_with(b"HTTP/1.1\r\n") {
        request.version = Version::Http11;
    } else if rest.starts_with(b"HTTP/1.0\r\n") {
        request.version = Version::Http10;
    } else {
        return odd_version(rest);
    }
    split_target(buf, query.map(|at| target + at), request)?;
    Ok(Some(next))
}

#[cold]
fn odd_method(buf: &[u8], start: usize, len: usize, byte: u8) -> Result<Option<usize>, Reject> {
    Err(match byte {
        b'\r' if len == 0 && start > 0 => match buf.get(start + 1) {
            None => return Ok(None),
            Some(b'\n') => Reject::EmptyLines,
            Some(_) => Reject::BareCr,
        },
        b' ' | b'\t' => Reject::RequestLineSpace,
        b'\n' => Reject::BareLf,
        0 => Reject::Nul,
        _ => Reject::MethodByte,
    })
}

#[cold]
fn odd_target(byte: u8) -> Reject {
    match byte {
        b' ' | b'\t' => Reject::RequestLineSpace,
        b'\r' | b'\n' => Reject::VersionMissing,
        b'#' => Reject::TargetFragment,
        0 => Reject::Nul,
        _ => Reject::TargetByte,
    }
}

/// What is wrong with a version and the end of its line; nothing if it is only incomplete.
#[cold]
fn odd_version(rest: &[u8]) -> Result<Option<usize>, Reject> {
    for (at, byte) in rest.iter().enumerate() {
        let fits = match at {
            5 | 7 => byte.is_ascii_digit(),
            _ => b"HTTP/ . \r\n".get(at) == Some(byte),
        };
        if !fits {
            return Err(match byte {
                _ if at == 9 => Reject::BareCr,
                b' ' | b'\t' => Reject::RequestLineSpace,
                0 => Reject::Nul,
                b'\r' | b'\n' if at == 0 => Reject::VersionMissing,
                b'\n' => Reject::BareLf,
                _ => Reject::VersionMalformed,
            });
        }
        if at == 7 && !rest.starts_with(b"HTTP/1.1") && !rest.starts_with(b"HTTP/1.0") {
            return Err(Reject::VersionUnsupported);
        }
    }
    Ok(None)
}

/// Splits the target into its parts (RFC 9112, section 3.2).
fn split_target(buf: &[u8], query: Option<usize>, request: &mut Request) -> Result<(), Reject> {
    let target = request.target;
    let (start, end) = (target.start as usize, target.end as usize);
    let path_end = query.unwrap_or(end);
    request.query = query.map(|at| Span::new(at + 1, end));
    if request.method_name.of(buf) == b"CONNECT" {
        return Err(Reject::MethodConnect);
    }
    match target.of(buf) {
        [b'/', ..] => request.path = Span::new(start, path_end),
        b"*" if request.method == Method::Options => {
            request.asterisk = true;
            request.path = target;
        }
        absolute => {
            let scheme = absolute.iter().position(|byte| *byte == b':').unwrap_or(0);
            if check::scheme_port(&absolute[..scheme]).is_none()
                || !absolute[scheme..].starts_with(b"://")
            {
                return Err(Reject::TargetForm);
            }
            let authority = start + scheme + 3;
            let len = buf
                .get(authority..path_end)
                .and_then(|rest| rest.iter().position(|byte| *byte == b'/'));
            let authority_end = len.map_or(path_end, |len| authority + len);
            request.authority = check::authority(buf, Span::new(authority, authority_end))?;
            request.path = Span::new(authority_end, path_end);
            // RFC 9112, section 3.2.4.
            request.asterisk = request.method == Method::Options
                && request.path.is_empty()
                && request.query.is_none();
        }
    }
    Ok(())
}

/// Looks at what the fields say together.
fn settle(buf: &[u8], limits: &Limits, request: &mut Request) -> Result<(), Reject> {
    let http10 = request.version == Version::Http10;
    let mut host: Option<Authority> = None;
    let mut body = Body::default();
    let mut connection = Connection::default();
    let mut upgrades = 0;
    let mut upgrade = Span::default();
    for at in 0..request.fields.len() {
        let Field { value, known, .. } = request.fields[at];
        match known {
            Known::Host if host.is_some() => return Err(Reject::HostRepeated),
            Known::Host => host = Some(check::authority(buf, value)?),
            Known::ContentLength => body.read_length(value.of(buf))?,
            Known::TransferEncoding if http10 => return Err(Reject::EncodingVersion),
            Known::TransferEncoding => body.read_encoding(value.of(buf))?,
            Known::Connection => connection.read(buf, value, &mut request.fields)?,
            Known::Upgrade => {
                upgrades += 1;
                upgrade = value;
            }
            Known::Te => {
                request.te_trailers |= check::list(value.of(buf))
                    .any(|coding| coding.eq_ignore_ascii_case(b"trailers"));
            }
            // HTTP/1.0 has no expectations (RFC 9110, section 10.1.1), and the upstream, which
            // gets HTTP/1.1, must not see one.
            Known::Expect if http10 => request.fields[at].kept = false,
            Known::Expect if !value.of(buf).eq_ignore_ascii_case(b"100-continue") => {
                return Err(Reject::Expectation);
            }
            Known::Expect => request.expect_continue = true,
            _ => {}
        }
    }
    settle_authority(buf, host, request)?;
    request.framing = match body {
        Body { chunked: true, .. } => Framing::Chunked,
        Body { length: None, .. } => Framing::None,
        Body {
            length: Some(length),
            ..
        } if length > limits.body_bytes => return Err(Reject::BodyTooLarge),
        Body {
            length: Some(length),
            ..
        } => Framing::Length(length),
    };
    request.keep_alive = !connection.close && (!http10 || connection.keep_alive);
    if connection.upgrade
        && upgrades == 1
        && !http10
        && request.framing.is_empty()
        && check::may_upgrade(upgrade.of(buf))
    {
        request.upgrade = Some(upgrade);
    }
    Ok(())
}

/// RFC 9112, section 3.2.2, says that the authority of the target counts and not `Host`; those
/// that differ were made to be read in two ways.
fn settle_authority(
    buf: &[u8],
    host: Option<Authority>,
    request: &mut Request,
) -> Result<(), Reject> {
    let Some(host) = host else {
        return if request.version == Version::Http10 {
            Ok(())
        } else {
            Err(Reject::HostMissing)
        };
    };
    if request.authority.whole.is_empty() {
        request.authority = host;
        return Ok(());
    }
    let target = request.target.of(buf);
    let scheme = target.split(|byte| *byte == b':').next();
    let port = check::scheme_port(scheme.unwrap_or_default()).unwrap_or_default();
    if check::same_authority(buf, &request.authority, &host, port) {
        Ok(())
    } else {
        Err(Reject::HostDiffers)
    }
}
