//! Messages of HTTP/2 (RFC 9113) as heads in a buffer.
//!
//! What came apart in frames is asked the same as what came in lines, and what only lines
//! could confuse as well: a field value with a line's end would be two fields behind a
//! translation to HTTP/1.

use super::check::{self, Body};
use super::{Field, Framing, Known, Limits, Method, Of, Reject, Request, Response, Span, Version};

/// What a request of HTTP/2 has beside its fields.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Parts<'a> {
    /// `:method`.
    pub method: &'a [u8],
    /// `:scheme`; http or https.
    pub scheme: &'a [u8],
    /// `:authority`, if it was sent; `Host` may stand for it.
    pub authority: Option<&'a [u8]>,
    /// `:path`, with the query.
    pub path: &'a [u8],
    /// Whether the request has ended with its head.
    pub ended: bool,
}

/// Writes a request's head to the end of `buf` and into `request`, whose spans are of `buf`.
/// `fields` are the fields without the pseudo-fields; they are gone through twice, because all
/// `Cookie` become one (RFC 9113, section 8.2.3).
///
/// # Errors
///
/// Why the request is refused: its stream is to be reset, or the status answered.
pub fn request<'a>(
    parts: &Parts<'_>,
    fields: impl Iterator<Item = (&'a [u8], &'a [u8])> + Clone,
    limits: &Limits,
    buf: &mut Vec<u8>,
    request: &mut Request,
) -> Result<(), Reject> {
    request.reset();
    request.version = Version::Http2;
    request.keep_alive = true;
    let start = buf.len();
    if parts.method == b"CONNECT" {
        return Err(Reject::MethodConnect);
    }
    if parts.method.is_empty() || check::token(parts.method).0 < parts.method.len() {
        return Err(Reject::MethodByte);
    }
    request.method = Method::of(parts.method);
    request.method_name = append(buf, parts.method);
    let default_port = check::scheme_port(parts.scheme).ok_or(Reject::PseudoFields)?;
    path(parts.path, limits, buf, request)?;
    if let Some(authority) = parts.authority {
        let span = append(buf, authority);
        request.authority = check::authority(buf, span)?;
    }

    let mut host = None;
    let mut body = Body::default();
    let mut cookies = false;
    for (name, value) in fields.clone() {
        let field = self::field(
            name,
            value,
            Of::Request,
            start,
            limits,
            buf,
            &request.fields,
        )?;
        match field.known {
            Known::Host if host.is_some() => return Err(Reject::HostRepeated),
            Known::Host => host = Some(check::authority(buf, field.value)?),
            Known::ContentLength => body.read_length(value)?,
            Known::Te => request.te_trailers = true,
            Known::Expect if value.eq_ignore_ascii_case(b"100-continue") => {
                request.expect_continue = true;
            }
            Known::Expect => return Err(Reject::Expectation),
            Known::Cookie => {
                // Its place is taken by the one that is made of all of them, which is held to the
                // limit of bytes then.
                cookies = true;
                buf.truncate(field.name.start as usize);
                continue;
            }
            _ => {}
        }
        request.fields.push(field);
    }
    if cookies {
        join_cookies(fields, start, limits, buf, request)?;
    }
    match (request.authority.whole.is_empty(), host) {
        (true, None) => return Err(Reject::HostMissing),
        (true, Some(host)) => request.authority = host,
        (false, Some(host))
            if !check::same_authority(buf, &request.authority, &host, default_port) =>
        {
            return Err(Reject::HostDiffers);
        }
        (false, _) => {}
    }
    request.framing = match (body.length, parts.ended) {
        (Some(1..), true) => return Err(Reject::LengthWithoutBody),
        (Some(length), _) if length > limits.body_bytes => return Err(Reject::BodyTooLarge),
        (Some(length), _) => Framing::Length(length),
        (None, true) => Framing::None,
        (None, false) => Framing::Chunked,
    };
    Ok(())
}

/// Writes an answer's head to the end of `buf` and into `response`. `ended` says that no data
/// follow.
///
/// # Errors
///
/// Why the answer is refused; the client then gets 502.
pub fn response<'a>(
    status: u16,
    fields: impl Iterator<Item = (&'a [u8], &'a [u8])>,
    ended: bool,
    method: Method,
    limits: &Limits,
    buf: &mut Vec<u8>,
    response: &mut Response,
) -> Result<(), Reject> {
    response.reset();
    response.version = Version::Http2;
    response.keep_alive = true;
    response.status = status;
    // HTTP/2 has no switch of protocols (RFC 9113, section 8.6).
    if !(100..600).contains(&status) {
        return Err(Reject::StatusCode);
    }
    if status == 101 {
        return Err(Reject::UpgradeUnasked);
    }
    let start = buf.len();
    let mut body = Body::default();
    for (name, value) in fields {
        let field = self::field(
            name,
            value,
            Of::Response,
            start,
            limits,
            buf,
            &response.fields,
        )?;
        if field.known == Known::ContentLength {
            body.read_length(value)?;
        }
        response.fields.push(field);
    }
    response.declared = body.length;
    let bodyless = matches!(status, 100..200 | 204 | 304) || method == Method::Head;
    response.framing = match body.length {
        Some(1..) if matches!(status, 100..200 | 204) => return Err(Reject::LengthWithoutBody),
        Some(1..) if ended && !bodyless => return Err(Reject::LengthWithoutBody),
        _ if bodyless => Framing::None,
        Some(length) => Framing::Length(length),
        None if ended => Framing::Length(0),
        None => Framing::Chunked,
    };
    Ok(())
}

/// Writes the trailers of a message to the end of `buf` and into `trailers`.
///
/// # Errors
///
/// Why they are refused.
pub fn trailers<'a>(
    fields: impl Iterator<Item = (&'a [u8], &'a [u8])>,
    of: Of,
    limits: &Limits,
    buf: &mut Vec<u8>,
    trailers: &mut Vec<Field>,
) -> Result<(), Reject> {
    trailers.clear();
    let start = buf.len();
    for (name, value) in fields {
        let mut field = self::field(name, value, of, start, limits, buf, trailers)?;
        field.kept &= field.known.may_trail();
        if field.known.is_framing() {
            return Err(Reject::TrailerField);
        }
        trailers.push(field);
    }
    Ok(())
}

fn append(buf: &mut Vec<u8>, bytes: &[u8]) -> Span {
    let start = buf.len();
    buf.extend_from_slice(bytes);
    Span::new(start, buf.len())
}

fn path(
    path: &[u8],
    limits: &Limits,
    buf: &mut Vec<u8>,
    request: &mut Request,
) -> Result<(), Reject> {
    if path.len() > limits.uri_bytes {
        return Err(Reject::TargetTooLong);
    }
    let (len, query) = check::target(path);
    match path.get(len) {
        None => {}
        Some(b'#') => return Err(Reject::TargetFragment),
        Some(0) => return Err(Reject::Nul),
        Some(_) => return Err(Reject::TargetByte),
    }
    request.asterisk = path == b"*" && request.method == Method::Options;
    if path.is_empty() {
        return Err(Reject::PseudoFields);
    }
    if path[0] != b'/' && !request.asterisk {
        return Err(Reject::TargetForm);
    }
    request.target = append(buf, path);
    let Span { start, end } = request.target;
    request.path = request.target;
    if let Some(query) = query {
        request.path.end = start + query as u32;
        request.query = Some(Span {
            start: request.path.end + 1,
            end,
        });
    }
    Ok(())
}

/// Checks one field and appends it, as it would stand in a head of HTTP/1.
fn field(
    name: &[u8],
    value: &[u8],
    of: Of,
    start: usize,
    limits: &Limits,
    buf: &mut Vec<u8>,
    before: &[Field],
) -> Result<Field, Reject> {
    if name.is_empty() {
        return Err(Reject::FieldNameEmpty);
    }
    let (len, underscore) = check::token(name);
    if len < name.len() {
        return Err(Reject::FieldNameByte);
    }
    if name.iter().any(u8::is_ascii_uppercase) {
        return Err(Reject::FieldNameCase);
    }
    if let Some(byte) = value.get(check::text(value)) {
        return Err(check::not_text(*byte));
    }
    if check::trim(value).len() < value.len() {
        return Err(Reject::FieldValueSpace);
    }
    let known = Known::of(name);
    // RFC 9113, section 8.2.2.
    match known {
        Known::Connection
        | Known::KeepAlive
        | Known::ProxyConnection
        | Known::Upgrade
        | Known::Http2Settings => return Err(Reject::ConnectionField),
        Known::TransferEncoding => return Err(Reject::EncodingVersion),
        Known::Te if !value.eq_ignore_ascii_case(b"trailers") => {
            return Err(Reject::ConnectionField);
        }
        _ => {}
    }
    if before.len() >= limits.fields {
        return Err(Reject::FieldsTooMany);
    }
    if buf.len() - start + name.len() + value.len() + 4 > limits.head_bytes {
        return Err(Reject::HeadTooLarge);
    }
    let name = append(buf, name);
    buf.extend_from_slice(b": ");
    let value = append(buf, value);
    buf.extend_from_slice(b"\r\n");
    Ok(Field {
        name,
        value,
        known,
        kept: !(known.is_hop_by_hop() || underscore && of == Of::Request),
    })
}

/// Appends one `Cookie` of all.
fn join_cookies<'a>(
    fields: impl Iterator<Item = (&'a [u8], &'a [u8])>,
    start: usize,
    limits: &Limits,
    buf: &mut Vec<u8>,
    request: &mut Request,
) -> Result<(), Reject> {
    let name = append(buf, b"cookie");
    buf.extend_from_slice(b": ");
    let value = buf.len();
    for (_, crumb) in fields.filter(|(name, _)| *name == b"cookie") {
        if buf.len() > value {
            buf.extend_from_slice(b"; ");
        }
        buf.extend_from_slice(crumb);
        if buf.len() - start > limits.head_bytes {
            return Err(Reject::HeadTooLarge);
        }
    }
    let value = Span::new(value, buf.len());
    buf.extend_from_slice(b"\r\n");
    request.fields.push(Field {
        name,
        value,
        known: Known::Cookie,
        kept: true,
    });
    Ok(())
}
