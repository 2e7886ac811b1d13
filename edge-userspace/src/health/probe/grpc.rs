//! `grpc.health.v1.Health/Check`, by hand: one request of one field, one answer of one.
//!
//! The protocol is that of gRPC's `health.proto`, over HTTP/2 as in its
//! `PROTOCOL-HTTP2.md`.

use std::{
    future::{Ready, ready},
    io,
    net::SocketAddr,
};

use h2::{
    RecvStream,
    client::{Builder, SendRequest},
};
use hyper::{
    HeaderMap, Request, Response, StatusCode, Uri,
    body::Bytes,
    header::{self, HeaderValue},
};

use tokio::io::{AsyncRead, AsyncWrite};

use super::{Deadline, ProbeError, Waiting, Way, drive, socket, tls};

/// The largest message that is read, bytes: the answer has two.
const MESSAGE_BYTES: usize = 4 << 10;
/// The largest header or trailer of an answer, bytes.
const HEADER_BYTES: u32 = 16 << 10;
/// How much of the server's message is kept, bytes.
const SAID_BYTES: usize = 200;
/// `HealthCheckResponse.ServingStatus`.
const STATUS: [&str; 4] = ["UNKNOWN", "SERVING", "NOT_SERVING", "SERVICE_UNKNOWN"];

/// Asks for the health of `service`.
pub(super) async fn ask(
    (service, tls): (&str, bool),
    target: SocketAddr,
    way: &Way<'_>,
    deadline: Deadline,
) -> Result<(), ProbeError> {
    let stream = socket::connect(target, way, deadline).await?;
    // The preface and the request are small segments that must not wait for each other.
    // It works without as well.
    let _ = stream.set_nodelay(true);
    let host = way.name().filter(|_| tls);
    let request = request(target, (tls, host), deadline)?;
    if tls {
        let session = tls::handshake(stream, host, (target, way), true, deadline).await?;
        exchange(session, request, service, deadline).await
    } else {
        exchange(stream, request, service, deadline).await
    }
}

async fn exchange<S: AsyncRead + AsyncWrite + Unpin>(
    stream: S,
    request: Request<()>,
    service: &str,
    deadline: Deadline,
) -> Result<(), ProbeError> {
    let opening = async {
        Builder::new()
            .enable_push(false)
            .max_header_list_size(HEADER_BYTES)
            .handshake(stream)
            .await
            .map_err(broken)
    };
    let (sender, connection) = deadline.within(Waiting::Answer, opening).await?;
    let message = frame(service);
    drive(judge(sender, request, message), connection, deadline).await
}

fn request(
    target: SocketAddr,
    (tls, host): (bool, Option<&str>),
    deadline: Deadline,
) -> Result<Request<()>, ProbeError> {
    let uri = Uri::builder()
        .scheme(if tls { "https" } else { "http" })
        .authority(host.map_or_else(|| target.to_string(), str::to_owned))
        .path_and_query("/grpc.health.v1.Health/Check")
        .build();
    // At most eight digits.
    let timeout_ms = deadline.timeout.as_millis().min(99_999_999);
    uri.and_then(|uri| {
        Request::post(uri)
            .header(header::CONTENT_TYPE, "application/grpc")
            .header(header::TE, "trailers")
            .header("grpc-timeout", format!("{timeout_ms}m"))
            .body(())
    })
    .map_err(|e| wrong(format!("cannot ask: {e}")))
}

async fn judge(
    sender: SendRequest<Bytes>,
    request: Request<()>,
    message: Bytes,
) -> Result<Ready<()>, ProbeError> {
    let mut sender = sender.ready().await.map_err(broken)?;
    let (answer, mut body) = sender.send_request(request, false).map_err(broken)?;
    body.send_data(message, true).map_err(broken)?;
    let answer = answer.await.map_err(broken)?;
    check_header(&answer)?;
    // An answer that is only an error has its status here.
    call_status(answer.headers())?;
    let mut body = answer.into_body();
    let message = read(&mut body).await?;
    let trailers = body.trailers().await.map_err(broken)?;
    match trailers.as_ref().map(call_status) {
        Some(Ok(true)) => {}
        Some(Err(e)) => return Err(e),
        Some(Ok(false)) | None => return Err(wrong("no status behind the answer")),
    }
    match serving(&message) {
        Some(1) => Ok(ready(())),
        Some(status) => {
            let name = usize::try_from(status).ok().and_then(|at| STATUS.get(at));
            Err(ProbeError::NotServing(name.map_or_else(
                || format!("serving status {status}"),
                |name| (*name).to_owned(),
            )))
        }
        None => Err(wrong("the answer is no health message")),
    }
}

fn check_header(answer: &Response<RecvStream>) -> Result<(), ProbeError> {
    if answer.status() != StatusCode::OK {
        return Err(ProbeError::Status {
            got: answer.status().as_u16(),
            wanted: (200, 200),
        });
    }
    let kind = answer.headers().get(header::CONTENT_TYPE);
    if kind.is_some_and(|kind| kind.as_bytes().starts_with(b"application/grpc")) {
        Ok(())
    } else {
        Err(wrong("the answer is not of type application/grpc"))
    }
}

/// Whether there is a status; an error when it is not "OK".
fn call_status(headers: &HeaderMap) -> Result<bool, ProbeError> {
    let Some(value) = headers.get("grpc-status") else {
        return Ok(false);
    };
    let code = value.to_str().ok().and_then(|text| text.parse().ok());
    match code {
        Some(0) => Ok(true),
        Some(code) => Err(ProbeError::Grpc {
            code,
            message: headers.get("grpc-message").map(said).unwrap_or_default(),
        }),
        None => Err(wrong("the status is no number")),
    }
}

/// The server's message, which is percent-encoded.
fn said(value: &HeaderValue) -> String {
    let mut text = Vec::new();
    let mut rest = value.as_bytes();
    while let Some((&byte, behind)) = rest.split_first()
        && text.len() < SAID_BYTES
    {
        let hex = behind
            .get(..2)
            .and_then(|two| std::str::from_utf8(two).ok());
        let encoded = hex
            .filter(|two| byte == b'%' && two.bytes().all(|b| b.is_ascii_hexdigit()))
            .and_then(|two| u8::from_str_radix(two, 16).ok());
        match encoded {
            Some(decoded) => {
                text.push(decoded);
                rest = behind.get(2..).unwrap_or_default();
            }
            None => {
                text.push(byte);
                rest = behind;
            }
        }
    }
    String::from_utf8_lossy(&text).into_owned()
}

/// A `HealthCheckRequest` behind the five bytes of a message: not compressed, length.
fn frame(service: &str) -> Bytes {
    let mut message = Vec::new();
    if !service.is_empty() {
        // Field 1, length-delimited.
        message.push(1 << 3 | 2);
        let mut length = service.len();
        while length >= 0x80 {
            message.push((length & 0x7f) as u8 | 0x80);
            length >>= 7;
        }
        message.push(length as u8);
        message.extend_from_slice(service.as_bytes());
    }
    let mut frame = vec![0];
    // A name in the configuration is far below 4 GiB.
    frame.extend_from_slice(&(message.len() as u32).to_be_bytes());
    frame.append(&mut message);
    frame.into()
}

/// The one message of the answer, without its five bytes.
async fn read(body: &mut RecvStream) -> Result<Vec<u8>, ProbeError> {
    let mut seen = Vec::new();
    while let Some(data) = body.data().await {
        let data = data.map_err(broken)?;
        body.flow_control()
            .release_capacity(data.len())
            .map_err(broken)?;
        seen.extend_from_slice(&data);
        if seen.len() > MESSAGE_BYTES {
            return Err(wrong("the answer is too long"));
        }
    }
    let Some((&[compressed, length @ ..], message)) = seen.split_first_chunk::<5>() else {
        // None at all is well when an error follows.
        return if seen.is_empty() {
            Ok(seen)
        } else {
            Err(wrong("the answer is cut off"))
        };
    };
    if compressed != 0 {
        return Err(wrong("the answer is compressed, which was not asked for"));
    }
    if usize::try_from(u32::from_be_bytes(length)) != Ok(message.len()) {
        return Err(wrong("the answer is not one message"));
    }
    Ok(message.to_vec())
}

/// The serving status in a `HealthCheckResponse`: field 1, 0 when it is left out.
fn serving(mut message: &[u8]) -> Option<u64> {
    let mut status = 0;
    while !message.is_empty() {
        let key = varint(&mut message)?;
        match (key >> 3, key & 7) {
            (1, 0) => status = varint(&mut message)?,
            // Fields of later versions.
            (_, 0) => drop(varint(&mut message)?),
            (_, 1) => message = message.get(8..)?,
            (_, 2) => {
                let length = usize::try_from(varint(&mut message)?).ok()?;
                message = message.get(length..)?;
            }
            (_, 5) => message = message.get(4..)?,
            _ => return None,
        }
    }
    Some(status)
}

fn varint(from: &mut &[u8]) -> Option<u64> {
    let mut value = 0;
    for shift in (0..64).step_by(7) {
        let (&byte, rest) = from.split_first()?;
        *from = rest;
        value |= u64::from(byte & 0x7f) << shift;
        if byte < 0x80 {
            return Some(value);
        }
    }
    None
}

fn wrong(what: impl Into<String>) -> ProbeError {
    ProbeError::Protocol {
        protocol: "gRPC",
        wrong: what.into(),
    }
}

fn broken(error: h2::Error) -> ProbeError {
    if !error.is_io() {
        return wrong(error.to_string());
    }
    match error.into_io() {
        Some(e) if e.kind() != io::ErrorKind::UnexpectedEof => ProbeError::Lost(e),
        _ => ProbeError::Closed,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_request_is_what_protobuf_makes_of_it() {
        assert_eq!(&frame("")[..], [0, 0, 0, 0, 0]);
        assert_eq!(&frame("ab")[..], b"\0\0\0\0\x04\x0a\x02ab");
        let long = "x".repeat(300);
        let frame = frame(&long);
        assert_eq!(&frame[..8], b"\0\0\0\x01\x2f\x0a\xac\x02");
        assert_eq!(frame.len(), 8 + 300);
    }

    #[test]
    fn the_answer_is_read_as_protobuf_wants_it() {
        for (message, status) in [
            (&b""[..], Some(0)),
            (b"\x08\x01", Some(1)),
            (b"\x08\x02", Some(2)),
            // The last one counts.
            (b"\x08\x02\x08\x01", Some(1)),
            // Unknown fields of all kinds.
            (b"\x10\x05\x19aaaaaaaa\x22\x03abc\x2daaaa\x08\x01", Some(1)),
            (b"\x08\x81\x80\x80\x80\x80\x80\x80\x80\x80\x00", Some(1)),
            (b"\x08", None),
            (b"\x08\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01", None),
            (b"\x0a\x05ab", None),
            (b"\x0b", None),
        ] {
            assert_eq!(serving(message), status, "{message:?}");
        }
    }

    #[test]
    fn messages_are_decoded_and_bounded() {
        for (encoded, text) in [
            ("unknown service", "unknown service"),
            ("a%20b%C3%BC", "a bü"),
            ("100%", "100%"),
            ("%zz%+1", "%zz%+1"),
        ] {
            assert_eq!(said(&HeaderValue::from_static(encoded)), text);
        }
        let long = HeaderValue::from_str(&"%41".repeat(5000)).unwrap();
        assert_eq!(said(&long), "A".repeat(SAID_BYTES));
    }

    proptest! {
        #[test]
        fn no_answer_panics(bytes in prop::collection::vec(any::<u8>(), 0..64)) {
            let _ = serving(&bytes);
            if let Ok(value) = HeaderValue::from_bytes(&bytes) {
                let _ = said(&value);
            }
        }
    }
}
