//! Who may be picked at all.

use super::*;

/// A server as the specification sees it.
#[derive(Clone, Copy, Debug)]
struct Known {
    backup: bool,
    weight: u16,
    up: bool,
    draining: bool,
    ejected_until: u64,
}

/// Those that may be picked, by the words of the module's documentation.
fn allowed(servers: &[Known], threshold: f64, now: u64, tried: &[usize]) -> Vec<usize> {
    let those = |may: &dyn Fn(&Known) -> bool| -> Vec<usize> {
        (0..servers.len()).filter(|&at| may(&servers[at])).collect()
    };
    let wanted = |s: &Known| s.weight > 0 && !s.draining;
    let usable = |s: &Known| wanted(s) && s.up && s.ejected_until <= now;
    let usable_primaries = those(&|s| usable(s) && !s.backup);
    let primaries = those(&|s| wanted(s) && !s.backup);
    let backups = those(&|s| usable(s) && s.backup);
    let too_few = |usable: usize| (usable as f64) < threshold * primaries.len() as f64;
    let both = [&usable_primaries[..], &backups].concat();
    let (first, second) = if usable_primaries.is_empty() && !backups.is_empty() {
        (backups, Vec::new())
    } else if !too_few(usable_primaries.len()) {
        (usable_primaries, backups)
    } else if !backups.is_empty() && !too_few(both.len()) {
        (both, Vec::new())
    } else {
        (primaries, backups)
    };
    let untried = |all: &[usize]| -> Vec<usize> {
        all.iter()
            .copied()
            .filter(|at| !tried.contains(at))
            .collect()
    };
    [untried(&first), untried(&second)]
        .into_iter()
        .find(|found| !found.is_empty())
        .unwrap_or(first)
}

#[test]
fn no_schedule_leads_to_a_server_that_must_not_be_picked() {
    for seed in 0..400 {
        let mut chance = Chance(seed);
        let algorithm = ALL[seed as usize % ALL.len()];
        let settings = Settings {
            algorithm,
            panic_threshold: [0.0, 0.3, 0.5, 1.0][chance.below(4) as usize],
            slow_start: chance.below(2) * 5 * SECOND,
        };
        let count = chance.below(8) as usize;
        let mut known: Vec<Known> = (0..count)
            .map(|_| Known {
                backup: chance.below(3) == 0,
                weight: chance.below(4) as u16,
                up: true,
                draining: false,
                ejected_until: 0,
            })
            .collect();
        let servers = known.iter().enumerate();
        let servers = servers.map(|(number, s)| member(server(number, s.weight), s.backup));
        let group = Arc::new(Group::new(settings, SEED, servers.collect()));
        let mut picker = Picker::new(group.clone(), chance.next());
        let mut now = SECOND;
        for _ in 0..300 {
            now += chance.below(SECOND);
            if count > 0 && chance.below(2) == 0 {
                let at = chance.below(count as u64) as usize;
                match chance.below(4) {
                    0 => {
                        known[at].up ^= true;
                        group.set_up(at, known[at].up, now);
                    }
                    1 => {
                        known[at].draining ^= true;
                        group.set_draining(at, known[at].draining, now);
                    }
                    2 => {
                        known[at].weight = chance.below(4) as u16;
                        group.set_weight(at, known[at].weight, now);
                    }
                    _ => {
                        known[at].ejected_until = now + chance.below(10 * SECOND);
                        group.eject(at, known[at].ejected_until);
                    }
                }
            }
            let tried: Vec<usize> = (0..count).filter(|_| chance.below(4) == 0).collect();
            let ask = Ask {
                tried: &tried,
                key: (chance.below(4) > 0).then(|| chance.next()),
                ..chance.ask(now)
            };
            let allowed = allowed(&known, settings.panic_threshold, now, &tried);
            match picker.pick(&ask) {
                None => assert!(allowed.is_empty(), "{algorithm:?} {known:?}"),
                Some(picked) => assert!(
                    allowed.contains(&picked),
                    "{algorithm:?} picked {picked} of {allowed:?}: {known:?}, {tried:?}"
                ),
            }
        }
    }
}

/// Some primaries of four are left, and one backup. It is there for just that: as long as it is
/// well, nobody is asked who is known to be down.
#[test]
fn backups_and_panic_come_in_order() {
    let group = |panic_threshold, backups| {
        let servers = (0..5).filter(|&number| backups || number < 4);
        let servers = servers.map(|number| member(server(number, 1), number == 4));
        let settings = Settings {
            panic_threshold,
            ..settings(Algorithm::RoundRobin)
        };
        Arc::new(Group::new(settings, SEED, servers.collect()))
    };
    let picked = |group: &Arc<Group>, up: usize| {
        (0..4).for_each(|at| group.set_up(at, at < up, 0));
        let mut picker = Picker::new(group.clone(), 0);
        let mut picked: Vec<usize> = (0..20)
            .filter_map(|at| picker.pick(&Chance(at).ask(0)))
            .collect();
        picked.sort_unstable();
        picked.dedup();
        (picked, picker.is_panic(0))
    };
    let calm = group(0.5, true);
    assert_eq!(picked(&calm, 4), (vec![0, 1, 2, 3], false));
    assert_eq!(picked(&calm, 2), (vec![0, 1], false));
    assert_eq!(picked(&calm, 1), (vec![0, 4], false));
    assert_eq!(picked(&calm, 0), (vec![4], false));
    calm.set_up(4, false, 0);
    assert_eq!(picked(&calm, 1), (vec![0, 1, 2, 3], true));
    assert_eq!(picked(&group(0.5, false), 1), (vec![0, 1, 2, 3], true));
    assert_eq!(picked(&group(0.5, false), 0), (vec![0, 1, 2, 3], true));
    assert_eq!(picked(&group(0.0, false), 0), (vec![], false));
    assert_eq!(picked(&group(0.0, true), 1), (vec![0], false));
    // A backup that makes not enough of them does not keep the rest from being used.
    assert_eq!(picked(&group(0.75, true), 1), (vec![0, 1, 2, 3], true));
    assert_eq!(picked(&group(0.75, true), 0), (vec![4], false));
}

#[test]
fn a_slow_start_gives_what_is_due_and_ends() {
    for algorithm in ALL {
        let slow = Settings {
            slow_start: 10 * SECOND,
            ..settings(algorithm)
        };
        let group = primaries(slow, &[1; 4]);
        let mut picker = Picker::new(group.clone(), 0);
        let mut chance = Chance(4);
        let whole = counts(&mut picker, 4000, &mut chance, SECOND);
        assert!(whole[2] > 800, "{algorithm:?} {whole:?}");
        // An ejection is over by itself; then it starts slowly.
        group.eject(2, 100 * SECOND);
        let out = counts(&mut picker, 400, &mut chance, 99 * SECOND);
        assert_eq!(out[2], 0);
        let mut last = 0;
        for passed in [1, 5, 9] {
            let has = counts(&mut picker, 4000, &mut chance, (100 + passed) * SECOND)[2];
            // Of idle servers it takes those with the highest weight.
            if algorithm != Algorithm::LeastConnections {
                let due = 4000 * passed / (30 + passed);
                assert!(
                    u64::from(has).abs_diff(due) < 150,
                    "{algorithm:?}: {has} of {due}"
                );
            }
            assert!(
                has < 1000 && has >= last,
                "{algorithm:?}: {has} after {last}"
            );
            last = has;
        }
        let whole = counts(&mut picker, 4000, &mut chance, 110 * SECOND);
        assert!(whole[2] > 800, "{algorithm:?} {whole:?}");
    }
}

#[test]
fn sessions_go_on_while_a_server_drains() {
    let group = primaries(settings(Algorithm::RoundRobin), &[1; 3]);
    let mut picker = Picker::new(group.clone(), 0);
    let id = group.servers()[1].id();
    let ask = Chance(0).ask(SECOND);
    assert_eq!(picker.resume(id, &ask), Some(1));
    assert_eq!(picker.resume(id + 1, &ask), None);
    group.set_draining(1, true, SECOND);
    assert_eq!(picker.resume(id, &ask), Some(1));
    assert_eq!(counts(&mut picker, 10, &mut Chance(0), SECOND)[1], 0);
    assert_eq!(picker.resume(id, &Ask { tried: &[1], ..ask }), None);
    group.eject(1, 2 * SECOND);
    assert_eq!(picker.resume(id, &ask), None);
    assert_eq!(
        picker.resume(
            id,
            &Ask {
                now: 2 * SECOND,
                ..ask
            }
        ),
        Some(1)
    );
    group.set_up(1, false, SECOND);
    assert_eq!(
        picker.resume(
            id,
            &Ask {
                now: 2 * SECOND,
                ..ask
            }
        ),
        None
    );
}

#[test]
fn sessions_leave_a_backup_when_primaries_are_back() {
    let servers = (0..3).map(|number| member(server(number, 1), number == 2));
    let settings = Settings {
        panic_threshold: 1.0,
        ..settings(Algorithm::RoundRobin)
    };
    let group = Arc::new(Group::new(settings, SEED, servers.collect()));
    let mut picker = Picker::new(group.clone(), 0);
    let ask = Chance(0).ask(SECOND);
    let [primary, other, backup] = [0, 1, 2].map(|at| group.servers()[at].id());
    let mut resumed = || [primary, other, backup].map(|id| picker.resume(id, &ask));
    assert_eq!(resumed(), [Some(0), Some(1), None]);
    // Both are used.
    group.set_up(1, false, 0);
    assert_eq!(resumed(), [Some(0), None, Some(2)]);
    // Only backups are.
    group.set_weight(0, 0, 0);
    assert_eq!(resumed(), [Some(0), None, Some(2)]);
    // All primaries are, whatever is known of them.
    group.set_up(2, false, 0);
    assert_eq!(resumed(), [Some(0), Some(1), None]);
    group.set_up(2, true, 0);
    group.set_up(1, true, 0);
    assert_eq!(resumed(), [Some(0), Some(1), None]);
}

#[test]
fn who_had_no_weight_or_was_not_there_starts_slowly() {
    let slow = Settings {
        slow_start: 10 * SECOND,
        ..settings(Algorithm::WeightedRoundRobin)
    };
    let group = primaries(slow, &[1, 1, 0]);
    let mut picker = Picker::new(group.clone(), 0);
    let mut chance = Chance(7);
    let mut has = |at: usize, now| counts(&mut picker, 1000, &mut chance, now)[at];
    assert_eq!(has(2, SECOND), 0);
    group.set_weight(2, 1, SECOND);
    assert!(has(2, 2 * SECOND) < 100);
    assert!(has(2, 11 * SECOND) > 300);
    // Another weight is no new beginning.
    group.set_weight(2, 2, 11 * SECOND);
    assert_eq!(has(2, 11 * SECOND), 500);
    group.begin(1, 20 * SECOND);
    assert!(has(1, 21 * SECOND) < 100);
    assert!(has(1, 30 * SECOND) > 200);
}

/// Requests that began before a reload tell the group of before.
#[test]
fn what_is_changed_by_the_group_of_before_is_acted_on() {
    let servers: Vec<_> = (0..3).map(|n| member(server(n, 1), false)).collect();
    let settings = settings(Algorithm::RoundRobin);
    let last = Group::new(settings, SEED, servers.clone());
    let next = Arc::new(Group::new(settings, SEED, servers[1..].to_vec()).following(&last));
    let mut picker = Picker::new(next, 0);
    assert_eq!(counts(&mut picker, 10, &mut Chance(0), 0), [5, 5]);
    last.eject(1, SECOND);
    assert_eq!(counts(&mut picker, 10, &mut Chance(0), 0), [0, 10]);
    last.set_draining(2, true, 0);
    assert_eq!(picker.pick(&Chance(0).ask(0)), None);
    assert_eq!(counts(&mut picker, 10, &mut Chance(0), SECOND), [10, 0]);
}

/// As in a reload: the next group has some of the servers of the last one.
#[test]
fn servers_outlive_their_group() {
    let servers: Vec<_> = (0..3).map(|n| member(server(n, 1), false)).collect();
    let settings = settings(Algorithm::LeastConnections);
    let last = Group::new(settings, SEED, servers.clone());
    let active = servers[2].server.enter();
    last.set_up(1, false, 0);
    let next = Arc::new(Group::new(settings, SEED, servers[1..].to_vec()));
    let mut picker = Picker::new(next.clone(), 0);
    assert_eq!(counts(&mut picker, 10, &mut Chance(0), 0), [0, 10]);
    assert_eq!(next.servers()[1].active(), 1);
    drop(active);
    assert_eq!(next.servers()[1].active(), 0);
}
