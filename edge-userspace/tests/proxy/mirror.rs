//! Copies of requests for another upstream.

use std::sync::{Arc, Mutex};

use edge_userspace::status::proxy::MirrorCounts;

use hyper::{Method, body::Bytes};

use super::{
    client::{ask, connect, send, whole},
    rig::*,
};

/// Heads and bodies of requests.
type Requests = Arc<Mutex<Vec<(String, Vec<u8>)>>>;

/// A server that notes its requests.
fn noting() -> (Server, Requests) {
    let all = Requests::default();
    let noted = all.clone();
    let server = Server::start(move |mut peer| {
        while let Some(request) = peer.request() {
            lock(&noted).push(request);
            let _ = peer.try_send("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok");
        }
    });
    (server, all)
}

fn setup(server: &Server, shadow: &str, fraction: f64) -> Setup {
    Setup::new(&[server]).routes(format!(
        "[[upstream]]\nname = 'shadow'\n[[upstream.server]]\naddress = '{shadow}'\n\
         {ALL}mirror = {{ upstream = 'shadow', fraction = {fraction} }}\n"
    ))
}

fn counts(rig: &Rig) -> MirrorCounts {
    rig.tier.view().status().unwrap().routes[0]
        .mirrored
        .unwrap()
}

#[test]
fn the_shadow_gets_what_the_server_gets() {
    let ((server, original), (shadow, copies)) = (noting(), noting());
    let rig = Rig::new(&setup(&server, &shadow.address, 1.0));
    let mut client = rig.client();
    for (n, request) in [
        "GET /a?b=1 HTTP/1.1\r\nHost: a.example\r\nX-Some: thing\r\n\r\n".to_owned(),
        "POST /b HTTP/1.1\r\nHost: a.example\r\nContent-Length: 5\r\n\r\nhello".to_owned(),
        "POST /c HTTP/1.1\r\nHost: a.example\r\nTransfer-Encoding: chunked\r\n\r\n\
         5\r\nhello\r\n6\r\n world\r\n0\r\n\r\n"
            .to_owned(),
        format!(
            "PUT /d HTTP/1.1\r\nHost: a.example\r\nContent-Length: 16384\r\n\r\n{}",
            "x".repeat(16_384)
        ),
    ]
    .into_iter()
    .enumerate()
    {
        client.send(&request);
        assert_eq!(client.answer().text(), "ok");
        until("the copy", || lock(&copies).len() == n + 1);
        assert_eq!(lock(&copies).last(), lock(&original).last());
    }
    until("all are counted", || counts(&rig).sent == 4);
    assert_eq!(counts(&rig).skipped, 0);
    // What is larger is not copied, nor what becomes another protocol.
    client.send(format!(
        "PUT /e HTTP/1.1\r\nHost: a.example\r\nContent-Length: 16385\r\n\r\n{}",
        "x".repeat(16_385)
    ));
    assert_eq!(client.answer().text(), "ok");
    let upgrade = "Connection: upgrade\r\nUpgrade: websocket\r\n";
    assert_eq!(client.get_with("/f", upgrade).text(), "ok");
    until("both are counted", || counts(&rig).skipped == 2);
    assert_eq!(lock(&copies).len(), 4);
    assert_eq!(lock(&original).len(), 6);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn the_same_holds_for_clients_of_http_2() {
    let ((server, original), (shadow, copies)) = (noting(), noting());
    let rig = Rig::new(&setup(&server, &shadow.address, 1.0).listener("http2 = true"));
    let client = connect(rig.port.at).await;
    let pieces: [&[&str]; 3] = [&[], &["hello"], &["hello", " ", "world"]];
    for (n, pieces) in pieces.into_iter().enumerate() {
        let method = if pieces.is_empty() {
            Method::GET
        } else {
            Method::POST
        };
        let request = ask(method, &format!("/{n}?b=1"));
        let (response, mut body) = send(&client, request, pieces.is_empty()).await;
        for (at, piece) in pieces.iter().enumerate() {
            let is_last = at + 1 == pieces.len();
            body.send_data(Bytes::from_static(piece.as_bytes()), is_last)
                .unwrap();
        }
        let (_, answered, _) = whole(response).await.unwrap();
        assert_eq!(answered, b"ok");
        until("the copy", || lock(&copies).len() == n + 1);
        assert_eq!(lock(&copies).last(), lock(&original).last());
        assert_eq!(lock(&copies)[n].1, pieces.concat().as_bytes());
    }
    until("all are counted", || counts(&rig).sent == 3);
    assert_eq!(counts(&rig).skipped, 0);
}

#[test]
fn a_shadow_that_hangs_or_is_down_is_not_noticed() {
    let hanging = Server::start(|mut peer| {
        peer.request();
        peer.rest();
    });
    let server = Server::saying("well");
    let rig = Rig::new(&setup(&server, &hanging.address, 1.0));
    let mut client = rig.client();
    for _ in 0..100 {
        assert_eq!(client.get("/").text(), "well");
    }
    // So many are under way at one time.
    assert_eq!(counts(&rig).skipped, 36);
    until("the others are under way", || hanging.requests() == 64);

    let nobody = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = nobody.local_addr().unwrap().to_string();
    drop(nobody);
    let rig = Rig::new(&setup(&server, &address, 1.0));
    let mut client = rig.client();
    for _ in 0..20 {
        assert_eq!(client.get("/").text(), "well");
        client.send("POST / HTTP/1.1\r\nHost: a.example\r\nContent-Length: 2\r\n\r\nhi");
        assert_eq!(client.answer().text(), "well");
    }
    until("all have failed", || counts(&rig).failed == 40);
    assert_eq!(counts(&rig).sent, 0);
}

#[test]
fn a_share_is_copied_until_a_change() {
    let (server, shadow) = (Server::saying("well"), Server::saying("shadow"));
    let setup = setup(&server, &shadow.address, 0.3);
    let mut rig = Rig::new(&setup);
    let mut client = rig.client();
    for _ in 0..1000 {
        assert_eq!(client.get("/").text(), "well");
    }
    // Seven standard deviations.
    let total = || {
        let MirrorCounts {
            sent,
            failed,
            skipped,
        } = counts(&rig);
        sent + failed + skipped
    };
    until("so many copies", || total() >= 200);
    until("all have come", || {
        shadow.requests() as u64 == counts(&rig).sent
    });
    assert!(total() <= 400, "{}", total());
    let plain = setup
        .clone()
        .routes(setup.routes.replace("mirror", "#mirror"));
    rig.change(&plain);
    // It holds for the first request that comes after the workers have looked.
    let mut client = rig.client();
    until("nothing is copied", || {
        let before = shadow.requests();
        (0..20).for_each(|_| drop(client.get("/")));
        shadow.requests() == before
    });
    assert_eq!(rig.tier.view().status().unwrap().routes[0].mirrored, None);
}
