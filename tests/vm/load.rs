//! Loads the program in the configurations that differ most to a verifier, and says what each
//! load took. A line of the form `edge-load: NAME verified=N micros=N` for every one; the exit
//! code is 1 if any was refused.

use std::{process::ExitCode, time::Instant};

use edge_common::{
    abi::{Config, FragmentPolicy, LimitKind, MAX_PROFILES, Mode, Profile},
    gcra::Limit,
    hash::Seed,
};
use edge_userspace::{
    clock::coarse_tick_ns,
    datapath::{Program, Unattached},
    tables::{Capacity, Geometry},
};

fn main() -> ExitCode {
    let mut code = ExitCode::SUCCESS;
    for (name, program) in programs() {
        let start = Instant::now();
        let loaded = Unattached::load(&program);
        let took = start.elapsed().as_micros();
        let verified = loaded.and_then(|edge| edge.verified_instructions());
        match verified {
            Ok(verified) => println!("edge-load: {name} verified={verified} micros={took}"),
            Err(error) => {
                code = ExitCode::FAILURE;
                println!("edge-load: {name} refused: {error}");
            }
        }
    }
    code
}

/// Everything off, every check in either mode, and the settings that need more code than the
/// usual ones: shared limits and a check of every fragment.
fn programs() -> Vec<(&'static str, Program)> {
    let shared = Config {
        limit_mask4: u32::from_ne_bytes([255, 255, 255, 0]),
        limit_mask6_hi: !0xffff,
        fragment_policy: FragmentPolicy::DropAll as u32,
        ..config(Mode::Enforce)
    };
    vec![
        ("off", program(config(Mode::Off))),
        ("dry-run", program(config(Mode::DryRun))),
        ("enforce", program(config(Mode::Enforce))),
        ("enforce-shared", program(shared)),
    ]
}

fn config(mode: Mode) -> Config {
    let geometry = Geometry::for_capacity(&Capacity::default());
    let limits = mode;
    let mode = mode as u32;
    let config = Config {
        seed: Seed::new([1, 2, 3, 4]),
        sample: limit(mode, 10),
        tick_ns: coarse_tick_ns(),
        malformed: mode,
        tcp_flags: mode,
        land: mode,
        bogons: mode,
        fragments: mode,
        arp_guard: mode,
        blacklist: mode,
        hosts4_buckets: geometry.hosts4_buckets,
        hosts4_filter_words: geometry.hosts4_filter_words,
        wide_buckets: geometry.wide_buckets,
        hosts6_filter_words: geometry.hosts6_filter_words,
        prefix_filter_words: geometry.prefix_filter_words,
        long_lengths: geometry.long_lengths,
        limiter_buckets: geometry.limiter_buckets,
        ..Config::OFF
    };
    config.with_limits(limits)
}

fn program(config: Config) -> Program {
    let limits = LimitKind::ALL.map(|kind| match config.limits_on & kind.bit() {
        0 => Limit::NONE,
        _ => Limit::per_second(1_000_000, 1_000_000).unwrap_or(Limit::NONE),
    });
    Program {
        config,
        profiles: Box::new([Profile::new(limits); MAX_PROFILES]),
        events_buffer: 1 << 20,
        targets: 1,
    }
}

/// A limit, unless it belongs to what is off.
fn limit(mode: u32, rate: u64) -> Limit {
    let limit = Limit::per_second(rate, rate).filter(|_| mode != Mode::Off as u32);
    limit.unwrap_or(Limit::NONE)
}
