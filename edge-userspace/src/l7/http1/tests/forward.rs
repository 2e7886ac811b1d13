//! What a proxy does with the first request of a connection, whole: read it and write it anew;
//! and what must be true of that. The fuzz target `http1` uses this as well.

use crate::l7::head::{Field, Framing, Limits, Reject, Request};
use crate::l7::http1::{Chunked, parse_request, write};

/// Small enough for a table.
pub(crate) const LIMITS: Limits = Limits {
    head_bytes: 1024,
    fields: 16,
    uri_bytes: 256,
    body_bytes: 4096,
};

/// What becomes of a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// More bytes are needed.
    Incomplete,
    /// It is refused.
    Refused(Reject),
    /// It goes on.
    Forwarded {
        /// How many bytes it was of.
        consumed: usize,
        /// The bytes that the upstream gets.
        upstream: Vec<u8>,
    },
}

/// Reads the bytes as they come in pieces that end at `cuts` and at the end.
pub(crate) fn forward(bytes: &[u8], cuts: &[usize]) -> Outcome {
    let mut request = Request::default();
    let mut pieces = cuts.iter().copied().chain([bytes.len()]);
    let head = loop {
        let Some(have) = pieces.next() else {
            return Outcome::Incomplete;
        };
        match parse_request(&bytes[..have], &LIMITS, &mut request) {
            Ok(None) => {}
            Ok(Some(head)) => break head,
            Err(reject) => return Outcome::Refused(reject),
        }
    };
    let mut upstream = Vec::new();
    write_head(&mut upstream, bytes, &request);
    let body = match request.framing {
        Framing::None | Framing::UntilClose => Ok(Some(head)),
        Framing::Length(length) => {
            let end = usize::try_from(length)
                .ok()
                .and_then(|len| head.checked_add(len));
            Ok(end.filter(|end| *end <= bytes.len()).inspect(|end| {
                upstream.extend_from_slice(&bytes[head..*end]);
            }))
        }
        Framing::Chunked => forward_chunks(bytes, head, cuts, &mut upstream),
    };
    match body {
        Ok(Some(consumed)) => Outcome::Forwarded { consumed, upstream },
        Ok(None) => Outcome::Incomplete,
        Err(reject) => Outcome::Refused(reject),
    }
}

fn write_head(upstream: &mut Vec<u8>, bytes: &[u8], request: &Request) {
    write::request_line(
        upstream,
        request.method_name.of(bytes),
        request.path(bytes),
        request.query(bytes),
    );
    write::host(upstream, request.authority.whole.of(bytes));
    write::fields(upstream, bytes, &request.fields, |_| true);
    write::framing(upstream, request.framing);
    write::connection(
        upstream,
        write::Connection {
            upgrade: request.upgrade.map(|upgrade| upgrade.of(bytes)),
            te_trailers: request.te_trailers,
            ..write::Connection::default()
        },
    );
    write::end(upstream);
}

fn forward_chunks(
    bytes: &[u8],
    head: usize,
    cuts: &[usize],
    upstream: &mut Vec<u8>,
) -> Result<Option<usize>, Reject> {
    let mut chunked = Chunked::request(LIMITS.body_bytes);
    let mut trailers: Vec<Field> = Vec::new();
    let mut body = Vec::new();
    let mut at = head;
    let cuts = cuts.iter().copied().filter(|cut| *cut > head);
    for have in cuts.chain([bytes.len()]) {
        loop {
            let window = &bytes[at..have.max(at)];
            let step = chunked.step(window, &mut trailers)?;
            body.extend_from_slice(&window[step.data]);
            at += step.consumed;
            if step.done {
                if !body.is_empty() {
                    write::chunk(upstream, body.len());
                    upstream.extend_from_slice(&body);
                    write::chunk_end(upstream);
                }
                write::last_chunk(upstream, window, &trailers);
                return Ok(Some(at));
            }
            if step.consumed == 0 {
                break;
            }
        }
    }
    Ok(None)
}

/// A second, simple reading of what went upstream: its fields in lower case, the bytes behind its
/// head. It knows nothing of the first one.
fn read_simply(upstream: &[u8]) -> (Vec<(String, String)>, &[u8]) {
    let end = upstream
        .windows(4)
        .position(|four| four == b"\r\n\r\n")
        .expect("an empty line ends the head");
    let head = String::from_utf8_lossy(&upstream[..end]);
    assert!(!head.contains('\0'));
    assert_eq!(head.matches('\n').count(), head.matches("\r\n").count());
    assert_eq!(head.matches('\r').count(), head.matches("\r\n").count());
    let mut lines = head.split("\r\n");
    let first: Vec<&str> = lines.next().unwrap().split(' ').collect();
    assert_eq!(first.len(), 3);
    assert_eq!(first[2], "HTTP/1.1");
    let fields = lines
        .map(|line| {
            let (name, value) = line.split_once(": ").expect("a name and a value");
            assert!(!name.is_empty() && name.bytes().all(|byte| byte.is_ascii_graphic()));
            (name.to_ascii_lowercase(), value.to_owned())
        })
        .collect();
    (fields, &upstream[end + 4..])
}

/// What must be true of everything that goes upstream.
pub(crate) fn check_upstream(upstream: &[u8]) {
    let (fields, body) = read_simply(upstream);
    let values = |wanted: &str| -> Vec<&str> {
        let of = fields.iter().filter(|(name, _)| name == wanted);
        of.map(|(_, value)| value.as_str()).collect()
    };
    assert_eq!(values("host").len(), 1);
    let (lengths, encodings) = (values("content-length"), values("transfer-encoding"));
    match (lengths.as_slice(), encodings.as_slice()) {
        ([], []) => assert!(body.is_empty()),
        ([length], []) => assert_eq!(length.parse::<usize>(), Ok(body.len())),
        ([], ["chunked"]) => assert!(body.ends_with(b"\r\n\r\n")),
        other => panic!("two readings: {other:?}"),
    }
    for hop in [
        "keep-alive",
        "proxy-connection",
        "trailer",
        "http2-settings",
    ] {
        assert!(values(hop).is_empty());
    }
    assert!(fields.iter().all(|(name, _)| !name.contains('_')));
}
