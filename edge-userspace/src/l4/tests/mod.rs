//! The balancer's choices against models that anybody can check.

mod delta;
mod diff;
mod maglev;
mod numbers;
mod plan;

use std::{
    net::{IpAddr, Ipv4Addr},
    time::Duration,
};

use edge_common::hash::Seed;
use proptest::prelude::*;

use super::{
    Endpoint,
    maglev::Candidate,
    plan::{Admin, BackendState, Health, States},
};
use crate::config::balance::{Backend, Balance, Forward, HashBy, HealthCheck, Probe, Through};

/// A prime so small that properties are soon checked.
const FEW: u32 = 251;

fn seed(n: u64) -> Seed {
    Seed::new([1, 2, 3, 4].map(|i: u64| (n * 4 + i).wrapping_mul(0x9e37_79b9_7f4a_7c15)))
}

fn endpoint(n: u32) -> Endpoint {
    Endpoint {
        address: IpAddr::V4(Ipv4Addr::from_bits(0x0a00_0001 + n)),
        port: None,
    }
}

/// Candidates with these weights; the endpoint is the place.
fn candidates(weights: &[u32]) -> Vec<Candidate> {
    let one = |(n, &weight)| Candidate {
        endpoint: endpoint(n),
        weight,
    };
    (0..).zip(weights).map(one).collect()
}

fn backend(n: u32, weight: u32, backup: bool) -> Backend {
    let Endpoint { address, port } = endpoint(n);
    Backend {
        name: format!("web-{n}"),
        address,
        port,
        weight,
        backup,
        server_id: None,
    }
}

fn checks() -> HealthCheck {
    HealthCheck {
        probe: Probe::Tcp,
        through: Through::Direct,
        port: None,
        interval: Duration::from_secs(5),
        timeout: Duration::from_secs(1),
        rise: 2,
        fall: 3,
        jitter_per_cent: 10,
    }
}

/// A service whose backends are checked.
fn balance(backends: Vec<Backend>) -> Balance {
    Balance {
        forward: Forward::Ipip,
        hash: HashBy::FiveTuple,
        quic_config_id: 0,
        backends,
        floor_per_cent: 25,
        slow_start: Duration::ZERO,
        health: Some(checks()),
        passive: None,
    }
}

fn up() -> BackendState {
    BackendState {
        health: Health::Up,
        ..BackendState::default()
    }
}

fn any_state() -> impl Strategy<Value = BackendState> {
    let health = prop_oneof![
        Just(Health::Unknown),
        Just(Health::Up),
        Just(Health::Failing),
        Just(Health::Down)
    ];
    let admin = prop_oneof![
        6 => Just(Admin::Active),
        1 => Just(Admin::Draining),
        1 => Just(Admin::Drained)
    ];
    let set = prop_oneof![4 => Just(None), 1 => (0u32..1500).prop_map(Some)];
    let since = proptest::option::of(0u64..2_000);
    (health, admin, set, since).prop_map(|(health, admin, weight_override, up_since_ns)| {
        BackendState {
            health,
            admin,
            weight_override,
            up_since_ns,
        }
    })
}

/// Any service, of up to a dozen backends out of twenty.
fn any_balance() -> impl Strategy<Value = Balance> {
    let backends = proptest::collection::btree_map(0u32..20, (0u32..=1000, any::<bool>()), 1..12);
    let floor = prop_oneof![1 => Just(0), 3 => 0u32..=100];
    (backends, floor, 0u64..2_000, any::<bool>(), 0usize..4).prop_map(
        |(backends, floor_per_cent, slow_ns, checked, forward)| Balance {
            forward: Forward::ALL[forward],
            floor_per_cent,
            slow_start: Duration::from_nanos(slow_ns),
            health: checked.then(checks),
            ..balance(
                backends
                    .into_iter()
                    .map(|(n, (weight, backup))| backend(n, weight, backup))
                    .collect(),
            )
        },
    )
}

fn any_states() -> impl Strategy<Value = States> {
    proptest::collection::btree_map((0u32..20).prop_map(endpoint), any_state(), 0..20)
}
