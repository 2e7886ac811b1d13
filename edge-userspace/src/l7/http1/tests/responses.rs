//! Answers of upstreams: what is refused, and where the others end.

use crate::l7::head::{Framing, Limits, Method, Reject, Response};
use crate::l7::http1::{Asked, parse_response};

fn read(bytes: &str, asked: Asked) -> Result<Response, Reject> {
    let mut response = Response::default();
    let limits = Limits {
        head_bytes: 512,
        fields: 8,
        ..Limits::default()
    };
    let len = parse_response(bytes.as_bytes(), &limits, asked, &mut response)?;
    assert_eq!(len, Some(bytes.len()), "{bytes}");
    Ok(response)
}

const GET: Asked = Asked {
    method: Method::Get,
    upgrade: false,
};

#[test]
fn bad_answers_are_refused() {
    use Reject::*;
    for (bytes, reject) in [
        ("HTTP/2.0 200 OK\r\n\r\n", StatusLine),
        ("HTTP/1.2 200 OK\r\n\r\n", VersionUnsupported),
        ("http/1.1 200 OK\r\n\r\n", StatusLine),
        ("\r\nHTTP/1.1 200 OK\r\n\r\n", StatusLine),
        ("HTTP/1.1  200 OK\r\n\r\n", StatusLine),
        ("HTTP/1.1 20 OK\r\n\r\n", StatusLine),
        ("HTTP/1.1 2000 OK\r\n\r\n", StatusLine),
        ("HTTP/1.1 200\tOK\r\n\r\n", StatusLine),
        ("HTTP/1.1 +20 OK\r\n\r\n", StatusLine),
        ("HTTP/1.1 099 OK\r\n\r\n", StatusCode),
        ("HTTP/1.1 600 OK\r\n\r\n", StatusCode),
        ("HTTP/1.1 200 OK\n\r\n", BareLf),
        ("HTTP/1.1 200 O\rK\r\n\r\n", BareCr),
        ("HTTP/1.1 200 O\0K\r\n\r\n", Nul),
        ("HTTP/1.1 200 OK\r\nX: 1\r\n 2\r\n\r\n", ObsFold),
        ("HTTP/1.1 200 OK\r\nX : 1\r\n\r\n", SpaceBeforeColon),
        ("HTTP/1.1 200 OK\r\nX: 1\n\r\n", BareLf),
        ("HTTP/1.1 200 OK\r\nX\r\n\r\n", ColonMissing),
        (
            "HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 5\r\n\r\n",
            LengthRepeated,
        ),
        (
            "HTTP/1.1 200 OK\r\nContent-Length: 5, 5\r\n\r\n",
            LengthInvalid,
        ),
        (
            "HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n",
            LengthInvalid,
        ),
        (
            "HTTP/1.1 200 OK\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n",
            LengthWithEncoding,
        ),
        (
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip\r\n\r\n",
            EncodingUnknown,
        ),
        (
            "HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n",
            EncodingVersion,
        ),
        (
            "HTTP/1.1 204 No Content\r\nContent-Length: 5\r\n\r\n",
            LengthWithoutBody,
        ),
        (
            "HTTP/1.1 204 No Content\r\nTransfer-Encoding: chunked\r\n\r\n",
            LengthWithoutBody,
        ),
        (
            "HTTP/1.1 103 Early Hints\r\nContent-Length: 5\r\n\r\n",
            LengthWithoutBody,
        ),
        (
            "HTTP/1.1 200 OK\r\nConnection: content-length\r\nContent-Length: 1\r\n\r\n",
            ConnectionNominates,
        ),
        (
            "HTTP/1.1 101 Switching\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n",
            UpgradeUnasked,
        ),
    ] {
        assert_eq!(read(bytes, GET).map(|_| ()), Err(reject), "{bytes}");
    }
    let many = format!("HTTP/1.1 200 OK\r\n{}\r\n", "X: 1\r\n".repeat(9));
    assert_eq!(read(&many, GET).map(|_| ()), Err(FieldsTooMany));
    let large = format!("HTTP/1.1 200 OK\r\nX: {}\r\n\r\n", "y".repeat(512));
    assert_eq!(read(&large, GET).map(|_| ()), Err(HeadTooLarge));
    let asked = Asked {
        upgrade: true,
        ..GET
    };
    for lines in [
        "",
        "Upgrade: websocket\r\n",
        "Connection: upgrade\r\n",
        "Connection: upgrade\r\nUpgrade: h2c\r\n",
    ] {
        let bytes = format!("HTTP/1.1 101 Switching\r\n{lines}\r\n");
        assert_eq!(
            read(&bytes, asked).map(|_| ()),
            Err(UpgradeUnasked),
            "{bytes}"
        );
    }
}

#[test]
fn answers_end_where_the_rfc_says() {
    let head = Asked {
        method: Method::Head,
        upgrade: false,
    };
    for (bytes, asked, framing, declared, keep_alive) in [
        (
            "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n",
            GET,
            Framing::Length(5),
            Some(5),
            true,
        ),
        (
            "HTTP/1.1 200\r\nContent-Length: 0\r\n\r\n",
            GET,
            Framing::Length(0),
            Some(0),
            true,
        ),
        (
            "HTTP/1.1 200 \r\nTransfer-Encoding: Chunked\r\n\r\n",
            GET,
            Framing::Chunked,
            None,
            true,
        ),
        (
            "HTTP/1.1 200 OK\r\n\r\n",
            GET,
            Framing::UntilClose,
            None,
            false,
        ),
        (
            "HTTP/1.0 200 OK\r\nConnection: keep-alive\r\n\r\n",
            GET,
            Framing::UntilClose,
            None,
            false,
        ),
        (
            "HTTP/1.0 200 OK\r\nConnection: keep-alive\r\nContent-Length: 1\r\n\r\n",
            GET,
            Framing::Length(1),
            Some(1),
            true,
        ),
        (
            "HTTP/1.0 200 OK\r\nContent-Length: 1\r\n\r\n",
            GET,
            Framing::Length(1),
            Some(1),
            false,
        ),
        (
            "HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 1\r\n\r\n",
            GET,
            Framing::Length(1),
            Some(1),
            false,
        ),
        (
            "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n",
            head,
            Framing::None,
            Some(5),
            true,
        ),
        (
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n",
            head,
            Framing::None,
            None,
            true,
        ),
        ("HTTP/1.1 200 OK\r\n\r\n", head, Framing::None, None, true),
        (
            "HTTP/1.1 304 Not Modified\r\nContent-Length: 5\r\n\r\n",
            GET,
            Framing::None,
            Some(5),
            true,
        ),
        (
            "HTTP/1.1 204 No Content\r\nContent-Length: 0\r\n\r\n",
            GET,
            Framing::None,
            Some(0),
            true,
        ),
        (
            "HTTP/1.1 100 Continue\r\n\r\n",
            GET,
            Framing::None,
            None,
            true,
        ),
        (
            "HTTP/1.1 404 N\u{f6}\r\nContent-Length: 1\r\n\r\n",
            GET,
            Framing::Length(1),
            Some(1),
            true,
        ),
    ] {
        let response = read(bytes, asked).unwrap();
        assert_eq!(response.framing, framing, "{bytes}");
        assert_eq!(response.declared, declared, "{bytes}");
        assert_eq!(response.keep_alive, keep_alive, "{bytes}");
    }
    let asked = Asked {
        upgrade: true,
        ..GET
    };
    let bytes = "HTTP/1.1 101 Switching\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n";
    let response = read(bytes, asked).unwrap();
    assert_eq!(response.upgrade.unwrap().of(bytes.as_bytes()), b"websocket");
    assert!(!response.is_interim());
}

#[test]
fn an_answer_goes_on_as_its_client_can_take_it() {
    use crate::l7::head::Version::{Http10, Http11};
    for (came, version, goes) in [
        (Framing::UntilClose, Http11, Framing::Chunked),
        (Framing::UntilClose, Http10, Framing::UntilClose),
        (Framing::Chunked, Http10, Framing::UntilClose),
        (Framing::Chunked, Http11, Framing::Chunked),
        (Framing::Length(5), Http10, Framing::Length(5)),
        (Framing::None, Http10, Framing::None),
    ] {
        assert_eq!(came.towards(version), goes);
    }
}
