//! Which backend the connection id of a packet names.

use super::{Packet, flows};
use crate::{
    maps::{self, SERVER_IDS, config},
    source::XdpSource,
};
use edge_common::{
    abi::TableStat,
    balance::Balance,
    parse::PacketSource as _,
    quic::{HEAD, IdKey, server_id},
};

/// Bytes of a UDP header.
const UDP_LEN: usize = 8;

/// The number of the backend that a packet of a service says that it is for, if that one
/// takes packets; 0 else.
#[inline(always)]
pub fn named(source: &XdpSource<'_>, packet: Packet, service: u32, balance: u64) -> u32 {
    if config!(server_ids) == 0 || Balance::quic_of(balance) == 0 || packet.is_tcp {
        return 0;
    }
    // What is behind the packet in a short frame is not of it.
    let Some(length) = source.half(packet.transport + 4) else {
        return 0;
    };
    if (u16::from_be(length) as usize) < UDP_LEN + HEAD {
        return 0;
    }
    let Some([a, b]) = source.doubles::<2>(packet.transport + UDP_LEN) else {
        return 0;
    };
    edge_quic_backend(service, Balance::quic_of(balance), a, b) as u32
}

/// The same of the first bytes of a packet. Checked by the verifier by itself.
#[inline(never)]
// SAFETY: no other symbol of the object has this name.
#[unsafe(no_mangle)]
extern "C" fn edge_quic_backend(service: u32, layout: u32, a: u64, b: u64) -> u64 {
    let Some(id) = server_id(layout, [a, b]) else {
        return 0;
    };
    let key = IdKey {
        id,
        service,
        layout,
    };
    let Some(number) = SERVER_IDS.get_ptr(key) else {
        maps::count(TableStat::QuicUnknownId);
        return 0;
    };
    // SAFETY: a map value, read whole.
    let number = unsafe { number.read_volatile() };
    if flows::usable(number, 0).is_none() {
        return 0;
    }
    maps::count(TableStat::QuicRouted);
    number.into()
}
