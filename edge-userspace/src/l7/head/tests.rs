//! Messages of HTTP/2 that would be other ones behind a translation to HTTP/1, and those that
//! are fine.

use super::h2::{self, Parts};
use super::{Field, Framing, Known, Limits, Method, Of, Reject, Request, Response, Version};

type Pairs<'a> = &'a [(&'a str, &'a str)];

const LIMITS: Limits = Limits {
    head_bytes: 512,
    fields: 8,
    uri_bytes: 64,
    body_bytes: 100,
};

const GET: Parts<'_> = Parts {
    method: b"GET",
    scheme: b"https",
    authority: Some(b"a.example"),
    path: b"/",
    ended: true,
};

fn bytes<'a>(pairs: Pairs<'a>) -> impl Iterator<Item = (&'a [u8], &'a [u8])> + Clone {
    let pairs = pairs.iter();
    pairs.map(|(name, value)| (name.as_bytes(), value.as_bytes()))
}

fn read(parts: &Parts<'_>, fields: Pairs<'_>) -> Result<(Vec<u8>, Request), Reject> {
    let mut buf = b"left over".to_vec();
    let mut request = Request::default();
    h2::request(parts, bytes(fields), &LIMITS, &mut buf, &mut request)?;
    Ok((buf, request))
}

fn shown<'a>(buf: &'a [u8], fields: &[Field]) -> Vec<(&'a str, &'a str)> {
    let text = |bytes| std::str::from_utf8(bytes).unwrap();
    let kept = fields.iter().filter(|field| field.kept);
    kept.map(|field| (text(field.name.of(buf)), text(field.value.of(buf))))
        .collect()
}

#[test]
fn fields_that_would_be_others_in_http_1_are_refused() {
    use Reject::*;
    let large = "v".repeat(600);
    let crumb = "c".repeat(100);
    let large = [("x", large.as_str())];
    let many = vec![("x", "1"); 9];
    let crumbs = vec![("cookie", crumb.as_str()); 6];
    let vectors: Vec<(Pairs<'_>, Reject)> = vec![
        (&[("transfer-encoding", "chunked")], EncodingVersion),
        (&[("transfer-encoding", "identity")], EncodingVersion),
        (&[("connection", "close")], ConnectionField),
        (&[("connection", "content-length")], ConnectionField),
        (&[("keep-alive", "5")], ConnectionField),
        (&[("proxy-connection", "close")], ConnectionField),
        (&[("upgrade", "h2c")], ConnectionField),
        (&[("http2-settings", "A")], ConnectionField),
        (&[("te", "gzip")], ConnectionField),
        (&[("te", "trailers, gzip")], ConnectionField),
        (&[("X-A", "1")], FieldNameCase),
        (&[("Transfer-Encoding", "chunked")], FieldNameCase),
        (&[("", "1")], FieldNameEmpty),
        (&[("x a", "1")], FieldNameByte),
        (&[("x: 1\r\nhost", "b")], FieldNameByte),
        (&[("x:", "1")], FieldNameByte),
        (&[(":path", "/admin")], FieldNameByte),
        (&[("x\n", "1")], FieldNameByte),
        (&[("\u{e9}", "1")], FieldNameByte),
        (&[("x", "1\r\ntransfer-encoding: chunked")], BareCr),
        (&[("x", "1\ncontent-length: 5")], BareLf),
        (&[("x", "1\rcontent-length: 5")], BareCr),
        (&[("x", "a\0b")], Nul),
        (&[("x", "a\x01b")], ControlByte),
        (&[("x", " 1")], FieldValueSpace),
        (&[("x", "1\t")], FieldValueSpace),
        (&[("cookie", "a=b\r\nx: 1")], BareCr),
        (&[("content-length", "+5")], LengthInvalid),
        (&[("content-length", "")], LengthInvalid),
        (&[("content-length", "5, 5")], LengthInvalid),
        (
            &[("content-length", "5"), ("content-length", "5")],
            LengthRepeated,
        ),
        (&[("content-length", "5")], LengthWithoutBody),
        (&[("host", "b.example")], HostDiffers),
        (&[("host", "a.example:80")], HostDiffers),
        (
            &[("host", "a.example"), ("host", "a.example")],
            HostRepeated,
        ),
        (&[("host", "")], HostInvalid),
        (&[("host", "a.example@b.example")], HostUserinfo),
        (&[("expect", "x")], Expectation),
        (&large, HeadTooLarge),
        (&many, FieldsTooMany),
        (&crumbs, HeadTooLarge),
    ];
    for (fields, reject) in vectors {
        assert_eq!(read(&GET, fields).map(|_| ()), Err(reject), "{fields:?}");
    }
}

#[test]
fn pseudo_fields_are_asked_as_a_request_line_is() {
    use Reject::*;
    let long = [b'/'; 65];
    for (parts, reject) in [
        (
            Parts {
                method: b"CONNECT",
                ..GET
            },
            MethodConnect,
        ),
        (Parts { method: b"", ..GET }, MethodByte),
        (
            Parts {
                method: b"GET / HTTP/1.1\r\nx:",
                ..GET
            },
            MethodByte,
        ),
        (Parts { scheme: b"", ..GET }, PseudoFields),
        (
            Parts {
                scheme: b"ftp",
                ..GET
            },
            PseudoFields,
        ),
        (
            Parts {
                scheme: b"http://a.example/?",
                ..GET
            },
            PseudoFields,
        ),
        (Parts { path: b"", ..GET }, PseudoFields),
        (Parts { path: b"a", ..GET }, TargetForm),
        (Parts { path: b"*", ..GET }, TargetForm),
        (
            Parts {
                path: b"http://a.example/",
                ..GET
            },
            TargetForm,
        ),
        (
            Parts {
                path: b"/ HTTP/1.1\r\nhost: b",
                ..GET
            },
            TargetByte,
        ),
        (
            Parts {
                path: b"/a b",
                ..GET
            },
            TargetByte,
        ),
        (
            Parts {
                path: b"/\xc3\xa9",
                ..GET
            },
            TargetByte,
        ),
        (
            Parts {
                path: b"/a#b",
                ..GET
            },
            TargetFragment,
        ),
        (
            Parts {
                path: b"/\0",
                ..GET
            },
            Nul,
        ),
        (Parts { path: &long, ..GET }, TargetTooLong),
        (
            Parts {
                authority: None,
                ..GET
            },
            HostMissing,
        ),
        (
            Parts {
                authority: Some(b""),
                ..GET
            },
            HostInvalid,
        ),
        (
            Parts {
                authority: Some(b"u@a.example"),
                ..GET
            },
            HostUserinfo,
        ),
        (
            Parts {
                authority: Some(b"a.example/b"),
                ..GET
            },
            HostInvalid,
        ),
        (
            Parts {
                authority: Some(b"a.example\r\nx: 1"),
                ..GET
            },
            HostInvalid,
        ),
    ] {
        assert_eq!(read(&parts, &[]).map(|_| ()), Err(reject), "{parts:?}");
    }
    let large = Parts {
        ended: false,
        ..GET
    };
    assert_eq!(
        read(&large, &[("content-length", "101")]).map(|_| ()),
        Err(BodyTooLarge)
    );
}

#[test]
fn a_request_is_as_one_of_http_1() {
    let parts = Parts {
        method: b"POST",
        path: b"/p/q?r=s?t",
        ended: false,
        ..GET
    };
    let fields = [
        ("host", "A.example:443"),
        ("cookie", "a=b"),
        ("te", "trailers"),
        ("x-a", "1"),
        ("x_b", "2"),
        ("cookie", "c=d"),
        ("x-empty", ""),
        ("expect", "100-continue"),
    ];
    let (buf, request) = read(&parts, &fields).unwrap();
    assert_eq!(request.version, Version::Http2);
    assert_eq!(request.method, Method::Post);
    assert_eq!(request.method_name.of(&buf), b"POST");
    assert_eq!(request.path(&buf), b"/p/q");
    assert_eq!(request.query(&buf), Some(b"r=s?t".as_slice()));
    assert_eq!(request.authority.whole.of(&buf), b"a.example");
    assert_eq!(request.framing, Framing::Chunked);
    assert!(request.te_trailers && request.expect_continue && request.keep_alive);
    let expected = [
        ("host", "A.example:443"),
        ("x-a", "1"),
        ("x-empty", ""),
        ("expect", "100-continue"),
        ("cookie", "a=b; c=d"),
    ];
    assert_eq!(shown(&buf, &request.fields), expected);
    assert!(buf.starts_with(b"left over"));

    let without = Parts {
        authority: None,
        ..GET
    };
    let (buf, request) = read(&without, &[("host", "b.example:1")]).unwrap();
    assert_eq!(request.host(&buf), b"b.example");
    assert_eq!(request.framing, Framing::None);
    let options = Parts {
        method: b"OPTIONS",
        path: b"*",
        ..GET
    };
    let (buf, request) = read(&options, &[]).unwrap();
    assert_eq!(request.path(&buf), b"*");
    let (_, request) = read(
        &Parts {
            ended: false,
            ..GET
        },
        &[("content-length", "5")],
    )
    .unwrap();
    assert_eq!(request.framing, Framing::Length(5));
}

#[test]
fn answers_end_where_they_say() {
    let read = |status, fields: Pairs<'_>, ended, method| {
        let (mut buf, mut response) = (Vec::new(), Response::default());
        h2::response(
            status,
            bytes(fields),
            ended,
            method,
            &LIMITS,
            &mut buf,
            &mut response,
        )
        .map(|()| (response.framing, response.declared))
    };
    let five: Pairs<'_> = &[("content-length", "5")];
    use Method::{Get, Head};
    assert_eq!(
        read(200, five, false, Get),
        Ok((Framing::Length(5), Some(5)))
    );
    assert_eq!(read(200, &[], false, Get), Ok((Framing::Chunked, None)));
    assert_eq!(read(200, &[], true, Get), Ok((Framing::Length(0), None)));
    assert_eq!(read(200, five, true, Head), Ok((Framing::None, Some(5))));
    assert_eq!(read(304, five, true, Get), Ok((Framing::None, Some(5))));
    assert_eq!(read(200, five, true, Get), Err(Reject::LengthWithoutBody));
    assert_eq!(read(204, five, true, Get), Err(Reject::LengthWithoutBody));
    assert_eq!(read(101, &[], true, Get), Err(Reject::UpgradeUnasked));
    assert_eq!(read(999, &[], true, Get), Err(Reject::StatusCode));
    let chunked: Pairs<'_> = &[("transfer-encoding", "chunked")];
    assert_eq!(read(200, chunked, false, Get), Err(Reject::EncodingVersion));
    let split: Pairs<'_> = &[("x", "1\r\nset-cookie: a")];
    assert_eq!(read(200, split, false, Get), Err(Reject::BareCr));
}

#[test]
fn trailers_are_asked_as_fields_are() {
    let read = |fields: Pairs<'_>| {
        let (mut buf, mut trailers) = (Vec::new(), Vec::new());
        h2::trailers(bytes(fields), Of::Request, &LIMITS, &mut buf, &mut trailers)?;
        Ok((buf, trailers))
    };
    let status: Pairs<'_> = &[("grpc-status", "0"), ("grpc-message", "")];
    let more = [status, &[("cookie", "a"), ("x_y", "1")]].concat();
    let (buf, trailers) = read(&more).unwrap();
    assert_eq!(shown(&buf, &trailers), status);
    assert_eq!(trailers[0].known, Known::Other);
    let refused = |fields: Pairs<'_>| read(fields).map(|_: (Vec<u8>, Vec<Field>)| ());
    assert_eq!(
        refused(&[("content-length", "5")]),
        Err(Reject::TrailerField)
    );
    assert_eq!(refused(&[(":status", "200")]), Err(Reject::FieldNameByte));
    assert_eq!(refused(&[("x", "a\nb")]), Err(Reject::BareLf));
}

#[test]
fn methods_that_may_be_repeated_are_those_of_the_rfc_in_their_own_case() {
    for name in ["GET", "HEAD", "PUT", "DELETE", "OPTIONS", "TRACE"] {
        assert!(super::Method::of(name.as_bytes()).is_idempotent(), "{name}");
    }
    for name in ["POST", "PATCH", "get", "FOO"] {
        assert!(
            !super::Method::of(name.as_bytes()).is_idempotent(),
            "{name}"
        );
    }
}
