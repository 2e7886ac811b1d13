//! That it does not matter how bytes come, that what is written reads the same again, that no
//! mutation finds two readings, and that another parser reads what we accept as we do.

use proptest::prelude::*;
use proptest::sample::{Index, select};

use super::forward::{LIMITS, Outcome, check_upstream, forward};
use crate::l7::head::{Framing, Request, Response};
use crate::l7::http1::{Asked, parse_request, parse_response, write};

/// Parts of which requests are made, so that mutations meet what matters.
const LINES: &[&str] = &[
    "Content-Length: 5\r\n",
    "Content-Length: 0\r\n",
    "content-length:\t12 \r\n",
    "Transfer-Encoding: chunked\r\n",
    "Transfer-Encoding: gzip, chunked\r\n",
    "Connection: close, x-a\r\n",
    "Connection: keep-alive\r\n",
    "Connection: upgrade\r\n",
    "Upgrade: websocket\r\n",
    "TE: trailers\r\n",
    "X-A: 1\r\n",
    "X_B: 2\r\n",
    "X-C:\r\n",
    "X-D: a\tb \u{e9}\r\n",
    "Expect: 100-continue\r\n",
    "Cookie: a=b; c=d\r\n",
    "Host: b.example\r\n",
    "User-Agent: Mozilla/5.0 (X11; Linux x86_64) Gecko/20100101\r\n",
    " folded\r\n",
    "X-E : 1\r\n",
];

const FIRST: &[&str] = &[
    "GET / HTTP/1.1\r\nHost: a.example\r\n",
    "POST /path?query HTTP/1.1\r\nHost: a.example:8080\r\n",
    "POST http://a.example/path HTTP/1.1\r\nHost: a.example\r\n",
    "OPTIONS * HTTP/1.1\r\nHost: [2001:db8::1]\r\n",
    "HEAD /a HTTP/1.0\r\n",
    "\r\nPUT /%00/../a HTTP/1.1\r\nHost: 192.0.2.1\r\n",
];

const BODIES: &[&str] = &[
    "",
    "hello, world",
    "5\r\nhello\r\n0\r\n\r\n",
    "5;x=y\r\nhello\r\na\r\n0123456789\r\n0\r\nX-Sum: 1\r\n\r\n",
    "GET /next HTTP/1.1\r\n",
];

fn message() -> impl Strategy<Value = Vec<u8>> {
    let lines = prop::collection::vec(select(LINES), 0..6);
    (select(FIRST), lines, select(BODIES)).prop_map(|(first, lines, body)| {
        format!("{first}{}\r\n{body}", lines.concat()).into_bytes()
    })
}

/// Bytes that have a meaning somewhere.
const ODD: &[u8] = b"\r\n\0\t :;,=\"\\/?#@%[]x0_\x0b\x7f\x80\xff";

/// A change of one place: what is put there, and how many bytes it takes the place of.
fn mutations() -> impl Strategy<Value = Vec<(Index, Option<u8>, usize)>> {
    let change = (
        any::<Index>(),
        prop::option::of(prop_oneof![select(ODD), any::<u8>()]),
        0..3_usize,
    );
    prop::collection::vec(change, 0..4)
}

fn mutate(mut bytes: Vec<u8>, mutations: &[(Index, Option<u8>, usize)]) -> Vec<u8> {
    for (at, put, take) in mutations {
        let at = at.index(bytes.len() + 1);
        let end = (at + take).min(bytes.len());
        bytes.splice(at..end, *put);
    }
    bytes
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, ..ProptestConfig::default() })]

    #[test]
    fn it_does_not_matter_where_bytes_are_cut(
        bytes in message(),
        mutations in mutations(),
        cuts in prop::collection::vec(any::<Index>(), 0..4),
    ) {
        let bytes = mutate(bytes, &mutations);
        let mut cuts: Vec<usize> = cuts.iter().map(|cut| cut.index(bytes.len() + 1)).collect();
        cuts.sort_unstable();
        let whole = forward(&bytes, &[]);
        prop_assert_eq!(&forward(&bytes, &cuts), &whole);
        let each: Vec<usize> = (0..bytes.len()).collect();
        prop_assert_eq!(&forward(&bytes, &each), &whole);
    }

    #[test]
    fn nothing_that_goes_on_has_two_readings(bytes in message(), mutations in mutations()) {
        let bytes = mutate(bytes, &mutations);
        if let Outcome::Forwarded { consumed, upstream } = forward(&bytes, &[]) {
            prop_assert!(consumed <= bytes.len());
            check_upstream(&upstream);
        }
    }

    #[test]
    fn what_is_written_reads_the_same_again(bytes in message(), mutations in mutations()) {
        let bytes = mutate(bytes, &mutations);
        let Outcome::Forwarded { upstream, .. } = forward(&bytes, &[]) else {
            return Ok(());
        };
        // Without a Host there is none to read.
        if upstream.windows(8).any(|part| part == b"Host: \r\n") {
            return Ok(());
        }
        let again = Outcome::Forwarded { consumed: upstream.len(), upstream: upstream.clone() };
        prop_assert_eq!(forward(&upstream, &[]), again);
    }

    #[test]
    fn another_parser_reads_what_we_accept_as_we_do(bytes in message(), mutations in mutations()) {
        let bytes = mutate(bytes, &mutations);
        let mut request = Request::default();
        let Ok(Some(len)) = parse_request(&bytes, &LIMITS, &mut request) else {
            return Ok(());
        };
        let mut fields = [httparse::EMPTY_HEADER; 32];
        let mut other = httparse::Request::new(&mut fields);
        prop_assert_eq!(other.parse(&bytes), Ok(httparse::Status::Complete(len)));
        prop_assert_eq!(other.method.unwrap().as_bytes(), request.method_name.of(&bytes));
        prop_assert_eq!(other.path.unwrap().as_bytes(), request.target.of(&bytes));
        prop_assert_eq!(other.headers.len(), request.fields.len());
        for (theirs, ours) in other.headers.iter().zip(&request.fields) {
            prop_assert_eq!(theirs.name.as_bytes(), ours.name.of(&bytes));
            prop_assert_eq!(theirs.value, ours.value.of(&bytes));
        }
    }

    #[test]
    fn any_bytes_at_all_end_somehow(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        forward(&bytes, &[]);
        let each: Vec<usize> = (0..bytes.len()).collect();
        prop_assert_eq!(forward(&bytes, &each), forward(&bytes, &[]));
    }

    #[test]
    fn answers_are_read_the_same_however_they_come(
        lines in prop::collection::vec(select(LINES), 0..6),
        first in select(&["HTTP/1.1 200 OK\r\n", "HTTP/1.0 404\r\n", "HTTP/1.1 304 Not Modified\r\n"][..]),
        mutations in mutations(),
    ) {
        let bytes = mutate(format!("{first}{}\r\n", lines.concat()).into_bytes(), &mutations);
        let asked = Asked::default();
        let mut whole = Response::default();
        let read = parse_response(&bytes, &LIMITS, asked, &mut whole);
        let mut pieces = Response::default();
        let mut result = Ok(None);
        for have in 0..=bytes.len() {
            result = parse_response(&bytes[..have], &LIMITS, asked, &mut pieces);
            if result != Ok(None) {
                break;
            }
        }
        prop_assert_eq!(result, read);
        if let Ok(Some(_)) = read {
            prop_assert_eq!(whole, pieces);
        }
    }

    #[test]
    fn chunk_sizes_are_written_as_they_are_read(len in 1..usize::MAX) {
        let mut out = Vec::new();
        write::chunk(&mut out, len);
        prop_assert_eq!(out, format!("{len:x}\r\n").into_bytes());
        let mut out = Vec::new();
        write::framing(&mut out, Framing::Length(len as u64));
        prop_assert_eq!(out, format!("Content-Length: {len}\r\n").into_bytes());
    }
}
