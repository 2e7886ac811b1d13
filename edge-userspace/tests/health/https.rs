//! HTTPS: nginx, whatever its certificate, and a server that lies about its key.

use std::sync::Arc;

use edge_userspace::config::balance::HttpProbe;
use tokio_rustls::{
    TlsAcceptor,
    rustls::{
        ServerConfig,
        crypto::aws_lc_rs,
        pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _},
        server::{ClientHello, ResolvesServerCert},
        sign::CertifiedKey,
    },
};

use super::{
    nginx::{Nginx, V1, V3},
    *,
};

fn https(host: Option<&str>, body: &str) -> Probe {
    Probe::Http(HttpProbe {
        tls: true,
        http2: false,
        path: "/".to_owned(),
        host: host.map(str::to_owned),
        status: (200, 299),
        body: Some(body.to_owned()),
    })
}

#[tokio::test]
async fn any_certificate_will_do() {
    // Self-signed, expired, for another name; and one that is not even of version 3.
    for certificate in [V3, V1] {
        for version in ["TLSv1.2", "TLSv1.3"] {
            let nginx = Nginx::start(certificate, &format!("ssl_protocols {version};"));
            let said = format!("; {version}; alpn=http/1.1;");
            let result = ask(https(None, &said), nginx.https).await;
            assert_eq!(result, Ok(()), "{certificate} {version}");
        }
    }
}

#[tokio::test]
async fn the_name_asked_for_is_that_of_the_host_header() {
    let nginx = Nginx::start(V3, "");
    for (host, said) in [
        (
            Some("www.example.org"),
            "sni=www.example.org; host=www.example.org;".to_owned(),
        ),
        (
            Some("www.example.org:8443"),
            "sni=www.example.org; host=www.example.org:8443;".to_owned(),
        ),
        (None, format!("sni=; host={};", nginx.https)),
    ] {
        assert_eq!(
            ask(https(host, &said), nginx.https).await,
            Ok(()),
            "{host:?}"
        );
    }
    let log = nginx.error_log();
    assert!(!log.contains("SSL_") && !log.contains("reset"), "{log}");
}

#[tokio::test]
async fn failures_are_told_apart() {
    let nginx = Nginx::start(V3, "");
    let overloaded = Probe::Http(HttpProbe {
        tls: true,
        http2: false,
        path: "/overloaded".to_owned(),
        host: None,
        status: (200, 299),
        body: None,
    });
    assert_eq!(
        ask(overloaded, nginx.https).await,
        failed("status 503, wanted 200 to 299")
    );
    // HTTP where TLS is wanted, and the other way round.
    let said = ask(https(None, ""), nginx.http).await.unwrap_err();
    assert!(said.starts_with("TLS: "), "{said}");
    let plain = Probe::Http(HttpProbe {
        tls: false,
        http2: false,
        path: "/".to_owned(),
        host: None,
        status: (200, 299),
        body: None,
    });
    assert_eq!(
        ask(plain, nginx.https).await,
        failed("status 400, wanted 200 to 299")
    );
    // Connected, and no word.
    let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
    assert_eq!(
        ask_within(SOON, https(None, ""), silent.local_addr().unwrap()).await,
        failed("TLS: no answer within 200ms")
    );
    assert_eq!(
        ask(https(None, ""), closed_port().await).await,
        failed("connect: connection refused")
    );
}

/// Has the certificate of one key, and signs with another.
#[derive(Debug)]
struct Liar(Arc<CertifiedKey>);

impl ResolvesServerCert for Liar {
    fn resolve(&self, _hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.0.clone())
    }
}

#[tokio::test]
async fn a_server_must_have_the_key_of_its_certificate() {
    let certificate = CertificateDer::from_pem_slice(include_bytes!("tls/v3.pem")).unwrap();
    for (key, well) in [
        (&include_bytes!("tls/key.pem")[..], true),
        (include_bytes!("tls/other-key.pem"), false),
    ] {
        let key = PrivateKeyDer::from_pem_slice(key).unwrap();
        let key = aws_lc_rs::sign::any_supported_type(&key).unwrap();
        let resolver = Liar(Arc::new(CertifiedKey::new(vec![certificate.clone()], key)));
        let provider = Arc::new(aws_lc_rs::default_provider());
        let config = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_cert_resolver(Arc::new(resolver));
        let acceptor = TlsAcceptor::from(Arc::new(config));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let target = listener.local_addr().unwrap();
        let server = async {
            let (stream, _) = listener.accept().await.unwrap();
            if let Ok(mut stream) = acceptor.accept(stream).await {
                let answer = b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nwell";
                let _ = stream.write_all(answer).await;
                let _ = stream.shutdown().await;
            }
        };
        let (result, ()) = tokio::join!(ask(https(None, "well"), target), server);
        if well {
            assert_eq!(result, Ok(()));
        } else {
            assert_eq!(
                result,
                failed("TLS: invalid peer certificate: BadSignature")
            );
        }
    }
}
