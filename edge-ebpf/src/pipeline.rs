//! The stages in order. Each ends the packet with a reason or lets it go on.

use crate::{
    balance, clock, defence,
    emit::{self, Facts},
    hand_over::{self, Asks, Candidate, Marks},
    limiter,
    maps::{self, ARP_BINDINGS, Unknown, config},
    policy,
    source::{XdpSource, hide},
};
use aya_ebpf::programs::XdpContext;
use edge_common::{
    abi::{FragmentPolicy, LimitKind, MacAddr, Mode, Stage},
    decide::{self, Policy, Standing},
    defence::v4_halves,
    hash::{hash, hash64},
    parse::{self, Arp, Fragment, Ip, Kind, Network, tcp},
    reason::Reason,
    table::stamp,
};

/// Tag of the hash that a limit's source has; no length key of the tables has it.
const LIMIT_TAG: u32 = 0x2000;
/// Keeps the limits of an IPv6 source apart from those of the IPv4 source with
/// the same number.
const V6_KEYS: u64 = 0x5851_f42d_4c95_7f2d;

/// Decides over a frame, records it, and says how it ended.
#[inline(always)]
pub fn run(ctx: &XdpContext) -> Reason {
    let source = XdpSource::new(ctx);
    let mut facts = Facts {
        ctx,
        now: clock::now(),
        frame_len: source.linear_len() as u32,
    };
    let reason = match stages(&source, &mut facts) {
        Ok(pass) => pass,
        Err(drop) => drop,
    };
    emit::ended(facts, reason);
    reason
}

/// `Ok` is a reason that passes, `Err` one that drops or replies.
#[inline(always)]
fn stages(source: &XdpSource<'_>, facts: &mut Facts<'_>) -> Result<Reason, Reason> {
    let link = match parse::link(source) {
        Ok(link) => link,
        Err(reason) => return malformed(*facts, reason),
    };
    match link.network {
        Network::Ipv4 => v4(facts, source, link.offset),
        Network::Ipv6 => v6(facts, source, link.offset),
        Network::Arp => match parse::arp(source, link.offset) {
            Ok(arp) => guard_arp(*facts, &arp),
            Err(reason) => malformed(*facts, reason),
        },
        Network::Other => Ok(Reason::PassNotIp),
    }
}

/// What a check found, under its mode.
#[inline(always)]
fn found(facts: Facts<'_>, mode: u32, reason: Reason) -> Result<(), Reason> {
    if mode == Mode::Enforce as u32 {
        return Err(reason);
    }
    if mode == Mode::DryRun as u32 {
        emit::would_drop(facts, reason);
    }
    Ok(())
}

#[inline(always)]
fn malformed(facts: Facts<'_>, reason: Reason) -> Result<Reason, Reason> {
    found(facts, config!(malformed), reason)?;
    Ok(Reason::PassUnparsed)
}

#[inline(always)]
fn guard_arp(facts: Facts<'_>, arp: &Arp) -> Result<Reason, Reason> {
    let mode = config!(arp_guard);
    if mode != Mode::Off as u32 {
        // SAFETY: the map hands out a pointer to a value; entries are replaced
        // as a whole, and a stale one is as good as the packet before.
        let bound = unsafe { ARP_BINDINGS.get(arp.sender_ip) };
        let is_bound = |mac| bound.is_none_or(|bound| same_mac(bound, mac));
        if !is_bound(arp.sender_mac) || !is_bound(arp.frame_source) {
            found(facts, mode, Reason::ArpSpoof)?;
        }
    }
    Ok(Reason::PassArp)
}

#[inline(always)]
fn same_mac(bound: &MacAddr, mac: [u8; 6]) -> bool {
    let [a, b, c, d, e, f, _, _] = bound.octets;
    [a, b, c, d, e, f] == mac
}

/// What the stages behind the parser ask of a packet: numbers of which the
/// verifier does not know how the parser came to them.
struct Packet {
    /// 0: whole; 1: the first fragment; else the offset of a later one.
    fragment: u32,
    /// The lower half of [`Marks`].
    marks: u32,
    /// The upper half.
    place: u32,
}

impl Packet {
    #[inline(always)]
    fn new<A>(ip: &Ip<A>, network: usize, v6: bool, now: u64) -> Self {
        let unknown = Unknown::new(now);
        let transport = &ip.transport;
        let marks = transport.tcp_flags as u32
            | (transport.kind as u32) << Marks::KIND
            | (transport.truncated as u32) << Marks::TRUNCATED
            | (v6 as u32) << Marks::V6
            | (ip.proto as u32) << Marks::PROTO
            | (network as u32) << Marks::NETWORK;
        let far = Marks::FAR as u32;
        let offset = transport.offset as u32;
        let place = u16::from_be(transport.dest_port) as u32
            | (if offset < far { offset } else { far }) << (Marks::TRANSPORT - 32)
            | (!matches!(ip.fragment, Fragment::Whole) as u32) << (Marks::FRAGMENT - 32);
        Self {
            fragment: unknown.number(match ip.fragment {
                Fragment::Whole => 0,
                Fragment::First => 1,
                Fragment::Later { offset } => offset as u32,
            }),
            marks: unknown.number(marks),
            place: unknown.number(place),
        }
    }

    #[inline(always)]
    fn candidate<'a>(&self, facts: Facts<'a>, hash: u64) -> Candidate<'a> {
        let marks = self.marks as u64
            | (self.place as u64) << 32
            | ((self.fragment <= 1) as u64) << Marks::WHOLE;
        Candidate {
            facts,
            marks: maps::forget(facts.now, marks),
            hash,
        }
    }

    /// Hands it over to the balancer if it is for a service there: also who is on no list
    /// that drops, and in no need of any other stage, has to get to the backends.
    #[inline(always)]
    fn balance(&self, facts: Facts<'_>, dest: [u64; 2]) {
        if balance::is_on() {
            to_balancer(self.candidate(facts, 0), balance::asks(dest));
        }
    }

    /// Hands it over to the stages that have to be asked, from where it does not come back.
    /// `hash` is a keyed one of the source.
    #[inline(always)]
    fn hand_over(&self, facts: Facts<'_>, hash: u64, dest: [u64; 2]) {
        if !defence::is_on() && !balance::is_on() {
            return;
        }
        let candidate = self.candidate(facts, hash);
        let mut asks = 0;
        if defence::is_on() {
            asks = defence::asks(candidate);
        }
        if balance::is_on() {
            let wanted = balance::asks(dest);
            if asks == 0 {
                to_balancer(candidate, wanted);
                return;
            }
            asks |= wanted;
        }
        if asks != 0 {
            hand_over::to(candidate, asks, Stage::Defence);
        }
    }

    #[inline(always)]
    fn is(&self, kind: Kind) -> bool {
        self.marks >> Marks::KIND & 0xf == kind as u32
    }

    #[inline(always)]
    fn tcp_flags(&self) -> u8 {
        self.marks as u8
    }

    #[inline(always)]
    fn proto(&self) -> u8 {
        (self.marks >> Marks::PROTO) as u8
    }

    /// What speaks against it as a fragment.
    #[inline(always)]
    fn risky_fragment(&self) -> Option<Reason> {
        let fragment = match self.fragment {
            0 => Fragment::Whole,
            1 => Fragment::First,
            offset => Fragment::Later {
                offset: offset as u16,
            },
        };
        let truncated = self.marks >> Marks::TRUNCATED & 1 != 0;
        decide::risky_fragment(fragment, truncated, self.proto())
    }

    /// The limit that counts it beside those of packets and bytes;
    /// [`LimitKind::Packets`] when there is none.
    #[inline(always)]
    fn class(&self) -> LimitKind {
        let flags = self.tcp_flags();
        let is_syn = flags & (tcp::SYN | tcp::ACK) == tcp::SYN;
        if self.is(Kind::Tcp) {
            if is_syn {
                LimitKind::Syn
            } else {
                LimitKind::Packets
            }
        } else if self.is(Kind::Udp) {
            LimitKind::Udp
        } else if self.is(Kind::Icmp) {
            LimitKind::Icmp
        } else if self.is(Kind::TcpHead) && (is_syn || flags == 0) {
            // A first fragment that ends before the flags may be the head of a SYN.
            LimitKind::Syn
        } else {
            LimitKind::Packets
        }
    }
}

/// Hands a packet over to the part of the balancer that it is for, if there is one.
#[inline(always)]
fn to_balancer(candidate: Candidate<'_>, wanted: u32) {
    if wanted == Asks::BALANCE {
        hand_over::to(candidate, wanted, Stage::Balance);
    } else if wanted == Asks::NAT {
        hand_over::to(candidate, wanted, Stage::Nat);
    }
}

#[inline(always)]
fn v4(facts: &mut Facts<'_>, source: &XdpSource<'_>, offset: usize) -> Result<Reason, Reason> {
    let head = match parse::ipv4_head(source, offset) {
        Ok(head) => head,
        Err(reason) => return malformed(*facts, reason),
    };
    let facts = whole_frame(facts, Unknown::new(facts.now).number(head.end as u32));
    let host = hash64(maps::seed(), head.source as u64);
    let policy = policy::v4(head.source, host, stamp(facts.now));
    let policy = not_blacklisted(facts, policy)?;
    let ip = match parse::ipv4_rest(source, head) {
        Ok(ip) => ip,
        Err(reason) => return malformed(facts, reason),
    };
    let packet = Packet::new(&ip, offset, false, facts.now);
    if let Some(pass) = standing(facts, policy, false, &packet)? {
        packet.balance(facts, v4_halves(ip.dest));
        return Ok(pass);
    }
    sanity(facts, &packet, ip.source == ip.dest)?;
    if limiter::is_on() {
        let mask = config!(limit_mask4);
        // Known to the verifier: the usual /32 needs no second hash.
        let key = if mask == u32::MAX {
            host
        } else {
            hash64(maps::seed(), (ip.source & mask) as u64)
        };
        limiter::charge(facts, key, policy.profile(), packet.class())?;
    }
    packet.hand_over(facts, host, v4_halves(ip.dest));
    Ok(Reason::Pass)
}

#[inline(always)]
fn v6(facts: &mut Facts<'_>, source: &XdpSource<'_>, offset: usize) -> Result<Reason, Reason> {
    let head = match parse::ipv6_head(source, offset) {
        Ok(head) => head,
        Err(reason) => return malformed(*facts, reason),
    };
    let facts = whole_frame(facts, Unknown::new(facts.now).number(head.end as u32));
    let [hi, lo] = head.source.map(u64::from_be);
    let policy = policy::v6(maps::seed(), hi, lo, stamp(facts.now));
    let policy = not_blacklisted(facts, policy)?;
    let ip = match parse::ipv6_rest(source, head) {
        Ok(ip) => ip,
        Err(reason) => return malformed(facts, reason),
    };
    let packet = Packet::new(&ip, offset, true, facts.now);
    // Put together here and not where they are asked for: one word to keep until then.
    let packet = Packet {
        marks: hide(packet.marks as u64) as u32,
        ..packet
    };
    if let Some(pass) = standing(facts, policy, hi | lo == 0, &packet)? {
        packet.balance(facts, ip.dest);
        return Ok(pass);
    }
    sanity(facts, &packet, ip.source == ip.dest)?;
    if limiter::is_on() {
        let (mask_hi, mask_lo) = (config!(limit_mask6_hi), config!(limit_mask6_lo));
        // Known to the verifier: the usual /64 shares a round with the host's hash.
        let key = if mask_hi == u64::MAX && mask_lo == 0 {
            // Apart from IPv4 addresses, whose hash is made the same way.
            hash64(maps::seed(), hi) ^ V6_KEYS
        } else {
            hash(maps::seed(), hi & mask_hi, lo & mask_lo, LIMIT_TAG)
        };
        limiter::charge(facts, key, policy.profile(), packet.class())?;
    }
    packet.hand_over(facts, hash64(maps::seed(), hi), ip.dest);
    Ok(Reason::Pass)
}

/// A multi-buffer frame is longer than its linear part; the packet tells.
#[inline(always)]
fn whole_frame<'a>(facts: &mut Facts<'a>, end: u32) -> Facts<'a> {
    if end > facts.frame_len {
        facts.frame_len = end;
    }
    *facts
}

/// The blacklist, before the rest of the packet is looked at: a flood from listed sources
/// costs least. Gives the policy, of which the verifier has forgotten how it was come to.
#[inline(always)]
fn not_blacklisted(facts: Facts<'_>, policy: Policy) -> Result<Policy, Reason> {
    if policy.is_only_blacklisted() {
        found(facts, config!(blacklist), Reason::Blacklisted)?;
    }
    let word = maps::forget(facts.now, policy.word() as u64);
    Ok(Policy::from_word(word as u32))
}

/// Management guard, allowlist and bogons: `Some` passes at once.
/// `unspecified` tells that the source is `::`.
#[inline(always)]
fn standing(
    facts: Facts<'_>,
    policy: Policy,
    unspecified: bool,
    packet: &Packet,
) -> Result<Option<Reason>, Reason> {
    // Of most sources nothing is known, which is one comparison instead of four.
    if policy == Policy::NONE {
        return Ok(None);
    }
    match policy.standing() {
        Standing::Management => return Ok(Some(Reason::PassManagement)),
        Standing::Allowlisted => return Ok(Some(Reason::PassAllowlisted)),
        // On the blacklist, but that is off or in dry run: see `not_blacklisted`.
        Standing::Blacklisted | Standing::Unlisted => {}
    }
    if policy.is_bogon() && !decide::may_be_unspecified(unspecified, packet.proto()) {
        found(facts, config!(bogons), Reason::Bogon)?;
    }
    Ok(None)
}

#[inline(always)]
fn sanity(facts: Facts<'_>, packet: &Packet, same_addresses: bool) -> Result<(), Reason> {
    if same_addresses {
        found(facts, config!(land), Reason::Land)?;
    }
    if packet.fragment != 0 {
        let mode = config!(fragments);
        if mode == Mode::Off as u32 {
        } else if config!(fragment_policy) == FragmentPolicy::DropAll as u32 {
            found(facts, mode, Reason::Fragment)?;
        } else if let Some(reason) = packet.risky_fragment() {
            found(facts, mode, reason)?;
        }
    }
    let mode = config!(tcp_flags);
    if mode != Mode::Off as u32
        && packet.is(Kind::Tcp)
        && decide::are_impossible_tcp_flags(packet.tcp_flags())
        && let Some(reason) = decide::impossible_tcp_flags(packet.tcp_flags())
    {
        found(facts, mode, reason)?;
    }
    Ok(())
}
