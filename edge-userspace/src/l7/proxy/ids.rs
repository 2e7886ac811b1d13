//! What a request is known by: here, at servers, and in traces.

use std::ops::Deref;

use super::{conn::Conn, front::Front, worker::Current};
use crate::l7::head::{Known, Request};

/// The id of a request: 128 bits in hexadecimal, if a proxy gave it also as a UUID (RFC 9562,
/// section 4), in its very text: by that it is looked for in the logs of both.
#[derive(Clone, Copy)]
pub(super) struct RequestId {
    text: [u8; UUID],
    len: usize,
}

/// Characters of a UUID.
const UUID: usize = 36;

impl RequestId {
    /// One that somebody gave.
    fn of(given: &[u8]) -> Option<Self> {
        let is_dash = |at| given.len() == UUID && matches!(at, 8 | 13 | 18 | 23);
        let is_right = |(at, byte): (usize, &u8)| match is_dash(at) {
            true => *byte == b'-',
            false => byte.is_ascii_hexdigit(),
        };
        let is_id = matches!(given.len(), 32 | UUID) && given.iter().enumerate().all(is_right);
        let mut text = [0; UUID];
        text.get_mut(..given.len())
            .filter(|_| is_id)?
            .copy_from_slice(given);
        let len = given.len();
        Some(Self { text, len })
    }

    fn new(digits: [u8; 32]) -> Self {
        let mut text = [0; UUID];
        for (to, digit) in text.iter_mut().zip(digits) {
            *to = digit;
        }
        Self { text, len: 32 }
    }
}

impl Deref for RequestId {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        self.text.get(..self.len).unwrap_or_default()
    }
}

/// The id of a request, and its trace (W3C Trace Context), hexadecimal.
#[derive(Clone, Copy)]
pub(super) struct Ids {
    pub(super) request: RequestId,
    pub(super) trace: [u8; 32],
    /// Flags of the trace that are known: sampled if it is recorded here, else as they came.
    pub(super) flags: [u8; 2],
    /// The span of the request, if it is recorded, and the one before it; else 0.
    pub(super) span: u64,
    pub(super) parent: u64,
    /// The span that the server hears of which is asked first.
    pub(super) server_span: u64,
    /// Whether the trace came with the request.
    pub(super) is_traced: bool,
}

impl Default for Ids {
    fn default() -> Self {
        Self {
            request: RequestId::new([b'0'; 32]),
            trace: [b'0'; 32],
            flags: *b"00",
            span: 0,
            parent: 0,
            server_span: 0,
            is_traced: false,
        }
    }
}

impl Ids {
    /// New ones, or those of a proxy that is trusted; a trace is anybody's.
    pub(super) fn new<F: Front>(
        conn: &Conn,
        current: &Current,
        front: &F,
        request: &Request,
    ) -> Self {
        let bytes = front.bytes();
        let fresh = || {
            let mut id = [0; 32];
            let random = [conn.worker.random(), conn.worker.random()];
            let nibbles = random
                .iter()
                .flat_map(|word| (0..16).map(move |i| (word >> (60 - 4 * i)) as usize & 15));
            for (to, nibble) in id.iter_mut().zip(nibbles) {
                *to = b"0123456789abcdef"[nibble];
            }
            id
        };
        let given = request.known(bytes, Known::XRequestId).next();
        let is_trusted = conn.is_trusted;
        let given = given.filter(|_| is_trusted).and_then(RequestId::of);
        let mut traces = request.known(bytes, Known::Traceparent);
        // Of two nobody knows which is meant, and a new one begins (W3C Trace Context, 3.2).
        let trace = traces.next().filter(|_| traces.next().is_none());
        let trace = trace.and_then(trace_of);
        let mut ids = Self {
            request: given.unwrap_or_else(|| RequestId::new(fresh())),
            trace: trace.map_or_else(fresh, |(trace, ..)| trace),
            flags: trace.map_or(*b"00", |(.., flags)| flags),
            span: 0,
            parent: 0,
            server_span: conn.worker.random() | 1,
            is_traced: trace.is_some(),
        };
        if let Some((_, permille)) = &current.snapshot.traces {
            // Whoever is trusted says what is recorded of its traces; else chance does.
            let is_recorded = match trace {
                Some((.., flags)) if is_trusted => is_sampled(flags),
                _ => ((u128::from(conn.worker.random()) * 1000) >> 64) < u128::from(*permille),
            };
            if is_recorded {
                ids.span = conn.worker.random() | 1;
                ids.parent = trace.map_or(0, |(_, parent, _)| parent);
                ids.flags = digits(value(ids.flags) | SAMPLED);
            }
        }
        ids
    }
}

/// The flags of a trace that are known (W3C Trace Context Level 2, 2.2.5): that it is sampled, and
/// that its id is random.
const SAMPLED: u8 = 1;
const KNOWN: u8 = SAMPLED | 2;

/// Whether the flags of a trace say that it is sampled.
fn is_sampled(flags: [u8; 2]) -> bool {
    value(flags) & SAMPLED != 0
}

/// What the last digit of flags says.
fn value([_, last]: [u8; 2]) -> u8 {
    char::from(last).to_digit(16).map_or(0, |digit| digit as u8)
}

/// Known flags as digits: those of which nobody knows what they mean are not passed on.
fn digits(flags: u8) -> [u8; 2] {
    [b'0', b'0' + (flags & KNOWN)]
}

/// The trace of a `traceparent`, the span before, and its known flags (W3C Trace Context, 3.2.2).
fn trace_of(text: &[u8]) -> Option<([u8; 32], u64, [u8; 2])> {
    let (version, rest) = text.split_first_chunk::<3>()?;
    let (trace, rest) = rest.split_first_chunk::<32>()?;
    // A dash, the span before, another dash.
    let (parent, rest) = rest.split_first_chunk::<18>()?;
    let (flags, rest) = rest.split_first_chunk::<2>()?;
    let is_hex = |digits: &[u8]| {
        digits
            .iter()
            .all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
    };
    let is_right = is_hex(&version[..2])
        && &version[..2] != b"ff"
        && version[2] == b'-'
        && is_hex(trace)
        && trace.iter().any(|b| *b != b'0')
        && parent.first() == Some(&b'-')
        && parent.last() == Some(&b'-')
        && is_hex(&parent[1..17])
        && is_hex(flags)
        // Later versions may have more.
        && (rest.is_empty() || (&version[..2] != b"00" && rest.first() == Some(&b'-')));
    let span = std::str::from_utf8(parent.get(1..17)?).ok()?;
    // Zero stands for none (W3C Trace Context, 3.2.2.4).
    let span = u64::from_str_radix(span, 16)
        .ok()
        .filter(|span| *span != 0)?;
    is_right.then_some((*trace, span, digits(value(*flags))))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_of_128_bits_stay_as_they_are_written() {
        for (given, is_id) in [
            ("0123456789abcdef0123456789ABCDEF", true),
            ("01234567-89ab-cdef-0123-456789ABCDEF", true),
            ("01234567-89ab-cdef-0123-456789abcdeg", false),
            ("012345678-9ab-cdef-0123-456789abcdef", false),
            ("0123456789abcdef-0123-456789abcdef--", false),
            ("0123456789abcdef0123456789abcde", false),
            ("0123456789abcdef0123456789abcdef0", false),
            ("0123456789abcdef0123456789abcdef0123", false),
            ("01234567-89ab-cdef-0123-456789abcd", false),
            ("", false),
        ] {
            let id = RequestId::of(given.as_bytes());
            let text = id.as_deref().map(<[u8]>::to_vec);
            assert_eq!(text, is_id.then(|| given.as_bytes().to_vec()), "{given}");
        }
    }

    #[test]
    fn a_trace_keeps_what_is_known_of_it() {
        const TRACE: &str = "0af7651916cd43dd8448eb211c80319c";
        const SPAN: &str = "b7ad6b7169203331";
        let of = |text: &str| {
            let (trace, span, flags) = trace_of(text.as_bytes())?;
            assert_eq!(trace, TRACE.as_bytes());
            assert_eq!(span, 0xb7ad_6b71_6920_3331);
            Some(String::from_utf8(flags.to_vec()).unwrap())
        };
        for (version, flags, want) in [
            ("00", "00", "00"),
            ("00", "01", "01"),
            ("00", "02", "02"),
            ("00", "ff", "03"),
            ("00", "f8", "00"),
            ("01", "0d-more", "01"),
        ] {
            let text = format!("{version}-{TRACE}-{SPAN}-{flags}");
            assert_eq!(of(&text).as_deref(), Some(want), "{text}");
        }
        for wrong in [
            format!("ff-{TRACE}-{SPAN}-01"),
            format!("00-{TRACE}-{SPAN}-01-more"),
            format!("00-{TRACE}-{SPAN}-0"),
            format!("00-{TRACE}-+7ad6b7169203331-01"),
            format!("00-{TRACE}-B7AD6B7169203331-01"),
            format!("00-{TRACE}-0000000000000000-01"),
            format!("00-{}-{SPAN}-01", "0".repeat(32)),
        ] {
            assert_eq!(of(&wrong), None, "{wrong}");
        }
    }
}
