//! An HTTP/1.1 request, and what is wanted of the answer.

use std::{error::Error as _, io, net::SocketAddr};

use http_body_util::{BodyExt as _, Empty};
use hyper::{
    Request, Version,
    body::{Bytes, Incoming},
    client::conn::http1::{Builder, SendRequest},
    header,
};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};

use super::{Deadline, ProbeError, Way, drive, socket, tls};
use crate::config::balance::HttpProbe;

/// How much of a body is looked at, bytes.
pub(super) const BODY_BYTES: usize = 64 << 10;
/// The largest header of an answer, bytes.
const HEADER_BYTES: usize = 16 << 10;
/// What servers log as the client.
const USER_AGENT: &str = concat!("edge-health/", env!("CARGO_PKG_VERSION"));

/// Asks, over TLS or not.
pub(super) async fn ask(
    http: &HttpProbe,
    target: SocketAddr,
    way: &Way<'_>,
    deadline: Deadline,
) -> Result<(), ProbeError> {
    let request = request(http, target)?;
    let stream = socket::connect(target, way, deadline).await?;
    if http.tls {
        let host = http.host.as_deref();
        let stream = tls::handshake(stream, host, target, deadline).await?;
        exchange(stream, request, http, deadline).await
    } else {
        exchange(stream, request, http, deadline).await
    }
}

fn request(http: &HttpProbe, target: SocketAddr) -> Result<Request<Empty<Bytes>>, ProbeError> {
    let address = || {
        let default_port = if http.tls { 443 } else { 80 };
        match target {
            _ if target.port() != default_port => target.to_string(),
            SocketAddr::V4(v4) => v4.ip().to_string(),
            SocketAddr::V6(v6) => format!("[{}]", v6.ip()),
        }
    };
    let host = http.host.clone().unwrap_or_else(address);
    Request::get(&http.path)
        .version(Version::HTTP_11)
        .header(header::HOST, host)
        .header(header::USER_AGENT, USER_AGENT)
        .header(header::ACCEPT, "*/*")
        .header(header::CONNECTION, "close")
        .body(Empty::new())
        .map_err(|e| ProbeError::Protocol {
            protocol: "HTTP",
            wrong: format!("cannot ask for this path and host: {e}"),
        })
}

async fn exchange<S: AsyncRead + AsyncWrite + Unpin>(
    stream: S,
    request: Request<Empty<Bytes>>,
    http: &HttpProbe,
    deadline: Deadline,
) -> Result<(), ProbeError> {
    // Without an await of anything: there is no preface in HTTP/1.
    let (sender, connection) = Builder::new()
        // Names are compared without case, but not by everything that answers HTTP.
        .title_case_headers(true)
        .max_header_size(HEADER_BYTES)
        .handshake(TokioIo::new(stream))
        .await
        .map_err(|e| broken(&e))?;
    drive(judge(sender, request, http), connection, deadline).await
}

/// Sends the request and judges the answer as soon as enough of it is there. Leaves the
/// rest to be read, within bounds, so that the server can write it.
async fn judge(
    mut sender: SendRequest<Empty<Bytes>>,
    request: Request<Empty<Bytes>>,
    http: &HttpProbe,
) -> Result<impl Future<Output = ()> + use<>, ProbeError> {
    let answer = sender.send_request(request).await.map_err(|e| broken(&e))?;
    let got = answer.status().as_u16();
    let (first, last) = http.status;
    if !(first..=last).contains(&got) {
        return Err(ProbeError::Status {
            got,
            wanted: http.status,
        });
    }
    let mut body = Body {
        incoming: answer.into_body(),
        seen: Vec::new(),
    };
    if let Some(wanted) = &http.body
        && !body.contains(wanted.as_bytes()).await?
    {
        return Err(ProbeError::Body {
            wanted: wanted.clone(),
        });
    }
    Ok(async move { while let Ok(true) = body.more().await {} })
}

/// The beginning of an answer's body.
struct Body {
    incoming: Incoming,
    /// [`BODY_BYTES`] at the most.
    seen: Vec<u8>,
}

impl Body {
    /// Reads on; `false` at the end, or when it is enough.
    async fn more(&mut self) -> Result<bool, ProbeError> {
        let room = BODY_BYTES - self.seen.len();
        if room == 0 {
            return Ok(false);
        }
        let Some(frame) = self.incoming.frame().await else {
            return Ok(false);
        };
        // Trailers are none of the body.
        if let Ok(data) = frame.map_err(|e| broken(&e))?.into_data() {
            self.seen.extend(data.iter().take(room));
        }
        Ok(true)
    }

    async fn contains(&mut self, wanted: &[u8]) -> Result<bool, ProbeError> {
        if wanted.is_empty() {
            return Ok(true);
        }
        let mut searched = 0;
        loop {
            let rest = self.seen.get(searched..).unwrap_or_default();
            if rest.windows(wanted.len()).any(|part| part == wanted) {
                return Ok(true);
            }
            // It may have begun in what is there.
            searched = (self.seen.len() + 1).saturating_sub(wanted.len());
            if !self.more().await? {
                return Ok(false);
            }
        }
    }
}

fn broken(error: &hyper::Error) -> ProbeError {
    let protocol = |wrong| ProbeError::Protocol {
        protocol: "HTTP",
        wrong,
    };
    if error.is_parse_too_large() {
        let most = HEADER_BYTES >> 10;
        return protocol(format!("the header is larger than {most} KiB"));
    }
    if error.is_incomplete_message() || error.is_canceled() || error.is_closed() {
        return ProbeError::Closed;
    }
    let source = error.source();
    let Some(io) = source.and_then(|e| e.downcast_ref::<io::Error>()) else {
        return protocol(error.to_string());
    };
    match io.raw_os_error() {
        Some(code) => ProbeError::Lost(io::Error::from_raw_os_error(code)),
        None if io.kind() == io::ErrorKind::UnexpectedEof => ProbeError::Closed,
        // What hyper thinks of a chunk, for instance.
        None => protocol(io.to_string()),
    }
}
