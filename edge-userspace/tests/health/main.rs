//! Health checks against real servers, as operators have them.

mod exec;
mod grpc;
mod http;
mod https;
mod nginx;
mod plain;

use std::{net::SocketAddr, time::Duration};

use edge_userspace::{
    config::balance::{HealthCheck, Probe, Through},
    health::{
        Route,
        probe::{Ways, probe},
    },
};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
};

/// How long anything may take on a machine that is busy with other things.
const PATIENCE: Duration = Duration::from_secs(60);
/// For checks that get no answer.
const SOON: Duration = Duration::from_millis(200);

fn check(probe: Probe, timeout: Duration) -> HealthCheck {
    HealthCheck {
        probe,
        through: Through::Direct,
        port: None,
        interval: 2 * timeout,
        timeout,
        rise: 1,
        fall: 1,
        jitter_per_cent: 0,
    }
}

/// Asks once, and gives what a person would read.
async fn ask_within(timeout: Duration, what: Probe, target: SocketAddr) -> Result<(), String> {
    let check = check(what, timeout);
    probe(&check, target, &Route::default(), &Ways::default())
        .await
        .map_err(|e| e.to_string())
}

async fn ask(what: Probe, target: SocketAddr) -> Result<(), String> {
    ask_within(PATIENCE, what, target).await
}

fn failed(why: &str) -> Result<(), String> {
    Err(why.to_owned())
}

/// A port of the loopback address where nobody listens any more.
async fn closed_port() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    listener.local_addr().unwrap()
}

/// Reads the header of each request and writes these bytes; then it is closed, or not.
async fn answering(answer: Vec<u8>, then_close: bool) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        let mut open = Vec::new();
        while let Ok((mut stream, _)) = listener.accept().await {
            read_header(&mut stream).await;
            // The other side may have heard enough.
            let _ = stream.write_all(&answer).await;
            if !then_close {
                open.push(stream);
            }
        }
    });
    address
}

async fn read_header(stream: &mut TcpStream) {
    let mut seen = Vec::new();
    while !seen.ends_with(b"\r\n\r\n") {
        match stream.read_u8().await {
            Ok(byte) => seen.push(byte),
            Err(_) => return,
        }
    }
}
