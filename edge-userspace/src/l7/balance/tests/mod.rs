//! Properties of the balancers, over seeds.

mod algorithms;
mod hashed;
mod states;
mod sticky;

use std::sync::Arc;

use edge_common::hash::Seed;

use super::*;

const SECOND: u64 = 1_000_000_000;

const SEED: Seed = Seed::new([
    0x9e37_79b9_7f4a_7c15,
    0xd1b5_4a32_d192_ed03,
    0x8cb9_2ba7_2f3d_8dd7,
    0xa24b_aed4_963e_e407,
]);

const ALL: [Algorithm; 5] = [
    Algorithm::RoundRobin,
    Algorithm::WeightedRoundRobin,
    Algorithm::LeastConnections,
    Algorithm::Hash,
    Algorithm::RandomOfTwo,
];

/// Numbers by chance (SplitMix64).
struct Chance(u64);

impl Chance {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let x = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        x ^ (x >> 31)
    }

    fn below(&mut self, n: u64) -> u64 {
        self.next() % n
    }

    /// For a request at a time, with a key.
    fn ask(&mut self, now: u64) -> Ask<'static> {
        Ask {
            now,
            random: self.next(),
            key: Some(self.next()),
            tried: &[],
        }
    }
}

const fn settings(algorithm: Algorithm) -> Settings {
    Settings {
        algorithm,
        panic_threshold: 0.0,
        slow_start: 0,
    }
}

fn server(number: usize, weight: u16) -> Arc<Server> {
    let address = format!("10.0.{}.{}:8080", number / 256, number % 256);
    Arc::new(Server::new(key(&SEED, address.as_bytes()), weight))
}

/// A server as a member with the weight that it has.
fn member(server: Arc<Server>, backup: bool) -> Member {
    Member {
        weight: server.weight(),
        server,
        backup,
    }
}

/// Primaries with these weights.
fn primaries(settings: Settings, weights: &[u16]) -> Arc<Group> {
    let servers = weights.iter().enumerate();
    let servers = servers.map(|(number, &weight)| member(server(number, weight), false));
    Arc::new(Group::new(settings, SEED, servers.collect()))
}

/// How often each is picked.
fn counts(picker: &mut Picker, picks: usize, chance: &mut Chance, now: u64) -> Vec<u32> {
    let mut counts = vec![0; picker.group().servers().len()];
    for _ in 0..picks {
        counts[picker.pick(&chance.ask(now)).expect("there is one")] += 1;
    }
    counts
}

/// That counts are the shares of the weights, within so many standard deviations of chance.
fn assert_shares(counts: &[u32], weights: &[u16], deviations: f64) {
    let picks: f64 = counts.iter().map(|&count| f64::from(count)).sum();
    let sum: f64 = weights.iter().map(|&weight| f64::from(weight)).sum();
    for (&count, &weight) in counts.iter().zip(weights) {
        let share = f64::from(weight) / sum;
        let off = (f64::from(count) - picks * share).abs();
        let deviation = (picks * share * (1.0 - share)).sqrt();
        assert!(off <= deviations * deviation, "{counts:?} for {weights:?}");
    }
}
