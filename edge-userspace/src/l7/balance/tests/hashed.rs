//! Which keys go where, and which move.

use super::*;

const KEYS: u64 = 20_000;

/// Where each key goes.
fn places(picker: &mut Picker, now: u64) -> Vec<usize> {
    (0..KEYS)
        .map(|number| {
            let ask = Ask {
                now,
                random: number,
                key: Some(key(&SEED, &number.to_be_bytes())),
                tried: &[],
            };
            picker.pick(&ask).unwrap()
        })
        .collect()
}

fn servers(group: &Group) -> Vec<Member> {
    let servers = group.servers().iter();
    servers.map(|s| member(s.clone(), false)).collect()
}

fn shares(places: &[usize], servers: usize) -> Vec<u32> {
    let mut counts = vec![0; servers];
    for &place in places {
        counts[place] += 1;
    }
    counts
}

fn moved<'a>(before: &'a [usize], after: &'a [usize]) -> impl Iterator<Item = (usize, usize)> {
    let both = before.iter().copied().zip(after.iter().copied());
    both.filter(|(before, after)| before != after)
}

#[test]
fn shares_are_those_of_the_weights() {
    for weights in [&[1, 1, 1][..], &[1, 5, 10, 2], &[7; 50]] {
        let mut picker = Picker::new(primaries(settings(Algorithm::Hash), weights), 0);
        let places = places(&mut picker, 0);
        assert_shares(&shares(&places, weights.len()), weights, 4.5);
    }
}

#[test]
fn workers_and_hosts_agree() {
    let one = primaries(settings(Algorithm::Hash), &[1, 2, 3]);
    let other = primaries(settings(Algorithm::Hash), &[1, 2, 3]);
    let expected = places(&mut Picker::new(one.clone(), 1), 0);
    assert_eq!(expected, places(&mut Picker::new(one, 2), 5));
    assert_eq!(expected, places(&mut Picker::new(other, 3), 9));
}

#[test]
fn only_the_keys_of_one_that_goes_down_move_and_they_come_back() {
    let group = primaries(settings(Algorithm::Hash), &[1, 2, 3, 1, 1, 1, 1, 1, 1, 1]);
    let mut picker = Picker::new(group.clone(), 0);
    let before = places(&mut picker, 0);
    for gone in [vec![2], vec![1, 7]] {
        let set = |up| {
            gone.iter()
                .for_each(|&position| group.set_up(position, up, 0));
        };
        set(false);
        let after = places(&mut picker, 0);
        assert!(
            moved(&before, &after).all(|(from, to)| gone.contains(&from) && !gone.contains(&to))
        );
        let weights: Vec<u16> = (0..10)
            .map(|at| {
                if gone.contains(&at) {
                    0
                } else {
                    group.servers()[at].weight()
                }
            })
            .collect();
        assert_shares(&shares(&after, 10), &weights, 4.5);
        set(true);
        assert_eq!(before, places(&mut picker, 0));
    }
}

#[test]
fn one_that_the_configuration_loses_takes_hardly_more_than_its_own_keys() {
    let servers: Vec<_> = (0..20).map(|n| member(server(n, 1), false)).collect();
    let group = |servers: &[Member]| {
        Arc::new(Group::new(
            settings(Algorithm::Hash),
            SEED,
            servers.to_vec(),
        ))
    };
    let before = places(&mut Picker::new(group(&servers), 0), 0);
    let after = places(&mut Picker::new(group(&servers[..19]), 0), 0);
    let needless = moved(&before, &after)
        .filter(|&(from, _)| from != 19)
        .count();
    assert!(needless <= KEYS as usize / 100, "{needless}");
}

#[test]
fn a_weight_that_changes_moves_only_keys_to_whom_more_is_due() {
    let group = primaries(settings(Algorithm::Hash), &[4, 4, 4, 4]);
    let mut picker = Picker::new(group.clone(), 0);
    let before = places(&mut picker, 0);
    group.set_weight(1, 1, 0);
    let less = places(&mut picker, 0);
    assert_shares(&shares(&less, 4), &[4, 1, 4, 4], 4.5);
    assert!(moved(&before, &less).all(|(from, _)| from == 1));
    group.set_weight(1, 12, 0);
    let more = places(&mut picker, 0);
    assert_shares(&shares(&more, 4), &[4, 12, 4, 4], 4.5);
    // A quarter has to move; some more do, until the ring is made anew.
    let needless = moved(&before, &more).filter(|&(_, to)| to != 1).count();
    assert!(needless < KEYS as usize / 5, "{needless}");
    let anew = Arc::new(Group::new(group.settings, SEED, servers(&group)));
    let more = places(&mut Picker::new(anew, 0), 0);
    let needless = moved(&before, &more).filter(|&(_, to)| to != 1).count();
    assert!(needless < KEYS as usize / 50, "{needless}");
    // One that had no weight in the configuration can get one.
    let group = primaries(settings(Algorithm::Hash), &[2, 0, 2]);
    let mut picker = Picker::new(group.clone(), 0);
    assert_eq!(shares(&places(&mut picker, 0), 3)[1], 0);
    group.set_weight(1, 2, 0);
    assert_shares(&shares(&places(&mut picker, 0), 3), &[2, 2, 2], 4.5);
}

proptest::proptest! {
    #![proptest_config(proptest::prelude::ProptestConfig::with_cases(24))]

    /// One edge has gone through other configurations, the other one has just begun.
    #[test]
    fn what_was_before_makes_no_difference(
        history in proptest::collection::vec(proptest::collection::vec(0_u16..8, 6), 1..4),
        odd in 0_u16..8,
    ) {
        let group = |servers: &[Arc<Server>], weights: &[u16]| {
            let members = servers.iter().zip(weights).map(|(server, &weight)| Member {
                server: server.clone(),
                weight,
                backup: false,
            });
            let group = Group::new(settings(Algorithm::Hash), SEED, members.collect());
            // As in a reload, what is known of the servers stays, and weights come last.
            for (position, &weight) in weights.iter().enumerate() {
                group.set_weight(position, weight, 0);
            }
            Arc::new(group)
        };
        let new = || (0..6).map(|n| server(n, 1)).collect::<Vec<_>>();
        let (had, begun) = (new(), new());
        let mut last = None;
        for weights in &history {
            let group = group(&had, weights);
            // By hand, until the next reload.
            group.set_weight(0, odd, 0);
            last = Some((weights, group));
        }
        let (weights, _) = last.unwrap();
        proptest::prop_assume!(weights.iter().any(|&weight| weight > 0));
        let picks = |group| {
            let mut picker = Picker::new(group, 0);
            (0..500).map(|number| picker.pick(&Chance(number).ask(0))).collect::<Vec<_>>()
        };
        proptest::prop_assert_eq!(picks(group(&had, weights)), picks(group(&begun, weights)));
    }
}

#[test]
fn keys_come_back_one_by_one_in_a_slow_start() {
    let slow = Settings {
        slow_start: 10 * SECOND,
        ..settings(Algorithm::Hash)
    };
    let group = primaries(slow, &[1; 4]);
    let mut picker = Picker::new(group.clone(), 0);
    let whole = places(&mut picker, 100 * SECOND);
    group.set_up(0, false, 100 * SECOND);
    let mut last = places(&mut picker, 100 * SECOND);
    group.set_up(0, true, 200 * SECOND);
    for passed in 0..=10 {
        let next = places(&mut picker, (200 + passed) * SECOND);
        assert!(moved(&last, &next).all(|(_, to)| to == 0));
        let due = KEYS * passed / (30 + passed);
        let has = u64::from(shares(&next, 4)[0]);
        assert!(has.abs_diff(due) < KEYS / 50, "{has} of {due}");
        last = next;
    }
    assert_eq!(last, whole);
}

#[test]
fn a_key_that_was_tried_goes_on_to_its_own_second_place() {
    let group = primaries(settings(Algorithm::Hash), &[1; 10]);
    let mut picker = Picker::new(group.clone(), 0);
    let mut seconds = [0; 10];
    for number in 0..2000 {
        let mut ask = Chance(number).ask(0);
        let first = picker.pick(&ask).unwrap();
        let tried = [first];
        ask.tried = &tried;
        let second = picker.pick(&ask).unwrap();
        assert_ne!(first, second);
        seconds[second] += 1;
        // As if the first one were down.
        group.set_up(first, false, 0);
        ask.tried = &[];
        assert_eq!(picker.pick(&ask), Some(second));
        group.set_up(first, true, 0);
    }
    assert_shares(&seconds, &[1; 10], 4.0);
}

#[test]
fn keys_are_told_apart() {
    let mut seen = std::collections::HashSet::new();
    for length in 0..40 {
        assert!(seen.insert(key(&SEED, &vec![0; length])));
        for at in 0..length {
            let mut text = vec![0; length];
            text[at] = 1;
            assert!(seen.insert(key(&SEED, &text)), "{length} {at}");
        }
    }
    let v4 = "192.0.2.7".parse().unwrap();
    let v6 = "::ffff:192.0.2.7".parse().unwrap();
    assert_eq!(address_key(&SEED, v4), address_key(&SEED, v6));
    assert_ne!(
        address_key(&SEED, v4),
        address_key(&SEED, "192.0.2.8".parse().unwrap())
    );
}
