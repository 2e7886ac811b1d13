//! The endpoint: `GET /metrics` and `GET /healthz` over HTTP/1.1, one request
//! a connection, everything bounded. Who may reach it is decided by the
//! address it listens on.

use std::{
    convert::Infallible,
    fmt, io,
    net::SocketAddr,
    os::fd::{AsFd as _, BorrowedFd},
    sync::Arc,
    time::Duration,
};

use http_body_util::Full;
use hyper::{
    Method, Request, Response, StatusCode,
    body::{Bytes, Incoming},
    header,
    server::conn::http1,
    service::service_fn,
};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::{OwnedSemaphorePermit, Semaphore, watch},
    task::JoinSet,
};

use super::registry::{Format, render};
use crate::status::Source;

/// Scrapes at once. More wait in the kernel's queue.
const CONNECTIONS: usize = 16;
/// Bytes of a request's header, at the most.
const HEADER_BYTES: usize = 8 << 10;
/// Header fields of a request, at the most.
const HEADER_FIELDS: usize = 64;

/// How long a client may take.
#[derive(Clone, Copy, Debug)]
struct Patience {
    /// For its whole header.
    header: Duration,
    /// For everything: Prometheus itself gives up after 10 seconds by default.
    whole: Duration,
}

/// What is scraped.
pub trait Scraped: Send + Sync + 'static {
    /// The metrics of this moment. Called from a thread that may block for a short time.
    ///
    /// # Errors
    /// When they cannot be rendered.
    fn scrape(&self, format: Format) -> Result<String, fmt::Error>;
}

impl<S: Source> Scraped for S {
    fn scrape(&self, format: Format) -> Result<String, fmt::Error> {
        render(self.status(), format)
    }
}

/// The server of the endpoint.
#[derive(Clone, Debug)]
pub struct Server {
    listener: Arc<TcpListener>,
    patience: Patience,
}

impl Server {
    /// Listens on `address`. To be called inside a tokio runtime.
    ///
    /// # Errors
    /// Those of bind(2), with the address.
    pub async fn bind(address: SocketAddr) -> io::Result<Self> {
        match TcpListener::bind(address).await {
            Ok(listener) => Ok(Self::on(listener)),
            Err(e) => Err(io::Error::new(
                e.kind(),
                format!(
                    "{address}: cannot listen for scrapes (`metrics.listen`, `--metrics`): {e}"
                ),
            )),
        }
    }

    /// Listens on a socket that another process has opened. To be called inside a tokio runtime.
    ///
    /// # Errors
    /// Those of the system.
    pub fn adopt(listener: std::net::TcpListener) -> io::Result<Self> {
        listener.set_nonblocking(true)?;
        Ok(Self::on(TcpListener::from_std(listener)?))
    }

    fn on(listener: TcpListener) -> Self {
        Self {
            listener: Arc::new(listener),
            patience: Patience {
                header: Duration::from_secs(5),
                whole: Duration::from_secs(15),
            },
        }
    }

    /// The socket, for another process.
    pub fn descriptor(&self) -> BorrowedFd<'_> {
        self.listener.as_fd()
    }

    /// The address it listens on.
    ///
    /// # Errors
    /// Those of getsockname(2).
    pub fn local_addr(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }

    /// Serves until `stop` becomes true (or its sender is gone).
    pub async fn run(self, source: Arc<dyn Scraped>, mut stop: watch::Receiver<bool>) {
        let places = Arc::new(Semaphore::new(CONNECTIONS));
        // Dropped at the end, which ends what is still being served.
        let mut connections = JoinSet::new();
        loop {
            while connections.try_join_next().is_some() {}
            let next = async {
                // The semaphore is never closed, so that this only waits.
                let place = places.clone().acquire_owned().await;
                (place, self.listener.accept().await)
            };
            let (place, accepted) = tokio::select! {
                _ = stop.wait_for(|stop| *stop) => return,
                next = next => next,
            };
            match (place, accepted) {
                (Ok(place), Ok((stream, _))) => {
                    let serving = connection(stream, source.clone(), self.patience, place);
                    connections.spawn(serving);
                }
                (_, Err(e)) => {
                    // Out of file descriptors, for instance: it passes.
                    tracing::warn!("cannot accept a scrape: {e}");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
                (Err(_), _) => return,
            }
        }
    }
}

async fn connection(
    stream: TcpStream,
    source: Arc<dyn Scraped>,
    patience: Patience,
    _place: OwnedSemaphorePermit,
) {
    let service = service_fn(move |request| {
        let source = source.clone();
        async move { Ok::<_, Infallible>(answer(&request, source).await) }
    });
    let serving = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(patience.header)
        .max_buf_size(HEADER_BYTES)
        .max_headers(HEADER_FIELDS)
        .keep_alive(false)
        .serve_connection(TokioIo::new(stream), service);
    match tokio::time::timeout(patience.whole, serving).await {
        Ok(Ok(())) => {}
        Ok(Err(e)) => tracing::debug!("scrape: {e}"),
        Err(_) => tracing::debug!("scrape: the client was too slow"),
    }
}

async fn answer(request: &Request<Incoming>, source: Arc<dyn Scraped>) -> Response<Full<Bytes>> {
    let reading = request.method() == Method::GET || request.method() == Method::HEAD;
    match request.uri().path() {
        "/metrics" | "/healthz" if !reading => {
            let mut response = text(StatusCode::METHOD_NOT_ALLOWED, "only GET and HEAD\n");
            response
                .headers_mut()
                .insert(header::ALLOW, header::HeaderValue::from_static("GET, HEAD"));
            response
        }
        "/metrics" => {
            let format = accepted(request);
            // Reading the counters of every CPU takes system calls.
            let rendered = tokio::task::spawn_blocking(move || source.scrape(format)).await;
            match rendered {
                Ok(Ok(body)) => typed(StatusCode::OK, format.content_type(), body.into()),
                Ok(Err(_)) | Err(_) => {
                    tracing::error!("the metrics could not be rendered");
                    text(StatusCode::INTERNAL_SERVER_ERROR, "see the daemon's log\n")
                }
            }
        }
        "/healthz" => text(StatusCode::OK, "ok\n"),
        _ => text(StatusCode::NOT_FOUND, "see /metrics and /healthz\n"),
    }
}

/// OpenMetrics for those who ask for it by name, as Prometheus does.
fn accepted(request: &Request<Incoming>) -> Format {
    let openmetrics = request.headers().get_all(header::ACCEPT).iter().any(|v| {
        v.to_str()
            .is_ok_and(|v| v.contains("application/openmetrics-text"))
    });
    if openmetrics {
        Format::OpenMetrics
    } else {
        Format::Prometheus
    }
}

fn text(status: StatusCode, body: &'static str) -> Response<Full<Bytes>> {
    typed(
        status,
        "text/plain; charset=utf-8",
        Bytes::from_static(body.as_bytes()),
    )
}

fn typed(status: StatusCode, content_type: &'static str, body: Bytes) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(body));
    *response.status_mut() = status;
    response.headers_mut().insert(
        header::CONTENT_TYPE,
        header::HeaderValue::from_static(content_type),
    );
    response
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;
    use crate::status::Status;

    struct Nothing;

    impl Source for Nothing {
        fn status(&self) -> Status {
            Status::default()
        }
    }

    /// A server, and what ends it when dropped.
    async fn server() -> (SocketAddr, watch::Sender<bool>) {
        let mut server = Server::bind(([127, 0, 0, 1], 0).into()).await.unwrap();
        server.patience.header = Duration::from_millis(100);
        let address = server.local_addr().unwrap();
        let (stop, stopped) = watch::channel(false);
        tokio::spawn(server.run(Arc::new(Nothing), stopped));
        (address, stop)
    }

    /// The whole answer to a raw request.
    async fn ask(address: SocketAddr, request: &[u8]) -> String {
        let mut stream = TcpStream::connect(address).await.unwrap();
        stream.write_all(request).await.unwrap();
        let mut answer = Vec::new();
        let read = stream.read_to_end(&mut answer);
        // Refused input that was not read makes the kernel reset the connection.
        let _ = tokio::time::timeout(Duration::from_secs(30), read)
            .await
            .expect("an answer");
        String::from_utf8(answer).unwrap()
    }

    #[tokio::test]
    async fn serves_metrics_in_both_formats() {
        let (address, _stop) = server().await;
        let a = ask(address, b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n").await;
        assert!(a.starts_with("HTTP/1.1 200 OK\r\n"), "{a}");
        assert!(a.contains("content-type: text/plain; version=0.0.4"), "{a}");
        assert!(a.contains("\nedge_uptime_seconds 0"), "{a}");
        let a = ask(
            address,
            b"GET /metrics?x=y HTTP/1.1\r\nHost: x\r\nAccept: application/openmetrics-text;version=1.0.0,text/plain;q=0.5\r\n\r\n",
        )
        .await;
        assert!(
            a.contains("content-type: application/openmetrics-text"),
            "{a}"
        );
        assert!(a.ends_with("# EOF\n"), "{a}");
    }

    #[tokio::test]
    async fn serves_nothing_else() {
        let (address, _stop) = server().await;
        for (request, status) in [
            (&b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n"[..], "200"),
            (b"HEAD /metrics HTTP/1.1\r\nHost: x\r\n\r\n", "200"),
            (
                b"POST /metrics HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n",
                "405",
            ),
            (b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", "404"),
            (b"GET /metrics/../etc HTTP/1.1\r\nHost: x\r\n\r\n", "404"),
            (b"rubbish\r\n\r\n", "400"),
        ] {
            let a = ask(address, request).await;
            assert!(a.starts_with(&format!("HTTP/1.1 {status} ")), "{a}");
        }
        let mut long = b"GET /metrics HTTP/1.1\r\nX: ".to_vec();
        long.resize(HEADER_BYTES * 4, b'x');
        let a = ask(address, &long).await;
        assert!(a.is_empty() || a.starts_with("HTTP/1.1 431 "), "{a}");
    }

    #[tokio::test]
    async fn idle_connections_do_not_keep_others_out_for_good() {
        let (address, stop) = server().await;
        let mut idle = Vec::new();
        for _ in 0..CONNECTIONS {
            idle.push(TcpStream::connect(address).await.unwrap());
        }
        // Waits until the header time of an idle one is over, and no longer.
        let a = ask(address, b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n").await;
        assert!(a.ends_with("ok\n"), "{a}");
        // The end of the server ends what it serves.
        stop.send(true).unwrap();
        let mut rest = Vec::new();
        let last = idle.last_mut().unwrap();
        let _ = tokio::time::timeout(Duration::from_secs(30), last.read_to_end(&mut rest))
            .await
            .expect("closed");
    }
}
