//! A server that is made with hyper, and so is nobody's work who made the proxy.

use std::{
    convert::Infallible,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    thread,
};

use http_body_util::{BodyExt as _, Either, Full};
use hyper::{
    Request, Response, StatusCode,
    body::{Bytes, Incoming},
    header,
    server::conn::http1,
    service::service_fn,
};
use hyper_util::rt::TokioIo;
use tokio::{io, net::TcpListener};

use super::rig::*;

/// Where it is, and how many connections it has had.
fn start() -> (String, Arc<AtomicUsize>) {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    listener.set_nonblocking(true).unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let connections: Arc<AtomicUsize> = Arc::default();
    let count = connections.clone();
    thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        runtime.block_on(async move {
            let listener = TcpListener::from_std(listener).unwrap();
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                count.fetch_add(1, Relaxed);
                let serve = http1::Builder::new()
                    .serve_connection(TokioIo::new(stream), service_fn(answer))
                    .with_upgrades();
                // The proxy may close it whenever it likes.
                tokio::spawn(async { drop(serve.await) });
            }
        });
    });
    (address, connections)
}

type Body = Either<Incoming, Full<Bytes>>;

async fn answer(mut request: Request<Incoming>) -> Result<Response<Body>, Infallible> {
    Ok(match request.uri().path() {
        // What comes, as it comes.
        "/stream" => Response::new(Either::Left(request.into_body())),
        "/up" => {
            let upgraded = hyper::upgrade::on(&mut request);
            tokio::spawn(async {
                let (mut from, mut to) = io::split(TokioIo::new(upgraded.await.unwrap()));
                io::copy(&mut from, &mut to).await
            });
            let mut switch = Response::new(Either::Right(Full::default()));
            *switch.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
            let headers = switch.headers_mut();
            headers.insert(header::UPGRADE, "echo".parse().unwrap());
            headers.insert(header::CONNECTION, "upgrade".parse().unwrap());
            switch
        }
        "/head" => Response::builder()
            .header(header::CONTENT_LENGTH, 42)
            .body(Either::Right(Full::default()))
            .unwrap(),
        _ => {
            let body = request.into_body().collect().await.unwrap();
            Response::new(Either::Right(Full::new(body.to_bytes())))
        }
    })
}

fn rig() -> (Rig, Arc<AtomicUsize>) {
    let (address, connections) = start();
    let mut setup = Setup::new(&[]);
    setup.servers.push(address);
    (Rig::new(&setup), connections)
}

/// A body in one piece, or in chunks of so many bytes.
fn post(client: &mut Peer, path: &str, body: &[u8], chunk: Option<usize>) -> Answer {
    let head = format!("POST {path} HTTP/1.1\r\nHost: a.example\r\n");
    match chunk {
        None => {
            client.send(format!("{head}Content-Length: {}\r\n\r\n", body.len()));
            client.send(body);
        }
        Some(chunk) => {
            client.send(format!("{head}Transfer-Encoding: chunked\r\n\r\n"));
            for chunk in body.chunks(chunk) {
                client.send(format!("{:x}\r\n", chunk.len()));
                client.send(chunk);
                client.send("\r\n");
            }
            client.send("0\r\n\r\n");
        }
    }
    client.answer()
}

#[test]
fn bodies_reach_a_server_of_hyper_and_come_back() {
    let (rig, connections) = rig();
    let all: Vec<u8> = (0..1_000_000_u32).map(|i| (i % 251) as u8).collect();
    let mut client = rig.client();
    for chunk in [None, Some(7_000)] {
        for len in [0, 1, 50_000, 1_000_000] {
            let answer = post(&mut client, "/whole", &all[..len], chunk);
            assert_eq!(answer.status, 200, "{len} {chunk:?}");
            assert!(answer.body == all[..len], "{len} {chunk:?}");
        }
    }
    assert_eq!(connections.load(Relaxed), 1, "it is kept");
    // What comes back while it is sent has to fit into the sockets on its way. An answer that
    // begins before the request has ended is the last one of its connection, and says so.
    for chunk in [None, Some(7_000)] {
        for len in [0, 1, 50_000] {
            let answer = post(&mut client, "/stream", &all[..len], chunk);
            assert_eq!(answer.status, 200, "{len} {chunk:?}");
            assert!(answer.body == all[..len], "{len} {chunk:?}");
            if answer.header("connection") == Some("close") {
                assert!(client.is_closed());
                client = rig.client();
            }
        }
    }
}

#[test]
fn a_server_of_hyper_answers_head_and_100_continue() {
    let (rig, _) = rig();
    let mut client = rig.client();
    client.send("HEAD /head HTTP/1.1\r\nHost: a.example\r\n\r\n");
    let answer = client.answer_to("HEAD");
    assert_eq!(
        (answer.status, answer.header("content-length")),
        (200, Some("42"))
    );
    client.send(
        "POST /whole HTTP/1.1\r\nHost: a.example\r\nContent-Length: 4\r\n\
         Expect: 100-continue\r\n\r\n",
    );
    let interim = client.head().unwrap();
    assert!(interim.starts_with("HTTP/1.1 100 "), "{interim}");
    client.send("body");
    let answer = client.answer();
    assert_eq!((answer.status, answer.text()), (200, "body"));
}

#[test]
fn a_server_of_hyper_changes_to_another_protocol() {
    let (rig, _) = rig();
    let mut client = rig.client();
    client.send(
        "GET /up HTTP/1.1\r\nHost: a.example\r\nConnection: upgrade\r\nUpgrade: echo\r\n\r\n",
    );
    let head = client.head().unwrap();
    assert!(head.starts_with("HTTP/1.1 101 "), "{head}");
    for _ in 0..3 {
        client.send("to and fro\n");
        assert_eq!(client.take_until(b"\n").unwrap(), b"to and fro\n");
    }
}
