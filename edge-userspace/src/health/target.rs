//! Whom to check, and how.

use std::{
    fmt,
    net::{IpAddr, SocketAddr},
    sync::Arc,
};

use rustls::{ClientConfig, pki_types::ServerName};

use super::tunnel::Tunnel;
use crate::config::balance::HealthCheck;

/// Which backend: the same over reloads.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct BackendKey {
    /// The name of its service.
    pub service: Arc<str>,
    /// Its name in the service.
    pub backend: Arc<str>,
}

impl fmt::Display for BackendKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.service, self.backend)
    }
}

/// TLS towards a server.
#[derive(Clone, Debug)]
pub struct TlsTo {
    /// Whom it believes, what it shows, and which protocol it agrees on.
    pub config: Arc<ClientConfig>,
    /// The name that is asked for and verified; with an address, none is sent.
    pub name: ServerName<'static>,
}

/// Configurations are equal when they are the same one.
impl PartialEq for TlsTo {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.config, &other.config) && self.name == other.name
    }
}

impl Eq for TlsTo {}

/// How the packets of a check leave this host, where that is not left to the routing
/// table, and by which TLS they are protected. Nothing of it is for programs
/// ([`Probe::Exec`](crate::config::balance::Probe)).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Route {
    /// `SO_MARK`, by which a routing rule or an XDP program tells them. Needs
    /// `CAP_NET_ADMIN`.
    pub fwmark: Option<u32>,
    /// The source address; of the same family as the target.
    pub source: Option<IpAddr>,
    /// The interface, as `SO_BINDTODEVICE` takes it.
    pub device: Option<Arc<str>>,
    /// Through the tunnel to the backend; what is above is then ignored.
    pub tunnel: Option<Tunnel>,
    /// That of the requests to the server, for checks over TLS; `None`: one that believes
    /// whoever answers.
    pub tls: Option<TlsTo>,
}

/// A backend that is to be checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    /// Which.
    pub key: BackendKey,
    /// Whom to ask, unless it goes through a tunnel.
    pub address: SocketAddr,
    /// What, and how often.
    pub check: Arc<HealthCheck>,
    /// By which way.
    pub route: Route,
}
