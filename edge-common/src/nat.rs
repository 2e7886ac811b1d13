//! NAT both ways: how the balancer's table of source addresses and ports is laid out.
//!
//! A flow to a backend leaves with an address and port of ours as its source, and the
//! answer is found by them. The table is a plain array of all of them, one cache line a
//! port; it is the table of these flows as well: a flow lies in one of [`WAYS`] ports
//! that follow from its hash, mostly in the first. So a packet touches one line whichever way it
//! goes, and there is nothing else that could disagree.
//!
//! A port serves one flow of either protocol at a time.

use crate::{
    balance::{Flow, FlowSlot, FlowWord, Idle, worth},
    hash::reduce,
    parse::{ethertype, proto},
};

/// The most source addresses of each family.
pub const MAX_SOURCES: u32 = 64;

/// Ports of an address, as the table has them; the first [`FIRST_PORT`] are never used.
pub const PORTS: u32 = 1 << 16;

/// The first port that is used: those below are of services.
pub const FIRST_PORT: u32 = 1024;

/// In how many ports a flow may lie.
pub const WAYS: u32 = 8;

/// The addresses of a number, an entry of `SOURCES`; packets leave with that of the
/// backend's family. All zeros: there is none.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Source {
    /// In its mapped form ([`crate::defence::v4_halves`]).
    pub v4: [u64; 2],
    /// As on the wire.
    pub v6: [u64; 2],
}

/// A port of a source address, an entry of `PORTS_IN_USE`: one cache line, index from
/// [`index`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct PortSlot {
    /// [`FlowWord`] of the flow that has it; 0: never had one. Written last.
    pub word: u64,
    /// [`Ends`] of the flow.
    pub ends: u64,
    /// The client's address; IPv4 in its mapped form.
    pub client: [u64; 2],
    /// The service's, likewise.
    pub vip: [u64; 2],
    /// Where the client's packets come from, as [`crate::balance::Backend::hop`].
    pub hop: [u64; 2],
}

const _: () = assert!(size_of::<PortSlot>() == 64);

/// The entry of a port of the source address with a number.
#[inline(always)]
pub const fn index(source: u32, port: u16) -> u32 {
    source << 16 | port as u32
}

/// The port of an entry.
#[inline(always)]
pub const fn port_of(index: u32) -> u16 {
    index as u16
}

/// The number of the source address of an entry.
#[inline(always)]
pub const fn source_of(index: u32) -> u32 {
    index >> 16
}

/// An entry in which a flow with a hash may lie, of so many addresses: the ways of a flow
/// are ports of one address, as far from each other as chance has it. Neighbours would
/// run out much earlier.
#[inline(always)]
pub const fn way(hash: u64, sources: u32, i: u32) -> u32 {
    let source = reduce((hash >> 32) as u32, sources);
    // Bits that neither the address nor the first port depends on.
    let step = (hash >> 16) as u32 | 1;
    let at = (hash as u32).wrapping_add(step.wrapping_mul(i));
    source << 16 | (FIRST_PORT + reduce(at, PORTS - FIRST_PORT))
}

/// Ports, protocol and family of a flow, and the VLAN tags of the client's frames, as one
/// word.
pub struct Ends;

impl Ends {
    const UDP: u64 = 1 << 32;
    const V6: u64 = 1 << 33;
    const TAGS: u32 = 34;
    /// What tells flows apart.
    pub const FLOW: u64 = (1 << Self::TAGS) - 1;

    /// Those of a flow, without tags.
    #[inline(always)]
    pub const fn of(flow: &Flow, v6: bool) -> u64 {
        let mut word = flow.ports as u64;
        if flow.proto == proto::UDP {
            word |= Self::UDP;
        }
        if v6 {
            word |= Self::V6;
        }
        word
    }

    /// The same flow with other tags, as [`Tags`].
    #[inline(always)]
    pub const fn with_tags(word: u64, tags: u32) -> u64 {
        word & Self::FLOW | (tags as u64) << Self::TAGS
    }

    /// The client's port and the service's, as its packets have them on the wire.
    #[inline(always)]
    pub const fn ports(word: u64) -> u32 {
        word as u32
    }

    /// Whether client and service have IPv6 addresses.
    #[inline(always)]
    pub const fn is_v6(word: u64) -> bool {
        word & Self::V6 != 0
    }

    /// The tags.
    #[inline(always)]
    pub const fn tags(word: u64) -> u32 {
        (word >> Self::TAGS) as u32
    }
}

/// Up to two VLAN tags as a number of 26 bits, without priorities. 0: none.
pub struct Tags;

impl Tags {
    /// The type of the outer one: 802.1Q, 802.1ad, and the one before that.
    const Q: u32 = 1;
    const AD: u32 = 2;
    const OLD: u32 = 3;
    const OUTER: u32 = 2;
    const INNER: u32 = 14;

    /// One 802.1Q tag; 0: none.
    #[inline(always)]
    pub const fn vlan(id: u16) -> u32 {
        if id == 0 {
            0
        } else {
            Self::Q | (id as u32 & 0xfff) << Self::OUTER
        }
    }

    /// From the tags of a frame, byte order of the wire; the control of a second one is
    /// 0 when there is none.
    #[inline(always)]
    pub const fn read(kind: u16, control: u16, inner: u16) -> u32 {
        let outer = u16::from_be(control) as u32 & 0xfff;
        let inner = u16::from_be(inner) as u32 & 0xfff;
        let kind = if kind == ethertype::VLAN {
            Self::Q
        } else if kind == ethertype::SERVICE_VLAN {
            Self::AD
        } else {
            Self::OLD
        };
        kind | outer << Self::OUTER | inner << Self::INNER
    }

    /// Bytes of them.
    #[inline(always)]
    pub const fn len(tags: u32) -> usize {
        if tags == 0 {
            0
        } else if tags >> Self::INNER == 0 {
            4
        } else {
            8
        }
    }

    /// The outer one, byte order of the wire.
    #[inline(always)]
    pub const fn outer(tags: u32) -> [u16; 2] {
        let kind = match tags & 3 {
            Self::OLD => ethertype::OLD_SERVICE_VLAN,
            Self::AD => ethertype::SERVICE_VLAN,
            _ => ethertype::VLAN,
        };
        [kind, ((tags >> Self::OUTER & 0xfff) as u16).to_be()]
    }

    /// The inner one.
    #[inline(always)]
    pub const fn inner(tags: u32) -> [u16; 2] {
        [
            ethertype::VLAN,
            ((tags >> Self::INNER & 0xfff) as u16).to_be(),
        ]
    }
}

/// How good a port with this state is to be given to another flow; 0: not at all.
#[inline(always)]
pub const fn port_worth(word: u64, now: u32, idle: Idle) -> u32 {
    if FlowWord::is_claimed(word) {
        return 0;
    }
    // The first one that is free is as good as any.
    match worth(FlowSlot { tag: word, word }, now, idle) {
        FREE.. => FREE,
        less => less,
    }
}

/// The [`port_worth`] of a port that nobody has any more.
pub const FREE: u32 = 1 << 20;

/// What a backend says to SYNs, on one CPU: an entry of `BACKEND_SIGNALS`, by number.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Signals {
    /// SYNs that went to it.
    pub syns: u64,
    /// SYN-ACKs that came from it.
    pub syn_acks: u64,
    /// Resets that came from it in answer to a flow's first packets.
    pub resets: u64,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::balance::FlowState;
    use proptest::prelude::*;
    use std::vec;

    proptest! {
        #[test]
        fn ports_of_a_flow_are_usable(hash: u64, sources in 1..=MAX_SOURCES) {
            for i in 0..WAYS {
                let at = way(hash, sources, i);
                prop_assert!(u32::from(port_of(at)) >= FIRST_PORT);
                prop_assert_eq!(source_of(at), source_of(way(hash, sources, 0)));
                prop_assert!(source_of(at) < sources);
                prop_assert_eq!(index(source_of(at), port_of(at)), at);
            }
        }

        #[test]
        fn ends_hold_all(ports: u32, udp: bool, v6: bool, outer in 0u16..4096, inner in 0u16..4096) {
            let proto = if udp { proto::UDP } else { proto::TCP };
            let flow = Flow { client: [0; 2], vip: [0; 2], ports, proto };
            let word = Ends::of(&flow, v6);
            for kind in [ethertype::VLAN, ethertype::SERVICE_VLAN, ethertype::OLD_SERVICE_VLAN] {
                let tags = Tags::read(kind, outer.to_be(), inner.to_be());
                let tagged = Ends::with_tags(word, tags);
                prop_assert_eq!(tagged & Ends::FLOW, word);
                prop_assert_eq!(Ends::ports(tagged), ports);
                prop_assert_eq!(Ends::is_v6(tagged), v6);
                prop_assert_eq!(Ends::tags(tagged), tags);
                prop_assert_eq!(Tags::outer(tags), [kind, outer.to_be()]);
                prop_assert_eq!(Tags::inner(tags), [ethertype::VLAN, inner.to_be()]);
                prop_assert_eq!(Tags::len(tags), if inner == 0 { 4 } else { 8 });
            }
            prop_assert_eq!(Tags::len(Tags::vlan(0)), 0);
        }
    }

    /// How full the table gets before flows find no port.
    #[test]
    fn flows_find_ports_until_most_are_taken() {
        const SOURCES: u32 = 4;
        let now = 1000;
        let word = FlowWord::of(1, 1, true, FlowState::Established, now);
        let idle = Idle { tcp: 900, udp: 100 };
        let ports = SOURCES * (PORTS - FIRST_PORT);
        let mut table = vec![0u64; (SOURCES * PORTS) as usize];
        let mut random = 1u64;
        let (mut taken, mut first, mut at_half) = (0u32, None, 0u32);
        for n in 0..ports {
            // A step of splitmix64.
            random = random.wrapping_add(0x9e37_79b9_7f4a_7c15);
            let mut hash = (random ^ random >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            hash = (hash ^ hash >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
            hash ^= hash >> 31;
            let free = (0..WAYS)
                .map(|i| way(hash, SOURCES, i))
                .find(|at| port_worth(table[*at as usize], now, idle) != 0);
            if let Some(at) = free {
                table[at as usize] = word;
                taken += 1;
            } else {
                first = first.or(Some(taken));
            }
            if n == ports / 2 {
                at_half = n + 1 - taken;
            }
        }
        assert!(first.unwrap() > ports / 5);
        // Of as many flows as half the ports one in a thousand, of as many as there are one
        // in nine.
        assert!(at_half < ports / 2 / 1000, "{at_half}");
        assert!(taken > ports / 9 * 8, "{taken}");
    }
}
