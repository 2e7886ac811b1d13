//! The program on the kernel against the same parser and the same decisions on
//! the host, over packets that nobody thought of.

use std::iter::zip;

use edge_common::{
    decide,
    parse::{self, Fragment, Ip, Packet, proto},
    reason::Reason,
};
use edge_tests::{
    golden,
    program::{Moved, Rig, Settings},
};

/// Packets between two readings of the counters.
const BATCH: usize = 500;
/// Mutants of each golden packet.
const MUTANTS: u64 = 24;

/// What the program must say with all checks enforced, empty tables and no limits.
fn reference(frame: &[u8]) -> Reason {
    match parse::parse(frame) {
        Err(reason) => reason,
        Ok(Packet::Other) => Reason::PassNotIp,
        Ok(Packet::Arp(_)) => Reason::PassArp,
        Ok(Packet::Ipv4(ip)) => sanity(&ip),
        Ok(Packet::Ipv6(ip)) => sanity(&ip),
    }
}

fn sanity<A: PartialEq>(ip: &Ip<A>) -> Reason {
    if ip.source == ip.dest {
        return Reason::Land;
    }
    if let Some(reason) = decide::risky_fragment(ip.fragment, ip.transport.truncated, ip.proto) {
        return reason;
    }
    let has_flags = ip.proto == proto::TCP
        && !matches!(ip.fragment, Fragment::Later { .. })
        && !ip.transport.truncated;
    has_flags
        .then(|| decide::impossible_tcp_flags(ip.transport.tcp_flags))
        .flatten()
        .unwrap_or(Reason::Pass)
}

/// xorshift64* (Vigna 2016): good enough to pick bytes, and the same every time.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    fn below(&mut self, n: usize) -> usize {
        (self.next() % n.max(1) as u64) as usize
    }
}

/// The frame with a few bytes of its headers changed, cut or grown.
fn mutant(frame: &[u8], random: &mut Random) -> Vec<u8> {
    let mut frame = frame.to_vec();
    // The headers are at the start; beyond them nothing decides.
    let head = frame.len().min(120);
    for _ in 0..random.below(4) {
        let at = 12 + random.below(head - 12);
        let interesting = [
            0, 1, 4, 6, 8, 17, 43, 44, 50, 51, 58, 59, 60, 0x45, 0x60, 0x81, 255,
        ];
        frame[at] = match random.below(3) {
            0 => interesting[random.below(interesting.len())],
            1 => frame[at] ^ (1 << random.below(8)),
            _ => random.next() as u8,
        };
    }
    match random.below(4) {
        0 => frame.truncate(14 + random.below(frame.len() - 13)),
        1 => frame.resize(frame.len() + random.below(64), random.next() as u8),
        _ => {}
    }
    frame
}

#[test]
fn kernel_and_host_say_the_same() {
    let rig = Rig::load(&Settings::enforced()).expect("the program");
    let tables = golden::tables();
    let mut random = Random(0x9e37_79b9_7f4a_7c15);
    let mut frames = Vec::new();
    for row in tables.iter().flat_map(|table| &table.rows) {
        // What a mutant turns out to be shows in the head; long ones only take time.
        if (14..=2000).contains(&row.frame.len()) {
            frames.extend((0..MUTANTS).map(|_| mutant(&row.frame, &mut random)));
        }
    }
    assert!(frames.len() > 20_000, "only {} packets", frames.len());
    let mut before = rig.counters().expect("counters");
    for batch in frames.chunks(BATCH) {
        let mut expected = [0u64; Reason::COUNT];
        for frame in batch {
            expected[reference(frame).index() as usize] += 1;
            rig.run(frame, 1).expect("a run");
        }
        let after = rig.counters().expect("counters");
        let mut found = [0u64; Reason::COUNT];
        for (reason, packets, _) in Moved::between(&before, &after).ended {
            found[reason.index() as usize] += packets;
        }
        if found != expected {
            tell(&rig, batch);
            let differing: Vec<_> = zip(Reason::ALL, zip(found, expected))
                .filter(|(_, (found, expected))| found != expected)
                .collect();
            panic!("reason, (kernel, host): {differing:?}");
        }
        before = after;
    }
}

/// Finds the packets of a batch on which both do not agree.
fn tell(rig: &Rig, batch: &[Vec<u8>]) {
    for frame in batch {
        let before = rig.counters().expect("counters");
        rig.run(frame, 1).expect("a run");
        let after = rig.counters().expect("counters");
        let ended = Moved::between(&before, &after).ended;
        let kernel: Vec<Reason> = ended.iter().map(|e| e.0).collect();
        if kernel != [reference(frame)] {
            println!(
                "kernel {kernel:?}, host {:?}: {frame:02x?}",
                reference(frame)
            );
        }
    }
}
