//! A server of HTTP/2.

use std::{
    future::poll_fn,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
    thread,
};

use h2::{
    Reason, RecvStream, SendStream,
    server::{Builder, SendResponse},
};
use hyper::{HeaderMap, Request, Response, body::Bytes};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpListener, UnixListener},
    sync::{Semaphore, mpsc},
};
use tokio_rustls::{TlsAcceptor, rustls::ServerConfig};

/// What it counts.
#[derive(Debug)]
pub(crate) struct Counts {
    /// Connections that came, and those that ended.
    pub(crate) connections: AtomicUsize,
    pub(crate) ended: AtomicUsize,
    /// Requests that came.
    pub(crate) requests: AtomicUsize,
    /// Requests to `/wait`, or bodies to `/slow`, that may go on.
    pub(crate) go: Semaphore,
}

/// The server, as long as there is a test.
pub(crate) struct Server {
    pub(crate) address: String,
    pub(crate) counts: Arc<Counts>,
    /// What became of requests that end oddly.
    pub(crate) told: mpsc::Receiver<String>,
}

type Tell = mpsc::Sender<String>;

impl Server {
    pub(crate) fn start() -> Self {
        Self::with(&Builder::new())
    }

    pub(crate) fn with(builder: &Builder) -> Self {
        Self::on(builder, None)
    }

    pub(crate) fn tls(config: ServerConfig) -> Self {
        Self::on(&Builder::new(), Some(Arc::new(config)))
    }

    fn on(builder: &Builder, tls: Option<Arc<ServerConfig>>) -> Self {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        listener.set_nonblocking(true).unwrap();
        let address: SocketAddr = listener.local_addr().unwrap();
        Self::run(address.to_string(), builder, move |serve| async move {
            let listener = TcpListener::from_std(listener).unwrap();
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                stream.set_nodelay(true).unwrap();
                let (serve, tls) = (serve.clone(), tls.clone());
                tokio::spawn(async move {
                    match tls {
                        None => serve.connection(stream).await,
                        Some(tls) => {
                            let session = TlsAcceptor::from(tls).accept(stream).await;
                            match session {
                                Ok(session) => serve.connection(session).await,
                                Err(e) => drop(serve.tell.try_send(format!("TLS: {e}"))),
                            }
                        }
                    }
                });
            }
        })
    }

    pub(crate) fn unix(path: &std::path::Path) -> Self {
        let listener = std::os::unix::net::UnixListener::bind(path).unwrap();
        listener.set_nonblocking(true).unwrap();
        let address = format!("unix:{}", path.display());
        Self::run(address, &Builder::new(), move |serve| async move {
            let listener = UnixListener::from_std(listener).unwrap();
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                let serve = serve.clone();
                tokio::spawn(async move { serve.connection(stream).await });
            }
        })
    }

    fn run<F: Future<Output = ()>>(
        address: String,
        builder: &Builder,
        accept: impl FnOnce(Serve) -> F + Send + 'static,
    ) -> Self {
        let counts = Arc::new(Counts {
            connections: AtomicUsize::new(0),
            ended: AtomicUsize::new(0),
            requests: AtomicUsize::new(0),
            go: Semaphore::new(0),
        });
        let (tell, told) = mpsc::channel(64);
        let serve = Serve {
            builder: builder.clone(),
            counts: counts.clone(),
            tell,
        };
        thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .unwrap();
            runtime.block_on(accept(serve));
        });
        Self {
            address,
            counts,
            told,
        }
    }

    pub(crate) fn connections(&self) -> usize {
        self.counts.connections.load(SeqCst)
    }

    pub(crate) fn requests(&self) -> usize {
        self.counts.requests.load(SeqCst)
    }

    /// What it tells next.
    pub(crate) async fn tells(&mut self) -> String {
        let told = tokio::time::timeout(super::rig::PATIENCE, self.told.recv()).await;
        told.expect("in time").unwrap()
    }
}

#[derive(Clone)]
struct Serve {
    builder: Builder,
    counts: Arc<Counts>,
    tell: Tell,
}

impl Serve {
    async fn connection(&self, io: impl AsyncRead + AsyncWrite + Unpin) {
        self.counts.connections.fetch_add(1, SeqCst);
        if let Ok(mut connection) = self.builder.handshake(io).await {
            while let Some(Ok((request, respond))) = connection.accept().await {
                self.counts.requests.fetch_add(1, SeqCst);
                let (counts, tell) = (self.counts.clone(), self.tell.clone());
                tokio::spawn(async move {
                    // A stream that is reset has had what it wanted.
                    let _ = answer(request, respond, &counts, &tell).await;
                });
            }
        }
        self.counts.ended.fetch_add(1, SeqCst);
    }
}

fn ok() -> Response<()> {
    Response::new(())
}

async fn answer(
    request: Request<RecvStream>,
    mut respond: SendResponse<Bytes>,
    counts: &Counts,
    tell: &Tell,
) -> Result<(), h2::Error> {
    let (head, mut body) = request.into_parts();
    let path = head.uri.path().to_owned();
    match path.as_str() {
        // A call: the message comes back, with its trailers and a status.
        "/unary" => {
            let (message, trailers) = read(&mut body).await?;
            let mut head = ok();
            let grpc = "application/grpc+proto".parse().unwrap();
            head.headers_mut().insert("content-type", grpc);
            if message.len() > 1_000_000 {
                let fields = head.headers_mut();
                fields.insert("content-length", message.len().into());
            }
            let mut send = respond.send_response(head, false)?;
            write(&mut send, &message).await?;
            let mut trailers = trailers.unwrap_or_default();
            trailers.insert("grpc-status", "0".parse().unwrap());
            send.send_trailers(trailers)?;
        }
        // The same piece by piece.
        "/echo" => {
            let mut send = respond.send_response(ok(), false)?;
            while let Some(data) = body.data().await {
                let data = data?;
                write(&mut send, &data).await?;
                body.flow_control().release_capacity(data.len())?;
            }
            send.send_trailers(body.trailers().await?.unwrap_or_default())?;
        }
        "/wait" => {
            counts.go.acquire().await.unwrap().forget();
            whole(&mut respond, ok(), b"waited")?;
        }
        // Takes nothing of the body before it may.
        "/slow" => {
            let _ = tell.try_send("came".into());
            counts.go.acquire().await.unwrap().forget();
            let (message, _) = read(&mut body).await?;
            whole(&mut respond, ok(), message.len().to_string().as_bytes())?;
        }
        // Nothing, or nothing more.
        "/hang" | "/begin" => {
            let reason = if path == "/hang" {
                let _ = tell.try_send("came".into());
                poll_fn(|cx| respond.poll_reset(cx)).await?
            } else {
                let mut send = respond.send_response(ok(), false)?;
                send.send_data(Bytes::from_static(b"begun"), false)?;
                let _ = tell.try_send("came".into());
                poll_fn(|cx| send.poll_reset(cx)).await?
            };
            let _ = tell.try_send(format!("{reason:?}"));
        }
        "/half" => {
            let mut head = ok();
            head.headers_mut().insert("content-length", 100.into());
            let mut send = respond.send_response(head, false)?;
            write(&mut send, b"half").await?;
            // A reset takes back what was not sent yet.
            counts.go.acquire().await.unwrap().forget();
            send.send_reset(Reason::INTERNAL_ERROR);
        }
        // gRPC's own check: it serves.
        "/grpc.health.v1.Health/Check" => {
            let mut head = ok();
            let grpc = "application/grpc".parse().unwrap();
            head.headers_mut().insert("content-type", grpc);
            let mut send = respond.send_response(head, false)?;
            send.send_data(Bytes::from_static(b"\0\0\0\0\x02\x08\x01"), false)?;
            let mut trailers = HeaderMap::new();
            trailers.insert("grpc-status", "0".parse().unwrap());
            send.send_trailers(trailers)?;
        }
        // Says what it thinks of the body before it has come.
        "/early" => {
            let mut head = ok();
            *head.status_mut() = 413.try_into().unwrap();
            whole(&mut respond, head, b"too large")?;
        }
        "/interim" => {
            let mut early = ok();
            *early.status_mut() = 103.try_into().unwrap();
            early.headers_mut().insert("link", "</a>".parse().unwrap());
            respond.send_informational(early)?;
            whole(&mut respond, ok(), b"at last")?;
        }
        "/none" => {
            let mut head = ok();
            *head.status_mut() = 204.try_into().unwrap();
            respond.send_response(head, true)?;
        }
        "/trailers-only" => {
            let mut head = ok();
            head.headers_mut()
                .insert("grpc-status", "5".parse().unwrap());
            respond.send_response(head, true)?;
        }
        "/large" => {
            let mut send = respond.send_response(ok(), false)?;
            write(&mut send, &pattern(5_000_000)).await?;
            send.send_data(Bytes::new(), true)?;
        }
        // What came.
        _ => {
            let mut seen = format!("{} {} {:?}\n", head.method, head.uri, head.version);
            for (name, value) in &head.headers {
                seen += &format!("{name}: {}\n", value.to_str().unwrap());
            }
            let mut answer = ok();
            let length = seen.len().into();
            answer.headers_mut().insert("content-length", length);
            if head.method == "HEAD" {
                respond.send_response(answer, true)?;
            } else {
                whole(&mut respond, answer, seen.as_bytes())?;
            }
        }
    }
    Ok(())
}

/// Bytes that repeat late.
pub(crate) fn pattern(n: u32) -> Vec<u8> {
    (0..n).map(|n| (n ^ (n >> 8) ^ (n >> 16)) as u8).collect()
}

fn whole(
    respond: &mut SendResponse<Bytes>,
    head: Response<()>,
    body: &[u8],
) -> Result<(), h2::Error> {
    let mut send = respond.send_response(head, false)?;
    send.send_data(Bytes::copy_from_slice(body), true)
}

async fn read(body: &mut RecvStream) -> Result<(Vec<u8>, Option<HeaderMap>), h2::Error> {
    let mut all = Vec::new();
    while let Some(data) = body.data().await {
        let data = data?;
        body.flow_control().release_capacity(data.len())?;
        all.extend_from_slice(&data);
    }
    Ok((all, body.trailers().await?))
}

async fn write(send: &mut SendStream<Bytes>, mut data: &[u8]) -> Result<(), h2::Error> {
    while !data.is_empty() {
        send.reserve_capacity(data.len());
        let room = match poll_fn(|cx| send.poll_capacity(cx)).await {
            Some(room) => room?,
            None => return Err(Reason::CANCEL.into()),
        };
        let (piece, rest) = data.split_at(room.min(data.len()));
        send.send_data(Bytes::copy_from_slice(piece), false)?;
        data = rest;
    }
    Ok(())
}
