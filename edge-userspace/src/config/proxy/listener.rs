//! Where clients connect, and what they may do there.

use std::{
    net::{IpAddr, SocketAddr},
    path::PathBuf,
    time::Duration,
};

use edge_common::addr::Prefix;

/// The most addresses of a listener.
pub const MAX_ADDRESSES: usize = 64;
/// The most certificates of a listener.
pub const MAX_CERTIFICATES: usize = 1024;

/// Where clients connect.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listener {
    /// Its name: `[a-z0-9._-]`.
    pub name: String,
    /// Addresses and ports, 1 to [`MAX_ADDRESSES`], in the order of the file. `[::]` is all IPv6
    /// addresses and no IPv4 one (`IPV6_V6ONLY`).
    pub addresses: Vec<SocketAddr>,
    /// With what TLS is spoken; `None`: plain.
    pub tls: Option<Tls>,
    /// Whether HTTP/2 is spoken: by ALPN with TLS, by prior knowledge (RFC 9113, 3.3) without.
    pub http2: bool,
    /// Whether connections begin with a header of the PROXY protocol.
    pub proxy_protocol: ProxyProtocol,
    /// Whose word about the client is taken: sorted, none twice.
    pub trusted_proxies: Vec<Prefix>,
    /// In which field they say it.
    pub client_header: ClientHeader,
    /// Whether every request is answered with a redirection to `https://`; never with `tls`.
    pub redirect_https: bool,
    /// Whether a client that sends no more (`shutdown(SHUT_WR)`) waits for its answer: it is gone
    /// only once it takes nothing. Else it is taken for one that has gone away.
    pub half_close: bool,
    /// What clients may do.
    pub limits: Limits,
}

impl Listener {
    /// Whether an address is a trusted proxy's.
    pub fn trusts(&self, address: IpAddr) -> bool {
        let address = Prefix::host(address.to_canonical());
        let mut all = self.trusted_proxies.iter();
        all.any(|prefix| prefix.contains(address))
    }
}

/// TLS towards clients.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tls {
    /// At least one; the first is for clients whose server name no other one has.
    pub certificates: Vec<Certificate>,
    /// The oldest version that is spoken.
    pub min_version: TlsVersion,
    /// Certificates of those who sign clients' certificates, a PEM file; there unless
    /// `client_auth` is off.
    pub client_ca: Option<PathBuf>,
    /// Whether clients show certificates.
    pub client_auth: ClientAuth,
    /// Whether sessions are resumed by tickets (RFC 5077; RFC 8446, 2.2).
    pub tickets: bool,
}

/// A certificate and its key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Certificate {
    /// The chain, that of the server first: a PEM file, an absolute path.
    pub cert: PathBuf,
    /// The private key, likewise.
    pub key: PathBuf,
}

/// Versions of TLS.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum TlsVersion {
    /// TLS 1.2 (RFC 5246).
    #[default]
    V12,
    /// TLS 1.3 (RFC 8446).
    V13,
}

impl TlsVersion {
    /// Both.
    pub const ALL: [Self; 2] = [Self::V12, Self::V13];

    /// The word for it in the configuration.
    pub const fn name(self) -> &'static str {
        match self {
            Self::V12 => "1.2",
            Self::V13 => "1.3",
        }
    }
}

/// Whether clients show certificates.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ClientAuth {
    /// They are not asked for one.
    #[default]
    Off,
    /// They may; a wrong one ends the handshake.
    Optional,
    /// They must.
    Required,
}

impl ClientAuth {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Off, Self::Optional, Self::Required];

    /// The word for it in the configuration.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Off => "off",
            Self::Optional => "optional",
            Self::Required => "required",
        }
    }
}

/// Whether connections from trusted proxies begin with a header of the PROXY protocol (HAProxy,
/// "The PROXY protocol", versions 1 and 2).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ProxyProtocol {
    /// None does.
    #[default]
    Off,
    /// They may.
    Accept,
    /// They must, and nobody else may connect.
    Require,
}

impl ProxyProtocol {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Off, Self::Accept, Self::Require];

    /// The word for it in the configuration.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Off => "off",
            Self::Accept => "accept",
            Self::Require => "require",
        }
    }
}

/// The field in which trusted proxies say who the client is. One kind is believed: a proxy that
/// writes the one passes the other on as the client sent it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ClientHeader {
    /// `X-Forwarded-For`, with its relatives.
    #[default]
    XForwardedFor,
    /// `Forwarded` (RFC 7239).
    Forwarded,
}

impl ClientHeader {
    /// Both.
    pub const ALL: [Self; 2] = [Self::XForwardedFor, Self::Forwarded];

    /// The word for it in the configuration.
    pub const fn name(self) -> &'static str {
        match self {
            Self::XForwardedFor => "x-forwarded-for",
            Self::Forwarded => "forwarded",
        }
    }
}

/// What clients of a listener may do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Limits {
    /// From the first byte of a head to its last; with TLS, for the handshake as well.
    pub header_timeout: Duration,
    /// How long a connection may be without a request.
    pub idle_timeout: Duration,
    /// Between two pieces of the body of a request, and for an answer of our own to be taken.
    pub body_timeout: Duration,
    /// Bytes of a head.
    pub header_bytes: u32,
    /// Fields of a head.
    pub headers: u32,
    /// Bytes of the request target.
    pub uri_bytes: u32,
    /// Bytes of a body; 0: any number.
    pub body_bytes: u64,
    /// The slowest that a body may come, bytes a second; 0: any.
    pub min_rate: u64,
    /// Connections at one time; of all workers together.
    pub connections: u32,
    /// Connections of one address (IPv6: /64) at one time; 0: any number.
    pub connections_per_source: u32,
    /// Requests of a connection, which ends after the last; 0: any number.
    pub requests_per_connection: u32,
    /// Streams of an HTTP/2 connection at one time.
    pub h2_streams: u32,
    /// Streams that a client may reset, or make us reset, a second of a connection.
    pub h2_resets_per_second: u32,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            header_timeout: Duration::from_secs(10),
            idle_timeout: Duration::from_secs(60),
            body_timeout: Duration::from_secs(30),
            header_bytes: 16_384,
            headers: 100,
            uri_bytes: 8192,
            body_bytes: 10 << 20,
            min_rate: 0,
            connections: 10_000,
            connections_per_source: 0,
            requests_per_connection: 1000,
            h2_streams: 100,
            h2_resets_per_second: 50,
        }
    }
}
