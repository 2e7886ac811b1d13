//! How many CPUs there can be: per-CPU maps have their values once for each.

use std::fs;

/// Their numbers, as ranges (Documentation/admin-guide/cputopology.rst in the kernel).
const POSSIBLE: &str = "/sys/devices/system/cpu/possible";

/// The CPUs that there can be on this host; where the kernel does not tell, those that
/// this process may use.
pub fn possible_cpus() -> u32 {
    let told = fs::read_to_string(POSSIBLE).ok().and_then(|t| count(&t));
    told.unwrap_or_else(|| {
        let usable = std::thread::available_parallelism().map_or(1, usize::from);
        u32::try_from(usable).unwrap_or(u32::MAX)
    })
}

/// How many numbers a list such as `0-3,8` has.
fn count(list: &str) -> Option<u32> {
    let one = |range: &str| -> Option<u32> {
        let (first, last) = range.split_once('-').unwrap_or((range, range));
        let (first, last): (u32, u32) = (first.parse().ok()?, last.parse().ok()?);
        last.checked_sub(first)?.checked_add(1)
    };
    let mut ranges = list.trim().split(',').map(one);
    ranges.try_fold(0u32, |sum, n| sum.checked_add(n?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_of_cpus_are_counted() {
        assert_eq!((count("0\n"), count("0-63\n")), (Some(1), Some(64)));
        assert_eq!(count("0-3,8-9,12"), Some(7));
        for odd in ["", "a", "3-1", "0-", "0-4294967295"] {
            assert_eq!(count(odd), None, "{odd}");
        }
        assert!(possible_cpus() > 0);
    }
}
