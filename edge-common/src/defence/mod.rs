//! The flood defence: what both sides agree on, and its arithmetic.
//!
//! A *service* is what an operator protects: a name, thresholds, a mode. A
//! *target* is one address, protocol and port of a service; the daemon resolves
//! services to targets, the program finds the target of a packet in one look-up.
//! Whether a service is under attack is decided by the program alone, from one
//! word of the service: see [`Service::pressure`].

pub mod options;
pub mod reply;
pub mod tags;

use crate::{gcra::Limit, hash::reduce};

/// The most services.
pub const MAX_SERVICES: u32 = 4096;

/// Words of `PORTS`: a bit for each port of TCP services, of UDP services, and
/// for each that reflectors answer from.
pub const PORT_WORDS: u32 = 3 * (1 << 16) / 64;

/// A set of ports in `PORTS`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Ports {
    /// Of TCP services.
    Tcp = 0,
    /// Of UDP services.
    Udp = 1,
    /// From which reflectors answer.
    Reflectors = 2,
}

/// Word and bit of a port (host byte order) in `PORTS`.
#[inline(always)]
pub const fn port_bit(set: Ports, port: u16) -> (u32, u64) {
    let word = (set as u32) << 10 | (port as u32) >> 6;
    (word, 1 << (port & 63))
}

/// Kinds of ICMP and ICMPv6 messages that the host takes a limited number of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum IcmpKind {
    /// Echo requests.
    Echo = 0,
    /// Errors: unreachable, too big, time exceeded, parameter problem.
    Error = 1,
    /// All others, but for neighbour discovery and multicast listeners.
    Other = 2,
}

/// How many there are.
pub const ICMP_KINDS: usize = 3;

impl IcmpKind {
    /// All of them.
    pub const ALL: [Self; ICMP_KINDS] = [Self::Echo, Self::Error, Self::Other];

    /// The kind of a message; `None` for what the link cannot do without (RFC 4861,
    /// RFC 3810).
    #[inline(always)]
    pub const fn of(v6: bool, message: u8) -> Option<Self> {
        if v6 {
            match message {
                128 => Some(Self::Echo),
                1..=4 => Some(Self::Error),
                130..=137 | 143 => None,
                _ => Some(Self::Other),
            }
        } else {
            match message {
                8 => Some(Self::Echo),
                3 | 4 | 5 | 11 | 12 => Some(Self::Error),
                _ => Some(Self::Other),
            }
        }
    }

    /// The key in the configuration.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Echo => "echo",
            Self::Error => "errors",
            Self::Other => "other",
        }
    }
}

/// What heavy hitters are looked for among. Each is counted in a sketch of two
/// rows (Cormode and Muthukrishnan, "An Improved Data Stream Summary: The Count-Min
/// Sketch and its Applications", 2005) whose cells are TATs instead of counts: one
/// is over its limit when both of its cells are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Hitter {
    /// The source's /24 (IPv4) or /48 (IPv6).
    SourceNarrow = 0,
    /// The source's /16 or /32.
    SourceWide = 1,
    /// The destination address.
    Dest = 2,
    /// The destination's /24 or /48: carpet bombing.
    DestPrefix = 3,
}

/// How many there are.
pub const HITTER_KINDS: usize = 4;

/// Cells of a row of a sketch.
pub const SKETCH_CELLS: u32 = 8192;

/// Entries of `SKETCH` when it is used: half a MiB.
pub const SKETCH_WORDS: u32 = HITTER_KINDS as u32 * 2 * SKETCH_CELLS;

/// Of so many packets one is counted in the sketch, for that many.
pub const SKETCH_SAMPLE: u32 = 16;

impl Hitter {
    /// All of them.
    pub const ALL: [Self; HITTER_KINDS] = [
        Self::SourceNarrow,
        Self::SourceWide,
        Self::Dest,
        Self::DestPrefix,
    ];

    /// The key in the configuration.
    pub const fn name(self) -> &'static str {
        match self {
            Self::SourceNarrow => "source",
            Self::SourceWide => "source_wide",
            Self::Dest => "dest",
            Self::DestPrefix => "dest_prefix",
        }
    }

    /// Bits of the prefix.
    pub const fn bits(self, v6: bool) -> u8 {
        match (self, v6) {
            (Self::SourceNarrow | Self::DestPrefix, false) => 24,
            (Self::SourceNarrow | Self::DestPrefix, true) => 48,
            (Self::SourceWide, false) => 16,
            (Self::SourceWide, true) => 32,
            (Self::Dest, false) => 32,
            (Self::Dest, true) => 128,
        }
    }

    /// The two cells of a hash.
    #[inline(always)]
    pub const fn cells(self, hash: u64) -> (u32, u32) {
        let row = self as u32 * 2 * SKETCH_CELLS;
        (
            row + reduce(hash as u32, SKETCH_CELLS),
            row + SKETCH_CELLS + reduce((hash >> 32) as u32, SKETCH_CELLS),
        )
    }
}

/// When a service is defended. Stored as `u32`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(u32)]
pub enum When {
    /// Never.
    #[default]
    Off = 0,
    /// While the program finds it under attack.
    Auto = 1,
    /// At all times.
    Always = 2,
}

impl When {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Off, Self::Auto, Self::Always];

    /// The word for it in the configuration.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Off => "off",
            Self::Auto => "auto",
            Self::Always => "always",
        }
    }
}

/// A service, an entry of `SERVICES`: the first cache line is written by the
/// daemon, the second by the program.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Service {
    /// Handshakes a second that may stay incomplete without being an attack.
    pub incomplete: Limit,
    /// Packets a second from ports of reflectors (UDP).
    pub reflection: Limit,
    /// How long the defence goes on after the pressure fell, nanoseconds.
    pub hold_ns: u64,
    /// [`When`].
    pub when: u32,
    /// 1: nothing is dropped or answered, only counted.
    pub dry_run: u32,
    /// How many handshakes a completed one makes up for: 100 by the per cent
    /// that an honest crowd completes.
    pub credit: u32,
    /// Which service it is: a number that the daemon gives, so that the state of
    /// another one is never taken for its own.
    pub generation: u32,
    /// Fills the cache line.
    pub pad: u64,

    /// Incomplete handshakes as the TAT of [`Service::incomplete`], in
    /// [`crate::gcra::ticks`]: each SYN adds one, each completed handshake takes
    /// `credit` away.
    pub pressure: u64,
    /// The attack lasts until then at least: nanoseconds of the program's clock.
    /// In the past: there is none.
    pub attack_until: u64,
    /// When the last attack was found, likewise.
    pub attack_since: u64,
    /// TAT of [`Service::reflection`].
    pub reflected: u64,
    /// Fills the cache line.
    pub pad_state: [u64; 4],
}

const _: () = assert!(size_of::<Service>() == 128);

impl Service {
    /// A service that is never defended.
    pub const OFF: Self = Self {
        incomplete: Limit::NONE,
        reflection: Limit::NONE,
        hold_ns: 0,
        when: When::Off as u32,
        dry_run: 0,
        credit: 0,
        generation: 0,
        pad: 0,
        pressure: 0,
        attack_until: 0,
        attack_since: 0,
        reflected: 0,
        pad_state: [0; 4],
    };
}

/// Of so many segments without a SYN one is looked at while all is quiet; when it
/// belongs to no connection it counts as that many incomplete handshakes.
pub const SEGMENT_SAMPLE: u32 = 64;

/// Of so many slices of the time one is that of a source, in which some of its
/// segments are looked at: [`SEGMENT_SAMPLE`] in all.
pub const SEGMENT_SLICES: u32 = 16;

/// How far a service is from being under attack.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u32)]
pub enum Pressure {
    /// Nothing to see.
    Rest = 0,
    /// A quarter of what is tolerated: from here on completed handshakes count.
    Watch = 1,
    /// Half of it: an attack that is on goes on.
    High = 2,
    /// More than is tolerated: an attack.
    Over = 3,
}

/// The pressure that a TAT of `incomplete` at `now` (ticks) means.
#[inline(always)]
pub const fn pressure(incomplete: &Limit, tat: u64, now: u64) -> Pressure {
    let ahead = tat.saturating_sub(now);
    let tolerance = incomplete.tolerance();
    if ahead > tolerance {
        Pressure::Over
    } else if ahead > tolerance >> 1 {
        Pressure::High
    } else if ahead > tolerance >> 2 {
        Pressure::Watch
    } else {
        Pressure::Rest
    }
}

/// Key of `TARGETS`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(C)]
pub struct TargetKey {
    /// The address as read from the wire; IPv4 as [`v4_halves`].
    pub address: [u64; 2],
    /// Port, byte order of the wire.
    pub port: u16,
    /// Protocol number.
    pub proto: u8,
    /// Zero.
    pub pad: [u8; 5],
}

const _: () = assert!(size_of::<TargetKey>() == 24);

/// An IPv4 address (as read from the wire) in the place of an IPv6 one:
/// IPv4-mapped (RFC 4291, 2.5.5.2).
#[inline(always)]
pub const fn v4_halves(address: u32) -> [u64; 2] {
    // In memory: two zero bytes, two of ones, the address.
    let [a, b, c, d] = address.to_ne_bytes();
    [0, u64::from_ne_bytes([0, 0, 0xff, 0xff, a, b, c, d])]
}

/// The service answers itself: SYN cookies.
pub const TARGET_LOCAL: u8 = 0;
/// It is forwarded, and answers do not come by here: the challenge.
pub const TARGET_FORWARDED: u8 = 1;

/// All ports of an address that are of no service, under port 0: what belongs to
/// no connection is dropped under attack.
pub const TARGET_REST: u8 = 2;
/// No service, but an address that packets leave with by NAT, under port 0 and
/// [`SOURCE_PROTO`]: `service` is its number.
pub const TARGET_SOURCE: u8 = 3;
/// As [`TARGET_LOCAL`], where listeners bound to several interfaces share the address
/// and port: which one gets a SYN is known only when it is looked up, so that each marks its
/// own.
pub const TARGET_BOUND: u8 = 4;
/// See [`TARGET_SOURCE`].
pub const SOURCE_PROTO: u8 = 255;

/// [`Target::wscale`] of a listener whose window scale is not known yet: its
/// SYNs are left to the kernel.
pub const WSCALE_UNKNOWN: u8 = 0xff;

/// An address and port of a service, an entry of `TARGETS`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct Target {
    /// Index into `SERVICES`.
    pub service: u32,
    /// Maximum segment size to announce.
    pub mss: u16,
    /// Window scale of the listener, 0 to 14, or [`WSCALE_UNKNOWN`].
    pub wscale: u8,
    /// [`TARGET_LOCAL`] or another of these.
    pub kind: u8,
    /// Written by the program: when it last marked the listener, nanoseconds of its
    /// clock; 0: never.
    pub marked_at: u64,
}

const _: () = assert!(size_of::<Target>() == 16);

/// Between two marks of a listener, nanoseconds.
pub const MARK_EVERY_NS: u64 = 250_000_000;

/// For how long a mark counts, nanoseconds: a listener takes raw cookies for two
/// minutes after it was marked (`tcp_synq_no_recent_overflow`), and the client has
/// to answer in that time.
pub const MARK_LASTS_NS: u64 = 100_000_000_000;

/// Entries of `ATTEMPTS` when the defence is on, see [`tags::place`]: half a MiB.
pub const ATTEMPTS: u32 = 1 << 16;

/// Entries of `HANDSHAKES` when the defence is on, likewise.
pub const HANDSHAKES: u32 = 1 << 16;

/// Words of `DEFENCE`, which belong to no service.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum DefenceWord {
    /// Until then (nanoseconds) some service is watched or attacked, and TCP
    /// packets that are no SYN are looked at.
    WatchUntil = 0,
    /// TAT of the SYNs to closed ports that are left to the kernel under attack.
    Closed = 1,
    /// Until then some prefix or destination is over its limit.
    HittersUntil = 2,
    /// TAT of [`IcmpKind::Echo`]; the other kinds follow.
    Icmp = 3,
    /// TAT of pings of balanced services that are answered.
    VipEcho = 6,
    /// TAT of messages that a packet for a backend is too big.
    TooBig = 7,
}

/// Entries of `DEFENCE`.
pub const DEFENCE_WORDS: u32 = 8;

macro_rules! service_counters {
    ($( $variant:ident = $name:literal, $sentence:literal; )*) => {
        /// Indices of [`ServiceCounters`].
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        #[repr(usize)]
        pub enum ServiceCounter {
            $( #[doc = $sentence] $variant, )*
        }

        impl ServiceCounter {
            /// Every one, in the order of its index.
            pub const ALL: &'static [Self] = &[ $( Self::$variant, )* ];

            /// The word for it in metrics and on the command line.
            pub const fn name(self) -> &'static str {
                match self { $( Self::$variant => $name, )* }
            }

            /// One sentence for a person.
            pub const fn sentence(self) -> &'static str {
                match self { $( Self::$variant => $sentence, )* }
            }
        }
    };
}

service_counters! {
    Syns = "syns", "SYNs that came for the service.";
    Completed = "completed", "Handshakes that were completed while the service was watched.";
    CookiesSent = "cookies_sent", "SYNs answered with a cookie.";
    CookiesValid = "cookies_valid", "Handshakes completed with a valid cookie.";
    CookiesInvalid = "cookies_invalid", "Acknowledgements without a valid cookie.";
    Challenges = "challenges", "Challenges sent to sources that were not verified.";
    Verified = "verified", "Sources that answered a challenge.";
    KnownSyns = "known_syns", "SYNs of verified sources.";
    OutOfState = "out_of_state", "TCP packets that belong to no connection.";
    Closed = "closed", "SYNs for ports on which nothing listens.";
    Reflected = "reflected", "UDP packets from ports of reflectors, over the limit.";
    Marked = "marked", "Times that a listener was found and told to take cookies.";
    Unmarked = "unmarked", "Times that a listener refused to be told.";
}

/// Entries of [`ServiceCounters`]: a power of two, so that a mask bounds the index.
pub const SERVICE_COUNTERS: usize = 16;

const _: () = assert!(ServiceCounter::ALL.len() <= SERVICE_COUNTERS);

/// What became of a service's packets, an entry of the per-CPU `SERVICE_COUNTERS`.
pub type ServiceCounters = [u64; SERVICE_COUNTERS];

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gcra::ticks;

    const SECOND: u64 = 1_000_000_000;

    #[test]
    fn ports_have_bits_of_their_own() {
        use std::collections::HashSet;
        let mut seen = HashSet::new();
        for set in [Ports::Tcp, Ports::Udp, Ports::Reflectors] {
            for port in [0, 1, 63, 64, 80, 443, 65_535] {
                let (word, bit) = port_bit(set, port);
                assert!(word < PORT_WORDS && seen.insert((word, bit)));
            }
        }
    }

    #[test]
    fn cells_lie_in_rows_of_their_own() {
        let mut last = 0;
        for (i, hitter) in Hitter::ALL.into_iter().enumerate() {
            assert_eq!(hitter as usize, i);
            for hash in [0, u64::MAX, 0x1234_5678_9abc_def0] {
                let (a, b) = hitter.cells(hash);
                assert!(a >= last && b >= a.max(last + SKETCH_CELLS) && b < SKETCH_WORDS);
                assert!(a < last + SKETCH_CELLS && b < last + 2 * SKETCH_CELLS);
            }
            last += 2 * SKETCH_CELLS;
        }
        assert_eq!(last, SKETCH_WORDS);
    }

    #[test]
    fn neighbour_discovery_is_never_limited() {
        for message in 133..=137 {
            assert_eq!(IcmpKind::of(true, message), None);
        }
        for (v6, message, kind) in [
            (false, 8, IcmpKind::Echo),
            (false, 3, IcmpKind::Error),
            (false, 0, IcmpKind::Other),
            (true, 128, IcmpKind::Echo),
            (true, 2, IcmpKind::Error),
            (true, 129, IcmpKind::Other),
        ] {
            assert_eq!(IcmpKind::of(v6, message), Some(kind));
        }
    }

    #[test]
    fn ipv4_is_mapped() {
        let address = u32::from_ne_bytes([192, 0, 2, 1]);
        let bytes: std::vec::Vec<u8> = v4_halves(address)
            .iter()
            .flat_map(|h| h.to_ne_bytes())
            .collect();
        let mapped: std::net::Ipv6Addr = "::ffff:192.0.2.1".parse().unwrap();
        assert_eq!(bytes, mapped.octets());
    }

    #[test]
    fn handshakes_that_complete_keep_the_pressure_low() {
        let limit = Limit::per_second(1000, 2000).unwrap();
        let (mut tat, mut worst) = (0, Pressure::Rest);
        // A crowd of 50,000 connections a second that all complete.
        for i in 0..50_000u64 {
            let now = ticks(SECOND + i * 20_000);
            tat = limit.arrival(tat, now, 1);
            worst = worst.max(pressure(&limit, tat, now));
            tat = limit.refund(tat, 2);
        }
        assert_eq!(worst, Pressure::Rest);
    }

    #[test]
    fn handshakes_that_do_not_complete_are_an_attack_within_the_burst() {
        let limit = Limit::per_second(1000, 2000).unwrap();
        let (mut tat, mut n) = (0, 0);
        let now = ticks(SECOND);
        let mut seen = std::vec::Vec::new();
        while pressure(&limit, tat, now) != Pressure::Over {
            tat = limit.arrival(tat, now, 1);
            n += 1;
            let p = pressure(&limit, tat, now);
            if seen.last() != Some(&p) {
                seen.push(p);
            }
        }
        assert_eq!(n, 2001);
        assert_eq!(
            seen,
            [
                Pressure::Rest,
                Pressure::Watch,
                Pressure::High,
                Pressure::Over
            ]
        );
    }
}
