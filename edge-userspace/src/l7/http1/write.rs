//! What goes to the other side. All of these append to the caller's buffer.
//!
//! What says where a message goes and ends is made from what was understood and never
//! copied: [`fields`] leaves out `Host`, `Content-Length` and `Transfer-Encoding`, and
//! [`host`] and [`framing`] write each once.
//!
//! A head is a [`request_line`] or [`status_line`], then [`host`] (requests), [`fields`] and
//! what else is wanted ([`field`]), [`framing`], [`connection`], [`end`].

use super::super::head::{Field, Framing, decimal};

/// `METHOD path?query HTTP/1.1`.
pub fn request_line(out: &mut Vec<u8>, method: &[u8], path: &[u8], query: Option<&[u8]>) {
    out.extend_from_slice(method);
    out.push(b' ');
    out.extend_from_slice(path);
    if let Some(query) = query {
        out.push(b'?');
        out.extend_from_slice(query);
    }
    out.extend_from_slice(b" HTTP/1.1\r\n");
}

/// `Host`, with an empty value when a request of HTTP/1.0 named none (RFC 9112, section 3.2).
pub fn host(out: &mut Vec<u8>, authority: &[u8]) {
    field(out, b"Host", authority);
}

/// `HTTP/1.1 status reason`.
pub fn status_line(out: &mut Vec<u8>, status: u16, reason: &[u8]) {
    out.extend_from_slice(b"HTTP/1.1 ");
    decimal::write(out, u64::from(status));
    out.push(b' ');
    out.extend_from_slice(reason);
    out.extend_from_slice(b"\r\n");
}

/// One field. Neither part may have what ends a line; those of messages and of a checked
/// configuration do not.
pub fn field(out: &mut Vec<u8>, name: &[u8], value: &[u8]) {
    out.extend_from_slice(name);
    out.extend_from_slice(b": ");
    out.extend_from_slice(value);
    out.extend_from_slice(b"\r\n");
}

/// The fields of a received head that go on and that `keep` wants, which leaves out those that
/// the caller writes anew: of a request towards an upstream all that
/// [`Known::is_forwarding`](super::super::head::Known::is_forwarding) names, and `Expect` when
/// the client has been answered 100 here.
pub fn fields(
    out: &mut Vec<u8>,
    buf: &[u8],
    fields: &[Field],
    mut keep: impl FnMut(&Field) -> bool,
) {
    for this in fields {
        if this.kept && !this.known.is_framing() && keep(this) {
            field(out, this.name.of(buf), this.value.of(buf));
        }
    }
}

/// The one field that says where the message ends, if one is needed.
pub fn framing(out: &mut Vec<u8>, framing: Framing) {
    match framing {
        Framing::None | Framing::UntilClose => {}
        Framing::Length(length) => {
            out.extend_from_slice(b"Content-Length: ");
            decimal::write(out, length);
            out.extend_from_slice(b"\r\n");
        }
        Framing::Chunked => out.extend_from_slice(b"Transfer-Encoding: chunked\r\n"),
    }
}

/// What is said of the connection itself.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Connection<'a> {
    /// It ends with this message.
    pub close: bool,
    /// It goes on, which a client of HTTP/1.0 has to be told.
    pub keep_alive: bool,
    /// The protocols to switch to.
    pub upgrade: Option<&'a [u8]>,
    /// Trailers are taken; for requests.
    pub te_trailers: bool,
}

/// `Connection`, and the fields that it then has to name: `Upgrade` and `TE`.
pub fn connection(out: &mut Vec<u8>, connection: Connection<'_>) {
    let mut separator: &[u8] = b"Connection: ";
    for (is, option) in [
        (connection.close, b"close".as_slice()),
        (connection.keep_alive, b"keep-alive"),
        (connection.upgrade.is_some(), b"upgrade"),
        (connection.te_trailers, b"te"),
    ] {
        if is {
            out.extend_from_slice(separator);
            out.extend_from_slice(option);
            separator = b", ";
        }
    }
    if separator == b", " {
        out.extend_from_slice(b"\r\n");
    }
    if let Some(protocols) = connection.upgrade {
        field(out, b"Upgrade", protocols);
    }
    if connection.te_trailers {
        out.extend_from_slice(b"TE: trailers\r\n");
    }
}

/// The empty line.
pub fn end(out: &mut Vec<u8>) {
    out.extend_from_slice(b"\r\n");
}

/// What precedes `len` bytes of data; [`chunk_end`] follows them. With 0 it would end the body.
pub fn chunk(out: &mut Vec<u8>, len: usize) {
    debug_assert!(len > 0, "a chunk without data ends the body");
    let digits = (usize::BITS - len.leading_zeros()).div_ceil(4).max(1);
    for digit in (0..digits).rev() {
        out.push(b"0123456789abcdef"[(len >> (4 * digit)) & 0xf]);
    }
    out.extend_from_slice(b"\r\n");
}

/// What follows the data of a chunk.
pub fn chunk_end(out: &mut Vec<u8>) {
    out.extend_from_slice(b"\r\n");
}

/// The end of a chunked body, with the trailers that go on.
pub fn last_chunk(out: &mut Vec<u8>, buf: &[u8], trailers: &[Field]) {
    out.extend_from_slice(b"0\r\n");
    fields(out, buf, trailers, |_| true);
    end(out);
}

/// `HTTP/1.1 100 Continue`, whole.
pub const CONTINUE: &[u8] = b"HTTP/1.1 100 Continue\r\n\r\n";

/// The reason that goes with a status (RFC 9110, section 15, RFC 6585); empty if it is of no
/// RFC that matters here.
#[must_use]
pub const fn reason(status: u16) -> &'static str {
    match status {
        100 => "Continue",
        101 => "Switching Protocols",
        103 => "Early Hints",
        200 => "OK",
        201 => "Created",
        202 => "Accepted",
        203 => "Non-Authoritative Information",
        204 => "No Content",
        205 => "Reset Content",
        206 => "Partial Content",
        300 => "Multiple Choices",
        301 => "Moved Permanently",
        302 => "Found",
        303 => "See Other",
        304 => "Not Modified",
        307 => "Temporary Redirect",
        308 => "Permanent Redirect",
        400 => "Bad Request",
        401 => "Unauthorized",
        403 => "Forbidden",
        404 => "Not Found",
        405 => "Method Not Allowed",
        406 => "Not Acceptable",
        408 => "Request Timeout",
        409 => "Conflict",
        410 => "Gone",
        411 => "Length Required",
        412 => "Precondition Failed",
        413 => "Content Too Large",
        414 => "URI Too Long",
        415 => "Unsupported Media Type",
        416 => "Range Not Satisfiable",
        417 => "Expectation Failed",
        421 => "Misdirected Request",
        422 => "Unprocessable Content",
        426 => "Upgrade Required",
        428 => "Precondition Required",
        429 => "Too Many Requests",
        431 => "Request Header Fields Too Large",
        451 => "Unavailable For Legal Reasons",
        500 => "Internal Server Error",
        501 => "Not Implemented",
        502 => "Bad Gateway",
        503 => "Service Unavailable",
        504 => "Gateway Timeout",
        505 => "HTTP Version Not Supported",
        511 => "Network Authentication Required",
        _ => "",
    }
}
