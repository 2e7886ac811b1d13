use std::collections::BTreeMap;

use proptest::prelude::*;

use super::{FEW, candidates, endpoint, seed};
use crate::{
    config::balance::MAX_SERVICE_BACKENDS,
    l4::{
        Endpoint,
        diff::Moves,
        maglev::{Candidate, SLOTS, Spread, ring},
    },
};

fn spread(n: u64, candidates: Vec<Candidate>, slots: u32) -> Spread {
    Spread::new(&seed(n), candidates, slots)
}

/// Who has which slot.
fn owners(spread: &Spread) -> Vec<Endpoint> {
    let owner = |&at: &u16| spread.candidates[usize::from(at)].endpoint;
    spread.ring.iter().map(owner).collect()
}

fn shares(ring: &[u16], candidates: usize) -> Vec<u32> {
    let mut shares = vec![0; candidates];
    for &owner in ring {
        shares[usize::from(owner)] += 1;
    }
    shares
}

fn without(candidates: &[Candidate], which: usize) -> Vec<Candidate> {
    let mut rest = candidates.to_vec();
    rest.remove(which);
    rest
}

/// Of the survivors' slots, the part that moves when one goes.
fn disturbed(before: &Spread, after: &Spread) -> f64 {
    let moves = Moves::between(before, after);
    let gone = |e: &Endpoint| after.candidates.iter().all(|c| c.endpoint != *e);
    let stayed: u32 = moves
        .shares
        .iter()
        .filter(|(e, _)| !gone(e))
        .map(|(_, share)| share.before)
        .sum();
    f64::from(moves.needless) / f64::from(stayed)
}

/// What the issue of balancing asks for: of any number of equal backends, no share is off
/// by more than one per cent, and when one goes, at most one per cent of the others'
/// slots move.
#[test]
fn rings_are_even_and_hardly_disturbed() {
    let numbers = [
        2,
        3,
        4,
        5,
        7,
        10,
        20,
        50,
        100,
        200,
        400,
        MAX_SERVICE_BACKENDS,
    ];
    let mut worst = [0.0f64; 2];
    for n in 0..240 {
        let all = candidates(&vec![100; numbers[n % numbers.len()]]);
        let before = spread(n as u64, all.clone(), SLOTS);
        let fair = f64::from(SLOTS) / all.len() as f64;
        for share in shares(&before.ring, all.len()) {
            worst[0] = worst[0].max((f64::from(share) / fair - 1.0).abs());
        }
        let after = spread(n as u64, without(&all, n * 7 % all.len()), SLOTS);
        worst[1] = worst[1].max(disturbed(&before, &after));
    }
    println!(
        "imbalance {:.3} %, disturbed {:.3} %",
        worst[0] * 100.0,
        worst[1] * 100.0
    );
    assert!(worst[0] <= 0.01, "a share is off by {}", worst[0]);
    assert!(
        worst[1] <= 0.01,
        "{} of the survivors' slots moved",
        worst[1]
    );
}

/// The same with weights of 1 to 3 and with one that stands out, where a backend has
/// enough slots for a per cent of them to be one.
#[test]
fn weights_are_kept_and_hardly_disturb() {
    let kinds: [fn(usize) -> u32; 3] = [
        |i| 1 + i as u32 % 3,
        |i| if i == 0 { 1000 } else { 100 },
        |i| 100 + i as u32,
    ];
    let mut worst = 0.0f64;
    for n in 0..90 {
        let weights: Vec<u32> = (0..[3, 10, 100, 200, 300][n / 3 % 5])
            .map(kinds[n % 3])
            .collect();
        let all = candidates(&weights);
        let whole: u32 = weights.iter().sum();
        let before = spread(n as u64, all.clone(), SLOTS);
        for (share, weight) in shares(&before.ring, all.len()).into_iter().zip(weights) {
            let fair = f64::from(SLOTS) * f64::from(weight) / f64::from(whole);
            let off = (f64::from(share) - fair).abs();
            assert!(off <= 1.0 + fair * 0.01, "{share} slots instead of {fair}");
        }
        let after = spread(n as u64, without(&all, n % all.len()), SLOTS);
        worst = worst.max(disturbed(&before, &after));
    }
    println!("disturbed {:.3} %", worst * 100.0);
    assert!(worst <= 0.01, "{worst} of the survivors' slots moved");
}

/// A step of a slow start moves little but what the backend gains.
#[test]
fn a_weight_that_rises_takes_only_its_gain() {
    for n in 0..20 {
        let mut weights = vec![100; 10];
        weights[3] = 40;
        let before = spread(n, candidates(&weights), SLOTS);
        weights[3] = 50;
        let after = spread(n, candidates(&weights), SLOTS);
        let moves = Moves::between(&before, &after);
        let gain = moves.shares[&endpoint(3)].after - moves.shares[&endpoint(3)].before;
        assert!(moves.moved >= gain);
        assert!(moves.needless * 100 <= SLOTS, "{moves:?}");
    }
}

/// What [`ring`] answers, found without groups, queues and levels: every backend for
/// itself, the next one to have a turn looked for each time.
fn model(n: u64, candidates: &[Candidate], slots: u32) -> Vec<u16> {
    use edge_common::hash::{hash, reduce};
    struct One {
        key: u64,
        weight: u32,
        at: u16,
        quota: u32,
        has: u32,
        turn: u64,
    }
    let seed = seed(n);
    let mut all: Vec<One> = candidates
        .iter()
        .zip(0..)
        .filter(|(c, _)| c.weight > 0)
        .map(|(c, at)| One {
            key: {
                let std::net::IpAddr::V4(v4) = c.endpoint.address else {
                    unreachable!("all are IPv4");
                };
                hash(&seed, 0, 0xffff << 32 | u64::from(v4.to_bits()), 1 << 16)
            },
            weight: c.weight,
            at,
            quota: 0,
            has: 0,
            turn: 0,
        })
        .collect();
    all.sort_by_key(|one| one.key);
    all.truncate(slots as usize);
    // The next slot goes to the smallest (k - 1/2) / weight, the first of each at 0.
    for _ in 0..if all.is_empty() { 0 } else { slots } {
        let level = |one: &One| match one.quota {
            0 => (0, 1),
            k => (2 * u64::from(k) + 1, u64::from(one.weight)),
        };
        let mut best = 0;
        for i in 1..all.len() {
            let ((a, b), (c, d)) = (level(&all[i]), level(&all[best]));
            if a * d < c * b {
                best = i;
            }
        }
        all[best].quota += 1;
    }
    let mut ring = vec![None; slots as usize];
    loop {
        let next = all
            .iter_mut()
            .filter(|one| one.has < one.quota)
            .min_by_key(|one| {
                let period = (1 << 40) / u64::from(one.weight);
                (period / 2 + one.turn * period, one.weight, one.key)
            });
        let Some(one) = next else {
            break;
        };
        let (mut slot, skip) = if one.turn < u64::from(slots) {
            let random = hash(&seed, one.key, one.turn, 0xffff_0000);
            (
                reduce((random >> 32) as u32, slots),
                1 + reduce(random as u32, slots - 1),
            )
        } else {
            ((one.turn * 16 % u64::from(slots)) as u32, 1)
        };
        one.turn += 1;
        for _ in 0..16 {
            let owner = &mut ring[slot as usize];
            if owner.is_none() && one.has < one.quota {
                *owner = Some(one.at);
                one.has += 1;
            }
            slot = (slot + skip) % slots;
        }
    }
    ring.into_iter().flatten().collect()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, ..ProptestConfig::default() })]

    #[test]
    fn rings_are_those_of_the_model(
        n in 0u64..1000,
        weights in prop::collection::vec(prop_oneof![Just(0u32), Just(100), 0u32..=1000], 0..40),
        slots in prop_oneof![Just(FEW), Just(31), 1u32..100],
    ) {
        let all = candidates(&weights);
        prop_assert_eq!(ring(&seed(n), &all, slots), model(n, &all, slots));
    }

    #[test]
    fn the_order_of_backends_does_not_matter(
        n in 0u64..1000,
        weights in prop::collection::vec(0u32..1000, 1..30),
        turn in 0usize..30,
    ) {
        let all = candidates(&weights);
        let mut other = all.clone();
        other.rotate_left(turn % all.len());
        other.reverse();
        let (a, b) = (spread(n, all, FEW), spread(n, other, FEW));
        prop_assert_eq!(owners(&a), owners(&b));
    }

    /// Survivors only gain; so nobody has to give a slot away.
    #[test]
    fn who_stays_loses_nothing(
        n in 0u64..1000,
        weights in prop::collection::vec(1u32..=1000, 2..30),
        which in 0usize..30,
    ) {
        let all = candidates(&weights);
        let rest = without(&all, which % all.len());
        let moves = Moves::between(&spread(n, all, FEW), &spread(n, rest.clone(), FEW));
        for c in rest {
            let share = moves.shares[&c.endpoint];
            prop_assert!(share.after >= share.before, "{} {:?}", c.endpoint, share);
        }
    }

    #[test]
    fn everybody_with_a_weight_has_a_slot(
        n in 0u64..1000,
        weights in prop::collection::vec(prop_oneof![Just(0u32), Just(1), Just(u32::MAX), any::<u32>()], 0..60),
    ) {
        let all = candidates(&weights);
        let made = ring(&seed(n), &all, FEW);
        if weights.iter().all(|&w| w == 0) {
            prop_assert!(made.is_empty());
        } else {
            prop_assert_eq!(made.len(), FEW as usize);
            for (share, weight) in shares(&made, all.len()).into_iter().zip(weights) {
                prop_assert_eq!(share > 0, weight > 0);
            }
        }
    }
}

#[test]
fn the_least_there_can_be() {
    let one = |weights: &[u32], slots| ring(&seed(1), &candidates(weights), slots);
    assert!(one(&[], SLOTS).is_empty());
    assert!(one(&[0, 0], SLOTS).is_empty());
    assert!(one(&[1, 1], 0).is_empty());
    assert_eq!(one(&[0, 7, 0], FEW), vec![1; FEW as usize]);
    assert_eq!(one(&[5, 5, 5], 1).len(), 1);
    let mut two = one(&[1, 1000], 2);
    two.sort_unstable();
    assert_eq!(two, [0, 1]);
    // More backends than slots: each slot another one, and the rest none.
    let mut few = one(&[1; 20], 7);
    few.sort_unstable();
    few.dedup();
    assert_eq!(few.len(), 7);
}

/// Positions have 16 bits.
#[test]
fn candidates_beyond_the_last_position_get_nothing() {
    let all = candidates(&vec![1; 65_540]);
    let made = ring(&seed(1), &all, 70_001);
    let shares = shares(&made, all.len());
    assert!(shares[..65_536].iter().all(|&n| n > 0));
    assert!(shares[65_536..].iter().all(|&n| n == 0));
}

#[test]
fn address_port_and_seed_make_a_backend() {
    let v6 = |s: &str, port| Endpoint {
        address: s.parse().unwrap(),
        port,
    };
    let mut seen = BTreeMap::new();
    let first = endpoint(0);
    for (n, e) in [
        (1, v6("2001:db8::1", None)),
        (1, v6("2001:db8::1", Some(80))),
        (1, v6("2001:db8::1", Some(81))),
        (1, v6("2001:db8:1::1", Some(80))),
        (2, v6("2001:db8::1", None)),
    ] {
        let two = [first, e].map(|endpoint| Candidate {
            endpoint,
            weight: 1,
        });
        let ring = ring(&seed(n), &two, FEW);
        assert!(seen.insert(ring, e).is_none(), "{e} is as another");
    }
}

/// A fleet must agree: whoever changes what a ring is changes [`VERSION`] as well, and
/// then this.
///
/// [`VERSION`]: crate::l4::maglev::VERSION
#[test]
fn version_1_is_this() {
    let made = ring(&seed(7), &candidates(&[100, 50, 1000, 3, 100]), SLOTS);
    let digest = made.iter().fold(0xcbf2_9ce4_8422_2325u64, |hash, &owner| {
        (hash ^ u64::from(owner)).wrapping_mul(0x0100_0000_01b3)
    });
    assert_eq!(shares(&made, 5), [5230, 2615, 52305, 157, 5230]);
    assert_eq!(digest, 0x0261_3f28_7067_8d81);
}
