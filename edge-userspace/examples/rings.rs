//! What rings of the balancer cost to make, how even they are, and how many slots move
//! that need not when a backend goes or a weight changes.
//!
//! `cargo run --release --example rings [-- SEEDS]`: figures over so many seeds.

use std::{
    env,
    net::{IpAddr, Ipv4Addr},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};
use edge_common::hash::Seed;
use edge_userspace::l4::{
    Endpoint,
    maglev::{Candidate, Ring, SLOTS, ring},
};

/// The weight of a backend by its number, among so many.
type Weights = fn(u32, u32) -> u32;

const WEIGHTS: [(&str, Weights); 5] = [
    ("equal", |_, _| 100),
    ("1 to 3", |i, _| 1 + i % 3),
    (
        "one of 1000, else 100",
        |i, _| if i == 0 { 1000 } else { 100 },
    ),
    ("one of 1000, else 1", |i, _| if i == 0 { 1000 } else { 1 }),
    ("all differ", |i, n| 1000 * (i + 1) / n),
];

fn main() -> Result<()> {
    let seeds: u64 = match env::args().nth(1) {
        Some(n) => n.parse().context("the number of seeds")?,
        None => 20,
    };
    println!("{SLOTS} slots; times are medians, the rest mean and worst over {seeds} seeds");
    println!(
        "{:>22} {:>8} {:>9} {:>17} {:>21} {:>21}",
        "weights", "backends", "ms", "off by, slots", "needless, one goes", "needless, one's x 2"
    );
    for (name, weights) in WEIGHTS {
        for n in [2, 3, 4, 10, 100, 650] {
            line(name, weights, n, seeds);
        }
    }
    let started = Instant::now();
    for service in 0..1000 {
        let candidates = candidates(|_, _| 100, 100, service * 100);
        std::hint::black_box(ring(&seed(1), &candidates, SLOTS));
    }
    println!("1,000 services of 100 backends: {:.2?}", started.elapsed());
    Ok(())
}

fn line(name: &str, weights: Weights, n: u32, seeds: u64) {
    let all = candidates(weights, n, 0);
    let whole: u32 = all.iter().map(|c| c.weight).sum();
    let (mut times, mut off, mut gone, mut twice) = (vec![], vec![], vec![], vec![]);
    for s in 0..seeds {
        let seed = seed(s);
        let started = Instant::now();
        let before = ring(&seed, &all, SLOTS);
        times.push(started.elapsed());
        for (c, had) in all.iter().zip(shares(&before, all.len())) {
            let fair = f64::from(SLOTS) * f64::from(c.weight) / f64::from(whole);
            off.push((f64::from(had) - fair).abs());
        }
        let one = (s as usize * 7) % all.len();
        let mut changed = all.clone();
        for (weight, needless) in [(0, &mut gone), (2 * all[one].weight, &mut twice)] {
            changed[one].weight = weight;
            let after = ring(&seed, &changed, SLOTS);
            needless.push(100.0 * needlessly(&before, &after, all.len()));
        }
    }
    times.sort();
    let ms = |t: Duration| t.as_secs_f64() * 1e3;
    println!(
        "{name:>22} {n:>8} {:>9.2} {} {} {}",
        ms(times[times.len() / 2]),
        figures(&off, 8, ""),
        figures(&gone, 9, " %"),
        figures(&twice, 9, " %"),
    );
}

/// Mean and worst.
fn figures(of: &[f64], width: usize, unit: &str) -> String {
    let mean = of.iter().sum::<f64>() / of.len() as f64;
    let worst = of.iter().copied().fold(0.0, f64::max);
    format!("{mean:>width$.2}{unit}{worst:>width$.2}{unit}")
}

/// Of all slots, those that move beyond what the shares ask for.
fn needlessly(before: &Ring, after: &Ring, n: usize) -> f64 {
    let moved = before.iter().zip(after).filter(|(a, b)| a != b).count();
    let asked: u32 = shares(before, n)
        .iter()
        .zip(shares(after, n))
        .map(|(b, a)| b.saturating_sub(a))
        .sum();
    (moved as f64 - f64::from(asked)) / before.len() as f64
}

fn shares(ring: &Ring, n: usize) -> Vec<u32> {
    let mut shares = vec![0; n];
    for &owner in ring {
        shares[usize::from(owner)] += 1;
    }
    shares
}

fn candidates(weights: Weights, n: u32, from: u32) -> Vec<Candidate> {
    let one = |i| Candidate {
        endpoint: Endpoint {
            address: IpAddr::V4(Ipv4Addr::from_bits(0x0a00_0001 + from + i)),
            port: None,
        },
        weight: weights(i, n),
    };
    (0..n).map(one).collect()
}

fn seed(n: u64) -> Seed {
    Seed::new([1, 2, 3, 4].map(|i: u64| (n * 4 + i).wrapping_mul(0x9e37_79b9_7f4a_7c15)))
}
