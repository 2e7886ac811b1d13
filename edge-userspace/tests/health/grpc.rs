//! gRPC: a health server over HTTP/2.

use h2::{RecvStream, server::SendResponse};
use hyper::{HeaderMap, Method, Request, Response, body::Bytes, header::HeaderValue};

use super::*;

fn grpc(service: &str) -> Probe {
    Probe::Grpc {
        tls: false,
        service: service.to_owned(),
    }
}

/// A server with a behaviour for each service that is asked for.
async fn server() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                let mut connection = h2::server::handshake(stream).await.unwrap();
                while let Some(Ok((request, respond))) = connection.accept().await {
                    tokio::spawn(answer(request, respond));
                }
            });
        }
    });
    address
}

async fn answer(request: Request<RecvStream>, mut respond: SendResponse<Bytes>) {
    assert_eq!(request.method(), Method::POST);
    assert_eq!(request.uri().path(), "/grpc.health.v1.Health/Check");
    for (name, value) in [("content-type", "application/grpc"), ("te", "trailers")] {
        assert_eq!(request.headers()[name], value);
    }
    let mut body = request.into_body();
    let mut message = Vec::new();
    while let Some(data) = body.data().await {
        message.extend_from_slice(&data.unwrap());
    }
    let service = requested(&message);
    let head = |content_type| {
        let head = Response::builder().header("content-type", content_type);
        head.body(()).unwrap()
    };
    let whole = async |respond: &mut SendResponse<Bytes>, parts: &[&[u8]], status| {
        let mut stream = respond
            .send_response(head("application/grpc+proto"), false)
            .unwrap();
        for part in parts {
            let data = Bytes::copy_from_slice(part);
            stream.send_data(data, false).unwrap();
            tokio::task::yield_now().await;
        }
        stream.send_trailers(trailers(status, None)).unwrap();
    };
    match service.as_str() {
        "" => whole(&mut respond, &[b"\0\0\0\0\x02\x08\x01"], "0").await,
        "split" => whole(&mut respond, &[b"\0\0\0", b"\0\x02\x08", b"\x01"], "0").await,
        "down" => whole(&mut respond, &[b"\0\0\0\0\x02\x08\x02"], "0").await,
        "odd" => whole(&mut respond, &[b"\0\0\0\0\x02\x08\x63"], "0").await,
        "empty" => whole(&mut respond, &[b"\0\0\0\0\0"], "0").await,
        "compressed" => whole(&mut respond, &[b"\x01\0\0\0\x02\x08\x01"], "0").await,
        "cut" => whole(&mut respond, &[b"\0\0\0\0\x09\x08\x01"], "0").await,
        "endless" => whole(&mut respond, &[&[0; 10_000]], "0").await,
        "garbled" => whole(&mut respond, &[b"\0\0\0\0\x01\x0b"], "0").await,
        "late error" => whole(&mut respond, &[b"\0\0\0\0\x02\x08\x01"], "14").await,
        "unknown" => {
            let mut only = head("application/grpc");
            let message = "no such service: %C3%BC%0A";
            *only.headers_mut() = trailers("5", Some(message));
            let kind = HeaderValue::from_static("application/grpc");
            only.headers_mut().insert("content-type", kind);
            respond.send_response(only, true).unwrap();
        }
        "page" => {
            let mut stream = respond.send_response(head("text/html"), false).unwrap();
            stream
                .send_data(Bytes::from_static(b"hello"), true)
                .unwrap();
        }
        "missing" => {
            let answer = Response::builder().status(404).body(()).unwrap();
            respond.send_response(answer, true).unwrap();
        }
        "no status" => {
            let head = head("application/grpc");
            let mut stream = respond.send_response(head, false).unwrap();
            let message = Bytes::from_static(b"\0\0\0\0\x02\x08\x01");
            stream.send_data(message, true).unwrap();
        }
        "reset" => respond.send_reset(h2::Reason::REFUSED_STREAM),
        "silent" => std::future::pending().await,
        other => panic!("nobody asks for {other}"),
    }
}

fn trailers(status: &'static str, message: Option<&'static str>) -> HeaderMap {
    let mut trailers = HeaderMap::new();
    trailers.insert("grpc-status", HeaderValue::from_static(status));
    if let Some(message) = message {
        trailers.insert("grpc-message", HeaderValue::from_static(message));
    }
    trailers
}

/// The service in the request, which is short.
fn requested(message: &[u8]) -> String {
    let (head, message) = message.split_at(5);
    assert_eq!(head, [0, 0, 0, 0, u8::try_from(message.len()).unwrap()]);
    if message.is_empty() {
        return String::new();
    }
    assert_eq!(message[0], 0x0a);
    assert_eq!(usize::from(message[1]), message.len() - 2);
    String::from_utf8(message[2..].to_vec()).unwrap()
}

#[tokio::test]
async fn a_server_is_up_when_it_says_that_it_serves() {
    let target = server().await;
    for (service, result) in [
        ("", Ok(())),
        ("split", Ok(())),
        ("down", failed("gRPC: NOT_SERVING, wanted SERVING")),
        ("odd", failed("gRPC: serving status 99, wanted SERVING")),
        ("empty", failed("gRPC: UNKNOWN, wanted SERVING")),
        ("unknown", failed("gRPC: status 5: no such service: ü\n")),
        ("late error", failed("gRPC: status 14")),
    ] {
        assert_eq!(ask(grpc(service), target).await, result, "{service}");
    }
}

#[tokio::test]
async fn what_is_no_health_server_is_told() {
    let target = server().await;
    for (service, wrong) in [
        (
            "compressed",
            "gRPC: the answer is compressed, which was not asked for",
        ),
        ("cut", "gRPC: the answer is not one message"),
        ("endless", "gRPC: the answer is too long"),
        ("garbled", "gRPC: the answer is no health message"),
        ("page", "gRPC: the answer is not of type application/grpc"),
        ("missing", "status 404, wanted 200"),
        ("no status", "gRPC: no status behind the answer"),
        (
            "reset",
            "gRPC: stream error received: refused stream before processing any application logic",
        ),
    ] {
        assert_eq!(ask(grpc(service), target).await, failed(wrong), "{service}");
    }
    assert_eq!(
        ask_within(SOON, grpc("silent"), target).await,
        failed("no answer within 200ms")
    );
    assert_eq!(
        ask(grpc(""), closed_port().await).await,
        failed("connect: connection refused")
    );
    // A web server that knows no HTTP/2, and one that hangs up.
    let old = answering(b"HTTP/1.1 400 Bad Request\r\n\r\n".to_vec(), true).await;
    let said = ask(grpc(""), old).await.unwrap_err();
    assert!(said.starts_with("gRPC: "), "{said}");
    let mute = answering(Vec::new(), true).await;
    let said = ask(grpc(""), mute).await.unwrap_err();
    assert!(!said.contains("os error"), "{said}");
}
