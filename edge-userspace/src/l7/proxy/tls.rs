//! TLS towards clients and towards servers, from files.

use std::{
    collections::HashMap,
    io,
    path::{Path, PathBuf},
    sync::{Arc, OnceLock},
};

use tokio_rustls::{
    TlsConnector,
    rustls::{
        self, ClientConfig, DigitallySignedStruct, RootCertStore, ServerConfig, SignatureScheme,
        SupportedProtocolVersion,
        client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
        crypto::{CryptoProvider, aws_lc_rs, verify_tls12_signature, verify_tls13_signature},
        pki_types::{
            CertificateDer, PrivateKeyDer, ServerName, UnixTime,
            pem::{self, PemObject as _},
        },
        server::{
            ClientHello, NoServerSessionStorage, ProducesTickets, ResolvesServerCert,
            VerifierBuilderError, WebPkiClientVerifier,
        },
        sign::CertifiedKey,
        version,
    },
};

use super::pool::TlsTo;
use crate::config::proxy::{
    listener::{self, Certificate, ClientAuth, TlsVersion},
    upstream::{self, Address},
};

/// Why there is no TLS.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A file cannot be read, or is no PEM.
    #[error("{path}: {source}")]
    File {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        source: pem::Error,
    },
    /// A file has nothing of what it is for.
    #[error("{path}: there is no certificate in it")]
    Empty {
        /// The file.
        path: PathBuf,
    },
    /// A certificate or key that cannot be used.
    #[error("{path}: {source}")]
    Unusable {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        source: rustls::Error,
    },
    /// Those who sign clients' certificates cannot be used.
    #[error("{path}: {source}")]
    ClientCa {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        source: VerifierBuilderError,
    },
    /// There is no certificate of those who sign servers' certificates.
    #[error(
        "the host trusts nobody who signs certificates: install ca-certificates, or set `tls.ca`"
    )]
    NoRoots,
    /// A name that no certificate can have.
    #[error("{name:?} is no name of a server: set `tls.sni`")]
    Name {
        /// The name.
        name: String,
    },
    /// The library refuses.
    #[error("TLS: {0}")]
    Library(#[from] rustls::Error),
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let file = |source| TlsError::File {
        path: path.to_path_buf(),
        source,
    };
    let all = CertificateDer::pem_file_iter(path).map_err(file)?;
    let all: Vec<_> = all.collect::<Result<_, _>>().map_err(file)?;
    if all.is_empty() {
        return Err(TlsError::Empty {
            path: path.to_path_buf(),
        });
    }
    Ok(all)
}

fn key(path: &Path) -> Result<PrivateKeyDer<'static>, TlsError> {
    PrivateKeyDer::from_pem_file(path).map_err(|source| TlsError::File {
        path: path.to_path_buf(),
        source,
    })
}

fn roots(path: &Path) -> Result<RootCertStore, TlsError> {
    let mut roots = RootCertStore::empty();
    for certificate in certificates(path)? {
        roots
            .add(certificate)
            .map_err(|source| TlsError::Unusable {
                path: path.to_path_buf(),
                source,
            })?;
    }
    Ok(roots)
}

fn versions(min: TlsVersion) -> &'static [&'static SupportedProtocolVersion] {
    const NEW: &[&SupportedProtocolVersion] = &[&version::TLS13];
    match min {
        TlsVersion::V12 => rustls::ALL_VERSIONS,
        TlsVersion::V13 => NEW,
    }
}

/// TLS of a listener, from its files.
///
/// # Errors
/// [`TlsError`].
pub(super) fn server(tls: &listener::Tls, http2: bool) -> Result<ServerConfig, TlsError> {
    let provider = Arc::new(aws_lc_rs::default_provider());
    let builder = ServerConfig::builder_with_provider(provider.clone())
        .with_protocol_versions(versions(tls.min_version))?;
    let builder = match (&tls.client_ca, tls.client_auth) {
        (Some(path), auth @ (ClientAuth::Optional | ClientAuth::Required)) => {
            let signers = Arc::new(roots(path)?);
            let verifier = WebPkiClientVerifier::builder_with_provider(signers, provider.clone());
            let verifier = match auth {
                ClientAuth::Optional => verifier.allow_unauthenticated(),
                _ => verifier,
            };
            let verifier = verifier.build().map_err(|source| TlsError::ClientCa {
                path: path.clone(),
                source,
            })?;
            builder.with_client_cert_verifier(verifier)
        }
        _ => builder.with_no_client_auth(),
    };
    let mut config =
        builder.with_cert_resolver(Arc::new(ByName::load(&tls.certificates, &provider)?));
    if http2 {
        config.alpn_protocols.push(b"h2".to_vec());
    }
    config.alpn_protocols.push(b"http/1.1".to_vec());
    // Sessions are with the clients or nowhere: nothing grows here.
    config.session_storage = Arc::new(NoServerSessionStorage {});
    // A ticket would stand for a certificate that another listener never asked for, or that is no
    // longer trusted: what is resumed is not verified again.
    if tls.tickets && tls.client_auth == ClientAuth::Off {
        config.ticketer = tickets()?;
    } else {
        config.send_tls13_tickets = 0;
    }
    Ok(config)
}

/// Keys of tickets, which change by themselves twice a day. All listeners that ask for no
/// certificate have the same ones, and
/// keep them when their certificates change: sessions can be resumed afterwards.
fn tickets() -> Result<Arc<dyn ProducesTickets>, rustls::Error> {
    static TICKETS: OnceLock<Arc<dyn ProducesTickets>> = OnceLock::new();
    if let Some(tickets) = TICKETS.get() {
        return Ok(tickets.clone());
    }
    let new = aws_lc_rs::Ticketer::new()?;
    Ok(TICKETS.get_or_init(|| new).clone())
}

/// Certificates by the names that they are for.
#[derive(Debug)]
struct ByName {
    /// In lower case. Of one name there may be several, with keys of different kinds.
    exact: HashMap<String, Vec<Arc<CertifiedKey>>>,
    /// Those for all names one label below this one.
    wild: HashMap<String, Vec<Arc<CertifiedKey>>>,
    first: Vec<Arc<CertifiedKey>>,
}

impl ByName {
    fn load(pairs: &[Certificate], provider: &CryptoProvider) -> Result<Self, TlsError> {
        let mut this = Self {
            exact: HashMap::new(),
            wild: HashMap::new(),
            first: Vec::new(),
        };
        for Certificate { cert, key: path } in pairs {
            let chain = certificates(cert)?;
            let unusable = |source| TlsError::Unusable {
                path: cert.clone(),
                source,
            };
            let names = names(&chain).map_err(unusable)?;
            // Also tells whether the key is that of the certificate.
            let certified = CertifiedKey::from_der(chain, key(path)?, provider);
            let certified = Arc::new(certified.map_err(|source| TlsError::Unusable {
                path: path.clone(),
                source,
            })?);
            for name in names {
                let (names, name) = match name.strip_prefix("*.") {
                    Some(below) => (&mut this.wild, below.to_owned()),
                    None => (&mut this.exact, name),
                };
                names.entry(name).or_default().push(certified.clone());
            }
            this.first.push(certified);
        }
        Ok(this)
    }
}

/// The names of DNS that a certificate is for, in lower case.
fn names(chain: &[CertificateDer<'_>]) -> Result<Vec<String>, rustls::Error> {
    let Some(own) = chain.first() else {
        return Ok(Vec::new());
    };
    let own = webpki::EndEntityCert::try_from(own)
        .map_err(|_| rustls::Error::InvalidCertificate(rustls::CertificateError::BadEncoding))?;
    Ok(own.valid_dns_names().map(str::to_ascii_lowercase).collect())
}

impl ResolvesServerCert for ByName {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        let schemes = hello.signature_schemes();
        let fits = |keys: &[Arc<CertifiedKey>]| {
            keys.iter()
                .find(|certified| certified.key.choose_scheme(schemes).is_some())
                .cloned()
        };
        let named = hello.server_name().and_then(|name| {
            let name = name.to_ascii_lowercase();
            let exact = self.exact.get(&name).and_then(|keys| fits(keys));
            exact.or_else(|| {
                let (_, below) = name.split_once('.')?;
                fits(self.wild.get(below)?)
            })
        });
        named.or_else(|| fits(&self.first))
    }
}

/// TLS towards the servers of an upstream, from its files.
#[derive(Clone)]
pub(super) struct Towards {
    connector: TlsConnector,
    name: Option<String>,
}

impl Towards {
    /// Reads the files.
    ///
    /// # Errors
    /// [`TlsError`].
    pub(super) fn load(tls: &upstream::Tls) -> Result<Self, TlsError> {
        let provider = Arc::new(aws_lc_rs::default_provider());
        let builder = ClientConfig::builder_with_provider(provider.clone())
            .with_safe_default_protocol_versions()?;
        let builder = if tls.verify {
            let roots = match &tls.ca {
                Some(path) => roots(path)?,
                None => of_host()?,
            };
            builder.with_root_certificates(roots)
        } else {
            builder
                .dangerous()
                .with_custom_certificate_verifier(Arc::new(Anybody(provider)))
        };
        let mut config = match &tls.certificate {
            Some(Certificate { cert, key: path }) => builder
                .with_client_auth_cert(certificates(cert)?, key(path)?)
                .map_err(|source| TlsError::Unusable {
                    path: path.clone(),
                    source,
                })?,
            None => builder.with_no_client_auth(),
        };
        config.alpn_protocols.push(b"http/1.1".to_vec());
        Ok(Self {
            connector: TlsConnector::from(Arc::new(config)),
            name: tls.sni.clone(),
        })
    }

    /// For a server.
    ///
    /// # Errors
    /// When no certificate can have its name.
    pub(super) fn to(&self, server: &Address) -> Result<TlsTo, TlsError> {
        let name = match (&self.name, server) {
            (Some(name), _) => name.clone(),
            (None, Address::Ip(address)) => address.ip().to_string(),
            (None, Address::Name(name, _)) => name.clone(),
            (None, Address::Unix(path)) => path.display().to_string(),
        };
        match ServerName::try_from(name.clone()) {
            Ok(name) => Ok(TlsTo {
                connector: self.connector.clone(),
                name,
            }),
            Err(_) => Err(TlsError::Name { name }),
        }
    }
}

/// Whom the host trusts.
fn of_host() -> Result<RootCertStore, TlsError> {
    /// Where distributions have them: Debian, Fedora, SUSE, Alpine.
    const FILES: [&str; 4] = [
        "/etc/ssl/certs/ca-certificates.crt",
        "/etc/pki/tls/certs/ca-bundle.crt",
        "/etc/ssl/ca-bundle.pem",
        "/etc/ssl/cert.pem",
    ];
    for file in FILES {
        match CertificateDer::pem_file_iter(file) {
            Ok(all) => {
                let mut roots = RootCertStore::empty();
                roots.add_parsable_certificates(all.filter_map(Result::ok));
                if !roots.is_empty() {
                    return Ok(roots);
                }
            }
            Err(pem::Error::Io(e)) if e.kind() == io::ErrorKind::NotFound => {}
            Err(source) => {
                return Err(TlsError::File {
                    path: file.into(),
                    source,
                });
            }
        }
    }
    Err(TlsError::NoRoots)
}

/// Takes every certificate, and verifies that the server has its key: for `verify = false`.
#[derive(Debug)]
struct Anybody(Arc<CryptoProvider>);

impl ServerCertVerifier for Anybody {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.0.signature_verification_algorithms;
        verify_tls12_signature(message, certificate, signed, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.0.signature_verification_algorithms;
        verify_tls13_signature(message, certificate, signed, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}
