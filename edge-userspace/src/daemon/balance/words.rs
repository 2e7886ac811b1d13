//! What the kernel's tables have of a configuration, word by word.

use edge_common::{addr::Prefix, balance::Forward as AbiForward};

use crate::config::balance::{Balance, Forward};

/// How packets of a service reach its backends.
pub(super) const fn forward_of(balance: &Balance) -> AbiForward {
    match balance.forward {
        Forward::Ipip => AbiForward::Ipip,
        Forward::Gue => AbiForward::Gue,
        Forward::L2 => AbiForward::L2,
        Forward::Nat => AbiForward::Nat,
    }
}

/// The host bits of a prefix of IPv4 addresses, as on the wire.
pub(super) fn spread(prefix: Prefix) -> u32 {
    let mask = u32::MAX.checked_shr(prefix.len().into()).unwrap_or(0);
    mask.to_be()
}
