//! The flood defence on real listeners: every reply is compared byte by byte with one that the
//! packet builder makes, but for the cookie, which the kernel's secret decides; that one is sent
//! back, and must be taken.

use std::{
    collections::BTreeMap,
    fs, io,
    net::{IpAddr, TcpListener, TcpStream},
    os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd},
    thread,
};

use anyhow::{Context as _, Result, ensure};
use edge_common::{
    abi::{Config, Mode},
    defence::{
        MARK_EVERY_NS, MARK_LASTS_NS, Service, ServiceCounter, TARGET_FORWARDED, TARGET_LOCAL,
        TARGET_REST, Target, TargetKey, WSCALE_UNKNOWN, When,
        options::{self, HAS_ECN, HAS_SACK, HAS_TIMESTAMP, HAS_WSCALE, Offer},
        reply::feature,
        v4_halves,
    },
    gcra::Limit,
    reason::{Reason, Verdict},
    table::Meta,
};
use edge_userspace::{
    datapath::{InterfaceCounters, ServiceTables, counter},
    tables::{Listing, Tables},
};

use super::{TableReport, V4, V4_DEST, V6, V6_DEST, table::START};
use crate::{
    packet::{ACK, CWR, ECE, ETH, FIN, Ip, PSH, QTAG, RST, SYN, ip, proto},
    program::{Moved, Rig, Settings},
    test_run::Run,
};

/// The reasons that the packets here end with, and no row of a table does.
pub const REASONS: [Reason; 8] = [
    Reason::ReplySynCookie,
    Reason::ReplyChallenge,
    Reason::ReplyReset,
    Reason::ChallengeAnswered,
    Reason::SynClosed,
    Reason::SynBadChecksum,
    Reason::CookieInvalid,
    Reason::TcpOutOfState,
];

/// Ports of the services.
pub(super) const LOCAL: u16 = 443;
const CLOSED: u16 = 81;
const UNLEARNT: u16 = 82;
const AUTO: u16 = 444;
const DRY: u16 = 445;
const FORWARDED: u16 = 446;
/// No service's.
pub(super) const OTHER: u16 = 447;
/// Of a forwarded service that is defended under attack.
const FORWARDED_AUTO: u16 = 448;
/// A UDP service.
pub(super) const UDP: u16 = 4500;

const CLIENT_PORT: u16 = 40_000;
const WSCALE: u8 = 9;
const WINDOW: u16 = 0xfedc;
const TTL: u8 = 61;
/// A second and a millisecond of the program's clock.
pub(super) const MS: u64 = 1_000_000;
pub(super) const SECOND: u64 = 1_000 * MS;
/// Seconds for which a source stays verified; a step is 1.07 s.
const VERIFIED_STEPS: u32 = 10;

/// Runs everything.
pub(super) fn reports() -> Vec<TableReport> {
    let all: [(&str, fn(&mut World)); 11] = [
        ("cookies for every offer", every_offer),
        ("options that are malformed", malformed_options),
        ("checksums of SYNs", checksums),
        ("segments without a connection", out_of_state),
        ("connections are left alone", connections),
        ("closed and unlearnt ports", closed),
        ("the challenge", challenge),
        ("attempts without an answer", second_attempts),
        ("an attack comes and goes", auto),
        ("handshakes that complete", crowd),
        ("dry run", dry_run),
    ];
    let mut reports: Vec<_> = all
        .into_iter()
        .map(|(name, test)| report(name, |_| {}, test))
        .collect();
    // And where nothing is always defended, which is another way through the gate.
    let sometimes: [(&str, fn(&mut World)); 4] = [
        ("an attack comes and goes, else quiet", auto),
        ("handshakes that complete, else quiet", crowd),
        ("ports of no service", rest),
        ("the challenge after a flood", challenge_after_flood),
    ];
    for (name, test) in sometimes {
        reports.push(report(
            name,
            |c| {
                c.always_defended = 0;
                c.rest = 1;
            },
            test,
        ));
    }
    reports.push(report(
        "cookies without timestamps",
        |c| c.tcp_features = 0,
        without_timestamps,
    ));
    reports
}

/// Runs one test on a thread and in a network namespace of its own.
pub(super) fn report(
    name: &str,
    change: impl FnOnce(&mut Config) + Send,
    test: fn(&mut World),
) -> TableReport {
    let outcome = thread::scope(|scope| {
        let run = move || -> Result<World> {
            let mut world = World::new(change)?;
            test(&mut world);
            Ok(world)
        };
        scope.spawn(run).join()
    });
    let (rows, failures) = match outcome {
        Ok(Ok(world)) => (world.rows, world.failures),
        Ok(Err(e)) => (0, vec![format!("{e:#}")]),
        Err(_) => (0, vec!["it panicked".to_owned()]),
    };
    TableReport {
        name: format!("flood defence: {name}"),
        rows,
        failures,
    }
}

/// The loaded program, services, and listeners in a namespace.
pub(super) struct World {
    rig: Rig,
    services: ServiceTables,
    tables: Tables,
    _listeners: Vec<TcpListener>,
    now: u64,
    rows: usize,
    failures: Vec<String>,
}

/// What became of a packet.
pub(super) struct Out {
    run: Run,
    pub(super) moved: Moved,
}

impl Out {
    pub(super) fn reason(&self) -> Option<Reason> {
        match self.moved.ended[..] {
            [(reason, 1, _)] => Some(reason),
            _ => None,
        }
    }
}

impl World {
    fn new(change: impl FnOnce(&mut Config)) -> Result<Self> {
        enter_namespace()?;
        for (name, value) in [("tcp_syncookies", "2"), ("tcp_timestamps", "2")] {
            sysctl(name, value)?;
        }
        let listeners = [LOCAL, UNLEARNT, AUTO, DRY]
            .map(|port| TcpListener::bind(("::", port)))
            .into_iter()
            .collect::<io::Result<_>>()
            .context("cannot listen")?;
        let mut settings = Settings::checks(Mode::Off).with(|c| {
            c.services = 7;
            c.always_defended = 1;
            c.tcp_features = feature::ALL;
            c.reply_ttl = u32::from(TTL);
            c.reply_window = u32::from(WINDOW);
            c.verified_buckets = 64;
            c.verified_ttl = VERIFIED_STEPS;
            change(c);
        });
        settings.targets = 64;
        let mut rig = Rig::load(&settings)?;
        rig.set_time(START)?;
        let mut services = rig.services()?;
        let tables = rig.tables()?;
        let always = Service {
            when: When::Always as u32,
            credit: 2,
            hold_ns: 10 * SECOND,
            incomplete: Limit::per_second(10, 20).context("a limit")?,
            ..Service::OFF
        };
        services.set_services(&[
            always,
            Service {
                when: When::Auto as u32,
                ..always
            },
            Service {
                dry_run: 1,
                ..always
            },
            always,
            Service {
                reflection: Limit::per_second(10, 5).context("a limit")?,
                ..Service::OFF
            },
            Service {
                when: When::Auto as u32,
                ..always
            },
            Service {
                when: When::Auto as u32,
                ..always
            },
        ])?;
        let mut targets = BTreeMap::new();
        for address in [V4_DEST, V6_DEST, "127.0.0.1", "::1"] {
            for (port, service, wscale, kind) in [
                (LOCAL, 0, WSCALE, TARGET_LOCAL),
                (CLOSED, 0, WSCALE_UNKNOWN, TARGET_LOCAL),
                (UNLEARNT, 0, WSCALE_UNKNOWN, TARGET_LOCAL),
                (AUTO, 1, WSCALE, TARGET_LOCAL),
                (DRY, 2, WSCALE, TARGET_LOCAL),
                (FORWARDED, 3, WSCALE, TARGET_FORWARDED),
                (FORWARDED_AUTO, 6, WSCALE, TARGET_FORWARDED),
            ] {
                let address: IpAddr = address.parse()?;
                targets.insert(
                    key(address, proto::TCP, port),
                    Target {
                        service,
                        mss: mss(address),
                        wscale,
                        kind,
                        marked_at: 0,
                    },
                );
            }
            let rest = Target {
                service: 5,
                mss: 0,
                wscale: WSCALE_UNKNOWN,
                kind: TARGET_REST,
                marked_at: 0,
            };
            targets.insert(key(address.parse()?, proto::TCP, 0), rest);
            let udp = Target {
                service: 4,
                mss: 0,
                wscale: WSCALE_UNKNOWN,
                kind: TARGET_LOCAL,
                marked_at: 0,
            };
            targets.insert(key(address.parse()?, proto::UDP, UDP), udp);
        }
        services.set_targets(&targets, &[53, 123])?;
        Ok(Self {
            rig,
            services,
            tables,
            _listeners: listeners,
            now: START,
            rows: 0,
            failures: Vec::new(),
        })
    }

    pub(super) fn pass_time(&mut self, ns: u64) {
        self.now += ns;
        self.rig.set_time(self.now).expect("set the clock");
    }

    pub(super) fn send(&mut self, frame: &[u8]) -> Out {
        self.rows += 1;
        let before = self.counters();
        let run = self.rig.run(frame, 1).expect("a test run");
        let moved = Moved::between(&before, &self.counters());
        Out { run, moved }
    }

    fn counters(&self) -> InterfaceCounters {
        self.rig.counters().expect("the counters")
    }

    /// Sends segments, each another one, in as many slices of the time as it takes for their
    /// source to be sampled: of 64 one is, for 64, and 20 may come at once.
    fn sampled(&mut self, segment: &Segment, source: &str, dest: &str) {
        for n in 0..256 {
            let segment = segment.clone().numbers(7 * n, 9);
            self.send(&segment.packet(source, dest).build());
            self.pass_time(1 << 20);
        }
    }

    pub(super) fn counted(&self, service: usize, which: ServiceCounter) -> u64 {
        let counters = self.services.counters(service).expect("the counters");
        counter(&counters, which)
    }

    pub(super) fn fail(&mut self, what: impl Into<String>) {
        self.failures.push(what.into());
    }

    pub(super) fn check(&mut self, what: &str, is: bool) {
        if !is {
            self.fail(what);
        }
    }

    /// Sends a packet that must end with this reason, unchanged unless it is answered.
    pub(super) fn ends(&mut self, what: &str, frame: &[u8], reason: Reason) -> Out {
        let out = self.send(frame);
        let action = match reason.verdict() {
            Verdict::Drop => 1,
            Verdict::Pass => 2,
            Verdict::Reply => 3,
        };
        if out.reason() != Some(reason) || out.run.action != action {
            let (moved, action) = (&out.moved, out.run.action);
            self.fail(format!("{what}: {moved}, action {action}, not {reason:?}"));
        } else if reason.verdict() != Verdict::Reply && out.run.output != frame {
            self.fail(format!("{what}: the frame was changed"));
        }
        out
    }

    /// Enters a source in the lists.
    pub(super) fn list(&mut self, prefix: &str, change: impl FnOnce(&mut Listing)) {
        let mut listing = Listing {
            meta: Meta::default(),
            ..Listing::default()
        };
        change(&mut listing);
        let prefix = prefix.parse().expect("an address");
        self.tables.put(prefix, listing).expect("there is room");
    }

    /// What the verifier went through.
    pub(super) fn verified_instructions(&mut self) -> u32 {
        self.rig.verified_instructions().expect("the kernel tells")
    }

    /// A dry run must have found this, and nothing else.
    pub(super) fn would(&mut self, out: &Out, reason: Reason) {
        let would = out.moved.would_drop.iter().map(|(r, n, _)| (*r, *n));
        if !would.eq([(reason, 1)]) {
            self.fail(format!("{}, not would {reason:?}", out.moved));
        }
    }

    /// Sends a packet that must be answered with `reply`, in which the numbers are
    /// filled in from the answer: (sequence, acknowledgement).
    fn answered(
        &mut self,
        what: &str,
        frame: &[u8],
        reason: Reason,
        reply: impl FnOnce(u32, u32) -> Vec<u8>,
    ) -> Option<(u32, u32)> {
        let out = self.ends(what, frame, reason);
        let tcp = tcp_of(&out.run.output)?;
        let number = |at: usize| Some(u32::from_be_bytes(*tcp.get(at..)?.first_chunk()?));
        let (seq, ack) = (number(4)?, number(8)?);
        let expected = reply(seq, ack);
        if out.run.output != expected {
            let got = &out.run.output;
            self.fail(format!("{what}: {got:02x?}\n  instead of {expected:02x?}"));
        }
        Some((seq, ack))
    }
}

/// Of the calling thread's network namespace.
fn sysctl(name: &str, value: &str) -> Result<()> {
    let path = format!("/proc/sys/net/ipv4/{name}");
    fs::write(&path, value).with_context(|| path)
}

fn enter_namespace() -> Result<()> {
    // SAFETY: no pointers; only this thread enters the new namespace.
    let made = unsafe { libc::unshare(libc::CLONE_NEWNET) };
    ensure!(made == 0, io::Error::last_os_error());
    // SAFETY: no pointers.
    let socket = unsafe { libc::socket(libc::AF_INET, libc::SOCK_DGRAM, 0) };
    ensure!(socket >= 0, io::Error::last_os_error());
    // SAFETY: a new descriptor that nobody else has.
    let socket = unsafe { OwnedFd::from_raw_fd(socket) };
    // SAFETY: a structure of numbers and arrays of them, for which zeros are a value.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(b"lo") {
        *to = from.cast_signed();
    }
    request.ifr_ifru.ifru_flags = libc::IFF_UP as libc::c_short;
    // SAFETY: the request is of the type that the call wants, with a name that ends.
    let up = unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCSIFFLAGS, &raw const request) };
    ensure!(up == 0, io::Error::last_os_error());
    Ok(())
}

fn key(address: IpAddr, proto: u8, port: u16) -> TargetKey {
    let address = match address {
        IpAddr::V4(a) => v4_halves(u32::from_ne_bytes(a.octets())),
        IpAddr::V6(a) => {
            let octets = a.octets();
            let (halves, _) = octets.as_chunks::<8>();
            [halves[0], halves[1]].map(u64::from_ne_bytes)
        }
    };
    TargetKey {
        address,
        port: port.to_be(),
        proto,
        pad: [0; 5],
    }
}

fn mss(address: IpAddr) -> u16 {
    match address {
        IpAddr::V4(_) => 1460,
        IpAddr::V6(_) => 1440,
    }
}

/// A TCP segment.
#[derive(Clone)]
pub(super) struct Segment {
    ports: (u16, u16),
    seq: u32,
    ack: u32,
    flags: u8,
    window: u16,
    options: Vec<u8>,
    payload: Vec<u8>,
}

/// From the client's port to this one.
pub(super) fn to(port: u16, flags: u8) -> Segment {
    Segment {
        ports: (CLIENT_PORT, port),
        seq: 0x0102_0304,
        ack: 0,
        flags,
        window: 64_000,
        options: Vec::new(),
        payload: Vec::new(),
    }
}

impl Segment {
    fn from_port(mut self, port: u16) -> Self {
        self.ports.0 = port;
        self
    }

    const fn numbers(mut self, seq: u32, ack: u32) -> Self {
        (self.seq, self.ack) = (seq, ack);
        self
    }

    fn options(mut self, options: &[u8]) -> Self {
        self.options = options.to_vec();
        self
    }

    fn bytes(&self) -> Vec<u8> {
        let mut options = self.options.clone();
        options.resize(options.len().next_multiple_of(4), 0);
        let offset = u8::try_from((20 + options.len()) / 4).expect("at most 40 bytes");
        [
            &self.ports.0.to_be_bytes()[..],
            &self.ports.1.to_be_bytes(),
            &self.seq.to_be_bytes(),
            &self.ack.to_be_bytes(),
            &[offset << 4, self.flags],
            &self.window.to_be_bytes(),
            &[0; 4],
            &options,
            &self.payload,
        ]
        .concat()
    }

    /// In a packet between these addresses.
    pub(super) fn packet(&self, source: &str, dest: &str) -> Ip {
        ip(source, dest).payload(proto::TCP, self.bytes())
    }

    fn v4(&self) -> Vec<u8> {
        self.packet(V4, V4_DEST).build()
    }

    fn v6(&self) -> Vec<u8> {
        self.packet(V6, V6_DEST).build()
    }

    /// As an answer to a packet between these addresses, with these tags.
    fn reply(&self, source: &str, dest: &str, tags: usize) -> Vec<u8> {
        let mut frame = tagged(self.packet(dest, source).id(0), tags).build();
        frame[..12].rotate_left(6);
        let hops = ETH + 4 * tags + if source == V4 { 8 } else { 7 };
        if source == V4 {
            // The checksum changes by what the TTL does (RFC 1624).
            let at = hops + 2;
            let sum = u16::from_be_bytes([frame[at], frame[at + 1]]) + (u16::from(64 - TTL) << 8);
            frame[at..at + 2].copy_from_slice(&sum.to_be_bytes());
        }
        frame[hops] = TTL;
        frame
    }
}

fn tagged(mut packet: Ip, tags: usize) -> Ip {
    for id in 0..tags {
        packet = packet.tag(QTAG, 100 + id as u16);
    }
    packet
}

/// The TCP header of a frame.
fn tcp_of(frame: &[u8]) -> Option<&[u8]> {
    let mut at = 12;
    while *frame.get(at..)?.first_chunk()? == QTAG.to_be_bytes() {
        at += 4;
    }
    match frame.get(at + 2)? >> 4 {
        4 => frame.get(at + 22..),
        _ => frame.get(at + 42..),
    }
}

/// The families: source and destination.
pub(super) const FAMILIES: [(&str, &str); 2] = [(V4, V4_DEST), (V6, V6_DEST)];

/// What must be granted of an offer: flags, options.
fn granted(offer: &Offer, dest: &str, now_ms: u32, features: u32) -> (u8, Vec<u8>) {
    let mut options = [&[2, 4][..], &mss(dest.parse().unwrap()).to_be_bytes()].concat();
    if !offer.has(HAS_TIMESTAMP) || features & feature::TIMESTAMPS == 0 {
        return (SYN | ACK, options);
    }
    let (scale, sack, ecn) = (
        offer.has(HAS_WSCALE),
        offer.has(HAS_SACK),
        offer.has(HAS_ECN),
    );
    options.extend(if sack { [4, 2] } else { [1, 1] });
    let mut own = now_ms / 64 * 64
        + if scale { u32::from(offer.wscale) } else { 15 }
        + if sack { 16 } else { 0 }
        + if ecn { 32 } else { 0 };
    if own > now_ms {
        own -= 64;
    }
    options.extend([8, 10]);
    options.extend(own.to_be_bytes());
    options.extend(offer.timestamp.to_be_bytes());
    if scale {
        options.extend([1, 3, 3, WSCALE]);
    }
    (SYN | ACK | if ecn { ECE } else { 0 }, options)
}

/// An offer of these.
const fn offer(
    mss: u16,
    wscale: Option<u8>,
    sack: bool,
    timestamp: Option<u32>,
    ecn: bool,
) -> Offer {
    let mut offer = Offer {
        timestamp: 0,
        mss,
        wscale: 0,
        has: if sack { HAS_SACK } else { 0 } | if ecn { HAS_ECN } else { 0 },
    };
    if let Some(scale) = wscale {
        offer.wscale = scale;
        offer.has |= HAS_WSCALE;
    }
    if let Some(timestamp) = timestamp {
        offer.timestamp = timestamp;
        offer.has |= HAS_TIMESTAMP;
    }
    offer
}

/// Sends a SYN, checks the cookie that comes, and sends the end of the handshake.
fn handshake(
    world: &mut World,
    what: &str,
    (source, dest): (&str, &str),
    tags: usize,
    syn: &Segment,
    offer: &Offer,
    features: u32,
) {
    let now_ms = (world.now / MS) as u32;
    let (flags, options) = granted(offer, dest, now_ms, features);
    let frame = tagged(syn.packet(source, dest), tags).build();
    let numbers = world.answered(what, &frame, Reason::ReplySynCookie, |seq, _| {
        let reply = Segment {
            ports: (syn.ports.1, syn.ports.0),
            window: WINDOW,
            ..to(0, flags)
        };
        let reply = reply
            .numbers(seq, syn.seq.wrapping_add(1))
            .options(&options);
        reply.reply(source, dest, tags)
    });
    let Some((cookie, _)) = numbers else {
        return world.fail(format!("{what}: no TCP header came back"));
    };
    let end = Segment {
        ports: syn.ports,
        ..to(0, ACK)
    };
    let end = end.numbers(syn.seq.wrapping_add(1), cookie.wrapping_add(1));
    // A neighbour of the cookie is none.
    let wrong = end
        .clone()
        .numbers(syn.seq.wrapping_add(1), cookie.wrapping_add(0x0100_0001));
    let frame = tagged(wrong.packet(source, dest), tags).build();
    world.ends(
        &format!("{what}, not the cookie"),
        &frame,
        Reason::CookieInvalid,
    );
    let valid = world.counted(0, ServiceCounter::CookiesValid);
    let frame = tagged(end.packet(source, dest), tags).build();
    world.ends(&format!("{what}, the cookie"), &frame, Reason::Pass);
    let more = world.counted(0, ServiceCounter::CookiesValid) == valid + 1;
    world.check(&format!("{what}: the cookie was not taken"), more);
    // More of the connection may come before the kernel has made its socket.
    let next = end.numbers(syn.seq.wrapping_add(1000), cookie.wrapping_add(1));
    let frame = tagged(next.packet(source, dest), tags).build();
    world.ends(&format!("{what}, what follows"), &frame, Reason::Pass);
    world.pass_time(3 * SECOND);
    world.ends(
        &format!("{what}, long after"),
        &frame,
        Reason::CookieInvalid,
    );
}

fn every_offer(world: &mut World) {
    for n in 0..32u8 {
        let has = |bit: u8| n & bit != 0;
        let mss = if has(1) { 1300 } else { 0 };
        let offer = offer(
            mss,
            has(2).then_some(7),
            has(4),
            has(8).then_some(0xa1b2_c3d4),
            has(16),
        );
        let mut options = Vec::new();
        if offer.mss != 0 {
            options.extend([2, 4, 5, 0x14]);
        }
        if has(4) {
            options.extend([4, 2]);
        }
        if has(8) {
            options.extend([8, 10]);
            options.extend(offer.timestamp.to_be_bytes());
            options.extend([0; 4]);
        }
        if has(2) {
            options.extend([1, 3, 3, 7]);
        }
        let flags = SYN | if has(16) { ECE | CWR } else { 0 };
        for family in FAMILIES {
            for tags in 0..3 {
                world.pass_time(37 * MS);
                let what = format!("{offer:?}, {}, {tags} tags", family.0);
                let syn = to(LOCAL, flags)
                    .from_port(10_000 + u16::from(n))
                    .options(&options);
                handshake(world, &what, family, tags, &syn, &offer, feature::ALL);
            }
        }
    }
    // What a SYN may look like besides.
    for (what, syn) in [
        ("with PSH", to(LOCAL, SYN | PSH)),
        (
            "a sequence number that wraps",
            to(LOCAL, SYN).numbers(u32::MAX, 0),
        ),
        (
            "with a number in the acknowledgement",
            to(LOCAL, SYN).numbers(5, 77),
        ),
        ("ECE alone is no ECN", to(LOCAL, SYN | ECE)),
    ] {
        for family in FAMILIES {
            handshake(
                world,
                what,
                family,
                0,
                &syn,
                &Offer::default(),
                feature::ALL,
            );
        }
    }
    let mut with_data = to(LOCAL, SYN);
    with_data.payload = vec![7; 333];
    for family in FAMILIES {
        let offer = Offer::default();
        handshake(
            world,
            "with data",
            family,
            0,
            &with_data,
            &offer,
            feature::ALL,
        );
    }
    world.ends("to no service", &to(OTHER, SYN).v4(), Reason::Pass);
    world.ends("IPv6, to no service", &to(OTHER, SYN).v6(), Reason::Pass);
    let other = to(LOCAL, SYN).packet(V4, "203.0.113.2").build();
    world.ends("to an address of no service", &other, Reason::Pass);
}

fn without_timestamps(world: &mut World) {
    let offered = [
        2, 4, 5, 0xb4, 4, 2, 8, 10, 0, 0, 0, 7, 0, 0, 0, 0, 1, 3, 3, 7,
    ];
    let syn = to(LOCAL, SYN | ECE | CWR).options(&offered);
    let mut offer = options::parse(&offered);
    offer.has |= HAS_ECN;
    for family in FAMILIES {
        handshake(world, "the host has none", family, 0, &syn, &offer, 0);
    }
}

/// Options that something is wrong with, and what is left of them.
const MALFORMED: [(&str, &[u8], Offer); 18] = {
    const NONE: Offer = offer(0, None, false, None, false);
    const MSS: Offer = offer(1300, None, false, None, false);
    const SACK: Offer = offer(0, None, true, None, false);
    const LARGE: Offer = offer(0xffff, None, false, None, false);
    [
        ("a length of 0", &[2, 4, 5, 0x14, 8, 0, 1, 1], MSS),
        ("a length of 1", &[2, 4, 5, 0x14, 8, 1, 1, 1], MSS),
        ("an MSS of length 0", &[2, 0, 5, 0x14], NONE),
        ("an MSS of length 3", &[2, 3, 5, 4, 2, 0, 0, 0], SACK),
        ("an MSS of length 5", &[2, 5, 5, 0x14, 1, 4, 2, 0], SACK),
        ("an MSS of 0", &[2, 4, 0, 0], NONE),
        ("an MSS of 65,535", &[2, 4, 0xff, 0xff], LARGE),
        (
            "timestamps beyond the end",
            &[2, 4, 5, 0x14, 8, 10, 0, 0],
            MSS,
        ),
        (
            "timestamps of length 9",
            &[8, 9, 0, 0, 0, 1, 0, 0, 0, 4, 2, 0],
            NONE,
        ),
        (
            "timestamps of length 12",
            &[8, 12, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 4, 2, 0, 0],
            SACK,
        ),
        ("a length of 255", &[254, 255, 0, 0], NONE),
        ("a kind at the very end", &[2, 4, 5, 0x14, 1, 1, 1, 3], MSS),
        ("an end, then more", &[2, 4, 5, 0x14, 0, 4, 2, 0], MSS),
        ("nothing but ends", &[0; 40], NONE),
        ("nothing but no-operations", &[1; 40], NONE),
        (
            "unknown kinds",
            &[200, 2, 201, 3, 0, 202, 2, 4, 2, 0, 0, 0],
            SACK,
        ),
        ("a window scale of length 2", &[3, 2, 4, 2], SACK),
        ("SACK permitted of length 3", &[4, 3, 0, 1], NONE),
    ]
};

fn malformed_options(world: &mut World) {
    for (what, bytes, offer) in MALFORMED {
        for family in FAMILIES {
            let syn = to(LOCAL, SYN).options(bytes);
            handshake(world, what, family, 0, &syn, &offer, feature::ALL);
        }
    }
    // The largest scale that counts is 14, and it goes into the cookie, not into the reply.
    let bytes = [8, 10, 0, 0, 0, 1, 0, 0, 0, 0, 3, 3, 99, 1];
    let offer = offer(0, Some(14), false, Some(1), false);
    let syn = to(LOCAL, SYN).options(&bytes);
    for family in FAMILIES {
        handshake(
            world,
            "a scale of 99",
            family,
            0,
            &syn,
            &offer,
            feature::ALL,
        );
    }
}

fn checksums(world: &mut World) {
    let linux = [
        2, 4, 5, 0xb4, 4, 2, 8, 10, 0, 0, 0, 7, 0, 0, 0, 0, 1, 3, 3, 7,
    ];
    let some = [2, 4, 5, 0xb4, 1, 1, 4, 2];
    for options in [&linux[..], &some, &[]] {
        for (source, dest) in FAMILIES {
            let syn = to(LOCAL, SYN).options(options);
            let good = syn.packet(source, dest).build();
            let at = good.len() - options.len() - 4;
            let what = format!("{} bytes of options from {source}", options.len());
            world.ends(&what, &good, Reason::ReplySynCookie);
            for (byte, bit) in [(at, 1), (at + 1, 0x80), (at - 12, 4), (good.len() - 1, 2)] {
                let mut bad = good.clone();
                bad[byte] ^= bit;
                let what = format!("{what}, byte {byte} wrong");
                world.ends(&what, &bad, Reason::SynBadChecksum);
            }
            // What a sender leaves to its card: the sum of the pseudo header.
            let mut partial = good.clone();
            partial[at..at + 2].fill(0);
            let tcp = partial.split_off(partial.len() - options.len() - 20);
            let sum = pseudo_sum(source, dest, tcp.len());
            let mut tcp = tcp;
            tcp[16..18].copy_from_slice(&sum.to_be_bytes());
            partial.extend(tcp);
            let what = format!("{what}, partial");
            world.ends(&what, &partial, Reason::ReplySynCookie);
        }
    }
}

/// The sum of the pseudo header, not complemented.
fn pseudo_sum(source: &str, dest: &str, len: usize) -> u16 {
    let mut bytes = Vec::new();
    for address in [source, dest] {
        match address.parse().unwrap() {
            IpAddr::V4(a) => bytes.extend(a.octets()),
            IpAddr::V6(a) => bytes.extend(a.octets()),
        }
    }
    bytes.extend([0, proto::TCP]);
    bytes.extend(u16::try_from(len).unwrap().to_be_bytes());
    let sum: u32 = bytes
        .chunks(2)
        .map(|pair| u32::from(pair[0]) << 8 | u32::from(pair[1]))
        .sum();
    let sum = (sum & 0xffff) + (sum >> 16);
    ((sum & 0xffff) + (sum >> 16)) as u16
}

fn out_of_state(world: &mut World) {
    for (source, dest) in FAMILIES {
        for (flags, reason) in [
            (ACK, Reason::CookieInvalid),
            (ACK | PSH, Reason::CookieInvalid),
            (ACK | FIN, Reason::CookieInvalid),
            (RST, Reason::TcpOutOfState),
            (RST | ACK, Reason::TcpOutOfState),
            (SYN | ACK, Reason::TcpOutOfState),
            (PSH, Reason::TcpOutOfState),
        ] {
            let segment = to(LOCAL, flags).numbers(7, 9);
            let what = format!("flags {flags:#x} from {source}");
            world.ends(&what, &segment.packet(source, dest).build(), reason);
            let nobody = Segment {
                ports: (CLIENT_PORT, CLOSED),
                ..segment.clone()
            };
            let what = format!("{what}, nobody listens");
            let frame = nobody.packet(source, dest).build();
            world.ends(&what, &frame, Reason::TcpOutOfState);
        }
    }
    // The first fragment has the header that counts; the others are of no use without it.
    let whole = ip(V4, V4_DEST).payload(proto::TCP, [to(LOCAL, ACK).bytes(), vec![0; 60]].concat());
    let first = whole.clone().piece(0..40).build();
    world.ends("a first fragment", &first, Reason::CookieInvalid);
    let later = whole.piece(40..80).build();
    world.ends("a later one", &later, Reason::Pass);
}

fn connections(world: &mut World) {
    for address in ["127.0.0.1", "::1"] {
        let Ok(stream) = TcpStream::connect((address, LOCAL)) else {
            return world.fail(format!("{address}: cannot connect"));
        };
        let port = stream.local_addr().unwrap().port();
        for flags in [ACK, ACK | PSH, ACK | FIN, RST, RST | ACK, SYN | ACK] {
            let segment = to(LOCAL, flags).from_port(port);
            let frame = segment.packet(address, address).build();
            world.ends(
                &format!("{address}, flags {flags:#x}"),
                &frame,
                Reason::Pass,
            );
        }
        // A SYN in a connection is the kernel's to judge (RFC 5961, 4).
        let frame = to(LOCAL, SYN)
            .from_port(port)
            .packet(address, address)
            .build();
        world.ends(&format!("{address}, a SYN"), &frame, Reason::Pass);
        let other = to(LOCAL, ACK).from_port(port ^ 1);
        let frame = other.packet(address, address).build();
        world.ends(
            &format!("{address}, another port"),
            &frame,
            Reason::CookieInvalid,
        );
    }
}

fn closed(world: &mut World) {
    for _ in 0..100 {
        world.ends("a hundred are refused", &to(CLOSED, SYN).v4(), Reason::Pass);
    }
    world.ends("one more is not", &to(CLOSED, SYN).v4(), Reason::SynClosed);
    world.ends("nor IPv6", &to(CLOSED, SYN).v6(), Reason::SynClosed);
    world.pass_time(SECOND / 1000);
    world.ends("1,000 a second are", &to(CLOSED, SYN).v6(), Reason::Pass);
    let closed = world.counted(0, ServiceCounter::Closed);
    world.check("not all were counted", closed == 103);
    world.ends("no scale is known", &to(UNLEARNT, SYN).v4(), Reason::Pass);
    // A listener is marked at its first SYN, and now and then afterwards.
    let marked = |world: &World| world.counted(0, ServiceCounter::Marked);
    world.pass_time(2 * MARK_EVERY_NS);
    for (step, times) in [(0, 1), (0, 1), (MARK_EVERY_NS - 1, 1), (1, 2)] {
        world.pass_time(step);
        world.ends("a SYN", &to(LOCAL, SYN).v4(), Reason::ReplySynCookie);
        let is = marked(world);
        world.check(&format!("marked {is} times, not {times}"), is == times);
    }
    let refused = world.counted(0, ServiceCounter::Unmarked);
    world.check("the kernel refused to mark", refused == 0);
    // A listener that the kernel does not mark any more would refuse the cookies.
    sysctl("tcp_syncookies", "1").expect("set a sysctl");
    for (step, reason) in [
        (MARK_EVERY_NS, Reason::ReplySynCookie),
        (MARK_LASTS_NS - MARK_EVERY_NS, Reason::ReplySynCookie),
        (1, Reason::Pass),
    ] {
        world.pass_time(step);
        world.ends("cookies are off", &to(LOCAL, SYN).v4(), reason);
    }
    sysctl("tcp_syncookies", "2").expect("set a sysctl");
    world.ends("and on again", &to(LOCAL, SYN).v4(), Reason::ReplySynCookie);
}

/// The first challenge to a SYN.
fn challenge_of(syn: &Segment, source: &str, dest: &str) -> impl FnOnce(u32, u32) -> Vec<u8> {
    let ports = (syn.ports.1, syn.ports.0);
    move |_, number| {
        let ack = Segment {
            ports,
            window: 0,
            ..to(0, ACK)
        };
        ack.numbers(0, number).reply(source, dest, 0)
    }
}

fn challenge(world: &mut World) {
    for (n, (source, dest)) in FAMILIES.into_iter().enumerate() {
        let syn = to(FORWARDED, SYN).options(&[2, 4, 5, 0xb4, 8, 10, 0, 0, 0, 7, 0, 0, 0, 0, 0, 0]);
        let frame = syn.packet(source, dest).build();
        let expected = challenge_of(&syn, source, dest);
        let Some((_, number)) = world.answered(source, &frame, Reason::ReplyChallenge, expected)
        else {
            return world.fail("no challenge");
        };
        let rst = |number: u32| {
            to(FORWARDED, RST)
                .numbers(number, 0)
                .packet(source, dest)
                .build()
        };
        // The lowest bits are the index of an MSS.
        for wrong in [number.wrapping_add(4), number.wrapping_sub(1), !number, 0] {
            world.ends("a number that was guessed", &rst(wrong), Reason::Pass);
        }
        world.ends("still unknown", &frame, Reason::ReplyChallenge);
        world.ends("the answer", &rst(number), Reason::ChallengeAnswered);
        world.ends("now it is known", &frame, Reason::Pass);
        let again = to(FORWARDED, SYN).from_port(55_555);
        world.ends(
            "on every port",
            &again.packet(source, dest).build(),
            Reason::Pass,
        );
        let other = if n == 0 {
            "198.51.100.8"
        } else {
            "2001:db8:1:3::7"
        };
        let frame_of_other = syn.packet(other, dest).build();
        world.ends("and nobody else", &frame_of_other, Reason::ReplyChallenge);
        world.ends(
            "nor at the other's number",
            &{
                to(FORWARDED, RST)
                    .numbers(number, 0)
                    .packet(other, dest)
                    .build()
            },
            Reason::Pass,
        );
        let ack = to(FORWARDED, ACK).numbers(5, 6).packet(other, dest).build();
        world.ends("segments of connections pass", &ack, Reason::Pass);
        // As long as it comes again now and then.
        for _ in 0..4 {
            world.pass_time(8 * SECOND);
            world.ends("it stays known", &frame, Reason::Pass);
        }
        world.pass_time((u64::from(VERIFIED_STEPS) + 1) << 30);
        world.ends("and is forgotten", &frame, Reason::ReplyChallenge);
        let verified = world.counted(3, ServiceCounter::Verified);
        world.check("one source was verified", verified == n as u64 + 1);
    }
}

fn second_attempts(world: &mut World) {
    for (source, dest) in FAMILIES {
        let syn = to(FORWARDED, SYN);
        let frame = syn.packet(source, dest).build();
        world.ends("the first", &frame, Reason::ReplyChallenge);
        world.pass_time(100 * MS);
        let expected = challenge_of(&syn, source, dest);
        world.answered("a copy", &frame, Reason::ReplyChallenge, expected);
        world.pass_time(900 * MS);
        let numbers = world.answered("sent again", &frame, Reason::ReplyChallenge, |seq, _| {
            let reply = Segment {
                ports: (FORWARDED, CLIENT_PORT),
                window: 0,
                ..to(0, SYN | ACK)
            };
            let reply = reply.numbers(seq, syn.seq + 1);
            reply.reply(source, dest, 0)
        });
        let Some((cookie, _)) = numbers else {
            return world.fail("no cookie");
        };
        let end = to(FORWARDED, ACK).numbers(syn.seq + 1, cookie.wrapping_add(1));
        let wrong = end.clone().numbers(syn.seq + 1, cookie.wrapping_add(5));
        let wrong = wrong.packet(source, dest).build();
        world.ends("an acknowledgement of something else", &wrong, Reason::Pass);
        world.answered(
            "the cookie",
            &end.packet(source, dest).build(),
            Reason::ReplyReset,
            |_, _| {
                let reset = Segment {
                    ports: (FORWARDED, CLIENT_PORT),
                    window: 0,
                    ..to(0, RST)
                };
                let reset = reset.numbers(cookie.wrapping_add(1), 0);
                reset.reply(source, dest, 0)
            },
        );
        world.ends("now it is known", &frame, Reason::Pass);
    }
}

fn challenge_after_flood(world: &mut World) {
    for (source, dest) in FAMILIES {
        world.pass_time(1000 * SECOND);
        for port in 0..30 {
            let syn = to(FORWARDED_AUTO, SYN).from_port(1024 + port);
            world.send(&syn.packet(source, dest).build());
        }
        // The flood is over, the defence is not, and who comes now must get in.
        for (seconds, client) in [(3, 7001), (3, 7002), (3, 7003)] {
            world.pass_time(seconds * SECOND);
            let other = if source == V4 {
                format!("198.51.100.{}", client - 6900)
            } else {
                format!("2001:db8:{client}::1")
            };
            let syn = to(FORWARDED_AUTO, SYN).from_port(client);
            let frame = syn.packet(&other, dest).build();
            let out = world.ends("a client is asked", &frame, Reason::ReplyChallenge);
            let Some(tcp) = tcp_of(&out.run.output) else {
                return world.fail("no challenge");
            };
            let number = u32::from_be_bytes(tcp[8..12].try_into().unwrap());
            let answer = to(FORWARDED_AUTO, RST).from_port(client).numbers(number, 0);
            let answer = answer.packet(&other, dest).build();
            world.ends("its answer is seen", &answer, Reason::ChallengeAnswered);
            world.ends("and it gets in", &frame, Reason::Pass);
            let again = world.counted(6, ServiceCounter::Verified);
            world.ends("once is enough", &answer, Reason::ChallengeAnswered);
            let same = world.counted(6, ServiceCounter::Verified) == again;
            world.check("a proof counted twice", same);
        }
        world.pass_time(20 * SECOND);
        let syn = to(FORWARDED_AUTO, SYN).from_port(9).packet(source, dest);
        world.ends("nobody is asked any more", &syn.build(), Reason::Pass);
    }
}

/// Sends `n` SYNs of the automatic service, each from a port of its own.
fn flood(world: &mut World, n: u16, reason: Reason) {
    for port in 0..n {
        let syn = to(AUTO, SYN).from_port(1024 + port);
        world.ends("a SYN of the flood", &syn.v4(), reason);
    }
}

fn auto(world: &mut World) {
    // 20 at once and 10 a second may stay incomplete.
    flood(world, 20, Reason::Pass);
    let state = world.services.state(1);
    world.check("no attack yet", state.attack_until == 0);
    let start = world.now;
    flood(world, 50, Reason::ReplySynCookie);
    let state = world.services.state(1);
    world.check("the attack began now", state.attack_since == start);
    world.check(
        "for as long as is held",
        state.attack_until == start + 10 * SECOND,
    );
    world.ends("IPv6 as well", &to(AUTO, SYN).v6(), Reason::ReplySynCookie);
    let guess = to(AUTO, ACK).numbers(7, 9).v4();
    world.ends("a guess", &guess, Reason::CookieInvalid);
    // Ten seconds of quiet end it; 10 a second are no attack.
    for _ in 0..8 {
        world.pass_time(SECOND);
        flood(world, 30, Reason::ReplySynCookie);
    }
    let until = world.services.state(1).attack_until;
    world.check("it went on", until > start + 15 * SECOND);
    world.pass_time(until - world.now - 1);
    world.ends(
        "until it is over",
        &to(AUTO, SYN).v4(),
        Reason::ReplySynCookie,
    );
    world.pass_time(1);
    world.ends("which it is now", &to(AUTO, SYN).v4(), Reason::Pass);
    let since = world.services.state(1).attack_since;
    world.check("it was one attack", since == start);
}

fn crowd(world: &mut World) {
    // Five times as many as may stay incomplete, but there is a connection of each.
    let mut streams = Vec::new();
    for _ in 0..100 {
        let Ok(stream) = TcpStream::connect(("127.0.0.1", AUTO)) else {
            return world.fail("cannot connect");
        };
        let port = stream.local_addr().unwrap().port();
        streams.push(stream);
        let syn = to(AUTO, SYN).from_port(port);
        let own = |segment: &Segment| segment.packet("127.0.0.1", "127.0.0.1").build();
        world.ends("a SYN of the crowd", &own(&syn), Reason::Pass);
        let end = to(AUTO, ACK).from_port(port).numbers(syn.seq + 1, 9);
        world.ends("its end", &own(&end), Reason::Pass);
    }
    let completed = world.counted(1, ServiceCounter::Completed);
    world.check(&format!("{completed} were seen"), completed > 40);
    flood(world, 12, Reason::Pass);
    // Acknowledgements of nothing prove nothing.
    world.pass_time(100 * SECOND);
    for port in 0..60 {
        for flags in [SYN, ACK] {
            let seq = u32::from(flags == ACK) + 5;
            let half = to(AUTO, flags).from_port(3000 + port).numbers(seq, 9);
            world.send(&half.v4());
        }
    }
    world.ends(
        "pairs are an attack",
        &to(AUTO, SYN).v4(),
        Reason::ReplySynCookie,
    );
    // Nor are they let go for being no SYNs.
    world.pass_time(100 * SECOND);
    world.ends("it is over", &to(AUTO, SYN).v6(), Reason::Pass);
    let guess = to(AUTO, ACK).numbers(7, 9);
    world.sampled(&guess, V6, V6_DEST);
    world.ends("guesses are an attack", &guess.v6(), Reason::CookieInvalid);
    // Which goes on as long as they come.
    let since = world.services.state(1).attack_since;
    for _ in 0..20 {
        world.pass_time(2 * SECOND);
        world.sampled(&guess, V6, V6_DEST);
    }
    let state = world.services.state(1);
    world.check("it is one attack", state.attack_since == since);
    world.ends("still", &guess.v6(), Reason::CookieInvalid);
}

fn dry_run(world: &mut World) {
    // As the host is without a daemon that sets it.
    sysctl("tcp_syncookies", "1").expect("set a sysctl");
    for (source, dest) in FAMILIES {
        for (flags, reason) in [
            (SYN, Reason::ReplySynCookie),
            (ACK, Reason::CookieInvalid),
            (RST, Reason::TcpOutOfState),
        ] {
            let frame = to(DRY, flags).packet(source, dest).build();
            let out = world.ends("dry run", &frame, Reason::Pass);
            world.would(&out, reason);
        }
    }
    let sent = world.counted(2, ServiceCounter::CookiesSent);
    world.check("cookies were sent", sent == 0);
}

fn rest(world: &mut World) {
    for (n, (source, dest)) in FAMILIES.into_iter().enumerate() {
        world.pass_time(1000 * SECOND);
        let frame = |flags| to(OTHER, flags).packet(source, dest).build();
        world.sampled(&to(OTHER, ACK), source, dest);
        for flags in [ACK, RST, FIN | ACK, SYN | ACK] {
            world.ends("of no connection", &frame(flags), Reason::TcpOutOfState);
        }
        world.ends("but a SYN", &frame(SYN), Reason::Pass);
        let address = ["127.0.0.1", "::1"][n];
        let Ok(stream) = TcpStream::connect((address, UNLEARNT)) else {
            return world.fail("cannot connect");
        };
        // The client's end is a port of no service.
        let own = stream.local_addr().unwrap().port();
        let segment = to(own, ACK | PSH).from_port(UNLEARNT);
        let live = segment.packet(address, address).build();
        world.ends("of a connection", &live, Reason::Pass);
        let other = to(LOCAL, ACK).packet(source, dest).build();
        world.ends("of a service", &other, Reason::CookieInvalid);
    }
}
