//! A server, the proxy before it, and clients that stay connected.

use std::{
    net::{SocketAddr, TcpListener as StdListener},
    sync::Arc,
    thread,
};

use h2::client::SendRequest;
use hyper::{Request, body::Bytes};
use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
    runtime::Runtime,
};
use tokio_rustls::{
    TlsConnector,
    client::TlsStream,
    rustls::{
        ClientConfig, RootCertStore,
        crypto::aws_lc_rs,
        pki_types::{CertificateDer, ServerName, pem::PemObject as _},
    },
};

use super::{
    allocations::{Counts, WORKERS},
    rig::{Port, Rig},
};

const NAME: &str = "a.example";
const REQUEST: &[u8] = b"GET /path?query HTTP/1.1\r\nHost: a.example\r\nAccept: */*\r\n\r\n";
const BODY: &str = "all of the body";

/// What a client speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Protocol {
    Http1,
    Https,
    Http2,
}

impl Protocol {
    pub(crate) const ALL: [Self; 3] = [Self::Http1, Self::Https, Self::Http2];
}

pub(crate) fn runtime() -> Runtime {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap()
}

/// Answers what comes to a socket, on one thread for all connections.
fn serve(listener: StdListener) {
    listener.set_nonblocking(true).unwrap();
    let work = async move {
        let listener = TcpListener::from_std(listener).unwrap();
        while let Ok((stream, _)) = listener.accept().await {
            tokio::spawn(answer(stream));
        }
    };
    thread::spawn(move || runtime().block_on(work));
}

async fn answer(mut stream: TcpStream) {
    let answer = format!(
        "HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: {}\r\n\r\n{BODY}",
        BODY.len()
    );
    let (mut seen, mut had) = ([0; 8192], 0);
    while let Ok(n @ 1..) = stream.read(&mut seen[had..]).await {
        had += n;
        if seen[..had].ends_with(b"\r\n\r\n") {
            had = 0;
            if stream.write_all(answer.as_bytes()).await.is_err() {
                return;
            }
        }
    }
}

/// A proxy with two workers, and everything on that requests pass.
pub(crate) struct Arena {
    pub(crate) rig: Rig,
    secure: Port,
    tls: TlsConnector,
}

impl Arena {
    pub(crate) fn new() -> Self {
        let upstream = StdListener::bind("127.0.0.1:0").unwrap();
        let server = upstream.local_addr().unwrap();
        let made = rcgen::generate_simple_self_signed([NAME.to_owned()]).unwrap();
        let files = tempfile::tempdir().unwrap();
        let (cert, key) = (files.path().join("cert"), files.path().join("key"));
        std::fs::write(&cert, made.cert.pem()).unwrap();
        std::fs::write(&key, made.signing_key.serialize_pem()).unwrap();
        let mut roots = RootCertStore::empty();
        let pem = made.cert.pem();
        let own = CertificateDer::from_pem_slice(pem.as_bytes()).unwrap();
        roots.add(own).unwrap();
        let config = ClientConfig::builder_with_provider(aws_lc_rs::default_provider().into())
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots)
            .with_no_client_auth();
        let secure = Port::new();
        let limits = "limits = { requests_per_connection = 0 }";
        let rig = Rig::with(|at, log| {
            format!(
                "interfaces = ['lo']\n[proxy]\nworkers = 2\nbans = {{}}\n\
                 access_log = {{ path = '{}' }}\n\
                 [[listener]]\nname = 'web'\naddresses = ['{at}']\nhttp2 = true\n{limits}\n\
                 [[listener]]\nname = 'tls'\naddresses = ['{}']\n{limits}\n\
                 tls = {{ certificates = [{{ cert = {cert:?}, key = {key:?} }}] }}\n\
                 [[upstream]]\nname = 'app'\nbalance = 'least-connections'\n\
                 concurrency = {{ requests = 4000 }}\nbreaker = {{}}\npassive = {{}}\n\
                 health = {{ kind = 'http', interval = '1s' }}\n\
                 [[upstream.server]]\naddress = '{server}'\n\
                 [[route]]\nname = 'all'\nhosts = ['{NAME}']\nupstream = 'app'\n\
                 concurrency = {{ requests = 4000 }}\n",
                log.display(),
                secure.at,
            )
        });
        serve(upstream);
        Self {
            rig,
            secure,
            tls: TlsConnector::from(Arc::new(config)),
        }
    }

    async fn connect(&self, protocol: Protocol) -> Connection {
        let to = |address: SocketAddr| async move {
            let stream = TcpStream::connect(address).await.unwrap();
            stream.set_nodelay(true).unwrap();
            stream
        };
        match protocol {
            Protocol::Http1 => Connection::Http1(to(self.rig.port.at).await),
            Protocol::Https => {
                let stream = to(self.secure.at).await;
                let name = ServerName::try_from(NAME).unwrap();
                let stream = self.tls.connect(name, stream).await.unwrap();
                Connection::Https(Box::new(stream))
            }
            Protocol::Http2 => {
                let stream = to(self.rig.port.at).await;
                let (client, connection) = h2::client::handshake(stream).await.unwrap();
                tokio::spawn(connection);
                Connection::Http2(client)
            }
        }
    }

    /// Connections that have had an answer, so many of each of the two workers: by which of them
    /// has allocated anything.
    pub(crate) async fn connections(
        &self,
        protocol: Protocol,
        of_each: usize,
    ) -> [Vec<Connection>; 2] {
        let mut all = [Vec::new(), Vec::new()];
        // The end of one would be work for its worker, too.
        let mut others = Vec::new();
        while all.iter().any(|of_worker| of_worker.len() < of_each) {
            let before = Counts::anew();
            let mut connection = self.connect(protocol).await;
            connection.ask().await;
            let done = Counts::now() - before;
            match WORKERS.map(|worker| done.allocated(worker) > 0) {
                [true, false] if all[0].len() < of_each => all[0].push(connection),
                [false, true] if all[1].len() < of_each => all[1].push(connection),
                _ => others.push(connection),
            }
            assert!(others.len() < 1000, "nobody tells which worker has it");
        }
        all
    }
}

/// A connection of a client.
pub(crate) enum Connection {
    Http1(TcpStream),
    Https(Box<TlsStream<TcpStream>>),
    Http2(SendRequest<Bytes>),
}

impl Connection {
    /// One request, and its answer.
    pub(crate) async fn ask(&mut self) {
        match self {
            Self::Http1(stream) => ask(stream).await,
            Self::Https(stream) => ask(stream).await,
            Self::Http2(client) => {
                let request = Request::get("http://a.example/path?query").body(());
                let mut client = client.clone().ready().await.unwrap();
                let (answer, _) = client.send_request(request.unwrap(), true).unwrap();
                let (head, mut body) = answer.await.unwrap().into_parts();
                assert_eq!(head.status.as_u16(), 200);
                let mut len = 0;
                while let Some(data) = body.data().await {
                    let data = data.unwrap();
                    body.flow_control().release_capacity(data.len()).unwrap();
                    len += data.len();
                }
                assert_eq!(len, BODY.len());
            }
        }
    }
}

async fn ask(stream: &mut (impl AsyncRead + AsyncWrite + Unpin)) {
    stream.write_all(REQUEST).await.unwrap();
    stream.flush().await.unwrap();
    let (mut seen, mut had) = ([0; 4096], 0);
    while !seen[..had].ends_with(BODY.as_bytes()) {
        let n = stream.read(&mut seen[had..]).await.unwrap();
        assert!(n > 0, "the connection ended");
        had += n;
    }
    assert!(seen.starts_with(b"HTTP/1.1 200 "));
}
