use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use edge_common::{defence::When, quic::ServerId};
use proptest::prelude::*;

use super::{FEW, backend, balance, candidates, endpoint, seed};
use crate::{
    config::{
        balance::{Balance, Forward},
        limits::Rate,
        services::{Addresses, Ports, Protocol, Service},
    },
    l4::{
        Endpoint,
        diff::{Change, Configuration, Edit, Kind, Moves, Situation, changes},
        maglev::{SLOTS, Spread},
    },
};

fn service(name: &str) -> Service {
    Service {
        prefixes: Default::default(),
        balance: None,
        echo: false,
        name: name.to_owned(),
        addresses: Addresses::Listed(BTreeSet::from(["192.0.2.1".parse().unwrap()])),
        ports: Ports::Listed(vec![443..=443]),
        protocol: Protocol::Tcp,
        forwarded: true,
        syn: When::Auto,
        dry_run: false,
        incomplete: Rate::REFLECTION,
        reflection: Rate::REFLECTION,
    }
}

fn web(n: u32) -> Balance {
    balance((1..=n).map(|n| backend(n, 100, false)).collect())
}

/// What becomes of the service `web` with this many live flows.
fn changed(was: &Balance, is: &Balance, flows: u64) -> Vec<Change> {
    let service = service("web");
    let configuration = |balance| Configuration {
        slots: SLOTS,
        services: BTreeMap::from([("web", (&service, balance))]),
    };
    let situation = Situation {
        flows: BTreeMap::from([("web".to_owned(), flows)]),
        ..Situation::default()
    };
    changes(
        &seed(5),
        &configuration(was),
        &configuration(is),
        &situation,
    )
}

#[test]
fn what_a_removal_moves_is_said_in_a_sentence() {
    let [change] = changed(&web(3), &web(2), 3000).try_into().unwrap();
    let Kind::Changed { edits, moves } = &change.kind else {
        panic!("{change:?}");
    };
    assert_eq!(edits, &[Edit::Remove("web-3".to_owned())]);
    assert_eq!(moves.shares[&endpoint(3)].after, 0);
    assert_eq!(
        moves.moved - moves.needless,
        moves.shares[&endpoint(3)].before
    );
    assert!(
        moves.needless > 0,
        "a seed with which there is something to say"
    );
    assert_eq!(
        change.to_string(),
        "web: removing web-3 moves 33.4 % of slots, 0.1 % of them needlessly; about 1000 live flows lose their backends"
    );
}

#[test]
fn all_kinds_of_changes_are_found_and_told() {
    let mut is = web(6);
    is.backends.retain(|b| b.name != "web-1");
    is.backends[0].weight = 50;
    is.backends[1].name = "www".to_owned();
    is.backends[2].backup = true;
    is.backends[3].address = "2001:db8::5".parse().unwrap();
    is.backends[3].port = Some(8080);
    is.forward = Forward::Nat;
    is.floor_per_cent = 50;
    is.slow_start = Duration::from_secs(9);
    is.health = None;
    let [change] = changed(&web(5), &is, 0).try_into().unwrap();
    let Kind::Changed { edits, .. } = &change.kind else {
        panic!("{change:?}");
    };
    let moved = Endpoint::of(&is.backends[3]);
    assert_eq!(moved.to_string(), "[2001:db8::5]:8080");
    let name = |n: u32| format!("web-{n}");
    assert_eq!(
        edits,
        &[
            Edit::Remove(name(1)),
            Edit::Add(name(6)),
            Edit::Readdress(name(5), moved),
            Edit::Weight(name(2), 100, 50),
            Edit::Rename(name(3), "www".to_owned()),
            Edit::Backup(name(4), true),
            Edit::Forward(Forward::Ipip, Forward::Nat),
            Edit::Floor(25, 50),
            Edit::SlowStart,
            Edit::Health,
        ]
    );
    let text = change.to_string();
    for part in [
        "web: removing web-1, adding web-6, giving web-5 the address [2001:db8::5]:8080, ",
        "changing the weight of web-2 from 100 to 50 and 6 more changes moves ",
        "; no live flow loses its backend",
    ] {
        assert!(text.contains(part), "{text}");
    }
    let [change] = changed(&web(20), &web(2), 1).try_into().unwrap();
    let text = change.to_string();
    assert!(
        text.contains("removing web-3, web-4, web-5, web-6 and 14 more moves "),
        "{text}"
    );
    assert!(
        text.ends_with("about 1 live flow loses its backend"),
        "{text}"
    );
}

#[test]
fn what_changes_nothing_is_not_told_and_what_moves_nothing_says_so() {
    let mut is = web(3);
    is.backends.reverse();
    assert_eq!(changed(&web(3), &is, 5), []);
    is.backends[0].name = "other".to_owned();
    let [change] = changed(&web(3), &is, 5).try_into().unwrap();
    assert_eq!(
        change.to_string(),
        "web: renaming web-3 to other moves no slot; no live flow loses its backend"
    );
}

#[test]
fn other_server_ids_are_told() {
    let mut is = web(3);
    is.quic_config_id = 5;
    is.backends[1].server_id = ServerId::from_hex("0a");
    let [change] = changed(&web(3), &is, 5).try_into().unwrap();
    assert_eq!(
        change.to_string(),
        "web: changing the server id of web-2 and changing quic_config_id from 0 to 5 moves no \
         slot; no live flow loses its backend"
    );
}

#[test]
fn services_come_and_go() {
    let (old, new) = (service("old"), service("new"));
    let (three, one) = (web(3), web(1));
    let before = Configuration {
        slots: SLOTS,
        services: BTreeMap::from([("old", (&old, &three))]),
    };
    let after = Configuration {
        slots: SLOTS,
        services: BTreeMap::from([("new", (&new, &one))]),
    };
    let situation = Situation {
        flows: BTreeMap::from([("old".to_owned(), 12)]),
        ..Situation::default()
    };
    let told: Vec<String> = changes(&seed(1), &before, &after, &situation)
        .iter()
        .map(ToString::to_string)
        .collect();
    assert_eq!(
        told,
        [
            "new: is new, with one backend",
            "old: is removed; about 12 live flows lose their backends"
        ]
    );
}

#[test]
fn a_ring_of_another_size_is_compared_by_where_slots_lie() {
    let alone = |slots| Spread::new(&seed(1), candidates(&[1]), slots);
    let moves = Moves::between(&alone(31), &alone(FEW));
    assert_eq!((moves.slots, moves.moved), (FEW, 0));
    let moves = Moves::between(&alone(FEW), &Spread::default());
    assert_eq!((moves.slots, moves.moved, moves.needless), (FEW, FEW, 0));
    assert_eq!(moves.flows(10, |_| true), 10);
    let moves = Moves::between(&Spread::default(), &Spread::default());
    assert_eq!(moves, Moves::default());
    assert_eq!(moves.flows(10, |_| true), 0);
    assert_eq!(moves.to_string(), "moves no slot");
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 100, ..ProptestConfig::default() })]

    #[test]
    fn moves_are_what_anybody_counts(
        a in prop::collection::vec(0u32..=1000, 0..12),
        b in prop::collection::vec(0u32..=1000, 0..12),
        live in any::<u64>(),
    ) {
        let (a, b) = (
            Spread::new(&seed(1), candidates(&a), FEW),
            Spread::new(&seed(1), candidates(&b), FEW),
        );
        let owner = |spread: &Spread, slot: usize| {
            spread.ring.get(slot).map(|&at| spread.candidates[usize::from(at)].endpoint)
        };
        let moves = Moves::between(&a, &b);
        let slots = if a.ring.is_empty() && b.ring.is_empty() { 0 } else { FEW };
        prop_assert_eq!(moves.slots, slots);
        let all = || 0..slots as usize;
        let moved = all().filter(|&s| owner(&a, s) != owner(&b, s)).count();
        prop_assert_eq!(moves.moved as usize, moved);
        for (endpoint, share) in &moves.shares {
            let count = |spread| all().filter(|&s| owner(spread, s) == Some(*endpoint)).count();
            prop_assert_eq!((share.before as usize, share.after as usize), (count(&a), count(&b)));
        }
        prop_assert!(moves.needless <= moves.moved);
        let flows = moves.flows(live, |_| true);
        prop_assert_eq!(flows, if a.ring.is_empty() { 0 } else { live });
        prop_assert_eq!(moves.flows(live, |_| false), 0);
        let back = Moves::between(&b, &a);
        prop_assert_eq!((back.moved, back.needless), (moves.moved, moves.needless));
    }
}
