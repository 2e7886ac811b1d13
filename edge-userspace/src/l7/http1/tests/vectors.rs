//! Requests that were made to be read in two ways, from the rules of RFC 9110 and RFC 9112:
//! each is refused for its own reason, or the upstream gets exactly the bytes that stand here.

use super::forward::{Outcome, forward};
use crate::l7::head::Reject::{self, *};

/// A GET with these lines behind the request line; `Host` is among them where it matters.
fn get(lines: &str) -> Vec<u8> {
    format!("GET / HTTP/1.1\r\n{lines}\r\n").into_bytes()
}

/// A GET with a Host and these lines.
fn hosted(lines: &str) -> Vec<u8> {
    get(&format!("Host: a.example\r\n{lines}"))
}

/// A POST with these lines and what comes behind the head.
fn post(lines: &str, body: &str) -> Vec<u8> {
    format!("POST / HTTP/1.1\r\nHost: a.example\r\n{lines}\r\n{body}").into_bytes()
}

/// A POST with this chunked body.
fn chunks(body: &str) -> Vec<u8> {
    post("Transfer-Encoding: chunked\r\n", body)
}

/// A request with this first line and a Host.
fn line(line: &str) -> Vec<u8> {
    format!("{line}Host: a.example\r\n\r\n").into_bytes()
}

#[test]
fn what_could_be_read_in_two_ways_is_refused() {
    let long = "a".repeat(300);
    let vectors: Vec<(Vec<u8>, Reject)> = vec![
        // Where the body ends: lengths and encodings together.
        (
            post(
                "Content-Length: 6\r\nTransfer-Encoding: chunked\r\n",
                "0\r\n\r\nX",
            ),
            LengthWithEncoding,
        ),
        (
            post(
                "Transfer-Encoding: chunked\r\nContent-Length: 6\r\n",
                "0\r\n\r\nX",
            ),
            LengthWithEncoding,
        ),
        (
            post(
                "Transfer-Encoding: chunked\r\ncontent-length: 0\r\n",
                "0\r\n\r\n",
            ),
            LengthWithEncoding,
        ),
        (
            post(
                "Content-Length: 5\r\nTransfer-Encoding: identity\r\n",
                "hello",
            ),
            LengthWithEncoding,
        ),
        // Lengths.
        (
            post("Content-Length: 5\r\nContent-Length: 6\r\n", "hello"),
            LengthRepeated,
        ),
        (
            post("Content-Length: 5\r\nContent-Length: 5\r\n", "hello"),
            LengthRepeated,
        ),
        (post("Content-Length: 5, 5\r\n", "hello"), LengthInvalid),
        (post("Content-Length: 5,6\r\n", "hello"), LengthInvalid),
        (post("Content-Length: +5\r\n", "hello"), LengthInvalid),
        (post("Content-Length: -5\r\n", "hello"), LengthInvalid),
        (post("Content-Length: 0x5\r\n", "hello"), LengthInvalid),
        (post("Content-Length: a\r\n", "0123456789"), LengthInvalid),
        (post("Content-Length: 5 6\r\n", "hello"), LengthInvalid),
        (post("Content-Length: 5.0\r\n", "hello"), LengthInvalid),
        (post("Content-Length: 5_0\r\n", "hello"), LengthInvalid),
        (post("Content-Length: \"5\"\r\n", "hello"), LengthInvalid),
        (post("Content-Length: \r\n", "hello"), LengthInvalid),
        (post("Content-Length:\r\n", "hello"), LengthInvalid),
        (
            post("Content-Length: 18446744073709551616\r\n", ""),
            LengthInvalid,
        ),
        (
            post("Content-Length: 18446744073709551621\r\n", "hello"),
            LengthInvalid,
        ),
        (post("Content-Length: \u{665}\r\n", "hello"), LengthInvalid),
        (post("Content-Length: 4097\r\n", ""), BodyTooLarge),
        // Encodings.
        (
            post("Transfer-Encoding: gzip, chunked\r\n", "0\r\n\r\n"),
            EncodingUnknown,
        ),
        (
            post("Transfer-Encoding: chunked, gzip\r\n", "0\r\n\r\n"),
            EncodingUnknown,
        ),
        (
            post("Transfer-Encoding: identity\r\n", "0\r\n\r\n"),
            EncodingUnknown,
        ),
        (
            post("Transfer-Encoding: identity, chunked\r\n", "0\r\n\r\n"),
            EncodingUnknown,
        ),
        (
            post("Transfer-Encoding: xchunked\r\n", "0\r\n\r\n"),
            EncodingUnknown,
        ),
        (
            post("Transfer-Encoding: chunked;q=1\r\n", "0\r\n\r\n"),
            EncodingUnknown,
        ),
        (
            post("Transfer-Encoding: \"chunked\"\r\n", "0\r\n\r\n"),
            EncodingUnknown,
        ),
        (
            post("Transfer-Encoding: chunked,\r\n", "0\r\n\r\n"),
            EncodingUnknown,
        ),
        (
            post("Transfer-Encoding: ,chunked\r\n", "0\r\n\r\n"),
            EncodingUnknown,
        ),
        (
            post("Transfer-Encoding: \u{85}chunked\r\n", "0\r\n\r\n"),
            EncodingUnknown,
        ),
        (post("Transfer-Encoding:\r\n", "0\r\n\r\n"), EncodingUnknown),
        (
            post("Transfer-Encoding: chunked, chunked\r\n", "0\r\n\r\n"),
            EncodingRepeated,
        ),
        (
            post(
                "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n",
                "0\r\n\r\n",
            ),
            EncodingRepeated,
        ),
        (
            post(
                "Transfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n",
                "0\r\n\r\n",
            ),
            EncodingRepeated,
        ),
        (
            post("Transfer-Encoding: \x0bchunked\r\n", "0\r\n\r\n"),
            ControlByte,
        ),
        (
            line("POST / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n"),
            EncodingVersion,
        ),
        // Chunks.
        (chunks("+5\r\nhello\r\n0\r\n\r\n"), ChunkSize),
        (chunks("-5\r\nhello\r\n0\r\n\r\n"), ChunkSize),
        (chunks("0x5\r\nhello\r\n0\r\n\r\n"), ChunkSize),
        (chunks(" 5\r\nhello\r\n0\r\n\r\n"), ChunkSize),
        (chunks("5 \r\nhello\r\n0\r\n\r\n"), ChunkSize),
        (chunks("5\t;a\r\nhello\r\n0\r\n\r\n"), ChunkSize),
        (chunks("5h\r\nhello\r\n0\r\n\r\n"), ChunkSize),
        (chunks("\r\nhello\r\n0\r\n\r\n"), ChunkSize),
        (chunks(";a\r\nhello\r\n0\r\n\r\n"), ChunkSize),
        (chunks("10000000000000005\r\nhello\r\n0\r\n\r\n"), ChunkSize),
        (chunks("0000000000000005\r\nhello\r\n0\r\n\r\n"), ChunkSize),
        (chunks("5\nhello\r\n0\r\n\r\n"), ChunkEnd),
        (chunks("5\rhello\r\n0\r\n\r\n"), ChunkEnd),
        (chunks("5\r\nhello\n0\r\n\r\n"), ChunkEnd),
        (chunks("5\r\nhello0\r\n\r\n"), ChunkEnd),
        (chunks("5\r\nhello\r0\r\n\r\n"), ChunkEnd),
        (chunks("5\r\nhelloXX0\r\n\r\n"), ChunkEnd),
        (chunks("5;a\nhello\r\n0\r\n\r\n"), ChunkEnd),
        (chunks("5;a=\"\n\"\r\nhello\r\n0\r\n\r\n"), ChunkEnd),
        (chunks("5;a\0\r\nhello\r\n0\r\n\r\n"), ChunkExtension),
        (
            chunks(&format!("5;{}\r\nhello\r\n0\r\n\r\n", "x".repeat(17_000))),
            ChunkExtension,
        ),
        (chunks("1001\r\n"), BodyTooLarge),
        (chunks("0\r\nContent-Length: 5\r\n\r\n"), TrailerField),
        (
            chunks("0\r\nTransfer-Encoding: chunked\r\n\r\n"),
            TrailerField,
        ),
        (chunks("0\r\nHost: b.example\r\n\r\n"), TrailerField),
        (chunks("0\r\nx : 1\r\n\r\n"), SpaceBeforeColon),
        (chunks("0\r\nx: 1\n\r\n"), BareLf),
        (chunks("0\r\n\nx"), BareLf),
        (chunks("0\r\nGET /admin HTTP/1.1\r\n\r\n"), SpaceBeforeColon),
        (
            chunks(&format!("0\r\nx: {}\r\n\r\n", "y".repeat(5000))),
            TrailerTooLarge,
        ),
        (
            chunks(&format!("0\r\n{}\r\n", "x: y\r\n".repeat(40))),
            TrailerTooLarge,
        ),
        // Lines and fields.
        (hosted("X: 1\r\n folded\r\n"), ObsFold),
        (hosted("X: 1\r\n\tfolded\r\n"), ObsFold),
        (get(" Host: a.example\r\n"), ObsFold),
        (hosted("Content-Length:\r\n 5\r\n"), ObsFold),
        (hosted("X: 1\n"), BareLf),
        (hosted("X: 1\nContent-Length: 5\r\n"), BareLf),
        (b"GET / HTTP/1.1\nHost: a.example\n\n".to_vec(), BareLf),
        (b"GET / HTTP/1.1\r\nHost: a.example\n\r\n".to_vec(), BareLf),
        (b"GET / HTTP/1.1\r\nHost: a.example\r\n\n".to_vec(), BareLf),
        (hosted("X: 1\rContent-Length: 5\r\n"), BareCr),
        (hosted("X: 1\r\r\n"), BareCr),
        (hosted("X\r: 1\r\n"), BareCr),
        (hosted("\rX: 1\r\n"), BareCr),
        (hosted("X: a\0b\r\n"), Nul),
        (hosted("X\0: b\r\n"), Nul),
        (hosted("X: a\x01b\r\n"), ControlByte),
        (hosted("X: a\x7fb\r\n"), ControlByte),
        (hosted("X: a\x0bb\r\n"), ControlByte),
        (hosted("X : 1\r\n"), SpaceBeforeColon),
        (hosted("Content-Length : 5\r\n"), SpaceBeforeColon),
        (hosted("Transfer-Encoding\t: chunked\r\n"), SpaceBeforeColon),
        (hosted("X Y: 1\r\n"), SpaceBeforeColon),
        (hosted(": 1\r\n"), FieldNameEmpty),
        (hosted("nothing\r\n"), ColonMissing),
        (hosted("X(Y): 1\r\n"), FieldNameByte),
        (hosted("\u{e9}: 1\r\n"), FieldNameByte),
        (hosted("\u{feff}Content-Length: 1\r\n"), FieldNameByte),
        (hosted("Transfer-Encoding\x0b: chunked\r\n"), FieldNameByte),
        (hosted(&"X: 1\r\n".repeat(16)), FieldsTooMany),
        (
            hosted(&format!("X: {}\r\n", "y".repeat(1024))),
            HeadTooLarge,
        ),
        // The request line.
        (line("GET  / HTTP/1.1\r\n"), RequestLineSpace),
        (line("GET /  HTTP/1.1\r\n"), RequestLineSpace),
        (line("GET / a HTTP/1.1\r\n"), VersionMalformed),
        (line("GET\t/ HTTP/1.1\r\n"), RequestLineSpace),
        (line("GET /\tHTTP/1.1\r\n"), RequestLineSpace),
        (line("GET / HTTP/1.1 \r\n"), RequestLineSpace),
        (line(" GET / HTTP/1.1\r\n"), RequestLineSpace),
        (line("GET /\x0b HTTP/1.1\r\n"), TargetByte),
        (line("GET /\u{e9} HTTP/1.1\r\n"), TargetByte),
        (line("GET /\x7f HTTP/1.1\r\n"), TargetByte),
        (line("GET /\0 HTTP/1.1\r\n"), Nul),
        (line("GET /a#b HTTP/1.1\r\n"), TargetFragment),
        (line("GET a HTTP/1.1\r\n"), TargetForm),
        (line("GET * HTTP/1.1\r\n"), TargetForm),
        (line("OPTIONS *a HTTP/1.1\r\n"), TargetForm),
        (line("GET a.example:80 HTTP/1.1\r\n"), TargetForm),
        (line("GET ftp://a.example/ HTTP/1.1\r\n"), TargetForm),
        (line("GET http:/a.example/ HTTP/1.1\r\n"), TargetForm),
        (line("GET http:///a HTTP/1.1\r\n"), HostInvalid),
        (line(&format!("GET /{long} HTTP/1.1\r\n")), TargetTooLong),
        (line("CONNECT a.example:443 HTTP/1.1\r\n"), MethodConnect),
        (line("G(T / HTTP/1.1\r\n"), MethodByte),
        (line("G\u{e9}T / HTTP/1.1\r\n"), MethodByte),
        (line(&format!("{long} / HTTP/1.1\r\n")), MethodTooLong),
        (line("\r\n\r\nGET / HTTP/1.1\r\n"), EmptyLines),
        (line("\nGET / HTTP/1.1\r\n"), BareLf),
        (line("\rGET / HTTP/1.1\r\n"), BareCr),
        (line("GET /\r\n"), VersionMissing),
        (line("GET / \r\n"), VersionMissing),
        (line("GET / http/1.1\r\n"), VersionMalformed),
        (line("GET / HTTP/1\r\n"), VersionMalformed),
        (line("GET / HTTP/11.1\r\n"), VersionMalformed),
        (line("GET / HTTP/+1.1\r\n"), VersionMalformed),
        (line("GET / HTTP/1.10\r\n"), VersionMalformed),
        (line("GET / HTTP/1.1\rX\r\n"), BareCr),
        (line("GET / HTTP/1.2\r\n"), VersionUnsupported),
        (line("GET / HTTP/0.9\r\n"), VersionUnsupported),
        (line("GET / HTTP/3.0\r\n"), VersionUnsupported),
        (
            b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec(),
            VersionUnsupported,
        ),
        // For whom it is.
        (get(""), HostMissing),
        (
            line("GET http://a.example/ HTTP/1.1\r\nHost: b.example\r\n"),
            HostRepeated,
        ),
        (hosted("Host: a.example\r\n"), HostRepeated),
        (hosted("Host: b.example\r\n"), HostRepeated),
        (hosted("hOST:b.example\r\n"), HostRepeated),
        (get("Host:\r\n"), HostInvalid),
        (get("Host: a.example, b.example\r\n"), HostInvalid),
        (get("Host: a.example b.example\r\n"), HostInvalid),
        (get("Host: a.example/b\r\n"), HostInvalid),
        (get("Host: a.example?b\r\n"), HostInvalid),
        (get("Host: a.example#@b.example\r\n"), HostUserinfo),
        (get("Host: user@a.example\r\n"), HostUserinfo),
        (get("Host: user:word@a.example\r\n"), HostUserinfo),
        (get("Host: a%2eexample\r\n"), HostInvalid),
        (get("Host: a.example:\r\n"), HostInvalid),
        (get("Host: a.example:80a\r\n"), HostInvalid),
        (get("Host: a.example:65536\r\n"), HostInvalid),
        (get("Host: a.example:80:90\r\n"), HostInvalid),
        (get("Host: :80\r\n"), HostInvalid),
        (get("Host: \"a.example\"\r\n"), HostInvalid),
        (get("Host: [::1\r\n"), HostInvalid),
        (get("Host: [::1]a\r\n"), HostInvalid),
        (get("Host: [::1%25eth0]\r\n"), HostInvalid),
        (get("Host: [a.example]\r\n"), HostInvalid),
        (get("Host: ::1\r\n"), HostInvalid),
        (line("GET http://b.example/ HTTP/1.1\r\n"), HostDiffers),
        (line("GET http://a.example:81/ HTTP/1.1\r\n"), HostDiffers),
        (line("GET https://a.example:80/ HTTP/1.1\r\n"), HostDiffers),
        (line("GET http://u@a.example/ HTTP/1.1\r\n"), HostUserinfo),
        (
            line("GET http://a.example@b.example/ HTTP/1.1\r\n"),
            HostUserinfo,
        ),
        // The connection.
        (
            post(
                "Connection: content-length\r\nContent-Length: 5\r\n",
                "hello",
            ),
            ConnectionNominates,
        ),
        (
            post(
                "Connection: transfer-encoding\r\nTransfer-Encoding: chunked\r\n",
                "0\r\n\r\n",
            ),
            ConnectionNominates,
        ),
        (hosted("Connection: close, Host\r\n"), ConnectionNominates),
        (
            hosted("Connection: x-forwarded-for\r\n"),
            ConnectionNominates,
        ),
        (hosted("Connection: close;q=1\r\n"), ConnectionInvalid),
        (hosted("Connection: \"close\"\r\n"), ConnectionInvalid),
        (
            hosted(&format!("Connection: {}\r\n", "a,".repeat(40))),
            ConnectionInvalid,
        ),
        (hosted("Expect: 200-ok\r\n"), Expectation),
        (
            hosted("Expect: 100-continue, 100-continue\r\n"),
            Expectation,
        ),
    ];
    assert!(vectors.len() > 150);
    for (bytes, reject) in vectors {
        assert_eq!(
            forward(&bytes, &[]),
            Outcome::Refused(reject),
            "{}",
            String::from_utf8_lossy(&bytes)
        );
    }
}

#[test]
fn what_goes_on_is_written_anew() {
    // Bytes that come, bytes that go on, and what is left for the next request.
    let vectors: Vec<(Vec<u8>, &str, &str)> = vec![
        (
            b"GET /a?b=c HTTP/1.1\r\nHost:a.example\r\nX:  y\t \r\n\r\nGET /next".to_vec(),
            "GET /a?b=c HTTP/1.1\r\nHost: a.example\r\nX: y\r\n\r\n",
            "GET /next",
        ),
        // The authority of the target is that of Host.
        (
            b"GET http://A.example:80?b HTTP/1.1\r\nHost: a.example\r\n\r\n".to_vec(),
            "GET /?b HTTP/1.1\r\nHost: A.example:80\r\n\r\n",
            "",
        ),
        (
            b"GET http://a.example/b://c?d=http://e/ HTTP/1.1\r\nHost: a.example\r\n\r\n".to_vec(),
            "GET /b://c?d=http://e/ HTTP/1.1\r\nHost: a.example\r\n\r\n",
            "",
        ),
        (
            b"OPTIONS http://a.example HTTP/1.1\r\nHost: a.example\r\n\r\n".to_vec(),
            "OPTIONS * HTTP/1.1\r\nHost: a.example\r\n\r\n",
            "",
        ),
        (
            b"OPTIONS * HTTP/1.1\r\nHost: a.example\r\n\r\n".to_vec(),
            "OPTIONS * HTTP/1.1\r\nHost: a.example\r\n\r\n",
            "",
        ),
        (
            b"GET //b.example/ HTTP/1.1\r\nHost: [2001:DB8::1]:8080\r\n\r\n".to_vec(),
            "GET //b.example/ HTTP/1.1\r\nHost: [2001:DB8::1]:8080\r\n\r\n",
            "",
        ),
        (
            b"GET / HTTP/1.0\r\n\r\n".to_vec(),
            "GET / HTTP/1.1\r\nHost: \r\n\r\n",
            "",
        ),
        // One empty line before a request is an old client's.
        (
            line("\r\nGET / HTTP/1.1\r\n"),
            "GET / HTTP/1.1\r\nHost: a.example\r\n\r\n",
            "",
        ),
        // Lengths are written as numbers.
        (
            post("content-length: 005\r\n", "helloGET"),
            "POST / HTTP/1.1\r\nHost: a.example\r\nContent-Length: 5\r\n\r\nhello",
            "GET",
        ),
        (
            post("Content-Length: 0\r\n", "GET"),
            "POST / HTTP/1.1\r\nHost: a.example\r\nContent-Length: 0\r\n\r\n",
            "GET",
        ),
        // A request without a length has no body, whatever its method.
        (
            post("", "GET / HTTP/1.1\r\n"),
            "POST / HTTP/1.1\r\nHost: a.example\r\n\r\n",
            "GET / HTTP/1.1\r\n",
        ),
        // Names that an upstream behind CGI takes for others.
        (
            post(
                "content_length: 9\r\nTransfer_Encoding: chunked\r\nX_Real_IP: 1\r\nX-A: 1\r\n",
                "",
            ),
            "POST / HTTP/1.1\r\nHost: a.example\r\nX-A: 1\r\n\r\n",
            "",
        ),
        // Chunks are made anew; extensions end here, as do trailers that mean nothing there.
        (
            chunks(
                "5;a=\"b\"\r\nhello\r\n00B\r\n, how are y\r\n3\r\nou?\r\n0;z\r\nX-Sum: 1\r\nX_Sum: 1\r\nCookie: a\r\nConnection: x\r\n\r\nGET",
            ),
            "POST / HTTP/1.1\r\nHost: a.example\r\nTransfer-Encoding: chunked\r\n\r\n\
             13\r\nhello, how are you?\r\n0\r\nX-Sum: 1\r\n\r\n",
            "GET",
        ),
        (
            post("Transfer-Encoding: CHUNKED\r\n", "0\r\n\r\nGET"),
            "POST / HTTP/1.1\r\nHost: a.example\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
            "GET",
        ),
        // What is of this hop alone.
        (
            hosted(
                "Connection: keep-alive, X-Hop ,, x-other\r\nX-HOP: 1\r\nKeep-Alive: 5\r\nX-Kept: 1\r\n\
                 Proxy-Connection: close\r\nProxy-Authorization: secret\r\nTrailer: X\r\n\
                 HTTP2-Settings: A\r\nX-Other: 1\r\nx-hop: 2\r\n",
            ),
            "GET / HTTP/1.1\r\nHost: a.example\r\nX-Kept: 1\r\n\r\n",
            "",
        ),
        (
            hosted("TE: gzip;q=1, Trailers\r\nConnection: TE\r\n"),
            "GET / HTTP/1.1\r\nHost: a.example\r\nConnection: te\r\nTE: trailers\r\n\r\n",
            "",
        ),
        (
            hosted("TE: gzip\r\nConnection: TE, close\r\n"),
            "GET / HTTP/1.1\r\nHost: a.example\r\n\r\n",
            "",
        ),
        (
            hosted("Connection: cookie\r\nCookie: a=b\r\n"),
            "GET / HTTP/1.1\r\nHost: a.example\r\n\r\n",
            "",
        ),
        // Upgrades.
        (
            hosted("Upgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\n"),
            "GET / HTTP/1.1\r\nHost: a.example\r\nSec-WebSocket-Version: 13\r\n\
             Connection: upgrade\r\nUpgrade: websocket\r\n\r\n",
            "",
        ),
        (
            hosted("Upgrade: websocket\r\n"),
            "GET / HTTP/1.1\r\nHost: a.example\r\n\r\n",
            "",
        ),
        (
            hosted("Upgrade: h2c\r\nConnection: Upgrade, HTTP2-Settings\r\nHTTP2-Settings: A\r\n"),
            "GET / HTTP/1.1\r\nHost: a.example\r\n\r\n",
            "",
        ),
        (
            hosted("Upgrade: websocket, H2C\r\nConnection: upgrade\r\n"),
            "GET / HTTP/1.1\r\nHost: a.example\r\n\r\n",
            "",
        ),
        (
            hosted("Upgrade: TLS/1.2\r\nConnection: upgrade\r\n"),
            "GET / HTTP/1.1\r\nHost: a.example\r\n\r\n",
            "",
        ),
        (
            hosted("Upgrade: websocket\r\nUpgrade: h2c\r\nConnection: upgrade\r\n"),
            "GET / HTTP/1.1\r\nHost: a.example\r\n\r\n",
            "",
        ),
        (
            post(
                "Upgrade: websocket\r\nConnection: upgrade\r\nContent-Length: 1\r\n",
                "x",
            ),
            "POST / HTTP/1.1\r\nHost: a.example\r\nContent-Length: 1\r\n\r\nx",
            "",
        ),
        (
            line("GET / HTTP/1.0\r\nUpgrade: websocket\r\nConnection: upgrade\r\n"),
            "GET / HTTP/1.1\r\nHost: a.example\r\n\r\n",
            "",
        ),
        // An expectation of HTTP/1.0 is none, and would be one behind us.
        (
            line("GET / HTTP/1.0\r\nExpect: 100-continue\r\n"),
            "GET / HTTP/1.1\r\nHost: a.example\r\n\r\n",
            "",
        ),
        // Bytes beyond ASCII in values are nobody's business.
        (
            hosted("X: \u{e9}\r\n"),
            "GET / HTTP/1.1\r\nHost: a.example\r\nX: \u{e9}\r\n\r\n",
            "",
        ),
        (
            hosted("X:\r\n"),
            "GET / HTTP/1.1\r\nHost: a.example\r\nX: \r\n\r\n",
            "",
        ),
    ];
    for (bytes, expected, left) in vectors {
        let shown = String::from_utf8_lossy(&bytes);
        match forward(&bytes, &[]) {
            Outcome::Forwarded { consumed, upstream } => {
                assert_eq!(String::from_utf8_lossy(&upstream), expected, "{shown}");
                assert_eq!(String::from_utf8_lossy(&bytes[consumed..]), left, "{shown}");
            }
            other => panic!("{other:?}: {shown}"),
        }
    }
}

#[test]
fn what_the_proxy_has_to_know_is_understood() {
    use crate::l7::head::{Limits, Request};
    use crate::l7::http1::parse_request;

    let read = |bytes: &[u8]| {
        let mut request = Request::default();
        let len = parse_request(bytes, &Limits::default(), &mut request);
        assert_eq!(len, Ok(Some(bytes.len())));
        request
    };
    assert!(read(&hosted("")).keep_alive);
    assert!(!read(&hosted("Connection: x, CLOSE\r\n")).keep_alive);
    assert!(!read(&line("GET / HTTP/1.0\r\n")).keep_alive);
    assert!(read(&line("GET / HTTP/1.0\r\nConnection: Keep-Alive\r\n")).keep_alive);
    assert!(!read(&line("GET / HTTP/1.0\r\nConnection: keep-alive, close\r\n")).keep_alive);
    assert!(read(&hosted("Expect: 100-Continue\r\n")).expect_continue);
    assert!(!read(&line("GET / HTTP/1.0\r\nExpect: 100-continue\r\n")).expect_continue);
    let bytes = line("GET http://a.example:80/p?q HTTP/1.1\r\n");
    let request = read(&bytes);
    assert_eq!(request.host(&bytes), b"a.example");
    assert_eq!(request.authority.port, Some(80));
    assert_eq!(request.path(&bytes), b"/p");
    assert_eq!(request.query(&bytes), Some(b"q".as_slice()));
    let bytes = hosted("X: 1\r\nx: 2\r\n");
    let request = read(&bytes);
    let values: Vec<&[u8]> = request.values(&bytes, b"X").collect();
    assert_eq!(values, [b"1", b"2"]);
}

#[test]
fn one_request_after_the_other_is_read_into_the_same_place() {
    use crate::l7::head::{Limits, Method, Request};
    use crate::l7::http1::parse_request;

    let limits = Limits::default();
    let mut request = Request::default();
    let (first, second) = (post("Connection: close\r\nX: 1\r\n", ""), hosted(""));
    for _ in 0..2 {
        for half in [first.len() / 2, first.len() - 1] {
            assert_eq!(
                parse_request(&first[..half], &limits, &mut request),
                Ok(None)
            );
        }
        let read = parse_request(&first, &limits, &mut request);
        assert_eq!(read, Ok(Some(first.len())));
        assert_eq!(
            parse_request(&second, &limits, &mut request),
            Ok(Some(second.len()))
        );
        assert_eq!((request.method, request.fields.len()), (Method::Get, 1));
        assert!(request.keep_alive);
        let refused = parse_request(&hosted("X : 1\r\n"), &limits, &mut request);
        assert_eq!(refused, Err(SpaceBeforeColon));
    }
}
