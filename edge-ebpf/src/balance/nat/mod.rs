//! NAT both ways: packets go to the backend from an address and port of ours, to which
//! it answers.
//!
//! It is a program of its own, [`crate::edge_nat`]. The balancer goes on with it for packets
//! of a service that is balanced like this, the packet path for those to an address of ours
//! ([`Asks::NAT`](crate::hand_over::Asks::NAT)). For each it is found first what is to become of
//! it ([`ports`]), and that is then carried out for both ways at one place ([`translate`]):
//! what lies in the scratch in between the verifier knows nothing of.

mod errors;
mod ports;
mod translate;

use super::{End, Packet, icmp, target_of};
use crate::{
    defence::frame::Addresses,
    emit::{self, Facts},
    hand_over::{self, HandOver, Marks},
    maps::{SCRATCH, config},
    source::XdpSource,
};
use aya_ebpf::programs::XdpContext;
use edge_common::{
    abi::Stage,
    balance::Flow,
    defence::{IcmpKind, SOURCE_PROTO, TARGET_SOURCE},
    parse::{Kind, PacketSource as _},
    reason::Reason,
};

/// A flow, and what becomes of its packet.
#[repr(C)]
pub struct Translation {
    /// The flow as the table has it, see [`edge_common::nat::PortSlot`].
    client: [u64; 2],
    vip: [u64; 2],
    hop: [u64; 2],
    ends: u64,
    /// The port that is best to take, how good it is, and its word.
    best: u32,
    most: u32,
    was: u64,

    /// The new addresses, IPv4 in mapped form.
    source: [u64; 2],
    dest: [u64; 2],
    /// The new ports, as on the wire.
    ports: u32,
    /// Whether the new addresses are IPv6.
    v6: u32,
    /// Where it goes, as [`edge_common::balance::Backend::hop`], in these tags.
    link: [u64; 2],
    tags: u32,
    /// The most bytes of an IP packet that way, and the other way.
    mtu: u32,
    mtu_back: u32,
    /// Sum of what has changed with the addresses.
    diff: u32,
    /// Bytes of a packet to be summed.
    bytes: [u32; translate::CHUNK / 4],
}

/// Reads a field of the work at hand.
macro_rules! work {
    ($work:expr, $($field:tt)+) => {
        // SAFETY: a map value that belongs to this CPU.
        unsafe { (&raw const (*$work).$($field)+).read_volatile() }
    };
}
use work;

/// Whether there is anything to do. Known to the verifier.
#[inline(always)]
pub fn is_on() -> bool {
    config!(snat) != 0
}

/// Goes on with the program for a packet of a service that is balanced like this.
#[inline(always)]
pub fn go_on(facts: Facts<'_>, balance: u64) -> End {
    if is_on() {
        HandOver::set_balance(balance);
        hand_over::go_on(facts, Stage::Nat);
    }
    End::new(Reason::NatNoPort)
}

/// The program.
#[inline(always)]
pub fn run(ctx: &XdpContext) -> End {
    let Some((facts, marks, _)) = HandOver::take(ctx) else {
        return End::new(Reason::Pass);
    };
    let end = judge(facts, marks);
    emit::ended(facts, end.reason);
    end
}

#[inline(always)]
fn judge(facts: Facts<'_>, marks: u64) -> End {
    let pass = End::new(Reason::Pass);
    let source = XdpSource::new(facts.ctx);
    let (Some(addresses), Some(scratch)) =
        (Addresses::read(&source, marks), SCRATCH.get_ptr_mut(0))
    else {
        return pass;
    };
    // SAFETY: a map value that belongs to this CPU.
    let work = unsafe { &raw mut (*scratch).nat };
    let kind = marks >> Marks::KIND & 0xf;
    let is_error = kind == Kind::Icmp as u64;
    let packet = Packet {
        is_error,
        ..Packet::new(marks)
    };
    let balance = HandOver::balance();
    let mut number = 0;
    if balance == 0 {
        let Some(found) = target_of(addresses.dest, 0, SOURCE_PROTO, TARGET_SOURCE) else {
            // An address with the same bit in the filter.
            hand_over::go_on(facts, Stage::Balance);
            return pass;
        };
        // Without ports nobody knows whose it is: the address may be the host's own.
        if marks >> Marks::WHOLE & 1 == 0 {
            return pass;
        }
        number = found;
    }
    let flow = if is_error {
        let is_one = source
            .byte(packet.transport)
            .is_some_and(|kind| IcmpKind::of(packet.v6, kind) == Some(IcmpKind::Error));
        match icmp::embedded(&source, packet) {
            // Who sent the packet gets the error.
            Some(flow) if is_one && flow.vip == addresses.dest => flow,
            _ => return pass,
        }
    } else if packet.is_tcp || kind == Kind::Udp as u64 {
        let Some([ports]) = source.words::<1>(packet.transport) else {
            return pass;
        };
        Flow {
            client: addresses.source,
            vip: addresses.dest,
            ports,
            proto: (marks >> Marks::PROTO) as u8,
        }
    } else {
        return pass;
    };
    let about = About {
        facts,
        packet,
        addresses,
        flow,
    };
    let found = if balance == 0 {
        ports::back(&about, number, work)
    } else {
        ports::forth(&about, balance, work)
    };
    if found != Reason::Forwarded {
        return End::new(found);
    }
    if marks >> Marks::FRAGMENT & 1 != 0 {
        return End::new(Reason::ForwardFragment);
    }
    if is_error {
        let rewritten = errors::rewrite(facts, packet, work);
        if rewritten != Reason::Forwarded {
            return End::new(rewritten);
        }
        return translate::send(facts, packet, work, 0);
    }
    translate::send(facts, packet, work, flow.proto)
}

/// A packet, and the flow that it is of or about.
struct About<'a> {
    facts: Facts<'a>,
    packet: Packet,
    addresses: Addresses,
    /// As packets have it that go the same way.
    flow: Flow,
}
