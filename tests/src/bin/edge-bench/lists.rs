//! The lists that rows are measured with, the same in every run.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use edge_common::{
    addr::{Family, Prefix, PrefixError},
    bench::{LISTED, Space},
};

/// Shares of prefix lengths in 1,000 prefixes: what blacklists of networks look
/// like, with every length from the longest down to those that are rare.
const LENGTHS4: [(u8, u32); 22] = [
    (24, 580),
    (23, 80),
    (22, 80),
    (25, 30),
    (26, 30),
    (27, 25),
    (28, 25),
    (29, 25),
    (30, 20),
    (31, 20),
    (21, 38),
    (20, 27),
    (19, 10),
    (18, 5),
    (17, 2),
    (16, 2),
    // One in 10,000 each, see `length`.
    (15, 0),
    (14, 0),
    (13, 0),
    (12, 0),
    (11, 0),
    (10, 0),
];

const LENGTHS6: [(u8, u32); 14] = [
    (48, 350),
    (32, 250),
    (64, 200),
    (40, 40),
    (36, 30),
    (44, 30),
    (56, 30),
    (60, 20),
    (33, 10),
    (47, 10),
    (29, 10),
    (80, 10),
    (96, 5),
    (112, 5),
];

/// Numbers of sources, apart for each use.
mod range {
    pub(super) const PREFIXES: u64 = 1 << 32;
    pub(super) const LENGTHS: u64 = 2 << 32;
    pub(super) const CHOICE: u64 = 3 << 32;
    pub(super) const BITS: u64 = 4 << 32;
}

/// The space that listed sources of a family lie in.
pub(crate) const fn space(family: Family) -> Space {
    match family {
        Family::V4 => Space::V4,
        Family::V6 => Space::V6,
    }
}

/// The source with this number, as the harness makes it.
pub(crate) fn source(family: Family, number: u64) -> IpAddr {
    let (word, low) = space(family).source(number);
    address(family, word, low)
}

/// The address of a source word.
pub(crate) fn address(family: Family, word: u64, low: u64) -> IpAddr {
    match family {
        Family::V4 => Ipv4Addr::from_bits(word as u32).into(),
        Family::V6 => Ipv6Addr::from_bits(u128::from(word) << 64 | u128::from(low)).into(),
    }
}

/// Hosts to be listed: the first `n` sources.
pub(crate) fn hosts(family: Family, n: u64) -> impl Iterator<Item = Prefix> {
    (0..n).map(move |number| host(family, number))
}

/// The host with a number.
pub(crate) fn host(family: Family, number: u64) -> Prefix {
    Prefix::host(source(family, number))
}

/// `n` prefixes of mixed lengths. A few of them occur twice.
pub(crate) fn prefixes(family: Family, n: u64) -> Vec<Prefix> {
    (0..n)
        .filter_map(|i| {
            let len = length(family, random(range::LENGTHS + i));
            let addr = source(family, range::PREFIXES + i);
            masked(addr, len)
        })
        .collect()
}

fn masked(addr: IpAddr, len: u8) -> Option<Prefix> {
    match Prefix::new(addr, len) {
        Ok(prefix) | Err(PrefixError::HostBits(prefix)) => Some(prefix),
        Err(_) => None,
    }
}

fn length(family: Family, random: u64) -> u8 {
    let lengths: &[(u8, u32)] = match family {
        Family::V4 => &LENGTHS4,
        Family::V6 => &LENGTHS6,
    };
    let mut at = random % 10_000;
    for &(len, share) in lengths {
        let share = u64::from(share * 10).max(1);
        if at < share {
            return len;
        }
        at -= share;
    }
    lengths.first().map_or(0, |l| l.0)
}

/// How a source lies to the listed prefixes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Near {
    /// In the same /16 as one of them, and in none.
    Slash16,
    /// In the same /24 (IPv4) or /32 (IPv6) as a longer one, and in none.
    Close,
    /// Inside one.
    Inside,
}

/// Sources for [`edge_tests::harness::Sources::Listed`], chosen around `prefixes`.
/// `is_listed` tells whether a list has a source.
pub(crate) fn near(
    family: Family,
    how: Near,
    prefixes: &[Prefix],
    is_listed: impl Fn(IpAddr) -> bool,
) -> Vec<u64> {
    let (width, close) = match family {
        Family::V4 => (32, 24),
        Family::V6 => (64, 32),
    };
    let mut sources = Vec::with_capacity(LISTED as usize);
    let mut number = 0;
    while sources.len() < LISTED as usize && number < 1 << 24 {
        number += 1;
        let choice = random(range::CHOICE + number) as usize % prefixes.len().max(1);
        let Some(prefix) = prefixes.get(choice) else {
            break;
        };
        let kept = match how {
            Near::Slash16 => 16,
            Near::Close if prefix.len() > close => close,
            Near::Close => continue,
            Near::Inside => prefix.len().min(width),
        };
        let bits = match family {
            Family::V4 => u64::from(prefix.bits() as u32),
            Family::V6 => (prefix.bits() >> 64) as u64,
        };
        // Longer than a word of IPv6: the lower half repeats the upper one, and
        // such a prefix has few addresses that do.
        if how == Near::Inside && prefix.len() > width {
            continue;
        }
        let free = ones(width - kept);
        let word = bits & !free | random(range::BITS + number) & free;
        if is_listed(address(family, word, word)) == (how == Near::Inside) {
            sources.push(word);
        }
    }
    sources
}

/// The `n` lowest bits.
fn ones(n: u8) -> u64 {
    u64::MAX.checked_shr(64 - u32::from(n)).unwrap_or(0)
}

/// 64 random bits, by number.
fn random(number: u64) -> u64 {
    Space::V6.source(number).1
}
