//! Backends of a service, and how its packets reach them.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, Ipv6Addr},
    path::PathBuf,
    time::Duration,
};

use edge_common::{
    addr::Prefix,
    quic::{Layout, ServerId},
};

/// The most backends of one service: Maglev spreads them over a ring of 65,537 slots,
/// and wants a hundred slots for each to be even (Eisenbud et al., "Maglev", 2016, 5.3).
pub const MAX_SERVICE_BACKENDS: usize = 650;
/// The largest weight of a backend.
pub const MAX_WEIGHT: u32 = 1000;
/// Default of [`Backend::weight`].
pub const WEIGHT: u32 = 100;
/// Default of [`Balance::floor_per_cent`].
pub const FLOOR_PER_CENT: u32 = 25;

/// The smallest and the largest ring, slots.
pub const SLOTS: (u32, u32) = (251, 655_373);
/// The fewest and the most flows that there can be room for.
pub const FLOWS: (u32, u32) = (1024, 1 << 25);
/// The most source addresses towards backends of [`Forward::Nat`].
pub const MAX_SNAT: usize = 64;
/// The shortest prefixes of a balanced service, IPv4 and IPv6: each of their addresses
/// takes room in the tables.
pub const MIN_PREFIX: (u8, u8) = (22, 112);
/// The shortest prefix of outer IPv4 sources.
pub const MIN_TUNNEL_SOURCE: u8 = 16;
/// The longest text in a health check, bytes: path, body, what is sent and expected, an
/// argument.
pub const MAX_TEXT: usize = 1024;
/// The most arguments of a health check's program.
pub const MAX_ARGUMENTS: usize = 64;

/// What all balanced services share.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Balancing {
    /// Room in the flow table: [`FLOWS`].
    pub flows: u32,
    /// How long an established TCP flow is kept without packets: 10 seconds to a day.
    pub tcp_idle: Duration,
    /// How long a UDP flow is kept likewise: a second to an hour.
    pub udp_idle: Duration,
    /// Slots of a ring: a prime within [`SLOTS`], and no fewer than the backends of any
    /// service.
    pub slots: u32,
    /// File of the seed that a fleet shares, an absolute path: 64 hexadecimal digits, which
    /// nobody but its owner may read. `None`: the installation's own secret.
    pub seed_file: Option<PathBuf>,
    /// Source addresses towards backends of [`Forward::Nat`], at most [`MAX_SNAT`]; of each
    /// family that such a backend has as many as [`Balancing::sources`], none of them a
    /// service's or a backend's.
    pub snat: BTreeSet<IpAddr>,
    /// Outer IPv4 sources of [`Forward::Ipip`] and [`Forward::Gue`], over which flows are
    /// spread: a prefix of at least [`MIN_TUNNEL_SOURCE`]; `None`: the address that the route says.
    pub tunnel_source_v4: Option<Prefix>,
    /// The same for IPv6, where the flow label spreads flows (RFC 6438): one address.
    pub tunnel_source_v6: Option<Ipv6Addr>,
    /// What becomes of fragments.
    pub fragments: Fragments,
    /// Whether the segment size that a SYN announces is lowered to what fits on its way.
    pub mss_clamp: bool,
    /// Next hops of backends by their address, instead of the kernel's routes and neighbours.
    pub next_hops: BTreeMap<IpAddr, NextHop>,
}

impl Default for Balancing {
    fn default() -> Self {
        Self {
            flows: 1_000_000,
            tcp_idle: Duration::from_secs(15 * 60),
            udp_idle: Duration::from_secs(2 * 60),
            slots: 65_537,
            seed_file: None,
            snat: BTreeSet::new(),
            tunnel_source_v4: None,
            tunnel_source_v6: None,
            fragments: Fragments::default(),
            mss_clamp: true,
            next_hops: BTreeMap::new(),
        }
    }
}

impl Balancing {
    /// Numbers of source addresses. Each stands for one address of each family, which share
    /// their ports ([`edge_common::nat::Source`]).
    pub fn sources(&self) -> usize {
        let v6 = self.snat.iter().filter(|a| a.is_ipv6()).count();
        v6.max(self.snat.len() - v6)
    }
}

/// What becomes of fragments of balanced services.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Fragments {
    /// The first and the rest reach the same backend.
    #[default]
    Forward,
    /// They are dropped.
    Drop,
}

impl Fragments {
    /// Both.
    pub const ALL: [Self; 2] = [Self::Forward, Self::Drop];

    /// The word for it in the configuration.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Forward => "forward",
            Self::Drop => "drop",
        }
    }
}

/// Where frames for a backend go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NextHop {
    /// Name of the interface.
    pub interface: String,
    /// Destination MAC address.
    pub mac: [u8; 6],
}

/// How a service is balanced.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Balance {
    /// How packets reach the backends.
    pub forward: Forward,
    /// What of a packet chooses the backend.
    pub hash: HashBy,
    /// Codepoint of the configuration in connection ids of [`HashBy::Quic`], 0 to
    /// [`edge_common::quic::MAX_CONFIG`].
    pub quic_config_id: u8,
    /// The backends in the order of the file: 1 to [`MAX_SERVICE_BACKENDS`], no name twice,
    /// no address and port twice; among those that are no backups, one at least has a
    /// weight.
    pub backends: Vec<Backend>,
    /// Of a hundred parts of the weight, so many must be healthy: below that all
    /// backends are used as if they were (it fails open). 0: never.
    pub floor_per_cent: u32,
    /// How long the weight of a backend that has come up rises to its whole; zero
    /// for at once.
    pub slow_start: Duration,
    /// How backends are checked; `None`: they are taken for healthy.
    pub health: Option<HealthCheck>,
    /// How the traffic of clients speaks against backends; `None`: it does not. Only with
    /// [`Forward::Nat`] and TCP.
    pub passive: Option<Passive>,
}

/// When the traffic of clients speaks against a backend.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Passive {
    /// Over which time connections are counted.
    pub window: Duration,
    /// How many SYNs there must be in it.
    pub syns: u32,
    /// After how long a backend that is not checked is tried again, the first time.
    pub retry: Duration,
}

impl Default for Passive {
    fn default() -> Self {
        Self {
            window: Duration::from_secs(10),
            syns: 5,
            retry: Duration::from_secs(10),
        }
    }
}

impl Balance {
    /// Where the server id is in connection ids; `None` when they say nothing.
    pub fn quic(&self) -> Option<Layout> {
        let len = self.backends.first()?.server_id?.octets();
        Layout::new(self.quic_config_id, len).filter(|_| self.hash == HashBy::Quic)
    }
}

/// How packets reach a backend.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Forward {
    /// In IPv4 or IPv6 (RFC 2003, RFC 2473), by the backend's address; it answers
    /// the client itself.
    Ipip,
    /// In UDP (GUE, variant 1: the packet follows the UDP header), likewise.
    Gue,
    /// To the backend's MAC address, on the same segment; it answers itself.
    L2,
    /// Both addresses translated, both ways.
    Nat,
}

impl Forward {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Ipip, Self::Gue, Self::L2, Self::Nat];

    /// The word for it in the configuration.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Ipip => "ipip",
            Self::Gue => "gue",
            Self::L2 => "l2",
            Self::Nat => "nat",
        }
    }

    /// Whether packets go to it inside other ones.
    pub const fn is_tunnel(self) -> bool {
        matches!(self, Self::Ipip | Self::Gue)
    }

    /// Whether the backend sees the packet as it was, and so the service's address
    /// and port.
    pub const fn keeps_packet(self) -> bool {
        !matches!(self, Self::Nat)
    }
}

/// What of a packet chooses the backend.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum HashBy {
    /// Both addresses and ports, and the protocol.
    #[default]
    FiveTuple,
    /// The source address: all connections of a client reach one backend.
    Source,
    /// The server id in the connection id of a QUIC packet, where it has one; else
    /// as [`HashBy::FiveTuple`].
    Quic,
}

impl HashBy {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::FiveTuple, Self::Source, Self::Quic];

    /// The word for it in the configuration.
    pub const fn name(self) -> &'static str {
        match self {
            Self::FiveTuple => "5-tuple",
            Self::Source => "source",
            Self::Quic => "quic",
        }
    }
}

/// Who answers for a service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Backend {
    /// Its name: `[a-z0-9._-]`.
    pub name: String,
    /// Where packets for it go.
    pub address: IpAddr,
    /// The port that it listens on, with [`Forward::Nat`]; `None`: that of the service.
    pub port: Option<u16>,
    /// Its share beside the weights of the others: 0 to [`MAX_WEIGHT`]. With 0 it gets no new flows.
    pub weight: u32,
    /// Whether it is used only when no other is healthy.
    pub backup: bool,
    /// With [`HashBy::Quic`], and only then: what its connection ids name it by. All of a
    /// service have the same length, and none twice.
    pub server_id: Option<ServerId>,
}

/// How backends are checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HealthCheck {
    /// What is asked.
    pub probe: Probe,
    /// Which way it goes.
    pub through: Through,
    /// Which port is asked; `None`: that which the backend listens on.
    pub port: Option<u16>,
    /// From one check to the next.
    pub interval: Duration,
    /// How long an answer may take; less than the interval.
    pub timeout: Duration,
    /// How many checks must succeed, one after the other, for it to be up: at least 1.
    pub rise: u32,
    /// How many must fail, likewise, for it to be down: at least 1.
    pub fall: u32,
    /// How much of the interval chance adds or takes away, per cent: 0 to 50.
    pub jitter_per_cent: u32,
}

impl HealthCheck {
    /// Default of [`HealthCheck::interval`].
    pub const INTERVAL: Duration = Duration::from_secs(2);
    /// Default of [`HealthCheck::timeout`], but no more than half the interval.
    pub const TIMEOUT: Duration = Duration::from_secs(1);
    /// Default of [`HealthCheck::rise`].
    pub const RISE: u32 = 2;
    /// Default of [`HealthCheck::fall`].
    pub const FALL: u32 = 3;
    /// Default of [`HealthCheck::jitter_per_cent`].
    pub const JITTER_PER_CENT: u32 = 10;
}

/// Which way the packets of a health check go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Through {
    /// As those of clients do: to the service's address, inside packets to the backend. Only
    /// where [`Forward::is_tunnel`], and never of a program ([`Probe::Exec`]).
    Tunnel,
    /// To the backend's own address.
    Direct,
}

impl Through {
    /// Both.
    pub const ALL: [Self; 2] = [Self::Tunnel, Self::Direct];

    /// The word for it in the configuration.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Tunnel => "tunnel",
            Self::Direct => "direct",
        }
    }
}

/// What a health check asks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Probe {
    /// Whether a TCP connection is accepted.
    Tcp,
    /// An HTTP request.
    Http(HttpProbe),
    /// A UDP packet.
    Udp {
        /// What is sent.
        send: Vec<u8>,
        /// What the answer must begin with; empty: any answer.
        expect: Vec<u8>,
    },
    /// `grpc.health.v1.Health/Check`, over HTTP/2.
    Grpc {
        /// Whether over TLS, as [`HttpProbe::tls`]; only for the servers of an upstream.
        tls: bool,
        /// Which service is asked for; empty: the server.
        service: String,
    },
    /// A program, which gets the address and port as arguments behind its own; exit
    /// status 0 is success.
    Exec {
        /// Program and arguments; an absolute path.
        command: PathBuf,
        /// Its arguments.
        arguments: Vec<String>,
    },
}

impl Probe {
    /// The word for it in the configuration.
    pub const fn name(&self) -> &'static str {
        match self {
            Self::Tcp => "tcp",
            Self::Http(HttpProbe { tls: false, .. }) => "http",
            Self::Http(HttpProbe { tls: true, .. }) => "https",
            Self::Udp { .. } => "udp",
            Self::Grpc { .. } => "grpc",
            Self::Exec { .. } => "exec",
        }
    }
}

/// An HTTP request as a health check, and the answer that it wants.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HttpProbe {
    /// Whether over TLS. The certificate is not verified: a backend is asked by an
    /// address, and whether it serves is the question, not who it is. Servers of an upstream with
    /// TLS are asked with that of the requests, unless it is by another port.
    pub tls: bool,
    /// Whether HTTP/2 is spoken and not HTTP/1.1; only with the servers of an upstream.
    pub http2: bool,
    /// The path and query, beginning with `/`.
    pub path: String,
    /// The Host header, and the server name for TLS; `None`: the name that requests ask for by TLS,
    /// or else the address.
    pub host: Option<String>,
    /// Which status codes are success: first and last.
    pub status: (u16, u16),
    /// What the first 64 KiB of the body must contain; `None`: anything.
    pub body: Option<String>,
}
