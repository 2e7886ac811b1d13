//! Keys, and the rings by which they find servers.

use std::net::IpAddr;

use edge_common::hash::{Seed, hash, reduce};

use crate::l4::maglev;

/// Tags of hashes that are made here.
const TAG_KEY: u32 = 0x4c37_0000;
const TAG_CHOICE: u32 = 0x4c38_0000;

/// The key of a text: the value of a header, a cookie or a parameter; or of the address of a
/// server, as its identity.
pub fn key(seed: &Seed, text: &[u8]) -> u64 {
    let word = |bytes: &[u8]| {
        let mut word = [0; 8];
        for (to, from) in word.iter_mut().zip(bytes) {
            *to = *from;
        }
        u64::from_le_bytes(word)
    };
    let start = hash(seed, text.len() as u64, 0, TAG_KEY);
    text.chunks(16).fold(start, |sum, chunk| {
        let (low, high) = chunk.split_at(chunk.len().min(8));
        hash(seed, sum ^ word(low), word(high), TAG_KEY + 1)
    })
}

/// The key of a client's address; an IPv4 address has the same one in its IPv6 form.
pub fn address_key(seed: &Seed, address: IpAddr) -> u64 {
    let bits = match address {
        IpAddr::V4(v4) => v4.to_ipv6_mapped(),
        IpAddr::V6(v6) => v6,
    }
    .to_bits();
    hash(seed, (bits >> 64) as u64, bits as u64, TAG_KEY + 2)
}

/// Who has which slot, and with which weights that was found.
#[derive(Debug, Default)]
pub(super) struct Ring {
    slots: maglev::Ring,
    weights: Vec<u16>,
}

impl Ring {
    /// The ring of members with these identities and weights. One of weight 0 may get one
    /// later, so it has slots as if of weight 1.
    pub(super) fn new(seed: &Seed, members: impl Iterator<Item = (u64, u16)>) -> Self {
        let members: Vec<(u64, u32)> = members
            .map(|(id, weight)| (id, u32::from(weight.max(1))))
            .collect();
        Self {
            slots: maglev::ring_of_keys(seed, &members, maglev::SLOTS),
            weights: members.iter().map(|&(_, weight)| weight as u16).collect(),
        }
    }

    /// The weights with which the members have slots.
    pub(super) fn weights(&self) -> &[u16] {
        &self.weights
    }

    /// The candidate number `attempt` of a key, as a member's position, and a random number
    /// that belongs to this choice.
    pub(super) fn candidate(&self, seed: &Seed, key: u64, attempt: u64) -> Option<(usize, u32)> {
        let random = hash(seed, key, attempt, TAG_CHOICE);
        let slot = reduce((random >> 32) as u32, self.slots.len() as u32);
        let owner = *self.slots.get(slot as usize)?;
        Some((usize::from(owner), random as u32))
    }
}
