//! What requests and answers have in common, whichever way they go.

use std::{
    io,
    task::{Context, Poll, ready},
};

use ::h2::SendStream;
use hyper::{
    HeaderMap,
    body::Bytes,
    header::{HeaderName, HeaderValue},
};

use crate::l7::head::Field;

/// The fields of a message.
pub(super) fn pairs(fields: &HeaderMap) -> impl Iterator<Item = (&[u8], &[u8])> {
    let all = fields.iter();
    all.map(|(name, value)| (name.as_str().as_bytes(), value.as_bytes()))
}

/// Adds a field. What is no field of HTTP was refused when it came.
pub(in super::super) fn append(fields: &mut HeaderMap, name: &[u8], value: &[u8]) {
    if let (Ok(name), Ok(value)) = (HeaderName::from_bytes(name), HeaderValue::from_bytes(value)) {
        // More than there may be of them are no message that anybody reads.
        let _ = fields.try_append(name, value);
    }
}

/// Sends some bytes of a body, as many as fit; the last ones may end it.
///
/// # Errors
/// When nothing can be sent any more.
pub(super) fn poll_send(
    send: &mut SendStream<Bytes>,
    cx: &mut Context<'_>,
    data: &[u8],
    is_end: impl FnOnce(usize) -> bool,
) -> Poll<io::Result<usize>> {
    send.reserve_capacity(data.len());
    while send.capacity() == 0 {
        match ready!(send.poll_capacity(cx)) {
            Some(Ok(_)) => {}
            Some(Err(e)) => return Poll::Ready(Err(io::Error::other(e))),
            None => return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into())),
        }
    }
    let piece = data.get(..send.capacity()).unwrap_or(data);
    let n = piece.len();
    let sent = send.send_data(Bytes::copy_from_slice(piece), is_end(n));
    Poll::Ready(sent.map(|()| n).map_err(io::Error::other))
}

/// Ends a body, with the trailers that go on.
///
/// # Errors
/// When nothing can be sent any more.
pub(super) fn finish(
    send: &mut SendStream<Bytes>,
    trailers: &[Field],
    of: &[u8],
) -> Result<(), ::h2::Error> {
    let mut fields = HeaderMap::new();
    for field in trailers.iter().filter(|field| field.kept) {
        append(&mut fields, field.name.of(of), field.value.of(of));
    }
    if fields.is_empty() {
        send.send_data(Bytes::new(), true)
    } else {
        send.send_trailers(fields)
    }
}
