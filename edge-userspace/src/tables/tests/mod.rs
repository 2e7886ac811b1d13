//! The tables against a model that anybody can check, and against readers at work.

mod readers;

use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    sync::{Arc, atomic::Ordering::Relaxed},
};

use edge_common::{
    addr::{Family, Prefix},
    hash::Seed,
    table::{FLAG_BOGON, FLAG_MANAGEMENT, FOREVER, Meta, Stamp},
};
use proptest::prelude::*;

use super::{Capacity, Geometry, Listing, Refilled, Regions, TableError, Tables};

const SEED: Seed = Seed::new([
    0x1234_5678_9abc_def1,
    0xfeed_beef_dead_cafe,
    0x0f1e_2d3c_4b5a_6978,
    0x8796_a5b4_c3d2_e1f1,
]);

fn p(s: &str) -> Prefix {
    s.parse().unwrap()
}

fn a(s: &str) -> IpAddr {
    s.parse().unwrap()
}

fn black(stamp: Stamp) -> Listing {
    Listing {
        black: stamp,
        ..Listing::default()
    }
}

fn system(flags: u8, profile: u8) -> Listing {
    Listing {
        meta: Meta { flags, profile },
        ..Listing::default()
    }
}

fn tables(geometry: Geometry) -> Tables {
    Tables::new(Regions::heap(&geometry), geometry, SEED).unwrap()
}

fn roomy() -> Tables {
    tables(Geometry::for_capacity(&Capacity::default()))
}

/// Tables so small that entries collide, move and do not fit, behind filters
/// that are nearly full.
fn tiny() -> Geometry {
    Geometry {
        hosts4_buckets: 5,
        hosts4_filter_words: 2,
        wide_buckets: 9,
        hosts6_filter_words: 2,
        prefix_filter_words: 2,
        long_lengths: 3,
        ..Geometry::for_capacity(&Capacity::default())
    }
}

/// What a source's listing is, from a plain list of everything.
fn model_lookup(model: &BTreeMap<Prefix, Listing>, addr: IpAddr) -> Listing {
    let host = match addr {
        // Prefix::host would take a mapped address for an IPv4 one.
        IpAddr::V6(v6) if v6.to_ipv4_mapped().is_some() => None,
        _ => Some(Prefix::host(addr)),
    };
    let mut covering: Vec<(Prefix, Listing)> = model
        .iter()
        .filter(|(prefix, _)| match host {
            Some(h) => prefix.contains(h),
            None => {
                prefix.family() == Family::V6 && prefix.bits() >> 64 == 0 && {
                    let IpAddr::V6(v6) = addr else { return false };
                    v6.to_bits() >= prefix.bits() && v6.to_bits() <= prefix.last_bits()
                }
            }
        })
        .map(|(p, l)| (*p, *l))
        .collect();
    covering.sort_by_key(|c| std::cmp::Reverse(c.0.len()));
    covering
        .into_iter()
        .fold(Listing::default(), |all, c| all.under(c.1))
}

fn check(tables: &Tables, model: &BTreeMap<Prefix, Listing>, addrs: &[IpAddr]) {
    let reader = tables.reader();
    let ends = model.keys().flat_map(|prefix| {
        let of = |bits: u128| match prefix.family() {
            Family::V4 => IpAddr::V4(Ipv4Addr::from_bits(bits as u32)),
            Family::V6 => IpAddr::V6(Ipv6Addr::from_bits(bits)),
        };
        let (first, last) = (prefix.bits(), prefix.last_bits());
        [first, first.wrapping_sub(1), last, last.wrapping_add(1)].map(of)
    });
    for addr in ends.chain(addrs.iter().copied()) {
        assert_eq!(reader.lookup(addr), model_lookup(model, addr), "{addr}");
    }
    for (prefix, own) in model {
        assert_eq!(tables.own(*prefix), *own, "{prefix}");
    }
}

#[derive(Clone, Debug)]
enum Op {
    Put(Prefix, Listing),
    Remove(usize),
    Change(usize, Listing),
    Expire(Stamp),
    Settle,
    Restart,
}

fn v4() -> impl Strategy<Value = u32> {
    prop_oneof![
        // Few addresses that lie close together, so that prefixes nest.
        (0..4u32, 0..4u32, 0..3u32).prop_map(|(x, y, z)| 0x0a00_0000 | x << 16 | y << 8 | z),
        Just(0),
        Just(u32::MAX),
        any::<u32>(),
    ]
}

fn v6() -> impl Strategy<Value = u128> {
    prop_oneof![
        (0..3u128, 0..3u128, 0..3u128, 0..3u128)
            .prop_map(|(w, x, y, z)| { 0x2001_0db8 << 96 | w << 90 | x << 64 | y << 40 | z }),
        Just(0),
        Just(u128::MAX),
        any::<u128>(),
    ]
}

fn prefix() -> impl Strategy<Value = Prefix> {
    let masked = |bits: u128, width: u8, len: u8| {
        let host_bits = u32::from(width - len);
        if host_bits >= 128 {
            0
        } else {
            bits >> host_bits << host_bits
        }
    };
    prop_oneof![
        (v4(), prop_oneof![0..=32u8, Just(32)]).prop_map(move |(bits, len)| {
            let bits = masked(u128::from(bits), 32, len) as u32;
            Prefix::new(IpAddr::V4(Ipv4Addr::from_bits(bits)), len).unwrap()
        }),
        (v6(), prop_oneof![0..=128u8, Just(128), Just(0), Just(1)]).prop_filter_map(
            "mapped",
            move |(bits, len)| {
                let bits = masked(bits, 128, len);
                Prefix::new(IpAddr::V6(Ipv6Addr::from_bits(bits)), len).ok()
            }
        ),
    ]
}

fn listing() -> impl Strategy<Value = Listing> {
    let stamp = || prop_oneof![Just(0), 1..20u32, Just(FOREVER)];
    let meta = prop_oneof![
        3 => Just(Meta::default()),
        1 => (0..4u8, 0..4u8).prop_map(|(flags, profile)| Meta { flags, profile }),
    ];
    (stamp(), stamp(), meta).prop_map(|(black, allow, meta)| Listing { black, allow, meta })
}

fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        8 => (prefix(), listing()).prop_map(|(p, l)| Op::Put(p, l)),
        4 => any::<usize>().prop_map(Op::Remove),
        3 => (any::<usize>(), listing()).prop_map(|(i, l)| Op::Change(i, l)),
        1 => (1..20u32).prop_map(Op::Expire),
        1 => Just(Op::Settle),
        1 => Just(Op::Restart),
    ]
}

/// Puts into tables and model alike; what does not fit changes neither.
fn put(
    tables: &mut Tables,
    model: &mut BTreeMap<Prefix, Listing>,
    prefix: Prefix,
    listing: Listing,
) {
    match tables.put(prefix, listing) {
        Ok(()) if listing.is_empty() => {
            model.remove(&prefix);
        }
        Ok(()) => {
            model.insert(prefix, listing);
        }
        Err(TableError::Full { .. }) => {
            let former = model.get(&prefix).copied().unwrap_or_default();
            tables.put(prefix, former).unwrap();
        }
        Err(e) => panic!("{e}"),
    }
}

fn run(geometry: Geometry, ops: Vec<Op>, addrs: &[IpAddr]) {
    let mut tables = tables(geometry);
    let mut model: BTreeMap<Prefix, Listing> = BTreeMap::new();
    let at = |model: &BTreeMap<Prefix, Listing>, i: usize| {
        model.keys().nth(i % model.len().max(1)).copied()
    };
    for op in ops {
        match op {
            Op::Put(prefix, listing) => put(&mut tables, &mut model, prefix, listing),
            Op::Remove(i) => {
                if let Some(prefix) = at(&model, i) {
                    put(&mut tables, &mut model, prefix, Listing::default());
                }
            }
            Op::Change(i, listing) => {
                if let Some(prefix) = at(&model, i) {
                    put(&mut tables, &mut model, prefix, listing);
                }
            }
            Op::Expire(now) => {
                let mut found = Vec::new();
                let slots = tables.hosts4.slots() + tables.wide.slots();
                // A part at a time; enough calls to come round, however few are found in each.
                for _ in 0..300 {
                    tables.sweep(now, slots / 40 + 1, 3, &mut found);
                }
                found.sort_unstable();
                found.dedup();
                let want: Vec<Prefix> = model
                    .iter()
                    .filter(|e| e.1.has_expired(now))
                    .map(|e| *e.0)
                    .collect();
                assert_eq!(found, want);
                for prefix in found {
                    let mut own = tables.own(prefix);
                    own.black *= u32::from(own.black > now);
                    own.allow *= u32::from(own.allow > now);
                    put(&mut tables, &mut model, prefix, own);
                }
            }
            Op::Settle => {
                tables.stale_hosts4 += 10_000;
                tables.stale_hosts6 += 10_000;
                tables.stale_prefixes += 10_000;
                tables.settle();
                let stale = [
                    &tables.stale_hosts4,
                    &tables.stale_hosts6,
                    &tables.stale_prefixes,
                ];
                assert_eq!(stale, [&0; 3]);
            }
            Op::Restart => {
                let regions = Arc::into_inner(tables.regions).unwrap();
                tables = Tables::new(regions, geometry, SEED).unwrap();
                // Some entries were removed while nobody ran.
                model.retain(|p, _| p.bits() % 3 != 0);
                let all = model.iter().map(|e| Ok::<_, TableError>((*e.0, *e.1)));
                let done = tables.refill(all).unwrap();
                assert_eq!(done.entries, model.len() as u64);
            }
        }
        check(&tables, &model, addrs);
    }
    let used = tables.used();
    assert_eq!(used.wide(), tables.wide.used());
    for prefix in model.keys().copied().collect::<Vec<_>>() {
        put(&mut tables, &mut model, prefix, Listing::default());
    }
    assert_eq!(tables.used(), super::Used::default());
}

fn addrs() -> impl Strategy<Value = Vec<IpAddr>> {
    let one = prop_oneof![
        v4().prop_map(|b| IpAddr::V4(Ipv4Addr::from_bits(b))),
        v6().prop_map(|b| IpAddr::V6(Ipv6Addr::from_bits(b))),
    ];
    prop::collection::vec(one, 0..20)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 60, ..ProptestConfig::default() })]

    #[test]
    fn small_tables_say_what_the_model_says(
        ops in prop::collection::vec(op(), 1..120),
        addrs in addrs(),
    ) {
        run(tiny(), ops, &addrs);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 8, ..ProptestConfig::default() })]

    #[test]
    fn large_tables_say_what_the_model_says(
        ops in prop::collection::vec(op(), 1..200),
        addrs in addrs(),
    ) {
        let capacity = Capacity { hosts_v4: 1000, hosts_v6: 1000, prefixes: 1000, limiter_sources: 1 };
        run(Geometry::for_capacity(&capacity), ops, &addrs);
    }
}

#[test]
fn a_mapped_address_is_ipv6() {
    let mut t = roomy();
    t.put(p("10.0.0.1"), black(5)).unwrap();
    t.put(p("10.0.0.0/8"), black(6)).unwrap();
    t.put(p("::/8"), black(7)).unwrap();
    let r = t.reader();
    assert_eq!(r.lookup(a("::ffff:10.0.0.1")), black(7));
    assert_eq!(r.lookup(a("10.0.0.1")), black(6));
}

#[test]
fn the_unspecified_addresses_can_be_listed() {
    let mut t = roomy();
    t.put(p("0.0.0.0"), black(5)).unwrap();
    t.put(p("::"), black(6)).unwrap();
    let r = t.reader();
    assert_eq!(r.lookup(a("0.0.0.0")), black(5));
    assert_eq!(r.lookup(a("0.0.0.1")), black(0));
    assert_eq!(r.lookup(a("::")), black(6));
    assert_eq!(r.lookup(a("::1")), black(0));
}

#[test]
fn a_configured_host_keeps_flags_and_list_apart() {
    let mut t = roomy();
    for (host, cover) in [
        ("192.0.2.7", "192.0.2.0/24"),
        ("2001:db8::7", "2001:db8::/32"),
    ] {
        t.put(
            p(cover),
            Listing {
                meta: Meta {
                    flags: FLAG_BOGON,
                    profile: 3,
                },
                ..black(4)
            },
        )
        .unwrap();
        t.put(
            p(host),
            Listing {
                meta: Meta {
                    flags: FLAG_MANAGEMENT,
                    profile: 5,
                },
                ..black(9)
            },
        )
        .unwrap();
        let both = Listing {
            meta: Meta {
                flags: FLAG_MANAGEMENT | FLAG_BOGON,
                profile: 5,
            },
            ..black(9)
        };
        assert_eq!(t.reader().lookup(a(host)), both);
        t.put(p(host), system(FLAG_MANAGEMENT, 0)).unwrap();
        assert_eq!(t.own(p(host)), system(FLAG_MANAGEMENT, 0));
        let found = t.reader().lookup(a(host));
        assert_eq!((found.black, found.meta.profile), (4, 3));
        t.put(p(host), black(9)).unwrap();
        let found = t.reader().lookup(a(host));
        assert_eq!((found.black, found.meta.flags), (9, FLAG_BOGON));
    }
    assert_eq!(t.used().prefixes, 2);
}

#[test]
fn hits_stay_with_their_entry() {
    let mut t = roomy();
    for s in [
        "192.0.2.7",
        "0.0.0.0",
        "10.0.0.0/8",
        "2001:db8::7",
        "2001:db8::/32",
        "::/0",
    ] {
        t.put(p(s), black(5)).unwrap();
        assert_eq!(t.hits(p(s)), 0);
    }
    // As the kernel does: count in the slot.
    for (region, word) in [(&t.regions.hosts4, 4), (&t.regions.wide, 8)] {
        for slot in region.u32s().chunks(word) {
            let used = slot[if word == 4 { 0 } else { 4 }].load(Relaxed) != 0;
            slot[word - 1].fetch_add(u32::from(used), Relaxed);
        }
    }
    for s in [
        "192.0.2.7",
        "0.0.0.0",
        "10.0.0.0/8",
        "2001:db8::7",
        "2001:db8::/32",
    ] {
        t.put(p(s), black(6)).unwrap();
        assert_eq!(t.hits(p(s)), 1, "{s}");
    }
    assert_eq!(t.hits(p("::/0")), 2);
    t.put(p("192.0.2.7"), black(0)).unwrap();
    t.put(p("192.0.2.7"), black(6)).unwrap();
    assert_eq!(t.hits(p("192.0.2.7")), 0);
}

#[test]
fn a_full_table_names_the_key_and_changes_nothing() {
    let capacity = Capacity {
        hosts_v4: 2,
        hosts_v6: 2,
        prefixes: 2,
        limiter_sources: 1,
    };
    let mut t = tables(Geometry::for_capacity(&capacity));
    for (entries, key) in [
        (["10.0.0.1", "10.0.0.2", "10.0.0.3"], "tables.hosts_v4"),
        (
            ["2001:db8::1", "2001:db8::2", "2001:db8::3"],
            "tables.hosts_v6",
        ),
        (
            ["10.0.0.0/8", "2001:db8::/32", "11.0.0.0/8"],
            "tables.prefixes",
        ),
    ] {
        t.put(p(entries[0]), black(1)).unwrap();
        t.put(p(entries[1]), black(1)).unwrap();
        let e = t.put(p(entries[2]), black(1)).unwrap_err();
        assert!(e.to_string().contains(key), "{e}");
        assert!(t.own(p(entries[2])).is_empty());
        // What is there may change, and a place becomes free again.
        t.put(p(entries[1]), black(2)).unwrap();
        t.put(p(entries[1]), black(0)).unwrap();
        t.put(p(entries[2]), black(1)).unwrap();
    }
}

#[test]
fn memory_of_another_size_is_refused() {
    let geometry = Geometry::for_capacity(&Capacity::default());
    let regions = Regions::heap(&geometry);
    let other = Geometry {
        wide_buckets: geometry.wide_buckets + 1,
        ..geometry
    };
    let e = Tables::new(regions, other, SEED).err().unwrap();
    assert!(matches!(e, TableError::Size { map: "WIDE", .. }), "{e}");
}

#[test]
fn refilling_keeps_hits_and_removes_the_rest() {
    let mut t = roomy();
    for i in 0..1000u32 {
        let host = IpAddr::V4(Ipv4Addr::from_bits(0x0a00_0001 + i));
        t.put(Prefix::host(host), black(5)).unwrap();
    }
    t.put(p("10.0.0.0/16"), black(5)).unwrap();
    let slot = t
        .regions
        .hosts4
        .u32s()
        .chunks(4)
        .find(|s| s[0].load(Relaxed) != 0);
    let slot = slot.unwrap();
    slot[3].store(77, Relaxed);
    let kept = Prefix::host(IpAddr::from(slot[0].load(Relaxed).to_ne_bytes()));
    let again = [(kept, black(6)), (p("10.0.0.0/24"), black(7))];
    let done = t.refill(again.map(Ok::<_, TableError>)).unwrap();
    let want = Refilled {
        entries: 2,
        removed: 1000,
    };
    assert_eq!(done, want);
    assert_eq!((t.own(kept), t.hits(kept)), (black(6), 77));
    assert_eq!(t.reader().lookup(a("10.0.1.1")), Listing::default());
    assert_eq!(t.used().wide(), 1);
}

/// What is removed in great number is cleared from its own filter, however much
/// of another kind there is, and what stays is still found.
#[test]
fn churn_of_prefixes_is_cleared_beside_many_hosts() {
    let mut t = tables(Geometry::for_capacity(&Capacity {
        hosts_v6: 40_000,
        prefixes: 4_096,
        ..Capacity::default()
    }));
    for i in 0..40_000u128 {
        let host = Ipv6Addr::from_bits(0x2001_0db8 << 96 | i);
        t.put(Prefix::host(host.into()), black(100)).unwrap();
    }
    let kept = p("2001:db8:aaaa::/48");
    t.put(kept, black(100)).unwrap();
    let bits = |t: &Tables| -> u32 {
        let words = t.regions.prefix_filter.u64s().iter();
        words.map(|w| w.load(Relaxed).count_ones()).sum()
    };
    let before = bits(&t);
    for i in 0..2_000u128 {
        let churned = Prefix::new(Ipv6Addr::from_bits((0x2a00_0000 + i) << 96).into(), 48);
        t.put(churned.unwrap(), black(100)).unwrap();
        t.put(churned.unwrap(), Listing::default()).unwrap();
        t.settle();
    }
    // The entry's two bits and its marker's, and at most 1,024 prefixes that are stale.
    assert!(before <= 4 && bits(&t) <= 4 + 1_025 * 4, "{}", bits(&t));
    let inside = "2001:db8:aaaa:1::1".parse().unwrap();
    assert_eq!(t.reader().lookup(inside).black, 100);
}
