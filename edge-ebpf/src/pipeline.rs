//! The stages in order. Each ends the packet with a reason or lets it go on.

use crate::{
    clock,
    emit::{self, Facts},
    limiter,
    maps::{ARP_BINDINGS, Unknown, config},
    policy,
    source::XdpSource,
};
use aya_ebpf::programs::XdpContext;
use edge_common::{
    abi::{FragmentPolicy, LimitKind, MacAddr, Mode},
    decide::{self, Policy, Standing},
    hash::{hash, hash64},
    parse::{self, Arp, Fragment, Ip, Network, Transport, V4, V6, proto, tcp},
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

/// `Ok` is a reason that passes, `Err` one that drops.
#[inline(always)]
fn stages(source: &XdpSource<'_>, facts: &mut Facts<'_>) -> Result<Reason, Reason> {
    let link = match parse::link(source) {
        Ok(link) => link,
        Err(reason) => return malformed(*facts, reason),
    };
    match link.network {
        Network::Ipv4 => match parse::ipv4(source, link.offset) {
            Ok(ip) => v4(facts, &forget(ip)),
            Err(reason) => malformed(*facts, reason),
        },
        Network::Ipv6 => match parse::ipv6(source, link.offset) {
            Ok(ip) => v6(facts, &forget(ip)),
            Err(reason) => malformed(*facts, reason),
        },
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

#[inline(always)]
fn v4(facts: &mut Facts<'_>, ip: &Ip<V4>) -> Result<Reason, Reason> {
    let facts = whole_frame(facts, ip.end);
    let seed = config!(seed);
    let host = hash64(&seed, ip.source as u64);
    let policy = policy::v4(ip.source, host, stamp(facts.now));
    if let Some(pass) = standing(facts, policy, false, ip.proto)? {
        return Ok(pass);
    }
    sanity(facts, ip, ip.source == ip.dest)?;
    if limiter::is_on() {
        let mask = config!(limit_mask4);
        // Known to the verifier: the usual /32 needs no second hash.
        let key = if mask == u32::MAX {
            host
        } else {
            hash64(&seed, (ip.source & mask) as u64)
        };
        limiter::charge(facts, key, policy.profile(), class(ip))?;
    }
    Ok(Reason::Pass)
}

#[inline(always)]
fn v6(facts: &mut Facts<'_>, ip: &Ip<V6>) -> Result<Reason, Reason> {
    let facts = whole_frame(facts, ip.end);
    let [a, b, c, d] = ip.source;
    let (hi, lo) = (pair(a, b), pair(c, d));
    let seed = config!(seed);
    let policy = policy::v6(&seed, hi, lo, stamp(facts.now));
    if let Some(pass) = standing(facts, policy, hi | lo == 0, ip.proto)? {
        return Ok(pass);
    }
    let [e, f, g, h] = ip.dest;
    sanity(facts, ip, hi == pair(e, f) && lo == pair(g, h))?;
    if limiter::is_on() {
        let (mask_hi, mask_lo) = (config!(limit_mask6_hi), config!(limit_mask6_lo));
        // Known to the verifier: the usual /64 shares a round with the host's hash.
        let key = if mask_hi == u64::MAX && mask_lo == 0 {
            // Apart from IPv4 addresses, whose hash is made the same way.
            hash64(&seed, hi) ^ V6_KEYS
        } else {
            hash(&seed, hi & mask_hi, lo & mask_lo, LIMIT_TAG)
        };
        limiter::charge(facts, key, policy.profile(), class(ip))?;
    }
    Ok(Reason::Pass)
}

/// Two words of the wire as a number.
#[inline(always)]
fn pair(high: u32, low: u32) -> u64 {
    (u32::from_be(high) as u64) << 32 | u32::from_be(low) as u64
}

/// The packet, of which the verifier has forgotten how it was parsed.
#[inline(always)]
fn forget<A>(ip: Ip<A>) -> Ip<A> {
    let zero = Unknown::new();
    let offset = match ip.fragment {
        Fragment::Whole => 0,
        Fragment::First => 1,
        Fragment::Later { offset } => offset as u32,
    };
    let fragment = match zero.number(offset) {
        0 => Fragment::Whole,
        1 => Fragment::First,
        offset => Fragment::Later {
            offset: offset as u16,
        },
    };
    let flags = zero.number(ip.transport.tcp_flags as u32 | (ip.transport.truncated as u32) << 8);
    Ip {
        fragment,
        end: zero.number(ip.end as u32) as usize,
        proto: zero.number(ip.proto as u32) as u8,
        transport: Transport {
            tcp_flags: flags as u8,
            truncated: flags >> 8 != 0,
            ..ip.transport
        },
        ..ip
    }
}

/// A multi-buffer frame is longer than its linear part; the packet tells.
#[inline(always)]
fn whole_frame<'a>(facts: &mut Facts<'a>, end: usize) -> Facts<'a> {
    if end as u32 > facts.frame_len {
        facts.frame_len = end as u32;
    }
    *facts
}

/// Management guard, allowlist, blacklist and bogons: `Some` passes at once.
/// `unspecified` tells that the source is `::`.
#[inline(always)]
fn standing(
    facts: Facts<'_>,
    policy: Policy,
    unspecified: bool,
    proto: u8,
) -> Result<Option<Reason>, Reason> {
    match policy.standing() {
        Standing::Unlisted => {}
        Standing::Management => return Ok(Some(Reason::PassManagement)),
        Standing::Allowlisted => return Ok(Some(Reason::PassAllowlisted)),
        Standing::Blacklisted => found(facts, config!(blacklist), Reason::Blacklisted)?,
    }
    if policy.is_bogon() && !decide::may_be_unspecified(unspecified, proto) {
        found(facts, config!(bogons), Reason::Bogon)?;
    }
    Ok(None)
}

#[inline(always)]
fn sanity<A>(facts: Facts<'_>, ip: &Ip<A>, same_addresses: bool) -> Result<(), Reason> {
    if same_addresses {
        found(facts, config!(land), Reason::Land)?;
    }
    let mode = config!(fragments);
    if mode != Mode::Off as u32 && ip.fragment != Fragment::Whole {
        if config!(fragment_policy) == FragmentPolicy::DropAll as u32 {
            found(facts, mode, Reason::Fragment)?;
        } else if let Some(reason) = decide::risky_fragment(ip.fragment, &ip.transport, ip.proto) {
            found(facts, mode, reason)?;
        }
    }
    let mode = config!(tcp_flags);
    let has_flags = ip.proto == proto::TCP
        && !matches!(ip.fragment, Fragment::Later { .. })
        && !ip.transport.truncated;
    if mode != Mode::Off as u32
        && has_flags
        && let Some(reason) = decide::impossible_tcp_flags(ip.transport.tcp_flags)
    {
        found(facts, mode, reason)?;
    }
    Ok(())
}

/// The limit that counts this packet beside those of packets and bytes;
/// [`LimitKind::Packets`] when there is none.
#[inline(always)]
fn class<A>(ip: &Ip<A>) -> LimitKind {
    match ip.proto {
        proto::TCP if ip.transport.tcp_flags & (tcp::SYN | tcp::ACK) == tcp::SYN => LimitKind::Syn,
        // A first fragment that ends before the flags may be the head of a SYN.
        proto::TCP if ip.transport.truncated && ip.transport.tcp_flags == 0 => LimitKind::Syn,
        proto::UDP => LimitKind::Udp,
        proto::ICMP | proto::ICMPV6 => LimitKind::Icmp,
        _ => LimitKind::Packets,
    }
}
