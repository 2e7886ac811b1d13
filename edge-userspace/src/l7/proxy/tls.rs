//! TLS towards clients and towards servers, from files.

use std::{
    collections::HashMap,
    hash::{DefaultHasher, Hash as _, Hasher as _},
    io,
    net::{IpAddr, Ipv4Addr},
    path::{Path, PathBuf},
    sync::{Arc, OnceLock},
};

use tokio_rustls::rustls::{
    self, ClientConfig, RootCertStore, ServerConfig, SupportedProtocolVersion,
    client::Resumption,
    crypto::aws_lc_rs,
    pki_types::{
        CertificateDer, ServerName,
        pem::{self, PemObject as _},
    },
    server::{
        ClientHello, NoServerSessionStorage, ProducesTickets, ResolvesServerCert,
        WebPkiClientVerifier,
    },
    sign::{CertifiedKey, SingleCertAndKey},
    version,
};

use crate::{
    config::{
        files::{FileError, certified_key, roots},
        proxy::{
            listener::{self, Certificate, ClientAuth, TlsVersion},
            upstream::{self, Address, Protocol},
        },
    },
    health::{TlsTo, probe::AnyCertificate},
};

/// Why there is no TLS.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A certificate or key cannot be used.
    #[error("{}: {source}", match .source {
        FileError::Certificate(_) => cert.display(),
        FileError::Key(_) => key.display(),
    })]
    Pair {
        /// The file of the chain.
        cert: PathBuf,
        /// That of the key.
        key: PathBuf,
        /// Which of them, and why.
        source: FileError,
    },
    /// Those who sign certificates cannot be used.
    #[error("{path}: {why}")]
    Ca {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        why: String,
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

fn pair(files: &Certificate) -> Result<CertifiedKey, TlsError> {
    let Certificate { cert, key } = files;
    certified_key(cert, key).map_err(|source| TlsError::Pair {
        cert: cert.clone(),
        key: key.clone(),
        source,
    })
}

fn signers(path: &Path) -> Result<RootCertStore, TlsError> {
    roots(path).map_err(|why| TlsError::Ca {
        path: path.to_path_buf(),
        why,
    })
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
            let signers = Arc::new(signers(path)?);
            let verifier = WebPkiClientVerifier::builder_with_provider(signers, provider);
            let verifier = match auth {
                ClientAuth::Optional => verifier.allow_unauthenticated(),
                _ => verifier,
            };
            let verifier = verifier.build().map_err(|e| TlsError::Ca {
                path: path.clone(),
                why: e.to_string(),
            })?;
            builder.with_client_cert_verifier(verifier)
        }
        _ => builder.with_no_client_auth(),
    };
    let mut config = builder.with_cert_resolver(Arc::new(ByName::load(&tls.certificates)?));
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
    fn load(pairs: &[Certificate]) -> Result<Self, TlsError> {
        let mut this = Self {
            exact: HashMap::new(),
            wild: HashMap::new(),
            first: Vec::new(),
        };
        for files in pairs {
            let certified = Arc::new(pair(files)?);
            let names = names(&certified.cert)?;
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
    config: Arc<ClientConfig>,
    /// The same without the resumption of sessions, which skips what certificates are checked for.
    whole: Arc<ClientConfig>,
    name: Option<String>,
    /// Tells whether files hold what they held: a hash of the certificates in them.
    pub(super) held: u64,
}

impl Towards {
    /// Reads the files. `protocol` is what is agreed on in the handshake.
    ///
    /// # Errors
    /// [`TlsError`].
    pub(super) fn load(tls: &upstream::Tls, protocol: Protocol) -> Result<Self, TlsError> {
        let provider = Arc::new(aws_lc_rs::default_provider());
        let builder = ClientConfig::builder_with_provider(provider.clone())
            .with_safe_default_protocol_versions()?;
        let mut held = DefaultHasher::new();
        let builder = if tls.verify {
            let roots = match &tls.ca {
                Some(path) => signers(path)?,
                None => of_host()?,
            };
            for root in &roots.roots {
                (&*root.subject, &*root.subject_public_key_info).hash(&mut held);
                root.name_constraints.as_deref().hash(&mut held);
            }
            builder.with_root_certificates(roots)
        } else {
            builder
                .dangerous()
                .with_custom_certificate_verifier(Arc::new(AnyCertificate::new(provider)))
        };
        let mut config = match &tls.certificate {
            Some(files) => {
                let own = pair(files)?;
                // The key is that of the first of them.
                for certificate in &own.cert {
                    certificate.as_ref().hash(&mut held);
                }
                builder.with_client_cert_resolver(Arc::new(SingleCertAndKey::from(own)))
            }
            None => builder.with_no_client_auth(),
        };
        config.alpn_protocols.push(match protocol {
            Protocol::Http1 => b"http/1.1".to_vec(),
            Protocol::Http2 => b"h2".to_vec(),
        });
        let mut whole = config.clone();
        whole.resumption = Resumption::disabled();
        Ok(Self {
            config: Arc::new(config),
            whole: Arc::new(whole),
            name: tls.sni.clone(),
            held: held.finish(),
        })
    }

    /// For a server: of requests, and of checks.
    ///
    /// # Errors
    /// When no certificate can have its name.
    pub(super) fn to(&self, server: &Address) -> Result<(TlsTo, TlsTo), TlsError> {
        let name = match (&self.name, server) {
            (Some(name), _) | (None, Address::Name(name, _)) => ServerName::try_from(name.clone())
                .map_err(|_| TlsError::Name { name: name.clone() })?,
            (None, Address::Ip(address)) => address.ip().into(),
            // It has none, and none is sent: validation has it so only where none is verified.
            (None, Address::Unix(_)) => IpAddr::from(Ipv4Addr::UNSPECIFIED).into(),
        };
        let of = |config: &Arc<ClientConfig>| TlsTo {
            config: config.clone(),
            name: name.clone(),
        };
        Ok((of(&self.config), of(&self.whole)))
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
            Err(e) => {
                return Err(TlsError::Ca {
                    path: file.into(),
                    why: e.to_string(),
                });
            }
        }
    }
    Err(TlsError::NoRoots)
}
