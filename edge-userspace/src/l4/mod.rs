//! The balancer's choices: which backends of a service are used, which slots of its
//! ring they have, and what a change moves.
//!
//! Pure: configuration, health and time are given. From a [`Balance`] and the
//! published [`BackendState`]s of its backends comes a [`plan`], from the candidates of
//! the plan a ring ([`maglev`]), from rings and stable [`numbers`] the contents of the
//! kernel's tables, and from two of those what has to be written ([`delta`]) and what
//! that does to flows ([`diff`]).
//!
//! [`Balance`]: crate::config::balance::Balance
//! [`BackendState`]: plan::BackendState

pub mod delta;
pub mod diff;
pub mod maglev;
pub mod numbers;
pub mod plan;
mod sentence;
#[cfg(test)]
mod tests;

use std::{fmt, net::IpAddr};

use crate::config::balance::Backend;

/// Where a backend is: what identifies it within its service. Its name is for people,
/// and may change without a flow noticing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Endpoint {
    /// Where packets for it go.
    pub address: IpAddr,
    /// The port that it listens on; `None`: that of the service.
    pub port: Option<u16>,
}

impl Endpoint {
    /// That of a backend.
    pub const fn of(backend: &Backend) -> Self {
        Self {
            address: backend.address,
            port: backend.port,
        }
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.address, self.port) {
            (address, None) => write!(f, "{address}"),
            (IpAddr::V4(address), Some(port)) => write!(f, "{address}:{port}"),
            (IpAddr::V6(address), Some(port)) => write!(f, "[{address}]:{port}"),
        }
    }
}

/// A backend among those of all services. One endpoint that serves two services is two
/// backends: it is checked, drained and forwarded to for each by itself.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct BackendKey {
    /// The name of its service.
    pub service: String,
    /// Where it is.
    pub endpoint: Endpoint,
}
