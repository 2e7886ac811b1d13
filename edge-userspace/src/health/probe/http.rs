//! An HTTP request, and what is wanted of the answer.

use std::{error::Error as _, io, net::SocketAddr};

use http_body_util::{BodyExt as _, Empty};
use hyper::{
    Request, Version,
    body::{Bytes, Incoming},
    client::conn::http1::{Builder, SendRequest},
    header,
    http::uri,
};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};

use super::{Deadline, ProbeError, Waiting, Way, drive, socket, tls};
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
    let request = request(http, target, way)?;
    let stream = socket::connect(target, way, deadline).await?;
    match (http.tls, http.http2) {
        (false, false) => exchange(stream, request, http, deadline).await,
        (false, true) => exchange_http2(stream, request, http, deadline).await,
        (true, is_http2) => {
            let host = http.host.as_deref();
            let stream = tls::handshake(stream, host, (target, way), is_http2, deadline).await?;
            if is_http2 {
                exchange_http2(stream, request, http, deadline).await
            } else {
                exchange(stream, request, http, deadline).await
            }
        }
    }
}

fn request(
    http: &HttpProbe,
    target: SocketAddr,
    way: &Way<'_>,
) -> Result<Request<Empty<Bytes>>, ProbeError> {
    let address = || {
        let default_port = if http.tls { 443 } else { 80 };
        match target {
            _ if target.port() != default_port => target.to_string(),
            SocketAddr::V4(v4) => v4.ip().to_string(),
            SocketAddr::V6(v6) => format!("[{}]", v6.ip()),
        }
    };
    let name = || way.name().map(str::to_owned);
    // Servers may refuse another name than that of the session.
    let host = (http.host.clone()).or_else(|| name().filter(|_| http.tls));
    let host = host.unwrap_or_else(address);
    let request = if http.http2 {
        let scheme = if http.tls { "https" } else { "http" };
        let uri = uri::Builder::new().scheme(scheme).authority(host);
        Request::get(uri.path_and_query(&*http.path).build().unwrap_or_default())
            .version(Version::HTTP_2)
    } else {
        Request::get(&http.path)
            .version(Version::HTTP_11)
            .header(header::HOST, host)
            .header(header::CONNECTION, "close")
    };
    request
        .header(header::USER_AGENT, USER_AGENT)
        .header(header::ACCEPT, "*/*")
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
    drive(asked(sender, request, http), connection, deadline).await
}

async fn exchange_http2<S: AsyncRead + AsyncWrite + Unpin>(
    stream: S,
    request: Request<Empty<Bytes>>,
    http: &HttpProbe,
    deadline: Deadline,
) -> Result<(), ProbeError> {
    let opening = async {
        h2::client::Builder::new()
            .enable_push(false)
            .max_header_list_size(HEADER_BYTES as u32)
            .handshake::<_, Bytes>(stream)
            .await
            .map_err(broken_http2)
    };
    let (sender, connection) = deadline.within(Waiting::Answer, opening).await?;
    let asking = async {
        let mut sender = sender.ready().await.map_err(broken_http2)?;
        let sent = sender.send_request(request.map(drop), true);
        let (answer, _) = sent.map_err(broken_http2)?;
        let answer = answer.await.map_err(broken_http2)?;
        let status = answer.status().as_u16();
        judge(status, Content::Http2(answer.into_body()), http).await
    };
    drive(asking, connection, deadline).await
}

/// Sends the request and judges the answer as soon as enough of it is there.
async fn asked(
    mut sender: SendRequest<Empty<Bytes>>,
    request: Request<Empty<Bytes>>,
    http: &HttpProbe,
) -> Result<impl Future<Output = ()> + use<>, ProbeError> {
    let answer = sender.send_request(request).await.map_err(|e| broken(&e))?;
    let status = answer.status().as_u16();
    judge(status, Content::Http1(answer.into_body()), http).await
}

/// Judges an answer. Leaves the rest to be read, within bounds, so that the server can write it.
async fn judge(
    got: u16,
    content: Content,
    http: &HttpProbe,
) -> Result<impl Future<Output = ()> + use<>, ProbeError> {
    let (first, last) = http.status;
    if !(first..=last).contains(&got) {
        return Err(ProbeError::Status {
            got,
            wanted: http.status,
        });
    }
    let mut body = Body {
        content,
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

/// The body of an answer, as it comes.
enum Content {
    Http1(Incoming),
    Http2(h2::RecvStream),
}

impl Content {
    /// The next piece; nothing at the end.
    async fn piece(&mut self) -> Result<Option<Bytes>, ProbeError> {
        match self {
            Self::Http1(incoming) => match incoming.frame().await {
                // Trailers are none of the body.
                Some(frame) => {
                    let frame = frame.map_err(|e| broken(&e))?;
                    Ok(Some(frame.into_data().unwrap_or_default()))
                }
                None => Ok(None),
            },
            Self::Http2(stream) => match stream.data().await {
                Some(data) => {
                    let data = data.map_err(broken_http2)?;
                    let window = stream.flow_control();
                    window.release_capacity(data.len()).map_err(broken_http2)?;
                    Ok(Some(data))
                }
                None => Ok(None),
            },
        }
    }
}

/// The beginning of an answer's body.
struct Body {
    content: Content,
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
        let Some(data) = self.content.piece().await? else {
            return Ok(false);
        };
        self.seen.extend(data.iter().take(room));
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

fn broken_http2(error: h2::Error) -> ProbeError {
    if !error.is_io() {
        return ProbeError::Protocol {
            protocol: "HTTP/2",
            wrong: error.to_string(),
        };
    }
    match error.into_io() {
        Some(e) if e.kind() != io::ErrorKind::UnexpectedEof => ProbeError::Lost(e),
        _ => ProbeError::Closed,
    }
}
