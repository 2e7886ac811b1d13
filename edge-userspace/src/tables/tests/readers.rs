//! Readers while the writer is at work: they must find what was or what is.

use std::{
    cell::RefCell,
    collections::BTreeMap,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    rc::Rc,
    sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering::Relaxed},
    thread,
};

use edge_common::{
    addr::Prefix,
    table::{Meta, Slot4},
};
use proptest::prelude::*;

use super::{
    super::{
        Capacity, Geometry, Listing, Regions, TableError, Tables, cuckoo::Cuckoo, words::hook,
    },
    Op, SEED, addrs, black, check, listing, model_lookup, op, p, prefix, put, tables, tiny,
};
use crate::memory::Region;

/// Whether each part of what a reader found is among what is allowed; the parts
/// are separate words, and change one after the other.
fn is_one_of(found: Listing, allowed: &[Listing]) -> bool {
    allowed.iter().any(|l| l.black == found.black)
        && allowed.iter().any(|l| l.allow == found.allow)
        && allowed.iter().any(|l| l.meta.flags == found.meta.flags)
        && allowed.iter().any(|l| l.meta.profile == found.meta.profile)
}

/// Addresses worth looking at: the ends of all prefixes that take part.
fn interesting(prefixes: impl Iterator<Item = Prefix>, more: &[IpAddr]) -> Vec<IpAddr> {
    let mut all: Vec<IpAddr> = prefixes
        .flat_map(|x| [x.addr(), x.last().addr()])
        .chain(more.iter().copied())
        .collect();
    all.sort_unstable();
    all.dedup();
    all
}

/// Whether a prefix covers an address, which is an IPv6 one when it is mapped.
fn covers(prefix: Prefix, addr: IpAddr) -> bool {
    let one = BTreeMap::from([(prefix, black(1))]);
    !model_lookup(&one, addr).is_empty()
}

type Model = BTreeMap<Prefix, Listing>;

/// Fills tables of so few slots that most changes move something.
fn filled(entries: &[(Prefix, Listing)]) -> (Tables, Model) {
    let mut tables = tables(Geometry {
        hosts4_buckets: 3,
        wide_buckets: 6,
        ..tiny()
    });
    let mut model = Model::new();
    for (prefix, listing) in entries {
        put(&mut tables, &mut model, *prefix, *listing);
    }
    (tables, model)
}

/// The change that an operation makes, for the operations that make one.
fn change(op: &Op, model: &Model) -> Option<(Prefix, Listing)> {
    let at = |i: usize| model.keys().nth(i % model.len().max(1)).copied();
    match op {
        Op::Put(prefix, listing) => Some((*prefix, *listing)),
        Op::Remove(i) => Some((at(*i)?, Listing::default())),
        Op::Change(i, listing) => Some((at(*i)?, *listing)),
        Op::Expire(_) | Op::Settle | Op::Restart => None,
    }
}

fn entries() -> impl Strategy<Value = Vec<(Prefix, Listing)>> {
    prop::collection::vec((prefix(), listing()), 0..40)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]

    /// A reader between any two stores of the writer.
    #[test]
    fn the_tables_are_right_after_every_store(
        entries in entries(),
        ops in prop::collection::vec(op(), 1..15),
        addrs in addrs(),
    ) {
        let (mut tables, mut model) = filled(&entries);
        for op in ops {
            let (prefix, listing) = match change(&op, &model) {
                Some(change) => change,
                None => {
                    tables.stale_hosts4 += 10_000;
                    tables.stale_hosts6 += 10_000;
                    tables.stale_prefixes += 10_000;
                    (p("192.0.2.0/24"), Listing::default())
                }
            };
            let mut after = model.clone();
            after.insert(prefix, listing);
            let expected: Vec<_> = interesting(after.keys().copied(), &addrs)
                .into_iter()
                .map(|x| (x, [model_lookup(&model, x), model_lookup(&after, x)]))
                .collect();
            let reader = tables.reader();
            let look = move || {
                for (addr, allowed) in &expected {
                    let found = reader.lookup(*addr);
                    assert!(is_one_of(found, allowed), "{addr}: {found:?} not in {allowed:?}");
                }
            };
            hook::after_stores(look, || {
                put(&mut tables, &mut model, prefix, listing);
                tables.settle();
            });
        }
        check(&tables, &model, &addrs);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 8, ..ProptestConfig::default() })]

    /// The writer makes one or two whole changes between any two loads of a reader.
    #[test]
    fn a_reader_may_be_interrupted_at_every_load(
        entries in entries(),
        ops in prop::collection::vec(op(), 2..8),
        addrs in addrs(),
    ) {
        let (tables, mut model) = filled(&entries);
        let tables = Rc::new(RefCell::new(tables));
        let reader = tables.borrow().reader();
        for pair in ops.windows(2) {
            let mut changes = Vec::new();
            let mut models = vec![model.clone()];
            for op in pair {
                let Some((prefix, listing)) = change(op, &model) else { continue };
                let mut next = models.last().unwrap().clone();
                let former = next.get(&prefix).copied().unwrap_or_default();
                // Only such as fit: then they can be undone, and done again.
                if tables.borrow_mut().put(prefix, listing).is_err() {
                    tables.borrow_mut().put(prefix, former).unwrap();
                    continue;
                }
                next.insert(prefix, listing);
                next.retain(|_, l| !l.is_empty());
                models.push(next);
                changes.push((prefix, former, listing));
            }
            let undo = |tables: &mut Tables| {
                for (prefix, former, _) in changes.iter().rev() {
                    tables.put(*prefix, *former).unwrap();
                }
            };
            undo(&mut tables.borrow_mut());
            let all = models.iter().flat_map(|m| m.keys().copied());
            let all = interesting(all, &addrs);
            for &addr in all.iter().step_by(all.len() / 12 + 1) {
                // Overtaken by two changes to what covers a source, a reader may
                // have looked for the new one before it came and for the old
                // one after it went. One change at a time is what is promised.
                let touched = |c: &&(Prefix, Listing, Listing)| covers(c.0, addr);
                if changes.iter().filter(touched).count() > 1 {
                    continue;
                }
                let allowed: Vec<_> = models.iter().map(|m| model_lookup(m, addr)).collect();
                for at in 0.. {
                    let (inside, todo) = (Rc::clone(&tables), changes.clone());
                    let loads = Rc::new(RefCell::new(0));
                    let counter = Rc::clone(&loads);
                    let interrupt = move || {
                        if *counter.borrow() == at {
                            for (prefix, _, listing) in &todo {
                                inside.borrow_mut().put(*prefix, *listing).unwrap();
                            }
                        }
                        *counter.borrow_mut() += 1;
                    };
                    let found = hook::before_loads(interrupt, || reader.lookup(addr));
                    prop_assert!(
                        is_one_of(found, &allowed),
                        "{addr}, load {at}: {found:?} not in {allowed:?}"
                    );
                    if *loads.borrow() <= at {
                        break;
                    }
                    undo(&mut tables.borrow_mut());
                }
            }
            for (prefix, _, listing) in &changes {
                tables.borrow_mut().put(*prefix, *listing).unwrap();
            }
            model = models.pop().unwrap();
        }
        check(&tables.borrow(), &model, &addrs);
    }
}

/// A pseudo-random sequence (xorshift; Marsaglia 2003).
struct Sequence(u64);

impl Sequence {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }
}

/// An insertion that moves others, between any two loads of a search for one of them.
#[test]
fn no_move_hides_an_entry() {
    const BUCKETS: u32 = 4;
    let slot = |addr| Slot4 {
        addr,
        black: 1,
        ..Slot4::default()
    };
    let mut moves = 0;
    let mut seq = Sequence(4711);
    for _ in 0..300 {
        let region = Rc::new(Region::heap(BUCKETS as usize * 64));
        let table = Rc::new(RefCell::new(Cuckoo::adopt(&region, BUCKETS, SEED)));
        let mut inside = Vec::new();
        loop {
            let new = seq.next() as u32 | 1;
            let words: Vec<u32> = region.u32s().iter().map(|w| w.load(Relaxed)).collect();
            let restore = || {
                for (word, was) in region.u32s().iter().zip(&words) {
                    word.store(*was, Relaxed);
                }
            };
            if table.borrow_mut().insert(&region, slot(new)).is_err() {
                break;
            }
            let slots = region.u32s().iter().zip(&words).step_by(4);
            moves += slots
                .filter(|(now, was)| **was != 0 && now.load(Relaxed) != **was)
                .count();
            restore();
            for &sought in &inside {
                for at in 0..8 {
                    let (r, t) = (Rc::clone(&region), Rc::clone(&table));
                    let mut loads = 0;
                    let insert = move || {
                        if loads == at {
                            t.borrow_mut().insert(&r, slot(new)).unwrap();
                        }
                        loads += 1;
                    };
                    let reader = Cuckoo::<Slot4>::empty(BUCKETS, SEED);
                    let found = hook::before_loads(insert, || reader.find(&region, sought));
                    assert!(
                        found.is_some(),
                        "{sought:#x}, while {new:#x} came at load {at}"
                    );
                    restore();
                }
            }
            table.borrow_mut().insert(&region, slot(new)).unwrap();
            inside.push(new);
        }
    }
    assert!(moves > 300, "only {moves} moves were tried");
}

/// The words of `WIDE` and its filter.
fn wide_words(regions: &Regions) -> impl Iterator<Item = &AtomicU32> {
    [&regions.wide, &regions.prefix_filter]
        .into_iter()
        .flat_map(Region::u32s)
}

/// One slot changes hands between two prefixes of the same length, and a reader
/// sees any part of that before any two of its loads, then the rest.
#[test]
fn a_slot_may_change_hands_under_a_reader() {
    let mut t = tables(Geometry {
        wide_buckets: 1,
        hosts6_filter_words: 1,
        prefix_filter_words: 1,
        ..tiny()
    });
    let flags = |flags| Meta { flags, profile: 0 };
    let (old, new, cover) = (p("10.1.0.0/24"), p("10.2.0.0/24"), p("10.0.0.0/8"));
    let says = |black, f| Listing {
        black,
        meta: flags(f),
        ..Listing::default()
    };
    t.put(cover, says(400, 1)).unwrap();
    t.put(new, says(500, 2)).unwrap();
    t.put(new, Listing::default()).unwrap();
    t.put(old, says(600, 2)).unwrap();
    let reader = t.reader();
    let regions = Rc::new(t.reader().regions);

    let history = Rc::new(RefCell::new(Vec::new()));
    let snapshot = {
        let (history, regions) = (Rc::clone(&history), Rc::clone(&regions));
        move || {
            let words: Vec<u32> = wide_words(&regions).map(|w| w.load(Relaxed)).collect();
            history.borrow_mut().push(words);
        }
    };
    snapshot();
    hook::after_stores(snapshot, || {
        t.put(old, Listing::default()).unwrap();
        t.put(new, says(500, 2)).unwrap();
    });
    let history = history.take();
    let show = |regions: &Regions, at: usize| {
        for (word, was) in wide_words(regions).zip(&history[at]) {
            word.store(*was, Relaxed);
        }
    };
    let last = history.len() - 1;
    assert!(last >= 12, "two slots' worth of stores");

    for (addr, with) in [("10.1.0.1", says(600, 3)), ("10.2.0.1", says(500, 3))] {
        let allowed = [says(400, 1), with];
        for at in 0..=last {
            for (first, second) in (0..40).flat_map(|f| (f..40).map(move |s| (f, s))) {
                show(&regions, 0);
                let (seen, whole) = (history[at].clone(), history[last].clone());
                let (r, mut loads) = (Rc::clone(&regions), 0);
                let turn = move || {
                    if loads == first {
                        wide_words(&r)
                            .zip(&seen)
                            .for_each(|(w, v)| w.store(*v, Relaxed));
                    }
                    if loads == second {
                        wide_words(&r)
                            .zip(&whole)
                            .for_each(|(w, v)| w.store(*v, Relaxed));
                    }
                    loads += 1;
                };
                let found = hook::before_loads(turn, || reader.lookup(addr.parse().unwrap()));
                assert!(
                    allowed.contains(&found),
                    "{addr}: {found:?} with store {at} at load {first}, the rest at {second}"
                );
            }
        }
    }
}

/// What readers must find whatever the writer does.
fn assert_reader_sees_old_or_new(lookup: impl Fn(IpAddr) -> Listing, seq: &mut Sequence) {
    let i = (seq.next() % 300) as u32;
    let v4 = |bits: u32| IpAddr::V4(Ipv4Addr::from_bits(bits));
    let v6 = |bits: u128| IpAddr::V6(Ipv6Addr::from_bits(bits));
    // Never removed; the stamp goes back and forth.
    let s = lookup(v4(0x0a00_0001 + i)).black;
    assert!(s == 100 || s == 200, "stable IPv4 host {i}: {s}");
    let s = lookup(v6(0x2001_0db8 << 96 | u128::from(i))).black;
    assert!(s == 100 || s == 200, "stable IPv6 host {i}: {s}");
    let s = lookup(v4(0xac10_0000 | i << 8 | 9)).black;
    assert!(s == 300, "stable prefix {i}: {s}");
    // A prefix that is always there, and a longer one below that comes and goes.
    let s = lookup(v4(0xc000_0000 | i << 4)).black;
    assert!(s == 400 || s == 500, "below a stable prefix {i}: {s}");
    let s = lookup(v6(0x2002 << 112 | u128::from(i) << 70 | 1)).black;
    assert!(s == 400 || s == 500, "below a stable IPv6 prefix {i}: {s}");
    // Comes and goes.
    let s = lookup(v4(0x0b00_0001 + i)).black;
    assert!(s == 0 || s == 600, "churning host {i}: {s}");
    // Never there.
    let s = lookup(v4(0x0c00_0001 + i));
    assert!(s.is_empty(), "host {i} that was never listed: {s:?}");
    let s = lookup(v6(0x2003 << 112 | u128::from(i)));
    assert!(s.is_empty(), "IPv6 host {i} that was never listed: {s:?}");
}

/// One random step of the writer. Removals make filters stale, so that they
/// are rebuilt now and then; insertions into the crowded tables move entries.
fn churn(t: &mut Tables, seq: &mut Sequence) {
    let i = (seq.next() % 300) as u32;
    let on = seq.next() & 1 == 0;
    let v4 = |bits: u32, len| Prefix::new(IpAddr::V4(Ipv4Addr::from_bits(bits)), len).unwrap();
    let v6 = |bits: u128, len| Prefix::new(IpAddr::V6(Ipv6Addr::from_bits(bits)), len).unwrap();
    let toggled = black(if on { 100 } else { 200 });
    let comes = |stamp| black(if on { stamp } else { 0 });
    let (prefix, listing) = match seq.next() % 8 {
        0 => (v4(0x0a00_0001 + i, 32), toggled),
        1 => (v6(0x2001_0db8 << 96 | u128::from(i), 128), toggled),
        2 => (v4(0xc000_0000 | i << 4, 28), comes(500)),
        3 => (v6(0x2002 << 112 | u128::from(i) << 70, 58), comes(500)),
        4 => (v4(0xac10_0000 | i << 8 | 128, 25), comes(300)),
        _ => (v4(0x0b00_0001 + i, 32), comes(600)),
    };
    match t.put(prefix, listing) {
        Ok(()) | Err(TableError::Full { .. }) => {}
        Err(e) => panic!("{e}"),
    }
    t.settle();
}

#[test]
fn readers_see_old_or_new() {
    let geometry = Geometry {
        hosts4_buckets: 160,
        wide_buckets: 420,
        hosts4_filter_words: 20,
        hosts6_filter_words: 40,
        prefix_filter_words: 40,
        long_lengths: 64,
        ..Geometry::for_capacity(&Capacity::default())
    };
    let mut t = tables(geometry);
    for i in 0..300u32 {
        let v4 = |bits: u32, len| Prefix::new(IpAddr::V4(Ipv4Addr::from_bits(bits)), len).unwrap();
        t.put(v4(0x0a00_0001 + i, 32), black(100)).unwrap();
        t.put(v4(0xac10_0000 | i << 8, 24), black(300)).unwrap();
        let host = IpAddr::V6(Ipv6Addr::from_bits(0x2001_0db8 << 96 | u128::from(i)));
        t.put(Prefix::host(host), black(100)).unwrap();
    }
    t.put(p("192.0.0.0/8"), black(400)).unwrap();
    t.put(p("2002::/16"), black(400)).unwrap();

    let done = AtomicBool::new(false);
    let lookups = AtomicU64::new(0);
    thread::scope(|scope| {
        let mut readers = Vec::new();
        for n in 0..2u64 {
            let reader = t.reader();
            let (done, lookups) = (&done, &lookups);
            readers.push(scope.spawn(move || {
                let mut seq = Sequence(n * 7919 + 12345);
                while !done.load(Relaxed) {
                    assert_reader_sees_old_or_new(|addr| reader.lookup(addr), &mut seq);
                    lookups.fetch_add(1, Relaxed);
                }
            }));
        }
        let mut seq = Sequence(99);
        let mut steps = 0u64;
        // Until both sides have worked a good deal beside each other, or a reader
        // found something wrong and panicked.
        while steps < 100_000 || lookups.load(Relaxed) < 10_000 {
            churn(&mut t, &mut seq);
            steps += 1;
            if readers.iter().any(|r| r.is_finished()) {
                break;
            }
        }
        done.store(true, Relaxed);
    });
}
