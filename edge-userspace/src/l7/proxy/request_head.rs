//! The head of a request as a server gets it.

use hyper::{
    Method, Request, Uri,
    header::{CONTENT_LENGTH, HeaderValue, TE},
    http,
};

use super::{
    exchange::{Exchange, Facts, Seen, Try},
    group::Group,
    h2,
    ids::Ids,
    worker::Worker,
};
use crate::{
    config::proxy::{listener::ClientHeader, upstream::Protocol},
    l7::{
        forwarded,
        head::{self, Framing, Known, decimal},
        http1::write,
        refusal::Refusal,
        route::Route,
    },
};

/// The head of a request, in the version that its server speaks.
pub(super) enum Head {
    Http1(Vec<u8>),
    Http2(Box<Request<()>>),
}

impl Head {
    /// That of a request for the servers of a group.
    ///
    /// # Errors
    /// When that version has no way to write it.
    pub(super) fn new(
        exchange: &Exchange<'_>,
        seen: &Seen<'_>,
        path: &[u8],
        route: &Route,
        group: &Group,
    ) -> Result<Self, Refusal> {
        match group.config.protocol {
            Protocol::Http1 => {
                let mut out = exchange.conn.worker.out();
                write_head(exchange, seen, path, route, &mut out);
                Ok(Self::Http1(out))
            }
            Protocol::Http2 => {
                let mut head = Http2Head::new(group.config.tls.is_some());
                write_head(exchange, seen, path, route, &mut head);
                let request = head.into_request().ok_or(Refusal::Path)?;
                Ok(Self::Http2(Box::new(request)))
            }
        }
    }

    /// Tells the next server of another span than the one before, if it tells of any.
    pub(super) fn change_span(&mut self, ids: &Ids, before: u64, next: u64) {
        let value = |server_span| {
            let mut value = Vec::with_capacity(TRACEPARENT);
            traceparent(
                &mut value,
                &Ids {
                    server_span,
                    ..*ids
                },
            );
            value
        };
        let (old, new) = (value(before), value(next));
        match self {
            Self::Http1(head) => {
                if let Some(at) = head.windows(old.len()).position(|part| part == old)
                    && let Some(place) = head.get_mut(at..at + new.len())
                {
                    place.copy_from_slice(&new);
                }
            }
            Self::Http2(request) => {
                let told = request.headers_mut().get_mut("traceparent");
                if let Some(told) = told.filter(|told| told.as_bytes() == old)
                    && let Ok(new) = HeaderValue::from_bytes(&new)
                {
                    *told = new;
                }
            }
        }
    }

    /// Gives its memory back.
    pub(super) fn give_back(self, worker: &Worker) {
        match self {
            Self::Http1(out) => worker.give_out(out),
            Self::Http2(_) => {}
        }
    }
}

/// Notes that a server is asked, which hears of a span of its own: the first one of that which
/// stands in the head, and others of a new one.
pub(super) fn begin_span(facts: &mut Facts, server: usize, head: &mut Head, new: u64) {
    let ids = &facts.ids;
    let span = match facts.told.last() {
        None => ids.server_span,
        Some(last) => {
            head.change_span(ids, last.span, new);
            new
        }
    };
    facts.told.push(Try {
        span,
        server,
        begin: Worker::now(),
        outcome: None,
        ended: None,
    });
}

/// Where the head of a request is written to.
pub(super) trait Sink {
    /// Begins it: for whom it is.
    fn begin(&mut self, method: &[u8], path: &[u8], query: Option<&[u8]>, host: &[u8]);
    /// One field.
    fn field(&mut self, name: &[u8], value: &[u8]);
    /// One field whose value is put together.
    fn compose(&mut self, name: &[u8], value: impl FnOnce(&mut Vec<u8>));
    /// Ends it: where the message ends, and what is said of the connection.
    fn end(&mut self, framing: Framing, connection: write::Connection<'_>);
}

impl Sink for Vec<u8> {
    fn begin(&mut self, method: &[u8], path: &[u8], query: Option<&[u8]>, host: &[u8]) {
        write::request_line(self, method, path, query);
        write::host(self, host);
    }

    fn field(&mut self, name: &[u8], value: &[u8]) {
        write::field(self, name, value);
    }

    fn compose(&mut self, name: &[u8], value: impl FnOnce(&mut Vec<u8>)) {
        self.extend_from_slice(name);
        self.extend_from_slice(b": ");
        value(self);
        self.extend_from_slice(b"\r\n");
    }

    fn end(&mut self, framing: Framing, connection: write::Connection<'_>) {
        write::framing(self, framing);
        write::connection(self, connection);
        write::end(self);
    }
}

/// A head of HTTP/2.
struct Http2Head {
    head: http::request::Parts,
    is_secure: bool,
    /// Whether there is a way to write for whom it is.
    is_addressed: bool,
    /// A value while it is put together.
    value: Vec<u8>,
}

impl Http2Head {
    /// For a server that is spoken to by TLS, or not: some refuse another `:scheme`.
    fn new(is_secure: bool) -> Self {
        Self {
            head: Request::new(()).into_parts().0,
            is_secure,
            is_addressed: false,
            value: Vec::new(),
        }
    }

    fn into_request(self) -> Option<Request<()>> {
        let Self {
            head, is_addressed, ..
        } = self;
        is_addressed.then(|| Request::from_parts(head, ()))
    }

    fn uri(&self, host: &[u8], target: &[u8]) -> Option<Uri> {
        let uri = Uri::builder().path_and_query(target);
        if host.is_empty() {
            // Of HTTP/1.0, which need not say.
            return uri.build().ok();
        }
        let scheme = if self.is_secure { "https" } else { "http" };
        uri.scheme(scheme).authority(host).build().ok()
    }
}

impl Sink for Http2Head {
    fn begin(&mut self, method: &[u8], path: &[u8], query: Option<&[u8]>, host: &[u8]) {
        let mut target = path.to_vec();
        if let Some(query) = query {
            target.push(b'?');
            target.extend_from_slice(query);
        }
        let uri = self.uri(host, &target);
        let uri = uri.or_else(|| self.uri(host, &escape(&target)));
        let method = Method::from_bytes(method).ok();
        if let Some((uri, method)) = uri.zip(method) {
            (self.head.uri, self.head.method) = (uri, method);
            self.is_addressed = true;
        }
    }

    fn field(&mut self, name: &[u8], value: &[u8]) {
        h2::append(&mut self.head.headers, name, value);
    }

    fn compose(&mut self, name: &[u8], value: impl FnOnce(&mut Vec<u8>)) {
        self.value.clear();
        value(&mut self.value);
        h2::append(&mut self.head.headers, name, &self.value);
    }

    fn end(&mut self, framing: Framing, connection: write::Connection<'_>) {
        if let Framing::Length(length) = framing {
            let length = HeaderValue::from(length);
            self.head.headers.insert(CONTENT_LENGTH, length);
        }
        // The one thing of a connection that a request of HTTP/2 may say (RFC 9113, section 8.2.2).
        // A wish to switch protocols is passed over, which HTTP/2 has not.
        if connection.te_trailers {
            let trailers = HeaderValue::from_static("trailers");
            self.head.headers.insert(TE, trailers);
        }
    }
}

/// A target with all bytes escaped that RFC 3986 does not let stand for themselves. Browsers send
/// some of them as they are.
fn escape(target: &[u8]) -> Vec<u8> {
    let mut escaped = Vec::with_capacity(3 * target.len());
    for &byte in target {
        if byte.is_ascii_alphanumeric() || b"-._~!$&'()*+,;=:@/?%".contains(&byte) {
            escaped.push(byte);
        } else {
            let digit = |at: u8| b"0123456789ABCDEF"[usize::from(at & 15)];
            escaped.extend([b'%', digit(byte >> 4), digit(byte)]);
        }
    }
    escaped
}

/// Writes the head of a request as a server gets it.
pub(super) fn write_head(
    exchange: &Exchange<'_>,
    seen: &Seen<'_>,
    path: &[u8],
    route: &Route,
    out: &mut impl Sink,
) {
    let Seen { request, bytes, .. } = *seen;
    let Exchange {
        conn,
        believed,
        facts,
        ..
    } = exchange;
    let believed = *believed;
    let rules = &route.request_headers;
    // There is one, whoever it is by.
    let own_host = rules.added().iter().find(|(name, _)| **name == *b"host");
    let host = own_host.map_or(request.authority.whole.of(bytes), |(_, value)| value);
    out.begin(
        request.method_name.of(bytes),
        path,
        request.query(bytes),
        host,
    );
    let kept = request.fields.iter().filter(|field| {
        field.kept
            && !field.known.is_framing()
            && !field.known.is_forwarding()
            && !matches!(
                field.known,
                // Whoever waits for 100 gets it from here.
                Known::Expect | Known::XRequestId | Known::Traceparent
            )
            // It belongs to the trace that it came with.
            && (facts.ids.is_traced || field.known != Known::Tracestate)
            && (rules.is_empty() || !rules.drops(field.name.of(bytes)))
    });
    let has_max_forwards = request.method.has_max_forwards();
    for field in kept {
        let (name, value) = (field.name.of(bytes), field.value.of(bytes));
        if has_max_forwards
            && name.eq_ignore_ascii_case(head::MAX_FORWARDS)
            && let Some(left) = head::parse_max_forwards(value)
        {
            out.compose(name, |out| decimal::write(out, left.saturating_sub(1)));
        } else {
            out.field(name, value);
        }
    }
    let peer = conn.peer.ip();
    let chain = |known| {
        let values = request.known(bytes, known);
        values.filter(move |_| forwarded::is_believed(believed, known))
    };
    // What a route says of a field holds for those of our own as well.
    let is_wanted = |name: &[u8]| rules.is_empty() || !rules.drops(name);
    if is_wanted(b"x-forwarded-for") {
        out.compose(b"X-Forwarded-For", |out| {
            forwarded::chain(out, chain(Known::XForwardedFor));
            // Servers that do not read `Forwarded` hear who was found there.
            if believed == Some(ClientHeader::Forwarded)
                && let Some(client) = facts.client.filter(|client| *client != conn.peer)
            {
                forwarded::address(out, client.ip());
                out.extend_from_slice(b", ");
            }
            forwarded::address(out, peer);
        });
    }
    let scheme = if conn.is_secure { "https" } else { "http" };
    if is_wanted(b"x-forwarded-proto") {
        let told = chain(Known::XForwardedProto).next();
        out.field(b"X-Forwarded-Proto", told.unwrap_or(scheme.as_bytes()));
    }
    if is_wanted(b"x-forwarded-host") {
        let told = chain(Known::XForwardedHost).next();
        let host = told.unwrap_or(request.authority.whole.of(bytes));
        out.field(b"X-Forwarded-Host", host);
    }
    // Only where somebody before speaks it.
    if is_wanted(b"forwarded") && chain(Known::Forwarded).next().is_some() {
        out.compose(b"Forwarded", |out| {
            forwarded::chain(out, chain(Known::Forwarded));
            forwarded::element(out, peer, scheme, request.authority.whole.of(bytes));
        });
    }
    if is_wanted(b"x-request-id") {
        out.field(b"X-Request-Id", &facts.ids.request);
    }
    if is_wanted(b"traceparent") {
        out.compose(b"traceparent", |out| traceparent(out, &facts.ids));
    }
    for (name, value) in rules.added() {
        if **name != *b"host" {
            out.field(name, value);
        }
    }
    out.end(
        request.framing,
        write::Connection {
            upgrade: request.upgrade.map(|span| span.of(bytes)),
            te_trailers: request.te_trailers,
            ..write::Connection::default()
        },
    );
}

/// Bytes of a `traceparent`.
const TRACEPARENT: usize = 55;

/// The trace goes on with a span of our own (W3C Trace Context, 3.2).
fn traceparent(out: &mut Vec<u8>, ids: &Ids) {
    out.extend_from_slice(b"00-");
    out.extend_from_slice(&ids.trace);
    out.push(b'-');
    let span = ids.server_span;
    for i in (0..16).rev() {
        out.push(b"0123456789abcdef"[(span >> (4 * i)) as usize & 15]);
    }
    out.push(b'-');
    out.extend_from_slice(&ids.flags);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_server_hears_of_its_own_span() {
        let ids = Ids {
            server_span: 0x0123_4567_89ab_cdef,
            ..Ids::default()
        };
        let mut value = Vec::new();
        traceparent(&mut value, &ids);
        assert_eq!(value.len(), TRACEPARENT);
        let own = String::from_utf8(value).unwrap();
        let next = own.replace("0123456789abcdef", "00000000000000ff");
        // Somebody else's is left alone.
        let text = |own: &str| format!("GET / HTTP/1.1\r\nx: 1\r\ntraceparent: {own}\r\n\r\n");
        for (told, then) in [(&*own, &*next), ("00-1-2-01", "00-1-2-01")] {
            let mut head = Head::Http1(text(told).into_bytes());
            head.change_span(&ids, ids.server_span, 0xff);
            assert!(matches!(head, Head::Http1(head) if head == text(then).as_bytes()));
            let request = Request::get("/").header("traceparent", told);
            let mut head = Head::Http2(Box::new(request.body(()).unwrap()));
            head.change_span(&ids, ids.server_span, 0xff);
            assert!(matches!(head, Head::Http2(head) if head.headers()["traceparent"] == then));
        }
    }
}
