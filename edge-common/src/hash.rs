//! The keyed hash of sources and prefixes.
//!
//! Two rounds of multiply and xor-shift under secret odd multipliers, in the
//! way of Dietzfelbinger's multiply-shift (1997): without the seed nobody can
//! choose sources that collide, and the whole costs three multiplications.
//! It is no cryptographic hash; an attacker never sees its output.

/// Secret per installation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct Seed([u64; 4]);

impl Seed {
    /// From random bits, any that there are.
    pub const fn new([k0, k1, k2, k3]: [u64; 4]) -> Self {
        // Only an odd factor permutes the numbers of 64 bits.
        Self([k0, k1 | 1, k2 | 1, k3 | 1])
    }
}

/// The hash of a 128-bit key given as two halves, and a small tag that keeps
/// kinds of keys apart.
#[inline(always)]
pub const fn hash(seed: &Seed, hi: u64, lo: u64, tag: u32) -> u64 {
    let [_, _, k2, k3] = seed.0;
    let x = (half(seed, hi) ^ lo)
        .wrapping_add((tag as u64) << 32)
        .wrapping_mul(k2);
    let x = (x ^ (x >> 29)).wrapping_mul(k3);
    x ^ (x >> 32)
}

/// The hash of a 64-bit key: of the upper half of an IPv6 address, or an IPv4
/// address (native-endian word as read from the wire). Its first round is that
/// of [`hash`] over the same half.
#[inline(always)]
pub const fn hash64(seed: &Seed, key: u64) -> u64 {
    let [_, _, k2, _] = seed.0;
    let x = half(seed, key).wrapping_mul(k2);
    x ^ (x >> 29)
}

#[inline(always)]
const fn half(seed: &Seed, key: u64) -> u64 {
    let [k0, k1, _, _] = seed.0;
    let x = (key ^ k0).wrapping_mul(k1);
    x ^ (x >> 32)
}

/// Maps 32 random bits onto `0..n` without a division.
#[inline(always)]
pub const fn reduce(random: u32, n: u32) -> u32 {
    ((random as u64 * n as u64) >> 32) as u32
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{collections::HashSet, vec};

    const SEED: Seed = Seed::new([
        0x9e37_79b9_7f4a_7c15,
        0xd1b5_4a32_d192_ed03,
        0x8cb9_2ba7_2f3d_8dd7,
        0xa24b_aed4_963e_e407,
    ]);

    #[test]
    fn sequential_sources_spread_evenly() {
        let mut bins = vec![0u32; 1024];
        for i in 0..1024 * 64u32 {
            let h = hash64(&SEED, u64::from((0x0a00_0000 + i).to_be()));
            bins[reduce(h as u32, 1024) as usize] += 1;
        }
        // Poisson with mean 64: 8 standard deviations either way.
        assert!(bins.iter().all(|&n| (4..=128).contains(&n)), "{bins:?}");
    }

    #[test]
    fn tag_and_halves_all_count() {
        let mut seen = HashSet::new();
        for hi in 0..16 {
            for lo in 0..16 {
                for tag in 0..16 {
                    assert!(seen.insert(hash(&SEED, hi, lo, tag)));
                }
            }
        }
    }

    #[test]
    fn reduce_stays_inside() {
        assert_eq!(reduce(u32::MAX, 7), 6);
        assert_eq!(reduce(0, 7), 0);
    }
}
