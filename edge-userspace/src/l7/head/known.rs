//! The field names that the proxy itself looks at, found without allocation.

macro_rules! known {
    ($($variant:ident = $name:literal,)*) => {
        /// A field name that the proxy itself looks at.
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
        #[allow(missing_docs)]
        #[repr(u8)]
        pub enum Known {
            /// A name of which the proxy knows nothing.
            #[default]
            Other,
            $($variant,)*
        }

        /// Every known name, in lower case.
        const NAMES: &[(&str, Known)] = &[$(($name, Known::$variant),)*];

        impl Known {
            /// The name in lower case; empty for [`Known::Other`].
            #[must_use]
            pub const fn name(self) -> &'static str {
                match self {
                    Self::Other => "",
                    $(Self::$variant => $name,)*
                }
            }
        }
    };
}

known! {
    Accept = "accept",
    AcceptEncoding = "accept-encoding",
    AcceptLanguage = "accept-language",
    Authorization = "authorization",
    CacheControl = "cache-control",
    Connection = "connection",
    ContentEncoding = "content-encoding",
    ContentLength = "content-length",
    ContentType = "content-type",
    Cookie = "cookie",
    Date = "date",
    ETag = "etag",
    Expect = "expect",
    Forwarded = "forwarded",
    Host = "host",
    Http2Settings = "http2-settings",
    KeepAlive = "keep-alive",
    Location = "location",
    Origin = "origin",
    ProxyAuthenticate = "proxy-authenticate",
    ProxyAuthenticationInfo = "proxy-authentication-info",
    ProxyAuthorization = "proxy-authorization",
    ProxyConnection = "proxy-connection",
    Range = "range",
    Referer = "referer",
    RetryAfter = "retry-after",
    Server = "server",
    SetCookie = "set-cookie",
    Te = "te",
    Traceparent = "traceparent",
    Tracestate = "tracestate",
    Trailer = "trailer",
    TransferEncoding = "transfer-encoding",
    Upgrade = "upgrade",
    UserAgent = "user-agent",
    Via = "via",
    XForwardedFor = "x-forwarded-for",
    XForwardedHost = "x-forwarded-host",
    XForwardedPort = "x-forwarded-port",
    XForwardedProto = "x-forwarded-proto",
    XRealIp = "x-real-ip",
    XRequestId = "x-request-id",
}

/// Slots of the table below; a power of two.
const SLOTS: usize = 256;

/// Position in [`NAMES`] by [`slot`], one more than it is; 0 is nobody's.
static TABLE: [u8; SLOTS] = table();

/// Where a name stands in [`TABLE`]. The table's construction proves at compile time that
/// no two known names share a slot.
const fn slot(first: u8, before_last: u8, last: u8, len: usize) -> usize {
    // Only letters differ between their cases by this bit; that it also maps other bytes onto
    // each other does no harm, since the name is compared afterwards.
    let key = ((first | 0x20) as u32)
        | (((before_last | 0x20) as u32) << 8)
        | (((last | 0x20) as u32) << 16)
        | ((len as u32 & 0xff) << 24);
    (key.wrapping_mul(MULTIPLIER) >> (32 - SLOTS.ilog2())) as usize
}

/// Found by trying.
const MULTIPLIER: u32 = 0xa6ce_cc1b;

const fn table() -> [u8; SLOTS] {
    let mut table = [0; SLOTS];
    let mut at = 0;
    while at < NAMES.len() {
        let name = NAMES[at].0.as_bytes();
        let len = name.len();
        let slot = slot(name[0], name[len - 2], name[len - 1], len);
        assert!(
            table[slot] == 0,
            "two names share a slot: another MULTIPLIER is needed"
        );
        at += 1;
        table[slot] = at as u8;
    }
    table
}

/// Whether two tokens of the same length are the same but for the case of letters. No two
/// bytes of tokens differ by this bit alone other than letters, `^` and `~`, and known names have
/// neither of these.
#[inline]
fn same(name: &[u8], known: &[u8]) -> bool {
    const CASE: u64 = 0x2020_2020_2020_2020;
    let word = |of: &[u8], at: usize| {
        of.get(at..)
            .and_then(<[u8]>::first_chunk)
            .map(|word| u64::from_le_bytes(*word) | CASE)
    };
    let equal = |at| word(name, at) == word(known, at);
    match name.len().checked_sub(8) {
        None => name.iter().zip(known).all(|(a, b)| a | 0x20 == b | 0x20),
        // Words from the beginning, and one that ends with the name.
        Some(last) => equal(last) && (0..last).step_by(8).all(equal),
    }
}

impl Known {
    /// Which known name this token is, in any case of letters. What is no token may be taken for
    /// one.
    #[inline]
    #[must_use]
    pub fn of(name: &[u8]) -> Self {
        let [first, .., before_last, last] = *name else {
            // Of two bytes there is one, and none is shorter.
            return if name.eq_ignore_ascii_case(b"te") {
                Self::Te
            } else {
                Self::Other
            };
        };
        let at = usize::from(TABLE[slot(first, before_last, last, name.len())]);
        match NAMES.get(at.wrapping_sub(1)) {
            Some((known, which)) if known.len() == name.len() && same(name, known.as_bytes()) => {
                *which
            }
            _ => Self::Other,
        }
    }

    /// Whether the field speaks of this connection or of this hop alone, so that it ends here
    /// (RFC 9110, section 7.6.1). `TE` and `Upgrade` are written anew where they go on.
    /// What a client says to a proxy that asked for authentication ends here as well: this is
    /// a gateway, which never asks. `HTTP2-Settings` belongs to the upgrade to h2c (RFC 7540,
    /// section 3.2.1), which is never taken.
    #[must_use]
    pub const fn is_hop_by_hop(self) -> bool {
        matches!(
            self,
            Self::Connection
                | Self::Http2Settings
                | Self::KeepAlive
                | Self::ProxyAuthenticate
                | Self::ProxyAuthenticationInfo
                | Self::ProxyAuthorization
                | Self::ProxyConnection
                | Self::Te
                | Self::Trailer
                | Self::TransferEncoding
                | Self::Upgrade
        )
    }

    /// Whether the field says where the message begins or ends, or where it goes. The writers
    /// make these from what was understood and never copy them.
    #[must_use]
    pub const fn is_framing(self) -> bool {
        matches!(
            self,
            Self::Host | Self::ContentLength | Self::TransferEncoding
        )
    }

    /// Whether the field means anything behind a body (RFC 9110, section 6.5.1): not what
    /// routes, authenticates, modifies the request, or says how the content is to be read.
    #[must_use]
    pub const fn may_trail(self) -> bool {
        !self.is_hop_by_hop()
            && !self.is_framing()
            && !self.is_forwarding()
            && !matches!(
                self,
                Self::Authorization
                    | Self::CacheControl
                    | Self::ContentEncoding
                    | Self::ContentType
                    | Self::Cookie
                    | Self::Expect
                    | Self::Range
                    | Self::SetCookie
            )
    }

    /// Whether the field says who the client is, which only a trusted proxy may.
    #[must_use]
    pub const fn is_forwarding(self) -> bool {
        matches!(
            self,
            Self::Forwarded
                | Self::XForwardedFor
                | Self::XForwardedHost
                | Self::XForwardedPort
                | Self::XForwardedProto
                | Self::XRealIp
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::proxy::route::CONNECTION_FIELDS;

    #[test]
    fn every_known_name_is_found_in_any_case() {
        for (name, known) in NAMES {
            assert_eq!(Known::of(name.as_bytes()), *known);
            assert_eq!(Known::of(name.to_ascii_uppercase().as_bytes()), *known);
            assert_eq!(known.name(), *name);
        }
    }

    #[test]
    fn fields_of_one_connection_are_those_of_the_configuration() {
        for (name, known) in NAMES {
            let is_unseen = known.is_hop_by_hop() && *known != Known::Upgrade;
            assert_eq!(CONNECTION_FIELDS.contains(name), is_unseen, "{name}");
        }
    }

    #[test]
    fn what_only_resembles_a_known_name_is_none() {
        for name in [
            "",
            "h",
            "tx",
            "hosu",
            "hos",
            "hostt",
            "content_length",
            "x-forwarded-fox",
        ] {
            assert_eq!(Known::of(name.as_bytes()), Known::Other, "{name}");
        }
    }
}
