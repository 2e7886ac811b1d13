//! Golden packets of the decapsulator, an object of its own: the verdict, the counter,
//! and every byte of what comes out.

use std::mem::take;

use anyhow::{Context as _, Result};
use edge_common::decap::Outcome;
use edge_common::tunnel::GUE_PORT;
use edge_userspace::{datapath::Decap, status::decap::Packets};

use super::TableReport;
use crate::{
    packet::{ADTAG, Edit as _, Extension, IPV4, Ip, SYN, arp, checksum, ethernet, ip, proto},
    test_run,
};

/// Where tunnels may come from, and another source.
const SOURCES: [&str; 2] = ["10.0.0.0/24", "2001:db8:7::/64"];
const FROM: [&str; 2] = ["10.0.0.7", "2001:db8:7::7"];
const STRANGER: [&str; 2] = ["10.0.1.7", "2001:db8:7:1::7"];
/// Where they may go to, and another destination.
const LOCAL: [&str; 2] = ["192.0.2.10", "2001:db8:9::10"];
const ELSEWHERE: [&str; 2] = ["192.0.2.11", "2001:db8:9::11"];

/// Both families, as an index.
const FAMILIES: [usize; 2] = [0, 1];

/// A loaded decapsulator, and what went wrong with it.
struct World {
    decap: Decap,
    loads: usize,
    failures: Vec<String>,
    rows: usize,
}

/// A test; the world is as it was, at its end.
type Test = fn(&mut World);

/// Runs everything, and tells how often the program was loaded.
pub(super) fn run(tell: &mut impl FnMut(TableReport)) -> usize {
    let mut world = World::new();
    let tables: [(&str, Test); 8] = [
        ("every form", every_form),
        ("outer headers", outer_headers),
        ("what is inside", inner_packets),
        ("congestion", congestion),
        ("truncation", truncation),
        ("what is left alone", left_alone),
        ("who may send", who_may_send),
        ("several buffers", several_buffers),
    ];
    for (name, table) in tables {
        let (rows, failures) = match &mut world {
            Ok(world) => {
                table(world);
                (take(&mut world.rows), take(&mut world.failures))
            }
            Err(error) => (0, vec![format!("{error:#}")]),
        };
        tell(TableReport {
            name: format!("decap: {name}"),
            rows,
            failures,
        });
    }
    world.map_or(0, |world| world.loads)
}

impl World {
    fn new() -> Result<Self> {
        Ok(Self {
            decap: Self::load()?,
            loads: 1,
            failures: Vec::new(),
            rows: 0,
        })
    }

    fn load() -> Result<Decap> {
        let sources = SOURCES.map(|s| s.parse().expect("a prefix"));
        let mut decap = Decap::load(&sources, GUE_PORT)?;
        decap.set_local(&LOCAL.map(|a| a.parse().expect("an address")).into())?;
        Ok(decap)
    }

    /// Puts another decapsulator in its place, or tells why there is none.
    fn replace(&mut self, decap: Result<Decap>) {
        self.loads += 1;
        match decap {
            Ok(decap) => self.decap = decap,
            Err(error) => self.failures.push(format!("{error:#}")),
        }
    }

    /// A frame ends so, and comes out as these bytes.
    fn becomes(&mut self, what: &str, frame: &[u8], outcome: Outcome, output: &[u8]) {
        self.rows += 1;
        match self.wrong(frame, outcome, output) {
            Ok(None) => {}
            Ok(Some(wrong)) => self.failures.push(format!("{what}: {wrong}")),
            Err(error) => self.failures.push(format!("{what}: {error:#}")),
        }
    }

    /// A frame ends so, and comes out as it went in.
    fn stays(&mut self, what: &str, frame: &[u8], outcome: Outcome) {
        self.becomes(what, frame, outcome, frame);
    }

    fn wrong(&mut self, frame: &[u8], outcome: Outcome, output: &[u8]) -> Result<Option<String>> {
        let before = self.decap.packets()?;
        let run = (self.decap)
            .with_program(|program| test_run::run(program, frame, 1))?
            .context("test run")?;
        let after = self.decap.packets()?;
        let mut expected = before;
        expected[outcome as usize] += 1;
        // XDP_DROP and XDP_PASS.
        let action = if outcome.name().starts_with(['p', 'd']) {
            2
        } else {
            1
        };
        Ok(if after != expected {
            Some(format!(
                "{} instead of {}",
                moved(&before, &after),
                outcome.name()
            ))
        } else if run.action != action {
            Some(format!("action {} instead of {action}", run.action))
        } else if run.output != output {
            Some(format!(
                "came out as {:02x?} instead of {output:02x?}",
                run.output
            ))
        } else {
            None
        })
    }
}

/// The names of what was counted.
fn moved(before: &Packets, after: &Packets) -> String {
    let counted = Outcome::ALL.into_iter().zip(before.iter().zip(after));
    let names: Vec<_> = counted
        .filter(|(_, (before, after))| before != after)
        .map(|(outcome, _)| outcome.name())
        .collect();
    names.join(" and ")
}

/// An IP packet without its link layer.
fn bare(packet: &Ip) -> Vec<u8> {
    packet.build().split_off(14)
}

/// A packet of a client to the service, of this family.
fn client(family: usize) -> Ip {
    match family {
        0 => ip("198.51.100.7", "203.0.113.80"),
        _ => ip("2001:db8:1:2::7", "2001:db8:80::80"),
    }
}

fn syn(family: usize) -> Vec<u8> {
    bare(&client(family).tcp_with(SYN, 20, 0))
}

/// How a packet is put into another one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Form {
    /// Straight behind the IP header.
    Plain,
    /// Behind a UDP header without a checksum.
    Gue,
    /// Behind one with a checksum.
    GueSummed,
}

const FORMS: [Form; 3] = [Form::Plain, Form::Gue, Form::GueSummed];

/// Protocol number of a packet of this family inside another one.
const INSIDE: [u8; 2] = [4, 41];

/// A UDP datagram to a port.
fn datagram(port: u16, payload: &[u8]) -> Vec<u8> {
    let mut bytes = vec![0xc1, 0x23];
    bytes.extend(port.to_be_bytes());
    bytes.extend(u16::try_from(8 + payload.len()).unwrap().to_be_bytes());
    bytes.extend([0, 0]);
    bytes.extend(payload);
    bytes
}

/// The outer packet around `inner`, which is of a family.
fn around(outer: Ip, form: Form, family: usize, inner: &[u8]) -> Vec<u8> {
    match form {
        Form::Plain => outer.payload(INSIDE[family], inner).build(),
        Form::Gue | Form::GueSummed => {
            let frame = outer.payload(proto::UDP, datagram(GUE_PORT, inner)).build();
            if form == Form::GueSummed {
                return frame;
            }
            let at = frame.len() - inner.len() - 2;
            frame.with(at, &[0, 0])
        }
    }
}

fn outer(family: usize) -> Ip {
    ip(FROM[family], LOCAL[family])
}

/// How a packet of this form ends that is taken out.
fn taken_out(form: Form, outer: usize, inner: usize) -> Outcome {
    match (form, outer, inner) {
        (Form::Gue | Form::GueSummed, ..) => Outcome::DecapGue,
        (_, 0, 0) => Outcome::DecapIpip,
        (_, 0, _) => Outcome::Decap6in4,
        (_, _, 0) => Outcome::Decap4in6,
        _ => Outcome::DecapIp6ip6,
    }
}

/// With 0, 1 or 2 tags, the outer one of a provider's kind if there are two.
fn tagged(packet: Ip, tags: usize) -> Ip {
    match tags {
        0 => packet,
        1 => packet.vlan(7),
        _ => packet.tag(ADTAG, 0x6123).vlan(7),
    }
}

/// The frame in which `inner` comes out.
fn frame(family: usize, tags: usize, inner: &[u8]) -> Vec<u8> {
    let mut frame = tagged(client(family), tags).build();
    frame.truncate(14 + 4 * tags);
    frame.extend(inner);
    frame
}

/// Calls `f` with each form, outer family and inner family.
fn each(mut f: impl FnMut(&str, Form, usize, usize)) {
    for form in FORMS {
        for outer in FAMILIES {
            for inner in FAMILIES {
                let name = |family: usize| ["IPv4", "IPv6"][family];
                let what = format!("{form:?}, {} in {}", name(inner), name(outer));
                f(&what, form, outer, inner);
            }
        }
    }
}

fn every_form(world: &mut World) {
    each(|what, form, o, i| {
        for tags in 0..=2 {
            for inner in [
                syn(i),
                bare(&client(i).udp(0)),
                bare(&client(i).udp(1400)),
                bare(&client(i).icmp([8, 128][i], 56)),
            ] {
                let what = format!("{what}, {tags} tags, {} bytes", inner.len());
                let packet = tagged(outer(o), tags);
                let sent = around(packet, form, i, &inner);
                world.becomes(&what, &sent, taken_out(form, o, i), &frame(i, tags, &inner));
            }
        }
    });
    println!(
        "       decap: {} instructions verified",
        world.decap.verified_instructions().unwrap_or_default()
    );
}

fn outer_headers(world: &mut World) {
    each(|what, form, o, i| {
        let inner = syn(i);
        let headers: Vec<(&str, Ip)> = match o {
            0 => vec![
                ("4 bytes of options", outer(0).options(4)),
                ("40 bytes of options", outer(0).options(40)),
                ("an identification", outer(0).id(4711)),
            ],
            _ => vec![
                // As Linux sends them, with a limit of nested tunnels (RFC 2473, 4.1.1).
                ("options", outer(1).extension(Extension::DestOpts(8))),
                (
                    "hop-by-hop options",
                    outer(1).extension(Extension::HopByHop(16)),
                ),
                (
                    "several extension headers",
                    outer(1)
                        .extension(Extension::HopByHop(8))
                        .extension(Extension::DestOpts(24))
                        .extension(Extension::Routing(4, 24))
                        .extension(Extension::DestOpts(8)),
                ),
                (
                    "a fragment header of a whole packet",
                    outer(1).extension(Extension::Fragment(0, false)),
                ),
            ],
        };
        for (header, packet) in headers {
            for tags in 0..=2 {
                let what = format!("{what}, {header}, {tags} tags");
                let sent = around(tagged(packet.clone(), tags), form, i, &inner);
                world.becomes(&what, &sent, taken_out(form, o, i), &frame(i, tags, &inner));
            }
        }
        // Behind the outer packet, Ethernet's padding stays where it is.
        let sent = around(outer(o).pad(9), form, i, &inner);
        if form != Form::Gue {
            let out = [frame(i, 0, &inner), vec![0; 9]].concat();
            world.becomes(
                &format!("{what}, padded"),
                &sent,
                taken_out(form, o, i),
                &out,
            );
        }
    });
}

fn inner_packets(world: &mut World) {
    each(|what, form, o, i| {
        let outcome = taken_out(form, o, i);
        let pieces = [
            ("a first fragment", client(i).udp(64).piece(0..40)),
            ("a later fragment", client(i).udp(64).piece(40..72)),
            ("nothing behind its header", client(i)),
        ];
        for (kind, packet) in pieces {
            let inner = bare(&packet);
            let sent = around(outer(o), form, i, &inner);
            world.becomes(
                &format!("{what}, {kind}"),
                &sent,
                outcome,
                &frame(i, 0, &inner),
            );
        }
        let special = match i {
            0 => bare(&client(0).options(40).tcp(SYN)),
            _ => bare(&client(1).extension(Extension::DestOpts(8)).tcp(SYN)),
        };
        let sent = around(outer(o), form, i, &special);
        world.becomes(
            &format!("{what}, more header"),
            &sent,
            outcome,
            &frame(i, 0, &special),
        );
        // Only the outermost tunnel is opened: a tunnel in a tunnel is the kernel's.
        let nested = around(outer(i), Form::Plain, i, &syn(i)).split_off(14);
        let sent = around(outer(o), form, i, &nested);
        world.becomes(
            &format!("{what}, a tunnel"),
            &sent,
            outcome,
            &frame(i, 0, &nested),
        );
        // The inner packet may be shorter than the room there is for it.
        let longer = [syn(i), vec![0xee; 5]].concat();
        let sent = around(outer(o), form, i, &longer);
        world.becomes(
            &format!("{what}, more room"),
            &sent,
            outcome,
            &frame(i, 0, &longer),
        );
        // What the kernel refuses anyway is left to it.
        let mut broken = syn(i);
        broken[6] ^= 0x55;
        broken[10] ^= 0x55;
        let sent = around(outer(o), form, i, &broken);
        world.becomes(
            &format!("{what}, a bad checksum"),
            &sent,
            outcome,
            &frame(i, 0, &broken),
        );
        for version in (0u8..16).filter(|v| *v != [4, 6][i]) {
            let mut other = syn(i);
            other[0] = version << 4 | other[0] & 0xf;
            // In GUE the version says what it is: of the other family it has another length.
            if form != Form::Plain && [4, 6].contains(&version) {
                continue;
            }
            let sent = around(outer(o), form, i, &other);
            world.stays(
                &format!("{what}, version {version}"),
                &sent,
                Outcome::InnerBadVersion,
            );
        }
        if form == Form::Plain {
            let sent = around(outer(o), form, i, &syn(1 - i));
            world.stays(
                &format!("{what}, the other family"),
                &sent,
                Outcome::InnerBadVersion,
            );
        }
    });
}

/// An IP packet with another DSCP and ECN field, and the checksum of an IPv4 header
/// computed anew.
fn with_tos(mut packet: Vec<u8>, tos: u8) -> Vec<u8> {
    if packet[0] >> 4 == 4 {
        packet[1] = tos;
        let header = usize::from(packet[0] & 0xf) * 4;
        packet[10..12].fill(0);
        let sum = checksum(&[&packet[..header]]);
        packet[10..12].copy_from_slice(&sum);
    } else {
        packet[0] = packet[0] & 0xf0 | tos >> 4;
        packet[1] = packet[1] & 0x0f | tos << 4;
    }
    packet
}

fn congestion(world: &mut World) {
    const NOT_ECT: u8 = 0;
    const ECT1: u8 = 1;
    const ECT0: u8 = 2;
    const CE: u8 = 3;
    // RFC 6040, figure 4: inner, outer, what comes out.
    let table = [
        (NOT_ECT, NOT_ECT, Some(NOT_ECT)),
        (NOT_ECT, ECT0, Some(NOT_ECT)),
        (NOT_ECT, ECT1, Some(NOT_ECT)),
        (NOT_ECT, CE, None),
        (ECT0, NOT_ECT, Some(ECT0)),
        (ECT0, ECT0, Some(ECT0)),
        (ECT0, ECT1, Some(ECT1)),
        (ECT0, CE, Some(CE)),
        (ECT1, NOT_ECT, Some(ECT1)),
        (ECT1, ECT0, Some(ECT1)),
        (ECT1, ECT1, Some(ECT1)),
        (ECT1, CE, Some(CE)),
        (CE, NOT_ECT, Some(CE)),
        (CE, ECT0, Some(CE)),
        (CE, ECT1, Some(CE)),
        (CE, CE, Some(CE)),
    ];
    each(|what, form, o, i| {
        for (inner_ecn, outer_ecn, out) in table {
            for (inner_dscp, outer_dscp) in [(0, 0), (0xb8, 0), (0x28, 0xfc)] {
                for tags in 0..=2 {
                    let what = format!(
                        "{what}, {inner_ecn} in {outer_ecn}, DSCP {inner_dscp:#x} in \
                         {outer_dscp:#x}, {tags} tags"
                    );
                    let inner = with_tos(syn(i), inner_dscp | inner_ecn);
                    let sent = around(tagged(outer(o), tags), form, i, &inner);
                    let (link, packet) = sent.split_at(14 + 4 * tags);
                    let packet = with_tos(packet.to_vec(), outer_dscp | outer_ecn);
                    let sent = [link, &packet].concat();
                    match out {
                        Some(ecn) => {
                            // The outer DSCP counts for nothing (RFC 2983).
                            let inner = with_tos(inner, inner_dscp | ecn);
                            let out = frame(i, tags, &inner);
                            world.becomes(&what, &sent, taken_out(form, o, i), &out);
                        }
                        None => world.stays(&what, &sent, Outcome::EcnNotCapable),
                    }
                }
            }
        }
    });
}

fn truncation(world: &mut World) {
    each(|what, form, o, i| {
        let inner = syn(i);
        for len in 0..inner.len() {
            // The outer packet ends early, and so does the frame.
            let short = around(outer(o), form, i, &inner[..len]);
            let what = format!("{what}, {len} bytes of {}", inner.len());
            world.stays(&what, &short, Outcome::InnerTruncated);
            // The rest of it is there, but outside of the packet.
            let behind = [&short[..], &inner[len..]].concat();
            world.stays(
                &format!("{what}, the rest behind"),
                &behind,
                Outcome::InnerTruncated,
            );
        }
        // The inner one says that it is longer than it is.
        let at = [2, 4][i];
        let len = u16::from_be_bytes([inner[at], inner[at + 1]]);
        for more in [1, 1000, u16::MAX - len] {
            let mut long = inner.clone();
            long[at..at + 2].copy_from_slice(&(len + more).to_be_bytes());
            let sent = around(outer(o), form, i, &long);
            world.stays(
                &format!("{what}, {more} bytes more"),
                &sent,
                Outcome::InnerTruncated,
            );
        }
        // The frame ends before the outer packet does: that is for the kernel.
        let whole = around(outer(o), form, i, &inner);
        for len in 14..whole.len() {
            let cut = whole.clone().cut(len);
            world.stays(&format!("{what}, cut at {len}"), &cut, Outcome::Pass);
        }
    });
    // GUE ends where UDP says, wherever IP says it does.
    for o in FAMILIES {
        for i in FAMILIES {
            let inner = syn(i);
            let udp = 14 + [20, 40][o];
            let sent = around(outer(o), Form::Gue, i, &inner);
            let of = |len: usize| sent.clone().with(udp + 4, &(len as u16).to_be_bytes());
            let full = 8 + inner.len();
            world.stays("UDP ends early", &of(full - 1), Outcome::InnerTruncated);
            world.stays("UDP has nothing", &of(8), Outcome::InnerTruncated);
            world.stays("UDP ends inside of its header", &of(7), Outcome::Pass);
            world.stays("UDP ends behind IP", &of(full + 1), Outcome::Pass);
        }
    }
}

fn left_alone(world: &mut World) {
    for o in FAMILIES {
        let to = |packet: Ip| packet.build();
        for (what, frame) in [
            ("TCP", to(outer(o).tcp(SYN))),
            ("UDP to another port", to(outer(o).udp(100))),
            ("ICMP", to(outer(o).icmp([8, 128][o], 56))),
            ("no next header", to(outer(o))),
            ("GRE", to(outer(o).payload(47, [0; 40]))),
            ("SCTP", to(outer(o).payload(132, [0; 40]))),
            ("a client's", to(client(o).tcp(SYN))),
            (
                "from the port of GUE",
                to(outer(o).payload(proto::UDP, {
                    let mut bytes = datagram(53, &syn(o));
                    bytes[..2].copy_from_slice(&GUE_PORT.to_be_bytes());
                    bytes
                })),
            ),
            (
                "to the port in the other byte order",
                to(outer(o).payload(proto::UDP, datagram(GUE_PORT.swap_bytes(), &syn(o)))),
            ),
            (
                "TCP to the port of GUE",
                to(outer(o).tcp(SYN)).with(14 + [20, 40][o] + 2, &GUE_PORT.to_be_bytes()),
            ),
        ] {
            world.stays(what, &frame, Outcome::Pass);
        }
    }
    each(|what, form, o, i| {
        let inner = bare(&client(i).udp(64));
        let elsewhere = around(ip(FROM[o], ELSEWHERE[o]), form, i, &inner);
        world.stays(
            &format!("{what}, to another host"),
            &elsewhere,
            Outcome::Pass,
        );
        let passing = around(ip(STRANGER[o], ELSEWHERE[o]), form, i, &inner);
        world.stays(&format!("{what}, between others"), &passing, Outcome::Pass);
        for tags in 0..=2 {
            let whole = match form {
                Form::Plain => tagged(outer(o), tags).payload(INSIDE[i], &inner[..]),
                _ => tagged(outer(o), tags).payload(proto::UDP, datagram(GUE_PORT, &inner)),
            };
            let first = whole.clone().piece(0..48).build();
            let later = whole.piece(48..inner.len()).build();
            let what = format!("{what}, {tags} tags");
            world.stays(
                &format!("{what}, a first fragment"),
                &first,
                Outcome::PassFragment,
            );
            // Without ports nobody knows that it is one of GUE.
            let outcome = match form {
                Form::Plain => Outcome::PassFragment,
                _ => Outcome::Pass,
            };
            world.stays(&format!("{what}, a later fragment"), &later, outcome);
        }
        let deep = around(outer(o).vlan(1).vlan(2).vlan(3), form, i, &inner);
        world.stays(&format!("{what}, three tags"), &deep, Outcome::Pass);
    });
    let plain = around(outer(0), Form::Plain, 0, &syn(0));
    for (what, frame) in [
        ("ARP", arp([192, 0, 2, 1]).build()),
        ("another EtherType", ethernet(0x88b5, &[0; 60])),
        ("a link layer alone", ethernet(0x0800, &[])),
        ("IPv4 that is IPv6", ethernet(0x0800, &syn(1))),
        (
            "a header shorter than it can be",
            plain.clone().with(14, &[0x44]),
        ),
        (
            "a header longer than the packet",
            plain.with(14, &[0x4f]).cut(14 + IPV4 + 4),
        ),
    ] {
        world.stays(what, &frame, Outcome::Pass);
    }
}

fn who_may_send(world: &mut World) {
    each(|what, form, o, i| {
        let inner = syn(i);
        let stranger = |world: &mut World, source: &str, tags: usize| {
            let packet = tagged(ip(source, LOCAL[o]), tags);
            let sent = around(packet, form, i, &inner);
            let what = format!("{what} from {source}, {tags} tags");
            world.stays(&what, &sent, Outcome::SourceNotAllowed);
        };
        for tags in 0..=2 {
            stranger(world, STRANGER[o], tags);
        }
        // The mapped form of an IPv4 source that may is not that source.
        let others: [&[&str]; 2] = [
            &["0.0.0.0", "10.1.0.7", "9.255.255.255", "255.255.255.255"],
            &["::", "::ffff:10.0.0.7", "2001:db8:6:ffff::7", "fe80::7"],
        ];
        for source in others[o] {
            stranger(world, source, 0);
        }
        for source in [
            ["10.0.0.0", "2001:db8:7::"],
            ["10.0.0.255", "2001:db8:7::ffff:ffff"],
        ] {
            let sent = around(ip(source[o], LOCAL[o]), form, i, &inner);
            let what = format!("{what} from {}", source[o]);
            world.becomes(&what, &sent, taken_out(form, o, i), &frame(i, 0, &inner));
        }
        // What is malformed inside is not told to strangers.
        let sent = around(ip(STRANGER[o], LOCAL[o]), form, i, &inner[..7]);
        world.stays(
            &format!("{what}, cut short"),
            &sent,
            Outcome::SourceNotAllowed,
        );
    });
    // The addresses of the host change, and so does the port.
    let tunnel = |to: &str| around(ip(FROM[0], to), Form::Plain, 0, &syn(0));
    let now = [ELSEWHERE[0].parse().expect("an address")].into();
    if let Err(error) = world.decap.set_local(&now) {
        world.failures.push(error.to_string());
    }
    world.stays("to the old address", &tunnel(LOCAL[0]), Outcome::Pass);
    let out = frame(0, 0, &syn(0));
    world.becomes(
        "to the new one",
        &tunnel(ELSEWHERE[0]),
        Outcome::DecapIpip,
        &out,
    );
    let everybody = ["0.0.0.0/0".parse().expect("a prefix")];
    world.replace(Decap::load(&everybody, 4754).map_err(Into::into));
    world.stays("to no address", &tunnel(ELSEWHERE[0]), Outcome::Pass);
    if let Err(error) = world.decap.set_local(&now) {
        world.failures.push(error.to_string());
    }
    let gue = |port| {
        let datagram = datagram(port, &syn(0));
        ip(STRANGER[0], ELSEWHERE[0])
            .payload(proto::UDP, datagram)
            .build()
    };
    world.stays("to the usual port", &gue(GUE_PORT), Outcome::Pass);
    world.becomes("to another one", &gue(4754), Outcome::DecapGue, &out);
    world.replace(World::load());
}

fn several_buffers(world: &mut World) {
    each(|what, form, o, i| {
        for tags in 0..=2 {
            let inner = bare(&client(i).udp(8800));
            let sent = around(tagged(outer(o), tags), form, i, &inner);
            let what = format!("{what}, {tags} tags");
            world.becomes(&what, &sent, taken_out(form, o, i), &frame(i, tags, &inner));
            let short = around(tagged(outer(o), tags), form, i, &inner[..inner.len() - 1]);
            world.stays(
                &format!("{what}, cut short"),
                &short,
                Outcome::InnerTruncated,
            );
        }
    });
}
