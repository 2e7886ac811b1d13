//! The contract between the XDP program and the daemon: the read-only
//! configuration, the maps and the records in them.
//!
//! Everything is `#[repr(C)]` without padding, so that a value can be written
//! and compared as bytes. A change of any layout raises [`ABI_VERSION`], which
//! is part of the directory in which maps are pinned: tables of another
//! version are never taken over.

use crate::{
    defence::{HITTER_KINDS, ICMP_KINDS},
    gcra::Limit,
    hash::Seed,
    lease::Lease,
    reason::Reason,
};

/// Version of every layout in this crate.
pub const ABI_VERSION: u32 = 6;

/// The most interfaces one daemon serves; each has its own counters.
pub const MAX_INTERFACES: u32 = 32;

/// The most limit profiles: the default one and the overrides.
pub const MAX_PROFILES: usize = 64;

/// Bytes of a packet in an event, at the most.
pub const SAMPLE_BYTES: usize = 128;

/// Names of the maps, as the program defines them and as they are pinned.
pub mod maps {
    /// Per-CPU array of [`super::CounterCell`]; index by [`super::counter_index`].
    pub const COUNTERS: &str = "COUNTERS";
    /// Per-CPU array of `u64`, index [`super::TableStat`].
    pub const STATS: &str = "STATS";
    /// Array of `u64` TAT words, one a [`crate::reason::Reason`]: the budget of samples.
    pub const SAMPLE_BUDGET: &str = "SAMPLE_BUDGET";
    /// Ring buffer of [`super::Event`].
    pub const EVENTS: &str = "EVENTS";
    /// Array of [`crate::table::Bucket4`], mappable.
    pub const HOSTS4: &str = "HOSTS4";
    /// Array of `u64`, mappable: the filter before `HOSTS4`.
    pub const HOSTS4_FILTER: &str = "HOSTS4_FILTER";
    /// Array of [`crate::table::BucketW`], mappable.
    pub const WIDE: &str = "WIDE";
    /// Array of `u64`, mappable: the filter before the IPv6 hosts of `WIDE`.
    pub const HOSTS6_FILTER: &str = "HOSTS6_FILTER";
    /// Array of `u64`, mappable: the filter before the prefixes of `WIDE`.
    pub const PREFIX_FILTER: &str = "PREFIX_FILTER";
    /// Array of `u64`, mappable: see [`crate::table::bitmap24`].
    pub const BITMAP24: &str = "BITMAP24";
    /// Array of `u64`, mappable: IPv4 lengths in use by first 16 bits.
    pub const LENGTHS4: &str = "LENGTHS4";
    /// Array of `u64`, mappable: IPv6 lengths 1 to 32 in use by first 16 bits.
    pub const LENGTHS6: &str = "LENGTHS6";
    /// Array of [`crate::table::LongLengths`], mappable.
    pub const LENGTHS6_LONG: &str = "LENGTHS6_LONG";
    /// Array of [`super::LimiterBucket`], mappable.
    pub const LIMITER: &str = "LIMITER";
    /// Array of one `u64`: what must be added to the program's clock; set by
    /// running [`super::CLOCK_PROGRAM`]. The section of the object that holds the
    /// program's only variable: such a map is read at a fixed address, without a
    /// look-up. Each load has its own, and it is never pinned: the loader writes
    /// zeros into a section's map whenever it opens one.
    pub const CLOCK: &str = ".bss";
    /// Hash from IPv4 address (as on the wire) to [`super::MacAddr`].
    pub const ARP_BINDINGS: &str = "ARP_BINDINGS";
    /// Array of `u64`, mappable: see [`crate::defence::port_bit`].
    pub const PORTS: &str = "PORTS";
    /// Hash from [`crate::defence::TargetKey`] to [`crate::defence::Target`].
    pub const TARGETS: &str = "TARGETS";
    /// Array of [`crate::defence::Service`], mappable.
    pub const SERVICES: &str = "SERVICES";
    /// Per-CPU array of [`crate::defence::ServiceCounters`], by service.
    pub const SERVICE_COUNTERS: &str = "SERVICE_COUNTERS";
    /// Array of `u64`, mappable, index [`crate::defence::DefenceWord`].
    pub const DEFENCE: &str = "DEFENCE";
    /// Array of [`crate::defence::tags::TagBucket`], mappable: sources that
    /// answered a challenge.
    pub const VERIFIED: &str = "VERIFIED";
    /// Array of `u64`: SYNs that were challenged, [`crate::defence::tags::attempt`].
    pub const ATTEMPTS: &str = "ATTEMPTS";
    /// Array of `u64`: SYNs of services that are watched, by [`crate::defence::tags::word`].
    pub const HANDSHAKES: &str = "HANDSHAKES";
    /// Array of `u64` TATs: see [`crate::defence::Hitter`].
    pub const SKETCH: &str = "SKETCH";

    /// Array of [`crate::balance::Balance`] words, mappable, index as in `SERVICES`.
    pub const BALANCES: &str = "BALANCES";
    /// Array of `u64`, mappable: rings of [`crate::balance::ring_words`] each.
    pub const RINGS: &str = "RINGS";
    /// Array of [`crate::balance::Backend`], mappable, by number.
    pub const BACKENDS: &str = "BACKENDS";
    /// Per-CPU array of [`super::Counter`]: what went to a backend, by number.
    pub const BACKEND_COUNTERS: &str = "BACKEND_COUNTERS";
    /// Array of [`crate::balance::FlowBucket`], mappable.
    pub const FLOWS: &str = "FLOWS";
    /// Array of `[u64; 2]`, mappable: bits of the addresses of services, and of those that
    /// packets leave with by NAT; see [`crate::balance::vip_bit`].
    pub const VIPS: &str = "VIPS";
    /// Array of [`crate::nat::Source`], mappable, by number.
    pub const SOURCES: &str = "SOURCES";
    /// Array of [`crate::nat::PortSlot`], mappable, index [`crate::nat::index`].
    pub const PORTS_IN_USE: &str = "PORTS_IN_USE";
    /// Per-CPU array of [`crate::nat::Signals`], by number of the backend.
    pub const BACKEND_SIGNALS: &str = "BACKEND_SIGNALS";
    /// Hash from [`crate::quic::IdKey`] to the number of a backend, `u32`.
    pub const SERVER_IDS: &str = "SERVER_IDS";
    /// Array of programs, index [`super::Stage`]. Each load has its own; what becomes
    /// of it when the daemon dies, see the pins.
    pub const STAGES: &str = "STAGES";

    /// All of them that the loads of several interfaces share.
    pub const ALL: &[&str] = &[
        COUNTERS,
        STATS,
        SAMPLE_BUDGET,
        EVENTS,
        HOSTS4,
        HOSTS4_FILTER,
        WIDE,
        HOSTS6_FILTER,
        PREFIX_FILTER,
        BITMAP24,
        LENGTHS4,
        LENGTHS6,
        LENGTHS6_LONG,
        LIMITER,
        ARP_BINDINGS,
        PORTS,
        TARGETS,
        SERVICES,
        SERVICE_COUNTERS,
        DEFENCE,
        VERIFIED,
        ATTEMPTS,
        HANDSHAKES,
        SKETCH,
        BALANCES,
        RINGS,
        BACKENDS,
        BACKEND_COUNTERS,
        FLOWS,
        VIPS,
        SOURCES,
        PORTS_IN_USE,
        BACKEND_SIGNALS,
        SERVER_IDS,
    ];
}

/// Name of the XDP program in the object.
pub const PROGRAM: &str = "edge_xdp";

/// The programs that the main one goes on with, by tail calls.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Stage {
    /// The flood defence.
    Defence = 0,
    /// The balancer.
    Balance = 1,
    /// The balancer's NAT.
    Nat = 2,
}

/// Entries of `STAGES`.
pub const STAGES: u32 = 3;

impl Stage {
    /// All of them.
    pub const ALL: [Self; STAGES as usize] = [Self::Defence, Self::Balance, Self::Nat];

    /// Name of the program in the object.
    pub const fn program(self) -> &'static str {
        match self {
            Self::Defence => "edge_defence",
            Self::Balance => "edge_balance",
            Self::Nat => "edge_nat",
        }
    }

    /// Whether a configuration has anything for it to do.
    pub const fn is_on(self, config: &Config) -> bool {
        match self {
            Self::Defence => {
                config.defended | config.reflection | config.icmp_floods | config.hitters_mode != 0
            }
            Self::Balance => config.rings != 0,
            Self::Nat => config.rings != 0 && config.snat != 0,
        }
    }
}

/// Name of the program that sets the clock: to be run once by
/// `BPF_PROG_TEST_RUN` after loading and before attaching, and again now and
/// then. The main program counts ticks (`bpf_jiffies64`), which costs nothing
/// where `bpf_ktime_get_coarse_ns` is a call into the kernel; this one finds
/// what has to be added to make it `CLOCK_MONOTONIC`.
pub const CLOCK_PROGRAM: &str = "edge_clock";
/// Symbol of the read-only [`Config`].
pub const CONFIG_SYMBOL: &str = "CONFIG";
/// Symbol of the read-only `[Profile; MAX_PROFILES]`.
pub const PROFILES_SYMBOL: &str = "PROFILES";

/// What a check does when it finds something. Stored as `u32`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(u32)]
pub enum Mode {
    /// The check is not made, and costs nothing.
    #[default]
    Off = 0,
    /// The packet is counted as one that would have been dropped, and goes on.
    DryRun = 1,
    /// The packet is dropped.
    Enforce = 2,
}

impl Mode {
    /// All modes.
    pub const ALL: [Self; 3] = [Self::Off, Self::DryRun, Self::Enforce];

    /// The word for it in the configuration and on the command line.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Off => "off",
            Self::DryRun => "dry-run",
            Self::Enforce => "enforce",
        }
    }
}

/// What happens to fragments when the fragment check is on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(u32)]
pub enum FragmentPolicy {
    /// Drop only tiny first fragments and such as start inside the transport header.
    #[default]
    DropRisky = 0,
    /// Drop every fragment.
    DropAll = 1,
}

impl FragmentPolicy {
    /// All policies.
    pub const ALL: [Self; 2] = [Self::DropRisky, Self::DropAll];

    /// The word for it in the configuration.
    pub const fn name(self) -> &'static str {
        match self {
            Self::DropRisky => "drop-risky",
            Self::DropAll => "drop-all",
        }
    }
}

/// Indices of the limits in [`Profile::limits`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(usize)]
pub enum LimitKind {
    /// Packets a second.
    Packets = 0,
    /// Bytes of frames a second.
    Bytes = 1,
    /// TCP SYNs (without ACK) a second.
    Syn = 2,
    /// UDP packets a second.
    Udp = 3,
    /// ICMP and ICMPv6 packets a second.
    Icmp = 4,
}

/// How many kinds of limit there are.
pub const LIMIT_KINDS: usize = 5;

impl LimitKind {
    /// All kinds in the order of their index.
    pub const ALL: [Self; LIMIT_KINDS] =
        [Self::Packets, Self::Bytes, Self::Syn, Self::Udp, Self::Icmp];

    /// The limit as a bit of a set.
    #[inline(always)]
    pub const fn bit(self) -> u32 {
        1 << self as u32
    }

    /// The reason a packet over this limit ends with.
    #[inline(always)]
    pub const fn reason(self) -> Reason {
        match self {
            Self::Packets => Reason::LimitPackets,
            Self::Bytes => Reason::LimitBytes,
            Self::Syn => Reason::LimitSyn,
            Self::Udp => Reason::LimitUdp,
            Self::Icmp => Reason::LimitIcmp,
        }
    }

    /// The key of the limit in the configuration.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Packets => "packets",
            Self::Bytes => "bytes",
            Self::Syn => "syn",
            Self::Udp => "udp",
            Self::Icmp => "icmp",
        }
    }
}

/// Entries of [`Profile::limits`]: a power of two, so that a mask bounds the index.
pub const LIMIT_SLOTS: usize = 8;

/// The limits of one class of sources.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Profile {
    /// By [`LimitKind`]; what lies behind the last kind is not used.
    pub limits: [Limit; LIMIT_SLOTS],
}

impl Profile {
    /// A profile of the limits by [`LimitKind`].
    pub const fn new(limits: [Limit; LIMIT_KINDS]) -> Self {
        let [a, b, c, d, e] = limits;
        let none = Limit::NONE;
        Self {
            limits: [a, b, c, d, e, none, none, none],
        }
    }
}

/// Everything the program reads from its configuration. It is read-only and
/// known when the program is loaded, so that the verifier removes every stage
/// that is off. A new configuration is a new load of the program.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct Config {
    /// Secret of the hashes.
    pub seed: Seed,
    /// ICMP messages a second of the whole host, by [`crate::defence::IcmpKind`].
    pub icmp: [Limit; ICMP_KINDS],
    /// Packets a second of a prefix or destination, by [`crate::defence::Hitter`].
    pub hitters: [Limit; HITTER_KINDS],
    /// Budget of samples a second of each reason that drops or would have.
    pub sample: Limit,
    /// Nanoseconds in a tick of the kernel's clock (`clock_getres` of
    /// `CLOCK_MONOTONIC_COARSE`): the step of the program's clock.
    pub tick_ns: u64,
    /// Mask of the upper half of an IPv6 source that shares one limit.
    pub limit_mask6_hi: u64,
    /// Mask of the lower half, likewise.
    pub limit_mask6_lo: u64,
    /// Mask of an IPv4 source that shares one limit, in the byte order of the wire.
    pub limit_mask4: u32,
    /// [`Mode`] of the header checks.
    pub malformed: u32,
    /// [`Mode`] of impossible TCP flags.
    pub tcp_flags: u32,
    /// [`Mode`] of LAND.
    pub land: u32,
    /// [`Mode`] of bogon sources.
    pub bogons: u32,
    /// [`Mode`] of fragments.
    pub fragments: u32,
    /// [`FragmentPolicy`].
    pub fragment_policy: u32,
    /// [`Mode`] of the ARP guard.
    pub arp_guard: u32,
    /// [`Mode`] of the blacklist.
    pub blacklist: u32,
    /// The limits that are on, each as [`LimitKind::bit`].
    pub limits_on: u32,
    /// Those of them that are enforced and not in dry run, likewise.
    pub limits_enforced: u32,
    /// Which block of counters this load of the program uses.
    pub interface: u32,
    /// Entries of `HOSTS4`.
    pub hosts4_buckets: u32,
    /// Entries of `HOSTS4_FILTER`.
    pub hosts4_filter_words: u32,
    /// Entries of `WIDE`.
    pub wide_buckets: u32,
    /// Entries of `HOSTS6_FILTER`.
    pub hosts6_filter_words: u32,
    /// Entries of `PREFIX_FILTER`.
    pub prefix_filter_words: u32,
    /// Entries of `LENGTHS6_LONG`.
    pub long_lengths: u32,
    /// Entries of `LIMITER`.
    pub limiter_buckets: u32,
    /// Entries of `SERVICES`.
    pub services: u32,
    /// 1 when some service is defended at all times.
    pub always_defended: u32,
    /// What the host's TCP grants: [`crate::defence::reply::feature`].
    pub tcp_features: u32,
    /// TTL or hop limit of replies.
    pub reply_ttl: u32,
    /// Window of a SYN-ACK, at most 65,535.
    pub reply_window: u32,
    /// Entries of `VERIFIED`.
    pub verified_buckets: u32,
    /// Steps of [`crate::defence::tags::VERIFIED_SHIFT`] for which a source stays
    /// verified, at most 65,535.
    pub verified_ttl: u32,
    /// [`Mode`] of [`Config::icmp`].
    pub icmp_floods: u32,
    /// [`Mode`] of [`Config::hitters`].
    pub hitters_mode: u32,
    /// [`Mode`] of the limits on reflectors.
    pub reflection: u32,
    /// 1 when there are [`crate::defence::TARGET_REST`] targets.
    pub rest: u32,
    /// Rings in `RINGS`; 0 turns the balancer off.
    pub rings: u32,
    /// Slots of each: a prime.
    pub slots: u32,
    /// Entries of `BACKENDS`.
    pub backends: u32,
    /// Entries of `FLOWS`.
    pub flow_buckets: u32,
    /// Steps of [`crate::balance::AGE_SHIFT`] that an established TCP flow is kept without
    /// packets.
    pub tcp_idle: u32,
    /// The same for other flows.
    pub udp_idle: u32,
    /// 1 when fragments for balanced services are dropped.
    pub drop_fragments: u32,
    /// 1 when the segment size of SYNs is made to fit the way to the backend.
    pub clamp_mss: u32,
    /// UDP port of GUE.
    pub gue_port: u32,
    /// Entries of `SOURCES`; 0 turns NAT off.
    pub snat: u32,
    /// The most bytes of an IP packet on the way to clients, with NAT.
    pub client_mtu: u32,
    /// Entries of `SERVER_IDS`; 0: no service is balanced by connection ids of QUIC.
    pub server_ids: u32,
    /// 1 when some service is defended, at all times or during attacks: else nothing is asked
    /// of TCP.
    pub defended: u32,
    /// [`ABI_VERSION`].
    pub abi_version: u32,
    /// Secret of the choice of backends, which a fleet may share.
    pub balance_seed: Seed,
}

const _: () = assert!(
    size_of::<Config>() == 2 * 4 * 8 + (ICMP_KINDS + HITTER_KINDS + 1) * 16 + 3 * 8 + 44 * 4
);

/// Packets and bytes of one reason on one CPU.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Counter {
    /// Packets.
    pub packets: u64,
    /// Bytes of whole frames, from the Ethernet header on.
    pub bytes: u64,
}

/// An entry of `COUNTERS`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct CounterCell {
    /// What was counted.
    pub counter: Counter,
    /// No sample of the reason is due before this time of the program's clock,
    /// in nanoseconds: what keeps floods away from the budget, which is shared
    /// by all CPUs.
    pub quiet_until: u64,
    /// Fills half a cache line.
    pub pad: u64,
}

const _: () = assert!(size_of::<CounterCell>() == 32);

/// Entries of `COUNTERS`: for each interface a block of final reasons and a
/// block of reasons that dry runs would have dropped for.
pub const COUNTER_ENTRIES: u32 = MAX_INTERFACES * 2 * Reason::COUNT as u32;

/// Index into `COUNTERS`.
#[inline(always)]
pub const fn counter_index(interface: u32, would_drop: bool, reason: Reason) -> u32 {
    (interface * 2 + would_drop as u32) * Reason::COUNT as u32 + reason.index()
}

/// Indices into `STATS`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum TableStat {
    /// Limiter entries taken for the first time: the fill.
    LimiterClaimed = 0,
    /// Limiter entries taken over from an idle source, losing nothing.
    LimiterRecycled = 1,
    /// Limiter entries taken from a source whose limit was still in use.
    LimiterEvicted = 2,
    /// Packets denied because other CPUs won every compare-and-swap.
    LimiterContended = 3,
    /// Samples lost because the ring buffer was full.
    EventsLost = 4,
    /// Packets that went on without a program of `STAGES`, which was missing.
    StageMissing = 5,
    /// Packets of flows that were in the table.
    FlowHits = 6,
    /// Packets of flows that were not.
    FlowMisses = 7,
    /// Flows that took a free place, or that of one that was over (with NAT: a port).
    FlowsInserted = 8,
    /// Flows that took the place of a younger one than an established one.
    FlowsReplaced = 9,
    /// Flows that found no place, and are chosen for by the ring alone; those with NAT
    /// found no port.
    FlowsRefused = 10,
    /// Packets that went to the backend that their connection id names.
    QuicRouted = 11,
    /// Packets whose connection id names a server that is none of the service's.
    QuicUnknownId = 12,
}

/// Entries of `STATS`.
pub const STATS_ENTRIES: u32 = 13;

/// The limits' state of one source. All TATs in the past: idle, and free to
/// be taken over.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct LimiterSlot {
    /// Keyed 64-bit hash of the source under the limit's mask; 0: never used.
    pub tag: u64,
    /// TATs by [`LimitKind`], in [`crate::gcra::ticks`].
    pub tat: [u64; LIMIT_KINDS],
    /// What a CPU has charged ahead; 0, as programs before it leave it, is nothing.
    pub lease: Lease,
    /// Fills the cache line.
    pub pad: u64,
}

/// Sources that share a bucket of the limiter.
pub const LIMITER_WAYS: usize = 2;

/// A bucket of `LIMITER`: two neighbouring cache lines.
pub type LimiterBucket = [LimiterSlot; LIMITER_WAYS];

const _: () = assert!(size_of::<LimiterBucket>() == 128);

/// A MAC address, padded to a whole word.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct MacAddr {
    /// The six octets, then two zeros.
    pub octets: [u8; 8],
}

/// A sampled packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct Event {
    /// `CLOCK_MONOTONIC` (coarse), nanoseconds.
    pub time_ns: u64,
    /// Kernel index of the interface it came in on.
    pub ifindex: u32,
    /// Length of the frame in bytes.
    pub frame_len: u32,
    /// [`Reason::index`].
    pub reason: u16,
    /// 1 when a dry run would have dropped it, 0 when it ended with the reason.
    pub would_drop: u16,
    /// Valid bytes of `data`.
    pub captured: u32,
    /// The first bytes of the frame.
    pub data: [u8; SAMPLE_BYTES],
}

const _: () = assert!(size_of::<Event>() == 24 + SAMPLE_BYTES);

impl Event {
    /// An event from a record of the ring buffer; `None` when it is too short
    /// or its fields are out of range.
    pub fn read(record: &[u8]) -> Option<Self> {
        let (time_ns, rest) = record.split_first_chunk::<8>()?;
        let (ifindex, rest) = rest.split_first_chunk::<4>()?;
        let (frame_len, rest) = rest.split_first_chunk::<4>()?;
        let (reason, rest) = rest.split_first_chunk::<2>()?;
        let (would_drop, rest) = rest.split_first_chunk::<2>()?;
        let (captured, rest) = rest.split_first_chunk::<4>()?;
        let (data, _) = rest.split_first_chunk::<SAMPLE_BYTES>()?;
        let event = Self {
            time_ns: u64::from_ne_bytes(*time_ns),
            ifindex: u32::from_ne_bytes(*ifindex),
            frame_len: u32::from_ne_bytes(*frame_len),
            reason: u16::from_ne_bytes(*reason),
            would_drop: u16::from_ne_bytes(*would_drop),
            captured: u32::from_ne_bytes(*captured),
            data: *data,
        };
        let valid = Reason::from_index(u32::from(event.reason)).is_some()
            && event.captured as usize <= SAMPLE_BYTES;
        valid.then_some(event)
    }

    /// The captured bytes.
    pub fn bytes(&self) -> &[u8] {
        self.data
            .get(..self.captured as usize)
            .unwrap_or(&self.data)
    }
}

impl Config {
    /// Sets the mode of a limit.
    #[must_use]
    pub const fn with_limit(mut self, kind: LimitKind, mode: Mode) -> Self {
        self.limits_on &= !kind.bit();
        self.limits_enforced &= !kind.bit();
        match mode {
            Mode::Off => {}
            Mode::DryRun => self.limits_on |= kind.bit(),
            Mode::Enforce => {
                self.limits_on |= kind.bit();
                self.limits_enforced |= kind.bit();
            }
        }
        self
    }

    /// Sets the mode of all limits.
    #[must_use]
    pub const fn with_limits(mut self, mode: Mode) -> Self {
        let mut i = 0;
        while i < LIMIT_KINDS {
            self = self.with_limit(LimitKind::ALL[i], mode);
            i += 1;
        }
        self
    }

    /// Everything off, tables of one entry. What the object holds before the
    /// daemon overrides it.
    pub const OFF: Self = Self {
        seed: Seed::new([0; 4]),
        icmp: [Limit::NONE; ICMP_KINDS],
        hitters: [Limit::NONE; HITTER_KINDS],
        sample: Limit::NONE,
        tick_ns: 0,
        limit_mask6_hi: u64::MAX,
        limit_mask6_lo: 0,
        limit_mask4: u32::MAX,
        malformed: 0,
        tcp_flags: 0,
        land: 0,
        bogons: 0,
        fragments: 0,
        fragment_policy: 0,
        arp_guard: 0,
        blacklist: 0,
        limits_on: 0,
        limits_enforced: 0,
        interface: 0,
        hosts4_buckets: 1,
        hosts4_filter_words: 1,
        wide_buckets: 1,
        hosts6_filter_words: 1,
        prefix_filter_words: 1,
        long_lengths: 1,
        limiter_buckets: 1,
        services: 0,
        always_defended: 0,
        tcp_features: 0,
        reply_ttl: 64,
        reply_window: 65_535,
        verified_buckets: 1,
        verified_ttl: 0,
        icmp_floods: 0,
        hitters_mode: 0,
        reflection: 0,
        rest: 0,
        rings: 0,
        slots: 0,
        backends: 0,
        flow_buckets: 0,
        tcp_idle: 0,
        udp_idle: 0,
        drop_fragments: 0,
        clamp_mss: 0,
        gue_port: crate::tunnel::GUE_PORT as u32,
        snat: 0,
        client_mtu: 1500,
        server_ids: 0,
        defended: 0,
        abi_version: ABI_VERSION,
        balance_seed: Seed::new([0; 4]),
    };
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{collections::HashSet, vec};

    #[test]
    fn counters_do_not_overlap() {
        let mut seen = HashSet::new();
        for i in 0..MAX_INTERFACES {
            for would in [false, true] {
                for &r in Reason::ALL {
                    let at = counter_index(i, would, r);
                    assert!(at < COUNTER_ENTRIES && seen.insert(at));
                }
            }
        }
        assert_eq!(seen.len(), COUNTER_ENTRIES as usize);
    }

    #[test]
    fn events_are_read_with_suspicion() {
        let mut record = vec![0; size_of::<Event>()];
        record[20..24].copy_from_slice(&64u32.to_ne_bytes());
        assert_eq!(Event::read(&record).unwrap().bytes().len(), 64);
        assert_eq!(Event::read(&record[1..]), None);
        record[16..18].copy_from_slice(&u16::MAX.to_ne_bytes());
        assert_eq!(Event::read(&record), None);
        record[16..18].copy_from_slice(&0u16.to_ne_bytes());
        record[20..24].copy_from_slice(&129u32.to_ne_bytes());
        assert_eq!(Event::read(&record), None);
    }

    #[test]
    fn kinds_stand_at_their_index() {
        for (i, k) in LimitKind::ALL.iter().enumerate() {
            assert_eq!(*k as usize, i);
        }
    }
}
