use std::collections::BTreeMap;

use proptest::prelude::*;

use super::{FEW, any_balance, any_states, backend, balance, candidates, seed, up};
use crate::{
    config::balance::Balance,
    l4::{
        BackendKey, Endpoint,
        delta::{Contents, Delta, Recipe},
        numbers::Numbers,
        plan::{States, plan},
    },
};

/// A whole configuration: services by name, and what is known of their backends.
type World = BTreeMap<String, (Balance, States)>;

/// The kernel's tables.
#[derive(Debug, Default, PartialEq)]
struct Tables {
    rings: BTreeMap<String, Vec<u32>>,
    backends: BTreeMap<u32, BackendKey>,
}

impl Tables {
    /// Carries out a change step by step; what a packet may find is checked after each.
    fn apply(&mut self, delta: Delta) {
        for (number, key) in delta.backends {
            // No ring in force names a backend whose number another takes.
            assert!(
                !self.rings.values().any(|ring| ring.contains(&number)),
                "{key:?}"
            );
            self.backends.insert(number, key);
        }
        self.check();
        for (service, recipe) in delta.rings {
            self.rings.insert(service, recipe.ring(&seed(1)));
            self.check();
        }
        for service in delta.services_gone {
            self.rings.remove(&service).unwrap();
        }
        for number in delta.backends_gone {
            self.backends.remove(&number).unwrap();
        }
        self.check();
    }

    /// Every number in a ring is that of a backend of its service.
    fn check(&self) {
        for (service, ring) in &self.rings {
            for number in ring {
                assert_eq!(&self.backends[number].service, service);
            }
        }
    }
}

fn any_world() -> impl Strategy<Value = World> {
    let name = prop_oneof![Just("a"), Just("b"), Just("c"), Just("d")];
    prop::collection::btree_map(
        name.prop_map(str::to_owned),
        (any_balance(), any_states()),
        0..4,
    )
}

fn numbers(world: &World, former: &Numbers) -> Numbers {
    let wanted = world.iter().flat_map(|(service, (balance, _))| {
        let key = |backend| BackendKey {
            service: service.clone(),
            endpoint: Endpoint::of(backend),
        };
        balance.backends.iter().map(key)
    });
    former.assign(&wanted.collect(), 1000).unwrap()
}

fn contents(world: &World, numbers: &Numbers, now: u64) -> Contents {
    let chosen = |(name, (balance, states)): (&String, &(Balance, States))| {
        (name.clone(), plan(balance, states, now).candidates())
    };
    Contents::new(&world.iter().map(chosen).collect(), FEW, numbers)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 100, ..ProptestConfig::default() })]

    #[test]
    fn a_difference_carried_out_is_the_plan_from_nothing(
        worlds in prop::collection::vec((any_world(), 0u64..4_000), 1..5),
    ) {
        let mut tables = Tables::default();
        let mut before = Contents::default();
        let mut used = Numbers::default();
        for (world, now) in worlds {
            used = numbers(&world, &used);
            let wanted = contents(&world, &used, now);
            let delta = Delta::between(&before, &wanted);
            prop_assert_eq!(delta.is_empty(), before == wanted);
            tables.apply(delta);
            let mut from_nothing = Tables::default();
            from_nothing.apply(Delta::between(&Contents::default(), &wanted));
            prop_assert_eq!(&tables, &from_nothing);
            before = wanted;
        }
    }
}

/// What the file's order or a name changes is not written.
#[test]
fn only_what_matters_to_a_ring_is_written() {
    let world = |order: [u32; 3]| {
        let backends = order.map(|n| backend(n, 100 + n, false)).to_vec();
        let states = backends.iter().map(|b| (Endpoint::of(b), up())).collect();
        World::from([("web".to_owned(), (balance(backends), states))])
    };
    let first = world([1, 2, 3]);
    let used = numbers(&first, &Numbers::default());
    let before = contents(&first, &used, 0);
    let mut other = world([3, 1, 2]);
    other.get_mut("web").unwrap().0.backends[0].name = "www".to_owned();
    let after = contents(&other, &numbers(&other, &used), 0);
    assert!(Delta::between(&before, &after).is_empty());
    other.get_mut("web").unwrap().0.backends[0].weight = 1;
    let delta = Delta::between(&before, &contents(&other, &used, 0));
    assert_eq!(delta.rings.len(), 1);
    assert!(delta.backends.is_empty() && delta.backends_gone.is_empty());
}

#[test]
fn nobody_without_a_number_has_a_slot() {
    let recipe = Recipe::new("web", &candidates(&[1, 2]), FEW, &Numbers::default());
    assert!(recipe.members.is_empty());
    assert!(recipe.ring(&seed(1)).is_empty());
}
