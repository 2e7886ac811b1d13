//! Which number each source address of NAT has.
//!
//! A flow keeps its number, and so an address has to keep it: over a reload, and over a restart,
//! for which the kernel's table itself is the memory.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use edge_common::{
    defence::{SOURCE_PROTO, TARGET_SOURCE, Target, TargetKey, WSCALE_UNKNOWN, v4_halves},
    nat::Source,
};

/// The addresses of a number.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Pair {
    /// Where packets to IPv4 backends come from.
    pub v4: Option<Ipv4Addr>,
    /// The same for IPv6.
    pub v6: Option<Ipv6Addr>,
}

impl Pair {
    /// As it stands in the table.
    pub fn of(source: Source) -> Self {
        let bytes = |[a, b]: [u64; 2]| {
            let (mut all, [c, d]) = ([0; 16], [a.to_ne_bytes(), b.to_ne_bytes()]);
            for (to, from) in all.iter_mut().zip(c.into_iter().chain(d)) {
                *to = from;
            }
            Ipv6Addr::from(all)
        };
        let (v4, v6) = (bytes(source.v4), bytes(source.v6));
        Self {
            v4: v4.to_ipv4_mapped(),
            v6: Some(v6).filter(|a| !a.is_unspecified()),
        }
    }

    /// For the table.
    pub fn source(self) -> Source {
        Source {
            v4: self.v4.map_or([0; 2], |a| halves(a.into())),
            v6: self.v6.map_or([0; 2], |a| halves(a.into())),
        }
    }

    /// Those that there are.
    pub fn addresses(self) -> impl Iterator<Item = IpAddr> {
        let v4 = self.v4.map(IpAddr::V4);
        v4.into_iter().chain(self.v6.map(IpAddr::V6))
    }
}

/// An address as the tables have it: IPv4 in its mapped form.
pub fn halves(address: IpAddr) -> [u64; 2] {
    match address {
        IpAddr::V4(a) => v4_halves(u32::from_ne_bytes(a.octets())),
        IpAddr::V6(a) => {
            let [a, b, c, d, e, f, g, h, rest @ ..] = a.octets();
            [
                u64::from_ne_bytes([a, b, c, d, e, f, g, h]),
                u64::from_ne_bytes(rest),
            ]
        }
    }
}

/// Gives addresses one of `numbers` numbers each. Those `present` that are still wanted stay
/// where they are, the others come into the gaps.
pub fn assign(wanted: &BTreeSet<IpAddr>, numbers: usize, present: &[Pair]) -> Vec<Pair> {
    let mut v4 = Vec::new();
    let mut v6 = Vec::new();
    for address in wanted {
        match address {
            IpAddr::V4(a) => v4.push(*a),
            IpAddr::V6(a) => v6.push(*a),
        }
    }
    let present = &present[..present.len().min(numbers)];
    let v4 = place(v4, numbers, present.iter().map(|p| p.v4));
    let v6 = place(v6, numbers, present.iter().map(|p| p.v6));
    let pairs = v4.into_iter().zip(v6);
    pairs.map(|(v4, v6)| Pair { v4, v6 }).collect()
}

fn place<A: Copy + PartialEq>(
    wanted: Vec<A>,
    numbers: usize,
    present: impl Iterator<Item = Option<A>>,
) -> Vec<Option<A>> {
    let mut places = vec![None; numbers];
    for (place, address) in places.iter_mut().zip(present) {
        *place = address.filter(|a| wanted.contains(a));
    }
    for address in wanted {
        if !places.contains(&Some(address))
            && let Some(gap) = places.iter_mut().find(|p| p.is_none())
        {
            *gap = Some(address);
        }
    }
    places
}

/// The entries of `TARGETS` by which answers are known.
pub fn entries(pairs: &[Pair]) -> BTreeMap<TargetKey, Target> {
    let numbered = (0..).zip(pairs);
    let all = numbered.flat_map(|(number, pair)| pair.addresses().map(move |a| (number, a)));
    let entry = |(number, address)| {
        let key = TargetKey {
            address: halves(address),
            port: 0,
            proto: SOURCE_PROTO,
            pad: [0; 5],
        };
        let target = Target {
            service: number,
            mss: 0,
            wscale: WSCALE_UNKNOWN,
            kind: TARGET_SOURCE,
            marked_at: 0,
        };
        (key, target)
    };
    all.map(entry).collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn addresses(list: &[&str]) -> BTreeSet<IpAddr> {
        list.iter().map(|a| a.parse().unwrap()).collect()
    }

    #[test]
    fn an_address_keeps_its_number() {
        let first = assign(
            &addresses(&["192.0.2.2", "192.0.2.3", "2001:db8::2", "2001:db8::3"]),
            2,
            &[],
        );
        let next = addresses(&["192.0.2.1", "192.0.2.3", "2001:db8::2", "2001:db8::1"]);
        let next = assign(&next, 2, &first);
        assert_eq!((next[1].v4, next[0].v6), (first[1].v4, first[0].v6));
        assert_eq!(next[0].v4, "192.0.2.1".parse().ok());
        assert_eq!(next[1].v6, "2001:db8::1".parse().ok());
        // One family may have fewer.
        let few = assign(&addresses(&["192.0.2.3", "192.0.2.9"]), 2, &next);
        let told: Vec<_> = few.iter().map(|p| (p.v4, p.v6)).collect();
        assert_eq!(
            told,
            [
                ("192.0.2.9".parse().ok(), None),
                ("192.0.2.3".parse().ok(), None)
            ]
        );
        assert_eq!(assign(&addresses(&["192.0.2.3"]), 0, &next), []);
    }

    #[test]
    fn entries_name_the_number() {
        let pairs = assign(
            &addresses(&["192.0.2.2", "192.0.2.3", "2001:db8::2"]),
            2,
            &[],
        );
        let entries = entries(&pairs);
        let number = |address: &str| {
            let key = TargetKey {
                address: halves(address.parse().unwrap()),
                port: 0,
                proto: SOURCE_PROTO,
                pad: [0; 5],
            };
            (entries[&key].service, entries[&key].kind)
        };
        assert_eq!(number("192.0.2.3"), (1, TARGET_SOURCE));
        assert_eq!(number("2001:db8::2"), (0, TARGET_SOURCE));
        assert_eq!(entries.len(), 3);
    }

    proptest! {
        #[test]
        fn each_has_one_number_and_stays(
            first in prop::collection::btree_set(any::<IpAddr>(), 0..8),
            keep: [bool; 8],
            more in prop::collection::btree_set(any::<IpAddr>(), 0..8),
        ) {
            let kept = first.iter().zip(keep).filter(|(_, keep)| *keep).map(|(a, _)| *a);
            let second: BTreeSet<IpAddr> = kept.chain(more).collect();
            let before = assign(&first, 16, &[]);
            let after = assign(&second, 16, &before);
            let all: Vec<IpAddr> = after.iter().flat_map(|p| p.addresses()).collect();
            prop_assert_eq!(all.len(), second.len());
            prop_assert_eq!(&BTreeSet::from_iter(all), &second);
            let at = |pairs: &[Pair], a: IpAddr| pairs.iter().position(|p| p.addresses().any(|x| x == a));
            for address in first.intersection(&second) {
                prop_assert_eq!(at(&before, *address), at(&after, *address));
            }
        }

        #[test]
        fn the_table_gives_back_what_was_put_in(v4: Option<Ipv4Addr>, v6: Option<Ipv6Addr>) {
            let v6 = v6.filter(|a| !a.is_unspecified());
            let pair = Pair { v4, v6 };
            prop_assert_eq!(Pair::of(pair.source()), pair);
        }
    }
}
