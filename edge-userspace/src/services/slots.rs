//! Which service has which place in the tables.

use std::collections::BTreeSet;

use edge_common::defence::Service as AbiService;

use crate::config::{Model, services::Service};

/// A service's place in `SERVICES`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Slot {
    /// Its index.
    pub index: u32,
    /// Its [`AbiService::generation`]: made from its name, so that the next daemon
    /// gives it the same.
    pub generation: u32,
}

/// The slots of services, in their order. `present` are the generations in the
/// table, 0 for none: a service that is there already stays where it is, so that
/// its state and its counters go on. The others take slots that nobody has had,
/// as long as there are any. There must be room for all.
pub fn assign(services: &[Service], present: &[u32]) -> Vec<Slot> {
    let mut generations = vec![0; services.len()];
    let mut by_name: Vec<usize> = (0..services.len()).collect();
    by_name.sort_by_key(|&i| services.get(i).map(|s| s.name.as_str()));
    let mut used = BTreeSet::from([0]);
    for i in by_name {
        if let (Some(service), Some(to)) = (services.get(i), generations.get_mut(i)) {
            let mut generation = hash(&service.name);
            while !used.insert(generation) {
                generation = generation.wrapping_add(1);
            }
            *to = generation;
        }
    }
    let home = |generation: u32| present.iter().position(|&p| p == generation);
    let mut taken: BTreeSet<usize> = generations.iter().filter_map(|&g| home(g)).collect();
    let free = |taken: &BTreeSet<usize>| {
        let mut all = (0..present.len()).filter(|i| !taken.contains(i));
        let never = all.clone().find(|&i| present.get(i) == Some(&0));
        never.or_else(|| all.next())
    };
    let mut slots = Vec::with_capacity(services.len());
    for generation in generations {
        let index = home(generation)
            .or_else(|| free(&taken))
            .unwrap_or_default();
        taken.insert(index);
        slots.push(Slot {
            index: u32::try_from(index).unwrap_or_default(),
            generation,
        });
    }
    slots
}

/// FNV-1a.
fn hash(name: &str) -> u32 {
    name.bytes().fold(0x811c_9dc5, |hash, byte| {
        (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193)
    })
}

/// The entries of `SERVICES`, by index.
pub fn entries(model: &Model, slots: &[Slot]) -> Vec<AbiService> {
    let most = slots.iter().map(|s| s.index + 1).max().unwrap_or(0);
    let mut entries = vec![AbiService::OFF; most as usize];
    for (service, slot) in model.services.iter().zip(slots) {
        if let Some(entry) = entries.get_mut(slot.index as usize) {
            *entry = AbiService {
                incomplete: service.incomplete.limit(),
                reflection: service.reflection.limit(),
                hold_ns: model.flood.hold_s.saturating_mul(1_000_000_000),
                when: service.syn as u32,
                dry_run: u32::from(service.dry_run),
                credit: 100u32.div_ceil(model.flood.completed.max(1)),
                generation: slot.generation,
                ..AbiService::OFF
            };
        }
    }
    entries
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::test::model_of;

    fn services(names: &[&str]) -> Model {
        let one = |(i, name): (usize, &&str)| {
            format!("[[service]]\nname = '{name}'\nports = [{}]\n", i + 1)
        };
        model_of(&names.iter().enumerate().map(one).collect::<String>())
    }

    fn indices(names: &[&str], present: &[u32]) -> Vec<u32> {
        let slots = assign(&services(names).services, present);
        slots.iter().map(|s| s.index).collect()
    }

    #[test]
    fn a_service_keeps_its_slot() {
        let none = [0; 4];
        assert_eq!(indices(&["a", "b", "c"], &none), [0, 1, 2]);
        let mut present = none;
        for slot in assign(&services(&["a", "b", "c"]).services, &none) {
            present[slot.index as usize] = slot.generation;
        }
        assert_eq!(indices(&["c", "d", "a"], &present), [2, 3, 0]);
        // Slots that were in use come last, and are used.
        assert_eq!(indices(&["d", "e", "c"], &present), [3, 0, 2]);
    }

    #[test]
    fn names_that_hash_alike_are_told_apart() {
        // Two words with the same FNV-1a hash.
        assert_eq!(hash("costarring"), hash("liquid"));
        let slots = assign(&services(&["liquid", "costarring"]).services, &[0; 4]);
        assert_ne!(slots[0].generation, slots[1].generation);
        let other = assign(&services(&["costarring", "liquid"]).services, &[0; 4]);
        assert_eq!(slots[0].generation, other[1].generation);
    }

    #[test]
    fn entries_say_what_the_file_says() {
        let model = model_of(
            "[flood]\ncompleted = 30\nhold = '7s'\n[[service]]\nname = 'a'\nports = [1]\nsyn = 'always'\ndry_run = true\nincomplete = { rate = 5, burst = 600 }\nreflection = { rate = 7, burst = 8 }",
        );
        let slots = [Slot {
            index: 2,
            generation: 9,
        }];
        let got = entries(&model, &slots);
        assert_eq!(got[..2], [AbiService::OFF; 2]);
        let want = AbiService {
            incomplete: edge_common::gcra::Limit::per_second(5, 600).unwrap(),
            reflection: edge_common::gcra::Limit::per_second(7, 8).unwrap(),
            hold_ns: 7_000_000_000,
            when: 2,
            dry_run: 1,
            credit: 4,
            generation: 9,
            ..AbiService::OFF
        };
        assert_eq!(got[2], want);
    }
}
