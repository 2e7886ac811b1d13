//! What is around HTTP: who the client is, PROXY protocol, TLS, Unix sockets.

use std::{
    io::{self, Read as _, Write as _},
    net::{TcpListener, TcpStream},
    os::unix::net::UnixListener,
    path::{Path, PathBuf},
    sync::Arc,
};

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use tokio_rustls::rustls::{
    ClientConfig, ClientConnection, RootCertStore, ServerConfig, ServerConnection, StreamOwned,
    crypto::aws_lc_rs,
    pki_types::{CertificateDer, PrivateKeyDer, ServerName, pem::PemObject as _},
    server::WebPkiClientVerifier,
};

use super::rig::*;

#[test]
fn servers_are_told_who_asks() {
    let server = Server::echo();
    let lines = "X-Forwarded-For: 192.0.2.1\r\nX-Forwarded-Proto: https\r\n\
                 X-Forwarded-Host: c.example\r\nForwarded: for=192.0.2.1\r\n\
                 X-Request-Id: 0123456789abcdef0123456789abcdef\r\n\
                 traceparent: 00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01\r\n";
    // From anybody.
    let rig = Rig::new(&Setup::new(&[&server]));
    let answer = rig.client().get_with("/a", lines);
    let head = answer.text();
    assert_eq!(header(head, "x-forwarded-for"), Some("127.0.0.1"));
    assert_eq!(header(head, "x-forwarded-proto"), Some("http"));
    assert_eq!(header(head, "x-forwarded-host"), Some("a.example"));
    assert!(
        !head.contains("192.0.2.1") && !head.contains("c.example"),
        "{head}"
    );
    let id = header(head, "x-request-id").unwrap();
    assert_ne!(id, "0123456789abcdef0123456789abcdef");
    let line = rig.logged("/a");
    assert_eq!(line["request_id"], id);
    assert_eq!(line["trace_id"], "0af7651916cd43dd8448eb211c80319c");
    let trace = header(head, "traceparent").unwrap();
    assert!(
        trace.starts_with("00-0af7651916cd43dd8448eb211c80319c-"),
        "{trace}"
    );
    assert!(!trace.contains("b7ad6b7169203331"), "{trace}");
    assert!(
        line["client"].as_str().unwrap().starts_with("127.0.0.1:"),
        "{line}"
    );
    // From a proxy that is trusted.
    let rig = Rig::new(&Setup::new(&[&server]).listener("trusted_proxies = ['127.0.0.0/8']"));
    let answer = rig.client().get_with("/b", lines);
    let head = answer.text();
    assert_eq!(
        header(head, "x-forwarded-for"),
        Some("192.0.2.1, 127.0.0.1")
    );
    assert_eq!(header(head, "x-forwarded-proto"), Some("https"));
    assert_eq!(header(head, "x-forwarded-host"), Some("c.example"));
    // Its client may have written that.
    assert_eq!(header(head, "forwarded"), None);
    assert_eq!(
        header(head, "x-request-id"),
        Some("0123456789abcdef0123456789abcdef")
    );
    assert_eq!(rig.logged("/b")["client"], "192.0.2.1:0");
}

#[test]
fn one_field_says_who_the_client_is() {
    let server = Server::echo();
    let trusting = |more: &str| format!("trusted_proxies = ['127.0.0.0/8']\n{more}");
    // Each proxy writes one of them, and passes on what its client wrote of the other.
    let both = "X-Forwarded-For: 192.0.2.1\r\nX-Forwarded-Proto: https\r\n\
                X-Forwarded-Host: c.example\r\nForwarded: for=192.0.2.2\r\n";
    let rig = Rig::new(&Setup::new(&[&server]).listener(trusting("")));
    let head = rig.client().get_with("/both", both);
    assert_eq!(
        header(head.text(), "x-forwarded-for"),
        Some("192.0.2.1, 127.0.0.1")
    );
    assert_eq!(header(head.text(), "forwarded"), None);
    assert_eq!(rig.logged("/both")["client"], "192.0.2.1:0");
    // Where it is missing, the other one does not stand in for it.
    rig.client()
        .get_with("/other", "Forwarded: for=192.0.2.2\r\n");
    let client = rig.logged("/other")["client"].to_string();
    assert!(client.contains("127.0.0.1"), "{client}");

    let by_forwarded = trusting("client_header = 'forwarded'");
    let routes = "[[route]]\nname = 'c'\nupstream = 'app'\n\
                  headers = [{ name = 'x-forwarded-host', value = 'c.example' }]\n\
                  request_headers = { set = { x-route = 'c' } }\n";
    let setup = Setup::new(&[&server]).routes(format!("{ALL}{routes}"));
    let rig = Rig::new(&setup.clone().listener(by_forwarded));
    let head = rig.client().get_with("/both", both);
    let head = head.text();
    assert_eq!(
        header(head, "x-forwarded-for"),
        Some("192.0.2.2, 127.0.0.1")
    );
    assert_eq!(header(head, "x-forwarded-proto"), Some("http"));
    assert_eq!(header(head, "x-forwarded-host"), Some("a.example"));
    assert_eq!(header(head, "x-route"), None);
    let forwarded = header(head, "forwarded").unwrap();
    assert!(
        forwarded.starts_with("for=192.0.2.2, for=127.0.0.1;"),
        "{forwarded}"
    );
    assert_eq!(rig.logged("/both")["client"], "192.0.2.2:0");
    rig.client()
        .get_with("/other", "X-Forwarded-For: 192.0.2.1\r\n");
    let client = rig.logged("/other")["client"].to_string();
    assert!(client.contains("127.0.0.1"), "{client}");
    // The route is taken where the field is believed.
    let rig = Rig::new(&setup.listener(trusting("")));
    let head = rig.client().get_with("/both", both);
    assert_eq!(header(head.text(), "x-route"), Some("c"));
}

const GET: &[u8] = b"GET /x HTTP/1.1\r\nHost: a.example\r\n\r\n";
const V1: &[u8] = b"PROXY TCP4 192.0.2.7 198.51.100.1 5678 443\r\n";
const V2: &[u8] =
    b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0c\xc0\0\x02\x07\xc6\x33\x64\x01\x16\x2e\x01\xbb";

#[test]
fn connections_begin_with_a_header_of_the_proxy_protocol() {
    let server = Server::echo();
    let keys = |kind| format!("trusted_proxies = ['127.0.0.0/8']\nproxy_protocol = '{kind}'");
    for kind in ["accept", "require"] {
        let rig = Rig::new(&Setup::new(&[&server]).listener(keys(kind)));
        for header_bytes in [V1, V2] {
            // At once, and in pieces.
            for pieces in [1, 2, 5] {
                let mut client = rig.client();
                let all = [header_bytes, GET].concat();
                for piece in all.chunks(header_bytes.len().div_ceil(pieces)) {
                    client.send(piece);
                    if pieces > 1 {
                        std::thread::yield_now();
                    }
                }
                let answer = client.answer();
                assert_eq!(
                    header(answer.text(), "x-forwarded-for"),
                    Some("192.0.2.7"),
                    "{kind}"
                );
            }
        }
        assert_eq!(rig.logged("/x")["client"], "192.0.2.7:5678");
        // Nothing of the kind.
        let mut client = rig.client();
        client.send(GET);
        if kind == "accept" {
            assert_eq!(client.answer().status, 200);
        } else {
            assert!(client.is_closed());
        }
        // Of a load balancer's own checks.
        let mut client = rig.client();
        client.send([b"PROXY UNKNOWN\r\n", GET].concat());
        assert_eq!(
            header(client.answer().text(), "x-forwarded-for"),
            Some("127.0.0.1")
        );
        let mut client = rig.client();
        client.send("PROXY TCP4 1.2.3.4\r\n\r\n");
        assert!(client.is_closed());
        let counted = if kind == "accept" { 1 } else { 2 };
        until("they are counted", || {
            rig.refusals("proxy_header") == counted
        });
    }
    // Whoever is not trusted may not say who he is.
    let keys = |kind| format!("trusted_proxies = ['192.0.2.0/24']\nproxy_protocol = '{kind}'");
    let rig = Rig::new(&Setup::new(&[&server]).listener(keys("require")));
    let mut client = rig.client();
    let _ = client.try_send(V1);
    assert!(client.is_closed());
    let rig = Rig::new(&Setup::new(&[&server]).listener(keys("accept")));
    let mut client = rig.client();
    client.send([V1, GET].concat());
    assert_eq!(client.answer().status, 400);
}

#[test]
fn servers_get_a_header_of_the_proxy_protocol() {
    for (kind, header_bytes) in [("v1", V1), ("v2", V2)] {
        let server = Server::start(move |mut peer| {
            let preface = peer.take(header_bytes.len());
            peer.request();
            let text = if preface == header_bytes {
                "as it came"
            } else {
                "another"
            };
            let length = text.len();
            peer.send(format!(
                "HTTP/1.1 200 OK\r\nContent-Length: {length}\r\n\r\n{text}"
            ));
            peer.rest();
        });
        let setup = Setup::new(&[&server])
            .listener("trusted_proxies = ['127.0.0.0/8']\nproxy_protocol = 'require'")
            .upstream(format!("proxy_protocol = '{kind}'"));
        let rig = Rig::new(&setup);
        for _ in 0..2 {
            let mut client = rig.client();
            client.send([V1, GET].concat());
            assert_eq!(client.answer().text(), "as it came", "{kind}");
        }
        // A connection is of one client.
        assert_eq!(rig.app().connects, 2);
    }
}

#[test]
fn a_server_may_be_a_unix_socket() {
    let directory = tempfile::tempdir().unwrap();
    let server = Server::unix(&directory.path().join("s"), |peer| {
        say(peer, "200 OK", "by file");
    });
    let rig = Rig::new(&Setup::new(&[&server]));
    let mut client = rig.client();
    for _ in 0..3 {
        assert_eq!(client.get("/").text(), "by file");
    }
    assert_eq!(server.seen().len(), 1);
}

/// A certificate authority, and a directory for files.
pub(super) struct Authority {
    issuer: CertifiedIssuer<'static, KeyPair>,
    directory: tempfile::TempDir,
}

impl Authority {
    pub(super) fn new() -> Self {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let issuer = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
        let directory = tempfile::tempdir().unwrap();
        std::fs::write(directory.path().join("ca.pem"), issuer.pem()).unwrap();
        Self { issuer, directory }
    }

    pub(super) fn ca(&self) -> PathBuf {
        self.directory.path().join("ca.pem")
    }

    /// Files of a certificate for a name, and of its key.
    pub(super) fn issue(&self, name: &str) -> (PathBuf, PathBuf) {
        self.issue_by(name, name, &KeyPair::generate().unwrap())
    }

    /// The same with this key; the names of the files begin with `file`.
    pub(super) fn issue_by(&self, name: &str, file: &str, key: &KeyPair) -> (PathBuf, PathBuf) {
        let params = CertificateParams::new(vec![name.to_owned()]).unwrap();
        let certificate = params.signed_by(key, &self.issuer).unwrap();
        let at = |end: &str| self.directory.path().join(format!("{file}.{end}"));
        std::fs::write(at("pem"), certificate.pem()).unwrap();
        std::fs::write(at("key"), key.serialize_pem()).unwrap();
        (at("pem"), at("key"))
    }

    pub(super) fn roots(&self) -> Arc<RootCertStore> {
        let mut roots = RootCertStore::empty();
        roots
            .add(CertificateDer::from_pem_file(self.ca()).unwrap())
            .unwrap();
        Arc::new(roots)
    }

    /// A client that trusts this authority.
    pub(super) fn client(&self, certificate: Option<&(PathBuf, PathBuf)>) -> Arc<ClientConfig> {
        let builder = ClientConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(self.roots());
        Arc::new(match certificate {
            None => builder.with_no_client_auth(),
            Some(files) => {
                let (chain, key) = read(files);
                builder.with_client_auth_cert(chain, key).unwrap()
            }
        })
    }

    /// TLS of a server with a certificate for a name, that asks clients for theirs or not.
    fn serves(&self, name: &str, asks: bool) -> Arc<ServerConfig> {
        let builder = ServerConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
            .with_safe_default_protocol_versions()
            .unwrap();
        let builder = if asks {
            let provider = Arc::new(aws_lc_rs::default_provider());
            let verifier = WebPkiClientVerifier::builder_with_provider(self.roots(), provider);
            builder.with_client_cert_verifier(verifier.build().unwrap())
        } else {
            builder.with_no_client_auth()
        };
        let (chain, key) = read(&self.issue(name));
        Arc::new(builder.with_single_cert(chain, key).unwrap())
    }

    /// A server with it.
    pub(super) fn server(&self, name: &str, asks: bool, text: &'static str) -> Server {
        self.serving(name, asks, move |peer| say(peer, "200 OK", text))
    }

    /// The same, whatever it does.
    pub(super) fn serving(
        &self,
        name: &str,
        asks: bool,
        serve: impl Fn(Peer) + Send + Sync + 'static,
    ) -> Server {
        let config = self.serves(name, asks);
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap().to_string();
        Server::accepting(address, serve, move || {
            session(&config, listener.accept()?.0)
        })
    }
}

#[test]
fn a_session_ends_in_order_only_behind_a_whole_answer() {
    let authority = Authority::new();
    let tls = format!(
        "tls = {{ certificates = [{}] }}",
        pair(&authority.issue("a.example"))
    );
    for is_whole in [true, false] {
        let server = Server::start(move |mut peer| {
            peer.request();
            peer.send("HTTP/1.1 200 OK\r\n\r\nhalf");
            if !is_whole {
                peer.reset();
            }
        });
        let rig = Rig::new(&Setup::new(&[&server]).listener(&*tls));
        let name = ServerName::try_from("a.example").unwrap();
        let session = ClientConnection::new(authority.client(None), name).unwrap();
        let stream = TcpStream::connect(rig.port.at).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        let mut client = StreamOwned::new(session, stream);
        client.write_all(b"GET /x HTTP/1.0\r\n\r\n").unwrap();
        let mut came = Vec::new();
        let end = client.read_to_end(&mut came);
        assert_eq!(end.is_ok(), is_whole, "{end:?}");
    }
}

/// The server's end of a session.
fn session(config: &Arc<ServerConfig>, wire: impl Wire + 'static) -> io::Result<Peer> {
    let session = ServerConnection::new(config.clone()).map_err(io::Error::other)?;
    Ok(Peer::new(Box::new(StreamOwned::new(session, wire)), None))
}

fn read(
    (cert, key): &(PathBuf, PathBuf),
) -> (Vec<CertificateDer<'static>>, PrivateKeyDer<'static>) {
    (
        vec![CertificateDer::from_pem_file(cert).unwrap()],
        PrivateKeyDer::from_pem_file(key).unwrap(),
    )
}

/// Speaks TLS with the proxy, which must have a certificate for `name`.
pub(super) fn shake(rig: &Rig, config: &Arc<ClientConfig>, name: &str) -> io::Result<Peer> {
    let name = ServerName::try_from(name.to_owned()).unwrap();
    let mut session = ClientConnection::new(config.clone(), name).map_err(io::Error::other)?;
    let mut stream = TcpStream::connect(rig.port.at)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_nodelay(true)?;
    while session.is_handshaking() {
        session.complete_io(&mut stream)?;
    }
    let tcp = stream.try_clone()?;
    Ok(Peer::new(
        Box::new(StreamOwned::new(session, stream)),
        Some(tcp),
    ))
}

pub(super) fn pair((cert, key): &(PathBuf, PathBuf)) -> String {
    format!(
        "{{ cert = '{}', key = '{}' }}",
        cert.display(),
        key.display()
    )
}

#[test]
fn clients_get_the_certificate_of_the_name_they_ask_for() {
    let authority = Authority::new();
    let server = Server::echo();
    let files = ["a.example", "b.example"].map(|name| authority.issue(name));
    let [a, b] = files.each_ref().map(pair);
    let tls = format!("tls = {{ certificates = [{a}, {b}] }}");
    let rig = Rig::new(&Setup::new(&[&server]).listener(tls));
    let config = authority.client(None);
    for name in ["a.example", "b.example"] {
        let mut client = shake(&rig, &config, name).unwrap();
        for _ in 0..3 {
            let answer = client.get("/x");
            assert_eq!(header(answer.text(), "x-forwarded-proto"), Some("https"));
        }
    }
    // The first one is for everybody else, whom it does not please.
    let error = shake(&rig, &config, "c.example").map(|_| ()).unwrap_err();
    assert!(
        error
            .to_string()
            .contains("not valid for name \"c.example\""),
        "{error}"
    );
    // What is no TLS.
    let mut client = rig.client();
    client.send(GET);
    let said = client.rest();
    assert!(!said.starts_with(b"HTTP"), "{said:?}");
    until("it is counted", || {
        let status = rig.tier.view().status().unwrap();
        status.listeners[0].tls_failed >= 2
    });
}

#[test]
fn clients_show_certificates_where_they_must() {
    let (authority, other) = (Authority::new(), Authority::new());
    let server = Server::echo();
    let files = authority.issue("a.example");
    for (auth, without) in [("required", false), ("optional", true)] {
        let tls = format!(
            "tls = {{ certificates = [{}], client_ca = '{}', client_auth = '{auth}' }}",
            pair(&files),
            authority.ca().display()
        );
        let rig = Rig::new(&Setup::new(&[&server]).listener(tls));
        for (certificate, passes) in [
            (None, without),
            (Some(authority.issue("client.example")), true),
            (Some(other.issue("client.example")), false),
        ] {
            let config = authority.client(certificate.as_ref());
            // With TLS 1.3 the client learns of it when it reads.
            let outcome = shake(&rig, &config, "a.example").is_ok_and(|mut client| {
                client.try_send(GET).is_ok() && {
                    let read = std::panic::AssertUnwindSafe(|| client.head().is_some());
                    std::panic::catch_unwind(read).unwrap_or(false)
                }
            });
            assert_eq!(outcome, passes, "{auth} {certificate:?}");
        }
    }
}

#[test]
fn a_unix_socket_may_be_spoken_to_by_tls() {
    let authority = Authority::new();
    let path = authority.directory.path().join("s");
    let config = authority.serves("server.example", true);
    let listener = UnixListener::bind(&path).unwrap();
    let server = Server::accepting(
        format!("unix:{}", path.display()),
        |peer| say(peer, "200 OK", "by file and TLS"),
        move || session(&config, listener.accept()?.0),
    );
    let (cert, key) = authority.issue("client.example");
    let shown = format!(", cert = '{}', key = '{}'", cert.display(), key.display());
    for upstream in [
        towards(&authority.ca(), &shown),
        format!("tls = {{ verify = false{shown} }}"),
    ] {
        let rig = Rig::new(&Setup::new(&[&server]).upstream(upstream));
        let mut client = rig.client();
        for _ in 0..3 {
            assert_eq!(client.get("/").text(), "by file and TLS");
        }
        assert_eq!(rig.app().connects, 1);
    }
    let other = Authority::new();
    let rig = Rig::new(&Setup::new(&[&server]).upstream(towards(&other.ca(), &shown)));
    assert_eq!(rig.get("/").status, 502);
}

pub(super) fn towards(ca: &Path, more: &str) -> String {
    format!(
        "retries = {{ tries = 1 }}\ntls = {{ ca = '{}', sni = 'server.example'{more} }}",
        ca.display()
    )
}

#[test]
fn servers_must_be_who_they_should_be() {
    let (authority, other) = (Authority::new(), Authority::new());
    let server = authority.server("server.example", false, "over TLS");
    let rig = Rig::new(&Setup::new(&[&server]).upstream(towards(&authority.ca(), "")));
    let mut client = rig.client();
    for _ in 0..3 {
        assert_eq!(client.get("/").text(), "over TLS");
    }
    assert_eq!(rig.app().connects, 1);
    // Another authority, and another name.
    let elsewhere = authority.server("elsewhere.example", false, "never");
    for (server, ca) in [(&server, other.ca()), (&elsewhere, authority.ca())] {
        let rig = Rig::new(&Setup::new(&[server]).upstream(towards(&ca, "")));
        assert_eq!(rig.get("/x").status, 502);
        assert_eq!(rig.logged("/x")["reason"], "connect_failed");
    }
    assert_eq!(elsewhere.requests(), 0);
    let upstream = "tls = { verify = false, sni = 'server.example' }";
    let rig = Rig::new(&Setup::new(&[&elsewhere]).upstream(upstream));
    assert_eq!(rig.get("/").text(), "never");
    // With a certificate of our own.
    let server = authority.server("server.example", true, "who you are");
    let rig = Rig::new(&Setup::new(&[&server]).upstream(towards(&authority.ca(), "")));
    assert_eq!(rig.get("/").status, 502);
    let (cert, key) = authority.issue("client.example");
    let more = format!(", cert = '{}', key = '{}'", cert.display(), key.display());
    let rig = Rig::new(&Setup::new(&[&server]).upstream(towards(&authority.ca(), &more)));
    assert_eq!(rig.get("/").text(), "who you are");
}
