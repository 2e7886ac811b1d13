//! From the configuration to what the datapath and the policy are told. Pure.

use edge_common::{
    abi::{MAX_PROFILES, Mode, Profile},
    hash::Seed,
};

use super::defence::Told;
use crate::{
    config::{
        Model,
        limits::{Profiles, TooManyProfiles},
    },
    datapath::{Program, Settings},
    policy::SystemEntries,
    tables::Geometry,
};

/// What a configuration comes down to.
#[derive(Clone, Debug)]
pub(super) struct Plan {
    pub(super) geometry: Geometry,
    pub(super) settings: Settings,
    pub(super) system: SystemEntries,
}

/// The plan of a configuration. `tick_ns` is the resolution of the programs'
/// clock, `told` what programs are told of the host, `fleet` the secret of the choice of
/// backends, if others share it. `previous` are the limit profiles in force, so
/// that a set of limits that stays keeps its number: the tables are written
/// before the programs are replaced, and the old program must find under each
/// number what it knew there.
///
/// # Errors
/// When the overrides differ too much from each other.
pub(super) fn plan(
    model: &Model,
    seed: Seed,
    tick_ns: u64,
    told: Told,
    fleet: Option<Seed>,
    previous: &[Profile; MAX_PROFILES],
) -> Result<Plan, TooManyProfiles> {
    let geometry = Geometry::for_capacity(&model.capacity);
    let profiles = renumber(&model.profiles()?, previous);
    let bogons = match model.checks.bogons {
        Mode::Off => Vec::new(),
        Mode::DryRun | Mode::Enforce => model.bogon_prefixes.clone(),
    };
    let mut config = model.abi_config(&geometry, seed, tick_ns, told.tcp_features, 0);
    config.client_mtu = told.client_mtu;
    if let Some(fleet) = fleet {
        config.balance_seed = fleet;
    }
    Ok(Plan {
        geometry,
        settings: Settings {
            interfaces: model.interfaces.clone(),
            allow_generic: model.allow_generic,
            program: Program {
                config,
                profiles: Box::new(profiles.table),
                events_buffer: model.events_buffer,
                targets: model.flood.targets,
            },
            arp_bindings: model.arp_bindings.clone(),
        },
        system: SystemEntries {
            management: model.management.clone(),
            bogons,
            profiles: profiles.prefixes,
            allow: model.allow.clone(),
            black: model.blacklist.clone(),
        },
    })
}

/// The same profiles under other numbers: those that are in `previous` keep
/// the number they have there, and the others take numbers that are unused
/// there as long as there are any.
fn renumber(new: &Profiles, previous: &[Profile; MAX_PROFILES]) -> Profiles {
    let mut table = [Profile::default(); MAX_PROFILES];
    table[0] = new.table[0];
    // The new number of each, 0 while it has none: that is the default's, which
    // no prefix has.
    let mut home = [0; MAX_PROFILES];
    let mut taken = [false; MAX_PROFILES];
    taken[0] = true;
    let mut settle = |set: usize, likes: &dyn Fn(&Profile) -> bool| {
        let free = (0..MAX_PROFILES).find(|&i| !taken[i] && likes(&previous[i]));
        if let Some(i) = free.filter(|_| home[set] == 0) {
            home[set] = i;
            taken[i] = true;
            table[i] = new.table[set];
        }
    };
    let most = new.prefixes.iter().map(|p| usize::from(p.1)).max();
    let sets = 1..=most.unwrap_or(0).min(MAX_PROFILES - 1);
    for set in sets.clone() {
        settle(set, &|was| *was == new.table[set]);
    }
    for set in sets.clone() {
        settle(set, &|was| *was == Profile::default());
    }
    for set in sets {
        settle(set, &|_| true);
    }
    let number = |old: u8| {
        let new = home.get(usize::from(old)).copied().unwrap_or_default();
        // There are as many numbers as there can be sets, all below 64.
        u8::try_from(new).unwrap_or(old)
    };
    let prefixes = new.prefixes.iter().map(|&(p, i)| (p, number(i))).collect();
    Profiles { table, prefixes }
}

#[cfg(test)]
mod tests {
    use super::*;
    use edge_common::{addr::Prefix, gcra::Limit};

    fn profile(rate: u64) -> Profile {
        let mut profile = Profile::default();
        if rate != 0 {
            profile.limits[0] = Limit::per_second(rate, 10).unwrap();
        }
        profile
    }

    fn profiles(rates: &[u64]) -> Profiles {
        let mut table = [Profile::default(); MAX_PROFILES];
        table[0] = profile(1);
        let mut prefixes = Vec::new();
        for (i, &rate) in rates.iter().enumerate() {
            table[i + 1] = profile(rate);
            let host = Prefix::host([10, 0, 0, i as u8].into());
            prefixes.push((host, i as u8 + 1));
        }
        Profiles { table, prefixes }
    }

    fn rates_by_prefix(p: &Profiles) -> Vec<Profile> {
        p.prefixes
            .iter()
            .map(|x| p.table[usize::from(x.1)])
            .collect()
    }

    #[test]
    fn a_set_that_stays_keeps_its_number() {
        let old = renumber(&profiles(&[5, 6, 7]), &[Profile::default(); MAX_PROFILES]);
        let next = profiles(&[8, 7, 5]);
        let new = renumber(&next, &old.table);
        assert_eq!(rates_by_prefix(&new), rates_by_prefix(&next));
        assert_eq!(new.prefixes[1].1, old.prefixes[2].1);
        assert_eq!(new.prefixes[2].1, old.prefixes[0].1);
        // The new one does not take the number of the one that is gone.
        assert!(old.prefixes.iter().all(|p| p.1 != new.prefixes[0].1));
        assert_eq!(new.table[0], profile(1));
    }

    #[test]
    fn a_full_house_finds_places_for_all() {
        let all: Vec<u64> = (100..100 + MAX_PROFILES as u64 - 1).collect();
        let old = renumber(&profiles(&all), &[Profile::default(); MAX_PROFILES]);
        let other: Vec<u64> = (130..130 + MAX_PROFILES as u64 - 1).collect();
        let next = profiles(&other);
        let new = renumber(&next, &old.table);
        assert_eq!(rates_by_prefix(&new), rates_by_prefix(&next));
        assert!(new.prefixes.iter().all(|p| p.1 != 0));
    }

    #[test]
    fn no_limit_at_all_is_a_set_too() {
        let next = profiles(&[0, 3]);
        let new = renumber(&next, &[Profile::default(); MAX_PROFILES]);
        assert_eq!(rates_by_prefix(&new), rates_by_prefix(&next));
        assert_ne!(new.prefixes[0].1, new.prefixes[1].1);
    }
}
