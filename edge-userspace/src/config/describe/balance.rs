//! Balanced services in words and numbers.

use std::{fmt, time::Duration};

use serde::Serialize;

use crate::config::{balance::Through, model::Model, quantity::spelt, services::Service};

/// The head of the table of balanced services.
pub(super) const HEADER: &str =
    "balanced         forward   hash      backends   backups   floor   slow start   echo   health";

/// How a service is balanced.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct BalanceDescription {
    /// `ipip`, `gue`, `l2` or `nat`.
    pub forward: &'static str,
    /// `5-tuple`, `source` or `quic`.
    pub hash: &'static str,
    /// Codepoint of the configuration in connection ids; none unless they choose the backend.
    pub quic_config_id: Option<u8>,
    /// Backends, backups among them.
    pub backends: usize,
    /// Backups.
    pub backups: usize,
    /// Of a hundred parts of the weight, those that must be healthy.
    pub floor_per_cent: u32,
    /// How long the weight of a backend that has come up rises, milliseconds.
    pub slow_start_ms: u64,
    /// Whether ICMP echo requests are answered here.
    pub echo: bool,
    /// What its health check asks; none without one.
    pub health: Option<&'static str>,
    /// Which way the check goes: `tunnel` or `direct`; none without one.
    pub health_through: Option<&'static str>,
    /// From one check to the next, milliseconds.
    pub health_interval_ms: Option<u64>,
    /// Whether the traffic of clients speaks against backends.
    pub passive: bool,
}

impl BalanceDescription {
    /// Of a service that is balanced.
    pub(super) fn of(service: &Service) -> Option<Self> {
        let balance = service.balance.as_ref()?;
        let health = balance.health.as_ref();
        Some(Self {
            forward: balance.forward.name(),
            hash: balance.hash.name(),
            quic_config_id: balance.quic().map(|_| balance.quic_config_id),
            backends: balance.backends.len(),
            backups: balance.backends.iter().filter(|b| b.backup).count(),
            floor_per_cent: balance.floor_per_cent,
            slow_start_ms: ms(balance.slow_start),
            echo: service.echo,
            health: health.map(|h| h.probe.name()),
            health_through: health.map(|h| h.through.name()),
            health_interval_ms: health.map(|h| ms(h.interval)),
            passive: balance.passive.is_some(),
        })
    }
}

/// The line of the table, but for the name.
impl fmt::Display for BalanceDescription {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let health = match (self.health, self.health_interval_ms) {
            (Some(kind), Some(ms)) if self.passive => {
                format!("{kind} every {}, and passive", span(ms))
            }
            (Some(kind), Some(ms)) if self.health_through == Some(Through::Tunnel.name()) => {
                format!("{kind} every {}, through the tunnel", span(ms))
            }
            (Some(kind), Some(ms)) => format!("{kind} every {}", span(ms)),
            _ if self.passive => "passive".to_owned(),
            _ => "-".to_owned(),
        };
        write!(
            f,
            "{:9} {:9} {:>8} {:>9} {:>5} % {:>12}   {:4}   {health}",
            self.forward,
            self.hash,
            self.backends,
            self.backups,
            self.floor_per_cent,
            span(self.slow_start_ms),
            if self.echo { "yes" } else { "no" },
        )
    }
}

/// What balanced services share.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct BalancingDescription {
    /// Room for flows.
    pub flows: u32,
    /// How long a TCP flow is kept without packets, milliseconds.
    pub tcp_idle_ms: u64,
    /// The same of UDP, milliseconds.
    pub udp_idle_ms: u64,
    /// Slots of a ring.
    pub slots: u32,
    /// File of the seed; none: the installation's own secret.
    pub seed_file: Option<String>,
    /// Source addresses towards backends of `nat`.
    pub snat: Vec<String>,
    /// Outer source addresses; none of a family: as the route says.
    pub tunnel_source: Vec<String>,
    /// `forward` or `drop`.
    pub fragments: &'static str,
    /// Whether the segment size of SYNs is lowered.
    pub mss_clamp: bool,
    /// Backends whose next hop the file says.
    pub next_hops: usize,
}

impl BalancingDescription {
    /// Of a configuration with balanced services.
    pub(super) fn of(model: &Model) -> Option<Self> {
        let shared = model.has_balanced().then_some(&model.balancing)?;
        let v4 = shared.tunnel_source_v4.map(|a| a.to_string());
        let v6 = shared.tunnel_source_v6.map(|a| a.to_string());
        Some(Self {
            flows: shared.flows,
            tcp_idle_ms: ms(shared.tcp_idle),
            udp_idle_ms: ms(shared.udp_idle),
            slots: shared.slots,
            seed_file: shared.seed_file.as_ref().map(|p| p.display().to_string()),
            snat: shared.snat.iter().map(ToString::to_string).collect(),
            tunnel_source: v4.into_iter().chain(v6).collect(),
            fragments: shared.fragments.name(),
            mss_clamp: shared.mss_clamp,
            next_hops: shared.next_hops.len(),
        })
    }
}

impl fmt::Display for BalancingDescription {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (tcp, udp) = (span(self.tcp_idle_ms), span(self.udp_idle_ms));
        writeln!(
            f,
            "flows       room for {}, kept for {tcp} without packets (UDP {udp})",
            self.flows
        )?;
        let seed = match &self.seed_file {
            Some(path) => format!("in {path}"),
            None => "of this installation".to_owned(),
        };
        writeln!(f, "rings       {} slots, seed {seed}", self.slots)?;
        if !self.snat.is_empty() {
            writeln!(f, "snat        {}", self.snat.join(", "))?;
        }
        if !self.tunnel_source.is_empty() {
            writeln!(f, "tunnels     from {}", self.tunnel_source.join(", "))?;
        }
        if self.next_hops > 0 {
            writeln!(f, "next hops   of {} backends", self.next_hops)?;
        }
        let clamp = match self.mss_clamp {
            true => "lowered to what fits",
            false => "left alone",
        };
        write!(
            f,
            "fragments   {}; segment size of SYNs: {clamp}",
            self.fragments
        )
    }
}

fn ms(span: Duration) -> u64 {
    u64::try_from(span.as_millis()).unwrap_or(u64::MAX)
}

/// Milliseconds as people write them.
fn span(ms: u64) -> String {
    spelt(Duration::from_millis(ms))
}
