//! The head of a request as a server gets it.

use super::exchange::{Exchange, Ids, Seen};
use crate::config::proxy::listener::ClientHeader;
use crate::l7::{forwarded, head::Known, http1::write, route::Route};

/// Writes the head of a request as a server gets it.
pub(super) fn write_head(
    exchange: &Exchange<'_>,
    seen: &Seen<'_>,
    path: &[u8],
    route: &Route,
    out: &mut Vec<u8>,
) {
    let Seen { request, bytes, .. } = *seen;
    let Exchange {
        conn,
        listener,
        facts,
        ..
    } = exchange;
    let rules = &route.request_headers;
    write::request_line(
        out,
        request.method_name.of(bytes),
        path,
        request.query(bytes),
    );
    // There is one, whoever it is by.
    let own_host = rules.added().iter().find(|(name, _)| **name == *b"host");
    let host = own_host.map_or(request.authority.whole.of(bytes), |(_, value)| value);
    write::host(out, host);
    write::fields(out, bytes, &request.fields, |field| {
        !field.known.is_forwarding()
            && !matches!(
                field.known,
                // Whoever waits for 100 gets it from here.
                Known::Expect | Known::XRequestId | Known::Traceparent
            )
            // It belongs to the trace that it came with.
            && (facts.ids.is_traced || field.known != Known::Tracestate)
            && (rules.is_empty() || !rules.drops(field.name.of(bytes)))
    });
    let peer = conn.peer.ip();
    let believed = listener.believes(peer);
    let chain = |known| {
        let values = request.known(bytes, known);
        values.filter(move |_| forwarded::is_believed(believed, known))
    };
    // What a route says of a field holds for those of our own as well.
    let is_wanted = |name: &[u8]| rules.is_empty() || !rules.drops(name);
    if is_wanted(b"x-forwarded-for") {
        out.extend_from_slice(b"X-Forwarded-For: ");
        forwarded::chain(out, chain(Known::XForwardedFor));
        // Servers that do not read `Forwarded` hear who was found there.
        if believed == Some(ClientHeader::Forwarded)
            && let Some(client) = facts.client.filter(|client| *client != conn.peer)
        {
            forwarded::address(out, client.ip());
            out.extend_from_slice(b", ");
        }
        forwarded::address(out, peer);
        out.extend_from_slice(b"\r\n");
    }
    let scheme = if conn.is_secure { "https" } else { "http" };
    if is_wanted(b"x-forwarded-proto") {
        let told = chain(Known::XForwardedProto).next();
        write::field(out, b"X-Forwarded-Proto", told.unwrap_or(scheme.as_bytes()));
    }
    if is_wanted(b"x-forwarded-host") {
        let told = chain(Known::XForwardedHost).next();
        let host = told.unwrap_or(request.authority.whole.of(bytes));
        write::field(out, b"X-Forwarded-Host", host);
    }
    // Only where somebody before speaks it.
    if is_wanted(b"forwarded") && chain(Known::Forwarded).next().is_some() {
        out.extend_from_slice(b"Forwarded: ");
        forwarded::chain(out, chain(Known::Forwarded));
        forwarded::element(out, peer, scheme, request.authority.whole.of(bytes));
        out.extend_from_slice(b"\r\n");
    }
    if is_wanted(b"x-request-id") {
        write::field(out, b"X-Request-Id", &facts.ids.request);
    }
    if is_wanted(b"traceparent") {
        traceparent(out, &facts.ids);
    }
    for (name, value) in rules.added() {
        if **name != *b"host" {
            write::field(out, name, value);
        }
    }
    write::framing(out, request.framing);
    write::connection(
        out,
        write::Connection {
            upgrade: request.upgrade.map(|span| span.of(bytes)),
            te_trailers: request.te_trailers,
            ..write::Connection::default()
        },
    );
    write::end(out);
}

/// The trace goes on with a span of our own (W3C Trace Context, 3.2).
fn traceparent(out: &mut Vec<u8>, ids: &Ids) {
    out.extend_from_slice(b"traceparent: 00-");
    out.extend_from_slice(&ids.trace);
    out.push(b'-');
    let span = ids.server_span;
    for i in (0..16).rev() {
        out.push(b"0123456789abcdef"[(span >> (4 * i)) as usize & 15]);
    }
    out.push(b'-');
    out.extend_from_slice(&ids.flags);
    out.extend_from_slice(b"\r\n");
}
