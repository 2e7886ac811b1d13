//! Why a request gets no answer from an upstream.

use super::head::Reject;

macro_rules! refusals {
    ($($variant:ident $status:literal $name:literal $sentence:literal,)*) => {
        /// Why a request gets no answer from an upstream: one reason each.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum Refusal {
            /// It is malformed.
            Malformed(Reject),
            $(#[doc = $sentence] $variant,)*
        }

        /// All that are not [`Refusal::Malformed`].
        const OWN: &[Refusal] = &[$(Refusal::$variant,)*];

        impl Refusal {
            /// The status of the answer; 499, which nobody gets, when the client is gone.
            pub const fn status(self) -> u16 {
                match self {
                    Self::Malformed(reject) => reject.status(),
                    $(Self::$variant => $status,)*
                }
            }

            /// The stable name, for metrics and logs.
            pub const fn name(self) -> &'static str {
                match self {
                    Self::Malformed(reject) => reject.name(),
                    $(Self::$variant => $name,)*
                }
            }

            /// A sentence for a person.
            pub const fn sentence(self) -> &'static str {
                match self {
                    Self::Malformed(reject) => reject.sentence(),
                    $(Self::$variant => $sentence,)*
                }
            }
        }
    };
}

refusals! {
    // What the client did.
    Path 400 "path" "The path cannot be brought into its normal form.",
    NoRoute 404 "no_route" "No route takes it.",
    HeadTimeout 408 "head_timeout" "Its head did not come in time.",
    BodyTimeout 408 "body_timeout" "Its body did not come in time.",
    BodyRate 408 "body_rate" "Its body came more slowly than it may.",
    ClientGone 499 "client_gone" "The client went away before the answer was whole.",
    Trace 501 "trace" "TRACE was to be answered by the proxy itself, which says nobody what came.",
    // What the client did to its connection; the status is nobody's.
    ProxyHeader 400 "proxy_header" "Its connection did not begin with the header of the PROXY protocol that it needs, or with one that is malformed.",
    Connections 400 "connections" "The listener had as many connections as it may.",
    SourceConnections 400 "connections_per_source" "Its source had as many connections as it may.",
    TlsTimeout 400 "tls_timeout" "The handshake of TLS was not over in time.",
    H2Streams 400 "h2_streams" "Its HTTP/2 connection had as many streams as it may.",
    H2Malformed 400 "h2_malformed" "Its head was none of HTTP/2, so that nothing more is known of it.",
    H2Resets 400 "h2_resets" "It reset streams of its HTTP/2 connection faster than it may.",
    H2MadeResets 400 "h2_made_resets" "It had streams of its HTTP/2 connection reset faster, or more of them, than it may.",
    H2Heads 400 "h2_heads" "Its HTTP/2 connection brought heads that are far too large faster than it may.",
    H2Continuations 400 "h2_continuations" "A head on its HTTP/2 connection came in more pieces than it may.",
    H2Hpack 400 "h2_hpack" "A head on its HTTP/2 connection is packed so that it is far larger than it may be.",
    H2Flood 400 "h2_flood" "Its HTTP/2 connection brought too many frames that only cost.",
    H2Protocol 400 "h2_protocol" "Its HTTP/2 connection broke the protocol.",
    // What the upstream did.
    ConnectFailed 502 "connect_failed" "No server took a connection.",
    NoHttp2 502 "no_http2" "The server took a connection, but does not speak HTTP/2.",
    ServerBroke 502 "server_broke" "The connection to the server ended before its answer began.",
    BadAnswer 502 "bad_answer" "The answer of the server is no HTTP.",
    AnswerBroke 502 "answer_broke" "The answer of the server ended before its end.",
    ConnectTimeout 504 "connect_timeout" "No server took a connection in time.",
    AnswerTimeout 504 "answer_timeout" "The answer of the server did not begin, or go on, in time.",
    RequestTimeout 504 "request_timeout" "The time for the whole request was over.",
    // What keeps the upstream from harm.
    NoServer 503 "no_server" "No server of the upstream can be used.",
    NoPlace 503 "no_place" "All connections to the server had as many requests as they may, for too long.",
    Overloaded 503 "overloaded" "As many requests as may are under way, and as many as may wait.",
    QueueTimeout 503 "queue_timeout" "It waited for its turn for too long.",
    BreakerOpen 503 "breaker_open" "The upstream has failed too often, and is left alone for a while.",
    Internal 500 "internal" "The proxy made a mistake.",
}

impl Refusal {
    /// How many there are.
    pub const COUNT: usize = OWN.len() + Reject::ALL.len();

    /// Its position among all of them.
    pub fn index(self) -> usize {
        match self {
            Self::Malformed(reject) => OWN.len() + reject.index(),
            // They are few, and refusing is rare.
            own => OWN.iter().position(|other| *other == own).unwrap_or(0),
        }
    }

    /// All of them, in the order of [`Refusal::index`].
    pub fn all() -> impl Iterator<Item = Self> {
        let own = OWN.iter().copied();
        own.chain(Reject::ALL.iter().copied().map(Self::Malformed))
    }

    /// Whether the client should come back, and after how many seconds.
    pub const fn retry_after(self) -> Option<u64> {
        match self {
            Self::Overloaded
            | Self::QueueTimeout
            | Self::NoServer
            | Self::NoPlace
            | Self::BreakerOpen => Some(1),
            _ => None,
        }
    }
}

/// The status of gRPC that stands for one of HTTP (gRPC, "HTTP to gRPC Status Code Mapping").
pub const fn grpc_status(http: u16) -> u8 {
    match http {
        // INTERNAL, UNAUTHENTICATED, PERMISSION_DENIED, UNIMPLEMENTED, UNAVAILABLE, UNKNOWN.
        400 => 13,
        401 => 16,
        403 => 7,
        404 => 12,
        429 | 502..=504 => 14,
        _ => 2,
    }
}

/// Whether a `Content-Type` is that of a call of gRPC, whose caller reads no status of HTTP.
pub fn is_grpc(content_type: &[u8]) -> bool {
    let rest = content_type.strip_prefix(b"application/grpc");
    rest.is_some_and(|rest| matches!(rest.first(), None | Some(b'+' | b';')))
}

impl From<Reject> for Refusal {
    fn from(reject: Reject) -> Self {
        Self::Malformed(reject)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn calls_of_grpc_are_known_by_their_type() {
        for (value, is) in [
            ("application/grpc", true),
            ("application/grpc+proto", true),
            ("application/grpc; charset=utf-8", true),
            ("application/grpc-web", false),
            ("application/json", false),
        ] {
            assert_eq!(is_grpc(value.as_bytes()), is, "{value}");
        }
        assert_eq!((grpc_status(503), grpc_status(404)), (14, 12));
    }

    #[test]
    fn each_has_a_name_and_a_number_of_its_own() {
        let names: BTreeSet<&str> = Refusal::all().map(Refusal::name).collect();
        assert_eq!(names.len(), Refusal::COUNT);
        for (at, refusal) in Refusal::all().enumerate() {
            assert_eq!(refusal.index(), at);
            assert!((400..600).contains(&refusal.status()));
        }
    }
}
