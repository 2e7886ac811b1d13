//! How large the tables are made for what the configuration asks for.

use edge_common::{
    abi::{LIMITER_WAYS, LimiterBucket, maps},
    table::{BITMAP24_WORDS, Bucket4, BucketW, LENGTHS_ENTRIES, LongLengths, WAYS},
};

/// How many entries the operator wants room for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Capacity {
    /// IPv4 addresses on the lists.
    pub hosts_v4: u32,
    /// IPv6 addresses, on the lists and in the configuration.
    pub hosts_v6: u32,
    /// Prefixes of both families, on the lists and in the configuration.
    pub prefixes: u32,
    /// Sources that the limits tell apart at one time.
    pub limiter_sources: u32,
}

impl Default for Capacity {
    fn default() -> Self {
        Self {
            hosts_v4: 131_072,
            hosts_v6: 65_536,
            prefixes: 65_536,
            // A line each: 1 MiB, which stays in a processor's cache. A flood of
            // new sources costs less than half of what it does with 4 MiB.
            limiter_sources: 16_384,
        }
    }
}

/// Entries per 100 slots at which a table counts as full. Higher figures fail
/// now and then, since entries move in one direction only.
const LOAD_PERCENT: u64 = 60;
/// Filter bits for each entry there is room for: 2 in 100 absent sources pass a
/// full filter. Up to 5 pass that of the prefixes when all are IPv6 ones longer
/// than /32, each in a /32 of its own, which has bits too.
const FILTER_BITS: u64 = 16;
/// The smallest filter: two pages keep small lists exact.
const MIN_FILTER_WORDS: u32 = 1024;
/// The fewest buckets of a table: chance must not fill a pair of buckets while
/// a table of few entries still has room.
const MIN_BUCKETS: u32 = 64;
/// The fewest entries of `LENGTHS6_LONG`.
const MIN_LONG_LENGTHS: u32 = 1024;

/// The sizes of the maps. Equal for equal capacities.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Geometry {
    /// What it was made for; the tables refuse more.
    pub capacity: Capacity,
    /// Entries of `HOSTS4`.
    pub hosts4_buckets: u32,
    /// Entries of `HOSTS4_FILTER`.
    pub hosts4_filter_words: u32,
    /// Entries of `WIDE`.
    pub wide_buckets: u32,
    /// Entries of `HOSTS6_FILTER`.
    pub hosts6_filter_words: u32,
    /// Entries of `PREFIX_FILTER`.
    pub prefix_filter_words: u32,
    /// Entries of `LENGTHS6_LONG`.
    pub long_lengths: u32,
    /// Entries of `LIMITER`.
    pub limiter_buckets: u32,
}

impl Geometry {
    /// Sizes with room for `capacity`.
    pub fn for_capacity(capacity: &Capacity) -> Self {
        let hosts4 = u64::from(capacity.hosts_v4);
        let wide = u64::from(capacity.hosts_v6) + u64::from(capacity.prefixes);
        Self {
            capacity: *capacity,
            hosts4_buckets: buckets(hosts4),
            hosts4_filter_words: filter_words(hosts4),
            wide_buckets: buckets(wide),
            hosts6_filter_words: filter_words(capacity.hosts_v6.into()),
            prefix_filter_words: filter_words(capacity.prefixes.into()),
            long_lengths: capacity.prefixes.max(MIN_LONG_LENGTHS),
            limiter_buckets: capacity
                .limiter_sources
                .div_ceil(LIMITER_WAYS as u32)
                .max(1),
        }
    }

    /// Bytes of kernel memory of each map whose size depends on the
    /// configuration or is worth telling, by name.
    pub fn memory(&self) -> Vec<(&'static str, u64)> {
        let of = |entries: u32, size: usize| u64::from(entries) * size as u64;
        vec![
            (maps::HOSTS4, of(self.hosts4_buckets, size_of::<Bucket4>())),
            (maps::HOSTS4_FILTER, of(self.hosts4_filter_words, 8)),
            (maps::WIDE, of(self.wide_buckets, size_of::<BucketW>())),
            (maps::HOSTS6_FILTER, of(self.hosts6_filter_words, 8)),
            (maps::PREFIX_FILTER, of(self.prefix_filter_words, 8)),
            (maps::BITMAP24, of(BITMAP24_WORDS, 8)),
            (maps::LENGTHS4, of(LENGTHS_ENTRIES, 8)),
            (maps::LENGTHS6, of(LENGTHS_ENTRIES, 8)),
            (
                maps::LENGTHS6_LONG,
                of(self.long_lengths, size_of::<LongLengths>()),
            ),
            (
                maps::LIMITER,
                of(self.limiter_buckets, size_of::<LimiterBucket>()),
            ),
        ]
    }
}

fn buckets(entries: u64) -> u32 {
    let slots = (entries * 100).div_ceil(LOAD_PERCENT);
    clamp(slots.div_ceil(WAYS as u64)).max(MIN_BUCKETS)
}

fn filter_words(entries: u64) -> u32 {
    clamp((entries * FILTER_BITS).div_ceil(64)).max(MIN_FILTER_WORDS)
}

fn clamp(n: u64) -> u32 {
    u32::try_from(n).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_default_takes_a_few_megabytes() {
        let g = Geometry::for_capacity(&Capacity::default());
        assert!(u64::from(g.hosts4_buckets) * 4 * 60 / 100 >= 131_072);
        let total: u64 = g.memory().iter().map(|m| m.1).sum();
        assert!(total > 10 << 20 && total < 40 << 20, "{total}");
    }

    #[test]
    fn a_listed_host_takes_less_than_100_bytes() {
        let c = Capacity {
            hosts_v4: 10_000_000,
            hosts_v6: 10_000_000,
            ..Capacity::default()
        };
        let m = Geometry::for_capacity(&c).memory();
        let of = |names: [&str; 2]| -> u64 {
            m.iter().filter(|x| names.contains(&x.0)).map(|x| x.1).sum()
        };
        assert!(of([maps::HOSTS4, maps::HOSTS4_FILTER]) / 10_000_000 < 32);
        assert!(of([maps::WIDE, maps::HOSTS6_FILTER]) / 10_000_000 < 64);
    }

    #[test]
    fn extremes_neither_vanish_nor_overflow() {
        for n in [0, u32::MAX] {
            let g = Geometry::for_capacity(&Capacity {
                hosts_v4: n,
                hosts_v6: n,
                prefixes: n,
                limiter_sources: n,
            });
            assert!(g.memory().iter().all(|m| m.1 > 0));
        }
    }
}
