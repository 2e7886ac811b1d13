//! ICMP errors about packets that went through NAT: what they carry of the packet is
//! made into what its sender knows of it (RFC 5508, 4).

use super::{Translation, work};
use crate::{
    balance::{Packet, icmp},
    defence::{frame::Addresses, halves},
    emit::Facts,
    source::XdpSource,
};
use edge_common::{header::Sum, parse::PacketSource as _, reason::Reason};

/// Rewrites the packet in an error, whose own addresses are left to [`super::translate`]. The
/// checksums of the packet's payload stay as they are: nobody looks at them there.
#[inline(always)]
pub fn rewrite(facts: Facts<'_>, packet: Packet, work: *const Translation) -> Reason {
    if (work!(work, v6) != 0) != packet.v6 {
        return Reason::NatFamily;
    }
    let source = XdpSource::new(facts.ctx);
    let inner = packet.transport + icmp::ERROR_LEN;
    let at_check = packet.transport + 2;
    // One by one: of a tuple of options LLVM makes registers that the verifier finds unset.
    let Some(sent) = Addresses::read_at(&source, packet.v6, inner) else {
        return Reason::Pass;
    };
    let Some(header) = icmp::embedded_len(&source, packet) else {
        return Reason::Pass;
    };
    let Some(check) = source.half(at_check) else {
        return Reason::Pass;
    };
    let at_ports = inner + header;
    let Some([old]) = source.words::<1>(at_ports) else {
        return Reason::Pass;
    };
    // It went where the error comes from.
    let (from, dest) = (work!(work, dest), work!(work, source));
    let ports = work!(work, ports).rotate_left(16);
    let change = Sum::default()
        .readdress(sent.source, from)
        .readdress(sent.dest, dest);
    let mut sum = Sum::default().replace(old, ports);
    let addressed = if packet.v6 {
        // Here the checksum covers the addresses of both.
        sum = sum.plus(change).word(work!(work, diff));
        source.write(inner + 8, [from[0], from[1], dest[0], dest[1]])
    } else {
        // What the addresses change in the sum the header's checksum takes back.
        let Some(header) = source.half(inner + 10) else {
            return Reason::Pass;
        };
        let ([_, from], [_, dest]) = (halves(from[1]), halves(dest[1]));
        source.write(inner + 10, change.amend(header)) && source.write(inner + 12, [from, dest])
    };
    let written =
        addressed && source.write(at_ports, ports) && source.write(at_check, sum.amend(check));
    if written {
        Reason::Forwarded
    } else {
        Reason::Pass
    }
}
