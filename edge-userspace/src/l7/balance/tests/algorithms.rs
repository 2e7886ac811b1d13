//! Who gets how much.

use proptest::prelude::*;

use super::*;

#[test]
fn round_robin_takes_turns_and_workers_begin_elsewhere() {
    let group = primaries(settings(Algorithm::RoundRobin), &[1, 9, 1, 1]);
    let mut chance = Chance(1);
    let mut first = [0; 4];
    for worker in 0..64 {
        let mut picker = Picker::new(group.clone(), Chance(worker).next());
        let picks: Vec<usize> = (0..8)
            .map(|_| picker.pick(&chance.ask(0)).unwrap())
            .collect();
        first[picks[0]] += 1;
        for (at, pick) in picks.iter().enumerate() {
            assert_eq!(*pick, (picks[0] + at) % 4);
        }
    }
    assert!(first.iter().all(|&workers| workers > 4), "{first:?}");
}

#[test]
fn the_smooth_order_is_the_known_one() {
    let group = primaries(settings(Algorithm::WeightedRoundRobin), &[5, 1, 1]);
    let mut picker = Picker::new(group, 0);
    let picks: Vec<usize> = (0..14)
        .map(|_| picker.pick(&Chance(0).ask(0)).unwrap())
        .collect();
    assert_eq!(picks, [0, 0, 1, 0, 2, 0, 0, 0, 0, 1, 0, 2, 0, 0]);
}

#[test]
fn least_connections_fill_up_by_weight() {
    for seed in 0..20 {
        let mut chance = Chance(seed);
        let weights: Vec<u16> = (0..7).map(|_| chance.below(9) as u16 + 1).collect();
        let group = primaries(settings(Algorithm::LeastConnections), &weights);
        let mut picker = Picker::new(group.clone(), chance.next());
        let sum: u32 = weights.iter().map(|&weight| u32::from(weight)).sum();
        let mut under_way: Vec<(usize, Active<'_>)> = Vec::new();
        for round in 0..3000 {
            if under_way.len() >= sum as usize * 10 {
                let ends = chance.below(under_way.len() as u64) as usize;
                drop(under_way.swap_remove(ends));
            }
            let position = picker.pick(&chance.ask(0)).unwrap();
            under_way.push((position, group.servers()[position].enter()));
            if round > 2000 {
                for (server, &weight) in group.servers().iter().zip(&weights) {
                    let wanted = u32::from(weight) * 10;
                    assert!(
                        server.active().abs_diff(wanted) <= wanted / 5 + 2,
                        "{server:?}"
                    );
                }
            }
        }
        drop(under_way);
        assert!(group.servers().iter().all(|server| server.active() == 0));
    }
}

#[test]
fn among_equals_the_least_loaded_is_another_one_each_time() {
    let group = primaries(settings(Algorithm::LeastConnections), &[1; 5]);
    let mut picker = Picker::new(group, 3);
    assert_eq!(counts(&mut picker, 500, &mut Chance(3), 0), [100; 5]);
}

#[test]
fn of_two_random_ones_the_less_loaded_is_taken() {
    let weights = [1, 2, 4, 8, 1, 1];
    let group = primaries(settings(Algorithm::RandomOfTwo), &weights);
    let mut picker = Picker::new(group.clone(), 0);
    let mut chance = Chance(7);
    // Nobody picks the one that is far more loaded than all others.
    let load: Vec<_> = (0..1000).map(|_| group.servers()[3].enter()).collect();
    assert_eq!(counts(&mut picker, 1000, &mut chance, 0)[3], 0);
    drop(load);
    // Requests that stay are spread by weight, far better than chance would.
    let mut under_way = Vec::new();
    for _ in 0..17_000 {
        let position = picker.pick(&chance.ask(0)).unwrap();
        under_way.push(group.servers()[position].enter());
    }
    let counts: Vec<u32> = group.servers().iter().map(|s| s.active()).collect();
    assert_shares(&counts, &weights, 0.5);
}

#[test]
fn without_a_key_servers_are_random_by_weight() {
    let weights = [3, 0, 1, 1, 6];
    let mut picker = Picker::new(primaries(settings(Algorithm::Hash), &weights), 0);
    let mut chance = Chance(9);
    let mut counts = [0; 5];
    for _ in 0..20_000 {
        let ask = Ask {
            key: None,
            ..chance.ask(0)
        };
        counts[picker.pick(&ask).unwrap()] += 1;
    }
    assert_shares(&counts, &weights, 4.0);
}

#[test]
fn states_may_flap_without_anybody_losing_a_share() {
    for algorithm in [Algorithm::RoundRobin, Algorithm::WeightedRoundRobin] {
        let group = primaries(settings(algorithm), &[1, 4, 1, 2]);
        let mut picker = Picker::new(group.clone(), 5);
        let mut chance = Chance(5);
        let mut all = [0; 4];
        // The state may change before each pick.
        for round in 0..4000 {
            group.set_up(3, chance.below(2) == 0, 0);
            all[picker.pick(&chance.ask(round)).unwrap()] += 1;
        }
        let least = match algorithm {
            Algorithm::RoundRobin => [900, 900, 900, 100],
            _ => [480, 1950, 480, 100],
        };
        assert!(
            all.iter().zip(least).all(|(&count, least)| count > least),
            "{all:?}"
        );
    }
}

#[test]
fn weights_may_change_at_any_time() {
    let group = primaries(settings(Algorithm::WeightedRoundRobin), &[2, 2, 2, 2]);
    let mut picker = Picker::new(group.clone(), 5);
    let mut chance = Chance(5);
    for weights in [[6, 2, 2, 2], [1, 2, 3, 4], [1, 0, 0, 9], [3, 3, 3, 3]] {
        for (position, weight) in weights.into_iter().enumerate() {
            group.set_weight(position, weight, 0);
        }
        let sum: u16 = weights.iter().sum();
        let counts = counts(&mut picker, 100 * usize::from(sum), &mut chance, 0);
        for (count, weight) in counts.into_iter().zip(weights) {
            assert!(count.abs_diff(100 * u32::from(weight)) <= 4, "{weights:?}");
        }
    }
}

/// Others take over for one that was tried, by their weights, and it is owed nothing.
#[test]
fn second_tries_are_spread_like_first_ones() {
    let weights: [u32; 6] = [4, 1, 2, 3, 6, 2];
    for algorithm in [
        Algorithm::WeightedRoundRobin,
        Algorithm::RandomOfTwo,
        Algorithm::Hash,
    ] {
        let group = primaries(settings(algorithm), &weights.map(|weight| weight as u16));
        let mut picker = Picker::new(group, 5);
        let mut chance = Chance(11);
        let (mut first, mut second) = ([0; 6], [0; 6]);
        for _ in 0..12_000 {
            if chance.below(4) > 0 {
                first[picker.pick(&chance.ask(0)).unwrap()] += 1;
                continue;
            }
            let ask = Ask {
                tried: &[4],
                key: None,
                ..chance.ask(0)
            };
            second[picker.pick(&ask).unwrap()] += 1;
        }
        let (firsts, seconds) = (first.iter().sum::<u32>(), second.iter().sum::<u32>());
        let due = |at: usize| match at {
            4 => firsts / 3,
            _ => (firsts * weights[at] / 18) + (seconds * weights[at] / 12),
        };
        for at in 0..6 {
            let has = first[at] + second[at];
            assert!(has.abs_diff(due(at)) < 150, "{at}: {first:?} {second:?}");
        }
        assert_eq!(second[4], 0);
    }
}

proptest! {
    /// In as many picks as the sum of weights each has its weight, and on the way there
    /// nobody is far from it.
    #[test]
    fn smooth_weighted_round_robin_is_exact_and_smooth(
        weights in proptest::collection::vec(1..40u16, 1..12),
    ) {
        let group = primaries(settings(Algorithm::WeightedRoundRobin), &weights);
        let mut picker = Picker::new(group, 0);
        let mut chance = Chance(0);
        let sum: u32 = weights.iter().map(|&weight| u32::from(weight)).sum();
        let mut counts = vec![0; weights.len()];
        for round in 1..=2 * sum {
            counts[picker.pick(&chance.ask(0)).unwrap()] += 1;
            for (&count, &weight) in counts.iter().zip(&weights) {
                let due = f64::from(round) * f64::from(weight) / f64::from(sum);
                prop_assert!((f64::from(count) - due).abs() < 2.0, "{counts:?} in {round}");
            }
            if round % sum == 0 {
                for (&count, &weight) in counts.iter().zip(&weights) {
                    prop_assert_eq!(count, u32::from(weight) * (round / sum));
                }
            }
        }
    }
}
