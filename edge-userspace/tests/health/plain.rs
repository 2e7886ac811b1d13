//! TCP and UDP.

use std::net::{IpAddr, SocketAddr};

use edge_userspace::health::{Route, probe::probe};
use socket2::{Domain, Socket, Type};
use tokio::net::UdpSocket;

use super::*;

#[tokio::test]
async fn a_listener_is_up_in_both_families() {
    for address in ["127.0.0.1:0", "[::1]:0"] {
        let listener = TcpListener::bind(address).await.unwrap();
        let target = listener.local_addr().unwrap();
        assert_eq!(ask(Probe::Tcp, target).await, Ok(()));
        // It was closed in order: the end of the stream, and no reset.
        let (mut stream, _) = listener.accept().await.unwrap();
        assert_eq!(stream.read(&mut [0; 16]).await.unwrap(), 0);
    }
}

#[tokio::test]
async fn a_closed_port_is_refused_at_once() {
    let target = closed_port().await;
    assert_eq!(
        ask(Probe::Tcp, target).await,
        failed("connect: connection refused")
    );
}

/// A listener that answers no SYN, because its queue is full.
fn full_listener() -> (Socket, Vec<std::net::TcpStream>) {
    let listener = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
    let any: SocketAddr = "127.0.0.1:0".parse().unwrap();
    listener.bind(&any.into()).unwrap();
    listener.listen(0).unwrap();
    let target = listener.local_addr().unwrap().as_socket().unwrap();
    let mut waiting = Vec::new();
    while let Ok(stream) = std::net::TcpStream::connect_timeout(&target, SOON) {
        waiting.push(stream);
        assert!(waiting.len() < 100, "the queue has an end");
    }
    (listener, waiting)
}

#[tokio::test]
async fn a_syn_without_an_answer_runs_into_the_timeout() {
    let (listener, _waiting) = full_listener();
    let target = listener.local_addr().unwrap().as_socket().unwrap();
    assert_eq!(
        ask_within(SOON, Probe::Tcp, target).await,
        failed("connect: no answer within 200ms")
    );
}

#[tokio::test]
async fn the_route_chooses_the_source() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let udp = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let source: IpAddr = "127.0.0.77".parse().unwrap();
    let route = Route {
        fwmark: Some(7),
        source: Some(source),
        device: Some("lo".into()),
        ..Route::default()
    };
    let tcp_check = check(Probe::Tcp, PATIENCE);
    let target = listener.local_addr().unwrap();
    probe(&tcp_check, target, &route, &Ways::default())
        .await
        .unwrap();
    assert_eq!(listener.accept().await.unwrap().1.ip(), source);
    let udp_check = check(
        Probe::Udp {
            send: b"x".to_vec(),
            expect: Vec::new(),
        },
        PATIENCE,
    );
    let target = udp.local_addr().unwrap();
    let answer = async {
        let (_, from) = udp.recv_from(&mut [0; 16]).await.unwrap();
        assert_eq!(from.ip(), source);
        udp.send_to(b"y", from).await.unwrap();
    };
    let ways = Ways::default();
    let (result, ()) = tokio::join!(probe(&udp_check, target, &route, &ways), answer);
    result.unwrap();
}

/// Answers each packet with "re:" and the packet.
async fn echo() -> SocketAddr {
    let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let address = socket.local_addr().unwrap();
    tokio::spawn(async move {
        let mut packet = [0; 1500];
        while let Ok((length, from)) = socket.recv_from(&mut packet).await {
            let answer = [b"re:", &packet[..length]].concat();
            socket.send_to(&answer, from).await.unwrap();
        }
    });
    address
}

fn udp(send: &[u8], expect: &[u8]) -> Probe {
    Probe::Udp {
        send: send.to_vec(),
        expect: expect.to_vec(),
    }
}

#[tokio::test]
async fn a_udp_answer_must_begin_as_expected() {
    let target = echo().await;
    assert_eq!(ask(udp(b"ping", b"re:pi"), target).await, Ok(()));
    assert_eq!(ask(udp(b"ping", b""), target).await, Ok(()));
    let long = [7; 1200];
    let expected = [&b"re:"[..], &long].concat();
    assert_eq!(ask(udp(&long, &expected), target).await, Ok(()));
    assert_eq!(
        ask(udp(b"\0ping", b"pong"), target).await,
        failed("the answer begins with \"re:\\x00ping\", wanted \"pong\"")
    );
    // Shorter than what is expected.
    assert_eq!(
        ask(udp(b"", b"re:x"), target).await,
        failed("the answer begins with \"re:\", wanted \"re:x\"")
    );
}

#[tokio::test]
async fn udp_without_a_listener_fails_at_once_and_without_an_answer_in_time() {
    let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let target = socket.local_addr().unwrap();
    assert_eq!(
        ask_within(SOON, udp(b"x", b""), target).await,
        failed("no answer within 200ms")
    );
    drop(socket);
    assert_eq!(
        ask(udp(b"x", b""), target).await,
        failed("connection refused")
    );
}
