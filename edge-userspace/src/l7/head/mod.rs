//! Heads of messages as the proxy sees them, whichever version of HTTP they came by.
//!
//! A head stays in the connection's buffer while its message lasts, and body bytes come behind
//! it: what is known of it are spans of that buffer. A request of HTTP/2 is written into such a
//! buffer too ([`h2`]), so that routing, rules for fields, forwarding and logging exist once.

pub mod check;
pub mod decimal;
pub mod h2;
mod known;
mod reject;
#[cfg(test)]
mod tests;

pub use known::Known;
pub use reject::Reject;

/// A part of the connection's buffer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Span {
    /// The first byte.
    pub start: u32,
    /// Behind the last byte.
    pub end: u32,
}

impl Span {
    /// From `start` up to `end`; heads are limited far below 4 GiB.
    #[inline]
    #[must_use]
    pub const fn new(start: usize, end: usize) -> Self {
        Self {
            start: start as u32,
            end: end as u32,
        }
    }

    /// The bytes in the buffer that this is a part of. Empty when the buffer is another one and
    /// too short.
    #[inline]
    #[must_use]
    pub fn of(self, buf: &[u8]) -> &[u8] {
        buf.get(self.start as usize..self.end as usize)
            .unwrap_or_default()
    }

    /// How many bytes.
    #[must_use]
    pub const fn len(self) -> usize {
        self.end.saturating_sub(self.start) as usize
    }

    /// Whether it has no byte.
    #[must_use]
    pub const fn is_empty(self) -> bool {
        self.start >= self.end
    }
}

/// Whose fields are read, which says what becomes of names with underscores.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Of {
    /// A client's. They do not go on: for applications behind CGI `X_Real_IP` and `X-Real-IP`
    /// are the same.
    Request,
    /// An upstream's. They go on.
    Response,
}

/// One header field.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Field {
    /// Its name, as it was sent.
    pub name: Span,
    /// Its value without the white space around it.
    pub value: Span,
    /// Which name it is.
    pub known: Known,
    /// Whether it goes on to the other side. Not so are those that end at this hop
    /// ([`Known::is_hop_by_hop`]), those that `Connection` names, in requests those with an
    /// underscore in the name ([`Of`]), and behind a body those that mean nothing there
    /// ([`Known::may_trail`]).
    pub kept: bool,
}

/// Limits of what is accepted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Bytes of a head from its first byte to its empty line.
    pub head_bytes: usize,
    /// Header fields.
    pub fields: usize,
    /// Bytes of a request target.
    pub uri_bytes: usize,
    /// Bytes of a body, without the framing of chunks.
    pub body_bytes: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            head_bytes: 16 * 1024,
            fields: 100,
            uri_bytes: 8 * 1024,
            body_bytes: 10 * 1024 * 1024,
        }
    }
}

/// The version by which a message came.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
#[allow(missing_docs)]
pub enum Version {
    Http10,
    #[default]
    Http11,
    Http2,
}

impl Version {
    /// As it is written in messages and logs.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Http10 => "HTTP/1.0",
            Self::Http11 => "HTTP/1.1",
            Self::Http2 => "HTTP/2.0",
        }
    }
}

/// A request method. CONNECT is refused before there is a request.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Method {
    Get,
    Head,
    Post,
    Put,
    Delete,
    Options,
    Patch,
    Trace,
    /// Any other; its name is in the buffer.
    #[default]
    Other,
}

impl Method {
    /// Which method has this name. Names are case-sensitive (RFC 9110, section 9.1).
    #[inline]
    #[must_use]
    pub fn of(name: &[u8]) -> Self {
        match name {
            b"GET" => Self::Get,
            b"HEAD" => Self::Head,
            b"POST" => Self::Post,
            b"PUT" => Self::Put,
            b"DELETE" => Self::Delete,
            b"OPTIONS" => Self::Options,
            b"PATCH" => Self::Patch,
            b"TRACE" => Self::Trace,
            _ => Self::Other,
        }
    }

    /// Whether `Max-Forwards` bounds how often such a request is passed on (RFC 9110,
    /// section 7.6.2).
    #[must_use]
    pub const fn has_max_forwards(self) -> bool {
        matches!(self, Self::Options | Self::Trace)
    }

    /// Whether two such requests do the same as one (RFC 9110, section 9.2.2). Of an unknown
    /// method nobody knows.
    #[must_use]
    pub const fn is_idempotent(self) -> bool {
        !matches!(self, Self::Post | Self::Patch | Self::Other)
    }
}

/// Where a message ends.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Framing {
    /// With its head.
    #[default]
    None,
    /// After so many bytes; may be 0.
    Length(u64),
    /// With the last chunk. In HTTP/2: with the end of the stream, and nobody said before how
    /// many bytes that will be.
    Chunked,
    /// With the connection; only answers.
    UntilClose,
}

impl Framing {
    /// Whether no byte of a body follows.
    #[must_use]
    pub const fn is_empty(self) -> bool {
        matches!(self, Self::None | Self::Length(0))
    }

    /// How an answer that came like this goes on to a client of `version`: what has no length
    /// goes in chunks where there are any, and until the connection's end else.
    #[must_use]
    pub const fn towards(self, version: Version) -> Self {
        match (self, version) {
            (Self::Chunked | Self::UntilClose, Version::Http10) => Self::UntilClose,
            (Self::UntilClose, _) => Self::Chunked,
            (framing, _) => framing,
        }
    }
}

/// A host and perhaps a port, of `Host`, `:authority` or a URI.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Authority {
    /// Both, as they were sent; empty if there were none, which only HTTP/1.0 may.
    pub whole: Span,
    /// The host, an IPv6 address with its brackets. Letters may be of any case.
    pub host: Span,
    /// The port, if it was named.
    pub port: Option<u16>,
}

/// The field that bounds how often OPTIONS and TRACE are passed on.
pub const MAX_FORWARDS: &[u8] = b"max-forwards";

/// The number in a field `Max-Forwards`, if it is one; the largest there is for what is larger.
#[must_use]
pub fn parse_max_forwards(value: &[u8]) -> Option<u64> {
    let digit = |byte: &u8| byte.is_ascii_digit().then(|| u64::from(byte - b'0'));
    let first = digit(value.first()?)?;
    value.iter().skip(1).try_fold(first, |number, byte| {
        Some(number.saturating_mul(10).saturating_add(digit(byte)?))
    })
}

/// The head of a request.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Request {
    /// The method.
    pub method: Method,
    /// Its name.
    pub method_name: Span,
    /// The request target as it was sent.
    pub target: Span,
    /// The path; see [`Request::path`].
    pub path: Span,
    /// What stands behind the question mark, if there is one.
    pub query: Option<Span>,
    /// Whether the target is `*` (the method is OPTIONS then).
    pub asterisk: bool,
    /// For whom the request is.
    pub authority: Authority,
    /// By which version it came.
    pub version: Version,
    /// The header fields in the order in which they came.
    pub fields: Vec<Field>,
    /// Where the request ends.
    pub framing: Framing,
    /// Whether the client wants to go on with the connection afterwards.
    pub keep_alive: bool,
    /// Whether the client waits for 100 before it sends the body.
    pub expect_continue: bool,
    /// Whether the client takes trailers in the answer (`TE: trailers`).
    pub te_trailers: bool,
    /// The protocols to which the client wants to switch, if this may be offered: the whole
    /// list of one `Upgrade` that `Connection` names, in a request of HTTP/1.1 without a body,
    /// and not to another version of HTTP. Else the wish is passed over, as RFC 9110,
    /// section 7.8 allows.
    pub upgrade: Option<Span>,
    /// How far an incomplete head has been read; else 0.
    pub(in crate::l7) resume: usize,
}

impl Request {
    /// Forgets everything but the memory for fields.
    pub fn reset(&mut self) {
        let mut fields = std::mem::take(&mut self.fields);
        fields.clear();
        *self = Self {
            fields,
            ..Self::default()
        };
    }

    /// The path as it was sent, without decoding or removal of dots. `/` if the target has none,
    /// `*` if it is that.
    #[inline]
    #[must_use]
    pub fn path<'a>(&self, buf: &'a [u8]) -> &'a [u8] {
        if self.asterisk {
            b"*"
        } else if self.path.is_empty() {
            b"/"
        } else {
            self.path.of(buf)
        }
    }

    /// The query without its question mark.
    #[must_use]
    pub fn query<'a>(&self, buf: &'a [u8]) -> Option<&'a [u8]> {
        self.query.map(|query| query.of(buf))
    }

    /// The host without port; empty if there is none.
    #[must_use]
    pub fn host<'a>(&self, buf: &'a [u8]) -> &'a [u8] {
        self.authority.host.of(buf)
    }

    /// The values of the fields called `name`, in any case of letters.
    pub fn values<'a>(&'a self, buf: &'a [u8], name: &'a [u8]) -> impl Iterator<Item = &'a [u8]> {
        values(&self.fields, buf, name)
    }

    /// How often the request may still be passed on, where `Max-Forwards` bounds that: the least of
    /// its numbers.
    #[must_use]
    pub fn max_forwards(&self, buf: &[u8]) -> Option<u64> {
        if !self.method.has_max_forwards() {
            return None;
        }
        let numbers = self.values(buf, MAX_FORWARDS);
        numbers.filter_map(parse_max_forwards).min()
    }

    /// The values of the fields with a known name.
    pub fn known<'a>(
        &'a self,
        buf: &'a [u8],
        known: Known,
    ) -> impl DoubleEndedIterator<Item = &'a [u8]> + Clone {
        known_values(&self.fields, buf, known)
    }
}

/// The head of an answer.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Response {
    /// The status, 100 to 599.
    pub status: u16,
    /// What stands behind the status; may be empty.
    pub reason: Span,
    /// By which version it came.
    pub version: Version,
    /// The header fields in the order in which they came.
    pub fields: Vec<Field>,
    /// Where the answer ends.
    pub framing: Framing,
    /// What `Content-Length` says, also where no body follows: in answers to HEAD and with 304 it
    /// is the length of what GET would have got.
    pub declared: Option<u64>,
    /// Whether the connection can be used again afterwards.
    pub keep_alive: bool,
    /// The protocols to which a 101 switches.
    pub upgrade: Option<Span>,
    /// How far an incomplete head has been read; else 0.
    pub(in crate::l7) resume: usize,
}

impl Response {
    /// Forgets everything but the memory for fields.
    pub fn reset(&mut self) {
        let mut fields = std::mem::take(&mut self.fields);
        fields.clear();
        *self = Self {
            fields,
            ..Self::default()
        };
    }

    /// Whether another answer to the same request follows (100, 103, other 1xx but 101).
    #[must_use]
    pub const fn is_interim(&self) -> bool {
        self.status < 200 && self.status != 101
    }

    /// The values of the fields called `name`, in any case of letters.
    pub fn values<'a>(&'a self, buf: &'a [u8], name: &'a [u8]) -> impl Iterator<Item = &'a [u8]> {
        values(&self.fields, buf, name)
    }

    /// The values of the fields with a known name.
    pub fn known<'a>(
        &'a self,
        buf: &'a [u8],
        known: Known,
    ) -> impl DoubleEndedIterator<Item = &'a [u8]> + Clone {
        known_values(&self.fields, buf, known)
    }
}

fn values<'a>(
    fields: &'a [Field],
    buf: &'a [u8],
    name: &'a [u8],
) -> impl Iterator<Item = &'a [u8]> {
    fields
        .iter()
        .filter(move |field| field.name.of(buf).eq_ignore_ascii_case(name))
        .map(move |field| field.value.of(buf))
}

fn known_values<'a>(
    fields: &'a [Field],
    buf: &'a [u8],
    known: Known,
) -> impl DoubleEndedIterator<Item = &'a [u8]> + Clone {
    fields
        .iter()
        .filter(move |field| field.known == known)
        .map(move |field| field.value.of(buf))
}
