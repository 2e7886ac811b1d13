//! How fast the lists are at scale: imports, restarts and removals of many
//! entries through the store and tables in ordinary memory, and what they take.
//!
//! `cargo run --release --example lists_at_scale -- 1000000 [WORD]`; with a
//! word, only the kinds of entries whose name has it.

use std::{
    env, fs,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    time::Instant,
};

use anyhow::{Context as _, Result};
use edge_common::{addr::Prefix, hash::Seed};
use edge_userspace::{
    clock::Now,
    entry::{List, Origin, Source},
    policy::{Policy, SystemEntries, Terms},
    store::{FILE, Store},
    tables::{Capacity, Geometry, Regions},
};

const SEED: Seed = Seed::new([
    0x9e37_79b9_7f4a_7c15,
    0xd1b5_4a32_d192_ed03,
    0x8cb9_2ba7_2f3d_8dd7,
    0xa24b_aed4_963e_e407,
]);

/// An hour, milliseconds.
const HOUR_MS: u64 = 3_600_000;

/// Makes the entry of a number, another one for each.
type Make = fn(u32) -> Result<Prefix>;

fn main() -> Result<()> {
    let n: u32 = match env::args().nth(1) {
        Some(n) => n.parse().context("the number of entries")?,
        None => 1_000_000,
    };
    let word = env::args().nth(2).unwrap_or_default();
    let kinds: [(&str, Make); 5] = [
        ("IPv4 hosts", |i| Ok(Prefix::host(v4(i)))),
        ("IPv6 hosts", |i| Ok(Prefix::host(v6(i, 0)))),
        ("IPv4 prefixes", |i| {
            let bits = i.wrapping_mul(0x9e37_79b1) << 8;
            Ok(Prefix::new(IpAddr::V4(Ipv4Addr::from_bits(bits)), 24)?)
        }),
        ("IPv4 prefixes of mixed lengths", |i| {
            // One in eight is a /16 to /23, which covers others.
            let len = match i % 8 {
                0 => 16 + (i / 8 % 8) as u8,
                k => 23 + k as u8 % 6,
            };
            let bits = i.wrapping_mul(0x9e37_79b1) & (u32::MAX << (32 - len));
            Ok(Prefix::new(IpAddr::V4(Ipv4Addr::from_bits(bits)), len)?)
        }),
        ("IPv6 prefixes", |i| Ok(Prefix::new(v6(i, 64), 64)?)),
    ];
    for (name, make) in kinds.into_iter().filter(|k| k.0.contains(&word)) {
        println!("{name}");
        run(n, make)?;
    }
    Ok(())
}

/// Addresses without order, each once (an odd factor is a permutation).
fn v4(i: u32) -> IpAddr {
    IpAddr::V4(Ipv4Addr::from_bits(i.wrapping_mul(0x9e37_79b1)))
}

fn v6(i: u32, shift: u32) -> IpAddr {
    let scattered = u128::from(i.wrapping_mul(0x9e37_79b1));
    IpAddr::V6(Ipv6Addr::from_bits(0x2001 << 112 | scattered << shift))
}

fn run(n: u32, make: Make) -> Result<()> {
    let dir = tempfile::tempdir()?;
    let geometry = Geometry::for_capacity(&Capacity {
        hosts_v4: n,
        hosts_v6: n,
        prefixes: n,
        limiter_sources: 1,
    });
    let open = || -> Result<Policy> {
        let (store, system) = (Store::open(dir.path())?, SystemEntries::default());
        let regions = Regions::heap(&geometry);
        Ok(Policy::open(store, None, regions, geometry, SEED, system, Now::read())?.0)
    };
    let prefixes = || (1..=n).map(make).collect::<Result<Vec<Prefix>>>();
    let terms = |ttl: Option<u64>| Terms {
        source: Source::new(Origin::Feed, None),
        expires_unix_ms: ttl.map(|t| Now::read().unix_ms + t),
        note: "feed".into(),
    };
    let mut policy = open()?;
    let before = resident();
    let new = prefixes()?;
    let done = timed(n, "import, all new", || {
        policy.add(
            List::Black,
            terms(None),
            new,
            Now::read(),
            &mut |_, _, _| {},
        )
    })?;
    println!("    {} added", done.added);
    println!(
        "    {} MiB resident more",
        resident().saturating_sub(before) >> 20
    );
    let again = prefixes()?;
    timed(n, "import, all known", || {
        let terms = terms(Some(HOUR_MS));
        policy.add(List::Black, terms, again, Now::read(), &mut |_, _, _| {})
    })?;
    let now = Now::read();
    let later = Now {
        mono_ns: now.mono_ns + 2 * HOUR_MS * 1_000_000,
        boot_ns: now.boot_ns + 2 * HOUR_MS * 1_000_000,
        unix_ms: now.unix_ms + 2 * HOUR_MS,
    };
    let mut expired = 0;
    let (start, mut longest) = (Instant::now(), 0.0f64);
    while expired < done.added {
        let call = Instant::now();
        expired += policy.expire(later)?;
        longest = longest.max(call.elapsed().as_secs_f64());
    }
    println!(
        "    expiry of all: {:.2} s, the longest call {:.0} ms",
        start.elapsed().as_secs_f64(),
        longest * 1000.0
    );
    let again = prefixes()?;
    policy.add(
        List::Black,
        terms(None),
        again,
        Now::read(),
        &mut |_, _, _| {},
    )?;
    let file = fs::metadata(dir.path().join(FILE))?.len();
    println!("    {} MiB on disk", file >> 20);
    drop(policy);
    let mut policy = timed(n, "restart, into empty tables", open)?;
    timed(n, "removal of all", || {
        policy.flush(List::Black, None, None, Now::read(), &mut |_, _, _| {})
    })?;
    Ok(())
}

/// Runs `work`, and prints what it took.
fn timed<T>(n: u32, what: &str, work: impl FnOnce() -> T) -> T {
    let (start, cpu) = (Instant::now(), cpu_seconds());
    let result = work();
    let seconds = start.elapsed().as_secs_f64();
    println!(
        "    {what}: {seconds:.2} s ({:.2} s of CPU), {:.0} a second",
        cpu_seconds() - cpu,
        f64::from(n) / seconds
    );
    result
}

/// CPU time of this process, seconds; 0 where it cannot be told.
fn cpu_seconds() -> f64 {
    let schedstat = fs::read_to_string("/proc/self/schedstat").unwrap_or_default();
    let ns = schedstat.split(' ').next().and_then(|ns| ns.parse().ok());
    ns.unwrap_or(0.0) / 1e9
}

/// Resident memory of this process, bytes; 0 where it cannot be told.
fn resident() -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    status
        .lines()
        .find_map(|l| {
            l.strip_prefix("VmRSS:")?
                .trim()
                .strip_suffix(" kB")?
                .parse::<u64>()
                .ok()
        })
        .unwrap_or(0)
        << 10
}
