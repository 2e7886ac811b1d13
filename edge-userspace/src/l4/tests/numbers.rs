use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;

use super::endpoint;
use crate::l4::{
    BackendKey,
    numbers::{Numbers, TooMany},
};

/// The last number.
const LAST: u32 = 100_000;

fn key(n: u32) -> BackendKey {
    BackendKey {
        service: "web".to_owned(),
        endpoint: endpoint(n),
    }
}

fn keys(all: impl IntoIterator<Item = u32>) -> BTreeSet<BackendKey> {
    all.into_iter().map(key).collect()
}

fn retired(numbers: &Numbers) -> Vec<u32> {
    numbers.retired().map(|(_, number)| number).collect()
}

#[test]
fn numbers_stay_and_come_back() {
    let first = Numbers::default().assign(&keys([1, 2, 3]), LAST).unwrap();
    let of = |numbers: &Numbers, n| numbers.get(&key(n));
    assert_eq!(
        [1, 2, 3].map(|n| of(&first, n)),
        [Some(1), Some(2), Some(3)]
    );
    let second = first.assign(&keys([3, 4]), LAST).unwrap();
    assert_eq!(
        [1, 2, 3, 4].map(|n| of(&second, n)),
        [None, None, Some(3), Some(4)]
    );
    assert_eq!(retired(&second), [1, 2]);
    let third = second.assign(&keys([2, 3, 5]), LAST).unwrap();
    assert_eq!(
        [2, 3, 5].map(|n| of(&third, n)),
        [Some(2), Some(3), Some(5)]
    );
    assert_eq!(retired(&third), [1, 4]);
    // The same endpoint for another service is another backend.
    let other = BackendKey {
        service: "mail".to_owned(),
        ..key(3)
    };
    assert_eq!(third.get(&other), None);
}

#[test]
fn the_oldest_number_is_given_away_first_and_only_when_all_have_been_used() {
    let full = Numbers::default().assign(&keys(0..LAST), LAST).unwrap();
    let numbers: BTreeSet<u32> = full.live().values().copied().collect();
    assert_eq!(numbers, (1..=LAST).collect());
    let less = full.assign(&keys(10..LAST), LAST).unwrap();
    let less = less.assign(&keys(11..LAST), LAST).unwrap();
    let more = less
        .assign(&keys((11..LAST).chain([1_000_000])), LAST)
        .unwrap();
    assert_eq!(more.get(&key(1_000_000)), full.get(&key(0)));
    assert_eq!(retired(&more).len(), 10);
    // With nothing else left, numbers of those that go at the same moment.
    let other = full
        .assign(&keys((1..LAST).chain([1_000_000])), LAST)
        .unwrap();
    assert_eq!(other.get(&key(1_000_000)), full.get(&key(0)));
    let error = full.assign(&keys(0..=LAST), LAST).unwrap_err();
    let (wanted, room) = (LAST as usize + 1, LAST);
    assert_eq!(error, TooMany { wanted, room });
    assert!(error.to_string().contains("100000:"), "{error}");
}

#[test]
fn numbers_for_which_there_is_no_room_are_given_up() {
    let many = Numbers::default().assign(&keys(0..10), LAST).unwrap();
    let few = many.assign(&keys(5..10), LAST).unwrap();
    let none = few.assign(&keys(6..10), 7).unwrap();
    // Those of 6 stays, those of 7 to 9 go; the first five are retired.
    let numbers: Vec<u32> = none.live().values().copied().collect();
    assert_eq!(none.get(&key(6)), Some(7));
    assert!(numbers.iter().all(|n| (1..=7).contains(n)), "{numbers:?}");
    assert_eq!(BTreeSet::from_iter(numbers).len(), 4);
    assert_eq!(retired(&none), [4, 5, 6]);
}

#[test]
fn what_was_found_in_the_tables_need_not_be_sound() {
    let found = Numbers::resume(
        [(key(1), 7), (key(2), 7), (key(3), 0), (key(4), 9)],
        [(key(5), 9), (key(4), 3), (key(6), 5), (key(7), 5)],
    );
    assert_eq!(found.live(), &BTreeMap::from([(key(1), 7), (key(4), 9)]));
    assert_eq!(retired(&found), [5]);
    let next = found.assign(&keys([1, 2, 6]), LAST).unwrap();
    assert_eq!(next.get(&key(6)), Some(5));
    assert_eq!(next.get(&key(2)), Some(1));
}

proptest! {
    #[test]
    fn through_any_changes(steps in prop::collection::vec(prop::collection::btree_set(0u32..40, 0..20), 1..12)) {
        let mut numbers = Numbers::default();
        let mut ever = BTreeMap::new();
        for wanted in steps {
            let wanted = keys(wanted);
            let next = numbers.assign(&wanted, LAST).unwrap();
            prop_assert!(next.live().keys().eq(&wanted));
            // There are enough for each to have one for good, and another for each.
            for (key, &number) in next.live() {
                prop_assert_eq!(*ever.entry(key.clone()).or_insert(number), number);
            }
            let distinct: BTreeSet<u32> = ever.values().copied().collect();
            prop_assert_eq!(distinct.len(), ever.len());
            prop_assert_eq!(next.live().len() + next.retired().count(), ever.len());
            prop_assert_eq!(next.assign(&wanted, LAST).unwrap(), next.clone());
            let again = Numbers::resume(
                next.live().clone(),
                next.retired().map(|(key, number)| (key.clone(), number)),
            );
            prop_assert_eq!(&again, &next);
            numbers = next;
        }
    }
}
