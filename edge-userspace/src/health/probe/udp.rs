//! A packet, and the answer to it.

use std::net::{SocketAddr, UdpSocket as StdUdpSocket};

use socket2::Type;
use tokio::net::UdpSocket;

use super::{Deadline, ProbeError, Waiting, Way, socket};

/// How much of an answer is shown, bytes.
const SHOWN_BYTES: usize = 32;

/// Sends `send`, and wants an answer that begins with `expect`.
///
/// The socket is connected: only packets of the backend reach it, and an ICMP error
/// ends the check at once.
pub(super) async fn ask(
    send: &[u8],
    expect: &[u8],
    target: SocketAddr,
    way: &Way<'_>,
    deadline: Deadline,
) -> Result<(), ProbeError> {
    let socket = socket::open(target, way, Type::DGRAM)?;
    socket.connect(&target.into()).map_err(socket::refused)?;
    let socket = UdpSocket::from_std(StdUdpSocket::from(socket)).map_err(socket::refused)?;
    let exchange = async {
        socket.send(send).await.map_err(ProbeError::Lost)?;
        // What is longer is cut off by the kernel.
        let mut answer = vec![0; expect.len().max(SHOWN_BYTES)];
        let got = socket.recv(&mut answer).await.map_err(ProbeError::Lost)?;
        answer.truncate(got);
        if answer.starts_with(expect) {
            return Ok(());
        }
        Err(ProbeError::Answer {
            got: shown(&answer),
            wanted: shown(expect),
        })
    };
    deadline.within(Waiting::Answer, exchange).await
}

fn shown(bytes: &[u8]) -> String {
    let beginning = bytes.get(..SHOWN_BYTES).unwrap_or(bytes);
    beginning.escape_ascii().to_string()
}
