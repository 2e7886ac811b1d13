//! One check of one backend, through real sockets or a program.
//!
//! Connections are closed in order (FIN), not by a reset. A reset is cheaper for this
//! host, which then keeps no `TIME_WAIT`; but many servers log it as an error, some with
//! a stack trace, and nobody wants that every second from every edge. A `TIME_WAIT` takes
//! a quarter of a kilobyte for a minute and hinders no later check, and the kernel bounds
//! their number (`net.ipv4.tcp_max_tw_buckets`): some 2,000 checks a second reach the usual
//! bound, and beyond it the kernel just keeps no more.
//!
//! Through a tunnel it is a reset ([`way`]), unless the backend closes first: each socket has
//! a port for itself there, which a `TIME_WAIT` would hold for a minute, and some 28,000 ports
//! are all there are.

mod error;
mod exec;
mod grpc;
mod http;
mod socket;
mod tls;
mod udp;
mod way;

use std::{net::SocketAddr, time::Duration};

use tokio::time::Instant;

use super::target::Route;
use crate::config::balance::{HealthCheck, Probe};

pub use error::{ProbeError, Waiting};
pub(crate) use tls::AnyCertificate;
use way::Way;
pub use way::Ways;

/// Asks `target`, once, and returns within [`HealthCheck::timeout`]; through a tunnel, the
/// addresses of the service that the route names, one after the other, all of which have to
/// answer.
///
/// To be called inside a tokio runtime with I/O and time. When the future is dropped,
/// nothing of the check stays: sockets are closed, programs killed.
///
/// # Errors
/// What is wrong with the backend, in words for a person; or
/// [`ProbeError::NotAsked`], when this host could not ask it.
pub async fn probe(
    check: &HealthCheck,
    target: SocketAddr,
    route: &Route,
    ways: &Ways,
) -> Result<(), ProbeError> {
    let deadline = Deadline::after(check.timeout);
    let Some(tunnel) = &route.tunnel else {
        return ask(check, target, &Way::direct(route), deadline).await;
    };
    for &service in &tunnel.services {
        let way = Way::through(tunnel, service.ip(), target.ip(), route, ways)?;
        let found = ask(check, service, &way, deadline).await;
        way.judge(service, found)?;
    }
    Ok(())
}

async fn ask(
    check: &HealthCheck,
    target: SocketAddr,
    way: &Way<'_>,
    deadline: Deadline,
) -> Result<(), ProbeError> {
    match &check.probe {
        Probe::Tcp => socket::connect(target, way, deadline).await.map(drop),
        Probe::Http(http) => http::ask(http, target, way, deadline).await,
        Probe::Udp { send, expect } => udp::ask(send, expect, target, way, deadline).await,
        Probe::Grpc { tls, service } => grpc::ask((service, *tls), target, way, deadline).await,
        Probe::Exec { command, arguments } => exec::run(command, arguments, target, deadline).await,
    }
}

/// Until when a check has to be through.
#[derive(Clone, Copy, Debug)]
struct Deadline {
    at: Instant,
    timeout: Duration,
}

impl Deadline {
    fn after(timeout: Duration) -> Self {
        Self {
            at: Instant::now() + timeout,
            timeout,
        }
    }

    /// Ends `step` when the time is over, and says what was waited for.
    async fn within<T>(
        self,
        waiting: Waiting,
        step: impl Future<Output = Result<T, ProbeError>>,
    ) -> Result<T, ProbeError> {
        tokio::time::timeout_at(self.at, step)
            .await
            .unwrap_or_else(|_| Err(self.missed(waiting)))
    }

    fn missed(self, waiting: Waiting) -> ProbeError {
        ProbeError::Timeout {
            waiting,
            timeout: self.timeout,
        }
    }
}

/// Asks over a connection that somebody has to drive meanwhile. What `asking` finds
/// counts at once; then, while there is time, comes what it leaves to be done, and the
/// connection closes in order.
async fn drive<R: Future>(
    asking: impl Future<Output = Result<R, ProbeError>>,
    connection: impl Future,
    deadline: Deadline,
) -> Result<(), ProbeError> {
    let mut found = None;
    let asking = async {
        match asking.await {
            Ok(rest) => {
                found = Some(Ok(()));
                rest.await;
            }
            Err(e) => found = Some(Err(e)),
        }
    };
    let both = async {
        tokio::join!(asking, connection);
    };
    let _late = tokio::time::timeout_at(deadline.at, both).await;
    found.unwrap_or_else(|| Err(deadline.missed(Waiting::Answer)))
}
