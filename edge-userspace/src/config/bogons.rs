//! Source ranges that cannot be senders: the built-in list, and the arithmetic
//! of exceptions.
//!
//! The list follows the registries of special-purpose addresses (RFC 6890 and
//! its successors at IANA), less everything that a working neighbour may send
//! from: private ranges (RFC 1918, RFC 4193), carrier-grade NAT (RFC 6598), and
//! the IPv6 link-local range (RFC 4291), without which neighbour discovery ends.

use edge_common::addr::Prefix;

/// A range of the built-in list.
#[derive(Clone, Copy, Debug)]
pub struct Bogon {
    /// The range.
    pub range: &'static str,
    /// What lies in it and is no bogon.
    pub except: &'static [&'static str],
    /// What it is for, and where that is laid down.
    pub why: &'static str,
}

const fn bogon(range: &'static str, why: &'static str) -> Bogon {
    Bogon {
        range,
        except: &[],
        why,
    }
}

/// The built-in list.
pub const DEFAULT: &[Bogon] = &[
    Bogon {
        range: "0.0.0.0/8",
        // DHCP clients send from it until they have an address (RFC 2131 4.1).
        except: &["0.0.0.0"],
        why: "this network (RFC 791, RFC 1122 3.2.1.3)",
    },
    bogon("127.0.0.0/8", "loopback (RFC 1122 3.2.1.3)"),
    Bogon {
        range: "169.254.0.0/16",
        // Large clouds answer from there for metadata, DNS and time.
        except: &["169.254.169.0/24"],
        why: "link-local (RFC 3927)",
    },
    Bogon {
        range: "192.0.0.0/24",
        // ICMP errors of IPv6-only routers (RFC 7600), and the anycast addresses
        // of PCP (RFC 7723) and TURN (RFC 8155).
        except: &["192.0.0.8/30"],
        why: "IETF protocol assignments (RFC 6890)",
    },
    bogon("192.0.2.0/24", "documentation (RFC 5737)"),
    bogon("198.18.0.0/15", "benchmarks (RFC 2544)"),
    bogon("198.51.100.0/24", "documentation (RFC 5737)"),
    bogon("203.0.113.0/24", "documentation (RFC 5737)"),
    bogon("224.0.0.0/4", "multicast, never a source (RFC 1112)"),
    bogon(
        "240.0.0.0/4",
        "reserved, and limited broadcast (RFC 1112, RFC 919)",
    ),
    bogon("::1", "loopback (RFC 4291 2.5.3)"),
    // ::ffff:0:0/96 cannot be written in a space in which it stands for IPv4;
    // the other half of this /95 is assigned to nobody.
    bogon(
        "::fffe:0:0/95",
        "IPv4-mapped addresses, never on the wire (RFC 4291 2.5.5.2)",
    ),
    bogon("100::/64", "discard only (RFC 6666)"),
    bogon("2001:2::/48", "benchmarks (RFC 5180)"),
    bogon("2001:10::/28", "ORCHID, expired (RFC 4843)"),
    bogon("2001:db8::/32", "documentation (RFC 3849)"),
    bogon("3fff::/20", "documentation (RFC 9637)"),
    bogon("fec0::/10", "site-local, abolished (RFC 3879)"),
    bogon("ff00::/8", "multicast, never a source (RFC 4291 2.7)"),
];

/// The built-in list as prefixes, exceptions cut out.
pub fn default_prefixes() -> Vec<Prefix> {
    let parse = |text: &str| text.parse::<Prefix>().ok();
    let mut all = Vec::new();
    for bogon in DEFAULT {
        let mut ranges: Vec<Prefix> = parse(bogon.range).into_iter().collect();
        for hole in bogon.except.iter().filter_map(|text| parse(text)) {
            ranges = ranges
                .into_iter()
                .flat_map(|range| cut(range, hole))
                .collect();
        }
        all.extend(ranges);
    }
    all
}

/// What remains of `range` without `hole`, as few prefixes as possible: all of
/// it when they are apart, nothing when `hole` contains it.
pub fn cut(range: Prefix, hole: Prefix) -> Vec<Prefix> {
    if hole.contains(range) {
        return Vec::new();
    }
    if !range.contains(hole) {
        return vec![range];
    }
    // From the hole up to the range, the other half of each step remains.
    let mut rest = Vec::new();
    let mut at = hole;
    while let (true, Some(parent)) = (at != range, at.parent()) {
        rest.extend(other_half(at, parent));
        at = parent;
    }
    rest.sort_unstable();
    rest
}

/// The half of `parent` that `half` is not. `None` for the range of IPv4-mapped
/// addresses, which is no IPv6 prefix here.
fn other_half(half: Prefix, parent: Prefix) -> Option<Prefix> {
    let mut key = half.key();
    let [address @ .., len] = &mut key;
    let bit = usize::from(len.checked_sub(1)?);
    *address.get_mut(bit / 8)? ^= 0x80 >> (bit % 8);
    Prefix::from_key(&key).filter(|p| p.family() == parent.family())
}

#[cfg(test)]
mod tests {
    use super::*;
    use edge_common::addr::Family;
    use proptest::prelude::*;
    use std::net::{IpAddr, Ipv4Addr};

    fn p(s: &str) -> Prefix {
        s.parse().unwrap()
    }

    fn is_bogon(address: &str) -> bool {
        default_prefixes().iter().any(|b| b.contains(p(address)))
    }

    #[test]
    fn the_built_in_list_is_sound() {
        for bogon in DEFAULT {
            let range = p(bogon.range);
            assert!(bogon.why.contains("RFC"), "{range}");
            for hole in bogon.except {
                assert!(range.contains(p(hole)), "{hole} lies outside of {range}");
            }
        }
        let all = default_prefixes();
        for (i, a) in all.iter().enumerate() {
            for b in &all[i + 1..] {
                assert!(!a.contains(*b) && !b.contains(*a), "{a} and {b}");
            }
        }
    }

    #[test]
    fn what_cannot_send_is_on_it_and_what_may_send_is_not() {
        for address in [
            "0.0.0.1",
            "0.255.255.255",
            "127.0.0.1",
            "169.254.1.1",
            "192.0.0.1",
            "192.0.0.12",
            "192.0.2.200",
            "198.19.255.255",
            "224.0.0.1",
            "255.255.255.255",
            "::1",
            "2001:db8::1",
            "fec0::1",
            "ff02::1",
            "3fff:fff::1",
        ] {
            assert!(is_bogon(address), "{address}");
        }
        for address in [
            "0.0.0.0",
            "1.0.0.0",
            "8.8.8.8",
            "10.0.0.1",
            "100.64.0.1",
            "169.254.169.254",
            "172.16.0.1",
            "192.0.0.8",
            "192.0.0.9",
            "192.0.0.10",
            "192.168.1.1",
            "192.88.99.1",
            "198.17.0.1",
            "198.20.0.1",
            "223.255.255.255",
            "::",
            "64:ff9b::808:808",
            "fd00::1",
            "fe80::1",
            "2001:4860:4860::8888",
            "2002::1",
            "3fff:1000::1",
        ] {
            assert!(!is_bogon(address), "{address}");
        }
        let mapped = u128::from_be_bytes(
            "::ffff:8.8.8.8"
                .parse::<std::net::Ipv6Addr>()
                .unwrap()
                .octets(),
        );
        let covers =
            |b: &Prefix| b.family() == Family::V6 && b.bits() <= mapped && mapped <= b.last_bits();
        assert_eq!(default_prefixes().iter().filter(|b| covers(b)).count(), 1);
    }

    #[test]
    fn an_exception_never_turns_ipv6_into_ipv4() {
        assert_eq!(cut(p("::fffe:0:0/95"), p("::fffe:0:0/96")), []);
        let rest = cut(p("::/0"), p("::fffe:0:0/96"));
        assert!(rest.iter().all(|r| r.family() == Family::V6), "{rest:?}");
    }

    #[test]
    fn cuts_at_both_ends() {
        assert_eq!(cut(p("10.0.0.0/8"), p("10.0.0.0/8")), []);
        assert_eq!(cut(p("10.0.0.0/8"), p("0.0.0.0/0")), []);
        assert_eq!(cut(p("10.0.0.0/8"), p("::/0")), [p("10.0.0.0/8")]);
        assert_eq!(cut(p("10.0.0.0/8"), p("10.128.0.0/9")), [p("10.0.0.0/9")]);
        assert_eq!(cut(p("0.0.0.0/0"), p("10.0.0.1")).len(), 32);
    }

    proptest! {
        #[test]
        fn a_cut_takes_exactly_the_hole(range in any::<(u32, u8)>(), hole in any::<(u32, u8)>(), probe: u32) {
            let prefix = |(bits, len): (u32, u8)| {
                let len = len % 33;
                let mask = u32::MAX.checked_shl(32 - u32::from(len)).unwrap_or(0);
                Prefix::new(IpAddr::V4(Ipv4Addr::from_bits(bits & mask)), len).unwrap()
            };
            let range = prefix(range);
            // Mostly inside the range, where it matters.
            let hole = prefix(((range.bits() as u32) | (hole.0 >> range.len().min(31)), hole.1));
            let rest = cut(range, hole);
            for address in [probe, (range.bits() as u32) | (probe >> range.len().min(31)), hole.bits() as u32, hole.last_bits() as u32] {
                let host = Prefix::host(Ipv4Addr::from_bits(address).into());
                let want = usize::from(range.contains(host) && !hole.contains(host));
                prop_assert_eq!(rest.iter().filter(|r| r.contains(host)).count(), want);
            }
        }
    }
}
