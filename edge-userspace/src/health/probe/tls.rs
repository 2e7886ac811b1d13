//! TLS to a backend: that of the requests to it, or else whoever it says it is.

use std::{
    io,
    net::SocketAddr,
    sync::{Arc, LazyLock},
};

use tokio::net::TcpStream;
use tokio_rustls::{
    TlsConnector,
    client::TlsStream,
    rustls::{
        CertificateError, ClientConfig, DigitallySignedStruct, Error, SignatureScheme,
        client::{
            Resumption,
            danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
        },
        crypto::{CryptoProvider, aws_lc_rs, verify_tls12_signature, verify_tls13_signature},
        pki_types::{CertificateDer, ServerName, UnixTime},
    },
};

use super::{Deadline, ProbeError, Waiting, Way};

/// A session with `target` for HTTP/2 or HTTP/1.1: with the TLS of the way, or else asked for by
/// the name in `host`, if that is one.
pub(super) async fn handshake(
    stream: TcpStream,
    host: Option<&str>,
    (target, way): (SocketAddr, &Way<'_>),
    is_http2: bool,
    deadline: Deadline,
) -> Result<TlsStream<TcpStream>, ProbeError> {
    let (config, name) = match way.tls() {
        Some(tls) => (tls.config.clone(), tls.name.clone()),
        None => (believing(is_http2)?, server_name(host, target)),
    };
    let handshake = async {
        TlsConnector::from(config)
            .connect(name, stream)
            .await
            .map_err(ProbeError::Tls)
    };
    let session = deadline.within(Waiting::Tls, handshake).await?;
    if is_http2 && session.get_ref().1.alpn_protocol() != Some(b"h2") {
        return Err(ProbeError::Protocol {
            protocol: "TLS",
            wrong: "the server does not agree on HTTP/2".to_owned(),
        });
    }
    Ok(session)
}

/// TLS that believes whoever answers.
fn believing(is_http2: bool) -> Result<Arc<ClientConfig>, ProbeError> {
    type Config = LazyLock<Result<Arc<ClientConfig>, Error>>;
    static HTTP1: Config = LazyLock::new(|| config(b"http/1.1"));
    static HTTP2: Config = LazyLock::new(|| config(b"h2"));
    let config = &**if is_http2 { &HTTP2 } else { &HTTP1 };
    config.clone().map_err(|e| ProbeError::NotAsked {
        doing: "TLS",
        source: io::Error::other(e),
    })
}

fn config(protocol: &[u8]) -> Result<Arc<ClientConfig>, Error> {
    let provider = Arc::new(aws_lc_rs::default_provider());
    let mut config = ClientConfig::builder_with_provider(provider.clone())
        .with_safe_default_protocol_versions()?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(AnyCertificate(provider)))
        .with_no_client_auth();
    config.alpn_protocols = vec![protocol.to_vec()];
    // A check is whole each time, and there is nothing to remember of 10,000 backends.
    config.resumption = Resumption::disabled();
    Ok(Arc::new(config))
}

/// The name to ask for (SNI). With an address, none is sent.
fn server_name(host: Option<&str>, target: SocketAddr) -> ServerName<'static> {
    // As in a Host header: the port is no part of the name.
    let name = host.map(|host| match host.rsplit_once(':') {
        Some((name, port)) if port.bytes().all(|b| b.is_ascii_digit()) => name,
        _ => host,
    });
    name.and_then(|name| ServerName::try_from(name.to_owned()).ok())
        .unwrap_or_else(|| target.ip().into())
}

/// Takes every certificate, and verifies that the server has the key of it.
#[derive(Debug)]
pub(crate) struct AnyCertificate(Arc<CryptoProvider>);

impl AnyCertificate {
    /// With the algorithms of a provider.
    pub(crate) const fn new(provider: Arc<CryptoProvider>) -> Self {
        Self(provider)
    }
}

impl ServerCertVerifier for AnyCertificate {
    fn verify_server_cert(
        &self,
        _end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let algorithms = &self.0.signature_verification_algorithms;
        if_readable(verify_tls12_signature(message, cert, dss, algorithms))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let algorithms = &self.0.signature_verification_algorithms;
        if_readable(verify_tls13_signature(message, cert, dss, algorithms))
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}

/// A certificate that is too odd to be read, such as one of X.509 version 1, is taken
/// with its signature unverified: clients of the backend may well take it.
fn if_readable(
    verified: Result<HandshakeSignatureValid, Error>,
) -> Result<HandshakeSignatureValid, Error> {
    match verified {
        Err(Error::InvalidCertificate(why)) if why != CertificateError::BadSignature => {
            Ok(HandshakeSignatureValid::assertion())
        }
        verified => verified,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_name_is_that_of_the_host_header() {
        let target = "192.0.2.1:443".parse().unwrap();
        for (host, name) in [
            (None, "192.0.2.1"),
            (Some("www.example.org"), "www.example.org"),
            (Some("www.example.org:8443"), "www.example.org"),
            (Some("2001:db8::1"), "192.0.2.1"),
            (Some("not a name"), "192.0.2.1"),
            (Some(""), "192.0.2.1"),
        ] {
            assert_eq!(server_name(host, target).to_str(), name, "{host:?}");
        }
    }
}
